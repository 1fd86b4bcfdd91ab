"""The machine of `Msgpack`: values to MessagePack with extension types, and back.

What MessagePack has itself (None, bool, 64-bit int, float, str, bytes, list, dict with str keys) is written natively,
so other programs can read it.  Everything else is an extension whose content is again MessagePack:

====  ===========================  ============================================================
code  type                         content
====  ===========================  ============================================================
1     tuple                        array
2, 3  set, frozenset               array
4     dict with other keys         array: key, value, key, value, ...
5     int beyond 64 bits           two's complement, big-endian
6     datetime                     [ISO text without zone, fold, zone]
7     date                         ISO text
8     time                         [ISO text without zone, fold, zone]
9     timedelta                    [days, seconds, microseconds]
10    Decimal                      text
11    UUID                         16 bytes
12    Enum member                  [class, member name]
13    dataclass, Struct, pydantic  [class, {field: value}]
14    further pydantic state       [class, {field: value}, fields set, extra, private]
====  ===========================  ============================================================

A zone is nil, an offset ``[microseconds, name]``, or the key of a ``ZoneInfo``.  A class is written ``module:qualname``
and made again only if the reader named it: registered with the codec, or part of the ``type`` it asked for.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, InvalidOperation
from functools import cached_property
from types import UnionType
from typing import Any, Final, TypeAlias, cast
from uuid import UUID

import msgspec

from ..errors import DecodeError, EncodeError

__all__ = ["Classes", "collect", "decoder", "encode", "has_fields", "typed_decoder"]

(
    _TUPLE,
    _SET,
    _FROZENSET,
    _DICT,
    _BIGINT,
    _DATETIME,
    _DATE,
    _TIME,
    _TIMEDELTA,
    _DECIMAL,
    _UUID,
    _ENUM,
    _FIELDS,
    _MODEL,
) = range(1, 15)
_INT64: Final = range(-(2**63), 2**64)
_ATOMS: Final = frozenset((type(None), bool, float, str, bytes))

_encode: Final = msgspec.msgpack.Encoder().encode
Classes: TypeAlias = dict[str, type]


def encode(value: Any) -> bytes:
    """Return the bytes of a value.

    Raises:
        EncodeError: it has no exact form.
    """
    try:
        return _encode(_exact(value))
    except RecursionError as error:
        msg = f"a {_label(type(value))} nests too deeply, or holds itself: store something flat"
        raise EncodeError(msg) from error
    except UnicodeEncodeError as error:
        msg = "a str with lone surrogates is not Unicode text: store bytes"
        raise EncodeError(msg) from error
    except ValueError as error:  # msgspec: something longer than 2**32 - 1
        msg = f"a {_label(type(value))} is too large for MessagePack: {error}"
        raise EncodeError(msg) from error


# Writing ------------------------------------------------------------------------------------------------------------


def _exact(value: Any) -> Any:
    """Return what msgspec shall write: ``value`` itself where that is exact, so plain data is not copied."""
    cls = type(value)
    if cls in _ATOMS:
        return value
    if (special := _WRITERS.get(cls)) is not None:
        return special(value)
    if isinstance(value, enum.Enum):
        if value.name is None or isinstance(value, enum.Flag):
            _refuse(cls, "store its .value")
        return _ext(_ENUM, [_path(cls), value.name])
    kind = _kind(cls)
    if kind == "dataclass":
        names = [field.name for field in dataclasses.fields(value)]
        for name in set(getattr(value, "__dict__", ())).difference(names):
            if not isinstance(inspect.getattr_static(cls, name, None), cached_property):
                _refuse(cls, f"its attribute {name!r} is not a field, and would be lost")
        return _ext(_FIELDS, [_path(cls), {name: _exact(_field(value, name)) for name in names}])
    if kind == "struct":
        return _ext(_FIELDS, [_path(cls), {name: _exact(getattr(value, name)) for name in value.__struct_fields__}])
    if kind == "pydantic":
        return _write_model(value)
    if issubclass(cls, (str, bytes, int, float, list, tuple, dict, set, frozenset)):
        _refuse(cls, f"convert it to {cls.__mro__[-2].__name__}: a subclass would come back without its class")
    return _refuse(
        cls, "store a dataclass, a msgspec Struct or a pydantic model made from it, or use a codec of your own"
    )


def _exact_list(value: list[Any]) -> list[Any]:
    for item in value:
        if type(item) not in _ATOMS:
            return [_exact(item) for item in value]
    return value


def _exact_dict(value: dict[Any, Any]) -> Any:
    plain = True
    for key, item in value.items():
        if type(key) is not str:
            return _ext(_DICT, [_exact(part) for pair in value.items() for part in pair])
        plain = plain and type(item) in _ATOMS
    return value if plain else {key: _exact(item) for key, item in value.items()}


def _exact_int(value: int) -> Any:
    if value in _INT64:
        return value
    return msgspec.msgpack.Ext(_BIGINT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _ext(code: int, content: Any) -> Any:
    return msgspec.msgpack.Ext(code, _encode(content))


def _zone(cls: type, zone: tzinfo | None) -> Any:
    if zone is None:
        return None
    if (key := getattr(zone, "key", None)) is not None and type(zone).__module__ == "zoneinfo":
        return key
    if type(zone) is timezone:
        offset = zone.utcoffset(None) // timedelta(microseconds=1)
        name = zone.tzname(None)
        return [offset, None if name == timezone(zone.utcoffset(None)).tzname(None) else name]
    return _refuse(cls, f"its zone is a {_label(type(zone))}: use zoneinfo.ZoneInfo or datetime.timezone")


def _clocked(code: int) -> Callable[[Any], Any]:
    def write(value: datetime | time) -> Any:
        return _ext(
            code, [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(type(value), value.tzinfo)]
        )

    return write


def _write_model(value: Any) -> Any:
    state = value.__getstate__()
    fields = {name: _exact(item) for name, item in state["__dict__"].items()}
    extra, private = state.get("__pydantic_extra__"), state.get("__pydantic_private__")
    content: list[Any] = [_path(type(value)), fields, sorted(state["__pydantic_fields_set__"])]
    content += [
        None if part is None else {name: _exact(item) for name, item in part.items()} for part in (extra, private)
    ]
    return _ext(_MODEL, content)


_WRITERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: _exact_int,
    list: _exact_list,
    dict: _exact_dict,
    tuple: lambda value: _ext(_TUPLE, [_exact(item) for item in value]),
    set: lambda value: _ext(_SET, [_exact(item) for item in value]),
    frozenset: lambda value: _ext(_FROZENSET, [_exact(item) for item in value]),
    datetime: _clocked(_DATETIME),
    date: lambda value: _ext(_DATE, value.isoformat()),
    time: _clocked(_TIME),
    timedelta: lambda value: _ext(_TIMEDELTA, [value.days, value.seconds, value.microseconds]),
    Decimal: lambda value: _ext(_DECIMAL, str(value)),
    UUID: lambda value: msgspec.msgpack.Ext(_UUID, value.bytes),
}


def _field(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError:
        return _refuse(type(value), f"its field {name!r} is not set")


def _refuse(cls: type, remedy: str) -> Any:
    msg = f"a {_label(cls)} cannot be stored exactly: {remedy}"
    raise EncodeError(msg)


# Reading ------------------------------------------------------------------------------------------------------------


def decoder(classes: Classes) -> Callable[[bytes], Any]:
    """Build the function that reads any value, making objects of ``classes`` only."""

    def hook(code: int, content: memoryview) -> Any:
        if code == _BIGINT:
            return int.from_bytes(content, "big", signed=True)
        if code == _UUID:
            return UUID(bytes=bytes(content))
        if (read := _READERS.get(code)) is not None:
            return read(decode(content))
        if code in (_ENUM, _FIELDS, _MODEL):
            path, *parts = decode(content)
            cls = classes.get(path)
            if cls is not None and _kind(cls) not in _KINDS[code]:
                msg = f"{path} is not of the kind that was stored"
                raise DecodeError(msg)
            if cls is None:
                msg = f"holds a {path}: pass type=, or register the class with Msgpack(types=[...])"
                raise DecodeError(msg)
            return _MAKERS[code](cls, *parts)
        msg = f"unknown extension type {code}"
        raise DecodeError(msg)

    decode = msgspec.msgpack.Decoder(ext_hook=hook).decode

    def read_any(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            raise
        except RecursionError as error:
            msg = "nests too deeply"
            raise DecodeError(msg) from error
        except (msgspec.MsgspecError, ArithmeticError, LookupError, TypeError, ValueError, OSError) as error:
            msg = f"not a value of this codec: {error}"
            raise DecodeError(msg) from error

    return read_any


def typed_decoder(type_: Any, registered: Classes) -> Callable[[bytes], Any]:
    """Build the function that reads values for ``type_``: its classes may be made, and plain data becomes its class."""
    classes = dict(registered)
    collect(type_, classes)
    read = decoder(classes)
    target = next((cls for cls in _members(type_) if isinstance(cls, type) and _kind(cls)), None)

    def read_typed(data: bytes) -> Any:
        value = read(data)
        if _fits(value, type_):
            return value
        if isinstance(value, dict) and target is not None and _kind(target) != "enum":
            cls = cast("Any", target)
            try:
                return cls.model_validate(value) if _kind(target) == "pydantic" else msgspec.convert(value, cls)
            except (ValueError, TypeError, msgspec.ValidationError) as error:
                msg = f"holds fields that are not a {_label(target)}'s: {error}"
                raise DecodeError(msg) from error
        msg = f"holds a {_label(type(value))}, which is not what was asked for ({type_})"
        raise DecodeError(msg)

    return read_typed


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation."""
    while hasattr(annotation, "__metadata__"):  # Annotated
        annotation = annotation.__origin__
    if typing.get_origin(annotation) in (typing.Union, UnionType):
        return tuple(member for part in typing.get_args(annotation) for member in _members(part))
    return (annotation,)


def _fits(value: Any, annotation: Any) -> bool:
    """Tell whether ``value`` is of this annotation's class; what is inside containers is not looked at."""
    for member in _members(annotation):
        if member is None:
            member = type(None)  # noqa: PLW2901 - as annotations mean it
        if member is Any or isinstance(member, typing.TypeVar):
            return True
        origin = typing.get_origin(member) or member
        if origin is typing.Literal:
            if value in typing.get_args(member):
                return True
            continue
        if origin is float:
            origin = (float, int)  # an int will do where a float is asked for, and stays an int
        try:
            if isinstance(value, origin):
                return True
        except TypeError:  # a TypedDict, a protocol, a NewType: nothing to tell them by
            return True
    return False


def _read_dict(parts: list[Any]) -> dict[Any, Any]:
    pairs = iter(parts)
    return dict(zip(pairs, pairs, strict=True))


def _read_zone(zone: Any) -> tzinfo | None:
    if zone is None:
        return None
    if isinstance(zone, str):
        from zoneinfo import ZoneInfo  # noqa: PLC0415 - looks for time zone files on import

        return ZoneInfo(zone)
    offset, name = zone
    delta = timedelta(microseconds=offset)
    return timezone(delta) if name is None else timezone(delta, name)


def _read_datetime(parts: list[Any]) -> datetime:
    text, fold, zone = parts
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _read_time(parts: list[Any]) -> time:
    text, fold, zone = parts
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_read_zone(zone))


def _read_decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        msg = "not a decimal number"
        raise DecodeError(msg) from error


def _read_timedelta(parts: list[int]) -> timedelta:
    days, seconds, microseconds = parts
    return timedelta(days, seconds, microseconds)


_READERS: Final[dict[int, Callable[[Any], Any]]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _DICT: _read_dict,
    _DATETIME: _read_datetime,
    _DATE: date.fromisoformat,
    _TIME: _read_time,
    _TIMEDELTA: _read_timedelta,
    _DECIMAL: _read_decimal,
}


def _make_member(cls: Any, name: str) -> Any:
    return cls[name]


def _make_object(cls: Any, fields: dict[str, Any]) -> Any:
    kind = _kind(cls)
    expected = cls.__struct_fields__ if kind == "struct" else [field.name for field in dataclasses.fields(cls)]
    _same_fields(cls, fields, expected)
    if kind == "struct":
        # A Struct cannot be made without its __post_init__ (msgspec's own decoding runs it too), so what that computes
        # is put back to what was stored.
        made = cls(**fields)
        for name, value in fields.items():
            msgspec.structs.force_setattr(made, name, value)
        return made
    made = object.__new__(cls)  # as pickle and copy do: __init__ may compute, and would compute twice
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _make_model(cls: Any, fields: dict[str, Any], fields_set: list[str], extra: Any, private: Any) -> Any:
    _same_fields(cls, fields, cls.model_fields)
    made = cls.__new__(cls)
    made.__setstate__(
        {
            "__dict__": fields,
            "__pydantic_fields_set__": set(fields_set),
            "__pydantic_extra__": extra,
            "__pydantic_private__": private,
        }
    )
    return made


def _same_fields(cls: type, found: dict[str, Any], expected: Iterable[str]) -> None:
    if set(found) != set(expected):
        msg = f"holds a {_label(cls)} of another version: with fields {', '.join(sorted(found))}"
        raise DecodeError(msg)


_KINDS: Final[dict[int, tuple[str, ...]]] = {_ENUM: ("enum",), _FIELDS: ("dataclass", "struct"), _MODEL: ("pydantic",)}
_MAKERS: Final[dict[int, Callable[..., Any]]] = {_ENUM: _make_member, _FIELDS: _make_object, _MODEL: _make_model}


# Classes ------------------------------------------------------------------------------------------------------------


def _kind(cls: type) -> str | None:
    """Tell which sort of class with fields this is; ``None`` for none of them."""
    if issubclass(cls, enum.Enum):
        return "enum"
    if issubclass(cls, msgspec.Struct):
        return "struct"
    if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate"):
        return "pydantic"
    return "dataclass" if dataclasses.is_dataclass(cls) else None


def has_fields(cls: Any) -> bool:
    """Tell whether this is a class whose objects can be stored: an enum, or one with fields."""
    return isinstance(cls, type) and _kind(cls) is not None and not issubclass(cls, enum.Flag)


def _path(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        _refuse(cls, "define the class at module level: a local one has no name to find it by")
    return f"{cls.__module__}:{cls.__qualname__}"


def _label(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def collect(annotation: Any, classes: Classes) -> None:
    """Add every class with fields that ``annotation`` reaches: through generics, unions, names and the fields."""
    pending, seen = [annotation], dict[int, Any]()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item  # and keep it: what an annotation that is text stands for would leave its id to another
        if isinstance(item, type) and not typing.get_args(item) and (kind := _kind(item)):
            classes[f"{item.__module__}:{item.__qualname__}"] = item
            if kind != "enum":
                pending += _hints(item).values()
        elif _is_typed_dict(item):
            pending += _hints(item).values()
        elif isinstance(item, typing.TypeVar):
            pending += [item.__bound__, *item.__constraints__]
        elif typing.get_origin(item) is typing.Literal:
            pending += [type(value) for value in typing.get_args(item)]  # a member of an enum may be one
        elif typing.get_origin(item) is not None or isinstance(item, UnionType):
            pending += [typing.get_origin(item), *typing.get_args(item)]
        else:
            pending.append(_named(item))


def _is_typed_dict(item: Any) -> bool:
    # Not typing.is_typeddict, which does not know those of typing_extensions.
    return isinstance(item, type) and issubclass(item, dict) and hasattr(item, "__total__")


def _named(item: Any) -> Any:
    """Return what a ``NewType`` or a type alias is another name for; ``None`` for anything else."""
    try:
        return getattr(item, "__supertype__", None) or getattr(item, "__value__", None)
    except NameError:  # as in `_hints`
        return None


def _hints(cls: type) -> dict[str, Any]:
    if _kind(cls) == "pydantic":
        # It has resolved them, and has filled in the parameters of a generic model.
        return {name: field.annotation for name, field in cast("Any", cls).model_fields.items()}
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError, AttributeError):  # names that exist for the type checker only
        return {name: hint for name, hint in inspect.get_annotations(cls).items() if not isinstance(hint, str)}
