"""The engines: one file for each; one whose client is not installed is left out, and said so."""

from __future__ import annotations

from importlib import import_module

from .base import Bar, Calls, Engine, Side, Workload

__all__ = ["Bar", "Calls", "Engine", "Side", "Workload", "engines"]

_FILES = ("redis", "memcached", "file", "mongodb", "dynamodb")


def engines() -> tuple[list[Engine], dict[str, str]]:
    """Return every engine that can be measured, and why the others cannot."""
    found: list[Engine] = []
    missing: dict[str, str] = {}
    for file in _FILES:
        try:
            found += import_module(f"engines.{file}").engines()
        except ImportError as error:
            missing[file] = f"{error.name} is not installed" if error.name else str(error)
    return found, missing
