"""A cluster begun anew from what another one left: pure, snapshot bytes in and out.

The revision jumps far ahead and all history is compacted, so that nothing that was promised
in the lost part can be contradicted, and every watch and cached read notices.
"""

from __future__ import annotations

import zlib

from . import snapshot
from .codec import decode
from .journal import Opened
from .raft import Config
from .raftlog import EntryKind
from .snapshot import Meta
from .store import Store

#: How far the revision jumps: more writes than could have been lost.
JUMP = 1_000_000
#: Bytes before a command in its entry: the log's time.
STAMP_BYTES = 8
_ALL = 1 << 62


def replay(opened: Opened) -> tuple[Store, Config]:
    """The state after every entry of a log, decided or not, and the last configuration in it."""
    store = opened.store
    config = opened.meta.config if opened.meta is not None else Config(frozenset())
    for _, kind, data in opened.log.entries_from(opened.log.snapshot_index + 1, _ALL):
        if kind == EntryKind.COMMAND:
            stamp = int.from_bytes(data[:STAMP_BYTES], "little")
            store.apply(stamp, decode(data[STAMP_BYTES:])[2:])
        elif kind == EntryKind.CONFIG:
            config = Config.load(decode(data))
    return store, config


def refound(store: Store, machine: str, info: tuple[str, str, str]) -> tuple[str, bytes]:
    """(file name, content) of a founding snapshot with this state and ``machine`` as only voter."""
    store.revision += JUMP
    store.compacted = store.compact_revision = store.revision
    store.events.clear()
    store.history.clear()
    store.bytes_history = 0
    store.hash = zlib.crc32(b"%d" % store.revision, store.hash)
    config = Config(frozenset({machine}), info=((machine, info),))
    return snapshot.file_name(0), snapshot.dump(Meta(0, 0, config), store)
