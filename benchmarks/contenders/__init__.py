"""The contenders: one file for each library; one that is not installed is left out, and said so."""

from __future__ import annotations

from importlib import import_module

from .base import Contender, Operation
from .plain import BASE, SHARED_FUTURE

__all__ = ["BASE", "SHARED_FUTURE", "Contender", "Operation", "contenders"]

_FILES = ("plain", "acache", "async_lru", "cachetools_async", "cashews", "aiocache")


def contenders() -> tuple[list[Contender], list[str]]:
    """Return every contender, and the libraries that are missing."""
    found: list[Contender] = []
    missing: list[str] = []
    for file in _FILES:
        try:
            found += import_module(f"contenders.{file}").contenders()
        except ModuleNotFoundError as error:
            missing.append(error.name or file)
    return found, missing
