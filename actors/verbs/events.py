"""The verb about what happened, in order."""

from __future__ import annotations

from itertools import islice
from typing import Any

from brain.store import Event, Store, StoreError
from kernel.mailbox import Promise

from .. import story
from ..control import BadRequest, Control, verb
from ..raft_messages import Query

#: Revisions that one answer looks through, and rows that it has at most.
REVISIONS_MAX, ROWS_MAX = 2_000, 1_000
OWN = b"/_argosy/"


@verb("events")
def _events(control: Control, args: dict[str, Any]) -> Promise:
    """What happened after a revision, oldest first, and the revision up to which that is.

    ``since``: a revision of an answer before; without it, the last ``lines`` rows of the near past.
    """
    since = args.get("since")
    lines = int(args.get("lines") or 50)
    if not 0 <= lines <= ROWS_MAX:
        raise BadRequest(f"--lines: 0 to {ROWS_MAX}, not {lines}")
    promise = Promise()

    def read(store: Store) -> tuple[list[Event], int, int]:
        begin = int(since) if since is not None else max(store.compacted, store.revision - REVISIONS_MAX)
        if begin < store.compacted:
            raise StoreError("compacted", f"what happened before revision {store.compacted} is not kept any more")
        end = min(store.revision, begin + REVISIONS_MAX)
        found = list(islice(store.events_since(begin + 1), end - begin))
        return [event for event in found if any(key.startswith(OWN) for key, _, _ in event.changes)], end, store.revision

    def have(answer: Any, error: BaseException | None) -> None:
        if error is not None:
            promise.fail(error)
            return
        events, end, newest = answer
        rows: list[dict[str, Any]] = []
        for event in events:
            if since is not None and len(rows) >= ROWS_MAX:
                end = event.revision - 1
                break
            rows += story.tell(event, control.machine_name)
        if since is None:
            rows = rows[len(rows) - min(lines, len(rows)) :]
        promise.reply({"rows": rows, "revision": end, "more": end < newest})

    control.ask_then(control.raft_ref, Query(read, since is not None), 6.0, have)
    return promise
