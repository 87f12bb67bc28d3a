"""A segment says where its rows stand and what they attended to; it never changes."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.segment import BASE_ADAPTER, KVRows, Seen
from tests.latent.factories import create_segment, create_tensors


def test_rows_are_the_tokens_and_then_the_latents() -> None:
    segment = create_segment(first_position=7, num_tokens=3, num_latents=2)
    assert segment.num_rows == 5
    assert segment.end_position == 12


def test_two_segments_with_equal_content_have_different_ids() -> None:
    assert create_segment().segment_id != create_segment().segment_id


def test_segment_belongs_to_the_base_adapter_unless_told() -> None:
    assert create_segment().adapter == BASE_ADAPTER
    assert create_segment(adapter="sha256:1").adapter == "sha256:1"


def test_segment_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        create_segment().first_position = 3  # type: ignore[misc]


def test_segment_without_rows_is_refused() -> None:
    with pytest.raises(SegmentError, match=r"'planner' has no rows; it needs at least 1"):
        create_segment(num_tokens=0, num_latents=0)


def test_latents_keep_their_positions_and_their_origin_when_the_prompt_is_left_out() -> None:
    segment = create_segment(
        first_position=7, num_tokens=3, num_latents=2, context=(Seen("plan", 4),), adapter="a"
    )
    latents = segment.latents_only()
    assert latents.token_ids == ()
    assert (latents.first_position, latents.end_position) == (10, 12)
    assert latents.num_rows == 2
    assert (latents.agent, latents.adapter, latents.context) == ("planner", "a", segment.context)
    assert latents.segment_id == segment.latents_id != segment.segment_id


def test_leaving_the_prompt_out_twice_changes_nothing() -> None:
    latents = create_segment().latents_only()
    assert latents.latents_only() == latents
    assert latents.latents_id == latents.segment_id


def test_leaving_out_everything_is_refused() -> None:
    with pytest.raises(SegmentError, match=r"took 0 latent steps.*latent_steps >= 1") as caught:
        create_segment(num_latents=0).latents_only()
    assert caught.value.param == "carry"


def test_selected_rows_are_those_of_every_layer() -> None:
    kv = create_tensors(create_segment(num_tokens=4, num_latents=2)).kv
    assert kv is not None
    part = kv.select(1, 4)
    assert part.num_rows == 3
    assert torch.equal(part.keys, kv.keys[:, 1:4])
    assert torch.equal(part.values, kv.values[:, 1:4])


def test_concatenated_runs_follow_each_other_row_by_row() -> None:
    kv = create_tensors(create_segment(num_tokens=4, num_latents=2)).kv
    assert kv is not None
    whole = KVRows.concatenate([kv.select(0, 2), kv.select(2, 3), kv.select(3, 6)])
    assert torch.equal(whole.keys, kv.keys)
    assert torch.equal(whole.values, kv.values)
