"""acache: an async-first cache for asyncio."""

from .backends import Backend, MemoryBackend, NullBackend
from .cache import Cache, cached
from .clock import Clock, SystemClock
from .codecs import Codec, Msgpack
from .entry import Entry
from .errors import (
    AcacheError,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    CacheClosed,
    CodecError,
    ConfigurationError,
    DecodeError,
    EncodeError,
    InvalidKey,
    KeyMissing,
    LoadTimeout,
    RecursiveLoad,
    Unsupported,
    ValueTooLarge,
)
from .events import Event, Observer, Stats
from .loading import LoadContext, current_load
from .memoize import CachedFunction
from .memoize_many import CachedBatch
from .memory import Memory
from .policy import DEFAULT, Policy

__all__ = [
    "DEFAULT",
    "AcacheError",
    "Backend",
    "BackendError",
    "BackendRefused",
    "BackendTimeout",
    "BackendUnavailable",
    "Cache",
    "CacheClosed",
    "CachedBatch",
    "CachedFunction",
    "Clock",
    "Codec",
    "CodecError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "Entry",
    "Event",
    "InvalidKey",
    "KeyMissing",
    "LoadContext",
    "LoadTimeout",
    "Memory",
    "MemoryBackend",
    "Msgpack",
    "NullBackend",
    "Observer",
    "Policy",
    "RecursiveLoad",
    "Stats",
    "SystemClock",
    "Unsupported",
    "ValueTooLarge",
    "cached",
    "current_load",
]

__version__ = "0.1.0"
