"""Law 2: after an invalidation has returned, a load that had begun before is never stored.

The interleavings are forced: an operation is stopped at every await point it has (each call of the backend and of the
loader, before and after its effect), the other operation runs to its end meanwhile, then the first is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from acache import BackendUnavailable, Cache, MemoryBackend, Policy, current_load
from acache.events import FillRefused
from acache.testing import FakeClock, FaultyBackend, Recorder

if TYPE_CHECKING:
    from tests.laws.conftest import Topology, When

    MakeTopology = Callable[[str], Topology]
    Settle = Callable[..., Awaitable[None]]
    Until = Callable[[Callable[[], object]], Awaitable[None]]

MISS = "(a miss)"
WHENS: Final[tuple[When, ...]] = ("before", "after")
KEYS = itertools.count()

# ------------------------------------------------------------------------------------- what can come between a load


@dataclass
class Scene:
    """One key, one loading cache, and the source its loads read."""

    topology: Topology
    p: Cache
    key: str
    version: int = 0
    """What the source holds; every invalidation is of a change of it."""
    loads: int = 0
    _seen: dict[str, Any] = field(default_factory=dict)

    async def look(self) -> Any:
        """Tell what the loading cache has."""
        if "here" not in self._seen:
            return await see(self.p, self.key)
        return self._seen["here"]

    async def look_far(self) -> Any:
        """Tell what a cache has that has seen nothing."""
        if "far" not in self._seen:
            return await see(self.topology.witness(), self.key)
        return self._seen["far"]

    async def look_now(self, *, alone: bool) -> None:
        """Look, before the next `clear` removes what is there; alone, no other cache has changed it."""
        if self.topology.far:
            self._seen["far"] = await self.look_far()
        if alone:
            self._seen["here"] = await self.look()

    async def loader(self) -> str:
        self.loads += 1
        return str(await self.topology.tracer.load(lambda: f"loaded {self.version}"))

    async def many(self, keys: Any) -> dict[str, str]:
        value = await self.loader()
        return dict.fromkeys(keys, value)


Act = Callable[[Scene, Cache], Awaitable[Any]]


async def load(scene: Scene, cache: Cache) -> Any:
    return await cache.get_or_load(scene.key, scene.loader, tags=["tag", f"tag of {scene.key}"])


async def refresh(scene: Scene, cache: Cache) -> Any:
    return await cache.refresh(scene.key, scene.loader, tags=["tag", f"tag of {scene.key}"])


async def load_many(scene: Scene, cache: Cache) -> Any:
    keys = [scene.key, f"{scene.key}, another"]
    return (await cache.load_many(keys, scene.many, tags=["tag", f"tag of {scene.key}"]))[scene.key]


async def decorated(scene: Scene, cache: Cache) -> Any:
    @cache.cached(key="{key}", tags=["tag", "tag of {key}"])
    async def function(key: str) -> Any:
        return await scene.loader()

    return await function(scene.key)


async def decorated_many(scene: Scene, cache: Cache) -> Any:
    @cache.cached_many(key="{keys}", tags=["tag", "tag of {keys}"])
    async def function(keys: list[str]) -> Any:
        return await scene.many(keys)

    return (await function([scene.key, f"{scene.key}, another"]))[scene.key]


async def folded(scene: Scene, cache: Cache) -> Any:
    @cache.cached_many(key="{keys}", tags=["tag", "tag of {keys}"])
    async def function(keys: list[str]) -> Any:
        return await scene.many(keys)

    return (await asyncio.gather(function.one(scene.key), function.one(f"{scene.key}, another")))[0]


async def untagged(scene: Scene, cache: Cache) -> Any:
    return await cache.get_or_load(scene.key, scene.loader)


async def tagging(scene: Scene, cache: Cache) -> Any:
    """Say only after the value was read under which tags it belongs."""

    async def loader() -> str:
        value = await scene.loader()
        current_load().tags.update(("tag", f"tag of {scene.key}"))
        return value

    return await cache.get_or_load(scene.key, loader)


async def delete(scene: Scene, cache: Cache) -> Any:
    return await cache.delete(scene.key)


async def delete_many(scene: Scene, cache: Cache) -> Any:
    return await cache.delete_many([scene.key, "something else"])


async def invalidate_tags(scene: Scene, cache: Cache) -> Any:
    return await cache.invalidate_tags(f"tag of {scene.key}", "another tag")


async def clear(scene: Scene, cache: Cache) -> Any:
    return await cache.clear()


async def set_value(scene: Scene, cache: Cache) -> Any:
    return await cache.set(scene.key, "written")


async def set_tagged(scene: Scene, cache: Cache) -> Any:
    return await cache.set(scene.key, "written", tags=["written tag"])


async def set_many(scene: Scene, cache: Cache) -> Any:
    return await cache.set_many({scene.key: "written", "something else": 1})


async def incr(scene: Scene, cache: Cache) -> Any:
    return await cache.incr(scene.key, 7)


async def add(scene: Scene, cache: Cache) -> Any:
    return await cache.add(scene.key, "written")


LOADS = [load, refresh, load_many, decorated, decorated_many, folded, tagging]
REMOVALS = [delete, delete_many, invalidate_tags, clear]
WRITES = [set_value, set_tagged, set_many]


async def interleave(
    scene: Scene, first: Act, point: tuple[int, When], second: Callable[[], Awaitable[Any]]
) -> tuple[bool, Any]:
    """Run ``first``, stop it at a point, run ``second`` to its end, let ``first`` go.

    Returns whether there was such a point, and the result of ``first``.
    """
    scene.topology.tracer.restart()
    stop = scene.topology.tracer.stop(*point)
    task = asyncio.ensure_future(first(scene, scene.p))
    reached = asyncio.create_task(stop.reached.wait())
    await asyncio.wait([task, reached], return_when="FIRST_COMPLETED")
    if not stop.reached.is_set():
        reached.cancel()
        scene.topology.tracer.restart()
        return False, await task
    await second()
    stop.release()
    return True, await task


async def every_interleaving(
    topology: Topology,
    p: Cache,
    q: Cache,
    first: Act,
    second: Act,
    *,
    warm: Act | None,
) -> list[tuple[Scene, str, Any]]:
    """Stop ``first`` at each of its points, each time on a new key; return the scenes to judge.

    ``warm`` prepares each key.
    """
    judged: list[tuple[Scene, str, Any]] = []
    for call in itertools.count():
        for when in WHENS:
            scene = Scene(topology, p, f"key {next(KEYS)}")
            if warm is not None:
                await warm(scene, p)
            scene.loads = 0

            async def change_and_invalidate(scene: Scene = scene) -> Any:
                scene.version += 1
                return await second(scene, q)

            came, value = await interleave(scene, first, (call, when), change_and_invalidate)
            if not came:  # with two keys at a time on a real server, the number of calls is not always the same
                if when == "after":
                    continue
                assert judged or not topology.far
                return judged
            where = f"{first.__name__} held {when} call {call} of {topology.tracer.calls}, {second.__name__} meanwhile"
            if second is clear:
                await scene.look_now(alone=p is q)
            judged.append((scene, where, value))
    raise AssertionError


async def see(cache: Cache, key: str) -> Any:
    """Look at a key in all the ways there are, which must agree."""
    peeked = cache.peek(key, MISS)
    value = await cache.get(key, MISS)
    assert peeked in (MISS, value)
    assert (await cache.get_many([key])).get(key, MISS) == value
    assert await cache.has(key) == (value != MISS)
    entry = await cache.get_entry(key)
    assert (MISS if entry is None else entry.value) == value
    return value


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("warm", [None, delete], ids=["absent", "tombstone"])
@pytest.mark.parametrize("loading", LOADS)
async def test_a_removal_wins_over_a_load_that_began_before(
    topology: Topology, loading: Act, removal: Act, warm: Act | None
):
    """At whichever await point of a load its key is removed, its value goes to its callers and is stored nowhere."""
    p = topology.cache()
    for scene, where, value in await every_interleaving(topology, p, p, loading, removal, warm=warm):
        assert value in ("loaded 0", "loaded 1"), where
        assert await scene.look() in (MISS, "loaded 1"), where
        if topology.far:
            assert await scene.look_far() in (MISS, "loaded 1"), where
        assert await p.get_or_load(scene.key, scene.loader) == "loaded 1", where


@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_removal_wins_over_a_refresh(topology: Topology, removal: Act):
    """At whichever await point of a refresh its key is removed, neither the old nor the reloaded value comes back."""
    p = topology.cache()
    for scene, where, value in await every_interleaving(topology, p, p, refresh, removal, warm=load):
        assert value in ("loaded 0", "loaded 1"), where
        assert await scene.look() in (MISS, "loaded 1"), where
        if topology.far:
            assert await scene.look_far() in (MISS, "loaded 1"), where


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("warm", [None, delete], ids=["absent", "tombstone"])
@pytest.mark.parametrize("loading", LOADS)
async def test_a_write_wins_over_a_load_that_began_before(
    topology: Topology, loading: Act, write: Act, warm: Act | None
):
    """At whichever await point of a load its key is set, what was set stays."""
    p = topology.cache()
    for scene, where, value in await every_interleaving(topology, p, p, loading, write, warm=warm):
        assert value in ("loaded 0", "loaded 1", "written"), where
        assert await see(p, scene.key) == "written", where
        if topology.far:
            assert await see(topology.witness(), scene.key) == "written", where


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_wins_over_a_refresh(topology: Topology, write: Act):
    """At whichever await point of a refresh its key is set, what was set stays."""
    p = topology.cache()
    for scene, where, _ in await every_interleaving(topology, p, p, refresh, write, warm=load):
        assert await see(p, scene.key) == "written", where


@pytest.mark.parametrize("loading", LOADS)
async def test_an_add_or_a_counter_wins_over_a_load_that_began_before(topology: Topology, loading: Act):
    """At whichever await point of a load a value is added or counted up, it stays if the caller was told it is there."""
    p = topology.cache()
    for second, expected in ((add, "written"), (incr, 7)):
        results: list[Any] = []

        async def note(scene: Scene, cache: Cache, second: Act = second, results: list[Any] = results) -> None:
            try:
                results.append(await second(scene, cache))
            except Exception as error:  # noqa: BLE001  # a counter over a loaded text: refused
                results.append(error)

        note.__name__ = second.__name__
        judged = await every_interleaving(topology, p, p, loading, note, warm=None)
        assert len(judged) == len(results)
        for (scene, where, _), result in zip(judged, results, strict=True):
            if result is True or result == expected:
                assert await see(p, scene.key) == expected, where
            else:
                assert str(await see(p, scene.key)).startswith("loaded"), where


@pytest.mark.parametrize("second", [*REMOVALS, *WRITES, add, incr])
@pytest.mark.parametrize("loading", LOADS)
async def test_another_process_wins_over_a_load_that_began_before(far_topology: Topology, loading: Act, second: Act):
    """At whichever await point of a load another process removes or writes its key, the load is stored nowhere."""
    recorder = Recorder()
    p, q = far_topology.cache(observers=(recorder,)), far_topology.cache()
    results: list[Any] = []

    async def note(scene: Scene, cache: Cache) -> None:
        try:
            results.append(await second(scene, cache))
        except Exception as error:  # noqa: BLE001  # a counter over a loaded text: refused
            results.append(error)

    note.__name__ = second.__name__
    judged = await every_interleaving(far_topology, p, q, loading, note, warm=None)
    for (scene, where, value), result in zip(judged, results, strict=True):
        far = await scene.look_far()
        if second in (add, incr) and (result is False or isinstance(result, Exception)):
            assert far == value, where  # the load was there before it
        elif loading is refresh and far == "loaded 1" and value == far:
            pass  # it had not read yet: a refresh, begun afterwards, of what the other process wrote
        elif second in (*WRITES, add):
            assert far == "written", where
        elif second is incr:
            assert far == 7, where
        else:
            assert far in (MISS, "loaded 1"), where
        if any(event.key == scene.key for event in recorder.of(FillRefused)):
            assert p.peek(scene.key, MISS) in (MISS, far), where


@pytest.mark.parametrize("second", [delete, delete_many, clear, *WRITES])
@pytest.mark.parametrize("warm", [None, delete], ids=["absent", "tombstone"])
async def test_another_process_wins_over_a_load_without_tags(far_topology: Topology, warm: Act | None, second: Act):
    """No tag's token tells that the namespace was cleared, and what was not there leaves no gap."""
    p, q = far_topology.cache(), far_topology.cache()
    expected = ("written",) if second in WRITES else (MISS, "loaded 1")
    for scene, where, _ in await every_interleaving(far_topology, p, q, untagged, second, warm=warm):
        assert await scene.look_far() in expected, where


@pytest.mark.parametrize("start", [None, untagged, set_value], ids=["nothing", "loaded", "set"])
async def test_a_touch_or_a_count_does_not_bring_back_what_another_process_cleared(
    far_topology: Topology, start: Act | None
):
    """At whichever await point of either the namespace is cleared."""

    async def touch(scene: Scene, cache: Cache) -> bool:
        return await cache.touch(scene.key, ttl=1000)

    async def set_number(scene: Scene, cache: Cache) -> None:
        await cache.set(scene.key, 100)

    p, q = far_topology.cache(), far_topology.cache()
    for scene, where, _ in await every_interleaving(far_topology, p, q, touch, clear, warm=start):
        assert await scene.look_far() == MISS, where
    for scene, where, _ in await every_interleaving(far_topology, p, q, incr, clear, warm=set_number):
        assert await scene.look_far() in (MISS, 7), where


@pytest.mark.parametrize("loading", LOADS)
@pytest.mark.parametrize("removal", REMOVALS)
async def test_a_load_that_has_not_had_its_first_turn_is_a_load_that_began(
    topology: Topology, loading: Act, removal: Act, settle: Settle
):
    """A removal in each of the first turns of a load wins over it."""
    p = topology.cache()
    for turns in range(8):
        scene = Scene(topology, p, f"key {next(KEYS)}")
        topology.tracer.restart()
        task = asyncio.ensure_future(loading(scene, p))
        await settle(turns)
        scene.version += 1
        await removal(scene, p)
        await task
        assert await see(p, scene.key) in (MISS, "loaded 1"), turns


# --------------------------------------------------------------------------------- engines that cannot compare and set


@pytest.mark.parametrize("second", [delete, delete_many, invalidate_tags, *WRITES])
@pytest.mark.parametrize("loading", LOADS)
async def test_within_a_process_an_engine_without_cas_loses_nothing_either(
    plain_topology: Topology, loading: Act, second: Act
):
    """Over the plainest engine, at whichever await point of a load its key is removed or set, the old value is lost.

    Such an engine may have put it over the one that was set: then both are gone, which is the safe side.
    """
    p = plain_topology.cache()
    for scene, where, _ in await every_interleaving(plain_topology, p, p, loading, second, warm=None):
        allowed = ("written", MISS) if second in WRITES else (MISS, "loaded 1")
        assert await p.get(scene.key, MISS) in allowed, where
        assert await plain_topology.witness().get(scene.key, MISS) in allowed, where


@pytest.mark.parametrize("second", [delete, delete_many, invalidate_tags, *WRITES])
async def test_within_a_process_a_load_that_ends_in_the_midst_of_an_invalidation_is_not_stored_either(
    plain_topology: Topology, second: Act, until: Until, settle: Settle
):
    """Over the plainest engine, a load that ends while an invalidation is at any await point is not stored."""
    p, tracer = plain_topology.cache(), plain_topology.tracer
    for call, when in itertools.product(range(4), WHENS):
        scene = Scene(plain_topology, p, f"key {next(KEYS)}")
        tracer.restart()
        began, finish = asyncio.Event(), asyncio.Event()

        async def loader(began: asyncio.Event = began, finish: asyncio.Event = finish) -> str:
            began.set()
            await finish.wait()
            return "loaded 0"

        first = asyncio.create_task(p.get_or_load(scene.key, loader, tags=[f"tag of {scene.key}"]))
        await began.wait()
        tracer.restart()
        stop = tracer.stop(call, when)
        removing = asyncio.create_task(second(scene, p))
        await until(lambda: removing.done() or stop.reached.is_set())
        finish.set()
        await settle(50)  # the load comes to its end, unless it waits for the removal
        stop.release()
        await removing
        await first
        tracer.restart()
        allowed = ("written",) if second in WRITES else (MISS,)
        assert await p.get(scene.key, MISS) in allowed, (call, when)
        assert await plain_topology.witness().get(scene.key, MISS) in allowed, (call, when)


# ------------------------------------------------------------- a removal that is held up, and reads, loads around it


@pytest.mark.parametrize("removal", [*REMOVALS, *WRITES])
@pytest.mark.parametrize("reading", ["get", "get_many", "get_entry", "load", "load_many"])
async def test_nothing_read_while_an_invalidation_is_under_way_stays(topology: Topology, removal: Act, reading: str):
    """Whoever reads while a removal or a write is at one of its await points does not keep the old value."""
    p = topology.cache()

    async def read(scene: Scene) -> None:
        if reading == "get":
            await p.get(scene.key)
        elif reading == "get_many":
            await p.get_many([scene.key])
        elif reading == "get_entry":
            await p.get_entry(scene.key)
        else:
            await (load if reading == "load" else load_many)(scene, p)

    async def read_it(scene: Scene, _: Cache) -> None:
        await read(scene)

    async def change_and_remove(scene: Scene, cache: Cache) -> None:
        scene.version += 1  # the change that the invalidation is about
        await removal(scene, cache)

    read_it.__name__ = reading
    change_and_remove.__name__ = removal.__name__
    judged = await every_interleaving(topology, p, p, change_and_remove, read_it, warm=load)
    for scene, where, _ in judged:
        allowed = ("written",) if removal in WRITES else (MISS, "loaded 1", "loaded 2")
        assert await see(p, scene.key) in allowed, where
        if topology.far:
            assert await see(topology.witness(), scene.key) in allowed, where


@pytest.mark.parametrize("second", [*REMOVALS, *WRITES])
@pytest.mark.parametrize("reading", ["get", "get_many", "get_entry", "has"])
async def test_a_read_does_not_keep_what_was_invalidated_while_it_ran(
    far_topology: Topology, reading: str, second: Act
):
    """A far value that was on its way while it was removed or overwritten does not enter the near tier."""
    p, q = far_topology.cache(), far_topology.cache()

    async def read(scene: Scene, cache: Cache) -> Any:
        if reading == "get_many":
            return await cache.get_many([scene.key, "nothing here"])
        return await getattr(cache, reading)(scene.key)

    async def by_q(scene: Scene, _: Cache) -> None:
        await load(scene, q)  # p's near tier does not have it: the read is a far one

    read.__name__ = reading
    for scene, where, _ in await every_interleaving(far_topology, p, p, read, second, warm=by_q):
        assert await see(p, scene.key) in (("written",) if second in WRITES else (MISS,)), where


# --------------------------------------------------------------------------------------------- writers among themselves


@pytest.mark.parametrize("removal", REMOVALS)
@pytest.mark.parametrize("two_caches", [False, True])
async def test_touch_does_not_bring_a_removed_value_back(topology: Topology, removal: Act, two_caches: bool):
    """A touch that is under way while its key is removed leaves it removed."""
    if two_caches and not topology.far:
        return
    p = topology.cache()
    q = topology.cache() if two_caches else p

    async def touch(scene: Scene, cache: Cache) -> bool:
        return await cache.touch(scene.key, ttl=1000)

    for scene, where, _ in await every_interleaving(topology, p, q, touch, removal, warm=load):
        assert await (scene.look_far() if two_caches else scene.look()) == MISS, where


@pytest.mark.parametrize("second", WRITES)
@pytest.mark.parametrize("two_caches", [False, True])
async def test_touch_does_not_undo_a_write(topology: Topology, second: Act, two_caches: bool):
    """A touch that is under way while its key is overwritten leaves what was written."""
    if two_caches and not topology.far:
        return
    p = topology.cache()
    q = topology.cache() if two_caches else p

    async def touch(scene: Scene, cache: Cache) -> bool:
        return await cache.touch(scene.key, ttl=1000)

    for scene, where, _ in await every_interleaving(topology, p, q, touch, second, warm=load):
        assert await see(topology.witness() if two_caches else p, scene.key) == "written", where


@pytest.mark.parametrize("start", ["counter", "value", "absent", "tombstone"])
@pytest.mark.parametrize("two_caches", [False, True])
async def test_a_counter_that_is_deleted_while_it_counts_starts_again_or_is_gone(
    topology: Topology, start: str, two_caches: bool
):
    """An ``incr`` around a ``delete`` came before it, and is gone, or after it, and began at zero."""
    if two_caches and not topology.far:
        return
    p = topology.cache()
    q = topology.cache() if two_caches else p
    before = {"counter": 100, "value": 100, "absent": 0, "tombstone": 0}[start]

    async def warm(scene: Scene, cache: Cache) -> None:
        if start == "counter":
            await cache.incr(scene.key, 100)
        elif start == "value":
            await cache.set(scene.key, 100)
        elif start == "tombstone":
            await cache.delete(scene.key)

    for scene, where, counted in await every_interleaving(topology, p, q, incr, delete, warm=warm):
        after = await see(topology.witness() if two_caches else p, scene.key)
        assert (counted, after) in ((before + 7, MISS), (7, 7)), where


@pytest.mark.parametrize("start", ["counter", "value", "absent", "tombstone"])
@pytest.mark.parametrize("two_caches", [False, True])
async def test_no_count_is_lost(topology: Topology, start: str, two_caches: bool):
    """Two callers who count at a time are both counted, whatever stood under the key before."""
    if two_caches and not topology.far:
        return
    p = topology.cache()
    q = topology.cache() if two_caches else p

    async def warm(scene: Scene, cache: Cache) -> None:
        if start == "counter":
            await cache.incr(scene.key, 100)
        elif start == "value":
            await cache.set(scene.key, 100)
        elif start == "tombstone":
            await cache.delete(scene.key)

    total = (100 if start in ("counter", "value") else 0) + 14
    for scene, where, counted in await every_interleaving(topology, p, q, incr, incr, warm=warm):
        assert counted in (total, total - 7), where
        assert await see(topology.witness() if two_caches else p, scene.key) == total, where


@pytest.mark.parametrize("start", ["absent", "tombstone"])
@pytest.mark.parametrize("two_caches", [False, True])
async def test_of_two_who_add_one_is_told_that_he_did(topology: Topology, start: str, two_caches: bool):
    """Of two ``add`` at a time exactly one gets ``True``, and it is his value that stands there."""
    if two_caches and not topology.far:
        return
    p = topology.cache()
    q = topology.cache() if two_caches else p
    results: list[bool] = []

    async def add_first(scene: Scene, cache: Cache) -> bool:
        return await cache.add(scene.key, "first")

    async def add_second(scene: Scene, cache: Cache) -> None:
        results.append(await cache.add(scene.key, "second"))

    warm = delete if start == "tombstone" else None
    judged = await every_interleaving(topology, p, q, add_first, add_second, warm=warm)
    for (scene, where, first), second in zip(judged, results, strict=True):
        assert first != second, where
        winner = "first" if first else "second"
        assert await see(topology.witness() if two_caches else p, scene.key) == winner, where


@pytest.mark.parametrize("first", [*WRITES, add])
@pytest.mark.parametrize("second", [delete, delete_many, *WRITES])
async def test_near_and_far_agree_after_two_writers(topology: Topology, first: Act, second: Act):
    """Whoever of two writers at a time came last, the near tier does not remember the other."""
    p = topology.cache()

    async def other(scene: Scene, cache: Cache) -> Any:
        if second in WRITES:
            return await cache.set(scene.key, "other")
        return await second(scene, cache)

    other.__name__ = second.__name__
    for scene, where, _ in await every_interleaving(topology, p, p, first, other, warm=load):
        value = await see(p, scene.key)
        assert value in ("written", "other", MISS), where
        if topology.far:
            assert await see(topology.witness(), scene.key) == value, where


# ------------------------------------------------------------------------------------------- the protocol's interleavings


@dataclass
class Pair:
    """Two processes over one far tier; ``p`` loads, and the test decides when its loader returns."""

    topology: Topology
    recorder: Recorder = field(default_factory=Recorder)
    policy: Policy = field(default_factory=lambda: Policy(backend_timeout=30))

    def __post_init__(self) -> None:
        self.p = self.topology.cache(observers=(self.recorder,), policy=self.policy)
        self.q = self.topology.cache()
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def loader(self) -> str:
        self.began.set()
        await self.finish.wait()
        return "loaded"

    async def start(self) -> asyncio.Task[str]:
        task = asyncio.create_task(self.p.get_or_load("k", self.loader))
        await self.began.wait()
        return task

    async def end(self, task: asyncio.Task[str]) -> str:
        self.finish.set()
        return await task

    async def refused(self, task: asyncio.Task[str], left: Any) -> None:
        """See that the load's value goes to its caller only, and that the refusal is counted."""
        assert await self.end(task) == "loaded"
        assert self.p.peek("k", MISS) == MISS
        assert await self.p.get("k", MISS) == left
        assert await self.topology.witness().get("k", MISS) == left
        assert len(self.recorder.of(FillRefused)) == 1
        assert self.p.stats().fills_refused == 1


async def test_interleaving_1_nothing_then_deleted_differs_from_nothing(far_topology: Topology):
    """p reads ABSENT and loads, q deletes: p's fill is refused."""
    pair = Pair(far_topology)
    task = await pair.start()
    assert not await pair.q.delete("k")
    await pair.refused(task, MISS)


async def test_interleaving_2_a_tombstone_is_not_another_tombstone(far_topology: Topology):
    """p reads a tombstone and loads, q deletes again: p's fill is refused."""
    pair = Pair(far_topology)
    await pair.q.delete("k")
    task = await pair.start()
    await pair.q.delete("k")
    await pair.refused(task, MISS)


async def test_interleaving_2b_a_load_over_a_tombstone_that_stays_is_stored(far_topology: Topology):
    """p reads a tombstone and loads, nobody interferes: p's fill is stored."""
    pair = Pair(far_topology)
    await pair.q.delete("k")
    task = await pair.start()
    assert await pair.end(task) == "loaded"
    assert await pair.q.get("k") == "loaded"
    assert pair.p.stats().fills_refused == 0


async def test_interleaving_3_a_stale_value_that_expires_during_its_refresh_is_replaced(
    far_topology: Topology, until: Until
):
    """p reads a stale value and refreshes, the stale value expires: p's fill is stored.

    Where p is told that it is gone, and not whether somebody removed it, the fill is refused: the safe side.
    """
    pair = Pair(far_topology, policy=Policy(ttl=10, stale_if_error=100, backend_timeout=30))
    await pair.p.set("k", "old", ttl=10)
    far_topology.clock.advance(11)
    task = await pair.start()
    await far_topology.vanish("k")
    if far_topology.kind == "near+redis":
        await until(lambda: pair.p.stats().invalidations_received)
        await pair.refused(task, MISS)
        return
    assert await pair.end(task) == "loaded"
    assert await pair.q.get("k", MISS) == "loaded"
    assert pair.p.stats().fills_refused == 0


async def test_interleaving_3b_a_stale_value_that_is_deleted_during_its_refresh_stays_deleted(far_topology: Topology):
    """p reads a stale value and refreshes, q deletes it: p's fill is refused."""
    pair = Pair(far_topology, policy=Policy(ttl=10, stale_if_error=100, backend_timeout=30))
    await pair.p.set("k", "old", ttl=10)
    far_topology.clock.advance(11)
    task = await pair.start()
    await pair.q.delete("k")
    await pair.refused(task, MISS)


async def test_interleaving_4_the_first_of_two_fills_stands(far_topology: Topology):
    """p and q both read ABSENT and load, q fills first: q's value stands."""
    pair = Pair(far_topology)
    task = await pair.start()

    async def faster() -> str:
        return "faster"

    assert await pair.q.get_or_load("k", faster) == "faster"
    await pair.refused(task, "faster")


async def test_interleaving_5_set_and_deleted_differs_from_nothing(far_topology: Topology):
    """p loads, q sets and deletes: p's fill is refused."""
    pair = Pair(far_topology)
    task = await pair.start()
    await pair.q.set("k", "set")
    assert await pair.q.delete("k")
    await pair.refused(task, MISS)


async def test_interleaving_6_a_fill_of_unknown_outcome_is_taken_as_not_stored(far_topology: Topology):
    """p's connection is lost after the fill was sent: its caller gets the value, its near tier does not keep it."""
    pair = Pair(far_topology)
    task = await pair.start()
    calls = len(far_topology.tracer.calls)
    stop = far_topology.tracer.stop(calls, "after", error=BackendUnavailable("lost on the way"))
    stop.release()
    assert await pair.end(task) == "loaded"
    assert far_topology.tracer.calls[calls:].count("set_if") == 1
    assert pair.p.peek("k", MISS) == MISS
    assert pair.p.stats().backend_errors == 1


async def test_interleaving_7_a_deletion_here_refuses_without_asking_the_server(topology: Topology):
    """p deletes during its own load: the fill is refused before the server is asked."""
    pair = Pair(topology)
    task = await pair.start()
    await pair.p.delete("k")
    topology.tracer.restart()
    assert await pair.end(task) == "loaded"
    assert topology.tracer.calls == []
    assert await pair.p.get("k", MISS) == MISS
    assert pair.p.stats().fills_refused == 1


async def test_a_load_longer_than_a_tombstone_lives_is_not_stored(far_topology: Topology):
    """p's load outlives the tombstone that q left, so that ABSENT proves nothing: p does not fill."""
    pair = Pair(far_topology)
    task = await pair.start()
    await pair.q.delete("k")
    far_topology.clock.advance(61)
    await far_topology.vanish("k")
    assert await pair.end(task) == "loaded"
    assert await pair.p.get("k", MISS) == MISS
    assert await far_topology.witness().get("k", MISS) == MISS


@pytest.mark.parametrize("second", REMOVALS)
async def test_a_newcomer_after_an_invalidation_gets_a_new_load(topology: Topology, second: Act, settle: Settle):
    """Who asks after the invalidation has returned does not join the load that began before it."""
    p = topology.cache()
    scene = Scene(topology, p, "k")
    tags = [f"tag of {scene.key}"]
    began, finish = asyncio.Event(), asyncio.Event()

    async def old() -> str:
        began.set()
        await finish.wait()
        return "loaded before"

    async def new() -> str:
        return "loaded after"

    first = asyncio.create_task(p.get_or_load(scene.key, old, tags=tags))
    await began.wait()
    await second(scene, p)
    newcomer = asyncio.create_task(p.get_or_load(scene.key, new, tags=tags))
    await settle()
    finish.set()
    assert await first == "loaded before"
    assert await newcomer == "loaded after"
    assert await see(p, scene.key) == "loaded after"


async def test_a_background_refresh_loses_against_an_invalidation(topology: Topology, until: Any, settle: Settle):
    """A refresh behind a stale answer is a load like any other: an invalidation during it wins."""
    for second, expected in ((delete, MISS), (invalidate_tags, MISS), (clear, MISS), (set_value, "written")):
        p = topology.cache(policy=Policy(ttl=10, stale_while_revalidate=100, backend_timeout=30))
        scene = Scene(topology, p, f"key {next(KEYS)}")
        tags = [f"tag of {scene.key}"]
        await p.set(scene.key, "stale", tags=tags)
        topology.clock.advance(11)
        began, finish = asyncio.Event(), asyncio.Event()

        async def reload(began: asyncio.Event = began, finish: asyncio.Event = finish) -> str:
            began.set()
            await finish.wait()
            return "reloaded"

        assert await p.get_or_load(scene.key, reload, tags=tags) == "stale"
        await began.wait()
        await second(scene, p)
        finish.set()
        await until(lambda p=p: p.stats().fills_refused == 1)
        await settle()
        assert await see(p, scene.key) == expected, second.__name__


@pytest.mark.parametrize("operation", ["delete", "invalidate_tags", "clear"])
async def test_a_removal_that_the_far_tier_did_not_confirm_is_loud_and_drops_the_near_copy(operation: str):
    """A removal that fails raises, and the near copy is gone all the same."""
    backend = FaultyBackend()
    async with Cache(backend, namespace="n") as cache:
        await cache.set("k", "old", tags=["tag"])
        assert cache.peek("k") == "old"
        backend.fail()
        with pytest.raises(BackendUnavailable):
            await {
                "delete": lambda: cache.delete("k"),
                "invalidate_tags": lambda: cache.invalidate_tags("tag"),
                "clear": lambda: cache.clear(),
            }[operation]()
        assert cache.peek("k") is None


async def test_a_set_that_failed_does_not_leave_a_near_copy(settle: Settle):
    """A set that the far tier did not take leaves neither the old nor the new value in the near tier."""
    backend = FaultyBackend()
    async with Cache(backend, namespace="n") as cache:
        await cache.set("k", "old")
        backend.fail()
        await cache.set("k", "new")
        assert cache.peek("k", MISS) in (MISS, "new")
        assert cache.peek("k", MISS) != "old"


async def test_a_removal_that_is_cancelled_on_the_way_does_not_leave_the_near_copy(far_topology: Topology):
    """Whoever cancels a delete at whichever point does not go on reading the value from the near tier if it is gone."""
    p = far_topology.cache()
    for call, when in itertools.product(range(4), WHENS):
        await p.set("k", "old")
        far_topology.tracer.restart()
        stop = far_topology.tracer.stop(call, when)
        task = asyncio.create_task(p.delete("k"))
        reached = asyncio.create_task(stop.reached.wait())
        await asyncio.wait([task, reached], return_when="FIRST_COMPLETED")
        reached.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        far_topology.tracer.restart()
        far = await far_topology.witness().get("k", MISS)
        assert p.peek("k", MISS) in (MISS, far), (call, when)


# ----------------------------------------------------------------------------------------------- generated schedules


@dataclass
class Done:
    """What an operation did, and when it began and ended, counted in steps of the schedule."""

    what: str
    began: int
    ended: int
    value: str = ""


class Schedule:
    """Runs operations of one key, each stopped at every point, and lets them go in the order it is told to."""

    def __init__(self, topology: Topology, caches: list[Cache]) -> None:
        self.topology = topology
        self.caches = caches
        self.now = 0
        self.parked: list[tuple[str, asyncio.Event]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.history: list[Done] = []
        self.born: dict[str, Done] = {}
        """Every value there ever was, with the time in which it came to be."""
        self.numbers = itertools.count()
        topology.tracer.everywhere = self.park

    def tick(self) -> int:
        self.now += 1
        return self.now

    async def park(self, name: str, when: str) -> None:
        gate = asyncio.Event()
        self.parked.append((f"{when} {name}", gate))
        await gate.wait()

    async def quiet(self) -> None:
        """Wait until everybody is parked, done, or waits for one who is parked."""
        still = 0
        while still < 15:
            await asyncio.sleep(0)
            still = 0 if self.topology.tracer.under_way else still + 1

    async def loader(self) -> str:
        began = self.tick()
        value = f"load {next(self.numbers)}"
        self.born[value] = done = Done("load", began, 1 << 60, value)
        await self.topology.tracer.load(value)
        done.ended = self.tick()
        return value

    async def act(self, what: str, cache: Cache) -> None:
        began = self.tick()
        value = ""
        if what == "delete":
            await cache.delete("k")
        elif what == "tags":
            await cache.invalidate_tags("t")
        elif what == "clear":
            await cache.clear()
        elif what == "set":
            value = f"set {next(self.numbers)}"
            self.born[value] = done = Done("set", began, 1 << 60, value)
            await cache.set("k", value, tags=["t"])
            done.ended = self.tick()
        elif what == "load":
            value = await cache.get_or_load("k", self.loader, tags=["t"])
        elif what == "refresh":
            value = await cache.refresh("k", self.loader, tags=["t"])
        elif what == "many":
            value = (await cache.load_many(["k"], self.many, tags=["t"]))["k"]
        elif what == "get":
            value = await cache.get("k", MISS)
        self.history.append(Done(what, began, self.tick(), value))

    async def many(self, keys: Any) -> dict[str, str]:
        return {"k": await self.loader()}

    async def run(self, steps: list[tuple[str, int, int]]) -> None:
        for what, cache, choice in steps:
            if what == "go":
                if self.parked:
                    _, gate = self.parked.pop(choice % len(self.parked))
                    gate.set()
            else:
                self.tasks.append(asyncio.create_task(self.act(what, self.caches[cache % len(self.caches)])))
            await self.quiet()
        while self.parked:
            self.parked.pop(0)[1].set()
            await self.quiet()
        await asyncio.gather(*self.tasks)
        self.topology.tracer.everywhere = None
        for cache in [*self.caches]:
            await self.act("get", cache)
            await self.act("load", cache)

    def judge(self) -> None:
        """See that no read that began after an invalidation had returned got a value from before it began."""
        for read in self.history:
            if read.what not in ("get", "load", "refresh", "many") or read.value == MISS:
                continue
            born = self.born[read.value]
            for other in self.history:
                if other.what in ("delete", "tags", "clear", "set") and other.ended < read.began:
                    # A load counts from its beginning, a set from its return: before that it may come after `other`.
                    old = born.began if born.what == "load" else born.ended
                    assert not (old < other.began and other.value != read.value), f"{read} after {other}: {born}"


STEP = st.tuples(
    st.sampled_from(["go", "go", "go", "go", "remove", "set", "load", "load", "get", "refresh", "many"]),
    st.integers(0, 1),
    st.integers(0, 7),
)


def try_schedules(make: Callable[[], Topology], removal: str, *, processes: int, near: bool | None) -> None:
    async def main(topology: Topology, steps: list[tuple[str, int, int]]) -> None:
        async with topology:
            caches = [topology.cache(near=near) for _ in range(processes)]
            for cache in caches:
                await cache.get("something else")  # what happens once, before the first answer, is no part of it
            schedule = Schedule(topology, caches)
            async with asyncio.timeout(30):
                await schedule.run([(removal if what == "remove" else what, *rest) for what, *rest in steps])
            schedule.judge()

    redis = make().redis

    @settings(
        max_examples=100 if redis else 200,
        phases=[Phase.explicit, Phase.generate] if redis else list(Phase),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.lists(STEP, min_size=4, max_size=24))
    def check(steps: list[tuple[str, int, int]]) -> None:
        asyncio.run(main(make(), steps))

    check()


@pytest.mark.parametrize("kind", ["memory", "near+backend", "backend", "redis", "near+redis"])
@pytest.mark.parametrize("removal", ["delete", "tags", "clear"])
def test_no_schedule_in_one_process_loses_an_invalidation(kind: str, removal: str, make_topology: MakeTopology):
    """Whatever the order in which removals, writes and loads of one process take their steps, none is lost."""
    try_schedules(lambda: make_topology(kind), removal, processes=1, near=None)


@pytest.mark.parametrize("kind", ["backend", "redis"])
@pytest.mark.parametrize("removal", ["delete", "tags", "clear"])
def test_no_schedule_of_two_processes_loses_an_invalidation(kind: str, removal: str, make_topology: MakeTopology):
    """Whatever the order in which two processes over one guarded far tier take their steps, none is lost."""
    try_schedules(lambda: make_topology(kind), removal, processes=2, near=False)


@pytest.mark.parametrize("change", ["delete", "delete_many", "set"])
async def test_who_comes_after_a_change_does_not_wait_for_a_load_that_began_during_it(change: str):
    """1: a change is on its way.  2: a load begins, and sees what was before.  3: the change is confirmed.  4: a caller."""
    backend = FaultyBackend()
    async with Cache(backend, memory=None, policy=Policy(backend_timeout=30)) as cache:
        held = backend.hold("set" if change == "set" else "set_many" if change == "delete_many" else "swap")
        calls = {
            "delete": lambda: cache.delete("k"),
            "delete_many": lambda: cache.delete_many(["k"]),
            "set": lambda: cache.set("k", "written"),
        }
        changing = asyncio.ensure_future(calls[change]())
        await held.reached.wait()
        reached, go = asyncio.Event(), asyncio.Event()

        async def slow() -> str:
            reached.set()
            await go.wait()
            return "old"

        async def load() -> str:
            return "new"

        waiting = asyncio.create_task(cache.get_or_load("k", slow))
        await reached.wait()
        held.release()
        await changing
        later = asyncio.create_task(cache.get_or_load("k", load))
        done, _ = await asyncio.wait([later], timeout=10)
        go.set()
        assert await waiting == "old"
        assert done != set(), "it waits for the load that began before"
        assert await later == ("written" if change == "set" else "new")


async def test_a_tag_that_a_loader_adds_is_stored_again_soon_after_its_invalidation():
    """What begins to load after an invalidation is stored, whenever the loader says what its tags are."""
    clock = FakeClock()

    async def load() -> str:
        current_load().tags.add("t")
        return "value"

    async with Cache(MemoryBackend(clock=clock), namespace="n", clock=clock) as cache:
        assert await cache.get_or_load("k", load) == "value"
        await cache.invalidate_tags("t")
        assert await cache.get("k") is None
        clock.advance(1.1)  # by which clocks may differ in counting a minute
        assert await cache.get_or_load("k", load) == "value"
        assert await cache.get("k") == "value"
        assert cache.stats().fills_refused == 0


async def test_a_load_that_took_too_long_to_be_stored_says_so(caplog: pytest.LogCaptureFixture):
    """It might be older than a deletion that nobody remembers any more."""
    clock = FakeClock()

    async def load() -> str:
        clock.advance(56)
        return "value"

    async with Cache(MemoryBackend(clock=clock), namespace="n", clock=clock) as cache:
        assert await cache.get_or_load("k", load) == "value"
        assert await cache.get("k") is None
    assert "'k' is not stored: its load took 56 s" in caplog.text
