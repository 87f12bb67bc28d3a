"""Asks every question by every method and keeps what comes back. Knows no grades."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from benchmarks.quality.methods import Limits, request_options
from benchmarks.quality.run_folder import AgentRow, AnswerKey, AnswerRow, RunFolder
from benchmarks.quality.tasks import Question
from latentmas_core.errors import LatentMASError
from latentmas_core.result import Result

WARM_UP = "What is 1 + 1?"


class System(Protocol):
    """What is measured: LatentMASSystem, or a stand-in of it."""

    async def arun(self, question: str, **options: Any) -> Result: ...


class Batch(NamedTuple):
    """Questions that are asked at the same time by one method."""

    task: str
    method: str
    questions: Sequence[Question]


def plan(
    tasks: Mapping[str, Sequence[Question]], methods: Sequence[str], *, concurrency: int
) -> Iterator[Batch]:
    """All methods take their turn with each few questions, so that none has the quieter hours."""
    for task, questions in tasks.items():
        for start in range(0, len(questions), concurrency):
            for method in methods:
                yield Batch(task, method, questions[start : start + concurrency])


async def run_batches(
    system: System,
    batches: Sequence[Batch],
    limits: Limits,
    folder: RunFolder,
    report_progress: Callable[[int, int], None],
) -> None:
    """Ask what the folder has no answer to, and append the answers batch by batch.

    ``report_progress`` hears how many answers there are, and how many there will be.
    """
    done = {row.key for row in folder.answers()}
    num_all = sum(len(batch.questions) for batch in batches)
    wanted = [_without(batch, done) for batch in batches]
    num_done = num_all - sum(len(batch.questions) for batch in wanted)
    for method in dict.fromkeys(batch.method for batch in wanted if batch.questions):
        await system.arun(WARM_UP, **request_options(method, limits) | {"max_tokens": 1})
    for batch in wanted:
        if batch.questions:
            folder.append(await _ask(system, batch, limits))
            num_done += len(batch.questions)
            report_progress(num_done, num_all)


def _without(batch: Batch, done: set[AnswerKey]) -> Batch:
    left = [q for q in batch.questions if AnswerKey(batch.task, q.id, batch.method) not in done]
    return batch._replace(questions=left)


async def _ask(system: System, batch: Batch, limits: Limits) -> list[AnswerRow]:
    options = request_options(batch.method, limits)
    began_at = time.perf_counter()
    outcomes = await asyncio.gather(
        *(_answer(system, question.prompt, options) for question in batch.questions)
    )
    batch_s = time.perf_counter() - began_at
    return [
        _row(batch, question, outcome, batch_s)
        for question, outcome in zip(batch.questions, outcomes, strict=True)
    ]


async def _answer(
    system: System, prompt: str, options: Mapping[str, Any]
) -> Result | LatentMASError:
    """An error of one question, such as a prompt that does not fit, is its answer."""
    try:
        return await system.arun(prompt, **options)
    except LatentMASError as error:
        return error


def _row(
    batch: Batch, question: Question, outcome: Result | LatentMASError, batch_s: float
) -> AnswerRow:
    asked = {
        "task": batch.task,
        "method": batch.method,
        "question_id": question.id,
        "kind": question.kind,
        "gold": question.gold,
        "prompt": question.prompt,
        "batch_s": batch_s,
        "batch_size": len(batch.questions),
    }
    if isinstance(outcome, LatentMASError):
        return AnswerRow(**asked, output="", error=f"{type(outcome).__name__}: {outcome.message}")
    fields = AgentRow.model_fields
    return AnswerRow(
        **asked,
        output=outcome.final_answer,
        finish_reason=outcome.finish_reason,
        agents=tuple(
            AgentRow(**{name: getattr(agent, name) for name in fields}) for agent in outcome.agents
        ),
        latency_ms=outcome.latency_ms,
        **outcome.usage.model_dump(),
    )
