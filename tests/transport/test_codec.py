"""The codec: what goes in comes out, and everything that is not plain CBOR is refused."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors import raft_messages
from brain import codec as brain_codec
from brain.raft import Message
from transport import codec
from transport.codec import FrameError, decode, encode, pack, register_type, unpack

Decoder = tuple[Callable[[bytes], Any], type[ValueError], int]
#: The transport and the brain read by the same rules, to different depths.
DECODERS: dict[str, Decoder] = {
    "transport": (decode, FrameError, codec.DEPTH_MAX),
    "brain": (brain_codec.decode, brain_codec.DecodeError, brain_codec.DEPTH_MAX),
}

#: Every tag that the library knows by itself, and some it does not.
TAGS = [*range(6), 25, 28, 29, 30, 35, 36, 37, 52, 54, 100, 256, 258, 260, 261, 43000, 55799, 6, 24, 9999]

NOT_PLAIN: dict[str, bytes] = {
    "nothing": b"",
    "indefinite array": b"\x9f\x01\xff",
    "indefinite map": b"\xbf\x61a\x01\xff",
    "indefinite bytes": b"\x5f\x41a\xff",
    "indefinite text": b"\x7f\x61a\xff",
    "a break alone": b"\xff",
    "duplicate text keys": b"\xa2\x61a\x01\x61a\x02",
    "duplicate bytes keys": b"\xa2\x41a\x01\x41a\x02",
    "a number as a key": b"\xa1\x01\x01",
    "null as a key": b"\xa1\xf6\x01",
    "an array as a key": b"\xa1\x81\x01\x01",
    "a map as a key": b"\xa1\xa0\x01",
    "text that is not UTF-8": b"\x62\xc3\x28",
    "one byte behind it": b"\x01\x00",
    "a second value behind it": b"\x81\x01\x81\x01",
    "half a number": b"\x19\x01",
    "an array of 2^32 declared": b"\x9b\x00\x00\x00\x01\x00\x00\x00\x00",
    "an array of 2^64 declared": b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    "a map of 2^62 declared": b"\xbb\x40\x00\x00\x00\x00\x00\x00\x00",
    "bytes of 2^40 declared": b"\x5b\x00\x00\x01\x00\x00\x00\x00\x00",
    "text of 2^63 declared": b"\x7b\x80\x00\x00\x00\x00\x00\x00\x00",
    "a reserved length": b"\x1c",
    "a bignum": b"\xc2\x49\x01\x00\x00\x00\x00\x00\x00\x00\x00",
    "a regular expression": b"\xd8\x23\x61a",
    "a shared value that holds itself": b"\xd8\x1c\x81\xd8\x1d\x00",
    "a date": b"\xc0\x74" + b"2013-03-21T20:04:00Z",
    "a decimal": b"\xc4\x82\x21\x19\x6a\xb3",
    "a set": b"\xd9\x01\x02\x81\x01",
}


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("raw", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_not_plain_is_refused(raw: bytes, decoder: Decoder) -> None:
    """One error type, whatever is wrong, and no memory for what is only announced."""
    read, error, _ = decoder
    with pytest.raises(error):
        read(raw)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_is_refused(tag: int, decoder: Decoder) -> None:
    """A tag makes the library build objects; none is accepted, at the top or inside."""
    read, error, _ = decoder
    head = cbor2.dumps(cbor2.CBORTag(tag, 0))[:-1] if tag > 5 else bytes([0xC0 | tag])
    for content in (b"\x00", b"\x61a", b"\x41a", b"\x80", b"\x82\x00\x01"):
        with pytest.raises(error):
            read(head + content)
        with pytest.raises(error):
            read(b"\x81" + head + content)
        with pytest.raises(error):
            read(b"\xa1\x61k" + head + content)


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_depth_is_bounded(decoder: Decoder) -> None:
    """A thousand nested arrays cost three bytes to write; they are refused, a legal depth is not."""
    read, error, depth = decoder
    assert read(b"\x81" * (depth - 2) + b"\x01")
    for beyond in (depth + 1, 1000, 1_000_000):
        with pytest.raises(error):
            read(b"\x81" * beyond + b"\x01")
        with pytest.raises(error):
            read(b"\xa1\x61a" * beyond + b"\x01")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@given(plain)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    """By both decoders, for everything that messages and commands are made of."""
    assert decode(encode(value)) == value
    assert brain_codec.decode(brain_codec.encode(value)) == value
    assert unpack(decode(encode(pack(value)))) == value


@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("raw", [b"\xf7", b"\xe5", b"\xf8\x20", b"\x81\xf7"], ids=repr)
def test_values_that_are_not_data_are_refused(raw: bytes, decoder: Decoder) -> None:
    """``undefined`` and unassigned simple values would arrive as objects of the library."""
    read, error, _ = decoder
    with pytest.raises(error):
        read(raw)


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "transport": lambda value: encode(pack(value)),
    "brain": brain_codec.encode,
}


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_an_object_is_not_written(writer: Callable[[Any], bytes]) -> None:
    """Only data crosses hosts."""
    with pytest.raises((cbor2.CBOREncodeError, ValueError)):
        writer([object()])


NOT_ENCODABLE: dict[str, Any] = {
    "a number above 64 bits": 2**64,
    "a number below 64 bits": -(2**64) - 1,
    "a number as a key": {1: 2},
    "a set": {1, 2},
    "a date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    "a decimal": decimal.Decimal("1.5"),
    "too deep": nested(40),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("value", NOT_ENCODABLE.values(), ids=NOT_ENCODABLE)
def test_what_could_not_be_read_back_is_not_written(value: Any, writer: Callable[[Any], bytes]) -> None:
    """A value that every reader refuses must fail where it is made.

    On the wire it would cost the link; in a log entry, every peer that applies it.
    """
    with pytest.raises(Exception):  # noqa: B017, PT011 - which one is not laid down
        writer(value)


# -- registered types ------------------------------------------------------------------------------

number = st.integers(0, 2**64 - 1)
text = st.text(max_size=12)
entry = st.tuples(st.integers(0, 2**40), st.integers(0, 2), st.binary(max_size=60))
messages = st.builds(
    Message,
    kind=st.integers(1, 10), frm=text, to=text, term=number, index=number, log_term=number,
    commit=number, entries=st.lists(entry, max_size=4).map(tuple), reject=st.booleans(), hint=number,
    context=number,
)  # fmt: skip
STRATEGIES: dict[type, st.SearchStrategy[Any]] = {
    Message: messages,
    raft_messages.KeepAlive: st.builds(raft_messages.KeepAlive, st.lists(number, max_size=5)),
    raft_messages.Forward: st.builds(
        raft_messages.Forward, number, st.lists(st.binary(max_size=40), max_size=4)
    ),
    raft_messages.ReadIndex: st.builds(raft_messages.ReadIndex),
    raft_messages.SnapshotChunk: st.builds(
        raft_messages.SnapshotChunk, text, number, number, number, st.booleans(), st.binary(max_size=99)
    ),
    raft_messages.ForwardedChange: st.builds(
        raft_messages.ForwardedChange, text, text, st.lists(text, min_size=3, max_size=3)
    ),
    raft_messages.TimeToLive: st.builds(raft_messages.TimeToLive, number),
    raft_messages.StateHash: st.builds(raft_messages.StateHash),
    raft_messages.Quarantine: st.builds(raft_messages.Quarantine, number),
    raft_messages.StillMember: st.builds(raft_messages.StillMember, text),
}
EXAMPLES: dict[type, Any] = {
    Message: Message(
        1, "m1", "m2", 7, 12, 6, 11, ((6, 1, b"one"), (7, 0, b""), (7, 2, b"x" * 40)), False, 3, 9
    ),
    raft_messages.KeepAlive: raft_messages.KeepAlive([1, 2**40]),
    raft_messages.Forward: raft_messages.Forward(3, [b"a", b"bc"]),
    raft_messages.ReadIndex: raft_messages.ReadIndex(),
    raft_messages.SnapshotChunk: raft_messages.SnapshotChunk("m1", 3, 100, 0, True, b"123456789"),
    raft_messages.ForwardedChange: raft_messages.ForwardedChange("promote", "m3", ["a", "b", "c"]),
    raft_messages.TimeToLive: raft_messages.TimeToLive(2**62),
    raft_messages.StateHash: raft_messages.StateHash(),
    raft_messages.Quarantine: raft_messages.Quarantine(17),
    raft_messages.StillMember: raft_messages.StillMember("m1"),
}


def _registered() -> list[type]:
    """The types that the Raft peer sends to other hosts."""
    return [
        kind for kind in codec._by_class  # noqa: SLF001
        if kind.__module__ in ("brain.raft", "actors.raft_messages")
    ]  # fmt: skip


def test_every_registered_type_of_the_raft_peer_is_tested_here() -> None:
    """A new message must bring its strategy and example to this file."""
    assert set(_registered()) == set(STRATEGIES) == set(EXAMPLES)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=50)
def test_registered_types_come_back_as_they_were(kind: type, data: st.DataObject) -> None:
    """Equal, and of the same type, through bytes and back."""
    message = data.draw(STRATEGIES[kind])
    back = unpack(decode(encode(pack(message))))
    assert type(back) is kind
    assert back == message


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_wrong_number_of_fields_is_refused(kind: type) -> None:
    """One field more, one less, none: the text names the type and both counts."""
    packed = pack(EXAMPLES[kind])
    width = len(packed) - 1
    wrong = [[*packed, None], packed[:1], packed[:-1]] if width else [[*packed, None], [*packed, 1, 2]]
    for fields in wrong:
        with pytest.raises(
            FrameError, match=rf"{kind.__name__} has {width} fields, .* has {len(fields) - 1}"
        ):
            unpack(fields)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_frame_cut_at_any_byte_is_refused(kind: type) -> None:
    """No prefix of a frame is a frame."""
    whole = encode(pack(EXAMPLES[kind]))
    for at in range(len(whole)):
        with pytest.raises(FrameError):
            unpack(decode(whole[:at]))


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_frame_with_any_bit_flipped_gives_a_message_or_a_frame_error(kind: type) -> None:
    """Every single-bit change of a frame: nothing but FrameError ever comes out."""
    whole = encode(pack(EXAMPLES[kind]))
    for at in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[at] ^= 1 << bit
            try:
                unpack(decode(bytes(changed)))
            except FrameError:
                pass


@given(st.sampled_from(list(EXAMPLES.values())), st.data())
@settings(max_examples=300)
def test_mutated_frames_only_ever_raise_frame_errors(message: Any, data: st.DataObject) -> None:
    """Several bytes replaced, inserted or removed at random."""
    frame = bytearray(encode(pack(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame)))
        cut = data.draw(st.integers(0, 3))
        frame[at : at + cut] = data.draw(st.binary(max_size=3))
    try:
        unpack(decode(bytes(frame)))
    except FrameError:
        pass


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_garbage_only_ever_raises_frame_errors(garbage: bytes) -> None:
    """Whatever a stranger sends."""
    try:
        unpack(decode(garbage))
    except FrameError:
        pass


@pytest.mark.parametrize(
    "packed", [None, 1, "text", b"bytes", {}, [], {0: 1}, [99999], [-1, 2], ["x", 1], [None, 1], [
    [0], 1], [0],
               [0, 1, 2], [2**63, 1], [1.5, 2]], ids=repr,
)  # fmt: skip
def test_what_is_not_a_message_is_refused(packed: Any) -> None:
    """Neither a known number nor plain data in its envelope."""
    with pytest.raises(FrameError):
        unpack(packed)


@pytest.mark.parametrize("packed", [[False, 1], [0.0, 1], [-0.0, 1]], ids=repr)
def test_only_an_integer_is_a_number(packed: Any) -> None:
    """False and 0.0 equal 0 in Python; on the wire they are something else."""
    with pytest.raises(FrameError):
        unpack(packed)


BAD_FIELDS: list[tuple[int, Any]] = [
    (0, "1"), (0, -1), (0, True), (0, 1.0), (0, None), (1, 5), (1, None), (1, b"m1"), (3, -1), (3, "7"),
    (4, None), (4, 1.5), (6, [1]), (7, 5), (7, None), (7, "abc"), (7, [[1, 1]]), (7, [[1, 1, "text"]]),
    (7, [["1", 1, b""]]), (7, [[1, None, b""]]), (7, [[1, 1, b"", 0]]), (7, [5]), (9, -3), (10, "x"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda value: repr(value))
def test_a_raft_message_with_a_field_of_a_wrong_type_is_refused(field: int, value: Any) -> None:
    """Types are checked at the door, so that Raft itself need not."""
    packed = pack(EXAMPLES[Message])
    packed[field + 1] = value
    with pytest.raises(FrameError, match="Message"):
        unpack(decode(encode(packed)))


@pytest.mark.parametrize(
    ("field", "value"),
    [(2, 5), (2, None), (8, "no"), (8, 2), (7, [[-1, 1, b""]]), (7, [[1, -1, b""]]), (7, [[1, 256, b""]])],
    ids=repr,
)
def test_a_raft_message_that_could_not_be_written_down_is_refused(field: int, value: Any) -> None:
    """What passes the door must fit the log: an entry's term and kind, the flag, the addressee."""
    packed = pack(EXAMPLES[Message])
    packed[field + 1] = value
    with pytest.raises(FrameError, match="Message"):
        unpack(decode(encode(packed)))


def test_a_number_is_never_given_twice() -> None:
    """Message numbers are for ever: a second type under one is refused and changes nothing."""

    @dataclass(frozen=True, slots=True)
    class Intruder:
        """Would like to be number 10."""

        field: int

    with pytest.raises(ValueError, match="10 is Message already"):
        register_type(10, Intruder)
    assert Intruder not in codec._by_class  # noqa: SLF001
    assert type(unpack(pack(EXAMPLES[Message]))) is Message


def test_dataclasses_and_named_tuples_need_no_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields go over in order; a constructor that refuses is a FrameError with the type's name."""
    monkeypatch.setattr(codec, "_by_number", dict(codec._by_number))  # noqa: SLF001
    monkeypatch.setattr(codec, "_by_class", dict(codec._by_class))  # noqa: SLF001

    class Pair(NamedTuple):
        """Two numbers."""

        left: int
        right: int

    @codec.wire(60001)
    @dataclass(frozen=True, slots=True)
    class Even:
        """A number that is even."""

        value: int

        def __post_init__(self) -> None:
            if self.value % 2:
                raise ValueError("odd")

    register_type(60000, Pair)
    assert pack(Pair(1, 2)) == [60000, 1, 2]
    assert unpack([60000, 1, 2]) == Pair(1, 2)
    assert unpack(pack(Even(4))) == Even(4)
    with pytest.raises(FrameError, match="Even: odd"):
        unpack([60001, 3])


def test_message_numbers_on_the_wire_do_not_change() -> None:
    """Append only: another host may run another version."""
    numbers = {kind.__name__: pack(EXAMPLES[kind])[0] for kind in EXAMPLES}
    assert numbers == {
        "Message": 10, "KeepAlive": 20, "Forward": 21, "ReadIndex": 22, "SnapshotChunk": 23,
        "ForwardedChange": 24, "TimeToLive": 25, "StateHash": 26, "Quarantine": 27,
        "StillMember": 28,
    }  # fmt: skip
