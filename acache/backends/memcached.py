"""`MemcachedBackend`: one memcached server or several, found by way of the ``aiomcache`` package.

Commands sent: get, gets, set, add, cas, delete, incr, decr.  A value is stored under its key as it is; the item's
flags, 32 bits which memcached keeps and does not read, hold its deadline in Unix seconds, 0 for never.

The connections are this module's own.  Those of ``aiomcache`` go back to their pool with an answer still to come when
a call is cancelled, so the next caller reads it as his own; and a lost one can spin the event loop for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from bisect import bisect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from ..entry import HEAD_BYTES, counter
from ..errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    InvalidKey,
    KeyMissing,
    ValueTooLarge,
)
from .base import KeyLimits, Version

try:
    from aiomcache import Client, ClientException, FlagClient
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "MemcachedBackend needs the aiomcache package: pip install 'acache[memcached]'"
    raise ImportError(msg) from error

__all__ = ["MemcachedBackend"]

T = TypeVar("T")
Answer: TypeAlias = Callable[[asyncio.StreamReader], Awaitable[T]]
Life: TypeAlias = tuple[int, int]
"""The flags and the exptime of an item."""

_PORT: Final = 11211
_KEY: Final = re.compile(r"[!-~]{1,250}")
_MONTH: Final = 30 * 86400
_LAST_EXPTIME: Final = 2**31 - 1
_LAST_FLAGS: Final = 2**32 - 1
_INT64: Final = range(-(2**63), 2**63)
_CHUNK: Final = 100
_CHUNK_BYTES: Final = 1 << 18
_ATTEMPTS: Final = 100
_POINTS: Final = 40
_WORDS: Final = frozenset((b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND", b"DELETED"))
_NO_NUMBER: Final = b"CLIENT_ERROR cannot increment or decrement non-numeric value"


class MemcachedBackend:
    """One memcached server, or several that share the keys by consistent hashing.

    Args:
        clients: tell the server's address, the options of a connection (TLS) and the number of connections, one client
            for each server; they stay their owner's, who closes them.  The connections used are the backend's own.
        connect_timeout: seconds.
        timeout: seconds for each answer.
        max_value: the longest value, in bytes; the server's own limit (``-I``) counts the key and some 50 bytes more.

    Raises:
        ConfigurationError: no client, something else than a client, or an option that makes no sense.
    """

    key_limits: Final = KeyLimits(max_bytes=250, printable=True)
    ttl_granularity: Final = 2.0
    """The server counts whole seconds and its clock is up to one behind: an entry ends late rather than early."""

    def __init__(
        self,
        *clients: FlagClient[Any],
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        max_value: int = 1_000_000,
    ) -> None:
        for client in clients or (None,):
            if not isinstance(client, FlagClient):
                msg = f"MemcachedBackend({client!r}): pass an aiomcache.Client, or use MemcachedBackend.from_url()"
                raise ConfigurationError(msg)
        if not (connect_timeout > 0 and timeout > 0 and max_value > 0):
            msg = f"{connect_timeout=}, {timeout=}, {max_value=}: must be above zero"
            raise ConfigurationError(msg)
        self._servers: Final = [_Server.of(client) for client in clients]
        self._timeouts: Final = (connect_timeout, timeout)
        self._max_value: Final = max_value
        self._ring: Final = _ring([server.name for server in self._servers])
        self._points: Final = [point for point, _ in self._ring]
        self._pools: list[_Pool] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: Final[WeakValueDictionary[bytes, asyncio.Lock]] = WeakValueDictionary()

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        max_connections: int = 50,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        max_value: int = 1_000_000,
    ) -> Self:
        """Build a backend; nothing connects before the first operation.

        Args:
            url: ``memcached://host:port``, several servers as ``memcached://host1:port,host2:port``.
            max_connections: to each server; callers beyond this number wait for a connection.
            connect_timeout: seconds.
            timeout: seconds for each answer.
            max_value: the longest value, in bytes.

        Raises:
            ConfigurationError: a URL that names no server, or more than servers, or one twice.
        """
        if max_connections < 1:
            msg = f"{max_connections=}: must be at least 1"
            raise ConfigurationError(msg)
        clients = [Client(host, port, pool_size=max_connections, pool_minsize=1) for host, port in _places(url)]
        return cls(*clients, connect_timeout=connect_timeout, timeout=timeout, max_value=max_value)

    def __repr__(self) -> str:
        return f"<MemcachedBackend {', '.join(server.name for server in self._servers)}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        wire = _wire(key)
        found = await self._pool(wire).talk([b"get %b\r\n" % wire], lambda reader: _items(reader, (wire,)), again=True)
        return found[wire].data if found else None

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._store(b"set", _wire(key), data, _life(ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        wire = _wire(key)
        return await self._say(wire, b"delete %b\r\n" % wire) == b"DELETED"

    async def aclose(self) -> None:
        """Close the connections; the clients stay open."""
        pools, self._pools = self._pools, []
        if self._loop is asyncio.get_running_loop():
            self._loop = None
            for pool in pools:
                await pool.aclose()

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; a hundred keys in one get, the servers side by side."""
        names = {_wire(key): key for key in keys}
        found: dict[str, bytes] = {}

        async def ask(pool: _Pool, wires: list[bytes]) -> None:
            for chunk in _chunks([(wire, 0) for wire in wires]):
                asked = frozenset(chunk)
                items = await pool.talk(
                    [b"get %b\r\n" % b" ".join(chunk)], lambda reader, asked=asked: _items(reader, asked), again=True
                )
                found.update({names[wire]: item.data for wire, item in items.items()})

        await _side_by_side([ask(pool, wires) for pool, wires in self._by_server(names).items()])
        return found

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; a hundred pipelined sets at a time, the servers side by side."""
        life = _life(ttl)
        commands = {
            wire: self._storage(b"set", wire, data, life)
            for wire, data in ((_wire(key), data) for key, data in items.items())
        }
        await self._say_all(commands)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; a hundred pipelined deletes at a time, the servers side by side."""
        wires = [_wire(key) for key in keys]
        return (await self._say_all({wire: b"delete %b\r\n" % wire for wire in wires})).count(b"DELETED")

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._store(b"add", _wire(key), data, _life(ttl)) == b"STORED"

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`; memcached's incr where it will do, compare-and-set for what goes below zero."""
        wire = _wire(key)
        if 0 <= delta < 2**32:
            word = await self._say(wire, b"incr %b %d\r\n" % (wire, delta))
            if word == b"NOT_FOUND" and await self.add(key, b"%d" % delta, ttl=ttl):
                return delta
            if word.isdigit():
                if int(word) in _INT64:
                    return int(word)
                await self._say(wire, b"decr %b %d\r\n" % (wire, delta))
                raise _no_sum(key, delta)
        async with self._turn(wire):
            for _ in range(_ATTEMPTS):
                seen = await self._look(wire)
                number, life = 0, _life(ttl)
                if seen is not None and (seen.flags == 0 or seen.flags > time.time()):
                    found = counter(seen.data.rstrip(b" "))  # memcached's decr leaves blanks behind
                    if found is None:
                        msg = f"cannot increment {key!r}: it does not hold a counter"
                        raise DecodeError(msg)
                    number, life = found, _life_until(seen.flags)
                if number + delta not in _INT64:
                    raise _no_sum(key, delta)
                if await self._store_over(seen, wire, b"%d" % (number + delta), life):
                    return number + delta
        raise _too_busy(key)

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`; written again with the new deadline, by compare-and-set."""
        wire = _wire(key)
        async with self._turn(wire):
            for _ in range(_ATTEMPTS):
                seen = await self._look(wire)
                if seen is None:
                    return False
                if await self._store_over(seen, wire, seen.data, _life(ttl)):
                    return True
        raise _too_busy(key)

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`; by this machine's clock and the deadline in the flags."""
        seen = await self._look(_wire(key))
        if seen is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return max(0.0, seen.flags - time.time()) if seen.flags else None

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is memcached's and the first 40 bytes."""
        seen = await self._look(_wire(key))
        return (None, None) if seen is None else (seen.data, seen.version)

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`; add where nothing was seen, else gets and cas.

        The second look is for a server that was restarted since the first: it counts its versions from one again.
        """
        wire, life = _wire(key), _life(ttl)
        self._check(data)
        if version is not None and (seen := await self._look(wire)) is not None:
            if seen.version != version:
                return False
            word = await self._store(b"cas", wire, data, life, seen.token)
            if word != b"NOT_FOUND":
                return word == b"STORED"
        return await self._store(b"add", wire, data, life) == b"STORED"

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`; gets, then cas or add, until nobody came in between."""
        wire = _wire(key)
        self._check(data)
        async with self._turn(wire):
            for _ in range(_ATTEMPTS):
                seen = await self._look(wire)
                if await self._store_over(seen, wire, data, _life(ttl)):
                    return None if seen is None else seen.data
        raise _too_busy(key)

    # Commands -------------------------------------------------------------------------------------------------------

    async def _look(self, wire: bytes) -> _Item | None:
        asked = (wire,)
        found = await self._pool(wire).talk([b"gets %b\r\n" % wire], lambda reader: _items(reader, asked), again=True)
        return found.get(wire)

    async def _store(self, verb: bytes, wire: bytes, data: bytes, life: Life, token: bytes = b"") -> bytes:
        return await self._say(wire, self._storage(verb, wire, data, life, token))

    async def _store_over(self, seen: _Item | None, wire: bytes, data: bytes, life: Life) -> bool:
        verb, token = (b"add", b"") if seen is None else (b"cas", seen.token)
        return await self._store(verb, wire, data, life, token) == b"STORED"

    def _storage(self, verb: bytes, wire: bytes, data: bytes, life: Life, token: bytes = b"") -> bytes:
        self._check(data)
        end = b" %b" % token if token else b""
        return b"%b %b %d %d %d%b\r\n%b\r\n" % (verb, wire, *life, len(data), end, data)

    def _check(self, data: bytes) -> None:
        if len(data) > self._max_value:
            msg = f"{len(data)} bytes are more than the {self._max_value} that this MemcachedBackend sends as one value"
            raise ValueTooLarge(msg)

    async def _say(self, wire: bytes, command: bytes) -> bytes:
        return await self._pool(wire).talk([command], _word)

    async def _say_all(self, commands: Mapping[bytes, bytes]) -> list[bytes]:
        words: list[bytes] = []

        async def say(pool: _Pool, wires: list[bytes]) -> None:
            for chunk in _chunks([(commands[wire], len(commands[wire])) for wire in wires]):
                count = len(chunk)
                words.extend(await pool.talk(chunk, lambda reader, count=count: _words(reader, count)))

        await _side_by_side([say(pool, wires) for pool, wires in self._by_server(commands).items()])
        return words

    # Servers --------------------------------------------------------------------------------------------------------

    def _turn(self, wire: bytes) -> asyncio.Lock:
        """Let the compare-and-set loops of this process wait for each other: only other processes make them fail."""
        return self._turns.setdefault(wire, asyncio.Lock())

    def _pool(self, wire: bytes) -> _Pool:
        """Return the pool of the key's server; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                for pool in self._pools:
                    self._loop.call_soon_threadsafe(pool.drop)
            self._loop = loop
            self._pools = [_Pool(server, *self._timeouts) for server in self._servers]
        if len(self._pools) == 1:
            return self._pools[0]
        index = bisect(self._points, _hash(wire)[0]) % len(self._points)
        return self._pools[self._ring[index][1]]

    def _by_server(self, wires: Iterable[bytes]) -> dict[_Pool, list[bytes]]:
        groups: dict[_Pool, list[bytes]] = {}
        for wire in wires:
            groups.setdefault(self._pool(wire), []).append(wire)
        return groups


class _Item(NamedTuple):
    """What memcached holds under a key."""

    data: bytes
    flags: int
    token: bytes

    @property
    def version(self) -> tuple[bytes, bytes]:
        return self.token, self.data[:HEAD_BYTES]


class _Server(NamedTuple):
    """Where a server is, and how to connect to it."""

    host: str
    port: int
    size: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, client: FlagClient[Any]) -> Self:
        pool = client._pool  # noqa: SLF001 - a client does not tell its address otherwise
        return cls(pool._host, pool._port, pool._maxsize, pool.conn_args)  # noqa: SLF001

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Pool:
    """The connections to one server, in one event loop.

    One goes back only when its question was answered in full; after anything else it is closed.
    """

    def __init__(self, server: _Server, connect_timeout: float, timeout: float) -> None:
        self._server: Final = server
        self._connect_timeout: Final = connect_timeout
        self._timeout: Final = timeout
        self._free: Final = asyncio.Semaphore(server.size)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._closed = False

    async def talk(self, question: Sequence[bytes], answer: Answer[T], *, again: bool = False) -> T:
        """Send the question and read the answer; ``again``: once more if a connection used before was lost."""
        async with self._free:
            used = self._take()
            try:
                if used is not None and again:
                    with suppress(ConnectionError, EOFError):
                        return await self._exchange(used, question, answer)
                    self.drop_idle()
                    used = None
                return await self._exchange(used or await self._connect(), question, answer)
            except TimeoutError as error:
                msg = f"memcached at {self._server.name} did not answer in time"
                raise BackendTimeout(msg) from error
            except (OSError, EOFError) as error:
                self.drop_idle()  # they led to the same server
                msg = f"cannot reach memcached at {self._server.name}: {error}"
                raise BackendUnavailable(msg) from error
            except (ClientException, ValueError) as error:
                raise _translate(self._server.name, error) from error

    async def _exchange(
        self, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], question: Sequence[bytes], answer: Answer[T]
    ) -> T:
        reader, writer = stream
        done = False
        try:
            async with asyncio.timeout(self._timeout):
                writer.writelines(question)
                await writer.drain()
                result = await answer(reader)
            done = not self._closed
        finally:
            if done:
                self._idle.append(stream)
            else:
                writer.transport.abort()
        return result

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(self._connect_timeout):
            return await asyncio.open_connection(self._server.host, self._server.port, **self._server.options)

    def _take(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.transport.abort()
        return None

    def drop_idle(self) -> list[asyncio.StreamWriter]:
        """Close the connections that nobody uses, and return them."""
        idle, self._idle = self._idle, []
        for _, writer in idle:
            writer.transport.abort()
        return [writer for _, writer in idle]

    def drop(self) -> None:
        """Close the connections; those in use, when their answer is there."""
        self._closed = True
        self.drop_idle()

    async def aclose(self) -> None:
        """Close the connections, and see them closed."""
        self._closed = True
        for writer in self.drop_idle():
            with suppress(OSError, EOFError):
                await writer.wait_closed()


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\r\n"):
        msg = "the connection ended before the answer"
        raise EOFError(msg)
    return line[:-2]


async def _word(reader: asyncio.StreamReader) -> bytes:
    """Read an answer of one line."""
    line = await _line(reader)
    if line in _WORDS or line.isdigit() or line == _NO_NUMBER:
        return line
    raise ClientException(line.decode(errors="replace"))


async def _words(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    return [await _word(reader) for _ in range(count)]


async def _items(reader: asyncio.StreamReader, asked: Sequence[bytes] | frozenset[bytes]) -> dict[bytes, _Item]:
    """Read the answer to get or gets, and see that it is to this question."""
    found: dict[bytes, _Item] = {}
    while (line := await _line(reader)) != b"END":
        words = line.split(b" ")
        if words[0] != b"VALUE" or not 4 <= len(words) <= 5 or words[1] not in asked:  # noqa: PLR2004 - with cas, 5
            raise ClientException(line.decode(errors="replace"))
        data = await reader.readexactly(int(words[3]) + 2)
        found[words[1]] = _Item(data[:-2], int(words[2]), words[4] if len(words) > 4 else b"")  # noqa: PLR2004
    return found


def _translate(name: str, error: Exception) -> BackendError:
    """Find the acache error that says what to do."""
    text = str(error)
    if "too large" in text:
        return ValueTooLarge(f"memcached at {name}: {text}; its limit is set by its option -I")
    if "unauthenticated" in text:
        return BackendRefused(f"memcached at {name} refused: {text}")
    return BackendUnavailable(f"memcached at {name} answered {text[:200]!r}")


async def _side_by_side(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    if len(work) == 1:
        return await work[0]
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__


def _chunks(parts: Iterable[tuple[bytes, int]]) -> Iterator[list[bytes]]:
    """Cut after so many parts, or so many bytes."""
    chunk: list[bytes] = []
    total = 0
    for part, size in parts:
        chunk.append(part)
        total += size
        if len(chunk) == _CHUNK or total > _CHUNK_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _wire(key: str) -> bytes:
    if not _KEY.fullmatch(key):
        msg = f"{key[:60]!r} is no key for memcached: 1 to 250 visible ASCII characters"
        raise InvalidKey(msg)
    return key.encode("ascii")


def _life(ttl: float | None) -> Life:
    """Return flags and exptime: rounded up, and one more, for the server's clock may be about to tick."""
    if ttl is None:
        return 0, 0
    now = time.time()
    return min(math.ceil(now + ttl), _LAST_FLAGS), _exptime(math.ceil(ttl) + 1, now)


def _life_until(flags: int) -> Life:
    """Return flags and exptime of an item that keeps its deadline."""
    now = time.time()
    return flags, _exptime(max(1, math.ceil(flags - now)), now) if flags else 0


def _exptime(seconds: int, now: float) -> int:
    """Return memcached's way to say it: above thirty days it is an instant, as a signed number of 32 bits."""
    return seconds if seconds <= _MONTH else min(int(now) + seconds, _LAST_EXPTIME)


def _hash(text: bytes) -> list[int]:
    digest = hashlib.md5(text, usedforsecurity=False).digest()
    return [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]


def _ring(names: Sequence[str]) -> list[tuple[int, int]]:
    """Give each server 160 points of a circle: a key belongs to the next one, and few keys move when servers change."""
    return sorted(
        (point, index)
        for index, name in enumerate(names)
        for number in range(_POINTS)
        for point in _hash(f"{name}-{number}".encode())
    )


def _places(url: str) -> list[tuple[str, int]]:
    """Read the servers from a URL."""
    scheme, _, rest = url.partition("://")
    try:
        if scheme.lower() != "memcached" or not rest or "@" in rest:
            raise ValueError  # noqa: TRY301 - as urlsplit does
        parts = [urlsplit(f"//{part}") for part in rest.removesuffix("/").split(",")]
        if any(part.path or part.query or part.fragment for part in parts):
            raise ValueError  # noqa: TRY301
        places = [(part.hostname or "", part.port or _PORT) for part in parts]
        if not all(host for host, _ in places) or len(set(places)) < len(places):
            raise ValueError  # noqa: TRY301
    except ValueError:
        msg = "a memcached URL is memcached://host:port,host2:port: servers, each once, and no user, path or options"
        raise ConfigurationError(msg) from None  # not the URL itself: it may hold a password
    return places


def _no_sum(key: str, delta: int) -> DecodeError:
    return DecodeError(f"cannot add {delta} to {key!r}: counters have 64 bits")


def _too_busy(key: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{key!r} was changed by others {_ATTEMPTS} times while this operation tried to change it"
    )
