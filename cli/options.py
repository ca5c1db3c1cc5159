"""Options that many commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .session import Session, default_dir, follow

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
directory = click.option(
    "--dir", "folder", default=default_dir, show_default=".argosy", help="Where the local cluster lives."
)
group_option = click.option("--group", default="", help="A lock group; 'default' if not given.")
pass_session = click.make_pass_decorator(Session)
F = TypeVar("F", bound=Callable[..., Any])


def watched(listing: F) -> F:
    """``--watch`` for a listing: it is shown again and again until Ctrl-C."""

    @click.option("--watch", "-w", "again", is_flag=True, help="Show again and again.")
    @functools.wraps(listing)
    def run(*args: Any, again: bool, **kwargs: Any) -> None:
        follow(lambda: listing(*args, **kwargs), again)

    return run  # type: ignore[return-value]
