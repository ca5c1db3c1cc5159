"""The Docker Engine's API, for threads: each call has a deadline and ends in one of three errors.

A call that was not answered may have been carried out.  This module concludes nothing from
silence; it says :class:`EngineAway`, and whoever called asks again what is true.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
#: Seconds for a question to the engine, for a signal, and for what it builds up or takes down.
QUESTION_S_MAX = 10.0
SIGNAL_S_MAX = 5.0
CHANGE_S_MAX = 60.0
#: Seconds without a sign of progress after which pulling an image is given up.
PULL_SILENCE_S_MAX = 120.0
#: Idle connections to the engine that are kept.
IDLE_CLIENTS_MAX = 8
#: Characters of what a health check said that are reported.
HEALTH_DETAIL_CHARS_MAX = 200
#: Labels: the run of a unit, and its step, that a container is.
INVOCATION, STEP = "argosy.invocation", "argosy.step"


class EngineAway(Exception):
    """The engine did not answer; whether it did what it was asked is not known."""


class Refused(Exception):
    """The engine said no, and why."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Missing(Refused):
    """There is no such container or image."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine says of a container."""

    id: str
    name: str
    labels: dict[str, str]
    running: bool
    started: bool  # ever
    pid: int
    code: int
    oom: bool
    health: str
    health_detail: str
    stop_signal: str

    @property
    def invocation(self) -> str:
        """The run of the unit that it is."""
        return self.labels.get(INVOCATION, "")

    def end(self) -> dict[str, Any]:
        """How it ended, as a shim says it: the engine tells a signal n as the code 128 + n."""
        number = self.code - 128
        if number in signal.valid_signals():
            return {"code": 0, "signal": number, "oom": self.oom}
        return {"code": self.code, "signal": 0, "oom": self.oom}


def _seen(found: dict[str, Any]) -> Seen:
    state, config = found["State"], found["Config"]
    health = state.get("Health") or {}
    results = health.get("Log") or []
    said = str(results[-1].get("Output", "")).strip() if results else ""
    return Seen(
        found["Id"], found["Name"].lstrip("/"), dict(config.get("Labels") or {}),
        bool(state["Running"]), not state["StartedAt"].startswith("0001-"), int(state["Pid"]),
        int(state["ExitCode"]), bool(state.get("OOMKilled")), str(health.get("Status", "")),
        said[:HEALTH_DETAIL_CHARS_MAX], str(config.get("StopSignal") or ""),
    )  # fmt: skip


class Engine:
    """The engine's API, for threads: each call has a deadline and ends in one of three errors."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def call(self, seconds: float, work: Callable[[Any], T]) -> T:
        """``work(client)`` with a deadline for each answer."""
        self._reach(seconds)
        from . import docker_api  # now that there is an engine

        client: Any = None
        try:
            with self._lock:
                client = self._idle.pop() if self._idle else None
            if client is None:
                client = docker_api.APIClient(base_url=self.base_url, version="auto", timeout=seconds)
            client.timeout = seconds
            out = work(client)
        except docker_api.APIError as error:
            self._give_back(client)
            raise _refusal(error) from error
        except (docker_api.DockerException, *docker_api.BROKEN) as error:
            if client is not None:
                client.close()
            raise self._away(error) from error
        self._give_back(client)
        return out

    def _away(self, error: Exception) -> EngineAway:
        return EngineAway(f"the engine at {self.base_url} does not answer: {error}")

    def _reach(self, seconds: float) -> None:
        """The plain error of an engine that is not there, which the client wraps and leaks a socket for."""
        if not self.base_url.startswith("unix://"):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(seconds)
                probe.connect(self.base_url.removeprefix("unix://"))
        except OSError as error:
            raise self._away(error) from error

    def _give_back(self, client: Any) -> None:
        with self._lock:
            if client is not None and len(self._idle) < IDLE_CLIENTS_MAX:
                self._idle.append(client)
                return
        if client is not None:
            client.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()

    def _ask(self, question: Callable[[Any], T]) -> T:
        """An answer that is the engine's own fault says nothing of the container."""
        try:
            return self.call(QUESTION_S_MAX, question)
        except Refused as error:
            if error.status >= 500:
                raise EngineAway(str(error)) from None
            raise

    def inspect(self, container: str) -> Seen:
        """What is true of a container, by id or name."""
        return self._ask(lambda client: _seen(client.inspect_container(container)))

    def labelled(self, labels: dict[str, str]) -> list[Seen]:
        """All containers with these labels, ended ones too."""
        wanted = [f"{key}={value}" for key, value in labels.items()]
        listed = self._ask(lambda c: c.containers(all=True, filters={"label": wanted}))
        out = []
        for entry in listed:
            try:
                out.append(self.inspect(entry["Id"]))
            except Missing:
                continue
        return out

    def create(self, body: dict[str, Any], name: str) -> str:
        """Make a container; its id."""
        made = self.call(CHANGE_S_MAX, lambda client: client.create_container_from_config(body, name))
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Start it."""
        self.call(CHANGE_S_MAX, lambda client: client.start(container))

    def kill(self, container: str, number: int | str) -> None:
        """Send it a signal."""
        self.call(SIGNAL_S_MAX, lambda client: client.kill(container, number))

    def remove(self, container: str, force: bool) -> None:
        """Remove it and its nameless volumes; one that is gone is as good."""
        try:
            self.call(CHANGE_S_MAX, lambda client: client.remove_container(container, v=True, force=force))
        except Missing:
            return
        except Refused as error:
            if error.status != 409 or "in progress" not in str(error):
                raise

    def enter(self, container: str, argv: list[str], environment: dict[str, str], tty: bool) -> tuple[str, Any]:
        """Run a command inside a running container: its id there, and the stream to and from it."""

        def work(client: Any) -> tuple[str, Any]:
            made = client.exec_create(container, argv, stdin=True, tty=tty, environment=environment)["Id"]
            return made, client.exec_start(made, tty=tty, socket=True)

        return self.call(QUESTION_S_MAX, work)

    def entered(self, command: str) -> tuple[bool, int, int]:
        """(whether it runs, its process, its exit status) of a command inside a container."""
        seen = self._ask(lambda client: client.exec_inspect(command))
        return bool(seen["Running"]), int(seen["Pid"]), int(seen["ExitCode"] or 0)

    def resize(self, command: str, rows: int, columns: int) -> None:
        """The terminal of a command inside a container has another size."""
        try:
            self.call(QUESTION_S_MAX, lambda client: client.exec_resize(command, rows, columns))
        except (EngineAway, Refused):
            pass  # of no consequence, and it may have ended

    def has_image(self, image: str) -> bool:
        """Whether an image is on this machine."""
        try:
            self.call(QUESTION_S_MAX, lambda client: client.inspect_image(image))
        except Missing:
            return False
        return True

    def pull(self, image: str, login: dict[str, str] | None, begun: Callable[[Any], None]) -> None:
        """Get an image; ``begun(stream)`` gives what ends it when it is closed.

        The engine tells its progress line by line, and an error as one of the lines.
        """
        named = "@" in image or ":" in image.rsplit("/", 1)[-1]
        wanted = {"fromImage": image if named else f"{image}:latest"}

        def work(client: Any) -> None:
            from .docker_api import CancellableStream, encode_header

            headers = {"X-Registry-Auth": encode_header(login).decode()} if login else {}
            url = f"{client.base_url}/v{client.api_version}/images/create"
            response = client.post(
                url, params=wanted, headers=headers, stream=True, timeout=PULL_SILENCE_S_MAX
            )
            begun(CancellableStream(iter(()), response))
            try:
                if response.status_code >= 400:
                    raise Refused(str(response.json().get("message", response.reason)), response.status_code)
                for line in response.iter_lines():
                    told = json.loads(line) if line else {}
                    if "error" in told:
                        raise Refused(str(told["error"]), 0)
            finally:
                response.close()

        self.call(QUESTION_S_MAX, work)


def shut(stream: Any) -> None:
    """Close a stream that another thread may be waiting for."""
    try:
        stream.close()
    except (OSError, AttributeError):
        pass


def finish(stream: Any) -> None:
    """The same, by the thread that reads it: nothing of it stays open."""
    shut(stream)
    stream._response.close()


def _refusal(error: Any) -> Exception:
    status = error.status_code or 0
    text = str(error.explanation or error)
    if status == 503:
        return EngineAway(text)
    return Missing(text, status) if status == 404 else Refused(text, status)
