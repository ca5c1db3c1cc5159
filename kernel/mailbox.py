"""One actor's queue and its life: delivery, failure, restart, stop, death watch.

The mailbox is Pykka's actor inbox and outlives restarts of its actor.  Any thread may
put; exactly one dispatcher thread runs it at a time.  It never decides *when* it runs
(the dispatcher does) and knows nothing of what the actor means.

Scheduling is a flag and a re-check: a producer appends, then looks at ``scheduled``; the
consumer clears ``scheduled``, then looks at the queue again.  One of the two always sees
the other.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pykka import ActorDeadError, ActorRegistry
from pykka._envelope import Envelope
from pykka.messages import _ActorStop

from .current import current
from .messages import Terminated

if TYPE_CHECKING:
    from .actor import Actor, Ref
    from .dispatch import Dispatcher
    from .supervision import Supervision

logger = logging.getLogger("argosy.actor")

#: Seconds between looks at whether the children of a failed actor have ended.
CHILDREN_S = 0.005


class MailboxFullError(Exception):
    """The mailbox of the addressed actor holds its limit of messages."""


class Killed(Exception):
    """An operator or a chaos test asked for this actor to crash."""


class Promise:
    """Returned by a handler that will answer later; complete it exactly once."""

    __slots__ = ("_envelope_future", "_outcome", "_owner")

    def __init__(self) -> None:
        self._envelope_future: Any = None
        self._owner: Mailbox | None = None
        self._outcome: tuple[Any, BaseException | None] | None = None

    @property
    def done(self) -> bool:
        """Whether it has been answered."""
        return self._outcome is not None

    def bind(self, future: Any, owner: Mailbox | None = None) -> None:
        """Connect to the asker's future; ``owner`` is the mailbox whose life it depends on."""
        self._envelope_future = future
        if self._outcome is not None:
            self._settle()
        elif owner is not None:
            self._owner = owner
            if owner.promises is None:
                owner.promises = {}
            owner.promises[self] = None

    def reply(self, value: Any = None) -> None:
        """Answer with a value; a second answer is ignored."""
        if self._outcome is None:
            self._outcome = (value, None)
            self._settle()

    def fail(self, error: BaseException) -> None:
        """Answer with an exception; a second answer is ignored."""
        if self._outcome is None:
            self._outcome = (None, error)
            self._settle()

    def chain(self, other: Promise) -> None:
        """Hand this one's outcome to another."""
        self.bind(_Chain(other))

    def _settle(self) -> None:
        future = self._envelope_future
        if future is None or self._outcome is None:
            return
        self._envelope_future = None
        if self._owner is not None and self._owner.promises is not None:
            self._owner.promises.pop(self, None)
        value, error = self._outcome
        if error is None:
            future.set(value)
        else:
            future.set_exception((type(error), error, error.__traceback__))


class _Chain:
    """What a promise settles that stands for another one."""

    __slots__ = ("_promise",)

    def __init__(self, promise: Promise) -> None:
        self._promise = promise

    def set(self, value: Any) -> None:
        self._promise.reply(value)

    def set_exception(self, exc_info: Any) -> None:
        self._promise.fail(exc_info[1])


def _is_stop(item: Any) -> bool:
    return isinstance(item.message if type(item) is Envelope else item, _ActorStop)


def _stop_all() -> None:
    ActorRegistry.stop_all()


class Mailbox:
    """Queue, schedule flag and life-cycle of one actor; implements Pykka's ``ActorInbox``."""

    __slots__ = (
        "__weakref__",
        "_lock",
        "_system_queue",
        "actor",
        "broken",
        "children",
        "closed",
        "dispatcher",
        "handled",
        "incarnation",
        "limit",
        "overflow",
        "parent",
        "path",
        "promises",
        "ref",
        "restart_at",
        "restarts",
        "scheduled",
        "scheduled_at",
        "started",
        "stats",
        "supervision",
        "suspended",
        "timers",
        "user",
        "watchers",
    )

    def __init__(self, limit: int, overflow: str) -> None:
        self.user: deque[Any] = deque()
        self._system_queue: deque[Callable[[], None]] | None = None
        self._lock = threading.Lock()
        self.scheduled = True  # until bound: tells during __init__ wait for the first run
        self.closed = False
        self.suspended = False
        self.started = False
        self.limit = limit
        self.overflow = overflow
        self.actor: Actor | None = None
        self.ref: Ref | None = None
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]
        self.path = ""
        self.parent: Mailbox | None = None
        self.children: dict[str, Mailbox] | None = None
        self.supervision: Supervision | None = None
        self.watchers: list[Mailbox] | None = None
        self.timers: set[Any] | None = None
        self.promises: dict[Promise, None] | None = None  # asks this life owes an answer
        self.broken = False  # failed, and not restarted yet
        self.stats: Any = None
        self.handled = 0
        self.restarts = 0
        self.restart_at: list[float] | None = None
        self.incarnation = 0
        self.scheduled_at = 0.0

    # -- putting ---------------------------------------------------------------

    def put(self, envelope: Envelope[Any]) -> None:
        """Queue an envelope (Pykka's interface); asks carry a future to answer."""
        if envelope.reply_to is None:
            self.push(envelope.message)
        else:
            self.push(envelope)

    def push(self, item: Any) -> None:
        """Queue a bare message, or an envelope when somebody waits for the answer."""
        queue = self.user
        if len(queue) >= self.limit and not self._make_room(item):
            return
        queue.append(item)
        if not self.scheduled:
            self.schedule()
        elif self.closed:
            self.bury_all()

    def post(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the actor's own turn, before ordinary messages."""
        with self._lock:
            if self._system_queue is None:
                self._system_queue = deque()
            self._system_queue.append(action)
        if not self.scheduled:
            self.schedule()

    def schedule(self) -> None:
        """Hand the mailbox to its dispatcher unless it is there already."""
        with self._lock:
            if self.scheduled:
                return
            self.scheduled = True
        self.scheduled_at = self.dispatcher.clock()
        self.dispatcher.enqueue(self)

    def _make_room(self, item: Any) -> bool:
        """The overflow policy; True when the item may be queued."""
        if _is_stop(item):
            return True
        if self.overflow == "drop_oldest":
            kept = []
            try:
                while _is_stop(oldest := self.user.popleft()):
                    kept.append(oldest)  # an order to stop is not lost to telemetry
                self._bury(oldest, "overflow")
            except IndexError:
                pass
            self.user.extendleft(reversed(kept))
            return True
        error = MailboxFullError(
            f"mailbox of {self.path or self.ref} is full: it holds its limit of {self.limit} messages"
        )
        self._count_dead("overflow")
        if type(item) is Envelope and item.reply_to is not None:
            item.reply_to.set_exception((MailboxFullError, error, None))
        return False

    # -- Pykka's inbox protocol --------------------------------------------------

    def get(self) -> Envelope[Any]:
        """Take the oldest message as an envelope."""
        item = self.user.popleft()
        return item if type(item) is Envelope else Envelope(item)

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self.user

    # -- running -----------------------------------------------------------------

    def run(self, budget: int) -> int:
        """Handle at most ``budget`` messages; called by the dispatcher only."""
        previous = current.mailbox
        current.mailbox = self
        clock = self.dispatcher.clock
        begun = clock()
        count = 0
        try:
            if not self.started:
                self._start()
            actor = self.actor
            take = self.user.popleft
            while count < budget and not self.closed:
                if self._system_queue:
                    action = self._system_queue.popleft()
                    if not self.broken or action in (self.restart, self.stop_now):
                        self._run_action(action)
                        actor = self.actor
                elif self.suspended:
                    break
                else:
                    try:
                        item = take()
                    except IndexError:
                        break
                    if type(item) is Envelope:
                        self._answer(item)
                    else:
                        try:
                            actor.deliver(item)  # type: ignore[union-attr]
                        except Exception:  # noqa: BLE001 - Pykka's rule: a failing tell fails the actor
                            self._fail(sys.exc_info(), during="tell")
                        except BaseException:  # noqa: BLE001
                            self._fail_hard(sys.exc_info())
                count += 1
        finally:
            current.mailbox = previous
        self.handled += count
        if self.stats is not None:
            self.stats.observe(count, clock() - begun, begun - self.scheduled_at)
        if self.closed:
            self.bury_all()
            return count
        if self._system_queue or (self.user and not self.suspended):
            self.scheduled_at = clock()
            self.dispatcher.enqueue(self)
            return count
        self.scheduled = False
        if self._system_queue or (self.user and not self.suspended):
            self.schedule()
        if self.closed:
            self.bury_all()
        return count

    def _start(self) -> None:
        self.started = True
        actor = self.actor
        assert actor is not None
        try:
            actor.on_start()
        except Exception:  # noqa: BLE001 - Pykka's rule: a failing on_start stops the actor
            self._fail(sys.exc_info(), during="on_start")
        except BaseException:  # noqa: BLE001
            self._fail_hard(sys.exc_info())

    def _run_action(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - an action is a told message: it fails the actor
            self._fail(sys.exc_info(), during="action")
        except BaseException:  # noqa: BLE001
            self._fail_hard(sys.exc_info())

    def _answer(self, item: Envelope[Any]) -> None:
        actor = self.actor
        assert actor is not None
        reply_to: Any = item.reply_to
        try:
            response = actor.deliver(item.message)
        except Exception as error:  # noqa: BLE001 - Pykka's rule: a failing ask answers the asker
            if not hasattr(error, "code"):  # what has a code is a refusal, not a fault
                logger.info(f"Exception returned from {actor} to caller:", exc_info=sys.exc_info())
            reply_to.set_exception()
        except BaseException:  # noqa: BLE001 - answered too, or the asker would hang for ever
            reply_to.set_exception()
            self._fail_hard(sys.exc_info())
        else:
            if type(response) is Promise:
                response.bind(reply_to, self)
            else:
                reply_to.set(response)

    # -- failing -----------------------------------------------------------------

    def _fail_hard(self, exc_info: Any) -> None:
        """A BaseException: fail a supervised actor alone; else Pykka's rule, stop all."""
        if self.supervision is not None:
            self._fail(exc_info, during="BaseException")
            return
        actor = self.actor
        assert actor is not None
        logger.debug(f"{exc_info[1]!r} in {actor}. Stopping all actors.")
        actor._stop()  # noqa: SLF001
        if self.dispatcher.may_block:
            ActorRegistry.stop_all()
        else:
            self.dispatcher.spare(_stop_all)

    def _fail(self, exc_info: Any, during: str) -> None:
        actor = self.actor
        assert actor is not None
        supervision = self.supervision
        expected = supervision is not None and issubclass(exc_info[0], Killed)
        if supervision is None:
            actor._handle_failure(*exc_info)  # noqa: SLF001
        elif expected:
            logger.warning("actor %s was killed", self.path)
        else:
            logger.error("actor %s failed in %s", self.path, during, exc_info=exc_info)
        if during != "on_start" or supervision is not None:
            try:
                actor.on_failure(*exc_info)
            except BaseException:  # noqa: BLE001 - it must not end the thread that many actors share
                if supervision is None:
                    actor._handle_failure(*sys.exc_info())  # noqa: SLF001
                else:
                    logger.exception("on_failure of actor %s failed", self.path)
        if supervision is None:
            self.close("failed")
        else:
            self.broken = True  # nothing more happens in this life
            self._discard_life()
            supervision.child_failed(self, exc_info[1])

    def restart(self) -> None:
        """Put a fresh actor behind the same reference; queued messages are kept."""
        if self.closed:
            return
        assert self.actor is not None
        self._discard_life()
        if self.children:  # they end in turns of their own; their names must be free first
            self.dispatcher.call_later(CHILDREN_S, lambda: self.post(self.restart))
            return
        self.restarts += 1
        self.incarnation += 1
        if self.stats is not None:
            self.stats.restarted()
        assert self.supervision is not None
        self.suspended = False
        self.broken = False
        try:
            self.actor = self.supervision.rebuild(self)
        except Exception:  # noqa: BLE001 - a constructor that fails is a failed start
            self._fail(sys.exc_info(), during="constructor")
            return
        self._start()

    def _discard_life(self) -> None:
        """Cancel timers, stop children and forget replies of the life that just ended."""
        if self.timers:
            for timer in list(self.timers):
                timer.cancel()
            self.timers = None
        if self.promises:
            owed, self.promises = self.promises, None
            error = ActorDeadError(f"{self.ref} ended before it answered")
            for promise in owed:
                promise.fail(error)
        if self.children:
            for child in list(self.children.values()):
                child.post(child.stop_now)

    # -- ending ------------------------------------------------------------------

    def stop_now(self) -> None:
        """Stop in this turn, without handling what is queued."""
        if not self.closed and self.actor is not None:
            self.actor._stop()  # noqa: SLF001

    def close(self, reason: str) -> None:
        """The end of the actor: exactly one notice to each watcher, then dead letters."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self._discard_life()
        if self.parent is not None and self.parent.children:
            if self.parent.children.get(self.path) is self:
                del self.parent.children[self.path]
        if self.supervision is not None:
            self.supervision.forget(self)
        watchers, self.watchers = self.watchers, None
        for watcher in watchers or ():
            watcher.push(Terminated(self.path, self.incarnation, reason))
        if not self.scheduled:  # closed from outside a run: nobody else will bury the rest
            self.bury_all()

    def watch(self, watcher: Mailbox) -> None:
        """Tell ``watcher`` when this actor ends; at once if it has ended."""
        with self._lock:
            if not self.closed:
                if self.watchers is None:
                    self.watchers = []
                if watcher not in self.watchers:
                    self.watchers.append(watcher)
                return
        watcher.push(Terminated(self.path, self.incarnation, "not_found"))

    def bury_all(self) -> None:
        """The actor has ended: what is queued are dead letters."""
        while True:
            try:
                self._bury(self.user.popleft(), "dead")
            except IndexError:
                return

    def _bury(self, item: Any, why: str) -> None:
        if type(item) is Envelope and item.reply_to is not None:
            if isinstance(item.message, _ActorStop):
                item.reply_to.set(None)
                return
            error: Exception = ActorDeadError(f"{self.ref} stopped before handling the message")
            if why == "overflow":
                error = MailboxFullError(
                    f"mailbox of {self.path or self.ref} was full: {self.limit} newer messages came"
                )
            item.reply_to.set_exception((type(error), error, None))
        self._count_dead(why)

    def _count_dead(self, why: str) -> None:
        if self.stats is not None:
            self.stats.dead(why)
