"""The pool takes what it was given, or a share of what is free."""

from pathlib import Path
from typing import Any

import pytest
import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine import pool_size
from latentmas_core.engine.attention import PAGED_BLOCK_SIZE
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.pool_size import (
    DEFAULT_BLOCK_SIZE,
    MAX_CPU_POOL_BYTES,
    choose_block_size,
    choose_num_blocks,
)
from latentmas_core.errors import ConfigError
from tests.engine.factories import SHAPE

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BLOCK_BYTES = num_block_bytes(SHAPE, 16, torch.float32)


def count_blocks(device: torch.device = CPU, **options: Any) -> int:
    return choose_num_blocks(EngineConfig(**options), SHAPE, 16, torch.float32, device)


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
    free = 80 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
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
