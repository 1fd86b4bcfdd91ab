"""`Remote`: the far tier as the facade sees it - one backend, with a namespace, a deadline and a circuit breaker.

Every fallback for a capability that an engine lacks stands here, once.  An engine with `Cas` is *guarded*: deletes
leave tombstones and fills are compare-and-set, so an invalidation wins over a load that began before it, in whichever
process.  Without `Cas` that promise holds within each process only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

from .backends.base import Add, Backend, Batch, Cas, Clear, Counter, KeyLimits, Notify, Touch, Version, batch_error
from .calls import Breaker, Calls, Tell, by_key
from .clock import FOREVER, Clock
from .coherence import EPOCH, TagCell, Tags, Trust
from .entry import NO_EPOCH, Envelope, counter, holds_value, left, new_token, of_another_epoch, pack, tombstone, unpack
from .errors import BackendError, BackendUnavailable, ConfigurationError, DecodeError, Unsupported
from .keys import WireKeys
from .replay import Replay
from .tokens import TOMBSTONE_TTL, Tokens

__all__ = ["FILL_WITHIN", "Remote", "Seen"]

T = TypeVar("T")

FILL_WITHIN: Final = 55.0
"""Seconds from the look at the far tier to the fill; after that a tombstone may have come and gone."""
_ATTEMPTS: Final = 50
_NO_TOKENS: Final[Mapping[str, bytes]] = {}
_NO_TOKEN: Final = b""
_UNSEALED: Final[Mapping[str, bytes]] = {EPOCH: NO_EPOCH}


class Seen:
    """What a read saw; opened when somebody asks.

    A value of another epoch than ``tokens`` say is nothing.
    """

    __slots__ = ("_opened", "cells", "data", "tokens", "version")

    def __init__(
        self,
        data: bytes | None,
        version: Version = None,
        tokens: Mapping[str, bytes] = _NO_TOKENS,
        cells: tuple[TagCell, ...] = (),
        garbage: DecodeError | None = None,
    ) -> None:
        self.data: Final = data
        """As it is stored; ``None`` for nothing."""
        self.version: Final = version
        self.tokens: Final = tokens
        """Those of the namespace and of some tags, from before or beside the read."""
        self.cells: Final = cells
        """Of these tags, from before their tokens were asked for."""
        self._opened: tuple[Envelope | None, int | None, DecodeError | None] | None = None
        if garbage is not None:
            self._opened = (None, None, garbage)

    def _open(self) -> tuple[Envelope | None, int | None, DecodeError | None]:
        if self._opened is None:
            self._opened = _open(self.data, self.epoch)
        return self._opened

    @property
    def epoch(self) -> bytes | None:
        """The namespace's; ``None``: it has none yet, and so no value."""
        return self.tokens.get(EPOCH)

    @property
    def envelope(self) -> Envelope | None:
        """The value, if it is one."""
        return self._open()[0]

    @property
    def number(self) -> int | None:
        """The value of a counter, which has no envelope."""
        return self._open()[1]

    @property
    def there(self) -> bool:
        """Whether it is a value, of whatever age."""
        envelope, number, _ = self._open()
        return envelope is not None or number is not None

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


class Found(NamedTuple):
    """What a read of many keys found, as it is stored."""

    there: Mapping[str, bytes]
    tokens: Mapping[str, bytes]
    """Of the namespace."""
    error: BackendError | None
    """Why some of the keys, or all, could not be read."""


class Remote:
    """One namespace of one backend.  Keys are users' keys; values stay encoded."""

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        *,
        deadline: float,
        clock: Clock,
        breaker: Breaker,
        replay: Replay,
        tags: Tags,
        trust: Trust,
        tell: Tell | None = None,
    ) -> None:
        limits: KeyLimits = getattr(backend, "key_limits", KeyLimits())
        self._keys: Final = WireKeys(namespace, max_bytes=limits.max_bytes, printable=limits.printable)
        self._backend: Final = backend
        self._calls: Final = Calls(backend, deadline, breaker, prefix=self._keys.prefix, tell=tell)
        self._clock: Final = clock
        self._breaker: Final = breaker
        self._namespace: Final = namespace
        self._replay: Final = replay
        self._tags: Final = tags
        self._cas: Final = backend if isinstance(backend, Cas) else None
        self._batch: Final = backend if isinstance(backend, Batch) else None
        self._add: Final = backend if isinstance(backend, Add) else None
        self._counter: Final = backend if isinstance(backend, Counter) else None
        self._touch: Final = backend if isinstance(backend, Touch) else None
        self._notify: Final = backend if isinstance(backend, Notify) else None
        self.tokens: Final = Tokens(
            self._calls,
            self._keys,
            tags=tags,
            trust=trust,
            clock=clock,
            replay=replay,
            namespace=namespace,
            sealed=bool(namespace) and self._cas is not None and isinstance(backend, Clear),
        )

    @property
    def guarded(self) -> bool:
        """Whether the engine itself refuses a fill over what somebody else wrote."""
        return self._cas is not None

    # One entry ------------------------------------------------------------------------------------------------------

    def read(self, key: str, tags: Sequence[str] = (), *, strictly: bool = False) -> Coroutine[Any, Any, Seen]:
        """Read an entry, with the version a later `fill` compares.

        Args:
            key: of the user.
            tags: whose tokens the caller needs, too: in the same round trip, if they are not known.
            strictly: ask for the tokens, whatever is mirrored.
        """
        if self._cas is None:
            return self._look(self._backend.get, key, tags)
        return self._look(self._cas.get_versioned, key, tags, versioned=True, strictly=strictly)

    def peek(self, key: str) -> Coroutine[Any, Any, Seen]:
        """Read an entry without its version: cheaper where nothing will be filled."""
        return self._look(self._backend.get, key)

    async def _look(
        self,
        operate: Callable[[str], Awaitable[Any]],
        key: str,
        tags: Sequence[str] = (),
        *,
        versioned: bool = False,
        strictly: bool = False,
    ) -> Seen:
        self._check(key)
        cells, seal = self._tags.cells(tags) if tags else (), self.tokens.seal
        names = (*seal, *tags) if tags else seal
        tokens: Mapping[str, bytes] = _UNSEALED
        reading = self._calls.one(operate, self._keys.entry(key))
        try:
            if names:
                found, tokens = await self.beside(reading, names, strictly=strictly)
            else:
                found = await reading
        except DecodeError as error:  # something that is no entry of anybody's cache, such as a list
            return Seen(None, garbage=error)
        data, version = found if versioned else (found, None)
        if not seal:
            tokens = {**tokens, EPOCH: NO_EPOCH} if tags else _UNSEALED
        elif data is not None and of_another_epoch(data, tokens.get(EPOCH)):
            tokens = await self._asked_again(tokens)
        return Seen(data, version, tokens, cells)

    async def _read_valid(self, key: str, *, strictly: bool = False) -> Seen:
        """Read an entry with its version; one whose tags were invalidated is nothing."""
        seen = await self.read(key, strictly=strictly)
        if (envelope := seen.envelope) is None or not envelope.tags:
            return seen
        names = [tag for tag, _ in envelope.tags]
        tokens = {} if strictly else self.tokens.known(names)
        if any(tokens.get(tag) != token for tag, token in envelope.tags):
            tokens = await self.tokens.read(names)
        if all(tokens.get(tag) == token for tag, token in envelope.tags):
            return seen
        return Seen(None, seen.version, seen.tokens)

    async def agreeing(self, found: Iterable[bytes | None], tokens: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Return the tokens to judge records by: asked for again, if one was stored under another epoch."""
        epoch = tokens.get(EPOCH)
        if self.tokens.seal and any(data is not None and of_another_epoch(data, epoch) for data in found):
            return await self._asked_again(tokens)
        return tokens

    async def _asked_again(self, tokens: Mapping[str, bytes]) -> Mapping[str, bytes]:
        # A record may be newer than what was known of the epoch when it was read.
        rest = {tag: token for tag, token in tokens.items() if tag != EPOCH}
        return rest | await self.tokens.read(self.tokens.seal, anew=True)

    async def judged(self, data: bytes) -> Seen:
        """Return what somebody else has just stored, with the tokens of this moment to judge it by."""
        seal = self.tokens.seal
        tokens = (self.tokens.known(seal) or await self.tokens.read(seal)) if seal else _UNSEALED
        return Seen(data, tokens=await self.agreeing((data,), tokens))

    async def beside(
        self, operation: Coroutine[Any, Any, T], names: Sequence[str], *, strictly: bool = False
    ) -> tuple[T, Mapping[str, bytes]]:
        """Do an operation, and have some tokens in the same round trip: those that are mirrored, if all of them are.

        Args:
            operation: any call of the backend.
            names: of tags, and of the epoch; those that have no token are left out.
            strictly: ask for them, whatever is mirrored.
        """
        known = {} if strictly else self.tokens.known(names)
        if len(known) == len(names):
            return await operation, known
        missing = [name for name in names if name not in known]
        if self._breaker.state != "closed":
            # It lets one operation through: the other is for when that has succeeded.
            result = await operation
            return result, {**known, **await self.tokens.read(missing)}
        try:
            asked = self.tokens.ask(missing)
        except BaseException:
            operation.close()
            raise
        try:
            result = await operation
            return result, {**known, **await asked}
        finally:
            if not asked.cancel() and not asked.cancelled():
                asked.exception()  # so that it counts as heard, if the operation failed too

    async def read_many(self, keys: Sequence[str]) -> Found:
        """Read many entries without versions, and the epoch with them; keys without an entry are left out."""
        changed = {key for key in keys if self._replay.holds(self._namespace, key)} if self._replay else set[str]()
        wires = self._keys.entries([key for key in keys if key not in changed] if changed else keys)
        tokens = self.tokens.known(self.tokens.seal) if self.tokens.seal else _UNSEALED
        error: BackendError | None = None
        found: Mapping[str, bytes]
        try:
            if tokens:
                found = await self._calls.get_many(list(wires))
            else:
                found, tokens = await self.tokens.read_with_epoch(list(wires))
        except BackendError as failure:
            found, error = failure.found, failure
            if found and not tokens:
                with suppress(BackendError):
                    tokens = await self.tokens.read(self.tokens.seal)
        there = {wires[wire]: data for wire, data in found.items()}
        if error is not None:
            by_key(error, wires)
        if changed and error is None:
            error = batch_error({key: self._replay.refusal(self._namespace, key) for key in changed}, found=there)
        return Found(there, tokens, error)

    async def write(self, envelopes: Mapping[str, Envelope]) -> None:
        """Store entries over whatever is there; they have one lifetime, the same tags, and the latest tokens known.

        If these are not the present ones, they are stored once more, under those.
        """
        wires, seal = self._keys.entries(envelopes), self.tokens.seal
        for _ in range(_ATTEMPTS if envelopes else 0):
            first = next(iter(envelopes.values()))
            under = dict(first.tags)
            names = (*seal, *under)
            if not seal or first.epoch != NO_EPOCH:
                under |= dict.fromkeys(seal, first.epoch)
                mirrored = self.tokens.known(names)
                storing = self._store(wires, envelopes, _lifetime(first.keep_for))
                _, tokens = await self.beside(storing, seal)
                if mirrored:
                    # What was changed before this was stored has been told by now, over the same connection.
                    told = self.tokens.known(names)
                    tokens = {**tokens, **{name: told.get(name, _NO_TOKEN) for name in mirrored}}
                elif self.tokens.copied and seal:
                    tokens = await self.tokens.read(seal, anew=True)
                if all(tokens.get(name) == under[name] for name in {*seal, *tokens}):
                    return
            present = await self.tokens.make(names)
            tags = tuple([(tag, present[tag]) for tag, _ in first.tags])
            epoch = present[EPOCH] if seal else NO_EPOCH
            envelopes = {key: envelope._replace(epoch=epoch, tags=tags) for key, envelope in envelopes.items()}

    async def _store(self, wires: Mapping[str, str], envelopes: Mapping[str, Envelope], ttl: float | None) -> None:
        if len(wires) == 1:
            for wire, key in wires.items():
                await self._calls.change(self._backend.set, wire, pack(envelopes[key]), ttl=ttl)
            return
        try:
            async with self._calls.changing(wires):
                await self._calls.set_many({wire: pack(envelopes[key]) for wire, key in wires.items()}, ttl)
        except BackendError as error:
            raise by_key(error, wires)  # noqa: B904 - the same error

    async def fill(self, key: str, envelope: Envelope, version: Version) -> bool:
        """Store a loaded entry, unless somebody wrote or deleted the key since ``version`` was seen, or cleared.

        Where nobody tells of invalidations, the tokens are asked for beside: what was stored under older ones is
        nothing to whoever reads it, and must not be kept near either.
        """
        wire, ttl = self._keys.entry(key), _lifetime(envelope.keep_for)
        filling: Coroutine[Any, Any, bool | None]
        if self._cas is None:
            filling = self._calls.change(self._backend.set, wire, pack(envelope), ttl=ttl)
        else:
            filling = self._calls.change(self._cas.set_if, wire, pack(envelope), version, ttl=ttl)
        under = dict(envelope.tags)
        if self.tokens.seal:
            under[EPOCH] = envelope.epoch
        stored, tokens = await self.beside(filling, tuple(under))
        return stored is not False and all(tokens.get(name) == token for name, token in under.items())

    async def remove(self, key: str, version: Version) -> None:
        """Remove an entry, unless somebody wrote it since ``version`` was read; see `delete`.

        At whatever time: of an entry, unlike of nothing, no version comes back.
        """
        wire = self._keys.entry(key)
        if self._cas is None:
            await self._calls.change(self._backend.delete, wire)
        else:
            await self._calls.change(self._cas.set_if, wire, self._tombstone(), version, ttl=TOMBSTONE_TTL)

    async def add(self, key: str, envelope: Envelope) -> bool:
        """Store an entry if a reader would see nothing there."""
        wire, ttl = self._keys.entry(key), _lifetime(envelope.keep_for)
        if self._cas is None:
            self._check(key)
            if self._add is not None:
                return await self._calls.change(self._add.add, wire, pack(envelope), ttl=ttl)
            if self._fresh(await self._read_valid(key)):
                return False
            await self._calls.change(self._backend.set, wire, pack(envelope), ttl=ttl)
            return True
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self._read_valid(key, strictly=True)  # of two that add after a `clear`, one must not know less
            if self._fresh(seen):
                return False
            if self.tokens.seal:
                found = await self.tokens.read(self.tokens.seal, anew=True) if self.tokens.copied else seen.tokens
                envelope = envelope._replace(epoch=(await self.tokens.make(self.tokens.seal, found))[EPOCH])
            if await self._calls.change(self._cas.set_if, wire, pack(envelope), seen.version, ttl=ttl):
                return True
        raise self._too_busy(key)

    async def delete(self, key: str) -> bool:
        """Remove an entry so that no load which began before can bring it back; tell whether it was there."""
        wire = self._keys.entry(key)
        if self._cas is None:
            return await self._calls.change(self._backend.delete, wire)
        swapping = self._calls.change(self._cas.swap, wire, self._tombstone(), ttl=TOMBSTONE_TTL)
        before, tokens = await self.beside(swapping, self.tokens.seal)
        if before is None:
            return False
        tokens = await self.agreeing((before,), tokens)
        epoch = tokens.get(EPOCH) if self.tokens.seal else NO_EPOCH
        return holds_value(before, self._clock.wall(), epoch)

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
            data, version = await self._calls.one(self._cas.get_versioned, wire)
        except DecodeError:  # no entry of anybody's cache
            await self.delete(key)
            return
        if data is None:
            if age > FILL_WITHIN or envelope.keep_for <= age:
                return
            if self.tokens.seal:
                epoch = await self.tokens.epoch_after(envelope.epoch)
                if epoch is None:
                    return  # somebody has cleared since, or the server came back empty and another began anew there
                envelope = envelope._replace(epoch=epoch)
            await self._calls.change(
                self._cas.set_if, wire, pack(envelope), version, ttl=_lifetime(envelope.keep_for - age)
            )
            return
        with suppress(DecodeError):  # a counter, or no record of this format: it goes too
            there = unpack(data)
            if there is None or there.token == envelope.token:
                return  # it was removed since, or it had arrived and only the confirmation had not
        # Refused where somebody has written since: that is newer than what this was to remove.
        await self._calls.change(self._cas.set_if, wire, self._tombstone(), version, ttl=TOMBSTONE_TTL)

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Remove many entries; the count is of those that were seen there when it began."""
        wires = self._keys.entries(keys)
        try:
            if self._cas is None:
                async with self._calls.changing(wires):
                    if self._batch is not None:
                        return await self._calls.many(self._batch.delete_many, list(wires))
                    return sum((await self._calls.each(list(wires), self._backend.delete)).values())
            found: Mapping[str, bytes]
            try:
                counting = self._calls.get_many(list(wires))
                found, tokens = await self.beside(counting, self.tokens.seal)
            except BackendError as error:
                if not error.failed:
                    raise
                found, tokens = error.found, {}  # what cannot be counted can perhaps be removed
            async with self._calls.changing(wires):
                await self._calls.set_many(dict.fromkeys(wires, self._tombstone()), TOMBSTONE_TTL)
            wall, epoch = self._clock.wall(), tokens.get(EPOCH) if self.tokens.seal else NO_EPOCH
            return sum(holds_value(data, wall, epoch) for data in found.values())
        except BackendError as error:
            raise by_key(error, wires)  # noqa: B904 - the same error

    async def touch(self, key: str, ttl: float, stale_for: float) -> bool:
        """Give an entry a new ttl, counted from now."""
        wire = self._keys.entry(key)
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self._read_valid(key)
            if seen.number is not None:
                if self._touch is not None:
                    return await self._calls.change(self._touch.touch, wire, ttl=_lifetime(ttl))
                data, keep = b"%d" % seen.number, ttl
            elif seen.envelope is not None and self._fresh(seen):
                age = max(0.0, self._clock.wall() - seen.envelope.created_at)
                keep = ttl + stale_for
                envelope = seen.envelope._replace(token=new_token(), fresh_for=age + ttl, keep_for=age + keep)
                data = pack(envelope)
            else:
                return False
            if self._cas is None:
                await self._calls.change(self._backend.set, wire, data, ttl=_lifetime(keep))
                return True
            if await self._calls.change(self._cas.set_if, wire, data, seen.version, ttl=_lifetime(keep)):
                return True
        raise self._too_busy(key)

    async def counter_ttl(self, key: str) -> float | None:
        """Tell a counter's seconds to live; ``None`` never expires."""
        if self._touch is None:
            msg = "this backend cannot tell the ttl of a counter: it has no Touch capability"
            raise Unsupported(msg)
        return await self._calls.one(self._touch.ttl, self._keys.entry(key))

    async def incr(self, key: str, delta: int, ttl: float, decode: Callable[[Envelope], Any]) -> int:
        """Add to a counter.  An int that was stored as a value becomes a counter; anything else is refused."""
        self._check(key)
        if self._counter is not None:
            counting = self._calls.change(self._counter.incr, self._keys.entry(key), delta, ttl=_lifetime(ttl))
            try:
                total, _ = await self.beside(counting, self.tokens.seal)
            except DecodeError:
                pass  # not a counter: an int in an envelope, a tombstone, or something else
            else:
                if self.tokens.seal and not self.tokens.counted:
                    await self.tokens.note_counters()
                return total
        if self.tokens.seal:
            await self.tokens.note_counters()  # before there is one, so that a `clear` from now on looks for it
        return await self._count(key, delta, ttl, decode)

    async def _count(self, key: str, delta: int, ttl: float, decode: Callable[[Envelope], Any]) -> int:
        """Add without the engine's help, or to what is no counter yet."""
        wire = self._keys.entry(key)
        for attempt in range(_ATTEMPTS):
            await _pause(attempt)
            seen = await self._read_valid(key)
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
                await self._calls.change(self._backend.set, wire, data, ttl=_lifetime(lifetime))
                return number + delta
            stored = await self._calls.change(self._cas.set_if, wire, data, seen.version, ttl=_lifetime(lifetime))
            if stored and not await self._cleared(key, seen.epoch):
                return number + delta
        raise self._too_busy(key)

    async def _cleared(self, key: str, epoch: bytes | None) -> bool:
        """Tell whether the namespace was cleared since it had ``epoch``; the counter made meanwhile is removed.

        Looked at after it was stored: a `clear` that comes later than this look finds it, and removes it itself.
        """
        if not self.tokens.seal or (await self.tokens.read(self.tokens.seal, anew=True)).get(EPOCH) == epoch:
            return False
        await self.delete(key)
        return True

    async def clear(self) -> None:
        """Make everything in the namespace nothing: by another epoch, and by looking for keys only where it must.

        Raises:
            ConfigurationError: there is no namespace and so no telling whose keys are whose.
            Unsupported: the backend has no removal by prefix.
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
        if self.tokens.seal and not await self.tokens.renew_epoch():
            return
        await self._calls.at_leisure(self._backend.clear, self._keys.prefix)
        if self.tokens.seal:
            await self.tokens.renew_counted_epoch()  # its record was among the keys

    # Leases ---------------------------------------------------------------------------------------------------------

    async def read_lease(self, key: str) -> tuple[bytes | None, Version]:
        """Read the record of who loads ``key``, with the version that `write_lease` compares."""
        try:
            return await self._calls.one(self._leased.get_versioned, self._keys.lease(key))
        except DecodeError as error:
            msg = f"the lease of {key!r} cannot be read: {error}"
            raise BackendUnavailable(msg) from error

    async def write_lease(self, key: str, record: bytes, version: Version, *, ttl: float) -> bool:
        """Write the record of who loads ``key``, unless somebody else did since ``version`` was seen."""
        return await self._calls.one(self._leased.set_if, self._keys.lease(key), record, version, ttl=ttl)

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
            await self._calls.one(self._notify.publish, self._keys.lease(key), message)

    @asynccontextmanager
    async def subscribe(self, key: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Listen for news of ``key``; the deadline is that of the subscription, not of its messages."""
        assert self._notify is not None  # noqa: S101 - whoever calls has asked
        subscription = self._notify.subscribe(self._keys.lease(key))
        messages = await self._calls.one(subscription.__aenter__)
        try:
            yield messages
        finally:
            await subscription.__aexit__(None, None, None)

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


def _open(data: bytes | None, epoch: bytes | None) -> tuple[Envelope | None, int | None, DecodeError | None]:
    """Return an envelope, a number or the reason why it is neither; nothing of them for nothing."""
    if data is None:
        return None, None, None
    number = counter(data)
    if number is not None:
        return None, number, None
    try:
        envelope = unpack(data)
    except DecodeError as error:
        return None, None, error
    return envelope if envelope is not None and envelope.epoch == epoch else None, None, None
