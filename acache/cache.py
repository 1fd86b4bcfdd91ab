"""`Cache`: the facade, and the only module with cache semantics.

Reading goes down a staircase (`Cache.get_or_load`): near tier, stale value, running flight; and inside the flight: near
tier again, far tier, loader, guarded fill, waiters.  Writing goes far tier first, then near.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import log
from random import random
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, ParamSpec, Self, TypeVar, cast, overload

from .backends.base import Backend, Version
from .backends.urls import open_backend
from .clock import FOREVER, Clock, Seconds, SystemClock, seconds, ttl_seconds
from .codecs import Codec, Msgpack
from .coherence import TagCell, Tags
from .entry import BARELY_FRESH, Entry, Envelope, new_token
from .errors import (
    BackendError,
    CacheClosed,
    ConfigurationError,
    DecodeError,
    InvalidKey,
    KeyMissing,
    LoadTimeout,
    short,
)
from .events import (
    BackendFailed,
    BreakerChanged,
    Coalesced,
    Counters,
    DecodeFailed,
    Event,
    Evicted,
    FillRefused,
    Hit,
    Invalidated,
    Loaded,
    LoadFailed,
    Miss,
    Observer,
    Stats,
    Stored,
    emit,
    logger,
)
from .keys import check_key, check_namespace
from .loading import UNSERVED, Batch, Flight, Flights, Load, Mark, NotLoaded, Watch
from .memoize import CachedFunction, Hooks, Rules, build, key_prefix
from .memory import Memory, Record, Space, stored_at
from .policy import DEFAULT, Default, Policy
from .remote import FILL_WITHIN, Breaker, Remote, Seen

__all__ = ["Cache", "cached"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")
Ttl = Seconds | Default | None

NEAR_TTL: Final = 5.0
"""Seconds for which a near copy of a far entry is trusted: the bound on how long a change by another process goes
unseen.  ``Memory(ttl=...)`` sets another."""
_BACKOFFS: Final = 1000
_GRACE: Final = 1.0
_LONGEST_TAG: Final = 1000
NEVER: Final = -FOREVER
_MISS: Final[Any] = object()
_UNKNOWN: Final[Any] = object()


class _Extra(NamedTuple):
    """What a near record carries beyond value and dates, when it carries anything."""

    cells: tuple[TagCell, ...]
    load_time: float


class _Fallback(NamedTuple):
    """What a flight offers that could not load: each waiter takes it or not, by its own policy."""

    value: Any
    fresh_until: float
    """Monotonic."""
    error: Exception | None
    """What the loader raised; ``None`` if it was not asked, because it failed a moment ago."""
    trace: TracebackType | None


class _Received(NamedTuple):
    """A far entry, decoded and found valid."""

    value: Any
    fresh_for: float
    """Seconds of freshness left; zero or less is stale."""
    ttl: float
    extra: _Extra | None


@dataclass(slots=True)
class _Attempt:
    """What a flight notes on its way down, for the fill to compare."""

    load: Load
    mark: Mark
    remote: Remote | None
    looked_at: float
    """When it looked at the far tier; monotonic."""
    version: Version = _UNKNOWN
    stale: _Received | None = None
    cells: tuple[TagCell, ...] = ()
    tokens: dict[str, bytes] = field(default_factory=dict)
    served: bool = False
    """Whether somebody has an answer already, so that the load is no miss."""

    @property
    def current(self) -> bool:
        """Whether nothing in this process wrote the key or its tags since."""
        return self.mark.intact and not any(cell.spoilt for cell in self.cells)


class _Scope:
    """What the views of one namespace share."""

    __slots__ = ("backoffs", "batches", "flights", "space", "tags", "watch")

    def __init__(self, space: Space | None) -> None:
        self.space: Final = space
        self.flights: Final = Flights()
        self.watch: Final = Watch()
        self.tags: Final = Tags()
        self.backoffs: Final[dict[str, float]] = {}
        self.batches: Final[set[asyncio.Task[None]]] = set()
        """The calls of batch loaders under way."""

    async def aclose(self) -> None:
        """End every load, and wait until they have ended."""
        await self.flights.aclose()
        loop, here = asyncio.get_running_loop(), asyncio.current_task()
        batches = [task for task in self.batches if task.get_loop() is loop and task is not here]
        for task in batches:
            if not task.cancelling():  # a second time would cut its cleaning up short
                task.cancel()
        if batches:
            await asyncio.wait(batches)


@dataclass(slots=True)
class _Shared:
    """What a cache and its views share."""

    backend: Backend | None
    memory: Memory | None
    clock: Clock
    observers: tuple[Observer, ...]
    counters: Counters
    breaker: Breaker
    scopes: dict[str, _Scope]
    functions: set[tuple[str, str]]
    closed: bool = False

    def scope(self, namespace: str) -> _Scope:
        scope = self.scopes.get(namespace)
        if scope is None:
            space = None if self.memory is None else self.memory.space(namespace)
            scope = self.scopes[namespace] = _Scope(space)
        return scope


class Cache:
    """Memory in front of a far tier, with one load per missing value.

    Args:
        backend: the far tier; ``None`` for a cache that lives in this process only.  ``aclose`` closes it.
        memory: the near tier: a `Memory`, a number of entries, or ``None`` for no near tier.
        namespace: kept apart from all others, on both tiers.
        codec: how values become bytes for the far tier.
        policy: the rules where a call does not say otherwise.
        clock: for tests.
        observers: get every event.

    Values in the near tier are the objects themselves: treat what you get as read-only (or use
    ``Memory(isolate=True)``).

    Raises:
        ConfigurationError: arguments that contradict each other.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_counters",
        "_given_codec",
        "_insert",
        "_isolated",
        "_load_records",
        "_marks",
        "_namespace",
        "_near_ttl",
        "_now",
        "_observers",
        "_plain",
        "_plain_span",
        "_plain_ttl",
        "_plans",
        "_policy",
        "_records",
        "_remote",
        "_remotes",
        "_running",
        "_scope",
        "_shared",
        "_shortcuts",
        "_space",
        "_touch",
        "_ttl",
        "_unlink",
    )

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        memory: Memory | int | None = 10_000,
        namespace: str = "",
        codec: Codec | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        if backend is not None and (isinstance(backend, type) or not isinstance(backend, Backend)):
            msg = f"backend={backend!r} has no get, set, delete and aclose; Cache.from_url() opens a URL"
            raise ConfigurationError(msg)
        if backend is None and memory is None:
            msg = "a cache needs a tier: leave memory out, or pass a backend (NullBackend() to store nothing)"
            raise ConfigurationError(msg)
        if isinstance(memory, int):
            memory = Memory(max_entries=memory)
        policy, clock = policy or Policy(), clock or SystemClock()
        _check_parts(memory=memory, policy=policy, codec=codec, clock=clock)
        if not isinstance(observers, (list, tuple)) or not all(callable(observer) for observer in observers):
            msg = f"observers={observers!r}: pass a list of functions that take an event"
            raise ConfigurationError(msg)
        shared = _Shared(
            backend=backend,
            memory=memory,
            clock=clock,
            observers=tuple(observers),
            counters=Counters(),
            breaker=Breaker(clock, self._breaker_changed),
            scopes={},
            functions=set(),
        )
        if memory is not None:
            # Nothing of the near tier is touched before everything else is known to be right.
            check_namespace(namespace)
            _refuse_lease(policy)
            memory.claim()
            if observers:
                memory.on_removed = self._removed
        self._set_up(shared, check_namespace(namespace), codec, policy)

    def _set_up(self, shared: _Shared, namespace: str, codec: Codec | None, policy: Policy) -> None:
        _refuse_lease(policy)
        self._shared = shared
        self._namespace = namespace
        self._given_codec = codec
        self._policy = policy
        self._ttl = ttl_seconds(policy.ttl)
        self._clock = shared.clock
        self._now = shared.clock.monotonic
        self._observers = shared.observers
        self._counters = shared.counters
        scope = shared.scope(namespace)
        self._scope = scope
        self._space = scope.space
        self._plans: dict[Any, Policy] = {}
        self._remotes: dict[float, Remote] = {}
        self._remote = self._remote_for(policy)
        memory = shared.memory
        near_ttl = FOREVER if memory is None else memory.ttl
        self._near_ttl = NEAR_TTL if self._remote is not None and near_ttl == FOREVER else near_ttl
        if memory is not None:
            memory.keep_stale = max(memory.keep_stale, policy.stale_for)
        # The hit path reads this dict directly.  Where a hit takes more than a look (events to send, copies to make),
        # it is one that stays empty, and every call takes the long way.
        self._isolated = memory is not None and memory.isolate
        direct = memory is not None and not self._isolated and not shared.observers
        self._records: dict[str, Record] = scope.space.records if scope.space is not None and direct else {}
        # A policy that refreshes ahead must see every hit of a load.
        self._load_records: dict[str, Record] = {} if _ahead(policy) else self._records
        # And the path of a plain write, where only the near tier has to know.
        self._plain = direct and self._remote is None and memory is not None and not memory.sized and not policy.jitter
        self._plain_ttl = min(self._ttl, self._near_ttl)
        self._plain_span = 0.0 if self._plain_ttl == FOREVER else self._plain_ttl
        self._insert: Callable[[str, Record, float], object] = _nothing if scope.space is None else scope.space.insert
        self._running = scope.flights.running
        self._marks = scope.watch.marks
        self._shortcuts: dict[str, Any] = {} if scope.space is None else scope.space.shortcuts
        self._unlink: Callable[[str], object] = _nothing if scope.space is None else scope.space.unlink
        self._touch: Callable[[str], object] = _nothing if scope.space is None else scope.space.touch

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Build a cache over the backend that ``url`` names; ``options`` are those of `Cache`.

        ``memory://`` (no far tier), ``file:///var/cache/app``, ``redis://host:port/db``, ``rediss://``, ``valkey://``,
        ``unix://path``, ``mongodb://host/database?collection=name``, ``mongodb+srv://``,
        ``memcached://host:port,host2:port``, ``null://``.
        Nothing connects yet.

        Raises:
            ConfigurationError: an unknown scheme, or options in the URL that the engine does not have.
            ImportError: the engine's client library is missing; the message names the extra to install.
        """
        return cls(open_backend(url), **options)

    def view(self, *, namespace: str | None = None, policy: Policy | None = None, codec: Codec | None = None) -> Cache:
        """Return a second facade over the same tiers; what is left out stays as it is here."""
        policy, codec = policy or self._policy, codec or self._given_codec
        _check_parts(policy=policy, codec=codec)
        view = object.__new__(Cache)
        view._set_up(self._shared, self._namespace if namespace is None else check_namespace(namespace), codec, policy)
        return view

    def __repr__(self) -> str:
        shared = self._shared
        tiers = " over ".join(repr(tier) for tier in (shared.memory, shared.backend) if tier is not None)
        return f"<Cache {self._namespace!r} {tiers}{' closed' if shared.closed else ''}>"

    @property
    def namespace(self) -> str:
        """The namespace of this facade; ``""`` for none."""
        return self._namespace

    @property
    def policy(self) -> Policy:
        """The rules where a call does not say otherwise."""
        return self._policy

    @property
    def _codec(self) -> Codec:
        if self._given_codec is None:
            self._given_codec = Msgpack()
        return self._given_codec

    # Life -----------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the cache; also again, after it was closed: an application that is started twice has one cache.

        A backend with an injected client is as open as its client.
        """
        self._shared.closed = self._shared.breaker.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel running loads (their callers get ``CacheClosed``), drop the near tier, close the backend.

        Twice is harmless.  It closes every view too.  ``async with`` opens it again.
        """
        shared = self._shared
        if shared.closed:
            return
        shared.closed = True
        if shared.memory is not None:
            shared.memory.clear()
        for scope in shared.scopes.values():
            await scope.aclose()
        if shared.backend is not None:
            # What is under way may be making a connection, which could not be closed yet.
            await shared.breaker.drain(_GRACE)
            await shared.backend.aclose()

    def _check_open(self) -> None:
        if self._shared.closed:
            msg = "this cache was closed: open it again with `async with`, or build a new one"
            raise CacheClosed(msg)

    # Reading --------------------------------------------------------------------------------------------------------

    @overload
    async def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def get(self, key: str, *, type: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...

    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """Return the fresh value under ``key``, or ``default``.

        ``None`` is a value like any other; `get_entry` tells a stored ``None`` from a miss.

        Args:
            key: any non-empty text.
            default: returned on a miss.
            type: what a far value is decoded as; needed for classes that the codec does not know.

        Raises:
            InvalidKey: not a non-empty ``str``.
            BackendError: the far tier failed, and the policy says ``on_backend_error="raise"``.
        """
        # The hit path.  One dict, one clock, no call but the clock's and the note for LRU.
        try:
            value, fresh_until, _, extra = self._records[key]
            if extra is None and fresh_until > self._now():
                self._counters.hits_near += 1
                self._touch(key)
                return value
        except (KeyError, TypeError):
            pass
        return await self._get(key, default, type)

    async def _get(self, key: str, default: Any, type_: Any) -> Any:
        key = check_key(key)
        value = self._near_fresh(key, type_)
        if value is not _MISS:
            return value
        if self._remote is not None:
            mark = self._scope.watch.open(key)
            try:
                received = await self._receive(key, await self._remote.peek(key), type_)
                if received is not None and received.fresh_for > 0:
                    if mark.intact:
                        self._keep_received(key, received)
                    self._note_hit(key, "far")
                    return received.value
            except BackendError as error:
                self._tolerate("get", key, error)
            finally:
                self._scope.watch.close(key, mark)
        self._note_miss(key)
        return default

    async def get_entry(self, key: str, *, type: Any = None) -> Entry | None:
        """Return the fresh entry under ``key`` with its dates and tags, or ``None``.

        Asks the far tier where there is one: near copies do not carry the dates of the original.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        key = check_key(key)
        self._check_open()
        wall = self._clock.wall()
        if self._remote is None:
            record = self._near_valid(key, type)
            now = self._now()
            if record is None or record[1] <= now:
                self._note_miss(key)
                return None
            value = self._near_value(record, type)
            self._note_hit(key, "near")
            fresh_until = None if record[1] == FOREVER else wall + record[1] - now
            return Entry(
                value=value,
                created_at=wall - (now - stored_at(record)),
                fresh_until=fresh_until,
                expires_at=None if fresh_until is None else fresh_until + self._policy.stale_for,
                tags=() if record[3] is None else tuple(cell.tag for cell in record[3].cells),
                tier="near",
            )
        try:
            seen = await self._remote.peek(key)
            received = await self._receive(key, seen, type)
        except BackendError as error:
            self._tolerate("get_entry", key, error)
            self._note_miss(key)
            return None
        if received is None or received.fresh_for <= 0:
            self._note_miss(key)
            return None
        self._note_hit(key, "far")
        envelope = seen.envelope
        if envelope is None:
            return Entry(value=received.value, created_at=wall, fresh_until=None, expires_at=None, tier="far")
        return Entry(
            value=received.value,
            created_at=envelope.created_at,
            fresh_until=None if envelope.fresh_for == FOREVER else envelope.created_at + envelope.fresh_for,
            expires_at=None if envelope.keep_for == FOREVER else envelope.created_at + envelope.keep_for,
            tags=tuple(tag for tag, _ in envelope.tags),
            tier="far",
        )

    def peek(self, key: str, default: Any = None) -> Any:
        """Return the fresh value in the near tier, or ``default``; synchronous, asks nobody else.

        Raises:
            InvalidKey: not a non-empty ``str``.
        """
        self._check_open()
        record = self._near_valid(check_key(key))
        if record is None or record[1] <= self._now():
            return default
        return self._near_value(record)

    async def has(self, key: str) -> bool:
        """Tell whether there is a fresh value under ``key``; asks the far tier where there is one, and counts nothing.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        key = check_key(key)
        self._check_open()
        if self._remote is None:
            record = self._near_valid(key)
            return record is not None and record[1] > self._now()
        try:
            received = await self._receive(key, await self._remote.peek(key), None, decode=False)
        except BackendError as error:
            self._tolerate("has", key, error)
            return False
        return received is not None and received.fresh_for > 0

    async def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """Return the fresh values among ``keys``; what is missing is left out.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        wanted = dict.fromkeys([check_key(key) for key in _several(keys, "keys")])
        found = await self._find(wanted, type)
        for key in wanted:
            if key not in found:
                self._note_miss(key)
        return found

    async def _find(self, keys: Iterable[str], type_: Any) -> dict[str, Any]:
        """Return the fresh values, and count the hits; the misses are the caller's."""
        found: dict[str, Any] = {}
        missing: list[str] = []
        for key in keys:
            value = self._near_fresh(key, type_)
            if value is _MISS:
                missing.append(key)
            else:
                found[key] = value
        if missing and self._remote is not None:
            found |= await self._get_far(missing, type_)
        return found

    async def _get_far(self, keys: list[str], type_: Any) -> dict[str, Any]:
        assert self._remote is not None  # noqa: S101 - for the type checker
        watch = self._scope.watch
        marks = {key: watch.open(key) for key in keys}
        found: dict[str, Any] = {}
        try:
            try:
                there: Mapping[str, Seen] = await self._remote.read_many(keys)
            except BackendError as error:
                self._tolerate("get_many", "", error)
                there = error.found
            for key, seen in there.items():
                received = await self._receive(key, seen, type_)
                if received is not None and received.fresh_for > 0:
                    if marks[key].intact:
                        self._keep_received(key, received)
                    self._note_hit(key, "far")
                    found[key] = received.value
        except BackendError as error:
            self._tolerate("get_many", "", error)
        finally:
            for key, mark in marks.items():
                watch.close(key, mark)
        return found

    async def ttl(self, key: str) -> float | None:
        """Return the seconds for which the value under ``key`` stays fresh; ``None`` for ever.

        Raises:
            KeyMissing: there is none.
            BackendError: the far tier failed; without it this question has no answer.
        """
        key = check_key(key)
        self._check_open()
        left = 0.0
        if self._remote is None:
            record = self._near_valid(key)
            left = 0.0 if record is None else record[1] - self._now()
        else:
            seen = await self._remote.peek(key)
            if seen.number is not None:
                return await self._remote.counter_ttl(key)
            received = await self._receive(key, seen, None, decode=False)
            left = 0.0 if received is None else received.fresh_for
        if left <= 0:
            msg = f"there is no entry under {key!r}"
            raise KeyMissing(msg)
        return None if left == FOREVER else left

    # Writing --------------------------------------------------------------------------------------------------------

    async def set(self, key: str, value: Any, *, ttl: Ttl = DEFAULT, tags: Iterable[str] = ()) -> None:
        """Store ``value`` under ``key``, over whatever is there.

        It wins over a load of the same key that is running now: that load's value goes to its callers only.

        Args:
            key: any non-empty text.
            value: anything the codec can store exactly; without a far tier, anything.
            ttl: seconds above zero or a ``timedelta``; ``None`` never expires; left out, the policy's.
            tags: names under which `invalidate_tags` finds it.

        Raises:
            InvalidKey, ConfigurationError, EncodeError: before anything is stored.
            BackendError: the far tier failed, and the policy says ``on_backend_error="raise"``.
        """
        # The path of a plain write: nobody to tell, nothing to measure, the policy's ttl.
        if self._plain and ttl is DEFAULT and not tags and type(key) is str:
            now = self._now()
            record = (value, now + self._plain_ttl, self._plain_span or now, None)
            if self._running or self._marks:
                self._forget(key)
            if key in self._records:
                if self._shortcuts:
                    self._unlink(key)
                self._records[key] = record
                self._touch(key)
                return
            if key and key.isascii() and not self._shared.closed:
                self._insert(key, record, now)
                return
        self._check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        names = _tag_names(tags) if tags else ()
        if self._remote is None:
            self._forget(key)
            cells = self._scope.tags.cells(names) if names else ()
            self._keep(key, value, lifetime, cells=cells)
        else:
            await self._write({key: value}, lifetime, names, "set")
        if self._observers:
            self._emit(Stored(namespace=self._namespace, key=key, ttl=_finite(lifetime)))

    async def _write(self, items: Mapping[str, Any], lifetime: float, names: tuple[str, ...], operation: str) -> None:
        assert self._remote is not None  # noqa: S101 - for the type checker
        payloads = {key: self._codec.encode(value) for key, value in items.items()}
        cells = self._scope.tags.cells(names)
        writing = _Writing(self, operation, items, loud=False)
        try:
            async with writing:
                tokens = await self._remote.make_tag_tokens(names) if names else {}
                envelopes = {key: self._envelope(payload, lifetime, tokens) for key, payload in payloads.items()}
                if len(envelopes) == 1:
                    for key, envelope in envelopes.items():
                        await self._remote.write(key, envelope)
                else:
                    await self._remote.write_many(envelopes)
        except BackendError as error:
            self._tolerate(operation, next(iter(items)) if len(items) == 1 else "", error)
        lifetime = self._until_due(lifetime, lifetime, self._policy)
        for key in writing.settled:
            self._keep(key, items[key], lifetime, cells=cells)

    async def add(self, key: str, value: Any, *, ttl: Ttl = DEFAULT, tags: Iterable[str] = ()) -> bool:
        """Store ``value`` if there is no fresh value under ``key``; of concurrent callers one gets ``True``.

        Raises:
            InvalidKey, ConfigurationError, EncodeError: before anything is stored.
            BackendError: the far tier did not say who won.
        """
        self._check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        names = _tag_names(tags)
        cells = self._scope.tags.cells(names)
        if self._remote is None:
            record = self._near_valid(key)
            if record is not None and record[1] > self._now():
                return False
            self._forget(key)
            self._keep(key, value, lifetime, cells=cells)
        else:
            payload = self._codec.encode(value)
            async with _Writing(self, "add", (key,)) as writing:
                tokens = await self._remote.make_tag_tokens(names) if names else {}
                if not await self._remote.add(key, self._envelope(payload, lifetime, tokens)):
                    return False
            for settled in writing.settled:
                self._keep(settled, value, lifetime, cells=cells)
        if self._observers:
            self._emit(Stored(namespace=self._namespace, key=key, ttl=_finite(lifetime)))
        return True

    async def set_many(self, items: Mapping[str, Any], *, ttl: Ttl = DEFAULT, tags: Iterable[str] = ()) -> None:
        """Store every item, with one ttl and the same tags.

        Raises:
            InvalidKey, ConfigurationError, EncodeError: before anything is stored.
            BackendError: as for `set`; some of the items may have been stored.
        """
        self._check_open()
        lifetime = self._lifetime(ttl)
        names = _tag_names(tags)
        if not isinstance(items, Mapping):
            msg = f"items={short(items)}: pass a dict of values by key"
            raise ConfigurationError(msg)
        items = {check_key(key): value for key, value in items.items()}
        if self._remote is None:
            cells = self._scope.tags.cells(names)
            extra, now = _Extra(cells, 0.0) if cells else None, self._now()
            for key, form in [(key, self._near_form(value)) for key, value in items.items()]:
                self._forget(key)
                self._put(key, form, lifetime, extra, now)
        else:
            await self._write(items, lifetime, names, "set_many")
        if self._observers:
            for key in items:
                self._emit(Stored(namespace=self._namespace, key=key, ttl=_finite(lifetime)))

    async def touch(self, key: str, *, ttl: Ttl) -> bool:
        """Give the entry under ``key`` a new ttl, counted from now; tell whether there is one.

        Raises:
            InvalidKey, ConfigurationError: as for `set`.
            BackendError: the far tier did not confirm.
        """
        self._check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        if self._remote is not None:
            async with _Writing(self, "touch", (key,)):
                return await self._remote.touch(key, lifetime, self._policy.stale_for)
        record = self._near_valid(key)
        now = self._now()
        if record is None or record[1] <= now:
            return False
        self._put(key, record[0], lifetime, record[3], now)
        return True

    async def incr(self, key: str, delta: int = 1, *, ttl: Ttl = DEFAULT) -> int:
        """Add ``delta`` to the counter under ``key`` and return the sum; atomic over all processes.

        A missing counter starts at zero with ``ttl``; an existing one keeps the time it has.  The value is a 64-bit
        integer, stored as plain digits.

        Raises:
            InvalidKey, ConfigurationError: before anything is stored.
            DecodeError: the value under ``key`` is not an integer, or the sum leaves 64 bits.
            BackendError: the far tier did not confirm; whether it added is unknown.
        """
        self._check_open()
        key = check_key(key)
        _check_delta(delta)
        lifetime = self._lifetime(ttl)
        if self._remote is not None:
            async with _Writing(self, "incr", (key,)):
                return await self._remote.incr(key, delta, lifetime, lambda envelope: self._decode(envelope, None))
        record = self._near_valid(key)
        now = self._now()
        value, extra = 0, None
        if record is not None and record[1] > now:
            value, lifetime, extra = self._near_value(record), record[1] - now, record[3]
        if type(value) is not int or not -(2**63) <= value + delta < 2**63:
            msg = f"cannot add {short(delta)} to {key!r}: it holds {short(value)}, and counters are 64-bit integers"
            raise DecodeError(msg)
        self._forget(key)
        self._put(key, self._near_form(value + delta), lifetime, extra, now)
        return value + delta

    async def decr(self, key: str, delta: int = 1, *, ttl: Ttl = DEFAULT) -> int:
        """Subtract; see `incr`."""
        _check_delta(delta)
        return await self.incr(key, -delta, ttl=ttl)

    # Removing -------------------------------------------------------------------------------------------------------

    async def delete(self, key: str) -> bool:
        """Remove the value under ``key``; tell whether there was one.

        When it has returned, no load that began before can bring the old value back.

        Raises:
            InvalidKey: not a non-empty ``str``.
            BackendError: the far tier did not confirm; it may still hold the old value.
        """
        self._check_open()
        key = check_key(key)
        if self._remote is None:
            record = self._near_valid(key)
            existed = record is not None and record[1] > self._now()
            self._forget(key)
            self._drop(key)
        else:
            async with _Writing(self, "delete", (key,)):
                existed = await self._remote.delete(key)
        self._note_invalidated("delete", key)
        return existed

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove the values under ``keys``; tell how many there were.

        Raises:
            InvalidKey, BackendError: as for `delete`; on an error some may have been removed.
        """
        self._check_open()
        wanted = list(dict.fromkeys([check_key(key) for key in _several(keys, "keys")]))
        if self._remote is None:
            return sum([await self.delete(key) for key in wanted])
        async with _Writing(self, "delete_many", wanted):
            count = await self._remote.delete_many(wanted)
        for key in wanted:
            self._note_invalidated("delete", key)
        return count

    async def invalidate_tags(self, *tags: str) -> None:
        """Make every value that carries one of ``tags`` a miss, at a cost that does not depend on their number.

        When it has returned, no load that began before can store a value under these tags.

        Raises:
            ConfigurationError: a tag that is not a non-empty ``str``.
            BackendError: the far tier did not confirm; other processes may still see the old values.
        """
        self._check_open()
        names = _tag_names(tags)
        cells = self._scope.tags
        self._scope.flights.forget_tagged(names)
        cells.spoil(names)
        if self._remote is not None:
            try:
                await self._remote.replace_tag_tokens(names)
            except BackendError as error:
                self._note_failure("invalidate_tags", "", error, raised=True)
                raise
            finally:
                # A load or read that began meanwhile may have matched the old tokens.
                self._scope.flights.forget_tagged(names)
                cells.spoil(names)
        self._note_invalidated("tags", "", names)

    async def clear(self) -> None:
        """Remove everything in this namespace.

        Raises:
            ConfigurationError: over a far tier, without a namespace: it would take other programs' keys along.
            BackendError: the far tier did not confirm.
        """
        self._check_open()
        self._forget_all()
        if self._remote is not None:
            try:
                await self._remote.clear()
            except BackendError as error:
                self._note_failure("clear", "", error, raised=True)
                raise
            finally:
                self._forget_all()
        self._note_invalidated("clear", "")

    def _forget_all(self) -> None:
        scope = self._scope
        scope.flights.forget_all()
        scope.watch.break_all()
        scope.tags.spoil_all()
        if scope.space is not None:
            scope.space.clear()

    # Loading --------------------------------------------------------------------------------------------------------

    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl: Ttl = DEFAULT,
        stale_while_revalidate: Seconds | Default = DEFAULT,
        stale_if_error: Seconds | Default = DEFAULT,
        tags: Iterable[str] = (),
        type: Any = None,
        policy: Policy | None = None,
    ) -> T:
        """Return the fresh value under ``key``, or call ``loader``, store what it returns, and return that.

        However many callers ask at a time, one load runs, in a task of its own and in a copy of the context of the
        caller who came first; a caller's cancellation touches nobody else, the last one's cancels the load.  A value
        that was set, deleted or invalidated during the load is not overwritten by it.

        Args:
            key: any non-empty text.
            loader: called without arguments; its result is awaited.
            ttl: as for `set`.
            stale_while_revalidate: seconds after ttl in which the old value is returned while one load runs behind.
            stale_if_error: seconds after ttl in which the old value is returned if the loader raises.
            tags: names under which `invalidate_tags` finds the value.
            type: what a far value is decoded as.
            policy: replaces the cache's policy for this call.

        Raises:
            RecursiveLoad: ``loader`` waits for this very value.
            LoadTimeout: the policy's ``load_timeout`` passed.
            EncodeError: the loaded value cannot be stored.
            Exception: whatever ``loader`` raised, as it is; it is not cached.
        """
        plan, names = self._policy, cast("tuple[str, ...]", ())
        if not (
            ttl is stale_while_revalidate is stale_if_error is DEFAULT
            and policy is None
            and tags == ()
            and callable(loader)
        ):
            _check_loader(loader)
            plan = self._plan(policy, ttl, stale_while_revalidate, stale_if_error)
            names = _tag_names(tags)
        if plan is self._policy or not _ahead(plan):
            try:  # the same hit path as in get()
                value, fresh_until, _, extra = self._load_records[key]
                if extra is None and fresh_until > self._now():
                    self._counters.hits_near += 1
                    self._touch(key)
                    return value  # type: ignore[no-any-return]
            except (KeyError, TypeError):
                pass
        return await self._resolve(Load(check_key(key), loader, plan, self._counters, names, type))  # type: ignore[no-any-return]

    async def refresh(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl: Ttl = DEFAULT,
        tags: Iterable[str] = (),
        type: Any = None,
        policy: Policy | None = None,
    ) -> T:
        """Load the value under ``key`` now, although there may be a fresh one; join a load that is already running.

        Raises:
            RecursiveLoad, LoadTimeout, EncodeError, Exception: as for `get_or_load`.
        """
        _check_loader(loader)
        plan = self._plan(policy, ttl, DEFAULT, DEFAULT)
        load = Load(check_key(key), loader, plan, self._counters, _tag_names(tags), type)
        return await self._reload(load)  # type: ignore[no-any-return]

    async def load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]],
        *,
        ttl: Ttl = DEFAULT,
        tags: Iterable[str] = (),
        type: Any = None,
        policy: Policy | None = None,
    ) -> dict[str, T]:
        """Return the values under ``keys``; those that are missing are loaded by one call of ``loader``.

        Each key has a flight of its own, so concurrent calls with overlapping keys load each key once.  What the
        loader's result leaves out is left out here, and not stored.

        Raises:
            Exception: as for `get_or_load`; one failing key fails the call, and the others are stored all the same.
        """
        _check_loader(loader)
        plan = self._plan(policy, ttl, DEFAULT, DEFAULT)
        names = _tag_names(tags)
        wanted = list(dict.fromkeys([check_key(key) for key in _several(keys, "keys")]))
        values: dict[str, T] = await self._find(wanted, type)
        missing = [key for key in wanted if key not in values]
        if not missing:
            return values
        batch: Batch[T] = Batch(missing, loader, self._scope.batches)
        loads = [
            self._one_of(batch, Load(key, partial(batch.load, key), plan, self._counters, names, type))
            for key in missing
        ]
        results = await asyncio.gather(*loads, return_exceptions=True)
        for key, result in zip(missing, results, strict=True):
            if isinstance(result, NotLoaded):
                continue
            if isinstance(result, BaseException):
                raise result
            values[key] = result
        return {key: values[key] for key in wanted if key in values}

    async def _one_of(self, batch: Batch[Any], load: Load) -> Any:
        if self._scope.flights.current(load.key) is not None:
            # It will be loaded by others.  To wait for that before loading the rest could be a deadlock: two calls,
            # each with a key that the other one is about to load.
            batch.decided(load.key)
        try:
            return await self._resolve(load)
        finally:
            batch.decided(load.key)

    async def _resolve(self, load: Load) -> Any:
        """Steps 1 to 4 of the staircase: near tier, stale value, running flight; all in one synchronous step."""
        while True:
            self._check_open()
            key, policy, flights, now = load.key, load.policy, self._scope.flights, self._now()
            record = self._near_valid(key, load.type)
            if record is not None and record[1] > now:
                self._note_hit(key, "near", counters=load.counters)
                if self._due(record, policy, now) and not self._backing_off(key, now) and flights.current(key) is None:
                    flights.start(key, partial(self._fly_again, load, record), tags=load.tags, background=True)
                return self._near_value(record, load.type)
            flight = flights.current(key)
            started = flight is None
            if flight is None:
                behind = policy.finish_abandoned
                flight = flights.start(key, partial(self._fly, load), tags=load.tags, background=behind)
                if record is not None and self._remote is None:
                    self._serve_stale(load, flight, self._stale(record, now, load.type))
            early = flight.early(_patience(policy), now)
            if early is not UNSERVED:
                flight.background = True
                self._note_hit(key, "near" if self._remote is None else "far", stale=True, counters=load.counters)
                return self._own(early, load)
            if not started:
                self._note_coalesced(load)
            result = await flights.join(flight, _patience(policy))
            if type(result) is not _Fallback:
                return self._own(result, load)
            window = policy.stale_for if result.error is None else policy.stale_if_error
            if self._now() - result.fresh_until < window:
                self._note_hit(key, "near" if self._remote is None else "far", stale=True, counters=load.counters)
                return self._own(result.value, load)
            if result.error is not None:
                raise result.error.with_traceback(result.trace)
            # Another caller's flight spared the loader, and this one may not have a stale value: a flight of its own.

    def _serve_stale(self, load: Load, flight: Flight, stale: _Received) -> bool:
        """Step 3: answer those who take a stale value; they need not wait for the load."""
        now = self._now()
        if -stale.fresh_for >= load.policy.stale_while_revalidate:
            return False
        return flight.serve_early(stale.value, -stale.fresh_for, now)

    def _spared(self, load: Load, stale: _Received | None) -> _Fallback | None:
        """Return the stale value to answer with if the loader failed a moment ago, and the policy has a window."""
        now = self._now()
        if stale is None or -stale.fresh_for >= load.policy.stale_for or not self._backing_off(load.key, now):
            return None
        return _Fallback(stale.value, now + stale.fresh_for, None, None)

    async def _reload(self, load: Load) -> Any:
        self._check_open()
        flight = self._scope.flights.current(load.key)
        if flight is None:
            fly = partial(self._fly_again, load, None)
            behind = load.policy.finish_abandoned
            flight = self._scope.flights.start(load.key, fly, tags=load.tags, background=behind)
        else:
            self._note_coalesced(load)
        result = await self._scope.flights.join(flight, NEVER)
        if type(result) is not _Fallback:
            return self._own(result, load)
        if result.error is None:
            return await self._reload(load)
        raise result.error.with_traceback(result.trace)

    async def _fly(self, load: Load, flight: Flight) -> Any:
        """Steps 5 and 6: look at the near tier again, then at the far tier."""
        key, policy = load.key, load.policy
        record = self._near_valid(key, load.type)
        if record is not None and record[1] > self._now():
            # 1: a caller finds nothing and starts this flight. 2: set() stores a value. 3: this flight begins.
            return self._near_value(record, load.type)
        attempt = _Attempt(load, self._scope.watch.open(key), self._remote_for(policy), self._now())
        try:
            if attempt.remote is None:
                if record is not None:
                    attempt.stale = self._stale(record, attempt.looked_at, load.type)
                return self._spared(load, attempt.stale) or await self._load(attempt, flight)
            received = await self._look(attempt, attempt.remote)
            if received is not None and received.fresh_for > 0:
                if attempt.mark.intact:
                    self._keep_received(key, received, policy)
                self._note_hit(key, "far", counters=load.counters)
                if not self._due_far(received, policy) or self._backing_off(key, self._now()):
                    return received.value
                attempt.served = flight.serve_early(received.value, -received.fresh_for, self._now())
            elif received is not None:
                if (spared := self._spared(load, received)) is not None:
                    return spared
                attempt.served = self._serve_stale(load, flight, received)
                if attempt.served:
                    self._note_hit(key, "far", stale=True, counters=load.counters)
            attempt.stale = received
            return await self._load(attempt, flight)
        finally:
            self._scope.watch.close(key, attempt.mark)

    async def _fly_again(self, load: Load, record: Record | None, flight: Flight) -> Any:
        """Load although there may be a fresh value: of what is there, only the version matters."""
        attempt = _Attempt(load, self._scope.watch.open(load.key), self._remote_for(load.policy), self._now())
        attempt.served = True  # what was there was fresh: this is no miss
        try:
            if attempt.remote is not None:
                try:
                    attempt.version = (await attempt.remote.read(load.key)).version
                except BackendError as error:
                    self._tolerate("refresh", load.key, error, load.policy)
            if record is not None:
                attempt.stale = self._stale(record, self._now(), load.type)
            return await self._load(attempt, flight)
        finally:
            self._scope.watch.close(load.key, attempt.mark)

    async def _look(self, attempt: _Attempt, remote: Remote) -> _Received | None:
        """Read the far tier for a flight; the version stays unknown if that failed and the policy tolerates it."""
        load = attempt.load
        try:
            seen = await remote.read(load.key)
            attempt.version = seen.version
            return await self._receive(load.key, seen, load.type)
        except BackendError as error:  # on the way to the entry, or to its tags
            self._tolerate("get_or_load", load.key, error, load.policy)
            return None

    async def _load(self, attempt: _Attempt, flight: Flight) -> Any:
        """Steps 8 to 10: take note of the tags, run the loader, fill; the flight tells the waiters."""
        load, stale = attempt.load, attempt.stale
        if not attempt.served and flight.early(FOREVER, self._now()) is UNSERVED:
            self._note_miss(load.key, load.counters)
        attempt.cells = self._scope.tags.cells(load.tags)
        if load.tags and attempt.remote is not None and attempt.version is not _UNKNOWN:
            try:
                attempt.tokens = await attempt.remote.make_tag_tokens(load.tags)
            except BackendError as error:
                self._tolerate("get_or_load", load.key, error, load.policy)
                attempt.version = _UNKNOWN
        if flight.abandoned:
            # A client library may have swallowed the cancellation on the way here.
            raise asyncio.CancelledError
        load.counters.loads += 1
        started = self._now()
        try:
            value = await self._run_softly(load, flight, stale)
        except NotLoaded:
            raise
        except Exception as error:
            load.counters.load_failures += 1
            took = self._now() - started
            if self._observers:
                self._emit(LoadFailed(namespace=self._namespace, key=load.key, seconds=took, error=error))
            if stale is None:
                raise
            self._back_off(load.key, load.policy)
            return _Fallback(stale.value, started + stale.fresh_for, error, error.__traceback__)
        took = self._now() - started
        self._scope.backoffs.pop(load.key, None)
        if self._observers:
            self._emit(Loaded(namespace=self._namespace, key=load.key, seconds=took))
        if flight.abandoned:
            # It was cancelled and would not stop; whoever came later has a load, and perhaps a value, of their own.
            self._note_refused(load)
        elif load.condition is None or load.condition(value):
            await self._fill(attempt, value, took)
        return value

    async def _run_softly(self, load: Load, flight: Flight, stale: _Received | None) -> Any:
        """Run the loader; after ``soft_timeout`` those who wait get the stale value."""
        policy = load.policy
        if policy.soft_timeout is None or stale is None or stale.fresh_for <= -policy.stale_for:
            return await self._run(load)

        def lose_patience() -> None:
            now = self._now()
            flight.serve_early(stale.value, now - began - stale.fresh_for, now)

        began = self._now()
        timer = self._clock.call_later(policy.soft_timeout, lose_patience)
        try:
            return await self._run(load)
        finally:
            timer.cancel()

    async def _run(self, load: Load) -> Any:
        timeout = load.policy.load_timeout
        if timeout is None:
            return await _awaitable(load)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a flight is a task
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            task.cancel()

        timer = self._clock.call_later(timeout, expire)
        try:
            return await _awaitable(load)
        except asyncio.CancelledError:
            if late and task.uncancel() == 0:
                msg = f"the loader of {load.key!r} took longer than load_timeout={timeout} s"
                raise LoadTimeout(msg) from None
            raise
        finally:
            timer.cancel()

    async def _fill(self, attempt: _Attempt, value: Any, took: float) -> None:
        """Step 9: store the loaded value, unless anything wrote the key or its tags since the load looked."""
        load, remote = attempt.load, attempt.remote
        if not attempt.current:
            self._note_refused(load)
            return
        lifetime = self._load_ttl(load, value)
        if remote is not None and attempt.version is not _UNKNOWN:
            payload = self._codec.encode(value)
            envelope = self._envelope(payload, lifetime, attempt.tokens, took, load.policy)
            filled = False
            if self._now() - attempt.looked_at <= FILL_WITHIN:
                try:
                    filled = await remote.fill(load.key, envelope, attempt.version)
                    if filled and not remote.guarded and not attempt.current:
                        # An engine that cannot compare and set may have put the old value over a newer one, or over
                        # nothing.  Nothing is the safe side.
                        await remote.delete(load.key)
                except BackendError as error:
                    # Whether it was stored is unknown, and so is whether it would have been refused: not near either.
                    self._note_failure("fill", load.key, error, raised=False)
                    return
            if not (filled and attempt.current):
                self._note_refused(load)
                return
        load_time = took if load.policy.early_refresh else 0.0
        if remote is not None:
            lifetime = self._until_due(lifetime, lifetime, load.policy)
        self._keep(load.key, value, lifetime, cells=attempt.cells, load_time=load_time)
        if self._observers:
            self._emit(Stored(namespace=self._namespace, key=load.key, ttl=_finite(lifetime)))

    def _stale(self, record: Record, now: float, type_: Any) -> _Received:
        return _Received(self._near_value(record, type_), record[1] - now, 0.0, None)

    @staticmethod
    def _load_ttl(load: Load, value: Any) -> float:
        policy = load.policy
        negative = value is None and policy.negative_ttl is not None
        return policy.shorten(ttl_seconds(policy.negative_ttl if negative else policy.ttl))

    def _due(self, record: Record, policy: Policy, now: float) -> bool:
        """Tell whether a fresh near value should be refreshed behind; over a far tier its dates decide instead."""
        if self._remote is not None or record[1] == FOREVER:
            return False
        load_time = 0.0 if record[3] is None else record[3].load_time
        return _early(policy, record[1] - now, record[2], load_time)

    def _due_far(self, received: _Received, policy: Policy) -> bool:
        if received.fresh_for == FOREVER:
            return False
        load_time = 0.0 if received.extra is None else received.extra.load_time
        return _early(policy, received.fresh_for, received.ttl, load_time)

    def _backing_off(self, key: str, now: float) -> bool:
        until = self._scope.backoffs.get(key)
        return until is not None and now < until

    def _back_off(self, key: str, policy: Policy) -> None:
        backoffs, now = self._scope.backoffs, self._now()
        if len(backoffs) >= _BACKOFFS:
            for old in [old for old, until in backoffs.items() if until <= now]:
                del backoffs[old]
            if len(backoffs) >= _BACKOFFS:
                backoffs.clear()
        backoffs[key] = now + policy.error_backoff

    def _plan(self, policy: Policy | None, ttl: Ttl, swr: Seconds | Default, sie: Seconds | Default) -> Policy:
        """Return the policy of one call."""
        base = policy or self._policy
        if policy is not None:
            _check_parts(policy=policy)
            _refuse_lease(base)
        if ttl is DEFAULT and swr is DEFAULT and sie is DEFAULT:
            plan = base
        else:
            if ttl is not DEFAULT and ttl is not None:
                ttl = ttl_seconds(ttl)
            swr = swr if swr is DEFAULT else seconds(swr, "stale_while_revalidate")
            sie = sie if sie is DEFAULT else seconds(sie, "stale_if_error")
            plan = self._plans.get((base, ttl, swr, sie)) or self._make_plan(base, ttl, swr, sie)
        if plan is not self._policy and self._shared.memory is not None:
            self._shared.memory.keep_stale = max(self._shared.memory.keep_stale, plan.stale_for)
        return plan

    def _make_plan(self, base: Policy, ttl: Any, swr: Any, sie: Any) -> Policy:
        changes = {"ttl": ttl, "stale_while_revalidate": swr, "stale_if_error": sie}
        plan = replace(base, **{name: value for name, value in changes.items() if value is not DEFAULT})
        if len(self._plans) >= 256:  # noqa: PLR2004 - ttls computed per call must not grow it for ever
            self._plans.clear()
        self._plans[base, ttl, swr, sie] = plan
        return plan

    # Decorating -----------------------------------------------------------------------------------------------------

    def cached(
        self,
        function: None = None,
        /,
        *,
        ttl: Ttl = DEFAULT,
        key: str | Callable[..., str] | None = None,
        tags: Iterable[str] = (),
        ignore: Iterable[str] = (),
        version: str | int | None = None,
        condition: Callable[[Any], bool] | None = None,
        negative_ttl: Seconds | Default | None = DEFAULT,
        stale_while_revalidate: Seconds | Default = DEFAULT,
        stale_if_error: Seconds | Default = DEFAULT,
        type: Any = None,
        policy: Policy | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], CachedFunction[P, R]]:
        """Decorate a coroutine function: its results are cached by its arguments.

        ``f(1)``, ``f(user_id=1)`` and the default spelling are one key; ``1``, ``1.0``, ``True`` and ``"1"`` are four.

        Args:
            function: nothing; the parentheses are needed.
            ttl: as for `set`.
            key: a template such as ``"user:{user_id}"``, or a function of the same arguments that returns the key; by
                default the function's full name and all its arguments.
            tags: templates too; see `invalidate_tags`.
            ignore: parameters that do not change the result, such as a database session, or ``self``.
            version: part of the key; change it when the results of before a deployment must not be used any more.
            condition: called with the result; tells whether to store it.
            negative_ttl: the ttl of a ``None``.
            stale_while_revalidate: as for `get_or_load`.
            stale_if_error: as for `get_or_load`.
            type: what a far value is decoded as; by default the return annotation.
            policy: replaces the cache's policy for this function; the rules named above win over it.

        Raises:
            ConfigurationError: not a coroutine function, or a template or ``ignore`` that names no parameter.
        """
        if function is not None:
            msg = "write @cache.cached() with parentheses: the rules go there"
            raise ConfigurationError(msg)
        plan = self._plan(policy, ttl, stale_while_revalidate, stale_if_error)
        if negative_ttl is not DEFAULT:
            plan = replace(plan, negative_ttl=cast("float | None", negative_ttl))  # the policy reads a timedelta too
        rules = Rules(policy=plan, key=key, tags=tags, ignore=ignore, version=version, condition=condition, type=type)

        def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> CachedFunction[P, R]:
            return build(function, rules, self._hooks(function, rules))

        return decorate

    def _hooks(self, function: Any, rules: Rules) -> Hooks:
        if rules.key is None and hasattr(function, "__qualname__"):
            prefix = (self._namespace, key_prefix(function, rules.version))
            if prefix in self._shared.functions and getattr(function, "__closure__", None):
                msg = (
                    f"{prefix[1]} is cached here already, and this one sees other variables of the function around it:"
                    " the two would answer each other's calls. Give each a key= or a version= of its own"
                )
                raise ConfigurationError(msg)
            self._shared.functions.add(prefix)
        direct = self._space is not None and self._records is self._space.records and not _ahead(rules.policy)
        return Hooks(
            resolve=self._resolve,
            reload=self._reload,
            delete=self.delete,
            peek=self.peek,
            store=self._store,
            counters=self._counters.part(),
            now=self._now,
            space=self._space if direct else None,
        )

    async def _store(self, key: str, value: Any, policy: Policy, tags: tuple[str, ...]) -> None:
        await self.set(key, value, ttl=policy.ttl, tags=tags)

    # The near tier --------------------------------------------------------------------------------------------------

    def _near_valid(self, key: str, type_: Any = None) -> Record | None:
        """Return the near record if its tags hold, and it can be read; fresh or not."""
        if self._space is None:
            return None
        record = self._space.records.get(key)
        if record is None:
            return None
        if record[3] is not None and any(cell.spoilt for cell in record[3].cells):
            self._space.pop(key)
            return None
        if self._isolated:
            try:
                self._near_value(record, type_)
            except DecodeError as error:
                self._note_garbage(key, error)
                return None
        return record

    def _near_fresh(self, key: str, type_: Any = None) -> Any:
        """Return the fresh near value and count the hit, or ``_MISS``."""
        self._check_open()
        record = self._near_valid(key, type_)
        if record is None or record[1] <= self._now():
            return _MISS
        self._note_hit(key, "near")
        return self._near_value(record, type_)

    def _near_value(self, record: Record, type_: Any = None) -> Any:
        return self._codec.decode(record[0], type_) if self._isolated else record[0]

    def _own(self, value: Any, load: Load) -> Any:
        """Give one of several waiters a value; a copy where the near tier is isolated."""
        return self._codec.decode(self._codec.encode(value), load.type) if self._isolated else value

    def _near_form(self, value: Any) -> Any:
        return self._codec.encode(value) if self._isolated else value

    def _keep(
        self, key: str, value: Any, lifetime: float, *, cells: tuple[TagCell, ...] = (), load_time: float = 0.0
    ) -> None:
        if self._space is not None:
            extra = _Extra(cells, load_time) if cells or load_time else None
            self._put(key, self._near_form(value), lifetime, extra, self._now())

    def _keep_received(self, key: str, received: _Received, policy: Policy | None = None) -> None:
        if self._space is not None and received.ttl > 0:
            lifetime = self._until_due(received.fresh_for, received.ttl, policy or self._policy)
            extra = received.extra if received.extra is not None and received.extra.cells else None
            if lifetime > 0:
                self._put(key, self._near_form(received.value), lifetime, extra, self._now())

    @staticmethod
    def _until_due(left: float, ttl: float, policy: Policy) -> float:
        """Return how long a near copy may hide the far entry's age: until a hit has to refresh it."""
        if policy.refresh_ahead is None or ttl == FOREVER:
            return left
        return left - ttl * (1.0 - policy.refresh_ahead)

    def _put(self, key: str, form: Any, lifetime: float, extra: _Extra | None, now: float) -> None:
        if self._space is None or self._shared.closed:
            return
        lifetime = min(lifetime, self._near_ttl)
        record = (form, now + lifetime, now if lifetime == FOREVER else lifetime, extra)
        self._space.put(key, record, now)

    def _drop(self, key: str) -> None:
        if self._space is not None:
            self._space.pop(key)

    def _forget(self, key: str) -> None:
        """Keep what is being loaded or read under ``key`` at this moment from being stored."""
        scope = self._scope
        scope.flights.forget(key)
        scope.watch.break_key(key)

    # The far tier ---------------------------------------------------------------------------------------------------

    def _remote_for(self, policy: Policy) -> Remote | None:
        """Return the far tier under the deadline of ``policy``."""
        shared, deadline = self._shared, policy.backend_timeout
        if shared.backend is None:
            return None
        remote = self._remotes.get(deadline)
        if remote is None:
            if len(self._remotes) >= 16:  # noqa: PLR2004 - deadlines computed per call must not grow it for ever
                self._remotes.clear()
            remote = self._remotes[deadline] = Remote(
                shared.backend, self._namespace, deadline=deadline, clock=shared.clock, breaker=shared.breaker
            )
        return remote

    async def _receive(self, key: str, seen: Seen, type_: Any, *, decode: bool = True) -> _Received | None:
        """Turn what a far read saw into a value, if it is one: readable, and with current tags."""
        if seen.garbage is not None:
            self._note_garbage(key, seen.garbage)
            return None
        if seen.number is not None:
            # A counter says nothing about its time to live, so it is never kept near.
            return _Received(seen.number, FOREVER, 0.0, None)
        envelope = seen.envelope
        if envelope is None:
            return None
        cells: tuple[TagCell, ...] = ()
        if envelope.tags:
            cells = self._scope.tags.cells(tag for tag, _ in envelope.tags)
            assert self._remote is not None  # noqa: S101 - for the type checker
            tokens = await self._remote.tag_tokens([tag for tag, _ in envelope.tags])
            if any(tokens.get(tag) != token for tag, token in envelope.tags) or any(cell.spoilt for cell in cells):
                return None
        try:
            value = self._decode(envelope, type_) if decode else None
        except DecodeError as error:
            self._note_garbage(key, error)
            return None
        left = seen.left(self._clock.wall())
        if left == BARELY_FRESH:
            return _Received(value, left, 0.0, None)
        extra = _Extra(cells, envelope.load_time) if cells or envelope.load_time else None
        return _Received(value, left, envelope.fresh_for, extra)

    def _decode(self, envelope: Envelope, type_: Any) -> Any:
        if envelope.codec != self._codec.name:
            msg = f"written by the codec {envelope.codec!r}, and this cache reads {self._codec.name!r}"
            raise DecodeError(msg)
        return self._codec.decode(envelope.payload, type_)

    def _envelope(
        self,
        payload: bytes,
        lifetime: float,
        tokens: Mapping[str, bytes],
        load_time: float = 0.0,
        policy: Policy | None = None,
    ) -> Envelope:
        keep_for = lifetime + (policy or self._policy).stale_for
        tags = tuple(tokens.items())
        wall = self._clock.wall()
        return Envelope(new_token(), wall, lifetime, keep_for, load_time, self._codec.name, tags, payload)

    def _lifetime(self, ttl: Ttl) -> float:
        """Return the seconds an explicit write gets."""
        lifetime = self._ttl if ttl is DEFAULT else ttl_seconds(ttl)
        return self._policy.shorten(lifetime) if self._policy.jitter else lifetime

    # Taking note ----------------------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        emit(self._observers, event)

    def _note_hit(
        self, key: str, tier: Literal["near", "far"], *, stale: bool = False, counters: Counters | None = None
    ) -> None:
        counters = counters or self._counters
        if stale:
            counters.hits_stale += 1
        elif tier == "near":
            counters.hits_near += 1
            self._touch(key)
        else:
            counters.hits_far += 1
        if self._observers:
            self._emit(Hit(namespace=self._namespace, key=key, tier=tier, stale=stale))

    def _note_miss(self, key: str, counters: Counters | None = None) -> None:
        (counters or self._counters).misses += 1
        if self._observers:
            self._emit(Miss(namespace=self._namespace, key=key))

    def _note_coalesced(self, load: Load) -> None:
        load.counters.coalesced += 1
        if self._observers:
            self._emit(Coalesced(namespace=self._namespace, key=load.key))

    def _note_refused(self, load: Load) -> None:
        load.counters.fills_refused += 1
        if self._observers:
            self._emit(FillRefused(namespace=self._namespace, key=load.key))

    def _note_invalidated(
        self, reason: Literal["delete", "tags", "clear"], key: str, tags: tuple[str, ...] = ()
    ) -> None:
        self._counters.invalidations += 1
        if self._observers:
            self._emit(Invalidated(namespace=self._namespace, key=key, reason=reason, tags=tags))

    def _note_garbage(self, key: str, error: DecodeError) -> None:
        self._counters.decode_failures += 1
        logger.warning("%r in namespace %r was taken as a miss: %s", key, self._namespace, error)
        if self._observers:
            self._emit(DecodeFailed(namespace=self._namespace, key=key, error=error))

    def _note_failure(self, operation: str, key: str, error: BackendError, *, raised: bool) -> None:
        self._counters.backend_errors += 1
        if self._observers:
            event = BackendFailed(namespace=self._namespace, key=key, operation=operation, error=error, raised=raised)
            self._emit(event)

    def _tolerate(self, operation: str, key: str, error: BackendError, policy: Policy | None = None) -> None:
        """Count a failure of the far tier, and raise it if the policy says so.  Called while ``error`` is handled."""
        raised = (policy or self._policy).on_backend_error == "raise"
        self._note_failure(operation, key, error, raised=raised)
        if raised:
            raise error

    def _removed(self, namespace: str, key: str, cause: Literal["size", "expired"]) -> None:
        self._emit(Evicted(namespace=namespace, key=key, cause=cause))

    def _breaker_changed(self, state: Literal["closed", "open", "half-open"]) -> None:
        logger.warning("the circuit breaker of %r is %s", self._shared.backend, state)
        if self._observers:
            self._emit(BreakerChanged(namespace="", key="", state=state))

    def stats(self) -> Stats:
        """Return the counters of this cache and all its views and functions, and the size of the near tier."""
        stats, memory = self._counters.snapshot(), self._shared.memory
        if memory is None:
            return stats
        return replace(stats, evictions=memory.evictions, near_entries=memory.entries, near_bytes=memory.bytes)


def cached(
    function: None = None,
    /,
    *,
    ttl: Ttl = DEFAULT,
    max_entries: int = 10_000,
    key: str | Callable[..., str] | None = None,
    tags: Iterable[str] = (),
    ignore: Iterable[str] = (),
    condition: Callable[[Any], bool] | None = None,
    negative_ttl: Seconds | Default | None = DEFAULT,
    stale_while_revalidate: Seconds | Default = DEFAULT,
    stale_if_error: Seconds | Default = DEFAULT,
    policy: Policy | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], CachedFunction[P, R]]:
    """Decorate a coroutine function with a memory-only cache of its own, of ``max_entries``; see `Cache.cached`.

    Raises:
        ConfigurationError: as for `Cache.cached`.
    """
    if function is not None:
        msg = "write @cached() with parentheses: the rules go there"
        raise ConfigurationError(msg)

    def decorate(function: Callable[P, Coroutine[Any, Any, R]]) -> CachedFunction[P, R]:
        rules = Cache(memory=max_entries, policy=policy).cached(
            ttl=ttl,
            key=key,
            tags=tags,
            ignore=ignore,
            condition=condition,
            negative_ttl=negative_ttl,
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
        )
        return rules(function)

    return decorate


_PARTS: Final[dict[str, tuple[type, str]]] = {
    "memory": (Memory, "a Memory, a number of entries, or None"),
    "policy": (Policy, "a Policy, as in Policy(ttl=60)"),
    "codec": (Codec, "an object with name, encode and decode, such as Msgpack()"),
    "clock": (Clock, "an object with wall, monotonic and call_later, such as SystemClock()"),
}


def _check_parts(**parts: Any) -> None:
    for name, part in parts.items():
        kind, words = _PARTS[name]
        if part is not None and (isinstance(part, type) or not isinstance(part, kind)):
            msg = f"{name}={part!r}: pass {words}"
            raise ConfigurationError(msg)


def _refuse_lease(policy: Policy) -> None:
    if policy.lease:
        msg = "lease=True needs a backend with the Lease capability, and none has it yet: leave lease out"
        raise ConfigurationError(msg)


class _Writing:
    """One far-tier change of some keys.

    Nothing that was read or loaded around it stays near: it drops the near copies, breaks the marks of those who are
    reading, and does both again at its end for those who began meanwhile.
    """

    __slots__ = ("_cache", "_loud", "_marks", "_operation", "settled")

    def __init__(self, cache: Cache, operation: str, keys: Iterable[str], *, loud: bool = True) -> None:
        self._cache: Final = cache
        self._operation: Final = operation
        self._loud: Final = loud
        self._marks: Final[dict[str, Mark | None]] = dict.fromkeys(keys)
        self.settled: list[str] = []
        """After a success: the keys that nobody else changed meanwhile, whose new values may go near."""

    async def __aenter__(self) -> Self:
        cache = self._cache
        for key in self._marks:
            cache._scope.flights.forget(key)
            self._marks[key] = cache._scope.watch.open_write(key)
            cache._drop(key)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cache = self._cache
        for key, mark in self._marks.items():
            cache._drop(key)
            if mark is not None:
                if error is None and mark.intact:
                    self.settled.append(key)
                cache._scope.watch.close(key, mark)
        if self._loud and isinstance(error, BackendError):
            key = next(iter(self._marks)) if len(self._marks) == 1 else ""
            cache._note_failure(self._operation, key, error, raised=True)


def _check_loader(loader: object) -> None:
    if callable(loader):
        return
    if asyncio.iscoroutine(loader):
        loader.close()
    msg = f"the loader {loader!r} cannot be called: pass the coroutine function itself (or a lambda), not its result"
    raise ConfigurationError(msg)


def _nothing(*_: object) -> None:
    """Stand in for the near tier of a cache without one."""


def _finite(lifetime: float) -> float | None:
    return None if lifetime == FOREVER else lifetime


def _ahead(policy: Policy) -> bool:
    """Tell whether a policy has to see each hit, as some of them refresh."""
    return bool(policy.early_refresh) or policy.refresh_ahead is not None


def _patience(policy: Policy) -> float:
    """Return how stale a value may be for a caller to take it while a load runs."""
    return policy.stale_for if policy.soft_timeout is not None else policy.stale_while_revalidate


def _early(policy: Policy, left: float, ttl: float, load_time: float) -> bool:
    """Tell whether a value with ``left`` of its ``ttl`` seconds should be refreshed behind."""
    if policy.refresh_ahead is not None and left <= ttl * (1.0 - policy.refresh_ahead):
        return True
    # XFetch: refresh when  -load_time * beta * ln(random)  reaches the time that is left.
    return bool(policy.early_refresh) and -load_time * policy.early_refresh * log(1.0 - random()) >= left  # noqa: S311


def _awaitable(load: Load) -> Awaitable[Any]:
    result = load.loader()
    if not hasattr(result, "__await__"):
        msg = (
            f"the loader of {load.key!r} returned a {type(result).__qualname__} instead of an awaitable: use async def"
        )
        raise TypeError(msg)
    return result


def _check_delta(delta: object) -> None:
    if not isinstance(delta, int) or isinstance(delta, bool):
        msg = f"delta={short(delta)}: counters count in whole numbers"
        raise ConfigurationError(msg)


def _several(values: Iterable[str], name: str) -> Iterable[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        msg = f"{name}={short(values)}: pass several, as in [{short(values)}]"
        raise InvalidKey(msg)
    return values


def _tag_names(tags: Iterable[str]) -> tuple[str, ...]:
    """Read tags: non-empty text, each once."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        msg = f"tags={short(tags)}: pass several, as in [{short(tags)}]"
        raise ConfigurationError(msg)
    names = tuple(tags)
    for name in names:
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= _LONGEST_TAG or _broken(name):
            msg = f"tags={short(names)}: a tag is a non-empty str of Unicode text, of at most {_LONGEST_TAG} bytes"
            raise ConfigurationError(msg)
    return tuple(dict.fromkeys(names))


def _broken(text: str) -> bool:
    """Tell whether text holds lone surrogates, which have no UTF-8."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
