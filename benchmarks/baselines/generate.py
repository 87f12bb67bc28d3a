"""Peers of the engine: transformers' own generators and its eager one-row step, greedy.

Every answer has exactly max_tokens ids: the end token is an id that no vocabulary holds, so the
answers are plain argmax chains and all peers give the same ids in fp32.
"""

import statistics
from typing import NamedTuple

import torch
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
)

from benchmarks.timing import now_s

NUM_WARMUP_STEPS = 3
PAGE_ROWS = 64


@torch.inference_mode()
def generate_static(
    model: PreTrainedModel, prompts: list[list[int]], *, max_tokens: int
) -> list[list[int]]:
    """`generate` on one left-padded batch."""
    num_columns = max(len(prompt_ids) for prompt_ids in prompts)
    input_ids = torch.zeros(len(prompts), num_columns, dtype=torch.long)
    mask = torch.zeros_like(input_ids)  # [num_prompts, num_columns]
    for row, prompt_ids in enumerate(prompts):
        input_ids[row, -len(prompt_ids) :] = torch.tensor(prompt_ids)
        mask[row, -len(prompt_ids) :] = 1
    sequences = model.generate(
        input_ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=_forced_length(model, max_tokens),
    )
    return sequences[:, num_columns:].tolist()


class ContinuousRun(NamedTuple):
    """busy_s: from the first prompt that is taken up to the last token, so without start-up."""

    answer_ids: list[list[int]]
    busy_s: float


def run_continuous(
    model: PreTrainedModel,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    batching: ContinuousBatchingConfig | None,
) -> ContinuousRun:
    """`generate_batch`, transformers' continuous batching; None leaves its pool to itself.

    On a CPU that pool then takes more than half of the machine's memory, anew in each call.
    """
    outputs = model.generate_batch(
        prompts,
        generation_config=_forced_length(model, max_tokens),
        continuous_batching_config=batching,
        warmup=model.device.type == "cuda",
    )
    failures = [output.error for output in outputs.values() if output.error is not None]
    if failures or len(outputs) < len(prompts):
        raise RuntimeError(f"generate_batch lost requests: {failures or 'no reason given'}")
    starts, ends = zip(*(output.lifespan for output in outputs.values()), strict=True)
    answer_ids = [output.generated_tokens for output in outputs.values()]
    return ContinuousRun(answer_ids, max(ends) - min(starts))


def generate_continuous(
    model: PreTrainedModel, prompts: list[list[int]], *, max_tokens: int
) -> list[list[int]]:
    """The answers of `generate_batch` with a pool that is cut to the prompts."""
    batching = fitting_pool(prompts, max_tokens=max_tokens)
    run = run_continuous(model, prompts, max_tokens=max_tokens, batching=batching)
    return run.answer_ids


def fitting_pool(prompts: list[list[int]], *, max_tokens: int) -> ContinuousBatchingConfig:
    """Pages for all prompts and answers at once, and a first step that takes every prompt."""
    num_pages = sum(-(-(len(ids) + max_tokens) // PAGE_ROWS) + 1 for ids in prompts)
    return ContinuousBatchingConfig(
        page_size=PAGE_ROWS,
        num_blocks=num_pages,
        max_batch_tokens=max(sum(len(ids) for ids in prompts), len(prompts)),
    )


@torch.inference_mode()
def eager_step_ms(model: PreTrainedModel, *, context_len: int, repeats: int) -> float:
    """Median time of a greedy one-token step behind context_len rows, logits and argmax included.

    The cache grows by a row each step, as it does in decoding.
    """
    cache = DynamicCache(config=model.config)
    token_ids = torch.arange(context_len, device=model.device)[None] % model.config.vocab_size
    token_ids = _next_token(model, token_ids, cache)
    durations_ms: list[float] = []
    for _ in range(NUM_WARMUP_STEPS + repeats):
        started = now_s(model.device)
        token_ids = _next_token(model, token_ids, cache)
        durations_ms.append(1e3 * (now_s(model.device) - started))
    return statistics.median(durations_ms[NUM_WARMUP_STEPS:])


def _next_token(
    model: PreTrainedModel, token_ids: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """[1, num_rows] ids in, [1, 1] id out."""
    output = model(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].argmax(dim=-1, keepdim=True)


def _forced_length(model: PreTrainedModel, max_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        repetition_penalty=1.0,
        eos_token_id=model.config.vocab_size,
        pad_token_id=0,
    )
