"""The numbers add up: every question is one hit or one miss, whatever it was asked with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from acache import Cache, KeyMissing, MemoryBackend, Policy, Stats
from acache.events import Hit, Miss
from acache.testing import FakeClock, Recorder


@pytest.fixture(params=["near", "near over far", "far"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache of each topology."""
    backend = None if request.param == "near" else MemoryBackend()
    async with Cache(backend, memory=None if request.param == "far" else 100, namespace="n") as cache:
        yield cache


async def load() -> int:
    """A loader."""
    return 1


async def load_many(keys: Any) -> dict[str, int]:
    """A batch loader."""
    return dict.fromkeys(keys, 1)


@pytest.mark.parametrize("verb", ["get", "get_entry", "get_many", "get_or_load", "load_many"])
async def test_each_question_counts_once(cache: Cache, verb: str):
    """A key that is missing is one miss; asked again after it was stored, one hit."""

    async def ask() -> object:
        if verb == "get":
            return await cache.get("k")
        if verb == "get_entry":
            return await cache.get_entry("k")
        if verb == "get_many":
            return await cache.get_many(["k"])
        if verb == "get_or_load":
            return await cache.get_or_load("k", load)
        return await cache.load_many(["k"], load_many)

    await ask()
    assert (cache.stats().misses, cache.stats().hits) == (1, 0)
    await cache.set("k", 1)
    await ask()
    assert (cache.stats().misses, cache.stats().hits) == (1, 1)
    assert cache.stats().hit_ratio == 0.5


async def test_a_batch_counts_each_key_once(cache: Cache):
    """Three of four missing are three misses, one hit and three started loads or one call."""
    await cache.set("a", 1)
    await cache.load_many(["a", "b", "c", "d"], load_many)
    stats = cache.stats()
    assert (stats.misses, stats.hits) == (3, 1)
    await cache.load_many(["a", "b", "c", "d"], load_many)
    assert (cache.stats().misses, cache.stats().hits) == (3, 5)


async def test_events_and_numbers_agree():
    """There are as many events as the counters say."""
    recorder = Recorder()
    async with Cache(MemoryBackend(), observers=[recorder]) as cache:
        for key in "abca":
            await cache.get(key)
            await cache.get_or_load(key, load)
            await cache.load_many([key, "z"], load_many)
        stats = cache.stats()
    assert len(recorder.of(Miss)) == stats.misses
    assert len(recorder.of(Hit)) == stats.hits


async def test_what_asks_for_no_value_is_not_counted(cache: Cache):
    """Found or not."""
    for _ in range(2):
        await cache.has("k")
        cache.peek("k")
        with suppress(KeyMissing):
            await cache.ttl("k")
        await cache.set("k", 1)
    assert cache.stats().hits == cache.stats().misses == 0
    await cache.refresh("k", load)
    assert (cache.stats().hits, cache.stats().misses, cache.stats().loads) == (0, 0, 1)


@pytest.mark.parametrize("backend", [None, MemoryBackend], ids=["near", "near over far"])
async def test_a_stale_answer_is_one_hit_and_a_miss_if_the_loader_was_asked_first(backend: Any):
    """At once: no miss.  In place of an error: a miss, a load and a failure.  While the loader is spared: no miss."""
    clock = FakeClock()
    store = None if backend is None else backend(clock=clock)
    policy = Policy(ttl=10, stale_while_revalidate=5, stale_if_error=100, error_backoff=5)

    async def fail() -> int:
        raise LookupError

    def counted() -> tuple[int, ...]:
        stats = cache.stats()
        return stats.hits, stats.hits_stale, stats.misses, stats.loads, stats.load_failures

    async with Cache(store, clock=clock, policy=policy) as cache:
        await cache.set("at once", 1)
        clock.advance(11)
        assert await cache.get_or_load("at once", load) == 1
        for _ in range(20):
            await asyncio.sleep(0)
        assert counted() == (1, 1, 0, 1, 0)
    async with Cache(store, clock=clock, policy=policy) as cache:
        await cache.set("k", 1)
        clock.advance(16)
        assert await cache.get_or_load("k", fail) == 1
        assert counted() == (1, 1, 1, 1, 1)
        assert await cache.get_or_load("k", fail) == 1
        assert counted() == (2, 2, 1, 1, 1)
        assert await cache.get("k") is None
        assert counted() == (2, 2, 2, 1, 1)


async def test_the_views_of_a_cache_have_its_numbers():
    """A function has its own part of them."""
    async with Cache(memory=100) as cache:
        view = cache.view(namespace="other")
        function = view.cached()(load)
        await function()
        await view.get("k")
        assert view.stats() == cache.stats()
        assert (cache.stats().misses, cache.stats().near_entries, cache.stats().near_bytes) == (2, 1, 0)
        assert function.stats().misses == 1


async def test_removals_are_counted_by_the_key_and_by_the_call(cache: Cache):
    """Whether there was something or not."""
    await cache.delete("a")
    await cache.delete_many(["a", "b", "c"])
    await cache.invalidate_tags("t", "u")
    await cache.clear()
    assert cache.stats().invalidations == 6


def test_stats_are_a_frozen_snapshot():
    """The ratio of nothing is zero."""
    assert Stats().hit_ratio == 0.0
    assert Stats(hits_near=1, hits_far=1, hits_stale=1, misses=1).hit_ratio == 0.75
    with pytest.raises(AttributeError):
        Stats().misses = 5  # type: ignore[misc]
