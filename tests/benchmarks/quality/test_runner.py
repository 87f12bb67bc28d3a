"""Every question by every method, once; and a run that was killed goes on where it stopped."""

from pathlib import Path

import pytest

from benchmarks.quality.grading import Kind
from benchmarks.quality.methods import Limits
from benchmarks.quality.run_folder import RunFolder
from benchmarks.quality.runner import WARM_UP, Batch, plan, run_batches
from benchmarks.quality.tasks import Question
from latentmas_core.errors import ConfigError
from tests.benchmarks.quality.scripted_system import KilledError, ScriptedSystem

QUESTIONS = [
    Question(str(n), f"What is {n} + 1?\nBox it.", str(n + 1), Kind.NUMBER) for n in range(5)
]
CONFIG = {"settings": {"n": 5, "model": "scripted"}, "commit": "abc"}
LIMITS = Limits(max_tokens=7, latent_steps=3)


def batches(*methods: str) -> list[Batch]:
    return list(plan({"sums": QUESTIONS}, methods, concurrency=2))


async def run(system: ScriptedSystem, folder: RunFolder, *methods: str) -> list[tuple[int, int]]:
    progress: list[tuple[int, int]] = []
    await run_batches(
        system, batches(*methods), LIMITS, folder, lambda *counts: progress.append(counts)
    )
    return progress


def asked_of(system: ScriptedSystem) -> list[tuple[str, str]]:
    return [(mode, prompt) for mode, prompt, _ in system.asked if prompt != WARM_UP]


def test_methods_take_turns_with_every_few_questions() -> None:
    turns = [(batch.method, [q.id for q in batch.questions]) for batch in batches("single", "text")]
    assert turns == [
        ("single", ["0", "1"]),
        ("text", ["0", "1"]),
        ("single", ["2", "3"]),
        ("text", ["2", "3"]),
        ("single", ["4"]),
        ("text", ["4"]),
    ]


async def test_every_method_is_asked_the_same_prompts_under_the_same_limits(tmp_path: Path) -> None:
    system = ScriptedSystem({})
    progress = await run(system, RunFolder.open(tmp_path, CONFIG), "single", "text", "latent")
    prompts = {mode: [p for m, p in asked_of(system) if m == mode] for mode, _ in asked_of(system)}
    assert prompts["single"] == prompts["text"] == prompts["latent"]
    assert prompts["single"] == [question.prompt for question in QUESTIONS]
    limits = [o for _, prompt, o in system.asked if prompt != WARM_UP]
    assert {(o["max_tokens"], o["latent_steps"], o["temperature"]) for o in limits} == {(7, 3, 0.0)}
    assert progress[-1] == (15, 15)


async def test_the_raw_output_is_kept_and_graded_when_it_is_read(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    await run(ScriptedSystem({("single", "What is 3 + 1?"): "It is \\boxed{4}."}), folder, "single")
    rows = RunFolder.read(tmp_path).answers()
    assert [row.question_id for row in rows if row.grade.is_correct] == ["3"]
    assert rows[3].output == "It is \\boxed{4}."
    assert (rows[3].completion_tokens, rows[3].agents[0].name) == (20, "judger")


async def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    killed = ScriptedSystem({}, dies_after=2 + 5)  # two to warm up
    with pytest.raises(KilledError):
        await run(killed, RunFolder.open(tmp_path, CONFIG), "single", "text")
    kept = RunFolder.read(tmp_path).answers()
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"task": "sums", "questi')  # the row that was being written
    system = ScriptedSystem({})
    await run(system, RunFolder.open(tmp_path, CONFIG), "single", "text")
    rows = RunFolder.read(tmp_path).answers()
    assert len(kept) == 4
    assert rows[:4] == kept
    assert len({row.key for row in rows}) == len(rows) == 10
    assert len(asked_of(system)) == 6


async def test_a_run_that_is_complete_asks_nothing_at_all(tmp_path: Path) -> None:
    await run(ScriptedSystem({}), RunFolder.open(tmp_path, CONFIG), "single")
    system = ScriptedSystem({})
    await run(system, RunFolder.open(tmp_path, CONFIG), "single")
    assert system.asked == []


async def test_a_question_that_fails_is_kept_as_a_wrong_answer(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    await run(ScriptedSystem({}, fails_at="3 + 1"), folder, "single")
    failed = [row for row in folder.answers() if row.error]
    assert [row.question_id for row in failed] == ["3"]
    assert failed[0].error == "ContextLengthError: the prompt has 9 tokens; 8 fit. Shorten it."
    assert not failed[0].grade.is_correct


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match="is a run with n 5, not 6"):
        RunFolder.open(tmp_path, {"settings": {"n": 6, "model": "scripted"}})
    with pytest.raises(ConfigError, match="is no folder of a run"):
        RunFolder.read(tmp_path / "missing")


async def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method 'guess' does not exist"):
        await run(ScriptedSystem({}), RunFolder.open(tmp_path, CONFIG), "guess")
