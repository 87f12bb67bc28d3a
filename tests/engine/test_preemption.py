"""Who gives way when blocks run out, what it forgets, and how it comes back."""

from typing import cast

import pytest

from tests.engine.factories import BLOCK_SIZE, create_sequence
from tests.engine.scheduling import (
    FakeMemories,
    add_all,
    create_crowd,
    create_scheduler,
    run_until,
    step,
)


def test_speaking_sequence_takes_a_block_only_when_it_needs_one() -> None:
    scheduler, (speaker,) = create_crowd(20, 1)
    sizes = []
    while scheduler.running:
        sizes.append((speaker.num_computed, len(speaker.block_table)))
        step(scheduler)
    assert sizes == [(n, -(-n // BLOCK_SIZE)) for n in range(4, 20)]


def test_youngest_gives_way_to_the_oldest() -> None:
    scheduler, (first, second, third) = create_crowd(6, 3)
    run_until(scheduler, lambda: scheduler.num_preemptions == 1)
    assert scheduler.running == [first, second]
    run_until(scheduler, lambda: scheduler.num_preemptions == 2)
    assert scheduler.running == [first]
    assert list(scheduler.waiting) == [second, third]
    assert (first.num_preemptions, second.num_preemptions, third.num_preemptions) == (0, 1, 1)


def test_preempted_sequence_forgets_what_was_computed_and_keeps_what_is_known() -> None:
    scheduler = create_scheduler(num_blocks=5)
    first = create_sequence(num_tokens=8, max_tokens=12)
    second = create_sequence(num_tokens=2, latent_steps=4, max_tokens=12)
    add_all(scheduler, first, second)
    run_until(scheduler, lambda: second.num_preemptions == 1)
    assert second.block_table == []
    assert second.num_computed == 0
    assert len(second.latents) == 4
    assert len(second.output_ids) > 0
    num_known = second.num_known
    run_until(scheduler, lambda: first not in scheduler.running)
    assert step(scheduler) == [(second, num_known)]


def test_sequence_that_is_the_youngest_itself_gives_way() -> None:
    scheduler = create_scheduler(num_blocks=4)
    older = create_sequence(num_tokens=5, max_tokens=3)
    youngest = create_sequence(num_tokens=7, max_tokens=9)
    add_all(scheduler, older, youngest)
    step(scheduler)
    step(scheduler)  # both fill their blocks; only the youngest will need one more
    assert step(scheduler) == [(older, 1)]
    assert list(scheduler.waiting) == [youngest]


def test_preempted_sequence_comes_back_before_those_that_came_later() -> None:
    scheduler, (first, second) = create_crowd(2, 2)
    later = create_sequence(num_tokens=1)
    scheduler.add(later)
    step(scheduler)
    assert list(scheduler.waiting) == [second, later]
    assert first in scheduler.running


def test_victim_that_was_scheduled_in_the_same_step_is_not_computed() -> None:
    scheduler = create_scheduler(num_blocks=5)
    old = create_sequence(num_tokens=16, max_tokens=9)
    add_all(scheduler, old)
    step(scheduler)
    # The chunk of the old one is scheduled after the single row of the young one.
    old.num_computed -= 2
    young = create_sequence(num_tokens=3, max_tokens=9)
    scheduler.add(young)
    scheduler.waiting.take(young)
    scheduler.running.append(young)
    young.block_table = scheduler.blocks.allocate(1)
    young.num_computed, young.output_ids = 3, [0]
    old.output_ids = [0] * 2
    scheduled = scheduler.schedule()
    assert [(rows.sequence, rows.num_rows) for rows in scheduled] == [(old, 4)]
    assert list(scheduler.waiting) == [young]


def test_idle_memories_give_way_before_any_sequence() -> None:
    scheduler, speakers = create_crowd(12, 2)
    memories = cast(FakeMemories, scheduler.memories)
    memories.idle_block_ids = scheduler.blocks.allocate(scheduler.blocks.num_free)
    run_until(scheduler, lambda: not scheduler.has_work)
    assert scheduler.num_preemptions == 0
    assert [len(speaker.output_ids) for speaker in speakers] == [17, 17]


def test_sequence_alone_in_a_pool_that_is_too_small_is_our_bug() -> None:
    scheduler, _ = create_crowd(1, 1)
    with pytest.raises(AssertionError, match="needs 1 blocks of an empty pool"):
        step(scheduler)
