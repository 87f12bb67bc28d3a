"""The pipelines that every system knows."""

from collections.abc import Iterable

from latentmas_core.agents.assistant import ASSISTANT
from latentmas_core.pipelines.spec import PipelineSpec

HIERARCHICAL = "hierarchical"
PARALLEL = "parallel"
SEQUENTIAL = "sequential"
CHAT = "chat"
BUILTIN_NAMES = (HIERARCHICAL, PARALLEL, SEQUENTIAL)

SPEAKS_LAST = "judger"


def builtin_pipelines(agents: Iterable[str] = ()) -> dict[str, PipelineSpec]:
    """``hierarchical``, ``parallel`` and, over ``agents`` in their order, ``sequential``."""
    specs = [
        PipelineSpec.chain(
            HIERARCHICAL,
            ("planner", "critic", "refiner", "judger"),
            description="plan, criticise, refine, decide",
        ),
        PipelineSpec.parallel(
            PARALLEL,
            ("medical", "math", "coder"),
            "judger",
            description="experts at the same time, merged, then a judger",
        ),
    ]
    order = sequential_order(agents)
    if order:
        specs.append(sequential(order))
    return {spec.name: spec for spec in specs}


def sequential(agents: Iterable[str]) -> PipelineSpec:
    """A chain of exactly these agents in this order."""
    return PipelineSpec.chain(
        SEQUENTIAL, tuple(agents), description="agents one after the other, in the order given"
    )


def chat_pipeline() -> PipelineSpec:
    """The assistant alone: offered where a service hosts it."""
    return PipelineSpec.chain(CHAT, (ASSISTANT,), description="plain chat, without any role")


def sequential_order(agents: Iterable[str]) -> tuple[str, ...]:
    """All agents as they come, but the judger, where there is one, speaks last."""
    return tuple(sorted(agents, key=lambda agent: agent == SPEAKS_LAST))
