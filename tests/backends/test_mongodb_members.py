"""Coherence over a replica set of three: its primary dies, falls silent, or stands alone; and one's own writes."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pymongo
import pytest

from acache import BackendError, BackendRefused, Cache, Memory, Policy
from acache.backends.mongodb import MongoDBBackend
from acache.coherence.channel import TRUST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.services import PrivateMongoDB

# What is cancelled while pymongo connects leaves its socket to the garbage collector, which closes it and warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*_SelectorTransport.__del__:pytest.PytestUnraisableExceptionWarning"),
]

MISS: Final = "(a miss)"
PATIENCE: Final = 60.0
ELECTION: Final = 1000
"""Milliseconds without a primary, or without a majority, until somebody stands for election, or steps down."""
PRIMARY, SECONDARY = 1, 2


@dataclass
class Members:
    """A replica set, and its servers one by one."""

    servers: list[PrivateMongoDB]

    @property
    def url(self) -> str:
        return f"mongodb://{','.join(f'127.0.0.1:{server.port}' for server in self.servers)}/"

    def initiate(self) -> None:
        members = [{"_id": number, "host": f"127.0.0.1:{server.port}"} for number, server in enumerate(self.servers)]
        settings = {"electionTimeoutMillis": ELECTION, "heartbeatIntervalMillis": 200}
        ask(self.servers[0], "replSetInitiate", {"_id": "rs0", "members": members, "settings": settings})

    async def primary(self, *others: PrivateMongoDB) -> PrivateMongoDB:
        """Wait for a primary among all, or among these."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for server in others or self.servers:
                    with suppress(pymongo.errors.PyMongoError):
                        if (await asyncio.to_thread(ask, server, "hello"))["isWritablePrimary"]:
                            return server
                await asyncio.sleep(0.02)

    def besides(self, *those: PrivateMongoDB) -> list[PrivateMongoDB]:
        return [server for server in self.servers if server not in those]

    async def stepped_down(self, server: PrivateMongoDB) -> float:
        """Wait until one is the primary no more, and return an instant at which that had come true."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(pymongo.errors.AutoReconnect):  # it hangs up on those who know it as the primary
                    if not (await asyncio.to_thread(ask, server, "hello"))["isWritablePrimary"]:
                        return time.monotonic()
                await asyncio.sleep(0.02)

    async def replace(self, primary: PrivateMongoDB) -> None:
        """Have another primary than one that is silent, or dead.

        The others start anew.  Whoever reads the oplog of a server that falls silent may take half a minute to turn to
        another one; and what a dead primary has sent them, but did not see confirmed, they could still read.
        """
        for server in self.besides(primary):
            await asyncio.to_thread(server.kill)
        await asyncio.gather(*(asyncio.to_thread(server.restart) for server in self.besides(primary)))
        await self.elect(*self.besides(primary))

    async def elect(self, *servers: PrivateMongoDB) -> None:
        """Make one of these the primary."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for server in servers:
                    with suppress(pymongo.errors.PyMongoError):
                        await asyncio.to_thread(ask, server, "replSetStepUp")
                        return
                await asyncio.sleep(0.05)

    async def patience(self, milliseconds: int) -> None:
        """Have them wait longer, or shorter, before they hold an election."""
        primary = await self.primary()
        config = (await asyncio.to_thread(ask, primary, "replSetGetConfig"))["config"]
        config["version"] += 1
        config["settings"]["electionTimeoutMillis"] = milliseconds
        await asyncio.to_thread(ask, primary, "replSetReconfig", config)

    async def heal(self) -> None:
        """Have every server run and follow one primary."""
        for server in self.servers:
            server.resume()
        for server in self.servers:
            if server.dead:
                await asyncio.to_thread(server.restart)
        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(self._whole):
                await asyncio.sleep(0.02)

    def _whole(self) -> bool:
        """Tell whether all see the same: one primary of whom two have read everything."""
        views = []
        for server in self.servers:
            try:
                found = ask(server, "replSetGetStatus")["members"]
            except pymongo.errors.PyMongoError:
                return False
            views.append([(member["state"], member["optime"]) for member in found])
        states = sorted(state for state, _ in views[0])
        return states == [PRIMARY, SECONDARY, SECONDARY] and all(view == views[0] for view in views)


def ask(server: PrivateMongoDB, command: str, value: Any = 1, **options: Any) -> dict[str, Any]:
    """Have one member carry out a command."""
    with pymongo.MongoClient[dict[str, Any]](server.url, directConnection=True, timeoutMS=3000) as client:
        return client.admin.command(command, value, **options)


@pytest.fixture(scope="module")
def started(module_mongodb: Callable[..., PrivateMongoDB]) -> Members:
    """Return the replica set of this module."""
    members = Members([module_mongodb("--replSet", "rs0", "--oplogSize", "64") for _ in range(3)])
    members.initiate()
    return members


@pytest.fixture
async def members(started: Members) -> AsyncIterator[Members]:
    """Return the replica set, whole; whatever a test does to it is mended."""
    await started.heal()
    yield started
    await started.heal()


@pytest.fixture
async def make(members: Members) -> AsyncIterator[Callable[..., Cache]]:
    """Return what makes caches over a collection of the test's own, as processes of their own would have them."""
    database, made = f"acache_{uuid.uuid4().hex}", []

    def build(options: str = "", *, url: str = "", timeout: float = 1.0, **others: Any) -> Cache:
        # Those who started anew are looked for again every half a second, not every ten.
        where = f"{url or members.url}{database}?heartbeatFrequencyMS=500{options}"
        backend = MongoDBBackend.from_url(where, timeout=timeout, connect_timeout=timeout)
        given = {"policy": Policy(ttl=3600, backend_timeout=timeout), "memory": Memory(), **others}
        made.append(Cache(backend, namespace="n", **given))
        return made[-1]

    yield build
    for cache in made:
        await cache.aclose()


@pytest.fixture
def pair(make: Callable[..., Cache]) -> tuple[Cache, Cache]:
    """Return two caches, one for each client."""
    return make(), make("&client=motor")


@pytest.fixture
def writer(make: Callable[..., Cache]) -> Callable[..., Cache]:
    """Return what makes somebody who only writes, and waits for an election."""
    return lambda options="": make(options, timeout=20.0, memory=None)


async def near(cache: Cache, key: str, value: Any) -> None:
    """Read until the near tier has this value."""
    async with asyncio.timeout(PATIENCE):
        while cache.peek(key, MISS) != value:
            await cache.get(key)
            await asyncio.sleep(0.005)


@dataclass
class Watch:
    """What a cache answers, and when it was asked, from the beginning to the end."""

    seen: list[Any] = field(default_factory=list)
    """Each value when it is another one than before."""
    last: dict[Any, float] = field(default_factory=dict)
    """When it was answered with each value last."""

    def note(self, asked: float, value: Any) -> None:
        self.last[value] = asked
        if value != MISS and self.seen[-1:] != [value]:
            self.seen.append(value)

    async def until(self, value: Any) -> None:
        """Wait for an answer."""
        async with asyncio.timeout(PATIENCE):
            while self.seen[-1:] != [value]:
                await asyncio.sleep(0.002)


@contextmanager
def watching(key: str, *caches: Cache) -> Iterator[list[Watch]]:
    """Ask near tiers all the time."""
    watches = [Watch() for _ in caches]

    async def watch() -> None:
        while True:
            for cache, one in zip(caches, watches, strict=True):
                one.note(time.monotonic(), cache.peek(key, MISS))
            await asyncio.sleep(0.002)

    task = asyncio.create_task(watch())
    try:
        yield watches
    finally:
        task.cancel()


@contextmanager
def reading(key: str, *caches: Cache) -> Iterator[list[Watch]]:
    """Read all the time, from wherever that is answered."""
    watches = [Watch() for _ in caches]

    async def read(cache: Cache, watch: Watch) -> None:
        while True:
            asked = time.monotonic()
            watch.note(asked, await cache.get(key, MISS))
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(read(cache, watch)) for cache, watch in zip(caches, watches, strict=True)]
    try:
        yield watches
    finally:
        for task in tasks:
            task.cancel()


# The primary is gone -------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
async def test_what_changed_at_the_next_primary_is_seen_within_the_trust_after_a_kill(
    members: Members, pair: tuple[Cache, Cache], writer: Callable[..., Cache]
):
    """And near tiers answer again."""
    other = writer()
    await other.set("k", "old")
    for cache in pair:
        await near(cache, "k", "old")
    primary = await members.primary()
    with watching("k", *pair) as nears, reading("k", *pair) as reads:
        await asyncio.to_thread(primary.kill)
        killed = time.monotonic()
        await other.set("k", "new")
        written = time.monotonic()
        for cache in pair:
            await near(cache, "k", "new")
        for watch in (*nears, *reads):
            await watch.until("new")
    for watch in (*nears, *reads):
        assert watch.last["old"] < max(killed, written) + TRUST
        assert watch.seen == ["old", "new"]
    for cache in pair:
        assert cache.stats().coherence == "tracking"
        assert cache.stats().channel_losses


@pytest.mark.need("faults", engine="MongoDB")
@pytest.mark.parametrize("wakes", ["before it is missed", "after it was missed"])
async def test_a_silent_primary_is_not_believed_when_it_speaks_again(
    members: Members, make: Callable[..., Cache], pair: tuple[Cache, Cache], writer: Callable[..., Cache], wakes: str
):
    """Neither by those who know of the next one, nor by who sees nobody else."""
    await writer().set("k", "old")
    primary = await members.primary()
    alone = make("&directConnection=true", url=primary.url)
    for cache in (*pair, alone):
        await near(cache, "k", "old")
    with watching("k", *pair, alone) as nears, reading("k", *pair) as reads:
        await asyncio.to_thread(primary.pause)
        noticed = time.monotonic()
        await members.replace(primary)
        other = writer()
        await other.set("k", "new")
        written = time.monotonic()
        if wakes == "before it is missed":
            primary.resume()
            noticed = await members.stepped_down(primary)
        for cache in pair:
            await near(cache, "k", "new")
        primary.resume()
        await members.stepped_down(primary)
        await other.set("k", "newer")
        for cache in pair:
            await near(cache, "k", "newer")
        for watch in (*nears[:2], *reads):
            await watch.until("newer")
    for watch in (*nears[:2], *reads):
        # Until it was written, the next primary itself answered with the old one.
        assert watch.last["old"] < max(noticed, written) + TRUST
        assert watch.seen == ["old", "new", "newer"]
    assert nears[2].last["old"] < noticed + TRUST
    assert nears[2].seen == ["old"]


@pytest.mark.need("faults", engine="MongoDB")
async def test_members_that_all_come_back_do_not_refuse_to_tell(
    members: Members, make: Callable[..., Cache], writer: Callable[..., Cache]
):
    """Their primary knows at first of no write that a majority has."""
    other, refusals = writer(), []
    await other.set("k", "old")
    cache = make()
    await near(cache, "k", "old")
    for server in members.servers:
        server.kill()
    await asyncio.gather(*(asyncio.to_thread(server.restart) for server in members.servers))
    tracking = cache._shared.channel._tracking
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await tracking.check(["n::"])
                break
            except BackendRefused as error:
                refusals.append(error)
            except BackendError:
                await asyncio.sleep(0.01)
    assert not refusals
    await other.set("k", "new")
    await near(cache, "k", "new")
    assert cache.stats().coherence == "tracking"


# The primary is alone ------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="MongoDB")
@pytest.mark.parametrize("concern", ["the server's own", "the client's"])
async def test_a_primary_without_its_majority_confirms_no_removal(
    members: Members, make: Callable[..., Cache], writer: Callable[..., Cache], concern: str
):
    """It is kept, and carried out by the next primary."""
    await writer().set("k", "v")
    primary = await members.primary()
    if concern == "the client's":  # as it is before MongoDB 5.0, and with an arbiter
        await asyncio.to_thread(ask, primary, "setDefaultRWConcern", defaultWriteConcern={"w": 1})
    remover = make("&w=majority" if concern == "the client's" else "")
    await near(remover, "k", "v")
    for server in members.besides(primary):
        await asyncio.to_thread(server.pause)
    with pytest.raises(BackendError):
        await remover.delete("k")
    assert remover.stats().replay_waiting == 1
    await asyncio.to_thread(primary.kill)  # and with it what nobody else has
    await members.replace(primary)
    after = await members.primary(*members.besides(primary))
    await asyncio.to_thread(ask, after, "setDefaultRWConcern", defaultWriteConcern={"w": "majority"})
    reader = writer()
    async with asyncio.timeout(PATIENCE):
        while await reader.get("k", MISS) != MISS:
            await asyncio.sleep(0.01)
    assert await remover.get("k") is None
    async with asyncio.timeout(PATIENCE):
        while remover.stats().replay_waiting:
            await asyncio.sleep(0.01)


@pytest.mark.need("faults", engine="MongoDB")
async def test_what_a_majority_lacks_is_near_for_no_longer_than_the_trust(
    members: Members, pair: tuple[Cache, Cache], writer: Callable[..., Cache]
):
    """Whoever reads it, before the next primary undoes it; nor is anything near that it replaced."""
    first, second = pair
    await writer().set("k", "old")
    await near(first, "k", "old")
    await second.get("another")
    await members.patience(60_000)
    primary = await members.primary()
    hasty = writer("&w=1")
    await hasty.set("another", 1)
    for server in members.besides(primary):
        await asyncio.to_thread(server.pause)
    with watching("k", *pair) as nears:
        await hasty.set("k", "undone")
        written = time.monotonic()
        assert await second.get("k") == "undone"
        async with asyncio.timeout(PATIENCE):
            while first.peek("k", MISS) != MISS or second.peek("k", MISS) != MISS:
                await asyncio.sleep(0.01)
        for cache in pair:
            assert await cache.get("k") == "undone"
            assert cache.peek("k", MISS) == MISS
        await asyncio.to_thread(primary.kill)
        await members.replace(primary)
        for cache, watch in zip(pair, nears, strict=True):
            await near(cache, "k", "old")
            await watch.until("old")
    assert nears[0].seen == ["old"]
    assert nears[1].seen == ["undone", "old"]
    assert nears[1].last["undone"] < written + TRUST
    await asyncio.to_thread(primary.restart)
    await members.patience(ELECTION)


# Own writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["pymongo", "motor"])
async def test_an_own_write_that_is_told_costs_one_read(make: Callable[..., Cache], client: str):
    """The near copy goes, once."""
    cache = make(f"&client={client}")
    await cache.get("k")
    for number in range(5):
        await cache.set("k", number)
        await cache._shared.channel._tracking.check(["n::"])
        assert cache.peek("k", MISS) == MISS
        before = cache.stats().hits_far
        for _ in range(10):
            assert await cache.get("k") == number
        await cache._shared.channel._tracking.check(["n::"])
        assert cache.peek("k") == number
        assert cache.stats().hits_far == before + 1


async def test_own_writes_that_are_told_late_bring_nothing_older_back(pair: tuple[Cache, Cache]):
    """Each reads its own last write; what it sees of the other's goes only forward."""
    rounds = 150

    async def live(cache: Cache, own: str, others: str) -> None:
        seen = -1
        for number in range(rounds):
            await cache.set(own, number)
            for _ in range(3):
                assert await cache.get(own) == number
                found = await cache.get(others, -1)
                assert found >= seen
                seen = found
        await near(cache, others, rounds - 1)
        assert await cache.get(own) == rounds - 1

    async with asyncio.TaskGroup() as group:
        group.create_task(live(pair[0], "a", "b"))
        group.create_task(live(pair[1], "b", "a"))
