"""A process that takes turns on conversations, and then stays in one more on each until it is
killed: python -m tests.context.conversations.worker URL TENANT ROUND ID...
"""

import asyncio
import json
import sys
from contextlib import AsyncExitStack

from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.context.conversations.answers import make_result, said

HAS_TAKEN_ITS_TURNS = "has taken its turns"
IS_IN_THE_NEXT = "is in the next"


async def take_turn_of(conversations, tenant, conversation_id, number):
    """The answer of each turn is what it was told of those before."""
    question = f"{conversation_id} {number}"
    async with conversations.turn(tenant, conversation_id, question) as turn:
        await asyncio.sleep(0)
        return await turn.finish(make_result(json.dumps(said(turn.history)[::2])))


async def main(url, tenant, number, *ids):
    conversations = Conversations(ConversationsConfig(url=url))
    await asyncio.gather(*(take_turn_of(conversations, tenant, one, number) for one in ids))
    _tell(HAS_TAKEN_ITS_TURNS)
    async with AsyncExitStack() as turns:
        for one in ids:
            await turns.enter_async_context(conversations.turn(tenant, one, "never answered"))
        _tell(IS_IN_THE_NEXT)
        await asyncio.Event().wait()


def _tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
