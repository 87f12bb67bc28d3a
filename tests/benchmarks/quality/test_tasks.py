"""Questions from files and from a seed, and that no prompt gives its answer away."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.grading import Kind
from benchmarks.quality.tasks import (
    DATA_FOLDER,
    Question,
    check_no_leak,
    load_questions,
    question_of,
    task_names,
)
from latentmas_core.errors import ConfigError

GSM8K_ROW = {"question": "What is 9 * 2?", "answer": "It is 9*2=<<9*2=18>>18.\n#### 18"}
MEDQA_ROW = {"id": 7, "question": "Which one?", "options": {"A": "x", "B": "y"}, "answer": "B"}
ARC_ROW = {
    "id": "Mercury_1",
    "question": "Which one?",
    "choices": {"text": ["x", "y"], "label": ["A", "B"]},
    "answerKey": "B",
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, *, n: int, seed: int = 0) -> list[Question]:
    return load_questions(str(path), num_questions=n, seed=seed, data=path.parent)


def test_a_row_of_gsm8k_asks_for_a_number() -> None:
    question = question_of(GSM8K_ROW, task="gsm8k", index=3)
    assert (question.id, question.gold, question.kind) == ("3", "18", Kind.NUMBER)
    assert question.prompt.startswith("What is 9 * 2?\n")


@pytest.mark.parametrize("row", [MEDQA_ROW, ARC_ROW, MEDQA_ROW | {"options": ["x", "y"]}])
def test_a_row_with_options_lists_them_and_asks_for_a_letter(row: dict[str, Any]) -> None:
    question = question_of(row, task="medqa", index=0)
    assert (question.gold, question.kind) == ("B", Kind.LETTER)
    assert "A. x\nB. y\n" in question.prompt


def test_the_letter_counts_where_a_row_has_words_for_an_answer_too() -> None:
    row = MEDQA_ROW | {"answer": "y", "answer_idx": "B", "meta_info": "step1"}
    assert question_of(row, task="medqa", index=0).gold == "B"


def test_a_file_is_called_by_its_name_unless_another_is_called_so() -> None:
    assert task_names(["a/medqa.jsonl", "gsm8k"]) == {"a/medqa.jsonl": "medqa", "gsm8k": "gsm8k"}
    same = ["a/medqa.jsonl", "b/medqa.jsonl"]
    assert task_names(same) == {name: name for name in same}


@pytest.mark.parametrize(
    ("task", "message"),
    [("hub:owner/name", "names no file"), ("hub:owner/name/x.jsonl", "cannot be fetched")],
)
def test_a_file_of_the_hub_that_cannot_be_had_is_refused(task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_questions(task, num_questions=1, seed=0, data=DATA_FOLDER)


def test_options_that_are_numbered_become_letters() -> None:
    row = ARC_ROW | {"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    question = question_of(row, task="arc", index=0)
    assert question.gold == "B"
    assert "A. x\nB. y\n" in question.prompt


def test_an_answer_that_is_none_of_the_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="question 0 of task 'medqa' cannot be read"):
        question_of(MEDQA_ROW | {"answer": "E"}, task="medqa", index=0)


def test_two_questions_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="have the id '7'"):
        load(write_rows(tmp_path / "t.jsonl", [MEDQA_ROW, MEDQA_ROW]), n=2)


def test_line_ends_of_unicode_within_a_question_end_no_row(tmp_path: Path) -> None:
    row = {"question": "one\u2028two\x85three?", "answer": "3"}
    path = tmp_path / "odd.jsonl"
    path.write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\r\n\r\n")
    (question,) = load(path, n=1)
    assert question.prompt.startswith(row["question"])


def test_a_row_with_words_for_an_answer_asks_for_them() -> None:
    row = {"question": "Capital of France?", "answer": "Paris"}
    assert question_of(row, task="mine", index=0).kind is Kind.TEXT


@pytest.mark.parametrize(
    ("row", "other"),
    [
        (GSM8K_ROW, "Quite another way.\n#### 99"),
        (MEDQA_ROW, "A"),
        ({"question": "Capital of France?", "answer": "Paris"}, "London"),
    ],
)
def test_a_prompt_does_not_depend_on_the_gold_answer(row: dict[str, Any], other: str) -> None:
    asked = question_of(row, task="t", index=0)
    asked_otherwise = question_of(row | {"answer": other}, task="t", index=0)
    assert asked.gold != asked_otherwise.gold
    assert asked.prompt == asked_otherwise.prompt


def test_an_open_sum_that_begins_with_its_answer_does_not_state_it(tmp_path: Path) -> None:
    row = {"question": "State the answer to the problem: 3 - 4 - 3 + 2 + 5 =", "answer": "3"}
    path = write_rows(tmp_path / "t.jsonl", [row])
    assert load_questions(str(path), num_questions=1, seed=0, data=tmp_path)[0].gold == "3"


@pytest.mark.parametrize("leak", ["#### 18", "The answer is 18.", "\\boxed{18}", "Answer: 18"])
def test_a_prompt_that_states_its_answer_is_refused(tmp_path: Path, leak: str) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"question": f"9 * 2? {leak}", "answer": "18"}])
    with pytest.raises(ConfigError, match="states its own answer"):
        load(path, n=1)


def test_a_prompt_may_hold_the_gold_number_as_one_of_its_quantities() -> None:
    prompt = "Of 18 eggs half are eaten and 9 laid. How many are there?"
    check_no_leak(Question("1", prompt, "18", Kind.NUMBER), task="t")


def test_a_seed_draws_the_same_questions_again_and_none_twice(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1} for n in range(40)]
    path = write_rows(tmp_path / "t.jsonl", rows)
    drawn = load(path, n=10)
    assert drawn == load(path, n=10)
    assert drawn != load(path, n=10, seed=1)
    assert len({question.id for question in drawn}) == 10


def test_what_cannot_be_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Known are gsm8k"):
        load(tmp_path / "missing.jsonl", n=1)
    with pytest.raises(ConfigError, match="has 1 questions"):
        load(write_rows(tmp_path / "one.jsonl", [GSM8K_ROW]), n=2)
    with pytest.raises(ConfigError, match="needs question and answer"):
        load(write_rows(tmp_path / "bad.jsonl", [{"prompt": "?"}]), n=1)
    with pytest.raises(ConfigError, match="needs question and answer"):
        load(write_rows(tmp_path / "open.jsonl", [{"question": "?"}]), n=1)
    (tmp_path / "text.jsonl").write_text("no JSON\n")
    with pytest.raises(ConfigError, match="is no JSONL"):
        load(tmp_path / "text.jsonl", n=1)


def test_reasoning_gym_makes_the_same_questions_from_a_seed() -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra quality")
    made = [
        load_questions("reasoning-gym:chain_sum", num_questions=5, seed=seed, data=DATA_FOLDER)
        for seed in (0, 0, 1)
    ]
    assert made[0] == made[1] != made[2]
    assert all(question.kind is Kind.NUMBER for question in made[0])
    with pytest.raises(ConfigError, match="has no task 'nothing'"):
        load_questions("reasoning-gym:nothing", num_questions=1, seed=0, data=DATA_FOLDER)


@pytest.mark.parametrize("task", ["gsm8k", "medqa"])
def test_the_data_that_lies_beside_the_project_is_read(task: str) -> None:
    if not DATA_FOLDER.is_dir():
        pytest.skip("there is no folder with data beside the project")
    questions = load_questions(task, num_questions=100, seed=0, data=DATA_FOLDER)
    assert len({question.prompt for question in questions}) == 100
