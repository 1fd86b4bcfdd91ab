"""`Batch`: one call of a batch loader for the flights of many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from ..errors import short
from .context import running_load
from .flight import Node, flying

__all__ = ["ABSENT", "Batch", "Window", "close_batches"]

T = TypeVar("T")
K = TypeVar("K")

_OPEN: Final = ""
"""What no key is: undecided for as long as a window is open."""
ABSENT: Final[Any] = object()
"""What a load comes to whose batch has no such value: an answer as any other, and no error."""


class _Call(Node):
    """One call of a batch loader; its key is the loader's name."""

    __slots__ = ()

    @property
    def who(self) -> str:
        return f"the batch loader {self.key}"


class Batch(Generic[T]):
    """Collects the keys whose flights find that they must load, then loads them all at once.

    The call is made when every flight has either asked for its key or come to its end without asking (it found the
    value in a tier, or was cancelled).  A flight that asks after that - its first caller left, another one stayed -
    gets a call of its own.
    """

    def __init__(
        self,
        keys: Sequence[str],
        loader: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]],
        tasks: set[asyncio.Task[None]],
        name: str,
    ) -> None:
        self._tasks: Final = tasks
        """Where the running calls can be found by whoever has to wait for them."""
        self._undecided: Final = set(keys)
        self._waiting: dict[asyncio.Future[T], str] = {}
        """Who has asked for what.  Two may have asked for one key, which is loaded once.

        One asks, the key is invalidated, so that nobody may join his flight any more, and another one asks: the call
        begins after all of that, and is for both.
        """
        self._loader: Final = loader
        self._name: Final = name
        self._node = _Call(name)
        """What those wait for who ask: the next call."""

    async def load(self, key: str) -> T:
        """Ask for a key, from inside its flight; `ABSENT` if the batch loader's result has no such key."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[future] = key
        flight, node = flying.get(), self._node
        if flight is not None:
            flight.waiting_on[future] = node
        self.decided(key)
        try:
            return await future
        finally:
            if flight is not None:
                del flight.waiting_on[future]
            self._waiting.pop(future, None)

    def decided(self, key: str) -> None:
        """Note that the flight of ``key`` has asked, or will not."""
        self._undecided.discard(key)
        if self._undecided or not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        node, self._node = self._node, _Call(self._name)
        keys = list(dict.fromkeys(waiting.values()))
        task = asyncio.get_running_loop().create_task(
            self._run(keys, waiting, node), name=f"acache batch load {short(keys)}"
        )

        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        count = len(waiting)

        def left(_: object) -> None:
            nonlocal count
            count -= 1  # not a look at all of them, which for each of ten thousand would be a hundred million
            if not count and not task.cancelling():
                task.cancel()  # nobody waits any more; harmless when it has ended

        for future in waiting:
            future.add_done_callback(left)

    async def _run(self, keys: list[str], waiting: Mapping[asyncio.Future[T], str], node: Node) -> None:
        flying.set(node)  # its loader is part of every flight that waits for it
        running_load.set(None)  # and of no single one's
        try:
            loaded = await self._call(keys)
        except BaseException as error:
            for future in waiting:
                if not future.done():
                    if isinstance(error, asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        finally:
            node.returned = True
        for future, key in waiting.items():
            if not future.done():
                future.set_result(loaded.get(key, ABSENT))

    async def _call(self, keys: list[str]) -> Mapping[str, T]:
        # A frame of its own, so that a StopIteration becomes a RuntimeError: a future cannot hold one.
        loaded = await self._loader(keys)
        if not isinstance(loaded, Mapping):
            kind = type(loaded).__qualname__
            msg = f"the batch loader {self._name} returned a {kind}: return a dict of values by key"
            raise TypeError(msg)
        return loaded


def close_batches(tasks: set[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
    """Cancel calls of batch loaders and forget them; return those to wait for."""
    loop, here = asyncio.get_running_loop(), asyncio.current_task()
    running = [task for task in tuple(tasks) if task.get_loop() is loop and task is not here]
    tasks.clear()
    for task in running:
        if not task.cancelling():  # a second time would cut its cleaning up short
            task.cancel()
    return running


class Window(Generic[K]):
    """A batch of whatever is asked for until it is closed."""

    def __init__(
        self,
        loader: Callable[[Mapping[str, K], Sequence[str]], Awaitable[Mapping[str, Any]]],
        tasks: set[asyncio.Task[None]],
        closed: Callable[[Window[K]], object],
        name: str,
    ) -> None:
        self._items: Final[dict[str, K]] = {}
        self._keys: Final[dict[K, str]] = {}
        self._batch: Final[Batch[Any]] = Batch((_OPEN,), partial(loader, self._items), tasks, name)
        self._loop: Final = asyncio.get_running_loop()
        self._closed: Final = closed
        self._open = True

    @property
    def open(self) -> bool:
        """Whether one may ask here: it is not closed, and its event loop is the one that runs."""
        return self._open and self._loop is asyncio.get_running_loop()

    def takes(self, key: str, item: K) -> bool:
        """Tell whether one may ask here for this item: not if an equal one is asked for under another key.

        As 1 and True are: a dict of results has one place for both.
        """
        return self.open and self._keys.get(item, key) == key

    def close(self) -> None:
        """Load what was asked for."""
        self._open = False
        self._closed(self)
        self._batch.decided(_OPEN)

    async def load(self, key: str, item: K) -> Any:
        """Ask for an item, from inside the flight of its key; see `Batch.load`."""
        self._keys[item] = key
        self._items[key] = item
        return await self._batch.load(key)
