"""Reads of one turn of the event loop share a question, and nobody notices but the server."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from acache import BackendError, BackendTimeout, BackendUnavailable, ConfigurationError, InvalidKey
from acache.backends._gather import Gatherer
from acache.backends.base import batch_error
from acache.backends.dynamodb import DynamoDBBackend
from acache.backends.mongodb import MongoDBBackend


class Server:
    """Holds upper-case letters; counts what it is asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.error: BackendError | None = None
        self.gatherer: Gatherer[str] = Gatherer(self.fetch, self.fetch_one)

    async def fetch(self, keys: Sequence[str]) -> Mapping[str, str]:
        self.asked.append(list(keys))
        await asyncio.sleep(0)  # as every engine does
        await self.may.wait()
        if self.error is not None:
            raise self.error
        return {key: key.upper() for key in keys if not key.startswith("no")}

    async def fetch_one(self, key: str) -> str | None:
        return (await self.fetch([key])).get(key)

    async def get_all(self, keys: Sequence[str]) -> list[str | None]:
        return list(await asyncio.gather(*[self.gatherer.get(key) for key in keys]))


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_one_alone_asks_at_once(server: Server):
    assert await server.gatherer.get("a") == "A"
    assert await server.gatherer.get("b") == "B"
    assert server.asked == [["a"], ["b"]]


async def test_those_of_one_turn_share_a_question(server: Server):
    """After the first, who found nothing under way."""
    keys = [f"k{number}" for number in range(50)]
    assert await server.get_all(keys) == [key.upper() for key in keys]
    assert server.asked == [keys[:1], keys[1:]]


async def test_who_asks_for_the_same_or_for_nothing_has_an_answer_too(server: Server):
    assert await server.get_all(["a", "b", "b", "none", "b", "a"]) == ["A", "B", "B", None, "B", "A"]
    assert server.asked == [["a"], ["b", "none", "a"]]


async def test_a_question_has_a_hundred_keys_at_most(server: Server):
    keys = [f"k{number}" for number in range(451)]
    assert await server.get_all(keys) == [key.upper() for key in keys]
    assert [len(asked) for asked in server.asked] == [1, 100, 100, 100, 100, 50]


async def test_a_cancelled_caller_leaves_the_others_alone(server: Server):
    server.may.clear()
    tasks = [asyncio.ensure_future(server.gatherer.get(key)) for key in ("a", "b", "c", "d")]
    await asyncio.sleep(0)
    tasks[1].cancel()  # before the question leaves
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[2].cancel()  # while it is under way
    tasks[0].cancel()  # the one who asked alone
    server.may.set()
    assert await tasks[3] == "D"
    await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [True, True, True, False]
    assert server.asked == [["a"], ["c", "d"]]
    assert await server.gatherer.get("e") == "E"


async def test_a_question_that_everybody_left_is_not_asked(server: Server):
    server.may.clear()
    tasks = [asyncio.ensure_future(server.gatherer.get(key)) for key in ("a", "b")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    server.may.set()
    assert await tasks[0] == "A"
    assert server.asked == [["a"]]


async def test_ten_thousand_random_cancellations_shift_no_answer(server: Server):
    chance = random.Random(5)

    async def ask(key: str) -> None:
        assert await server.gatherer.get(key) == key.upper()

    for round_ in range(50):
        tasks = [asyncio.ensure_future(ask(f"k{round_}:{number}")) for number in range(200)]
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        for task in tasks:
            if chance.random() < 0.5:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)


async def test_each_has_the_error_of_its_own_key(server: Server):
    """And knows that others were answered."""
    late = BackendTimeout("late")
    server.error = batch_error({"b": late}, found={"c": "C"})
    server.may.clear()
    tasks = [asyncio.ensure_future(server.gatherer.get(key)) for key in ("a", "b", "c", "d")]
    for _ in range(3):
        await asyncio.sleep(0)
    server.may.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], BackendTimeout)
    assert results[1].failed == {"b": late}
    assert results[2:] == ["C", None]


async def test_each_has_its_own_copy_of_a_failure(server: Server):
    """With a traceback of its own: an exception that a thousand raise grows with each."""
    server.error = BackendUnavailable("gone")
    results = await asyncio.gather(*[server.gatherer.get(f"k{number}") for number in range(5)], return_exceptions=True)
    assert all(type(result) is BackendUnavailable and str(result) == "gone" for result in results)
    assert len({id(result) for result in results}) == 5


async def test_closing_waits_for_the_answers(server: Server):
    server.may.clear()
    tasks = [asyncio.ensure_future(server.gatherer.get(key)) for key in ("a", "b")]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(server.gatherer.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    server.may.set()
    await closing
    assert await asyncio.gather(*tasks) == ["A", "B"]


def test_a_second_event_loop_begins_anew():
    """Also when the first one ended in the middle of a question."""
    servers: list[Server] = []

    async def first() -> None:
        servers.append(Server())
        servers[0].may.clear()
        for key in ("a", "b"):
            asyncio.ensure_future(servers[0].gatherer.get(key))  # noqa: RUF006 - ends with the loop
        await asyncio.sleep(0.01)

    async def second() -> None:
        servers[0].may = asyncio.Event()
        servers[0].may.set()
        assert await servers[0].get_all(["c", "d"]) == ["C", "D"]

    asyncio.run(first())
    asyncio.run(second())


# Engines --------------------------------------------------------------------------------------------------------------


class CountingMongoDB(MongoDBBackend):
    """Counts its reads of many."""

    reads = 0

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        self.reads += 1
        return await super().get_many(keys)


class CountingDynamoDB(DynamoDBBackend):
    """Counts its reads of many."""

    reads = 0

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        self.reads += 1
        return await super().get_many(keys)


@pytest.fixture(params=["mongodb", "dynamodb"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "mongodb":
        url = request.getfixturevalue("mongodb_url")
        return CountingMongoDB.from_url(f"{url}gather?collection={uuid.uuid4().hex}&gather=true", timeout=10)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    url = request.getfixturevalue("dynamodb_url")
    table = f"gather-{uuid.uuid4().hex}"
    options = f"endpoint_url={url}&create_table=true&gather=true"
    return CountingDynamoDB.from_url(f"dynamodb://us-east-1/{table}?{options}", timeout=10)


async def test_gets_of_one_turn_are_one_read_of_many(engine: Any):
    """On request; a hundred callers, each with his own answer, error or nothing."""
    keys = [f"k{number}" for number in range(98)]
    await engine.set_many({key: key.encode() for key in keys}, ttl=60)
    engine.reads = 0
    answers = await asyncio.gather(*[engine.get(key) for key in [*keys, "missing", ""]], return_exceptions=True)
    assert answers[:98] == [key.encode() for key in keys]
    assert answers[98] is None
    assert isinstance(answers[99], InvalidKey)
    assert engine.reads == 1
    await engine.delete_many(keys)
    await engine.aclose()


@pytest.mark.parametrize("kind", [MongoDBBackend, DynamoDBBackend])
def test_gather_is_true_or_false(kind: Any):
    url = "mongodb://localhost/d" if kind is MongoDBBackend else "dynamodb://us-east-1/t"
    with pytest.raises(ConfigurationError, match="gather"):
        kind.from_url(f"{url}?gather=yes")
