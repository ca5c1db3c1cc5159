"""Which actor, if any, this thread is running right now.

A blocking wait inside a handler would stop every actor that shares the thread, so the
future asks here before it blocks.  Nothing else may depend on this module's state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mailbox import Mailbox


class _Current(threading.local):
    """Per-thread: the mailbox being run, and how to make progress in a simulation."""

    mailbox: Mailbox | None = None
    pump: Callable[[Callable[[], bool], float | None], bool] | None = None


current = _Current()


class BlockingWaitError(RuntimeError):
    """A handler on a shared dispatcher tried to block; it must use ``ask_then``."""


def forbid_blocking(target: Any) -> None:
    """Raise :class:`BlockingWaitError` if blocking here would stall a shared dispatcher."""
    mailbox = current.mailbox
    if mailbox is not None and not mailbox.dispatcher.may_block:
        raise BlockingWaitError(
            f"actor {mailbox.path} tried to wait for {target!r} inside a handler; "
            "use ask_then, which delivers the reply in the actor's own turn"
        )
