"""Debian's ``etcdctl`` with version 2 of the API, against etcd and against ours.

The commands are those of recorded sessions, and their neighbours; see ``lines.py`` for what
stands in a line.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from ..waiting import wait_until
from .etcdctl import COMMAND_S, Etcdctl, both, differing
from .lines import lines
from .servers import Pair, Server, debian_program

pytestmark = pytest.mark.timeout(120)

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


@pytest.mark.parametrize("name", SCENARIOS)
def test_etcdctl_cannot_tell_us_from_etcd(pair: Pair, name: str) -> None:
    """Every command of a scenario, one after the other."""
    found = list(differing(*both(pair, name), lines(SCENARIOS[name])))
    assert not found, "\n" + "\n".join(found)


def test_etcdctl_member_list_names_one_leader(pair: Pair) -> None:
    """What :func:`normal` hides of it: all members, one of them the leader, all of them healthy."""
    for etcdctl in both(pair, "leader"):
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
    for etcdctl in both(pair, "live"):
        try:
            told.append(_watched(etcdctl, watch, before, act))
        finally:
            etcdctl.run("rm -r @")
    assert told[0] == told[1]


def _watched(etcdctl: Etcdctl, watch: str, before: str, act: str) -> tuple[int, str, str]:
    """What a watch that is open shows of ``act``."""
    etcdctl.run(before)
    wait_until("no watch to be open", lambda: _watches(etcdctl.server) == 0)
    command, variables = etcdctl.command(watch)
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until("the watch to be open", lambda: _watches(etcdctl.server) == 1)
            etcdctl.run(act)
            stdout, stderr = process.communicate(timeout=COMMAND_S)
        finally:
            process.kill()
    return process.returncode, _numberless(stdout), _numberless(stderr)


def _watches(server: Server) -> int:
    """How many watches are open at all members together."""
    members = range(len(server.client_ports))
    return sum(int(server.ask("GET", "/v2/stats/store", member=m).json()["watchers"]) for m in members)


def _numberless(text: str) -> str:
    return re.sub(r'(INDEX=|Index":)\d+', r"\1N", text)


def test_programs_are_debians(pair: Pair) -> None:
    """The judge is the judge: version 3.4 of etcdctl, and the real etcd on their side."""
    assert pair.theirs.program == debian_program("etcd")
    version = json.loads(pair.theirs.ask("GET", "/version").text)
    assert version["etcdserver"].startswith("3.4.")
    assert isinstance(debian_program("etcdctl"), Path)


def test_etcdctl_with_authentication(pair: Pair) -> None:
    """Users, roles and what they may; last, since everybody else needs it off."""
    theirs, ours = both(pair, "auth")
    try:
        found = list(differing(theirs, ours, lines(AUTH)))
    finally:
        for etcdctl in (theirs, ours):
            for password in ("rp", "new"):
                etcdctl.run(f"-u root:{password} auth disable")
    assert not found, "\n" + "\n".join(found)
