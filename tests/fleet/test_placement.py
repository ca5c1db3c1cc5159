"""Placement: fleet's rules, and the reasons given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleet import unitfile
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
