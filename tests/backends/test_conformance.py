"""Every backend keeps the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from acache import MemoryBackend
from acache.backends import Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch
from acache.testing import BackendConformance, FakeClock, FaultyBackend
from acache.testing.machine import backend_machine

if TYPE_CHECKING:
    from acache.backends import Backend


class TestMemoryBackend(BackendConformance):
    """In process, under a clock that moves when told."""

    capabilities = (Add, Batch, Cas, Clear, Counter, Scan, Stream, Touch)
    title = "Memory"
    clock = FakeClock()

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend(clock=self.clock)


def test_a_machine_and_a_dictionary_say_the_same() -> None:
    """Whatever is done to them."""
    machine = backend_machine(lambda: MemoryBackend(clock=TestMemoryBackend.clock), suite=TestMemoryBackend)
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=40))


class TestFaultyBackend(TestMemoryBackend):
    """Unharmed, it is a backend like any other."""

    title = "FaultyBackend, mended"

    @pytest.fixture
    def backend(self) -> Backend:
        return FaultyBackend(clock=self.clock)
