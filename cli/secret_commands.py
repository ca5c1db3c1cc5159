"""Commands about secrets, and about the registries that images come from."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import show
from .options import as_json_option, pass_session, watched
from .session import USAGE, Session, die, print_json


@click.group()
def secret() -> None:
    """Secrets that containers get (Secret= in [Container]); they are never shown again."""


@secret.command("set")
@click.argument("name")
@click.option("--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Instead of standard input.")
@pass_session
def secret_set(session: Session, name: str, file: Path | None) -> None:
    """Keep what FILE or standard input holds, byte for byte; containers see it at their next start."""
    value = file.read_bytes() if file is not None else sys.stdin.buffer.read()
    session.ask("secret.set", name=name, value=value)


@secret.command("list")
@as_json_option
@watched
@pass_session
def secret_list(session: Session, as_json: bool) -> None:
    """Names."""
    rows = [row for row in session.ask("secret.list") if row["kind"] == "secret"]
    print_json(rows) if as_json else show.table(rows, [("SECRET", "name")])


@secret.command("delete")
@click.argument("name")
@pass_session
def secret_delete(session: Session, name: str) -> None:
    """Forget one; containers that run keep what they were given."""
    session.ask("secret.delete", name=name)


@click.group()
def registry() -> None:
    """Logins for registries of images."""


@registry.command("login")
@click.argument("host")
@click.option("--username", "-u", required=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@pass_session
def registry_login(session: Session, host: str, username: str, password_stdin: bool) -> None:
    """Keep a login for images of HOST (docker.io for names without one), for all machines."""
    if not password_stdin and not sys.stdin.isatty():
        die("give the password with --password-stdin", USAGE)
    password = sys.stdin.readline().rstrip("\n") if password_stdin else click.prompt("Password", hide_input=True)
    session.ask("secret.set", registry=host, username=username, password=password)


@registry.command("list")
@as_json_option
@watched
@pass_session
def registry_list(session: Session, as_json: bool) -> None:
    """Registries that a login is kept for."""
    rows = [row for row in session.ask("secret.list") if row["kind"] == "registry"]
    print_json(rows) if as_json else show.table(rows, [("REGISTRY", "name")])


@registry.command("logout")
@click.argument("host")
@pass_session
def registry_logout(session: Session, host: str) -> None:
    """Forget a login."""
    session.ask("secret.delete", registry=host)
