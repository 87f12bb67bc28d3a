"""Memories are joined by rules: chain, merge reused, merge consecutive, latents only."""

import pytest

from latentmas_core.errors import SegmentError
from latentmas_core.latent.memory import Memory, MergeRule, Placement, check_same_model, merge
from latentmas_core.latent.segment import Seen, Segment
from tests.latent.factories import create_segment


def create_memory(*segments: Segment) -> Memory:
    """A chain of segments, each of which stands where it was computed."""
    memory = Memory()
    for segment in segments:
        memory = memory.followed_by(segment)
    return memory


def create_chain(*num_rows: int) -> Memory:
    """A self-contained chain of agents with so many rows."""
    memory = Memory()
    for number, size in enumerate(num_rows):
        segment = create_segment(
            f"agent-{number}",
            first_position=memory.next_position,
            num_tokens=size - 1,
            num_latents=1,
            context=memory.seen,
        )
        memory = memory.followed_by(segment)
    return memory


def shifts_of(memory: Memory) -> list[int]:
    return [placement.shift for placement in memory.placements]


def test_empty_memory_has_no_rows_and_starts_at_position_0() -> None:
    assert (Memory().num_rows, Memory().next_position, Memory().seen) == (0, 0, ())


def test_chain_follows_on() -> None:
    memory = create_chain(4, 3, 2)
    assert memory.num_rows == memory.next_position == 9
    assert shifts_of(memory) == [0, 0, 0]
    assert [segment.first_position for segment in memory.segments] == [0, 4, 7]


def test_following_leaves_the_first_memory_as_it_was() -> None:
    first = create_chain(4)
    second = first.followed_by(create_segment(first_position=4))
    assert len(first.segments) == 1
    assert second.segments[:1] == first.segments


def test_what_was_seen_names_segments_and_how_far_they_were_moved() -> None:
    memory = merge([create_chain(4), create_chain(3)], MergeRule.CONSECUTIVE)
    first, second = memory.segment_ids
    assert memory.seen == (Seen(first, 0), Seen(second, 4))


def test_merging_with_reused_positions_moves_nothing_and_ends_behind_the_longest() -> None:
    memory = merge([create_chain(4), create_chain(6, 1), create_chain(3)])
    assert shifts_of(memory) == [0, 0, 0, 0]
    assert memory.num_rows == 14
    assert memory.next_position == 7


def test_merging_with_reused_positions_holds_a_shared_prefix_once() -> None:
    plan = create_chain(5)
    experts = [
        plan.followed_by(create_segment(name, first_position=5, context=plan.seen))
        for name in ("medic", "coder")
    ]
    memory = merge(experts)
    assert [segment.agent for segment in memory.segments] == ["agent-0", "medic", "coder"]
    assert memory.num_rows == 5 + 5 + 5
    assert memory.next_position == 10


def test_merging_consecutively_moves_each_memory_behind_the_one_before() -> None:
    memory = merge([create_chain(4), create_chain(6, 1), create_chain(3)], MergeRule.CONSECUTIVE)
    assert shifts_of(memory) == [0, 4, 4, 11]
    assert [placement.end_position for placement in memory.placements] == [4, 10, 11, 14]
    assert memory.next_position == memory.num_rows == 14


def test_merging_consecutively_adds_to_shifts_that_are_there() -> None:
    inner = merge([create_chain(2), create_chain(3)], MergeRule.CONSECUTIVE)
    memory = merge([create_chain(4), inner], MergeRule.CONSECUTIVE)
    assert shifts_of(memory) == [0, 4, 6]


def test_merging_consecutively_refuses_experts_with_a_shared_ancestor() -> None:
    plan = create_chain(5)
    experts = [plan.followed_by(create_segment(first_position=5)) for _ in range(2)]
    with pytest.raises(SegmentError, match=r"share 1 segment\(s\).*merge='reused'") as caught:
        merge(experts, MergeRule.CONSECUTIVE)
    assert caught.value.param == "merge"


def test_merging_refuses_one_segment_in_two_places() -> None:
    chain = create_chain(3)
    moved = merge([create_chain(4), chain], MergeRule.CONSECUTIVE)
    with pytest.raises(SegmentError, match="shifted by 0 and by 4") as caught:
        merge([chain, moved], MergeRule.REUSED)
    assert caught.value.param == "merge"


@pytest.mark.parametrize("rule", MergeRule)
def test_merging_one_memory_gives_it_back(rule: MergeRule) -> None:
    memory = create_chain(4, 2)
    assert merge([memory], rule) is memory


@pytest.mark.parametrize("rule", MergeRule)
def test_merging_refuses_memories_of_different_models(rule: MergeRule) -> None:
    other = create_memory(create_segment("critic", fingerprint="model-b"))
    with pytest.raises(SegmentError, match=r"'critic' was made by model model-b.*needs model-a"):
        merge([create_chain(4), other], rule)


def test_segments_of_another_model_than_the_given_one_are_refused() -> None:
    segments = create_chain(4, 2).segments
    check_same_model(segments, "model-a")
    with pytest.raises(SegmentError, match=r"model-a, this memory needs model-c.*handoff='text'"):
        check_same_model(segments, "model-c")


def test_no_segments_are_of_any_model() -> None:
    check_same_model([])
    check_same_model([], "model-a")


def test_latents_only_keeps_positions_and_shifts() -> None:
    memory = merge([create_chain(4), create_chain(3)], MergeRule.CONSECUTIVE).latents_only()
    assert memory.num_rows == 2
    assert [segment.first_position for segment in memory.segments] == [3, 2]
    assert shifts_of(memory) == [0, 4]
    assert memory.next_position == 7


def test_latents_only_refuses_an_agent_that_did_not_think() -> None:
    with pytest.raises(SegmentError, match="'judger' took 0 latent steps"):
        create_memory(create_segment("judger", num_latents=0)).latents_only()


def test_placement_ends_where_its_segment_was_moved_to() -> None:
    assert Placement(create_segment(first_position=2, num_tokens=3), 10).end_position == 17
