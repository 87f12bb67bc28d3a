"""The pool takes what it was given, or a share of what is free."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from latentmas_core.config import EngineConfig
from latentmas_core.engine import pool_size
from latentmas_core.engine.attention import PAGED_BLOCK_SIZE
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.pool_size import (
    DEFAULT_BLOCK_SIZE,
    MAX_CPU_POOL_BYTES,
    choose_block_size,
    choose_num_blocks,
    limit_memory,
)
from latentmas_core.engine.shards import Shard
from latentmas_core.errors import ConfigError
from tests.engine.factories import SHAPE

CPU, CUDA, OTHER_CUDA = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
GIB = 2**30
BLOCK_BYTES = num_block_bytes(SHAPE, 16, torch.float32)


def count_blocks(device: torch.device = CPU, **options: Any) -> int:
    return count_split_blocks(Shard(device, 0, SHAPE.num_layers), **options)


def count_split_blocks(*shards: Shard, **options: Any) -> int:
    return choose_num_blocks(EngineConfig(**options), SHAPE, 16, torch.float32, shards)


def pretend_cards(
    monkeypatch: pytest.MonkeyPatch,
    free: dict[torch.device, int],
    *,
    num_total: int = 80 * GIB,
    num_reserved: int = 0,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], num_total))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: num_reserved)


def pretend_free_host_bytes(monkeypatch: pytest.MonkeyPatch, num_bytes: int | None) -> None:
    monkeypatch.setattr(pool_size, "available_host_bytes", lambda: num_bytes)


def test_block_size_is_the_default_unless_told() -> None:
    assert choose_block_size(EngineConfig(), is_paged=False) == DEFAULT_BLOCK_SIZE
    assert choose_block_size(EngineConfig(block_size=5), is_paged=False) == 5


def test_pages_have_the_size_that_the_kernel_reads() -> None:
    assert choose_block_size(EngineConfig(), is_paged=True) == PAGED_BLOCK_SIZE
    config = EngineConfig(block_size=2 * PAGED_BLOCK_SIZE)
    assert choose_block_size(config, is_paged=True) == 2 * PAGED_BLOCK_SIZE


def test_pages_of_another_size_are_refused_with_both_numbers() -> None:
    expected = rf"block_size is 16;.*pages of {PAGED_BLOCK_SIZE}"
    with pytest.raises(ConfigError, match=expected) as caught:
        choose_block_size(EngineConfig(block_size=16), is_paged=True)
    assert caught.value.param == "block_size"


def test_given_bytes_are_used_up_to_the_last_whole_block() -> None:
    assert count_blocks(kv_cache_bytes=10 * BLOCK_BYTES) == 10
    assert count_blocks(kv_cache_bytes=11 * BLOCK_BYTES - 1) == 10


def test_host_gives_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_free_host_bytes(monkeypatch, 400 * 4096)
    assert count_blocks(memory_share=0.25) == 100 * 4096 // BLOCK_BYTES


def test_host_gives_no_more_than_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_free_host_bytes(monkeypatch, 2**40)
    assert count_blocks(memory_share=0.5) == MAX_CPU_POOL_BYTES // BLOCK_BYTES


def test_card_gives_a_share_of_what_is_free_without_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 40 * GIB
    pretend_cards(monkeypatch, {CUDA: free})
    assert count_blocks(CUDA, memory_share=0.5) == free // 2 // BLOCK_BYTES
    assert free // 2 > MAX_CPU_POOL_BYTES


def test_pool_of_less_than_two_blocks_is_refused_with_all_numbers() -> None:
    got = 2 * BLOCK_BYTES - 1
    expected = rf"has {got} bytes, which is 1 block\(s\) of {BLOCK_BYTES} bytes;.*at least 2\b"
    with pytest.raises(ConfigError, match=expected) as caught:
        count_blocks(kv_cache_bytes=got)
    assert caught.value.param == "kv_cache_bytes"


def test_host_that_does_not_say_what_is_free_gives_the_most_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_free_host_bytes(monkeypatch, None)
    assert count_blocks(memory_share=0.25) == MAX_CPU_POOL_BYTES // BLOCK_BYTES


def test_available_memory_is_read_from_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable: 7 kB\n")
    monkeypatch.setattr(pool_size, "MEMINFO", meminfo)
    assert pool_size.available_host_bytes() == 7 * 1024
    monkeypatch.setattr(pool_size, "MEMINFO", tmp_path / "absent")
    assert pool_size.available_host_bytes() is None


# --- several processes on one card ----------------------------------------------------------------


def test_pool_is_taken_from_the_share_of_the_card_that_is_left_to_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights are in already: a quarter of 80 GiB without 8 leaves 12, of which half."""
    pretend_cards(monkeypatch, {CUDA: 72 * GIB}, num_reserved=8 * GIB)
    options = {"device_memory_share": 0.25, "memory_share": 0.5}
    assert count_blocks(CUDA, **options) == 6 * GIB // BLOCK_BYTES


def test_four_processes_on_a_card_get_equal_pools_whichever_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each sees less free memory than the one before, and none takes of what is another's."""
    weights, free = 8 * GIB, 80 * GIB
    pools = []
    for _ in range(4):
        pretend_cards(monkeypatch, {CUDA: free - weights}, num_reserved=weights)
        pools.append(count_blocks(CUDA, device_memory_share=0.25, memory_share=0.95) * BLOCK_BYTES)
        free -= weights + pools[-1]
    assert len(set(pools)) == 1
    assert sum(pools) + 4 * weights <= 80 * GIB


def test_share_gives_no_more_than_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(monkeypatch, {CUDA: 2 * GIB})
    assert count_blocks(CUDA, device_memory_share=0.5, memory_share=0.5) == GIB // BLOCK_BYTES


def test_weights_that_fill_the_share_leave_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(monkeypatch, {CUDA: 60 * GIB}, num_reserved=21 * GIB)
    expected = r"has 0 bytes, which is 0 block\(s\).*memory_share or device_memory_share"
    with pytest.raises(ConfigError, match=expected):
        count_blocks(CUDA, device_memory_share=0.25)


def test_share_limits_what_torch_takes_of_every_card(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, torch.device]] = []
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda share, device: limits.append((share, device)),
    )
    limit_memory([CUDA, OTHER_CUDA], None)
    assert limits == []
    limit_memory([CUDA, OTHER_CUDA], 0.25)
    assert limits == [(0.25, CUDA), (0.25, OTHER_CUDA)]


def test_share_of_a_cpu_is_refused_with_its_value() -> None:
    expected = r"device_memory_share is 0\.25, and the device is 'cpu'.*Leave it out"
    with pytest.raises(ConfigError, match=expected) as caught:
        limit_memory([CPU], 0.25)
    assert caught.value.param == "device_memory_share"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValidationError, match="device_memory_share"):
        EngineConfig(device_memory_share=share)


@pytest.mark.parametrize("num_devices", [0, -1, 1.5])
def test_number_of_devices_out_of_range_is_refused(num_devices: Any) -> None:
    with pytest.raises(ValidationError, match="num_devices"):
        EngineConfig(num_devices=num_devices)


# --- several cards --------------------------------------------------------------------------------


def test_card_with_the_least_room_for_its_layers_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """SHAPE has two layers; a block takes half of its bytes on each card."""
    shards = (Shard(CUDA, 0, 1), Shard(OTHER_CUDA, 1, 2))
    pretend_cards(monkeypatch, {CUDA: 40 * GIB, OTHER_CUDA: 10 * GIB})
    expected = 5 * GIB // (BLOCK_BYTES // 2)
    assert count_split_blocks(*shards, memory_share=0.5) == expected
    pretend_cards(monkeypatch, {CUDA: 10 * GIB, OTHER_CUDA: 40 * GIB})
    assert count_split_blocks(*shards, memory_share=0.5) == expected


def test_shards_on_one_device_share_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cards(monkeypatch, {CUDA: 40 * GIB})
    shards = (Shard(CUDA, 0, 1), Shard(CUDA, 1, 2))
    assert count_split_blocks(*shards) == count_blocks(CUDA)


def test_given_bytes_are_those_of_all_devices_together() -> None:
    shards = (Shard(CUDA, 0, 1), Shard(OTHER_CUDA, 1, 2))
    assert count_split_blocks(*shards, kv_cache_bytes=10 * BLOCK_BYTES) == 10
