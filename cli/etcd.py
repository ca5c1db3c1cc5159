"""``etcd``: a brain peer with etcd's flags, for suites and tools that launch ``etcd``.

Only the brain runs: Raft, the store and the HTTP door; no units, no scheduler.  Ids are
derived as etcd derives them, from the cluster's token and a peer's address, so that the
founding members need not talk before they start.  Peers speak Argosy's transport at their
peer URLs, without TLS, and therefore on loopback only.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actors.command import Command
from actors.raft_peer import TICK_S, PeerSettings
from brain.kv import HISTORY_AGE_MS_MIN
from brain.raft import Settings
from brain.store import HISTORY_AGE_MS, HISTORY_REVISIONS, HISTORY_REVISIONS_MIN
from gateway.door import ETCD_VERSION
from transport.client import Client, ClientTimeout, Credentials, UnreachableError
from transport.router import RemoteError

from .config import HostConfig
from .host import VERSION, HostError, Membership, lock_directory, log_to_stderr, serve, write_founding

logger = logging.getLogger("argosy.etcd")

#: Seconds a starting member waits for an answer of another one.
ASK_S = 1.0
#: (flag, default, what it means); each is also a variable ``ETCD_...`` and takes one or two dashes.
FLAGS: tuple[tuple[str, str, str], ...] = (
    ("name", "default", "this member's name"),
    ("data-dir", "", "where its state lives; NAME.etcd when not given"),
    ("listen-peer-urls", "http://localhost:2380", "where other peers reach it"),
    ("listen-client-urls", "http://localhost:2379", "where clients reach it; a comma list"),
    ("initial-advertise-peer-urls", "", "the peer URL that others are told"),
    ("advertise-client-urls", "", "the client URLs that clients are told"),
    ("initial-cluster", "", "NAME=URL,... of the founding members"),
    ("initial-cluster-state", "new", "new, or existing for a member that was added"),
    ("initial-cluster-token", "etcd-cluster", "tells clusters apart"),
    ("heartbeat-interval", "", "milliseconds"),
    ("election-timeout", "", "milliseconds"),
    ("snapshot-count", "", "entries between snapshots"),
    ("quota-backend-bytes", "", "size of the store at which writes are refused"),
    ("auto-compaction-retention", "", "history that is kept: a duration, or revisions"),
    ("auto-compaction-mode", "periodic", "periodic or revision"),
    ("log-level", "info", "debug, info, warn, error"),
)
#: Accepted without effect: what they ask for is always so here, or says nothing to Argosy.
PASSED_OVER = (
    "enable-v2", "enable-grpc-gateway", "enable-pprof", "pre-vote", "strict-reconfig-check", "logger",
    "log-outputs", "log-output", "debug", "max-txn-ops", "max-snapshots", "max-wals", "proxy", "cors",
    "host-whitelist", "metrics", "listen-metrics-urls", "initial-election-tick-advance", "wal-dir",
    "max-request-bytes", "backend-batch-limit", "backend-batch-interval", "grpc-keepalive-min-time", "grpc-keepalive-interval",
    "grpc-keepalive-timeout", "experimental-initial-corrupt-check", "experimental-corrupt-check-time",
    "unsafe-no-fsync", "discovery-fallback", "auth-token", "bcrypt-cost",
)  # fmt: skip
_FLAGS_OF_TWO_STATES = {
    "enable-v2", "enable-grpc-gateway", "enable-pprof", "pre-vote", "strict-reconfig-check", "debug",
    "initial-election-tick-advance", "experimental-initial-corrupt-check", "unsafe-no-fsync",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        print(f"etcd: {message}; 'etcd --help' lists what is accepted", file=sys.stderr)
        raise SystemExit(2)


def parse(argv: list[str], environment: dict[str, str]) -> argparse.Namespace:
    """Flags, then ``ETCD_*`` variables, then defaults; exits with 2 on what is not known."""
    parser = _Parser(
        prog="etcd", description="One peer of Argosy's brain behind etcd's flags.", allow_abbrev=False
    )
    parser.add_argument("-version", "--version", action="store_true", help="print the version and exit")
    for flag, default, text in FLAGS:
        given = environment.get("ETCD_" + flag.upper().replace("-", "_"), default)
        parser.add_argument(f"-{flag}", f"--{flag}", default=given, help=text, metavar="X")
    for flag in PASSED_OVER:
        options: dict[str, Any] = {"help": argparse.SUPPRESS}
        if flag in _FLAGS_OF_TWO_STATES:
            options |= {"nargs": "?", "const": "true"}
        parser.add_argument(f"-{flag}", f"--{flag}", **options)
    return parser.parse_args(argv)


def address_of(flag: str, url: str) -> str:
    """``HOST:PORT`` of a URL; raises :class:`HostError`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise HostError(f"--{flag}: {url!r} is not http://HOST:PORT")
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return f"{host}:{port}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _number(flags: argparse.Namespace, name: str) -> int:
    text = getattr(flags, name.replace("-", "_"))
    if not text:
        return 0
    if not text.isdigit():
        raise HostError(f"--{name}: {text!r} is not a whole number")
    return int(text)


def peer_settings(flags: argparse.Namespace, seeds: dict[str, str]) -> PeerSettings:
    """Timing and limits; raises :class:`HostError`."""
    raft = Settings()
    heartbeat, election = _number(flags, "heartbeat-interval"), _number(flags, "election-timeout")
    if heartbeat or election:
        tick_ms = TICK_S * 1000
        raft = Settings(
            heartbeat_ticks=max(1, round((heartbeat or 100) / tick_ms)),
            election_ticks=max(1, round((election or 1000) / tick_ms)),
        )
    try:
        raft.validate()
    except ValueError as error:
        raise HostError(f"--election-timeout: {error} (a tick is {TICK_S * 1000:g} ms)") from None
    settings = PeerSettings(raft=raft, seeds=tuple(seeds.items()))
    entries, quota = _number(flags, "snapshot-count"), _number(flags, "quota-backend-bytes")
    if entries:
        settings = replace(settings, snapshot_entries=entries)
    return replace(settings, quota_bytes=quota) if quota else settings


def history_of(flags: argparse.Namespace) -> list[Any] | None:
    """The command that ``--auto-compaction-retention`` stands for; None without it."""
    text, mode = flags.auto_compaction_retention, flags.auto_compaction_mode
    if not text or text == "0":
        return None
    if mode == "revision":
        revisions = _number(flags, "auto-compaction-retention")
        return ["history", max(revisions, HISTORY_REVISIONS_MIN), HISTORY_AGE_MS]
    if mode != "periodic":
        raise HostError(f"--auto-compaction-mode: periodic or revision, not {mode!r}")
    found = re.fullmatch(r"(\d+)(h|m|s|)", text)
    if found is None:
        raise HostError(f"--auto-compaction-retention: {text!r} is not a number of hours, or like 30m or 24h")
    seconds = int(found[1]) * {"h": 3600, "": 3600, "m": 60, "s": 1}[found[2]]
    return ["history", HISTORY_REVISIONS, max(seconds * 1000, HISTORY_AGE_MS_MIN)]


def _founders(flags: argparse.Namespace, own: str) -> dict[str, str]:
    """Peer address by name."""
    text = flags.initial_cluster or f"{flags.name}=http://{own}"
    founders: dict[str, str] = {}
    for entry in text.split(","):
        name, equals, url = entry.partition("=")
        if not equals:
            raise HostError(f"--initial-cluster: {entry!r} is not NAME=URL")
        if name in founders:
            raise HostError(f"--initial-cluster: {name!r} comes twice; a member has one peer URL here")
        founders[name] = address_of("initial-cluster", url)
    if founders.get(flags.name) != own:
        raise HostError(
            f"--initial-cluster: it has no {flags.name}=http://{own}, which this member is told to be"
        )
    return founders


def _known_by(address: str) -> dict[str, Any] | None:
    try:
        client = Client([address], Credentials())
        answer = client.ask(Command("cluster.status", {}), ASK_S)
        client.close()
    except (ClientTimeout, UnreachableError, RemoteError):
        return None
    return answer  # type: ignore[no-any-return]


def settle_membership(flags: argparse.Namespace, config: HostConfig, folder: Path) -> Membership:
    """Who this member is: as its directory says, as founded, or as it was added."""
    known = Membership.load(folder)
    if known is not None:
        return known
    own = config.transport
    founders = _founders(flags, own)
    cluster = _digest(flags.initial_cluster_token)
    machine = _digest(cluster, own)
    others = [address for name, address in founders.items() if name != flags.name]
    if flags.initial_cluster_state == "existing":
        for address in others:
            answer = _known_by(address)
            if answer is not None:
                break
        else:
            raise HostError("--initial-cluster-state existing: no other member answers")
        mine = [member["id"] for member in answer["members"] if member["address"] == own]
        if not mine:
            raise HostError(f"--initial-cluster-state existing: no member was added with the peer URL http://{own}")
        seeds = {m["id"]: m["address"] for m in answer["members"] if m["address"] != own}
        membership = Membership(mine[0], answer["name"], False, True, seeds)
        membership.save(folder)
        return membership
    if flags.initial_cluster_state != "new":
        raise HostError(f"--initial-cluster-state: new or existing, not {flags.initial_cluster_state!r}")
    for address in others:
        answer = _known_by(address)
        if answer is not None and any(m["id"] == machine and m["seen"] for m in answer["members"]):
            raise HostError(
                f"member {machine} has already been bootstrapped, and {folder} is empty: a member that has "
                "lost its state must be removed and added again (--initial-cluster-state existing)"
            )
    members = {_digest(cluster, address): (name, address, "") for name, address in founders.items()}
    write_founding(folder, members, frozenset(members))
    membership = Membership(machine, cluster, secure=False)
    membership.save(folder)
    return membership


def main() -> None:
    """The entrance."""
    flags = parse(sys.argv[1:], dict(os.environ))
    if flags.version:
        print(f"etcd Version: {ETCD_VERSION['etcdserver']}\nArgosy Version: {VERSION}")
        return
    log_to_stderr(getattr(logging, flags.log_level.upper(), logging.INFO))
    try:
        own = address_of("initial-advertise-peer-urls", flags.initial_advertise_peer_urls or flags.listen_peer_urls)
        listen = address_of("listen-peer-urls", flags.listen_peer_urls)
        if not listen.startswith("127."):
            raise HostError(
                f"--listen-peer-urls: {listen} is not on loopback, and these peers have no TLS; "
                "'argosy start' makes a cluster over a network, with certificates"
            )
        clients = tuple(address_of("listen-client-urls", u) for u in flags.listen_client_urls.split(","))
        folder = Path(flags.data_dir or f"{flags.name}.etcd").absolute()
        config = HostConfig(name=flags.name, data_dir=str(folder), transport=own, client=list(clients))
        lock = lock_directory(folder)
        membership = settle_membership(flags, config, folder)
        settings = peer_settings(flags, membership.seeds)
        history = history_of(flags)
    except HostError as error:
        print(f"etcd: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    urls = flags.advertise_client_urls or flags.listen_client_urls
    status = serve(config, folder, membership, settings, urls, brain_only=True, history=history)
    os.close(lock)
    raise SystemExit(status)
