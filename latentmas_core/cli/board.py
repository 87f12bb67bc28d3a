"""Board: who is at what in a run, kept from its events. Knows no terminal."""

import json
from dataclasses import dataclass, field

from latentmas_core.events import (
    AgentFinished,
    AgentPhase,
    AgentStarted,
    AgentThought,
    Event,
    Routed,
    StageFinished,
    StageGivenUp,
    StageRetried,
    StageStarted,
    ToolFinished,
    ToolStarted,
)
from latentmas_core.phases import Phase
from latentmas_core.result import AgentTrace, Result

WAITS = "waits for others"
DONE = "done"
FAILED = "failed"


@dataclass
class AgentRow:
    """``state`` is a phase, or one of the words above; ``trace`` is there once the turn is over."""

    name: str
    state: str = WAITS
    latent_steps: int = 0
    trace: AgentTrace | None = None

    @property
    def is_busy(self) -> bool:
        return self.state in list(Phase)


@dataclass
class Board:
    """``num_bytes`` of memory were handed over by stages that have finished."""

    rows: dict[str, AgentRow] = field(default_factory=dict)
    num_bytes: int = 0
    notices: list[str] = field(default_factory=list)

    def note(self, event: Event) -> None:
        match event:
            case StageStarted(agents=agents):
                for agent in agents:
                    self.rows[agent] = AgentRow(agent)
            case AgentStarted(agent=agent):
                self._row(agent).state = Phase.QUEUED
            case AgentPhase(agent=agent, phase=phase):
                self._row(agent).state = phase
            case AgentThought(agent=agent, latent_steps=latent_steps):
                self._row(agent).latent_steps = latent_steps
            case AgentFinished(agent=agent, trace=trace):
                row = self._row(agent)
                row.state, row.trace, row.latent_steps = DONE, trace, trace.latent_steps
            case StageFinished(trace=trace):
                self.num_bytes += trace.bytes_out
            case StageGivenUp(agents=agents):
                for agent in agents:
                    self._row(agent).state = FAILED
            case _:
                pass
        if (notice := describe_notice(event)) is not None:
            self.notices.append(notice)

    def _row(self, agent: str) -> AgentRow:
        return self.rows.setdefault(agent, AgentRow(agent))


def describe_agent(trace: AgentTrace) -> str:
    """What an agent did, in a line."""
    parts = [f"{trace.prompt_tokens} prompt tokens"]
    if trace.latent_steps:
        parts.append(f"{trace.latent_steps} latent steps")
    parts += [f"{trace.completion_tokens} tokens written", f"{trace.latency_ms:.0f} ms"]
    return f"{trace.name}: {', '.join(parts)}, on {trace.adapter}"


def describe_notice(event: Event) -> str | None:
    """What is worth a line beside the agents; None for all else."""
    match event:
        case Routed(decision):
            return decision.reason
        case StageRetried(stage, attempt, reason):
            return f"{stage} begins again (attempt {attempt}): {reason}"
        case StageGivenUp(agents=agents, reason=reason):
            return f"going on without {', '.join(agents)}: {reason}"
        case ToolStarted(name=name, arguments=arguments):
            return f"{name} is called: {json.dumps(arguments, ensure_ascii=False)}"
        case ToolFinished(trace):
            return f"{trace.name} {'failed' if trace.is_error else 'answered'}: {trace.text}"
    return None


def describe_result(result: Result) -> str:
    """What a run took, in a line."""
    usage, transfer = result.usage, result.transfer
    moved = ""
    if transfer.hops:
        moved = f"; {describe_bytes(transfer.num_bytes)} handed over in {transfer.hops} hops"
    return (
        f"{result.pipeline}, {result.mode}: {result.latency_ms:.0f} ms; {usage.prompt_tokens} "
        f"prompt tokens, {usage.latent_steps} latent steps, {usage.completion_tokens} tokens "
        f"written{moved}"
    )


def describe_bytes(num_bytes: int) -> str:
    """The size of a memory that is handed over, for a person."""
    return f"{num_bytes / 2**20:.1f} MiB of memory"
