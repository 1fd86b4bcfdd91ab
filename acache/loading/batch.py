"""`Batch`: one call of a batch loader for the flights of many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from ..errors import AcacheError
from .flight import Node, flying

__all__ = ["Batch", "NotLoaded"]

T = TypeVar("T")


class NotLoaded(AcacheError):
    """The batch loader returned nothing for this key."""


class Batch(Generic[T]):
    """Collects the keys whose flights find that they must load, then loads them all at once.

    The call is made when every flight has either asked for its key or come to its end without asking (it found the
    value in a tier, or was cancelled).
    """

    def __init__(self, keys: Sequence[str], loader: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._undecided: Final = set(keys)
        self._wanted: Final[dict[str, asyncio.Future[T]]] = {}
        self._loader: Final = loader
        self._task: asyncio.Task[None] | None = None
        self._node: Final = Node(f"{len(keys)} keys at once")

    async def load(self, key: str) -> T:
        """Ask for a key, from inside its flight.

        Raises:
            NotLoaded: the batch loader's result has no such key.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._wanted[key] = future
        self.decided(key)
        flight = flying.get()
        if flight is not None:
            flight.waiting_on.append(self._node)
        try:
            return await future
        finally:
            if flight is not None:
                flight.waiting_on.remove(self._node)
            del self._wanted[key]
            if not self._wanted and self._task is not None:
                self._task.cancel()  # harmless when it has ended; otherwise nobody waits for it any more

    def decided(self, key: str) -> None:
        """Note that the flight of ``key`` has asked, or will not."""
        self._undecided.discard(key)
        if not self._undecided and self._wanted and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="acache batch load")

    async def _run(self) -> None:
        flying.set(self._node)  # its loader is part of every flight that waits for it
        try:
            loaded = await self._call()
        except BaseException as error:
            for future in self._wanted.values():
                if not future.done():
                    if isinstance(error, asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for key, future in self._wanted.items():
            if not future.done():
                if key in loaded:
                    future.set_result(loaded[key])
                else:
                    future.set_exception(NotLoaded(key))

    async def _call(self) -> Mapping[str, T]:
        # A frame of its own, so that a StopIteration becomes a RuntimeError: a future cannot hold one.
        return await self._loader(list(self._wanted))
