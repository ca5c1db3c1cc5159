"""etcd's v3 messages in protobuf, made from the table of them, and the way to the gateway's JSON.

No generated code: the classes are built once from :data:`MESSAGES`, in a pool of their own.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from .v3_messages import MESSAGES, UNIONS, Enum, Many, Small, Unsigned
from .v3json import b64, read_given

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    bytes: _Field.TYPE_BYTES, str: _Field.TYPE_STRING, bool: _Field.TYPE_BOOL, int: _Field.TYPE_INT64,
    Unsigned: _Field.TYPE_UINT64, Small: _Field.TYPE_UINT32,
}  # fmt: skip
_PACKAGE = "argosy.v3"


def _build() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="argosy/v3.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        made = file.message_type.add(name=name)
        union = UNIONS.get(name, ())
        if union:
            made.oneof_decl.add(name="one")
        for field, (number, kind) in fields.items():
            many = isinstance(kind, Many)
            of = kind.of if many else kind
            label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
            entry = made.field.add(name=field, number=number, label=label)
            if isinstance(of, Enum):  # an open enumeration is a number of 32 bits on the wire
                entry.type = _Field.TYPE_INT32
            elif isinstance(of, str):
                entry.type, entry.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{of}"
            else:
                entry.type = _TYPES[of]
            if field in union:
                entry.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in MESSAGES}


#: Class by the name of its message.
CLASSES: dict[str, type[Message]] = _build()


def to_document(message: Message) -> dict[str, Any]:
    """A message as the JSON gateway takes it; what is zero is left out, as on the wire."""
    return {field.name: _spell(value) for field, value in message.ListFields()}


def _spell(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64(value)
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Message):
        return to_document(value)
    return [_spell(item) for item in value]


def from_document(name: str, document: Any) -> Message:
    """What the JSON gateway answered, as a message; raises :class:`BadMessage`."""
    return CLASSES[name](**read_given(name, document))
