"""`Batch`: one call of a batch loader for the flights of many keys."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Generic, TypeVar

from ..errors import short
from .context import running_load
from .flight import Node, flying

__all__ = ["ABSENT", "Batch", "Part", "Window", "close_batches"]

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


class Part:
    """One key of a batch: what the batch hears of the flight that may ask for it."""

    __slots__ = ("_batch", "_flying", "_key")

    def __init__(self, batch: Batch[Any], key: str) -> None:
        self._batch: Final = batch
        self._key: Final = key
        self._flying = False

    def begun(self) -> None:
        """Its flight begins."""
        self._flying = True

    def waits(self, look: Callable[[], object]) -> None:
        """Its flight waits for another process's load, and ``look`` has it look now whether that came to an end."""
        self._batch.waits(self._key, look)

    def landed(self) -> None:
        """Its flight has ended, which may be after its caller was answered: with a stale value, say."""
        self._flying = False
        self._batch.decided(self._key)

    def answered(self) -> None:
        """Its caller has his answer, or left."""
        if not self._flying:
            self._batch.decided(self._key)


class Batch(Generic[T]):
    """Collects the keys whose flights find that they must load, then loads them all at once.

    The call is made when every flight has either asked for its key, or come to its end without asking (it found the
    value in a tier, or was cancelled), or waits for another process that loads its key: to wait for that before loading
    the rest could be a deadlock, as the two processes may each have a part of what the other one wants.

    What another process was to load may come to nothing: it left it out, it failed, it died.  The first flight that
    finds so asks for its key after the call; then all that wait look, as the other process had a batch, too, and the
    next call is made when each of them has asked, or waits again, or has its value.
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
        self._elsewhere: Final[dict[str, Callable[[], object]]] = {}
        """Keys that other processes load, with what has their flights look."""
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
        if self._elsewhere.pop(key, None) is not None and len(self._waiting) == 1:
            self._undecided.update(self._elsewhere)
            for look in self._elsewhere.values():
                look()
        self._decide(key)
        try:
            return await future
        finally:
            if flight is not None:
                del flight.waiting_on[future]
            self._waiting.pop(future, None)

    def waits(self, key: str, look: Callable[[], object]) -> None:
        """Note that another process loads ``key``; the flight goes on when it has ended, or ``look`` is called."""
        self._elsewhere[key] = look
        self._decide(key)

    def decided(self, key: str) -> None:
        """Note that the flight of ``key`` will not ask."""
        self._elsewhere.pop(key, None)
        self._decide(key)

    def _decide(self, key: str) -> None:
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
            if future.done():
                continue
            value = loaded.get(key, ABSENT)
            if isinstance(value, BaseException):
                future.set_exception(_holdable(value))
            else:
                future.set_result(value)

    async def _call(self, keys: list[str]) -> Mapping[str, T]:
        # A frame of its own, so that a StopIteration becomes a RuntimeError: a future cannot hold one.
        loading = self._loader(keys)
        if not hasattr(loading, "__await__"):
            kind = type(loading).__qualname__
            msg = f"the batch loader {self._name} returned a {kind} instead of an awaitable: use async def"
            raise TypeError(msg)
        loaded = await loading
        if not isinstance(loaded, Mapping):
            kind = type(loaded).__qualname__
            msg = f"the batch loader {self._name} returned a {kind}: return a dict of values by key"
            raise TypeError(msg)
        return loaded


def _holdable(error: BaseException) -> Exception:
    """Return an error that a future can hold, and that is no sign to whoever waits for it: of his cancellation, say."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"a batch loader returned {error!r}")


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
