"""A backend that fails when told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from ..backends.memory import MemoryBackend
from ..errors import BackendUnavailable

__all__ = ["FaultyBackend"]


class FaultyBackend(MemoryBackend):
    """A `MemoryBackend` whose operations can be made to fail, or held until the test lets them go.

    Example::

        backend = FaultyBackend()
        backend.fail("get", "get_versioned")  # every read fails from now on
        backend.mend()
        held = backend.hold("set")  # the next writes wait
        await held.reached.wait()
        held.release()
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: Final[list[str]] = []
        """The names of the operations that were called, oldest first."""
        self._errors: Final[dict[str, Exception]] = {}
        self._holds: Final[dict[str, Hold]] = {}

    def fail(self, *operations: str, error: Exception | None = None) -> None:
        """Make operations raise ``error`` (default ``BackendUnavailable``); without names, all of them."""
        failure = error or BackendUnavailable("made to fail")
        for operation in operations or _OPERATIONS:
            self._errors[operation] = failure

    def mend(self) -> None:
        """Let everything work again."""
        self._errors.clear()

    def hold(self, operation: str) -> Hold:
        """Make an operation wait, after it was called and before it has an effect, until it is released."""
        hold = self._holds[operation] = Hold(lambda: self._holds.pop(operation, None))
        return hold

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`."""
        await self._enter("scan")
        async for key in super().scan(prefix):
            yield key

    @asynccontextmanager
    async def open(self, key: str, /) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """See `Stream.open`."""
        await self._enter("open")
        async with super().open(key) as chunks:
            yield chunks

    async def _enter(self, operation: str) -> None:
        self.calls.append(operation)
        if (hold := self._holds.get(operation)) is not None:
            hold.reached.set()
            await hold.gate.wait()
        if (error := self._errors.get(operation)) is not None:
            raise error


class Hold:
    """An operation that is being held up."""

    def __init__(self, forget: Callable[[], object]) -> None:
        self.reached: Final = asyncio.Event()
        """Set when the operation has been called."""
        self.gate: Final = asyncio.Event()
        self._forget: Final = forget

    def release(self) -> None:
        """Let it go on, and hold no more."""
        self._forget()
        self.gate.set()


_OPERATIONS: Final = (
    "get", "set", "delete", "get_many", "set_many", "delete_many", "add", "incr", "touch", "ttl", "clear",
    "get_versioned", "set_if", "swap", "scan", "open", "store",
)  # fmt: skip


def _guarded(name: str) -> Any:
    operate = getattr(MemoryBackend, name)

    async def guarded(self: FaultyBackend, *args: Any, **options: Any) -> Any:
        await self._enter(name)
        return await operate(self, *args, **options)

    guarded.__name__ = name
    guarded.__doc__ = operate.__doc__
    return guarded


for _name in _OPERATIONS:
    if _name not in ("scan", "open"):  # the two that are no coroutines
        setattr(FaultyBackend, _name, _guarded(_name))
