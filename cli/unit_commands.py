"""Commands about units."""

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
from .options import as_json_option, pass_session, watched
from .session import FAILED, USAGE, Session, die, print_json

#: Lines that --all and --since may show of one log.
LOG_LINES_MAX = 100_000


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
    answer = session.ask("unit.submit", files=[read_file(f) for f in files], replace=replace)
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
        file = read_file(path)
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


def read_file(path: str) -> dict[str, Any]:
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
                session.ask("unit.submit", files=[read_file(text)], replace=False)
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
@watched
@pass_session
def unit_list(session: Session, as_json: bool) -> None:
    """Units and where they run."""
    rows = session.ask("unit.list")
    print_json(rows) if as_json else show.table(show.with_age(rows), show.UNIT_COLUMNS)


@unit.command("files")
@as_json_option
@watched
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
@watched
@pass_session
def unit_history(session: Session, name: str, as_json: bool) -> None:
    """What happened to a unit: its last runs where it is, how they ended, and its moves between machines."""
    rows = session.ask("unit.history", unit=name)
    print_json(rows) if as_json else show.table(_with_times(rows), show.HISTORY_COLUMNS)


def _with_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "at": stamp(row["time"])} for row in rows]


def stamp(moment: float) -> str:
    """A moment for people, in local time."""
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
    at = stamp(line["time"])
    return f"{at} {line['unit']} {line['text']}" if many else f"{at} {line['text']}"

