"""The topologies the laws hold over, and backends that can be stopped on either side of each call's effect."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar, Token
from dataclasses import replace
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final, Literal, Self, TypeAlias, cast

import pytest

from acache import Backend, Cache, Memory, MemoryBackend, Observer, Policy
from acache.backends.redis import RedisBackend
from acache.testing import FakeClock

When: TypeAlias = Literal["before", "after"]

PATIENT: Final = Policy(backend_timeout=30)
"""A policy under which a far tier that a test holds up is not given up."""

KINDS: Final = ("memory", "near+backend", "backend", "redis", "near+redis")
FAR: Final = tuple(kind for kind in KINDS if kind != "memory")


# ---------------------------------------------------------------------------------------------- stopping at a point

_inside: Final[ContextVar[bool]] = ContextVar("inside a call of the backend", default=False)


class Stop:
    """A point at which a call is held until the test lets it go."""

    def __init__(self, error: Exception | None) -> None:
        self.error: Final = error
        self.reached: Final = asyncio.Event()
        self.gate: Final = asyncio.Event()

    def release(self) -> None:
        """Let the call go on."""
        self.gate.set()


class Tracer:
    """Counts the await points of an operation, and holds the one it is told to.

    Points are the calls of the backend and the steps that a test's own loader declares, each with a side before and a
    side after its effect.  Numbers start at zero with `restart`.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.under_way = 0
        """Calls that are at the backend now, neither held nor finished."""
        self.everywhere: Callable[[str, When], Awaitable[None]] | None = None
        """Called at every point, to put a schedule of its own upon them."""
        self._stops: dict[tuple[int, When], Stop] = {}

    def restart(self) -> None:
        """Count from zero again, and stop nowhere."""
        self.calls = []
        self._stops = {}

    def stop(self, call: int, when: When, *, error: Exception | None = None) -> Stop:
        """Hold the call of this number, and make it raise ``error`` when it is let go."""
        stop = self._stops[call, when] = Stop(error)
        return stop

    async def reach(self, call: int, name: str, when: When) -> None:
        """Be at a point."""
        if self.everywhere is not None:
            await self.everywhere(name, when)
        if (stop := self._stops.pop((call, when), None)) is not None:
            stop.reached.set()
            await stop.gate.wait()
            if stop.error is not None:
                raise stop.error

    async def around(self, name: str, effect: Callable[[], Awaitable[Any]]) -> Any:
        """Carry out a call with its two points."""
        if _inside.get():  # an engine that uses one of its operations for another: one call, not two
            return await effect()
        call = len(self.calls)
        self.calls.append(name)
        await self.reach(call, name, "before")
        self.under_way += 1
        inside = _inside.set(name != "load")
        try:
            result = await effect()
        except Exception:
            self._leave(inside)
            await self.reach(call, name, "after")
            raise
        except BaseException:
            self._leave(inside)
            raise
        self._leave(inside)
        await self.reach(call, name, "after")
        return result

    def _leave(self, inside: Token[bool]) -> None:
        self.under_way -= 1
        _inside.reset(inside)

    async def load(self, value: Any) -> Any:
        """Be a loader with a point before and a point after it got its value."""

        async def nothing() -> Any:
            return value() if callable(value) else value

        return await self.around("load", nothing)


_OPERATIONS: Final = (
    "get", "set", "delete", "get_many", "set_many", "delete_many", "add", "incr", "touch", "ttl", "clear",
    "get_versioned", "set_if", "swap",
)  # fmt: skip


class TracedMemoryBackend(MemoryBackend):
    """A `MemoryBackend` with a tracer at its door."""

    tracer = Tracer()


class TracedRedisBackend(RedisBackend):
    """A `RedisBackend` with a tracer at its door."""

    tracer = Tracer()


class TracedPlainBackend:
    """The least an engine can be: the four operations of the seam, and no capability."""

    def __init__(self, store: MemoryBackend, tracer: Tracer) -> None:
        self._store = store
        self._tracer = tracer

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        return cast("bytes | None", await self._tracer.around("get", lambda: MemoryBackend.get(self._store, key)))

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._tracer.around("set", lambda: MemoryBackend.set(self._store, key, data, ttl=ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return bool(await self._tracer.around("delete", lambda: MemoryBackend.delete(self._store, key)))

    async def aclose(self) -> None:
        """See `Backend.aclose`."""


def _traced(kind: type[Any], name: str) -> Callable[..., Any]:
    operate = getattr(kind, name)

    async def traced(self: Any, *args: Any, **options: Any) -> Any:
        return await self.tracer.around(name, lambda: operate(self, *args, **options))

    return traced


for _name in _OPERATIONS:
    setattr(TracedMemoryBackend, _name, _traced(MemoryBackend, _name))
    setattr(TracedRedisBackend, _name, _traced(RedisBackend, _name))


# ------------------------------------------------------------------------------------------------------ topologies


class Topology:
    """One arrangement of tiers; every `cache` it makes stands for a process of its own over the same far tier."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind: Final = kind
        self.near: Final = "memory" in kind or "near" in kind
        self.redis: Final = "redis" in kind
        self.far: Final = kind != "memory"
        self.clock: Final = FakeClock()
        self.tracer: Final = Tracer()
        self.namespace: Final = f"laws-{uuid.uuid4().hex}"
        self.client_name: Final = self.namespace[:20]
        self._url: Final = f"{url}{'&' if '?' in url else '?'}client_name={self.client_name}" if self.redis else ""
        self._store: Final = TracedMemoryBackend(clock=self.clock)
        self._store.tracer = self.tracer
        self._caches: Final[list[Cache]] = []

    def __repr__(self) -> str:
        return f"<{self.kind}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.tracer.restart()
        self.tracer.everywhere = None
        for cache in self._caches:
            await cache.aclose()
        if self.redis:
            sweeper = RedisBackend.from_url(self._url, timeout=10, connect_timeout=10)
            await sweeper.clear(f"{self.namespace}")
            await sweeper.aclose()

    def backend(self, *, max_connections: int = 50) -> Backend | None:
        """Open the far tier once more."""
        if "plain" in self.kind:
            return TracedPlainBackend(self._store, self.tracer)
        if self.redis:
            redis = TracedRedisBackend.from_url(
                self._url, timeout=10, connect_timeout=10, max_connections=max_connections
            )
            redis.tracer = self.tracer
            return redis
        return self._store if self.far else None

    def cache(
        self,
        *,
        policy: Policy = PATIENT,
        near: bool | None = None,
        memory: Memory | int | None = None,
        namespace: str = "",
        observers: tuple[Observer, ...] = (),
        max_connections: int = 50,
    ) -> Cache:
        """Build a cache; the test's end closes it."""
        if not (self.near if near is None else near):
            memory = None
        elif memory is None:
            memory = 10_000
        cache = Cache(
            self.backend(max_connections=max_connections),
            memory=memory,
            namespace=self.namespace + namespace,
            policy=policy,
            clock=self.clock,
            observers=observers,
        )
        self._caches.append(cache)
        return cache

    def witness(self) -> Cache:
        """Build a cache that sees the far tier alone, and says so when it cannot."""
        return self.cache(near=False, policy=replace(PATIENT, on_backend_error="raise"))

    async def connections(self) -> int:
        """Tell how many connections to Redis the caches made here have open."""
        observer = RedisBackend.from_url(self._url.replace(self.client_name, "observer"), timeout=10)
        clients: bytes = await observer._do("CLIENT", "LIST")
        await observer.aclose()
        return clients.count(f" name={self.client_name} ".encode())

    async def vanish(self, key: str) -> None:
        """Take what the far tier holds under ``key`` away without a trace, as expiry and eviction do."""
        backend = self.backend()
        assert backend is not None
        kind = RedisBackend if self.redis else MemoryBackend
        await kind.delete(backend, f"{self.namespace}::{key}")  # type: ignore[arg-type]
        await backend.aclose()


@pytest.fixture(scope="session")
def make_topology(request: pytest.FixtureRequest) -> Callable[[str], Topology]:
    """Make topologies by their name."""

    def make(kind: str) -> Topology:
        url = request.getfixturevalue("redis_url") if "redis" in kind else ""
        return Topology(kind, url)

    return make


@pytest.fixture(params=KINDS)
async def topology(request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]) -> AsyncIterator[Topology]:
    """Give every arrangement in turn."""
    async with make_topology(request.param) as topology:
        yield topology


@pytest.fixture(params=FAR)
async def far_topology(
    request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]
) -> AsyncIterator[Topology]:
    """Give every arrangement with a far tier, which two caches can share."""
    async with make_topology(request.param) as topology:
        yield topology


@pytest.fixture(params=("near+plain", "plain"))
async def plain_topology(
    request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]
) -> AsyncIterator[Topology]:
    """Give the arrangements over an engine that cannot compare and set."""
    async with make_topology(request.param) as topology:
        yield topology


@pytest.fixture(params=("redis", "near+redis"))
async def redis_topology(
    request: pytest.FixtureRequest, make_topology: Callable[[str], Topology]
) -> AsyncIterator[Topology]:
    """Give the arrangements over Redis."""
    async with make_topology(request.param) as topology:
        yield topology


# ----------------------------------------------------------------------------------------------------- for all laws


@pytest.fixture(autouse=True)
async def nothing_left_running(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """See that no test leaves a task behind (law 9)."""
    if not asyncio.iscoroutinefunction(request.function):
        yield
        return
    before = asyncio.all_tasks()
    yield
    await settle()
    left = [task for task in asyncio.all_tasks() - before if not task.done() and task is not asyncio.current_task()]
    assert [task for task in left if task.get_name().startswith("acache")] == []


@pytest.fixture
def no_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """See that nothing was reported to asyncio's log, where exceptions nobody retrieved end."""
    with caplog.at_level(logging.ERROR, "asyncio"):
        yield
        gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def settle(turns: int = 20) -> None:
    """Let everything that can run without waiting for anybody run."""
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.fixture(name="settle")
def settle_fixture() -> Callable[..., Awaitable[None]]:
    """Return `settle`."""
    return settle


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Return a way to wait for something that only a turn of the loop, or a server's reply, brings about."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0)

    return wait


@pytest.fixture
def footprint() -> Callable[..., int]:
    """Return a count of the objects that can be reached from some roots, the module's own things left out."""

    def count(*roots: object) -> int:
        gc.collect()
        modules = {id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, ModuleType)}
        seen: set[int] = set()
        pending: list[object] = list(roots)
        while pending:
            thing = pending.pop()
            if id(thing) in seen or id(thing) in modules or isinstance(thing, type | ModuleType | FrameType):
                continue
            if isinstance(thing, asyncio.AbstractEventLoop):
                continue
            seen.add(id(thing))
            if isinstance(thing, FunctionType):
                pending += [thing.__closure__, thing.__dict__, thing.__defaults__, thing.__kwdefaults__]
            else:
                pending += gc.get_referents(thing)
        return len(seen)

    return count
