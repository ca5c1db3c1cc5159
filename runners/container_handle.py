"""One unit's container: found by its labels, started once, watched, reported.

A handle has the face of ``processes.Handle`` and gives the same events on the loop's thread.
It decides nothing about the unit.  It never concludes from an engine's silence: it asks
again what is true, and a start that was not answered is not sent a second time.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .engine import INVOCATION, STEP, EngineAway, Missing, Refused, Seen, shut
from .engine_log import Tail, write_note
from .processes import DIRECTORY_VARIABLE, Event
from .sessions import ContainerSession, Session
from .shim.facts import start_time

if TYPE_CHECKING:
    from .containers import Containers

T = TypeVar("T")
#: Seconds between attempts to reach an engine that does not answer: doubled from the first to the last.
BACK_OFF_S_MIN = 0.2
BACK_OFF_S_MAX = 5.0
#: Seconds after which an engine that does not answer is reported, if nothing better is known.
ENGINE_PATIENCE_S = 20.0
#: Seconds between two looks at a container whose output is followed, and at one with a health check.
LOOK_S = 10.0
HEALTH_LOOK_S = 1.0
#: Seconds that the last output of an ended container is waited for.
LOG_DRAIN_S_MAX = 5.0
#: Seconds between the end of the output and the first look whether the container has ended.
END_PAUSE_S = 0.05
#: How often a name that is being given up is waited for, and the seconds between.
NAME_TRIES_MAX = 40
NAME_PAUSE_S = 0.25
#: Seconds a command inside a container may take.
INSIDE_S_MAX = 300.0

MACHINE, UNIT = "argosy.machine", "argosy.unit"
GENERATION, FENCED = "argosy.generation", "argosy.fenced"
#: The note in a unit's folder.
RECORD_FILE = "container.json"
#: How the end of a container is called that somebody else removed.
_REMOVED = {"code": 0, "signal": int(signal.SIGKILL), "oom": False}


@dataclass(slots=True)
class _Record:
    """The note in the unit's folder: what the next host process must know, and the engine does not."""

    folder: Path
    meta: dict[str, Any] = field(default_factory=dict)
    ends: dict[str, Any] = field(default_factory=dict)
    running: dict[str, Any] | None = None
    log: dict[str, Any] | None = None

    @classmethod
    def read(cls, folder: Path) -> _Record:
        """What is there; a damaged note is as good as none, for the labels are asked too."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            kept = json.loads((folder / RECORD_FILE).read_text())
            return cls(folder, kept["meta"], kept["ends"], kept["running"], kept["log"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)

    def save(self) -> None:
        """Atomically; a full disk or a folder that was removed is not the unit's end."""
        new = self.folder / f"{RECORD_FILE}.new"
        kept = {"meta": self.meta, "ends": self.ends, "running": self.running, "log": self.log}
        try:
            new.write_text(json.dumps(kept))
            os.replace(new, self.folder / RECORD_FILE)
        except OSError:
            pass


def visible_start(pid: int, container: str) -> str:
    """The start time of a container's first process; empty if it is not the one this machine sees."""
    try:
        if container in Path(f"/proc/{pid}/cgroup").read_text():
            return str(start_time(pid))
    except OSError:
        pass
    return ""


@dataclass(slots=True)
class _Attempt:
    """A start that is under way."""

    step: str
    sent: set[str] = field(default_factory=set)  # containers that the engine was asked to start
    cancelled: int = 0  # by this signal
    called_off: asyncio.Event = field(default_factory=asyncio.Event)
    pull: Any = None


class _Cancelled(Exception):
    """A signal came before the container was started."""


class _LeaseOver(Exception):
    """The machine's lease is over: nothing fenced may start."""


# -- one unit -----------------------------------------------------------------------------------------------


class ContainerHandle:
    """The link to one unit's container; events go to ``on_event`` on the loop thread."""

    def __init__(
        self, owner: Containers, unit: str, fenced: bool, on_event: Callable[[Event], None]
    ) -> None:
        self._owner = owner
        self._engine = owner.engine
        self.unit = unit
        self._fenced = fenced
        self._on_event = on_event
        self._closed = False
        self._ready = False  # hello was said; until then there is nothing to command
        self._record = _Record.read(owner.folder(unit))
        self._current: Seen | None = None
        self._strays: list[str] = []  # of another run, and running
        self._attempt: _Attempt | None = None
        self._tail: Tail | None = None
        self._poke = asyncio.Event()
        self._health: tuple[str, str] = ("", "")
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._spawn(self._open())

    # -- the face of a handle --------------------------------------------------------------

    def run(self, step: str, argv: list[str], environment: dict[str, str], main: bool, **rest: Any) -> None:
        """Start the container, or a command inside it; ``started`` or ``failed`` follow.

        The main step takes ``container``: ``{create, name, pull, retries, retry_delay, login, secrets}`` as
        ``fleet.container.run_arguments`` makes it; ``pulling`` and ``pulled`` may come first.
        Another step takes ``inside=True``.
        """
        if not self._ready or self._closed:
            return
        if main and "container" in rest:
            if self._attempt is None:  # else the answer to that start is the answer to this one
                self._attempt = _Attempt(step)
                self._spawn(self._start(self._attempt, rest["container"]))
        elif not main and rest.get("inside"):
            self._spawn(self._run_inside(step, argv, environment))
        else:
            error = "only its container, and commands inside it, run in the engine"
            self._later({"ev": "failed", "step": step, "main": main, "error": error})

    def enter(
        self, name: str, argv: list[str], environment: dict[str, str], size: tuple[int, int] | None,
        on_news: Callable[[], None], **rest: Any,
    ) -> Session:  # fmt: skip
        """Run a command inside the container for an operator; see ``processes.Handle``."""
        del name, rest
        current = self._current
        if current is None:
            raise OSError("its container is not running")

        def expel(command: str) -> None:
            pid = self._engine.entered(command)[1]
            if pid and visible_start(pid, current.id):
                os.kill(pid, signal.SIGKILL)

        return ContainerSession(self._owner.loop, self._engine, current.id, argv, environment, size, on_news, expel)

    def kill(self, number: int, whole: bool) -> None:
        """Signal the first process; ``empty`` follows when nothing is left.

        SIGTERM is sent as the container's own stop signal.  ``whole`` makes no difference:
        the first process's end is the end of all, and what comes before is for it to hand on.
        """
        del whole
        if not self._ready or self._closed:
            return
        if self._attempt is not None and self._current is None:
            self._cancel(number)
        elif self._current is None and not self._strays:
            self._later({"ev": "empty"})
        else:
            self._spawn(self._signal(int(number)))

    def remember(self, meta: dict[str, Any]) -> None:
        """Keep a note for the next host process."""
        if not self._ready or self._closed:
            return
        if meta.get("invocation") != self._record.meta.get("invocation"):
            self._record.ends = {}
        self._record.meta = dict(meta)
        self._record.save()

    def tidy(self, directories: list[str], files: list[str]) -> None:
        """Nothing of this machine's was made for it; the engine keeps its control group."""

    def quit(self) -> None:
        """Remove the container, also a running one; ``lost`` follows."""
        if not self._ready or self._closed:
            return
        if self._attempt is not None:
            self._cancel(int(signal.SIGKILL))
        self._spawn(self._quit())

    def close(self) -> None:
        """Let go of the container; it stays."""
        self._closed = True
        if self._attempt is not None:
            self._cancel(int(signal.SIGKILL))
        for task in self._tasks:
            task.cancel()
        if self._tail is not None:
            self._tail.close()
        if self._owner.handles.get(self.unit) is self:
            del self._owner.handles[self.unit]

    @property
    def fenced_and_running(self) -> bool:
        """Whether the guard is needed for it."""
        return self._fenced and not self._closed and (self._current is not None or self._attempt is not None)

    @property
    def holds(self) -> set[str]:
        """Ids of the containers it knows of."""
        sent = self._attempt.sent if self._attempt is not None else set()
        return {*self._strays, *sent, *([self._current.id] if self._current is not None else [])}

    @property
    def busy(self) -> bool:
        """Whether a start is under way."""
        return self._attempt is not None

    # -- the inside of it --------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._owner.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._lose(f"{type(error).__name__}: {error}")

    def _report(self, event: Event) -> None:
        if not self._closed:
            self._on_event(event)

    def _later(self, event: Event) -> None:
        self._owner.loop.call_soon(self._report, event)

    def _lose(self, error: str, gone: bool = False) -> None:
        """``gone``: nothing of the unit runs; else nobody knows, and it is to be opened again."""
        self._report({"ev": "lost", "error": error, "gone": gone})
        self.close()

    def _call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return self._owner.call(self.unit, work)

    @property
    def _labels(self) -> dict[str, str]:
        return {**self._owner.labels, UNIT: self.unit}

    @property
    def _invocation(self) -> str:
        return str(self._record.meta.get("invocation", ""))

    # -- finding what is there ------------------------------------------------------------------

    async def _open(self) -> None:
        """``hello``: from the engine, or while that is silent from a process that is seen to live."""
        back_off, began = BACK_OFF_S_MIN, time.monotonic()
        while True:
            async with self._owner.turn(self.unit):
                try:
                    mine = await self._find()
                    break
                except EngineAway as error:
                    if self._process_lives():
                        mine = self._from_record()
                        break
                    if time.monotonic() - began > ENGINE_PATIENCE_S:
                        self._lose(str(error))
                        return
                except Refused as error:
                    self._lose(str(error))
                    return
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, BACK_OFF_S_MAX)
        if mine is not None:
            self._adopt(mine)
        self._ready = True
        self._hello(mine)

    async def _find(self) -> Seen | None:
        """The running container of this run; one that ended is reported in ``ends`` and removed."""
        found = await self._call(lambda: self._engine.labelled(self._labels))
        mine = None
        self._strays = []
        for seen in found:
            same = bool(self._invocation) and seen.invocation == self._invocation
            if seen.running and same:
                mine = seen
            elif seen.running:
                self._strays.append(seen.id)
            elif seen.started or not same:  # one of this run that waits to be started may yet be
                if same and seen.started and "main" not in self._record.ends:
                    await self._drain(seen)
                    self._note_end(seen.labels.get(STEP, ""), seen.end(), seen.id)
                await self._call(lambda id_=seen.id: self._try_to_remove(id_))  # type: ignore[misc]
        ran = self._record.running
        if mine is None and ran is not None:  # it ran, and somebody removed it
            if "main" not in self._record.ends and ran["invocation"] == self._invocation:
                self._note_end(ran["step"], _REMOVED, ran["id"])
            self._record.running = None
            self._record.save()
        return mine

    def _try_to_remove(self, container: str) -> None:
        """What cannot be removed now is in nobody's way before the next start.  In a thread."""
        try:
            self._engine.remove(container, False)
        except Refused:
            pass

    def _process_lives(self) -> bool:
        ran = self._record.running
        if ran is None or not ran["start"] or ran["boot_id"] != self._owner.boot_id:
            return False
        return bool(ran["invocation"] == self._invocation and start_time(ran["pid"]) == ran["start"])

    def _from_record(self) -> Seen:
        ran = self._record.running
        assert ran is not None
        labels = {**self._labels, INVOCATION: ran["invocation"], STEP: ran["step"]}
        return Seen(ran["id"], "", labels, True, True, ran["pid"], 0, False, "", "", ran["stop_signal"])

    def _hello(self, mine: Seen | None) -> None:
        processes = {}
        if mine is not None:
            start = visible_start(mine.pid, mine.id)
            processes[str(mine.pid)] = {"step": mine.labels.get(STEP, ""), "main": True, "start": start}
        ended = self._record.ends.get("main")
        self._report({
            "ev": "hello",
            "me": {"engine": self._engine.base_url, "container": mine.id if mine is not None else ""},
            "meta": self._record.meta, "pending": [ended] if ended is not None else [],
            "processes": processes, "ends": self._record.ends,
            "empty": mine is None and not self._strays,
        })  # fmt: skip

    def _adopt(self, seen: Seen) -> None:
        """From here on this container is the unit's."""
        self._current = seen
        self._health = ("", "")
        self._tail = Tail(self._engine, self._record.folder, seen.id, self._record.log)
        self._record.log = self._tail.begun
        self._record.running = {
            "id": seen.id, "pid": seen.pid, "start": visible_start(seen.pid, seen.id),
            "boot_id": self._owner.boot_id, "step": seen.labels.get(STEP, ""),
            "invocation": seen.invocation, "stop_signal": seen.stop_signal, "fenced": self._fenced,
        }  # fmt: skip
        self._record.save()
        if self._fenced:
            self._owner.keep_guarded()
        self._watching = self._spawn(self._watch(seen, self._tail))

    # -- starting ---------------------------------------------------------------------------------

    def _cancel(self, number: int) -> None:
        assert self._attempt is not None
        self._attempt.cancelled = number
        self._attempt.called_off.set()
        if self._attempt.pull is not None:
            shut(self._attempt.pull)

    async def _start(self, attempt: _Attempt, wanted: dict[str, Any]) -> None:
        about = {"step": attempt.step, "main": True}
        try:
            async with self._owner.turn(self.unit):
                seen = await self._until_started(attempt, wanted)
        except _Cancelled:
            self._attempt = None
            self._owner.drop_secrets(self.unit)
            self._report({"ev": "ended", **about, "code": 0, "signal": attempt.cancelled, "oom": False})
            self._report({"ev": "empty"})
            return
        except _LeaseOver:
            self._attempt = None
            self._owner.drop_secrets(self.unit)
            end = {"code": 0, "signal": int(signal.SIGTERM), "oom": False, "fenced": True}
            self._report({"ev": "ended", **about, **end})
            self._report({"ev": "empty"})
            return
        except (Refused, OSError, ValueError) as error:
            self._attempt = None
            self._owner.drop_secrets(self.unit)
            self._record.ends["main"] = {"ev": "ended", **about, "code": 203, "signal": 0, "oom": False}
            self._record.save()
            write_note(self._record.folder, f"not started: {error}")
            self._report({"ev": "failed", **about, "error": str(error)})
            self._report({"ev": "empty"})
            return
        if self._current is None or self._current.id != seen.id:
            self._adopt(seen)
        self._attempt = None
        self._report({"ev": "started", **about, "pid": seen.pid, "container": seen.id})
        if attempt.cancelled:  # it came while the engine was starting it
            await self._signal(attempt.cancelled)

    async def _until_started(self, attempt: _Attempt, wanted: dict[str, Any]) -> Seen:
        """Again and again while the engine is silent; what it did unheard is found by its labels."""
        back_off = BACK_OFF_S_MIN
        while True:
            try:
                return await self._start_once(attempt, wanted)
            except EngineAway as error:
                self._report({"ev": "waiting", "error": str(error)})
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, BACK_OFF_S_MAX)

    async def _start_once(self, attempt: _Attempt, wanted: dict[str, Any]) -> Seen:
        body = self._body(attempt.step, wanted["create"])
        name = wanted.get("name") or self._owner.container_name(self.unit)
        container = ""
        pulled = False
        for _ in range(NAME_TRIES_MAX):
            self._check(attempt)
            there = await self._call(lambda: self._clear(attempt))
            if there is not None and there.started:
                return there  # by an earlier call that was not answered, or by another handle
            if there is not None:
                container = there.id
                break
            if not pulled:
                await self._image(attempt, body["Image"], wanted)
                pulled = True
                self._check(attempt)
                await self._call(lambda: self._mount_secrets(body, wanted))
            try:
                container = await self._call(lambda: self._engine.create(_with_files(body), name))
                break
            except Refused as error:
                if error.status != 409:
                    raise
                await self._call(lambda: self._is_ours(name))
            await asyncio.sleep(NAME_PAUSE_S)
        else:
            raise Refused(f"the name {name} did not become free", 409)
        try:
            await self._call(lambda: self._permit(attempt))
        except (_Cancelled, _LeaseOver, OSError):
            await self._call(lambda: self._engine.remove(container, False))
            raise
        attempt.sent.add(container)
        try:
            await self._call(lambda: self._engine.start(container))
        except Refused:
            await self._call(lambda: self._engine.remove(container, True))
            raise
        return await self._call(lambda: self._engine.inspect(container))

    def _check(self, attempt: _Attempt) -> None:
        if attempt.cancelled:
            raise _Cancelled

    def _body(self, step: str, create: dict[str, Any]) -> dict[str, Any]:
        labels = {
            **create.get("Labels", {}), **self._labels, INVOCATION: self._invocation, STEP: step,
            GENERATION: str(self._record.meta.get("fence", "")), FENCED: "true" if self._fenced else "false",
        }  # fmt: skip
        env = [*create.get("Env", []), f"{DIRECTORY_VARIABLE}={self._owner.base}"]
        return {**create, "Labels": labels, "Env": env}

    def _clear(self, attempt: _Attempt) -> Seen | None:
        """Remove every container of the unit but this run's.  In a thread.

        A container that was made but not started although the engine was asked to, and did
        not answer, gives way to a new one: asked twice, the engine could start it twice.
        """
        kept = None
        for seen in self._engine.labelled(self._labels):
            ours = seen.invocation == self._invocation
            if ours and (seen.started or seen.id not in attempt.sent):
                kept = seen
            else:
                try:
                    self._engine.remove(seen.id, force=not ours)
                except Refused as error:  # it runs after all
                    if error.status != 409:
                        raise
                    kept = self._engine.inspect(seen.id)
        self._strays = []
        return kept

    def _mount_secrets(self, body: dict[str, Any], wanted: dict[str, Any]) -> None:
        """In a thread."""
        mounts = self._owner.keep_secrets(self.unit, wanted.get("secrets") or [])
        if mounts:
            options = body["HostConfig"]
            body["HostConfig"] = {**options, "Mounts": [*options.get("Mounts", []), *mounts]}

    def _is_ours(self, name: str) -> None:
        """Whether the container that has our name is the unit's; raises if not.  In a thread."""
        try:
            labels = self._engine.inspect(name).labels
        except Missing:
            return  # it is just being removed
        if all(labels.get(key) == value for key, value in self._labels.items()):
            return
        owner = f"unit {labels[UNIT]} of machine {labels.get(MACHINE, '?')}" if UNIT in labels else "nobody here"
        raise Refused(f"the name {name} is taken by a container of {owner}", 0)

    def _permit(self, attempt: _Attempt) -> None:
        """The last look before the start.  In a thread."""
        if self._fenced:
            self._owner.ensure_guard()
            if self._owner.lease_is_over():
                raise _LeaseOver
        self._check(attempt)

    # -- the image ------------------------------------------------------------------------------------

    async def _image(self, attempt: _Attempt, image: str, wanted: dict[str, Any]) -> None:
        policy = wanted.get("pull", "missing")
        have = await self._call(lambda: self._engine.has_image(image))
        if policy == "never" and not have:
            raise Refused(f"image {image} is not on this machine, and Pull=never forbids to get it", 404)
        if policy == "never" or (policy == "missing" and have):
            return
        self._report({"ev": "pulling", "step": attempt.step, "main": True, "image": image})
        pause = float(wanted.get("retry_delay", 2.0))
        for left in range(int(wanted.get("retries", 3)), -1, -1):
            try:
                await self._wait_for_pull(attempt, image, wanted.get("login"))
                break
            except (Refused, EngineAway) as error:
                self._check(attempt)
                if policy == "newer" and have:
                    break
                if not left:
                    status = error.status if isinstance(error, Refused) else 0
                    raise Refused(f"image {image} could not be pulled: {error}", status) from error
            await self._unless_called_off(attempt, asyncio.sleep(pause))
            pause *= 2
        self._report({"ev": "pulled", "step": attempt.step, "main": True, "image": image})

    async def _wait_for_pull(self, attempt: _Attempt, image: str, login: dict[str, str] | None) -> None:
        async with self._owner.pulls:
            self._check(attempt)
            pulling = self._owner.stream(lambda: self._pull(attempt, image, login))
            await self._unless_called_off(attempt, pulling)

    async def _unless_called_off(self, attempt: _Attempt, work: Awaitable[None]) -> None:
        """The engine may be slow to give up a pull; a stop does not wait for that."""
        working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(attempt.called_off.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not working.done():
                working.cancel()
        self._check(attempt)
        working.result()

    def _pull(self, attempt: _Attempt, image: str, login: dict[str, str] | None) -> None:
        """In a thread; a signal ends it by ending its stream."""

        def begun(stream: Any) -> None:
            attempt.pull = stream
            if attempt.cancelled:
                shut(stream)

        try:
            self._engine.pull(image, login, begun)
        finally:
            attempt.pull = None
            if attempt.cancelled:
                raise _Cancelled

    # -- watching ---------------------------------------------------------------------------------------

    async def _watch(self, seen: Seen, tail: Tail) -> None:
        """From the start of a container to its end."""
        following: asyncio.Future[None] | None = None
        back_off, silent_since = END_PAUSE_S, 0.0
        while True:
            if following is None and tail.readable:
                following = self._owner.stream(lambda: tail.read(follow=True))
            await self._wait(following, self._pause(seen, tail))
            if following is not None and following.done():
                following.exception()
                following = None
            try:
                seen = await self._call(lambda id_=seen.id: self._engine.inspect(id_))  # type: ignore[misc]
            except EngineAway as error:
                silent_since = silent_since or time.monotonic()
                if self._process_is_gone() and time.monotonic() - silent_since > ENGINE_PATIENCE_S:
                    self._lose(f"its process is gone, and how it ended is not known: {error}", gone=True)
                    return
            except Missing:
                await self._ended(seen, _REMOVED)
                return
            else:
                silent_since = 0.0
                if not seen.running:
                    await self._drain(seen, following)
                    await self._ended(seen, seen.end())
                    return
                self._see_health(seen)
                if following is not None or not tail.readable:
                    back_off = END_PAUSE_S
                    continue
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, BACK_OFF_S_MAX)

    def _pause(self, seen: Seen, tail: Tail) -> float:
        return HEALTH_LOOK_S if seen.health or not tail.readable else LOOK_S

    async def _wait(self, following: asyncio.Future[None] | None, seconds: float) -> None:
        """Until the output ends, somebody calls, or it is time for a look."""
        poked = asyncio.ensure_future(self._poke.wait())
        waited: set[asyncio.Future[Any]] = {poked}
        if following is not None:
            waited.add(following)
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()
            self._poke.clear()

    def _process_is_gone(self) -> bool:
        ran = self._record.running
        return ran is not None and bool(ran["start"]) and start_time(ran["pid"]) != ran["start"]

    def _see_health(self, seen: Seen) -> None:
        found = (seen.health, seen.health_detail)
        if seen.health and found != self._health:
            self._health = found
            self._report({"ev": "health", "status": seen.health, "detail": seen.health_detail})

    async def _drain(self, seen: Seen, following: asyncio.Future[None] | None = None) -> None:
        """The last of the output, also what came while nobody looked."""
        tail = self._tail
        if tail is None:
            tail = Tail(self._engine, self._record.folder, seen.id, self._record.log)
        if following is not None:
            await asyncio.wait({following}, timeout=LOG_DRAIN_S_MAX)
            tail.stop()
            await asyncio.wait({following}, timeout=LOG_DRAIN_S_MAX)
        last = self._owner.stream(lambda: tail.read(follow=False))
        await asyncio.wait({last}, timeout=LOG_DRAIN_S_MAX)
        if tail is not self._tail:
            tail.close()

    def _note_end(self, step: str, end: dict[str, Any], container: str) -> Event:
        event: Event = {"ev": "ended", "step": step, "main": True, **end}
        if self._owner.ended_by_guard(container):
            event["fenced"] = True
        self._record.ends["main"] = event
        self._record.running = None
        self._record.save()
        return event

    async def _ended(self, seen: Seen, end: dict[str, Any]) -> None:
        """Its end is written down first, then told, then the container removed."""
        kept = None
        if end is _REMOVED:  # another handle may have seen how it ended
            told = _Record.read(self._record.folder)
            kept = told.ends.get("main") if told.meta == self._record.meta else None
        event = kept or self._note_end(seen.labels.get(STEP, ""), end, seen.id)
        tail, self._tail = self._tail, None
        if tail is not None:
            if event.get("fenced"):
                tail.note("the machine's lease is over: the container was ended")
            tail.close()
        self._current = None
        self._owner.drop_secrets(self.unit)
        self._report(event)
        self._report({"ev": "empty"})
        try:
            async with self._owner.turn(self.unit):
                await self._call(lambda: self._try_to_remove(seen.id))
        except EngineAway:
            pass  # the next start, or the next look at the unit, does

    # -- signals, commands inside, the end ---------------------------------------------------------------

    async def _signal(self, number: int) -> None:
        back_off = BACK_OFF_S_MIN
        while not self._closed:
            targets = [self._current.id] if self._current is not None else self._strays
            try:
                for container in list(targets):
                    await self._signal_one(container, number)
                break
            except EngineAway:
                if self._signal_directly(number):
                    break
            await asyncio.sleep(back_off)
            back_off = min(back_off * 2, BACK_OFF_S_MAX)
        self._poke.set()
        if self._current is None and not self._strays:
            self._report({"ev": "empty"})

    async def _signal_one(self, container: str, number: int) -> None:
        stray = self._current is None
        try:
            if stray and number == signal.SIGKILL:
                await self._call(lambda: self._engine.remove(container, True))
                self._strays.remove(container)
                return
            own = self._current.stop_signal if self._current is not None else ""
            sent: int | str = own if own and number == signal.SIGTERM else number
            await self._call(lambda: self._engine.kill(container, sent))
        except Refused:
            pass  # it is not running any more

    def _signal_directly(self, number: int) -> bool:
        """A process that is known is signalled although the engine is silent."""
        ran = self._record.running
        if ran is None or self._process_is_gone() or not ran["start"]:
            return False
        own = ran["stop_signal"]
        if own and number == signal.SIGTERM:
            number = int(own) if own.isdigit() else int(signal.Signals[own])
        try:
            os.kill(ran["pid"], number)
        except OSError:
            return False
        return True

    async def _run_inside(self, step: str, argv: list[str], environment: dict[str, str]) -> None:
        about = {"step": step, "main": False}
        current = self._current
        if current is None:
            self._report({"ev": "failed", **about, "error": "its container is not running"})
            return

        def work(client: Any) -> tuple[bytes, int]:
            made = client.exec_create(current.id, argv, environment=environment)
            said = client.exec_start(made["Id"])
            return said, int(client.exec_inspect(made["Id"])["ExitCode"] or 0)

        self._report({"ev": "started", **about, "pid": 0, "container": current.id})
        try:
            said, code = await self._owner.stream(lambda: self._engine.call(INSIDE_S_MAX, work))
        except (Refused, EngineAway) as error:
            said, code = str(error).encode(), 203
        if self._tail is not None:
            for line in said.decode("utf-8", "replace").splitlines():
                self._tail.note(f"{step}: {line}")
        number = code - 128 if code - 128 in signal.valid_signals() else 0
        self._report({"ev": "ended", **about, "code": 0 if number else code, "signal": number, "oom": False})

    async def _quit(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        back_off = BACK_OFF_S_MIN
        while True:
            try:
                async with self._owner.turn(self.unit):
                    await self._call(self._remove_all)
                break
            except (EngineAway, Refused):
                await asyncio.sleep(back_off)
                back_off = min(back_off * 2, BACK_OFF_S_MAX)
        if self._current is not None:
            event = self._note_end(self._current.labels.get(STEP, ""), _REMOVED, self._current.id)
            self._current = None
            self._report(event)
            self._report({"ev": "empty"})
        (self._record.folder / RECORD_FILE).unlink(missing_ok=True)
        self._lose("the container was removed", gone=True)

    def _remove_all(self) -> None:
        for seen in self._engine.labelled(self._labels):
            self._engine.remove(seen.id, True)


def _with_files(body: dict[str, Any]) -> dict[str, Any]:
    """The body with what the engine wants as text instead of a path.  In a thread."""
    options = body.get("HostConfig", {}).get("SecurityOpt", [])
    read = []
    for option in options:
        key, _, path = option.partition("=")
        if key == "seccomp" and path.startswith("/"):
            option = f"seccomp={Path(path).read_text()}"
        read.append(option)
    return body if not options else {**body, "HostConfig": {**body["HostConfig"], "SecurityOpt": read}}
