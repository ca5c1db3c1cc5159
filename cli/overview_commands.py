"""The whole fleet at a look: what happens (``events``) and how it stands (``top``)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from . import show
from .options import as_json_option, pass_session
from .session import Session, print_json
from .unit_commands import stamp

#: Seconds between looks for what is new.
LOOK_S = 0.3


@click.command("events")
@click.option("--follow", "-f", "following", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--since", type=click.IntRange(0), help="After this revision, as an event shows it.")
@click.option("--lines", "-n", default=50, show_default=True, help="How many of the near past.")
@click.option("--unit", default="", help="Of this unit, or of the instances of this template.")
@click.option("--machine", default="", help="On this machine.")
@as_json_option
@pass_session
def events(session: Session, following: bool, since: int | None, lines: int, unit: str, machine: str, as_json: bool) -> None:
    """What happened to units and machines, oldest first.

    With --follow and --json, one object a line; the revision of the last one is where to go on.
    """
    shown: list[dict[str, Any]] = []
    args = {"lines": lines} if since is None else {"since": since}
    while True:
        answer = session.ask("events", **args)
        for row in answer["rows"]:
            if (machine and row["machine"] != machine) or (unit and not _is_of(row["unit"], unit)):
                continue
            if as_json and not following:
                shown.append(row)
            else:
                click.echo(json.dumps(row)) if as_json else _show(row)
        if following:
            sys.stdout.flush()
        if not following and not (since is not None and answer["more"]):
            break
        if not answer["more"]:
            time.sleep(LOOK_S)
        args = {"since": answer["revision"]}
    if as_json and not following:
        print_json(shown)


def _is_of(unit: str, wanted: str) -> bool:
    """Whether a unit is the one that is named, or an instance of the template."""
    full = wanted if "." in wanted else f"{wanted}.service"
    prefix, at, suffix = full.partition("@.")
    return unit == full or bool(at and unit.startswith(f"{prefix}@") and unit.endswith(f".{suffix}"))


def _show(row: dict[str, Any]) -> None:
    about = " on ".join(filter(None, (row["unit"], row["machine"]))) or "cluster"
    style = show.STYLES.get(row["kind"], "")
    text = f"[{style}]{escape(row['text'])}[/]" if style else escape(row["text"])
    show.console.print(f"[dim]{row['revision']:>8}[/] {stamp(row['time'])} [bold]{escape(about)}[/]: {text}", soft_wrap=True)


@click.command("top")
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.2, 3600), help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Show it once; so it is when piped, too.")
@as_json_option
@pass_session
def top(session: Session, interval: float, once: bool, as_json: bool) -> None:
    """The cluster, its machines, and its units, those in trouble first; until Ctrl-C."""
    if as_json:
        print_json(_look(session))
        return
    if once or not show.console.is_terminal:
        show.console.print(_picture(_look(session)))
        return
    with Live(_picture(_look(session)), console=show.console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                live.update(_picture(_look(session)), refresh=True)
        except KeyboardInterrupt:
            return


def _look(session: Session) -> dict[str, Any]:
    return {
        "cluster": session.ask("cluster.status"), "machines": session.ask("machine.list"),
        "units": session.ask("unit.list"), "locks": session.ask("lock.status"), "rollouts": session.ask("unit.rollouts"),
    }  # fmt: skip


_TROUBLE = {"failed": 0, "activating": 1, "deactivating": 1, "reloading": 1, "active": 2, "inactive": 3}


def _picture(seen: dict[str, Any]) -> Group:
    cluster, units = seen["cluster"], seen["units"]
    margin = cluster["quorum_margin"]
    running = sum(row["active"] == "active" for row in units)
    wanted = sum(row["desired"] == "launched" for row in units)
    quorum = f"tolerates {margin} more" if margin >= 0 else "NO QUORUM"
    head = Text(f"leader {cluster['leader'] or '-'}   revision {cluster['revision']}   {quorum}   units {running} of {wanted} up", "bold")
    parts: list[Any] = [head, Text(), show.build(show.with_short(seen["machines"], "id"), show.MACHINE_COLUMNS)]
    under_way = [row for row in seen["rollouts"] if not row["ended"]]
    if under_way:
        rows = [{**row, "progress": f"{row['changed']}/{row['targets']}"} for row in under_way]
        parts += [Text(), show.build(rows, show.ROLLOUT_COLUMNS)]
    held = [f"{row['group']}: {holder['machine']} ({holder['reason'] or 'no reason'})" for row in seen["locks"] for holder in row["holders"]]
    if held:
        parts += [Text(), Text("lock held: " + ", ".join(held), "yellow")]
    order = sorted(units, key=lambda row: (row["health"] != "failing", _TROUBLE.get(row["active"], 3), row["unit"]))
    room = max(5, show.console.height - len(seen["machines"]) - len(under_way) - 8) if show.console.is_terminal else len(order)
    parts += [Text(), show.build(show.with_age(order[:room]), show.UNIT_COLUMNS)]
    if len(order) > room:
        parts.append(Text(f"and {len(order) - room} more", "dim"))
    return Group(*parts)
