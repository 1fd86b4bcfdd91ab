"""Keys: what a user may write, what goes to an engine, and how arguments become one.

On the wire a key is ``namespace::key``, and without a namespace just ``key``.  A namespace never contains ``::`` and
never ends in ``:``, so the first ``::`` always ends it.  What begins with ``@`` after it is acache's own: ``@tag:...``,
``@invalidated:...`` and ``@lease:...`` records, ``@#...`` digests of keys an engine cannot hold, ``@@...`` for users'
keys that begin with ``@`` themselves; and ``@changes``, which is no key but the topic of messages about them.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import string
import sys
import typing
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from functools import cached_property, partial
from inspect import isabstract
from itertools import pairwise
from types import FunctionType, MemberDescriptorType, NoneType, UnionType
from typing import Any, Final

from .errors import ConfigurationError, InvalidKey, short

__all__ = [
    "Template",
    "WireKeys",
    "argument_text",
    "arguments_text",
    "check_key",
    "check_keys",
    "check_namespace",
    "digest",
    "module_name",
    "topic_of_changes",
]

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_.:/+-]{1,100}")
_VISIBLE: Final = re.compile(r"[!-~]+")
_LITERAL: Final = re.compile(r"None|True|False|-?[0-9].*|-?inf|nan")
_LONGEST_ARGUMENTS: Final = 400


def check_key(key: object) -> str:
    """Return ``key`` if it is one.

    Raises:
        InvalidKey: not a non-empty ``str`` of Unicode text.
    """
    if not isinstance(key, str):
        msg = f"a key is a non-empty str, not {short(key)} ({type(key).__qualname__}): pass str(...) of it"
        raise InvalidKey(msg)
    if not key:
        msg = "a key must not be empty"
        raise InvalidKey(msg)
    if type(key) is not str:
        key = str.__str__(key)  # a subclass may have ideas of its own about its letters
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            msg = f"a key must be Unicode text, and {short(key)} holds a lone surrogate"
            raise InvalidKey(msg) from error
    return key


def check_keys(keys: Iterable[object]) -> list[str]:
    """Return ``keys`` if all of them are, as `check_key` does, without a call for each of thousands."""
    return [key if type(key) is str and key and key.isascii() else check_key(key) for key in keys]


def check_namespace(namespace: object) -> str:
    """Return ``namespace`` if it is one; ``""`` is none.

    Raises:
        ConfigurationError: characters or a length that not every engine could hold in a prefix.
    """
    if namespace == "":
        return ""
    if (
        not isinstance(namespace, str)
        or not _NAMESPACE.fullmatch(namespace)
        or "::" in namespace
        or namespace[-1] == ":"
    ):
        msg = (
            f"namespace={namespace!r}: use up to 100 letters, digits and any of _ . / + - and single colons,"
            " not ending in a colon"
        )
        raise ConfigurationError(msg)
    return namespace


def digest(text: str) -> str:
    """Return 64 hexadecimal digits that stand for ``text``: SHA-256, so nobody can find two texts for one."""
    import hashlib  # noqa: PLC0415 - OpenSSL takes its time, and most programs never have so long a key

    return hashlib.sha256(text.encode()).hexdigest()


def topic_of_changes(prefix: str) -> str:
    """Return the topic of the messages about what changes under the wire keys that begin with ``prefix``."""
    return f"{prefix or '::'}@changes"


class WireKeys:
    """Makes the keys that one namespace's entries have on one engine."""

    __slots__ = ("_max_bytes", "_prefix", "_printable", "_short")

    def __init__(self, namespace: str, *, max_bytes: int, printable: bool) -> None:
        self._prefix: Final = f"{namespace}::" if namespace else ""
        self._max_bytes: Final = max_bytes
        self._printable: Final = printable
        self._short: Final = max_bytes - len(self._prefix)
        longest = len(self._internal(f"@#{digest('')}"))
        if longest > max_bytes:
            msg = f"namespace={namespace!r}: too long for this engine, whose keys have at most {max_bytes} bytes"
            raise ConfigurationError(msg)

    @property
    def prefix(self) -> str:
        """What every wire key of the namespace begins with; ``""`` without one."""
        return self._prefix

    @property
    def surely_plain(self) -> int:
        """Up to how many characters a user's key is never replaced by a digest."""
        return 0 if self._printable else (self._short - 3) // 4

    def entry(self, key: str) -> str:
        """Return the wire key of a user's key."""
        prefix = self._prefix
        if prefix and key[0] != "@" and len(key) < self._short and key.isascii() and not self._printable:
            return prefix + key  # what most keys are
        if key[0] == "@":
            wire = self._internal(f"@{key}")
        elif not prefix and "::" in key:
            wire = f"::{key}"
        else:
            wire = prefix + key
        return self._fit(wire)

    def entries(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the users' keys by their wire keys."""
        prefix, short, entry = self._prefix, 0 if self._printable else self._short, self.entry
        # As `entry` does for most keys, without a call for each of thousands.
        if not prefix:
            return {
                key if len(key) < short and key.isascii() and key[0] != "@" and "::" not in key else entry(key): key
                for key in keys
            }
        return {
            prefix + key if len(key) < short and key.isascii() and key[0] != "@" else entry(key): key for key in keys
        }

    def tag(self, tag: str) -> str:
        """Return the wire key of a tag's token."""
        return self._fit(self._internal(f"@tag:{tag}"))

    def invalidated(self, tag: str) -> str:
        """Return the wire key of the note that a tag was invalidated a short time ago."""
        return self._fit(self._internal(f"@invalidated:{tag}"))

    def lease(self, key: str) -> str:
        """Return the wire key of the lease on a user's key, which is the topic of its messages too."""
        return self._fit(self._internal(f"@lease:{key}"))

    def meaning(self, wire: str) -> tuple[str | None, str | None]:
        """Return the user's key that a wire key of this namespace belongs to, or the tag; neither for a digest."""
        rest = wire[len(self._prefix) :]
        if not self._prefix and rest.startswith("::"):
            rest = rest[2:]
            if rest[:1] != "@":
                return rest, None
        elif rest[:1] != "@" or not self._prefix:
            return rest, None
        if rest.startswith("@@"):
            return rest[1:], None
        return None, rest[5:] if rest.startswith("@tag:") else None

    def is_digest(self, wire: str) -> bool:
        """Tell whether a wire key of this namespace stands for a key that the engine cannot hold."""
        return wire.startswith("@#", len(self._prefix) or 2)

    def _internal(self, name: str) -> str:
        return f"{self._prefix or '::'}{name}"

    def _fit(self, wire: str) -> str:
        if len(wire) * (1 if wire.isascii() else 4) > self._max_bytes and len(wire.encode()) > self._max_bytes:
            return self._internal(f"@#{digest(wire)}")
        if self._printable and not _VISIBLE.fullmatch(wire):
            return self._internal(f"@#{digest(wire)}")
        return wire


# Arguments ----------------------------------------------------------------------------------------------------------


def arguments_text(arguments: Mapping[str, Any], owner: str) -> str:
    """Return the canonical text of a function's bound arguments, hashed when it is long.

    Raises:
        InvalidKey: an argument has no stable text; the message names it, ``owner`` and the remedies.
    """
    parts = []
    for name, value in arguments.items():
        try:
            parts.append(f"{name}={argument_text(value)}")
        except (TypeError, RecursionError) as error:
            msg = (
                f"{owner}: the argument {name!r} has no stable key ({error}). Leave it out with ignore=({name!r},),"
                f" give its class a __cache_key__, or build the key yourself with key="
            )
            raise InvalidKey(msg) from error
    text = ",".join(parts)
    return f"#{digest(text)}" if len(text) > _LONGEST_ARGUMENTS else text


def argument_text(value: Any) -> str:
    """Return a text that a value has in every process, and that no value of another type or content has.

    Raises:
        TypeError: a class whose text would depend on the process, say on a memory address.
    """
    cls: Any = type(value)
    if (plain := _PLAIN.get(cls)) is not None:
        return plain(value)
    own = getattr(value, "__cache_key__", None)
    if own is not None and not isinstance(value, type):
        return f"{_name(cls)}<{argument_text(own() if callable(own) else own)}>"
    if isinstance(value, type):
        return f"type<{_name(value)}>"
    if isinstance(value, enum.Enum):  # a flag of which nothing is set has no name
        return f"{_name(cls)}<{argument_text(value.value)}>" if value.name is None else f"{_name(cls)}.{value.name}"
    if cls.__module__ == "uuid" and cls.__name__ == "UUID":  # by name: importing it takes longer than all of this
        return f"UUID<{value}>"
    if (path := getattr(value, "__fspath__", None)) is not None:
        return f"path<{json.dumps(path())}>"
    names = _field_names(cls)
    fields = None if names is None else _fields(value, names)
    for base, write in _PLAIN.items():
        if base is not type(None) and isinstance(value, base):
            return f"{fields or _name(cls) + _attributes(value)}<{write(value)}>"
    if fields is None:
        raise _unstable(cls)
    return fields


def _unstable(cls: type) -> TypeError:
    return TypeError(f"a {_name(cls)} has no text that is the same in every process")


def _field_names(cls: Any) -> Collection[str] | None:
    """Return the declared fields of a dataclass, an attrs class, a msgspec struct or a pydantic model."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if (attributes := getattr(cls, "__attrs_attrs__", None)) is not None:
        return [attribute.name for attribute in attributes]
    if (names := getattr(cls, "__struct_fields__", None)) is not None:
        return tuple(names)
    if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_fields"):
        return dict(cls.model_fields)
    return None


def _fields(value: Any, names: Iterable[str]) -> str:
    held = [f"{name}={argument_text(getattr(value, name))}" for name in names]
    return f"{_name(type(value))}({','.join(held)}){_beyond(value)}"


def _beyond(value: Any) -> str:
    """Return the text of what a value with fields holds besides them.

    Of a pydantic model, that is its extra and private attributes, and which fields nobody has set: ``exclude_unset``
    tells apart what is equal.

    Raises:
        TypeError: a subclass that does not declare its attributes, so that two different values would look the same.
    """
    cls = type(value)
    if hasattr(cls, "__pydantic_fields_set__"):
        extra, private = value.__pydantic_extra__, value.__pydantic_private__
        more = f"{_mapping(extra or {})}{_mapping(private or {})}" if extra or private else ""
        unset = sorted(set(cls.model_fields) - value.__pydantic_fields_set__)
        return f"{more}-{_sequence(unset, '[]')}" if unset else more
    if dataclasses.is_dataclass(cls) and "__dataclass_fields__" not in vars(cls):
        fields = {field.name for field in dataclasses.fields(cls)}
        if undeclared := sorted(set(getattr(value, "__dict__", ())) - fields):
            msg = f"a {_name(cls)} holds more than its fields: {', '.join(undeclared)}; make it a dataclass too"
            raise TypeError(msg)
    return ""


def _attributes(value: Any) -> str:
    """Return the text of what an instance of a subclass of a builtin holds besides its value."""
    cls, held = type(value), getattr(value, "__dict__", None)
    # Some make a dict its own attributes; and what a cached property keeps is worked out of the rest.
    own = held.items() if held and held is not value else ()
    held = {name: item for name, item in own if not isinstance(getattr(cls, name, None), cached_property)}
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            for name, slot in vars(base).items():
                if isinstance(slot, MemberDescriptorType):
                    with suppress(AttributeError):  # it is empty
                        held.setdefault(name, slot.__get__(value))
    return _mapping(held) if held else ""


def _name(cls: type) -> str:
    if "<locals>" in cls.__qualname__:
        msg = f"{cls.__qualname__} is a local class: two of them could share the name; move it out of there"
        raise TypeError(msg)
    return f"{module_name(cls.__module__)}.{cls.__qualname__}"


def module_name(module: str) -> str:
    """Return the name of a module in keys: that of the file for a script, as another process may import it.

    Every script is ``__main__``, and ``__mp_main__`` in the processes that it spawns.
    """
    if module not in ("__main__", "__mp_main__") or (main := sys.modules.get(module)) is None:
        return module
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    if file is None or file.startswith("<"):  # a session, where there is nothing better
        return "__main__"
    from pathlib import Path  # noqa: PLC0415 - takes its time, and few modules are scripts

    path = Path(file)
    return f"{path.resolve().parent.name}.__main__" if path.stem == "__main__" else path.stem


def _sequence(value: Any, brackets: str) -> str:
    return f"{brackets[0]}{','.join([argument_text(item) for item in value])}{brackets[1]}"


def _unordered(value: Any, name: str) -> str:
    return f"{name}{{{','.join(sorted([argument_text(item) for item in value]))}}}"


def _mapping(value: Mapping[Any, Any]) -> str:
    pairs = [f"{argument_text(key)}:{argument_text(item)}" for key, item in value.items()]
    if not isinstance(value, OrderedDict):  # where the order tells two of them apart
        pairs.sort()
    return f"{{{','.join(pairs)}}}"


def _moment(name: str, value: datetime | time) -> str:
    zone = type(value.tzinfo)
    if zone.__str__ is object.__str__ and zone.__repr__ in (object.__repr__, tzinfo.__repr__):
        raise _unstable(zone)
    return f"{name}<{value.isoformat()},{value.fold},{value.tzinfo}>"


def _int_text(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than Python turns into decimals (sys.set_int_max_str_digits)
        return hex(value)


_PLAIN: Final[dict[type, Callable[[Any], str]]] = {
    type(None): lambda _: "None",
    bool: lambda value: "True" if value else "False",
    int: _int_text,
    float: float.__repr__,
    complex: complex.__repr__,
    str: json.dumps,
    bytes: lambda value: f"b<{value.hex()}>",
    list: lambda value: _sequence(value, "[]"),
    tuple: lambda value: _sequence(value, "()"),
    dict: _mapping,
    set: lambda value: _unordered(value, "set"),
    frozenset: lambda value: _unordered(value, "frozenset"),
    datetime: partial(_moment, "datetime"),
    date: lambda value: f"date<{value.isoformat()}>",
    time: partial(_moment, "time"),
    timedelta: lambda value: f"timedelta<{value.days},{value.seconds},{value.microseconds}>",
    Decimal: lambda value: f"Decimal<{value}>",
}


class Template:
    """A key written by the user: ``"user:{user_id}"``, with dotted access and format specifications.

    Different arguments never share a key: text that would read like another field's, or like a number, is escaped.

    Raises:
        ConfigurationError: unknown parameters, attributes that the declared type does not have, formats that it does
            not take, positional fields, two fields with nothing between them.
    """

    __slots__ = ("_parts", "names", "text")

    def __init__(self, text: str, annotations: Mapping[str, Any], owner: str, role: str = "key") -> None:
        self.text: Final = text
        self._parts: Final[list[Callable[[Mapping[str, Any]], str]]] = []
        self.names: Final[set[str]] = set()
        if not text.isascii():
            try:
                check_key(text)
            except InvalidKey as error:
                msg = f"{owner}: {role}={text!r}: {error}"
                raise ConfigurationError(msg) from error
        try:
            pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            msg = f"{owner}: {role}={text!r} is not a template: {error}"
            raise ConfigurationError(msg) from error
        ends = {literal[0] for before, (literal, *_) in pairwise(pieces) if before[1] is not None and literal}
        after_field = False
        for literal, field, spec, conversion in pieces:
            if literal:
                self._parts.append(lambda _, literal=literal: literal)  # type: ignore[misc]
            elif after_field and field is not None:
                msg = f"{owner}: {role}={text!r}: put something between two fields, or their texts run into each other"
                raise ConfigurationError(msg)
            after_field = field is not None
            if field is None:
                continue
            name = re.split(r"[.\[]", field, maxsplit=1)[0]
            if name not in annotations:
                known = ", ".join(annotations) or "none"
                msg = f"{owner}: {role}={text!r} names {name!r}, which is not a parameter (there are: {known})"
                raise ConfigurationError(msg)
            if conversion not in (None, "r", "s", "a") or any(not part for part in re.split(r"[.\[]", field)):
                msg = f"{owner}: {role}={text!r}: {{{field}{f'!{conversion}' if conversion else ''}}} is not a field"
                raise ConfigurationError(msg)
            if spec and "{" in spec:
                msg = f"{owner}: {role}={text!r}: a format specification cannot hold fields"
                raise ConfigurationError(msg)
            self.names.add(name)
            steps = re.findall(r"[.\[][^.\[]*", field)
            if problem := _impossible(annotations[name], steps, field, spec or "", conversion):
                msg = f"{owner}: {role}={text!r}: {problem}"
                raise ConfigurationError(msg)
            declared = annotations[name] if name == field else None
            self._parts.append(partial(_field_text, field, spec or "", conversion, declared, "".join(ends)))

    def __call__(self, arguments: Mapping[str, Any]) -> str:
        """Return the key for bound arguments.

        Raises:
            InvalidKey: an argument has no stable text.
        """
        return "".join([part(arguments) for part in self._parts])


_SAMPLES: Final[dict[Any, Any]] = {bool: True, int: 1, float: 1.0, str: "", bytes: b"", Decimal: Decimal(1)}
"""For each type whose format specifications do not depend on the value, a value."""


def _impossible(declared: Any, steps: Sequence[str], field: str, spec: str, conversion: str | None) -> str | None:
    """Tell why a field cannot be written from a value of its declared type; ``None`` if it can, or nobody knows."""
    problems = [_problem(one, steps, field, spec, conversion) for one in _members(declared)]
    return None if None in problems else "; ".join(dict.fromkeys(filter(None, problems)))


def _members(declared: Any) -> list[Any]:
    """Return the types of a union, without that of ``None``; of any other type, the type."""
    if typing.get_origin(declared) not in (typing.Union, UnionType):
        return [declared]
    return [one for one in typing.get_args(declared) if one is not NoneType]


def _problem(declared: Any, steps: Sequence[str], field: str, spec: str, conversion: str | None) -> str | None:
    if not steps:
        sample = "" if conversion else _SAMPLES.get(declared)
        if spec and sample is not None:
            try:
                format(sample, spec)
            except (TypeError, ValueError) as error:
                return f"{{{field}}} cannot be written as {spec!r}: {error}"
        return None
    step, *rest = steps
    if step[0] == "[":
        return _no_items(typing.get_origin(declared) or declared, field)
    if not isinstance(declared, type):
        return None
    name = step[1:]
    names = _field_names(declared) or getattr(declared, "_fields", None)
    # Without fields and with a __dict__, attributes may be made by the constructor, and nothing lists them.
    listed = names is not None or not declared.__dictoffset__
    if listed and not hasattr(declared, name) and name not in (names or ()) and not _open(declared):
        known = f" (there are: {', '.join(names)})" if names else ""
        return f"{{{field}}}: a {declared.__qualname__} has no {name!r}{known}"
    return _impossible(_declared(declared, name), rest, field, spec, conversion)


def _no_items(cls: Any, field: str) -> str | None:
    # What implements an abstract class may have more than that.
    general = cls in (Any, object) or isabstract(cls) or getattr(cls, "_is_protocol", False)
    if general or not isinstance(cls, type) or hasattr(cls, "__getitem__"):
        return None
    return f"{{{field}}}: a {cls.__qualname__} has no items"


def _open(cls: Any) -> bool:
    """Tell whether instances may have attributes that the class does not know of."""
    if hasattr(cls, "__pydantic_validator__"):  # each model has a __getattr__
        return bool(cls.model_config.get("extra") == "allow")
    return hasattr(cls, "__getattr__") or isinstance(cls.__getattribute__, FunctionType)


def _declared(cls: type, name: str) -> Any:
    try:
        return typing.get_type_hints(cls).get(name)
    except (NameError, TypeError, AttributeError):  # a name that exists for the type checker only
        return None


def _field_text(
    field: str, spec: str, conversion: str | None, declared: Any, ends: str, arguments: Mapping[str, Any]
) -> str:
    """Write one field: plain for the declared type, marked for others, so that 1 and "1" are two."""
    declared_str = declared in (str, "str")
    try:
        value, _ = string.Formatter().get_field(field, (), arguments)
    except (AttributeError, LookupError, TypeError) as error:
        msg = f"{{{field}}} in a key template cannot be read from these arguments: {error!r}"
        raise InvalidKey(msg) from error
    if conversion or spec:
        _stable(field, value)
    if conversion:
        value = string.Formatter().convert_field(value, conversion)
    if spec:
        try:
            value = format(value, spec)
        except (TypeError, ValueError) as error:
            msg = f"{{{field}:{spec}}} in a key template: {short(value)} cannot be written so ({error})"
            raise InvalidKey(msg) from error
    if type(value) is str:
        text = _escape(value, ends)
        return f'"{text}"' if not (declared_str or spec) and _LITERAL.fullmatch(value) else text
    text = _stable(field, value)
    if declared_str or not _LITERAL.fullmatch(text):
        text = f"<{text}"
    return _percent(text, ends)


def _stable(field: str, value: Any) -> str:
    try:
        return argument_text(value)
    except (TypeError, RecursionError) as error:
        msg = f"{{{field}}} in a key template has no stable text ({error}): name an attribute, as in {{{field}.id}}"
        raise InvalidKey(msg) from error


def _percent(text: str, ends: str) -> str:
    return "".join([f"%{ord(char):02X}" if char == "%" or char in ends else char for char in text])


def _escape(text: str, ends: str) -> str:
    """Keep a str apart from the marks that texts of other types begin with, and from what ends its field."""
    if text[:1] in ('"', "<"):
        return f"%{ord(text[0]):02X}{_percent(text[1:], ends)}"
    return _percent(text, ends)
