"""`MemcachedBackend` keeps the contract on real servers, and the promises of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import random
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any, ClassVar, Self

import aiomcache
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    DecodeError,
    InvalidKey,
    Policy,
    Unsupported,
    ValueTooLarge,
)
from acache.backends.base import Add, Batch, Cas, Clear, Counter, Scan, Touch
from acache.backends.memcached import MemcachedBackend
from acache.testing import BackendConformance
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from acache.backends import Backend

SHORT = 1.0
WAITING = {
    name: check
    for name, test in inspect.getmembers(BackendConformance, inspect.isfunction)
    if "pass_time" in (check := inspect.unwrap(test)).__code__.co_names and name.startswith("test_")
}
"""The checks that let time pass."""


class InWholeSeconds(BackendConformance):
    """The server's clock ends the entries; with a ttl of whole seconds it is at most one late.

    That is long for a test, so the checks that let time pass all do so at once, when the first of them is asked for.
    """

    capabilities = (Add, Batch, Cas, Counter, Touch)
    foreign_counters: ClassVar = {b"1 ": 1}  # what memcached's decr makes of b"10" and 9
    ends: ClassVar[dict[str, BaseException | None]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.ends = {}

    def run_check(self, check: Callable[..., Any], backend: Backend) -> None:
        if check.__name__ not in WAITING:
            super().run_check(check, backend)
            return
        if not self.ends:

            async def all_of_them(self: Self, backend: Backend) -> None:
                ends = await asyncio.gather(*[one(self, backend) for one in WAITING.values()], return_exceptions=True)
                self.ends.update(zip(WAITING, ends, strict=True))

            super().run_check(all_of_them, backend)
        if (end := self.ends[check.__name__]) is not None:
            raise end

    @staticmethod
    def short(backend: Backend) -> float:
        return SHORT

    @staticmethod
    def over(backend: Backend) -> float:
        return SHORT + 1.1


@pytest.fixture(scope="module")
def roomy_url(module_memcached: Callable[..., Any]) -> str:
    """Return the URL of a server that evicts nothing."""
    url: str = module_memcached("-m", "1024").url
    return url


class TestMemcachedBackend(InWholeSeconds):
    """One server, by URL; with room enough, for what it evicts looks lost."""

    title = "Memcached"

    @pytest.fixture
    def backend(self, roomy_url: str) -> Backend:
        return MemcachedBackend.from_url(roomy_url)


@pytest.fixture(scope="module")
def ports(module_memcached: Callable[..., Any]) -> list[int]:
    """Return where three servers are."""
    return [module_memcached("-m", "1024").port for _ in range(3)]


class TestSeveralServers(InWholeSeconds):
    """Three servers, by clients of the caller's with few connections."""

    title = "Memcached (3 servers)"

    @pytest.fixture
    def backend(self, ports: list[int]) -> Backend:
        return MemcachedBackend(*[aiomcache.Client("127.0.0.1", port, pool_size=3) for port in ports])


@pytest.fixture
def key() -> str:
    """Return a key that no other test uses."""
    return f"{uuid.uuid4().hex}:key"


@pytest.fixture
async def backend(memcached_url: str) -> AsyncIterator[MemcachedBackend]:
    """Give a backend over the shared server."""
    backend = MemcachedBackend.from_url(memcached_url)
    yield backend
    await backend.aclose()


@contextlib.asynccontextmanager
async def opened(*urls: str, **options: Any) -> AsyncIterator[MemcachedBackend]:
    """Build a backend over these servers, and close it."""
    backend = MemcachedBackend.from_url(f"memcached://{','.join(url.partition('://')[2] for url in urls)}", **options)
    try:
        yield backend
    finally:
        await backend.aclose()


class Proxy:
    """Stands between a client and a server, and holds the answers back when told."""

    def __init__(self, url: str) -> None:
        self._target = int(url.rpartition(":")[2])
        self._pass = asyncio.Event()
        self._pass.set()
        self.held = asyncio.Event()
        self.open = self.accepted = self.most = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"memcached://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        self._server.close()
        await self.until_open(0)

    def hold(self) -> None:
        self.held.clear()
        self._pass.clear()

    def release(self) -> None:
        self._pass.set()

    async def until_open(self, count: int) -> None:
        """Wait until so many connections are left."""
        async with asyncio.timeout(5):
            while self.open > count:
                await asyncio.sleep(0.001)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.accepted += 1
        self.most = max(self.most, self.open)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        there = asyncio.ensure_future(self._pump(reader, far_writer, lambda: None))
        back = asyncio.ensure_future(self._pump(far_reader, writer, self.held.set))
        await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        for task in (there, back):
            task.cancel()
        await asyncio.wait([there, back])
        for end in (writer, far_writer):
            end.transport.abort()
        self.open -= 1

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tell: Callable[[], object]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                tell()
                if tell == self.held.set:
                    await self._pass.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[MemcachedBackend]:
    """Give a backend whose server answers everything with these bytes, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, opened(f"memcached://127.0.0.1:{server.sockets[0].getsockname()[1]}") as backend:
        yield backend


def closed_port(private_memcached: Callable[..., Any]) -> str:
    """Return the URL of a server that has gone."""
    server = private_memcached()
    server.kill()
    return server.url


# What it is -----------------------------------------------------------------------------------------------------------


def test_a_machine_and_a_dictionary_say_the_same(memcached_url: str):
    """Whatever is done to them; few examples, for time is the server's."""
    machine = backend_machine(lambda: MemcachedBackend.from_url(memcached_url, timeout=10), suite=InWholeSeconds)
    run_state_machine_as_test(machine, settings=settings(max_examples=4, stateful_step_count=15))


async def test_it_has_the_capabilities_that_memcached_can_carry(backend: MemcachedBackend):
    """All but listing: a memcached cannot tell what it holds."""
    assert all(isinstance(backend, capability) for capability in (Batch, Add, Counter, Touch, Cas))
    assert not any(isinstance(backend, capability) for capability in (Clear, Scan))
    async with Cache(backend, namespace="n") as cache:
        with pytest.raises(Unsupported, match="prefix"):
            await cache.clear()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memcached://localhost", "localhost:11211"),
        ("memcached://localhost/", "localhost:11211"),
        ("MEMCACHED://127.0.0.1:5", "127.0.0.1:5"),
        ("memcached://[::1]:5,b", "[::1]:5, b:11211"),
        ("memcached://a:1,b:2,a:3", "a:1, b:2, a:3"),
    ],
)
def test_a_url_names_servers(url: str, shown: str):
    """One or several, the port 11211 where none is given."""
    assert repr(MemcachedBackend.from_url(url)) == f"<MemcachedBackend {shown}>"


@pytest.mark.parametrize(
    "url",
    [
        *("memcached://", "memcached:///", "memcached://,", "memcached://a,", "memcached://:11211", "memcached://a,a"),
        *("memcached://a:x", "memcached://a:99999", "memcached://a/1", "memcached://a?timeout=3", "memcached://a#b"),
        *("memcached://user:hunter2@a", "memcache://a", "redis://a", "a:1", "memcached://a,a:11211"),
    ],
)
def test_other_urls_are_refused(url: str):
    """With the right form in the message, and nothing of the wrong one: it may hold a password."""
    with pytest.raises(ConfigurationError, match="memcached://host:port,host2:port") as caught:
        MemcachedBackend.from_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MemcachedBackend(),
        lambda: MemcachedBackend("localhost"),  # type: ignore[arg-type]
        lambda: MemcachedBackend(aiomcache.Client("a"), timeout=0),
        lambda: MemcachedBackend(aiomcache.Client("a"), connect_timeout=-1),
        lambda: MemcachedBackend(aiomcache.Client("a"), max_value=0),
        lambda: MemcachedBackend.from_url("memcached://a", max_connections=0),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(build: Callable[[], object]):
    """At construction, by name."""
    with pytest.raises(ConfigurationError):
        build()


async def test_a_cache_opens_by_url(memcached_url: str):
    """`Cache.from_url` knows the scheme."""
    async with Cache.from_url(memcached_url, namespace=uuid.uuid4().hex) as cache:
        await cache.set("k", (1, 2), ttl=60)
        assert await cache.get("k") == (1, 2)
        assert "MemcachedBackend" in repr(cache)


async def test_a_client_of_the_caller_s_stays_open(memcached_url: str, key: str):
    """It is asked for its address; closing the backend leaves it usable."""
    client = aiomcache.Client("127.0.0.1", int(memcached_url.rpartition(":")[2]))
    backend = MemcachedBackend(client)
    await backend.set(key, b"v", ttl=None)
    await backend.aclose()
    assert await client.get(key.encode()) == b"v"
    assert await client.delete(key.encode())
    await client.close()


async def test_other_programs_can_read_and_count(backend: MemcachedBackend, memcached_url: str, key: str):
    """Values are stored as they are, counters as digits; an increment by another client keeps the deadline."""

    async def flagged(data: bytes, flags: int) -> bytes:
        assert abs(flags - time.time() - 60) < 2
        return data

    client = aiomcache.FlagClient[bytes]("127.0.0.1", int(memcached_url.rpartition(":")[2]), get_flag_handler=flagged)
    await backend.set(key, b"text", ttl=60)
    assert await client.get(key.encode()) == b"text"
    await backend.delete(key)
    assert await backend.incr(key, 9, ttl=60) == 9
    assert await client.incr(key.encode(), 2) == 11
    assert await client.decr(key.encode(), 3) == 8  # memcached writes "8 "
    assert await client.get(key.encode()) == b"8 "
    assert await backend.incr(key, -9, ttl=None) == -1
    assert 58 < (await backend.ttl(key) or 0) <= 61
    await client.close()


# Keys and values ------------------------------------------------------------------------------------------------------

BAD_KEYS = ["", " ", "a b", "a\r\nset x 0 0 1\r\n1", "a\n", "a\x00", "\x7f", "é", "🐍", "k" * 251, "a\tb", "\u2028"]


@pytest.mark.parametrize("bad", BAD_KEYS)
async def test_a_key_cannot_speak_to_the_server(private_memcached: Callable[..., Any], bad: str):
    """What memcached would not take as one word is refused by every operation, before anything is sent."""
    async with opened(closed_port(private_memcached)) as backend:
        for attempt in (
            backend.get(bad),
            backend.set(bad, b"", ttl=1),
            backend.delete(bad),
            backend.get_many(["a", bad]),
            backend.set_many({"a": b"", bad: b""}, ttl=1),
            backend.delete_many(["a", bad]),
            backend.add(bad, b"", ttl=1),
            backend.incr(bad, 1, ttl=1),
            backend.incr(bad, -1, ttl=1),
            backend.touch(bad, ttl=1),
            backend.ttl(bad),
            backend.get_versioned(bad),
            backend.set_if(bad, b"", None, ttl=1),
            backend.swap(bad, b"", ttl=1),
        ):
            with pytest.raises(InvalidKey):
                await attempt


async def test_a_cache_takes_any_key(memcached_url: str):
    """The facade replaces what memcached cannot hold by a digest: all of them are kept apart."""
    async with Cache.from_url(memcached_url, namespace=uuid.uuid4().hex, memory=None) as cache:
        keys = [*[bad for bad in BAD_KEYS if bad], "k" * 250, "k" * 1_000_000]
        for index, name in enumerate(keys):
            await cache.set(name, index, ttl=60)
        assert [await cache.get(name) for name in keys] == list(range(len(keys)))


async def test_a_value_above_the_limit_is_not_sent(private_memcached: Callable[..., Any]):
    """The error names size and limit, and no connection was made."""
    async with opened(closed_port(private_memcached), max_value=1000) as backend:
        large = b"x" * 1001
        for attempt in (
            backend.set("k", large, ttl=1),
            backend.add("k", large, ttl=1),
            backend.set_many({"k": large}, ttl=1),
            backend.set_if("k", large, None, ttl=1),
            backend.swap("k", large, ttl=1),
        ):
            with pytest.raises(ValueTooLarge, match=r"1001 .* 1000 "):
                await attempt
        with pytest.raises(BackendUnavailable):
            await backend.set("k", b"x" * 1000, ttl=1)


async def test_the_longest_value_is_stored(backend: MemcachedBackend, key: str):
    """A million bytes by default: the server's megabyte counts more than the value."""
    data = random.Random(1).randbytes(1_000_000)
    await backend.set(key, data, ttl=60)
    assert await backend.get(key) == data
    assert await backend.get_many([key]) == {key: data}
    assert await backend.swap(key, b"", ttl=1) == data


async def test_the_server_s_own_limit_is_the_same_error(private_memcached: Callable[..., Any]):
    """A server with smaller items refuses the value; the next answers are right."""
    async with opened(private_memcached("-I", "512k").url) as backend:
        await backend.set("small", b"s", ttl=60)
        for _ in range(3):
            with pytest.raises(ValueTooLarge, match="too large") as caught:
                await backend.set("k", b"x" * 700_000, ttl=60)
            assert caught.value.__cause__ is not None
            with pytest.raises(ValueTooLarge):
                await backend.set_many({"j": b"j", "k": b"x" * 700_000, "l": b"l"}, ttl=60)
            assert await backend.get("small") == b"s"
            assert await backend.get("k") is None


# Time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0.2, 1.0, 1.5])
async def test_an_entry_ends_late_rather_than_early(backend: MemcachedBackend, key: str, ttl: float):
    """Not before its ttl, wherever the server's second stood when it was set, and not after the granularity."""

    async def watch(number: int) -> None:
        await asyncio.sleep(number / 10)
        name = f"{key}{number}"
        before = time.monotonic()
        await backend.set(name, b"v", ttl=ttl)
        after = asked = time.monotonic()
        while await backend.get(name) is not None:
            assert asked - after <= ttl + backend.ttl_granularity
            await asyncio.sleep(0.02)
            asked = time.monotonic()
        assert time.monotonic() - before >= ttl

    await asyncio.gather(*[watch(number) for number in range(11)])


@pytest.mark.parametrize(
    ("ttl", "least"),
    [
        *((0.001, 1), (0.999, 1), (1.0, 1), (1.001, 2), (59.5, 60)),
        *((30 * 86400 - 1.5, 30 * 86400 - 1), (30 * 86400 - 1, 30 * 86400 - 1), (30 * 86400.0, 30 * 86400)),
        *((30 * 86400 + 0.001, 30 * 86400 + 1), (30 * 86400 + 1.0, 30 * 86400 + 1), (31 * 86400.0, 31 * 86400)),
    ],
)
async def test_the_server_keeps_it_so_long(private_memcached: Callable[..., Any], ttl: float, least: int):
    """By its own account: the ttl rounded up, never less, and two seconds more at most."""
    server = private_memcached()
    async with opened(server.url) as backend:
        await backend.set("k", b"v", ttl=ttl)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"mg k t\r\n")
    word = (await reader.readline()).split()
    writer.close()
    await writer.wait_closed()
    assert word[0] == b"HD"
    assert least - 1 <= int(word[1][1:]) <= least + 2  # a second may have passed meanwhile


@pytest.mark.parametrize("now", [2**31 - 40 * 86400, 2**31 - 10, 2**31 + 1000, 2**32 + 1000])
async def test_no_ttl_ends_in_the_past_when_memcached_s_numbers_do(monkeypatch: pytest.MonkeyPatch, now: int):
    """Around 2038, and later, an instant that does not fit becomes the longest time that can be said."""
    told: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await reader.readline()
            told.append(int(line.split()[3]))
            writer.write(b"STORED\r\n")

    monkeypatch.setattr("acache.backends.memcached.time.time", lambda: float(now))
    async with talking(talk) as url, opened(url) as backend:
        for ttl in (1.0, 30 * 86400.0, 31 * 86400.0, 365 * 86400.0):
            await backend.set("k", b"v", ttl=ttl)
    assert told[0] == 2
    for exptime in told:
        assert 0 < exptime <= 30 * 86400 or now + 30 * 86400 < exptime <= 2**31 - 1


@pytest.mark.parametrize("days", [29, 30, 31, 365, 365 * 30, 365 * 200])
async def test_a_far_deadline_is_no_past_one(backend: MemcachedBackend, key: str, days: int):
    """Memcached takes more than thirty days for an instant; the backend sends one."""
    ttl = days * 86400.0
    await backend.set(key, b"v", ttl=ttl)
    assert await backend.get(key) == b"v"
    left = await backend.ttl(key)
    assert left is not None
    assert left == pytest.approx(min(ttl, 2**32 - time.time()), abs=3)
    assert await backend.touch(key, ttl=ttl)
    assert await backend.delete(key)


async def test_a_counter_keeps_its_deadline_below_zero(backend: MemcachedBackend, key: str):
    """Also where it is written again by compare-and-set; and it ends."""
    await backend.incr(key, -1, ttl=2)
    await backend.incr(f"{key}2", -1, ttl=None)
    for delta in (-1, 1, 5, -5):
        await backend.incr(key, delta, ttl=3600)
        await backend.incr(f"{key}2", delta, ttl=1)
    assert 0 < (await backend.ttl(key) or 0) <= 3
    assert await backend.ttl(f"{key}2") is None
    await asyncio.sleep(4.1)
    assert await backend.get(key) is None
    assert await backend.get(f"{key}2") == b"-1"
    await backend.delete(f"{key}2")


# Counters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1, -1, 2**40])
async def test_no_increment_of_two_processes_is_lost(memcached_url: str, key: str, delta: int):
    """Two hundred at once, by two backends that do not know of each other."""
    async with opened(memcached_url) as one, opened(memcached_url, max_connections=7) as two:
        sums = await asyncio.gather(*[which.incr(key, delta, ttl=60) for _ in range(100) for which in (one, two)])
        assert sorted(sums) == sorted(delta * number for number in range(1, 201))
        assert 58 < (await one.ttl(key) or 0) <= 61


async def test_losing_a_hundred_races_in_a_row_is_no_error(memcached_url: str, key: str):
    """Another process may be in step with this one, and faster, for as long as it has work."""
    async with opened(memcached_url) as other:

        class Overtaken(MemcachedBackend):
            lost = 0

            async def _look(self, key: str, verb: bytes = b"gets") -> Any:
                seen = await super()._look(key, verb)
                if self.lost < 120:
                    self.lost += 1
                    await other.incr(key, -1, ttl=60)
                return seen

        slow = Overtaken.from_url(memcached_url)
        assert await slow.incr(key, -1, ttl=60) == -121
        await slow.aclose()


async def test_a_counter_crosses_every_border(backend: MemcachedBackend, key: str):
    """Zero, the ends of 64 bits, and digits becoming fewer; refused sums change nothing."""
    total = 0
    for delta in (10, -1, -9, -1, 1, 2**62, 2**62 - 1, -(2**63), -1, -(2**63 - 1) + 1):
        if -(2**63) <= total + delta < 2**63:
            total += delta
            assert await backend.incr(key, delta, ttl=60) == total
        else:
            with pytest.raises(DecodeError, match="64 bits"):
                await backend.incr(key, delta, ttl=60)
        assert await backend.get(key) == b"%d" % total
    with pytest.raises(DecodeError):
        await backend.incr(key, 2**64, ttl=60)
    with pytest.raises(DecodeError):
        await backend.incr(f"{key}new", -(2**64), ttl=60)
    assert await backend.get(f"{key}new") is None


@pytest.mark.parametrize("data", [b"", b" 1", b"1 2", b"12 apples", b"01", b"+1", b"1.0", b"1\x00", b"9" * 20, b"-0"])
@pytest.mark.parametrize("delta", [1, -1])
async def test_what_memcached_would_count_is_not_always_a_counter(
    backend: MemcachedBackend, key: str, data: bytes, delta: int
):
    """Its own incr turns "12 apples" into 13; here other bytes are refused, and stay."""
    await backend.set(key, data, ttl=60)
    with pytest.raises(DecodeError):
        await backend.incr(key, delta, ttl=60)
    assert await backend.get(key) == data


# Compare and set ------------------------------------------------------------------------------------------------------


async def test_a_restarted_server_does_not_accept_an_old_version(private_memcached: Callable[..., Any]):
    """It numbers its writes from one again; the bytes tell the difference."""
    server = private_memcached()
    async with opened(server.url) as backend:
        await backend.set("k", b"before", ttl=60)
        _, old = await backend.get_versioned("k")
        server.restart()
        with contextlib.suppress(BackendUnavailable):
            await backend.get("k")
        await backend.set("k", b"tombstone", ttl=60)
        _, new = await backend.get_versioned("k")
        assert old[0] == new[0]  # type: ignore[index]  # memcached's own number is the same
        assert await backend.set_if("k", b"stale", old, ttl=60) is False
        assert await backend.get("k") == b"tombstone"


async def test_every_swap_returns_the_one_before(backend: MemcachedBackend, key: str):
    """A hundred at once make a chain: nothing is replaced unseen."""
    values = [b"%d" % number for number in range(100)]
    before = await asyncio.gather(*[backend.swap(key, value, ttl=60) for value in values])
    last = await backend.get(key)
    assert {*before, last} == {*values, None}


async def test_a_delete_wins_over_a_load_in_another_process(memcached_url: str):
    """A cache whose load began before another's delete hands out its value and stores it nowhere."""
    space = uuid.uuid4().hex
    async with (
        Cache.from_url(memcached_url, namespace=space, memory=None) as here,
        Cache.from_url(memcached_url, namespace=space, memory=None) as there,
    ):
        for present in (False, True):
            if present:
                await there.set("k", "older", ttl=60)
            started, go = asyncio.Event(), asyncio.Event()

            async def load() -> str:
                started.set()
                await go.wait()
                return "old"

            caller = asyncio.ensure_future(
                here.refresh("k", load, ttl=60) if present else here.get_or_load("k", load, ttl=60)
            )
            await started.wait()
            await there.delete("k")
            go.set()
            assert await caller == "old"
            assert await there.get("k") is None
        assert await here.get_or_load("k", lambda: asyncio.sleep(0, "new"), ttl=60) == "new"
        assert await there.get("k") == "new"


async def test_a_cache_works_over_it(memcached_url: str):
    """Values, batches, counters, tags, add and touch, end to end."""
    async with Cache.from_url(memcached_url, namespace=uuid.uuid4().hex, memory=None) as cache:
        await cache.set_many({f"k{number}": number for number in range(300)}, ttl=60)
        assert await cache.get_many(["k0", "k299", "none"]) == {"k0": 0, "k299": 299}
        assert await cache.delete_many(["k0", "k1", "none"]) == 2
        assert await cache.get("k0") is None
        assert await cache.add("k0", "a", ttl=60)
        assert not await cache.add("k0", "b", ttl=60)
        assert await cache.incr("n", 5, ttl=60) == 5
        assert await cache.incr("n", -7) == -2
        assert await cache.get("n") == -2
        assert await cache.touch("n", ttl=600)
        assert 590 < (await cache.ttl("n") or 0) <= 602
        await cache.set("t", "tagged", ttl=60, tags=["x"])
        assert await cache.get("t") == "tagged"
        await cache.invalidate_tags("x")
        assert await cache.get("t") is None


# Connections ----------------------------------------------------------------------------------------------------------


async def test_an_answer_that_nobody_waits_for_reaches_nobody(memcached_url: str):
    """A call is cancelled when its answer is on the way; the next one does not get it."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url, max_connections=1) as backend:
        stem = uuid.uuid4().hex
        for name in ("a", "b"):
            await backend.set(f"{stem}{name}", name.encode(), ttl=60)
        calls: list[Callable[[], Any]] = [
            lambda: backend.get(f"{stem}a"),
            lambda: backend.get_many([f"{stem}a", f"{stem}b"]),
            lambda: backend.set(f"{stem}c", b"c", ttl=60),
            lambda: backend.delete(f"{stem}none"),
            lambda: backend.incr(f"{stem}n", 1, ttl=60),
            lambda: backend.swap(f"{stem}d", b"d", ttl=60),
            lambda: backend.set_many({f"{stem}e": b"e", f"{stem}f": b"f"}, ttl=60),
        ]
        for call in calls:
            proxy.hold()
            task = asyncio.ensure_future(call())
            await proxy.held.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            proxy.release()
            assert await backend.get(f"{stem}b") == b"b"
            assert await backend.delete(f"{stem}none") is False
        await proxy.until_open(1)
        await backend.aclose()


async def test_a_late_answer_is_an_error_and_reaches_nobody(memcached_url: str, key: str):
    """The deadline passes, the answer comes; the next caller gets his own."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url, max_connections=1, timeout=0.05) as backend:
        await backend.set(key, b"v", ttl=60)
        for _ in range(3):
            proxy.hold()
            with pytest.raises(BackendTimeout, match=r"127\.0\.0\.1") as caught:
                await backend.get(key)
            assert isinstance(caught.value.__cause__, TimeoutError)
            proxy.release()
            assert await backend.get(f"{key}none") is None
            assert await backend.get(key) == b"v"
        await backend.aclose()


async def test_thousands_of_cancelled_calls(memcached_url: str):
    """At every point of a call; each answer that does arrive belongs to its key, and no connection is left over."""
    randomly = random.Random(7)
    stem = uuid.uuid4().hex
    names = [f"{stem}{number}" for number in range(50)]
    answered = cancelled = 0
    async with Proxy(memcached_url) as proxy, opened(proxy.url, max_connections=8, timeout=30) as backend:
        await backend.set_many({name: name.encode() for name in names}, ttl=60)

        async def ask() -> None:
            name = randomly.choice(names)
            match randomly.randrange(6):
                case 0:
                    await backend.set(name, name.encode(), ttl=60)
                case 1:
                    some = randomly.sample(names, 5)
                    assert await backend.get_many(some) == {one: one.encode() for one in some}
                case 2:
                    assert await backend.delete(f"{name}none") is False
                case 3:
                    assert (await backend.get_versioned(name))[0] == name.encode()
                case _:
                    assert await backend.get(name) == name.encode()

        async def worker() -> None:
            nonlocal answered, cancelled
            for _ in range(200):
                task = asyncio.ensure_future(ask())
                if randomly.random() < 0.5:
                    for _ in range(randomly.randrange(12)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    cancelled += 1
                else:
                    task.result()
                    answered += 1

        await asyncio.gather(*[worker() for _ in range(20)])
        assert cancelled > 1000
        assert answered > 1000
        assert await backend.get_many(names) == {name: name.encode() for name in names}
        await proxy.until_open(8)
        await backend.aclose()
        await proxy.until_open(0)


async def test_a_pool_is_bounded_and_lazy(memcached_url: str, key: str):
    """Nothing connects before the first operation; small things share one connection, large ones no more than allowed."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url, max_connections=3, timeout=30) as backend:
        assert proxy.accepted == 0
        await backend.get(key)
        assert proxy.accepted == 1
        await asyncio.gather(*[backend.get(f"{key}{number}") for number in range(200)])
        assert proxy.accepted == 1
        large = b"x" * 900_000
        for _ in range(3):
            await asyncio.gather(*[backend.set(f"{key}{number}", large, ttl=60) for number in range(20)])
        assert proxy.most == 3
        await backend.aclose()
        await proxy.until_open(0)
        assert await backend.get(key) is None  # opens again


async def test_closing_lets_running_calls_finish(memcached_url: str, key: str):
    """They get their answers, their connections close after that, and then closing is done."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url) as backend:
        await backend.set(key, b"v", ttl=60)
        proxy.hold()
        task = asyncio.ensure_future(backend.get(key))
        await proxy.held.wait()
        closing = asyncio.ensure_future(backend.aclose())
        await asyncio.sleep(0)
        proxy.release()
        assert await task == b"v"
        await closing
        await proxy.until_open(0)


async def test_closing_does_not_wait_for_what_nobody_waits_for(memcached_url: str, key: str):
    """A connection on which the answer to a cancelled call is still to come is closed like an idle one."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url) as backend:
        await backend.get(key)
        proxy.hold()
        task = asyncio.ensure_future(backend.get(key))
        await proxy.held.wait()
        task.cancel()
        await asyncio.wait([task])
        await backend.aclose()
        await proxy.until_open(0)
        proxy.release()


def test_two_loops_one_after_the_other(memcached_url: str, key: str):
    """By URL and by clients: the second loop gets connections of its own."""
    client = aiomcache.Client("127.0.0.1", int(memcached_url.rpartition(":")[2]))
    for backend in (MemcachedBackend.from_url(memcached_url), MemcachedBackend(client)):

        async def use(backend: MemcachedBackend = backend) -> None:
            await backend.set(key, b"v", ttl=60)
            assert await backend.get(key) == b"v"
            await backend.aclose()

        asyncio.run(use())
        asyncio.run(use())


def test_two_loops_in_turns(memcached_url: str, key: str):
    """Without closing in between: what belongs to the other loop is closed there."""
    backend = MemcachedBackend.from_url(memcached_url)
    with asyncio.Runner() as one, asyncio.Runner() as two:
        for runner in (one, two, one, two):
            runner.run(backend.set(key, b"v", ttl=60))
            assert runner.run(backend.get(key)) == b"v"
        two.run(backend.aclose())


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="Memcached")
async def test_nobody_there(private_memcached: Callable[..., Any]):
    """The error says where, and keeps the operating system's word."""
    url = closed_port(private_memcached)
    async with opened(url) as backend:
        with pytest.raises(BackendUnavailable, match=f"cannot reach memcached at {url[12:]}") as caught:
            await backend.get("k")
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.need("faults", engine="Memcached")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", BackendUnavailable),
        (b"VALUE k 0 5\r\nab", BackendUnavailable),
        (b"VALUE k 0 5\r\nabcde\r\n", BackendUnavailable),
        (b"VALUE other 0 1\r\na\r\nEND\r\n", BackendUnavailable),
        (b"VALUE\r\n", BackendUnavailable),
        (b"VALUE k\r\n", BackendUnavailable),
        (b"VALUE k 0 -5\r\n", BackendUnavailable),
        (b"VALUE k x y\r\n", BackendUnavailable),
        (b"VALUE k 0 " + b"9" * 5000 + b"\r\n", BackendUnavailable),
        (b"STORED\r\n", BackendUnavailable),
        (b"ERROR\r\n", BackendUnavailable),
        (b"SERVER_ERROR out of memory storing object\r\n", BackendUnavailable),
        (b"SERVER_ERROR object too large for cache\r\n", ValueTooLarge),
        (b"CLIENT_ERROR unauthenticated\r\n", BackendRefused),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", BackendUnavailable),
        (b"\xff\xfe\x00" * 100_000, BackendUnavailable),
        (b"\r\n" * 1000, BackendUnavailable),
        (b"VALUE k 0 99999999999999999999\r\n", BackendUnavailable),
        (b"VALUE k 0 9999999999\r\n", BackendUnavailable),
        (b"VALUE k 0 1\r\nab\r\nEND\r\n", BackendUnavailable),
        (b"VALUE k 0 1\r\na\r\nVALUE k 0 1\r\nb\r\nEND\r\n", BackendUnavailable),
        (b"DELETED\r\n" * 2, BackendUnavailable),
        (b"1\r\n" * 2, BackendUnavailable),
    ],
)
async def test_what_is_no_answer_is_an_error(answer: bytes, error: type[BackendError]):
    """From whatever listens there: an acache error with its cause, no hang, and no wrong value."""
    calls: list[Callable[[MemcachedBackend], Any]] = [
        lambda backend: backend.get("k"),
        lambda backend: backend.get_many(["k", "l"]),
        lambda backend: backend.set_many({"k": b"", "l": b""}, ttl=1),
    ]
    for call in calls:
        async with answering(answer) as backend:
            with pytest.raises(error) as caught:
                await call(backend)
            assert caught.value.__cause__ is not None


@contextlib.asynccontextmanager
async def talking(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[str]:
    """Give the URL of a server that talks like this, for as long as the other side listens."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"memcached://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@pytest.mark.need("faults", engine="Memcached")
async def test_a_line_without_end_is_no_answer():
    """It is given up after some thousand bytes: neither the deadline nor the memory is spent on it."""
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readline()
        while True:
            writer.write(b"x" * 4096)
            sent += 4096
            await writer.drain()

    async with talking(talk) as url, opened(url, timeout=60) as backend:
        with pytest.raises(BackendUnavailable):
            async with asyncio.timeout(30):
                await backend.get("k")
        assert sent < 50_000_000


@pytest.mark.need("faults", engine="Memcached")
async def test_an_answer_that_drips_is_late():
    """A server that is always about to finish gets no more than the deadline, and no second question after it."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readline()
        writer.write(b"VALUE k 0 1000000\r\n")
        while not reader.at_eof():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async with talking(talk) as url, opened(url, timeout=0.2) as backend:
        for number in (1, 2):
            with pytest.raises(BackendTimeout):
                await backend.get("k")
            assert connections == number


@pytest.mark.need("faults", engine="Memcached")
async def test_what_nobody_asked_for_is_answered_to_nobody():
    """A server that answers twice loses the connection; the next caller gets no answer of the past."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            key = line.split()[1]
            writer.write(b"VALUE %b 0 1\r\na\r\nEND\r\n" % key * 2)

    async with talking(talk) as url, opened(url) as backend:
        for _ in range(20):
            assert await backend.get("k") in (b"a", None)
            with contextlib.suppress(BackendUnavailable):
                assert await backend.delete("k") is None  # "VALUE ..." is no answer to it


@pytest.mark.need("faults", engine="Memcached")
async def test_one_late_answer_fails_one_caller():
    """The others on the same connection get theirs, and so does everybody after it."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while line := await reader.readline():
            key = line.split()[1]
            await asyncio.sleep({b"first": 0.5, b"slow": 0.8}.get(key, 0.0))
            writer.write(b"VALUE %b 0 %d\r\n%b\r\nEND\r\n" % (key, len(key), key))

    async with talking(talk) as url, opened(url, timeout=1.0) as backend:
        first = asyncio.ensure_future(backend.get("first"))
        slow = asyncio.ensure_future(backend.get("slow"))
        assert await first == b"first"
        behind = asyncio.ensure_future(backend.get("behind"))
        with pytest.raises(BackendTimeout):
            await slow
        assert await behind == b"behind"
        assert await backend.get("after") == b"after"
        assert connections == 1


@pytest.mark.need("faults", engine="Memcached")
async def test_ten_thousand_cancelled_and_late_calls(memcached_url: str):
    """At random instants, on few connections, some of them held up: every answer that arrives belongs to its key."""
    randomly = random.Random(11)
    stem = uuid.uuid4().hex
    names = [f"{stem}{number}" for number in range(100)]
    body = {name: name.encode() * randomly.choice((1, 3, 100, 3000)) for name in names}
    outcomes = dict.fromkeys(("answered", "cancelled", "late"), 0)
    async with Proxy(memcached_url) as proxy, opened(proxy.url, max_connections=3, timeout=0.1) as backend:
        async with opened(memcached_url) as direct:
            await direct.set_many(body, ttl=120)

        async def ask() -> None:
            name = randomly.choice(names)
            match randomly.randrange(8):
                case 0:
                    some = randomly.sample(names, 4)
                    assert await backend.get_many(some) == {one: body[one] for one in some}
                case 1:
                    await backend.set(name, body[name], ttl=120)
                case 2:
                    assert await backend.delete(f"{name}none") is False
                case 3:
                    assert (await backend.get_versioned(name))[0] == body[name]
                case _:
                    assert await backend.get(name) == body[name]

        async def worker() -> None:
            for _ in range(500):
                task = asyncio.ensure_future(ask())
                if randomly.random() < 0.6:
                    for _ in range(randomly.randrange(8)):
                        await asyncio.sleep(0)
                    task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    outcomes["cancelled"] += 1
                elif isinstance(task.exception(), (BackendTimeout, BackendUnavailable)):
                    outcomes["late"] += 1
                else:
                    task.result()
                    outcomes["answered"] += 1

        async def disturb() -> None:
            for until_late in itertools.cycle((True, False)):
                await asyncio.sleep(randomly.uniform(0.02, 0.2))
                before = outcomes["late"]
                proxy.hold()
                await asyncio.sleep(0.02)
                while until_late and outcomes["late"] == before:
                    await asyncio.sleep(0.01)
                proxy.release()

        disturber = asyncio.ensure_future(disturb())
        await asyncio.gather(*[worker() for _ in range(20)])
        disturber.cancel()
        await asyncio.wait([disturber])
        proxy.release()
        assert sum(outcomes.values()) == 10_000
        assert min(outcomes["answered"], outcomes["cancelled"]) > 1000
        assert outcomes["late"] > 0
        await backend.aclose()
        await proxy.until_open(0)


@pytest.mark.need("faults", engine="Memcached")
async def test_a_cancelled_call_costs_no_connection(memcached_url: str, key: str):
    """Its answer is read and dropped; the connection is the same before and after."""
    async with Proxy(memcached_url) as proxy, opened(proxy.url) as backend:
        await backend.set(key, b"v", ttl=60)
        for _ in range(50):
            proxy.hold()
            tasks = [asyncio.ensure_future(backend.get(key)) for _ in range(5)]
            await proxy.held.wait()
            for task in tasks[::2]:
                task.cancel()
            proxy.release()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[1::2] == [b"v", b"v"]
        assert proxy.accepted == 1
        await backend.aclose()


async def test_small_answers_do_not_wait_for_large_ones():
    """While a value is on its way, which the network holds up, others take another connection."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line == b"get large\r\n":
                writer.write(b"VALUE large 0 1000000\r\n" + b"x" * 100_000)
                begun.set()
                await go.wait()
                writer.write(b"x" * 900_000 + b"\r\nEND\r\n")
            else:
                writer.write(b"END\r\n")

    async with talking(talk) as url, opened(url, timeout=20) as backend:
        large = asyncio.ensure_future(backend.get("large"))
        await begun.wait()
        await asyncio.sleep(0.1)  # until what was sent has come
        assert await backend.get("small") is None
        assert not large.done()
        go.set()
        assert await large == b"x" * 1_000_000


@pytest.mark.need("faults", engine="Memcached")
async def test_a_connection_that_cannot_be_had_is_done_without():
    """While a large answer is on its way and the server takes nobody new, others wait behind it, and no call fails."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line == b"get large\r\n":
                writer.write(b"VALUE large 0 1000000\r\n" + b"x" * 100_000)
                begun.set()
                await go.wait()
                writer.write(b"x" * 900_000 + b"\r\nEND\r\n")
            else:
                writer.write(b"END\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with opened(f"memcached://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=20) as backend:
        large = asyncio.ensure_future(backend.get("large"))
        await begun.wait()
        await asyncio.sleep(0.1)  # until what was sent has come
        server.close()
        small = asyncio.ensure_future(backend.get("small"))
        await asyncio.sleep(0.1)  # until it was refused
        assert not small.done()
        go.set()
        assert await large == b"x" * 1_000_000
        assert await small is None


@pytest.mark.need("faults", engine="Memcached")
async def test_a_line_that_drips_is_late_too():
    """Bytes that make no answer do not keep a connection alive."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readline()
        while not reader.at_eof():
            writer.write(b"E")
            await asyncio.sleep(0.01)

    async with talking(talk) as url, opened(url, timeout=0.2) as backend:
        for number in (1, 2):
            with pytest.raises(BackendTimeout):
                await backend.get("k")
            assert connections == number


@contextlib.contextmanager
def accepting_nobody() -> Iterator[str]:
    """Give the URL of a port whose queue of connections is full: an attempt to connect gets no answer at all."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield f"memcached://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.need("faults", engine="Memcached")
async def test_whoever_waits_for_a_connection_waits_one_deadline():
    """Not one after the other; and a cancelled one leaves the others their turn."""
    with accepting_nobody() as url:
        async with opened(url, connect_timeout=0.3) as backend:
            began = time.monotonic()
            calls = [asyncio.ensure_future(backend.get(f"k{number}")) for number in range(20)]
            await asyncio.sleep(0.05)
            calls[0].cancel()  # it was the one that connects
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - began < 2
            assert isinstance(errors[0], asyncio.CancelledError)
            assert {type(error) for error in errors[1:]} == {BackendTimeout}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.need("faults", engine="Memcached")
async def test_a_call_cancelled_while_it_connects_leaves_nothing(memcached_url: str, key: str):
    """At each turn of the event loop; the next call connects by itself."""
    for turns in range(8):
        async with Proxy(memcached_url) as proxy:
            async with opened(proxy.url) as backend:
                task = asyncio.ensure_future(backend.get(key))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert await backend.get(key) is None
                await backend.set(f"{key}{turns}", b"v", ttl=60)
                assert await backend.get(f"{key}{turns}") == b"v"
            await proxy.until_open(0)


@pytest.mark.need("faults", engine="Memcached")
async def test_answers_belong_to_their_keys_while_the_server_comes_and_goes(private_memcached: Callable[..., Any]):
    """Under load, killed and restarted, paused and resumed: each read is the key's own value, nothing, or an error."""
    server = private_memcached()
    answered = failed = 0
    stopped = asyncio.Event()
    async with opened(server.url, timeout=0.2, connect_timeout=0.2) as backend:

        async def worker(number: int) -> None:
            nonlocal answered, failed
            name = f"key:{number}"
            body = name.encode() * (1 + number * 50)
            while not stopped.is_set():
                try:
                    await backend.set(name, body, ttl=60)
                    assert await backend.get(name) in (body, None)
                    assert await backend.delete(f"{name}none") is False
                    answered += 1
                except (BackendUnavailable, BackendTimeout):
                    failed += 1
                    await asyncio.sleep(0.005)

        workers = [asyncio.ensure_future(worker(number)) for number in range(30)]
        for _ in range(3):
            for disturb in (server.restart, server.pause, server.resume):
                await asyncio.sleep(0.25)
                await asyncio.to_thread(disturb)
        await asyncio.sleep(0.25)
        stopped.set()
        await asyncio.gather(*workers)
        assert answered > 100
        assert failed > 0
        assert await backend.get("none") is None


@pytest.mark.need("faults", engine="Memcached")
async def test_a_killed_server_is_used_again_when_it_is_back(private_memcached: Callable[..., Any]):
    """Errors while it is away, none once it is back, for whichever operation comes first."""
    server = private_memcached()
    async with opened(server.url) as backend:
        for first in (
            lambda: backend.get("k"),
            lambda: backend.set("k", b"v", ttl=60),
            lambda: backend.get_many(["k", "l"]),
            lambda: backend.delete_many(["k"]),
        ):
            await asyncio.gather(*[backend.set(f"k{number}", b"v", ttl=60) for number in range(20)])
            server.kill()
            for _ in range(3):
                with pytest.raises(BackendUnavailable):
                    await backend.set("k", b"v", ttl=60)
                with pytest.raises(BackendUnavailable):
                    await backend.get("k")
            server.restart()
            await first()


@pytest.mark.need("faults", engine="Memcached")
async def test_a_restart_in_between_shows_once_at_most(private_memcached: Callable[..., Any]):
    """Twenty connections went with the old server: a read does not notice, and one write at most does."""
    server = private_memcached()
    async with opened(server.url) as backend:
        await asyncio.gather(*[backend.set(f"k{number}", b"v", ttl=60) for number in range(20)])
        server.restart()
        assert await backend.get("k1") is None
        await asyncio.gather(*[backend.set(f"k{number}", b"v", ttl=60) for number in range(20)])
        server.restart()
        failures = 0
        for number in range(20):
            try:
                await backend.set(f"k{number}", b"v", ttl=60)
            except BackendUnavailable:
                failures += 1
        assert failures <= 1
        assert await backend.get("k19") == b"v"


@pytest.mark.need("faults", engine="Memcached")
async def test_a_paused_server_costs_the_deadline_and_no_more(private_memcached: Callable[..., Any]):
    """Connected or not; afterwards every answer is right again."""
    server = private_memcached()
    async with opened(server.url, timeout=0.1, connect_timeout=0.1) as backend:
        await backend.set("k", b"v", ttl=60)
        server.pause()
        try:
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(BackendTimeout):
                    await backend.get("k")
                assert time.monotonic() - began < 1
        finally:
            server.resume()
        assert await backend.get("none") is None
        assert await backend.get("k") == b"v"


@pytest.mark.need("faults", engine="Memcached")
async def test_a_cache_goes_on_without_its_server(private_memcached: Callable[..., Any]):
    """Reads are misses, deletes say so, and it recovers by itself."""
    server = private_memcached()
    policy = Policy(ttl=60)
    async with Cache.from_url(server.url, namespace="n", memory=None, policy=policy) as cache:
        await cache.set("k", "v")
        server.kill()
        assert await cache.get_or_load("k", lambda: asyncio.sleep(0, "loaded")) == "loaded"
        with pytest.raises(BackendUnavailable):
            await cache.delete("k")
        server.restart()
        async with asyncio.timeout(30):
            while cache.stats().replay_waiting:  # what it says of k is not believed before the delete has arrived
                await asyncio.sleep(0.01)
        assert await cache.get_or_load("k", lambda: asyncio.sleep(0, "again")) == "again"
        assert await cache.get("k") == "again"


# Several servers ------------------------------------------------------------------------------------------------------


async def test_keys_are_shared_out(private_memcached: Callable[..., Any]):
    """Every server has its part, each key lives on one, and another backend with the same list finds it."""
    servers = [private_memcached() for _ in range(3)]
    items = {f"key:{number}": b"%d" % number for number in range(600)}
    async with opened(*[server.url for server in servers]) as backend:
        await backend.set_many(items, ttl=60)
        parts = []
        for server in servers:
            async with opened(server.url) as alone:
                parts.append(await alone.get_many(list(items)))
        assert {key: data for part in parts for key, data in part.items()} == items
        assert sum(len(part) for part in parts) == 600
        assert min(len(part) for part in parts) > 60
        for key, data in items.items():
            assert await backend.get(key) == data
    async with opened(*[server.url for server in servers]) as other:
        assert await other.get_many(list(items)) == items
        assert await other.delete_many(list(items)) == 600


async def test_few_keys_move_when_a_server_comes(private_memcached: Callable[..., Any]):
    """About a quarter for the fourth server, not three quarters."""
    servers = [private_memcached() for _ in range(4)]
    items = {f"key:{number}": b"v" for number in range(1000)}
    async with opened(*[server.url for server in servers[:3]]) as three:
        await three.set_many(items, ttl=60)
    async with opened(*[server.url for server in servers]) as four:
        assert len(await four.get_many(list(items))) > 500


async def two_halves(backend: MemcachedBackend, keys: list[str], dead: Any) -> tuple[list[str], list[str]]:
    """Tell which keys are the dead server's, and which are not."""
    lost = []
    for key in keys:
        try:
            await backend.get(key)
        except BackendError as error:
            assert str(dead.port) in str(error)
            lost.append(key)
    return lost, [key for key in keys if key not in lost]


@pytest.mark.need("faults", engine="Memcached (3 servers)")
@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_batch_fails_for_the_keys_of_a_dead_server_only(private_memcached: Callable[..., Any], how: str):
    """The error says which, and has what was found; the others are read, stored and removed; one deadline for all."""
    servers = [private_memcached() for _ in range(3)]
    items = {f"key:{number}": b"%d" % number for number in range(1000)}
    async with opened(*[server.url for server in servers], timeout=0.5, connect_timeout=0.5) as backend:
        await backend.set_many(items, ttl=60)
        (servers[1].kill if how == "killed" else servers[1].pause)()
        try:
            began = time.monotonic()
            with pytest.raises((BackendUnavailable, BackendTimeout)) as caught:
                await backend.get_many(list(items))
            assert time.monotonic() - began < 2.5  # four chunks to the dead server; a deadline each would be 2 and more
            failed, found = caught.value.failed, caught.value.found
            assert 100 < len(failed) < 900
            assert {**found, **{key: items[key] for key in failed}} == items
            assert all(str(servers[1].port) in str(error) for error in failed.values())
            for call in (
                lambda: backend.set_many(dict.fromkeys(items, b"new"), ttl=60),
                lambda: backend.delete_many(list(items)),
            ):
                with pytest.raises((BackendUnavailable, BackendTimeout)) as caught:
                    await call()
                assert set(caught.value.failed) == set(failed)
                alive = list(found)
                assert (await backend.get_many(alive)) in ({}, dict.fromkeys(alive, b"new"))
            assert await backend.get_many(list(found)) == {}
        finally:
            servers[1].resume() if how == "paused" else servers[1].restart()


@pytest.mark.need("faults", engine="Memcached (3 servers)")
async def test_a_server_that_does_not_answer_is_left_alone(private_memcached: Callable[..., Any]):
    """After one deadline its keys fail at once, marked as this key's failure only; later they are asked for again."""
    servers = [private_memcached() for _ in range(2)]
    keys = [f"key:{number}" for number in range(200)]
    async with opened(*[server.url for server in servers], timeout=0.1, connect_timeout=0.1) as backend:
        await backend.set_many(dict.fromkeys(keys, b"v"), ttl=60)
        servers[0].pause()
        try:
            began = time.monotonic()
            lost, alive = await two_halves(backend, keys, servers[0])
            assert len(lost) > 20
            assert time.monotonic() - began < 0.1 * len(lost) / 2
            with pytest.raises(BackendUnavailable, match="left alone") as caught:
                await backend.get(lost[0])
            assert list(caught.value.failed) == [lost[0]]
            with pytest.raises(BackendUnavailable) as caught:
                await backend.set(lost[0], b"v", ttl=60)
            assert list(caught.value.failed) == [lost[0]]
            assert await backend.get_many(alive) == dict.fromkeys(alive, b"v")
        finally:
            servers[0].resume()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await backend.get(lost[0]) == b"v"
                    break
                except BackendError:
                    await asyncio.sleep(0.05)
        assert await backend.get_many(keys) == dict.fromkeys(keys, b"v")


@pytest.mark.need("faults", engine="Memcached (3 servers)")
async def test_when_no_server_answers_the_whole_operation_failed(private_memcached: Callable[..., Any]):
    """Nothing is in ``failed``: it is not about some keys."""
    servers = [private_memcached() for _ in range(2)]
    async with opened(*[server.url for server in servers]) as backend:
        for server in servers:
            server.kill()
        keys = [f"key:{number}" for number in range(50)]
        for call in (lambda: backend.get_many(keys), lambda: backend.get(keys[0])):
            with pytest.raises(BackendUnavailable) as caught:
                await call()
            assert caught.value.failed == {}


@pytest.mark.need("faults", engine="Memcached (3 servers)")
async def test_what_one_server_refuses_fails_for_its_key_only(private_memcached: Callable[..., Any]):
    """A value above the server's own limit; the rest of the batch is stored."""
    async with opened(private_memcached("-I", "512k").url) as backend:
        with pytest.raises(ValueTooLarge) as caught:
            await backend.set_many({"j": b"j", "k": b"x" * 700_000, "l": b"l"}, ttl=60)
        assert list(caught.value.failed) == ["k"]
        assert await backend.get_many(["j", "k", "l"]) == {"j": b"j", "l": b"l"}


@pytest.mark.need("faults", engine="Memcached (3 servers)")
async def test_a_dead_server_takes_its_own_keys_only(private_memcached: Callable[..., Any]):
    """They raise, and are not looked for elsewhere; the other servers' keys are as before, and it may come back."""
    servers = [private_memcached() for _ in range(3)]
    keys = [f"key:{number}" for number in range(60)]
    async with opened(*[server.url for server in servers]) as backend:
        await backend.set_many(dict.fromkeys(keys, b"v"), ttl=60)
        servers[1].kill()
        lost = []
        for key in keys:
            try:
                assert await backend.get(key) == b"v"
            except BackendUnavailable as error:
                assert str(servers[1].port) in str(error)
                lost.append(key)
        assert 0 < len(lost) < 60
        with pytest.raises(BackendUnavailable):
            await backend.get_many(keys)
        left = [key for key in keys if key not in lost]
        assert await backend.get_many(left) == dict.fromkeys(left, b"v")
        servers[1].restart()
        async with asyncio.timeout(15):
            while (found := await answered(backend, keys)) is None:  # it is left alone for a moment
                await asyncio.sleep(0.02)
        assert found == dict.fromkeys(left, b"v")


async def answered(backend: MemcachedBackend, keys: list[str]) -> dict[str, bytes] | None:
    try:
        return await backend.get_many(keys)
    except BackendUnavailable:
        return None


async def test_numbers_that_make_no_sense_break_nothing(backend: MemcachedBackend, key: str):
    """A delta that is no whole number counts nothing, and an infinite ttl is a very long one."""
    with pytest.raises(TypeError):
        await backend.incr(key, 1.5, ttl=60)  # pyright: ignore[reportArgumentType]
    assert await backend.get(key) is None
    await backend.set(key, b"v", ttl=float("inf"))
    assert await backend.touch(key, ttl=float("inf")) is True
    assert (await backend.ttl(key) or 0) > 10**8
