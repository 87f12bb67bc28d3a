"""The count of what lies in the object store: each parcel once, and room for one run at a time."""

import asyncio

import pytest

from deployments.budget import RunAccount, TransferBudget
from deployments.messages import Parcel, RemoteMemory
from latentmas_core.errors import EngineError
from latentmas_core.latent.memory import Memory

TIMEOUT_S = 10.0


def make_memory(*parcels):
    return RemoteMemory(Memory(), tuple(Parcel((name,), None, size) for name, size in parcels))


PLANNER = make_memory(("planner", 60))
CRITIC = make_memory(("planner", 60), ("critic", 50))


def test_parcel_of_several_memories_is_counted_once_and_as_long_as_one_is_held():
    account = RunAccount()
    account.hold(PLANNER)
    account.hold(CRITIC)
    assert (account.num_bytes, account.num_parcels) == (110, 2)
    account.drop(PLANNER)
    assert (account.num_bytes, account.num_parcels) == (110, 2)
    account.drop(CRITIC)
    assert (account.num_bytes, account.num_parcels, account.peak_bytes) == (0, 0, 110)


def test_memory_that_is_dropped_twice_is_our_bug():
    account = RunAccount()
    account.hold(PLANNER)
    account.drop(PLANNER)
    with pytest.raises(AssertionError, match="dropped twice"):
        account.drop(PLANNER)


class Runs:
    """Runs that hold 110 bytes each until they are let go; the largest number of bytes so far."""

    def __init__(self, budget):
        self._budget = budget
        self.begun = []
        self.peak_bytes = 0

    def start(self, name, go_on):
        return asyncio.create_task(self._run(name, go_on))

    async def _run(self, name, go_on):
        async with self._budget.run() as account:
            self.begun.append(name)
            account.hold(CRITIC)
            self.peak_bytes = max(self.peak_bytes, self._budget.num_bytes)
            await go_on.wait()
            account.drop(CRITIC)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_runs_are_let_in_one_after_the_other_as_there_is_room():
    budget = TransferBudget(250)
    runs, go_on = Runs(budget), asyncio.Event()
    async with asyncio.timeout(TIMEOUT_S):
        go_on.set()
        for number in range(20):  # what a run takes is learned
            await runs.start(number, go_on)
        go_on.clear()
        runs.begun.clear()
        tasks = [runs.start(number, go_on) for number in range(50)]
        await settle()
        assert runs.begun == [0, 1]
        go_on.set()
        await asyncio.gather(*tasks)
    assert runs.begun == list(range(50))
    assert runs.peak_bytes <= budget.max_bytes
    assert (budget.num_bytes, budget.num_parcels) == (0, 0)


async def test_one_run_is_always_let_in():
    budget = TransferBudget(10)
    go_on = asyncio.Event()
    go_on.set()
    runs = Runs(budget)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(runs.start(number, go_on) for number in range(5)))
    assert runs.begun == list(range(5))


async def test_first_runs_are_not_all_let_in_before_it_is_known_what_they_take():
    runs, go_on = Runs(TransferBudget(6400)), asyncio.Event()
    tasks = [runs.start(number, go_on) for number in range(256)]
    await settle()
    assert len(runs.begun) <= 64
    go_on.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*tasks)


async def test_run_that_finds_no_room_in_time_is_told_what_is_in_the_way():
    budget = TransferBudget(100)
    async with budget.run() as account:
        account.hold(CRITIC)
        with pytest.raises(EngineError, match=r"110 bytes.*max_transfer_bytes is 100.*0\.01 s"):
            async with budget.run(max_wait_s=0.01):
                raise AssertionError("there was no room")
        assert budget.num_bytes == 110
        account.drop(CRITIC)


async def test_whoever_gives_up_waiting_holds_up_nobody_behind():
    budget = TransferBudget(100)
    runs, go_on = Runs(budget), asyncio.Event()
    first, second, third = (runs.start(name, go_on) for name in ("first", "second", "third"))
    await settle()
    second.cancel()
    await asyncio.wait([second])
    go_on.set()
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(first, third)
    assert runs.begun == ["first", "third"]
    assert budget.num_parcels == 0
