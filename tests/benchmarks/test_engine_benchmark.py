"""The whole benchmark as it is called, on a tiny model: what it reports, never how quick it is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.engine import main
from tests.factories import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "one_request",
    "many_requests",
    "single_static",
    "single_fitted",
    "single_fitted_without_start",
    "single_default",
    "step_engine",
    "step_bare",
    "modes_tokens",
    "modes_time",
    "modes_time_naive",
    "text_mode",
]

pytestmark = [pytest.mark.bench, pytest.mark.slow]


class Ran(NamedTuple):
    report: dict[str, Any]
    table: str

    def find(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.report["measurements"] if one["name"] == name]
        return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("bench")
    # A byte is a token, so prompts are long.
    model = make_tiny_model(folder / "model", "qwen2", max_position_embeddings=8192)
    report = folder / "report.json"
    command = [sys.executable, "-m", "benchmarks.engine", "--quick", "--dtype", "float32"]
    command += ["--threads", "1", "--model", str(model), "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Ran(json.loads(report.read_text()), done.stdout)


def test_the_report_says_where_and_with_what_it_was_taken(ran: Ran) -> None:
    report = ran.report
    assert report["machine"]["cpu"]
    assert report["machine"]["num_cores"] >= 1
    assert report["machine"]["gpu"] is None
    assert set(report["versions"]) == {"python", "torch", "transformers", "latentmas"}
    assert "-m benchmarks.engine --quick" in report["command"]
    assert (report["num_threads"], report["num_rounds"]) == (1, 1)
    assert "commit" in report


def test_every_measurement_is_taken_with_figures_of_every_round(ran: Ran) -> None:
    assert [one["name"] for one in ran.report["measurements"]] == NAMES
    for one in ran.report["measurements"]:
        if one["name"] == "single_default":
            assert "pool" in one["reason"]
            continue
        assert one["ratio"] == pytest.approx(one["ours"]["median"] / one["baseline"]["median"])
        for side in (one["ours"], one["baseline"]):
            assert len(side["rounds"]) == 1
            assert side["median"] > 0
        assert one["foreign_cores"] >= 0


def test_bars_are_those_of_the_issue(ran: Ran) -> None:
    bars = {
        one["name"]: (one["bar"]["comparison"], one["bar"]["limit"])
        for one in ran.report["measurements"]
        if one.get("bar")
    }
    assert bars == {
        "one_request": ("<=", 0.6),
        "many_requests": (">=", 5.0),
        "single_static": (">=", 1.4),
        "single_fitted": (">=", 3.0),
        "single_fitted_without_start": (">=", 3.0),
        "step_engine": ("<=", 0.6),
        "step_bare": ("<=", 0.6),
        "modes_tokens": ("<=", 0.3),
        "modes_time": ("<=", 0.35),
    }


@pytest.mark.parametrize(
    ("name", "num_answers"),
    [
        ("one_request", 1),
        ("many_requests", 4),
        ("single_static", 16),
        ("single_fitted", 16),
        ("text_mode", 4),
    ],
)
def test_both_sides_wrote_the_same_tokens(ran: Ran, name: str, num_answers: int) -> None:
    agreement = ran.find(name)["agreement"]
    assert agreement["num_answers"] == agreement["num_identical"] == num_answers


def test_latent_mode_decodes_one_answer_and_text_mode_four(ran: Ran) -> None:
    tokens = ran.find("modes_tokens")
    assert tokens["ours"]["rounds"] == [128]
    assert tokens["baseline"]["rounds"] == [512]


def test_the_table_has_a_line_for_every_measurement(ran: Ran) -> None:
    lines = ran.table.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("what "))
    assert len(lines[start + 1 : lines.index("", start)]) == len(NAMES)


@pytest.mark.parametrize(
    "arguments", [["--model", "random:no"], ["--rounds", "0"], ["--only", "naps"]]
)
def test_options_that_cannot_be_meant_end_the_program(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
