"""`Memory` is a bounded LRU, whatever is done to it in whatever order."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from acache import Cache, ConfigurationError, Memory, MemoryBackend, cached
from acache.clock import FOREVER
from acache.events import Evicted
from acache.memory import Record, Space, stored_at
from acache.testing import FakeClock, Recorder

KEYS = st.sampled_from([f"key{number}" for number in range(12)])
NAMESPACES = st.sampled_from(["", "a", "b"])


def record(value: Any, *, until: float = FOREVER) -> Record:
    """Return a record as the facade makes them."""
    return (value, until, 0.0)


class LeastRecentlyUsed(RuleBasedStateMachine):
    """One namespace, a small bound: the very entries that an OrderedDict would keep, in its order."""

    bound = 5

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(max_entries=self.bound)
        self.removed: list[str] = []
        self.memory.on_removed = lambda namespace, key, cause: self.removed.append(key) if cause == "size" else None
        self.space = self.memory.space("n")
        self.model: OrderedDict[str, int] = OrderedDict()
        self.evicted: list[str] = []
        self.shortcuts: dict[str, Any] = {}

    @rule(key=KEYS, value=st.integers(0, 99))
    def put(self, key: str, value: int) -> None:
        self.space.put(key, record(value), 0.0)
        if key in self.model:
            self.model.move_to_end(key)
        elif len(self.model) >= self.bound:
            self.evicted.append(self.model.popitem(last=False)[0])
        self.model[key] = value

    @rule(key=KEYS)
    def use(self, key: str) -> None:
        found = self.space.records.get(key)
        assert (found is not None) == (key in self.model)
        if found is not None:
            assert found[0] == self.model[key]
            self.space.touch(key)
            self.model.move_to_end(key)

    @rule(key=KEYS)
    def pop(self, key: str) -> None:
        found = self.space.pop(key)
        assert (None if found is None else found[0]) == self.model.pop(key, None)

    @rule(key=KEYS)
    def link(self, key: str) -> None:
        if key in self.model:
            self.space.link(key, self.shortcuts, f"to {key}", self.model[key])

    @rule()
    def clear(self) -> None:
        self.space.clear()
        self.model.clear()

    @invariant()
    def the_same_entries(self) -> None:
        assert {key: found[0] for key, found in self.space.records.items()} == dict(self.model)
        assert self.memory.entries == len(self.model) <= self.bound
        assert self.removed == self.evicted
        assert self.memory.evictions == len(self.evicted)

    @invariant()
    def no_shortcut_outlives_its_record(self) -> None:
        for name, value in self.shortcuts.items():
            key = name.removeprefix("to ")
            assert self.model.get(key) == value
        assert {f"to {key}" for key in self.space.shortcuts} == set(self.shortcuts)


class Bounded(RuleBasedStateMachine):
    """Several namespaces, a bound of entries and one of bytes: never more than either, and the sums are right."""

    max_entries = 6
    max_bytes = 100

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(max_entries=self.max_entries, max_bytes=self.max_bytes, sizeof=len)
        self.written: dict[tuple[str, str], bytes] = {}
        self.shortcuts: dict[Any, Any] = {}

    @rule(namespace=NAMESPACES, key=KEYS, size=st.one_of(st.integers(0, 60), st.integers(90, 120)))
    def put(self, namespace: str, key: str, size: int) -> None:
        space = self.memory.space(namespace)
        space.put(key, record(b"x" * size), 0.0)
        self.written[namespace, key] = b"x" * size
        if size + len(key) > self.max_bytes:
            assert key not in space.records, "it could never fit, and the old value must not stay either"
        else:
            assert space.records[key][0] == b"x" * size, "what was put last is there"

    @rule(namespace=NAMESPACES, key=KEYS)
    def use(self, namespace: str, key: str) -> None:
        space = self.memory.space(namespace)
        if key in space.records:
            space.touch(key)
            space.link(key, self.shortcuts, (namespace, key), space.records[key][0])

    @rule(namespace=NAMESPACES, key=KEYS)
    def pop(self, namespace: str, key: str) -> None:
        self.memory.space(namespace).pop(key)
        assert key not in self.memory.space(namespace).records

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        self.memory.space(namespace).clear()
        assert not self.memory.space(namespace).records

    @rule()
    def clear_all(self) -> None:
        self.memory.clear()
        assert (self.memory.entries, self.memory.bytes) == (0, 0)

    @invariant()
    def within_the_bounds(self) -> None:
        spaces = [self.memory.space(name) for name in ("", "a", "b")]
        held = [(key, found[0]) for space in spaces for key, found in space.records.items()]
        assert self.memory.entries == len(held) <= self.max_entries
        assert self.memory.bytes == sum(len(key) + len(value) for key, value in held) <= self.max_bytes

    @invariant()
    def only_what_was_written(self) -> None:
        for namespace in ("", "a", "b"):
            for key, found in self.memory.space(namespace).records.items():
                assert found[0] == self.written[namespace, key]

    @invariant()
    def no_shortcut_outlives_its_record(self) -> None:
        for (namespace, key), value in self.shortcuts.items():
            assert self.memory.space(namespace).records[key][0] is value


TestLeastRecentlyUsed = LeastRecentlyUsed.TestCase
TestLeastRecentlyUsed.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.sampled_from(["set", "get", "delete"]), KEYS), max_size=200), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
async def test_a_cache_evicts_as_the_model_does(steps: list[tuple[str, str]], bound: int):
    """Through the facade, reads count as use: the least recently used entry goes first."""
    model: OrderedDict[str, int] = OrderedDict()
    async with Cache(memory=bound) as cache:
        for number, (verb, key) in enumerate(steps):
            if verb == "set":
                await cache.set(key, number)
                if key not in model and len(model) >= bound:
                    model.popitem(last=False)
                model[key] = number
                model.move_to_end(key)
            elif verb == "get":
                assert await cache.get(key) == model.get(key)
                if key in model:
                    model.move_to_end(key)
            else:
                assert await cache.delete(key) == (model.pop(key, None) is not None)
        assert {key: cache.peek(key) for key in model} == model
        assert cache.stats().near_entries == len(model)


@pytest.mark.parametrize("bound", [1, 2, 127, 128, 129, 1000])
async def test_the_bound_holds_at_all_times(bound: int):
    """Ten times as many entries as fit, and never one too many, whatever the batch of an eviction is."""
    chance = random.Random(bound)
    async with Cache(memory=bound) as cache:
        for number in range(10 * bound + 10):
            await cache.set(f"k{number}", number)
            await cache.get(f"k{chance.randrange(number + 1)}")
            assert cache.stats().near_entries <= bound
        assert await cache.get(f"k{number}") == number
        assert cache.stats().near_entries >= bound * 0.98 - 1
        assert cache.stats().evictions == 10 * bound + 10 - cache.stats().near_entries


async def test_a_busy_key_survives_many_others():
    """A key that is read all the time is not evicted by keys that are written once."""
    async with Cache(memory=200) as cache:
        await cache.set("busy", "here")
        for number in range(20_000):
            await cache.set(f"k{number}", number)
            assert await cache.get("busy") == "here"


async def test_a_busy_decorated_call_survives_many_others():
    """A hit of the decorator's own quick path counts as use too."""
    calls: list[int] = []

    @cached(max_entries=200)
    async def double(number: int) -> int:
        calls.append(number)
        return 2 * number

    for number in range(1, 2000):
        await double(number)
        await double(0)
    assert calls.count(0) == 1


async def test_the_namespaces_share_one_bound():
    """Views fill one near tier together, and each gives up its share when room is needed."""
    async with Cache(memory=100, namespace="a") as one:
        other = one.view(namespace="b")
        for number in range(100):
            await one.set(f"k{number}", "one")
        for number in range(500):
            await other.set(f"k{number}", "other")
            assert one.stats().near_entries <= 100
        assert await other.get("k499") == "other"
        assert await one.get("k499") is None


async def test_a_quiet_namespace_gives_way_in_the_end():
    """A namespace that nobody uses any more does not hold its share for ever."""
    async with Cache(memory=64, namespace="quiet") as quiet:
        for number in range(64):
            await quiet.set(f"k{number}", number)
        busy = quiet.view(namespace="busy")
        for number in range(5000):
            await busy.set(f"k{number}", number)
        left = sum([await quiet.has(f"k{number}") for number in range(64)])
        assert left <= 2


async def test_the_byte_bound_holds():
    """The sum that stats show is within the bound, and an entry that could never fit is not kept near."""
    async with Cache(memory=Memory(max_bytes=10_000)) as cache:
        for number in range(1000):
            await cache.set(f"k{number}", "x" * (number * 7 % 900))
            assert 0 < cache.stats().near_bytes <= 10_000
        await cache.set("huge", "x" * 20_000)
        assert cache.stats().near_bytes <= 10_000
        assert await cache.get("huge") is None
        await cache.clear()
        assert (cache.stats().near_bytes, cache.stats().near_entries) == (0, 0)


async def test_a_huge_value_replaces_an_old_one_by_nothing():
    """An overwrite that does not fit near must not leave the value of before."""
    async with Cache(memory=Memory(max_bytes=1000)) as cache:
        await cache.set("k", "old")
        await cache.set("k", "x" * 5000)
        assert await cache.get("k") != "old"


async def test_a_huge_value_is_still_had_from_the_far_tier():
    """What does not fit near is served from far."""
    async with Cache(MemoryBackend(), memory=Memory(max_bytes=1000)) as cache:
        await cache.set("k", "x" * 5000)
        assert await cache.get("k") == "x" * 5000
        assert cache.stats().near_bytes <= 1000


async def test_a_size_function_of_the_user_is_asked():
    """``sizeof`` measures values; the key's length is added."""
    async with Cache(memory=Memory(max_bytes=100, sizeof=lambda value: value)) as cache:
        await cache.set("k", 60)
        assert cache.stats().near_bytes == 61
        await cache.set("l", 60)
        assert (await cache.get("k"), await cache.get("l")) == (None, 60)


def unsized(answer: Any) -> Callable[[Any], Any]:
    """Return a size function that has no size for ``"bad"``."""

    def sizeof(value: Any) -> Any:
        if value != "bad":
            return 10
        if isinstance(answer, Exception):
            raise answer
        return answer

    return sizeof


NO_SIZES = pytest.mark.parametrize("answer", [ArithmeticError("no"), -1, None, 1.5], ids=repr)


@NO_SIZES
async def test_a_value_without_a_size_is_an_error_where_it_would_be_stored_nowhere(answer: Any):
    """The caller gets the user's own error, or what is wrong with the answer, and the sums stay right."""

    async def load() -> str:
        return "bad"

    async with Cache(memory=Memory(max_bytes=100, sizeof=unsized(answer))) as cache:
        await cache.set("k", "good")
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: cache.set("k", "bad"),
            lambda: cache.set_many({"k": "bad"}),
            lambda: cache.get_or_load("m", load),
        )
        for call in calls:
            if isinstance(answer, Exception):
                with pytest.raises(ArithmeticError, match="no"):
                    await call()
            else:
                with pytest.raises(ConfigurationError, match=rf"sizeof returned {answer}.*int of at least 0"):
                    await call()
        assert (cache.stats().near_entries, cache.stats().near_bytes) == (1, 11)
        assert await cache.get("k") == "good"


@NO_SIZES
async def test_a_value_without_a_size_is_had_from_the_far_tier(answer: Any, caplog: pytest.LogCaptureFixture):
    """It is not kept near, nor is what was there; whoever stores or reads it is not told, and the log is now and then."""
    clock = FakeClock()

    async def load() -> str:
        return "bad"

    async def load_many(keys: Any) -> dict[str, str]:
        return dict.fromkeys(keys, "bad")

    memory = Memory(max_bytes=1000, sizeof=unsized(answer))
    async with Cache(MemoryBackend(clock=clock), memory=memory, clock=clock) as cache:
        for key in "kl":
            await cache.set(key, "good")
        await cache.set("k", "bad")
        await cache.set_many({"l": "bad", "m": "bad"})
        assert await cache.add("n", "bad")
        assert await cache.get_or_load("o", load) == "bad"
        assert await cache.load_many(["p"], load_many) == {"p": "bad"}
        await cache.refresh("q", load)
        for key in "klmnopq":
            assert await cache.get(key) == "bad"
            assert await cache.get_or_load(key, load) == "bad"
        await cache.touch("k", ttl=5)
        assert await cache.get_many(list("klmnopq")) == dict.fromkeys("klmnopq", "bad")
        assert (cache.stats().near_entries, cache.stats().near_bytes) == (0, 0)
        assert len(caplog.records) == 1
        assert "'k' in namespace '' is not kept near, and has to be fetched each time" in caplog.text
        clock.advance(10)
        await cache.get("m")
        await cache.get("m")
        assert len(caplog.records) == 2


def linked() -> tuple[Memory, Space, dict[Any, Any]]:
    """Return a near tier with one record and a shortcut to it."""
    memory = Memory(max_entries=2)
    space = memory.space("n")
    shortcuts: dict[Any, Any] = {}
    space.put("k", record("value"), 0.0)
    space.link("k", shortcuts, 1, "value")
    return memory, space, shortcuts


@pytest.mark.parametrize("way", ["set", "pop", "evict", "clear", "clear all", "expire", "relink"])
def test_a_shortcut_goes_with_its_record(way: str):
    """However a record ends, what repeats it ends in the same step."""
    memory, space, shortcuts = linked()
    if way == "set":
        space.put("k", record("new"), 0.0)
    elif way == "pop":
        space.pop("k")
    elif way == "evict":
        space.put("l", record(1), 0.0)
        space.put("m", record(2), 0.0)
        assert "k" not in space.records
    elif way == "clear":
        space.clear()
    elif way == "clear all":
        memory.clear()
    elif way == "relink":
        space.link("k", {}, 2, "value")
    else:
        space.put("k", record("value", until=10.0), 0.0)
        space.link("k", shortcuts, 1, "value")
        memory.max_entries = 1000  # type: ignore[misc]
        for number in range(2000):
            space.put(f"k{number % 500}", record(number, until=1e9), 100.0)
            space.pop(f"k{number % 500}")
        assert "k" not in space.records
    assert shortcuts == {}


def test_linking_a_shortcut_again_keeps_it():
    """Two callers of a cold key both link the one shortcut; it must not be dropped by the second."""
    _, space, shortcuts = linked()
    space.link("k", shortcuts, 1, "value")
    assert shortcuts == {1: "value"}
    space.pop("k")
    assert shortcuts == {}


async def test_what_expired_is_swept_without_being_asked_for():
    """Entries past their time leave as others come: no task, and no reader needed."""
    clock, recorder = FakeClock(), Recorder()
    async with Cache(memory=100_000, clock=clock, observers=[recorder]) as cache:
        for number in range(1000):
            await cache.set(f"old{number}", number, ttl=10)
        clock.advance(11)
        for number in range(3000):
            await cache.set(f"new{number}", number, ttl=1000)
        assert cache.stats().near_entries < 3100
        assert len(await cache.get_many([f"new{number}" for number in range(3000)])) == 3000
        swept = recorder.of(Evicted)
        assert {event.cause for event in swept} == {"expired"}
        assert {event.key for event in swept} <= {f"old{number}" for number in range(1000)}
        assert cache.stats().evictions == 0, "an entry past its time did not have to go for want of room"


async def test_what_is_still_servable_is_not_swept():
    """Within the stale windows of the policy an entry past its ttl stays."""
    clock = FakeClock()
    async with Cache(memory=100_000, clock=clock) as cache:
        loads = iter(range(100))

        async def load() -> int:
            return next(loads)

        assert await cache.get_or_load("k", load, ttl=10, stale_while_revalidate=100) == 0
        clock.advance(50)
        for number in range(3000):
            await cache.set(f"k{number}", number)
        assert await cache.get_or_load("k", load, ttl=10, stale_while_revalidate=100) == 0


async def test_evictions_are_told():
    """Each entry that has to go is an event with its namespace and key, and is counted."""
    recorder = Recorder()
    async with Cache(memory=2, namespace="n", observers=[recorder]) as cache:
        for key in "abcd":
            await cache.set(key, key)
        assert [(event.namespace, event.key, event.cause) for event in recorder.of(Evicted)] == [
            ("n", "a", "size"),
            ("n", "b", "size"),
        ]
        assert cache.stats().evictions == 2


def test_a_memory_belongs_to_one_cache():
    """Two caches would answer each other's keys; the error says what to use instead."""
    memory = Memory()
    Cache(memory=memory)
    with pytest.raises(ConfigurationError, match=r"cache\.view\(\)"):
        Cache(memory=memory)
    with pytest.raises(ConfigurationError, match=r"cache\.view\(\)"):
        Cache(MemoryBackend(), memory=memory, namespace="other")


def test_a_memory_is_not_taken_by_a_cache_that_was_refused():
    """A constructor that raises has no effect on what was passed to it."""
    memory = Memory()
    with pytest.raises(ConfigurationError):
        Cache(memory=memory, namespace="not a namespace")
    Cache(memory=memory)


async def test_values_are_shared_unless_isolated():
    """Without ``isolate`` a reader gets the object itself; with it, a copy each time, and the writer keeps its own."""
    async with Cache() as shared, Cache(memory=Memory(isolate=True)) as isolated:
        value = {"a": [1]}
        await shared.set("k", value)
        assert await shared.get("k") is value
        await isolated.set("k", value)
        value["a"].append(2)
        first = await isolated.get("k")
        assert first == {"a": [1]}
        first["a"].append(3)
        assert await isolated.get("k") == {"a": [1]}
        assert isolated.peek("k") == {"a": [1]}
        assert await isolated.get_many(["k"]) == {"k": {"a": [1]}}
        entry = await isolated.get_entry("k")
        assert entry is not None
        assert entry.value == {"a": [1]}


async def test_isolated_loads_are_copies_too():
    """What a loader returned, and what the next caller gets, are two objects."""
    made: list[list[int]] = []

    async def load() -> list[int]:
        made.append([1])
        return made[-1]

    async with Cache(memory=Memory(isolate=True)) as cache:
        first = await cache.get_or_load("k", load)
        first.append(2)
        assert await cache.get_or_load("k", load) == [1]
        function = cache.cached(key="f")(load)
        await function()
        made[-1].append(3)
        assert await function() == [1]
        (await function()).append(4)
        assert await function() == [1]


def test_a_record_knows_when_it_was_stored():
    """Counted back from its end, or kept where it has none."""
    assert stored_at((1, 160.0, 60.0)) == 100.0
    assert stored_at((1, FOREVER, 100.0)) == 100.0


def test_a_near_tier_describes_itself():
    """The repr shows how full it is."""
    memory = Memory(max_entries=7)
    memory.space("n").put("k", record(1), 0.0)
    assert repr(memory) == "<Memory 1 of 7 entries>"
