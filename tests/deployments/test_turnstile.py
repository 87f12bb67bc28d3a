"""A crowd comes in one by one, in its order; whoever is alone does not wait."""

import asyncio

import pytest

from deployments.turnstile import MAX_WAIT_S, PACE_S, Turnstile


class Times:
    """A clock that only sleeping moves on; ``passed_at`` is when each came through."""

    def __init__(self):
        self.now = 100.0
        self.turnstile = Turnstile(clock=lambda: self.now, sleep=self._sleep)
        self.passed_at = []
        self.order = []

    async def _sleep(self, seconds):
        await asyncio.sleep(0)
        self.now += seconds

    async def come(self, name):
        await self.turnstile.pass_through()
        self.passed_at.append(self.now - 100.0)
        self.order.append(name)

    async def come_together(self, num):
        await asyncio.gather(*(self.come(name) for name in range(num)))


@pytest.fixture
def times():
    return Times()


async def test_whoever_comes_alone_does_not_wait(times):
    for name in range(3):
        await times.come(name)
        times.now += PACE_S
    assert times.passed_at == pytest.approx([0.0, PACE_S, 2 * PACE_S])


async def test_crowd_comes_in_at_its_pace_in_its_order(times):
    await times.come_together(50)
    assert times.passed_at == pytest.approx([index * PACE_S for index in range(50)])
    assert times.order == list(range(50))


async def test_large_crowd_goes_through_faster(times):
    await times.come_together(2000)
    steps = [b - a for a, b in zip(times.passed_at, times.passed_at[1:], strict=False)]
    assert steps[0] == pytest.approx(MAX_WAIT_S / 2000)
    assert steps[-1] == pytest.approx(PACE_S)
    assert times.passed_at[1000] < MAX_WAIT_S


async def test_whoever_leaves_the_crowd_is_not_waited_for(times):
    waiting = [asyncio.create_task(times.come(name)) for name in range(4)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[2].cancel()
    await asyncio.wait(waiting)
    assert times.order == [1, 3]
    assert times.passed_at == pytest.approx([0.0, PACE_S])
