"""The contenders: one file for each library; one that is not installed is left out, and said so."""

from __future__ import annotations

from importlib import import_module

from .base import Contender, Operation
from .plain import BASE, SHARED_FUTURE

__all__ = ["BASE", "SHARED_FUTURE", "Contender", "Operation", "contenders"]

_FILES = (
    "plain",
    "acache",
    "async_lru",
    "cachetools_async",
    "cashews",
    "aiocache",
    "cachebox",
    "theine",
    "fastapi_cache",
)


def contenders() -> tuple[list[Contender], dict[str, str]]:
    """Return every contender, and why the others are missing."""
    found: list[Contender] = []
    missing: dict[str, str] = {}
    for file in _FILES:
        try:
            found += import_module(f"contenders.{file}").contenders()
        except ImportError as error:
            missing[file.replace("_", "-")] = f"{error.name} is not installed" if error.name else str(error)
    return found, missing
