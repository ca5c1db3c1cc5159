"""The command line: every verb talks to a host through its doors."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from . import local as local_cluster
from . import show
from .config import ConfigError, load, parse_metadata
from .render import HttpKeys, SourceError, render
from .session import FAILED, TIMED_OUT, UNREACHABLE, USAGE, Session, default_dir, die, follow, print_json

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_watch = click.option("--watch", "-w", "again", is_flag=True, help="Show again and again.")
_dir = click.option("--dir", "folder", default=default_dir, show_default=".argosy", help="Where the local cluster lives.")
_pass = click.make_pass_decorator(Session)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--context", envvar="ARGOSY_CONTEXT", default="", help="A cluster's endpoints and keys (TOML).")
@click.option("--endpoint", envvar="ARGOSY_ENDPOINT", default="", help="HOST:PORT[,HOST:PORT], over the context's.")
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds.")
@click.version_option("0.1.0", prog_name="argosy")
@click.pass_context
def cli(invocation: click.Context, context: str, endpoint: str, timeout: float) -> None:
    """Argosy runs a fleet of Linux machines as one."""
    invocation.obj = Session(context, endpoint, timeout)


# -- local clusters and hosts -------------------------------------------------------------------


@cli.command()
@click.option("--machines", default=3, show_default=True, help="How many hosts.")
@_dir
@click.option("--port-offset", "offset", default=0, show_default=True, help="Added to every port.")
@click.option("--detach", is_flag=True, help="Come back when the cluster is up.")
@click.option("--no-default", is_flag=True, help="Leave the default context alone.")
def up(machines: int, folder: str, offset: int, detach: bool, no_default: bool) -> None:
    """Run a cluster of N hosts on this machine."""
    place = Path(folder).absolute()
    try:
        local_cluster.create(place, machines, offset)
    except local_cluster.LocalError as error:
        die(str(error), USAGE)
    is_default = False if no_default else local_cluster.make_default(place)
    if detach:
        _detach(place)
    else:
        click.echo(f"{machines} machines in {place}; Ctrl-C stops them")
        local_cluster.Watcher(place).run()
        return
    session = Session(context=str(place / "context.toml"), timeout=30.0)
    _await_cluster(session, machines)
    hint = "" if is_default else f"export ARGOSY_CONTEXT={place / 'context.toml'}\n"
    click.echo(f"{hint}{machines} machines are up in {place}")


def _detach(place: Path) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "cli.main", "local", "watch", "--dir", str(place)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/",
        stderr=(place / "up.log").open("ab"), env=local_cluster._clean_environment(),  # noqa: SLF001
    )  # fmt: skip


def _await_cluster(session: Session, machines: int) -> None:
    deadline = time.monotonic() + session.timeout
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            ready = [m for m in session.try_ask("machine.list", 2.0) if m["state"] == "ready"]
            if len(ready) >= machines:
                return
            last = f"{len(ready)} of {machines} machines are ready"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again and then told
            last = str(error)
        time.sleep(0.1)
    die(f"the cluster did not come up: {last}", TIMED_OUT)


@cli.command()
@_dir
def down(folder: str) -> None:
    """Stop a local cluster and all that it runs."""
    _locally(lambda: local_cluster.down(Path(folder).absolute()))


def _locally(action: Any) -> None:
    try:
        action()
    except local_cluster.LocalError as error:
        die(str(error), USAGE)


@cli.group()
def local() -> None:
    """Power cuts and pauses for the machines of a local cluster."""


@local.command("watch", hidden=True)
@_dir
def local_watch(folder: str) -> None:
    """Keep the hosts of a local cluster running."""
    local_cluster.Watcher(Path(folder).absolute()).run()


@local.command("kill")
@click.argument("machine")
@_dir
def local_kill(machine: str, folder: str) -> None:
    """Power loss: the host process and all that it ran; it stays off."""
    _locally(lambda: local_cluster.kill(Path(folder).absolute(), machine))


@local.command("boot")
@click.argument("machine")
@_dir
def local_boot(machine: str, folder: str) -> None:
    """Switch a machine on again."""
    _locally(lambda: local_cluster.boot(Path(folder).absolute(), machine))


@local.command("pause")
@click.argument("machine")
@_dir
def local_pause(machine: str, folder: str) -> None:
    """SIGSTOP the host process."""
    _locally(lambda: local_cluster.pause(Path(folder).absolute(), machine, True))


@local.command("resume")
@click.argument("machine")
@_dir
def local_resume(machine: str, folder: str) -> None:
    """SIGCONT the host process."""
    _locally(lambda: local_cluster.pause(Path(folder).absolute(), machine, False))


@cli.command()
@click.option("--config", "path", type=click.Path(dir_okay=False), help="TOML; every option has a key.")
@click.option("--name")
@click.option("--data-dir")
@click.option("--transport", help="HOST:PORT for other hosts.")
@click.option("--client", multiple=True, help="HOST:PORT or INTERFACE:PORT for HTTP; repeatable.")
@click.option("--grpc", help="HOST:PORT for gRPC.")
@click.option("--bootstrap", is_flag=True, default=None, help="Found a cluster with this host.")
@click.option("--join", help="ADDR[,ADDR] of a cluster to join.")
@click.option("--token", help="From 'argosy cluster token'.")
@click.option("--metadata", multiple=True, help="K=V; repeatable.")
@click.option("--role", help="voter or agent.")
@click.option("--advertise", help="Address that this machine's units are announced with.")
@click.option("--insecure", is_flag=True, default=None, help="Open a door without TLS to the network.")
def start(path: str | None, **flags: Any) -> None:
    """Run one host in the foreground."""
    from . import host

    problems: list[str] = []
    flags["metadata"] = parse_metadata(flags["metadata"], problems)
    flags["join"] = [part for part in (flags["join"] or "").split(",") if part]
    flags = {key.replace("_", "-"): value for key, value in flags.items()}
    try:
        config = load(path, flags)
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        die(str(error), USAGE)
    host.log_to_stderr()
    try:
        raise SystemExit(host.run(config))
    except host.HostError as error:
        die(str(error), FAILED)


@cli.command("check-config")
@click.argument("file")
def check_config(file: str) -> None:
    """Say what is wrong with a host's configuration."""
    try:
        config = load(file, {})
    except ConfigError as error:
        die(str(error), USAGE)
    click.echo(f"{file}: host {config.name}, transport {config.transport}, HTTP {', '.join(config.client)}")


@cli.command()
def version() -> None:
    """The version of this program."""
    click.echo("argosy 0.1.0")


@cli.command()
@_dir
@click.option("--port-offset", "offset", default=0, show_default=True)
@click.option("--once", is_flag=True, help="Stop everything at the end.")
def demo(folder: str, offset: int, once: bool) -> None:
    """The founding picture: load balancers, API servers, and the loss of a machine."""
    from .demo import run

    raise SystemExit(run(Path(folder).absolute(), offset, once))


# -- cluster and machines --------------------------------------------------------------------------


@cli.group()
def cluster() -> None:
    """The members of the brain."""


@cluster.command("status")
@_json
@_watch
@_pass
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
@_json
@_pass
def cluster_token(session: Session, role: str, ttl: int, as_json: bool) -> None:
    """A token with which one host may join."""
    answer = session.ask("cluster.token", role=role, ttl_s=ttl)
    print_json(answer) if as_json else click.echo(answer["token"])


@cli.group()
def machine() -> None:
    """The machines of the fleet."""


@machine.command("list")
@_json
@_watch
@_pass
def machine_list(session: Session, as_json: bool, again: bool) -> None:
    """All machines that ever registered."""

    def once() -> None:
        rows = session.ask("machine.list")
        print_json(rows) if as_json else show.table(show.with_short(rows, "id"), show.MACHINE_COLUMNS)

    follow(once, again)


@machine.command("show")
@click.argument("name")
@_json
@_pass
def machine_show(session: Session, name: str, as_json: bool) -> None:
    """One machine, by name, id or unique prefix."""
    _fields(session.ask("machine.show", machine=name), as_json)


@machine.command("remove")
@click.argument("name")
@_pass
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


@cli.group()
def unit() -> None:
    """Units: submit, start, look, stop."""


@unit.command("submit")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--replace", is_flag=True, help="Take the new content of a unit that is known.")
@_json
@_pass
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


def _read(path: str) -> dict[str, str]:
    try:
        return {"name": Path(path).name, "content": Path(path).read_text(), "path": path}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        die(f"{path}: {reason}", USAGE)


def _unit_verb(name: str, help_: str, blocks: bool = True) -> None:
    @unit.command(name, help=help_)
    @click.argument("units", nargs=-1, required=True)
    @click.option("--no-block", is_flag=True, help="Do not wait until it is so.")
    @_json
    @_pass
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
@_json
@_watch
@_pass
def unit_list(session: Session, as_json: bool, again: bool) -> None:
    """Units and where they run."""

    def once() -> None:
        rows = session.ask("unit.list")
        print_json(rows) if as_json else show.table(show.with_age(rows), show.UNIT_COLUMNS)

    follow(once, again)


@unit.command("files")
@_json
@_pass
def unit_files(session: Session, as_json: bool) -> None:
    """Unit files the cluster knows."""
    rows = session.ask("unit.files")
    print_json(rows) if as_json else show.table(show.with_short(rows, "hash"), show.FILE_COLUMNS)


@unit.command("cat")
@click.argument("name")
@_pass
def unit_cat(session: Session, name: str) -> None:
    """A unit's file, byte for byte."""
    click.echo(session.ask("unit.cat", unit=name), nl=False)


@unit.command("status")
@click.argument("name")
@_json
@_pass
def unit_status(session: Session, name: str, as_json: bool) -> None:
    """A unit, why it is so, and its last log lines."""
    status = session.ask("unit.status", unit=name)
    if as_json:
        print_json(status["rows"])
    else:
        show.table(show.with_age(status["rows"]), show.UNIT_COLUMNS)
        click.echo(f"why: {status['why']['reason']}")
        for line in status["log"]:
            click.echo(_log_line(line))
    if not any(row["active"] == "active" for row in status["rows"]):
        raise SystemExit(FAILED)


@unit.command("why")
@click.argument("name")
@_json
@_pass
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
@click.argument("name")
@click.option("--follow", "-f", "following", is_flag=True, help="Go on as lines come.")
@click.option("--lines", "-n", default=10, show_default=True)
@click.option("--machine", default="", help="Of a unit that runs on several.")
@_json
@_pass
def unit_logs(
    session: Session, name: str, following: bool, lines: int, machine: str, as_json: bool
) -> None:
    """What a unit printed."""
    args: dict[str, Any] = {"unit": name, "lines": lines, "machine": machine}
    answer = session.ask("unit.logs", **args)
    if as_json:
        print_json([_log_record(line) for line in answer["lines"]])
        return
    while True:
        for line in answer["lines"]:
            click.echo(_log_line(line))
        if not following:
            return
        time.sleep(0.2)
        answer = session.ask("unit.logs", **args, after=answer["position"])


def _log_record(line: str) -> dict[str, Any]:
    stamp, _, text = line.partition(" ")
    return {"time": float(stamp), "text": text}


def _log_line(line: str) -> str:
    record = _log_record(line)
    return str(time.strftime("%b %d %H:%M:%S ", time.localtime(record["time"])) + record["text"])


# -- keys ------------------------------------------------------------------------------------------


@cli.group()
def kv() -> None:
    """Keys of the brain."""


@kv.command("get")
@click.argument("key")
@click.option("--local", "stale", is_flag=True, help="From this host's copy, perhaps stale.")
@_json
@_pass
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
@_json
@_pass
def kv_put(session: Session, key: str, value: str, ttl: float | None, as_json: bool) -> None:
    """Write a key."""
    answer = session.ask("kv.put", key=key, value=value, ttl=ttl)
    if as_json:
        print_json(answer)


@kv.command("del")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@_json
@_pass
def kv_del(session: Session, key: str, prefix: bool, as_json: bool) -> None:
    """Delete keys; exit 1 if there was none."""
    answer = session.ask("kv.del", key=key, prefix=prefix)
    print_json(answer) if as_json else click.echo(answer["deleted"])
    if not answer["deleted"]:
        raise SystemExit(FAILED)


@kv.command("ls")
@click.argument("prefix", default="/")
@_json
@_pass
def kv_ls(session: Session, prefix: str, as_json: bool) -> None:
    """Keys that start with PREFIX."""
    items = session.ask("kv.ls", key=prefix)["items"]
    print_json(items) if as_json else show.table(items, show.KEY_COLUMNS)


@kv.command("watch")
@click.argument("key")
@click.option("--prefix", is_flag=True, help="Every key that starts with KEY.")
@click.option("--revision", default=0, help="From this revision on.")
@click.option("--count", default=0, help="End after so many events.")
@_json
@_pass
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


@kv.command("render")
@click.argument("template", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", type=click.Path(dir_okay=False))
@click.option("--check", default="", help="Command that must accept the new file; {} is its name.")
@click.option("--exec", "execute", default="", help="Command to run after the file changed.")
@click.option("--once", is_flag=True, help="Write the file and end.")
@click.option("--splay", default=0.0, help="Seconds to collect changes.")
@_pass
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

_group = click.option("--group", default="", help="A lock group; 'default' if not given.")


@cli.group()
def lock() -> None:
    """The reboot lock."""


@lock.command("status")
@_group
@_json
@_watch
@_pass
def lock_status(session: Session, group: str, as_json: bool, again: bool) -> None:
    """Who holds it, who waits."""

    def once() -> None:
        rows = session.ask("lock.status", group=group)
        if as_json:
            print_json(rows)
            return
        for row in rows:
            click.echo(f"{row['group']}: {row['available']} of {row['max']} available")
            for holder in row["holders"]:
                late = "  OVERDUE" if holder["overdue"] else ""
                click.echo(f"  held by {holder['machine']} for {show.age(holder['since_s'])} "
                           f"(token {holder['token']}) {holder['reason']}{late}")  # fmt: skip
            for position, name in enumerate(row["queue"], 1):
                click.echo(f"  {position}. in the queue: {name}")

    follow(once, again)


@lock.command("acquire")
@click.argument("machine", default="")
@_group
@click.option("--reason", default="")
@click.option("--wait", default=0.0, help="Seconds to wait in the queue.")
@_json
@_pass
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
        die(f"held by {', '.join(answer.get('holders', []))}", FAILED)
    if not answer["granted"]:
        raise SystemExit(FAILED)


@lock.command("release")
@click.argument("machine", default="")
@_group
@click.option("--token", default=0, help="The token of the grant.")
@click.option("--force", is_flag=True, help="Without the token.")
@_json
@_pass
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
@_group
@_json
@_pass
def lock_set_max(session: Session, count: int, group: str, as_json: bool) -> None:
    """How many may hold it at once; 0 pauses."""
    answer = session.ask("lock.set-max", group=group, max=count)
    print_json(answer) if as_json else click.echo(f"Old-Max: {answer['old_max']}\nMax: {answer['max']}")


@cli.group()
def actor() -> None:
    """The actors of all hosts."""


@actor.command("list")
@_json
@_watch
@_pass
def actor_list(session: Session, as_json: bool, again: bool) -> None:
    """Path, class, mailbox, messages handled, restarts."""

    def once() -> None:
        rows = session.ask("actor.list")
        print_json(rows) if as_json else show.table(rows, show.ACTOR_COLUMNS)

    follow(once, again)


def _message(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        die(f"the message is not JSON: {error}", USAGE)


@actor.command("tell")
@click.argument("path")
@click.argument("message")
@_pass
def actor_tell(session: Session, path: str, message: str) -> None:
    """Send {"type": NAME, ...} to an actor."""
    session.ask("actor.tell", path=path, message=_message(message))


@actor.command("ask")
@click.argument("path")
@click.argument("message")
@_pass
def actor_ask(session: Session, path: str, message: str) -> None:
    """Send {"type": NAME, ...} to an actor and print its answer."""
    print_json(session.ask("actor.ask", path=path, message=_message(message)))


@actor.command("kill")
@click.argument("path")
@_pass
def actor_kill(session: Session, path: str) -> None:
    """Crash an actor; its supervisor restarts it."""
    session.ask("actor.kill", path=path)


def main() -> None:
    """Entry point."""
    Console()  # rich reads the terminal once
    try:
        cli(prog_name="argosy", standalone_mode=False)
    except click.exceptions.Abort:
        raise SystemExit(130) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(USAGE) from None
    except BrokenPipeError:
        raise SystemExit(0) from None


if __name__ == "__main__":
    main()
