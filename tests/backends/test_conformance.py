"""Every backend keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acache import MemoryBackend
from acache.backends import Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from acache.testing import BackendConformance, FakeClock, FaultyBackend
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from acache.backends import Backend


class TestMemoryBackend(BackendConformance):
    """In process, under a clock that moves when told."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch)
    clock = FakeClock()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend(clock=self.clock)


TestMemoryMachine = backend_machine(
    lambda: MemoryBackend(clock=TestMemoryBackend.clock), suite=TestMemoryBackend
).TestCase


class TestFaultyBackend(TestMemoryBackend):
    """Unharmed, it is a backend like any other."""

    title = "FaultyBackend, mended"

    @pytest.fixture
    def backend(self) -> Backend:
        return FaultyBackend(clock=self.clock)
