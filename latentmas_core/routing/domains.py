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
    """What ``pipeline="auto"`` chose for one question, and why."""

    domain: Domain
    """What the question is about."""
    other_domains: tuple[Domain, ...] = ()
    """Domains that are clear beside it."""
    confidence: float
    """The share of all that was found in the question that speaks for these domains, from 0 to 1;
    no probability."""
    evidence: tuple[str, ...]
    """Words and features that decided, the weightiest first."""
    pipeline: str
    """The pipeline that was chosen."""
    experts: tuple[str, ...]
    """Agents in front of the one who answers, or who alone answers."""
    reason: str
    """Why, in a sentence."""
