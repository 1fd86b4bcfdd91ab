"""Law 2 across processes, on every engine that can compare and set: the interleavings of one load with another process.

A load here is one of process p, whose loader returns when the test says so; q is another process over the same engine,
with a client of its own.  Each test is one interleaving of a load (L), a delete (D) and a set (S).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from acache import Backend, BackendUnavailable, Cache, MemoryBackend, Policy
from acache.backends import Cas
from acache.events import BackendFailed, FillRefused
from acache.testing import FakeClock, Recorder

MISS: Final = "(a miss)"
SERVERS: Final = ("redis", "valkey", "memcached", "mongodb", "dynamodb", "moto")
ENGINES: Final = ("memory", "file", *SERVERS, "redis-cluster")
REGION: Final = "eu-north-1"


class Engine:
    """One engine, a part of it that is the test's own, and the caches that were opened over it."""

    def __init__(self, name: str, url: str, place: str, clock: FakeClock) -> None:
        self.name = name
        self.url = url
        self.place = place
        """A directory, a table."""
        self.clock = clock
        self.namespace = f"fills-{uuid.uuid4().hex}"
        self.key = f"{self.namespace}::k"
        self._memory = MemoryBackend(clock=clock)
        self._caches: list[Cache] = []

    def open(self, url: str | None = None) -> Backend:
        """Return a client of its own."""
        url = url or self.url
        if self.name == "memory":
            return self._memory
        if self.name == "file":
            from acache.backends.file import FileBackend

            return FileBackend(self.place, clock=self.clock)
        if self.name in ("dynamodb", "moto"):
            from aiobotocore.session import get_session

            from acache.backends.dynamodb import DynamoDBBackend

            session = get_session()
            session.set_credentials("test", "hunter2")
            where: dict[str, Any] = {"region": REGION, "endpoint_url": url}
            return DynamoDBBackend(session, self.place, **where, timeout=30, connect_timeout=30)
        if self.name == "mongodb":
            from acache.backends.mongodb import MongoDBBackend

            return MongoDBBackend.from_url(f"{url.rstrip('/')}/acache-laws", timeout=30)
        if self.name == "memcached":
            from acache.backends.memcached import MemcachedBackend

            return MemcachedBackend.from_url(url, timeout=30)
        from acache.backends.redis import RedisBackend

        scheme = "redis+cluster" if self.name == "redis-cluster" else "redis"
        return RedisBackend.from_url(f"{scheme}://{url.partition('://')[2]}", timeout=30)

    def cache(self, backend: Backend | None = None, *, near: bool = False, **options: Any) -> Cache:
        """Return a process of its own; the end of the test closes it."""
        options.setdefault("policy", Policy(backend_timeout=30))
        memory = 100 if near else None
        # Nobody tells of changes: a fill by a script would be told back, and cost the near copy that is looked at here.
        options |= {"memory": memory, "namespace": self.namespace, "clock": self.clock, "coherence": None}
        cache = Cache(backend or self.open(), **options)
        self._caches.append(cache)
        return cache

    async def vanish(self) -> None:
        """Take away what stands under the key, and leave no tombstone: as expiry and eviction do."""
        backend = self.open()
        await backend.delete(self.key)
        if backend is not self._memory:
            await backend.aclose()

    async def aclose(self) -> None:
        """Close the caches and remove what is left."""
        await self.vanish()
        for cache in self._caches:
            await cache.aclose()


@pytest.fixture(scope="module")
def tables() -> Iterator[Callable[[str], str]]:
    """Make tables, one on each server, and remove them in the end."""
    import botocore.session

    made: dict[str, str] = {}

    def control(endpoint: str) -> Any:
        session = botocore.session.get_session()
        session.set_credentials("test", "hunter2")
        return session.create_client("dynamodb", region_name=REGION, endpoint_url=endpoint)

    def make(endpoint: str) -> str:
        if endpoint not in made:
            made[endpoint] = f"acache-fills-{uuid.uuid4().hex}"
            control(endpoint).create_table(
                TableName=made[endpoint],
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
        return made[endpoint]

    yield make
    for endpoint, name in made.items():
        control(endpoint).delete_table(TableName=name)


@pytest.fixture
async def engine(request: pytest.FixtureRequest, tmp_path: Path, tables: Callable[[str], str]) -> AsyncIterator[Engine]:
    """Give one engine of those that can compare and set."""
    name = request.param
    url = "" if name in ("memory", "file") else request.getfixturevalue(f"{name.replace('-', '_')}_url")
    place = str(tmp_path / "cache") if name == "file" else ""
    if name in ("dynamodb", "moto"):
        place = tables(url)
    made = Engine(name, url, place, FakeClock(wall=time.time()))
    yield made
    await made.aclose()


every_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)


class Pair:
    """p, which loads and has a near tier; q, another process."""

    def __init__(self, engine: Engine, backend: Backend | None = None, **policy: Any) -> None:
        self.engine = engine
        self.recorder = Recorder()
        rules = Policy(backend_timeout=30, **policy)
        self.p = engine.cache(backend, near=True, policy=rules, observers=(self.recorder,))
        self.q = engine.cache(policy=rules)
        self.began = asyncio.Event()
        self.finish = asyncio.Event()

    async def loader(self) -> str:
        self.began.set()
        await self.finish.wait()
        return "loaded"

    async def start(self) -> asyncio.Task[str]:
        """Let p's load begin."""
        task = asyncio.create_task(self.p.get_or_load("k", self.loader))
        await self.began.wait()
        return task

    async def end(self, task: asyncio.Task[str]) -> None:
        """Let p's load end; its caller gets its value whatever became of the fill."""
        self.finish.set()
        assert await task == "loaded"

    async def refused(self, task: asyncio.Task[str], left: str = MISS) -> None:
        """See that nothing of the load is stored anywhere, and that this is counted."""
        await self.end(task)
        assert self.p.peek("k", MISS) == MISS
        assert await self.q.get("k", MISS) == left
        assert await self.p.get("k", MISS) == left
        assert self.p.stats().fills_refused == 1
        assert [event.key for event in self.recorder.of(FillRefused)] == ["k"]

    async def stored(self, task: asyncio.Task[str]) -> None:
        """See that the load is stored on both tiers."""
        await self.end(task)
        assert self.p.peek("k", MISS) == "loaded"
        assert await self.q.get("k", MISS) == "loaded"
        assert self.p.stats().fills_refused == 0


@every_engine
async def test_every_engine_here_can_compare_and_set(engine: Engine):
    """What these tests are about."""
    backend = engine.open()
    assert isinstance(backend, Cas)
    if engine.name != "memory":
        await backend.aclose()


@every_engine
async def test_a_load_that_nobody_disturbs_is_stored(engine: Engine):
    """Nothing there, L: the fill is stored, so that a refusal below means something."""
    pair = Pair(engine)
    await pair.stored(await pair.start())


@every_engine
async def test_1_nothing_then_deleted_differs_from_nothing(engine: Engine):
    """p reads nothing and starts L; q: D; p fills: refused, as the tombstone differs from nothing."""
    pair = Pair(engine)
    task = await pair.start()
    assert not await pair.q.delete("k")
    await pair.refused(task)


@every_engine
async def test_2_a_tombstone_differs_from_another(engine: Engine):
    """p reads a tombstone and starts L; q: D; p fills: refused, as the tombstone is another."""
    pair = Pair(engine)
    await pair.q.delete("k")
    task = await pair.start()
    await pair.q.delete("k")
    await pair.refused(task)


@every_engine
async def test_2b_a_tombstone_that_stays_is_filled_over(engine: Engine):
    """p reads a tombstone and starts L; nobody interferes: stored."""
    pair = Pair(engine)
    await pair.q.delete("k")
    await pair.stored(await pair.start())


@every_engine
async def test_3_a_stale_value_that_expires_during_its_refresh_is_replaced(engine: Engine):
    """p reads a stale value and starts to refresh it; it expires; p fills: stored."""
    pair = Pair(engine, ttl=10, stale_if_error=1000)
    await pair.q.set("k", "stale")
    engine.clock.advance(11)
    task = await pair.start()
    await engine.vanish()
    await pair.stored(task)


@every_engine
async def test_3b_a_stale_value_that_stays_is_replaced(engine: Engine):
    """p reads a stale value and starts to refresh it; nobody interferes: stored."""
    pair = Pair(engine, ttl=10, stale_if_error=1000)
    await pair.q.set("k", "stale")
    engine.clock.advance(11)
    await pair.stored(await pair.start())


@every_engine
@pytest.mark.parametrize("what", ["D", "S"])
async def test_3c_a_stale_value_that_is_changed_during_its_refresh_is_not_replaced(engine: Engine, what: str):
    """p reads a stale value and starts to refresh it; q: D or S; p fills: refused."""
    pair = Pair(engine, ttl=10, stale_if_error=1000)
    await pair.q.set("k", "stale")
    engine.clock.advance(11)
    task = await pair.start()
    if what == "D":
        assert await pair.q.delete("k") in (True, False)  # whether a stale value counts is the engine's to say
        await pair.refused(task)
    else:
        await pair.q.set("k", "set")
        await pair.refused(task, "set")


@every_engine
async def test_4_the_first_of_two_fills_stands(engine: Engine):
    """p reads nothing and starts L; q reads nothing, loads and fills; p fills: refused, q's value stands."""
    pair = Pair(engine)
    task = await pair.start()

    async def faster() -> str:
        return "faster"

    assert await pair.q.get_or_load("k", faster) == "faster"
    await pair.refused(task, "faster")


@every_engine
async def test_5_set_and_deleted_differs_from_nothing(engine: Engine):
    """p starts L; q: S, D; p fills: refused."""
    pair = Pair(engine)
    task = await pair.start()
    await pair.q.set("k", "set")
    assert await pair.q.delete("k")
    await pair.refused(task)


@every_engine
async def test_5b_a_value_that_was_set_stands(engine: Engine):
    """p starts L; q: S; p fills: refused, q's value stands."""
    pair = Pair(engine)
    task = await pair.start()
    await pair.q.set("k", "set")
    await pair.refused(task, "set")


@every_engine
async def test_6_a_fill_of_unknown_outcome_counts_as_not_stored(engine: Engine):
    """p starts L and fills, and never hears what became of it: p's near tier does not keep it."""
    backend = engine.open()
    kind: Any = type(backend)

    class Lost(kind):  # type: ignore[misc]
        """Its fills arrive, and their replies do not."""

        __slots__ = ()

        async def set_if(self, *args: Any, **options: Any) -> bool:
            await super().set_if(*args, **options)
            msg = "lost on the way back"
            raise BackendUnavailable(msg)

    backend.__class__ = Lost
    pair = Pair(engine, backend)
    try:
        await pair.end(await pair.start())
        assert pair.p.peek("k", MISS) == MISS
        assert [event.operation for event in pair.recorder.of(BackendFailed)] == ["fill"]
        assert pair.p.stats().fills_refused == 0
        assert await pair.q.get("k", MISS) == "loaded"  # it had arrived
        await pair.q.delete("k")
        assert await pair.p.get("k", MISS) == MISS
    finally:
        backend.__class__ = kind


class Relay:
    """Stands before a server, and can cut the connection on which a certain write was just answered."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._target = (parts.hostname, parts.port)
        self._url = url.replace(parts.netloc, "127.0.0.1:{}", 1)
        self._key = key.encode()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.armed = False
        self.cuts = 0

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1")
        return self._url.format(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        doomed = False

        async def up() -> None:
            nonlocal doomed
            while data := await reader.read(1 << 16):
                if self.armed and self._key in data:
                    self.armed, doomed = False, True
                far_writer.write(data)

        async def down() -> None:
            while data := await far_reader.read(1 << 16):
                if doomed:  # the server did it, and nobody hears of it
                    self.cuts += 1
                    writer.transport.abort()
                    return
                writer.write(data)

        running = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            far_writer.close()
            writer.close()
            self._tasks.discard(task)


@pytest.mark.parametrize("engine", SERVERS, indirect=True)
async def test_6b_a_connection_that_is_lost_after_the_fill_was_sent(engine: Engine):
    """p starts L, sends the fill and loses the connection: p's near tier does not keep it, and p goes on."""
    relay = Relay(engine.url, engine.key)
    async with relay as url:
        pair = Pair(engine, engine.open(url))
        task = await pair.start()
        relay.armed = True
        await pair.end(task)
        assert relay.cuts == 1
        assert pair.p.peek("k", MISS) == MISS
        stats = pair.p.stats()
        # A client that asks again finds its own value there, and is refused: that is not to know either.
        assert stats.backend_errors + stats.fills_refused == 1
        assert await pair.q.get("k", MISS) == "loaded"
        await pair.q.delete("k")
        assert await pair.p.get("k", MISS) == MISS
        await pair.p.aclose()


@every_engine
@pytest.mark.parametrize("what", ["D", "S", "S, then D"])
async def test_7_a_load_of_what_its_own_process_changed_does_not_ask_the_server(engine: Engine, what: str):
    """p starts L; p: D, or S, or both; p's fill is refused before the server is asked."""
    fills = 0
    backend = engine.open()
    kind: Any = type(backend)

    class Counted(kind):  # type: ignore[misc]
        """Counts its fills."""

        __slots__ = ()

        async def set_if(self, *args: Any, **options: Any) -> bool:
            nonlocal fills
            fills += 1
            return bool(await super().set_if(*args, **options))

    backend.__class__ = Counted
    pair = Pair(engine, backend)
    try:
        task = await pair.start()
        if "S" in what:
            await pair.p.set("k", "set")
        if "D" in what:
            await pair.p.delete("k")
        fills = 0
        await pair.end(task)
        assert fills == 0
        assert pair.p.stats().fills_refused == 1
        left = "set" if what == "S" else MISS
        assert await pair.p.get("k", MISS) == left
        assert await pair.q.get("k", MISS) == left
    finally:
        backend.__class__ = kind


@every_engine
async def test_a_load_longer_than_a_tombstone_lives_is_not_stored(engine: Engine):
    """p starts L; q: D; the tombstone expires; p fills: refused, as nothing proves nothing any more."""
    pair = Pair(engine)
    task = await pair.start()
    await pair.q.delete("k")
    engine.clock.advance(61)
    await engine.vanish()
    await pair.refused(task)


@every_engine
async def test_a_load_just_shorter_than_that_is_stored(engine: Engine):
    """p starts L, which takes fifty seconds: stored."""
    pair = Pair(engine)
    task = await pair.start()
    engine.clock.advance(50)
    await pair.stored(task)
