"""Opening a backend by its URL; engines are imported when asked for."""

from __future__ import annotations

from typing import Final

from ..errors import ConfigurationError
from .base import Backend
from .null import NullBackend

__all__ = ["open_backend"]

_REDIS: Final = frozenset(("redis", "rediss", "valkey", "valkeys", "unix"))
_MONGODB: Final = frozenset(("mongodb", "mongodb+srv"))
_SCHEMES: Final = (
    "memory://, file:///, redis://, rediss://, valkey://, valkeys://, unix://, redis+cluster://, redis+sentinel://,"
    " memcached://, mongodb://, mongodb+srv://, dynamodb://, null://"
)


def open_backend(url: str) -> Backend | None:
    """Return the backend ``url`` names; ``None`` for ``memory://``, which has no far tier.

    Raises:
        ConfigurationError: not a URL of a known scheme.
        ImportError: the engine's client library is missing.
    """
    if not isinstance(url, str) or "://" not in url:
        msg = f"{url!r} is not a URL: write one of {_SCHEMES}"
        raise ConfigurationError(msg)
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme in ("memory", "null"):
        if rest.strip("/"):
            msg = f"{scheme}:// takes no host, path or options; those of Cache go beside the URL"
            raise ConfigurationError(msg)
        return None if scheme == "memory" else NullBackend()
    if scheme == "file":
        from .file import FileBackend  # noqa: PLC0415 - brings worker threads along

        return FileBackend.from_url(url)
    if scheme.removesuffix("+cluster").removesuffix("+sentinel") in _REDIS:
        from .redis import RedisBackend  # noqa: PLC0415 - the client library is an extra

        return RedisBackend.from_url(url)
    if scheme in _MONGODB:
        from .mongodb import MongoDBBackend  # noqa: PLC0415 - the client library is an extra

        return MongoDBBackend.from_url(url)
    if scheme == "dynamodb":
        from .dynamodb import DynamoDBBackend  # noqa: PLC0415 - the client library is an extra

        return DynamoDBBackend.from_url(url)
    if scheme == "memcached":
        from .memcached import MemcachedBackend  # noqa: PLC0415 - the client library is an extra

        return MemcachedBackend.from_url(url)
    msg = f"unknown scheme {scheme!r}; known are {_SCHEMES}"  # not the URL itself: it may hold a password
    raise ConfigurationError(msg)
