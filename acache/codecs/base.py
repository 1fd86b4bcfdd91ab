"""The codec seam."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ..errors import EncodeError

__all__ = ["Codec", "encode_under"]


@runtime_checkable
class Codec(Protocol):
    """Turns values into bytes and back, exactly or not at all.

    ``name`` goes into every record, so that a cache never decodes what another codec wrote.
    """

    @property
    def name(self) -> str:
        """ASCII, at most 255 characters; a new name for every incompatible format."""
        ...

    def encode(self, value: Any, /) -> bytes:
        """Return bytes from which `decode` makes an equal value of the same types.

        Raises:
            EncodeError: it cannot; the message names the type and the remedy.
        """
        ...

    def decode(self, data: bytes, type: Any = None, /) -> Any:
        """Return the value; ``type`` (an annotation, or ``None`` for any) says what it is and names classes to make.

        Whatever the bytes are, nothing is imported or executed that ``type`` or the codec's owner did not name.

        Raises:
            DecodeError: these bytes are not a value of this codec, or not one of this type.  What is inside builtin
                containers is not checked.
        """
        ...


def encode_under(key: str, value: Any, codec: Codec) -> bytes:
    """Encode a value that is to be stored under ``key``; an error says so.

    Raises:
        EncodeError: the codec's own.
    """
    try:
        return codec.encode(value)
    except EncodeError as error:
        error.args = (f"{key!r}: {error}",)
        raise
