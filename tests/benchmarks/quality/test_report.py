"""Figures, tables and plots of answers whose grades are known."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.drawing import HEIGHT, LEFT, RIGHT, TOP, WIDTH
from benchmarks.quality.grading import Kind
from benchmarks.quality.promises import promises
from benchmarks.quality.report import compare_tables, markdown
from benchmarks.quality.run_folder import AgentRow, AnswerRow, RunFolder
from benchmarks.quality.scaling import curves
from benchmarks.quality.summary import pair_methods, summarize
from benchmarks.quality.written_report import write_report

SVG = "{http://www.w3.org/2000/svg}"
OUTPUT_TOKENS = {"single": 20, "text": 80, "latent": 20}
# Of five questions; the gold answer of each is 1.
ANSWERS = {
    "single": ["1", "1", "2", "2", "I cannot say."],
    "text": ["1", "1", "1", "2", "2"],
    "latent": ["1", "2", "1", "1", "1"],
}
CONFIG = {
    "settings": {
        "model": "scripted",
        "device": "cpu",
        "dtype": "float32",
        "concurrency": 1,
        "commit": "abc",
        "limits": {"max_tokens": 7, "latent_steps": 10},
    },
    "energy": [],
    "is_modified": False,
    "machine": {"cpu": "a <fine> one", "gpu": None, "num_cores": 2},
    "versions": {"python": "3.11"},
    "command": "python -m benchmarks.quality --tasks sums",
}


def output_tokens(method: str) -> int:
    return OUTPUT_TOKENS[method.partition("+")[0]]


def make_rows(
    answers: dict[str, list[str]] = ANSWERS, *, is_alone: bool = False
) -> list[AnswerRow]:
    return [
        AnswerRow(
            task="sums",
            question_id=str(index),
            method=method,
            kind=Kind.NUMBER,
            gold="1",
            prompt=f"question {index}",
            output=output,
            agents=(
                AgentRow(
                    name="judger",
                    adapter="base",
                    prompt_tokens=50,
                    completion_tokens=output_tokens(method),
                    latent_steps=0,
                    text=output,
                ),
            ),
            completion_tokens=output_tokens(method),
            latency_ms=100.0 * output_tokens(method),
            batch_s=output_tokens(method) / 10,
            batch_size=1 if is_alone else 2,
            is_alone=is_alone,
        )
        for method, outputs in answers.items()
        for index, output in enumerate(outputs)
    ]


def make_run(path: Path, answers: dict[str, list[str]] = ANSWERS) -> RunFolder:
    folder = RunFolder.open(path, CONFIG)
    folder.append(make_rows(answers))
    return folder


def test_a_method_is_summed_up_by_its_answers() -> None:
    single, text, latent = summarize(make_rows())
    assert [one.num_right for one in (single, text, latent)] == [2, 3, 4]
    assert (single.num_unanswered, text.num_unanswered) == (1, 0)
    assert (text.accuracy, text.output_tokens, text.time_s) == (0.6, 80.0, 4.0)
    assert text.interval.low < 0.6 < text.interval.high


def test_two_methods_are_compared_question_by_question() -> None:
    pairs = {(pair.first, pair.second): pair for pair in pair_methods(make_rows())}
    pair = pairs["text", "latent"]
    counts = (pair.num_both, pair.num_only_first, pair.num_only_second, pair.num_neither)
    assert counts == (2, 1, 2, 0)
    assert pair.difference == pytest.approx(0.2)
    assert (pair.output_ratio, pair.time_ratio) == (0.25, 0.25)
    assert len(pairs) == 3


def test_a_question_that_only_one_method_was_asked_is_left_out_of_their_comparison() -> None:
    rows = make_rows(ANSWERS | {"latent": ["1", "1"]})
    pairs = {(pair.first, pair.second): pair.num_questions for pair in pair_methods(rows)}
    assert pairs["text", "latent"] == 2


def test_the_report_says_everything_in_markdown(tmp_path: Path) -> None:
    write_report(make_run(tmp_path))
    report = (tmp_path / "report.md").read_text()
    assert (
        "| sums | latent | 5 | 80.0% | 37.6% to 96.4% | 20 | 0.25 | 0 | 1.00 s | 0.25 |" in report
    )
    assert (
        "| sums | text | latent | 5 | 2 | 1 | 2 | 0 | +20.0 points | 1.000 | 0.25 | 0.25 |"
        in report
    )
    assert "| sums | text | judger | base | 50 | 80 | 0 |" in report
    assert "| sums | latent | text | decoded tokens | 0.25 | at most 0.30 | yes |" in report
    assert "Commit abc;" in report
    assert "alone |" not in report  # no question was asked alone
    assert "Energy: not told by this device." in report
    plots = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert len(plots) == 4
    for plot in plots:
        ElementTree.parse(tmp_path / plot)


def plots_of_page(folder: Path) -> list[ElementTree.Element]:
    page = (folder / "report.html").read_text()
    return [ElementTree.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page)]


def marks_of(plot: ElementTree.Element) -> list[tuple[float, float]]:
    """Where circles stand, those of the legend left out."""
    circles = plot.findall(f"{SVG}circle")
    places = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in circles]
    return [(x, y) for x, y in places if y < HEIGHT]


def test_the_page_has_sound_plots_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_report(make_run(tmp_path))
    plots = plots_of_page(tmp_path)
    assert [len(marks_of(plot)) for plot in plots] == [3, 3, 3, 0]
    assert all(LEFT <= x <= WIDTH - RIGHT and y >= TOP for x, y in marks_of(plots[0]))
    page = (tmp_path / "report.html").read_text()
    assert "a &lt;fine&gt; one" in page
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_plot_puts_the_better_method_higher_and_the_dearer_one_further_right(
    tmp_path: Path,
) -> None:
    write_report(make_run(tmp_path))
    single, text, latent = marks_of(plots_of_page(tmp_path)[0])
    assert latent[1] < text[1] < single[1]
    assert single[0] == latent[0] < text[0]


def test_methods_that_differ_in_latent_steps_are_drawn_as_a_curve(tmp_path: Path) -> None:
    answers = {
        "text": ["1"] * 5,
        "latent+latent_steps=20": ["1", "1", "2", "2", "2"],
        "latent+latent_steps=0": ["2"] * 5,
        "latent": ["1", "2", "2", "2", "2"],
        "latent+carry=latents": ["1"] * 5,
    }
    (curve,) = curves(summarize(make_rows(answers)), default_steps=10)
    assert curve.name == "latent"
    assert [(steps, one.num_right) for steps, one in curve.points] == [(0, 0), (10, 1), (20, 2)]
    write_report(make_run(tmp_path, answers))
    plots = plots_of_page(tmp_path)
    assert [len(marks_of(plot)) for plot in plots[4:]] == [3, 3, 3]
    heights = [y for _, y in marks_of(plots[4])]
    assert heights == sorted(heights, reverse=True)


def test_times_alone_are_reported_beside_those_at_a_concurrency(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    folder.append(make_rows({name: ["wrong"] for name in ANSWERS}, is_alone=True))
    single, text, _ = summarize(folder.answers())
    assert (text.num_questions, text.num_right, text.time_s) == (5, 3, 4.0)
    assert (single.alone_s, text.alone_s) == ((2.0,), (8.0,))
    whats = {one.what: one.ratio for one in promises(folder.answers())}
    assert whats == {"decoded tokens": 0.25, "time": 0.25, "time alone": 0.25}
    write_report(folder)
    assert "| 4.00 s | 1.00 | 8.00 s | 1.00 | not told |" in (tmp_path / "report.md").read_text()


def test_questions_that_failed_count_as_wrong_and_not_as_savings() -> None:
    failed = {"error": "ContextLengthError: too long", "output": "", "completion_tokens": 0}
    failed |= {"batch_s": 0.0, "agents": ()}
    rows = [
        row.model_copy(update=failed) if row.method == "latent" and row.question_id != "0" else row
        for row in make_rows()
    ]
    latent = summarize(rows)[2]
    assert (latent.num_questions, latent.num_right, latent.num_errors) == (5, 1, 4)
    assert (latent.output_tokens, latent.time_s) == (20.0, 1.0)
    assert {one.what: one.ratio for one in promises(rows)} == {"decoded tokens": 0.25, "time": 0.25}


def test_a_run_in_which_every_question_failed_has_a_report(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, CONFIG)
    failed = {"error": "ContextLengthError: too long", "output": "", "agents": ()}
    folder.append(row.model_copy(update=failed) for row in make_rows())
    write_report(folder)
    assert promises(folder.answers()) == []
    assert "| sums | latent | 5 | 0.0%" in (tmp_path / "report.md").read_text()


def test_a_promise_that_is_not_kept_is_said_to_be_broken() -> None:
    rows = make_rows({"latent": ["1"], "text": ["1"]})
    slow = [
        row.model_copy(update={"batch_s": 100.0}) if row.method == "latent" else row for row in rows
    ]
    assert [(one.what, one.is_kept) for one in promises(slow)] == [
        ("decoded tokens", True),
        ("time", False),
    ]


def test_latent_agents_on_adapters_are_held_against_text_agents_on_them() -> None:
    answers = {name: ["1"] for name in ("text", "text+adapters", "latent", "latent+adapters")}
    against = {one.method: one.against for one in promises(make_rows(answers))}
    assert against == {"latent": "text", "latent+adapters": "text+adapters"}
    del answers["text+adapters"]
    assert {one.against for one in promises(make_rows(answers))} == {"text"}


def test_two_runs_are_compared_method_by_method(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    second = make_run(tmp_path / "b", ANSWERS | {"single": ["1"] * 5})
    text = markdown("Two runs", [], compare_tables(first, second))
    assert "| sums | a: single | b: single | 5 | 2 | 0 | 3 | 0 | +60.0 points | 0.250 |" in text
    assert "| sums | a: text | b: text | 5 | 3 | 0 | 0 | 2 | +0.0 points | 1.000 |" in text


def test_compare_prints_the_comparison_or_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "a")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "+0.0 points" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--temperature", "9", "temperature"),
        ("--methods", "guess", "method 'guess'"),
        ("--methods", "latent+adapters", "needs adapters"),
        ("--alone", "-1", "alone got -1"),
        ("--config", "nowhere.yaml", "nowhere.yaml cannot be read"),
    ],
)
def test_options_that_cannot_be_meant_are_a_sentence(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--tasks", "gsm8k", "--run", str(tmp_path / "run"), option, value]
    assert main(run) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
