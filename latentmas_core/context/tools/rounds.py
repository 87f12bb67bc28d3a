"""The results of several rounds as one."""

from collections.abc import Sequence
from typing import NamedTuple

from latentmas_core.result import Result, StageTrace, ToolCallTrace, Transfer, Usage


class Round(NamedTuple):
    """One time that the model was asked; ``started_ms`` after the first."""

    result: Result
    started_ms: float


def joined(
    rounds: Sequence[Round],
    *,
    final_answer: str,
    tool_calls: Sequence[ToolCallTrace],
    latency_ms: float,
) -> Result:
    """The last result with the agents and stages of all rounds, in their order, and their sums.

    So a reader finds everything that was computed, and the agents still add up to the usage. The
    times of stages count from the first round on.
    """
    results = [one.result for one in rounds]
    failed = dict.fromkeys(name for result in results for name in result.failed_agents)
    changes = {
        "final_answer": final_answer,
        "agents": tuple(agent for result in results for agent in result.agents),
        "stages": tuple(_later(stage, one) for one in rounds for stage in one.result.stages),
        "failed_agents": tuple(failed),
        "usage": _sum_of_usage([result.usage for result in results]),
        "transfer": _sum_of_transfers([result.transfer for result in results]),
        "latency_ms": latency_ms,
        "tool_calls": tuple(tool_calls),
    }
    return results[-1].model_copy(update=changes)


def _later(stage: StageTrace, one: Round) -> StageTrace:
    times = {
        "started_ms": stage.started_ms + one.started_ms,
        "finished_ms": stage.finished_ms + one.started_ms,
    }
    return stage.model_copy(update=times)


def _sum_of_usage(usages: Sequence[Usage]) -> Usage:
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        latent_steps=sum(usage.latent_steps for usage in usages),
    )


def _sum_of_transfers(transfers: Sequence[Transfer]) -> Transfer:
    return Transfer(
        stages=sum(transfer.stages for transfer in transfers),
        hops=sum(transfer.hops for transfer in transfers),
        num_bytes=sum(transfer.num_bytes for transfer in transfers),
    )
