"""How commands travel: the narrow interface between what `RedisBackend` says and the connections that carry it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ...errors import DecodeError

if TYPE_CHECKING:
    from .tracking import Audience

__all__ = ["MOST_KEYS", "Argument", "Command", "Feed", "Transport", "UnknownScript", "WrongType"]

Argument: TypeAlias = str | bytes | int
Command: TypeAlias = tuple[Argument, ...]
"""A name and its arguments; the key, or keys of one slot, first.  Of a script: EVALSHA, digest, count, keys."""

MOST_KEYS = 1000
"""Keys in one command, and commands in one write."""


class WrongType(DecodeError):
    """The key holds something of another type than the command is for."""


class UnknownScript(DecodeError):
    """The server has not seen this script since it started."""


class Feed(Protocol):
    """A connection of its own, on which a server sends whatever was subscribed to."""

    async def send(self, *command: Argument) -> None:
        """Send a command; what answers it, and everything else, comes by `receive`."""
        ...

    async def receive(self, seconds: float) -> Any:
        """Return what the server sent next, or ``None`` when nothing came for so long.  May be cancelled."""
        ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...


class Transport(Protocol):
    """Carries commands to the server that holds their key, and replies back.

    Replies are as Redis gives them: bytes, integers, lists, ``None``; a status is truthy.  An error reply, and every
    failure on the way, is one of acache's errors with the client library's as its cause.  No write is sent twice, but
    for what a cluster has sent elsewhere without carrying it out.
    """

    @property
    def place(self) -> str:
        """Where it goes, for people; without passwords."""
        ...

    def execute(self, *command: Argument) -> Coroutine[Any, Any, Any]:
        """Return the reply to one command."""
        ...

    def get(self, key: bytes) -> Coroutine[Any, Any, bytes | None]:
        """Return the reply to GET: what `execute` does, for the command that most calls send."""
        ...

    def set(self, key: bytes, data: bytes, ms: int | None) -> Coroutine[Any, Any, Any]:
        """Return the reply to SET, with PX where it is to end after so many milliseconds."""
        ...

    async def execute_many(self, commands: Sequence[Command]) -> list[Any]:
        """Return the reply or the error of each, in their order, having tried them all; in bounded writes.

        What is bound for a server that cannot be reached, or no longer answers, fails without waiting for it again.
        """
        ...

    def grouped(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """Split keys into lists, each of which one command may name."""
        ...

    def beside(self, key: bytes, suffix: bytes) -> bytes:
        """Return a key that begins with ``key``, ends with ``suffix``, and may be named together with ``key``."""
        ...

    def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """Yield the keys that match a glob, page by page, from every server that owns some.

        Where a server fails, the others are listed before its error is raised.
        """
        ...

    async def server(self, key: bytes) -> str:
        """Return the name of the server that answers for a key: of one, the same for all keys."""
        ...

    async def open_feed(self, server: str) -> Feed:
        """Connect to the server of this name, and return the connection; whoever asked for it closes it."""
        ...

    async def track(self, audience: Audience, prefixes: Collection[bytes]) -> None:
        """Tell an audience of changes; see `Tracking.check`."""
        ...

    async def aclose(self) -> None:
        """Close the connections, if they were opened here; feeds stay open."""
        ...
