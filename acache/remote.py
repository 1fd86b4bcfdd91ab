"""`Remote`: the far tier as the facade sees it - one backend, with a namespace, a deadline and a circuit breaker.

Every fallback for a capability that an engine lacks stands here, once.  An engine with `Cas` is *guarded*: deletes
leave tombstones and fills are compare-and-set, so an invalidation wins over a load that began before it, in whichever
process.  Without `Cas` that promise holds within each process only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal, TypeAlias, TypeVar

from .backends.base import Add, Backend, Batch, Cas, Clear, Counter, KeyLimits, Notify, Touch, Version, batch_error
from .clock import FOREVER, Clock
from .deadlines import Deadlines, Operation
from .entry import Envelope, counter, holds_value, left, new_token, pack, tombstone, unpack
from .errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    CacheClosed,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    Unsupported,
    ValueTooLarge,
)
from .keys import WireKeys
from .replay import Replay

__all__ = ["FILL_WITHIN", "Breaker", "Remote", "Seen"]

T = TypeVar("T")

TOMBSTONE_TTL: Final = 60.0
"""Seconds a delete is remembered."""
FILL_WITHIN: Final = 55.0
"""Seconds from the look at the far tier to the fill; after that a tombstone may have come and gone."""
TAG_TTL: Final = 30 * 86400.0
"""Seconds a tag's token is kept; losing one invalidates what is under it."""
_EPOCH: Final = ""
"""What no user's tag is called."""
_ROUGH: Final = 1.0
"""Seconds by which two clocks may count the same minute differently."""
_ATTEMPTS: Final = 50
_CONCURRENT: Final = 32
_FAILURES: Final = 5
_LONGEST_BACKOFF: Final = 30.0
_LONGEST_PROBE: Final = 5.0

State = Literal["closed", "open", "half-open"]
Tell: TypeAlias = Callable[[str, Collection[str] | None, float], Awaitable[None]]
"""Gets the prefix of a namespace, the wire keys that were changed there (``None``: all), and the seconds it has."""


class Seen:
    """What a read saw; opened when somebody asks."""

    __slots__ = ("_opened", "data", "version")

    def __init__(self, data: bytes | None, version: Version = None, garbage: DecodeError | None = None) -> None:
        self.data: Final = data
        """As it is stored; ``None`` for nothing."""
        self.version: Final = version
        self._opened: tuple[Envelope | None, int | None, DecodeError | None] | None = None
        if garbage is not None:
            self._opened = (None, None, garbage)

    def _open(self) -> tuple[Envelope | None, int | None, DecodeError | None]:
        if self._opened is None:
            self._opened = _open(self.data)
        return self._opened

    @property
    def envelope(self) -> Envelope | None:
        """The value, if it is one."""
        return self._open()[0]

    @property
    def number(self) -> int | None:
        """The value of a counter, which has no envelope."""
        return self._open()[1]

    @property
    def garbage(self) -> DecodeError | None:
        """Why the bytes that are there cannot be read; they count as nothing."""
        return self._open()[2]

    def left(self, wall: float) -> float:
        """Return the seconds of freshness that are left: zero or less for a stale value, and for none."""
        envelope, number, _ = self._open()
        if envelope is not None:
            return left(envelope.created_at, envelope.fresh_for, envelope.keep_for, wall)
        return 0.0 if number is None else FOREVER


class Breaker:
    """Keeps a dead server from costing a deadline per call.

    Closed until five operations in a row failed; then open, which fails at once; after a while, doubling from one
    second to thirty with jitter, one operation is let through: it closes the breaker or opens it again.
    """

    def __init__(self, clock: Clock, on_change: Callable[[State], object]) -> None:
        self._clock: Final = clock
        self._on_change: Final = on_change
        self._failures = 0
        self._openings = 0
        self._open_until = 0.0
        self._last: BaseException | None = None
        self._advice = ""
        self.running: Final[dict[Operation, asyncio.AbstractEventLoop]] = {}
        """The operations under way."""
        self._idle: asyncio.Event | None = None
        self.closed = False
        """Whether the cache was closed: nothing passes, so that nothing connects again."""
        self.state: State = "closed"

    def check(self) -> None:
        """Let one operation pass.

        Raises:
            CacheClosed: the cache was closed meanwhile.
            BackendUnavailable: at once, instead of letting it wait for a dead server.
        """
        if self.closed:
            msg = "the cache was closed while this operation was on its way"
            raise CacheClosed(msg)
        if (refusal := self.refusal()) is not None:
            raise refusal
        if self.state != "closed":
            # If this one takes very long, such as a clear of millions of keys, it does not keep all others out.
            self._open_until = self._clock.monotonic() + _LONGEST_PROBE
            if self.state == "open":
                self._become("half-open")

    def refusal(self) -> BackendUnavailable | None:
        """Return the error with which an operation would fail at once; ``None`` if it would pass."""
        if self.state == "closed" or self._clock.monotonic() >= self._open_until:
            return None
        error = BackendUnavailable(self._advice)
        error.__cause__ = self._last
        return error

    async def drain(self, grace: float) -> None:
        """Let nothing pass any more; wait for what is under way, and after ``grace`` seconds end it."""
        self.closed = True
        loop = asyncio.get_running_loop()
        for _ in range(2):
            if not any(running is loop for running in self.running.values()):
                return
            self._idle = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            for operation, running in self.running.items():
                if running is loop:
                    operation.expire()

    def ended(self, operation: Operation) -> None:
        """Note that an operation has ended."""
        del self.running[operation]
        if self._idle is not None and not self.running:
            self._idle.set()

    def succeeded(self) -> None:
        """Note an answer, of whatever kind."""
        if self._failures:
            self._failures = self._openings = 0
            self._last = None
        if self.state != "closed":
            self._become("closed")

    def failed(self, error: BaseException) -> None:
        """Note a failure."""
        self._failures += 1
        self._last = error.with_traceback(None)
        self._advice = (
            f"the far tier failed {self._failures} times in a row and is left alone for a moment; last: {error}"
        )
        if self.state == "half-open" or (self.state == "closed" and self._failures >= _FAILURES):
            pause = min(_LONGEST_BACKOFF, 2.0**self._openings) * random.uniform(0.75, 1.0)  # noqa: S311 - jitter
            self._openings += 1
            self._open_until = self._clock.monotonic() + pause
            self._become("open")

    def abandoned(self) -> None:
        """Note that an operation was cancelled: if it was the probe, the next one is."""
        if self.state == "half-open":
            self._open_until = self._clock.monotonic()
            self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(state)


class Remote:
    """One namespace of one backend.  Keys are users' keys; values stay encoded.

    Each change is told by ``tell`` when the far tier has confirmed it.
    """

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        *,
        deadline: float,
        clock: Clock,
        breaker: Breaker,
        replay: Replay,
        tell: Tell | None = None,
    ) -> None:
        limits: KeyLimits = getattr(backend, "key_limits", KeyLimits())
        self._keys: Final = WireKeys(namespace, max_bytes=limits.max_bytes, printable=limits.printable)
        self._backend: Final = backend
        self._deadline: Final = deadline
        self._deadlines: Final = Deadlines(deadline)
        self._clock: Final = clock
        self._breaker: Final = breaker
        self._namespace: Final = namespace
        self._replay: Final = replay
        self._tell: Final = tell
        self._cas: Final = backend if isinstance(backend, Cas) else None
        self._batch: Final = backend if isinstance(backend, Batch) else None
        self._add: Final = backend if isinstance(backend, Add) else None
        self._counter: Final = backend if isinstance(backend, Counter) else None
        self._touch: Final = backend if isinstance(backend, Touch) else None
        self.epochs: Final = (_EPOCH,) if namespace and self._cas is not None and isinstance(backend, Clear) else ()
        """The tag whose token is the namespace's epoch, where `clear` has loads of other processes to look out for."""
        self._notify: Final = backend if isinstance(backend, Notify) else None
        self._rough: Final = _ROUGH + getattr(backend, "ttl_granularity", 0.0)

    @property
    def guarded(self) -> bool:
        """Whether the engine itself refuses a fill over what somebody else wrote."""
        return self._cas is not None

    # One entry ------------------------------------------------------------------------------------------------------

    async def read(self, key: str) -> Seen:
        """Read an entry, with the version a later `fill` compares."""
        wire = self._keys.entry(key)
        if self._cas is None:
            return await self.peek(key)
        self._check(key)
        try:
            data, version = await self._call(self._cas.get_versioned, wire)
        except DecodeError as error:
            return Seen(None, garbage=error)
        return Seen(data, version)

    async def peek(self, key: str) -> Seen:
        """Read an entry without its version: cheaper where nothing will be filled."""
        self._check(key)
        try:
            return Seen(await self._call(self._backend.get, self._keys.entry(key)))
        except DecodeError as error:  # something that is no entry of anybody's cache, such as a list
            return Seen(None, garbage=error)

    async def read_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Read many entries as they are stored, without versions; keys without one are left out.

        Raises:
            BackendError: its ``found`` has the entries that could be read, its ``failed`` the keys of the others.
        """
        changed = {key for key in keys if self._replay.holds(self._namespace, key)} if self._replay else set[str]()
        wires = self._keys.entries([key for key in keys if key not in changed] if changed else keys)
        try:
            found = await self._get_many(list(wires))
        except BackendError as error:
            error.found = {wires[wire]: data for wire, data in error.found.items()}
            raise _by_key(error, wires)  # noqa: B904 - the same error
        there = {wires[wire]: data for wire, data in found.items()}
        if changed:
            raise batch_error({key: self._replay.refusal(self._namespace, key) for key in changed}, found=there)
        return there

    async def write(self, key: str, envelope: Envelope) -> None:
        """Store an entry over whatever is there."""
        await self._change(self._backend.set, self._keys.entry(key), pack(envelope), ttl=_lifetime(envelope.keep_for))

    async def write_many(self, envelopes: Mapping[str, Envelope]) -> None:
        """Store entries that have one lifetime."""
        if not envelopes:
            return
        wires = self._keys.entries(envelopes)
        ttl = _lifetime(next(iter(envelopes.values())).keep_for)
        try:
            async with self._changing(wires):
                await self._set_many({wire: pack(envelopes[key]) for wire, key in wires.items()}, ttl)
        except BackendError as error:
            raise _by_key(error, wires)  # noqa: B904 - the same error

    async def fill(self, key: str, envelope: Envelope, version: Version, *, epoch: bytes | None = None) -> bool:
        """Store a loaded entry, unless somebody wrote or deleted the key since ``version`` was seen, or cleared.

        Args:
            key: of the user.
            envelope: the entry.
            version: what was seen before the load.
            epoch: that of the namespace before the load, where it has any.
        """
        if self._cas is None:
            await self.write(key, envelope)
            return True
        wire, ttl = self._keys.entry(key), _lifetime(envelope.keep_for)
        stored = await self._change(self._cas.set_if, wire, pack(envelope), version, ttl=ttl)
        return stored and not await self._cleared(key, epoch)

    async def add(self, key: str, envelope: Envelope) -> bool:
        """Store an entry if a reader would see nothing there."""
        wire, data, ttl = self._keys.entry(key), pack(envelope), _lifetime(envelope.keep_for)
        if self._cas is None:
            self._check(key)
            if self._add is not None:
                return await self._change(self._add.add, wire, data, ttl=ttl)
            if self._fresh(await self.peek(key)):
                return False
            await self._change(self._backend.set, wire, data, ttl=ttl)
            return True
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self.read(key)
            if self._fresh(seen):
                return False
            if await self._change(self._cas.set_if, wire, data, seen.version, ttl=ttl):
                return True
        raise self._too_busy(key)

    async def delete(self, key: str) -> bool:
        """Remove an entry so that no load which began before can bring it back; tell whether it was there."""
        wire = self._keys.entry(key)
        if self._cas is None:
            return await self._change(self._backend.delete, wire)
        before = await self._change(self._cas.swap, wire, self._tombstone(), ttl=TOMBSTONE_TTL)
        return before is not None and holds_value(before, self._clock.wall())

    async def settle(self, key: str, envelope: Envelope | None, since: float) -> None:
        """Send a change again that was not confirmed at ``since`` (monotonic): a write with its value, or a removal.

        The older value goes in any case.  The new one is stored where a load that began at ``since`` could have
        stored its own: over nothing, and not later than a tombstone is kept.  What somebody else wrote may be newer or
        older than it, and nobody can tell: it goes too, and so does neither of them win over the other by being late.
        """
        if self._cas is None or envelope is None:
            await self.delete(key)
            return
        wire, age = self._keys.entry(key), self._clock.monotonic() - since
        try:
            data, version = await self._call(self._cas.get_versioned, wire)
        except DecodeError:  # no entry of anybody's cache
            await self.delete(key)
            return
        if data is None:
            if age <= FILL_WITHIN and envelope.keep_for > age:
                await self._change(
                    self._cas.set_if, wire, pack(envelope), version, ttl=_lifetime(envelope.keep_for - age)
                )
            return
        there = Seen(data)
        if there.envelope is not None and there.envelope.token == envelope.token:
            return  # it had arrived; only the confirmation had not
        if there.envelope is not None or there.number is not None or there.garbage is not None:
            # Refused where somebody has written since: that is newer than what this was to remove.
            await self._change(self._cas.set_if, wire, self._tombstone(), version, ttl=TOMBSTONE_TTL)

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Remove many entries; the count is of those that were seen there when it began."""
        wires = self._keys.entries(keys)
        try:
            if self._cas is None:
                async with self._changing(wires):
                    if self._batch is not None:
                        return await self._call_many(self._batch.delete_many, list(wires))
                    return sum((await self._each(list(wires), self._backend.delete)).values())
            try:
                found: Mapping[str, bytes] = await self._get_many(list(wires))
            except BackendError as error:
                if not error.failed:
                    raise
                found = error.found  # what cannot be counted can perhaps be removed
            async with self._changing(wires):
                await self._set_many(dict.fromkeys(wires, self._tombstone()), TOMBSTONE_TTL)
            return sum(self._fresh(Seen(data)) for data in found.values())
        except BackendError as error:
            raise _by_key(error, wires)  # noqa: B904 - the same error

    async def touch(self, key: str, ttl: float, stale_for: float) -> bool:
        """Give an entry a new ttl, counted from now."""
        wire = self._keys.entry(key)
        epoch = (await self.make_tag_tokens(self.epochs)).get(_EPOCH)
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self.read(key)
            if seen.number is not None:
                if self._touch is not None:
                    return await self._change(self._touch.touch, wire, ttl=_lifetime(ttl))
                data, keep = b"%d" % seen.number, ttl
            elif seen.envelope is not None and self._fresh(seen):
                age = max(0.0, self._clock.wall() - seen.envelope.created_at)
                keep = ttl + stale_for
                envelope = seen.envelope._replace(token=new_token(), fresh_for=age + ttl, keep_for=age + keep)
                data = pack(envelope)
            else:
                return False
            if self._cas is None:
                await self._change(self._backend.set, wire, data, ttl=_lifetime(keep))
                return True
            if await self._change(self._cas.set_if, wire, data, seen.version, ttl=_lifetime(keep)):
                return not await self._cleared(key, epoch)
        raise self._too_busy(key)

    async def counter_ttl(self, key: str) -> float | None:
        """Tell a counter's seconds to live; ``None`` never expires."""
        if self._touch is None:
            msg = "this backend cannot tell the ttl of a counter: it has no Touch capability"
            raise Unsupported(msg)
        return await self._call(self._touch.ttl, self._keys.entry(key))

    async def incr(self, key: str, delta: int, ttl: float, decode: Callable[[Envelope], Any]) -> int:
        """Add to a counter.  An int that was stored as a value becomes a counter; anything else is refused."""
        self._check(key)
        wire = self._keys.entry(key)
        if self._counter is not None:
            try:
                return await self._change(self._counter.incr, wire, delta, ttl=_lifetime(ttl))
            except DecodeError:
                pass  # not a counter: an int in an envelope, a tombstone, or something else
        epoch = (await self.make_tag_tokens(self.epochs)).get(_EPOCH)
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self.read(key)
            if seen.garbage is not None:
                msg = f"cannot add {delta} to {key!r}: {seen.garbage}"
                raise DecodeError(msg) from seen.garbage
            number, lifetime = 0, ttl
            if seen.number is not None:
                number = seen.number
                if self._touch is not None:
                    lifetime = FOREVER if (rest := await self.counter_ttl(key)) is None else rest
            elif seen.envelope is not None and self._fresh(seen):
                number, lifetime = decode(seen.envelope), seen.left(self._clock.wall())
            if type(number) is not int or not -(2**63) <= number + delta < 2**63:
                msg = f"cannot add {delta} to {key!r}: it holds {number!r}, and counters are 64-bit integers"
                raise DecodeError(msg)
            data = b"%d" % (number + delta)
            if self._cas is None:
                await self._change(self._backend.set, wire, data, ttl=_lifetime(lifetime))
                return number + delta
            stored = await self._change(self._cas.set_if, wire, data, seen.version, ttl=_lifetime(lifetime))
            if stored and not await self._cleared(key, epoch):
                return number + delta
            epoch = (await self.make_tag_tokens(self.epochs)).get(_EPOCH)
        raise self._too_busy(key)

    async def clear(self) -> None:
        """Remove every entry of the namespace.

        Raises:
            Unsupported: the backend cannot, or there is no namespace and so no telling whose keys are whose.
        """
        if not self._keys.prefix:
            msg = (
                "clear() without a namespace would take other programs' keys along:"
                " build the cache with namespace=..., or use tags"
            )
            raise ConfigurationError(msg)
        if not isinstance(self._backend, Clear):
            msg = f"{type(self._backend).__name__} cannot remove keys by prefix: it has no Clear capability"
            raise Unsupported(msg)
        # A load that began before, in whatever process, finds another epoch when it has stored its value, or none.
        await self._set_many({self._keys.tag(epoch): new_token() for epoch in self.epochs}, TAG_TTL)
        self._breaker.check()
        # Without the deadline: bounded steps, but as many as there are keys.
        await self._guard(self._backend.clear(self._keys.prefix), Deadlines(None))
        if self._tell is not None:
            await self._tell(self._keys.prefix, None, self._deadline)

    async def _cleared(self, key: str, epoch: bytes | None) -> bool:
        """Tell whether the namespace was cleared since it had ``epoch``; what was stored meanwhile is removed.

        Looked at after it was stored: a `clear` that comes later than this look finds it, and removes it itself.
        """
        if epoch is None or (await self.tag_tokens(self.epochs)).get(_EPOCH) == epoch:
            return False
        await self.delete(key)
        return True

    # Tags -----------------------------------------------------------------------------------------------------------

    async def tag_tokens(self, tags: Sequence[str]) -> dict[str, bytes]:
        """Read the tokens of tags; a tag without one is left out."""
        if self._replay:
            self._replay.check_tags(self._namespace, tags)
        wires = {self._keys.tag(tag): tag for tag in tags}
        found = await self._get_many(list(wires))
        return {wires[wire]: bytes(token) for wire, token in found.items()}

    async def make_tag_tokens(self, tags: Sequence[str]) -> dict[str, bytes]:
        """Read the tokens of tags, making those that are missing."""
        tokens = await self.tag_tokens(tags)
        for tag in tags:
            if tag not in tokens:
                tokens[tag] = await self._make_tag_token(tag)
        return tokens

    async def _make_tag_token(self, tag: str) -> bytes:
        wire, token = self._keys.tag(tag), new_token()
        if self._add is not None:
            if not await self._change(self._add.add, wire, token, ttl=TAG_TTL):
                return await self._call(self._backend.get, wire) or token  # lost again: a token nobody has, invalid
            return token
        # Two makers at once: the first one's entries carry a token that is gone, and are invalid: the safe side.
        await self._change(self._backend.set, wire, token, ttl=TAG_TTL)
        return token

    async def late_tag_tokens(self, tags: Sequence[str], *, since: float) -> dict[str, bytes] | None:
        """Read the tokens of tags that a load learnt of while it ran, making those that are missing.

        ``None``: one of them was invalidated since the load began at ``since`` (monotonic), or a moment before: after
        it had read what it is made of, perhaps.

        An invalidation writes its note first and the token second, and here they are read in the opposite order: who
        sees the new token sees the note too, and who sees the old one stores what is invalid at once.  The note is
        there for longer than any load may take to its fill.
        """
        tokens = await self.make_tag_tokens(tags)
        for note in await self._get_many([self._keys.invalidated(tag) for tag in tags]):
            if await self._age(note) <= self._clock.monotonic() - since + self._rough:
                return None
        return tokens

    async def _age(self, note: str) -> float:
        """Tell how long a note has been there, by the engine's clock: from what is left of its time."""
        if self._touch is None:
            return 0.0
        try:
            left = await self._call(self._touch.ttl, note)
        except KeyMissing:
            return TOMBSTONE_TTL
        return 0.0 if left is None else TOMBSTONE_TTL - left

    async def replace_tag_tokens(self, tags: Iterable[str]) -> None:
        """Give tags new tokens: what carries the old ones is invalid from now on."""
        tags = tuple(tags)
        await self._set_many({self._keys.invalidated(tag): new_token() for tag in tags}, TOMBSTONE_TTL)
        tokens = {self._keys.tag(tag): new_token() for tag in tags}
        async with self._changing(tokens):
            await self._set_many(tokens, TAG_TTL)

    # Leases ---------------------------------------------------------------------------------------------------------

    async def read_lease(self, key: str) -> tuple[bytes | None, Version]:
        """Read the record of who loads ``key``, with the version that `write_lease` compares."""
        try:
            return await self._call(self._leased.get_versioned, self._keys.lease(key))
        except DecodeError as error:
            msg = f"the lease of {key!r} cannot be read: {error}"
            raise BackendUnavailable(msg) from error

    async def write_lease(self, key: str, record: bytes, version: Version, *, ttl: float) -> bool:
        """Write the record of who loads ``key``, unless somebody else did since ``version`` was seen."""
        return await self._call(self._leased.set_if, self._keys.lease(key), record, version, ttl=ttl)

    @property
    def _leased(self) -> Cas:
        assert self._cas is not None  # noqa: S101 - refused when the cache was built
        return self._cas

    @property
    def notifies(self) -> bool:
        """Whether the engine has messages."""
        return self._notify is not None

    async def publish(self, key: str, message: bytes) -> None:
        """Send a message to those who listen for news of ``key``, if the engine has messages."""
        if self._notify is not None:
            await self._call(self._notify.publish, self._keys.lease(key), message)

    @asynccontextmanager
    async def subscribe(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Listen for news of ``key``; the deadline is that of the subscription, not of its messages."""
        assert self._notify is not None  # noqa: S101 - whoever calls has asked
        subscription = self._notify.subscribe(self._keys.lease(key))
        messages = await self._call(subscription.__aenter__)
        try:
            yield messages
        finally:
            await subscription.__aexit__(None, None, None)

    # Bulk, with or without the engine's help ------------------------------------------------------------------------

    async def _get_many(self, wires: Sequence[str]) -> dict[str, bytes]:
        if not wires:
            return {}
        if self._batch is not None:
            return await self._call_many(self._batch.get_many, wires)
        found = await self._each(wires, self._backend.get)
        return {wire: data for wire, data in found.items() if data is not None}

    async def _set_many(self, items: Mapping[str, bytes], ttl: float | None) -> None:
        if not items:
            return
        if self._batch is not None:
            await self._call_many(self._batch.set_many, items, ttl=ttl)
            return
        await self._each(list(items), lambda wire: self._backend.set(wire, items[wire], ttl=ttl))

    async def _each(self, wires: Sequence[str], operate: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        done: dict[str, T] = {}
        failed: dict[str, BackendError] = {}

        async def one(wire: str) -> None:
            try:
                done[wire] = await self._call(operate, wire)
            except BackendError as error:
                failed[wire] = error

        for start in range(0, len(wires), _CONCURRENT):
            try:
                async with asyncio.TaskGroup() as group:
                    for wire in wires[start : start + _CONCURRENT]:
                        group.create_task(one(wire))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None  # as one operation would have
        if failed:
            raise batch_error(failed, found={wire: data for wire, data in done.items() if data is not None})
        return done

    # Telling others ------------------------------------------------------------------------------------------------

    async def _change(self, operate: Callable[..., Awaitable[T]], wire: str, *args: Any, **options: Any) -> T:
        """Do what changes a key, and tell that it did; ``False`` says that it did not."""
        result = await self._call(operate, wire, *args, **options)
        changed: object = result
        if self._tell is not None and changed is not False:
            await self._tell(self._keys.prefix, (wire,), self._deadline)
        return result

    @asynccontextmanager
    async def _changing(self, wires: Collection[str]) -> AsyncIterator[None]:
        """Tell of the keys that were changed inside: of all, or of those without an error of their own."""
        try:
            yield
        except BackendError as error:
            if self._tell is not None and error.failed:
                changed = [wire for wire in wires if wire not in error.failed]
                if changed:
                    await self._tell(self._keys.prefix, changed, self._deadline)
            raise
        if self._tell is not None:
            await self._tell(self._keys.prefix, wires, self._deadline)

    # Deadline and breaker -------------------------------------------------------------------------------------------

    async def _call(self, operate: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        self._breaker.check()
        return await self._guard(operate(*args, **options), self._deadlines)

    async def _call_many(self, operate: Callable[..., Awaitable[T]], keys: Collection[str], **options: Any) -> T:
        self._breaker.check()
        return await self._guard(operate(keys, **options), self._deadlines, len(keys))

    async def _guard(self, awaitable: Awaitable[T], deadlines: Deadlines, keys: int = 1) -> T:
        breaker, loop = self._breaker, asyncio.get_running_loop()
        operation = deadlines.begin(loop)
        breaker.running[operation] = loop
        error: BackendError
        try:
            result = await awaitable
        except (ValueTooLarge, Unsupported, DecodeError):
            breaker.succeeded()
            raise
        except BackendError as failure:
            if failure.failed and (keys == 1 or len(failure.failed) < keys):
                # One server of several, say, while the others answer: no reason to leave all of them alone.
                breaker.abandoned()
                if keys == 1:
                    failure.failed = {}  # the engine's name for a key that the caller knows
            elif isinstance(failure, BackendRefused):
                breaker.succeeded()  # a server that says no to a write, because it is full, say, is there for reads
            else:
                breaker.failed(failure)
            raise
        except TimeoutError as failure:
            error = BackendTimeout(f"the far tier did not answer in time: {failure}")
            breaker.failed(error)
            raise error from failure
        except asyncio.CancelledError as failure:
            if not operation.was_late():
                breaker.abandoned()
                raise
            error = BackendTimeout(f"the far tier did not answer within {self._deadline} s")
            breaker.failed(error)
            raise error from failure
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            operation.was_late()  # whatever the engine's client made of it, it must not stay on the caller's task
            deadlines.end(operation)
            breaker.ended(operation)
        breaker.succeeded()
        if operation.cancelled:
            # Client libraries that use wait_for can swallow a cancellation that comes together with the answer.
            raise asyncio.CancelledError
        return result

    def _check(self, key: str) -> None:
        """Read nothing of a key of which the far tier does not know the latest."""
        if self._replay and self._replay.holds(self._namespace, key):
            raise self._breaker.refusal() or self._replay.refusal(self._namespace, key)

    def _fresh(self, seen: Seen) -> bool:
        return seen.left(self._clock.wall()) > 0

    def _tombstone(self) -> bytes:
        return tombstone(new_token(), self._clock.wall())

    @staticmethod
    def _too_busy(key: str) -> BackendError:
        return BackendUnavailable(
            f"{key!r} was changed by others {_ATTEMPTS} times while this operation tried to change it"
        )


async def _pause(attempt: int) -> None:
    """Wait before another attempt, for a random time: of those who change one key in step, one would always lose."""
    if attempt:
        await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)))  # noqa: S311 - jitter


def _lifetime(seconds: float) -> float | None:
    return None if seconds == FOREVER else seconds


def _by_key(error: BackendError, wires: Mapping[str, str]) -> BackendError:
    """Put the users' keys in place of the engine's."""
    error.failed = {wires[wire]: why for wire, why in error.failed.items()}
    return error


def _open(data: bytes | None) -> tuple[Envelope | None, int | None, DecodeError | None]:
    """Return an envelope, a number or the reason why it is neither; nothing of them for nothing."""
    if data is None:
        return None, None, None
    number = counter(data)
    if number is not None:
        return None, number, None
    try:
        return unpack(data), None, None
    except DecodeError as error:
        return None, None, error
