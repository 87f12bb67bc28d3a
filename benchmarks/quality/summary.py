"""Figures of a run: per task and method, and of two methods on the same questions."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from benchmarks.quality.run_folder import AnswerRow
from benchmarks.quality.significance import Interval, mcnemar_exact, wilson


@dataclass(frozen=True)
class Summary:
    """What one method did on one task; tokens and times are means per question that was answered.

    ``num_unanswered``: no answer was found in the text; ``num_cut``: it ran into max_tokens.
    ``time_s`` is the share of the batch, ``latency_s`` holds one time per question beside others,
    ``alone_s`` one per question that was asked alone; ``energy_j`` is None where nothing told.
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
    alone_s: tuple[float, ...] = ()
    energy_j: float | None = None

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_questions

    @property
    def interval(self) -> Interval:
        return wilson(self.num_right, self.num_questions)

    @property
    def mean_alone_s(self) -> float | None:
        return _mean_told(self.alone_s)


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
    alone_ratio: float | None = None

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
    """Means per question of one agent; ``adapter`` is what it really ran on."""

    task: str
    method: str
    agent: str
    adapter: str
    prompt_tokens: float
    output_tokens: float
    latent_steps: float


class Key(NamedTuple):
    """A row of the summary."""

    task: str
    method: str


def by_key(rows: Iterable[AnswerRow]) -> dict[Key, list[AnswerRow]]:
    """In the order in which they first came."""
    groups: dict[Key, list[AnswerRow]] = {}
    for row in rows:
        groups.setdefault(Key(row.task, row.method), []).append(row)
    return groups


def summarize(rows: Sequence[AnswerRow]) -> list[Summary]:
    """One per task and method, in the order in which they first came."""
    alone = by_key(row for row in rows if row.is_alone)
    together = by_key(row for row in rows if not row.is_alone)
    return [_summary(group, alone.get(key, [])) for key, group in together.items()]


def pair_methods(rows: Sequence[AnswerRow]) -> list[Paired]:
    """Every two methods of every task that share questions."""
    groups = by_key(rows)
    return [
        pair
        for first, second in combinations(groups, 2)
        if first.task == second.task
        for names in [(first.method, second.method)]
        for pair in [pair_rows(groups[first], groups[second], names=names)]
        if pair is not None
    ]


def pair_rows(
    first: Sequence[AnswerRow], second: Sequence[AnswerRow], *, names: tuple[str, str]
) -> Paired | None:
    """Two lots of answers on the same task; None if no question, word for word, is in both."""
    pairs = _same_questions(first, second, is_alone=False)
    if not pairs:
        return None
    outcomes = [(a.grade.is_correct, b.grade.is_correct) for a, b in pairs]
    return Paired(
        task=first[0].task,
        first=names[0],
        second=names[1],
        num_both=outcomes.count((True, True)),
        num_only_first=outcomes.count((True, False)),
        num_only_second=outcomes.count((False, True)),
        num_neither=outcomes.count((False, False)),
        output_ratio=_ratio(pairs, lambda row: row.completion_tokens),
        time_ratio=_ratio(pairs, lambda row: row.time_s),
        alone_ratio=_ratio(_same_questions(first, second, is_alone=True), lambda row: row.time_s),
    )


def agent_tokens(rows: Sequence[AnswerRow]) -> list[AgentTokens]:
    """One per task, method and agent, over the questions that were answered."""
    found: list[AgentTokens] = []
    for group in by_key(row for row in rows if row.error is None and not row.is_alone).values():
        for name in dict.fromkeys(agent.name for row in group for agent in row.agents):
            did = [agent for row in group for agent in row.agents if agent.name == name]
            found.append(
                AgentTokens(
                    task=group[0].task,
                    method=group[0].method,
                    agent=name,
                    adapter=", ".join(dict.fromkeys(agent.adapter for agent in did)),
                    prompt_tokens=_mean(agent.prompt_tokens for agent in did),
                    output_tokens=_mean(agent.completion_tokens for agent in did),
                    latent_steps=_mean(agent.latent_steps for agent in did),
                )
            )
    return found


def _same_questions(
    first: Sequence[AnswerRow], second: Sequence[AnswerRow], *, is_alone: bool
) -> list[tuple[AnswerRow, AnswerRow]]:
    others = {(row.question_id, row.prompt): row for row in second if row.is_alone is is_alone}
    return [
        (row, others[row.question_id, row.prompt])
        for row in first
        if row.is_alone is is_alone and (row.question_id, row.prompt) in others
    ]


def _summary(rows: Sequence[AnswerRow], alone: Sequence[AnswerRow]) -> Summary:
    grades = [row.grade for row in rows]
    # A question that failed at once cost nothing, which is no saving.
    answered = [row for row in rows if row.error is None] or rows
    return Summary(
        task=rows[0].task,
        method=rows[0].method,
        num_questions=len(rows),
        num_right=sum(one.is_correct for one in grades),
        num_unanswered=sum(one.given is None for one in grades),
        num_cut=sum(row.finish_reason == "length" for row in rows),
        num_errors=sum(row.error is not None for row in rows),
        prompt_tokens=_mean(row.prompt_tokens for row in answered),
        output_tokens=_mean(row.completion_tokens for row in answered),
        latent_steps=_mean(row.latent_steps for row in answered),
        time_s=_mean(row.time_s for row in answered),
        latency_s=tuple(row.latency_ms / 1000.0 for row in rows if row.error is None),
        alone_s=tuple(row.time_s for row in alone if row.error is None),
        energy_j=_mean_told(row.energy_j for row in answered),
    )


def _mean(values: Iterable[float]) -> float:
    return float(statistics.fmean(values))


def _mean_told(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return _mean(told) if told else None


def _ratio(
    pairs: Sequence[tuple[AnswerRow, AnswerRow]], cost: Callable[[AnswerRow], float]
) -> float | None:
    """The second ones' sum over the first ones', of the questions that both answered."""
    answered = [(a, b) for a, b in pairs if a.error is None and b.error is None]
    bottom = sum(cost(first) for first, _ in answered)
    return sum(cost(second) for _, second in answered) / bottom if bottom else None
