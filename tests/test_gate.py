"""What `Gate` promises."""

from __future__ import annotations

import asyncio

import pytest

from acache.backends.gate import Gate


async def test_all_go_on_when_it_is_opened_and_later_ones_do_not_wait():
    gate = Gate()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    gate.open()
    await asyncio.gather(*waiting)
    assert gate.opened
    await gate.wait()


async def test_an_error_is_raised_in_the_place_of_each():
    gate = Gate()
    waiting = [asyncio.create_task(gate.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    gate.open(OSError("no way"))
    assert [str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == ["no way"] * 3


async def test_who_is_cancelled_is_cancelled_alone():
    gate = Gate()
    first, second = asyncio.create_task(gate.wait()), asyncio.create_task(gate.wait(60))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.open()
    await second


async def test_a_timeout_ends_the_wait_of_one():
    gate = Gate()
    patient = asyncio.create_task(gate.wait())
    await gate.wait(0)
    assert not gate.opened
    assert not patient.done()
    gate.open()
    await patient
