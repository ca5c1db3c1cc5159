"""A small API server: answers with its unit and machine, and the database it was told of.

The database's address is a key of the brain, ``/config/db``.  A thread follows it with
plain HTTP long polls, so a change shows without a restart.
"""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENDPOINT = os.environ["ARGOSY_ENDPOINT"]
KEY = f"{ENDPOINT}/v2/keys/config/db"
database = {"address": "unknown"}


def fetch(url: str, timeout: float) -> tuple[dict, int]:
    with urllib.request.urlopen(url, timeout=timeout) as reply:
        return json.load(reply), int(reply.headers["X-Etcd-Index"])


def follow() -> None:
    while True:
        try:
            answer, index = fetch(KEY, 5)
            database["address"] = answer["node"]["value"]
            fetch(f"{KEY}?wait=true&waitIndex={index + 1}", 60)
        except (OSError, HTTPException, ValueError, KeyError):
            time.sleep(0.2)


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(
            {
                "unit": os.environ["ARGOSY_UNIT"],
                "machine": os.environ["ARGOSY_MACHINE"],
                "database": database["address"],
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    threading.Thread(target=follow, daemon=True).start()
    port = int(os.environ["PORT"])
    print(f"{os.environ['ARGOSY_UNIT']} serves on port {port}", flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Page).serve_forever()
