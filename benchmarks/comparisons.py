"""The five measurements of the engine beside its baselines. Does no torch work: workers do.

All are greedy with forced lengths, and every round asks other questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import available_bytes, total_bytes
from benchmarks.measure import (
    Agreement,
    Bar,
    Comparison,
    Figures,
    Measurement,
    Missing,
    compare_answers,
    interleave,
)
from benchmarks.protocol import Limits, Run, SideSettings
from benchmarks.questions import questions
from benchmarks.workers import Worker

NUM_REQUESTS = 16
ANSWER_LIMITS = Limits(latent_steps=10, max_tokens=64)
MODE_LIMITS = Limits(latent_steps=10, max_tokens=128)
# Decoding from 136 rows on reads 200 rows on average.
STEP_LIMITS = {"context_len": 136, "num_steps": 128}
# What `generate_batch` takes of a machine's memory if it is not told otherwise, and what must be
# left then.
DEFAULT_POOL_SHARE = 0.6
SPARE_BYTES = 2 * 2**30

ENGINE = "engine"
BARE = "bare step"
PLAIN = "plain loop"
STATIC = "generate"
FITTED = "generate_batch, fitted pool"
DEFAULT = "generate_batch, default"
EAGER = "eager step"
NAIVE = "naive text"


@dataclass(frozen=True)
class Bench:
    """The sides that stay open, and how much is measured."""

    settings: SideSettings
    ours: Worker
    transformers: Worker
    num_rounds: int
    num_plain_requests: int = NUM_REQUESTS
    has_default_pool: bool = True

    def open_worker(self, factory: str) -> Worker:
        return Worker(factory, self.settings, num_threads=self.settings.num_threads)

    def compare(self, name: str, what: str, **fields: Any) -> Comparison:
        return Comparison(name=name, what=what, dtype=self.settings.dtype, **fields)

    def miss(self, name: str, what: str, reason: str, *, is_failure: bool = False) -> Missing:
        return Missing(name, what, self.settings.dtype, reason, is_failure)


def measure_one_request(bench: Bench) -> list[Measurement]:
    """One hierarchical request beside the plain loop over the same prompts."""
    runs = interleave(
        bench.num_rounds,
        {
            ENGINE: _asking(bench.ours, "reason_latent", limits=ANSWER_LIMITS),
            PLAIN: _asking(bench.transformers, "reason_latent", limits=ANSWER_LIMITS),
        },
    )
    return [
        bench.compare(
            "one_request",
            "hierarchical, 1 request",
            unit="s",
            ours=_durations(ENGINE, runs[ENGINE]),
            baseline=_durations(PLAIN, runs[PLAIN]),
            bar=Bar("<=", 0.6),
            agreement=_agreement(runs[ENGINE], runs[PLAIN]),
            note="3 agents think 10 latent steps each, the judger writes 64 tokens",
        )
    ]


def measure_many_requests(bench: Bench) -> list[Measurement]:
    """16 hierarchical requests at once beside the plain loop, one after the other."""
    num_plain = bench.num_plain_requests
    ours = _asking(bench.ours, "reason_latent", NUM_REQUESTS, limits=ANSWER_LIMITS)
    plain = _asking(bench.transformers, "reason_latent", num_plain, limits=ANSWER_LIMITS)
    one = _asking(bench.transformers, "reason_latent", limits=ANSWER_LIMITS)
    runs = interleave(
        bench.num_rounds,
        # One request is enough to warm the plain loop up.
        {ENGINE: ours, PLAIN: lambda index: (plain if index else one)(index)},
    )
    return [
        bench.compare(
            "many_requests",
            f"hierarchical, {NUM_REQUESTS} at once",
            unit="requests/s",
            ours=Figures(ENGINE, [NUM_REQUESTS / run.duration_s for run in runs[ENGINE]]),
            baseline=Figures(PLAIN, [num_plain / run.duration_s for run in runs[PLAIN]]),
            bar=Bar(">=", 5.0),
            agreement=_agreement(runs[ENGINE], runs[PLAIN]),
            note=f"the plain loop ran {num_plain} of the {NUM_REQUESTS}, one after the other",
        )
    ]


def measure_single_mode(bench: Bench) -> list[Measurement]:
    """16 prompts in mode single beside transformers' own batched generators."""
    name = f"single, {NUM_REQUESTS} prompts"
    reason = _why_no_default_pool(bench)
    with bench.open_worker("benchmarks.transformers_side:ContinuousSide") as continuous:
        sides = {
            ENGINE: _answering(bench.ours),
            STATIC: _answering(bench.transformers),
            FITTED: _answering(continuous, has_fitted_pool=True),
        }
        if reason is None:
            sides[DEFAULT] = _answering(continuous, has_fitted_pool=False)
        runs = interleave(bench.num_rounds, sides)
    ours = _rates(ENGINE, runs[ENGINE])
    measured: list[Measurement] = [
        bench.compare(
            "single_static",
            name,
            unit="tokens/s",
            ours=ours,
            baseline=_rates(STATIC, runs[STATIC]),
            bar=Bar(">=", 1.4),
            agreement=_agreement(runs[ENGINE], runs[STATIC]),
            note="one left-padded batch; 64 tokens each",
        )
    ]
    for side, key in ((FITTED, "fitted"), (DEFAULT, "default")):
        if side in runs:
            measured += _beside_continuous(bench, name, f"single_{key}", ours, side, runs)
    if reason is not None:
        measured.append(bench.miss("single_default", f"{name}; {DEFAULT}", reason))
    return measured


def _beside_continuous(
    bench: Bench,
    what: str,
    name: str,
    ours: Figures,
    side: str,
    runs: dict[str, list[Run]],
) -> list[Measurement]:
    """The whole call, and the call without its start-up."""
    agreement = _agreement(runs[ENGINE], runs[side])
    busy = [run.num_tokens / (run.busy_s or run.duration_s) for run in runs[side]]
    return [
        bench.compare(
            name,
            what,
            unit="tokens/s",
            ours=ours,
            baseline=_rates(side, runs[side]),
            bar=Bar(">=", 3.0),
            agreement=agreement,
            note="the whole call: its manager, its pool and its thread are made anew in each",
        ),
        bench.compare(
            f"{name}_without_start",
            what,
            unit="tokens/s",
            ours=ours,
            baseline=Figures(f"{side}, no start-up", busy),
            bar=Bar(">=", 3.0),
            agreement=agreement,
            note="by its own clock, from the first prompt that it takes up to the last token",
        ),
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


def measure_modes(bench: Bench) -> list[Measurement]:
    """Mode latent beside mode text at equal limits, and both beside the naive text loop."""
    latent, text = "engine, latent", "engine, text"
    runs = interleave(
        bench.num_rounds,
        {
            latent: _asking(bench.ours, "reason_latent", limits=MODE_LIMITS),
            text: _asking(bench.ours, "reason_text", limits=MODE_LIMITS),
            NAIVE: _asking(bench.transformers, "reason_text", limits=MODE_LIMITS),
        },
    )
    tokens = {side: Figures(side, [r.num_tokens for r in runs[side]]) for side in runs}
    seconds = {side: _durations(side, runs[side]) for side in runs}
    note = "4 agents, at most 128 tokens and 10 latent steps each"
    return [
        bench.compare(
            "modes_tokens",
            "latent mode, decoded tokens",
            unit="tokens",
            ours=tokens[latent],
            baseline=tokens[text],
            bar=Bar("<=", 0.3),
            note=note,
        ),
        bench.compare(
            "modes_time",
            "latent mode, time",
            unit="s",
            ours=seconds[latent],
            baseline=seconds[text],
            bar=Bar("<=", 0.35),
            note=note,
        ),
        bench.compare(
            "modes_time_naive",
            "latent mode, time",
            unit="s",
            ours=seconds[latent],
            baseline=seconds[NAIVE],
            note="the naive loop prefills and decodes one agent after the other",
        ),
        bench.compare(
            "text_mode",
            "text mode, time",
            unit="s",
            ours=seconds[text],
            baseline=seconds[NAIVE],
            agreement=_agreement(runs[text], runs[NAIVE]),
            note="the same words on both sides",
        ),
    ]


MEASUREMENTS: tuple[Callable[[Bench], list[Measurement]], ...] = (
    measure_one_request,
    measure_many_requests,
    measure_single_mode,
    measure_one_step,
    measure_modes,
)


def _asking(
    worker: Worker, method: str, num_questions: int = 1, **arguments: Any
) -> Callable[[int], Run]:
    """A side's part in a round: the questions of that round."""
    return lambda round_index: worker.call(
        method, questions=questions(num_questions, round_index=round_index), **arguments
    )


def _answering(worker: Worker, **arguments: Any) -> Callable[[int], Run]:
    return _asking(worker, "answer_alone", NUM_REQUESTS, limits=ANSWER_LIMITS, **arguments)


def _durations(side: str, runs: Sequence[Run]) -> Figures:
    return Figures(side, [run.duration_s for run in runs])


def _rates(side: str, runs: Sequence[Run]) -> Figures:
    return Figures(side, [run.tokens_per_s for run in runs])


def _agreement(ours: Sequence[Run], theirs: Sequence[Run]) -> Agreement:
    """Over all rounds."""
    pairs = [(a.answer_ids, b.answer_ids) for a, b in zip(ours, theirs, strict=True)]
    shared = [pair for one, other in pairs for pair in zip(one, other, strict=False)]
    return compare_answers([one for one, _ in shared], [other for _, other in shared])


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
