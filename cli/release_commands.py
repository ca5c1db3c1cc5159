"""Commands about releases: made and signed here, published to machines, rolled out by them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

from fleet import release, syntax
from fleet.release import ReleaseError
from runners import artefact

from . import show
from .options import as_json_option, pass_session, watched
from .session import FAILED, USAGE, Session, die, print_json

#: Pieces that are sent with one message.
PIECES = 16
channel_option = click.option("--channel", default="stable", show_default=True)


@click.group("release")
def release_group() -> None:
    """System images: build, sign, publish, and roll out."""


def _artefact(path: str) -> artefact.Artefact:
    try:
        return artefact.Artefact(Path(path))
    except OSError as error:
        die(f"{path}: {error.strerror}", USAGE)
    except ReleaseError as error:
        die(f"{error.code}: {error}", USAGE)


def _private(path: str) -> bytes:
    try:
        key = bytes.fromhex(Path(path).read_text().strip())
    except (OSError, ValueError) as error:
        die(f"--key {path}: {getattr(error, 'strerror', '') or 'is no key of release keygen'}", USAGE)
    if len(key) != 32:
        die(f"--key {path}: is no key of release keygen", USAGE)
    return key


@release_group.command("keygen")
@click.argument("file", type=click.Path(dir_okay=False))
@as_json_option
def keygen(file: str, as_json: bool) -> None:
    """Make a key to sign releases with: the private part into FILE (keep it off the machines), the public part is printed."""
    private, public = artefact.make_key()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        die(f"{file}: {error.strerror}", USAGE)
    with os.fdopen(handle, "w") as out:
        out.write(private.hex() + "\n")
    print_json({"key": public, "id": release.key_id(public)}) if as_json else click.echo(public)


@release_group.command("trust")
@click.option("--public", "keys", multiple=True, help="A public key; repeatable.  All that shall count from now on.")
@click.option("--threshold", default=1, show_default=True, type=click.IntRange(1, release.SIGNATURES_MAX), help="Signatures that a release needs.")
@click.option("--key", "signers", multiple=True, type=click.Path(dir_okay=False), help="A private key to sign this with; repeatable.")
@as_json_option
@pass_session
def trust(session: Session, keys: tuple[str, ...], threshold: int, signers: tuple[str, ...], as_json: bool) -> None:
    """Show whose signatures count, or change it.

    The first time the new keys sign it; afterwards enough of the old keys, and of the new, must.
    """
    known = session.ask("release.trust")
    if keys:
        version = known["version"] + 1 if known else 1
        envelope: dict[str, Any] = {"signed": {"format": 1, "version": version, "threshold": threshold, "keys": list(keys)}, "signatures": {}}
        for signer in signers:
            envelope = release.sign(envelope, _private(signer))
        known = session.ask("release.trust", envelope=envelope)
    if as_json:
        print_json(known)
    elif known is None:
        die("no key is trusted yet: no machine accepts any release", FAILED)
    else:
        click.echo(f"version {known['version']}: {known['threshold']} of these must sign")
        for key in known["keys"]:
            click.echo(f"  {key}  ({release.key_id(key)})")


@release_group.command("build")
@click.argument("tree", type=click.Path(exists=True))
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--version", required=True)
@click.option("--sequence", required=True, type=click.IntRange(1), help="Grows with every release.")
@click.option("--floor", default=0, show_default=True, help="The lowest sequence from which it may be reached in one step.")
@click.option("--product", default="argosy", show_default=True)
@click.option("--valid", default="90d", show_default=True, help="How long machines accept it.")
@as_json_option
def build(tree: str, out: str, version: str, sequence: int, floor: int, product: str, valid: str, as_json: bool) -> None:
    """Make a release of a directory TREE, or of a file that holds a file system: one file OUT, signed by nobody yet."""
    now = int(time.time())
    try:
        made = artefact.build(Path(tree), Path(out), product, version, sequence, floor, now, now + int(syntax.duration(valid)))
    except (OSError, ValueError, OverflowError) as error:
        die(f"{tree}: {error}", USAGE)
    if as_json:
        print_json({**json.loads(made.signed()), "file": out})
    else:
        click.echo(f"{out}: version {made.version}, sequence {made.sequence}, {show.size(made.size)}, image {made.manifest[:12]}")


@release_group.command("sign")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--key", required=True, type=click.Path(dir_okay=False), help="Of `release keygen`.")
@as_json_option
def sign(file: str, key: str, as_json: bool) -> None:
    """Add a signature to a release."""
    private = _private(key)
    _artefact(file)
    try:
        envelope = artefact.sign(Path(file), private)
    except ReleaseError as error:
        die(f"{error.code}: {error}", USAGE)
    except OSError as error:
        die(f"{file}: {error.strerror}", FAILED)
    signers = sorted(envelope["signatures"])
    print_json({"file": file, "signatures": signers}) if as_json else click.echo(f"{file}: signed by {', '.join(signers)}")


@release_group.command("publish")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@channel_option
@as_json_option
@pass_session
def publish(session: Session, file: str, channel: str, as_json: bool) -> None:
    """Send what the asked machine lacks of a release, and offer it in a channel.  Nobody takes it before its rollout."""
    made = _artefact(file)
    image = made.statement.manifest
    missing = set(session.ask("release.missing", manifest=image))
    if missing == {image}:
        session.ask("release.put", pieces={image: made.manifest})
        missing = set(session.ask("release.missing", manifest=image))
    sizes = artefact.chunk_sizes(made.entries)
    sent = sum(sizes[name] for name in missing)
    try:
        with show.progress(f"version {made.statement.version}", sent) as advance:
            batch: dict[str, bytes] = {}
            for name, data in made.chunks():
                if name in missing:
                    batch[name] = data
                if len(batch) >= PIECES:
                    session.ask("release.put", pieces=batch)
                    advance(sum(map(len, batch.values())))
                    batch = {}
            if batch:
                session.ask("release.put", pieces=batch)
    except ReleaseError as error:
        die(f"{error.code}: {error}", USAGE)
    row = session.ask("release.publish", channel=channel, envelope=made.envelope)
    if as_json:
        print_json({**row, "sent_bytes": sent})
    else:
        click.echo(f"version {row['version']} is offered in channel {row['channel']}; {show.size(sent)} were sent")


@release_group.command("list")
@channel_option
@as_json_option
@watched
@pass_session
def list_(session: Session, channel: str, as_json: bool) -> None:
    """Releases of a channel, the newest first."""
    rows = session.ask("release.list", channel=channel)
    if as_json:
        print_json(rows)
    else:
        shown = [{**row, "size": show.size(row["bytes"]), "until": time.strftime("%Y-%m-%d", time.gmtime(row["expires"]))} for row in rows]
        show.table(show.with_short(shown, "manifest"), show.RELEASE_COLUMNS)


@release_group.command("rollout")
@click.argument("version")
@channel_option
@click.option("--canaries", type=click.IntRange(0, 1000), help="Machines that go first (1).")
@click.option("--waves", help="Shares of the machines in per cent, growing to 100 (10,50,100).")
@click.option("--soak", help="How long a wave must have run before the next begins (60s).")
@click.option("--failures", type=click.IntRange(1), help="Halt at so many failures (2).")
@click.option("--failure-percent", type=click.IntRange(1, 100), help="Halt at more than this share, from the fifth machine on (10).")
@as_json_option
@pass_session
def rollout(
    session: Session, version: str, channel: str, canaries: int | None, waves: str | None, soak: str | None,
    failures: int | None, failure_percent: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Bring a published VERSION to the machines of a channel, wave after wave, each under the reboot lock."""
    try:
        plan = {
            "canaries": canaries, "failures_max": failures, "failure_percent": failure_percent,
            "waves": [int(part.strip().rstrip("%")) for part in waves.split(",")] if waves else None,
            "soak": syntax.duration(soak) if soak else None,
        }  # fmt: skip
    except ValueError as error:
        die(f"--waves or --soak: {error}", USAGE)
    answer = session.ask("release.rollout", channel=channel, version=version, plan=plan)
    print_json(answer) if as_json else click.echo(f"version {version} is rolled out in channel {channel}; argosy release status --watch")


@release_group.command("status")
@channel_option
@as_json_option
@watched
@pass_session
def status(session: Session, channel: str, as_json: bool) -> None:
    """The rollout of a channel, and for each machine its version, and what it waits for."""
    answer = session.ask("release.status", channel=channel)
    if as_json:
        print_json(answer)
        return
    rolled = answer["rollout"]
    if rolled is None:
        click.echo(f"channel {channel}: nothing is being rolled out")
    else:
        detail = answer.get("verdict") or rolled["reason"]
        state = "halted" if answer.get("halted") else rolled["state"]
        click.echo(f"channel {channel}: version {rolled['version']}, {state}: {detail}")
    show.table(answer["machines"], show.UPDATE_COLUMNS)


def _state_command(name: str, help_: str) -> None:
    @release_group.command(name, help=help_)
    @channel_option
    @click.option("--reason", default="", help="Shown in the status of every machine.")
    @as_json_option
    @pass_session
    def command(session: Session, channel: str, reason: str, as_json: bool) -> None:
        answer = session.ask(f"release.{name}", channel=channel, reason=reason)
        print_json(answer) if as_json else click.echo(f"channel {channel}: version {answer['version']}: {answer['state']}")

    del command


for _name, _help in (
    ("pause", "Let no other machine begin; those that are on their way go on."),
    ("resume", "Go on with a rollout that was paused or halted."),
    ("halt", "Stop a rollout: machines that have not rebooted yet give their lock back."),
):
    _state_command(_name, _help)


@release_group.command("policy")
@click.option("--window", "windows", multiple=True, help="'CALENDAR for TIME', like 'Mon..Fri 22:00 Europe/Berlin for 4h'; repeatable. '' for none.")
@click.option("--block-unit", "block_units", multiple=True, help="Pattern of units of which none may run there; repeatable. '' for none.")
@click.option("--block-command", "block_commands", multiple=True, help="A command that must succeed there; repeatable. '' for none.")
@click.option("--block-query", "block_queries", multiple=True,
              help="'URL EXPRESSION': a Prometheus server must give nothing for it; repeatable. '' for none.")  # fmt: skip
@click.option("--block-users/--no-block-users", default=None, help="Whether somebody who is logged in there forbids it.")
@click.option("--drain-limit", help="How long units may take to leave.")
@click.option("--trial-limit", help="How long a new version may take to be well.")
@click.option("--commit-after", help="How long it must be well to be kept.")
@click.option("--rate", help="Bytes a second that a machine fetches, like 10M; 0 is no limit.")
@as_json_option
@pass_session
def policy(session: Session, /, as_json: bool, **given: Any) -> None:
    """When machines may reboot, and how long the steps of an update may take; what is not given stays."""
    changes: dict[str, Any] = {}
    try:
        if given["block_users"] is not None:
            changes["block_users"] = given["block_users"]
        for name in ("windows", "block_units", "block_commands", "block_queries"):
            if given[name]:
                changes[name] = [text for text in given[name] if text]
        for name in ("drain_limit", "trial_limit", "commit_after"):
            if given[name]:
                changes[name] = syntax.duration(given[name])
        if given["rate"]:
            changes["rate"] = syntax.size(given["rate"])
    except ValueError as error:
        die(str(error), USAGE)
    known = session.ask("release.policy", policy=changes)
    if as_json:
        print_json(known)
        return
    for name, value in known.items():
        click.echo(f"{name.replace('_', '-')}: {show.cell(value)}")


@release_group.command("forget")
@click.argument("machine")
@click.option("--image", default="", help="The image that did not work; all that did not if not given.")
@pass_session
def forget(session: Session, machine: str, image: str) -> None:
    """Let a machine try again what did not work on it."""
    session.ask("release.forget", machine=machine, manifest=image)
