"""A reply that will arrive: Pykka's future, with push-style completion.

Pykka's own future offers only a blocking ``get``; actors here never block, so this one
calls back.  ``get`` stays for threads at the edge (tests, command line) and refuses to
run inside a handler on a shared dispatcher.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pykka
from pykka._future import _Unset  # pyright: ignore[reportPrivateUsage]

from .current import current, forbid_blocking

if TYPE_CHECKING:
    from pykka._types import OptExcInfo

T = TypeVar("T")

logger = logging.getLogger("argosy.actor")

_lock = threading.Lock()  # guards completion of every future: held for a few instructions
_UNSET = _Unset()


class Future(pykka.Future[T], Generic[T]):
    """Set once, by value or by exception; callbacks run in the thread that sets it."""

    _get_hook = None
    _get_hook_result: Any = _UNSET

    def __init__(self, target: Any = None) -> None:
        self._done = False
        self._value: Any = None
        self._exc_info: OptExcInfo | None = None
        self._event: threading.Event | None = None
        self._callbacks: list[Callable[[Future[T]], None]] | None = None
        self._target = target

    @property
    def done(self) -> bool:
        """Whether a value or an exception has been set."""
        return self._done

    @property
    def error(self) -> BaseException | None:
        """The exception it was set to, or None."""
        if self._exc_info is None:
            return None
        kind, value, _ = self._exc_info
        return value if value is not None else kind()  # type: ignore[misc]

    @property
    def value(self) -> Any:
        """The value it was set to; None before that and on failure."""
        return self._value

    def get(self, *, timeout: float | None = None) -> Any:
        """Wait for the result.  ``timeout`` in seconds; raises ``pykka.Timeout``."""
        if self._get_hook is not None:
            return super().get(timeout=timeout)
        if not self._done:
            self._wait(timeout)
        if self._exc_info is not None:
            kind, value, trace = self._exc_info
            if value is None:
                value = kind()  # type: ignore[misc]
            if value.__traceback__ is not trace:
                raise value.with_traceback(trace)
            raise value
        return self._value

    def _wait(self, timeout: float | None) -> None:
        forbid_blocking(self._target)
        if current.pump is not None:
            if not current.pump(lambda: self._done, timeout):
                raise pykka.Timeout(f"{timeout} seconds")
            return
        with _lock:
            if self._done:
                return
            if self._event is None:
                self._event = threading.Event()
            event = self._event
        if not event.wait(timeout):
            raise pykka.Timeout(f"{timeout} seconds")
        if self._get_hook is not None:
            self._value = super().get(timeout=timeout)

    def set(self, value: Any | None = None) -> None:
        """Complete with a value; raises ``queue.Full`` if it is complete already."""
        self._complete(value, None)

    def set_exception(self, exc_info: OptExcInfo | None = None) -> None:
        """Complete with an exception, by default the one being handled."""
        if exc_info is None:
            exc_info = sys.exc_info()
        assert len(exc_info) == 3
        self._complete(None, exc_info)

    def fail(self, error: BaseException) -> None:
        """Complete with this exception object."""
        self._complete(None, (type(error), error, error.__traceback__))

    def set_get_hook(self, func: Any) -> None:
        """Pykka's lazy computation of the value (``map``, ``filter``, ``join``)."""
        with _lock:
            if self._done:
                raise queue.Full
            self._get_hook = func
            event = self._event
        if event is not None:
            event.set()

    def _complete(self, value: Any, exc_info: OptExcInfo | None) -> None:
        with _lock:
            if self._done or self._get_hook is not None:
                raise queue.Full
            self._value = value
            self._exc_info = exc_info
            self._done = True
            event, callbacks = self._event, self._callbacks
            self._callbacks = None
        if event is not None:
            event.set()
        if callbacks:
            for callback in callbacks:
                self._call(callback)

    def on_done(self, callback: Callable[[Future[T]], None]) -> None:
        """Call ``callback(self)`` once, now if it is complete already."""
        with _lock:
            if not self._done:
                if self._callbacks is None:
                    self._callbacks = [callback]
                else:
                    self._callbacks.append(callback)
                return
        self._call(callback)

    def _call(self, callback: Callable[[Future[T]], None]) -> None:
        """A callback's failure is its owner's, not of whoever completes the future."""
        try:
            callback(self)
        except Exception:
            logger.exception("a callback of the future for %r failed", self._target)
