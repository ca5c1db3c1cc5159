"""Debian's ``etcdctl``, with version 2 of the API over HTTP or version 3 over gRPC: runs lines of a scenario.

Exit status, standard output and standard error must be the same after :func:`normal` or :func:`normal3`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from . import compare
from .lines import with_indexes
from .servers import Pair, Server, debian_program, plain_variables

#: Seconds for one command.
COMMAND_S = 8.0


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Etcdctl:
    """``etcdctl`` at one server, for one scenario."""

    api = "2"

    def __init__(self, server: Server, folder: str) -> None:
        self.server = server
        self.folder = folder
        self.base = self.revision()
        self._program = debian_program("etcdctl")

    def revision(self) -> int:
        """Where the store is."""
        return self.server.v2_index(self.folder)

    def normal(self, text: str, line: str) -> str:
        """What must be the same."""
        return normal(text, self, line)

    def words(self, line: str) -> list[str]:
        """A line as arguments for this server."""
        line = with_indexes(line, self.server, self.folder)
        line = line.replace("{peer}", f"http://127.0.0.1:{self.server.peer_ports[0]}")
        return [word.replace("@", self.folder) for word in shlex.split(line)]

    def command(self, line: str) -> tuple[list[str], dict[str, str]]:
        """Command line and environment."""
        words = [str(self._program), "--endpoints", self.server.url, *self.words(line)]
        return words, {**plain_variables(), "ETCDCTL_API": self.api}

    def run(self, line: str) -> Said:
        """Run a line to its end."""
        stdin, bar, rest = line.rpartition(" | ") if re.match(r"\w[\w ]* \| ", line) else ("", "", line)
        command, variables = self.command(rest)
        try:
            done = subprocess.run(
                command, env=variables, input=stdin.replace("\\n", "\n") + "\n" if bar else "", capture_output=True, text=True,
                timeout=COMMAND_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            return Said(999, str(late.stdout or ""), f"not done within {COMMAND_S:g} s: {late.stderr!r}")
        return Said(done.returncode, done.stdout, done.stderr)


class Etcdctl3(Etcdctl):
    """The same with version 3 of the API, over gRPC at the client port.

    In a line ``{rev}`` is the revision of the store, ``{lease}`` the lease that was granted last.
    """

    api = "3"
    lease = "0"

    def revision(self) -> int:
        """Where the store is."""
        return int(self.server.v3("maintenance/status", {}).json()["header"]["revision"])

    def words(self, line: str) -> list[str]:
        """A line as arguments for this server."""
        if "{rev}" in line:
            line = line.replace("{rev}", str(self.revision()))
        line = line.replace("{lease}", self.lease)
        return [word.replace("@", self.folder) for word in shlex.split(line)]

    def run(self, line: str) -> Said:
        """Run a line to its end, and remember a lease that it granted."""
        said = super().run(line)
        granted = re.search(r"lease ([0-9a-f]+) granted", said.stdout)
        if granted:
            self.lease = granted[1]
        return said

    def normal(self, text: str, line: str) -> str:
        """What must be the same."""
        return normal3(text, self)


def normal(text: str, etcdctl: Etcdctl, line: str) -> str:
    """What may differ between two servers without being a difference.

    Ports, ids, names of members, which of them leads, how many they are, the URL a request
    went to; times, and what is left of a TTL to the nearest ten; indexes count from the
    start of the scenario; the order of ``ls`` unless it was asked for.
    """
    base = etcdctl.base

    def counted(match: re.Match[str]) -> str:
        return f"{match[1]}{compare.counted(int(match[2]), base)}"

    text = re.sub(r"http://127\.0\.0\.1:\d+(, ?http://127\.0\.0\.1:\d+)*", "URLS", text)
    text = re.sub(r"\b[0-9a-f]{15,16}\b", "ID", text)
    text = re.sub(r"name=\S+", "name=NAME", text)
    text = re.sub(r"isLeader=(true|false)", "isLeader=MAYBE", text)
    text = compare.EXPIRATION.sub("TIME", text)
    text = re.sub(r"(?m)^\d{4}-\d\d-\d\d [\d:.]+ (?=[A-Z] \|)", "TIME ", text)
    text = re.sub(r'((?:TTL: |"ttl":))(\d+)', lambda m: m[1] + compare.about(int(m[2])), text)
    text = re.sub(r'((?:-Index: |\nIndex: |Index":|_INDEX=|(?:prevIndex|waitIndex)=))(\d+)', counted, text)
    text = re.sub(r"(\) \[)(\d+)(?=\])", counted, text)
    text = compare.v2_cause(text, base)
    if "-u " in line:  # how many indexes a change to a user takes is the server's own affair
        text = re.sub(r"in-order[+-]\d+", "in-order", text)
    lines = text.splitlines()
    kept: list[str] = []
    for one in lines:
        if not (kept and one == kept[-1] and ("name=NAME" in one or "is healthy" in one)):
            kept.append(one)
    if re.search(r"\bls\b", line) and "--sort" not in line:
        kept.sort()
    return "\n".join(kept) + text[len(text.rstrip("\n")) :]


def differing(theirs: Etcdctl, ours: Etcdctl, lines: list[str]) -> Iterator[str]:
    """Run the lines on both; what is not the same."""
    for line in lines:
        one, other = theirs.run(line), ours.run(line)
        for what, there, here in (
            ("status", str(one.status), str(other.status)),
            ("stdout", theirs.normal(one.stdout, line), ours.normal(other.stdout, line)),
            ("stderr", theirs.normal(one.stderr, line), ours.normal(other.stderr, line)),
        ):
            if there != here:
                yield f"etcdctl {line}\n    {what}: etcd {there!r}\n    {' ' * len(what)}  ours {here!r}"


def normal3(text: str, etcdctl: Etcdctl) -> str:
    """As :func:`normal`, for version 3: revisions count from the start of the scenario."""

    def counted(match: re.Match[str]) -> str:
        return f"{match[1]}{compare.counted(int(match[2]), etcdctl.base)}"

    text = re.sub(r"client-[0-9a-f-]{36}", "CLIENT", text)
    text = re.sub(r"(http://)?127\.0\.0\.1:\d+", "ADDRESS", text)
    text = re.sub(r"\b(?:[0-9a-f]{12,16}|\d{16,20})\b", "ID", text)  # in hexadecimal, and in decimal
    text = re.sub(r"\[?\d{4}-\d\d-\d\dT[\d:.]+Z?\]?|\"ts\":[\d.]+", "TIME", text)
    text = re.sub(r"attached keys\(\[(.*?)\]\)", lambda m: f"attached keys({sorted(m[1].split())})", text)
    text = re.sub(r"took = [\d.]+[mµn]?s", "took = TIME", text)
    text = re.sub(r'((?:[Rr]evision"? ?:? ?|"rev":))(\d+)', counted, text)
    text = re.sub(r'("raft_term"|"RaftTerm" ?|"raftTerm") ?: ?\d+', r"\1:N", text)
    text = re.sub(r"(remaining\()(\d+)(?=s\))", lambda m: m[1] + compare.about(int(m[2])), text)
    return re.sub(r'("ttl":)(\d+)', lambda m: m[1] + compare.about(int(m[2])), text)


def both(pair: Pair, name: str, kind: type[Etcdctl] = Etcdctl) -> tuple[Etcdctl, Etcdctl]:
    """``etcdctl`` at both servers, for one scenario."""
    folder = f"/ctl{kind.api}-{re.sub(r'[^a-z]', '-', name)}"
    return kind(pair.theirs, folder), kind(pair.ours, folder)
