"""Runs the nodes of one stage, in order, on one engine.

Owns every memory that comes into being on the way and gives it back on every way out. The memory
it reads stays the caller's; the one in its ``StageDone`` becomes the receiver's.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType

from latentmas_core.agents.config import AgentConfig
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import ContextLengthError
from latentmas_core.events import Event
from latentmas_core.pipelines.adapter_choice import choice_of, resolve
from latentmas_core.pipelines.assignment import assign_speaker, assign_thinker
from latentmas_core.pipelines.node_turn import Handover, NodeTurn, Seat
from latentmas_core.pipelines.ownership import OwnedMemories
from latentmas_core.pipelines.plan import Stage
from latentmas_core.pipelines.runner import Said, StageDone
from latentmas_core.pipelines.turn_engine import TurnEngine
from latentmas_core.request import ReasonRequest

MAX_TOKEN_BYTES = 128
NO_DIGESTS: Mapping[str, str] = MappingProxyType({})

StageItem = Event | StageDone[ResidentMemory]


@dataclass(frozen=True)
class Roster:
    """Who works here: agents by name, and how long those think that do not say so themselves."""

    agents: Mapping[str, AgentConfig]
    default_latent_steps: int


class StageWorker:
    """Turns a stage into turns of an engine.

    ``roster`` may be exchanged while it works: stages that have begun keep theirs.
    """

    def __init__(self, engine: TurnEngine, roster: Roster) -> None:
        self._engine = engine
        self.roster = roster

    async def run(
        self,
        stage: Stage,
        memory: ResidentMemory | None,
        transcript: Sequence[Said],
        request: ReasonRequest,
        digests: Mapping[str, str] = NO_DIGESTS,
    ) -> AsyncGenerator[StageItem, None]:
        """Events of the stage's agents, then one ``StageDone``. They end by ``timeout_s``.

        ``digests``: what names of adapters stood for when the run began; those that are not in it
        stand for what the engine has now. What is unloaded meanwhile goes when the stage has ended.
        """
        check_question(self._engine, request.question)
        check_conversation(self._engine, request)
        seats = self._seats(stage, request, digests)
        found = Handover(memory, tuple(transcript))
        finish_reason = "stop"
        used = {digest for seat in seats for digest in seat.adapters.mix.digests}
        async with self._engine.holding(used), OwnedMemories(self._engine.release) as owned:
            for seat in seats:
                turn = NodeTurn(self._engine, seat, found, request, owned)
                async with aclosing(turn.events()) as events:
                    async for event in events:
                        yield event
                if found.memory in owned:
                    await owned.release(found.memory)
                found, finish_reason = turn.left, turn.finish_reason
            yield StageDone(
                memory=owned.hand_on(found.memory),
                said=found.transcript[len(transcript) :],
                finish_reason=finish_reason,
            )

    def _seats(
        self, stage: Stage, request: ReasonRequest, digests: Mapping[str, str]
    ) -> list[Seat]:
        def digest_of(name: str) -> str:
            return digests[name] if name in digests else self._engine.adapter(name).digest

        ends_at = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        seats = []
        for node in stage.nodes:
            agent = self.roster.agents[node.agent]
            is_speaker = node is stage.speaker
            assignment = (
                assign_speaker(agent, node, request)
                if is_speaker
                else assign_thinker(
                    agent,
                    node,
                    request,
                    default_latent_steps=self.roster.default_latent_steps,
                )
            )
            adapters = resolve(choice_of(agent, request), digest_of)
            seats.append(
                Seat(agent, adapters, assignment, node.name, stage.name, is_speaker, ends_at)
            )
        return seats


def check_question(engine: TurnEngine, question: str) -> None:
    """Raise ContextLengthError for a question that alone is longer than the model's positions."""
    num_bytes = len(question.encode())
    if num_bytes <= engine.max_positions:
        return  # no token is shorter than a byte
    max_bytes = engine.max_positions * MAX_TOKEN_BYTES
    if num_bytes > max_bytes:  # counting its tokens would hold up everyone else
        raise ContextLengthError(
            f"question has {num_bytes} bytes; {max_bytes} are the most that the model's "
            f"{engine.max_positions} positions can hold. Shorten the question.",
            param="question",
        )
    encoded = engine.tokenizer(question, add_special_tokens=False, verbose=False)
    num_tokens = len(encoded["input_ids"])
    if num_tokens > engine.max_positions:
        raise ContextLengthError(
            f"question has {num_tokens} tokens; the model has {engine.max_positions} positions. "
            "Shorten the question.",
            param="question",
        )


def check_conversation(engine: TurnEngine, request: ReasonRequest) -> None:
    """Raise ContextLengthError for more text around the question than the model can ever read."""
    around = (*request.history, *request.tool_messages, *request.tools)
    if not around:
        return
    num_bytes = sum(len(part.model_dump_json()) for part in around)
    max_bytes = engine.max_positions * MAX_TOKEN_BYTES
    if num_bytes > max_bytes:  # counting its tokens would hold up everyone else
        raise ContextLengthError(
            f"messages and tools have {num_bytes} bytes; {max_bytes} are the most that the model's "
            f"{engine.max_positions} positions can hold. Leave some out.",
            param="messages",
        )
