"""Who computes how many rows in the next step: no model, no tensors, blocks and counts only."""

import random
from typing import cast

import pytest

from latentmas_core.engine.scheduler import ScheduledRows
from latentmas_core.engine.sequence import Sequence
from tests.engine.factories import BLOCK_SIZE, create_sequence
from tests.engine.scheduling import (
    FakeMemories,
    add_all,
    check,
    create_crowd,
    create_memory,
    create_scheduler,
    is_finished,
    run_until,
    step,
)

# --- order and budget -----------------------------------------------------------------------------


def test_nothing_is_scheduled_where_nothing_waits() -> None:
    scheduler = create_scheduler()
    assert not scheduler.has_work
    assert scheduler.schedule() == []


def test_prompts_are_admitted_in_the_order_they_came() -> None:
    scheduler = create_scheduler()
    sequences = [create_sequence(num_tokens=n) for n in (7, 2, 5)]
    add_all(scheduler, *sequences)
    assert step(scheduler) == list(zip(sequences, (7, 2, 5), strict=True))


def test_no_more_sequences_run_than_max_num_seqs() -> None:
    scheduler = create_scheduler(max_num_seqs=2)
    sequences = [create_sequence(latent_steps=1) for _ in range(3)]
    add_all(scheduler, *sequences)
    assert [sequence for sequence, _ in step(scheduler)] == sequences[:2]
    assert len(scheduler.waiting) == 1
    step(scheduler)  # both finish
    assert [sequence for sequence, _ in step(scheduler)] == sequences[2:]


def test_long_prompt_is_cut_into_chunks_of_the_budget() -> None:
    scheduler = create_scheduler(max_num_batched_tokens=8)
    scheduler.add(create_sequence(num_tokens=20))
    assert [step(scheduler)[0][1] for _ in range(3)] == [8, 8, 4]
    assert not scheduler.has_work


def test_what_is_left_of_the_budget_goes_to_the_next_prompt() -> None:
    scheduler = create_scheduler(max_num_batched_tokens=8)
    first, second = create_sequence(num_tokens=5), create_sequence(num_tokens=5)
    add_all(scheduler, first, second)
    assert step(scheduler) == [(first, 5), (second, 3)]
    assert step(scheduler) == [(second, 2)]


def test_thinking_and_speaking_rows_come_before_prompts() -> None:
    scheduler = create_scheduler(max_num_batched_tokens=8)
    thinker = create_sequence(num_tokens=2, latent_steps=5)
    speaker = create_sequence(num_tokens=2, max_tokens=5)
    prompt = create_sequence(num_tokens=30)
    add_all(scheduler, thinker, speaker, prompt)
    assert step(scheduler) == [(thinker, 2), (speaker, 2), (prompt, 4)]
    assert step(scheduler) == [(thinker, 1), (speaker, 1), (prompt, 6)]


def test_sequences_with_one_row_stand_first_even_if_they_are_new() -> None:
    scheduler = create_scheduler()
    prompt, single = create_sequence(num_tokens=9), create_sequence(num_tokens=1)
    add_all(scheduler, prompt, single)
    assert step(scheduler) == [(single, 1), (prompt, 9)]


def test_budget_smaller_than_the_single_rows_is_kept() -> None:
    scheduler = create_scheduler(max_num_batched_tokens=2)
    sequences = [create_sequence(num_tokens=1, latent_steps=3) for _ in range(4)]
    add_all(scheduler, *sequences)
    while scheduler.has_work:
        assert sum(num_rows for _, num_rows in step(scheduler)) <= 2
    assert [len(sequence.latents) for sequence in sequences] == [3] * 4


# --- admission ------------------------------------------------------------------------------------


def test_admission_takes_the_blocks_up_to_the_last_latent_step() -> None:
    scheduler = create_scheduler()
    sequence = create_sequence(num_tokens=6, latent_steps=7, max_tokens=50)
    scheduler.add(sequence)
    step(scheduler)
    assert len(sequence.block_table) == -(-(6 + 7) // BLOCK_SIZE)


def test_sequence_waits_until_blocks_are_free() -> None:
    scheduler = create_scheduler(num_blocks=5)
    first, second = (create_sequence(num_tokens=10, latent_steps=2) for _ in range(2))
    add_all(scheduler, first, second)
    assert [sequence for sequence, _ in step(scheduler)] == [first]
    run_until(scheduler, lambda: first not in scheduler.running)
    assert [sequence for sequence, _ in step(scheduler)] == [second]
    assert scheduler.num_preemptions == 0


def test_small_sequence_does_not_overtake_a_large_one() -> None:
    scheduler = create_scheduler(num_blocks=5)
    running = create_sequence(num_tokens=8, latent_steps=3)
    large, small = create_sequence(num_tokens=16), create_sequence(num_tokens=1)
    add_all(scheduler, running, large, small)
    assert [sequence for sequence, _ in step(scheduler)] == [running]


def test_admission_counts_the_blocks_of_the_memory() -> None:
    scheduler = create_scheduler(num_blocks=5)
    sequence = create_sequence(num_tokens=6, memory=create_memory(15))
    scheduler.add(sequence)
    assert step(scheduler) == []  # 4 blocks for the memory and 2 behind it
    scheduler = create_scheduler(num_blocks=6)
    scheduler.add(sequence)
    assert step(scheduler) == [(sequence, 6)]


def test_idle_memories_give_way_to_a_new_sequence() -> None:
    scheduler = create_scheduler(num_blocks=4)
    memories = cast(FakeMemories, scheduler.memories)
    memories.idle_block_ids = scheduler.blocks.allocate(3)
    scheduler.add(create_sequence(num_tokens=9))
    assert len(step(scheduler)) == 1
    assert len(memories.idle_block_ids) == 1


# --- prefix cache ---------------------------------------------------------------------------------


def create_twins(num_tokens: int) -> list[Sequence]:
    return [create_sequence(num_tokens=num_tokens, has_prefix_keys=True) for _ in range(2)]


def test_second_prompt_with_the_same_beginning_shares_its_full_blocks() -> None:
    scheduler = create_scheduler()
    first, second = create_twins(11)
    scheduler.add(first)
    assert step(scheduler) == [(first, 11)]
    scheduler.add(second)
    assert step(scheduler) == [(second, 3)]
    assert second.num_cached_tokens == 8


def test_last_row_of_a_prompt_is_always_computed() -> None:
    scheduler = create_scheduler()
    first, second = create_twins(8)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    assert step(scheduler) == [(second, 4)]
    assert second.num_cached_tokens == 4


def test_rows_are_shared_while_their_first_owner_runs() -> None:
    scheduler = create_scheduler()
    first = create_sequence(num_tokens=8, latent_steps=3, has_prefix_keys=True)
    second = create_sequence(num_tokens=10, has_prefix_keys=True)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    rows = scheduler.schedule()
    assert rows == [ScheduledRows(first, 1), ScheduledRows(second, 2)]
    assert second.block_table[:2] == first.block_table[:2]
    check(scheduler)


def test_rows_that_are_not_computed_yet_are_not_shared() -> None:
    scheduler = create_scheduler()
    first, second = create_twins(11)
    add_all(scheduler, first, second)
    assert step(scheduler) == [(first, 11), (second, 11)]
    assert second.num_cached_tokens == 0


def test_rows_of_a_chunk_are_shared_before_the_prompt_is_done() -> None:
    scheduler = create_scheduler(max_num_batched_tokens=8)
    first, second = create_twins(20)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    step(scheduler)
    step(scheduler)
    assert second.num_cached_tokens >= 8


def test_latent_rows_are_never_found_by_tokens() -> None:
    scheduler = create_scheduler()
    first = create_sequence(num_tokens=6, latent_steps=6, has_prefix_keys=True)
    scheduler.add(first)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert scheduler.blocks.num_cached == 1


def test_preempted_sequence_does_not_count_its_own_rows_as_cached() -> None:
    scheduler = create_scheduler(num_blocks=6)
    first = create_sequence(num_tokens=8, max_tokens=12)
    second = create_sequence(num_tokens=9, max_tokens=6, first_token=100, has_prefix_keys=True)
    add_all(scheduler, first, second)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert second.num_preemptions > 0
    assert second.num_cached_tokens == 0


# --- the cancelled --------------------------------------------------------------------------------


def test_cancelled_while_waiting_leaves_the_others_alone() -> None:
    scheduler = create_scheduler(max_num_seqs=1)
    first, second, third = (create_sequence(latent_steps=1) for _ in range(3))
    add_all(scheduler, first, second, third)
    step(scheduler)
    scheduler.remove(second)
    assert list(scheduler.waiting) == [third]
    run_until(scheduler, lambda: not scheduler.has_work)
    assert second.num_computed == 0
    assert len(third.latents) == 1


@pytest.mark.parametrize("num_steps", [1, 2, 4, 6])
def test_cancelled_while_running_gives_its_blocks_back(num_steps: int) -> None:
    scheduler = create_scheduler(max_num_batched_tokens=4)
    sequence = create_sequence(num_tokens=7, latent_steps=2, max_tokens=5)
    scheduler.add(sequence)
    for _ in range(num_steps):
        step(scheduler)
    assert scheduler.blocks.num_used > 0
    scheduler.remove(sequence)
    assert scheduler.blocks.num_used == 0
    assert not scheduler.has_work


def test_cancelled_after_preemption_leaves_nothing_behind() -> None:
    scheduler, (first, second, third) = create_crowd(6, 3)
    run_until(scheduler, lambda: scheduler.num_preemptions == 2)
    scheduler.remove(second)
    scheduler.remove(first)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert len(third.output_ids) == 17
    assert scheduler.blocks.num_used == 0


def test_memory_is_pinned_from_arrival_to_end_also_across_preemption() -> None:
    scheduler = create_scheduler(num_blocks=6, max_num_seqs=2)
    memories = cast(FakeMemories, scheduler.memories)
    first = create_sequence(num_tokens=4, max_tokens=13)
    second = create_sequence(num_tokens=2, max_tokens=9, memory=create_memory(6))
    third = create_sequence(num_tokens=2, memory=create_memory(3))
    add_all(scheduler, first, second, third)
    assert memories.pinned == [second.turn.memory, third.turn.memory]
    run_until(scheduler, lambda: second.num_preemptions > 0)
    assert second.turn.memory in memories.pinned
    scheduler.remove(third)
    assert memories.pinned == [second.turn.memory]
    run_until(scheduler, lambda: not scheduler.has_work)
    assert memories.pinned == []


@pytest.mark.parametrize("seed", range(10))
def test_random_crowd_with_cancellations_ends_and_leaves_nothing(seed: int) -> None:
    choices = random.Random(seed)
    scheduler = create_scheduler(
        num_blocks=choices.choice([14, 20, 60]),
        max_num_seqs=choices.choice([2, 8]),
        max_num_batched_tokens=choices.choice([1, 5, 40]),
    )
    alive: list[Sequence] = []
    cancelled: list[Sequence] = []
    finished: list[Sequence] = []
    for number in range(120):
        if number < 60:
            sequence = create_random_sequence(choices)
            scheduler.add(sequence)
            alive.append(sequence)
        if alive and choices.random() < 0.1:
            cancelled.append(alive.pop(choices.randrange(len(alive))))
            scheduler.remove(cancelled[-1])
        step(scheduler)
        finished += [sequence for sequence in alive if is_finished(sequence)]
        alive = [sequence for sequence in alive if not is_finished(sequence)]
    run_until(scheduler, lambda: not scheduler.has_work)
    finished += alive
    assert all(is_finished(sequence) for sequence in finished)
    assert all(len(s.latents) == s.num_latents_due for s in finished)
    assert len(finished) + len(cancelled) == 60
    assert scheduler.blocks.num_used == 0
    assert cast(FakeMemories, scheduler.memories).pinned == []


def create_random_sequence(choices: random.Random) -> Sequence:
    return create_sequence(
        num_tokens=choices.randint(1, 20),
        latent_steps=choices.randint(0, 6),
        max_tokens=choices.choice([None, 1, 12]),
        memory=create_memory(choices.randint(1, 8)) if choices.random() < 0.3 else None,
        first_token=choices.choice([0, 100]),
        has_prefix_keys=choices.random() < 0.5,
    )
