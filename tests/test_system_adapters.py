"""Adapters through the facade: agents use them, traces tell, nothing unknown is the base."""

import shutil
import time
from pathlib import Path

import pytest

from latentmas_core import (
    AdapterError,
    AgentConfig,
    ConfigError,
    EngineConfig,
    LatentMASSystem,
    MergeMethod,
    MergeOptions,
    NotFoundError,
)
from latentmas_core.events import AgentFinished, AnswerDone
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

QUESTION = "What is 17 times 3?"
OPTIONS = {"temperature": 0.0, "max_tokens": 8, "latent_steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(
        tmp_path_factory.mktemp("adapted"), "qwen2", max_position_embeddings=8192
    )


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(folder / name, model, rank=rank, seed=rank)
        for name, rank in (("first", 8), ("second", 4))
    }


@pytest.fixture
def system(model, adapters):
    config = EngineConfig(dtype="float32", kv_cache_bytes=2**26, num_threads=1)
    with LatentMASSystem(str(model), device="cpu", engine_config=config) as system:
        system.add_default_agents()
        for name, folder in adapters.items():
            system.load_external_lora(name, folder)
        yield system


def answer(system, **options):
    return system.run(QUESTION, **OPTIONS, **options)


def test_trace_tells_which_adapter_each_agent_used(system):
    digests = {info.name: info.digest for info in system.adapters}
    result = answer(system, adapters={"planner": "first", "judger": {"first": 0.5, "second": 1.0}})
    traced = {agent.name: (agent.adapter, agent.adapter_digest) for agent in result.agents}
    assert traced["planner"] == ("first", digests["first"])
    assert traced["critic"] == ("base", None)
    assert traced["judger"] == (
        "first*0.5+second",
        f"{digests['first']}*0.5+{digests['second']}",
    )


@pytest.mark.parametrize("agent", ["planner", "judger"])
def test_adapter_of_a_thinker_or_of_the_speaker_changes_the_answer(system, agent):
    assert answer(system, adapters={agent: "first"}).final_answer != answer(system).final_answer


def test_agents_of_one_request_use_different_adapters_at_once(system):
    adapters = {"medical": "first", "math": "second"}
    together = answer(system, pipeline="parallel", adapters=adapters)
    again = [
        answer(system, pipeline="parallel", adapters=adapters),
        *system.run_many([QUESTION] * 4, pipeline="parallel", adapters=adapters, **OPTIONS),
    ]
    assert {result.final_answer for result in again} == {together.final_answer}
    assert system.stats().adapters.num_loaded == 2


def test_adapter_of_an_agent_is_its_default(system):
    system.add_agent(AgentConfig.judger(name="lawyer", adapter="second"))
    own = answer(system, pipeline=["planner", "lawyer"])
    assert own.agents[-1].adapter == "second"
    base = answer(system, pipeline=["planner", "lawyer"], adapters={"lawyer": "base"})
    assert base.agents[-1].adapter == "base"
    assert own.final_answer != base.final_answer


def test_embeddings_are_prefilled_with_the_adapter_that_made_them(system):
    adapters = {"planner": "first", "judger": "second"}
    kv, embeddings = (
        answer(system, adapters=adapters, handoff=handoff) for handoff in ("kv", "embeddings")
    )
    assert embeddings.final_answer == kv.final_answer


@pytest.mark.parametrize(
    "chosen", [{"planner": "nobody"}, {"judger": {"nobody": 1.0}}, {"coder": "first"}]
)
def test_unknown_adapter_or_agent_is_refused_before_anything_runs(system, chosen):
    with pytest.raises(NotFoundError, match=r"nobody|coder") as refused:
        answer(system, adapters=chosen)
    assert refused.value.param == "adapters"
    assert system.stats().num_steps_total == 0


def test_unloaded_adapter_is_gone_and_its_name_free(system, adapters):
    before = answer(system, adapters={"judger": "first"}).final_answer
    system.unload_lora("first")
    with pytest.raises(NotFoundError, match="first"):
        answer(system, adapters={"judger": "first"})
    system.load_external_lora("first", adapters["second"])
    after = answer(system, adapters={"judger": "first"})
    assert after.final_answer == answer(system, adapters={"judger": "second"}).final_answer
    assert after.final_answer != before


def test_name_in_use_is_refused_and_keeps_its_adapter(system, adapters):
    with pytest.raises(AdapterError, match="'first' is in use"):
        system.load_external_lora("first", adapters["second"])
    assert {info.name: info.rank for info in system.adapters} == {"first": 8, "second": 4}


def test_registry_entry_for_another_base_is_refused_with_both_names(system, model):
    with pytest.raises(AdapterError, match=r"Qwen2\.5-Coder-7B-Instruct") as refused:
        system.load_from_registry("coder_7b")
    assert str(model) in refused.value.message


def test_entry_of_a_users_registry_is_loaded_by_name(model, adapters, tmp_path):
    registry = tmp_path / "mine.yaml"
    registry.write_text(
        f"adapters:\n  - {{name: mine, path: {adapters['first']}, base_model: {model}}}\n"
    )
    with LatentMASSystem(
        str(model),
        device="cpu",
        max_loaded_adapters=1,
        registries=[registry],
        engine_config=EngineConfig(kv_cache_bytes=2**26, num_threads=1),
    ) as system:
        system.add_default_agents().load_from_registry("mine", pinned=True)
        assert answer(system, adapters={"judger": "mine"}).agents[-1].adapter == "mine"
        assert [(info.name, info.pinned) for info in system.adapters] == [("mine", True)]


def test_without_places_no_adapter_is_loaded(model, adapters):
    config = EngineConfig(kv_cache_bytes=2**23, num_threads=1)
    with (
        LatentMASSystem(
            str(model), device="cpu", max_loaded_adapters=0, engine_config=config
        ) as system,
        pytest.raises(AdapterError, match="max_loaded_adapters is 0"),
    ):
        system.load_external_lora("first", adapters["first"])


def test_merged_adapter_is_loaded_and_used(system, tmp_path):
    """Side by side it is the composition of the same weights."""
    weights = {"first": 0.75, "second": 0.25}
    system.merge_loras(
        "both", weights, output=tmp_path / "both", options=MergeOptions(MergeMethod.CAT)
    )
    merged = answer(system, adapters={"judger": "both"})
    assert merged.agents[-1].adapter == "both"
    composed = answer(system, adapters={"judger": weights})
    assert merged.final_answer == composed.final_answer


def test_adapter_that_is_not_loaded_is_not_merged(system, tmp_path):
    with pytest.raises(NotFoundError, match="nobody"):
        system.merge_loras(
            "both",
            {"first": 1.0, "nobody": 1.0},
            output=tmp_path / "both",
            options=MergeOptions(MergeMethod.LINEAR),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("first", AdapterError, "'first' is in use"),
        ("base", AdapterError, "means the base model"),
        ("bad name!", ConfigError, "bad name!"),
    ],
)
def test_name_that_a_merge_cannot_have_is_refused_before_it_begins(
    system, tmp_path, name, kind, message
):
    weights, options = {"first": 0.5, "second": 0.5}, MergeOptions(MergeMethod.CAT)
    with pytest.raises(kind, match=message) as refused:
        system.merge_loras(name, weights, output=tmp_path / "both", options=options)
    assert refused.value.param == "name"
    assert not list(tmp_path.iterdir())


def test_files_that_changed_since_they_were_loaded_are_not_merged(
    system, model, adapters, tmp_path
):
    folder = shutil.copytree(adapters["first"], tmp_path / "copy")
    system.load_external_lora("changing", folder)
    (folder / "adapter_model.safetensors").write_bytes(
        make_adapter(tmp_path / "other", model, rank=8, seed=77)
        .joinpath("adapter_model.safetensors")
        .read_bytes()
    )
    weights, options = {"changing": 0.5, "second": 0.5}, MergeOptions(MergeMethod.CAT)
    with pytest.raises(AdapterError, match="changed since it was loaded"):
        system.merge_loras("both", weights, output=tmp_path / "both", options=options)
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("pipeline", "first", "handoff"),
    [
        ("hierarchical", "planner", "kv"),
        ("hierarchical", "planner", "embeddings"),
        ("parallel", "medical", "kv"),  # where the speaker is a stage of its own
    ],
)
def test_answer_under_way_keeps_its_adapter_when_that_is_unloaded(
    system, adapters, pipeline, first, handoff
):
    """Even if another adapter gets its name before the next agent begins."""
    chosen = {first: "first", "judger": "first"}
    options = {"pipeline": pipeline, "adapters": chosen, "handoff": handoff}
    expected = answer(system, **options)
    result = None
    for event in system.stream(QUESTION, **OPTIONS, **options):
        if isinstance(event, AgentFinished) and event.agent == first:
            system.unload_lora("first")
            system.load_external_lora("first", adapters["second"])
        if isinstance(event, AnswerDone):
            result = event.result
    assert {info.rank for info in system.adapters} == {4}, "it was never unloaded"
    assert result.final_answer == expected.final_answer
    assert [a.adapter_digest for a in result.agents] == [a.adapter_digest for a in expected.agents]
    assert answer(system, **options).final_answer != expected.final_answer


def test_adapter_that_is_unloaded_goes_when_the_answer_is_given_up(system):
    events = system.stream(QUESTION, **OPTIONS, adapters={"judger": "first"})
    next(events)
    system.unload_lora("first")
    events.close()
    with pytest.raises(NotFoundError, match="'first'"):
        answer(system, adapters={"judger": "first"})
    deadline = time.monotonic() + 20
    while len(system._engine.stepper.adapters._adapters) > 1:
        assert time.monotonic() < deadline, "it stays for ever"
    assert system.stats().num_running == 0


def test_mode_single_needs_the_adapter_of_the_speaker_alone(system):
    """Neither the one that the request names for an agent before, nor that agent's own."""
    system.add_agent(AgentConfig.planner(name="scout", adapter="nobody"))
    chosen = {"pipeline": ["scout", "judger"], "mode": "single"}
    base = answer(system, **chosen)
    assert [agent.name for agent in base.agents] == ["judger"]
    adapted = answer(system, **chosen, adapters={"scout": "nobody", "judger": "first"})
    assert adapted.agents[0].adapter == "first"
    with pytest.raises(NotFoundError, match="'nobody'"):
        answer(system, **chosen, adapters={"judger": "nobody"})
    with pytest.raises(NotFoundError, match="'nobody'"):
        answer(system, pipeline=["scout", "judger"])
