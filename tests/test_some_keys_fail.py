"""An operation on many keys does what it can for each, and says which of them failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from acache import BackendError, BackendTimeout, BackendUnavailable, Cache, MemoryBackend, Policy
from acache.backends.base import batch_error
from acache.events import BackendFailed
from acache.testing import Recorder

if TYPE_CHECKING:
    from acache.backends import Backend


class Torn(MemoryBackend):
    """Keys with an x cannot be reached once it is torn, as if one server of several were down."""

    torn = False

    def _check(self, keys: Sequence[str]) -> dict[str, BackendError]:
        return {key: BackendTimeout("late") for key in keys if self.torn == "altogether" or (self.torn and "x" in key)}

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        failed = self._check(keys)
        found = await super().get_many([key for key in keys if key not in failed])
        if failed:
            raise batch_error(failed, found=found)
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        failed = self._check(list(items))
        await super().set_many({key: data for key, data in items.items() if key not in failed}, ttl=ttl)
        if failed:
            raise batch_error(failed)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        failed = self._check(keys)
        count = await super().delete_many([key for key in keys if key not in failed])
        if failed:
            raise batch_error(failed)
        return count


class Bare:
    """The four operations over such a backend, one key at a time."""

    def __init__(self, inner: Torn) -> None:
        self._inner = inner

    @property
    def torn(self) -> bool | str:
        return self._inner.torn

    @torn.setter
    def torn(self, torn: bool | str) -> None:
        self._inner.torn = torn

    def _pass(self, key: str) -> None:
        if self.torn == "altogether" or (self.torn and "x" in key):
            msg = "late"
            raise BackendTimeout(msg)

    async def get(self, key: str, /) -> bytes | None:
        self._pass(key)
        return await self._inner.get(key)

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        self._pass(key)
        await self._inner.set(key, data, ttl=ttl)

    async def delete(self, key: str, /) -> bool:
        self._pass(key)
        return await self._inner.delete(key)

    async def aclose(self) -> None:
        pass


@pytest.fixture(params=["in bulk", "one by one"])
def backend(request: pytest.FixtureRequest) -> Any:
    inner = Torn()
    return inner if request.param == "in bulk" else Bare(inner)


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def cache(backend: Backend, recorder: Recorder) -> Cache:
    return Cache(backend, memory=None, namespace="n", observers=[recorder])


async def test_a_read_returns_what_can_be_read(cache: Cache, backend: Torn, recorder: Recorder):
    await cache.set_many({"a": 1, "x": 2, "b": 3})
    backend.torn = True
    assert await cache.get_many(["a", "x", "b", "c"]) == {"a": 1, "b": 3}
    (event,) = [event for event in recorder.events if isinstance(event, BackendFailed)]
    assert isinstance(event.error, BackendTimeout)
    assert list(event.error.failed) == ["x"]
    assert set(event.error.found) == {"a", "b"}


async def test_a_read_that_may_raise_says_which(cache: Cache, backend: Torn):
    strict = cache.view(policy=Policy(on_backend_error="raise"))
    await strict.set_many({"a": 1, "x": 2})
    backend.torn = True
    with pytest.raises(BackendTimeout) as caught:
        await strict.get_many(["a", "x"])
    assert list(caught.value.failed) == ["x"]
    assert isinstance(caught.value.failed["x"], BackendTimeout)


async def test_a_write_stores_the_others(cache: Cache, backend: Torn):
    backend.torn = True
    strict = cache.view(policy=Policy(on_backend_error="raise"))
    with pytest.raises(BackendTimeout) as caught:
        await strict.set_many({"a": 1, "x": 2, "b": 3})
    assert list(caught.value.failed) == ["x"]
    backend.torn = False
    assert await cache.get_many(["a", "x", "b"]) == {"a": 1, "b": 3}


async def test_a_removal_takes_the_others_and_raises(cache: Cache, backend: Torn):
    await cache.set_many({"a": 1, "x": 2, "b": 3})
    backend.torn = True
    with pytest.raises(BackendTimeout) as caught:
        await cache.delete_many(["a", "x", "b"])
    assert list(caught.value.failed) == ["x"]
    backend.torn = False
    assert await cache.get_many(["a", "x", "b"]) == {}, "what could not be removed is not shown either"
    other = Cache(backend, memory=None, namespace="n")
    assert await other.get_many(["a", "x", "b"]) == {"x": 2}


async def test_keys_that_fail_do_not_close_the_way_to_the_others(cache: Cache, backend: Torn, recorder: Recorder):
    """The circuit breaker is for a tier that is dead, not for one server of several."""
    await cache.set_many({"a": 1, "x": 2})
    backend.torn = True
    for _ in range(20):
        assert await cache.get_many(["a", "x"]) == {"a": 1}
    assert all("x" in event.error.failed for event in recorder.events if isinstance(event, BackendFailed))


async def test_a_dead_server_of_several_leaves_the_cache_its_others(private_memcached: Callable[..., Any]):
    """Single keys too: a dead server does not close the way to the others."""
    dead, alive = private_memcached(), private_memcached()
    url = f"memcached://127.0.0.1:{dead.port},127.0.0.1:{alive.port}"
    async with Cache.from_url(url, memory=None, namespace="n") as cache:
        keys = [f"k{number}" for number in range(100)]
        await cache.set_many(dict.fromkeys(keys, 1))
        dead.kill()
        found = [key for key in keys if await cache.get(key) is not None]
        assert 20 < len(found) < 80
        assert [key for key in keys if await cache.get(key) is not None] == found
        assert sorted(await cache.get_many(keys)) == sorted(found)
        assert cache.stats().backend_errors > 0


async def test_a_tier_where_all_keys_fail_is_dead(cache: Cache, backend: Torn, recorder: Recorder):
    backend.torn = "altogether"  # the namespace's own key included
    for _ in range(20):
        assert await cache.get_many(["x", "xx"]) == {}
    errors = [event.error for event in recorder.events if isinstance(event, BackendFailed)]
    assert any(isinstance(error, BackendUnavailable) and "left alone" in str(error) for error in errors)


@pytest.mark.parametrize("verb", ["incr", "add", "touch"])
async def test_a_hundred_at_once_on_one_key_all_get_their_turn(verb: str):
    """Also where each has to look, and to store if nothing has changed: a deleted key is such a place."""
    cache = Cache(Slow(), memory=None, namespace="n")
    if verb == "touch":
        await cache.set("k", 1)
        assert await asyncio.gather(*[cache.touch("k", ttl=60) for _ in range(100)]) == [True] * 100
    elif verb == "add":
        await cache.delete("k")
        assert (await asyncio.gather(*[cache.add("k", number) for number in range(100)])).count(True) == 1
    else:
        await cache.set("k", 0)
        assert sorted(await asyncio.gather(*[cache.incr("k") for _ in range(100)])) == list(range(1, 101))


class Slow(MemoryBackend):
    """Every operation takes a turn of the loop, before and after, and counters are none."""

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, object]:
        seen = await super().get_versioned(key)
        await asyncio.sleep(0)
        return seen

    async def set_if(self, key: str, data: bytes, version: object, /, *, ttl: float | None) -> bool:
        await asyncio.sleep(0)
        return await super().set_if(key, data, version, ttl=ttl)

    incr = None  # type: ignore[assignment]  # without the capability


async def test_the_tags_of_many_values_are_read_at_once():
    """Reading a hundred values under a hundred tags is two reads of the far tier, not a hundred and one."""

    class Counting(MemoryBackend):
        reads = 0

        async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
            self.reads += 1
            return await super().get_many(keys)

    backend = Counting()
    cache = Cache(backend, memory=None, namespace="n")
    for number in range(100):
        await cache.set(f"k{number}", number, tags=[f"t{number}", "all"])
    await cache.invalidate_tags("t7")
    backend.reads = 0
    found = await cache.get_many([f"k{number}" for number in range(100)])
    assert found == {f"k{number}": number for number in range(100) if number != 7}
    assert backend.reads == 2


async def test_a_failure_is_told_once(backend: Any, recorder: Recorder):
    """Also where it is raised."""
    cache = Cache(backend, memory=None, namespace="n", observers=[recorder], policy=Policy(on_backend_error="raise"))
    backend.torn = True
    with pytest.raises(BackendTimeout):
        await cache.get_many(["a", "x"])
    assert cache.stats().backend_errors == 1
