"""What a function is called in its keys, and how two functions of one name are told apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from functools import partial
from itertools import count, zip_longest
from string import Formatter
from types import CodeType, MethodType, ModuleType
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from .errors import ConfigurationError
from .events import logger
from .keys import argument_text, module_name

__all__ = ["claim", "claim_template", "fixed_arguments", "key_prefix", "named", "owner_of"]


def named(function: Any) -> Any:
    """Return what has the name: the function under partial applications and bound methods."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def owner_of(function: Any) -> str:
    """Return how messages call a function."""
    inner = named(function)
    return f"{inner.__module__}.{inner.__qualname__}()"


def fixed_arguments(function: Any) -> dict[str, Any]:
    """Return what partial applications and bound methods pass by position, by the names of the parameters it is for."""
    inner, args, _ = _given(function)
    return dict(zip(_positional(inner), args, strict=False)) if args else {}


def _given(function: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the function under partial applications and bound methods, and what they pass to it."""
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(function, (partial, MethodType)):
        if isinstance(function, partial):
            args, keywords, function = (*function.args, *args), function.keywords | keywords, function.func
        else:
            args, function = (function.__self__, *args), function.__func__
    return function, args, keywords


def _positional(function: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind in kinds]


def key_prefix(function: Callable[..., Any], version: str | int | None) -> str:
    """Return what the keys of a function begin with.

    Raises:
        ConfigurationError: it is bound to something, or a partial application of it, that has no stable text.
    """
    inner, fixed = named(function), _fixed(function)
    return f"{module_name(inner.__module__)}.{inner.__qualname__}{fixed}{'' if version is None else f'@{version}'}"


def _fixed(function: Any) -> str:
    """Return the text of what a function gets in every call."""
    if isinstance(function, partial):
        try:
            return _fixed(function.func) + argument_text([function.args, function.keywords])
        except (TypeError, RecursionError) as error:
            msg = f"{owner_of(function)}: what the partial application fixed has no stable key ({error}): pass key="
            raise ConfigurationError(msg) from error
    instance = getattr(function, "__self__", None)  # of a function written in C, it is its module
    if instance is None or isinstance(instance, ModuleType):
        return ""
    try:
        text = f"<{argument_text(instance)}>"
    except (TypeError, RecursionError) as error:
        msg = (
            f"{owner_of(function)}: what the method is bound to has no stable key ({error}): pass key=, give the class"
            " a __cache_key__, or decorate the method in the class"
        )
        raise ConfigurationError(msg) from error
    return text + _fixed(function.__func__) if isinstance(function, MethodType) else text


# Two of one name ----------------------------------------------------------------------------------------------------

_numbers: Final[WeakKeyDictionary[Any, int]] = WeakKeyDictionary()
_next_number: Final = count()
_OF_CODE: Final = (
    *("co_code", "co_exceptiontable", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount"),
)
"""All but where it is written, and its constants."""


def claim(
    taken: set[tuple[str, str]],
    namespace: str,
    function: Callable[..., Any],
    version: str | int | None,
    ignored: Iterable[str],
) -> None:
    """Take the name that the keys of a function begin with, of the names that functions of one cache have.

    A function that is defined again, because its module is reloaded or a notebook's cell is run again, keeps its name.

    Raises:
        ConfigurationError: another function has it: the two would have the same keys.
    """
    prefix, inner = key_prefix(function, version), named(function)
    source = inspect.unwrap(inner)
    runs = f"runs {_code_text(_code(inner))}{_code_text(_code(source))}"
    facts = _Facts(
        itself=f"is {_number(inner)}",
        around=f"around {_number(source)}",
        runs=runs,
        alike=f"{runs} with {_left_out(function, ignored)}",
    )
    address = f"{namespace}::{prefix}"
    # The empty fact is that there is one of this name.
    known = {fact for fact in ("", *facts) if (address, fact) in taken}
    if known and facts.itself not in known:
        if difference := _difference(inner, source, facts, known):
            msg = (
                f"{prefix} is cached here already, and this one {difference}: the two would answer each other's calls."
                " Give each a key= or a version= of its own"
            )
            raise ConfigurationError(msg)
        if facts.runs not in known:
            logger.warning(
                "%s is cached here already, with other code: what that has stored answers for this one until it"
                " expires. If the function was changed, version= tells the old results from the new; if this is"
                " another function, give it a key=",
                prefix,
            )
    taken.update((address, fact) for fact in ("", *facts))


def claim_template(
    taken: set[tuple[str, str]],
    namespace: str,
    function: Callable[..., Any],
    template: str,
    version: str | int | None,
    ignored: Iterable[str],
) -> None:
    """Take a template for what a partial application or a bound method has fixed, as far as the template leaves it out.

    What has no stable text cannot be told from another of its kind, and is nobody's business.

    Raises:
        ConfigurationError: another one of the same function has it: the two would have the same keys.
    """
    inner, args, keywords = _given(function)
    said = {(field or "").partition(".")[0].partition("[")[0] for _, field, *_ in Formatter().parse(template)}
    names = _positional(inner)[: len(args)] if args else []
    fixed = [*zip_longest(names, args, fillvalue="*"), *keywords.items()]
    unsaid = [(name, value) for name, value in fixed if name not in said.union(ignored)]
    if not unsaid:
        return
    try:
        text = argument_text(unsaid)
    except (TypeError, RecursionError):
        return
    address = f"{namespace}::{template!r} of {owner_of(function)}@{version}"
    if (address, "") in taken and (address, text) not in taken:
        msg = (
            f"{owner_of(function)}: key={template!r} is cached here already for other values of"
            f" {', '.join(name for name, _ in unsaid)}, which are fixed: the two would answer each other's calls. Name"
            " them in the key, give each a key= or a version= of its own, or make the key with a function if they may"
            " share it"
        )
        raise ConfigurationError(msg)
    taken.update({(address, ""), (address, text)})


class _Facts(NamedTuple):
    """What is remembered of a function: text, which keeps nothing alive."""

    itself: str
    around: str
    """The function that it wraps, or itself."""
    runs: str
    """Its code."""
    alike: str
    """Its code, and its defaults that are no part of the key."""


def _difference(inner: Any, source: Any, facts: _Facts, known: Collection[str]) -> str:
    """Tell why a function is another one than those of its name; nothing if it is the same one, defined again."""
    place, _, _ = inner.__qualname__.rpartition(".")
    code = _code(inner)
    sees = code is not None and {*code.co_freevars} - {"__class__"}  # which is there for super()
    at_top = "<locals>" not in inner.__qualname__ and "<lambda>" not in inner.__qualname__
    if at_top and (source is not inner or not sees):
        return "is another wrapper of the same function" if sees and facts.around in known else ""
    if sees:
        return "sees other variables of the function around it"
    if "<locals>" in place and not place.endswith("<locals>"):
        return "is a method of another class of that name"
    return "" if facts.alike in known else "has other code, or other defaults where ignore= leaves them out of the key"


def _code(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


def _number(value: Any) -> int:
    """Return a number that no other object has, also after this one is gone, as an address would be."""
    try:
        return _numbers.setdefault(value, next(_next_number))
    except TypeError:  # neither a name in a dict nor a weak reference is to be had
        return next(_next_number)


def _left_out(function: Callable[..., Any], ignored: Iterable[str]) -> str:
    """Return the text of the defaults that are no part of the key."""
    parameters = inspect.signature(function).parameters
    texts = []
    for name in sorted(ignored):
        default = parameters[name].default
        try:
            texts.append(f"{name}={'' if default is inspect.Parameter.empty else argument_text(default)}")
        except (TypeError, RecursionError):
            texts.append(f"{name} is {_number(default)}")
    return ",".join(texts)


def _code_text(code: CodeType | None) -> str:
    """Return what a function does, wherever it is written; nothing for one that is not written in Python."""
    if code is None:
        return ""
    constants = [_code_text(item) if isinstance(item, CodeType) else repr(item) for item in code.co_consts]
    return repr([*[getattr(code, name) for name in _OF_CODE], *constants])
