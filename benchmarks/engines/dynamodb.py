"""DynamoDB: `DynamoDBBackend` beside aiobotocore's client."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session

from acache.backends.dynamodb import DynamoDBBackend
from engines.base import LONGEST, TTL, Calls, Engine, Side, Workload

__all__ = ["engines"]

_TABLE, _REGION, _CONNECTIONS = "acache-bench", "eu-west-1", 50


def _session() -> AioSession:
    session = get_session()
    session.set_credentials("test", "test")  # a server on this machine takes any
    return session


def _ours(url: str) -> DynamoDBBackend:
    return DynamoDBBackend(
        _session(), _TABLE, region=_REGION, endpoint_url=url, create_table=True, timeout=LONGEST,
        max_connections=_CONNECTIONS,
    )  # fmt: skip


@asynccontextmanager
async def _bare(url: str) -> AsyncIterator[Calls]:
    backend = _ours(url)  # it makes the table
    await backend.get("none")
    await backend.aclose()
    config = AioConfig(max_pool_connections=_CONNECTIONS)
    opening: Any = _session().create_client("dynamodb", region_name=_REGION, endpoint_url=url, config=config)
    async with opening as client:

        async def get(key: str) -> object:
            answer = await client.get_item(TableName=_TABLE, Key={"key": {"S": key}}, ConsistentRead=True)
            return answer["Item"]["data"]["B"] if "Item" in answer else None

        async def store(key: str, data: bytes) -> None:
            item = {"key": {"S": key}, "data": {"B": data}, "expires_at": {"N": str(int(time.time()) + TTL)}}
            await client.put_item(TableName=_TABLE, Item=item)

        async def get_many(keys: Sequence[str]) -> Any:
            wanted = {"Keys": [{"key": {"S": key}} for key in keys], "ConsistentRead": True}
            return await client.batch_get_item(RequestItems={_TABLE: wanted})

        yield Calls(get, store, get_many)


@asynccontextmanager
async def _backend(url: str) -> AsyncIterator[Calls]:
    backend = _ours(url)
    try:
        yield Calls(backend.get, partial(backend.set, ttl=TTL), backend.get_many)
        await backend.clear("")  # the table is this benchmark's own
    finally:
        await backend.aclose()


def engines() -> list[Engine]:
    """Return the comparison."""
    sides = [
        Side("aiobotocore", f"its client, `max_pool_connections={_CONNECTIONS}`", _bare, "reference"),
        Side("DynamoDBBackend", f"`DynamoDBBackend(session, max_connections={_CONNECTIONS})`", _backend, "ours"),
    ]
    workloads = [Workload(operation, tasks) for operation in ("get", "set") for tasks in (1, 100)]
    workloads.append(Workload("get_many"))
    notes = {"the server": "a stand-in for Amazon's, and slow: most of the wall time is its own"}
    return [
        Engine("DynamoDB", "dynamodb", "dynamodb", sides, workloads, packages=("aiobotocore", "botocore"), notes=notes)
    ]
