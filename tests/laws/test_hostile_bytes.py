"""Law 10: any bytes found in a backend are a miss plus an event, never an exception, an import or a memory bill."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
import random
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from acache import Cache, DecodeError, MemoryBackend, Msgpack, Policy
from acache.entry import HEAD_BYTES, Envelope, counter, holds_value, new_token, pack, tombstone, unpack
from acache.events import DecodeFailed, Miss
from acache.testing import FakeClock, Recorder

pack_raw = msgspec.msgpack.Encoder().encode
Ext = msgspec.msgpack.Ext


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Item:
    name: str
    made: datetime | None = None


class Point(msgspec.Struct):
    x: int


class User(pydantic.BaseModel):
    id: int
    items: list[Item] = []


CODEC = Msgpack(types=[Item, Point, User, Colour])
TYPES: list[Any] = [None, int, list[int], Item, list[Item], Point, User, User | None, dict[str, User], Colour]
VALUES: list[Any] = [
    None, 1, 2**100, -(2**100), 1.5, "text", b"bytes", [1, 2], (1, (2,)), {1: 2}, {"a": {(1, 2): {3}}}, frozenset({1}),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2024, 1, 1, tzinfo=UTC), Decimal("1.10"),
    Item("a", datetime(2024, 1, 1)), Point(1), User(id=1, items=[Item("b")]), Colour.RED, [User(id=2), Point(3)],
]  # fmt: skip


def record(payload: bytes, **changes: Any) -> bytes:
    """Return a well-formed record around any payload."""
    envelope = Envelope(new_token(), 1_000_000_000.0, 300.0, 300.0, 0.0, "msgpack", (), payload)
    return pack(envelope._replace(**changes))


def read(data: bytes, type_: Any = None) -> Any:
    """Decode; a DecodeError is the one way to fail."""
    try:
        return CODEC.decode(data, type_)
    except DecodeError as error:
        assert str(error)
        return error


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes: flip, drop, insert, double, cut."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        verb = chance.randrange(5)
        if verb == 0 and at < len(changed):
            changed[at] = chance.randrange(256)
        elif verb == 1 and at < len(changed):
            del changed[at : at + chance.randint(1, 4)]
        elif verb == 2:
            changed[at:at] = chance.randbytes(chance.randint(1, 4))
        elif verb == 3:
            changed[at:at] = changed[at : at + 8]
        else:
            changed = changed[:at]
    return bytes(changed)


@pytest.fixture
def recorder() -> Recorder:
    """An observer that remembers."""
    return Recorder()


def make_cache(backend: MemoryBackend, recorder: Recorder | None = None, **options: Any) -> Cache:
    """Return a cache that reads what stands in ``backend``."""
    observers = [] if recorder is None else [recorder]
    return Cache(backend, clock=FakeClock(), codec=CODEC, observers=observers, **options)


# The envelope --------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
@example(b"")
@example(b"\xac")
@example(b"\xac\x01\x00\x00")
@example(b"\xac\x01" + b"\xff" * 60)
@example(b"\xac\x01\x02\x00" + b"\0" * 36 + b"\xff\xff")
def test_any_bytes_are_an_envelope_a_tombstone_or_a_decode_error(data: bytes):
    """`unpack` knows no other outcome, and nor do the quick looks beside it."""
    try:
        envelope = unpack(data)
    except DecodeError as error:
        assert str(error)
    else:
        assert envelope is None or math.isfinite(envelope.created_at)
    assert holds_value(data, 0.0) in (True, False)
    number = counter(data)
    assert number is None or b"%d" % number == data


@given(st.binary(min_size=38, max_size=120), st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_any_bytes_behind_the_right_beginning(rest: bytes, flags: int):
    """A head that says "record, version 1" promises nothing about what follows."""
    try:
        envelope = unpack(bytes((0xAC, 1, flags)) + rest)
    except DecodeError:
        return
    if envelope is not None:
        assert math.isfinite(envelope.created_at)
        assert envelope.fresh_for > 0
        assert envelope.keep_for >= envelope.fresh_for
        assert len(envelope.token) == 8
        assert all(len(token) == 8 for _, token in envelope.tags)


@pytest.mark.parametrize("tags", [(), (("t", b"12345678"),), (("a", b"1" * 8), ("ü" * 20, b"2" * 8))])
def test_a_record_that_was_cut_short_is_never_another_record(tags: Any):
    """Cut anywhere before its payload it is a DecodeError."""
    whole = record(b"", tags=tags)
    for length in range(len(whole)):
        with pytest.raises(DecodeError):
            unpack(whole[:length])


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (12, ">d", math.nan), (12, ">d", math.inf), (12, ">d", -math.inf),
        (20, ">d", math.nan), (20, ">d", 0.0), (20, ">d", -1.0), (20, ">d", -math.inf),
        (28, ">d", math.nan), (28, ">d", 0.0), (28, ">d", 299.0), (28, ">d", -math.inf),
        (36, ">f", math.nan), (36, ">f", -1.0), (36, ">f", math.inf),
        (0, ">B", 0xAD), (1, ">B", 0), (1, ">B", 1), (1, ">B", 255), (2, ">B", 4), (2, ">B", 0x80),
    ],
)  # fmt: skip
def test_a_head_that_makes_no_sense_is_a_decode_error(offset: int, form: str, value: float):
    """NaN dates, lifetimes of nothing, unknown versions and unknown flags are not believed."""
    data = bytearray(record(b"\xc0"))
    struct.pack_into(form, data, offset, value)
    with pytest.raises(DecodeError):
        unpack(bytes(data))
    assert not holds_value(bytes(data[:HEAD_BYTES]), 1_000_000_000.0), "the quick look agrees"


# The codec -----------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100), st.sampled_from(TYPES))
@settings(max_examples=700, deadline=None)
def test_any_bytes_decode_or_are_a_decode_error(data: bytes, type_: Any):
    """`Msgpack.decode` knows no other outcome, whatever type is asked for."""
    read(data, type_)


plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=12), st.binary(max_size=12)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
        st.builds(lambda code, content: Ext(code, pack_raw(content)), st.integers(-128, 127), inner),
        st.builds(Ext, st.integers(1, 15), st.binary(max_size=20)),
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.integers(1, 16), plain, st.sampled_from(TYPES))
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(4, [[], 1], None)
@example(2, [[1]], None)
@example(6, ["2024-01-01", 0, "../../../etc/passwd"], None)
@example(6, ["2024-01-01", 0, "/etc/passwd"], None)
@example(6, ["2024-01-01", 0, "no/such/zone"], None)
@example(6, ["2024-01-01", 0, ""], None)
@example(6, ["2024-01-01", 0, "\0"], None)
@example(6, ["2024-01-01", 0, "posix"], None)
@example(6, ["2024-01-01", 0, [10**18, None]], None)
@example(6, ["2024-01-01", 0, [0, 5]], None)
@example(6, ["2024-01-01", 7, None], None)
@example(6, ["", 0, None], None)
@example(6, [5, 0, None], None)
@example(9, [10**18, 0, 0], None)
@example(9, [math.nan, 0, 0], None)
@example(9, [math.inf, 0, 0], None)
@example(10, "x", None)
@example(10, 5, None)
@example(10, [0, [1], 10**9], None)
@example(12, ["os:system", "x"], None)
@example(13, ["os:system", {}], None)
@example(14, ["os:system", {}, [], None, None], None)
@example(13, [None, {}], None)
@example(13, [[], {}], None)
@example(13, [], None)
@example(13, 5, None)
def test_any_content_of_any_extension_decodes_or_is_a_decode_error(code: int, content: Any, type_: Any):
    """Well-formed MessagePack with the wrong things inside of the right wrappers."""
    read(pack_raw(Ext(code, pack_raw(content))), type_)
    read(pack_raw([{"k": Ext(code, pack_raw(content))}]), type_)


PATHS = [f"{cls.__module__}:{cls.__qualname__}" for cls in (Item, Point, User, Colour)]


@given(
    st.sampled_from(PATHS),
    st.sampled_from([12, 13, 14]),
    st.one_of(
        plain, st.dictionaries(st.sampled_from(["name", "made", "x", "id", "items", "__class__", "__dict__"]), plain)
    ),
    st.lists(plain, max_size=4),
    st.sampled_from(TYPES),
)
@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(PATHS[2], 14, {"id": 1, "items": []}, [[], {"x": 1}, {"y": 2}], User)
@example(PATHS[2], 14, {"id": 1, "items": []}, [[[]], None, None], User)
@example(PATHS[2], 14, {"id": 1, "items": []}, [5, 5, 5], User)
@example(PATHS[0], 13, {"name": 1, "made": 2}, [], Item)
@example(PATHS[0], 14, {"name": 1, "made": 2}, [[], None, None], Item)
@example(PATHS[3], 13, {"RED": 1}, [], Colour)
@example(PATHS[3], 12, "mro", [], Colour)
@example(PATHS[0], 12, "name", [], Item)
@example(PATHS[1], 12, "x", [], Point)
@example(PATHS[2], 12, "__init__", [], User)
def test_any_content_for_a_known_class_decodes_or_is_a_decode_error(
    path: str, code: int, fields: Any, rest: list[Any], type_: Any
):
    """Known classes with wrong fields, under the wrong extension, with too many or too few parts."""
    read(pack_raw(Ext(code, pack_raw([path, fields, *rest]))), type_)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_mutations_of_real_values(value: Any):
    """A few changed bytes give a value or a DecodeError, for every type that may be asked for."""
    chance = random.Random(repr(value))
    data = CODEC.encode(value)
    for number in range(400):
        read(mutated(data, chance), TYPES[number % len(TYPES)])
    for length in range(len(data)):
        assert isinstance(read(data[:length]), DecodeError)
    assert isinstance(read(data + b"\xc0"), DecodeError)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: b"\x91" + data,
        lambda data: b"\x81\xa1k" + data,
        lambda data: b"\xc9" + struct.pack(">I", len(data)) + b"\x01" + data,
        lambda data: b"\xc9" + struct.pack(">I", len(data) + 1) + b"\x01\x91" + data,
        lambda data: b"\xc9" + struct.pack(">I", len(data) + 2) + b"\x04\x92\x01" + data,
    ],
    ids=["list", "dict", "bare extension", "tuple", "dict with other keys"],
)
@pytest.mark.parametrize("depth", [100, 500, 990, 1500, 20_000])
def test_deep_nesting_is_no_crash(wrap: Callable[[bytes], bytes], depth: int):
    """Whatever depth the interpreter takes, beyond it is a DecodeError and not a RecursionError."""
    data = b"\xc0"
    for _ in range(depth if depth < 20_000 or wrap(b"")[:1] != b"\xc9" else 5000):
        data = wrap(data)
    read(data)
    read(data, list[int])


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])
@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1, 10**8])
def test_a_huge_declared_length_costs_nothing(head: bytes, length: int):
    """Four billion items in ten bytes are not believed, alone and inside of an extension."""
    data = head + struct.pack(">I", length) + (b"\x01" if head == b"\xc9" else b"") + b"\xc0\xc0"
    inner = b"\xc7" + bytes((len(data), 1)) + data
    tracemalloc.start()
    try:
        for hostile in (data, inner, b"\x92" + data, record(data)):
            assert isinstance(read(hostile), DecodeError)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    "text", ["1E+999999999", "1E-999999999", "9" * 4000, "1e999999999999999999", "NaN" + "9" * 4000]
)
def test_a_decimal_of_any_size_costs_nothing(text: str):
    """An exponent is a number, not that many digits."""
    tracemalloc.start()
    try:
        read(pack_raw(Ext(10, pack_raw(text))))
        read(pack_raw(Ext(10, pack_raw(text))), int)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_zone_key_never_reads_another_file():
    """A zone is looked up among the zones: absolute paths and ``..`` are refused."""
    for key in ("/etc/passwd", "../../../../etc/passwd", "Europe/../../../../etc/passwd", "posixrules/../x", "\0", "."):
        assert isinstance(read(pack_raw(Ext(6, pack_raw(["2024-01-01", 0, key])))), DecodeError)


@pytest.mark.parametrize("code", [0, 15, 16, 100, 127, -2, -128])
def test_an_unknown_extension_is_a_decode_error(code: int):
    """Nothing is guessed."""
    for content in (b"", b"\x00" * 4, b"\x00" * 8, b"\x00" * 12, b"\xc0"):
        assert isinstance(read(pack_raw(Ext(code, content))), DecodeError)


class Tripwire:
    """Fails the test when a decoder imports anything."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        pytest.fail(f"decoding imported {name}")


@pytest.fixture
def no_imports() -> Iterator[None]:
    """While it is in use, nothing may be imported."""
    before = set(sys.modules)
    tripwire = Tripwire()
    sys.meta_path.insert(0, tripwire)
    yield
    sys.meta_path.remove(tripwire)
    assert set(sys.modules) - before == set()


@pytest.mark.parametrize("code", [12, 13, 14])
@pytest.mark.parametrize(
    "path",
    [
        "os:system", "subprocess:Popen", "builtins:eval", "builtins:object", "antigravity:fly", "this:s", "nt:system",
        "acache.cache:Cache", "dataclasses:dataclass", "enum:Enum", "pydantic.main:BaseModel", "msgspec:Struct", ":", "",
        "os", "os:", ":system", "os:path:join", "..os:system", "collections:OrderedDict", "xml.dom.minidom:parse",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("no_imports")
def test_no_class_is_made_that_nobody_named(path: str, code: int):
    """A path in the bytes imports nothing, calls nothing and makes nothing."""
    for fields in ({}, {"command": "touch /tmp/owned"}, "RED", ["touch /tmp/owned"]):
        data = pack_raw(Ext(code, pack_raw([path, fields, [], None, None][: 2 if code < 14 else 5])))
        for type_ in TYPES:
            assert isinstance(read(data, type_), DecodeError)


def test_decoding_runs_no_init_and_no_validator_of_other_classes():
    """Making an asked-for class is all that happens."""
    data = pack_raw(
        Ext(13, pack_raw([PATHS[0], {"name": "x", "made": Ext(13, pack_raw(["os:system", {"command": "x"}]))}]))
    )
    assert isinstance(read(data, Item), DecodeError)


# Through the cache ---------------------------------------------------------------------------------------------------


HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\xac",
    "zeros": b"\0" * 100,
    "text": b"hello, I am another program's value",
    "digits too long": b"9" * 30,
    "digits with a plus": b"+5",
    "digits with zeros": b"007",
    "minus zero": b"-0",
    "digits and a line": b"5\n",
    "beyond 64 bits": b"9223372036854775808",
    "pickle": b"\x80\x04\x95\x17\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    "json": b'{"__class__": "os.system"}',
    "another version": b"\xac\x01" + record(b"\xc0")[2:],
    "cut head": record(b"\xc0")[:39],
    "cut payload": record(CODEC.encode({"a": [1, 2, 3]}))[:-2],
    "no payload": record(b""),
    "two payloads": record(b"\xc0\xc0"),
    "another codec": record(b"\xc0", codec="pickle"),
    "no codec": record(b"\xc0", codec=""),
    "unknown class": record(pack_raw(Ext(13, pack_raw(["os:system", {}])))),
    "unknown extension": record(pack_raw(Ext(99, b""))),
    "huge list": record(b"\xdd\xff\xff\xff\xff\xc0"),
    "deep list": record(b"\x91" * 100_000 + b"\xc0"),
    "unhashable key": record(pack_raw(Ext(4, pack_raw([[], 1])))),
    "bad text": record(b"\xa2\xff\xff"),
    "reserved byte": record(b"\xc1"),
    "bad tag": b"".join((record(b"")[:2], b"\x02", record(b"")[3:], b"\x00\x01\x00\x02\xff\xff", b"12345678")),
    "many tags": b"".join((record(b"")[:2], b"\x02", record(b"")[3:], b"\xff\xff")),
    "huge zone": record(pack_raw(Ext(6, pack_raw(["2024-01-01", 0, "x" * 100_000])))),
}  # fmt: skip


def cache_can_open(data: bytes) -> bool:
    """Tell whether the envelope is a good one, whatever is in it."""
    try:
        return unpack(data) is not None
    except DecodeError:
        return False


async def loaded() -> str:
    """A loader."""
    return "loaded"


async def loaded_many(keys: Any) -> dict[str, str]:
    """A batch loader."""
    return dict.fromkeys(keys, "loaded")


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("verb", ["get", "get_entry", "get_many", "get_or_load", "load_many", "cached"])
@pytest.mark.parametrize("raising", [False, True], ids=["miss", "raise"])
async def test_hostile_bytes_are_a_miss_an_event_and_a_count(kind: str, verb: str, raising: bool, recorder: Recorder):
    """For every way to read, and also where outages are to raise: garbage is no outage."""
    backend = MemoryBackend()
    policy = Policy(on_backend_error="raise" if raising else "miss")
    async with make_cache(backend, recorder, policy=policy) as cache:
        await backend.set("k", HOSTILE[kind], ttl=None)
        if verb == "get":
            assert await cache.get("k", "default") == "default"
        elif verb == "get_entry":
            assert await cache.get_entry("k") is None
        elif verb == "get_many":
            assert await cache.get_many(["k"]) == {}
        elif verb == "get_or_load":
            assert await cache.get_or_load("k", loaded) == "loaded"
        elif verb == "load_many":
            assert await cache.load_many(["k"], loaded_many) == {"k": "loaded"}
        else:
            assert await cache.cached(key="k")(loaded)() == "loaded"
        assert [(event.key, type(event.error)) for event in recorder.of(DecodeFailed)][:1] == [("k", DecodeError)]
        assert recorder.of(Miss) != []
        assert cache.stats().decode_failures >= 1
        assert cache.stats().misses >= 1
        assert cache.stats().hits == 0
        assert cache.stats().backend_errors == 0


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_bytes_are_in_nobody_s_way(kind: str, recorder: Recorder):
    """They are written over, loaded over, deleted and tagged like nothing at all."""
    backend = MemoryBackend()
    async with (
        make_cache(backend, recorder, namespace="n") as cache,
        make_cache(backend, memory=None, namespace="n") as reader,
    ):

        async def spoil() -> None:
            await cache.delete("k")
            await backend.set("n::k", HOSTILE[kind], ttl=None)

        await spoil()
        await cache.set("k", 1)
        assert await reader.get("k") == 1
        await spoil()
        assert await cache.get_or_load("k", loaded) == "loaded"
        assert await reader.get("k") == "loaded"
        await reader.delete("k")
        await spoil()
        readable_head = HOSTILE[kind][:2] == b"\xac\x01" and cache_can_open(HOSTILE[kind])
        assert await cache.add("k", 2) is not readable_head, "an entry whose payload is another reader's is there"
        await reader.delete("k")
        await spoil()
        assert await cache.touch("k", ttl=5) is readable_head
        assert await cache.refresh("k", loaded) == "loaded"
        await spoil()
        await cache.delete("k")
        assert await cache.get("k") is None
        await spoil()
        await cache.clear()
        assert await cache.get("k") is None


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_bytes_and_incr(kind: str, recorder: Recorder):
    """Counting over garbage starts at zero or is refused with the codec's error; and nothing else happens."""
    backend = MemoryBackend()
    async with make_cache(backend, recorder) as cache:
        await backend.set("k", HOSTILE[kind], ttl=None)
        try:
            assert await cache.incr("k") == 1
        except DecodeError:
            assert await backend.get("k") == HOSTILE[kind]


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_bytes_in_a_tag_s_place(kind: str):
    """A tag's token that was tampered with makes its entries invalid: the safe side."""
    backend = MemoryBackend()
    async with make_cache(backend, memory=None, namespace="n") as cache:
        await cache.set("k", 1, tags=["t"])
        assert await backend.get("n::@tag:t") is not None
        await backend.set("n::@tag:t", HOSTILE[kind], ttl=None)
        assert await cache.get("k") is None
        assert await cache.get_or_load("k", loaded, tags=["t"]) == "loaded"
        await cache.invalidate_tags("t")
        assert await cache.get("k") is None
        assert await cache.get_or_load("k", loaded, tags=["t"]) == "loaded"
        await cache.set("k", 2, tags=["t"])
        assert await cache.get("k") == 2


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_bytes_in_the_epoch_s_place(kind: str):
    """A namespace's epoch that was tampered with makes its entries invalid, and goes with the next `clear`."""
    backend = MemoryBackend()
    async with make_cache(backend, memory=None, namespace="n") as cache:
        await cache.set("k", 1)
        assert await backend.get("n::@tag:") is not None
        await backend.set("n::@tag:", HOSTILE[kind], ttl=None)
        assert await cache.get("k") is None
        assert await cache.get_many(["k"]) == {}
        assert await cache.get_or_load("k", loaded) == "loaded"
        assert await cache.get("k") == "loaded"
        assert await cache.incr("c") == 1
        await cache.clear()
        assert await cache.get_many(["k", "c"]) == {}
        await cache.set("k", 2)
        assert await cache.get("k") == 2


@given(st.binary(max_size=120), st.booleans())
@settings(max_examples=300, deadline=None)
async def test_any_bytes_through_the_cache(data: bytes, framed: bool):
    """Random bytes, and random payloads in a good envelope, are a hit or a miss and never an error."""
    backend, recorder = MemoryBackend(), Recorder()
    async with make_cache(backend, recorder) as cache:
        await backend.set("k", record(data) if framed else data, ttl=None)
        found = await cache.get("k", cache)
        assert (found is cache) == (cache.stats().misses == 1)
        entry = await cache.get_entry("k")
        assert (entry is None) == (found is cache)
        await cache.get_or_load("k", loaded)
        await cache.set("k", 1)
        assert await cache.get("k") == 1


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
async def test_mutations_of_real_records_through_the_cache(value: Any):
    """Whatever a broken disk or another program did to a record, reading it is a hit or a miss."""
    chance = random.Random(repr(value))
    real = record(CODEC.encode(value), tags=(("t", b"12345678"),))
    backend = MemoryBackend()
    async with make_cache(backend, memory=None) as cache:
        for number in range(150):
            await backend.set("k", mutated(real, chance), ttl=None)
            await cache.get("k", type=TYPES[number % len(TYPES)])
            await cache.get_many(["k"])
            await cache.get_entry("k")
            await cache.get_or_load("k", loaded)


async def test_a_record_of_the_past_or_the_future_is_no_trap():
    """Dates beyond reason, which a hostile or a broken clock may write, end in a hit or a miss."""
    backend = MemoryBackend()
    async with make_cache(backend, memory=None, policy=Policy(stale_while_revalidate=60)) as cache:
        for created_at in (0.0, -1e300, 1e300, 1e18, -1.0, 5e-324):
            for lifetime in (5e-324, 1e300, math.inf, 1.0):
                data = record(b"\x01", created_at=created_at, fresh_for=lifetime, keep_for=lifetime + 60)
                await backend.set("k", data, ttl=None)
                assert await cache.get("k") in (1, None)
                await cache.get_entry("k")
                await cache.get_or_load("k", loaded)
                await backend.set("k", data, ttl=None)
                await cache.touch("k", ttl=5)
                await cache.incr("n")


async def test_a_tombstone_is_a_miss_and_no_garbage(recorder: Recorder):
    """What a delete leaves behind is not reported."""
    backend = MemoryBackend()
    async with make_cache(backend, recorder) as cache:
        await backend.set("k", tombstone(new_token(), 0.0), ttl=None)
        assert await cache.get("k") is None
        assert recorder.of(DecodeFailed) == []


async def test_a_value_under_another_key_of_the_engine_is_just_that(recorder: Recorder):
    """A counter's digits, written by another program, are a number."""
    backend = MemoryBackend()
    async with make_cache(backend, recorder) as cache:
        for number in (0, -1, 2**63 - 1, -(2**63)):
            await backend.set("n", b"%d" % number, ttl=None)
            assert await cache.get("n") == number
        assert recorder.of(DecodeFailed) == []


async def test_a_stored_class_that_the_reader_does_not_ask_for_is_a_miss(recorder: Recorder):
    """With the name of the class and the remedy in the event."""
    backend = MemoryBackend()
    async with Cache(backend) as writer, Cache(backend, observers=[recorder]) as reader:
        await writer.set("k", Item("a"))
        assert await reader.get("k") is None
        [event] = recorder.of(DecodeFailed)
        assert "Item" in str(event.error)
        assert "type=" in str(event.error)
        assert await reader.get("k", type=Item) == Item("a")


async def test_garbage_does_not_open_the_breaker():
    """The server answers; it is the bytes that are bad."""
    backend = MemoryBackend()
    async with make_cache(backend, memory=None) as cache:
        for number in range(20):
            await backend.set(f"k{number}", os.urandom(50), ttl=None)
            assert await cache.get(f"k{number}") is None
        await cache.set("good", 1)
        assert await cache.get("good") == 1


async def test_a_thousand_unreadable_records_do_not_flood_the_log(caplog: pytest.LogCaptureFixture):
    """One warning, and after ten seconds another that tells how many there were; the statistics have them all."""
    clock, backend = FakeClock(), MemoryBackend()
    cache = Cache(backend, memory=None, namespace="n", clock=clock)
    await backend.set("n::k", b"garbage", ttl=None)
    for _ in range(1000):
        assert await cache.get("k") is None
    assert len(caplog.records) == 1
    clock.advance(10)
    await cache.get("k")
    assert [record.getMessage().split(":")[0] for record in caplog.records[1:]] == [
        "'k' in namespace 'n' was taken as a miss, and 999 before it"
    ]
    assert cache.stats().decode_failures == 1001
