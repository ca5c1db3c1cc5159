"""Commands about members, machines and units."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from fleet import dropins, syntax, unitfile

from . import show
from .options import as_json_option, pass_session, watch_option
from .session import FAILED, USAGE, Session, die, follow, print_json

#: Lines that --all and --since may show of one log.
LOG_LINES_MAX = 100_000


@click.group()
def cluster() -> None:
    """The members of the brain."""


@cluster.command("status")
@as_json_option
@watch_option
@pass_session
def cluster_status(session: Session, as_json: bool, again: bool) -> None:
    """Members, leader, term, commit, quorum margin."""

    def once() -> None:
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

    follow(once, again)


@cluster.command("token")
@click.option("--role", default="voter", type=click.Choice(["voter", "agent"]), show_default=True)
@click.option("--ttl", default=3600, show_default=True, help="Seconds it is good for.")
@as_json_option
@pass_session
def cluster_token(session: Session, role: str, ttl: int, as_json: bool) -> None:
    """A token with which one host may join."""
    answer = session.ask("cluster.token", role=role, ttl_s=ttl)
    print_json(answer) if as_json else click.echo(answer["token"])


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
@watch_option
@pass_session
def machine_list(session: Session, as_json: bool, again: bool) -> None:
    """All machines that ever registered."""

    def once() -> None:
        rows = session.ask("machine.list")
        print_json(rows) if as_json else show.table(show.with_short(rows, "id"), show.MACHINE_COLUMNS)

    follow(once, again)


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


def _fields(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(record)
        return
    width = max(map(len, record))
    for key, value in record.items():
        click.echo(f"{key.rjust(width)}: {show.cell(value)}")


# -- units -----------------------------------------------------------------------------------------


@click.group()
def unit() -> None:
    """Units: submit, start, look, stop."""


@unit.command("submit")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--replace", is_flag=True, help="Take the new content of a unit that is known.")
@as_json_option
@pass_session
def unit_submit(session: Session, files: tuple[str, ...], replace: bool, as_json: bool) -> None:
    """Check unit files and store them in the cluster."""
    answer = session.ask("unit.submit", files=[_read(f) for f in files], replace=replace)
    for warning in answer["warnings"]:
        click.echo(f"argosy: {warning}", err=True)
    if as_json:
        print_json(answer["units"])
    else:
        for row in answer["units"]:
            click.echo(f"{row['unit']}: {row['change']}")


@unit.command("verify")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@as_json_option
def unit_verify(files: tuple[str, ...], as_json: bool) -> None:
    """Say everything that is wrong with unit files, or accepted and without effect.  Asks no cluster.

    Exits with 2 when a file would be refused.
    """
    found = []
    for path in files:
        file = _read(path)
        parts = [(part["path"], part["content"]) for part in file["dropins"]]
        try:
            whole, origins = dropins.merge(path, file["content"], parts)
            problems, notes = unitfile.verify(file["name"], whole, path, origins)
        except syntax.UnitFileError as error:
            problems, notes = error.problems, []
        found.append({
            "file": path, "accepted": not problems, "problems": [asdict(problem) for problem in problems],
            "notes": notes,
        })  # fmt: skip
        if not as_json:
            for problem in problems:
                show.console.print(f"[bold red]error[/] {escape(str(problem))}", soft_wrap=True)
            for note in notes:
                show.console.print(f"[yellow]note[/]  {escape(note)}", soft_wrap=True)
            if not problems:
                show.console.print(f"[green]ok[/]    {escape(path)}", soft_wrap=True)
    if as_json:
        print_json(found)
    if any(not row["accepted"] for row in found):
        raise SystemExit(USAGE)


def _read(path: str) -> dict[str, Any]:
    """A unit file, and its drop-ins in ``PATH.d``."""
    parts = sorted(Path(f"{path}.d").glob("*.conf"))
    return {
        "name": Path(path).name, "content": _text(path), "path": path,
        "dropins": [{"path": str(part), "content": _text(str(part))} for part in parts],
    }  # fmt: skip


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        die(f"{path}: {reason}", USAGE)


def _unit_verb(name: str, help_: str, blocks: bool = True) -> None:
    @unit.command(name, help=help_)
    @click.argument("units", nargs=-1, required=True)
    @click.option("--no-block", is_flag=True, help="Do not wait until it is so.")
    @as_json_option
    @pass_session
    def verb(session: Session, units: tuple[str, ...], no_block: bool, as_json: bool) -> None:
        known = list(units)
        for position, text in enumerate(known):
            if os.sep in text and Path(text).is_file():  # fleetctl starts files, too
                session.ask("unit.submit", files=[_read(text)], replace=False)
                known[position] = Path(text).name
        answer = session.ask(
            f"unit.{name}", session.timeout + 5, units=known, no_block=no_block, within=session.timeout
        )
        if as_json:
            print_json(answer)
        elif isinstance(answer, list):
            show.table(show.with_age(answer), show.UNIT_COLUMNS)

    del blocks, verb


for _name, _help in (
    ("start", "Place units and run them; waits until they run and are healthy."),
    ("stop", "Stop units; they stay placed."),
    ("load", "Place units without starting them."),
    ("unload", "Stop units and take them off their machines."),
    ("destroy", "Stop units and forget them."),
    ("restart", "Stop and start units where they are."),
):
    _unit_verb(_name, _help)


@unit.command("list")
@as_json_option
@watch_option
@pass_session
def unit_list(session: Session, as_json: bool, again: bool) -> None:
    """Units and where they run."""

    def once() -> None:
        rows = session.ask("unit.list")
        print_json(rows) if as_json else show.table(show.with_age(rows), show.UNIT_COLUMNS)

    follow(once, again)


@unit.command("files")
@as_json_option
@pass_session
def unit_files(session: Session, as_json: bool) -> None:
    """Unit files the cluster knows."""
    rows = session.ask("unit.files")
    print_json(rows) if as_json else show.table(show.with_short(rows, "hash"), show.FILE_COLUMNS)


@unit.command("cat")
@click.argument("name")
@pass_session
def unit_cat(session: Session, name: str) -> None:
    """A unit's file, byte for byte."""
    click.echo(session.ask("unit.cat", unit=name), nl=False)


@unit.command("status")
@click.argument("name")
@as_json_option
@pass_session
def unit_status(session: Session, name: str, as_json: bool) -> None:
    """A unit, why it is so, its processes, what happened to it, and its last log lines."""
    status = session.ask("unit.status", unit=name)
    if as_json:
        print_json(status["rows"])
    else:
        show.table(show.with_age(status["rows"]), show.UNIT_COLUMNS)
        click.echo(f"why: {status['why']['reason']}")
        if status.get("processes"):  # a host of an older version does not tell
            show.table([show.process_cells(row) for row in status["processes"]], show.PROCESS_COLUMNS)
        if status.get("history"):
            show.table(_with_times(status["history"][-5:]), show.HISTORY_COLUMNS)
        for moment, text, _ in status["log"]:
            click.echo(_log_line({"time": moment, "text": text}))
    if not any(row["active"] == "active" for row in status["rows"]):
        raise SystemExit(FAILED)


@unit.command("history")
@click.argument("name")
@as_json_option
@pass_session
def unit_history(session: Session, name: str, as_json: bool) -> None:
    """What happened to a unit: its last runs where it is, how they ended, and its moves between machines."""
    rows = session.ask("unit.history", unit=name)
    print_json(rows) if as_json else show.table(_with_times(rows), show.HISTORY_COLUMNS)


def _with_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "at": _stamp(row["time"])} for row in rows]


def _stamp(moment: float) -> str:
    return time.strftime("%b %d %H:%M:%S", time.localtime(moment))


@unit.command("reload")
@click.argument("units", nargs=-1, required=True)
@as_json_option
@pass_session
def unit_reload(session: Session, units: tuple[str, ...], as_json: bool) -> None:
    """Run ExecReload= of units, wherever they run."""
    answer = session.ask("unit.reload", units=list(units))
    if as_json:
        print_json(answer)
    else:
        for row in answer:
            click.echo(f"{row['unit']} on {row['machine']}: reloading")


@unit.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--machine", default="", help="Of a unit that runs on several.")
@click.option("--tty/--no-tty", "-t/-T", "with_terminal", default=None, help="A terminal; else as this one's input is.")
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@pass_session
def unit_exec(
    session: Session, machine: str, with_terminal: bool | None, name: str, command: tuple[str, ...]
) -> None:
    """Run a command inside a unit, wherever it runs: with its user, directory, limits and environment.

    Without a command, a shell.  Exits with what the command exits with.
    """
    from . import exec as inside

    if with_terminal is None:
        with_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    words = list(command[1:] if command[:1] == ("--",) else command) or ["/bin/sh"]
    raise SystemExit(inside.run(session, name, machine, words, with_terminal))


@unit.command("why")
@click.argument("name")
@as_json_option
@pass_session
def unit_why(session: Session, name: str, as_json: bool) -> None:
    """Why a unit is where it is, or is nowhere."""
    answer = session.ask("unit.why", unit=name)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['unit']}: {answer['reason']}")
    for name_, text in sorted(answer["machines"].items()):
        click.echo(f"  {name_}: {text}")


@unit.command("logs")
@click.argument("names", nargs=-1, required=True)
@click.option("--follow", "-f", "following", is_flag=True, help="Go on as lines come.")
@click.option("--lines", "-n", default=10, show_default=True, help="The last so many of each log.")
@click.option("--since", default="", help="Only younger ones: a span like 10min, or a time like 2026-11-23 08:00.")
@click.option("--machine", default="", help="Of a unit that runs on several.")
@click.option("--all", "everything", is_flag=True, help="All that is kept.")
@as_json_option
@pass_session
def unit_logs(
    session: Session, names: tuple[str, ...], following: bool, lines: int, since: str, machine: str,
    everything: bool, as_json: bool,
) -> None:  # fmt: skip
    """What units printed, merged by time; a template means all its instances.

    With --json one object for each line, with the invocation that wrote it.
    """
    if everything or since:
        lines = LOG_LINES_MAX
    args: dict[str, Any] = {"units": list(names), "lines": lines, "machine": machine, "since": _moment(since)}
    answer = session.ask("unit.logs", **args)
    many = len(answer["streams"]) > 1
    shown: list[dict[str, Any]] = []
    while True:
        found = [
            {"time": line[0], "unit": stream["unit"], "machine": stream["machine"], "invocation": line[2], "text": line[1]}
            for stream in answer["streams"] for line in stream["lines"]
        ]  # fmt: skip
        for stream in answer["streams"]:
            if stream.get("error"):
                click.echo(f"argosy: {stream['unit']} on {stream['machine']}: {stream['error']}", err=True)
        found.sort(key=lambda line: line["time"])
        if as_json and not following:
            shown += found
        for line in found if not as_json or following else ():
            click.echo(json.dumps(line) if as_json else _log_line(line, many))
        if not following:
            break
        time.sleep(0.2)
        positions = {stream["source"]: stream["position"] or "0:0" for stream in answer["streams"]}
        answer = session.ask("unit.logs", after=positions)
    if as_json:
        print_json(shown)


def _moment(text: str) -> float:
    """Unix time of ``10min`` (ago) or of a date and time; 0 for nothing."""
    if not text:
        return 0.0
    try:
        return time.time() - syntax.duration(text.removesuffix("ago"))
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        die(f"--since {text!r}: a time span like 10min, or a time like 2026-11-23 08:00", USAGE)


def _log_line(line: dict[str, Any], many: bool = False) -> str:
    stamp = _stamp(line["time"])
    return f"{stamp} {line['unit']} {line['text']}" if many else f"{stamp} {line['text']}"

