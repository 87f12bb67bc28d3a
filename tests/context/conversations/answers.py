"""Results as a run returns them, and turns that took place."""

from latentmas_core.context.conversations.records import Turn, TurnMetadata
from latentmas_core.request import Mode
from latentmas_core.result import Result, Usage

USAGE = Usage(prompt_tokens=5, completion_tokens=2, latent_steps=3)


def make_result(answer: str, *, result_id: str = "reason-1") -> Result:
    return Result(
        id=result_id,
        final_answer=answer,
        pipeline="hierarchical",
        mode=Mode.LATENT,
        agents=(),
        usage=USAGE,
        latency_ms=1.0,
    )


def make_turn(question: str, answer: str, **fields) -> Turn:
    metadata = TurnMetadata(result_id="reason-1", pipeline="hierarchical", mode=Mode.LATENT)
    values = {"id": question, "metadata": metadata, "created_at": 1.0}
    return Turn(question=question, answer=answer, **values | fields)


async def take_turn(conversations, tenant, conversation_id, question="Why?", answer="So."):
    async with conversations.turn(tenant, conversation_id, question) as turn:
        return await turn.finish(make_result(answer))


def said(history) -> list[str]:
    return [message.content for message in history]
