"""etcd's v3 messages and methods, as data: what the JSON gateway and the gRPC door both speak.

A message is its fields by name, each with its number and its kind.  A kind is ``bytes``,
``str``, ``bool``, ``int`` (64 bits), :class:`Unsigned`, :class:`Small`, an :class:`Enum`, the
name of another message, or :class:`Many` of one of these.  Names, numbers and kinds are those
of etcd's public protocol, versions 3.4 and 3.5.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Unsigned(int):
    """A number of 64 bits without a sign: the ids of members."""


class Small(int):
    """A number of 32 bits without a sign."""


class Enum(NamedTuple):
    """Names of an enumeration, by number; in a message there may be other numbers."""

    names: tuple[str, ...]

    def name(self, number: int) -> str:
        """The name of a number; empty for one that has none."""
        return self.names[number] if 0 <= number < len(self.names) else ""


class Many(NamedTuple):
    """A list of another kind."""

    of: Any


ORDER = Enum(("NONE", "ASCEND", "DESCEND"))
TARGET = Enum(("KEY", "VERSION", "CREATE", "MOD", "VALUE"))
RESULT = Enum(("EQUAL", "GREATER", "LESS", "NOT_EQUAL"))
COMPARED = Enum(("VERSION", "CREATE", "MOD", "VALUE", "LEASE"))
FILTER = Enum(("NOPUT", "NODELETE"))
EVENT = Enum(("PUT", "DELETE"))
PERMISSION = Enum(("READ", "WRITE", "READWRITE"))
ALARM_ACTION = Enum(("GET", "ACTIVATE", "DEACTIVATE"))
ALARM = Enum(("NONE", "NOSPACE", "CORRUPT"))
SERVING = Enum(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"))

Fields = dict[str, tuple[int, Any]]
_HEADER: Fields = {"header": (1, "Header")}
_MEMBERS: Fields = {**_HEADER, "members": (2, Many("Member"))}

#: Message -> field -> (number, kind).
MESSAGES: dict[str, Fields] = {
    "Empty": {},
    "Header": {"cluster_id": (1, Unsigned), "member_id": (2, Unsigned), "revision": (3, int), "raft_term": (4, Unsigned)},
    "Done": _HEADER,
    # keys
    "KeyValue": {"key": (1, bytes), "create_revision": (2, int), "mod_revision": (3, int), "version": (4, int),
                 "value": (5, bytes), "lease": (6, int)},
    "RangeRequest": {
        "key": (1, bytes), "range_end": (2, bytes), "limit": (3, int), "revision": (4, int), "sort_order": (5, ORDER),
        "sort_target": (6, TARGET), "serializable": (7, bool), "keys_only": (8, bool), "count_only": (9, bool),
        "min_mod_revision": (10, int), "max_mod_revision": (11, int), "min_create_revision": (12, int),
        "max_create_revision": (13, int),
    },
    "RangeResponse": {**_HEADER, "kvs": (2, Many("KeyValue")), "more": (3, bool), "count": (4, int)},
    "PutRequest": {"key": (1, bytes), "value": (2, bytes), "lease": (3, int), "prev_kv": (4, bool),
                   "ignore_value": (5, bool), "ignore_lease": (6, bool)},
    "PutResponse": {**_HEADER, "prev_kv": (2, "KeyValue")},
    "DeleteRangeRequest": {"key": (1, bytes), "range_end": (2, bytes), "prev_kv": (3, bool)},
    "DeleteRangeResponse": {**_HEADER, "deleted": (2, int), "prev_kvs": (3, Many("KeyValue"))},
    "Compare": {"result": (1, RESULT), "target": (2, COMPARED), "key": (3, bytes), "version": (4, int),
                "create_revision": (5, int), "mod_revision": (6, int), "value": (7, bytes), "lease": (8, int),
                "range_end": (64, bytes)},
    "RequestOp": {"request_range": (1, "RangeRequest"), "request_put": (2, "PutRequest"),
                  "request_delete_range": (3, "DeleteRangeRequest"), "request_txn": (4, "TxnRequest")},
    "ResponseOp": {"response_range": (1, "RangeResponse"), "response_put": (2, "PutResponse"),
                   "response_delete_range": (3, "DeleteRangeResponse"), "response_txn": (4, "TxnResponse")},
    "TxnRequest": {"compare": (1, Many("Compare")), "success": (2, Many("RequestOp")), "failure": (3, Many("RequestOp"))},
    "TxnResponse": {**_HEADER, "succeeded": (2, bool), "responses": (3, Many("ResponseOp"))},
    "CompactionRequest": {"revision": (1, int), "physical": (2, bool)},
    # watching
    "WatchRequest": {"create_request": (1, "WatchCreateRequest"), "cancel_request": (2, "WatchCancelRequest"),
                     "progress_request": (3, "Empty")},
    "WatchCreateRequest": {"key": (1, bytes), "range_end": (2, bytes), "start_revision": (3, int),
                           "progress_notify": (4, bool), "filters": (5, Many(FILTER)), "prev_kv": (6, bool),
                           "watch_id": (7, int), "fragment": (8, bool)},
    "WatchCancelRequest": {"watch_id": (1, int)},
    "WatchResponse": {**_HEADER, "watch_id": (2, int), "created": (3, bool), "canceled": (4, bool),
                      "compact_revision": (5, int), "cancel_reason": (6, str), "fragment": (7, bool),
                      "events": (11, Many("Event"))},
    "Event": {"type": (1, EVENT), "kv": (2, "KeyValue"), "prev_kv": (3, "KeyValue")},
    # leases
    "LeaseGrantRequest": {"TTL": (1, int), "ID": (2, int)},
    "LeaseGrantResponse": {**_HEADER, "ID": (2, int), "TTL": (3, int), "error": (4, str)},
    "LeaseRequest": {"ID": (1, int), "keys": (2, bool)},
    "LeaseKeepAliveResponse": {**_HEADER, "ID": (2, int), "TTL": (3, int)},
    "LeaseTimeToLiveResponse": {**_HEADER, "ID": (2, int), "TTL": (3, int), "grantedTTL": (4, int), "keys": (5, Many(bytes))},
    "LeaseStatus": {"ID": (1, int)},
    "LeaseLeasesResponse": {**_HEADER, "leases": (2, Many("LeaseStatus"))},
    # members
    "Member": {"ID": (1, Unsigned), "name": (2, str), "peerURLs": (3, Many(str)), "clientURLs": (4, Many(str)),
               "isLearner": (5, bool)},
    "MemberAddRequest": {"peerURLs": (1, Many(str)), "isLearner": (2, bool)},
    "MemberAddResponse": {**_HEADER, "member": (2, "Member"), "members": (3, Many("Member"))},
    "MemberRequest": {"ID": (1, Unsigned), "peerURLs": (2, Many(str))},
    "Members": _MEMBERS,
    # maintenance
    "AlarmRequest": {"action": (1, ALARM_ACTION), "memberID": (2, Unsigned), "alarm": (3, ALARM)},
    "AlarmMember": {"memberID": (1, Unsigned), "alarm": (2, ALARM)},
    "AlarmResponse": {**_HEADER, "alarms": (2, Many("AlarmMember"))},
    "StatusResponse": {
        **_HEADER, "version": (2, str), "dbSize": (3, int), "leader": (4, Unsigned), "raftIndex": (5, Unsigned),
        "raftTerm": (6, Unsigned), "raftAppliedIndex": (7, Unsigned), "errors": (8, Many(str)), "dbSizeInUse": (9, int),
        "isLearner": (10, bool),
    },
    "HashResponse": {**_HEADER, "hash": (2, Small)},
    "HashKVRequest": {"revision": (1, int)},
    "HashKVResponse": {**_HEADER, "hash": (2, Small), "compact_revision": (3, int)},
    "SnapshotResponse": {**_HEADER, "remaining_bytes": (2, Unsigned), "blob": (3, bytes)},
    "MoveLeaderRequest": {"targetID": (1, Unsigned)},
    # users and roles
    "Permission": {"permType": (1, PERMISSION), "key": (2, bytes), "range_end": (3, bytes)},
    "AuthStatusResponse": {**_HEADER, "enabled": (2, bool), "authRevision": (3, Unsigned)},
    "AuthenticateRequest": {"name": (1, str), "password": (2, str)},
    "AuthenticateResponse": {**_HEADER, "token": (2, str)},
    "UserOptions": {"no_password": (1, bool)},
    "UserRequest": {"name": (1, str), "password": (2, str), "options": (3, "UserOptions")},
    "UserPasswordRequest": {"name": (1, str), "password": (2, str)},
    "UserGetResponse": {**_HEADER, "roles": (2, Many(str))},
    "UserListResponse": {**_HEADER, "users": (2, Many(str))},
    "UserGrantRequest": {"user": (1, str), "role": (2, str)},
    "UserRevokeRequest": {"name": (1, str), "role": (2, str)},
    "RoleAddRequest": {"name": (1, str)},
    "RoleRequest": {"role": (1, str)},
    "RoleGrantRequest": {"name": (1, str), "perm": (2, "Permission")},
    "RoleRevokeRequest": {"role": (1, str), "key": (2, bytes), "range_end": (3, bytes)},
    "RoleGetResponse": {**_HEADER, "perm": (2, Many("Permission"))},
    "RoleListResponse": {**_HEADER, "roles": (2, Many(str))},
    # locks and elections
    "LockRequest": {"name": (1, bytes), "lease": (2, int)},
    "LockResponse": {**_HEADER, "key": (2, bytes)},
    "UnlockRequest": {"key": (1, bytes)},
    "LeaderKey": {"name": (1, bytes), "key": (2, bytes), "rev": (3, int), "lease": (4, int)},
    "CampaignRequest": {"name": (1, bytes), "lease": (2, int), "value": (3, bytes)},
    "CampaignResponse": {**_HEADER, "leader": (2, "LeaderKey")},
    "LeaderRequest": {"name": (1, bytes)},
    "LeaderResponse": {**_HEADER, "kv": (2, "KeyValue")},
    "ProclaimRequest": {"leader": (1, "LeaderKey"), "value": (2, bytes)},
    "ResignRequest": {"leader": (1, "LeaderKey")},
    # grpc.health.v1
    "HealthCheckRequest": {"service": (1, str)},
    "HealthCheckResponse": {"status": (1, SERVING)},
}  # fmt: skip
#: Fields of which a message has at most one: in a transaction and on a watch stream.
UNIONS: dict[str, tuple[str, ...]] = {
    "RequestOp": tuple(MESSAGES["RequestOp"]), "ResponseOp": tuple(MESSAGES["ResponseOp"]),
    "WatchRequest": tuple(MESSAGES["WatchRequest"]),
    "Compare": ("version", "create_revision", "mod_revision", "value", "lease"),
}  # fmt: skip


class Method(NamedTuple):
    """One method: its path below /v3 at the JSON gateway, and its messages."""

    path: str
    request: str
    response: str


#: gRPC service -> method.
SERVICES: dict[str, dict[str, Method]] = {
    "etcdserverpb.KV": {
        "Range": Method("/kv/range", "RangeRequest", "RangeResponse"),
        "Put": Method("/kv/put", "PutRequest", "PutResponse"),
        "DeleteRange": Method("/kv/deleterange", "DeleteRangeRequest", "DeleteRangeResponse"),
        "Txn": Method("/kv/txn", "TxnRequest", "TxnResponse"),
        "Compact": Method("/kv/compaction", "CompactionRequest", "Done"),
    },
    "etcdserverpb.Watch": {"Watch": Method("/watch", "WatchRequest", "WatchResponse")},
    "etcdserverpb.Lease": {
        "LeaseGrant": Method("/lease/grant", "LeaseGrantRequest", "LeaseGrantResponse"),
        "LeaseRevoke": Method("/lease/revoke", "LeaseRequest", "Done"),
        "LeaseKeepAlive": Method("/lease/keepalive", "LeaseRequest", "LeaseKeepAliveResponse"),
        "LeaseTimeToLive": Method("/lease/timetolive", "LeaseRequest", "LeaseTimeToLiveResponse"),
        "LeaseLeases": Method("/lease/leases", "Empty", "LeaseLeasesResponse"),
    },
    "etcdserverpb.Cluster": {
        "MemberList": Method("/cluster/member/list", "Empty", "Members"),
        "MemberAdd": Method("/cluster/member/add", "MemberAddRequest", "MemberAddResponse"),
        "MemberRemove": Method("/cluster/member/remove", "MemberRequest", "Members"),
        "MemberUpdate": Method("/cluster/member/update", "MemberRequest", "Members"),
        "MemberPromote": Method("/cluster/member/promote", "MemberRequest", "Members"),
    },
    "etcdserverpb.Maintenance": {
        "Status": Method("/maintenance/status", "Empty", "StatusResponse"),
        "Alarm": Method("/maintenance/alarm", "AlarmRequest", "AlarmResponse"),
        "Defragment": Method("/maintenance/defragment", "Empty", "Done"),
        "Hash": Method("/maintenance/hash", "Empty", "HashResponse"),
        "HashKV": Method("/maintenance/hashkv", "HashKVRequest", "HashKVResponse"),
        "Snapshot": Method("/maintenance/snapshot", "Empty", "SnapshotResponse"),
        "MoveLeader": Method("/maintenance/transfer-leadership", "MoveLeaderRequest", "Done"),
    },
    "etcdserverpb.Auth": {
        "AuthEnable": Method("/auth/enable", "Empty", "Done"),
        "AuthDisable": Method("/auth/disable", "Empty", "Done"),
        "AuthStatus": Method("/auth/status", "Empty", "AuthStatusResponse"),
        "Authenticate": Method("/auth/authenticate", "AuthenticateRequest", "AuthenticateResponse"),
        "UserAdd": Method("/auth/user/add", "UserRequest", "Done"),
        "UserGet": Method("/auth/user/get", "UserRequest", "UserGetResponse"),
        "UserList": Method("/auth/user/list", "Empty", "UserListResponse"),
        "UserDelete": Method("/auth/user/delete", "UserRequest", "Done"),
        "UserChangePassword": Method("/auth/user/changepw", "UserPasswordRequest", "Done"),
        "UserGrantRole": Method("/auth/user/grant", "UserGrantRequest", "Done"),
        "UserRevokeRole": Method("/auth/user/revoke", "UserRevokeRequest", "Done"),
        "RoleAdd": Method("/auth/role/add", "RoleAddRequest", "Done"),
        "RoleGet": Method("/auth/role/get", "RoleRequest", "RoleGetResponse"),
        "RoleList": Method("/auth/role/list", "Empty", "RoleListResponse"),
        "RoleDelete": Method("/auth/role/delete", "RoleRequest", "Done"),
        "RoleGrantPermission": Method("/auth/role/grant", "RoleGrantRequest", "Done"),
        "RoleRevokePermission": Method("/auth/role/revoke", "RoleRevokeRequest", "Done"),
    },
    "v3lockpb.Lock": {
        "Lock": Method("/lock/lock", "LockRequest", "LockResponse"),
        "Unlock": Method("/lock/unlock", "UnlockRequest", "Done"),
    },
    "v3electionpb.Election": {
        "Campaign": Method("/election/campaign", "CampaignRequest", "CampaignResponse"),
        "Proclaim": Method("/election/proclaim", "ProclaimRequest", "Done"),
        "Leader": Method("/election/leader", "LeaderRequest", "LeaderResponse"),
        "Observe": Method("/election/observe", "LeaderRequest", "LeaderResponse"),
        "Resign": Method("/election/resign", "ResignRequest", "Done"),
    },
}
#: Method by its path.
BY_PATH: dict[str, Method] = {method.path: method for service in SERVICES.values() for method in service.values()}
#: Paths that take several messages in one request.
STREAMS = frozenset({"/watch", "/lease/keepalive"})
#: Paths that give several messages in one answer.
STREAMED = STREAMS | {"/maintenance/snapshot", "/election/observe"}
