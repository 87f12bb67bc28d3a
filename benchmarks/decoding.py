"""Plain decoding beside transformers: many prompts in mode single, and one step of one row."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.bench import NUM_REQUESTS, Bench, agreement, asking, rates
from benchmarks.machine import available_bytes, total_bytes
from benchmarks.measure import Bar, Figures, Measurement, interleave
from benchmarks.protocol import Limits, Run
from benchmarks.workers import Worker

LIMITS = Limits(latent_steps=0, max_tokens=64)
# Decoding from 136 rows on reads 200 rows on average.
STEP_LIMITS = {"context_len": 136, "num_steps": 128}
# What `generate_batch` takes of a machine's memory if it is not told otherwise, and what must be
# left then.
DEFAULT_POOL_SHARE = 0.6
SPARE_BYTES = 2 * 2**30

ENGINE = "engine"
BARE = "bare step"
STATIC = "generate"
FITTED = "generate_batch, fitted pool"
DEFAULT = "generate_batch, default"
EAGER = "eager step"
SINGLE = f"single, {NUM_REQUESTS} prompts"


def measure_single_mode(bench: Bench) -> list[Measurement]:
    """16 prompts in mode single beside transformers' own batched generators."""
    why_no_default = _why_no_default_pool(bench)
    runs = _run_single_mode(bench, has_default_pool=why_no_default is None)
    measured: list[Measurement] = [
        bench.compare(
            "single_static",
            SINGLE,
            unit="tokens/s",
            ours=rates(ENGINE, runs[ENGINE]),
            baseline=rates(STATIC, runs[STATIC]),
            bar=Bar(">=", 1.4),
            agreement=agreement(runs[ENGINE], runs[STATIC]),
            note="one left-padded batch; 64 tokens each",
        ),
        *_beside_continuous(bench, "single_fitted", FITTED, runs),
    ]
    if why_no_default is None:
        return measured + _beside_continuous(bench, "single_default", DEFAULT, runs)
    return [*measured, bench.miss("single_default", f"{SINGLE}; {DEFAULT}", why_no_default)]


def _run_single_mode(bench: Bench, *, has_default_pool: bool) -> dict[str, list[Run]]:
    with bench.open_worker("benchmarks.transformers_side:ContinuousSide") as continuous:
        sides = {
            ENGINE: _answering(bench.ours),
            STATIC: _answering(bench.transformers),
            FITTED: _answering(continuous, has_fitted_pool=True),
        }
        if has_default_pool:
            sides[DEFAULT] = _answering(continuous, has_fitted_pool=False)
        return interleave(bench.num_rounds, sides)


def _beside_continuous(
    bench: Bench, name: str, side: str, runs: Mapping[str, list[Run]]
) -> list[Measurement]:
    """The whole call, and the call without its start-up."""
    busy = [run.num_tokens / (run.busy_s or run.duration_s) for run in runs[side]]
    baselines = {
        name: rates(side, runs[side]),
        f"{name}_without_start": Figures(f"{side}, no start-up", busy),
    }
    notes = {
        name: "the whole call: its manager, its pool and its thread are made anew in each",
        f"{name}_without_start": "by its own clock, from the first prompt that it takes up to "
        "the last token",
    }
    return [
        bench.compare(
            name,
            SINGLE,
            unit="tokens/s",
            ours=rates(ENGINE, runs[ENGINE]),
            baseline=baseline,
            bar=Bar(">=", 3.0),
            agreement=agreement(runs[ENGINE], runs[side]),
            note=notes[name],
        )
        for name, baseline in baselines.items()
    ]


def measure_one_step(bench: Bench) -> list[Measurement]:
    """One row of one sequence, as the engine takes it and as its runner alone does."""
    with bench.open_worker("benchmarks.engine_side:BareStepSide") as bare:
        sides = {ENGINE: bench.ours, BARE: bare, EAGER: bench.transformers}
        steps = interleave(
            bench.num_rounds,
            {
                name: lambda _, side=side: side.call("step_ms", **STEP_LIMITS)
                for name, side in sides.items()
            },
        )
    eager = Figures(EAGER, steps[EAGER])
    notes = {
        ENGINE: "time per token of a decode of 128, prefill and first token taken off",
        BARE: "median step of the model runner without scheduler, events and text",
    }
    return [
        bench.compare(
            name,
            "step with 1 row, context 136-264",
            unit="ms",
            ours=Figures(side, steps[side]),
            baseline=eager,
            bar=Bar("<=", 0.6),
            note=notes[side],
        )
        for name, side in (("step_engine", ENGINE), ("step_bare", BARE))
    ]


def _answering(worker: Worker, **arguments: Any) -> Callable[[int], Run]:
    return asking(worker, "answer_alone", NUM_REQUESTS, limits=LIMITS, **arguments)


def _why_no_default_pool(bench: Bench) -> str | None:
    """None if the machine can bear it: on a CPU the pool is filled with zeros, so really taken."""
    if not bench.has_default_pool:
        return "generate_batch fills its default pool anew in each call, which takes long"
    needed, free = DEFAULT_POOL_SHARE * total_bytes() + SPARE_BYTES, available_bytes()
    if bench.settings.device == "cuda" or needed <= free:
        return None
    return (
        f"the default pool of generate_batch takes {DEFAULT_POOL_SHARE:.0%} of the memory; with "
        f"{SPARE_BYTES / 2**30:.0f} GiB to spare that is {needed / 2**30:.1f} GiB, and "
        f"{free / 2**30:.1f} GiB are free"
    )
