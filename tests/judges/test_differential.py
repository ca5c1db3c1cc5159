"""The same requests to Debian's etcd and to ours: what they answer may not differ.

Hypothesis makes the requests up, always the same ones.  An example is a sequence of requests
to keys of its own, v2 or v3; the answers are compared one by one, indexes and revisions
counted from the start of the example (see ``compare.py``).  What may differ all the same
stands in ``ACCEPTED``, with the reason.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ..answers import Answer
from ..waiting import wait_until
from .compare import Difference, differences, headers_view, v2_body, v3_body
from .lines import lines
from .requests import (
    FORM,
    V2,
    V3,
    Fields,
    Key,
    Lease,
    Rev,
    World,
    both_v2,
    both_v3,
    camel,
    clear_v2,
    clear_v3,
    worlds_v2,
    worlds_v3,
)
from .servers import Pair

pytestmark = pytest.mark.timeout(280)


@dataclass(frozen=True)
class Accepted:
    """Differences we mean to have: where in the answer, to which requests, and why."""

    reason: str
    where: str  # a regular expression over :attr:`Difference.where`, from its start
    requests: str  # a regular expression over the request as text
    example: tuple[V2 | V3, ...]  # the last of these requests shows it; none if a test below does
    theirs: str = ""  # a regular expression over what etcd says, from its start

    def covers(self, request: object, difference: Difference) -> bool:
        """Whether this difference is one of these."""
        return bool(
            re.match(self.where, difference.where) and re.search(self.requests, str(request))
            and re.match(self.theirs, str(difference.theirs))
        )  # fmt: skip


def _put_v2(path: str, query: Fields = (), **fields: str) -> V2:
    """A PUT with these fields in its body."""
    return V2("PUT", path, query, tuple(fields.items()))


def _whole(method: str, target: str, **fields: str) -> V2:
    """A request to a target outside of the example's folder."""
    return V2(method, target, (), tuple(fields.items()), whole=True)


def _put_v3(suffix: bytes, value: str = "MQ==", **more: Any) -> V3:
    return V3("kv/put", {"key": Key(suffix), "value": value, **more})


_A, _B = _put_v3(b"a"), _put_v3(b"b")
#: The range of all keys of the example.
_ALL = {"key": Key(b""), "range_end": Key(b"", plus=True)}
#: Every difference we mean to have.  Nothing else may differ, and each of these must.
ACCEPTED: tuple[Accepted, ...] = (
    Accepted(
        "a path with empty elements or dots is cleaned and answered; etcd sends the client to the clean one first",
        "redirected$", r"^(?!POST /v3).*(//|/\.)", (V2("GET", "//a"),),
    ),
    Accepted(
        "watching from the past, etcd forgets to leave hidden keys out, as it does while it watches",
        "hidden in history$", "wait=true", (_put_v2("/d/_z", value="one"),
        V2("GET", "/d", (("wait", "true"), ("recursive", "true"), ("waitIndex", "@+1")))),
    ),
    Accepted(
        "a byte that is not UTF-8 is the replacement character in both; Go writes an escape, and means the same",
        'spelled."[^"]*(\ufffd|\\\\ufffd)', "", (V2("PUT", "/a", raw_query="value=%FF"),),
    ),
    Accepted(
        "a key of the tree is text: a path that is not UTF-8 is refused",
        "", "%FF", (_put_v2("/%FF", value="one"),),
    ),
    Accepted(
        "a method in lower case is no HTTP; etcd says that it does not allow it",
        "", "^get ", (V2("get", "/a"),),
    ),
    Accepted(
        "what is not a message is refused with a sentence of ours, not with one of Go's decoder",
        r"body\.(error|message)$", "^POST /v3/", (V3("kv/range", raw=b"{"),),
        "json: |invalid character |unexpected |unknown value |illegal base64 |EOF$",
    ),
    Accepted("etcd tells the streams of a key twice when it goes", r"told twice\[", "stream=true", ()),
    Accepted("a call of etcd 3.5, and useful", "", "^POST /v3/auth/status ", (V3("auth/status"),)),
    Accepted(
        "in a transaction, a key may not be put when all keys from a lower one on are deleted; etcd overlooks that",
        "", "range_end: 'AA=='", (_A, _B, V3("kv/txn", {"success": [
            {"request_delete_range": {"key": Key(b"a"), "range_end": "AA=="}}, {"request_put": {"key": Key(b"b")}},
        ]})),
    ),
)  # fmt: skip

_FUZZ = settings(
    derandomize=True, database=None, deadline=None, print_blob=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)  # fmt: skip
_NUMBERS = itertools.count(1)


def unaccepted(request: object, found: Iterable[Difference]) -> list[Difference]:
    """What is left of the differences without the accepted ones."""
    return [d for d in found if not any(rule.covers(request, d) for rule in ACCEPTED)]


@contextmanager
def _example(pair: Pair, kind: type[V2 | V3]) -> Iterator[tuple[World, World]]:
    """Both servers for one example of such requests; what it leaves behind is removed."""
    start, clear = (worlds_v2, clear_v2) if kind is V2 else (worlds_v3, clear_v3)
    worlds = start(pair, next(_NUMBERS))
    try:
        yield worlds
    finally:
        for world in worlds:
            clear(world)


def _both(worlds: tuple[World, World], step: V2 | V3) -> list[Difference]:
    return both_v2(*worlds, step) if isinstance(step, V2) else both_v3(*worlds, step)


@pytest.mark.parametrize("rule", [rule for rule in ACCEPTED if rule.example], ids=lambda rule: rule.reason[:40])
def test_what_is_accepted_is_different(pair: Pair, rule: Accepted) -> None:
    """An entry without a difference is taken out of the table."""
    with _example(pair, type(rule.example[0])) as worlds:
        found = [_both(worlds, step) for step in rule.example][-1]
    covered = [d for d in found if rule.covers(rule.example[-1], d)]
    assert bool(covered) != (pair.ours.program == pair.theirs.program), rule


def _play(pair: Pair, kind: type[V2 | V3], steps: Iterable[V2 | V3]) -> tuple[list[str], list[Difference]]:
    """Ask both, step by step, up to the first difference; what was asked, and what differed."""
    asked: list[str] = []
    with _example(pair, kind) as worlds:
        for step in steps:
            asked.append(str(step))
            left = unaccepted(step, _both(worlds, step))
            if left:
                return asked, left
    return asked, []


def play_v2(pair: Pair, steps: Iterable[V2]) -> tuple[list[str], list[Difference]]:
    """An example of v2's requests."""
    return _play(pair, V2, steps)


def play_v3(pair: Pair, steps: Iterable[V3]) -> tuple[list[str], list[Difference]]:
    """An example of v3's messages."""
    return _play(pair, V3, steps)


def same(asked: list[str], found: list[Difference]) -> None:
    """Fail with the requests that led to a difference, and the difference."""
    if found:
        pytest.fail("\n".join(["", *asked, *(f"    {d}" for d in found)]), pytrace=False)


def _often(*strategies: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of these, as often as their numbers say (``one_of`` counts each once)."""
    return st.sampled_from([s for times, s in strategies for _ in range(times)]).flatmap(lambda chosen: chosen)


# -- v2 --------------------------------------------------------------------------------------------

#: Below the example's folder; files and directories get in each other's way.
_PATHS = ("/a", "/a", "/a", "/b", "/b", "/d", "/d", "/d/x", "/d/x", "/d/e/f", "/a/b", "/q", "/_h", "/d/_z", "/new",
          "/e", "")  # fmt: skip
_ODD_PATHS = ("/a/", "//a", "/d/../a", "/./a", "/d%2Fx", "/s%20p", "/%C3%A9", "/a.b", "/a%00b", "/a+b", "/_",
              "/d/x/", "/..a", "/a%3Fb")  # fmt: skip
_VALUES = ("one", "two", "one", "two", "", "x y", '<&>"\\', "é✓\u2028", "a" * 300, "+%41", "tab\there")
_INDEXES = ("@last", "@last", "@+1", "@+2", "@+3", "@+9", "0")
_BAD = {
    "prevIndex": ("x", "-1", "", "18446744073709551616", " 1"), "waitIndex": ("x", "-1", ""),
    "ttl": ("abc", "-1", "", "1.5", "99999999999999999999"), "prevExist": ("maybe", "", "yes"),
    "dir": ("maybe", "", "TRUE", "0"), "recursive": ("maybe", "2", ""), "sorted": ("maybe", "tRue"),
    "quorum": ("maybe", ""), "stream": ("maybe",), "wait": ("maybe", "0", ""), "refresh": ("maybe", "", "yes"),
    "noValueOnSuccess": ("maybe", "", "T"), "prevValue": ("",),
}  # fmt: skip
_GOOD: dict[str, st.SearchStrategy[str]] = {
    "value": st.sampled_from(_VALUES),
    "prevValue": st.sampled_from(("one", "two", "one", "two", "zero")),
    "prevIndex": st.sampled_from(_INDEXES),
    "prevExist": st.sampled_from(("true", "false", "1", "0", "f", "T")),
    "ttl": st.sampled_from(("100", "1000", "100000000")),
    **{
        name: st.sampled_from(("true", "true", "false", "1"))
        for name in ("dir", "recursive", "sorted", "quorum", "refresh", "noValueOnSuccess")
    },
}
_ANY_FIELD = st.sampled_from(sorted(_GOOD.keys() | _BAD.keys())).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.one_of(*([_GOOD[name]] if name in _GOOD else []), *([st.sampled_from(_BAD[name])] if name in _BAD else [])),
    )
)
_PATH = _often((6, st.sampled_from(_PATHS)), (1, st.sampled_from(_ODD_PATHS)))
#: How examples begin, so that there is something to find.
_PRELUDES_V2: tuple[tuple[V2, ...], ...] = (
    (), (_put_v2("/a", value="one"), _put_v2("/b", value="two", ttl="100")),
    (
        _put_v2("/a", value="one"), _put_v2("/d/x", value="one"), _put_v2("/d/e/f", value="two"),
        _put_v2("/d/_z", value="two"), _put_v2("/b", value="two"), _put_v2("/b", (("prevValue", "two"),), value="one"),
    ),
    (
        _put_v2("/a", value="two", ttl="1000"), _put_v2("/e", dir="true"),
        _put_v2("/d", dir="true", ttl="1000"), _put_v2("/d/x", (("prevExist", "false"),), value="two"),
        V2("POST", "/q", (), (("value", "one"),)), V2("POST", "/q", (), (("dir", "true"),)),
    ),
)  # fmt: skip


def _some(names: str) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    """Up to three fields of these names, each at most once."""
    one = st.sampled_from(names.split()).flatmap(lambda name: st.tuples(st.just(name), _GOOD[name]))
    return st.lists(one, max_size=3, unique_by=lambda pair: pair[0]).map(tuple)


@st.composite
def _writes_v2(draw: st.DrawFn) -> V2:
    """A PUT that makes sense, its conditions in the query and the rest anywhere."""
    path = draw(_PATH)
    conditions = draw(_often((1, st.just(())), (1, _some("prevValue prevIndex prevExist prevExist noValueOnSuccess"))))
    rest = draw(st.sampled_from(("value", "value", "value", "dir", "ttl value", "ttl dir", "ttl refresh", "none")))
    body = tuple((n, draw(_GOOD[n])) for n in rest.split() if n in _GOOD)
    if draw(st.booleans()):
        return V2("PUT", path, conditions, body)
    return V2("PUT", path, (*conditions, *body)) if draw(st.booleans()) else V2("PUT", path, (), (*body, *conditions))


_POSTS = st.builds(V2, st.just("POST"), _PATH, _some("value value ttl dir"), _some("value value ttl dir noValueOnSuccess"))
_DELETES = st.builds(
    V2, st.just("DELETE"), _PATH, _some("recursive recursive dir prevValue prevIndex prevExist"),
    _often((3, st.just(())), (1, _some("recursive dir prevValue"))),
)  # fmt: skip
_READS = st.builds(V2, st.sampled_from(("GET", "GET", "GET", "HEAD")), _PATH, _some("recursive recursive sorted quorum"))
_WAITS = st.builds(
    lambda path, index, more: V2("GET", path, (("wait", "true"), ("waitIndex", index), *more)),
    st.sampled_from(_PATHS), st.sampled_from(("@last", "@+1", "@+1", "@+2", "@+3", "@+4", "@+60")),
    st.one_of(_some("recursive recursive"), st.just((("stream", "true"),)), st.just((("recursive", "true"), ("stream", "true")))),
)  # fmt: skip
_WILD = st.builds(
    V2, st.sampled_from(("PUT", "PUT", "POST", "DELETE", "GET")), _PATH,
    st.lists(_ANY_FIELD, max_size=4).map(tuple), st.lists(_ANY_FIELD, max_size=4).map(tuple),
)  # fmt: skip
_ODD_V2 = st.sampled_from((
    _whole("PUT", "/v2/keys/", value="1"),
    _whole("PUT", "/v2/keys", dir="true"),
    _whole("PUT", "/v2/keys/?prevExist=true", value="1"),
    _whole("PUT", "/v2/keys/?prevValue=1", value="1"),
    _whole("DELETE", "/v2/keys/"), _whole("DELETE", "/v2/keys?recursive=true"), _whole("DELETE", "/v2/keys/?prevValue=1"),
    V2("PATCH", "/a"), V2("OPTIONS", "/a"), V2("TRACE", "/a"),
    V2("PUT", "/a", (), (("value", "json"),), content_type="application/json"),
    V2("PUT", "/a", (), (("value", "none"),), content_type=""),
    V2("PUT", "/a", (), (("value", "cs"),), content_type="application/x-www-form-urlencoded; charset=utf-8"),
    V2("PUT", "/a", (), (("value", "bad"),), content_type="multipart/form-data"),
    V2("PUT", "/a", raw_query="value=%zz"), V2("PUT", "/a", raw_query="value=a;b"), V2("GET", "/a", raw_query="a;b=c"),
    V2("PUT", "/a", raw_query="value"), V2("PUT", "/a", raw_query="=x&&value=v&"), V2("PUT", "/a", raw_query="value=%FF"),
    V2("GET", "/a", raw_query="recursive=true&recursive=maybe"), V2("PUT", "/a", raw_query="unknown=1&value=v"),
    V2("PUT", "/a%zz"), V2("GET", "/a", (("wait", "true"), ("quorum", "true"), ("waitIndex", "@+1"))),
    _whole("GET", "/v2/key"), _whole("GET", "/v2/keysx"), _whole("GET", "/v2"), _whole("GET", "/v2/"), _whole("GET", "/"),
    _whole("POST", "/version"), _whole("PUT", "/v2/machines"), _whole("PUT", "/v2/stats/self"),
    _whole("GET", "/v2/stats/none"), _whole("GET", "/v2/members/none"), _whole("DELETE", "/v2/members/none"),
    _whole("POST", "/v2/members"), _whole("DELETE", "/v2/members"), _whole("GET", "/v2/auth/users/none"),
    _whole("GET", "/v2/auth/none"), _whole("GET", "/v2/auth/enable"), _whole("HEAD", "/version"),
))  # fmt: skip
_STEP_V2 = _often((6, _writes_v2()), (1, _POSTS), (3, _DELETES), (4, _READS), (1, _WAITS), (2, _WILD), (1, _ODD_V2))
EXAMPLES_V2 = st.builds(
    lambda prelude, steps: [*prelude, *steps], st.sampled_from(_PRELUDES_V2), st.lists(_STEP_V2, min_size=5, max_size=14)
)


@settings(_FUZZ, max_examples=250)
@given(steps=EXAMPLES_V2)
def test_v2_answers_are_etcds(pair: Pair, steps: list[V2]) -> None:
    """Files, directories, conditions, TTLs, order, hidden keys, waiting in the past, bad fields."""
    same(*play_v2(pair, steps))


# -- v3 --------------------------------------------------------------------------------------------

_SUFFIXES = (b"a", b"a", b"b", b"b", b"c", b"a/b", b"d\0", b"\xff\xfe")
_KEY = st.sampled_from(_SUFFIXES).map(Key)
_REV = st.sampled_from((0, 1, 1, 2, 3, 4, 5, 99)).map(Rev)
_PAST = st.sampled_from((1, 1, 2, 3, 4)).map(Rev)
_LEASE = st.sampled_from((0, 1, 2)).map(Lease)
_VALUE = st.sampled_from(("", "MQ==", "Mg==", "Mw==", "/+/+", "AAE="))
_FLAG = st.just(True)


def _message(draw: st.DrawFn, always: dict[str, Any], sometimes: dict[str, Any], at_most: int = 3) -> dict[str, Any]:
    """Some fields always, and some of the others."""
    chosen = draw(st.lists(st.sampled_from(sorted(sometimes)), max_size=at_most, unique=True))
    return {n: draw(s) for n, s in always.items()} | {n: draw(sometimes[n]) for n in chosen}


@st.composite
def _ranges(draw: st.DrawFn) -> dict[str, Any]:
    """One key, an interval, all with a prefix, or all from a key on."""
    kind = draw(st.sampled_from(("one", "one", "interval", "prefix", "all", "from")))
    if kind == "one":
        return {"key": draw(_KEY)}
    if kind == "interval":
        return {"key": draw(_KEY), "range_end": draw(_KEY)}
    if kind == "prefix":
        suffix = draw(st.sampled_from(_SUFFIXES))
        return {"key": Key(suffix), "range_end": Key(suffix, plus=True)}
    if kind == "all":
        return _ALL
    return {"key": draw(_KEY), "range_end": "AA=="}


_ORDER = st.sampled_from(("NONE", "ASCEND", "DESCEND", 0, 1, 2))
_TARGET = st.sampled_from(("KEY", "VERSION", "CREATE", "MOD", "VALUE", 1, 4))
_LIMIT = st.sampled_from((1, 2, "2", 100, 0, -1))


@st.composite
def _range_request(draw: st.DrawFn) -> dict[str, Any]:
    return draw(_ranges()) | _message(
        draw, {}, {
            "limit": _LIMIT, "revision": _PAST, "sort_order": _ORDER, "sort_target": _TARGET, "serializable": _FLAG,
            "keys_only": _FLAG, "count_only": _FLAG, "min_mod_revision": _PAST, "max_mod_revision": _PAST,
            "min_create_revision": _PAST, "max_create_revision": _PAST,
        },
    )  # fmt: skip


@st.composite
def _put_request(draw: st.DrawFn) -> dict[str, Any]:
    more = {"lease": st.one_of(_LEASE, st.just(0)), "prev_kv": _FLAG}
    odd = {"ignore_value": _FLAG, "ignore_lease": _FLAG}
    if draw(st.integers(0, 5)) == 0:
        return _message(draw, {"key": _KEY}, more | odd | {"value": _VALUE})
    return _message(draw, {"key": _KEY, "value": _VALUE}, more, 2)


@st.composite
def _delete_request(draw: st.DrawFn) -> dict[str, Any]:
    return draw(_ranges()) | _message(draw, {}, {"prev_kv": _FLAG}, 1)


#: Not from a key on: see ``ACCEPTED``.
_DELETE_OF_TXN = _delete_request().filter(lambda message: message.get("range_end") != "AA==")


_RESULT = st.sampled_from(("EQUAL", "GREATER", "LESS", "NOT_EQUAL", 0, 3))


@st.composite
def _compare(draw: st.DrawFn) -> dict[str, Any]:
    target, name, operand = draw(st.sampled_from((
        ("VERSION", "version", st.sampled_from(("0", "1", 2))), ("CREATE", "create_revision", st.one_of(_PAST, st.just("0"))),
        ("MOD", "mod_revision", st.one_of(_PAST, st.just(0))), ("VALUE", "value", _VALUE), ("LEASE", "lease", _LEASE),
        (0, "version", st.just("0")),
    )))  # fmt: skip
    where = draw(_often((3, st.builds(lambda key: {"key": key}, _KEY)), (1, _ranges())))
    out = {"target": target, **where, name: draw(operand)}
    return out | ({"result": draw(_RESULT)} if draw(st.booleans()) else {})


@st.composite
def _operation(draw: st.DrawFn, depth: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(("put", "put", "range", "delete_range", *(["txn"] if depth else []))))
    made = {
        "put": _put_request(), "range": _range_request(), "delete_range": _DELETE_OF_TXN,
        "txn": _transaction(max(depth - 1, 0)),
    }[kind]  # fmt: skip
    return {f"request_{kind}": draw(made)}


@st.composite
def _transaction(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    out = {
        "compare": draw(st.lists(_compare(), max_size=2)),
        "success": draw(st.lists(_operation(depth), max_size=3)),
        "failure": draw(st.lists(_operation(depth), max_size=2)),
    }
    return {name: items for name, items in out.items() if items or draw(st.booleans())}


@st.composite
def _grant(draw: st.DrawFn) -> dict[str, Any]:
    ttl = st.sampled_from((60, "60", 100, 1000, 0, 1, 2, -1, 9000000000, 9000000001))
    return _message(draw, {"TTL": ttl, "ID": _often((3, _LEASE), (1, st.sampled_from((0, "0"))))}, {"ID": _LEASE}, 0)


@st.composite
def _watch_request(draw: st.DrawFn) -> dict[str, Any]:
    creation = draw(_ranges()) | _message(
        draw, {"start_revision": _REV if draw(st.booleans()) else _PAST}, {
            "prev_kv": _FLAG, "filters": st.sampled_from((["NOPUT"], ["NODELETE"])), "progress_notify": _FLAG,
            "fragment": _FLAG, "watch_id": st.sampled_from((7, "8")),
        },
    )  # fmt: skip
    if isinstance(creation["start_revision"], Rev) and creation["start_revision"].distance > 20:
        creation["start_revision"] = Rev(6)
    return {"create_request": creation}


_SPELL = st.sampled_from((camel, *(3 * [lambda message: message])))


def _calls(path: str, messages: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[V3]:
    return st.builds(lambda message, spell: V3(path, spell(message)), messages, _SPELL)


_PUTS_V3 = _calls("kv/put", _put_request())
_LEASES = st.one_of(
    _calls("lease/grant", _grant()), _calls("lease/revoke", st.builds(lambda lease: {"ID": lease}, _LEASE)),
    _calls("kv/lease/revoke", st.builds(lambda lease: {"ID": lease}, _LEASE)),
    _calls("lease/timetolive", st.builds(lambda lease, keys: {"ID": lease, "keys": keys}, _LEASE, st.booleans())),
    _calls("kv/lease/timetolive", st.builds(lambda lease: {"ID": lease}, _LEASE)),
    _calls("lease/keepalive", st.builds(lambda lease: {"ID": lease}, _LEASE)),
    st.just(V3("lease/leases")), st.just(V3("kv/lease/leases")),
)  # fmt: skip
#: Bodies that mean nothing, or hardly anything, to any call.
_BODIES = (
    "", "{", "[]", "null", '"x"', "{}", "{} x", '{"key":5}', '{"key":"###"}', '{"key":"YQ"}', '{"key":"_-_-"}', '{"key":null}',
    '{"key":""}', '{"key":"YQ==","key":"Yg=="}', '{"key":"YQ==","limit":"x"}', '{"key":"YQ==","limit":1.5}',
    '{"key":"YQ==","limit":true}', '{"key":"YQ==","limit":99999999999999999999}', '{"key":"YQ==","revision":"-1"}',
    '{"key":"YQ==","sort_order":"UP"}', '{"key":"YQ==","sort_order":7}', '{"key":"YQ==","count_only":"true"}',
    '{"key":"YQ==","unknown":1}', '{"key":["YQ=="]}', '{"key":"YQ==","limit":1e0}', "{'key':1}", '{"key":"YQ==",}',
    '{"ID":"x"}', '{"ID":-5}', '{"TTL":{}}', '{"revision":0}', '{"revision":"0"}', '{"revision":-3}', '{"success":{}}',
    '{"success":[{}]}', '{"success":[{"request_range":{}}]}', '{"compare":[{}]}',
    '{"compare":[{"key":"YQ==","target":"NONE"}]}', '{"compare":[{"key":"YQ==","result":9}]}',
    '{"lease":"-1","key":"fg=="}',
)  # fmt: skip
_ODD_V3 = st.one_of(
    st.builds(
        lambda path, raw: V3(path, raw=raw.encode()),
        st.sampled_from(("kv/range", "kv/range", "kv/deleterange", "kv/txn", "kv/compaction", "lease/revoke", "lease/timetolive")),
        st.sampled_from(_BODIES),
    ),
    st.builds(
        lambda path, raw: V3(path, raw=raw.encode()), st.sampled_from(("kv/put", "lease/grant")),
        st.sampled_from([b for b in _BODIES if "YQ==" not in b and b not in ("{}", "null")]),
    ),
    st.sampled_from((
        V3("kv/range", method="GET"), V3("kv/none"), V3("kv/range/"), V3("/v3"), V3("/v3/"), V3("/v3alpha/kv/range"),
        V3("/v3beta/kv/range", {"key": Key(b"a")}), V3("/v3beta/kv/put", {"key": Key(b"a")}), V3("kv/put", method="PUT", raw=b"{}"),
        V3("kv/range", method="DELETE", raw=b"{}"), V3("watch", raw=b'{"create_request":5}'),
        V3("auth/enable"), V3("auth/authenticate", {"name": "root", "password": "x"}),
        V3("auth/user/list"), V3("auth/role/list"), V3("auth/user/get", {"name": "none"}), V3("auth/role/get", {"role": "none"}),
        V3("auth/user/add", {"name": ""}), V3("auth/user/delete", {"name": "none"}), V3("maintenance/alarm", {"action": "GET"}),
        V3("election/leader", {"name": Key(b"none")}), V3("lock/unlock", {"key": Key(b"none")}),
        V3("cluster/member/remove", {"ID": "5"}), V3("cluster/member/promote", {"ID": "5"}),
        V3("cluster/member/update", {"ID": "5", "peerURLs": ["http://127.0.0.1:1"]}),
    )),
)  # fmt: skip
_STEP_V3 = _often(
    (4, _PUTS_V3), (4, _calls("kv/range", _range_request())), (2, _calls("kv/deleterange", _delete_request())),
    (5, _calls("kv/txn", _transaction())), (3, _LEASES), (1, st.builds(V3, st.just("watch"), _watch_request())),
    (1, _calls("kv/compaction", st.builds(lambda revision: {"revision": revision}, _REV))), (2, _ODD_V3),
)  # fmt: skip
_PRELUDES_V3: tuple[tuple[V3, ...], ...] = (
    (), (_put_v3(b"a"), _put_v3(b"a", "Mg==")),
    (
        _put_v3(b"b"), V3("lease/grant", {"ID": Lease(0), "TTL": 60}), _put_v3(b"a", "Mg==", lease=Lease(0)),
        _put_v3(b"c"), _put_v3(b"b", "Mg=="), _put_v3(b"a/b", "Mw==", lease=Lease(0)),
    ),
    (
        V3("lease/grant", {"ID": Lease(1), "TTL": 100}), _put_v3(b"a"), _put_v3(b"b", lease=Lease(1)),
        V3("kv/deleterange", {"key": Key(b"a")}), _put_v3(b"a", "Mg=="), V3("kv/compaction", {"revision": Rev(2)}),
    ),
)  # fmt: skip
EXAMPLES_V3 = st.builds(
    lambda prelude, steps: [*prelude, *steps], st.sampled_from(_PRELUDES_V3), st.lists(_STEP_V3, min_size=5, max_size=14)
)


@settings(_FUZZ, max_examples=250)
@given(steps=EXAMPLES_V3)
def test_v3_answers_are_etcds(pair: Pair, steps: list[V3]) -> None:
    """Ranges, puts, deletions, nested transactions, compaction, leases, watches, wrong bodies."""
    same(*play_v3(pair, steps))


# -- open watches ----------------------------------------------------------------------------------


def _told_alike(pair: Pair, kind: type[V2 | V3], request: str, tell: Callable[[World], dict[str, Any]]) -> None:
    """Fail unless the two tell the same, asked at the same time."""
    with _example(pair, kind) as worlds, ThreadPoolExecutor(len(worlds)) as pool:
        told = list(pool.map(tell, worlds))
    left = unaccepted(request, differences(*told))
    assert not left, "\n" + "\n".join(map(str, left))


def _streamed(world: World, target: str, act: Callable[[World], None], last: str) -> dict[str, Any]:
    """All lines of a v2 stream, up to the one about ``last``; the act happens when it is open."""
    told: dict[str, Any] = {"lines": [], "told twice": []}
    with world.server.stream("GET", f"/v2/keys{world.folder}{target}") as stream:
        told["head"] = [stream.status, headers_view(Answer(stream.status, stream.headers, ""), world.base)]
        act(world)
        world.server.ask("PUT", f"/v2/keys{world.folder}{last}", b"value=the+end", FORM)
        while (line := stream.line(8.0)) is not None:
            event = v2_body(line, world.base)
            told["lines" if event not in told["lines"][-1:] else "told twice"].append(event)
            if "the end" in line:
                return told
    return told | {"ended": "before the last event"}


def _do(world: World, text: str) -> None:
    for line in lines(text):
        method, target, *fields = line.split()
        body = "&".join(fields).encode() or None
        world.server.ask(method, f"/v2/keys{world.folder}{target}", body, FORM if body else {})


_EVENTS = """
    PUT /s/a value=one
    PUT /s/a value=two
    PUT /s/a?prevExist=true ttl=100 refresh=true
    PUT /s/a?prevExist=true value=three
    PUT /s/a?prevValue=three value=four
    PUT /s/a?prevValue=none value=five
    PUT /s/_h value=hidden
    PUT /s/_d/x value=hidden
    PUT /s/d/_x value=hidden
    PUT /s/d/x value=1 ttl=1000
    PUT /s/d/y value=2
    PUT /s/e dir=true
    PUT /s/e?prevExist=true dir=true ttl=1000
    POST /s/q value=1
    POST /s/q dir=true
    DELETE /s/e?dir=true
    DELETE /s/d?recursive=true
    DELETE /s/a?prevValue=four
    PUT /t value=elsewhere
    PUT /s/f?prevExist=false value=1
    DELETE /s/f
    PUT /s/g/h/i value=1
    DELETE /s/g/h?recursive=true
"""


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("/s?wait=true&recursive=true&stream=true", "/s/z"),
        ("/s/a?wait=true&stream=true", "/s/a"),
        ("/s/d/x?wait=true&stream=true", "/s/d/x"),
        ("/s/_d?wait=true&stream=true&recursive=true", "/s/_d/z"),
        ("/s/g/h/i?wait=true&stream=true", "/s/g/h/i"),
        ("/s/g?wait=true&stream=true&recursive=true", "/s/g/z"),
    ],
)
def test_v2_streams_show_what_etcds_show(pair: Pair, target: str, last: str) -> None:
    """A stream of a tree, of a key, of a key whose folder goes away, of what is hidden."""
    act = partial(_do, text=_EVENTS)
    _told_alike(pair, V2, f"GET {target}", lambda world: _streamed(world, target, act, last))


@pytest.mark.parametrize(
    ("target", "last"),
    [("/s/a?wait=true&stream=true", "/s/a"), ("/s/d/x?wait=true&stream=true", "/s/d/x"),
     ("/s/d?wait=true&stream=true&recursive=true", "/s/d/z")],
)  # fmt: skip
def test_v2_watches_see_what_expires(pair: Pair, target: str, last: str) -> None:
    """A key and a folder whose time is up; the folder's own watchers, and those below it."""

    def act(world: World) -> None:
        _do(world, "PUT /s/a value=one ttl=1\nPUT /s/d dir=true ttl=1\nPUT /s/d/x value=below")
        wait_until("all to expire", lambda: _is_gone(world, "/s/a") and _is_gone(world, "/s/d"))

    _told_alike(pair, V2, f"GET {target}", lambda world: _streamed(world, target, act, last))


def _is_gone(world: World, path: str) -> bool:
    return world.server.ask("GET", f"/v2/keys{world.folder}{path}").status == 404


#: What a watch of all keys of the example sees; the last lease runs out.
_EVENTS_V3 = (
    _put_v3(b"a"), _put_v3(b"a", "Mg=="),
    V3("kv/txn", {"success": [
        {"request_put": {"key": Key(b"b"), "value": "MQ=="}}, {"request_put": {"key": Key(b"c"), "value": "MQ=="}},
        {"request_delete_range": {"key": Key(b"a")}}, {"request_range": {"key": Key(b"b")}},
    ]}),
    V3("kv/deleterange", _ALL), V3("kv/deleterange", _ALL),
    V3("lease/grant", {"ID": Lease(1), "TTL": 100}),
    V3("kv/put", {"key": Key(b"l"), "lease": Lease(1)}), V3("kv/put", {"key": Key(b"m"), "lease": Lease(1)}),
    V3("lease/revoke", {"ID": Lease(1)}),
    V3("lease/grant", {"ID": Lease(2), "TTL": 1}), V3("kv/put", {"key": Key(b"n"), "lease": Lease(2)}),
)  # fmt: skip


def _watched(world: World, creation: dict[str, Any]) -> dict[str, Any]:
    """All messages of a v3 watch of ``_EVENTS_V3``, up to the key ``end``."""
    told: dict[str, Any] = {"messages": []}
    body = V3("watch", {"create_request": creation}).body(world)

    def leased() -> Any:
        return world.server.v3("kv/range", {"key": world.key(b"n")}).json()

    with world.server.stream("POST", "/v3/watch", body) as stream:
        while (line := stream.line(10.0)) is not None:
            message = v3_body(line, world.base)
            told["messages"].append(message)
            created = message.get("result", {}).get("created")
            message.get("result", {})["header"] = "of now"
            if created:
                for step in _EVENTS_V3:
                    world.server.outcome("POST", f"/v3/{step.path}", step.body(world))
                wait_until("the lease to run out", lambda: "kvs" not in leased())
                world.server.v3("kv/put", {"key": world.key(b"end")})
            if world.key(b"end") in line:
                return told
    return told | {"ended": "before the last event"}


@pytest.mark.parametrize("more", [{}, {"prev_kv": True, "filters": ["NODELETE"]}], ids=["all", "puts with what was"])
def test_v3_watches_show_what_etcds_show(pair: Pair, more: dict[str, Any]) -> None:
    """Puts, a transaction, a range that goes, a lease that is revoked and one that runs out."""
    _told_alike(pair, V3, "POST /v3/watch", lambda world: _watched(world, _ALL | more))


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_v3_history_ends_where_etcds_ends(pair: Pair, start: int) -> None:
    """Watches and reads from just before, at and after the revision that was compacted."""
    steps = [_A, _A, _A, _B, V3("kv/compaction", {"revision": Rev(2)})]
    for key in (b"a", b"b"):
        steps.append(V3("kv/range", {"key": Key(key), "revision": Rev(start)}))
        steps.append(V3("watch", {"create_request": {"key": Key(key), "start_revision": Rev(start), "prev_kv": True}}))
    same(*play_v3(pair, steps))


@pytest.mark.parametrize("end", [b"a", b"b"])
def test_v3_watches_of_nothing_end_at_once(pair: Pair, end: bytes) -> None:
    """A range that ends where it starts, or before."""
    same(*play_v3(pair, [_A, V3("watch", {"create_request": {"key": Key(b"b"), "range_end": Key(end)}})]))
