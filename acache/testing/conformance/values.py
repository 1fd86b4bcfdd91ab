"""What goes in comes out: values, their types and their limit."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final
from unittest import SkipTest

from ...backends.base import Add, Backend, Batch, Cas, Counter, Touch
from ...errors import ValueTooLarge
from .harness import LONG, Harness, expecting, having, promises

__all__ = ["ValueChecks"]

_PROTOCOL_LIKE: Final = (b"\r\n", b"END\r\n", b"$-1\r\n", b"VALUE k 0 1\r\n1\r\nEND\r\n", b"-1", b"01", b" 1", b"null")

promise = promises("values")


class ValueChecks(Harness):
    """Bytes in, the same bytes out."""

    @promise
    async def test_it_has_the_four_operations(self, backend: Backend) -> None:
        """The protocol's methods are there."""
        assert isinstance(backend, Backend)

    @promise
    async def test_a_missing_key_reads_as_none(self, backend: Backend) -> None:
        """Nothing is there before it is stored."""
        assert await backend.get(self.key()) is None

    @promise
    async def test_bytes_come_back_as_they_were(self, backend: Backend) -> None:
        """Empty, binary, protocol-like and large values are equal."""
        for value in (b"", b"\x00", b"a", bytes(range(256)), b"x" * 70_000, *_PROTOCOL_LIKE):
            key = self.key()
            await backend.set(key, value, ttl=LONG)
            assert await backend.get(key) == value

    @promise
    async def test_digits_come_back_as_they_were(self, backend: Backend) -> None:
        """What looks like a number is bytes like any other, also where counters have a form of their own."""
        for value in (
            b"0",
            b"-0",
            b"00",
            b"007",
            b"-7",
            b"+7",
            b"1e3",
            b"1.0",
            b"%d" % 2**63,
            b"%d" % -(2**63),
            b"1" * 50,
        ):
            key = self.key()
            await backend.set(key, value, ttl=LONG)
            assert await backend.get(key) == value

    @promise
    async def test_a_read_is_exactly_bytes(self, backend: Backend) -> None:
        """No bytearray, memoryview or str reaches the caller."""
        key = self.key()
        await backend.set(key, b"v", ttl=LONG)
        assert type(await backend.get(key)) is bytes
        if isinstance(backend, Batch):
            assert [type(data) for data in (await backend.get_many([key])).values()] == [bytes]
        if isinstance(backend, Cas):
            assert type((await backend.get_versioned(key))[0]) is bytes
            assert type(await backend.swap(key, b"w", ttl=LONG)) is bytes

    @promise
    async def test_an_answer_is_exactly_a_bool_or_an_int(self, backend: Backend) -> None:
        """What tells whether is True or False, what counts is an int, what stores returns nothing."""
        key = self.key()
        assert await backend.set(key, b"v", ttl=LONG) is None  # type: ignore[func-returns-value]  # that is asked
        if isinstance(backend, Add):
            assert await backend.add(key, b"v", ttl=LONG) is False
        if isinstance(backend, Touch):
            assert await backend.touch(key, ttl=LONG) is True
            assert type(await backend.ttl(key)) in (float, int)
        if isinstance(backend, Cas):
            _, version = await backend.get_versioned(key)
            assert await backend.set_if(key, b"w", version, ttl=LONG) is True
        if isinstance(backend, Batch):
            assert type(await backend.delete_many([key])) is int
            await backend.set(key, b"v", ttl=LONG)
        assert await backend.delete(key) is True
        assert await backend.delete(key) is False
        if isinstance(backend, Counter):
            assert type(await backend.incr(key, 1, ttl=LONG)) is int

    @promise
    async def test_the_last_write_wins(self, backend: Backend) -> None:
        """A second set replaces the value, whatever its length."""
        key = self.key()
        for value in (b"first, longer", b"2nd", b"third, longer than both", b"x" * 300_000, b""):
            await backend.set(key, value, ttl=LONG)
            assert await backend.get(key) == value

    @promise
    async def test_delete_removes_and_tells(self, backend: Backend) -> None:
        """True once, then False, and the key reads as missing."""
        key = self.key()
        await backend.set(key, b"v", ttl=LONG)
        assert await backend.delete(key) is True
        assert await backend.get(key) is None
        assert await backend.delete(key) is False

    @promise
    async def test_deleting_an_empty_value_is_true(self, backend: Backend) -> None:
        """Zero bytes are something."""
        key = self.key()
        await backend.set(key, b"", ttl=LONG)
        assert await backend.get(key) == b""
        assert await backend.delete(key) is True

    @promise
    async def test_deleting_what_is_missing_is_false(self, backend: Backend) -> None:
        """Nothing to remove is no error."""
        assert await backend.delete(self.key()) is False

    @promise
    async def test_a_deleted_key_can_be_stored_again(self, backend: Backend) -> None:
        """A delete leaves nothing that a later set would meet."""
        key = self.key()
        for value in (b"one", b"two"):
            await backend.set(key, value, ttl=LONG)
            assert await backend.delete(key) is True
        await backend.set(key, b"three", ttl=LONG)
        assert await backend.get(key) == b"three"

    @promise
    async def test_a_large_value_is_whole(self, backend: Backend) -> None:
        """100 MB come back where the engine takes them, else as many bytes as it takes."""
        limit = self.value_limit(backend)
        size = self.largest if limit is None else min(limit, self.largest)
        value = (bytes(range(256)) * (size // 256 + 1))[:size]
        key = self.key()
        try:
            await backend.set(key, value, ttl=LONG)
            found = await backend.get(key)
            assert found is not None
            assert len(found) == size
            assert found == value, "as long as it was, and not equal"
        finally:
            await backend.delete(key)

    @promise
    async def test_one_byte_too_many_is_refused(self, backend: Backend) -> None:
        """ValueTooLarge names the size and the limit, and what was there stays."""
        limit = self._declared_limit(backend)
        key, value = self.key(), bytes(limit + 1)
        await backend.set(key, b"old", ttl=LONG)
        error = await expecting(ValueTooLarge, backend.set(key, value, ttl=LONG))
        assert str(limit) in str(error), f"the limit is missing in {str(error)!r}"
        assert str(limit + 1) in str(error), f"the size is missing in {str(error)!r}"
        assert await backend.get(key) == b"old"

    @promise
    async def test_every_write_refuses_what_is_too_large(self, backend: Backend) -> None:
        """Adding, swapping and comparing are writes like any other."""
        value = bytes(self._declared_limit(backend) + 1)
        key, absent = self.key(), self.key("absent")
        await backend.set(key, b"old", ttl=LONG)
        tries: list[Awaitable[object]] = []
        if isinstance(backend, Add):
            tries.append(backend.add(absent, value, ttl=LONG))
        if isinstance(backend, Cas):
            _, nothing = await backend.get_versioned(absent)
            _, version = await backend.get_versioned(key)
            tries.append(backend.set_if(absent, value, nothing, ttl=LONG))
            tries.append(backend.set_if(key, value, version, ttl=LONG))
            tries.append(backend.swap(key, value, ttl=LONG))
        for operation in tries:
            await expecting(ValueTooLarge, operation)
        assert await backend.get(key) == b"old"
        assert await backend.get(absent) is None

    @promise
    async def test_a_value_too_large_in_a_batch_is_named(self, backend: Backend) -> None:
        """The others are stored, the error is of the one that was not, and what was under it stays."""
        batch, limit = having(backend, Batch), self._declared_limit(backend)
        first, large, last = self.key("first"), self.key("large"), self.key("last")
        await backend.set(large, b"old", ttl=LONG)
        items = {first: b"1", large: bytes(limit + 1), last: b"3"}
        error = await expecting(ValueTooLarge, batch.set_many(items, ttl=LONG))
        assert set(error.failed) == {large}
        assert type(error.failed[large]) is ValueTooLarge
        assert await batch.get_many([first, large, last]) == {first: b"1", large: b"old", last: b"3"}

    def _declared_limit(self, backend: Backend) -> int:
        """Return the limit, or skip the test where there is none."""
        limit = self.value_limit(backend)
        if limit is None:
            reason = f"{type(backend).__name__} has no limit of its own"
            raise SkipTest(reason)
        return limit
