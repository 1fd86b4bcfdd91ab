"""`MemcachedBackend`: one memcached server or several, found by way of the ``aiomcache`` package.

Commands sent: get, gets, set, add, cas, delete, incr.  A value is stored under its key as it is; the item's
flags, 32 bits which memcached keeps and does not read, hold its deadline in Unix seconds, 0 for never.

The connections are this package's own, and pipelined.  Those of ``aiomcache`` carry one command at a time, go back to
their pool with an answer still to come when a call is cancelled, so the next caller reads it as his own, and a lost one
can spin the event loop for ever.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from operator import index
from types import MappingProxyType
from typing import Any, Final, Self, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from ..entry import counter
from ..errors import (
    BackendError,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    ValueTooLarge,
)
from ._gather import Gatherer
from ._memcached import NUMBER, Item
from ._memcached_pool import Pool, Ring, Server
from .base import KeyLimits, Version, batch_error, check_key, check_value

try:
    from aiomcache import Client, FlagClient
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "MemcachedBackend needs the aiomcache package: pip install 'acache[memcached]'"
    raise ImportError(msg) from error

__all__ = ["MemcachedBackend"]

Life: TypeAlias = tuple[int, int]
"""The flags and the exptime of an item."""
Outcome: TypeAlias = bytes | BackendError
"""What came of one key of many."""

_PORT: Final = 11211
_MONTH: Final = 30 * 86400
_LAST_INSTANT: Final = 2**31 - 1
_INT64: Final = range(-(2**63), 2**63)
_STORED: Final = frozenset((b"STORED", b"NOT_STORED", b"EXISTS", b"NOT_FOUND"))
_DELETED: Final = frozenset((b"DELETED", b"NOT_FOUND"))
_COUNTED: Final = frozenset((NUMBER, b"NOT_FOUND", b"CLIENT_ERROR cannot increment or decrement non-numeric value"))
_CHUNK: Final = 100
_CHUNK_BYTES: Final = 1 << 18
_ATTEMPTS: Final = 200
_LONGEST_PAUSE: Final = 0.05
_NOTHING: Final[Mapping[str, BackendError]] = MappingProxyType({})


class MemcachedBackend:
    """One memcached server, or several that share the keys by consistent hashing.

    Args:
        clients: one for each server, told by it: address, number of connections, their options (TLS).  The connections
            used are the backend's own; the clients stay their owner's, who closes them.
        connect_timeout: seconds.
        timeout: seconds for each answer.
        max_value: the longest value, in bytes; the server's own limit (``-I``) counts the key and some 50 bytes more.

    Of several servers, one that cannot be reached or does not answer takes its own keys along, and no others: it is
    left alone for a moment, so that they fail at once, and the error of such a key has it in ``failed``.

    Raises:
        ConfigurationError: no client, something else than a client, or an option that makes no sense.
    """

    _name: Final = "this MemcachedBackend"
    key_limits: Final = KeyLimits(max_bytes=250, printable=True)
    ttl_granularity: Final = 2.0
    """The server counts whole seconds, and is up to one behind: entries end late rather than early."""

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
        self._servers: Final = [_server(client) for client in clients]
        self._timeouts: Final = (connect_timeout, timeout)
        self.value_limit: Final = max_value
        self._ring: Final = Ring([server.name for server in self._servers])
        self._pools: list[Pool] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: Final[WeakValueDictionary[str, asyncio.Lock]] = WeakValueDictionary()
        self._gets: Final = Gatherer(partial(self._items, verb=b"get"), partial(self._look, verb=b"get"))
        self._versioned_gets: Final = Gatherer(partial(self._items, verb=b"gets"), self._look)

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        max_connections: int = 4,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
        max_value: int = 1_000_000,
    ) -> Self:
        """Build a backend; nothing connects before the first operation.

        Args:
            url: ``memcached://host:port``, several servers as ``memcached://host1:port,host2:port``.
            max_connections: to each server.  All callers share one; others are opened while something large is under
                way on it.
            connect_timeout: seconds.
            timeout: seconds for each answer.
            max_value: the longest value, in bytes.

        Raises:
            ConfigurationError: a URL that names no server, or more than servers, or one twice.
        """
        if max_connections < 1:
            msg = f"{max_connections=}: must be at least 1"
            raise ConfigurationError(msg)
        clients = [Client(host, port, pool_size=max_connections) for host, port in _places(url)]
        return cls(*clients, connect_timeout=connect_timeout, timeout=timeout, max_value=max_value)

    def __repr__(self) -> str:
        return f"<MemcachedBackend {', '.join(server.name for server in self._servers)}>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`; gets of one turn of the loop travel as one."""
        self._wire(key)
        item = await self._gets.get(key)
        return None if item is None else item.data

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        await self._store(b"set", key, data, _life(ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return await self._say(key, b"delete %b\r\n" % self._wire(key), _DELETED) == b"DELETED"

    async def aclose(self) -> None:
        """Close the connections; the clients are their owner's."""
        pools, self._pools = self._pools, []
        loop, self._loop = self._loop, None
        if loop is asyncio.get_running_loop():
            for pool in pools:
                await pool.aclose()
            await self._gets.aclose()
            await self._versioned_gets.aclose()

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; a hundred keys in one get, all of them under way at once."""
        try:
            return {key: item.data for key, item in (await self._items(keys)).items()}
        except BackendError as error:
            error.found = {key: item.data for key, item in error.found.items()}
            raise

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; a hundred sets in one piece, all of them under way at once."""
        life = _life(ttl)
        commands: dict[str, bytes] = {}
        refused: dict[str, BackendError] = {}
        for key, data in items.items():
            try:
                commands[key] = self._storage(b"set", key, data, life)
            except ValueTooLarge as error:
                refused[key] = error
        await self._say_all(commands, _STORED, refused)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; a hundred deletes in one piece, all of them under way at once."""
        words = await self._say_all({key: b"delete %b\r\n" % self._wire(key) for key in keys}, _DELETED)
        return list(words.values()).count(b"DELETED")

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return await self._store(b"add", key, data, _life(ttl)) == b"STORED"

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`; memcached's own, which has no sign, where the numbers have none; else gets and cas."""
        delta = index(delta)
        seen = await self._look(key) if 0 <= delta < 2**32 else None
        if seen is not None and 0 <= _number(key, seen.data) < 2**62 and not seen.data.endswith(b" "):
            word = await self._say(key, b"incr %b %d\r\n" % (self._wire(key), delta), _COUNTED)
            if word.isdigit():
                return int(word)
        total = 0

        def add(seen: Item | None) -> tuple[bytes, Life]:
            nonlocal total
            number, life = 0, _life(ttl)
            if seen is not None and not 0 < seen.flags <= time.time():
                number, life = _number(key, seen.data), _life_until(seen.flags)
            total = number + delta
            if total not in _INT64:
                msg = f"cannot add {delta} to {key!r}: counters have 64 bits"
                raise DecodeError(msg)
            return b"%d" % total, life

        await self._change(key, add)
        return total

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`; written again with the new deadline, by gets and cas."""
        return await self._change(key, lambda seen: seen and (seen.data, _life(ttl))) is not None

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`; by the deadline in the flags and this machine's clock."""
        seen = await self._look(key)
        if seen is None:
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return max(0.0, seen.flags - time.time()) if seen.flags else None

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is memcached's and the first 48 bytes."""
        self._wire(key)
        seen = await self._versioned_gets.get(key)
        return (None, None) if seen is None else (seen.data, seen.version)

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`; add where nothing was seen, else gets and cas.

        The second look is for a server that was restarted after the first: it counts its versions from one again.
        """
        check_value(data, self.value_limit, self._name)
        if version is not None and (seen := await self._look(key)) is not None:
            if seen.version != version:
                return False
            word = await self._store(b"cas", key, data, _life(ttl), seen.token)
            if word != b"NOT_FOUND":
                return word == b"STORED"
        return await self.add(key, data, ttl=ttl)

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`; gets, then cas or add, until nobody came in between."""
        check_value(data, self.value_limit, self._name)
        seen = await self._change(key, lambda _: (data, _life(ttl)))
        return None if seen is None else seen.data

    # Commands -------------------------------------------------------------------------------------------------------

    async def _look(self, key: str, verb: bytes = b"gets") -> Item | None:
        wire = self._wire(key)
        pool = self._pool(wire)
        try:
            found = await pool.items(b"%b %b\r\n" % (verb, wire), (wire,))
        except (BackendUnavailable, BackendTimeout) as error:
            raise self._of_one_server(pool, key, error) from error.__cause__
        return found.get(wire)

    async def _items(self, keys: Sequence[str], verb: bytes = b"get") -> dict[str, Item]:
        async def ask(pool: Pool, chunk: dict[str, bytes]) -> dict[str, Any]:
            wires = list(chunk.values())
            items = await pool.items(b"%b %b\r\n" % (verb, b" ".join(wires)), wires)
            return {wire.decode(): item for wire, item in items.items()}

        return await self._by_server({key: self._wire(key) for key in keys}, ask)

    async def _change(self, key: str, new: Callable[[Item | None], tuple[bytes, Life] | None]) -> Item | None:
        """Put in place of what is there what ``new`` makes of it, ``None`` to leave it; return what was there.

        The callers of this process take turns, so that only other processes can come in between.
        """
        async with self._turns.setdefault(key, asyncio.Lock()):
            for attempt in range(_ATTEMPTS):
                if attempt:
                    # Two processes in step could take turns in losing: one always succeeds, but always the same one.
                    await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, _LONGEST_PAUSE)))  # noqa: S311 - jitter
                seen = await self._look(key)
                if (wanted := new(seen)) is None:
                    return seen
                verb, token = (b"add", b"") if seen is None else (b"cas", seen.token)
                if await self._store(verb, key, *wanted, token) == b"STORED":
                    return seen
        msg = f"{key!r} was changed by others {_ATTEMPTS} times while this operation tried to change it"
        raise BackendUnavailable(msg)

    async def _store(self, verb: bytes, key: str, data: bytes, life: Life, token: bytes = b"") -> bytes:
        return await self._say(key, self._storage(verb, key, data, life, token), _STORED)

    def _storage(self, verb: bytes, key: str, data: bytes, life: Life, token: bytes = b"") -> bytes:
        wire = self._wire(key)
        check_value(data, self.value_limit, self._name)
        return b"%b %b %d %d %d %b\r\n%b\r\n" % (verb, wire, *life, len(data), token, data)

    async def _say(self, key: str, command: bytes, known: Collection[bytes]) -> bytes:
        pool = self._pool(key.encode())
        try:
            (word,) = await pool.words(command, known)
        except (BackendUnavailable, BackendTimeout) as error:
            raise self._of_one_server(pool, key, error) from error.__cause__
        if isinstance(word, BackendError):
            raise word
        return word

    async def _say_all(
        self, commands: Mapping[str, bytes], known: Collection[bytes], refused: Mapping[str, BackendError] = _NOTHING
    ) -> dict[str, bytes]:
        async def say(pool: Pool, chunk: dict[str, bytes]) -> dict[str, Outcome]:
            words = await pool.words(b"".join(chunk.values()), known, len(chunk))
            return dict(zip(chunk, words, strict=True))

        return await self._by_server(commands, say, refused)

    # Servers --------------------------------------------------------------------------------------------------------

    def _pool(self, wire: bytes) -> Pool:
        """Return the pool of the key's server; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            for pool in self._pools:
                with suppress(RuntimeError):  # that loop is closed
                    pool.loop.call_soon_threadsafe(pool.close)
            self._loop = loop
            several = len(self._servers) > 1
            self._pools = [Pool(server, *self._timeouts, leave_alone=several) for server in self._servers]
        if len(self._pools) == 1:
            return self._pools[0]
        return self._pools[self._ring.find(wire)]

    def _of_one_server(self, pool: Pool, key: str, error: BackendError) -> BackendError:
        """Say in ``failed`` that the error is this key's only, as long as another server may answer for others."""
        if any(other is not pool and not other.failing for other in self._pools):
            return batch_error({key: error})
        return error

    async def _by_server(
        self,
        parts: Mapping[str, bytes],
        ask: Callable[[Pool, dict[str, bytes]], Awaitable[dict[str, Outcome]]],
        refused: Mapping[str, BackendError] = _NOTHING,
    ) -> dict[str, Any]:
        """Ask every server for its keys' parts, all chunks under one deadline; return what came of each.

        What was ``refused`` before is told with what fails now.

        Raises:
            BackendError: of `batch_error` if some keys failed, as a single key's if all did and no server answers.
        """
        by_pool: dict[Pool, dict[str, bytes]] = {}
        for key, part in parts.items():
            by_pool.setdefault(self._pool(key.encode()), {})[key] = part
        outcomes: dict[str, Outcome] = {}

        async def attempt(pool: Pool, chunk: dict[str, bytes]) -> None:
            try:
                outcomes.update(await ask(pool, chunk))
            except BackendError as error:
                outcomes.update(dict.fromkeys(chunk, error))

        pieces = [(pool, chunk) for pool, own in by_pool.items() for chunk in _chunks(own)]
        if len(pieces) == 1:
            await attempt(*pieces[0])
        else:
            async with asyncio.TaskGroup() as group:
                for pool, chunk in pieces:
                    group.create_task(attempt(pool, chunk))
        outcomes.update(refused)  # last: an outage is the graver news
        failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, BackendError)}
        found = {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, BackendError)}
        if len(failed) == len(parts) > 0 and not refused and all(pool.failing for pool in self._pools):
            raise next(iter(failed.values()))
        if failed:
            raise batch_error(failed, found=found)
        return found

    def _wire(self, key: str) -> bytes:
        return check_key(key, self.key_limits)


def _server(client: FlagClient[Any]) -> Server:
    pool = client._pool  # noqa: SLF001 - a client does not tell its address otherwise
    options = {name: value for name, value in pool.conn_args.items() if name != "limit"}  # of its own streams
    return Server(pool._host, pool._port, pool._maxsize, options)  # noqa: SLF001


def _chunks(parts: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Cut after a hundred parts, or so many bytes."""
    chunks: list[dict[str, bytes]] = []
    room = 0
    for key, part in parts.items():
        if room <= 0 or len(chunks[-1]) == _CHUNK:
            chunks.append({})
            room = _CHUNK_BYTES
        chunks[-1][key] = part
        room -= len(part)
    return chunks


def _life(ttl: float | None) -> Life:
    """Round up, and one second more: the server's clock may be about to tick."""
    if ttl is None:
        return 0, 0
    ttl = min(ttl, 2**32)  # infinity is no number of seconds
    return min(math.ceil(time.time() + ttl), 2**32 - 1), _exptime(math.ceil(ttl) + 1)


def _life_until(flags: int) -> Life:
    """Keep a deadline."""
    return flags, _exptime(max(1, math.ceil(flags - time.time()))) if flags else 0


def _exptime(seconds: int) -> int:
    """Say it as memcached wants it: beyond thirty days as an instant; its instants end in January 2038."""
    if seconds <= _MONTH:
        return seconds
    now = int(time.time())
    return min(now + seconds, _LAST_INSTANT) if now + _MONTH < _LAST_INSTANT else _MONTH


def _number(key: str, data: bytes) -> int:
    number = counter(data.rstrip(b" "))  # another program's decr leaves blanks behind
    if number is None:
        msg = f"cannot increment {key!r}: it does not hold a counter"
        raise DecodeError(msg)
    return number


def _places(url: str) -> list[tuple[str, int]]:
    """Read the servers' hosts and ports from a URL."""
    scheme, _, rest = url.partition("://")
    try:
        parts = [urlsplit(f"//{part}") for part in rest.removesuffix("/").split(",")]
        places = [(part.hostname or "", part.port or _PORT) for part in parts]
        odd = "@" in rest or any(part.path or part.query or part.fragment for part in parts)
    except ValueError:
        odd, places = True, []
    if odd or scheme.lower() != "memcached" or not all(host for host, _ in places) or len(set(places)) < len(places):
        msg = "a memcached URL is memcached://host:port,host2:port: servers, each once, and no user, path or options"
        raise ConfigurationError(msg)  # not the URL itself: it may hold a password
    return places
