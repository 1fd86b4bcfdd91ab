"""Bad input gives one clear error that says what to do, as early as it can be known, and stores nothing."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from acache import (
    BackendUnavailable,
    Cache,
    ConfigurationError,
    EncodeError,
    InvalidKey,
    Memory,
    MemoryBackend,
    Msgpack,
    NullBackend,
    Policy,
    cached,
)
from acache.testing import FakeClock, FaultyBackend

Call = Callable[[Cache, Any], Awaitable[object]]


@pytest.fixture(params=["near", "near over far", "far"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache of each topology."""
    clock = FakeClock()
    backend = None if request.param == "near" else MemoryBackend(clock=clock)
    memory = None if request.param == "far" else 100
    async with Cache(backend, memory=memory, clock=clock, namespace="bad") as cache:
        yield cache


async def never() -> Any:
    """A loader that must not be called."""
    pytest.fail("the loader was called")


async def never_many(keys: object) -> Any:
    """A batch loader that must not be called."""
    pytest.fail("the loader was called")


async def assert_empty(cache: Cache) -> None:
    """Nothing is stored: not near, not far."""
    assert cache.stats().near_entries == 0
    backend = cache._shared.backend
    if isinstance(backend, MemoryBackend):
        # The namespace's epoch is nobody's value: it comes before the first load, whatever becomes of that.
        assert [key async for key in backend.scan("") if not key.endswith("::@tag:")] == []
    assert await cache.get("key") is None


# ttl -----------------------------------------------------------------------------------------------------------------


class Nothing:
    """Something else than what is asked for; its text is the same in every process that collects the tests."""

    def __repr__(self) -> str:
        return "<nothing>"


NOTHING = Nothing()
BAD_TTLS: list[Any] = [
    0, 0.0, -0.0, -1, -0.001, math.nan, math.inf, -math.inf, "60", b"60", "", True, False, 1j, [60], (60,), {}, NOTHING,
    timedelta(0), timedelta(seconds=-1), 10**400, Decimal(60),
]  # fmt: skip
TTL_CALLS: dict[str, Call] = {
    "set": lambda cache, ttl: cache.set("key", 1, ttl=ttl),
    "set tagged": lambda cache, ttl: cache.set("key", 1, ttl=ttl, tags=["t"]),
    "add": lambda cache, ttl: cache.add("key", 1, ttl=ttl),
    "set_many": lambda cache, ttl: cache.set_many({"key": 1}, ttl=ttl),
    "touch": lambda cache, ttl: cache.touch("key", ttl=ttl),
    "incr": lambda cache, ttl: cache.incr("key", ttl=ttl),
    "decr": lambda cache, ttl: cache.decr("key", ttl=ttl),
    "get_or_load": lambda cache, ttl: cache.get_or_load("key", never, ttl=ttl),
    "refresh": lambda cache, ttl: cache.refresh("key", never, ttl=ttl),
    "load_many": lambda cache, ttl: cache.load_many(["key"], never_many, ttl=ttl),
}


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=lambda ttl: f"{type(ttl).__name__} {str(ttl)[:12]}")
@pytest.mark.parametrize("call", TTL_CALLS)
async def test_a_bad_ttl_is_refused_by_every_verb(cache: Cache, call: str, ttl: Any):
    """The error names the parameter and says what a ttl is; nothing is stored or loaded."""
    with pytest.raises(ConfigurationError, match=r"ttl=.*seconds"):
        await TTL_CALLS[call](cache, ttl)
    await assert_empty(cache)


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=lambda ttl: f"{type(ttl).__name__} {str(ttl)[:12]}")
async def test_a_bad_ttl_is_refused_by_whatever_keeps_one(cache: Cache, ttl: Any):
    """A policy, a near tier and a decorator say it at construction, not at the first use."""
    keepers: list[Callable[[], object]] = [
        lambda: Policy(ttl=ttl),
        lambda: Policy(negative_ttl=ttl),
        lambda: Memory(ttl=ttl),
        lambda: cached(ttl=ttl)(fine),
        lambda: cached(negative_ttl=ttl)(fine),
        lambda: cache.cached(ttl=ttl),
        lambda: cache.cached(negative_ttl=ttl),
    ]
    for number, keeper in enumerate(keepers):
        try:
            keeper()
        except ConfigurationError as error:
            assert re.search(r"ttl=.*seconds", str(error)), (number, error)
        else:
            pytest.fail(f"keeper {number} took {ttl!r}")


@pytest.mark.parametrize("ttl", [0, 0.0, timedelta(0)])
def test_zero_is_told_what_it_could_have_meant(ttl: Any):
    """Zero is neither "for ever" nor "not at all", and the error says how to write both."""
    with pytest.raises(ConfigurationError, match=r"ttl=None never expires.*delete\(\)"):
        Policy(ttl=ttl)


def test_infinity_is_told_how_for_ever_is_written():
    """``inf`` is refused with the spelling for it."""
    with pytest.raises(ConfigurationError, match="ttl=None never expires"):
        Policy(ttl=math.inf)


@pytest.mark.parametrize("ttl", [1, 0.001, 1.5, timedelta(minutes=1), None, 10**9])
async def test_good_ttls_are_taken(cache: Cache, ttl: Any):
    """Seconds, fractions, a timedelta and None are ttls."""
    await cache.set("key", "value", ttl=ttl)
    assert await cache.get("key") == "value"


async def test_a_bad_ttl_leaves_the_old_value(cache: Cache):
    """A refused write is no write: what was there stays, with its time."""
    await cache.set("key", "old", ttl=60)
    for name, call in TTL_CALLS.items():
        if name not in ("get_or_load", "load_many"):  # a hit asks for no more than the key
            with pytest.raises(ConfigurationError):
                await call(cache, -1)
    assert await cache.get("key") == "old"
    assert await cache.ttl("key") == pytest.approx(60)


# Keys ----------------------------------------------------------------------------------------------------------------

BAD_KEYS: list[Any] = ["", None, 5, 1.5, True, b"key", ("key",), ["key"], {}, NOTHING, "\ud800", "a\udfffb"]
KEY_CALLS: dict[str, Call] = {
    "get": lambda cache, key: cache.get(key),
    "get_entry": lambda cache, key: cache.get_entry(key),
    "has": lambda cache, key: cache.has(key),
    "ttl": lambda cache, key: cache.ttl(key),
    "set": lambda cache, key: cache.set(key, 1),
    "set with ttl": lambda cache, key: cache.set(key, 1, ttl=5),
    "add": lambda cache, key: cache.add(key, 1),
    "touch": lambda cache, key: cache.touch(key, ttl=1),
    "incr": lambda cache, key: cache.incr(key),
    "decr": lambda cache, key: cache.decr(key),
    "delete": lambda cache, key: cache.delete(key),
    "get_or_load": lambda cache, key: cache.get_or_load(key, never),
    "refresh": lambda cache, key: cache.refresh(key, never),
}
SEVERAL_CALLS: dict[str, Call] = {
    "get_many": lambda cache, keys: cache.get_many(keys),
    "delete_many": lambda cache, keys: cache.delete_many(keys),
    "load_many": lambda cache, keys: cache.load_many(keys, never_many),
}


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
@pytest.mark.parametrize("call", KEY_CALLS)
async def test_a_bad_key_is_refused_by_every_verb(cache: Cache, call: str, key: Any):
    """The error says that a key is non-empty text; nothing is stored or loaded."""
    with pytest.raises(InvalidKey, match=r"a key (is a non-empty str|must not be empty|must be Unicode text)"):
        await KEY_CALLS[call](cache, key)
    await assert_empty(cache)


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
async def test_a_bad_key_is_refused_by_peek(cache: Cache, key: Any):
    """The synchronous look refuses it too."""
    with pytest.raises(InvalidKey, match="a key"):
        cache.peek(key)


@pytest.mark.parametrize("key", [key for key in BAD_KEYS if getattr(type(key), "__hash__", None)], ids=ascii)
@pytest.mark.parametrize("call", SEVERAL_CALLS)
async def test_a_bad_key_among_good_ones_spoils_the_call(cache: Cache, call: str, key: Any):
    """Nothing happens to the good keys beside it."""
    await cache.set("good", 1)
    with pytest.raises(InvalidKey, match="a key"):
        await SEVERAL_CALLS[call](cache, ["good", key])
    assert await cache.get("good") == 1


@pytest.mark.parametrize("key", [key for key in BAD_KEYS if getattr(type(key), "__hash__", None)], ids=ascii)
async def test_a_bad_key_among_good_items_stores_none(cache: Cache, key: Any):
    """``set_many`` looks at all keys before it stores the first."""
    with pytest.raises(InvalidKey, match="a key"):
        await cache.set_many({"key": 1, key: 2})
    await assert_empty(cache)


@pytest.mark.parametrize("call", SEVERAL_CALLS)
async def test_one_str_for_several_keys_is_refused(cache: Cache, call: str):
    """A str in place of a list of keys would be read letter by letter."""
    with pytest.raises(InvalidKey, match=r"\['user'\]"):
        await SEVERAL_CALLS[call](cache, "user")


async def test_a_non_str_key_is_told_what_to_do(cache: Cache):
    """The error shows the value, its type and the remedy."""
    with pytest.raises(InvalidKey, match=r"5 \(int\): pass str\(\.\.\.\)"):
        await cache.get(5)  # type: ignore[call-overload]


# Tags, namespaces, deltas --------------------------------------------------------------------------------------------

BAD_TAGS: list[Any] = ["users", [""], [5], [None], [b"t"], ["ok", ""], ["x" * 1001], ["\ud800"]]
TAG_CALLS: dict[str, Call] = {
    "set": lambda cache, tags: cache.set("key", 1, tags=tags),
    "add": lambda cache, tags: cache.add("key", 1, tags=tags),
    "set_many": lambda cache, tags: cache.set_many({"key": 1}, tags=tags),
    "get_or_load": lambda cache, tags: cache.get_or_load("key", never, tags=tags),
    "refresh": lambda cache, tags: cache.refresh("key", never, tags=tags),
    "load_many": lambda cache, tags: cache.load_many(["key"], never_many, tags=tags),
}


@pytest.mark.parametrize("tags", BAD_TAGS, ids=lambda tags: ascii(tags)[:20])
@pytest.mark.parametrize("call", TAG_CALLS)
async def test_bad_tags_are_refused_by_every_verb(cache: Cache, call: str, tags: Any):
    """The error says what tags are; nothing is stored or loaded."""
    with pytest.raises(ConfigurationError, match="tags="):
        await TAG_CALLS[call](cache, tags)
    await assert_empty(cache)


@pytest.mark.parametrize("tag", ["", 5, None, b"t", "\ud800", ["t"]], ids=ascii)
async def test_a_bad_tag_cannot_be_invalidated(cache: Cache, tag: Any):
    """``invalidate_tags`` refuses what no entry could carry, rather than to invalidate nothing."""
    with pytest.raises(ConfigurationError, match="tag"):
        await cache.invalidate_tags(tag)


@pytest.mark.parametrize("namespace", ["a::b", "a:", " ", "a b", "a*", "\n", "x" * 101, "ü", 5, None, b"a"], ids=repr)
def test_a_bad_namespace_is_refused_at_construction(namespace: Any):
    """The error lists what a namespace may hold."""
    with pytest.raises(ConfigurationError, match=r"namespace=.*letters, digits"):
        Cache(namespace=namespace)
    if namespace is not None:
        with pytest.raises(ConfigurationError, match=r"namespace=.*letters, digits"):
            Cache().view(namespace=namespace)


@pytest.mark.parametrize("delta", ["1", 1.5, 1.0, None, True, [1]], ids=repr)
async def test_a_bad_delta_is_refused(cache: Cache, delta: Any):
    """Counters count in whole numbers, and nothing is stored."""
    with pytest.raises(ConfigurationError, match=r"delta=.*whole numbers"):
        await cache.incr("key", delta)
    await assert_empty(cache)


@pytest.mark.parametrize("delta", ["1", 1.5, None, [1]], ids=repr)
async def test_a_bad_delta_is_refused_downwards_too(cache: Cache, delta: Any):
    """``decr`` says the same as ``incr``, about the number that was passed."""
    with pytest.raises(ConfigurationError, match=re.escape(f"delta={delta!r}")):
        await cache.decr("key", delta)
    await assert_empty(cache)


# Values --------------------------------------------------------------------------------------------------------------


class Handle:
    """Something that no codec can store."""


VALUE_CALLS: dict[str, Call] = {
    "set": lambda cache, value: cache.set("key", value),
    "set with ttl": lambda cache, value: cache.set("key", value, ttl=5),
    "add": lambda cache, value: cache.add("key", value),
    "set_many": lambda cache, value: cache.set_many({"other": 1, "key": value}),
    "get_or_load": lambda cache, value: cache.get_or_load("key", returning(value)),
    "refresh": lambda cache, value: cache.refresh("key", returning(value)),
}


def returning(value: Any) -> Callable[[], Awaitable[Any]]:
    """Return a loader of ``value``."""

    async def load() -> Any:
        return value

    return load


@pytest.fixture(params=["near over far", "far", "isolated near"])
async def encoding(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """A cache that must turn values into bytes."""
    backend = None if request.param == "isolated near" else MemoryBackend()
    memory = {"near over far": 100, "far": None, "isolated near": Memory(isolate=True)}[request.param]
    async with Cache(backend, memory=memory, namespace="bad") as cache:
        yield cache


@pytest.mark.parametrize("value", [Handle(), [Handle()], {"a": (Handle(),)}, lambda: 1], ids=["", "list", "dict", "fn"])
@pytest.mark.parametrize("call", VALUE_CALLS)
async def test_an_unencodable_value_is_refused(encoding: Cache, call: str, value: Any):
    """The error names the type, wherever it is inside, and the remedy; nothing is stored."""
    with pytest.raises(EncodeError, match=r"(Handle|function) cannot be stored exactly: store a dataclass"):
        await VALUE_CALLS[call](encoding, value)
    await assert_empty(encoding)
    assert await encoding.get("other") is None


class OwnError(EncodeError):
    """What a codec of one's own raises."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class OwnCodec(Msgpack):
    """Encodes what it likes."""

    def encode(self, value: Any, /) -> bytes:
        if isinstance(value, Handle):
            raise OwnError(7, "not today")
        return super().encode(value)


@pytest.mark.parametrize("call", VALUE_CALLS)
async def test_the_error_about_an_unencodable_value_names_its_key(call: str):
    """Before what the codec says; its error is the same otherwise."""
    async with Cache(MemoryBackend()) as cache:
        with pytest.raises(EncodeError, match=r"'key': a .*Handle cannot be stored exactly: store a dataclass"):
            await VALUE_CALLS[call](cache, Handle())
    async with Cache(MemoryBackend(), codec=OwnCodec()) as cache:
        with pytest.raises(OwnError, match=r"'key': not today") as caught:
            await VALUE_CALLS[call](cache, Handle())
        assert caught.value.code == 7


async def test_the_error_about_an_unencodable_result_names_its_key():
    """Of whatever function: it stands in what the caller sees."""
    async with Cache(MemoryBackend()) as cache:

        @cache.cached(key="handle:{number}")
        async def handle(number: int) -> Any:
            return Handle()

        with pytest.raises(EncodeError, match=r"'handle:1': a .*Handle cannot be stored exactly"):
            await handle(1)


@pytest.mark.parametrize("call", VALUE_CALLS)
async def test_an_unencodable_value_leaves_the_old_one(encoding: Cache, call: str):
    """A refused write is no write."""
    if call == "add":
        pytest.skip("an old value makes add return False")
    await encoding.set("key", "old")
    await encoding.invalidate_tags("unrelated")
    if call == "get_or_load":
        assert await VALUE_CALLS[call](encoding, Handle()) == "old"
        return
    with pytest.raises(EncodeError):
        await VALUE_CALLS[call](encoding, Handle())
    assert await encoding.get("key") == "old"


async def test_an_unencodable_value_never_reaches_the_backend():
    """The value is encoded before anything is sent."""
    backend = FaultyBackend()
    async with Cache(backend, memory=None) as cache:
        with pytest.raises(EncodeError):
            await cache.set("key", Handle(), tags=["t"])
    assert backend.calls == []


# URLs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["reddis://localhost", "http://localhost", "sqlite:///x", "memcache://localhost"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(url: str):
    """The error names the scheme and lists those there are."""
    with pytest.raises(ConfigurationError, match=r"unknown scheme.*redis://.*null://"):
        Cache.from_url(url)


@pytest.mark.parametrize("url", ["localhost:6379", "redis", "", "redis:/localhost", None, 5, b"redis://localhost"])
def test_what_is_no_url_is_refused(url: Any):
    """The error says what a URL here looks like."""
    with pytest.raises(ConfigurationError, match=r"not a URL.*redis://"):
        Cache.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:port/0",
        "redis://localhost:99999/0",
        "redis://localhost/?no_such_option=1",
        "redis://localhost/?socket_timeout=soon",
        "redis://localhost/zero",
        "memory://host",
        "memory:///path",
        "memory://?ttl=5",
        "null://host",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_at_once(url: str):
    """A bad port, database or option is found when the cache is built, not by the first read."""
    with pytest.raises(ConfigurationError):
        Cache.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@localhost:port/0",
        "redis://:hunter2@localhost/?no_such_option=1",
        "reddis://user:hunter2@localhost/0",
        "memory://user:hunter2@localhost",
    ],
)
def test_no_error_about_a_url_repeats_its_password(url: str):
    """Errors end in logs."""
    with pytest.raises(ConfigurationError) as caught:
        Cache.from_url(url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__cause__)


@pytest.mark.parametrize("scheme", ["memory", "redis", "null"])
def test_an_unknown_option_is_an_error(scheme: str):
    """A misspelt option of Cache is not ignored, and is named."""
    with pytest.raises((ConfigurationError, TypeError), match="name_space"):
        Cache.from_url(f"{scheme}://", name_space="x")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine on which nobody answers."""
    with socket.socket() as reserved:  # bound, and never listening
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


async def test_an_unreachable_url_is_said_by_what_must_be_confirmed(closed_port: int):
    """Reads are misses; what promises to have happened raises, naming the place; nothing is stored."""
    async with Cache.from_url(f"redis://127.0.0.1:{closed_port}/0", namespace="bad") as cache:
        assert await cache.get("key") is None
        await cache.set("key", 1)
        assert await cache.get("key") is None
        with pytest.raises(BackendUnavailable, match=rf"cannot reach Redis.*127\.0\.0\.1:{closed_port}"):
            await cache.delete("key")
        assert cache.stats().near_entries == 0
        assert cache.stats().backend_errors >= 3


async def test_an_unreachable_url_is_said_by_reads_on_request(closed_port: int):
    """Under ``on_backend_error="raise"`` the first read says that nobody answers, and where."""
    cache = Cache.from_url(
        f"redis://127.0.0.1:{closed_port}/0", namespace="bad", policy=Policy(on_backend_error="raise")
    )
    async with cache:
        with pytest.raises(BackendUnavailable, match=rf"cannot reach Redis.*127\.0\.0\.1:{closed_port}"):
            await cache.get("key")
        with pytest.raises(BackendUnavailable):
            await cache.set("key", 1)


# Decorators ----------------------------------------------------------------------------------------------------------


def plain(user_id: int) -> int:
    """Not a coroutine function."""
    return user_id


async def agen(user_id: int) -> AsyncIterator[int]:
    """An async generator."""
    yield user_id


async def fine(user_id: int, verbose: bool = False) -> int:
    """A function that can be cached."""
    return user_id


class Service:
    """A class, and an instance with an async call."""

    async def __call__(self, user_id: int) -> int:
        return user_id


NOT_COROUTINES: dict[str, tuple[Any, str]] = {
    "plain function": (plain, "async def"),
    "lambda": (lambda user_id: user_id, "async def"),
    "generator": ((lambda: (yield)), "async def"),
    "async generator": (agen, "list"),
    "class": (Service, "async def"),
    "builtin": (len, "async def"),
    "number": (5, "async def"),
    "None called later": (print, "async def"),
    "classmethod": (classmethod(fine), "below @classmethod"),
    "staticmethod": (staticmethod(fine), "below @staticmethod"),
    "partial": (functools.partial(plain, 1), "async def"),
    "callable object": (Service(), "def"),
}


@pytest.mark.parametrize("kind", NOT_COROUTINES)
def test_only_coroutine_functions_are_decorated(kind: str):
    """At decoration, the error says how to write it instead."""
    function, remedy = NOT_COROUTINES[kind]
    for decorate in (Cache().cached(ttl=60), cached(ttl=60)):
        with pytest.raises(ConfigurationError, match=remedy):
            decorate(function)


@pytest.mark.parametrize("decorator", [Cache().cached, cached], ids=["cache.cached", "cached"])
def test_a_decorator_without_parentheses_says_so(decorator: Any):
    """``@cached`` is refused where it stands, not when the function is called."""
    with pytest.raises(ConfigurationError, match=r"cached\(\) with parentheses"):

        @decorator
        async def function() -> None: ...


BAD_RULES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown parameter": ({"key": "user:{id}"}, r"'id'.*not a parameter.*user_id, verbose"),
    "unknown parameter in a tag": ({"tags": ["user:{id}"]}, r"'id'.*not a parameter.*user_id, verbose"),
    "positional field": ({"key": "user:{}"}, "not a parameter"),
    "numbered field": ({"key": "user:{0}"}, "not a parameter"),
    "open brace": ({"key": "user:{user_id"}, "not a template"),
    "closing brace": ({"key": "user:}"}, "not a template"),
    "adjacent fields": ({"key": "{user_id}{verbose}"}, "between two fields"),
    "nested fields": ({"key": "{user_id:{verbose}}"}, "cannot hold fields"),
    "empty key": ({"key": ""}, "leave it out"),
    "key of another type": ({"key": 5}, r"user:\{user_id\}"),
    "key of bytes": ({"key": b"user"}, r"user:\{user_id\}"),
    "key with an ignored field": ({"key": "{user_id}", "ignore": ("user_id",)}, "ignore leaves out"),
    "one str of tags": ({"tags": "users"}, r"\['users'\]"),
    "tag of another type": ({"tags": [5]}, "tag"),
    "empty tag": ({"tags": [""]}, "tag"),
    "one str of ignore": ({"ignore": "verbose"}, r"\('verbose',\)"),
    "unknown ignore": ({"ignore": ("session",)}, r"'session'.*not a parameter.*user_id, verbose"),
    "key function of too few": ({"key": lambda user_id: "k"}, r"too many positional.*user_id.*verbose"),
    "key function of what is ignored": (
        {"key": lambda user_id, verbose: "k", "ignore": ("verbose",)},
        r"missing.*'verbose'",
    ),
    "condition of another type": ({"condition": 5}, "condition"),
    "ttl of zero": ({"ttl": 0}, "ttl=0"),
    "negative negative_ttl": ({"negative_ttl": -1}, "negative_ttl=-1"),
    "negative window": ({"stale_while_revalidate": -1}, "stale_while_revalidate=-1"),
    "negative error window": ({"stale_if_error": -1}, "stale_if_error=-1"),
    "lone surrogate in the key": ({"key": "\ud800"}, "surrogate|Unicode"),
}


@pytest.mark.parametrize("case", BAD_RULES)
def test_rules_that_make_no_sense_are_refused_at_decoration(case: str):
    """Before the function is ever called, the error says what is wrong and what there is."""
    rules, message = BAD_RULES[case]
    with pytest.raises(ConfigurationError, match=message):
        Cache().cached(**rules)(fine)
    with pytest.raises(ConfigurationError, match=message):
        cached(**rules)(fine)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lease": True}, r"no option 'lease', .* pass policy=Policy\(lease=True\)"),
        ({"ttl": 5, "load_timeout": 2.5}, r"no option 'load_timeout', .* pass policy=Policy\(load_timeout=2.5\)"),
        (
            {"namespace": "x"},
            r"no option 'namespace', which is the cache's: decorate with cache\.view\(namespace='x'\)\.cached",
        ),
        (
            {"tag": "users"},
            r"no option 'tag' \(there are: .*condition, ignore, key, .*tags, thread, ttl, type, version\)",
        ),
    ],
)
@pytest.mark.parametrize(
    ("name", "decorate"),
    [("cached", Cache().cached), ("cached_many", Cache().cached_many), ("cached", lambda **o: cached(**o)(fine))],
    ids=["cached", "cached_many", "module's cached"],
)
def test_an_unknown_option_of_a_decorator_is_told(name: str, decorate: Any, options: dict[str, Any], words: str):
    """With the decorator it was given to, and the place it belongs to or what there is."""
    with pytest.raises(TypeError, match=rf"^{name}\(\) has {words}"):
        decorate(**options)


def test_an_option_of_another_decorator_is_told():
    """Each names those that it has itself."""
    with pytest.raises(TypeError, match=r"^cached\(\) has no option 'batch_window' \(there are: condition,"):
        Cache().cached(batch_window=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^cached_many\(\) .*\(there are: batch_window, condition,"):
        Cache().cached_many(max_entries=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"^cached\(\) .*\(there are: condition, .*max_entries"):
        cached(batch_window=1)(fine)  # type: ignore[call-overload]


@pytest.mark.parametrize("made", ["", 5, None, b"key", "\ud800"], ids=ascii)
async def test_a_key_function_that_returns_no_key_is_refused(made: Any):
    """The call says that a key is non-empty text, and the function is not called."""

    @cached(key=lambda user_id: made)
    async def load(user_id: int) -> int:
        return await never()  # type: ignore[no-any-return]

    with pytest.raises((InvalidKey, ConfigurationError), match="key"):
        await load(1)


# Construction --------------------------------------------------------------------------------------------------------

BAD_POLICIES: list[tuple[dict[str, Any], str]] = [
    ({"jitter": -0.1}, "jitter.*fraction"),
    ({"jitter": 1}, "jitter.*fraction"),
    ({"jitter": math.nan}, "jitter.*fraction"),
    ({"jitter": "0.1"}, "jitter.*fraction"),
    ({"jitter": True}, "jitter.*fraction"),
    ({"early_refresh": -1}, "early_refresh.*off"),
    ({"early_refresh": math.nan}, "early_refresh.*off"),
    ({"early_refresh": math.inf}, "early_refresh.*off"),
    ({"refresh_ahead": 0}, "refresh_ahead.*fraction"),
    ({"refresh_ahead": 1}, "refresh_ahead.*fraction"),
    ({"refresh_ahead": math.nan}, "refresh_ahead.*fraction"),
    ({"refresh_ahead": "0.8"}, "refresh_ahead.*fraction"),
    ({"stale_while_revalidate": -1}, "stale_while_revalidate=-1.*seconds"),
    ({"stale_while_revalidate": math.inf}, "stale_while_revalidate=inf.*seconds"),
    ({"stale_while_revalidate": None}, "stale_while_revalidate=None.*seconds"),
    ({"stale_while_revalidate": 10**400}, "stale_while_revalidate=.*seconds"),
    ({"stale_if_error": math.nan}, "stale_if_error=nan.*seconds"),
    ({"stale_if_error": "1"}, "stale_if_error='1'.*seconds"),
    ({"error_backoff": -1}, "error_backoff=-1.*seconds"),
    ({"soft_timeout": 0, "stale_if_error": 1}, "soft_timeout=0.*seconds"),
    ({"soft_timeout": 1}, "soft_timeout needs a stale value.*stale_while_revalidate"),
    ({"soft_timeout": 2, "load_timeout": 1, "stale_if_error": 1}, "soft_timeout must be shorter"),
    ({"soft_timeout": 1, "load_timeout": 1, "stale_if_error": 1}, "soft_timeout must be shorter"),
    ({"load_timeout": 0}, "load_timeout=0.*seconds"),
    ({"load_timeout": math.inf}, "load_timeout=inf.*seconds"),
    ({"backend_timeout": 0}, "backend_timeout=0.*seconds"),
    ({"backend_timeout": None}, "backend_timeout=None.*seconds"),
    ({"lease_ttl": -1}, "lease_ttl=-1.*seconds"),
    ({"lease_ttl": None}, "lease_ttl=None.*seconds"),
    ({"on_backend_error": "ignore"}, 'on_backend_error=.*"miss" or "raise"'),
    ({"on_backend_error": None}, 'on_backend_error=.*"miss" or "raise"'),
]


@pytest.mark.parametrize(("options", "message"), BAD_POLICIES, ids=lambda case: str(case)[:50])
def test_a_policy_validates_itself(options: dict[str, Any], message: str):
    """Values out of range, and pairs that contradict each other, are refused with the sentence that mends them."""
    with pytest.raises(ConfigurationError, match=message):
        Policy(**options)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Memory(max_entries=0),
        lambda: Memory(max_entries=-1),
        lambda: Memory(max_entries=True),
        lambda: Memory(max_entries=1.5),  # type: ignore[arg-type]
        lambda: Memory(max_entries="10"),  # type: ignore[arg-type]
        lambda: Memory(max_bytes=0),
        lambda: Memory(max_bytes=-1),
        lambda: Memory(max_bytes=1.5),  # type: ignore[arg-type]
        lambda: Memory(eviction="newest"),
        lambda: Cache(memory=0),
        lambda: Cache(memory=-5),
        lambda: Cache(memory=True),
        lambda: MemoryBackend(max_entries=0),
    ],
)
def test_bounds_below_one_are_refused(build: Callable[[], object]):
    """A near tier that could hold nothing, or an eviction that nobody wrote, is an error at construction."""
    with pytest.raises(ConfigurationError, match=r"max_entries|max_bytes|eviction|memory"):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Cache("redis://localhost"),  # type: ignore[arg-type]
        lambda: Cache({}),  # type: ignore[arg-type]
        lambda: Cache(MemoryBackend),  # type: ignore[arg-type]
        lambda: Cache(memory="10"),  # type: ignore[arg-type]
        lambda: Cache(memory=1.5),  # type: ignore[arg-type]
        lambda: Cache(memory=Memory),  # type: ignore[arg-type]
        lambda: Cache(memory=None),
        lambda: Cache(policy=60),  # type: ignore[arg-type]
        lambda: Cache(policy=Policy),  # type: ignore[arg-type]
        lambda: Cache(policy={"ttl": 60}),  # type: ignore[arg-type]
        lambda: Cache(codec="json"),  # type: ignore[arg-type]
        lambda: Cache(clock=FakeClock),  # type: ignore[arg-type]
        lambda: Cache(observers=print),  # type: ignore[arg-type]
        lambda: Cache(observers=[None]),  # type: ignore[list-item]
        lambda: Cache(policy=Policy(lease=True)),
        lambda: Cache(NullBackend(), policy=Policy(lease=True)),
        lambda: Cache().view(policy=60),  # type: ignore[arg-type]
        lambda: Cache.from_url("memory://", memory=None),
    ],
)
def test_a_cache_of_the_wrong_parts_is_refused_at_construction(build: Callable[[], object]):
    """Not the first read or write, but the constructor says that a part does not fit."""
    with pytest.raises((ConfigurationError, TypeError)):
        build()


async def test_a_loader_that_is_none_is_refused(cache: Cache):
    """What is no coroutine function cannot load: the caller hears of it, and nothing is stored."""
    for loader in (5, lambda: 5):
        with pytest.raises((ConfigurationError, TypeError)):
            await cache.get_or_load("key", loader)  # type: ignore[arg-type]
    await assert_empty(cache)


async def test_clear_without_a_namespace_is_refused_over_a_far_tier():
    """It would take other programs' keys along; the error says what to do, and nothing is removed."""
    async with Cache(MemoryBackend()) as cache:
        await cache.set("key", 1)
        with pytest.raises(ConfigurationError, match="namespace="):
            await cache.clear()
        assert await cache.get("key") == 1


async def test_bytes_in_memory_are_bytes_or_refused():
    """What is no bytes is not made into some: five would be five zeros; nor is half of one counted."""
    backend = MemoryBackend()
    for data in (5, "text", [1, 2], None):
        with pytest.raises(TypeError):
            await backend.set("k", data, ttl=60)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError):
        await backend.incr("k", 1.5, ttl=60)  # pyright: ignore[reportArgumentType]
    assert await backend.get("k") is None


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda way: way.__name__)
def test_a_cache_cannot_be_copied(duplicate: Callable[[Any], Any]):
    """Half of it would be shared with the copy."""
    with pytest.raises(TypeError, match="view"):
        duplicate(Cache(MemoryBackend()))


async def test_a_batch_loader_that_is_not_asynchronous_is_told_so():
    """As a loader is."""
    with pytest.raises(TypeError, match=r"batch loader.*dict instead of an awaitable"):
        await Cache().load_many(["a"], lambda keys: dict.fromkeys(keys, 1))  # type: ignore[arg-type,return-value]


async def test_items_that_cannot_be_keys_of_a_result_are_told_so():
    """Lists, say."""

    @Cache().cached_many()
    async def f(ids: list[Any]) -> dict[Any, int]:
        return {}

    with pytest.raises(InvalidKey, match=r"ids are the keys of its result.*unhashable"):
        await f([[1], [2]])


async def test_a_coroutine_from_a_thread_is_told_of():
    """A function that only wraps an asynchronous one."""

    async def inner() -> int:
        return 1

    @Cache().cached(thread=True)
    def f() -> Any:
        return inner()

    with pytest.raises(TypeError, match="leave thread=True out"):
        await f()
