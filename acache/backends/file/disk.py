"""The disk, as safely as it can be had: descriptors instead of paths, no link followed, nothing for others.

Every way leads through descriptors opened without following links, and below a shard that belongs to this user and that
nobody else can write to: whoever may write to the directory itself can make entries vanish, but not plant one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

try:
    import fcntl
except ImportError as error:  # pragma: no cover - Windows
    msg = "FileBackend needs a POSIX system: it locks with flock and opens files relative to directories"
    raise ImportError(msg) from error

__all__ = [
    "CHUNK",
    "READ",
    "Descriptor",
    "Shard",
    "Temporary",
    "list_directory",
    "locked",
    "open_root",
    "open_shared",
    "remove",
    "sync_directory",
]

CHUNK: Final = 256 * 1024
"""Bytes of a body held in memory at a time."""
_PATIENCE: Final = 0.002
"""Seconds in a worker for a lock; then the caller waits outside."""
_PAUSE: Final = 0.0002

_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Directories are only gone through, most of the time: Linux opens them cheaper for that.
_SEARCH: Final = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY
# Not blocking: a FIFO somebody put there must not hold a thread until its other end is opened.
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHARED: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Descriptor:
    """An open file, closed with its last reference: a cancelled caller cannot close it under a worker's hands."""

    def __init__(self, number: int) -> None:
        self.number: Final = number

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.number)

    def read(self, length: int, at: int) -> bytes:
        """Read some; a bound method, so that whoever runs it holds the file open."""
        return os.pread(self.number, length, at)

    def chunks(self, at: int = 0) -> Iterator[bytes]:
        """Read to the end."""
        while chunk := os.pread(self.number, CHUNK, at):
            at += len(chunk)
            yield chunk


class Shard:
    """Open descriptors of the directory and of one shard in it, which may be made where they are missing.

    Raises:
        OSError: there is none, it is a link, another user owns it, or others can write to it.
    """

    __slots__ = ("fd", "index", "root")

    def __init__(self, path: str, name: str, *, make: bool = False) -> None:
        self.index: Final = int(name, 16)
        self.root: Final = open_root(path, make=make)
        try:
            try:
                self.fd = os.open(name, _SEARCH, dir_fd=self.root)
            except FileNotFoundError:
                if not make:
                    raise
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=self.root)
                    os.chmod(name, 0o700, dir_fd=self.root)
                self.fd = os.open(name, _SEARCH, dir_fd=self.root)
        except BaseException:
            os.close(self.root)
            raise
        state = os.fstat(self.fd)
        if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            self.__exit__()
            raise PermissionError(errno.EPERM, "others can write to it", f"{path}/{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self.root)


class Temporary:
    """A file without a name of its own yet; unless it is renamed, it goes with its last reference."""

    def __init__(self, shard: Shard) -> None:
        self.name: Final = f"{os.urandom(8).hex()}.tmp"
        self.digest: Final = hashlib.sha256()
        self.length = 0
        self._ours = False
        # Descriptors of its own: a streamed one outlives the operation that opened the shard.
        self._shard: Final = Descriptor(os.dup(shard.fd))
        self._file: Final = Descriptor(os.open(self.name, _CREATE, 0o600, dir_fd=shard.fd))
        self._ours = True
        os.fchmod(self._file.number, 0o600)  # whatever the umask

    def __del__(self) -> None:
        self.discard()  # a worker made it for a caller who was cancelled meanwhile

    def write(self, data: bytes) -> None:
        """Append."""
        self.length += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file.number, view) :]  # one call takes 2 GiB at most

    def append(self, data: bytes) -> None:
        """Append, and count it in the digest."""
        self.digest.update(data)
        self.write(data)

    def sync(self) -> None:
        """Wait until it would survive a power failure."""
        os.fsync(self._file.number)

    def rename(self, shard: Shard, name: str) -> None:
        """Put it in the place of whatever has this name."""
        os.replace(self.name, name, src_dir_fd=self._shard.number, dst_dir_fd=shard.fd)
        self._ours = False

    def discard(self) -> None:
        """Remove it, unless it was renamed."""
        if self._ours:
            self._ours = False
            remove(self._shard.number, self.name)


def open_root(path: str, *, make: bool = False) -> int:
    """Open the directory; ``make`` it with its missing parents."""
    try:
        return os.open(path, _SEARCH)
    except FileNotFoundError:
        if not make:
            raise
    _make_directories(Path(path))
    return os.open(path, _SEARCH)


def list_directory(directory: int) -> list[str]:
    """Return the names in it."""
    with _opened(directory) as fd:
        return os.listdir(fd)  # noqa: PTH208 - a descriptor


def sync_directory(directory: int) -> None:
    """Wait until what it holds would survive a power failure."""
    with _opened(directory) as fd:
        os.fsync(fd)


@contextmanager
def _opened(directory: int) -> Iterator[int]:
    fd = os.open(".", os.O_RDONLY | _DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_shared(directory: int, name: str) -> Iterator[int]:
    """Open a file that all processes write in place; make it where it is missing."""
    try:
        fd = os.open(name, _SHARED, dir_fd=directory)
    except FileNotFoundError:
        fd = os.open(name, _SHARED | os.O_CREAT, 0o600, dir_fd=directory)
        os.fchmod(fd, 0o600)  # whatever the umask
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def locked(directory: int, name: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies.

    Raises:
        BlockingIOError: it is held for longer than a write takes.  Whoever holds it may be stopped: a worker that
            waited for it would be one less for the entries that can be had.
    """
    with open_shared(directory, name) as fd:
        give_up_at = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(random.uniform(0.1, 1.0) * _PAUSE)  # noqa: S311 - so that two do not meet again and again
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor too


def remove(directory: int, name: str) -> None:
    """Remove a file that nobody refers to."""
    with suppress(OSError):  # swept later
        os.unlink(name, dir_fd=directory)


def _make_directories(path: Path) -> None:
    """Make a directory and its missing parents, for this user only, whatever the umask."""
    if not path.parent.is_dir():
        _make_directories(path.parent)
    with suppress(FileExistsError):
        path.mkdir(0o700)
        path.chmod(0o700)
