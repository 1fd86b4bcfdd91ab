"""The directory itself, synchronously: where files lie, how one replaces another, who goes when it is full.

::

    directory/
        sizes            bytes used by each shard, 256 numbers; only with a bound
        sweep.lock       held by the process that makes room
        3f/              a shard: the first two hex digits of the key's SHA-256
            lock         held while an entry of the shard is changed
            9c1e...      an entry: the other 62 digits; see `record`
            <id>.body    the body of an entry, where it is large
            <id>.tmp     not committed yet, or abandoned

Readers take no lock.  Writers prepare temporary files, then, under the shard's lock, look at what is there, and rename:
first the body, then the entry, whose rename is the commit.  A body's name is drawn anew for each write, so an entry can
only ever be read with the body it was written with, and a killed writer leaves nothing but files that nobody refers to.

Every way leads through descriptors opened without following links, and below a shard that belongs to this user and that
nobody else can write to: whoever may write to the directory itself can make entries vanish, but not plant one.

These functions raise ``OSError`` as it comes; what it means is said by `FileBackend`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import re
import stat
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from ...clock import FOREVER, Clock
from ...entry import HEAD_BYTES
from ...errors import ValueTooLarge
from .record import HEAD_SIZE, INLINE, LARGEST_RECORD, Record, pack, unpack

__all__ = ["CHUNK", "Descriptor", "Store", "Temporary"]

CHUNK: Final = 256 * 1024
"""Bytes of a body held in memory at a time."""

_SHARDS: Final = 256
_BLOCK: Final = 4096
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: a FIFO somebody put there must not hold a thread until its other end is opened.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SHARED: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_SHARD_NAME: Final = re.compile(r"[0-9a-f]{2}")
_ENTRY_NAME: Final = re.compile(r"[0-9a-f]{62}")
_BODY_NAME: Final = re.compile(r"[0-9a-f]{16}\.body")
_TEMPORARY_NAME: Final = re.compile(r"[0-9a-f]{16}\.tmp")

_ABANDONED: Final = 3600.0
"""Seconds without a write after which a temporary file is nobody's."""
_SWEEP_PAUSE: Final = 10.0
"""Seconds between two shards looked through behind the scenes."""
_USED_AGAIN: Final = 60.0
"""Seconds for which a second use of an entry is not noted: a note is a write to the disk."""
_HIGH: Final = 0.9
_LOW: Final = 0.8
_POOL: Final = 1000
"""Entries among which the longest unused are looked for."""
_SHARE: Final = 0.25
"""The part of a pool that goes before another pool is asked."""
_ATTEMPTS: Final = 5


class Descriptor:
    """An open file, closed with its last reference: a cancelled caller cannot close it under a worker's hands."""

    def __init__(self, number: int) -> None:
        self.number: Final = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a key's entry lies."""

    key: bytes
    shard: str
    name: str

    @classmethod
    def of(cls, key: str) -> _Place:
        data = _encode(key)
        digest = hashlib.sha256(data).hexdigest()
        return cls(data, digest[:2], digest[2:])


class _Shard:
    """Open descriptors of the directory and of one shard in it."""

    __slots__ = ("fd", "index", "root")

    def __init__(self, root: int, fd: int, index: int) -> None:
        self.root: Final = root
        self.fd: Final = fd
        self.index: Final = index


class Temporary:
    """A body on its way to the disk, chunk by chunk; whoever does not commit it discards it."""

    def __init__(self, place: _Place, shard: _Shard) -> None:
        self.place: Final = place
        self.name: Final = f"{os.urandom(8).hex()}.tmp"
        # Descriptors of its own: it outlives the operation that opened the shard.
        self._shard: Final = Descriptor(os.dup(shard.fd))
        self._file: Final = Descriptor(os.open(self.name, _CREATE, 0o600, dir_fd=shard.fd))
        self._digest: Final = hashlib.sha256()
        self.length = 0
        os.fchmod(self._file.number, 0o600)

    def write(self, data: bytes) -> None:
        """Append."""
        self._digest.update(data)
        self.length += len(data)
        _write_all(self._file.number, data)

    def finish(self, *, fsync: bool) -> bytes:
        """Return the digest of it all."""
        if fsync:
            os.fsync(self._file.number)
        return self._digest.digest()

    def discard(self) -> None:
        """Remove the file, if it still has this name."""
        _remove(self._shard.number, self.name)


class Store:
    """One directory.

    A ``condition`` is asked under the shard's lock whether the write may happen, given the live entry or ``None``.
    """

    def __init__(self, path: str, *, max_bytes: int | None, fsync: bool, clock: Clock) -> None:
        self.path: Final = path
        self._clock: Final = clock
        self._max_bytes: Final = max_bytes
        self._fsync: Final = fsync
        self._cursor = random.randrange(_SHARDS)  # noqa: S311 - processes begin at different shards
        self._sweep_at = 0.0
        self._mutex: Final = threading.Lock()
        self._sweeper: threading.Thread | None = None

    # Reading --------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """Return the body and its digest."""
        place = _Place.of(key)
        with self._shard(place.shard) as shard:
            for _ in range(_ATTEMPTS):
                record, body = self._read(shard, place.name, whole=True)
                if record is None or record.key != place.key or record.expires_at <= self._clock.wall():
                    return None
                if record.body_name is not None:
                    try:
                        file = Descriptor(os.open(record.body_name, _READ, dir_fd=shard.fd))
                    except FileNotFoundError:
                        continue  # replaced since the record was read: read the new one
                    body = b"".join(_chunks(file))
                if len(body) == record.length and hashlib.sha256(body).digest() == record.digest:
                    return body, record.digest
                return None
        return None

    def open_body(self, key: str) -> tuple[Descriptor, int, int] | None:
        """Return an open file that holds the body, where it begins, and its length; it has been read to the end once.

        Twice the reading, for a promise: what does not agree with its digest is a miss, not an error half-way.
        """
        place = _Place.of(key)
        with self._shard(place.shard) as shard:
            for _ in range(_ATTEMPTS):
                record, _ = self._read(shard, place.name, whole=False)
                if record is None or record.key != place.key or record.expires_at <= self._clock.wall():
                    return None
                try:
                    file = Descriptor(os.open(record.body_name or place.name, _READ, dir_fd=shard.fd))
                except FileNotFoundError:
                    continue
                start = 0 if record.body_name else record.body_at
                digest = hashlib.sha256()
                length = 0
                for chunk in _chunks(file, start):
                    digest.update(chunk)
                    length += len(chunk)
                if length == record.length and digest.digest() == record.digest:
                    return file, start, length
                if record.body_name is not None:
                    return None
        return None

    def expires_at(self, key: str) -> float | None:
        """Tell when the live entry expires; ``None`` if there is none."""
        place = _Place.of(key)
        with self._shard(place.shard) as shard:
            record = self._live(shard, place)
        return None if record is None else record.expires_at

    def shards(self) -> list[str]:
        """List the shards that there are."""
        with self._root() as root:
            return sorted(name for name in os.listdir(root) if _SHARD_NAME.fullmatch(name))

    def names(self, shard_name: str) -> list[str]:
        """List the entries of a shard, as names."""
        with self._shard(shard_name) as shard:
            return [name for name in os.listdir(shard.fd) if _ENTRY_NAME.fullmatch(name)]

    def keys(self, shard_name: str, names: list[str], prefix: str) -> list[str]:
        """Return the keys of those of the entries that are alive and begin with ``prefix``."""
        found: list[str] = []
        begin, now = _encode(prefix), self._clock.wall()
        with self._shard(shard_name) as shard:
            for name in names:
                record = self._head(shard, name)
                if record is not None and record.key.startswith(begin) and record.expires_at > now:
                    found.append(record.key.decode("utf-8", "surrogatepass"))
        return found

    # Writing --------------------------------------------------------------------------------------------------------

    def write(
        self, key: str, data: bytes, ttl: float | None, condition: Callable[[Record | None], bool] | None = None
    ) -> bool:
        """Replace the entry; tell whether the condition allowed it."""
        return self._write(key, data, ttl, condition)[0]

    def swap(self, key: str, data: bytes, ttl: float | None) -> bytes | None:
        """Replace the entry, and return how the one before began."""
        return self._write(key, data, ttl, None, see=True)[1]

    def incr(self, key: str, ttl: float | None, add: Callable[[bytes | None], int]) -> int:
        """Replace a counter by what ``add`` makes of it."""
        place = _Place.of(key)
        self.make_room(_on_disk(HEAD_SIZE + len(place.key)))
        with self._shard(place.shard, make=True) as shard, _locked(shard.fd, "lock"):
            old, live = self._old(shard, place)
            before = None if live is None else self._begin(shard, place, live)
            total = add(before)
            data = b"%d" % total
            expires_at = self._expiry(ttl) if live is None else live.expires_at
            record = Record(place.key, expires_at, len(data), hashlib.sha256(data).digest())
            self._commit(shard, place, record, self._prepare(shard, record, data), old)
        self._tend()
        return total

    def touch(self, key: str, ttl: float | None) -> bool:
        """Give the live entry another deadline; its body stays where it is."""
        place = _Place.of(key)
        try:
            with self._shard(place.shard) as shard, _locked(shard.fd, "lock"):
                old = self._live(shard, place)
                if old is None:
                    return False
                record = replace(old, expires_at=self._expiry(ttl))
                data = b"" if old.body_name else self._read(shard, place.name, whole=True)[1]
                self._commit(shard, place, record, self._prepare(shard, record, data), old)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> bool:
        """Remove the entry; tell whether it was alive."""
        place = _Place.of(key)
        try:
            with self._shard(place.shard) as shard, _locked(shard.fd, "lock"):
                old, live = self._old(shard, place)
                self._drop(shard, place.name, old)
        except FileNotFoundError:
            return False
        return live is not None

    def clear(self, shard_name: str, names: list[str], prefix: str) -> None:
        """Remove those of the entries whose keys begin with ``prefix``."""
        begin = _encode(prefix)
        with self._shard(shard_name) as shard, _locked(shard.fd, "lock"):
            for name in names:
                record = self._head(shard, name)
                if record is not None and record.key.startswith(begin):
                    self._drop(shard, name, record)

    def begin_body(self, key: str) -> Temporary:
        """Open a file for a body that comes in chunks."""
        place = _Place.of(key)
        with self._shard(place.shard, make=True) as shard:
            return Temporary(place, shard)

    def append(self, body: Temporary, data: bytes) -> None:
        """Write a chunk."""
        self._check_size(body.length + len(data))
        body.write(data)

    def commit_body(self, body: Temporary, ttl: float | None) -> None:
        """Make what was written the entry."""
        digest = body.finish(fsync=self._fsync)
        place = body.place
        record = Record(place.key, self._expiry(ttl), body.length, digest, os.urandom(8))
        self.make_room(_size_on_disk(record))
        with self._shard(place.shard, make=True) as shard:
            head = self._prepare(shard, record, b"")
            with _locked(shard.fd, "lock"):
                self._commit(shard, place, record, head, self._head(shard, place.name), body.name)
        self._tend()

    def _write(
        self,
        key: str,
        data: bytes,
        ttl: float | None,
        condition: Callable[[Record | None], bool] | None,
        *,
        see: bool = False,
    ) -> tuple[bool, bytes | None]:
        self._check_size(len(data))
        place = _Place.of(key)
        large = len(data) > INLINE
        digest = hashlib.sha256(data).digest()
        record = Record(place.key, self._expiry(ttl), len(data), digest, *([os.urandom(8)] if large else []))
        self.make_room(_size_on_disk(record))
        before = None
        with self._shard(place.shard, make=True) as shard:
            body = self._file_of(shard, [data]) if large else None
            head = None
            try:
                head = self._prepare(shard, record, b"" if large else data)
                with _locked(shard.fd, "lock"):
                    old, live = self._old(shard, place)
                    if condition is not None and not condition(live):
                        return False, None
                    if see and live is not None:
                        before = self._begin(shard, place, live)
                    self._commit(shard, place, record, head, old, body)
                    head = body = None
            finally:
                for name in (head, body):
                    if name is not None:
                        _remove(shard.fd, name)
        self._tend()
        return True, before

    def _prepare(self, shard: _Shard, record: Record, data: bytes) -> str:
        return self._file_of(shard, [pack(record), data])

    def _file_of(self, shard: _Shard, parts: list[bytes]) -> str:
        """Write a temporary file, and return its name."""
        name = f"{os.urandom(8).hex()}.tmp"
        fd = os.open(name, _CREATE, 0o600, dir_fd=shard.fd)
        try:
            try:
                os.fchmod(fd, 0o600)
                for part in parts:
                    _write_all(fd, part)
                if self._fsync:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            _remove(shard.fd, name)
            raise
        return name

    def _commit(
        self, shard: _Shard, place: _Place, record: Record, head: str, old: Record | None, body: str | None = None
    ) -> None:
        """Rename the body, then the entry; under the shard's lock."""
        try:
            if body is not None and record.body_name is not None:
                os.replace(body, record.body_name, src_dir_fd=shard.fd, dst_dir_fd=shard.fd)
            os.replace(head, place.name, src_dir_fd=shard.fd, dst_dir_fd=shard.fd)
        except BaseException:
            _remove(shard.fd, head)
            if body is not None and record.body_name is not None:
                _remove(shard.fd, record.body_name)
            raise
        if self._fsync:
            os.fsync(shard.fd)
        if old is not None and old.body_name is not None and old.body_name != record.body_name:
            _remove(shard.fd, old.body_name)
        self._account(shard, _size_on_disk(record) - (0 if old is None else _size_on_disk(old)))

    def _drop(self, shard: _Shard, name: str, record: Record | None) -> None:
        """Remove an entry; under the shard's lock."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=shard.fd)
            if record is not None:
                self._account(shard, -_size_on_disk(record))
        if record is not None and record.body_name is not None:
            _remove(shard.fd, record.body_name)

    def _expiry(self, ttl: float | None) -> float:
        return FOREVER if ttl is None else self._clock.wall() + ttl

    # One record -----------------------------------------------------------------------------------------------------

    def _read(self, shard: _Shard, name: str, *, whole: bool) -> tuple[Record | None, bytes]:
        """Read an entry's file: what it says, and if ``whole`` the body in it."""
        fd = os.open(name, _READ, dir_fd=shard.fd)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST_RECORD:
                return None, b""
            data = os.read(fd, state.st_size if whole else _BLOCK)
            if len(data) == _BLOCK < state.st_size:
                data += os.read(fd, state.st_size)  # a long key
            record = unpack(data, state.st_size)
            if whole and self._max_bytes is not None and self._clock.wall() - state.st_mtime > _USED_AGAIN:
                with suppress(OSError):
                    os.utime(fd, (self._clock.wall(),) * 2)
        finally:
            os.close(fd)
        return record, data[record.body_at :] if record is not None and whole else b""

    def _head(self, shard: _Shard, name: str) -> Record | None:
        """Read what an entry says; ``None`` for whatever is not one."""
        try:
            return self._read(shard, name, whole=False)[0]
        except OSError:
            return None

    def _old(self, shard: _Shard, place: _Place) -> tuple[Record | None, Record | None]:
        """Return what is there, and the same again if a reader would see it."""
        record = self._head(shard, place.name)
        if record is None or record.key != place.key or record.expires_at <= self._clock.wall():
            return record, None
        if record.body_name is not None:
            try:
                size = os.stat(record.body_name, dir_fd=shard.fd, follow_symlinks=False).st_size
            except OSError:
                size = -1
            if size != record.length:
                return record, None
        return record, record

    def _live(self, shard: _Shard, place: _Place) -> Record | None:
        return self._old(shard, place)[1]

    def _begin(self, shard: _Shard, place: _Place, record: Record) -> bytes:
        """Return the first bytes of a body; under the shard's lock."""
        if record.body_name is None:
            return self._read(shard, place.name, whole=True)[1]
        file = Descriptor(os.open(record.body_name, _READ, dir_fd=shard.fd))
        return os.pread(file.number, HEAD_BYTES, 0)

    # The bound ------------------------------------------------------------------------------------------------------

    def _check_size(self, length: int) -> None:
        if self._max_bytes is not None and length > _LOW * self._max_bytes:
            msg = f"{length} bytes are more than four fifths of max_bytes={self._max_bytes}"
            raise ValueTooLarge(msg)

    def _account(self, shard: _Shard, change: int, *, exactly: bool = False) -> None:
        """Note what a shard holds; under its lock."""
        if self._max_bytes is None:
            return
        with self._sizes(shard.root) as fd:
            at = 8 * shard.index
            used = 0 if exactly else int.from_bytes(os.pread(fd, 8, at), "little")
            os.pwrite(fd, max(0, used + change).to_bytes(8, "little"), at)

    @contextmanager
    def _sizes(self, root: int) -> Iterator[int]:
        fd = os.open("sizes", _SHARED, 0o600, dir_fd=root)
        try:
            if os.fstat(fd).st_size != 8 * _SHARDS:
                os.ftruncate(fd, 8 * _SHARDS)
                self._in_background(self.sweep)  # counts what was there before anybody counted
            yield fd
        finally:
            os.close(fd)

    def _used(self) -> int:
        with self._root(make=True) as root, self._sizes(root) as fd:
            return sum(array("Q", os.pread(fd, 8 * _SHARDS, 0)))

    def make_room(self, size: int = 0) -> None:
        """Keep the bound: behind the scenes when it comes near, at once when this write would pass it."""
        if self._max_bytes is None:
            return
        used = self._used()
        if used + size > self._max_bytes:
            self._evict(size)
        elif used + size > _HIGH * self._max_bytes:
            self._in_background(self._evict)

    def _evict(self, room: int = 0) -> None:
        """Remove the longest unused of samples of the entries, until a fifth is free and there is ``room``."""
        if self._max_bytes is None:
            return
        goal = min(int(_LOW * self._max_bytes), self._max_bytes - room)
        with self._root() as root, _locked(root, "sweep.lock"):
            for share in (_SHARE, 1.0):
                pool: list[tuple[float, str, str]] = []
                names = self.shards()
                random.shuffle(names)
                for index, name in enumerate(names, 1):
                    with suppress(FileNotFoundError):
                        pool += self._tidy(name)
                    if len(pool) < _POOL and index < len(names):
                        continue
                    pool.sort()
                    if self._evict_from(pool[: int(len(pool) * share) or 1], goal):
                        return
                    pool = []

    def _evict_from(self, victims: list[tuple[float, str, str]], goal: int) -> bool:
        for _, shard_name, name in victims:
            if self._used() <= goal:
                return True
            with self._shard(shard_name) as shard, _locked(shard.fd, "lock"):
                self._drop(shard, name, self._head(shard, name))
        return self._used() <= goal

    # Sweeping -------------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Remove what no reader can see, everywhere, and what exceeds the bound."""
        for name in self.shards():
            self.sweep_shard(name)
        self.make_room()

    def sweep_shard(self, name: str) -> None:
        """Remove what no reader can see from one shard."""
        with suppress(FileNotFoundError):
            self._tidy(name)

    def _tidy(self, shard_name: str) -> list[tuple[float, str, str]]:
        """Remove garbage from a shard, count it anew, and return its entries with the time of their last use."""
        now = self._clock.wall()
        entries: list[tuple[float, str, str]] = []
        bodies: set[str] = set()
        total = 0
        with self._shard(shard_name) as shard, _locked(shard.fd, "lock"):
            names = os.listdir(shard.fd)
            for name in names:
                if not _ENTRY_NAME.fullmatch(name):
                    continue
                record = self._head(shard, name)
                if record is None or record.expires_at <= now:
                    _remove(shard.fd, name)
                    continue
                if record.body_name is not None:
                    bodies.add(record.body_name)
                total += _size_on_disk(record)
                used_at = os.stat(name, dir_fd=shard.fd, follow_symlinks=False).st_mtime
                entries.append((used_at, shard_name, name))
            for name in names:
                # A body is renamed and referred to under this lock: one that nobody refers to is nobody's.
                if (_BODY_NAME.fullmatch(name) and name not in bodies) or (
                    _TEMPORARY_NAME.fullmatch(name) and _age(shard.fd, name, now) > _ABANDONED
                ):
                    _remove(shard.fd, name)
            self._account(shard, total, exactly=True)
        return entries

    def _tend(self) -> None:
        """After a write: now and then, look through one shard behind the scenes."""
        now = self._clock.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_PAUSE
        self._cursor = (self._cursor + 1) % _SHARDS
        self._in_background(lambda: self.sweep_shard(f"{self._cursor:02x}"))

    def _in_background(self, work: Callable[[], object]) -> None:
        """Run ``work`` in a thread that ends with it, unless one is running already; it may die with the process."""

        def run() -> None:
            with suppress(OSError):  # the next one may have more luck
                work()

        with self._mutex:
            if self._sweeper is None or not self._sweeper.is_alive():
                self._sweeper = threading.Thread(target=run, name="acache-sweep", daemon=True)
                self._sweeper.start()

    def wait(self) -> None:
        """Wait for what runs in the background."""
        with self._mutex:
            sweeper = self._sweeper
        if sweeper is not None:
            sweeper.join()

    # Directories ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _root(self, *, make: bool = False) -> Iterator[int]:
        try:
            fd = os.open(self.path, _DIRECTORY)
        except FileNotFoundError:
            if not make:
                raise
            _make_directories(self.path)
            fd = os.open(self.path, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def _shard(self, name: str, *, make: bool = False) -> Iterator[_Shard]:
        with self._root(make=make) as root:
            try:
                fd = os.open(name, _DIRECTORY, dir_fd=root)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=root)
                    os.chmod(name, 0o700, dir_fd=root)
                fd = os.open(name, _DIRECTORY, dir_fd=root)
            try:
                state = os.fstat(fd)
                if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise PermissionError(errno.EPERM, "others can write to it", os.path.join(self.path, name))
                yield _Shard(root, fd, int(name, 16))
            finally:
                os.close(fd)


def _make_directories(path: str) -> None:
    """Make a directory and its missing parents, for this user only, whatever the umask."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_directories(parent)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)


@contextmanager
def _locked(directory: int, name: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies."""
    fd = os.open(name, _SHARED, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor too
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]  # one call takes 2 GiB at most


def _chunks(file: Descriptor, at: int = 0) -> Iterator[bytes]:
    while chunk := os.pread(file.number, CHUNK, at):
        at += len(chunk)
        yield chunk


def _remove(directory: int, name: str) -> None:
    with suppress(OSError):  # swept later
        os.unlink(name, dir_fd=directory)


def _age(directory: int, name: str, now: float) -> float:
    try:
        return now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
    except OSError:
        return 0.0


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _on_disk(size: int) -> int:
    """Round up as file systems do: a thousand small entries are a thousand blocks."""
    return -(-size // _BLOCK) * _BLOCK


def _size_on_disk(record: Record) -> int:
    return _on_disk(record.file_size) + (_on_disk(record.length) if record.body_name else 0)
