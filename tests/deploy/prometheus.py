"""Debian's Prometheus for a test: run with a configuration of ours, asked through its API."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

Vector = list[dict[str, Any]]


class QueryError(Exception):
    """Prometheus refused a query; the text says why."""


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """A running server."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.base = f"http://127.0.0.1:{port}"
        self.process = process
        self.log = log

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of an API answer; raises :class:`QueryError`, or ``OSError`` while it starts."""
        assert self.process.poll() is None, f"prometheus has ended: {self.log_end()}"
        url = f"{self.base}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            if error.code == 503:
                raise OSError(text) from None
            raise QueryError(f"{parameters or path}: {text}") from None
        except URLError as error:
            raise OSError(str(error.reason)) from None

    def query(self, expression: str) -> Vector:
        """The vector of an instant query (a scalar becomes a vector of one)."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: Vector = data["result"]
        return found

    def numbers(self, expression: str) -> list[float]:
        """The finite values of a query."""
        values = [float(sample["value"][1]) for sample in self.query(expression)]
        return [value for value in values if math.isfinite(value)]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that is loaded, with its state and health."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def log_end(self) -> str:
        """Its last lines, for a failed assertion."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


@contextmanager
def running(folder: Path, config: Path) -> Iterator[Prometheus]:
    """A server with this configuration, its data below ``folder``."""
    program = shutil.which("prometheus")
    assert program is not None
    port = free_port()
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=1d",
                "--query.lookback-delta=10s",
            ],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield Prometheus(port, process, log)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
