"""Whatever the policy: the bound holds, a hit is the value put last, and the policy keeps what it promises to keep."""

from __future__ import annotations

import random
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from acache import Cache, ConfigurationError, Memory, MemoryBackend
from acache.clock import FOREVER
from acache.events import Evicted, Removed
from acache.memory import Record, Space
from acache.memory.eviction import PolicyName
from acache.memory.s3fifo import S3Fifo
from acache.memory.sketch import Sketch
from acache.memory.wtinylfu import WTinyLfu
from acache.testing import FakeClock, Recorder

POLICIES = get_args(PolicyName)
KEYS = st.sampled_from([f"key{number}" for number in range(16)])
NAMESPACES = st.sampled_from(["", "a", "b"])
NAMES = ("", "a", "b")


def record(value: Any, *, until: float = FOREVER) -> Record:
    """Return a record as the facade makes them."""
    return (value, until, 0.0)


class AnyPolicy(RuleBasedStateMachine):
    """A near tier of three namespaces, few entries and few bytes, against dicts of what was put and what was told."""

    eviction: PolicyName
    max_entries = 6
    max_bytes: int | None = None

    def __init__(self) -> None:
        super().__init__()
        sizeof = None if self.max_bytes is None else len
        self.memory = Memory(
            max_entries=self.max_entries, max_bytes=self.max_bytes, sizeof=sizeof, eviction=self.eviction
        )
        self.memory.on_removed = self.removed
        self.now = 0.0
        self.model: dict[tuple[str, str], tuple[bytes, float]] = {}
        """What must be there, unless it was said to have gone."""
        self.told: list[tuple[str, str, str]] = []

    def removed(self, namespace: str, key: str, cause: str) -> None:
        self.told.append((namespace, key, cause))
        if cause != "replaced":
            value, until = self.model.pop((namespace, key))
            assert cause != "expired" or until <= self.now, "it was not past its time"
            assert value is not None

    def causes(self) -> list[str]:
        """Return what was told since the last time, without what had to go for want of room or time."""
        told, self.told = self.told, []
        return [cause for _, _, cause in told if cause not in ("size", "expired")]

    @rule(namespace=NAMESPACES, key=KEYS, size=st.integers(0, 50), ttl=st.sampled_from([5.0, 50.0, FOREVER]))
    def put(self, namespace: str, key: str, size: int, ttl: float) -> None:
        there = (namespace, key) in self.model
        space, value = self.memory.space(namespace), b"x" * size
        space.put(key, record(value, until=self.now + ttl), self.now)
        went = (namespace, key, "size") in self.told or (namespace, key, "expired") in self.told
        assert self.causes() == (["replaced"] if there and not went else [])
        if self.max_bytes is not None and size + len(key) > self.max_bytes:
            assert key not in space.records
            self.model.pop((namespace, key), None)
        else:
            self.model[namespace, key] = (value, self.now + ttl)
            assert space.records[key][0] == value, "what was put last is there"

    @rule(namespace=NAMESPACES, key=KEYS, times=st.integers(1, 5))
    def use(self, namespace: str, key: str, times: int) -> None:
        space = self.memory.space(namespace)
        for _ in range(times):
            if key in space.records:
                space.touch(key)

    @rule(namespace=NAMESPACES, key=KEYS)
    def pop(self, namespace: str, key: str) -> None:
        there = (namespace, key) in self.model
        found = self.memory.space(namespace).pop(key)
        assert (found is not None) is there
        assert self.causes() == ["invalidated"] * there

    @rule(namespace=NAMESPACES)
    def clear(self, namespace: str) -> None:
        held = sum(name == namespace for name, _ in self.model)
        self.memory.space(namespace).clear()
        assert self.causes() == ["invalidated"] * held
        assert not self.memory.space(namespace).records

    @rule(seconds=st.integers(1, 20))
    def wait_and_sweep(self, seconds: int) -> None:
        self.now += seconds
        while self.memory.sweep(self.now)[0]:  # the rest of a round
            pass
        while self.memory.sweep(self.now)[0]:  # and a whole one
            pass
        assert not self.causes()
        assert all(until > self.now for _, until in self.model.values()), "all that was past its time has gone"

    @invariant()
    def the_model_s_entries(self) -> None:
        held = {(name, key): found for name in NAMES for key, found in self.memory.space(name).records.items()}
        assert {place: (found[0], found[1]) for place, found in held.items()} == self.model

    @invariant()
    def within_the_bounds(self) -> None:
        assert self.memory.entries == len(self.model) <= self.max_entries
        if self.max_bytes is not None:
            held = sum(len(key) + len(value) for (_, key), (value, _) in self.model.items())
            assert self.memory.bytes == held <= self.max_bytes


for policy in POLICIES:
    for bytes_bound in (None, 90):
        name = f"Test{policy}{'' if bytes_bound is None else 'Bytes'}"
        machine = type(name, (AnyPolicy,), {"eviction": policy, "max_bytes": bytes_bound})
        globals()[name] = machine.TestCase
        globals()[name].settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


def used(eviction: PolicyName, size: int) -> Space:
    """Return a full namespace in which ten keys were used often."""
    space = Memory(max_entries=size, eviction=eviction).space("")
    for number in range(size):
        space.insert(f"key{number}", record(number), 0.0)
    for _ in range(20):
        for number in range(0, size, size // 10):
            space.touch(f"key{number}")
    return space


def left_of(space: Space, size: int) -> int:
    return sum(f"key{number}" in space.records for number in range(0, size, size // 10))


@pytest.mark.parametrize("eviction", ["s3fifo", "wtinylfu"])
def test_a_scan_does_not_push_out_what_is_used(eviction: PolicyName):
    """Five times as many keys as fit, each asked for once: the popular keys are still there. With LRU none would be."""
    space, lru = used(eviction, 1000), used("lru", 1000)
    for number in range(5000):
        for each in (space, lru):
            each.insert(f"scan{number}", record(number), 0.0)
    assert left_of(space, 1000) == 10
    assert left_of(lru, 1000) == 0


@pytest.mark.parametrize("eviction", POLICIES)
def test_what_was_popular_does_not_stay_for_ever(eviction: PolicyName):
    """When other keys are in demand, the ones of before make room in the end."""
    space = used(eviction, 100)
    rng = random.Random(1)
    for _ in range(50_000):
        key = f"new{int(rng.expovariate(1 / 60))}"
        if key in space.records:
            space.touch(key)
        else:
            space.insert(key, record(0), 0.0)
    assert left_of(space, 100) <= 2


def test_frequency_wins_over_recency_with_wtinylfu():
    """What was asked for three times in the past is kept, and what was asked for once a moment ago is not let in."""
    policy = WTinyLfu(seed=1)
    for number in range(100):
        policy.added(f"old{number}")
    policy.used([f"old{number}" for number in range(100)] * 3)
    policy.take(1)  # the window's share is small: from here on, the old ones are in the main part
    victims: list[str] = []
    for number in range(200):
        policy.added(f"new{number}")
        victims += policy.take(1)
    assert sum(victim.startswith("old") for victim in victims) <= 2  # the one in the window, and luck


def test_a_key_that_comes_back_soon_stays_with_s3fifo():
    """A key that left the small queue and is asked for again is no passer-by: it enters the main queue."""
    space = Memory(max_entries=100, eviction="s3fifo").space("")
    for number in range(150):
        space.insert(f"key{number}", record(number), 0.0)
    gone = next(f"key{number}" for number in range(49, -1, -1) if f"key{number}" not in space.records)
    space.insert(gone, record(0), 0.0)
    for number in range(80):
        space.insert(f"passing{number}", record(number), 0.0)
    assert gone in space.records


def test_the_window_grows_where_recency_is_all():
    """Keys that are asked for again at once or never: the adaptive window finds out, and comes near LRU."""
    hits = dict.fromkeys(POLICIES, 0)
    for policy in POLICIES:
        random.seed(1)
        space, rng = Memory(max_entries=100, eviction=policy).space(""), random.Random(2)
        for newest in range(60_000):
            space.insert(f"{newest}", record(0), 0.0)
            key = f"{newest - int(rng.expovariate(1 / 30))}"
            if key in space.records:
                hits[policy] += 1
                space.touch(key)
    assert hits["wtinylfu"] > 0.9 * hits["lru"]
    assert hits["wtinylfu"] > hits["s3fifo"]


@pytest.mark.parametrize(("eviction", "least"), [("s3fifo", 0.3), ("wtinylfu", 0.7)])
def test_most_of_a_loop_over_more_than_fits_is_kept(eviction: PolicyName, least: float):
    """Hits come in runs longer than is taken note of at once; none is forgotten. LRU would have no hit at all."""
    space, hits = Memory(max_entries=6000, eviction=eviction).space(""), 0
    for number in range(70_000):
        if (key := f"key{number % 7000}") in space.records:
            hits += 1
            space.touch(key)
        else:
            space.insert(key, record(0), 0.0)
    assert hits / 70_000 > least


def test_the_window_stays_small_where_frequency_is_all():
    """Popular keys that come into the window are asked for there again and again: that is no reason for it to grow."""
    policy, rng, held = WTinyLfu(seed=1), random.Random(2), set[int]()
    for _ in range(60_000):
        key = int(rng.paretovariate(1)) + 100
        if key in held:
            policy.used([key])  # type: ignore[list-item] - ints hash alike in every process
            continue
        if len(held) >= 200:
            held.difference_update(policy.take(1))  # type: ignore[arg-type]
        policy.added(key)  # type: ignore[arg-type]
        held.add(key)
    assert len(policy._window) < 20


def test_the_sketch_halves_all_rows_within_a_short_time():
    """What is held against each other must have been halved as often, whichever row counts."""
    sketch = Sketch(random.Random(1).getrandbits(128))
    sketch.fit(1000)
    for number in range(9_900):
        sketch.add("often" if number < 20 else f"key{number}")
    before = sketch.estimate("often")
    for number in range(200):
        sketch.add(f"new{number}")
    assert before == 15
    assert all(max(row) <= 9 for row in sketch._rows)


def test_the_same_seed_makes_the_same_choices():
    """A run can be repeated: what W-TinyLFU draws comes from its seed."""

    def victims(seed: int) -> list[Any]:
        policy, rng, gone = WTinyLfu(seed=seed), random.Random(3), []
        for step in range(3000):
            policy.added(step + 10_000)  # type: ignore[arg-type] - ints hash alike in every process
            policy.used([rng.randrange(10_000, step + 10_001) for _ in range(3)])  # type: ignore[misc]
            if len(policy) > 100:
                gone += policy.take(1)
        return gone

    assert victims(1) == victims(1)
    assert victims(1) != victims(2), "it depends on the seed, so nobody outside can foresee it"


@pytest.mark.parametrize("policy", [S3Fifo, WTinyLfu])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_a_policy_gives_up_what_was_asked_or_all_it_has(policy: Any, count: int):
    """Never a key twice, never one that was removed, and nothing once it is empty."""
    order = policy()
    for number in range(20):
        order.added(f"key{number}")
    order.used([f"key{number}" for number in range(0, 20, 2)] * 2 + ["never there"])
    order.removed("key3")
    order.removed("never there")
    victims = order.take(count)
    assert len(victims) == len(set(victims)) == min(count, 19)
    assert set(victims) <= {f"key{number}" for number in range(20)} - {"key3"}
    rest = order.take(100)
    assert len(rest) == 19 - len(victims)
    assert not set(rest) & set(victims)
    order.added("key1")
    order.clear()
    assert list(order.take(1)) == []


def test_the_sketch_never_counts_too_little_and_seldom_too_much():
    """Until it ages, an estimate is the true count or, where keys share their counters, more."""
    sketch = Sketch(random.Random(1).getrandbits(128))
    sketch.fit(10_000)
    rng = random.Random(2)
    counts = [rng.choice([0, 0, 1, 2, 5, 20]) for _ in range(4000)]
    for key, count in enumerate(counts):
        for _ in range(count):
            sketch.add(key)
    found = [sketch.estimate(key) for key in range(4000)]
    assert all(each >= min(count, 15) for each, count in zip(found, counts, strict=True))
    assert sum(each == min(count, 15) for each, count in zip(found, counts, strict=True)) > 3600


def test_the_sketch_forgets_what_is_long_ago():
    """Counts fade as others are counted, and growing does not lose them."""
    sketch = Sketch(12345)
    for _ in range(10):
        sketch.add("popular")
    sketch.fit(1000)
    assert sketch.estimate("popular") == 10
    for number in range(40_000):
        sketch.add(f"key{number}")
    assert sketch.estimate("popular") < 10


def test_which_keys_share_counters_depends_on_the_seed():
    """Nobody who does not know it can choose keys that seem popular."""

    def shared(seed: int) -> set[tuple[int, int]]:
        sketches = [Sketch(random.Random(seed).getrandbits(128)) for _ in range(60)]  # one seed, a key for each
        for number, sketch in enumerate(sketches):
            sketch.add(number)
        rows = [tuple(row.index(1) for row in sketch._rows) for sketch in sketches]
        return {(one, other) for one in range(60) for other in range(one) if set(rows[one]) & set(rows[other])}

    assert shared(1) == shared(1)
    assert shared(1) != shared(2)


def test_an_unknown_policy_is_refused():
    """The error says which there are."""
    with pytest.raises(ConfigurationError, match="'lru', 's3fifo', 'wtinylfu'"):
        Memory(eviction="fifo")  # type: ignore[arg-type] - that is the point


@pytest.mark.parametrize("eviction", POLICIES)
async def test_a_cache_works_with_every_policy(eviction: PolicyName):
    """Through the facade: the bound, last value put, deletes, and the decorator's shortcuts."""
    async with Cache(memory=Memory(max_entries=20, eviction=eviction)) as cache:
        rng, model = random.Random(4), dict[str, int]()
        calls: list[int] = []

        @cache.cached()
        async def double(number: int) -> int:
            calls.append(number)
            return 2 * number

        for step in range(3000):
            key = f"key{rng.randrange(60)}"
            match rng.randrange(4):
                case 0:
                    await cache.set(key, step)
                    model[key] = step
                case 1:
                    assert await cache.get(key) in (None, model.get(key))
                case 2:
                    await cache.delete(key)
                    model.pop(key, None)
                    assert await cache.get(key) is None
                case _:
                    assert await double(step % 30) == 2 * (step % 30)
            assert cache.stats().near_entries <= 20
        assert len(calls) < 750, "some of it was a hit"


@pytest.mark.parametrize("eviction", POLICIES)
async def test_every_removal_is_told_once_with_its_cause(eviction: PolicyName):
    """As many entries as came in have gone or are there; `Evicted` is what the near tier did of itself."""
    clock, recorder = FakeClock(), Recorder()
    async with Cache(memory=Memory(max_entries=50, eviction=eviction), clock=clock, observers=[recorder]) as cache:
        for number in range(100):
            await cache.set(f"key{number}", number, ttl=10)
        await cache.set("key99", "other")
        await cache.delete("key99")
        clock.advance(20)
        for number in range(200):
            await cache.set(f"new{number}", number, ttl=1000)
        await cache.clear()
        causes = [event.cause for event in recorder.of(Removed)]
        assert causes.count("replaced") == 1
        assert len(causes) - 1 == 300, "each of the entries that were stored"
        assert {event.cause for event in recorder.of(Evicted)} <= {"size", "expired"}
        assert causes.count("size") == cache.stats().evictions
        gone = [event for event in recorder.of(Removed) if event.key == "key99"]
        assert [event.cause for event in gone] == ["replaced", "invalidated"]
    assert len(recorder.of(Removed)) == 301, "closing a cache is no removal of each entry"


async def test_over_a_far_tier_a_write_replaces_and_a_delete_invalidates():
    """The near copy goes before the far tier is asked; why it went is what the caller wanted."""
    recorder = Recorder()
    async with Cache(MemoryBackend(), observers=[recorder]) as cache:
        for change in (cache.set("k", 2), cache.delete("k"), cache.set("k", 3), cache.touch("k", ttl=5)):
            await cache.set("k", 1)
            await change
        causes = [event.cause for event in recorder.of(Removed)]
    assert causes == ["replaced", "replaced", "invalidated", "replaced", "replaced", "invalidated"]
