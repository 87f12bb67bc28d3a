"""What can be asked for, as it is told over HTTP."""

from latentmas_core.agents.config import AgentConfig


async def test_pipelines_are_told_with_their_edges_and_where_they_run(client):
    response = await client.get("/v1/pipelines")
    assert response.status_code == 200
    (entry,) = response.json()["data"]
    assert entry == {
        "name": "hierarchical",
        "description": "plan, criticise, refine, decide",
        "default": True,
        "nodes": [
            {"name": "planner", "agent": "planner", "after": []},
            {"name": "critic", "agent": "critic", "after": ["planner"]},
            {"name": "refiner", "agent": "refiner", "after": ["critic"]},
            {"name": "judger", "agent": "judger", "after": ["refiner"]},
        ],
        "speaker": "judger",
        "stages": [
            {
                "name": "planner+critic",
                "group": "thinkers",
                "nodes": ["planner", "critic"],
                "parents": [],
            },
            {
                "name": "refiner+judger",
                "group": "deciders",
                "nodes": ["refiner", "judger"],
                "parents": ["planner+critic"],
            },
        ],
        "hops": 1,
        "merge": "reused",
        "on_expert_failure": "fail",
        "stage_timeout_s": None,
    }


async def test_agents_are_told_as_their_groups_have_them(client):
    response = await client.get("/v1/agents")
    assert response.status_code == 200
    agents = {entry["name"]: entry for entry in response.json()["data"]}
    assert list(agents) == ["planner", "critic", "refiner", "judger"]
    assert agents["judger"] == {
        "name": "judger",
        "role": "final decision",
        "group": "deciders",
        "adapter": "base",
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 500,
        "latent_steps": 4,
        "speaker_latent_steps": 0,
        "pipelines": ["hierarchical"],
    }
    refiner = agents["refiner"]
    assert (refiner["adapter"], refiner["latent_steps"]) == ("mine", 9)
    assert refiner["speaker_latent_steps"] == 9


async def test_prompts_of_agents_are_not_told(client):
    text = (await client.get("/v1/agents")).text
    judger = AgentConfig.judger()
    assert judger.system_prompt not in text
    assert "prompt" not in text


async def test_answers_are_described_by_models_of_their_own(client):
    schema = (await client.get("/openapi.json")).json()
    for path, model in (("/v1/pipelines", "Pipelines"), ("/v1/agents", "Agents")):
        content = schema["paths"][path]["get"]["responses"]["200"]["content"]
        assert content["application/json"]["schema"]["$ref"].endswith(f"/{model}")
