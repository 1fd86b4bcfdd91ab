"""`Tiers`: the near and the far tier of one namespace, as one facade with its codec and its policy sees them.

Here stands how a value gets into and out of each tier; when it does is the business of `acache.staircase` and
`acache.cache`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakSet

from .backends.base import Backend, KeyLimits
from .calls import Breaker
from .clock import FOREVER, Clock
from .codecs import Codec, Msgpack
from .codecs.base import encode_under
from .coherence import EPOCH, Channel, Messages, TagCell, Tags, Trust
from .entry import BARELY_FRESH, NO_EPOCH, Envelope, new_token, opener
from .errors import BackendError, CacheClosed, DecodeError, Unsupported, ValueTooLarge
from .events import Counters, InvalidationReceived, Observer, Operation, emit
from .keys import WireKeys
from .loading import Flights, Watch, close_batches
from .memory import Cause, Dates, Memory, Record, Terms, extra_of, fresh_until_of, make_record
from .notes import Notes
from .policy import Policy
from .remote import Remote, Seen
from .replay import Replay, Slot

__all__ = ["MISS", "NEAR_TTL", "Extra", "Received", "Scope", "Shared", "Tiers", "until_due"]

NEAR_TTL: Final = 5.0
"""Seconds for which a near copy of a far entry is trusted where nobody tells of changes: the bound on how long that of
another process goes unseen.  ``Memory(ttl=...)`` sets another."""
_MOST_DIGESTS: Final = 1000
_FEW: Final = 128
_AT_ONCE: Final = nullcontext()
MISS: Final[Any] = object()
_REPLAYED: Final[Mapping[str, Operation]] = {
    "set": "set",
    "set_many": "set",
    "delete": "delete",
    "delete_many": "delete",
}
"""What may be sent again; an `add`, a `touch` and an `incr` answer a question, and only at that time."""
Opened: TypeAlias = tuple[float, float, float, bytes]
Quick: TypeAlias = Callable[[bytes, float, bytes | None], Opened | None]


class Extra(NamedTuple):
    """What a near record carries beyond value and dates, when it carries anything."""

    cells: tuple[TagCell, ...]
    load_time: float
    ends_at: float = 0.0
    """When the far entry ends, of which this is a copy; monotonic.  0.0: not known, or nobody asks."""


class Received(NamedTuple):
    """A far entry, decoded and found valid."""

    value: Any
    fresh_for: float
    """Seconds of freshness left; zero or less is stale."""
    ttl: float
    extra: Extra | None


class Scope:
    """What the views of one namespace share."""

    __slots__ = (
        *("_counters", "_digests", "_keys", "_memory", "_namespace", "_observers", "_surely_plain", "_turns"),
        *("backoffs", "batches", "flights", "house", "space", "tags", "trust", "users", "watch"),
    )

    def __init__(self, namespace: str, shared: Shared) -> None:
        backend, memory = shared.backend, shared.memory
        self._namespace: Final = namespace
        self._counters: Final = shared.counters
        self._observers: Final = shared.observers
        self._memory: Final = memory
        limits = getattr(backend, "key_limits", KeyLimits())
        self._keys: Final = WireKeys(namespace, max_bytes=limits.max_bytes, printable=limits.printable)
        self._surely_plain: Final = self._keys.surely_plain
        self._digests: Final[dict[str, str]] = {}
        """The users' keys by their wire keys, of those near copies whose wire keys do not tell."""
        self.trust: Final = Trust(shared.near_ttl)
        self.space: Final = None if memory is None else memory.space(namespace)
        self.flights: Final = Flights()
        self.watch: Final = Watch()
        self.tags: Final = Tags(ever_counted=namespace in shared.counted)
        self.backoffs: Final[dict[str, float]] = {}
        """Until when a key whose loader failed is not loaded again; monotonic."""
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None
        self.batches: Final[set[asyncio.Task[None]]] = set()
        """The calls of batch loaders under way."""
        self.house: Final = new_token()
        """What the leases of these flights have in common."""
        self.users: Final[WeakSet[Tiers]] = WeakSet()
        """Who works with it; whatever runs keeps its own alive."""

    def idle(self, now: float) -> bool:
        """Tell whether nothing would be lost with it: no view, no entry, no load, nothing that only it knows."""
        if self.users or self.flights or self.watch.marks or self.batches:
            return False
        if self.space is not None and self.space.records:
            return False
        return all(until <= now for until in self.backoffs.values())

    def turn(self, *, among_many: bool) -> AbstractAsyncContextManager[object]:
        """Return what to enter for an operation of a load: one among many waits until few of them are under way.

        Else those of ten thousand keys would begin at once, and all but the first miss their deadline, which begins
        with the operation.
        """
        if not among_many:
            return _AT_ONCE
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Semaphore(_FEW)
        return self._turns[1]

    def changed(self, wires: Sequence[str] | None) -> None:
        """See `Member.changed`."""
        if wires is None:
            self._changed_all()
            return
        for wire in wires:
            name, tag = self._keys.meaning(wire)
            if tag == EPOCH:
                self._changed_all()
            elif tag is not None:
                self.flights.forget_tagged((tag,))
                self.tags.spoil((tag,))
                self._received("", tag)
            elif (key := name or self._of_digest(wire)) is not None:
                self._forget(key)
                if self.space is not None:
                    self.space.pop(key)
                self._received(key, "")

    def _changed_all(self) -> None:
        for marked in tuple(self.watch.marks):
            self._forget(marked)
        self.tags.spoil_all()
        if self.space is not None:
            self.space.clear()
        self._received("", "")

    def _forget(self, key: str) -> None:
        if self.watch.told(key):
            self.flights.forget(key)

    def _received(self, key: str, tag: str) -> None:
        self._counters.invalidations_received += 1
        if self._observers:
            emit(self._observers, InvalidationReceived(namespace=self._namespace, key=key, tag=tag))

    def _of_digest(self, wire: str) -> str | None:
        if not self._keys.is_digest(wire):
            return None  # the lease of a key, say, of which there are many
        if (key := self._digests.pop(wire, None)) is not None:
            return key
        being_read = [key for key in self.watch.marks if len(key) > self._surely_plain]
        return next((key for key in being_read if self._keys.entry(key) == wire), None)

    def note_digest(self, key: str) -> None:
        """Take note of a key that is put near, if a message about it would not spell it out."""
        if len(key) <= self._surely_plain or self.space is None or (wire := self._keys.entry(key)).endswith(key):
            return
        if len(self._digests) >= _MOST_DIGESTS:
            near = [item for item in self._digests.items() if item[1] in self.space.records]
            for _, oldest in near[: max(0, len(near) - _MOST_DIGESTS // 2)]:
                self.space.pop(oldest)
            self._digests.clear()
            self._digests.update(near[-(_MOST_DIGESTS // 2) :])
        self._digests[wire] = key

    def distrust(self) -> None:
        """See `Member.distrust`."""
        self.watch.distrust()
        self.tags.forget_mirrored()
        if self._memory is not None and not self._memory.keep_stale:
            self.drop()  # nobody takes a stale value

    def drop(self) -> None:
        """See `Member.drop`."""
        self.watch.distrust()
        self.tags.forget_mirrored()
        self._digests.clear()
        if self.space is not None:
            self.space.clear()

    def close(self) -> list[asyncio.Task[Any]]:
        """Give every load up, and return what is on its way out."""
        return [*self.flights.close(), *close_batches(self.batches)]


@dataclass(slots=True)
class Shared:
    """What a cache and its views share."""

    backend: Backend | None
    memory: Memory | None
    clock: Clock
    observers: tuple[Observer, ...]
    counters: Counters
    breaker: Breaker
    replay: Replay
    scopes: dict[str, Scope]
    functions: set[tuple[str, str]]
    near_ttl: float
    """Seconds for which a near copy is kept where nobody tells of changes."""
    channel: Channel | None = None
    messages: Messages | None = None
    """By which others are told of changes that the far tier does not tell of."""
    closed: bool = False
    closing: bool = False
    """Whether an ``aclose`` is under way."""
    released: bool = False
    """Whether one came to its end."""
    counted: set[str] = field(default_factory=set)
    """Those of the dropped scopes' namespaces that ever held counters: all that is left of them."""
    until_pruned: int = _FEW
    """How many scopes there may be before those that are idle are dropped."""

    def scope(self, namespace: str) -> Scope:
        """Return the one of this namespace."""
        scope = self.scopes.get(namespace)
        if scope is None:
            if len(self.scopes) >= self.until_pruned:
                self._prune()
            scope = self.scopes[namespace] = Scope(namespace, self)
            if self.channel is not None:
                self.channel.add(_prefix(namespace), scope)
        return scope

    def _prune(self) -> None:
        """Drop the scopes of namespaces that nobody has in hand and of which nothing is left: of tenants, say."""
        now = self.clock.monotonic()
        # What is kept for the far tier goes by what these know of its tokens.
        for namespace in [name for name, scope in self.scopes.items() if not self.replay and scope.idle(now)]:
            if self.scopes.pop(namespace).tags.ever_counted:
                self.counted.add(namespace)
            if self.memory is not None:
                self.memory.forget(namespace)
            if self.channel is not None:
                self.channel.remove(_prefix(namespace))
        self.until_pruned = max(_FEW, 2 * len(self.scopes))  # so that a look at all of them is paid by as many new ones

    async def tell(self, prefix: str, wires: Collection[str] | None, patience: float) -> None:
        """Tell others of a change that the far tier has confirmed, unless it tells them itself."""
        channel = self.channel
        if channel is not None and not channel.tracks and not self.closed:
            await channel.wake(patience)  # a process that only removes has not asked yet
        if self.messages is not None and (channel is None or not channel.tracks):
            await self.messages.tell(prefix, wires, patience)


class Tiers:
    """Both tiers of one namespace."""

    __slots__ = (
        "__weakref__",
        "_dates",
        "_quick",
        "_remotes",
        "given_codec",
        "isolated",
        "namespace",
        "notes",
        "now",
        "policy",
        "remote",
        "scope",
        "shared",
        "space",
        "trust",
    )

    def __init__(self, shared: Shared, namespace: str, codec: Codec | None, policy: Policy) -> None:
        memory = shared.memory
        self.shared: Final = shared
        self.namespace: Final = namespace
        self.given_codec = codec
        self.policy: Final = policy
        self.scope: Final = shared.scope(namespace)
        self.scope.users.add(self)
        self.space: Final = self.scope.space
        self.trust: Final = self.scope.trust
        self.now: Final = shared.clock.monotonic
        self.isolated: Final = memory is not None and memory.isolate
        touch: Callable[[str], object] = _nothing if self.space is None else self.space.touch
        self.notes: Final = Notes(namespace, policy, shared.counters, shared.observers, touch, self.now)
        self._dates: Final = Dates() if memory is None else memory.dates
        self._quick: Quick | None = None
        self._remotes: Final[dict[float, Remote]] = {}
        self.remote: Final = self.remote_for(policy)
        if memory is not None:
            memory.keep_stale = max(memory.keep_stale, policy.stale_for)

    @property
    def codec(self) -> Codec:
        """What was given, or `Msgpack`, made when first needed."""
        if self.given_codec is None:
            self.given_codec = Msgpack()
        return self.given_codec

    def check_open(self) -> None:
        """Refuse to go on with a cache that was closed."""
        if self.shared.closed:
            msg = "this cache was closed: open it again with `async with`, or build a new one"
            raise CacheClosed(msg)

    async def get_ready(self, policy: Policy | None = None) -> None:
        """Have the near tier trusted, if it is not and can be; before something is read or written that goes near.

        Raises:
            BackendRefused: the far tier does not tell of changes, and the cache insists.
        """
        channel = self.shared.channel
        if channel is not None and not self.shared.closed:
            await channel.wake((policy or self.policy).backend_timeout)

    def forget(self, key: str) -> None:
        """Keep what is being loaded or read under ``key`` at this moment from being stored."""
        self.scope.flights.forget(key)
        self.scope.watch.break_key(key)

    def forget_all(self) -> None:
        """Keep everything that is being loaded or read from being stored, and drop the near tier."""
        scope = self.scope
        scope.flights.forget_all()
        scope.watch.break_all()
        scope.tags.spoil_all()
        if scope.space is not None:
            scope.space.clear()

    # Near -----------------------------------------------------------------------------------------------------------

    def find(self, key: str, type_: Any = None, *, doubtful: bool = False) -> Record | None:
        """Return the near record if its tags hold, and it can be read; fresh or not.

        With ``doubtful`` also while the near tier is not trusted, so that it may have changed unseen.
        """
        if self.space is None:
            return None
        record = self.space.records.get(key)
        if record is None or (self.trust.until <= self.now() and not doubtful):
            return None
        extra = extra_of(record)
        if extra is not None and any(cell.spoilt for cell in extra.cells):
            self.space.pop(key)
            return None
        if self.isolated:
            try:
                self.value_of(record, type_)
            except DecodeError as error:
                self.notes.garbage(key, error)
                return None
        return record

    def find_fresh(self, key: str, type_: Any = None, counters: Counters | None = None) -> Any:
        """Return the fresh near value and count the hit, or ``MISS``."""
        self.check_open()
        record = self.find(key, type_)
        if record is None or fresh_until_of(record) <= self.now():
            return MISS
        self.notes.hit(key, "near", counters=counters)
        return self.value_of(record, type_)

    def value_of(self, record: Record, type_: Any = None) -> Any:
        """Return the value of a near record; a copy of its own where the near tier is isolated."""
        return self.codec.decode(record[0], type_) if self.isolated else record[0]

    def own(self, value: Any, type_: Any) -> Any:
        """Give one of several callers a value; a copy of its own where the near tier is isolated."""
        return self.codec.decode(self.codec.encode(value), type_) if self.isolated else value

    def form(self, key: str, value: Any) -> Any:
        """Return what the near tier keeps of a value."""
        return encode_under(key, value, self.codec) if self.isolated else value

    def keep(
        self,
        key: str,
        value: Any,
        lifetime: float,
        *,
        cells: tuple[TagCell, ...] = (),
        load_time: float = 0.0,
        ends_at: float = 0.0,
    ) -> None:
        """Put a value near."""
        if self.space is not None:
            extra = Extra(cells, load_time, ends_at) if cells or load_time else None
            self.put(key, self.form(key, value), lifetime, extra, self.now())

    def keep_received(self, key: str, received: Received, policy: Policy | None = None) -> None:
        """Put what came from the far tier near, for as long as it may hide the original."""
        if self.space is not None and received.ttl > 0:
            policy, now, extra = policy or self.policy, self.now(), received.extra
            lifetime = until_due(received.fresh_for, received.ttl, policy)
            if extra is not None and extra.load_time and policy.early_refresh:
                extra = extra._replace(ends_at=now + received.fresh_for)
            elif extra is not None and not extra.cells:
                extra = None
            if lifetime > 0:
                self.put(key, self.form(key, received.value), lifetime, extra, now)

    def put(self, key: str, form: Any, lifetime: float, extra: Extra | None, now: float) -> None:
        """Put near what `form` made of a value."""
        if self.space is None or self.shared.closed:
            return
        if self.trust.until <= now:
            self.space.pop(key, "replaced")  # what is known now must not be followed by something older
            return
        if self.shared.channel is not None:
            self.scope.note_digest(key)
        lifetime = min(lifetime, self.trust.longest)
        self.space.put(key, make_record(form, self.terms(lifetime, extra, now)), now)

    def terms(self, lifetime: float, extra: Extra | None, now: float) -> Terms:
        """Return the terms of what is stored now."""
        return Terms(self._dates.fresh_until(lifetime, now), now if lifetime == FOREVER else lifetime, extra)

    def drop(self, key: str, cause: Cause = "invalidated") -> None:
        """Remove the near copy."""
        if self.space is not None:
            self.space.pop(key, cause)

    # Far ------------------------------------------------------------------------------------------------------------

    def remote_for(self, policy: Policy) -> Remote | None:
        """Return the far tier under the deadline of ``policy``."""
        shared, deadline = self.shared, policy.backend_timeout
        if shared.backend is None:
            return None
        remote = self._remotes.get(deadline)
        if remote is None:
            if len(self._remotes) >= 16:  # noqa: PLR2004 - deadlines computed per call must not grow it for ever
                self._remotes.clear()
            remote = self._remotes[deadline] = Remote(
                shared.backend,
                self.namespace,
                deadline=deadline,
                clock=shared.clock,
                breaker=shared.breaker,
                replay=shared.replay,
                tags=self.scope.tags,
                trust=self.trust,
                tell=None if shared.messages is None else shared.tell,
            )
        return remote

    def settle_later(
        self, operation: str, keys: Iterable[str], envelopes: Mapping[str, Envelope], error: BackendError | None
    ) -> None:
        """Keep what the far tier did not confirm of a change of ``keys``; forget older changes of those it did."""
        replay = self.shared.replay
        if error is None:
            if replay and operation in _REPLAYED:
                replay.forget([(self.namespace, "key", key) for key in keys])
        elif (kind := _REPLAYED.get(operation)) is not None and self._replays(error):
            assert self.remote is not None  # noqa: S101 - it failed
            for key in keys:
                slot: Slot = (self.namespace, "key", key)
                if error.failed and key not in error.failed:
                    replay.forget([slot])
                    continue
                # Without an envelope, and too large a value, only the removal of the older one is left to do.
                envelope = None if isinstance(error, ValueTooLarge) else envelopes.get(key)
                replay.keep(slot, kind, partial(self.remote.settle, key), envelope)

    def invalidate_later(self, names: Iterable[str], error: BackendError) -> None:
        """Keep an invalidation of tags that the far tier did not confirm."""
        if self.remote is not None and self._replays(error):
            for name in names:
                send = partial(_resend, partial(self.remote.tokens.replace, (name,)))
                self.shared.replay.keep((self.namespace, "tag", name), "invalidate_tags", send)

    def clear_later(self, error: BackendError) -> None:
        """Keep a `clear` that the far tier did not confirm."""
        if self.remote is not None and self._replays(error):
            send = partial(_resend, self.remote.clear)
            self.shared.replay.keep((self.namespace, "clear", ""), "clear", send)

    def _replays(self, error: BackendError) -> bool:
        return self.policy.replay and not isinstance(error, Unsupported)

    async def receive(self, key: str, seen: Seen, type_: Any, *, decode: bool = True) -> Received | None:
        """Turn what a far read saw into a value, if it is one: readable, and with current tags.

        Raises:
            BackendError: the tags could not be read.
        """
        if seen.data is not None:
            quick = self._quick or self._make_quick()
            if (opened := quick(seen.data, self.shared.clock.wall(), seen.epoch)) is not None:
                return self._received(key, opened, type_, decode)
        cells, tokens = await self._tags_of((seen,))
        return self._valid(key, seen, type_, decode, cells, tokens)

    async def values_of_many(
        self, there: Mapping[str, bytes], tokens: Mapping[str, bytes], type_: Any
    ) -> dict[str, Any]:
        """Return the fresh values of what one read of many keys found, where nothing of it is kept."""
        values: dict[str, Any] = {}
        others: dict[str, bytes] = {}
        epoch = tokens.get(EPOCH)
        wall, quick, read = self.shared.clock.wall(), self._quick or self._make_quick(), self._reader(type_)
        for key, data in there.items():
            if (opened := quick(data, wall, epoch)) is None or opened[0] <= 0:
                others[key] = data
                continue
            try:
                values[key] = read(opened[3])
            except DecodeError as error:
                self.notes.garbage(key, error)
        if others:
            received = await self.receive_many(others, tokens, type_)
            values |= {key: one.value for key, one in received.items() if one.fresh_for > 0}
        return values

    async def receive_many(
        self, there: Mapping[str, bytes], tokens: Mapping[str, bytes], type_: Any
    ) -> dict[str, Received]:
        """Do as `receive` for what one read of many keys found, with the epoch; the tags of all are read at once."""
        received: dict[str, Received] = {}
        others: dict[str, bytes] = {}
        epoch = tokens.get(EPOCH)
        wall, quick, read = self.shared.clock.wall(), self._quick or self._make_quick(), self._reader(type_)
        new = tuple.__new__  # half the price of a named tuple's own
        for key, data in there.items():
            if (opened := quick(data, wall, epoch)) is None:
                others[key] = data
                continue
            # As `_received` does, without a call for each of thousands.
            left, ttl, load_time, payload = opened
            try:
                value = read(payload)
            except DecodeError as error:
                self.notes.garbage(key, error)
            else:
                extra = Extra((), load_time) if load_time else None
                received[key] = new(Received, (value, left, 0.0 if left == BARELY_FRESH else ttl, extra))
        if others:
            assert self.remote is not None  # noqa: S101 - it found them
            tokens = await self.remote.agreeing(others.values(), tokens)
            rest = {key: Seen(data, tokens=tokens) for key, data in others.items()}
            cells, tokens = await self._tags_of(rest.values())
            for key, seen in rest.items():
                if (one := self._valid(key, seen, type_, True, cells, tokens)) is not None:
                    received[key] = one
        return received

    def _reader(self, type_: Any) -> Callable[[bytes], Any]:
        codec = self.codec
        return codec.reader(type_) if isinstance(codec, Msgpack) else lambda data: codec.decode(data, type_)

    def _make_quick(self) -> Quick:
        self._quick = opener(self.codec.name)  # when first needed, as the codec
        return self._quick

    async def _tags_of(self, reads: Collection[Seen]) -> tuple[Mapping[str, TagCell], Mapping[str, bytes]]:
        """Return the cells and the tokens of the tags that were found.

        Those that seem to be replaced are asked for again: what was found may be newer than what is known of them.
        A token goes with the cell from before it was asked for::

            P: asks for an entry and its tags ....... both answers, of before ....... takes the cell that is there now?
            P:                       invalidates the tag, and spoils its cell
        """
        found = [pair for seen in reads if seen.envelope is not None for pair in seen.envelope.tags]
        if not found:
            return {}, {}
        assert self.remote is not None  # noqa: S101 - it found them
        names = list(dict.fromkeys([tag for tag, _ in found]))
        cells = dict(zip(names, self.scope.tags.cells(names), strict=True))
        tokens = self.remote.tokens.known(names)
        for seen in reads:
            asked = [cell.tag for cell in seen.cells if cells.get(cell.tag) is cell]
            tokens |= {tag: seen.tokens[tag] for tag in asked if tag in seen.tokens}
        replaced = list(dict.fromkeys([tag for tag, token in found if tokens.get(tag) != token]))
        return cells, tokens | await self.remote.tokens.read(replaced)

    def _received(
        self,
        key: str,
        opened: Opened,
        type_: Any,
        decode: bool,  # noqa: FBT001 - positional, as all here
        cells: tuple[TagCell, ...] = (),
    ) -> Received | None:
        left, ttl, load_time, payload = opened
        try:
            value = self.codec.decode(payload, type_) if decode else None
        except DecodeError as error:
            self.notes.garbage(key, error)
            return None
        if left == BARELY_FRESH:
            return Received(value, left, 0.0, None)
        return Received(value, left, ttl, Extra(cells, load_time) if cells or load_time else None)

    def _valid(
        self,
        key: str,
        seen: Seen,
        type_: Any,
        decode: bool,  # noqa: FBT001 - positional, as all here
        known: Mapping[str, TagCell],
        tokens: Mapping[str, bytes],
    ) -> Received | None:
        """Do the same for what is no sane value without tags."""
        if seen.garbage is not None:
            self.notes.garbage(key, seen.garbage)
            return None
        if seen.number is not None:
            # A counter says nothing about its time to live, so it is never kept near.
            return Received(seen.number, FOREVER, 0.0, None)
        envelope = seen.envelope
        if envelope is None:
            return None
        cells = tuple([known[tag] for tag, _ in envelope.tags])
        if any(tokens.get(tag) != token for tag, token in envelope.tags) or any(cell.spoilt for cell in cells):
            return None
        if envelope.codec != self.codec.name:
            self.notes.garbage(key, self._of_another_codec(envelope))
            return None
        opened = (seen.left(self.shared.clock.wall()), envelope.fresh_for, envelope.load_time, envelope.payload)
        return self._received(key, opened, type_, decode, cells)

    def _of_another_codec(self, envelope: Envelope) -> DecodeError:
        return DecodeError(f"written by the codec {envelope.codec!r}, and this cache reads {self.codec.name!r}")

    def decode(self, envelope: Envelope, type_: Any) -> Any:
        """Return the value in an envelope.

        Raises:
            DecodeError: another codec wrote it, or it is damaged.
        """
        if envelope.codec != self.codec.name:
            raise self._of_another_codec(envelope)
        return self.codec.decode(envelope.payload, type_)

    def envelope(
        self,
        payload: bytes,
        lifetime: float,
        tokens: Mapping[str, bytes],
        load_time: float = 0.0,
        policy: Policy | None = None,
    ) -> Envelope:
        """Put an encoded value into an envelope with today's date and a token of its own.

        ``tokens`` are those of its tags, and the epoch.
        """
        keep_for = lifetime + (policy or self.policy).stale_for
        tags = tuple([pair for pair in tokens.items() if pair[0] != EPOCH])
        wall, name, epoch = self.shared.clock.wall(), self.codec.name, tokens.get(EPOCH, NO_EPOCH)
        return Envelope(new_token(), wall, lifetime, keep_for, load_time, name, tags, payload, epoch)


def until_due(left: float, ttl: float, policy: Policy) -> float:
    """Return how long a near copy may hide the far entry's age: until a hit has to refresh it."""
    if policy.refresh_ahead is None or ttl == FOREVER:
        return left
    return left - ttl * (1.0 - policy.refresh_ahead)


async def _resend(operate: Callable[[], Awaitable[object]], *_: object) -> None:
    """Send what has no value."""
    await operate()


def _prefix(namespace: str) -> str:
    return f"{namespace}::" if namespace else ""


def _nothing(*_: object) -> None:
    """Stand in for the near tier of a cache without one."""
