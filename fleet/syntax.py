"""systemd's file syntax: sections, keys, continuations, quoting, durations, specifiers.

Pure text in, positions kept: every complaint names file, line and key (systemd.syntax(7)).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, with where."""

    file: str
    line: int
    key: str
    text: str
    column: int = 0

    def __str__(self) -> str:
        where = ":".join([self.file, *(str(n) for n in (self.line, self.column) if n)])
        return f"{where}: {self.key}: {self.text}" if self.key else f"{where}: {self.text}"


class UnitFileError(ValueError):
    """A unit file that was refused, with every problem found in it."""

    code = "unit_file"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Setting:
    """One assignment."""

    section: str
    key: str
    value: str
    line: int
    column: int = 1  # of the value, or of the key when that is empty


@dataclass(slots=True)
class Parsed:
    """A file's assignments in order, and what was wrong with its form."""

    settings: list[Setting] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


#: Longest file and line, in bytes.
FILE_BYTES_MAX = 256 * 1024
LINE_BYTES_MAX = 64 * 1024


def read(file: str, text: str) -> Parsed:
    """Split a file into assignments."""
    out = Parsed()
    if len(text) > FILE_BYTES_MAX:
        out.problems.append(Problem(file, 0, "", f"larger than {FILE_BYTES_MAX} bytes"))
        return out
    section = ""
    pending = ""
    start = indent = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.rstrip("\r")
        if pending:
            if line.lstrip().startswith(("#", ";")):
                continue  # comments inside a continuation are passed over
            line = pending + line.lstrip()
        else:
            start, indent = number, len(line) - len(line.lstrip())
            line = line.strip()
            if not line or line[0] in "#;":
                continue
        if (len(line) - len(line.rstrip("\\"))) % 2:  # two of them are one that is meant
            pending = line[:-1] + " "
            continue
        pending = ""
        section = _take(out, file, section, line.strip(), start, indent)
    if pending:
        _take(out, file, section, pending.strip(), start, indent)
    return out


def _take(out: Parsed, file: str, section: str, line: str, number: int, indent: int) -> str:
    def complain(key: str, text: str) -> None:
        out.problems.append(Problem(file, number, key, text, indent + 1))

    if len(line) > LINE_BYTES_MAX:
        complain("", f"a line longer than {LINE_BYTES_MAX} bytes")
        return section
    if line.startswith("["):
        if not line.endswith("]") or len(line) < 3:
            complain("", f"{line!r} is not a section: [Name] is")
            return section
        return line[1:-1]
    key, equals, value = line.partition("=")
    if not equals:
        complain("", f"{line[:60]!r} is not an assignment: Key=value is")
    elif not section:
        complain(key.strip(), "stands before any [Section]")
    else:
        spaces = len(value) - len(value.lstrip())
        column = indent + (len(key) + 1 + spaces if value.strip() else 0) + 1
        out.settings.append(Setting(section, key.strip(), value.strip(), number, column))
    return section


def nearest(word: str, known: list[str] | set[str] | tuple[str, ...]) -> str:
    """' (did you mean X?)' when something known is close, else empty."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(word.lower(), list(by_lower), 1, 0.6)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def split_words(value: str) -> list[str]:
    """Words with systemd's quoting: '..', "..", and C escapes; raises ``ValueError``."""
    words: list[str] = []
    word = ""
    quote = ""
    inside = False
    at = 0
    while at < len(value):
        char = value[at]
        if char == "\\":
            piece, at = _escape(value, at)
            word += piece
            inside = True
            continue
        if quote:
            if char == quote:
                quote = ""
            else:
                word += char
        elif char in "\"'" and not word:
            quote = char
            inside = True
        elif char in "\"'":
            quote = char
        elif char.isspace():
            if inside or word:
                words.append(word)
            word, inside = "", False
        else:
            word += char
            inside = True
        at += 1
    if quote:
        raise ValueError(f"a {quote} is not closed")
    if inside or word:
        words.append(word)
    return words


_SIMPLE = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", '"': '"', "'": "'", "s": " ", ";": "\\;",
}  # fmt: skip


def _escape(value: str, at: int) -> tuple[str, int]:
    if at + 1 >= len(value):
        raise ValueError("a backslash at the end")
    char = value[at + 1]
    if char in _SIMPLE:
        return _SIMPLE[char], at + 2
    if char == "x" and re.match(r"[0-9a-fA-F]{2}", value[at + 2 : at + 4]):
        return chr(int(value[at + 2 : at + 4], 16)), at + 4
    if re.match(r"[0-7]{3}", value[at + 1 : at + 4]):
        return chr(int(value[at + 1 : at + 4], 8)), at + 4
    return "\\" + char, at + 2


_UNITS = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0,
    "seconds": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "minutes": 60.0, "h": 3600.0,
    "hr": 3600.0, "hour": 3600.0, "hours": 3600.0, "d": 86400.0, "day": 86400.0, "days": 86400.0,
    "w": 604800.0, "week": 604800.0, "weeks": 604800.0, "M": 2629800.0, "month": 2629800.0,
    "months": 2629800.0, "y": 31557600.0, "year": 31557600.0, "years": 31557600.0, "μs": 1e-6,
}  # fmt: skip
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-zμ]*)")
INFINITY = float("inf")


def duration(value: str) -> float:
    """Seconds of ``5``, ``5s``, ``2min 200ms`` or ``infinity``; ``M`` is a month (systemd.time(7))."""
    text = value.strip()
    if text == "infinity":
        return INFINITY
    total, at = 0.0, 0
    for match in _SPAN.finditer(text):
        unit = match.group(2) or "s"
        if text[at : match.start()].strip() or unit not in _UNITS:
            raise ValueError(f"{value!r} is not a time span: 5, 5s, 2min 200ms or infinity are")
        total += float(match.group(1)) * _UNITS[unit]
        at = match.end()
    if not text or text[at:].strip():
        raise ValueError(f"{value!r} is not a time span: 5, 5s, 2min 200ms or infinity are")
    return total


def boolean(value: str) -> bool:
    """systemd's booleans."""
    text = value.strip().lower()
    if text in ("1", "yes", "y", "true", "t", "on"):
        return True
    if text in ("0", "no", "n", "false", "f", "off"):
        return False
    raise ValueError(f"{value!r} is not a boolean: yes or no")


_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def size(value: str) -> int:
    """Bytes of ``512M`` and the like (base 1024)."""
    match = re.fullmatch(r"(\d+)\s*([kmgt]?)b?", value.strip().lower())
    if match is None:
        raise ValueError(f"{value!r} is not a size: a number with K, M, G or T")
    return int(match.group(1)) * _SIZES[match.group(2)]


def specifiers(value: str, table: Callable[[str], str | None]) -> str:
    """Replace ``%n`` and the like; raises ``ValueError`` on an unknown one."""

    def replace(match: re.Match[str]) -> str:
        letter = match.group(1)
        if letter == "%":
            return "%"
        found = table(letter)
        if found is None:
            raise ValueError(f"no specifier %{letter} is known; %% is a percent sign")
        return found

    if value.endswith("%") and not value.endswith("%%"):
        raise ValueError("a % at the end; %% is a percent sign")
    return re.sub(r"%(.)", replace, value)
