"""`Cache`: the facade.

Its verbs stand here: reading near first, then far; writing and removing far first, then near.  Loading has a room of
its own (`acache.staircase`), and so has how values get into and out of the tiers (`acache.tiers`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, ParamSpec, Self, TypedDict, TypeVar, Unpack, cast, overload

from .backends.base import Backend, Notify, Track
from .backends.urls import open_backend
from .calls import Breaker
from .clock import FOREVER, Clock, Seconds, SystemClock, seconds, ttl_seconds
from .codecs.base import Codec, encode_under
from .coherence import EPOCH, Channel, ChannelState, Messages
from .entry import Entry, Envelope
from .errors import BackendError, ConfigurationError, DecodeError, KeyMissing, short
from .events import BackendFailed, BreakerChanged, ChannelChanged, Counters, Observer, Stats, ToldBy, emit, logger
from .inputs import Coherence, check_coherence, check_delta, check_lease, check_loader, check_parts, several, tag_names
from .keys import check_key, check_keys, check_namespace
from .loading import ABSENT, Batch, Load, Mark, Part, end_loads
from .memoize import Binder, CachedFunction, Hooks, Rules, build, check_function
from .memoize_many import Decorate, DecorateBlocking, HooksMany, build_many
from .memory import CONDITIONAL, TICK, Cause, Memory, Record, fresh_until_of, stored_at, terms_of
from .names import claim, claim_template
from .policy import DEFAULT, Default, Policy
from .replay import Replay
from .staircase import Staircase, ahead
from .tiers import MISS, NEAR_TTL, Extra, Shared, Tiers, until_due

__all__ = ["Cache", "cached"]

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")
Ttl = Seconds | Default | None
TtlRule = Ttl | Callable[[Any], Seconds | None]

_GRACE: Final = 1.0
_NEW_VALUES: Final = frozenset({"set", "set_many", "add", "incr"})
_NO_TTL: Final = object()
"""What no caller passes."""


class FunctionRules(TypedDict, total=False):
    """The rules of one function; `Cache.cached` says what they mean."""

    ttl: TtlRule
    key: str | Callable[..., str] | None
    tags: Iterable[str]
    ignore: Iterable[str]
    version: str | int | None
    condition: Callable[[Any], bool] | None
    negative_ttl: Seconds | Default | None
    stale_while_revalidate: Seconds | Default
    stale_if_error: Seconds | Default
    type: Any
    policy: Policy | None


class Cache:
    """Memory in front of a far tier, with one load per missing value.

    Args:
        backend: the far tier; ``None`` for a cache that lives in this process only.  ``aclose`` closes it.
        memory: the near tier: a `Memory`, a number of entries, or ``None`` for no near tier.
        namespace: kept apart from all others, on both tiers.
        codec: how values become bytes for the far tier.
        policy: the rules where a call does not say otherwise.
        coherence: how the near tier comes to know what others change in the far tier.  ``"auto"``: the far tier tells,
            if it can; where it refuses, caches tell each other by messages; and where nobody tells, a near copy is
            trusted for a few seconds.  ``"tracking"``: it tells, or that is an error.  ``"messages"``: caches tell each
            other, without a near tier too.  ``None``: a few seconds.
        clock: for tests.
        observers: get every event.

    Values in the near tier are the objects themselves: treat what you get as read-only (or use
    ``Memory(isolate=True)``).

    Raises:
        ConfigurationError: arguments that contradict each other.
    """

    __slots__ = (
        "__weakref__",
        "_counters",
        "_insert",
        "_load_records",
        "_marks",
        "_notes",
        "_now",
        "_plain",
        "_plain_span",
        "_plain_ttl",
        "_plain_until",
        "_plans",
        "_policy",
        "_records",
        "_remote",
        "_renew_at",
        "_running",
        "_scope",
        "_shared",
        "_shortcuts",
        "_staircase",
        "_tiers",
        "_touch",
        "_trust",
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
        coherence: Coherence | None = "auto",
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
        check_parts(memory=memory, policy=policy, codec=codec, clock=clock)
        if not isinstance(observers, (list, tuple)) or not all(callable(observer) for observer in observers):
            msg = f"observers={observers!r}: pass a list of functions that take an event"
            raise ConfigurationError(msg)
        counters = Counters()
        shared = Shared(
            backend=backend,
            memory=memory,
            clock=clock,
            observers=tuple(observers),
            counters=counters,
            breaker=Breaker(clock, self._breaker_changed),
            replay=Replay(clock, counters, tuple(observers)),
            scopes={},
            functions=set(),
            near_ttl=FOREVER if memory is None else memory.ttl,
        )
        if memory is not None and backend is not None and memory.ttl == FOREVER:
            shared.near_ttl = NEAR_TTL
        check_coherence(coherence, backend, memory)
        by_messages = coherence == "messages"
        if memory is not None:
            # Nothing of the near tier is touched before everything else is known to be right.
            check_namespace(namespace)
            check_lease(policy, backend)
            memory.claim(clock.monotonic)
            track = backend if coherence in ("auto", "tracking") and isinstance(backend, Track) else None
            if track is not None or by_messages:
                shared.channel = Channel(
                    track,
                    clock,
                    unbounded=memory.ttl,
                    bounded=shared.near_ttl,
                    insist=coherence == "tracking",
                    tell=self._channel_changed,
                )
                shared.backend = shared.channel.backend or backend
        if by_messages or (coherence == "auto" and shared.channel is not None):
            self._set_up_messages(shared)
        self._set_up(shared, check_namespace(namespace), codec, policy)
        if memory is not None and observers:
            memory.on_removed = self._notes.removed
        if memory is not None and shared.backend is not None:
            memory.on_unsized = self._notes.unsized

    def _set_up_messages(self, shared: Shared) -> None:
        if isinstance(shared.backend, Notify):
            # A breaker of its own: that messages do not leave is no reason to leave the entries alone.
            door = Breaker(shared.clock, _nothing)
            shared.messages = Messages(shared.backend, shared.clock, door, self._message_failed)
            if shared.channel is not None:
                shared.channel.messages = shared.messages

    def _set_up(self, shared: Shared, namespace: str, codec: Codec | None, policy: Policy) -> None:
        check_lease(policy, shared.backend)
        self._shared = shared
        self._policy = policy
        self._ttl = ttl_seconds(policy.ttl)
        self._now = shared.clock.monotonic
        self._counters = shared.counters
        self._tiers = tiers = Tiers(shared, namespace, codec, policy)
        self._notes = tiers.notes
        self._remote = tiers.remote
        self._scope = scope = tiers.scope
        self._trust = scope.trust
        self._staircase = Staircase(tiers)
        self._plans: dict[Any, Policy] = {}
        # The hit path reads this dict directly.  Where a hit takes more than a look (events to send, copies to make),
        # it is one that stays empty, and every call takes the long way.
        space, memory = scope.space, shared.memory
        direct = memory is not None and not memory.isolate and not shared.observers
        self._records: dict[str, Record] = space.records if space is not None and direct else {}
        # A policy that refreshes ahead must see every hit of a load.
        self._load_records: dict[str, Record] = {} if ahead(policy) else self._records
        # And the path of a plain write, where only the near tier has to know.
        plain = direct and self._remote is None and memory is not None and not memory.sized and not policy.jitter
        self._plain: object = DEFAULT if plain else _NO_TTL  # the ttl of a call that can take it
        self._plain_ttl = min(self._ttl, shared.near_ttl)
        self._plain_until = self._plain_span = self._renew_at = -FOREVER
        self._insert: Callable[[str, Record, float], object] = _nothing if space is None else space.insert
        self._running = scope.flights.running
        self._marks = scope.watch.marks
        self._shortcuts: dict[str, Any] = {} if space is None else space.shortcuts
        self._unlink: Callable[[str], object] = _nothing if space is None else space.unlink
        self._touch: Callable[[str], object] = _nothing if space is None else space.touch

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Build a cache over the backend that ``url`` names; ``options`` are those of `Cache`.

        ``memory://`` (no far tier), ``file:///var/cache/app``, ``redis://host:port/db`` (``rediss``, ``valkey``,
        ``valkeys``, ``unix:///path``), ``redis+cluster://host:port``, ``redis+sentinel://host:port/service``,
        ``memcached://host:port,host2:port``, ``mongodb://host/database?collection=name`` (``mongodb+srv``),
        ``dynamodb://region/table``, ``null://``.
        Nothing connects yet.

        Raises:
            ConfigurationError: an unknown scheme, or options in the URL that the engine does not have.
            ImportError: the engine's client library is missing; the message names the extra to install.
        """
        return cls(open_backend(url), **options)

    def view(self, *, namespace: str | None = None, policy: Policy | None = None, codec: Codec | None = None) -> Cache:
        """Return a second facade over the same tiers; what is left out stays as it is here."""
        policy, codec = policy or self._policy, codec or self._tiers.given_codec
        check_parts(policy=policy, codec=codec)
        namespace = self.namespace if namespace is None else check_namespace(namespace)
        view = object.__new__(Cache)
        view._set_up(self._shared, namespace, codec, policy)
        return view

    def __reduce__(self) -> NoReturn:
        msg = "a Cache cannot be copied or pickled: use cache.view(), or build one in each process"
        raise TypeError(msg)

    def __repr__(self) -> str:
        shared = self._shared
        tiers = " over ".join(repr(tier) for tier in (shared.memory, shared.backend) if tier is not None)
        return f"<Cache {self._tiers.namespace!r} {tiers}{' closed' if shared.closed else ''}>"

    @property
    def namespace(self) -> str:
        """The namespace of this facade; ``""`` for none."""
        return self._tiers.namespace

    @property
    def policy(self) -> Policy:
        """The rules where a call does not say otherwise."""
        return self._policy

    # Life -----------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the cache; also again, after it was closed: an application that is started twice has one cache.

        A backend with an injected client is as open as its client.
        """
        self._shared.closed = self._shared.released = self._shared.breaker.closed = False
        self._shared.replay.reopen()
        if self._shared.messages is not None:
            self._shared.messages.closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel running loads (their callers get ``CacheClosed``), drop the near tier, close the backend.

        Loaders have five seconds to clean up; one that does not stop is left to itself then, with a warning.
        Changes that the far tier has not confirmed are sent once more, for a second at most; what does not arrive then
        is dropped, with a warning.
        Twice is harmless.  It closes every view too.  ``async with`` opens it again.
        """
        shared = self._shared
        if shared.closing or shared.released:
            return
        shared.closed = shared.closing = True
        if shared.memory is not None:
            shared.memory.close()
        try:
            # All are told before any is waited for: those that do not stop have one grace between them.
            scopes = shared.scopes.values()
            await end_loads([task for scope in scopes for task in scope.close()], shared.clock)
            if shared.channel is not None:
                await shared.channel.aclose()
            if shared.backend is not None:
                await shared.replay.aclose(_GRACE)
                # What is under way may be making a connection, which could not be closed yet.
                await shared.breaker.drain(_GRACE)
            if shared.messages is not None:
                await shared.messages.aclose(_GRACE)
        finally:
            # A cancellation takes the time for all that away, and leaves no connection open; of a second one the rest
            # is left to another call.
            try:
                if shared.backend is not None:
                    await shared.backend.aclose()
                shared.released = True
            finally:
                shared.closing = False

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
            value, fresh_until, terms = self._records[key]
            if fresh_until > (now := self._now()) < self._trust.until:
                self._counters.hits_near += 1
                self._touch(key)
                return value
            if fresh_until == CONDITIONAL:
                cells, fresh_until, _, _ = terms
                for cell in cells:
                    if cell.spoilt:
                        break
                else:
                    if fresh_until > now < self._trust.until:
                        self._counters.hits_near += 1
                        self._touch(key)
                        return value
        except (KeyError, TypeError):
            pass
        return await self._get(key, default, type)

    async def _get(self, key: str, default: Any, type_: Any) -> Any:
        key = check_key(key)
        value = self._tiers.find_fresh(key, type_)
        if value is not MISS:
            return value
        if self._remote is None:
            pass
        elif (refusal := self._shared.breaker.refusal()) is not None:
            self._notes.tolerate("get", key, refusal)
        elif self._scope.space is None:
            # Nothing is kept of what is read, so it does not matter who writes meanwhile.
            try:
                received = await self._tiers.receive(key, await self._remote.peek(key), type_)
                if received is not None and received.fresh_for > 0:
                    self._notes.hit(key, "far")
                    return received.value
            except BackendError as error:
                self._notes.tolerate("get", key, error)
        else:
            if self._trust.until <= self._now():
                await self._tiers.get_ready()
            mark = self._scope.watch.open(key)
            try:
                received = await self._tiers.receive(key, await self._remote.peek(key), type_)
                if received is not None and received.fresh_for > 0:
                    if mark.intact:
                        self._tiers.keep_received(key, received)
                    self._notes.hit(key, "far")
                    return received.value
            except BackendError as error:
                self._notes.tolerate("get", key, error)
            finally:
                self._scope.watch.close(key, mark)
        self._notes.miss(key)
        return default

    async def get_entry(self, key: str, *, type: Any = None) -> Entry | None:
        """Return the fresh entry under ``key`` with its dates and tags, or ``None``.

        Asks the far tier where there is one: near copies do not carry the dates of the original.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        key = check_key(key)
        self._tiers.check_open()
        wall = self._shared.clock.wall()
        if self._remote is None:
            record = self._tiers.find(key, type)
            now = self._now()
            if record is None or (terms := terms_of(record)).fresh_until <= now:
                self._notes.miss(key)
                return None
            value = self._tiers.value_of(record, type)
            self._notes.hit(key, "near")
            fresh_until = None if terms.fresh_until == FOREVER else wall + terms.fresh_until - now
            return Entry(
                value=value,
                created_at=wall - (now - stored_at(record)),
                fresh_until=fresh_until,
                expires_at=None if fresh_until is None else fresh_until + self._policy.stale_for,
                tags=() if terms.extra is None else tuple(cell.tag for cell in terms.extra.cells),
                tier="near",
            )
        try:
            seen = await self._remote.peek(key)
            received = await self._tiers.receive(key, seen, type)
        except BackendError as error:
            self._notes.tolerate("get_entry", key, error)
            self._notes.miss(key)
            return None
        if received is None or received.fresh_for <= 0:
            self._notes.miss(key)
            return None
        self._notes.hit(key, "far")
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
        self._tiers.check_open()
        record = self._tiers.find(check_key(key))
        if record is None or fresh_until_of(record) <= self._now():
            return default
        return self._tiers.value_of(record)

    async def has(self, key: str) -> bool:
        """Tell whether there is a fresh value under ``key``; asks the far tier where there is one, and counts nothing.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        key = check_key(key)
        self._tiers.check_open()
        if self._remote is None:
            record = self._tiers.find(key)
            return record is not None and fresh_until_of(record) > self._now()
        try:
            received = await self._tiers.receive(key, await self._remote.peek(key), None, decode=False)
        except BackendError as error:
            self._notes.tolerate("has", key, error)
            return False
        return received is not None and received.fresh_for > 0

    async def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:
        """Return the fresh values among ``keys``; what is missing is left out.

        Raises:
            InvalidKey, BackendError: as for `get`.
        """
        wanted = dict.fromkeys(check_keys(several(keys, "keys")))
        found = await self._find(wanted, type)
        if len(found) < len(wanted):
            for key in wanted:
                if key not in found:
                    self._notes.miss(key)
        return found

    async def _find(self, keys: Iterable[str], type_: Any, counters: Counters | None = None) -> dict[str, Any]:
        """Return the fresh values, and count the hits; the misses are the caller's."""
        if self._scope.space is None:
            self._tiers.check_open()
            return {} if self._remote is None else await self._get_far(list(keys), type_, counters)
        found: dict[str, Any] = {}
        missing: list[str] = []
        for key in keys:
            value = self._tiers.find_fresh(key, type_, counters)
            if value is MISS:
                missing.append(key)
            else:
                found[key] = value
        if missing and self._remote is not None:
            found |= await self._get_far(missing, type_, counters)
        return found

    async def _get_far(self, keys: list[str], type_: Any, counters: Counters | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._scope.space is None:  # nothing is kept of what is read
            found = await self._read_many(keys, partial(self._tiers.values_of_many, type_=type_))
        else:
            watch = self._scope.watch
            if self._trust.until <= self._now():
                await self._tiers.get_ready()
            marks = {key: watch.open(key) for key in keys}
            try:
                received = await self._read_many(keys, partial(self._tiers.receive_many, type_=type_))
                for key, one in received.items():
                    if one.fresh_for > 0:
                        if marks[key].intact:
                            self._tiers.keep_received(key, one)
                        found[key] = one.value
            finally:
                for key, mark in marks.items():
                    watch.close(key, mark)
        self._notes.hits_far(found, counters)
        return found

    async def _read_many(
        self, keys: list[str], receive: Callable[[Mapping[str, bytes], Mapping[str, bytes]], Awaitable[dict[str, T]]]
    ) -> dict[str, T]:
        assert self._remote is not None  # noqa: S101 - for the type checker
        there, tokens, error = await self._remote.read_many(keys)
        try:
            if error is not None:
                raise error
        except BackendError as failure:
            self._notes.tolerate("get_many", "", failure)
        try:
            return await receive(there, tokens)
        except BackendError as failure:
            self._notes.tolerate("get_many", "", failure)
            return {}

    async def ttl(self, key: str) -> float | None:
        """Return the seconds for which the value under ``key`` stays fresh; ``None`` for ever.

        Raises:
            KeyMissing: there is none.
            BackendError: the far tier failed; without it this question has no answer.
        """
        key = check_key(key)
        self._tiers.check_open()
        left = 0.0
        if self._remote is None:
            record = self._tiers.find(key)
            left = 0.0 if record is None else fresh_until_of(record) - self._now()
        else:
            seen = await self._remote.peek(key)
            if seen.number is not None:
                return await self._remote.counter_ttl(key)
            received = await self._tiers.receive(key, seen, None, decode=False)
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
        if ttl is self._plain and not tags:
            if (now := self._now()) >= self._renew_at:
                self._renew(now)
            try:
                if key in self._records:
                    if self._running or self._marks:
                        self._tiers.forget(key)
                    if self._shortcuts:
                        self._unlink(key)
                    self._records[key] = (value, self._plain_until, self._plain_span)
                    self._touch(key)
                    return
            except TypeError:
                pass
            if type(key) is str and key and key.isascii() and not self._shared.closed:
                if self._running or self._marks:
                    self._tiers.forget(key)
                self._insert(key, (value, self._plain_until, self._plain_span), now)
                return
        self._tiers.check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        names = tag_names(tags) if tags else ()
        if self._remote is None:
            self._tiers.forget(key)
            cells = self._scope.tags.cells(names) if names else ()
            self._tiers.keep(key, value, lifetime, cells=cells)
        else:
            await self._write({key: value}, lifetime, names, "set")
        self._notes.stored(key, lifetime)

    def _renew(self, now: float) -> None:
        """Date what plain writes store within the next millisecond; see `Dates`."""
        terms = self._tiers.terms(self._plain_ttl, None, now)
        self._plain_until, self._plain_span, self._renew_at = terms.fresh_until, terms.span, now + TICK

    async def _write(self, items: Mapping[str, Any], lifetime: float, names: tuple[str, ...], operation: str) -> None:
        assert self._remote is not None  # noqa: S101 - for the type checker
        payloads = {key: encode_under(key, value, self._tiers.codec) for key, value in items.items()}
        if self._trust.until <= self._now():
            await self._tiers.get_ready()
        cells = self._scope.tags.cells(names)
        writing = _Writing(self, operation, items, loud=False)
        try:
            async with writing:
                tokens = await self._remote.tokens.make(names) if names else {}
                tokens[EPOCH] = self._remote.tokens.latest_epoch
                envelopes = {key: self._tiers.envelope(payload, lifetime, tokens) for key, payload in payloads.items()}
                writing.envelopes = envelopes
                await self._remote.write(envelopes)
        except BackendError as error:
            self._notes.tolerate(operation, next(iter(items)) if len(items) == 1 else "", error)
        lifetime = until_due(lifetime, lifetime, self._policy)
        for key in writing.settled:
            self._tiers.keep(key, items[key], lifetime, cells=cells)

    def _lifetime(self, ttl: Ttl) -> float:
        """Return the seconds an explicit write gets."""
        lifetime = self._ttl if ttl is DEFAULT else ttl_seconds(ttl)
        return self._policy.shorten(lifetime) if self._policy.jitter else lifetime

    async def add(self, key: str, value: Any, *, ttl: Ttl = DEFAULT, tags: Iterable[str] = ()) -> bool:
        """Store ``value`` if there is no fresh value under ``key``; of concurrent callers one gets ``True``.

        Raises:
            InvalidKey, ConfigurationError, EncodeError: before anything is stored.
            BackendError: the far tier did not say who won.
        """
        self._tiers.check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        names = tag_names(tags)
        cells = self._scope.tags.cells(names)
        if self._remote is None:
            record = self._tiers.find(key)
            if record is not None and fresh_until_of(record) > self._now():
                return False
            self._tiers.forget(key)
            self._tiers.keep(key, value, lifetime, cells=cells)
        else:
            payload = encode_under(key, value, self._tiers.codec)
            if self._trust.until <= self._now():
                await self._tiers.get_ready()
            async with _Writing(self, "add", (key,)) as writing:
                mine = self._remote.tokens
                tokens = await mine.make(names, await mine.read(names, anew=True)) if names else {}
                if not await self._remote.add(key, self._tiers.envelope(payload, lifetime, tokens)):
                    return False
            for settled in writing.settled:
                self._tiers.keep(settled, value, lifetime, cells=cells)
        self._notes.stored(key, lifetime)
        return True

    async def set_many(self, items: Mapping[str, Any], *, ttl: Ttl = DEFAULT, tags: Iterable[str] = ()) -> None:
        """Store every item, with one ttl and the same tags.

        Raises:
            InvalidKey, ConfigurationError, EncodeError: before anything is stored.
            BackendError: as for `set`; some of the items may have been stored.
        """
        self._tiers.check_open()
        lifetime = self._lifetime(ttl)
        names = tag_names(tags)
        if not isinstance(items, Mapping):
            msg = f"items={short(items)}: pass a dict of values by key"
            raise ConfigurationError(msg)
        items = {check_key(key): value for key, value in items.items()}
        if self._remote is None:
            cells = self._scope.tags.cells(names)
            extra, now = Extra(cells, 0.0) if cells else None, self._now()
            for key, form in [(key, self._tiers.form(key, value)) for key, value in items.items()]:
                self._tiers.forget(key)
                self._tiers.put(key, form, lifetime, extra, now)
        else:
            await self._write(items, lifetime, names, "set_many")
        for key in items:
            self._notes.stored(key, lifetime)

    async def touch(self, key: str, *, ttl: Ttl) -> bool:
        """Give the entry under ``key`` a new ttl, counted from now; tell whether there is one.

        Raises:
            InvalidKey, ConfigurationError: as for `set`.
            BackendError: the far tier did not confirm.
        """
        self._tiers.check_open()
        key = check_key(key)
        lifetime = self._lifetime(ttl)
        if self._remote is not None:
            async with _Writing(self, "touch", (key,)):
                return await self._remote.touch(key, lifetime, self._policy.stale_for)
        record = self._tiers.find(key)
        now = self._now()
        if record is None or (terms := terms_of(record)).fresh_until <= now:
            return False
        self._tiers.put(key, record[0], lifetime, terms.extra, now)
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
        self._tiers.check_open()
        key = check_key(key)
        check_delta(delta)
        lifetime = self._lifetime(ttl)
        if self._remote is not None:
            async with _Writing(self, "incr", (key,)):
                return await self._remote.incr(key, delta, lifetime, partial(self._tiers.decode, type_=None))
        record = self._tiers.find(key)
        now = self._now()
        value, extra = 0, None
        if record is not None and (terms := terms_of(record)).fresh_until > now:
            value, lifetime, extra = self._tiers.value_of(record), terms.fresh_until - now, terms.extra
        if type(value) is not int or not -(2**63) <= value + delta < 2**63:
            msg = f"cannot add {short(delta)} to {key!r}: it holds {short(value)}, and counters are 64-bit integers"
            raise DecodeError(msg)
        self._tiers.forget(key)
        self._tiers.put(key, self._tiers.form(key, value + delta), lifetime, extra, now)
        return value + delta

    async def decr(self, key: str, delta: int = 1, *, ttl: Ttl = DEFAULT) -> int:
        """Subtract; see `incr`."""
        check_delta(delta)
        return await self.incr(key, -delta, ttl=ttl)

    # Removing -------------------------------------------------------------------------------------------------------

    async def delete(self, key: str) -> bool:
        """Remove the value under ``key``; tell whether there was one.

        When it has returned, no load that began before can bring the old value back.

        Raises:
            InvalidKey: not a non-empty ``str``.
            BackendError: the far tier did not confirm; it may still hold the old value.
        """
        return await self._delete(self._counters, key)

    async def _delete(self, counters: Counters, key: str) -> bool:
        self._tiers.check_open()
        key = check_key(key)
        if self._remote is None:
            record = self._tiers.find(key)
            existed = record is not None and fresh_until_of(record) > self._now()
            self._tiers.forget(key)
            self._tiers.drop(key)
        else:
            async with _Writing(self, "delete", (key,)):
                existed = await self._remote.delete(key)
        self._notes.invalidated("delete", key, counters)
        return existed

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove the values under ``keys``; tell how many there were.

        Raises:
            InvalidKey, BackendError: as for `delete`; on an error some may have been removed.
        """
        return await self._delete_many(self._counters, keys)

    async def _delete_many(self, counters: Counters, keys: Iterable[str]) -> int:
        self._tiers.check_open()
        wanted = list(dict.fromkeys(check_keys(several(keys, "keys"))))
        if self._remote is None:
            return sum([await self._delete(counters, key) for key in wanted])
        async with _Writing(self, "delete_many", wanted):
            count = await self._remote.delete_many(wanted)
        for key in wanted:
            self._notes.invalidated("delete", key, counters)
        return count

    async def invalidate_tags(self, *tags: str) -> None:
        """Make every value that carries one of ``tags`` a miss, at a cost that does not depend on their number.

        When it has returned, no load that began before can store a value under these tags.

        Raises:
            ConfigurationError: a tag that is not a non-empty ``str``.
            BackendError: the far tier did not confirm; other processes may still see the old values.
        """
        await self._invalidate_tags(self._counters, tags)

    async def _invalidate_tags(self, counters: Counters, tags: Iterable[str]) -> None:
        self._tiers.check_open()
        names = tag_names(tags)
        cells = self._scope.tags
        self._scope.flights.forget_tagged(names)
        cells.spoil(names)
        if self._remote is not None:
            try:
                await self._remote.tokens.replace(names)
            except BackendError as error:
                self._notes.failure("invalidate_tags", "", error, raised=True)
                self._tiers.invalidate_later(names, error)
                raise
            finally:
                # A load or read that began meanwhile may have matched the old tokens.
                self._scope.flights.forget_tagged(names)
                cells.spoil(names)
            self._shared.replay.forget([(self.namespace, "tag", name) for name in names])
        self._notes.invalidated("tags", "", counters, names)

    async def clear(self) -> None:
        """Remove everything in this namespace.

        Raises:
            ConfigurationError: over a far tier, without a namespace: it would take other programs' keys along.
            BackendError: the far tier did not confirm.
        """
        self._tiers.check_open()
        self._tiers.forget_all()
        if self._remote is not None:
            try:
                await self._remote.clear()
            except BackendError as error:
                self._notes.failure("clear", "", error, raised=True)
                self._tiers.clear_later(error)
                raise
            finally:
                self._tiers.forget_all()
            self._shared.replay.forget_all(self.namespace)
        self._notes.invalidated("clear", "", self._counters)

    # Loading --------------------------------------------------------------------------------------------------------

    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl: TtlRule = DEFAULT,
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
            ttl: as for `set`; or a function of the loaded value that returns it.
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
        plan, names, rule = self._policy, cast("tuple[str, ...]", ()), None
        if not (
            ttl is stale_while_revalidate is stale_if_error is DEFAULT
            and policy is None
            and tags == ()
            and callable(loader)
        ):
            check_loader(loader)
            plan, rule = self._plan(policy, ttl, stale_while_revalidate, stale_if_error)
            names = tag_names(tags)
        if plan is self._policy or not ahead(plan):
            try:  # the same hit path as in get()
                value, fresh_until, terms = self._load_records[key]
                if fresh_until > (now := self._now()) < self._trust.until:
                    self._counters.hits_near += 1
                    self._touch(key)
                    return value  # type: ignore[no-any-return]
                if fresh_until == CONDITIONAL:
                    cells, fresh_until, _, _ = terms
                    for cell in cells:
                        if cell.spoilt:
                            break
                    else:
                        if fresh_until > now < self._trust.until:
                            self._counters.hits_near += 1
                            self._touch(key)
                            return value  # type: ignore[no-any-return]
            except (KeyError, TypeError):
                pass
        load = Load(check_key(key), loader, plan, self._counters, names, type, None, rule)
        return await self._staircase.resolve(load)  # type: ignore[no-any-return]

    async def refresh(
        self,
        key: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl: TtlRule = DEFAULT,
        tags: Iterable[str] = (),
        type: Any = None,
        policy: Policy | None = None,
    ) -> T:
        """Load the value under ``key`` now, although there may be a fresh one; join a load that is already running.

        Raises:
            RecursiveLoad, LoadTimeout, EncodeError, Exception: as for `get_or_load`.
        """
        check_loader(loader)
        plan, rule = self._plan(policy, ttl, DEFAULT, DEFAULT)
        load = Load(check_key(key), loader, plan, self._counters, tag_names(tags), type, None, rule)
        return await self._staircase.reload(load)  # type: ignore[no-any-return]

    async def load_many(
        self,
        keys: Iterable[str],
        loader: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]],
        *,
        ttl: TtlRule = DEFAULT,
        tags: Iterable[str] = (),
        type: Any = None,
        policy: Policy | None = None,
    ) -> dict[str, T]:
        """Return the values under ``keys``; those that are missing are loaded by one call of ``loader``.

        Each key has a flight of its own, so concurrent calls with overlapping keys load each key once.  What the
        loader's result leaves out is left out here, and not stored; a stale value of it is removed.

        Raises:
            Exception: as for `get_or_load`; one failing key fails the call, and the others are stored all the same.
        """
        check_loader(loader)
        plan, rule = self._plan(policy, ttl, DEFAULT, DEFAULT)
        names = tag_names(tags)
        wanted = list(dict.fromkeys(check_keys(several(keys, "keys"))))

        def make(key: str, call: Callable[[], Awaitable[Any]]) -> Load:
            return Load(key, call, plan, self._counters, names, type, None, rule, batched=True)

        return await self._load_many(wanted, loader, make, counters=self._counters, type_=type, name=repr(loader))

    async def _load_many(
        self,
        wanted: Sequence[str],
        loader: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]],
        make: Callable[[str, Callable[[], Awaitable[Any]]], Load],
        *,
        counters: Counters,
        type_: Any,
        name: str,
        fresh: bool = True,
    ) -> dict[str, T]:
        """Return the values; ``make`` writes the load of a key.  Without ``fresh``, load what is fresh too.

        ``name`` is what errors call the loader.
        """
        values: dict[str, T] = await self._find(wanted, type_, counters) if fresh else {}
        missing = [key for key in wanted if key not in values]
        if not missing:
            return values
        batch: Batch[T] = Batch(missing, loader, self._scope.batches, name)
        answer = self._staircase.resolve if fresh else self._staircase.reload
        loads = [self._one_of(batch, make(key, partial(batch.load, key)), answer) for key in missing]
        results = await asyncio.gather(*loads, return_exceptions=True)
        for key, result in zip(missing, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            (value,) = result
            if value is not ABSENT:
                values[key] = value
        return {key: values[key] for key in wanted if key in values}

    async def _one_of(self, batch: Batch[Any], load: Load, answer: Callable[[Load], Awaitable[Any]]) -> tuple[Any]:
        part = Part(batch, load.key)
        if self._scope.flights.current(load.key) is not None:
            # It will be loaded by others.  To wait for that before loading the rest could be a deadlock: two calls,
            # each with a key that the other one is about to load.
            part.answered()
        try:
            return (await answer(load._replace(part=part)),)
        finally:
            part.answered()

    def _plan(
        self, policy: Policy | None, ttl: TtlRule, swr: Seconds | Default, sie: Seconds | Default
    ) -> tuple[Policy, Callable[[Any], Seconds | None] | None]:
        """Return the policy of one call, and the rule for its ttl if that depends on the value."""
        base = policy or self._policy
        rule: Callable[[Any], Seconds | None] | None = None
        if not isinstance(ttl, Default) and callable(ttl):
            rule, ttl = ttl, DEFAULT
        if policy is not None:
            check_parts(policy=policy)
            check_lease(base, self._shared.backend)
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
        return plan, rule

    def _make_plan(self, base: Policy, ttl: Any, swr: Any, sie: Any) -> Policy:
        changes = {"ttl": ttl, "stale_while_revalidate": swr, "stale_if_error": sie}
        plan = replace(base, **{name: value for name, value in changes.items() if value is not DEFAULT})
        if len(self._plans) >= 256:  # noqa: PLR2004 - ttls computed per call must not grow it for ever
            self._plans.clear()
        self._plans[base, ttl, swr, sie] = plan
        return plan

    # Decorating -----------------------------------------------------------------------------------------------------

    @overload
    def cached(
        self, function: None = None, /, *, thread: Literal[False] = ..., **rules: Unpack[FunctionRules]
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], CachedFunction[P, R]]: ...
    @overload
    def cached(
        self, function: None = None, /, *, thread: Literal[True], **rules: Unpack[FunctionRules]
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...

    def cached(
        self,
        function: None = None,
        /,
        *,
        ttl: TtlRule = DEFAULT,
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
        thread: bool = False,
        **unknown: Any,
    ) -> Callable[[Callable[P, Any]], CachedFunction[P, Any]]:
        """Decorate a coroutine function: its results are cached by its arguments.

        ``f(1)``, ``f(user_id=1)`` and the default spelling are one key; ``1``, ``1.0``, ``True`` and ``"1"`` are four.

        Args:
            function: nothing; the parentheses are needed.
            ttl: as for `set`; or a function of the result that returns it.
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
            policy: replaces the cache's policy as a whole for this function; the rules named above win over it.
            thread: the function is a synchronous one that blocks: call it in a worker thread.  A thread cannot be
                stopped: one that nobody waits for any more runs to its end, and its result is dropped.
            unknown: nothing.

        Raises:
            ConfigurationError: not a coroutine function (with ``thread=True``: one), or a template or ``ignore`` that
                names no parameter; or another function has the same keys.
            TypeError: an unknown option.
        """
        if function is not None:
            msg = "write @cache.cached() with parentheses: the rules go there"
            raise ConfigurationError(msg)
        _check_options("cached", unknown)
        rules = self._rules(
            ttl=ttl,
            key=key,
            tags=tags,
            ignore=ignore,
            version=version,
            condition=condition,
            negative_ttl=negative_ttl,
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
            type=type,
            policy=policy,
            thread=thread,
        )

        def decorate(function: Callable[P, Any]) -> CachedFunction[P, Any]:
            check_function(function, thread=thread)
            made = build(function, rules, self._hooks(rules))
            self._check_name(function, rules)
            return made

        return decorate

    def _rules(
        self,
        *,
        ttl: TtlRule = DEFAULT,
        negative_ttl: Seconds | Default | None = DEFAULT,
        stale_while_revalidate: Seconds | Default = DEFAULT,
        stale_if_error: Seconds | Default = DEFAULT,
        policy: Policy | None = None,
        **rules: Any,
    ) -> Rules:
        """Bring together what was said about one function, and the policy."""
        plan, rule = self._plan(policy, ttl, stale_while_revalidate, stale_if_error)
        if negative_ttl is not DEFAULT:
            plan = replace(plan, negative_ttl=cast("float | None", negative_ttl))  # the policy reads a timedelta too
        if not isinstance(rules.get("ignore", ""), str):
            rules["ignore"] = tuple(rules["ignore"])  # an iterator would do for one function only
        return Rules(policy=plan, ttl=rule, **rules)

    @overload
    def cached_many(
        self,
        function: None = None,
        /,
        *,
        batch_window: Seconds = ...,
        thread: Literal[False] = ...,
        **rules: Unpack[FunctionRules],
    ) -> Decorate: ...
    @overload
    def cached_many(
        self,
        function: None = None,
        /,
        *,
        batch_window: Seconds = ...,
        thread: Literal[True],
        **rules: Unpack[FunctionRules],
    ) -> DecorateBlocking: ...

    def cached_many(
        self,
        function: None = None,
        /,
        *,
        batch_window: Seconds = 0,
        thread: bool = False,
        **rules: Unpack[FunctionRules],
    ) -> Callable[[Callable[..., Any]], Any]:
        """Decorate a coroutine function that loads many values at once: each value is cached under a key of its own.

        Its first parameter, after ``self``, takes a list of items, and it returns a dict of values by item.  It is
        called once for all the items that are missing; an item that somebody is loading already is waited for.
        ``function.one(item)`` collects the single items that are asked for in one turn of the event loop into one such
        call.

        Args:
            function: nothing; the parentheses are needed.
            batch_window: seconds for which ``one`` collects, from the first item that is missing; zero for one turn.
            thread: as for `cached`.
            rules: those of `cached`.  In templates, and for a ``key=`` function, this parameter is one item;
                ``ttl=`` and ``condition=`` get one value; the decode type is that of the values.

        Raises:
            ConfigurationError: as for `cached`, or there is no parameter for the items.
            TypeError: an unknown option.
        """
        if function is not None:
            msg = "write @cache.cached_many() with parentheses: the rules go there"
            raise ConfigurationError(msg)
        _check_options("cached_many", rules, "batch_window")
        window, made = seconds(batch_window, "batch_window"), self._rules(thread=thread, **rules)

        def decorate(function: Callable[..., Any]) -> Any:
            check_function(function, thread=thread)
            counters = self._counters.part()
            hooks = HooksMany(
                load_many=self._load_many,
                resolve=self._staircase.resolve,
                delete_many=partial(self._delete_many, counters),
                invalidate_all=partial(self._invalidate_all, counters),
                peek=self.peek,
                store=self.set,
                counters=counters,
                clock=self._shared.clock,
                tasks=self._scope.batches,
            )
            batch: Any = build_many(function, made, hooks, window)
            self._check_name(function, made)
            return batch

        return decorate

    def _check_name(self, function: Any, rules: Rules) -> None:
        if rules.key is None:
            claim(self._shared.functions, self.namespace, function, rules.version, rules.ignore)
        elif isinstance(rules.key, str):
            claim_template(self._shared.functions, self.namespace, function, rules.key, rules.version, rules.ignore)

    def _hooks(self, rules: Rules) -> Hooks:
        space = self._scope.space
        direct = space is not None and self._records is space.records and not ahead(rules.policy)
        counters = self._counters.part()
        return Hooks(
            trust=None if self._shared.channel is None else self._trust,
            resolve=self._staircase.resolve,
            reload=self._staircase.reload,
            delete=partial(self._delete, counters),
            invalidate_all=partial(self._invalidate_all, counters),
            peek=self.peek,
            store=self.set,
            counters=counters,
            now=self._now,
            space=space if direct else None,
        )

    async def _invalidate_all(self, counters: Counters, binder: Binder) -> None:
        self._tiers.check_open()
        if binder.common_tags:
            await self._invalidate_tags(counters, binder.common_tags)
        elif self._remote is None and binder.prefix is not None:
            records, prefix = {} if self._scope.space is None else self._scope.space.records, f"{binder.prefix}("
            for key in [key for key in (*records, *self._running, *self._marks) if key.startswith(prefix)]:
                self._tiers.forget(key)
                self._tiers.drop(key)
            self._notes.invalidated("delete", prefix, counters)
        else:
            msg = (
                f"{binder.owner}: invalidate_all() finds the results by a tag that all of them carry: give the function"
                f" one without fields, as in tags=[{binder.owner.removesuffix('()')!r}]"
            )
            raise ConfigurationError(msg)

    def _breaker_changed(self, state: Literal["closed", "open", "half-open"]) -> None:
        logger.warning("the circuit breaker of %r is %s", self._shared.backend, state)
        if self._shared.observers:
            emit(self._shared.observers, BreakerChanged(namespace="", key="", state=state))
        if state == "closed":
            self._shared.replay.recovered()

    def _channel_changed(self, state: ChannelState, by: ToldBy | None, reason: Exception | None) -> None:
        shared, counters, backend = self._shared, self._shared.counters, self._shared.backend
        if state == "armed":
            counters.channel_restorations += counters.channel_losses > counters.channel_restorations
        elif state == "lost":
            counters.channel_losses += 1
        match state, by:
            case "armed", "messages":
                why, level = ("", logging.INFO) if reason is None else (f" ({reason})", logging.WARNING)
                told = "%r does not tell of changes%s: caches tell each other, and near copies are kept for %s s"
                logger.log(level, told, backend, why, shared.near_ttl)
            case "armed", _:
                logger.info("%r tells of changes: near copies are kept until they end or change", backend)
            case "lost", "messages":
                logger.warning("messages over %r may be missed, until the subscription is back (%s)", backend, reason)
            case "lost", _:
                logger.warning("%r may not tell of changes: its near tier is bypassed until it does", backend)
            case "refused", _:
                logger.warning("%r does not tell of changes: %s", backend, reason)
        if shared.observers and state in ("armed", "lost", "refused"):
            changed = ChannelChanged(namespace="", key="", state=state, reason=reason, coherence=by)
            emit(shared.observers, changed)

    def _message_failed(self, namespace: str, error: BackendError) -> None:
        self._counters.backend_errors += 1
        if self._shared.observers:
            failed = BackendFailed(namespace=namespace, key="", operation="publish", error=error, raised=False)
            emit(self._shared.observers, failed)

    def stats(self) -> Stats:
        """Return the counters of this cache and all its views and functions, and the size of the near tier."""
        stats = self._counters.snapshot(replay_waiting=len(self._shared.replay))
        memory, channel = self._shared.memory, self._shared.channel
        if memory is None:
            return stats
        if channel is not None and channel.state in ("armed", "lost"):
            stats = replace(stats, coherence=channel.by)
        return replace(stats, evictions=memory.evictions, near_entries=memory.entries, near_bytes=memory.bytes)


@overload
def cached(
    function: None = None,
    /,
    *,
    max_entries: int = ...,
    thread: Literal[False] = ...,
    **rules: Unpack[FunctionRules],
) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], CachedFunction[P, R]]: ...
@overload
def cached(
    function: None = None, /, *, max_entries: int = ..., thread: Literal[True], **rules: Unpack[FunctionRules]
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...


def cached(
    function: None = None, /, *, max_entries: int = 10_000, policy: Policy | None = None, **rules: Any
) -> Callable[[Callable[P, Any]], CachedFunction[P, Any]]:
    """Decorate a coroutine function with a memory-only cache of its own, of ``max_entries``.

    The other rules are those of `Cache.cached`.

    Raises:
        ConfigurationError, TypeError: as for `Cache.cached`.
    """
    if function is not None:
        msg = "write @cached() with parentheses: the rules go there"
        raise ConfigurationError(msg)
    _check_options("cached", rules, "max_entries")

    def decorate(function: Callable[P, Any]) -> CachedFunction[P, Any]:
        decorator: Callable[..., CachedFunction[P, Any]] = Cache(memory=max_entries, policy=policy).cached(**rules)
        return decorator(function)

    return decorate


def _check_options(decorator: str, options: Mapping[str, Any], *own: str) -> None:
    known = {*FunctionRules.__annotations__, "thread", *own}
    for name in options:
        if name in known:
            continue
        if name in Policy.__dataclass_fields__:
            remedy = f", which is a rule of the policy: pass policy=Policy({name}={short(options[name])})"
        elif name in ("namespace", "codec"):
            remedy = f", which is the cache's: decorate with cache.view({name}={short(options[name])}).{decorator}(...)"
        else:
            remedy = f" (there are: {', '.join(sorted(known))})"
        msg = f"{decorator}() has no option {name!r}{remedy}"
        raise TypeError(msg)


class _Writing:
    """One far-tier change of some keys.

    Nothing that was read or loaded around it stays near: it drops the near copies, breaks the marks of those who are
    reading, and does both again at its end for those who began meanwhile.
    """

    __slots__ = ("_cache", "_cause", "_loud", "_marks", "_operation", "envelopes", "settled")

    def __init__(self, cache: Cache, operation: str, keys: Iterable[str], *, loud: bool = True) -> None:
        self._cache: Final = cache
        self._cause: Final[Cause] = "replaced" if operation in _NEW_VALUES else "invalidated"
        self._operation: Final = operation
        self._loud: Final = loud
        self._marks: Final[dict[str, Mark | None]] = dict.fromkeys(keys)
        self.envelopes: Mapping[str, Envelope] = {}
        """What is being written, once it is made."""
        self.settled: list[str] = []
        """After a success: the keys that nobody else changed meanwhile, whose new values may go near."""

    async def __aenter__(self) -> Self:
        cache = self._cache
        for key in self._marks:
            cache._scope.flights.forget(key)
            self._marks[key] = cache._scope.watch.open_write(key)
            cache._tiers.drop(key, self._cause)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cache = self._cache
        for key, mark in self._marks.items():
            cache._tiers.drop(key, self._cause)
            # A load that began meanwhile may have seen the old value: who comes from now on must not wait for it.
            cache._scope.flights.forget(key)
            if mark is not None:
                if error is None and mark.intact:
                    self.settled.append(key)
                cache._scope.watch.close(key, mark)
        if error is None or isinstance(error, BackendError):
            cache._tiers.settle_later(self._operation, self._marks, self.envelopes, error)
        if self._loud and isinstance(error, BackendError):
            key = next(iter(self._marks)) if len(self._marks) == 1 else ""
            cache._notes.failure(self._operation, key, error, raised=True)


def _nothing(*_: object) -> None:
    """Stand in for the near tier of a cache without one."""
