"""The far tier's engines, behind the seam of `acache.backends.base`.

Engines that need a client library stand in modules of their own: ``from acache.backends.redis import RedisBackend``.
"""

from .base import (
    Add,
    Backend,
    Batch,
    Cas,
    Clear,
    Counter,
    KeyLimits,
    Listener,
    Notify,
    Scan,
    Stream,
    Touch,
    Track,
    Tracking,
)
from .layered import LayeredBackend
from .memory import MemoryBackend
from .null import NullBackend

__all__ = [
    "Add",
    "Backend",
    "Batch",
    "Cas",
    "Clear",
    "Counter",
    "KeyLimits",
    "LayeredBackend",
    "Listener",
    "MemoryBackend",
    "Notify",
    "NullBackend",
    "Scan",
    "Stream",
    "Touch",
    "Track",
    "Tracking",
]
