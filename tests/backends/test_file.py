"""What `FileBackend` promises beyond the contract."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from array import array
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from acache import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    Cache,
    ConfigurationError,
    InvalidKey,
    KeyMissing,
    Policy,
    ValueTooLarge,
)
from acache.backends import Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from acache.backends.file import FileBackend
from acache.testing import BackendConformance, FakeClock
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

KILLS = int(os.environ.get("ACACHE_KILLS", "200"))
"""How many writers are killed."""
AT_ONCE = 4
BIG = 200 * 1024 * 1024
LARGE = b"large " * 50_000
"""More than stands in an entry's own file."""
HOUR = 3600.0
ROOT = Path(__file__).parents[2]

T = TypeVar("T")


class TestFileBackend(BackendConformance):
    """On a real disk, under a clock that moves when told."""

    title = "File"
    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch)
    clock = FakeClock(wall=time.time())

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture(params=[None, 100 << 20], ids=["unbounded", "bounded"])
    def backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> FileBackend:
        return FileBackend(tmp_path / "cache", max_bytes=request.param, clock=self.clock)


def test_a_machine_and_a_dictionary_say_the_same(tmp_path: Path) -> None:
    """Whatever is done to them."""
    machine = backend_machine(lambda: FileBackend(tmp_path, clock=TestFileBackend.clock), suite=TestFileBackend)
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=25))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=time.time())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
async def backend(directory: Path, clock: FakeClock) -> AsyncIterator[FileBackend]:
    backend = FileBackend(directory, clock=clock)
    yield backend
    await backend.aclose()


def files(directory: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in directory.rglob(pattern) if path.is_file() or path.is_symlink())


def entries(directory: Path) -> list[Path]:
    return [path for path in files(directory) if len(path.name) == 62]


def used(directory: Path) -> int:
    """The bytes of the entries, in blocks."""
    total = 0
    for path in files(directory):
        if path.parent != directory and path.suffix != ".tmp":
            with suppress(FileNotFoundError):
                total += -(-path.stat().st_size // 4096) * 4096
    return total


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def python(source: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start another process that uses acache."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


# Set-up -------------------------------------------------------------------------------------------------------------


def test_building_one_touches_nothing(directory: Path) -> None:
    """The directory is made by the first write."""
    FileBackend(directory, max_bytes=1 << 20)
    assert not directory.exists()


async def test_reading_makes_nothing(backend: FileBackend, directory: Path) -> None:
    """No operation that stores nothing leaves a directory behind."""
    assert await backend.get("k") is None
    assert await backend.get_many(["k"]) == {}
    assert await backend.delete("k") is False
    assert await backend.touch("k", ttl=5) is False
    assert [key async for key in backend.scan("")] == []
    await backend.clear("")
    await backend.sweep()
    with pytest.raises(KeyMissing):
        await backend.ttl("k")
    async with backend.open("k") as body:
        assert body is None
    assert not directory.exists()


@pytest.mark.parametrize(
    "build",
    [
        lambda: FileBackend(""),
        lambda: FileBackend("a\0b"),
        lambda: FileBackend(b"cache"),  # type: ignore[arg-type]
        lambda: FileBackend("cache", max_bytes=1000),
        lambda: FileBackend("cache", max_bytes=-1),
        lambda: FileBackend("cache", threads=0),
        lambda: FileBackend("cache", lock_timeout=0),
        lambda: FileBackend("cache", lock_timeout=float("nan")),
    ],
)
def test_bad_options_are_refused_at_once(build: Callable[[], object]) -> None:
    """With the option's name."""
    with pytest.raises(ConfigurationError):
        build()


async def test_a_url_names_the_directory_and_the_options(directory: Path) -> None:
    """Percent-encoding and all."""
    url = f"file://{directory}/a%20b?max_bytes=2000000&fsync=true"
    async with Cache.from_url(url, memory=None, policy=Policy(on_backend_error="raise")) as cache:
        await cache.set("k", 1)
        assert await cache.get("k") == 1
        with pytest.raises(ValueTooLarge):
            await cache.set("k", b"x" * 2_000_000)
    assert (directory / "a b" / "sizes").exists()


@pytest.mark.parametrize(
    "url",
    [
        "file://",
        "file://cache",
        "file://host/cache",
        "file:///c?ttl=5",
        "file:///c?max_bytes=many",
        "file:///c?fsync=1",
        "file:///c?max_bytes=-1",
        "file:///c?max_bytes=5",
        "file:///c?max_bytes",
        "file:///c#1",
    ],
)
def test_a_bad_url_is_refused(url: str) -> None:
    """An option that nobody reads would be an option that nobody misses."""
    with pytest.raises(ConfigurationError):
        Cache.from_url(url)


async def test_a_cache_over_files(directory: Path, clock: FakeClock) -> None:
    """Values, tags, counters, deletes and a second process's view, end to end."""

    async def load() -> str:
        return "loaded"

    first = Cache(FileBackend(directory, clock=clock), namespace="n", clock=clock)
    second = Cache(FileBackend(directory, clock=clock), namespace="n", clock=clock)
    async with first, second:
        await first.set("k", (1, {"two"}), tags=["t"])
        assert await second.get("k") == (1, {"two"})
        assert await second.get_or_load("l", load, ttl=60) == "loaded"
        assert await first.get("l") == "loaded"
        assert await first.incr("c", 5) == 5
        assert await second.incr("c") == 6
        await first.invalidate_tags("t")
        assert await first.get("k") is None
        await first.set("gone", 1, ttl=5)
        clock.advance(6)
        assert await second.get("gone") is None
        await first.clear()
        assert await first.get("l") is None


async def test_entries_outlive_the_object(directory: Path) -> None:
    """A new backend finds what the old one stored."""
    old = FileBackend(directory)
    await old.set("k", b"v", ttl=60)
    await old.set("l", LARGE, ttl=None)
    await old.aclose()
    new = FileBackend(directory)
    assert await new.get_many(["k", "l"]) == {"k": b"v", "l": LARGE}
    await new.aclose()


# Permissions and links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_nobody_else_can_read(tmp_path: Path, umask: int) -> None:
    """0700 and 0600 at every level, whatever the umask."""
    backend = FileBackend(tmp_path / "a" / "b", max_bytes=100 << 20)
    before = os.umask(umask)
    try:
        await backend.set("small", b"v", ttl=60)
        await backend.set("large", LARGE, ttl=60)
        await backend.store("stream", [LARGE] * 3, ttl=60)
        await backend.touch("large", ttl=50)
    finally:
        os.umask(before)
    assert await backend.get("small") == b"v"
    await backend.aclose()
    for path in (tmp_path / "a").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("data", [b"v", LARGE], ids=["small", "large"])
async def test_a_linked_entry_is_not_followed(
    backend: FileBackend, directory: Path, tmp_path: Path, data: bytes
) -> None:
    """Reads miss, writes replace the link, and its target stays as it was."""
    await backend.set("k", data, ttl=60)
    target = tmp_path / "target"
    (link,) = files(directory, "*.body") or entries(directory)
    link.rename(target)
    link.symlink_to(target)
    content = target.read_bytes()
    assert await backend.get("k") is None
    async with backend.open("k") as body:
        assert body is None
    await backend.set("k", b"new", ttl=60)
    assert await backend.get("k") == b"new"
    await backend.sweep()
    assert target.read_bytes() == content
    assert not any(path.is_symlink() for path in files(directory))


async def test_a_linked_shard_is_not_followed(backend: FileBackend, directory: Path, tmp_path: Path) -> None:
    """Reads miss, writes are refused, nothing is written or deleted at the other end."""
    await backend.set("k", b"v", ttl=60)
    (entry,) = entries(directory)
    elsewhere = tmp_path / "elsewhere"
    entry.parent.rename(elsewhere)
    entry.parent.symlink_to(elsewhere)
    before = {path.name: path.read_bytes() for path in files(elsewhere)}
    assert await backend.get("k") is None
    for operation in (backend.set("k", b"w", ttl=60), backend.delete("k"), backend.incr("k", 1, ttl=60)):
        with pytest.raises(BackendRefused):
            await operation
    assert {path.name: path.read_bytes() for path in files(elsewhere)} == before


async def test_a_linked_directory_is_not_followed(tmp_path: Path) -> None:
    """The cache's own directory is no link either."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    backend = FileBackend(tmp_path / "link")
    assert await backend.get("k") is None
    with pytest.raises(BackendRefused) as caught:
        await backend.set("k", b"v", ttl=60)
    assert isinstance(caught.value.__cause__, OSError)
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "sizes", "sweep.lock"])
async def test_a_linked_lock_is_not_followed(directory: Path, tmp_path: Path, name: str) -> None:
    """What a link in the place of a file of ours points to is not made."""
    backend = FileBackend(directory, max_bytes=1 << 20)
    await backend.set("k", b"v", ttl=60)
    await backend.aclose()
    (file,) = files(directory, name) or [directory / name]
    file.unlink(missing_ok=True)
    file.symlink_to(tmp_path / "target")
    with suppress(BackendRefused):
        for index in range(50):
            await backend.set("k", b"v", ttl=60)
            await backend.set(f"l{index}", LARGE, ttl=60)
    await backend.aclose()
    assert not (tmp_path / "target").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
async def test_a_stranger_s_shard_is_not_trusted(backend: FileBackend, directory: Path) -> None:
    """What another user owns, or can write to, is neither read nor written."""
    await backend.set("k", b"v", ttl=60)
    (entry,) = entries(directory)
    entry.parent.chmod(0o777)
    assert await backend.get("k") is None
    entry.parent.chmod(0o700)
    assert await backend.get("k") == b"v"
    os.chown(entry.parent, 12345, 12345)
    assert await backend.get("k") is None
    with pytest.raises(BackendRefused):
        await backend.set("k", b"w", ttl=60)


async def test_a_fifo_does_not_hold_a_thread(backend: FileBackend, directory: Path) -> None:
    """In an entry's or a body's place it is a miss at once."""
    await backend.set("k", LARGE, ttl=60)
    (body,) = files(directory, "*.body")
    body.unlink()
    os.mkfifo(body)
    assert await backend.get("k") is None
    (entry,) = entries(directory)
    entry.unlink()
    os.mkfifo(entry)
    assert await backend.get("k") is None
    await backend.set("k", b"v", ttl=60)
    assert await backend.get("k") == b"v"


async def test_other_files_are_left_alone(backend: FileBackend, directory: Path, clock: FakeClock) -> None:
    """Clearing and sweeping take what is named as ours."""
    await backend.set("k", b"v", ttl=60)
    shard = entries(directory)[0].parent
    foreign = [directory / "README", directory / "ab.txt", shard / "notes.tmp.txt", shard / "lock"]
    for path in foreign:
        path.write_text("mine")
    clock.advance(10 * HOUR)
    await backend.sweep()
    await backend.clear("")
    assert all(path.read_text() == "mine" for path in foreign)


# Warm reads ---------------------------------------------------------------------------------------------------------


def warm(directory: Path) -> bool:
    """Whether the file system can be told not to wait."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return False
    path = directory.parent / "probe"
    path.write_bytes(b"probe")
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(5)], 0, flag) == 5
        except OSError:
            return False


def step(read: Coroutine[object, object, T]) -> T | None:
    """Run a coroutine to its first wait; ``None`` if it has one."""
    try:
        read.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # of T: what the coroutine returns
    read.close()
    return None


@pytest.mark.parametrize("bound", [None, 1 << 20], ids=["unbounded", "bounded"])
async def test_a_warm_entry_is_read_without_a_worker(directory: Path, bound: int | None) -> None:
    """The second read of a small entry ends in the turn of the loop in which it began."""
    if not warm(directory):
        pytest.skip("this file system cannot be told not to wait")
    backend = FileBackend(directory, max_bytes=bound)
    await backend.set("k", b"v" * 100, ttl=60)
    await backend.set("large", LARGE, ttl=60)
    assert step(backend.get("k")) is None  # the first is a worker's
    assert await backend.get_many(["k", "large"]) == {"k": b"v" * 100, "large": LARGE}
    assert step(backend.get("k")) == b"v" * 100
    found = step(backend.get_versioned("k"))
    assert found is not None
    assert found[0] == b"v" * 100
    assert step(backend.get("large")) is None
    await backend.aclose()


async def test_a_warm_read_sees_what_others_did(directory: Path, clock: FakeClock) -> None:
    """Replaced, removed, expired, moved away, damaged: like any other read."""
    backend, other = FileBackend(directory, clock=clock), FileBackend(directory, clock=clock)

    async def heat(data: bytes) -> None:
        await other.set("k", data, ttl=60)
        for _ in range(3):
            assert await backend.get("k") == data

    await heat(b"old")
    await heat(b"new")
    await other.set("k", LARGE, ttl=60)
    assert await backend.get("k") == LARGE
    await heat(b"removed")
    await other.delete("k")
    assert await backend.get("k") is None
    await heat(b"moved")
    directory.rename(directory.with_name("moved"))
    assert await backend.get("k") is None
    await heat(b"expired")
    clock.advance(61)
    assert await backend.get("k") is None
    for damage in (*DAMAGES, _directory):
        await heat(b"damaged")
        (path,) = entries(directory)
        damage(path)
        assert await backend.get("k") is None
        if path.is_dir():
            path.rmdir()


@pytest.mark.parametrize("level", ["directory", "shard", "entry"])
async def test_a_warm_read_follows_no_link(directory: Path, tmp_path: Path, level: str) -> None:
    """Planted at any level between two reads: a miss."""
    backend = FileBackend(directory)
    await backend.set("k", b"v", ttl=60)
    assert await backend.get("k") == b"v"
    assert await backend.get("k") == b"v"
    (entry,) = entries(directory)
    path = {"directory": directory, "shard": entry.parent, "entry": entry}[level]
    path.rename(tmp_path / "target")
    path.symlink_to(tmp_path / "target")
    assert await backend.get("k") is None
    path.unlink()
    (tmp_path / "target").rename(path)
    assert await backend.get("k") == b"v"
    entry.parent.chmod(0o777)
    assert await backend.get("k") is None


async def test_it_reads_where_reads_cannot_be_told_not_to_wait(tmp_path: Path) -> None:
    """A tmpfs does not know the flag: every read is a worker's."""
    with mounted(tmp_path / "memory", "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        backend = FileBackend(tmp_path / "memory" / "cache")
        await backend.set("k", b"v", ttl=60)
        for _ in range(3):
            assert await backend.get("k") == b"v"
        await backend.aclose()


# Damage -------------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _remove(path: Path) -> None:
    path.unlink()


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [_truncate, _empty, _extend, _zero, _flip_last, _remove]


@pytest.mark.need("faults", engine="File")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["small", "head", "body"])
async def test_a_damaged_entry_is_a_miss(
    backend: FileBackend, directory: Path, what: str, damage: Callable[[Path], None]
) -> None:
    """For every reader; and the next write stands."""
    await backend.set("k", b"12" if what == "small" else LARGE, ttl=60)
    (path,) = files(directory, "*.body") if what == "body" else entries(directory)
    damage(path)
    assert await backend.get("k") is None
    assert await backend.get_many(["k"]) == {}
    async with backend.open("k") as body:
        assert body is None
    data, version = await backend.get_versioned("k")
    assert data is None
    assert await backend.set_if("k", b"1", version, ttl=60)
    assert await backend.get("k") == b"1"


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_counter_is_not_counted_on(
    backend: FileBackend, directory: Path, damage: Callable[[Path], None]
) -> None:
    """It begins anew, and `add` finds the key free."""
    await backend.incr("c", 41, ttl=60)
    await backend.set("a", b"v", ttl=60)
    for path in entries(directory):
        damage(path)
    assert await backend.incr("c", 1, ttl=60) == 1
    assert await backend.touch("a", ttl=60) is False
    assert await backend.delete("a") is False
    assert await backend.add("a", b"w", ttl=60) is True


async def test_every_flipped_bit_is_noticed(backend: FileBackend, directory: Path) -> None:
    """A byte of an entry's file changed anywhere never yields another value."""
    await backend.set("key", b"value", ttl=60)
    (path,) = entries(directory)
    good = path.read_bytes()
    for index in range(len(good)):
        path.write_bytes(good[:index] + bytes((good[index] ^ 0x10,)) + good[index + 1 :])
        assert await backend.get("key") is None
        assert [key async for key in backend.scan("")] in ([], ["key"])
    path.write_bytes(good)
    assert await backend.get("key") == b"value"


async def _readers(backend: FileBackend, key: str) -> list[bytes | None]:
    """What each way of reading finds."""
    found = [await backend.get(key), (await backend.get_many([key])).get(key), (await backend.get_versioned(key))[0]]
    async with backend.open(key) as body:
        found.append(None if body is None else b"".join([chunk async for chunk in body]))
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), large=st.booleans())
def test_no_garbage_is_a_value(tmp_path: Path, data: st.DataObject, large: bool) -> None:
    """Bytes put over, into or in the place of an entry's files: the value that was stored or a miss, and never an error.

    Nor does the garbage stand in the way of the next write.
    """

    async def main() -> None:
        backend = FileBackend(tmp_path / "cache")
        value = LARGE if large else b"12"
        await backend.set("k", value, ttl=60)
        for path in entries(tmp_path / "cache") + files(tmp_path / "cache", "*.body"):
            garbage = data.draw(st.binary(max_size=200))
            at = data.draw(st.integers(0, 300))
            before = path.read_bytes()
            mode = data.draw(st.sampled_from(("leave", "replace", "insert", "overwrite", "cut")))
            if mode == "leave":
                continue
            path.write_bytes(
                {
                    "replace": garbage,
                    "insert": before[:at] + garbage + before[at:],
                    "overwrite": before[:at] + garbage + before[at + len(garbage) :],
                    "cut": before[:at],
                }[mode]
            )
        for found in await _readers(backend, "k"):
            assert found in (value, None)
        assert [key async for key in backend.scan("")] in ([], ["k"])
        await backend.sweep()
        await backend.set("k", b"1", ttl=60)
        assert await _readers(backend, "k") == [b"1"] * 4
        assert await backend.incr("k", 1, ttl=60) == 2
        await backend.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("data", [b"v", LARGE], ids=["small", "large"])
async def test_swapped_files_are_misses(backend: FileBackend, directory: Path, data: bytes) -> None:
    """An entry under another key's name, and a body of another entry, of equal length too."""
    await backend.set("one", data, ttl=60)
    await backend.set("two", data[:-1] + b"!", ttl=60)
    for pattern in ("*.body", "?" * 62):
        found = files(directory, pattern)
        if len(found) == 2:
            contents = [path.read_bytes() for path in found]
            for path, content in zip(found, reversed(contents), strict=True):
                path.write_bytes(content)
            assert await backend.get("one") is None
            assert await backend.get("two") is None
            await backend.set("one", data, ttl=60)
            await backend.set("two", data[:-1] + b"!", ttl=60)


# Killed writers and many processes ----------------------------------------------------------------------------------

WRITERS = """
    import asyncio, os, signal, sys
    from acache.backends.file import FileBackend

    async def chunks(byte):
        for _ in range(8):
            yield bytes((byte,)) * 70_000

    async def main():
        backend = FileBackend(sys.argv[1], max_bytes=50_000_000)
        print(os.getpid(), flush=True)
        turn = os.getpid()
        while True:
            turn += 1
            byte = turn % 256
            await backend.set("small", bytes((byte,)) * 300, ttl=None)
            await backend.set("large", bytes((byte,)) * 300_000, ttl=None)
            await backend.store("stream", chunks(byte), ttl=None)
            await backend.incr("count", 1, ttl=None)
            await backend.delete("large")

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for _ in sys.stdin:
        if os.fork() == 0:
            asyncio.run(main())
"""
"""Forks a writer for each line, and says its number when it begins: quicker than a Python for each."""


@pytest.mark.need("faults", engine="File")
async def test_a_killed_writer_leaves_nothing_torn(directory: Path, clock: FakeClock) -> None:
    """Killed at random instants: values are whole, counters only grow, and the sweep removes all that was left."""
    backend = FileBackend(directory, max_bytes=50_000_000, clock=clock)
    lengths = {"small": 300, "large": 300_000, "stream": 560_000}
    count = 0
    nursery = python(WRITERS, directory)
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    working: list[int] = []
    for kills in range(0, KILLS, AT_ONCE):
        while len(working) < AT_ONCE:
            nursery.stdin.write(b"\n")
            nursery.stdin.flush()
            working.append(int(await asyncio.to_thread(nursery.stdout.readline)))
        deadline = time.monotonic() + random.uniform(0.0, 0.1)
        while time.monotonic() < deadline or await backend.get("count") is None:
            for key, data in (await backend.get_many(list(lengths))).items():
                assert len(data) == lengths[key]
                assert len(set(data)) == 1
        while working:
            os.kill(working.pop(), signal.SIGKILL)
        for key, length in lengths.items():
            data = await backend.get(key)
            assert data is None or (len(data) == length and len(set(data)) == 1)
        now = int(await backend.get("count") or b"0")
        assert now >= count
        count = now
        assert await backend.add("nobody holds a lock", b"", ttl=None) is (kills == 0)
    nursery.communicate()  # it ends when its input does
    assert count > 0
    clock.advance(2 * HOUR)
    await backend.sweep()
    await backend.aclose()
    assert files(directory, "*.tmp") == []
    assert len(files(directory, "*.body")) <= 2
    assert {path.name for path in files(directory)} - {path.name for path in entries(directory)} <= (
        {"lock", "sizes", "sweep.lock"} | {path.name for path in files(directory, "*.body")}
    )


def _count(directory: str, results: multiprocessing.Queue[tuple[list[int], int]]) -> None:
    async def main() -> None:
        backend = FileBackend(directory)
        sums = [await backend.incr("c", 1, ttl=60) for _ in range(100)]
        won = sum([await backend.add(f"a{index}", b"v", ttl=60) for index in range(100)])
        await backend.aclose()
        results.put((sums, won))

    asyncio.run(main())


async def test_processes_count_together(directory: Path) -> None:
    """Of four, no increment is lost, and each `add` has one winner."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[list[int], int]] = context.Queue()
    processes = [context.Process(target=_count, args=(str(directory), results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [await asyncio.to_thread(results.get, timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for sums, _ in found for number in sums) == list(range(1, 401))
    assert sum(won for _, won in found) == 100


# Stopped processes --------------------------------------------------------------------------------------------------

HOLDER = """
    import sys, time
    from acache.backends.file.disk import Shard, locked

    with Shard(sys.argv[1], sys.argv[2]) as shard, locked(shard.fd if sys.argv[3] == "lock" else shard.root, sys.argv[3]):
        print(flush=True)
        time.sleep(600)
"""


@contextmanager
def stopped(directory: Path, shard: str, lock: str = "lock") -> Iterator[subprocess.Popen[bytes]]:
    """A process that was stopped while it held a lock."""
    holder = python(HOLDER, directory, shard, lock)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def shard_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:2]


@pytest.mark.need("faults", engine="File")
async def test_a_stopped_writer_costs_the_others_their_deadline_at_most(directory: Path) -> None:
    """Of each operation, a hundred at once; reads and other shards do not notice, and no worker is taken."""
    backend = FileBackend(directory, lock_timeout=2, threads=2)
    await backend.set_many({"k": b"old", "large": LARGE}, ttl=60)
    other = next(f"o{number}" for number in range(100) if shard_of(f"o{number}") not in (shard_of("k"), "00"))
    with stopped(directory, shard_of("k")):
        began = time.monotonic()
        writers = [asyncio.create_task(backend.set("k", b"new", ttl=60)) for _ in range(95)]
        writers += [
            asyncio.create_task(operation)
            for operation in (
                backend.set("k", LARGE, ttl=60),
                backend.store("k", [LARGE] * 2, ttl=60),
                backend.delete("k"),  # type: ignore[list-item]  # of one kind as far as this test goes
                backend.incr("k", 1, ttl=60),  # type: ignore[list-item]
                backend.touch("k", ttl=60),  # type: ignore[list-item]
            )
        ]
        for turn in range(5):
            assert await backend.get_many(["k"]) == {"k": b"old"}
            await backend.set(other, b"%d" % turn, ttl=60)
            assert await backend.get(other) == b"%d" % turn
        assert not any(writer.done() for writer in writers)
        results = await asyncio.gather(*writers, return_exceptions=True)
        assert {type(result) for result in results} == {BackendTimeout}
        assert time.monotonic() - began < 15
        with pytest.raises(BackendTimeout) as caught:
            await backend.set_many({"a": b"1", "k": b"new", "b": b"2"}, ttl=60)
        assert list(caught.value.failed) == ["k"]
        assert await backend.get_many(["a", "k", "b"]) == {"a": b"1", "k": b"old", "b": b"2"}
        assert files(directory, "*.tmp") == []
        assert len(files(directory, "*.body")) == 1
    await backend.set("k", b"new", ttl=60)
    assert await backend.get("k") == b"new"
    await backend.aclose()


async def test_a_writer_goes_on_with_the_one_it_waits_for(directory: Path) -> None:
    """Continued before the deadline, nobody is told of it."""
    backend = FileBackend(directory, lock_timeout=60)
    await backend.set("k", b"old", ttl=60)
    with stopped(directory, shard_of("k")) as holder:
        writer = asyncio.create_task(backend.set("k", b"new", ttl=60))
        await asyncio.wait([writer], timeout=0.1)
        assert not writer.done()
        holder.kill()
        await writer
    assert await backend.get("k") == b"new"


async def test_a_cancelled_writer_waits_no_more(directory: Path) -> None:
    """It neither writes later nor leaves a file."""
    backend = FileBackend(directory, lock_timeout=60)
    await backend.set("k", b"old", ttl=60)
    with stopped(directory, shard_of("k")):
        for operation in (backend.set("k", LARGE, ttl=60), backend.store("k", [LARGE] * 2, ttl=60)):
            writer = asyncio.create_task(operation)
            await asyncio.wait([writer], timeout=0.1)
            writer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer
    while files(directory, "*.tmp"):  # of a try that was under way
        await asyncio.sleep(0.01)
    assert await backend.get("k") == b"old"


@pytest.mark.need("faults", engine="File")
async def test_a_stopped_sweeper_does_not_let_the_bound_go(directory: Path, clock: FakeClock) -> None:
    """While nobody can make room, writes that need it are told so; afterwards they fit."""
    backend = FileBackend(directory, max_bytes=1 << 20, clock=clock, lock_timeout=0.2)
    await backend.set("k", b"v", ttl=60)
    with stopped(directory, shard_of("k"), "sweep.lock"):
        with pytest.raises(BackendTimeout):
            for index in range(300):
                await backend.set(f"k{index}", b"v", ttl=None)
        assert used(directory) <= 1 << 20
    for index in range(300):
        await backend.set(f"k{index}", b"v", ttl=None)
    await backend.aclose()
    assert used(directory) <= 1 << 20


# A failing disk -----------------------------------------------------------------------------------------------------


@contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[None]:
    """Mount a file system for the test, or skip it."""
    path.mkdir(exist_ok=True)
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount")
    if subprocess.run(["mount", *arguments, str(path)], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.need("faults", engine="File")
async def test_a_full_disk_is_an_error_and_then_is_not(tmp_path: Path) -> None:
    """Writes raise with the cause, leave no garbage, reads go on, and once there is room everything is well."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=2m", "tmpfs"):
        backend = FileBackend(tmp_path / "small" / "cache")
        await backend.set("first", b"1", ttl=60)
        ballast = tmp_path / "small" / "ballast"
        with ballast.open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                os.write(file.fileno(), bytes(4096))
        for operation in (
            backend.set("small", b"v" * 5000, ttl=60),
            backend.set("large", LARGE, ttl=60),
            backend.store("stream", [LARGE] * 3, ttl=60),
            backend.incr("count", 1, ttl=60),
        ):
            with pytest.raises(BackendUnavailable) as caught:
                await operation
            assert isinstance(caught.value.__cause__, OSError)
            assert caught.value.__cause__.errno == errno.ENOSPC
        assert await backend.get("first") == b"1"
        assert await backend.get_many(["small", "large", "stream", "count"]) == {}
        assert files(tmp_path / "small", "*.tmp") == []
        assert files(tmp_path / "small", "*.body") == []
        ballast.unlink()
        await backend.set("large", LARGE, ttl=60)
        assert await backend.get("large") == LARGE
        await backend.aclose()


@pytest.mark.need("faults", engine="File")
async def test_a_limit_on_files_names_the_value(backend: FileBackend, directory: Path) -> None:
    """RLIMIT_FSIZE: a value larger than a file may be is too large, and nothing of it stays."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ValueTooLarge):
            await backend.set("k", LARGE, ttl=60)
        with pytest.raises(ValueTooLarge):
            await backend.store("k", [LARGE] * 3, ttl=60)
        await backend.set("k", b"fits", ttl=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert await backend.get("k") == b"fits"
    assert files(directory, "*.tmp") == []


@pytest.mark.need("faults", engine="File")
async def test_a_read_only_disk_is_read(tmp_path: Path) -> None:
    """Hits are hits, writes are refused."""
    backend = FileBackend(tmp_path / "cache", max_bytes=1 << 20)
    await backend.set("k", b"v", ttl=60)
    await backend.aclose()
    with mounted(tmp_path / "cache", "--bind", "-o", "ro", str(tmp_path / "cache")):
        assert await backend.get("k") == b"v"
        for operation in (backend.set("k", b"w", ttl=60), backend.delete("k"), backend.touch("k", ttl=5)):
            with pytest.raises(BackendRefused) as caught:
                await operation
            assert isinstance(caught.value.__cause__, OSError)
        assert await backend.get("k") == b"v"
        await backend.aclose()


@pytest.mark.need("faults", engine="File")
async def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    """Or above it: reads miss, writes are refused, and the file stays."""
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "cache"):
        backend = FileBackend(path)
        assert await backend.get("k") is None
        assert await backend.get_many(["k"]) == {}
        with pytest.raises(BackendRefused):
            await backend.set("k", b"v", ttl=60)
        await backend.aclose()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.need("faults", engine="File")
async def test_permission_denied_is_refused(tmp_path: Path) -> None:
    """A process without the right to the directory misses on reads and is told on writes."""
    owner = FileBackend(tmp_path / "cache")
    await owner.set("k", b"v", ttl=60)
    await owner.aclose()
    if os.geteuid() == 0:
        tmp_path.chmod(0o755)
        program = """
            import asyncio, os, sys
            from acache import BackendRefused
            from acache.backends.file import FileBackend

            async def main():
                backend = FileBackend(sys.argv[1])
                await backend.get("imports what it needs")
                os.setuid(12345)
                assert await backend.get("k") is None
                try:
                    await backend.set("k", b"w", ttl=60)
                except BackendRefused as error:
                    print(type(error.__cause__).__name__, flush=True)

            asyncio.run(main())
        """
        process = python(program, tmp_path / "cache")
        output, _ = await asyncio.to_thread(process.communicate, timeout=30)
        assert output == b"PermissionError\n"
    else:
        (tmp_path / "cache").chmod(0o000)
        assert await owner.get("k") is None
        with pytest.raises(BackendRefused):
            await owner.set("k", b"w", ttl=60)
        (tmp_path / "cache").chmod(0o700)


@pytest.mark.need("faults", engine="File")
async def test_the_directory_may_vanish(backend: FileBackend, directory: Path) -> None:
    """Somebody empties the disk: misses, and the next write begins anew."""
    await backend.set("k", b"v", ttl=60)
    shutil.rmtree(directory)
    assert await backend.get("k") is None
    assert await backend.delete("k") is False
    await backend.set("k", b"w", ttl=60)
    assert await backend.get("k") == b"w"


@pytest.mark.need("faults", engine="File")
async def test_a_batch_names_what_failed(backend: FileBackend, directory: Path) -> None:
    """One shard is not to be used: its keys are in the error, with the cause, and the others are done."""
    keys = [f"k{number}" for number in range(600)]
    bad = [key for key in keys if shard_of(key) == shard_of("k0")]
    await backend.set_many(dict.fromkeys(keys, b"old"), ttl=60)
    (directory / shard_of("k0")).chmod(0o777)
    with pytest.raises(BackendRefused) as caught:
        await backend.set_many(dict.fromkeys(keys, b"new"), ttl=60)
    assert sorted(caught.value.failed) == sorted(bad)
    assert all(isinstance(error.__cause__, PermissionError) for error in caught.value.failed.values())
    assert await backend.get_many(keys) == dict.fromkeys([key for key in keys if key not in bad], b"new")
    with pytest.raises(BackendRefused) as caught:
        await backend.delete_many(keys)
    assert sorted(caught.value.failed) == sorted(bad)
    (directory / shard_of("k0")).chmod(0o700)
    assert await backend.get_many(keys) == dict.fromkeys(bad, b"old")


@pytest.mark.need("faults", engine="File")
async def test_a_batch_stores_what_fits(directory: Path) -> None:
    """What is too large is named, with limit and size."""
    backend = FileBackend(directory, max_bytes=1 << 20)
    with pytest.raises(ValueTooLarge, match="900000 .* 838860") as caught:  # noqa: RUF043 - a pattern
        await backend.set_many({"a": b"1", "large": bytes(900_000), "b": b"2"}, ttl=60)
    assert list(caught.value.failed) == ["large"]
    assert await backend.get_many(["a", "large", "b"]) == {"a": b"1", "b": b"2"}
    await backend.aclose()


@pytest.mark.parametrize("key", ["", "\ud800", "a" * (2**20 + 1), 5], ids=["empty", "surrogate", "long", "number"])
async def test_a_key_that_is_none_is_refused(backend: FileBackend, directory: Path, key: str) -> None:
    """By every operation, before anything is made."""

    async def read() -> None:
        async with backend.open(key):
            pass

    for operation in (
        backend.get(key),
        backend.set(key, b"v", ttl=60),
        backend.delete(key),
        backend.get_many(["good", key]),
        backend.set_many({"good": b"v", key: b"v"}, ttl=60),
        backend.delete_many(["good", key]),
        backend.add(key, b"v", ttl=60),
        backend.incr(key, 1, ttl=60),
        backend.touch(key, ttl=60),
        backend.ttl(key),
        backend.get_versioned(key),
        backend.set_if(key, b"v", None, ttl=60),
        backend.swap(key, b"v", ttl=60),
        backend.store(key, [LARGE] * 2, ttl=60),
        read(),
    ):
        with pytest.raises(InvalidKey):
            await operation
    assert not directory.exists()


@pytest.mark.need("faults", engine="File")
async def test_a_clock_set_back_ends_nothing_early(backend: FileBackend, clock: FakeClock) -> None:
    """Entries live longer by that much, can be replaced and swept, and their files are not taken for abandoned ones."""
    await backend.set("k", b"v", ttl=60)
    await backend.set("large", LARGE, ttl=60)
    clock.set_wall(clock.wall() - 10 * HOUR)
    assert await backend.get_many(["k", "large"]) == {"k": b"v", "large": LARGE}
    await backend.set("k", b"w", ttl=60)
    await backend.sweep()
    assert await backend.get_many(["k", "large"]) == {"k": b"w", "large": LARGE}
    clock.advance(61)
    assert await backend.get("k") is None
    assert await backend.get("large") == LARGE


# The bound and the sweep --------------------------------------------------------------------------------------------


async def test_the_bound_is_held(directory: Path, clock: FakeClock) -> None:
    """Small, large and streamed entries, written by twenty tasks: the bound, and what is being written, is the most."""
    bound = 4 << 20
    backend = FileBackend(directory, max_bytes=bound, clock=clock)

    async def write(number: int) -> None:
        for index in range(20):
            size = random.choice((10, 5000, 70_000, 200_000))
            if size == 200_000 and index % 2:
                await backend.store(f"{number}:{index}", [b"x" * size], ttl=None)
            else:
                await backend.set(f"{number}:{index}", b"x" * size, ttl=None)
            assert used(directory) <= bound + 20 * 210_000

    await asyncio.gather(*[write(number) for number in range(20)])
    await backend.aclose()
    assert bound / 2 < used(directory) <= bound
    assert threading.active_count() < 20


FILLER = """
    import asyncio, sys
    from acache.backends.file import FileBackend

    async def main():
        backend = FileBackend(sys.argv[1], max_bytes=4 << 20, lock_timeout=60)
        print(flush=True)
        for number in range(600):
            await backend.set(f"{sys.argv[2]}:{number}", b"x" * (10, 5000, 70_000)[number % 3], ttl=None)
        await backend.aclose()

    asyncio.run(main())
"""


async def test_the_bound_is_held_by_processes_together(directory: Path) -> None:
    """Of four that write at once; and what they count is what is there."""
    fillers = [python(FILLER, directory, number) for number in range(4)]
    while any(filler.poll() is None for filler in fillers):
        assert used(directory) <= (4 << 20) + 4 * 80_000
        await asyncio.sleep(0.01)
    for filler in fillers:
        filler.communicate()
        assert filler.returncode == 0
    assert 2 << 20 < used(directory) <= 4 << 20
    assert sum(array("Q", (directory / "sizes").read_bytes())) == used(directory)


def test_a_write_walks_no_directory(directory: Path) -> None:
    """Of 2,000 writes with a store at its bound, all but a few list nothing; counted by the interpreter's audit."""
    program = """
        import asyncio, sys
        from acache.backends.file import FileBackend

        listed, opened = 0, 0

        def audit(event, arguments):
            global listed, opened
            listed += event == "os.listdir"
            opened += event == "open"

        async def main():
            backend = FileBackend(sys.argv[1], max_bytes=8 << 20)
            for number in range(2000):
                await backend.set(str(number), b"x", ttl=None)
            await backend.aclose()
            before = listed, opened
            for number in range(2000, 4000):
                await backend.set(str(number), b"x", ttl=None)
            await backend.aclose()
            print((listed - before[0]) / 2000, (opened - before[1]) / 2000)

        sys.addaudithook(audit)
        asyncio.run(main())
    """
    process = python(program, directory)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    listings, opens = map(float, output.split())
    assert listings < 2  # a shard has eight entries here: removing two hundred takes a look at all of them
    assert opens < 50


async def test_the_longest_unused_goes_first(directory: Path, clock: FakeClock) -> None:
    """What was read lately survives what was written later."""
    backend = FileBackend(directory, max_bytes=1 << 20, clock=clock)
    for index in range(150):
        await backend.set(f"k{index}", b"v", ttl=None)
        for path in entries(directory):
            if path.stat().st_mtime > clock.wall():
                os.utime(path, (clock.wall(), clock.wall()))
        clock.advance(1)
    clock.advance(100)
    assert await backend.get("k0") == b"v"
    clock.advance(100)
    for index in range(150, 300):
        await backend.set(f"k{index}", b"v", ttl=None)
    await backend.aclose()
    assert await backend.get("k0") == b"v"
    assert await backend.get("k1") is None
    assert await backend.get("k299") == b"v"


async def test_a_bound_counts_what_was_there_before(directory: Path, clock: FakeClock) -> None:
    """A store that grew without a bound is brought below one."""
    free = FileBackend(directory, clock=clock)
    await free.set_many({f"k{index}": b"v" for index in range(1000)}, ttl=None)
    await free.aclose()
    bounded = FileBackend(directory, max_bytes=1 << 20, clock=clock)
    await bounded.set("new", b"v", ttl=None)
    await bounded.aclose()
    await bounded.sweep()
    assert used(directory) <= 1 << 20


async def test_what_can_never_fit_is_refused(directory: Path) -> None:
    """Before a byte is written; a stream as soon as it is known."""
    backend = FileBackend(directory, max_bytes=1 << 20)
    with pytest.raises(ValueTooLarge, match=r"1048576 bytes .* 838860"):
        await backend.set("k", bytes(1 << 20), ttl=60)
    assert not directory.exists()
    assert backend.value_limit == 838_860
    with pytest.raises(ValueTooLarge, match="838860"):
        await backend.store("k", [LARGE] * 10, ttl=60)
    assert [path for path in files(directory) if path.name not in ("lock", "sizes")] == []
    await backend.aclose()


async def test_the_sweep_removes_what_nobody_can_see(backend: FileBackend, directory: Path, clock: FakeClock) -> None:
    """Expired entries, bodies without an entry, temporaries after an hour; and nothing that is alive."""
    await backend.set("short", b"v", ttl=1)
    await backend.set("short, large", LARGE, ttl=1)
    await backend.set("long", LARGE, ttl=10 * HOUR)
    shard = entries(directory)[0].parent
    (shard / f"{'0' * 16}.body").write_bytes(b"orphan")
    (shard / f"{'1' * 16}.tmp").write_bytes(b"being written, for all we know")
    clock.advance(2)
    await backend.sweep()
    assert len(entries(directory)) == 1
    assert len(files(directory, "*.body")) == 1
    assert len(files(directory, "*.tmp")) == 1
    clock.advance(HOUR)
    await backend.sweep()
    assert files(directory, "*.tmp") == []
    assert await backend.get("long") == LARGE


async def test_it_sweeps_by_itself(backend: FileBackend, directory: Path, clock: FakeClock) -> None:
    """Bit by bit, behind the writes, until nothing is left; at rest no thread is."""
    await backend.set_many({f"k{index}": b"v" for index in range(500)}, ttl=1)
    clock.advance(2)
    for _ in range(256):
        clock.advance(11)
        await backend.set("again", b"v", ttl=60)
        await backend.aclose()  # waits for the sweep
    assert len(entries(directory)) == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "acache-sweep"]


async def test_replacing_leaves_one_body(backend: FileBackend, directory: Path) -> None:
    """Overwriting, touching and deleting remove the old files."""
    for _ in range(5):
        await backend.set("k", LARGE, ttl=60)
        await backend.touch("k", ttl=50)
        await backend.store("k", [LARGE] * 2, ttl=60)
    assert len(files(directory, "*.body")) == 1
    await backend.set("k", b"small", ttl=60)
    assert files(directory, "*.body") == []
    await backend.set("k", LARGE, ttl=60)
    assert await backend.delete("k") is True
    assert entries(directory) + files(directory, "*.body") + files(directory, "*.tmp") == []


# Streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 262_144, 1_000_000])
async def test_a_stream_comes_back_as_it_was(backend: FileBackend, size: int) -> None:
    """From synchronous and asynchronous chunks of any length, for `open` and for `get`; and a set value streams."""
    data = random.randbytes(size)

    async def chunks() -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            step = random.choice((0, 1, 1000, 300_000))
            yield data[at : at + step]
            at += step

    await backend.store("async", chunks(), ttl=60)
    await backend.store("sync", [data], ttl=60)
    await backend.set("set", data, ttl=60)
    for key in ("async", "sync", "set"):
        assert await backend.get(key) == data
        async with backend.open(key) as body:
            assert body is not None
            assert b"".join([chunk async for chunk in body]) == data
        left = await backend.ttl(key)
        assert left is not None
        assert 59 < left <= 60


async def test_a_reader_keeps_its_entry(backend: FileBackend) -> None:
    """Replaced, deleted or expired while it is read: the reader gets the one it opened, whole."""
    await backend.store("k", [LARGE] * 4, ttl=60)
    async with backend.open("k") as body:
        assert body is not None
        read = [await anext(body)]
        await backend.set("k", b"new", ttl=60)
        await backend.sweep()
        read += [chunk async for chunk in body]
    assert b"".join(read) == LARGE * 4
    assert await backend.get("k") == b"new"


async def test_a_failing_source_stores_nothing(backend: FileBackend, directory: Path) -> None:
    """Its own error comes through; the old entry stays, the temporary file does not."""

    async def chunks() -> AsyncIterator[bytes]:
        yield LARGE
        raise LookupError("the source broke")

    await backend.set("k", b"old", ttl=60)
    with pytest.raises(LookupError, match="the source broke"):
        await backend.store("k", chunks(), ttl=60)
    assert await backend.get("k") == b"old"
    assert files(directory, "*.tmp") == []


@pytest.mark.parametrize("old", [None, b"old", LARGE], ids=["none", "small", "large"])
async def test_a_cancelled_store_stores_nothing(backend: FileBackend, directory: Path, old: bytes | None) -> None:
    """The old entry stays, and its own file does not."""
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield LARGE
        yield LARGE
        started.set()
        await asyncio.Event().wait()

    if old is not None:
        await backend.set("k", old, ttl=60)
    before = len(files(directory, "*.body"))
    task = asyncio.create_task(backend.store("k", chunks(), ttl=60))
    await started.wait()
    assert len(files(directory, "*.tmp")) == 1
    assert await backend.get("k") == old
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await backend.get("k") == old
    assert files(directory, "*.tmp") == []
    assert len(files(directory, "*.body")) == before


async def test_a_store_cancelled_anywhere_leaves_no_file(backend: FileBackend, directory: Path) -> None:
    """Not even if its file is made by a worker after the caller has gone."""
    for turns in range(60):
        task = asyncio.create_task(backend.store("k", [bytes((turns,)) * 300_000] * 2, ttl=60))
        for _ in range(turns // 2):
            await asyncio.sleep(0.0002 * (turns % 2))
        task.cancel()
        await asyncio.wait([task])
        data = await backend.get("k")
        assert data is None or (len(data) == 600_000 and len(set(data)) == 1)
    deadline = time.monotonic() + 30
    while files(directory, "*.tmp") and time.monotonic() < deadline:  # workers end what they began
        await asyncio.sleep(0.01)
    assert files(directory, "*.tmp") == []
    assert len(files(directory, "*.body")) <= 1


async def test_cancelled_calls_leave_whole_entries(backend: FileBackend) -> None:
    """Wherever they are cut off: a value is the old or the new one, and the next call works."""
    for turns in range(60):
        task = asyncio.create_task(backend.set("k", bytes((turns,)) * 100_000, ttl=60))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        data = await backend.get("k")
        assert data is None or (len(data) == 100_000 and len(set(data)) == 1)
    await backend.set("k", b"last", ttl=60)
    assert await backend.incr("c", 1, ttl=60) == 1


async def test_cancelled_readers_leak_no_file(backend: FileBackend) -> None:
    """Descriptors close with whoever held them."""
    await backend.store("k", [LARGE] * 4, ttl=60)

    async def read() -> None:
        async with backend.open("k") as body:
            assert body is not None
            async for _ in body:
                pass

    await read()
    before = open_files()
    for turns in range(40):
        task = asyncio.create_task(read())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await read()
    assert open_files() <= before + 8  # what a worker may hold this moment


def test_a_large_body_takes_little_memory(directory: Path) -> None:
    """200 MB in and out, in a process that grows by less than 32 MB."""
    program = """
        import asyncio, hashlib, resource, sys
        from acache.backends.file import FileBackend

        SIZE, CHUNK = int(sys.argv[2]), 100_000

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

        async def main():
            backend = FileBackend(sys.argv[1])
            await backend.store("warm", [b"x" * 300_000], ttl=60)
            async with backend.open("warm") as body:
                async for _ in body:
                    pass
            sent, received, before = hashlib.sha256(), hashlib.sha256(), peak()

            async def chunks():
                for number in range(SIZE // CHUNK):
                    chunk = number.to_bytes(4, "big") * (CHUNK // 4)
                    sent.update(chunk)
                    yield chunk

            await backend.store("k", chunks(), ttl=60)
            async with backend.open("k") as body:
                async for chunk in body:
                    received.update(chunk)
            assert sent.digest() == received.digest()
            print((peak() - before) // 1_000_000)
            await backend.aclose()

        asyncio.run(main())
    """
    process = python(program, directory, BIG)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(output) < 32


# Keys and errors ----------------------------------------------------------------------------------------------------


async def test_scan_and_clear_see_long_keys(backend: FileBackend) -> None:
    """Keys of a megabyte are stored whole, and found by their beginnings."""
    key = "long" + "🐍" * 262_000
    await backend.set(key, b"v", ttl=60)
    await backend.set("short", LARGE, ttl=60)
    assert [found async for found in backend.scan("long")] == [key]
    await backend.clear("long")
    assert [found async for found in backend.scan("")] == ["short"]


async def test_every_error_is_acache_s(tmp_path: Path) -> None:
    """Whatever the disk says, each writing operation raises a `BackendError` with the cause."""
    (tmp_path / "file").write_text("")
    backend = FileBackend(tmp_path / "file", max_bytes=1 << 20)
    for operation in (
        backend.set("k", b"v", ttl=60),
        backend.set_many({"k": b"v"}, ttl=60),
        backend.delete("k"),
        backend.delete_many(["k"]),
        backend.add("k", b"v", ttl=60),
        backend.incr("k", 1, ttl=60),
        backend.touch("k", ttl=60),
        backend.set_if("k", b"v", None, ttl=60),
        backend.swap("k", b"v", ttl=60),
        backend.store("k", [LARGE], ttl=60),
        backend.clear(""),
        backend.sweep(),
    ):
        with pytest.raises(BackendError) as caught:
            await operation
        assert isinstance(caught.value.__cause__, OSError)
    assert await backend.get_versioned("k") == (None, None)
    await backend.aclose()
    await backend.aclose()


async def test_a_delta_that_is_no_whole_number_counts_nothing(backend: FileBackend) -> None:
    """And is refused at once: to look for a float in a range of 64 bits takes centuries."""
    with pytest.raises(TypeError):
        await backend.incr("k", 1.5, ttl=60)  # pyright: ignore[reportArgumentType]
    assert await backend.get("k") is None
