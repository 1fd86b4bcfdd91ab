"""Laws 1, 2, 3 and 7 at once: random processes over a bad network, and a checker of what they read."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acache import Cache, Memory, MemoryBackend
from acache.entry import Envelope
from acache.remote import Remote
from acache.replay import Replay

from ..history import Operation, check
from ..processes import BOUND, NEAR_TTL, Process
from ..simulation import LATE, Network, SimulatedBackend, VirtualClock, run
from ..soak import soak, summary

if TYPE_CHECKING:
    from tests.services import PrivateRedis

SECONDS = 20.0
"""Of virtual time."""


def simulate(seed: int, seconds: float = SECONDS) -> tuple[list[Operation], list[Process]]:
    """Let four processes live over a network that misbehaves."""

    async def main() -> tuple[list[Operation], list[Process]]:
        loop, clock, store = asyncio.get_running_loop(), VirtualClock(), MemoryBackend(clock=VirtualClock())
        chance = random.Random(seed)
        networks = [Network(random.Random(chance.random())) for _ in range(4)]
        caches = [
            Cache(
                SimulatedBackend.over(store, network),
                memory=Memory(max_entries=1000, ttl=NEAR_TTL),
                namespace="n",
                policy=Process.policy(),
                clock=clock,
            )
            for network in networks
        ]
        processes = [Process(number, cache, seed, loop.time) for number, cache in enumerate(caches)]

        async def weather() -> None:
            while True:
                await asyncio.sleep(chance.expovariate(1))
                chance.choice(networks).misbehave()

        trouble = loop.create_task(weather())
        await asyncio.gather(*[process.live(loop.time() + seconds) for process in processes])
        trouble.cancel()
        for network in networks:
            network.state = "well"
            await network.settle()
        await asyncio.sleep(60)  # what is kept arrives
        assert [cache.stats().replay_waiting for cache in caches] == [0] * 4
        assert sum(cache.stats().replayed for cache in caches) > 0
        for process, cache in zip(processes, caches, strict=True):
            process.finish()
            await cache.aclose()
        return [operation for process in processes for operation in process.history], processes

    return run(main(), seed)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Breakers open and close by the hundred here."""
    caplog.set_level(logging.ERROR, "acache")


@pytest.mark.parametrize("seed", range(3))
def test_no_process_reads_what_was_replaced_over_a_simulated_network(seed: int):
    """Delays, losses, partitions and late arrivals; every read is checked against the history."""
    history, _ = simulate(seed)
    assert len(history) > 3_000
    assert check(history, bound=BOUND, late=LATE) == []


def test_a_simulation_is_the_same_each_time():
    """What one seed finds can be looked at again."""
    assert simulate(3, 10)[0] == simulate(3, 10)[0]
    assert simulate(3, 10)[0] != simulate(4, 10)[0]


def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One delete in ten is confirmed but not done."""
    swap, chance = MemoryBackend.swap, random.Random(1)

    async def forgetful(self: MemoryBackend, key: str, data: bytes, /, *, ttl: float | None) -> bytes | None:
        return None if chance.random() < 0.1 else await swap(self, key, data, ttl=ttl)

    monkeypatch.setattr(MemoryBackend, "swap", forgetful)


def trusts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The far tier is believed although it has not learnt of a change."""
    monkeypatch.setattr(Replay, "holds", lambda self, namespace, key: False)
    monkeypatch.setattr(Replay, "check_tags", lambda self, namespace, tags: None)


def overwrites(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is sent over whatever is there."""

    async def blindly(self: Remote, key: str, envelope: Envelope | None, since: float) -> None:
        await (self.delete(key) if envelope is None else self.write(key, envelope))

    monkeypatch.setattr(Remote, "settle", blindly)


def fills(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load stores its value whatever happened meanwhile in other processes."""

    async def unguarded(self: MemoryBackend, key: str, data: bytes, version: object, /, *, ttl: float | None) -> bool:
        await self.set(key, data, ttl=ttl)
        return True

    monkeypatch.setattr(MemoryBackend, "set_if", unguarded)


@pytest.mark.parametrize("mistake", [forgets, trusts, overwrites, fills])
def test_the_simulation_finds_a_cache_that(
    mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
):
    """The check can fail: each of these caches is found out."""
    mistake(monkeypatch)
    assert any(check(simulate(seed)[0], bound=BOUND, late=LATE) for seed in range(3))


# Real processes, a real Redis ----------------------------------------------------------------------------------------


@pytest.mark.soak
async def test_no_process_reads_what_was_replaced_over_a_real_network(redis_url: str, tmp_path: Path):
    """Four processes with a fault proxy each; `make soak` runs it for a minute."""
    seed = random.randrange(10**6)
    history, faults = await soak(redis_url, tmp_path, seconds=8, seed=seed)
    print(f"seed {seed}: {summary(history, faults)}")
    assert len(history) > 1000
    assert sum(operation.kind == "get" and operation.value is not None for operation in history) > 100
    assert check(history, bound=BOUND) == []


@pytest.mark.soak
async def test_no_process_reads_what_was_replaced_while_the_server_stands_still_now_and_then(
    private_redis: Callable[..., PrivateRedis], tmp_path: Path
):
    """SIGSTOP, and SIGCONT up to a second later: what was sent meanwhile arrives all at once, in any order."""
    server, seed = private_redis(), random.randrange(10**6)
    disturb = {"pause": server.pause, "resume": server.resume}
    history, faults = await soak(server.url, tmp_path, seconds=8, seed=seed, disturb=lambda what: disturb[what]())
    print(f"seed {seed}: {summary(history, faults)}")
    assert faults["pause"] > 0
    assert check(history, bound=BOUND) == []
