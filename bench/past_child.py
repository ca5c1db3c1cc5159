"""Make the directory of one peer with a past: so many keys, in its founding snapshot.

usage: python -m bench.past_child FOLDER TRANSPORT URL KEYS VALUE_BYTES
"""

from __future__ import annotations

import gc
import secrets
import sys
import time
from pathlib import Path

from brain import kv, tree  # noqa: F401 - they register their commands with the store
from brain.restore import refound
from brain.store import Store, StoreError
from cli.host import Membership
from transport import tls

NAME = "alone"
#: Keys in one directory.
_FAN = 1_000


def key_of(number: int) -> str:
    """The path of a key."""
    return f"/stored/{number // _FAN:04d}/{number % _FAN:03d}"


def main() -> None:
    """Fill a store by its own commands, and found a cluster on it."""
    folder, transport, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    keys, size = int(sys.argv[4]), int(sys.argv[5])
    gc.disable()
    store = Store()
    now = int(time.time() * 1000)
    for number in range(keys):
        value = b"%0*d" % (size, number)
        result, _ = store.apply(now, ["v2_set", key_of(number), value, None, False])
        assert not isinstance(result, StoreError), result
    machine = secrets.token_hex(8)
    name, data = refound(store, machine, (NAME, transport, url))
    (folder / "raft").mkdir(parents=True, mode=0o700)
    tls.write_private(folder / "raft" / name, data)
    Membership(machine, secrets.token_hex(8), secure=False).save(folder)


if __name__ == "__main__":
    main()
