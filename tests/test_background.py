"""The background loop: results, errors and endings cross from one thread to another."""

import asyncio
import threading

import pytest

from latentmas_core.background import BackgroundLoop
from latentmas_core.errors import EngineError


@pytest.fixture
def background():
    loop = BackgroundLoop()
    yield loop
    loop.close()


class Source:
    """Counts up for ever and knows when it was closed."""

    def __init__(self):
        self.is_closed = threading.Event()

    async def items(self, *, fails_at=None):
        try:
            number = 0
            while number != fails_at:
                yield number
                number += 1
                await asyncio.sleep(0)
            raise ValueError("no more")
        finally:
            self.is_closed.set()


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


def test_result_comes_back(background):
    assert background.run(double(21)) == 42


async def test_it_works_beside_a_running_loop(background):
    assert background.run(double(21)) == 42


def test_errors_come_back_as_they_were(background):
    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        background.run(fail())


def test_error_of_a_generator_comes_behind_its_items(background):
    seen = []
    with pytest.raises(ValueError, match="no more"):
        seen.extend(background.iterate(Source().items(fails_at=3)))
    items = background.iterate(Source().items(fails_at=2))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_leaving_an_iteration_waits_until_it_is_closed(background):
    source = Source()
    for number in background.iterate(source.items()):
        if number == 5:
            break
    # The loop variable's generator is closed as soon as nothing refers to it.
    assert source.is_closed.is_set()


def test_iteration_that_never_began_holds_nothing(background):
    source = Source()
    background.iterate(source.items()).close()
    assert not source.is_closed.is_set()


def test_closing_ends_what_still_runs():
    background = BackgroundLoop()
    source = Source()
    items = background.iterate(source.items())
    next(items)
    background.close()
    assert source.is_closed.is_set()
    with pytest.raises(EngineError, match="closed"):
        list(items)


def test_closed_loop_refuses_work():
    background = BackgroundLoop()
    background.close()
    background.close()
    with pytest.raises(EngineError, match="closed"):
        background.run(double(1))


def test_waiter_is_told_when_the_loop_is_closed():
    background = BackgroundLoop()
    has_begun = threading.Event()

    async def wait_for_ever():
        has_begun.set()
        await asyncio.Event().wait()

    def close():
        has_begun.wait()
        background.close()

    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(EngineError, match="closed"):
        background.run(wait_for_ever())
    closer.join()
