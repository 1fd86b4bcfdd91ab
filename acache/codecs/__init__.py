"""Values to bytes and back: exact, or a clear error."""

from .base import Codec
from .msgpack import Msgpack

__all__ = ["Codec", "Msgpack"]
