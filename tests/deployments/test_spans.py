"""The spans of requests, over groups with real engines and without Ray: their tree, what they say,
and that they end whatever ends a request."""

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from opentelemetry.trace import SpanKind

from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.logs import with_origin
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from latentmas_core.errors import LostError
from tests.deployments.http_calls import ask
from tests.deployments.keys import ALICE, SECRETS, client_of, make_access, make_app
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.deployments.seen_spans import SeenSpans, failure_of, is_cut, is_failed, is_well
from tests.deployments.sse import parse_event
from tests.factories import make_tiny_model

STEPS, MAX_STEPS = 3, 64
SHORT = {"question": "What is 17 times 3?", "temperature": 0, "max_tokens": 6, "ignore_eos": True}
ENDLESS = SHORT | {"max_tokens": 4000}
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
THINKER = {"queued": {}, "prefill": {}, "thinking": {}}
SPEAKER = {"queued": {}, "prefill": {}, "speaking": {}}
HIERARCHY = {
    "call planner+critic": {
        "stage planner+critic": {
            "agent planner": THINKER,
            "agent critic": THINKER,
            "pack memory": {},
        }
    },
    "call refiner+judger": {
        "stage refiner+judger": {
            "fetch memory": {},
            "agent refiner": THINKER,
            "agent judger": SPEAKER,
        }
    },
}


class Transport(LocalTransport):
    """Loses the replica of a stage within its first turn, ``num_losses`` times."""

    def __init__(self):
        super().__init__()
        self.num_losses = 0
        self.has_begun = asyncio.Event()

    async def stream_stage(self, server, call):
        async with aclosing(super().stream_stage(server, call)) as messages:
            async for message in messages:
                self.has_begun.set()
                if self.num_losses:
                    self.num_losses -= 1
                    raise LostError("a replica of group 'thinkers' was lost. Send it again.")
                yield message


@pytest.fixture(scope="module")
def args(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = make_tiny_model(folder, "qwen2", max_position_embeddings=8192)
    engine = {"model_name": str(model), "device": "cpu", "dtype": "float32"}
    engine |= {"kv_cache_bytes": 2**23, "num_threads": 1}
    thinkers = {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]}
    deciders = {"name": "deciders", "agents": ["refiner", "math", "judger"]}
    deciders["engine"] = {"max_latent_steps": MAX_STEPS}  # so that one expert can fail alone
    return AppArgs(engine=engine, groups=[thinkers, deciders], latent_steps=STEPS)


@pytest.fixture(scope="module")
def engines(args):
    engines = {group.name: Engine(args.engine_of(group)) for group in args.groups}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
def transport(monkeypatch):
    transport = Transport()
    monkeypatch.setattr("deployments.runner.stream_stage", transport.stream_stage)
    return transport


@pytest.fixture
def spans():
    """Fails the test if one of them never ends."""
    spans = SeenSpans()
    yield spans
    assert spans.open_names == []


@pytest.fixture
async def client(args, engines, transport, spans):
    """Over HTTP, with a key, to groups in this process."""
    servers = make_servers(args, engines, tracing=spans.tracing)
    reasoner = Reasoner(args, servers, TransferBudget(2**30), tracing=spans.tracing)
    app = make_app(reasoner, make_access(), tracing=spans.tracing)
    async with client_of(app, ALICE) as client:
        yield client


async def stream(client, body):
    async with client.stream("POST", "/v1/reason", json=body | {"stream": True}) as response:
        blocks = "".join([text async for text in response.aiter_text()])
    return [parse_event(block) for block in blocks.removesuffix("\n\n").split("\n\n")]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_spans_of_a_request_are_one_tree_down_to_the_phases_of_its_agents(
    client, spans, is_streamed
):
    await ask(client, **SHORT, stream=is_streamed)
    root = spans.one("POST /v1/reason")
    assert root.parent is None
    assert spans.tree(root) == {"run hierarchical": HIERARCHY}
    assert {span.context.trace_id for span in spans.all} == {root.context.trace_id}
    assert all(map(is_well, spans.all))


async def test_chat_is_traced_as_well(client, spans):
    body = {"model": "latentmas/hierarchical", "messages": [{"role": "user", "content": "Why?"}]}
    await client.post("/v1/chat/completions", json=body | {"temperature": 0, "max_tokens": 6})
    assert spans.tree(spans.one("POST /v1/chat/completions")) == {"run hierarchical": HIERARCHY}


async def test_trace_of_the_client_goes_on(client, spans):
    await ask_with(client, TRACEPARENT | {"tracestate": "vendor=7"})
    root = spans.one("POST /v1/reason")
    assert f"{root.parent.span_id:016x}" == SPAN_ID
    assert {f"{span.context.trace_id:032x}" for span in spans.all} == {TRACE_ID}
    assert {span.context.trace_state.get("vendor") for span in spans.all} == {"7"}


async def test_client_that_does_not_want_to_be_traced_is_not(client, spans, transport):
    await ask_with(client, {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    assert spans.all == ()


@pytest.mark.parametrize("sent", ["", "x", f"00-{'0' * 32}-{SPAN_ID}-01", "00-" + "f" * 5000])
async def test_trace_that_is_none_is_not_gone_on_with(client, spans, sent):
    await ask_with(client, {"traceparent": sent})
    assert spans.one("POST /v1/reason").parent is None


async def ask_with(client, headers):
    response = await client.post("/v1/reason", json=SHORT, headers=headers)
    assert response.status_code == 200
    return response.json()


async def test_spans_say_what_was_done_where_with_how_much(client, spans):
    result = await ask_with(client, {"x-request-id": "follow-me"})
    root, run = spans.one("POST /v1/reason"), spans.one("run hierarchical")
    assert root.kind is SpanKind.SERVER
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/reason",
        "http.response.status_code": 200,
        "url.path": "/v1/reason",
        "url.scheme": "http",
        "latentmas.request_id": "follow-me",
        "latentmas.run_id": result["id"],
        "latentmas.pipeline": "hierarchical",
        "latentmas.mode": "latent",
        "latentmas.key_name": "alice",
        "latentmas.tenant": "alice-inc",
    }
    assert root.attributes == expected
    assert run.attributes["latentmas.run_id"] == result["id"]
    assert run.attributes["latentmas.latent_steps"] == result["usage"]["latent_steps"]
    assert run.attributes["gen_ai.usage.input_tokens"] == result["usage"]["prompt_tokens"]
    first, second = result["stages"]
    for kind in ("call", "stage"):
        one, two = spans.one(f"{kind} planner+critic"), spans.one(f"{kind} refiner+judger")
        assert one.attributes["latentmas.group"] == "thinkers"
        assert one.attributes["latentmas.agents"] == ("planner", "critic")
        assert one.attributes["latentmas.bytes_out"] == first["bytes_out"] > 0
        assert two.attributes["latentmas.bytes_in"] == second["bytes_in"] == first["bytes_out"]
    assert spans.one("call planner+critic").attributes["latentmas.attempt"] == 1
    for trace in result["agents"]:
        turn = spans.one(f"agent {trace['name']}")
        assert turn.attributes["gen_ai.usage.input_tokens"] == trace["prompt_tokens"]
        assert turn.attributes["gen_ai.usage.output_tokens"] == trace["completion_tokens"]
        assert turn.attributes["latentmas.latent_steps"] == trace["latent_steps"]
        assert turn.attributes["latentmas.adapter"] == trace["adapter"] == "base"


async def test_phases_last_as_long_as_the_engine_measured_and_lie_within_their_turn(client, spans):
    result = await ask_with(client, {})
    for trace in result["agents"]:
        turn = spans.one(f"agent {trace['name']}")
        phases = spans.below(turn)
        for phase in phases:
            measured_ms = trace["phases"][f"{phase.name}_ms"]
            assert (phase.end_time - phase.start_time) / 1e6 == pytest.approx(measured_ms, abs=0.5)
            assert turn.start_time <= phase.start_time <= phase.end_time <= turn.end_time
        for before, after in pairwise(phases):
            assert before.end_time == after.start_time


async def test_stage_that_is_retried_shows_both_tries(client, spans, transport):
    transport.num_losses = 1
    assert [e.name for e in await stream(client, SHORT)][-1] == "answer.done"
    lost, good = spans.named("call planner+critic")
    assert failure_of(lost) == "LostError"
    assert [span.attributes["latentmas.attempt"] for span in (lost, good)] == [1, 2]
    assert is_well(good)
    (stage,) = spans.below(lost)
    (turn,) = spans.below(stage)
    assert (turn.name, is_cut(stage), is_cut(turn)) == ("agent planner", True, True)
    assert is_well(spans.one("run hierarchical"))
    assert is_well(spans.one("POST /v1/reason"))


async def test_expert_that_is_done_without_has_failed_and_its_run_has_not(client, spans):
    body = SHORT | {"pipeline": "parallel", "latent_steps": MAX_STEPS + 1}
    response = await ask(client, **body, on_expert_failure="continue")
    assert response.json()["failed_agents"] == ["math"]
    for name in ("call math", "stage math"):
        assert failure_of(spans.one(name)) == "ConfigError"
    run = spans.one("run parallel")
    assert not is_failed(run)
    assert [dict(event.attributes) for event in run.events] == [{"latentmas.stage": "math"}]
    assert run.attributes["latentmas.failed_agents"] == ("math",)
    calls = {f"call {stage}" for stage in ("medical", "coder", "math", "judger")}
    assert {span.name for span in spans.below(run)} == calls


async def test_run_that_fails_says_with_what_and_the_request_with_which_status(client, spans):
    response = await ask(client, **SHORT | {"question": "x" * 20_000})
    assert response.status_code == 413
    for name in ("stage planner+critic", "call planner+critic", "run hierarchical"):
        assert failure_of(spans.one(name)) == "ContextLengthError"
    root = spans.one("POST /v1/reason")
    assert root.attributes["http.response.status_code"] == 413
    assert not is_failed(root), "it is the client's fault"


async def test_fault_of_ours_is_a_failure_of_the_request(client, spans, transport, monkeypatch):
    def broken(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("deployments.runner.stream_stage", broken)
    assert (await ask(client, **SHORT)).status_code == 500
    root = spans.one("POST /v1/reason")
    assert (is_failed(root), root.attributes["error.type"]) == (True, "500")
    assert failure_of(spans.one("run hierarchical")) == "RuntimeError"
    assert "secret" not in spans.texts()


async def test_deadline_within_a_turn_ends_what_is_open_and_says_so(client, spans):
    response = await ask(client, **ENDLESS | {"timeout_s": 0.4})
    assert response.status_code == 504
    assert failure_of(spans.one("run hierarchical")) == "DeadlineError"
    assert not is_well(spans.one("call refiner+judger"))
    turn = spans.one("agent judger")
    assert not is_well(turn)
    *_, last = spans.below(turn)
    assert (last.name, is_well(last)) == ("speaking", False)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_client_that_leaves_cuts_all_spans_that_are_open(
    client, spans, transport, is_streamed
):
    asking = asyncio.create_task(ask(client, **ENDLESS, stream=is_streamed))
    await asyncio.wait_for(transport.has_begun.wait(), 10)
    asking.cancel()
    await asyncio.wait([asking])
    root, run = spans.one("POST /v1/reason"), spans.one("run hierarchical")
    assert (is_cut(root), is_cut(run)) == (True, True)
    assert not any(map(is_failed, spans.all))
    assert any(is_cut(span) for span in spans.all if span.name.startswith("call "))


async def test_questions_of_a_batch_are_runs_of_one_request(client, spans):
    await client.post("/v1/batch", json={"requests": [SHORT, SHORT | {"mode": "single"}]})
    runs = spans.below(spans.one("POST /v1/batch"))
    assert [run.name for run in runs] == ["run hierarchical"] * 2
    assert {run.attributes["latentmas.mode"] for run in runs} == {"latent", "single"}
    whole, single = sorted(map(spans.tree, runs), key=len, reverse=True)
    assert whole == HIERARCHY
    assert list(single) == ["call judger"]


async def test_probes_have_no_spans_and_what_matches_no_route_has_no_name_of_its_own(client, spans):
    await client.get("/healthz")
    assert spans.all == ()
    await client.get("/v1/nothing-of-the-kind")
    assert [span.name for span in spans.all] == ["GET"]


async def test_no_question_answer_prompt_or_key_is_in_any_span(client, spans):
    said = "Which colour has the unicorn in the cellar?"
    history = [{"role": "user", "content": "basilisk"}, {"role": "assistant", "content": "gryphon"}]
    body = SHORT | {"question": said, "system_prompt": "Speak as a kraken.", "history": history}
    headers = {"tracestate": "a=b", "baggage": "password=phoenix"}
    response = await client.post("/v1/reason", json=body, headers=headers)
    failing = await client.post("/v1/reason", json=body | {"question": said * 500})
    refused = await client.post("/v1/reason", json=body | {"pipeline": "hydra"})
    sphinx = {"authorization": "Bearer sphinx"}
    wrong_key = await client.get("/v1/stats?key=chimera", headers=sphinx)
    statuses = [r.status_code for r in (response, failing, refused, wrong_key)]
    assert statuses == [200, 413, 404, 401]
    texts = spans.texts()
    assert "hierarchical" in texts
    secrets = ["unicorn", "basilisk", "gryphon", "kraken", "phoenix", "hydra", "chimera", "sphinx"]
    secrets += [*SECRETS, response.json()["final_answer"]]
    assert [secret for secret in secrets if secret in texts] == []


async def test_lines_of_the_log_name_the_trace(client, spans, caplog):
    caplog.set_level("INFO")
    caplog.handler.addFilter(with_origin)
    await ask_with(client, TRACEPARENT)
    (line,) = [record for record in caplog.records if getattr(record, "event", "") == "request"]
    assert line.trace_id == TRACE_ID
