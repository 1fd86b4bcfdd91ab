"""`Notify` on Redis: one connection for all who listen, that can be lost, and is gone when nobody does."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from acache.backends.redis import RedisBackend, notify
from acache.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.services import PrivateRedis


async def clients(backend: RedisBackend, name: str) -> int:
    """Tell how many connections of this name listen."""
    told: bytes = await backend._do("CLIENT", "LIST")
    return sum(f" name={name} ".encode() in line and b" sub=0 " not in line for line in told.splitlines())


@pytest.mark.parametrize("query", ["protocol=2", "protocol=3", "multiplex=false"])
async def test_all_who_listen_share_a_connection_that_the_last_one_closes(redis_url: str, query: str):
    """Fifty subscriptions of fifty topics: one connection; none when they are over."""
    name = uuid.uuid4().hex[:12]
    backend = RedisBackend.from_url(f"{redis_url}?client_name={name}&{query}")
    for _ in range(2):
        async with AsyncExitStack() as stack:
            topics = [f"{name}:{number}" for number in range(50)]
            listening = await asyncio.gather(*[stack.enter_async_context(backend.subscribe(topic)) for topic in topics])
            assert await clients(backend, name) == 1
            await asyncio.gather(*[backend.publish(topic, topic.encode()) for topic in topics])
            assert [await anext(messages) for messages in listening] == [topic.encode() for topic in topics]
        async with asyncio.timeout(20):
            while await clients(backend, name):
                await asyncio.sleep(0.01)
    await backend.aclose()


async def test_a_cluster_hears_a_topic_where_it_is_published(redis_cluster_url: str):
    """Elsewhere, what was said before a subscription could come after its beginning, and after what is newer."""
    backend, name = RedisBackend.from_url(redis_cluster_url), uuid.uuid4().hex
    topics = [f"{name}:{number}" for number in range(30)]
    async with AsyncExitStack() as stack:
        for topic in topics:
            await stack.enter_async_context(backend.subscribe(topic))
        for topic in topics:
            # PUBLISH goes by the topic's slot, and returns how many subscribers that node has.
            assert await backend._do("PUBLISH", topic, b"news") == 1
    await backend.aclose()


async def test_a_lost_connection_ends_the_subscriptions_and_the_next_ones_connect(
    private_redis: Callable[..., PrivateRedis],
):
    """Who listened is told that messages may be missing; what came before is read first."""
    server = private_redis()
    backend = RedisBackend.from_url(server.url)
    async with backend.subscribe("a") as first, backend.subscribe("b") as second:
        await backend.publish("a", b"before")
        async with asyncio.timeout(20):
            while not first._unread:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
        server.stop()
        with pytest.raises(BackendUnavailable, match="missed"):
            await anext(second)
        assert await anext(first) == b"before"
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="missed"):
                await anext(first)
        for _ in range(3):  # also at once, while it is left alone
            with pytest.raises(BackendUnavailable):
                async with backend.subscribe("c"):
                    pass
        server.restart()
        async with asyncio.timeout(30):
            while True:
                try:
                    async with backend.subscribe("a") as again:
                        await backend.publish("a", b"after")
                        assert await anext(again) == b"after"
                        break
                except BackendUnavailable:
                    await asyncio.sleep(0.05)
    await backend.aclose()


async def test_a_server_that_falls_silent_is_noticed(
    private_redis: Callable[..., PrivateRedis], monkeypatch: pytest.MonkeyPatch
):
    """It is asked for a word from time to time; the silence of one that answers ends nothing."""
    monkeypatch.setattr(notify, "_QUIET", 0.3)
    server = private_redis()
    backend = RedisBackend.from_url(server.url)
    async with backend.subscribe("t") as messages:
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(2)
        assert not waiting.done()
        server.pause()
        with pytest.raises(BackendUnavailable, match="no answer"):
            await asyncio.wait_for(waiting, 20)
        server.resume()
    await backend.aclose()


async def test_who_does_not_read_is_told_that_he_has_missed_something(redis_url: str):
    """His messages take bounded memory, and nobody else's suffer."""
    backend, topic = RedisBackend.from_url(redis_url), uuid.uuid4().hex
    async with backend.subscribe(topic) as lazy, backend.subscribe(topic) as eager:
        for number in range(3000):
            await backend.publish(topic, b"%d" % number)
            assert await anext(eager) == b"%d" % number
        with pytest.raises(BackendUnavailable, match="1000 messages"):
            await anext(lazy)
    await backend.aclose()


async def test_a_subscription_that_is_cancelled_while_it_connects_leaves_nothing(redis_url: str):
    """At whichever turn of the loop."""
    name = uuid.uuid4().hex[:12]
    backend = RedisBackend.from_url(f"{redis_url}?client_name={name}")

    async def listen() -> None:
        async with backend.subscribe(name):
            pass

    for turns in range(40):
        task: asyncio.Task[Any] = asyncio.create_task(listen())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("acache")] == []
    async with asyncio.timeout(20):
        while await clients(backend, name):
            await asyncio.sleep(0.01)
    await backend.aclose()


@pytest.mark.parametrize("query", ["protocol=2", "protocol=3", "multiplex=false"])
async def test_a_cancelled_listener_ends_at_whichever_turn(redis_url: str, query: str):
    """While it connects, subscribes, waits: whoever waits for it to end would wait for ever."""
    backend, topic = RedisBackend.from_url(f"{redis_url}?{query}"), uuid.uuid4().hex

    async def listen() -> None:
        async with backend.subscribe(topic) as messages:
            async for _ in messages:
                pass

    for attempt in range(400):
        task: asyncio.Task[Any] = asyncio.create_task(listen())
        for _ in range(attempt % 80):
            await asyncio.sleep(0)
        task.cancel()
        _, late = await asyncio.wait([task], timeout=20)
        assert not late, attempt % 80
        assert task.cancelled()
    await backend.aclose()


async def test_a_listener_who_is_cancelled_while_the_server_dies_ends_with_nothing_else(
    private_redis: Callable[..., PrivateRedis],
):
    """Cancelled, or told that messages may be missing; at whichever turn of the loop."""
    server = private_redis()

    async def listen(backend: RedisBackend, topic: str, entered: asyncio.Barrier) -> None:
        async with backend.subscribe(topic) as messages:
            await entered.wait()
            async for _ in messages:
                pass

    for turns in range(12):
        entered = asyncio.Barrier(11)
        backend = RedisBackend.from_url(server.url)
        tasks = [asyncio.create_task(listen(backend, f"topic {number}", entered)) for number in range(10)]
        async with asyncio.timeout(20):
            await entered.wait()
        server.kill()
        for _ in range(turns % 6):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled() or isinstance(task.exception(), BackendUnavailable)
        await backend.aclose()
        server.restart()
