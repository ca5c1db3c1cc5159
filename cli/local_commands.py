"""Commands of a local cluster and of one host."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from . import local as local_cluster
from .config import ConfigError, load, parse_metadata
from .options import directory
from .session import FAILED, TIMED_OUT, USAGE, Session, die


@click.command()
@click.option("--machines", default=3, show_default=True, help="How many hosts.")
@directory
@click.option("--port-offset", "offset", default=0, show_default=True, help="Added to every port.")
@click.option("--detach", is_flag=True, help="Come back when the cluster is up.")
@click.option("--no-default", is_flag=True, help="Leave the default context alone.")
@click.option("--slots", is_flag=True, help="Machines that take releases: two images each, and a launcher.")
def up(machines: int, folder: str, offset: int, detach: bool, no_default: bool, slots: bool) -> None:
    """Run a cluster of N hosts on this machine."""
    place = Path(folder).absolute()
    try:
        local_cluster.create(place, machines, offset, slots=slots)
    except local_cluster.LocalError as error:
        die(str(error), USAGE)
    is_default = False if no_default else local_cluster.make_default(place)
    if detach:
        detach_watcher(place)
    else:
        click.echo(f"{machines} machines in {place}; Ctrl-C stops them")
        local_cluster.Watcher(place).run()
        return
    session = Session(context=str(place / "context.toml"), timeout=30.0)
    await_cluster(session, machines)
    hint = "" if is_default else f"export ARGOSY_CONTEXT={place / 'context.toml'}\n"
    click.echo(f"{hint}{machines} machines are up in {place}; look at them: http://127.0.0.1:{local_cluster.HTTP + 1 + offset}/")


def detach_watcher(place: Path) -> None:
    """Start the watcher of a local cluster in the background."""
    subprocess.Popen(
        [sys.executable, "-m", "cli.main", "local", "watch", "--dir", str(place)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/",
        stderr=(place / "up.log").open("ab"), env=local_cluster._clean_environment(),  # noqa: SLF001
    )  # fmt: skip


def await_cluster(session: Session, machines: int) -> None:
    """Wait until so many machines are ready, or end with what is missing."""
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


@click.command()
@directory
def down(folder: str) -> None:
    """Stop a local cluster and all that it runs."""
    _locally(lambda: local_cluster.down(Path(folder).absolute()))


def _locally(action: Any) -> None:
    try:
        action()
    except local_cluster.LocalError as error:
        die(str(error), USAGE)


@click.group()
def local() -> None:
    """Power cuts and pauses for the machines of a local cluster."""


@local.command("watch", hidden=True)
@directory
def local_watch(folder: str) -> None:
    """Keep the hosts of a local cluster running."""
    local_cluster.Watcher(Path(folder).absolute()).run()


@local.command("kill")
@click.argument("machine")
@directory
def local_kill(machine: str, folder: str) -> None:
    """Power loss: the host process and all that it ran; it stays off."""
    _locally(lambda: local_cluster.kill(Path(folder).absolute(), machine))


@local.command("boot")
@click.argument("machine")
@directory
def local_boot(machine: str, folder: str) -> None:
    """Switch a machine on again."""
    _locally(lambda: local_cluster.boot(Path(folder).absolute(), machine))


@local.command("pause")
@click.argument("machine")
@directory
def local_pause(machine: str, folder: str) -> None:
    """SIGSTOP the host process."""
    _locally(lambda: local_cluster.pause(Path(folder).absolute(), machine, True))


@local.command("resume")
@click.argument("machine")
@directory
def local_resume(machine: str, folder: str) -> None:
    """SIGCONT the host process."""
    _locally(lambda: local_cluster.pause(Path(folder).absolute(), machine, False))


@click.command()
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
@click.option("--engine", help="Where the Docker Engine answers, for units in containers.")
@click.option("--slot-devices", multiple=True, help="The block devices of images A and B; without them the two lie in directories.")
@click.option("--reboot-command", help="How this machine is started anew, like 'systemctl reboot'; without it only the host process is.")
@click.option("--resync", is_flag=True, default=None, help="Set a damaged state aside and rebuild it from the others.")
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


@click.command("check-config")
@click.argument("file")
def check_config(file: str) -> None:
    """Say what is wrong with a host's configuration."""
    try:
        config = load(file, {})
    except ConfigError as error:
        die(str(error), USAGE)
    click.echo(f"{file}: host {config.name}, transport {config.transport}, HTTP {', '.join(config.client)}")


@click.command()
def version() -> None:
    """The version of this program."""
    click.echo("argosy 0.1.0")


@click.command()
@directory
@click.option("--port-offset", "offset", default=0, show_default=True)
@click.option("--once", is_flag=True, help="Stop everything at the end.")
@click.option("--engine", default="", help="Run it in containers: 'docker', or the address of an engine.")
def demo(folder: str, offset: int, once: bool, engine: str) -> None:
    """The founding picture: load balancers, API servers, and the loss of a machine."""
    from .demo import run

    raise SystemExit(run(Path(folder).absolute(), offset, once, engine))


@click.command("demo-update")
@directory
@click.option("--port-offset", "offset", default=0, show_default=True)
@click.option("--once", is_flag=True, help="Stop everything at the end.")
def demo_update(folder: str, offset: int, once: bool) -> None:
    """Machines that renew themselves under the founding picture, and return by themselves from a broken version."""
    from .demo_update import run

    raise SystemExit(run(Path(folder).absolute(), offset, once))
