"""A small shop on FastAPI, with acache used in the three ways an application uses it.

1. A cache that FastAPI injects (`CacheDep`), for code that chooses its keys itself.
2. Decorated coroutines (`get_product` and those after it): the question is the key.
3. A background worker (`Warmer`, started in `lifespan`) that loads what is popular before anybody waits for it.

    make serve                                           # everything in this process
    make serve ACACHE_URL=redis://localhost:6379/0       # this process in front of a Redis that others share
"""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

from database import Database, Product, Report, Review
from fastapi import Body, Depends, FastAPI, HTTPException, Query, Request
from warmer import Warmer

from acache import Cache, Policy

CACHE_OFF = os.environ.get("ACACHE_DEMO_CACHE") == "off"
"""The demo measures the application without its cache too: then every request is as if it said ``?fresh=true``."""

# Made where the functions below can be decorated with it.  Nothing connects before the first question.
cache = Cache.from_url(
    os.environ.get("ACACHE_URL", "memory://"),
    namespace="acache-demo",
    # Up to a tenth of each ttl is taken off at random: what was loaded together does not expire together.
    policy=Policy(ttl=60, jitter=0.1),
)


@asynccontextmanager
async def background(worker: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a worker as long as the block runs, and see it end."""
    task = asyncio.create_task(worker)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "shop.sqlite3")
        await asyncio.to_thread(Database.create, path)
        # Closed the other way round: the worker, then the cache with the loads that still run, then what they ask.
        async with Database(path) as database, cache:
            app.state.cache = cache
            app.state.database = database
            size = 0 if CACHE_OFF else 50
            app.state.warmer = warmer = Warmer(partial(get_product.refresh, database=database), size=size)
            async with background(warmer.run(await database.best_sellers(size))):
                yield


app = FastAPI(title="acache demo", lifespan=lifespan)


def get_cache(request: Request) -> Cache:
    return cast("Cache", request.app.state.cache)


def get_database(request: Request) -> Database:
    return cast("Database", request.app.state.database)


def get_warmer(request: Request) -> Warmer:
    return cast("Warmer", request.app.state.warmer)


CacheDep = Annotated[Cache, Depends(get_cache)]
DatabaseDep = Annotated[Database, Depends(get_database)]
WarmerDep = Annotated[Warmer, Depends(get_warmer)]
Fresh = Annotated[bool, Query(description="ask the database, whatever the cache holds")]


# Decorated coroutines ------------------------------------------------------------------------------------------------
# `ignore` leaves the database out of the key: it is how the answer is found, not what is asked for.


@cache.cached(key="product:{product_id}", tags=["product:{product_id}"], ignore=("database",), negative_ttl=5)
async def get_product(product_id: int, database: Database) -> Product | None:
    """A product, or None, which is an answer too: kept for less long, as somebody may be about to add it."""
    return await database.product(product_id)


@cache.cached(ttl=120, tags=["category:{category}"], ignore=("database",))
async def get_category(category: str, database: Database) -> list[Product]:
    """No key given: it is made of the function's name and the arguments."""
    return await database.category(category)


@cache.cached(ttl=300, stale_while_revalidate=600, ignore=("database",))
async def get_report(category: str, database: Database) -> Report:
    """Slow, and nobody minds if it is a little old: after its ttl it is renewed behind the reader's back."""
    return await database.report(category)


@app.get("/products/{product_id}")
async def read_product(product_id: int, database: DatabaseDep, warmer: WarmerDep, fresh: Fresh = CACHE_OFF) -> Product:
    product = await (get_product.bypass(product_id, database) if fresh else get_product(product_id, database))
    if product is None:
        raise HTTPException(404, f"there is no product {product_id}")
    warmer.note(product_id)
    return product


@app.get("/categories/{category}")
async def read_category(category: str, database: DatabaseDep, fresh: Fresh = CACHE_OFF) -> list[Product]:
    return await (get_category.bypass(category, database) if fresh else get_category(category, database))


@app.get("/categories/{category}/report")
async def read_report(category: str, database: DatabaseDep, fresh: Fresh = CACHE_OFF) -> Report:
    return await (get_report.bypass(category, database) if fresh else get_report(category, database))


# The injected cache --------------------------------------------------------------------------------------------------


@app.get("/products/{product_id}/reviews")
async def read_reviews(
    product_id: int,
    cache: CacheDep,
    database: DatabaseDep,
    page: Annotated[int, Query(ge=1, le=100)] = 1,
    fresh: Fresh = CACHE_OFF,
) -> list[Review]:
    async def load() -> list[Review]:
        return await database.reviews(product_id, page)

    if fresh:
        return await load()
    # However many ask at a time, `load` runs once.  All pages carry one tag, so that a new review can drop them all.
    return await cache.get_or_load(
        f"reviews:{product_id}:{page}", load, tags=[f"reviews:{product_id}"], type=list[Review]
    )


# Writing: first the database, then the cache --------------------------------------------------------------------------
# In this order, and a load that began before cannot bring the old row back: acache does not store its result.


@app.put("/products/{product_id}/price")
async def change_price(
    product_id: int, price: Annotated[int, Body(embed=True, gt=0)], database: DatabaseDep, cache: CacheDep
) -> Product:
    product = await database.set_price(product_id, price)
    if product is None:
        raise HTTPException(404, f"there is no product {product_id}")
    # By tag: whatever is made from this product, wherever it is kept.
    await cache.invalidate_tags(f"product:{product_id}", f"category:{product.category}")
    return product


@app.post("/products/{product_id}/reviews", status_code=201)
async def add_review(
    product_id: int,
    stars: Annotated[int, Body(ge=1, le=5)],
    text: Annotated[str, Body(max_length=1000)],
    database: DatabaseDep,
    cache: CacheDep,
) -> Review:
    if await get_product(product_id, database) is None:
        raise HTTPException(404, f"there is no product {product_id}")
    review = await database.add_review(product_id, stars, text)
    await cache.invalidate_tags(f"reviews:{product_id}")
    return review


# What happened -------------------------------------------------------------------------------------------------------


@app.get("/stats")
async def read_stats(cache: CacheDep, database: DatabaseDep, warmer: WarmerDep) -> dict[str, Any]:
    stats = cache.stats()
    return {
        "cache": repr(cache),
        "stats": asdict(stats) | {"hits": stats.hits, "hit_ratio": stats.hit_ratio},
        "queries": database.queries,
        "refreshed_behind": warmer.refreshed,
    }


@app.delete("/cache", status_code=204)
async def clear_cache(cache: CacheDep) -> None:
    """Drop everything in the namespace; what else lives in the same Redis is not touched."""
    await cache.clear()
