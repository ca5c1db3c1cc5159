"""What one may say to a Raft peer, and what it says: the brain's interface for actors.

A command is a list as the store takes it: ``["put", key, value, lease]`` and so on; see
``brain/store.py`` and ``brain/tree.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brain.raft import Message
from brain.store import Event
from transport.codec import register_type, wire


class BrainError(Exception):
    """The brain could not do it; ``code`` is one of the constants below."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


NO_LEADER = "no_leader"  # certainly not done
TIMED_OUT = "timeout"  # done or not: unknown
TOO_LARGE = "too_large"  # certainly not done
OVERLOADED = "overloaded"  # certainly not done
NO_SPACE = "no_space"  # certainly not done
CORRUPT = "corrupt"  # certainly not done


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask: commit a command and answer with its result, as applied on this peer."""

    command: list[Any]
    timeout: float = 5.0
    #: only while this peer leads in this term (a scheduler's write), 0 for any
    term: int = 0
    #: it makes the store grow and comes from outside: refused when the quota is used up
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """Ask: keys of the store; see ``Store.range``.  Answer: ``(revision, items)``."""

    key: bytes
    end: bytes | None = None
    revision: int = 0
    limit: int = 0
    linearizable: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """Ask: call ``function(store)`` on this peer's state and answer what it returns."""

    function: Any
    linearizable: bool = False
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask: events of a range from ``start`` (0: from now).  Answer: :class:`Watching`.

    Events come to ``subscriber`` as :class:`Watched`.
    """

    key: bytes
    end: bytes | None
    start: int
    subscriber: Any
    #: bytes of history handed over at a time; when there is more the answer's ``watch`` is 0, and
    #: the subscriber asks again from behind what it was given.  0: all of it at once.
    piece: int = 0
    #: revisions of history that are looked through at most; who lacks more is refused as if it were gone.  0: all
    behind_max: int = 0


@dataclass(frozen=True, slots=True)
class Watching:
    """A watch was made: its id, and the store's revision at that moment."""

    watch: int
    revision: int


@dataclass(frozen=True, slots=True)
class Watched:
    """Events of a watch, whole revisions, in order."""

    watch: int
    events: list[Event]


@dataclass(frozen=True, slots=True)
class Unwatch:
    """Tell: end a watch."""

    watch: int


@wire(20)
@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Ask: keep leases alive.  Answer: ``{lease: ttl_ms}``, 0 for one that is gone."""

    leases: list[int]


@wire(25)
@dataclass(frozen=True, slots=True)
class TimeToLive:
    """Ask: ``[milliseconds that a lease has left, and was granted]``; -1 for one that is gone."""

    lease: int


@dataclass(frozen=True, slots=True)
class Save:
    """Ask: the whole state, decided up to now, as a snapshot's chunks in a list; made in slices."""


@wire(26)
@dataclass(frozen=True, slots=True)
class StateHash:
    """Ask another peer: ``[revision, rolling hash]`` of its store as it is."""


@wire(27)
@dataclass(frozen=True, slots=True)
class Quarantine:
    """Tell a peer that its store differs from the others' at a revision: it must not serve."""

    revision: int


@wire(28)
@dataclass(frozen=True, slots=True)
class StillMember:
    """Ask a leader: where in the log the configuration stands that left ``member`` out; 0 for none."""

    member: str


@dataclass(frozen=True, slots=True)
class Status:
    """Ask: this peer's view of the cluster, as a map."""


@dataclass(frozen=True, slots=True)
class ChangeConfig:
    """Ask: change the members; ``change``: see ``membership.changed``."""

    change: str
    member: str
    info: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True, slots=True)
class TransferLeadership:
    """Tell: hand leadership to another voter, if this peer leads."""

    to: str = ""


@wire(21)
@dataclass(frozen=True, slots=True)
class Forward:
    """Commands of another peer for the leader of ``term``.  Answer: whether it took them."""

    term: int
    commands: list[bytes]


@wire(22)
@dataclass(frozen=True, slots=True)
class ReadIndex:
    """Ask the leader for a linearizable read point."""


@wire(23)
@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """A piece of a snapshot.  Answer: how many bytes have arrived, -1 when all of it is in use."""

    leader: str
    term: int
    index: int
    offset: int
    last: bool
    data: bytes


@wire(24)
@dataclass(frozen=True, slots=True)
class ForwardedChange:
    """A membership change for the leader."""

    change: str
    member: str
    info: list[str]


@dataclass(frozen=True, slots=True)
class BrainUp:
    """Published on this host: the peer has (re)started; watches must be made again."""


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """Published on this host: who leads, and whether it is this peer."""

    leader: str
    term: int
    leading: bool


def _message_from_wire(fields: list[Any]) -> Message:
    kind, frm, to, term, index, log_term, commit, entries, reject, hint, context = fields
    numbers = (kind, term, index, log_term, commit, hint, context)
    texts_fit = type(frm) is str and type(to) is str and type(reject) is bool
    if not texts_fit or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a field has a wrong type")
    whole: list[tuple[int, int, bytes]] = []
    for entry in entries:
        entry_term, entry_kind, data = entry
        if type(entry_term) is not int or type(entry_kind) is not int or type(data) is not bytes:
            raise ValueError("an entry has a wrong type")
        if entry_term < 0 or not 0 <= entry_kind <= 255:
            raise ValueError("an entry has a term or kind that no log can hold")
        whole.append((entry_term, entry_kind, data))
    return Message(
        kind, frm, to, term, index, log_term, commit, tuple(whole), reject, hint, context
    )


register_type(10, Message, None, _message_from_wire)
