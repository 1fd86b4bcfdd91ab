"""The background worker: it loads what is popular before anybody has to wait for it."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Warmer"]

logger = logging.getLogger(__name__)


class Warmer:
    """Calls ``refresh`` for the ``size`` most popular products, and again each ``pause`` seconds, until cancelled."""

    def __init__(self, refresh: Callable[[int], Awaitable[object]], *, size: int = 50, pause: float = 5.0) -> None:
        self.refreshed = 0
        self._refresh = refresh
        self._size = size
        self._pause = pause
        self._asked: Counter[int] = Counter()

    def note(self, product_id: int) -> None:
        """Count that somebody asked for a product."""
        self._asked[product_id] += 1

    async def run(self, first: Sequence[int]) -> None:
        """Begin with the products of ``first``; after that, what is asked for decides."""
        products = first[: self._size]
        while True:
            for product_id in products:
                # One after the other: who is there to keep the database quiet must not be its loudest client.
                try:
                    await self._refresh(product_id)
                    self.refreshed += 1
                except Exception:  # one failure, or a database that restarts, must not end the worker
                    logger.exception("product %d could not be refreshed", product_id)
            await asyncio.sleep(self._pause)
            products = [product_id for product_id, _ in self._asked.most_common(self._size)]
            # Half of each count goes: what was popular yesterday fades, and what nobody asks for any more is forgotten.
            self._asked = Counter({product_id: count // 2 for product_id, count in self._asked.items() if count > 1})
