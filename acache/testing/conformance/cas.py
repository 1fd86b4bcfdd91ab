"""Compare and set: the interleavings of a reader that writes later, each one forced."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable

from ...backends.base import Add, Backend, Batch, Cas, Clear, Counter, Stream, Touch
from ...entry import HEAD_BYTES
from .harness import LONG, Harness, having, promises

__all__ = ["CasChecks"]

Write = Callable[[str], Awaitable[object]]

promise = promises("compare-and-set")


class CasChecks(Harness):
    """`Cas`.  A reads, B writes, A's `set_if` tells what it met."""

    @promise
    async def test_set_if_stores_over_what_was_seen(self, backend: Backend) -> None:
        """Absence is a version, and so is every value."""
        cas, key = having(backend, Cas), self.key()
        data, version = await cas.get_versioned(key)
        assert data is None
        assert await cas.set_if(key, b"one", version, ttl=LONG) is True
        data, version = await cas.get_versioned(key)
        assert data == b"one"
        assert await cas.set_if(key, b"two", version, ttl=LONG) is True
        assert await backend.get(key) == b"two"

    @promise
    async def test_a_write_over_nothing_refuses_who_saw_nothing(self, backend: Backend) -> None:
        """A sees nothing, B stores in whichever way, A is refused."""
        cas = having(backend, Cas)
        for name, write in _writes(backend, over_nothing=True).items():
            key = self.key(name)
            _, version = await cas.get_versioned(key)
            await write(key)
            theirs = await backend.get(key)
            assert theirs is not None
            assert await cas.set_if(key, b"mine", version, ttl=LONG) is False, f"after {name}"
            assert await backend.get(key) == theirs, f"after {name}"

    @promise
    async def test_a_write_over_a_value_refuses_who_saw_that(self, backend: Backend) -> None:
        """A sees a value, B replaces it in whichever way, A is refused."""
        cas = having(backend, Cas)
        for name, write in _writes(backend, over_nothing=False).items():
            key = self.key(name)
            await backend.set(key, b"700007", ttl=LONG)  # as long as what comes
            _, version = await cas.get_versioned(key)
            await write(key)
            theirs = await backend.get(key)
            assert theirs not in (None, b"700007")
            assert await cas.set_if(key, b"mine", version, ttl=LONG) is False, f"after {name}"
            assert await backend.get(key) == theirs, f"after {name}"

    @promise
    async def test_a_removal_leaves_the_key_free(self, backend: Backend) -> None:
        """A sees a value, B removes it in whichever way, A fills what has none at all now."""
        cas = having(backend, Cas)
        for name, remove in _removals(backend).items():
            key = self.key(name)
            await backend.set(key, b"old", ttl=LONG)
            _, version = await cas.get_versioned(key)
            await remove(key)
            assert await cas.set_if(key, b"new", version, ttl=LONG) is True, f"after {name}"
            assert await backend.get(key) == b"new", f"after {name}"

    @promise
    async def test_a_write_and_a_removal_leave_the_key_free(self, backend: Backend) -> None:
        """A sees nothing, B stores and deletes, A fills: nothing is nothing."""
        cas, key = having(backend, Cas), self.key()
        _, version = await cas.get_versioned(key)
        await backend.set(key, b"theirs", ttl=LONG)
        await backend.delete(key)
        assert await cas.set_if(key, b"mine", version, ttl=LONG) is True
        assert await backend.get(key) == b"mine"

    @promise
    async def test_a_removal_and_a_write_refuse_who_saw_the_old(self, backend: Backend) -> None:
        """A sees a value, B deletes it and C stores another, A is refused."""
        cas, key = having(backend, Cas), self.key()
        await backend.set(key, b"old", ttl=LONG)
        _, version = await cas.get_versioned(key)
        await backend.delete(key)
        await backend.set(key, b"theirs", ttl=LONG)
        assert await cas.set_if(key, b"mine", version, ttl=LONG) is False
        assert await backend.get(key) == b"theirs"

    @promise
    async def test_what_has_expired_is_free(self, backend: Backend) -> None:
        """For who saw it and for who saw nothing; it has no version of its own, and a swap finds nothing."""
        cas = having(backend, Cas)
        seen, unseen, swapped, taken = (self.key(name) for name in ("seen", "unseen", "swapped", "taken"))
        _, nothing = await cas.get_versioned(unseen)
        for key in (unseen, swapped, taken, seen):
            await backend.set(key, b"old", ttl=self.short(backend))
        _, version = await cas.get_versioned(seen)
        await self.pass_time(self.over(backend))
        assert (await cas.get_versioned(taken))[0] is None
        assert await cas.set_if(seen, b"new", version, ttl=LONG) is True
        assert await cas.set_if(unseen, b"new", nothing, ttl=LONG) is True
        assert await cas.swap(swapped, b"new", ttl=LONG) is None
        await backend.set(taken, b"theirs", ttl=LONG)
        assert await cas.set_if(taken, b"mine", version, ttl=LONG) is False
        assert [await backend.get(key) for key in (seen, unseen, swapped)] == [b"new"] * 3

    @promise
    async def test_a_touch_takes_nothing_from_who_saw(self, backend: Backend) -> None:
        """Whether a new ttl is a new version is the engine's affair; the answer is true either way."""
        cas, toucher, key = having(backend, Cas), having(backend, Touch), self.key()
        await backend.set(key, b"old", ttl=LONG)
        _, version = await cas.get_versioned(key)
        await toucher.touch(key, ttl=2 * LONG)
        stored = await cas.set_if(key, b"new", version, ttl=LONG)
        assert await backend.get(key) == (b"new" if stored else b"old")

    @promise
    async def test_a_version_is_good_once(self, backend: Backend) -> None:
        """Who has stored with it is refused the second time, over nothing and over a value."""
        cas, key = having(backend, Cas), self.key()
        for mine in (b"one", b"two"):
            _, version = await cas.get_versioned(key)
            assert await cas.set_if(key, mine, version, ttl=LONG) is True
            assert await cas.set_if(key, mine + b" again", version, ttl=LONG) is False
            assert await backend.get(key) == mine

    @promise
    async def test_a_refused_version_stays_refused(self, backend: Backend) -> None:
        """Trying again does not help; looking again does."""
        cas, key = having(backend, Cas), self.key()
        _, version = await cas.get_versioned(key)
        await backend.set(key, b"theirs", ttl=LONG)
        for _ in range(3):
            assert await cas.set_if(key, b"mine", version, ttl=LONG) is False
        _, version = await cas.get_versioned(key)
        assert await cas.set_if(key, b"mine", version, ttl=LONG) is True

    @promise
    async def test_an_empty_value_is_not_absence(self, backend: Backend) -> None:
        """Zero bytes are a value of their own."""
        cas, key = having(backend, Cas), self.key()
        _, absent = await cas.get_versioned(key)
        await backend.set(key, b"", ttl=LONG)
        data, empty = await cas.get_versioned(key)
        assert data == b""
        assert await cas.set_if(key, b"mine", absent, ttl=LONG) is False
        assert await cas.set_if(key, b"mine", empty, ttl=LONG) is True
        assert await cas.set_if(key, b"again", empty, ttl=LONG) is False
        assert await cas.swap(key, b"", ttl=LONG) == b"mine"
        assert await cas.swap(key, b"v", ttl=LONG) == b""

    @promise
    async def test_values_that_resemble_each_other_have_versions_of_their_own(self, backend: Backend) -> None:
        """One more byte, a NUL, another number of the same value: not what was seen."""
        cas = having(backend, Cas)
        pairs = ((b"", b"\x00"), (b"a", b"a\x00"), (b"a" * 39, b"a" * 40), (b"1", b"01"), (b"1", b"1 "), (b"1", b"2"))
        for seen, now in (*pairs, *[pair[::-1] for pair in pairs]):
            key = self.key()
            await backend.set(key, seen, ttl=LONG)
            _, version = await cas.get_versioned(key)
            await backend.set(key, now, ttl=LONG)
            assert await cas.set_if(key, b"mine", version, ttl=LONG) is False, (seen, now)

    @promise
    async def test_large_values_have_versions(self, backend: Backend) -> None:
        """Seen, replaced and told apart like small ones."""
        cas, key = having(backend, Cas), self.key()
        size = min(400_000, self.value_limit(backend) or 400_000)
        first, second = b"1" + b"x" * (size - 1), b"2" + b"x" * (size - 1)
        await backend.set(key, first, ttl=LONG)
        data, version = await cas.get_versioned(key)
        assert data == first
        assert await cas.set_if(key, second, version, ttl=LONG) is True
        assert await cas.set_if(key, first, version, ttl=LONG) is False
        assert await backend.get(key) == second

    @promise
    async def test_one_writer_wins_per_version(self, backend: Backend) -> None:
        """Fifty at once over nothing, over one value, and over what a removal left free."""
        cas, key = having(backend, Cas), self.key()
        for removed in (False, False, True):
            _, version = await cas.get_versioned(key)
            if removed:
                await backend.delete(key)
            values = [uuid.uuid4().bytes for _ in range(50)]
            won = await asyncio.gather(*[cas.set_if(key, value, version, ttl=LONG) for value in values])
            assert won.count(True) == 1
            assert await backend.get(key) == values[won.index(True)]

    @promise
    async def test_racing_readers_and_writers_lose_no_update(self, backend: Backend) -> None:
        """Fifty read, add their own, and compare and set until they have won: all are there in the end."""
        cas, key = having(backend, Cas), self.key()

        async def append(name: bytes) -> None:
            while True:
                data, version = await cas.get_versioned(key)
                # The newest comes first: engines may tell two entries apart by their first bytes.
                if await cas.set_if(key, name + b"," + (data or b""), version, ttl=LONG):
                    return
                await asyncio.sleep(0)

        names = [b"%d" % index for index in range(50)]
        await asyncio.gather(*[append(name) for name in names])
        found = await backend.get(key)
        assert found is not None
        assert sorted(found.rstrip(b",").split(b",")) == sorted(names)

    @promise
    async def test_set_if_honours_the_ttl(self, backend: Backend) -> None:
        """Over nothing and over a value, also from a ttl to none; who is refused moves no deadline."""
        cas = having(backend, Cas)
        fresh, old, lasting, refused = (self.key(name) for name in ("fresh", "old", "lasting", "refused"))
        _, nothing = await cas.get_versioned(refused)
        await backend.set(refused, b"theirs", ttl=LONG)
        await backend.set(old, b"old", ttl=LONG)
        await backend.set(lasting, b"lasting", ttl=self.short(backend))
        for key, ttl in ((lasting, None), (fresh, self.short(backend)), (old, self.short(backend))):
            _, version = await cas.get_versioned(key)
            assert await cas.set_if(key, b"new", version, ttl=ttl) is True
        assert await cas.set_if(refused, b"mine", nothing, ttl=self.short(backend)) is False
        await self.pass_time(self.over(backend))
        assert await backend.get(fresh) is None
        assert await backend.get(old) is None
        assert await backend.get(lasting) == b"new"
        assert await backend.get(refused) == b"theirs"
        await backend.delete(lasting)

    @promise
    async def test_swap_returns_what_it_replaced(self, backend: Backend) -> None:
        """At least its first 48 bytes; None for nothing."""
        cas, key = having(backend, Cas), self.key()
        first = bytes(range(100))
        assert await cas.swap(key, first, ttl=LONG) is None
        before = await cas.swap(key, b"second", ttl=LONG)
        assert before is not None
        assert first.startswith(before)
        assert len(before) >= HEAD_BYTES
        assert await cas.swap(key, b"3", ttl=LONG) == b"second"
        assert await cas.swap(key, b"fourth", ttl=LONG) == b"3", "a counter is bytes too"
        assert await backend.get(key) == b"fourth"

    @promise
    async def test_swap_honours_the_ttl(self, backend: Backend) -> None:
        """Its own replaces that of what was there."""
        cas, brief, lasting = having(backend, Cas), self.key("brief"), self.key("lasting")
        await backend.set(brief, b"old", ttl=None)
        await cas.swap(brief, b"new", ttl=self.short(backend))
        await backend.set(lasting, b"old", ttl=self.short(backend))
        await cas.swap(lasting, b"new", ttl=None)
        await self.pass_time(self.over(backend))
        assert await backend.get(brief) is None
        assert await backend.get(lasting) == b"new"
        await backend.delete(lasting)

    @promise
    async def test_racing_swaps_form_one_chain(self, backend: Backend) -> None:
        """Each of fifty values is replaced by exactly one other, but for the one that stays."""
        cas, key = having(backend, Cas), self.key()
        values = [uuid.uuid4().bytes for _ in range(50)]
        replaced = await asyncio.gather(*[cas.swap(key, value, ttl=LONG) for value in values])
        last = await backend.get(key)
        assert replaced.count(None) == 1
        assert {*replaced, last} == {None, *values}


def _writes(backend: Backend, *, over_nothing: bool) -> dict[str, Write]:
    """Return every way to leave something new under a key."""

    async def set_if(key: str) -> object:
        assert isinstance(backend, Cas)
        _, version = await backend.get_versioned(key)
        return await backend.set_if(key, b"theirs", version, ttl=LONG)

    writes: dict[str, Write] = {"set": lambda key: backend.set(key, b"theirs", ttl=LONG), "set_if": set_if}
    if isinstance(backend, Cas):
        writes["swap"] = lambda key: backend.swap(key, b"theirs", ttl=LONG)
    if isinstance(backend, Batch):
        writes["set_many"] = lambda key: backend.set_many({key: b"theirs"}, ttl=LONG)
    if isinstance(backend, Counter):
        writes["incr"] = lambda key: backend.incr(key, 5, ttl=LONG)
    if isinstance(backend, Stream):
        writes["store"] = lambda key: backend.store(key, [b"th", b"eirs"], ttl=LONG)
    if isinstance(backend, Add) and over_nothing:
        writes["add"] = lambda key: backend.add(key, b"theirs", ttl=LONG)
    return writes


def _removals(backend: Backend) -> dict[str, Write]:
    """Return every way to leave nothing under a key."""
    removals: dict[str, Write] = {"delete": backend.delete}
    if isinstance(backend, Batch):
        removals["delete_many"] = lambda key: backend.delete_many([key])
    if isinstance(backend, Clear):
        removals["clear"] = backend.clear
    return removals
