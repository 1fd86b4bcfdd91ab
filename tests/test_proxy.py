"""The fault proxy does what its tests count on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, TypeAlias

import pytest

from .proxy import Proxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A server that says everything again."""
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            connections.discard(writer)
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in list(connections):
        writer.transport.abort()


@pytest.fixture
async def proxy(echo: int) -> AsyncIterator[Proxy]:
    """A proxy in front of it."""
    async with Proxy("127.0.0.1", echo) as proxy:
        yield proxy


class Client:
    """A connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def hear(self, text: bytes) -> None:
        async with asyncio.timeout(30):
            assert await self.reader.readexactly(len(text)) == text

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await self.reader.read(1)


Connect: TypeAlias = Callable[[], Awaitable[Client]]


@pytest.fixture
async def connect(proxy: Proxy) -> AsyncIterator[Connect]:
    """Open connections, and close them in the end."""
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", proxy.port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.transport.abort()


async def test_without_faults_everything_passes_unchanged(proxy: Proxy, connect: Connect):
    """Also what is larger than any buffer."""
    client = await connect()
    big = bytes(range(256)) * 8000
    sending = asyncio.create_task(client.say(big))
    await client.hear(big)
    await sending
    assert proxy.connections == 1


async def test_a_delay_holds_up_both_ways_and_keeps_the_order(proxy: Proxy, connect: Connect):
    """There and back: twice the delay at least, however the random part falls."""
    client = await connect()
    proxy.delay(0.05, jitter=0.05)
    started = time.monotonic()
    for number in range(20):
        await client.say(b"%02d" % number)
        await asyncio.sleep(0)
    await client.hear(b"".join(b"%02d" % number for number in range(20)))
    assert time.monotonic() - started >= 0.1


async def test_what_is_dropped_never_arrives(proxy: Proxy, connect: Connect):
    """Also not after the end of the fault; what comes then does."""
    client = await connect()
    proxy.drop()
    await client.say(b"lost")
    other = await connect()
    await other.say(b"lost as well")
    await client.hears_nothing()
    proxy.resume()
    await client.say(b"found")
    await client.hear(b"found")
    await other.say(b"too")
    await other.hear(b"too")


@pytest.mark.parametrize("silent", ["up", "down"])
async def test_a_silent_direction_holds_back_what_arrives_later(
    proxy: Proxy, connect: Connect, silent: Literal["up", "down"]
):
    """Nothing is lost of it, and the other direction does not notice."""
    client = await connect()
    proxy.half_open(silent)
    await client.say(b"hello")
    await client.hears_nothing()
    proxy.resume()
    await client.hear(b"hello")


async def test_a_reset_is_a_reset_and_lasts(proxy: Proxy, connect: Connect):
    """For open connections and for new ones, until it is over."""
    client = await connect()
    await client.say(b"hello")
    await client.hear(b"hello")
    proxy.reset()
    with pytest.raises(ConnectionError):
        await client.reader.readexactly(1)
        await client.say(b"x")
    new = await connect()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await new.reader.readexactly(1)
    proxy.resume()
    another = await connect()
    await another.say(b"again")
    await another.hear(b"again")


async def test_a_single_reset_lets_the_next_connection_in(proxy: Proxy, connect: Connect):
    """As a server that was restarted."""
    client = await connect()
    await client.say(b"hello")
    await client.hear(b"hello")
    proxy.reset(once=True)
    with pytest.raises(ConnectionError):
        await client.reader.readexactly(1)
    new = await connect()
    await new.say(b"again")
    await new.hear(b"again")


async def test_a_throttle_lets_so_many_bytes_pass(proxy: Proxy, connect: Connect):
    """Two thousand bytes at ten thousand a second, twice on their way: they take their time, and arrive."""
    client = await connect()
    proxy.throttle(10_000)
    started = time.monotonic()
    await client.say(b"x" * 2000)
    await client.hear(b"x" * 2000)
    assert time.monotonic() - started >= 0.15


async def test_a_server_that_is_down_refuses(connect: Connect, proxy: Proxy):
    """A connection to a proxy without a server ends at once."""
    async with Proxy("127.0.0.1", 1) as nothing:
        reader, writer = await asyncio.open_connection("127.0.0.1", nothing.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.transport.abort()


def test_the_random_part_comes_from_the_seed():
    """Two proxies of one seed draw the same."""
    draws = [[Proxy("h", 1, seed=seed)._random.random() for _ in range(3)] for seed in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]


async def test_nothing_is_left_running(echo: int):
    """After the end of a proxy with open connections in every state."""
    before = asyncio.all_tasks()
    async with Proxy("127.0.0.1", echo) as proxy:
        writers = []
        for fault in (proxy.resume, proxy.drop, lambda: proxy.half_open("up"), lambda: proxy.throttle(1)):
            fault()
            _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"hello")
            writers.append(writer)
        await asyncio.sleep(0.05)
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.05)
    assert {task for task in asyncio.all_tasks() - before if "Proxy" in repr(task)} == set()
