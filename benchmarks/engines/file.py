"""`FileBackend` beside opening and reading a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from acache.backends.file import FileBackend
from engines.base import DATA, KEY, TTL, Engine, Side

__all__ = ["engines"]


@asynccontextmanager
async def _open(_: str) -> AsyncIterator[list[Side]]:
    with TemporaryDirectory() as folder:
        path, temporary = f"{folder}/bare", f"{folder}/bare.tmp"
        backend = FileBackend(f"{folder}/backend")
        await backend.set(KEY, DATA, ttl=TTL)

        def read() -> bytes:
            with open(path, "rb") as file:  # noqa: PTH123 - the bare call, which Path.open() is not
                return file.read()

        def write(number: int = 0) -> None:
            name = f"{temporary}{number}"
            with open(name, "wb") as file:  # noqa: PTH123
                file.write(DATA)
            os.replace(name, path)  # noqa: PTH105

        async def get() -> bytes:
            return read()

        async def store() -> None:
            write()

        async def get_in_a_worker() -> bytes:
            return await asyncio.to_thread(read)

        async def store_in_a_worker() -> None:
            await asyncio.to_thread(write, id(asyncio.current_task()))

        write()
        try:
            yield [
                Side("open and read", "`open(path, 'rb').read()`; a temporary file, `os.replace`", get, store),
                Side("in a worker thread", "the same by `asyncio.to_thread`", get_in_a_worker, store_in_a_worker),
                Side(
                    "FileBackend",
                    "`FileBackend(directory)`; the file is warm",
                    lambda: backend.get(KEY),
                    lambda: backend.set(KEY, DATA, ttl=TTL),
                    "ours",
                ),
            ]
        finally:
            await backend.aclose()


def engines() -> list[Engine]:
    """Return the comparison."""
    return [Engine("files", None, _open, {("get", 1): 2.0}, judged_by="wall")]
