"""Every error acache raises, by what the caller can do about it.

::

    AcacheError
     ├─ ConfigurationError (ValueError)     the call or the set-up contradicts itself: mend the code
     ├─ InvalidKey (ValueError)             a key that no engine could hold: mend the key
     ├─ KeyMissing (KeyError)               a question about an entry that is not there
     ├─ CacheClosed                         used after ``aclose()``
     ├─ RecursiveLoad                       a loader that waits for its own result
     ├─ LoadTimeout (TimeoutError)          the loader took longer than ``load_timeout``
     ├─ CodecError
     │   ├─ EncodeError (TypeError)         the value has no exact form in this codec
     │   └─ DecodeError                     the bytes are not what this codec writes
     └─ BackendError                        the far tier; the engine's own error is the ``__cause__``
         ├─ BackendUnavailable (ConnectionError)   not reached, or lost on the way
         ├─ BackendTimeout (TimeoutError)          no answer within the deadline
         ├─ BackendRefused (PermissionError)       reached, and it said no: credentials, read-only, permissions
         ├─ ValueTooLarge                          more bytes than the engine takes
         └─ Unsupported                            the engine has no such operation

The loader's own exceptions are not in this tree: they reach the caller as they are.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = [
    "AcacheError",
    "BackendError",
    "BackendRefused",
    "BackendTimeout",
    "BackendUnavailable",
    "CacheClosed",
    "CodecError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "InvalidKey",
    "KeyMissing",
    "LoadTimeout",
    "RecursiveLoad",
    "Unsupported",
    "ValueTooLarge",
    "short",
]


_cutter: Final = reprlib.Repr()
_cutter.maxstring = _cutter.maxother = _cutter.maxlong = 80


def short(value: object) -> str:
    """Return the repr of a value for a message, cut in the middle when it is long."""
    return _cutter.repr(value)


class AcacheError(Exception):
    """The root of the tree."""


class ConfigurationError(AcacheError, ValueError):
    """Raised at construction, decoration or call: the arguments contradict themselves or each other."""


class InvalidKey(AcacheError, ValueError):
    """A key must be a non-empty ``str`` of valid Unicode text."""


class KeyMissing(AcacheError, KeyError):
    """There is no (fresh) entry under this key."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # KeyError would show the repr


class CacheClosed(AcacheError):
    """The cache was closed with ``aclose()``; build a new one."""


class RecursiveLoad(AcacheError):
    """A loader asked, directly or through other loaders, for the value it is itself loading."""


class LoadTimeout(AcacheError, TimeoutError):
    """A loader ran longer than ``Policy.load_timeout`` and was cancelled."""


class CodecError(AcacheError):
    """A value could not be turned into bytes, or bytes into a value."""


class EncodeError(CodecError, TypeError):
    """This value cannot be stored so that it comes back exactly; the message names the type and the remedy."""


class DecodeError(CodecError):
    """These bytes are not a value of this codec."""


class BackendError(AcacheError):
    """The far tier failed; the engine's own exception is kept as ``__cause__``.

    An operation on many keys that failed for some of them raises the error of the first one, with these attributes set.
    Where ``failed`` is empty, the operation failed as a whole.  An engine of several servers names a single key in it
    too, to say that others may be answered meanwhile.
    """

    failed: Mapping[str, BackendError] = MappingProxyType({})
    """Of an operation on many keys: those that were not read, stored or removed, and why; the others were."""
    found: Mapping[str, Any] = MappingProxyType({})
    """Of a read of many keys: what the others hold."""


class BackendUnavailable(BackendError, ConnectionError):
    """The engine could not be reached, or the connection was lost."""


class BackendTimeout(BackendError, TimeoutError):
    """The engine did not answer within the deadline; whether a write happened is unknown."""


class BackendRefused(BackendError, PermissionError):
    """The engine was reached and refused: wrong password, read-only replica, missing permission."""


class ValueTooLarge(BackendError):
    """The value is larger than the engine takes; nothing was sent."""


class Unsupported(BackendError):
    """The engine has no such operation."""
