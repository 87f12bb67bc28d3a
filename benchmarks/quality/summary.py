"""Figures of a run: per task and method, and of two methods on the same questions."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from benchmarks.quality.run_folder import AnswerRow
from benchmarks.quality.significance import Interval, mcnemar_exact, wilson


@dataclass(frozen=True)
class Summary:
    """What one method did on one task; tokens and times are means per question.

    ``num_unanswered``: no answer was found in the text; ``num_cut``: it ran into max_tokens.
    ``time_s`` is the share of the batch, ``latency_s`` holds one time per question.
    """

    task: str
    method: str
    num_questions: int
    num_right: int
    num_unanswered: int
    num_cut: int
    num_errors: int
    prompt_tokens: float
    output_tokens: float
    latent_steps: float
    time_s: float
    latency_s: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_questions

    @property
    def interval(self) -> Interval:
        return wilson(self.num_right, self.num_questions)


@dataclass(frozen=True)
class Paired:
    """Two methods on the questions that both were asked."""

    task: str
    first: str
    second: str
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int
    output_ratio: float | None
    time_ratio: float | None

    @property
    def num_questions(self) -> int:
        return self.num_both + self.num_only_first + self.num_only_second + self.num_neither

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.num_only_second - self.num_only_first) / self.num_questions

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.num_only_first, self.num_only_second)


@dataclass(frozen=True)
class AgentTokens:
    """Means per question of one agent."""

    task: str
    method: str
    agent: str
    prompt_tokens: float
    output_tokens: float
    latent_steps: float


def summarize(rows: Sequence[AnswerRow]) -> list[Summary]:
    """One per task and method, in the order in which they first came."""
    return [_summary(group) for group in _groups(rows)]


def pair_methods(rows: Sequence[AnswerRow]) -> list[Paired]:
    """Every two methods of every task that share questions."""
    groups = _groups(rows)
    return [
        pair
        for first, second in combinations(groups, 2)
        if first[0].task == second[0].task
        for pair in [pair_rows(first, second, names=(first[0].method, second[0].method))]
        if pair is not None
    ]


def pair_rows(
    first: Sequence[AnswerRow], second: Sequence[AnswerRow], *, names: tuple[str, str]
) -> Paired | None:
    """Two lots of answers on the same task; None if no question, word for word, is in both."""
    others = {(row.question_id, row.prompt): row for row in second}
    pairs = [
        (row, others[row.question_id, row.prompt])
        for row in first
        if (row.question_id, row.prompt) in others
    ]
    if not pairs:
        return None
    outcomes = [(a.grade.is_correct, b.grade.is_correct) for a, b in pairs]
    ours, theirs = zip(*pairs, strict=True)
    return Paired(
        task=ours[0].task,
        first=names[0],
        second=names[1],
        num_both=outcomes.count((True, True)),
        num_only_first=outcomes.count((True, False)),
        num_only_second=outcomes.count((False, True)),
        num_neither=outcomes.count((False, False)),
        output_ratio=_ratio(
            (r.completion_tokens for r in theirs), (r.completion_tokens for r in ours)
        ),
        time_ratio=_ratio((r.time_s for r in theirs), (r.time_s for r in ours)),
    )


def agent_tokens(rows: Sequence[AnswerRow]) -> list[AgentTokens]:
    """One per task, method and agent, over the questions that were answered."""
    found: list[AgentTokens] = []
    for group in _groups([row for row in rows if row.error is None]):
        for name in dict.fromkeys(agent.name for row in group for agent in row.agents):
            did = [agent for row in group for agent in row.agents if agent.name == name]
            found.append(
                AgentTokens(
                    task=group[0].task,
                    method=group[0].method,
                    agent=name,
                    prompt_tokens=_mean(agent.prompt_tokens for agent in did),
                    output_tokens=_mean(agent.completion_tokens for agent in did),
                    latent_steps=_mean(agent.latent_steps for agent in did),
                )
            )
    return found


def _groups(rows: Sequence[AnswerRow]) -> list[list[AnswerRow]]:
    keys = dict.fromkeys((row.task, row.method) for row in rows)
    return [[row for row in rows if (row.task, row.method) == key] for key in keys]


def _summary(rows: Sequence[AnswerRow]) -> Summary:
    grades = [row.grade for row in rows]
    return Summary(
        task=rows[0].task,
        method=rows[0].method,
        num_questions=len(rows),
        num_right=sum(one.is_correct for one in grades),
        num_unanswered=sum(one.given is None for one in grades),
        num_cut=sum(row.finish_reason == "length" for row in rows),
        num_errors=sum(row.error is not None for row in rows),
        prompt_tokens=_mean(row.prompt_tokens for row in rows),
        output_tokens=_mean(row.completion_tokens for row in rows),
        latent_steps=_mean(row.latent_steps for row in rows),
        time_s=_mean(row.time_s for row in rows),
        latency_s=tuple(row.latency_ms / 1000.0 for row in rows if row.error is None),
    )


def _mean(values: Iterable[float]) -> float:
    return float(statistics.fmean(values))


def _ratio(tops: Iterable[float], bottoms: Iterable[float]) -> float | None:
    bottom = sum(bottoms)
    return sum(tops) / bottom if bottom else None
