"""The plain LatentMAS loop against forwards that see all rows at once."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from benchmarks.baselines.plain import (
    PlainLatentMAS,
    PlainMemory,
    PlainThought,
    merge_consecutive,
    merge_reused,
)
from tests.baselines.models import (
    FAMILIES,
    FullForward,
    build_model,
    build_prompt,
    embed,
    forward_at_once,
)

FIRST, SECOND, THIRD = (build_prompt(n, seed=n) for n in (11, 5, 8))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_model(request.param)


@torch.no_grad()
def align_naively(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    w_in, w_out = model.model.embed_tokens.weight, model.lm_head.weight
    ridge = 1e-5 * torch.eye(w_out.shape[1])
    latent = hidden @ torch.linalg.inv(w_out.T @ w_out + ridge) @ w_out.T @ w_in
    return latent * (w_in.norm(dim=-1).mean() / latent.norm())


def think_naively(model: PreTrainedModel, embeddings: Tensor, num_steps: int) -> Tensor:
    """Every step runs all rows again; the rows and the latents behind them."""
    for _ in range(num_steps):
        hidden = forward_at_once(model, embeddings).hidden[-1]
        embeddings = torch.cat((embeddings, align_naively(model, hidden)[None]))
    return embeddings


def speak_naively(model: PreTrainedModel, embeddings: Tensor, num_tokens: int) -> list[int]:
    answer_ids: list[int] = []
    for _ in range(num_tokens):
        answer_ids.append(int(forward_at_once(model, embeddings).logits[-1].argmax()))
        embeddings = torch.cat((embeddings, embed(model, answer_ids[-1:])))
    return answer_ids


def assert_memory_close(memory: PlainMemory, full: FullForward, *, atol: float) -> None:
    assert_close(memory.keys, full.keys, atol=atol, rtol=0)
    assert_close(memory.values, full.values, atol=atol, rtol=0)


def think_apart(plain: PlainLatentMAS) -> list[PlainThought]:
    """Two experts of 17 and 8 rows that do not see each other."""
    return [
        plain.think(FIRST, None, latent_steps=6),
        plain.think(SECOND, None, latent_steps=3),
    ]


def forward_behind_experts(
    model: PreTrainedModel, experts: list[PlainThought], *, starts: list[int], judger_start: int
) -> FullForward:
    """Both experts and the judger in one forward under a block mask."""
    blocks = [
        torch.cat((embed(model, prompt_ids), expert.latents))
        for prompt_ids, expert in zip((FIRST, SECOND), experts, strict=True)
    ]
    blocks.append(embed(model, THIRD))
    lengths = [len(block) for block in blocks]
    owner = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    mask = (owner[:, None] == owner) | (owner[:, None] == 2)
    positions = torch.cat(
        [start + torch.arange(n) for start, n in zip([*starts, judger_start], lengths, strict=True)]
    )
    return forward_at_once(
        model, torch.cat(blocks), positions=positions, mask=mask & torch.ones_like(mask).tril()
    )


@pytest.mark.parametrize("latent_steps", [0, 1, 7])
def test_thinking_equals_running_all_rows_again_at_every_step(
    model: PreTrainedModel, latent_steps: int
) -> None:
    thought = PlainLatentMAS(model).think(FIRST, None, latent_steps=latent_steps)
    rows = think_naively(model, embed(model, FIRST), latent_steps)
    assert thought.latents.shape == (latent_steps, model.config.hidden_size)
    assert thought.memory.num_rows == thought.memory.next_position == len(rows)
    # In fp32, with sums in another order: up to 1.04e-5 has been seen.
    assert_close(thought.latents, rows[len(FIRST) :], atol=3e-5, rtol=0)
    assert_memory_close(thought.memory, forward_at_once(model, rows), atol=3e-5)


def test_a_chain_of_two_agents_equals_one_forward_over_their_rows(model: PreTrainedModel) -> None:
    plain = PlainLatentMAS(model)
    first = plain.think(FIRST, None, latent_steps=4)
    second = plain.think(SECOND, first.memory, latent_steps=3)
    agents = [embed(model, FIRST), first.latents, embed(model, SECOND), second.latents]
    full = forward_at_once(model, torch.cat(agents))
    assert_memory_close(second.memory, full, atol=3e-5)
    full = forward_at_once(model, torch.cat([*agents, embed(model, THIRD)]))
    assert_close(plain.logits(THIRD, second.memory), full.logits[-1], atol=1e-4, rtol=0)


def test_merging_with_reused_positions_equals_one_forward_with_a_block_mask(
    model: PreTrainedModel,
) -> None:
    plain = PlainLatentMAS(model)
    experts = think_apart(plain)
    merged = merge_reused([expert.memory for expert in experts])
    assert (merged.num_rows, merged.next_position) == (25, 17)
    full = forward_behind_experts(model, experts, starts=[0, 0], judger_start=17)
    judged = plain.think(THIRD, merged, latent_steps=0).memory
    assert_memory_close(judged, full, atol=1e-4)
    assert_close(plain.logits(THIRD, merged), full.logits[-1], atol=1e-4, rtol=0)


def test_merging_with_reused_positions_does_not_depend_on_the_order(
    model: PreTrainedModel,
) -> None:
    plain = PlainLatentMAS(model)
    memories = [expert.memory for expert in think_apart(plain)]
    one, other = (plain.logits(THIRD, merge_reused(m)) for m in (memories, memories[::-1]))
    assert_close(one, other, atol=1e-4, rtol=0)


def test_merging_consecutively_equals_one_forward_with_a_block_mask(
    model: PreTrainedModel,
) -> None:
    plain = PlainLatentMAS(model)
    experts = think_apart(plain)
    merged = merge_consecutive([expert.memory for expert in experts], model.model.rotary_emb)
    assert merged.num_rows == merged.next_position == 25
    full = forward_behind_experts(model, experts, starts=[0, 17], judger_start=25)
    judged = plain.think(THIRD, merged, latent_steps=0).memory
    assert_memory_close(judged, full, atol=1e-4)
    assert_close(plain.logits(THIRD, merged), full.logits[-1], atol=1e-4, rtol=0)


def test_a_given_memory_is_not_changed(model: PreTrainedModel) -> None:
    plain = PlainLatentMAS(model)
    memory = plain.think(FIRST, None, latent_steps=2).memory
    keys, values = ([t.clone() for t in tensors] for tensors in (memory.keys, memory.values))
    plain.think(SECOND, memory, latent_steps=3)
    plain.speak(SECOND, memory, max_tokens=3)
    merge_reused([memory, memory])
    merge_consecutive([memory, memory], model.model.rotary_emb)
    assert memory.next_position == memory.num_rows == len(FIRST) + 2
    assert_close([memory.keys, memory.values], [keys, values], atol=0, rtol=0)


def test_a_memory_changes_what_follows(model: PreTrainedModel) -> None:
    plain = PlainLatentMAS(model)
    memory = plain.think(FIRST, None, latent_steps=2).memory
    noise = PlainMemory([torch.randn_like(k) for k in memory.keys], memory.values, 13)
    logits = plain.logits(SECOND, memory)
    assert (logits - plain.logits(SECOND, noise)).abs().max() > 1e-2
    assert (logits - plain.logits(SECOND, None)).abs().max() > 1e-2


def test_realignment_changes_the_latents_of_an_untied_model(model: PreTrainedModel) -> None:
    aligned = PlainLatentMAS(model).think(FIRST, None, latent_steps=2)
    raw = PlainLatentMAS(model, realign=False).think(FIRST, None, latent_steps=2)
    assert (aligned.latents - raw.latents).abs().max() > 1e-2


@pytest.mark.parametrize("realign", [True, False])
def test_latents_have_the_mean_norm_of_the_input_embeddings(
    model: PreTrainedModel, realign: bool
) -> None:
    latents = PlainLatentMAS(model, realign=realign).think(FIRST, None, latent_steps=3).latents
    mean_norm = model.model.embed_tokens.weight.detach().norm(dim=-1).mean()
    assert_close(latents.norm(dim=-1), mean_norm.expand(3))


def test_realignment_of_tied_embeddings_is_the_identity_and_skipped() -> None:
    tied = build_model("llama", is_tied=True)
    hidden = torch.randn(1, tied.config.hidden_size)
    plain = PlainLatentMAS(tied)
    assert plain.realignment is None
    assert_close(plain.align(hidden)[0], align_naively(tied, hidden[0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("latent_steps", [0, 3])
def test_speaking_equals_the_argmax_of_full_forwards(
    model: PreTrainedModel, latent_steps: int
) -> None:
    plain = PlainLatentMAS(model)
    first = plain.think(FIRST, None, latent_steps=4)
    answer_ids = plain.speak(SECOND, first.memory, max_tokens=9, latent_steps=latent_steps)
    rows = torch.cat((embed(model, FIRST), first.latents, embed(model, SECOND)))
    rows = think_naively(model, rows, latent_steps)
    assert answer_ids == speak_naively(model, rows, 9)


def test_an_end_token_stops_the_answer_and_is_left_out(model: PreTrainedModel) -> None:
    plain = PlainLatentMAS(model)
    answer_ids = plain.speak(FIRST, None, max_tokens=9)
    assert len(answer_ids) == 9
    end_id = answer_ids[4]
    stopped_ids = plain.speak(FIRST, None, max_tokens=9, eos_token_ids=frozenset({end_id}))
    assert stopped_ids == answer_ids[: answer_ids.index(end_id)]


def test_the_runs_equal_their_agents_one_by_one(model: PreTrainedModel) -> None:
    plain = PlainLatentMAS(model)
    prompts = [FIRST, SECOND, THIRD]
    first = plain.think(FIRST, None, latent_steps=4).memory
    chain = plain.think(SECOND, first, latent_steps=4).memory
    merged = merge_reused([first, plain.think(SECOND, None, latent_steps=4).memory])
    run = plain.run_latent(prompts, latent_steps=4, max_tokens=6)
    assert run == plain.speak(THIRD, chain, max_tokens=6)
    run = plain.run_experts(prompts, latent_steps=4, max_tokens=6)
    assert run == plain.speak(THIRD, merged, max_tokens=6)
