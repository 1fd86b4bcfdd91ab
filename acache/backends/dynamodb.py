"""`DynamoDBBackend`: a DynamoDB table, by way of ``aiobotocore`` or of an ``aioboto3`` session that is passed in.

One item for each entry::

    {key: the key, token: 8 random bytes of this write, data: the bytes,
     until: the instant of its end, in Unix seconds with six decimals, absent for ever,
     expires_at: the same in whole seconds, rounded up, for DynamoDB's own removal of what has expired}

A counter has, in place of ``data``, the number ``n``; so has whatever else is plain digits.

DynamoDB has no clock to ask, so every instant is this machine's: writes store it, and each operation compares it with
the stored one.  Every write of one entry is one request about one item, which DynamoDB carries out atomically.  Keys
and bytes travel as values, never as part of an expression.

Operations sent: GetItem, PutItem, UpdateItem, DeleteItem, BatchGetItem, BatchWriteItem, Scan; to make a table
DescribeTable, CreateTable, DescribeTimeToLive, UpdateTimeToLive.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from operator import index
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from ..clock import Clock, SystemClock
from ..entry import counter, new_token
from ..errors import BackendError, ConfigurationError, DecodeError, KeyMissing, ValueTooLarge
from ._dynamodb import Json, Table, get_session
from ._gather import Gatherer
from .base import KeyLimits, Version, batch_error, check_key, check_value

__all__ = ["DynamoDBBackend"]

_READ: Final = 100
_WRITTEN: Final = 25
"""The most items of one BatchGetItem, and of one BatchWriteItem."""
_BODY: Final = 900_000
"""The most bytes of a request for many: aiohttp warns of more than a megabyte, which is much for one deadline, too."""
_SIDE_BY_SIDE: Final = 8
_LONGEST: Final = 1e11
"""Seconds: three thousand years."""
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1

# An item without a token is somebody else's: it is not read, and in nobody's way.
_LIVE: Final = "(attribute_exists(#token) AND (attribute_not_exists(#until) OR #until > :now))"
_ENTRY: Final = "#key, #token, #data, #n, #until"
_DEADLINE: Final = "#token, #until"
_NOTHING: Final = {"B": b""}


class DynamoDBBackend:
    """A DynamoDB table.

    Args:
        client_or_session: an ``aioboto3.Session`` or a session of ``aiobotocore``, from which the backend opens a
            client for each event loop and closes it in `aclose`; or an opened client of either, which its owner closes,
            whose own timeouts and repetitions hold as well, and which serves the loop it was first used in.
        table: the name of the table; its hash key is the string ``key``, and it has no range key.
        region: of the client that is opened; by default the session's own.
        endpoint_url: of the client that is opened, for another server than Amazon's.
        create_table: on the first operation make the table if it is missing, billed by request, switch on the removal
            of expired items by ``expires_at``, and wait until the table is ready, for up to a minute.
        connect_timeout: seconds for each attempt to connect, of the client that is opened.
        timeout: seconds for each request with all that it needs: a free connection, the answer, and the repetitions
            of what DynamoDB throttles.
        max_connections: of the client that is opened; requests beyond this number wait for a connection.
        clock: its wall clock tells when entries end.
        gather: whether single reads of one turn of the loop travel as one of many: fewer questions where hundreds of
            callers read at a time, some microseconds more where few do.

    Raises:
        ConfigurationError: neither a session nor an opened client, or no name for a table.
    """

    key_limits: Final = KeyLimits(max_bytes=2048, printable=False)
    value_limit: Final = 400 * 1024 - 2048 - 256
    """An item has 400 KB, with its key and the other attributes."""

    def __init__(
        self,
        client_or_session: Any,
        table: str = "acache",
        *,
        region: str | None = None,
        endpoint_url: str | None = None,
        create_table: bool = False,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        max_connections: int = 50,
        clock: Clock | None = None,
        gather: bool = False,
    ) -> None:
        self._table: Final = Table(
            client_or_session,
            table,
            region=region,
            endpoint_url=endpoint_url,
            create=create_table,
            connect_timeout=connect_timeout,
            timeout=timeout,
            max_connections=max_connections,
        )
        self._clock: Final[Clock] = SystemClock() if clock is None else clock
        self._gets: Final = Gatherer(self.get_many, self._get) if gather else None

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        max_connections: int = 50,
        clock: Clock | None = None,
    ) -> Self:
        """Build a backend with a session of its own; nothing connects before the first operation.

        Credentials come from where the AWS tools find them: the environment, a profile, the machine's role.

        Args:
            url: ``dynamodb://region/table?endpoint_url=...&create_table=true``; without a region
                (``dynamodb:///table``) that of the environment or the profile, without a table ``acache``.
            connect_timeout: see the class.
            timeout: see the class.
            max_connections: see the class.
            clock: see the class.

        Raises:
            ConfigurationError: not such a URL, or an option that is not known.
        """
        try:
            parts = urlsplit(url)
            region, table = parts.netloc, unquote(parts.path.strip("/"))
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError as error:
            msg = f"cannot read the URL of a table: {error}"
            raise ConfigurationError(msg) from None
        if "@" in region or ":" in region:
            msg = (
                "dynamodb://region/table takes no credentials and no port:"
                " those come from the environment, and a server is named by ?endpoint_url="
            )
            raise ConfigurationError(msg)
        endpoint_url, create = options.pop("endpoint_url", None), options.pop("create_table", "false")
        gather = options.pop("gather", "false")
        if options or parts.fragment or not {create, gather} <= {"true", "false"}:
            msg = (
                "dynamodb://region/table has the options endpoint_url=http://..., create_table=true or false"
                " and gather=true or false"
            )
            raise ConfigurationError(msg)
        return cls(
            get_session(),
            table or "acache",
            region=region or None,
            endpoint_url=endpoint_url,
            create_table=create == "true",
            gather=gather == "true",
            connect_timeout=connect_timeout,
            timeout=timeout,
            max_connections=max_connections,
            clock=clock,
        )

    def __repr__(self) -> str:
        return f"<DynamoDBBackend {self._table.name}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        if self._gets is None:
            return await self._get(key)
        check_key(key, self.key_limits)
        return await self._gets.get(key)

    async def _get(self, key: str) -> bytes | None:
        return _bytes(await self._read(key, _ENTRY))

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._table.ask("put_item", Item=self._item(key, data, ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`; an entry that has expired is left to DynamoDB."""
        return await self._if(_LIVE, "delete_item", Key=_key(key)) is not None

    async def aclose(self) -> None:
        """Close this event loop's client, if it was opened here, once the operations that use it have ended."""
        if self._gets is not None:
            await self._gets.aclose()
        await self._table.aclose()

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; a BatchGetItem for every hundred, eight at a time."""
        found, failed = await self._read_many(keys, _ENTRY)
        entries = {key: data for key, item in found.items() if (data := _bytes(item)) is not None}
        if failed:
            raise batch_error(failed, found=entries)
        return entries

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; a BatchWriteItem for every 25, eight at a time."""
        requests: list[Json] = []
        failed: dict[str, BackendError] = {}
        for key, data in items.items():
            try:
                requests.append({"PutRequest": {"Item": self._item(key, data, ttl)}})
            except ValueTooLarge as error:
                failed[key] = error
        if failed := {**await self._write_many(requests), **failed}:
            raise batch_error(failed)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; BatchGetItem to count, then BatchWriteItem: the count is of those there before."""
        requests = [{"DeleteRequest": {"Key": _key(key)}} for key in dict.fromkeys(keys)]
        found, uncounted = await self._read_many(keys, "#key, " + _DEADLINE)
        failed = await self._write_many(requests)
        if failed := {**uncounted, **failed}:
            raise batch_error(failed)
        return len(found)

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._if(f"NOT {_LIVE}", "put_item", Item=self._item(key, data, ttl)) is not None

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`; an UpdateItem, and for a new counter a GetItem and a PutItem with conditions more."""
        delta = index(delta)
        if not _SMALLEST <= delta <= _LARGEST:
            msg = f"cannot add {delta} to {key!r}: counters have 64 bits"
            raise DecodeError(msg)
        low, high = max(_SMALLEST, _SMALLEST - delta), min(_LARGEST, _LARGEST - delta)
        while True:  # ends: each time somebody else has changed the entry, from a counter to none or back
            added = await self._if(
                f"{_LIVE} AND #n BETWEEN :low AND :high",
                "update_item",
                Key=_key(key),
                UpdateExpression="SET #n = #n + :delta, #token = :token",
                ReturnValues="ALL_NEW",  # moto leaves out of UPDATED_NEW what has the value that it had
                values={
                    ":low": {"N": str(low)},
                    ":high": {"N": str(high)},
                    ":delta": {"N": str(delta)},
                    ":token": {"B": new_token()},
                },
            )
            item = await self._read(key, _ENTRY) if added is None else added.get("Attributes", {})
            if item is None:
                if await self.add(key, b"%d" % delta, ttl=ttl):
                    return delta
                continue
            number = _number(item)
            if number is None or (added is None and not low <= number <= high):
                held = "and this is none" if number is None else f"and holds {number}"
                msg = f"cannot add {delta} to {key!r}: a counter has 64 bits, {held}"
                raise DecodeError(msg)
            if added is not None:
                return number

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        if ttl is None:
            update, values = "REMOVE #until, #expires_at", {}
        else:
            update = "SET #until = :until, #expires_at = :expires_at"
            values = {f":{name}": value for name, value in self._end(ttl).items()}
        return await self._if(_LIVE, "update_item", Key=_key(key), UpdateExpression=update, values=values) is not None

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        item = await self._read(key, _DEADLINE)
        if item is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return max(0.0, float(item["until"]["N"]) - self._clock.wall()) if "until" in item else None

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; a Scan of the whole table, a megabyte at a time, and BatchWriteItem."""
        async for keys in self._pages(prefix, None):
            failed = await self._write_many([{"DeleteRequest": {"Key": _key(key)}} for key in keys])
            if failed:
                raise batch_error(failed)

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; a Scan of the whole table, a megabyte at a time."""
        async for keys in self._pages(prefix, _LIVE):
            for key in keys:
                yield key

    async def _pages(self, prefix: str, condition: str | None) -> AsyncIterator[list[str]]:
        filters, values = [condition] if condition else [], {}
        if prefix:
            check_key(prefix, self.key_limits)
            filters.append("begins_with(#key, :prefix)")
            values[":prefix"] = {"S": prefix}
        request: Json = {"ProjectionExpression": "#key", "ConsistentRead": True}
        if filters:
            request["FilterExpression"] = " AND ".join(filters)
        while True:
            page = await self._table.ask("scan", **self._expressed(request, values))
            if keys := [item["key"]["S"] for item in page.get("Items", ())]:
                yield keys
            if not (last := page.get("LastEvaluatedKey")):
                return
            request["ExclusiveStartKey"] = last

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the token of the write."""
        item = await self._read(key, _ENTRY)
        return _bytes(item), None if item is None else item["token"].get("B")

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`."""
        item = self._item(key, data, ttl)
        if version is None:
            return await self._if(f"NOT {_LIVE}", "put_item", Item=item) is not None
        seen = {":seen": {"B": version}}
        return await self._if(f"#token = :seen OR NOT {_LIVE}", "put_item", Item=item, values=seen) is not None

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`; the whole of what was replaced travels back."""
        answer = await self._table.ask("put_item", Item=self._item(key, data, ttl), ReturnValues="ALL_OLD")
        return _bytes(self._live(answer.get("Attributes")))

    # Items ----------------------------------------------------------------------------------------------------------

    def _item(self, key: str, data: bytes, ttl: float | None) -> Json:
        name = _key(key)
        number = counter(check_value(data, self.value_limit, "DynamoDB"))
        held = {"data": {"B": bytes(data)}} if number is None else {"n": {"N": str(number)}}
        return {**name, "token": {"B": new_token()}, **held, **self._end(ttl)}

    def _end(self, ttl: float | None) -> Json:
        if ttl is None:
            return {}
        until = self._clock.wall() + min(ttl, _LONGEST)
        return {"until": {"N": f"{until:.6f}"}, "expires_at": {"N": str(-int(-until // 1))}}

    def _live(self, item: Json | None) -> Json | None:
        """Return the item if it is an entry that has not ended, as `_LIVE` would see it."""
        if item is None or "token" not in item:
            return None
        try:
            return item if "until" not in item or float(item["until"]["N"]) > self._clock.wall() else None
        except (KeyError, TypeError, ValueError):  # somebody else's idea of an instant
            return None

    # Requests -------------------------------------------------------------------------------------------------------

    async def _read(self, key: str, names: str) -> Json | None:
        """Read an entry, consistently: what a delete that has returned left must be seen."""
        request = {"Key": _key(key), "ProjectionExpression": names, "ConsistentRead": True}
        return self._live((await self._table.ask("get_item", **self._expressed(request, {}))).get("Item"))

    async def _if(self, condition: str, method: str, /, values: Json | None = None, **request: Any) -> Json | None:
        """Write on a condition; ``None`` if it does not hold."""
        request["ConditionExpression"] = condition
        return await self._table.ask_if(method, **self._expressed(request, values or {}))

    def _expressed(self, request: Json, values: Json) -> Json:
        """Add what the expressions of a request use, and no more, for DynamoDB refuses what is not used."""
        texts = " ".join(text for part, text in request.items() if part.endswith("Expression"))
        names = {name: name[1:] for name in re.findall(r"#\w+", texts)}
        if ":now" in texts:
            values = {**values, ":now": {"N": f"{self._clock.wall():.6f}"}}
        return {
            **request,
            **({"ExpressionAttributeNames": names} if names else {}),
            **({"ExpressionAttributeValues": values} if values else {}),
        }

    async def _read_many(self, keys: Sequence[str], names: str) -> tuple[dict[str, Json], dict[str, BackendError]]:
        """Read entries; tell those that are there, and those that could not be read."""
        found: dict[str, Json] = {}
        failed: dict[str, BackendError] = {}
        wanted = [_key(key) for key in dict.fromkeys(keys)]  # DynamoDB refuses a key that is named twice

        async def read(chunk: list[Json]) -> None:
            left = chunk

            def take(answer: Json, rest: Any) -> None:
                nonlocal left
                left = rest["Keys"] if rest else []
                for item in answer.get("Responses", {}).get(self._table.name, ()):
                    if self._live(item) is not None:
                        found[item["key"]["S"]] = item

            part = self._expressed({"Keys": chunk, "ProjectionExpression": names, "ConsistentRead": True}, {})
            try:
                await self._table.ask_many("batch_get_item", part, take)
            except BackendError as error:
                failed.update({key["key"]["S"]: error for key in left})

        await _side_by_side(read, _chunks(wanted, _READ, lambda key: key))
        return found, failed

    async def _write_many(self, requests: Sequence[Json]) -> dict[str, BackendError]:
        """Write items; tell those that failed."""
        failed: dict[str, BackendError] = {}

        async def write(chunk: list[Json]) -> None:
            left = chunk

            def take(_: Json, rest: Any) -> None:
                nonlocal left
                left = rest

            try:
                await self._table.ask_many("batch_write_item", chunk, take)
            except BackendError as error:
                failed.update({_written(request)["key"]["S"]: error for request in left})

        await _side_by_side(write, _chunks(requests, _WRITTEN, _written))
        return failed


def _chunks(parts: Sequence[Json], most: int, item_of: Callable[[Json], Json]) -> list[list[Json]]:
    """Cut after so many parts, or before a request grows too large."""
    chunks: list[list[Json]] = []
    room = 0
    for part in parts:
        item = item_of(part)
        size = len(json.dumps(item["key"]["S"])) + len(item.get("data", _NOTHING)["B"]) * 4 // 3  # as base64
        if size > room or len(chunks[-1]) == most:
            chunks.append([])
            room = _BODY
        chunks[-1].append(part)
        room -= size
    return chunks


async def _side_by_side(work: Callable[[list[Json]], Awaitable[None]], chunks: Sequence[list[Json]]) -> None:
    """Give ``work`` a chunk at a time, several of them at once."""
    waiting = iter(chunks)

    async def worker() -> None:
        for chunk in waiting:
            await work(chunk)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_SIDE_BY_SIDE, len(chunks))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__  # as one request would have


def _key(key: str) -> Json:
    check_key(key, DynamoDBBackend.key_limits)
    return {"key": {"S": key}}


def _written(request: Json) -> Json:
    """Return the item, or the key of one, that a request of BatchWriteItem is about."""
    item: Json = request["PutRequest"]["Item"] if "PutRequest" in request else request["DeleteRequest"]["Key"]
    return item


def _bytes(item: Json | None) -> bytes | None:
    if item is None:
        return None
    if "n" in item:
        number = _number(item)
        return str(item["n"]).encode() if number is None else b"%d" % number
    data = item.get("data", {}).get("B")
    return None if data is None else bytes(data)


def _number(item: Json) -> int | None:
    """Return the integer of a counter, however its server spells it; ``None`` if the item is no counter."""
    try:
        number = Decimal(item["n"]["N"])
        return whole if number == (whole := int(number)) else None
    except (InvalidOperation, KeyError, OverflowError, TypeError, ValueError):
        return None
