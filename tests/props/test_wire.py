"""Frames: what is sent comes back equal, and bytes from a broken peer raise WireError and nothing else, quickly."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shm import wire
from shm.layout import Field
from shm.wire import Encoding, ItemStatus, WireError

READERS = [wire.read_for_decoder, wire.read_for_worker, wire.read_from_decoder, wire.read_from_worker]

words = st.integers(0, 2**63)
texts = st.text(max_size=20)
few = {"max_size": 5}
decode_items = st.builds(wire.DecodeItem, words, words, words, words, words, st.sampled_from(Encoding))
decoded_items = st.builds(wire.DecodedItem, words, st.sampled_from(ItemStatus), words, words, words, texts)
fields = st.builds(Field, texts, texts, st.lists(words, **few).map(tuple))
points = st.builds(wire.ProfilePoint, words, words, words)
statuses = st.lists(st.sampled_from(ItemStatus), **few)

MESSAGES = {
    wire.read_for_decoder: [
        st.builds(wire.Decode, st.lists(decode_items, **few)),
        st.builds(wire.Attach, words, texts, words, words),
        st.builds(wire.Detach, words),
    ],
    wire.read_for_worker: [st.builds(wire.Run, words, words, words, st.lists(words, **few), words, words)],
    wire.read_from_decoder: [
        st.builds(wire.DecoderReady, st.lists(texts, **few)),
        st.builds(wire.Decoded, st.lists(decoded_items, **few)),
    ],
    wire.read_from_worker: [
        st.builds(wire.Loading, words, texts, st.floats(0, 1)),
        st.builds(wire.Loaded, words, st.lists(fields, **few), st.lists(points, **few), texts, words, words),
        st.builds(wire.LoadFailed, words, texts),
        st.builds(wire.WorkerReady, texts, words, words),
        st.builds(wire.Ran, words, statuses, words, words, words, texts),
    ],
}
sent = st.one_of([st.tuples(st.just(read), message) for read, kinds in MESSAGES.items() for message in kinds])
quick = settings(max_examples=150, deadline=None, derandomize=True)


def refuses_or_reads(frame: bytes) -> None:
    for read in READERS:
        with contextlib.suppress(WireError):
            assert isinstance(read(frame), wire.Message)


def test_every_message_is_tried():
    assert sum(len(kinds) for kinds in MESSAGES.values()) == len(wire.Message.__args__)


@pytest.mark.slow
@quick
@given(sent)
def test_what_is_sent_comes_back(case):
    read, message = case

    assert read(wire.encode(message)) == message


@pytest.mark.slow
@quick
@given(sent)
def test_nobody_else_understands_it(case):
    read, message = case
    frame = wire.encode(message)

    for other in READERS:
        if other is not read:
            with pytest.raises(WireError):
                other(frame)


@pytest.mark.slow
@quick
@given(sent, st.data())
def test_a_cut_frame_is_refused(case, data):
    read, message = case
    frame = wire.encode(message)

    with pytest.raises(WireError):
        read(frame[: data.draw(st.integers(0, len(frame) - 1))])


@pytest.mark.slow
@quick
@given(sent, st.data())
def test_mutated_frames_are_read_or_refused(case, data):
    frame = bytearray(wire.encode(case[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))

    refuses_or_reads(bytes(frame))


@pytest.mark.slow
@quick
@given(st.binary(max_size=300))
@example(b"")
@example(b"\x92\x02\x91\xa2\xff\xfe")  # text that is not UTF-8
@example(b"\xdc\x00\x03\x02\x90" + b"\x91" * 60_000)  # arrays in arrays, where nothing is expected
@example(b"\x94\x08\xa1a\x00" + b"\x81\x00" * 30_000)  # maps in maps
@example(b"\x92\x03\xdd\xff\xff\xff\xff")  # a list of four billion
@example(b"\x92\x02\x91\xdb\xff\xff\xff\xff")  # a text of four gigabytes
@example(b"\x93\x08\xa1a\xcf" + b"\xff" * 8)  # 2**64 - 1
@example(b"\x92\xcf" + b"\xff" * 8 + b"\x90")  # as a tag
@example(b"\xc7\x01\x05a")  # an extension type
def test_any_bytes_are_read_or_refused(frame):
    refuses_or_reads(frame)


@pytest.mark.slow
@quick
@given(st.recursive(st.none() | st.booleans() | words | st.floats() | texts | st.binary(), st.lists, max_leaves=20))
def test_any_value_is_read_or_refused(value):
    for tag in range(13):
        refuses_or_reads(msgspec.msgpack.encode([tag, value, value, value, value, value, value]))


@pytest.mark.parametrize("status", [-1, 10, 2**40])
def test_an_unknown_status_is_refused(status):
    with pytest.raises(WireError):
        wire.read_from_worker(msgspec.msgpack.encode([9, 1, [status], 0, 0, 0, ""]))


def test_an_unknown_encoding_is_refused():
    with pytest.raises(WireError):
        wire.read_for_decoder(msgspec.msgpack.encode([1, [[1, 0, 0, 0, 10, 2]]]))


def test_a_frame_that_is_too_large_is_our_own_bug():
    with pytest.raises(AssertionError, match="LoadFailed of 655"):
        wire.encode(wire.LoadFailed(0, "x" * 65_535))
