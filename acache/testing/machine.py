"""`backend_machine`: a backend and a dictionary, driven side by side by hypothesis.

Hypothesis is needed where this is imported, and nowhere else in acache.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from ..backends.base import Add, Backend, Batch, Cas, Clear, Counter, Scan, Stream, Touch, Version
from ..entry import HEAD_BYTES, counter
from ..errors import DecodeError, KeyMissing
from .conformance import BackendConformance
from .conformance.harness import expecting, settled

try:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
except ImportError as error:  # pragma: no cover - shown by a test that runs without it
    msg = "backend_machine needs hypothesis: pip install 'acache[testing]'"
    raise ImportError(msg) from error

__all__ = ["backend_machine"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_LONG: Final = 300.0
_NAMES: Final = ("a", "b", "ab", "a*", "A", "b:c")
_names: Final = st.sampled_from(_NAMES)
_prefixes: Final = st.sampled_from(("", "a", "a*", "b", "A"))
_values: Final = st.one_of(
    st.binary(max_size=60),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: b"%d" % number),
    st.sampled_from((b"", b"0", b"-1", b"a", b"b")),
    st.sampled_from((HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 70_000)).map(lambda size: b"x" * size),
)
_deltas: Final = st.one_of(st.integers(-3, 3), st.sampled_from((2**63 - 1, -(2**63), 2**62)))
_ttls: Final = st.sampled_from((_LONG, None))


@dataclass(frozen=True, slots=True)
class _Look:
    """What `get_versioned` saw, and which write it was that had made it."""

    version: Version
    data: bytes | None
    write: int


def backend_machine(
    build: Callable[[], Backend], *, suite: type[BackendConformance] = BackendConformance
) -> type[RuleBasedStateMachine]:
    """Return a state machine that does to a backend and to a dictionary the same, and compares what they say.

    ``TestMyMachine = backend_machine(lambda: MyBackend(...)).TestCase`` runs it under pytest or unittest; where the
    backend comes from a fixture, ``run_state_machine_as_test(backend_machine(...))`` does.

    Args:
        build: makes an unconnected backend, once for each example; each example uses keys of its own and removes them.
        suite: how time passes for this engine, and what is short for it: its conformance class.
    """

    class BackendMachine(_Machine):
        build_backend = staticmethod(build)
        make_suite = suite

    return BackendMachine


def _able(*capabilities: type) -> Callable[[F], F]:
    """Let a rule run only where the backend has these capabilities."""

    def can(machine: Any) -> bool:
        return all(isinstance(machine.backend, capability) for capability in capabilities)

    return precondition(can)


class _Machine(RuleBasedStateMachine):
    build_backend: ClassVar[Any]
    make_suite: ClassVar[type[BackendConformance]]

    def __init__(self) -> None:
        super().__init__()
        self.suite: Final = self.make_suite()
        self.backend: Any = self.build_backend()
        self.runner: Final = asyncio.Runner()
        self.stem: Final = f"{uuid.uuid4().hex}:"
        self.model: Final[dict[str, bytes]] = {}
        self.lasting: Final[set[str]] = set()
        """The keys without a deadline."""
        self.cancelled: Final[list[str]] = []
        self.writes: Final[dict[str, int]] = {}
        self.looks: Final[dict[str, _Look]] = {}

    def run(self, operation: Awaitable[T]) -> T:
        async def wait() -> T:
            async with asyncio.timeout(60):
                return await operation

        return self.runner.run(wait())

    def put(self, key: str, data: bytes, ttl: float | None) -> None:
        self.model[key] = data
        self.writes[key] = self.writes.get(key, 0) + 1
        (self.lasting.add if ttl is None else self.lasting.discard)(key)

    def drop(self, key: str) -> bool:
        self.lasting.discard(key)
        return self.model.pop(key, None) is not None

    def teardown(self) -> None:
        async def close() -> None:
            for key in (*[self.stem + name for name in _NAMES], *self.cancelled):
                await self.backend.delete(key)
            await self.backend.aclose()

        try:
            self.run(close())
        finally:
            self.runner.close()

    # Backend --------------------------------------------------------------------------------------------------------

    @rule(name=_names)
    def read(self, name: str) -> None:
        assert self.run(self.backend.get(self.stem + name)) == self.model.get(self.stem + name)

    @rule(name=_names, data=_values, ttl=_ttls)
    def write(self, name: str, data: bytes, ttl: float | None) -> None:
        self.run(self.backend.set(self.stem + name, data, ttl=ttl))
        self.put(self.stem + name, data, ttl)

    @rule(name=_names)
    def remove(self, name: str) -> None:
        assert self.run(self.backend.delete(self.stem + name)) is self.drop(self.stem + name)

    @rule(data=_values, turns=st.integers(0, 40))
    def write_and_cancel(self, data: bytes, turns: int) -> None:
        """Under a key of its own: the engine may come to what was cancelled after it has come to the next command."""
        key = f"{uuid.uuid4().hex}:cancelled"
        self.cancelled.append(key)
        cancelled = self.run(settled(self.backend.set(key, data, ttl=_LONG), turns))
        found = self.run(self.backend.get(key))
        assert found == data or (cancelled and found is None)

    @rule(name=_names, first=_values, second=_values)
    def write_at_once(self, name: str, first: bytes, second: bytes) -> None:
        key = self.stem + name

        async def both() -> None:
            await asyncio.gather(*[self.backend.set(key, data, ttl=_LONG) for data in (first, second)])

        self.run(both())
        found = self.run(self.backend.get(key))
        assert found in (first, second)
        self.put(key, found, _LONG)

    @rule(data=_values, names=st.sets(_names, min_size=1))
    def let_it_expire(self, data: bytes, names: set[str]) -> None:
        """Write with a short ttl, in turn by each operation that can, and wait until it has ended.

        What has ended is not read here: that might remove it, and another operation should be the first to meet it.
        """
        ttl = self.suite.short(self.backend)
        for index, name in enumerate(sorted(names)):
            writes = self.brief_writes(self.stem + name, data, ttl)
            self.run(writes[index % len(writes)]())
            self.drop(self.stem + name)
            self.writes[self.stem + name] = self.writes.get(self.stem + name, 0) + 1
        self.run(self.suite.pass_time(self.suite.over(self.backend)))

    def brief_writes(self, key: str, data: bytes, ttl: float) -> list[Callable[[], Awaitable[object]]]:
        """Return what leaves an entry with this ttl, whatever was there before."""
        backend = self.backend
        writes: list[Callable[[], Awaitable[object]]] = [lambda: backend.set(key, data, ttl=ttl)]
        if isinstance(backend, Batch):
            writes.append(lambda: backend.set_many({key: data}, ttl=ttl))
        if isinstance(backend, Cas):
            writes.append(lambda: backend.swap(key, data, ttl=ttl))
        if isinstance(backend, Stream):
            writes.append(lambda: backend.store(key, [data], ttl=ttl))
        if isinstance(backend, Touch) and key in self.model:
            writes.append(lambda: backend.touch(key, ttl=ttl))
        if isinstance(backend, Add) and key not in self.model:
            writes.append(lambda: backend.add(key, data, ttl=ttl))
        return writes

    # Batch ----------------------------------------------------------------------------------------------------------

    @_able(Batch)
    @rule(names=st.lists(_names))
    def read_many(self, names: list[str]) -> None:
        keys = [self.stem + name for name in names]
        expected = {key: self.model[key] for key in keys if key in self.model}
        assert self.run(self.backend.get_many(keys)) == expected

    @_able(Batch)
    @rule(items=st.dictionaries(_names, _values), ttl=_ttls)
    def write_many(self, items: dict[str, bytes], ttl: float | None) -> None:
        self.run(self.backend.set_many({self.stem + name: data for name, data in items.items()}, ttl=ttl))
        for name, data in items.items():
            self.put(self.stem + name, data, ttl)

    @_able(Batch)
    @rule(names=st.lists(_names))
    def remove_many(self, names: list[str]) -> None:
        keys = [self.stem + name for name in names]
        assert self.run(self.backend.delete_many(keys)) == sum([self.drop(key) for key in keys])

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    @_able(Add)
    @rule(name=_names, data=_values, ttl=_ttls)
    def add(self, name: str, data: bytes, ttl: float | None) -> None:
        key = self.stem + name
        assert self.run(self.backend.add(key, data, ttl=ttl)) is (key not in self.model)
        if key not in self.model:
            self.put(key, data, ttl)

    @_able(Add)
    @rule(name=_names, values=st.lists(_values, min_size=2, max_size=5))
    def add_at_once(self, name: str, values: list[bytes]) -> None:
        key = self.stem + name

        async def all_of_them() -> list[bool]:
            return list(await asyncio.gather(*[self.backend.add(key, data, ttl=_LONG) for data in values]))

        won = self.run(all_of_them())
        assert won.count(True) == (key not in self.model)
        if key not in self.model:
            self.put(key, values[won.index(True)], _LONG)

    @_able(Counter)
    @rule(name=_names, delta=_deltas, ttl=_ttls)
    def increment(self, name: str, delta: int, ttl: float | None) -> None:
        key = self.stem + name
        before = counter(self.model[key]) if key in self.model else 0
        if before is None or not -(2**63) <= before + delta < 2**63:
            self.run(expecting(DecodeError, self.backend.incr(key, delta, ttl=ttl)))
            return
        assert self.run(self.backend.incr(key, delta, ttl=ttl)) == before + delta
        kept = ttl if key not in self.model else None if key in self.lasting else _LONG
        self.put(key, b"%d" % (before + delta), kept)

    @_able(Counter)
    @rule(name=_names, callers=st.integers(2, 6))
    def increment_at_once(self, name: str, callers: int) -> None:
        key = self.stem + name
        before = counter(self.model[key]) if key in self.model else 0
        if before is None or before + callers >= 2**63:
            return

        async def all_of_them() -> list[int]:
            return list(await asyncio.gather(*[self.backend.incr(key, 1, ttl=_LONG) for _ in range(callers)]))

        assert sorted(self.run(all_of_them())) == list(range(before + 1, before + callers + 1))
        self.put(key, b"%d" % (before + callers), None if key in self.lasting else _LONG)

    @_able(Touch)
    @rule(name=_names, ttl=_ttls)
    def touch(self, name: str, ttl: float | None) -> None:
        key = self.stem + name
        assert self.run(self.backend.touch(key, ttl=ttl)) is (key in self.model)
        if key in self.model:
            (self.lasting.add if ttl is None else self.lasting.discard)(key)
            self.looks.pop(key, None)  # whether a new ttl is a new version is the engine's affair

    @_able(Touch)
    @rule(name=_names)
    def ask_for_the_ttl(self, name: str) -> None:
        key = self.stem + name
        if key not in self.model:
            self.run(expecting(KeyMissing, self.backend.ttl(key)))
            return
        left = self.run(self.backend.ttl(key))
        assert (left is None) is (key in self.lasting)
        assert left is None or 0 < left < _LONG + 10

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    @_able(Clear)
    @rule(name=_prefixes)
    def clear(self, name: str) -> None:
        self.run(self.backend.clear(self.stem + name))
        for key in [key for key in self.model if key.startswith(self.stem + name)]:
            self.drop(key)

    @_able(Scan)
    @rule(name=_prefixes)
    def scan(self, name: str) -> None:
        async def keys() -> set[str]:
            return {key async for key in self.backend.scan(self.stem + name)}

        assert self.run(keys()) == {key for key in self.model if key.startswith(self.stem + name)}

    # Cas ------------------------------------------------------------------------------------------------------------

    @_able(Cas)
    @rule(name=_names)
    def look(self, name: str) -> None:
        key = self.stem + name
        data, version = self.run(self.backend.get_versioned(key))
        assert data == self.model.get(key)
        self.looks[key] = _Look(version, data, self.writes.get(key, 0))

    @_able(Cas)
    @rule(name=_names, data=_values, ttl=_ttls)
    def write_if_unchanged(self, name: str, data: bytes, ttl: float | None) -> None:
        key = self.stem + name
        look, now = self.looks.get(key), self.model.get(key)
        if look is None:
            return
        stored = self.run(self.backend.set_if(key, data, look.version, ttl=ttl))
        if now is None or (look.data is not None and look.write == self.writes[key]):
            assert stored is True
        elif look.data is None or look.data[:HEAD_BYTES] != now[:HEAD_BYTES]:
            assert stored is False
        if stored:
            self.put(key, data, ttl)

    @_able(Cas)
    @rule(name=_names, theirs=_values, mine=_values)
    def write_after_another(self, name: str, theirs: bytes, mine: bytes) -> None:
        """A looks, B writes, A compares and sets."""
        key = self.stem + name
        self.look(name)
        self.write(name, theirs, _LONG)
        self.write_if_unchanged(name, mine, _LONG)
        assert self.run(self.backend.get(key)) == self.model[key]

    @_able(Cas)
    @rule(name=_names, data=_values, ttl=_ttls)
    def swap(self, name: str, data: bytes, ttl: float | None) -> None:
        key = self.stem + name
        before, now = self.run(self.backend.swap(key, data, ttl=ttl)), self.model.get(key)
        assert (before is None) is (now is None)
        if before is not None and now is not None:
            assert now.startswith(before)
            assert len(before) >= min(len(now), HEAD_BYTES)
        self.put(key, data, ttl)

    # Stream ---------------------------------------------------------------------------------------------------------

    @_able(Stream)
    @rule(name=_names, chunks=st.lists(_values, max_size=5), ttl=_ttls)
    def write_by_chunks(self, name: str, chunks: list[bytes], ttl: float | None) -> None:
        self.run(self.backend.store(self.stem + name, chunks, ttl=ttl))
        self.put(self.stem + name, b"".join(chunks), ttl)

    @_able(Stream)
    @rule(name=_names)
    def read_by_chunks(self, name: str) -> None:
        async def whole() -> bytes | None:
            async with self.backend.open(self.stem + name) as chunks:
                return None if chunks is None else b"".join([chunk async for chunk in chunks])

        assert self.run(whole()) == self.model.get(self.stem + name)
