"""Making, sending and installing snapshots, a little at a time.

A part of the Raft peer, not an actor of its own: it runs in the peer's turns and shares its
state.  Nothing is held whole: pieces go from the store to the disk or to a follower as they
are read out, and from the leader into a new store and to the disk as they come, so that
heartbeats and writes go on meanwhile, and a full disk delays snapshots alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from brain import snapshot
from brain.image import Image
from brain.journal import part_name
from brain.raft import Config, Kind, Message, Role
from brain.snapshot import Meta
from brain.wal import DamagedLogError
from kernel.mailbox import Promise
from kernel.ports import DiskError
from transport.router import BULK, RemoteError

from .raft_messages import NO_SPACE, OVERLOADED, TIMED_OUT, BrainError, SnapshotChunk

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

logger = logging.getLogger("argosy.raft")

#: Seconds between two slices of work, and seconds that one chunk may take to be taken.
SLICE_S, CHUNK_S = 0.002, 10.0
#: Snapshots that are read out at one time: one for the disk, and one for each of some followers.
IMAGES_MAX = 4
#: Backups that are made at one time; each is held whole.
BACKUPS_MAX = 2
#: Seconds after which a snapshot that found no room is tried again.
ROOM_S = 10.0
#: Seconds after which nobody sends the rest of a snapshot any more: longer than a sender waits for an answer.
IDLE_S = 2 * CHUNK_S
#: Bytes of log that are kept for a follower while a snapshot is being sent to it.
HELD_BYTES_MAX = 256 * 1024 * 1024
#: Of the store's size, what the log may have grown by before the next snapshot is due.
SHARE_OF_STORE = 4
#: The answer to a chunk when everything up to the snapshot's index is in use.
IN_USE = -1


class _Incoming:
    """A snapshot that is on its way here."""

    def __init__(self, term: int, index: int) -> None:
        self.term = term
        self.index = index
        self.part = part_name(index, received=True)
        self.size = 0
        self.reader = snapshot.Reader("the snapshot sent by the leader")
        self.heard = 0.0  # when the last piece came
        self.promises: list[Promise] = []  # those who sent the chunk that is being written

    def settle(self, answer: int | BaseException) -> None:
        """Answer the chunk."""
        promises, self.promises = self.promises, []
        for promise in promises:
            if isinstance(answer, BaseException):
                promise.fail(answer)
            else:
                promise.reply(answer)


class Snapshots:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self.index = 0  # of the newest snapshot on disk
        self._saving = 0  # of the one that is being written
        self._written = 0  # bytes of log when the newest snapshot was begun
        self._written_before = 0  # the same of the one before it
        self._no_room_until = 0.0
        self._backups = 0
        self._sending: dict[tuple[str, int], int] = {}  # by follower and term of our leadership: up to where
        self._refused_until: dict[str, float] = {}  # followers that had no room
        self._incoming: _Incoming | None = None
        #: from the last chunk on until its store is in use, this peer takes no part in Raft
        self.installing = False
        self._install: Callable[[], None] | None = None  # once the log is quiet

    def _meta(self) -> Meta:
        raft = self._peer.raft
        applied = raft.log.applied
        return Meta(applied, raft.log.term(applied), raft.config_at(applied))

    def read_out(self, then: Callable[[list[bytes]], None]) -> None:
        """Hand the state of this moment to ``then``, in chunks, for a backup; raises :class:`BrainError`."""
        if self._backups >= BACKUPS_MAX:
            raise BrainError(OVERLOADED, f"backups_max: {BACKUPS_MAX} backups are being made already")
        self._backups += 1
        source = snapshot.chunks(Meta(0, 0, Config(frozenset())), Image(self._peer.store))
        out: list[bytes] = []

        def more() -> None:
            chunk, last = next(source)
            out.append(chunk)
            if last:
                self._backups -= 1
                then(out)
            else:
                self._peer.after(SLICE_S, more)

        more()

    # -- to disk -----------------------------------------------------------------------------

    def maybe_save(self) -> None:
        """Make one when enough was applied since the last."""
        peer, settings = self._peer, self._peer.settings
        entries = peer.raft.log.applied - self.index
        written = peer.journal.bytes_written - self._written
        bytes_due = max(settings.snapshot_bytes, peer.store.size // SHARE_OF_STORE)
        due = entries and (entries >= settings.snapshot_entries or written >= bytes_due)
        if due and not self._saving and not self.installing and peer.now() >= self._no_room_until:
            self._written_before, self._written = self._written, peer.journal.bytes_written
            meta = self._meta()
            self._saving = meta.index
            self._save(meta, snapshot.chunks(meta, Image(peer.store)), 0)

    def _save(self, meta: Meta, source: Iterator[tuple[bytes, bool]], offset: int) -> None:
        peer = self._peer
        chunk, last = next(source)
        part = part_name(meta.index)

        def written(error: DiskError | None) -> None:
            if error is not None and not error.full:
                peer.system.fatal(error)
            elif error is not None:
                logger.warning("no room for a snapshot, tried again in %g s: %s", ROOM_S, error)
                self._no_room_until = peer.now() + ROOM_S
                self._written = self._written_before
                give_up()
            elif self._saving != meta.index:  # one was installed meanwhile
                give_up()
            elif last:
                publish()
            else:
                peer.after(SLICE_S, lambda: self._save(meta, source, offset + len(chunk)))

        def give_up() -> None:
            source.close()  # type: ignore[attr-defined]
            peer.journal.drop_part(part)
            if self._saving == meta.index:
                self._saving = 0

        def publish() -> None:
            if self._saving != meta.index:
                give_up()
            elif peer.raft.log.stable < meta.index:
                peer.after(SLICE_S, publish)  # the log behind it is still on its way to the disk
            else:
                peer.journal.publish(meta, part, peer.turn(lambda error: self._saved(meta, error)))

        peer.journal.write_part(part, offset, chunk, peer.turn(written), last)

    def _saved(self, meta: Meta, error: DiskError | None) -> None:
        if error is not None:
            self._peer.system.fatal(error)
            return
        if self._saving == meta.index:
            self._saving = 0
        self.index = max(self.index, meta.index)
        log, settings = self._peer.raft.log, self._peer.settings
        keep_from = log.back_from(meta.index, settings.trailing_entries, settings.trailing_bytes)
        sent = min(self._sending.values(), default=keep_from)
        if sent < keep_from:  # whoever receives that snapshot needs what follows it
            keep_from = max(sent, log.back_from(meta.index, meta.index, HELD_BYTES_MAX))
        if keep_from > log.snapshot_index:
            log.compact(keep_from, log.term(keep_from))

    # -- to a follower -----------------------------------------------------------------------

    def send(self, follower: str) -> None:
        """Bring a follower that is behind the log up to this moment."""
        peer = self._peer
        term = peer.raft.term
        if (follower, term) in self._sending or peer.raft.role is not Role.LEADER:
            return  # who was deposed since it was asked for must not speak as the next term's leader
        if len(self._sending) >= IMAGES_MAX or peer.now() < self._refused_until.get(follower, 0.0):
            peer.raft.snapshot_sent(follower, 0, False)  # tried again after a heartbeat
            return
        meta = self._meta()
        self._sending[follower, term] = meta.index
        self._refused_until.pop(follower, None)
        target = peer.router.ref(follower, "raft", BULK)
        source = snapshot.chunks(meta, Image(peer.store))

        def finish(ok: bool) -> None:
            source.close()  # type: ignore[attr-defined]
            self._sending.pop((follower, term), None)
            if peer.raft.role is Role.LEADER and peer.raft.term == term:
                peer.raft.snapshot_sent(follower, meta.index, ok)
                peer.kick()

        def send(offset: int) -> None:
            chunk, last = next(source)
            reached = offset + len(chunk)

            def answered(answer: Any, error: BaseException | None) -> None:
                if isinstance(error, RemoteError) and error.code == NO_SPACE:
                    self._refused_until[follower] = peer.now() + ROOM_S
                if error is not None or peer.raft.role is not Role.LEADER:
                    finish(False)
                elif answer == IN_USE:
                    finish(True)
                elif answer == reached and not last:
                    send(reached)
                else:
                    finish(False)

            message = SnapshotChunk(peer.machine, term, meta.index, offset, last, chunk)
            peer.ask_then(target, message, CHUNK_S, answered)

        send(0)

    # -- from the leader ---------------------------------------------------------------------

    def take(self, message: SnapshotChunk) -> Any:
        """One piece; answers how many bytes are here, or :data:`IN_USE`."""
        peer, raft = self._peer, self._peer.raft
        if self.installing:
            raise BrainError("busy", "a snapshot is being taken into use")
        raft.step(Message(Kind.SNAPSHOT_DONE, message.leader, peer.machine, message.term))
        peer.kick()
        if message.term < raft.term:
            raise BrainError("stale", f"term {message.term} is over")
        if message.index <= raft.log.commit:
            return IN_USE  # nothing in it that is not here
        incoming = self._expected(message)
        incoming.heard = peer.now()
        promise = Promise()
        incoming.promises.append(promise)
        if message.offset < incoming.size:
            return promise  # a frame that came twice: the first is being written
        try:
            incoming.reader.feed(message.data)
        except DamagedLogError as error:
            self._abandon(incoming, BrainError("damaged", str(error)))
            return promise
        incoming.size += len(message.data)
        written = peer.turn(lambda error: self._written_part(incoming, message, error))
        peer.journal.write_part(incoming.part, message.offset, message.data, written, message.last)
        return promise

    def new_term(self) -> None:
        """Another leadership has begun: nobody sends the rest."""
        incoming = self._incoming
        if incoming is not None and incoming.term != self._peer.raft.term and not incoming.promises:
            self._abandon(incoming, BrainError("stale", "its term is over"))

    def abandon_idle(self, now: float) -> None:
        """The leader has given up, and may never begin again: this needs no more memory."""
        incoming = self._incoming
        if incoming is not None and not incoming.promises and now - incoming.heard > IDLE_S:
            self._abandon(incoming, BrainError("stale", "the rest of it did not come"))

    def _expected(self, message: SnapshotChunk) -> _Incoming:
        """The snapshot that a chunk belongs to; raises :class:`BrainError` if it cannot be taken."""
        incoming = self._incoming
        known = incoming is not None and (incoming.term, incoming.index) == (message.term, message.index)
        if incoming is not None and known:
            again = bool(incoming.promises) and message.offset + len(message.data) == incoming.size
            if again or (message.offset == incoming.size and not incoming.promises):
                return incoming
        if incoming is not None and incoming.promises:
            raise BrainError("busy", "a piece of a snapshot is being written")
        if message.offset:
            raise BrainError("stale", "this is not the piece that was expected")
        if self._peer.now() < self._no_room_until:
            raise BrainError(NO_SPACE, "there was no room for a snapshot")
        if incoming is not None and incoming.index != message.index:
            self._peer.journal.drop_part(incoming.part)
        self._incoming = _Incoming(message.term, message.index)
        return self._incoming

    def _abandon(self, incoming: _Incoming, error: BaseException) -> None:
        self._incoming = None
        self._peer.journal.drop_part(incoming.part)
        incoming.settle(error)

    def _written_part(self, incoming: _Incoming, message: SnapshotChunk, error: DiskError | None) -> None:
        peer = self._peer
        if error is not None and not error.full:
            peer.system.fatal(error)
        elif error is not None:
            self._no_room_until = peer.now() + ROOM_S
            self._abandon(incoming, BrainError(NO_SPACE, str(error)))
        elif message.term != peer.raft.term or message.index <= peer.raft.log.commit:
            self._abandon(incoming, BrainError("stale", "it was overtaken"))
        elif not message.last:
            incoming.settle(incoming.size)
        else:
            self._take_into_use(incoming, message)

    def _take_into_use(self, incoming: _Incoming, message: SnapshotChunk) -> None:
        """Entries that are still being written belong to the log before it; new ones, which
        would belong to the log after it, are not taken until it is there.
        """
        peer = self._peer
        try:
            meta, store = incoming.reader.finish()
        except DamagedLogError as error:
            self._abandon(incoming, BrainError("damaged", str(error)))
            return
        self._incoming = None
        self.installing = True
        self._saving = 0  # what is being written of this peer's own is overtaken

        def installed(error: DiskError | None) -> None:
            if error is not None:
                peer.system.fatal(error)
                return
            self.installing = False
            self._saving = 0
            self.index = meta.index
            peer.restored(meta, store, message.leader)
            incoming.settle(IN_USE)

        def install() -> None:
            keeps_log = peer.raft.log.matches(meta.index, meta.term)
            peer.journal.publish(meta, incoming.part, peer.turn(installed), fresh_log=not keeps_log)

        self._install = install
        peer.kick()

    def log_is_quiet(self) -> None:
        """Nothing is being written, and nothing waits to be."""
        if self._install is not None and not self._peer.raft.has_ready:
            install, self._install = self._install, None
            install()


#: What an asker hears whose command a snapshot has overtaken.
OVERTAKEN = BrainError(TIMED_OUT, "a snapshot came instead of the entries; it may have happened")
