"""`MongoDBBackend` beside pymongo's own asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import AsyncMongoClient

from acache.backends.mongodb import MongoDBBackend
from engines.base import DATA, KEY, TTL, Engine, Side

__all__ = ["engines"]

_DATABASE = "acache_bench"


@asynccontextmanager
async def _open(url: str) -> AsyncIterator[list[Side]]:
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url)
    other: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(url)
    backend = MongoDBBackend(other, database=_DATABASE)
    collection = client[_DATABASE]["bare"]

    async def store() -> None:
        document = {"data": DATA, "expires": datetime.now(UTC) + timedelta(seconds=TTL)}
        await collection.replace_one({"_id": KEY}, document, upsert=True)

    await backend.set(KEY, DATA, ttl=TTL)
    await store()
    try:
        yield [
            Side("pymongo", "`pymongo.AsyncMongoClient`", lambda: collection.find_one({"_id": KEY}), store),
            Side(
                "MongoDBBackend",
                "`MongoDBBackend(client, database=...)`",
                lambda: backend.get(KEY),
                lambda: backend.set(KEY, DATA, ttl=TTL),
                "ours",
            ),
        ]
        await client.drop_database(_DATABASE)
    finally:
        await backend.aclose()
        await client.close()
        await other.close()


def engines() -> list[Engine]:
    """Return the comparison."""
    return [Engine("MongoDB", "mongodb", _open)]
