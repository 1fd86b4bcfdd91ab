"""The form of an entry's file: a fixed head of 100 bytes, big-endian, the key, and the body if it is a small one.

::

    offset 0   magic        8 bytes, with the version of this form
           8   check        SHA-256 of all that follows up to the end of the key
          40   expires_at   float64, seconds since the epoch; infinity = never
          48   length of the key
          52   length of the body
          60   digest       SHA-256 of the body
          92   body_id      8 random bytes that name the body's own file, or zeros: the body follows the key
         100   the key, whole, then the body
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

__all__ = ["HEAD_SIZE", "INLINE", "LARGEST_RECORD", "Record", "pack", "unpack"]

_MAGIC: Final = b"acache\x001"
_CHECKED: Final = struct.Struct(">dIQ32s8s")
_CHECK_AT: Final = len(_MAGIC)
_CHECKED_AT: Final = _CHECK_AT + 32
_HERE: Final = bytes(8)
_BLOCK: Final = 4096
HEAD_SIZE: Final = _CHECKED_AT + _CHECKED.size
INLINE: Final = 64 * 1024
"""Up to this size a body stands in the entry's own file: one file is one rename and cannot disagree with itself."""
LARGEST_RECORD: Final = HEAD_SIZE + (1 << 20) + INLINE


class Record(NamedTuple):
    """What an entry's file says."""

    key: bytes
    expires_at: float
    length: int
    digest: bytes
    body_id: bytes = _HERE

    @property
    def body_name(self) -> str | None:
        """The name of the body's own file; ``None`` if the body stands behind the key."""
        return None if self.body_id == _HERE else f"{self.body_id.hex()}.body"

    @property
    def file_size(self) -> int:
        """The bytes of the entry's own file."""
        return self.body_at + (self.length if self.body_id == _HERE else 0)

    @property
    def size_on_disk(self) -> int:
        """The bytes of its files, rounded up as file systems do: a thousand small entries are a thousand blocks."""
        return _blocks(self.file_size) + (0 if self.body_id == _HERE else _blocks(self.length))

    @property
    def body_at(self) -> int:
        """Where a body that stands behind the key begins."""
        return HEAD_SIZE + len(self.key)


def pack(record: Record) -> bytes:
    """Return the head and the key."""
    checked = (
        _CHECKED.pack(record.expires_at, len(record.key), record.length, record.digest, record.body_id) + record.key
    )
    return _MAGIC + hashlib.sha256(checked).digest() + checked


def unpack(data: bytes, file_size: int) -> Record | None:
    """Read the head and the key, if they are whole and agree with each other and with the size of the file."""
    if len(data) < HEAD_SIZE or not data.startswith(_MAGIC):
        return None
    expires_at, key_length, length, digest, body_id = _CHECKED.unpack_from(data, _CHECKED_AT)
    checked = data[_CHECKED_AT : HEAD_SIZE + key_length]
    if data[_CHECK_AT:_CHECKED_AT] != hashlib.sha256(checked).digest():
        return None
    record = Record(checked[_CHECKED.size :], expires_at, length, digest, body_id)
    return record if record.file_size == file_size and len(record.key) == key_length else None


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
