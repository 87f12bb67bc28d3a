"""What int8 transfer does to the agent that reads it: bytes, logits and greedy answers.

The hierarchical pipeline by the plain loop, over questions of reasoning-gym. `reader`: three agents
think as they always do, and the judger reads their memory rounded once. `chain`: every agent reads
what came before it rounded, as when each sits in a group of its own, so what it thinks differs too.
Both are held against the same chain in the model's dtype. `bfloat16`, a yardstick: the judger reads
the memory as that dtype would hold it.

    python -m benchmarks.int8
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.baselines.plain import PlainLatentMAS, PlainMemory
from benchmarks.machine import describe_commit, describe_machine, describe_versions
from benchmarks.program import positive, say
from benchmarks.prompts import latent_prompts
from benchmarks.quality.gym import gym_rows
from latentmas_core.engine.embedded_model import prepare_embedded_model
from latentmas_core.latent.codec import KVLayout, pack
from latentmas_core.latent.int8_codec import from_int8, to_int8
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors

TASK = "chain_sum"
MAX_RELATIVE_ERROR = 2e-2
MIN_SAME = 0.9
VARIANTS = ("reader", "chain", "bfloat16")


class Reading(NamedTuple):
    """What a judger makes of a memory. logits: [vocab_size], of the token behind its prompt."""

    logits: torch.Tensor
    answer_ids: list[int]


class Outcome(NamedTuple):
    """One question. Errors are |logits' - logits| / |logits|, the answers those of 8 bits."""

    errors: dict[str, float]
    is_first_same: dict[str, bool]
    is_answer_same: dict[str, bool]
    num_bytes: int
    num_bytes_exact: int


def rounded(memory: PlainMemory, start: int) -> tuple[PlainMemory, int, int]:
    """Rows from ``start`` on as they come out of the wire; bytes in 8 bits and without."""
    keys, values = (
        torch.stack([layer[:, start:].transpose(0, 1) for layer in layers])
        for layers in (memory.keys, memory.values)
    )  # [num_layers, num_rows, num_kv_heads, head_dim]
    num_layers, num_rows, num_kv_heads, head_dim = keys.shape
    segment = Segment("agent", "plain", start, tuple(range(num_rows)), 0)

    def fill(_: Segment, target: SegmentTensors) -> None:
        assert target.kv is not None, "pack keeps keys and values unless told otherwise"
        target.kv.keys.copy_(keys)
        target.kv.values.copy_(values)

    layout = KVLayout(num_layers, num_kv_heads, head_dim, hidden_size=1)
    packed = pack([segment], fill, layout, dtype=keys.dtype)
    wire = to_int8(packed)
    (content,) = from_int8(wire).values()
    kv: KVRows | None = content.kv
    assert kv is not None, "8 bits hold keys and values"
    back = replace(
        memory,
        keys=[_joined(old, new, start) for old, new in zip(memory.keys, kv.keys, strict=True)],
        values=[_joined(o, new, start) for o, new in zip(memory.values, kv.values, strict=True)],
    )
    return back, wire.num_bytes, packed.num_bytes


def _joined(old: torch.Tensor, new: torch.Tensor, start: int) -> torch.Tensor:
    return torch.cat([old[:, :start], new.transpose(0, 1)], dim=1)


def compare(
    plain: PlainLatentMAS, prompts: Sequence[list[int]], *, latent_steps: int, max_tokens: int
) -> Outcome:
    """One question under both variants, beside the chain in the model's dtype."""
    exact: PlainMemory | None = None
    reader: PlainMemory | None = None
    chain: PlainMemory | None = None
    num_bytes = num_bytes_exact = 0
    for prompt in prompts[:-1]:
        start = exact.num_rows if exact else 0
        exact = plain.think(prompt, exact, latent_steps=latent_steps).memory
        once, num_new, num_new_exact = rounded(exact, start)
        reader = once if reader is None else _behind(reader, once, start)
        chain = rounded(plain.think(prompt, chain, latent_steps=latent_steps).memory, start)[0]
        num_bytes += num_new
        num_bytes_exact += num_new_exact
    assert exact is not None, "thinkers come before the judger"
    memories = {"reader": reader, "chain": chain, "bfloat16": _in_bfloat16(exact)}
    truth = _read(plain, prompts[-1], exact, max_tokens)
    found = {name: _read(plain, prompts[-1], memories[name], max_tokens) for name in VARIANTS}
    norm = truth.logits.norm()
    return Outcome(
        {name: float((one.logits - truth.logits).norm() / norm) for name, one in found.items()},
        {n: int(one.logits.argmax()) == int(truth.logits.argmax()) for n, one in found.items()},
        {name: one.answer_ids == truth.answer_ids for name, one in found.items()},
        num_bytes,
        num_bytes_exact,
    )


def _behind(first: PlainMemory, second: PlainMemory, start: int) -> PlainMemory:
    """``second`` with the rows of ``first`` in the place of its own up to ``start``."""
    return replace(
        second,
        keys=[
            torch.cat([f, s[:, start:]], 1) for f, s in zip(first.keys, second.keys, strict=True)
        ],
        values=[
            torch.cat([f, s[:, start:]], 1)
            for f, s in zip(first.values, second.values, strict=True)
        ],
    )


def _in_bfloat16(memory: PlainMemory) -> PlainMemory:
    keys, values = (
        [layer.bfloat16().to(layer.dtype) for layer in layers]
        for layers in (memory.keys, memory.values)
    )
    return replace(memory, keys=keys, values=values)


def _read(
    plain: PlainLatentMAS, prompt: list[int], memory: PlainMemory | None, max_tokens: int
) -> Reading:
    return Reading(plain.logits(prompt, memory), plain.speak(prompt, memory, max_tokens=max_tokens))


def report(outcomes: Sequence[Outcome], itemsize: int) -> Iterator[str]:
    """The outcomes as lines of text."""
    num_bytes = sum(one.num_bytes for one in outcomes)
    exact = sum(one.num_bytes_exact for one in outcomes)
    in_16_bits = exact * 2 / itemsize
    yield (
        f"bytes: {num_bytes} in 8 bits, {exact} in the model's dtype ({num_bytes / exact:.3f}); "
        f"{num_bytes / in_16_bits:.3f} of bfloat16"
    )
    for name in VARIANTS:
        errors = sorted(one.errors[name] for one in outcomes)
        worst, median = errors[-1], statistics.median(errors)
        num_within = sum(error <= MAX_RELATIVE_ERROR for error in errors)
        same = sum(one.is_answer_same[name] for one in outcomes)
        first = sum(one.is_first_same[name] for one in outcomes)
        yield (
            f"{name}: logits off by {median:.4f} (median), {worst:.4f} (worst); {num_within} of "
            f"{len(outcomes)} within {MAX_RELATIVE_ERROR:g}. First token the same: {first}, whole "
            f"answer: {same} of {len(outcomes)} (bar {MIN_SAME:.0%})"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--n", type=positive, default=100, help="questions (100)")
    parser.add_argument("--latent-steps", type=positive, default=10, help="of each thinker (10)")
    parser.add_argument("--max-tokens", type=positive, default=32, help="of an answer (32)")
    parser.add_argument("--model", help="folder (the embedded model)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args(arguments)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    folder = options.model or prepare_embedded_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = PlainLatentMAS(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval())
    rows = gym_rows(TASK, num_questions=options.n, seed=0)
    outcomes: list[Outcome] = []
    for index, (_, row) in enumerate(rows):
        prompts = latent_prompts(tokenizer, row["question"])
        outcomes.append(
            compare(
                plain, prompts, latent_steps=options.latent_steps, max_tokens=options.max_tokens
            )
        )
        if (index + 1) % 10 == 0:
            say(f"{index + 1} of {options.n}")
    print(f"{describe_commit()} {describe_machine()} {describe_versions()}")
    for line in report(outcomes, dtype.itemsize):
        print(line)


if __name__ == "__main__":
    main()
