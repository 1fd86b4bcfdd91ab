"""`RedisBackend`: what each operation says to Redis or Valkey, and what the replies mean.

Commands sent: GET, SET (PX, NX), UNLINK, MGET, EXISTS, PEXPIRE, PERSIST, PTTL, SCAN, and EVALSHA/EVAL of scripts on one
key; for bodies in chunks HSET, HMGET, GETRANGE and COPY; for long values WATCH, STRLEN, GETRANGE, MULTI, EXEC and
UNWATCH, without whose permission they come in one piece; PUBLISH, and on a connection of its own SUBSCRIBE.  A value is
stored under its key as it is, so other programs can read it.
"""

from __future__ import annotations

import asyncio
import copy
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar, cast

from ...errors import (
    AcacheError,
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    DecodeError,
    KeyMissing,
    ValueTooLarge,
)
from ..base import KeyLimits, Listener, Version, batch_error, check_key, check_value
from . import stream
from .address import parse
from .body import is_unfinished
from .client import Client, carry, connect, is_movable
from .notify import Subscriptions
from .scripts import INCREMENT, SET_IF, SWAP, run
from .tracking import Audience
from .transport import Argument, Command, Transport, WrongType

__all__ = ["RedisBackend"]

_B = TypeVar("_B", bound="RedisBackend")

_LONGEST_MS: Final = 10**15
_FEWEST_INT, _MOST_INT = -(2**63), 2**63 - 1


class RedisBackend:
    """Redis or Valkey: a server, a master that Sentinels name, or a cluster.

    Args:
        client: an asyncio client that returns bytes; its owner closes it.
        multiplex: whether all callers share few connections, made as the client's are; else each command takes one of
            the client's own, and the backend serves the event loop it was first used in.

    Raises:
        ConfigurationError: a synchronous client, or one with ``decode_responses=True``.
    """

    key_limits: Final = KeyLimits(max_bytes=4096, printable=False)
    value_limit: Final = 512 * 1024 * 1024
    ttl_granularity: Final = 0.001

    def __init__(self, client: Client, *, multiplex: bool = True) -> None:
        build = partial(carry, client, multiplex=multiplex)
        self._begin(build, movable=is_movable(client, multiplex=multiplex))

    def _begin(self, build: Callable[[], Transport], *, movable: bool) -> None:
        self._current: Transport | None = build()
        self._build = build
        self._movable = movable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: Subscriptions | None = None
        self._origin: RedisBackend | None = None
        """What this one was copied from, to be closed with it."""

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        multiplex: bool = True,
        max_connections: int = 50,
        connect_timeout: float = 1.0,
        timeout: float = 1.0,
    ) -> Self:
        """Build a backend with connections of its own; none is made before the first operation.

        Args:
            url: ``redis://[user:password@]host:port/db``, ``unix:///path?db=0``,
                ``redis+sentinel://[user:password@]host:port,host:port/service?db=0`` or
                ``redis+cluster://[user:password@]host:port,host:port``; ``rediss``, ``valkey`` and ``valkeys`` in the
                place of ``redis``, those with an ``s`` for TLS.  Options of the ``redis`` package as a query;
                ``sentinel_username`` and ``sentinel_password`` for the Sentinels.
            multiplex: whether all callers share few connections to each server; else each command takes one of a pool.
            max_connections: of the pool to each server, where connections are not shared; callers beyond this number
                wait for one.
            connect_timeout: seconds.
            timeout: seconds for each answer; over shared connections, without a byte of one.

        Raises:
            ConfigurationError: a URL or option that cannot work.
        """
        scheme = url.partition("://")[0]
        try:
            address = parse(url)

            def build() -> Transport:
                return connect(
                    address,
                    multiplex=multiplex,
                    max_connections=max_connections,
                    connect_timeout=connect_timeout,
                    timeout=timeout,
                )

            backend = cls.__new__(cls)
            backend._begin(build, movable=True)  # noqa: SLF001 - its own class
        except (ValueError, TypeError, AttributeError) as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            reason = f"unknown option {unknown[1]!r}" if unknown else error
            msg = f"cannot open {scheme}://...: {reason}"  # not the URL itself: it may hold a password
            raise ConfigurationError(msg) from None
        return backend

    def __repr__(self) -> str:
        return f"<RedisBackend {self._current.place}>" if self._current is not None else "<RedisBackend closed>"

    # Backend --------------------------------------------------------------------------------------------------------

    async def get(self, key: str, /) -> bytes | None:
        """See `Backend.get`."""
        wire = check_key(key, self.key_limits)
        try:
            return await self._transport().get(wire)
        except WrongType:
            return (await self._whole(wire))[0]

    async def set(self, key: str, data: bytes, /, *, ttl: float | None) -> None:
        """See `Backend.set`."""
        wire, data = check_key(key, self.key_limits), self._checked(data)
        await self._transport().set(wire, data, None if ttl is None else _ms(ttl))

    async def delete(self, key: str, /) -> bool:
        """See `Backend.delete`."""
        return bool(await self._do("UNLINK", check_key(key, self.key_limits)))

    async def aclose(self) -> None:
        """Close the connections, if they were opened here."""
        transport, self._current = self._current, None
        subscriptions, self._subscriptions = self._subscriptions, None
        try:
            if self._loop is asyncio.get_running_loop():
                if subscriptions is not None:
                    await subscriptions.aclose()
                if transport is not None:
                    await transport.aclose()
        finally:
            if self._origin is not None:
                await self._origin.aclose()

    # Batch ----------------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Sequence[str], /) -> dict[str, bytes]:
        """See `Batch.get_many`; MGET, and EXISTS of what is missing: a body in chunks has no answer to MGET."""
        names = self._names(keys)
        found: dict[str, bytes] = {}
        failed: dict[str, BackendError] = {}
        missing: list[bytes] = []
        for group, reply in await self._of_groups("MGET", list(names)):
            if isinstance(reply, AcacheError):
                failed |= {names[wire]: _failure(reply) for wire in group}
                continue
            if None in reply:
                missing += [wire for wire, data in zip(group, reply, strict=True) if data is None]
            found |= {names[wire]: data for wire, data in zip(group, reply, strict=True) if data is not None}
        for group, reply in await self._of_groups("EXISTS", missing):
            if isinstance(reply, AcacheError):
                failed |= {names[wire]: _failure(reply) for wire in group}
            elif reply:
                await self._read_bodies({wire: names[wire] for wire in group}, found, failed)
        if failed:
            raise batch_error(failed, found=found)
        return found

    async def _read_bodies(
        self, names: Mapping[bytes, str], found: dict[str, bytes], failed: dict[str, BackendError]
    ) -> None:
        for wire, key in names.items():
            try:
                data, _ = await self._whole(wire)
            except DecodeError:
                continue  # a list, say: nothing of ours
            except BackendError as error:
                failed[key] = error
            else:
                if data is not None:
                    found[key] = data

    async def set_many(self, items: Mapping[str, bytes], /, *, ttl: float | None) -> None:
        """See `Batch.set_many`; pipelined SETs, a thousand in one write."""
        expiry = _px(ttl)
        commands: dict[str, Command] = {}
        failed: dict[str, BackendError] = {}
        refused: dict[str, BackendError] = {}
        names = {key: check_key(key, self.key_limits) for key in items}
        for key, data in items.items():
            try:
                commands[key] = ("SET", names[key], self._checked(data), *expiry)
            except ValueTooLarge as error:
                refused[key] = error
        replies = await self._transport().execute_many(list(commands.values()))
        for key, reply in zip(commands, replies, strict=True):
            if isinstance(reply, AcacheError):
                failed[key] = _failure(reply)
        failed |= refused  # last: an outage is the graver news
        if failed:
            raise batch_error(failed)

    async def delete_many(self, keys: Sequence[str], /) -> int:
        """See `Batch.delete_many`; UNLINK of as many as one command may name."""
        names = self._names(keys)
        removed, failed = 0, dict[str, BackendError]()
        for group, reply in await self._of_groups("UNLINK", list(names)):
            if isinstance(reply, AcacheError):
                failed |= {names[wire]: _failure(reply) for wire in group}
            else:
                removed += reply
        if failed:
            raise batch_error(failed)
        return removed

    # Add, Counter, Touch --------------------------------------------------------------------------------------------

    async def add(self, key: str, data: bytes, /, *, ttl: float | None) -> bool:
        """See `Add.add`."""
        return bool(await self._do("SET", check_key(key, self.key_limits), self._checked(data), "NX", *_px(ttl)))

    async def incr(self, key: str, delta: int, /, *, ttl: float | None) -> int:
        """See `Counter.incr`; one script."""
        wire = check_key(key, self.key_limits)
        if not _FEWEST_INT <= delta <= _MOST_INT:
            msg = f"cannot add {delta} to {key!r}: counters have 64 bits"
            raise DecodeError(msg)
        return int(await run(self._transport(), INCREMENT, [wire], delta, _ms_or_nothing(ttl)))

    async def touch(self, key: str, /, *, ttl: float | None) -> bool:
        """See `Touch.touch`."""
        wire = check_key(key, self.key_limits)
        if ttl is not None:
            return bool(await self._do("PEXPIRE", wire, _ms(ttl)))
        return bool(await self._do("PERSIST", wire) or await self._do("EXISTS", wire))

    async def ttl(self, key: str, /) -> float | None:
        """See `Touch.ttl`."""
        left = await self._do("PTTL", check_key(key, self.key_limits))
        if left == -2:  # noqa: PLR2004 - Redis's word for "no such key"
            msg = f"no entry under {key!r}"
            raise KeyMissing(msg)
        return None if left == -1 else left / 1000

    # Clear, Scan ----------------------------------------------------------------------------------------------------

    async def clear(self, prefix: str, /) -> None:
        """See `Clear.clear`; SCAN and UNLINK, a thousand at a time."""
        failure: AcacheError | None = None
        async for keys in self._transport().scan(_glob(prefix)):
            for _, reply in await self._of_groups("UNLINK", keys):
                if isinstance(reply, AcacheError):
                    failure = reply
        if failure is not None:
            raise failure

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """See `Scan.scan`; keys that are not UTF-8 are somebody else's."""
        async for keys in self._transport().scan(_glob(prefix)):
            for key in keys:
                with suppress(UnicodeDecodeError):
                    if not is_unfinished(key):
                        yield key.decode()

    # Cas ------------------------------------------------------------------------------------------------------------

    async def get_versioned(self, key: str, /) -> tuple[bytes | None, Version]:
        """See `Cas.get_versioned`; the version is the first 48 bytes, or which body in chunks it was."""
        wire = check_key(key, self.key_limits)
        try:
            data = await self._transport().get(wire)
        except WrongType:
            return await self._whole(wire)
        return data, stream.version_of(data)

    async def set_if(self, key: str, data: bytes, version: Version, /, *, ttl: float | None) -> bool:
        """See `Cas.set_if`; SET NX where nothing was seen, else one script."""
        if version is None:
            return await self.add(key, data, ttl=ttl)
        wire = check_key(key, self.key_limits)
        return bool(
            await run(
                self._transport(), SET_IF, [wire], self._checked(data), _ms_or_nothing(ttl), cast("bytes", version)
            )
        )

    async def swap(self, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        """See `Cas.swap`; one script."""
        wire = check_key(key, self.key_limits)
        return cast(
            "bytes | None", await run(self._transport(), SWAP, [wire], self._checked(data), _ms_or_nothing(ttl))
        )

    # Stream ---------------------------------------------------------------------------------------------------------

    def open(self, key: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes] | None]:
        """See `Stream.open`; a long value that `set` wrote is copied by the server, and the copy read in pieces."""
        return stream.opened(self._transport, check_key(key, self.key_limits))

    async def store(self, key: str, chunks: AsyncIterator[bytes] | Iterable[bytes], /, *, ttl: float | None) -> None:
        """See `Stream.store`; written beside the entry, which the finished body then replaces in one step."""
        await stream.write(self._transport(), check_key(key, self.key_limits), chunks, _ms_or_nothing(ttl))

    # Notify ---------------------------------------------------------------------------------------------------------

    async def publish(self, topic: str, message: bytes, /) -> None:
        """See `Notify.publish`."""
        await self._do("PUBLISH", check_key(topic, self.key_limits), self._checked(message))

    def subscribe(self, topic: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `Notify.subscribe`; everybody in this event loop shares one connection to a server."""
        name, transport = check_key(topic, self.key_limits), self._transport()
        if self._subscriptions is None:
            self._subscriptions = Subscriptions(transport.server, transport.open_feed)
        return self._subscriptions.subscribe(name)

    # Track ----------------------------------------------------------------------------------------------------------

    def track(self, listener: Listener, /) -> RedisTracking[Self]:
        """See `Track.track`; ``CLIENT TRACKING`` in broadcast mode."""
        return RedisTracking(self._copy(), listener)

    def _copy(self) -> Self:
        """Return a backend like this one, with connections of its own.

        A server cannot tell who of those on one connection wrote, so whoever is not to be told of his own writes needs
        one that nobody else uses.
        """
        twin = copy.copy(self)
        twin._begin(self._build, movable=self._movable)  # noqa: SLF001 - its own class
        twin._origin = self  # noqa: SLF001
        return twin

    # The transport --------------------------------------------------------------------------------------------------

    def _transport(self) -> Transport:
        """Return the transport for the running loop; connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and self._current is not None:
            return self._current
        if self._loop is not None and self._loop is not loop:
            if not self._movable:
                msg = (
                    "this RedisBackend's client was used in another event loop before, and its connections cannot move:"
                    " inject a new client, or let RedisBackend.from_url() build one for each loop"
                )
                raise BackendUnavailable(msg)
            self._current = self._subscriptions = None
        if self._current is None:
            self._current = self._build()
        self._loop = loop
        return self._current

    async def _do(self, *command: Argument) -> Any:
        return await self._transport().execute(*command)

    async def _of_groups(self, name: str, keys: Sequence[bytes]) -> list[tuple[list[bytes], Any]]:
        """Send a command that names many keys, as often as it takes; return the keys and reply of each."""
        if not keys:
            return []
        transport = self._transport()
        groups = transport.grouped(keys)
        return list(zip(groups, await transport.execute_many([(name, *group) for group in groups]), strict=True))

    async def _whole(self, wire: bytes) -> tuple[bytes | None, Version]:
        """Return what is under a key that holds no string, and its version."""
        return await stream.read(self._transport(), wire, self.value_limit)

    def _names(self, keys: Sequence[str]) -> dict[bytes, str]:
        limits, longest = self.key_limits, self.key_limits.max_bytes
        # Most keys are short ASCII: what takes no closer look takes no call, for there may be thousands.
        return {
            key.encode()
            if type(key) is str and 0 < len(key) <= longest and key.isascii()
            else check_key(key, limits): key
            for key in keys
        }

    def _checked(self, data: bytes) -> bytes:
        return check_value(data, self.value_limit, "Redis")


class RedisTracking(Generic[_B]):
    """See `Tracking`."""

    def __init__(self, backend: _B, listener: Listener) -> None:
        self.backend: Final = backend
        self._audience: Final = Audience(listener)

    async def check(self, prefixes: Sequence[str], /) -> None:
        """See `Tracking.check`."""
        transport = self.backend._transport()  # noqa: SLF001 - two halves of one
        await transport.track(self._audience, [prefix.encode() for prefix in prefixes])


def _failure(error: AcacheError) -> BackendError:
    if isinstance(error, BackendError):
        return error
    failure = BackendUnavailable(str(error))
    failure.__cause__ = error
    return failure


def _ms(ttl: float) -> int:
    ms = math.ceil(ttl * 1000)
    return ms if 0 < ms < _LONGEST_MS else max(1, min(ms, _LONGEST_MS))


def _ms_or_nothing(ttl: float | None) -> int | str:
    """Return the milliseconds as a script takes them."""
    return "" if ttl is None else _ms(ttl)


def _px(ttl: float | None) -> tuple[Argument, ...]:
    return () if ttl is None else ("PX", _ms(ttl))


def _glob(prefix: str) -> bytes:
    """Return the glob of what begins with ``prefix``, literally."""
    return ("".join([f"\\{char}" if char in "\\*?[]" else char for char in prefix]) + "*").encode()
