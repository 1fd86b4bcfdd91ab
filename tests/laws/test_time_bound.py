"""Engines that tell nobody of changes: a near copy is the old value for a few seconds, whatever happens, and no longer."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from acache import Cache, MemoryBackend
from acache.backends import Clear
from acache.backends.file import FileBackend
from acache.testing import FakeClock, FaultyBackend
from acache.tiers import NEAR_TTL

from .conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from acache.backends import Backend

MISS = object()
ENGINES = ("memory", "files", "memcached", "mongodb", "dynamodb")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=ENGINES)
async def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], Backend]]:
    """Return what makes backends over one engine, one for each process."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    name = uuid.uuid4().hex
    made: list[Backend] = []
    shared = MemoryBackend()

    def make() -> Backend:
        backend: Backend = shared
        if request.param == "files":
            backend = FileBackend(tmp_path)
        elif request.param == "memcached":
            from acache.backends.memcached import MemcachedBackend

            backend = MemcachedBackend.from_url(request.getfixturevalue("memcached_url"), timeout=20)
        elif request.param == "mongodb":
            from acache.backends.mongodb import MongoDBBackend

            backend = MongoDBBackend.from_url(f"{request.getfixturevalue('mongodb_url').rstrip('/')}/acache_{name}")
        elif request.param == "dynamodb":
            from acache.backends.dynamodb import DynamoDBBackend

            endpoint = request.getfixturevalue("dynamodb_url")
            url = f"dynamodb://eu-west-1/acache-{name}?endpoint_url={endpoint}&create_table=true"
            backend = DynamoDBBackend.from_url(url, timeout=20, connect_timeout=20)
        made.append(backend)
        return backend

    yield make
    if made and request.param == "mongodb":
        await made[0]._collection().database.client.drop_database(f"acache_{name}")  # type: ignore[attr-defined]
    for backend in made:
        await backend.aclose()


async def written(other: Cache, _: Backend) -> None:
    await other.set("k", "new")


async def removed(other: Cache, _: Backend) -> None:
    await other.delete("k")


async def written_by_a_stranger(_: Cache, backend: Backend) -> None:
    await backend.set("n::k", b"12", ttl=60)


async def invalidated(other: Cache, _: Backend) -> None:
    await other.invalidate_tags("t")


async def cleared(other: Cache, backend: Backend) -> None:
    if isinstance(backend, Clear):
        await other.clear()
    else:
        await backend.delete("n::k")  # memcached cannot list its keys; a flush, say


AFTERWARDS: dict[Callable[..., Any], object] = {
    written: "new", removed: MISS, written_by_a_stranger: 12, invalidated: MISS, cleared: MISS,
}  # fmt: skip


@pytest.mark.parametrize("change", AFTERWARDS, ids=lambda change: change.__name__)
async def test_a_change_by_others_is_seen_within_the_near_ttl(
    engine: Callable[[], Backend], clock: FakeClock, change: Callable[[Cache, Backend], Awaitable[None]]
):
    """The old value until the near copy's time is over, and from then on what the engine has."""
    backend = engine()
    cache = Cache(engine(), namespace="n", clock=clock, policy=PATIENT)
    other = Cache(backend, namespace="n", clock=clock, policy=PATIENT, memory=None)
    async with cache, other:
        await cache.set("k", "old", ttl=3600, tags=["t"])
        assert await cache.get("k") == "old"
        await change(other, backend)
        clock.advance(NEAR_TTL - 0.01)
        assert await cache.get("k") == "old"
        clock.advance(0.02)
        assert await cache.get("k", MISS) == AFTERWARDS[change]
        assert cache.stats().coherence is None


class AnswersLate(MemoryBackend):
    """Between what it finds and its answer there is time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.found, self.gate = asyncio.Event(), asyncio.Event()

    async def get(self, key: str, /) -> bytes | None:
        data = await super().get(key)
        if key == "n::k":
            self.found.set()
            await self.gate.wait()
        return data


async def test_a_value_that_is_read_while_it_changes_is_near_no_longer_than_that(clock: FakeClock):
    """Where nobody tells, the reader keeps what he has read."""
    backend = AnswersLate(clock)
    cache = Cache(backend, namespace="n", clock=clock, policy=PATIENT)
    other = Cache(backend, namespace="n", clock=clock, policy=PATIENT, memory=None)
    async with cache, other:
        await other.set("k", "old", ttl=3600)
        reading = asyncio.create_task(cache.get("k"))
        await backend.found.wait()
        await other.set("k", "new", ttl=3600)
        backend.gate.set()
        assert await reading == "old"
        assert await cache.get("k") == "old"
        clock.advance(NEAR_TTL + 0.01)
        assert await cache.get("k") == "new"


@pytest.mark.parametrize("fault", ["the connection breaks", "the engine is silent"])
async def test_a_near_copy_answers_for_its_time_while_the_engine_is_away(clock: FakeClock, fault: str):
    """Then the loader does."""
    backend = FaultyBackend(clock=clock)

    async def load() -> str:
        return "loaded"

    async with Cache(backend, namespace="n", clock=clock) as cache:
        await cache.set("k", "old", ttl=3600)
        held = None
        if fault == "the connection breaks":
            backend.fail()
        else:
            held = backend.hold("get_versioned")
        clock.advance(NEAR_TTL - 0.01)
        assert await cache.get_or_load("k", load) == "old"
        clock.advance(0.02)
        assert await cache.get_or_load("k", load) == "loaded"
        if held is not None:
            held.release()
