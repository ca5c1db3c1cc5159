"""What the command line says to a host: one verb and its arguments, over the transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transport.codec import wire


@wire(30)
@dataclass(frozen=True, slots=True)
class Command:
    """Ask: carry out an operator's verb.  Answer: plain data for the terminal."""

    verb: str
    args: dict[str, Any]
