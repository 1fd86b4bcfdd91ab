"""What is wrong with a load is said, whether or not the value was there already."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from acache import Cache, ConfigurationError, MemoryBackend, RecursiveLoad


async def one() -> int:
    return 1


@pytest.mark.parametrize("ttl", [-5, 0, 10**400, "60"], ids=["negative", "zero", "endless", "text"])
async def test_a_bad_ttl_is_an_error_on_a_hit_too(ttl: Any):
    """Not only when the value has expired, in production."""
    async with Cache() as cache:
        await cache.get_or_load("k", one)
        with pytest.raises(ConfigurationError, match="ttl"):
            await cache.get_or_load("k", one, ttl=ttl)


@pytest.mark.parametrize("backend", [None, MemoryBackend()], ids=["near", "near over far"])
@pytest.mark.parametrize("result", [None, 5, [1], "ab"], ids=repr)
async def test_a_batch_loader_must_return_a_mapping(backend: MemoryBackend | None, result: Any):
    """Anything else is an error for its caller, and the keys can be loaded by the next."""
    async with Cache(backend, namespace="batch") as cache, asyncio.timeout(10):

        async def wrong(_: object) -> Any:
            return result

        with pytest.raises(TypeError, match="return a dict"):
            await cache.load_many(["a", "b"], wrong)
        assert await cache.get_or_load("a", one) == 1
        await cache.delete("a")


@pytest.mark.parametrize("asked", ["a", "b", "c"])
async def test_a_batch_loader_that_waits_for_any_of_its_keys_is_told_so(asked: str):
    """First, middle or last, of several."""
    async with Cache() as cache, asyncio.timeout(10):

        async def wait_for_itself(_: object) -> dict[str, int]:
            return {"a": await cache.get_or_load(asked, one)}

        with pytest.raises(RecursiveLoad):
            await cache.load_many(["a", "b", "c"], wait_for_itself)
