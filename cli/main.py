"""The command line: every verb talks to a host through its doors."""

from __future__ import annotations

from importlib import import_module

import click

from .session import USAGE, Session

#: Command -> the module that has it, and its name there.  A command loads what it needs, and no more.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("local_commands", "up"), "down": ("local_commands", "down"), "local": ("local_commands", "local"),
    "start": ("local_commands", "start"), "check-config": ("local_commands", "check_config"),
    "version": ("local_commands", "version"), "demo": ("local_commands", "demo"),
    "demo-update": ("local_commands", "demo_update"), "cluster": ("cluster_commands", "cluster"),
    "machine": ("cluster_commands", "machine"), "unit": ("deploy_commands", "unit"), "kv": ("brain_commands", "kv"),
    "lock": ("brain_commands", "lock"), "actor": ("brain_commands", "actor"), "secret": ("secret_commands", "secret"),
    "registry": ("secret_commands", "registry"), "events": ("overview_commands", "events"),
    "top": ("overview_commands", "top"), "release": ("release_commands", "release_group"),
}  # fmt: skip


class Commands(click.Group):
    """The groups and commands of :data:`COMMANDS`, each loaded when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them, for the help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        found: click.Command = getattr(import_module(f".{module}", __package__), name)
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--context", envvar="ARGOSY_CONTEXT", default="", help="A cluster's endpoints and keys (TOML).")
@click.option("--endpoint", envvar="ARGOSY_ENDPOINT", default="", help="HOST:PORT[,HOST:PORT], over the context's.")
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds.")
@click.version_option("0.1.0", prog_name="argosy")
@click.pass_context
def cli(invocation: click.Context, context: str, endpoint: str, timeout: float) -> None:
    """Argosy runs a fleet of Linux machines as one."""
    invocation.obj = Session(context, endpoint, timeout)


def main() -> None:
    """Entry point."""
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
