"""Every question by every method, once; and a run that was killed goes on where it stopped."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.energy import Meter
from benchmarks.quality.grading import Kind
from benchmarks.quality.methods import EngineChoice, Limits, Method
from benchmarks.quality.run_folder import RunFolder
from benchmarks.quality.runner import WARM_UP, Asking, Batch, plan, run_batches
from benchmarks.quality.tasks import Question
from latentmas_core.errors import ConfigError
from tests.benchmarks.quality.scripted_system import KilledError, ScriptedSystem

QUESTIONS = [
    Question(str(n), f"What is {n} + 1?\nBox it.", str(n + 1), Kind.NUMBER) for n in range(5)
]
CONFIG = {"settings": {"n": 5, "model": "scripted"}, "commit": "abc"}
LIMITS = Limits(max_tokens=7, latent_steps=3)


def batches(*methods: str, num_alone: int = 0) -> list[Batch]:
    parsed = [Method.parse(method) for method in methods]
    return list(plan({"sums": QUESTIONS}, parsed, concurrency=2, num_alone=num_alone))


def asking(system: ScriptedSystem, **options: Any) -> Asking:
    return Asking(lambda _: nullcontext(system), LIMITS, lambda *_: None, **options)


async def run(system: ScriptedSystem, folder: RunFolder, *methods: str) -> None:
    await run_batches(batches(*methods), asking(system), folder)


def asked_of(system: ScriptedSystem) -> list[tuple[str, str]]:
    return [(mode, prompt) for mode, prompt, _ in system.asked if prompt != WARM_UP]


def test_methods_take_turns_with_every_few_questions() -> None:
    turns = [
        (batch.method.name, [q.id for q in batch.questions]) for batch in batches("single", "text")
    ]
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
    await run(system, RunFolder.open(tmp_path, CONFIG), "single", "text", "latent")
    prompts = {mode: [p for m, p in asked_of(system) if m == mode] for mode, _ in asked_of(system)}
    assert prompts["single"] == prompts["text"] == prompts["latent"]
    assert prompts["single"] == [question.prompt for question in QUESTIONS]
    limits = [o for _, prompt, o in system.asked if prompt != WARM_UP]
    assert {(o["max_tokens"], o["latent_steps"], o["temperature"]) for o in limits} == {(7, 3, 0.0)}


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


async def test_line_ends_of_unicode_within_an_answer_end_no_row(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    odd = "one\u2028two\u2029three\x85four\r\nfive \\boxed{4}"
    await run(ScriptedSystem({("single", "What is 3 + 1?"): odd}), folder, "single")
    assert [row.output for row in RunFolder.read(tmp_path).answers()][3] == odd


async def test_a_broken_row_among_others_is_named(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    await run(ScriptedSystem({}), folder, "single")
    rows = folder.answers_path.read_text().splitlines(keepends=True)
    folder.answers_path.write_text("".join([rows[0], rows[1][:20] + "\n", *rows[2:]]))
    with pytest.raises(ConfigError, match=r"row 2 of .*answers\.jsonl is no answer"):
        folder.answers()


@pytest.mark.parametrize("other", [{"prompt": "What is 3 + 2?"}, {"gold": "5"}])
async def test_answers_to_other_questions_of_the_same_ids_are_not_gone_on_with(
    tmp_path: Path, other: dict[str, str]
) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    await run(ScriptedSystem({}), folder, "single")
    changed = [q._replace(**other) if q.id == "3" else q for q in QUESTIONS]
    planned = plan({"sums": changed}, [Method.parse("single")], concurrency=2)
    with pytest.raises(ConfigError, match="an answer to another question '3' of sums"):
        await run_batches(planned, asking(ScriptedSystem({})), folder)
    assert len(folder.answers()) == 5


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


async def test_progress_tells_what_is_next_and_counts_what_was_there(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    told: list[tuple[int, int, str]] = []
    for methods in (["single"], ["single", "text"]):
        told.clear()
        asked = Asking(
            lambda _: nullcontext(ScriptedSystem({})), LIMITS, lambda *seen: told.append(seen)
        )
        await run_batches(batches(*methods), asked, folder)
    assert told[0] == (5, 10, "sums, text")
    assert told[-1] == (10, 10, "")


async def test_questions_asked_alone_are_rows_of_their_own(tmp_path: Path) -> None:
    folder, system = RunFolder.open(tmp_path, CONFIG), ScriptedSystem({})
    await run_batches(batches("single", "text", num_alone=2), asking(system), folder)
    rows = folder.answers()
    alone = [(row.question_id, row.method, row.batch_size) for row in rows if row.is_alone]
    assert alone == [("0", "single", 1), ("0", "text", 1), ("1", "single", 1), ("1", "text", 1)]
    assert len(rows) == len({row.key for row in rows}) == 14
    await run_batches(batches("single", "text", num_alone=2), asking(system), folder)
    assert folder.answers() == rows


async def test_what_needs_another_engine_gets_a_system_of_its_own_after_the_others(
    tmp_path: Path,
) -> None:
    opened: list[EngineChoice] = []

    def open_system(engine: EngineChoice) -> AbstractContextManager[ScriptedSystem]:
        opened.append(engine)
        return nullcontext(ScriptedSystem({}))

    folder = RunFolder.open(tmp_path, CONFIG)
    methods = ("latent+realign=off", "latent+transfer_dtype=int8", "latent")
    await run_batches(batches(*methods), Asking(open_system, LIMITS, lambda *_: None), folder)
    assert opened == [EngineChoice(), EngineChoice(False), EngineChoice(True, "int8")]
    asked = [row.method for row in folder.answers()]
    assert asked == [name for name in (methods[2], *methods[:2]) for _ in QUESTIONS]


async def test_adapters_go_to_the_methods_that_are_to_have_them(tmp_path: Path) -> None:
    system = ScriptedSystem({})
    await run_batches(
        batches("text", "text+adapters"),
        asking(system, adapters={"judger": "mine"}),
        RunFolder.open(tmp_path, CONFIG),
    )
    given = [options.get("adapters") for _, prompt, options in system.asked if prompt != WARM_UP]
    assert given.count(None) == given.count({"judger": "mine"}) == 5


async def test_energy_is_shared_by_the_questions_of_a_batch(tmp_path: Path) -> None:
    readings = iter([10.0, 14.0, 20.0, 26.0, 30.0, 31.0])
    folder = RunFolder.open(tmp_path, CONFIG)
    meter = Meter("scripted", lambda: next(readings))
    await run_batches(batches("single"), asking(ScriptedSystem({}), meters=[meter]), folder)
    assert [row.energy_j for row in folder.answers()] == [2.0, 2.0, 3.0, 3.0, 1.0]


async def test_without_a_meter_no_energy_is_told(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    await run(ScriptedSystem({}), folder, "single")
    assert {row.energy_j for row in folder.answers()} == {None}
