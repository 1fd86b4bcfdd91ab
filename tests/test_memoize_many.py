"""`Cache.cached_many`: one call for what is missing, one key for each value, and single calls folded into one."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from acache import Cache, ConfigurationError, InvalidKey, KeyMissing, Memory, MemoryBackend, Policy, RecursiveLoad
from acache.testing import FakeClock

Build = Callable[..., Cache]


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture(params=["near", "near over far", "far", "isolated"])
def build(request: pytest.FixtureRequest, clock: FakeClock) -> Build:
    """Make a cache of each topology."""

    def build(**policy: Any) -> Cache:
        backend = MemoryBackend(clock=clock) if "far" in request.param else None
        memory = {"far": None, "isolated": Memory(isolate=True)}.get(request.param, Memory())
        return Cache(backend, memory=memory, clock=clock, policy=Policy(**policy), namespace="many")

    return build


@pytest.fixture
async def cache(build: Build) -> AsyncIterator[Cache]:
    """A cache with the default policy."""
    async with build() as cache:
        yield cache


class Source:
    """What is asked, and an answer for everything but multiples of ten; it can be held up, and it can fail."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def __call__(self, ids: Sequence[int]) -> Mapping[int, str]:
        self.asked.append(list(ids))
        self.began.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {item: f"user {item}" for item in ids if item % 10}


@pytest.fixture
def source() -> Source:
    """A source of its own for each test."""
    return Source()


def users(cache: Cache, source: Source, **rules: Any) -> Any:
    """Return a decorated function over a source."""

    @cache.cached_many(**rules)
    async def get_users(ids: Sequence[int]) -> Mapping[int, str]:
        """Load users."""
        return await source(ids)

    return get_users


# Many ----------------------------------------------------------------------------------------------------------------


async def test_one_call_loads_what_is_missing(cache: Cache, source: Source):
    """Each item once, in the order they were asked for; what is there is not asked for again."""
    get_users = users(cache, source)
    assert await get_users([1, 2, 1, 3]) == {1: "user 1", 2: "user 2", 3: "user 3"}
    assert list(await get_users(ids=(4, 3, 2))) == [4, 3, 2]
    assert await get_users([]) == {}
    assert source.asked == [[1, 2, 3], [4]]
    assert (get_users.stats().loads, get_users.stats().hits) == (4, 2)


async def test_what_the_function_leaves_out_is_left_out(cache: Cache, source: Source):
    """And asked for again."""
    get_users = users(cache, source)
    assert await get_users([1, 10]) == {1: "user 1"}
    assert await get_users([1, 10]) == {1: "user 1"}
    assert source.asked == [[1, 10], [10]]


async def test_the_wrapper_looks_like_the_function(cache: Cache, source: Source):
    """It is a coroutine function, with its name, text and signature."""
    get_users = users(cache, source)
    assert inspect.iscoroutinefunction(get_users)
    assert (get_users.__name__, get_users.__doc__) == ("get_users", "Load users.")
    assert list(inspect.signature(get_users).parameters) == ["ids"]
    with pytest.raises(TypeError):
        await get_users([1], 2)


async def test_each_value_has_a_key_tags_and_a_ttl_of_its_own(cache: Cache, source: Source, clock: FakeClock):
    """In templates the first parameter is one item; ``ttl`` and ``condition`` get one value."""
    get_users = users(
        cache,
        source,
        key="user:{ids}",
        tags=["user:{ids}", "users"],
        ttl=lambda value: 10 if value == "user 1" else 20,
        condition=lambda value: value != "user 3",
    )
    await get_users([1, 2, 3])
    assert get_users.key(1) == "user:1"
    assert await cache.get("user:1") == "user 1"
    assert await cache.has("user:3") is False
    clock.advance(10)
    await get_users([1, 2])
    assert source.asked == [[1, 2, 3], [1]]
    await cache.invalidate_tags("user:2")
    await get_users([1, 2])
    assert source.asked[2:] == [[2]]
    await get_users.invalidate_all()
    await get_users([1, 2])
    assert source.asked[3:] == [[1, 2]]


async def test_items_of_other_types_are_others(cache: Cache):
    """As arguments are; the other arguments are part of each key."""
    asked: list[Any] = []

    @cache.cached_many(ignore=("session",))
    async def load(ids: list[Any], /, session: Any, *, lang: str = "en") -> dict[Any, str]:
        asked.append((ids, lang))
        return {item: f"{item!r} {lang}" for item in ids}

    assert await load([1, "1"], object()) == {1: "1 en", "1": "'1' en"}
    assert await load(["1", 1], object(), lang="en") == {"1": "'1' en", 1: "1 en"}
    assert await load([1], object(), lang="de") == {1: "1 de"}
    assert asked == [([1, "1"], "en"), ([1], "de")]
    assert load.key(1) == load.key(1, lang="en") != load.key(1, lang="de")
    assert load.key(1) != load.key("1")


async def test_overlapping_calls_load_each_item_once(cache: Cache, source: Source):
    """An item that somebody is loading already is waited for."""
    get_users = users(cache, source)
    source.go.clear()
    first = asyncio.create_task(get_users([1, 2]))
    await source.began.wait()
    second = asyncio.create_task(get_users([2, 3]))
    single = asyncio.create_task(get_users.one(1))
    for _ in range(20):
        await asyncio.sleep(0)
    source.go.set()
    assert await first == {1: "user 1", 2: "user 2"}
    assert await second == {2: "user 2", 3: "user 3"}
    assert await single == "user 1"
    assert source.asked == [[1, 2], [3]]


async def test_the_helpers_do_what_they_say(cache: Cache, source: Source):
    """To these items alone."""
    get_users = users(cache, source)
    await get_users([1, 2, 3])
    assert await get_users.invalidate([1, 2, 7]) == 2
    assert await get_users.refresh([3]) == {3: "user 3"}
    assert await get_users.bypass([3]) == {3: "user 3"}
    assert source.asked == [[1, 2, 3], [3], [3]]
    await get_users.set({1: "set 1", 2: "set 2"})
    assert await get_users([1, 2, 3]) == {1: "set 1", 2: "set 2", 3: "user 3"}
    assert get_users.peek([1, 8]) in ({1: "set 1"}, {})
    assert len(source.asked) == 3
    assert await get_users.refresh([1, 2]) == {1: "user 1", 2: "user 2"}
    assert source.asked[3:] == [[1, 2]]
    assert await get_users([1]) == {1: "user 1"}


@dataclasses.dataclass
class User:
    id: int
    name: str


async def test_the_decode_type_is_that_of_the_values(clock: FakeClock):
    """From the return annotation: another process gets objects of the class."""
    backend, calls = MemoryBackend(clock=clock), []

    async def load(ids: list[int]) -> dict[int, User]:
        calls.append(ids)
        return {item: User(item, "Ada") for item in ids}

    for _ in range(2):
        cache = Cache(backend, namespace="t", clock=clock)
        assert await cache.cached_many(key="k:{ids}")(load)([1]) == {1: User(1, "Ada")}
        assert await cache.cached_many(key="k:{ids}")(load).one(1) == User(1, "Ada")
    assert calls == [[1]]


@pytest.mark.parametrize("items", ["abc", 5, None])
async def test_what_are_no_items_is_refused(cache: Cache, source: Source, items: Any):
    """A str would be taken letter by letter."""
    with pytest.raises(ValueError, match="ids="):
        await users(cache, source)(items)
    assert source.asked == []


async def test_a_result_that_is_no_mapping_is_an_error(cache: Cache):
    """It says what to return."""

    @cache.cached_many()
    async def load(ids: list[int]) -> Any:
        return ids

    with pytest.raises(TypeError, match=r"load\(\) returned a list: return a dict"):
        await load([1])


async def test_functions_that_cannot_take_items_are_refused(cache: Cache):
    """The message says what the first parameter is for."""

    async def nothing() -> dict[int, int]:
        return {}

    async def keyword(*, ids: list[int]) -> dict[int, int]:
        return {}

    async def method(self: Any, *, ids: list[int]) -> dict[int, int]:
        return {}

    def plain(ids: list[int]) -> dict[int, int]:
        return {}

    untyped: Any = cache.cached_many()
    for function in (nothing, keyword, method):
        with pytest.raises(ConfigurationError, match="first parameter"):
            untyped(function)
    with pytest.raises(ConfigurationError, match="first parameter"):
        users(cache, Source(), ignore=("ids",))
    with pytest.raises(ConfigurationError, match="async def"):
        untyped(plain)
    with pytest.raises(ConfigurationError, match="parentheses"):
        cache.cached_many(keyword)  # type: ignore[call-overload, arg-type, unused-ignore]
    with pytest.raises(ConfigurationError, match="batch_window"):
        cache.cached_many(batch_window=-1)


async def test_a_function_that_blocks_may_run_in_a_thread(cache: Cache):
    """One thread for one call."""
    threads: list[int] = []

    @cache.cached_many(thread=True)
    def read(ids: list[int]) -> dict[int, int]:
        threads.append(threading.get_ident())
        return {item: 2 * item for item in ids}

    assert await read([1, 2]) == {1: 2, 2: 4}
    assert await asyncio.gather(read.one(3), read.one(4)) == [6, 8]
    assert await read.bypass([5]) == {5: 10}
    assert len(threads) == 3
    assert threading.get_ident() not in threads
    assert inspect.iscoroutinefunction(read)


# Laws ----------------------------------------------------------------------------------------------------------------


async def test_an_error_is_every_caller_s(cache: Cache, source: Source):
    """As it was raised; nothing is cached, and the next call asks again."""
    get_users = users(cache, source)
    source.error = LookupError("down")
    results = await asyncio.gather(get_users([1, 2]), get_users.one(2), get_users.one(3), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError] * 3
    source.error = None
    assert await get_users([1, 2, 3]) == {1: "user 1", 2: "user 2", 3: "user 3"}


async def test_a_caller_who_leaves_touches_nobody_else(cache: Cache, source: Source):
    """Of those who share a call, the others get their values; the last one's leaving cancels it."""
    get_users = users(cache, source)
    source.go.clear()
    tasks = [asyncio.create_task(get_users.one(item)) for item in (1, 2, 3)]
    await source.began.wait()
    tasks[0].cancel()
    tasks[2].cancel()
    source.go.set()
    assert await tasks[1] == "user 2"
    assert all(
        isinstance(done, asyncio.CancelledError) for done in await asyncio.gather(*tasks[::2], return_exceptions=True)
    )
    source.go.clear()
    source.began.clear()
    alone = asyncio.create_task(get_users.one(5))
    await source.began.wait()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(cache._scope.batches) == 0


async def test_an_invalidation_wins_over_a_batch(cache: Cache, source: Source):
    """For the items it is about; the others are stored."""
    get_users = users(cache, source, tags=["user:{ids}"])
    source.go.clear()
    tasks = [asyncio.create_task(get_users.one(item)) for item in (1, 2, 3)]
    await source.began.wait()
    await get_users.invalidate([1])
    await cache.invalidate_tags("user:2")
    source.go.set()
    assert await asyncio.gather(*tasks) == ["user 1", "user 2", "user 3"]
    assert [await cache.has(get_users.key(item)) for item in (1, 2, 3)] == [False, False, True]


@pytest.mark.parametrize("way", ["many", "one", "another"])
async def test_a_function_that_asks_for_its_own_items_is_told_so(cache: Cache, way: str):
    """Instead of a deadlock, also through a function of another kind."""

    @cache.cached()
    async def between(item: int) -> Any:
        return await load.one(item)

    @cache.cached_many(key="item:{ids}")
    async def load(ids: list[int]) -> dict[int, Any]:
        if way == "many":
            return await load(ids)
        return {item: await (load.one(item) if way == "one" else between(item)) for item in ids}

    for call, item in ((load([1, 2]), 1), (load.one(3), 3)):
        who = f"the batch loader {__name__}.{load.__qualname__}()"
        if way == "another":
            who = f"the loader of {between.key(item)!r}"
        with pytest.raises(RecursiveLoad, match=re.escape(f"{who} waits for 'item:{item}'")):
            await asyncio.wait_for(call, 30)


async def test_a_batch_loader_that_waits_for_itself_is_named(cache: Cache):
    """By what was passed to `load_many`."""

    async def fetch(keys: Sequence[str]) -> Mapping[str, Any]:
        return await cache.load_many(keys, fetch)

    with pytest.raises(RecursiveLoad, match=re.escape(f"the batch loader {fetch!r} waits for 'k'")):
        await asyncio.wait_for(cache.load_many(["k"], fetch), 30)


# Methods -------------------------------------------------------------------------------------------------------------


class Shop:
    """Has prices."""

    cache = Cache()

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[list[int]] = []

    def price(self, items: list[int]) -> dict[int, str]:
        self.asked.append(items)
        return {item: f"{self.name} {item}" for item in items if item % 10}

    @cache.cached_many(ignore=("self",))
    async def shared(self, items: list[int], currency: str = "EUR") -> dict[int, str]:
        """Is the same for every instance."""
        return self.price(items)

    @cache.cached_many(key="{self.name}:{items}", tags=["{self.name}"])
    async def templated(self, items: list[int]) -> dict[int, str]:
        return self.price(items)

    @cache.cached_many(key="everywhere:{items}")
    async def everywhere(self, items: list[int]) -> dict[int, str]:
        return self.price(items)

    @cache.cached_many()
    async def unsafe(self, items: list[int]) -> dict[int, str]:
        return self.price(items)

    @classmethod
    @cache.cached_many()
    async def of_class(cls, items: list[int]) -> dict[int, str]:
        return {item: f"{cls.__name__} {item}" for item in items}

    @staticmethod
    @cache.cached_many()
    async def of_none(items: list[int]) -> dict[int, int]:
        return {item: item + 1 for item in items}


class Stable(Shop):
    """Knows who it is."""

    def __cache_key__(self) -> str:
        return self.name


async def test_a_method_takes_its_items_after_self():
    """With ``ignore=("self",)`` all instances have the same values, and the helpers that make keys take no self."""
    one, other = Shop("one"), Shop("other")
    assert await one.shared([1, 2]) == {1: "one 1", 2: "one 2"}
    assert await other.shared(items=[2, 3]) == {2: "one 2", 3: "other 3"}
    assert await Shop.shared(other, [1]) == {1: "one 1"}
    assert (one.asked, other.asked) == ([[1, 2]], [[3]])
    assert one.shared.key(1) == Shop.shared.key(1, currency="EUR")
    assert Shop.shared.peek([1, 4]) == {1: "one 1"}
    assert await Shop.shared.invalidate([1, 4]) == 1
    await one.shared.set({1: "set 1"})
    assert await other.shared([1]) == {1: "set 1"}
    assert one.shared.__doc__ == "Is the same for every instance."
    assert list(inspect.signature(one.shared).parameters) == ["items", "currency"]


async def test_helpers_of_a_method_take_its_instance_first():
    """Those that call the function do in any case, the others where it is part of the key."""
    one = Shop("helped")
    assert await asyncio.gather(*[Shop.templated.one(one, item) for item in (1, 2)]) == ["helped 1", "helped 2"]
    assert one.asked == [[1, 2]]
    assert await one.templated.refresh(one, [1]) == {1: "helped 1"}
    assert await Shop.templated.bypass(one, [3]) == {3: "helped 3"}
    assert one.asked == [[1, 2], [1], [3]]
    assert one.templated.key(one, 1) == "helped:1"
    assert Shop.templated.peek(one, [1, 3]) == {1: "helped 1"}
    assert await Shop.templated.invalidate(one, [1]) == 1
    await Shop.templated.set(one, {1: "set 1"})
    assert await one.templated([1]) == {1: "set 1"}
    await Shop.cache.invalidate_tags("helped")
    assert await Shop.templated.one(one, 1) == "helped 1"
    with pytest.raises(KeyMissing, match=r"templated\(\) returned nothing for 10"):
        await Shop.templated.one(one, 10)
    assert await Shop.shared.refresh(one, [7]) == {7: "helped 7"}
    assert await Shop.shared.one(Shop("nobody"), 7) == "helped 7"


async def test_a_forgotten_instance_is_told():
    """No helper takes its first argument for the instance."""
    one = Shop("forgotten")
    for helper in (one.templated.one, one.templated.key, one.templated.invalidate, one.templated.refresh):
        with pytest.raises(InvalidKey):
            await helper([1])
    with pytest.raises(InvalidKey, match="take the instance first"):
        Shop.shared.one(1, 2).send(None)
    assert one.asked == []


async def test_only_one_instance_s_calls_are_folded():
    """Each has its own values, from its own method, also where the template does not name it."""
    one, other = Shop("one"), Shop("other")
    asked = [Shop.templated.one(shop, item) for shop in (one, other) for item in (21, 22)]
    assert await asyncio.gather(*asked) == ["one 21", "one 22", "other 21", "other 22"]
    assert (one.asked, other.asked) == ([[21, 22]], [[21, 22]])
    assert await Shop.everywhere.one(one, 1) == "one 1"
    assert await Shop.everywhere.one(other, 1) == "one 1"


async def test_self_has_a_stable_key_or_is_refused():
    """The error names the remedies; ``__cache_key__`` is one."""
    with pytest.raises(InvalidKey, match=r"'self'.*ignore=\('self',\).*__cache_key__.*key="):
        await Shop("a").unsafe([1])
    one = Stable("a")
    assert await one.unsafe([1]) == await Stable("a").unsafe([1]) == {1: "a 1"}
    assert await Stable("b").unsafe([1]) == {1: "b 1"}
    assert await Shop.unsafe.one(Stable("a"), 1) == "a 1"
    assert one.asked == [[1]]


async def test_class_and_static_methods():
    """Below ``@classmethod`` and ``@staticmethod``; a class is a stable argument."""
    assert await Shop.of_class([1]) == {1: "Shop 1"}
    assert await Stable("x").of_class([1]) == {1: "Stable 1"}
    assert await Shop.of_class.one(Shop, 1) == "Shop 1"
    assert await Shop.of_class.invalidate(Shop, [1]) == 1
    assert await Shop.of_none([1]) == await Shop("x").of_none([1]) == {1: 2}
    assert await Shop.of_none.one(1) == 2


# One by one ----------------------------------------------------------------------------------------------------------


async def test_single_calls_of_one_turn_are_one_call(cache: Cache, source: Source):
    """As a DataLoader folds them; the same item is asked for once, and what is there not at all."""
    get_users = users(cache, source)
    await get_users([5])
    results = await asyncio.gather(*[get_users.one(item) for item in (1, 2, 3, 2, 5)])
    assert results == ["user 1", "user 2", "user 3", "user 2", "user 5"]
    assert source.asked == [[5], [1, 2, 3]]
    assert await get_users.one(1) == "user 1"
    assert await get_users([1, 2]) == {1: "user 1", 2: "user 2"}
    assert len(source.asked) == 2


async def test_a_single_item_that_is_left_out_is_missing(cache: Cache, source: Source):
    """The error is a `KeyError`, and it is its caller's alone."""
    get_users = users(cache, source)
    good, bad = await asyncio.gather(get_users.one(1), get_users.one(10), return_exceptions=True)
    assert good == "user 1"
    assert isinstance(bad, KeyMissing)
    assert "returned nothing for 10" in str(bad)
    assert source.asked == [[1, 10]]


async def test_calls_of_other_turns_are_other_calls(cache: Cache, source: Source):
    """Without a window nobody waits for those who come later."""
    get_users = users(cache, source)
    await get_users.one(1)
    await get_users.one(2)
    assert source.asked == [[1], [2]]


async def test_a_window_collects_for_its_time(cache: Cache, source: Source, clock: FakeClock):
    """From the first item that is missing; then a new one is opened."""
    get_users = users(cache, source, batch_window=0.005)
    first = asyncio.create_task(get_users.one(1))
    for _ in range(20):
        await asyncio.sleep(0)
    second = asyncio.create_task(get_users.one(2))
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(0.004)
    await asyncio.sleep(0)
    assert source.asked == []
    clock.advance(0.001)
    assert await asyncio.gather(first, second) == ["user 1", "user 2"]
    third = asyncio.create_task(get_users.one(3))
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(0.005)
    assert await third == "user 3"
    assert source.asked == [[1, 2], [3]]


async def test_only_calls_with_the_same_other_arguments_are_folded(cache: Cache):
    """What is ignored in the key still reaches the function that it was passed to."""
    asked: list[Any] = []

    @cache.cached_many(ignore=("session",))
    async def load(ids: list[int], session: Any, lang: str = "en") -> dict[int, str]:
        asked.append((sorted(ids), session, lang))
        return {item: f"{item} {lang}" for item in ids}

    one, other = object(), object()
    results = await asyncio.gather(
        load.one(1, one), load.one(2, one), load.one(3, other), load.one(4, one, "de"), load.one(5, other, lang="en")
    )
    assert results == ["1 en", "2 en", "3 en", "4 de", "5 en"]
    assert len(asked) == 3
    assert ([1, 2], one, "en") in asked
    assert ([3, 5], other, "en") in asked
    assert ([4], one, "de") in asked


_NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "items",
    [
        (1, True, 1.0),
        (0.0, -0.0),
        (Decimal(1), Decimal("1.00")),
        (_NOON, _NOON.astimezone(timezone(timedelta(hours=2)))),
        ((1,), (True,)),
    ],
)
@pytest.mark.parametrize("batch_window", [0, 1])
async def test_items_that_are_equal_and_have_two_keys_are_not_folded_into_one_call(
    cache: Cache, clock: FakeClock, items: tuple[Any, ...], batch_window: float
):
    """One dict of results could not hold a value for each; those who ask know nothing of each other."""
    asked: list[list[str]] = []

    @cache.cached_many(batch_window=batch_window)
    async def texts(items: list[Any]) -> dict[Any, str]:
        asked.append([repr(item) for item in items])
        return {item: repr(item) for item in items}

    tasks = [asyncio.create_task(texts.one(item)) for item in (*items, "another")]
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(batch_window)
    assert await asyncio.gather(*tasks) == [*map(repr, items), "'another'"]
    assert asked == [[repr(items[0]), "'another'"], *[[repr(item)] for item in items[1:]]]
    assert [await texts([item]) for item in items] == [{item: repr(item)} for item in items]
    assert len(asked) == len(items)


async def test_an_item_that_cannot_be_in_a_result_is_its_caller_s_error_alone(cache: Cache, source: Source):
    """A list has a key, and no place in a dict."""
    get_users = users(cache, source)
    good, bad = await asyncio.gather(get_users.one(1), get_users.one([1]), return_exceptions=True)
    assert good == "user 1"
    assert isinstance(bad, TypeError)
    assert source.asked == [[1]]


async def test_nobody_left_means_no_call(cache: Cache, source: Source, clock: FakeClock):
    """A window that everybody left before it closed asks for nothing."""
    get_users = users(cache, source, batch_window=1)
    task = asyncio.create_task(get_users.one(1))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    clock.advance(1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert source.asked == []
    assert len(cache._scope.batches) == 0


WAYS = {
    "invalidate": lambda cache, get_users: get_users.invalidate([1]),
    "invalidate_tags": lambda cache, get_users: cache.invalidate_tags("users"),
    "clear": lambda cache, get_users: cache.clear(),
    "set": lambda cache, get_users: get_users.set({1: "set"}),
}
"""How others may come between two calls of ``one``."""


async def turns() -> None:
    """Let whoever can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [0, 0.2])
async def test_who_asks_before_and_after_an_invalidation_both_hear_of_the_call_they_wait_for(
    cache: Cache, source: Source, clock: FakeClock, window: float, way: str
):
    """The call begins after both, so one is enough; a value that was set meanwhile stays."""
    get_users = users(cache, source, batch_window=window, tags=["users"])
    asked: list[asyncio.Task[Any]] = []
    for step in (get_users.one(1), WAYS[way](cache, get_users), get_users.one(1), get_users.one(2)):
        asked.append(asyncio.create_task(step))
        if window:
            await turns()  # without one, all of them begin in one turn
    clock.advance(window)
    await turns()
    assert [task.done() for task in asked] == [True] * 4
    after = "set" if way == "set" else "user 1"
    assert await asked[0] in ("user 1", after)
    assert await asked[2] == after
    assert await asked[3] == "user 2"
    assert all(ids.count(1) <= 1 for ids in source.asked)
    if window:
        assert source.asked == [[1, 2]]
        assert await get_users([1]) == {1: after}
        assert source.asked == [[1, 2]]
    await turns()
    assert (len(cache._scope.batches), len(cache._scope.flights)) == (0, 0)


@pytest.mark.parametrize("way", ["invalidate", "invalidate_tags", "clear"])
async def test_who_asks_after_an_invalidation_is_not_answered_by_a_call_that_had_begun(
    cache: Cache, source: Source, way: str
):
    """He gets a call of his own, whose value is the one that is kept."""
    get_users = users(cache, source, tags=["users"])
    source.go.clear()
    before = asyncio.create_task(get_users.one(1))
    await source.began.wait()
    await WAYS[way](cache, get_users)
    after = asyncio.create_task(get_users.one(1))
    await turns()
    assert source.asked == [[1], [1]]
    source.go.set()
    assert await asyncio.gather(before, after) == ["user 1"] * 2
    assert await get_users.one(1) == "user 1"
    assert len(source.asked) == 2


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("leaves", [(0,), (1,), (0, 1), (1, 0)])
async def test_each_of_two_who_ask_for_an_item_in_one_window_may_leave(
    cache: Cache, source: Source, clock: FakeClock, leaves: tuple[int, ...], *, started: bool
):
    """Who stays has the value; the last one to leave ends the call, or keeps it from being made."""
    get_users = users(cache, source, batch_window=0.2)
    source.go.clear()
    first = asyncio.create_task(get_users.one(1))
    await turns()
    await get_users.invalidate([1])
    asked = [first, asyncio.create_task(get_users.one(1))]
    await turns()
    if started:
        clock.advance(0.2)
        await source.began.wait()
    for number in leaves:
        asked[number].cancel()
        await turns()
    clock.advance(0 if started else 0.2)
    await turns()
    stay = [asked[number] for number in (0, 1) if number not in leaves]
    assert len(cache._scope.batches) == len(stay)
    assert source.asked == ([[1]] if started or stay else [])
    source.go.set()
    assert await asyncio.gather(*stay) == ["user 1"] * len(stay)
    await turns()
    assert (len(cache._scope.batches), len(cache._scope.flights)) == (0, 0)


async def test_an_error_is_that_of_both_who_ask_for_an_item_in_one_window(
    cache: Cache, source: Source, clock: FakeClock
):
    """As of all who wait for the call."""
    get_users = users(cache, source, batch_window=0.2)
    source.error = RuntimeError("down")
    first = asyncio.create_task(get_users.one(1))
    await turns()
    await get_users.invalidate([1])
    second = asyncio.create_task(get_users.one(1))
    await turns()
    clock.advance(0.2)
    assert await asyncio.gather(first, second, return_exceptions=True) == [source.error] * 2


async def test_ten_thousand_single_calls_are_one(cache: Cache, source: Source):
    """Each of a thousand items is asked for once."""
    get_users = users(cache, source)
    results = await asyncio.gather(*[get_users.one(1 + 10 * (number % 1000)) for number in range(10_000)])
    assert set(results) == {f"user {1 + 10 * number}" for number in range(1000)}
    assert sorted(item for ids in source.asked for item in ids) == [1 + 10 * number for number in range(1000)]
    assert len(source.asked) == 1
    assert len(cache._scope.flights) == 0


@pytest.mark.parametrize("way", ["load_many", "many", "one", "inside a load"])
async def test_the_work_of_a_cold_load_grows_with_the_items_and_no_faster(build: Build, way: str):
    """Four times as many items take four times as many calls of functions, not sixteen times."""

    async def fetch(items: Sequence[Any]) -> Mapping[Any, int]:
        return dict.fromkeys(items, 1)

    async def work(size: int) -> int:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        async with build() as cache:
            function = cache.cached_many()(fetch)
            keys = [f"key {number}" for number in range(size)]
            sys.setprofile(count)
            try:
                match way:
                    case "load_many":
                        await cache.load_many(keys, fetch)
                    case "many":
                        await function(keys)
                    case "one":
                        await asyncio.gather(*[function.one(key) for key in keys])
                    case _:
                        await cache.get_or_load("outer", lambda: cache.load_many(keys, fetch))
            finally:
                sys.setprofile(None)
        return calls

    await work(10)  # imports, and what is made once
    assert await work(1000) < 4.5 * await work(250)


async def test_a_stale_value_answers_while_a_batch_loads_behind(build: Build, source: Source, clock: FakeClock):
    """The policy's windows hold for each value."""
    async with build(ttl=10, stale_while_revalidate=10) as cache:
        get_users = users(cache, source)
        await get_users([1, 2])
        clock.advance(11)
        source.go.clear()
        assert await get_users([1, 2]) == {1: "user 1", 2: "user 2"}
        assert await get_users.one(1) == "user 1"
        source.go.set()
        for _ in range(30):
            await asyncio.sleep(0)
        assert source.asked == [[1, 2], [1, 2]]


@pytest.mark.parametrize("others", [[], [21, 22]], ids=["stale ones alone", "beside missing ones"])
@pytest.mark.parametrize("lease", [False, True])
async def test_stale_values_are_loaded_behind_by_one_call(
    build: Build, source: Source, clock: FakeClock, others: list[int], *, lease: bool
):
    """As missing ones are, and together with them."""
    async with build(ttl=10, stale_while_revalidate=10) as first:
        far = first._shared.backend is not None
    async with build(ttl=10, stale_while_revalidate=10, lease=lease and far) as cache:
        get_users, stale = users(cache, source), [*range(1, 10), 11, 12]
        await get_users(stale)
        clock.advance(11)
        assert await get_users([*stale, *others]) == {item: f"user {item}" for item in [*stale, *others]}
        for _ in range(60):
            await asyncio.sleep(0)
        assert source.asked == [stale, [*stale, *others]]
        assert await get_users(stale) == {item: f"user {item}" for item in stale}
        assert len(source.asked) == 2


async def test_load_many_loads_stale_values_behind_by_one_call(build: Build, clock: FakeClock):
    """The same for keys of one's own."""
    asked: list[Sequence[str]] = []

    async def loader(keys: Sequence[str]) -> dict[str, str]:
        asked.append(keys)
        return {key: f"value of {key}" for key in keys}

    async with build(ttl=10, stale_while_revalidate=10) as cache:
        keys = [f"k{number}" for number in range(50)]
        await cache.load_many(keys, loader)
        clock.advance(11)
        await cache.load_many(keys, loader)
        for _ in range(60):
            await asyncio.sleep(0)
        assert asked == [keys, keys]


class Gone(Exception):
    """What a loader says of one item."""


@pytest.mark.parametrize("way", ["many", "one", "load_many"])
async def test_an_exception_in_the_place_of_a_value_is_raised_each_time_and_never_stored(build: Build, way: str):
    """As those who come from a DataLoader write it: an error of one item, the others are stored."""
    asked: list[list[Any]] = []

    async with build() as cache:

        @cache.cached_many(key="{ids}")
        async def values(ids: list[str]) -> dict[str, Any]:
            asked.append(list(ids))
            return {item: Gone(item) if item == "b" else item for item in ids}

        async def ask(*ids: str) -> Any:
            if way == "load_many":
                return await cache.load_many(ids, values.__wrapped__)
            if way == "many":
                return await values(ids)
            results = await asyncio.gather(*[values.one(item) for item in ids], return_exceptions=True)
            if errors := [result for result in results if isinstance(result, Exception)]:
                raise errors[0]
            return dict(zip(ids, results, strict=True))

        for _ in range(2):
            with pytest.raises(Gone, match="b"):
                await ask("a", "b", "c")
        assert await ask("a", "c") == {"a": "a", "c": "c"}
        assert asked == [["a", "b", "c"], ["b"]]
        assert cache.stats().load_failures == 2
        assert await cache.get("b", "nothing") == "nothing"


@pytest.mark.parametrize("sign", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt()], ids=repr)
async def test_what_is_no_error_but_a_sign_is_one_in_the_place_of_a_value(build: Build, sign: BaseException):
    """``gather(return_exceptions=True)`` makes them; raised as they are they would cancel whoever asked."""
    async with build() as cache:

        @cache.cached_many()
        async def values(ids: list[int]) -> dict[int, Any]:
            return {item: sign if item == 1 else item for item in ids}

        with pytest.raises(RuntimeError, match="returned"):
            await values([1, 2])
        assert await values([2]) == {2: 2}
        assert values.peek([1, 2]) in ({2: 2}, {})


async def test_an_error_of_one_item_is_answered_with_its_stale_value(build: Build, clock: FakeClock):
    """``stale_if_error`` holds for it."""
    failing = False

    async with build(ttl=10, stale_if_error=60) as cache:

        @cache.cached_many()
        async def values(ids: list[int]) -> dict[int, Any]:
            return {item: StopIteration(item) if failing and item == 1 else f"{item} {failing}" for item in ids}

        assert await values([1, 2]) == {1: "1 False", 2: "2 False"}
        failing = True
        clock.advance(11)
        assert await values([1, 2]) == {1: "1 False", 2: "2 True"}


async def test_a_single_item_is_refreshed_ahead_and_many_are_not(build: Build, source: Source, clock: FakeClock):
    """``refresh_ahead`` looks at the hits of ``one``; a call with many items loads what has expired."""
    async with build(ttl=10, refresh_ahead=0.5) as cache:
        get_users = users(cache, source)
        await get_users([1, 2])
        clock.advance(6)
        assert await get_users([1, 2]) == {1: "user 1", 2: "user 2"}
        for _ in range(30):
            await asyncio.sleep(0)
        assert source.asked == [[1, 2]]
        assert await get_users.one(1) == "user 1"
        for _ in range(30):
            await asyncio.sleep(0)
        assert source.asked == [[1, 2], [1]]


async def test_items_that_are_equal_and_have_two_keys_are_refused():
    """One dict of results cannot hold a value for each."""
    async with Cache() as cache:

        @cache.cached_many()
        async def texts(items: list[object]) -> dict[object, str]:
            return {item: repr(item) for item in items}

        with pytest.raises(InvalidKey, match="two calls"):
            await texts([1, 1.0])
        assert await texts([1]) == {1: "1"}
        assert await texts([1.0]) == {1.0: "1.0"}
        assert await texts([1, 1, 2]) == {1: "1", 2: "2"}


@pytest.mark.parametrize("key", ["lang:{lang}", "a"])
async def test_a_template_that_leaves_the_item_out_is_refused(key: str):
    """All items would have one key, and each other's values."""
    with pytest.raises(ConfigurationError, match="leaves out 'ids'"):

        @Cache().cached_many(key=key)
        async def f(ids: list[int], lang: str = "en") -> dict[int, int]:
            return {}


async def test_items_that_would_share_a_key_are_refused():
    """By a function of one's own, say."""

    @Cache().cached_many(key=lambda ids: f"k{ids % 2}")
    async def f(ids: list[int]) -> dict[int, int]:
        return {item: item for item in ids}

    assert await f([1, 2]) == {1: 1, 2: 2}
    with pytest.raises(InvalidKey, match="share the key"):
        await f([3, 5])


async def test_a_loader_of_its_own_does_not_end_with_somebody_s_batch():
    """Who joins a batch that leaves the key out loads it."""
    cache, begun, go = Cache(), asyncio.Event(), asyncio.Event()

    @cache.cached_many(key="user:{ids}")
    async def users(ids: list[int]) -> dict[int, str]:
        begun.set()
        await go.wait()
        return {}

    @cache.cached(key="user:{uid}")
    async def user(uid: int) -> str:
        return "its own"

    batch = asyncio.create_task(users([1]))
    await begun.wait()
    one = asyncio.create_task(user(1))
    await asyncio.sleep(0)
    go.set()
    assert await one == "its own"
    assert await batch == {}


async def test_results_under_other_keys_are_told_of(caplog: pytest.LogCaptureFixture):
    """Texts for numbers, as JSON makes them."""

    @Cache().cached_many()
    async def f(ids: list[int]) -> dict[int, int]:
        return {str(item): item for item in ids}  # type: ignore[misc]

    assert await f([1, 2]) == {}
    assert "nothing of that is stored" in caplog.text
