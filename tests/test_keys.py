"""Keys: different things have different keys, on every engine, in every process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
import string
import subprocess
import sys
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acache import Cache, ConfigurationError, InvalidKey, MemoryBackend
from acache.keys import Template, WireKeys, argument_text, arguments_text, check_key, check_namespace, digest

text = st.text(st.characters(codec="utf-8"), max_size=12)
keys = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.text("@:#a/ t", min_size=1, max_size=12),
    st.builds("@tag:{}".format, text),
    st.builds("@#{}".format, st.text("0123456789abcdef", min_size=64, max_size=64)),
    st.builds("@@{}".format, text),
    st.builds("::{}".format, text),
    st.builds("n::{}".format, text),
    st.text("x", min_size=150, max_size=260),
)
namespaces = st.one_of(
    st.just(""),
    st.text(string.ascii_letters + string.digits + "_.:/+-", min_size=1, max_size=8).filter(
        lambda name: "::" not in name and name[-1] != ":"
    ),
    st.sampled_from(["n", "n:a", "a", "n/a", "app:v1"]),
)
limits = st.sampled_from([(250, True), (200, True), (1024, False), (250, False), (4096, False)])


# On the wire ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(namespaces, st.booleans(), keys), min_size=2, max_size=30, unique=True), limits)
@settings(max_examples=200, deadline=None)
@example([("", False, "n::k"), ("n", False, "k")], (250, True))
@example([("", False, "@tag:t"), ("", True, "t")], (250, True))
@example([("n", False, "@tag:t"), ("n", True, "t")], (250, True))
@example([("", False, "::@tag:t"), ("", True, "t")], (250, True))
@example([("", False, "::a"), ("", False, "a")], (250, True))
@example([("", False, "::n::k"), ("", False, "n::k"), ("n", False, "k")], (250, True))
@example([("", False, "@k"), ("", False, "@@k"), ("", False, "::@@k")], (250, True))
@example([("n", False, "a"), ("n:a", False, "a"), ("n", False, "a::a")], (250, True))
@example([("", False, "k k"), ("", False, "::@#" + digest("k k")), ("", False, "@#" + digest("k k"))], (250, True))
@example([("n", False, "k k"), ("n", False, "@#" + digest("n::k k"))], (250, True))
@example([("n", True, "a b"), ("n", False, "a b")], (250, True))
def test_wire_keys_are_injective(names: list[tuple[str, bool, str]], limit: tuple[int, bool]):
    """No namespace, key or tag ever means the place of another one."""
    max_bytes, printable = limit
    wires = []
    for namespace, is_tag, name in names:
        made = WireKeys(namespace, max_bytes=max_bytes, printable=printable)
        wires.append(made.tag(name) if is_tag else made.entry(name))
    assert len(set(wires)) == len(names)


@given(namespaces, keys, limits)
@settings(max_examples=150, deadline=None)
def test_wire_keys_fit_the_engine(namespace: str, name: str, limit: tuple[int, bool]):
    """Within its length, in its characters, and under the namespace's prefix, so that `clear` finds them."""
    max_bytes, printable = limit
    made = WireKeys(namespace, max_bytes=max_bytes, printable=printable)
    for wire in (made.entry(name), made.tag(name)):
        assert 0 < len(wire.encode()) <= max_bytes
        assert wire.startswith(made.prefix)
        assert not printable or re.fullmatch(r"[!-~]+", wire)


@pytest.mark.parametrize("key", ["user:1", "a/b", "ü", "a", "x" * 100])
def test_ordinary_keys_stay_readable(key: str):
    """A person with the engine's own client finds what they wrote."""
    assert WireKeys("app", max_bytes=4096, printable=False).entry(key) == f"app::{key}"
    assert WireKeys("", max_bytes=4096, printable=False).entry(key) == key


@pytest.mark.parametrize("key", ["a b", "a\r\nset b 0 0 1\r\nx", "a\0b", "\x7f", "\t", "é", "x" * 300])
def test_what_an_engine_cannot_hold_is_hashed(key: str):
    """Blanks, control characters, other alphabets and length are no way to inject a command."""
    wire = WireKeys("n", max_bytes=250, printable=True).entry(key)
    assert re.fullmatch(r"n::@#[0-9a-f]{64}", wire)


def test_the_limit_counts_bytes():
    """At the limit a key is kept, beyond it hashed; letters of several bytes count as such."""
    made = WireKeys("", max_bytes=100, printable=False)
    assert made.entry("x" * 100) == "x" * 100
    assert made.entry("x" * 101) != "x" * 101
    assert made.entry("ü" * 50) == "ü" * 50
    assert made.entry("ü" * 51) != "ü" * 51
    assert made.entry("\U0001f600" * 25) == "\U0001f600" * 25


def test_a_namespace_that_leaves_no_room_is_refused():
    """Not at the first key, but when the cache is built."""
    with pytest.raises(ConfigurationError, match="too long for this engine"):
        WireKeys("n" * 100, max_bytes=100, printable=True)


class Name(enum.StrEnum):
    KEY = "key"


class Mixed(str, enum.Enum):  # noqa: UP042 - people still write it
    KEY = "key"
    AT = "@key"
    PAIR = "a::b"


@pytest.mark.parametrize("member", [Name.KEY, Mixed.KEY, Mixed.AT, Mixed.PAIR])
@pytest.mark.parametrize("namespace", ["", "n"])
async def test_a_str_subclass_is_the_key_it_is_equal_to(member: str, namespace: str):
    """Equal keys are one key, near and far."""
    plain = str.__str__(member)
    for memory in (10, None):
        async with Cache(MemoryBackend(), memory=memory, namespace=namespace) as cache:
            await cache.set(member, 1)
            assert await cache.get(plain) == 1
            await cache.set(plain, 2)
            assert await cache.get(member) == 2
            assert await cache.delete(member) is True
            assert await cache.get(plain) is None


@given(st.one_of(st.text(min_size=1, max_size=20), st.text("\ud800\udfffa", min_size=1)))
def test_check_key_takes_text_that_can_be_encoded(key: str):
    """And refuses the rest."""
    try:
        key.encode()
    except UnicodeEncodeError:
        with pytest.raises(InvalidKey, match="surrogate"):
            check_key(key)
    else:
        assert check_key(key) == key


@given(st.text(max_size=12))
def test_a_namespace_is_taken_or_refused_never_changed(namespace: str):
    """What comes back is what went in."""
    try:
        assert check_namespace(namespace) == namespace
    except ConfigurationError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_.:/+-]*", namespace)
    assert "::" not in namespace


# Arguments -----------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


class OtherPerm(enum.Flag):
    READ = 1


class IntPerm(enum.IntFlag):
    READ = 1


@dataclasses.dataclass(frozen=True)
class Pair:
    a: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class OtherPair:
    a: Any
    b: Any


class Text(str):
    __slots__ = ()


class Number(int): ...


atoms = st.one_of(
    st.none(), st.booleans(), st.integers(-1000, 1000), st.integers(), st.floats(allow_nan=False), text, st.text('",:{}[]()<>=\\%#', max_size=6),
    st.binary(max_size=6), st.dates(), st.datetimes(), st.datetimes(timezones=st.just(UTC)), st.times(), st.timedeltas(),
    st.decimals(allow_nan=False), st.uuids(), st.sampled_from([*Colour, *Level, *Perm, int, str, Path("a"), PurePosixPath("a/b")]),
    st.sampled_from(["None", "True", "1", "1.0", "nan", "inf", "b<>", "()", "[]", "{}", "set{}"]),
    st.builds(Text, text), st.builds(Number, st.integers(0, 3)), st.complex_numbers(allow_nan=False),
)  # fmt: skip
hashable = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3), st.builds(Pair, inner, inner),
        st.builds(OtherPair, inner, inner),
    ),
    max_leaves=5,
)  # fmt: skip
arguments = st.recursive(
    hashable,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.dictionaries(hashable, inner, max_size=3),
        st.sets(hashable, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


def fingerprint(value: Any) -> Any:
    """Return something hashable that is equal for equal arguments of equal types, and different for all others."""
    cls = type(value)
    if cls in (list, tuple):
        return (cls, tuple(fingerprint(item) for item in value))
    if cls in (set, frozenset):
        return (cls, frozenset(fingerprint(item) for item in value))
    if cls is dict:
        return (cls, frozenset((fingerprint(key), fingerprint(item)) for key, item in value.items()))
    if cls in (Pair, OtherPair):
        return (cls, fingerprint(value.a), fingerprint(value.b))
    if cls in (float, complex, Decimal):
        return (cls, str(value))
    if cls in (datetime, time):
        return (cls, value.isoformat(), value.fold, str(value.tzinfo))
    return (cls, value)


@given(arguments, arguments)
@settings(max_examples=400, deadline=None)
def test_argument_text_is_injective(one: Any, other: Any):
    """Two arguments have one text if, and only if, they are of one type and equal in every part."""
    assert (argument_text(one) == argument_text(other)) == (fingerprint(one) == fingerprint(other))


@given(st.lists(arguments, min_size=2, max_size=12))
@settings(max_examples=150, deadline=None)
def test_argument_text_tells_many_apart(values: list[Any]):
    """As many texts as there are different arguments."""
    assert len({argument_text(value) for value in values}) == len({fingerprint(value) for value in values})


@given(
    st.dictionaries(st.sampled_from(["a", "b", "aa", "_"]), arguments),
    st.dictionaries(st.sampled_from(["a", "b", "aa", "_"]), arguments),
)
@settings(max_examples=200, deadline=None)
def test_arguments_text_is_injective(one: dict[str, Any], other: dict[str, Any]):
    """Names and values together, also where the text is hashed."""
    same = {name: fingerprint(value) for name, value in one.items()} == {
        name: fingerprint(value) for name, value in other.items()
    } and list(one) == list(other)
    if set(one) == set(other) and list(one) != list(other):
        return  # a signature has one order
    assert (arguments_text(one, "f") == arguments_text(other, "f")) == same


def test_neighbours_in_type_are_apart():
    """The cases that other libraries get wrong, each with each."""
    values: list[Any] = [
        1, 1.0, True, "1", b"1", Decimal(1), Decimal("1.0"), 1 + 0j, None, "None", 0, 0.0, -0.0, False, "", b"", (), [], {},
        set(), frozenset(), (1,), [1], {1}, frozenset({1}), {1: None}, {1: 1}, ((1,),), "(1,)", date(2024, 1, 1),
        datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, fold=1), "2024-01-01",
        time(0), timedelta(0), UUID(int=0), str(UUID(int=0)), Colour.RED, Level.ONE, Perm.READ, Pair(1, 2), OtherPair(1, 2),
        (1, 2), Text("1"), Number(1), int, "int", Path("a"), "a", float("nan"), "nan", float("inf"), "inf",
    ]  # fmt: skip
    assert len({argument_text(value) for value in values}) == len(values)


def test_every_value_of_a_flag_is_an_argument():
    """Members, their unions, and none of them; the same number of another flag, or without one, is another argument."""
    values = [Perm.READ, Perm.WRITE, Perm.READ | Perm.WRITE, Perm(0), OtherPerm(0), IntPerm(0), Number(0), 0, "Perm(0)"]
    assert len({argument_text(value) for value in values}) == len(values)
    assert argument_text(Perm(0)) == argument_text(Perm.READ & Perm.WRITE)


STABLE = r"""
import sys, json
sys.path.insert(0, {root!r})
from datetime import UTC, datetime, date, timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from uuid import UUID
from acache.keys import argument_text, arguments_text
values = [
    {{"a", "b", "c", "d", "e"}}, frozenset("abcdefgh"), {{"x": {{1, 2, "3"}}, "y": None}}, ("a", 1.5, None, True), b"\x00\xff",
    datetime(2024, 1, 1, tzinfo=UTC), date(2024, 1, 1), timedelta(1), Decimal("1.10"), UUID(int=5), PurePosixPath("a/b"), int,
    {{(1, "a"), (2, "b"), None}}, {{b"x": {{"k": frozenset({{"p", "q", "r"}})}}}},
]
print(json.dumps([argument_text(value) for value in values]))
print(arguments_text({{f"n{{i}}": set(map(str, range(i))) for i in range(40)}}, "f"))
"""


def test_texts_are_the_same_in_every_process():
    """Whatever ``PYTHONHASHSEED`` is, also for sets and for texts that are hashed."""
    root = str(Path(__file__).parents[1])
    outputs = {
        subprocess.run(
            [sys.executable, "-c", STABLE.format(root=root)],
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1


class Plain:
    """An object with the default text, which holds a memory address."""


@pytest.mark.parametrize("value", [Plain(), object(), [Plain()], {"k": Plain()}, lambda: 1, print, iter([])])
def test_no_text_ever_holds_a_memory_address(value: Any):
    """What has no stable text is refused, wherever it is inside."""
    with pytest.raises(TypeError, match="same in every process"):
        argument_text(value)
    with pytest.raises(InvalidKey, match=r"f\(\): the argument 'x'.*ignore=\('x',\)"):
        arguments_text({"x": value}, "f()")


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: Any = 1
    _secret: Any = pydantic.PrivateAttr(default=None)


def opened(**fields: Any) -> Open:
    """Make one with fields that the type checkers do not know."""
    return Open.model_validate(fields)


class Patch(pydantic.BaseModel):
    name: str | None = None
    age: int | None = None


class Settings(pydantic.BaseModel):
    inner: Open
    names: set[str] = set()


class Numbers(pydantic.RootModel[list[int]]): ...


@attrs.define
class Point:
    x: Any
    y: Any = 0


class Pin(NamedTuple):
    x: Any
    y: Any = 0


def test_models_are_told_apart_by_all_they_hold():
    """Declared fields, extra ones and private ones, at any depth; the order of sets and of extra fields is nothing."""
    secret = Open()
    secret._secret = 1
    values = [
        Open(), secret, opened(a=2), opened(a="1"), opened(a=1.0), opened(b=1), opened(b=2), opened(c=1), Settings(inner=Open()),
        Settings(inner=opened(b=1)), Settings(inner=Open(), names={"a", "b"}), Settings(inner=Open(), names={"a"}),
        Numbers([1]), Numbers([2]), [1], Point(1), Point(2), Point(1, 1), Pin(1), Pin(1, 1), (1, 0),
    ]  # fmt: skip
    assert len({argument_text(value) for value in values}) == len(values)
    assert argument_text(opened(b=1, c=2)) == argument_text(opened(c=2, b=1))
    assert argument_text(Settings(inner=Open(), names={"a", "b", "c"})) == argument_text(
        Settings(inner=Open(), names={"c", "b", "a"})
    )


class LaterPair(Pair):
    """Has more than its fields, which nothing lists."""

    def __init__(self, a: Any, b: Any, more: Any = None) -> None:
        super().__init__(a, b)
        if more is not None:
            object.__setattr__(self, "more", more)


@dataclasses.dataclass
class Bag(dict[str, int]):
    owner: str = ""


def test_what_a_dataclass_holds_beyond_its_fields_is_not_overlooked():
    """It is refused, or it is part of the text; without more of its own, a subclass is as good as the class."""
    with pytest.raises(TypeError, match="LaterPair holds more than its fields: more"):
        argument_text(LaterPair(1, 2, 3))
    assert argument_text(LaterPair(1, 2)) != argument_text(Pair(1, 2))
    bag = Bag("me")
    bag["apples"] = 1
    assert argument_text(bag) != argument_text(Bag("me"))


class Money(int):
    cur: Any

    def __new__(cls, amount: int, cur: Any) -> Self:
        made = super().__new__(cls, amount)
        made.cur = cur
        return made


class Slotted(dict[str, int]):
    __slots__ = ("__hidden", "unit")

    def __init__(self, unit: Any = None, hidden: Any = None) -> None:
        super().__init__(a=1)
        if unit is not None:
            self.unit = unit
        if hidden is not None:
            self.__hidden = hidden


class More(Slotted):
    more: Any

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self["a"]


class NamedPin(Pin):
    label: Any


class Attributes(dict[str, Any]):
    """Its items are its attributes."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.__dict__ = self


def with_more(value: Any, **more: Any) -> Any:
    """Set attributes."""
    for name, item in more.items():
        setattr(value, name, item)
    return value


def test_what_a_subclass_of_a_builtin_holds_besides_is_not_overlooked():
    """Its attributes are part of the text, in slots too; their order is nothing, nor is what is worked out of the rest."""
    values = [
        Money(1, "USD"), Money(1, "EUR"), Money(2, "USD"), Money(1, None), Money(1, Money(1, 1)), Number(1), 1,
        Slotted(), Slotted("kg"), Slotted("g"), Slotted(hidden=1), Slotted("kg", 1), {"a": 1}, More(), More("kg"),
        with_more(More("kg"), more=1), with_more(More("kg"), more=2), with_more(More("kg"), other=2),
        Attributes(a=1), Attributes(a=2), Pin(1), NamedPin(1), with_more(NamedPin(1), label="a"), with_more(OrderedDict(a=1)), with_more(OrderedDict(a=1), b=1),
    ]  # fmt: skip
    assert len({argument_text(value) for value in values}) == len(values)
    assert argument_text(with_more(More(), a=1, b=2)) == argument_text(with_more(More(), b=2, a=1))
    asked = More()
    assert asked.twice == 2
    assert argument_text(asked) == argument_text(More())
    with pytest.raises(TypeError, match="same in every process"):
        argument_text(Money(1, Plain()))


def test_the_order_of_a_dict_counts_where_it_is_compared():
    """Two OrderedDicts of another order are two values; two dicts are one, and so are defaultdicts that hold the same."""
    one, other = OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)
    assert one != other
    assert len({argument_text(value) for value in (one, other, dict(one), [one], [other])}) == 5
    assert argument_text(one) == argument_text(OrderedDict(one))
    assert argument_text({"a": 1, "b": 2}) == argument_text({"b": 2, "a": 1})
    assert argument_text(defaultdict(int, one)) == argument_text(defaultdict(list, other))


class Nowhere(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)


@pytest.mark.parametrize("value", [datetime(2024, 1, 1, tzinfo=Nowhere()), time(1, tzinfo=Nowhere())])
def test_a_time_zone_without_a_name_is_refused(value: Any):
    """Its text would hold a memory address."""
    with pytest.raises(TypeError, match="Nowhere has no text that is the same in every process"):
        argument_text(value)


def test_time_zones_are_told_apart():
    """One instant in two zones is two arguments."""
    zones = [
        UTC,
        ZoneInfo("UTC"),
        ZoneInfo("Europe/Berlin"),
        ZoneInfo("Europe/Paris"),
        timezone(timedelta(hours=1)),
        None,
    ]
    assert len({argument_text(datetime(2024, 1, 1, tzinfo=zone)) for zone in zones}) >= len(zones) - 1
    assert len({argument_text(datetime(2024, 1, 1, tzinfo=zone)) for zone in zones[2:]}) == 4


def test_long_arguments_are_hashed():
    """The text stays short however long the arguments are, and stays apart."""
    one, other = (arguments_text({"x": "a" * 10_000 + end}, "f") for end in "12")
    assert one != other
    assert len(one) < 100
    assert one.startswith("#")


# Templates -----------------------------------------------------------------------------------------------------------

values = st.one_of(
    st.none(), st.booleans(), st.integers(-20, 20), st.floats(allow_nan=False), text, st.text('":<>%-_0123456789NTabc', max_size=6),
    st.sampled_from(["1", "1.0", "None", "True", '"1"', "<1", "%3A", "%", "a:b", "", "-1", "inf", "-inf", "nan", "1x", "<", '"']),
    st.binary(max_size=3), st.uuids(), st.dates(), st.tuples(st.integers(0, 2), st.text(':"<', max_size=2)), st.decimals(allow_nan=False),
)  # fmt: skip
TEMPLATES = ["k:{a}", "{a}", "{a}:{b}", "u/{a}/p/{b}/x", "{a}-{b}", "{a}1{b}", '{a}"{b}', "{a}<{b}", "{a}%{b}", "{a}::{b}", "{a}a{b}a",
             "{{{a}}}:{b}", "{a!r}:{b}", "{a!s}:{b!r}"]  # fmt: skip


@pytest.mark.parametrize("template", [one for one in TEMPLATES if "!" not in one])
@pytest.mark.parametrize("declared", [Any, str, int, "str"])
def test_templates_are_injective(template: str, declared: Any):
    """Whatever the arguments are and are declared to be, different ones have different keys."""
    made = Template(template, {"a": declared, "b": declared}, "f()")

    @given(values, values, values, values)
    @settings(max_examples=50, deadline=None)
    def check(a: Any, b: Any, c: Any, d: Any) -> None:
        one, other = {"a": a, "b": b}, {"a": c, "b": d}
        used = [name for name in ("a", "b") if "{" + name + "}" in template]
        same = all(fingerprint(one[name]) == fingerprint(other[name]) for name in used)
        assert (made(one) == made(other)) == same, (made(one), made(other))

    check()


@given(st.lists(st.tuples(values, values), min_size=2, max_size=10))
@settings(max_examples=150, deadline=None)
def test_a_template_without_annotations_tells_many_apart(pairs: list[tuple[Any, Any]]):
    """As many keys as different pairs."""
    made = Template("k:{a}:{b}", {"a": Any, "b": Any}, "f()")
    different = {(fingerprint(a), fingerprint(b)) for a, b in pairs}
    assert len({made({"a": a, "b": b}) for a, b in pairs}) == len(different)


@pytest.mark.parametrize(
    ("template", "declared", "arguments", "key"),
    [
        ("user:{a}", int, {"a": 1}, "user:1"),
        ("user:{a}", str, {"a": "ada"}, "user:ada"),
        ("user:{a}", str, {"a": "1"}, "user:1"),
        ("user:{a}", Any, {"a": "ada"}, "user:ada"),
        ("user:{a}", UUID, {"a": UUID(int=1)}, f"user:<UUID<{UUID(int=1)}>"),
        ("{a}/{b}", int, {"a": 1, "b": 2}, "1/2"),
        ("{{x}}:{a}", int, {"a": 1}, "{x}:1"),
        ("no fields", int, {}, "no fields"),
        ("{a:03d}", int, {"a": 7}, "007"),
        ("{a.year}", Any, {"a": date(2024, 1, 1)}, "2024"),
        ("{a[0]}", Any, {"a": ["x", "y"]}, "x"),
    ],
)
def test_ordinary_templates_make_ordinary_keys(template: str, declared: Any, arguments: dict[str, Any], key: str):
    """What the user wrote is what stands there."""
    assert Template(template, {"a": declared, "b": declared}, "f()")(arguments) == key


@pytest.mark.parametrize(
    "template",
    [
        "{c}",
        "{}",
        "{0}",
        "{a",
        "a}",
        "{a}{b}",
        "{a:{b}}",
        "{a!x}",
        "{.a}",
        "{[0]}",
        "{a.}",
        "{a[}",
        "{ a}",
        "{a }",
        "{c.name}",
    ],
)
def test_a_template_that_cannot_work_is_refused_when_it_is_made(template: str):
    """Not by the first call."""
    with pytest.raises(ConfigurationError, match=r"f\(\): key="):
        Template(template, {"a": int, "b": int}, "f()")


@dataclasses.dataclass
class Chain:
    a: int
    later: Chain | None = None


@dataclasses.dataclass
class User:
    id: int
    name: str
    pair: Pair
    made: date


@pytest.mark.parametrize(
    ("template", "declared", "words"),
    [
        ("{a.nmae}", User, r"User has no 'nmae' \(there are: id, name, pair, made\)"),
        ("{a.pair.c}", User, r"Pair has no 'c'"),
        ("{a.made.yaer}", User, r"date has no 'yaer'"),
        ("{a.nmae}", Settings, r"Settings has no 'nmae' \(there are: inner, names\)"),
        ("{a.z}", Point, r"Point has no 'z'"),
        ("{a.z}", Pin, r"Pin has no 'z'"),
        ("{a.year}", int, r"int has no 'year'"),
        ("{a.hxe}", UUID, r"UUID has no 'hxe'"),
        ("{a:d}", str, r"'d'"),
        ("{a:>>>}", int, r"'>>>'"),
        ("{a!r:d}", int, r"'d'"),
        ("{a.name:05d}", User, r"'05d'"),
        ("{a.id:q}", User, r"'q'"),
        ("{a.nope}", User | None, r"User has no 'nope' \(there are: id, name, pair, made\)"),
        ("{a.nope}", typing.Optional[User], r"User has no 'nope'"),  # noqa: UP045 - people still write it
        ("{a.nope}", typing.Union[None, User, Point], r"User has no 'nope'.*Point has no 'nope'"),  # noqa: UP007
        ("{a.later.nope}", Chain, r"Chain has no 'nope'"),
        ("{a:d}", str | None, r"'d'"),
        ("{a[0]}", int, r"a int has no items"),
        ("{a[x].y}", User, r"a User has no items"),
        ("{a.id[0]}", User, r"a int has no items"),
        ("{a[0]}", set[int], r"a set has no items"),
        ("{a[0]}", int | None, r"a int has no items"),
    ],
)
def test_a_template_is_checked_against_the_declared_types(template: str, declared: Any, words: str):
    """Attributes that are not there and formats that cannot be are refused when the template is made."""
    with pytest.raises(ConfigurationError, match=rf"f\(\): key=.*{words}"):
        Template(template, {"a": declared}, "f()")


class Items(typing.Protocol):
    """A class that keeps it may have items."""


class Loose:
    """Its attributes are made by its constructor, so nothing lists them."""

    def __init__(self) -> None:
        self.id = 1


@pytest.mark.parametrize(
    ("template", "declared"),
    [
        ("{a.id}", Loose), ("{a.b}", Open), ("{a.id}", Any), ("{a.id}", User | None), ("{a[x]}", dict[str, int]), ("{a.id}", "Later"),
        ("{a.real}", int), ("{a.hex}", UUID), ("{a.made:%Y-%m}", User), ("{a.id:03d}", User), ("{a.name:>8}", User),
        ("{a.id}", User | Point), ("{a.x}", User | Point | None), ("{a.id}", User | Any), ("{a.id}", "Later | None"), ("{a:d}", int | str),
        ("{a[0]}", str), ("{a[0]}", Pin), ("{a[0]}", list[int] | int), ("{a[0]}", Sequence[int]), ("{a[0]}", Iterable[int]),
        ("{a[0]}", object), ("{a[0]}", Any), ("{a[x][y]}", dict[str, Any]), ("{a[0]}", TypeVar("TypeVar")), ("{a[0]}", Items),
        ("{a.later.later.a}", Chain),
        ("{a.pair.a.anything}", User), ("{a!s:>8}", int), ("{a.x}", Pin), ("{a:%Y}", date), ("{a.value}", Colour), ("{a.name}", Colour),
    ],
)  # fmt: skip
def test_a_template_that_may_work_is_taken(template: str, declared: Any):
    """What the declared types leave open is no error."""
    assert Template(template, {"a": declared}, "f()").names == {"a"}


def test_an_argument_that_does_not_take_its_format_is_an_invalid_key():
    """Where the type was not declared, the call finds out."""
    with pytest.raises(InvalidKey, match=r"\{a:03d\}"):
        Template("{a:03d}", {"a": Any}, "f()")({"a": "seven"})


def test_a_value_without_a_stable_text_is_an_invalid_key():
    """The error says to name an attribute."""
    made = Template("k:{a}", {"a": Any}, "f()")
    with pytest.raises(InvalidKey, match=r"\{a\}.*\{a\.id\}"):
        made({"a": Plain()})
    for template in ("k:{a!r}", "k:{a!s}"):
        with pytest.raises(InvalidKey):
            Template(template, {"a": Any}, "f()")({"a": Plain()})


def test_templates_know_their_fields():
    """For the check against ``ignore``."""
    assert Template("{a.x}:{b[0]}:{c!r}:{d:>5}", dict.fromkeys("abcd", Any), "f()").names == {"a", "b", "c", "d"}


def test_a_patch_that_sets_nothing_and_one_that_sets_none_have_two_keys():
    """They are equal, and ``exclude_unset`` makes two things of them."""
    values = [Patch(), Patch(name=None), Patch(age=None), Patch(name=None, age=None)]
    assert len({argument_text(value) for value in values}) == 4
    assert argument_text(Patch(age=1, name="x")) == argument_text(Patch(name="x", age=1))


def test_names_of_extra_attributes_cannot_pretend_to_be_more():
    """Whoever sends JSON chooses them."""
    values = [
        opened(**{"b=1,c": 2}), opened(b=1, c=2), opened(**{'b":1,"c': 2}), opened(**{"a=1){b": 2}), opened(**{"": 1}),
        opened(_secret=1),
    ]  # fmt: skip
    assert len({argument_text(value) for value in values}) == len(values)


@pytest.mark.parametrize("namespace", ["", "n", "a:b"])
def test_a_digest_is_told_from_every_other_record(namespace: str):
    """Of the messages about a namespace, those about leases are many, and need no look for the key behind a digest."""
    keys = WireKeys(namespace, max_bytes=100, printable=False)
    assert keys.is_digest(keys.entry("k" * 200))
    assert keys.is_digest(keys.tag("t" * 200))
    others = [keys.entry("k"), keys.entry("@#k"), keys.entry("#"), keys.tag("t"), keys.tag("@#"), keys.lease("k")]
    assert not any(keys.is_digest(wire) for wire in others)
