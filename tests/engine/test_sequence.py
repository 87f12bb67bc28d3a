"""The rows of a turn: prompt tokens, latent steps, sampled tokens, in this order."""

import pytest
import torch

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import NextRow, Sequence
from latentmas_core.engine.turn import Recall, Turn
from latentmas_core.latent.memory import Memory, MergeRule, merge
from latentmas_core.latent.segment import Segment
from tests.engine.factories import create_sequence
from tests.latent.factories import create_segment


def create_memory(*num_rows: int) -> ResidentMemory:
    """Merged experts, so that positions and rows differ."""
    segments = [create_segment(num_tokens=n, num_latents=0) for n in num_rows]
    memory = merge([Memory().followed_by(segment) for segment in segments], MergeRule.REUSED)
    return ResidentMemory(memory, {})


def create_running(*, num_tokens: int = 3, num_latents: int = 2, num_outputs: int = 4) -> Sequence:
    """A sequence of which so much is known; its rows are told apart by their values."""
    sequence = create_sequence(num_tokens=num_tokens, latent_steps=num_latents, max_tokens=9)
    sequence.latents = [torch.tensor(100.0 + number) for number in range(num_latents)]
    sequence.output_ids = [200 + number for number in range(num_outputs)]
    return sequence


def recall(segment: Segment) -> Sequence:
    latents = torch.arange(segment.num_latents, dtype=torch.float32)[:, None]
    sequence = create_sequence()
    turn = Turn("agent", recall=Recall(segment, latents))
    return Sequence(turn, sink=sequence.sink, detokenizer=sequence.detokenizer, prefix_keys=[])


@pytest.mark.parametrize("num_outputs", [0, 1, 4])
@pytest.mark.parametrize("num_latents", [0, 2])
def test_inputs_of_any_run_of_rows_are_those_rows(num_latents: int, num_outputs: int) -> None:
    sequence = create_running(num_latents=num_latents, num_outputs=num_outputs)
    rows = [0, 1, 2, 100, 101][: 3 + num_latents] + [200, 201, 202, 203][:num_outputs]
    assert sequence.num_known == len(rows)
    for start in range(len(rows)):
        for end in range(start + 1, len(rows) + 1):
            inputs = sequence.inputs(start, end)
            latents = [int(latent) for latent in inputs.latents]
            assert [*inputs.before, *latents, *inputs.after] == rows[start:end]


def test_next_row_is_thought_until_all_steps_are_known_and_then_said() -> None:
    sequence = create_sequence(latent_steps=1, max_tokens=3)
    assert sequence.next_row is NextRow.LATENT
    sequence.latents.append(torch.zeros(1))
    assert sequence.next_row is NextRow.TOKEN


def test_nothing_follows_a_turn_that_does_not_speak() -> None:
    assert create_sequence(latent_steps=0).next_row is NextRow.NOTHING


def test_thought_is_done_when_its_last_row_is_computed() -> None:
    sequence = create_running(num_tokens=3, num_latents=2, num_outputs=0)
    sequence.num_computed = 4
    assert not sequence.has_thought
    sequence.num_computed = 5
    assert sequence.has_thought


def test_rows_stand_behind_the_memory_in_slots_and_behind_its_longest_part_in_positions() -> None:
    sequence = create_sequence(memory=create_memory(7, 4))
    sequence.num_computed = 2
    assert sequence.num_slots == 7 + 4 + 2
    assert sequence.first_position == 7


def test_preempted_sequence_forgets_its_blocks_and_keeps_what_is_known() -> None:
    sequence = create_running()
    sequence.block_table, sequence.num_computed, sequence.num_published = [1, 2], 8, 1
    sequence.is_appender = True
    sequence.forget_computed()
    assert (sequence.block_table, sequence.num_computed, sequence.num_published) == ([], 0, 0)
    assert not sequence.is_appender
    assert (len(sequence.latents), len(sequence.output_ids)) == (2, 4)
    assert sequence.num_uncomputed == 9


def test_segment_leaves_out_what_was_said() -> None:
    memory = create_memory(5, 3)
    sequence = create_sequence(num_tokens=3, latent_steps=2, max_tokens=4, memory=memory)
    sequence.latents = [torch.zeros(1)] * 2
    sequence.output_ids = [9, 9]
    segment = sequence.as_segment("model-a")
    assert (segment.token_ids, segment.num_latents) == ((0, 1, 2), 2)
    assert (segment.first_position, segment.context) == (5, memory.memory.seen)
    assert (segment.agent, segment.fingerprint) == ("agent", "model-a")


def test_recalled_segment_is_prefilled_where_it_stood_and_stays_itself() -> None:
    segment = create_segment(first_position=11, num_tokens=3, num_latents=2)
    sequence = recall(segment)
    assert sequence.num_known == sequence.num_uncomputed == 5
    assert sequence.first_position == 11
    assert sequence.next_row is NextRow.NOTHING
    assert sequence.as_segment("model-a") is segment


def test_recalled_steps_are_not_executed_again() -> None:
    sequence = recall(create_segment(num_tokens=3, num_latents=2))
    assert sequence.num_executed_steps == 0
    assert create_running(num_latents=2).num_executed_steps == 2


def test_sequences_have_ids_of_their_own_and_say_where_they_are() -> None:
    one, other = create_running(), create_running()
    assert one.sequence_id != other.sequence_id
    where = "agent='agent', computed=0/9, latents=2/2, outputs=4, blocks=0"
    assert repr(one) == f"Sequence({one.sequence_id}, {where})"
