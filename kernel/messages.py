"""Messages that the kernel itself sends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terminated:
    """Death watch: the actor at ``path`` has ended.

    ``reason`` is one of ``stopped``, ``failed``, ``not_found``.
    """

    path: str
    incarnation: int
    reason: str
