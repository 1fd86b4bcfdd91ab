"""`MongoDBBackend`: a MongoDB collection, by way of ``pymongo`` or ``motor``.

One document for each entry::

    {_id: the key, token: 8 random bytes of this write, expires: a date, absent for ever,
     data: the bytes, head: the first 48 of them}

A counter has, in place of ``data`` and ``head``, the 64-bit integer ``n``; so has whatever else is plain digits.  A
body of more than one chunk has a manifest, with ``chunks`` (their number) and ``length`` (the bytes) in place of
``data``; `acache.backends._mongodb` has the rest.

Every instant is the server's: writes store ``$$NOW`` plus the ttl, and reads compare with ``$$NOW``, so machines with
different clocks agree.  Every write of one entry is one ``update`` or ``findAndModify`` of one ``_id``, which MongoDB
carries out atomically.  Keys stand in filters as ``_id`` only, bytes under ``$literal``: neither is ever an operator.

Whoever replaces or removes a manifest removes its chunks, and must not need a second command where there is none.  So
what writes leaves a manifest as it is, which shows in the answer, and comes again for it, seen through to the end even
if the caller is cancelled: nobody else would know of the chunks.  `set_if` finds them in the version; what `add` and
`incr` replace has expired, and its chunks with it.

Commands sent: find, update, findAndModify, delete, createIndexes; for tracking hello, aggregate, getMore, killCursors.
"""

from __future__ import annotations

import asyncio
import copy
import math
import re
import warnings
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from operator import index
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, cast
from urllib.parse import unquote, urlsplit

from ..entry import HEAD_BYTES, counter, new_token
from ..errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    ValueTooLarge,
)
from ..events import logger
from ._gather import Gatherer
from ._heeding import unharmed
from ._mongodb import CHUNK_BYTES, Chunks, finished, pieces
from ._mongodb_changes import AWAITED, Changes, Newest, Place, stages
from .base import KeyLimits, Listener, Version, batch_error, check_key, check_value

try:
    from bson import CodecOptions, Int64, MaxKey, Timestamp
    from bson.errors import BSONError
    from pymongo import AsyncMongoClient, MongoClient, ReadPreference, ReturnDocument, UpdateOne, errors
    from pymongo import timeout as deadline
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "MongoDBBackend needs the pymongo package: pip install 'acache[mongodb]'"
    raise ImportError(msg) from error

__all__ = ["MongoDBBackend"]

T = TypeVar("T")
Json = dict[str, Any]

_LARGEST: Final = 16 * 1024 * 1024 - 16 * 1024
_LONGEST_MS: Final = 10**14
"""Three thousand years: a date that every tool can still show."""
_GOODBYE: Final = 10.0
"""Seconds that a client has for closing."""
_CHUNK: Final = 1000
_REFUSED: Final = frozenset((13, 18, 8000, 10107, 14031))
"""Unauthorized, AuthenticationFailed, Atlas's word for both, NotWritablePrimary, OutOfDiskSpace."""
_UNTOLD: Final = frozenset((59, 115, 40324, 40573))
"""CommandNotFound, CommandNotSupported, an unknown stage, a stage for replica sets only."""
_TOO_LARGE: Final = frozenset((10334, 16493, 17280, 17419, 17420))

# An upsert starts from a document with nothing but its _id; that one is not live, for it has no token.
_LIVE: Final[Json] = {"$and": ["$token", {"$gt": [{"$ifNull": ["$expires", MaxKey()]}, "$$NOW"]}]}
_IF_LIVE: Final[Json] = {"$expr": _LIVE}
_BYTES: Final[Json] = {"_id": 0, "data": 1, "n": 1, "chunks": 1, "length": 1, "token": 1}
_STREAMED: Final[Json] = {"$and": [{"$isNumber": "$chunks"}, {"$gt": ["$chunks", 0]}]}
_NOT_STREAMED: Final[Json] = {"$not": {"$gt": 0}}
_PARTS: Final[Json] = {"_id": 0, "chunks": 1, "length": 1, "token": 1}


class _Streamed(NamedTuple):
    """The version of an entry in chunks."""

    token: bytes
    chunks: int
    length: int


class _Client(Protocol):
    """What `MongoDBBackend` wants: a client whose collections' methods return awaitables."""

    def get_database(self, name: str, /) -> Any: ...  # pragma: no cover

    def close(self) -> Any: ...  # pragma: no cover


class MongoDBBackend:
    """A collection of a MongoDB database.

    Args:
        client: a ``pymongo.AsyncMongoClient`` or ``motor.motor_asyncio.AsyncIOMotorClient``; its owner closes it, its
            own timeouts hold, and it serves the loop it was first used in.
        database: the name of the database.
        collection: the name of the collection; it is for acache alone, and must have no collation of its own.
        gather: whether single reads of one turn of the loop travel as one of many: fewer questions where hundreds of
            callers read at a time, some microseconds more where few do.

    Raises:
        ConfigurationError: a synchronous client, or a write concern that confirms nothing.
    """

    key_limits: Final = KeyLimits(max_bytes=1024, printable=False)
    value_limit: Final = _LARGEST
    ttl_granularity: Final = 0.001

    def __init__(self, client: _Client, *, database: str, collection: str = "acache", gather: bool = False) -> None:
        if isinstance(client, MongoClient) or not callable(getattr(client, "get_database", None)):
            msg = (
                f"MongoDBBackend({type(client).__name__}): pass a pymongo.AsyncMongoClient or an AsyncIOMotorClient,"
                " or use MongoDBBackend.from_url()"
            )
            raise ConfigurationError(msg)
        self._database: Final = database
        self._name: Final = collection
        self._gets = Gatherer(self.get_many, self._get) if gather else None
        try:
            self._current: Any = self._open(client)
        except (errors.PyMongoError, TypeError) as error:
            msg = f"cannot open database {database!r}, collection {collection!r}: {error}"
            raise ConfigurationError(msg) from None
        self._owned: _Client | None = None
        self._build: Callable[[], _Client] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: Final[set[asyncio.Task[Any]]] = set()
        """Operations under way, as far as cancellations must not reach them."""
        self._index_tries = 3
        self._tracked: tuple[MongoDBBackend, Changes] | None = None
        """What this one was copied from, and its tracking: they are closed with it."""

    @classmethod
    def from_url(cls, url: str, *, connect_timeout: float = 1.0, timeout: float = 1.0) -> Self:
        """Build a backend with a client of its own; nothing connects before the first operation.

        Args:
            url: ``mongodb://[user:password@]host:port/database?collection=name``, ``mongodb+srv://``; options of the
                ``pymongo`` package as a query.  The collection is ``acache`` unless it is named.  ``client=motor``
                builds an ``AsyncIOMotorClient`` in the place of an ``AsyncMongoClient``;
                for ``gather=true`` see the class.
            connect_timeout: seconds for each attempt to connect.
            timeout: seconds for each operation, with all that it needs: to find a server, to connect, to try again.

        Raises:
            ConfigurationError: a URL or option that the ``pymongo`` package does not know, or no database.
            ImportError: ``client=motor`` without the ``motor`` package.
        """
        scheme = url.partition("://")[0]
        try:
            parts = urlsplit(url)
            own = {"collection": "acache", "client": "pymongo", "gather": "false"}
            others: list[str] = []
            for option in parts.query.split("&"):
                name, _, word = option.partition("=")
                if name in own:
                    own[name] = unquote(word)
                elif option:
                    others.append(option)
            known = parts._replace(query="&".join(others)).geturl()
            if own["client"] not in ("pymongo", "motor") or own["gather"] not in ("true", "false"):
                msg = f"client={own['client']}, gather={own['gather']}: write pymongo or motor, true or false"
                raise ValueError(msg)  # noqa: TRY301 - as the package's own complaints are
            database = unquote(parts.path.strip("/"))
            if not database:
                msg = "the database is missing: mongodb://host:port/database?collection=name"
                raise ValueError(msg)  # noqa: TRY301 - as the package's own complaints are

            make: Callable[..., _Client] = AsyncMongoClient
            if own["client"] == "motor":
                from ._motor import build as make  # noqa: PLC0415 - another extra

            def build() -> _Client:
                return make(
                    known,
                    serverSelectionTimeoutMS=math.ceil(connect_timeout * 1000),
                    connectTimeoutMS=math.ceil(connect_timeout * 1000),
                    socketTimeoutMS=math.ceil(timeout * 1000),  # for close(), which timeoutMS does not cover
                    timeoutMS=math.ceil(timeout * 1000),
                )

            with warnings.catch_warnings():
                warnings.simplefilter("error")  # the package warns of an unknown option and goes on
                client = build()
        except (errors.PyMongoError, ValueError, TypeError, Warning) as error:
            msg = f"cannot open {scheme}://...: {error}"  # not the URL itself: it may hold a password
            raise ConfigurationError(msg) from None
        backend = cls(client, database=database, collection=own["collection"], gather=own["gather"] == "true")
        backend._build = build
        backend._owned = client
        return backend

    def __repr__(self) -> str:
        return f"<MongoDBBackend {self._database}.{self._name}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        if self._gets is None:
            return await self._get(key)
        self._check(key)
        return await self._gets.get(key)

    async def _get(self, key: str) -> bytes | None:
        data, _ = await self._whole(key, await self._find_one(key, _BYTES))
        return data

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        self._check(key)
        await self._put(key, _document(data, new_token(), ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        self._check(key)
        wanted = {"_id": key, **_IF_LIVE}
        if (await self._do("delete_one", {**wanted, "chunks": _NOT_STREAMED})).deleted_count:
            return True
        if await self._do("find_one", wanted, {"_id": 1}) is None:
            return False
        return await finished(self._remove_one(key, _IF_LIVE))

    async def aclose(self) -> None:
        """Close the client, if it was built here."""
        if self._gets is not None:
            await self._gets.aclose()
        if self._tracked is not None:
            await self._tracked[1].aclose()
        if under_way := [task for task in self._running if task.get_loop() is asyncio.get_running_loop()]:
            await asyncio.wait(under_way, timeout=_GOODBYE)
        client, self._owned = self._owned, None
        try:
            if client is not None:
                self._current = None
                if self._loop is asyncio.get_running_loop():
                    closing = client.close()
                    if closing is not None:  # motor's is done at once
                        await self._close(closing)
        finally:
            if self._tracked is not None:
                await self._tracked[0].aclose()

    async def _close(self, closing: Coroutine[Any, Any, None]) -> None:
        """Let the client say goodbye, but not for ever: it may wait for a lock, and it has no deadline for that."""
        task = asyncio.ensure_future(closing)
        await asyncio.wait([task], timeout=_GOODBYE)
        if task.done():
            task.result()
        else:
            task.cancel()
            logger.warning("%r could not close its client within %g s, and leaves it to itself", self, _GOODBYE)

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; one find of a thousand at a time."""
        found: dict[str, bytes] = {}

        async def get(chunk: Sequence[str]) -> dict[str, BackendError]:
            failed: dict[str, BackendError] = {}
            for document in await self._find({"_id": {"$in": chunk}, **_IF_LIVE}, {**_BYTES, "_id": 1}):
                key = document["_id"]
                try:
                    data, _ = await self._whole(key, document)
                except BackendError as error:
                    failed[key] = error
                else:
                    if data is not None:
                        found[key] = data
            return failed

        await self._each_chunk(keys, get, found)
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; one unordered bulk of a thousand upserts at a time."""
        refused: dict[str, BackendError] = {}
        for key, data in items.items():
            try:
                check_value(data, _LARGEST, "MongoDB")
            except ValueTooLarge as error:
                refused[key] = error

        async def put(chunk: Sequence[str]) -> dict[str, BackendError]:
            token, failed = new_token(), {}
            documents = {key: _document(items[key], token, ttl) for key in chunk}
            updates = [UpdateOne({"_id": key}, _update(new), upsert=True) for key, new in documents.items()]
            try:
                done = await self._write("bulk_write", updates, ordered=False)
                kept = done.matched_count - done.modified_count
            except BackendError as error:
                failed = _failed_keys(error, chunk)
                if not failed:
                    raise
                kept = 1  # perhaps: what the server counted is not worth the difference
            if kept:
                for manifest in await self._find({"_id": {"$in": chunk}, "chunks": {"$gt": 0}}, {"_id": 1}):
                    key = manifest["_id"]
                    if key not in failed:
                        await finished(self._replace(key, documents[key], _PARTS))
            return failed

        await self._each_chunk(list(items), put, refused=refused)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; one find and one delete of a thousand at a time."""
        removed = 0

        async def remove(chunk: Sequence[str]) -> dict[str, BackendError]:
            nonlocal removed
            removed += await self._remove(chunk, _IF_LIVE)
            return {}

        await self._each_chunk(keys, remove)
        return removed

    async def _each_chunk(
        self,
        keys: Sequence[str],
        work: Callable[[Sequence[str]], Awaitable[dict[str, BackendError]]],
        found: Mapping[str, bytes] | None = None,
        refused: Mapping[str, BackendError] | None = None,
    ) -> None:
        """Do ``work``, which returns the keys that failed, for a thousand keys at a time, but those ``refused``.

        A chunk that fails does not keep the next from being tried, unless it took all of the deadline: a server that is
        gone costs one deadline, not one for each chunk.
        """
        for key in keys:
            self._check(key)
        failed: dict[str, BackendError] = {}
        late: BackendError | None = None
        for chunk in _chunks([key for key in keys if key not in refused] if refused else keys):
            if late is not None:
                failed |= dict.fromkeys(chunk, late)
                continue
            try:
                failed |= await work(chunk)
            except BackendError as error:
                failed |= dict.fromkeys(chunk, error)
                cause = error.__cause__
                late = error if isinstance(cause, errors.PyMongoError) and cause.timeout else None
        failed |= refused or {}
        if failed:
            raise batch_error(failed, found=found)

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._store_unless(_LIVE, key, data, ttl)

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""
        self._check(key)
        delta = index(delta)
        if not -(2**63) <= delta < 2**63:
            msg = f"cannot add {delta} to {key!r}: counters have 64 bits"
            raise DecodeError(msg)
        token, number = new_token(), Int64(delta)
        # MongoDB would make a float of a sum that leaves 64 bits.
        fits = {"$lte": ["$n", Int64(2**63 - 1 - delta)]} if delta > 0 else {"$gte": ["$n", Int64(-(2**63) - delta)]}
        added = {"$mergeObjects": ["$$ROOT", {"n": {"$add": ["$n", number]}, "token": {"$literal": token}}]}
        counts = {"$and": [{"$eq": [{"$type": "$n"}, "long"]}, fits]}
        kept = {"$cond": [counts, added, "$$ROOT"]}
        after = await self._modify(
            key, {"$cond": [_LIVE, kept, _document(b"%d" % delta, token, ttl)]}, {"n": 1, "token": 1}
        )
        if after["token"] != token:
            held = f"and holds {after['n']}" if "n" in after else "and this is none"
            msg = f"cannot add {delta} to {key!r}: a counter has 64 bits, {held}"
            raise DecodeError(msg)
        return int(after["n"])

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`; the chunks of a large body follow."""
        self._check(key)
        wanted, new = {"_id": key, **_IF_LIVE}, _expires(ttl)
        update = [{"$set": {"expires": {"$cond": [_STREAMED, "$expires", new]}}}]
        result = await self._write("update_one", wanted, update)
        if result.modified_count or not result.matched_count:
            return bool(result.matched_count)
        return await finished(self._touch_all(key, [{"$set": {"expires": new}}]))

    async def _touch_all(self, key: str, update: list[Json]) -> bool:
        touched = await self._do("find_one_and_update", {"_id": key, **_IF_LIVE}, update, _PARTS)
        if touched is not None and _streamed(touched):
            await self._settle(key, self._chunks(touched))
        return touched is not None

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        found = await self._find_one(key, {"_id": 0, "left": {"$subtract": ["$expires", "$$NOW"]}})
        if found is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return None if found["left"] is None else found["left"] / 1000

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; two finds and a delete of a thousand at a time."""
        async for keys in self._pages(prefix, {}):
            await self._remove(keys, {})

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; a find of a thousand at a time."""
        async for keys in self._pages(prefix, _IF_LIVE):
            for key in keys:
                yield key

    async def _pages(self, prefix: str, condition: Json) -> AsyncIterator[list[str]]:
        span = _span(prefix)
        while keys := [
            document["_id"] for document in await self._find({"_id": span, **condition}, {"_id": 1}, _CHUNK)
        ]:
            yield keys
            span = {**span, "$gt": keys[-1]}

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the token of the write."""
        data, found = await self._whole(key, await self._find_one(key, _BYTES))
        if found is None:
            return None, None
        return data, _Streamed(found["token"], found["chunks"], found["length"]) if _streamed(found) else found["token"]

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`."""
        if isinstance(version, _Streamed):
            return await finished(self._set_over(key, data, version, ttl))
        return await self._store_unless(_differs(version), key, data, ttl)

    async def _set_over(self, key: str, data: bytes, version: _Streamed, ttl: float | None) -> bool:
        stored = await self._store_unless(_differs(version.token), key, data, ttl)
        if stored:
            await self._forget(version._asdict())
        return stored

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`."""
        self._check(key)
        new, seen = _document(data, new_token(), ttl), {**_PARTS, "head": 1, "n": 1, "live": _LIVE, "kept": _STREAMED}
        before = await self._modify(key, _unless_streamed(new), seen, ReturnDocument.BEFORE)
        if before is not None and before["kept"]:
            before = await finished(self._replace(key, new, seen))
        return _bytes(before, "head") if before is not None and before["live"] else None

    # Stream ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, key: str, /) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """See `Stream.open`; a find for each chunk of 1 MiB."""
        found = await self._find_one(key, _BYTES)
        if found is None:
            yield None
            return
        if not _streamed(found):
            first, parts = _bytes(found), None
        else:
            parts = self._chunks(found)
            first = await parts.read(0)
        if first is None:
            yield None  # it has just gone, or its writer died before it was whole
            return
        reader = _rest(key, first, parts)
        try:
            yield reader
        finally:
            await reader.aclose()

    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        """See `Stream.store`; an update for each chunk of 1 MiB, in memory are two.

        A cancelled call waits for the answer to the command that is under way: what comes after it has to find what it
        wrote.  If that is the one that makes the entry seen, the entry is seen.
        """
        self._check(key)
        token = new_token()
        parts = Chunks(self._write, token)
        length, head, waiting = 0, b"", b""
        body = pieces(chunks, CHUNK_BYTES)
        try:
            async for piece in body:
                if waiting:
                    await finished(parts.append(waiting))
                head = head or piece[:HEAD_BYTES]
                length += len(piece)
                waiting = piece
            if not parts.count:
                await self.set(key, waiting, ttl=ttl)
                return
            await finished(parts.append(waiting))
            await finished(parts.renew())
        except BaseException:
            await finished(self._discard(parts))
            raise
        finally:
            await body.aclose()
        manifest = {**_written(token, ttl), "head": {"$literal": head}, "chunks": parts.count, "length": length}
        await finished(self._commit(key, parts, manifest))

    async def _commit(self, key: str, parts: Chunks, manifest: Json) -> None:
        try:
            await self._put(key, manifest)
            await self._settle(key, parts)
        except BackendError:
            with suppress(BackendError):  # it may have been written all the same
                await self._do("delete_one", {"_id": key, "token": parts.token})
                await self._discard(parts)
            raise

    async def _discard(self, parts: Chunks) -> None:
        """Remove what nobody has seen; what a server that is gone keeps ends with its lease."""
        with suppress(BackendError):
            await parts.remove()

    async def _settle(self, key: str, parts: Chunks) -> None:
        """Give the chunks the deadline of their manifest, until it is still the same afterwards.

        Of two that do this at once, each for a touch of its own, the later one to finish has seen the last deadline.
        """
        settled: object = parts  # no deadline
        while (manifest := await self._do("find_one", {"_id": key, "token": parts.token}, {"expires": 1})) is not None:
            expires = manifest.get("expires")
            if expires == settled:
                return
            await parts.end(expires)
            settled = expires

    # Track ----------------------------------------------------------------------------------------------------------

    def track(self, listener: Listener, /) -> Changes:
        """See `Track.track`; a change stream, for which the server must be of a replica set."""
        twin = copy.copy(self)
        twin._detach()  # noqa: SLF001 - its own class
        changes = Changes(twin, _Feed(twin), listener)
        twin._tracked = (self, changes)  # noqa: SLF001
        return changes

    def _detach(self) -> None:
        """Have nothing in common with what this was copied from but the client of somebody else."""
        if self._gets is not None:
            self._gets = Gatherer(self.get_many, self._get)
        if self._build is not None:
            self._current = self._owned = self._loop = None

    async def _whole(self, key: str, found: Json | None) -> tuple[bytes | None, Json | None]:
        """Return the bytes of an entry with its document; of one that is replaced while it is put together, the new."""
        while found is not None and _streamed(found):
            data = await self._assembled(found)
            if data is not None:
                return data, found
            gone = found["token"]
            found = await self._find_one(key, _BYTES)
            if found is not None and found["token"] == gone:
                return None, found  # its writer died before it was whole
        return _bytes(found), found

    async def _assembled(self, manifest: Json) -> bytes | None:
        if manifest["length"] > _LARGEST:
            msg = f"{manifest['length']} bytes are more than the {_LARGEST} that MongoDB takes as one value: open() it"
            raise ValueTooLarge(msg)
        parts, data = self._chunks(manifest), bytearray()
        for number in range(parts.count):
            chunk = await parts.read(number)
            if chunk is None:
                return None
            data += chunk
        return bytes(data)

    def _chunks(self, manifest: Json) -> Chunks:
        return Chunks(self._do, manifest["token"], manifest["chunks"])

    async def _forget(self, replaced: Json | None) -> None:
        """Remove the chunks of what is no longer there, if it had any."""
        if replaced is not None and _streamed(replaced):
            await self._chunks(replaced).remove()

    # The collection -------------------------------------------------------------------------------------------------

    async def _find_one(self, key: str, projection: Json) -> Json | None:
        self._check(key)
        return cast("Json | None", await self._do("find_one", {"_id": key, **_IF_LIVE}, projection))

    async def _find(self, wanted: Json, projection: Json, limit: int = 0) -> list[Json]:
        order = [("_id", 1)] if limit else None
        cursor = self._collection().find(wanted, projection, limit=limit, sort=order)
        return cast("list[Json]", await _translated(cursor.to_list(None), self._running))

    async def _put(self, key: str, new: Json) -> None:
        done = await self._write("update_one", {"_id": key}, _update(new), upsert=True)
        if done.matched_count and not done.modified_count:
            await finished(self._replace(key, new, _PARTS))

    async def _replace(self, key: str, new: Json, seen: Json) -> Json | None:
        """Store ``new`` over whatever is there, and remove the chunks of that."""
        before = await self._modify(key, new, seen, ReturnDocument.BEFORE)
        await self._forget(before)
        return cast("Json | None", before)

    async def _remove_one(self, key: str, condition: Json) -> bool:
        removed = await self._do("find_one_and_delete", {"_id": key, **condition}, _PARTS)
        await self._forget(removed)
        return removed is not None

    async def _remove(self, keys: Sequence[str], condition: Json) -> int:
        wanted = {"_id": {"$in": keys}, **condition}
        streamed = await self._find({**wanted, "chunks": {"$gt": 0}}, {"_id": 1})
        removed = sum([await finished(self._remove_one(manifest["_id"], condition)) for manifest in streamed])
        # A large body that is stored just now comes later than this.
        plain = await self._do("delete_many", {**wanted, "chunks": _NOT_STREAMED})
        return removed + cast("int", plain.deleted_count)

    async def _store_unless(self, taken: Json, key: str, data: bytes, ttl: float | None) -> bool:
        """Store ``data``, or leave the document as it is where ``taken`` holds; tell which."""
        self._check(key)
        token = new_token()
        after = await self._modify(key, {"$cond": [taken, "$$ROOT", _document(data, token, ttl)]}, {"token": 1})
        return bool(after["token"] == token)

    async def _modify(self, key: str, new: Json, projection: Json, which: bool = ReturnDocument.AFTER) -> Any:  # noqa: FBT001 - pymongo's constant
        """Replace a document by what the expression ``new`` makes of it, in one step."""
        update = [{"$replaceWith": new}]
        return await self._write(
            "find_one_and_update", {"_id": key}, update, projection, upsert=True, return_document=which
        )

    async def _write(self, method: str, *args: Any, **options: Any) -> Any:
        """Write.  Of two upserts of one new key the server tries the later one again, as an update of the first."""
        if self._index_tries:
            await self._index()
        return await self._do(method, *args, **options)

    async def _index(self) -> None:
        """Ask the server to remove what has expired; one that will not is no error, for reads see to expiry too."""
        self._index_tries -= 1  # others need not wait, and an index that takes too long is not asked for endlessly
        try:
            await self._do("create_index", "expires", expireAfterSeconds=0)
        except BackendError as error:
            if not isinstance(error.__cause__, errors.OperationFailure):
                raise
        self._index_tries = 0

    def _check(self, key: str) -> None:
        check_key(key, self.key_limits)

    def _open(self, client: _Client) -> Any:
        """Return the collection, with the plain types whatever the client's are."""
        entries = client.get_database(self._database).get_collection(self._name, codec_options=CodecOptions())
        if not entries.write_concern.acknowledged:
            msg = "MongoDBBackend needs answers: build its client without w=0"
            raise ConfigurationError(msg)
        return entries

    def _collection(self) -> Any:
        """Return the collection for the running loop; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._build is None:
                msg = (
                    "this MongoDBBackend's client was used in another event loop before, and its connections cannot"
                    " move: inject a new client, or let MongoDBBackend.from_url() build one for each loop"
                )
                raise BackendUnavailable(msg)
            if self._loop is not None:
                self._current = None
            self._loop = loop
        if self._current is None and self._build is not None:
            self._owned = self._build()
            self._current = self._open(self._owned)
        return self._current

    async def _do(self, method: str, *args: Any, **options: Any) -> Any:
        return await _translated(getattr(self._collection(), method)(*args, **options), self._running)


class _Feed:
    """The commands of change streams; see `Feed`."""

    def __init__(self, backend: MongoDBBackend) -> None:
        self._backend: Final = backend

    async def newest(self) -> Newest:
        """See `Feed.newest`; a ``hello``, which needs no rights."""
        entries = self._backend._collection()  # noqa: SLF001 - its own module
        if entries.read_preference != ReadPreference.PRIMARY:
            msg = "changes are told to those who read from the primary: a secondary may be behind what was told"
            raise BackendRefused(msg)
        hello = await _run(entries, self._backend._running, {"hello": 1})  # noqa: SLF001 - its own module
        if "setName" not in hello and not hello.get("isreplicaset"):
            kind = "a sharded cluster tells of changes too late" if hello.get("msg") == "isdbgrid" else "this is none"
            msg = f"MongoDB tells of changes in replica sets only, and {kind}"
            raise BackendRefused(msg)
        if not hello.get("isWritablePrimary"):
            msg = "this server of MongoDB is not the primary, which alone knows what is the newest"
            raise BackendUnavailable(msg)
        try:
            last = hello["lastWrite"]["opTime"]
            if "majorityOpTime" not in hello["lastWrite"]:  # as long as its followers have not caught up
                msg = "the primary of MongoDB came up anew, and does not know yet what a majority has"
                raise BackendUnavailable(msg)
            committed = hello["lastWrite"]["majorityOpTime"]["ts"]
            return Newest(last["t"], (last["ts"].time, last["ts"].inc), (committed.time, committed.inc))
        except (KeyError, TypeError, AttributeError) as error:  # a look-alike
            msg = "this server does not say which of its writes is the last that a majority has"
            raise BackendRefused(msg) from error

    async def open(self, prefixes: Collection[str], since: Place | Json, batch: int) -> tuple[_Cursor, Json]:
        """See `Feed.open`; an ``aggregate``."""
        entries, running = self._backend._collection(), self._backend._running  # noqa: SLF001 - its own module
        start = {"startAfter": since} if isinstance(since, dict) else {"startAtOperationTime": Timestamp(*since)}
        pipeline = [{"$changeStream": start}, *stages([_span(prefix) for prefix in prefixes])]
        # A cursor belongs to a session; without one that is named, each command would bring its own.
        session = entries.database.client.start_session(causal_consistency=False)
        if isawaitable(session):  # motor's
            session = await session
        try:
            command = {"aggregate": entries.name, "pipeline": pipeline, "cursor": {"batchSize": 0}}
            opened = (await _run(entries, running, command, session))["cursor"]
        except BaseException as error:
            await session.end_session()
            if isinstance(error, BackendError) and _code(error.__cause__) in _UNTOLD:
                msg = f"this server does not tell of changes: {error}"
                raise BackendRefused(msg) from error.__cause__
            raise
        return _Cursor(entries, running, session, opened["id"], batch), opened.get("postBatchResumeToken", {})


class _Cursor:
    """A change stream at the server; see `Cursor`."""

    def __init__(self, entries: Any, running: set[asyncio.Task[Any]], session: Any, number: int, batch: int) -> None:
        self._entries: Final = entries
        self._running: Final = running
        self._session: Final = session
        self._id: Final = number
        longest = entries.database.client.options.pool_options.socket_timeout
        awaited = AWAITED if longest is None else min(AWAITED, longest / 2)
        self._more: Final = {
            "getMore": number,
            "collection": entries.name,
            "batchSize": batch,
            "maxTimeMS": int(awaited * 1000),
        }

    async def more(self) -> Json:
        """See `Cursor.more`."""
        with deadline(0):  # pymongo would set maxTimeMS to the client's timeoutMS, and give up when that is over
            return cast("Json", (await _run(self._entries, self._running, self._more, self._session))["cursor"])

    async def aclose(self) -> None:
        """See `Cursor.aclose`; a ``killCursors``."""
        try:
            await _run(self._entries, self._running, {"killCursors": self._entries.name, "cursors": [self._id]})
        finally:
            await self._session.end_session()


async def _run(entries: Any, running: set[asyncio.Task[Any]], command: Json, session: Any = None) -> Json:
    """Have the primary carry out a command; one that is a primary no more has not refused it."""
    try:
        return cast("Json", await _translated(entries.database.command(dict(command), session=session), running))
    except BackendRefused as error:
        if isinstance(error.__cause__, errors.AutoReconnect):
            raise BackendUnavailable(*error.args) from error.__cause__
        raise


async def _translated(operation: Awaitable[T], running: set[asyncio.Task[Any]]) -> T:
    try:
        return await unharmed(operation, running)
    except (errors.PyMongoError, BSONError, OSError, RuntimeError) as error:
        raise _translate(error) from error


def _translate(error: Exception) -> BackendError:
    """Find the acache error that says what to do."""
    codes = {one.get("code") for one in _failed(error)} | {_code(error)}
    if isinstance(error, errors.ServerSelectionTimeoutError):
        # A write that a wrong password ended is tried again and finds no server; only the text still tells why.
        codes |= {int(code) for code in re.findall(r"'code': (\d+)", str(error))}
    kind = _kind(codes)
    if kind is BackendRefused:
        return BackendRefused(f"MongoDB refused: {error}")
    if kind is ValueTooLarge or isinstance(error, errors.DocumentTooLarge):
        return ValueTooLarge(f"MongoDB takes documents of up to 16 MB: {error}")
    if isinstance(error, errors.ServerSelectionTimeoutError):
        return BackendUnavailable(f"cannot reach MongoDB: {error}")
    if isinstance(error, errors.PyMongoError) and error.timeout:
        return BackendTimeout(f"MongoDB did not answer in time: {error}")
    if isinstance(error, (errors.ConnectionFailure, OSError)):
        return BackendUnavailable(f"cannot reach MongoDB: {error}")
    return BackendUnavailable(f"MongoDB failed: {error}")


def _kind(codes: AbstractSet[Any]) -> type[BackendError]:
    if codes & _REFUSED:
        return BackendRefused
    return ValueTooLarge if codes & _TOO_LARGE else BackendUnavailable


def _code(error: BaseException | None) -> Any:
    if isinstance(error, errors.OperationFailure):
        return error.code
    details = error.details if isinstance(error, errors.AutoReconnect) else None
    return details.get("code") if isinstance(details, Mapping) else None


def _failed(error: BaseException | None) -> list[Json]:
    """Return what a bulk write reports of each write that failed."""
    if not isinstance(error, errors.BulkWriteError):
        return []
    return [*error.details.get("writeErrors", []), *error.details.get("writeConcernErrors", [])]


def _failed_keys(error: BackendError, keys: Sequence[str]) -> dict[str, BackendError]:
    """Return the keys of a bulk write that failed one by one; none if it failed as a whole."""
    cause = error.__cause__
    if not isinstance(cause, errors.BulkWriteError) or cause.details.get("writeConcernErrors"):
        return {}
    failed: dict[str, BackendError] = {}
    for one in cause.details["writeErrors"]:
        refused = _kind(frozenset((one["code"],)))(f"MongoDB: {one['errmsg']}")
        refused.__cause__ = cause
        failed[keys[int(one["index"])]] = refused
    return failed


def _document(data: bytes, token: bytes, ttl: float | None) -> Json:
    """Return the expression that makes a document of these bytes; a counter's digits become a number."""
    number, document = counter(check_value(data, _LARGEST, "MongoDB")), _written(token, ttl)
    if number is not None:
        return {**document, "n": Int64(number)}
    # The head is what `swap` returns: the whole would travel back with every delete of a cache.
    return {**document, "data": {"$literal": bytes(data)}, "head": {"$literal": bytes(data[:HEAD_BYTES])}}


def _written(token: bytes, ttl: float | None) -> Json:
    return {"_id": "$_id", "token": {"$literal": token}, "expires": _expires(ttl)}


def _differs(token: Version) -> Json:
    return {"$and": [_LIVE, {"$ne": ["$token", {"$literal": token}]}]}


def _unless_streamed(new: Json) -> Json:
    return {"$cond": [_STREAMED, "$$ROOT", new]}


def _update(new: Json) -> list[Json]:
    return [{"$replaceWith": _unless_streamed(new)}]


async def _rest(key: str, first: bytes, parts: Chunks | None) -> AsyncGenerator[bytes]:
    yield first
    for number in range(1, parts.count if parts is not None else 1):
        chunk = await cast("Chunks", parts).read(number)
        if chunk is None:
            msg = f"{key!r} was replaced or removed while it was read"
            raise BackendUnavailable(msg)
        yield chunk


def _streamed(document: Json) -> bool:
    """Tell whether this is a manifest of ours: whoever may write to the collection could name a billion chunks."""
    token, count, length = document.get("token"), document.get("chunks"), document.get("length")
    if not (isinstance(token, bytes) and isinstance(count, int) and isinstance(length, int)):
        return False
    return 0 < count == -(-length // CHUNK_BYTES)


def _bytes(document: Json | None, field: str = "data") -> bytes | None:
    """Return what a document holds; one that somebody else wrote may hold anything, which is nothing."""
    if document is None:
        return None
    number, data = document.get("n"), document.get(field)
    if isinstance(number, int):
        return b"%d" % number
    return data if isinstance(data, bytes) else None


def _expires(ttl: float | None) -> Any:
    if ttl is None:
        return "$$REMOVE"
    return {"$add": ["$$NOW", Int64(max(1, math.ceil(min(ttl * 1000, _LONGEST_MS))))]}


def _span(prefix: str) -> Json:
    """Return the range of strings that begin with ``prefix``; they are ordered by code points."""
    head = prefix.rstrip("\U0010ffff")
    if not head:
        return {"$gte": prefix}
    following = 0xE000 if head[-1] == "\ud7ff" else ord(head[-1]) + 1  # surrogates are no text
    return {"$gte": prefix, "$lt": head[:-1] + chr(following)}


def _chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
