"""Placement: fleet's rules, and the reasons given."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import picture
from actors.brain_client import MOVES
from brain.store import Item
from fleet import placement, unitfile
from fleet.placement import Candidate, Placements, brake, choose, refusal
from fleet.spec import UnitSpec


def spec(name: str, rules: str = "") -> UnitSpec:
    return unitfile.load(name, f"[Service]\nExecStart=/bin/a\n[X-Fleet]\n{rules}\n")[0]


def cluster(*specs: UnitSpec, machines: int = 3, **metadata: dict[str, str]) -> Placements:
    state = Placements()
    for number in range(1, machines + 1):
        name = f"m{number}"
        known = tuple(sorted(metadata.get(name, {}).items()))
        state.machines[name] = Candidate(name, name, known)
    state.units = {one.name.full: one for one in specs}
    return state


def place(state: Placements, one: UnitSpec) -> str:
    machine = choose(one, state)[0]
    if machine:
        state.place(one.name.full, machine)
    return machine


def test_fewest_units_then_id() -> None:
    """As fleet did."""
    units = [spec(f"u{n}.service") for n in range(6)]
    state = cluster(*units)
    assert [place(state, one) for one in units] == ["m1", "m2", "m3"] * 2


def test_conflicts_bind_both_sides() -> None:
    """A unit without the option is kept away from one that has it."""
    guard = spec("guard.service", "Conflicts=web*")
    web = spec("web.service")
    state = cluster(guard, web, machines=1)
    assert place(state, guard) == "m1"
    machine, why = choose(web, state)
    assert machine == ""
    assert why == {"m1": "guard.service, which is here, has Conflicts=web*"}


def test_five_units_that_conflict_take_three_machines() -> None:
    """fleet's functional test 22."""
    units = [spec(f"x@{n}.service", "Conflicts=x@*.service") for n in range(5)]
    state = cluster(*units)
    assert sorted(filter(None, [place(state, one) for one in units])) == ["m1", "m2", "m3"]


def test_machine_of_follows() -> None:
    """Only where the peer is."""
    peer = spec("peer.service")
    follower = spec("f.service", "MachineOf=peer.service")
    state = cluster(peer, follower)
    assert choose(follower, state)[0] == ""
    state.place("peer.service", "m3")
    assert choose(follower, state)[0] == "m3"


def test_metadata_is_or_within_a_key_and_and_across_keys() -> None:
    """fleet's rule, whatever the grouping of lines."""
    one = spec("a.service", "MachineMetadata=zone=a zone=b\nMachineMetadata=disk=ssd")
    state = cluster(
        one, m1={"zone": "a"}, m2={"zone": "c", "disk": "ssd"}, m3={"zone": "b", "disk": "ssd"}
    )
    machine, why = choose(one, state)
    assert machine == "m3"
    assert why["m1"] == "MachineMetadata=disk=ssd: it has none"
    assert why["m2"] == "MachineMetadata=zone=a|b: it is c"


def test_machine_id_by_name_or_prefix() -> None:
    """A name, or at least eight digits of the id."""
    state = cluster()
    state.machines = {"abcdef0123456789": Candidate("abcdef0123456789", "alpha")}
    for text, fits in (("alpha", True), ("abcdef01", True), ("abc", False), ("beta", False)):
        one = spec("a.service", f"MachineID={text}")
        assert (refusal(one, state.machines["abcdef0123456789"], state) == "") is fits


def test_the_brake() -> None:
    """More than half lost at once is our fault, not theirs."""
    assert not brake(1, 3)
    assert brake(2, 3)
    assert not brake(1, 2)
    assert not brake(1, 1)


@given(st.permutations(list(range(8))), st.integers(1, 4))
def test_the_same_input_gives_the_same_placement(order: list[int], machines: int) -> None:
    """The order in which machines and units were heard of does not matter."""
    units = [spec(f"u{n}.service", "Conflicts=u0*" if n == 3 else "") for n in range(8)]
    first = cluster(*units, machines=machines)
    second = cluster(*[units[n] for n in order], machines=machines)
    second.machines = dict(reversed(list(second.machines.items())))
    assert [place(first, one) for one in units] == [place(second, one) for one in units]


def wish(name: str, rules: str) -> UnitSpec:
    return unitfile.load(name, f"[Service]\nExecStart=/bin/a\n[X-Argosy]\n{rules}\n")[0]


def test_wishes_choose_among_those_that_qualify() -> None:
    """Affinity by metadata and by neighbours, spread over a key, and the fullest machine first."""
    zones = {"m1": {"zone": "a"}, "m2": {"zone": "a"}, "m3": {"zone": "b"}}
    db, near, far = spec("db.service"), wish("n.service", "Affinity=unit=db*:90"), wish("f.service", "Affinity=unit=db*:-90 zone=a:10")
    state = cluster(db, near, far, **zones)
    state.place("db.service", "m1")
    assert choose(near, state)[0] == "m1" and choose(far, state)[0] == "m2"
    spread = [wish(f"s@{n}.service", "Spread=zone") for n in range(4)]
    state = cluster(*spread, **zones)
    assert [place(state, one) for one in spread] == ["m1", "m3", "m2", "m3"]
    packed = [wish(f"p{n}.service", "Placement=pack") for n in range(3)]
    state = cluster(*packed)
    assert len({place(state, one) for one in packed}) == 1


def test_room_is_counted_with_what_is_leaving() -> None:
    """And instances of one template on a machine."""
    one, two = wish("a@1.service", "MaxPerMachine=1"), wish("a@2.service", "MaxPerMachine=1")
    state = cluster(one, two, machines=1)
    place(state, one)
    assert choose(two, state)[1] == {"m1": "MaxPerMachine=1: a@1.service is here"}
    big = [wish(f"b{n}.service", "Cpu=1500m\nMemory=1G") for n in range(2)]
    state = cluster(*big, machines=1)
    state.machines = {"m1": Candidate("m1", "m1", cpus=2.0, memory=4 * 1024**3)}
    place(state, big[0])
    assert choose(big[1], state)[1] == {"m1": "Cpu=1.5: 0.5 of 2 are free"}
    state.remove("b0.service", "m1")
    state.leaving = {"m1": {"b0.service"}}
    assert choose(big[1], state)[0] == "", "it has not ended yet"
    state.leaving = {}
    assert choose(big[1], state)[0] == "m1"


def test_only_as_many_as_needed_make_room_and_the_least_important() -> None:
    """Ten points of priority apart at least."""
    low = [wish(f"l{n}.service", f"Memory=1G\nPriority={20 + n}") for n in range(4)]
    high, close = wish("h.service", "Memory=2G\nPriority=80"), wish("c.service", "Memory=2G\nPriority=29")
    state = cluster(*low, high, close, machines=1)
    state.machines = {"m1": Candidate("m1", "m1", memory=4 * 1024**3)}
    for one in low:
        place(state, one)
    assert placement.preempt(high, state) == ("m1", ["l0.service", "l1.service"])
    assert placement.preempt(close, state) == ("", [])


def test_a_machine_that_is_lost_again_and_again_comes_last() -> None:
    """By what is stored of moves; and one on which a unit failed, for that unit."""
    rows = [[100.0 + n, "m1", "m2", picture.LOST] for n in range(3)] + [[200.0, "m2", "", f"{picture.FAILED_THERE}: exit-code"]]
    moves = {MOVES + b"u.service": Item(json.dumps(rows).encode(), 1, 1, 1, 0, 0)}
    assert picture.flapping(moves, 300.0) == {"m1"} and not picture.flapping(moves, 900.0)
    assert picture.failed_on(moves, 300.0) == {"u.service": {"m2"}}
    one = spec("u.service")
    state = cluster(one)
    state.machines["m1"] = Candidate("m1", "m1", flapping=True)
    state.failed_on = {"u.service": {"m2"}}
    assert choose(one, state)[0] == "m3"


@pytest.mark.parametrize(
    ("text", "machine", "fits"),
    [
        ("zone!=a", {"zone": "a"}, False), ("zone!=a", {}, True), ("zone~=eu-*", {"zone": "eu-1"}, True), ("zone~=eu-*", {}, False),
        ("zone!~eu-*", {"zone": "us"}, True), ('"zone in a|b"', {"zone": "b"}, True), ('"zone not in a|b"', {"zone": "b"}, False),
        ('"gpu exists"', {}, False), ('"gpu absent"', {}, True),
    ],
)  # fmt: skip
def test_operators_on_metadata(text: str, machine: dict[str, str], fits: bool) -> None:
    """Each rule by itself."""
    one = spec("a.service", f"MachineMetadata={text}")
    state = cluster(one, machines=1, m1=machine)
    assert (choose(one, state)[0] == "m1") is fits
