"""How things look: tables with colour in a terminal, plain columns when piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

STYLES = {
    "active": "green", "ready": "green", "passing": "green", "running": "green", "leader": "bold cyan",
    "failed": "bold red", "lost": "bold red", "failing": "red", "unreachable": "bold red",
    "idle": "green", "trial": "yellow", "refused": "red", "halted": "bold red", "downloading": "cyan", "draining": "yellow", "drained": "cyan", "rebooting": "yellow", "activating": "yellow", "deactivating": "yellow", "reloading": "yellow", "auto-restart": "yellow",
    "create": "green", "start": "green", "update": "yellow", "destroy": "red", "done": "green", "good": "green",
    "current": "green", "bad": "red", "rolled-back": "red", "paused": "yellow", "waiting": "yellow", "rolling": "cyan",
    "rolling-back": "yellow", "canary": "cyan", "inactive": "dim", "dead": "dim", "none": "dim",
}  # fmt: skip
console = Console(highlight=False)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for bytes that come in, in a terminal; nothing when piped."""
    if not console.is_terminal:
        yield lambda size: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda size: bar.advance(task, size)


def age(seconds: Any) -> str:
    """12s, 3m, 5h, 2d."""
    if seconds is None:
        return "-"
    value = float(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if value >= size:
            return f"{value / size:.0f}{unit}"
    return f"{value:.0f}s"


def cell(value: Any) -> str:
    """One cell as text."""
    if value is None or value == "":
        return "-"
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in sorted(value.items())) or "-"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def build(rows: list[dict[str, Any]], columns: list[tuple[str, str]]) -> Table:
    """A table of some keys of each row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _ in columns:
        table.add_column(title)
    for row in rows:
        texts = [cell(row.get(key)) for _, key in columns]
        table.add_row(*[f"[{STYLES[t]}]{t}[/]" if t in STYLES else t.replace("[", "\\[") for t in texts])
    return table


def table(rows: list[dict[str, Any]], columns: list[tuple[str, str]]) -> None:
    """Print rows: a coloured table, or aligned plain columns when piped."""
    if sys.stdout.isatty():
        console.print(build(rows, columns))
        return
    lines = [[title for title, _ in columns]]
    lines += [[cell(row.get(key)) for _, key in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


UNIT_COLUMNS = [
    ("UNIT", "unit"), ("MACHINE", "machine"), ("ACTIVE", "active"), ("SUB", "sub"), ("HEALTH", "health"),
    ("RESTARTS", "restarts"), ("PID", "pid_or_container"), ("SINCE", "age"),
]  # fmt: skip
MACHINE_COLUMNS = [
    ("MACHINE", "name"), ("ID", "short"), ("ADDRESS", "address"), ("STATE", "state"), ("VOTER", "voter"),
    ("UNITS", "units"), ("VERSION", "version"), ("SLOT", "slot"), ("METADATA", "metadata"),
]  # fmt: skip
MEMBER_COLUMNS = [("MEMBER", "name"), ("ID", "short"), ("ADDRESS", "address"), ("ROLE", "role"), ("STATE", "state")]
ACTOR_COLUMNS = [
    ("PATH", "path"), ("CLASS", "class"), ("MAILBOX", "mailbox"), ("HANDLED", "handled"),
    ("RESTARTS", "restarts"), ("STATE", "state"),
]  # fmt: skip
FILE_COLUMNS = [("UNIT", "unit"), ("HASH", "short"), ("DESIRED", "desired"), ("MACHINES", "machines")]
PROCESS_COLUMNS = [
    ("MACHINE", "machine"), ("PID", "pid"), ("MEMORY", "memory"), ("CPU", "cpu"), ("PROCESS", "process"),
]  # fmt: skip
HISTORY_COLUMNS = [("TIME", "at"), ("MACHINE", "machine"), ("EVENT", "event"), ("DETAIL", "detail")]
REBALANCE_COLUMNS = [("UNIT", "unit"), ("FROM", "from"), ("TO", "to")]
ROLLOUT_COLUMNS = [("UNIT", "unit"), ("PHASE", "phase"), ("CHANGED", "progress"), ("DETAIL", "reason")]
VERSION_COLUMNS = [("VERSION", "short"), ("TIME", "time"), ("STATE", "state")]
PLAN_COLUMNS = [("UNIT", "unit"), ("CHANGE", "change"), ("MACHINE", "machine"), ("DETAIL", "reason")]
QUEUE_COLUMNS = [("GROUP", "group"), ("POSITION", "position"), ("MACHINE", "machine"), ("WAITS", "age"), ("REASON", "reason")]
LOCK_HISTORY_COLUMNS = [
    ("TIME", "at"), ("GROUP", "group"), ("EVENT", "event"), ("MACHINE", "machine"), ("DETAIL", "detail"), ("BY", "by"),
]  # fmt: skip
RELEASE_COLUMNS = [
    ("VERSION", "version"), ("SEQUENCE", "sequence"), ("FLOOR", "floor"), ("SIZE", "size"), ("IMAGE", "short"),
    ("UNTIL", "until"), ("ROLLOUT", "rollout"),
]  # fmt: skip
UPDATE_COLUMNS = [
    ("MACHINE", "machine"), ("VERSION", "version"), ("SLOT", "slot"), ("STATE", "state"), ("FAILED", "failed"), ("WAITS FOR", "reason"),
]  # fmt: skip
KEY_COLUMNS = [("KEY", "key"), ("VALUE", "value"), ("REVISION", "mod_revision")]


def size(count: int) -> str:
    """512 B, 3.2 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def process_cells(row: dict[str, Any]) -> dict[str, Any]:
    """A process for people: its place in the tree shown by how far it is moved in."""
    indent = "  " * (row["depth"] - 1) + "└ " if row["depth"] else ""
    return {**row, "memory": size(row["memory_bytes"]), "cpu": f"{row['cpu_s']:.1f}s", "process": indent + row["command"]}


def with_age(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their age, for people."""
    return [{**row, "age": age(row.get("since_s"))} for row in rows]


def with_short(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Rows with the first eight digits of an id or hash."""
    return [{**row, "short": str(row.get(key, ""))[:8]} for row in rows]
