"""`build`: a coroutine function and its rules, made into a cached one.

The wrapper is compiled once for the function's own signature, so Python itself binds positional, keyword and default
spellings to the same parameters, and a hit needs no key text: ``shortcuts`` maps the arguments to what stands in the
near tier under their key, and the near tier drops a shortcut together with its record.
"""

from __future__ import annotations

import inspect
import typing
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from inspect import Parameter
from textwrap import indent
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from .clock import Seconds
from .coherence import Trust
from .errors import ConfigurationError, InvalidKey, short
from .events import Counters, Stats
from .keys import Template, arguments_text, check_key
from .loading import Load, LoadContext, running_load
from .memory import Space, terms_of
from .names import fixed_arguments, key_prefix, named, owner_of
from .policy import Policy

__all__ = [
    "Binder",
    "CachedFunction",
    "Hooks",
    "Rules",
    "build",
    "check_function",
    "in_thread",
    "type_hints",
]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
F_contra = TypeVar("F_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

_EXACT: Final = frozenset((int, str, bool, bytes, type(None)))
"""Types of which equal values always have equal key texts."""
_WITH_NAMES: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
"""Parameters that an argument can be passed to by name."""
_STARS: Final[dict[Any, str]] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


class _First(Protocol[F_contra, P, R_co]):
    """A coroutine function that takes at least one argument."""

    def __call__(self, first: F_contra, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...


class CachedFunction(Protocol[P, R]):
    """What the decorators return: a coroutine function with these attributes.

    `key`, `invalidate`, `peek` and `set` take the arguments that make the key: those named in ``ignore=`` are left
    out.  `refresh` and `bypass` call the function and take all of them.
    """

    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return the cached result for these arguments, calling the function if there is none."""
        ...

    # What kind of method it is, the type of its first parameter tells: @classmethod and @staticmethod leave an object
    # with a type of its own as it is.  A first parameter that takes anything is no ``cls``.
    @typing.overload
    def __get__(self: _First[object, Q, Any], instance: None, owner: Any = None) -> CachedFunction[P, R]: ...
    @typing.overload
    def __get__(self: _First[type[S], Q, R], instance: None, owner: type[S]) -> CachedMethod[Q, R]: ...
    @typing.overload
    def __get__(self: _First[type[S], Q, R], instance: S, owner: Any = None) -> CachedMethod[Q, R]: ...
    @typing.overload
    def __get__(self: _First[S, Q, R], instance: S, owner: Any = None) -> CachedMethod[Q, R]: ...
    @typing.overload
    def __get__(self, instance: Any, owner: Any = None) -> CachedFunction[P, R]: ...

    @property
    def __wrapped__(self) -> Callable[P, Any]:
        """The function itself: a coroutine function, or with ``thread=True`` a plain one."""
        ...

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """Return the key these arguments have in the cache."""
        ...

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """Remove the result for these arguments; see `acache.Cache.delete`."""
        ...

    async def invalidate_all(self) -> None:
        """Remove every result of this function; see `acache.Cache.invalidate_tags`.

        It finds them by those of the function's ``tags`` that have no fields; what else carries these goes too.

        Raises:
            ConfigurationError: there is no such tag, and there is a far tier or a ``key=``.
            BackendError: the far tier did not confirm.
        """
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function now and store what it returns."""
        ...

    async def bypass(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, neither reading nor writing the cache."""
        ...

    def peek(self, /, *args: Any, **kwargs: Any) -> R | None:
        """Return the fresh result in the near tier, or ``None``; synchronous."""
        ...

    async def set(self, result: R, /, *args: Any, **kwargs: Any) -> None:
        """Store ``result`` for these arguments."""
        ...

    def stats(self) -> Stats:
        """Return the counters of this function alone."""
        ...


class CachedMethod(Protocol[P, R]):
    """A `CachedFunction` found through an instance, or a class method found through its class.

    Called, it is bound; its helpers are the function's own.  They need no instance where ``ignore=("self",)`` leaves it
    out of the key, and otherwise take it as an argument; so do `refresh` and `bypass`, always:
    ``Shop.price.refresh(shop, 1)``.  With class methods it is the class.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return the cached result for these arguments, calling the method if there is none."""
        ...

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """See `CachedFunction.key`."""
        ...

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        """See `CachedFunction.invalidate`."""
        ...

    async def invalidate_all(self) -> None:
        """See `CachedFunction.invalidate_all`."""
        ...

    async def refresh(self, /, *args: Any, **kwargs: Any) -> R:
        """See `CachedFunction.refresh`."""
        ...

    async def bypass(self, /, *args: Any, **kwargs: Any) -> R:
        """See `CachedFunction.bypass`."""
        ...

    def peek(self, /, *args: Any, **kwargs: Any) -> R | None:
        """See `CachedFunction.peek`."""
        ...

    async def set(self, result: R, /, *args: Any, **kwargs: Any) -> None:
        """See `CachedFunction.set`."""
        ...

    def stats(self) -> Stats:
        """See `CachedFunction.stats`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a cached function needs of its cache."""

    resolve: Callable[[Load], Awaitable[Any]]
    reload: Callable[[Load], Awaitable[Any]]
    delete: Callable[[str], Coroutine[Any, Any, bool]]
    invalidate_all: Callable[[Binder], Awaitable[None]]
    peek: Callable[[str], Any]
    store: Callable[..., Awaitable[None]]
    counters: Counters
    now: Callable[[], float]
    space: Space | None
    """The near tier, if a hit takes no more than a look at it."""
    trust: Trust | None
    """Until when the near tier may answer, if that may end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the user said about one function."""

    policy: Policy
    ttl: Callable[[Any], Seconds | None] | None = None
    key: str | Callable[..., str] | None = None
    tags: Iterable[str] = ()
    ignore: Iterable[str] = ()
    version: str | int | None = None
    condition: Callable[[Any], bool] | None = None
    type: Any = None
    thread: bool = False


def build(function: Callable[P, Any], rules: Rules, hooks: Hooks) -> CachedFunction[P, Any]:
    """Return the cached form of ``function``.

    Raises:
        ConfigurationError: rules that name parameters it does not have.
    """
    behind = _Behind(function, rules, hooks)
    wrapper: Any = _compile(behind)
    update_wrapper(wrapper, named(function))
    wrapper.__wrapped__ = function
    for name in ("key", "invalidate", "invalidate_all", "refresh", "bypass", "peek", "set", "stats"):
        setattr(wrapper, name, getattr(behind, name))
    return typing.cast("CachedFunction[P, Any]", wrapper)


def in_thread(function: Callable[..., R]) -> Callable[..., Coroutine[Any, Any, R]]:
    """Return a coroutine function that calls ``function`` in a worker thread."""
    from anyio import to_thread  # noqa: PLC0415 - for those who use it

    async def call(*args: Any, **kwargs: Any) -> R:
        # Abandoned, because nothing can stop a thread: a caller who leaves, or load_timeout, need not wait for it.
        result = await to_thread.run_sync(partial(function, *args, **kwargs), abandon_on_cancel=True)
        if inspect.iscoroutine(result):
            result.close()
            msg = f"{owner_of(function)} returned a coroutine, which no thread runs: leave thread=True out"
            raise TypeError(msg)
        return result

    return call


class _Behind:
    """What stands behind one wrapper: the long way of a call, and the helpers."""

    def __init__(self, function: Callable[..., Any], rules: Rules, hooks: Hooks) -> None:
        self.function: Final[Callable[..., Coroutine[Any, Any, Any]]] = (
            in_thread(function) if rules.thread else function
        )
        self.binder: Final = Binder(function, rules)
        self.hooks: Final = hooks
        self.shortcuts: Final[dict[Any, Any]] = {}
        self._rules: Final = rules
        self._type: Final = rules.type if rules.type is not None else _return_type(function)

    def load(self, arguments: Mapping[str, Any], call: Callable[[], Awaitable[Any]]) -> Load:
        rules, key, tags = self._rules, self.binder.key_of(arguments), self.binder.tags(arguments)
        return Load(key, call, rules.policy, self.hooks.counters, tags, self._type, rules.condition, rules.ttl)

    def shorten(self, key: str, given: tuple[Any, ...], arguments: Mapping[str, Any]) -> None:
        space = self.hooks.space
        if space is None:
            return
        makes_key = [*[arguments[name] for name in self.binder.key_names], *self.binder.fixed.values()]
        for value in makes_key:
            if type(value) not in _EXACT and not _is_uuid(value):
                return
        name = given[0] if len(given) == 1 else given  # as `_compile` writes it
        stored = space.records.get(key)
        if stored is not None and name not in self.shortcuts:
            fresh_until, _, extra = terms_of(stored)
            cells = () if extra is None else extra.cells
            if len(cells) == len(self.binder.tag_templates):  # not where somebody else gave it other tags
                space.link(key, self.shortcuts, name, (stored[0], fresh_until, key, *map(type, given), *cells))

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        return self.binder.key_of(self.binder.bind_key(args, kwargs))

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> bool:
        return await self.hooks.delete(self.key(*args, **kwargs))

    async def invalidate_all(self) -> None:
        await self.hooks.invalidate_all(self.binder)

    async def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        arguments, call = self.binder.bind_all(args, kwargs), partial(self.function, *args, **kwargs)
        return await self.hooks.reload(self.load(arguments, call))

    async def bypass(self, /, *args: Any, **kwargs: Any) -> Any:
        outer = running_load.set(LoadContext(""))
        try:
            return await self.function(*args, **kwargs)
        finally:
            running_load.reset(outer)

    def peek(self, /, *args: Any, **kwargs: Any) -> Any:
        return self.hooks.peek(self.key(*args, **kwargs))

    async def set(self, result: Any, /, *args: Any, **kwargs: Any) -> None:
        arguments = self.binder.bind_key(args, kwargs)
        key, rules = self.binder.key_of(arguments), self._rules
        ttl = rules.policy.ttl if rules.ttl is None else rules.ttl(result)
        await self.hooks.store(key, result, ttl=ttl, tags=self.binder.tags(arguments))

    def stats(self) -> Stats:
        return self.hooks.counters.snapshot()


def _is_uuid(value: object) -> bool:
    return type(value).__module__ == "uuid" and type(value).__name__ == "UUID"


def check_function(function: Any, *, thread: bool) -> None:
    """Check that a function can be cached.

    Raises:
        ConfigurationError: it cannot; the message says what would help.
    """
    name = getattr(named(function), "__qualname__", repr(function))
    if isinstance(function, (classmethod, staticmethod)):
        msg = f"{name}: put the cached decorator below @{type(function).__name__}, next to the def"
    elif callable(function) and not hasattr(named(function), "__qualname__"):
        kind = type(named(function)).__qualname__
        msg = (
            f"a {kind} has no name to make keys from: decorate a function written with def, or the object's"
            " __call__, as in cached()(obj.__call__)"
        )
    elif inspect.isasyncgenfunction(function) or (thread and inspect.isgeneratorfunction(function)):
        kind = "a generator" if thread else "an async generator"
        msg = f"{name} is {kind}, whose items come one by one: cache a function that returns a list of them"
    elif thread and inspect.iscoroutinefunction(function):
        msg = f"{name} is a coroutine function and does not block: leave thread=True out"
    elif not thread and not inspect.iscoroutinefunction(function):
        msg = f"{name} is not a coroutine function: write it with async def, or pass thread=True if it blocks"
    elif not callable(function):
        msg = f"{name} cannot be called: cache a function written with def"
    else:
        return
    raise ConfigurationError(msg)


def type_hints(function: Any) -> dict[str, Any]:
    """Return the annotations that can be evaluated."""
    try:
        return typing.get_type_hints(named(function))
    except (NameError, TypeError, AttributeError):  # a name that exists for the type checker only
        return {}


def _annotations(function: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return what parameters of a function, or of what it is made of, are annotated with."""
    known = {**inspect.signature(named(function)).parameters, **inspect.signature(function).parameters}
    hints = type_hints(function)
    return {name: hints.get(name, known[name].annotation) for name in names}


def _return_type(function: Any) -> Any:
    annotation = type_hints(function).get("return")
    return None if annotation in (Any, type(None)) or isinstance(annotation, TypeVar) else annotation


class Binder:
    """Arguments to keys and tags, for one function."""

    def __init__(self, function: Callable[..., Any], rules: Rules, declared: Mapping[str, Any] | None = None) -> None:
        self.signature: Final = inspect.signature(function)
        self.owner: Final = owner_of(function)
        parameters = self.signature.parameters
        if isinstance(rules.ignore, str):
            msg = f"{self.owner}: ignore={rules.ignore!r}: pass several, as in ignore=({rules.ignore!r},)"
            raise ConfigurationError(msg)
        outside = named(function).__qualname__.rpartition(".")[0]
        first = next(iter(parameters), "")
        of_a_class = outside.rpartition(".")[2] not in ("", "<locals>")
        self._owned_by: Final = first if of_a_class and first in ("self", "cls") else ""
        self._ignored: Final = frozenset(rules.ignore)
        for name in sorted(self._ignored - set(parameters)):
            msg = f"{self.owner}: ignore names {name!r}, which is not a parameter (there are: {', '.join(parameters)})"
            raise ConfigurationError(msg)
        kept = [parameter for name, parameter in parameters.items() if name not in self._ignored]
        self._key_signature: Final = inspect.Signature(kept)
        self.key_names: Final = [parameter.name for parameter in kept]
        self.simple: Final = all(p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD) for p in kept)
        fixed = fixed_arguments(function)
        annotations = _annotations(function, (*parameters, *fixed)) | dict(declared or {})
        self.prefix: Final = None if rules.key is not None else key_prefix(function, rules.version)
        self._made: Final = rules.key if callable(rules.key) else None
        self._template: Template | None = None
        if isinstance(rules.key, str):
            if not rules.key:
                msg = f"{self.owner}: key='' is empty: leave it out for a key made of all arguments"
                raise ConfigurationError(msg)
            self._template = Template(rules.key, annotations, self.owner)
            if self._template.names & self._ignored:
                msg = f"{self.owner}: key={rules.key!r} uses a parameter that ignore leaves out"
                raise ConfigurationError(msg)
        elif rules.key is not None and self._made is None:
            msg = f"{self.owner}: key={rules.key!r}: a template such as 'user:{{user_id}}', or a function"
            raise ConfigurationError(msg)
        self._rest: Final = next((p.name for p in kept if p.kind is Parameter.VAR_KEYWORD), "")
        self._by_name: Final = self._made is not None and self._takes_names(self._made, kept)
        if isinstance(rules.tags, str) or not isinstance(rules.tags, Iterable):
            msg = f"{self.owner}: tags={rules.tags!r}: pass several, as in [{rules.tags!r}]"
            raise ConfigurationError(msg)
        for tag in rules.tags:
            if not isinstance(tag, str) or not tag:
                msg = f"{self.owner}: tags={rules.tags!r}: a tag is a non-empty str, and may be a template"
                raise ConfigurationError(msg)
        self.tag_templates: Final = [Template(tag, annotations, self.owner, "tag") for tag in rules.tags]
        templates = [*self.tag_templates, *([self._template] if self._template is not None else [])]
        used = {name for template in templates for name in template.names}
        self.fixed: Final = {name: value for name, value in fixed.items() if name in used}
        """What the function was given before, by partial application or as a method, and its templates name."""
        _check_rules(rules, self.owner)
        # No text of a field holds a bare "%", so none can end like this.
        self._version: Final = "" if rules.version is None else f"%v{rules.version}"

    def _takes_names(self, made: Callable[..., str], kept: Sequence[Parameter]) -> bool:
        """Tell whether a function for ``key=`` gets what makes the key by name; refuse one that would not get it right.

        It does if it shares a name with it and can be called so: ``lambda lang, user_id: ...`` would get them swapped.
        So it does if it takes them by name only, as ``lambda *, a, b: ...`` may.
        """
        try:
            takes = inspect.signature(made)
        except (TypeError, ValueError):  # of some builtins nobody knows it
            return False
        for kind, stars in _STARS.items():
            variadic = [p for p in kept if p.kind is kind]
            if variadic and all(p.kind is not kind for p in takes.parameters.values()):
                msg = (
                    f"{self.owner}: key={made!r} has no parameter for what {variadic[0]} collects, which is part of the"
                    f" key: give it one, such as {stars}rest, or leave it out with ignore=({variadic[0].name!r},)"
                )
                raise ConfigurationError(msg)
        by_name = [p.name for p in kept if p.kind is Parameter.KEYWORD_ONLY]
        by_position = [p.name for p in kept if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
        own = {p.name for p in takes.parameters.values() if p.kind in _WITH_NAMES}
        shared = own & {*by_position, *by_name}
        nameless = any(p.kind is Parameter.VAR_POSITIONAL for p in kept)
        names_fit = not nameless and not isinstance(_passed(takes, (), [*by_position, *by_name]), TypeError)
        if shared and names_fit:
            return True
        passed = _passed(takes, by_position, by_name)
        if isinstance(passed, TypeError):
            if names_fit:
                return True
            msg = f"{self.owner}: key={made!r} does not take what makes the key ({passed}): {_call_text(kept)}"
            raise ConfigurationError(msg) from passed
        if wrong := sorted(name for name in shared if passed.get(name) != name):
            msg = (
                f"{self.owner}: key={made!r} would get another argument as its {wrong[0]!r}: it cannot be called by"
                f" name alone, and {_call_text(kept)}. Take what it needs by its name and the rest by **_, keep"
                " to the function's order, or use other names"
            )
            raise ConfigurationError(msg)
        return False

    def depends_on(self, parameter: str) -> bool:
        """Tell whether a parameter is part of the key, as far as the rules tell."""
        return self._template is None or parameter in self._template.names

    def key_of(self, arguments: Mapping[str, Any]) -> str:
        """Return the key for bound arguments."""
        if self._template is not None:
            return check_key(self._template(self._with_fixed(arguments)) + self._version)
        kept = {name: arguments[name] for name in self.key_names} if self._ignored else arguments
        if self._made is not None:
            if self._by_name:
                rest = kept.get(self._rest, {})
                by_name = {name: value for name, value in kept.items() if name != self._rest}
                return check_key(self._made(**by_name, **rest)) + self._version
            bound = inspect.BoundArguments(self._key_signature, OrderedDict(kept))
            return check_key(self._made(*bound.args, **bound.kwargs)) + self._version
        return f"{self.prefix}({arguments_text(kept, self.owner)})"

    def tags(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the tags for bound arguments."""
        given = self._with_fixed(arguments)
        return tuple(dict.fromkeys(template(given) for template in self.tag_templates))

    def _with_fixed(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**self.fixed, **arguments} if self.fixed else arguments  # a batch comes here for each of thousands

    @property
    def common_tags(self) -> tuple[str, ...]:
        """The tags that every result of the function carries."""
        return tuple([template({}) for template in self.tag_templates if not template.names])

    def bound(self, arguments: dict[str, Any]) -> inspect.BoundArguments:
        """Return the call that passes ``arguments``."""
        return inspect.BoundArguments(self.signature, OrderedDict(arguments))

    def bind_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Bind a whole call."""
        return self._with_instance(_bind(self.signature, args, kwargs, self.owner))

    def bind_key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Bind the arguments that make the key; those of ``ignore`` are not among them."""
        return self._with_instance(_bind(self._key_signature, args, kwargs, self.owner))

    def _with_instance(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Check that a helper of a method got its instance, and no argument in its place.

        ``shop.price.invalidate(1)`` would make a key from ``self=1`` if the other parameter has a default, and remove
        nothing.
        """
        if self._owned_by and self._owned_by in arguments:
            given = arguments[self._owned_by]
            if self._owned_by == "self" and type(given).__module__ == "builtins":
                msg = f"{self.owner}: self={short(given)}: the helpers of a method take the instance first"
                raise InvalidKey(msg)
            if self._owned_by == "cls" and not isinstance(given, type):
                msg = f"{self.owner}: cls={short(given)}: the helpers of a class method take the class first"
                raise InvalidKey(msg)
        return arguments


def _call_text(kept: Sequence[Parameter]) -> str:
    named = [p.name for p in kept if p.kind is Parameter.KEYWORD_ONLY]
    call = [f"{p.name}={p.name}" if p.name in named else f"{_STARS.get(p.kind, '')}{p.name}" for p in kept]
    by_name = f", {' and '.join(named)} by name" if named else ""
    return f"it is called with ({', '.join(call)}){by_name}, which are the parameters without those that ignore names"


def _passed(
    takes: inspect.Signature, by_position: Iterable[str], by_name: Iterable[str]
) -> Mapping[str, Any] | TypeError:
    """Tell which of these arguments each parameter would get, or why they do not fit."""
    try:
        return takes.bind(*by_position, **{name: name for name in by_name}).arguments
    except TypeError as error:
        return error


def _check_rules(rules: Rules, owner: str) -> None:
    if rules.condition is not None and not callable(rules.condition):
        msg = f"{owner}: condition={rules.condition!r}: pass a function of the result"
        raise ConfigurationError(msg)
    for name, rule in (("condition", rules.condition), ("ttl", rules.ttl), ("key", rules.key)):
        if inspect.iscoroutinefunction(rule):
            msg = f"{owner}: {name}={rule!r} is a coroutine function, and nothing awaits it: write it with def"
            raise ConfigurationError(msg)


def _bind(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], owner: str) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        msg = f"{owner}: {error}; these take the arguments that make the key: {signature}"
        raise InvalidKey(msg) from error
    bound.apply_defaults()
    return bound.arguments


# The wrapper --------------------------------------------------------------------------------------------------------

_HIT: Final = """
try:
    {_}value, {_}until, {_}key{stored} = {_}shortcuts[{name}]
    if {_}until > {_}now(){trusted}{same}:
        {_}counters.hits_near += 1
        {_}touch({_}key)
        return {_}value
except {_}no_shortcut:
    pass
"""
_MISS: Final = """
{_}arguments = {arguments}
{_}load = {_}to_load({_}arguments, {_}partial({_}function, {call}))
{_}value = await {_}resolve({_}load)
{_}shorten({_}load.key, ({given}), {_}arguments)
return {_}value
"""


def _compile(behind: _Behind) -> Callable[..., Any]:
    """Write the wrapper for one signature.

    A hit is one dict, one clock, one type check per argument (``1``, ``True`` and ``1.0`` are one key to a dict and
    three to us), one look at each tag and the note for LRU.  Arguments left at their defaults cost an identity check
    each, and have no part in the name under which the dict is asked.
    """
    binder, hooks = behind.binder, behind.hooks
    names = binder.key_names
    mark = "_"  # what no parameter begins with, so that no name of ours hides one of theirs
    while any(name.startswith(mark) for name in binder.signature.parameters):
        mark += "_"
    scope: dict[str, Any] = {
        f"{mark}to_load": behind.load,
        f"{mark}partial": partial,
        f"{mark}function": behind.function,
        f"{mark}resolve": hooks.resolve,
        f"{mark}shorten": behind.shorten,
    }
    parameters, call = _spell(binder.signature, mark, scope)
    arguments = f"{{{', '.join(f'{key!r}: {key}' for key in binder.signature.parameters)}}}"

    def body(given: list[str]) -> str:
        hit = ""
        if hooks.space is not None and binder.simple:
            types = [f"{mark}type_{index}" for index in range(len(given))]
            cells = [f"{mark}cell_{index}" for index in range(len(binder.tag_templates))]
            tests = [f"{one} is {new}.__class__" for one, new in zip(types, given, strict=True)]
            tests += [f"not {cell}.spoilt" for cell in cells]
            hit = _HIT.format(
                _=mark,
                name=given[0] if len(given) == 1 else f"({', '.join(given)})",
                stored="".join([f", {one}" for one in (*types, *cells)]),
                trusted="" if hooks.trust is None else f" < {mark}trust.until",
                same="".join([f" and {test}" for test in tests]),
            )
        return hit + _MISS.format(
            _=mark, given="".join([f"{one}," for one in given]), arguments=arguments, call=", ".join(call)
        )

    lines = [f"async def wrapper({', '.join(parameters)}):"]
    defaults = {name: f"{mark}default_{name}" for name in names if f"{mark}default_{name}" in scope}
    leading = [name for name in names if name not in defaults] or names[:1]
    if hooks.space is not None and binder.simple:
        scope |= {
            f"{mark}shortcuts": behind.shortcuts,
            f"{mark}now": hooks.now,
            f"{mark}trust": hooks.trust,
            f"{mark}counters": hooks.counters,
            f"{mark}touch": hooks.space.touch,
            f"{mark}no_shortcut": (KeyError, TypeError),
        }
        if leading != names:
            unchanged = " and ".join([f"{name} is {defaults[name]}" for name in names if name not in leading])
            lines += [f"    if {unchanged}:", indent(body(leading), " " * 8)]
    lines.append(indent(body(names), " " * 4))
    exec(compile("\n".join(lines), f"<acache wrapper of {binder.owner}>", "exec"), scope)  # noqa: S102 - names only
    compiled: Callable[..., Any] = scope["wrapper"]
    return compiled


def _spell(signature: inspect.Signature, mark: str, scope: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Write a signature's parameters, defaults by names in ``scope``, and the arguments that pass them on."""
    parameters: list[str] = []
    call: list[str] = []
    star = False
    previous: Parameter | None = None
    for parameter in signature.parameters.values():
        if previous is not None and previous.kind is Parameter.POSITIONAL_ONLY != parameter.kind:
            parameters.append("/")
        text = parameter.name
        if parameter.kind is Parameter.VAR_POSITIONAL:
            text, star = f"*{text}", True
        elif parameter.kind is Parameter.VAR_KEYWORD:
            text = f"**{text}"
        elif parameter.kind is Parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        call.append(f"{parameter.name}={parameter.name}" if parameter.kind is Parameter.KEYWORD_ONLY else text)
        if parameter.default is not Parameter.empty:
            scope[f"{mark}default_{parameter.name}"] = parameter.default
            text += f"={mark}default_{parameter.name}"
        parameters.append(text)
        previous = parameter
    if previous is not None and previous.kind is Parameter.POSITIONAL_ONLY:
        parameters.append("/")
    return parameters, call
