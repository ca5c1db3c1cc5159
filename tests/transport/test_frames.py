"""Frames: the same payloads come out however the stream was chopped, and nothing too large goes in."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.codec import FrameError
from transport.frames import FRAME_BYTES_MAX, FrameReader, frame


@given(st.lists(st.binary(max_size=200), max_size=20), st.data())
def test_any_chunking_gives_the_same_payloads(payloads: list[bytes], data: st.DataObject) -> None:
    """TCP may cut the stream anywhere, inside a length as well as inside a payload."""
    stream = b"".join(frame(payload) for payload in payloads)
    reader = FrameReader()
    out: list[bytes] = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        out += reader.feed(stream[at : at + size])
        at += size
    assert out == payloads


def test_byte_by_byte_gives_the_same_payloads() -> None:
    """The extreme chopping, and a payload is handed out with its very last byte."""
    payloads = [b"", b"x", b"y" * 300]
    reader = FrameReader()
    for payload in payloads:
        whole = frame(payload)
        for at in range(len(whole) - 1):
            assert reader.feed(whole[at : at + 1]) == []
        assert reader.feed(whole[-1:]) == [payload]


def test_an_illegal_length_is_refused_with_its_last_byte() -> None:
    """Four bytes are enough to refuse: nothing is buffered for a frame that is too large."""
    header = struct.pack(">I", 1001)
    reader = FrameReader(1000)
    assert reader.feed(header[:3]) == []
    with pytest.raises(FrameError, match=r"frame_bytes_max: a frame of 1001 bytes .* 1000 are accepted"):
        reader.feed(header[3:])


@pytest.mark.parametrize("length", [FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_lengths_beyond_the_limit_are_refused_behind_good_frames_too(length: int) -> None:
    """The check is made for every frame, not only for the first of a stream."""
    reader = FrameReader()
    assert reader.feed(frame(b"good")) == [b"good"]
    with pytest.raises(FrameError, match="frame_bytes_max"):
        reader.feed(struct.pack(">I", length))


def test_the_limit_itself_is_accepted() -> None:
    """Off by one on either side would refuse a legal frame or take an illegal one."""
    reader = FrameReader(1000)
    assert reader.feed(frame(bytes(1000))) == [bytes(1000)]


def test_a_payload_beyond_the_limit_is_not_framed() -> None:
    """The sender hears of the limit; the peer would only close the link."""
    assert len(frame(bytes(FRAME_BYTES_MAX))) == FRAME_BYTES_MAX + 4
    with pytest.raises(FrameError, match=f"frame_bytes_max: {FRAME_BYTES_MAX} bytes"):
        frame(bytes(FRAME_BYTES_MAX + 1))
