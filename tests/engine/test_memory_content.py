"""Memories are joined, taken apart, loaded and exported without changing what they came from."""

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.errors import SegmentError
from latentmas_core.latent.memory import Memory, MergeRule, Placement, merge
from latentmas_core.latent.rotary import rotate_keys
from latentmas_core.latent.segment import KVRows, SegmentTensors
from tests.engine.rooms import (
    INV_FREQ,
    Room,
    assert_adds_up,
    assert_same,
    bring_in,
    content_of,
    create_room,
    create_tensors,
    end,
    load,
    load_rows,
    start,
    write_own_rows,
)
from tests.latent.factories import create_segment


def create_experts(room: Room) -> list[ResidentMemory]:
    """One in blocks, one staged."""
    first = bring_in(room, load(room, create_segment("medic", num_tokens=4, num_latents=3)))
    return [first, load(room, create_segment("coder", num_tokens=2, num_latents=2))]


@pytest.mark.parametrize("rule", MergeRule)
def test_assembled_memory_holds_moved_copies_of_its_sources(rule: MergeRule) -> None:
    room = create_room()
    experts = create_experts(room)
    target = merge([expert.memory for expert in experts], rule)
    merged = room.store.assemble(target, experts)
    rows = content_of(room, merged)
    start_row = 0
    for expert, placement in zip(experts, target.placements, strict=True):
        source, end_row = content_of(room, expert), start_row + expert.num_rows
        expected = rotate_keys(source.keys, placement.shift, INV_FREQ)
        assert_same(rows.select(start_row, end_row), KVRows(expected, source.values))
        segment = placement.segment
        assert torch.equal(merged.latents_of(segment), expert.latents_of(segment))
        start_row = end_row
    assert_adds_up(room)


def test_assembled_memory_outlives_its_sources() -> None:
    room = create_room()
    experts = create_experts(room)
    merged = room.store.assemble(merge([expert.memory for expert in experts]), experts)
    expected = content_of(room, merged)
    for expert in experts:
        room.store.release(expert)
    assert_same(content_of(room, merged), expected)
    assert len(room.store) == 1
    assert_adds_up(room)


def test_assembling_in_a_full_pool_stages_the_rows() -> None:
    room = create_room(num_blocks=4)
    experts = create_experts(room)
    expected = [content_of(room, expert) for expert in experts]
    assert room.store.make_room(2, spared=experts[0])
    reader = start(room, experts[0], num_tokens=9)
    merged = room.store.assemble(merge([expert.memory for expert in experts]), experts)
    assert merged.block_table is None
    assert_same(merged.staged, KVRows.concatenate(expected))
    assert_adds_up(room, reader)


def test_latents_only_takes_the_rows_behind_each_prompt() -> None:
    room = create_room()
    first = create_segment("medic", num_tokens=4, num_latents=3)
    second = create_segment("coder", first_position=7, num_tokens=2, num_latents=2)
    memory = bring_in(room, load(room, first, second))
    whole = content_of(room, memory)
    latents = room.store.assemble(memory.memory.latents_only(), [memory])
    expected = KVRows.concatenate([whole.select(4, 7), whole.select(9, 11)])
    assert_same(content_of(room, latents), expected)
    assert latents.memory.next_position == memory.memory.next_position
    for segment in (first, second):
        thought = latents.latents_of(segment.latents_only())
        assert torch.equal(thought, memory.latents_of(segment))


def test_segment_that_is_in_no_source_is_refused() -> None:
    room = create_room()
    experts = create_experts(room)
    stranger = create_segment("stranger")
    with pytest.raises(SegmentError, match="'stranger' is in none of the 2 memories") as caught:
        room.store.assemble(Memory((Placement(stranger),)), experts)
    assert caught.value.param == "memory"
    assert len(room.store) == 2


def test_export_gives_keys_back_at_their_first_positions() -> None:
    room = create_room()
    experts = create_experts(room)
    sources = [content_of(room, expert) for expert in experts]
    target = merge([expert.memory for expert in experts], MergeRule.CONSECUTIVE)
    merged = room.store.assemble(target, experts)
    exported = room.store.export(merged, target.segments)
    for content, source, expert in zip(exported, sources, experts, strict=True):
        assert content.kv is not None
        assert_close(content.kv.keys, source.keys, atol=2e-6, rtol=0)
        assert torch.equal(content.kv.values, source.values)
        assert torch.equal(content.latents, expert.latents_of(expert.memory.segments[0]))


def test_export_of_some_segments_leaves_the_others() -> None:
    room = create_room()
    first, second = create_segment(num_tokens=3), create_segment(num_tokens=5, first_position=5)
    memory = bring_in(room, load(room, first, second))
    (content,) = room.store.export(memory, [second])
    assert_same(content.kv, content_of(room, memory).select(first.num_rows, memory.num_rows))


@pytest.mark.parametrize("is_placed", [True, False])
def test_exported_rows_do_not_change_with_the_pool(is_placed: bool) -> None:
    room = create_room()
    memory = load_rows(room, 6)
    if is_placed:
        bring_in(room, memory)
    expected = content_of(room, memory)
    (content,) = room.store.export(memory, memory.memory.segments)
    room.pool.keys.zero_()
    room.pool.values.zero_()
    assert_same(content.kv, expected)


@pytest.mark.parametrize("rule", MergeRule)
def test_loading_puts_segments_where_their_placements_say(rule: MergeRule) -> None:
    room = create_room()
    segments = [create_segment("medic", num_tokens=4), create_segment("coder", num_tokens=2)]
    target = merge([Memory((Placement(segment),)) for segment in segments], rule)
    tensors = {s.segment_id: create_tensors(s, seed=seed) for seed, s in enumerate(segments)}
    rows = content_of(room, room.store.load(target, tensors))
    first, second = (tensors[segment.segment_id].kv for segment in segments)
    assert first is not None
    assert second is not None
    moved = rotate_keys(second.keys, target.placements[1].shift, INV_FREQ)
    assert_same(rows, KVRows.concatenate([first, KVRows(moved, second.values)]))


def test_loaded_buffers_are_never_written_to() -> None:
    room = create_room(num_blocks=5)
    segment = create_segment(num_tokens=4, num_latents=2)
    tensors = create_tensors(segment)
    memory = room.store.load(Memory((Placement(segment),)), {segment.segment_id: tensors})
    reader = start(room, memory)
    write_own_rows(room, reader, seed=3)
    end(room, reader)
    room.store.export(memory, [segment])
    room.store.assemble(memory.memory.latents_only(), [memory])
    room.store.make_room(5)
    start(room, memory)
    expected = create_tensors(segment)
    assert_same(tensors.kv, expected.kv)
    assert torch.equal(tensors.latents, expected.latents)


def test_memory_without_keys_and_values_has_latents_and_no_rows() -> None:
    room = create_room()
    segment = create_segment()
    latents = create_tensors(segment).latents
    memory = room.store.load(
        Memory((Placement(segment),)), {segment.segment_id: SegmentTensors(latents)}
    )
    assert memory.block_table is None
    assert memory.staged is None
    assert torch.equal(memory.latents_of(segment), latents)
    room.store.check_integrity()
    room.store.release(memory)
    assert len(room.store) == 0
