"""Changes told by the server: ``CLIENT TRACKING`` in broadcast mode, on one connection to each master.

Where commands share a connection, that one tells: NOLOOP keeps its own plain writes from coming back, and who loses the
connection loses both.  Writes inside scripts come back all the same, and so do those that took another connection.

A value that was read over another connection than the one that tells needs no care of its own.  Its reader opened a
mark before he asked.  A change that the read did not see was made after it, so the message is still to come: it comes
while the mark is open, and breaks it, or later, and finds the copy.  A message that came before the mark was opened is
of a change that the read has seen.

https://redis.io/docs/latest/develop/reference/client-side-caching/
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final
from weakref import ReferenceType, ref

from ...errors import BackendError, BackendUnavailable
from ...events import logger
from ..base import Listener
from .lines import Line, Lines
from .resp import pack

__all__ = ["Audience", "RefusedByServer", "Tracks"]

_PING: Final = pack(("PING",))
_SLOTS: Final = pack(("CLUSTER", "SLOTS"))
_OFF: Final = pack(("CLIENT", "TRACKING", "OFF"))
_ROUNDS: Final = 4
"""How often the map of a cluster is read anew until its masters agree on it."""


class RefusedByServer(Exception):
    """The server's answer to ``CLIENT TRACKING``, as the cause."""


class Audience:
    """Those whom one transport after the other tells: a listener, for as long as it lives."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Final[ReferenceType[Listener]] = ref(listener)

    def heard(self, message: Sequence[Any]) -> None:
        """Pass on a message of the server; those of other kinds are nobody's."""
        listener = self._listener()
        if listener is None or message[0] != b"invalidate":
            return
        try:
            listener.changed(None if message[1] is None else _texts(message[1]))
        except Exception:  # noqa: BLE001 - it must not take the connection along
            logger.exception("a listener raised; the message was %r", message)

    def lost(self) -> None:
        """Tell that changes may go untold."""
        if (listener := self._listener()) is not None:
            listener.lost()


class Tracks:
    """The tracking connections of one transport.

    Args:
        masters: returns the lines to each server that holds entries, by name; asks the cluster anew if told to.
        in_cluster: whether the servers know of others.
    """

    def __init__(self, masters: Callable[[bool], Awaitable[Mapping[str, Lines]]], *, in_cluster: bool = False) -> None:
        self._masters: Final = masters
        self._in_cluster: Final = in_cluster
        self._audience: Audience | None = None
        self._tellers: dict[str, _Teller] = {}
        self._map: dict[str, Any] | None = None
        """What each master of a cluster said of who owns which slots, when all of them were asked last."""
        self._complete = False
        """Whether every master tells."""

    def heard(self, message: Sequence[Any]) -> None:
        """Take a message that came over one of the connections."""
        if self._audience is not None:
            self._audience.heard(message)

    def lost(self) -> None:
        """Take note that a master does not tell, or may not."""
        if self._complete:
            self._complete = False
            if self._audience is not None:
                self._audience.lost()

    def moved(self, masters: Collection[str]) -> None:
        """Take note that the map was read for other reasons, and names these masters."""
        if self._tellers.keys() != set(masters):
            self.lost()

    async def check(self, audience: Audience, prefixes: Collection[bytes]) -> None:
        """See `Tracking.check`.

        A master that nobody here knows of may have taken over from one that goes on answering, so in a cluster the
        question is who owns what: whoever loses a slot is the first to know.  While an answer is new, the map is read
        again, and everybody asked again.

        Raises:
            RefusedByServer: the server does not do it for this user, or not at all.
        """
        self._audience = audience
        wanted = _cover(prefixes)
        if not self._in_cluster:
            await self._ask(await self._masters(False), wanted, _PING)
            self._complete = True
            return
        again = self._map is None
        for _ in range(_ROUNDS):
            before, self._map = self._map, None
            replies = await self._ask(await self._masters(again), wanted, _SLOTS)
            said = {name: _owners(reply) for name, reply in replies.items()}
            if said == before:
                self._map, self._complete = said, True
                return
            self.lost()
            self._map, again = said, True
        self._map = None
        msg = "the masters of the cluster do not agree on who owns which slots"
        raise BackendUnavailable(msg)

    async def _ask(self, masters: Mapping[str, Lines], prefixes: frozenset[bytes], question: bytes) -> dict[str, Any]:
        """Return what each server says to a question over the connection that tells."""
        if set(self._tellers) != set(masters):
            self.lost()
            for name in self._tellers.keys() - masters.keys():
                self._tellers.pop(name).leave()
        tellers = {
            name: self._tellers.get(name) or self._tellers.setdefault(name, _Teller(lines, self.lost))
            for name, lines in masters.items()
        }
        asked = [teller.ask(question, prefixes) for teller in tellers.values()]
        replies = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        return dict(zip(tellers, replies, strict=True))


class _Teller:
    """One server, and the connection over which it tells."""

    def __init__(self, lines: Lines, lost: Callable[[], object]) -> None:
        self._lines: Final = lines
        self._lost: Final = lost
        self._line: Line | None = None
        self._prefixes: frozenset[bytes] = frozenset()
        self._arming: Final = asyncio.Lock()

    async def ask(self, question: bytes, prefixes: frozenset[bytes]) -> Any:
        """Return the reply to a question, an error among them, over a connection that tells of ``prefixes``."""
        async with self._arming:
            line = self._line
            if line is not None and line.closed:
                self._ended(line)
                line = None
            if line is None:
                line = await self._lines.first()
                await self._arm(line, prefixes, new=True)
            elif _cover(prefixes | self._prefixes) != self._prefixes:
                await self._arm(line, prefixes, new=False)
        try:
            return await line.send(question, again=False)
        except BackendError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it says, it says it after all that it had to tell
            return error

    async def _arm(self, line: Line, prefixes: frozenset[bytes], *, new: bool) -> None:
        """Have a connection tell of these prefixes; if it is not ``new``, beside those of which it tells already."""
        held = frozenset() if new else self._prefixes
        wanted = _cover(prefixes | held)
        replies = []
        if new or not held <= wanted:
            # Those of one connection must not overlap.  And somebody who was cancelled here may have left some.
            held = frozenset()
            self._line = None
            self._lost()
            replies.append(line.send(_OFF, again=False))
        words = [word for prefix in sorted(wanted - held) for word in (b"PREFIX", prefix)]
        command = pack(("CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP", *words))
        replies.append(line.send(command, again=False))
        try:
            await asyncio.wait(replies)
            for refusal in filter(None, [reply.exception() for reply in replies]):
                raise refusal  # noqa: TRY301 - as whatever else ends it
        except BaseException as error:
            for reply in replies:
                reply.cancel()
            self._line = None  # of what it tells is not known
            self._lost()
            if isinstance(error, BackendError) or not isinstance(error, Exception):
                raise
            raise RefusedByServer from error
        self._prefixes = wanted
        if self._line is not line:
            self._line = line
            line.gone.add_done_callback(partial(self._gone, line))

    def leave(self) -> None:
        """Tell nobody any more."""
        self._line = None

    def _gone(self, line: Line, _: object) -> None:
        if self._line is line:
            self._ended(line)

    def _ended(self, line: Line) -> None:
        assert self._line is line  # noqa: S101 - the one that told
        self._line = None
        self._lost()


def _cover(prefixes: Collection[bytes]) -> frozenset[bytes]:
    """Leave out what begins with another one."""
    kept: list[bytes] = []
    for prefix in sorted(prefixes):  # what begins with one comes right after it
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return frozenset(kept)


def _owners(reply: Any) -> Any:
    """Return who owns which slots, by the answer to ``CLUSTER SLOTS``."""
    if not isinstance(reply, list):
        return repr(reply)
    return sorted((start, end, *master[:3]) for start, end, master, *_ in reply)


def _texts(keys: Sequence[bytes]) -> list[str]:
    """Return keys as text; those that are none are nobody's."""
    try:
        return [key.decode() for key in keys]
    except UnicodeDecodeError:
        return [key.decode() for key in keys if _is_text(key)]


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
