"""Every backend keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acache import MemoryBackend
from acache.testing import BackendConformance, FakeClock, FaultyBackend

if TYPE_CHECKING:
    from acache.backends import Backend


class TestMemoryBackend(BackendConformance):
    """In process, under a clock that moves when told."""

    clock = FakeClock()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend(clock=self.clock)


class TestFaultyBackend(TestMemoryBackend):
    """Unharmed, it is a backend like any other."""

    @pytest.fixture
    def backend(self) -> Backend:
        return FaultyBackend(clock=self.clock)
