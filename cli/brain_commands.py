"""Commands about keys, the reboot lock, and actors."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from . import show
from .options import as_json_option, group_option, pass_session, watched
from .render import HttpKeys, SourceError, render
from .session import FAILED, TIMED_OUT, UNREACHABLE, USAGE, Session, die, print_json

#: Seconds between two looks at a lock that is waited for.
LOOK_S = 0.2


@click.group()
def kv() -> None:
    """Keys of the brain."""


@kv.command("get")
@click.argument("key")
@click.option("--local", "stale", is_flag=True, help="From this host's copy, perhaps stale.")
@as_json_option
@pass_session
def kv_get(session: Session, key: str, stale: bool, as_json: bool) -> None:
    """The value of a key; exit 1 if there is none."""
    if session.is_http:
        _http_get(session, key)
        return
    item = session.ask("kv.get", key=key, local=stale)
    if item is None:
        die(f"no key {key}", FAILED)
    print_json(item) if as_json else click.echo(item["value"])


def _http_get(session: Session, key: str) -> None:
    try:
        values = HttpKeys(session.endpoint).list(key)[1]
    except SourceError as error:
        die(f"{session.endpoint}: {error}", UNREACHABLE)
    if key not in values:
        die(f"no key {key}", FAILED)
    click.echo(values[key])


@kv.command("put")
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=click.FloatRange(0.1, 1e9), help="Seconds after which it vanishes.")
@as_json_option
@pass_session
def kv_put(session: Session, key: str, value: str, ttl: float | None, as_json: bool) -> None:
    """Write a key."""
    answer = session.ask("kv.put", key=key, value=value, ttl=ttl)
    if as_json:
        print_json(answer)


@kv.command("del")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@as_json_option
@pass_session
def kv_del(session: Session, key: str, prefix: bool, as_json: bool) -> None:
    """Delete keys; exit 1 if there was none."""
    answer = session.ask("kv.del", key=key, prefix=prefix)
    print_json(answer) if as_json else click.echo(answer["deleted"])
    if not answer["deleted"]:
        raise SystemExit(FAILED)


@kv.command("ls")
@click.argument("prefix", default="/")
@as_json_option
@watched
@pass_session
def kv_ls(session: Session, prefix: str, as_json: bool) -> None:
    """Keys that start with PREFIX."""
    items = session.ask("kv.ls", key=prefix)["items"]
    print_json(items) if as_json else show.table(items, show.KEY_COLUMNS)


@kv.command("watch")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--revision", default=0, help="From this revision on.")
@click.option("--count", default=0, help="End after so many events.")
@as_json_option
@pass_session
def kv_watch(
    session: Session, key: str, prefix: bool, revision: int, count: int, as_json: bool
) -> None:
    """Changes of keys as they happen."""
    import json

    seen = 0
    while True:
        answer = session.ask("kv.watch", 30.0, key=key, prefix=prefix, revision=revision, wait=20.0)
        revision = answer["revision"] + 1
        for event in answer["events"]:
            if as_json:
                click.echo(json.dumps(event, default=str))
            else:
                click.echo(f"{event['type'].upper()} {event['key']} {event['value'] or ''}".rstrip())
            seen += 1
            if count and seen >= count:
                return
        sys.stdout.flush()


@kv.command("watch-exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--revision", default=0, help="From this revision on.")
@click.option("--count", default=0, help="End after so many changes.")
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_session
def kv_watch_exec(
    session: Session, prefix: bool, revision: int, count: int, key: str, command: tuple[str, ...]
) -> None:
    """Run a command for each change of a key, in order: KEY -- CMD.

    It finds the change in ETCD_WATCH_EVENT_TYPE (PUT, DELETE), ETCD_WATCH_KEY, ETCD_WATCH_VALUE
    and ETCD_WATCH_REVISION.  Inside a unit the machine's HTTP door is asked.
    """
    from . import watch

    words = list(command[1:] if command[:1] == ("--",) else command)
    if not words:
        die("name a command after --", USAGE)
    raise SystemExit(watch.run(session, key, prefix, revision, count, words))


@kv.command("render")
@click.argument("template", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--check", default="", help="Command that must accept the new file; {} is its name.")
@click.option("--exec", "execute", default="", help="Command to run after the file changed.")
@click.option("--once", is_flag=True, help="Write the file and end.")
@click.option("--splay", default=0.0, help="Seconds to collect changes.")
@pass_session
def kv_render(
    session: Session, template: str, out: str, check: str, execute: str, once: bool, splay: float
) -> None:
    """Keep a file in line with keys (Jinja2: ls(prefix), get(key), names(prefix))."""
    for text in (check, execute):
        try:
            shlex.split(text)
        except ValueError as error:
            die(f"{text!r} is not a command line: {error}", USAGE)
    raise SystemExit(render(session, Path(template), Path(out), check, execute, once, splay))


# -- locks and actors ------------------------------------------------------------------------------


@click.group()
def lock() -> None:
    """The reboot lock."""


@lock.command("status")
@group_option
@as_json_option
@watched
@pass_session
def lock_status(session: Session, group: str, as_json: bool) -> None:
    """Who holds it, who waits."""
    rows = session.ask("lock.status", group=group)
    if as_json:
        print_json(rows)
        return
    if rows[0]["stale"]:
        click.echo("no leader: this is what the asked host knew last", err=True)
    for row in rows:
        click.echo(f"{row['group']}: {row['available']} of {row['max']} available")
        for holder in row["holders"]:
            late = "  OVERDUE" if holder["overdue"] else ""
            click.echo(f"  held by {holder['machine']} for {show.age(holder['since_s'])} "
                       f"(token {holder['token']}) {holder['reason']}{late}")  # fmt: skip
        for position, name in enumerate(row["queue"], 1):
            click.echo(f"  {position}. in the queue: {name}")


@lock.command("acquire")
@click.argument("machine", default="")
@group_option
@click.option("--reason", default="")
@click.option("--wait", default=0.0, help="Seconds to wait in the queue.")
@as_json_option
@pass_session
def lock_acquire(
    session: Session, machine: str, group: str, reason: str, wait: float, as_json: bool
) -> None:
    """Take the lock for MACHINE (this host by default); exit 1 if it is not free."""
    import socket

    who = machine or socket.gethostname()
    answer = session.ask("lock.acquire", wait + 10, group=group, machine=who, reason=reason, wait=wait)
    if as_json:
        print_json(answer)
    elif answer["granted"]:
        click.echo(f"granted, token {answer['token']}")
    else:
        held = ", ".join(answer.get("holders", []))
        die(answer.get("quorum") or (f"held by {held}" if held else "others wait for it"), FAILED)
    if not answer["granted"]:
        raise SystemExit(FAILED)


@lock.command("wait")
@click.argument("machine", default="")
@group_option
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait at most.")
@pass_session
def lock_wait(session: Session, machine: str, group: str, wait: float) -> None:
    """Wait until a slot is free, or until MACHINE holds none; exit 4 if that does not come about."""
    until = time.monotonic() + wait
    while True:
        (row,) = session.ask("lock.status", group=group or "default")
        held = machine in {holder["machine"] for holder in row["holders"]} if machine else row["available"] <= 0
        if not held and not row["stale"]:
            return
        if time.monotonic() >= until:
            die(f"group {row['group']}: {machine or 'every slot'} is {'holding it' if machine else 'held'} still", TIMED_OUT)
        time.sleep(min(LOOK_S, max(0.0, until - time.monotonic())))


@lock.command("release")
@click.argument("machine", default="")
@group_option
@click.option("--token", default=0, help="The token of the grant.")
@click.option("--force", is_flag=True, help="Without the token.")
@as_json_option
@pass_session
def lock_release(
    session: Session, machine: str, group: str, token: int, force: bool, as_json: bool
) -> None:
    """Give the lock back."""
    import socket

    who = machine or socket.gethostname()
    answer = session.ask("lock.release", group=group, machine=who, token=token, force=force)
    print_json(answer) if as_json else click.echo("released" if answer["released"] else "was not held")


@lock.command("set-max")
@click.argument("count", type=int)
@group_option
@as_json_option
@pass_session
def lock_set_max(session: Session, count: int, group: str, as_json: bool) -> None:
    """How many may hold it at once; 0 pauses."""
    answer = session.ask("lock.set-max", group=group, max=count)
    print_json(answer) if as_json else click.echo(f"Old-Max: {answer['old_max']}\nMax: {answer['max']}")


@lock.command("queue")
@group_option
@as_json_option
@watched
@pass_session
def lock_queue(session: Session, group: str, as_json: bool) -> None:
    """Who waits, in order, since when and for what."""
    rows = [
        {"group": row["group"], "position": position, **entry}
        for row in session.ask("lock.status", group=group) for position, entry in enumerate(row["waiting"], 1)
    ]  # fmt: skip
    print_json(rows) if as_json else show.table(show.with_age(rows), show.QUEUE_COLUMNS)


@lock.command("history")
@group_option
@as_json_option
@watched
@pass_session
def lock_history(session: Session, group: str, as_json: bool) -> None:
    """What happened to a group: the last fifty grants, releases and changes, and who asked for them."""
    rows = [
        {"group": row["group"], "time": entry["at_ms"] / 1000, **{k: v for k, v in entry.items() if k != "at_ms"}}
        for row in session.ask("lock.status", group=group) for entry in row["history"]
    ]  # fmt: skip
    if as_json:
        print_json(rows)
    else:
        show.table([{**row, "at": time.strftime("%b %d %H:%M:%S", time.localtime(row["time"]))} for row in rows], show.LOCK_HISTORY_COLUMNS)


@click.group()
def actor() -> None:
    """The actors of all hosts."""


@actor.command("list")
@as_json_option
@watched
@pass_session
def actor_list(session: Session, as_json: bool) -> None:
    """Path, class, mailbox, messages handled, restarts."""
    rows = session.ask("actor.list")
    print_json(rows) if as_json else show.table(rows, show.ACTOR_COLUMNS)


def _message(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        die(f"the message is not JSON: {error}", USAGE)


@actor.command("tell")
@click.argument("path")
@click.argument("message")
@pass_session
def actor_tell(session: Session, path: str, message: str) -> None:
    """Send {"type": NAME, ...} to an actor."""
    session.ask("actor.tell", path=path, message=_message(message))


@actor.command("ask")
@click.argument("path")
@click.argument("message")
@pass_session
def actor_ask(session: Session, path: str, message: str) -> None:
    """Send {"type": NAME, ...} to an actor and print its answer."""
    print_json(session.ask("actor.ask", path=path, message=_message(message)))


@actor.command("kill")
@click.argument("path")
@pass_session
def actor_kill(session: Session, path: str) -> None:
    """Crash an actor; its supervisor restarts it."""
    session.ask("actor.kill", path=path)
