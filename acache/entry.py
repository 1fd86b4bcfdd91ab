"""An entry as users see it, and as it travels to the far tier.

The envelope is a fixed head of 48 bytes, big-endian, then names, then the payload::

    offset 0   magic 0xAC   a first byte that no ASCII text has, so counters can stay plain decimal digits
           1   version 2
           2   flags        1 = tombstone, 2 = tags follow
           3   length of the codec's name
           4   token        8 random bytes, drawn for each write: tells two writes of equal values apart
          12   created_at   float64, wall clock of the writer
          20   fresh_for    float64 seconds, infinity = never expires
          28   keep_for     float64 seconds, fresh_for plus the stale windows
          36   load_time    float32 seconds, what the loader took (0 for an explicit set)
          40   epoch        8 bytes: the namespace's when it was written; zeros where it has none
          48   the codec's name, then the tags, then the payload

The first 48 bytes differ between any two writes, so an engine can tell records apart by them alone; and they tell
whether a reader would see a value.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .errors import DecodeError
from .events import Tier

__all__ = [
    "BARELY_FRESH",
    "HEAD_BYTES",
    "NO_EPOCH",
    "TOKEN_BYTES",
    "Entry",
    "Envelope",
    "counter",
    "holds_value",
    "left",
    "new_token",
    "of_another_epoch",
    "opener",
    "pack",
    "tombstone",
    "unpack",
]

HEAD_BYTES: Final = 48
"""Two writes never share this many first bytes."""
TOKEN_BYTES: Final = 8
NO_EPOCH: Final = bytes(TOKEN_BYTES)
"""What entries carry where `clear` does not go by epochs."""
BARELY_FRESH: Final = 0.001
"""Seconds: fresh, and not worth a near copy."""

_HEAD: Final = struct.Struct(">BBBB8sdddf8s")
_TAG_HEAD: Final = struct.Struct(">H")
_MAGIC: Final = 0xAC
_VERSION: Final = 2
_EPOCH_AT: Final = 40
_TOMBSTONE: Final = 1
_TAGGED: Final = 2
_COUNTER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One stored value with its dates, as it was at one instant."""

    value: Any
    created_at: float
    """When it was written; seconds since the epoch."""
    fresh_until: float | None
    """When its ttl ends; seconds since the epoch, ``None`` for never."""
    expires_at: float | None
    """When the last stale window ends and it is gone; ``None`` for never."""
    tags: tuple[str, ...] = ()
    tier: Tier
    """Where it was found."""


class Envelope(NamedTuple):
    """A far-tier record, opened; the payload is still encoded."""

    token: bytes
    created_at: float
    fresh_for: float
    keep_for: float
    load_time: float
    codec: str
    tags: tuple[tuple[str, bytes], ...]
    payload: bytes
    epoch: bytes = NO_EPOCH


def new_token() -> bytes:
    """Draw the token of a write, or of a tag."""
    return os.urandom(TOKEN_BYTES)


def pack(envelope: Envelope) -> bytes:
    """Put an envelope into its wire form."""
    name = envelope.codec.encode("ascii")
    flags = _TAGGED if envelope.tags else 0
    parts = [
        _HEAD.pack(
            _MAGIC,
            _VERSION,
            flags,
            len(name),
            envelope.token,
            envelope.created_at,
            envelope.fresh_for,
            envelope.keep_for,
            envelope.load_time,
            envelope.epoch,
        ),
        name,
    ]
    if envelope.tags:
        parts.append(_TAG_HEAD.pack(len(envelope.tags)))
        for tag, token in envelope.tags:
            text = tag.encode()
            parts += (_TAG_HEAD.pack(len(text)), text, token)
    parts.append(envelope.payload)
    return b"".join(parts)


def tombstone(token: bytes, created_at: float) -> bytes:
    """Make the record a delete leaves behind: it reads as a miss, and differs from "nothing" for a running load."""
    return _HEAD.pack(_MAGIC, _VERSION, _TOMBSTONE, 0, token, created_at, 0.0, 0.0, 0.0, NO_EPOCH)


def of_another_epoch(data: bytes, epoch: bytes | None) -> bool:
    """Tell whether a record is a value that was stored under another epoch than this."""
    return data[:1] == b"\xac" and data[2:3] != b"\x01" and data[_EPOCH_AT : _EPOCH_AT + TOKEN_BYTES] != epoch


def holds_value(head: bytes, wall: float, epoch: bytes | None = NO_EPOCH) -> bool:
    """Tell whether a record that begins with ``head`` is a fresh value of this epoch, or a counter."""
    if counter(head) is not None:
        return True
    try:
        magic, version, flags, _, _, created_at, fresh_for, keep_for, load_time, of = _HEAD.unpack_from(head)
    except struct.error:
        return False
    if (
        magic != _MAGIC
        or version != _VERSION
        or flags & ~_TAGGED
        or of != epoch
        or not _sane(created_at, fresh_for, keep_for, load_time)
    ):
        return False
    return left(created_at, fresh_for, keep_for, wall) > 0


def _sane(created_at: float, fresh_for: float, keep_for: float, load_time: float) -> bool:
    return math.isfinite(created_at) and fresh_for > 0 and keep_for >= fresh_for and 0 <= load_time < math.inf


def left(created_at: float, fresh_for: float, keep_for: float, wall: float) -> float:
    """Return the seconds of freshness that are left; zero or less is stale.

    Where no stale window was asked for, the engine's own clock ends the entry: that it is there means that it is fresh,
    whatever this machine's clock says about the writer's.  `BARELY_FRESH` is the answer then.
    """
    if fresh_for == math.inf:
        return math.inf
    rest = fresh_for - max(0.0, wall - created_at)
    return BARELY_FRESH if rest <= 0 and keep_for == fresh_for else rest


def unpack(data: bytes) -> Envelope | None:
    """Open a record; ``None`` for a tombstone.

    Raises:
        DecodeError: these bytes are not such a record, whatever they are.
    """
    try:
        magic, version, flags, name_length, token, created_at, *spans, load_time, epoch = _HEAD.unpack_from(data)
        fresh_for, keep_for = spans
        if magic != _MAGIC or version != _VERSION:
            msg = f"not a record of format {_VERSION}: it begins with {bytes(data[:4]).hex()}"
            raise DecodeError(msg)
        if flags == _TOMBSTONE:
            return None
        if flags & ~_TAGGED or not _sane(created_at, fresh_for, keep_for, load_time):
            msg = "not a record: its head makes no sense"
            raise DecodeError(msg)
        position = _HEAD.size + name_length
        if len(data) < position:
            raise struct.error  # noqa: TRY301 - as unpack_from does
        codec = data[_HEAD.size : position].decode("ascii")
        tags: tuple[tuple[str, bytes], ...] = ()
        if flags & _TAGGED:
            tags, position = _unpack_tags(data, position)
        return Envelope(token, created_at, fresh_for, keep_for, load_time, codec, tags, data[position:], epoch)
    except (struct.error, UnicodeDecodeError) as error:
        msg = f"not a record: cut short or garbled after {len(data)} bytes"
        raise DecodeError(msg) from error


def opener(codec: str) -> Callable[[bytes, float, bytes | None], tuple[float, float, float, bytes] | None]:
    """Return the quick way into what most reads find: a sane value without tags, of this codec and the epoch.

    It takes a record, the wall clock and the epoch, and gives the seconds of freshness that are `left`, fresh_for,
    load_time and the payload; ``None`` for whatever takes a closer look.
    """
    name = codec.encode("ascii")
    head = bytes((_MAGIC, _VERSION, 0, len(name)))
    front = struct.Struct(f">4s8xdddf8s{len(name)}s")
    unpack_from, payload_at, infinity = front.unpack_from, front.size, math.inf

    def open_quickly(data: bytes, wall: float, epoch: bytes | None) -> tuple[float, float, float, bytes] | None:
        if len(data) < payload_at:
            return None
        begin, created_at, fresh_for, keep_for, load_time, of, written_by = unpack_from(data)
        if (
            begin != head
            or written_by != name
            or of != epoch
            # Comparisons with NaN are false.
            or not (-infinity < created_at < infinity and 0 < fresh_for <= keep_for and 0 <= load_time < infinity)
        ):
            return None
        rest = fresh_for
        if fresh_for != infinity and wall > created_at:
            rest -= wall - created_at
            if rest <= 0 and keep_for == fresh_for:
                rest = BARELY_FRESH
        return rest, fresh_for, load_time, data[payload_at:]

    return open_quickly


def _unpack_tags(data: bytes, position: int) -> tuple[tuple[tuple[str, bytes], ...], int]:
    (count,) = _TAG_HEAD.unpack_from(data, position)
    position += _TAG_HEAD.size
    tags: list[tuple[str, bytes]] = []
    for _ in range(count):
        (length,) = _TAG_HEAD.unpack_from(data, position)
        position += _TAG_HEAD.size
        end = position + length
        token = data[end : end + TOKEN_BYTES]
        if len(token) != TOKEN_BYTES:
            raise struct.error
        tags.append((data[position:end].decode(), token))
        position = end + TOKEN_BYTES
    return tuple(tags), position


def counter(data: bytes) -> int | None:
    """Read a record that a counter left (plain decimal digits, 64 bits); ``None`` if it is not one."""
    if len(data) > 20 or not _COUNTER.fullmatch(data):  # noqa: PLR2004 - the digits of -2**63
        return None
    number = int(data)
    return number if -(2**63) <= number < 2**63 else None
