"""The tree of commands: what the contract promises of each, and what one costs to start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from cli.main import COMMANDS, cli

#: Every listing of the contract.
LISTINGS = (
    "cluster status", "machine list", "unit list", "unit files", "unit history", "unit versions", "kv ls", "lock status", "lock queue",
    "lock history", "release list", "release status", "actor list", "secret list", "registry list",
)  # fmt: skip


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")


def test_every_command_is_there_and_says_what_it_does() -> None:
    """Each is loaded when it is asked for; none is named in vain."""
    found = dict(commands(cli))
    assert set(COMMANDS) <= set(found)
    assert [name for name, command in found.items() if not (command.help or "").strip()] == []


@pytest.mark.parametrize("name", LISTINGS)
def test_every_listing_takes_json_and_watch(name: str) -> None:
    """As interfaces promise it."""
    options = {option for parameter in dict(commands(cli))[name].params for option in parameter.opts}
    assert {"--json", "--watch"} <= options


@pytest.mark.parametrize(
    ("words", "left_alone"),
    [("version", ("rich", "jinja2", "docker", "cryptography", "prometheus_client", "actors.scheduler", "gateway.door")),
     ("unit list --help", ("jinja2", "docker", "cryptography", "prometheus_client", "actors.scheduler", "gateway.door")),
     ("start --help", ("rich", "jinja2", "docker", "cryptography"))],
)  # fmt: skip
def test_a_command_loads_what_it_needs(words: str, left_alone: tuple[str, ...]) -> None:
    """Starting is what most of the time of a short command goes to."""
    program = (
        "import sys; from cli.main import cli\n"
        f"try: cli({words.split()!r})\nexcept SystemExit: pass\n"
        f"print('loaded', *[name for name in {left_alone!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded"
