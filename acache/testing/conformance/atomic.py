"""What must not be torn by others: `Add` and `Counter`."""

from __future__ import annotations

import asyncio
from typing import Final

from ...backends.base import Add, Backend, Counter
from ...errors import DecodeError
from .harness import LONG, Harness, expecting, having, promises

__all__ = ["AtomicChecks"]

_HIGHEST: Final = 2**63 - 1
_LOWEST: Final = -(2**63)

promise = promises("atomic")


class AtomicChecks(Harness):
    """One winner, and no lost increment."""

    @promise
    async def test_add_stores_only_what_is_missing(self, backend: Backend) -> None:
        """The first value stays; an empty one too."""
        adder, key, empty = having(backend, Add), self.key(), self.key("empty")
        assert await adder.add(key, b"first", ttl=LONG) is True
        assert await adder.add(key, b"second", ttl=LONG) is False
        assert await backend.get(key) == b"first"
        assert await adder.add(empty, b"", ttl=LONG) is True
        assert await adder.add(empty, b"second", ttl=LONG) is False
        assert await backend.get(empty) == b""

    @promise
    async def test_add_stores_over_what_was_deleted(self, backend: Backend) -> None:
        """A delete leaves nothing that an add would meet."""
        adder, key = having(backend, Add), self.key()
        await backend.set(key, b"old", ttl=None)
        await backend.delete(key)
        assert await adder.add(key, b"new", ttl=LONG) is True
        assert await backend.get(key) == b"new"

    @promise
    async def test_add_honours_the_ttl(self, backend: Backend) -> None:
        """A winner's is the entry's, a loser's is nobody's."""
        adder = having(backend, Add)
        brief, lasting = self.key("brief"), self.key("lasting")
        assert await adder.add(lasting, b"v", ttl=None) is True
        assert await adder.add(lasting, b"w", ttl=self.short(backend)) is False
        assert await adder.add(brief, b"v", ttl=self.short(backend)) is True
        await adder.add(brief, b"w", ttl=None)
        await self.pass_time(self.over(backend))
        assert await backend.get(brief) in (None, b"w")  # b"w": the first had expired already
        assert await backend.get(lasting) == b"v"
        await backend.delete(lasting)
        await backend.delete(brief)

    @promise
    async def test_add_has_one_winner(self, backend: Backend) -> None:
        """Of fifty at once."""
        adder, key = having(backend, Add), self.key()
        won = await asyncio.gather(*[adder.add(key, b"%d" % index, ttl=LONG) for index in range(50)])
        assert won.count(True) == 1
        assert await backend.get(key) == b"%d" % won.index(True)

    @promise
    async def test_add_has_one_winner_over_what_has_expired(self, backend: Backend) -> None:
        """Of fifty at once, who all find an entry that has ended."""
        adder, key = having(backend, Add), self.key()
        await backend.set(key, b"old", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        won = await asyncio.gather(*[adder.add(key, b"%d" % index, ttl=LONG) for index in range(50)])
        assert won.count(True) == 1
        assert await backend.get(key) == b"%d" % won.index(True)

    @promise
    async def test_a_counter_starts_at_zero(self, backend: Backend) -> None:
        """And is stored as plain digits."""
        counter, key = having(backend, Counter), self.key()
        assert await counter.incr(key, 5, ttl=LONG) == 5
        assert await counter.incr(key, -7, ttl=LONG) == -2
        assert await backend.get(key) == b"-2"
        assert await counter.incr(key, 2, ttl=LONG) == 0
        assert await backend.get(key) == b"0"

    @promise
    async def test_adding_zero_makes_a_counter(self, backend: Backend) -> None:
        """It is there afterwards, and reading it so changes nothing."""
        counter, key = having(backend, Counter), self.key()
        assert await counter.incr(key, 0, ttl=LONG) == 0
        assert await backend.get(key) == b"0"
        assert await counter.incr(key, 3, ttl=LONG) == 3
        assert await counter.incr(key, 0, ttl=LONG) == 3

    @promise
    async def test_digits_that_were_set_are_a_counter(self, backend: Backend) -> None:
        """Whoever wrote them, they count; and a counter can be replaced by any bytes."""
        counter, key = having(backend, Counter), self.key()
        await backend.set(key, b"41", ttl=LONG)
        assert await counter.incr(key, 1, ttl=LONG) == 42
        await backend.set(key, b"-10", ttl=LONG)
        assert await counter.incr(key, 1, ttl=LONG) == -9
        await backend.set(key, b"text", ttl=LONG)
        assert await backend.get(key) == b"text"

    @promise
    async def test_a_counter_shrinks_as_it_grows(self, backend: Backend) -> None:
        """From more digits to fewer, and over zero, without what was left of the longer one."""
        counter, key = having(backend, Counter), self.key()
        for delta, total in ((1000, 1000), (-1, 999), (-990, 9), (-10, -1), (-99, -100), (1, -99), (99, 0)):
            assert await counter.incr(key, delta, ttl=LONG) == total
            assert await backend.get(key) == b"%d" % total

    @promise
    async def test_no_increment_is_lost(self, backend: Backend) -> None:
        """Two hundred at once, from nothing."""
        counter, key = having(backend, Counter), self.key()
        sums = await asyncio.gather(*[counter.incr(key, 1, ttl=LONG) for _ in range(200)])
        assert sorted(sums) == list(range(1, 201))
        assert await backend.get(key) == b"200"

    @promise
    async def test_a_counter_keeps_its_deadline(self, backend: Backend) -> None:
        """The ttl is the first increment's, or the set's."""
        counter = having(backend, Counter)
        brief, lasting, set_before = self.key("brief"), self.key("lasting"), self.key("set")
        await counter.incr(lasting, 1, ttl=None)
        await counter.incr(lasting, 1, ttl=self.short(backend))
        await backend.set(set_before, b"5", ttl=None)
        await counter.incr(set_before, 1, ttl=self.short(backend))
        await backend.set(brief, b"1", ttl=self.short(backend))
        kept = await counter.incr(brief, 1, ttl=None) == 2
        await self.pass_time(self.over(backend))
        assert await backend.get(brief) == (None if kept else b"1")
        assert await backend.get(lasting) == b"2"
        assert await backend.get(set_before) == b"6"
        for key in (brief, lasting, set_before):
            await backend.delete(key)

    @promise
    async def test_an_expired_counter_starts_again(self, backend: Backend) -> None:
        """From zero, with the new ttl, also for two hundred at once."""
        counter, key, text = having(backend, Counter), self.key(), self.key("text")
        await counter.incr(key, 40, ttl=self.short(backend))
        await backend.set(text, b"text", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        sums = await asyncio.gather(*[counter.incr(key, 1, ttl=LONG) for _ in range(200)])
        assert sorted(sums) == list(range(1, 201))
        assert await counter.incr(text, 1, ttl=LONG) == 1

    @promise
    async def test_a_counter_has_64_exact_bits(self, backend: Backend) -> None:
        """Sums at both borders are exact, and what leaves them is refused and changes nothing."""
        counter = having(backend, Counter)
        for border, step in ((_HIGHEST, 1), (_LOWEST, -1)):
            key = self.key()
            assert await counter.incr(key, border - step, ttl=LONG) == border - step
            assert await counter.incr(key, step, ttl=LONG) == border
            await expecting(DecodeError, counter.incr(key, step, ttl=LONG))
            assert await backend.get(key) == b"%d" % border
            assert await counter.incr(key, -step, ttl=LONG) == border - step

    @promise
    async def test_a_step_of_more_than_64_bits_is_refused(self, backend: Backend) -> None:
        """Over nothing, it makes nothing; over a counter, it changes nothing."""
        counter, key, absent = having(backend, Counter), self.key(), self.key("absent")
        await counter.incr(key, -1, ttl=LONG)
        for delta in (_HIGHEST + 1, _LOWEST - 1, 10**30):
            await expecting(DecodeError, counter.incr(absent, delta, ttl=LONG))
        for delta in (_HIGHEST + 2, _LOWEST, 10**30):
            await expecting(DecodeError, counter.incr(key, delta, ttl=LONG))
        assert await backend.get(absent) is None
        assert await backend.get(key) == b"-1"

    @promise
    async def test_what_is_no_counter_is_not_counted(self, backend: Backend) -> None:
        """Other bytes are refused and stay, also those that resemble a number, unless the engine wrote it so."""
        counter = having(backend, Counter)
        for data in (b"text", b"", b"1.5", b"1 ", b" 1", b"+1", b"01", b"-0", b"0x1", b"1\n", b"1\x00", b"9" * 30):
            key = self.key()
            await backend.set(key, data, ttl=LONG)
            if data in self.foreign_counters:
                total = self.foreign_counters[data] + 1
                assert await counter.incr(key, 1, ttl=LONG) == total
                assert await backend.get(key) == b"%d" % total, "plain digits from now on"
            else:
                await expecting(DecodeError, counter.incr(key, 1, ttl=LONG), data)
                assert await backend.get(key) == data
