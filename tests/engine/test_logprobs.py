"""Log-probabilities of an answer: the model's own, for those who ask, token for token."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from latentmas_core.config import SamplingParams
from latentmas_core.engine import model_runner
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.token_text import RowLogprobs, TokenTexts
from latentmas_core.engine.turn import TextDelta, TurnDone
from tests.engine.engines import OpenEngine, load_plain
from tests.engine.turns import PROMPT, create_turn

NUM_TOP = 3


def sampling(**options: Any) -> SamplingParams:
    values = {"max_tokens": 12, "temperature": 0.8, "seed": 5, "ignore_eos": True}
    return SamplingParams.model_validate(values | {"logprobs": NUM_TOP} | options)


async def answer(engine: Engine, **options: Any) -> tuple[TurnDone, list[TextDelta]]:
    events = [event async for event in engine.run(create_turn(sampling=sampling(**options)))]
    done = events.pop()
    assert isinstance(done, TurnDone)
    return done, [event for event in events if isinstance(event, TextDelta)]


@torch.inference_mode()
def naive_logprobs(model: Path, output_ids: tuple[int, ...]) -> torch.Tensor:
    """log_softmax over one plain forward [num_outputs, vocab_size]."""
    ids = torch.tensor([[*PROMPT, *output_ids]])
    logits = load_plain(model).model(ids).logits[0, len(PROMPT) - 1 : -1]
    return logits.float().log_softmax(dim=-1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
async def test_they_equal_a_plain_log_softmax(
    open_engine: OpenEngine, tiny_qwen2: Path, temperature: float
) -> None:
    engine = open_engine(tiny_qwen2)
    done, _ = await answer(engine, temperature=temperature)
    expected = naive_logprobs(tiny_qwen2, done.output_ids)
    texts = TokenTexts(engine.tokenizer.backend_tokenizer)
    assert done.logprobs is not None
    for token, token_id, row in zip(done.logprobs, done.output_ids, expected, strict=True):
        assert token.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        assert bytes(token.bytes) == texts.bytes_of(token_id)
        top = row.topk(NUM_TOP)
        assert [c.logprob for c in token.top_logprobs] == pytest.approx(top.values.tolist(), 1e-4)
        assert [bytes(c.bytes) for c in token.top_logprobs] == [
            texts.bytes_of(i) for i in top.indices.tolist()
        ]


async def test_nothing_is_computed_for_those_who_do_not_ask(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    compute = model_runner.logprobs_of

    def record(logits: torch.Tensor, *arguments: Any) -> list[RowLogprobs]:
        rows.append(logits.shape[0])
        return compute(logits, *arguments)

    monkeypatch.setattr(model_runner, "logprobs_of", record)
    silent = [answer(engine, logprobs=None, seed=seed) for seed in range(3)]
    for done, deltas in await asyncio.gather(*silent):
        assert done.logprobs is None
        assert not any(delta.logprobs for delta in deltas)
    assert rows == []
    await asyncio.gather(*(answer(engine, logprobs=None, seed=s) for s in range(3)), answer(engine))
    assert set(rows) == {1}


async def test_asking_changes_no_token(engine: Engine) -> None:
    asked, _ = await answer(engine)
    silent, _ = await answer(engine, logprobs=None)
    assert asked.output_ids == silent.output_ids


async def test_zero_means_the_chosen_token_alone(engine: Engine) -> None:
    done, _ = await answer(engine, logprobs=0)
    assert done.logprobs is not None
    assert len(done.logprobs) == 12
    assert not any(token.top_logprobs for token in done.logprobs)


async def test_deltas_bring_each_token_once_with_its_text(engine: Engine) -> None:
    done, deltas = await answer(engine, max_tokens=40)
    assert tuple(token for delta in deltas for token in delta.logprobs) == done.logprobs
    assert "".join(delta.text for delta in deltas) == done.text


async def test_stop_string_takes_its_tokens_with_it(engine: Engine) -> None:
    whole, _ = await answer(engine, temperature=0, max_tokens=40)
    stop = whole.text[10:14]
    done, deltas = await answer(engine, temperature=0, max_tokens=40, stop=(stop,))
    assert done.finish_reason == "stop"
    assert len(done.text) < len(whole.text)
    assert done.logprobs is not None
    spelt = b"".join(bytes(token.bytes) for token in done.logprobs)
    assert spelt.decode(errors="replace").startswith(done.text)
    assert len(done.logprobs) < len(done.output_ids)
    assert tuple(token for delta in deltas for token in delta.logprobs) == done.logprobs


@pytest.mark.parametrize("model", ["tiny_llama", "embedded_model_path"])
@pytest.mark.parametrize("text", ["plain  words\n", "żółć 日本 🙂", "<|im_end|>", ""])
def test_bytes_of_tokens_join_to_the_text(
    model: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(model))
    texts = TokenTexts(tokenizer.backend_tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(texts.bytes_of(token_id) for token_id in ids) == text.encode()


@pytest.mark.parametrize("odd", [-torch.inf, torch.nan])
def test_row_that_is_no_token_spells_nothing_and_is_a_number(tiny_llama: Path, odd: float) -> None:
    texts = TokenTexts(AutoTokenizer.from_pretrained(tiny_llama).backend_tokenizer)
    token = texts.describe(RowLogprobs((319, odd), ()))
    assert (token.token, token.bytes, token.logprob) == ("", (), -9999.0)
