"""What is measured of many adapters: each against its peer, in one run, with its bar."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.adapters import ATTENTION, MLP
from benchmarks.bench import agreement
from benchmarks.lora_side import MAX_ON_HOST, TraceRun
from benchmarks.lora_trace import SEED, Trace
from benchmarks.measure import Bar, Comparison, Figures, Measurement, interleave
from benchmarks.protocol import Run, SideSettings
from benchmarks.workers import Worker

OURS = "benchmarks.lora_side:LoRASide"
PEFT = "benchmarks.peft_side:PeftSide"
MIXED_RANKS = (8, 16, 32, 64)
SMALL_RANKS = (8,)
IN_PLACE = "benchmarks.lora_side:InPlaceSide"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A quick run sees the same effects, more noisily."""

    num_rounds: int = 3
    num_rows: int = 32
    context_len: int = 32
    num_steps: int = 24
    num_adapters: tuple[int, ...] = (8, 16)
    trace_adapters: tuple[int, ...] = (5, 100, 1000)
    num_requests: int = 96
    saturating_rate: float = 200.0
    num_slots: int = 8
    num_loads: int = 500


QUICK = Sizes(num_rounds=1, num_steps=8, trace_adapters=(5, 200), num_requests=48, num_loads=60)


@dataclass(frozen=True)
class LoRABench:
    """What all measurements are made with. ``folder``: where adapters are written."""

    settings: SideSettings
    sizes: Sizes
    writer: Worker
    folder: Path

    def open_ours(self, max_loaded: int, max_on_host: int = MAX_ON_HOST) -> Worker:
        threads = self.settings.num_threads
        return Worker(OURS, self.settings, max_loaded, max_on_host, num_threads=threads)

    def open_in_place(self, max_loaded: int) -> Worker:
        threads = self.settings.num_threads
        return Worker(IN_PLACE, self.settings, max_loaded, num_threads=threads)

    def open_peft(self) -> Worker:
        return Worker(PEFT, self.settings, num_threads=self.settings.num_threads)

    def write(self, name: str, ranks: Sequence[int], targets: Sequence[str]) -> list[str]:
        """New adapters in a folder of their own."""
        folder = self.folder / name
        folder.mkdir()
        written: list[str] = self.writer.call(
            "write", folder=str(folder), ranks=list(ranks), targets=list(targets)
        )
        return written

    def compare(self, name: str, what: str, unit: str, **fields: object) -> Comparison:
        return Comparison(name, what, self.settings.dtype, unit, **fields)  # type: ignore[arg-type]


def measure_idle(bench: LoRABench) -> list[Measurement]:
    """Adapters that are there and not used, beside an engine without.

    Two processes of one program differ by several percent, by where their memory lies, and stay so:
    each round has a pair of its own.
    """
    sizes = bench.sizes
    folders = bench.write("idle", MIXED_RANKS * 2, ATTENTION + MLP)
    pairs = [_idle_pair(bench, folders) for _ in range(sizes.num_rounds)]
    measured: list[Measurement] = []
    for num_rows in _idle_rows(sizes):
        idle, without = (
            [run for pair in pairs for run in pair[num_rows][name]] for name in ("idle", "without")
        )
        measured.append(
            bench.compare(
                f"idle_{num_rows}",
                f"idle adapters, {num_rows} row(s)",
                "ms",
                ours=_step_ms("8 idle adapters", idle),
                baseline=_step_ms("an engine without", without),
                bar=Bar("<=", 1.03),
                agreement=agreement(idle, without),
                note="time per step of a decode on the base model; a new pair in each round",
            )
        )
    return measured


def _idle_rows(sizes: Sizes) -> tuple[int, int]:
    return (1, sizes.num_rows)


def _idle_pair(bench: LoRABench, folders: list[str]) -> dict[int, dict[str, list[Run]]]:
    """The runs of two engines, one each way round, by number of rows."""
    with bench.open_ours(20) as idle, bench.open_ours(0) as without:
        idle.call("load_and_use", folders=folders)
        return {
            num_rows: interleave(
                2,
                _calls(
                    {"idle": idle, "without": without},
                    "decode",
                    {
                        "adapters": [None] * num_rows,
                        "context_len": bench.sizes.context_len,
                        "num_tokens": 2 * bench.sizes.num_steps,
                    },
                ),
            )
            for num_rows in _idle_rows(bench.sizes)
        }


def measure_mixed(bench: LoRABench) -> list[Measurement]:
    """Rows with different adapters in one step, beside PEFT's two ways."""
    measured: list[Measurement] = []
    for num_adapters in bench.sizes.num_adapters:
        measured += _measure_mixed(bench, num_adapters)
    return measured


def _measure_mixed(bench: LoRABench, num_adapters: int) -> list[Measurement]:
    sizes = bench.sizes
    ranks = [MIXED_RANKS[index % len(MIXED_RANKS)] for index in range(num_adapters)]
    folders = bench.write(f"mixed-{num_adapters}", ranks, ATTENTION + MLP)
    rows = sorted(index % num_adapters for index in range(sizes.num_rows))
    decode = {
        "adapters": rows,
        "context_len": sizes.context_len,
        "num_tokens": sizes.num_steps,
    }
    few = decode | {"num_tokens": max(2, sizes.num_steps // 6)}  # it takes seconds a step
    prefill = {"adapters": list(range(8)), "context_len": 64}
    with bench.open_ours(num_adapters) as ours, bench.open_peft() as peft:
        ours.call("load", folders=folders)
        peft.call("load", folders=folders)
        sides: dict[str, Callable[[int], Run]] = {
            "ours": lambda _: ours.call("decode", **decode),
            "base": lambda _: ours.call("decode", **decode | {"adapters": [None] * len(rows)}),
            "mixed": lambda _: peft.call("decode", **decode),
            "switching": lambda _: peft.call("decode_switching", **few),
            "ours, prefill": lambda _: ours.call("prefill", **prefill),
            "mixed, prefill": lambda _: peft.call("prefill", **prefill),
        }
        runs = interleave(sizes.num_rounds, sides)
    what = f"{sizes.num_rows} rows, {num_adapters} adapters"
    decoding = [
        bench.compare(
            f"mixed_{num_adapters}_{peer}",
            what,
            "ms",
            ours=_step_ms("engine", runs["ours"]),
            baseline=_step_ms(title, runs[peer]),
            bar=bar,
            agreement=agreement(runs["ours"], runs[peer]) if peer == "mixed" else None,
            note=note,
        )
        for peer, title, bar, note in (
            ("mixed", "PEFT, adapter_names", Bar("<=", 0.5), "ranks 8, 16, 32, 64, all targets"),
            ("switching", "PEFT, set_adapter", None, "one adapter after the other in each step"),
            ("base", "engine, base model", None, "what the adapters cost"),
        )
    ]
    return [
        *decoding,
        bench.compare(
            f"mixed_{num_adapters}_prefill",
            "prefill, 8 adapters x 64 tokens",
            "ms",
            ours=_step_ms("engine", runs["ours, prefill"]),
            baseline=_step_ms("PEFT, adapter_names", runs["mixed, prefill"]),
            agreement=agreement(runs["ours, prefill"], runs["mixed, prefill"]),
        ),
    ]


def measure_scattered(bench: LoRABench) -> list[Measurement]:
    """A row each with small adapters that lie at unequal distances, as they do after a while."""
    sizes = bench.sizes
    num_loaded = 2 * sizes.num_rows
    folders = bench.write("scattered", SMALL_RANKS * num_loaded, ATTENTION)
    chosen = sorted(random.Random(SEED).sample(range(num_loaded), sizes.num_rows))
    arguments = {
        "adapters": chosen,
        "context_len": sizes.context_len,
        "num_tokens": sizes.num_steps,
    }
    with bench.open_ours(num_loaded) as copied, bench.open_in_place(num_loaded) as in_place:
        for side in (copied, in_place):
            side.call("load_and_use", folders=folders)
        sides = {"copied": copied, "in place": in_place}
        runs = _interleave(bench, sides, "decode", arguments)
    return [
        bench.compare(
            "scattered",
            f"{sizes.num_rows} rows, {sizes.num_rows} adapters of {num_loaded}",
            "ms",
            ours=_step_ms("copied side by side", runs["copied"]),
            baseline=_step_ms("one by one", runs["in place"]),
            agreement=agreement(runs["copied"], runs["in place"]),
            note="rank 8 on q, k, v, o; time per step of a decode",
        )
    ]


def measure_trace(bench: LoRABench) -> list[Measurement]:
    """S-LoRA's trace at saturation: what more adapters, skew and bursts do to the throughput.

    As there all adapters are in host memory; once more most of them are on disk alone.
    """
    sizes = bench.sizes
    few, some, many = sizes.trace_adapters[0], sizes.trace_adapters[-2], sizes.trace_adapters[-1]
    folders = bench.write("trace", SMALL_RANKS * many, ATTENTION)
    uniform = Trace(few, sizes.num_requests, sizes.saturating_rate)
    traces = {f"{few} adapters": uniform}
    for number in sizes.trace_adapters[1:]:
        traces[f"{number} adapters"] = uniform._replace(num_adapters=number)
    sweep = uniform._replace(num_adapters=max(some, few))
    traces["skewed, alpha 0.3"] = sweep._replace(alpha=0.3)
    traces["bursty, cv 4"] = sweep._replace(cv=4.0)
    on_disk = f"{many} adapters, {MAX_ON_HOST} in host memory"
    with bench.open_ours(32, many) as ours, bench.open_ours(32) as with_disk:
        for side in (ours, with_disk):
            side.call("load", folders=folders)
        sides = {name: (ours, trace) for name, trace in traces.items()}
        sides[on_disk] = with_disk, traces[f"{many} adapters"]
        runs = _run_traces(bench, sides)
    first, *others = sides
    return [
        bench.compare(
            f"trace_{name}",
            f"trace, {name}",
            "requests/s",
            ours=_rates(name, runs[name]),
            baseline=_rates(first, runs[first]),
            bar=Bar(">=", 0.85) if name == f"{many} adapters" else None,
            note=f"rank 8 on q, k, v, o; {many} adapters registered, "
            f"{MAX_ON_HOST if name == on_disk else many} of them in host memory, 32 places, "
            f"{sizes.num_requests} requests, lengths 8 to 63, arrivals beyond saturation; first "
            f"token after {_mean_ms(runs[name]):.0f} ms on average, p99 {_p99_ms(runs[name]):.0f}",
        )
        for name in others
    ]


def measure_churn(bench: LoRABench) -> list[Measurement]:
    """Twice as many adapters as places, at half of the rate that saturates."""
    sizes = bench.sizes
    num_adapters = 2 * sizes.num_slots
    folders = bench.write("churn", SMALL_RANKS * num_adapters, ATTENTION)
    burst = Trace(num_adapters, sizes.num_requests, sizes.saturating_rate)
    with bench.open_ours(sizes.num_slots) as short, bench.open_ours(num_adapters) as enough:
        for side in (short, enough):
            side.call("load", folders=folders)
            side.call("run_trace", trace=burst)
        saturated: TraceRun = enough.call("run_trace", trace=burst)
        trace = burst._replace(rate=saturated.requests_per_s / 2)
        runs = interleave(
            sizes.num_rounds,
            {
                "short": lambda _: short.call("run_trace", trace=trace),
                "enough": lambda _: enough.call("run_trace", trace=trace),
            },
        )
        load_s = short.call(
            "device_load_s", adapters=list(range(num_adapters)), num_places=sizes.num_slots
        )
    allowed = Figures(
        f"3 x {num_adapters} places + one load",
        [1e3 * (3 * run.p99_s + load_s) for run in runs["enough"]],
    )
    return [
        bench.compare(
            "churn_p99",
            f"p99 first token, {num_adapters} adapters",
            "ms",
            ours=Figures(f"{sizes.num_slots} places", [1e3 * run.p99_s for run in runs["short"]]),
            baseline=allowed,
            bar=Bar("<=", 1.0),
            note=f"Poisson, {trace.rate:.1f} requests/s; with enough places p99 is "
            f"{_p99_ms(runs['enough']):.0f} ms, a load takes {1e3 * load_s:.1f} ms",
        )
    ]


def measure_load(bench: LoRABench) -> list[Measurement]:
    """Whether loading takes longer the more adapters there are."""
    sizes = bench.sizes
    folders = bench.write("load", SMALL_RANKS * sizes.num_loads, ATTENTION)
    with bench.open_ours(32) as ours:
        loads = [1e3 * s for s in ours.call("load_and_use", folders=folders)]
    with bench.open_peft() as peft:
        theirs = [1e3 * s for s in peft.call("load", folders=folders[:16])]
    return [
        bench.compare(
            "load_last",
            f"load and use, number {sizes.num_loads}",
            "ms",
            ours=Figures(f"number {sizes.num_loads}", loads[-9:]),
            baseline=Figures("number 5", loads[:9]),
            bar=Bar("<=", 1.2),
            note="from the files to the first token; medians of the nine around it",
        ),
        bench.compare(
            "load_peft",
            "load, number 16 of PEFT",
            "ms",
            ours=Figures("PEFT, number 16", theirs[-3:]),
            baseline=Figures("PEFT, number 5", theirs[3:6]),
            note="for comparison; medians of three",
        ),
    ]


def _interleave(
    bench: LoRABench, sides: dict[str, Worker], method: str, arguments: dict[str, object]
) -> dict[str, list[Run]]:
    return interleave(bench.sizes.num_rounds, _calls(sides, method, arguments))


def _calls(
    sides: dict[str, Worker], method: str, arguments: dict[str, object]
) -> dict[str, Callable[[int], Run]]:
    """The same call of every side, whatever the round."""
    return {
        name: lambda _, side=side: side.call(method, **arguments) for name, side in sides.items()
    }


def _run_traces(
    bench: LoRABench, sides: dict[str, tuple[Worker, Trace]]
) -> dict[str, list[TraceRun]]:
    return interleave(
        bench.sizes.num_rounds,
        {
            name: lambda _, side=side, trace=trace: side.call("run_trace", trace=trace)
            for name, (side, trace) in sides.items()
        },
    )


def _step_ms(side: str, runs: Sequence[Run]) -> Figures:
    return Figures(side, [1e3 * run.duration_s for run in runs])


def _rates(side: str, runs: Sequence[TraceRun]) -> Figures:
    return Figures(side, [run.requests_per_s for run in runs])


def _mean_ms(runs: Sequence[TraceRun]) -> float:
    return 1e3 * statistics.mean(s for run in runs for s in run.first_token_s)


def _p99_ms(runs: Sequence[TraceRun]) -> float:
    return 1e3 * statistics.median(run.p99_s for run in runs)
