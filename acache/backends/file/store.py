"""The directory: where entries lie, how one is read, and how one replaces another.

::

    directory/
        sizes            what each shard holds, 256 numbers; only with a bound
        sweep.lock       held by whoever makes room; only with a bound
        3f/              a shard: the first two hex digits of the key's SHA-256
            lock         held while an entry of the shard is changed
            9c1e...      an entry: the other 62 digits; see `record`
            <id>.body    the body of an entry, where it is large
            <id>.tmp     not committed yet, or abandoned

Readers take no lock.  Writers write a large body to a temporary file, then, under the shard's lock, look at what is
there, and rename: first the body, then the entry, whose rename is the commit.  A body's name is drawn anew for each
write, so an entry can only ever be read with the body it was written with, and a killed writer leaves nothing but files
that nobody refers to.

These functions raise ``OSError`` as it comes, ``BlockingIOError`` where a lock is held; what it means is said by
`FileBackend`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from ...clock import FOREVER, Clock
from ...entry import HEAD_BYTES
from .disk import READ, Descriptor, Shard, Temporary, list_directory, locked, open_root, remove, sync_directory
from .record import INLINE, LARGEST_RECORD, Record, pack, unpack
from .room import Room

__all__ = ["Body", "Condition", "Place", "Store"]

Condition: TypeAlias = Callable[[Record | None], bool]
"""Asked under the shard's lock, given the live entry, whether the write may happen."""

_PEEK: Final = 4096
_SHARD_NAME: Final = re.compile(r"[0-9a-f]{2}")
_ENTRY_NAME: Final = re.compile(r"[0-9a-f]{62}")
_BODY_NAME: Final = re.compile(r"[0-9a-f]{16}\.body")
_TEMPORARY_NAME: Final = re.compile(r"[0-9a-f]{16}\.tmp")
_ABANDONED: Final = 3600.0
"""Seconds without a write after which a temporary file is nobody's."""
_USED_AGAIN: Final = 60.0
"""Seconds for which a second use of an entry is not noted: a note is a write to the disk."""
_ATTEMPTS: Final = 5
_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
"""Linux's flag for a read that fails where it would wait for the disk."""
_WARM_SIZE: Final = 16 * 1024
"""The longest file read on the loop: copying and hashing more would take longer than asking a worker."""
_WARM_NAMES: Final = 16_384


class Place:
    """Where a key's entry lies."""

    __slots__ = ("key", "name", "shard")

    def __init__(self, key: bytes) -> None:
        self.key: Final = key
        digest = hashlib.sha256(key).hexdigest()
        self.shard: Final = digest[:2]
        self.name: Final = digest[2:]


@dataclass(frozen=True, slots=True)
class Body:
    """A live entry: with its body, if that is a small one, else with the open file that holds it."""

    record: Record
    data: bytes
    file: Descriptor | None

    def first(self, length: int) -> bytes:
        """Return the first bytes of the body."""
        return self.data if self.file is None else self.file.read(length, 0)

    def chunks(self) -> Iterator[bytes]:
        """Read the body."""
        return iter((self.data,)) if self.file is None else self.file.chunks()


class Store:
    """One directory, and its entries."""

    def __init__(self, path: str, *, max_bytes: int | None, fsync: bool, clock: Clock) -> None:
        self.path: Final = path
        self.room: Final = Room(path, max_bytes, clock, tidy=self.tidy, evict=self._evict)
        self._clock: Final = clock
        self._fsync: Final = fsync
        self._nowait = _NOWAIT
        self._warm: Final[set[str]] = set()

    # Reading --------------------------------------------------------------------------------------------------------

    def get_warm(self, place: Place) -> tuple[bytes, bytes] | None:
        """Return the body and its digest if that takes no waiting for the disk; ``None``: ask a worker.

        A read of the page cache can be told not to wait, but opening a file cannot.  So it is tried only for names that
        a worker has lately read in just this way: the kernel knows where they lie, and the file system has the flag.
        """
        return self._get_now(place) if place.name in self._warm else None

    def _get_now(self, place: Place) -> tuple[bytes, bytes] | None:
        if self._nowait is None:
            return None
        buffer = bytearray(_WARM_SIZE)
        try:
            with Shard(self.path, place.shard) as shard:
                fd = os.open(place.name, READ, dir_fd=shard.fd)
                try:
                    length = os.preadv(fd, [buffer], 0, self._nowait)
                    if self.room.bounded and self._clock.wall() - os.fstat(fd).st_mtime > _USED_AGAIN:
                        return None  # to note the use is to write
                finally:
                    os.close(fd)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._nowait = None
            return None
        data = bytes(memoryview(buffer)[:length])
        record = unpack(data, length)
        if record is None or record.key != place.key or record.expires_at <= self._clock.wall() or record.body_name:
            return None
        data = data[record.body_at :]
        return (data, record.digest) if hashlib.sha256(data).digest() == record.digest else None

    def get(self, place: Place) -> tuple[bytes, bytes] | None:
        """Return the body and its digest."""
        body = self.find(place)
        if body is None:
            return None
        data = b"".join(body.chunks())
        if body.file is not None and hashlib.sha256(data).digest() != body.record.digest:
            self._discard(place, body.record)
            return None
        if place.name not in self._warm and body.record.file_size < _WARM_SIZE and self._get_now(place) is not None:
            if len(self._warm) >= _WARM_NAMES:
                self._warm.clear()
            self._warm.add(place.name)
        return data, body.record.digest

    def open_body(self, place: Place) -> Body | None:
        """Return a body that has been read to the end once, and agrees with its digest."""
        body = self.find(place)
        if body is not None and body.file is not None:
            digest = hashlib.sha256()
            for chunk in body.chunks():
                digest.update(chunk)
            if digest.digest() != body.record.digest:
                self._discard(place, body.record)
                return None
        return body

    def find(self, place: Place) -> Body | None:
        """Return the live entry, and note that it was used."""
        with Shard(self.path, place.shard) as shard:
            body = self._find(shard, place)
            if body is not None and self.room.bounded:
                now = self._clock.wall()
                with suppress(OSError):
                    if now - _used_at(shard, place.name) > _USED_AGAIN:
                        os.utime(place.name, (now, now), dir_fd=shard.fd, follow_symlinks=False)
            return body

    def _find(self, shard: Shard, place: Place) -> Body | None:
        """Return the live entry under a key; ``None`` for whatever is not one."""
        for _ in range(_ATTEMPTS):
            try:
                record, data = _read(shard, place.name, LARGEST_RECORD)
            except OSError:
                return None
            if record is None or record.key != place.key or record.expires_at <= self._clock.wall():
                return None
            if record.body_name is None:
                data = data[record.body_at :]
                return Body(record, data, None) if hashlib.sha256(data).digest() == record.digest else None
            try:
                file = Descriptor(os.open(record.body_name, READ, dir_fd=shard.fd))
            except FileNotFoundError:
                continue  # replaced since the record was read: read the new one
            except OSError:
                return None
            state = os.fstat(file.number)
            good = stat.S_ISREG(state.st_mode) and state.st_size == record.length
            return Body(record, b"", file) if good else None
        return None

    # Writing --------------------------------------------------------------------------------------------------------

    def write(
        self, place: Place, data: bytes, ttl: float | None, condition: Condition | None = None
    ) -> tuple[bool, Body | None]:
        """Replace the entry if the condition allows it; return whether it did, and what the condition saw."""
        if len(data) > INLINE:
            body = self.begin(place)
            try:
                body.append(data)
                return self.commit(place, body, ttl, condition)
            finally:
                body.discard()
        record = Record(place.key, self._expiry(ttl), len(data), hashlib.sha256(data).digest())
        return self._replace(place, record, data, None, condition)

    def swap(self, place: Place, data: bytes, ttl: float | None) -> bytes | None:
        """Replace the entry, and return how the one before began."""
        before = self.write(place, data, ttl, lambda _: True)[1]
        return None if before is None else before.first(HEAD_BYTES)

    def begin(self, place: Place) -> Temporary:
        """Open a file for a large body."""
        with Shard(self.path, place.shard, make=True) as shard:
            return Temporary(shard)

    def commit(
        self, place: Place, body: Temporary, ttl: float | None, condition: Condition | None = None
    ) -> tuple[bool, Body | None]:
        """Make the entry of what was appended to ``body``; otherwise like `write`."""
        if self._fsync:
            body.sync()
        record = Record(place.key, self._expiry(ttl), body.length, body.digest.digest(), os.urandom(8))
        return self._replace(place, record, b"", body, condition)

    def _replace(
        self, place: Place, record: Record, data: bytes, body: Temporary | None, condition: Condition | None
    ) -> tuple[bool, Body | None]:
        self.room.make(record.size_on_disk)
        before: Body | None = None
        with Shard(self.path, place.shard, make=True) as shard, locked(shard.fd, "lock"):
            if condition is not None:
                before = self._find(shard, place)
                if not condition(None if before is None else before.record):
                    return False, before
            self._put(shard, place, record, data, body)
        self.room.tend()
        return True, before

    def _put(self, shard: Shard, place: Place, record: Record, data: bytes, body: Temporary | None = None) -> None:
        """Rename the body, then the entry; under the shard's lock."""
        head = Temporary(shard)
        try:
            head.write(pack(record) + data)
            if self._fsync:
                head.sync()
            old = _peek(shard, place.name)
            # Counted first: what fails after the commit would be told to the caller as a write that was not done.
            self.room.account(shard, record.size_on_disk - (0 if old is None else old.size_on_disk))
            if body is not None and record.body_name is not None:
                body.rename(shard, record.body_name)
            head.rename(shard, place.name)
        except BaseException:
            head.discard()
            if body is not None and record.body_name is not None:
                remove(shard.fd, record.body_name)
            raise
        if self._fsync:
            sync_directory(shard.fd)
            sync_directory(shard.root)  # the shard may be new
        if old is not None and old.body_name is not None and old.body_name != record.body_name:
            remove(shard.fd, old.body_name)

    def incr(self, place: Place, ttl: float | None, add: Callable[[bytes | None], int]) -> int:
        """Replace a counter by what ``add`` makes of it."""
        self.room.make(0)
        with Shard(self.path, place.shard, make=True) as shard, locked(shard.fd, "lock"):
            before = self._find(shard, place)
            total = add(None if before is None else before.first(HEAD_BYTES))
            data = b"%d" % total
            expires_at = self._expiry(ttl) if before is None else before.record.expires_at
            self._put(shard, place, Record(place.key, expires_at, len(data), hashlib.sha256(data).digest()), data)
        self.room.tend()
        return total

    def touch(self, place: Place, ttl: float | None) -> bool:
        """Give the live entry another deadline; a body in a file of its own stays where it is."""
        with suppress(FileNotFoundError), Shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            body = self._find(shard, place)
            if body is not None:
                self._put(shard, place, body.record._replace(expires_at=self._expiry(ttl)), body.data)
                return True
        return False

    def delete(self, place: Place) -> bool:
        """Remove the entry; tell whether it was alive."""
        with suppress(FileNotFoundError), Shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            alive = self._find(shard, place) is not None
            self._drop(shard, place.name)
            return alive
        return False

    def _drop(self, shard: Shard, name: str) -> None:
        """Remove an entry; under the shard's lock."""
        old = _peek(shard, name)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=shard.fd)
        if old is not None:
            if old.body_name is not None:
                remove(shard.fd, old.body_name)
            self.room.account(shard, -old.size_on_disk)

    def _discard(self, place: Place, record: Record) -> None:
        """Remove an entry whose body is not what it was, so that it stands in nobody's way."""
        with suppress(OSError), Shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            if _peek(shard, place.name) == record:
                self._drop(shard, place.name)

    def _expiry(self, ttl: float | None) -> float:
        return FOREVER if ttl is None else self._clock.wall() + ttl

    # Many entries ---------------------------------------------------------------------------------------------------

    def shards(self) -> list[str]:
        """List the shards that there are."""
        try:
            root = open_root(self.path)
        except FileNotFoundError:
            return []
        try:
            return sorted(filter(_SHARD_NAME.fullmatch, list_directory(root)))
        finally:
            os.close(root)

    def names(self, shard_name: str) -> list[str]:
        """List the entries of a shard, as names."""
        with Shard(self.path, shard_name) as shard:
            return list(filter(_ENTRY_NAME.fullmatch, list_directory(shard.fd)))

    def keys(self, shard_name: str, names: list[str], prefix: bytes) -> list[str]:
        """Return the keys of those of the entries that are alive and begin with ``prefix``."""
        found: list[str] = []
        now = self._clock.wall()
        with Shard(self.path, shard_name) as shard:
            for name in names:
                record = _peek(shard, name)
                if record is not None and record.expires_at > now and record.key.startswith(prefix):
                    with suppress(UnicodeDecodeError):  # nobody can ask for it
                        found.append(record.key.decode())
        return found

    def clear(self, shard_name: str, names: list[str], prefix: bytes) -> None:
        """Remove those of the entries whose keys begin with ``prefix``."""
        with Shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            for name in names:
                record = _peek(shard, name)
                if record is not None and record.key.startswith(prefix):
                    self._drop(shard, name)

    def tidy(self, shard_name: str) -> list[tuple[float, str, str]]:
        """Remove from a shard what no reader can see, count it anew, and return its entries with their last use."""
        now = self._clock.wall()
        entries: list[tuple[float, str, str]] = []
        bodies: set[str] = set()
        total = 0
        certain = True  # that what cannot be read is not there: without a free descriptor, nothing can be read
        with suppress(FileNotFoundError), Shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            names = list_directory(shard.fd)
            for name in filter(_ENTRY_NAME.fullmatch, names):
                try:
                    record = _read(shard, name, _PEEK)[0]
                except OSError as error:
                    if error.errno != errno.ELOOP:  # a link is nothing of ours
                        certain = False
                        continue
                    record = None
                if record is None or record.expires_at <= now:
                    remove(shard.fd, name)
                    continue
                if record.body_name is not None:
                    bodies.add(record.body_name)
                total += record.size_on_disk
                entries.append((_used_at(shard, name), shard_name, name))
            for name in names:
                # A body is renamed and referred to under this lock: one that nobody refers to is nobody's.
                orphan = certain and _BODY_NAME.fullmatch(name) and name not in bodies
                if orphan or (_TEMPORARY_NAME.fullmatch(name) and now - _used_at(shard, name) > _ABANDONED):
                    remove(shard.fd, name)
            self.room.account(shard, total, exactly=True)
        return entries

    def _evict(self, used_at: float, shard_name: str, name: str) -> None:
        with suppress(FileNotFoundError), Shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            if _used_at(shard, name) == used_at:
                self._drop(shard, name)


def _read(shard: Shard, name: str, most: int) -> tuple[Record | None, bytes]:
    """Read an entry's file: what it says, and its first bytes, ``most`` of them at the most."""
    fd = os.open(name, READ, dir_fd=shard.fd)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST_RECORD:
            return None, b""
        data = os.pread(fd, min(state.st_size, most), 0)
        record = unpack(data, state.st_size)
        if record is None and len(data) < state.st_size:
            record = unpack(os.pread(fd, state.st_size, 0), state.st_size)  # a long key
        return record, data
    finally:
        os.close(fd)


def _peek(shard: Shard, name: str) -> Record | None:
    """Read what an entry says, alive or not; ``None`` for whatever is not one."""
    try:
        return _read(shard, name, _PEEK)[0]
    except OSError:
        return None


def _used_at(shard: Shard, name: str) -> float:
    try:
        return os.stat(name, dir_fd=shard.fd, follow_symlinks=False).st_mtime
    except OSError:
        return FOREVER
