"""`Gatherer`: what many callers want to read in one turn of the event loop is read by one question."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from ..errors import BackendError

__all__ = ["Gatherer"]

V = TypeVar("V")

_MOST: Final = 100
"""Keys in one question."""


class Gatherer(Generic[V]):
    """Folds reads of single keys into reads of many.

    A caller who comes while nothing is under way asks for himself: he would only lose time.  Whoever comes after him
    shares a question with the others of his loop turn.  A cancelled caller leaves the others alone.

    Args:
        fetch: reads many keys, as `Batch.get_many` does.
        fetch_one: reads one.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[str]], Awaitable[Mapping[str, V]]],
        fetch_one: Callable[[str], Awaitable[V | None]],
    ) -> None:
        self._fetch: Final = fetch
        self._fetch_one: Final = fetch_one
        self._loop: asyncio.AbstractEventLoop | None = None
        self._under_way = 0
        self._waiting: dict[str, list[asyncio.Future[V | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, key: str) -> V | None:
        """Return what is there.

        Raises:
            BackendError: as ``fetch`` raises it, for this key.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # what an earlier loop left behind is nobody's
            self._loop, self._under_way, self._waiting, self._tasks = loop, 0, {}, set()
        if not self._under_way:
            self._under_way += 1
            try:
                return await self._fetch_one(key)
            finally:
                self._under_way -= 1
        future: asyncio.Future[V | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._ask)
        self._waiting.setdefault(key, []).append(future)
        return await future

    def _ask(self) -> None:
        waiting, self._waiting = self._waiting, {}
        alive = {key: futures for key, futures in waiting.items() if not all(map(_is_done, futures))}
        keys = list(alive)
        for start in range(0, len(keys), _MOST):
            part = {key: alive[key] for key in keys[start : start + _MOST]}
            self._under_way += 1
            task = asyncio.ensure_future(self._answer(part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, waiting: Mapping[str, list[asyncio.Future[V | None]]]) -> None:
        found: Mapping[str, V] = {}
        failed: Mapping[str, BaseException] = {}
        partial = False
        try:
            found = await self._fetch(list(waiting))
        except BackendError as error:
            found, failed = error.found, error.failed or dict.fromkeys(waiting, error)
            partial = bool(error.failed)
        except BaseException as error:
            failed = dict.fromkeys(waiting, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._under_way -= 1
            for key, futures in waiting.items():
                for future in futures:
                    if future.done():
                        continue
                    if key not in failed:
                        future.set_result(found.get(key))
                    elif isinstance(failed[key], asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(_own(failed[key], key, partial=partial))

    async def aclose(self) -> None:
        """Wait until every question has its answer."""
        if self._loop is asyncio.get_running_loop():
            self._ask()
            if self._tasks:
                await asyncio.wait(self._tasks)


def _own(error: BaseException, key: str, *, partial: bool) -> BaseException:
    """Return a caller's own copy of an error that many get: each raises it with a traceback of his."""
    if not isinstance(error, BackendError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__ or error
    if partial:
        copy.failed = {key: error}  # the others were answered
    return copy


def _is_done(future: asyncio.Future[V]) -> bool:
    return future.done()
