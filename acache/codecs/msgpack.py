"""`Msgpack`, the default codec."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from ..errors import ConfigurationError

__all__ = ["Msgpack"]

_ANNOTATIONS: Final = 1024


class Msgpack:
    """The default codec.

    Exact for None, bool, int of any size, float, str, bytes, list, tuple, dict with any of these as keys, set,
    frozenset, datetime, date, time and timedelta (zones kept), Decimal, UUID; and for enums, dataclasses, msgspec
    structs and pydantic models, which come back where the reader passes their class as ``type=`` or names it here.
    Subclasses of the builtin types are refused: they would come back as something else.

    Args:
        types: classes that may be made from stored bytes without being asked for.

    Raises:
        ConfigurationError: a class this codec cannot store.
    """

    __slots__ = ("_by_type", "_exact", "_registered")

    def __init__(self, types: Iterable[type] = ()) -> None:
        # Here and not above: msgspec takes a third of the time of `import acache`, and a cache without a far tier
        # never makes a codec.
        from . import exact  # noqa: PLC0415

        self._exact: Final = exact
        self._registered: Final[dict[str, type]] = {}
        for cls in types:
            if not exact.has_fields(cls):
                msg = f"types={cls!r}: register enums, dataclasses, msgspec structs and pydantic models"
                raise ConfigurationError(msg)
            exact.collect(cls, self._registered)
        self._by_type: Final[dict[Any, Callable[[bytes], Any]]] = {None: exact.decoder(self._registered)}

    def __repr__(self) -> str:
        return f"Msgpack(types=[{', '.join(sorted(self._registered))}])"

    @property
    def name(self) -> str:
        """``"msgpack"``."""
        return "msgpack"

    def encode(self, value: Any, /) -> bytes:
        """See `Codec.encode`."""
        return self._exact.encode(value)

    def decode(self, data: bytes, type: Any = None, /) -> Any:
        """See `Codec.decode`."""
        return self.reader(type)(data)

    def reader(self, type: Any = None) -> Callable[[bytes], Any]:
        """Return `decode` for one type, for whoever has many to read."""
        try:
            decode = self._by_type.get(type)
        except TypeError:  # an annotation that cannot be hashed, say Annotated with a list
            return self._exact.typed_decoder(type, self._registered)
        if decode is None:
            if len(self._by_type) >= _ANNOTATIONS:  # annotations made at run time must not grow it for ever
                for old in [old for old in self._by_type if old is not None]:
                    del self._by_type[old]
            decode = self._by_type[type] = self._exact.typed_decoder(type, self._registered)
        return decode
