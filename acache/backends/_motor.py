"""Builds a client of the ``motor`` package for `MongoDBBackend`."""

from __future__ import annotations

from typing import Any

try:
    from motor.motor_asyncio import AsyncIOMotorClient
except ImportError as error:  # pragma: no cover - shown by a test that runs without the extra
    msg = "MongoDBBackend with client='motor' needs the motor package: pip install 'acache[motor]'"
    raise ImportError(msg) from error

__all__ = ["build"]


def build(url: str, **options: Any) -> Any:
    """Return a client that connects at its first operation, in the loop that runs then."""
    return AsyncIOMotorClient(url, **options)
