"""``argosy kv render``: a file that follows the brain.

A Jinja2 template asks for keys with ``ls(prefix)``, ``get(key)`` and ``names(prefix)``; the
file is written atomically when its text changes, checked, and whoever uses it is told.  A
brain that cannot be reached leaves the file as it is.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

import jinja2
import jinja2.sandbox

from transport.client import ClientTimeout, UnreachableError
from transport.router import RemoteError

from .session import FAILED, UNREACHABLE, USAGE, Session, die

#: Seconds one long poll lasts, and a pause after a failure.
POLL_S, RETRY_S = 20.0, 0.3
#: Seconds for which an older state than the one seen is taken for a host that is still reading its log.
OLDER_S_MAX = 10.0


#: The v2 error for a history that was cut off.
_CLEARED = 401


class SourceError(Exception):
    """The brain could not be asked; it is tried again, unless that cannot help (``is_final``)."""

    def __init__(self, text: str, is_final: bool = False) -> None:
        super().__init__(text)
        self.is_final = is_final


class RenderError(Exception):
    """The file is left as it is; the text says why."""


#: The last revision looked at, and what changed.
Changes: TypeAlias = tuple[int, list[dict[str, Any]]]


class HttpKeys:
    """Keys through the v2 door (what a unit has)."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 4001)

    def _get(self, path: str, timeout: float) -> tuple[int, dict[str, Any], int]:
        connection = http.client.HTTPConnection(*self._address, timeout=timeout)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            body = reply.read()
            index = int(reply.headers.get("X-Etcd-Index", 0))
            return reply.status, json.loads(body) if body else {}, index
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(str(error) or type(error).__name__) from None
        finally:
            connection.close()

    def list(self, prefix: str) -> tuple[int, dict[str, str]]:
        """(revision, values by key) below a prefix."""
        status, body, index = self._get(f"/v2/keys{quote(prefix.rstrip('/'))}?recursive=true", 10)
        if status == 404:
            return int(body.get("index", index)), {}
        if status != 200:
            raise SourceError(f"HTTP {status}")
        out: dict[str, str] = {}
        _flatten(body["node"], out)
        return index, out

    def wait(self, prefix: str, after: int) -> bool:
        """Whether something changed below a prefix after a revision; waits a while for it."""
        path = f"/v2/keys{quote(prefix.rstrip('/'))}?wait=true&recursive=true&waitIndex={after + 1}"
        try:
            return self._get(path, POLL_S)[0] in (200, 400)
        except SourceError as error:
            if "timed out" in str(error):
                return False
            raise


    def changes(self, key: str, prefix: bool, revision: int) -> Changes:
        """(last revision looked at, changes) from a revision on; waits a while for one."""
        path = f"/v2/keys{quote(key.rstrip('/'))}?wait=true&recursive={str(prefix).lower()}&waitIndex={revision}"
        try:
            status, body, index = self._get(path, POLL_S)
        except SourceError as error:
            if "timed out" in str(error):
                return revision - 1, []
            raise
        if status == 400 and body.get("errorCode") == _CLEARED:
            raise SourceError(f"changes from {revision} on are kept no more; the brain is at {index}", is_final=True)
        if status != 200:
            raise SourceError(f"HTTP {status}")
        node = body["node"]
        deleted = body["action"] in ("delete", "expire", "compareAndDelete")
        change = {"type": "delete" if deleted else "put", "key": node["key"], "value": node.get("value"),
                  "mod_revision": node["modifiedIndex"]}  # fmt: skip
        return node["modifiedIndex"], [change]


def _flatten(node: dict[str, Any], out: dict[str, str]) -> None:
    if not node.get("dir"):
        out[node["key"]] = node["value"]
    for child in node.get("nodes", ()):
        _flatten(child, out)


class TransportKeys:
    """Keys through a host's transport door (what an administrator has)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _ask(self, verb: str, timeout: float, **args: Any) -> Any:
        try:
            return self._session.try_ask(verb, timeout, **args)
        except (RemoteError, ClientTimeout, UnreachableError) as error:
            raise SourceError(str(error), getattr(error, "code", "") == "compacted") from None

    def list(self, prefix: str) -> tuple[int, dict[str, str]]:
        """(revision, values by key) below a prefix."""
        answer = self._ask("kv.ls", 10.0, key=prefix)
        return answer["revision"], {i["key"]: i["value"] for i in answer["items"]}

    def wait(self, prefix: str, after: int) -> bool:
        """Whether something changed below a prefix after a revision; waits a while for it."""
        answer = self._ask(
            "kv.watch", POLL_S + 5, key=prefix, prefix=True, revision=after + 1, wait=POLL_S
        )
        return bool(answer["events"])


    def changes(self, key: str, prefix: bool, revision: int) -> Changes:
        """(last revision looked at, changes) from a revision on; waits a while for one."""
        answer = self._ask("kv.watch", POLL_S + 5, key=key, prefix=prefix, revision=revision, wait=POLL_S)
        return max(answer["revision"], revision - 1), answer["events"]


class Renderer:
    """One template and its file."""

    def __init__(self, source: HttpKeys | TransportKeys, template: Path, out: Path) -> None:
        self._source = source
        self._out = out
        loader = jinja2.sandbox.SandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        loader.globals["env"] = dict(os.environ)
        self._name = template
        try:
            self._template = loader.from_string(template.read_text())
        except jinja2.TemplateSyntaxError as error:
            raise RenderError(f"{template}:{error.lineno}: {error.message}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RenderError(f"{template}: {getattr(error, 'strerror', None) or 'not text in UTF-8'}") from None
        self._values: dict[str, dict[str, str]] = {}
        self.revision = 0
        self._older_since = 0.0

    def text(self) -> str:
        """Render from what the brain says now."""
        seen: dict[str, dict[str, str]] = {}
        lowest: list[int] = []

        def listed(prefix: str) -> dict[str, str]:
            if not prefix.startswith("/"):
                raise ValueError(f"{prefix!r} is not a key that starts with /")
            if prefix not in seen:
                revision, seen[prefix] = self._source.list(prefix)
                lowest.append(revision)
            return seen[prefix]

        def ls(prefix: str) -> list[dict[str, str]]:
            base = prefix.rstrip("/") + "/"
            return [
                {"key": key, "name": key[len(base) :], "value": value}
                for key, value in sorted(listed(prefix).items())
                if key.startswith(base)
            ]

        def get(key: str, default: str | None = None) -> str | None:
            return listed(key).get(key, default)

        problem = ""
        try:
            text = self._template.render(ls=ls, get=get, names=lambda p: [i["name"] for i in ls(p)])
        except SourceError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a template does wrong with what is there
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
            problem = f"{self._name}:{lines[-1] if lines else 0}: {error}"
        self._refuse_older(min(lowest, default=0))
        self._values = seen
        self.revision = min(lowest, default=0)
        if problem:
            raise RenderError(problem)
        return text

    def _refuse_older(self, revision: int) -> None:
        """A host that has just been started again answers with the past for a moment."""
        if revision >= self.revision:
            self._older_since = 0.0
            return
        now = time.monotonic()
        self._older_since = self._older_since or now
        if now - self._older_since < OLDER_S_MAX:
            raise SourceError(f"the host is at revision {revision}, {self.revision} was seen before")

    def update(self, check: str, execute: str) -> bool:
        """Write the file if its text changed; whether it did.

        Raises :class:`SourceError`, or :class:`RenderError` when the file is left as it is.
        """
        text = self.text()
        temporary = self._out.with_name(self._out.name + ".new")
        try:
            if self._out.exists():
                if self._out.read_bytes() == text.encode():
                    return False
            temporary.write_text(text)
            if self._out.exists():
                shutil.copymode(self._out, temporary)
            if check and _run(check.replace("{}", shlex.quote(str(temporary)))) != 0:
                raise RenderError(f"{self._out} is left as it is: the check failed")
            os.replace(temporary, self._out)
        except OSError as error:
            raise RenderError(f"{error.filename}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
        if execute:
            _run(execute)
        return True

    def wait(self) -> None:
        """Wait until one of the prefixes that the template asked for changes."""
        prefixes = sorted(self._values)
        if len(prefixes) == 1:
            self._source.wait(prefixes[0], self.revision)
        else:
            self._source.wait(os.path.commonpath(prefixes) if prefixes else "/", self.revision)


def _run(command: str) -> int:
    try:
        return subprocess.run(shlex.split(command), check=False).returncode
    except OSError as error:
        print(f"argosy: {command}: {error.strerror}", file=sys.stderr, flush=True)
        return 127


def render(
    session: Session, template: Path, out: Path, check: str, execute: str, once: bool, splay: float
) -> int:
    """Keep a file in line with the brain; returns the exit status (``--once`` only)."""
    source = HttpKeys(session.endpoint) if session.is_http else TransportKeys(session)
    try:
        renderer = Renderer(source, template, out)
    except RenderError as error:
        die(str(error), USAGE)
    deadline = time.monotonic() + session.timeout
    while True:
        try:
            try:
                if renderer.update(check, execute):
                    print(f"{out}: written at revision {renderer.revision}", flush=True)
            except RenderError as error:  # another value may come right
                print(f"argosy: {error}", file=sys.stderr, flush=True)
                if once:
                    return FAILED
            if once:
                return 0
            renderer.wait()
            if splay:
                time.sleep(splay)
        except SourceError as error:
            if once and time.monotonic() > deadline:
                die(f"the brain did not answer: {error}", UNREACHABLE)
            time.sleep(RETRY_S)
        except KeyboardInterrupt:
            return 0
