"""`Gate`: one thing that many wait for.

Each waiter has a future of its own.  On a future or an event that all of them share, whoever gives up is looked for in
the list of all the others, and ten thousand deadlines that end together take the event loop a second.
"""

from __future__ import annotations

import asyncio

__all__ = ["Gate"]


class Gate:
    """Opened once; who waits then goes on, and who comes later does not wait."""

    __slots__ = ("_opened", "_waiters")

    def __init__(self) -> None:
        self._opened = False
        self._waiters: dict[asyncio.Future[None], None] = {}

    @property
    def opened(self) -> bool:
        """Whether nobody has to wait any more."""
        return self._opened

    def open(self, error: BaseException | None = None) -> None:
        """Let everybody go on who waits, or raise ``error`` in their places."""
        self._opened = True
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)

    async def wait(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - it does not raise
        """Wait until it is opened, for ``timeout`` seconds at most."""
        if self._opened:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters[waiter] = None
        timer = None if timeout is None else loop.call_later(timeout, _give_up, waiter)
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # cancelled in the turn in which it was opened, nobody else would look at it
            if timer is not None:
                timer.cancel()


def _give_up(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
