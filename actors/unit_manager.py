"""The supervisor of one unit on one machine.

Drives the unit's pure state machine (``fleet/service.py``) with its shim, probes its
health, and reports what is true to the machine actor.  It may be killed at any moment: a
new life finds the shim, and in it the running process, and goes on.
"""

from __future__ import annotations

import logging
from typing import Any

from fleet import container, execution, service, unitfile
from fleet.service import Arm, Changed, Disarm, Exit, Extend, FindMain, Kill, Run, Sub
from fleet.spec import Command, Condition, UnitSpec
from kernel.actor import Actor, Timer, handles
from kernel.ports import Ports

from .health import Health
from .sessions import SessionError, Sessions
from .unit_messages import (
    Assign,
    Enter,
    Exchange,
    Gone,
    Here,
    LeaseState,
    MayStart,
    Placement,
    ReadSecrets,
    Reload,
    Report,
    Started,
)

logger = logging.getLogger("argosy.unit")

#: Seconds between attempts to reach a shim that was lost.
SHIM_RETRY_S = 1.0
#: Seconds between two looks for the PID file of a service that is starting.
PID_FILE_S = 0.1
#: Ended runs of a unit that are told (when it began, when it ended, the result, how).
RUNS_KEPT = 5
#: Exit status of a container that could not be made or started, as the engine's own clients have it.
NOT_CREATED = 125
#: Seconds until the brain is asked again for the secrets of a start.
SECRETS_AGAIN_S = 0.5
#: Times that the main process of a forking service is looked for, when several are left.
GUESSES_MAX = 5
#: Seconds between two reports in which nothing but the service's word of itself (STATUS=) is new.
STATUS_S_MIN = 5.0
#: Sub-states in which nothing of a service is under way.
_AT_REST = (Sub.DEAD, Sub.FAILED, Sub.EXITED, Sub.AUTO_RESTART)
#: Sub-states in which a service is on its way down.
_ENDING = (Sub.STOP, Sub.STOP_WATCHDOG, Sub.STOP_SIGTERM, Sub.STOP_SIGKILL, Sub.STOP_POST, Sub.FINAL_SIGKILL)


class UnitManager(Actor):
    """See the module docstring."""

    own_stats = True

    def __init__(self, unit: str, here: Here, owner: Any, ports: Ports) -> None:
        super().__init__()
        self.unit = unit
        self.placement: Placement | None = None
        self._loaded: Placement | None = None  # what the spec and the service are of
        self._assigned = False
        self._here = here
        self._owner = owner
        self.ports = ports
        self._lease_held = False
        self.spec: UnitSpec | None = None
        self.service: service.Service | None = None
        self._handle: Any = None
        self._reached: Any = None  # the port that the handle is of
        self._fence_of_handle = True  # whether what it reaches obeys the machine's lease
        self._connected = False
        self._greeted = False  # whether a shim that lives still was heard of in this life
        self._empty = True
        self._main_pid = 0
        self._container = ""
        self._meta: dict[str, Any] = {}
        self._timers: dict[str, tuple[Timer, float]] = {}  # by kind: the timer, and when it is due
        self._asking = False
        self._permitted = False  # by the brain, to run here, under the lease that is held
        self._looking = False  # at the conditions of a start
        self._guesses = 0
        self._fenced = False
        self._leaving = False
        self.since = ports.clock.wall()
        self._seen_sub: Sub | None = None
        self.health = Health(self)
        self.sessions = Sessions(self)
        self._last_report: Any = None
        self._said = ""  # the service's word of itself in the last report, and when that was
        self._said_at = -STATUS_S_MIN
        self._word_timer: Timer | None = None
        self._problem = ""

    # -- life ----------------------------------------------------------------------------

    def on_start(self) -> None:
        """Ask for the placement; what a former life knew may be old."""
        self._owner.offer(Started(self.unit))

    def on_stop(self) -> None:
        """Let go of the shim."""
        self.sessions.close()
        if self._handle is not None:
            self._handle.close()

    def on_failure(self, *_: Any) -> None:
        """The next life reaches the shim again."""
        self.on_stop()

    def _load(self, placement: Placement) -> None:
        self._loaded = placement
        machine = unitfile.Machine(self._here.id, self._here.name, self._here.boot_id)
        try:
            self.spec, _ = unitfile.load(self.unit, placement.content, machine)
            self.service = service.Service(self.spec)
            self._problem = ""
        except ValueError as error:  # checked at submit; kept honest if it happens all the same
            self.spec = self.service = None
            self._problem = str(error)

    @property
    def _port(self) -> Any:
        """Where the unit runs: this machine's processes, or its engine."""
        containers = self.ports.containers
        if self.spec is not None and self.spec.container is not None:
            return containers
        if self.spec is None and containers is not None and self.unit in containers.existing():
            return containers
        return self.ports.processes

    def _reach(self) -> None:
        self._reached = self._port
        if self._reached is None and self._leaving:
            self._owner.offer(Gone(self.unit))
            return
        if self._reached is None:
            self._problem = "this machine has no engine for containers (see the key engine of its configuration)"
            self.after(SHIM_RETRY_S, self._reach)
            self.report()
            return
        self._fence_of_handle = self._is_fenced
        inbox, life = self.actor_inbox, self.actor_inbox.incarnation

        def on_event(event: dict[str, Any]) -> None:
            if inbox.incarnation == life and not inbox.closed:
                inbox.post(lambda: self._on_event(event))

        self._handle = self._reached.open(self.unit, self._fence_of_handle, on_event)

    @property
    def _is_fenced(self) -> bool:
        """Whether the unit must end when the machine's lease is over."""
        return self.spec is None or self.spec.on_partition == "stop"

    # -- what the machine says ----------------------------------------------------------------

    @handles(Assign)
    def _on_assign(self, message: Assign) -> None:
        old, new = self.placement, message.placement
        self.placement = new
        if not self._assigned:
            self._assigned = True
            self._leaving = new is None
            if new is not None:
                self._load(new)
            self._reach()
            return
        if new is None:
            self._leave()
            return
        self._leaving = False
        if old is None or old.hash != new.hash or old.restarts != new.restarts or old.fence != new.fence:
            self._replace(new)
        else:
            self._settle()

    def _replace(self, new: Placement) -> None:
        """Another content, or a restart: stop what runs, then start afresh."""
        running = self.service is not None and self.service.sub not in (Sub.DEAD, Sub.FAILED)
        if running:
            assert self.service is not None
            self._act(self.service.stop(restarting=new.launched))
        else:
            self._load(new)
        self._settle()

    @handles(LeaseState)
    def _on_lease(self, message: LeaseState) -> None:
        self._lease_held = message.held
        self._permitted = self._permitted and message.held
        self._last_report = None  # a new lease: say everything again
        if not self._assigned:
            return
        self.report()
        if message.held:
            self._after_fence()
        self._settle()

    def _after_fence(self) -> None:
        """What the fence ended did not fail: once the lease is held, it starts anew."""
        if not self._fenced or not self._lease_held or not self._connected or self.spec is None:
            return
        if self.service is not None and self.service.sub is Sub.AUTO_RESTART and self._empty:
            self._fenced = False  # it had ended before, and is about to be started in any case
            return
        at_rest = self.service is not None and self.service.sub in (Sub.DEAD, Sub.FAILED)
        if at_rest and not self._empty:  # what KillMode= left
            self._handle.kill(9, True)
            self.after(SHIM_RETRY_S, self._after_fence)
            return
        if self.service is not None and self.service.sub in (Sub.DEAD, Sub.FAILED):
            self._fenced = False
            restarts = self.service.restarts
            self.service = service.Service(self.spec)
            self.service.restarts = restarts
            self.report()
            self._settle()

    @handles(Reload)
    def _on_reload(self, _: Reload) -> None:
        inner = self.spec.container if self.spec is not None else None
        if inner is not None and inner.reload_signal and self._handle is not None:
            self._handle.kill(inner.reload_signal, False)
        elif self.service is not None:
            self._act(self.service.reload())

    @handles(Enter)
    def _on_enter(self, message: Enter) -> str:
        if self.service is None or self.service.active in ("inactive", "failed") or not self._connected:
            raise SessionError(f"{self.unit} does not run")
        return self.sessions.enter(message, self._enter)

    @handles(Exchange)
    def _on_exchange(self, message: Exchange) -> Any:
        return self.sessions.exchange(message)

    def _enter(self, name: str, argv: list[str], size: tuple[int, int] | None, on_news: Any) -> Any:
        """Begin an operator's command as one of the unit: its user, directory, limits, environment."""
        spec = self.spec
        assert spec is not None
        environment = self.environment(spec)
        if size is not None:
            environment.setdefault("TERM", "xterm-256color")
        rest: dict[str, Any] = {}
        if spec.container is None:
            rest = execution.arguments(spec, name, Command(tuple(argv)), False, self._group)
        else:
            environment.update(self._reached.marks)
        return self._handle.enter(name, argv, environment, size, on_news, **rest)

    @property
    def _group(self) -> str:
        return f"argosy/{self._here.id}/{self.unit}"

    def _leave(self) -> None:
        self._leaving = True
        if self.service is not None:
            self._act(self.service.stop())
        self._settle()

    def _settle(self) -> None:
        """Move towards what is wanted, if nothing is under way."""
        if not self._connected:
            return
        idle = self.service is None or self.service.sub in (Sub.DEAD, Sub.FAILED)
        if self._leaving:
            if idle:
                self._connected = False  # nothing is to be run in it any more
                self._handle.quit()  # ``lost`` follows
            return
        placement = self.placement
        assert placement is not None
        if idle and self._loaded_is_stale(placement):
            self._load(placement)
        other_fence = idle and self._fence_of_handle != self._is_fenced
        if other_fence or self._port is not self._reached:  # it was a process and is a container now, or the reverse
            self._connected = False
            self._handle.quit()  # ``lost`` follows, and then the other one is reached
            return
        if self.service is None:
            self.report()
            return
        if placement.launched:
            if idle and not self.service.wanted:
                self._request_start()
        else:
            if self.service.wanted or not idle:
                self._act(self.service.stop())
            self.report()

    def _loaded_is_stale(self, placement: Placement) -> bool:
        ran = (self._meta.get("hash"), self._meta.get("fence"), self._meta.get("asked", 0))
        wanted = (placement.hash, placement.fence, placement.restarts)
        return bool(self._meta) and ran != wanted

    def _request_start(self) -> None:
        """Start only once the brain knows that it runs here."""
        if self._asking or not self._lease_held or self._fenced:
            return
        assert self.placement is not None
        self._asking = True
        fence = self.placement.fence

        def answered(allowed: Any, error: BaseException | None) -> None:
            self._asking = False
            current = self.placement is not None and self.placement.fence == fence
            if error is not None:
                self.after(0.5, self._settle)
            elif allowed and current:
                self._permitted = self._lease_held
                self._start()
            elif not current:
                self._settle()  # another placement came meanwhile

        self.ask_then(self._owner, MayStart(self.unit, fence), 6.0, answered)

    def _start(self) -> None:
        service_ = self.service
        if service_ is None or self.placement is None or self._leaving or not self._connected:
            return
        if not self.placement.launched or not self._lease_held:
            return
        if not self._empty:  # leftovers of another run: first they go
            self._handle.kill(9, True)
            self.after(0.2, self._settle)
            return
        if service_.spec.conditions:
            self._look_at_conditions(service_)
        else:
            self._problem = ""
            self._new_run()
            self._act(service_.start(self.now()))

    def _look_at_conditions(self, service_: service.Service) -> None:
        """Start it, unless a Condition passes it over or an Assert fails it."""
        if self._looking:
            return
        self._looking = True
        inbox, life = self.actor_inbox, self.actor_inbox.incarnation

        def decide(unmet: Condition | None) -> None:
            current = self.service is service_ and service_.sub in (Sub.DEAD, Sub.FAILED)
            wanted = self.placement is not None and self.placement.launched and not self._leaving
            self._looking = False
            if not current or not wanted or not self._connected or not self._permitted or service_.wanted:
                self._settle()
                return
            self._problem = f"{unmet} does not hold on this machine" if unmet is not None else ""
            self._new_run()
            if unmet is not None:
                self._act(service_.skip("assert" if unmet.is_assert else "success"))
            else:
                self._act(service_.start(self.now()))

        def done(unmet: Condition | None) -> None:
            if inbox.incarnation == life and not inbox.closed:
                inbox.post(lambda: decide(unmet))

        host = (self._here.name, self._here.name.split(".")[0], self._here.id)
        self.ports.processes.unmet(service_.spec.conditions, host, done)

    def _new_run(self) -> None:
        """Choose ports and an invocation id, and leave them with the shim."""
        assert self.spec is not None
        assert self.placement is not None
        ports = {}
        for name, number in self.spec.ports:
            ports[name] = number or self.ports.processes.free_port()
        self._meta = {
            "hash": self.placement.hash,
            "fence": self.placement.fence,
            "asked": self.placement.restarts,
            "ports": ports,
            "invocation": self.ports.rng.token(),
            "restarts": self.service.restarts if self.service is not None else 0,
            "began": round(self.ports.clock.wall(), 3),
            "runs": self._meta.get("runs", []),
        }
        self._handle.remember(self._meta)

    # -- what the shim says -----------------------------------------------------------------------

    def _on_event(self, event: dict[str, Any]) -> None:
        kind = event["ev"]
        if self.sessions.hear(event):
            return
        if self.spec is not None and self.spec.container is not None and self.spec.type == "oneshot":
            event = _as_step(event)
        if kind == "hello":
            self._on_hello(event)
        elif kind == "lost":
            self._on_lost(event)
        elif kind == "started":
            self._empty = False
            if event["main"]:
                self._main_pid = event["pid"]
                self._container = event.get("container", "")
                if self.service is not None:
                    self._act(self.service.main_started())
            self.report()
        elif kind == "failed":
            self._problem = event["error"]
            self._ended(event["step"], event["main"], Exit(code=event.get("code", NOT_CREATED)))
        elif kind == "ended":
            self._fenced = self._fenced or bool(event.get("fenced"))
            self._ended(event["step"], event["main"], _exit_of(event), bool(event.get("left")))
        elif kind == "main":
            self._on_main(event)
        elif kind == "notify":
            if self.service is not None:
                self._act(self.service.notified(event["said"]))
        elif kind in ("pulling", "pulled", "waiting", "health") and self.service is not None:
            self._on_engine(kind, event)
        elif kind == "empty":
            self._empty = True
            self._main_pid = 0
            self._fenced = self._fenced or bool(event.get("fenced"))
            if self.service is not None:
                if self._fenced:
                    self.service.wanted = False
                self._act(self.service.group_empty())
            if self._fenced and self.service is not None and self.service.sub is Sub.EXITED:
                self._act(self.service.stop())
            if self._fenced:
                self.after(SHIM_RETRY_S, self._after_fence)
            self._settle()

    def _ended(self, step: str, main: bool, how: Exit, left: bool = False) -> None:
        if main:
            self._main_pid = 0
        if self.service is None:
            return
        if self._fenced:
            self.service.wanted = False  # the lease ran out: no restart on this machine's own account
            self.after(SHIM_RETRY_S, self._after_fence)
        self._act(self.service.ended(step, main, how, left))
        self._settle()

    def _refused(self, action: Run) -> None:
        if self.service is not None:
            self._act(self.service.refused(action.step, action.main, Exit(code=203)))
            self._settle()

    def _on_engine(self, kind: str, event: dict[str, Any]) -> None:
        """What only a container has: an image that is fetched first, and a health of its own."""
        assert self.service is not None and self.spec is not None and self.spec.container is not None
        if kind == "waiting":
            self._problem = event["error"]
        elif kind == "pulling":  # however long it takes, it is no part of the start
            self._arm(Disarm())
            self.service.status = f"fetching the image {event['image']}"
        elif kind == "pulled":
            self._arm(Arm(self.spec.timeout_start_sec))
            self.service.status = ""
        else:
            well = event["status"] == "healthy"
            self.health.hear(well, event.get("detail", "") or event["status"])
            if well and self.spec.container.notify_healthy:
                self._act(self.service.notified({"READY": "1"}))
            if event["status"] == "unhealthy" and self.service.sub in (Sub.RUNNING, Sub.RELOAD):
                self._on_unhealthy(self.spec.container.health_on_failure)
        self.report()

    def _on_unhealthy(self, action: str) -> None:
        if action in ("kill", "restart"):  # what comes of it is for Restart= to say
            self._handle.kill(9, True)
        elif action == "stop" and self.service is not None:
            self._act(self.service.end())

    def _on_main(self, event: dict[str, Any]) -> None:
        """What was found of the main process of a forking service."""
        if self.service is None or self.spec is None or self.service.sub is not Sub.START:
            return
        if event["found"]:
            self._act(self.service.main_found(known=True, running=True))
        elif self.spec.pid_file and not self._empty:
            self._problem = event["error"]  # it may still come, until the start takes too long
            self.after(PID_FILE_S, self._find_main)
        elif event.get("running") and self._guesses < GUESSES_MAX:
            self._guesses += 1  # what it went through to become a daemon may not be gone yet
            self.after(PID_FILE_S, self._find_main)
        else:
            running = bool(event.get("running"))
            self._meta["unknown_main"] = running
            self._handle.remember(self._meta)
            self._act(self.service.main_found(known=False, running=running))

    def _find_main(self) -> None:
        if self.spec is not None and self.service is not None and self.service.sub is Sub.START:
            self._handle.find_main(self.spec.pid_file, self.spec.guess_main_pid)

    def _on_hello(self, event: dict[str, Any]) -> None:
        """The shim says what it knows: for the first time, or over a new link."""
        self._connected = True
        self.sessions.linked(event)
        self._fence_of_handle = event.get("fenced", self._fence_of_handle)
        self._empty = bool(event["empty"])
        again, self._greeted = self._greeted, True
        if self._meta and not event["meta"]:
            self._handle.remember(self._meta)  # a new shim: the old one died
        else:
            self._meta = event["meta"]
        main = [int(pid) for pid, known in event["processes"].items() if known["main"]]
        placement = self.placement
        same = (
            placement is not None
            and self._meta.get("hash") == placement.hash
            and self._meta.get("fence") == placement.fence
            and self._meta.get("asked", 0) == placement.restarts
        )
        at_rest = self.service is None or self.service.sub in _AT_REST
        if again:
            self._problem = ""
        if again and not at_rest:
            self._begin_anew()  # what happened meanwhile is told as to a new life
        if again and at_rest:
            pass  # nothing can have been missed
        elif self.service is not None and self.service.sub is Sub.DEAD and same:
            self.service.restarts = int(self._meta.get("restarts", 0))
            self._resume(main, event)
        elif not self._empty:
            self._handle.kill(9, True)
        self._after_fence()
        self._settle()

    def _begin_anew(self) -> None:
        assert self.service is not None
        for timer, _ in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._main_pid = 0
        self.service = service.Service(self.service.spec)

    def _resume(self, main: list[int], event: dict[str, Any]) -> None:
        """Go on with what an earlier life of this actor, or of the host process, had started."""
        assert self.service is not None and self.spec is not None
        ends = event.get("ends", {})
        how = ends.get("main")
        starting = [s for s in ends if s.startswith(("condition.", "start-pre.", "start."))][-1:]
        under_way = [
            known["step"] for known in event["processes"].values()
            if not known["main"] and known["step"].startswith(("condition.", "start-pre.", "start."))
        ]  # fmt: skip
        said = event.get("said", {})
        self._container = event["me"].get("container", "")
        self.service.status = said.get("STATUS", "")
        stopping = self._meta.get("stopping")
        if self._meta.get("finished"):
            known = Exit(*self._meta["exit"]) if self._meta.get("exit") else None
            actions = self.service.settled(self._meta["finished"], known)
            self._seen_sub = self.service.sub  # since then, not since now
            self.since = self._meta.get("ended_at", self.since)
            self._act(actions)
        elif stopping and self._empty:
            if stopping["wanted"]:  # else it was stopped, and is at rest
                cleaned = stopping.get("cleaned") or any(step.startswith("stop-post.") for step in ends)
                known = Exit(*stopping["exit"]) if stopping.get("exit") else _exit_of(how) if how else None
                self._act(self.service.resume_stopped(stopping["result"], known, bool(cleaned)))
        elif stopping:
            self._main_pid = main[0] if main else 0
            self._act(self.service.resume_stop(stopping["wanted"], stopping["result"], bool(main)))
        elif main and self.spec.notifies and said.get("READY") != "1":
            self._main_pid = main[0]
            self._act(self.service.resume_main())
        elif main or (self._meta.get("unknown_main") and not self._empty):
            self._main_pid = main[0] if main else 0
            self.health.unchecked = self.spec.health is not None
            told = service.seconds_of(said.get("WATCHDOG_USEC", ""))
            self.service.watchdog_sec = told or self.spec.watchdog_sec
            self._act(self.service.adopt(True, known=bool(main)))
        elif self._meta.get("exited") and self.spec.remain_after_exit:
            self._act(self.service.adopt(False))
        elif how is not None and not how.get("fenced"):
            self._act(self.service.adopt(True))
            self._ended("", True, _exit_of(how))
        elif under_way:
            self._act(self.service.resume(under_way[0]))
        elif starting and how is None and not ends[starting[0]].get("fenced"):
            self._act(self.service.resume(starting[0]))
            self._ended(starting[0], False, _exit_of(ends[starting[0]]))
        elif not self._empty:
            self._handle.kill(9, True)

    def _on_lost(self, event: dict[str, Any]) -> None:
        """The shim is gone, and its main process with it."""
        self.sessions.lost()
        self._connected = False
        if not event.get("gone", True):  # nobody knows what runs: it is looked at again
            self._problem = str(event.get("error", ""))
            self.report()
            self.after(SHIM_RETRY_S, self._reach)
            return
        self._greeted = False
        self._empty = True
        self._main_pid = 0
        if self._leaving:
            self._reached.forget(self.unit)
            self._owner.offer(Gone(self.unit))
            return
        self._problem = str(event.get("error", ""))
        if self.service is not None:
            self._act(self.service.lost())
        self.report()
        self.after(SHIM_RETRY_S, self._reach)

    # -- carrying out actions ---------------------------------------------------------------------

    def _act(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Run):
                self._run(action)
            elif isinstance(action, Kill):
                self.sessions.hang_up()
                if self._empty:
                    self.actor_inbox.post(self._already_empty)
                self._handle.kill(action.signal, action.whole)
            elif isinstance(action, (Arm, Disarm, Extend)):
                self._arm(action)
            elif isinstance(action, FindMain):
                self._guesses = 0
                self._find_main()
            elif isinstance(action, Changed):
                self._changed()

    def _already_empty(self) -> None:
        if self.service is not None and self._empty:
            self._act(self.service.group_empty())
            self._settle()

    def _arm(self, action: Arm | Disarm | Extend) -> None:
        timer, due = self._timers.get(action.kind, (None, 0.0))
        if isinstance(action, Extend) and (timer is None or due >= self.now() + action.seconds):
            return
        if timer is not None:
            timer.cancel()
            del self._timers[action.kind]
        if not isinstance(action, Disarm):
            kind = action.kind
            timer = self.after(action.seconds, lambda: self._timer_fired(kind))
            self._timers[kind] = (timer, self.now() + action.seconds)

    def _timer_fired(self, kind: str) -> None:
        self._timers.pop(kind, None)
        if kind != "state":
            if self.service is not None:
                self._act(self.service.timer(self.now(), kind))
                self._settle()
            return
        assert self.service is not None
        if self.service.sub is Sub.AUTO_RESTART and not self._may_restart():
            self._arm(Arm(0.5))
            return
        if self.service.sub is Sub.AUTO_RESTART:
            self._meta["restarts"] = self.service.restarts + 1
            self._meta["invocation"] = self.ports.rng.token()
            self._meta["began"] = round(self.ports.clock.wall(), 3)
            for note in ("stopping", "unknown_main"):
                self._meta.pop(note, None)
            self._handle.remember(self._meta)
        self._act(self.service.timer(self.now()))
        self._settle()

    def _may_restart(self) -> bool:
        """Whether the brain says that it runs here; asked again after a change of leases."""
        if not self._connected or self._fenced or not self._lease_held or self.placement is None:
            return False
        if not self._permitted and not self._asking:
            self._asking = True
            fence = self.placement.fence

            def answered(allowed: Any, error: BaseException | None) -> None:
                self._asking = False
                current = self.placement is not None and self.placement.fence == fence
                self._permitted = bool(error is None and allowed and current and self._lease_held)
                self._settle()  # somebody may have asked for a start meanwhile

            self.ask_then(self._owner, MayStart(self.unit, fence), 6.0, answered)
        return self._permitted

    def _run(self, action: Run) -> None:
        spec = self.spec
        assert spec is not None
        if spec.container is not None:
            self._run_container(spec, spec.container, action)
            return
        try:
            environment = self.environment(spec)
            environment.update(self._told(action.step))
            argv = action.command.expand(environment)
        except (OSError, ValueError) as error:
            self._problem = str(error)
            self.actor_inbox.post(lambda: self._refused(action))
            return
        rest = execution.arguments(spec, action.step, action.command, action.main, self._group)
        try:
            self._handle.run(action.step, argv, environment, action.main, **rest)
        except ValueError as error:
            self._problem = str(error)
            self.actor_inbox.post(lambda: self._refused(action))

    def end_session(self, name: str) -> None:
        """End what an operator's session runs in the shim."""
        if self._handle is not None:
            self._handle.end_session(name)

    def _run_container(self, spec: UnitSpec, inner: container.ContainerSpec, action: Run) -> None:
        """Run it, or a command inside it; what it needs of the brain's secrets is read before."""
        wanted = container.secret_names(inner) if action.step.startswith("start.") else []
        if not wanted:
            self._run_in_engine(spec, inner, action, {})
            return
        meta, service_ = self._meta, self.service

        def is_meant() -> bool:
            same = self._meta.get("invocation") == meta.get("invocation") and self.service is service_
            return same and service_ is not None and service_.sub is Sub.START

        def have(kept: Any, error: BaseException | None) -> None:
            if not is_meant():
                return  # it was stopped meanwhile
            if error is not None:  # no quorum for now: the start waits, as long as TimeoutStartSec= lets it
                self._problem = f"the brain did not give its secrets yet: {error}"
                self.after(SECRETS_AGAIN_S, lambda: self._run_container(spec, inner, action) if is_meant() else None)
            else:
                self._problem = ""
                self._run_in_engine(spec, inner, action, kept)

        self.ask_then(self._owner, ReadSecrets(tuple(wanted)), 10.0, have)

    def _run_in_engine(
        self, spec: UnitSpec, inner: container.ContainerSpec, action: Run, kept: dict[str, bytes]
    ) -> None:
        assert self.placement is not None
        try:
            environment = self.environment(spec)
            environment.update(self._read_files(inner.environment_files))
            environment.update(self._reached.marks)
            labels = {"argosy.generation": str(self.placement.fence)}
            ports = self._meta.get("ports", {})
            made = container.run_arguments(inner, self.unit, environment, labels, ports, kept)
            argv = action.command.expand(environment)
        except (OSError, ValueError) as error:
            self._problem = str(error)
            self.actor_inbox.post(lambda: self._ended(action.step, action.main, Exit(code=NOT_CREATED)))
            return
        if action.step.startswith("start."):
            self._handle.run(action.step, [], environment, True, container=made)
        else:
            self._handle.run(action.step, argv, environment, False, inside=True)

    def _read_files(self, files: list[tuple[str, bool]]) -> dict[str, str]:
        """Files of variables, later ones over earlier ones; raises ``OSError``."""
        out: dict[str, str] = {}
        for path, optional in files:
            try:
                out.update(self.ports.processes.read_environment(path))
            except OSError:
                if not optional:
                    raise
        return out

    def _told(self, step: str) -> dict[str, str]:
        """What single steps are told beside the rest (systemd.exec(5))."""
        assert self.service is not None
        if step.startswith(("stop.", "stop-post.")):
            how = self.service.last_exit
            return {"SERVICE_RESULT": self.service.result, **(how.variables if how is not None else {})}
        if self.service.watchdog_sec and step.startswith("start."):
            return {"WATCHDOG_USEC": str(round(self.service.watchdog_sec * 1e6))}
        return {}

    def environment(self, spec: UnitSpec) -> dict[str, str]:
        """systemd's environment for a service, and what Argosy adds (docs/units.md)."""
        assert self.placement is not None
        processes, here = self.ports.processes, self._here
        endpoint = here.container_endpoint if spec.container is not None else ""
        out = {
            **execution.variables(spec),
            "INVOCATION_ID": str(self._meta.get("invocation", "")),
            "ARGOSY_MACHINE": here.name,
            "ARGOSY_UNIT": self.unit,
            "ARGOSY_ENDPOINT": endpoint or here.endpoint,
            "ARGOSY_FENCE": str(self.placement.fence),
        }
        for position, (name, port) in enumerate(self._meta.get("ports", {}).items()):
            out[f"PORT_{name.upper()}"] = str(port)
            if position == 0:
                out["PORT"] = str(port)
        passed = {name: processes.variable(name) for name in spec.pass_environment}
        out.update({name: value for name, value in passed.items() if value is not None})
        out.update(spec.environment)
        out.update(self._read_files(spec.environment_files))
        for word in spec.unset_environment:
            name, equals, value = word.partition("=")
            if not equals or out.get(name) == value:
                out.pop(name, None)
        if self._main_pid:
            out["MAINPID"] = str(self._main_pid)
        return out

    def _changed(self) -> None:
        assert self.service is not None
        if self.service.sub is not self._seen_sub:
            self._seen_sub = self.service.sub
            self.since = self.ports.clock.wall()
        self._take_notes(self.service)
        if self.service.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART) and self._connected:
            folders, files = execution.leftovers(self.service.spec, self.service.sub is Sub.AUTO_RESTART)
            if folders or files or self.service.spec.resources.needs_group:
                self._handle.tidy(folders, files)
        self.health.follow(self.service.sub in (Sub.RUNNING, Sub.RELOAD))
        self.report()

    def _take_notes(self, service_: service.Service) -> None:
        """Leave with the shim what a next life of this actor must know, so that nothing is done twice."""
        notes: dict[str, Any] = {}
        how, stopping = service_.last_exit, self._meta.get("stopping")
        ended = [how.code, how.signal] if how is not None else None
        outcome = {"wanted": service_.wanted, "result": service_.result}
        if service_.sub is Sub.EXITED:
            notes["exited"] = True
        if service_.sub in (Sub.DEAD, Sub.FAILED) and service_.wanted:  # by itself: only somebody else starts it again
            notes |= {"finished": service_.result, "exit": ended, "ended_at": self.since}
        if service_.sub in _ENDING and not stopping:  # ExecStop is not run again
            notes["stopping"] = outcome
        elif service_.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART) and stopping and not stopping.get("cleaned"):
            notes["stopping"] = {**outcome, "exit": ended, "cleaned": True}  # nor ExecStopPost
        if service_.sub in (Sub.DEAD, Sub.FAILED, Sub.AUTO_RESTART) and self._meta.get("began"):
            run = [self._meta["began"], round(self.since, 3), service_.result, str(how) if how is not None else ""]
            notes |= {"began": 0, "runs": [*self._meta.get("runs", []), run][-RUNS_KEPT:]}
        if self._meta and any(self._meta.get(name) != note for name, note in notes.items()):
            self._meta |= notes
            self._handle.remember(self._meta)

    # -- reporting ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What is true of the unit here, in systemd's words."""
        service_ = self.service
        about = self._loaded  # not the placement: what stops is still what was before
        bad = service_ is None
        out = {
            "unit": self.unit,
            "load": "bad-setting" if bad else "loaded",
            "active": "failed" if service_ is None else service_.active,
            "sub": "failed" if service_ is None else service_.sub.value,
            "result": "resources" if service_ is None else service_.result,
            "health": self.health.status,
            "restarts": 0 if service_ is None else service_.restarts,
            "hash": about.hash if about is not None else "",
            "fence": about.fence if about is not None else 0,
            "asked": about.restarts if about is not None else 0,
            "pid": self._main_pid,
            "container": self._container if self._main_pid else "",
            "ports": self._meta.get("ports", {}),
            "since": round(self.since, 3),
        }
        if service_ is not None and service_.last_exit is not None:
            out["last_exit"] = str(service_.last_exit)
        if service_ is not None and service_.status:
            out["status"] = service_.status
        if self._meta.get("runs"):
            out["runs"] = self._meta["runs"]
        if self._problem:
            out["problem"] = self._problem
        if self.health.status == "failing":
            out["health_detail"] = self.health.detail
        return out

    def report(self) -> None:
        """Tell the machine what is true, if that is news."""
        awaited = self.service is not None and self.service.main_running and self.service.main_known
        if awaited and not self._main_pid:
            return  # its process was asked for; the shim's answer is what is true
        if self.health.unchecked:
            return
        announce: dict[str, str] = {}
        spec = self.spec
        up = self.service is not None and self.service.sub in (Sub.RUNNING, Sub.RELOAD)
        if spec is not None and spec.announce and up and self.health.status != "failing":
            ports = self._meta.get("ports", {})
            first = next(iter(ports.values()), None)
            if first is not None:
                name = spec.name.instance or spec.name.prefix
                announce[f"{spec.announce}/{name}"] = f"{self._here.host}:{first}"
        state = self.state()
        fresh = ({k: v for k, v in state.items() if k not in ("since", "status")}, announce)
        said = state.get("status", "")
        if fresh == self._last_report:
            if said != self._said:
                self._report_word()
            return
        self._last_report = fresh
        self._said, self._said_at = said, self.now()
        self._owner.offer(Report(self.unit, state, announce))

    def _report_word(self) -> None:
        """Every report is a write in the brain, and a service may speak often: not with each word."""
        wait = self._said_at + STATUS_S_MIN - self.now()
        if wait <= 0:
            self._last_report = None
            self.report()
        elif self._word_timer is None:
            self._word_timer = self.after(wait, self._word_due)

    def _word_due(self) -> None:
        self._word_timer = None
        self.report()


def _exit_of(event: dict[str, Any]) -> Exit:
    """How a process ended, as its shim says."""
    return Exit(event["code"], event["signal"], bool(event.get("dumped")), bool(event.get("oom")))


def _as_step(event: dict[str, Any]) -> dict[str, Any]:
    """What a container that runs once says, as the service knows it: a step, not a main process."""
    if event["ev"] == "hello":
        processes = {pid: {**known, "main": False} for pid, known in event["processes"].items()}
        ends = {end["step"]: {**end, "main": False} for end in event["ends"].values() if "step" in end}
        return {**event, "processes": processes, "ends": ends}
    return {**event, "main": False} if "main" in event else event
