"""Where the numbers come from: no names of machines, only what they are."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe", "now", "versions"]

_PACKAGES = (
    "acache", "aiocache", "anyio", "async-lru", "cachebox", "cachetools", "cachetools-async", "cashews",
    "fastapi-cache2", "msgspec", "theine", "uvloop",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Describe processor, kernel, Python and package versions."""
    kernel = platform.release().partition("-")[0]  # what follows is a builder's own
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {kernel} {platform.machine()}",
        "python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "packages": versions(_PACKAGES),
    }


def now() -> dict[str, Any]:
    """Say when, and how busy the machine was already: other work makes every number worse, and ratios unsteady."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed."""
    return {name: found for name in packages if (found := _version(name)) is not None}


def _version(name: str) -> str | None:
    if name == "acache":
        import acache

        return acache.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
