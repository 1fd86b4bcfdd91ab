"""Many keys at once are the same as one after the other."""

from __future__ import annotations

from ...backends.base import Backend, Batch
from .harness import LONG, MANY, Harness, having, promises

__all__ = ["BatchChecks"]

promise = promises("batch")


class BatchChecks(Harness):
    """`Batch`."""

    @promise
    async def test_get_many_returns_what_is_there(self, backend: Backend) -> None:
        """Hits only; an empty value is one."""
        batch = having(backend, Batch)
        there, missing = self.key("there"), self.key("missing")
        await backend.set(there, b"", ttl=LONG)
        assert await batch.get_many([there, missing]) == {there: b""}
        assert await batch.get_many([missing]) == {}

    @promise
    async def test_get_many_returns_each_value_under_its_key(self, backend: Backend) -> None:
        """In whatever order they were stored and are asked for, and with misses between them."""
        batch, stem = having(backend, Batch), self.key("")
        items = {f"{stem}{index}": f"value {index}".encode() for index in range(40)}
        await batch.set_many(dict(reversed(items.items())), ttl=LONG)
        asked = [key for index, name in enumerate(items) for key in (name, f"{stem}missing {index}".replace(" ", "-"))]
        for keys in (asked, asked[::-1], sorted(asked), asked[1::2] + asked[::2]):
            assert await batch.get_many(keys) == items

    @promise
    async def test_a_key_asked_for_twice_is_one(self, backend: Backend) -> None:
        """Twice read, it is there once; twice deleted, it counts once."""
        batch, key, other = having(backend, Batch), self.key(), self.key("other")
        await batch.set_many({key: b"v", other: b"w"}, ttl=LONG)
        assert await batch.get_many([key, other, key, key]) == {key: b"v", other: b"w"}
        assert await batch.delete_many([key, key, other, key]) == 2
        assert await batch.get_many([key, other]) == {}

    @promise
    async def test_nothing_asked_is_nothing_sent(self, backend: Backend) -> None:
        """No empty command reaches the engine."""
        batch = having(backend, Batch)
        assert await batch.get_many([]) == {}
        await batch.set_many({}, ttl=LONG)
        assert await batch.delete_many([]) == 0

    @promise
    async def test_thousands_of_keys_in_one_call(self, backend: Backend) -> None:
        """Bulk operations are chunked to the engine's limits."""
        batch, stem = having(backend, Batch), self.key("")
        items = {f"{stem}{index}": b"%d" % index for index in range(MANY)}
        await batch.set_many(items, ttl=LONG)
        assert await batch.get_many([*items, f"{stem}missing"]) == items
        assert await batch.delete_many([*items, f"{stem}missing"]) == MANY
        assert await batch.get_many(list(items)) == {}

    @promise
    async def test_large_values_in_one_call(self, backend: Backend) -> None:
        """Chunks are bounded by their bytes too: sixty values of which the engine takes few in one command."""
        batch, stem = having(backend, Batch), self.key("")
        size = min(300_000, self.value_limit(backend) or 300_000)
        items = {f"{stem}{index}": b"%02d" % index * (size // 2) for index in range(60)}
        await batch.set_many(items, ttl=LONG)
        assert await batch.get_many(list(items)) == items
        assert await batch.delete_many(list(items)) == len(items)

    @promise
    async def test_a_batch_honours_the_ttl(self, backend: Backend) -> None:
        """Over entries that had another; what has expired is neither found nor counted."""
        batch = having(backend, Batch)
        first, second, freed, lasting = (self.key(name) for name in ("1", "2", "freed", "lasting"))
        await backend.set(first, b"old", ttl=LONG)
        await backend.set(freed, b"old", ttl=self.short(backend))
        await batch.set_many({freed: b"new"}, ttl=None)
        await batch.set_many({lasting: b"new"}, ttl=LONG)
        await batch.set_many({first: b"1", second: b"2"}, ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await batch.get_many([first, second, freed, lasting]) == {freed: b"new", lasting: b"new"}
        assert await batch.delete_many([first, second, freed, lasting]) == 2

    @promise
    async def test_a_batch_sees_what_single_operations_wrote(self, backend: Backend) -> None:
        """And the other way round: there is one entry under a key."""
        batch, single, many = having(backend, Batch), self.key("single"), self.key("many")
        await backend.set(single, b"old", ttl=LONG)
        await batch.set_many({single: b"new", many: b"v"}, ttl=LONG)
        assert await backend.get(single) == b"new"
        assert await backend.delete(many) is True
        assert await batch.get_many([single, many]) == {single: b"new"}
        assert await batch.delete_many([single, many]) == 1
        assert await backend.get(single) is None

    @promise
    async def test_a_batch_takes_other_sequences_and_mappings(self, backend: Backend) -> None:
        """A tuple of keys, a read-only mapping; neither is changed."""
        batch, key, other = having(backend, Batch), self.key(), self.key("other")
        items = {key: b"v", other: b"w"}
        await batch.set_many(items, ttl=LONG)
        assert items == {key: b"v", other: b"w"}
        assert await batch.get_many((key, other)) == items
        assert await batch.delete_many(tuple(items)) == 2
