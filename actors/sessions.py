"""Sessions of operators in a unit: opened, fetched from, and ended when nobody asks any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kernel.actor import Timer
from kernel.mailbox import Promise

from .unit_messages import Enter, Exchange

if TYPE_CHECKING:
    from .unit_manager import UnitManager

#: Sessions of one unit at a time.
SESSIONS_MAX = 16
#: Seconds after which a session that nobody fetches from is ended.
ABANDONED_S = 30.0
#: Longest wait of one exchange, in seconds.
WAIT_S_MAX = 10.0
#: Exit status of a command of which nobody knows how it ended.
LOST = 255
#: How the steps of sessions are called (see ``runners/shim``).
PREFIX = "exec."


class SessionError(Exception):
    """A session cannot be opened, or is no more."""

    code = "session"


class InputBusy(Exception):
    """The command does not read; the input is to be offered again."""

    code = "input_busy"


@dataclass(slots=True)
class _Open:
    """One session, and who waits for news of it."""

    link: Any
    used: float
    asker: Promise | None = None
    patience: Timer | None = None


class Sessions:
    """Those of one unit; used by its supervisor only."""

    def __init__(self, manager: UnitManager) -> None:
        self._manager = manager
        self._open: dict[str, _Open] = {}
        self._number = 0
        self._watching = False

    def enter(self, message: Enter, run: Callable[..., Any]) -> str:
        """Open one; ``run(name, argv, size, on_news)`` begins it."""
        if len(self._open) >= SESSIONS_MAX:
            raise SessionError(f"sessions_max: {SESSIONS_MAX} sessions in one unit")
        self._number += 1
        name = f"{PREFIX}{self._manager.ports.rng.token()[:8]}{self._number}"
        inbox, life = self._manager.actor_inbox, self._manager.actor_inbox.incarnation

        def on_news() -> None:
            if inbox.incarnation == life and not inbox.closed:
                inbox.post(lambda: self._news(name))

        try:
            link = run(name, list(message.argv), message.size, on_news)
        except (OSError, ValueError) as error:
            raise SessionError(str(error)) from None
        self._open[name] = _Open(link, self._manager.now())
        if not self._watching:
            self._watching = True
            self._manager.every(ABANDONED_S / 4, self._end_abandoned)
        return name

    def hear(self, event: dict[str, Any]) -> bool:
        """Whether what the shim says is of a session."""
        name = str(event.get("step", ""))
        if not name.startswith(PREFIX):
            return False
        opened = self._open.get(name)
        if opened is None:
            return True
        if event["ev"] == "started":
            opened.link.begun()
        elif event["ev"] == "failed":
            opened.link.ended(127 if event.get("code") == 203 else 126, str(event["error"]))
        elif event["ev"] == "ended":
            opened.link.ended(128 + event["signal"] if event["signal"] else event["code"])
        return True

    def linked(self, hello: dict[str, Any]) -> None:
        """The shim was reached again: what it says of sessions, and those that it knows nothing of."""
        for event in hello.get("pending", ()):
            self.hear(event)
        running = {known["step"] for known in hello["processes"].values()}
        for name, opened in list(self._open.items()):
            if opened.link.needs_shim and name not in running:
                opened.link.ended(LOST, "the link to it was lost")
        for name in sorted(running - set(self._open)):
            if name.startswith(PREFIX):  # of an earlier life: nobody can fetch from it any more
                self._manager.end_session(name)

    def lost(self) -> None:
        """The shim is gone, and what ran in it."""
        for opened in list(self._open.values()):
            if opened.link.needs_shim:
                opened.link.ended(LOST, "its shim ended")

    def exchange(self, message: Exchange) -> Any:
        """Input for a command, and what it said: at once, or as soon as there is something."""
        opened = self._open.get(message.session)
        if opened is None:
            raise SessionError("this session is over")
        opened.used = self._manager.now()
        if message.size is not None:
            opened.link.resize(*message.size)
        if message.data:
            try:
                opened.link.write(message.data)
            except BufferError as error:
                raise InputBusy(str(error)) from None
        if message.is_over:
            opened.link.end_input()
        if message.wait is None:
            return True
        self._answer(opened)
        promise = Promise()
        opened.asker = promise
        if opened.link.has_news:
            self._news(message.session)
        else:
            wait = min(max(message.wait, 0.0), WAIT_S_MAX)
            opened.patience = self._manager.after(wait, lambda: self._answer(opened))
        return promise

    def _news(self, name: str) -> None:
        opened = self._open.get(name)
        if opened is not None and opened.asker is not None and opened.link.has_news:
            self._answer(opened)
            if opened.link.code is not None:
                del self._open[name]

    def _answer(self, opened: _Open) -> None:
        asker, opened.asker = opened.asker, None
        if opened.patience is not None:
            opened.patience.cancel()
            opened.patience = None
        if asker is None:
            return
        opened.used = self._manager.now()
        link = opened.link
        asker.reply({"output": [list(piece) for piece in link.fetch()], "code": link.code, "error": link.error})

    def _end_abandoned(self) -> None:
        for name, opened in list(self._open.items()):
            if opened.asker is None and self._manager.now() - opened.used > ABANDONED_S:
                opened.link.close()
                del self._open[name]

    def hang_up(self) -> None:
        """The unit is being stopped: a shell that ignores SIGTERM must not hold that up."""
        for opened in self._open.values():
            opened.link.hang_up()

    def close(self) -> None:
        """The supervisor ends: so do its sessions, at once, for there is nobody to look at them again."""
        for name, opened in self._open.items():
            if opened.link.needs_shim:
                self._manager.end_session(name)
            opened.link.close()
        self._open.clear()
