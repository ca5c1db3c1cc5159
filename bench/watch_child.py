"""Watchers and a writer in a process of their own; prints one line of JSON, as wrk's.

usage: python -m bench.watch_child URL WATCHERS RATE SECONDS shared|own

``shared``: all watch one directory, every write is an event for each of them.  ``own``: each
watches a directory of its own.  RATE is writes per second, or as many as the server takes.  A
delay runs from the acknowledgement of a write to the receipt of its event (0 if that was first).
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from urllib.parse import urlsplit

import httptools
import uvloop

from .lab import percentile

#: Connections that write, distinct keys below each directory, and seconds between looks at the clock.
_WRITERS, _KEYS, _TICK_S = 64, 16, 0.001
#: Seconds for the streams to begin, and without any event after which no more will come.
_PATIENCE_S, _QUIET_S = 20.0, 0.5
_EVENT = re.compile(rb'"node":\{"key":"[^"]*","value":"(\d+)"')


class _Talk(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.now = 0.0
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.now = time.perf_counter()
        self.parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True


class Watcher(_Talk):
    """Notes when the event of which write arrived."""

    def __init__(self, receipts: list[tuple[int, float]]) -> None:
        super().__init__()
        self._receipts = receipts
        self._rest = b""
        self.begun = asyncio.get_running_loop().create_future()

    def on_headers_complete(self) -> None:
        self.begun.set_result(self.parser.get_status_code())

    def on_message_complete(self) -> None:
        self.closed = True  # a stream has no end, unless the server has had enough of it

    def on_body(self, body: bytes) -> None:
        text = self._rest + body
        end = 0
        for found in _EVENT.finditer(text):
            self._receipts.append((int(found[1]), self.now))
            end = found.end()
        self._rest = text[end:]


class Writer(_Talk):
    """One write at a time."""

    def __init__(self, load: Writes) -> None:
        super().__init__()
        self._load = load
        self._number = 0

    def send(self, number: int, path: str) -> None:
        """PUT the number."""
        self._number = number
        body = f"value={number:016d}"
        self.transport.write(
            f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() in (200, 201):
            self._load.acknowledged[self._number] = self.now
        else:
            self._load.failed += 1
        self._load.free.append(self)
        self._load.pump()


class Writes:
    """So many in a second, as far as there is a free connection."""

    def __init__(self, rate: float, directories: list[str]) -> None:
        self._rate = rate
        self._directories = directories
        self.acknowledged: dict[int, float] = {}
        self.failed = 0
        self.issued = 0
        self.free: list[Writer] = []
        self.begun = self.end = 0.0

    def start(self, seconds: float) -> None:
        """From now on."""
        self.begun = time.perf_counter()
        self.end = self.begun + seconds

    def pump(self) -> None:
        """Send what is due."""
        now = time.perf_counter()
        if not self.begun or now >= self.end:
            return
        due = int((now - self.begun) * self._rate) - self.issued
        for _ in range(min(due, len(self.free))):
            number = self.issued
            self.issued += 1
            directory = self._directories[number % len(self._directories)]
            self.free.pop().send(
                number, f"/v2/keys{directory}/{number // len(self._directories) % _KEYS:02d}"
            )

    @property
    def settled(self) -> bool:
        """Every write has been answered."""
        return len(self.acknowledged) + self.failed == self.issued


async def measure(url: str, watchers: int, rate: float, seconds: float, shared: bool) -> dict[str, float]:
    """One turn."""
    loop = asyncio.get_running_loop()
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 80
    directories = ["/watch"] if shared else [f"/watch{number:02d}" for number in range(watchers)]
    receipts: list[tuple[int, float]] = []
    streams: list[Watcher] = []
    for number in range(watchers):
        _, watcher = await loop.create_connection(lambda: Watcher(receipts), host, port)
        path = f"/v2/keys{directories[number % len(directories)]}?wait=true&stream=true&recursive=true"
        watcher.transport.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        streams.append(watcher)
    codes = await asyncio.wait_for(asyncio.gather(*(w.begun for w in streams)), _PATIENCE_S)
    assert set(codes) == {200}, codes
    writes = Writes(rate, directories)
    for _ in range(_WRITERS):
        _, writer = await loop.create_connection(lambda: Writer(writes), host, port)
        writes.free.append(writer)
    writes.start(seconds)
    while time.perf_counter() < writes.end:
        writes.pump()
        await asyncio.sleep(_TICK_S)
    each = watchers if shared else 1
    seen = -1
    while seen != len(receipts) + len(writes.acknowledged):  # else nothing comes any more
        seen = len(receipts) + len(writes.acknowledged)
        for _ in range(round(_QUIET_S / _TICK_S)):
            if writes.settled and len(receipts) >= each * len(writes.acknowledged):
                break
            await asyncio.sleep(_TICK_S)
    known = writes.acknowledged
    delays = [max(0.0, 1000 * (at - known[number])) for number, at in receipts if number in known]
    missing = each * len(known) - sum(number in known for number, _ in receipts)
    return {
        "requests": sum(at <= writes.end for _, at in receipts), "seconds": seconds,
        "p50_ms": percentile(delays, 0.5), "p99_ms": percentile(delays, 0.99), "max_ms": max(delays),
        "status_errors": writes.failed + missing, "socket_errors": sum(w.closed for w in streams),
    }  # fmt: skip


def main() -> None:
    """Measure, print."""
    url, watchers, rate, seconds, kind = sys.argv[1:]
    gc.disable()  # it is over soon
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(
            json.dumps(runner.run(measure(url, int(watchers), float(rate), float(seconds), kind == "shared")))
        )


if __name__ == "__main__":
    main()
