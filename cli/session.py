"""From a command line to a host and back: context, endpoints, exit statuses."""

from __future__ import annotations

import json
import os
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from actors.command import Command
from transport.client import Client, ClientTimeout, Credentials, UnreachableError
from transport.router import RemoteError

FAILED, USAGE, UNREACHABLE, TIMED_OUT = 1, 2, 3, 4
#: Seconds of a command's time that are kept to find out why there was no answer.
STATUS_S = 1.0
#: Refusals by their code; every other one is plain failure.
STATUS_OF = {
    "bad_request": USAGE, "unit_file": USAGE, "lock_group": USAGE, "lock_max": USAGE,
    "lock_machine": USAGE, "too_large": USAGE, "lease_ttl": USAGE, "BadRequest": USAGE,
    "no_leader": UNREACHABLE, "link_lost": UNREACHABLE, "timeout": TIMED_OUT, "AskTimeout": TIMED_OUT,
}  # fmt: skip


def default_context() -> Path:
    """Where a user's context lies unless told otherwise."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base) / "argosy" / "context.toml"


def die(text: str, status: int) -> NoReturn:
    """A sentence on standard error, and the exit status."""
    print(f"argosy: {text}", file=sys.stderr)
    raise SystemExit(status)


@dataclass(slots=True)
class Session:
    """One run of the command line."""

    context: str = ""
    endpoint: str = ""
    timeout: float = 60.0
    _client: Client | None = None
    endpoints: list[str] = field(default_factory=list)

    def client(self) -> Client:
        """The link, opened once."""
        if self._client is None:
            self.endpoints, credentials = self._where()
            self._client = Client(self.endpoints, credentials)
        return self._client

    def twin(self) -> Session:
        """The same, over a link of its own."""
        return Session(self.context, self.endpoint, self.timeout)

    def _where(self) -> tuple[list[str], Credentials]:
        path = Path(self.context) if self.context else default_context()
        values: dict[str, Any] = {}
        if self.context or path.exists():
            try:
                values = tomllib.loads(path.read_text())
            except OSError as error:
                die(f"--context {path}: {error.strerror}", USAGE)
            except tomllib.TOMLDecodeError as error:
                die(f"--context {path}: {error}", USAGE)
        endpoints = [e for e in self.endpoint.split(",") if e] or values.get("endpoints") or ["127.0.0.1:7001"]
        files = [Path(values[k]) if k in values else None for k in ("ca", "certificate", "key")]
        for name, file in zip(("ca", "certificate", "key"), files, strict=True):
            if file is not None and not file.exists():
                die(f"--context {path}: {name} = {file} does not exist", USAGE)
        return endpoints, Credentials(*files)

    @property
    def is_http(self) -> bool:
        """Whether the endpoint is an HTTP door (inside a unit): keys only."""
        return self.endpoint.startswith(("http://", "https://"))

    def ask(self, verb: str, timeout: float | None = None, **args: Any) -> Any:
        """Carry out a verb, or end with a sentence and the right status."""
        if self.is_http:
            die(f"{self.endpoint} is an HTTP door, which serves keys only; give a transport endpoint", USAGE)
        wait = timeout if timeout is not None else self.timeout
        try:
            return self.try_ask(verb, wait - min(STATUS_S, wait / 5), **args)
        except RemoteError as error:
            die(str(error), STATUS_OF.get(error.code, FAILED))
        except ClientTimeout as error:
            if self._lacks_leader(min(STATUS_S, wait / 5)):
                die("no leader: the cluster has no quorum, or is electing one", UNREACHABLE)
            die(str(error), TIMED_OUT)
        except UnreachableError as error:
            die(f"the cluster is not reachable: {error}", UNREACHABLE)

    def _lacks_leader(self, seconds: float) -> bool:
        """Whether the host that did not answer in time says that it knows no leader."""
        try:
            return not self.client().ask(Command("raft.status", {}), seconds)["leader"]
        except (RemoteError, ClientTimeout, UnreachableError):
            return False

    def try_ask(self, verb: str, timeout: float | None = None, **args: Any) -> Any:
        """Carry out a verb; raises what went wrong."""
        wait = timeout if timeout is not None else self.timeout
        deadline = time.monotonic() + min(wait, 10.0)
        while True:
            try:
                return self.client().ask(Command(verb, args), wait)
            except RemoteError as error:
                if error.code not in ("not_found",) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)  # the control actor is being restarted


def print_json(value: Any) -> None:
    """Stable JSON for programs."""
    print(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(type(value).__name__)


def follow(show: Callable[[], None], again: bool, interval: float = 1.0) -> None:
    """Show once, or again and again until Ctrl-C (``--watch``)."""
    while True:
        if again and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        show()
        if not again:
            return
        sys.stdout.flush()
        try:
            time.sleep(interval)
        except KeyboardInterrupt:
            return


def default_dir() -> str:
    """Where a local cluster lives unless ``--dir`` says otherwise."""
    return os.environ.get("ARGOSY_DIR", ".argosy")
