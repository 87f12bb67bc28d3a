"""Slots are rows of blocks: what is written there is read there, and nowhere else."""

import pytest
import torch

from latentmas_core.engine import kv_pool
from latentmas_core.engine.kv_pool import KVPool, num_block_bytes
from latentmas_core.engine.shards import Shard
from latentmas_core.engine.split_pool import SplitPool, make_pool
from latentmas_core.errors import ConfigError
from latentmas_core.latent.segment import KVRows
from tests.engine.factories import SHAPE, create_pool

TABLE = [5, 2, 9]


def create_rows(num_rows: int, seed: int = 0) -> KVRows:
    size = (SHAPE.num_layers, num_rows, SHAPE.num_kv_heads, SHAPE.head_dim)
    generator = torch.Generator().manual_seed(seed)
    return KVRows(torch.randn(size, generator=generator), torch.randn(size, generator=generator))


def test_slots_follow_the_block_table() -> None:
    slots = create_pool(block_size=4).slots(TABLE, 2, 10)
    assert slots.tolist() == [22, 23, 8, 9, 10, 11, 36, 37]


def test_written_rows_are_read_back() -> None:
    pool, rows = create_pool(), create_rows(7)
    pool.write(pool.slots(TABLE, 3, 10), rows)
    copy = pool.read(pool.slots(TABLE, 3, 10))
    assert torch.equal(copy.keys, rows.keys)
    assert torch.equal(copy.values, rows.values)


def test_row_lies_in_its_block_at_its_offset_in_every_layer() -> None:
    pool, rows = create_pool(block_size=4), create_rows(1)
    pool.write(pool.slots(TABLE, 6, 7), rows)
    assert torch.equal(pool.keys[:, 2, 2], rows.keys[:, 0])
    assert torch.equal(pool.values[:, 2, 2], rows.values[:, 0])


def test_writing_touches_no_other_slot() -> None:
    pool, before = create_pool(seed=1), create_pool(seed=1)
    slots = pool.slots(TABLE, 3, 10)
    pool.write(slots, create_rows(7))
    others = torch.ones(pool.keys[0, :, :, 0, 0].numel(), dtype=torch.bool)
    others[slots] = False
    kept, expected = (p.read(others.nonzero()[:, 0]) for p in (pool, before))
    assert torch.equal(kept.keys, expected.keys)
    assert torch.equal(kept.values, expected.values)


def test_read_rows_are_a_copy() -> None:
    pool = create_pool(seed=1)
    rows = pool.read(pool.slots(TABLE, 0, 5))
    before = rows.keys.clone()
    pool.keys.zero_()
    assert torch.equal(rows.keys, before)


def test_rows_of_another_dtype_are_converted() -> None:
    pool, rows = create_pool(), create_rows(2)
    pool.write(pool.slots(TABLE, 0, 2), KVRows(rows.keys.bfloat16(), rows.values.bfloat16()))
    assert torch.equal(pool.read(pool.slots(TABLE, 0, 2)).keys, rows.keys.bfloat16().float())


def test_copied_block_is_equal_in_every_layer() -> None:
    pool = create_pool(seed=1)
    pool.copy_block(3, 7)
    assert torch.equal(pool.keys[:, 7], pool.keys[:, 3])
    assert torch.equal(pool.values[:, 7], pool.values[:, 3])
    assert not torch.equal(pool.keys[:, 6], pool.keys[:, 3])


def test_new_pool_is_all_zeros_so_that_masked_slots_stay_finite() -> None:
    pool = create_pool()
    assert not pool.keys.any()
    assert not pool.values.any()


def test_block_bytes_are_those_of_the_tensors() -> None:
    pool = create_pool(num_blocks=3, block_size=5)
    num_bytes = pool.keys.nbytes + pool.values.nbytes
    assert num_bytes == 3 * num_block_bytes(SHAPE, 5, torch.float32)
    assert num_bytes == 6 * num_block_bytes(SHAPE, 5, torch.bfloat16)


# --- a pool in parts ------------------------------------------------------------------------------

CPU = torch.device("cpu")
NUM_LAYERS = 5
SPLITS = [[2, 5], [1, 4, 5], [1, 2, 3, 4, 5]]


def create_parts(ends: list[int]) -> SplitPool:
    shards = [Shard(CPU, start, end) for start, end in zip([0, *ends], ends, strict=False)]
    shape = SHAPE._replace(num_layers=NUM_LAYERS)
    pool = make_pool(shape, shards, num_blocks=20, block_size=4, dtype=torch.float32)
    assert isinstance(pool, SplitPool)
    assert [part.num_layers for part in pool.parts] == [shard.num_layers for shard in shards]
    return pool


@pytest.mark.parametrize("ends", SPLITS)
def test_parts_together_hold_what_one_pool_does(ends: list[int]) -> None:
    whole, split = create_pool(num_layers=NUM_LAYERS), create_parts(ends)
    rows = KVRows(*torch.randn(2, NUM_LAYERS, 7, SHAPE.num_kv_heads, SHAPE.head_dim))
    for pool in (whole, split):
        slots = pool.slots(TABLE, 3, 10)
        assert slots.tolist() == whole.slots(TABLE, 3, 10).tolist()
        pool.write(slots, rows)
        pool.copy_block(2, 7)
    for pool in (whole, split):
        for table in (TABLE, [5, 7, 9]):
            copy = pool.read(pool.slots(table, 4, 8))
            assert torch.equal(copy.keys, rows.keys[:, 1:5])
            assert torch.equal(copy.values, rows.values[:, 1:5])
    for layer in range(NUM_LAYERS):
        assert torch.equal(split.layer_keys[layer].pages, whole.keys[layer])
        assert torch.equal(split.layer_values[layer].pages, whole.values[layer])


@pytest.mark.parametrize("ends", SPLITS)
def test_parts_take_the_bytes_of_one_pool(ends: list[int]) -> None:
    parts = create_parts(ends).parts
    num_bytes = sum(part.keys.nbytes + part.values.nbytes for part in parts)
    shape = SHAPE._replace(num_layers=NUM_LAYERS)
    assert num_bytes == 20 * num_block_bytes(shape, 4, torch.float32)


def test_one_shard_is_a_pool_by_itself() -> None:
    shards = [Shard(CPU, 0, SHAPE.num_layers)]
    pool = make_pool(SHAPE, shards, num_blocks=3, block_size=4, dtype=torch.float32)
    assert type(pool) is KVPool
    assert pool.parts == (pool,)


def test_pool_that_finds_no_room_is_refused_with_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(kv_pool, "_zeros", fail)
    shards = [Shard(CPU, 0, 1), Shard(CPU, 1, SHAPE.num_layers)]
    num_bytes = 30 * num_block_bytes(SHAPE._replace(num_layers=1), 4, torch.float32)
    with pytest.raises(ConfigError, match=rf"{num_bytes} bytes of cpu.*Lower kv_cache_bytes") as e:
        make_pool(SHAPE, shards, num_blocks=30, block_size=4, dtype=torch.float32)
    assert e.value.param == "kv_cache_bytes"
