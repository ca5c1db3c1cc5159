"""Drop-ins: more of a unit's file, from ``NAME.d/*.conf`` beside it (systemd.unit(5)).

A drop-in is read after the file, in the order of the drop-ins' names, as if it were written
at its end.  What the cluster stores is just that, each part under a comment with its name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .syntax import Problem, UnitFileError

#: Drop-ins of one unit.
DROPINS_MAX = 100


@dataclass(slots=True)
class Origins:
    """Which line of which file a line of the whole was."""

    first: list[int] = field(default_factory=list)  # lines of the whole at which a part begins
    paths: list[str] = field(default_factory=list)

    def of(self, line: int) -> tuple[str, int]:
        """(file, line) of a line of the whole; counted from 1."""
        at = bisect_right(self.first, line) - 1
        return (self.paths[at], line - self.first[at] + 1) if at >= 0 else ("", line)

    def place(self, problem: Problem) -> Problem:
        """The same problem, where its reader finds it."""
        file, line = self.of(problem.line)
        return replace(problem, file=file, line=line) if file else problem


def merge(path: str, text: str, dropins: Iterable[tuple[str, str]]) -> tuple[str, Origins]:
    """The whole of a unit's file, and where its lines came from.

    ``dropins``: (path, text) of each.  Raises :class:`UnitFileError` if one cannot be read
    after another file.
    """
    found = sorted(dropins, key=lambda part: part[0].rsplit("/", 1)[-1])
    if len(found) > DROPINS_MAX:
        raise UnitFileError([Problem(path, 0, "", f"dropins_max: at most {DROPINS_MAX} drop-ins, these are {len(found)}")])
    origins = Origins()
    if not found:
        return text, origins
    origins.first.append(1)
    origins.paths.append(path)
    whole = text
    for name, part in found:
        lines = [line.strip() for line in part.splitlines()]
        begun = next((n for n, line in enumerate(lines, 1) if line and line[0] not in "#;"), 0)
        if begun and not lines[begun - 1].startswith("["):
            raise UnitFileError([Problem(name, begun, "", "is before the first section; write [Service], or whichever is meant")])
        whole += ("" if whole.endswith("\n") else "\n") + f"\n# {'/'.join(name.split('/')[-2:])}\n"  # an empty line ends a continuation
        origins.first.append(whole.count("\n") + 1)
        origins.paths.append(name)
        whole += part
    return whole, origins
