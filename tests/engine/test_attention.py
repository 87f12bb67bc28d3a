"""Paged attention against a softmax written out for every row by itself."""

import math

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine import attention
from latentmas_core.engine.attention import (
    SequenceRows,
    can_read_pages,
    paged_attention,
    paged_attention_forward,
    prepare_batch,
)
from latentmas_core.engine.kv_pool import KVPool
from tests.engine.factories import SHAPE, create_pool

BLOCK_SIZE = 4
SCALING = 0.3
NUM_GROUPS = SHAPE.num_heads // SHAPE.num_kv_heads

# Ragged steps: (slots before, rows) of every sequence, those with one row first.
STEPS = {
    "one row of nothing": [(0, 1)],
    "one row behind a full block": [(4, 1)],
    "rows of different lengths": [(3, 1), (11, 1), (0, 1), (7, 1)],
    "rows of equal lengths": [(6, 1), (6, 1), (6, 1)],
    "a prompt": [(0, 9)],
    "a chunk behind others": [(5, 7)],
    "two prompts": [(0, 6), (0, 3)],
    "all at once": [(12, 1), (2, 1), (0, 5), (9, 8), (3, 2)],
}


def create_tables(sizes: list[tuple[int, int]], *, is_scattered: bool) -> list[SequenceRows]:
    """Sequences over blocks that lie anywhere in the pool, or one behind the other."""
    num_blocks = [-(-(before + rows) // BLOCK_SIZE) for before, rows in sizes]
    blocks = iter(range(1, 40))
    if is_scattered:
        blocks = iter(torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist())
    tables = [[next(blocks) for _ in range(count)] for count in num_blocks]
    return [
        SequenceRows(table, before, rows)
        for table, (before, rows) in zip(tables, sizes, strict=True)
    ]


def create_inputs(num_rows: int, *, seed: int = 5) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values of a step."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(num_rows, heads, SHAPE.head_dim) for heads in (SHAPE.num_heads, 2, 2)]
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def attend_naively(
    sequences: list[SequenceRows],
    pool: KVPool,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """softmax(q k^T scaling) v per row and head, over the rows of its own sequence up to itself."""
    outputs = []
    start = 0
    for sequence in sequences:
        before = pool.read(pool.slots(sequence.block_table, 0, sequence.num_context))
        own = slice(start, start + sequence.num_rows)
        keys = torch.cat((before.keys[layer], key[own]))  # [num_slots, num_kv_heads, head_dim]
        values = torch.cat((before.values[layer], value[own]))
        for row in range(sequence.num_rows):
            end = sequence.num_context + row + 1
            for head in range(SHAPE.num_heads):
                kv_head = head // NUM_GROUPS
                scores = keys[:end, kv_head] @ query[start + row, head] * SCALING
                outputs.append(scores.softmax(dim=0) @ values[:end, kv_head])
        start = own.stop
    return torch.stack(outputs).view(query.shape)


def attend(
    sequences: list[SequenceRows], pool: KVPool, layer: int, inputs: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    batch = prepare_batch(sequences, pool, num_groups=NUM_GROUPS, is_paged=False)
    return paged_attention(batch, layer, *inputs, scaling=SCALING)


@pytest.mark.parametrize("is_scattered", [True, False])
@pytest.mark.parametrize("sizes", STEPS.values(), ids=STEPS)
def test_ragged_step_equals_the_softmax_of_every_row(
    sizes: list[tuple[int, int]], is_scattered: bool
) -> None:
    pool = create_pool(num_blocks=40, seed=1)
    sequences = create_tables(sizes, is_scattered=is_scattered)
    inputs = create_inputs(sum(rows for _, rows in sizes))
    expected = attend_naively(sequences, pool, 1, *inputs)
    assert_close(attend(sequences, pool, 1, inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_scattered", [True, False])
def test_keys_and_values_are_written_where_the_rows_stand(is_scattered: bool) -> None:
    pool, before = (create_pool(num_blocks=40, seed=1) for _ in range(2))
    sequences = create_tables(STEPS["all at once"], is_scattered=is_scattered)
    inputs = create_inputs(17)
    attend(sequences, pool, 1, inputs)
    slots = torch.cat([pool.slots(s.block_table, s.num_context, s.num_slots) for s in sequences])
    written = pool.read(slots)
    assert torch.equal(written.keys[1], inputs[1])
    assert torch.equal(written.values[1], inputs[2])
    assert torch.equal(pool.keys[0], before.keys[0])
    others = torch.ones(40 * BLOCK_SIZE, dtype=torch.bool)
    others[slots] = False
    untouched = others.nonzero()[:, 0]
    assert torch.equal(pool.read(untouched).keys, before.read(untouched).keys)


# Large but finite ones overflow in the product with a query of the neighbour.
BROKEN = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38]


@pytest.mark.parametrize("number", BROKEN)
def test_rows_of_a_guarded_step_that_overflow_are_harmless_to_all_others(number: float) -> None:
    """The neighbour has their block as padding; later it gets the block they were written to."""
    pool = create_pool(num_blocks=40, seed=1)
    broken, neighbour = SequenceRows([0, 1, 2], 11, 1), SequenceRows([5], 2, 1)
    query, key, value = create_inputs(2)
    expected = attend_naively([neighbour], pool, 1, query[1:], key[1:], value[1:])
    key[0], value[0] = number, number
    batch = prepare_batch([broken, neighbour], pool, num_groups=NUM_GROUPS, is_paged=False)
    batch.is_guarded = True
    together = paged_attention(batch, 1, query, key, value, scaling=SCALING)
    assert_close(together[1:], expected, atol=1e-5, rtol=0)
    again = [SequenceRows([7, 8, 9], 11, 1), SequenceRows([2], 2, 1)]
    inputs = create_inputs(2)
    assert_close(
        attend(again, pool, 1, inputs),
        attend_naively(again, pool, 1, *inputs),
        atol=1e-5,
        rtol=0,
    )


def test_steps_after_each_other_equal_one_step() -> None:
    query, key, value = create_inputs(11)
    table = [7, 2, 30]
    pool = create_pool(num_blocks=40)
    whole = attend([SequenceRows(table, 0, 11)], pool, 0, (query, key, value))
    pool = create_pool(num_blocks=40, seed=9)
    parts = []
    for start, end in ((0, 5), (5, 6), (6, 10), (10, 11)):
        inputs = (query[start:end], key[start:end], value[start:end])
        parts.append(attend([SequenceRows(table, start, end - start)], pool, 0, inputs))
    assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)


def test_what_lies_behind_a_row_does_not_matter() -> None:
    sequences = create_tables(STEPS["all at once"], is_scattered=True)
    inputs = create_inputs(17)
    outputs = []
    for garbage in (0.0, 1e4):
        pool = create_pool(num_blocks=40, seed=1)
        for sequence in sequences:
            end = len(sequence.block_table) * BLOCK_SIZE
            slots = pool.slots(sequence.block_table, sequence.num_slots, end)
            pool.keys.view(SHAPE.num_layers, -1, 2, SHAPE.head_dim)[:, slots] = garbage
            pool.values.view(SHAPE.num_layers, -1, 2, SHAPE.head_dim)[:, slots] = garbage
        outputs.append(attend(sequences, pool, 0, inputs))
    assert torch.equal(*outputs)


def test_sequences_that_share_blocks_read_the_same_rows() -> None:
    pool = create_pool(num_blocks=40, seed=1)
    shared = [SequenceRows([3, 9, 20], 8, 1), SequenceRows([3, 9, 21], 8, 1)]
    inputs = create_inputs(2)
    expected = attend_naively(shared, pool, 0, *inputs)
    assert_close(attend(shared, pool, 0, inputs), expected, atol=1e-5, rtol=0)


def test_interface_of_transformers_gives_the_same_in_its_shapes() -> None:
    sequences = create_tables(STEPS["all at once"], is_scattered=True)
    query, key, value = create_inputs(17)
    pool = create_pool(num_blocks=40, seed=1)
    expected = attend(sequences, pool, 1, (query, key, value))
    module = torch.nn.Module()
    module.layer_idx = 1
    batch = prepare_batch(sequences, pool, num_groups=NUM_GROUPS, is_paged=False)
    heads_first = [states.transpose(0, 1)[None] for states in (query, key, value)]
    output, weights = paged_attention_forward(
        module, *heads_first, None, scaling=SCALING, batch=batch, dropout=0.0
    )
    assert weights is None
    assert output.shape == (1, 17, SHAPE.num_heads, SHAPE.head_dim)
    assert_close(output[0], expected, atol=1e-6, rtol=0)


def test_scaling_is_the_one_that_is_given() -> None:
    pool = create_pool(num_blocks=40, seed=1)
    sequences = create_tables([(9, 3)], is_scattered=True)
    batch = prepare_batch(sequences, pool, num_groups=NUM_GROUPS, is_paged=False)
    inputs = create_inputs(3)
    usual = paged_attention(batch, 0, *inputs, scaling=1 / math.sqrt(SHAPE.head_dim))
    assert (usual - paged_attention(batch, 0, *inputs, scaling=SCALING)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.float32)],
)
def test_pages_are_read_only_by_kernels_that_can(device: str, dtype: torch.dtype) -> None:
    assert not can_read_pages(torch.device(device), dtype)


def test_kernel_that_fails_its_trial_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(device: torch.device, dtype: torch.dtype) -> None:
        raise RuntimeError("no kernel for this card")

    monkeypatch.setattr(attention, "_try_paged", fail)
    assert not can_read_pages(torch.device("cuda"), torch.bfloat16)
    if caplog.records:  # this torch has the function at all
        assert "no kernel for this card" in caplog.text
