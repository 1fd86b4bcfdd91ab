"""RESP2 and RESP3, the protocol of Redis: commands to bytes, bytes to replies.

By ``hiredis`` where it is installed (pip install 'acache[redis]' brings it), else by what stands here, which does the
same more slowly.
https://redis.io/docs/latest/develop/reference/protocol-spec/
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Final, Protocol, TypeAlias, cast

try:
    import hiredis
except ImportError:  # on PyPy, say
    hiredis = None  # type: ignore[assignment]  # looked at where it is used

__all__ = [
    "INCOMPLETE",
    "Argument",
    "PureReader",
    "Push",
    "Reader",
    "make_reader",
    "pack",
    "pack_get",
    "pack_set",
    "pure_pack",
]

Argument: TypeAlias = str | bytes | int
MakeError: TypeAlias = Callable[[str], Exception]

INCOMPLETE: Final[Any] = object()
"""What `Reader.gets` returns while the next reply is not all there."""


class Reader(Protocol):
    """Takes bytes as they come, gives replies: bytes, int, float, bool, list, dict, ``None``, `Push`, an exception."""

    def feed(self, data: bytes | memoryview, /) -> Any:
        """Take what was received."""
        ...

    def gets(self) -> Any:
        """Return the next reply, or `INCOMPLETE`; raises ``Exception`` for bytes that are not RESP."""
        ...


def pure_pack(command: tuple[Argument, ...], /) -> bytes:
    """Return a command as an array of bulk strings."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class PurePush(list[Any]):
    """A message that answers no command."""


class PureReader:
    """A `Reader` in Python."""

    def __init__(self, make_error: MakeError) -> None:
        self._make_error: Final = make_error
        self._buffer: Final = bytearray()
        self._replies: Final = self._parse()

    def feed(self, data: bytes | memoryview, /) -> None:
        """Take what was received."""
        self._buffer.extend(data)

    def gets(self) -> Any:
        """Return the next reply, or `INCOMPLETE`."""
        return next(self._replies)

    def _parse(self) -> Generator[Any]:
        while True:
            yield (yield from self._reply())

    def _reply(self) -> Generator[Any, None, Any]:
        line = yield from self._line()
        kind, rest = line[:1], line[1:]
        read = self._KINDS.get(kind)
        if read is None:
            msg = f"{line[:40]!r} is no reply"
            raise ValueError(msg)
        return (yield from read(self, rest))

    def _line(self) -> Generator[Any, None, bytes]:
        while (end := self._buffer.find(b"\r\n")) < 0:
            yield INCOMPLETE
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _exactly(self, length: int) -> Generator[Any, None, bytes]:
        while len(self._buffer) < length + 2:
            yield INCOMPLETE
        data = bytes(self._buffer[:length])
        del self._buffer[: length + 2]
        return data

    def _simple(self, rest: bytes) -> Generator[Any, None, bytes]:
        yield from ()
        return rest

    def _error(self, rest: bytes) -> Generator[Any, None, Exception]:
        yield from ()
        return self._make_error(rest.decode(errors="replace"))

    def _integer(self, rest: bytes) -> Generator[Any, None, int]:
        yield from ()
        return int(rest)

    def _double(self, rest: bytes) -> Generator[Any, None, float]:
        yield from ()
        return float(rest)

    def _boolean(self, rest: bytes) -> Generator[Any, None, bool]:
        yield from ()
        return rest == b"t"

    def _null(self, rest: bytes) -> Generator[Any, None, None]:  # noqa: ARG002 - as the others
        yield from ()

    def _bulk(self, rest: bytes) -> Generator[Any, None, bytes | None]:
        return None if rest == b"-1" else (yield from self._exactly(_length(rest)))

    def _verbatim(self, rest: bytes) -> Generator[Any, None, bytes]:
        return (yield from self._exactly(_length(rest)))[4:]

    def _array(self, rest: bytes) -> Generator[Any, None, list[Any] | None]:
        if rest == b"-1":
            return None
        items = []
        for _ in range(_length(rest)):
            items.append((yield from self._reply()))  # noqa: PERF401 - no comprehension can yield
        return items

    def _map(self, rest: bytes) -> Generator[Any, None, dict[Any, Any]]:
        items = {}
        for _ in range(_length(rest)):
            name = yield from self._reply()
            items[name] = yield from self._reply()
        return items

    def _push(self, rest: bytes) -> Generator[Any, None, PurePush]:
        return PurePush((yield from self._array(rest)) or ())

    _KINDS: Final[dict[bytes, Callable[[Any, bytes], Generator[Any, None, Any]]]] = {
        b"+": _simple, b"-": _error, b":": _integer, b"$": _bulk, b"*": _array, b"_": _null, b",": _double,
        b"#": _boolean, b"=": _verbatim, b"(": _integer, b"%": _map, b"~": _array, b">": _push,
    }  # fmt: skip


pack: Callable[[tuple[Argument, ...]], bytes] = pure_pack if hiredis is None else cast("Any", hiredis.pack_command)
"""Return a command as bytes."""
Push: type[Any] = PurePush if hiredis is None else hiredis.PushNotification
"""The type of a message that answers no command; a list."""


def pack_get(key: bytes) -> bytes:
    """Return GET as bytes, in half the time of `pack`."""
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


def pack_set(key: bytes, data: bytes, ms: int | None) -> bytes:
    """Return SET as bytes, in half the time of `pack`; with PX where there are milliseconds."""
    if ms is None:
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(data), data)
    end = b"%d" % ms
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (
        len(key), key, len(data), data, len(end), end,
    )  # fmt: skip


def _length(digits: bytes) -> int:
    length = int(digits)
    if length < 0:
        msg = f"{length} is no length"
        raise ValueError(msg)
    return length


def make_reader(make_error: MakeError) -> Reader:
    """Return a `Reader`; ``make_error`` makes an exception of the text of an error reply."""
    if hiredis is None:
        return PureReader(make_error)
    reader = hiredis.Reader(replyError=make_error, notEnoughData=INCOMPLETE, protocolError=ValueError)
    return cast("Reader", reader)  # it takes any buffer, and its stubs know bytes and str only
