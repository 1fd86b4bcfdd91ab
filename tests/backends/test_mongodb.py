"""`MongoDBBackend` on a real server: the contract, and what it promises beyond it."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    Policy,
    ValueTooLarge,
)
from acache.backends import Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from acache.backends.mongodb import MongoDBBackend
from acache.entry import HEAD_BYTES
from acache.testing import BackendConformance
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pymongo.collection import Collection

    from tests.services import PrivateMongoDB

# What is cancelled while pymongo connects leaves its socket, and the transport over it, to the garbage collector, which
# closes it and warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*_SelectorTransport.__del__:pytest.PytestUnraisableExceptionWarning"),
]

CLIENTS = {"pymongo": pymongo.AsyncMongoClient, "motor": AsyncIOMotorClient}
LARGEST = 16 * 1024 * 1024 - 16 * 1024
BRIEF = 0.03


class Injected(MongoDBBackend):
    """A backend with a client of the test's own; the test's end is the owner's."""

    def __init__(self, client: Any, **place: str) -> None:
        super().__init__(client, **place)
        self.client = client

    async def aclose(self) -> None:
        await super().aclose()
        closing = self.client.close()
        if closing is not None:  # motor's is done at once
            await closing


@pytest.fixture(scope="module")
def database(mongodb_url: str) -> Iterator[str]:
    """Return the name of a database of this run, which goes with it."""
    name = f"acache_{uuid.uuid4().hex}"
    yield name
    gc.collect()  # no warning for other modules' tests
    with pymongo.MongoClient(mongodb_url) as client:
        client.drop_database(name)


class TestMongoDBBackend(BackendConformance):
    """A client that is built, and both that can be passed in; the server's clock ends the entries."""

    title = "MongoDB"
    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch)

    @pytest.fixture(params=["pymongo", "motor", "pymongo injected", "motor injected"])
    def backend(self, request: pytest.FixtureRequest, mongodb_url: str, database: str) -> MongoDBBackend:
        driver, _, injected = request.param.partition(" ")
        if not injected:
            return MongoDBBackend.from_url(f"{mongodb_url}{database}?client={driver}")
        return Injected(CLIENTS[driver](mongodb_url), database=database)


@pytest.mark.parametrize("driver", CLIENTS)
def test_a_machine_and_a_dictionary_say_the_same(mongodb_url: str, database: str, driver: str):
    """Whatever is done to them."""
    client = CLIENTS[driver]
    machine = backend_machine(lambda: Injected(client(mongodb_url), database=database), suite=TestMongoDBBackend)
    run_state_machine_as_test(machine, settings=settings(max_examples=5, stateful_step_count=25))


@pytest.fixture
def collection(mongodb_url: str, database: str) -> Iterator[Collection[Any]]:
    """Return a collection of the test's own, to look at and to prepare."""
    with pymongo.MongoClient(mongodb_url) as client:
        yield client[database][uuid.uuid4().hex]


@pytest.fixture
def url(mongodb_url: str, collection: Collection[Any]) -> str:
    """Return the URL of that collection."""
    return f"{mongodb_url}{collection.database.name}?collection={collection.name}"


@pytest.fixture
async def backend(url: str) -> AsyncIterator[MongoDBBackend]:
    """Return a backend over that collection."""
    made = MongoDBBackend.from_url(url, timeout=10)
    yield made
    await made.aclose()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a port of this machine on which nobody answers."""
    with socket.socket() as reserved:  # bound, and never listening
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


@pytest.fixture(params=CLIENTS)
async def other(
    request: pytest.FixtureRequest, mongodb_url: str, collection: Collection[Any]
) -> AsyncIterator[MongoDBBackend]:
    """Return a backend over that collection with a client that was passed in."""
    client: Any = CLIENTS[request.param](mongodb_url)
    made = Injected(client, database=collection.database.name, collection=collection.name)
    yield made
    await made.aclose()


# Documents -----------------------------------------------------------------------------------------------------------


async def test_a_document_is_what_the_module_says(backend: MongoDBBackend, collection: Collection[Any]):
    """Other programs can read bytes as binary, counters as integers and deadlines as dates."""
    await backend.set("bytes", bytes(range(100)), ttl=60)
    await backend.set("for ever", b"v", ttl=None)
    await backend.incr("counter", 7, ttl=None)
    found = {document.pop("_id"): document for document in collection.find()}
    assert all(len(document.pop("token")) == 8 for document in found.values())
    assert type(found["bytes"].pop("expires")) is datetime
    assert found["bytes"] == {"data": bytes(range(100)), "head": bytes(range(HEAD_BYTES))}
    assert found["for ever"] == {"data": b"v", "head": b"v"}
    assert found["counter"] == {"n": 7}
    assert [document["_id"] for document in collection.find({"n": {"$type": "long"}})] == ["counter"]


async def test_the_server_s_clock_sets_the_date(backend: MongoDBBackend, collection: Collection[Any]):
    """A date is the server's now plus the ttl, in milliseconds rounded up, and no year is too far to be shown."""
    before = collection.database.command("hello")["localTime"]
    await backend.set("k", b"v", ttl=60.0001)
    after = collection.database.command("hello")["localTime"]
    expires = collection.find_one({"_id": "k"})["expires"]  # type: ignore[index]
    assert (expires - after).total_seconds() <= 60.001 <= (expires - before).total_seconds()
    await backend.set("k", b"v", ttl=1e30)
    assert collection.find_one({"_id": "k"})["expires"].year > 5000  # type: ignore[index]
    assert await backend.get("k") == b"v"


async def test_digits_that_were_set_can_be_counted(backend: MongoDBBackend):
    """What reads as a counter is one, however it came; what does not comes back as it was."""
    await backend.set_many({"5": b"5", "-5": b"-5", "max": b"%d" % (2**63 - 1)}, ttl=60)
    assert [await backend.incr("5", 1, ttl=60), await backend.incr("-5", 6, ttl=60)] == [6, 1]
    assert await backend.incr("max", -(2**63), ttl=60) == -1
    for text in (b"05", b"-0", b"+5", b"5 ", b"5.0", b"%d" % 2**63, "\u0665".encode()):
        await backend.set("text", text, ttl=60)
        with pytest.raises(DecodeError):
            await backend.incr("text", 1, ttl=60)
        assert await backend.get("text") == text


async def test_sums_that_leave_64_bits_are_refused_at_both_ends(backend: MongoDBBackend):
    """The counter stays; a delta that no counter holds is refused, too."""
    for delta, number in ((1, 2**63 - 1), (-1, -(2**63))):
        await backend.set("n", b"%d" % number, ttl=60)
        with pytest.raises(DecodeError, match="64 bits"):
            await backend.incr("n", delta, ttl=60)
        with pytest.raises(DecodeError, match="64 bits"):
            await backend.incr("n", delta * 2**64, ttl=60)
        assert await backend.get("n") == b"%d" % number


async def test_no_text_is_an_operator(backend: MongoDBBackend, collection: Collection[Any]):
    """Keys and values that look like MongoDB's own words are stored as they are."""
    for key in ("$where", "$$ROOT", "$$REMOVE", "$token", "$_id", "a.b", ".", "\x00", "_id", '{"$gt": ""}', "$"):
        value = key.encode()
        await backend.set(key, value, ttl=60)
        assert await backend.get(key) == value
        assert await backend.swap(key, b"x" + value, ttl=60) == value
        _, version = await backend.get_versioned(key)
        assert await backend.set_if(key, value, version, ttl=60) is True
        assert await backend.add(key, b"other", ttl=60) is False
        assert await backend.get_many([key]) == {key: value}
        assert await backend.touch(key, ttl=None) is True
        with pytest.raises(DecodeError):
            await backend.incr(key, 1, ttl=60)
        await backend.set_many({key: value}, ttl=60)
        assert [found async for found in backend.scan(key)] == [key]
        assert await backend.delete(key) is True
    assert collection.count_documents({}) == 0


# Expiry --------------------------------------------------------------------------------------------------------------


async def test_the_server_removes_what_has_expired(backend: MongoDBBackend, collection: Collection[Any]):
    """The first write makes the index, and the server's own sweep uses it."""
    await backend.get("k")
    assert list(collection.list_indexes()) == []
    await backend.set("k", b"v", ttl=BRIEF)
    await backend.set("for ever", b"v", ttl=None)
    assert [index["expireAfterSeconds"] for index in collection.list_indexes() if index["name"] == "expires_1"] == [0]
    async with asyncio.timeout(10):
        while collection.count_documents({}) > 1:
            await asyncio.sleep(0.1)
    assert await backend.get("for ever") == b"v"


async def test_nothing_that_has_expired_is_seen(backend: MongoDBBackend, collection: Collection[Any]):
    """Where the server refuses the index nothing is removed, and still every operation finds the key free."""
    collection.create_index("expires", expireAfterSeconds=10**6)
    keys = ["get", "add", "incr", "swap", "set_if", "touch", "many"]
    await backend.set_many(dict.fromkeys(keys, b"old"), ttl=60)
    _, version = await backend.get_versioned("set_if")
    await backend.set_many(dict.fromkeys(keys, b"7"), ttl=BRIEF)
    await asyncio.sleep(BRIEF * 2)
    assert collection.count_documents({}) == len(keys)
    assert await backend.get("get") is None
    assert await backend.get_versioned("get") == (None, None)
    assert await backend.get_many(keys) == {}
    assert await backend.delete("get") is False
    assert await backend.delete_many(keys) == 0
    assert await backend.touch("touch", ttl=None) is False
    with pytest.raises(KeyMissing):
        await backend.ttl("touch")
    assert [key async for key in backend.scan("")] == []
    assert collection.count_documents({}) == len(keys)
    assert await backend.add("add", b"new", ttl=None) is True
    assert await backend.incr("incr", 1, ttl=None) == 1
    assert await backend.swap("swap", b"new", ttl=None) is None
    assert await backend.set_if("set_if", b"new", version, ttl=None) is True
    assert await backend.get_many(keys) == {"add": b"new", "incr": b"1", "swap": b"new", "set_if": b"new"}


# Prefixes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "a",
        "a\x00",
        "\x00",
        "a\ud7ff",
        "a\U0010ffff",
        "\U0010ffff",
        "\U0010ffff\U0010ffff",
        "$",
        ".*",
        "^a",
        "é",
        "a\x7f",
    ],
)
async def test_a_prefix_is_taken_literally(backend: MongoDBBackend, prefix: str):
    """Also at the edges of the alphabet: neighbours on both sides stay."""
    inside = [prefix, prefix + "\x00", prefix + "z", prefix + "\U0010ffff", prefix + "\ue000", prefix + "é"]
    last = ord(prefix[-1])
    stems = [chr(code) for code in (last - 1, last + 1) if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF]
    outside = [prefix[:-1] + stem + "x" for stem in stems] + [prefix.upper() + "" if prefix.upper() != prefix else "Z"]
    if prefix[:-1]:
        outside.append(prefix[:-1])
    await backend.set_many(dict.fromkeys([*inside, *outside], b"v"), ttl=60)
    assert sorted([key async for key in backend.scan(prefix)]) == sorted(inside)
    await backend.clear(prefix)
    assert sorted([key async for key in backend.scan("")]) == sorted(outside)


async def test_clear_leaves_what_is_not_its_own(backend: MongoDBBackend, collection: Collection[Any]):
    """Of a collection that others use as well, documents with other kinds of _id are not even looked at."""
    collection.insert_many([{"_id": 1}, {"_id": {"a": 1}}, {"_id": b"a"}])
    await backend.set("a", b"v", ttl=60)
    await backend.clear("")
    assert collection.count_documents({}) == 3


async def test_a_document_that_is_not_acache_s_counts_as_none(backend: MongoDBBackend, collection: Collection[Any]):
    """It is not read, it is in nobody's way, and it is told apart from one that never expires."""
    collection.insert_many([{"_id": key, "data": b"v", "n": 1} for key in ("get", "set", "add", "incr", "swap")])
    assert await backend.get_many(["get", "set"]) == {}
    assert await backend.get_versioned("get") == (None, None)
    await backend.set("set", b"mine", ttl=None)
    assert await backend.add("add", b"mine", ttl=None) is True
    assert await backend.incr("incr", 5, ttl=None) == 5
    assert await backend.swap("swap", b"mine", ttl=None) is None
    assert len([key async for key in backend.scan("")]) == 4


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"data": "text", "head": "text"},
        {"data": b"without a head"},
        {"n": "5"},
        {"n": float("nan")},
        {"n": None},
        {"chunks": "x", "length": 5},
        {"chunks": -1, "length": 5},
        {"chunks": 2.5, "length": 5},
        {"chunks": 2},
        {"chunks": 2, "length": "long"},
        {"chunks": 10**9, "length": 5},
        {"chunks": None, "length": 5},
        {"chunks": [1], "length": 5},
    ],
    ids=str,
)
async def test_a_document_of_odd_types_is_nothing_and_can_be_replaced(
    backend: MongoDBBackend, collection: Collection[Any], odd: dict[str, Any]
):
    """Whatever somebody else wrote into the fields: no operation ends in anything but an answer or a known error."""

    def spoil() -> None:
        collection.replace_one({"_id": "k"}, {"token": b"12345678", **odd}, upsert=True)

    spoil()
    assert await backend.get("k") in (None, b"without a head")
    assert await backend.get_many(["k"]) in ({}, {"k": b"without a head"})
    assert await backend.swap("k", b"mine", ttl=60) is None
    assert await backend.get("k") == b"mine"
    spoil()
    _, version = await backend.get_versioned("k")
    assert await backend.set_if("k", b"mine", version, ttl=60) is True
    assert await backend.get("k") == b"mine"
    spoil()
    async with backend.open("k") as chunks:
        assert chunks is None or [chunk async for chunk in chunks] == [b"without a head"]
    assert await backend.touch("k", ttl=60) is True
    with pytest.raises(DecodeError):
        await backend.incr("k", 1, ttl=60)
    await backend.set("k", b"mine", ttl=60)
    assert await backend.get("k") == b"mine"
    spoil()
    await backend.set_many({"k": b"mine"}, ttl=60)
    assert await backend.get("k") == b"mine"
    for remove in (backend.delete("k"), backend.delete_many(["k"]), backend.clear("k")):
        spoil()
        await remove
        assert collection.count_documents({"_id": "k"}) == 0


# Limits --------------------------------------------------------------------------------------------------------------


async def test_the_largest_value_fits_under_the_longest_key(backend: MongoDBBackend):
    """By every way to write it."""
    key, data = "k" * backend.key_limits.max_bytes, b"x" * LARGEST
    await backend.set(key, data, ttl=60)
    assert await backend.swap(key, data, ttl=60) == data[:HEAD_BYTES]
    _, version = await backend.get_versioned(key)
    assert await backend.set_if(key, data, version, ttl=60) is True
    assert await backend.delete(key) is True
    assert await backend.add(key, data, ttl=60) is True
    await backend.set_many(dict.fromkeys([key, "2", "3", "4"], data), ttl=60)  # more than one message can hold
    assert await backend.get_many([key, "4"]) == {key: data, "4": data}


async def test_a_larger_value_is_refused_before_anything_is_sent(closed_port: int):
    """The error tells both sizes, and needs no server."""
    backend = MongoDBBackend.from_url(f"mongodb://127.0.0.1:{closed_port}/d")
    data = b"x" * (LARGEST + 1)
    for write in (
        lambda: backend.set("k", data, ttl=1),
        lambda: backend.add("k", data, ttl=1),
        lambda: backend.swap("k", data, ttl=1),
        lambda: backend.set_if("k", data, b"12345678", ttl=1),
        lambda: backend.set_many({"k": data}, ttl=1),
    ):
        with pytest.raises(ValueTooLarge, match=f"{LARGEST + 1} .* {LARGEST} "):
            await write()


# Clients -------------------------------------------------------------------------------------------------------------


async def test_two_drivers_share_a_collection(backend: MongoDBBackend, other: MongoDBBackend):
    """What one writes the other reads, counts, compares and removes."""
    await backend.set("k", b"v", ttl=60)
    data, version = await other.get_versioned("k")
    assert data == b"v"
    assert await backend.set_if("k", b"w", version, ttl=60) is True
    assert await other.set_if("k", b"x", version, ttl=60) is False
    counts = [one.incr("n", 1, ttl=60) for one in (backend, other) for _ in range(50)]
    assert sorted(await asyncio.gather(*counts)) == list(range(1, 101))
    adds = [one.add("a", b"v", ttl=60) for one in (backend, other) for _ in range(25)]
    assert (await asyncio.gather(*adds)).count(True) == 1
    assert await other.delete("k") is True
    assert await backend.get("k") is None


async def test_bulk_writes_over_each_other_all_succeed(backend: MongoDBBackend, other: MongoDBBackend):
    """Two that make the same new documents at the same moment do not fail for it."""
    items = {str(number): b"v" for number in range(200)}
    await asyncio.gather(*[one.set_many(items, ttl=60) for one in (backend, other) for _ in range(10)])
    assert await backend.get_many(list(items)) == items


async def test_a_load_does_not_undo_the_delete_of_another_cache(backend: MongoDBBackend, other: MongoDBBackend):
    """Two caches, two drivers: the fill compares with what it saw, and a delete leaves a tombstone."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await gate.wait()
        return "stale"

    patient = Policy(backend_timeout=20)
    loading = Cache(backend, memory=None, namespace="n", policy=patient)
    deleting = Cache(other, memory=None, namespace="n", policy=patient)
    async with loading, deleting:
        task = asyncio.create_task(loading.get_or_load("k", load, ttl=60))
        await begun.wait()
        await deleting.delete("k")
        gate.set()
        assert await task == "stale"
        assert await deleting.get("k") is None
        assert await loading.get_or_load("k", lambda: asyncio.sleep(0, "fresh"), ttl=60) == "fresh"
        assert await deleting.get("k") == "fresh"
        assert await deleting.incr("n", 2) == 2
        await deleting.clear()
        assert await loading.get_many(["k", "n"]) == {}


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_s_own_types_do_not_matter(client: str, mongodb_url: str, collection: Collection[Any]):
    """A client that reads documents in another form serves as well."""
    options: Any = {"document_class": RawBSONDocument, "tz_aware": True}
    place = {"database": collection.database.name, "collection": collection.name}
    backend = Injected(CLIENTS[client](mongodb_url, **options), **place)
    assert collection.codec_options == CodecOptions()
    await backend.set("k", b"v", ttl=60)
    assert await backend.get_versioned("k") != (None, None)
    assert await backend.incr("n", 1, ttl=60) == 1
    assert await backend.get_many(["k", "n"]) == {"k": b"v", "n": b"1"}
    await backend.aclose()


@pytest.mark.parametrize("client", CLIENTS)
async def test_an_injected_client_stays_open(client: str, mongodb_url: str, collection: Collection[Any]):
    """It is its owner's to close; nothing but its own options sets its deadlines."""
    mine: Any = CLIENTS[client](mongodb_url)
    backend = MongoDBBackend(mine, database=collection.database.name, collection=collection.name)
    await backend.set("k", b"v", ttl=60)
    await backend.aclose()
    await backend.aclose()
    assert (await mine[collection.database.name][collection.name].find_one())["data"] == b"v"
    assert await backend.get("k") == b"v"
    if (closing := mine.close()) is not None:
        await closing


@pytest.mark.parametrize("client", CLIENTS)
def test_an_injected_client_belongs_to_one_loop(client: str, mongodb_url: str, collection: Collection[Any]):
    """In a second one the error says what to do."""
    mine: Any = CLIENTS[client](mongodb_url)
    backend = Injected(mine, database=collection.database.name, collection=collection.name)

    async def use() -> None:
        await backend.get("k")

    async def use_and_close() -> None:
        await backend.get("k")
        await backend.aclose()

    asyncio.run(use_and_close())
    with pytest.raises(BackendUnavailable, match="from_url"):
        asyncio.run(use())


def test_a_built_client_is_built_anew_for_each_loop(url: str):
    """Also after aclose, and without a warning about anything unclosed."""
    backend = MongoDBBackend.from_url(url)

    async def count() -> int:
        try:
            return await backend.incr("n", 1, ttl=60)
        finally:
            await backend.aclose()

    assert [asyncio.run(count()) for _ in range(3)] == [1, 2, 3]


async def test_cancelled_writes_leave_the_client_in_step(backend: MongoDBBackend, other: MongoDBBackend):
    """Wherever they were stopped, the next answers are right."""
    for one in (backend, other):
        await one.set("n", b"0", ttl=60)
        for turns in range(30):
            tasks = [asyncio.ensure_future(one.incr("cancelled", 1, ttl=60)) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert await one.incr("n", 1, ttl=60) == turns + 1


def test_a_client_that_cannot_serve_is_refused():
    """A synchronous one, one that asks for no answers, and what is no client at all."""
    with pymongo.MongoClient("mongodb://localhost", connect=False) as client:
        for wrong in (client, "mongodb://localhost", None):
            with pytest.raises(ConfigurationError, match="AsyncMongoClient"):
                MongoDBBackend(wrong, database="d")  # type: ignore[arg-type]
    for kind in CLIENTS.values():
        mine: Any = kind("mongodb://localhost", w=0)
        with pytest.raises(ConfigurationError, match="w=0"):
            MongoDBBackend(mine, database="d")
        for place in ({"database": "a.b"}, {"database": ""}, {"database": "d", "collection": "$"}):
            with pytest.raises(ConfigurationError, match="cannot open"):
                MongoDBBackend(kind("mongodb://localhost"), **place)  # type: ignore[arg-type]


# URLs ----------------------------------------------------------------------------------------------------------------


def test_the_url_names_database_and_collection():
    """The collection has a name of its own unless the URL gives one; nothing is looked up yet."""
    for url, place in {
        "mongodb://localhost/d": "d.acache",
        "mongodb://a:1,b:2/d?collection=c": "d.c",
        "mongodb://user:hunter2@localhost/d?replicaSet=r&collection=a%20b&authSource=admin": "d.a b",
        "mongodb+srv://cluster.invalid/d?collection=c": "d.c",
        "MongoDB://localhost/d": "d.acache",
    }.items():
        assert repr(MongoDBBackend.from_url(url)) == f"<MongoDBBackend {place}>"
        assert isinstance(Cache.from_url(url), Cache)


@pytest.mark.parametrize(
    "rest",
    [
        "localhost",
        "localhost/",
        "localhost:port/d",
        "localhost/d?no_such_option=1",
        "localhost/d?w=0",
        "/d",
        "localhost/a.b",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_at_once(rest: str):
    """Without repeating its password."""
    with pytest.raises(ConfigurationError) as caught:
        MongoDBBackend.from_url(f"mongodb://user:hunter2@{rest}")
    assert "hunter2" not in str(caught.value)


# Faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_server_that_is_not_there_is_told_within_the_deadline(closed_port: int):
    """Reading and writing alike."""
    backend = MongoDBBackend.from_url(f"mongodb://127.0.0.1:{closed_port}/d", timeout=0.3)
    begun = time.monotonic()
    for call in (lambda: backend.get("k"), lambda: backend.set("k", b"v", ttl=1)):
        with pytest.raises(BackendUnavailable) as caught:
            await call()
        assert caught.value.__cause__ is not None
    await backend.aclose()
    assert time.monotonic() - begun < 1.5


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_killed_server_is_unavailable_until_it_is_back(private_mongodb: Callable[..., PrivateMongoDB]):
    """One backend sees it all; nobody restarts the application."""
    server = private_mongodb()
    backend = MongoDBBackend.from_url(server.url + "d", timeout=0.3)
    await backend.set("k", b"v", ttl=None)
    server.kill()
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await backend.get("k")
    server.restart()
    async with asyncio.timeout(10):
        while True:
            try:
                assert await backend.get("k") in (b"v", None)  # a crash may lose what was not yet on the disk
                break
            except BackendUnavailable:
                await asyncio.sleep(0.05)
    assert await backend.incr("n", 1, ttl=60) == 1
    await backend.aclose()


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_paused_server_costs_a_deadline_and_answers_in_step_again(
    private_mongodb: Callable[..., PrivateMongoDB],
):
    """Replies that come late reach nobody else."""
    server = private_mongodb()
    backend = MongoDBBackend.from_url(server.url + "d", timeout=0.3)
    keys = [str(number) for number in range(20)]
    await backend.set_many({key: b"v" + key.encode() for key in keys}, ttl=60)
    server.pause()
    try:
        begun = time.monotonic()
        results = await asyncio.gather(*[backend.get(key) for key in keys], return_exceptions=True)
        assert time.monotonic() - begun < 1.5
        assert all(isinstance(result, (BackendTimeout, BackendUnavailable)) for result in results)
        assert any(isinstance(result, BackendTimeout) for result in results)
    finally:
        server.resume()
    async with asyncio.timeout(10):
        while True:
            try:
                for key in keys:
                    assert await backend.get(key) == b"v" + key.encode()
                break
            except BackendError:
                await asyncio.sleep(0.05)
    await backend.aclose()


@pytest.mark.need("faults", engine="MongoDB")
async def test_closing_waits_for_no_dead_server(private_mongodb: Callable[..., PrivateMongoDB]):
    """Paused or gone: an application can end."""
    server = private_mongodb()
    for stop in (server.pause, server.kill):
        backend = MongoDBBackend.from_url(server.url + "d", connect_timeout=0.3, timeout=0.3)
        await backend.set("k", b"v", ttl=60)
        stop()
        begun = time.monotonic()
        await backend.aclose()
        assert time.monotonic() - begun < 1.5
        server.resume()


@pytest.mark.need("faults", engine="MongoDB")
async def test_what_the_server_forbids_is_refused(private_mongodb: Callable[..., PrivateMongoDB]):
    """A wrong password, and a user who may not write; who may do all but make the index needs no more."""
    server = private_mongodb("--auth")
    actions = ["find", "insert", "update", "remove"]
    with pymongo.MongoClient(server.url) as client:  # from this machine the first user needs no password
        client.admin.command("createUser", "root", pwd="right", roles=["root"])
    with pymongo.MongoClient(server.url, username="root", password="right") as client:
        privilege = {"resource": {"db": "d", "collection": "acache"}, "actions": actions}
        client["d"].command("createRole", "cacher", privileges=[privilege], roles=[])
        client["d"].command("createUser", "cache", pwd="right", roles=["cacher"])
        client["d"].command("createUser", "reader", pwd="right", roles=["read"])

    def backend(name: str, password: str) -> MongoDBBackend:
        return MongoDBBackend.from_url(server.url.replace("//", f"//{name}:{password}@") + "d")

    wrong, reader, cache = backend("cache", "hunter2"), backend("reader", "right"), backend("cache", "right")
    with pytest.raises(BackendRefused) as caught:
        await wrong.get("k")
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert "hunter2" not in f"{caught.value}{wrong!r}"
    assert await reader.get("k") is None
    await cache.set("k", b"v", ttl=60)
    assert await reader.get("k") == b"v"
    for write in (
        reader.set("k", b"v", ttl=1), reader.set_many({"k": b"v"}, ttl=1), reader.delete("k"), reader.clear(""),
        reader.add("k", b"v", ttl=1), reader.incr("k", 1, ttl=1), reader.touch("k", ttl=1),
    ):  # fmt: skip
        with pytest.raises(BackendRefused):
            await write
    await cache.set_many({"l": b"v"}, ttl=60)
    assert await cache.incr("n", 1, ttl=60) == 1
    assert await cache.swap("k", b"w", ttl=60) == b"v"
    await cache.clear("")
    assert await cache.get_many(["k", "l", "n"]) == {}
    for one in (wrong, reader, cache):
        await one.aclose()


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_replica_that_only_reads_refuses_writes(private_mongodb: Callable[..., PrivateMongoDB]):
    """And is read."""
    server = private_mongodb("--replSet", "rs0")
    with pymongo.MongoClient(server.url, directConnection=True) as client:
        members = [{"_id": 0, "host": f"127.0.0.1:{server.port}"}]
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        async with asyncio.timeout(20):
            while not client.admin.command("hello")["isWritablePrimary"]:
                await asyncio.sleep(0.05)
        backend = MongoDBBackend.from_url(server.url + "d?directConnection=true&readPreference=secondaryPreferred")
        await backend.set("k", b"v", ttl=60)
        client.admin.command("replSetStepDown", 60, secondaryCatchUpPeriodSecs=0, force=True)
    async with asyncio.timeout(10):
        while True:
            try:
                assert await backend.get("k") == b"v"
                break
            except BackendUnavailable:
                await asyncio.sleep(0.05)
    with pytest.raises((BackendRefused, BackendUnavailable)) as caught:
        await backend.set("k", b"w", ttl=60)
    assert type(caught.value) is BackendRefused
    await backend.aclose()


def test_an_unknown_client_is_refused():
    """By its name, before anything is built."""
    with pytest.raises(ConfigurationError, match="client=mongoose"):
        MongoDBBackend.from_url("mongodb://localhost/d?client=mongoose")


async def test_numbers_that_make_no_sense_break_nothing(backend: MongoDBBackend):
    """A delta that is no whole number counts nothing, and an infinite ttl is a very long one."""
    with pytest.raises(TypeError):
        await backend.incr("k", 1.5, ttl=60)  # pyright: ignore[reportArgumentType]
    assert await backend.get("k") is None
    await backend.set("k", b"v", ttl=float("inf"))
    assert await backend.touch("k", ttl=float("inf")) is True
    assert (await backend.ttl("k") or 0) > 10**9
