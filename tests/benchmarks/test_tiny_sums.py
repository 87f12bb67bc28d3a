"""A tiny model that adds up: what it is trained on, and that an engine runs what comes out."""

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.prompts import latent_prompts, single_prompt, text_prompt
from benchmarks.quality.__main__ import main
from benchmarks.quality.grading import Kind
from benchmarks.quality.run_folder import RunFolder
from benchmarks.quality.tasks import prompt_of
from benchmarks.tiny_sums.__main__ import prepare
from benchmarks.tiny_sums.task import Sum, drawn, held_out
from benchmarks.tiny_sums.training import Example, Training, chain, train
from benchmarks.tiny_sums.words import Prompts, make_tokenizer

SMALL = Training(num_steps=3, batch_size=2, hidden_size=16, num_layers=1, num_heads=2)
ONE = Sum((3, 4, 9, 5))
WORK = "7, 16, 21"


def test_a_sum_is_worked_out_term_by_term() -> None:
    assert ONE.question == "3 + 4 + 9 + 5 ="
    assert (ONE.work, ONE.total) == ([7, 16, 21], 21)


def test_what_is_measured_was_never_trained_on() -> None:
    kept = held_out(300, seed=0)
    assert len(set(kept)) == 300
    assert held_out(300, seed=0) == kept
    trained = set(islice(drawn(random.Random(0), is_held_out=False), 3000))
    assert len(trained) > 2000
    assert not trained & set(kept)


def test_prompts_are_those_that_the_agents_of_a_run_get() -> None:
    tokenizer = make_tokenizer()
    prompts = Prompts(tokenizer)
    question = prompt_of(ONE.question, {}, Kind.NUMBER)
    assert prompts.single(ONE) == single_prompt(tokenizer, question)
    assert prompts.latent(ONE) == latent_prompts(tokenizer, question)
    for index in range(4):
        told = text_prompt(tokenizer, question, agent_index=index, texts=[WORK] * index)
        assert prompts.text(ONE, index) == told
        assert tokenizer.unk_token_id not in told
    assert tokenizer.decode(prompts.work(ONE)) == WORK
    assert tokenizer.decode(prompts.answer(ONE)) == "\\boxed{21}"


@pytest.mark.parametrize(
    ("num_thoughts", "thought"),
    [(0, ""), (3, "7, 16"), (7, "7, 16, 21<|im_end|><|im_end|>")],
)
def test_of_a_chain_thoughts_and_answer_are_learnt_and_prompts_are_not(
    num_thoughts: int, thought: str
) -> None:
    tokenizer = make_tokenizer()
    prompts = Prompts(tokenizer)
    example = chain(prompts, ONE, num_thoughts)
    learnt = [token for token, is_ours in zip(*example, strict=True) if is_ours]
    assert tokenizer.decode(learnt) == 3 * thought + "\\boxed{21}<|im_end|>"
    read = [token for token, is_ours in zip(*example, strict=True) if not is_ours]
    assert read == [token for ids in prompts.latent(ONE) for token in ids]
    assert isinstance(example, Example)


def test_the_same_seed_gives_the_same_model_with_untied_embeddings(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        train(SMALL.model_copy(update={"seed": seed}), tmp_path / name, lambda _: None)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    first, again, other = weights
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(first)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.equal(other["lm_head.weight"], first["lm_head.weight"])


def test_a_model_is_trained_once_and_measured_by_the_harness(tmp_path: Path) -> None:
    folder = prepare(SMALL, tmp_path)
    written_at = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert prepare(SMALL, tmp_path) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == written_at
    rows = [json.loads(line) for line in (folder / "sums.jsonl").read_text().splitlines()]
    assert all(str(sum(map(int, row["question"][:-2].split(" + ")))) == str(row["answer"])
               for row in rows)  # fmt: skip
    command = ["--tasks", str(folder / "sums.jsonl"), "--n", "2", "--run", str(tmp_path / "run")]
    command += ["--model", str(folder / "model"), "--device", "cpu", "--dtype", "float32"]
    command += ["--threads", str(torch.get_num_threads()), "--max-tokens", "4"]
    command += ["--latent-steps", "2", "--sweep", "realign=on,off"]
    assert main(command) == 0
    answers = RunFolder.read(tmp_path / "run").answers()
    assert len(answers) == 8
    assert {answer.error for answer in answers} == {None}
