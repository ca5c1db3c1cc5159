"""Making, sending and installing snapshots, a little at a time.

A part of the Raft peer, not an actor of its own: it runs in the peer's turns and shares its
state.  Whatever is large happens in slices, so that heartbeats and writes go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from brain import snapshot
from brain.image import Image
from brain.raft import Kind, Message, Role
from brain.snapshot import Meta
from kernel.mailbox import Promise
from kernel.ports import DiskError
from transport.router import BULK

from .raft_messages import TIMED_OUT, BrainError, SnapshotChunk

if TYPE_CHECKING:
    from .raft_peer import RaftPeer

#: Seconds between two slices of work, and seconds that one chunk may take to be taken.
SLICE_S, CHUNK_S = 0.002, 10.0
#: Records read into the store in one slice while a snapshot is installed.
RECORDS_PER_SLICE = 8
#: Snapshots that are read out at one time: one for the disk, and one for each of some followers.
IMAGES_MAX = 4


class Snapshots:
    """See the module docstring."""

    def __init__(self, peer: RaftPeer) -> None:
        self._peer = peer
        self.index = 0  # of the newest snapshot on disk
        self._saving = False
        self._written = 0  # bytes of log when the newest snapshot was begun
        self._sending: set[tuple[str, int]] = set()  # (follower, term of our leadership)
        self._incoming: tuple[int, int, bytearray] | None = None
        self.install_next: Callable[[], None] | None = None  # once the log is quiet

    def _meta(self) -> Meta:
        raft = self._peer.raft
        applied = raft.log.applied
        return Meta(applied, raft.log.term(applied), raft.config_at(applied))

    def build(self, meta: Meta, then: Callable[[bytes], None]) -> None:
        """Read the state of this moment out, in slices."""
        out = bytearray()
        pieces: Iterator[bytes] = snapshot.pieces(meta, Image(self._peer.store))

        def more() -> None:
            piece = next(pieces, None)
            if piece is None:
                then(bytes(out))
                return
            out.extend(piece)
            self._peer.after(SLICE_S, more)

        more()

    # -- to disk -----------------------------------------------------------------------------

    def maybe_save(self) -> None:
        """Make one when enough was applied since the last."""
        peer, settings = self._peer, self._peer.settings
        entries = peer.raft.log.applied - self.index
        written = peer.journal.bytes_written - self._written
        if self._saving or (entries < settings.snapshot_entries and written < settings.snapshot_bytes):
            return
        if not entries:
            return
        self._saving = True
        self._written = peer.journal.bytes_written
        meta = self._meta()

        def built(data: bytes) -> None:
            if self._saving and meta.index > self.index:  # none was installed meanwhile
                peer.journal.save_snapshot(meta, data, peer.turn, lambda error: self._saved(meta, error))
            else:
                self._saving = False

        self.build(meta, built)

    def _saved(self, meta: Meta, error: DiskError | None) -> None:
        if error is not None:
            self._peer.system.fatal(error)
            return
        self._saving = False
        self.index = max(self.index, meta.index)
        log, settings = self._peer.raft.log, self._peer.settings
        keep_from = log.back_from(meta.index, settings.trailing_entries, settings.trailing_bytes)
        if keep_from > log.snapshot_index:
            log.compact(keep_from, log.term(keep_from))

    # -- to a follower -----------------------------------------------------------------------

    def send(self, follower: str) -> None:
        """Bring a follower that is behind the log up to this moment."""
        peer = self._peer
        term = peer.raft.term
        if (follower, term) in self._sending:
            return
        if len(self._sending) >= IMAGES_MAX:
            peer.raft.snapshot_sent(follower, 0, False)  # tried again after a heartbeat
            return
        self._sending.add((follower, term))
        meta = self._meta()
        target = peer.router.ref(follower, "raft", BULK)

        def finish(ok: bool) -> None:
            self._sending.discard((follower, term))
            if peer.raft.role is Role.LEADER and peer.raft.term == term:
                peer.raft.snapshot_sent(follower, meta.index, ok)
                peer.kick()

        def built(data: bytes) -> None:
            def send(offset: int) -> None:
                chunk = data[offset : offset + snapshot.CHUNK_BYTES]
                message = SnapshotChunk(peer.machine, term, meta.index, offset, len(data), chunk)
                peer.ask_then(target, message, CHUNK_S, on_reply)

            def on_reply(reached: Any, error: BaseException | None) -> None:
                if error is not None or peer.raft.role is not Role.LEADER or type(reached) is not int:
                    finish(False)
                elif reached >= len(data):
                    finish(True)
                else:
                    send(max(reached, 0))

            send(0)

        self.build(meta, built)

    # -- from the leader ---------------------------------------------------------------------

    def take(self, message: SnapshotChunk) -> Any:
        """One piece; answers how many bytes are here, once all of them are in use."""
        peer, raft = self._peer, self._peer.raft
        raft.step(Message(Kind.SNAPSHOT_DONE, message.leader, peer.machine, message.term))
        peer.kick()
        if message.term < raft.term:
            raise BrainError("stale", f"term {message.term} is over")
        if message.index <= raft.log.commit:
            return message.total  # nothing in it that is not here
        incoming = self._incoming
        if incoming is None or incoming[:2] != (message.term, message.index):
            incoming = self._incoming = (message.term, message.index, bytearray())
        if message.offset != len(incoming[2]):
            return len(incoming[2])
        incoming[2].extend(message.data)
        if len(incoming[2]) < message.total:
            return len(incoming[2])
        self._incoming = None
        return self._install(bytes(incoming[2]), message.leader)

    def _install(self, data: bytes, leader: str) -> Promise:
        """Take a whole snapshot into use once it is read and durable.

        Meanwhile this peer takes no messages: entries that are still being written belong
        to the log before it, and new ones to the log after it.
        """
        promise = Promise()
        peer = self._peer
        peer.actor_inbox.suspended = True
        steps = snapshot.loading("the snapshot sent by the leader", data)

        def read() -> None:
            try:
                for _ in range(RECORDS_PER_SLICE):
                    next(steps)
            except StopIteration as end:
                meta, store = end.value
                self._use(meta, store, data, leader, promise)
            else:
                peer.after(SLICE_S, read)

        read()
        return promise

    def _use(self, meta: Meta, store: Any, data: bytes, leader: str, promise: Promise) -> None:
        peer = self._peer
        keeps_log = peer.raft.log.matches(meta.index, meta.term)

        def installed(error: DiskError | None) -> None:
            if error is not None:
                peer.system.fatal(error)
                return
            self._saving = False
            self.index = meta.index
            peer.restored(meta, store, leader)
            promise.reply(len(data))

        self.install_next = lambda: peer.journal.save_snapshot(
            meta, data, peer.turn, installed, fresh_log=not keeps_log
        )
        peer.sync()


#: What an asker hears whose command a snapshot has overtaken.
OVERTAKEN = BrainError(TIMED_OUT, "a snapshot came instead of the entries; it may have happened")
