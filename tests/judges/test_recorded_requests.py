"""The requests of recorded v2 sessions, and their neighbours, to etcd and to ours.

See ``lines.py`` for what stands in a line.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from ..answers import Answer
from ..waiting import wait_until
from . import compare
from .compare import differences
from .lines import lines, with_indexes
from .requests import FORM
from .servers import Pair, Server

pytestmark = pytest.mark.timeout(120)

#: ``METHOD TARGET [FIELD ...]``.
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


def _ask_with_credentials(server: Server, line: str, folder: str) -> Answer:
    method, target, *rest = line.split()
    headers = {}
    if rest and ":" in rest[0] and not rest[0].startswith("{"):
        headers["Authorization"] = "Basic " + base64.b64encode(rest.pop(0).encode()).decode()
    if rest:
        headers["Content-Type"] = "application/json"
    body = rest[0].replace("@", folder).encode() if rest else None
    return server.outcome(method, target.replace("@", f"/v2/keys{folder}"), body, headers)


def _ask(server: Server, line: str, folder: str) -> Answer:
    method, target, *fields = with_indexes(line, server, folder).split()
    target = target.replace("@", f"/v2/keys{folder}")
    return server.outcome(method, target, "&".join(fields).encode() or None, FORM if fields else {})


def test_recorded_requests_are_answered_alike(pair: Pair) -> None:
    """The requests of the recorded v2 session, in their order."""
    folder, found = "/recorded", []
    for server in pair:  # so that no index is 1, which the session names
        server.ask("PUT", "/v2/keys/first", b"value=1", FORM)
        server.ask("DELETE", "/v2/keys/first")
    bases = [server.v2_index(folder) for server in pair]
    for line in lines(REQUESTS):
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
    bases = [server.v2_index(folder) for server in pair]
    indexes = [str(base + 1) for base in bases]  # of the first key that can be written
    try:
        for line in lines(AUTH_REQUESTS):
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
