"""Debian's ``etcdctl`` with version 3 of the API, which is gRPC, against etcd and against ours.

Both answer at the port of their HTTP door, as clients of etcd expect.
"""

from __future__ import annotations

import re
import subprocess
import threading
from base64 import b64encode
from pathlib import Path

import pytest

from ..waiting import wait_until
from .etcdctl import COMMAND_S, Etcdctl3, both, differing
from .lines import lines
from .servers import Pair

pytestmark = pytest.mark.timeout(120)

#: Commands by scenario; a line is ``[stdin |] words``, with ``\\n`` for a new line of standard input.
SCENARIOS: dict[str, str] = {
    "put and get": """
        put @/a 1
        put @/a 2 --prev-kv
        put @/b 3
        put @/c/d 4
        put @/empty ''
        from stdin | put @/piped
        put -- @/dash -5
        put @/utf 'héllo <b>&'
        get @/a
        get @/a --print-value-only
        get @/ --prefix
        get @/ --prefix --keys-only
        get @/ --prefix --limit 2
        get @/ --prefix --order DESCEND
        get @/ --prefix --sort-by VALUE --order ASCEND
        get @/ --prefix --sort-by MODIFY --order DESCEND
        get @/ --prefix --sort-by VERSION
        get @/ --prefix --sort-by NONE
        get @/a @/c
        get @/a --consistency s
        get @/a --consistency x
        get @/a --rev 1000000
        get @/a --rev {rev}
        get @/none
        get @/a --from-key --limit 1
        get @/a --hex
        get
        get ''
        put
        put @/a
        put '' 1
        -w json get @/a
        -w json get @/ --prefix
        -w fields get @/a
        -w json put @/a 3 --prev-kv
        -w fields put @/a 3 --prev-kv
        -w json put @/a 3
        put @/none --ignore-value
        put @/a --ignore-value
        put @/a 5 --ignore-value
        put @/none 5 --ignore-lease
        put @/a 5 --lease=1234
        del @/a
        del @/a
        del @/b --prev-kv
        -w json del @/c --prefix --prev-kv
        del @/ --prefix
        get @/ --prefix
    """,
    "transactions": """
        put @/a 1
        value("@/a") = "1"\\n\\nput @/a 2\\nget @/a\\n\\nget @/a\\n | txn -i
        value("@/a") = "1"\\n\\nput @/a 2\\n\\nget @/a\\ndel @/a\\n | txn
        version("@/a") = "0"\\n\\nput @/a 1\\n\\nput @/b 1\\n | txn
        create("@/a") = "0"\\nmod("@/b") > "0"\\n\\nput @/c 1\\nput @/d 2\\nget @/ --prefix\\n\\n | txn
        value("@/c") != "1"\\n\\nput @/c 1\\n\\nget @/c\\n | -w json txn
        \\nput @/x 1\\nput @/x 2\\n\\n | txn
        \\nput @/x 1\\ndel @/x\\n\\n | txn
        \\n\\n | txn
        nonsense\\n\\n\\n | txn
        get @/ --prefix
    """,
    "leases": """
        lease grant 100
        put @/a 1 --lease={lease}
        put @/b 1 --lease={lease}
        lease timetolive {lease}
        lease timetolive {lease} --keys
        -w json lease timetolive {lease} --keys
        lease list
        -w json lease list
        lease keep-alive {lease} --once
        -w fields get @/a
        put @/a 2 --ignore-lease
        -w json get @/a
        lease revoke {lease}
        lease revoke {lease}
        lease timetolive {lease}
        lease keep-alive {lease} --once
        lease list
        get @/ --prefix
        lease grant 0
        lease grant 10000000000
        lease grant x
        lease revoke xyz
    """,
    "history": """
        put @/a 1
        put @/a 2
        put @/a 3
        -w json watch @/a --rev 1000000
        compaction {rev}
        compaction {rev}
        compaction 1000000
        get @/a --rev 1
        -w json get @/a --rev {rev}
        compaction
        compaction x
    """,
    "locks": """
        lock @/l echo held
        lock @/l sh -c 'exit 3'
        lock @/l --ttl 20 echo held again
        get @/l --prefix
    """,
    "the cluster": """
        endpoint health
        alarm list
        alarm disarm
        defrag
        member remove 123
        member remove xyz
        member update 123 --peer-urls http://127.0.0.1:1
        member promote 123
    """,
}  # fmt: skip
#: A value that is written last.
END = "the end!"
#: Users, roles and what they may.
AUTH = """
    auth enable
    user list
    user add root:rp
    role add root
    user grant-role root root
    user add al:p
    user add al:p
    user add bob --no-password
    user add :p
    role add app
    role add app
    role grant-permission app readwrite @/app/ --prefix
    role grant-permission app read @/other
    role grant-permission none read @/other
    role grant-permission app bogus @/other
    role get app
    role get none
    role list
    user grant-role al app
    user grant-role al none
    user get al
    user get al --detail
    user list
    auth enable
    put @/app/x 1
    --user al:p put @/app/x 1
    --user al:p put @/other 1
    --user al:p get @/other
    --user al:p get @/app/ --prefix
    --user al:p get @/ --prefix
    --user al:p del @/app/ --prefix
    --user al:bad get @/app/x
    --user none:p get @/app/x
    --user al:p user list
    --user al:p user get al
    --user al:p auth disable
    --user root:rp put @/other 2
    --user root:rp get @/other
    --user root:rp user passwd al --interactive=false
    --user root:rp user revoke-role al app
    --user root:rp user revoke-role al app
    --user al:p get @/app/x
    --user root:rp role revoke-permission app @/other
    --user root:rp role revoke-permission app @/other
    --user root:rp role get app
    --user root:rp role delete app
    --user root:rp role delete app
    --user root:rp user delete al
    --user root:rp user delete al
    --user root:rp user delete bob
    --user root:rp del @/ --prefix
    --user root:rp auth disable
    user delete root
    role delete root
    user list
    role list
"""


@pytest.mark.parametrize("name", SCENARIOS)
def test_etcdctl3_cannot_tell_us_from_etcd(pair: Pair, name: str) -> None:
    """Every command of a scenario, one after the other."""
    found = list(differing(*both(pair, name, Etcdctl3), lines(SCENARIOS[name])))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("watch", "acts"),
    [
        ("watch @/w", ["put @/w live", "put @/wide other", "del @/w"]),
        ("-w json watch @/w --prev-kv", ["put @/w live"]),
        ("watch @/ --prefix", ["put @/x 1", "del @/ --prefix"]),
        ("watch @/w --rev {rev}", ["put @/w live"]),
        ("watch @/w @/x -- sh -c 'env | grep ETCD_WATCH_[EKV] | sort'", ["put @/w live"]),
    ],
    ids=["key", "json", "prefix", "from a revision", "exec"],
)
def test_etcdctl3_watches_live(pair: Pair, watch: str, acts: list[str]) -> None:
    """A watch that is open when something happens."""
    told = []
    for etcdctl in both(pair, "live", Etcdctl3):
        assert isinstance(etcdctl, Etcdctl3)
        told.append(_watched(etcdctl, watch, acts))
    assert told[0] == told[1] != ""


def _watched(etcdctl: Etcdctl3, watch: str, acts: list[str]) -> str:
    """What a watch that is open shows of ``acts``, up to a value that only the last one has."""
    etcdctl.run("put @/w before")
    wait_until("no watch to be open", lambda: _watches(etcdctl) == 0)
    command, variables = etcdctl.command(watch)
    shown = ""
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(COMMAND_S, process.kill)
        late.start()
        try:
            wait_until("the watch to be open", lambda: _watches(etcdctl) == 1)
            for act in [*acts, f"put @/w '{END}'"]:
                etcdctl.run(act)
            assert process.stdout is not None
            while END not in shown and b64encode(END.encode()).decode() not in shown:
                line = process.stdout.readline()
                assert line, f"the watch showed no more than {shown!r}"
                shown += line
        finally:
            late.cancel()
            process.kill()
    etcdctl.run("del @ --prefix")
    return etcdctl.normal(shown, watch)


def _watches(etcdctl: Etcdctl3) -> int:
    """How many watches are open at all members together, as the metrics say."""
    found = 0
    for member in range(len(etcdctl.server.client_ports)):
        text = etcdctl.server.ask("GET", "/metrics", member=member).text
        counts = re.findall(r"^(?:etcd_debugging_mvcc_watcher_total|argosy_http_watches) (\S+)", text, re.M)
        found += sum(int(float(count)) for count in counts)
    return found


def test_etcdctl3_saves_a_snapshot(pair: Pair, tmp_path: Path) -> None:
    """It looks for a sum at the end, and keeps nothing without."""
    for etcdctl in both(pair, "snapshot", Etcdctl3):
        etcdctl.run("put @/a 1")
        saved = etcdctl.run(f"snapshot save {tmp_path}/{etcdctl.server.client_ports[0]}.snap")
        assert saved.status == 0 and saved.stdout.startswith("Snapshot saved at"), saved


def test_etcdctl3_with_authentication(pair: Pair) -> None:
    """Users, roles and what they may; last, since everybody else needs it off."""
    theirs, ours = both(pair, "auth", Etcdctl3)
    for etcdctl in (theirs, ours):  # whom version 2 left is in another book of etcd's, and in the one book of ours
        for user in etcdctl.server.ask("GET", "/v2/auth/users").json()["users"] or ():
            etcdctl.server.ask("DELETE", f"/v2/auth/users/{user['user']}")
    try:
        found = list(differing(theirs, ours, lines(AUTH)))
    finally:
        for etcdctl in (theirs, ours):
            etcdctl.run("--user root:rp auth disable")
    assert not found, "\n" + "\n".join(found)
