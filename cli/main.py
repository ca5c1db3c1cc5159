"""The command line: every verb talks to a host through its doors."""

from __future__ import annotations

import click
from rich.console import Console

from . import deploy_commands  # noqa: F401 - adds to the group of units
from .brain_commands import actor, kv, lock
from .cluster_commands import cluster, machine
from .local_commands import check_config, demo, demo_update, down, local, start, up, version
from .overview_commands import events, top
from .release_commands import release_group
from .secret_commands import registry, secret
from .session import USAGE, Session
from .unit_commands import unit


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--context", envvar="ARGOSY_CONTEXT", default="", help="A cluster's endpoints and keys (TOML).")
@click.option("--endpoint", envvar="ARGOSY_ENDPOINT", default="", help="HOST:PORT[,HOST:PORT], over the context's.")
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds.")
@click.version_option("0.1.0", prog_name="argosy")
@click.pass_context
def cli(invocation: click.Context, context: str, endpoint: str, timeout: float) -> None:
    """Argosy runs a fleet of Linux machines as one."""
    invocation.obj = Session(context, endpoint, timeout)


for _command in (up, down, local, start, check_config, version, demo, demo_update, cluster, machine, unit, kv, secret, registry, lock, actor, events, top, release_group):
    cli.add_command(_command)


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
