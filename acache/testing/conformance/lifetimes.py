"""A ttl ends an entry, and nothing else does."""

from __future__ import annotations

import time
from typing import Final

from ...backends.base import Backend, Touch
from ...errors import KeyMissing
from .harness import LONG, Harness, expecting, having, promises

__all__ = ["LifetimeChecks"]

_DECADES: Final = 30 * 365 * 86400.0

promise = promises("TTLs")


class LifetimeChecks(Harness):
    """Deadlines: kept, replaced, read and moved.  What shares a check shares its waiting."""

    @promise
    async def test_a_ttl_ends_the_entry_and_not_before(self, backend: Backend) -> None:
        """After its ttl, and the granularity, it is gone; one with a longer ttl, or none, is not."""
        brief, longer, never = self.key("brief"), self.key("longer"), self.key("never")
        await backend.set(brief, b"v", ttl=self.short(backend))
        await backend.set(longer, b"v", ttl=LONG)
        await backend.set(never, b"v", ttl=None)
        await self.pass_time(self.over(backend))
        assert await backend.get(brief) is None
        assert await backend.delete(brief) is False, "delete answers as a reader would see it"
        assert await backend.get(longer) == b"v"
        assert await backend.get(never) == b"v"
        assert await backend.delete(never) is True

    @promise
    async def test_writing_replaces_the_deadline(self, backend: Backend) -> None:
        """A later set decides: longer, shorter, from a ttl to none, and from none to a ttl."""
        longer, shorter, freed, bound = (self.key(name) for name in ("longer", "shorter", "freed", "bound"))
        await backend.set(longer, b"old", ttl=self.short(backend))
        await backend.set(longer, b"new", ttl=LONG)
        await backend.set(shorter, b"old", ttl=LONG)
        await backend.set(shorter, b"new", ttl=self.short(backend))
        await backend.set(freed, b"old", ttl=self.short(backend))
        await backend.set(freed, b"new", ttl=None)
        await backend.set(bound, b"old", ttl=None)
        await backend.set(bound, b"new", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await backend.get(longer) == b"new"
        assert await backend.get(shorter) is None
        assert await backend.get(freed) == b"new"
        assert await backend.get(bound) is None
        await backend.delete(freed)

    @promise
    async def test_a_fraction_of_a_second_is_a_ttl(self, backend: Backend) -> None:
        """However small, it is neither an error nor for ever nor nothing stored that was there before."""
        keys = [self.key(str(ttl)) for ttl in (1e-9, 0.0004, 0.001, 0.0999)]
        for key, ttl in zip(keys, (1e-9, 0.0004, 0.001, 0.0999), strict=True):
            await backend.set(key, b"old", ttl=LONG)
            await backend.set(key, b"new", ttl=ttl)
        await self.pass_time(self.over(backend))
        for key in keys:
            assert await backend.get(key) is None, f"{key!r} is still there"

    @promise
    async def test_an_int_is_a_ttl(self, backend: Backend) -> None:
        """Whole seconds need no point."""
        key = self.key()
        await backend.set(key, b"v", ttl=int(LONG))
        assert await backend.get(key) == b"v"
        if isinstance(backend, Touch):
            assert await backend.touch(key, ttl=int(LONG)) is True

    @promise
    async def test_a_ttl_of_decades_is_kept(self, backend: Backend) -> None:
        """No engine's date arithmetic turns a far future into the past."""
        for ttl in (31 * 86400.0, _DECADES, 1e10, 1e15):
            key = self.key()
            await backend.set(key, b"v", ttl=ttl)
            assert await backend.get(key) == b"v", f"a ttl of {ttl} seconds"
            if isinstance(backend, Touch):
                assert await backend.touch(key, ttl=ttl) is True
                assert await backend.get(key) == b"v", f"touched with a ttl of {ttl} seconds"
            await backend.delete(key)

    @promise
    async def test_an_expired_key_can_be_stored_again(self, backend: Backend) -> None:
        """And what was under it does not come back."""
        key = self.key()
        await backend.set(key, b"old", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        await backend.set(key, b"new", ttl=LONG)
        assert await backend.get(key) == b"new"
        assert await backend.delete(key) is True
        assert await backend.get(key) is None

    @promise
    async def test_touch_moves_the_deadline(self, backend: Backend) -> None:
        """Longer, shorter, to none and from none; the value stays."""
        toucher = having(backend, Touch)
        longer, shorter, freed, bound = (self.key(name) for name in ("longer", "shorter", "freed", "bound"))
        await self._touched(backend, longer, LONG)
        await backend.set(shorter, b"v", ttl=LONG)
        assert await toucher.touch(shorter, ttl=self.short(backend)) is True
        await self._touched(backend, freed, None)
        await backend.set(bound, b"v", ttl=None)
        assert await toucher.touch(bound, ttl=self.short(backend)) is True
        await self.pass_time(self.over(backend))
        assert await backend.get(longer) == b"v"
        assert await backend.get(shorter) is None
        assert await backend.get(freed) == b"v"
        assert await backend.get(bound) is None
        await backend.delete(freed)

    @promise
    async def test_what_has_expired_is_not_touched(self, backend: Backend) -> None:
        """It does not rise again, and has no time left."""
        toucher, key, never = having(backend, Touch), self.key(), self.key("never")
        await backend.set(key, b"v", ttl=self.short(backend))
        await backend.set(never, b"v", ttl=self.short(backend))
        await self.pass_time(self.over(backend))
        assert await toucher.touch(key, ttl=LONG) is False
        assert await toucher.touch(never, ttl=None) is False
        await expecting(KeyMissing, toucher.ttl(key))
        assert await backend.get(key) is None
        assert await backend.get(never) is None

    @promise
    async def test_touching_what_is_missing_is_false(self, backend: Backend) -> None:
        """And makes nothing."""
        toucher, key = having(backend, Touch), self.key()
        assert await toucher.touch(key, ttl=LONG) is False
        assert await toucher.touch(key, ttl=None) is False
        assert await backend.get(key) is None

    @promise
    async def test_ttl_tells_the_time_left(self, backend: Backend) -> None:
        """Seconds after a set and after a touch, None for ever."""
        toucher, key = having(backend, Touch), self.key()
        most = LONG + float(getattr(backend, "ttl_granularity", 0.0)) + 0.001  # float rounding
        await backend.set(key, b"v", ttl=LONG)
        left = await toucher.ttl(key)
        assert left is not None
        assert LONG - 10 < left <= most
        await toucher.touch(key, ttl=2 * LONG)
        left = await toucher.ttl(key)
        assert left is not None
        assert 2 * LONG - 10 < left <= most + LONG
        await backend.set(key, b"v", ttl=None)
        assert await toucher.ttl(key) is None
        await toucher.touch(key, ttl=LONG)
        assert await toucher.ttl(key) is not None
        await toucher.touch(key, ttl=None)
        assert await toucher.ttl(key) is None
        await backend.delete(key)

    @promise
    async def test_ttl_of_what_is_missing_is_an_error(self, backend: Backend) -> None:
        """KeyMissing: neither None, which is for ever, nor a number."""
        toucher, key = having(backend, Touch), self.key()
        await expecting(KeyMissing, toucher.ttl(key))
        await backend.set(key, b"v", ttl=None)
        await backend.delete(key)
        await expecting(KeyMissing, toucher.ttl(key))

    async def _touched(self, backend: Backend, key: str, ttl: float | None) -> None:
        """Touch an entry before its short ttl has ended: on a busy machine that may take more than one attempt."""
        toucher, short = having(backend, Touch), self.short(backend)
        for _ in range(20):
            began = time.monotonic()
            await backend.set(key, b"v", ttl=short)
            if await toucher.touch(key, ttl=ttl):
                return
            assert time.monotonic() - began > short, f"nothing was there, before its ttl of {short} seconds had ended"
        message = f"a set and a touch took more than {short} seconds, twenty times in a row"
        raise AssertionError(message)
