"""How long values live and what happens when they cannot be had: one frozen value that validates itself."""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from .clock import FOREVER, Seconds, seconds, ttl_seconds
from .errors import ConfigurationError

__all__ = ["DEFAULT", "Default", "Policy"]


class Default(enum.Enum):
    """The type of `DEFAULT`."""

    DEFAULT = "the policy's"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
"""In a call: whatever the policy says.  ``None`` would not do: ``ttl=None`` means for ever."""

_NON_NEGATIVE: Final = ("stale_while_revalidate", "stale_if_error", "error_backoff")
_POSITIVE: Final = ("lease_ttl", "backend_timeout")
_POSITIVE_OR_NONE: Final = ("soft_timeout", "load_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules a cache follows where a call does not say otherwise.

    All lengths of time are seconds or a ``timedelta``.  Copies with changes: ``dataclasses.replace(policy, ttl=60)``.

    Raises:
        ConfigurationError: a value out of range, or two that contradict each other.
    """

    ttl: float | None = 300.0
    """How long a value is fresh; ``None``: for ever."""
    stale_while_revalidate: float = 0.0
    """Additional seconds after ttl in which a reader gets the old value while one refresh runs (RFC 5861, 3)."""
    stale_if_error: float = 0.0
    """Additional seconds after ttl in which the old value answers for a loader that raises (RFC 5861, 4)."""
    jitter: float = 0.0
    """Up to this fraction of ttl is taken off at random, so that entries written together do not expire together."""
    early_refresh: float = 0.0
    """XFetch's beta (Vattani et al., VLDB 2015): a hit near expiry refreshes behind, the likelier the longer the load
    took; 1.0 is the paper's optimum, 0.0 is off."""
    refresh_ahead: float | None = None
    """A hit after this fraction of ttl refreshes behind: ``0.8`` keeps a busy key from ever being loaded in front."""
    soft_timeout: float | None = None
    """After this long a caller gets the stale value, if there is a servable one, and the load goes on behind.

    Here and in ``load_timeout``, time spent waiting for another process's load is part of it."""
    load_timeout: float | None = None
    """After this long a load is cancelled and its callers get ``LoadTimeout``, whether it stops or not."""
    finish_abandoned: bool = False
    """Let a load run to its end, and fill, although its last caller was cancelled."""
    error_backoff: float = 1.0
    """After a failed load for which a stale value answered, do not ask the loader again for this long."""
    negative_ttl: float | None = None
    """The ttl of a loaded ``None``; ``None``: the same as any other value's."""
    lease: bool = False
    """One load of all processes that share the backend, instead of one of each; needs a backend with ``Cas``.

    The others wait for its value, or serve stale.  Only the number of loads depends on it: while the far tier is away,
    each process loads for itself.  ``refresh()`` loads without asking for a lease."""
    lease_ttl: float = 10.0
    """How long the lease of a process that died keeps the others waiting; a live one renews it while its loader runs.
    The same in all processes."""
    backend_timeout: float = 1.0
    """The deadline of each operation of the far tier."""
    on_backend_error: Literal["miss", "raise"] = "miss"
    """Whether a far tier that fails makes a read a miss, or makes it raise."""
    replay: bool = True
    """Keep the writes and removals that the far tier did not confirm, whether they raised or not, and send them again
    when it answers.  ``False``: the error is all there is."""

    if TYPE_CHECKING:  # what the constructor takes: the fields hold seconds, whatever people write

        def __init__(
            self,
            *,
            ttl: Seconds | None = ...,
            stale_while_revalidate: Seconds = ...,
            stale_if_error: Seconds = ...,
            jitter: float = ...,
            early_refresh: float = ...,
            refresh_ahead: float | None = ...,
            soft_timeout: Seconds | None = ...,
            load_timeout: Seconds | None = ...,
            finish_abandoned: bool = ...,
            error_backoff: Seconds = ...,
            negative_ttl: Seconds | None = ...,
            lease: bool = ...,
            lease_ttl: Seconds = ...,
            backend_timeout: Seconds = ...,
            on_backend_error: Literal["miss", "raise"] = ...,
            replay: bool = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        for name in _NON_NEGATIVE:
            object.__setattr__(self, name, seconds(getattr(self, name), name))
        for name in _POSITIVE:
            object.__setattr__(self, name, seconds(getattr(self, name), name, zero=False))
        for name in _POSITIVE_OR_NONE:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, seconds(value, name, zero=False))
        if self.negative_ttl is not None:
            object.__setattr__(self, "negative_ttl", ttl_seconds(self.negative_ttl, "negative_ttl"))
        until = ttl_seconds(self.ttl)
        object.__setattr__(self, "ttl", None if until == FOREVER else until)
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        def refuse(message: str) -> None:
            raise ConfigurationError(message)

        if not _is_number(self.jitter) or not 0 <= self.jitter < 1:
            refuse(f"jitter={self.jitter!r}: a fraction of ttl, from 0 up to but not including 1")
        if not _is_number(self.early_refresh) or not 0 <= self.early_refresh < FOREVER:
            refuse(f"early_refresh={self.early_refresh!r}: XFetch's beta, 0 for off, 1.0 for the usual strength")
        if self.refresh_ahead is not None and not (_is_number(self.refresh_ahead) and 0 < self.refresh_ahead < 1):
            refuse(f"refresh_ahead={self.refresh_ahead!r}: a fraction of ttl between 0 and 1, or None")
        for name in ("lease", "replay", "finish_abandoned"):
            if not isinstance(getattr(self, name), bool):
                refuse(f"{name}={getattr(self, name)!r}: True or False")
        if self.on_backend_error not in ("miss", "raise"):
            refuse(f'on_backend_error={self.on_backend_error!r}: "miss" or "raise"')
        if self.soft_timeout is not None:
            if self.load_timeout is not None and self.soft_timeout >= self.load_timeout:
                refuse("soft_timeout must be shorter than load_timeout: a load that is over cannot go on behind")
            if not self.stale_for:
                refuse("soft_timeout needs a stale value to return: set stale_while_revalidate or stale_if_error")

        if self.lease and self.load_timeout is not None and self.lease_ttl >= self.load_timeout:
            refuse(
                f"lease_ttl={self.lease_ttl} must be shorter than load_timeout={self.load_timeout}:"
                " else callers give up before the place of a process that died is taken"
            )

    @property
    def stale_for(self) -> float:
        """Seconds after ttl for which a value is kept."""
        return max(self.stale_while_revalidate, self.stale_if_error)

    def shorten(self, ttl: float) -> float:
        """Apply the jitter to a ttl; for ever stays for ever."""
        if not self.jitter or ttl == FOREVER:
            return ttl
        return ttl * (1.0 - self.jitter * random.random())  # noqa: S311 - spreads load, guards nothing

    def lead(self, load_time: float) -> float:
        """Draw how many seconds before its end a value that took so long to load is refreshed early.

        XFetch: ``load_time`` times beta times an exponentially distributed number (Vattani, Chierichetti and
        Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", 2015).
        """
        return -load_time * self.early_refresh * math.log(1.0 - random.random())  # noqa: S311 - spreads load


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
