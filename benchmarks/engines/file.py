"""Files: `FileBackend` beside opening and reading a file, diskcache and cashews."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from tempfile import TemporaryDirectory

from acache.backends.file import FileBackend
from engines.base import TTL, Bar, Calls, Engine, Side, Workload

__all__ = ["engines"]


@asynccontextmanager
async def _bare(_: str, *, worker: bool = False) -> AsyncIterator[Calls]:
    with TemporaryDirectory() as folder:

        def read(key: str) -> bytes:
            with open(f"{folder}/{key}", "rb") as file:  # noqa: PTH123 - the bare call, which Path.open() is not
                return file.read()

        def write(key: str, data: bytes, number: int = 0) -> None:
            name = f"{folder}/{key}.{number}"
            with open(name, "wb") as file:  # noqa: PTH123
                file.write(data)
            os.replace(name, f"{folder}/{key}")  # noqa: PTH105

        async def get(key: str) -> bytes:
            return read(key)

        async def store(key: str, data: bytes) -> None:
            write(key, data)

        async def get_in_a_worker(key: str) -> bytes:
            return await asyncio.to_thread(read, key)

        async def store_in_a_worker(key: str, data: bytes) -> None:
            await asyncio.to_thread(write, key, data, id(asyncio.current_task()))

        yield Calls(get_in_a_worker, store_in_a_worker) if worker else Calls(get, store)


@asynccontextmanager
async def _backend(_: str) -> AsyncIterator[Calls]:
    with TemporaryDirectory() as folder:
        backend = FileBackend(folder)
        try:
            yield Calls(backend.get, partial(backend.set, ttl=TTL))
        finally:
            await backend.aclose()


@asynccontextmanager
async def _diskcache(_: str) -> AsyncIterator[Calls]:
    import diskcache

    with TemporaryDirectory() as folder, diskcache.Cache(folder) as cache:

        async def get(key: str) -> object:
            return await asyncio.to_thread(cache.get, key)

        async def store(key: str, data: bytes) -> None:
            await asyncio.to_thread(cache.set, key, data, expire=TTL)

        yield Calls(get, store)


@asynccontextmanager
async def _cashews(_: str) -> AsyncIterator[Calls]:
    import cashews

    with TemporaryDirectory() as folder:
        cache = cashews.Cache()
        cache.setup(f"disk://?directory={folder}&shards=0")
        try:
            yield Calls(cache.get, partial(cache.set, expire=TTL))
        finally:
            await cache.close()


def engines() -> list[Engine]:
    """Return the comparison."""
    sides = [
        Side("open and read", "`open(path, 'rb').read()`; a temporary file, `os.replace`", _bare, "reference"),
        Side("in a worker thread", "the same by `asyncio.to_thread`", partial(_bare, worker=True), "reference"),
        Side("FileBackend", "`FileBackend(directory)`; the files are warm", _backend, "ours"),
        Side("diskcache", "`diskcache.Cache(directory)` by `asyncio.to_thread`", _diskcache),
        Side("cashews", "`cache.setup('disk://?directory=...&shards=0')`: diskcache in a worker thread", _cashews),
    ]
    workloads = [
        Workload(operation, tasks, size)
        for operation in ("get", "set")
        for size in (100, 100_000)
        for tasks in (1, 100)
    ]
    bars = [Bar(Workload("get"), "FileBackend", "wall", 2.0)]
    return [
        Engine(
            "Files", "files", None, sides, workloads, bars, packages=("diskcache", "cashews"),
            notes={"aiocache, async-lru, fastapi-cache2": "they keep nothing in files"},
        )
    ]  # fmt: skip
