"""The decorator: which calls share a result, what the wrapper looks like, and what hangs on it."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import gc
import inspect
import typing
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import fastapi
import msgspec
import pydantic
import pytest
from fastapi import Depends, FastAPI
from httpx import ASGITransport, AsyncClient

from acache import Cache, ConfigurationError, InvalidKey, Memory, MemoryBackend, Policy, cached, current_load
from acache.events import Hit, Loaded, Miss
from acache.testing import FakeClock, FaultyBackend, Recorder


class Calls(list[Any]):
    """What a function was called with."""

    def __call__(self, *arguments: Any) -> Any:
        self.append(arguments if len(arguments) != 1 else arguments[0])
        return self[-1]


@pytest.fixture
def calls() -> Calls:
    """A record of calls."""
    return Calls()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told."""
    return FakeClock()


@pytest.fixture(params=["near", "near over far", "far", "observed", "isolated"])
async def cache(request: pytest.FixtureRequest, clock: FakeClock) -> AsyncIterator[Cache]:
    """A cache of each kind that takes another path through the wrapper."""
    backend = MemoryBackend(clock=clock) if "far" in request.param else None
    memory = {"far": None, "isolated": Memory(isolate=True)}.get(request.param, 1000)
    observers = [Recorder()] if request.param == "observed" else []
    async with Cache(backend, memory=memory, clock=clock, namespace="m", observers=observers) as cache:
        yield cache


# Which calls are one -------------------------------------------------------------------------------------------------


async def test_every_spelling_of_a_call_is_one(cache: Cache, calls: Calls):
    """Positional, by keyword, in any order, with a default left out or written: one key, one load."""

    @cache.cached()
    async def get(user_id: int, verbose: bool = False, *, limit: int = 10) -> Any:
        return calls((user_id, verbose, limit))

    spellings: list[Callable[[Any], Any]] = [
        lambda f: f(1),
        lambda f: f(user_id=1),
        lambda f: f(1, False),
        lambda f: f(1, verbose=False),
        lambda f: f(verbose=False, user_id=1),
        lambda f: f(1, limit=10),
        lambda f: f(limit=10, verbose=False, user_id=1),
    ]
    for spelling in spellings:
        assert await spelling(get) == (1, False, 10)
        assert spelling(get.key) == get.key(1)
    assert len(calls) == 1
    await get(2)
    await get(1, True)
    await get(1, limit=11)
    assert len(calls) == 4


APART: list[Any] = [
    1, 1.0, True, "1", None, "None", b"1", "True", "true", 0, 0.0, -0.0, False, "", b"", (), [], {}, set(), frozenset(), (1,),
    [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, {1: "1"}, ((1,),), (1, 1), ("1,1",), "(1,)", "[1]", Decimal(1), Decimal("1.0"),
    UUID(int=1), str(UUID(int=1)), date(2024, 1, 1), datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01",
    1j, "a,b=1", "a", '"a"', "'a'", "a'", 'a"', "\\", "\n", "%", "{}", "é", 10**30, float("inf"), float("nan"), "nan", "inf",
    Path("a"), Path("b"), int, str, "int",
]  # fmt: skip


async def test_arguments_that_differ_in_type_or_value_are_apart(cache: Cache, calls: Calls):
    """``1``, ``1.0``, ``True`` and ``"1"`` are four keys, ``None`` and ``"None"`` two, and so on for all."""

    @cache.cached(type=object)
    async def show(value: Any) -> Any:
        calls(value)
        return len(calls)

    keys = [show.key(value) for value in APART]
    assert len(set(keys)) == len(APART)
    first = [await show(value) for value in APART]
    assert first == list(range(1, len(APART) + 1))
    for _ in range(2):
        assert [await show(value) for value in APART] == first


async def test_types_stay_apart_in_every_order_of_calls(calls: Calls):
    """The quick path of the wrapper must not take ``True`` for ``1``, whoever came first."""
    for order in ((1, True, 1.0), (True, 1, 1.0), (1.0, True, 1), (1.0, 1, True)):

        @cached()
        async def show(value: Any, second: Any = 0) -> Any:
            return (type(value), type(second))

        for _ in range(3):
            for value in order:
                assert await show(value) == (type(value), int)
                assert await show(value, value) == (type(value), type(value))
                assert await show(1, value) == (int, type(value))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    ONE = "1"


@dataclasses.dataclass
class Query:
    text: str
    page: int = 1


class Where(msgspec.Struct):
    x: int


class Filter(pydantic.BaseModel):
    name: str
    sizes: list[int] = []


async def test_values_with_fields_are_arguments(cache: Cache, calls: Calls):
    """Enums, dataclasses, structs and models are told apart by class and content; unhashable ones too."""

    @cache.cached()
    async def find(what: Any) -> int:
        calls(what)
        return len(calls)

    makers: list[Callable[[], Any]] = [
        lambda: Colour.RED, lambda: Colour.BLUE, lambda: Level.ONE, lambda: Word.ONE, lambda: 1, lambda: "1",
        lambda: Query("a"), lambda: Query("b"), lambda: Query("a", 2), lambda: Where(1), lambda: Where(2),
        lambda: Filter(name="a"), lambda: Filter(name="a", sizes=[1]), lambda: Filter(name="a", sizes=[1, 2]),
        lambda: [Query("a")], lambda: {"q": Query("a")},
    ]  # fmt: skip
    first = [await find(make()) for make in makers]
    assert first == list(range(1, len(makers) + 1))
    assert [await find(make()) for make in makers] == first


async def test_mutable_arguments_are_taken_by_content(cache: Cache, calls: Calls):
    """A list that was changed after the first call is another argument."""

    @cache.cached()
    async def total(numbers: list[int], options: dict[str, Any]) -> int:
        calls(list(numbers))
        return sum(numbers)

    numbers = [1, 2]
    assert await total(numbers, {"a": 1}) == 3
    numbers.append(3)
    assert await total(numbers, {"a": 1}) == 6
    assert await total([1, 2], {"a": 1}) == 3
    assert len(calls) == 2


async def test_the_order_of_a_dict_and_a_set_is_no_difference(cache: Cache):
    """Equal dicts and sets have one key."""

    @cache.cached()
    async def f(value: Any) -> None: ...

    assert f.key({"a": 1, "b": 2}) == f.key({"b": 2, "a": 1})
    assert f.key({"c", "a", "b"}) == f.key({"b", "c", "a"})


async def test_functions_do_not_share_results(cache: Cache):
    """Two functions of one signature have two keys; the key starts with the function's full name."""

    @cache.cached()
    async def one(x: int) -> str:
        return "one"

    @cache.cached()
    async def two(x: int) -> str:
        return "two"

    assert (await one(1), await two(1)) == ("one", "two")
    assert one.key(1).startswith(f"{__name__}.test_functions_do_not_share_results.<locals>.one")


async def test_long_arguments_make_short_keys(cache: Cache, calls: Calls):
    """A key does not grow with its arguments, and long ones that differ at the end are apart."""

    @cache.cached()
    async def size(text: str) -> int:
        calls(text)
        return len(text)

    assert len(size.key("x" * 100_000)) < 1000
    assert await size("x" * 100_000) == 100_000
    assert await size("x" * 99_999 + "y") == 100_000
    assert await size("x" * 100_000) == 100_000
    assert len(calls) == 2


async def test_keyword_arguments_cannot_imitate_each_other(cache: Cache):
    """Text that looks like another argument is not one."""

    @cache.cached()
    async def f(a: str = "", b: str = "", **more: str) -> None: ...

    assert f.key(a='x",b="y') != f.key(a="x", b="y")
    assert f.key(a="x,b=y") != f.key(a="x", b="y")
    assert f.key(c="1", d="2") != f.key(c='1","d":"2')
    assert f.key(c="1", d="2") == f.key(d="2", c="1")


# Signatures ----------------------------------------------------------------------------------------------------------


async def test_every_kind_of_parameter_is_passed_as_it_is(cache: Cache, calls: Calls):
    """Positional-only, keyword-only, ``*args`` and ``**kwargs`` arrive in the function unchanged."""

    @cache.cached()
    async def f(a: int, /, b: int, *rest: int, c: int, d: int = 4, **more: int) -> Any:
        return calls((a, b, rest, c, d, more))

    assert await f(1, 2, c=3) == (1, 2, (), 3, 4, {})
    assert await f(1, b=2, c=3, d=4) == (1, 2, (), 3, 4, {})
    assert len(calls) == 1
    assert await f(1, 2, 5, 6, c=3, e=7) == (1, 2, (5, 6), 3, 4, {"e": 7})
    assert await f(1, 2, 5, 6, c=3, e=7) == (1, 2, (5, 6), 3, 4, {"e": 7})
    assert await f(1, 2, 6, 5, c=3, e=7) == (1, 2, (6, 5), 3, 4, {"e": 7})
    assert await f(1, 2, c=3, a=9) == (1, 2, (), 3, 4, {"a": 9})
    assert len(calls) == 4


@pytest.mark.parametrize("hidden", ["_load", "_wrapper", "_shortcuts", "_value", "_until", "_key", "_now", "_touch",
                                    "_function", "_partial", "_counters", "_type_0", "_default_other", "function", "key",
                                    "args", "kwargs", "call", "arguments", "self", "cls", "result", "KeyError", "TypeError"])  # fmt: skip
async def test_a_parameter_may_have_any_name(cache: Cache, hidden: str):
    """The wrapper's own names and the helpers' parameters are no trap for the function's."""
    namespace: dict[str, Any] = {"__name__": __name__}
    exec(f"async def f({hidden}, other=7):\n    return ({hidden}, other)", namespace)  # noqa: S102
    f = cache.cached()(namespace["f"])
    for _ in range(3):
        assert await f(1) == (1, 7)
        assert await f(**{hidden: 2}) == (2, 7)
    assert f.key(**{hidden: 1}) == f.key(1)
    await f.set((9, 9), **{hidden: 3})
    assert await f(3) == (9, 9)
    assert await f.refresh(**{hidden: 3}) == (3, 7)
    assert await f.bypass(**{hidden: 3}) == (3, 7)
    assert await f.invalidate(**{hidden: 3}) is True


async def test_what_equals_a_default_is_not_taken_for_it(cache: Cache):
    """``1``, ``True`` and ``1.0`` are three arguments where the default is one of them, at every place."""

    @cache.cached()
    async def f(a: object = 1, b: object = 1, *, c: object = "1") -> tuple[object, ...]:
        return (a, b, c)

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}), ((1,), {}), ((True,), {}), ((1.0,), {}), ((1, True), {}), ((1, 1.0), {}), ((True, True), {}),
        ((), {"b": True}), ((), {"c": 1}), ((1, 1), {"c": "1"}), (("1", "1"), {"c": "1"}),
    ]  # fmt: skip
    for _ in range(3):
        for args, kwargs in calls:
            a, b = (*args, 1, 1)[:2]
            expected = (a, kwargs.get("b", b), kwargs.get("c", "1"))
            assert [repr(one) for one in await f(*args, **kwargs)] == [repr(one) for one in expected]


async def test_a_function_without_parameters(cache: Cache, calls: Calls):
    """It has one result."""

    @cache.cached()
    async def now() -> int:
        calls("now")
        return len(calls)

    assert [await now() for _ in range(3)] == [1, 1, 1]
    assert await now.invalidate() is True
    assert await now() == 2
    with pytest.raises(TypeError):
        await now(1)  # type: ignore[call-arg]


async def test_wrong_arguments_are_a_type_error(cache: Cache, calls: Calls):
    """As for the function itself, before anything is looked up."""

    @cache.cached()
    async def f(a: int, *, b: int = 0) -> Any:
        return calls(a)

    for call in (lambda: f(), lambda: f(1, 2), lambda: f(1, c=3), lambda: f(a=1, **{"a ": 1})):  # type: ignore[call-arg, misc]
        with pytest.raises(TypeError):
            await call()
    assert calls == []
    assert cache.stats().misses == 0


async def test_wrong_arguments_of_the_helpers_say_what_they_take(cache: Cache):
    """`key` and `invalidate` are told apart from the call, and name their parameters."""

    @cache.cached(ignore=("session",))
    async def f(session: object, user_id: int) -> None: ...

    assert f.key(5) == f.key(user_id=5)
    with pytest.raises((InvalidKey, TypeError), match="user_id"):
        f.key()
    with pytest.raises((InvalidKey, TypeError), match="user_id"):
        await f.invalidate(1, 2)


async def test_defaults_are_evaluated_once_and_shared(cache: Cache):
    """A default is the very object of the definition, also a mutable one."""
    marker = object()

    @cache.cached(ignore=("held",))
    async def f(x: int, held: Any = marker) -> bool:
        return held is marker

    assert await f(1) is True


async def test_the_wrapper_looks_like_the_function(cache: Cache):
    """Signature, name, docstring, annotations, module and defaults are those of the function."""

    async def get_user(user_id: int, /, *names: str, verbose: bool = False, **more: Any) -> list[str]:
        """Return a user."""
        return []

    get_user.note = "kept"  # type: ignore[attr-defined]
    wrapped: Any = cache.cached()(get_user)
    assert inspect.iscoroutinefunction(wrapped)
    assert asyncio.iscoroutinefunction(wrapped)
    assert inspect.isfunction(wrapped)
    assert inspect.signature(wrapped) == inspect.signature(get_user)
    assert (
        inspect.signature(wrapped, follow_wrapped=False).parameters.keys()
        == inspect.signature(get_user).parameters.keys()
    )
    assert typing.get_type_hints(wrapped) == typing.get_type_hints(get_user)
    assert wrapped.__annotations__ == get_user.__annotations__
    assert (wrapped.__name__, wrapped.__qualname__, wrapped.__module__, wrapped.__doc__, wrapped.note) == (
        get_user.__name__, get_user.__qualname__, __name__, "Return a user.", "kept",
    )  # fmt: skip
    assert wrapped.__wrapped__ is get_user


async def test_the_wrapper_makes_a_true_coroutine(cache: Cache):
    """``create_task``, ``gather``, ``wait_for`` and ``TaskGroup`` take what it returns."""

    @cache.cached()
    async def f(x: int) -> int:
        return x

    coroutine = f(1)
    assert inspect.iscoroutine(coroutine)
    assert await coroutine == 1
    assert await asyncio.create_task(f(1)) == 1
    assert await asyncio.gather(f(1), f(2), f(3)) == [1, 2, 3]
    assert await asyncio.wait_for(f(4), 5) == 4
    async with asyncio.TaskGroup() as group:
        task = group.create_task(f(5))
    assert task.result() == 5


async def test_the_function_runs_in_the_caller_s_context(cache: Cache):
    """A context variable of the caller is seen by the load."""
    from contextvars import ContextVar

    tenant: ContextVar[str] = ContextVar("tenant")

    @cache.cached(key="tenant")
    async def who() -> str:
        return tenant.get()

    tenant.set("acme")
    assert await who() == "acme"


async def test_nothing_runs_before_the_await(calls: Calls):
    """Calling makes a coroutine and does nothing else."""

    @cached()
    async def f(x: int) -> Any:
        return calls(x)

    coroutine = f(1)
    assert calls == []
    coroutine.close()


async def test_wrappers_stack(cache: Cache, calls: Calls):
    """Under another decorator, over another one, and over a partial application's function."""

    def loud(function: Any) -> Any:
        @functools.wraps(function)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return f"{await function(*args, **kwargs)}!"

        return inner

    @cache.cached()
    @loud
    async def over(x: int) -> Any:
        return calls(x)

    @loud
    @cache.cached()
    async def under(x: int) -> Any:
        return calls(x)

    assert [await over(1), await over(x=1), await under(2), await under(x=2)] == ["1!", "1!", "2!", "2!"]
    assert calls == [1, 2]


# Methods -------------------------------------------------------------------------------------------------------------


class Repository:
    """A class as people write them: no equality, no stable text."""

    cache = Cache()
    loads: typing.ClassVar[list[Any]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    @cache.cached()
    async def unsafe(self, x: int) -> int:
        return x

    @cache.cached(ignore=("self",))
    async def shared(self, x: int) -> str:
        """Is the same for every instance."""
        self.loads.append(x)
        return f"{self.name} {x}"

    @cache.cached(key="repository:{self.name}:{x}")
    async def templated(self, x: int) -> str:
        return f"{self.name} {x}"

    @classmethod
    @cache.cached(ignore=("cls",))
    async def of_class(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @classmethod
    @cache.cached()
    async def of_each_class(cls, x: int) -> str:
        return f"{cls.__name__} {x}"

    @staticmethod
    @cache.cached()
    async def of_none(x: int) -> int:
        return x + 1


class Sub(Repository):
    """A subclass, with its own results where the class is part of the key."""


class Stable:
    """Knows who it is."""

    cache = Cache()

    def __init__(self, ident: Any) -> None:
        self.ident = ident

    def __cache_key__(self) -> Any:
        return self.ident

    @cache.cached()
    async def get(self, x: int) -> str:
        return f"{self.ident} {x}"


class StableAttribute(Stable):
    """Knows it without a call."""

    __cache_key__ = "me"  # type: ignore[assignment]


async def test_self_without_a_stable_key_is_refused():
    """The error names the argument and all three remedies; nothing is called."""
    with pytest.raises(InvalidKey, match=r"'self'.*ignore=\('self',\).*__cache_key__.*key="):
        await Repository("a").unsafe(1)


async def test_an_ignored_self_shares_one_result():
    """With ``ignore=("self",)`` all instances have one result, and the helpers take no self."""
    one, other = Repository("one"), Repository("other")
    Repository.loads.clear()
    assert await one.shared(1) == "one 1"
    assert await other.shared(1) == "one 1"
    assert await Repository.shared(other, 1) == "one 1"
    assert await one.shared(x=1) == "one 1"
    assert Repository.loads == [1]
    assert one.shared.key(1) == Repository.shared.key(x=1)
    assert await Repository.shared.invalidate(1) is True
    assert await other.shared(1) == "other 1"
    assert await one.shared.invalidate(1) is True
    assert one.shared.__doc__ == "Is the same for every instance."


async def test_refresh_and_bypass_of_a_method():
    """They call the function, so they need its instance: through the instance, or as the first argument."""
    one = Repository("fresh")
    await Repository("stale").shared(7)
    assert await Repository.shared.bypass(one, 7) == "fresh 7"
    assert await one.shared(7) == "stale 7"
    assert await Repository.shared.refresh(one, 7) == "fresh 7"
    assert await one.shared(7) == "fresh 7"


async def test_helpers_of_a_method_take_the_instance_where_they_need_it():
    """Called through an instance or the class they are the same: the instance is left out with ``self`` only."""
    one = Repository("bound")
    assert await Repository.shared.bypass(one, 8) == "bound 8"
    assert await one.shared.refresh(one, 8) == "bound 8"
    assert await Repository.templated.refresh(one, 8) == "bound 8"
    assert one.templated.key(one, 8) == "repository:bound:8"
    assert await one.shared.invalidate(8) is True
    assert await Repository.templated.invalidate(one, 8) is True


async def test_a_forgotten_instance_is_told(calls: Calls):
    """A helper that is found through an instance is not bound to it; it does not take an argument for the instance."""

    class Shop:
        cache = Cache()
        __cache_key__ = "shop"

        @cache.cached()
        async def price(self, product: int = 0) -> Any:
            return calls(product)

    Shop.__qualname__ = "Shop"
    shop = Shop()
    await shop.price(1)
    for helper in (shop.price.invalidate, shop.price.refresh):
        with pytest.raises(InvalidKey, match="self=1: the helpers of a method take the instance first"):
            await helper(1)
    with pytest.raises(InvalidKey, match="take the instance first"):
        shop.price.key("1")
    assert await shop.price.invalidate(shop, 1) is True
    assert calls == [1]


async def test_a_template_keeps_instances_apart():
    """``{self.name}`` is as good a key as any."""
    assert await Repository("a").templated(1) == "a 1"
    assert await Repository("b").templated(1) == "b 1"
    assert await Repository("a").templated(1) == "a 1"
    assert Repository.templated.key(Repository("a"), 1) == "repository:a:1"


async def test_a_cache_key_keeps_instances_apart():
    """``__cache_key__``, as a method or an attribute, stands for the instance; its class is part of it."""
    assert await Stable("a").get(1) == "a 1"
    assert await Stable("b").get(1) == "b 1"
    assert await Stable("a").get(1) == "a 1"
    keys = {Stable.get.key(Stable(ident), 1) for ident in ("a", "b", 1, "1", (1, "a"))}
    assert len(keys) == 5
    assert Stable.get.key(StableAttribute("me"), 1) != Stable.get.key(Stable("me"), 1)
    assert Stable.get.key(Stable("a"), 1) == Stable.get.key(Stable("a"), 1)


async def test_a_cache_key_that_is_not_stable_is_refused():
    """What it returns is looked at as arguments are."""
    with pytest.raises(InvalidKey, match="self"):
        await Stable(object()).get(1)


async def test_class_and_static_methods():
    """Below ``@classmethod`` and ``@staticmethod``; a class is a stable argument."""
    assert await Repository.of_class(1) == "Repository 1"
    assert await Sub.of_class(1) == "Repository 1"
    assert await Repository.of_each_class(1) == "Repository 1"
    assert await Sub.of_each_class(1) == "Sub 1"
    assert await Repository.of_none(1) == 2
    assert await Sub("x").of_none(1) == 2


async def test_methods_are_bound_as_functions_are():
    """The bound method is a coroutine function with a signature without self."""
    method = Repository("a").shared
    assert inspect.iscoroutinefunction(method)
    assert list(inspect.signature(method).parameters) == ["x"]
    assert inspect.ismethod(method)


# Arguments without a key ---------------------------------------------------------------------------------------------


class Session:
    """An object without a stable text."""


@pytest.mark.parametrize(
    "value",
    [
        Session(),
        object(),
        lambda: 1,
        Session,
        [Session()],
        {"a": Session()},
        (1, {2: Session()}),
        iter([]),
        (x for x in ()),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_unstable_argument_is_refused_with_its_remedy(cache: Cache, calls: Calls, value: Any):
    """A text with a memory address would be a silent miss for ever; the error names the argument and ``ignore=``."""

    @cache.cached()
    async def f(session: Any, x: int = 0) -> Any:
        return calls(x)

    if isinstance(value, type):
        await f(value)  # a class has a stable name
        return
    with pytest.raises(InvalidKey, match=r"'session'.*ignore=\('session',\)"):
        await f(value)
    with pytest.raises(InvalidKey, match="session"):
        f.key(value)
    assert calls == []


async def test_an_ignored_argument_may_be_anything(cache: Cache, calls: Calls):
    """It reaches the function and not the key."""

    @cache.cached(ignore=("session",))
    async def f(session: Any, x: int) -> Any:
        assert isinstance(session, Session)
        return calls(x)

    assert await f(Session(), 1) == 1
    assert await f(Session(), 1) == 1
    assert await f(x=1, session=Session()) == 1
    assert calls == [1]
    assert await f.invalidate(1) is True
    assert await f.refresh(Session(), 1) == 1


async def test_ignored_variadic_arguments(cache: Cache, calls: Calls):
    """``*args`` and ``**kwargs`` can be left out too."""

    @cache.cached(ignore=("rest", "more"))
    async def f(x: int, *rest: Any, **more: Any) -> Any:
        return calls((x, rest, more))

    assert await f(1, 2, y=3) == (1, (2,), {"y": 3})
    assert await f(1, 5, z=6) == (1, (2,), {"y": 3})
    assert f.key(1) == f.key(x=1)


async def test_an_argument_that_holds_itself_is_refused(cache: Cache):
    """And does not crash."""

    @cache.cached()
    async def f(x: Any) -> None: ...

    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidKey, match="'x'"):
        await f(loop)


async def test_an_object_whose_equality_lies_is_no_trap(calls: Calls):
    """Neither an object that equals everything nor one that cannot be compared reaches another's result."""

    class Equal:
        def __init__(self, name: str) -> None:
            self.name = name

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash(1)

        def __cache_key__(self) -> str:
            return self.name

    Equal.__qualname__ = "Equal"

    @cached()
    async def f(x: Any) -> Any:
        return getattr(x, "name", x)

    for _ in range(3):
        assert await f(1) == 1
        assert await f(Equal("a")) == "a"
        assert await f(Equal("b")) == "b"


# Keys by the user ----------------------------------------------------------------------------------------------------


async def test_a_template_makes_the_key(cache: Cache):
    """The key is the text the user wrote, so ``cache.get`` finds it."""

    @cache.cached(key="user:{user_id}")
    async def get_user(user_id: int, verbose: bool = False) -> dict[str, int]:
        return {"id": user_id}

    assert get_user.key(1) == "user:1"
    assert await get_user(1) == {"id": 1}
    assert await cache.get("user:1") == {"id": 1}
    assert await get_user(1, verbose=True) == {"id": 1}
    await cache.set("user:2", {"id": 22})
    assert await get_user(2) == {"id": 22}
    assert await cache.delete("user:1") is True
    assert get_user.peek(1) is None


async def test_a_template_keeps_types_and_texts_apart(cache: Cache):
    """Also without an annotation, and also for texts that hold the template's own separators."""

    @cache.cached(key="k:{a}:{b}")
    async def f(a: Any, b: Any) -> None: ...

    pairs = [
        (1, 2),
        ("1", 2),
        (1, "2"),
        ("1", "2"),
        (1.0, 2),
        (True, 2),
        (None, 2),
        ("None", 2),
        ("1:2", 3),
        (1, "2:3"),
    ]
    pairs += [("a:b", "c"), ("a", "b:c"), ('"1"', 2), ("%", "%"), ("%25", "%"), ("", ":"), (":", ""), ("", "")]
    assert len({f.key(*pair) for pair in pairs}) == len(pairs)


async def test_a_key_function_makes_the_key(cache: Cache, calls: Calls):
    """It gets the arguments, the defaults among them."""

    @cache.cached(key=lambda x, y: f"custom:{x + y}")
    async def add(x: int, y: int = 0) -> Any:
        return calls((x, y))

    assert await add(1, 2) == (1, 2)
    assert await add(2, y=1) == (1, 2)
    assert add.key(3) == "custom:3"
    assert await cache.get("custom:3") == (1, 2)
    assert calls == [(1, 2)]


async def test_a_key_function_may_take_what_it_needs_by_name(cache: Cache, calls: Calls):
    """And leave the rest to ``**_``, whatever the kind of the parameters."""

    @cache.cached(key=lambda y, **_: f"custom:{y}")
    async def f(x: int, y: int = 0, *, z: int = 0) -> Any:
        return calls((x, y, z))

    assert await f(1, 2, z=3) == (1, 2, 3)
    assert await f(y=2, x=5) == (1, 2, 3)
    assert f.key(1) == "custom:0"


@pytest.mark.parametrize(
    "key",
    [
        lambda lang, user_id: f"{user_id}:{lang}",
        lambda lang, user_id, /: f"{lang}:{user_id}",
        lambda lang, **rest: f"{rest['user_id']}:{lang}",
        lambda *, lang, user_id: f"{user_id}:{lang}",
        lambda a, b: f"{a}:{b}",
        lambda user_id, other="x": f"{user_id}:{other}",
        lambda user_id, *rest: f"{user_id}:{rest[0]}",
        lambda *args, **kwargs: ":".join(map(str, [*args, *kwargs])),
    ],
)
async def test_a_key_function_gets_each_argument_under_its_name(key: Any):
    """In whatever order it takes them; by position where its own names are others, or there are none."""

    @cached(key=key)
    async def plain(user_id: int, lang: str = "en") -> int:
        return user_id

    @cached(key=key)
    async def positional(user_id: int, /, lang: str = "en") -> int:
        return user_id

    @cached(key=key, ignore=("more",))
    async def some(more: object, user_id: int, lang: str = "en") -> int:
        return user_id

    assert plain.key(1) == positional.key(1) == some.key(1) == "1:en"
    assert plain.key(lang="de", user_id=2) == "2:de"


async def test_a_key_function_gets_variadic_arguments_as_the_function_does():
    """Keywords by their names, others where they stand."""

    @cached(key=lambda lang, user_id, **more: f"{user_id}:{lang}:{more}")
    async def keywords(user_id: int, lang: str = "en", **more: int) -> int:
        return user_id

    @cached(key=lambda lang, *user_ids: f"{user_ids}:{lang}")
    async def positions(user_id: int, *user_ids: int) -> int:
        return user_id

    @cached(key=lambda user_id, lang, /, **more: f"{user_id}:{lang}:{more}")
    async def twice(user_id: int, lang: str = "en", /, **more: int) -> int:
        return user_id

    assert keywords.key(1, z=3) == "1:en:{'z': 3}"
    assert positions.key(1, 2, 3) == "(2, 3):1"
    assert twice.key(1, user_id=3) == "1:en:{'user_id': 3}"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (lambda b, *_: f"b:{b}", "b"),
        (lambda x, a, *_: f"a:{a}", "a"),
        (lambda b, x, *_, **rest: f"b:{b}", "b"),
    ],
)
def test_a_key_function_that_would_get_another_s_argument_is_refused(key: Any, name: str):
    """By name it cannot be called, and by position a name that both have would stand for another argument."""

    async def f(a: int, b: int) -> int:
        return a

    async def many(a: int, b: int, *c: int) -> int:
        return a

    for function in (f, many):
        with pytest.raises(ConfigurationError, match=rf"another argument as its '{name}'.*by name.*called with \(a, b"):
            cached(key=key)(function)


async def test_a_key_function_s_own_default_does_not_hide_its_names():
    """What it takes besides may stay at its default; then names count."""

    @cached(key=lambda b, a, sep=":": f"{a}{sep}{b}")
    async def f(a: int, b: int) -> int:
        return a

    @cached(key=lambda a, *rest: f"{a}:{rest[0]}")
    async def g(a: int, b: int) -> int:
        return a

    assert f.key(1, 2) == g.key(1, 2) == "1:2"


def test_a_key_function_is_told_what_it_gets_by_name():
    """A parameter that is passed by name only is passed so to the key function too."""

    async def f(a: int, *, b: int) -> int:
        return a

    with pytest.raises(ConfigurationError, match=r"'y'.*called with \(a, b=b\), b by name"):
        cached(key=lambda x, y: f"{x}:{y}")(f)
    assert cached(key=lambda x, *, b: f"{x}:{b}")(f).key(1, b=2) == "1:2"


@pytest.mark.parametrize("key", [lambda *a: str(a), lambda a, b=0: str(a), lambda a: str(a)])
def test_a_key_function_takes_variadic_arguments_where_there_are_any(key: Any):
    """Otherwise the first call that has them would fail."""

    async def keywords(a: int, **more: int) -> int:
        return a

    async def positions(a: int, *more: int) -> int:
        return a

    with pytest.raises(ConfigurationError, match=r"what \*\*more: .*such as \*\*rest.*ignore=\('more',\)"):
        cached(key=key)(keywords)
    if not key.__code__.co_flags & inspect.CO_VARARGS:
        with pytest.raises(ConfigurationError, match=r"what \*more: .*such as \*rest"):
            cached(key=key)(positions)
    assert cached(key=key, ignore=("more",))(keywords).key(1) == key(1)


async def test_a_key_function_does_not_get_what_is_ignored(cache: Cache, calls: Calls):
    """Neither from a call nor from a helper, so that both make one key."""

    @cache.cached(key=lambda *args, **kwargs: repr((args, kwargs)), ignore=("session",))
    async def f(x: int, /, session: Any, *rest: int, y: int = 5, **more: int) -> Any:
        return calls(x)

    assert await f(1, object(), 2, z=3) == 1
    assert f.key(1, 2, z=3) == "((1, 2), {'y': 5, 'z': 3})"
    assert await cache.get(f.key(1, 2, z=3)) == 1
    assert await f(1, object(), 2, y=5, z=3) == 1
    assert calls == [1]


async def test_a_key_function_that_raises_reaches_the_caller(cache: Cache, calls: Calls):
    """With its own exception, and the function is not called."""

    def broken(x: int) -> str:
        raise LookupError(x)

    @cache.cached(key=broken)
    async def f(x: int) -> Any:
        return calls(x)

    with pytest.raises(LookupError):
        await f(1)
    assert calls == []


async def test_a_version_is_part_of_the_key(cache: Cache):
    """A new version does not see the old one's results, with every way to make the key."""
    for rules in ({}, {"key": "k:{x}"}, {"key": lambda x: f"made:{x}"}):
        results = []
        for version in (None, 1, 2, "2024-01"):

            async def f(x: int) -> str:
                return f"{len(results)}"

            results.append(await cache.cached(version=version, **rules)(f)(1))  # type: ignore[call-overload]
        assert results == ["0", "1", "2", "3"]


async def test_redefining_a_closure_under_the_same_name_is_refused(cache: Cache):
    """Two closures over different variables would answer each other's calls."""

    def make(factor: int) -> Any:
        @cache.cached()
        async def scale(x: int) -> int:
            return factor * x

        return scale

    assert await make(2)(1) == 2
    with pytest.raises(ConfigurationError, match="key= or a version="):
        make(3)


# Helpers -------------------------------------------------------------------------------------------------------------


async def test_invalidate_refresh_bypass_peek_set(cache: Cache, calls: Calls):
    """Each does what it says, to these arguments alone."""

    @cache.cached()
    async def f(x: int) -> int:
        calls(x)
        return len(calls)

    assert (await f(1), await f(2)) == (1, 2)
    assert await f.bypass(1) == 3
    assert await f(1) == 1
    assert await f.refresh(1) == 4
    assert await f(1) == 4
    assert await f.invalidate(1) is True
    assert await f.invalidate(1) is False
    assert f.peek(1) is None
    assert await f(1) == 5
    await f.set(100, 1)
    assert await f(1) == 100
    await f.set(200, x=3)
    assert await f(3) == 200
    assert await f(2) == 2


async def test_peek_looks_near_only(clock: FakeClock):
    """It is synchronous, tells fresh values only, and asks nobody."""
    backend = FaultyBackend(clock=clock)
    async with Cache(backend, clock=clock) as cache:

        @cache.cached(ttl=60)
        async def f(x: int) -> int:
            return x + 1

        assert f.peek(1) is None
        assert backend.calls == []
        await f(1)
        assert f.peek(1) == 2
        clock.advance(60)
        assert f.peek(1) is None


async def test_set_and_delete_of_the_cache_reach_the_quick_path(calls: Calls):
    """After a hit by the quick path, every other way to change the key is seen at once."""
    clock = FakeClock()
    async with Cache(clock=clock, namespace="n") as cache:

        @cache.cached(ttl=60, key="k:{x}", tags=["t"])
        async def f(x: int) -> int:
            calls(x)
            return len(calls)

        @cache.cached(ttl=60, key="q:{x}")
        async def g(x: int) -> int:
            calls(x)
            return len(calls)

        for function, key in ((f, "k:1"), (g, "q:1")):
            first = await function(1)
            assert [await function(1), await function(1)] == [first, first]
            await cache.set(key, "set")
            assert await function(1) == "set"
            await cache.set(key, "set again")
            assert await function(1) == "set again"
            await cache.set_many({key: "many"})
            assert await function(1) == "many"
            await cache.delete(key)
            second = await function(1)
            assert second == len(calls)
            await cache.delete_many([key])
            assert await function(1) == len(calls) == second + 1
            await cache.clear()
            assert await function(1) == len(calls) == second + 2
            await cache.touch(key, ttl=5)
            assert await function(1) == second + 2
            clock.advance(5)
            assert await function(1) == second + 3
            clock.advance(59.999)
            assert await function(1) == second + 3
            clock.advance(0.001)
            assert await function(1) == second + 4
            await cache.refresh(key, cache_value)
            assert await function(1) == "refreshed"
            await cache.view().delete(key)
            assert await function(1) == second + 5
        await f.invalidate(1)
        await f(1)
        before = len(calls)
        await cache.invalidate_tags("t")
        await f(1)
        assert len(calls) == before + 1


async def test_every_tag_is_seen_on_the_quick_path(calls: Calls):
    """Those of the rules, those that the loader adds, and those of whoever set the value."""
    async with Cache() as cache:

        @cache.cached(ttl=60, key="k:{x}", tags=["one", "x:{x}"])
        async def f(x: int) -> int:
            if x == 5:
                current_load().tags.add("added")
            calls(x)
            return len(calls)

        for x, tags in ((1, ("one", "x:1")), (5, ("one", "x:5", "added"))):
            for tag in tags:
                loaded = await f(x)
                assert [await f(x), await f(x)] == [loaded, loaded]
                await cache.invalidate_tags(tag)
                assert await f(x) == loaded + 1
        assert await f(1) == await f(1)
        for tags in (["other"], ["other", "another"], []):
            await cache.set("k:1", "set", tags=tags)
            assert [await f(1), await f(1)] == ["set", "set"]
            await cache.invalidate_tags("one", "x:1")
            assert await f(1) == "set"
            await cache.invalidate_tags("other")
            assert (await f(1) == "set") is (not tags)


async def test_a_tagged_result_has_a_quick_path(calls: Calls):
    """As any other has, and it goes with its record."""
    async with Cache() as cache:

        @cache.cached(ttl=60, tags=["one", "x:{x}"])
        async def f(x: int) -> int:
            return calls(x)  # type: ignore[no-any-return]

        for _ in range(3):
            await f(1)
        shortcuts = cache._scope.space.shortcuts  # type: ignore[union-attr]
        assert list(shortcuts) == [f.key(1)]
        await cache.invalidate_tags("one")
        assert await f.invalidate(1) is False
        assert shortcuts == {}
        assert f.stats().hits == 2


async def cache_value() -> str:
    """A loader."""
    return "refreshed"


async def test_a_cold_crowd_leaves_the_quick_path_working(calls: Calls):
    """After ten callers at once, one change is seen by all later ones, and nobody loads twice."""
    async with Cache() as cache:

        @cache.cached()
        async def f(x: int) -> int:
            await asyncio.sleep(0)
            calls(x)
            return len(calls)

        assert await asyncio.gather(*[f(1) for _ in range(10)]) == [1] * 10
        assert [await f(1) for _ in range(3)] == [1, 1, 1]
        await f.invalidate(1)
        assert await asyncio.gather(*[f(1) for _ in range(10)]) == [2] * 10
        assert f.stats().loads == 2
        assert f.stats().coalesced == 18


async def test_what_a_function_s_helpers_invalidate_counts_as_its_own(cache: Cache):
    """Once: the cache's total has it too, and what is removed past the function only the cache's."""

    @cache.cached(ttl=60, tags=["all"])
    async def double(x: int) -> int:
        return 2 * x

    @cache.cached_many(ttl=60, tags=["all"])
    async def triples(xs: list[int]) -> dict[int, int]:
        return {x: 3 * x for x in xs}

    await double(1)
    await triples([1, 2])
    await double.invalidate(1)
    await double.invalidate_all()
    await triples.invalidate([1, 2])
    assert double.stats().invalidations == 2
    assert triples.stats().invalidations == 2
    assert cache.stats().invalidations == 4
    await cache.delete("anything")
    assert double.stats().invalidations == 2
    assert cache.stats().invalidations == 5


async def test_stats_are_the_function_s_own(cache: Cache):
    """A function counts its own hits, misses and loads; the cache's total has them all."""

    @cache.cached()
    async def f(x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return x

    @cache.cached()
    async def g(x: int) -> int:
        return x

    for _ in range(3):
        await f(1)
    await g(1)
    with pytest.raises(ValueError, match="-1"):
        await f(-1)
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.load_failures) == (2, 2, 2, 1)
    assert (g.stats().hits, g.stats().misses, g.stats().loads) == (0, 1, 1)
    total = cache.stats()
    assert (total.hits, total.misses, total.loads, total.load_failures) == (2, 3, 3, 1)


async def test_events_are_sent_for_decorated_calls():
    """An observer sees the miss, the load and the hits of a function, with its key."""
    recorder = Recorder()
    async with Cache(observers=[recorder]) as cache:

        @cache.cached()
        async def f(x: int) -> int:
            return x

        await f(1)
        await f(1)
        await f(1)
        assert [type(event) for event in recorder.events if isinstance(event, (Hit, Miss, Loaded))] == [
            Miss,
            Loaded,
            Hit,
            Hit,
        ]
        assert {event.key for event in recorder.events} == {f.key(1)}


# Rules ---------------------------------------------------------------------------------------------------------------


async def test_tags_are_templates(cache: Cache, calls: Calls):
    """One tag per user, one for all; invalidating either makes exactly those results misses."""

    @cache.cached(tags=["user:{user_id}", "users"])
    async def get(user_id: int, page: int = 1) -> Any:
        return calls((user_id, page))

    async def load_all() -> None:
        for user_id in (1, 2):
            for page in (1, 2):
                await get(user_id, page)

    await load_all()
    await load_all()
    assert len(calls) == 4
    await cache.invalidate_tags("user:1")
    await load_all()
    assert len(calls) == 6
    assert calls[-2:] == [(1, 1), (1, 2)]
    await cache.invalidate_tags("users")
    await load_all()
    assert len(calls) == 10
    await get.set((9, 9), 1)
    await cache.invalidate_tags("user:1")
    assert await get(1) == (1, 1)


async def test_condition_decides_what_is_stored(cache: Cache, calls: Calls):
    """A result it turns down reaches the caller and is not kept."""

    @cache.cached(condition=lambda result: result["complete"])
    async def job(x: int) -> dict[str, bool]:
        calls(x)
        return {"complete": x > 0}

    for _ in range(3):
        assert await job(0) == {"complete": False}
        assert await job(1) == {"complete": True}
    assert calls == [0, 1, 0, 0]


@pytest.mark.parametrize("decorator", ["cached", "cached_many"])
@pytest.mark.filterwarnings("error")
async def test_a_condition_that_returns_an_awaitable_is_an_error(cache: Cache, decorator: str):
    """It would be true always; the call says so, and nothing is stored."""

    async def f(x: list[int]) -> dict[int, int]:
        return {1: 1}

    made = getattr(cache, decorator)(condition=lambda _: asyncio.sleep(0, False), key="k:{x}")(f)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"condition=.*nothing awaits it: return True or False"):
            await made([1])
    assert not await cache.has("k:1" if decorator == "cached_many" else "k:[1]")
    gc.collect()


async def test_condition_sees_what_refresh_loads(cache: Cache):
    """A refresh whose result is turned down is not stored, and the caller gets it."""
    results = iter([1, -1])

    @cache.cached(condition=lambda result: result > 0)
    async def f() -> int:
        return next(results)

    assert await f() == 1
    assert await f.refresh() == -1
    assert f.peek() in (1, None)


async def test_none_is_cached_like_any_value(cache: Cache, calls: Calls):
    """A function that returns None is not called again."""

    @cache.cached()
    async def nothing(x: int) -> None:
        calls(x)

    assert [await nothing(1) for _ in range(3)] == [None] * 3
    assert calls == [1]


async def test_negative_ttl_is_for_none_alone(cache: Cache, clock: FakeClock, calls: Calls):
    """A None goes earlier than other results."""

    @cache.cached(ttl=100, negative_ttl=10)
    async def find(x: int) -> int | None:
        calls(x)
        return x or None

    await find(0)
    await find(1)
    clock.advance(9.9)
    assert (await find(0), await find(1)) == (None, 1)
    assert calls == [0, 1]
    clock.advance(0.2)
    assert (await find(0), await find(1)) == (None, 1)
    assert calls == [0, 1, 0]


async def test_the_ttl_is_the_function_s(cache: Cache, clock: FakeClock, calls: Calls):
    """It wins over the policy, and ``set`` uses it too."""

    @cache.cached(ttl=10)
    async def f(x: int) -> int:
        calls(x)
        return len(calls)

    assert await f(1) == 1
    await f.set(50, 2)
    clock.advance(9.9)
    assert (await f(1), await f(2)) == (1, 50)
    clock.advance(0.2)
    assert (await f(1), await f(2)) == (2, 3)


async def test_a_policy_of_its_own(clock: FakeClock):
    """``policy=`` replaces the cache's for this function."""
    async with Cache(clock=clock, policy=Policy(ttl=10)) as cache:

        @cache.cached(policy=Policy(ttl=1000))
        async def f() -> object:
            return object()

        first = await f()
        clock.advance(500)
        assert await f() is first


async def test_errors_pass_and_are_not_cached(cache: Cache, calls: Calls):
    """The function's own exception reaches the caller as it is, and the next call tries again."""

    @cache.cached()
    async def f(x: int) -> None:
        calls(x)
        raise LookupError(x)

    for _ in range(2):
        with pytest.raises(LookupError):
            await f(1)
    assert calls == [1, 1]


async def test_recursion_through_other_arguments_works(cache: Cache, calls: Calls):
    """A function may call its cached self with smaller arguments."""

    @cache.cached()
    async def fibonacci(n: int) -> int:
        calls(n)
        return n if n < 2 else await fibonacci(n - 1) + await fibonacci(n - 2)

    assert await fibonacci(40) == 102334155
    assert len(calls) == 41


class Account(pydantic.BaseModel):
    id: int
    owner: Query | None = None


async def test_the_return_annotation_is_the_decode_type():
    """A second process gets the class back, also inside containers, without registration."""
    backend = MemoryBackend()
    loads = 0

    def define(cache: Cache) -> Any:
        @cache.cached(key="account:{x}")
        async def one(x: int) -> Account:
            nonlocal loads
            loads += 1
            return Account(id=x, owner=Query("q"))

        @cache.cached(key="accounts:{x}")
        async def many(x: int) -> Annotated[dict[str, list[Account]] | None, "note"]:
            nonlocal loads
            loads += 1
            return {"all": [Account(id=x)]}

        return one, many

    async with Cache(backend) as first, Cache(backend) as second:
        for cache in (first, second):
            one, many = define(cache)
            assert await one(1) == Account(id=1, owner=Query("q"))
            assert type(await one(1)) is Account
            assert await many(1) == {"all": [Account(id=1)]}
    assert loads == 2


async def test_module_level_cached_has_a_cache_of_its_own(calls: Calls):
    """It works without any set-up, is bounded, and two functions share nothing."""

    @cached(ttl=60, max_entries=2)
    async def f(x: int) -> Any:
        return calls(x)

    for x in (1, 2, 3, 1):
        await f(x)
    assert calls == [1, 2, 3, 1]
    assert f.stats().loads == 4
    assert await f.invalidate(1) is True


async def test_a_decorated_function_after_close(cache: Cache):
    """Use after ``aclose`` is CacheClosed, not an old value."""
    from acache import CacheClosed

    @cache.cached()
    async def f(x: int) -> int:
        return x

    await f(1)
    await cache.aclose()
    for use in (lambda: f(1), lambda: f(2), lambda: f.invalidate(1), lambda: f.refresh(1), lambda: f.set(1, 1)):
        with pytest.raises(CacheClosed):
            await use()


# FastAPI -------------------------------------------------------------------------------------------------------------


async def test_fastapi_sees_an_ordinary_dependency_and_endpoint(calls: Calls):
    """Parameters are parsed, validated and documented as for the bare functions."""
    app, cache = FastAPI(), Cache()

    @cache.cached(ttl=60)
    async def get_user(user_id: int, verbose: bool = False) -> dict[str, Any]:
        calls(user_id)
        return {"id": user_id, "verbose": verbose}

    @app.get("/users/{user_id}")
    async def read_user(user: dict[str, Any] = Depends(get_user)) -> dict[str, Any]:  # noqa: B008, FAST002 - its way
        return user

    @app.get("/items/{item_id}")
    @cache.cached(ttl=60, ignore=("request",))
    async def read_item(item_id: int, request: fastapi.Request, size: Literal["s", "l"] = "s") -> dict[str, Any]:
        """Read an item."""
        calls(("item", item_id))
        return {"id": item_id, "size": size}

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/users/1?verbose=1")).json() == {"id": 1, "verbose": True}
            assert (await client.get("/items/7?size=l")).json() == {"id": 7, "size": "l"}
        assert (await client.get("/users/one")).status_code == 422
        assert (await client.get("/items/7?size=xl")).status_code == 422
        schema = (await client.get("/openapi.json")).json()
    assert calls == [1, ("item", 7)]
    assert schema["paths"]["/items/{item_id}"]["get"]["description"] == "Read an item."
    assert [p["name"] for p in schema["paths"]["/users/{user_id}"]["get"]["parameters"]] == ["user_id", "verbose"]
    await cache.aclose()


@pytest.mark.parametrize("rule", ["condition", "ttl", "key"])
def test_a_rule_that_nobody_would_await_is_refused(cache: Cache, rule: str):
    """A coroutine is true, and no number and no key."""

    async def decide(_: object) -> bool:
        return False

    with pytest.raises(ConfigurationError, match=f"{rule}=.*coroutine function"):

        @cache.cached(**{rule: decide})  # type: ignore[arg-type]
        async def f(a: int) -> int:
            return a


async def test_an_int_of_any_size_makes_a_key(cache: Cache):
    """Also one of more digits than Python writes as decimals."""

    @cache.cached()
    async def bits(number: int) -> int:
        return number.bit_length()

    assert bits.key(10**5000) != bits.key(10**5000 + 1)
    assert await bits(10**5000) == (10**5000).bit_length()
    assert await bits(-(10**5000)) == (10**5000).bit_length()


class Stall:
    @classmethod
    @Cache().cached()
    async def price(cls, n: int = 1) -> int:
        return n


async def test_the_helpers_of_a_class_method_take_the_class_first():
    """An argument in its place would remove nothing, without a word."""
    assert await Stall.price(7) == 7
    assert await Stall.price.invalidate(Stall, 7)
    for helper in (Stall.price.invalidate, Stall.price.refresh):
        with pytest.raises(InvalidKey, match="the class first"):
            await helper(7)


async def test_a_version_is_no_text_of_an_argument():
    """Whatever the text."""
    cache = Cache()

    @cache.cached(key="o:{n}", version=2)
    async def new(n: str) -> str:
        return "new"

    @cache.cached(key="o:{n}")
    async def old(n: str) -> str:
        return "old"

    assert await new("a") == "new"
    for text in ("a@2", "a%v2", "a%25v2"):
        assert await old(text) == "old"
