"""Buffers are used again, but never while anything still refers to their memory."""

import pickle

import numpy as np
import pytest
import torch

from latentmas_core.latent.wire_buffers import MIN_KEPT_BYTES, WireBuffers

SIZE = 2 * MIN_KEPT_BYTES


def test_memory_of_a_dropped_buffer_is_taken_again() -> None:
    buffers = WireBuffers()
    first = buffers.take(SIZE)
    address = first.data_ptr()
    assert buffers.num_free_bytes == 0
    del first
    assert buffers.num_free_bytes == SIZE
    assert buffers.take(SIZE - 10).data_ptr() == address
    assert buffers.take(SIZE - 10).shape == (SIZE - 10,)


@pytest.mark.parametrize(
    "refer",
    [
        lambda buffer: buffer[5:].view(torch.uint8),
        lambda buffer: buffer.view(torch.bfloat16).view(2, -1)[1],
        lambda buffer: buffer.numpy(),
        lambda buffer: buffer.numpy()[7:9],
        lambda buffer: torch.from_numpy(buffer.numpy())[3:],
        lambda buffer: memoryview(buffer.numpy()),
        lambda buffer: pickle.PickleBuffer(buffer.numpy()),
        lambda buffer: np.frombuffer(buffer.numpy(), dtype=np.uint16),
    ],
)
def test_memory_that_anything_refers_to_is_not_taken(refer) -> None:
    buffers = WireBuffers()
    buffer = buffers.take(SIZE)
    address = buffer.data_ptr()
    view = refer(buffer)
    del buffer
    assert buffers.num_free_bytes == 0
    other = buffers.take(SIZE)
    assert other.data_ptr() != address
    del view
    assert buffers.num_free_bytes == SIZE


def test_smallest_that_is_large_enough_is_taken() -> None:
    buffers = WireBuffers()
    taken = [buffers.take(factor * SIZE) for factor in (3, 1, 2)]
    addresses = [buffer.data_ptr() for buffer in taken]
    taken.clear()
    assert buffers.take(2 * SIZE).data_ptr() == addresses[2]
    large = buffers.take(4 * SIZE)
    assert large.data_ptr() not in addresses


def test_no_more_is_kept_than_allowed() -> None:
    buffers = WireBuffers(max_kept_bytes=3 * SIZE)
    taken = [buffers.take(factor * SIZE) for factor in (2, 1, 1, 4)]
    while taken:
        del taken[0]
        assert buffers.num_free_bytes <= 3 * SIZE
    assert buffers.num_free_bytes == 3 * SIZE


def test_small_ones_that_are_kept_give_way_to_a_larger_one() -> None:
    buffers = WireBuffers(max_kept_bytes=4 * SIZE)
    taken = [buffers.take(SIZE) for _ in range(4)]
    taken.clear()
    large = buffers.take(3 * SIZE)
    address = large.data_ptr()
    del large
    assert buffers.num_free_bytes == 4 * SIZE
    assert buffers.take(2 * SIZE).data_ptr() == address


@pytest.mark.parametrize("num_bytes", [0, 1, MIN_KEPT_BYTES - 1, 3 * SIZE + 1])
def test_small_ones_and_those_beyond_the_limit_are_not_kept_and_displace_none(
    num_bytes: int,
) -> None:
    buffers = WireBuffers(max_kept_bytes=3 * SIZE)
    buffers.take(2 * SIZE)
    assert buffers.take(num_bytes).shape == (num_bytes,)
    assert buffers.num_free_bytes == 2 * SIZE
