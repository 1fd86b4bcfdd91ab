"""Large bodies in MongoDB: in chunks, whole or not at all, and gone without a trace."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from acache import BackendError, BackendUnavailable, DecodeError, ValueTooLarge
from acache.backends import Stream
from acache.backends.mongodb import MongoDBBackend
from acache.entry import HEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from pymongo.collection import Collection

    from tests.services import PrivateMongoDB

CLIENTS = {"pymongo": pymongo.AsyncMongoClient, "motor": AsyncIOMotorClient}
MIB = 1024 * 1024
LIMIT = MongoDBBackend.value_limit


@pytest.fixture
def collection(mongodb_url: str) -> Iterator[Collection[Any]]:
    """Return a collection of the test's own, to look at."""
    with pymongo.MongoClient(mongodb_url) as client:
        database = client[f"acache_{uuid.uuid4().hex}"]
        yield database["streams"]
        client.drop_database(database)


@pytest.fixture(params=CLIENTS)
async def backend(
    request: pytest.FixtureRequest, mongodb_url: str, collection: Collection[Any]
) -> AsyncIterator[MongoDBBackend]:
    """Return a backend over that collection."""
    client: Any = CLIENTS[request.param](mongodb_url)
    yield MongoDBBackend(client, database=collection.database.name, collection=collection.name)
    if (closing := client.close()) is not None:
        await closing


def body(size: int, seed: int = 0) -> bytes:
    """Return bytes of which no two chunks are alike."""
    return b"".join(b"%08x" % (number * 7 + seed) for number in range(size // 8 + 1))[:size]


def cut(data: bytes, size: int) -> list[bytes]:
    """Return the data in pieces."""
    return [data[start : start + size] for start in range(0, len(data), size)]


async def read(backend: MongoDBBackend, key: str) -> bytes | None:
    """Return what a reader gets, put together."""
    async with backend.open(key) as chunks:
        return None if chunks is None else b"".join([chunk async for chunk in chunks])


def chunks_left(collection: Collection[Any]) -> int:
    """Return how many documents lie under no key."""
    return collection.count_documents({"_id": {"$not": {"$type": "string"}}})


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 5])
async def test_a_body_comes_back_however_it_came(backend: MongoDBBackend, size: int):
    """In one piece, in many, from a plain iterator or an asynchronous one."""
    assert isinstance(backend, Stream)
    data = body(size)

    async def slowly() -> AsyncIterator[bytes]:
        for piece in cut(data, 300_001):
            await asyncio.sleep(0)
            yield piece

    for source in ([data], cut(data, 70_000), [b"", data, b""], slowly()):
        await backend.store("k", source, ttl=60)
        assert await read(backend, "k") == data
        assert await backend.get("k") == data
        assert await backend.get_many(["k", "none"]) == {"k": data}
        assert (await backend.get_versioned("k"))[0] == data


async def test_a_body_of_one_chunk_is_a_plain_entry(backend: MongoDBBackend, collection: Collection[Any]):
    """Digits are a counter, as if they had been set."""
    await backend.store("k", [b"4", b"1"], ttl=60)
    assert await backend.incr("k", 1, ttl=60) == 42
    await backend.store("k", [body(MIB)], ttl=60)
    assert collection.count_documents({}) == 1
    assert await read(backend, "k") == body(MIB)
    assert await read(backend, "none") is None


async def test_a_reader_takes_what_was_set(backend: MongoDBBackend):
    """Also when it is more than a chunk."""
    await backend.set("k", body(3 * MIB), ttl=60)
    assert await read(backend, "k") == body(3 * MIB)


async def test_a_body_over_the_limit_of_a_value_can_only_be_streamed(backend: MongoDBBackend):
    """Nothing of it is fetched to find out; of many keys the others are found."""
    data = body(LIMIT + 1)
    await backend.store("k", cut(data, 2**20), ttl=60)
    await backend.set("small", b"v", ttl=60)
    for ask in (backend.get("k"), backend.get_versioned("k")):
        with pytest.raises(ValueTooLarge, match=f"{LIMIT + 1} .* {LIMIT} "):
            await ask
    with pytest.raises(ValueTooLarge) as caught:
        await backend.get_many(["k", "small"])
    assert set(caught.value.failed) == {"k"}
    assert caught.value.found == {"small": b"v"}
    assert await read(backend, "k") == data
    await backend.store("k", cut(data[:-1], 2**20), ttl=60)
    assert await backend.get("k") == data[:-1]


# One entry like any other --------------------------------------------------------------------------------------------


async def overwrite_set(backend: MongoDBBackend) -> None:
    await backend.set("k", b"new", ttl=60)


async def overwrite_many(backend: MongoDBBackend) -> None:
    await backend.set_many({"k": b"new", "l": b"v"}, ttl=60)


async def overwrite_swap(backend: MongoDBBackend) -> None:
    assert await backend.swap("k", b"new", ttl=60) == body(3 * MIB)[:HEAD_BYTES]


async def overwrite_set_if(backend: MongoDBBackend) -> None:
    _, version = await backend.get_versioned("k")
    assert await backend.set_if("k", b"new", version, ttl=60) is True


async def overwrite_store(backend: MongoDBBackend) -> None:
    await backend.store("k", [b"n", b"ew"], ttl=60)


@pytest.mark.parametrize(
    "overwrite", [overwrite_set, overwrite_many, overwrite_swap, overwrite_set_if, overwrite_store]
)
@pytest.mark.parametrize("ttl", [60, None])
async def test_what_is_overwritten_leaves_no_chunks(
    backend: MongoDBBackend, collection: Collection[Any], overwrite: Callable[[MongoDBBackend], Any], ttl: float | None
):
    """By whatever writes."""
    await backend.store("k", [body(3 * MIB)], ttl=ttl)
    assert chunks_left(collection) == 3
    await overwrite(backend)
    assert await backend.get("k") == b"new"
    assert chunks_left(collection) == 0


async def test_a_body_over_a_body_leaves_the_new_one(backend: MongoDBBackend, collection: Collection[Any]):
    """A shorter one, too."""
    for size in (4, 2, 3):
        await backend.store("k", [body(size * MIB, size)], ttl=None)
        assert await backend.get("k") == body(size * MIB, size)
        assert chunks_left(collection) == size


async def test_removal_takes_the_chunks_along(backend: MongoDBBackend, collection: Collection[Any]):
    """One key, many, or all under a prefix; each counts as one."""
    for key in ("a", "b:1", "b:2", "c:1", "d"):
        await backend.store(key, [body(2 * MIB)], ttl=None)
    await backend.set_many({"b:3": b"v", "c:2": b"v"}, ttl=None)
    assert await backend.delete("a") is True
    assert await backend.delete("a") is False
    assert chunks_left(collection) == 8
    assert await backend.delete_many(["b:1", "b:2", "b:3", "a"]) == 3
    assert chunks_left(collection) == 4
    await backend.clear("c:")
    assert await backend.get("d") == body(2 * MIB)
    assert [key async for key in backend.scan("")] == ["d"]
    assert chunks_left(collection) == 2
    await backend.clear("")
    assert collection.count_documents({}) == 0


async def test_add_and_incr_and_set_if_respect_a_body(backend: MongoDBBackend, collection: Collection[Any]):
    """It is there, it is no counter, and its version is its own."""
    await backend.store("k", [body(2 * MIB)], ttl=60)
    _, old = await backend.get_versioned("k")
    await backend.store("k", [body(2 * MIB, 1)], ttl=60)
    assert await backend.add("k", b"v", ttl=60) is False
    assert await backend.set_if("k", b"v", old, ttl=60) is False
    assert await backend.set_if("k", b"v", None, ttl=60) is False
    with pytest.raises(DecodeError):
        await backend.incr("k", 1, ttl=60)
    assert await backend.get("k") == body(2 * MIB, 1)
    assert chunks_left(collection) == 2


async def test_touch_moves_the_deadline_of_every_chunk(backend: MongoDBBackend, collection: Collection[Any]):
    """Later, earlier, for ever and back; manifest and chunks have the same."""
    await backend.store("k", [body(3 * MIB)], ttl=60)
    for ttl in (600.0, 30.0, None, None, 90.0):
        assert await backend.touch("k", ttl=ttl) is True
        left = await backend.ttl("k")
        assert left is ttl is None or ttl - 10 < left <= ttl  # type: ignore[operator]
        assert len({document.get("expires") for document in collection.find({}, {"expires": 1})}) == 1
    assert await backend.get("k") == body(3 * MIB)


async def test_touches_at_once_leave_one_deadline(backend: MongoDBBackend, collection: Collection[Any]):
    """Whoever comes last, no chunk ends before its manifest, and none stays."""
    await backend.store("k", [body(3 * MIB)], ttl=60)
    for _ in range(10):
        ttls = [None, 600.0, 60.0, 6000.0, None, 61.0]
        assert all(await asyncio.gather(*[backend.touch("k", ttl=ttl) for ttl in ttls]))
        assert len({document.get("expires") for document in collection.find({}, {"expires": 1})}) == 1


async def test_a_body_ends_with_all_its_chunks(backend: MongoDBBackend, collection: Collection[Any]):
    """At its ttl it is not seen any more, and the server removes manifest and chunks."""
    await backend.store("k", [body(2 * MIB)], ttl=0.3)
    await backend.store("stays", [body(2 * MIB)], ttl=None)
    async with asyncio.timeout(20):
        while await backend.get("k") is not None:
            await asyncio.sleep(0.05)
        assert await read(backend, "k") is None
        while collection.count_documents({}) > 3:
            await asyncio.sleep(0.1)
    assert await backend.get("stays") == body(2 * MIB)


# Whole or not at all -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["set", "delete", "store"])
async def test_a_reader_gets_the_rest_or_an_error_but_never_a_mix(
    backend: MongoDBBackend, collection: Collection[Any], change: str
):
    """The entry is replaced or removed after its first chunk was read."""
    old = body(4 * MIB)
    await backend.store("k", [old], ttl=60)
    got = b""
    with pytest.raises(BackendUnavailable):
        async with backend.open("k") as chunks:
            assert chunks is not None
            async for chunk in chunks:
                got += chunk
                if len(got) == MIB:
                    match change:
                        case "set":
                            await backend.set("k", b"new", ttl=60)
                        case "delete":
                            await backend.delete("k")
                        case _:
                            await backend.store("k", [body(4 * MIB, 1)], ttl=60)
    assert got == old[: len(got)]


async def test_readers_and_writers_at_once_see_whole_bodies(backend: MongoDBBackend, collection: Collection[Any]):
    """Every get returns one of the bodies, and in the end the chunks of one are there."""
    bodies = [body((2 + seed % 3) * MIB, seed) for seed in range(4)]
    await backend.store("k", [bodies[0]], ttl=60)
    done = asyncio.Event()

    async def write(data: bytes) -> None:
        for _ in range(5):
            await backend.store("k", cut(data, 500_000), ttl=60)

    async def get() -> int:
        count = 0
        while not done.is_set():
            assert await backend.get("k") in bodies
            count += 1
        return count

    readers = [asyncio.create_task(get()) for _ in range(3)]
    await asyncio.gather(*[write(data) for data in bodies])
    done.set()
    assert all(await asyncio.gather(*readers))
    last = await backend.get("k")
    assert last in bodies
    assert chunks_left(collection) == len(last or b"") // MIB


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_an_error_in_the_chunks_leaves_what_was_there(
    backend: MongoDBBackend, collection: Collection[Any], after: int
):
    """The error comes out as it is; nothing of the new body is left."""
    await backend.store("k", [body(2 * MIB)], ttl=60)

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(after):
            yield body(MIB, 5)
        msg = "the source broke"
        raise LookupError(msg)

    with pytest.raises(LookupError, match="the source broke"):
        await backend.store("k", broken(), ttl=60)
    assert await backend.get("k") == body(2 * MIB)
    assert chunks_left(collection) == 2


async def test_a_cancelled_store_leaves_one_of_both_bodies_and_no_leftovers(
    backend: MongoDBBackend, collection: Collection[Any]
):
    """Wherever it was stopped."""
    old, new = body(2 * MIB), body(3 * MIB, 1)
    for turns in range(40):
        await backend.store("k", [old], ttl=None)
        task = asyncio.create_task(backend.store("k", cut(new, 400_000), ttl=None))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        seen = await backend.get("k")
        assert seen in (old, new)
        if task.cancelled() and turns < 2:
            assert seen == old
        assert chunks_left(collection) == len(seen or b"") // MIB


async def test_a_cancelled_overwrite_leaves_no_chunks(backend: MongoDBBackend, collection: Collection[Any]):
    """Of a body that never ends nobody else would remove them."""
    for turns in range(10):
        for overwrite in (
            backend.set("k", b"v", ttl=60),
            backend.swap("k", b"v", ttl=60),
            backend.delete("k"),
            backend.set_many({"k": b"v"}, ttl=60),
            backend.delete_many(["k"]),
        ):
            await backend.store("k", [body(2 * MIB)], ttl=None)
            task = asyncio.ensure_future(overwrite)
            await asyncio.sleep(turns / 3_000)
            task.cancel()
            await asyncio.wait([task])
            seen = await backend.get("k")
            assert chunks_left(collection) == (2 if seen and len(seen) == 2 * MIB else 0)


async def test_a_manifest_without_its_chunks_is_no_entry_and_can_be_replaced(
    backend: MongoDBBackend, collection: Collection[Any]
):
    """What a writer leaves that is killed between manifest and deadline."""
    await backend.store("k", [body(2 * MIB)], ttl=None)
    collection.delete_many({"_id": {"$not": {"$type": "string"}}})
    assert await backend.get("k") is None
    assert await read(backend, "k") is None
    assert await backend.get_many(["k"]) == {}
    data, version = await backend.get_versioned("k")
    assert data is None
    assert await backend.set_if("k", b"v", version, ttl=60) is True
    assert await backend.get("k") == b"v"


async def test_a_writer_that_dies_leaves_only_what_ends(mongodb_url: str, collection: Collection[Any]):
    """Its chunks have a deadline until the manifest is there."""
    program = (
        "import asyncio, os, sys\n"
        "from acache.backends.mongodb import MongoDBBackend\n"
        "async def chunks():\n"
        "    for _ in range(3): yield bytes(1 << 20)\n"
        "    os._exit(9)\n"
        "asyncio.run(MongoDBBackend.from_url(sys.argv[1], timeout=10).store('k', chunks(), ttl=None))\n"
    )
    url = f"{mongodb_url}{collection.database.name}?collection={collection.name}"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program, url)
    assert await child.wait() == 9
    assert collection.find_one({"_id": "k"}) is None
    assert collection.count_documents({}) > 0
    assert collection.count_documents({"expires": {"$type": "date"}}) == collection.count_documents({})


async def test_a_server_that_goes_while_a_body_is_stored_is_told(private_mongodb: Callable[..., PrivateMongoDB]):
    """In good time, and the next body is stored when it is back."""
    server = private_mongodb()
    backend = MongoDBBackend.from_url(server.url + "d", timeout=0.5)

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(6):
            if number == 3:
                server.kill()
            yield body(MIB, number)

    async with asyncio.timeout(10):
        with pytest.raises(BackendUnavailable):
            await backend.store("k", chunks(), ttl=60)
    server.restart()
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.store("k", [body(3 * MIB)], ttl=60)
                break
            except BackendError:
                await asyncio.sleep(0.05)
    assert await backend.get("k") == body(3 * MIB)
    await backend.aclose()


# Memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import asyncio, sys
import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from acache.backends.mongodb import MongoDBBackend

def status(word):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(word))

async def main(url, database, kind, size):
    client = (AsyncIOMotorClient if kind == "motor" else pymongo.AsyncMongoClient)(url)
    backend = MongoDBBackend(client, database=database)
    await backend.set("warm", b"v", ttl=60)
    assert await backend.get("warm") == b"v"
    before = status("VmRSS:")

    async def chunks():
        for number in range(size):
            yield number.to_bytes(4, "big") * 262_144

    await backend.store("k", chunks(), ttl=60)
    total = 0
    async with backend.open("k") as read:
        async for chunk in read:
            total += len(chunk)
    assert total == size << 20, total
    print(status("VmHWM:") - before)
    await backend.delete("k")
    closing = client.close()
    if closing is not None:
        await closing

asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the kernel does not tell")  # noqa: PTH110
@pytest.mark.parametrize("client", CLIENTS)
def test_a_body_passes_through_in_bounded_memory(client: str, mongodb_url: str, collection: Collection[Any]):
    """A hundred and fifty megabytes in and out in less than thirty-two more than without."""
    command = [sys.executable, "-c", MEASURE, mongodb_url, collection.database.name, client, "150"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert int(told) < 32 * 1024
