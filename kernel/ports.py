"""The ports: everything an actor may know of the outside world, as interfaces.

An actor gets them from its constructor.  ``runners`` and ``transport`` implement them for
real; ``kernel/sim.py`` implements them with virtual time and drawn faults.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

#: Disk operations, in order.
Operations = list[tuple[Any, ...]]


class DiskError(Exception):
    """A disk operation failed; the text names the file and the operating system's reason.

    ``full``: there was no room for a batch that does not wait for any.
    """

    def __init__(self, text: str, full: bool = False) -> None:
        super().__init__(text)
        self.full = full


class Clock(Protocol):
    """Time of this host."""

    def monotonic(self) -> float:
        """Seconds that only grow; differences mean something."""

    def wall(self) -> float:
        """Seconds since 1970, as this host believes."""


class Rng(Protocol):
    """Random numbers of this host."""

    def below(self, n: int) -> int:
        """A number in [0, n)."""

    def token(self) -> str:
        """32 hexadecimal digits, unguessable in production."""


class Disk(Protocol):
    """Files below one directory; names are relative to it.

    ``submit`` runs operations in order, one batch after another, off the caller's thread:
    ``("create", name, size)`` (filled with zeros), ``("write", name, offset, data)``,
    ``("rename", name, new_name)`` (atomically), ``("sync", name)``, ``("remove", name)``,
    ``("sync_dir",)``.  ``done(error)`` is called once; after an error later batches fail too.
    ``full`` says that operations wait for room, and which; empty when they do not.
    A batch that was submitted ``if_room`` does not wait: it ends with a ``DiskError`` whose
    ``full`` is set, some of it may be done, and later batches go on.  Files that such a batch
    created may also go to make room for others, until one has said ``("keep", name)``.
    """

    full: str

    def list(self) -> list[str]:
        """Names of the files, sorted."""

    def read(self, name: str) -> bytes:
        """The whole file; raises :class:`DiskError`."""

    def submit(
        self, operations: Operations, done: Callable[[DiskError | None], None], if_room: bool = False
    ) -> None:
        """Queue operations; ``done`` is called on the actor's dispatcher thread."""


class Net(Protocol):
    """Frames to and from other machines: at most once, in order per machine and lane."""

    def send(self, machine: str, lane: int, frame: bytes) -> bool:
        """Queue a frame; False if it was dropped at once (no link, full queue)."""

    def set_peers(self, addresses: dict[str, str]) -> None:
        """Machines to keep links to, by id, with their transport addresses."""

    def listen(self, on_frame: Callable[[str, bytes], None]) -> None:
        """Where incoming frames go: ``on_frame(machine, frame)``."""


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports of one host."""

    clock: Clock
    rng: Rng
    disk: Disk
    net: Net
    processes: Any
    #: the same for containers; None on a machine without an engine
    containers: Any = None
    #: the two system images of this machine; None where others update it
    slots: Any = None
