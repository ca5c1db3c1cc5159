"""One real host: its directory and identity, its ports, its actors, and its end."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import logging
import os
import secrets
import shlex
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from actors.command import Command
from actors.company import LIMIT, Company, boot, boot_agent, boot_brain, founding_snapshot
from actors.control import Authority
from actors.desk import is_known
from actors.machine import Identity
from actors.raft_messages import ChangeConfig, Propose, Status, TransferLeadership
from actors.raft_peer import PeerSettings
from gateway import observe
from gateway.agent_door import AgentDoor
from gateway.door import Gateway
from gateway.relay import Relay
from kernel.dispatch import LoopDispatcher, PoolDispatcher
from kernel.ports import DiskError, Ports
from metrics.exporter import Exporter
from runners import priority
from runners.boot import REBOOT, SLOTS
from runners.containers import Containers
from runners.disk import RealDisk
from runners.processes import Processes
from runners.real import RealClock, RealRng
from runners.slots import Slots
from runners.slots_port import SlotsPort
from transport import tls
from transport.client import Client, Credentials, UnreachableError
from transport.handshake import AGENT, MACHINE
from transport.router import RemoteError
from transport.tcp import TcpNet

from .config import HostConfig

logger = logging.getLogger("argosy.host")
#: What runs: the release in whose slot this is, or what was installed.
VERSION = os.environ.get("ARGOSY_RELEASE") or "0.1.0"
#: Seconds between attempts to tell the others this host's addresses.
INTRODUCE_S = 0.1
#: Seconds after which a reboot that did not come about is ordered again.
REBOOT_AGAIN_S = 30.0
#: Seconds between two looks of a machine without a vote at who has one.
VOTERS_S = 30.0


class HostError(Exception):
    """The host cannot run; the text says what to do."""


@dataclass(slots=True)
class Membership:
    """Who this host is in which cluster; kept in ``host.json``."""

    machine: str
    cluster: str
    secure: bool
    wants_vote: bool = False
    seeds: dict[str, str] = field(default_factory=dict)  # members known when it joined
    role: str = "voter"

    def save(self, folder: Path) -> None:
        """Keep it."""
        record = {
            "machine": self.machine, "cluster": self.cluster, "secure": self.secure,
            "wants_vote": self.wants_vote, "seeds": self.seeds, "role": self.role,
        }  # fmt: skip
        tls.write_private(folder / "host.json", json.dumps(record).encode())

    @classmethod
    def load(cls, folder: Path) -> Membership | None:
        """None for a host that has never been in a cluster."""
        path = folder / "host.json"
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise HostError(f"{path} is damaged: {error}") from None


def lock_directory(folder: Path) -> int:
    """Make this process the only one in the directory; raises :class:`HostError`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(20):  # a predecessor that was just killed may still be going
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            time.sleep(0.05)
    else:
        owner = os.pread(handle, 32, 0).decode() or "unknown"
        raise HostError(f"{folder} is in use by process {owner.strip()}; one host per directory")
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise HostError(f"{folder / 'lock'} could not be written: {error.strerror}") from None
    return handle


def resolve(text: str) -> tuple[str, int]:
    """``HOST:PORT``, where an interface's name stands for its address."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if host in (name for _, name in socket.if_nameindex()):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", host.encode()[:15])
            try:
                reply = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
            except OSError:
                raise HostError(f"{text}: interface {host} has no IPv4 address") from None
            return socket.inet_ntoa(reply[20:24]), int(port)
    return host, int(port)


def check_doors(config: HostConfig) -> list[tuple[str, int]]:
    """The addresses of the doors, gRPC's last; refuses to open one to the world without TLS unless told to."""
    doors = []
    for flag, text in [*(("--client", text) for text in config.client), *([("--grpc", config.grpc)] if config.grpc else [])]:
        host, port = resolve(text)
        near = host.startswith("127.") or host in ("::1", "localhost") or text.startswith("docker0:")
        if not near and not config.insecure:
            raise HostError(
                f"{flag} {text}: a door without TLS on other than a loopback or docker0 address; "
                "--insecure opens it all the same"
            )
        doors.append((host, port))
    return doors


def _container_endpoint(config: HostConfig, doors: list[tuple[str, int]]) -> str:
    """The door on the engine's bridge: loopback inside a container is the container's own."""
    bridged = [door for text, door in zip(config.client, doors, strict=False) if text.startswith("docker0:")]
    return f"http://{bridged[0][0]}:{bridged[0][1]}" if bridged else ""


# -- joining and founding --------------------------------------------------------------------


def found_cluster(config: HostConfig, folder: Path) -> Membership:
    """``--bootstrap``: a new cluster with this host as its only voter."""
    from transport import ca

    machine, cluster = secrets.token_hex(16), secrets.token_hex(16)
    certificate, key = ca.make_authority(cluster)
    identity_dir = folder / "identity"
    tls.save(identity_dir, ca.issue(certificate, key, machine, "machine"))
    tls.write_private(identity_dir / "ca.key", key)
    endpoint = f"http://{config.client[0]}" if config.client else ""
    members = {machine: (config.name, config.transport, endpoint)}
    write_founding(folder, members, frozenset({machine}))
    membership = Membership(machine, cluster, secure=True)
    membership.save(folder)
    write_context(folder, [config.transport], certificate, key)
    return membership


def write_founding(folder: Path, members: dict[str, tuple[str, str, str]], voters: frozenset[str]) -> None:
    """The snapshot from which a founding member's peer starts."""
    name, data = founding_snapshot(members, voters)
    raft = folder / "raft"
    raft.mkdir(parents=True, exist_ok=True, mode=0o700)
    tls.write_private(raft / name, data)


def write_context(folder: Path, endpoints: list[str], authority: bytes, key: bytes) -> Path:
    """An administrator's context: endpoints, authority, client certificate and key."""
    from transport import ca

    admin = folder / "admin"
    tls.save(admin, ca.issue(authority, key, "administrator", "client"))
    path = folder / "context.toml"
    listed = ", ".join(json.dumps(e) for e in endpoints)
    text = (
        f"endpoints = [{listed}]\nca = {json.dumps(str(admin / 'ca.crt'))}\n"
        f"certificate = {json.dumps(str(admin / 'host.crt'))}\nkey = {json.dumps(str(admin / 'host.key'))}\n"
    )
    tls.write_private(path, text.encode())
    return path


def join_cluster(config: HostConfig, folder: Path) -> Membership:
    """``--join`` with ``--token``: get a certificate from a member, pinned by the token."""
    from transport import ca

    ident, _, rest = config.token.partition(".")
    secret, _, pin = rest.partition(".")
    if not (ident and secret and len(pin) == 64):
        raise HostError("--token: not a token; 'argosy cluster token' makes one")
    identity_dir = folder / "identity"
    identity_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        stranger = Client(config.join, Credentials(), guest=True)
        answer = stranger.ask(Command("authority", {}), 10)
        stranger.close()
        authority = answer["certificate"]
        if tls.fingerprint(authority) != pin:
            raise HostError("--token: the cluster at --join is not the one this token is for")
        tls.write_private(identity_dir / "ca.crt", authority)
        request, key = ca.make_request()
        machine = secrets.token_hex(16)
        guest = Client(config.join, Credentials(identity_dir / "ca.crt"), guest=True)
        welcome = guest.ask(
            Command("join", {
                "token": f"{ident}.{secret}", "name": config.name, "machine": machine,
                "address": config.transport, "request": request, "role": config.role,
                "url": f"http://{config.client[0]}" if config.client else "",
            }), 20,
        )  # fmt: skip
        guest.close()
    except (UnreachableError, RemoteError) as error:
        raise HostError(f"--join: {error}") from None
    tls.save(identity_dir, tls.Identity(authority, welcome["certificate"], key))
    role = welcome["role"]
    membership = Membership(machine, welcome["cluster"], True, role == "voter", welcome["members"], role)
    membership.save(folder)
    return membership


# -- running -----------------------------------------------------------------------------------


def authority_of(folder: Path) -> Authority | None:
    """What the control actor may do with the cluster's authority."""
    certificate_path, key_path = folder / "identity" / "ca.crt", folder / "identity" / "ca.key"
    if not certificate_path.exists():
        return None
    certificate = certificate_path.read_bytes()
    if not key_path.exists():
        return Authority(certificate, None)
    key = key_path.read_bytes()

    def sign(request: bytes, name: str, role: str) -> bytes:
        from transport import ca

        return ca.sign(certificate, key, request, name, role)

    return Authority(certificate, sign)


def _server_of(gateway: Any) -> Any:
    """What answers at the door now; its actor may live again."""
    return gateway._mailbox.actor.server  # noqa: SLF001 - of the same thread


class Host:
    """The running host; with ``brain_only`` a peer of the brain and its door, and no units."""

    def __init__(
        self, config: HostConfig, folder: Path, membership: Membership,
        settings: PeerSettings | None = None, urls: str = "", brain_only: bool = False,
        history: list[Any] | None = None,
    ) -> None:  # fmt: skip
        self._history = history
        self._settings = settings or PeerSettings(seeds=tuple(membership.seeds.items()))
        self._urls = urls or (f"http://{config.client[0]}" if config.client else "")
        self._brain_only = brain_only
        self.config = config
        self.folder = folder
        self.membership = membership
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[BaseException | None] = self.loop.create_future()
        self.company: Company = None  # type: ignore[assignment]
        self.net: TcpNet = None  # type: ignore[assignment]
        self._opening: asyncio.Task[None] | None = None
        self.slots: SlotsPort | None = None
        self._rebooting: asyncio.Task[None] | None = None
        self.status = 0  # what the process exits with, if all goes well

    def _reboot(self) -> None:
        """Start the machine anew as configured, or end, so that the launcher starts what the boot record names."""
        if self.config.reboot_command:
            self._rebooting = self.loop.create_task(self._run_reboot(shlex.split(self.config.reboot_command)))
        else:
            self.status = REBOOT
            self._end(None)

    async def _run_reboot(self, command: list[str]) -> None:
        """Until it is obeyed; meanwhile the lock is held, and will be overdue: an operator has to look."""
        while True:
            logger.warning("rebooting this machine: %s", shlex.join(command))
            try:
                process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
                status = await process.wait()
                if status:
                    logger.error("%s: exit status %d", shlex.join(command), status)
            except OSError as error:
                logger.error("--reboot-command %s: %s", shlex.join(command), error.strerror)
            await asyncio.sleep(REBOOT_AGAIN_S)

    def _end(self, error: BaseException | None) -> None:
        if not self.ended.done():
            self.ended.set_result(error)

    async def start(self) -> None:
        """Open the doors and start the actors; raises :class:`HostError`."""
        config, membership = self.config, self.membership
        doors = check_doors(config)
        clock, rng = RealClock(), RealRng()
        identity_dir = self.folder / "identity"
        secure = membership.secure
        self.net = TcpNet(
            self.loop, membership.cluster, membership.machine, rng.token(), rng.below,
            tls.server_context(identity_dir) if secure else None,
            tls.client_context(identity_dir) if secure else None,
            AGENT if membership.role == AGENT else MACHINE,
        )  # fmt: skip
        host, port = resolve(config.transport)
        try:
            await self.net.serve(host, port)
        except OSError as error:
            raise HostError(f"--transport {config.transport}: {error.strerror or error}") from None
        disk = RealDisk(self.loop, self.folder / "raft")
        processes = Processes(self.loop, self.folder)
        self.containers = Containers(
            config.engine, self.loop, self.folder, membership.machine, membership.cluster,
            prefix=f"argosy-{membership.machine[:8]}-",
        )  # fmt: skip
        slots = self.folder / "slots"
        devices = dict(zip(SLOTS, config.slot_devices, strict=False))
        if devices and not slots.is_dir():
            raise HostError(f"--slot-devices: {slots} does not exist; make it, and start this host by argosy-boot")
        self.slots = SlotsPort(self.loop, Slots(self.folder, devices), self._reboot) if slots.is_dir() else None
        ports = Ports(clock, rng, disk, self.net, processes, self.containers, self.slots)
        self.company = self._boot(ports, doors)
        self.net.on_link(self.company.router.link_changed)
        if self._brain_only:  # as etcd: nobody is served before this member's addresses are known
            self._opening = self.loop.create_task(self._introduce_and_open(doors))
        else:
            await self._open_doors(doors)
            self._opening = self.loop.create_task(self._introduce())

    async def _introduce_and_open(self, doors: list[tuple[str, int]]) -> None:
        try:
            await self._introduce()
            if self._history is not None:
                _, error = await self._ask_raft(Propose(self._history))
                if error is not None:
                    logger.warning("how much history is kept could not be set: %s", error)
            await self._open_doors(doors)
        except (HostError, OSError) as error:
            self._end(error)

    def _boot(self, ports: Ports, doors: list[tuple[str, int]]) -> Company:
        config, membership = self.config, self.membership
        dispatcher, pool = LoopDispatcher(self.loop), PoolDispatcher(config.name)
        authority = authority_of(self.folder)
        if self._brain_only:
            return boot_brain(
                membership.machine, config.name, VERSION, membership.cluster, ports, dispatcher, pool,
                authority, self._end, self._settings,
            )  # fmt: skip
        identity = Identity(
            membership.machine, config.name, config.transport,
            f"http://{doors[0][0]}:{doors[0][1]}" if doors else "",
            config.advertise or resolve(config.transport)[0], dict(config.metadata), membership.role, VERSION,
            _container_endpoint(config, doors), float(len(os.sched_getaffinity(0))),
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), os.environ.get("ARGOSY_SLOT", "") if self.slots else "",
        )  # fmt: skip
        if membership.role == AGENT:
            return boot_agent(
                identity, membership.cluster, ports, dispatcher, pool, authority, self._end, membership.seeds
            )
        return boot(
            identity, membership.cluster, ports, dispatcher, pool, authority, self._end, self._settings
        )

    async def _open_doors(self, doors: list[tuple[str, int]]) -> None:
        company, net = self.company, self.net
        sources = [observe.actor_families, observe.raft_families, observe.door_families]
        if not self._brain_only:
            sources += [observe.fleet_families, observe.lock_families, observe.agent_families, observe.update_families]
        exporter = Exporter(
            *(lambda source=source: source(company) for source in sources),  # type: ignore[misc]
            lambda: observe.transport_families(company, net),
            observe.process_families,
        )
        opened: asyncio.Future[None] = self.loop.create_future()

        def on_open(error: BaseException | None) -> None:
            if opened.done():
                if error is not None:
                    self._end(error)
            elif error is not None:
                opened.set_exception(HostError(str(error)))
            else:
                opened.set_result(None)

        if self.membership.role == AGENT:
            company.system.spawn(AgentDoor, self.loop, doors, company.raft, company.router, exporter, on_open, name="gateway")
            await opened
            return
        gateway = company.system.spawn(
            Gateway, self.loop, doors, self.membership.cluster, self.membership.secure, company.raft, exporter, on_open,
            None if self._brain_only else company.control, name="gateway",
        )  # fmt: skip
        company.system.spawn(
            Relay, lambda: _server_of(gateway), lambda agent: is_known(company.raft, agent), name="relay", limit=LIMIT
        )
        await opened

    async def _introduce(self) -> None:
        """Tell the others this host's name and addresses where they changed.

        A joined voter is a learner until the electorate gives it a vote; where only the brain
        runs there is none, and a member asks for it itself.
        """
        if self.membership.role == AGENT:
            await self._follow_voters()
            return
        machine = self.membership.machine
        mine = (self.config.name, self.config.transport, self._urls)
        while True:
            status, error = await self._ask_raft(Status())
            known = status["info"].get(machine) if error is None else None
            if known is not None:
                self._remember(status["info"])
            if known is not None and tuple(known) != mine:
                await self._ask_raft(ChangeConfig("update", machine, mine))
            elif known is not None and self._brain_only and self.membership.wants_vote:
                _, error = await self._ask_raft(ChangeConfig("promote", machine))
                if error is None:
                    self.membership.wants_vote = False
                    self.membership.save(self.folder)
            elif known is not None:
                return
            await asyncio.sleep(INTRODUCE_S)

    async def _follow_voters(self) -> None:
        """A machine without a vote keeps where the voters are: when it is started again they may be others."""
        while True:
            status, error = await self._ask_raft(Status())
            if error is None:
                self._remember({m: fields for m, fields in status["info"].items() if m in status["voters"]})
            await asyncio.sleep(VOTERS_S if error is None else INTRODUCE_S)

    def _remember(self, info: dict[str, Any]) -> None:
        """Keep where the others are, for a day on which this host's own state cannot be read."""
        others = {m: address for m, (_, address, _) in info.items() if m != self.membership.machine}
        if others and others != self.membership.seeds:
            self.membership.seeds = others
            self.membership.save(self.folder)

    async def _ask_raft(self, message: Any) -> tuple[Any, BaseException | None]:
        answer: asyncio.Future[Any] = self.loop.create_future()
        future = self.company.raft.ask(message, block=False)

        def answered(f: Any) -> None:
            if not answer.done():
                answer.set_result((f.value, f.error))

        future.on_done(answered)
        return await answer  # type: ignore[no-any-return]

    async def stop(self) -> None:
        """Hand leadership over and let go; the units stay with their shims."""
        if self._rebooting is not None:
            self._rebooting.cancel()
        if self.company is not None:
            self.company.raft.offer(TransferLeadership())
            await asyncio.sleep(0.15)
            self.company.system.stop()
            await asyncio.sleep(0.05)
        if self.net is not None:
            await self.net.close()


def prepare(config: HostConfig) -> tuple[Path, Membership, int]:
    """The directory, locked, and who this host is in it."""
    folder = Path(config.data_dir).absolute()
    lock = lock_directory(folder)
    membership = Membership.load(folder)
    if membership is None:
        if config.bootstrap:
            membership = found_cluster(config, folder)
        elif config.join:
            membership = join_cluster(config, folder)
        else:
            raise HostError(
                f"{folder} belongs to no cluster yet: --bootstrap founds one, --join ADDR --token T joins one"
            )
    return folder, membership, lock


def run(config: HostConfig) -> int:
    """Run one host until it is told to stop; returns the exit status."""
    folder, membership, _lock = prepare(config)
    if config.resync:
        from .repair import resync

        aside = resync(config, folder, membership)
        logger.warning("the old state lies in %s; it is rebuilt from the others", aside)
    return serve(config, folder, membership)


def serve(
    config: HostConfig, folder: Path, membership: Membership, settings: PeerSettings | None = None,
    urls: str = "", brain_only: bool = False, history: list[Any] | None = None,
) -> int:  # fmt: skip
    """Run a host whose directory is locked and whose membership is known.

    ``history``: a command of the store that says how much past to keep.
    """
    priority.raise_host()
    sys.setswitchinterval(1e-4)  # a busy thread must not hold up the thread that syncs

    status: list[int] = []

    async def main() -> BaseException | None:
        host = Host(config, folder, membership, settings, urls, brain_only, history)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, host._end, None)  # noqa: SLF001
        await host.start()
        tls.write_private(folder / "host.pid", f"{os.getpid()}\n".encode())
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        logger.info("host %s is up: transport %s, HTTP %s", config.name, config.transport, ", ".join(config.client))
        error = await host.ended
        await host.stop()
        status.append(host.status)
        return error

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            error = runner.run(main())
        except (HostError, DiskError, tls.IdentityError, OSError) as failure:
            error = failure
    if error is not None:
        print(f"argosy: host {config.name} ended: {error}", file=sys.stderr)
        return 1
    return status[-1]


def log_to_stderr(level: Any = logging.INFO) -> None:
    """Plain lines with time and level."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    logging.getLogger("pykka").setLevel(logging.WARNING)
