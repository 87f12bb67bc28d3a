"""Segments in 8 bits: about half the bytes of bfloat16, near what was packed, and whole."""

from dataclasses import replace

import pytest
import torch

from latentmas_core.errors import SegmentError
from latentmas_core.latent.codec import PackedSegments, unpack
from latentmas_core.latent.int8_codec import from_int8, to_int8
from latentmas_core.latent.int8_rows import dequantise, quantise
from tests.latent.factories import LAYOUT
from tests.latent.test_codec import SEGMENTS, pack_all


def create_packed(dtype: torch.dtype = torch.float32) -> PackedSegments:
    return pack_all(dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_out_is_what_went_in_rounded(dtype: torch.dtype) -> None:
    packed = create_packed(dtype)
    made = from_int8(to_int8(packed))
    assert list(made) == [segment.segment_id for segment in SEGMENTS]
    for actual, exact in zip(made.values(), unpack(packed).values(), strict=True):
        assert torch.equal(actual.latents, exact.latents)
        assert actual.kv is not None
        assert exact.kv is not None
        keys, values = quantise(exact.kv.keys, dim=1), quantise(exact.kv.values, dim=3)
        assert torch.equal(actual.kv.keys, dequantise(keys, dtype))
        assert torch.equal(actual.kv.values, dequantise(values, dtype))
        torch.testing.assert_close(actual.kv.keys, exact.kv.keys, rtol=0.01, atol=0.03)
        assert actual.kv.keys.dtype is dtype


def test_its_bytes_are_one_per_number_four_per_range_and_the_latents() -> None:
    packed = create_packed(torch.bfloat16)
    num_rows = sum(segment.num_rows for segment in SEGMENTS)
    per_row = LAYOUT.num_layers * LAYOUT.num_kv_heads
    num_codes = 2 * per_row * LAYOUT.head_dim * num_rows
    num_ranges = per_row * (LAYOUT.head_dim * len(SEGMENTS) + num_rows)
    num_latents = sum(segment.num_latents for segment in SEGMENTS) * LAYOUT.hidden_size
    made = to_int8(packed)
    assert made.num_bytes == num_codes + 4 * num_ranges + 2 * num_latents
    assert made.buffer.is_contiguous()


def test_the_packed_segments_stay_as_they_are() -> None:
    packed = create_packed()
    before = packed.buffer.clone()
    to_int8(packed)
    assert torch.equal(packed.buffer, before)


def test_segments_without_keys_and_values_are_refused() -> None:
    with pytest.raises(SegmentError, match="without keys and values"):
        to_int8(pack_all(has_kv=False))


def test_a_buffer_that_was_cut_is_refused_with_both_sizes() -> None:
    made = to_int8(create_packed())
    cut = replace(made, buffer=made.buffer[:-1])
    with pytest.raises(SegmentError, match=rf"{made.num_bytes - 1} bytes; .* {made.num_bytes}"):
        from_int8(cut)


def test_numbers_that_are_not_finite_are_refused_with_the_agent() -> None:
    packed = create_packed()
    packed.buffer[0] = float("nan")
    with pytest.raises(SegmentError, match="keys of 'planner'"):
        to_int8(packed)


@pytest.mark.parametrize(("at", "name"), [(0, "keys"), (1, "values")])
@pytest.mark.parametrize("damage", ["scale", "middle"])
def test_ranges_that_are_not_finite_are_refused_with_the_agent(
    at: int, name: str, damage: str
) -> None:
    made = to_int8(create_packed())
    per_row = LAYOUT.num_layers * LAYOUT.num_kv_heads
    num_ranges = per_row * sum(LAYOUT.head_dim + segment.num_rows for segment in SEGMENTS)
    num_latents = sum(segment.num_latents for segment in SEGMENTS) * LAYOUT.hidden_size
    ranges = made.buffer[4 * num_latents :][: 4 * num_ranges].view(torch.float16)
    first = at * per_row * LAYOUT.head_dim + (num_ranges if damage == "middle" else 0)
    ranges[first] = float("nan")
    with pytest.raises(SegmentError, match=rf"{name} of agent 'planner' .* send the request again"):
        from_int8(made)
