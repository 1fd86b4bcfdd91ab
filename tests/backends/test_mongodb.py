"""`MongoDBBackend` on a real server: the contract, and what it promises beyond it."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pymongo
import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from acache.backends.mongodb import MongoDBBackend
from acache.testing import BackendConformance

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = {"pymongo": pymongo.AsyncMongoClient, "motor": AsyncIOMotorClient}


class Injected(MongoDBBackend):
    """A backend with a client of the test's own; the test's end is the owner's."""

    def __init__(self, client: Any, database: str) -> None:
        super().__init__(client, database=database)
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
    with pymongo.MongoClient(mongodb_url) as client:
        client.drop_database(name)


class TestMongoDBBackend(BackendConformance):
    """A client that is built, and both that can be passed in; the server's clock ends the entries."""

    @pytest.fixture(params=["url", *CLIENTS])
    def backend(self, request: pytest.FixtureRequest, mongodb_url: str, database: str) -> MongoDBBackend:
        if request.param == "url":
            return MongoDBBackend.from_url(mongodb_url + database)
        return Injected(CLIENTS[request.param](mongodb_url), database)
