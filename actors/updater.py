"""The updater: how this machine gets its next version, without anyone noticing.

What to do is decided by ``fleet/updating.py`` from facts; this actor gathers them, does the one
thing that is to be done, and tells the brain where it is.  What it needs to come back is in the
boot record, in the brain (lock, drain order), or asked of the outside world again.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from brain import locks
from brain.store import Item
from fleet import release, update_policy, updating, waves
from fleet.release import ReleaseError, Statement
from fleet.updating import Decision, Facts, State
from kernel.actor import handles
from kernel.ports import Ports

from .brain_client import (
    ALIVE,
    LOCKS,
    ORDERS,
    PLACES,
    RELEASES,
    ROLLOUTS_OF_RELEASES,
    STATES,
    TRUST,
    UPDATE_POLICY,
    UPDATES,
    BrainActor,
)
from .command import Command
from .lock_manager import Acquire, Release, SetPhase
from .machine import Identity
from .picture import metadata, orders
from .raft_messages import Status, TransferLeadership

logger = logging.getLogger("argosy.updater")

#: Seconds between two looks.
LOOK_S = 0.5
#: Chunks that are fetched with one question, and seconds that it may take.
FETCH_CHUNKS, FETCH_S = 8, 20.0
#: Seconds to wait in the queue of the lock at a time; it is asked for again.
WAIT_S = 3600.0
#: Seconds until a drain that did not end is tried again, and until a fetch is.
DRAIN_AGAIN_S, FETCH_AGAIN_S = 300.0, 5.0
#: Seconds for one of an image's checks, or a blocking command.
CHECK_S = 10.0
#: Entries of the log of which a peer may lack some and still be well.
BEHIND_MAX = 1000
#: Results that a machine remembers to have had.
RESULTS_MAX = 10
#: How versions are found not to work: by the launcher, or by this actor.
FOUND_BAD = ("damaged", "crashed", "hung", "unwell")
#: Seconds after which the quorum is asked again whether it bears a reboot.
NO_QUORUM_S = 15.0
#: With what the reason begins when another than this actor holds the lock for this machine.
FOREIGN = "the lock is held for this machine by"
#: States in which a machine may be down for an update.
_AWAY = (State.DRAINING, State.REBOOTING, State.TRIAL)
#: Keys of a machine's metadata: the channel that it follows, and the group of the reboot lock; and what they are without.
CHANNEL_KEY, GROUP_KEY = "update-channel", "reboot-group"
CHANNEL, GROUP = "stable", "default"
#: The mark of a drain that is the updater's.
OWN = "update"


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """Tell: the boot record was changed by an operator."""


def trust_key(version: int) -> bytes:
    """Where the keys of one version are kept, for machines that were away when they were given."""
    return TRUST + b"/%08d" % version


class Updater(BrainActor):
    """See the module docstring.  Without slots a machine is updated by other means, and this does nothing."""

    def __init__(
        self, identity: Identity, ports: Ports, raft_ref: Any, router: Any, product: str = "argosy"
    ) -> None:
        super().__init__(raft_ref)
        self.identity = identity
        self._ports = ports
        self._router = router
        self._product = product
        self._group = GROUP  # of the lock; stays while it is held or waited for
        self._pictures: dict[bytes, Any] = {}
        self._record: Any = None
        self._statements: dict[tuple[bytes, int], Any] = {}
        self._trust: Any = None
        self._no_trust = ""  # why the keys that were trusted are not known any more
        self._busy = ""  # what is under way that takes long
        self._missing: list[str] | None = None
        self._staged = ""  # the manifest that lies verified in the other slot
        self._progress = ""
        self._again_at = 0.0
        self._queued = False
        self._saying = False
        self._trial_since = 0.0
        self._drained_since = 0.0
        self._well_since: float | None = None
        self._unwell = "it has just started"
        self._checking = False
        self._blocked = ""
        self._leads = False
        self._source = 0
        self._again_fetch = 0.0  # Unix time before which nothing is fetched
        self._no_quorum = ""  # why no reboot is borne now
        self._blocked_for: list[tuple[str, str]] = []  # the checks that said so
        self._check_began = 0.0
        self._well_at = 0.0  # when the last check that found it well began
        self._refused_trust = 0  # the revision of keys that were not accepted, which is said once
        self.decision = Decision(State.IDLE, "it has just started")

    def on_start(self) -> None:
        """Follow what is published and ordered; look from time to time."""
        if self._ports.slots is None:
            return
        mine = self.identity.id.encode()
        prefixes = (RELEASES, ROLLOUTS_OF_RELEASES, TRUST, UPDATE_POLICY, UPDATES, ALIVE,
                    ORDERS + mine, PLACES + mine + b"/", STATES + mine + b"/", LOCKS, locks.SEMAPHORES)  # fmt: skip
        for prefix in prefixes:
            self._pictures[prefix] = self.mirror(prefix, lambda items: None, lambda *_: None)
        self._trial_since = self._drained_since = self.now()
        self.every(LOOK_S, self._look)
        self._read_record()

    @property
    def has_slots(self) -> bool:
        """Whether this machine updates itself."""
        return self._ports.slots is not None

    @property
    def bad_versions(self) -> dict[str, int]:
        """Versions that did not work here, as the boot record has them, by how that was found."""
        found = dict.fromkeys(FOUND_BAD, 0)
        for entry in self._record.bad.values() if self._record is not None else ():
            found[how if (how := entry.get("found")) in found else "unwell"] += 1
        return found

    def _wish(self, key: str) -> str:
        """What this machine's metadata say, an operator's over its own."""
        order = orders(self._items(ORDERS + self.identity.id.encode()).get(ORDERS + self.identity.id.encode()))
        return metadata({"metadata": self.identity.metadata}, order).get(key, "")

    @property
    def _channel(self) -> str:
        return self._wish(CHANNEL_KEY) or CHANNEL

    def _settle_group(self) -> None:
        """Take the group of the lock that the metadata name, unless one is held or waited for: that is ended first."""
        held = [key[len(LOCKS) :].decode() for key, item in self._items(LOCKS).items() if self._is_mine(item)]
        wanted = self._wish(GROUP_KEY) or GROUP
        if held:
            self._group = held[0]
        elif not self._queued and not self._busy:
            self._group = wanted

    def _is_mine(self, item: Item) -> bool:
        holder = json.loads(item.value).get("holders", {}).get(self.identity.name)
        return holder is not None and holder.get("by") == "updater"

    def _misnamed(self) -> str:
        """What is wrong with the channel or the group that the metadata name."""
        try:
            locks.check_group(self._wish(GROUP_KEY) or GROUP)
        except locks.LockError as error:
            return f"metadata {GROUP_KEY}: {error}"
        return "" if release.is_channel(self._channel) else f"metadata {CHANNEL_KEY}: {self._channel!r} is no channel: {release.CHANNEL_FORM}"

    @handles(ReadRecord)
    def _on_read_record(self, _: ReadRecord) -> None:
        if self.has_slots:
            self._read_record()

    # -- facts -----------------------------------------------------------------------------------

    def _call(self, work: Callable[[Any], Any], then: Callable[[Any, BaseException | None], None]) -> None:
        """Do something with the slots; ``then`` in this actor's turn."""
        inbox, life = self.actor_inbox, self.actor_inbox.incarnation

        def done(value: Any, error: BaseException | None) -> None:
            if inbox.incarnation == life and not inbox.closed:
                inbox.post(lambda: then(value, error))

        self._ports.slots.call(work, done)

    def _read_record(self) -> None:
        running = self._ports.slots.running

        def have(value: Any, error: BaseException | None) -> None:
            if error is not None:
                logger.error("the boot record cannot be read: %s", error)
                self.after(FETCH_AGAIN_S, self._read_record)
            else:
                self._record, self._trust, self._no_trust = value
                self._statements.clear()
                self._look()

        def read(slots: Any) -> Any:
            record = slots.record()
            if running and record.trial and record.trial != running:  # its start was ordered, and did not come about
                slots.call_off()
                record = slots.record()
            try:
                return record, slots.trust(), ""
            except ReleaseError as refused:
                return record, None, str(refused)

        self._call(read, have)

    def _items(self, prefix: bytes) -> dict[bytes, Item]:
        items: dict[bytes, Item] = self._pictures[prefix].items
        return items

    def _one(self, prefix: bytes, key: bytes = b"") -> Any:
        item = self._items(prefix).get(key or prefix)
        return json.loads(item.value) if item is not None else None

    def _look(self) -> None:
        if self._record is None or not all(picture.ready for picture in self._pictures.values()):
            return
        self._pin_trust()
        self._settle_group()
        self._check()
        facts = self._facts()
        self.decision = updating.decide(facts)
        self._say()
        self._do(self.decision, facts)

    def _facts(self) -> Facts:
        now = self._ports.clock.wall()
        record, rules = self._record, self._policy()
        target, refused = self._target()
        if not self._ports.slots.running:
            target, refused = None, "this host was not started by argosy-boot, the launcher of slots: nothing would switch them"
        order = orders(self._items(ORDERS + self.identity.id.encode()).get(ORDERS + self.identity.id.encode()))
        drain = order["drain"]
        token, lock = self._lock()
        foreign = lock if lock.startswith(FOREIGN) else ""
        left = self._left()
        if left or drain is None:
            self._drained_since = self._drained_since if left and drain is not None else self.now()
        last = record.last or {}
        well_for = self._well_at - self._well_since if self._well_since is not None else 0.0
        facts = Facts(
            now, target.version if target is not None else "", refused, progress=self._progress,
            staged=target is not None and self._staged == target.manifest, verifying=self._busy == "write",
            window=rules.closed(now), blocker=self._blocker(rules), foreign=foreign, no_quorum=self._no_quorum, token=token, lock=lock,
            draining=drain is not None, left=tuple(left), drained_for=self.now() - self._drained_since,
            drain_limit=rules.drain_limit + 30.0, again_at=self._again_at,
            held_by_operator=drain is not None and drain.get("by") != OWN,
            trial=bool(record.trial) and record.trial == self._ports.slots.running, trial_for=self.now() - self._trial_since, trial_limit=rules.trial_limit,
            unwell=self._unwell, well_for=well_for, commit_after=rules.commit_after,
            returning=bool(last) and not last["returned"], leads=self._leads,
        )  # fmt: skip
        if target is not None:
            permit, halted = self._permit(target, now)
            facts = replace(facts, permit=permit, halted=halted)
        return facts

    def _policy(self) -> update_policy.Policy:
        return update_policy.policy(self._one(UPDATE_POLICY) or {})

    def _pin_trust(self) -> None:
        """The keys that an operator gave first are kept on this disk; later ones must be signed by them."""
        item = self._items(TRUST).get(TRUST)
        if item is None or self._busy or self._no_trust:
            return
        try:
            seen = self._trust
            if seen is None:
                seen = release.trust(json.loads(item.value)["signed"])
            last = release.trust(json.loads(item.value)["signed"]).version
            while seen.version < last:  # step by step: each is signed by those before it
                step = self._items(TRUST).get(trust_key(seen.version + 1), item)
                seen = release.rotate(seen, json.loads(step.value))
        except ReleaseError as error:
            if self._refused_trust != item.mod:
                logger.error("the keys that are published are not accepted: %s", error)
            self._refused_trust = item.mod
            return
        if seen == self._trust:
            return
        self._trust = seen
        self._statements.clear()
        self._call(lambda slots: slots.keep_trust(seen), lambda value, error: None if error is None else logger.error("the keys were not kept: %s", error))

    def _installed(self) -> int:
        return int(self._record.slots.get(self._ports.slots.running, {}).get("sequence", 0))

    def _target(self) -> tuple[Statement | None, str]:
        """The release that this machine is to have next, and why it gets none.

        The highest one that the rollout names or that leads to it: a floor is never skipped.
        """
        if misnamed := self._misnamed():
            return None, misnamed
        rollout = self._one(ROLLOUTS_OF_RELEASES, ROLLOUTS_OF_RELEASES + self._channel.encode())
        if rollout is None:
            return None, ""
        if self._no_trust:
            return None, self._no_trust
        installed = self._installed()
        mine = RELEASES + self._channel.encode() + b"/"
        for key, item in sorted(self._items(RELEASES).items(), reverse=True):
            if not key.startswith(mine) or int(key.rpartition(b"/")[2]) > rollout["sequence"]:
                continue
            try:
                made = self._accepted(key, item, installed)
            except ReleaseError as error:
                if error.code == "floor":
                    continue  # another one leads to it
                return None, "" if error.code == "downgrade" else f"{error.code}: {error}"
            if made.sequence <= installed:
                return None, ""
            if made.manifest in self._record.bad:
                return None, f"version {made.version} did not work here: {self._record.bad[made.manifest]['reason']}"
            return made, ""
        return None, f"no release that is offered leads from here to version {rollout['version']}"

    def _accepted(self, key: bytes, item: Item, installed: int) -> Statement:
        known = self._statements.get((key, item.mod))
        if known is None:
            envelope = json.loads(item.value)
            try:
                release.check_signatures(envelope, self._trust)
                known = release.statement(envelope["signed"])
            except ReleaseError as error:
                known = error
            self._statements = {**(self._statements if len(self._statements) < 200 else {}), (key, item.mod): known}
        if isinstance(known, ReleaseError):
            raise known
        release.check_statement(known, self._product, installed, self._ports.clock.wall())
        return known

    def _lock(self) -> tuple[int, str]:
        """The token that this machine holds, and else what it waits for."""
        items = {**self._items(locks.SEMAPHORES), **self._items(LOCKS)}
        now_ms = int(self._ports.clock.wall() * 1000)
        state = locks.current(items.get, LOCKS + self._group.encode(), self._group, now_ms)
        mine = state["holders"].get(self.identity.name)
        if mine is not None and mine.get("by") == "updater":
            return int(mine["token"]), ""
        if mine is not None:
            return 0, f"{FOREIGN} {mine.get('by') or 'somebody else'}: {mine['reason']}"
        queue = [entry["machine"] for entry in state["queue"]]
        if self.identity.name not in queue:
            return 0, ""
        held = ", ".join(sorted(state["holders"])) or "nobody"
        paused = "" if state["max"] else " (max is 0: paused)"
        return 0, f"{queue.index(self.identity.name) + 1}. in the queue of the lock; held by {held}{paused}"

    def _left(self) -> list[str]:
        mine = self.identity.id.encode() + b"/"
        keys = [*self._items(PLACES + mine), *self._items(STATES + mine)]
        return sorted({key.rpartition(b"/")[2].decode() for key in keys})

    def _blocker(self, rules: update_policy.Policy) -> str:
        for key, item in self._items(STATES + self.identity.id.encode() + b"/").items():
            unit = key.rpartition(b"/")[2].decode()
            if any(fnmatch.fnmatchcase(unit, pattern) for pattern in rules.block_units):
                if json.loads(item.value)["active"] in ("active", "activating", "reloading", "deactivating"):
                    return f"{unit} runs here"
        return self._blocked if rules.blockers() == self._blocked_for else "what may forbid it was not looked at yet"

    def _permit(self, target: Statement, now: float) -> tuple[str, str]:
        """Why this machine has to wait for others, and why nobody goes any more."""
        rollout = self._one(ROLLOUTS_OF_RELEASES, ROLLOUTS_OF_RELEASES + self._channel.encode())
        if rollout["state"] == "halted":
            return "", f"the rollout was halted: {rollout.get('reason', '')}"
        if rollout["state"] == "paused":
            return "the rollout is paused", ""
        found = verdict_of(self._items(UPDATES), self._items(ALIVE), self._channel, rollout, target, now)
        return ("" if self.identity.id in found.permitted else found.reason), found.halted

    # -- whether this machine is well ---------------------------------------------------------------

    def _check(self) -> None:
        """The brain's peer has caught up, the lease is held, the image's checks pass, nothing forbids a reboot."""
        if self._checking:
            return
        self._checking = True
        self._check_began = self.now()

        def have(status: Any, error: BaseException | None) -> None:
            if error is not None:
                self._checked(f"the brain does not answer: {error}")
                return
            self._leads = status["leader"] == status["id"] and len(status["voters"]) > 1
            if not status["leader"]:
                self._checked("the brain has no leader")
            elif status["commit_index"] - status["applied_index"] > BEHIND_MAX:
                self._checked("the brain's peer has not caught up")
            elif ALIVE + self.identity.id.encode() not in self._items(ALIVE):
                self._checked("the machine's lease is not held")
            else:
                self._run_checks([("exec", command) for command in self._ports.slots.check_commands()], self._checked)

        self.ask_then(self.raft_ref, Status(), 6.0, have)

    def _run_checks(self, checks: list[tuple[str, str]], then: Callable[[str], None]) -> None:
        """One after another, (kind, target) each; ``then`` with what the first that fails says."""
        if not checks:
            then("")
            return
        inbox = self.actor_inbox
        (kind, target), *rest = checks

        def done(well: bool, detail: str) -> None:
            why = f"{target.rpartition('/')[2]}: {detail}" if kind == "exec" else f"logged in: {detail}" if kind == "users" else detail
            inbox.post(lambda: self._run_checks(rest, then) if well else then(why))

        self._ports.processes.probe(kind, target, {"PATH": "/usr/bin:/bin"}, CHECK_S, done)

    def _checked(self, unwell: str) -> None:
        if unwell:
            self._well_since = None
        else:
            self._well_at = self._check_began
            self._well_since = self._check_began if self._well_since is None else self._well_since
        self._unwell = unwell
        blockers = self._policy().blockers()

        def blocked(why: str) -> None:
            self._blocked, self._blocked_for, self._checking = why, blockers, False

        self._run_checks(blockers, blocked)

    # -- what is to be done ------------------------------------------------------------------------

    def _do(self, decision: Decision, facts: Facts) -> None:
        if not decision.do or self._busy:
            return
        work: dict[str, Callable[[Facts], None]] = {
            "stage": self._stage, "acquire": self._acquire, "leave-queue": self._leave_queue, "drain": self._drain,
            "give-up": self._give_up, "transfer": self._transfer, "reboot": self._reboot, "commit": self._commit,
            "roll-back": self._roll_back, "return": self._return,
        }  # fmt: skip
        work[decision.do](facts)

    def _begin(self, what: str) -> Callable[[Any, BaseException | None], None]:
        """One thing at a time; what is given back ends it."""
        self._busy = what

        def done(_: Any, error: BaseException | None) -> None:
            self._busy = ""
            if error is not None:
                logger.warning("%s: %s", what, error)

        return done

    def _acquire(self, _: Facts) -> None:
        if self._queued:
            return
        self._queued = True
        target = self._target()[0]
        reason = f"update to {target.version}" if target is not None else "update"

        def done(value: Any, error: BaseException | None) -> None:
            del value, error  # what came of it is seen in the lock's own status
            self._queued = False

        self._ask_lock(Acquire(self._group, self.identity.name, reason, WAIT_S, "updater"), done, WAIT_S + 10)

    def _ask_lock(self, message: Any, then: Callable[[Any, BaseException | None], None], seconds: float = 10.0) -> None:
        """Ask this host's lock manager; while it is being started again, the next look does."""
        manager = self.system.find("lock-manager")
        if manager is None:
            then(None, RuntimeError("the lock manager is being started again"))
        else:
            self.ask_then(manager, message, seconds, then)

    def _leave_queue(self, facts: Facts) -> None:
        if facts.lock:
            self._release(0)

    def _release(self, token: int, then: Callable[[Any, BaseException | None], None] | None = None) -> None:
        message = Release(self._group, self.identity.name, token, False, "updater")
        self._ask_lock(message, then or (lambda value, error: None))

    def _phase(self, facts: Facts, phase: str, seconds: float) -> None:
        message = SetPhase(self._group, self.identity.name, facts.token, phase, max(1, int(seconds)))
        self._ask_lock(message, lambda value, error: None)

    def _order(self, change: Callable[[dict[str, Any]], dict[str, Any]], then: Callable[[Any, BaseException | None], None],
               guards: list[Any] | None = None) -> None:  # fmt: skip
        key = ORDERS + self.identity.id.encode()
        item = self._items(key).get(key)
        value = release.canonical(change(orders(item)))
        guard = [[key, "mod", "=", item.mod if item is not None else 0], *(guards or [])]

        def done(result: Any, error: BaseException | None) -> None:
            if error is None and not result["succeeded"]:
                error = RuntimeError("an operator changes the machine's orders, or its lock, right now")
            then(result, error)

        self.propose(["txn", guard, [["put", key, value]], []], done)

    def _drain(self, facts: Facts) -> None:
        limit = self._policy().drain_limit
        drain = {
            "since": round(facts.now, 3), "deadline": round(facts.now + limit, 3), "reason": f"update to {facts.target}", "by": OWN,
        }  # fmt: skip
        self._phase(facts, "draining", limit + 60)
        self._order(lambda order: {**order, "drain": drain}, self._begin("drain"))

    def _give_up(self, facts: Facts) -> None:
        """Units may come back first, then the lock goes; a drain that did not end is not tried at once again."""
        if facts.draining and facts.left:
            self._again_at = facts.now + DRAIN_AGAIN_S
        self._return(facts)

    def _transfer(self, _: Facts) -> None:
        self.raft_ref.tell(TransferLeadership())

    def _reboot(self, facts: Facts) -> None:
        target = self._target()[0]
        if target is None:
            return
        done = self._begin("reboot")

        def told(value: Any, error: BaseException | None) -> None:
            refused = value.get("quorum", "") if error is None and isinstance(value, dict) else ""
            if error is not None or refused:
                self._no_quorum = refused
                self.after(NO_QUORUM_S, self._ask_quorum_again)
                done(None, error or RuntimeError(refused))
                return
            self._with_lock(value["revision"], order)

        def order(guards: list[Any] | None) -> None:
            if guards is None:
                done(None, RuntimeError("the lock is not ours any more"))
            else:
                self._order(lambda known: {**known, "rebooting": facts.target}, ordered, guards)

        def ordered(_: Any, error: BaseException | None) -> None:
            if error is not None:
                done(None, error)
                return
            self._call(lambda slots: slots.begin_trial(slots.record().other, self._policy().trial_limit + 60), begun)

        def begun(_: Any, error: BaseException | None) -> None:
            if error is not None:
                self._staged, self._missing = "", None
                done(None, error)
                return
            logger.warning("starting anew, into version %s", facts.target)
            self._ports.slots.reboot()

        # the lock says whether it is ours still, and whether the quorum bears it now
        self._ask_lock(SetPhase(self._group, self.identity.name, facts.token, "rebooting", int(self._policy().trial_limit) + 120), told)

    def _with_lock(self, revision: int, then: Callable[[list[Any] | None], None], tries: int = 20) -> None:
        """The lock as it is once this machine's picture of it has come so far: what must hold when the reboot is ordered."""
        keys = (LOCKS + self._group.encode(), locks.semaphore_key(self._group))
        found = {**self._items(LOCKS), **self._items(locks.SEMAPHORES)}
        newest = max((found[key].mod for key in keys if key in found), default=0)
        if newest < revision and tries:
            self.after(0.1, lambda: self._with_lock(revision, then, tries - 1))
        elif newest < revision or not self._lock()[0]:
            then(None)
        else:
            then([[key, "mod", "=", found[key].mod if key in found else 0] for key in keys])

    def _ask_quorum_again(self) -> None:
        self._no_quorum = ""

    def _commit(self, _: Facts) -> None:
        self._change_record("commit", lambda slots: slots.commit(self._ports.slots.running))

    def _roll_back(self, _: Facts) -> None:
        why = self._unwell
        done = self._begin("roll-back")

        def rolled(_: Any, error: BaseException | None) -> None:
            done(None, error)
            if error is None:  # else it is tried again, until the launcher's time for a trial is over
                logger.error("rolling back: %s", why)
                self._ports.slots.reboot()

        self._call(lambda slots: slots.roll_back(why, self._ports.slots.running), rolled)

    def _change_record(self, what: str, work: Callable[[Any], Any]) -> None:
        done = self._begin(what)

        def changed(_: Any, error: BaseException | None) -> None:
            done(None, error)
            self._read_record()

        self._call(work, changed)

    def _return(self, facts: Facts) -> None:
        """Units may come again, then the lock is given back, then the update is over."""
        done = self._begin("return")

        def ordered(_: Any, error: BaseException | None) -> None:
            if error is not None:
                done(None, error)
            elif facts.token:
                self._release(facts.token, released)
            else:
                released(None, None)

        def released(_: Any, error: BaseException | None) -> None:
            done(None, error)
            if error is None:
                self._change_record("return", lambda slots: slots.returned())

        def change(order: dict[str, Any]) -> dict[str, Any]:
            is_ours = order["drain"] is not None and order["drain"].get("by") == OWN
            return {k: v for k, v in {**order, "drain": None if is_ours else order["drain"]}.items() if k != "rebooting"}

        order = orders(self._items(ORDERS + self.identity.id.encode()).get(ORDERS + self.identity.id.encode()))
        if change(order) == order:
            ordered(None, None)
        else:
            self._order(change, ordered)

    # -- getting a release ------------------------------------------------------------------------------

    def _stage(self, _: Facts) -> None:
        target, _why = self._target()
        if target is None or self._ports.clock.wall() < self._again_fetch:
            return
        done = self._begin("stage")

        def have(missing: Any, error: BaseException | None) -> None:
            done(None, error)
            if error is not None:
                self._progress = str(error)
                self._again_fetch = self._ports.clock.wall() + FETCH_AGAIN_S
            elif missing:
                self._fetch(missing, target)
            else:
                self._write(target)

        self._call(lambda slots: slots.missing(target.manifest), have)

    def _fetch(self, missing: list[str], target: Statement) -> None:
        """Some chunks from one machine that may have them; the next look fetches others."""
        others = sorted(
            key[len(ALIVE) :].decode() for key in self._items(ALIVE) if key[len(ALIVE) :] != self.identity.id.encode()
        )  # fmt: skip
        if not others:
            self._progress = "there is no other machine to fetch it from"
            self._again_fetch = self._ports.clock.wall() + FETCH_AGAIN_S
            return
        source = others[(self._source + sum(self.identity.id.encode())) % len(others)]
        names = missing[:FETCH_CHUNKS]
        self._progress = f"version {target.version}: {len(missing)} pieces are missing"
        done = self._begin("fetch")
        rate = self._policy().rate

        def answered(answer: Any, error: BaseException | None) -> None:
            found = dict(answer["chunks"]) if error is None else {}
            if not found:
                self._source += 1
                done(None, None)
                self._again_fetch = self._ports.clock.wall() + (FETCH_AGAIN_S if self._source % len(others) == 0 else 0.0)
                return
            wanted = {name: data for name, data in found.items() if name in names}
            self._call(lambda slots: [slots.chunks.put(name, data) for name, data in wanted.items()], kept)
            if rate:
                self._again_fetch = self._ports.clock.wall() + sum(map(len, wanted.values())) / rate

        def kept(_: Any, error: BaseException | None) -> None:
            done(None, error)
            if error is not None:
                self._source += 1
                self._progress = str(error)
                self._again_fetch = self._ports.clock.wall() + FETCH_AGAIN_S
            elif len(missing) > len(names) and not rate:
                self._fetch(missing[len(names) :], target)
            else:
                self._look()

        self.ask_then(self._router.ref(source, "control"), Command("host.chunks", {"names": names}), FETCH_S, answered)

    def _write(self, target: Statement) -> None:
        done = self._begin("write")
        self._progress = f"version {target.version}: being written and verified"

        def written(_: Any, error: BaseException | None) -> None:
            done(None, error)
            if error is None:
                self._staged = target.manifest
                offered = [json.loads(item.value)["signed"]["manifest"] for item in self._items(RELEASES).values()]
                self._call(lambda slots: slots.tidy(offered), lambda value, trouble: None)
            else:
                self._progress = str(error)
                self._again_fetch = self._ports.clock.wall() + FETCH_AGAIN_S
            self._read_record()

        self._call(lambda slots: slots.write(target), written)

    # -- telling ----------------------------------------------------------------------------------------

    def _say(self) -> None:
        """Write where this machine is, when that changed."""
        record = self._record
        key = UPDATES + self.identity.id.encode()
        known = self._one(UPDATES, key) or {"results": {}}
        results = dict(known["results"])
        last = record.last or {}
        if last.get("manifest") and results.get(last["manifest"], {}).get("result") != last["result"]:
            results[last["manifest"]] = {
                "result": last["result"], "version": last["version"], "reason": last["reason"],
                "at": round(self._ports.clock.wall(), 3),
            }  # fmt: skip
        results = {m: known for m, known in results.items() if known["result"] != "failed" or m in record.bad or m == last.get("manifest")}
        for manifest in list(results)[: max(0, len(results) - RESULTS_MAX)]:
            del results[manifest]
        running = self._ports.slots.running
        about = record.slots.get(running, {})
        said = {
            "name": self.identity.name, "channel": self._channel, "slot": running or "-", "version": about.get("version", self.identity.version),
            "sequence": about.get("sequence", 0), "state": self.decision.state, "reason": self.decision.reason, "results": results,
        }  # fmt: skip
        value = release.canonical(said)
        item = self._items(UPDATES).get(key)
        if self._saying or (item is not None and item.value == value):
            return
        self._saying = True

        def done(_: Any, error: BaseException | None) -> None:
            self._saying = False

        self.propose(["put", key, value], done)


def verdict_of(
    updates: dict[bytes, Item], alive: dict[bytes, Item], channel: str, rollout: dict[str, Any], target: Statement, now: float
) -> waves.Verdict:
    """Who may take a release now: by what all machines with slots that follow the channel say of it.

    One that went down for it and is not back is waited for; a failure that an operator has seen, and went on, is
    none any more.
    """
    try:
        how = waves.plan(rollout["plan"])
    except (ValueError, TypeError) as error:  # a stored plan must not be what ends a host
        why = f"the plan of the rollout cannot be read: {error}"
        return waves.Verdict(frozenset(), why, why)
    outcomes = {}
    seen = set(rollout.get("seen", ()))
    for key, item in updates.items():
        machine = key[len(UPDATES) :]
        said = json.loads(item.value)
        if said["channel"] != channel:
            continue
        result = said["results"].get(target.manifest, {})
        if ALIVE + machine in alive or result or said["state"] in _AWAY:
            done = "committed" if said["sequence"] >= target.sequence and said["state"] not in (State.TRIAL, State.SETTLING) else ""
            what = result.get("result") or done
            outcomes[machine.decode()] = waves.Outcome("seen" if what == "failed" and machine.decode() in seen else what, result.get("at", 0.0))
    return waves.verdict(how, target.version, outcomes, now)


