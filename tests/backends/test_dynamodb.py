"""`DynamoDBBackend` on real servers, dynalite and moto: the contract, and what it promises beyond it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import socket
import sys
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import aioboto3
import boto3
import botocore.session
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    DecodeError,
    InvalidKey,
    KeyMissing,
    Policy,
    ValueTooLarge,
)
from acache.backends import Add, Batch, Cas, Clear, Counter, Scan, Touch
from acache.backends.dynamodb import DynamoDBBackend
from acache.testing import BackendConformance, FakeClock
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.services import PrivateDynamoDB

REGION = "eu-west-1"
VALUE_LIMIT = 400 * 1024 - 2048 - 256
JSON = "application/x-amz-json-1.0"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the AWS tools find these credentials and no others."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", params=["dynalite", "moto"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Return the address of each server."""
    return request.getfixturevalue({"dynalite": "dynamodb_url", "moto": "moto_url"}[request.param])


def control(endpoint: str) -> Any:
    """Return a client to look at tables and to prepare them."""
    session = botocore.session.get_session()
    session.set_credentials("test", "hunter2")
    return session.create_client("dynamodb", region_name=REGION, endpoint_url=endpoint)


def make_table(endpoint: str) -> str:
    name = f"acache-{uuid.uuid4().hex}"
    control(endpoint).create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.fixture(scope="module")
def tables() -> Iterator[dict[str, str]]:
    """Return the names of the tables of this run, one on each server, as they are needed."""
    made: dict[str, str] = {}
    yield made
    for endpoint, name in made.items():
        control(endpoint).delete_table(TableName=name)


@pytest.fixture
def table(endpoint: str) -> Iterator[str]:
    """Return the name of a table of the test's own."""
    name = make_table(endpoint)
    yield name
    control(endpoint).delete_table(TableName=name)


def built(endpoint: str, table: str, *, timeout: float = 20, **options: Any) -> DynamoDBBackend:
    """Return a backend whose client is built from a session, patient with a busy machine."""
    place = {"region": REGION, "endpoint_url": endpoint}
    return DynamoDBBackend(get_session(), table, **place, connect_timeout=20, timeout=timeout, **options)


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that moves when told, and begins now: a server may remove what is of the past."""
    return FakeClock(wall=time.time())


@pytest.fixture
async def backend(endpoint: str, table: str, clock: FakeClock) -> AsyncIterator[DynamoDBBackend]:
    """Return a backend over a table of its own."""
    made = built(endpoint, table, clock=clock)
    yield made
    await made.aclose()


@asynccontextmanager
async def client_of(endpoint: str, **options: Any) -> AsyncIterator[Any]:
    """Open a client that is the test's own."""
    config = AioConfig(retries={"total_max_attempts": 1}, max_pool_connections=50, **options)
    async with get_session().create_client(
        "dynamodb", region_name=REGION, endpoint_url=endpoint, config=config
    ) as client:
        yield client


@pytest.fixture
def closed_port() -> Iterator[str]:
    """Return the address of a port on which nobody answers."""
    with socket.socket() as reserved:  # bound, and never listening
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


class Liar:
    """An HTTP server that gives the answers it was told to, the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes], kind: str = JSON) -> None:
        self.answers = list(answers)
        self.kind = kind
        self.asked: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            await reader.readexactly(int(fields["content-length"]))
            self.asked.append(fields["x-amz-target"].rpartition(".")[2])
            status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if status:
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                    % (status, self.kind.encode(), len(body), body)
                )
                await writer.drain()
        finally:
            writer.close()


def complaint(code: str, message: str = "no") -> bytes:
    return json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message}).encode()


# The contract --------------------------------------------------------------------------------------------------------


class Owned(DynamoDBBackend):
    """A backend with a client of the test's own; the test's end is the owner's."""

    def __init__(self, endpoint: str, table: str, **options: Any) -> None:
        async def make() -> Any:
            config = AioConfig(retries={"total_max_attempts": 1}, max_pool_connections=50)
            context = get_session().create_client("dynamodb", region_name=REGION, endpoint_url=endpoint, config=config)
            return await context.__aenter__()

        self.client = asyncio.run(make())  # nothing in it belongs to a loop before its first request
        super().__init__(self.client, table, **options)

    async def aclose(self) -> None:
        await super().aclose()
        await self.client.close()


class OnItsOwnTable(BackendConformance):
    """Under a clock that moves when told; a table for all."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Touch)
    clock = FakeClock(wall=time.time())

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def built(self, endpoint: str, tables: dict[str, str], source: str) -> DynamoDBBackend:
        table = tables.get(endpoint) or tables.setdefault(endpoint, make_table(endpoint))
        patience: dict[str, Any] = {"timeout": 20, "connect_timeout": 20, "clock": self.clock}
        if source == "aiobotocore injected":
            return Owned(endpoint, table, timeout=20, clock=self.clock)
        if source == "aioboto3":
            return DynamoDBBackend(aioboto3.Session(region_name=REGION), table, endpoint_url=endpoint, **patience)
        url = f"dynamodb://{REGION}/{table}?endpoint_url={endpoint}&create_table=true"
        return DynamoDBBackend.from_url(url, **patience)


class TestOnDynalite(OnItsOwnTable):
    """A client that is built from a URL or by a session of aioboto3, and one of aiobotocore that is passed in."""

    title = "DynamoDB (dynalite)"

    @pytest.fixture(params=["aiobotocore", "aiobotocore injected", "aioboto3"])
    def backend(self, request: pytest.FixtureRequest, dynamodb_url: str, tables: dict[str, str]) -> DynamoDBBackend:
        return self.built(dynamodb_url, tables, request.param)


class TestOnMoto(OnItsOwnTable):
    """A client that is built from a URL."""

    title = "DynamoDB (moto) aiobotocore"
    largest = 400_000  # moto refuses items of more than 405 000 bytes, DynamoDB those of more than 409 600

    @pytest.fixture
    def backend(self, moto_url: str, tables: dict[str, str]) -> DynamoDBBackend:
        return self.built(moto_url, tables, "aiobotocore")


def test_a_machine_and_a_dictionary_say_the_same(dynamodb_url: str, tables: dict[str, str]):
    """Whatever is done to them."""
    suite = OnItsOwnTable()
    machine = backend_machine(lambda: suite.built(dynamodb_url, tables, "aiobotocore"), suite=OnItsOwnTable)
    run_state_machine_as_test(machine, settings=settings(max_examples=5, stateful_step_count=20))


# Items ---------------------------------------------------------------------------------------------------------------


async def test_an_item_is_what_the_module_says(backend: DynamoDBBackend, endpoint: str, table: str, clock: FakeClock):
    """Other programs can read bytes as binary, counters as numbers and the deadline, which is DynamoDB's own too."""
    await backend.set("bytes", bytes(range(100)), ttl=60.25)
    await backend.set("for ever", b"", ttl=None)
    await backend.incr("counter", 7, ttl=None)
    found = {item["key"]["S"]: item for item in control(endpoint).scan(TableName=table)["Items"]}
    assert all(len(item.pop("token")["B"]) == 8 for item in found.values())
    until = clock.wall() + 60.25
    assert float(found["bytes"].pop("until")["N"]) == pytest.approx(until, abs=1e-5)
    assert 0 <= int(found["bytes"].pop("expires_at")["N"]) - until < 1
    assert found == {
        "bytes": {"key": {"S": "bytes"}, "data": {"B": bytes(range(100))}},
        "for ever": {"key": {"S": "for ever"}, "data": {"B": b""}},
        "counter": {"key": {"S": "counter"}, "n": {"N": "7"}},
    }


async def test_digits_that_were_set_can_be_counted(backend: DynamoDBBackend):
    """What reads as a counter is one, however it came; what does not comes back as it was."""
    await backend.set_many({"5": b"5", "-5": b"-5", "max": b"%d" % (2**63 - 1), "0": b"0"}, ttl=60)
    assert await backend.get_many(["5", "-5", "max", "0"]) == {
        "5": b"5", "-5": b"-5", "max": b"%d" % (2**63 - 1), "0": b"0"
    }  # fmt: skip
    assert [await backend.incr("5", 1, ttl=60), await backend.incr("-5", 6, ttl=60)] == [6, 1]
    assert await backend.incr("max", -(2**63), ttl=60) == -1
    for text in (b"05", b"-0", b"+5", b"5 ", b"5.0", b"1e3", b"%d" % 2**63, "\u0665".encode()):
        await backend.set("text", text, ttl=60)
        with pytest.raises(DecodeError):
            await backend.incr("text", 1, ttl=60)
        assert await backend.get("text") == text


async def test_sums_that_leave_64_bits_are_refused_at_both_ends(backend: DynamoDBBackend):
    """The counter stays; a delta that no counter holds is refused, too."""
    for delta, number in ((1, 2**63 - 1), (-1, -(2**63))):
        await backend.set("n", b"%d" % number, ttl=60)
        with pytest.raises(DecodeError, match="64 bits"):
            await backend.incr("n", delta, ttl=60)
        with pytest.raises(DecodeError, match="64 bits"):
            await backend.incr("n", delta * 2**64, ttl=60)
        assert await backend.get("n") == b"%d" % number
        assert await backend.incr("n", -number, ttl=60) == 0 if number > 0 else True


async def test_no_text_is_an_expression(backend: DynamoDBBackend, endpoint: str, table: str):
    """Keys and values that look like DynamoDB's own words are stored as they are."""
    for key in ("#key", ":now", "key", "NOT", "size", "attribute_exists(#token)", "a.b", "a[0]", "\x00", "${x}", '"'):
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
    assert control(endpoint).scan(TableName=table)["Count"] == 0


async def test_an_item_that_is_not_acache_s_counts_as_none(backend: DynamoDBBackend, endpoint: str, table: str):
    """It is not read, and it is in nobody's way."""
    raw = control(endpoint)
    keys = ["get", "set", "add", "incr", "swap", "if"]
    for key in keys:
        raw.put_item(TableName=table, Item={"key": {"S": key}, "data": {"B": b"v"}, "n": {"N": "1"}})
    assert await backend.get_many(keys) == {}
    assert await backend.get_versioned("get") == (None, None)
    assert await backend.touch("get", ttl=60) is False
    assert [key async for key in backend.scan("")] == []
    await backend.set("set", b"mine", ttl=None)
    assert await backend.add("add", b"mine", ttl=None) is True
    assert await backend.incr("incr", 5, ttl=None) == 5
    assert await backend.swap("swap", b"mine", ttl=None) is None
    assert await backend.set_if("if", b"mine", None, ttl=None) is True
    assert sorted([key async for key in backend.scan("")]) == ["add", "if", "incr", "set", "swap"]


async def test_whatever_is_in_an_item_is_no_crash(backend: DynamoDBBackend, endpoint: str, table: str):
    """Attributes of other types, as another program may leave them, read as bytes, nothing, or an error that tells."""
    raw = control(endpoint)
    token = {"B": b"12345678"}
    for number, attributes in enumerate(
        [
            {"data": {"S": "text"}},
            {"n": {"S": "text"}},
            {"n": {"N": "1.5"}},
            {"until": {"S": "soon"}},
            {},
            {"token": {"S": "text"}},
        ]
    ):
        raw.put_item(TableName=table, Item={"key": {"S": f"k{number}"}, "token": token, **attributes})
    for key in [f"k{number}" for number in range(6)]:
        found = await backend.get(key)
        assert found is None or type(found) is bytes
        assert (await backend.get_many([key])).get(key) == found
        assert (await backend.get_versioned(key))[0] == found
        if key not in ("k1", "k3"):  # moto fails where it should compare a text with a number
            with pytest.raises(DecodeError):
                await backend.incr(key, 1, ttl=60)
        await backend.set(key, b"v", ttl=60)
        assert await backend.get(key) == b"v"


# Expiry --------------------------------------------------------------------------------------------------------------


async def test_nothing_that_has_expired_is_seen(backend: DynamoDBBackend, endpoint: str, table: str, clock: FakeClock):
    """Long before DynamoDB removes it, every operation finds the key free."""
    keys = ["get", "add", "incr", "swap", "set_if", "touch", "many"]
    await backend.set_many(dict.fromkeys(keys, b"old"), ttl=60)
    _, version = await backend.get_versioned("set_if")
    await backend.set_many(dict.fromkeys(keys, b"7"), ttl=0.5)
    clock.advance(0.499)
    assert await backend.get("get") == b"7"
    clock.advance(0.001001)
    assert await backend.get("get") is None
    assert await backend.get_versioned("get") == (None, None)
    assert await backend.get_many(keys) == {}
    assert await backend.delete("get") is False
    assert await backend.touch("touch", ttl=None) is False
    with pytest.raises(KeyMissing):
        await backend.ttl("touch")
    assert [key async for key in backend.scan("")] == []
    assert control(endpoint).scan(TableName=table)["Count"] == len(keys)
    assert await backend.add("add", b"new", ttl=None) is True
    assert await backend.incr("incr", 1, ttl=None) == 1
    assert await backend.swap("swap", b"new", ttl=None) is None
    assert await backend.set_if("set_if", b"new", version, ttl=None) is True
    assert await backend.delete_many(["get", "many"]) == 0
    assert await backend.get_many(keys) == {"add": b"new", "incr": b"1", "swap": b"new", "set_if": b"new"}
    assert await backend.ttl("incr") is None


async def test_the_machine_s_own_clock_ends_entries(endpoint: str, table: str):
    """Without a clock that is passed in."""
    backend = built(endpoint, table)
    await backend.set("brief", b"v", ttl=0.05)
    await backend.set("long", b"v", ttl=3600)
    await asyncio.sleep(0.06)
    assert await backend.get_many(["brief", "long"]) == {"long": b"v"}
    assert 3500 < (await backend.ttl("long") or 0) <= 3600
    await backend.aclose()


async def test_no_ttl_is_too_long(backend: DynamoDBBackend, clock: FakeClock):
    """Numbers that DynamoDB could not hold are cut to three thousand years."""
    for ttl in (1e12, 1e30, float("inf")):
        await backend.set("k", b"v", ttl=ttl)
        clock.advance(1e9)
        assert await backend.get("k") == b"v"
        assert (await backend.ttl("k") or 0) > 1e10


async def test_reads_are_consistent(endpoint: str, table: str):
    """Every read asks for it: what a write that has returned left is seen by all."""
    asked: dict[str, bool] = {}

    def note(params: dict[str, Any], model: Any, **_: Any) -> None:
        part = params.get("RequestItems", {}).get(table, params)
        if isinstance(part, dict) and model.name in ("GetItem", "BatchGetItem", "Scan", "Query"):
            asked[model.name] = asked.get(model.name, True) and part.get("ConsistentRead") is True

    async with client_of(endpoint) as client:
        client.meta.events.register("provide-client-params.dynamodb", note)
        backend = DynamoDBBackend(client, table, timeout=20)
        await backend.set("k", b"v", ttl=60)
        await backend.get("k")
        await backend.get_versioned("k")
        await backend.ttl("k")
        await backend.get_many(["k"])
        await backend.delete_many(["k"])
        await backend.incr("n", 1, ttl=60)
        assert [key async for key in backend.scan("")] == ["n"]
        await backend.clear("")
    assert asked == {"GetItem": True, "BatchGetItem": True, "Scan": True}


# Prefixes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["a", "a\x00", "#", ".*", "^a", "é", "a\x7f", "日", "🐍"])
async def test_a_prefix_is_taken_literally(backend: DynamoDBBackend, prefix: str):
    """Neighbours stay."""
    inside = [prefix, prefix + "\x00", prefix + "z", prefix + "\U0010ffff", prefix + "é"]
    outside = ["0", "z" + prefix, chr(ord(prefix[-1]) + 1), "A"]
    await backend.set_many(dict.fromkeys([*inside, *outside], b"v"), ttl=60)
    assert sorted([key async for key in backend.scan(prefix)]) == sorted(inside)
    await backend.clear(prefix)
    assert sorted([key async for key in backend.scan("")]) == sorted(outside)


async def test_scanning_and_clearing_go_page_by_page(backend: DynamoDBBackend):
    """Pages of a megabyte are followed to the end, also where a page holds nothing that is wanted."""
    large = b"x" * 300_000
    for number in range(10):
        await backend.set(f"a{number}", large, ttl=60)
        await backend.set(f"b{number}", large, ttl=60)
    await backend.set("c", b"v", ttl=60)
    assert sorted([key async for key in backend.scan("a")]) == [f"a{number}" for number in range(10)]
    assert [key async for key in backend.scan("c")] == ["c"]
    await backend.clear("a")
    assert sorted([key async for key in backend.scan("")]) == [*[f"b{number}" for number in range(10)], "c"]


# Limits --------------------------------------------------------------------------------------------------------------


async def test_the_largest_value_fits_under_the_longest_key(dynamodb_url: str):
    """By every way to write it; together such answers are more than DynamoDB gives at once."""
    # Not on moto, which counts the bytes as base64 and so takes three quarters of it.
    name = make_table(dynamodb_url)
    backend = built(dynamodb_url, name)
    key, data = "k" * 2048, b"x" * VALUE_LIMIT
    assert backend.value_limit == VALUE_LIMIT
    await backend.set(key, data, ttl=1e11)
    assert (await backend.swap(key, data, ttl=1e11)) == data
    _, version = await backend.get_versioned(key)
    assert await backend.set_if(key, data, version, ttl=1e11) is True
    assert await backend.touch(key, ttl=1e10) is True
    assert await backend.delete(key) is True
    assert await backend.add(key, data, ttl=1e11) is True
    many = dict.fromkeys([key, *[f"k{number}" for number in range(49)]], data)
    await backend.set_many(many, ttl=1e11)
    assert await backend.get_many(list(many)) == many  # 20 MB
    await backend.aclose()
    control(dynamodb_url).delete_table(TableName=name)


async def test_long_keys_by_the_hundred_fit_into_a_request(backend: DynamoDBBackend):
    """Also where JSON makes six bytes of one."""
    items = {"\x01" * 2040 + str(number): b"v" for number in range(250)}
    await backend.set_many(items, ttl=60)
    assert await backend.get_many(list(items)) == items
    assert await backend.delete_many(list(items)) == 250


async def test_a_larger_value_is_refused_before_anything_is_sent(closed_port: str):
    """The error tells both sizes, and needs no server."""
    backend = built(closed_port, "acache")
    data = b"x" * (VALUE_LIMIT + 1)
    for write in (
        lambda: backend.set("k", data, ttl=1),
        lambda: backend.add("k", data, ttl=1),
        lambda: backend.swap("k", data, ttl=1),
        lambda: backend.set_if("k", data, b"12345678", ttl=1),
        lambda: backend.set_many({"k": data}, ttl=1),
    ):
        with pytest.raises(ValueTooLarge, match=f"{VALUE_LIMIT + 1} .* {VALUE_LIMIT} "):
            await write()
    await backend.aclose()


async def test_what_is_no_key_is_refused_before_anything_is_sent(closed_port: str):
    """Empty, too long in bytes, no text; alone and among many."""
    backend = built(closed_port, "acache")
    for key in ("", "é" * 1025, "\ud800", 5):
        bad: Any = key
        for call in (
            lambda bad=bad: backend.get(bad),
            lambda bad=bad: backend.set(bad, b"", ttl=1),
            lambda bad=bad: backend.delete(bad),
            lambda bad=bad: backend.get_many(["good", bad]),
            lambda bad=bad: backend.set_many({"good": b"", bad: b""}, ttl=1),
            lambda bad=bad: backend.delete_many(["good", bad]),
            lambda bad=bad: backend.add(bad, b"", ttl=1),
            lambda bad=bad: backend.incr(bad, 1, ttl=1),
            lambda bad=bad: backend.touch(bad, ttl=1),
            lambda bad=bad: backend.ttl(bad),
            lambda bad=bad: backend.get_versioned(bad),
            lambda bad=bad: backend.set_if(bad, b"", None, ttl=1),
            lambda bad=bad: backend.swap(bad, b"", ttl=1),
        ):
            with pytest.raises(InvalidKey):
                await call()
    await backend.aclose()


# Batches -------------------------------------------------------------------------------------------------------------


async def test_a_key_named_twice_is_one(backend: DynamoDBBackend):
    """DynamoDB itself refuses such a request."""
    await backend.set("k", b"v", ttl=60)
    assert await backend.get_many(["k", "none", "k", "none"]) == {"k": b"v"}
    assert await backend.delete_many(["k", "k", "none"]) == 1


class Reluctant:
    """Hooks in a client by which the server takes a part of each batch only, and leaves the rest unprocessed."""

    def __init__(self, client: Any, table: str, takes: Callable[[str], bool]) -> None:
        self._table = table
        self._takes = takes
        self._held: list[Any] = []
        self.requests = 0
        self.unprocessed = 0
        for operation in ("BatchWriteItem", "BatchGetItem"):
            client.meta.events.register(f"provide-client-params.dynamodb.{operation}", self.hold_back)
            client.meta.events.register(f"after-call.dynamodb.{operation}", self.give_back)

    @staticmethod
    def key_of(one: dict[str, Any]) -> str:
        if "PutRequest" in one:
            return one["PutRequest"]["Item"]["key"]["S"]
        return one.get("DeleteRequest", {"Key": one})["Key"]["key"]["S"]

    def hold_back(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> dict[str, Any]:
        part = params["RequestItems"][self._table]
        every = part["Keys"] if isinstance(part, dict) else part
        taken = [one for one in every if self._takes(self.key_of(one))]
        context["held"] = [one for one in every if one not in taken]
        taken = taken or every[:1]  # a request must not be empty; what is read twice is no harm
        self.requests += 1
        self.unprocessed += len(context["held"])
        return {"RequestItems": {self._table: {**part, "Keys": taken} if isinstance(part, dict) else taken}}

    def give_back(self, parsed: dict[str, Any], context: dict[str, Any], model: Any, **_: Any) -> None:
        if not context["held"]:
            return
        if model.name == "BatchGetItem":
            parsed["Responses"][self._table] = [
                item for item in parsed["Responses"].get(self._table, []) if {"key": item["key"]} not in context["held"]
            ]
            parsed["UnprocessedKeys"] = {self._table: {"Keys": context["held"], **self.rest(context)}}
        else:
            parsed["UnprocessedItems"] = {self._table: context["held"]}

    def rest(self, context: dict[str, Any]) -> dict[str, Any]:
        return {
            "ProjectionExpression": "#key, #token, #data, #n, #until",
            "ConsistentRead": True,
            "ExpressionAttributeNames": {f"#{name}": name for name in ("key", "token", "data", "n", "until")},
        }


async def test_what_dynamodb_leaves_unprocessed_is_sent_again(endpoint: str, table: str):
    """Until nothing is left, however often it takes."""
    randomly = random.Random(11)
    async with client_of(endpoint) as client:
        backend = DynamoDBBackend(client, table, timeout=20)
        reluctant = Reluctant(client, table, lambda _: randomly.random() < 0.6)
        items = {f"k{number}": b"%d" % number for number in range(300)}
        await backend.set_many(items, ttl=60)
        assert reluctant.unprocessed > 50
        assert await backend.get_many(list(items)) == items
        assert await backend.delete_many(list(items)) == 300
        assert await backend.get_many(list(items)) == {}
    assert control(endpoint).scan(TableName=table)["Count"] == 0


async def test_what_stays_unprocessed_is_reported_by_key(endpoint: str, table: str):
    """The others are read, stored and removed; within the deadline, and not in a storm of requests."""
    async with client_of(endpoint) as client:
        plain = DynamoDBBackend(client, table, timeout=20)
        stuck = {"k7", "k42"}
        items = {f"k{number}": b"v%d" % number for number in range(60)}
        others = {key: data for key, data in items.items() if key not in stuck}
        await plain.set_many(items, ttl=60)
    async with client_of(endpoint) as client:
        reluctant = Reluctant(client, table, lambda key: key not in stuck)
        backend = DynamoDBBackend(client, table, timeout=1.5)
        with pytest.raises(BackendUnavailable, match="unprocessed") as caught:
            await backend.get_many(list(items))
        assert set(caught.value.failed) == stuck
        assert caught.value.found == others
        with pytest.raises(BackendUnavailable) as caught:
            await backend.delete_many(list(items))
        assert stuck <= set(caught.value.failed)
        assert all(isinstance(error, BackendUnavailable) for error in caught.value.failed.values())
        assert reluctant.requests < 100
    async with client_of(endpoint) as client:
        plain = DynamoDBBackend(client, table, timeout=20)
        assert set(await plain.get_many(list(items))) <= stuck
        reluctant = Reluctant(client, table, lambda key: key not in stuck)
        backend = DynamoDBBackend(client, table, timeout=1.5)
        with pytest.raises(BackendUnavailable) as caught:
            await backend.set_many(dict.fromkeys(items, b"new"), ttl=60)
        assert set(caught.value.failed) == stuck
    plain = built(endpoint, table)
    found = await plain.get_many(list(others))
    assert found == dict.fromkeys(others, b"new")
    await plain.aclose()


# Compare and set -----------------------------------------------------------------------------------------------------


async def test_fifty_writers_and_one_winner_for_each_version(backend: DynamoDBBackend, endpoint: str, table: str):
    """Over nothing, a value, a counter, an empty value; the winner's value stays."""
    other = built(endpoint, table)
    for start in (None, b"value", b"5", b""):
        if start is not None:
            await backend.set("k", start, ttl=60)
        data, version = await backend.get_versioned("k")
        assert data == start
        values = [b"w%d" % number for number in range(50)]
        tries = [(backend, other)[number % 2].set_if("k", values[number], version, ttl=60) for number in range(50)]
        won = await asyncio.gather(*tries)
        assert won.count(True) == 1
        assert await other.get("k") == values[won.index(True)]
    await other.aclose()


async def test_every_swap_gets_another_s_value(backend: DynamoDBBackend):
    """Of fifty at once each value is replaced once: a chain without a gap."""
    values = [b"v%d" % number for number in range(50)]
    before = await asyncio.gather(*[backend.swap("k", value, ttl=60) for value in values])
    last = await backend.get("k")
    assert before.count(None) == 1
    assert sorted([*[one for one in before if one is not None], last or b""]) == sorted(values)


async def test_no_increment_is_lost_over_an_expired_counter(
    backend: DynamoDBBackend, endpoint: str, table: str, clock: FakeClock
):
    """Two hundred by two clients start one new counter between them."""
    other = built(endpoint, table, clock=clock)
    await backend.incr("n", 1000, ttl=1)
    clock.advance(2)
    sums = await asyncio.gather(*[one.incr("n", 1, ttl=60) for one in (backend, other) for _ in range(100)])
    assert sorted(sums) == list(range(1, 201))
    assert 50 < (await backend.ttl("n") or 0) <= 60.001
    await other.aclose()


async def test_a_load_does_not_undo_the_delete_of_another_cache(endpoint: str, table: str):
    """Two caches, two clients: the fill compares with what it saw, and a delete leaves a tombstone."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def load() -> str:
        begun.set()
        await gate.wait()
        return "stale"

    one, two = built(endpoint, table), built(endpoint, table)
    patient = Policy(backend_timeout=20)
    loading = Cache(one, memory=None, namespace="n", policy=patient)
    deleting = Cache(two, memory=None, namespace="n", policy=patient)
    async with loading, deleting:
        for _ in range(2):  # over nothing, over a tombstone
            begun.clear()
            gate.clear()
            task = asyncio.create_task(loading.get_or_load("k", load, ttl=60))
            await begun.wait()
            await deleting.delete("k")
            gate.set()
            assert await task == "stale"
            assert await deleting.get("k") is None
        assert loading.stats().fills_refused == 2
        assert await loading.get_or_load("k", lambda: asyncio.sleep(0, "fresh"), ttl=60) == "fresh"
        assert await deleting.get("k") == "fresh"
        assert await deleting.incr("n", 2) == 2
        await deleting.clear()
        assert await loading.get_many(["k", "n"]) == {}


# Clients -------------------------------------------------------------------------------------------------------------


async def test_an_injected_client_stays_open(endpoint: str, table: str):
    """It is its owner's to close."""
    async with client_of(endpoint) as client:
        backend = DynamoDBBackend(client, table)
        await backend.set("k", b"v", ttl=60)
        await backend.aclose()
        await backend.aclose()
        assert (await client.get_item(TableName=table, Key={"key": {"S": "k"}}))["Item"]["data"]["B"] == b"v"
        assert await backend.get("k") == b"v"


async def test_a_client_that_its_owner_has_closed_is_no_crash(endpoint: str, table: str):
    """The backend leaves nothing open, and goes on or says that it cannot."""
    async with client_of(endpoint) as client:
        backend = DynamoDBBackend(client, table)
    try:
        assert await backend.get("k") is None
    except BackendUnavailable:
        pass
    finally:
        await client.close()


def test_an_injected_client_belongs_to_one_loop(endpoint: str, table: str):
    """In a second one the error says what to do."""
    backend = Owned(endpoint, table)

    async def use() -> None:
        await backend.get("k")

    async def use_and_close() -> None:
        await backend.get("k")
        await backend.aclose()

    asyncio.run(use_and_close())
    with pytest.raises(BackendUnavailable, match="pass a session"):
        asyncio.run(use())


@pytest.mark.parametrize(
    "make", [get_session, aioboto3.Session, boto3.Session], ids=["aiobotocore", "aioboto3", "boto3"]
)
def test_a_session_gives_each_loop_a_client(make: Callable[[], Any], endpoint: str, table: str):
    """Also after aclose, twice, and without a warning about anything unclosed; a synchronous one is told apart."""
    backend = DynamoDBBackend(make(), table, region=REGION, endpoint_url=endpoint, timeout=20)

    async def count() -> int:
        try:
            return await backend.incr("n", 1, ttl=60)
        finally:
            await backend.aclose()
            await backend.aclose()

    if make is boto3.Session:
        with pytest.raises(ConfigurationError, match="client"):
            asyncio.run(count())
        return
    assert [asyncio.run(count()) for _ in range(3)] == [1, 2, 3]
    with asyncio.Runner() as one, asyncio.Runner() as two:
        for number, runner in enumerate((one, two, one, two), 4):
            assert runner.run(backend.incr("n", 1, ttl=60)) == number
        two.run(backend.aclose())
        one.run(backend.aclose())
    gc.collect()  # a warning of anything unclosed would come now, and is an error


async def test_closing_lets_running_calls_finish(endpoint: str, table: str):
    """They get their answers, also those that are still opening the client, and the next call opens a new one."""
    backend = built(endpoint, table)
    opening = [asyncio.ensure_future(backend.set(f"k{number}", b"v", ttl=60)) for number in range(30)]
    await asyncio.sleep(0)
    await backend.aclose()
    assert all(call.done() for call in opening)
    await asyncio.gather(*opening)
    await backend.get("k1")
    calls = [asyncio.ensure_future(backend.get(f"k{number}")) for number in range(30)]
    await asyncio.sleep(0)
    await backend.aclose()
    assert await asyncio.gather(*calls) == [b"v"] * 30
    assert await backend.get("k1") == b"v"
    await backend.aclose()
    gc.collect()


def test_what_cannot_serve_is_refused():
    """Another service's client, one that is not opened yet, a resource, a name; and options that would be ignored."""
    sqs = botocore.session.get_session().create_client("sqs", region_name=REGION)

    async def other() -> Any:
        return await get_session().create_client("sqs", region_name=REGION).__aenter__()

    async def mine() -> Any:
        return await get_session().create_client("dynamodb", region_name=REGION).__aenter__()

    for wrong in (None, "acache", sqs, botocore.session.get_session().create_client("dynamodb", region_name=REGION)):
        with pytest.raises(ConfigurationError, match="session"):
            DynamoDBBackend(wrong)
    unopened = get_session().create_client("dynamodb", region_name=REGION)
    with pytest.raises(ConfigurationError, match="opened client"):
        DynamoDBBackend(unopened)
    unopened._coro.close()
    with pytest.raises(ConfigurationError, match="sqs"):
        DynamoDBBackend(asyncio.run(other()))
    for options in ({"region": REGION}, {"endpoint_url": "http://localhost"}):
        with pytest.raises(ConfigurationError, match="has its own"):
            DynamoDBBackend(asyncio.run(mine()), **options)  # type: ignore[arg-type]
    for name in ("", "ab", "a b c", "a/b", "x" * 256, None):
        with pytest.raises(ConfigurationError, match="table"):
            DynamoDBBackend(get_session(), name)  # type: ignore[arg-type]


# URLs ----------------------------------------------------------------------------------------------------------------


def test_the_url_names_region_and_table():
    """The table has a name of its own unless the URL gives one; nothing is looked up yet."""
    for url, table in {
        "dynamodb://eu-west-1": "acache",
        "dynamodb://eu-west-1/": "acache",
        "dynamodb:///sessions": "sessions",
        "DynamoDB://eu-west-1/a.b_c-1?create_table=true": "a.b_c-1",
        "dynamodb://eu-west-1/abc?endpoint_url=http%3A%2F%2Flocalhost%3A8000&create_table=false": "abc",
    }.items():
        assert repr(DynamoDBBackend.from_url(url)) == f"<DynamoDBBackend {table}>"
        assert isinstance(Cache.from_url(url), Cache)


@pytest.mark.parametrize(
    "rest",
    [
        "eu-west-1/ab",
        "eu-west-1/a/b/c",
        "eu-west-1/abc?no_such_option=1",
        "eu-west-1/abc?create_table=yes",
        "eu-west-1/abc?create_table",
        "eu-west-1/abc#part",
        "key:hunter2@eu-west-1/abc",
        "localhost:8000/abc",
        "[::1/abc",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_at_once(rest: str):
    """Without repeating a password that somebody put there."""
    with pytest.raises(ConfigurationError) as caught:
        DynamoDBBackend.from_url(f"dynamodb://{rest}")
    assert "hunter2" not in str(caught.value)


async def test_no_region_and_no_server_like_this_are_told(monkeypatch: pytest.MonkeyPatch):
    """By the first operation, which is when the environment is asked."""
    for url in ("dynamodb:///acache", "dynamodb://eu-west-1/acache?endpoint_url=localhost", "dynamodb://a_b/acache"):
        backend = DynamoDBBackend.from_url(url)
        with pytest.raises(ConfigurationError, match="cannot make a client"):
            await backend.get("k")
        await backend.aclose()


# The table -----------------------------------------------------------------------------------------------------------


async def test_the_table_is_made_by_the_first_operation(endpoint: str):
    """Billed by request, with the removal of what has expired; and again when somebody took it away."""
    name, raw = f"acache-{uuid.uuid4().hex}", control(endpoint)
    backend = built(endpoint, name, create_table=True)
    await asyncio.gather(*[backend.set(f"k{number}", b"v", ttl=60) for number in range(20)])
    told = raw.describe_table(TableName=name)["Table"]
    assert told["KeySchema"] == [{"AttributeName": "key", "KeyType": "HASH"}]
    assert told["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
    expiry = raw.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
    assert expiry.get("AttributeName") == "expires_at" or expiry["TimeToLiveStatus"] == "DISABLED"  # dynalite cannot
    raw.delete_table(TableName=name)
    with pytest.raises(BackendRefused):
        await backend.get("k1")
    assert await backend.get("k1") is None
    await backend.aclose()
    raw.delete_table(TableName=name)


async def test_the_removal_of_expired_items_is_switched_on(moto_url: str):
    """Also for a table that is there already; and once it is on nothing is asked for again."""
    name, raw = make_table(moto_url), control(moto_url)
    for _ in range(2):
        backend = built(moto_url, name, create_table=True)
        await backend.set("k", b"v", ttl=60)
        await backend.aclose()
        told = raw.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        assert told == {"AttributeName": "expires_at", "TimeToLiveStatus": "ENABLED"}
    raw.delete_table(TableName=name)


@pytest.mark.need("faults", engine="DynamoDB")
async def test_a_missing_table_is_refused_with_the_remedy(endpoint: str):
    """By every operation; once it is there nothing else need be done."""
    name = f"acache-{uuid.uuid4().hex}"
    backend = built(endpoint, name)
    for call in (backend.get("k"), backend.set("k", b"v", ttl=1), backend.clear("k"), backend.incr("k", 1, ttl=1)):
        with pytest.raises(BackendRefused, match=f"no table '{name}'.*create_table=True"):
            await call
    with pytest.raises(BackendRefused, match="create_table=True") as caught:
        await backend.get_many(["a", "b"])
    assert set(caught.value.failed) == {"a", "b"}
    control(endpoint).create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    control(endpoint).get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    assert await backend.get("k") is None
    await backend.aclose()
    control(endpoint).delete_table(TableName=name)


async def test_five_processes_may_make_the_table_at_once(endpoint: str):
    """Each finds it ready, and no increment is lost."""
    name = f"acache-{uuid.uuid4().hex}"
    script = (
        "import asyncio, sys\n"
        "from acache.backends.dynamodb import DynamoDBBackend\n"
        "async def main():\n"
        "    backend = DynamoDBBackend.from_url(sys.argv[1], timeout=30)\n"
        "    sys.stdin.readline()\n"
        "    print(await backend.incr('n', 1, ttl=600))\n"
        "    await backend.aclose()\n"
        "asyncio.run(main())\n"
    )
    url = f"dynamodb://{REGION}/{name}?endpoint_url={endpoint}&create_table=true"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", script, url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=dict(os.environ),
        )
        for _ in range(5)
    ]  # fmt: skip
    told = await asyncio.gather(*[process.communicate(b"\n") for process in processes])
    assert sorted(out.decode().strip() for out, _ in told) == ["1", "2", "3", "4", "5"], [err for _, err in told]
    control(endpoint).delete_table(TableName=name)


async def test_a_look_alike_without_removal_will_do_and_a_forbidden_one_is_told():
    """The table is made; what cannot be switched on is left; what may not be is an error."""
    there = (200, json.dumps({"Table": {"TableStatus": "ACTIVE"}}).encode())
    off = (200, json.dumps({"TimeToLiveDescription": {"TimeToLiveStatus": "DISABLED"}}).encode())
    unknown = (400, complaint("UnknownOperationException"))
    async with Liar(there, unknown, unknown, (200, b"{}")) as liar:
        backend = built(liar.url, "acache", create_table=True)
        assert await backend.get("k") is None
        assert liar.asked == ["describetable", "describetimetolive", "updatetimetolive", "getitem"]
        await backend.aclose()
    async with Liar(there, off, (400, complaint("AccessDeniedException"))) as liar:
        backend = built(liar.url, "acache", create_table=True)
        with pytest.raises(BackendRefused):
            await backend.get("k")
        await backend.aclose()


# Faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.need("faults", engine="DynamoDB")
@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (400, "AccessDeniedException", BackendRefused),
        (400, "UnrecognizedClientException", BackendRefused),
        (400, "ExpiredTokenException", BackendRefused),
        (400, "InvalidSignatureException", BackendRefused),
        (400, "IncompleteSignature", BackendRefused),
        (400, "MissingAuthenticationTokenException", BackendRefused),
        (400, "ResourceNotFoundException", BackendRefused),
        (400, "ValidationException", BackendRefused),
        (403, "SomethingNewException", BackendRefused),
        (500, "InternalServerError", BackendUnavailable),
        (503, "ServiceUnavailable", BackendUnavailable),
    ],
)
async def test_dynamodb_s_errors_become_acache_s(status: int, code: str, error: type[BackendError]):
    """By what the caller can do about them, with DynamoDB's own as the cause."""
    async with Liar((status, complaint(code))) as liar:
        backend = built(liar.url, "acache")
        for call in (lambda: backend.get("k"), lambda: backend.set("k", b"v", ttl=1), lambda: backend.clear("k")):
            with pytest.raises(error, match=code) as caught:
                await call()
            assert caught.value.__cause__ is not None
        with pytest.raises(error) as caught:
            await backend.get_many(["a", "b"])
        assert set(caught.value.failed) == {"a", "b"}
        await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
async def test_an_item_that_is_too_large_for_the_server_is_told_as_such():
    """Should its limit be another one."""
    async with Liar((400, complaint("ValidationException", "Item size has exceeded the maximum allowed size"))) as liar:
        backend = built(liar.url, "acache")
        with pytest.raises(ValueTooLarge):
            await backend.set("k", b"v", ttl=1)
        await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
@pytest.mark.parametrize(
    "code", ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]
)
async def test_what_is_throttled_is_sent_again(code: str):
    """After pauses; until it is carried out, or the deadline has come."""
    busy, done = (400, complaint(code)), (200, b"{}")
    async with Liar(busy, busy, busy, done) as liar:
        backend = built(liar.url, "acache", timeout=20)
        await backend.set("k", b"v", ttl=1)
        assert liar.asked == ["putitem"] * 4
        await backend.aclose()
    async with Liar(busy) as liar:
        backend = built(liar.url, "acache", timeout=2)
        begun = time.monotonic()
        with pytest.raises(BackendUnavailable, match=code) as caught:
            await backend.get_many(["a", "b"])
        assert set(caught.value.failed) == {"a", "b"}
        assert time.monotonic() - begun < 10
        assert 2 <= len(liar.asked) < 60
        await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
@pytest.mark.parametrize("answer", [(500, complaint("InternalServerError")), (0, b"")], ids=["error", "lost"])
async def test_a_write_whose_outcome_is_unknown_is_not_sent_again(answer: tuple[int, bytes]):
    """An increment that was carried out and not confirmed must not count twice."""
    async with Liar(answer) as liar:
        backend = built(liar.url, "acache")
        with pytest.raises(BackendUnavailable):
            await backend.incr("n", 1, ttl=1)
        assert liar.asked == ["updateitem"]
        await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>Sorry</html>", "text/html"),
        (b"{}", "text/plain"),
        (b"{}", "application/json"),
        (b"[]", JSON),
        (b"5", JSON),
        (b'{"Item": 5}', JSON),
        (b'{"Item": {"token": {"B": 5}, "data": {"B": "!"}}}', JSON),
        (b'{"Item": {"token": {"B": ""}, "until": {"N": "x"}}}', JSON),
        (b'{"Item": {"token": {"B": ""}, "n": {"N": [1]}}, "Attributes": {"n": {"N": "x"}}}', JSON),
        (b'{"Attributes": [1]}', JSON),
    ],
)
async def test_what_is_no_answer_confirms_nothing(body: bytes, kind: str):
    """A page of apologies with status 200 is an error, above all for a delete."""
    async with Liar((200, body), kind=kind) as liar:
        backend = built(liar.url, "acache")
        for call in (
            lambda: backend.get("k"),
            lambda: backend.swap("k", b"", ttl=1),
            lambda: backend.get_many(["k"]),
            lambda: backend.incr("k", 1, ttl=1),
        ):
            try:
                await call()
            except (BackendUnavailable, DecodeError):
                continue
            assert kind == JSON
        if kind != JSON:
            for call in (lambda: backend.delete("k"), lambda: backend.set_many({"k": b""}, ttl=1)):
                with pytest.raises(BackendUnavailable, match="no answer of DynamoDB"):
                    await call()
        await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
async def test_no_credentials_are_refused(monkeypatch: pytest.MonkeyPatch):
    """None to be found, and half of them."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for _ in range(2):
        async with Liar((200, b"{}")) as liar:
            backend = built(liar.url, "acache")
            with pytest.raises(BackendRefused, match="credentials"):
                await backend.get("k")
            assert liar.asked == []
            await backend.aclose()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)


@pytest.mark.need("faults", engine="DynamoDB")
async def test_a_server_that_is_not_there_is_told_within_the_deadline(closed_port: str):
    """Reading and writing alike, for one key and for many."""
    backend = built(closed_port, "acache", timeout=0.5)
    for call in (
        lambda: backend.get("k"), lambda: backend.set("k", b"v", ttl=1), lambda: backend.get_many(["a", "b"]),
        lambda: backend.set_many({"a": b""}, ttl=1), lambda: backend.clear("a"),
    ):  # fmt: skip
        with pytest.raises(BackendUnavailable, match="cannot reach") as caught:
            await call()
        assert caught.value.__cause__ is not None
    await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
async def test_a_killed_server_is_used_again_when_it_is_back(private_dynamodb: Callable[..., PrivateDynamoDB]):
    """One backend sees it all; nobody restarts the application, and the table is made again."""
    server = private_dynamodb()
    backend = built(server.url, "acache", create_table=True)
    await backend.set("k", b"v", ttl=60)
    server.kill()
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await backend.get("k")
        with pytest.raises(BackendUnavailable):
            await backend.delete("k")
    server.restart()
    async with asyncio.timeout(20):
        while True:
            try:
                assert await backend.get("k") is None
                break
            except BackendRefused:  # the table went with the server
                pass
    assert await backend.incr("n", 1, ttl=60) == 1
    await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
async def test_a_paused_server_costs_a_deadline_and_answers_in_step_again(
    private_dynamodb: Callable[..., PrivateDynamoDB],
):
    """Replies that come late reach nobody else."""
    server = private_dynamodb()
    keys = [str(number) for number in range(20)]
    patient = built(server.url, "acache", create_table=True)
    await patient.set_many({key: b"v" + key.encode() for key in keys}, ttl=60)
    await patient.aclose()
    backend = built(server.url, "acache", timeout=0.4)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await backend.get("1") == b"v1"
                break
            except BackendTimeout:  # the machine is busy
                pass
    server.pause()
    try:
        begun = time.monotonic()
        results = await asyncio.gather(*[backend.get(key) for key in keys], return_exceptions=True)
        assert time.monotonic() - begun < 5
        assert all(isinstance(result, BackendTimeout) for result in results), results
        with pytest.raises(BackendTimeout) as caught:
            await backend.get_many(keys)
        assert set(caught.value.failed) == set(keys)
    finally:
        server.resume()
    async with asyncio.timeout(20):
        for key in keys:
            while True:
                try:
                    assert await backend.get(key) == b"v" + key.encode()
                    break
                except BackendTimeout:
                    pass
    await backend.aclose()


@pytest.mark.need("faults", engine="DynamoDB")
async def test_a_cache_goes_on_without_its_server(private_dynamodb: Callable[..., PrivateDynamoDB]):
    """Reads are misses, deletes say so, and it recovers by itself."""
    server = private_dynamodb()
    backend = built(server.url, "acache", create_table=True)
    async with Cache(backend, namespace="n", memory=None, policy=Policy(backend_timeout=20)) as cache:
        await backend.set("warm", b"v", ttl=60)
        await cache.set("k", "v")
        server.kill()
        assert await cache.get_or_load("k", lambda: asyncio.sleep(0, "loaded")) == "loaded"
        with pytest.raises(BackendUnavailable):
            await cache.delete("k")
        server.restart()
        async with asyncio.timeout(20):
            while await cache.get("k") != "again":
                assert await cache.get_or_load("k", lambda: asyncio.sleep(0, "again")) == "again"


async def test_five_hundred_cancelled_calls(endpoint: str, table: str):
    """At every point of a call; each answer that does arrive belongs to its key."""
    randomly = random.Random(7)
    names = [f"key{number}" for number in range(30)]
    answered = cancelled = 0
    backend = built(endpoint, table, timeout=60, max_connections=8)
    await backend.set_many({name: name.encode() for name in names}, ttl=600)

    async def ask() -> None:
        name = randomly.choice(names)
        match randomly.randrange(6):
            case 0:
                await backend.set(name, name.encode(), ttl=600)
            case 1:
                some = randomly.sample(names, 5)
                assert await backend.get_many(some) == {one: one.encode() for one in some}
            case 2:
                assert await backend.delete(f"{name}none") is False
            case 3:
                assert (await backend.get_versioned(name))[0] == name.encode()
            case _:
                assert await backend.get(name) == name.encode()

    async def worker() -> None:
        nonlocal answered, cancelled
        while cancelled < 500 or answered < 200:
            task = asyncio.ensure_future(ask())
            if randomly.random() < 0.7:
                if randomly.random() < 0.5:
                    await asyncio.sleep(randomly.random() * 0.03)
                else:
                    for _ in range(randomly.randrange(12)):
                        await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                cancelled += 1
            else:
                task.result()
                answered += 1

    async with asyncio.timeout(120):
        await asyncio.gather(*[worker() for _ in range(20)])
    assert await backend.get_many(names) == {name: name.encode() for name in names}
    await backend.aclose()
    gc.collect()


async def test_those_who_wait_for_the_table_share_one_deadline():
    """Twenty callers of a server that accepts connections and says nothing do not queue for a deadline each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"dynamodb://{REGION}/table?create_table=true&endpoint_url=http://127.0.0.1:{silent.getsockname()[1]}"
        backend = DynamoDBBackend.from_url(url, timeout=0.5)
        began = time.monotonic()
        found = await asyncio.gather(*[backend.get(f"k{number}") for number in range(20)], return_exceptions=True)
        assert {type(error) for error in found} == {BackendTimeout}
        assert time.monotonic() - began < 5  # one after the other they would take ten
        await backend.aclose()


async def test_a_delta_that_is_no_whole_number_counts_nothing(backend: DynamoDBBackend):
    """A TypeError of the caller's, before anything is sent."""
    with pytest.raises(TypeError):
        await backend.incr("k", 1.5, ttl=60)  # pyright: ignore[reportArgumentType]
    assert await backend.get("k") is None
