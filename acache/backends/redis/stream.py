"""Reading and writing bodies in chunks, through a transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Final

from ...entry import HEAD_BYTES
from ...errors import AcacheError, BackendUnavailable, DecodeError, ValueTooLarge
from ..base import Version
from .body import CHUNK, HEAD_FIELD, Head, new_suffix, rechunked
from .scripts import APPEND, FINISH, SNAPSHOT, run
from .transport import Transport, WrongType

__all__ = ["opened", "read", "version_of", "write"]

_ABANDONED_MS: Final = 300_000
"""How long what is beside an entry stays after its writer, or its reader, was last heard of."""
_AT_ONCE: Final = 16
"""Chunks in one reply, where a body is wanted whole."""
_ATTEMPTS: Final = 3


class _Replaced(BackendUnavailable):
    """The entry is another one, or gone, since its first chunk was read."""


def version_of(data: bytes | None) -> Version:
    """Return the version of what lies in a string; `SET_IF` compares it."""
    return None if data is None else b"data:" + data[:HEAD_BYTES]


async def read(transport: Transport, key: bytes, limit: int) -> tuple[bytes | None, Version]:
    """Return a body as one value, and its version.

    Raises:
        ValueTooLarge: it is longer than ``limit``.
        DecodeError: the key holds something of another program.
    """
    for _ in range(_ATTEMPTS):
        try:
            head = await _head(transport, key)
            if head is None:
                return None, None
            if head.size > limit:
                msg = f"{head.size} bytes are more than the {limit} that are read as one value: use open()"
                raise ValueTooLarge(msg)
            data = b"".join([chunk async for chunk in _chunks(transport, key, head, at_once=_AT_ONCE)])
        except _Replaced:
            with suppress(WrongType):
                plain = await transport.execute("GET", key)
                return plain, version_of(plain)
        else:
            return data, b"body:" + head.wire
    msg = f"the entry was replaced {_ATTEMPTS} times while it was read"
    raise BackendUnavailable(msg)


@asynccontextmanager
async def opened(transport_of_loop: Callable[[], Transport], key: bytes) -> AsyncIterator[AsyncIterator[bytes] | None]:
    """Do what `Stream.open` promises."""
    transport = transport_of_loop()
    try:
        first = await transport.execute("GETRANGE", key, 0, CHUNK - 1)
        if not first:  # an empty value, or none: GET can tell
            first = await transport.execute("GET", key)
    except WrongType:
        head = await _head(transport, key)
        yield None if head is None else _chunks(transport, key, head)
        return
    if first is None:
        yield None
    elif len(first) < CHUNK:
        yield _one(first)
    else:
        # A plain value has no name by which its pieces would know each other: a copy stands still.
        copy = transport.beside(key, new_suffix())
        try:
            there = await run(transport, SNAPSHOT, [key, copy], _ABANDONED_MS)
            yield _ranges(transport, copy, await transport.execute("STRLEN", copy)) if there else None
        except WrongType as error:
            raise _Replaced(_REPLACED) from error
        finally:
            with suppress(AcacheError):
                await transport.execute("UNLINK", copy)


async def write(
    transport: Transport, key: bytes, chunks: AsyncIterator[bytes] | Iterable[bytes], milliseconds: int | str
) -> None:
    """Do what `Stream.store` promises; ``""`` milliseconds are for ever."""
    async with aclosing(rechunked(chunks)) as source:
        first = await anext(source, b"")
        chunk = await anext(source, None)
        if chunk is None:
            await transport.execute("SET", key, first, *(("PX", milliseconds) if milliseconds else ()))
            return
        beside = transport.beside(key, new_suffix())
        try:
            await _append(transport, beside, 0, first)
            count, size = 1, len(first)
            while chunk is not None:
                await _append(transport, beside, count, chunk)
                count, size = count + 1, size + len(chunk)
                chunk = await anext(source, None)
            finished = await run(transport, FINISH, [key, beside], count, milliseconds, Head.new(count, size).wire)
        except BaseException:
            # Also when cancelled; if the server is out of reach, the deadline of what was written does it.
            with suppress(AcacheError):
                await transport.execute("UNLINK", beside)
            raise
        if not finished:
            raise BackendUnavailable(_REMOVED)


async def _append(transport: Transport, beside: bytes, number: int, chunk: bytes) -> None:
    if not await run(transport, APPEND, [beside], number, chunk, _ABANDONED_MS):
        raise BackendUnavailable(_REMOVED)


async def _head(transport: Transport, key: bytes) -> Head | None:
    for _ in range(2):  # a second look, for what appears between the two commands
        try:
            wire = await transport.execute("HGET", key, HEAD_FIELD)
        except WrongType as error:
            if await transport.execute("TYPE", key) in (b"string", b"hash", b"none"):
                raise _Replaced(_REPLACED) from error
            raise
        if wire is None and not await transport.execute("EXISTS", key):
            return None
        head = Head.parse(wire)
        if head is not None:
            return head
    msg = "the key holds a hash of another program"
    raise DecodeError(msg)


async def _chunks(transport: Transport, key: bytes, head: Head, *, at_once: int = 1) -> AsyncIterator[bytes]:
    for start in range(0, head.chunks, at_once):
        numbers = range(start, min(start + at_once, head.chunks))
        try:
            wire, *chunks = await transport.execute("HMGET", key, HEAD_FIELD, *numbers)
        except WrongType as error:
            raise _Replaced(_REPLACED) from error
        if wire != head.wire or None in chunks:
            raise _Replaced(_REPLACED)
        for chunk in chunks:
            yield chunk


async def _ranges(transport: Transport, copy: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, CHUNK):
        piece, renewed = await transport.execute_many(
            [("GETRANGE", copy, start, start + CHUNK - 1), ("PEXPIRE", copy, _ABANDONED_MS)]
        )
        for reply in (piece, renewed):
            if isinstance(reply, AcacheError):
                raise reply
        if len(piece) != min(CHUNK, size - start):
            raise _Replaced(_REPLACED)
        yield piece


async def _one(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


_REMOVED: Final = "the body was removed while it was written: evicted, cleared, or left alone for too long"
_REPLACED: Final = "the entry was replaced or removed while it was read"
