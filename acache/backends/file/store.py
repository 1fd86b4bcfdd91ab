"""The directory: where entries lie, and how one replaces another.

::

    directory/
        sizes            what each shard holds, 256 numbers; only with a bound
        sweep.lock       held by whoever makes room; only with a bound
        3f/              a shard: the first two hex digits of the key's SHA-256
            lock         held while an entry of the shard is changed
            9c1e...      an entry: the other 62 digits; see `record`
            <id>.body    the body of an entry, where it is large
            <id>.tmp     not committed yet, or abandoned

Readers take no lock.  Writers prepare temporary files, then, under the shard's lock, look at what is there, and rename:
first the body, then the entry, whose rename is the commit.  A body's name is drawn anew for each write, so an entry can
only ever be read with the body it was written with, and a killed writer leaves nothing but files that nobody refers to.

These functions raise ``OSError`` as it comes; what it means is said by `FileBackend`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from ...clock import FOREVER, Clock
from ...entry import HEAD_BYTES
from .disk import READ, Descriptor, Shard, Temporary, locked, open_root, open_shard, remove
from .record import INLINE, LARGEST_RECORD, Record, pack, unpack
from .room import Room

__all__ = ["Body", "Store"]

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


class Place:
    """Where a key's entry lies."""

    __slots__ = ("key", "name", "shard")

    def __init__(self, key: str) -> None:
        self.key: Final = _encode(key)
        digest = hashlib.sha256(self.key).hexdigest()
        self.shard: Final = digest[:2]
        self.name: Final = digest[2:]


class Store:
    """One directory, and its entries."""

    def __init__(self, path: str, *, max_bytes: int | None, fsync: bool, clock: Clock) -> None:
        self.path: Final = path
        self.room: Final = Room(path, max_bytes, clock, tidy=self.tidy, evict=self._evict)
        self._clock: Final = clock
        self._fsync: Final = fsync

    # Reading --------------------------------------------------------------------------------------------------------

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """Return the body and its digest."""
        body = self.find(key)
        if body is None:
            return None
        data = b"".join(body.chunks())
        if body.file is not None and hashlib.sha256(data).digest() != body.record.digest:
            self._discard(key, body.record)
            return None
        return data, body.record.digest

    def open_body(self, key: str) -> Body | None:
        """Return a body that has been read to the end once, and agrees with its digest."""
        body = self.find(key)
        if body is not None and body.file is not None:
            digest = hashlib.sha256()
            for chunk in body.chunks():
                digest.update(chunk)
            if digest.digest() != body.record.digest:
                self._discard(key, body.record)
                return None
        return body

    def find(self, key: str) -> Body | None:
        """Return the live entry, and note that it was used."""
        place = Place(key)
        with open_shard(self.path, place.shard) as shard:
            return self._find(shard, place, note=self.room.bounded)

    def shards(self) -> list[str]:
        """List the shards that there are."""
        try:
            with open_root(self.path) as root:
                return sorted(filter(_SHARD_NAME.fullmatch, os.listdir(root)))  # noqa: PTH208 - a descriptor
        except FileNotFoundError:
            return []

    def names(self, shard_name: str) -> list[str]:
        """List the entries of a shard, as names."""
        with open_shard(self.path, shard_name) as shard:
            return list(filter(_ENTRY_NAME.fullmatch, os.listdir(shard.fd)))  # noqa: PTH208 - a descriptor

    def keys(self, shard_name: str, names: list[str], prefix: str) -> list[str]:
        """Return the keys of those of the entries that are alive and begin with ``prefix``."""
        begin, now = _encode(prefix), self._clock.wall()
        with open_shard(self.path, shard_name) as shard:
            records = [record for name in names if (record := self._peek(shard, name)) is not None]
        return [
            record.key.decode("utf-8", "surrogatepass")
            for record in records
            if record.expires_at > now and record.key.startswith(begin)
        ]

    # Writing --------------------------------------------------------------------------------------------------------

    def write(self, key: str, data: bytes, ttl: float | None, condition: Condition | None = None) -> bool:
        """Replace the entry; tell whether the condition allowed it."""
        return self._write(key, data, ttl, condition)[0]

    def swap(self, key: str, data: bytes, ttl: float | None) -> bytes | None:
        """Replace the entry, and return how the one before began."""
        before = self._write(key, data, ttl, lambda _: True)[1]
        return None if before is None else before.first(HEAD_BYTES)

    def incr(self, key: str, ttl: float | None, add: Callable[[bytes | None], int]) -> int:
        """Replace a counter by what ``add`` makes of it."""
        place = Place(key)
        with open_shard(self.path, place.shard, make=True) as shard, locked(shard.fd, "lock"):
            before = self._find(shard, place)
            total = add(None if before is None else before.first(HEAD_BYTES))
            data = b"%d" % total
            expires_at = self._expiry(ttl) if before is None else before.record.expires_at
            record = Record(place.key, expires_at, len(data), hashlib.sha256(data).digest())
            self._commit(shard, place, record, self._prepare(shard, record, data))
        self.room.tend()
        return total

    def touch(self, key: str, ttl: float | None) -> bool:
        """Give the live entry another deadline; a body in a file of its own stays where it is."""
        place = Place(key)
        with suppress(FileNotFoundError), open_shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            body = self._find(shard, place)
            if body is not None:
                record = replace(body.record, expires_at=self._expiry(ttl))
                self._commit(shard, place, record, self._prepare(shard, record, body.data))
                return True
        return False

    def delete(self, key: str) -> bool:
        """Remove the entry; tell whether it was alive."""
        place = Place(key)
        with suppress(FileNotFoundError), open_shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            alive = self._find(shard, place) is not None
            self._drop(shard, place.name)
            return alive
        return False

    def clear(self, shard_name: str, names: list[str], prefix: str) -> None:
        """Remove those of the entries whose keys begin with ``prefix``."""
        begin = _encode(prefix)
        with open_shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            for name in names:
                record = self._peek(shard, name)
                if record is not None and record.key.startswith(begin):
                    self._drop(shard, name)

    def begin_body(self, key: str) -> Temporary:
        """Open a file for a body that comes in chunks."""
        with open_shard(self.path, Place(key).shard, make=True) as shard:
            return Temporary(shard)

    def append(self, body: Temporary, data: bytes) -> None:
        """Write a chunk."""
        self.room.check(body.length + len(data))
        body.write(data)

    def commit_body(self, key: str, body: Temporary, ttl: float | None) -> None:
        """Make what was written the entry."""
        place = Place(key)
        digest = body.finish(fsync=self._fsync)
        record = Record(place.key, self._expiry(ttl), body.length, digest, os.urandom(8))
        with open_shard(self.path, place.shard) as shard:
            head = self._prepare(shard, record)
            with locked(shard.fd, "lock"):
                self._commit(shard, place, record, head, body)
        self.room.tend()

    def _write(self, key: str, data: bytes, ttl: float | None, condition: Condition | None) -> tuple[bool, Body | None]:
        self.room.check(len(data))
        place = Place(key)
        apart = len(data) > INLINE
        digest = hashlib.sha256(data).digest()
        record = Record(place.key, self._expiry(ttl), len(data), digest, os.urandom(8) if apart else bytes(8))
        with open_shard(self.path, place.shard, make=True) as shard:
            prepared: list[Temporary] = []
            try:
                if apart:
                    prepared.append(self._prepare(shard, None, data))
                head = self._prepare(shard, record, b"" if apart else data)
                prepared.append(head)
                with locked(shard.fd, "lock"):
                    before = None if condition is None else self._find(shard, place)
                    if condition is not None and not condition(None if before is None else before.record):
                        return False, before
                    self._commit(shard, place, record, head, prepared[0] if apart else None)
                    prepared.clear()
            finally:
                for file in prepared:
                    file.discard()
        self.room.tend()
        return True, before

    def _prepare(self, shard: Shard, record: Record | None, data: bytes = b"") -> Temporary:
        """Write a temporary file."""
        file = Temporary(shard)
        try:
            if record is not None:
                file.write(pack(record))
            file.write(data)
            file.finish(fsync=self._fsync)
        except BaseException:
            file.discard()
            raise
        return file

    def _commit(
        self, shard: Shard, place: Place, record: Record, head: Temporary, body: Temporary | None = None
    ) -> None:
        """Rename the body, then the entry; under the shard's lock."""
        old = self._peek(shard, place.name)
        try:
            if body is not None and record.body_name is not None:
                body.rename(record.body_name)
            head.rename(place.name)
        except BaseException:
            head.discard()
            raise
        if self._fsync:
            os.fsync(shard.fd)
            os.fsync(shard.root)  # the shard may be new
        if old is not None and old.body_name is not None and old.body_name != record.body_name:
            remove(shard.fd, old.body_name)
        self.room.account(shard, record.size_on_disk - (0 if old is None else old.size_on_disk))

    def _drop(self, shard: Shard, name: str) -> None:
        """Remove an entry; under the shard's lock."""
        old = self._peek(shard, name)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=shard.fd)
        if old is not None:
            if old.body_name is not None:
                remove(shard.fd, old.body_name)
            self.room.account(shard, -old.size_on_disk)

    def _expiry(self, ttl: float | None) -> float:
        return FOREVER if ttl is None else self._clock.wall() + ttl

    # One entry ------------------------------------------------------------------------------------------------------

    def _find(self, shard: Shard, place: Place, *, note: bool = False) -> Body | None:
        """Return the live entry under a key; ``None`` for whatever is not one."""
        for _ in range(_ATTEMPTS):
            try:
                record, data = self._read(shard, place.name, whole=True, note=note)
                if record is None or record.key != place.key or record.expires_at <= self._clock.wall():
                    return None
                if record.body_name is None:
                    data = data[record.body_at :]
                    return Body(record, data, None) if hashlib.sha256(data).digest() == record.digest else None
            except OSError:
                return None
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

    def _peek(self, shard: Shard, name: str) -> Record | None:
        """Read what an entry says, alive or not; ``None`` for whatever is not one."""
        try:
            return self._read(shard, name)[0]
        except OSError:
            return None

    def _read(self, shard: Shard, name: str, *, whole: bool = False, note: bool = False) -> tuple[Record | None, bytes]:
        """Read an entry's file: what it says, and, if ``whole``, all of it."""
        fd = os.open(name, READ, dir_fd=shard.fd)
        try:
            state = os.fstat(fd)
            if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST_RECORD:
                return None, b""
            if note and (now := self._clock.wall()) - state.st_mtime > _USED_AGAIN:
                with suppress(OSError):
                    os.utime(fd, (now, now))
            data = os.pread(fd, state.st_size if whole else _PEEK, 0)
            record = unpack(data, state.st_size)
            if record is None and len(data) < state.st_size:
                record = unpack(os.pread(fd, state.st_size, 0), state.st_size)  # a long key
            return record, data
        finally:
            os.close(fd)

    def _discard(self, key: str, record: Record) -> None:
        """Remove an entry whose body is not what it was, so that it stands in nobody's way."""
        place = Place(key)
        with suppress(OSError), open_shard(self.path, place.shard) as shard, locked(shard.fd, "lock"):
            if self._peek(shard, place.name) == record:
                self._drop(shard, place.name)

    # Tidying up -----------------------------------------------------------------------------------------------------

    def tidy(self, shard_name: str) -> list[tuple[float, str, str]]:
        """Remove from a shard what no reader can see, count it anew, and return its entries with their last use."""
        now = self._clock.wall()
        entries: list[tuple[float, str, str]] = []
        bodies: set[str] = set()
        total = 0
        certain = True  # that what cannot be read is not there: without a free descriptor, nothing can be read
        with suppress(FileNotFoundError), open_shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            names = os.listdir(shard.fd)  # noqa: PTH208 - a descriptor
            for name in filter(_ENTRY_NAME.fullmatch, names):
                try:
                    record = self._read(shard, name)[0]
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
        with suppress(FileNotFoundError), open_shard(self.path, shard_name) as shard, locked(shard.fd, "lock"):
            if _used_at(shard, name) == used_at:
                self._drop(shard, name)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _used_at(shard: Shard, name: str) -> float:
    try:
        return os.stat(name, dir_fd=shard.fd, follow_symlinks=False).st_mtime
    except OSError:
        return FOREVER
