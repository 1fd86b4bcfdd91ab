"""`Notes`: what a cache tells of itself - counters, events, the log - in the words of `acache.events`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, Literal

from .clock import FOREVER
from .errors import BackendError, BackendRefused, DecodeError
from .events import (
    BackendFailed,
    Coalesced,
    Counters,
    DecodeFailed,
    Evicted,
    FillRefused,
    Hit,
    Invalidated,
    Loaded,
    LoadFailed,
    Miss,
    Observer,
    Removed,
    Stored,
    emit,
    logger,
)
from .memory import Cause
from .policy import Policy

__all__ = ["Notes"]

_LOG_EVERY: Final = 10.0
"""Seconds between two warnings of one kind: there may be thousands of causes a second."""


class Notes:
    """Takes note for one facade: counts always, builds an event only if somebody observes."""

    __slots__ = (
        "_late_at",
        "_log_at",
        "_namespace",
        "_now",
        "_observers",
        "_policy",
        "_refusal_at",
        "_touch",
        "_unlogged",
        "_unsized_at",
        "counters",
    )

    def __init__(
        self,
        namespace: str,
        policy: Policy,
        counters: Counters,
        observers: tuple[Observer, ...],
        touch: Callable[[str], object],
        now: Callable[[], float],
    ) -> None:
        self._namespace: Final = namespace
        self._policy: Final = policy
        self._observers: Final = observers
        self._touch: Final = touch
        self._now: Final = now
        self._late_at = self._log_at = self._refusal_at = self._unsized_at = -FOREVER
        self._unlogged = 0
        self.counters: Final = counters

    def hit(
        self, key: str, tier: Literal["near", "far"], *, stale: bool = False, counters: Counters | None = None
    ) -> None:
        """A value was found; ``counters`` are those of the decorated function that asked."""
        counters = counters or self.counters
        if stale:
            counters.hits_stale += 1
        elif tier == "near":
            counters.hits_near += 1
            self._touch(key)
        else:
            counters.hits_far += 1
        if self._observers:
            emit(self._observers, Hit(namespace=self._namespace, key=key, tier=tier, stale=stale))

    def hits_far(self, keys: Collection[str], counters: Counters | None = None) -> None:
        """Values were found in the far tier."""
        (counters or self.counters).hits_far += len(keys)
        if self._observers:
            for key in keys:
                emit(self._observers, Hit(namespace=self._namespace, key=key, tier="far", stale=False))

    def miss(self, key: str, counters: Counters | None = None) -> None:
        """Nothing was found."""
        (counters or self.counters).misses += 1
        if self._observers:
            emit(self._observers, Miss(namespace=self._namespace, key=key))

    def coalesced(self, key: str, counters: Counters, *, elsewhere: bool = False) -> None:
        """A caller joined a load that was running, in this process or elsewhere."""
        counters.coalesced += 1
        if self._observers:
            emit(self._observers, Coalesced(namespace=self._namespace, key=key, elsewhere=elsewhere))

    def loaded(self, key: str, took: float) -> None:
        """A loader returned after so many seconds."""
        if self._observers:
            emit(self._observers, Loaded(namespace=self._namespace, key=key, seconds=took))

    def load_failed(self, key: str, took: float, error: Exception, counters: Counters) -> None:
        """A loader raised after so many seconds."""
        counters.load_failures += 1
        if self._observers:
            emit(self._observers, LoadFailed(namespace=self._namespace, key=key, seconds=took, error=error))

    def stored(self, key: str, lifetime: float) -> None:
        """A value was stored for so many seconds."""
        if self._observers:
            ttl = None if lifetime == FOREVER else lifetime
            emit(self._observers, Stored(namespace=self._namespace, key=key, ttl=ttl))

    def refused(self, key: str, counters: Counters) -> None:
        """A loaded value was not stored: somebody wrote or invalidated meanwhile."""
        counters.fills_refused += 1
        if self._observers:
            emit(self._observers, FillRefused(namespace=self._namespace, key=key))

    def invalidated(
        self, reason: Literal["delete", "tags", "clear"], key: str, counters: Counters, tags: tuple[str, ...] = ()
    ) -> None:
        """Something was removed on purpose."""
        counters.invalidations += 1
        if self._observers:
            emit(self._observers, Invalidated(namespace=self._namespace, key=key, reason=reason, tags=tags))

    def removed(self, namespace: str, key: str, cause: Cause) -> None:
        """An entry left the near tier, of whatever namespace."""
        event = Evicted if cause in ("size", "expired") else Removed
        emit(self._observers, event(namespace=namespace, key=key, cause=cause))

    def unsized(self, namespace: str, key: str, error: Exception) -> None:
        """A value, of whatever namespace, is not kept near for want of a size."""
        if (now := self._now()) >= self._unsized_at:
            message = "%r in namespace %r is not kept near, and has to be fetched each time: sizeof said no size of it"
            logger.warning(message, key, namespace, exc_info=error)
            self._unsized_at = now + _LOG_EVERY

    def too_late(self, key: str, seconds: float, most: float) -> None:
        """A value was loaded so long after the look at the far tier that it may not be stored."""
        if (now := self._now()) >= self._late_at:
            message = "%r is not stored: its load took %.0f s with what came before and after it, of %.0f s at most"
            logger.warning(message, key, seconds, most)
            self._late_at = now + _LOG_EVERY

    def garbage(self, key: str, error: DecodeError) -> None:
        """What was found could not be read, and counts as nothing."""
        self.counters.decode_failures += 1
        self._unlogged += 1
        now = self._now()
        if now >= self._log_at:
            others = f", and {self._unlogged - 1} before it" if self._unlogged > 1 else ""
            logger.warning("%r in namespace %r was taken as a miss%s: %s", key, self._namespace, others, error)
            self._unlogged, self._log_at = 0, now + _LOG_EVERY
        if self._observers:
            emit(self._observers, DecodeFailed(namespace=self._namespace, key=key, error=error))

    def failure(self, operation: str, key: str, error: BackendError, *, raised: bool) -> None:
        """The far tier failed; ``raised``: the caller is told."""
        self.counters.backend_errors += 1
        if isinstance(error, BackendRefused) and (now := self._now()) >= self._refusal_at:
            # The breaker stays closed for it, and where reads go on as misses nobody would hear of it.
            logger.warning("the far tier refuses to %s in namespace %r: %s", operation, self._namespace, error)
            self._refusal_at = now + _LOG_EVERY
        if self._observers:
            event = BackendFailed(namespace=self._namespace, key=key, operation=operation, error=error, raised=raised)
            emit(self._observers, event)

    def tolerate(self, operation: str, key: str, error: BackendError, policy: Policy | None = None) -> None:
        """Note a failure of the far tier, and raise it if the policy says so.  Called while ``error`` is handled."""
        raised = (policy or self._policy).on_backend_error == "raise"
        self.failure(operation, key, error, raised=raised)
        if raised:
            raise error
