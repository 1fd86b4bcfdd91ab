"""`BackendConformance`: the contract of `acache.backends.base`, as a test class to subclass.

::

    class TestMyBackend(BackendConformance):
        @pytest.fixture
        def backend(self):
            return MyBackend(...)

Each test runs in an event loop of its own and closes the backend, so no plugin is needed and a backend must connect
lazily.  A capability that the backend does not have is skipped; one that it has must hold.  Keys are unique to each
test, so a shared server will do; entries are removed or expire within a minute.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from unittest import SkipTest

from ..backends.base import Add, Backend, Batch, Cas, Clear, Counter, KeyLimits, Scan, Touch
from ..entry import HEAD_BYTES
from ..errors import AcacheError, BackendError, DecodeError, KeyMissing

__all__ = ["BackendConformance"]

C = TypeVar("C")
Check = Callable[[Any, Any], Coroutine[Any, Any, None]]

_LONG: Final = 60.0
_MANY: Final = 2500
_HARD_KEYS: Final = (
    *("a", "A", "aa", "a:b", "a::b", "a*", "a?", "a[b]", "a\\", "a\\*", "{a}", "{a}b", "$a", "$where", "a.b"),
    *(".", "..", "../a", "/etc/a", "a/b", "a//b", "a%00", "%61", "a+b", "a=b&c", "a#b", '"a"', "'a'", "a;b", "a|b"),
    *("~", "a~", "-a", "0", "00", "-1", "None", "con", " a", "a ", "a b", "a\tb", "a\r\nb", "a\nset x 0 0 1\r\n1"),
    *("a\x00", "a\x00b", "\x7f", "é", "e\u0301", "ß", "ss", "日本語", "🐍", "\ufeffa"),
)
_HARD_VALUES: Final = (b"", b"\x00", b"a", b"\r\n", b"END\r\n", bytes(range(256)), b"x" * 70_000, b"-1", b"01", b" 1")


def promise(check: Check) -> Callable[[Any, Any], None]:
    """Make a test out of a check: run it in a fresh loop, close the backend, leave no task behind."""

    @functools.wraps(check)
    def test(self: Any, backend: Any) -> None:
        async def run() -> None:
            try:
                await check(self, backend)
            finally:
                await backend.aclose()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left behind: {left}"

        asyncio.run(run())

    return test


def having(backend: object, capability: type[C]) -> C:
    """Return the backend as one with this capability, or skip the test."""
    if not isinstance(backend, capability):
        reason = f"{type(backend).__name__} has no {capability.__name__}"
        raise SkipTest(reason)
    return backend


class BackendConformance:
    """Subclass it, and give it a ``backend`` fixture that returns a fresh, unconnected backend."""

    async def pass_time(self, seconds: float) -> None:
        """Let the engine's clock move on; override it where the clock is a fake one."""
        await asyncio.sleep(seconds)

    def key(self, name: str = "key") -> str:
        """Return a key that no other test uses."""
        return f"{uuid.uuid4().hex}:{name}"

    @staticmethod
    def short(backend: Backend) -> float:
        """Return a ttl that is short for this engine."""
        return max(0.06, float(getattr(backend, "ttl_granularity", 0.0)))

    @staticmethod
    def over(backend: Backend) -> float:
        """Return a time after which a short ttl has ended."""
        granularity = float(getattr(backend, "ttl_granularity", 0.0))
        return max(0.06, granularity) + granularity + 0.06

    # Backend --------------------------------------------------------------------------------------------------------

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
        """Empty, binary, protocol-like and large values are equal, and bytes."""
        for value in _HARD_VALUES:
            key = self.key()
            await backend.set(key, value, ttl=_LONG)
            found = await backend.get(key)
            assert type(found) is bytes
            assert found == value

    @promise
    async def test_the_last_write_wins(self, backend: Backend) -> None:
        """A second set replaces the value, whatever its length."""
        key = self.key()
        for value in (b"first, longer", b"2nd", b"third, longer than both"):
            await backend.set(key, value, ttl=_LONG)
            assert await backend.get(key) == value

    @promise
    async def test_delete_removes_and_tells(self, backend: Backend) -> None:
        """True once, then False, and the key reads as missing."""
        key = self.key()
        await backend.set(key, b"v", ttl=_LONG)
        assert await backend.delete(key) is True
        assert await backend.get(key) is None
        assert await backend.delete(key) is False

    @promise
    async def test_deleting_what_is_missing_is_false(self, backend: Backend) -> None:
        """Nothing to remove is no error."""
        assert await backend.delete(self.key()) is False

    @promise
    async def test_a_ttl_ends_the_entry(self, backend: Backend) -> None:
        """After its ttl, and the granularity, an entry is gone."""
        key = self.key()
        await backend.set(key, b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await backend.get(key) is None

    @promise
    async def test_a_ttl_does_not_end_early(self, backend: Backend) -> None:
        """An entry with a long ttl outlives a short one."""
        key = self.key()
        await backend.set(key, b"v", ttl=_LONG)
        await self.pass_time(self.over(backend))
        assert await backend.get(key) == b"v"

    @promise
    async def test_an_expired_entry_cannot_be_deleted(self, backend: Backend) -> None:
        """Delete answers as a reader would see it."""
        key = self.key()
        await backend.set(key, b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await backend.delete(key) is False

    @promise
    async def test_no_ttl_means_for_ever(self, backend: Backend) -> None:
        """None is neither zero nor a default."""
        key = self.key()
        await backend.set(key, b"v", ttl=None)
        await self.pass_time(self.over(backend))
        assert await backend.get(key) == b"v"
        await backend.delete(key)

    @promise
    async def test_writing_without_a_ttl_removes_the_old_deadline(self, backend: Backend) -> None:
        """From a ttl to None."""
        key = self.key()
        await backend.set(key, b"old", ttl=self.short(backend))
        await backend.set(key, b"new", ttl=None)
        await self.pass_time(self.over(backend))
        assert await backend.get(key) == b"new"
        await backend.delete(key)

    @promise
    async def test_writing_replaces_the_deadline(self, backend: Backend) -> None:
        """A later set decides: longer or shorter."""
        longer, shorter = self.key("longer"), self.key("shorter")
        await backend.set(longer, b"v", ttl=self.short(backend))
        await backend.set(longer, b"v", ttl=_LONG)
        await backend.set(shorter, b"v", ttl=_LONG)
        await backend.set(shorter, b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await backend.get(longer) == b"v"
        assert await backend.get(shorter) is None

    @promise
    async def test_a_ttl_of_decades_is_kept(self, backend: Backend) -> None:
        """No engine's date arithmetic turns a far future into the past."""
        key = self.key()
        await backend.set(key, b"v", ttl=30 * 365 * 86400.0)
        assert await backend.get(key) == b"v"
        await backend.delete(key)

    @promise
    async def test_different_keys_are_different(self, backend: Backend) -> None:
        """Keys that look alike to globs, paths, case folding, normal forms or number parsers are kept apart."""
        stem = self.key("")
        keys = [stem + name for name in self._hard_names(backend)]
        for index, key in enumerate(keys):
            await backend.set(key, b"%d" % index, ttl=_LONG)
        for index, key in enumerate(keys):
            assert await backend.get(key) == b"%d" % index, f"the value of {key!r} is another key's"
        assert await backend.delete(keys[0]) is True
        for index, key in enumerate(keys[1:], 1):
            assert await backend.get(key) == b"%d" % index, f"{key!r} went with another key"

    @promise
    async def test_the_longest_keys_are_whole(self, backend: Backend) -> None:
        """Keys of the greatest length that differ in the last character are two."""
        longest = self._limits(backend).max_bytes
        stem = self.key("").ljust(longest - 1, "k")
        await backend.set(stem + "1", b"1", ttl=_LONG)
        await backend.set(stem + "2", b"2", ttl=_LONG)
        assert await backend.get(stem + "1") == b"1"
        assert await backend.get(stem + "2") == b"2"

    @promise
    async def test_concurrent_calls_get_their_own_answers(self, backend: Backend) -> None:
        """A hundred tasks at once: every answer belongs to its question."""
        keys = [self.key(str(index)) for index in range(100)]

        async def round_trip(key: str) -> None:
            await backend.set(key, key.encode(), ttl=_LONG)
            for _ in range(5):
                assert await backend.get(key) == key.encode()

        await asyncio.gather(*[round_trip(key) for key in keys])

    @promise
    async def test_a_cancelled_call_does_not_shift_the_answers(self, backend: Backend) -> None:
        """Calls cancelled at different points leave the connection in step."""
        keys = [self.key(str(index)) for index in range(20)]
        for key in keys:
            await backend.set(key, key.encode(), ttl=_LONG)
        for turns in range(12):
            task = asyncio.ensure_future(backend.get(keys[turns]))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            for key in keys[:4]:
                assert await backend.get(key) == key.encode()
        assert await asyncio.gather(*[backend.get(key) for key in keys]) == [key.encode() for key in keys]

    @promise
    async def test_closing_twice_is_harmless(self, backend: Backend) -> None:
        """Used or not."""
        await backend.get(self.key())
        await backend.aclose()
        await backend.aclose()

    def test_a_second_event_loop_works_or_is_refused(self, backend: Backend) -> None:
        """One loop after the other: right answers, or one clear error; never a hang."""
        key = self.key()

        async def first() -> None:
            await backend.set(key, b"v", ttl=_LONG)
            await backend.aclose()

        async def second() -> None:
            try:
                async with asyncio.timeout(10):
                    assert await backend.get(key) in (b"v", None)
            except BackendError:
                pass
            finally:
                await backend.aclose()

        asyncio.run(first())
        asyncio.run(second())

    # Batch ----------------------------------------------------------------------------------------------------------

    @promise
    async def test_get_many_returns_what_is_there(self, backend: Backend) -> None:
        """Hits only; nothing asked, nothing returned."""
        batch = having(backend, Batch)
        there, missing = self.key("there"), self.key("missing")
        await backend.set(there, b"", ttl=_LONG)
        assert await batch.get_many([there, missing]) == {there: b""}
        assert await batch.get_many([]) == {}

    @promise
    async def test_thousands_of_keys_in_one_call(self, backend: Backend) -> None:
        """Bulk operations are chunked to the engine's limits."""
        batch = having(backend, Batch)
        stem = self.key("")
        items = {f"{stem}{index}": b"%d" % index for index in range(_MANY)}
        await batch.set_many(items, ttl=_LONG)
        assert await batch.get_many([*items, f"{stem}missing"]) == items
        assert await batch.delete_many([*items, f"{stem}missing"]) == _MANY
        assert await batch.get_many(list(items)) == {}

    @promise
    async def test_set_many_honours_the_ttl(self, backend: Backend) -> None:
        """Also over entries that had another."""
        batch = having(backend, Batch)
        first, second = self.key("1"), self.key("2")
        await backend.set(first, b"old", ttl=_LONG)
        await batch.set_many({first: b"1", second: b"2"}, ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await batch.get_many([first, second]) == {}

    @promise
    async def test_set_many_of_nothing_is_nothing(self, backend: Backend) -> None:
        """No empty command reaches the engine."""
        batch = having(backend, Batch)
        await batch.set_many({}, ttl=_LONG)
        assert await batch.delete_many([]) == 0

    # Add ------------------------------------------------------------------------------------------------------------

    @promise
    async def test_add_stores_only_what_is_missing(self, backend: Backend) -> None:
        """The first value stays."""
        adder, key = having(backend, Add), self.key()
        assert await adder.add(key, b"first", ttl=_LONG) is True
        assert await adder.add(key, b"second", ttl=_LONG) is False
        assert await backend.get(key) == b"first"

    @promise
    async def test_add_has_one_winner(self, backend: Backend) -> None:
        """Of fifty at once, and again over an entry that has expired."""
        adder, key = having(backend, Add), self.key()
        for ttl in (self.short(backend), _LONG):
            won = await asyncio.gather(*[adder.add(key, b"%d" % index, ttl=ttl) for index in range(50)])
            assert won.count(True) == 1
            assert await backend.get(key) in (b"%d" % won.index(True), None)
            await self.pass_time(self.over(backend))
        assert await backend.get(key) == b"%d" % won.index(True)

    # Counter --------------------------------------------------------------------------------------------------------

    @promise
    async def test_a_counter_starts_at_zero(self, backend: Backend) -> None:
        """And is stored as plain digits."""
        counter, key = having(backend, Counter), self.key()
        assert await counter.incr(key, 5, ttl=_LONG) == 5
        assert await counter.incr(key, -7, ttl=_LONG) == -2
        assert await backend.get(key) == b"-2"

    @promise
    async def test_no_increment_is_lost(self, backend: Backend) -> None:
        """Two hundred at once."""
        counter, key = having(backend, Counter), self.key()
        sums = await asyncio.gather(*[counter.incr(key, 1, ttl=_LONG) for _ in range(200)])
        assert sorted(sums) == list(range(1, 201))

    @promise
    async def test_a_counter_keeps_its_deadline(self, backend: Backend) -> None:
        """The ttl is the first increment's."""
        counter = having(backend, Counter)
        brief, lasting = self.key("brief"), self.key("lasting")
        await counter.incr(brief, 1, ttl=self.short(backend))
        await counter.incr(brief, 1, ttl=None)
        await counter.incr(lasting, 1, ttl=None)
        await counter.incr(lasting, 1, ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await backend.get(brief) is None
        assert await backend.get(lasting) == b"2"
        await backend.delete(lasting)

    @promise
    async def test_a_counter_has_64_exact_bits(self, backend: Backend) -> None:
        """Large sums are exact, and what leaves 64 bits is refused and changes nothing."""
        counter, key = having(backend, Counter), self.key()
        assert await counter.incr(key, 2**63 - 2, ttl=_LONG) == 2**63 - 2
        assert await counter.incr(key, 1, ttl=_LONG) == 2**63 - 1
        with _raises(DecodeError):
            await counter.incr(key, 1, ttl=_LONG)
        assert await backend.get(key) == b"%d" % (2**63 - 1)

    @promise
    async def test_what_is_no_counter_is_not_counted(self, backend: Backend) -> None:
        """Other bytes are refused and stay."""
        counter, key = having(backend, Counter), self.key()
        await backend.set(key, b"text", ttl=_LONG)
        with _raises(DecodeError):
            await counter.incr(key, 1, ttl=_LONG)
        assert await backend.get(key) == b"text"

    # Touch ----------------------------------------------------------------------------------------------------------

    @promise
    async def test_touch_moves_the_deadline(self, backend: Backend) -> None:
        """Longer, shorter, and to none."""
        toucher = having(backend, Touch)
        longer, shorter, never = self.key("longer"), self.key("shorter"), self.key("never")
        await backend.set(longer, b"v", ttl=self.short(backend))
        await backend.set(shorter, b"v", ttl=_LONG)
        await backend.set(never, b"v", ttl=self.short(backend))
        assert await toucher.touch(longer, ttl=_LONG) is True
        assert await toucher.touch(shorter, ttl=self.short(backend)) is True
        assert await toucher.touch(never, ttl=None) is True
        await self.pass_time(self.over(backend))
        assert await backend.get(longer) == b"v"
        assert await backend.get(shorter) is None
        assert await backend.get(never) == b"v"
        await backend.delete(never)

    @promise
    async def test_touching_what_is_missing_is_false(self, backend: Backend) -> None:
        """And makes nothing."""
        toucher, key = having(backend, Touch), self.key()
        assert await toucher.touch(key, ttl=_LONG) is False
        assert await toucher.touch(key, ttl=None) is False
        assert await backend.get(key) is None

    @promise
    async def test_ttl_tells_the_time_left(self, backend: Backend) -> None:
        """Seconds, None for ever, an error for nothing."""
        toucher, key = having(backend, Touch), self.key()
        with _raises(KeyMissing):
            await toucher.ttl(key)
        await backend.set(key, b"v", ttl=_LONG)
        left = await toucher.ttl(key)
        assert left is not None
        assert _LONG - 10 < left <= _LONG + float(getattr(backend, "ttl_granularity", 0.0)) + 0.001  # float rounding
        await backend.set(key, b"v", ttl=None)
        assert await toucher.ttl(key) is None
        await backend.delete(key)

    # Clear and Scan -------------------------------------------------------------------------------------------------

    @promise
    async def test_clear_takes_its_prefix_and_nothing_else(self, backend: Backend) -> None:
        """Glob and regex characters in a prefix are letters."""
        clearer = having(backend, Clear)
        stem = self.key("")
        for prefix in ("*", "?", "[ab]", "a.c", "a\\", "^", "(", "%", "_"):
            inside = [f"{stem}{prefix}{name}" for name in ("", "1", "x:y")]
            outside = [f"{stem}{name}" for name in ("a", "b", "abc", "z1", "a.", "-", "A" + prefix)]
            for key in (*inside, *outside):
                await backend.set(key, b"v", ttl=_LONG)
            await clearer.clear(f"{stem}{prefix}")
            for key in inside:
                assert await backend.get(key) is None, f"{key!r} survived"
            for key in outside:
                assert await backend.get(key) == b"v", f"{key!r} was taken along"

    @promise
    async def test_clear_takes_thousands(self, backend: Backend) -> None:
        """In bounded steps, all of them."""
        clearer, batch = having(backend, Clear), having(backend, Batch)
        stem = self.key("")
        items = {f"{stem}{index}": b"v" for index in range(_MANY)}
        await batch.set_many(items, ttl=_LONG)
        await clearer.clear(stem)
        assert await batch.get_many(list(items)) == {}

    @promise
    async def test_scan_finds_every_key_under_its_prefix(self, backend: Backend) -> None:
        """Literally, and not those that have expired."""
        scanner = having(backend, Scan)
        stem = self.key("")
        wanted = {f"{stem}[x]*{index}" for index in range(30)}
        for key in wanted:
            await backend.set(key, b"v", ttl=_LONG)
        await backend.set(f"{stem}x1", b"v", ttl=_LONG)
        await backend.set(f"{stem}[x]*gone", b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert {key async for key in scanner.scan(f"{stem}[x]*")} == wanted

    # Cas ------------------------------------------------------------------------------------------------------------

    @promise
    async def test_set_if_stores_over_what_was_seen(self, backend: Backend) -> None:
        """Absence is a version, and so is every value."""
        cas, key = having(backend, Cas), self.key()
        data, version = await cas.get_versioned(key)
        assert data is None
        assert await cas.set_if(key, b"one", version, ttl=_LONG) is True
        data, version = await cas.get_versioned(key)
        assert data == b"one"
        assert await cas.set_if(key, b"two", version, ttl=_LONG) is True
        assert await backend.get(key) == b"two"

    @promise
    async def test_set_if_is_refused_over_anything_else(self, backend: Backend) -> None:
        """A value where nothing was seen; another value than the one that was seen."""
        cas, key = having(backend, Cas), self.key()
        _, absent = await cas.get_versioned(key)
        await backend.set(key, b"other", ttl=_LONG)
        assert await cas.set_if(key, b"mine", absent, ttl=_LONG) is False
        _, version = await cas.get_versioned(key)
        await backend.set(key, b"another", ttl=_LONG)
        assert await cas.set_if(key, b"mine", version, ttl=_LONG) is False
        assert await backend.get(key) == b"another"

    @promise
    async def test_an_empty_value_is_not_absence(self, backend: Backend) -> None:
        """Zero bytes are a value of their own."""
        cas, key = having(backend, Cas), self.key()
        _, absent = await cas.get_versioned(key)
        await backend.set(key, b"", ttl=_LONG)
        data, empty = await cas.get_versioned(key)
        assert data == b""
        assert await cas.set_if(key, b"mine", absent, ttl=_LONG) is False
        assert await cas.set_if(key, b"mine", empty, ttl=_LONG) is True

    @promise
    async def test_set_if_may_fill_what_has_gone(self, backend: Backend) -> None:
        """What was seen has expired or was removed without a trace: the key is free."""
        cas, key = having(backend, Cas), self.key()
        await backend.set(key, b"old", ttl=self.short(backend))
        _, version = await cas.get_versioned(key)
        await self.pass_time(self.over(backend))
        assert await cas.set_if(key, b"new", version, ttl=_LONG) is True
        assert await backend.get(key) == b"new"

    @promise
    async def test_one_writer_wins_per_version(self, backend: Backend) -> None:
        """Fifty at once over nothing, and fifty over one value."""
        cas, key = having(backend, Cas), self.key()
        for _ in range(2):
            _, version = await cas.get_versioned(key)
            tries = [cas.set_if(key, uuid.uuid4().bytes, version, ttl=_LONG) for _ in range(50)]
            assert (await asyncio.gather(*tries)).count(True) == 1

    @promise
    async def test_set_if_honours_the_ttl(self, backend: Backend) -> None:
        """Over nothing and over a value; also from a ttl to none."""
        cas = having(backend, Cas)
        fresh, old, lasting = self.key("fresh"), self.key("old"), self.key("lasting")
        await backend.set(old, b"old", ttl=_LONG)
        await backend.set(lasting, b"lasting", ttl=self.short(backend))
        for key, ttl in ((fresh, self.short(backend)), (old, self.short(backend)), (lasting, None)):
            _, version = await cas.get_versioned(key)
            assert await cas.set_if(key, b"new", version, ttl=ttl) is True
        await self.pass_time(self.over(backend))
        assert await backend.get(fresh) is None
        assert await backend.get(old) is None
        assert await backend.get(lasting) == b"new"
        await backend.delete(lasting)

    @promise
    async def test_swap_returns_what_it_replaced(self, backend: Backend) -> None:
        """At least its first 40 bytes; None for nothing."""
        cas, key = having(backend, Cas), self.key()
        first = bytes(range(100))
        assert await cas.swap(key, first, ttl=_LONG) is None
        before = await cas.swap(key, b"second", ttl=_LONG)
        assert before is not None
        assert first.startswith(before)
        assert len(before) >= HEAD_BYTES
        assert await cas.swap(key, b"third", ttl=_LONG) == b"second"
        assert await backend.get(key) == b"third"

    # Helpers --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _limits(backend: Backend) -> KeyLimits:
        limits = getattr(backend, "key_limits", KeyLimits())
        assert isinstance(limits, KeyLimits)
        return limits

    def _hard_names(self, backend: Backend) -> list[str]:
        printable = self._limits(backend).printable
        return [
            name for name in _HARD_KEYS if not printable or (name.isascii() and name.isprintable() and " " not in name)
        ]


class _raises:  # noqa: N801 - used like pytest.raises, which this module must not need
    def __init__(self, expected: type[AcacheError]) -> None:
        self._expected: Final = expected

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"{self._expected.__name__} was not raised"
        return isinstance(error, self._expected)
