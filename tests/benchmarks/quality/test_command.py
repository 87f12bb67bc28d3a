"""The whole command on a tiny model: what it asks, keeps, prints and resumes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.machine import ROOT
from benchmarks.quality.__main__ import main
from benchmarks.quality.run_folder import AnswerRow, RunFolder, only_writer
from tests.lora.adapters import make_adapter

HEADLINE = ROOT / "configs" / "headline.yaml"


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [{"question": f"{n} + {n}?", "answer": 2 * n} for n in (1, 2)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny(model: Path, run: Path) -> list[str]:
    options = ["--model", str(model), "--device", "cpu", "--dtype", "float32", "--run", str(run)]
    few = ["--max-tokens", "4", "--latent-steps", "2"]
    return [*options, *few, "--threads", str(torch.get_num_threads())]


def test_the_command_asks_a_model_and_ends_in_a_report(
    tmp_path: Path, tiny_llama: Path, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--tasks",
        str(sums),
        "--n",
        "2",
        "--alone",
        "1",
        *tiny(tiny_llama, tmp_path / "run"),
    ]
    command += ["--methods", "single,text,latent,latent-embeddings"]
    assert main(command) == 0
    rows = RunFolder.read(tmp_path / "run").answers()
    assert len(rows) == 12
    tokens = {row.method: (len(row.agents), row.latent_steps) for row in rows}
    assert tokens == {
        "single": (1, 0),
        "text": (4, 0),
        "latent": (4, 6),
        "latent-embeddings": (4, 6),
    }
    assert all(row.error is None for row in rows)
    assert (tmp_path / "run" / "report.html").exists()
    told = capsys.readouterr()
    assert "12 of 12 answers" in told.err
    assert "| sums | latent | 2 |" in told.out
    assert main(command) == 0
    assert RunFolder.read(tmp_path / "run").answers() == rows


def test_the_headline_configuration_runs_on_another_model_file_and_adapter(
    tmp_path: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": 0, "question": "Which one?", "options": {"A": "this", "B": "that"}, "answer": "A"}
    (tmp_path / "medqa_dev.jsonl").write_text(json.dumps(row) + "\n")
    adapter = make_adapter(tmp_path / "mine", tiny_qwen2)
    command = ["--config", str(HEADLINE), *tiny(tiny_qwen2, tmp_path / "run")]
    command += ["--tasks", "medqa", "--data", str(tmp_path), "--n", "1", "--alone", "0"]
    command += ["--adapters", f"judger={adapter}"]
    assert main(command) == 0
    rows = {row.method: row for row in RunFolder.read(tmp_path / "run").answers()}
    assert {"single", "text", "latent+adapters"} <= set(rows)
    used = {name: [agent.adapter for agent in row.agents] for name, row in rows.items()}
    assert used["latent"] == ["base"] * 4
    assert used["latent+adapters"] == ["base", "base", "base", "mine"]
    assert rows["latent+adapters"].agents[3].adapter_digest is not None
    assert "| medqa | latent+adapters | 1 |" in capsys.readouterr().out


def test_the_headline_is_about_a_hundred_questions_and_one_model() -> None:
    content = yaml.safe_load(HEADLINE.read_text())
    assert (content["model"], content["n"]) == ("Qwen/Qwen2.5-3B-Instruct", 100)
    assert set(content["adapters"].values()) == {"medical_reasoner"}


def test_what_is_swept_reaches_the_engine(tmp_path: Path, tiny_qwen2: Path, sums: Path) -> None:
    command = ["--tasks", str(sums), "--n", "1", *tiny(tiny_qwen2, tmp_path / "run")]
    command += ["--methods", "latent+merge=consecutive,latent-embeddings"]
    command += ["--pipeline", "parallel"]
    command += ["--sweep", "latent_steps=1,3", "--sweep", "realign=on,off"]
    assert main(command) == 0
    rows = RunFolder.read(tmp_path / "run").answers()
    assert len({row.method for row in rows}) == len(rows) == 8
    assert {row.error for row in rows} == {None}
    assert {row.latent_steps for row in rows} == {3, 9}
    said = {row.method: row.output for row in rows}
    on = [name for name in said if name.endswith("realign=on")]
    assert any(said[name] != said[name.replace("realign=on", "realign=off")] for name in on)


def test_hand_offs_what_is_carried_and_8_bits_can_be_swept(
    tmp_path: Path, tiny_qwen2: Path, sums: Path
) -> None:
    def swept(name: str, *sweeps: str) -> dict[str, AnswerRow]:
        run = tmp_path / name
        command = ["--tasks", str(sums), "--n", "1", *tiny(tiny_qwen2, run), "--methods", "latent"]
        command += [part for sweep in sweeps for part in ("--sweep", sweep)]
        assert main(command) == 0
        rows = RunFolder.read(run).answers()
        assert {row.error for row in rows} == {None}
        return {row.method.removeprefix("latent+"): row for row in rows}

    rows = swept("kinds", "handoff=kv,embeddings,text", "carry=all,latents")
    assert len(rows) == 6
    wrote = {name for name, row in rows.items() if any(agent.text for agent in row.agents[:-1])}
    assert wrote == {"handoff=text+carry=all", "handoff=text+carry=latents"}
    assert rows["handoff=kv+carry=all"].output != rows["handoff=kv+carry=latents"].output
    assert set(swept("bits", "transfer_dtype=model,int8")) == {
        "transfer_dtype=model",
        "transfer_dtype=int8",
    }


def test_a_folder_that_another_process_writes_to_is_left_to_it(
    tmp_path: Path, tiny_llama: Path, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ["--tasks", str(sums), "--n", "1", *tiny(tiny_llama, run), "--methods", "single"]
    with only_writer(run):
        assert main(command) == 2
    assert f"another process writes to {run}" in capsys.readouterr().err
    assert not (run / "answers.jsonl").exists()
    assert main(command) == 0
    assert len(RunFolder.read(run).answers()) == 1


def test_a_run_that_is_killed_goes_on_with_the_same_command(
    tmp_path: Path, tiny_llama: Path, sums: Path
) -> None:
    run = tmp_path / "run"
    command = ["--tasks", str(sums), "--n", "2", "--concurrency", "1", "--methods", "single"]
    command += [*tiny(tiny_llama, run), "--max-tokens", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.quality", *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("1 of 2 answers"):
                process.send_signal(signal.SIGKILL)
                break
    kept = RunFolder.read(run).answers()
    assert kept
    assert main(command) == 0
    rows = RunFolder.read(run).answers()
    assert rows[: len(kept)] == kept
    assert len({row.question_id for row in rows}) == len(rows) == 2
