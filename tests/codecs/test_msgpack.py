"""`Msgpack`: what goes in comes back exactly, or does not go in."""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st

from acache import Cache, ConfigurationError, DecodeError, EncodeError, MemoryBackend, Msgpack

T = TypeVar("T")

settings.register_profile("codecs", deadline=None, max_examples=150)
settings.load_profile("codecs")


# Equality ------------------------------------------------------------------------------------------------------------


def exactly_equal(one: Any, other: Any) -> bool:  # noqa: PLR0911 - a case for each sort of value
    """Tell whether two values are the same in every observable part: types, signs of zero, NaN payloads, zones."""
    if type(one) is not type(other):
        return False
    if isinstance(one, enum.Enum):
        return one is other
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, datetime):
        return (
            one.replace(tzinfo=None, fold=0) == other.replace(tzinfo=None, fold=0)
            and one.fold == other.fold
            and same_zone(one.tzinfo, other.tzinfo)
        )
    if isinstance(one, time):
        return (
            one.replace(tzinfo=None, fold=0) == other.replace(tzinfo=None, fold=0)
            and one.fold == other.fold
            and same_zone(one.tzinfo, other.tzinfo)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(exactly_equal, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            exactly_equal(*keys) and exactly_equal(one[keys[0]], other[keys[1]])
            for keys in zip(one, other, strict=True)
        )
    if isinstance(one, (set, frozenset)):
        rest = list(other)
        for item in one:
            match = next((index for index, found in enumerate(rest) if exactly_equal(item, found)), None)
            if match is None:
                return False
            del rest[match]
        return not rest
    if isinstance(one, pydantic.BaseModel):
        return (
            exactly_equal(one.__dict__, other.__dict__)
            and one.model_fields_set == other.model_fields_set
            and exactly_equal(one.model_extra, other.model_extra)
            and exactly_equal(one.__pydantic_private__, other.__pydantic_private__)
        )
    if isinstance(one, msgspec.Struct):
        return all(exactly_equal(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    if dataclasses.is_dataclass(one):
        return all(
            exactly_equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    return bool(one == other)


def same_zone(one: tzinfo | None, other: tzinfo | None) -> bool:
    """Tell whether two zones have the same class, key, offset and name."""
    if isinstance(one, ZoneInfo):
        return isinstance(other, ZoneInfo) and one.key == other.key
    if isinstance(one, timezone):
        return isinstance(other, timezone) and (one.utcoffset(None), one.tzname(None)) == (
            other.utcoffset(None),
            other.tzname(None),
        )
    return one is other


def round_trip(value: Any, type_: Any = None, codec: Msgpack | None = None) -> Any:
    """Encode, decode, and check that nothing changed."""
    codec = codec or Msgpack()
    data = codec.encode(value)
    assert type(data) is bytes
    back = codec.decode(data, type_)
    assert exactly_equal(value, back), (value, back)
    return back


# Values of the builtin types -----------------------------------------------------------------------------------------

zones = st.one_of(
    st.none(),
    st.sampled_from([UTC, UTC, timezone(timedelta(0)), timezone(timedelta(0), "Z"), timezone.max, timezone.min]),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kathmandu", "UTC", "Etc/GMT+5"]).map(ZoneInfo),
    st.builds(
        timezone,
        st.timedeltas(min_value=timedelta(hours=-23, minutes=-59), max_value=timedelta(hours=23, minutes=59)),
    ),
    st.builds(
        timezone,
        st.timedeltas(min_value=timedelta(hours=-23), max_value=timedelta(hours=23)),
        st.text(st.characters(codec="utf-8"), max_size=8),
    ),
)
text = st.text(st.characters(codec="utf-8"), max_size=20)
naive = st.datetimes(min_value=datetime.min, max_value=datetime.max)
moments = st.builds(
    lambda when, zone, fold: when.replace(tzinfo=zone, fold=fold), naive, zones, st.sampled_from([0, 1])
)
times = st.builds(
    lambda when, zone, fold: when.replace(tzinfo=zone, fold=fold), st.times(), zones, st.sampled_from([0, 1])
)
decimals = st.one_of(
    st.decimals(),
    st.decimals(allow_nan=False, places=7),
    st.sampled_from(
        [Decimal(text) for text in ("NaN", "-NaN", "sNaN", "-sNaN123", "NaN42", "Infinity", "-Infinity", "-0", "0E+9",
                                    "0.000", "1E-999999", "1E+999999", "1.10", "1.1")]
    ),
)  # fmt: skip
integers = st.one_of(
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.sampled_from([sign * (2**bits + step) for sign in (1, -1) for bits in (31, 32, 63, 64, 127, 128) for step in (-1, 0, 1)]),
)  # fmt: skip
unsignalling = decimals.filter(lambda value: not value.is_snan())  # a signalling NaN cannot be hashed
atoms = st.one_of(
    st.none(), st.booleans(), integers, st.floats(), text, st.binary(max_size=20), moments, st.dates(), times,
    st.timedeltas(), decimals, st.uuids(),
)  # fmt: skip
hashable_atoms = st.one_of(
    st.none(), st.booleans(), integers, st.floats(), text, st.binary(max_size=20), st.dates(), st.timedeltas(),
    unsignalling, st.uuids(), naive,
)  # fmt: skip
hashables = st.recursive(
    hashable_atoms,
    lambda inner: st.one_of(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
    max_leaves=5,
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(text, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=15,
)


@given(values)
@settings(max_examples=600)
def test_any_value_of_the_builtin_types_comes_back_exactly(value: Any):
    """Of whatever nesting, with equal types all the way down."""
    round_trip(value)


@pytest.mark.parametrize(
    "strategy", [integers, st.floats(), text, st.binary(), moments, st.dates(), times, st.timedeltas(), decimals, zones]
)
def test_each_sort_of_atom_comes_back_exactly(strategy: st.SearchStrategy[Any]):
    """With the extremes of its range."""

    @given(strategy)
    def check(value: Any) -> None:
        if not isinstance(value, tzinfo):
            round_trip(value)

    check()


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**4000, -(10**4000),
        0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, "", "\0", "é\U0001f600", b"",
        b"\xff", [], (), {}, set(), frozenset(), ((),), [[]], {(): ()}, {None: None}, {True: 1}, {1: True}, {1.0: 1},
        {"a": 1, 2: "b"}, {b"a": "a", "a": b"a"}, {(1, 2): {3}}, {frozenset({1}): [1]}, {1, "1", b"1", None},
        datetime.min, datetime.max, datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")),
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2024, 10, 27, 2, 30, fold=0, tzinfo=ZoneInfo("Europe/Berlin")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=1))), datetime(2024, 1, 1, tzinfo=timezone.max),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "CET")), datetime(2024, 1, 1, 0, 0, 0, 1),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1), "")),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "UTC")),
        date.min, date.max, time.min, time.max, time(1, 2, 3, 4, tzinfo=ZoneInfo("UTC"), fold=1), time(5),
        timedelta.min, timedelta.max, timedelta(microseconds=-1), Decimal("sNaN7"), UUID(int=0), UUID(int=2**128 - 1),
        float("1e16"), -5, 127, 128, 255, 256, 65535, 65536,
    ],
    ids=lambda value: "set" if isinstance(value, set) else repr(value)[:40],
)  # fmt: skip
def test_the_corners(value: Any):
    """The values at which other formats lose something."""
    round_trip(value)
    round_trip([value, (value,), {"k": value}])


def test_equal_values_of_different_types_stay_apart():
    """``1``, ``1.0``, ``True``, ``Decimal(1)`` and their containers do not turn into each other."""
    round_trip([1, 1.0, True, Decimal(1), "1", b"1", (1,), [1], {1}, frozenset({1}), {1: 1}, {1.0: 1}, {True: 1}])


def test_the_order_of_a_dict_is_kept():
    """Insertion order is observable, so it comes back."""
    assert list(round_trip({"b": 1, "a": 2, "c": 3})) == ["b", "a", "c"]
    assert list(round_trip({3: 1, "a": 2, 1: 3})) == [3, "a", 1]


def test_shared_parts_are_copied_not_confused():
    """A value that occurs twice comes back twice; that is not a cycle."""
    part = [1, 2]
    round_trip([part, part, {"a": part}])


def test_nesting_within_reason_comes_back():
    """A hundred levels are no problem for any container."""
    for wrap in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}, lambda inner: {1: inner}):
        value: Any = 1
        for _ in range(100):
            value = wrap(value)
        round_trip(value)


def test_what_is_decoded_is_not_shared_with_the_bytes():
    """Two decodings are two objects, so changing one changes nothing else."""
    codec = Msgpack()
    data = codec.encode([[1], {"a": [2]}])
    codec.decode(data)[0].append("changed")
    assert codec.decode(data) == [[1], {"a": [2]}]


def test_encoding_does_not_change_the_value():
    """The codec reads only."""
    value = {"a": [(1, {2}), Decimal(3)], 4: {"b": None}}
    Msgpack().encode(value)
    assert value == {"a": [(1, {2}), Decimal(3)], 4: {"b": None}}


# Classes -------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "r"
    BLUE = ("b", 1)
    CRIMSON = "r"  # an alias


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"
    NO = "no"


class Mixed(str, enum.Enum):  # noqa: UP042 - people still write it
    A = "a"


class Odd(enum.Enum):
    VALUE = object  # no codec could store this value; the name is enough
    name_ = "x"


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


class IntPerm(enum.IntFlag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Plain:
    a: int
    b: str = "x"
    c: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    when: datetime | None
    inner: Plain | None = None


@dataclasses.dataclass(slots=True, kw_only=True)
class Slotted:
    x: tuple[int, ...] = ()
    y: Any = None


@dataclasses.dataclass
class Child(Plain):
    d: Colour = Colour.RED


@dataclasses.dataclass
class Computed:
    first: str
    last: str
    full: str = dataclasses.field(init=False)
    builds: int = dataclasses.field(default=0, init=False, compare=False)

    def __post_init__(self) -> None:
        self.full = f"{self.first} {self.last}"
        self.builds += 1


@dataclasses.dataclass
class WithInitVar:
    a: int
    scale: dataclasses.InitVar[int] = 2
    b: int = 0

    def __post_init__(self, scale: int) -> None:
        self.b = self.a * scale


@dataclasses.dataclass
class Box(Generic[T]):
    item: T


@dataclasses.dataclass
class Tree:
    name: str
    children: list[Tree] = dataclasses.field(default_factory=list)


class Point(msgspec.Struct):
    x: int
    y: int = 0


class FrozenPoint(msgspec.Struct, frozen=True):
    x: int


class Tagged(msgspec.Struct, tag="tagged"):
    x: Any


class Renamed(msgspec.Struct, rename="camel"):
    first_name: str
    last_name: str | None = None


class KwOnly(msgspec.Struct, kw_only=True, omit_defaults=True, array_like=True):
    a: int = 1
    b: Any = None


class Nested(msgspec.Struct):
    point: Point
    more: dict[str, Tagged] = {}
    colour: Colour = Colour.BLUE


class ChildStruct(Point):
    z: tuple[int, ...] = ()


class Forbid(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    a: int


class PostInit(msgspec.Struct):
    a: int
    b: int = 0

    def __post_init__(self) -> None:
        self.b += self.a


class User(pydantic.BaseModel):
    id: int
    name: str = "anonymous"
    joined: datetime | None = None


class Team(pydantic.BaseModel):
    lead: User
    members: list[User] = []
    by_name: dict[str, User] = {}


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")
    tags: set[str] = pydantic.Field(default_factory=set, serialization_alias="TAGS")


class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Private(pydantic.BaseModel):
    a: int
    _secret: Any = pydantic.PrivateAttr(default=None)


class FrozenModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    a: tuple[int, ...]


class ItemModel(pydantic.BaseModel, Generic[T]):
    item: T


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Validated(pydantic.BaseModel):
    price: Decimal
    doubled: Decimal = Decimal(0)

    @pydantic.model_validator(mode="after")
    def double(self) -> Validated:
        self.doubled = self.price * 2
        return self

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        return f"{self.price} EUR"


@pydantic.dataclasses.dataclass
class PydanticDataclass:
    a: int
    b: str = "x"


def private(secret: Any) -> Private:
    """Return a model with a private attribute set."""
    model = Private(a=1)
    model._secret = secret
    return model


def marked() -> Computed:
    """Return a dataclass whose fields are not what ``__init__`` would make of them."""
    value = Computed("Ada", "Lovelace")
    value.full = "The Countess"
    value.builds = 7
    return value


OBJECTS: list[Any] = [
    *Colour, *Level, *Word, *Mixed, *Odd,
    Plain(1), Plain(1, "b", [Plain(2), (3,)]), Plain("not an int", None),  # type: ignore[arg-type]
    Frozen(datetime(2024, 1, 1, tzinfo=UTC), Plain(1)), Frozen(None), Slotted(), Slotted(x=(1, 2), y={1: {2}}),
    Child(1, "b", [], Colour.BLUE), Computed("Ada", "Lovelace"), marked(), WithInitVar(3), Box(Box((1,))), Box(None),
    Tree("a", [Tree("b"), Tree("c", [Tree("d")])]),
    Point(1, 2), FrozenPoint(-1), Tagged((1, {2})), Renamed("Ada"), KwOnly(), KwOnly(a=2, b=b"x"),
    Nested(Point(1), {"k": Tagged(Decimal("1.10"))}), ChildStruct(1, 2, (3,)), Forbid(1), Point(2**70),
    User(id=1), User(id=2, name="Ada", joined=datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
    Team(lead=User(id=1), members=[User(id=2)], by_name={"x": User(id=3)}), Aliased(userId=5), Aliased(userId=5, tags={"a"}),
    Extra(a=1), Extra(a=1, b=(2, 3), c={4}),  # type: ignore[call-arg]
    private((1, {2})), Private(a=2), FrozenModel(a=(1, 2)), ItemModel[int](item=3), ItemModel[list[User]](item=[User(id=1)]),
    Numbers([1, 2, 3]), Validated(price=Decimal("9.90")), User.model_construct(id="not an int"), PydanticDataclass(1),
]  # fmt: skip


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: repr(value)[:50])
def test_an_object_comes_back_by_its_type(value: Any):
    """Where the reader names the class, also inside of containers of it."""
    cls = type(value)
    round_trip(value, cls)
    round_trip([value, value], list[cls])  # type: ignore[valid-type]
    round_trip({"k": value}, dict[str, cls])  # type: ignore[valid-type]
    round_trip((value, [value]), tuple[cls, list[cls]])  # type: ignore[valid-type]
    round_trip(value, cls | None)
    round_trip(None, cls | None)
    round_trip(value, Annotated[cls, "with a note"])
    round_trip(value, Annotated[cls, ["that cannot be hashed"]])
    round_trip(value, Union[int, cls])  # noqa: UP007 - the old spelling is another class
    round_trip(value, Optional[cls])  # noqa: UP045


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: repr(value)[:50])
def test_an_object_comes_back_by_registration(value: Any):
    """A codec that knows the class needs no type, wherever the object is."""
    codec = Msgpack(types=[type(value), User, Team, Plain, Point, Tagged, Colour, Box, Tree])
    round_trip(value, None, codec)
    round_trip([value, {"k": (value,)}, {1: value}], None, codec)
    round_trip(value, Any, codec)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: repr(value)[:50])
def test_an_object_nobody_asked_for_is_a_decode_error(value: Any):
    """A class that neither the reader nor the codec's owner named is not made, and the error names it."""
    codec = Msgpack()
    data = codec.encode(value)
    for type_ in (None, int, list[int], Any):
        with pytest.raises(DecodeError, match=r"pass type=, or register"):
            codec.decode(data, type_)
    with pytest.raises(DecodeError, match=r"holds a .*test_msgpack:[A-Z]"):
        codec.decode(codec.encode([value]))


@pytest.mark.parametrize(
    "value", [value for value in OBJECTS if type(value).__hash__], ids=lambda value: repr(value)[:50]
)
def test_an_object_comes_back_as_a_key(value: Any):
    """What can be hashed can be the key of a dict and the member of a set."""
    try:
        hash(value)
    except TypeError:
        pytest.skip("it holds something that cannot be hashed")
    cls = type(value)
    round_trip({value: 1}, dict[cls, int])  # type: ignore[valid-type]
    round_trip({value}, set[cls])  # type: ignore[valid-type]
    round_trip(frozenset({value}), frozenset[cls])  # type: ignore[valid-type]


@given(values)
def test_any_value_comes_back_inside_an_object(value: Any):
    """The fields of an object are as exact as anything else, whatever their annotations say."""
    round_trip(Slotted(y=value), Slotted)
    round_trip(Tagged(value), Tagged)
    round_trip(private(value), Private)


def test_a_type_reaches_the_classes_of_its_fields():
    """Naming the outer class names the classes that its annotations hold."""
    round_trip(Team(lead=User(id=1), members=[User(id=2)]), Team)
    round_trip(Nested(Point(1), {"a": Tagged(1)}), Nested)
    round_trip(Frozen(None, Plain(1)), Frozen)
    round_trip(Tree("a", [Tree("b")]), Tree)


class Row(TypedDict):
    """With a key of every kind."""

    user: Required[User]
    point: NotRequired[Point]
    level: Annotated[Level | None, "note"]


class Rows(Row, total=False):
    """It inherits keys, and holds others of its kind."""

    rows: list[Row] | dict[str, Rows]
    tagged: tuple[Tagged, ...]


class Page(TypedDict, Generic[T]):
    """Of any class."""

    items: list[T]


class Written(typing_extensions.TypedDict):
    """Keys of a kind that Python has since 3.13."""

    plain: typing_extensions.ReadOnly[Plain]


Pages = typing_extensions.TypeAliasType("Pages", list[Page[User]])
Person = NewType("Person", User)
ROW: dict[str, Any] = {"user": User(id=1), "point": Point(1), "level": Level.LOW}


@pytest.mark.parametrize(
    ("value", "type_"),
    [
        (ROW, Row),
        ([ROW], list[Row]),
        (ROW | {"rows": [ROW], "tagged": (Tagged(1),)}, Rows),
        ({"rows": {"a": ROW | {"tagged": (Tagged(2),)}}}, Rows | None),
        ({"items": [User(id=1)]}, Page[User]),
        ({"plain": Plain(1)}, Written),
        ([{"items": [User(id=1)]}], Pages),
        ({1: User(id=1)}, dict[int, Person]),
        (User(id=1), Annotated[Person, "note"]),
        (Level.LOW, Literal[Level.LOW, "none"]),
        ([Level.LOW], list[Literal[Level.LOW]] | None),
    ],
    ids=[
        "all",
        "list",
        "inherited",
        "nested",
        "generic",
        "typing_extensions",
        "alias",
        "new type",
        "annotated",
        "literal",
        "literals",
    ],
)
def test_a_type_that_is_only_a_name_for_others_reaches_their_classes(value: Any, type_: Any):
    """A ``TypedDict`` of whatever kind, a ``NewType``, an alias, a ``Literal``: what they name may be made."""
    round_trip(value, type_)


def test_a_type_reaches_every_class_of_a_long_chain():
    """However many there are between them, and although their annotations are text."""
    chain = [
        dataclasses.make_dataclass(
            f"Link{number}", [("next", f"list[Link{number + 1}] | None"), ("head", "list[Link0]")]
        )
        for number in range(30)
    ]
    chain.append(dataclasses.make_dataclass("Link30", [("next", "None"), ("head", "list[Link0]")]))
    value: Any = None
    for link in reversed(chain):
        link.__module__, globals()[link.__name__] = __name__, link
        value = link(None if value is None else [value], [])
    round_trip(value, chain[0])


def test_a_type_does_not_reach_further():
    """A class that is only in the value, and in no annotation, is not made."""
    codec = Msgpack()
    with pytest.raises(DecodeError, match="Point"):
        codec.decode(codec.encode(Slotted(y=Point(1))), Slotted)
    with pytest.raises(DecodeError, match="User"):
        codec.decode(codec.encode([User(id=1)]), list[Point])


def test_an_init_does_not_run_again():
    """What ``__post_init__`` computed once is not computed twice."""
    assert round_trip(Computed("Ada", "Lovelace"), Computed).builds == 1
    value = PostInit(1, 2)
    back = Msgpack().decode(Msgpack().encode(value), PostInit)
    assert (back.a, back.b) == (value.a, value.b)


def test_a_frozen_object_stays_frozen_and_equal():
    """Equality, hash and immutability are those of the original."""
    value = Frozen(datetime(2024, 1, 1, tzinfo=UTC))
    back = round_trip(value, Frozen)
    assert (back == value, hash(back) == hash(value)) == (True, True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.when = None


def test_attributes_beside_the_fields_come_back_or_are_refused():
    """An object that carries more than its fields is not silently cut down to them."""
    value = Plain(1)
    value.note = "extra"  # type: ignore[attr-defined]
    try:
        data = Msgpack().encode(value)
    except EncodeError:
        return
    assert getattr(Msgpack().decode(data, Plain), "note", None) == "extra"


def test_fields_that_the_class_lost_or_gained_are_a_decode_error():
    """An entry of another version of the class is a miss, not an object with missing attributes."""

    def version(fields: list[tuple[str, type]]) -> Any:
        cls = dataclasses.make_dataclass("Versioned", fields)
        cls.__module__, cls.__qualname__ = __name__, "Versioned"
        return cls

    codec, old, new = Msgpack(), version([("a", int)]), version([("a", int), ("b", int)])
    with pytest.raises(DecodeError, match="another version"):
        codec.decode(codec.encode(old(1)), new)
    with pytest.raises(DecodeError, match="another version"):
        codec.decode(codec.encode(new(1, 2)), old)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (User(id=1), Team),
        (Point(1), User),
        (Plain(1), Point),
        (Colour.RED, Level),
        (1, User),
        ("x", Point),
        ([1], Plain),
    ],
    ids=repr,
)
def test_a_value_of_another_class_is_a_decode_error(stored: Any, wanted: Any):
    """A reader never gets an object of a class it did not ask for."""
    with pytest.raises(DecodeError):
        Msgpack().decode(Msgpack().encode(stored), wanted)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("text", int), (1, str), ([1], dict[str, int]), ({"a": 1}, list[int]), ((1,), list[int]),
        (1.5, int), (b"x", str), ({1}, list[int]), (User(id=1), list[User]), ([User(id=1)], User),
        ([Point(1)], list[User]), ("x", int | None),
        ("red", Colour), (True, str), (5, list[User] | None),
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_that_does_not_fit_the_type_is_never_returned(stored: Any, wanted: Any):
    """``decode`` promises a value of this type or a DecodeError; what is inside builtin containers is not looked at."""
    data = Msgpack().encode(stored)
    with pytest.raises(DecodeError):
        Msgpack().decode(data, wanted)


@pytest.mark.parametrize(
    ("plain", "cls"),
    [({"id": 1, "name": "a", "joined": None}, User), ({"x": 1, "y": 2}, Point), ({"a": 1, "b": "x", "c": []}, Plain)],
    ids=repr,
)
def test_plain_data_becomes_the_class_that_is_asked_for(plain: Any, cls: Any):
    """A dict that another program wrote can be read as an object."""
    assert Msgpack().decode(Msgpack().encode(plain), cls) == cls(**plain)


def test_plain_data_of_the_wrong_shape_is_a_decode_error():
    """A dict that does not fit the class is refused with the codec's own error."""
    for cls in (User, Point, Plain, Validated):
        with pytest.raises(DecodeError):
            Msgpack().decode(Msgpack().encode({"nothing": "fits"}), cls)


def test_a_union_reads_each_of_its_members():
    """``int | str | Point`` takes all three."""
    for value in (1, "a", Point(1), None):
        round_trip(value, int | str | Point | None)


# Refusals ------------------------------------------------------------------------------------------------------------


class MyInt(int): ...


class MyStr(str):
    __slots__ = ()


class MyBytes(bytes): ...


class MyFloat(float): ...


class MyList(list[Any]): ...


class MyDict(dict[str, Any]): ...


class MyTuple(tuple[Any, ...]):
    __slots__ = ()


class MySet(set[Any]): ...


class MyFrozenSet(frozenset[Any]): ...


class MyDatetime(datetime): ...


class MyDate(date): ...


class MyTime(time): ...


class MyDelta(timedelta): ...


class MyDecimal(Decimal): ...


class MyUUID(UUID): ...


class Pair(NamedTuple):
    a: int
    b: int


OldPair = namedtuple("OldPair", "a b")  # noqa: PYI024 - what people have


class Elsewhere(tzinfo):
    def utcoffset(self, when: datetime | None, /) -> timedelta:
        return timedelta(hours=1)

    def dst(self, when: datetime | None, /) -> None:
        return None

    def tzname(self, when: datetime | None, /) -> str:
        return "Elsewhere"


class Strange:
    """An ordinary object."""


@dataclasses.dataclass(slots=True)
class Unset:
    a: int = dataclasses.field(init=False)


def local_instance() -> Any:
    """Return an object of a class that has no name to find it by."""

    @dataclasses.dataclass
    class Local:
        a: int = 1

    return Local()


def local_member() -> Any:
    """Return a member of an enum that has no name to find it by."""
    return enum.Enum("Local", {"A": 1}, qualname="f.<locals>.Local").A


REFUSED: dict[str, tuple[Any, str]] = {
    "int subclass": (MyInt(1), "convert it to int"),
    "str subclass": (MyStr("a"), "convert it to str"),
    "bytes subclass": (MyBytes(b"a"), "convert it to bytes"),
    "float subclass": (MyFloat(1), "convert it to float"),
    "list subclass": (MyList([1]), "convert it to list"),
    "dict subclass": (MyDict(a=1), "convert it to dict"),
    "tuple subclass": (MyTuple((1,)), "convert it to tuple"),
    "set subclass": (MySet({1}), "convert it to set"),
    "frozenset subclass": (MyFrozenSet({1}), "convert it to frozenset"),
    "datetime subclass": (MyDatetime(2024, 1, 1), "MyDatetime"),
    "date subclass": (MyDate(2024, 1, 1), "MyDate"),
    "time subclass": (MyTime(1), "MyTime"),
    "timedelta subclass": (MyDelta(1), "MyDelta"),
    "Decimal subclass": (MyDecimal(1), "MyDecimal"),
    "UUID subclass": (MyUUID(int=1), "MyUUID"),
    "NamedTuple": (Pair(1, 2), "convert it to tuple"),
    "namedtuple": (OldPair(1, 2), "convert it to tuple"),
    "OrderedDict": (OrderedDict(a=1), "convert it to dict"),
    "defaultdict": (defaultdict(list), "convert it to dict"),
    "bytearray": (bytearray(b"a"), "bytearray"),
    "memoryview": (memoryview(b"a"), "memoryview"),
    "complex": (1j, "complex"),
    "range": (range(3), "range"),
    "object": (Strange(), "store a dataclass"),
    "function": (lambda: 1, "store a dataclass"),
    "class": (Strange, "type"),
    "exception": (ValueError("x"), "ValueError"),
    "generator": ((x for x in ()), "generator"),
    "Ellipsis": (..., "ellipsis"),
    "NotImplemented": (NotImplemented, "NotImplementedType"),
    "local dataclass": (local_instance(), "module level"),
    "local enum": (local_member(), "module level"),
    "Flag": (Perm.READ, "value"),
    "compound Flag": (Perm.READ | Perm.WRITE, "value"),
    "IntFlag": (IntPerm.READ, "value"),
    "foreign zone": (datetime(2024, 1, 1, tzinfo=Elsewhere()), "zoneinfo.ZoneInfo"),
    "foreign zone of a time": (time(1, tzinfo=Elsewhere()), "zoneinfo.ZoneInfo"),
    "lone surrogate": ("\ud800", "surrogate"),
    "field that is not set": (Unset(), "'a' is not set"),
    "iterator": (iter([1]), "list_iterator"),
    "dict view": ({1: 2}.keys(), "dict_keys"),
    "msgspec.Raw": (msgspec.Raw(b"\x01"), "Raw"),
    "msgspec.UNSET": (msgspec.UNSET, "UnsetType|UNSET"),
    "msgpack.Ext": (msgspec.msgpack.Ext(1, b"\x93\x01\x02\x03"), "Ext"),
    "foreign Ext": (msgspec.msgpack.Ext(99, b""), "Ext"),
}

PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a list": lambda value: [1, value],
    "in a tuple": lambda value: (value,),
    "in a dict": lambda value: {"k": value},
    "in a dict with other keys": lambda value: {1: value},
    "in a dataclass": lambda value: Slotted(y=value),
    "in a struct": lambda value: Tagged(value),
    "in a model": lambda value: User.model_construct(id=value),
    "in a private attribute": private,
    "deep": lambda value: [({"k": [value]},)],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_come_back_is_refused(case: str, place: str):
    """Wherever it is inside the value, the error names it and says what to do."""
    value, message = REFUSED[case]
    with pytest.raises(EncodeError, match=message) as caught:
        Msgpack().encode(PLACES[place](value))
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("case", [case for case in REFUSED if getattr(type(REFUSED[case][0]), "__hash__", None)])
def test_what_would_not_come_back_is_refused_as_a_key(case: str):
    """Keys of dicts and members of sets are looked at as values are."""
    value = REFUSED[case][0]
    try:
        hash(value)
    except (TypeError, AttributeError):
        pytest.skip("it cannot be a key")
    for holder in ({value: 1}, {value: 1, 2: 3}, {"another": 1, value: 2}, {value}, frozenset({value}), {(value,): 1}):
        with pytest.raises(EncodeError):
            Msgpack().encode(holder)


def cyclic(kind: str) -> Any:
    """Return a value that holds itself."""
    a_list: list[Any] = []
    a_list.append(a_list)
    a_dict: dict[Any, Any] = {}
    a_dict["self"] = a_dict
    other: dict[Any, Any] = {}
    other[1] = [other]
    tree = Tree("a")
    tree.children.append(tree)
    struct_ = Tagged(None)
    struct_.x = [struct_]
    model = private(None)
    model._secret = {"me": model}
    return {"list": a_list, "dict": a_dict, "other dict": other, "dataclass": tree, "struct": struct_, "model": model}[
        kind
    ]


@pytest.mark.parametrize("kind", ["list", "dict", "other dict", "dataclass", "struct", "model"])
def test_a_value_that_holds_itself_is_refused(kind: str):
    """It is an EncodeError that says so, not a RecursionError and not a crash."""
    with pytest.raises(EncodeError, match="holds itself"):
        Msgpack().encode(cyclic(kind))


def test_a_value_that_nests_too_deeply_is_refused():
    """A hundred thousand levels are refused too, and never crash the interpreter."""
    for wrap in (lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}, lambda inner: {1: inner}):
        value: Any = 1
        for _ in range(100_000):
            value = wrap(value)
        with pytest.raises(EncodeError, match="too deeply"):
            Msgpack().encode(value)


@pytest.mark.parametrize("depth", [200, 250, 300, 400, 500, 600, 700, 800, 900, 950, 1000, 1500, 3000])
@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "other dict"])
def test_whatever_can_be_encoded_can_be_decoded(kind: str, depth: int):
    """There is no depth that is taken in and then cannot be read back."""
    wraps: dict[str, Callable[[Any], Any]] = {
        "list": lambda inner: [inner],
        "tuple": lambda inner: (inner,),
        "dict": lambda inner: {"k": inner},
        "other dict": lambda inner: {1: inner},
    }
    value: Any = 1
    for _ in range(depth):
        value = wraps[kind](value)
    try:
        data = Msgpack().encode(value)
    except EncodeError:
        return
    assert Msgpack().decode(data) == value


def test_a_class_whose_name_leads_elsewhere_is_refused_or_comes_back():
    """Two classes under one name are not mixed up."""
    other = dataclasses.make_dataclass("Plain", [("a", int), ("b", str), ("c", list)])
    other.__module__, other.__qualname__ = Plain.__module__, Plain.__qualname__
    data = Msgpack().encode(other(1, "b", []))
    assert type(Msgpack().decode(data, other)) is other


@pytest.mark.parametrize("cls", [int, Strange, "User", None, MyInt, list[User], lambda: 1, 5])
def test_only_classes_with_fields_and_enums_are_registered(cls: Any):
    """The error says what can be registered."""
    with pytest.raises(ConfigurationError, match="register enums, dataclasses, msgspec structs and pydantic models"):
        Msgpack(types=[cls])


@pytest.mark.parametrize("cls", [Perm, IntPerm])
def test_a_flag_cannot_be_registered_either(cls: Any):
    """What cannot be stored need not be registered: the error comes at once."""
    with pytest.raises(ConfigurationError):
        Msgpack(types=[cls])


@pytest.mark.parametrize("type_", ["User", 5, object(), lambda: 1], ids=["str", "int", "object", "function"])
def test_a_type_that_is_no_annotation_is_no_crash(type_: Any):
    """A mistyped ``type=`` gives the value or one of acache's errors or a TypeError, and nothing else."""
    try:
        Msgpack().decode(Msgpack().encode(1), type_)
    except (DecodeError, ConfigurationError, TypeError):
        pass


def test_many_annotations_do_not_pile_up():
    """Annotations made at run time are forgotten again."""
    codec = Msgpack()
    data = codec.encode([1])
    for number in range(5000):
        codec.decode(data, Annotated[list[int], number])
    assert len(codec._by_type) < 3000


def test_codecs_have_a_name_and_say_what_they_know():
    """The name goes into records; the repr lists the registered classes."""
    codec = Msgpack(types=[User])
    assert codec.name == "msgpack"
    assert "User" in repr(codec)


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: repr(value)[:50])
async def test_a_cache_returns_what_was_set(value: Any):
    """Through a far tier and another process's eyes, with the class named by the reader."""
    backend = MemoryBackend()
    async with Cache(backend) as writer, Cache(backend) as reader:
        await writer.set("k", value)
        assert exactly_equal(await reader.get("k", type=type(value)), value)
