"""What may forbid a reboot, as this machine sees it: who is logged in, and what a Prometheus server says.

Both fail safe: what cannot be asked forbids it.
"""

from __future__ import annotations

import json
import os
import struct
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

#: Where login programs and systemd-logind say who is there.
UTMP, SESSIONS = Path("/run/utmp"), Path("/run/systemd/sessions")
#: One record of utmp(5) on 64-bit Linux: type, pid, line, id, user, host, exit, session, time, address.
_RECORD = struct.Struct("hxxi32s4s32s256shhiii4i20x")
_USER_PROCESS = 7
#: Bytes of an answer that are read, and of it that are shown.
ANSWER_BYTES_MAX, SHOWN = 1024 * 1024, 100


def logged_in(utmp: Path = UTMP, sessions: Path = SESSIONS) -> list[str]:
    """``USER on LINE`` of everybody who is logged in, sorted; raises ``OSError`` for what may not be read."""
    found = set()
    try:
        data = utmp.read_bytes()
    except FileNotFoundError:
        data = b""
    for at in range(0, len(data) - _RECORD.size + 1, _RECORD.size):
        kind, pid, line, _, user, *_ = _RECORD.unpack_from(data, at)
        if kind == _USER_PROCESS and _lives(pid):
            found.add(f"{_text(user)} on {_text(line)}")
    for path in sessions.glob("*") if sessions.is_dir() else ():
        if not path.name.endswith(".ref"):
            about = dict(line.partition("=")[::2] for line in path.read_text().splitlines())
            if about.get("CLASS") == "user" and about.get("STATE") in ("active", "online"):
                found.add(f"{about.get('USER', '?')} on {about.get('TTY') or 'session ' + path.name}")
    return sorted(found)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid > 0


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def query(server: str, expression: str, seconds: float) -> str:
    """What a PromQL expression gives, in short; empty if that is nothing, or a scalar of zero.

    Raises ``OSError`` and ``ValueError`` where no answer can be had.
    """
    url = f"{server.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:  # noqa: S310 - the scheme is checked by the policy
            answer = json.loads(response.read(ANSWER_BYTES_MAX + 1)[: ANSWER_BYTES_MAX + 1])
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"{server} answers HTTP {error.code} to {expression!r}") from None
    if not isinstance(answer, dict) or answer.get("status") != "success":
        raise ValueError(f"{server} is no Prometheus server, or has no answer to {expression!r}")
    data = answer["data"]
    if data["resultType"] in ("scalar", "string"):
        value = data["result"][1]
        return "" if float(value) == 0 else f"{expression[:SHOWN]} is {value}"
    rows = data["result"]
    return f"{expression[:SHOWN]} gives {len(rows)}: {json.dumps(rows[0].get('metric', {}))[:SHOWN]}" if rows else ""
