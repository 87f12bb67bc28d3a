"""A turn that cannot run is refused before it takes anything, by field, value, limit and remedy."""

from typing import Any

import pytest
import torch

from latentmas_core.config import SamplingParams
from latentmas_core.engine.limits import TurnLimits
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.turn import Recall, Turn
from latentmas_core.errors import ConfigError, ContextLengthError, SegmentError
from latentmas_core.latent.memory import Memory, MergeRule, merge
from tests.latent.factories import create_segment

LIMITS = TurnLimits(max_positions=100, max_slots=80, max_latent_steps=10, fingerprint="model-a")


def create_memory(*num_rows: int, rule: MergeRule = MergeRule.REUSED) -> ResidentMemory:
    """Experts with so many rows each, merged."""
    segments = [create_segment(num_tokens=n, num_latents=0) for n in num_rows]
    memory = merge([Memory().followed_by(segment) for segment in segments], rule)
    return ResidentMemory(memory, {}, block_table=[])


def create_turn(
    *, num_tokens: int = 5, latent_steps: int = 0, max_tokens: int | None = None, **fields: Any
) -> Turn:
    sampling = SamplingParams(max_tokens=max_tokens) if max_tokens else None
    return Turn(
        "judger",
        tuple(range(num_tokens)),
        num_latent_steps=latent_steps,
        sampling=sampling,
        **fields,
    )


@pytest.mark.parametrize(
    "turn",
    [
        create_turn(num_tokens=1),
        create_turn(num_tokens=80),
        create_turn(latent_steps=10, max_tokens=65),
        create_turn(memory=create_memory(30, 20), latent_steps=5, max_tokens=20),
        create_turn(num_tokens=0, recall=Recall(create_segment(), torch.zeros(2, 3))),
    ],
    ids=lambda turn: f"{len(turn.prompt_ids)}-{turn.num_latent_steps}",
)
def test_turn_up_to_the_limits_is_accepted(turn: Turn) -> None:
    LIMITS.check(turn)


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'judger' has 0 tokens; it needs at least 1") as caught:
        LIMITS.check(create_turn(num_tokens=0))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("latent_steps", [-1, 11, 500])
def test_latent_steps_out_of_range_are_refused_with_both_numbers(latent_steps: int) -> None:
    expected = rf"latent_steps is {latent_steps} for agent 'judger'; allowed are 0 to 10\b"
    with pytest.raises(ConfigError, match=expected) as caught:
        LIMITS.check(create_turn(latent_steps=latent_steps))
    assert caught.value.param == "latent_steps"
    assert "max_latent_steps" in str(caught.value)


def test_released_memory_is_refused() -> None:
    memory = create_memory(5)
    memory.is_released = True
    with pytest.raises(SegmentError, match="'judger' reads a memory that was released") as caught:
        LIMITS.check(create_turn(memory=memory))
    assert caught.value.param == "memory"


def test_memory_without_keys_and_values_is_refused() -> None:
    memory = create_memory(5)
    memory.block_table = None
    with pytest.raises(SegmentError, match=r"came without keys and values\. Prefill it first") as e:
        LIMITS.check(create_turn(memory=memory))
    assert e.value.param == "memory"


def test_memory_of_another_model_is_refused_with_both_fingerprints() -> None:
    segment = create_segment("critic", fingerprint="model-b")
    memory = ResidentMemory(Memory().followed_by(segment), {}, block_table=[])
    with pytest.raises(SegmentError, match=r"'critic' was made by model model-b.*needs model-a"):
        LIMITS.check(create_turn(memory=memory))


@pytest.mark.parametrize(
    ("turn", "needed"),
    [
        (create_turn(num_tokens=101), 101),
        (create_turn(num_tokens=5, max_tokens=96), 101),
        (create_turn(num_tokens=85, latent_steps=10, max_tokens=6), 101),
        (create_turn(memory=create_memory(60), num_tokens=41), 101),
        (create_turn(memory=create_memory(50, 46, rule=MergeRule.CONSECUTIVE)), 101),
    ],
    ids=["prompt", "answer", "all", "memory", "merged"],
)
def test_too_many_positions_are_refused_with_both_numbers(turn: Turn, needed: int) -> None:
    expected = rf"'judger' needs {needed} positions \(.*\); the model has 100\b"
    with pytest.raises(ContextLengthError, match=expected) as caught:
        LIMITS.check(turn)
    assert caught.value.param == "question"


@pytest.mark.parametrize(
    ("turn", "needed"),
    [
        (create_turn(num_tokens=81), 81),
        (create_turn(num_tokens=5, max_tokens=76), 81),
        (create_turn(memory=create_memory(40, 36)), 81),
    ],
    ids=["prompt", "answer", "merged"],
)
def test_too_many_slots_are_refused_with_both_numbers(turn: Turn, needed: int) -> None:
    expected = rf"needs {needed} slots \(.*\); the KV pool holds 80 for one request"
    with pytest.raises(ContextLengthError, match=expected) as caught:
        LIMITS.check(turn)
    assert "kv_cache_bytes" in str(caught.value)


def test_message_says_what_the_length_is_made_of() -> None:
    turn = create_turn(num_tokens=50, latent_steps=8, max_tokens=40, memory=create_memory(7, 9))
    with pytest.raises(ContextLengthError) as caught:
        LIMITS.check(turn)
    assert "prompt 50 + memory 16 + latent steps 8 + answer 40" in str(caught.value)


def test_recalled_segment_counts_like_a_prompt() -> None:
    segment = create_segment(num_tokens=70, num_latents=11)
    turn = create_turn(num_tokens=0, recall=Recall(segment, torch.zeros(11, 3)))
    with pytest.raises(ContextLengthError, match=r"81 slots \(prompt 70 \+ .* latent steps 11"):
        LIMITS.check(turn)
