"""Law 1: a caller gets a value that was loaded or set for that key, whatever was cancelled or timed out in between."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acache import Cache, MemoryBackend, Policy

if TYPE_CHECKING:
    from tests.laws.conftest import Topology

    MakeTopology = Callable[[str], Topology]

MISS = "(a miss)"

TRICKY = [
    "a", "A", "a:b", "a::b", "a:", "a::", ":a", "::a", ":", "::", ":::", "@", "@x", "@@x", "::@x", "@tag:t", "@#",
    "@#" + "0" * 64, "@@@", "*", "a*", "?", "[ab]", "\\", "{a}", "{}", "a{b}c", " ", " a", "a ", "a b", "\t", "\n",
    "\r\n", "a\r\nSET b 1", "\0", "a\0b", "\x7f", "None", "0", "1", "-1", "true", "../a", "/a", "a/b", ".", "..", "~",
    "%", "%61", "é", "e\u0301", "ß", "ss", "ſ", "k", "\u212a", "ключ", "鍵", "🔑", "\u200b", "a\u200b", "\ufeffa",
    "x" * 199, "x" * 200, "x" * 201, "x" * 250, "x" * 251, "x" * 4095, "x" * 4096, "x" * 4097, "x" * 10_000,
    "é" * 100, "é" * 101, "鍵" * 5000, "y" * 10_000 + "1", "y" * 10_000 + "2",
]  # fmt: skip
SPACES = ["", ":a", ":a:b", ".x", "-x", "/x", "x", "xx", "x:x"]


async def test_no_key_is_another_key(topology: Topology):
    """Keys that differ in anything at all have values of their own, on every tier and in every operation."""
    assert len(set(TRICKY)) == len(TRICKY)
    cache = topology.cache()
    for number, key in enumerate(TRICKY):
        assert await cache.get(key, MISS) == MISS, key
        await cache.set(key, number)
    for reader in (cache, topology.witness()) if topology.far else (cache,):
        for number, key in enumerate(TRICKY):
            assert await reader.get(key, MISS) == number, key
        assert await reader.get_many(TRICKY) == {key: number for number, key in enumerate(TRICKY)}
    for number, key in enumerate(TRICKY):
        assert await cache.delete(key), key
        expected = {other: index for index, other in enumerate(TRICKY) if index > number}
        assert await cache.get_many(TRICKY) == expected, key


async def test_loads_go_to_their_own_keys(topology: Topology):
    """A batch loader and single loaders of tricky keys each fill their own key."""
    cache = topology.cache()

    async def loader(keys: Any) -> dict[str, str]:
        return {key: f"value of {key}" for key in reversed(keys)}

    half = TRICKY[::2]
    assert await cache.load_many(half, loader) == {key: f"value of {key}" for key in half}

    async def one(key: str) -> str:
        return f"value of {key}"

    for key in TRICKY:
        assert await cache.get_or_load(key, lambda key=key: one(key)) == f"value of {key}"  # type: ignore[misc]
    for key in TRICKY:
        assert await cache.get(key) == f"value of {key}"


async def test_no_namespace_answers_for_another(topology: Topology):
    """The same keys in similar namespaces, and in none, are as many values; clearing one leaves the others."""
    cache = topology.cache()
    views = {space: cache.view(namespace=topology.namespace + space) for space in SPACES}
    keys = ["a", "a:b", "b", "::b", "a::b", ":a::b", "x", "x::x", "x:x::a", "@x", "@tag:x"]
    for (space, view), key in itertools.product(views.items(), keys):
        await view.set(key, f"{space} {key}", tags=[f"tag {key}"])
    for space, view in views.items():
        assert await view.get_many(keys) == {key: f"{space} {key}" for key in keys}
        for key in keys:
            assert view.peek(key, f"{space} {key}") == f"{space} {key}"
    await views[":a"].invalidate_tags("tag a")
    await views["x"].delete("a")
    await views[".x"].clear()
    for space, view in views.items():
        for key in keys:
            gone = (space, key) in ((":a", "a"), ("x", "a")) or space == ".x"
            assert await view.get(key, MISS) == (MISS if gone else f"{space} {key}"), (space, key)


async def test_clearing_a_namespace_leaves_those_that_begin_alike(topology: Topology):
    """``clear`` of ``n`` leaves ``n:a``, ``nx``, and keys of the unnamed space that look like ``n``'s."""
    cache = topology.cache()
    alike = [cache.view(namespace=topology.namespace + space) for space in SPACES[1:]]
    for view in alike:
        await view.set("k", "kept")
    await cache.set("k", "cleared")
    await cache.clear()
    assert await cache.get("k", MISS) == MISS
    for view in alike:
        assert await view.get("k", MISS) == "kept", view


async def test_a_view_with_another_codec_or_policy_sees_the_same_values(topology: Topology):
    """A view of the same namespace is the same cache."""
    cache = topology.cache()
    view = cache.view(policy=Policy(ttl=5, backend_timeout=30))
    await cache.set("k", "value")
    assert await view.get("k") == "value"
    await view.delete("k")
    assert await cache.get("k", MISS) == MISS


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(
            st.text("ab:@#/.", max_size=4).map(lambda text: "n" + text.replace("::", ":").strip("@#:")),
            st.text("ab:@#é ", min_size=1, max_size=6),
        ),
        max_size=20,
        unique=True,
    )
)
def test_no_pair_of_namespace_and_key_is_another(pairs: list[tuple[str, str]]):
    """Whatever namespaces and keys are made of, different pairs are different entries."""
    pairs = [(space.replace("@", "").replace("#", ""), key) for space, key in pairs]
    pairs = list(dict.fromkeys(pairs))

    async def main() -> None:
        backend = MemoryBackend()
        async with Cache(backend, memory=None, namespace="n") as cache:
            for number, (space, key) in enumerate(pairs):
                await cache.view(namespace=space).set(key, number, tags=[key])
            for number, (space, key) in enumerate(pairs):
                assert await cache.view(namespace=space).get(key) == number

    asyncio.run(main())


@pytest.mark.parametrize("max_connections", [1, 3, 50])
async def test_a_cancelled_request_shifts_nobody_s_reply(redis_topology: Topology, max_connections: int):
    """Thousands of callers are cancelled or run out of time at random moments; every reply belongs to its key."""
    cache = redis_topology.cache(max_connections=max_connections)
    random_ = random.Random(max_connections)
    keys = [f"key {number}" for number in range(40)]
    for key in keys[:20]:
        await cache.set(key, f"value of {key}")
    answers = cancelled = 0

    async def loaded(key: str) -> str:
        await asyncio.sleep(0)
        return f"value of {key}"

    async def all_loaded(keys: Any) -> dict[str, str]:
        await asyncio.sleep(0)
        return {key: f"value of {key}" for key in keys}

    async def ask(key: str, what: int) -> dict[str, Any]:
        if what == 0:
            return {key: await cache.get(key, f"value of {key}")}
        if what == 1:
            return await cache.get_many([key, *random_.sample(keys, 3)])
        if what == 2:
            return {key: await cache.get_or_load(key, lambda: loaded(key))}
        if what == 3:
            return await cache.load_many([key, *random_.sample(keys, 3)], all_loaded)
        if what == 4:
            await cache.delete(key)
            return {}
        if what == 5:
            await cache.set(key, f"value of {key}")
            return {}
        if what == 6:
            entry = await cache.get_entry(key)
            return {} if entry is None else {key: entry.value}
        async with asyncio.timeout(random_.random() / 500):
            return {key: await cache.get(key, f"value of {key}")}

    async def caller() -> None:
        nonlocal answers, cancelled
        for _ in range(50):
            key = random_.choice(keys)
            task = asyncio.create_task(ask(key, random_.randrange(8)))
            if random_.random() < 0.6:
                for _ in range(random_.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                for name, value in (await task).items():
                    assert value == f"value of {name}"
                    answers += 1
            except (asyncio.CancelledError, TimeoutError):
                cancelled += 1

    await asyncio.gather(*[caller() for _ in range(60)])
    assert answers > 300
    assert cancelled > 300
    for key in keys:  # and the connections are still in step
        assert await cache.get(key, f"value of {key}") == f"value of {key}"


async def test_far_values_are_nobody_else_s_objects(far_topology: Topology):
    """Two caches over one far tier share values, not objects."""
    p, q = far_topology.cache(), far_topology.cache()
    await p.set("k", [1, 2])
    mine = await q.get("k")
    mine.append(3)
    assert await far_topology.witness().get("k") == [1, 2]
