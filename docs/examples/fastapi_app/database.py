"""The "database" behind the demo: SQLite with real rows, and slow on purpose.

Every query takes ``delay`` seconds longer than SQLite needs, so that it costs what a query over a network costs, and
every query is counted, so that what the cache saves is counted by the one who would have had the work.
"""

import asyncio
import random
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

__all__ = ["CATEGORIES", "Database", "Product", "Report", "Review", "ranking"]

PRODUCTS = 2_000
REVIEWS = 10_000
CATEGORIES = ("books", "garden", "kitchen", "music", "office", "outdoor", "tools", "toys")
PAGE = 10

_SCHEMA = """
CREATE TABLE product (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL,
    price INTEGER NOT NULL, sold INTEGER NOT NULL, updated_at TEXT NOT NULL
);
CREATE TABLE review (
    id INTEGER PRIMARY KEY, product_id INTEGER NOT NULL REFERENCES product (id),
    stars INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX review_product ON review (product_id);
"""


# Frozen, because what comes out of a near tier is shared by everyone who asked for it.
@dataclass(frozen=True, slots=True)
class Product:
    """One product; ``price`` is in cents."""

    id: int
    name: str
    category: str
    price: int
    sold: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Review:
    """What somebody thinks of a product."""

    id: int
    product_id: int
    stars: int
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """A category in numbers."""

    category: str
    products: int
    reviews: int
    average_stars: float
    revenue: int


def ranking() -> list[int]:
    """Return the ids of all products, the best seller first."""
    return random.Random(2026).sample(range(1, PRODUCTS + 1), PRODUCTS)


class Database:
    """Products and reviews; each worker thread has a connection of its own."""

    def __init__(self, path: Path, *, delay: float = 0.05, connections: int = 32) -> None:
        self.queries: Counter[str] = Counter()
        self._path = path
        self._delay = delay
        self._threads = ThreadPoolExecutor(connections, "database", initializer=self._connect)
        self._thread = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def product(self, product_id: int) -> Product | None:
        """Find a product."""
        rows = await self._query("product", "SELECT * FROM product WHERE id = ?", product_id)
        return _product(rows[0]) if rows else None

    async def category(self, category: str) -> list[Product]:
        """Return the ten best sellers of a category."""
        sql = "SELECT * FROM product WHERE category = ? ORDER BY sold DESC, id LIMIT 10"
        return [_product(row) for row in await self._query("category", sql, category)]

    async def best_sellers(self, limit: int) -> list[int]:
        """Return the ids of the products that are sold most."""
        sql = "SELECT id FROM product ORDER BY sold DESC, id LIMIT ?"
        return [product_id for (product_id,) in await self._query("best_sellers", sql, limit)]

    async def reviews(self, product_id: int, page: int) -> list[Review]:
        """Return one page of a product's reviews, the latest first."""
        sql = "SELECT * FROM review WHERE product_id = ? ORDER BY id DESC LIMIT ? OFFSET ?"
        return [Review(*row) for row in await self._query("reviews", sql, product_id, PAGE, (page - 1) * PAGE)]

    async def report(self, category: str) -> Report:
        """Add up a category: twice as slow as the rest, as reports are."""
        sql = """
            SELECT ?1, count(DISTINCT p.id), count(r.id), round(coalesce(avg(r.stars), 0), 2),
                   (SELECT coalesce(sum(price * sold), 0) FROM product WHERE category = ?1)
            FROM product p LEFT JOIN review r ON r.product_id = p.id WHERE p.category = ?1
        """
        (row,) = await self._query("report", sql, category, slower=2)
        return Report(*row)

    async def set_price(self, product_id: int, price: int) -> Product | None:
        """Change a product; return it as it is now."""
        sql = "UPDATE product SET price = ?, updated_at = ? WHERE id = ? RETURNING *"
        rows = await self._query("set_price", sql, price, datetime.now(UTC).isoformat(), product_id)
        return _product(rows[0]) if rows else None

    async def add_review(self, product_id: int, stars: int, text: str) -> Review:
        """Store a review."""
        sql = "INSERT INTO review (product_id, stars, text) VALUES (?, ?, ?) RETURNING *"
        (row,) = await self._query("add_review", sql, product_id, stars, text)
        return Review(*row)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()

    async def _query(self, name: str, sql: str, *parameters: object, slower: int = 1) -> list[tuple[Any, ...]]:
        self.queries[name] += 1
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._execute, sql, parameters, self._delay * slower)

    def _execute(self, sql: str, parameters: tuple[object, ...], delay: float) -> list[tuple[Any, ...]]:
        time.sleep(delay)
        connection: sqlite3.Connection = self._thread.connection
        return connection.execute(sql, parameters).fetchall()

    def _connect(self) -> None:
        # Used by its own thread only, and closed by the one that closes the database.
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._thread.connection = connection
        self._connections.append(connection)

    @staticmethod
    def create(path: Path) -> None:
        """Write the tables, with the same rows each time."""
        rng = random.Random(2026)
        opened = datetime(2026, 1, 1, tzinfo=UTC)
        rank = {product_id: rank for rank, product_id in enumerate(ranking(), start=1)}
        products = [
            (
                f"{rng.choice(('Plain', 'Fine', 'Sturdy', 'Little'))} thing no. {number}",
                rng.choice(CATEGORIES),
                rng.randrange(99, 99_99),
                100_000 // rank[number],
                (opened + timedelta(minutes=number)).isoformat(),
            )
            for number in range(1, PRODUCTS + 1)
        ]
        words = ("fits", "works", "broke", "arrived", "late", "early", "well", "badly", "again", "but", "and", "dog")
        reviews = [
            (rng.randint(1, PRODUCTS), rng.randint(1, 5), " ".join(rng.choices(words, k=12))) for _ in range(REVIEWS)
        ]
        connection = sqlite3.connect(path)
        with connection:
            connection.executescript(_SCHEMA)
            sql = "INSERT INTO product (name, category, price, sold, updated_at) VALUES (?, ?, ?, ?, ?)"
            connection.executemany(sql, products)
            connection.executemany("INSERT INTO review (product_id, stars, text) VALUES (?, ?, ?)", reviews)
        connection.execute("PRAGMA journal_mode = wal")  # readers do not wait for the writer
        connection.close()


def _product(row: tuple[Any, ...]) -> Product:
    product_id, name, category, price, sold, updated_at = row
    return Product(product_id, name, category, price, sold, datetime.fromisoformat(updated_at))
