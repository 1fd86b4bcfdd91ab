"""What goes wrong with real Redis servers: the right error, within the deadline, and back again by itself."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import socket
import struct
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from redis import asyncio as aioredis
from redis.crc import key_slot

from acache import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from acache.backends.redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

WITHIN = 5.0
"""Seconds: far over the deadlines of 0.3 in these tests, far under a hang."""


@asynccontextmanager
async def backend_of(url: str, **options: Any) -> AsyncIterator[RedisBackend]:
    backend = RedisBackend.from_url(url, **{"connect_timeout": 2.0, "timeout": 2.0, **options})
    yield backend
    await backend.aclose()


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Ask until it is so; a server's own state gives no event."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def every_operation_raises(backend: RedisBackend, kind: type[BackendError], *, reads: bool = True) -> None:
    """Check the error of each operation, and of each key of a batch."""
    writes = {
        "set": lambda: backend.set("k", b"v", ttl=60),
        "add": lambda: backend.add("new", b"v", ttl=60),
        "incr": lambda: backend.incr("n", 1, ttl=60),
        "set_if": lambda: backend.set_if("gone", b"v", b"version", ttl=60),
        "swap": lambda: backend.swap("k", b"v", ttl=60),
        "store": lambda: backend.store("k", [bytes(2**21)], ttl=60),
        "set_many": lambda: backend.set_many({"a": b"", "b": b""}, ttl=60),
    }
    others = {
        "get": lambda: backend.get("k"),
        "delete": lambda: backend.delete("k"),
        "touch": lambda: backend.touch("k", ttl=60),
        "ttl": lambda: backend.ttl("k"),
        "get_versioned": lambda: backend.get_versioned("k"),
        "get_many": lambda: backend.get_many(["a", "b"]),
        "delete_many": lambda: backend.delete_many(["a", "b"]),
        "clear": lambda: backend.clear("k"),
    }
    for name, call in (writes | others if reads else writes).items():
        async with asyncio.timeout(WITHIN):
            with pytest.raises(kind) as caught:
                await call()
        assert type(caught.value) is kind or kind is BackendError, name
        assert caught.value.__cause__ is not None, name
        if name.endswith("_many"):
            assert set(caught.value.failed) == {"a", "b"}, name


@pytest.mark.need("faults", engine="Redis")
async def test_a_refused_connection():
    """Nobody listens: unavailable, at once."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    async with backend_of(f"redis://127.0.0.1:{port}") as backend:
        await every_operation_raises(backend, BackendUnavailable)


@pytest.mark.need("faults", engine="Redis")
async def test_a_connection_reset_in_the_middle_of_a_reply():
    """Unavailable; the call after it gets a connection of its own."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            count = int(line[1:])
            words = []
            for _ in range(count):
                size = int((await reader.readline())[1:])
                words.append((await reader.readexactly(size + 2))[:-2])
            if words[0] != b"GET":
                writer.write(b"+OK\r\n")
                continue
            if words[1] == b"good":
                writer.write(b"$4\r\ngood\r\n")
                continue
            writer.write(b"$100\r\nhalf")
            await writer.drain()
            linger = struct.pack("ii", 1, 0)  # closing resets the connection
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            break
        writer.close()

    async with await asyncio.start_server(lie, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with backend_of(f"redis://127.0.0.1:{port}?protocol=2") as backend:
            for _ in range(3):
                assert await backend.get("good") == b"good"
                with pytest.raises(BackendUnavailable):
                    await backend.get("torn")


@pytest.mark.need("faults", engine="Redis")
async def test_a_paused_server(private_redis: Callable[..., Any]):
    """Late, connected before or not, within the deadlines; and everything works when it goes on."""
    server = private_redis()
    async with backend_of(server.url, connect_timeout=0.3, timeout=0.3) as backend:
        await backend.set("k", b"v", ttl=60)
        server.pause()
        await every_operation_raises(backend, BackendTimeout)
        async with backend_of(server.url, connect_timeout=0.3, timeout=0.3) as fresh:
            with pytest.raises(BackendTimeout):
                await fresh.get("k")
        server.resume()
        await until(lambda: answers(backend))
        for _ in range(20):
            assert await backend.get("k") in (b"v", None)  # a late write may have come, a late delete too


async def answers(backend: RedisBackend) -> bool:
    try:
        await backend.get("k")
    except BackendError:
        return False
    return True


@pytest.mark.need("faults", engine="Redis")
async def test_a_restarted_server(private_redis: Callable[..., Any]):
    """The call after the one that found out works, as do all after it."""
    server = private_redis()
    async with backend_of(server.url) as backend:
        await asyncio.gather(*[backend.set(f"k{number}", b"v", ttl=60) for number in range(20)])
        server.kill()
        with pytest.raises(BackendUnavailable):
            await backend.get("k0")
        server.restart()
        failures = 0
        for number in range(40):
            try:
                await backend.set(f"k{number}", b"again", ttl=60)
            except BackendUnavailable:
                failures += 1
        assert failures <= 1
        assert await backend.get_many(["k39"]) == {"k39": b"again"}


@pytest.mark.need("faults", engine="Redis")
@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:secret@"], ids=["none", "wrong", "nobody"])
async def test_a_wrong_password(private_redis: Callable[..., Any], login: str):
    """Refused, whatever is asked; the right one is taken, also through the URL's escapes."""
    server = private_redis()
    async with aioredis.Redis.from_url(server.url) as admin:
        await admin.config_set("requirepass", "s3:cret/@")
    for protocol in (2, 3):
        async with backend_of(f"redis://{login}127.0.0.1:{server.port}?protocol={protocol}") as backend:
            await every_operation_raises(backend, BackendRefused)
    async with backend_of(f"redis://:s3%3Acret%2F%40@127.0.0.1:{server.port}") as backend:
        await backend.set("k", b"v", ttl=60)


PAGE = (Path(__file__).parents[2] / "docs/backends/redis.md").read_text()
PERMISSIONS = re.findall(r"^ACL SETUSER .* ~<namespace>::\* &<namespace>::\* -@all (.*)$", PAGE, re.MULTILINE)[0]
IN_A_CLUSTER = re.findall(r"A cluster wants `(.*)` as well", PAGE)[0]


async def permitted(server: Any, rules: str) -> str:
    async with aioredis.Redis.from_url(server.url) as admin:
        await admin.execute_command("ACL", "SETUSER", "cache", "reset", "on", ">pass", *rules.split())
    return f"redis://cache:pass@127.0.0.1:{server.port}"


@pytest.mark.need("faults", engine="Redis")
async def test_the_documented_permissions_are_enough(private_redis: Callable[..., Any]):
    """Every operation works for a user who may do that much, on the keys of one prefix, and no more."""
    url = await permitted(private_redis(), f"~ns::* &ns::* {PERMISSIONS}")
    async with backend_of(url) as backend:
        assert await backend.get("ns::k") is None
        await backend.set("ns::k", b"v", ttl=60)
        await backend.set_many({"ns::a": b"a", "ns::b": b"b"}, ttl=None)
        assert await backend.get_many(["ns::a", "ns::c"]) == {"ns::a": b"a"}
        assert await backend.delete_many(["ns::a", "ns::b"]) == 2
        assert await backend.add("ns::k", b"", ttl=60) is False
        assert await backend.incr("ns::n", 1, ttl=60) == 1
        assert await backend.touch("ns::k", ttl=60) is True
        assert await backend.touch("ns::k", ttl=None) is True
        assert await backend.ttl("ns::k") is None
        for _ in range(2):
            _, version = await backend.get_versioned("ns::k")
            assert await backend.set_if("ns::k", b"w", version, ttl=60) is True
            assert await backend.swap("ns::k", b"x", ttl=60) == b"w"
            for size in (1, 2**21):
                await backend.set("ns::long", bytes(size), ttl=60)
                async with backend.open("ns::long") as chunks:
                    assert chunks is not None
                    assert sum([len(chunk) async for chunk in chunks]) == size
            await backend.store("ns::k", [bytes(2**20)] * 2, ttl=None)
            assert len(await backend.get("ns::k") or b"") == 2**21
            assert await backend.get_many(["ns::k"]) == {"ns::k": bytes(2**21)}
        assert {key async for key in backend.scan("ns::")} == {"ns::k", "ns::n", "ns::long"}
        await backend.clear("ns::")
        assert [key async for key in backend.scan("ns::")] == []
        async with backend.subscribe("ns::topic") as messages, backend.subscribe("ns::another"):
            await backend.publish("ns::topic", b"m")
            assert await anext(messages) == b"m"
        with pytest.raises(BackendRefused):
            await backend.get("other")
        with pytest.raises(BackendRefused):
            await backend.publish("other", b"m")
        with pytest.raises(BackendRefused):
            async with backend.subscribe("other"):
                pass


@pytest.mark.need("faults", engine="Redis Cluster")
async def test_the_documented_permissions_are_enough_in_a_cluster(private_redis: Callable[..., Any]):
    """With those that the client needs to find the nodes."""
    nodes = await cluster_of(private_redis)
    for node in nodes:
        await permitted(node, f"~ns::* &ns::* {PERMISSIONS} {IN_A_CLUSTER}")
    async with backend_of(cluster_url(nodes).replace("//", "//cache:pass@")) as backend:
        items = {f"ns::{number}": b"%d" % number for number in range(50)}
        await backend.set_many(items, ttl=60)
        assert await backend.get_many(list(items)) == items
        await backend.store("ns::long", [bytes(2**21)], ttl=60)
        assert len(await backend.get("ns::long") or b"") == 2**21
        await backend.clear("ns::")
        assert await backend.get_many(list(items)) == {}
        with pytest.raises(BackendRefused):
            await backend.get("other")


@pytest.mark.need("faults", engine="Redis")
async def test_a_user_without_permissions(private_redis: Callable[..., Any]):
    """Refused, by name of the command."""
    async with backend_of(await permitted(private_redis(), "~*")) as backend:
        await every_operation_raises(backend, BackendRefused)


@pytest.mark.need("faults", engine="Redis")
async def test_one_key_without_permission_does_not_harm_the_others(private_redis: Callable[..., Any]):
    """A batch of writes fails for that key alone; the others are stored."""
    async with backend_of(await permitted(private_redis(), f"~ns::* &ns::* {PERMISSIONS}")) as backend:
        with pytest.raises(BackendRefused) as caught:
            await backend.set_many({"ns::a": b"a", "other": b"o", "ns::b": b"b"}, ttl=60)
        assert {key: type(error) for key, error in caught.value.failed.items()} == {"other": BackendRefused}
        assert await backend.get_many(["ns::a", "ns::b"]) == {"ns::a": b"a", "ns::b": b"b"}


@pytest.mark.need("faults", engine="Redis")
async def test_a_read_only_replica(private_redis: Callable[..., Any]):
    """It is read, and refuses to be written."""
    primary = private_redis()
    replica = private_redis("--replicaof", f"127.0.0.1 {primary.port}")
    async with backend_of(primary.url) as writer, backend_of(replica.url) as backend:
        await writer.set("k", b"v", ttl=60)
        await until(lambda: holds(backend, "k", b"v"))
        await every_operation_raises(backend, BackendRefused, reads=False)
        with pytest.raises(BackendRefused):
            await backend.delete("k")
        assert await backend.get_many(["k"]) == {"k": b"v"}


async def test_refused_writes_do_not_harm_reads(private_redis: Callable[..., Any]):
    """A replica serves reads while many try to write: none of them fails, and connections do not come and go."""
    primary = private_redis()
    replica = private_redis("--replicaof", f"127.0.0.1 {primary.port}")
    async with backend_of(primary.url) as writer, backend_of(replica.url) as backend:
        await writer.set("k", b"v", ttl=None)
        await until(lambda: holds(backend, "k", b"v"))

        async def read() -> None:
            for _ in range(100):
                assert await backend.get("k") == b"v"

        async def write() -> None:
            for _ in range(50):
                with pytest.raises(BackendRefused):
                    await backend.set("k", b"w", ttl=None)

        await asyncio.gather(*[read() for _ in range(10)], *[write() for _ in range(10)])
        async with aioredis.Redis(port=replica.port) as watcher:
            assert (await watcher.info("stats"))["total_connections_received"] < 100


@pytest.mark.parametrize("end", ["cancel", "close"])
async def test_a_connection_that_is_given_up_while_it_is_made_is_closed(end: str):
    """The server accepts, and never answers."""
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        accepted.set()
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        backend = RedisBackend.from_url(f"redis://127.0.0.1:{port}", connect_timeout=60, timeout=60)
        call = asyncio.ensure_future(backend.get("k"))
        await accepted.wait()
        if end == "cancel":
            call.cancel()
        async with asyncio.timeout(WITHIN):
            await backend.aclose()
            await ended.wait()
            with pytest.raises(asyncio.CancelledError if end == "cancel" else BackendUnavailable):
                await call


def test_a_connection_that_uvloop_finds_closed_while_it_is_made():
    """The server hangs up between two commands of the login; that is unavailable like any other end."""
    uvloop = pytest.importorskip("uvloop")

    class Hasty(aioredis.Connection):
        async def send_command(self, *args: Any, **options: Any) -> None:
            assert self._writer is not None
            self._writer.transport.abort()
            await asyncio.sleep(0.01)
            await super().send_command(*args, **options)

    async def main() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = aioredis.Redis.from_pool(aioredis.ConnectionPool(Hasty, host="127.0.0.1", port=port))
            backend = RedisBackend(client)
            with pytest.raises(BackendUnavailable):
                await backend.get("k")
            await backend.aclose()
            await client.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def holds(backend: RedisBackend, key: str, value: bytes) -> bool:
    return await backend.get(key) == value


@pytest.mark.need("faults", engine="Redis")
async def test_a_full_disk(private_redis: Callable[..., Any]):
    """A server that cannot save refuses writes, says why, and takes them again afterwards."""
    server = private_redis("--stop-writes-on-bgsave-error", "yes")
    async with aioredis.Redis.from_url(server.url) as admin, backend_of(server.url) as backend:
        await backend.set("k", b"v", ttl=60)
        await admin.config_set("save", "3600 1")
        shutil.rmtree(str((await admin.config_get("dir"))["dir"]))

        async def failed() -> bool:
            return (await admin.info("persistence"))["rdb_last_bgsave_status"] == "err"

        await admin.bgsave()
        await until(failed)
        await every_operation_raises(backend, BackendRefused, reads=False)
        with pytest.raises(BackendRefused, match=r"(?i)disk|RDB"):
            await backend.set("k", b"w", ttl=60)
        assert await backend.get("k") == b"v"
        await admin.config_set("save", "")
        await backend.set("k", b"w", ttl=60)


@pytest.mark.need("faults", engine="Redis")
async def test_a_full_memory(private_redis: Callable[..., Any]):
    """Without a policy that evicts, writes are refused, and the error says what to do; deletes make room."""
    server = private_redis("--maxmemory-policy", "noeviction")
    async with backend_of(server.url) as backend, aioredis.Redis.from_url(server.url) as admin:
        await backend.set("k", b"v", ttl=60)
        await backend.set_many({f"fill{number}": bytes(100_000) for number in range(80)}, ttl=60)
        await admin.config_set("maxmemory", "7mb")
        with pytest.raises(BackendRefused, match="maxmemory-policy that evicts"):
            await backend.set("k", b"w", ttl=60)
        await every_operation_raises(backend, BackendRefused, reads=False)
        assert await backend.get("k") == b"v"
        with pytest.raises(BackendRefused):
            await backend.store("k", [bytes(8 * 2**20)], ttl=60)
        assert await backend.get("k") == b"v"
        await backend.clear("fill")
        await backend.set("k", b"w", ttl=60)


@pytest.mark.need("faults", engine="Redis")
async def test_a_server_that_is_loading():
    """Unavailable: it comes back by itself."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(b"-LOADING Redis is loading the dataset in memory\r\n")
        writer.close()

    async with await asyncio.start_server(lie, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with backend_of(f"redis://127.0.0.1:{port}?protocol=2&lib_name=&lib_version=") as backend:
            with pytest.raises(BackendUnavailable, match="loading"):
                await backend.get("k")


async def cluster_of(private_redis: Callable[..., Any], *options: str) -> list[Any]:
    """Start three masters of the test's own."""
    enabled = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
    nodes = [private_redis(*enabled, *options) for _ in range(3)]
    services = sys.modules[type(nodes[0]).__module__]
    ports = [node.port for node in nodes]
    services.form_cluster(ports)

    async def agreed() -> bool:
        try:
            return all(services.cluster_title(port, 3) for port in ports)
        except services.NotReadyError:
            return False

    await until(agreed)
    return nodes


def cluster_url(nodes: list[Any]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def keys_of(node_number: int, count: int) -> list[str]:
    """Return keys whose slots the node of this number owns, of three."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        key = f"k{number}"
        slot = key_slot(key.encode())
        if node_number * 16384 // 3 <= slot < (node_number + 1) * 16384 // 3:
            found.append(key)
        number += 1
    return found


@pytest.mark.need("faults", engine="Redis Cluster")
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_node_that_fails_takes_its_own_keys_along_only(private_redis: Callable[..., Any], fault: str):
    """A batch tells which keys failed, and does the rest; single calls to the other nodes go on."""
    nodes = await cluster_of(private_redis)
    kind = BackendUnavailable if fault == "kill" else BackendTimeout
    lost, kept = keys_of(0, 20), [*keys_of(1, 20), *keys_of(2, 20)]
    items = {key: key.encode() for key in (*lost, *kept)}
    async with backend_of(cluster_url(nodes), connect_timeout=1.0, timeout=1.0) as backend:
        await backend.set_many(items, ttl=None)
        assert await backend.get_many(list(items)) == items
        getattr(nodes[0], fault)()
        for value in (None, b"new"):
            with pytest.raises(kind) as caught:
                await backend.get_many(list(items))
            assert set(caught.value.failed) == set(lost)
            assert caught.value.found == {key: value or items[key] for key in kept}
            with pytest.raises(kind) as caught:
                await backend.set_many(dict.fromkeys(items, b"new"), ttl=None)
            assert set(caught.value.failed) == set(lost)
        assert [await backend.get(key) for key in kept] == [b"new"] * len(kept)
        with pytest.raises(kind):
            await backend.get(lost[0])
        listed = set()
        with pytest.raises(kind):
            async for key in backend.scan("k"):
                listed.add(key)
        assert listed == set(kept)
        with pytest.raises(kind) as caught:
            await backend.delete_many(list(items))
        assert set(caught.value.failed) == set(lost)
        if fault == "pause":
            nodes[0].resume()
        else:
            nodes[0].restart()
        await until(lambda: works(backend, lost[0]))
        assert await backend.get_many(kept) == {}


async def works(backend: RedisBackend, key: str) -> bool:
    try:
        await backend.set(key, b"back", ttl=60)
    except BackendError:
        return False
    return await backend.get(key) == b"back"


@pytest.mark.need("faults", engine="Redis Cluster")
async def test_slots_that_move_while_traffic_goes_on(private_redis: Callable[..., Any]):
    """No call fails, no increment is lost, and no reader gets another key's value."""
    nodes = await cluster_of(private_redis)
    services = sys.modules[type(nodes[0]).__module__]
    ask = services.ask_redis
    source, target = nodes[0].port, nodes[1].port
    names = [ask(port, "CLUSTER", "MYID") for port in (source, target)]
    keys = keys_of(0, 12)
    moving, counts = True, dict.fromkeys(keys, 0)

    async with backend_of(cluster_url(nodes), connect_timeout=10, timeout=10) as backend:
        await backend.set_many({key: key.encode() for key in keys}, ttl=None)

        async def work(key: str) -> None:
            while moving:
                assert await backend.get(key) == key.encode()
                await backend.incr(f"{{{key}}}:n", 1, ttl=None)
                counts[key] += 1
                assert await backend.get_many(keys) == {name: name.encode() for name in keys}
                await backend.set_many({name: name.encode() for name in keys}, ttl=None)

        tasks = [asyncio.ensure_future(work(key)) for key in keys]
        for key in keys:
            slot = str(key_slot(key.encode()))
            ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
            ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
            for name in (key, f"{{{key}}}:n"):
                await asyncio.sleep(0.02)  # traffic in each of the states
                await asyncio.to_thread(ask, source, "MIGRATE", "127.0.0.1", str(target), name, "0", "5000")
            await asyncio.sleep(0.02)
            for port in (target, source, nodes[2].port):
                ask(port, "CLUSTER", "SETSLOT", slot, "NODE", names[1])
        moving = False
        await asyncio.gather(*tasks)
        assert {key: int(await backend.get(f"{{{key}}}:n") or 0) for key in keys} == counts
        assert min(counts.values()) > 0
        assert {key async for key in backend.scan("k")} == set(keys)


@pytest.mark.need("faults", engine="Redis Sentinel")
@pytest.mark.parametrize("injected", [False, True], ids=["by URL", "injected"])
async def test_a_failover_by_sentinel(
    private_redis: Callable[..., Any], private_sentinel: Callable[..., Any], injected: bool
):
    """The master dies, the replica takes over, and the backend goes on without a restart."""
    primary = private_redis()
    replica = private_redis("--replicaof", f"127.0.0.1 {primary.port}")
    sentinel = private_sentinel(primary.port)
    async with aioredis.Redis(port=sentinel.port) as watcher:

        async def known() -> bool:
            told = await watcher.execute_command("SENTINEL", "REPLICAS", "mymaster")
            return bool(told)

        await until(known)
    async with backend_of(replica.url) as reader:
        sentinels = aioredis.Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=2)
        client = sentinels.master_for("mymaster", socket_timeout=2)
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
        backend = RedisBackend(client) if injected else RedisBackend.from_url(url)
        await backend.set("k", b"v", ttl=None)
        await until(lambda: holds(reader, "k", b"v"))
        primary.kill()
        with pytest.raises(BackendError):
            await backend.set("k", b"w", ttl=None)
        await until(lambda: works(backend, "k"), 30)
        async with backend_of(replica.url) as promoted:
            assert await promoted.get("k") == b"back"
        await backend.aclose()
        await client.aclose()
        for one in sentinels.sentinels:
            await one.aclose()


@pytest.mark.need("faults", engine="Redis Sentinel")
async def test_sentinels_that_do_not_know_the_name_or_refuse(
    private_redis: Callable[..., Any], private_sentinel: Callable[..., Any]
):
    """An unknown service is unavailable, a wrong password of theirs refused, and the right one goes through."""
    server = private_redis()
    sentinel = private_sentinel(server.port)
    async with aioredis.Redis(port=sentinel.port) as admin:
        await admin.execute_command("ACL", "SETUSER", "watcher", "on", ">secret", "+@all", "allchannels")
        await admin.execute_command("ACL", "SETUSER", "default", "resetpass", "off")
    place = f"redis+sentinel://127.0.0.1:{sentinel.port}"
    login = "sentinel_username=watcher&sentinel_password=secret"
    async with backend_of(f"{place}/other?{login}") as backend:
        await every_operation_raises(backend, BackendUnavailable)
    async with backend_of(f"{place}/mymaster?sentinel_password=wrong") as backend:
        await every_operation_raises(backend, BackendRefused)
    async with backend_of(f"{place}/mymaster?{login}&db=3") as backend:
        await backend.set("k", b"v", ttl=60)
    async with backend_of(f"redis://127.0.0.1:{server.port}/3") as backend:
        assert await backend.get("k") == b"v"


@pytest.mark.parametrize("service", ["redis", "redis-cluster"])
async def test_a_thousand_cancellations_and_timeouts_under_load(request: pytest.FixtureRequest, service: str):
    """Whatever is cut off, and when: every reply that comes belongs to its question."""
    url = request.getfixturevalue(f"{service.replace('-', '_')}_url")
    if service == "redis-cluster":
        url = url.replace("redis://", "redis+cluster://")
    prefix, dice = f"cut:{time.time_ns()}:", random.Random(7)
    keys = [f"{prefix}{number}" for number in range(50)]
    cut = checked = 0
    async with backend_of(url, max_connections=8, connect_timeout=10, timeout=10) as backend:
        await backend.set_many({key: key.encode() for key in keys}, ttl=60)

        async def question(key: str) -> None:
            nonlocal checked
            kind = dice.randrange(5)
            if kind == 0:
                some = dice.sample(keys, 7)
                assert await backend.get_many(some) == {name: name.encode() for name in some}
            elif kind == 1:
                await backend.set(key, key.encode(), ttl=60)
            elif kind == 2:
                assert await backend.swap(key, key.encode(), ttl=60) == key.encode()[:48]
            else:
                assert await backend.get(key) == key.encode()
            checked += 1

        async def ask() -> None:
            nonlocal cut
            while cut < 1000:
                key = dice.choice(keys)
                if dice.random() < 0.3:
                    await question(key)
                    continue
                task = asyncio.ensure_future(question(key))
                if dice.random() < 0.5:
                    for _ in range(dice.randrange(12)):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    if not task.cancelled():
                        task.result()
                        continue
                else:
                    try:
                        async with asyncio.timeout(dice.random() / 300):
                            await task
                    except TimeoutError:
                        pass
                    else:
                        continue
                cut += 1

        await asyncio.gather(*[ask() for _ in range(20)])
        assert checked > 300
        for key in keys:
            assert await backend.get(key) == key.encode()
        await backend.clear(prefix)
