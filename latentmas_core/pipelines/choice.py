"""Which pipeline a caller means: a name, a spec of their own, or agents to run one by one."""

from collections.abc import Iterable, Mapping, Sequence

from latentmas_core.errors import ConfigError, NotFoundError
from latentmas_core.pipelines.builtin import SEQUENTIAL, sequential, sequential_order
from latentmas_core.pipelines.spec import PipelineSpec

PipelineChoice = str | PipelineSpec | Sequence[str]


def find_pipeline(
    choice: PipelineChoice, known: Mapping[str, PipelineSpec], agents: Iterable[str]
) -> PipelineSpec:
    """NotFoundError for an unknown name, ConfigError for what is no choice; ``agents`` are those
    that "sequential" lets speak."""
    if isinstance(choice, PipelineSpec):
        return choice
    if not isinstance(choice, str | Sequence):
        raise ConfigError(
            f"pipeline is {choice!r}; give a name, a PipelineSpec or a list of agents.",
            param="pipeline",
        )
    if not isinstance(choice, str):
        return sequential(choice)
    if choice == SEQUENTIAL:
        return sequential(sequential_order(agents))
    if choice not in known:
        raise NotFoundError(
            f"pipeline {choice!r} does not exist. Known: {', '.join(known)}. "
            "Add it with add_pipeline.",
            param="pipeline",
        )
    return known[choice]
