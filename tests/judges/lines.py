"""Scenarios as text: one command or request a line.

``@`` is a folder of the scenario's own; ``{index KEY}`` is the modified index of a key.
"""

from __future__ import annotations

import re

from .servers import Server


def lines(text: str) -> list[str]:
    """The lines that say something."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def with_indexes(line: str, server: Server, folder: str) -> str:
    """A line with the indexes that its keys have on a server."""

    def index(match: re.Match[str]) -> str:
        node = server.ask("GET", f"/v2/keys{match[1].replace('@', folder)}?quorum=true").json()
        return str(node["node"]["modifiedIndex"])

    return re.sub(r"\{index ([^}]+)\}", index, line)
