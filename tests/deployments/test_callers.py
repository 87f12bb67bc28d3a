"""Work whose caller died is ended; that of others goes on."""

import asyncio
import threading

import pytest

from deployments.callers import CallerWatch

TIMEOUT_S = 10.0


@pytest.fixture
def living():
    return {"one", "two"}


@pytest.fixture
def watch(living):
    return CallerWatch(living.__contains__, period_s=0.01)


def start(watch, caller):
    async def work():
        async with watch.watched(caller):
            await asyncio.Event().wait()

    return asyncio.create_task(work())


async def test_work_of_a_caller_that_died_is_cancelled_and_no_other(watch, living):
    first, second, third = start(watch, "one"), start(watch, "one"), start(watch, "two")
    await asyncio.sleep(0)
    living.remove("one")
    await asyncio.wait([first, second], timeout=TIMEOUT_S)
    assert first.cancelled()
    assert second.cancelled()
    assert not third.done()
    third.cancel()
    await asyncio.wait([third])


async def test_failure_to_ask_is_not_taken_for_a_death_and_asking_goes_on(living, caplog):
    failures = [OSError("the head is away")]

    def is_alive(caller):
        if failures:
            raise failures.pop()
        return caller in living

    watch = CallerWatch(is_alive, period_s=0.01)
    working = start(watch, "three")
    await asyncio.wait([working], timeout=TIMEOUT_S)
    assert working.cancelled()
    assert "the head is away" in caplog.text


async def test_callers_that_are_unknown_are_not_watched(watch):
    working = start(watch, None)
    await asyncio.sleep(0)
    assert watch.num_watched == 0
    working.cancel()
    await asyncio.wait([working])


async def test_nothing_is_asked_once_nothing_is_watched():
    was_asked = threading.Event()
    asked = []

    def is_alive(caller):
        asked.append(caller)
        was_asked.set()
        return True

    watch = CallerWatch(is_alive, period_s=0.01)
    async with watch.watched("one"):
        assert await asyncio.to_thread(was_asked.wait, TIMEOUT_S)
    assert watch.num_watched == 0
    await end_of_watching()
    assert set(asked) == {"one"}


async def test_watching_begins_again_with_the_next_call(watch, living):
    async with watch.watched("one"):
        pass
    await end_of_watching()
    working = start(watch, "one")
    await asyncio.sleep(0)
    living.remove("one")
    await asyncio.wait([working], timeout=TIMEOUT_S)
    assert working.cancelled()


async def end_of_watching():
    """The watch has no work left and ends by itself."""
    (watching,) = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(watching, TIMEOUT_S)
