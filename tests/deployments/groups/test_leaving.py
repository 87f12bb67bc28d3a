"""Whoever leaves a stage or a run, at whatever moment, leaves nothing in the engines."""

import asyncio
from contextlib import aclosing

import pytest

from tests.deployments.groups.stage_calls import make_call, make_request
from tests.engine.engines import assert_nothing_left


async def test_closing_a_stage_after_any_message_returns_all_blocks(args, engines, servers):
    server, call = servers["thinkers"], make_call(args)
    num_messages = len([message async for message in server.run_stage(call)])
    assert num_messages > 5
    for num_read in range(1, num_messages + 1):
        async with aclosing(server.run_stage(call)) as messages:
            for _ in range(num_read):
                await anext(messages)
        await assert_nothing_left(engines["thinkers"])


async def test_cancelling_a_stage_at_any_moment_returns_all_blocks(args, engines, servers):
    call = make_call(args)

    async def consume():
        return [message async for message in servers["thinkers"].run_stage(call)]

    for delay_ms in range(0, 40, 4):
        task = asyncio.create_task(consume())
        await asyncio.sleep(delay_ms / 1000)
        task.cancel()
        await asyncio.wait([task])
        await assert_nothing_left(engines["thinkers"])


@pytest.mark.parametrize("pipeline", ["zigzag", "parallel"])
async def test_closing_a_run_after_any_event_returns_all_blocks(reasoner, engines, pipeline):
    request = make_request(pipeline=pipeline, max_tokens=3)
    num_events = len([event async for event in reasoner.stream(request)])
    for num_read in range(1, num_events + 1):
        async with aclosing(reasoner.stream(request)) as events:
            for _ in range(num_read):
                await anext(events)
        for engine in engines.values():
            await assert_nothing_left(engine)
