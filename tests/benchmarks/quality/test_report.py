"""Figures, tables and plots of answers whose grades are known."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.quality.__main__ import main, write_report
from benchmarks.quality.grading import Kind
from benchmarks.quality.report import compare_tables, markdown
from benchmarks.quality.run_folder import AgentRow, AnswerRow, RunFolder
from benchmarks.quality.summary import pair_methods, summarize

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
        "limits": {"max_tokens": 7},
    },
    "is_modified": False,
    "machine": {"cpu": "a <fine> one", "gpu": None, "num_cores": 2},
    "versions": {"python": "3.11"},
    "command": "python -m benchmarks.quality --tasks sums",
}


def make_rows(answers: dict[str, list[str]] = ANSWERS) -> list[AnswerRow]:
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
                    prompt_tokens=50,
                    completion_tokens=OUTPUT_TOKENS[method],
                    latent_steps=0,
                    text=output,
                ),
            ),
            completion_tokens=OUTPUT_TOKENS[method],
            latency_ms=100.0 * OUTPUT_TOKENS[method],
            batch_s=OUTPUT_TOKENS[method] / 10,
            batch_size=2,
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
    assert "| sums | latent | 5 | 4 | 80.0% | 37.6% to 96.4% |" in report
    assert (
        "| sums | text | latent | 5 | 2 | 1 | 2 | 0 | +20.0 points | 1.000 | 0.25 | 0.25 |"
        in report
    )
    assert "| sums | text | judger | 50 | 80 | 0 |" in report
    assert "Commit abc;" in report


def test_the_page_has_three_sound_plots_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_report(make_run(tmp_path))
    page = (tmp_path / "report.html").read_text()
    plots = [ElementTree.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page)]
    assert len(plots) == 3
    assert [len(plot.findall("circle")) for plot in plots] == [3, 3, 0]
    assert "a &lt;fine&gt; one" in page
    assert "http" not in page
    for circle in plots[0].findall("circle"):
        assert 0 < float(circle.attrib["cx"]) < 460
        assert 0 < float(circle.attrib["cy"]) < 300


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
    [("--temperature", "9", "temperature"), ("--methods", "guess", "method 'guess'")],
)
def test_options_that_cannot_be_meant_are_a_sentence(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--tasks", "gsm8k", "--run", str(tmp_path / "run"), option, value]
    assert main(run) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_asks_a_model_and_ends_in_a_report(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "sums.jsonl"
    questions.write_text(
        '{"question": "1 + 1?", "answer": 2}\n{"question": "2 + 2?", "answer": 4}\n'
    )
    command = ["--tasks", str(questions), "--n", "2", "--model", str(tiny_llama), "--device", "cpu"]
    command += ["--methods", "single,text,latent,latent-embeddings", "--max-tokens", "4"]
    command += ["--latent-steps", "2", "--threads", str(torch.get_num_threads())]
    command += ["--run", str(tmp_path / "run")]
    assert main(command) == 0
    rows = RunFolder.read(tmp_path / "run").answers()
    assert len(rows) == 8
    tokens = {row.method: (len(row.agents), row.latent_steps) for row in rows}
    assert tokens == {
        "single": (1, 0),
        "text": (4, 0),
        "latent": (4, 6),
        "latent-embeddings": (4, 6),
    }
    assert all(row.error is None for row in rows)
    assert (tmp_path / "run" / "report.html").exists()
    assert "8 of 8 answers" in capsys.readouterr().err
    assert main(command) == 0
    assert RunFolder.read(tmp_path / "run").answers() == rows
