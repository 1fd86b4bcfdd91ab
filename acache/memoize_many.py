"""`build_many`: a function that loads many values in one call, made into a cached one with a key for each value."""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from inspect import Parameter
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, overload

from .clock import Clock
from .errors import ConfigurationError, InvalidKey, KeyMissing, short
from .events import Counters, Stats, logger
from .inputs import several
from .loading import ABSENT, Load, Window
from .memoize import Binder, Rules, in_thread, type_hints

__all__ = ["BoundBatch", "CachedBatch", "Decorate", "DecorateBlocking", "HooksMany", "UnboundBatch", "build_many"]

P = ParamSpec("P")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
S = TypeVar("S")
F_contra = TypeVar("F_contra", contravariant=True)

Call: typing.TypeAlias = Callable[[], Awaitable[Any]]
Make: typing.TypeAlias = Callable[[str, Call], Load]
_MISS: Final = object()


class CachedBatch(Protocol[K, P, V]):
    """What `acache.Cache.cached_many` returns: a coroutine function with these attributes.

    The first argument is the items; what the other ones are is part of every key, save those named in ``ignore=``,
    which `key`, `invalidate`, `peek` and `set` do not take.  Those of a method take the instance before the items,
    as those of a `CachedFunction` do.
    """

    __name__: str
    __qualname__: str

    def __call__(self, items: Iterable[K], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, dict[K, V]]:
        """Return the values of ``items``, calling the function once for all that are missing.

        What the function's result leaves out is left out here, and not stored; an old value of it is removed.
        """
        ...

    @property
    def __wrapped__(self) -> Callable[Concatenate[list[K], P], Any]:
        """The function itself: a coroutine function, or with ``thread=True`` a plain one."""
        ...

    async def one(self, item: K, /, *args: P.args, **kwargs: P.kwargs) -> V:
        """Return the value of one item; what is missing is loaded together with what others ask for meanwhile.

        Those who ask in one turn of the event loop, or within ``batch_window`` seconds, share one call of the
        function, if they pass the same other arguments: the very same objects.

        Raises:
            KeyMissing: the function's result leaves it out.
        """
        ...

    def key(self, item: K, /, *args: Any, **kwargs: Any) -> str:
        """Return the key of one item."""
        ...

    async def invalidate(self, items: Iterable[K], /, *args: Any, **kwargs: Any) -> int:
        """Remove the values of ``items``; tell how many there were.  See `acache.Cache.delete_many`."""
        ...

    async def invalidate_all(self) -> None:
        """Remove every value of this function; see `CachedFunction.invalidate_all`."""
        ...

    async def refresh(self, items: Iterable[K], /, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Call the function for all ``items`` now and store what it returns; remove what it leaves out."""
        ...

    async def bypass(self, items: Iterable[K], /, *args: P.args, **kwargs: P.kwargs) -> Mapping[K, V]:
        """Call the function, neither reading nor writing the cache."""
        ...

    def peek(self, items: Iterable[K], /, *args: Any, **kwargs: Any) -> dict[K, V]:
        """Return the fresh values in the near tier; synchronous."""
        ...

    async def set(self, values: Mapping[K, V], /, *args: Any, **kwargs: Any) -> None:
        """Store values."""
        ...

    def stats(self) -> Stats:
        """Return the counters of this function alone; ``loads`` counts values, not calls."""
        ...


class _Helpers(Protocol[K, V]):
    """The helpers of a method: those of a `CachedBatch`, with the instance first where they need it."""

    async def one(self, /, *args: Any, **kwargs: Any) -> V:
        """See `CachedBatch.one`."""
        ...

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        """See `CachedBatch.key`."""
        ...

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> int:
        """See `CachedBatch.invalidate`."""
        ...

    async def invalidate_all(self) -> None:
        """See `CachedBatch.invalidate_all`."""
        ...

    async def refresh(self, /, *args: Any, **kwargs: Any) -> dict[K, V]:
        """See `CachedBatch.refresh`."""
        ...

    async def bypass(self, /, *args: Any, **kwargs: Any) -> Mapping[K, V]:
        """See `CachedBatch.bypass`."""
        ...

    def peek(self, /, *args: Any, **kwargs: Any) -> dict[K, V]:
        """See `CachedBatch.peek`."""
        ...

    async def set(self, /, *args: Any, **kwargs: Any) -> None:
        """See `CachedBatch.set`."""
        ...

    def stats(self) -> Stats:
        """See `CachedBatch.stats`."""
        ...


class BoundBatch(_Helpers[K, V], Protocol[K, P, V]):
    """A `CachedBatch` that is a method, found where it is bound: called, it takes the items."""

    def __call__(self, items: Iterable[K], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, dict[K, V]]:
        """See `CachedBatch.__call__`."""
        ...


class UnboundBatch(_Helpers[K, V], Protocol[F_contra, K, P, V]):
    """A `CachedBatch` whose items are the second argument, for the first one is ``self`` or ``cls``."""

    __name__: str
    __qualname__: str

    def __call__(
        self, first: F_contra, items: Iterable[K], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, dict[K, V]]:
        """See `CachedBatch.__call__`."""
        ...

    @overload
    def __get__(self: UnboundBatch[type[S], K, P, V], instance: None, owner: type[S]) -> BoundBatch[K, P, V]: ...
    @overload
    def __get__(self, instance: None, owner: Any = None) -> UnboundBatch[F_contra, K, P, V]: ...
    @overload
    def __get__(self: UnboundBatch[type[S], K, P, V], instance: S, owner: Any = None) -> BoundBatch[K, P, V]: ...
    @overload
    def __get__(self: UnboundBatch[S, K, P, V], instance: S, owner: Any = None) -> BoundBatch[K, P, V]: ...


class Decorate(Protocol):
    """What `acache.Cache.cached_many` makes of a coroutine function, and of a method."""

    # The two overlap for a first parameter that takes a list, which then is the items.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[list[K], P], Coroutine[Any, Any, Mapping[K, V]]], /
    ) -> CachedBatch[K, P, V]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, list[K], P], Coroutine[Any, Any, Mapping[K, V]]], /
    ) -> UnboundBatch[S, K, P, V]: ...


class DecorateBlocking(Protocol):
    """What it makes of a function that blocks."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[list[K], P], Mapping[K, V]], /
    ) -> CachedBatch[K, P, V]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, list[K], P], Mapping[K, V]], /
    ) -> UnboundBatch[S, K, P, V]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksMany:
    """What a cached batch function needs of its cache."""

    load_many: Callable[..., Awaitable[dict[str, Any]]]
    resolve: Callable[[Load], Awaitable[Any]]
    delete_many: Callable[[Iterable[str]], Awaitable[int]]
    invalidate_all: Callable[[Binder], Awaitable[None]]
    peek: Callable[[str, Any], Any]
    store: Callable[..., Awaitable[None]]
    counters: Counters
    clock: Clock
    tasks: set[asyncio.Task[None]]


def build_many(
    function: Callable[Concatenate[list[K], P], Any],
    rules: Rules,
    hooks: HooksMany,
    window: float,
) -> CachedBatch[K, P, Any]:
    """Return the cached form of ``function``.

    Raises:
        ConfigurationError: its first parameter cannot be the items, or rules that name parameters it does not have.
    """
    behind: _Behind[K, Any] = _Behind(function, rules, hooks, window)

    async def wrapper(*args: Any, **kwargs: Any) -> dict[Any, Any]:
        return await behind.load_many(args, kwargs)

    update_wrapper(wrapper, function)
    for name in ("one", "key", "invalidate", "invalidate_all", "refresh", "bypass", "peek", "set", "stats"):
        setattr(wrapper, name, getattr(behind, name))
    return typing.cast("CachedBatch[K, P, Any]", wrapper)


class _Behind(Generic[K, V]):
    """What stands behind one wrapper."""

    def __init__(self, function: Callable[..., Any], rules: Rules, hooks: HooksMany, window: float) -> None:
        self._function: Final = in_thread(function) if rules.thread else function
        self._rules: Final = rules
        self._hooks: Final = hooks
        hints = type_hints(function)
        self._items: Final = _items_parameter(function, rules)
        of_items, of_result = (typing.get_args(hints.get(name)) for name in (self._items, "return"))
        self._binder: Final = Binder(function, rules, {self._items: of_items[0] if of_items else Any})
        if not self._binder.depends_on(self._items):
            msg = f"{self._binder.owner}: key={rules.key!r} leaves out {self._items!r}: items need keys of their own"
            raise ConfigurationError(msg)
        several_types = 2  # of a mapping: its keys' and its values'
        self._type: Final = rules.type or (of_result[1] if len(of_result) == several_types else None)
        self._seconds: Final = window
        self._windows: Final[dict[tuple[int, ...], list[Window[K]]]] = {}
        """Those that are open: more than one where equal items with different keys are asked for."""

    # Calls ----------------------------------------------------------------------------------------------------------

    async def load_many(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[K, V]:
        bound = self._binder.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return await self._load_all(bound.arguments)

    async def _load_all(self, arguments: dict[str, Any], *, fresh: bool = True) -> dict[K, V]:
        by_key = self._by_key(arguments)
        values = await self._hooks.load_many(
            list(by_key),
            partial(self._call, arguments, by_key),
            partial(self._load, arguments, by_key),
            counters=self._hooks.counters,
            type_=self._type,
            name=self._binder.owner,
            fresh=fresh,
        )
        return {by_key[key]: value for key, value in values.items()}

    async def one(self, /, *args: Any, **kwargs: Any) -> V:
        arguments = self._binder.bind_all(args, kwargs)
        item: K = arguments[self._items]
        key = self._binder.key_of(arguments)
        call = partial(self._ask, arguments, key, item)
        load = self._load(arguments, {key: item}, key, call)._replace(windowed=True)
        value: V = await self._hooks.resolve(load)
        if value is ABSENT:
            msg = f"{self._binder.owner} returned nothing for {item!r}"
            raise KeyMissing(msg)
        return value

    async def _ask(self, arguments: dict[str, Any], key: str, item: K) -> Any:
        """Load one item, in the window of those who ask with the same other arguments."""
        shared = tuple([id(value) for name, value in arguments.items() if name != self._items])
        windows = self._windows[shared] = [window for window in self._windows.get(shared, ()) if window.open]
        window = next((window for window in windows if window.takes(key, item)), None)
        if window is None:
            # It holds the other arguments, so their ids stay theirs for as long as it is here.
            call = partial(self._call, arguments)
            window = Window(call, self._hooks.tasks, partial(self._close, shared), self._binder.owner)
            windows.append(window)
            if self._seconds:
                self._hooks.clock.call_later(self._seconds, window.close)
            else:
                asyncio.get_running_loop().call_soon(window.close)
        return await window.load(key, item)

    def _close(self, shared: tuple[int, ...], window: Window[K]) -> None:
        if window in (windows := self._windows.get(shared, [])):
            windows.remove(window)
            if not windows:
                del self._windows[shared]

    async def _call(self, arguments: dict[str, Any], by_key: Mapping[str, K], keys: Sequence[str]) -> dict[str, V]:
        loaded = await self._call_function(arguments, [by_key[key] for key in keys])
        if not isinstance(loaded, Mapping):
            kind = type(loaded).__qualname__
            msg = f"{self._binder.owner} returned a {kind}: return a dict of values by item"
            raise TypeError(msg)
        found = {key: loaded[by_key[key]] for key in keys if by_key[key] in loaded}
        if loaded and not found:
            logger.warning(
                "%s was asked for %s, and returned %s: nothing of that is stored",
                self._binder.owner,
                short([by_key[key] for key in keys]),
                short(list(loaded)),
            )
        return found

    def _call_function(self, arguments: dict[str, Any], items: list[K]) -> Awaitable[Mapping[K, V]]:
        bound = self._binder.bound(arguments | {self._items: items})
        return typing.cast("Awaitable[Mapping[K, V]]", self._function(*bound.args, **bound.kwargs))

    def _by_key(self, arguments: dict[str, Any]) -> dict[str, K]:
        items = several(arguments[self._items], self._items)
        by_key: dict[str, K] = {}
        for item in typing.cast("Sequence[K]", items):
            key = self._binder.key_of(arguments | {self._items: item})
            if by_key.setdefault(key, item) != item:
                msg = f"{self._binder.owner}: {short(item)} and {short(by_key[key])} would share the key {key!r}"
                raise InvalidKey(msg)
        try:
            different = len(set(by_key.values()))
        except TypeError as error:
            msg = f"{self._binder.owner}: {self._items} are the keys of its result, and some cannot be: {error}"
            raise InvalidKey(msg) from error
        if different < len(by_key):
            msg = (
                f"{self._binder.owner}: among {self._items} are some that are equal and have two keys, as 1 and 1.0 do:"
                " a dict of results cannot tell them apart, so ask for them in two calls"
            )
            raise InvalidKey(msg)
        return by_key

    def _load(self, arguments: dict[str, Any], by_key: Mapping[str, K], key: str, call: Call) -> Load:
        rules = self._rules
        tags = self._binder.tags(arguments | {self._items: by_key[key]})
        counters = self._hooks.counters
        return Load(key, call, rules.policy, counters, tags, self._type, rules.condition, rules.ttl, batched=True)

    # Helpers, with one item or with values where the function takes the items ---------------------------------------

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        return self._binder.key_of(self._binder.bind_key(args, kwargs))

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> int:
        return await self._hooks.delete_many(list(self._by_key(self._binder.bind_key(args, kwargs))))

    async def invalidate_all(self) -> None:
        await self._hooks.invalidate_all(self._binder)

    async def refresh(self, /, *args: Any, **kwargs: Any) -> dict[K, V]:
        return await self._load_all(self._binder.bind_all(args, kwargs), fresh=False)

    async def bypass(self, /, *args: Any, **kwargs: Any) -> Mapping[K, V]:
        arguments = self._binder.bind_all(args, kwargs)
        return await self._call_function(arguments, list(arguments[self._items]))

    def peek(self, /, *args: Any, **kwargs: Any) -> dict[K, V]:
        by_key = self._by_key(self._binder.bind_key(args, kwargs))
        found = {item: self._hooks.peek(key, _MISS) for key, item in by_key.items()}
        return {item: value for item, value in found.items() if value is not _MISS}

    async def set(self, /, *args: Any, **kwargs: Any) -> None:
        arguments, rules = self._binder.bind_key(args, kwargs), self._rules
        values: Mapping[K, V] = arguments[self._items]
        for key, item in self._by_key(arguments).items():
            value = values[item]
            ttl = rules.policy.ttl if rules.ttl is None else rules.ttl(value)
            await self._hooks.store(key, value, ttl=ttl, tags=self._binder.tags(arguments | {self._items: item}))

    def stats(self) -> Stats:
        return self._hooks.counters.snapshot()


def _items_parameter(function: Callable[..., Any], rules: Rules) -> str:
    """Return the name of the parameter that takes the items: the first one, or the first one after self."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    first = next(iter(parameters), None)
    takes = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    if first is None or first.kind not in takes or first.name in rules.ignore:
        msg = (
            f"{function.__module__}.{function.__qualname__}(): cached_many takes a function whose first parameter,"
            " after self or cls, is the list of items to load"
        )
        raise ConfigurationError(msg)
    return first.name
