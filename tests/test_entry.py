"""The envelope: what is packed comes out again, and the first bytes tell any two writes apart."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acache import DecodeError, Entry
from acache.entry import (
    HEAD_BYTES,
    NO_EPOCH,
    TOKEN_BYTES,
    Envelope,
    counter,
    holds_value,
    left,
    new_token,
    of_another_epoch,
    opener,
    pack,
    tombstone,
    unpack,
)

tokens = st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES)
lifetimes = st.one_of(st.floats(5e-324, 1e300), st.just(math.inf), st.sampled_from([0.001, 1.0, 300.0]))
single = st.floats(0, 2.0**100, width=32)
tag_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
envelopes = st.builds(
    lambda token, created_at, fresh_for, extra, load_time, codec, tags, payload, epoch: Envelope(
        token, created_at, fresh_for, fresh_for + extra, load_time, codec, tuple(tags), payload, epoch
    ),
    token=tokens,
    created_at=st.floats(-1e15, 1e15),
    fresh_for=lifetimes,
    extra=st.floats(0, 1e12),
    load_time=single,
    codec=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255),
    tags=st.lists(st.tuples(tag_names, tokens), max_size=5),
    payload=st.binary(max_size=300),
    epoch=tokens | st.just(NO_EPOCH),
)


@given(envelopes)
@settings(max_examples=500, deadline=None)
def test_every_envelope_comes_back(envelope: Envelope):
    """Token, dates, codec, tags and payload, to the last bit."""
    data = pack(envelope)
    assert unpack(data) == envelope
    assert holds_value(data[:HEAD_BYTES], envelope.created_at, envelope.epoch)
    assert not of_another_epoch(data, envelope.epoch)
    assert counter(data) is None


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 1_000_000])
def test_a_payload_of_any_length_comes_back(length: int):
    """The payload is what is left, so it needs no length."""
    envelope = Envelope(new_token(), 1.0, 1.0, 1.0, 0.0, "msgpack", (("t", new_token()),), b"\xac" * length)
    assert unpack(pack(envelope)) == envelope


@pytest.mark.parametrize("tag", ["t", "t" * 1000, "ü" * 500, "\U0001f600" * 250, "a\0b", "\n", " "])
@pytest.mark.parametrize("count", [1, 300])
def test_tags_of_every_legal_length_and_number_come_back(tag: str, count: int):
    """Up to a thousand bytes each, and hundreds of them."""
    tags = tuple((f"{tag}{number}"[-1000:] if len(tag) < 1000 else tag, new_token()) for number in range(count))
    envelope = Envelope(new_token(), 1.0, 1.0, 1.0, 0.0, "msgpack", tags, b"payload")
    assert unpack(pack(envelope)) == envelope


@given(st.text(min_size=1, max_size=10).filter(lambda name: not name.isascii()))
def test_a_codec_name_that_is_not_ascii_is_not_packed(name: str):
    """It would be read as another."""
    with pytest.raises(ValueError, match=r"ascii|surrogates"):
        pack(Envelope(new_token(), 1.0, 1.0, 1.0, 0.0, name, (), b""))


def test_a_codec_name_that_is_too_long_is_not_packed():
    """Its length has one byte."""
    with pytest.raises((ValueError, struct.error)):
        pack(Envelope(new_token(), 1.0, 1.0, 1.0, 0.0, "x" * 256, (), b""))


@given(envelopes, tokens)
@settings(deadline=None)
def test_two_writes_differ_in_their_first_bytes(envelope: Envelope, token: bytes):
    """However equal the values are, the heads are equal only if the tokens are."""
    other = envelope._replace(token=token)
    assert (pack(envelope)[:HEAD_BYTES] == pack(other)[:HEAD_BYTES]) == (token == envelope.token)


def test_tokens_do_not_repeat():
    """Ten thousand of eight bytes each."""
    drawn = {new_token() for _ in range(10_000)}
    assert len(drawn) == 10_000
    assert {len(token) for token in drawn} == {TOKEN_BYTES}


@given(tokens, st.floats(allow_nan=False, allow_infinity=False))
def test_a_tombstone_is_one_and_reads_as_nothing(token: bytes, created_at: float):
    """Also by its head alone, which is all that some engines return; and two of them are told apart."""
    data = tombstone(token, created_at)
    assert unpack(data) is None
    assert not holds_value(data, 0.0)
    assert not holds_value(data[:HEAD_BYTES], 0.0)
    assert counter(data) is None
    assert data[:HEAD_BYTES] != tombstone(new_token(), created_at)[:HEAD_BYTES]


@given(st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=300)
def test_every_64_bit_counter_is_read(number: int):
    """Plain digits, and no other bytes, are counters; no record is one."""
    data = b"%d" % number
    assert counter(data) == number
    assert holds_value(data, 0.0)
    with pytest.raises(DecodeError):
        unpack(data)


@pytest.mark.parametrize("number", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_the_ends_of_the_range_are_counters(number: int):
    """64 bits, signed."""
    assert counter(b"%d" % number) == number


@pytest.mark.parametrize(
    "data",
    [b"", b"-", b"+1", b"01", b"-0", b" 1", b"1 ", b"1\n", b"1.0", b"1e3", b"0x1", b"1_000", b"\xd9\xa1", b"9" * 20,
     b"9" * 10_000, b"%d" % 2**63, b"%d" % (-(2**63) - 1), "\uff11".encode(), b"None", b"true"],
)  # fmt: skip
def test_nothing_else_is_a_counter(data: bytes):
    """What this library's counters never look like, and what leaves 64 bits."""
    assert counter(data) is None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_no_crash(kind: Any):
    """Engines return bytes; something else is read or refused with the one error."""
    envelope = Envelope(new_token(), 1.0, 1.0, 1.0, 0.0, "msgpack", (), b"payload")
    try:
        assert unpack(kind(pack(envelope))) == envelope
    except (DecodeError, AttributeError, TypeError):
        assert kind is memoryview


def test_a_head_tells_fresh_from_stale():
    """With a stale window the dates decide; without one, that it is there means that it is fresh."""
    served = pack(Envelope(new_token(), 100.0, 10.0, 50.0, 0.0, "msgpack", (), b"v"))[:HEAD_BYTES]
    assert [holds_value(served, wall) for wall in (0.0, 100.0, 109.9, 110.0, 140.0, 1e9)] == [True] * 3 + [False] * 3
    plain = pack(Envelope(new_token(), 100.0, 10.0, 10.0, 0.0, "msgpack", (), b"v"))[:HEAD_BYTES]
    assert all(holds_value(plain, wall) for wall in (0.0, 100.0, 1e9))


def test_an_entry_is_frozen_and_shows_itself():
    """A snapshot: nobody changes the cache through it."""
    entry = Entry(value=1, created_at=0.0, fresh_until=None, expires_at=None, tier="near")
    with pytest.raises(AttributeError):
        entry.value = 2  # type: ignore[misc]
    assert "value=1" in repr(entry)
    assert entry == Entry(value=1, created_at=0.0, fresh_until=None, expires_at=None, tier="near")


# The quick way in -----------------------------------------------------------------------------------------------------

broken = st.tuples(
    st.integers(0, HEAD_BYTES + 8),
    st.sampled_from([b"", b"\x00", b"\xff", b"\x7f\xf0" + bytes(6), b"\xff\xf8" + bytes(6)]),
)


@given(envelopes, tokens | st.none())
def test_a_value_of_another_epoch_is_none(envelope: Envelope, epoch: bytes | None):
    """Whichever way it is looked at; and `None` is no epoch."""
    data, ours = pack(envelope._replace(codec="msgpack", tags=())), envelope.epoch == epoch
    assert of_another_epoch(data, epoch) == (not ours)
    assert holds_value(data[:HEAD_BYTES], envelope.created_at, epoch) == ours
    assert (opener("msgpack")(data, envelope.created_at, epoch) is not None) == ours


@pytest.mark.parametrize("data", [b"", b"12", b"\xac", tombstone(b"12345678", 0.0), b"anything else"])
def test_what_is_no_value_is_of_no_epoch(data: bytes):
    """Nothing is asked again for the sake of a tombstone, a counter or garbage."""
    assert not of_another_epoch(data, new_token()) or data == b"\xac"


@given(envelopes, st.none() | broken, st.booleans(), st.floats(-1e15, 1e15))
def test_the_quick_way_finds_what_the_careful_one_finds_or_leaves_it_to_it(
    envelope: Envelope, damage: tuple[int, bytes] | None, ours: bool, wall: float
):
    """Records of any kind and damage: what is given without a closer look is what `unpack` finds."""
    data = pack(envelope._replace(codec="msgpack") if ours else envelope)
    if damage is not None:
        at, garbage = damage
        data = data[:at] + garbage + data[at + len(garbage) :] if garbage else data[:at]
    opened = opener("msgpack")(data, wall, envelope.epoch)
    if opened is not None:
        found = unpack(data)
        assert found is not None
        assert (found.codec, found.tags, found.epoch) == ("msgpack", (), envelope.epoch)
        rest = left(found.created_at, found.fresh_for, found.keep_for, wall)
        assert opened == (rest, found.fresh_for, found.load_time, found.payload)


@given(envelopes)
def test_a_sound_value_without_tags_takes_no_closer_look(envelope: Envelope):
    data = pack(envelope._replace(codec="msgpack", tags=()))
    assert opener("msgpack")(data, envelope.created_at, envelope.epoch) is not None
