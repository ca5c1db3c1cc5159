"""Files of environment variables, as EnvironmentFile= reads them (systemd.exec(5))."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What a backslash takes the meaning from inside double quotes, as in a shell.
_IN_DOUBLE_QUOTES = '"\\`$'


def parse(text: str) -> dict[str, str]:
    """Variables by name; lines that assign nothing, or to no legal name, are passed over.

    Quotes count at the start of a value, or behind another quoted piece; a value in quotes may
    go over several lines, a backslash at the end of a line continues it, nothing is expanded.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        equals = text.find("=", at, line_end)
        name = text[at:equals].strip() if equals >= 0 else ""
        if not name or name[0] in "#;":
            at = _next_line(text, at)
            continue
        value, at = _value(text, equals + 1)
        if _NAME.fullmatch(name):
            found[name] = value
    return found


def _next_line(text: str, at: int) -> int:
    """Behind this line; one that ends in a backslash goes on, also in a comment."""
    while at < len(text) and text[at] != "\n":
        at += 2 if text[at] == "\\" else 1
    return at + 1


def _value(text: str, at: int) -> tuple[str, int]:
    """A value and where the next line begins."""
    while at < len(text) and text[at] in " \t\r":
        at += 1
    out: list[str] = []
    kept = 0  # what was quoted or is no blank: blanks behind it are cut
    quote = ""
    bare = False  # something unquoted has begun: from here on quotes are characters
    while at < len(text):
        char = text[at]
        at += 1
        if quote == "'":
            if char == "'":
                quote = ""
            else:
                out.append(char)
                kept = len(out)
        elif char == "\\" and at < len(text):
            following = text[at]
            at += 1
            if following != "\n":
                if quote and following not in _IN_DOUBLE_QUOTES:
                    out.append("\\")
                out.append(following)
                kept = len(out)
                bare = bare or not quote
        elif quote:
            if char == quote:
                quote = ""
            else:
                out.append(char)
                kept = len(out)
        elif char in "\"'" and not bare:
            quote = char
            kept = len(out)
        elif char == "\n":
            break
        else:
            out.append(char)
            if char not in " \t\r":
                kept = len(out)
                bare = True
    return "".join(out[:kept]), at
