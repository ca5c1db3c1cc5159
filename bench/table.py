"""Rows of the table, how they are shown, and the files they are kept in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
TITLES = ("work", "Argosy", "peer", "ratio", "goal", "met")


@dataclass(slots=True)
class Row:
    """One line of the table; ``met`` is None where there is no goal, or no figure."""

    work: str
    argosy: str
    peer: str = "-"
    ratio: str = "-"
    goal: str = "-"
    met: bool | None = None
    note: str = ""
    #: every single figure, by system or name, with its unit in the name
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``met`` as a word."""
        return "-" if self.met is None else "yes" if self.met else "no"

    def cells(self) -> list[str]:
        """The texts of the table."""
        return [self.work, self.argosy, self.peer, self.ratio, self.goal, self.verdict]


def show(rows: list[Row], console: Console) -> None:
    """The table, and the notes below it."""
    table = Table(header_style="bold", show_lines=False)
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        colour = {True: "green", False: "red", None: ""}[row.met]
        *texts, verdict = (text.replace("[", "\\[") for text in row.cells())
        table.add_row(*texts, f"[{colour}]{verdict}[/]" if colour else verdict)
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.work}: {row.note}", markup=False)


def keep(rows: list[Row], facts: dict[str, Any], begun: datetime) -> tuple[Path, Path]:
    """Write ``results/<date>.json`` and ``.md``; returns both."""
    RESULTS.mkdir(exist_ok=True)
    name = begun.strftime("%Y-%m-%dT%H%M")
    data = RESULTS / f"{name}.json"
    record = {"date": begun.isoformat(timespec="seconds"), **facts, "rows": [asdict(row) for row in rows]}
    data.write_text(json.dumps(record, indent=1) + "\n")
    page = RESULTS / f"{name}.md"
    page.write_text(_markdown(rows, facts, begun))
    return data, page


def _markdown(rows: list[Row], facts: dict[str, Any], begun: datetime) -> str:
    lines = [f"# Benchmarks of {begun:%Y-%m-%d %H:%M}", ""]
    lines += [f"- {name}: {_text(value)}" for name, value in facts.items()]
    lines += ["", "| " + " | ".join(TITLES) + " |", "|" + "---|" * len(TITLES)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    notes = [f"- {row.work}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)
