"""Control groups of units, by whichever hierarchy the kernel has."""

import errno
import os


class Group:
    """A control group of one unit, in the unified hierarchy or in those of version 1."""

    ROOT = "/sys/fs/cgroup"
    #: key of a limit -> (controller, file, value) in version 2 and in version 1
    V2 = {"memory_max": "memory.max", "memory_high": "memory.high", "memory_swap_max": "memory.swap.max",
          "cpu_weight": "cpu.weight", "tasks_max": "pids.max"}

    def __init__(self, name: str) -> None:
        self.name = name
        self.unified = os.path.exists(f"{self.ROOT}/cgroup.controllers")
        controllers = ("",) if self.unified else ("memory", "cpu", "pids")
        self.folders = {c: os.path.join(self.ROOT, c, name) for c in controllers}
        self.oom_kills = 0

    def make(self, limits: dict) -> None:
        """Create it with these limits; raises ``OSError`` for one that the kernel cannot keep."""
        for folder in self.folders.values():
            os.makedirs(folder, exist_ok=True)
        if self.unified:
            at = self.ROOT
            for part in os.path.relpath(self.folders[""], self.ROOT).split("/"):
                self.put(at, "cgroup.subtree_control", "+memory +cpu +pids")
                at = os.path.join(at, part)
        for key, value in limits.items():
            self.limit(key, value)

    def limit(self, key: str, value: float) -> None:
        if key == "cpu_quota":  # processors, per tenth of a second
            quota = max(int(value * 100_000), 1000)
            if self.unified:
                self.put(self.folders[""], "cpu.max", f"{quota} 100000")
            else:
                self.put(self.folders["cpu"], "cpu.cfs_period_us", "100000")
                self.put(self.folders["cpu"], "cpu.cfs_quota_us", str(quota))
        elif self.unified:
            self.put(self.folders[""], self.V2[key], str(int(value)))
        elif key == "memory_max":
            self.put(self.folders["memory"], "memory.limit_in_bytes", str(int(value)))
        elif key == "memory_high":
            self.put(self.folders["memory"], "memory.soft_limit_in_bytes", str(int(value)))
        elif key == "cpu_weight":
            self.put(self.folders["cpu"], "cpu.shares", str(max(int(value * 1024 / 100), 2)))
        elif key == "tasks_max":
            self.put(self.folders["pids"], "pids.max", str(int(value)))
        else:
            raise OSError(errno.ENOTSUP, f"{key} needs the unified hierarchy of control groups")

    @staticmethod
    def put(folder: str, name: str, value: str) -> None:
        with open(os.path.join(folder, name), "w") as f:
            f.write(value)

    def join(self) -> None:
        """Called by the process that becomes one of the unit's."""
        for folder in self.folders.values():
            self.put(folder, "cgroup.procs", "0")

    def members(self) -> list[int]:
        try:
            with open(os.path.join(next(iter(self.folders.values())), "cgroup.procs")) as f:
                return [int(line) for line in f]
        except OSError:
            return []

    def count_oom_kills(self) -> int:
        folder = self.folders["" if self.unified else "memory"]
        try:
            with open(os.path.join(folder, "memory.events" if self.unified else "memory.oom_control")) as f:
                return sum(int(n) for key, n in (line.split() for line in f) if key == "oom_kill")
        except (OSError, ValueError):
            return 0

    def had_oom_kill(self) -> bool:
        """Whether there was one since this was asked last."""
        before, self.oom_kills = self.oom_kills, self.count_oom_kills()
        return self.oom_kills > before

    def remove(self) -> None:
        for folder in self.folders.values():
            try:
                os.rmdir(folder)
            except OSError:
                pass  # something is left in it: it goes with the next run
