"""The seam between acache and a storage engine: `Backend`, four coroutines over bytes, and the capabilities.

An engine implements `Backend` and whichever capabilities it can carry; each is a protocol of its own, looked up once
when a cache is built.  There are no default bodies: where a capability is missing, its fallback stands once, above
this seam, in `acache.remote`.  Third-party engines prove themselves with `acache.testing.BackendConformance`.

The contract, for all of it:

* A key is a non-empty ``str`` within the engine's ``key_limits``; the facade hashes what exceeds them.  Equal keys
  are equal, different keys are different, and no key means anything to the engine's protocol, globs or paths.
* A ttl is relative seconds above zero, fractions included, or ``None`` for ever.  An entry is never returned after
  its ttl; writing over an entry replaces its deadline, also from a ttl to ``None``.  An engine whose clock is coarser
  than a millisecond declares ``ttl_granularity`` in seconds: it may keep an entry that much too long, not longer.
* A value over the engine's ``value_limit`` (bytes; ``None``: no limit of its own) is a `ValueTooLarge` that names limit
  and size, a key that is empty, no text or not within ``key_limits`` an `InvalidKey`: both before anything is sent.
* Only acache's own errors are raised (`acache.errors`), with the engine's as ``__cause__``.
* A cancelled call is cancelled, unless it had ended, and leaves the engine's connection usable and in step: the next
  reply answers the next question.
* Nothing connects before the first operation; ``aclose`` twice is harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ..errors import BackendError, InvalidKey, ValueTooLarge, short

__all__ = [
    "Add",
    "Backend",
    "Batch",
    "Cas",
    "Clear",
    "Copies",
    "Counter",
    "KeyLimits",
    "Listener",
    "Notify",
    "Scan",
    "Stream",
    "Touch",
    "Track",
    "Tracking",
    "Version",
    "batch_error",
    "check_key",
    "check_value",
]

Version: TypeAlias = object
"""What a compare-and-set compares: opaque to everybody but the engine that gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What an engine can hold as a key, declared as its class attribute ``key_limits``.

    An engine that declares nothing gets the default, which every known engine can hold.
    """

    max_bytes: int = 200
    """The longest key, in bytes of UTF-8."""
    printable: bool = True
    """Whether keys must be visible ASCII without blanks; otherwise any text will do."""


@runtime_checkable
class Backend(Protocol):
    """What an engine must have."""

    async def get(self, key: str, /) -> bytes | None:
        """Return what is stored under ``key``, or ``None`` if there is nothing or its ttl has ended."""
        ...

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """Store ``data``, over whatever was there, for ``ttl`` seconds; ``None`` never expires.

        Raises:
            ValueTooLarge: before anything is sent.
        """
        ...

    async def delete(self, key: str, /) -> bool:
        """Remove ``key``; tell whether it was there and had not expired."""
        ...

    async def aclose(self) -> None:
        """Release what this object itself opened.  An injected client stays open: its owner closes it."""
        ...


@runtime_checkable
class Batch(Protocol):
    """Many keys in the engine's own bulk form, chunked to its limits.

    An operation that fails for some of the keys still does what it can for the others, and then raises the error that
    `batch_error` makes: it tells which keys failed, and what was found under the others.
    """

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """Return what is there; keys without an entry are left out."""
        ...

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """Store every item with the same ttl.  Not atomic: on an error some may have been stored."""
        ...

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """Remove the keys; tell how many were there."""
        ...


@runtime_checkable
class Add(Protocol):
    """Set if absent."""

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """Store ``data`` if nothing (or only an expired entry) is there; of concurrent callers one gets ``True``."""
        ...


@runtime_checkable
class Counter(Protocol):
    """Atomic counters, stored as plain decimal digits."""

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """Add ``delta`` and return the sum.  A missing counter starts at 0 with ``ttl``; an existing one keeps its own.

        Raises:
            DecodeError: the entry is not a counter, or the sum leaves 64 bits.
        """
        ...


@runtime_checkable
class Touch(Protocol):
    """Lifetimes, read and replaced without the value."""

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """Give an existing entry a new ttl; tell whether it was there."""
        ...

    async def ttl(self, key: str, /) -> float | None:
        """Seconds left; ``None`` never expires.

        Raises:
            KeyMissing: there is no such entry.
        """
        ...


@runtime_checkable
class Clear(Protocol):
    """Removal by prefix."""

    async def clear(self, prefix: str, /) -> None:
        """Remove every key that begins with ``prefix``, literally, in bounded steps, and no other key."""
        ...


@runtime_checkable
class Scan(Protocol):
    """Listing by prefix."""

    def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """Yield the keys that begin with ``prefix``, literally; each that is there all the time at least once."""
        ...


@runtime_checkable
class Cas(Protocol):
    """Compare and set: what keeps an invalidation from being undone by a load that began before it."""

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """Return the entry, or ``None``, and the version of what was seen; absence has a version too."""
        ...

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """Store ``data`` if the key still has ``version``, or has none at all now (expired, evicted).

        Engines may tell two entries apart by their first 48 bytes (`acache.entry.HEAD_BYTES`).
        """
        ...

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """Store ``data`` unconditionally, and return what it replaced: at least its first 48 bytes, or ``None``."""
        ...


@runtime_checkable
class Copies(Protocol):
    """An engine that may answer from copies which are older than what they are copies of."""

    async def drop_copy(self, key: str, /) -> None:
        """Have the next read of ``key`` answer with what is there now."""
        ...


@runtime_checkable
class Notify(Protocol):
    """Messages between the processes that share this engine: news for whoever listens now, and for nobody later.

    A topic is text within the engine's ``key_limits``.  Messages can be lost with a connection, so nothing may wait
    for one alone.
    """

    async def publish(self, topic: str, message: bytes, /) -> None:
        """Send ``message`` to every subscriber of ``topic`` at this moment, those of this process included."""
        ...

    def subscribe(self, topic: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Receive every message published from the moment the context is entered, in order, until it is left.

        Waiting for the next one may be cancelled and begun anew.  Where some may have been missed (a lost connection,
        or a subscriber too slow), the iterator raises `BackendUnavailable`, and ends: subscribe again, then look.
        """
        ...


class Listener(Protocol):
    """Who is told of changes.  Called synchronously on the event loop, in the order in which the engine told."""

    def changed(self, keys: Sequence[str] | None, /) -> object:
        """These keys were written, removed, or have ended; ``None``: any key may have been."""
        ...

    def lost(self) -> object:
        """Changes may go untold from now on, until the next `Tracking.check` that began after this has returned."""
        ...


class Tracking(Protocol):
    """A listener's ear at an engine."""

    @property
    def backend(self) -> Backend:
        """The same entries.  What is written through it is the listener's own, and need not be told.

        Its ``aclose`` ends the tracking too, and closes the backend that was asked to `Track`.
        """
        ...

    async def check(self, prefixes: Sequence[str], /) -> None:
        """Have the listener told of every change to a key that begins with one of ``prefixes``; connect where needed.

        When it returns, and `Listener.lost` was not called meanwhile, every change that was made since the last loss
        and before this call has been told, and those that come will be.

        Raises:
            BackendRefused: the engine does not allow it, or cannot.
            BackendError: it could not be reached.
        """
        ...


@runtime_checkable
class Track(Protocol):
    """Changes told by the engine itself, whoever made them: other programs, expiry and eviction among them."""

    def track(self, listener: Listener, /) -> Tracking:
        """Return an ear for ``listener``; nothing connects before its first `Tracking.check`.

        Only a weak reference to the listener is kept.
        """
        ...


@runtime_checkable
class Stream(Protocol):
    """Large bodies in chunks, in bounded memory.

    Both spellings are of one entry: `get` returns what `store` wrote (`ValueTooLarge` if it is over ``value_limit``),
    `open` reads what `set` wrote, and every other operation treats the two alike.
    """

    def open(self, key: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes] | None]:
        """Read an entry chunk by chunk; ``None`` if there is none.

        The chunks are of one entry, never a mix: when it is replaced, removed or ends meanwhile, the reader gets the
        rest of the old one, or `BackendUnavailable`.
        """
        ...

    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        """Write an entry chunk by chunk; it is seen whole or not at all.

        An error in ``chunks``, or a cancellation, leaves what was there before, and no leftovers.
        """
        ...


def check_key(key: str, limits: KeyLimits) -> bytes:
    """Return ``key`` as UTF-8.

    Raises:
        InvalidKey: it is empty, no ``str``, no Unicode text (a lone surrogate), or not within ``limits``.
    """
    if not isinstance(key, str) or not key:
        msg = f"a key must be a non-empty str, not {short(key)}"
        raise InvalidKey(msg)
    try:
        wire = key.encode()
    except UnicodeEncodeError as error:
        msg = f"a key must be Unicode text, and {short(key)} holds a lone surrogate"
        raise InvalidKey(msg) from error
    if len(wire) > limits.max_bytes:
        msg = f"the key {short(key)} has {len(wire)} bytes; this engine takes {limits.max_bytes}"
        raise InvalidKey(msg)
    if limits.printable and not (key.isascii() and key.isprintable() and " " not in key):
        msg = f"the key {short(key)} must be visible ASCII without blanks for this engine"
        raise InvalidKey(msg)
    return wire


def check_value(data: bytes, limit: int, engine: str) -> bytes:
    """Return ``data``.

    Raises:
        ValueTooLarge: it has more bytes than ``limit``.
    """
    if len(data) > limit:
        msg = f"{len(data)} bytes are more than the {limit} that {engine} takes as one value"
        raise ValueTooLarge(msg)
    return data


def batch_error(failed: Mapping[str, BackendError], *, found: Mapping[str, Any] | None = None) -> BackendError:
    """Return what an operation on many keys raises when some of them ``failed``.

    It is of the first error's kind, has its cause, and carries ``failed`` and ``found``.
    """
    key, first = next(iter(failed.items()))
    error = type(first)(f"{len(failed)} keys failed, first {short(key)}: {first}")
    error.failed, error.found = dict(failed), dict(found or {})
    error.__cause__ = first.__cause__ or first
    return error
