"""Tells the domain of a question from its words and its form. No model, no network, no state:
the same question always gets the same answer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from latentmas_core.routing.domains import Domain
from latentmas_core.routing.features import feature_votes
from latentmas_core.routing.lexicon import Vote, shipped_lexicon

# A question is general until as much speaks against that.
GENERAL_WEIGHT = 1.5
# A domain beside the first has to be clear in itself, and not only a shade of the first.
MIN_SHARE_OF_FIRST = 0.3
MIN_SECOND_SCORE = 3.5
# Of a longer text its beginning and its end are read: the question stands at one of them.
MAX_CHARS = 4000
MAX_EVIDENCE = 6

_WORD = re.compile(r"[a-z][a-z0-9]*[+#]*")


@dataclass(frozen=True)
class Classification:
    """``domains``: those that are clear, the clearest first. ``scores`` has every domain;
    ``evidence`` what speaks for those that are clear, what weighs most first."""

    domains: tuple[Domain, ...]
    scores: Mapping[Domain, float]
    evidence: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """The share of the clear domains in the sum of all scores."""
        return sum(self.scores[domain] for domain in self.domains) / sum(self.scores.values())


def classify(question: str) -> Classification:
    """The domains of ``question``; GENERAL alone where no other is clearer than that."""
    text = _ends_of(question)
    words = _WORD.findall(text.lower())
    votes = [*shipped_lexicon().votes(words), *feature_votes(text)]
    scores = dict.fromkeys(Domain, 0.0) | {Domain.GENERAL: GENERAL_WEIGHT}
    for vote in votes:
        scores[vote.domain] += vote.weight
    domains = _clear(scores)
    return Classification(domains, scores, _evidence(votes, domains))


def _ends_of(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n{text[-half:]}"


def _clear(scores: Mapping[Domain, float]) -> tuple[Domain, ...]:
    special = [domain for domain in Domain if domain is not Domain.GENERAL]
    ranked = sorted(special, key=lambda domain: -scores[domain])  # stable: equals as declared
    first = scores[ranked[0]]
    if first <= scores[Domain.GENERAL]:
        return (Domain.GENERAL,)
    least = max(MIN_SECOND_SCORE, MIN_SHARE_OF_FIRST * first, scores[Domain.GENERAL])
    others = (domain for domain in ranked[1:] if scores[domain] >= least)
    return (ranked[0], *others)


def _evidence(votes: list[Vote], domains: tuple[Domain, ...]) -> tuple[str, ...]:
    speaking = sorted((v for v in votes if v.domain in domains), key=lambda vote: -vote.weight)
    return tuple(dict.fromkeys(vote.name for vote in speaking))[:MAX_EVIDENCE]
