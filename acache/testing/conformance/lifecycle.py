"""Connecting late, closing cleanly, and moving from one event loop to the next."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any
from unittest import SkipTest

from ...backends.base import Add, Backend, Batch, Cas, Clear, Counter, Notify, Scan, Stream, Touch
from ...errors import AcacheError, BackendError
from .harness import LONG, Harness, promises

__all__ = ["LifecycleChecks"]

_CAPABILITIES = (Add, Batch, Cas, Clear, Counter, Notify, Scan, Stream, Touch)

promise = promises("lifecycle")


class LifecycleChecks(Harness):
    """From the first operation to the last `aclose`."""

    @promise
    async def test_it_has_the_capabilities_that_are_declared(self, backend: Backend) -> None:
        """No capability is lost, or gained, without anybody noticing."""
        if self.capabilities is None:
            reason = "the subclass declares no capabilities"
            raise SkipTest(reason)
        found = {capability.__name__ for capability in _CAPABILITIES if isinstance(backend, capability)}
        assert found == {capability.__name__ for capability in self.capabilities}

    @promise
    async def test_its_declarations_are_of_their_types(self, backend: Backend) -> None:
        """Key limits that can hold a digest, a value limit in bytes or none, a granularity in seconds."""
        assert self.key_limits(backend).max_bytes >= 100
        self.value_limit(backend)
        assert 0.0 <= float(getattr(backend, "ttl_granularity", 0.0)) < LONG / 4

    @promise
    async def test_it_has_a_short_repr(self, backend: Backend) -> None:
        """One line that tells what it is."""
        assert repr(backend)
        assert "\n" not in repr(backend)

    @promise
    async def test_closing_unused_is_harmless(self, backend: Backend) -> None:
        """Once and twice: nothing was opened."""
        await backend.aclose()
        await backend.aclose()

    @promise
    async def test_closing_twice_is_harmless(self, backend: Backend) -> None:
        """After use, one after the other and both at once."""
        await backend.set(self.key(), b"v", ttl=LONG)
        await asyncio.gather(backend.aclose(), backend.aclose())
        await backend.aclose()

    @promise
    async def test_use_after_closing_works_or_is_refused(self, backend: Backend) -> None:
        """The right answer or one of acache's errors, and no hang."""
        key = self.key()
        await backend.set(key, b"v", ttl=LONG)
        await backend.aclose()
        try:
            async with asyncio.timeout(10):
                assert await backend.get(key) in (b"v", None)
        except AcacheError:
            pass

    @promise
    async def test_closing_under_way_ends_the_calls(self, backend: Backend) -> None:
        """Each is answered rightly, refused with one of acache's errors, or cancelled; none hangs."""
        keys = [self.key(str(index)) for index in range(20)]
        for key in keys:
            await backend.set(key, key.encode(), ttl=LONG)
        tasks = {key: asyncio.ensure_future(backend.get(key)) for key in keys}
        await asyncio.sleep(0)
        await backend.aclose()
        _, hanging = await asyncio.wait(tasks.values(), timeout=10)
        assert not hanging
        for key, task in tasks.items():
            if not task.cancelled():
                error = task.exception()
                assert isinstance(error, AcacheError) if error else task.result() in (key.encode(), None)

    def test_closing_under_way_leaves_nothing_unclosed(self, backend: Backend) -> None:
        """Connections that calls are using, or opening, are closed too."""
        _forget_others()

        async def close_under_way() -> None:
            tasks = [asyncio.ensure_future(backend.get(self.key(str(index)))) for index in range(20)]
            await asyncio.sleep(0)
            await backend.aclose()
            await asyncio.wait(tasks, timeout=10)
            for task in tasks:
                if not task.cancelled():
                    task.exception()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(close_under_way())
            gc.collect()
        assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []

    def test_a_second_event_loop_works_or_is_refused(self, backend: Backend) -> None:
        """One loop after the other, closed between: right answers, or one clear error; never a hang."""
        self._in_two_loops(backend, close=True)

    def test_a_second_event_loop_without_a_close_works_or_is_refused(self, backend: Backend) -> None:
        """One loop after the other, the first simply ended: right answers, or one clear error; never a hang."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the first loop's connections: nobody closed them
            self._in_two_loops(backend, close=False)
            vars(backend).clear()  # the fixture's caller holds the backend, and must not hold them
            gc.collect()

    def test_nothing_is_left_unclosed(self, backend: Backend) -> None:
        """After `aclose` the garbage collector finds nothing to warn about."""
        _forget_others()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            asyncio.run(self._used(backend))
            gc.collect()
        unclosed = [str(one.message) for one in caught if issubclass(one.category, (ResourceWarning, RuntimeWarning))]
        assert unclosed == [], unclosed

    def _in_two_loops(self, backend: Any, *, close: bool) -> None:
        key = self.key()

        async def first() -> None:
            await backend.set(key, b"v", ttl=LONG)
            if close:
                await backend.aclose()

        async def second() -> None:
            try:
                async with asyncio.timeout(10):
                    assert await backend.get(key) in (b"v", None)
                    await backend.set(key, b"w", ttl=LONG)
                    assert await backend.get(key) in (b"w", None)
            except BackendError:
                return  # refused: there is nothing of this loop's to close
            await backend.aclose()

        asyncio.run(first())
        asyncio.run(second())

    async def _used(self, backend: Any) -> None:
        try:
            keys = [self.key(str(index)) for index in range(20)]
            await asyncio.gather(*[backend.set(key, b"v", ttl=LONG) for key in keys])
            await asyncio.gather(*[backend.get(key) for key in keys])
            task = asyncio.ensure_future(backend.get(keys[0]))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        finally:
            await backend.aclose()


def _forget_others() -> None:
    """Collect what earlier tests have left: it is not this backend's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


for _check in (
    LifecycleChecks.test_a_second_event_loop_works_or_is_refused,
    LifecycleChecks.test_a_second_event_loop_without_a_close_works_or_is_refused,
    LifecycleChecks.test_nothing_is_left_unclosed,
    LifecycleChecks.test_closing_under_way_leaves_nothing_unclosed,
):
    _check.need = "lifecycle"  # type: ignore[attr-defined]  # these run loops of their own
