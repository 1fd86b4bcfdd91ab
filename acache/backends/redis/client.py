"""The connections of the ``redis`` package, as transports: to one server and to a cluster, shared or from pools.

What the package raises is translated here, and nowhere else is it imported.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, TypeAlias, TypeVar

from ...errors import (
    AcacheError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
)
from .._heeding import heeding
from .address import Address
from .lines import Line, Lines, Lost
from .resp import make_reader, pack, pack_get, pack_set
from .tracking import Audience, RefusedByServer, Tracks
from .transport import MOST_KEYS, Argument, Command, Feed, Transport, UnknownScript, WrongType

try:
    from redis import asyncio as aioredis
    from redis import exceptions
    from redis._parsers.base import BaseParser
    from redis.asyncio.cluster import ClusterNode, PipelineCommand
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
    from redis.backoff import NoBackoff
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "RedisBackend needs the redis package: pip install 'acache[redis]'"
    raise ImportError(msg) from error

__all__ = ["Client", "carry", "connect", "is_movable"]

Client: TypeAlias = "aioredis.Redis | aioredis.RedisCluster"

T = TypeVar("T")

_FAILURES: Final = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)
_READS: Final = frozenset(
    ("GET", "MGET", "EXISTS", "PTTL", "SCAN", "HGET", "HMGET", "HLEN", "GETRANGE", "STRLEN", "TYPE")
)
"""Commands that change nothing, so that they may be sent again when a connection is lost."""
_PATIENCE: Final = 5.0
"""Seconds for an answer where a client has no timeout of its own."""
_HOPS: Final = 8
"""How often a cluster may send a command elsewhere."""
_WAIT_FOR_KEYS: Final = 0.02
"""Seconds until keys that are moving to another node are asked for again."""


def connect(
    address: Address, *, multiplex: bool, max_connections: int, connect_timeout: float, timeout: float
) -> Transport:
    """Build a transport with connections of its own; nothing connects yet.

    Raises:
        TypeError, ValueError: an option that the package does not know, or that it cannot use.
    """
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": timeout,
        **parse_url(address.url),
    }
    if options.get("decode_responses"):
        msg = "acache needs bytes: leave decode_responses out"
        raise ValueError(msg)
    if (word := options.pop("multiplex", None)) is not None:
        if word not in ("true", "false"):
            msg = f"multiplex={word}: write true or false"
            raise ValueError(msg)
        multiplex = word == "true"
    # A command that was sent may have been carried out: sending it again could count twice.
    options["retry"] = Retry(NoBackoff(), 0)
    try:
        return _OPENED[address.kind](address, options, multiplex)
    except exceptions.RedisError as error:  # an option that no connection takes
        raise ValueError(str(error)) from None


def carry(client: Client, *, multiplex: bool) -> Transport:
    """Return a transport over somebody else's client, or over connections that are made as those of the client are.

    Raises:
        ConfigurationError: it is none of asyncio, or one that decodes replies.
    """
    if not isinstance(client, (aioredis.Redis, aioredis.RedisCluster)):
        msg = (
            f"RedisBackend({type(client).__name__}): pass a redis.asyncio.Redis or RedisCluster,"
            " or use RedisBackend.from_url()"
        )
        raise ConfigurationError(msg)
    if client.get_connection_kwargs().get("decode_responses"):
        msg = "RedisBackend needs bytes: build its client without decode_responses=True"
        raise ConfigurationError(msg)
    if isinstance(client, aioredis.RedisCluster):
        return SharedClusterTransport(client) if multiplex else ClusterTransport(client)
    return SharedTransport(client) if multiplex else PoolTransport(client)


def is_movable(client: Client, *, multiplex: bool) -> bool:
    """Tell whether a transport over this client can be built again for another event loop.

    Connections of its pool, and those by which it asks Sentinels and nodes, belong to the loop of their first use.
    """
    if not multiplex or not isinstance(client, aioredis.Redis):
        return False
    return not isinstance(client.connection_pool, SentinelConnectionPool)


class _UnderWay:
    """Counts the calls that use somebody's connections, so that these are closed when the last one has ended."""

    def __init__(self) -> None:
        self._count = 0
        self.closed = False
        self._idle: asyncio.Event | None = None

    def __enter__(self) -> None:
        self.check()
        self._count += 1

    def check(self) -> None:
        """Refuse to begin after the end: connections would be opened that nobody closes."""
        if self.closed:
            msg = "the connections were closed while this command was on its way"
            raise BackendUnavailable(msg)

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count and self._idle is not None:
            self._idle.set()

    async def end(self) -> None:
        """Let no more begin, and wait for those that have begun; each has its own timeouts."""
        self.closed = True
        if self._count:
            self._idle = asyncio.Event()
            await self._idle.wait()


class PoolTransport:
    """One server, or the master that Sentinels name, through a pool of connections."""

    def __init__(self, client: aioredis.Redis, *, place: str = "", owned: bool = False) -> None:
        self._client: Final = client
        self._owned: Final = owned
        self._place: Final = place
        # Where the pool has no connection left, it raises: whoever comes then waits here.
        self._free: Final = asyncio.Semaphore(client.connection_pool.max_connections)
        self._under_way: Final = _UnderWay()
        self._tracks: Final = Tracks(self._masters)
        self._tellers = self._lines_of_tellers()

    def _lines_of_tellers(self) -> Lines:
        """Return connections beside the pool: messages answer no command of the pool's."""
        pool = self._client.connection_pool
        make = partial(pool.connection_class, **{**pool.connection_kwargs, "protocol": 3})
        return Lines(partial(_open_line, make, self.place, self._tracks.heard))

    async def _masters(self, _: bool) -> Mapping[str, Lines]:  # noqa: FBT001 - as that of a cluster
        return {self.place: self._tellers}

    async def track(self, audience: Audience, prefixes: Collection[bytes]) -> None:
        """See `Transport.track`."""
        await _tracked(self._tracks.check(audience, prefixes))

    @property
    def place(self) -> str:
        """See `Transport.place`."""
        options = self._client.connection_pool.connection_kwargs
        where = self._place or options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"{where}/{options.get('db', 0)}"

    def get(self, key: bytes) -> Coroutine[Any, Any, bytes | None]:
        """See `Transport.get`."""
        return self.execute("GET", key)

    def set(self, key: bytes, data: bytes, ms: int | None) -> Coroutine[Any, Any, Any]:
        """See `Transport.set`."""
        return self.execute("SET", key, data) if ms is None else self.execute("SET", key, data, "PX", ms)

    def execute(self, *command: Argument) -> Coroutine[Any, Any, Any]:
        """See `Transport.execute`."""
        return self._execute(command)

    async def _execute(self, command: Command) -> Any:
        with self._under_way:
            try:
                async with self._free:
                    return await heeding(self._client.execute_command(*command))  # type: ignore[no-untyped-call]
            except _FAILURES as error:
                raise _translated(error) from error

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """See `Transport.execute_many`."""
        replies: list[Any] = []
        for start in range(0, len(commands), MOST_KEYS):
            pipeline = self._client.pipeline(transaction=False)
            for command in commands[start : start + MOST_KEYS]:
                pipeline.execute_command(*command)
            try:
                with self._under_way:
                    async with self._free:
                        replies += await heeding(pipeline.execute(raise_on_error=False))
            except _FAILURES as error:
                replies += [error] * (len(commands) - len(replies))
                break
        return [_in_place(reply) for reply in replies]

    def grouped(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """See `Transport.grouped`."""
        return _parts(list(keys))

    def beside(self, key: bytes, suffix: bytes) -> bytes:
        """See `Transport.beside`."""
        return key + suffix

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """See `Transport.scan`."""
        cursor: Any = 0
        while True:
            cursor, keys = await self.execute("SCAN", cursor, "MATCH", pattern, "COUNT", MOST_KEYS)
            yield keys
            if int(cursor) == 0:
                return

    async def server(self, key: bytes) -> str:  # noqa: ARG002 - there is one
        """See `Transport.server`."""
        return ""

    async def open_feed(self, server: str) -> Feed:  # noqa: ARG002 - there is one
        """See `Transport.open_feed`."""
        return await _open_feed(self._client.connection_pool.make_connection)

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._tellers.aclose()
        if self._owned:
            await self._under_way.end()
            await self._client.aclose(close_connection_pool=True)
            pool = self._client.connection_pool
            if isinstance(pool, SentinelConnectionPool):
                for sentinel in pool.sentinel_manager.sentinels:
                    await sentinel.aclose(close_connection_pool=True)


class SharedTransport(PoolTransport):
    """One server, or the master that Sentinels name, over few connections that everybody shares.

    The client's pool tells how to connect: address, TLS, login, protocol.
    """

    def __init__(self, client: aioredis.Redis, *, place: str = "", owned: bool = False) -> None:
        super().__init__(client, place=place, owned=owned)
        make = client.connection_pool.make_connection
        self._lines: Final = Lines(partial(_open_line, make, self.place, self._tracks.heard))
        if not _is_resp2(client.connection_pool):
            self._tellers = self._lines

    def get(self, key: bytes) -> Coroutine[Any, Any, bytes | None]:
        """See `Transport.get`."""
        return self._carried(pack_get(key), again=True)

    def set(self, key: bytes, data: bytes, ms: int | None) -> Coroutine[Any, Any, Any]:
        """See `Transport.set`."""
        return self._carried(pack_set(key, data, ms), again=False)

    def execute(self, *command: Argument) -> Coroutine[Any, Any, Any]:
        """See `Transport.execute`."""
        return self._carried(pack(command), again=command[0] in _READS)

    async def _carried(self, packed: bytes, *, again: bool) -> Any:
        lost: Lost | None = None
        # The path of nearly every command: one future, and no coroutine between it and this one.
        if (reply := self._lines.begin(packed, again=again)) is not None:
            try:
                return await reply
            except Lost as error:
                lost = error
            except exceptions.RedisError as error:
                raise self._refused(error) from error
        try:
            return await self._lines.call(packed, again=again, lost=lost)
        except AcacheError:
            raise
        except _FAILURES as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> AcacheError:
        if isinstance(error, exceptions.ReadOnlyError):
            self._lines.leave()  # another server may be the master now
        return _translated(error)

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """See `Transport.execute_many`."""
        replies: list[Any] = []
        for part in _parts(list(commands)):
            try:
                replies += await self._lines.call_many([pack(command) for command in part])
            except _FAILURES as error:
                replies += [error] * (len(commands) - len(replies))
                break
        if any(isinstance(reply, exceptions.ReadOnlyError) for reply in replies):
            self._lines.leave()
        return [_in_place(reply) for reply in replies]

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._lines.aclose()
        await super().aclose()


class ClusterTransport:
    """A cluster: every command goes to the node that owns its key's slot, over one of the connections to that node.

    The package's client keeps the map of slots and the connections.  The way of a command is found here, because the
    client's own way sends commands again whose connection broke, closes the connections of other commands when it
    looks for a new map, and gives ASKING and what it is for to different connections.
    """

    def __init__(self, client: aioredis.RedisCluster, *, place: str = "cluster", owned: bool = False) -> None:
        self.place: Final = place
        self._client: Final = client
        self._owned: Final = owned
        self._suspects: Final[set[str]] = set()
        """Nodes that failed since the map was read: maybe others have taken over from them."""
        self._free: Final[dict[str, asyncio.Semaphore]] = {}
        """By node, the connections that may still be used; where the client has none left, it raises."""
        self._under_way: Final = _UnderWay()
        self._tracks: Final = Tracks(self._masters, in_cluster=True)
        self._tellers: Final[dict[str, Lines]] = {}

    async def _masters(self, again: bool) -> Mapping[str, Lines]:  # noqa: FBT001 - called by position
        with self._under_way:
            await heeding(self._client.initialize())
            if again:
                await self._read_map()
        return {node.name: self._teller(node) for node in self._client.get_primaries()}

    def _teller(self, node: ClusterNode) -> Lines:
        """Return connections beside the pool of a node."""
        lines = self._tellers.get(node.name)
        if lines is None:
            self._under_way.check()
            make = partial(node.connection_class, **{**node.connection_kwargs, "protocol": 3})
            lines = self._tellers[node.name] = Lines(partial(_open_line, make, node.name, self._tracks.heard))
        return lines

    async def track(self, audience: Audience, prefixes: Collection[bytes]) -> None:
        """See `Transport.track`."""
        await _tracked(self._tracks.check(audience, prefixes))

    def get(self, key: bytes) -> Coroutine[Any, Any, bytes | None]:
        """See `Transport.get`."""
        return self.execute("GET", key)

    def set(self, key: bytes, data: bytes, ms: int | None) -> Coroutine[Any, Any, Any]:
        """See `Transport.set`."""
        return self.execute("SET", key, data) if ms is None else self.execute("SET", key, data, "PX", ms)

    async def execute(self, *command: Argument) -> Any:
        """See `Transport.execute`."""
        try:
            return await self._delivered(command)
        except AcacheError:
            raise
        except _FAILURES as error:
            raise _translated(error) from error

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """See `Transport.execute_many`; the nodes are asked at the same time."""
        replies: list[Any] = [None] * len(commands)
        by_name: dict[str, tuple[ClusterNode, list[int]]] = {}
        for index, command in enumerate(commands):
            try:
                node = await self._owner(_key(command))
            except _FAILURES as error:
                replies[index] = error
            else:
                by_name.setdefault(node.name, (node, []))[1].append(index)
        async with asyncio.TaskGroup() as nodes:
            for node, indices in by_name.values():
                nodes.create_task(self._deliver(node, indices, commands, replies))
        for index, reply in enumerate(replies):
            if isinstance(reply, (exceptions.AskError, exceptions.TryAgainError)):
                try:
                    replies[index] = await self._delivered(commands[index])
                except _FAILURES as error:
                    replies[index] = error
        return [_in_place(reply) for reply in replies]

    async def _deliver(
        self, node: ClusterNode, indices: list[int], commands: Sequence[Command], replies: list[Any]
    ) -> None:
        for done, part in enumerate(_parts(indices)):
            try:
                answers = await self._ask(node, [commands[index] for index in part])
            except _FAILURES as error:
                for index in indices[done * MOST_KEYS :]:
                    replies[index] = error
                return
            for index, answer in zip(part, answers, strict=True):
                replies[index] = answer

    def grouped(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """See `Transport.grouped`."""
        slots: dict[int, list[bytes]] = {}
        for key in keys:
            slots.setdefault(self._client.keyslot(key), []).append(key)
        return [part for group in slots.values() for part in _parts(group)]

    def beside(self, key: bytes, suffix: bytes) -> bytes:
        """See `Transport.beside`; a key without a hash tag needs a number that brings it to the same slot."""
        slot = self._client.keyslot(key)
        wanted = (b"%s%s%s" % (key, b"%x" % number if number else b"", suffix) for number in count())
        return next(name for name in wanted if self._client.keyslot(name) == slot)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """See `Transport.scan`; keys that move between two nodes meanwhile may be listed twice, or missed."""
        failure: AcacheError | None = None
        try:
            await heeding(self._client.initialize())
        except _FAILURES as error:
            raise _translated(error) from error
        for node in self._client.get_primaries():
            cursor: Any = 0
            while True:
                try:
                    [page] = await self._ask(node, [("SCAN", cursor, "MATCH", pattern, "COUNT", MOST_KEYS)])
                    if isinstance(page, Exception):
                        raise page
                except _FAILURES as error:
                    failure = _translated(error)
                    failure.__cause__ = error
                    break
                cursor, keys = page
                yield keys
                if int(cursor) == 0:
                    break
        if failure is not None:
            raise failure

    async def server(self, key: bytes) -> str:
        """See `Transport.server`."""
        try:
            return (await self._owner(key)).name
        except _FAILURES as error:
            raise _translated(error) from error

    async def open_feed(self, server: str) -> Feed:
        """See `Transport.open_feed`."""
        node = self._client.get_node(node_name=server)
        if node is None:
            msg = f"{server} is no node of the cluster any more"
            raise BackendUnavailable(msg)
        try:
            return await _open_feed(partial(node.connection_class, **node.connection_kwargs))
        except AcacheError:
            self._suspects.add(server)
            raise

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._under_way.closed = True
        for lines in self._tellers.values():
            await lines.aclose()
        await self._under_way.end()
        if self._owned:
            await self._client.aclose()

    async def _delivered(self, command: Command) -> Any:
        """Return the reply of the node that answers for the key, following it where it goes."""
        key = _key(command)
        node, asking = await self._owner(key), False
        for hop in count(1):
            try:
                if not asking:
                    return await self._say(node, command)
                # The permission counts for the next command on the same connection only.
                _, reply = await self._ask(node, [("ASKING",), command])
                if not isinstance(reply, Exception):
                    return reply
                raise reply
            except exceptions.AskError as elsewhere:  # before MovedError, which is its child
                if hop == _HOPS:
                    raise
                if isinstance(elsewhere, exceptions.MovedError):
                    self._suspects.add(node.name)
                    await self._read_map()
                node, asking = await self._at(elsewhere), not isinstance(elsewhere, exceptions.MovedError)
            except exceptions.TryAgainError:
                if hop == _HOPS:
                    raise
                await asyncio.sleep(_WAIT_FOR_KEYS)
            except (exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ClusterDownError, OSError):
                self._suspects.add(node.name)
                raise
        raise AssertionError  # for the type checker: count() has no end

    async def _ask(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        """Return the replies and error replies of one node to one write."""
        try:
            replies = await self._say_all(node, commands)
        except _FAILURES:
            self._suspects.add(node.name)
            raise
        if any(isinstance(reply, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)) for reply in replies):
            self._suspects.add(node.name)
        return replies

    async def _say(self, node: ClusterNode, command: Command) -> Any:
        with self._under_way:
            async with self._connection(node):
                return await heeding(node.execute_command(*command))

    async def _say_all(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        batch = [PipelineCommand(index, *command) for index, command in enumerate(commands)]
        with self._under_way:
            async with self._connection(node):
                await heeding(node.execute_pipeline(batch))
        return [command.result for command in batch]

    def _connection(self, node: ClusterNode) -> asyncio.Semaphore:
        free = self._free.get(node.name)
        if free is None:
            free = self._free[node.name] = asyncio.Semaphore(node.max_connections)
        return free

    async def _owner(self, key: Any) -> ClusterNode:
        with self._under_way:
            return await self._owner_of(key)

    async def _owner_of(self, key: Any) -> ClusterNode:
        await heeding(self._client.initialize())
        node = self._client.get_node_from_key(key)
        if node is not None and node.name in self._suspects:
            await self._read_map()
            node = self._client.get_node_from_key(key)
        if node is None:  # pragma: no cover - only for a replica, says the package
            msg = "no node owns the slot of this key"
            raise exceptions.SlotNotCoveredError(msg)
        return node

    async def _at(self, elsewhere: exceptions.AskError) -> ClusterNode:
        """Return the node that a redirection names."""
        node = self._client.get_node(host=elsewhere.host, port=elsewhere.port)
        if node is None:
            await self._read_map()
            node = self._client.get_node(host=elsewhere.host, port=elsewhere.port)
        if node is None:
            raise elsewhere
        return node

    async def _read_map(self) -> None:
        """Ask a node which slots are where; without an answer the old map stays."""
        self._suspects.clear()
        try:
            await heeding(self._client.nodes_manager.initialize())
        except _FAILURES:
            return
        self._tracks.moved([node.name for node in self._client.get_primaries()])


class SharedClusterTransport(ClusterTransport):
    """A cluster, over few connections to each node that everybody shares."""

    def __init__(self, client: aioredis.RedisCluster, *, place: str = "cluster", owned: bool = False) -> None:
        super().__init__(client, place=place, owned=owned)
        self._lines: Final[dict[str, Lines]] = {}

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        self._under_way.closed = True
        for lines in self._lines.values():
            await lines.aclose()
        await super().aclose()

    def _teller(self, node: ClusterNode) -> Lines:
        return super()._teller(node) if _is_resp2(node) else self._lines_to(node)

    async def _say(self, node: ClusterNode, command: Command) -> Any:
        return await self._lines_to(node).call(pack(command), again=command[0] in _READS)

    async def _say_all(self, node: ClusterNode, commands: Sequence[Command]) -> list[Any]:
        return await self._lines_to(node).call_many([pack(command) for command in commands])

    def _lines_to(self, node: ClusterNode) -> Lines:
        lines = self._lines.get(node.name)
        if lines is None:
            self._under_way.check()
            make = partial(node.connection_class, **node.connection_kwargs)
            lines = self._lines[node.name] = Lines(partial(_open_line, make, node.name, self._tracks.heard))
        return lines


class PackageFeed:
    """A connection of the package, with its parser."""

    def __init__(self, connection: Any) -> None:
        self._connection: Final = connection

    async def send(self, *command: Argument) -> None:
        """See `Feed.send`."""
        if not self._connection.is_connected:  # the package would connect anew, to a server that knows of nothing
            msg = "cannot reach Redis: the connection for messages was lost"
            raise BackendUnavailable(msg)
        try:
            await heeding(self._connection.send_command(*command, check_health=False))
        except AttributeError as error:  # it was lost between this step and the package's
            msg = "cannot reach Redis: the connection for messages was lost"
            raise BackendUnavailable(msg) from error
        except _FAILURES as error:
            raise _translated(error) from error

    async def receive(self, seconds: float) -> Any:
        """See `Feed.receive`."""
        try:
            reading = self._connection.read_response(timeout=seconds, disconnect_on_error=False, push_request=True)
            return await heeding(reading)
        except _FAILURES as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """See `Feed.aclose`."""
        await self._connection.disconnect(nowait=True)


async def _open_feed(make: Callable[[], Any]) -> Feed:
    connection = make()
    try:
        await heeding(connection.connect())
    except BaseException as error:  # as in `_open_line`
        await connection.disconnect(nowait=True)
        if isinstance(error, _FAILURES):
            raise _translated(error) from error
        if isinstance(error, RuntimeError):  # uvloop's word for writing to what the other side has closed
            msg = f"cannot reach Redis: {error}"
            raise BackendUnavailable(msg) from error
        raise
    return PackageFeed(connection)


async def _open_line(
    make: Callable[[], Any], place: str, on_push: Callable[[Any], object], on_long: Callable[[Line], object]
) -> Line:
    """Let the package connect and log in, and take the connection over."""
    connection = make()
    try:
        await heeding(connection.connect())
    except BaseException as error:  # cancelled, too: not every version of the package closes what it had opened
        await connection.disconnect(nowait=True)
        if isinstance(error, RuntimeError):  # uvloop's word for writing to what the other side has closed
            raise exceptions.ConnectionError(str(error)) from error
        raise
    writer = connection._writer  # noqa: SLF001 - the package has no other way to give a connection away
    transport = getattr(writer, "transport", None)
    if transport is None:
        await connection.disconnect(nowait=True)
        msg = f"{type(connection).__name__} is no connection of sockets: build the backend with multiplex=False"
        raise ConfigurationError(msg)
    connection._reader = connection._writer = None  # noqa: SLF001 - or its end would be the end of the transport
    line = Line(
        make_reader(BaseParser.parse_error),
        timeout=connection.socket_timeout or _PATIENCE,
        place=place,
        on_push=on_push,
        on_long=on_long,
        keep=writer,
    )
    ended = transport.is_closing()  # by the other side, before there was a protocol to tell
    if not ended:
        transport.pause_reading()  # uvloop asks only when it begins to read whether the protocol has its own buffer
    transport.set_protocol(line)
    line.connection_made(transport)
    if ended:
        line.close()
    else:
        transport.resume_reading()
    return line


async def _tracked(checking: Awaitable[None]) -> None:
    try:
        await checking
    except RefusedByServer as refusal:
        error = refusal.__cause__
        if isinstance(error, exceptions.ConnectionError):  # a server that is loading its data, say
            raise _translated(error) from error
        msg = f"Redis refused CLIENT TRACKING: {error}"
        raise BackendRefused(msg) from error
    except AcacheError:
        raise
    except _FAILURES as error:
        if type(error) is exceptions.ResponseError:  # of a server or a proxy that has no RESP3
            msg = f"Redis refused a connection for messages: {error}"
            raise BackendRefused(msg) from error
        raise _translated(error) from error


def _to_server(_: Address, options: dict[str, Any], multiplex: bool) -> Transport:  # noqa: FBT001 - as all three
    pool = aioredis.ConnectionPool(**options)
    pool.make_connection()  # type: ignore[no-untyped-call]  # connects nothing, but reads the options
    return (SharedTransport if multiplex else PoolTransport)(aioredis.Redis.from_pool(pool), owned=True)


def _to_master(address: Address, options: dict[str, Any], multiplex: bool) -> Transport:  # noqa: FBT001
    secure = _for_many_servers(options)
    how = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    how |= {**address.sentinel_options, "retry": options["retry"], **({"ssl": True} if secure else {})}
    sentinels = Sentinel(list(address.hosts), sentinel_kwargs=how)  # type: ignore[no-untyped-call]
    client: aioredis.Redis = sentinels.master_for(address.service, ssl=secure, **options)
    client.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # reads the options, as above
    place = f"{address.service} of {_places(address)}"
    return (SharedTransport if multiplex else PoolTransport)(client, place=place, owned=True)


def _to_cluster(address: Address, options: dict[str, Any], multiplex: bool) -> Transport:  # noqa: FBT001
    secure = _for_many_servers(options)
    nodes = [ClusterNode(host, port) for host, port in address.hosts]
    client = aioredis.RedisCluster(startup_nodes=nodes, ssl=secure, require_full_coverage=False, **options)
    node = next(iter(client.nodes_manager.startup_nodes.values()))
    node.connection_class(**node.connection_kwargs)  # reads the options, as above
    place = f"cluster {_places(address)}"
    return (SharedClusterTransport if multiplex else ClusterTransport)(client, place=place, owned=True)


_OPENED: Final = {"server": _to_server, "sentinel": _to_master, "cluster": _to_cluster}


def _for_many_servers(options: dict[str, Any]) -> bool:
    """Take out what is of one server only; tell whether connections are to be secure."""
    del options["host"], options["port"]
    return options.pop("connection_class", None) is not None


def _places(address: Address) -> str:
    return ",".join(f"{host}:{port}" for host, port in address.hosts)


def _is_resp2(source: ClusterNode | aioredis.ConnectionPool) -> bool:
    """Tell whether connections speak the protocol in which there are no messages between the replies."""
    return source.connection_kwargs.get("protocol") in (2, "2")


def _parts(items: list[T]) -> list[list[T]]:
    return [items[start : start + MOST_KEYS] for start in range(0, len(items), MOST_KEYS)]


def _key(command: Command) -> Argument:
    return command[3 if command[0] in ("EVALSHA", "EVAL") else 1]


def _in_place(reply: Any) -> Any:
    """Return a reply as it is, and an error as acache's own."""
    if not isinstance(reply, Exception) or isinstance(reply, AcacheError):
        return reply
    error = _translated(reply)
    error.__cause__ = reply
    return error


_REFUSED: Final = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
)
_SAID_NO: Final = re.compile(
    r"\b(NOAUTH|WRONGPASS|NOPERM|READONLY|OOM|MISCONF|DENIED|unauthenticated)\b"
    r"|executing the script can't|read.only replica|> 'maxmemory'"  # from inside a script, by older servers
)


def _translated(error: Exception) -> AcacheError:
    """Find the acache error that says what to do."""
    cause: BaseException = error
    while type(cause) is exceptions.RedisClusterException and cause.__cause__ is not None:
        cause = cause.__cause__  # the package's "cannot be connected", and why
    text = str(cause)
    if isinstance(cause, (exceptions.TimeoutError, TimeoutError)):
        return BackendTimeout(f"Redis did not answer in time: {text}")
    if isinstance(cause, MasterNotFoundError):
        # Its text holds what each of the Sentinels answered, in the package's words.
        if "AuthenticationError" in text or "NoPermissionError" in text:
            return BackendRefused("the Sentinels refused: check sentinel_username and sentinel_password")
        return BackendUnavailable("no Sentinel that answers knows a master of this name")
    if isinstance(cause, _REFUSED):
        return BackendRefused(f"Redis refused: {_advised(text, cause)}")
    if isinstance(cause, exceptions.NoScriptError):
        return UnknownScript(f"Redis: {text}")
    if isinstance(cause, (exceptions.ConnectionError, OSError, EOFError)):
        return BackendUnavailable(f"cannot reach Redis: {text}")
    if isinstance(cause, exceptions.ResponseError):
        if "WRONGTYPE" in text:
            return WrongType(f"Redis: {text}")
        if "not an integer" in text or "would overflow" in text:
            return DecodeError(f"Redis: {text}")
        if _SAID_NO.search(text):
            return BackendRefused(f"Redis refused: {_advised(text, cause)}")
    return BackendUnavailable(f"Redis failed: {text}")


def _advised(text: str, cause: BaseException) -> str:
    if isinstance(cause, exceptions.OutOfMemoryError) or "OOM" in text or "'maxmemory'" in text:
        return f"{text} (raise maxmemory, or set a maxmemory-policy that evicts)"
    return text
