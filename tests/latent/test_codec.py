"""Segments travel as one contiguous tensor and come out as views of it."""

import pickle
from dataclasses import replace

import pytest
import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.codec import PackedSegments, pack, unpack
from latentmas_core.latent.segment import Segment, SegmentTensors
from tests.latent.factories import LAYOUT, create_segment, create_tensors, filling

SEGMENTS = (
    create_segment("planner", num_tokens=4, num_latents=3),
    create_segment("critic", num_tokens=1, num_latents=0, first_position=7),
    create_segment("medic", num_tokens=5, num_latents=2).latents_only(),
)


def create_contents(dtype: torch.dtype = torch.float32) -> list[SegmentTensors]:
    return [create_tensors(s, seed=seed, dtype=dtype) for seed, s in enumerate(SEGMENTS)]


def pack_all(*, has_kv: bool = True, dtype: torch.dtype = torch.float32) -> PackedSegments:
    return pack(
        SEGMENTS, filling(SEGMENTS, create_contents(dtype)), LAYOUT, dtype=dtype, has_kv=has_kv
    )


def assert_same_kv(actual: SegmentTensors, expected: SegmentTensors) -> None:
    assert actual.kv is not None
    assert expected.kv is not None
    assert torch.equal(actual.kv.keys, expected.kv.keys)
    assert torch.equal(actual.kv.values, expected.kv.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_packed_comes_out_bit_for_bit(dtype: torch.dtype) -> None:
    contents = unpack(pack_all(dtype=dtype))
    assert list(contents) == [segment.segment_id for segment in SEGMENTS]
    for actual, expected in zip(contents.values(), create_contents(dtype), strict=True):
        assert actual.latents.dtype is dtype
        assert torch.equal(actual.latents, expected.latents)
        assert_same_kv(actual, expected)


def test_without_keys_and_values_only_the_latents_travel() -> None:
    packed = pack_all(has_kv=False)
    assert packed.buffer.numel() == (3 + 0 + 2) * LAYOUT.hidden_size
    for actual, expected in zip(unpack(packed).values(), create_contents(), strict=True):
        assert actual.kv is None
        assert torch.equal(actual.latents, expected.latents)


def test_content_without_keys_and_values_packs_where_none_are_asked_for() -> None:
    contents = [SegmentTensors(content.latents) for content in create_contents()]
    packed = pack(SEGMENTS, filling(SEGMENTS, contents), LAYOUT, dtype=torch.float32, has_kv=False)
    assert torch.equal(packed.buffer, pack_all(has_kv=False).buffer)


def test_buffer_is_one_contiguous_tensor_of_exactly_the_bytes_that_are_needed() -> None:
    packed = pack_all(dtype=torch.bfloat16)
    num_rows = sum(segment.num_rows for segment in SEGMENTS)
    num_kv = 2 * LAYOUT.num_layers * num_rows * LAYOUT.num_kv_heads * LAYOUT.head_dim
    assert packed.buffer.is_contiguous()
    assert packed.num_bytes == 2 * (num_kv + 5 * LAYOUT.hidden_size)
    assert packed.buffer.untyped_storage().nbytes() == packed.num_bytes


def test_packing_copies_so_that_the_source_may_change() -> None:
    contents = create_contents()
    packed = pack(SEGMENTS, filling(SEGMENTS, contents), LAYOUT, dtype=torch.float32)
    assert contents[0].kv is not None
    contents[0].kv.keys.zero_()
    contents[0].latents.zero_()
    assert torch.equal(packed.buffer, pack_all().buffer)


def test_strided_rows_are_packed_in_their_order() -> None:
    contents = create_contents()
    assert contents[0].kv is not None
    strided = contents[0].kv.keys.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    contents[0] = replace(contents[0], kv=replace(contents[0].kv, keys=strided))
    packed = pack(SEGMENTS, filling(SEGMENTS, contents), LAYOUT, dtype=torch.float32)
    assert torch.equal(packed.buffer, pack_all().buffer)


def test_unpacking_does_not_copy() -> None:
    packed = pack_all()
    storage = packed.buffer.untyped_storage().data_ptr()
    for content in unpack(packed).values():
        assert content.kv is not None
        for tensor in (content.kv.keys, content.kv.values, content.latents):
            assert tensor.untyped_storage().data_ptr() == storage
            assert tensor.is_contiguous()


def test_unpacked_keys_of_neighbours_do_not_overlap() -> None:
    packed = pack_all()
    contents = list(unpack(packed).values())
    assert contents[0].kv is not None
    contents[0].kv.keys.zero_()
    contents[0].kv.values.zero_()
    contents[0].latents.zero_()
    size = LAYOUT.num_elements(SEGMENTS[0], has_kv=True)
    assert not packed.buffer[:size].any()
    assert torch.equal(packed.buffer[size:], pack_all().buffer[size:])


@pytest.mark.parametrize("num_missing", [10, 1, -1])
@pytest.mark.parametrize("has_kv", [True, False])
def test_buffer_of_another_size_is_refused_with_both_numbers(
    num_missing: int, has_kv: bool
) -> None:
    packed = pack_all(has_kv=has_kv)
    whole = packed.buffer.numel()
    got = whole - num_missing
    cut = replace(packed, buffer=torch.zeros(got))
    with pytest.raises(SegmentError, match=rf"has {got} elements; 3 segment.*need {whole}\b") as e:
        unpack(cut)
    assert e.value.param == "memory"


def test_header_of_other_segments_is_refused() -> None:
    other: tuple[Segment, ...] = (*SEGMENTS[:-1], create_segment(num_tokens=9))
    with pytest.raises(SegmentError, match="the header is another's"):
        unpack(replace(pack_all(), segments=other))


def test_header_and_buffer_survive_pickling() -> None:
    packed = pack_all(dtype=torch.bfloat16)
    copy = pickle.loads(pickle.dumps(packed))
    assert (copy.segments, copy.layout, copy.has_kv) == (SEGMENTS, LAYOUT, True)
    assert torch.equal(copy.buffer, packed.buffer)
