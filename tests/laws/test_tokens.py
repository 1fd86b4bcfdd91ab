"""Tags and namespaces by tokens: what it costs to read and to invalidate them, and what a lost or late token does.

Laws 2 and 3 for groups; that no load undoes an invalidation is in test_no_lost_invalidation.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acache import Cache, Memory, MemoryBackend, Unsupported
from acache.backends.memcached import MemcachedBackend
from acache.backends.redis import RedisBackend
from acache.coherence import EPOCH
from acache.coherence.channel import HEARTBEAT
from acache.testing import FaultyBackend

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

MISS: Final = "(a miss)"
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture
async def told(make_topology: Callable[[str], Topology]) -> AsyncIterator[Topology]:
    """Caches with a near tier over a Redis that tells of changes."""
    async with make_topology("near+redis") as topology:
        yield topology


@pytest.fixture(params=["backend", "redis", "near+backend"])
async def untold(request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]) -> AsyncIterator[Topology]:
    """Caches that nobody tells anything."""
    async with make_topology(request.param) as topology:
        yield topology


async def check(cache: Cache) -> None:
    """Let everything be told that happened until now."""
    channel = cache._shared.channel
    assert channel is not None
    await channel._tracking.check(tuple(channel._members))


async def calls_of(topology: Topology, operation: Awaitable[Any]) -> list[str]:
    """Return what an operation asked of the far tier."""
    topology.tracer.restart()
    await operation
    return sorted(topology.tracer.calls)


def loads(value: Any = "loaded") -> Callable[[], Awaitable[Any]]:
    async def loader() -> Any:
        return value

    return loader


def raw(topology: Topology) -> Any:
    """The far tier as a program sees it that is none of ours."""
    backend = topology.backend()
    kind: Any = RedisBackend if topology.redis else MemoryBackend

    class Raw:
        async def delete(self, name: str) -> None:
            await kind.delete(backend, f"{topology.namespace}::{name}")
            if topology.redis:
                await backend.aclose()  # type: ignore[union-attr]

    return Raw()


# What reading costs ---------------------------------------------------------------------------------------------------


async def test_an_entry_and_its_tags_cold_are_one_round_trip(told: Topology):
    """The entry, the tokens of its tags and that of the namespace are all asked for before the first answer is in."""
    await told.cache().set("k", "v", tags=["a", "b"])
    cold = told.cache()
    await cold.get("something else")
    told.tracer.restart()
    stops = [told.tracer.stop(call, "before") for call in range(2)]
    reading = asyncio.create_task(cold.get_or_load("k", loads(), tags=["a", "b"]))
    for stop in stops:
        await stop.reached.wait()
    for stop in stops:
        stop.release()
    assert await reading == "v"
    assert sorted(told.tracer.calls) == ["get_many", "get_versioned"]


async def test_tags_that_are_known_cost_a_read_nothing(told: Topology):
    """However many entries: the token that another entry's tag was read with is the one of this entry's, too."""
    writer, reader = told.cache(), told.cache()
    await writer.set_many({f"k{number}": number for number in range(5)}, tags=["t"])
    assert await reader.get("k0") == 0
    assert await calls_of(told, reader.get("k1")) == ["get"]
    assert await calls_of(told, reader.get_or_load("k2", loads(), tags=["t"])) == ["get_versioned"]
    assert await calls_of(told, reader.get_many(["k3", "k4"])) == ["get_many"]
    assert await calls_of(told, reader.get_or_load("new", loads(), tags=["t"])) == ["get_versioned", "set_if"]
    assert await calls_of(told, reader.set("newer", 1, tags=["t"])) == ["set"]


async def test_readers_of_one_turn_ask_for_tokens_together(make_topology: Callable[[str], Topology]):
    """Where nobody tells, each read asks; a hundred at a time ask once."""
    async with make_topology("backend") as topology:
        cache = topology.cache()
        await cache.set_many({f"k{number}": number for number in range(100)}, tags=["t"])

        async def all_of_them() -> None:
            assert await asyncio.gather(*[cache.get(f"k{number}") for number in range(100)]) == list(range(100))

        # 100 entries, the namespace for all of them, and the tag, which is learnt from the entries, for each.
        assert await calls_of(topology, all_of_them()) == ["get"] * (100 + 1 + 100)
        loading = asyncio.gather(*[cache.get_or_load(f"k{number}", loads(), tags=["t"]) for number in range(100)])
        assert (await calls_of(topology, loading)).count("get_many") == 1


async def test_tokens_are_asked_for_again_once_a_minute(told: Topology, until: Until):
    """A server that evicts what nobody reads must not take the mirror's silence for that."""
    cache, keys = told.cache(), (f"k{number}" for number in itertools.count())
    await cache.set("holds the tag", 1, ttl=None, tags=["t"])
    asked = 0
    for _ in range(65):
        told.clock.advance(HEARTBEAT)
        trust = cache._scope.trust
        await until(lambda trust=trust: trust.until > told.clock.monotonic() + HEARTBEAT)  # type: ignore[misc]
        calls = await calls_of(told, cache.get_or_load(next(keys), loads(), tags=["t"]))
        asked += calls.count("get_many")
    assert asked == 1


# What is told ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("invalidate", ["invalidate_tags", "clear"])
async def test_what_another_process_invalidates_is_mirrored_no_more(told: Topology, until: Until, invalidate: str):
    """Its message ends the token; what is read and loaded then goes by the new one."""
    p, q = told.cache(), told.cache()
    await p.set("k", "old", tags=["t"])
    assert await q.get("k") == "old"
    await (p.invalidate_tags("t") if invalidate == "invalidate_tags" else p.clear())
    await until(lambda: q.peek("k", MISS) == MISS)
    await check(q)
    assert await q.get("k", MISS) == MISS
    assert await q.get_or_load("k", loads("new"), tags=["t"]) == "new"
    assert await p.get("k") == "new"


@pytest.mark.parametrize("kind", ["near+backend", "near+redis"])
@pytest.mark.parametrize("invalidate", ["invalidate_tags", "clear"])
async def test_what_is_read_while_its_tag_is_invalidated_here_is_not_kept(
    kind: str, invalidate: str, make_topology: Callable[[str], Topology]
):
    """1: an entry and its tokens are read.  2: this process invalidates.  3: both answers come in, and agree."""
    async with make_topology(kind) as topology:
        await topology.cache().set("k", "old", tags=["t"])
        p = topology.cache()
        await p.get("something else")
        p._scope.tags.spoil_all()  # so that it asks
        topology.tracer.restart()
        stops = [topology.tracer.stop(call, "after") for call in range(2)]
        reading = asyncio.create_task(p.get_or_load("k", loads("new"), tags=["t"]))
        for stop in stops:
            await stop.reached.wait()
        await (p.invalidate_tags("t") if invalidate == "invalidate_tags" else p.clear())
        for stop in stops:
            stop.release()
        assert await reading in ("old", "new")
        assert p.peek("k", MISS) != "old"
        assert await p.get_or_load("k", loads("new"), tags=["t"]) == "new"
        assert await topology.witness().get("k") == "new"


@pytest.mark.parametrize("invalidate", ["invalidate_tags", "clear"])
async def test_an_answer_that_crosses_its_invalidation_is_not_mirrored(told: Topology, until: Until, invalidate: str):
    """1: p asks for the tokens.  2: q replaces them, and p is told.  3: p's answer, of before, comes in."""
    p, q = told.cache(), told.cache()
    await q.set("k", "old", tags=["t"])
    await p.get("something else")
    p._scope.tags.spoil_all()  # so that it asks
    told.tracer.restart()
    stop = told.tracer.stop(1, "after")
    loading = asyncio.create_task(p.get_or_load("another", loads("value"), tags=["t"]))
    await stop.reached.wait()
    assert told.tracer.calls[1] == "get_many"
    heard = p.stats().invalidations_received
    await (q.invalidate_tags("t") if invalidate == "invalidate_tags" else q.clear())
    await until(lambda: p.stats().invalidations_received > heard)
    await check(p)
    stop.release()
    assert await loading == "value"
    assert await q.set("k", "new", tags=["t"]) is None
    await check(p)
    assert await p.get("k") == "new"
    # The loader ran after the invalidation, so its value may be stored, under the new tokens.
    assert await q.get("another") in ("value", None)
    assert await p.get_or_load("one more", loads(1), tags=["t"]) == 1
    assert await q.get("one more") == 1


async def test_an_answer_holds_what_was_asked_for_and_no_more(far_topology: Topology):
    """Those who ask in one turn share a question; each of thousands of loads keeps its own part of the answer."""
    cache, tracer = far_topology.cache(), far_topology.tracer
    await cache.set("k", 1, tags=["a", "b"])
    cache._scope.tags.spoil_all()
    tokens = cache._remote.tokens  # type: ignore[union-attr]
    tracer.restart()
    of_a, of_b = await asyncio.gather(tokens.ask(["a"]), tokens.ask(["b", "none"]))
    assert tracer.calls == ["get_many"]
    assert (set(of_a), set(of_b)) == ({"a"}, {"b"})


async def test_a_loss_ends_what_is_mirrored(told: Topology):
    """From then on changes may go untold."""
    cache = told.cache()
    await cache.set("k", 1, tags=["t"])
    tokens = cache._remote.tokens  # type: ignore[union-attr]
    assert set(tokens.known(["t", EPOCH])) == {"t", EPOCH}
    cache._shared.channel.lost()  # type: ignore[union-attr]
    assert tokens.known(["t", EPOCH]) == {}


async def test_what_was_asked_before_a_loss_is_not_mirrored_after_it(told: Topology, until: Until):
    """1: p asks.  2: the connection is lost, and armed again.  3: the answer of before, and what was not told."""
    p, q = told.cache(), told.cache()
    await q.set("k", "old", tags=["t"])
    await p.get("something else")
    p._scope.tags.spoil_all()
    told.tracer.restart()
    stop = told.tracer.stop(1, "after")
    loading = asyncio.create_task(p.get_or_load("another", loads("value"), tags=["t"]))
    await stop.reached.wait()
    assert told.tracer.calls[1] == "get_many"
    p._shared.channel.lost()  # type: ignore[union-attr]
    await until(lambda: p._shared.channel.state == "armed")  # type: ignore[union-attr]
    stop.release()
    assert await loading == "value"
    assert p._remote.tokens.known(["t"]) == {}  # type: ignore[union-attr]


# What is lost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lose", ["invalidate", "lose the token"])
async def test_what_a_tag_has_invalidated_is_nothing_to_every_verb(far_topology: Topology, lose: str):
    """A key that reads as missing can be added, and counts from nothing."""
    p = far_topology.cache()
    await p.set_many({"added": 5, "counted": 5, "touched": 5, "deleted": 5}, tags=["t"])
    if lose == "invalidate":
        await far_topology.cache().invalidate_tags("t")
    else:
        await raw(far_topology).delete("@tag:t")
    for cache in (p, far_topology.cache()) if p._shared.channel is not None else (far_topology.cache(near=False),):
        async with asyncio.timeout(20):
            while await cache.get("added", MISS) != MISS:  # until it is told
                await asyncio.sleep(0)
        assert not await cache.touch("touched", ttl=None)
        assert await cache.delete_many(["deleted"]) in (0, 1)
    assert await p.add("added", "new")
    assert await p.incr("counted") == 1
    assert await far_topology.witness().get_many(["added", "counted", "touched", "deleted"]) == {
        "added": "new",
        "counted": 1,
    }


@pytest.mark.parametrize("meanwhile", ["nothing", "set here", "set elsewhere"])
async def test_counters_are_cleared_although_the_namespace_lost_its_token(far_topology: Topology, meanwhile: str):
    """With it went the word that there are any: that is not taken for a no."""
    p, q = far_topology.cache(near=False), far_topology.cache(near=False)
    assert await p.incr("c", 2) == 2
    await q.get("c")
    await raw(far_topology).delete("@tag:")
    if meanwhile != "nothing":
        await (p if meanwhile == "set here" else q).set("k", 1)
    await q.clear()
    assert await far_topology.witness().get("c", MISS) == MISS


async def test_an_invalidation_of_tags_elsewhere_during_a_load_keeps_its_value_from_the_near_tier(
    untold: Topology,
):
    """Where nobody tells, the fill asks."""
    p, q = untold.cache(), untold.cache()
    begun, go = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await go.wait()
        return "old"

    loading = asyncio.create_task(p.get_or_load("k", load, tags=["t"]))
    await begun.wait()
    await q.invalidate_tags("t")
    go.set()
    assert await loading == "old"
    assert p.peek("k", MISS) == MISS
    assert p.stats().fills_refused == 1
    assert await p.get_or_load("k", loads("new"), tags=["t"]) == "new"


@pytest.mark.parametrize("lost", ["@tag:t", "@tag:"])
async def test_a_lost_token_invalidates_and_never_resurrects(far_topology: Topology, until: Until, lost: str):
    """Eviction, say, of a tag's token or of the namespace's: a new one has another value."""
    cache = far_topology.cache()
    await cache.set("k", "v", tags=["t"])
    assert await cache.get("k") == "v"
    await raw(far_topology).delete(lost)
    if cache._shared.channel is not None:
        await until(lambda: cache.peek("k", MISS) == MISS)
    reader = far_topology.cache()
    assert await reader.get("k", MISS) == MISS
    assert await reader.get_or_load("other", loads(), tags=["t"]) == "loaded"  # makes the token anew
    assert await reader.get("k", MISS) == MISS
    assert await far_topology.witness().get("k", MISS) == MISS
    assert await reader.get_or_load("k", loads("new"), tags=["t"]) == "new"
    assert await far_topology.witness().get("k", MISS) == "new"


# clear() --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [0, 1, 1000])
async def test_clear_costs_the_same_however_many_entries(far_topology: Topology, entries: int):
    """One token: no key is looked for, and none removed."""
    cache = far_topology.cache()
    await cache.set("first", 1)
    if entries:
        await cache.set_many({f"k{number}": number for number in range(entries)}, tags=["t"])
    assert await calls_of(far_topology, cache.clear()) == ["get_versioned", "set_if"]
    assert await cache.get_many(["first", *[f"k{number}" for number in range(entries)]]) == {}
    assert await far_topology.witness().get("first", MISS) == MISS


async def test_clear_takes_counters_along(far_topology: Topology):
    """Theirs are plain digits, without a token: where there may be any, `clear` looks for them."""
    p, q = far_topology.cache(), far_topology.cache()
    assert await p.incr("c", 5) == 5
    assert await calls_of(far_topology, q.clear()) == ["clear", "get_versioned", "set", "set_if"]
    for cache in (p, q, far_topology.witness()):
        async with asyncio.timeout(20):
            while await cache.get("c", MISS) != MISS:  # until p is told
                await asyncio.sleep(0)
    assert await p.incr("c") == 1
    await p.clear()
    assert await far_topology.witness().get("c", MISS) == MISS


async def test_an_int_that_becomes_a_counter_is_cleared_too(far_topology: Topology):
    """`incr` over a value that `set` stored."""
    p, q = far_topology.cache(), far_topology.cache()
    await p.set("n", 41)
    assert await p.incr("n") == 42
    await q.clear()
    assert await far_topology.witness().get("n", MISS) == MISS
    assert await q.incr("n") == 1


async def test_counters_cost_one_look_at_the_namespace(told: Topology):
    """That there are any is noted once; after that an increment is one command."""
    cache = told.cache()
    await cache.get("something else")
    await cache.incr("c")
    await check(cache)
    await cache.incr("c")  # the echo of the note may have taken what was mirrored
    assert await calls_of(told, cache.incr("c")) == ["incr"]


@pytest.mark.parametrize("write", ["set", "set_many", "add"])
async def test_who_does_not_know_of_a_clear_still_writes_under_the_new_epoch(untold: Topology, write: str):
    """What is stored after another process's `clear` has returned is there for everybody."""
    p, q = untold.cache(), untold.cache()
    writes: dict[str, Callable[[], Awaitable[Any]]] = {
        "set": lambda: p.set("k", 1),
        "set_many": lambda: p.set_many({"k": 1, "l": 2}),
        "add": lambda: p.add("k", 1),
    }
    await writes[write]()
    await q.clear()
    assert await writes[write]() is not False
    assert await untold.witness().get("k", MISS) == 1


async def test_of_two_that_add_after_a_clear_one_wins(far_topology: Topology):
    """Also where one of them has not yet heard of the `clear`."""
    for _ in range(20):
        p, q = far_topology.cache(), far_topology.cache()
        await p.set("k", 0)
        await q.get("k")
        await p.clear()
        assert sum(await asyncio.gather(q.add("k", 1), p.add("k", 2))) == 1


async def test_a_value_from_before_is_seen_as_nothing_by_every_verb(far_topology: Topology):
    """And is written over like nothing."""
    p = far_topology.cache()
    await p.set_many({name: name for name in "abcdefgh"}, tags=["t"])
    await p.clear()
    q = far_topology.cache()
    for cache in (p, q):
        assert await cache.get("a", MISS) == MISS
        assert await cache.get_entry("a") is None
        assert not await cache.has("a")
        assert await cache.get_many(["a", "b"]) == {}
        assert not await cache.touch("a", ttl=5)
        assert cache.peek("a", MISS) == MISS
    assert not await p.delete("b")
    assert await q.delete_many(["b", "c"]) == 0
    assert await p.add("d", "new")
    assert await p.incr("e") == 1
    assert await q.get_or_load("f", loads()) == "loaded"
    assert await far_topology.witness().get_many(list("abcdefgh")) == {"d": "new", "e": 1, "f": "loaded"}


async def test_what_is_left_of_before_costs_a_read_of_many_one_more_look(far_topology: Topology):
    """Not one for each key."""
    p = far_topology.cache(near=False)
    keys = [f"k{number}" for number in range(100)]
    await p.set_many(dict.fromkeys(keys, 1), tags=["t"])
    await p.clear()
    await p.get("something else")
    assert len(await calls_of(far_topology, p.get_many(keys))) <= 2


async def test_namespaces_are_cleared_one_by_one(far_topology: Topology):
    """Views share tiers, not epochs."""
    shop, users = far_topology.cache(namespace="shop"), far_topology.cache(namespace="users")
    await shop.set("k", 1)
    await users.set("k", 2)
    await shop.clear()
    assert await shop.get("k", MISS) == MISS
    assert await users.get("k", MISS) == 2


async def test_clears_at_a_time_are_all_done(far_topology: Topology):
    """Who finds that another one has just cleared is done, too."""
    caches = [far_topology.cache() for _ in range(8)]
    for number in range(5):
        await caches[0].set("k", number)
        await asyncio.gather(*[cache.clear() for cache in caches])
        assert await far_topology.witness().get("k", MISS) == MISS


@pytest.mark.parametrize("call", range(6))
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_clear_at_each_point_of_an_increment(far_topology: Topology, call: int, when: Any):
    """Either the increment comes before it and is gone, or after it, and begins at nothing."""
    p, q = far_topology.cache(near=False), far_topology.cache(near=False)
    for number, start in enumerate(("nothing", "counter", "value")):
        key = f"k{number}"
        if start == "counter":
            await p.incr(key, 5)
        elif start == "value":
            await p.set(key, 5)
        far_topology.tracer.restart()
        stop = far_topology.tracer.stop(call, when)
        counting = asyncio.create_task(p.incr(key))
        reached = asyncio.create_task(stop.reached.wait())
        await asyncio.wait([counting, reached], return_when="FIRST_COMPLETED")
        reached.cancel()
        if counting.done():
            far_topology.tracer.restart()  # or it would hold the `clear`
        await q.clear()
        stop.release()
        total = await counting
        assert total in (1, 1 if start == "nothing" else 6)
        found = await far_topology.witness().get(key, MISS)
        assert found in (MISS, 1), f"{start}: {found} is left of before"


STEPS: Final = st.lists(
    st.tuples(st.sampled_from(["incr", "set", "add", "delete", "clear", "touch"]), st.integers(0, 1)),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("kind", ["backend", "redis"])
def test_two_processes_agree_with_a_dictionary(kind: str, make_topology: Callable[[str], Topology]):
    """One operation after the other, by either of two processes that nobody tells anything."""

    async def run(steps: Sequence[tuple[str, int]]) -> None:
        async with make_topology(kind) as topology:
            caches, model = [topology.cache(near=False) for _ in range(2)], dict[str, int]()
            for number, (step, who) in enumerate(steps):
                cache = caches[who]
                if step == "incr":
                    model["k"] = model.get("k", 0) + 1
                    assert await cache.incr("k") == model["k"]
                elif step == "set":
                    await cache.set("k", number)
                    model["k"] = number
                elif step == "add":
                    assert await cache.add("k", number) == ("k" not in model)
                    model.setdefault("k", number)
                elif step == "delete":
                    assert await cache.delete("k") == (model.pop("k", MISS) != MISS)
                elif step == "touch":
                    assert await cache.touch("k", ttl=60) == ("k" in model)
                else:
                    await cache.clear()
                    model.clear()
                assert [await each.get("k", MISS) for each in caches] == [model.get("k", MISS)] * 2

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STEPS)
    def check_steps(steps: Sequence[tuple[str, int]]) -> None:
        asyncio.run(run(steps))

    check_steps()


async def test_memcached_cannot_clear_and_says_so():
    """It cannot look for counters, so it is not cleared at all."""
    cache = Cache(MemcachedBackend.from_url("memcached://127.0.0.1:1"), namespace="n")
    with pytest.raises(Unsupported, match="Clear"):
        await cache.clear()
    await cache.aclose()


# Failures -------------------------------------------------------------------------------------------------------------


async def test_a_token_that_cannot_be_read_is_a_miss():
    """What cannot be judged is not believed; and it is one failure, with an event, like any other."""
    backend = FaultyBackend()
    async with Cache(backend, namespace="n", memory=None) as cache:
        await cache.set("k", 1, tags=["t"])
        backend.fail("get_many")
        assert await cache.get_many(["k"]) == {}
        assert await cache.get_or_load("k", loads(), tags=["t"]) == "loaded"
        assert cache.stats().backend_errors >= 2
        backend.mend()
        assert await cache.get("k", MISS) == 1


async def test_a_cancelled_reader_leaves_the_others_their_answer():
    """Those who ask in one turn share a question, and nobody's cancellation."""
    backend = FaultyBackend()
    async with Cache(backend, namespace="n", memory=None) as cache:
        await cache.set_many({f"k{number}": 1 for number in range(5)})
        held = backend.hold("get_many")
        reading = [cache.get_or_load(f"k{number}", loads(), tags=[f"t{number}"]) for number in range(5)]
        readers = [asyncio.create_task(one) for one in reading]
        await held.reached.wait()
        readers[0].cancel()
        readers[3].cancel()
        held.release()
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, False, True, False]
        assert [result for result in results if result == 1] == [1] * 3
    assert [task for task in asyncio.all_tasks() if task.get_name() == "acache tokens"] == []


async def test_a_near_tier_by_time_is_bounded_over_a_clear_too(make_topology: Callable[[str], Topology]):
    """Where nobody tells, a near copy outlives another process's `clear` by the near ttl at most."""
    async with make_topology("near+backend") as topology:
        p, q = topology.cache(memory=Memory(ttl=2)), topology.cache()
        await p.set("k", "old")
        await q.clear()
        assert await p.get("k") == "old"
        topology.clock.advance(2)
        assert await p.get("k", MISS) == MISS
