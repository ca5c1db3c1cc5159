"""A small HTTP proxy for machines without HAProxy: round robin, and the next one on failure.

Reads the ``server NAME HOST:PORT`` lines of a HAProxy configuration; SIGHUP reads it again.
"""

import http.client
import itertools
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

config, port = Path(sys.argv[1]), int(sys.argv[2])
servers: list[tuple[str, int]] = []
turn = itertools.count()


def read(*_: object) -> None:
    lines = [line.split() for line in config.read_text().splitlines()]
    found = [words[2].rsplit(":", 1) for words in lines if words[:1] == ["server"]]
    servers[:] = [(host, int(number)) for host, number in found]


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        known = list(servers)
        first = next(turn)
        for attempt in range(len(known)):
            host, number = known[(first + attempt) % len(known)]
            try:
                connection = http.client.HTTPConnection(host, number, timeout=2)
                connection.request("GET", self.path)
                reply = connection.getresponse()
                body = reply.read()
            except (OSError, http.client.HTTPException):
                continue
            self.answer(reply.status, body)
            return
        self.answer(503, b"no server\n")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


read()
signal.signal(signal.SIGHUP, read)
ThreadingHTTPServer(("127.0.0.1", port), Proxy).serve_forever()
