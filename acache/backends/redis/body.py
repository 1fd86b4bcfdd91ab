"""Bodies in chunks: how an entry that was written chunk by chunk lies in one hash.

The field `HEAD_FIELD` says which body it is, how many chunks and how many bytes; the fields ``0``, ``1``, ... are the
chunks.  Whoever reads a chunk reads the head with it, in one command: the head of another body gives a mix away.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["CHUNK", "HEAD_FIELD", "Head", "is_unfinished", "new_suffix", "rechunked"]

CHUNK: Final = 512 * 1024
"""Bytes of every chunk but the last.  A body that fits into one is stored as a plain string."""
HEAD_FIELD: Final = "head"

_HEAD: Final = re.compile(rb"acache-body:1:([0-9a-f]{32}):(\d{1,18}):(\d{1,18})")
_UNFINISHED: Final = re.compile(rb"\x00acache-unfinished:[0-9a-f]{32}\Z")


@dataclass(frozen=True, slots=True)
class Head:
    """What the head field of a body says."""

    wire: bytes
    """The field as it is stored; no two bodies have the same."""
    chunks: int
    size: int

    @classmethod
    def new(cls, chunks: int, size: int) -> Head:
        """Return the head of a new body."""
        return cls(b"acache-body:1:%s:%d:%d" % (uuid.uuid4().hex.encode(), chunks, size), chunks, size)

    @classmethod
    def parse(cls, wire: bytes | None) -> Head | None:
        """Return the head, or ``None`` for a hash of another program."""
        found = _HEAD.fullmatch(wire or b"")
        return None if found is None else cls(found[0], int(found[2]), int(found[3]))


def new_suffix() -> bytes:
    """Return how the key of a body ends while it is being written."""
    return b"\x00acache-unfinished:" + uuid.uuid4().hex.encode()


def is_unfinished(key: bytes) -> bool:
    """Tell whether this is the key of a body that is being written, or of one that was abandoned."""
    return _UNFINISHED.search(key) is not None


async def rechunked(chunks: AsyncIterator[bytes] | Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the same bytes in chunks of `CHUNK`; only the last one may be shorter, and none is empty."""
    waiting = bytearray()
    async for piece in _each(chunks):
        rest = memoryview(piece)
        while len(waiting) + len(rest) >= CHUNK:
            taken = CHUNK - len(waiting)
            yield bytes(waiting) + rest[:taken] if waiting else bytes(rest[:taken])
            waiting.clear()
            rest = rest[taken:]
        waiting += rest
    if waiting:
        yield bytes(waiting)


async def _each(chunks: AsyncIterator[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(chunks, Iterable):
        for chunk in chunks:
            yield chunk
    else:
        async for chunk in chunks:
            yield chunk
