"""What 8 bits do to a judger is measured on the rows that crossed, beside the same chain exact."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.baselines.plain import PlainLatentMAS
from benchmarks.int8 import VARIANTS, Outcome, compare, report, rounded

PROMPTS = [list(text) for text in (b"Plan this.", b"Criticise it.", b"Answer now.")]


def open_plain(model: Path) -> PlainLatentMAS:
    return PlainLatentMAS(AutoModelForCausalLM.from_pretrained(model).eval())


def test_only_rows_that_cross_are_rounded(tiny_llama: Path) -> None:
    plain = open_plain(tiny_llama)
    memory = plain.think(PROMPTS[0], None, latent_steps=2).memory
    start = 3
    back, num_bytes, num_bytes_exact = rounded(memory, start)
    for new, old in zip(back.keys + back.values, memory.keys + memory.values, strict=True):
        assert torch.equal(new[:, :start], old[:, :start])
        assert 0 < (new[:, start:] - old[:, start:]).norm() < 0.01 * old[:, start:].norm()
    assert num_bytes_exact == 4 * sum(t[:, start:].numel() for t in memory.keys + memory.values)
    assert num_bytes < 0.5 * num_bytes_exact


def test_a_judger_is_compared_with_one_that_reads_the_exact_memory(tiny_llama: Path) -> None:
    outcome = compare(open_plain(tiny_llama), PROMPTS, latent_steps=2, max_tokens=3)
    assert set(outcome.errors) == set(VARIANTS)
    assert all(0 < error < 0.02 for error in outcome.errors.values())
    assert outcome.errors["chain"] != outcome.errors["reader"]


def test_the_report_counts_what_is_within_the_bars() -> None:
    fine, coarse = (
        Outcome(
            dict.fromkeys(VARIANTS, error),
            is_first_same=dict.fromkeys(VARIANTS, is_same),
            is_answer_same=dict.fromkeys(VARIANTS, is_same),
            num_bytes=26,
            num_bytes_exact=100,
        )
        for error, is_same in ((0.01, True), (0.03, False))
    )
    lines = list(report([fine, fine, coarse], itemsize=4))
    assert lines[0].endswith("(0.260); 0.520 of bfloat16")
    for line, name in zip(lines[1:], VARIANTS, strict=True):
        assert line.startswith(f"{name}: logits off by 0.0100 (median), 0.0300 (worst); 2 of 3")
        assert "First token the same: 2, whole answer: 2 of 3" in line
