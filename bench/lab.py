"""What the benchmarks share: how long to run, and clusters that start when first needed."""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import wrk
from .hosts import ArgosyCluster
from .peers import EtcdCluster

#: Debian packages of the programs that rows need.
PACKAGES = {"etcd": "etcd-server", "etcdctl": "etcd-client", "wrk": "wrk"}


class MissingError(Exception):
    """A program is not installed; the text says how to install it."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of each kind of work one run does."""

    rounds: int  # interleaved turns of the load generator
    load_s: float  # seconds of each turn
    kills: int  # leaders killed, of each system
    losses: int  # machines lost
    handovers: int  # locks passed on
    idle_s: float
    messages: int  # told to one actor
    actors: int
    threads: int  # thread actors of the peer
    actor_runs: int
    shims: int
    few: int  # interleaved turns of what is slow to set up
    heavy_s: float  # seconds of each turn with large values, or with snapshots
    watch_s: float
    stored: int  # keys of a peer that is started again
    starts: int
    image_mib: int
    crowd_kills: int


FULL = Effort(5, 8.0, 5, 5, 100, 20.0, 200_000, 20_000, 2_000, 5, 20, 5, 6.0, 5.0, 1_000_000, 3, 300, 30)
QUICK = Effort(5, 2.0, 5, 2, 40, 6.0, 50_000, 5_000, 500, 5, 8, 3, 2.0, 1.0, 100_000, 2, 60, 3)


class Lab:
    """Closes what it started, whatever happens."""

    def __init__(self, effort: Effort, say: Callable[[str], None]) -> None:
        self.effort = effort
        self.say = say
        self._stack = ExitStack()
        self._argosy: ArgosyCluster | None = None
        self._etcd: EtcdCluster | None = None
        self.folder = Path()

    def __enter__(self) -> Lab:
        self.folder = Path(tempfile.mkdtemp(prefix="argosy-bench-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @staticmethod
    def need(*programs: str) -> None:
        """Raise :class:`MissingError` unless all of them are installed."""
        missing = [PACKAGES.get(name, name) for name in programs if shutil.which(name) is None]
        if missing:
            raise MissingError(f"as root: apt-get install {' '.join(missing)}")

    @property
    def argosy(self) -> ArgosyCluster:
        """Three hosts that run, with the keys that reads ask for."""
        if self._argosy is None:
            self.say("starting three Argosy hosts")
            cluster = ArgosyCluster(self.folder / "argosy")
            self._stack.callback(cluster.stop)
            cluster.start()
            self._argosy = cluster
            self._fill(cluster.url(cluster.leader()))
        return self._argosy

    @property
    def etcd(self) -> EtcdCluster:
        """Three etcd members that run, with the same keys."""
        self.need("etcd")
        if self._etcd is None:
            self.say("starting three etcd members")
            cluster = EtcdCluster(self.folder / "etcd")
            self._stack.callback(cluster.stop)
            cluster.start()
            self._etcd = cluster
            leader = cluster.leader()
            assert leader is not None
            self._fill(cluster.url(leader))
        return self._etcd

    def _fill(self, url: str) -> None:
        """Put every key once, so that no read misses; also warms the path up."""
        if shutil.which("wrk") is not None:
            for seconds in (2.0, 10.0):  # more on a machine that is busy
                if wrk.run(url, "fill.lua", 8, seconds).requests >= wrk.KEYS:
                    return
            raise wrk.WrkError("the keys could not be put within 12 s")


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
