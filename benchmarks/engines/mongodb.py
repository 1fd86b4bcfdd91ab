"""MongoDB: `MongoDBBackend` beside pymongo's own asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from pymongo import AsyncMongoClient, MongoClient

from acache.backends.mongodb import MongoDBBackend
from engines.base import TTL, Calls, Engine, Side, Workload

__all__ = ["engines"]

_DATABASE = "acache_bench"


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Calls]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url)
    collection = client[_DATABASE]["bare"]

    async def get(key: str) -> object:
        found = await collection.find_one({"_id": key})
        return None if found is None else found["data"]

    async def store(key: str, data: bytes) -> None:
        document = {"data": data, "expires": datetime.now(UTC) + timedelta(seconds=TTL)}
        await collection.replace_one({"_id": key}, document, upsert=True)

    async def get_many(keys: Sequence[str]) -> object:
        return [found["data"] async for found in collection.find({"_id": {"$in": list(keys)}})]

    try:
        yield Calls(get, store, get_many)
        await client[_DATABASE].drop_collection("bare")
    finally:
        await client.close()


@asynccontextmanager
async def _backend(url: str) -> AsyncIterator[Calls]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url)
    backend = MongoDBBackend(client, database=_DATABASE)
    try:
        yield Calls(backend.get, partial(backend.set, ttl=TTL), backend.get_many)
        await client.drop_database(_DATABASE)
    finally:
        await backend.aclose()
        await client.close()


def _pid(url: str) -> int:
    with MongoClient[dict[str, Any]](url) as client:
        return int(client.admin.command("serverStatus")["pid"])


def engines() -> list[Engine]:
    """Return the comparison."""
    sides = [
        Side("pymongo", "`pymongo.AsyncMongoClient`", _bare, "reference"),
        Side("MongoDBBackend", "`MongoDBBackend(client, database=...)`", _backend, "ours"),
    ]
    workloads = [Workload(operation, tasks) for operation in ("get", "set") for tasks in (1, 100)]
    workloads.append(Workload("get_many"))
    notes = {"aiocache, cashews": "they have no such backend"}
    return [Engine("MongoDB", "mongodb", "mongodb", sides, workloads, [], _pid, ("mongod",), ("pymongo",), notes)]
