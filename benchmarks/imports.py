"""How long ``import`` of each library takes in a new process, its bytecode already compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

__all__ = ["import_times"]

_MODULES = (
    ("acache", "ours"),
    ("asyncio", "reference"),
    ("async_lru", "peer"),
    ("cachetools_async", "peer"),
    ("cashews", "peer"),
    ("aiocache", "peer"),
    ("cachebox", "peer"),
    ("theine", "peer"),
    ("fastapi_cache", "peer"),
)
_PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_times(rounds: int) -> list[dict[str, Any]]:
    """Measure all modules, interleaved; the first round warms up."""
    seconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as bytecode:
        # A directory of its own for the bytecode: some environments forbid writing it beside the source.
        unset = ("PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        environment |= {"PYTHONPYCACHEPREFIX": bytecode, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for number in range(rounds + 1):
            for module, _ in _MODULES:
                done = subprocess.run(
                    [sys.executable, "-c", _PROGRAM.format(module)],
                    capture_output=True,
                    text=True,
                    check=False,
                    env=environment,
                )
                if done.returncode == 0 and number:
                    seconds.setdefault(module, []).append(float(done.stdout))
    return [
        {"contender": module, "kind": kind, "ms": round(median(seconds[module]) * 1e3, 1)}
        for module, kind in _MODULES
        if module in seconds
    ]
