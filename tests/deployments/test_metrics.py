"""What is counted when, under which names, and that the dashboard asks for exactly those."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import deployments.metrics as metrics
from deployments.metrics import METRICS, EngineMetrics, Kind, Metric, RunMetrics
from latentmas_core.engine.stats import EngineStats
from latentmas_core.errors import EngineError
from latentmas_core.events import StageGivenUp, StageRetried
from latentmas_core.lora.cached_adapter import AdapterStats
from latentmas_core.request import ReasonRequest
from latentmas_core.result import PhaseDurations
from tests.deployments.fake_reasoner import ANSWER, EVENTS, STAGE_TRACE, TRACE

DASHBOARD = Path(__file__).parents[2] / "monitoring" / "grafana-dashboard.json"
REQUEST = ReasonRequest(question="Why?", mode="text")
RUN = {"pipeline": "hierarchical", "mode": "text"}
STATS = EngineStats(**dict.fromkeys(EngineStats.__annotations__, 0) | {"adapters": AdapterStats()})
FEW_LABELS = {"pipeline", "mode", "status", "agent", "phase", "group", "stage", "tier"}


class MemoryRecorder:
    """Keeps what is recorded, and refuses labels that a metric does not have."""

    def __init__(self):
        self.values = []

    def record(self, metric, value, **labels):
        assert set(labels) == set(metric.labels), metric.name
        self.values.append((metric, value, labels))

    def of(self, metric):
        return [(value, labels) for found, value, labels in self.values if found is metric]


@pytest.fixture
def recorder():
    return MemoryRecorder()


@pytest.fixture
def runs(recorder):
    return RunMetrics(recorder, lambda: 77)


def test_run_that_ends_well_is_counted_with_all_that_it_did(runs, recorder):
    trace = TRACE.model_copy(update={"phases": PhaseDurations(prefill_ms=250.0)})
    with runs.run(REQUEST) as run:
        for event in EVENTS:
            run.note(replace(event, trace=trace) if getattr(event, "trace", 0) == TRACE else event)
    assert recorder.of(metrics.REQUESTS) == [(1, RUN | {"status": "done"})]
    ((seconds, labels),) = recorder.of(metrics.REQUEST_SECONDS)
    assert (seconds > 0, labels) == (True, RUN)
    assert len(recorder.of(metrics.FIRST_TOKEN_SECONDS)) == 1
    judger = {"agent": "judger"}
    assert recorder.of(metrics.PROMPT_TOKENS) == [(TRACE.prompt_tokens, judger)]
    assert recorder.of(metrics.COMPLETION_TOKENS) == [(TRACE.completion_tokens, judger)]
    assert recorder.of(metrics.LATENT_STEPS) == [(0, judger)]
    assert recorder.of(metrics.AGENT_SECONDS) == [(TRACE.latency_ms / 1000, judger)]
    assert recorder.of(metrics.PHASE_SECONDS) == [(0.25, judger | {"phase": "prefill"})]
    assert recorder.of(metrics.HANDOFF_BYTES) == [(STAGE_TRACE.bytes_out, {"group": "deciders"})]
    assert recorder.of(metrics.TRANSFER_BYTES)[-1] == (77, {})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineError("overloaded."), "EngineError"),
        (RuntimeError("a bug"), "internal"),
        (GeneratorExit(), "cancelled"),
    ],
    ids=lambda value: str(value),
)
def test_run_that_fails_is_counted_by_the_kind_of_its_error(runs, recorder, error, status):
    with pytest.raises(type(error)), runs.run(REQUEST):
        raise error
    assert recorder.of(metrics.REQUESTS) == [(1, RUN | {"status": status})]
    assert len(recorder.of(metrics.REQUEST_SECONDS)) == 1


def test_lost_attempts_and_stages_that_are_done_without_are_counted(runs, recorder):
    with runs.run(REQUEST) as run:
        run.note(StageRetried("critic", 2, "lost"))
        run.note(StageGivenUp("math", ("math",), "lost"))
    assert recorder.of(metrics.FAILED_ATTEMPTS) == [(1, {"stage": "critic"})]
    assert recorder.of(metrics.STAGES_GIVEN_UP) == [(1, {"stage": "math"})]


def test_engine_reports_what_it_holds_and_what_it_did_since_the_last_report(recorder):
    engine = EngineMetrics(recorder)
    stats = replace(
        STATS,
        num_running=2,
        num_waiting=3,
        num_blocks=40,
        num_used_blocks=10,
        num_preemptions_total=5,
        adapters=AdapterStats(num_registered=7, num_loaded=2, num_on_host=4, num_loads_total=6),
    )
    engine.report(stats)
    engine.report(replace(stats, num_running=1, num_preemptions_total=8))
    assert [value for value, _ in recorder.of(metrics.RUNNING)] == [2, 1]
    assert [value for value, _ in recorder.of(metrics.WAITING)] == [3, 3]
    assert recorder.of(metrics.USED_BLOCKS)[0] == (10, {})
    assert recorder.of(metrics.BLOCKS)[0] == (40, {})
    assert [value for value, _ in recorder.of(metrics.PREEMPTIONS)] == [5, 3]
    assert [value for value, _ in recorder.of(metrics.ADAPTER_LOADS)] == [6, 0]
    tiers = {labels["tier"]: value for value, labels in recorder.of(metrics.ADAPTERS)}
    assert tiers == {"device": 2, "host": 4, "registered": 7}


def test_no_label_holds_what_a_client_writes(runs, recorder):
    assert {label for metric in METRICS for label in metric.labels} <= FEW_LABELS
    with runs.run(REQUEST.model_copy(update={"question": ANSWER})) as run:
        for event in EVENTS:
            run.note(event)
    assert ANSWER not in repr(recorder.values)


def test_names_are_unique_and_described():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names) > 20
    assert all(metric.description.endswith(".") for metric in METRICS)


def names_in_the_dashboard():
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return {name for one in expressions for name in re.findall(r"ray_\w+", one)}


def exported(metric: Metric):
    if metric.kind is not Kind.HISTOGRAM:
        return {metric.exported_name}
    return {f"{metric.exported_name}_{ending}" for ending in ("bucket", "sum", "count")}


def test_dashboard_asks_for_nothing_that_is_not_there():
    assert names_in_the_dashboard() <= set().union(*map(exported, METRICS))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_dashboard_shows_every_metric(metric):
    assert names_in_the_dashboard() & exported(metric)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_docs_list_every_metric(metric):
    labels = ", ".join(metric.labels)
    row = f"| `{metric.exported_name}` | {metric.kind} | {labels} |"
    assert row in (DASHBOARD.parents[1] / "docs" / "observability.md").read_text()
