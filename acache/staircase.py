"""`Staircase`: what happens between a caller who finds nothing fresh near and his value.

Going down: near tier, stale value, running flight, in one synchronous step; and inside the flight: near tier again, far
tier, lease, loader, guarded fill, waiters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Any, Final, NamedTuple, cast

from .backends.base import Version
from .clock import FOREVER, ttl_seconds
from .codecs.base import encode_under
from .coherence import EPOCH, Heard, TagCell
from .entry import Entry, pack
from .errors import BackendError, ConfigurationError, LoadTimeout, short
from .events import Tier
from .inputs import tag_names
from .lease import Lease, Verdict
from .loading import ABSENT, UNSERVED, Flight, Load, LoadContext, Mark, running_load
from .memory import Record, fresh_until_of, stored_at, terms_of
from .policy import DEFAULT, Policy
from .remote import FILL_WITHIN, Remote, Seen
from .tiers import Received, Tiers, until_due

__all__ = ["Staircase", "ahead"]

_ATTEMPTS: Final = 3
_BACKOFFS: Final = 1000
_SAME: Final = 0.05
"""Seconds by which two looks at one entry may find its end differently."""
NEVER: Final = -FOREVER
_UNKNOWN: Final[Any] = object()


class _Fallback(NamedTuple):
    """What a flight offers that could not load: each waiter takes it or not, by its own policy."""

    value: Any
    fresh_until: float
    """Monotonic."""
    error: Exception | None
    """What the loader raised; ``None`` if it was not asked, because it failed a moment ago."""
    trace: TracebackType | None


@dataclass(slots=True)
class _Attempt:
    """What a flight notes on its way down, for the fill to compare."""

    load: Load
    mark: Mark
    remote: Remote | None
    looked_at: float
    """When it looked at the far tier; monotonic."""
    version: Version = _UNKNOWN
    seen: Seen | None = None
    """What it saw there; ``None`` if the far tier did not answer."""
    stale: Received | None = None
    cells: tuple[TagCell, ...] = ()
    """Those of its tags, and of the namespace, from before its look at the far tier."""
    tokens: Mapping[str, bytes] = field(default_factory=dict)
    """What that look said of their tokens."""
    heard: Heard | None = None
    """The tags that were invalidated in this process while the loader ran."""
    away: bool = False
    """Whether the far tier failed to answer."""
    served: bool = False
    """Whether somebody has an answer already, so that the load is no miss."""
    lease: Lease | None = None
    waited: float = 0.0
    """Seconds spent waiting for another process's load; they count as this one's."""

    @property
    def current(self) -> bool:
        """Whether nothing that is known here changed the key or its tags since."""
        return self.mark.fillable and not any(cell.spoilt for cell in self.cells)


class Staircase:
    """The way of one facade from a miss to a value."""

    __slots__ = ("_notes", "_now", "_scope", "_tiers")

    def __init__(self, tiers: Tiers) -> None:
        self._tiers: Final = tiers
        self._notes: Final = tiers.notes
        self._scope: Final = tiers.scope
        self._now: Final = tiers.now

    async def resolve(self, load: Load) -> Any:  # noqa: C901 - one staircase, in one piece
        """Steps 1 to 4 of the staircase: near tier, stale value, running flight; all in one synchronous step."""
        while True:
            self._tiers.check_open()
            key, policy, flights, now = load.key, load.policy, self._scope.flights, self._now()
            record = self._tiers.find(key, load.type)
            if record is not None and fresh_until_of(record) > now:
                self._notes.hit(key, "near", counters=load.counters)
                if self._due(record, policy, now) and not self._backing_off(key, now) and flights.current(key) is None:
                    ahead = self._fly_again if self._tiers.remote is None else self._fly_ahead
                    self._start(load, partial(ahead, load, record), background=True)
                return self._tiers.value_of(record, load.type)
            flight = flights.current(key)
            started = flight is None
            if flight is None:
                flight = self._start(load, partial(self._fly, load), background=policy.finish_abandoned)
                if record is not None and self._tiers.remote is None:
                    self._serve_stale(load, flight, self._stale(record, now, load.type))
            early = flight.early(_patience(policy), now)
            if early is not UNSERVED:
                flight.background = True
                self._notes.hit(key, self._stale_tier(flight), stale=True, counters=load.counters)
                return self._tiers.own(early, load.type)
            if not started:
                self._notes.coalesced(load.key, load.counters)
            arrived = flight.heard.count if flight.heard is not None else 0
            waiter = flights.join(flight, _patience(policy))
            try:
                result = await waiter
            except BaseException:
                flight.leave(waiter)
                raise
            if 0 < flight.outdated <= arrived:
                continue  # it began before the invalidation of a tag that it learnt of later; this caller came after
            if result is ABSENT:
                if load.batched:
                    return ABSENT
                continue  # somebody's batch leaves it out; this one has a loader of its own
            if type(result) is not _Fallback:
                return self._tiers.own(result, load.type)
            if self._takes(result, policy):
                self._notes.hit(key, self._stale_tier(flight), stale=True, counters=load.counters)
                return self._tiers.own(result.value, load.type)
            # Another caller's flight spared the loader, and this one may not have a stale value: a flight of its own.

    def _takes(self, offer: _Fallback, policy: Policy) -> bool:
        """Tell whether a policy takes what a flight offers that could not load.

        Raises:
            Exception: it does not, and that is what the loader raised.
        """
        window = policy.stale_for if offer.error is None else policy.stale_if_error
        if self._now() - offer.fresh_until < window:
            return True
        if offer.error is not None:
            raise offer.error.with_traceback(offer.trace)
        return False

    def _stale_tier(self, flight: Flight) -> Tier:
        """Tell from which tier the stale value is that a flight has to offer."""
        return "near" if self._tiers.remote is None or flight.from_near else "far"

    def _serve_stale(self, load: Load, flight: Flight, stale: Received) -> bool:
        """Step 3: answer those who take a stale value; they need not wait for the load."""
        now = self._now()
        if -stale.fresh_for >= load.policy.stale_while_revalidate:
            return False
        return flight.serve_early(stale.value, -stale.fresh_for, now)

    def _spared(self, load: Load, stale: Received | None) -> _Fallback | None:
        """Return the stale value to answer with if the loader failed a moment ago, and the policy has a window."""
        now = self._now()
        if stale is None or -stale.fresh_for >= load.policy.stale_for or not self._backing_off(load.key, now):
            return None
        return _Fallback(stale.value, now + stale.fresh_for, None, None)

    def _spared_near(self, attempt: _Attempt, flight: Flight) -> _Fallback | None:
        """Do the same with the near copy while the far tier does not answer.

        It is no longer trusted to be the latest, but of use to those who take a stale value rather than an error.
        """
        load, now = attempt.load, self._now()
        if (record := self._tiers.find(load.key, load.type, doubtful=True)) is not None:
            stale = self._stale(record, now, load.type)
            if stale.fresh_for > 0 and self._tiers.trust.until <= now:
                # As if its time ended now: whoever takes no stale value must not get one that may have changed.
                stale = stale._replace(fresh_for=0.0, ttl=now - stored_at(record))
            attempt.stale, flight.from_near = stale, True
        return self._spared(load, attempt.stale)

    async def reload(self, load: Load) -> Any:
        """Load although there may be a fresh value; join a load that is running."""
        self._tiers.check_open()
        flight = self._scope.flights.current(load.key)
        if flight is None:
            flight = self._start(load, partial(self._fly_again, load, None), background=load.policy.finish_abandoned)
        else:
            self._notes.coalesced(load.key, load.counters)
        arrived = flight.heard.count if flight.heard is not None else 0
        waiter = self._scope.flights.join(flight, NEVER)
        try:
            result = await waiter
        except BaseException:
            flight.leave(waiter)
            raise
        if 0 < flight.outdated <= arrived:
            return await self.reload(load)  # as in `resolve`
        if result is ABSENT:
            return ABSENT if load.batched else await self.reload(load)
        if type(result) is not _Fallback:
            return self._tiers.own(result, load.type)
        if result.error is None:
            return await self.reload(load)
        raise result.error.with_traceback(result.trace)

    def _start(self, load: Load, fly: Callable[[Flight], Coroutine[Any, Any, Any]], *, background: bool) -> Flight:
        flights = self._scope.flights
        return flights.start(load.key, fly, tags=load.tags, background=background, passenger=load.part)

    async def _begin(self, load: Load) -> _Attempt:
        if self._tiers.trust.until <= self._now():
            await self._tiers.get_ready(load.policy)
        mark, remote = self._scope.watch.open(load.key), self._tiers.remote_for(load.policy)
        return _Attempt(load, mark, remote, self._now(), cells=self._cells(load))

    def _cells(self, load: Load) -> tuple[TagCell, ...]:
        return self._scope.tags.cells((EPOCH, *load.tags))

    async def _fly(self, load: Load, flight: Flight) -> Any:
        """Steps 5 and 6: look at the near tier again, then at the far tier."""
        key, policy = load.key, load.policy
        record = self._tiers.find(key, load.type)
        if record is not None and fresh_until_of(record) > self._now():
            # 1: a caller finds nothing and starts this flight. 2: set() stores a value. 3: this flight begins.
            return self._tiers.value_of(record, load.type)
        attempt = await self._begin(load)
        try:
            if attempt.remote is None:
                if record is not None:
                    attempt.stale = self._stale(record, attempt.looked_at, load.type)
                return self._spared(load, attempt.stale) or await self._load(attempt, flight)
            attempt.stale = received = await self._look(attempt, attempt.remote)
            if received is not None and received.fresh_for > 0:
                if attempt.mark.intact:
                    self._tiers.keep_received(key, received, policy)
                self._notes.hit(key, "far", counters=load.counters)
                if not self._due_far(received, policy) or self._backing_off(key, self._now()):
                    return received.value
                attempt.served = flight.serve_early(received.value, -received.fresh_for, self._now())
            elif received is not None:
                if (spared := self._spared(load, received)) is not None:
                    return spared
                attempt.served = self._serve_stale(load, flight, received)
                if attempt.served:
                    self._notes.hit(key, "far", stale=True, counters=load.counters)
            if attempt.away and (spared := self._spared_near(attempt, flight)) is not None:
                return spared
            if policy.lease and attempt.version is not _UNKNOWN:
                return await self._load_alone(attempt, attempt.remote, flight)
            return await self._load(attempt, flight)
        finally:
            self._end(attempt)

    async def _load_alone(self, attempt: _Attempt, remote: Remote, flight: Flight) -> Any:
        """Step 7: load if no other process does; else take what that one stored, or its place when it is gone."""
        load, policy, clock = attempt.load, attempt.load.policy, self._tiers.shared.clock
        house, ttl = self._scope.house, policy.lease_ttl
        turn = partial(self._scope.turn, among_many=load.batched)
        lease = Lease(remote, load.key, turn, house=house, ttl=ttl, clock=clock, notes=self._notes, flight=flight)
        began = self._now()
        try:
            while (verdict := await self._claim(lease, load)) != "load":
                entry = None
                if verdict == "wait":
                    if attempt.served and not flight.awaited:
                        return self._given_up(attempt)  # only a refresh behind, and another process is at it
                    if load.part is not None:
                        load.part.waits(lease.wake)
                    entry = await lease.wait(_left(policy, attempt.waited))
                    attempt.waited = self._now() - began
                received = await self._look_again(attempt, remote, entry)
                if received is not None and received.fresh_for > 0:
                    if not attempt.served and verdict == "wait":
                        self._notes.coalesced(load.key, load.counters, elsewhere=True)
                    elif not attempt.served:
                        self._notes.hit(load.key, "far", counters=load.counters)
                    return received.value
                if verdict == "look" or attempt.version is _UNKNOWN or self._waits_in_vain(attempt, flight):
                    break
                self._serve_late(attempt, flight)
                timeout = policy.load_timeout
                if timeout is not None and attempt.waited >= timeout:
                    msg = f"another process took longer than load_timeout={timeout} s to load {load.key!r}"
                    if attempt.stale is not None:
                        self._back_off(load.key, policy)
                    return self._given_up(attempt, LoadTimeout(msg))
            attempt.lease = lease
            return await self._load(attempt, flight)
        finally:
            await lease.give_back()

    async def _claim(self, lease: Lease, load: Load) -> Verdict:
        try:
            async with self._scope.turn(among_many=load.batched and not load.windowed):
                return await lease.claim()
        except BackendError as error:
            # Nobody can tell who loads: one load for each process.
            self._notes.tolerate("lease", load.key, error, load.policy)
            return "load"

    async def _look_again(self, attempt: _Attempt, remote: Remote, entry: bytes | None) -> Received | None:
        """Look at what the holder of the lease sent, or else at the far tier; what was seen before is nothing new."""
        load, watch, received = attempt.load, self._scope.watch, cast("Received | None", None)
        if entry is not None:
            # Under the mark that was open when it came.
            try:
                received = await self._tiers.receive(load.key, await remote.judged(entry), load.type)
            except BackendError as error:  # on the way to its tags
                self._notes.tolerate("get_or_load", load.key, error, load.policy)
        if received is None or received.fresh_for <= 0:
            # Under a mark of its own: whatever broke the old one came before this look.
            watch.close(load.key, attempt.mark)
            attempt.mark = watch.open(load.key)
            stale, before, attempt.away = attempt.stale, attempt.looked_at, False
            known = None if stale is None or attempt.seen is None else attempt.seen.data
            attempt.looked_at, attempt.version, attempt.cells = self._now(), _UNKNOWN, self._cells(load)
            attempt.stale = received = await self._look(attempt, remote)
            if attempt.away and stale is not None:
                # What it said last is still offered in place of the loader's error; the wait has made it older.
                attempt.stale = stale._replace(fresh_for=stale.fresh_for - (attempt.looked_at - before))
            elif attempt.seen is not None and attempt.seen.data == known:
                # Ahead of its end it is fresh still, which does not mean that somebody has loaded it.
                return None
        if received is not None and received.fresh_for > 0 and attempt.mark.intact:
            self._tiers.keep_received(load.key, received, load.policy)
        return received

    def _waits_in_vain(self, attempt: _Attempt, flight: Flight) -> bool:
        """Tell whether the wait may be for each other.

        P loads a, whose loader asks for b; Q loads b, whose loader asks for a.  In one process that is a
        `RecursiveLoad`; of two, neither can know.  So what another load waits for waits no longer than for a dead
        holder: one of the two loads, and finds out.
        """
        return flight.inside and attempt.waited >= attempt.load.policy.lease_ttl

    def _serve_late(self, attempt: _Attempt, flight: Flight) -> None:
        """Serve the stale value while another process loads: to whoever takes one, or lost his patience."""
        policy, stale = attempt.load.policy, attempt.stale
        if stale is None:
            return
        if policy.soft_timeout is None or attempt.waited < policy.soft_timeout:
            window = policy.stale_while_revalidate
        else:
            window = policy.stale_for
        now = self._now()
        age = now - attempt.looked_at - stale.fresh_for
        if age < window and flight.serve_early(stale.value, age, now) and not attempt.served:
            attempt.served = True
            self._notes.hit(attempt.load.key, "far", stale=True, counters=attempt.load.counters)

    @staticmethod
    def _given_up(attempt: _Attempt, error: LoadTimeout | None = None) -> _Fallback:
        """Offer the stale value in the place of a load, if there is one."""
        stale = attempt.stale
        if stale is None:
            return _Fallback(None, NEVER, error, None)
        return _Fallback(stale.value, attempt.looked_at + stale.fresh_for, error, None)

    async def _fly_again(self, load: Load, record: Record | None, flight: Flight) -> Any:
        """Load although there may be a fresh value: of what is there, only the version matters."""
        attempt = await self._begin(load)
        attempt.served = True  # what was there was fresh: this is no miss
        try:
            if attempt.remote is not None:
                try:
                    async with self._scope.turn(among_many=load.batched and not load.windowed):
                        attempt.seen = seen = await attempt.remote.read(load.key, load.tags)
                    attempt.version, attempt.tokens = seen.version, seen.tokens
                except BackendError as error:
                    self._notes.tolerate("refresh", load.key, error, load.policy)
            if record is not None:
                attempt.stale = self._stale(record, self._now(), load.type)
            return await self._load(attempt, flight)
        finally:
            self._end(attempt)

    async def _fly_ahead(self, load: Load, record: Record, flight: Flight) -> Any:
        """Load behind a hit on a near copy, unless the far entry was refreshed already."""
        attempt = await self._begin(load)
        attempt.served = True
        try:
            assert attempt.remote is not None  # noqa: S101 - what this is for
            received = await self._look(attempt, attempt.remote)
            if attempt.away:
                return self._tiers.value_of(record, load.type)  # a value could not be stored
            now, extra = self._now(), terms_of(record)[2]
            if received is not None and extra is not None and received.fresh_for > extra.ends_at - now + _SAME:
                if attempt.mark.intact:
                    self._tiers.keep_received(load.key, received, load.policy)
                return received.value
            attempt.stale = received or self._stale(record, now, load.type)
            if load.policy.lease and attempt.version is not _UNKNOWN:
                return await self._load_alone(attempt, attempt.remote, flight)
            return await self._load(attempt, flight)
        finally:
            self._end(attempt)

    def _end(self, attempt: _Attempt) -> None:
        self._scope.watch.close(attempt.load.key, attempt.mark)
        if attempt.heard is not None:
            self._scope.tags.unlisten(attempt.heard)

    async def _look(self, attempt: _Attempt, remote: Remote) -> Received | None:
        """Read the far tier for a flight; the version stays unknown if that failed and the policy tolerates it."""
        load = attempt.load
        try:
            async with self._scope.turn(among_many=load.batched and not load.windowed):
                attempt.seen = seen = await remote.read(load.key, load.tags)
            attempt.version, attempt.tokens = seen.version, seen.tokens
            return await self._tiers.receive(load.key, seen, load.type)
        except BackendError as error:  # on the way to the entry, or to its tags
            self._notes.tolerate("get_or_load", load.key, error, load.policy)
            attempt.away = True
            return None

    async def _load(self, attempt: _Attempt, flight: Flight) -> Any:
        """Steps 8 to 10: take note of the tokens, run the loader, fill; the flight tells the waiters."""
        load, stale = attempt.load, attempt.stale
        if not attempt.served and flight.early(FOREVER, self._now()) is UNSERVED:
            self._notes.miss(load.key, load.counters)
        await self._note_tokens(attempt)
        if flight.abandoned:
            # A client library may have swallowed the cancellation on the way here.
            raise asyncio.CancelledError
        context = LoadContext(load.key, load.tags, self._entry(stale, load.policy, self._stale_tier(flight)))
        flight.tags = context.tags  # the same set: what the loader adds is found by an invalidation
        running_load.set(context)  # in the flight's own copy of the context
        attempt.heard = flight.heard = self._scope.tags.listen()
        load.counters.loads += 1
        started = self._now()
        attempt.mark.loading = True
        try:
            value = await self._run_softly(attempt, flight)
        except Exception as error:
            if flight.over or (fallback := self._failed(attempt, started, error)) is None:
                raise
            return fallback
        finally:
            flight.returned = True
        if flight.over:
            return value
        took = self._now() - started
        flight.outdated = attempt.heard.last_of(context.tags)
        self._scope.backoffs.pop(load.key, None)
        self._notes.loaded(load.key, took)
        if flight.abandoned:
            # It was cancelled and would not stop; whoever came later has a load, and perhaps a value, of their own.
            self._notes.refused(load.key, load.counters)
        elif value is ABSENT:
            await self._remove(attempt)
        elif context.stored and (load.condition is None or _allows(load.condition, value)):
            await self._fill(attempt, context, value, took)
        return value

    async def _note_tokens(self, attempt: _Attempt) -> None:
        """Step 8: have the tokens under which the value will be stored, and their cells, before the loader runs."""
        load, remote, found = attempt.load, attempt.remote, cast("Mapping[str, bytes] | None", attempt.tokens)
        for _ in range(_ATTEMPTS):
            if any(cell.spoilt for cell in attempt.cells):
                # Invalidated, or made by somebody, since the look; this load begins after that.
                attempt.cells, found = self._cells(load), None
            if remote is None or attempt.version is _UNKNOWN:
                return
            try:
                attempt.tokens = await remote.tokens.make((*remote.tokens.seal, *load.tags), found)
            except BackendError as error:
                self._notes.tolerate("get_or_load", load.key, error, load.policy)
                attempt.version = _UNKNOWN
                return
            if not any(cell.spoilt for cell in attempt.cells):
                return

    def _failed(self, attempt: _Attempt, started: float, error: Exception) -> _Fallback | None:
        """Take note that the loader failed; return what its callers are offered in place of the error, if anything."""
        load, stale = attempt.load, attempt.stale
        self._notes.load_failed(load.key, self._now() - started, error, load.counters)
        if stale is None:
            return None
        self._back_off(load.key, load.policy)
        return _Fallback(stale.value, started + stale.fresh_for, error, error.__traceback__)

    async def _run_softly(self, attempt: _Attempt, flight: Flight) -> Any:
        """Run the loader; after ``soft_timeout`` those who wait get the stale value."""
        policy, stale = attempt.load.policy, attempt.stale
        if policy.soft_timeout is None or stale is None or stale.fresh_for <= -policy.stale_for:
            return await self._run(attempt, flight)

        def lose_patience() -> None:
            now = self._now()
            flight.serve_early(stale.value, now - began - stale.fresh_for, now)

        began = self._now()
        patience = max(0.0, policy.soft_timeout - attempt.waited)
        timer = self._tiers.shared.clock.call_later(patience, lose_patience)
        try:
            return await self._run(attempt, flight)
        finally:
            timer.cancel()

    async def _run(self, attempt: _Attempt, flight: Flight) -> Any:
        """Run the loader; after ``load_timeout`` it is cancelled, and nobody waits for it to stop."""
        load, timeout = attempt.load, attempt.load.policy.load_timeout
        if timeout is None:
            return await _awaitable(load)

        def expire() -> None:
            if flight.stopped:
                return  # nobody waits, and whoever came later has a load of his own
            error = LoadTimeout(f"the loader of {load.key!r} took longer than load_timeout={timeout} s")
            fallback = self._failed(attempt, began, error)
            flight.give_up(error if fallback is None else None, fallback)

        began = self._now()
        timer = self._tiers.shared.clock.call_later(max(0.0, timeout - attempt.waited), expire)
        try:
            return await _awaitable(load)
        finally:
            timer.cancel()

    async def _fill(self, attempt: _Attempt, context: LoadContext, value: Any, took: float) -> None:
        """Step 9: store the loaded value, unless anything wrote the key or its tags since the load looked."""
        load, remote = attempt.load, attempt.remote
        if not (await self._take_late_tags(attempt, context) and attempt.current):
            self._notes.refused(load.key, load.counters)
            return
        lifetime = self._load_ttl(load, context, value)
        if remote is not None and attempt.version is not _UNKNOWN:
            payload = encode_under(load.key, value, self._tiers.codec)
            envelope = self._tiers.envelope(payload, lifetime, attempt.tokens, took, load.policy)
            filled = False
            async with self._scope.turn(among_many=load.batched):
                if (passed := self._now() - attempt.looked_at) > FILL_WITHIN:
                    self._notes.too_late(load.key, passed, FILL_WITHIN)
                else:
                    attempt.mark.loading = False
                    try:
                        filled = await remote.fill(load.key, envelope, attempt.version)
                        if filled and not remote.guarded and not attempt.current:
                            # An engine that cannot compare and set may have put the old value over a newer one, or over
                            # nothing.  Nothing is the safe side.
                            await remote.delete(load.key)
                    except BackendError as error:
                        # Whether it was stored is unknown, and so is whether it would have been refused: it does not go
                        # near either, and what it may have replaced does not stay there.
                        self._tiers.drop(load.key, "replaced")
                        self._notes.failure("fill", load.key, error, raised=False)
                        if not remote.guarded and not attempt.current:
                            self._tiers.settle_later("delete", (load.key,), {}, error)
                        return
                    except asyncio.CancelledError:
                        self._tiers.drop(load.key, "replaced")
                        raise
            if not (filled and attempt.current):
                self._notes.refused(load.key, load.counters)
                return
            if attempt.lease is not None:
                await attempt.lease.hand_over(pack(envelope))
        if attempt.mark.intact:
            cells = tuple([cell for cell in attempt.cells if cell.tag != EPOCH])
            load_time = took if load.policy.early_refresh else 0.0
            near = lifetime if remote is None else until_due(lifetime, lifetime, load.policy)
            ends_at = self._now() + lifetime
            self._tiers.keep(load.key, value, near, cells=cells, load_time=load_time, ends_at=ends_at)
        self._notes.stored(load.key, lifetime)

    async def _remove(self, attempt: _Attempt) -> None:
        """Do step 9 for a batch without the value: what is there goes, unless anything was written since the look.

        A write in this process as much as a fill is::

            L: the batch leaves the key out ................ removes it far ....... drops it near
            R:                       reads the old value ......................................... may not keep it near
        """
        key, remote, seen, watch = attempt.load.key, attempt.remote, attempt.seen, self._scope.watch
        if not attempt.current:
            return
        if remote is None or seen is None or not seen.there:
            self._tiers.drop(key)
            return
        attempt.mark.loading = False
        writing = watch.open_write(key)
        try:
            await remote.remove(key, seen.version)
        except BackendError as error:
            self._notes.failure("fill", key, error, raised=False)
        finally:
            self._tiers.drop(key)
            watch.close(key, writing)

    async def _take_late_tags(self, attempt: _Attempt, context: LoadContext) -> bool:
        """Take note of the tags that the loader added; tell whether the value may be stored under them."""
        late = tag_names(context.tags.difference(attempt.load.tags))
        if not late:
            return True
        if attempt.heard is not None and attempt.heard.last_of(late):
            return False
        attempt.cells += self._scope.tags.cells(late)
        if attempt.remote is None or attempt.version is _UNKNOWN:
            return True
        try:
            tokens = await attempt.remote.tokens.make_late(late, since=attempt.looked_at)
        except BackendError as error:
            self._notes.failure("fill", attempt.load.key, error, raised=False)
            return False
        if tokens is not None:
            attempt.tokens = {**attempt.tokens, **tokens}
        return tokens is not None

    def _stale(self, record: Record, now: float, type_: Any) -> Received:
        fresh_until, span, extra = terms_of(record)
        return Received(self._tiers.value_of(record, type_), fresh_until - now, span, extra)

    def _entry(self, stale: Received | None, policy: Policy, tier: Tier) -> Entry | None:
        """Return what a loader sees of the value that it is to replace."""
        if stale is None:
            return None
        fresh_until = self._tiers.shared.clock.wall() + stale.fresh_for
        return Entry(
            value=stale.value,
            created_at=fresh_until - stale.ttl,
            fresh_until=fresh_until,
            expires_at=fresh_until + policy.stale_for,
            tags=() if stale.extra is None else tuple(cell.tag for cell in stale.extra.cells),
            tier=tier,
        )

    @staticmethod
    def _load_ttl(load: Load, context: LoadContext, value: Any) -> float:
        policy, ttl = load.policy, context.ttl
        if ttl is DEFAULT:
            if value is None and policy.negative_ttl is not None:
                ttl = policy.negative_ttl
            else:
                ttl = policy.ttl if load.ttl is None else load.ttl(value)
        try:
            return policy.shorten(ttl_seconds(ttl))
        except ConfigurationError as error:
            msg = f"{load.key!r} was loaded, and is not stored: {error}"
            raise ConfigurationError(msg) from None

    def _due(self, record: Record, policy: Policy, now: float) -> bool:
        """Tell whether a fresh near value should be refreshed behind."""
        fresh_until, span, extra = terms_of(record)
        if self._tiers.remote is not None:
            # When ``refresh_ahead`` is due, the copy has ended.
            return extra is not None and extra.ends_at > 0 and _early(policy, extra.ends_at - now, 0.0, extra.load_time)
        if fresh_until == FOREVER:
            return False
        return _early(policy, fresh_until - now, span, 0.0 if extra is None else extra.load_time)

    def _due_far(self, received: Received, policy: Policy) -> bool:
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


def ahead(policy: Policy) -> bool:
    """Tell whether a policy has to see each hit, as some of them refresh."""
    return bool(policy.early_refresh) or policy.refresh_ahead is not None


def _patience(policy: Policy) -> float:
    """Return how stale a value may be for a caller to take it while a load runs."""
    return policy.stale_for if policy.soft_timeout is not None else policy.stale_while_revalidate


def _early(policy: Policy, left: float, ttl: float, load_time: float) -> bool:
    """Tell whether a value with ``left`` of its ``ttl`` seconds should be refreshed behind."""
    if policy.refresh_ahead is not None and left <= ttl * (1.0 - policy.refresh_ahead):
        return True
    return bool(policy.early_refresh) and policy.lead(load_time) >= left


def _left(policy: Policy, waited: float) -> float:
    """Return the seconds until a wait is to be interrupted: by the soft timeout, or by the hard one."""
    ends = [end - waited for end in (policy.soft_timeout, policy.load_timeout) if end is not None and end > waited]
    return min(ends, default=FOREVER)


def _awaitable(load: Load) -> Awaitable[Any]:
    result = load.loader()
    if not hasattr(result, "__await__"):
        msg = (
            f"the loader of {load.key!r} returned a {type(result).__qualname__} instead of an awaitable: use async def"
        )
        raise TypeError(msg)
    return result


def _allows(condition: Callable[[Any], bool], value: Any) -> bool:
    verdict: Any = condition(value)
    if isawaitable(verdict):  # which is true, whatever it would have come to
        if (close := getattr(verdict, "close", None)) is not None:
            close()  # a coroutine, of which Python would say that nobody awaited it
        msg = f"condition={condition!r} returned {short(verdict)}, and nothing awaits it: return True or False"
        raise ConfigurationError(msg)
    return bool(verdict)
