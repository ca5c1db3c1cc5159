"""``argosy kv watch-exec``: a command for each change of a key, one after another, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from .render import RETRY_S, HttpKeys, SourceError, TransportKeys
from .session import Session


def run(session: Session, key: str, prefix: bool, revision: int, count: int, command: list[str]) -> int:
    """Run ``command`` for each change from ``revision`` on (0: from now on); ends after ``count``, if any.

    The change is in its environment, in the names that etcd's own tool uses.  A command that
    fails is reported and the next change is handed on all the same; a brain that does not
    answer is asked again, and nothing is passed over meanwhile.
    """
    source = HttpKeys(session.endpoint) if session.is_http else TransportKeys(session)
    done = 0
    while True:
        try:
            if not revision:
                revision = source.list(key)[0] + 1
            newest, changes = source.changes(key, prefix, revision)
        except SourceError as error:
            if error.is_final:
                print(f"argosy: {error}", file=sys.stderr, flush=True)
                return 1
            time.sleep(RETRY_S)
            continue
        except KeyboardInterrupt:
            return 0
        for change in changes:
            _run(command, change)
            done += 1
            if count and done >= count:
                return 0
        revision = newest + 1


def _run(command: list[str], change: dict[str, Any]) -> None:
    told = {
        "ETCD_WATCH_EVENT_TYPE": change["type"].upper(),
        "ETCD_WATCH_ACTION": "set" if change["type"] == "put" else "delete",
        "ETCD_WATCH_KEY": change["key"],
        "ETCD_WATCH_VALUE": change["value"] or "",
        "ETCD_WATCH_REVISION": str(change["mod_revision"]),
        "ETCD_WATCH_MODIFIED_INDEX": str(change["mod_revision"]),
    }
    try:
        code = subprocess.run(command, check=False, env={**os.environ, **told}, stdin=subprocess.DEVNULL).returncode
    except (OSError, ValueError) as error:  # no such program, or a value that no environment can hold
        print(f"argosy: {command[0]}: {getattr(error, 'strerror', None) or error}", file=sys.stderr, flush=True)
        return
    if code:
        print(f"argosy: {change['key']} at {change['mod_revision']}: {command[0]} exited with {code}",
              file=sys.stderr, flush=True)  # fmt: skip
