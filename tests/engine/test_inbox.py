"""Commands run on the thread that asks for them, in order; nobody waits for ever."""

import asyncio
import threading
import time

import pytest

from latentmas_core.engine.inbox import Inbox


async def yield_once() -> None:
    """Let tasks that were just created run up to their first wait."""
    await asyncio.sleep(0)


def test_commands_run_in_the_order_they_were_posted() -> None:
    inbox, seen = Inbox(), list[int]()
    for number in range(5):
        inbox.post(lambda number=number: seen.append(number))
    assert seen == []
    inbox.run_commands()
    assert seen == [0, 1, 2, 3, 4]


def test_running_without_commands_does_not_wait() -> None:
    Inbox().run_commands()


def test_blocking_run_waits_for_the_first_command() -> None:
    inbox, seen = Inbox(), list[str]()
    is_waiting = threading.Event()

    def serve() -> None:
        is_waiting.set()
        inbox.run_commands(timeout_s=None)

    thread = threading.Thread(target=serve)
    thread.start()
    assert is_waiting.wait(10)
    inbox.post(lambda: seen.append("done"))
    thread.join(10)
    assert seen == ["done"]


def test_run_ends_its_wait_when_the_time_is_over() -> None:
    inbox, seen = Inbox(), list[str]()
    started_at = time.monotonic()
    inbox.run_commands(timeout_s=0.05)
    assert time.monotonic() - started_at >= 0.05
    inbox.post(lambda: seen.append("done"))
    inbox.run_commands(timeout_s=60.0)
    assert seen == ["done"]


async def test_answer_reaches_the_caller() -> None:
    inbox = Inbox()
    call = asyncio.ensure_future(inbox.call(lambda: 6 * 7))
    await yield_once()
    assert not call.done()
    inbox.run_commands()
    assert await call == 42


async def test_error_reaches_the_caller_and_not_the_thread() -> None:
    inbox = Inbox()

    def fail() -> None:
        raise ValueError("out of luck")

    call = asyncio.ensure_future(inbox.call(fail))
    await yield_once()
    inbox.run_commands()
    with pytest.raises(ValueError, match="out of luck"):
        await call


async def test_cancelled_call_that_has_not_run_undoes_its_result() -> None:
    inbox, undone = Inbox(), list[str]()
    call = asyncio.ensure_future(inbox.call(lambda: "memory", undo=undone.append))
    await yield_once()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert undone == []
    inbox.run_commands()
    assert undone == ["memory"]


async def test_cancelled_call_that_has_run_undoes_its_result() -> None:
    inbox, undone = Inbox(), list[str]()
    call = asyncio.ensure_future(inbox.call(lambda: "memory", undo=undone.append))
    await yield_once()
    inbox.run_commands()
    call.cancel()  # the answer is there, but its task has not seen it yet
    with pytest.raises(asyncio.CancelledError):
        await call
    inbox.run_commands()
    assert undone == ["memory"]


async def test_cancelled_call_that_failed_has_nothing_to_undo() -> None:
    inbox, undone = Inbox(), list[str]()
    call = asyncio.ensure_future(inbox.call(lambda: undone[0], undo=undone.append))
    await yield_once()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    inbox.run_commands()
    assert undone == []


async def test_cancelled_call_without_undo_leaves_its_effect() -> None:
    inbox, seen = Inbox(), list[str]()
    call = asyncio.ensure_future(inbox.call(lambda: seen.append("done")))
    await yield_once()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    inbox.run_commands()
    assert seen == ["done"]


async def test_answered_call_is_not_undone() -> None:
    inbox, undone = Inbox(), list[str]()
    call = asyncio.ensure_future(inbox.call(lambda: "memory", undo=undone.append))
    await yield_once()
    inbox.run_commands()
    await call
    call.cancel()
    inbox.run_commands()
    assert undone == []


def test_closing_runs_what_is_left() -> None:
    inbox, seen = Inbox(), list[int]()
    inbox.post(lambda: seen.append(1))
    inbox.post(lambda: inbox.post(lambda: seen.append(2)))
    inbox.close()
    assert sorted(seen) == [1, 2]


async def test_closed_inbox_answers_at_once() -> None:
    inbox, seen = Inbox(), list[str]()
    inbox.close()
    inbox.post(lambda: seen.append("posted"))
    assert seen == ["posted"]
    assert await inbox.call(lambda: 42) == 42
