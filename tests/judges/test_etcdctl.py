"""Debian's ``etcdctl`` with version 2 of the API, against etcd and against ours.

The commands are those of recorded sessions, and their neighbours.  ``@`` is a folder of the
scenario's own; ``{index KEY}`` is the modified index of a key.  Exit status, standard output
and standard error must be the same after :func:`normal`.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..real.cluster import wait_until
from . import compare
from .compare import differences
from .requests import FORM
from .servers import Pair, Server, debian_program, plain_variables

pytestmark = pytest.mark.timeout(120)

#: Seconds for one command.
COMMAND_S = 8.0

#: Commands by scenario; a line is ``[stdin |] words``.
SCENARIOS: dict[str, str] = {
    "set and get": """
        set @/x/y 1
        get @/x/y
        set @/x/y 2
        -o extended get @/x/y
        -o json get @/x/y
        -o extended set @/x/y 3
        -o json set @/x/y 4
        get --quorum @/x/y
        get --sort @/x/y
        get @/none
        get @/x
        get @/x/y/z
        get
        get /
        set @/x
        set @/x 1
        set
        from stdin | set @/piped
        get @/piped
        set @/empty ''
        get @/empty
        set -- @/dash -5
        get @/dash
        set @/utf 'héllo <b>&'
        get @/utf
        set '@/a b/c' 1
        ls '@/a b'
        set --ttl 100 @/soon 1
        -o extended get @/soon
        set --ttl abc @/soon 1
        set / 1
        --no-sync get @/x/y
    """,
    "compare": """
        set @/y one
        set --swap-with-value one @/y two
        set --swap-with-value nine @/y three
        set --swap-with-index {index @/y} @/y four
        set --swap-with-index 1 @/y five
        set --swap-with-index 1 --swap-with-value nine @/y five
        set --swap-with-index {index @/y} --swap-with-value four @/y six
        set --swap-with-value one @/none one
        rm --with-value one @/y
        rm --with-index 1 @/y
        rm --with-index {index @/y} @/y
        set @/y one
        rm --with-value one @/y
        rm --with-value one @/y
        mkdir @/d
        rm --with-value one @/d
        set --swap-with-value one @/d one
    """,
    "mk": """
        mk @/a 1
        mk @/a 1
        mk @/a/b 1
        mk @/b
        mk --ttl 100 @/t 1
        -o extended get @/t
        mk --in-order @/q 1
        mk --in-order @/q 2
        mk --in-order --ttl 100 @/q 3
        -o json mk --in-order @/q 4
        mk --in-order @/a 1
        ls --sort @/q
        ls --sort -r @
    """,
    "directories": """
        mkdir @/mk
        mkdir @/mk
        mk @/mk/a 1
        mkdir @/mk/a
        mkdir @/mk/deep/er
        mkdir --ttl 100 @/soon
        setdir @/mk2 --ttl 9
        setdir --ttl 100 @/mk2
        setdir @/mk3
        setdir @/mk3
        setdir @/mk/a
        updatedir @/mk2 --ttl 9
        updatedir --ttl 100 @/mk2
        updatedir @/none
        updatedir @/mk/a
        ls @
        ls --sort @
        ls --sort -p @
        ls --sort --recursive @
        ls --sort -r -p @
        ls @/mk/a
        ls @/none
        ls --quorum --sort @
        rmdir @/mk
        rmdir @/mk2
        rmdir @/mk/a
        rmdir @/none
        set @/mk/b 1
        rm @/mk
        rm --dir @/mk
        rm --dir @/mk3
        rm --recursive @/mk
        rm --recursive @/none
        rm @/none
        rm
        rm /
        rm -r /
        mkdir
        mkdir /
        setdir /
        rmdir
        ls @
        -o json ls --sort @
        -o json mkdir @/j
        -o extended mkdir @/e
        -o json rm -r @/j
        -o extended rm -r @/e
    """,
    "update": """
        update @/u 1
        set @/u 1
        update @/u 2
        -o extended update @/u 2
        update --ttl 100 @/u 3
        -o extended get @/u
        update @/u 4
        -o extended get @/u
        update @/u
        mkdir @/d
        update @/d 1
        piped | update @/u
        rm @/u
        -o extended rm @/u
        set @/u 1
        -o json rm @/u
    """,
    "hidden": """
        set @/_h/a 1
        set @/v 1
        set @/d/_z 1
        set @/d/x 1
        ls --sort @
        ls --sort -r @
        ls @/_h
        get @/_h/a
        rm @/_h/a
        rmdir @/_h
    """,
    "watch the past": """
        set @/start 1
        set @/w first
        set @/w second
        mk --ttl 100 @/v/x third
        watch --after-index {index @/start} @/w
        watch --recursive --after-index {index @/start} @
        watch --recursive --after-index {index @/w} @
        -o json watch --after-index {index @/start} @/v/x
        -o extended watch --after-index {index @/start} @/v/x
        update @/w third
        set --swap-with-value third @/w fourth
        -o json watch --after-index {index @/v/x} @/w
        set @/middle 1
        rm @/w
        watch --after-index {index @/middle} @/w
        -o json watch --recursive --after-index {index @/middle} @
        watch
        watch --after-index x @/w
        exec-watch --after-index {index @/start} sh -c 'env | grep ETCD_WATCH | sort; kill $PPID' @/middle
        exec-watch --recursive /
        exec-watch
    """,
    "with the requests shown": """
        --debug set @/x/y 1
        --debug get @/x/y
        --debug ls --recursive --sort @
        --debug mkdir @/mk
        --debug mk @/mk/a 1
        --debug mk --in-order @/mk 1
        --debug update @/mk/a 2
        --debug setdir @/mk2 --ttl 9
        --debug updatedir @/mk2 --ttl 9
        --debug rmdir @/mk2
        --debug rm @/mk/a
        --debug rm --recursive @/mk
        --debug rm --with-value 1 @/x/y
        --debug set --swap-with-value 9 @/x/y 2
        --debug -o extended get @/x/y
        --debug member list
        --debug cluster-health
        --debug user list
        --debug role list
    """,
    "members": """
        member list
        cluster-health
        member remove 123
        member remove nothex
        member remove
        member update 123 http://127.0.0.1:1
        member update 123
        member add
        member add one
        member add one {peer}
        member add one notaurl
        member add one http://127.0.0.1
        member
        backup
        bogus
        -o none get @/x
        --version
    """,
    "users and roles while auth is off": """
        user list
        role list
        user get none
        user remove none
        user grant none --roles app
        user add
        user add one two
        role get none
        role remove none
        role get guest
        role get root
        role remove root
        role add root
        role grant none --path /x --rw
        auth enable
        auth disable
        auth
        user add al:p
        user add al:p
        user list
        user get al
        user grant al --roles app
        user grant al
        user revoke al --roles app
        role add app
        role add app
        role grant app --path x --rw
        role grant app --path /x
        role grant app --path /x --rw
        role grant app --path /x --rw
        role grant app --path /y --read
        role grant app --path /z/* --write
        role get app
        role revoke app --path /y --write
        role revoke app --path /y --read
        role revoke app --path /x --rw
        role get app
        role list
        user grant al --roles app,root
        user get al
        user revoke al --roles root
        user get al
        q | user passwd al
        q | user passwd none
        role remove app
        user get al
        user remove al
        user list
        role list
    """,
}  # fmt: skip

#: Everything with authentication on; it ends as it began.
AUTH = """
    user add root:rp
    user list
    user get root
    auth enable
    auth enable
    user list
    role list
    role get guest
    member list
    cluster-health
    -u root:rp user list
    -u root:rp role list
    -u root:bad role list
    -u none:rp role list
    -u root:rp role get guest
    -u root:rp role add app
    -u root:rp role grant app --path @/app/* --rw
    -u root:rp role grant app --path @/app/* --rw
    -u root:rp role get app
    -u root:rp user add al:p
    -u root:rp user grant al --roles app
    -u root:rp user grant al --roles app
    -u root:rp user get al
    -u al:p user get al
    -u al:p user list
    set @/free 1
    get @/free
    -u al:p set @/free 1
    -u root:rp role revoke guest --path /* --write
    -u root:rp role get guest
    set @/free 2
    get @/free
    ls --sort @
    -u root:rp role revoke guest --path /* --read
    set @/free 2
    get @/free
    ls @
    -u al:p set @/app/x 1
    -u al:p set @/other/x 1
    -u al:p get @/app/x
    -u al:p get @/other/x
    -u al:p ls @/app
    -u al:p ls -r @/app
    -u al:p ls -r @
    -u al:p rm -r @/app
    -u al:p mkdir @/app
    -u al:p rm @/app/x
    -u al:p mk --in-order @/app/q 1
    -u al:bad get @/app/x
    -u al:bad set @/app/x 1
    -u none:p get @/app/x
    -u root:rp set @/other/x 1
    -u root:rp get @/other/x
    -u root:rp ls --sort -r @
    member list
    member remove 123
    cluster-health
    user remove root
    -u root:rp user remove root
    -u root:rp role remove root
    -u al:p auth disable
    auth disable
    new | -u root:rp user passwd al
    -u al:p get @/app/x
    -u al:new set @/app/x 2
    -u root:rp user revoke al --roles app
    -u root:rp user revoke al --roles app
    -u al:new set @/app/x 3
    -u root:rp role revoke app --path @/app/* --read
    -u root:rp role get app
    -u root:rp role remove app
    -u root:rp role remove app
    -u root:rp user remove al
    -u root:rp user remove al
    -u root:rp rm -r @
    -u root:rp auth disable
    auth disable
    user list
    role list
    role get guest
    role remove guest
    user remove root
    user list
    role list
"""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Etcdctl:
    """``etcdctl`` at one server, for one scenario."""

    def __init__(self, server: Server, folder: str) -> None:
        self.server = server
        self.folder = folder
        self.base = server.ask("GET", f"/v2/keys{folder}?quorum=true").index
        self._program = debian_program("etcdctl")

    def words(self, line: str) -> list[str]:
        """A line as arguments for this server."""
        def index(match: re.Match[str]) -> str:
            node = self.server.ask("GET", f"/v2/keys{match[1].replace('@', self.folder)}?quorum=true").json()
            return str(node["node"]["modifiedIndex"])

        line = re.sub(r"\{index ([^}]+)\}", index, line)
        line = line.replace("{peer}", f"http://127.0.0.1:{self.server.peer_ports[0]}")
        return [word.replace("@", self.folder) for word in shlex.split(line)]

    def command(self, line: str) -> tuple[list[str], dict[str, str]]:
        """Command line and environment."""
        words = [str(self._program), "--endpoints", self.server.url, *self.words(line)]
        return words, {**plain_variables(), "ETCDCTL_API": "2"}

    def run(self, line: str) -> Said:
        """Run a line to its end."""
        stdin, bar, rest = line.rpartition(" | ") if re.match(r"\w[\w ]* \| ", line) else ("", "", line)
        command, variables = self.command(rest)
        try:
            done = subprocess.run(
                command, env=variables, input=stdin + "\n" if bar else "", capture_output=True, text=True,
                timeout=COMMAND_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            return Said(999, str(late.stdout or ""), f"not done within {COMMAND_S:g} s: {late.stderr!r}")
        return Said(done.returncode, done.stdout, done.stderr)


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


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def differing(theirs: Etcdctl, ours: Etcdctl, lines: list[str]) -> Iterator[str]:
    """Run the lines on both; what is not the same."""
    for line in lines:
        one, other = theirs.run(line), ours.run(line)
        for what, there, here in (
            ("status", str(one.status), str(other.status)),
            ("stdout", normal(one.stdout, theirs, line), normal(other.stdout, ours, line)),
            ("stderr", normal(one.stderr, theirs, line), normal(other.stderr, ours, line)),
        ):
            if there != here:
                yield f"etcdctl {line}\n    {what}: etcd {there!r}\n    {' ' * len(what)}  ours {here!r}"


def _pair_of(pair: Pair, name: str) -> tuple[Etcdctl, Etcdctl]:
    folder = f"/ctl-{re.sub(r'[^a-z]', '-', name)}"
    return Etcdctl(pair.theirs, folder), Etcdctl(pair.ours, folder)


@pytest.mark.parametrize("name", SCENARIOS)
def test_etcdctl_cannot_tell_us_from_etcd(pair: Pair, name: str) -> None:
    """Every command of a scenario, one after the other."""
    found = list(differing(*_pair_of(pair, name), _lines(SCENARIOS[name])))
    assert not found, "\n" + "\n".join(found)


def test_etcdctl_member_list_names_one_leader(pair: Pair) -> None:
    """What :func:`normal` hides of it: all members, one of them the leader, all of them healthy."""
    for etcdctl in _pair_of(pair, "leader"):
        said = etcdctl.run("member list").stdout.splitlines()
        ports = etcdctl.server.client_ports
        assert sorted(re.findall(r"clientURLs=(\S+)", " ".join(said))) == sorted(f"http://127.0.0.1:{p}" for p in ports)
        assert sorted(re.findall(r"name=(\S+)", " ".join(said))) == [f"j{n}" for n in range(len(ports))]
        assert [line.endswith("isLeader=true") for line in said].count(True) == 1
        healthy = etcdctl.run("cluster-health").stdout
        assert len(re.findall("^member [0-9a-f]+ is healthy: got healthy result from", healthy, re.M)) == len(ports)


@pytest.mark.parametrize(
    ("watch", "before", "act"),
    [
        ("watch @/w", "set @/w 1", "set @/w live"),
        ("-o json watch @/w", "set @/w 1", "set @/w live"),
        ("watch --recursive @/w", "set @/w/a/b 1", "set @/w/a/b live"),
        ("watch @/w", "set @/w 1", "rm @/w"),
        ("exec-watch --recursive @/w -- sh -c 'env | grep ETCD_WATCH | sort; kill $PPID'", "set @/w/x 1", "rm @/w/x"),
        ("exec-watch --recursive @/w -- sh -c 'env | grep ETCD_WATCH | sort; kill $PPID'", "set @/w/x 1", "set @/w/x 2"),
    ],
    ids=["watch", "json", "recursive", "deletion", "exec deletion", "exec"],
)  # fmt: skip
def test_etcdctl_watches_live(pair: Pair, watch: str, before: str, act: str) -> None:
    """A watch that is open when something happens."""
    told = []
    for etcdctl in _pair_of(pair, "live"):
        try:
            told.append(_watched(etcdctl, watch, before, act))
        finally:
            etcdctl.run("rm -r @")
    assert told[0] == told[1]


def _watched(etcdctl: Etcdctl, watch: str, before: str, act: str) -> tuple[int, str, str]:
    """What a watch shows of ``act``; ``before`` and ``act`` come again if the watch was not open yet."""
    for patience in (0.4, 1.0, 2.0):
        etcdctl.run(before)
        command, variables = etcdctl.command(watch)
        process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with process:
            try:
                time.sleep(patience)
                etcdctl.run(act)
                stdout, stderr = process.communicate(timeout=2 * patience)
            except subprocess.TimeoutExpired:
                continue
            finally:
                process.kill()
        return process.returncode, _numberless(stdout), _numberless(stderr)
    return -1, "nothing", ""


def _numberless(text: str) -> str:
    return re.sub(r'(INDEX=|Index":)\d+', r"\1N", text)


# -- the requests of the recorded sessions ---------------------------------------------------------

#: ``METHOD TARGET [FIELD ...]``; ``@`` is a folder, ``{index KEY}`` as above.
REQUESTS = """
    GET /version
    GET /health
    GET @/
    PUT @/message value=Hello+world
    PUT @/message value=Hello+etcd
    GET @/message
    HEAD @/message
    PUT @/message value=x ttl=100
    PUT @/message ttl=1000 refresh=true prevExist=true
    PUT @/message value=y ttl=9 refresh=true
    PUT @/message refresh=true
    PUT @/nosuch ttl=3 refresh=true
    PUT @/message value=y ttl= prevExist=true
    PUT @/message value=y ttl=abc
    PUT @/message value=y ttl=-1
    PUT @/message?prevValue=no value=z
    PUT @/message?prevIndex=1 value=z
    PUT @/message?prevIndex=1&prevValue=no value=z
    PUT @/message?prevIndex=x value=z
    PUT @/message?prevValue= value=z
    PUT @/message?prevExist=false value=z
    PUT @/nope?prevExist=true value=z
    PUT @/message?prevExist=maybe value=z
    PUT @/message?prevValue=y value=z
    PUT @/message?noValueOnSuccess=true value=z2
    PUT @/message/sub value=z
    GET @/message/sub
    PUT @/dir dir=true
    PUT @/dir dir=true
    PUT @/dir value=1
    PUT @/dir?prevExist=true dir=true ttl=1000
    PUT @/dir?prevExist=true value=abc
    PUT @/dir?prevIndex=3 value=abc
    PUT @/dir/a/b value=1
    PUT @/dir/_hid value=1
    GET @/dir?recursive=true&sorted=true
    GET @/dir
    GET @/dir/
    GET @/dir/_hid
    POST @/queue value=job1
    POST @/queue value=job2 ttl=100
    POST @/queue dir=true
    POST @/message value=1
    PUT /v2/keys/ value=1
    DELETE /v2/keys/
    DELETE /v2/keys/?recursive=true
    DELETE @/dir
    DELETE @/dir?dir=true
    DELETE @/dir?recursive=true
    DELETE @/dir?recursive=true
    PUT @/ed dir=true
    DELETE @/ed?dir=true
    DELETE @/message?prevValue=no
    DELETE @/message?prevIndex=7777777
    DELETE @/message?prevExist=true
    PUT @/message value=q
    DELETE @/message?prevValue=q
    PUT @/message?wait=true value=q
    PATCH @/message
    OPTIONS @/message
    GET @/message?recursive=maybe
    GET @/queue?wait=true&recursive=true&waitIndex={index @/queue}
    GET @/queue?quorum=true&recursive=true&sorted=true
    PUT @/empty
    GET @/empty
    PUT @/utf value=h%C3%A9llo+%3Cb%3E
    PUT @/a%20b%2Fc value=1
    GET /v2/nosuch
    GET /nosuch
    HEAD /v2/members
    HEAD /health
"""
#: ``METHOD TARGET [USER:PASSWORD] [JSON]``; it ends as it began.
AUTH_REQUESTS = """
    GET /v2/auth/enable
    GET /v2/auth/users
    GET /v2/auth/users/
    GET /v2/auth/roles
    GET /v2/auth/roles/root
    GET /v2/auth/roles/guest
    GET /v2/auth/users/none
    GET /v2/auth/none
    POST /v2/auth/enable
    DELETE /v2/auth/enable
    PUT /v2/auth/enable
    PUT /v2/auth/users/x {"user":"y","password":"p"}
    PUT /v2/auth/users/x {"user":"x"}
    PUT /v2/auth/users/x {"user":"x","password":"p"}
    PUT /v2/auth/users/x {"user":"x","password":"p"}
    GET /v2/auth/users/x
    GET /v2/auth/users
    PUT /v2/auth/users/x {"user":"x","revoke":["app"]}
    PUT /v2/auth/users/x {"user":"x","roles":["root"],"grant":["root"]}
    PUT /v2/auth/users/x {"user":"x","grant":["root"]}
    PUT /v2/auth/users/x {"user":"x","grant":["root"]}
    GET /v2/auth/users/x
    PUT /v2/auth/users/x {"user":"x","password":"q","grant":["none"]}
    GET /v2/auth/users/x
    PUT /v2/auth/users/x {"user":"x","revoke":["none"]}
    PUT /v2/auth/users/x notjson
    PUT /v2/auth/users/none {"user":"none","grant":["root"]}
    PUT /v2/auth/users/z {"user":"z","password":"q","roles":["root","app"]}
    PUT /v2/auth/users/z {"user":"z","roles":["root"]}
    PUT /v2/auth/roles/r {"role":"r","permissions":{"kv":{"read":["/b","/a"],"write":["/b"]}}}
    PUT /v2/auth/roles/r {"role":"r","grant":{"kv":{"read":["/a"]}}}
    PUT /v2/auth/roles/r {"role":"r","grant":{"kv":{"read":["/c"],"write":["/c"]}}}
    PUT /v2/auth/roles/r {"role":"r","revoke":{"kv":{"read":["/d"]}}}
    PUT /v2/auth/roles/r {"role":"r","revoke":{"kv":{"read":["/c","/d"]}}}
    PUT /v2/auth/roles/r {"role":"r"}
    PUT /v2/auth/roles/r {"role":"r","permissions":{"kv":{"read":["/z"],"write":[]}}}
    PUT /v2/auth/roles/r {"role":"q"}
    PUT /v2/auth/roles/root {"role":"root","permissions":{"kv":{"read":["/z"],"write":[]}}}
    PUT /v2/auth/roles/none {"role":"none","grant":{"kv":{"read":["/a"]}}}
    GET /v2/auth/roles/none
    DELETE /v2/auth/roles/none
    GET /v2/auth/roles/r
    GET /v2/auth/roles
    DELETE /v2/auth/roles/r
    DELETE /v2/auth/roles/r
    DELETE /v2/auth/roles/root
    DELETE /v2/auth/users/x
    DELETE /v2/auth/users/x
    DELETE /v2/auth/users/z
    GET /v2/auth/users
    PUT /v2/auth/users/root {"user":"root","password":"rp"}
    PUT /v2/auth/enable
    PUT /v2/auth/enable
    GET /v2/auth/enable
    GET /v2/auth/roles/guest
    GET /v2/auth/roles/guest root:rp
    PUT /v2/auth/roles/guest root:rp {"role":"guest","revoke":{"kv":{"write":["/*"]}}}
    PUT @/authx?value=1
    POST @/authx?value=1
    DELETE @/authx
    PUT /v2/auth/roles/app root:rp {"role":"app","permissions":{"kv":{"read":["@/*"],"write":["@/*"]}}}
    PUT /v2/auth/users/al root:rp {"user":"al","password":"p","roles":["app"]}
    PUT @/x?value=1 al:p
    PUT /v2/keys/other?value=1 al:p
    GET @/x al:bad
    GET @/x
    GET @/x al:p
    HEAD @/x al:bad
    GET @?recursive=true al:p
    GET @/x?wait=true&waitIndex={index @/x} al:bad
    GET @/x?wait=true&waitIndex={index @/x} al:p
    GET /v2/auth/users root:rp
    GET /v2/auth/users/al root:rp
    GET /v2/auth/users
    GET /v2/auth/users al:p
    PUT /v2/auth/users/al al:p {"user":"al","password":"own"}
    GET /v2/stats/none
    POST /v2/members {}
    POST /v2/members al:p {}
    DELETE /v2/members/123
    DELETE /v2/members/123 root:rp
    PUT /v2/auth/roles/app root:rp {"role":"app","revoke":{"kv":{"write":["@/*"]}}}
    PUT @/x?value=2 al:p
    GET @/x al:p
    DELETE /v2/auth/roles/app root:rp
    GET @/x al:p
    GET /v2/auth/users/al root:rp
    DELETE /v2/auth/users/al root:rp
    GET @/x al:p
    DELETE /v2/auth/users/root root:rp
    DELETE /v2/auth/enable
    DELETE /v2/auth/enable root:rp
    DELETE /v2/auth/enable root:rp
    DELETE /v2/auth/roles/guest
    DELETE /v2/auth/users/root
    GET /v2/auth/users
    GET /v2/auth/roles
"""


def _ask_with_credentials(server: Server, line: str, folder: str) -> compare.Answer:
    method, target, *rest = line.split()
    headers = {}
    if rest and ":" in rest[0] and not rest[0].startswith("{"):
        headers["Authorization"] = "Basic " + base64.b64encode(rest.pop(0).encode()).decode()
    if rest:
        headers["Content-Type"] = "application/json"
    body = rest[0].replace("@", folder).encode() if rest else None
    return server.outcome(method, target.replace("@", f"/v2/keys{folder}"), body, headers)


def _ask(server: Server, line: str, folder: str) -> compare.Answer:
    method, target, *fields = line.split()
    def index(match: re.Match[str]) -> str:
        node = server.ask("GET", f"/v2/keys{match[1].replace('@', folder)}?quorum=true").json()
        return str(node["node"]["modifiedIndex"])

    target = re.sub(r"\{index ([^}]+)\}", index, line.removeprefix(method).strip()) if "{" in line else target
    target = target.replace("@", f"/v2/keys{folder}")
    return server.outcome(method, target, "&".join(fields).encode() or None, FORM if fields else {})


def test_recorded_requests_are_answered_alike(pair: Pair) -> None:
    """The requests of the recorded v2 session, in their order."""
    folder, found = "/recorded", []
    bases = [server.ask("GET", f"/v2/keys{folder}?quorum=true").index for server in pair]
    for line in _lines(REQUESTS):
        views = []
        for server, base in zip(pair, bases, strict=True):
            views.append(compare.v2_view(_ask(server, line, folder), base, "sorted" in line))
        found += [f"{line}\n    {d}" for d in differences(*views)]
    assert not found, "\n" + "\n".join(found)


#: Who is asked, and what; only names and types are compared.
TELL_OF_MEMBERS = ("/v2/stats/self", "/v2/stats/store", "/v2/stats/leader", "/v2/members", "/v2/members/",
                   "/v2/members/leader", "/v2/machines")  # fmt: skip


@pytest.mark.parametrize("target", TELL_OF_MEMBERS)
def test_members_and_statistics_have_etcds_shape(pair: Pair, target: str) -> None:
    """Asked of the leader, who alone knows some of it; how it fares with others is no matter."""
    views = []
    for server in pair:
        leader = json.loads(server.ask("GET", "/v2/members/leader").text)
        asked = server.client_ports.index(int(leader["clientURLs"][0].rpartition(":")[2]))
        view = compare.v2_view(server.ask("GET", target, member=asked), 0, True)
        body = view["body"]
        if isinstance(body, dict):
            body = {name: item for name, item in body.items() if not name.endswith("Rate")}
            body |= {"followers": {}} if "followers" in body else {}
        view["body"] = compare.shape(body)
        views.append(view)
    assert not [str(d) for d in differences(*views)]


def test_what_a_key_with_no_time_to_live_leaves(pair: Pair) -> None:
    """``ttl=0``: there for a moment, then gone, with one event; both as an index says."""
    for server in pair:
        key = "/v2/keys/zero"
        made = server.ask("PUT", key, b"value=y&ttl=0", FORM)
        assert made.status == 201 and "expiration" in made.json()["node"] and "ttl" not in made.json()["node"]
        wait_until("the key to expire", lambda: server.ask("GET", key).status == 404)  # noqa: B023
        with server.stream("GET", f"{key}?wait=true&waitIndex={made.index + 1}") as stream:
            event = json.loads(stream.line(5.0) or "{}")
        assert event["action"] == "expire" and list(event["node"]) == ["key", "modifiedIndex", "createdIndex"]
        assert event["prevNode"]["value"] == "y" and event["node"]["modifiedIndex"] == made.index + 1


def test_etcdctl_with_authentication(pair: Pair) -> None:
    """Users, roles and what they may; last, since everybody else needs it off."""
    theirs, ours = _pair_of(pair, "auth")
    try:
        found = list(differing(theirs, ours, _lines(AUTH)))
    finally:
        for etcdctl in (theirs, ours):
            for password in ("rp", "new"):
                etcdctl.run(f"-u root:{password} auth disable")
    assert not found, "\n" + "\n".join(found)


def _uncounted(value: Any) -> Any:
    """A view without any distances of indexes."""
    if isinstance(value, dict):
        return {name: _uncounted(item) for name, item in value.items()}
    return re.sub(r"^\+\d+$", "+N", value) if isinstance(value, str) else value


def test_recorded_requests_with_credentials_are_answered_alike(pair: Pair) -> None:
    """The requests of the recorded session about users and roles, and their neighbours.

    How many indexes a change to a user or a role takes is the server's own affair.
    """
    folder, found = "/recorded-auth", []
    bases = [server.ask("GET", f"/v2/keys{folder}?quorum=true").index for server in pair]
    indexes = [str(base + 1) for base in bases]  # of the first key that can be written
    try:
        for line in _lines(AUTH_REQUESTS):
            views = []
            for server, base, index in zip(pair, bases, indexes, strict=True):
                answer = _ask_with_credentials(server, re.sub(r"\{.*?@/x\}", index, line), folder)
                views.append(_uncounted(compare.v2_view(answer, base, True)))
            found += [f"{line}\n    {d}" for d in differences(*views)]
    finally:
        for server in pair:
            _ask_with_credentials(server, "DELETE /v2/auth/enable root:rp", folder)
            server.ask("DELETE", f"/v2/keys{folder}?recursive=true")
    assert not found, "\n" + "\n".join(found)


def test_programs_are_debians(pair: Pair) -> None:
    """The judge is the judge: version 3.4 of etcdctl, and the real etcd on their side."""
    assert pair.theirs.program == debian_program("etcd")
    version = json.loads(pair.theirs.ask("GET", "/version").text)
    assert version["etcdserver"].startswith("3.4.")
    assert isinstance(debian_program("etcdctl"), Path)
