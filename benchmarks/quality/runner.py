"""Asks every question by every method and keeps what comes back. Knows no grades."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from benchmarks.quality.energy import Meter
from benchmarks.quality.methods import EngineChoice, Limits, Method, request_options
from benchmarks.quality.run_folder import AgentRow, AnswerKey, AnswerRow, RunFolder
from benchmarks.quality.tasks import Question
from latentmas_core.errors import ConfigError, LatentMASError
from latentmas_core.result import Result

WARM_UP = "What is 1 + 1?"


class System(Protocol):
    """What is measured: LatentMASSystem, or a stand-in of it."""

    async def arun(self, question: str, **options: Any) -> Result: ...


class Batch(NamedTuple):
    """Questions that are asked at the same time by one method; ``is_alone``: one, for its time."""

    task: str
    method: Method
    questions: Sequence[Question]
    is_alone: bool = False

    def by_key(self) -> dict[AnswerKey, Question]:
        method = self.method.name
        return {AnswerKey(self.task, q.id, method, self.is_alone): q for q in self.questions}

    def without(self, done: set[AnswerKey]) -> "Batch":
        """What is left of it."""
        left = [question for key, question in self.by_key().items() if key not in done]
        return self._replace(questions=left)


@dataclass(frozen=True)
class Asking:
    """Under what limits questions are asked, and who is to know of it.

    ``open_system`` makes what is measured on such an engine, with ``adapters``, names by agent.
    ``report_progress`` hears how many answers there are, how many there will be, and what is next.
    """

    open_system: Callable[[EngineChoice], AbstractContextManager[System]]
    limits: Limits
    report_progress: Callable[[int, int, str], None]
    adapters: Mapping[str, str] = field(default_factory=dict)
    meters: Sequence[Meter] = ()

    def options_of(self, method: Method) -> dict[str, Any]:
        return request_options(method, self.limits, self.adapters)


def plan(
    tasks: Mapping[str, Sequence[Question]],
    methods: Sequence[Method],
    *,
    concurrency: int,
    num_alone: int = 0,
) -> Iterator[Batch]:
    """All methods take their turn with each few questions, so that none has the quieter hours.

    The first ``num_alone`` questions of each task are then asked once more, one at a time. Methods
    that need an engine of their own come when the others are done.
    """
    for engine in _engines_of(methods):
        turns = [method for method in methods if method.engine == engine]
        for task, questions in tasks.items():
            for start in range(0, len(questions), concurrency):
                for method in turns:
                    yield Batch(task, method, questions[start : start + concurrency])
            for question in questions[:num_alone]:
                for method in turns:
                    yield Batch(task, method, [question], is_alone=True)


def _engines_of(methods: Sequence[Method]) -> list[EngineChoice]:
    """The usual one first, which most methods run on."""
    usual = EngineChoice()
    return sorted({method.engine for method in methods}, key=lambda one: (one != usual, one))


async def run_batches(batches: Iterable[Batch], asking: Asking, folder: RunFolder) -> None:
    """Ask what the folder has no answer to, and append the answers batch by batch.

    Raises ConfigError if the folder has answers to other questions under the same ids.
    """
    planned = list(batches)
    done = _done(folder, planned)
    left = [batch.without(done) for batch in planned]
    num_all, num_left = (sum(len(one.questions) for one in lot) for lot in (planned, left))
    waiting = [one for one in left if one.questions]
    for engine in _engines_of([one.method for one in waiting]):
        turns = [one for one in waiting if one.method.engine == engine]
        with asking.open_system(engine) as system:
            await _warm_up(system, turns, asking)
            for batch in turns:
                asking.report_progress(num_all - num_left, num_all, _title(batch))
                folder.append(await _ask(system, batch, asking))
                num_left -= len(batch.questions)
    asking.report_progress(num_all, num_all, "")


def _done(folder: RunFolder, planned: Sequence[Batch]) -> set[AnswerKey]:
    """What has an answer already; the same ids may be of other questions by now."""
    questions = {key: question for batch in planned for key, question in batch.by_key().items()}
    done = set()
    for row in folder.answers():
        asked = questions.get(row.key)
        if asked is not None and (asked.prompt, asked.gold) != (row.prompt, row.gold):
            raise ConfigError(
                f"{folder.path} has an answer to another question {row.question_id!r} of "
                f"{row.task} than the one that is to be asked. Give another --run folder, or the "
                "same questions.",
                param="run",
            )
        done.add(row.key)
    return done


async def _warm_up(system: System, batches: Sequence[Batch], asking: Asking) -> None:
    for method in {batch.method.name: batch.method for batch in batches}.values():
        await system.arun(WARM_UP, **asking.options_of(method) | {"max_tokens": 1})


def _title(batch: Batch) -> str:
    return f"{batch.task}, {batch.method.name}{', alone' if batch.is_alone else ''}"


async def _ask(system: System, batch: Batch, asking: Asking) -> list[AnswerRow]:
    options = asking.options_of(batch.method)
    began_j = [meter.read_j() for meter in asking.meters]
    began_at = time.perf_counter()
    outcomes = await asyncio.gather(
        *(_answer(system, question.prompt, options) for question in batch.questions)
    )
    measured: dict[str, float] = {"batch_s": time.perf_counter() - began_at}
    if asking.meters:
        spent = [m.spent_j(since) for m, since in zip(asking.meters, began_j, strict=True)]
        measured["batch_j"] = sum(spent)
    return [
        _row(batch, question, outcome, measured)
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
    batch: Batch,
    question: Question,
    outcome: Result | LatentMASError,
    measured: Mapping[str, float],
) -> AnswerRow:
    asked: dict[str, Any] = {
        "task": batch.task,
        "method": batch.method.name,
        "question_id": question.id,
        "kind": question.kind,
        "gold": question.gold,
        "prompt": question.prompt,
        "batch_size": len(batch.questions),
        "is_alone": batch.is_alone,
        **measured,
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
