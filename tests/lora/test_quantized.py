"""Adapters on quantised bases, beside PEFT on the same bases as bitsandbytes computes them."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from latentmas_core.config import SamplingParams
from latentmas_core.engine import model_runner
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.quantization import quantization_config
from latentmas_core.engine.quiet import quiet_transformers
from tests.engine.engines import OpenEngine
from tests.engine.turns import create_turn
from tests.lora.adapters import make_adapter, mix_of
from tests.lora.conftest import RANKS as ALL_RANKS
from tests.lora.test_engine_parity import logits_of

KINDS = ("4bit", "8bit")
RANKS = (8, 33)
MAX_ERROR = 1e-2
MIN_SAME = 0.95
NUM_TOKENS = 25
PROMPTS = (
    "The history of France begins",
    "def reverse(items):\n",
    "The sun is",
    "In 1969 the first",
    "Water boils at",
    "My favourite book is",
    "To bake bread you need",
    "The theory of evolution",
)
NUM_POSITIONS = 200  # of each adapter

assert len(PROMPTS) * NUM_TOKENS == NUM_POSITIONS


class Answer(NamedTuple):
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logits: torch.Tensor  # [num_outputs, vocab_size]


class Speaker:
    """Asks an engine, and knows the logits behind every answer by the seed of its turn."""

    def __init__(self, engine: Engine, rows_by_seed: dict[int, list[torch.Tensor]]) -> None:
        self.engine = engine
        self._rows_by_seed = rows_by_seed
        self._num_turns = 0

    async def answer_all(
        self, asked: Sequence[tuple[str | None, str]], *, num_tokens: int = NUM_TOKENS
    ) -> list[Answer]:
        """Pairs of an adapter's name, or None for the base, and a prompt, in one batch."""
        return list(await asyncio.gather(*(self._answer(*pair, num_tokens) for pair in asked)))

    async def _answer(self, name: str | None, prompt: str, num_tokens: int) -> Answer:
        seed = self._num_turns
        self._num_turns += 1
        prompt_ids = tuple(self.engine.tokenizer(prompt)["input_ids"])
        turn = create_turn(
            prompt_ids,
            sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True, seed=seed),
            adapters=mix_of(self.engine, *([name] if name else [])),
        )
        output_ids = (await self.engine.complete(turn)).output_ids
        return Answer(prompt_ids, output_ids, torch.stack(self._rows_by_seed.pop(seed)))


@pytest.fixture
def rows_by_seed(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[torch.Tensor]]:
    seen: dict[int, list[torch.Tensor]] = defaultdict(list)
    choose = model_runner.choose_tokens

    def record(rows: torch.Tensor, choosers: Any) -> list[int]:
        for row, chooser in zip(rows.clone(), choosers, strict=True):
            seen[chooser.params.seed].append(row)
        return choose(rows, choosers)

    monkeypatch.setattr(model_runner, "choose_tokens", record)
    return seen


def peft_on_quantised(model: Path, kind: Any, adapters: dict[str, Path]) -> Any:
    """PEFT over transformers and bitsandbytes alone, in training mode: nothing of this project.

    While a model is trained bitsandbytes multiplies in the dtype of the inputs on a CPU. Otherwise
    it rounds them, to bfloat16 over 4 bits and to int8 over 8 bits, by the other rows: then PEFT's
    own logits move by 0.4-1.5 (4bit) and by 5-6 of 31 (8bit), with 98 % and 90 % equal tokens.
    """
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, quantization_config=quantization_config(kind, torch.float32)
        )
    names = list(adapters)
    peft = PeftModel.from_pretrained(base, adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(adapters[name], name)
    return peft.train()


def logits_of_peft(peft: Any, name: str | None, answer: Answer) -> torch.Tensor:
    if name is None:
        with peft.disable_adapter():
            return logits_of(peft, answer.prompt_ids, answer.output_ids)
    peft.set_adapter(name)
    return logits_of(peft, answer.prompt_ids, answer.output_ids)


@pytest.fixture(scope="module")
def embedded_adapters(
    tmp_path_factory: pytest.TempPathFactory, embedded_model_path: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("embedded-adapters")
    return {
        str(rank): make_adapter(
            folder / str(rank), embedded_model_path, rank=rank, seed=rank, std=0.02
        )
        for rank in RANKS
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_embedded_model_with_adapters_is_peft_on_the_same_quantised_base(
    open_engine: OpenEngine,
    embedded_model_path: Path,
    embedded_adapters: dict[str, Path],
    rows_by_seed: dict[int, list[torch.Tensor]],
    kind: str,
) -> None:
    """Two adapters and the base in every step. Measured: within 4e-4, all 200 tokens of each."""
    adapters = embedded_adapters
    engine = open_engine(embedded_model_path, num_blocks=500, block_size=16, quantization=kind)
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    names = [*adapters, None]
    asked = [(name, prompt) for prompt in PROMPTS for name in names]
    answers = await Speaker(engine, rows_by_seed).answer_all(asked)
    peft = peft_on_quantised(embedded_model_path, kind, adapters)
    same: dict[str | None, int] = dict.fromkeys(names, 0)
    for (name, prompt), answer in zip(asked, answers, strict=True):
        expected = logits_of_peft(peft, name, answer)
        assert_close(answer.logits, expected, atol=MAX_ERROR, rtol=0, msg=f"{name}, {prompt!r}")
        same[name] += int((expected.argmax(-1) == torch.tensor(answer.output_ids)).sum())
    assert min(same.values()) >= MIN_SAME * NUM_POSITIONS, same
    assert_adapters_matter(asked, answers)


def assert_adapters_matter(
    asked: Sequence[tuple[str | None, str]], answers: Sequence[Answer]
) -> None:
    output_ids = {pair: answer.output_ids for pair, answer in zip(asked, answers, strict=True)}
    changed = [pair for pair in asked if output_ids[pair] != output_ids[None, pair[1]]]
    assert len(changed) > len(asked) / 3, "adapters that change little"


@pytest.mark.parametrize("kind", KINDS)
async def test_adapters_of_all_ranks_share_steps_on_a_quantised_base(
    open_engine: OpenEngine,
    tiny_qwen2: Path,
    tmp_path: Path,
    rows_by_seed: dict[int, list[torch.Tensor]],
    kind: str,
) -> None:
    adapters = make_adapters(tiny_qwen2, tmp_path, ALL_RANKS)
    engine = open_engine(tiny_qwen2, quantization=kind)
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    asked = [(name, PROMPTS[0]) for name in (*adapters, None)]
    answers = await Speaker(engine, rows_by_seed).answer_all(asked)
    assert len({answer.output_ids for answer in answers}) > len(answers) / 2
    peft = peft_on_quantised(tiny_qwen2, kind, adapters)
    for (name, _), answer in zip(asked, answers, strict=True):
        assert_close(answer.logits, logits_of_peft(peft, name, answer), atol=1e-4, rtol=0, msg=name)


def make_adapters(model: Path, folder: Path, ranks: Sequence[int]) -> dict[str, Path]:
    """One per rank, by its name, all about equally strong."""
    return {
        str(rank): make_adapter(
            folder / str(rank), model, rank=rank, seed=rank, std=0.12 * rank**-0.5
        )
        for rank in ranks
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_base_rows_are_untouched_beside_adapters_and_those_beside_each_other(
    open_engine: OpenEngine,
    tiny_qwen2: Path,
    tmp_path: Path,
    rows_by_seed: dict[int, list[torch.Tensor]],
    kind: str,
) -> None:
    """In every position, in float32: what is left is the order of sums, about 1e-5."""
    adapters = make_adapters(tiny_qwen2, tmp_path, RANKS)
    engine = open_engine(tiny_qwen2, quantization=kind)
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    names: list[str | None] = [None, *adapters]
    speaker = Speaker(engine, rows_by_seed)
    alone = {name: (await speaker.answer_all([(name, PROMPTS[0])]))[0] for name in names}
    assert len({answer.output_ids for answer in alone.values()}) == len(names)
    peft = peft_on_quantised(tiny_qwen2, kind, adapters)
    for name, answer in alone.items():
        assert_close(answer.logits, logits_of_peft(peft, name, answer), atol=1e-4, rtol=0)
    for order in ([0, 1, 2], [1, 0, 2, 1], [2, 1, 0, 2, 0, 0]):
        asked = [(names[index], PROMPTS[0]) for index in order]
        for (name, _), answer in zip(asked, await speaker.answer_all(asked), strict=True):
            assert answer.output_ids == alone[name].output_ids
            assert_close(answer.logits, alone[name].logits, atol=1e-4, rtol=0)
