"""What callers may pass: one clear error, before anything is done."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

from .backends.base import Backend, Cas, Notify, Track
from .clock import Clock
from .codecs import Codec
from .errors import ConfigurationError, InvalidKey, short
from .memory import Memory
from .policy import Policy

__all__ = [
    "Coherence",
    "check_coherence",
    "check_delta",
    "check_lease",
    "check_loader",
    "check_parts",
    "several",
    "tag_names",
]

Coherence: TypeAlias = Literal["auto", "tracking", "messages"]
"""How the near tier comes to know what others change."""

_LONGEST_TAG: Final = 1000
_PARTS: Final[dict[str, tuple[type, str]]] = {
    "memory": (Memory, "a Memory, a number of entries, or None"),
    "policy": (Policy, "a Policy, as in Policy(ttl=60)"),
    "codec": (Codec, "an object with name, encode and decode, such as Msgpack()"),
    "clock": (Clock, "an object with wall, monotonic and call_later, such as SystemClock()"),
}


def check_parts(**parts: Any) -> None:
    """Check what a cache is built of, by the names of its parameters."""
    for name, part in parts.items():
        kind, words = _PARTS[name]
        if part is not None and (isinstance(part, type) or not isinstance(part, kind)):
            msg = f"{name}={part!r}: pass {words}"
            raise ConfigurationError(msg)


def check_lease(policy: Policy, backend: Backend | None) -> None:
    """Check that the loads of many processes can be one, if the policy says so."""
    if not policy.lease or isinstance(backend, Cas):
        return
    if backend is None:
        msg = (
            "lease=True makes the loads of many processes one, and this cache shares nothing with any other:"
            " give it a backend, or leave lease out"
        )
    else:
        msg = (
            f"lease=True needs a backend that can compare and set, and {type(backend).__name__} has no Cas capability:"
            " leave lease out, or use another backend"
        )
    raise ConfigurationError(msg)


def check_coherence(coherence: Coherence | None, backend: Backend | None, memory: Memory | None) -> None:
    """Refuse what cannot be had."""
    if coherence in (None, "auto"):
        return
    whose = "without a backend" if backend is None else f"over a {type(backend).__name__}"
    if coherence == "messages":
        if not isinstance(backend, Notify):
            msg = f'coherence="messages": {whose} no message passes: leave it out, and time bounds near copies'
            raise ConfigurationError(msg)
        return
    if coherence != "tracking":
        msg = f'coherence={coherence!r}: pass "auto", "tracking", "messages" or None'
        raise ConfigurationError(msg)
    if memory is None:
        msg = 'coherence="tracking" without a near tier has nothing to keep coherent: leave it out, or pass memory='
        raise ConfigurationError(msg)
    if not isinstance(backend, Track):
        msg = f'coherence="tracking": {whose} nobody tells of changes: leave it out, and time bounds near copies'
        raise ConfigurationError(msg)


def check_loader(loader: object) -> None:
    """Check that it can be called; a coroutine passed in its place is closed, so that nothing warns."""
    if callable(loader):
        return
    if asyncio.iscoroutine(loader):
        loader.close()
    msg = f"the loader {loader!r} cannot be called: pass the coroutine function itself (or a lambda), not its result"
    raise ConfigurationError(msg)


def check_delta(delta: object) -> None:
    """Check that it is a whole number, and no bool."""
    if not isinstance(delta, int) or isinstance(delta, bool):
        msg = f"delta={short(delta)}: counters count in whole numbers"
        raise ConfigurationError(msg)


def several(values: Iterable[str], name: str) -> Iterable[str]:
    """Check that they are several, not one str."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        msg = f"{name}={short(values)}: pass several, as in [{short(values)}]"
        raise InvalidKey(msg)
    return values


def tag_names(tags: Iterable[str]) -> tuple[str, ...]:
    """Read tags: non-empty text, each once."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        msg = f"tags={short(tags)}: pass several, as in [{short(tags)}]"
        raise ConfigurationError(msg)
    names = tuple(tags)
    for name in names:
        if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= _LONGEST_TAG or _broken(name):
            msg = f"tags={short(names)}: a tag is a non-empty str of Unicode text, of at most {_LONGEST_TAG} bytes"
            raise ConfigurationError(msg)
    return tuple(dict.fromkeys(names))


def _broken(text: str) -> bool:
    """Tell whether text holds lone surrogates, which have no UTF-8."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
