"""`MongoDBBackend` when things go wrong: bad keys, broken servers, cancelled callers, with either client."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    InvalidKey,
    ValueTooLarge,
)
from acache.backends.mongodb import MongoDBBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.services import PrivateMongoDB

# What is cancelled while pymongo connects leaves its socket to the garbage collector, which closes it and warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*_SelectorTransport.__del__:pytest.PytestUnraisableExceptionWarning"),
]

CLIENTS = {"pymongo": pymongo.AsyncMongoClient, "motor": AsyncIOMotorClient}
DEADLINE = 0.5
SOON = 3.0
"""Seconds: a deadline or two, and what a busy machine adds; the drivers' own defaults are 20 and more."""
LIMIT = MongoDBBackend.value_limit


@pytest.fixture(params=CLIENTS)
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., MongoDBBackend]]:
    """Return what makes a backend over a server, with deadlines as `from_url` sets them."""
    clients: list[Any] = []

    def build(url: str, database: str = "d", *, deadline: float = DEADLINE, **options: Any) -> MongoDBBackend:
        milliseconds = int(deadline * 1000)
        times = ("timeoutMS", "connectTimeoutMS", "serverSelectionTimeoutMS", "socketTimeoutMS")
        client: Any = CLIENTS[request.param](url, **dict.fromkeys(times, milliseconds), **options)
        clients.append(client)
        return MongoDBBackend(client, database=database)

    yield build
    for client in clients:
        if (closing := client.close()) is not None:
            await closing


@pytest.fixture
def database(mongodb_url: str) -> Iterator[str]:
    """Return the name of a database of the test's own."""
    name = f"acache_{uuid.uuid4().hex}"
    yield name
    with pymongo.MongoClient(mongodb_url) as client:
        client.drop_database(name)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port of this machine on which nobody answers."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@asynccontextmanager
async def listening(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    """Serve on a port until the end, and leave no connection behind."""
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving[task] = writer
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in serving.values():
            writer.transport.abort()
        if serving:
            await asyncio.wait(serving, timeout=5)


def operations(backend: MongoDBBackend) -> dict[str, Callable[[], Any]]:
    """Return one call of each kind."""

    async def opened() -> None:
        async with backend.open("k"):
            pass

    async def scanned() -> None:
        async for _ in backend.scan("k"):
            pass

    return {
        "get": lambda: backend.get("k"),
        "set": lambda: backend.set("k", b"v", ttl=60),
        "delete": lambda: backend.delete("k"),
        "get_many": lambda: backend.get_many(["k", "l"]),
        "set_many": lambda: backend.set_many({"k": b"v", "l": b"v"}, ttl=60),
        "delete_many": lambda: backend.delete_many(["k", "l"]),
        "add": lambda: backend.add("k", b"v", ttl=60),
        "incr": lambda: backend.incr("n", 1, ttl=60),
        "touch": lambda: backend.touch("k", ttl=60),
        "ttl": lambda: backend.ttl("k"),
        "clear": lambda: backend.clear("k"),
        "scan": scanned,
        "get_versioned": lambda: backend.get_versioned("k"),
        "set_if": lambda: backend.set_if("k", b"v", None, ttl=60),
        "swap": lambda: backend.swap("k", b"v", ttl=60),
        "open": opened,
        "store": lambda: backend.store("k", [b"v" * 3_000_000], ttl=60),
    }


async def fails(call: Callable[[], Any], *kinds: type[BackendError]) -> BackendError:
    """Return the error of a call, which must come soon and be of one of these kinds."""
    begun = time.monotonic()
    with pytest.raises(BackendError) as caught:
        await call()
    assert time.monotonic() - begun < SOON
    assert type(caught.value) in kinds
    assert caught.value.__cause__ is not None
    return caught.value


async def recovered(call: Callable[[], Any]) -> Any:
    """Return the answer of a call when the server is there again."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await call()
            except BackendError:
                await asyncio.sleep(0.05)


# Keys ----------------------------------------------------------------------------------------------------------------

BAD_KEYS = ["", "\ud800", "a\udfff", "x" * 1025, "é" * 513, b"k", 1, None, {"$gt": ""}, ["k"], ("k",)]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: repr(key)[:12])
async def test_what_is_no_key_is_refused_by_every_operation(make: Callable[..., Any], closed_port: int, key: Any):
    """Before anything is sent: there is no server here."""
    backend = make(f"mongodb://127.0.0.1:{closed_port}/")

    async def opened() -> None:
        async with backend.open(key):
            pass

    calls = [
        lambda: backend.get(key),
        lambda: backend.set(key, b"v", ttl=60),
        lambda: backend.delete(key),
        lambda: backend.get_many(["good", key]),
        lambda: backend.delete_many(["good", key]),
        lambda: backend.add(key, b"v", ttl=60),
        lambda: backend.incr(key, 1, ttl=60),
        lambda: backend.touch(key, ttl=60),
        lambda: backend.ttl(key),
        lambda: backend.get_versioned(key),
        lambda: backend.set_if(key, b"v", None, ttl=60),
        lambda: backend.swap(key, b"v", ttl=60),
        lambda: backend.store(key, [b"v"], ttl=60),
        opened,
    ]
    if isinstance(key, (str, bytes, int, tuple)) or key is None:  # what a mapping can hold
        calls.append(lambda: backend.set_many({"good": b"v", key: b"v"}, ttl=60))
    for call in calls:
        with pytest.raises(InvalidKey):
            await call()


# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_batch_tells_which_keys_failed_and_does_the_others(
    make: Callable[..., Any], mongodb_url: str, database: str
):
    """The server refuses some documents by a rule of the collection's own."""
    with pymongo.MongoClient(mongodb_url) as client:
        client[database].create_collection("acache", validator={"_id": {"$not": {"$regex": "^bad"}}})
    backend = make(mongodb_url, database, deadline=10)
    items = {f"{'bad' if number % 1000 == 7 else 'good'}{number}": b"%d!" % number for number in range(2500)}
    bad = {key for key in items if key.startswith("bad")}
    with pytest.raises(BackendError) as caught:
        await backend.set_many(items, ttl=60)
    assert set(caught.value.failed) == bad
    assert len(bad) == 3
    assert all(isinstance(error, BackendError) and error.__cause__ for error in caught.value.failed.values())
    assert await backend.get_many(list(items)) == {key: data for key, data in items.items() if key not in bad}


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_server_that_dies_in_a_batch_fails_the_keys_it_did_not_answer(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """All of them, in one deadline or so and not one for each thousand keys."""
    server = private_mongodb()
    backend = make(server.url)
    await backend.set("k", b"v", ttl=60)
    server.pause()
    keys = [str(number) for number in range(20_000)]
    for call in (
        lambda: backend.get_many(keys),
        lambda: backend.set_many(dict.fromkeys(keys, b"v"), ttl=60),
        lambda: backend.delete_many(keys),
    ):
        error = await fails(call, BackendTimeout, BackendUnavailable)
        assert set(error.failed) == set(keys)
        assert error.found == {}
    server.resume()
    assert await recovered(lambda: backend.get_many(["k", "0"])) is not None


@pytest.mark.need("faults", engine="MongoDB")
async def test_what_was_found_before_the_server_died_is_told(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """A proxy passes the first answers on and then none."""
    server = private_mongodb()
    direct = make(server.url, deadline=10)
    items = {f"{number:05}": b"%d!" % number for number in range(3000)}
    await direct.set_many(items, ttl=60)
    finds = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal finds
        there, back = await asyncio.open_connection("127.0.0.1", server.port)

        async def answers() -> None:
            while data := await there.read(65536):
                writer.write(data)

        task = asyncio.create_task(answers())
        try:
            while True:
                head = await reader.readexactly(4)
                message = head + await reader.readexactly(int.from_bytes(head, "little") - 4)
                finds += b"\x02find\x00" in message
                if finds > 2:  # the third one and all that follow: cut off
                    return
                back.write(message)
        finally:
            task.cancel()
            back.transport.abort()

    async with listening(serve) as port:
        backend = make(f"mongodb://127.0.0.1:{port}/?directConnection=true&retryReads=false", deadline=2)
        keys = sorted(items)
        with pytest.raises(BackendUnavailable) as caught:
            await backend.get_many(keys)
        assert caught.value.found == {key: items[key] for key in keys[:2000]}
        assert list(caught.value.failed) == keys[2000:]


# Servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_refused_connection_is_unavailable(make: Callable[..., Any], closed_port: int):
    """Whatever is asked."""
    backend = make(f"mongodb://127.0.0.1:{closed_port}/", deadline=0.05)
    for call in operations(backend).values():
        await fails(call, BackendUnavailable)


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_connection_that_is_reset_is_unavailable(make: Callable[..., Any]):
    """By a server that hangs up as soon as it is asked."""

    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(16)

    async with listening(hang_up) as port:
        backend = make(f"mongodb://127.0.0.1:{port}/")
        for name in ("get", "set", "get_many", "store"):
            await fails(operations(backend)[name], BackendUnavailable)


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_paused_server_costs_a_deadline(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """Every operation, and it answers in step when it goes on."""
    server = private_mongodb()
    backend = make(server.url)
    await backend.set_many({str(number): b"%d!" % number for number in range(20)}, ttl=60)
    server.pause()
    await asyncio.gather(*[fails(call, BackendTimeout, BackendUnavailable) for call in operations(backend).values()])
    server.resume()
    await recovered(lambda: backend.get("1"))
    assert [await backend.get(str(number)) for number in range(20)] == [b"%d!" % number for number in range(20)]


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_restarted_server_is_found_again(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """By the same backend."""
    server = private_mongodb()
    backend = make(server.url)
    await backend.set("k", b"v", ttl=60)
    server.kill()
    await fails(lambda: backend.get("k"), BackendUnavailable)
    server.restart()
    await recovered(lambda: backend.set("k", b"w", ttl=60))
    assert await backend.get("k") == b"w"


@pytest.mark.need("faults", engine="MongoDB")
async def test_exactly_the_role_of_the_manual_will_do(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """Every operation works with it, and each is refused to who has none, or another password."""
    server = private_mongodb("--auth")
    with pymongo.MongoClient(server.url) as client:  # from this machine the first user needs no password
        client.admin.command("createUser", "root", pwd="right", roles=["root"])
    with pymongo.MongoClient(server.url, username="root", password="right") as client:
        privilege = {
            "resource": {"db": "d", "collection": "acache"},
            "actions": ["find", "insert", "update", "remove", "createIndex"],
        }
        client["d"].command("createRole", "acache", privileges=[privilege], roles=[])
        client["d"].command("createUser", "cache", pwd="right", roles=["acache"])
        client["d"].command("createUser", "nobody", pwd="right", roles=[])

    def user(name: str, password: str) -> dict[str, Callable[[], Any]]:
        return operations(make(server.url, deadline=1, username=name, password=password, authSource="d"))

    for name, call in user("cache", "right").items():
        if name == "ttl":
            await user("cache", "right")["set"]()
        await call()
    with pymongo.MongoClient(server.url, username="root", password="right") as client:
        assert "expires_1" in client["d"]["acache"].index_information()
    for name, call in user("nobody", "right").items():
        print(name)  # shown where it fails
        await fails(call, BackendRefused)
    for name in ("get", "set", "get_many", "set_many", "store"):
        await fails(user("cache", "wrong")[name], BackendRefused)


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_primary_that_steps_down_refuses_writes_until_it_is_back(
    make: Callable[..., Any], private_mongodb: Callable[..., PrivateMongoDB]
):
    """A replica set of one; nobody restarts the application."""
    server = private_mongodb("--replSet", "rs0")
    with pymongo.MongoClient(server.url, directConnection=True) as client:
        members = [{"_id": 0, "host": f"127.0.0.1:{server.port}"}]
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        async with asyncio.timeout(30):
            while not client.admin.command("hello")["isWritablePrimary"]:
                await asyncio.sleep(0.05)
        backend = make(server.url, directConnection=True)
        await backend.store("k", [b"v" * 3_000_000], ttl=60)
        client.admin.command("replSetStepDown", 3, secondaryCatchUpPeriodSecs=0, force=True)
        calls = operations(backend)
        for name in ("set", "set_many", "swap", "touch", "store"):
            await fails(calls[name], BackendRefused, BackendUnavailable)
        await recovered(calls["set"])
    assert await backend.get("k") == b"v"


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_value_that_only_the_server_finds_too_large_is_told(
    make: Callable[..., Any], mongodb_url: str, database: str, monkeypatch: pytest.MonkeyPatch
):
    """Were the limit ever too high: the server's own refusal means the same."""
    monkeypatch.setattr("acache.backends.mongodb._LARGEST", LIMIT * 2)
    backend = make(mongodb_url, database, deadline=10)
    await fails(lambda: backend.set("k", b"v" * (LIMIT + 20_000), ttl=60), ValueTooLarge)
    assert await backend.get("k") is None


# Cancellation --------------------------------------------------------------------------------------------------------


async def test_every_answer_is_the_question_s_after_five_hundred_cancellations(
    make: Callable[..., Any], mongodb_url: str, database: str
):
    """Stopped at random while others ask: no answer belongs to another key."""
    backend = make(mongodb_url, database, deadline=10)
    keys = [f"k{number}" for number in range(50)]
    for key in keys:
        await backend.set(key, key.encode() + b"!", ttl=600)
    chance, cancelled, answers = random.Random(3), 0, 0

    async def ask(key: str) -> None:
        nonlocal answers
        match chance.randrange(4):
            case 0:
                assert await backend.get(key) == key.encode() + b"!"
            case 1:
                await backend.set(key, key.encode() + b"!", ttl=600)
            case 2:
                assert await backend.swap(key, key.encode() + b"!", ttl=600) == key.encode() + b"!"
            case _:
                some = chance.sample(keys, 3)
                assert await backend.get_many(some) == {one: one.encode() + b"!" for one in some}
        answers += 1

    async with asyncio.timeout(60):
        while cancelled < 500:
            tasks = [asyncio.create_task(ask(chance.choice(keys))) for _ in range(30)]
            await asyncio.sleep(chance.random() * 0.02)
            for task in chance.sample(tasks, 15):
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                cancelled += isinstance(result, asyncio.CancelledError)
                assert result is None or isinstance(result, asyncio.CancelledError)
    assert answers > 200
    assert await backend.get_many(keys) == {key: key.encode() + b"!" for key in keys}


@pytest.mark.parametrize("client", ["pymongo", "motor"])
def test_a_process_ends_although_its_server_stands_still(private_mongodb: Callable[..., PrivateMongoDB], client: str):
    """Closed with calls under way, whose tasks the end of the event loop cancels."""
    script = """
        import asyncio, sys
        from acache import Cache

        async def main():
            cache = Cache.from_url(sys.argv[1], namespace="n", memory=None)
            await asyncio.gather(*[cache.set(f"k{number}", number) for number in range(20)])
            print("ready", flush=True)
            sys.stdin.readline()
            calls = [asyncio.create_task(cache.set(f"k{number}", number)) for number in range(60)]
            await asyncio.sleep(0.1)
            await cache.aclose()
            print("closed", flush=True)

        asyncio.run(main())
    """
    server = private_mongodb()
    command = [sys.executable, "-c", textwrap.dedent(script), f"{server.url}d?client={client}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            server.pause()
            out, _ = process.communicate("go\n", timeout=60)
            assert (out, process.returncode) == ("closed\n", 0)
        finally:
            process.kill()
            server.resume()
