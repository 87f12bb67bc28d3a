"""A hundred turns on twenty conversations by several processes, and a restart in the middle: none
is lost, none is mixed with another, all are in order.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import update

from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from latentmas_core.context.conversations.tables import tickets
from latentmas_core.errors import StoreError
from tests.context.conversations.answers import make_result, said
from tests.context.conversations.worker import (
    HAS_TAKEN_ITS_TURNS,
    IS_IN_THE_NEXT,
    take_turn_of,
)

IDS = [f"conversation-{i}" for i in range(20)]
NUM_ROUNDS = 5


async def test_hundred_turns_of_twenty_conversations_outlast_a_restart(url, tenant, request):
    before = Conversations(ConversationsConfig(url=url))
    worker = await _start_worker(url, tenant, 1)
    await _take_round(before, tenant, 0)
    assert await _line_of(worker) == HAS_TAKEN_ITS_TURNS
    assert await _line_of(worker) == IS_IN_THE_NEXT
    worker.kill()
    await worker.wait()
    await _let_all_leases_end(before)
    if url.startswith("postgresql"):
        await _take_round_while_the_server_restarts(
            before, tenant, 2, request.getfixturevalue("postgres")
        )
    else:
        await _take_round(before, tenant, 2)
    await before.close()
    replicas = [Conversations(ConversationsConfig(url=url)) for _ in range(2)]
    await asyncio.gather(
        *(_take_round(one, tenant, number) for one, number in zip(replicas, (3, 4), strict=True))
    )
    for one in IDS:
        await _check(replicas[0], tenant, one)
    for one in replicas:
        await one.close()


async def _check(conversations, tenant, conversation_id):
    stored = await conversations.store.export(tenant, conversation_id)
    questions = [turn.question for turn in stored.turns]
    assert sorted(questions) == [f"{conversation_id} {number}" for number in range(NUM_ROUNDS)]
    told = [json.loads(turn.answer) for turn in stored.turns]
    assert told == [questions[:number] for number in range(NUM_ROUNDS)]


async def _take_round(conversations, tenant, number):
    await asyncio.gather(*(take_turn_of(conversations, tenant, one, number) for one in IDS))


async def _take_round_while_the_server_restarts(conversations, tenant, number, server):
    async with AsyncExitStack() as stack:
        turns = [
            await stack.enter_async_context(conversations.turn(tenant, one, f"{one} {number}"))
            for one in IDS
        ]
        finished = [(turn, make_result(json.dumps(said(turn.history)[::2]))) for turn in turns]
        await asyncio.to_thread(server.stop)
        try:
            for turn, result in finished:
                with pytest.raises(StoreError):
                    await turn.finish(result)
            with pytest.raises(StoreError):
                await conversations.store.list(tenant)
        finally:
            await asyncio.to_thread(server.start)
        await asyncio.gather(*(turn.finish(result) for turn, result in finished))


async def _start_worker(url, tenant, number):
    module = "tests.context.conversations.worker"
    arguments = ("-m", module, url, tenant, str(number), *IDS)
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)


async def _line_of(worker):
    return (await worker.stdout.readline()).decode().strip()


async def _let_all_leases_end(conversations):
    """As if their time had passed."""
    query = update(tickets).values(expires_at=0.0)
    await conversations.store._database.write(lambda found: found.execute(query))
