"""The text mode and transformers' own generators against the plain greedy loop."""

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.baselines.generate import eager_step_ms, generate_continuous, generate_static
from benchmarks.baselines.plain import PlainLatentMAS
from benchmarks.baselines.text import decode_greedily, run_text
from tests.baselines.models import build_model, build_prompt, embed, forward_at_once

PROMPTS = [build_prompt(length, seed=length) for length in (4, 13, 9)]


class LetterTokenizer:
    """One letter for each id, without special tokens."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(0x4E00 + token_id) for token_id in token_ids)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 0x4E00 for letter in text]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return build_model("llama")


@pytest.fixture(scope="module")
def answers(model: PreTrainedModel) -> list[list[int]]:
    plain = PlainLatentMAS(model, realign=False)
    return [plain.speak(prompt_ids, None, max_tokens=7) for prompt_ids in PROMPTS]


def test_static_generate_answers_like_the_plain_loop(
    model: PreTrainedModel, answers: list[list[int]]
) -> None:
    model.generation_config.repetition_penalty = 3.0  # a checkpoint's habit must not leak in
    assert generate_static(model, PROMPTS, max_tokens=7) == answers


def test_continuous_generate_answers_like_the_plain_loop(
    model: PreTrainedModel, answers: list[list[int]]
) -> None:
    assert generate_continuous(model, PROMPTS, max_tokens=7) == answers


def test_continuous_generate_raises_when_requests_are_lost(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate_batch", lambda *_, **__: {})
    with pytest.raises(RuntimeError, match="lost requests"):
        generate_continuous(model, PROMPTS, max_tokens=2)


def test_an_eager_step_takes_time(model: PreTrainedModel) -> None:
    assert eager_step_ms(model, context_len=6, repeats=3) > 0


def test_greedy_decoding_equals_the_argmax_of_full_forwards(model: PreTrainedModel) -> None:
    rows, expected_ids = embed(model, PROMPTS[0]), []
    for _ in range(5):
        expected_ids.append(int(forward_at_once(model, rows).logits[-1].argmax()))
        rows = torch.cat((rows, embed(model, expected_ids[-1:])))
    assert decode_greedily(model, PROMPTS[0], max_tokens=5) == expected_ids
    end_ids = frozenset(expected_ids[3:4])
    stopped_ids = decode_greedily(model, PROMPTS[0], max_tokens=5, eos_token_ids=end_ids)
    assert stopped_ids == expected_ids[: expected_ids.index(expected_ids[3])]


def test_text_agents_read_what_the_agents_before_them_wrote(model: PreTrainedModel) -> None:
    tokenizer = LetterTokenizer()
    prompts: list[list[int]] = []

    def join_texts(agent_index: int, texts: list[str]) -> list[int]:
        prompts.append(PROMPTS[agent_index] + tokenizer.encode("".join(texts)))
        return prompts[-1]

    answers = run_text(model, tokenizer, join_texts, num_agents=3, max_tokens=4)
    assert [len(prompt_ids) for prompt_ids in prompts] == [4, 13 + 4, 9 + 8]
    assert prompts[2] == PROMPTS[2] + answers[0] + answers[1]
    assert answers == [decode_greedily(model, ids, max_tokens=4) for ids in prompts]
