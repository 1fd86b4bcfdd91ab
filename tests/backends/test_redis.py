"""Every kind of Redis keeps the contract; and what Redis brings of its own: keys of other types, URLs, lives."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from redis import asyncio as aioredis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from acache import (
    BackendError,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    DecodeError,
    InvalidKey,
    Policy,
    ValueTooLarge,
)
from acache.backends import Add, Batch, Cas, Clear, Counter, Notify, Scan, Stream, Touch
from acache.backends.redis import RedisBackend
from acache.testing import BackendConformance
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from acache.backends import Backend


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    patient = Policy(backend_timeout=20)
    async with Cache.from_url(redis_url, memory=None, namespace=f"redis:{uuid.uuid4().hex}", policy=patient) as cache:
        yield cache
        await cache.clear()


@pytest.fixture
async def foreign(redis_url: str) -> AsyncIterator[aioredis.Redis]:
    """Another program on the same server."""
    async with aioredis.Redis.from_url(redis_url) as client:
        yield client


async def test_a_key_of_another_type_is_a_miss(cache: Cache, foreign: aioredis.Redis):
    """A list under an entry's key is garbage like any other: counted, loaded past, and replaced by a set."""
    await foreign.lpush(f"{cache.namespace}::k", "x")
    assert await cache.get("k") is None
    assert await cache.get_many(["k"]) == {}

    async def load() -> str:
        return "loaded"

    assert await cache.get_or_load("k", load) == "loaded"
    assert cache.stats().decode_failures >= 2
    await cache.set("k", "v")
    assert await cache.get("k") == "v"


async def test_a_key_of_another_type_can_be_deleted(cache: Cache, foreign: aioredis.Redis):
    """What is deleted is gone, and the answer is that no value was there."""
    await foreign.lpush(f"{cache.namespace}::k", "x")
    assert await cache.delete("k") is False
    assert await cache.get("k") is None


@pytest.mark.parametrize("data", [b"nope", b" 5", b"1e5", b"99999999999999999999", b""])
async def test_foreign_bytes_are_not_counted_over(cache: Cache, foreign: aioredis.Redis, data: bytes):
    """A counter that cannot be read is refused and stays; it does not start again at zero."""
    await foreign.set(f"{cache.namespace}::n", data)
    with pytest.raises(DecodeError):
        await cache.incr("n")
    assert await foreign.get(f"{cache.namespace}::n") == data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("unix://", "path of the socket"),
        ("redis://localhost/0?protocol=9", "protocol"),
        ("redis://localhost/0?no_such_option=1", "unknown option 'no_such_option'"),
        ("redis://localhost/first", "the database is a number"),
        ("redis://localhost:port", "is not host:port"),
        ("redis://localhost/0?decode_responses=1", "decode_responses"),
        ("redis+cluster://localhost/1", "one database"),
        ("redis+cluster://localhost,other?db=1", "one database"),
        ("redis+cluster://localhost?no_such_option=1", "unknown option 'no_such_option'"),
        ("redis+cluster://localhost?protocol=9", "protocol"),
        ("redis+cluster://localhost?decode_responses=1", "decode_responses"),
        ("redis+sentinel://localhost", "the service is missing"),
        ("redis+sentinel://localhost/mymaster?no_such_option=1", "unknown option 'no_such_option'"),
        ("redis+sentinel://localhost/mymaster?decode_responses=1", "decode_responses"),
        ("unix+cluster:///run/redis.sock", "unknown scheme"),
        ("redis+else://localhost", "unknown scheme"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str, words: str):
    """By an error of acache's that names what is wrong."""
    with pytest.raises(ConfigurationError, match=words):
        Cache.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@localhost:1/0",
        "rediss://:s3cret@localhost:1/0",
        "unix://:s3cret@/run/redis.sock",
        "redis://localhost:1/0?password=s3cret",
        "valkeys+cluster://user:s3cret@localhost:1,localhost:2",
        "redis+sentinel://user:s3cret@localhost:1,localhost:2/mymaster?sentinel_password=s3cret&db=3",
    ],
)
async def test_a_password_is_shown_nowhere(url: str):
    """Neither by the repr, nor by an error, nor by its cause."""
    backend = RedisBackend.from_url(url)
    assert "s3cret" not in repr(backend)
    with pytest.raises(BackendError) as caught:
        await backend.get("k")
    error: BaseException | None = caught.value
    while error is not None:
        assert "s3cret" not in f"{error} {error!r}"
        error = error.__cause__
    await backend.aclose()
    assert "s3cret" not in repr(backend)
    with pytest.raises(ConfigurationError) as refused:
        RedisBackend.from_url(url + ("&" if "?" in url else "?") + "no_such_option=1")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: aioredis.Redis(decode_responses=True),
        lambda: aioredis.RedisCluster("127.0.0.1", decode_responses=True),
        lambda: Sentinel([("127.0.0.1", 1)]).master_for("mymaster", decode_responses=True),
        lambda: redis.Redis(),
        lambda: "redis://localhost",
    ],
    ids=["server", "cluster", "sentinel", "synchronous", "no client"],
)
def test_a_client_that_cannot_work_is_refused_at_once(build: Callable[[], Any]):
    """One that decodes replies, a synchronous one, and what is no client at all."""
    with pytest.raises(ConfigurationError, match=r"decode_responses|redis.asyncio.Redis"):
        RedisBackend(build())


@pytest.mark.parametrize("key", ["", "\ud800", "k" * 4097], ids=["empty", "surrogate", "long"])
async def test_a_key_that_cannot_be_is_refused_before_anything_is_sent(key: str):
    """No server is needed for the answer."""
    backend = RedisBackend.from_url("redis://127.0.0.1:1")
    for call in (
        lambda: backend.get(key),
        lambda: backend.set(key, b"", ttl=None),
        lambda: backend.delete(key),
        lambda: backend.get_many([key]),
        lambda: backend.set_many({key: b""}, ttl=None),
        lambda: backend.delete_many([key]),
        lambda: backend.add(key, b"", ttl=None),
        lambda: backend.incr(key, 1, ttl=None),
        lambda: backend.touch(key, ttl=None),
        lambda: backend.ttl(key),
        lambda: backend.get_versioned(key),
        lambda: backend.set_if(key, b"", None, ttl=None),
        lambda: backend.swap(key, b"", ttl=None),
        lambda: backend.store(key, [b""], ttl=None),
        lambda: backend.open(key).__aenter__(),
    ):
        with pytest.raises(InvalidKey):
            await call()


async def test_a_value_over_the_limit_is_refused_before_anything_is_sent():
    """By an error with the limit and the size; no server is needed for the answer."""
    backend = RedisBackend.from_url("redis://127.0.0.1:1")
    data = bytes(RedisBackend.value_limit + 1)  # pages of zeros that nobody touches take no memory
    for call in (
        lambda: backend.set("k", data, ttl=None),
        lambda: backend.set_many({"k": data}, ttl=None),
        lambda: backend.add("k", data, ttl=None),
        lambda: backend.set_if("k", data, b"version", ttl=None),
        lambda: backend.swap("k", data, ttl=None),
    ):
        with pytest.raises(ValueTooLarge, match=f"{len(data)} bytes .* {RedisBackend.value_limit}"):
            await call()


PATIENT: dict[str, Any] = {"connect_timeout": 10.0, "timeout": 10.0}
"""For tests that are not about deadlines: the machine may be busy."""


SCHEMES = {"redis": "redis", "redis-cluster": "redis+cluster", "valkey": "valkey"}


class OnRedis(BackendConformance):
    """Whatever kind of Redis it is."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Notify, Scan, Stream, Touch)


class TestRedis(OnRedis):
    """One server."""

    title = "Redis"

    @pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
    def backend(self, request: pytest.FixtureRequest, redis_url: str) -> Backend:
        return RedisBackend.from_url(f"{redis_url}?protocol={request.param}", **PATIENT)


class TestValkey(OnRedis):
    """Its free sibling."""

    title = "Valkey"

    @pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
    def backend(self, request: pytest.FixtureRequest, valkey_url: str) -> Backend:
        return RedisBackend.from_url(
            f"{valkey_url.replace('redis://', 'valkey://')}?protocol={request.param}", **PATIENT
        )


class TestCluster(OnRedis):
    """Three masters."""

    title = "Redis Cluster"

    @pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
    def backend(self, request: pytest.FixtureRequest, redis_cluster_url: str) -> Backend:
        url = redis_cluster_url.replace("redis://", "redis+cluster://").rstrip("/")
        return RedisBackend.from_url(f"{url}?protocol={request.param}", **PATIENT)


class TestPool(OnRedis):
    """Each command on a connection of its own."""

    title = "Redis pool"

    @pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
    def backend(self, request: pytest.FixtureRequest, redis_url: str) -> Backend:
        return RedisBackend.from_url(f"{redis_url}?protocol={request.param}&multiplex=false", **PATIENT)


class TestClusterPool(OnRedis):
    """The same with a cluster."""

    title = "Redis Cluster pool"

    @pytest.fixture
    def backend(self, redis_cluster_url: str) -> Backend:
        url = redis_cluster_url.replace("redis://", "redis+cluster://")
        return RedisBackend.from_url(url, multiplex=False, **PATIENT)


class TestInjectedClient(OnRedis):
    """Somebody else's client of one server."""

    title = "Redis injected client"

    @pytest.fixture
    def backend(self, redis_url: str) -> Backend:
        return ClosingItsClient(aioredis.Redis.from_url(redis_url))


class TestInjectedCluster(OnRedis):
    """Somebody else's client of a cluster."""

    title = "Redis Cluster injected client"

    @pytest.fixture
    def backend(self, redis_cluster_url: str) -> Backend:
        return ClosingItsClient(aioredis.RedisCluster.from_url(redis_cluster_url))


@pytest.fixture(scope="module")
def sentinel(module_redis: Callable[..., Any], module_sentinel: Callable[..., Any]) -> Any:
    return module_sentinel(module_redis().port)


class TestSentinel(OnRedis):
    """A master that a Sentinel names."""

    title = "Redis Sentinel"

    @pytest.fixture
    def backend(self, sentinel: Any) -> Backend:
        return RedisBackend.from_url(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster", **PATIENT)


class TestInjectedSentinel(OnRedis):
    """Somebody else's client of a master that a Sentinel names."""

    title = "Redis Sentinel injected client"

    @pytest.fixture
    def backend(self, sentinel: Any) -> Backend:
        return ClosingItsClient(Sentinel([("127.0.0.1", sentinel.port)]).master_for("mymaster"))


class ClosingItsClient(RedisBackend):
    """A backend whose owner closes the client with it, as its program would."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self._client = client

    async def aclose(self) -> None:
        await super().aclose()
        await self._client.aclose()
        pool = getattr(self._client, "connection_pool", None)
        for sentinel in pool.sentinel_manager.sentinels if isinstance(pool, SentinelConnectionPool) else ():
            await sentinel.aclose()


@pytest.mark.parametrize("engine", ["redis", "redis-cluster", "valkey"])
def test_a_machine_and_a_dictionary_say_the_same(request: pytest.FixtureRequest, engine: str):
    """Whatever is done to them."""
    url = request.getfixturevalue(f"{engine.replace('-', '_')}_url").replace("redis://", f"{SCHEMES[engine]}://")
    machine = backend_machine(lambda: RedisBackend.from_url(url, **PATIENT), suite=OnRedis)
    run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=25))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(["openssl", *command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tls_port(module_redis: Callable[..., Any], certificate: Path) -> int:
    """Return the port where a Redis speaks TLS."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    files = ["--tls-cert-file", str(certificate / "cert.pem"), "--tls-key-file", str(certificate / "key.pem")]
    trust = ["--tls-ca-cert-file", str(certificate / "cert.pem"), "--tls-auth-clients", "no"]
    module_redis("--tls-port", str(port), *files, *trust)
    return port


class TestTLS(OnRedis):
    """Encrypted, the server's certificate checked."""

    title = "Redis TLS"

    @pytest.fixture
    def backend(self, tls_port: int, certificate: Path) -> Backend:
        return RedisBackend.from_url(
            f"rediss://localhost:{tls_port}/0?ssl_ca_certs={certificate / 'cert.pem'}", **PATIENT
        )


@pytest.mark.need("faults", engine="Redis TLS")
async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tls_port: int):
    """Nothing is sent to a server that cannot prove who it is."""
    backend = RedisBackend.from_url(f"rediss://localhost:{tls_port}/0")
    with pytest.raises(BackendUnavailable, match=r"(?i)certificate"):
        await backend.get("k")
    await backend.aclose()


@pytest.fixture(scope="module")
def unix_socket(module_redis: Callable[..., Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # a short name: the path of a socket has about a hundred bytes
        module_redis("--unixsocket", f"{folder}/redis.sock")
        yield f"{folder}/redis.sock"


class TestUnixSocket(OnRedis):
    """A socket in the file system."""

    title = "Redis unix socket"

    @pytest.fixture
    def backend(self, unix_socket: str) -> Backend:
        return RedisBackend.from_url(f"unix://{unix_socket}?db=1", **PATIENT)


LIFE = """
import asyncio, gc, sys
from acache.backends.redis import RedisBackend

backend = RedisBackend.from_url(sys.argv[1])

async def live(value):
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is not what this is about
    await asyncio.gather(*[backend.set(f"life:{n}", value, ttl=9) for n in range(20)])
    await backend.store("life:long", [bytes(2**20)] * 3, ttl=9)
    async with backend.open("life:long") as chunks:
        await anext(chunks)
    assert await backend.get("life:1") == value
    await backend.aclose()
    await backend.aclose()

asyncio.run(live(b"first"))
asyncio.run(live(b"second"))
del backend
gc.collect()
"""


@pytest.mark.parametrize("service", ["redis_url", "redis_cluster_url"])
def test_a_life_ends_without_warnings(request: pytest.FixtureRequest, service: str):
    """Two loops one after the other, closed twice: nothing is left open, also in development mode."""
    url = request.getfixturevalue(service)
    if service == "redis_cluster_url":
        url = url.replace("redis://", "redis+cluster://")
    run = [sys.executable, "-X", "dev", "-W", "error", "-c", LIFE, url]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
