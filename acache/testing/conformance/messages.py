"""Messages between those who share an engine."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import ClassVar

from ...backends.base import Backend, Notify
from ...errors import BackendUnavailable, InvalidKey
from .harness import Harness, expecting, having, promises

__all__ = ["MessageChecks"]

promise = promises("messages")


class MessageChecks(Harness):
    """`Notify`."""

    soon: ClassVar[float] = 10.0
    """Seconds within which a message has come, if it comes."""

    @promise
    async def test_a_message_reaches_every_subscriber(self, backend: Backend) -> None:
        """As it was sent, once, to all who listen then."""
        notify, topic = having(backend, Notify), self.key("topic")
        async with AsyncExitStack() as stack:
            listening = [await stack.enter_async_context(notify.subscribe(topic)) for _ in range(3)]
            for message in (b"", b"\x00\r\n$-1\xff", b"m" * 100_000, b"last"):
                await notify.publish(topic, message)
                for messages in listening:
                    assert await asyncio.wait_for(anext(messages), self.soon) == message

    @promise
    async def test_messages_come_in_order(self, backend: Backend) -> None:
        """Those of one publisher, none missing and none twice."""
        notify, topic = having(backend, Notify), self.key("topic")
        sent = [b"%d" % number for number in range(500)]
        async with notify.subscribe(topic) as messages:
            for message in sent:
                await notify.publish(topic, message)
            assert [await asyncio.wait_for(anext(messages), self.soon) for _ in sent] == sent

    @promise
    async def test_nobody_hears_what_was_said_before(self, backend: Backend) -> None:
        """A subscriber gets what is published from the moment he is one."""
        notify, topic = having(backend, Notify), self.key("topic")
        await notify.publish(topic, b"early")
        async with notify.subscribe(topic) as messages:
            await notify.publish(topic, b"now")
            assert await asyncio.wait_for(anext(messages), self.soon) == b"now"

    @promise
    async def test_topics_are_kept_apart(self, backend: Backend) -> None:
        """Names that resemble each other are different, and none is a pattern or an entry."""
        notify, stem = having(backend, Notify), self.key("topic")
        names = list(self.names(backend, stem, f"{stem}2", stem.upper(), f"{stem}*", f"{stem[:-1]}?", f"{stem} ü"))
        async with AsyncExitStack() as stack:
            listening = {name: await stack.enter_async_context(notify.subscribe(name)) for name in names}
            for name in names:
                await notify.publish(name, name.encode())
            for name, messages in listening.items():
                assert await asyncio.wait_for(anext(messages), self.soon) == name.encode()
                await notify.publish(name, b"last")
                assert await asyncio.wait_for(anext(messages), self.soon) == b"last", name
        assert await backend.get(stem) is None

    @promise
    async def test_leaving_one_subscription_leaves_the_others(self, backend: Backend) -> None:
        """Of the same topic and of others, whoever leaves first; and one may come back."""
        notify, topic, other = having(backend, Notify), self.key("topic"), self.key("other")
        async with notify.subscribe(topic) as first, notify.subscribe(other) as apart:
            async with notify.subscribe(topic):
                pass
            await notify.publish(topic, b"1")
            assert await asyncio.wait_for(anext(first), self.soon) == b"1"
            for _ in range(3):
                async with notify.subscribe(self.key("third")):
                    pass
            async with notify.subscribe(topic) as again:
                await notify.publish(topic, b"2")
                assert await asyncio.wait_for(anext(again), self.soon) == b"2"
            await notify.publish(other, b"3")
            assert await asyncio.wait_for(anext(apart), self.soon) == b"3"

    @promise
    async def test_coming_and_going_at_once_misses_nothing(self, backend: Backend) -> None:
        """A subscription that is cancelled on its way takes nothing from the one behind it."""
        notify, topic = having(backend, Notify), self.key("topic")

        async def enter() -> None:
            async with notify.subscribe(topic):
                pass

        async with notify.subscribe(self.key("another")):  # so that the connection stays
            for turns in range(12):
                entering = asyncio.ensure_future(enter())
                for _ in range(turns):
                    await asyncio.sleep(0)
                entering.cancel()
                async with notify.subscribe(topic) as messages:
                    await notify.publish(topic, b"%d" % turns)
                    assert await asyncio.wait_for(anext(messages), self.soon) == b"%d" % turns
                await asyncio.wait([entering])

    @promise
    async def test_a_cancelled_wait_loses_no_message(self, backend: Backend) -> None:
        """Who stops waiting and waits again gets what came meanwhile."""
        notify, topic = having(backend, Notify), self.key("topic")
        async with notify.subscribe(topic) as messages:
            for number in range(20):
                waiting = asyncio.ensure_future(anext(messages))
                await asyncio.sleep(0)
                publishing = asyncio.ensure_future(notify.publish(topic, b"%d" % number))
                for _ in range(number):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting, publishing])
                publishing.result()
                got = (
                    waiting.result() if not waiting.cancelled() else await asyncio.wait_for(anext(messages), self.soon)
                )
                assert got == b"%d" % number

    @promise
    async def test_closing_ends_the_subscriptions(self, backend: Backend) -> None:
        """Who waits for a message is told that none will come."""
        notify, topic = having(backend, Notify), self.key("topic")
        async with notify.subscribe(topic) as messages:
            waiting = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            await backend.aclose()
            await expecting(BackendUnavailable, asyncio.wait_for(waiting, self.soon))

    @promise
    async def test_what_is_no_topic_is_refused(self, backend: Backend) -> None:
        """As it would be as a key."""
        notify = having(backend, Notify)
        await expecting(InvalidKey, notify.publish("", b"m"))

        async def listen() -> None:
            async with notify.subscribe(""):
                pass

        await expecting(InvalidKey, listen())
