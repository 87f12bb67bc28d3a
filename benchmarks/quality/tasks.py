"""Questions with their gold answers, and the prompts that ask them. Knows no model.

A prompt is built from the question alone: the builders never see the gold answer.
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.quality.claims import last_boxed, last_marked
from benchmarks.quality.grading import Kind, gold_number, grade
from benchmarks.quality.hub_data import hub_file
from latentmas_core.errors import ConfigError

GYM_PREFIX = "reasoning-gym:"
HUB_PREFIX = "hub:"
DATA_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
_ASK_FOR = {
    Kind.NUMBER: "Give the final answer as a number in \\boxed{}.",
    Kind.LETTER: "Give the letter of the right option in \\boxed{}.",
    Kind.TEXT: "Give the final answer, and nothing else, in \\boxed{}.",
}


class Question(NamedTuple):
    """``prompt`` is all that a model is shown; ``gold`` is for the grader."""

    id: str
    prompt: str
    gold: str
    kind: Kind


LETTERS = "ABCDEFGHIJ"
# The file of each in the data folder.
NAMED_TASKS = {"gsm8k": "gsm8k_dev.jsonl", "medqa": "medqa_dev.jsonl", "arc": "arc_dev.jsonl"}


def load_questions(task: str, *, num_questions: int, seed: int, data: Path) -> list[Question]:
    """The same questions for the same seed: of ``reasoning-gym:NAME``, a name, or a JSONL file,
    here or on the hub (``hub:OWNER/NAME/FILE``).

    Raises ConfigError for an unknown task, for a file that cannot be read or has too few questions,
    and for a prompt that states its own answer.
    """
    if task.startswith(GYM_PREFIX):
        from benchmarks.quality.gym import gym_rows  # an extra

        rows = gym_rows(task.removeprefix(GYM_PREFIX), num_questions=num_questions, seed=seed)
    else:
        rows = _drawn(_read_rows(_path_of(task, data), task), num_questions, seed, task)
    questions = [question_of(row, task=task, index=index) for index, row in rows]
    _check_ids(questions, task)
    for question in questions:
        check_no_leak(question, task=task)
    return questions


def task_names(tasks: Sequence[str]) -> dict[str, str]:
    """What a report calls each: a file by its name alone, unless another one is the same."""
    names = {task: Path(task).stem if task.endswith(".jsonl") else task for task in tasks}
    shared = {name for name, count in Counter(names.values()).items() if count > 1}
    return {task: task if name in shared else name for task, name in names.items()}


def question_of(row: Mapping[str, Any], *, task: str, index: int) -> Question:
    """A row of GSM8K, MedQA, ARC, or a user's file (``question``, ``answer``, perhaps ``options``).

    ``options`` are a mapping of letters to words, a list of words, or ARC's ``choices``.
    """
    try:
        text, options = str(row["question"]).strip(), _options_of(row)
        answer = _answer_of(row, has_options=bool(options))
        kind = Kind(row["kind"]) if "kind" in row else _kind_of(answer, options)
        gold = _letter_of(answer, options) if options else _gold_of(answer, kind)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"question {index} of task {task!r} cannot be read ({error!r}). It needs question and "
            f"answer, may have options and a kind of {', '.join(Kind)}.",
            param="tasks",
        ) from None
    listed = {letter: words for letter, (_, words) in zip(LETTERS, options, strict=False)}
    return Question(str(row.get("id", index)), prompt_of(text, listed, kind), gold, kind)


def prompt_of(question: str, options: Mapping[str, str], kind: Kind) -> str:
    """Question, options, and how to answer."""
    listed = [f"{letter}. {words}" for letter, words in options.items()]
    return "\n".join([question, *listed, "", _ASK_FOR[kind]])


def check_no_leak(question: Question, *, task: str) -> None:
    """ConfigError if the prompt states the gold answer as a reader would find it in an answer.

    What ends in an equals sign ("the answer to the problem: 3 - 4 + 4 =") asks for it.
    """
    stated = [claim for claim in (last_boxed(question.prompt),) if claim]
    stated += [claim for claim in last_marked(question.prompt) if not claim.endswith("=")]
    if any(grade(f"#### {claim}", question.gold, question.kind).is_correct for claim in stated):
        raise ConfigError(
            f"question {question.id!r} of task {task!r} states its own answer, {question.gold!r}. "
            "Take it out of the question.",
            param="tasks",
        )


def _check_ids(questions: Sequence[Question], task: str) -> None:
    """An answer is kept under its question's id."""
    name, count = Counter(question.id for question in questions).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"{count} questions of task {task!r} have the id {name!r}. Give each one of its own.",
            param="tasks",
        )


def _path_of(task: str, data: Path) -> Path:
    if task.startswith(HUB_PREFIX):
        return hub_file(task.removeprefix(HUB_PREFIX))
    path = data / NAMED_TASKS[task] if task in NAMED_TASKS else Path(task)
    if path.is_file():
        return path
    raise ConfigError(
        f"task {task!r} has no file {path}. Known are {', '.join(NAMED_TASKS)} (in --data), "
        f"{GYM_PREFIX}NAME, {HUB_PREFIX}OWNER/NAME/FILE, and the path of a JSONL file.",
        param="tasks",
    )


def _read_rows(path: Path, task: str) -> list[dict[str, Any]]:
    # Not splitlines of a text: some of the line ends that it knows stand in JSON as they are.
    lines = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:  # no JSON, or no UTF-8
        raise ConfigError(
            f"task {task!r}: {path} is no JSONL ({error}). Write one JSON object per line.",
            param="tasks",
        ) from None


def _drawn(
    rows: list[dict[str, Any]], num_questions: int, seed: int, task: str
) -> list[tuple[int, dict[str, Any]]]:
    """Rows with their index in the file, drawn without putting any back."""
    if num_questions > len(rows):
        raise ConfigError(
            f"n is {num_questions}; task {task!r} has {len(rows)} questions. Lower n.", param="n"
        )
    chosen = random.Random(seed).sample(range(len(rows)), num_questions)
    return [(index, rows[index]) for index in chosen]


def _options_of(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Labels of the file and words; what is shown are the letters from A on, in this order."""
    options = row.get("options", row.get("choices", []))
    if isinstance(options, Mapping) and "label" in options:  # as ARC has them, some with 1 to 4
        options = dict(zip(options["label"], options["text"], strict=True))
    elif not isinstance(options, Mapping):
        options = dict(zip(LETTERS[: len(options)], options, strict=True))
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options; at most {len(LETTERS)} have letters")
    return [(str(label), str(words)) for label, words in options.items()]


def _answer_of(row: Mapping[str, Any], *, has_options: bool) -> Any:
    """Some data sets of MedQA have the words as the answer, and the letter beside it."""
    if has_options and "answer_idx" in row:
        return row["answer_idx"]
    return row["answer"] if "answer" in row else row["answerKey"]


def _letter_of(answer: object, options: Sequence[tuple[str, str]]) -> str:
    labels = [label for label, _ in options]
    return LETTERS[labels.index(str(answer).strip())]


def _kind_of(answer: object, options: Sequence[tuple[str, str]]) -> Kind:
    if options:
        return Kind.LETTER
    try:
        gold_number(_gold_of(answer, Kind.NUMBER))
    except ConfigError:
        return Kind.TEXT
    return Kind.NUMBER


def _gold_of(answer: object, kind: Kind) -> str:
    """GSM8K ends its worked solutions with ``#### N``."""
    text = str(answer)
    return text.rpartition("####")[2].strip() if kind is Kind.NUMBER else text.strip()
