"""Trains a model on prompts of one agent alone, of text agents, and of a chain of thoughts.

A thought of a chain is trained as words, cut to as many tokens as an agent has latent steps; no
latent vector is trained. The same seed gives the same model on the same machine.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from benchmarks.prompts import HIERARCHY
from benchmarks.tiny_sums.task import Sum, drawn
from benchmarks.tiny_sums.words import Ids, Prompts, make_tokenizer
from latentmas_core.config import FrozenModel
from latentmas_core.engine.quiet import quiet_transformers

IGNORED = -100
MAX_THOUGHT = 12


class Training(FrozenModel):
    """What decides which model comes out."""

    seed: int = 0
    num_steps: int = 2500
    batch_size: int = 32
    learning_rate: float = 3e-3
    hidden_size: int = 64
    num_layers: int = 3
    num_heads: int = 4


class Example(NamedTuple):
    """``is_learnt`` says of each token whether it is to be written rather than read."""

    ids: Ids
    is_learnt: list[bool]

    @classmethod
    def of(cls, *parts: tuple[Ids, bool]) -> "Example":
        return cls(
            [token for ids, _ in parts for token in ids],
            [is_learnt for ids, is_learnt in parts for _ in ids],
        )


def train(training: Training, folder: Path, report: Callable[[str], None]) -> None:
    """Write model and tokenizer into ``folder``; ``report`` hears how it goes."""
    torch.manual_seed(training.seed)
    tokenizer = make_tokenizer()
    prompts = Prompts(tokenizer)
    model = Qwen2ForCausalLM(_config(training, len(tokenizer), prompts.end))
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: _rate(at, training))
    batches = _batches(prompts, training)
    pad = tokenizer.pad_token_id
    for step, (kind, examples) in enumerate(itertools.islice(batches, training.num_steps), 1):
        ids, labels = _tensors(examples, pad)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            report(f"step {step} of {training.num_steps}, {kind}: loss {loss.item():.3f}")
    model.generation_config = GenerationConfig(eos_token_id=prompts.end)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(training: Training, num_tokens: int, end: int) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=num_tokens,
        hidden_size=training.hidden_size,
        intermediate_size=3 * training.hidden_size,
        num_hidden_layers=training.num_layers,
        num_attention_heads=training.num_heads,
        num_key_value_heads=training.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
    )


def _rate(at: int, training: Training) -> float:
    """Up over the first twentieth, then down along a cosine."""
    warm_up = max(1, training.num_steps // 20)
    if at < warm_up:
        return (at + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (at - warm_up) / max(1, training.num_steps - warm_up)))


def _batches(prompts: Prompts, training: Training) -> Iterator[tuple[str, list[Example]]]:
    rng = random.Random(training.seed)
    sums = drawn(rng, is_held_out=False)
    make: dict[str, Callable[[Sum], Example]] = {
        "single": lambda one: _alone(prompts, one),
        "text": lambda one: _behind_text(prompts, one, rng.randrange(len(HIERARCHY))),
        "chain": lambda one: chain(prompts, one, rng.randint(0, MAX_THOUGHT)),
    }
    while True:
        (kind,) = rng.choices(list(make), weights=[1, 1, 2])
        yield kind, [make[kind](one) for one in itertools.islice(sums, training.batch_size)]


def _alone(prompts: Prompts, one: Sum) -> Example:
    return Example.of((prompts.single(one), False), ([*prompts.answer(one), prompts.end], True))


def _behind_text(prompts: Prompts, one: Sum, agent_index: int) -> Example:
    is_speaker = agent_index == len(HIERARCHY) - 1
    written = prompts.answer(one) if is_speaker else prompts.work(one)
    return Example.of((prompts.text(one, agent_index), False), ([*written, prompts.end], True))


def chain(prompts: Prompts, one: Sum, num_thoughts: int) -> Example:
    """As latent agents read it, with the words of ``num_thoughts`` tokens for latent steps."""
    *thinkers, speaker = prompts.latent(one)
    thought = (prompts.work(one) + [prompts.end] * num_thoughts)[:num_thoughts]
    parts = [part for prompt in thinkers for part in ((prompt, False), (thought, True))]
    return Example.of(*parts, (speaker, False), ([*prompts.answer(one), prompts.end], True))


def _tensors(examples: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels [batch_size, longest]; padding stands behind, where attention never looks."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        learnt = torch.tensor(example.is_learnt)
        labels[row, :length] = torch.where(learnt, ids[row, :length], IGNORED)
    return ids, labels
