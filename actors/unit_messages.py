"""What a machine and the supervisors of its units say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Placement:
    """What the scheduler decided: this unit, this content, here.  ``fence`` only grows."""

    unit: str
    content: str
    hash: str
    launched: bool
    fence: int
    restarts: int = 0  # how often an operator asked for a restart


@dataclass(frozen=True, slots=True)
class Here:
    """What a unit is told about its machine."""

    id: str
    name: str
    host: str  # the address it is announced with
    boot_id: str
    endpoint: str  # the machine's HTTP door
    container_endpoint: str = ""  # the one that containers reach, if there is another


@dataclass(frozen=True, slots=True)
class Started:
    """Tell the machine: this supervisor (re)started; what is my placement, is the lease held?"""

    unit: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Tell: the placement is now this; None: leave this machine."""

    placement: Placement | None


@dataclass(frozen=True, slots=True)
class MayStart:
    """Ask the machine: may this unit run here now?  True once that is in the brain."""

    unit: str
    fence: int


@dataclass(frozen=True, slots=True)
class ReadSecrets:
    """Ask the machine: secrets by name, from the brain; those that are not kept are left out."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the machine: the unit's state; ``announce`` maps brain keys to values."""

    unit: str
    state: dict[str, Any]
    announce: dict[str, str]


@dataclass(frozen=True, slots=True)
class Gone:
    """Tell the machine: nothing of the unit is left here."""

    unit: str


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Tell: whether the machine holds its lease (a unit starts only then)."""

    held: bool


@dataclass(frozen=True, slots=True)
class Enter:
    """Ask: run a command inside the unit for an operator; answers the session's name."""

    argv: tuple[str, ...]
    size: tuple[int, int] | None  # rows and columns of a terminal; None: pipes


@dataclass(frozen=True, slots=True)
class Exchange:
    """Ask: input for a session's command, and what it said since.

    Answers True if ``wait`` is None, else ``{output: [[stream, bytes]], code, error}`` as soon
    as there is something, or after ``wait`` seconds; ``code`` is None until the command ended.
    """

    session: str
    data: bytes
    is_over: bool  # no more input comes
    size: tuple[int, int] | None  # of the terminal, if it changed
    wait: float | None


@dataclass(frozen=True, slots=True)
class Reload:
    """Tell: run ExecReload."""
