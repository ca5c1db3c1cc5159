"""The members of the cluster as etcd shows them, and changes of them in its words."""

from __future__ import annotations

import json
import secrets
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from actors.raft_messages import ChangeConfig


class Member(NamedTuple):
    """One member; ``id`` is what the brain calls it."""

    id: str
    name: str
    peer_urls: list[str]
    client_urls: list[str]
    learner: bool

    @property
    def hex(self) -> str:
        """The id that etcd's users see: 64 bits in hexadecimal."""
        return self.id[:16]

    @property
    def number(self) -> int:
        """The same as a number."""
        return number_of(self.id)


class MemberError(Exception):
    """A change that cannot be made: HTTP status of v2, gRPC code of v3, and etcd's sentences."""

    def __init__(self, status: int, code: int, text: str, v2_text: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.v2_text = v2_text or text


def number_of(ident: str) -> int:
    """A member's or cluster's id as v3 shows it."""
    try:
        return int(ident[:16], 16)
    except ValueError:
        return 0


def members_of(status: dict[str, Any], secure: bool) -> list[Member]:
    """All members, by id."""
    scheme = "https" if secure else "http"
    out = []
    for ident, (name, address, urls) in sorted(status["info"].items()):
        peers = [f"{scheme}://{address}"] if address else []
        clients = [url for url in urls.split(",") if url]
        out.append(Member(ident, name, peers, clients, ident in status["learners"]))
    return out


def find(members: list[Member], hexadecimal: str) -> Member:
    """The member with this id; raises :class:`MemberError`."""
    for member in members:
        if member.hex == hexadecimal.lower().rjust(16, "0"):
            return member
    raise MemberError(404, 5, f"No such member: {hexadecimal}")


def address_of(urls: list[str]) -> str:
    """The transport address in peer URLs; raises :class:`MemberError`."""
    if not urls:
        raise _bad_url("no valid URLs given")
    if len(urls) > 1:
        raise MemberError(400, 3, "a member has exactly one peer URL here")
    try:
        parts = urlsplit(urls[0])
        port = parts.port
    except ValueError as error:
        raise _bad_url(f"parse {json.dumps(urls[0])}: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise _bad_url(f"URL scheme must be http or https: {urls[0]}")
    if not parts.hostname or port is None:
        raise _bad_url(f"URL address does not have the form \"host:port\": {urls[0]}")
    if parts.path:
        raise _bad_url(f"URL must not contain a path: {urls[0]}")
    return f"{parts.hostname}:{port}"


def _bad_url(v2_text: str) -> MemberError:
    return MemberError(400, 3, "etcdserver: given member URLs are invalid", v2_text)


def _refuse_taken(members: list[Member], address: str, but: str = "") -> None:
    for member in members:
        if member.id != but and any(url.endswith("://" + address) for url in member.peer_urls):
            raise MemberError(409, 9, "etcdserver: Peer URLs already exists", "membership: peerURL exists")


def addition(members: list[Member], urls: list[str], secure: bool) -> ChangeConfig:
    """Add a member that will start later; it votes when it has caught up."""
    if secure:
        raise MemberError(
            403, 9, "a host joins this cluster with a token and gets a certificate: 'argosy cluster token'"
        )
    address = address_of(urls)
    _refuse_taken(members, address)
    return ChangeConfig("add_learner", secrets.token_hex(8), ("", address, ""))


def update(members: list[Member], member: Member, urls: list[str]) -> ChangeConfig:
    """Give a member another peer URL."""
    address = address_of(urls)
    _refuse_taken(members, address, member.id)
    return ChangeConfig("update", member.id, (member.name, address, ",".join(member.client_urls)))


def removal(members: list[Member], member: Member) -> ChangeConfig:
    """Take a member out, unless it is the last that votes."""
    voters = [m for m in members if not m.learner]
    if voters == [member]:
        raise MemberError(
            409, 9, "etcdserver: re-configuration failed due to not enough started members"
        )
    return ChangeConfig("remove", member.id)
