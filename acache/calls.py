"""`Calls`: one backend behind a deadline and a circuit breaker, in terms of the engine's own keys.

Every call of an engine goes through here.  What an engine without `Batch` does for many keys stands here, too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal, TypeAlias, TypeVar

from .backends.base import Backend, Batch, batch_error
from .clock import Clock
from .deadlines import Deadlines, Operation
from .errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    CacheClosed,
    DecodeError,
    Unsupported,
    ValueTooLarge,
)

__all__ = ["Breaker", "Calls", "Tell", "by_key"]

T = TypeVar("T")

_CONCURRENT: Final = 32
_FAILURES: Final = 5
_LONGEST_BACKOFF: Final = 30.0
_LONGEST_PROBE: Final = 5.0

State = Literal["closed", "open", "half-open"]
Tell: TypeAlias = Callable[[str, Collection[str] | None, float], Awaitable[None]]
"""Gets the prefix of a namespace, the wire keys that were changed there (``None``: all), and the seconds it has."""


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

    def failed(self, error: BaseException, *, probing: bool = True) -> None:
        """Note a failure, of an operation that was let through to probe, or of one that began before."""
        if self.state == "half-open" and not probing:
            return  # late; it says nothing of now
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

    def abandoned(self, *, probing: bool = True) -> None:
        """Note that an operation was cancelled: if it was the probe, the next one is."""
        if self.state == "half-open" and probing:
            self._open_until = self._clock.monotonic()
            self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(state)


class Calls:
    """The calls of one backend that have the same deadline.

    Args:
        backend: the engine.
        deadline: seconds.
        breaker: of this engine.
        prefix: what the keys of the namespace begin with, for ``tell``.
        tell: called with each change that the engine has confirmed.
    """

    __slots__ = ("_batch", "_breaker", "_deadline", "_deadlines", "_prefix", "_tell", "backend")

    def __init__(
        self, backend: Backend, deadline: float, breaker: Breaker, *, prefix: str = "", tell: Tell | None = None
    ) -> None:
        self.backend: Final = backend
        self._prefix: Final = prefix
        self._tell: Final = tell
        self._batch: Final = backend if isinstance(backend, Batch) else None
        self._breaker: Final = breaker
        self._deadline: Final = deadline
        self._deadlines: Final = Deadlines(deadline)

    async def one(self, operate: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Make one call.

        Raises:
            BackendError: what the engine raised, or it was late, or it is left alone.
        """
        self._breaker.check()
        return await self._guard(operate(*args, **options), self._deadlines)

    async def many(self, operate: Callable[..., Awaitable[T]], keys: Collection[str], **options: Any) -> T:
        """Make one call that is about many keys: some of them may fail."""
        self._breaker.check()
        return await self._guard(operate(keys, **options), self._deadlines, len(keys))

    async def at_leisure(self, operate: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Make one call without the deadline: of bounded steps, but as many as there are keys."""
        self._breaker.check()
        return await self._guard(operate(*args), Deadlines(None))

    async def change(self, operate: Callable[..., Awaitable[T]], wire: str, *args: Any, **options: Any) -> T:
        """Make a call that changes a key, and tell that it did; ``False`` says that it did not.

        Raises:
            BackendError: as for `one`.
        """
        result = await self.one(operate, wire, *args, **options)
        changed: object = result
        if self._tell is not None and changed is not False:
            await self._tell(self._prefix, (wire,), self._deadline)
        return result

    @asynccontextmanager
    async def changing(self, wires: Collection[str] | None) -> AsyncIterator[None]:
        """Tell of the keys that were changed inside: of all, or of those without an error of their own.

        ``None``: any key of the namespace may have been.
        """
        try:
            yield
        except BackendError as error:
            if self._tell is not None and error.failed and wires is not None:
                changed = [wire for wire in wires if wire not in error.failed]
                if changed:
                    await self._tell(self._prefix, changed, self._deadline)
            raise
        if self._tell is not None:
            await self._tell(self._prefix, wires, self._deadline)

    async def get_many(self, wires: Sequence[str]) -> dict[str, bytes]:
        """Return what is there; keys without an entry are left out."""
        if not wires:
            return {}
        if self._batch is not None:
            return await self.many(self._batch.get_many, wires)
        found = await self.each(wires, self.backend.get)
        return {wire: data for wire, data in found.items() if data is not None}

    async def set_many(self, items: Mapping[str, bytes], ttl: float | None) -> None:
        """Store every item with the same ttl."""
        if not items:
            return
        if self._batch is not None:
            await self.many(self._batch.set_many, items, ttl=ttl)
            return
        await self.each(list(items), lambda wire: self.backend.set(wire, items[wire], ttl=ttl))

    async def each(self, wires: Sequence[str], operate: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Do the same with each of many keys, some at a time.

        Raises:
            BackendError: as of `batch_error`, with what was done for the other keys in ``found``.
        """
        done: dict[str, T] = {}
        failed: dict[str, BackendError] = {}

        async def do(wire: str) -> None:
            try:
                done[wire] = await self.one(operate, wire)
            except BackendError as error:
                failed[wire] = error

        for start in range(0, len(wires), _CONCURRENT):
            try:
                async with asyncio.TaskGroup() as group:
                    for wire in wires[start : start + _CONCURRENT]:
                        group.create_task(do(wire))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None  # as one operation would have
        if failed:
            raise batch_error(failed, found={wire: data for wire, data in done.items() if data is not None})
        return done

    async def _guard(self, awaitable: Awaitable[T], deadlines: Deadlines, keys: int = 1) -> T:
        breaker, loop = self._breaker, asyncio.get_running_loop()
        operation = deadlines.begin(loop)
        probing = breaker.state == "half-open"
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
                breaker.abandoned(probing=probing)
                if keys == 1:
                    failure.failed = {}  # the engine's name for a key that the caller knows
            elif isinstance(failure, BackendRefused):
                breaker.succeeded()  # a server that says no to a write, because it is full, say, is there for reads
            else:
                breaker.failed(failure, probing=probing)
            raise
        except TimeoutError as failure:
            error = BackendTimeout(f"the far tier did not answer in time: {failure}")
            breaker.failed(error, probing=probing)
            raise error from failure
        except asyncio.CancelledError as failure:
            if not operation.was_late():
                breaker.abandoned(probing=probing)
                raise
            error = BackendTimeout(f"the far tier did not answer within {self._deadline} s")
            breaker.failed(error, probing=probing)
            raise error from failure
        except BaseException:
            breaker.abandoned(probing=probing)
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


def by_key(error: BackendError, wires: Mapping[str, str]) -> BackendError:
    """Put the users' keys in place of the engine's."""
    error.failed = {wires[wire]: why for wire, why in error.failed.items()}
    error.found = {wires[wire]: data for wire, data in error.found.items()}
    return error
