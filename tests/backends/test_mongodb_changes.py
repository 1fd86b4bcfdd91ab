"""`MongoDBBackend.track` over a replica set: who changes what, what hides a change, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from acache import BackendError, BackendRefused, BackendTimeout, BackendUnavailable, Cache, Memory, Policy
from acache.backends import Track
from acache.backends.mongodb import MongoDBBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from pymongo.collection import Collection

    from tests.services import PrivateMongoDB

# What is cancelled while pymongo connects leaves its socket to the garbage collector, which closes it and warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*_SelectorTransport.__del__:pytest.PytestUnraisableExceptionWarning"),
]

LOST: Final = "(lost)"
PATIENCE: Final = 30.0


@dataclass
class Heard:
    """A listener that takes notes."""

    log: list[str] = field(default_factory=list)

    def changed(self, keys: Sequence[str] | None) -> None:
        self.log += ["(any)"] if keys is None else keys

    def lost(self) -> None:
        self.log.append(LOST)

    async def until(self, word: str) -> None:
        """Wait for a key, or a loss."""
        async with asyncio.timeout(PATIENCE):
            while word not in self.log:
                await asyncio.sleep(0.002)


def replicated(server: PrivateMongoDB, **options: Any) -> PrivateMongoDB:
    """Make a replica set of one member of a server."""
    with pymongo.MongoClient(server.url, directConnection=True, **options) as client:
        members = [{"_id": 0, "host": f"127.0.0.1:{server.port}"}]
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
    wait_for_primary(server, **options)
    return server


def wait_for_primary(server: PrivateMongoDB, **options: Any) -> None:
    with pymongo.MongoClient(server.url, directConnection=True, **options) as client:
        end = time.monotonic() + PATIENCE
        while not client.admin.command("hello")["isWritablePrimary"]:
            assert time.monotonic() < end
            time.sleep(0.02)


async def checked(tracking: Any, prefixes: Sequence[str]) -> None:
    """Check again and again until that succeeds, as a channel does."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with asyncio.timeout(3):
                    return await tracking.check(prefixes)
            except (BackendError, TimeoutError):
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def replica_set(module_mongodb: Callable[..., PrivateMongoDB]) -> PrivateMongoDB:
    return replicated(module_mongodb("--replSet", "rs0"))


@pytest.fixture
def database(replica_set: PrivateMongoDB) -> Iterator[str]:
    """Return the name of a database of the test's own."""
    name = f"acache_{uuid.uuid4().hex}"
    yield name
    gc.collect()
    with pymongo.MongoClient(replica_set.url) as client:
        client.drop_database(name)


@pytest.fixture
def raw(replica_set: PrivateMongoDB, database: str) -> Iterator[Collection[Any]]:
    """Return the collection as another program sees it."""
    with pymongo.MongoClient(replica_set.url) as client:
        yield client[database]["acache"]


@pytest.fixture(params=["pymongo", "motor"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., MongoDBBackend]]:
    """Return what makes a backend over a server; it is closed in the end."""
    made: list[MongoDBBackend] = []

    def build(server: PrivateMongoDB | str, database: str = "d", options: str = "") -> MongoDBBackend:
        url = server if isinstance(server, str) else server.url
        where = f"{url}{database}?client={request.param}{options}"
        made.append(MongoDBBackend.from_url(where, timeout=5, connect_timeout=5))
        return made[-1]

    yield build
    for backend in made:
        await backend.aclose()


@pytest.fixture
async def track(make: Callable[..., MongoDBBackend]) -> AsyncIterator[Callable[..., Any]]:
    """Return what makes a tracking; it is closed in the end."""
    made: list[Any] = []

    def build(listener: Heard, *place: Any, **options: Any) -> Any:
        made.append(make(*place, **options).track(listener))
        return made[-1]

    yield build
    for tracking in made:
        await tracking.backend.aclose()


# Who changes it ------------------------------------------------------------------------------------------------------

Change = "Callable[[MongoDBBackend, Collection[Any]], Awaitable[object]]"


async def over_large(backend: MongoDBBackend, _: Collection[Any]) -> None:
    await backend.store("p:k", [b"x" * 2_500_000], ttl=60)


async def raw_insert(_: MongoDBBackend, raw: Collection[Any]) -> None:
    raw.delete_one({"_id": "p:k"})
    raw.insert_one({"_id": "p:k", "token": b"12345678", "data": b"raw"})


async def raw_update(_: MongoDBBackend, raw: Collection[Any]) -> None:
    raw.update_one({"_id": "p:k"}, {"$set": {"data": b"raw", "token": b"12345678"}})


async def raw_replace(_: MongoDBBackend, raw: Collection[Any]) -> None:
    raw.replace_one({"_id": "p:k"}, {"token": b"12345678", "data": b"raw"})


async def raw_delete(_: MongoDBBackend, raw: Collection[Any]) -> None:
    raw.delete_one({"_id": "p:k"})


async def raw_transaction(_: MongoDBBackend, raw: Collection[Any]) -> None:
    with raw.database.client.start_session() as session, session.start_transaction():
        raw.update_one({"_id": "p:k"}, {"$set": {"data": b"raw"}}, session=session)
        raw.insert_one({"_id": "another"}, session=session)


async def expiry(_: MongoDBBackend, raw: Collection[Any]) -> None:
    """By the server's own index, which the first write has made."""
    raw.update_one({"_id": "p:k"}, {"$set": {"expires": datetime(2020, 1, 1, tzinfo=UTC)}})
    async with asyncio.timeout(PATIENCE):
        while raw.find_one({"_id": "p:k"}) is not None:
            await asyncio.sleep(0.05)


async def set_if(backend: MongoDBBackend, _: Collection[Any]) -> None:
    version = (await backend.get_versioned("p:k"))[1]
    assert await backend.set_if("p:k", b"new", version, ttl=60)


CHANGES: Final[dict[str, Any]] = {
    "set": lambda backend, _: backend.set("p:k", b"new", ttl=60),
    "set the same": lambda backend, _: backend.set("p:k", b"old", ttl=60),
    "set_many": lambda backend, _: backend.set_many({"p:k": b"new", "other": b"new"}, ttl=60),
    "delete": lambda backend, _: backend.delete("p:k"),
    "delete_many": lambda backend, _: backend.delete_many(["p:k", "other"]),
    "incr": lambda backend, _: backend.incr("p:n", 1, ttl=60),
    "touch": lambda backend, _: backend.touch("p:k", ttl=1000),
    "set_if": set_if,
    "swap": lambda backend, _: backend.swap("p:k", b"new", ttl=60),
    "clear": lambda backend, _: backend.clear("p:"),
    "large body": over_large,
    "raw insert": raw_insert,
    "raw update": raw_update,
    "raw replace": raw_replace,
    "raw delete": raw_delete,
    "raw transaction": raw_transaction,
    "expiry": expiry,
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_by_anybody_has_been_told_when_a_check_returns(
    make: Callable[..., Any],
    track: Callable[..., Any],
    replica_set: PrivateMongoDB,
    database: str,
    raw: Collection[Any],
    change: str,
):
    """Its key, and no key of another prefix."""
    writer, heard = make(replica_set, database), Heard()
    await writer.set_many({"p:k": b"old", "p:unchanged": b"old", "other": b"old"}, ttl=60)
    await writer.set("p:n", b"1", ttl=60)
    raw.database["elsewhere"].insert_one({})  # the last write before it was opened may be told
    tracking = track(heard, replica_set, database)
    await checked(tracking, ["p:"])
    heard.log.clear()
    await CHANGES[change](writer, raw)
    await tracking.check(["p:"])
    key = "p:n" if change == "incr" else "p:k"
    if change == "clear":
        assert set(heard.log) == {"p:k", "p:unchanged", "p:n"}
    else:
        assert set(heard.log) == {key}


@pytest.mark.parametrize("large", [True, False])
async def test_an_add_is_told_and_one_that_finds_an_entry_is_not(
    make: Callable[..., Any], track: Callable[..., Any], replica_set: PrivateMongoDB, database: str, large: bool
):
    """Also of what was a large body before, whose chunks are nobody's keys."""
    writer, heard = make(replica_set, database), Heard()
    tracking = track(heard, replica_set, database)
    await tracking.check([""])
    if large:
        await writer.store("k", [b"x" * 2_500_000], ttl=60)
    else:
        assert await writer.add("k", b"x", ttl=60)
    assert not await writer.add("k", b"y", ttl=60)
    await tracking.check([""])
    assert heard.log == ["k"]


@pytest.mark.parametrize("ending", ["drop", "drop database", "rename away", "rename onto"])
async def test_the_end_of_the_collection_is_a_loss_and_the_next_check_tells_again(
    make: Callable[..., Any],
    track: Callable[..., Any],
    replica_set: PrivateMongoDB,
    database: str,
    raw: Collection[Any],
    ending: str,
):
    """Whatever became of it, and though nothing was written since."""
    writer, heard = make(replica_set, database), Heard()
    await writer.set("k", b"v", ttl=60)
    raw.database["elsewhere"].insert_one({"_id": "k"})
    tracking = track(heard, replica_set, database)
    await tracking.check(["k"])
    match ending:
        case "drop":
            raw.drop()
        case "drop database":
            raw.database.client.drop_database(database)
        case "rename away":
            raw.rename("moved")
        case _:
            raw.database["elsewhere"].rename("acache", dropTarget=True)
    await heard.until(LOST)
    heard.log.clear()
    await tracking.check(["k"])
    await tracking.check(["k"])
    assert heard.log == []
    await writer.set("k", b"w", ttl=60)
    await tracking.check(["k"])
    assert "k" in heard.log


async def test_changes_are_told_in_the_order_in_which_they_were_made(
    make: Callable[..., Any],
    track: Callable[..., Any],
    replica_set: PrivateMongoDB,
    database: str,
    raw: Collection[Any],
):
    """By several writers, within a reply and over several."""
    writers, heard = [make(replica_set, database) for _ in range(3)], Heard()
    tracking = track(heard, replica_set, database)
    await tracking.check(["k"])
    chance, made = random.Random(6), []
    for number in range(60):
        key = f"k{chance.randrange(5)}"
        made.append(key)
        await writers[number % 3].set(key, b"%d!" % number, ttl=60)
    many = [f"k{number}" for number in range(3500)]
    raw.insert_many([{"_id": f"{key}!"} for key in many])
    await tracking.check(["k"])
    assert heard.log == made + [f"{key}!" for key in many]


@pytest.mark.parametrize("prefix", ["a.*", "$where", "é", "a\U0010ffff", "\ud7ff", "x\x00", "quote'\"\\", "k" * 1000])
async def test_a_prefix_is_taken_by_the_letter(
    make: Callable[..., Any], track: Callable[..., Any], replica_set: PrivateMongoDB, database: str, prefix: str
):
    """And keys next to those that begin with it are not told."""
    writer, heard = make(replica_set, database), Heard()
    tracking = track(heard, replica_set, database)
    await tracking.check([prefix])
    others = ["a1", "b", "$", "e", "f", "ê", "a", "a\U0010fffe", "\ud7fe", "\ue000", "x", "x\x01", "k" * 999 + "l"]
    await writer.set_many(dict.fromkeys(others, b"v"), ttl=60)
    await writer.set(prefix, b"v", ttl=60)
    await writer.set(f"{prefix}z", b"v", ttl=60)
    await tracking.check([prefix])
    assert heard.log == [prefix, f"{prefix}z"]


async def test_prefixes_may_be_added_and_nothing_is_lost_by_it(
    make: Callable[..., Any], track: Callable[..., Any], replica_set: PrivateMongoDB, database: str
):
    """While others write."""
    writer, heard, written = make(replica_set, database), Heard(), []
    tracking = track(heard, replica_set, database)
    await tracking.check(["a"])
    ended = asyncio.Event()

    async def write() -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            written.append(f"a{number}")
            await writer.set(written[-1], b"v", ttl=60)

    writing = asyncio.create_task(write())
    prefixes = ["a"]
    for letter in "bcdef":
        prefixes.append(letter)
        await tracking.check(prefixes)
        await writer.set(f"{letter}1", b"v", ttl=60)
        written.append(f"{letter}1")
    ended.set()
    await writing
    await tracking.check(["a"])
    assert set(heard.log) >= set(written)
    assert LOST not in heard.log


async def test_what_others_write_elsewhere_delays_no_check(
    make: Callable[..., Any],
    track: Callable[..., Any],
    replica_set: PrivateMongoDB,
    database: str,
    raw: Collection[Any],
):
    """In another collection of the same server, all the time."""
    writer, heard = make(replica_set, database), Heard()
    tracking = track(heard, replica_set, database)
    await tracking.check(["k"])
    ended = asyncio.Event()

    async def make_noise() -> None:
        for number in itertools.count():
            if ended.is_set():
                return
            await asyncio.to_thread(raw.database["noise"].insert_one, {"_id": f"k{number}"})

    noise = asyncio.create_task(make_noise())
    for number in range(5):
        await writer.set(f"k!{number}", b"v", ttl=60)
        async with asyncio.timeout(PATIENCE):
            await tracking.check(["k"])
        assert heard.log[-1:] == [f"k!{number}"]
    ended.set()
    await noise
    assert len(heard.log) == 5


async def test_a_listener_that_raises_hears_of_the_next_change(
    make: Callable[..., Any], track: Callable[..., Any], replica_set: PrivateMongoDB, database: str, caplog: Any
):
    """And it is logged."""

    class Fussy(Heard):
        def changed(self, keys: Sequence[str] | None) -> None:
            super().changed(keys)
            raise ValueError(keys)

    writer, heard = make(replica_set, database), Fussy()
    tracking = track(heard, replica_set, database)
    await tracking.check(["k"])
    for key in ("k1", "k2"):
        await writer.set(key, b"v", ttl=60)
        await tracking.check(["k"])
    assert heard.log == ["k1", "k2"]
    assert "a listener raised" in caplog.text


async def test_a_listener_that_nobody_holds_ends_its_stream(
    make: Callable[..., Any], replica_set: PrivateMongoDB, database: str
):
    """The tracking keeps it not alive."""
    heard = Heard()
    tracking = make(replica_set, database).track(heard)
    await tracking.check(["k"])
    assert streams()
    del heard
    gc.collect()
    async with asyncio.timeout(PATIENCE):
        while streams():
            await asyncio.sleep(0.01)
    await tracking.backend.aclose()


# What hides changes --------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_killed_server_is_a_loss_and_tells_again_when_it_is_back(
    private_mongodb: Callable[..., PrivateMongoDB], make: Callable[..., Any], track: Callable[..., Any]
):
    """What was changed in between, the loss came before."""
    server = replicated(private_mongodb("--replSet", "rs0"))
    heard = Heard()
    tracking = track(heard, server)
    await tracking.check(["k"])
    server.kill()
    with pytest.raises((BackendUnavailable, BackendTimeout)):
        await tracking.check(["k"])
    server.restart()
    wait_for_primary(server)
    with pymongo.MongoClient(server.url) as client:
        client["d"]["acache"].insert_one({"_id": "k-meanwhile"})
    await checked(tracking, ["k"])
    assert LOST in heard.log
    heard.log.clear()
    writer = make(server)
    await writer.set("k", b"v", ttl=60)
    await tracking.check(["k"])
    assert "k" in heard.log


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_new_term_is_a_loss_for_it_may_have_undone_what_was_seen(
    private_mongodb: Callable[..., PrivateMongoDB], make: Callable[..., Any], track: Callable[..., Any]
):
    """The server itself stays."""
    server = replicated(private_mongodb("--replSet", "rs0"))
    heard = Heard()
    tracking = track(heard, server)
    await tracking.check(["k"])
    with pymongo.MongoClient(server.url, directConnection=True) as client:
        client.admin.command("replSetStepDown", 2, secondaryCatchUpPeriodSecs=0, force=True)
    wait_for_primary(server)
    await checked(tracking, ["k"])
    assert LOST in heard.log
    heard.log.clear()
    await make(server).set("k", b"v", ttl=60)
    await checked(tracking, ["k"])
    assert "k" in heard.log


@pytest.mark.need("faults", engine="MongoDB")
async def test_no_check_returns_while_the_server_stands_still(
    private_mongodb: Callable[..., PrivateMongoDB], track: Callable[..., Any]
):
    """And none after it has missed a change."""
    server = replicated(private_mongodb("--replSet", "rs0"))
    heard = Heard()
    tracking = track(heard, server)
    await tracking.check(["k"])
    server.pause()
    with pytest.raises((BackendError, TimeoutError)):
        async with asyncio.timeout(10):
            await tracking.check(["k"])
    server.resume()
    wait_for_primary(server)
    with pymongo.MongoClient(server.url) as client:
        client["d"]["acache"].insert_one({"_id": "k"})
    await checked(tracking, ["k"])
    assert {"k", LOST} & set(heard.log)


@dataclass
class Proxy:
    """Passes bytes on, and hangs up when told to."""

    port: int
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    own: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self.writers += [writer, back]

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.transport.abort()

        await asyncio.gather(copy(reader, back), copy(there, writer))

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@pytest.mark.need("faults", engine="MongoDB")
async def test_a_connection_that_is_cut_hides_no_change(
    make: Callable[..., Any], track: Callable[..., Any], replica_set: PrivateMongoDB, database: str
):
    """Again and again under load: each change is told, or a loss is in its place."""
    proxy = Proxy(replica_set.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.own = server.sockets[0].getsockname()[1]
    writer, heard = make(replica_set, database), Heard()
    tracking = track(heard, f"mongodb://127.0.0.1:{proxy.own}/", database, "&directConnection=true")
    resumed = 0
    for number in range(12):
        await checked(tracking, ["k"])
        heard.log.clear()
        cutting = asyncio.get_running_loop().call_later(random.Random(number).random() * 0.05, proxy.cut)
        keys = [f"k{number}-{index}" for index in range(10)]
        for key in keys:
            await writer.set(key, b"v", ttl=60)
        while not cutting.cancelled() and cutting.when() > asyncio.get_running_loop().time():
            await asyncio.sleep(0.005)
        await checked(tracking, ["k"])
        assert LOST in heard.log or set(heard.log) >= set(keys)
        resumed += LOST not in heard.log
    assert resumed  # it goes on where it was when the server has only to be asked again
    await tracking.backend.aclose()
    server.close()
    proxy.cut()


# Where nobody tells --------------------------------------------------------------------------------------------------


async def test_a_server_alone_refuses(track: Callable[..., Any], mongodb_url: str):
    """At each check, with what it would take."""
    tracking = track(Heard(), mongodb_url)
    for _ in range(2):
        with pytest.raises(BackendRefused, match="replica set"):
            await tracking.check(["k"])
    assert not streams()


async def test_reads_from_secondaries_refuse(track: Callable[..., Any], replica_set: PrivateMongoDB):
    """They may bring what is older than what was told."""
    tracking = track(Heard(), replica_set, options="&readPreference=secondaryPreferred")
    with pytest.raises(BackendRefused, match="primary"):
        await tracking.check(["k"])


async def test_a_cache_over_a_server_alone_trusts_near_copies_for_a_few_seconds(
    make: Callable[..., Any], mongodb_url: str
):
    """It works as it would without, and says so."""
    name = f"acache_{uuid.uuid4().hex}"
    async with Cache(make(mongodb_url, name), memory=Memory(), policy=Policy(backend_timeout=20)) as cache:
        await cache.set("k", 1)
        assert await cache.get("k") == 1
        assert cache.stats().coherence is None
        assert cache.peek("k") == 1
    async with Cache(make(mongodb_url, name), memory=Memory(), coherence="tracking") as cache:
        with pytest.raises(BackendRefused, match="replica set"):
            await cache.get("k")
    with pymongo.MongoClient(mongodb_url) as client:
        client.drop_database(name)


@pytest.mark.need("faults", engine="MongoDB")
async def test_the_role_of_the_manual_tells_and_one_without_change_streams_refuses(
    private_mongodb: Callable[..., PrivateMongoDB], track: Callable[..., Any], tmp_path: Path
):
    """`find` and `changeStream` on the collection."""
    secret = tmp_path / "key"
    secret.write_text("c2VjcmV0c2VjcmV0")
    secret.chmod(0o600)
    server = replicated(private_mongodb("--replSet", "rs0", "--auth", "--keyFile", str(secret)))
    with pymongo.MongoClient(server.url, directConnection=True) as client:
        client.admin.command("createUser", "root", pwd="right", roles=["root"])
    with pymongo.MongoClient(server.url, username="root", password="right") as client:
        for name, actions in {"teller": ["find", "changeStream"], "other": ["find"]}.items():
            privilege = {"resource": {"db": "d", "collection": "acache"}, "actions": actions}
            client["d"].command("createRole", name, privileges=[privilege], roles=[])
            client["d"].command("createUser", name, pwd="right", roles=[name])
        heard = Heard()
        tracking = track(heard, server.url.replace("//", "//teller:right@"))
        await tracking.check(["k"])
        client["d"]["acache"].insert_one({"_id": "k"})
        await tracking.check(["k"])
        assert heard.log == ["k"]
        with pytest.raises(BackendRefused):
            await track(heard, server.url.replace("//", "//other:right@")).check(["k"])
        with pytest.raises(BackendRefused):
            await track(heard, server.url.replace("//", "//teller:wrong@")).check(["k"])


# What is left --------------------------------------------------------------------------------------------------------


def streams() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "acache change stream"]


def left(raw: Collection[Any], name: str) -> list[Any]:
    """Return what the server has open for an application, or over the collection."""
    everything = [{"$currentOp": {"allUsers": True, "idleConnections": True, "idleCursors": True}}]
    found = raw.database.client.admin.aggregate(everything)
    return [
        operation
        for operation in found
        if operation.get("appName") == name
        or (operation["type"] == "idleCursor" and operation["ns"] == f"{raw.database.name}.acache")
    ]


async def nothing_left(raw: Collection[Any], name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while left(raw, name):
            await asyncio.sleep(0.05)


async def test_closing_leaves_no_task_no_cursor_and_no_connection(
    make: Callable[..., Any], replica_set: PrivateMongoDB, database: str, raw: Collection[Any]
):
    """Neither here nor at the server; what was asked to track is closed as well."""
    name = uuid.uuid4().hex
    heard = Heard()
    backend = make(replica_set, database, f"&appname={name}")
    await backend.get("k")
    assert isinstance(backend, Track)
    tracking = backend.track(heard)
    await tracking.check(["k"])
    await tracking.check(["k", "l"])
    assert left(raw, name)
    await tracking.backend.aclose()
    assert not streams()
    await nothing_left(raw, name)


async def test_checks_that_are_cancelled_leave_nothing_and_the_next_one_tells(
    make: Callable[..., Any], replica_set: PrivateMongoDB, database: str, raw: Collection[Any]
):
    """Wherever they were."""
    name, chance, writer = uuid.uuid4().hex, random.Random(7), make(replica_set, database)
    for number in range(25):
        heard = Heard()
        tracking = make(replica_set, database, f"&appname={name}").track(heard)
        for prefixes in (["k"], ["k", "l"]):
            checking = asyncio.create_task(tracking.check(prefixes))
            await asyncio.sleep(chance.random() * 0.02)
            checking.cancel()
            await asyncio.wait([checking])
        if number % 5 == 0:
            await tracking.check(["k"])
            heard.log.clear()
            await writer.set("k", b"v", ttl=60)
            await tracking.check(["k"])
            assert "k" in heard.log
        await tracking.backend.aclose()
        assert not streams()
    await nothing_left(raw, name)


@pytest.mark.parametrize("client", ["pymongo", "motor"])
def test_a_second_event_loop_is_told_too(replica_set: PrivateMongoDB, database: str, raw: Collection[Any], client: str):
    """After a loss, with a client of its own; whether the first loop was left in good order or not."""
    heard = Heard()
    tracking = MongoDBBackend.from_url(f"{replica_set.url}{database}?client={client}").track(heard)

    async def hear(key: str, *, close: bool) -> None:
        await tracking.check(["k"])
        raw.insert_one({"_id": key})
        await tracking.check(["k"])
        assert heard.log[-1] == key
        if close:
            await tracking.backend.aclose()

    asyncio.run(hear("k1", close=True))
    asyncio.run(hear("k2", close=False))
    asyncio.run(hear("k3", close=True))
    # The newest write before a stream was opened may be told once more.
    assert [key for key in dict.fromkeys(heard.log) if key != LOST] == ["k1", "k2", "k3"]
    assert LOST in heard.log[heard.log.index("k1") : heard.log.index("k2")]
    assert LOST in heard.log[heard.log.index("k2") : heard.log.index("k3")]


@pytest.mark.parametrize("client", [pymongo.AsyncMongoClient, AsyncIOMotorClient])
async def test_a_client_of_the_application_tells_and_stays_open(
    replica_set: PrivateMongoDB, database: str, raw: Collection[Any], client: Any
):
    """Whose timeouts are what they are: also one that is shorter than the stream would wait."""
    mine: Any = client(replica_set.url, socketTimeoutMS=150, timeoutMS=100)
    heard = Heard()
    tracking = MongoDBBackend(mine, database=database).track(heard)
    await checked(tracking, ["k"])
    heard.log.clear()
    for number in range(3):
        raw.insert_one({"_id": f"k{number}"})
        await checked(tracking, ["k"])
    assert [key for key in dict.fromkeys(heard.log) if key != LOST] == ["k0", "k1", "k2"]
    await tracking.backend.aclose()
    assert not streams()
    assert await mine[database]["acache"].find_one({"_id": "k0"})
    if (closing := mine.close()) is not None:
        await closing


# Two caches ----------------------------------------------------------------------------------------------------------


async def test_what_one_cache_writes_no_other_answers_with_the_old_value_of(
    make: Callable[..., Any], replica_set: PrivateMongoDB, database: str
):
    """From the moment it was told, which is soon after it was written."""
    patient = Policy(backend_timeout=20)
    one = Cache(make(replica_set, database), memory=Memory(), namespace="n", policy=patient)
    two = Cache(make(replica_set, database), memory=Memory(), namespace="n", policy=patient)
    async with one, two:
        for number in range(20):
            await one.set("k", number)
            async with asyncio.timeout(PATIENCE):
                while two.peek("k") != number:  # told, then read
                    await asyncio.sleep(0.001)
                    await two.get("k")
            await two.set("k", -number)
            async with asyncio.timeout(PATIENCE):
                while await one.get("k") != -number:
                    await asyncio.sleep(0.001)
        assert one.stats().coherence == two.stats().coherence == "tracking"
        assert two.stats().invalidations_received >= 20


@pytest.mark.parametrize("change", ["invalidate_tags", "clear", "delete"])
async def test_what_another_cache_invalidates_is_near_no_more(
    make: Callable[..., Any], replica_set: PrivateMongoDB, database: str, change: str
):
    """By its tag, with its whole namespace, or by its key."""
    patient = Policy(backend_timeout=20)
    reader = Cache(make(replica_set, database), memory=Memory(), namespace="n", policy=patient)
    other = Cache(make(replica_set, database), memory=Memory(), namespace="n", policy=patient)
    async with reader, other:
        await other.set("k", "old", ttl=3600, tags=["t"])
        async with asyncio.timeout(PATIENCE):
            while reader.peek("k") != "old":
                assert await reader.get("k") == "old"
                await asyncio.sleep(0.001)
        await getattr(other, change)(*{"invalidate_tags": ["t"], "delete": ["k"], "clear": []}[change])
        async with asyncio.timeout(PATIENCE):
            while reader.peek("k") is not None:
                await asyncio.sleep(0.001)
        assert await reader.get("k") is None
        assert reader.stats().coherence == "tracking"


def test_an_event_loop_that_ends_leaves_no_task_behind(replica_set: PrivateMongoDB, database: str):
    """asyncio.run cancels what is there; nothing begins anew because of that."""
    script = f"""
import asyncio
from acache import Cache
from acache.backends.mongodb import MongoDBBackend

cache = Cache(MongoDBBackend.from_url({f"{replica_set.url}{database}"!r}), namespace="n")


async def use(number):
    await cache.set("k", number)
    assert await cache.get("k") == number
    while cache.stats().coherence != "tracking":
        await asyncio.sleep(0.01)


for number in range(3):
    asyncio.run(use(number))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    for word in ("was destroyed", "never awaited", "Traceback"):
        assert word not in ended.stderr, ended.stderr
