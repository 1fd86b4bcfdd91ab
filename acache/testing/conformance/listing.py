"""All keys under a prefix, and no other: `Clear` and `Scan`."""

from __future__ import annotations

import asyncio

from ...backends.base import Backend, Batch, Clear, Scan
from .harness import LONG, PAGES, Harness, having, promises

__all__ = ["ListingChecks"]

promise = promises("clear / scan")


class ListingChecks(Harness):
    """A prefix is letters, whatever a glob, a regex or a path would see in it."""

    @promise
    async def test_clear_takes_its_prefix_and_nothing_else(self, backend: Backend) -> None:
        """Glob, regex, path and pattern characters in a prefix are letters."""
        clearer, stem = having(backend, Clear), self.key("")
        prefixes = (
            "*",
            "?",
            "[ab]",
            "[^a]",
            "a.c",
            "a\\",
            "^",
            "(",
            "%",
            "_",
            "{a,b}",
            "../",
            "$",
            "$where",
            ".*",
            "a|",
        )
        for prefix in self.names(backend, *prefixes, "\n", "é", "\x00", " "):
            inside = [f"{stem}{prefix}{name}" for name in ("", "1", "x:y")]
            outside = [f"{stem}{name}" for name in ("a", "b", "abc", "z1", "a.", "-", "A" + prefix, ":" + prefix)]
            for key in (*inside, *outside):
                await backend.set(key, b"v", ttl=LONG)
            await clearer.clear(f"{stem}{prefix}")
            for key in inside:
                assert await backend.get(key) is None, f"{key!r} survived"
            for key in outside:
                assert await backend.get(key) == b"v", f"{key!r} was taken along with {prefix!r}"

    @promise
    async def test_clear_keeps_a_prefix_that_only_begins_alike(self, backend: Backend) -> None:
        """Shorter keys, other cases and neighbours in the order stay; longer prefixes go with the shorter."""
        clearer, stem = having(backend, Clear), self.key("")
        for name in ("app", "app:", "app:1", "app:sub:1", "app;", "app9", "App:1", "ap"):
            await backend.set(stem + name, b"v", ttl=LONG)
        await clearer.clear(stem + "app:")
        left = [name for name in ("app", "app:", "app:1", "app:sub:1", "app;", "app9", "App:1", "ap")
                if await backend.get(stem + name) is not None]  # fmt: skip
        assert left == ["app", "app;", "app9", "App:1", "ap"]

    @promise
    async def test_clear_takes_thousands(self, backend: Backend) -> None:
        """In bounded steps, all of them."""
        clearer, batch, stem = having(backend, Clear), having(backend, Batch), self.key("")
        items = {f"{stem}in:{index}": b"v" for index in range(PAGES)}
        await batch.set_many(items, ttl=LONG)
        await backend.set(f"{stem}out", b"v", ttl=LONG)
        await clearer.clear(f"{stem}in:")
        assert await batch.get_many(list(items)) == {}
        assert await backend.get(f"{stem}out") == b"v"

    @promise
    async def test_clearing_nothing_is_no_error(self, backend: Backend) -> None:
        """Nor is clearing twice, and the prefix can be used again."""
        clearer, stem = having(backend, Clear), self.key("")
        await clearer.clear(stem)
        await backend.set(f"{stem}1", b"v", ttl=None)
        await clearer.clear(stem)
        await clearer.clear(stem)
        assert await backend.get(f"{stem}1") is None
        await backend.set(f"{stem}1", b"w", ttl=LONG)
        assert await backend.get(f"{stem}1") == b"w"

    @promise
    async def test_scan_finds_every_key_under_its_prefix(self, backend: Backend) -> None:
        """Literally, and not those that have expired or are gone."""
        scanner, stem = having(backend, Scan), self.key("")
        wanted = {f"{stem}[x]*{index}" for index in range(30)}
        for key in wanted:
            await backend.set(key, b"v", ttl=LONG)
        await backend.set(f"{stem}x1", b"v", ttl=LONG)
        await backend.set(f"{stem}[x]", b"v", ttl=LONG)
        await backend.set(f"{stem}[x]*deleted", b"v", ttl=LONG)
        await backend.delete(f"{stem}[x]*deleted")
        await backend.set(f"{stem}[x]*gone", b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert {key async for key in scanner.scan(f"{stem}[x]*")} == wanted

    @promise
    async def test_scan_yields_whole_keys(self, backend: Backend) -> None:
        """As they were stored: exactly str, with every character."""
        scanner, stem = having(backend, Scan), self.key("")
        wanted = {
            stem + name
            for name in self.names(backend, "a", "a b", "a\nb", "é🐍", "\x00", "a/../b", "*", "%41", "\U0010ffff")
        }
        for key in wanted:
            await backend.set(key, b"v", ttl=LONG)
        found = [key async for key in scanner.scan(stem)]
        assert set(found) == wanted
        assert {type(key) for key in found} == {str}

    @promise
    async def test_scanning_nothing_yields_nothing(self, backend: Backend) -> None:
        """An unused prefix is no error."""
        scanner = having(backend, Scan)
        assert [key async for key in scanner.scan(self.key("unused"))] == []

    @promise
    async def test_scan_finds_thousands(self, backend: Backend) -> None:
        """Page after page, all of them."""
        scanner, batch, stem = having(backend, Scan), having(backend, Batch), self.key("")
        items = {f"{stem}{index}": b"v" for index in range(PAGES)}
        await batch.set_many(items, ttl=LONG)
        assert {key async for key in scanner.scan(stem)} == set(items)
        await batch.delete_many(list(items))

    @promise
    async def test_a_scan_stands_while_others_write(self, backend: Backend) -> None:
        """Each key that is there all the time is yielded, whatever comes, goes and changes beside it."""
        scanner, batch, stem = having(backend, Scan), having(backend, Batch), self.key("")
        steady = {f"{stem}steady:{index}" for index in range(PAGES)}
        passing = [f"{stem}passing:{index}" for index in range(100)]
        await batch.set_many(dict.fromkeys([*steady, *passing], b"v"), ttl=LONG)
        found: set[str] = set()
        async for key in scanner.scan(stem):
            if len(found) % 200 == 0:
                doomed, index = passing[len(found) // 100], len(found)
                await asyncio.gather(
                    backend.delete(doomed),
                    backend.set(f"{stem}new:{index}", b"v", ttl=LONG),
                    backend.set(f"{stem}steady:{index % PAGES}", b"w", ttl=LONG),
                )
            found.add(key)
        assert steady - found == set()
        assert {key for key in found if not key.startswith(stem)} == set()
        await batch.delete_many([*found, *passing])

    @promise
    async def test_a_scan_may_be_left_early(self, backend: Backend) -> None:
        """What follows gets its own answers."""
        scanner, stem = having(backend, Scan), self.key("")
        keys = [f"{stem}{index}" for index in range(20)]
        for key in keys:
            await backend.set(key, key.encode(), ttl=LONG)
        pages = scanner.scan(stem)
        assert await anext(pages) in keys
        if (close := getattr(pages, "aclose", None)) is not None:
            await close()
        for key in keys:
            assert await backend.get(key) == key.encode()
