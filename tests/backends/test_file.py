"""What `FileBackend` promises beyond the contract."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from acache.backends.file import FileBackend
from acache.testing import BackendConformance, FakeClock

if TYPE_CHECKING:
    from pathlib import Path


class TestFileBackend(BackendConformance):
    """On a real disk, under a clock that moves when told."""

    clock = FakeClock(wall=time.time())

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture(params=[None, 100 << 20], ids=["unbounded", "bounded"])
    def backend(self, request: pytest.FixtureRequest, tmp_path: Path) -> FileBackend:
        return FileBackend(tmp_path / "cache", max_bytes=request.param, clock=self.clock)
