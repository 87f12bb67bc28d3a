"""The worker of RunPod: its settings, its handler in the SDK's own loop, and the whole process
behind the SDK's local API server with the cases of .runpod/tests.json."""

import json
from pathlib import Path

import pytest
from runpod.serverless.modules import rp_job
from transformers import AutoTokenizer

from deployments.api.errors import INTERNAL_MESSAGE
from deployments.runpod_worker import Worker, WorkerSettings
from latentmas_core import ConfigError, LatentMASSystem, NotFoundError
from tests.deployments.runpod_process import WorkerProcess
from tests.pipelines.fake_engine import FakeEngine

FILES = Path(__file__).parents[2] / ".runpod"
CASES = json.loads((FILES / "tests.json").read_text())["tests"]
HUB = json.loads((FILES / "hub.json").read_text())
EVENTS = {"routing.decided", "stage.started", "agent.started", "answer.delta", "answer.done"}
PROMPT = "Which antibiotic is given for pneumonia?"


@pytest.fixture(scope="module")
def worker(tiny_qwen2, tmp_path_factory):
    environment = {
        "LATENTMAS_MODEL": str(tiny_qwen2),
        "LATENTMAS_DEVICE": "cpu",
        "LATENTMAS_LATENT_STEPS": "3",
        "LATENTMAS_ENGINE": json.dumps({"kv_cache_bytes": 2**25, "num_threads": 1}),
        "PYTHONPATH": str(FILES.parent),
    }
    with WorkerProcess(environment, tmp_path_factory.mktemp("worker") / "log") as worker:
        yield worker
        assert worker.close() == 0


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case_of_the_hub_is_answered(worker, case):
    answer = worker.post("/runsync", {"input": case["input"]})
    assert answer["status"] == "COMPLETED"
    *before, last = answer["output"]
    assert bool(before) == case["input"].get("stream", False)
    assert last["usage"]["completion_tokens"] >= 1
    assert last["agents"][-1]["completion_tokens"] <= case["input"]["max_tokens"]
    assert last["mode"] == case["input"].get("mode", "latent")
    if case["input"].get("stream"):
        assert {output["event"] for output in answer["output"]} >= EVENTS
        text = "".join(one["text"] for one in before if one["event"] == "answer.delta")
        assert text == last["final_answer"]


def test_there_are_four_cases_and_they_differ():
    assert len({case["name"] for case in CASES}) == len(CASES) == 4
    assert all(isinstance(case["timeout"], int) for case in CASES)


def test_stream_of_a_job_can_be_read(worker):
    job = worker.post("/run", {"input": {"prompt": PROMPT, "max_tokens": 4, "stream": True}})
    streamed = worker.post(f"/stream/{job['id']}")
    assert streamed["status"] == "COMPLETED"
    names = [part["output"]["event"] for part in streamed["stream"]]
    assert (names[0], names[-1]) == ("stage.started", "answer.done")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": PROMPT, "max_token": 4}, "unknown field 'max_token'. Known fields:"),
        ({"max_tokens": 4}, "field 'prompt' of JobInput is missing."),
        ({"prompt": PROMPT, "max_tokens": "4"}, "max_tokens got '4': "),
        ({"prompt": PROMPT, "pipeline": "diagonal"}, "pipeline 'diagonal' does not exist."),
    ],
)
def test_wrong_input_is_told_by_name(worker, fields, told):
    (output,) = worker.post("/runsync", {"input": fields})["output"]
    assert list(output) == ["error"]
    assert output["error"].startswith(told)


class Platform:
    """What RunPod gets of a job from the SDK."""

    def __init__(self, monkeypatch, handler):
        self.streamed = []
        self.result = None
        self._config = {"handler": handler, "return_aggregate_stream": True}
        monkeypatch.setattr(rp_job, "stream_result", self._stream)
        monkeypatch.setattr(rp_job, "send_result", self._send)

    async def run(self, job_input):
        await rp_job.handle_job(None, self._config, {"id": "job-1", "input": job_input})
        return self.result

    async def _stream(self, session, output, job):
        self.streamed.append(output["output"])

    async def _send(self, session, result, job, *, is_stream):
        assert is_stream
        self.result = result


@pytest.fixture
def system(tiny_qwen2):
    engine = FakeEngine(AutoTokenizer.from_pretrained(tiny_qwen2))
    with LatentMASSystem.from_engine(engine, latent_steps=2) as system:
        yield system.add_default_agents()
    engine.check_idle()


@pytest.fixture
def platform(system, monkeypatch):
    return Platform(monkeypatch, Worker(system).answer)


async def test_job_gives_out_its_result_alone(platform):
    result = await platform.run({"prompt": PROMPT, "latent_steps": 5, "seed": 3})
    (output,) = result["output"]
    assert platform.streamed == [output]
    assert (output["pipeline"], output["usage"]["latent_steps"]) == ("hierarchical", 3 * 5)


async def test_job_with_documents_says_what_its_answer_rests_on(platform):
    result = await platform.run({"prompt": PROMPT, "documents": ["Pneumonia: amoxicillin."]})
    (output,) = result["output"]
    assert [citation["document"] for citation in output["citations"]] == ["document 1"]


async def test_streamed_job_gives_out_every_event_and_their_sum(platform):
    result = await platform.run({"prompt": PROMPT, "pipeline": "auto", "stream": True})
    assert result["output"] == platform.streamed
    assert platform.streamed[0]["event"] == "routing.decided"
    assert platform.streamed[-1]["event"] == "answer.done"


@pytest.mark.parametrize("job_input", [{"prompt": " "}, "Why?", None, ["Why?"], {}])
async def test_wrong_input_fails_the_job(platform, job_input):
    result = await platform.run(job_input)
    assert list(result) == ["error"]
    assert "prompt" in result["error"]
    assert platform.streamed == []


async def test_conversation_is_refused(platform):
    result = await platform.run({"prompt": PROMPT, "conversation_id": "talk"})
    assert "no conversations are kept here" in result["error"]


async def test_failure_that_nobody_expected_tells_the_client_nothing(platform, system, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("secret")

    monkeypatch.setattr(system, "astream", fail)
    assert await platform.run({"prompt": PROMPT}) == {"error": INTERNAL_MESSAGE}


def test_settings_come_from_the_environment_and_empty_ones_are_not_set():
    environ = {
        "LATENTMAS_MODEL": "owner/model",
        "LATENTMAS_QUANTIZATION": "",
        "LATENTMAS_LATENT_STEPS": "7",
        "LATENTMAS_ADAPTERS": "medical_reasoner, mine=owner/repo",
        "LATENTMAS_ENGINE": '{"max_num_seqs": 8}',
        "LATENTMAS_CACHE": "/somewhere",
    }
    settings = WorkerSettings.from_environment(environ)
    assert (settings.model, settings.quantization, settings.latent_steps) == (
        "owner/model",
        None,
        7,
    )
    assert settings.adapters == ("medical_reasoner", "mine=owner/repo")
    assert settings.engine == {"max_num_seqs": 8}
    assert WorkerSettings.from_environment({}) == WorkerSettings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LATENTMAS_LATENT_STEPS", "many"),
        ("LATENTMAS_LATENT_STEPS", "-1"),
        ("LATENTMAS_QUANTIZATION", "2bit"),
        ("LATENTMAS_ENGINE", "{"),
        ("LATENTMAS_MAX_CONCURRENCY", "0"),
    ],
)
def test_wrong_setting_names_its_variable(variable, value):
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        WorkerSettings.from_environment({variable: value})


def test_adapters_of_the_settings_are_loaded(tiny_qwen2):
    small = {"kv_cache_bytes": 2**22}
    settings = WorkerSettings.model_construct(
        model=str(tiny_qwen2), device="cpu", engine=small, adapters=("no_such_adapter",)
    )
    with pytest.raises(NotFoundError, match="no_such_adapter"):
        settings.build_system()


def test_hub_offers_variables_that_the_worker_reads():
    known = {f"LATENTMAS_{name.upper()}" for name in WorkerSettings.model_fields}
    asked = {variable["key"]: variable["input"]["default"] for variable in HUB["config"]["env"]}
    assert set(asked) <= known
    for defaults in (asked, *(preset["defaults"] for preset in HUB["config"]["presets"])):
        assert set(defaults) <= known
        WorkerSettings.from_environment({name: str(value) for name, value in defaults.items()})
