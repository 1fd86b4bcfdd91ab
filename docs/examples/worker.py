"""A background worker without a web framework: some consumers, a queue, and a source of data that comes and goes.

The source is a file of exchange rates.  It is read once per ttl however many consumers ask; before the ttl ends it is
read again behind their backs; and when it is gone, the last good rates answer, as `stale_if_error` says.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from acache import Cache, Policy

CONSUMERS = 4
ORDERS = 400

Rates = dict[str, float]

policy = Policy(
    ttl=0.2,
    refresh_ahead=0.8,  # a hit after this share of the ttl starts a refresh behind
    stale_if_error=60,  # for this long the old rates are better than none
    error_backoff=0.1,  # and the source is left alone for this long after an error
)


async def consume(orders: asyncio.Queue[tuple[str, int]], get_rates: Callable[[], Awaitable[Rates]]) -> None:
    while not orders.empty():
        currency, cents = orders.get_nowait()
        rates = await get_rates()
        _euros = cents / 100 / rates[currency]
        await asyncio.sleep(0.005)  # what else there is to do for an order


async def main() -> None:
    orders: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
    for number in range(ORDERS):
        orders.put_nowait((("SEK", "USD")[number % 2], 100 * number))

    with TemporaryDirectory() as folder:
        source = Path(folder, "rates.json")
        await asyncio.to_thread(source.write_text, json.dumps({"SEK": 11.42, "USD": 1.08}))
        async with Cache(policy=policy) as cache:

            @cache.cached(key="rates")
            async def get_rates() -> Rates:
                rates: Rates = json.loads(await asyncio.to_thread(source.read_text))
                return rates

            async with asyncio.TaskGroup() as group:
                for _ in range(CONSUMERS):
                    group.create_task(consume(orders, get_rates))
                await asyncio.sleep(0.3)
                await asyncio.to_thread(source.unlink)  # the source is gone, in the middle of the work
            stats = cache.stats()

    print(f"{ORDERS} orders done with {stats.loads} readings of the rates, {stats.load_failures} of them in vain")


if __name__ == "__main__":
    asyncio.run(main())
