"""The suite and the machine for backends find what is broken, and need no more than they say."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import unittest
from collections.abc import Iterable
from contextlib import asynccontextmanager
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from acache import MemoryBackend
from acache.backends import Batch
from acache.backends.base import check_key
from acache.entry import HEAD_BYTES
from acache.errors import BackendUnavailable
from acache.testing import BackendConformance, FakeClock
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from acache.backends import Backend


class Suite(BackendConformance):
    """Not collected: its checks are called one by one."""

    clock = FakeClock()
    soon = 0.2

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)


class Broken(MemoryBackend):
    """Right but for what a subclass does wrong."""

    def __init__(self) -> None:
        super().__init__(clock=Suite.clock)


class DeletesWhatIsNotThere(Broken):
    async def delete(self, key: str, /) -> bool:
        await super().delete(key)
        return True


class KeepsTheFirstDeadline(Broken):
    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        old = self._items.get(key)
        await super().set(key, data, ttl=ttl)
        if old is not None:
            self._items[key] = (self._items[key][0], old[1])


class LivesTooLong(Broken):
    def _put(self, key: str, data: bytes, ttl: float | None) -> None:
        super()._put(key, data, None if ttl is None else 100 * ttl)


class IgnoresCase(Broken):
    async def get(self, key: str, /) -> bytes | None:
        found = await super().get(key)
        return next((item[0] for name, item in self._items.items() if name.lower() == key.lower()), found)


class AddsTwice(Broken):
    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        if await self.get(key) is not None:
            return False
        await asyncio.sleep(0)
        await self.set(key, data, ttl=ttl)
        return True


class LosesIncrements(Broken):
    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        before = int(await self.get(key) or b"0")
        await asyncio.sleep(0)
        await self.set(key, b"%d" % (before + delta), ttl=ttl)
        return before + delta


class ComparesLengths(Broken):
    async def set_if(self, key: str, data: bytes, version: Any, /, *, ttl: float | None) -> bool:
        now = await self.get(key)
        if now is not None and len(now) != len(version or b""):
            return False
        await self.set(key, data, ttl=ttl)
        return True


class SwapsItsOwn(Broken):
    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        before = await super().swap(key, data, ttl=ttl)
        return before and data[:HEAD_BYTES]


class ClearsByGlob(Broken):
    async def clear(self, prefix: str, /) -> None:
        await super().clear(prefix.partition("*")[0])


class ScansWhatHasExpired(Broken):
    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        for key in [key for key in self._items if key.startswith(prefix)]:
            yield key


class StopsAtTheFirstFailure(Broken):
    value_limit: ClassVar[int] = 1000  # type: ignore[assignment,misc]  # MemoryBackend has none

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        for key, data in items.items():
            await self.set(key, data, ttl=ttl)


class CountsDuplicates(Broken):
    async def delete_many(self, keys: Sequence[str], /) -> int:
        there = await self.get_many(keys)
        await super().delete_many(keys)
        return sum(key in there for key in keys)


class StoresWhileItReads(Broken):
    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        body = b""
        async for chunk in _each(chunks) if isinstance(chunks, Iterable) else chunks:
            body += chunk
            await self.set(key, body, ttl=ttl)


class AnswersInTurn(Broken):
    """One connection, whose cancelled callers leave their answers to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bytes | None] = []

    async def get(self, key: str, /) -> bytes | None:
        self.answers.append(await super().get(key))
        await asyncio.sleep(0)
        return self.answers.pop(0)


class ForgetsACancellation(Broken):
    """As ``asyncio.wait_for`` did before Python 3.12."""

    async def get(self, key: str, /) -> bytes | None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await super().get(key)


class Speaks(Broken):
    """With messages, which a memory backend has no need of."""

    def __init__(self) -> None:
        super().__init__()
        self.listening: list[tuple[str, asyncio.Queue[bytes]]] = []

    async def publish(self, topic: str, message: bytes, /) -> None:
        check_key(topic, self.key_limits)
        for name, queue in self.listening:
            if name == topic:
                queue.put_nowait(message)

    @asynccontextmanager
    async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        check_key(topic, self.key_limits)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.listening.append((topic, queue))
        try:
            yield Messages(queue)
        finally:
            self.listening = [one for one in self.listening if one[1] is not queue]

    async def aclose(self) -> None:
        for _, queue in self.listening:
            queue.put_nowait(CLOSED)


CLOSED = b"closed"


class Messages:
    def __init__(self, queue: asyncio.Queue[bytes]) -> None:
        self.queue = queue

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> bytes:
        message = await self.queue.get()
        if message is CLOSED:
            raise BackendUnavailable
        return message


class SpeaksToOne(Speaks):
    async def publish(self, topic: str, message: bytes, /) -> None:
        for name, queue in self.listening:
            if name == topic:
                queue.put_nowait(message)
                return


class SpeaksToNeighbours(Speaks):
    async def publish(self, topic: str, message: bytes, /) -> None:
        for name, queue in self.listening:
            if fnmatch(topic, name):
                queue.put_nowait(message)


class RepeatsItself(Speaks):
    async def publish(self, topic: str, message: bytes, /) -> None:
        await super().publish(topic, message)
        if message == b"7":
            await super().publish(topic, message)


class RemembersTheLast(Speaks):
    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, bytes] = {}

    async def publish(self, topic: str, message: bytes, /) -> None:
        self.last[topic] = message
        await super().publish(topic, message)

    @asynccontextmanager
    async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().subscribe(topic) as messages:
            if topic in self.last:
                self.listening[-1][1].put_nowait(self.last[topic])
            yield messages


class LeavesForAll(Speaks):
    @asynccontextmanager
    async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().subscribe(topic) as messages:
            yield messages
        self.listening = [one for one in self.listening if one[0] != topic]


class DropsWhenCancelled(Speaks):
    @asynccontextmanager
    async def subscribe(self, topic: str, /) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().subscribe(topic) as messages:

            async def generate() -> AsyncIterator[bytes]:  # which its first cancelled wait ends
                async for message in messages:
                    yield message

            yield generate()


class ClosesInSilence(Speaks):
    async def aclose(self) -> None:
        pass


class TakesAnyKey(Broken):
    async def get(self, key: str, /) -> bytes | None:
        item = self._items.get(key)
        return item[0] if item is not None and item[1] > self._clock.monotonic() else None


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


BROKEN: dict[type[Broken], str] = {
    DeletesWhatIsNotThere: "test_deleting_what_is_missing_is_false",
    KeepsTheFirstDeadline: "test_writing_replaces_the_deadline",
    LivesTooLong: "test_a_ttl_ends_the_entry_and_not_before",
    IgnoresCase: "test_different_keys_are_different",
    AddsTwice: "test_add_has_one_winner",
    LosesIncrements: "test_no_increment_is_lost",
    ComparesLengths: "test_a_write_over_a_value_refuses_who_saw_that",
    SwapsItsOwn: "test_swap_returns_what_it_replaced",
    ClearsByGlob: "test_clear_takes_its_prefix_and_nothing_else",
    ScansWhatHasExpired: "test_scan_finds_every_key_under_its_prefix",
    StopsAtTheFirstFailure: "test_a_value_too_large_in_a_batch_is_named",
    CountsDuplicates: "test_a_key_asked_for_twice_is_one",
    StoresWhileItReads: "test_an_error_of_the_source_leaves_what_was_there",
    AnswersInTurn: "test_a_cancelled_read_leaves_the_next_answers_right",
    ForgetsACancellation: "test_a_cancelled_read_leaves_the_next_answers_right",
    TakesAnyKey: "test_what_is_no_key_is_refused",
    SpeaksToOne: "test_a_message_reaches_every_subscriber",
    SpeaksToNeighbours: "test_topics_are_kept_apart",
    RepeatsItself: "test_messages_come_in_order",
    RemembersTheLast: "test_nobody_hears_what_was_said_before",
    LeavesForAll: "test_leaving_one_subscription_leaves_the_others",
    DropsWhenCancelled: "test_a_cancelled_wait_loses_no_message",
    ClosesInSilence: "test_closing_ends_the_subscriptions",
}
BY_MACHINE = [
    cls
    for cls in BROKEN
    if cls not in (StopsAtTheFirstFailure, StoresWhileItReads, TakesAnyKey, AnswersInTurn, ForgetsACancellation)
    and not issubclass(cls, Speaks)
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_the_suite_finds_what_is_broken(broken: type[Broken]):
    """The check that promises it fails, and passes on what is whole."""
    check: Callable[[Backend], None] = getattr(Suite(), BROKEN[broken])
    with pytest.raises((AssertionError, TimeoutError, StopAsyncIteration)):
        check(broken())
    if broken is not StopsAtTheFirstFailure:  # what is whole has no limit
        check(Speaks() if issubclass(broken, Speaks) else Broken())


@pytest.mark.parametrize("broken", BY_MACHINE, ids=lambda cls: cls.__name__)
def test_the_machine_finds_what_is_broken(broken: type[Broken]):
    """Whatever a sequence of operations can show."""
    unhealthy = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
    tries = settings(
        max_examples=300, stateful_step_count=40, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=unhealthy,
    )  # fmt: skip
    with pytest.raises((AssertionError, ExceptionGroup, ValueError)):
        run_state_machine_as_test(backend_machine(broken, suite=Suite), settings=tries)


def test_a_capability_that_is_lost_or_gained_is_noticed():
    """What the subclass declares must be there, no more and no less."""

    class Declared(Suite):
        capabilities = (Batch,)

    with pytest.raises(AssertionError):
        Declared().test_it_has_the_capabilities_that_are_declared(Broken())


def test_a_capability_that_is_not_there_is_skipped():
    """By the word that every test framework knows."""

    class Plain:
        get, set, delete, aclose = Broken.get, Broken.set, Broken.delete, Broken.aclose

    with pytest.raises(unittest.SkipTest, match="Plain has no Batch"):
        Suite().test_get_many_returns_what_is_there(Plain())


def test_there_are_about_a_hundred_promises_and_each_has_a_sentence():
    """Every check says what it promises, and which need it belongs to."""
    checks = [getattr(BackendConformance, name) for name in dir(BackendConformance) if name.startswith("test_")]
    assert len(checks) >= 100
    assert [check.__name__ for check in checks if not (check.__doc__ or "").strip()] == []
    assert [check.__name__ for check in checks if not getattr(check, "need", "")] == []


def test_the_machine_without_hypothesis_names_its_remedy():
    """The suite imports without it; the machine says what to install."""
    blocked = "import sys; sys.modules['hypothesis'] = None; import acache.testing; import acache.testing.machine"
    result = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert "ImportError: backend_machine needs hypothesis: pip install 'acache[testing]'" in result.stderr
