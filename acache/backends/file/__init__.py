"""`FileBackend`: entries as files in one directory, shared by the processes of one host."""

from .backend import FileBackend

__all__ = ["FileBackend"]
