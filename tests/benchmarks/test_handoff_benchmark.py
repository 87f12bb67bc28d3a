"""The hand-off benchmark measures what it says: copies, parts of the time, and a whole tiny run."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.handoff import MEASUREMENTS, measure_all
from benchmarks.measure import Comparison, Figures, Missing
from benchmarks.serving.copies import CopyCounter, copies_counted
from benchmarks.serving.handoff_calls import HandOff
from benchmarks.serving.handoff_measures import QUICK, MemorySize, Sizes, percentile
from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.turn import Turn

TINY = Sizes(
    num_rounds=1,
    memories=(MemorySize(1_000_000), MemorySize(2_000_000, 60.0)),
    pool_bytes=2**24,
    num_groups=(1, 2),
    num_calls=2,
)
ROW = torch.randn(4, 8)


def test_views_allocations_and_whole_numbers_are_no_copies() -> None:
    with CopyCounter() as counter:
        torch.empty(100)
        ROW[1:].view(-1).unsqueeze(0).detach().unbind()
        torch.arange(1000) * 2
    assert counter.num_bytes == 0


def test_every_copy_counts_what_it_writes() -> None:
    pool, buffer = torch.zeros(100, 8), torch.empty(4, 8)
    for copy in (
        lambda: ROW.clone(),
        lambda: buffer.copy_(ROW),
        lambda: pool.index_copy_(0, torch.arange(4), ROW),
        lambda: torch.index_select(pool, 0, torch.arange(4), out=buffer),
        lambda: torch.cat([ROW[:2], ROW[2:]]),
        lambda: ROW.to(torch.float32, copy=True),
    ):
        with CopyCounter() as counter:
            copy()
        assert counter.num_bytes == 4 * 8 * 4


async def test_packing_and_loading_copy_on_the_engines_thread_and_once(tiny_llama: Path) -> None:
    engine = Engine(EngineConfig(model_name=str(tiny_llama), device="cpu", kv_cache_bytes=2**22))
    try:
        turn = Turn("planner", tuple(range(40)), num_latent_steps=3, keeps_memory=True)
        memory = (await engine.complete(turn)).memory
        async with copies_counted(engine) as giving:
            packed = await engine.pack(memory, memory.memory.segments)
        assert giving.num_bytes == packed.num_bytes > 0
        async with copies_counted(engine) as twice:
            await engine.pack(memory, memory.memory.segments)
            await engine.export(memory, memory.memory.segments)
        assert twice.num_bytes > 1.9 * packed.num_bytes
    finally:
        engine.close()


def test_calls_are_what_is_left_of_the_whole() -> None:
    assert HandOff(1.0, 0.1, 0.2, 0.05, 0.15, 0.3).calls == pytest.approx(0.2)


def test_percentiles_are_those_of_the_rounds() -> None:
    figures = Figures("ours", [float(number) for number in range(101)])
    assert (percentile(figures, 10), percentile(figures, 90)) == (10.0, 90.0)
    assert percentile(Figures("ours", [7.0]), 90) == 7.0


@pytest.mark.bench
@pytest.mark.serve
@pytest.mark.slow
def test_every_measurement_runs_and_what_arrives_is_what_was_sent() -> None:
    measured = measure_all(TINY, 1, list(MEASUREMENTS))
    assert not [one for one in measured if isinstance(one, Missing)], measured
    by_name = {one.name: one for one in measured if isinstance(one, Comparison)}
    assert {"1MB_by_value", "2MB_bar", "fused_bytes", "stage_call", "fan_out_2"} <= by_name.keys()
    assert all(one.agreement.is_complete for one in by_name.values() if one.agreement is not None)
    assert all(math.isfinite(one.ours.median) for one in by_name.values())
    for side in ("giver", "taker"):
        assert by_name[f"2MB_copied_by_{side}"].ratio == 1.0
    fused = by_name["fused_bytes"]
    assert fused.ours.median == 0 < fused.baseline.median
    parts = ("pack", "put and yield", "fetch", "load into blocks", "attach", "calls")
    whole = by_name["2MB_by_value"].ours.median
    assert sum(by_name[f"2MB_{part}"].ours.median for part in parts) == pytest.approx(whole)


def test_quick_is_less_of_the_same() -> None:
    full = Sizes()
    assert QUICK.memories == full.memories
    assert QUICK.num_rounds < full.num_rounds
    assert set(QUICK.num_groups) < set(full.num_groups)
