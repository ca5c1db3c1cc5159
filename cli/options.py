"""Options that many commands share."""

from __future__ import annotations

import click

from .session import Session, default_dir

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
watch_option = click.option("--watch", "-w", "again", is_flag=True, help="Show again and again.")
directory = click.option(
    "--dir", "folder", default=default_dir, show_default=".argosy", help="Where the local cluster lives."
)
group_option = click.option("--group", default="", help="A lock group; 'default' if not given.")
pass_session = click.make_pass_decorator(Session)
