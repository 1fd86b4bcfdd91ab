"""The disk, as safely as it can be had: descriptors instead of paths, no link followed, nothing for others.

Every way leads through descriptors opened without following links, and below a shard that belongs to this user and that
nobody else can write to: whoever may write to the directory itself can make entries vanish, but not plant one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

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
    "locked",
    "open_root",
    "open_shard",
    "open_shared",
    "remove",
]

CHUNK: Final = 256 * 1024
"""Bytes of a body held in memory at a time."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """Open descriptors of the directory and of one shard in it."""

    __slots__ = ("fd", "index", "root")

    def __init__(self, root: int, fd: int, index: int) -> None:
        self.root: Final = root
        self.fd: Final = fd
        self.index: Final = index


class Temporary:
    """A file without a name of its own yet; whoever does not rename it discards it."""

    def __init__(self, shard: Shard) -> None:
        self.name: Final = f"{os.urandom(8).hex()}.tmp"
        # Descriptors of its own: a streamed one outlives the operation that opened the shard.
        self._shard: Final = Descriptor(os.dup(shard.fd))
        self._file: Final = Descriptor(os.open(self.name, _CREATE, 0o600, dir_fd=shard.fd))
        self._digest: Final = hashlib.sha256()
        self.length = 0
        os.fchmod(self._file.number, 0o600)  # whatever the umask

    def write(self, data: bytes) -> None:
        """Append."""
        self._digest.update(data)
        self.length += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._file.number, view) :]  # one call takes 2 GiB at most

    def finish(self, *, fsync: bool) -> bytes:
        """Return the digest of it all."""
        if fsync:
            os.fsync(self._file.number)
        return self._digest.digest()

    def rename(self, name: str) -> None:
        """Put it in the place of whatever has this name."""
        os.replace(self.name, name, src_dir_fd=self._shard.number, dst_dir_fd=self._shard.number)

    def discard(self) -> None:
        """Remove it, unless it was renamed."""
        remove(self._shard.number, self.name)


@contextmanager
def open_root(path: str, *, make: bool = False) -> Iterator[int]:
    """Open the directory; ``make`` it with its missing parents."""
    try:
        fd = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        if not make:
            raise
        _make_directories(Path(path))
        fd = os.open(path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_shard(path: str, name: str, *, make: bool = False) -> Iterator[Shard]:
    """Open a shard; ``make`` it where it is missing."""
    with open_root(path, make=make) as root:
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
                raise PermissionError(errno.EPERM, "others can write to it", f"{path}/{name}")
            yield Shard(root, fd, int(name, 16))
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
    """Hold a lock file; the kernel lets go of it when the process dies."""
    with open_shared(directory, name) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
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
