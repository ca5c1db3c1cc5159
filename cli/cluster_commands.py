"""Commands about the cluster's members and its machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fleet import syntax

from . import show
from .options import as_json_option, pass_session, watched
from .session import FAILED, USAGE, Session, die, print_json


@click.group()
def cluster() -> None:
    """The members of the brain."""


@cluster.command("status")
@as_json_option
@watched
@pass_session
def cluster_status(session: Session, as_json: bool) -> None:
    """Members, leader, term, commit, quorum margin."""
    status = session.ask("cluster.status")
    if as_json:
        print_json(status)
        return
    margin = status["quorum_margin"]
    words = f"tolerates {margin} more" if margin >= 0 else "NO QUORUM"
    click.echo(
        f"cluster {status['name'][:8]}  leader {status['leader'] or '-'}  term {status['term']}  "
        f"commit {status['commit_index']}  revision {status['revision']}  {words}"
    )
    show.table(show.with_short(status["members"], "id"), show.MEMBER_COLUMNS)


@cluster.command("token")
@click.option("--role", default="voter", type=click.Choice(["voter", "agent"]), show_default=True)
@click.option("--ttl", default=3600, show_default=True, help="Seconds it is good for.")
@as_json_option
@pass_session
def cluster_token(session: Session, role: str, ttl: int, as_json: bool) -> None:
    """A token with which one host may join."""
    answer = session.ask("cluster.token", role=role, ttl_s=ttl)
    print_json(answer) if as_json else click.echo(answer["token"])


@cluster.command("voters")
@click.argument("size", type=int, required=False)
@as_json_option
@pass_session
def cluster_voters(session: Session, size: int | None, as_json: bool) -> None:
    """Show who votes and who stands by; with SIZE (1, 3, 5, 7, 9), at most so many vote from now on."""
    answer = session.ask("cluster.voters", size=size)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"at most {answer['size']} vote: {', '.join(answer['voters'])}")
        click.echo(f"stand by: {', '.join(answer['standby']) or 'none'}")


@cluster.group("snapshot")
def snapshot() -> None:
    """Backups of the brain."""


@snapshot.command("save")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@as_json_option
@pass_session
def snapshot_save(session: Session, file: Path, as_json: bool) -> None:
    """Write the brain's whole state, as of now, to FILE."""
    made = session.ask("cluster.snapshot")
    temporary = file.with_name(file.name + ".part")
    with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
        with show.progress("snapshot", made["bytes"]) as advance:
            for number in range(made["chunks"]):
                piece = session.ask("cluster.snapshot", token=made["token"], chunk=number)["data"]
                out.write(piece)
                advance(len(piece))
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
    answer = {"file": str(file), "bytes": made["bytes"]}
    print_json(answer) if as_json else click.echo(f"{file}: {made['bytes']} bytes")


@snapshot.command("restore")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data-dir", required=True, help="Where the new cluster's first host will live.")
@click.option("--name", required=True)
@click.option("--transport", default="127.0.0.1:7001", show_default=True)
@click.option("--client", multiple=True, help="HOST:PORT for HTTP; repeatable.")
@as_json_option
def snapshot_restore(
    file: Path, data_dir: str, name: str, transport: str, client: tuple[str, ...], as_json: bool
) -> None:
    """Found a new cluster of one host with the state in FILE; others join it with a token.

    The revision jumps ahead, so that watches and caches of the old cluster notice.
    """
    from . import host, repair
    from .config import HostConfig

    config = HostConfig(name=name, data_dir=data_dir, transport=transport, client=list(client))
    try:
        answer = repair.restore(file, config)
    except host.HostError as error:
        die(str(error), FAILED)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{data_dir}: {answer['keys']} keys at revision {answer['revision']}; start it with")
    click.echo(f"  argosy start --data-dir {data_dir} --name {name} --transport {transport}")


@cluster.command("history")
@click.option("--revisions", type=click.IntRange(1_000, 1_000_000), help="Keep at most so many.")
@click.option("--age", type=click.IntRange(60), help="Keep none older than so many seconds.")
@as_json_option
@pass_session
def cluster_history(session: Session, revisions: int | None, age: int | None, as_json: bool) -> None:
    """How much past the brain keeps for watches and reads, and how much it has."""
    answer = session.ask("cluster.history", revisions=revisions, age_s=age)
    if as_json:
        print_json(answer)
    else:
        click.echo(
            f"{answer['kept']} revisions kept, of at most {answer['revisions']} and none older than "
            f"{answer['age_s']} s; compacted up to {answer['compacted']}"
        )


@cluster.command("recover")
@click.option("--data-dir", required=True, help="Of a host that survived, and is stopped.")
@click.option("--confirm", required=True, help="That host's name, to show that it is meant.")
@as_json_option
def cluster_recover(data_dir: str, confirm: str, as_json: bool) -> None:
    """Begin anew with one host after the majority is lost for good.

    Refused while a majority can be reached.  Writes that only the lost hosts had are gone; the
    old members are strangers afterwards, and join again with a token and an empty directory.
    """
    from . import host, repair

    try:
        answer = repair.recover(Path(data_dir).absolute(), confirm)
    except host.HostError as error:
        die(str(error), FAILED)
    if as_json:
        print_json(answer)
    else:
        click.echo(
            f"{answer['keys']} keys at revision {answer['revision']} (before: {answer['was']}); "
            f"the old state lies in {answer['aside']}.  Start the host, then let others join."
        )


@click.group()
def machine() -> None:
    """The machines of the fleet."""


@machine.command("list")
@as_json_option
@watched
@pass_session
def machine_list(session: Session, as_json: bool) -> None:
    """All machines that ever registered."""
    rows = session.ask("machine.list")
    print_json(rows) if as_json else show.table(show.with_short(rows, "id"), show.MACHINE_COLUMNS)


@machine.command("show")
@click.argument("name")
@as_json_option
@pass_session
def machine_show(session: Session, name: str, as_json: bool) -> None:
    """One machine, by name, id or unique prefix."""
    _fields(session.ask("machine.show", machine=name), as_json)


@machine.command("remove")
@click.argument("name")
@pass_session
def machine_remove(session: Session, name: str) -> None:
    """Take a lost machine out of the cluster for good."""
    session.ask("machine.remove", machine=name)


@machine.command("drain")
@click.argument("name")
@click.option("--deadline", default="1h", show_default=True, help="Then what is left is stopped.")
@click.option("--reason", default="", help="Shown to whoever asks why units moved.")
@click.option("--no-block", is_flag=True, help="Do not wait until the machine is empty.")
@as_json_option
@pass_session
def machine_drain(session: Session, name: str, deadline: str, reason: str, no_block: bool, as_json: bool) -> None:
    """Move the units of a machine elsewhere, and place none there.

    As many instances of a template leave at once as its MaxUnavailable= allows; global units go
    last.  A unit that may run nowhere else stays until the deadline.
    """
    try:
        seconds = syntax.duration(deadline)
    except ValueError as error:
        die(f"--deadline: {error}", USAGE)
    answer = session.ask(
        "machine.drain", session.timeout + 5, machine=name, deadline_s=seconds, reason=reason, no_block=no_block,
        within=session.timeout,
    )  # fmt: skip
    if as_json:
        print_json(answer)
    elif answer["left"]:
        click.echo(f"{answer['machine']}: draining; still there: {', '.join(answer['left'])}")
    else:
        click.echo(f"{answer['machine']}: drained")


@machine.command("undrain")
@click.argument("name")
@as_json_option
@pass_session
def machine_undrain(session: Session, name: str, as_json: bool) -> None:
    """Use a machine again.  `cluster rebalance` moves units there; without it, only new ones come."""
    answer = session.ask("machine.undrain", machine=name)
    print_json(answer) if as_json else click.echo(f"{answer['machine']}: ready")


@machine.command("metadata")
@click.argument("name")
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@as_json_option
@pass_session
def machine_metadata(session: Session, name: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Set metadata of a machine (KEY= takes one away), and show what it is then.

    It holds over the machine's own configuration, and over its restarts; units whose rules the
    machine no longer meets move away.
    """
    for word in changes:
        if "=" not in word:
            die(f"{word!r} is not KEY=VALUE", USAGE)
    pairs = dict(word.split("=", 1) for word in changes)
    found = session.ask("machine.metadata", machine=name, metadata=pairs)
    if as_json:
        print_json(found)
    else:
        for key, value in sorted(found.items()):
            click.echo(f"{key}={value}")


@cluster.command("rebalance")
@click.option("--apply", "apply_", is_flag=True, help="Make these moves; without it they are only shown.")
@click.option("--per-minute", default=6, show_default=True, type=click.IntRange(1, 600), help="Moves a minute.")
@as_json_option
@pass_session
def cluster_rebalance(session: Session, apply_: bool, per_minute: int, as_json: bool) -> None:
    """Show which units would move to even out the machines, or move them."""
    answer = session.ask("cluster.rebalance", apply=apply_, per_minute=per_minute)
    if as_json:
        print_json(answer["moves"])
        return
    if not answer["moves"]:
        click.echo("the machines are even: nothing would move")
        return
    show.table(answer["moves"], show.REBALANCE_COLUMNS)
    click.echo(f"moving, {per_minute} a minute" if answer["applied"] else "nothing was moved; --apply does it")


@cluster.command("add")
@click.option("--role", default="voter", type=click.Choice(["voter", "agent"]), show_default=True)
@click.option("--ttl", default=3600, show_default=True, help="Seconds its token is good for.")
@as_json_option
@pass_session
def cluster_add(session: Session, role: str, ttl: int, as_json: bool) -> None:
    """What to run on a new machine so that it joins."""
    token = session.ask("cluster.token", role=role, ttl_s=ttl)["token"]
    members = session.ask("cluster.status")["members"]
    join = ",".join(member["address"] for member in members if member["role"] != "learner")
    command = f"argosy start --join {join} --token {token} --role {role}"
    if as_json:
        print_json({"command": command, "token": token, "join": join})
        return
    click.echo("On the new machine, with its own name and addresses:")
    click.echo(f"  {command} --name NAME --transport ADDRESS:7001")


@cluster.command("remove")
@click.argument("name")
@pass_session
def cluster_remove(session: Session, name: str) -> None:
    """Take a lost machine out of the cluster for good (`machine remove` is the same)."""
    session.ask("machine.remove", machine=name)


def _fields(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    width = max(map(len, record))
    for key, value in record.items():
        click.echo(f"{key.rjust(width)}: {show.cell(value)}")
