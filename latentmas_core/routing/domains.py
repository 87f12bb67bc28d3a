"""The domains that questions are told apart by, and what was decided for one of them."""

from enum import StrEnum

from latentmas_core.config import FrozenModel

AUTO = "auto"  # in place of a pipeline's name: let the question choose


class Domain(StrEnum):
    """What a question is about. GENERAL: none of the others, clearly enough."""

    MEDICAL = "medical"
    MATH = "math"
    CODE = "code"
    REASONING = "reasoning"
    GENERAL = "general"


class RoutingDecision(FrozenModel):
    """What ``pipeline="auto"`` chose for one question, and why.

    ``other_domains`` are clear beside ``domain``. ``confidence``: the share of all that
    was found in the question that speaks for these domains, from 0 to 1; no probability.
    ``evidence``: the words and features that decided, those that weigh most first. ``experts`` are
    the agents of ``pipeline`` in front of the one who answers, or who alone answers.
    """

    domain: Domain
    other_domains: tuple[Domain, ...] = ()
    confidence: float
    evidence: tuple[str, ...]
    pipeline: str
    experts: tuple[str, ...]
    reason: str
