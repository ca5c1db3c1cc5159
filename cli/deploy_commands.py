"""Commands that bring new versions and numbers of units: scale, update, plan, apply."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import show
from .options import as_json_option, pass_session, watched
from .session import FAILED, TIMED_OUT, USAGE, Session, die, print_json
from .unit_commands import read_file, stamp, unit

#: Phases of a rollout in which nothing more happens by itself.
_SETTLED = ("done", "rolled-back", "failed", "paused", "waiting")
#: Kinds of files in a directory that `plan` and `apply` read.
_PATTERNS = ("*.service", "*.timer", "*.container")
no_block_option = click.option("--no-block", is_flag=True, help="Do not wait until it is so.")
set_option = click.option("--set", "group", default="", help="Name of what these files make up; the directory's name if not given.")
prune_option = click.option("--prune", is_flag=True, help="Destroy units of the set whose files are gone.")


@unit.command("scale")
@click.argument("template")
@click.argument("count", type=click.IntRange(0, 9_999))
@no_block_option
@as_json_option
@pass_session
def unit_scale(session: Session, template: str, count: int, no_block: bool, as_json: bool) -> None:
    """Let TEMPLATE@ have COUNT instances: 1 to COUNT run, those with higher numbers are destroyed."""
    answer = session.ask("unit.scale", unit=template, count=count)
    if answer["running"] and not no_block:
        session.ask("unit.start", session.timeout + 5, units=answer["running"], within=session.timeout)
    if as_json:
        print_json(answer)
    else:
        gone = f"; destroyed: {', '.join(answer['destroyed'])}" if answer["destroyed"] else ""
        click.echo(f"{answer['template']}: {count} instances{gone}")


@unit.command("update")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--policy", default="", help='Instead of the file\'s Update=, like "parallel 2, canary 1, monitor 30s".')
@no_block_option
@as_json_option
@pass_session
def unit_update(session: Session, files: tuple[str, ...], policy: str, no_block: bool, as_json: bool) -> None:
    """Bring new files to units that are known, instance after instance, and back if they do not work.

    Exits with 1 when an update was rolled back, paused or failed.
    """
    answer = session.ask("unit.update", files=[read_file(f) for f in files], policy=policy)
    for warning in answer["warnings"]:
        click.echo(f"argosy: {warning}", err=True)
    rows = [_watch(session, row["unit"], no_block, as_json) if row["change"] in ("rollout", "under way") else row for row in answer["units"]]
    _finish(rows, as_json)


@unit.command("rollback")
@click.argument("name")
@click.option("--to", default="", help="A prefix of the hash of a version; see `unit versions`.")
@no_block_option
@as_json_option
@pass_session
def unit_rollback(session: Session, name: str, to: str, no_block: bool, as_json: bool) -> None:
    """Return to the version before: from the middle of a rollout, or to the last good one."""
    row = session.ask("unit.rollback", unit=name, to=to)
    if row["change"] == "rollout":
        row = _watch(session, row["unit"], no_block, as_json)
    is_back = row.get("phase") in ("rolled-back", "rolling-back")
    _finish([row], as_json, good=("rolled-back",) if is_back else ("done", "waiting"))


@unit.command("rollout")
@click.argument("name")
@click.argument("action", default="status", type=click.Choice(["status", "pause", "resume", "promote"]))
@as_json_option
@pass_session
def unit_rollout(session: Session, name: str, action: str, as_json: bool) -> None:
    """How an update of a unit goes; pause it, resume it, or promote its canaries."""
    row = session.ask("unit.rollout", unit=name, action=action)
    print_json(row) if as_json else show.table([_cells(row)], show.ROLLOUT_COLUMNS)


@unit.command("versions")
@click.argument("name")
@as_json_option
@watched
@pass_session
def unit_versions(session: Session, name: str, as_json: bool) -> None:
    """Versions of a unit's file that are kept, and what came of each."""
    rows = session.ask("unit.versions", unit=name)
    if as_json:
        print_json(rows)
    else:
        shown = [{**row, "time": stamp(row["at"]) if row["at"] else "-"} for row in rows]
        show.table(show.with_short(shown, "hash"), show.VERSION_COLUMNS)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "progress": f"{row['changed']}/{row['targets']}"} if "phase" in row else {**row, "phase": row["change"]}


def _watch(session: Session, name: str, no_block: bool, quiet: bool) -> dict[str, Any]:
    """Follow a rollout until nothing more happens by itself: a bar in a terminal, a line for each change when piped."""
    row: dict[str, Any] = session.ask("unit.rollout", unit=name)
    deadline = time.monotonic() + session.timeout
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[told]}"))
    is_lively = show.console.is_terminal and not quiet
    with Progress(*columns, console=show.console, transient=True, disable=not is_lively) as bar:
        task = bar.add_task(name, total=max(1, row["targets"]), told="")
        said = ""
        while row["phase"] not in _SETTLED and not no_block:
            bar.update(task, completed=row["changed"], total=max(1, row["targets"]), told=escape(f"{row['phase']}: {row['reason']}"))
            line = f"{name}: {row['phase']}: {row['reason']}"
            if line != said and not is_lively and not quiet and row["reason"]:
                click.echo(line)
                said = line
            if time.monotonic() > deadline:
                die(f"{name}: {row['phase']}: {row['reason']}; it goes on: argosy unit rollout {name}", TIMED_OUT)
            time.sleep(0.3)
            row = session.ask("unit.rollout", unit=name)
    return row


def _finish(rows: list[dict[str, Any]], as_json: bool, good: tuple[str, ...] = ("done", "waiting")) -> None:
    if as_json:
        print_json(rows)
    else:
        show.table([_cells(row) for row in rows], show.ROLLOUT_COLUMNS)
    if any(row.get("phase", "done") in _SETTLED and row.get("phase", good[0]) not in good for row in rows):
        raise SystemExit(FAILED)


# -- plan and apply -----------------------------------------------------------------------------------


def _files(paths: tuple[str, ...], group: str) -> tuple[list[dict[str, Any]], str]:
    """Unit files, and those in directories; and the name of the set."""
    found: list[dict[str, Any]] = []
    for path in map(Path, paths):
        inside = sorted(file for pattern in _PATTERNS for file in path.glob(pattern)) if path.is_dir() else [path]
        if not inside:
            die(f"{path}: there are no unit files ({', '.join(_PATTERNS)})", USAGE)
        found += [read_file(str(file)) for file in inside]
    folder = next((Path(path).resolve().name for path in paths if Path(path).is_dir()), "default")
    return found, group or "".join(char if char.isalnum() or char in "._-" else "-" for char in folder)[:64]


@unit.command("plan")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@set_option
@prune_option
@as_json_option
@pass_session
def unit_plan(session: Session, paths: tuple[str, ...], group: str, prune: bool, as_json: bool) -> None:
    """What `apply` of files or directories would change, and where units would run.

    Exits with 0 if nothing would change, with 1 if something would, with 2 on an error.
    """
    files, name = _files(paths, group)
    try:
        plan = session.ask("unit.plan", files=files, set=name, prune=prune)
    except SystemExit as ended:
        raise SystemExit(USAGE if ended.code == FAILED else ended.code) from None
    print_json(plan) if as_json else _show_plan(plan)
    if plan["changes"]:
        raise SystemExit(FAILED)


def _show_plan(plan: dict[str, Any]) -> None:
    for warning in plan["warnings"]:
        click.echo(f"argosy: {warning}", err=True)
    changed = [row for row in plan["rows"] if row["change"] != "none"]
    if changed:
        show.table(changed, show.PLAN_COLUMNS)
    for row in changed:
        for line in row["diff"]:
            colour = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
            show.console.print(f"[{colour}]{escape(line)}[/]", soft_wrap=True)
    same = len(plan["rows"]) - len(changed)
    click.echo(f"{len(changed)} to change, {same} as they are; plan {plan['token']}")


@unit.command("apply")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--plan", "token", default="", help="Only if what would change is what that plan showed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, in a terminal.")
@set_option
@prune_option
@no_block_option
@as_json_option
@pass_session
def unit_apply(
    session: Session, paths: tuple[str, ...], token: str, yes: bool, group: str, prune: bool, no_block: bool, as_json: bool
) -> None:
    """Bring the fleet to what files or directories say: units run, templates have their Replicas=.

    What a timer starts is only stored.  Units that are known are updated by rollouts.
    """
    files, name = _files(paths, group)
    if not token and not yes and not as_json and show.console.is_terminal:
        plan = session.ask("unit.plan", files=files, set=name, prune=prune)
        _show_plan(plan)
        if not plan["changes"]:
            return
        click.confirm("Change it so?", abort=True)
        token = plan["token"]
    answer = session.ask("unit.apply", files=files, set=name, prune=prune, plan=token)
    rows = answer["rows"]
    begun = [row["unit"] for row in rows if row["change"] in ("create", "start") and row["machine"]]
    if begun and not no_block:
        session.ask("unit.start", session.timeout + 5, units=begun, within=session.timeout)
    rollouts = [_watch(session, name, no_block, as_json) for name in answer["rollouts"]]
    if as_json:
        print_json(answer)
    else:
        changed = [row for row in rows if row["change"] != "none"]
        show.table(changed, show.PLAN_COLUMNS) if changed else click.echo("nothing to change")
    bad = [row for row in rollouts if row["phase"] in ("rolled-back", "failed", "paused")]
    if bad:
        die("; ".join(f"{row['unit']}: {row['phase']}: {row['reason']}" for row in bad), FAILED)
