"""What is measured of hand-overs between replicas, each beside its bar or its naive twin."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx
from ray.serve import Application

from benchmarks.measure import (
    Agreement,
    Bar,
    Comparison,
    Figures,
    Measurement,
    interleave,
)
from benchmarks.serving.cluster import REQUEST_TIMEOUT_S, ServeCluster
from benchmarks.serving.handoff_calls import HandOff, HandoffCaller, SilentCaller
from benchmarks.serving.handoff_side import HandoffGroup
from benchmarks.serving.served_app import DTYPE
from benchmarks.serving.silent_group import SilentGroup
from deployments.app import build_app
from deployments.args import AppArgs
from deployments.transport import GroupHandle
from latentmas_core.config import EngineConfig

MB = 1e6
# 64 KiB of keys and values per row: a memory of 200 MB has 3052 rows, and its reader is quick.
MODEL_SHAPE = {
    "architecture": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
}
MODEL_NAME = "a random Llama of 8 layers, 64 KiB of keys and values per row"
FREE = {"num_cpus": 0}
THINKERS, DECIDERS = ["planner", "critic"], ["refiner", "judger"]


class MemorySize(NamedTuple):
    """``bar_ms``: what its hand-over may take."""

    num_bytes: int
    bar_ms: float | None = None

    @property
    def name(self) -> str:
        return f"{self.num_bytes / MB:g}MB"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A quick run sees the same, more noisily."""

    num_rounds: int = 15
    memories: tuple[MemorySize, ...] = (
        MemorySize(1_000_000),
        MemorySize(20_000_000, 60.0),
        MemorySize(200_000_000, 250.0),
    )
    pool_bytes: int = 2**29
    num_groups: tuple[int, ...] = (1, 3, 8)
    num_calls: int = 50


QUICK = Sizes(num_rounds=4, num_groups=(1, 3), num_calls=20)


@dataclass(frozen=True)
class HandoffBench:
    """What all measurements are made with."""

    cluster: ServeCluster
    model_folder: str
    num_threads: int
    sizes: Sizes

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig(
            model_name=self.model_folder,
            device="cpu",
            dtype=DTYPE,
            num_threads=self.num_threads,
            kv_cache_bytes=self.sizes.pool_bytes,
        )

    def bind_group(self, name: str, memories: Sequence[MemorySize]) -> Application:
        """One replica with memories lying ready."""
        environment = {"env_vars": {"OMP_NUM_THREADS": str(self.num_threads)}}
        deployment = HandoffGroup.options(
            name=name, ray_actor_options={"num_cpus": 1, "runtime_env": environment}
        )
        application: Application = deployment.bind(
            self.engine, {one.name: one.num_bytes for one in memories}
        )
        return application

    def compare(self, name: str, what: str, unit: str, **fields: Any) -> Comparison:
        return Comparison(name, what, DTYPE, unit, **fields)


def measure_handoff(bench: HandoffBench) -> list[Measurement]:
    """From one replica's blocks into another's through the object store, and what is copied."""
    application = HandoffCaller.options(ray_actor_options=FREE).bind(
        bench.bind_group("giver", bench.sizes.memories), bench.bind_group("taker", ())
    )
    measured: list[Measurement] = []
    with bench.cluster.hosting(application, "handoff") as caller:
        for size in bench.sizes.memories:
            measured += _measure_size(bench, caller, size)
            measured += _measure_copies(bench, caller, size)
    return measured


def _measure_size(bench: HandoffBench, caller: GroupHandle, size: MemorySize) -> list[Measurement]:
    name = size.name
    num_bytes: int = caller.num_bytes.remote(name).result()
    ways = interleave(
        bench.sizes.num_rounds,
        {
            "store": lambda _: caller.hand_off.remote(name).result(),
            "value": lambda _: caller.hand_off_by_value.remote(name).result(),
            "put": lambda _: caller.put_s.remote(num_bytes).result(),
        },
    )
    runs: list[HandOff] = ways["store"]
    ours = _ms("through the object store", [run.whole for run in runs])
    by_value = _ms("by value, a dict per layer", ways["value"])
    bare_put = _ms("ray.put of as many bytes", ways["put"])
    note = (
        f"{num_bytes / MB:.1f} MB; p10 {percentile(ours, 10):.1f}, p90 "
        f"{percentile(ours, 90):.1f} ms. From before the giver is called until the taker has it in "
        "blocks: a turn reads it, and what the next turn on it takes is taken off"
    )
    is_same: bool = caller.is_the_same.remote(name).result()
    agreement = Agreement(
        1, int(is_same), None if is_same else "the memory that arrived is another"
    )
    what = f"{size.name}, replica to replica"
    measured: list[Measurement] = []
    if size.bar_ms is not None:
        bar = Figures("the bar", [size.bar_ms])
        measured.append(
            bench.compare(
                f"{name}_bar", what, "ms", ours=ours, baseline=bar, bar=Bar("<=", 1.0), note=note
            )
        )
    measured.append(
        bench.compare(
            f"{name}_by_value",
            what,
            "ms",
            ours=ours,
            baseline=by_value,
            agreement=agreement,
            note=f"p10 {percentile(by_value, 10):.0f}, p90 {percentile(by_value, 90):.0f} ms by "
            "value" + ("" if size.bar_ms else f"; ours {note}"),
        )
    )
    return [
        *measured,
        *_parts(bench, size, runs, ours),
        _put(bench, size, runs, bare_put),
    ]


def _parts(
    bench: HandoffBench,
    size: MemorySize,
    runs: Sequence[HandOff],
    whole: Figures,
) -> Iterator[Measurement]:
    """Where the time goes; the ratio is a part's share."""
    parts = {
        "pack": [run.pack for run in runs],
        "put and yield": [run.put for run in runs],
        "fetch": [run.fetch for run in runs],
        "load into blocks": [run.load for run in runs],
        "attach": [run.attach for run in runs],
        "calls": [run.calls for run in runs],
    }
    for part, seconds in parts.items():
        yield bench.compare(
            f"{size.name}_{part}",
            f"{size.name}, {part}",
            "ms",
            ours=_ms(part, seconds),
            baseline=Figures("the whole", whole.rounds),
        )


def _put(
    bench: HandoffBench, size: MemorySize, runs: Sequence[HandOff], bare_put: Figures
) -> Comparison:
    return bench.compare(
        f"{size.name}_bare_put",
        f"{size.name}, put and yield",
        "ms",
        ours=_ms("put and yield", [run.put for run in runs]),
        baseline=bare_put,
        note="Ray copies it into the store; that copy is Ray's own and not among ours",
    )


def _measure_copies(
    bench: HandoffBench, caller: GroupHandle, size: MemorySize
) -> Iterator[Measurement]:
    giving, taking = caller.copied.remote(size.name).result()
    for side, copied in (("giver", giving), ("taker", taking)):
        yield bench.compare(
            f"{size.name}_copied_by_{side}",
            f"{size.name}, copied by the {side}",
            "MB",
            ours=Figures("our code", [copied.num_bytes / MB]),
            baseline=Figures("payload", [copied.payload_bytes / MB]),
            bar=Bar("<=", 1.0),
            note="floating-point numbers that torch wrote; the array of the object store "
            + ("is" if copied.is_shared else "is NOT")
            + " the tensor's own memory",
        )


def measure_fused(bench: HandoffBench) -> list[Measurement]:
    """A chain within one group moves nothing; the same over two groups does."""
    layouts = {"one": [[*THINKERS, *DECIDERS]], "two": [THINKERS, DECIDERS]}
    results: dict[str, dict[str, Any]] = {}
    for name, groups in layouts.items():
        application = build_app(_app_args(bench, groups))
        with bench.cluster.hosting(application, name, route_prefix=f"/{name}"):
            results[name] = _reason(f"{bench.cluster.url}/{name}")
    one, two = results["one"], results["two"]
    is_same = one["final_answer"] == two["final_answer"]
    return [
        bench.compare(
            "fused_bytes",
            "planner to judger, one group",
            "MB",
            ours=Figures("one group", [_num_bytes_moved(one) / MB]),
            baseline=Figures("two groups", [_num_bytes_moved(two) / MB]),
            bar=Bar("<=", 0.0),
            agreement=Agreement(1, int(is_same), None if is_same else "the answers differ"),
            note=f"{one['transfer']['stages']} stage, {one['transfer']['hops']} hops, beside "
            f"{two['transfer']['stages']} stages, {two['transfer']['hops']} hops; put, and fetched",
        )
    ]


def measure_calls(bench: HandoffBench) -> list[Measurement]:
    """Stages that do nothing: one call, and as many at once as there are groups."""
    num_groups = max(bench.sizes.num_groups)
    groups = [
        SilentGroup.options(name=f"silent-{index}", ray_actor_options=FREE).bind()
        for index in range(num_groups)
    ]
    application = SilentCaller.options(ray_actor_options=FREE).bind(*groups)
    with bench.cluster.hosting(application, "silent") as caller:
        seconds = interleave(
            bench.sizes.num_calls,
            {"plain": lambda _: caller.plain_call_s.remote().result()}
            | {
                str(number): lambda _, number=number: caller.stage_calls_s.remote(number).result()
                for number in bench.sizes.num_groups
            },
        )
    alone = _ms("one group", seconds["1"])
    plain = _ms("plain call of a replica", seconds["plain"])
    calls = [
        bench.compare("stage_call", "stage that does nothing", "ms", ours=alone, baseline=plain)
    ]
    return calls + [
        bench.compare(
            f"fan_out_{number}",
            f"the same in {number} groups at once",
            "ms",
            ours=_ms(f"{number} groups", seconds[str(number)]),
            baseline=alone,
        )
        for number in bench.sizes.num_groups
        if number > 1
    ]


def _app_args(bench: HandoffBench, groups: Sequence[list[str]]) -> AppArgs:
    return AppArgs.model_validate(
        {
            "engine": bench.engine.model_dump(exclude_unset=True),
            "latent_steps": 4,
            "groups": [
                {"name": f"group-{index}", "agents": agents} for index, agents in enumerate(groups)
            ],
        }
    )


def _reason(url: str) -> dict[str, Any]:
    body = {
        "question": "What is the capital of France?",
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = httpx.post(f"{url}/v1/reason", json=body, timeout=REQUEST_TIMEOUT_S)
    response.raise_for_status()
    result: dict[str, Any] = response.json()
    return result


def _num_bytes_moved(result: dict[str, Any]) -> int:
    """Put where others can fetch it, and fetched."""
    fetched: int = sum(stage["bytes_in"] for stage in result["stages"])
    put: int = result["transfer"]["bytes"]
    return put + fetched


def _ms(side: str, seconds: Sequence[float]) -> Figures:
    return Figures(side, [1e3 * s for s in seconds])


def percentile(figures: Figures, percent: int) -> float:
    """Of the rounds; a single round is its own."""
    if len(figures.rounds) == 1:
        return figures.rounds[0]
    return statistics.quantiles(figures.rounds, n=100, method="inclusive")[percent - 1]
