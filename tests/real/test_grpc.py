"""The gRPC door of three real hosts and an agent: etcd's v3 API for clients that speak protobuf.

What each call means is tested at the JSON gateway and by etcdctl; here is what only this door does.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import grpc
import pytest

from cli import local
from gateway.grpc_door import REQUEST_BYTES_MAX
from gateway.protobuf import CLASSES, from_document, to_document
from gateway.v3_messages import BY_PATH, MESSAGES, SERVICES, STREAMED, STREAMS, UNIONS
from gateway.v3json import read

from ..waiting import wait_until
from .cluster import Cluster, request

#: Seconds for one call.
CALL_S = 10.0
Stub = Callable[..., Any]


class Client:
    """A client made of the table of methods."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])

    def call(self, service: str, name: str) -> Stub:
        """One method, taking and giving messages as the JSON gateway spells them."""
        method = SERVICES[service][name]
        make = {
            (False, False): self.channel.unary_unary, (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.path in STREAMS, method.path in STREAMED]  # fmt: skip
        return make(  # type: ignore[no-any-return]
            f"/{service}/{name}", lambda document: from_document(method.request, document).SerializeToString(),
            lambda data: to_document(CLASSES[method.response].FromString(data)),
        )  # fmt: skip

    def put(self, key: str, value: str) -> Any:
        return self.call("etcdserverpb.KV", "Put")({"key": b64(key), "value": b64(value)}, timeout=CALL_S)

    def get(self, key: str, end: str = "") -> list[tuple[str, str]]:
        asked = {"key": b64(key), "range_end": b64(end)}
        answer = self.call("etcdserverpb.KV", "Range")(asked, timeout=CALL_S)
        return [(text(kv["key"]), text(kv.get("value", ""))) for kv in answer.get("kvs", ())]


def b64(data: str) -> str:
    from gateway.v3json import b64 as spell

    return spell(data.encode())


def text(data: str) -> str:
    from base64 import b64decode

    return b64decode(data).decode()


@contextmanager
def client(address: str) -> Iterator[Client]:
    made = Client(address)
    try:
        yield made
    finally:
        made.channel.close()


def grpc_port(cluster: Cluster, number: int) -> int:
    return local.GRPC + cluster.offset + number


@contextmanager
def watching(one: Client, *requests: dict[str, Any]) -> Iterator[tuple[Queue[Any], Callable[[dict[str, Any] | None], None]]]:
    """A watch stream: what it says, and how to say more (None ends our half)."""
    asked: Queue[dict[str, Any] | None] = Queue()
    for message in requests:
        asked.put(message)
    said: Queue[Any] = Queue()
    stream = one.call("etcdserverpb.Watch", "Watch")(iter(asked.get, None))

    def listen() -> None:
        try:
            for message in stream:
                said.put(message)
            said.put(None)
        except grpc.RpcError as error:
            said.put(error)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        yield said, asked.put
    finally:
        stream.cancel()
        asked.put(None)
        listener.join(CALL_S)


def test_the_door_is_beside_http_and_at_its_port(cluster: Cluster) -> None:
    """Both ports of every machine; what one door writes the other reads."""
    for number in (1, 2, 3):
        for port in (grpc_port(cluster, number), cluster.client_port(number)):
            with client(f"127.0.0.1:{port}") as one:
                one.put(f"/grpc/{number}", f"by {port}")
                assert one.get(f"/grpc/{number}") == [(f"/grpc/{number}", f"by {port}")]
        answer = request(cluster.client_port(1), "GET", f"/v2/keys/grpc/{number}?quorum=true").json()
        assert answer["node"]["value"] == f"by {cluster.client_port(number)}"


def test_health_and_metrics(cluster: Cluster) -> None:
    """The standard health service, and the counters that etcd's dashboards ask for."""
    with client(f"127.0.0.1:{grpc_port(cluster, 1)}") as one:
        check = one.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=CALL_S) == b"\x08\x01"
        one.put("/grpc/m", "1")
        with pytest.raises(grpc.RpcError):
            one.get("")
    page = request(cluster.client_port(1), "GET", "/metrics").text
    assert 'grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV"}' in page
    assert 'grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Range",grpc_service="etcdserverpb.KV"}' in page


def test_a_refusal_has_its_code_and_changes_nothing(cluster: Cluster) -> None:
    """Codes and sentences as etcd has them; a request that is too large; a method that is none."""
    with client(f"127.0.0.1:{grpc_port(cluster, 2)}") as one:
        with pytest.raises(grpc.RpcError) as refused:
            one.put("", "1")
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "etcdserver: key is not provided"
        with pytest.raises(grpc.RpcError) as refused:
            one.put("/_argosy/units/x.service", "1")
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as refused:
            one.put("/grpc/large", "x" * REQUEST_BYTES_MAX)
        assert refused.value.details() == "etcdserver: request is too large"
        with pytest.raises(grpc.RpcError) as refused:
            one.channel.unary_unary("/etcdserverpb.KV/None")(b"", timeout=CALL_S)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError):
            one.channel.unary_unary("/etcdserverpb.KV/Put")(b"\xff\xff\xff", timeout=CALL_S)
        assert one.get("/grpc/large") == []


def test_a_stream_that_may_not_begin_is_refused_and_the_connection_lives(cluster: Cluster) -> None:
    """A token that is none, while authentication is on; and calls that are not as the protocol has them."""
    with client(f"127.0.0.1:{grpc_port(cluster, 1)}") as one:
        auth = {name: one.call("etcdserverpb.Auth", name) for name in SERVICES["etcdserverpb.Auth"]}
        auth["UserAdd"]({"name": "root", "password": "p"}, timeout=CALL_S)
        auth["UserGrantRole"]({"user": "root", "role": "root"}, timeout=CALL_S)
        auth["AuthEnable"]({}, timeout=CALL_S)
        token = auth["Authenticate"]({"name": "root", "password": "p"}, timeout=CALL_S)["token"]
        try:
            create = {"create_request": {"key": b64("/k")}}
            watch = one.call("etcdserverpb.Watch", "Watch")
            with pytest.raises(grpc.RpcError) as refused:
                next(watch(iter([create]), metadata=[("token", "wrong")], timeout=CALL_S))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            put = one.call("etcdserverpb.KV", "Put")
            put({"key": b64("/k"), "value": b64("1")}, metadata=[("token", token)], timeout=CALL_S)
        finally:
            auth["AuthDisable"]({}, metadata=[("token", token)], timeout=CALL_S)
            auth["UserDelete"]({"name": "root"}, timeout=CALL_S)
        raw = one.channel.stream_stream("/etcdserverpb.KV/Put")
        for messages in ([], [b"", b""]):
            with pytest.raises(grpc.RpcError) as refused:
                next(raw(iter(messages), timeout=CALL_S))
            assert refused.value.code() == grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.RpcError) as refused:
            next(one.call("etcdserverpb.Watch", "Watch")(iter([{"create_request": {"key": b64("k" * 1_200_000)}}]), timeout=CALL_S))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        squeezed = one.channel.unary_unary("/etcdserverpb.KV/Put")
        with pytest.raises(grpc.RpcError) as refused:
            squeezed(b"\n" + b"\x05" + b"aaaaa" * 200, compression=grpc.Compression.Gzip, timeout=CALL_S)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        one.put("/k", "2")


def test_a_watch_stream_carries_several_and_ends_with_either_side(cluster: Cluster) -> None:
    """Created, fed, canceled one by one; our half's end is the stream's end; a watch that may not be is canceled."""
    with client(f"127.0.0.1:{grpc_port(cluster, 3)}") as one, client(f"127.0.0.1:{grpc_port(cluster, 1)}") as other:
        create = {"create_request": {"key": b64("/watch/"), "range_end": b64("/watch0")}}
        with watching(one, create, {"create_request": {"key": b64("z"), "range_end": b64("a")}}) as (said, ask):
            assert said.get(timeout=CALL_S)["created"]
            assert said.get(timeout=CALL_S)["canceled"]
            other.put("/watch/a", "1")
            event = said.get(timeout=CALL_S)
            assert text(event["events"][0]["kv"]["key"]) == "/watch/a" and "watch_id" not in event
            ask({"progress_request": {}})
            assert said.get(timeout=CALL_S)["watch_id"] == -1
            ask({"cancel_request": {"watch_id": 0}})
            assert said.get(timeout=CALL_S)["canceled"]
            ask(None)
            assert said.get(timeout=CALL_S) is None
        wait_until("no watch to be open", lambda: watches(cluster, 3) == 0)
        with watching(one, create) as (said, _):
            assert said.get(timeout=CALL_S)["created"]
            wait_until("the watch to be open", lambda: watches(cluster, 3) == 1)
        wait_until("a watch that was hung up on to be gone", lambda: watches(cluster, 3) == 0)


def watches(cluster: Cluster, number: int) -> int:
    page = request(cluster.client_port(number), "GET", "/metrics").text
    return int(float(next(line for line in page.splitlines() if line.startswith("argosy_http_watches ")).split()[1]))


def test_a_lock_is_given_up_when_its_waiter_hangs_up(cluster: Cluster) -> None:
    """A call that waits is canceled by its deadline, and leaves no claim."""
    with client(f"127.0.0.1:{grpc_port(cluster, 1)}") as one:
        lock = one.call("v3lockpb.Lock", "Lock")
        held = lock({"name": b64("l")}, timeout=CALL_S)["key"]
        with pytest.raises(grpc.RpcError) as late:
            lock({"name": b64("l")}, timeout=0.5)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until("one claim", lambda: len(one.get("l/", "l0")) == 1)
        one.call("v3lockpb.Lock", "Unlock")({"key": held}, timeout=CALL_S)
        assert one.get("l/", "l0") == []


def test_large_answers_and_keepalives(cluster: Cluster) -> None:
    """Five megabytes in one range; a stream of keepalives; a snapshot, which is for this host's clients."""
    with client(f"127.0.0.1:{grpc_port(cluster, 2)}") as one:
        for number in range(10):
            one.put(f"/large/{number}", str(number) * 500_000)
        found = one.get("/large/", "/large0")
        assert [len(value) for _, value in found] == [500_000] * 10
        lease = one.call("etcdserverpb.Lease", "LeaseGrant")({"TTL": 30}, timeout=CALL_S)["ID"]
        alive = one.call("etcdserverpb.Lease", "LeaseKeepAlive")(iter([{"ID": lease}] * 3), timeout=CALL_S)
        assert [answer["TTL"] for answer in alive] == [30, 30, 30]
        pieces = list(one.call("etcdserverpb.Maintenance", "Snapshot")({}, timeout=60))
        assert sum(len(piece["blob"]) for piece in pieces) > 5_000_000 and "remaining_bytes" not in pieces[-1]
        one.call("etcdserverpb.KV", "DeleteRange")({"key": b64("/large/"), "range_end": b64("/large0")}, timeout=CALL_S)


def test_the_door_opens_again_with_its_actor(cluster: Cluster) -> None:
    """A call that waits then is told; the next one is answered."""
    with client(f"127.0.0.1:{grpc_port(cluster, 1)}") as one:
        with watching(one, {"create_request": {"key": b64("/k")}}) as (said, _):
            assert said.get(timeout=CALL_S)["created"]
            cluster.ask("actor.kill", path="m1/gateway")
            assert isinstance(said.get(timeout=CALL_S), grpc.RpcError)
        wait_until("the door to answer again", lambda: _answers(one))


def _answers(one: Client) -> bool:
    try:
        return one.put("/grpc/again", "1") is not None
    except grpc.RpcError:
        return False


def test_what_is_no_http2_at_the_http_port_stays_http1(cluster: Cluster) -> None:
    """The preface may come in pieces; what only begins like it is answered as HTTP/1.1."""
    with socket.create_connection(("127.0.0.1", cluster.client_port(1)), timeout=CALL_S) as raw:
        raw.sendall(b"P")
        raw.sendall(b"UT /v2/keys/grpc/p?value=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 20")
    with socket.create_connection(("127.0.0.1", cluster.client_port(1)), timeout=CALL_S) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\n")
        raw.sendall(b"SM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # and empty settings
        assert raw.recv(4096)[3] == 4, "settings are the first that an HTTP/2 server says"
    with socket.create_connection(("127.0.0.1", cluster.client_port(1)), timeout=CALL_S) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nXX")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400")


def test_every_method_of_the_gateway_is_one_here() -> None:
    """The two doors serve the same; numbers of fields are unique; unions name fields that exist."""
    from gateway.v3_door import ALIASES, PATHS

    assert set(BY_PATH) == set(PATHS) - set(ALIASES)
    for name, fields in MESSAGES.items():
        assert len({number for number, _ in fields.values()}) == len(fields), name
        assert set(UNIONS.get(name, ())) <= set(fields)
        assert read(name, to_document(CLASSES[name]())) == read(name, {})
