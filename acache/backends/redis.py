"""`RedisBackend`: Redis and Valkey, by way of the ``redis`` package.

Commands sent: GET, SET (PX, NX), UNLINK, MGET, EXISTS, GETRANGE, INCRBY, PEXPIRE, PERSIST, PTTL, SCAN, MULTI/EXEC, and
EVALSHA/EVAL of one single-key script.  A value is stored under its key as it is, so other programs can read it.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlsplit

from ..entry import HEAD_BYTES
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
from .base import KeyLimits, Version

try:
    from redis import asyncio as aioredis
    from redis import exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "RedisBackend needs the redis package: pip install 'acache[redis]'"
    raise ImportError(msg) from error

__all__ = ["RedisBackend"]

T = TypeVar("T")

_LARGEST: Final = 512 * 1024 * 1024
_LONGEST_MS: Final = 10**15
_CHUNK: Final = 1000
_REFUSED: Final = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.ReadOnlyError,
)

# KEYS[1]: the key.  ARGV: the data, the milliseconds or "", the first bytes that were seen.
_SET_IF: Final = f"""
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('GETRANGE', KEYS[1], 0, {HEAD_BYTES - 1}) ~= ARGV[3] then
  return 0
end
if ARGV[2] == '' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
"""


class RedisBackend:
    """A Redis or Valkey database.

    Args:
        client: an asyncio client that returns bytes; its owner closes it, and it serves the loop it was first used in.

    Raises:
        ConfigurationError: a synchronous client, or one with ``decode_responses=True``.
    """

    key_limits: Final = KeyLimits(max_bytes=4096, printable=False)
    ttl_granularity: Final = 0.001

    def __init__(self, client: aioredis.Redis) -> None:
        if not isinstance(client, aioredis.Redis):
            msg = f"RedisBackend({client!r}): pass a redis.asyncio.Redis, or use RedisBackend.from_url()"
            raise ConfigurationError(msg)
        if client.connection_pool.connection_kwargs.get("decode_responses"):
            msg = "RedisBackend needs bytes: build its client without decode_responses=True"
            raise ConfigurationError(msg)
        self._current: aioredis.Redis | None = client
        self._build: Callable[[], aioredis.Redis] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_url(
        cls, url: str, *, max_connections: int = 50, connect_timeout: float = 1.0, timeout: float = 1.0
    ) -> Self:
        """Build a backend with a connection pool of its own; nothing connects before the first operation.

        Args:
            url: ``redis://[user:password@]host:port/db``, ``rediss://`` with TLS, ``valkey://``, ``valkeys://``,
                ``unix:///path?db=0``; options of the ``redis`` package as a query.
            max_connections: callers beyond this number wait for a connection.
            connect_timeout: seconds.
            timeout: seconds for each answer.

        Raises:
            ConfigurationError: a URL or option that the ``redis`` package does not know.
        """
        scheme, _, rest = url.partition("://")
        known = {"valkey": "redis", "valkeys": "rediss"}.get(scheme.lower(), scheme.lower())

        def build() -> aioredis.Redis:
            pool = aioredis.BlockingConnectionPool.from_url(
                f"{known}://{rest}",
                max_connections=max_connections,
                timeout=None,
                socket_connect_timeout=connect_timeout,
                socket_timeout=timeout,
                # A command that was sent may have been carried out: sending it again could count twice.
                retry=Retry(NoBackoff(), 0),
            )
            return aioredis.Redis.from_pool(pool)

        path = urlsplit(url).path.strip("/")
        try:
            if known == "unix" and not path:
                msg = "the path of the socket is missing, as in unix:///run/redis.sock"
                raise ValueError(msg)  # noqa: TRY301 - as the package's own complaints are
            if known != "unix" and path and not path.isdigit():
                msg = f"the database is a number, not {path!r}"
                raise ValueError(msg)  # noqa: TRY301 - as the package's own complaints are
            client = build()
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # connects nothing, but reads the options
        except (ValueError, TypeError, AttributeError, exceptions.RedisError) as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            reason = f"unknown option {unknown[1]!r}" if unknown else error
            msg = f"cannot open {scheme}://...: {reason}"  # not the URL itself: it may hold a password
            raise ConfigurationError(msg) from None
        backend = cls(client)
        backend._build = build
        return backend

    def __repr__(self) -> str:
        options = {} if self._current is None else self._current.connection_pool.connection_kwargs
        place = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"<RedisBackend {place}/{options.get('db', 0)}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        return cast("bytes | None", await self._do("GET", key))

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._do("SET", key, _checked(data), *_px(ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return bool(await self._do("UNLINK", key))

    async def aclose(self) -> None:
        """Close the pool, if it was built here."""
        client, self._current = self._current, self._current if self._build is None else None
        if self._build is not None and client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose(close_connection_pool=True)

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; MGET of a thousand at a time."""
        found: dict[str, bytes] = {}
        for chunk in _chunks(keys):
            data = await self._do("MGET", *chunk)
            found |= {key: item for key, item in zip(chunk, data, strict=True) if item is not None}
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; a thousand pipelined SETs at a time."""
        expiry = _px(ttl)
        for data in items.values():
            _checked(data)
        for chunk in _chunks(list(items)):
            await self._pipeline([("SET", key, items[key], *expiry) for key in chunk], transaction=False)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; UNLINK of a thousand at a time."""
        return sum([await self._do("UNLINK", *chunk) for chunk in _chunks(keys)])

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return bool(await self._do("SET", key, _checked(data), "NX", *_px(ttl)))

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`."""
        if not -(2**63) <= delta < 2**63:
            msg = f"cannot add {delta} to {key!r}: counters have 64 bits"
            raise DecodeError(msg)
        # In one transaction: the SET gives a new counter its ttl, and does nothing to an old one.
        _, total = await self._pipeline([("SET", key, 0, "NX", *_px(ttl)), ("INCRBY", key, delta)], transaction=True)
        return int(total)

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        if ttl is not None:
            return bool(await self._do("PEXPIRE", key, _milliseconds(ttl)))
        existed, _ = await self._pipeline([("EXISTS", key), ("PERSIST", key)], transaction=True)
        return bool(existed)

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        left = await self._do("PTTL", key)
        if left == -2:  # noqa: PLR2004 - Redis's word for "no such key"
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return None if left == -1 else left / 1000

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; SCAN and UNLINK, a thousand at a time."""
        async for keys in self._scan(prefix):
            await self._do("UNLINK", *keys)

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; keys that are not UTF-8 are somebody else's."""
        async for keys in self._scan(prefix):
            for key in keys:
                try:
                    yield key.decode()
                except UnicodeDecodeError:
                    continue

    async def _scan(self, prefix: str) -> AsyncIterator[list[bytes]]:
        pattern = "".join([f"\\{char}" if char in "\\*?[]" else char for char in prefix]) + "*"
        cursor: Any = 0
        while True:
            cursor, keys = await self._do("SCAN", cursor, "MATCH", pattern, "COUNT", _CHUNK)
            if keys:
                yield keys
            if int(cursor) == 0:
                return

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the first 40 bytes."""
        data = await self.get(key)
        return data, None if data is None else data[:HEAD_BYTES]

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`; SET NX where nothing was seen, else one script."""
        if version is None:
            return await self.add(key, data, ttl=ttl)
        milliseconds = "" if ttl is None else _milliseconds(ttl)
        client = self._client()
        script: Any = client.register_script(_SET_IF)
        return bool(await self._translated(script(keys=[key], args=[_checked(data), milliseconds, version])))

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`; one transaction."""
        existed, head, stored = await self._pipeline(
            [("EXISTS", key), ("GETRANGE", key, 0, HEAD_BYTES - 1), ("SET", key, _checked(data), *_px(ttl))],
            transaction=True,
            raising=False,
        )
        if isinstance(stored, Exception):
            raise _translate(stored) from stored
        if isinstance(head, Exception):  # what was there was no string: a list, say
            return b""
        return head if existed else None

    # The client -----------------------------------------------------------------------------------------------------

    def _client(self) -> aioredis.Redis:
        """Return the client for the running loop; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and self._build is None:
                msg = (
                    "this RedisBackend's client was used in another event loop before, and its connections cannot move:"
                    " inject a new client, or let RedisBackend.from_url() build one for each loop"
                )
                raise BackendUnavailable(msg)
            if self._loop is not None:
                self._current = None
            self._loop = loop
        if self._current is None and self._build is not None:
            self._current = self._build()
        assert self._current is not None  # noqa: S101 - for the type checker
        return self._current

    async def _do(self, *command: Any) -> Any:
        return await self._translated(self._client().execute_command(*command))  # type: ignore[no-untyped-call]

    async def _pipeline(self, commands: list[tuple[Any, ...]], *, transaction: bool, raising: bool = True) -> list[Any]:
        pipeline = self._client().pipeline(transaction=transaction)
        for command in commands:
            pipeline.execute_command(*command)
        return await self._translated(pipeline.execute(raise_on_error=raising))

    async def _translated(self, operation: Awaitable[T]) -> T:
        try:
            return await operation
        except (exceptions.RedisError, OSError, EOFError) as error:
            raise _translate(error) from error


def _translate(error: Exception) -> BackendError | DecodeError:
    """Find the acache error that says what to do."""
    if isinstance(error, exceptions.TimeoutError):
        return BackendTimeout(f"Redis did not answer in time: {error}")
    if isinstance(error, _REFUSED):
        return BackendRefused(f"Redis refused: {error}")
    if isinstance(error, (exceptions.ConnectionError, OSError, EOFError)):
        return BackendUnavailable(f"cannot reach Redis: {error}")
    if isinstance(error, exceptions.ResponseError):
        text = str(error)
        if "not an integer" in text or "would overflow" in text or "WRONGTYPE" in text:
            return DecodeError(f"Redis: {text}")
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM", "MISCONF", "DENIED")):
            return BackendRefused(f"Redis refused: {text}")
    return BackendUnavailable(f"Redis failed: {error}")


def _checked(data: bytes) -> bytes:
    if len(data) > _LARGEST:
        msg = f"{len(data)} bytes are more than the {_LARGEST} that Redis takes as one value"
        raise ValueTooLarge(msg)
    return data


def _milliseconds(ttl: float) -> int:
    return max(1, min(math.ceil(ttl * 1000), _LONGEST_MS))


def _px(ttl: float | None) -> tuple[Any, ...]:
    return () if ttl is None else ("PX", _milliseconds(ttl))


def _chunks(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[start : start + _CHUNK] for start in range(0, len(keys), _CHUNK)]
