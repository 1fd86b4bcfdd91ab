"""What `LayeredBackend` promises beyond the contract."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from acache import BackendUnavailable, Cache, ConfigurationError, MemoryBackend, NullBackend, Policy
from acache.backends import Add, Batch, Cas, Clear, Counter, LayeredBackend, Scan, Touch
from acache.backends.file import FileBackend
from acache.testing import BackendConformance, FakeClock, FaultyBackend

if TYPE_CHECKING:
    from pathlib import Path

    from acache.backends import Backend


class TestLayeredBackend(BackendConformance):
    """Two in process, under a clock that moves when told."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Touch)
    title = "Memory over Memory"
    clock = FakeClock()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def backend(self) -> Backend:
        return LayeredBackend(MemoryBackend(clock=self.clock), MemoryBackend(clock=self.clock))


@pytest.mark.skipif("ACACHE_REDIS_URL" not in os.environ, reason="needs ACACHE_REDIS_URL")
class TestFilesOverRedis(BackendConformance):
    """The composition that its page recommends."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Touch)
    title = "Files over Redis"

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        from acache.backends.redis import RedisBackend

        shared = RedisBackend.from_url(os.environ["ACACHE_REDIS_URL"])
        return LayeredBackend(FileBackend(tmp_path / "local"), shared)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def local(clock: FakeClock) -> FaultyBackend:
    return FaultyBackend(clock=clock)


@pytest.fixture
def shared(clock: FakeClock) -> FaultyBackend:
    return FaultyBackend(clock=clock)


@pytest.fixture
def layered(local: FaultyBackend, shared: FaultyBackend) -> LayeredBackend:
    return LayeredBackend(local, shared, local_ttl=5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LayeredBackend(MemoryBackend(), NullBackend()),
        lambda: LayeredBackend(MemoryBackend(), MemoryBackend(), local_ttl=0),
        lambda: LayeredBackend(MemoryBackend, MemoryBackend()),  # type: ignore[arg-type]
        lambda: LayeredBackend(MemoryBackend(), "redis://"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_work_is_refused_at_once(build: object):
    with pytest.raises(ConfigurationError):
        build()  # type: ignore[operator]


async def test_a_second_read_does_not_ask_the_shared_one(layered: LayeredBackend, shared: FaultyBackend):
    await layered.set("k", b"value", ttl=60)
    assert await layered.get("k") == b"value"
    shared.fail()
    assert await layered.get("k") == b"value"
    assert await layered.get_many(["k"]) == {"k": b"value"}
    assert (await layered.get_versioned("k"))[0] == b"value"


async def test_a_foreign_change_is_seen_within_local_ttl(
    layered: LayeredBackend, shared: FaultyBackend, clock: FakeClock
):
    await layered.set("k", b"old", ttl=60)
    assert await layered.get("k") == b"old"
    await shared.set("k", b"new", ttl=60)
    clock.advance(5)
    assert await layered.get("k") == b"new"


async def test_a_copy_does_not_outlive_its_entry(layered: LayeredBackend, clock: FakeClock):
    await layered.set("k", b"value", ttl=60)
    clock.advance(58)
    assert await layered.get("k") == b"value"
    clock.advance(2)
    assert await layered.get("k") is None


@pytest.mark.parametrize(
    "change", ["set", "delete", "set_many", "delete_many", "add", "touch", "swap", "set_if", "clear"]
)
@pytest.mark.parametrize("where", ["get", "get_versioned", "ttl", "set"])
async def test_a_read_that_a_change_overtakes_leaves_no_copy(
    layered: LayeredBackend, local: FaultyBackend, shared: FaultyBackend, change: str, where: str
):
    """At whichever of its awaits the reader stands: what it read is not what the next one gets."""
    await shared.set("k", b"old", ttl=60)
    held = (local if where == "set" else shared).hold(where)
    reader = asyncio.create_task(layered.get_versioned("k") if where == "get_versioned" else layered.get("k"))
    await held.reached.wait()
    _, version = (b"", None) if where == "get_versioned" else await shared.get_versioned("k")
    changes = {
        "set": lambda: layered.set("k", b"new", ttl=60),
        "delete": lambda: layered.delete("k"),
        "set_many": lambda: layered.set_many({"k": b"new", "l": b""}, ttl=60),
        "delete_many": lambda: layered.delete_many(["k", "l"]),
        "add": lambda: layered.add("k", b"new", ttl=60),
        "touch": lambda: layered.touch("k", ttl=30),
        "swap": lambda: layered.swap("k", b"new", ttl=60),
        "set_if": lambda: layered.set_if("k", b"new", version, ttl=60),
        "clear": lambda: layered.clear("k"),
    }
    await changes[change]()  # type: ignore[no-untyped-call]
    held.release()
    await reader
    assert await layered.get("k") == await shared.get("k")


async def test_a_fill_over_a_copy_is_refused_if_the_entry_was_replaced(layered: LayeredBackend, shared: FaultyBackend):
    await layered.set("k", b"stale", ttl=60)
    await layered.get("k")
    seen, version = await layered.get_versioned("k")
    assert seen == b"stale"
    await shared.set("k", b"written by another machine", ttl=60)
    assert await layered.set_if("k", b"loaded", version, ttl=60) is False
    assert await layered.get("k") == b"written by another machine"


async def test_a_fill_over_a_copy_is_stored_if_the_entry_is_still_the_same(layered: LayeredBackend):
    await layered.set("k", b"stale", ttl=60)
    await layered.get("k")
    _, version = await layered.get_versioned("k")
    assert await layered.set_if("k", b"loaded", version, ttl=60) is True
    assert await layered.get("k") == b"loaded"


async def test_a_local_backend_that_fails_is_a_miss(layered: LayeredBackend, local: FaultyBackend):
    await layered.set("k", b"value", ttl=60)
    local.fail()
    assert await layered.get("k") == b"value"
    assert await layered.get_many(["k"]) == {"k": b"value"}


async def test_a_copy_that_cannot_be_removed_is_loud(layered: LayeredBackend, local: FaultyBackend):
    await layered.set("k", b"old", ttl=60)
    await layered.get("k")
    local.fail("delete")
    with pytest.raises(BackendUnavailable):
        await layered.set("k", b"new", ttl=60)


async def test_a_cancelled_change_leaves_no_copy(layered: LayeredBackend, local: FaultyBackend, shared: FaultyBackend):
    await layered.set("k", b"old", ttl=60)
    await layered.get("k")
    held = shared.hold("set")
    writer = asyncio.create_task(layered.set("k", b"new", ttl=60))
    await held.reached.wait()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    held.release()
    assert await local.get("k") is None
    assert await layered.get("k") == await shared.get("k")


@pytest.mark.parametrize("end", ["clear", "invalidate_tags", "flush"])
@pytest.mark.parametrize("tags", [[], ["t"]], ids=["untagged", "tagged"])
async def test_what_is_written_after_another_machine_s_change_stays(
    local: FaultyBackend, shared: FaultyBackend, clock: FakeClock, end: str, tags: list[str]
):
    """That change is seen late here, but nothing is stored under what is no more."""
    layered = LayeredBackend(local, shared, local_ttl=30)
    here = Cache(layered, namespace="n", clock=clock, memory=None)
    elsewhere = Cache(shared, namespace="n", clock=clock, memory=None)
    async with here, elsewhere:
        await here.set("warm", 1, tags=["t"])
        assert await here.get("warm") == 1
        if end == "flush":
            await shared.clear("")
        else:
            await getattr(elsewhere, end)(*["t"] * (end == "invalidate_tags"))
        await here.set("k", "v", ttl=3600, tags=tags)
        await here.set_many({"l": 1, "m": 2}, ttl=3600, tags=tags)
        assert await here.add("j", "v", ttl=3600, tags=tags) is True
        for _ in range(2):
            for cache in (here, elsewhere):
                assert await cache.get_many(["k", "l", "m", "j"]) == {"k": "v", "l": 1, "m": 2, "j": "v"}
                assert await cache.get("k") == "v"
            clock.advance(31)


@pytest.fixture
def three(tmp_path: Path, shared: FaultyBackend) -> Cache:
    """Memory, files, and a shared backend."""
    return Cache(LayeredBackend(FileBackend(tmp_path), shared), namespace="app", policy=Policy(ttl=60))


async def test_three_tiers_answer_from_the_nearest(three: Cache, shared: FaultyBackend, tmp_path: Path):
    """And a second process on this machine finds the files, while the shared one is away."""
    loads: list[str] = []

    async def load() -> dict[str, int]:
        loads.append("load")
        return {"n": 1}

    async with three:
        assert await three.get_or_load("k", load) == {"n": 1}
        assert await three.get_entry("k") is not None  # by way of the files, which have a copy now
        shared.fail()
        assert await three.get_or_load("k", load) == {"n": 1}
        async with Cache(LayeredBackend(FileBackend(tmp_path), shared), namespace="app") as other:
            assert await other.get("k") == {"n": 1}
            assert other.stats().hits_far == 1
    assert loads == ["load"]


async def test_three_tiers_let_an_invalidation_win_over_a_running_load(three: Cache, shared: FaultyBackend):
    begun, go = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await go.wait()
        return "old"

    async with three, Cache(shared, namespace="app") as elsewhere:
        loading = asyncio.create_task(three.get_or_load("k", load))
        await begun.wait()
        await elsewhere.delete("k")
        go.set()
        assert await loading == "old"
        assert await three.get("k") is None
        assert three.stats().fills_refused == 1
