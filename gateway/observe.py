"""What the metrics page shows: families derived from the living actors at scrape time."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any

from actors.agent import Agent
from actors.company import Company
from actors.unit_manager import UnitManager
from brain.raft import Role
from fleet.updating import State
from metrics.exporter import Family

from .grpc_door import GrpcDoor

#: Where the kernel's smoothed round trip (microseconds) lies in ``struct tcp_info``.
_TCP_INFO_BYTES, _TCP_RTT = 104, struct.Struct("@68xI")
SUBS_SHOWN = ("running", "exited", "dead", "failed", "auto-restart", "start", "start-pre", "stop-sigterm")


def actor_families(company: Company) -> Iterable[Family]:
    """Per actor class: mailboxes, handling, waiting, restarts, dead letters."""
    system = company.system
    depth: Counter[str] = Counter()
    alive: Counter[str] = Counter()
    for box in system.mailboxes():
        name = type(box.actor).__name__
        depth[name] += len(box.user)
        alive[name] += 1
    families = {
        "alive": Family("gauge", "argosy_actors", "Living actors by class.", ("class",)),
        "depth": Family("gauge", "argosy_actor_mailbox_depth", "Messages waiting in mailboxes.", ("class",)),
        "handled": Family("counter", "argosy_actor_messages", "Messages handled.", ("class",)),
        "restarts": Family("counter", "argosy_actor_restarts", "Restarts by supervisors.", ("class",)),
        "dead": Family("counter", "argosy_actor_dead_letters", "Messages nobody took.", ("class", "reason")),
        "handling": Family(
            "histogram", "argosy_actor_handling_seconds", "Time to handle a message.", ("class",)
        ),
        "waiting": Family("histogram", "argosy_actor_mailbox_seconds", "Time in the mailbox.", ("class",)),
    }
    for name, stats in sorted(system.stats.items()):
        families["alive"].add(alive[name], name)
        families["depth"].add(depth[name], name)
        families["handled"].add(stats.handled, name)
        families["restarts"].add(stats.restarts, name)
        families["handling"].add_histogram(stats.handling.cumulative(), stats.handling.sum, name)
        families["waiting"].add_histogram(stats.waiting.cumulative(), stats.waiting.sum, name)
        for reason in ("dead", "overflow"):
            families["dead"].add(stats.dead_letters.get(reason, 0), name, reason)
    return families.values()


def raft_families(company: Company) -> Iterable[Family]:
    """Raft and the store; etcd's well-known names beside our own."""
    peer: Any = company.raft._mailbox.actor  # noqa: SLF001 - read only, at scrape
    raft = getattr(peer, "raft", None)
    if raft is None:
        return
    leading = float(raft.role is Role.LEADER)
    yield Family("gauge", "argosy_raft_term", "Current term.").add(raft.term)
    yield Family("gauge", "argosy_raft_is_leader", "1 on the leader.").add(leading)
    yield Family("gauge", "argosy_raft_has_leader", "1 while a leader is known.").add(
        float(bool(raft.leader))
    )
    voters = raft.config.voters
    yield Family("gauge", "argosy_raft_voters", "Members that vote.").add(len(voters))
    yield Family("gauge", "argosy_raft_is_voter", "1 if this peer votes.").add(float(peer.machine in voters))
    yield Family("gauge", "argosy_raft_commit_index", "Index that is decided.").add(raft.log.commit)
    yield Family("gauge", "argosy_raft_applied_index", "Index that is applied.").add(raft.log.applied)
    yield Family("counter", "argosy_raft_elections", "Elections this peer stood in.").add(raft.elections)
    yield Family("counter", "argosy_raft_leader_changes", "Leader changes seen.").add(peer.leader_changes)
    proposals = Family("counter", "argosy_raft_proposals", "Commands by outcome.", ("outcome",))
    for outcome in ("committed", "failed", "applied"):
        proposals.add(peer.proposals.counts[outcome], outcome)
    yield proposals
    yield Family("gauge", "argosy_raft_proposals_pending", "Commands that await their outcome.").add(
        len(peer.proposals)
    )
    sync = peer.sync_seconds
    yield Family("histogram", "argosy_raft_sync_seconds", "Time to make a batch durable.").add_histogram(
        sync.cumulative(), sync.sum
    )
    appends = peer.append_seconds
    yield Family(
        "histogram", "argosy_raft_append_seconds", "From an append to its acknowledgement (leader only)."
    ).add_histogram(appends.cumulative(), appends.sum)
    commits = peer.proposals.commit_seconds
    yield Family(
        "histogram", "argosy_raft_commit_seconds", "From a command's arrival to its outcome, on its peer."
    ).add_histogram(commits.cumulative(), commits.sum)
    trips = Family("histogram", "argosy_transport_round_trip_seconds", "Heartbeat and answer.", ("peer",))
    etcd_trips = Family("histogram", "etcd_network_peer_round_trip_time_seconds", "Round trip time.", ("To",))
    names = dict(raft.config.info)
    for member, histogram in peer.round_trip_seconds.items():
        trips.add_histogram(histogram.cumulative(), histogram.sum, names.get(member, (member,))[0])
        etcd_trips.add_histogram(histogram.cumulative(), histogram.sum, member[:16])
    yield trips
    yield etcd_trips
    behind = Family(
        "gauge", "argosy_raft_follower_behind", "Entries a follower lacks (leader only).", ("peer",)
    )
    info = dict(raft.config.info)
    for member, progress in raft.progress.items():
        behind.add(raft.log.last_index - progress.match, info.get(member, (member,))[0])
    yield behind
    yield Family("counter", "argosy_raft_log_bytes", "Bytes written to the log.").add(
        peer.journal.bytes_written
    )
    yield from _store_families(peer)
    yield from _etcd_names(peer, raft, leading, sync)


def _store_families(peer: Any) -> Iterable[Family]:
    """What lies in the store, and whether it may be trusted."""
    yield Family("gauge", "argosy_raft_disk_full", "1 while writes wait for room on the disk.").add(
        float(bool(peer._ports.disk.full))  # noqa: SLF001
    )
    yield Family("gauge", "argosy_raft_quarantined", "1 while this peer's store is not the others'.").add(
        float(bool(peer.quarantine))
    )
    yield Family("gauge", "argosy_store_bytes", "Bytes of all versions of all keys.").add(peer.store.size)
    yield Family("gauge", "argosy_store_quota_bytes", "Where writes are refused.").add(
        peer.settings.quota_bytes
    )
    yield Family("gauge", "argosy_store_revision", "Revision of the store.").add(peer.store.revision)
    yield Family("gauge", "argosy_store_keys", "Keys in the store.").add(len(peer.store.live))
    yield Family("gauge", "argosy_store_leases", "Leases in the store.").add(len(peer.store.leases))
    yield Family("gauge", "argosy_store_watches", "Watches on this peer.").add(
        len(peer.watches)
    )
    yield Family("counter", "argosy_store_watches_dropped", "Watches whose reader was gone.").add(
        peer.watches.drops
    )


def _etcd_names(peer: Any, raft: Any, leading: float, sync: Any) -> Iterable[Family]:
    """Names that existing etcd dashboards ask for."""
    yield Family("gauge", "etcd_server_has_leader", "Whether a leader exists.").add(float(bool(raft.leader)))
    yield Family("gauge", "etcd_server_is_leader", "Whether this member leads.").add(leading)
    yield Family("counter", "etcd_server_leader_changes_seen", "Leader changes seen.").add(
        peer.leader_changes
    )
    yield Family("counter", "etcd_server_proposals_committed", "Consensus proposals committed.").add(
        raft.log.commit
    )
    yield Family("counter", "etcd_server_proposals_applied", "Consensus proposals applied.").add(
        raft.log.applied
    )
    yield Family("gauge", "etcd_server_proposals_pending", "Proposals that wait for commit.").add(
        len(peer.proposals)
    )  # noqa: SLF001
    yield Family("gauge", "etcd_mvcc_db_total_size_in_bytes", "Size of the store.").add(peer.store.size)
    yield Family("counter", "etcd_server_proposals_failed", "Failed proposals.").add(peer.proposals.counts["failed"])
    yield Family(
        "histogram", "etcd_disk_wal_fsync_duration_seconds", "Latency of making the log durable."
    ).add_histogram(sync.cumulative(), sync.sum)


def transport_families(company: Company, net: Any) -> Iterable[Family]:
    """Bytes, frames, links and drops between hosts."""
    counters = net.counters
    yield Family("counter", "argosy_transport_sent_bytes", "Bytes sent to other hosts.").add(
        counters.bytes_sent
    )
    yield Family("counter", "argosy_transport_received_bytes", "Bytes received.").add(counters.bytes_received)
    yield Family("counter", "argosy_transport_sent_frames", "Frames sent.").add(counters.frames_sent)
    yield Family("counter", "argosy_transport_received_frames", "Frames received.").add(
        counters.frames_received
    )
    yield Family("counter", "argosy_transport_connects", "Handshakes completed.").add(counters.connects)
    yield Family("gauge", "argosy_transport_links", "Outgoing links that are up.").add(net.links_up())
    dropped = Family("counter", "argosy_transport_dropped_frames", "Frames dropped.", ("reason",))
    for reason in ("no_link", "queue_full"):
        dropped.add(counters.dropped.get(reason, 0), reason)
    yield dropped
    yield Family("counter", "argosy_transport_refused_links", "Links refused.").add(
        sum(counters.refused.values())
    )
    router = company.router
    yield Family("counter", "argosy_transport_bad_frames", "Frames that broke the rules.").add(
        router.bad_frames
    )
    yield Family("counter", "argosy_transport_dead_letters", "Frames for actors that are not here.").add(
        router.dead_letters
    )
    yield _tcp_round_trips(company, net)


def _tcp_round_trips(company: Company, net: Any) -> Family:
    """What the kernel measures on each outgoing link that is up (``TCP_INFO``)."""
    out = Family("gauge", "argosy_transport_tcp_round_trip_seconds", "As TCP sees it.", ("peer", "lane"))
    peer: Any = company.raft._mailbox.actor  # noqa: SLF001 - read only, at scrape
    info = dict(peer.raft.config.info) if getattr(peer, "raft", None) is not None else {}
    for (machine, lane), far in net._peers.items():  # noqa: SLF001
        link = far.link
        if link is None or link.peer is None or link.closed:
            continue
        door = link.transport.get_extra_info("socket")
        try:
            answer = door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            microseconds = _TCP_RTT.unpack_from(answer)[0]
        except (OSError, struct.error):  # closed just now, or a kernel that says less
            continue
        out.add(microseconds / 1e6, info.get(machine, (machine,))[0], "bulk" if lane else "control")
    return out


def door_families(company: Company) -> Iterable[Family]:
    """The HTTP door."""
    ref = company.system.find("gateway")
    if ref is None:
        return
    door: Any = ref._mailbox.actor  # noqa: SLF001 - read only, at scrape
    requests = Family("counter", "argosy_http_requests", "Requests by method.", ("method",))
    for method, count in sorted(door.requests.items()):
        requests.add(count, method)
    yield requests
    yield Family("gauge", "argosy_http_connections", "Open connections.").add(len(door.server.connections))
    yield Family("counter", "argosy_http_cut_off", "Readers of a stream that were too slow.").add(
        door.server.cut_off
    )
    yield Family("gauge", "argosy_http_watches", "Watches of clients.").add(len(getattr(door, "feeds", ())))
    yield from _grpc_families(door.grpc)


def _grpc_families(door: GrpcDoor) -> Iterable[Family]:
    """Calls over gRPC, by the names that etcd's dashboards know."""
    started = Family("counter", "grpc_server_started", "Calls that began.", ("grpc_service", "grpc_method"))
    for name, count in sorted(door.started.items()):
        started.add(count, *name)
    handled = Family("counter", "grpc_server_handled", "Calls that ended.", ("grpc_service", "grpc_method", "grpc_code"))
    for key, count in sorted(door.handled.items()):
        handled.add(count, *key)
    yield started
    yield handled


def agent_families(company: Company) -> Iterable[Family]:
    """A machine without a vote, and a voter's desk for such machines."""
    agent: Any = company.raft._mailbox.actor  # noqa: SLF001 - read only, at scrape
    if isinstance(agent, Agent):
        yield Family("gauge", "argosy_agent_voters", "Voters that this machine knows.").add(len(agent.voters))
        yield Family("counter", "argosy_agent_failovers", "How often another voter was asked.").add(agent.failovers)
    desk: Any = company.desk._mailbox.actor if company.desk is not None else None  # noqa: SLF001
    if desk is not None:
        asked = Family("counter", "argosy_desk_requests", "Requests of machines without a vote.", ("kind",))
        for kind, count in sorted(desk.asked.items()):
            asked.add(count, kind)
        yield asked


def fleet_families(company: Company) -> Iterable[Family]:
    """Units of this machine, and the scheduler's work."""
    assert company.machine is not None
    machine: Any = company.machine._mailbox.actor  # noqa: SLF001
    yield Family("gauge", "argosy_machine_lease_held", "1 while this machine holds its lease.").add(
        float(machine.lease_held)
    )
    by_sub: Counter[str] = Counter()
    for box in company.system.mailboxes():
        if isinstance(box.actor, UnitManager):
            by_sub[box.actor.state()["sub"]] += 1
    units = Family("gauge", "argosy_units", "Units of this machine by sub-state.", ("sub",))
    for sub in sorted({*SUBS_SHOWN, *by_sub}):
        units.add(by_sub[sub], sub)
    yield units
    yield from _unit_families(company)
    if company.scheduler is not None:
        yield from _scheduler_families(company.scheduler)


def _scheduler_families(ref: Any) -> Iterable[Family]:
    """The scheduler's work."""
    scheduler: Any = ref._mailbox.actor  # noqa: SLF001
    yield Family("gauge", "argosy_scheduler_active", "1 on the host that schedules.").add(
        float(scheduler.active)
    )
    yield Family("gauge", "argosy_scheduler_unplaced_units", "Units that no machine takes.").add(
        len(scheduler.unplaced)
    )
    yield Family("gauge", "argosy_scheduler_brake", "1 while too many machines are lost to move units.").add(
        float(scheduler.braking)
    )
    yield Family("counter", "argosy_scheduler_placements", "Placements decided.").add(scheduler.placements)
    recovery = scheduler.recovery_seconds
    yield Family(
        "histogram", "argosy_scheduler_recovery_seconds",
        "From the end of a lost machine's lease to running and healthy elsewhere.",
    ).add_histogram(recovery.cumulative(), recovery.sum)
    moved = Family("counter", "argosy_scheduler_reschedules", "Units moved, by reason.", ("reason",))
    for reason in ("machine-lost", "constraint"):
        moved.add(scheduler.reschedules.get(reason, 0), reason)
    yield moved


def _unit_families(company: Company) -> Iterable[Family]:
    """Each unit of this machine, and the actor that looks after it."""
    label = ("unit",)
    active = Family("gauge", "argosy_unit_active", "1 while a unit is active.", label)
    failed = Family("gauge", "argosy_unit_failed", "1 while a unit is failed.", label)
    health = Family("gauge", "argosy_unit_healthy", "1 while a unit passes its check (or has none).", label)
    restarts = Family("counter", "argosy_unit_restarts", "Restarts of a unit on this machine.", label)
    depth = Family("gauge", "argosy_unit_mailbox_depth", "Messages that wait for a unit's actor.", label)
    handled = Family("counter", "argosy_unit_messages", "Messages handled by a unit's actor.", label)
    reborn = Family("counter", "argosy_unit_actor_restarts", "Restarts of a unit's actor.", label)
    handling = Family("histogram", "argosy_unit_handling_seconds", "Time to handle a message.", label)
    waiting = Family("histogram", "argosy_unit_mailbox_seconds", "Time in the mailbox.", label)
    dead = Family(
        "counter", "argosy_unit_dead_letters", "Messages that a unit's actor did not take.",
        ("unit", "reason"),
    )  # fmt: skip
    for box in company.system.mailboxes():
        manager = box.actor
        if not isinstance(manager, UnitManager):
            continue
        state = manager.state()
        up = state["active"] == "active"
        active.add(float(up), manager.unit)
        failed.add(float(state["active"] == "failed"), manager.unit)
        health.add(float(up and state["health"] != "failing"), manager.unit)
        restarts.add(state["restarts"], manager.unit)
        depth.add(len(box.user), manager.unit)
        handled.add(box.handled, manager.unit)
        reborn.add(box.restarts, manager.unit)
        handling.add_histogram(box.stats.handling.cumulative(), box.stats.handling.sum, manager.unit)
        waiting.add_histogram(box.stats.waiting.cumulative(), box.stats.waiting.sum, manager.unit)
        for reason in ("dead", "overflow"):
            dead.add(box.stats.dead_letters.get(reason, 0), manager.unit, reason)
    yield from (active, failed, health, restarts, depth, handled, reborn, handling, waiting, dead)


def lock_families(company: Company) -> Iterable[Family]:
    """The reboot semaphore, per group."""
    assert company.lock_manager is not None
    manager: Any = company.lock_manager._mailbox.actor  # noqa: SLF001
    names = {
        "holders": Family("gauge", "argosy_lock_holders", "Machines that hold the lock.", ("group",)),
        "max": Family("gauge", "argosy_lock_max", "How many may hold it.", ("group",)),
        "queue": Family("gauge", "argosy_lock_queue", "Machines that wait.", ("group",)),
        "oldest": Family("gauge", "argosy_lock_oldest_hold_seconds", "Age of the oldest hold.", ("group",)),
        "overdue": Family("gauge", "argosy_lock_overdue", "Holders past their deadline.", ("group",)),
    }
    for group in manager.status():
        label = group["group"]
        names["holders"].add(len(group["holders"]), label)
        names["max"].add(group["max"], label)
        names["queue"].add(len(group["queue"]), label)
        names["oldest"].add(max((h["since_s"] for h in group["holders"]), default=0.0), label)
        names["overdue"].add(sum(h["overdue"] for h in group["holders"]), label)
    yield from names.values()
    yield Family("counter", "argosy_lock_grants", "Locks granted through this host.").add(manager.grants)
    refusals = Family("counter", "argosy_lock_refusals", "Locks refused through this host, by why.", ("kind",))
    for kind, count in manager.refusals.items():
        refusals.add(count, kind)
    yield refusals


def update_families(company: Company) -> Iterable[Family]:
    """What this machine's updater does; nothing where others update it."""
    updater: Any = company.updater._mailbox.actor if company.updater is not None else None  # noqa: SLF001
    if updater is None or not updater.has_slots:
        return
    states = Family("gauge", "argosy_update_state", "1 for the state that the update of this machine is in.", ("state",))
    for state in State:
        states.add(float(updater.decision.state is state), state.value)
    yield states
    bad = Family("gauge", "argosy_update_bad_versions", "Versions that were left again, by how it was found.", ("found",))
    for how, count in updater.bad_versions.items():
        bad.add(count, how)
    yield bad


def process_families() -> Iterable[Family]:
    """The host process itself, under the names that Prometheus' own clients use."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield Family("counter", "process_cpu_seconds", "CPU time of the host process.").add(
        usage.ru_utime + usage.ru_stime
    )
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    yield Family("gauge", "process_resident_memory_bytes", "Memory of the host process.").add(
        pages * os.sysconf("SC_PAGE_SIZE")
    )
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    with open("/proc/stat") as file:
        booted = next(float(line.split()[1]) for line in file if line.startswith("btime "))
    yield Family("gauge", "process_start_time_seconds", "When the host process began (Unix time).").add(
        booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    )
    yield Family("gauge", "process_threads", "Threads of the host process.").add(int(fields[17]))
    yield Family("gauge", "process_open_fds", "Open file descriptors.").add(len(os.listdir("/proc/self/fd")))
    yield Family("gauge", "process_max_fds", "Limit of open file descriptors.").add(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    )
