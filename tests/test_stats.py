"""The numbers add up: every question is one hit or one miss, whatever it was asked with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from acache import Cache, MemoryBackend, Stats
from acache.events import Hit, Miss
from acache.testing import Recorder


@pytest.fixture(params=["near", "near over far", "far"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache of each topology."""
    backend = None if request.param == "near" else MemoryBackend()
    async with Cache(backend, memory=None if request.param == "far" else 100) as cache:
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


def test_stats_are_a_frozen_snapshot():
    """The ratio of nothing is zero."""
    assert Stats().hit_ratio == 0.0
    assert Stats(hits_near=1, hits_far=1, hits_stale=1, misses=1).hit_ratio == 0.75
    with pytest.raises(AttributeError):
        Stats().misses = 5  # type: ignore[misc]
