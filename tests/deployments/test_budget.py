"""The count of what lies in the object store: each parcel once, and room for one run at a time."""

import asyncio

import pytest

from deployments.budget import TransferBudget
from deployments.messages import Parcel, RemoteMemory
from latentmas_core.errors import EngineError
from latentmas_core.latent.memory import Memory

TIMEOUT_S = 10.0


def make_memory(*parcels):
    return RemoteMemory(Memory(), tuple(Parcel((name,), None, size) for name, size in parcels))


PLANNER = make_memory(("planner", 60))
CRITIC = make_memory(("planner", 60), ("critic", 50))


def test_parcel_of_several_memories_is_counted_once_and_as_long_as_one_is_held():
    budget = TransferBudget(1000)
    budget.hold(PLANNER)
    budget.hold(CRITIC)
    assert (budget.num_bytes, budget.num_parcels) == (110, 2)
    budget.drop(PLANNER)
    assert (budget.num_bytes, budget.num_parcels) == (110, 2)
    budget.drop(CRITIC)
    assert (budget.num_bytes, budget.num_parcels) == (0, 0)


def test_memory_that_is_dropped_twice_is_our_bug():
    budget = TransferBudget(1000)
    budget.hold(PLANNER)
    budget.drop(PLANNER)
    with pytest.raises(AssertionError, match="dropped twice"):
        budget.drop(PLANNER)


async def test_run_waits_until_there_is_room():
    budget = TransferBudget(100)
    await budget.wait_for_room(timeout_s=TIMEOUT_S)
    budget.hold(CRITIC)
    waiting = asyncio.create_task(budget.wait_for_room(timeout_s=TIMEOUT_S))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.drop(CRITIC)
    await waiting


async def test_run_that_finds_no_room_in_time_is_told_what_is_in_the_way():
    budget = TransferBudget(100)
    budget.hold(CRITIC)
    with pytest.raises(EngineError, match=r"110 bytes.*max_transfer_bytes is 100.*0\.01 s"):
        await budget.wait_for_room(timeout_s=0.01)
    assert budget.num_bytes == 110
