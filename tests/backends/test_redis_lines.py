"""One connection for many callers: every reply belongs to its command, whatever happens on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acache import BackendTimeout, BackendUnavailable
from acache.backends.redis import resp
from acache.backends.redis.lines import Line, Lines
from acache.backends.redis.resp import (
    INCOMPLETE,
    PurePush,
    PureReader,
    Push,
    make_reader,
    pack,
    pack_get,
    pack_set,
    pure_pack,
)

with_hiredis = pytest.mark.skipif(resp.hiredis is None, reason="there is one reader only")


class Server:
    """Answers each command in its own way; a connection's commands are kept in ``seen``."""

    def __init__(self) -> None:
        self.seen: list[list[bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: Callable[[Server, list[bytes], asyncio.StreamWriter], Awaitable[None]] = echo
        self.port = 0
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.connections += 1
        commands = PureReader(ValueError)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(1 << 16):
                commands.feed(data)
                while (command := commands.gets()) is not INCOMPLETE:
                    self.seen.append(command)
                    await self.answer(self, command, writer)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def echo(_: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
    """Return the last argument."""
    writer.write(b"$%d\r\n%b\r\n" % (len(command[-1]), command[-1]))


async def silence(_: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
    """Return nothing."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()
    server.cut()


async def opened(port: int, on_long: Any = None, *, patience: float = 5, on_push: Any = None) -> Line:
    line = Line(make_reader(ValueError), timeout=patience, place="here", on_push=on_push, on_long=on_long)
    await asyncio.get_running_loop().create_connection(lambda: line, "127.0.0.1", port)
    return line


@pytest.fixture
async def lines(server: Server) -> AsyncIterator[Lines]:
    lines = Lines(lambda on_long: opened(server.port, on_long))
    yield lines
    await lines.aclose()


def get(name: str) -> bytes:
    return pack(("GET", name))


# In step --------------------------------------------------------------------------------------------------------------


async def test_a_hundred_callers_share_one_connection_and_get_their_own_replies(server: Server, lines: Lines):
    replies = await asyncio.gather(*[lines.call(get(f"k{number}"), again=True) for number in range(100)])
    assert replies == [b"k%d" % number for number in range(100)]
    assert server.connections == 1


async def test_commands_of_one_turn_leave_together(server: Server):
    """The first one, alone, at once; the others of the turn in one write."""
    line = await opened(server.port)
    written: list[bytes] = []
    write = line._transport.write
    line._transport = type("Transport", (), {"write": staticmethod(lambda data: (written.append(data), write(data)))})()
    await asyncio.gather(*[line.send(get(f"k{number}"), again=True) for number in range(50)])
    assert len(written) == 2


async def test_ten_thousand_cancellations_shift_no_reply(server: Server, lines: Lines):
    """Cancelled and timed out at random moments, among others that are not: each reply is its caller's own."""
    chance = random.Random(7)
    answered = 0

    async def slow(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if chance.random() < 0.02:
            await writer.drain()
            await asyncio.sleep(0)
        await echo(server, command, writer)

    server.answer = slow

    async def ask(number: int) -> None:
        nonlocal answered
        name = f"k{number}"
        assert await lines.call(get(name), again=True) == name.encode()
        answered += 1

    for round_ in range(50):
        tasks = [asyncio.ensure_future(ask(round_ * 200 + number)) for number in range(200)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        for task in tasks:
            if chance.random() < 0.7:
                task.cancel()
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
        for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            assert result is None or task.cancelled(), result
    assert 1_000 < answered < 9_000
    assert await lines.call(get("last")) == b"last"
    assert server.connections == 1


async def test_an_error_reply_is_one_callers_error(server: Server, lines: Lines):
    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if command[-1] == b"bad":
            writer.write(b"-ERR no such thing\r\n")
        else:
            await echo(server, command, writer)

    server.answer = answer
    good, bad, other = await asyncio.gather(
        *[lines.call(get(name)) for name in ("good", "bad", "other")], return_exceptions=True
    )
    assert (good, other) == (b"good", b"other")
    assert isinstance(bad, ValueError)
    assert server.connections == 1


async def test_commands_in_a_row_stay_in_a_row(server: Server, lines: Lines):
    """Nobody's command comes in between, and each has its reply or its error."""

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if command[-1] == b"r1":
            writer.write(b"-ERR no\r\n")
        else:
            await echo(server, command, writer)

    server.answer = answer
    row = [get(f"r{number}") for number in range(3)]
    others = [asyncio.ensure_future(lines.call(get("other"))) for _ in range(20)]
    replies = await lines.call_many(row)
    await asyncio.gather(*others)
    assert replies[0] == b"r0"
    assert isinstance(replies[1], ValueError)
    assert replies[2] == b"r2"
    names = [command[-1] for command in server.seen]
    start = names.index(b"r0")
    assert names[start : start + 3] == [b"r0", b"r1", b"r2"]


async def test_a_cancelled_row_leaves_no_error_unseen(server: Server, lines: Lines, caplog: pytest.LogCaptureFixture):
    async def answer(_: Server, __: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR no\r\n")

    await lines.call(get("k"))
    server.answer = answer
    task = asyncio.ensure_future(lines.call_many([get("a"), get("b")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ValueError, match="no"):
        await lines.call(get("k"))
    assert not caplog.records


async def test_messages_come_in_their_order_among_the_replies(server: Server):
    order: list[object] = []

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(command[-1]), command[-1]))
        await echo(server, command, writer)

    server.answer = answer
    line = await opened(server.port, on_push=order.append)
    futures = [line.send(get(name), again=True) for name in ("a", "b")]
    for future in futures:
        future.add_done_callback(lambda future: order.append(future.result()))
    await asyncio.wait(futures)
    await asyncio.sleep(0)
    assert [message for message in order if isinstance(message, list)] == [
        [b"invalidate", [b"a"]],
        [b"invalidate", [b"b"]],
    ]
    assert order.index([b"invalidate", [b"a"]]) < order.index(b"a")
    line.close()


# Lost and late --------------------------------------------------------------------------------------------------------


async def test_a_lost_connection_fails_the_writes_that_were_sent(server: Server, lines: Lines):
    """They may have been carried out, so they are not sent again."""
    await lines.call(get("warm"))
    server.answer = silence
    tasks = [asyncio.ensure_future(lines.call(pack(("SET", f"k{number}", "v")))) for number in range(10)]
    while len(server.seen) < 11:
        await asyncio.sleep(0.001)
    server.answer = echo
    server.cut()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, BackendUnavailable) for result in results)
    assert len(server.seen) == 11
    assert await lines.call(get("after")) == b"after"


async def test_reads_whose_connection_is_lost_are_asked_once_more(server: Server, lines: Lines):
    await lines.call(get("warm"))
    server.answer = silence
    tasks = [asyncio.ensure_future(lines.call(get(f"k{number}"), again=True)) for number in range(10)]
    while len(server.seen) < 11:
        await asyncio.sleep(0.001)
    server.answer = echo
    server.cut()
    assert await asyncio.gather(*tasks) == [b"k%d" % number for number in range(10)]


async def test_reads_are_not_asked_for_ever(server: Server, lines: Lines):
    async def cut(server: Server, _: list[bytes], __: asyncio.StreamWriter) -> None:
        server.cut()

    server.answer = cut
    with pytest.raises(BackendUnavailable):
        await lines.call(get("k"), again=True)
    assert len(server.seen) == 2


async def test_a_write_that_never_left_is_sent_over_another_connection(server: Server, lines: Lines):
    """It was waiting for the end of the loop turn when the connection was lost."""
    await lines.call(get("warm"))
    line = lines._lines[0]
    first = asyncio.ensure_future(lines.call(get("first"), again=True))  # leaves at once
    second = asyncio.ensure_future(lines.call(pack(("SET", "k", "second"))))  # waits for the end of the turn
    await asyncio.sleep(0)
    line.close()
    assert await asyncio.gather(first, second) == [b"first", b"second"]
    assert [command for command in server.seen if command[0] == b"SET"] == [[b"SET", b"k", b"second"]]


async def test_silence_ends_the_connection_and_everybody_behind_it_knows(server: Server):
    server.answer = silence
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.1))
    started = asyncio.get_running_loop().time()
    results = await asyncio.gather(*[lines.call(get("k"), again=True) for _ in range(100)], return_exceptions=True)
    assert all(isinstance(result, BackendTimeout) for result in results)
    assert asyncio.get_running_loop().time() - started < 5
    server.answer = echo
    assert await lines.call(get("after")) == b"after"
    await lines.aclose()


async def test_messages_are_no_answer(server: Server):
    """A server that sends nothing else is late, though bytes come."""

    async def answer(_: Server, __: list[bytes], writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b">1\r\n$4\r\nnews\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    server.answer = answer
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.2))
    async with asyncio.timeout(5):
        with pytest.raises(BackendTimeout):
            await lines.call(get("k"), again=True)
    await lines.aclose()


async def test_a_server_that_drops_every_connection_is_not_stormed(server: Server):
    """It accepts, and hangs up at the first command: further attempts are as far apart as with one that refuses."""

    async def cut(server: Server, _: list[bytes], __: asyncio.StreamWriter) -> None:
        server.cut()

    server.answer = cut
    lines = Lines(lambda on_long: opened(server.port, on_long))

    async def insist() -> None:
        while True:
            with contextlib.suppress(BackendUnavailable):
                await lines.call(get("k"), again=True)
            await asyncio.sleep(0)

    callers = [asyncio.ensure_future(insist()) for _ in range(20)]
    await asyncio.sleep(0.5)
    attempts = server.connections
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert attempts < 20
    server.answer = echo
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(BackendUnavailable):
                assert await lines.call(get("after"), again=True) == b"after"
                break
            await asyncio.sleep(0.01)
    await lines.aclose()


async def test_an_idle_connection_is_not_late(server: Server):
    """Time without a question is no time without an answer."""
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.05))
    assert await lines.call(get("a")) == b"a"
    await asyncio.sleep(0.2)
    assert await lines.call(get("b")) == b"b"
    assert server.connections == 1
    await lines.aclose()


async def test_a_slow_long_reply_is_not_late(server: Server):
    """While bytes come, nothing is."""

    async def answer(_: Server, __: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(b"$10\r\n")
        for _digit in range(10):
            await asyncio.sleep(0.05)
            writer.write(b"x")
        writer.write(b"\r\n")

    server.answer = answer
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.3))
    assert await lines.call(get("k")) == b"x" * 10
    await lines.aclose()


async def test_a_long_command_that_moves_is_not_late():
    """A server that reads slowly is no silent one: here the command takes twice the patience to send."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = len(command)
        while left:
            left -= len(await reader.read(min(left, 1 << 20)))
            await asyncio.sleep(0.005)
        writer.write(b"+OK\r\n")
        await reader.read()
        writer.close()

    command = pack(("SET", "k", bytes(40 << 20)))
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 16)
    lines = Lines(lambda on_long: opened(listener.sockets[0].getsockname()[1], on_long, patience=0.5))
    assert await lines.call(command) == b"OK"
    await lines.aclose()
    listener.close()


async def test_a_long_command_that_stands_still_is_late():
    """Within one patience, more or less, from the last byte that moved."""
    stuck: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(100):
            await reader.read(1 << 18)
            await asyncio.sleep(0.005)
        stuck.set_result(asyncio.get_running_loop().time())
        await lost.wait()
        writer.close()

    lost = asyncio.Event()
    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    lines = Lines(lambda on_long: opened(listener.sockets[0].getsockname()[1], on_long, patience=0.4))
    with pytest.raises(BackendTimeout):
        await lines.call(pack(("SET", "k", bytes(80 << 20))))
    assert asyncio.get_running_loop().time() - stuck.result() < 2
    lost.set()
    await lines.aclose()
    listener.close()


@pytest.mark.parametrize(
    "lie", [b"what?\r\n", b"$5\r\nabc", b":notanumber\r\n", b"$-5\r\n", b"+one\r\n+two\r\n+three\r\n"]
)
async def test_a_lying_server_gives_nobody_anothers_reply(server: Server, lie: bytes):
    """Bytes that are no reply, or a reply too many: the connection is ended."""

    async def answer(_: Server, __: list[bytes], writer: asyncio.StreamWriter) -> None:
        writer.write(lie)

    server.answer = answer
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.2))
    with contextlib.suppress(BackendUnavailable, BackendTimeout):
        assert await lines.call(get("k")) == b"one"
    server.answer = echo
    assert await lines.call(get("after"), again=True) == b"after"
    await lines.aclose()


async def test_a_refused_connection_is_tried_again_after_a_moment_not_by_everybody():
    attempts = 0

    async def refuse(_: object) -> Line:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        msg = "refused"
        raise BackendUnavailable(msg)

    lines = Lines(refuse)
    results = await asyncio.gather(*[lines.call(get("k")) for _ in range(1000)], return_exceptions=True)
    assert all(isinstance(result, BackendUnavailable) for result in results)
    assert attempts == 1
    while attempts < 6:
        with pytest.raises(BackendUnavailable, match="refused"):
            await lines.call(get("k"))
        await asyncio.sleep(0.005)
    results = await asyncio.gather(*[lines.call(get("k")) for _ in range(100)], return_exceptions=True)
    assert all(isinstance(result, BackendUnavailable) for result in results)
    assert attempts == 6


async def test_the_cancelled_caller_who_came_first_takes_no_connection_along(server: Server, lines: Lines):
    """He began to open it; the others wait for it too."""
    first, second = (asyncio.ensure_future(lines.call(get(name))) for name in ("a", "b"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"b"
    assert server.connections == 1


async def test_closing_tells_everybody(server: Server, lines: Lines):
    await lines.call(get("warm"))
    server.answer = silence
    tasks = [asyncio.ensure_future(lines.call(get("k"), again=True)) for _ in range(5)]
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(lines.aclose())
    await closing
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_connections_that_are_left_give_the_replies_that_are_under_way(server: Server, lines: Lines):
    """What comes later goes over another one; and closing closes both."""
    go = asyncio.Event()

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if command[-1] == b"slow":
            await go.wait()
        await echo(server, command, writer)

    server.answer = answer
    await lines.call(get("warm"))
    slow = asyncio.ensure_future(lines.call(pack(("SET", "k", "slow"))))
    while len(server.seen) < 2:
        await asyncio.sleep(0.001)
    old = lines._lines[0]
    lines.leave()
    async with asyncio.timeout(5):
        assert await lines.call(get("later")) == b"later"
    assert server.connections == 2
    go.set()
    assert await slow == b"slow"
    async with asyncio.timeout(5):
        await old.gone


async def test_a_row_that_never_left_goes_over_another_connection(server: Server, lines: Lines):
    """It waited for room when the connection was lost."""
    await lines.call(get("warm"))
    line = lines._lines[0]
    line.pause_writing()
    row = asyncio.ensure_future(lines.call_many([get("a"), get("b")]))
    await asyncio.sleep(0)
    line.close()
    assert await row == [b"a", b"b"]


# Room -----------------------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_read_makes_callers_wait_not_memory_grow(server: Server, lines: Lines):
    """A thousand callers with 32 KB each: what is queued stays near the bound, and all are answered in the end."""
    await lines.call(get("warm"))
    line = lines._lines[0]
    go = asyncio.Event()

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(b":%d\r\n" % len(command[-1]))

    server.answer = answer
    value = b"x" * 32_000
    tasks = [asyncio.ensure_future(lines.call(pack(("SET", f"k{number}", value)))) for number in range(1000)]
    largest = 0
    for _ in range(200):
        await asyncio.sleep(0.001)
        largest = max(largest, line._out_bytes + line._transport.get_write_buffer_size())
    assert not any(task.done() for task in tasks)
    assert largest < 4 << 20
    go.set()
    assert await asyncio.gather(*tasks) == [32_000] * 1000
    assert server.connections == 1


async def test_those_who_wait_for_room_are_late_together(server: Server):
    """Where nothing moves, nobody tries his luck with one silent connection after the other."""
    server.answer = silence
    lines = Lines(lambda on_long: opened(server.port, on_long, patience=0.2))
    sent = asyncio.ensure_future(lines.call(get("k"), again=True))
    while not server.seen:
        await asyncio.sleep(0.001)
    lines._lines[0].pause_writing()
    waiting = [lines.call(pack(("SET", "k", "v"))), lines.call(get("k"), again=True), lines.call_many([get("k")] * 2)]
    async with asyncio.timeout(5):
        results = await asyncio.gather(sent, *waiting, return_exceptions=True)
    assert [type(result) for result in results] == [BackendTimeout] * 4
    assert server.connections == 1
    await lines.aclose()


async def test_those_who_wait_for_room_go_in_turn(server: Server, lines: Lines):
    await lines.call(get("warm"))
    value = b"x" * 60_000
    order: list[int] = []

    async def write(number: int) -> None:
        await lines.call(pack(("SET", f"k{number}", value)))
        order.append(number)

    await asyncio.gather(*[write(number) for number in range(300)])
    assert order == sorted(order)


async def test_cancelled_ones_in_the_queue_keep_nobody_waiting(server: Server, lines: Lines):
    await lines.call(get("warm"))
    value = b"x" * 60_000
    tasks = [asyncio.ensure_future(lines.call(pack(("SET", f"k{number}", value)))) for number in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.result() == value for task in tasks[1::2])


async def test_who_waits_for_room_is_not_forgotten_when_the_connection_falls_idle(server: Server):
    """The one whose turn it was writes at once, because all replies are there; those behind him still get theirs."""
    line = await opened(server.port)
    await line.send(get("warm"), again=True)
    line.pause_writing()
    turns = [asyncio.ensure_future(line.room(2 << 20)) for _ in range(3)]
    await asyncio.sleep(0)
    line.resume_writing()
    async with asyncio.timeout(5):
        for turn in turns:
            await turn
            assert await line.send(get("k"), again=True) == b"k"
    line.close()


async def test_a_long_reply_does_not_hold_up_small_ones(server: Server, lines: Lines):
    """What waits behind it is asked for over another connection, and what comes later goes there at once."""
    go = asyncio.Event()

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if command[-1] != b"long":
            await echo(server, command, writer)
            return
        writer.write(b"$%d\r\n%b" % (4 << 20, b"x" * (2 << 20)))
        await writer.drain()
        await go.wait()
        writer.write(b"x" * (2 << 20) + b"\r\n")

    server.answer = answer
    await lines.call(get("warm"))
    long = asyncio.ensure_future(lines.call(get("long"), again=True))
    behind = [asyncio.ensure_future(lines.call(get(f"k{number}"), again=True)) for number in range(10)]
    async with asyncio.timeout(5):
        assert await asyncio.gather(*behind) == [b"k%d" % number for number in range(10)]
        assert await lines.call(get("later")) == b"later"
    assert not long.done()
    go.set()
    assert len(await long) == 4 << 20
    assert await asyncio.gather(*[lines.call(get(f"k{number}")) for number in range(10)]) == [
        b"k%d" % number for number in range(10)
    ]


async def test_what_was_long_before_is_asked_for_beside_the_small_ones(server: Server, lines: Lines):
    """Several at once, each over a connection of its own, and asked for once; small writes do not wait either."""
    go = asyncio.Event()
    go.set()

    async def answer(server: Server, command: list[bytes], writer: asyncio.StreamWriter) -> None:
        if not command[-1].startswith(b"long"):
            await echo(server, command, writer)
            return
        writer.write(b"$%d\r\n%b" % (4 << 20, b"x" * (2 << 20)))
        await writer.drain()
        await go.wait()
        writer.write(b"x" * (2 << 20) + b"\r\n")

    server.answer = answer
    names = ["long1", "long2", "long3"]
    for name in names:
        await lines.call(get(name), again=True)
    go.clear()
    server.seen.clear()
    long = [asyncio.ensure_future(lines.call(get(name), again=True)) for name in names]
    small = [asyncio.ensure_future(lines.call(pack(("SET", f"k{number}", "v")))) for number in range(10)]
    async with asyncio.timeout(5):
        assert await asyncio.gather(*small) == [b"v"] * 10
    assert not any(task.done() for task in long)
    go.set()
    assert [len(reply) for reply in await asyncio.gather(*long)] == [4 << 20] * 3
    assert sorted(command[-1] for command in server.seen if command[0] == b"GET") == [b"long1", b"long2", b"long3"]


async def test_large_commands_go_their_own_way(server: Server, lines: Lines):
    """A small command never stands behind a large one."""
    value = b"x" * 1_000_000
    large = [asyncio.ensure_future(lines.call(pack(("SET", "large", value)))) for _ in range(5)]
    assert await lines.call(get("small")) == b"small"
    await asyncio.gather(*large)
    first = lines._lines[0]
    assert first.load == 0
    assert 1 < server.connections <= 4


# The protocol ---------------------------------------------------------------------------------------------------------

REPLIES = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
        st.binary(max_size=50).map(lambda data: b"$%d\r\n%b\r\n" % (len(data), data)),
        st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n", b"#f\r\n", b"+OK\r\n", b"+\r\n", b"-ERR no\r\n"]),
        st.sampled_from([b",1.5\r\n", b",-3\r\n", b",inf\r\n", b"=7\r\ntxt:abc\r\n", b"*0\r\n"]),
    ),
    lambda replies: (
        st.lists(replies, max_size=4).map(lambda parts: b"*%d\r\n%b" % (len(parts), b"".join(parts)))
        | st.lists(replies, min_size=1, max_size=3).map(lambda parts: b">%d\r\n%b" % (len(parts), b"".join(parts)))
    ),
    max_leaves=12,
)


def plain(reply: Any) -> Any:
    """Make replies of two readers comparable."""
    if isinstance(reply, Exception):
        return ("error", str(reply))
    if isinstance(reply, (Push, PurePush)):
        return ("push", [plain(part) for part in reply])
    return [plain(part) for part in reply] if isinstance(reply, list) else reply


@with_hiredis
@given(st.lists(REPLIES, max_size=5), st.lists(st.integers(1, 30), min_size=1))
def test_both_readers_read_the_same_wherever_the_bytes_are_cut(replies: list[bytes], cuts: list[int]):
    stream = b"".join(replies)
    pure, fast = PureReader(RuntimeError), make_reader(RuntimeError)
    found: list[list[Any]] = [[], []]
    start = 0
    while start < len(stream):
        for cut in cuts:
            for reader, into in zip((pure, fast), found, strict=True):
                reader.feed(stream[start : start + cut])
                while (reply := reader.gets()) is not INCOMPLETE:
                    into.append(plain(reply))
            start += cut
    assert found[0] == found[1]
    assert len(found[0]) == len(replies)


@pytest.mark.parametrize("lie", [b"$-5\r\n", b"*-2\r\n", b"=-1\r\n", b"%-1\r\n", b"$x\r\n", b"what?\r\n"])
def test_what_is_no_reply_is_an_error(lie: bytes):
    reader = PureReader(RuntimeError)
    reader.feed(lie)
    with pytest.raises(ValueError):
        reader.gets()


ARGUMENTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.binary(), st.integers())


@with_hiredis
@given(
    st.one_of(
        st.lists(ARGUMENTS, min_size=1).map(tuple),
        st.tuples(st.just("GET"), ARGUMENTS),
        st.tuples(st.just("SET"), ARGUMENTS, ARGUMENTS, st.sampled_from(["PX", "NX", "XX"]), ARGUMENTS),
    )
)
def test_all_writers_write_the_same(command: tuple[str | bytes | int, ...]):
    assert pure_pack(command) == pack(command)


def test_without_hiredis_there_is_a_reader_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resp, "hiredis", None)
    assert isinstance(make_reader(ValueError), PureReader)


@given(st.binary(), st.binary(), st.none() | st.integers(1, 10**15))
def test_what_is_packed_by_hand_is_what_the_packer_makes(key: bytes, data: bytes, ms: int | None):
    assert pack_get(key) == pack(("GET", key))
    assert pack_set(key, data, ms) == pack(("SET", key, data) if ms is None else ("SET", key, data, "PX", ms))
