"""A long value, read in pieces, so that others have their turn between them.

Both sides are held up by a reply in one piece: the server while it copies the value, which no other client can
interrupt, and the event loop while the parser makes a value of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

from .resp import Argument, pack

__all__ = ["read_in_pieces"]

_PIECE: Final = 1 << 18
_AHEAD: Final = 4
"""Pieces that are asked for before the first of them is there."""


async def read_in_pieces(send: Callable[[bytes], asyncio.Future[Any]], key: bytes, *, least: int) -> bytes | None:
    """Return the value under ``key`` as it was at one moment; ``None`` if it was replaced meanwhile, or is not long.

    The server watches the key for this connection and refuses an empty transaction in the end if anybody has changed
    it, so pieces of two values are never taken for one.  A watch is the whole connection's: no other command but these
    may go over it meanwhile.

    Args:
        send: sends a command over that connection.
        key: as it is stored.
        least: bytes that make a value long.
    """
    asked: deque[asyncio.Future[Any]] = deque()

    def ask(*command: Argument) -> None:
        asked.append(send(pack(command)))

    watching = True
    try:
        ask("WATCH", key)
        ask("STRLEN", key)
        await asked.popleft()
        size: int = await asked.popleft()
        if size < least:
            return None
        # What is gathered here is given away without another copy, which would take as long as the parser's.
        body = BytesIO()
        for start in range(0, size, _PIECE):
            ask("GETRANGE", key, start, start + _PIECE - 1)
            if len(asked) == _AHEAD:
                body.write(await asked.popleft())
        while asked:
            body.write(await asked.popleft())
        ask("MULTI")
        ask("EXEC")
        watching = False
        await asked.popleft()
        unchanged = await asked.popleft() is not None
        return body.getvalue() if unchanged and body.tell() == size else None
    finally:
        if watching:
            ask("UNWATCH")
        for reply in asked:  # cancelled, or after an error: they are read, and dropped
            if not reply.cancel() and not reply.cancelled():
                reply.exception()
