"""Memories share blocks with their readers, move out of the pool and back, and never leak."""

import pytest
import torch

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.latent.segment import KVRows
from tests.engine.factories import SHAPE, create_sequence
from tests.engine.rooms import (
    Room,
    assert_adds_up,
    assert_same,
    bring_in,
    content_of,
    create_room,
    end,
    load,
    load_rows,
    read_rows,
    start,
    write_own_rows,
)
from tests.latent.factories import create_segment

# --- reading --------------------------------------------------------------------------------------


def test_loaded_memory_goes_to_blocks_that_are_free() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    assert room.blocks.num_used == 3
    assert room.store.num_blocks_to_attach(memory) == 0
    expected = content_of(room, memory)
    reader = start(room, memory)
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)


def test_loaded_memory_moves_nobody_out_and_waits_until_it_is_read() -> None:
    room = create_room(num_blocks=4)
    idle = load_rows(room, 7)
    memory = load_rows(room, 10)
    assert idle.block_table is not None
    assert memory.block_table is None
    assert room.store.num_blocks_to_attach(memory) == 3
    expected = content_of(room, memory)
    assert room.store.make_room(4)
    reader = start(room, memory)
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)


def test_first_reader_appends_into_the_last_block_without_a_copy() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    reader = start(room, memory)
    assert memory.block_table is not None
    assert reader.block_table[:3] == memory.block_table
    assert reader.is_appender
    assert room.blocks.num_used == 4  # 10 + 6 rows


def test_second_reader_copies_the_last_block_and_shares_the_others() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    first = start(room, memory)
    assert room.store.num_blocks_to_attach(memory) == 1
    second = start(room, memory)
    assert memory.block_table is not None
    assert second.block_table[:2] == memory.block_table[:2]
    assert second.block_table[2] != memory.block_table[2]
    assert not second.is_appender
    assert_same(read_rows(room, second.block_table, 0, 10), expected)
    assert_adds_up(room, first, second)


def test_readers_do_not_see_what_others_append() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    readers = [start(room, memory) for _ in range(3)]
    own = [write_own_rows(room, reader, seed=seed) for seed, reader in enumerate(readers)]
    for reader, rows in zip(readers, own, strict=True):
        assert_same(read_rows(room, reader.block_table, 0, 10), expected)
        assert_same(read_rows(room, reader.block_table, 10, 16), rows)


def test_memory_that_fills_its_last_block_is_shared_whole_by_all() -> None:
    room = create_room()
    memory = load_rows(room, 8)
    first = start(room, memory)
    assert room.store.num_blocks_to_attach(memory) == 0
    second = start(room, memory)
    assert first.block_table[:2] == second.block_table[:2] == memory.block_table
    assert first.block_table[2:] != second.block_table[2:]
    assert_adds_up(room, first, second)


def test_reader_may_append_after_one_that_left_nothing_behind() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    end(room, start(room, memory))
    assert room.store.num_blocks_to_attach(memory) == 0
    assert start(room, memory).is_appender


def test_reader_copies_after_one_whose_rows_live_on() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    end(room, start(room, memory), keeps_tail=True)
    assert room.store.num_blocks_to_attach(memory) == 1
    assert not start(room, memory).is_appender


def test_end_of_a_copying_reader_does_not_let_a_third_one_append() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    first, second = start(room, memory), start(room, memory)
    end(room, second)
    third = start(room, memory)
    assert not third.is_appender
    assert_adds_up(room, first, third)


def test_reader_must_have_pinned_its_memory() -> None:
    room = create_room()
    with pytest.raises(AssertionError, match="did not pin"):
        room.store.attach(create_sequence(memory=load_rows(room, 3)))


# --- handing over ---------------------------------------------------------------------------------


def test_adopted_memory_is_what_was_read_and_what_was_computed() -> None:
    room = create_room()
    memory = load(room, create_segment(num_tokens=7, num_latents=3))
    before = content_of(room, memory)
    reader = start(room, memory)
    own = write_own_rows(room, reader, seed=5)
    segment = create_segment("critic", first_position=10, num_tokens=6, num_latents=0)
    adopted = room.store.adopt(reader, segment)
    end(room, reader, keeps_tail=True)
    room.store.release(memory)
    assert adopted.memory.segments == (*memory.memory.segments, segment)
    assert_same(content_of(room, adopted), KVRows.concatenate([before, own]))
    assert room.blocks.num_used == 4
    assert_adds_up(room)


def test_adopted_memory_leaves_the_blocks_of_sampled_rows() -> None:
    room = create_room()
    sequence = create_sequence(num_tokens=6)
    sequence.block_table = room.blocks.allocate(5)
    adopted = room.store.adopt(sequence, create_segment(num_tokens=6, num_latents=0))
    end(room, sequence)
    assert adopted.block_table is not None
    assert len(adopted.block_table) == room.blocks.num_used == 2
    assert_adds_up(room)


def test_adopted_memory_knows_the_latents_of_all_its_segments() -> None:
    room = create_room()
    first = create_segment(num_tokens=2, num_latents=3)
    memory = load(room, first)
    reader = start(room, memory)
    reader.latents = list(torch.randn(2, SHAPE.hidden_size))
    second = create_segment("critic", num_tokens=6, num_latents=2, first_position=5)
    third = create_segment("judger", num_tokens=1, num_latents=0, first_position=13)
    adopted = room.store.adopt(reader, second)
    assert torch.equal(adopted.latents_of(first), memory.latents_of(first))
    assert torch.equal(adopted.latents_of(second), torch.stack(reader.latents))
    reader.latents = []
    assert room.store.adopt(reader, third).latents_of(third).shape == (0, SHAPE.hidden_size)


# --- making room ----------------------------------------------------------------------------------


def test_moving_out_and_back_is_bit_exact() -> None:
    room = create_room(num_blocks=5)
    memory = bring_in(room, load_rows(room, 10))
    expected = content_of(room, memory)
    assert room.store.make_room(5)
    assert memory.block_table is None
    assert room.blocks.num_used == 0
    assert room.store.num_offloads == 1
    assert_same(memory.staged, expected)
    room.pool.keys.fill_(7.0)
    room.pool.values.fill_(7.0)
    reader = start(room, memory)
    assert memory.staged is None
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)


def test_nothing_is_moved_out_where_enough_is_free() -> None:
    room = create_room(num_blocks=5)
    bring_in(room, load_rows(room, 10))
    assert room.store.make_room(2)
    assert room.store.num_offloads == 0


def test_longest_unused_memory_is_moved_out_first() -> None:
    room = create_room(num_blocks=10)
    first, second, third = (bring_in(room, load_rows(room, 10)) for _ in range(3))
    bring_in(room, first)
    assert room.store.make_room(4)
    assert second.block_table is None
    assert first.block_table is not None
    assert third.block_table is not None


def test_memory_that_is_being_read_is_not_moved_out() -> None:
    room = create_room(num_blocks=7)
    read, idle = load_rows(room, 10), bring_in(room, load_rows(room, 4))
    reader = start(room, read, num_tokens=2)
    assert not room.store.make_room(5)
    assert idle.block_table is not None, "moving it out would not have helped"
    assert room.store.make_room(4)
    assert idle.block_table is None
    assert_adds_up(room, reader)


def test_spared_memory_is_not_moved_out() -> None:
    room = create_room(num_blocks=5)
    memory = bring_in(room, load_rows(room, 10))
    assert not room.store.make_room(3, spared=memory)
    assert memory.block_table is not None


def test_blocks_that_a_running_reader_shares_do_not_count_as_reclaimable() -> None:
    room = create_room(num_blocks=6)
    plan = load_rows(room, 8)
    expert = start(room, plan, num_tokens=4)
    write_own_rows(room, expert, seed=3)
    thought = room.store.adopt(expert, create_segment(first_position=8, num_tokens=4))
    end(room, expert, keeps_tail=True)
    other = start(room, plan, num_tokens=1)
    assert not room.store.make_room(5)
    assert room.store.num_offloads == 0
    assert thought.block_table is not None
    assert_adds_up(room, other)


def test_appending_is_allowed_again_after_moving_out() -> None:
    room = create_room(num_blocks=5)
    memory = load_rows(room, 10)
    end(room, start(room, memory), keeps_tail=True)
    assert room.store.make_room(5)
    assert room.store.num_blocks_to_attach(memory) == 3
    assert start(room, memory).is_appender


# --- releasing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_placed", [True, False])
def test_released_memory_is_gone_at_once(is_placed: bool) -> None:
    room = create_room()
    memory = load_rows(room, 10)
    if is_placed:
        bring_in(room, memory)
    room.store.release(memory)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)
    assert memory.is_released
    assert_adds_up(room)


def test_memory_released_under_a_reader_lives_until_it_ends() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    reader = start(room, memory)
    room.store.release(memory)
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)
    end(room, reader)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)
    assert_adds_up(room)


def test_memory_released_while_readers_wait_lives_until_the_last_has_ended() -> None:
    room = create_room(num_blocks=5)
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    room.store.pin(memory)  # somebody else waits
    room.store.release(memory)
    first = start_pinned(room, memory)
    end(room, first)
    assert room.store.make_room(5)
    second = start_pinned(room, memory)
    assert_same(read_rows(room, second.block_table, 0, 10), expected)
    end(room, second)
    assert len(room.store) == 1
    room.store.unpin(memory)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)


def start_pinned(room: Room, memory: ResidentMemory) -> Sequence:
    """A reader that had arrived before the memory was released."""
    memory.num_pins += 1
    sequence = create_sequence(num_tokens=1, memory=memory)
    room.store.attach(sequence)
    return sequence


def test_new_reader_of_a_released_memory_is_our_bug() -> None:
    room = create_room()
    memory = load_rows(room, 3)
    room.store.release(memory)
    with pytest.raises(AssertionError, match="was released"):
        room.store.pin(memory)


def test_releasing_twice_is_our_bug_and_frees_nothing_more() -> None:
    room = create_room()
    kept, released = bring_in(room, load_rows(room, 3)), bring_in(room, load_rows(room, 3))
    room.store.release(released)
    with pytest.raises(AssertionError, match="released twice"):
        room.store.release(released)
    assert kept.block_table is not None
    assert_adds_up(room)


def test_integrity_notices_a_memory_that_lies_in_two_places() -> None:
    room = create_room()
    memory = bring_in(room, load_rows(room, 3))
    memory.staged = content_of(room, memory)
    with pytest.raises(AssertionError, match="in blocks and staged"):
        room.store.check_integrity()
