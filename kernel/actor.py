"""The actor base: a real ``pykka.Actor`` with a bounded mailbox and a shared dispatcher.

A subclass handles one message at a time, changes its own state and sends messages.  It
never blocks: time comes from :meth:`Actor.after`, answers from :meth:`Actor.ask_then`.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import uuid
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pykka
from pykka import ActorDeadError, ActorRegistry, messages
from pykka._envelope import Envelope
from pykka.messages import _ActorStop as ActorStop

from .dispatch import Cancellable, default_dispatcher
from .future import Future
from .mailbox import Killed, Mailbox, MailboxFullError, Promise
from .supervision import spawning

logger = logging.getLogger("argosy.actor")

if TYPE_CHECKING:
    from .system import System

F = TypeVar("F", bound=Callable[..., Any])

_urn_numbers = itertools.count(1)
_urn_prefix = uuid.uuid4().urn[:-12]  # unique to this process; the number makes it an actor's

#: What Pykka itself sends; everything else is for ``on_receive`` or a handler.
_PYKKAS_OWN = frozenset((ActorStop, messages.ProxyCall, messages.ProxyGetAttr, messages.ProxySetAttr))

#: Messages one mailbox may hold unless the class says otherwise.
MAILBOX_MESSAGES_MAX = 100_000


class AskTimeout(Exception):
    """No answer within the time given to ``ask_then``."""


class Stopped:
    """The flag behind ``actor_stopped``: an ``Event`` whose lock is made on first wait."""

    __slots__ = ("_event", "_flag")

    def __init__(self) -> None:
        self._flag = False
        self._event: threading.Event | None = None

    def is_set(self) -> bool:
        """Whether the actor has stopped."""
        return self._flag

    def set(self) -> None:
        """Mark the actor stopped."""
        self._flag = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """Mark the actor alive (used when a supervisor restarts it)."""
        self._flag = False
        self._event = None

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the actor stops, at most ``timeout`` seconds."""
        if self._event is None:
            self._event = threading.Event()
        if self._flag:
            return True
        return self._event.wait(timeout)


class _RefIndex:
    """Pykka's list of live references with constant-time membership and removal."""

    def __init__(self, refs: Any = ()) -> None:
        self._refs: dict[int, Any] = {id(ref): ref for ref in refs}

    def append(self, ref: Any) -> None:
        self._refs[id(ref)] = ref

    def remove(self, ref: Any) -> None:
        del self._refs[id(ref)]

    def __contains__(self, ref: Any) -> bool:
        return id(ref) in self._refs

    def __iter__(self) -> Any:
        return iter(list(self._refs.values()))

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, index: Any) -> Any:
        return list(self._refs.values())[index]


def _index_registry() -> None:
    """Stopping one actor must not cost a walk over all of them (Pykka keeps a list)."""
    if not isinstance(ActorRegistry._actor_refs, _RefIndex):  # noqa: SLF001
        ActorRegistry._actor_refs = _RefIndex(ActorRegistry._actor_refs)  # type: ignore[assignment] # noqa: SLF001


_index_registry()


class _Back:
    """Takes an answer where a future would."""

    __slots__ = ("_then",)

    def __init__(self, then: Callable[[Any, BaseException | None], None]) -> None:
        self._then = then

    def set(self, value: Any = None) -> None:
        self._call(value, None)

    def set_exception(self, exc_info: Any = None) -> None:
        self._call(None, (exc_info or sys.exc_info())[1])

    def _call(self, value: Any, error: BaseException | None) -> None:
        try:
            self._then(value, error)
        except Exception:  # its owner's fault, not that of the actor which answers
            logger.exception("a callback of an ask failed")


class Ref(pykka.ActorRef[Any]):
    """A reference to a local actor; stays valid over restarts of the actor behind it."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(actor)
        self._mailbox: Mailbox = actor.actor_inbox

    @property
    def path(self) -> str:
        """``machine/name`` of the actor, or empty for one outside a system."""
        return self._mailbox.path

    def tell(self, message: Any) -> None:
        """Send without an answer; raises ``ActorDeadError`` if the actor has ended."""
        mailbox = self._mailbox
        if mailbox.closed:
            raise ActorDeadError(f"{self} not found")
        queue = mailbox.user
        if len(queue) >= mailbox.limit:
            mailbox.push(message)
            return
        queue.append(message)  # as Mailbox.push does; a call less where it counts
        if not mailbox.scheduled:
            mailbox.schedule()
        elif mailbox.closed:
            mailbox.bury_all()

    def offer(self, message: Any) -> bool:
        """Send without an answer; False, and a dead letter, if the actor has ended."""
        mailbox = self._mailbox
        if mailbox.closed:
            mailbox._count_dead("dead")  # noqa: SLF001
            return False
        mailbox.push(message)
        return True

    def ask(self, message: Any, *, block: bool = True, timeout: float | None = None) -> Any:
        """Send and get a future (``block=False``) or wait ``timeout`` seconds for the answer."""
        future: Future[Any] = Future(self)
        mailbox = self._mailbox
        if mailbox.closed or self.actor_stopped.is_set():
            future.fail(ActorDeadError(f"{self} not found"))
        else:
            mailbox.push(Envelope(message, future))
        return future.get(timeout=timeout) if block else future

    def ask_back(self, message: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        """Send, and have ``then(value, error)`` called once, on the thread of whoever answers.

        For callers that are at home on that thread: no future is made and nothing is handed over.
        """
        mailbox = self._mailbox
        if mailbox.closed:
            then(None, ActorDeadError(f"{self} not found"))
        else:
            mailbox.push(Envelope(message, _Back(then)))  # type: ignore[arg-type]

    def kill(self) -> None:
        """Crash the actor as a bug would; its supervisor decides what follows."""

        def crash() -> None:
            raise Killed(f"{self.path} was killed on request")

        self._mailbox.post(crash)


def handles(*types: type) -> Callable[[F], F]:
    """Mark a method as the handler of these message types."""

    def mark(method: F) -> F:
        method.__handles__ = types  # type: ignore[attr-defined]
        return method

    return mark


def _nothing() -> None:
    """What a timer that is over would do."""


class Timer:
    """A pending callback of one actor; cancelled when the actor's life ends."""

    __slots__ = ("_action", "_handle", "_incarnation", "_mailbox", "_period")

    def __init__(
        self, mailbox: Mailbox, delay: float, action: Callable[[], None], period: float | None
    ) -> None:
        self._mailbox = mailbox
        self._action = action
        self._period = period
        self._incarnation = mailbox.incarnation
        if mailbox.timers is None:
            mailbox.timers = set()
        mailbox.timers.add(self)
        self._handle: Cancellable | None = mailbox.dispatcher.call_later(delay, self._due)

    def cancel(self) -> None:
        """Do not fire (again)."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._action = _nothing  # what it would have called may hold whoever holds this timer
        if self._mailbox.timers is not None:
            self._mailbox.timers.discard(self)

    def _due(self) -> None:
        if self._handle is not None:
            self._mailbox.post(self._fire)

    def _fire(self) -> None:
        if self._handle is None or self._incarnation != self._mailbox.incarnation:
            return
        action = self._action
        if self._period is None:
            self.cancel()
        else:
            self._handle = self._mailbox.dispatcher.call_later(self._period, self._due)
        action()


class Actor(pykka.Actor):
    """Base of every Argosy actor; see the module docstring for the rules."""

    #: ``loop`` (handlers never block), or ``pool`` (handlers may block).
    dispatch: ClassVar[str] = "loop"
    mailbox_messages_max: ClassVar[int] = MAILBOX_MESSAGES_MAX
    #: whether each actor of the class has counters of its own beside those of the class
    own_stats: ClassVar[bool] = False
    #: What a full mailbox does: ``reject`` the new message or ``drop_oldest``.
    mailbox_overflow: ClassVar[str] = "reject"
    _handlers: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {}

    actor_inbox: Mailbox

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        table = dict(cls._handlers)
        for attribute in vars(cls).values():
            for kind in getattr(attribute, "__handles__", ()):
                table[kind] = attribute
        cls._handlers = table

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        place = spawning.place
        spawning.place = None  # only for the outermost constructor
        if place is not None and place.reuse is not None:
            mailbox = place.reuse
            ref = mailbox.ref
            assert ref is not None
            self.actor_urn = ref.actor_urn
            self.actor_inbox = mailbox
            self.actor_stopped = ref.actor_stopped
            self._actor_ref = ref
            ref._actor_weakref = weakref.ref(self)  # noqa: SLF001
        else:
            self.actor_urn = f"{_urn_prefix}{next(_urn_numbers):012x}"
            mailbox = Mailbox(self.mailbox_messages_max, self.mailbox_overflow)
            self.actor_inbox = mailbox
            self.actor_stopped = Stopped()  # type: ignore[assignment]
            self._actor_ref = Ref(self)
            mailbox.ref = self._actor_ref
            if place is not None:
                place.fill(mailbox)
        self.system: System = place.system if place is not None else None  # type: ignore[assignment]

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> Any:
        """Start an actor outside a system; as Pykka's, less the debug lines it always formats."""
        actor = cls(*args, **kwargs)
        assert hasattr(actor, "actor_inbox"), (
            "Actor.__init__() have not been called. Did you forget to call super() in your override?"
        )
        ref = actor._actor_ref  # noqa: SLF001
        ActorRegistry._actor_refs.append(ref)  # type: ignore[attr-defined] # noqa: SLF001
        actor._start_actor_loop()  # noqa: SLF001
        return ref

    # -- Pykka's extension points ---------------------------------------------------

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox(MAILBOX_MESSAGES_MAX, "reject")

    @staticmethod
    def _create_future() -> Future[Any]:
        return Future()

    def _start_actor_loop(self) -> None:
        mailbox = self.actor_inbox
        mailbox.actor = self
        if mailbox.dispatcher is None:
            mailbox.dispatcher = default_dispatcher()
        mailbox.scheduled_at = mailbox.dispatcher.clock()
        mailbox.dispatcher.enqueue(mailbox)

    def _stop(self) -> None:
        super()._stop()
        self.actor_inbox.close("stopped")

    def deliver(self, message: Any) -> Any:
        """Hand one message to its handler; what it returns answers an ask."""
        kind = type(message)
        handler = self._handlers.get(kind)
        if handler is not None:
            return handler(self, message)
        if kind in _PYKKAS_OWN:
            return self._handle_receive(message)
        return self.on_receive(message)

    @property
    def actor_ref(self) -> Ref:
        """The reference others hold; it survives restarts of the actor."""
        return self._actor_ref  # type: ignore[return-value]

    # -- for subclasses ---------------------------------------------------------------

    @property
    def path(self) -> str:
        """``machine/name`` of this actor."""
        return self.actor_inbox.path

    def now(self) -> float:
        """Monotonic seconds of this host; only differences mean something."""
        return self.actor_inbox.dispatcher.clock()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` in this actor's turn after a delay, unless it ends before."""
        return Timer(self.actor_inbox, seconds, action, None)

    def every(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` in this actor's turn again and again."""
        return Timer(self.actor_inbox, seconds, action, seconds)

    def ask_then(
        self,
        ref: Any,
        message: Any,
        timeout: float,
        on_reply: Callable[[Any, BaseException | None], None],
    ) -> None:
        """Ask, and call ``on_reply(value, error)`` in this actor's own turn, exactly once.

        ``timeout`` in seconds; ``error`` is then :class:`AskTimeout`.  Nothing is called
        after this life of the actor has ended.
        """
        mailbox = self.actor_inbox
        incarnation = mailbox.incarnation
        answered = False

        def finish(value: Any, error: BaseException | None) -> None:
            nonlocal answered
            if answered or mailbox.incarnation != incarnation:
                return
            answered = True
            timer.cancel()
            on_reply(value, error)

        def expire() -> None:
            what = type(message).__name__
            finish(None, AskTimeout(f"{ref} did not answer {what} within {timeout:g} s"))

        timer = self.after(timeout, expire)
        future = ref.ask(message, block=False, timeout=timeout)
        future.on_done(lambda f: mailbox.post(lambda: finish(f.value, f.error)))

    def watch(self, ref: Ref) -> None:
        """Get one ``Terminated`` when the actor behind ``ref`` ends for good."""
        ref._mailbox.watch(self.actor_inbox)  # noqa: SLF001


__all__ = [
    "MAILBOX_MESSAGES_MAX",
    "Actor",
    "ActorStop",
    "AskTimeout",
    "Killed",
    "MailboxFullError",
    "Promise",
    "Ref",
    "Stopped",
    "Timer",
    "handles",
]
