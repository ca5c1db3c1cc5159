"""Releases: what a machine accepts, and refuses before anything is fetched or written (U1)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleet import release, waves
from fleet.release import Entry, ReleaseError, Statement, Trust
from fleet.waves import Outcome, Plan, verdict
from runners import artefact

NOW = 1_000_000.0
KEYS = [artefact.make_key() for _ in range(3)]
TRUST = Trust(1, 2, tuple(public for _, public in KEYS))
GOOD = Statement("argosy", "2.0", 7, 3, int(NOW) - 10, int(NOW) + 1000, "ab" * 32, 5)


def envelope(made: Statement = GOOD, signers: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    signed: dict[str, Any] = {"signed": json.loads(made.signed()), "signatures": {}}
    for number in signers:
        signed = release.sign(signed, KEYS[number][0])
    return signed


def refused(envelope_: Any, trusted: Trust | None = TRUST, installed: int = 5, now: float = NOW, product: str = "argosy") -> str:
    with pytest.raises(ReleaseError) as failure:
        release.accept(envelope_, trusted, product, installed, now)
    assert str(failure.value)
    return failure.value.code


def test_a_release_that_enough_keys_signed_is_accepted() -> None:
    """Also by more than are needed; a signature of a stranger counts for nothing."""
    assert release.accept(envelope(), TRUST, "argosy", 5, NOW) == GOOD
    assert release.accept(envelope(signers=(0, 1, 2)), TRUST, "argosy", 5, NOW) == GOOD
    stranger = release.sign(envelope(), artefact.make_key()[0])
    assert release.accept(stranger, TRUST, "argosy", 5, NOW) == GOOD
    assert refused(release.sign(envelope(signers=(0,)), artefact.make_key()[0])) == "threshold"


def test_u1_what_was_tampered_with_is_refused_each_with_its_reason() -> None:
    """No key is no trust; forged, too few, expired, of another product, older, beyond a floor, malformed."""
    assert refused(envelope(), None) == "no-key"
    changed = envelope()
    changed["signed"]["manifest"] = "cd" * 32
    assert refused(changed) == "forged"
    assert refused(envelope(signers=(0,))) == "threshold"
    assert refused(envelope(), now=GOOD.expires + 1) == "expired"
    assert refused(envelope(), product="other") == "product"
    assert refused(envelope(), installed=8) == "downgrade"
    assert refused(envelope(), installed=2) == "floor"
    for broken in (None, [], {"signed": {}}, {"signed": {"format": 2}, "signatures": {}}, {**envelope(), "more": 1}):
        assert refused(broken) in ("malformed", "threshold")
    extra = {"signed": {**json.loads(GOOD.signed()), "run": "rm"}, "signatures": {}}
    for private, _ in KEYS:
        extra = release.sign(extra, private)
    assert refused(extra) == "malformed", "signed, but not a statement"


def test_keys_are_rotated_by_the_old_and_the_new_together() -> None:
    """Neither alone, and one version at a time."""
    private, public = artefact.make_key()
    new = Trust(2, 1, (public,))

    def signed(record: Trust, *privates: bytes) -> dict[str, Any]:
        made: dict[str, Any] = {"signed": record.record(), "signatures": {}}
        for one in privates:
            made = release.sign(made, one)
        return made

    assert release.rotate(TRUST, signed(new, KEYS[0][0], KEYS[1][0], private)) == new
    for wrong in (signed(new, private), signed(new, KEYS[0][0], KEYS[1][0]), signed(Trust(3, 1, (public,)), KEYS[0][0], KEYS[1][0], private)):
        with pytest.raises(ReleaseError):
            release.rotate(TRUST, wrong)


@pytest.mark.parametrize(
    "entries",
    [
        [["dir", "../x", 0o755]], [["dir", "/x", 0o755]], [["dir", "a/b", 0o755]], [["dir", "a", 0o755], ["dir", "a", 0o755]],
        [["link", "a", "/etc"]], [["link", "a", "../x"]], [["link", "a", "b"], ["file", "a/c", 0o644, 0, []]],
        [["dir", "a", 0o755], ["dir", "a/b", 0o755], ["link", "a/b/up", ".."], ["link", "a/out", "b/up/../../x"]],
        [["link", "a", "b"], ["link", "b", "a"]], [["file", "a", 0o644, 1.0, ["ab" * 32]]], [["dir", 7, 0o755]], ["dir"], [[]],
        [["dir", "a\nb", 0o755]], [["file", "a", 0o4755, 0, []]], [["file", "a", 0o644, 1, []]], [["file", "a", 0o644, 1, ["zz"]]], [["device", "a"]],
    ],
)  # fmt: skip
def test_a_manifest_never_leads_out_of_its_image(entries: list[Any]) -> None:
    """Whoever signed it."""
    data = release.canonical({"format": 1, "chunk": release.CHUNK_BYTES, "entries": entries})
    with pytest.raises(ReleaseError):
        release.manifest(data, release.digest(data))


def test_a_manifest_is_what_was_signed() -> None:
    """Its own hash is in the statement."""
    data = release.manifest_bytes([Entry("bin", "dir"), Entry("bin/a", "link", target="../lib"), Entry("lib", "dir")])
    assert [entry.path for entry in release.manifest(data, release.digest(data))] == ["bin", "bin/a", "lib"]
    through = [Entry("a", "dir"), Entry("a/b", "dir"), Entry("a/b/up", "link", target=".."), Entry("c", "link", target="a/b/up/../a/b")]
    assert len(release.manifest(release.manifest_bytes(through), release.digest(release.manifest_bytes(through)))) == 4
    nested = b"[" * 100_000
    with pytest.raises(ReleaseError, match="not one of this format"):
        release.manifest(nested, release.digest(nested))
    with pytest.raises(ReleaseError, match="not the one that was signed"):
        release.manifest(data + b" ", release.digest(data))


def test_r1_waves_by_a_stable_order_that_halt() -> None:
    """One canary, then 10, 50, 100 per cent, each after the soak; two failures stop everybody."""
    machines = [f"m{n}" for n in range(20)]
    ordered = waves.order(machines, "2.0")
    assert ordered == waves.order(list(reversed(machines)), "2.0") != waves.order(machines, "3.0")
    how = Plan(soak=60.0)
    through: dict[str, Outcome] = dict.fromkeys(machines, Outcome())
    now, sizes = NOW, []
    while True:
        found = verdict(how, "2.0", through, now)
        assert not found.halted and set(found.permitted) == set(ordered[: len(found.permitted)])
        if all(outcome.result for outcome in through.values()):
            break
        fresh = [m for m in found.permitted if not through[m].result]
        if fresh:
            sizes.append(len(found.permitted))
            through.update(dict.fromkeys(fresh, Outcome("committed", now)))
        else:
            assert "must run for 60 s" in found.reason
        now += 10
    assert sizes == [1, 2, 10, 20]
    failing = {**dict.fromkeys(machines, Outcome()), ordered[0]: Outcome("failed", NOW), ordered[1]: Outcome("failed", NOW)}
    assert verdict(how, "2.0", failing, NOW).halted and not verdict(how, "2.0", failing, NOW).permitted
    one = {m: Outcome("committed" if n else "failed", 0.0) for n, m in enumerate(ordered[:4])} | dict.fromkeys(ordered[4:], Outcome())
    assert not verdict(how, "2.0", one, NOW).halted, "a share says nothing before the fifth machine"
    five = {**one, ordered[4]: Outcome("committed", 0.0)}
    assert "more than 10 %" in verdict(how, "2.0", five, NOW).halted
