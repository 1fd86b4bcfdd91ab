"""What a function is called in its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType, ModuleType
from typing import Any

from .errors import ConfigurationError
from .keys import argument_text, module_name

__all__ = ["key_prefix", "named", "owner_of"]


def named(function: Any) -> Any:
    """Return what has the name: the function under partial applications and bound methods."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def owner_of(function: Any) -> str:
    """Return how messages call a function."""
    inner = named(function)
    return f"{inner.__module__}.{inner.__qualname__}()"


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
