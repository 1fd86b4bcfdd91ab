"""A DynamoDB table by way of ``aiobotocore``: a client for each event loop, requests within a deadline, errors.

The client's own repetitions are switched off: it would repeat a write whose answer was lost, which may have been
carried out.  What DynamoDB throttles it has not carried out, so that, and that only, is repeated here.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ..errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    ValueTooLarge,
)

try:
    from aiobotocore.client import AioBaseClient
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession, get_session
    from botocore import exceptions
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "DynamoDBBackend needs the aiobotocore package: pip install 'acache[dynamodb]'"
    raise ImportError(msg) from error

__all__ = ["Json", "Table", "get_session"]

Json: TypeAlias = dict[str, Any]

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_CREATION: Final = 60.0
"""Seconds for DynamoDB to make a table; it takes about ten."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5

_MISSING: Final = "ResourceNotFoundException"
_CONDITION: Final = "ConditionalCheckFailedException"
_BUSY: Final = frozenset(
    (
        "ProvisionedThroughputExceededException",
        "ReplicatedWriteConflictException",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",
    )
)
_NO_TTL: Final = frozenset(("ResourceInUseException", "UnknownOperationException", "ValidationException"))
"""It is on already, another process is about to switch it on, or this is an emulator that cannot."""
_NO_CREDENTIALS: Final = (
    exceptions.CredentialRetrievalError,
    exceptions.NoAuthTokenError,
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
)


class _Busy(BackendUnavailable):
    """DynamoDB did not carry the request out and may do so a little later."""


class _Pauses:
    """The pauses between attempts: drawn at random below a bound that doubles, as long as the deadline allows."""

    def __init__(self, seconds: float) -> None:
        self._loop: Final = asyncio.get_running_loop()
        self.end: Final = self._loop.time() + seconds
        self._last: Final = self.end - seconds / 4  # what begins later would be late more often than answered
        self._bound = _FIRST_PAUSE

    async def pause(self) -> bool:
        """Sleep; ``False``, at once, where too little time would be left for another attempt."""
        pause = random.uniform(0, self._bound)  # noqa: S311 - jitter
        self._bound = min(2 * self._bound, _LONGEST_PAUSE)
        if self._loop.time() + pause >= self._last:
            return False
        await asyncio.sleep(pause)
        return True


@dataclass(eq=False)
class _Connection:
    """The client of one event loop."""

    client: Any = None
    ready: bool = False
    """The client is open, and the table is there if it was ours to make."""
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    failure: BackendError | None = None
    """What the last attempt to open it came to: that of all who waited for it, who would wait a deadline each."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)


class Table:
    """One table, and the ways to ask it.

    Args:
        source: a session of ``aioboto3`` or ``aiobotocore``, which makes a client for each event loop, or a client.
        name: the table's.
        region: of the clients that a session makes; ``None``: the session's own.
        endpoint_url: of the clients that a session makes; ``None``: Amazon's.
        create: make the table before the first request.
        connect_timeout: seconds, of the clients that a session makes.
        timeout: seconds for each request with its repetitions.
        max_connections: of the clients that a session makes.
    """

    def __init__(
        self,
        source: Any,
        name: str,
        *,
        region: str | None,
        endpoint_url: str | None,
        create: bool,
        connect_timeout: float,
        timeout: float,
        max_connections: int,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            msg = f"{name!r} is no name for a table: 3 to 255 letters, digits, '_', '-' and '.'"
            raise ConfigurationError(msg)
        self.name: Final = name
        self._create: Final = create
        self._timeout: Final = timeout
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        self._client: Final[Any] = source if isinstance(source, AioBaseClient) else None
        self._make: Final[Any] = getattr(source, "create_client" if isinstance(source, AioSession) else "client", None)
        self._options: Final[Json] = {
            "region_name": region,
            "endpoint_url": endpoint_url,
            "config": AioConfig(
                connect_timeout=connect_timeout,
                read_timeout=timeout,
                max_pool_connections=max_connections,
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        }
        if self._client is None:
            if not callable(self._make) or isinstance(source, type):
                msg = f"DynamoDBBackend({source!r}): pass a session of aioboto3 or aiobotocore, or an opened client"
                raise ConfigurationError(msg)
        elif self._client.meta.service_model.service_name != "dynamodb":
            msg = f"DynamoDBBackend: a client of {self._client.meta.service_model.service_name!r}, not of 'dynamodb'"
            raise ConfigurationError(msg)
        elif region is not None or endpoint_url is not None:
            msg = "DynamoDBBackend: region and endpoint_url are for a session; this client has its own"
            raise ConfigurationError(msg)

    # Requests -------------------------------------------------------------------------------------------------------

    async def ask(self, method: str, /, **request: Any) -> Json:
        """Send one request about this table."""
        async with self._using() as client:
            return await self._attempts(client, method, {"TableName": self.name, **request}, _Pauses(self._timeout))

    async def ask_if(self, method: str, /, **request: Any) -> Json | None:
        """Send a write with a condition; ``None`` if that did not hold."""
        try:
            return await self.ask(method, **request)
        except BackendError as error:
            if _code(error.__cause__) == _CONDITION:
                return None
            raise

    async def ask_many(self, method: str, part: Any, take: Callable[[Json, Any], None], /) -> None:
        """Send one request about many items, and what DynamoDB leaves of it again.

        ``take`` gets each answer and what is left then.  The deadline counts from the last answer that got further.
        """
        async with self._using() as client:
            pauses, size = _Pauses(self._timeout), _size(part)
            while size:
                answer = await self._attempts(client, method, {"RequestItems": {self.name: part}}, pauses)
                left = answer.get("UnprocessedKeys") or answer.get("UnprocessedItems") or {}
                part = left.get(self.name, [])
                take(answer, part)
                if _size(part) < size:
                    pauses, size = _Pauses(self._timeout), _size(part)
                if size and not await pauses.pause():
                    msg = f"DynamoDB left {size} items of the table {self.name!r} unprocessed within {self._timeout} s"
                    raise BackendUnavailable(msg)

    async def aclose(self) -> None:
        """Let this loop's requests finish, and close its client if it was opened here."""
        if self._client is None and (connection := self._connections.pop(asyncio.get_running_loop(), None)) is not None:
            try:
                if connection.users:
                    await connection.idle.wait()
            finally:
                await connection.stack.aclose()

    async def _attempts(self, client: Any, method: str, request: Json, pauses: _Pauses) -> Json:
        while True:
            try:
                return await self._attempt(client, method, request, pauses.end)
            except _Busy:
                if not await pauses.pause():
                    raise

    async def _attempt(self, client: Any, method: str, request: Json, end: float) -> Json:
        try:
            async with asyncio.timeout_at(end):
                answer: Json = await getattr(client, method)(**request)
        except (
            exceptions.BotoCoreError,
            exceptions.ClientError,
            OSError,  # and with it TimeoutError
            RuntimeError,  # a client that its owner has closed
            AttributeError,  # these: an answer of the wrong shape
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise self._translated(error) from error
        kind = answer["ResponseMetadata"]["HTTPHeaders"].get("content-type", "")
        if not kind.startswith("application/x-amz-json"):
            # A proxy's page of apologies would pass for the empty answer that confirms a write.
            msg = f"this is no answer of DynamoDB, but {kind or 'nothing'}"
            raise BackendUnavailable(msg)
        return answer

    def _translated(self, error: Exception) -> BackendError:
        """Find the acache error that says what to do."""
        code = _code(error)
        if code == _MISSING:
            for connection in self._connections.values():
                connection.ready = False  # the next operation makes it again, if that was asked for
            return BackendRefused(
                f"there is no table {self.name!r}: create it with the string 'key' as its hash key,"
                f" or pass create_table=True ({error})"
            )
        if code in _BUSY:
            return _Busy(f"DynamoDB is throttling: {error}")
        if code == "ValidationException" and "item size" in str(error).lower():
            return ValueTooLarge(f"DynamoDB takes items of up to 400 KB: {error}")
        if isinstance(error, exceptions.ClientError):
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if 400 <= status < 500:  # noqa: PLR2004 - HTTP's word for it
                return BackendRefused(f"DynamoDB refused: {error}")
            return BackendUnavailable(f"DynamoDB failed: {error}")
        if isinstance(error, _NO_CREDENTIALS):
            return BackendRefused(f"no credentials for DynamoDB: {error}")
        if isinstance(error, (exceptions.ReadTimeoutError, TimeoutError)):
            return BackendTimeout(f"DynamoDB did not answer within {self._timeout} s")
        if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError, OSError)):
            return BackendUnavailable(f"cannot reach DynamoDB: {error}")
        return BackendUnavailable(f"DynamoDB failed: {error!r}")

    # Clients --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[Any]:
        """Give the client of the running loop, and keep it from being closed meanwhile."""
        connection = self._connection()
        connection.users += 1
        connection.idle.clear()
        try:
            if not connection.ready:
                await self._open(connection)
            yield connection.client
        finally:
            connection.users -= 1
            if not connection.users:
                connection.idle.set()

    def _connection(self) -> _Connection:
        """Return what belongs to the running loop; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        found = self._connections.get(loop)
        if found is not None:
            return found
        if self._client is not None and self._connections:
            msg = (
                "this DynamoDBBackend's client was used in another event loop before, and its connections cannot move:"
                " pass a session instead, which makes one for each loop"
            )
            raise BackendUnavailable(msg)
        for other in list(self._connections):
            if other.is_closed():
                del self._connections[other]
        return self._connections.setdefault(
            loop, _Connection(self._client, ready=self._client is not None and not self._create)
        )

    async def _open(self, connection: _Connection) -> None:
        before = connection.failure
        async with connection.opening:
            if connection.failure is not before and (failure := connection.failure) is not None:
                raise type(failure)(str(failure)) from failure.__cause__
            try:
                if connection.client is None:
                    connection.client = await self._new_client(connection.stack)
                if self._create and not connection.ready:
                    await self._create_table(connection.client)
            except BackendError as error:
                connection.failure = error
                raise
            connection.ready, connection.failure = True, None

    async def _new_client(self, stack: AsyncExitStack) -> Any:
        try:
            return await stack.enter_async_context(self._make("dynamodb", **self._options))
        except _NO_CREDENTIALS as error:
            raise self._translated(error) from error
        except (exceptions.BotoCoreError, TypeError, ValueError) as error:
            msg = f"cannot make a client of DynamoDB: {error}"
            raise ConfigurationError(msg) from error

    # The table ------------------------------------------------------------------------------------------------------

    async def _create_table(self, client: Any) -> None:
        """Make the table if it is missing, and wait for it.

        Every step may be repeated, or be taken by several processes at once: a call that is cancelled here leaves the
        rest to the next one.
        """
        pauses = _Pauses(_CREATION)
        while await self._status(client) not in ("ACTIVE", "UPDATING"):
            if not await pauses.pause():
                msg = f"the table {self.name!r} was not ready within {_CREATION:.0f} s"
                raise BackendTimeout(msg)
        told = await self._control(client, "describe_time_to_live", {}, allowed=_NO_TTL)
        if told.get("TimeToLiveDescription", {}).get("TimeToLiveStatus", "DISABLED") == "DISABLED":
            specification = {"AttributeName": "expires_at", "Enabled": True}
            await self._control(
                client, "update_time_to_live", {"TimeToLiveSpecification": specification}, allowed=_NO_TTL
            )

    async def _status(self, client: Any) -> str:
        told = await self._control(client, "describe_table", {}, allowed=frozenset((_MISSING,)))
        if told:
            return str(told["Table"]["TableStatus"])
        definition = {
            "AttributeDefinitions": [{"AttributeName": "key", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "key", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        }
        # It may be there by now: made by another process.
        await self._control(client, "create_table", definition, allowed=frozenset(("ResourceInUseException",)))
        return "CREATING"

    async def _control(self, client: Any, method: str, request: Json, *, allowed: frozenset[str]) -> Json:
        """Ask about the table itself; an empty answer for the errors that are ``allowed``."""
        try:
            return await self._attempts(client, method, {"TableName": self.name, **request}, _Pauses(self._timeout))
        except BackendError as error:
            if _code(error.__cause__) in allowed:
                return {}
            raise


def _code(error: BaseException | None) -> str:
    """Return DynamoDB's word for an error."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, exceptions.ClientError) else ""


def _size(part: Any) -> int:
    """Tell how many items are in what is asked of one table: a list to write, or keys to read."""
    return len(part["Keys"] if isinstance(part, dict) else part)
