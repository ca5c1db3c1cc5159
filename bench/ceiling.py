"""A bare uvloop and httptools server: reads its one answer from standard input.

usage: python -m bench.ceiling PORT
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import httptools
import uvloop


class _Connection(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._transport: Any = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self._answer)


async def _serve(port: int, answer: bytes) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answer), "127.0.0.1", port, backlog=1024)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), sys.stdin.buffer.read()))
