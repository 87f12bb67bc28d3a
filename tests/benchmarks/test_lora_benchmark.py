"""The LoRA benchmark measures what it says: its trace, its adapters, and a whole tiny run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.adapters import ATTENTION, AdapterWriter, base_of
from benchmarks.lora import MEASUREMENTS, measure_all
from benchmarks.lora_measures import QUICK, Sizes
from benchmarks.lora_side import TraceRun
from benchmarks.lora_trace import SEED, Trace, make_requests
from benchmarks.measure import Comparison, Missing
from benchmarks.protocol import SideSettings
from latentmas_core.lora.checkpoint import read_checkpoint

TINY = Sizes(
    num_rounds=1,
    num_rows=8,
    context_len=8,
    num_steps=3,
    num_adapters=(8,),
    trace_adapters=(2, 12),
    num_requests=6,
    num_slots=2,
    num_loads=12,
)


def test_trace_is_that_of_the_formula() -> None:
    trace = Trace(num_adapters=50, num_requests=400, rate=2.0, alpha=0.3, cv=2.0)
    requests = make_requests(trace, vocab_size=100)
    random = np.random.default_rng(SEED)
    times = np.cumsum(random.gamma(1 / 4, 4 / 2.0, 400))
    adapters = [int(number * 50) for number in random.power(0.3, 400)]
    assert [request.at_s for request in requests] == pytest.approx(times.tolist())
    assert [request.adapter for request in requests] == adapters
    assert all(8 <= len(request.prompt_ids) < 64 for request in requests)
    assert all(8 <= request.num_outputs < 64 for request in requests)
    assert requests == make_requests(trace, vocab_size=100)


def test_skew_prefers_few_and_uniform_does_not() -> None:
    uniform = Trace(num_adapters=100, num_requests=2000, rate=1.0)
    shares = [
        np.mean([request.adapter < 10 for request in make_requests(trace, 100)])
        for trace in (uniform, uniform._replace(alpha=0.3))
    ]
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[1] > 0.4


def test_written_adapters_are_read_and_differ(tiny_llama: Path, tmp_path: Path) -> None:
    writer = AdapterWriter(str(tiny_llama))
    folders = writer.write(folder=str(tmp_path), ranks=[4, 4], targets=ATTENTION)
    base = base_of(str(tiny_llama))
    first, second = (read_checkpoint(Path(folder), base, max_rank=8) for folder in folders)
    assert first.targets == ATTENTION
    assert first.digest != second.digest
    assert all(pair.b.any() for pair in first.weights.values())


def test_adapters_that_find_no_room_are_not_begun(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="are free"):
        AdapterWriter(str(tiny_llama)).write(folder=str(tmp_path), ranks=[2**40], targets=ATTENTION)
    assert not list(tmp_path.iterdir())


def test_p99_is_that_of_the_slowest_of_a_hundred() -> None:
    run = TraceRun(10.0, 100, [float(number) for number in range(101)])
    assert run.p99_s == 99.0
    assert run.requests_per_s == 10.1


@pytest.mark.bench
@pytest.mark.slow
def test_every_measurement_runs_and_greedy_tokens_are_pefts(tiny_qwen2: Path) -> None:
    settings = SideSettings(str(tiny_qwen2), "float32", "cpu", 1)
    measured = measure_all(settings, TINY, list(MEASUREMENTS))
    assert not [one for one in measured if isinstance(one, Missing)], measured
    by_name = {one.name: one for one in measured if isinstance(one, Comparison)}
    assert {"idle_1", "idle_8", "mixed_8_mixed", "churn_p99", "load_last"} <= by_name.keys()
    agreed = [one.agreement for one in by_name.values() if one.agreement is not None]
    assert len(agreed) == 5
    assert all(agreement.is_complete for agreement in agreed)
    bars = {name for name, one in by_name.items() if one.bar is not None}
    assert bars == {
        "idle_1",
        "idle_8",
        "mixed_8_mixed",
        "trace_12 adapters",
        "churn_p99",
        "load_last",
    }


def test_quick_is_less_of_the_same() -> None:
    full = Sizes()
    for field in dataclasses.fields(Sizes):
        quick, whole = getattr(QUICK, field.name), getattr(full, field.name)
        assert quick == whole or np.max(quick) < np.max(whole), field.name
