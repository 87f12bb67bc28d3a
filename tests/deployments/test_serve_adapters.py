"""Adapters on a real cluster: loaded on both groups, used, traced, unloaded, and guarded."""

import asyncio

import pytest

from latentmas_core.config import EngineConfig
from latentmas_core.system import LatentMASSystem
from tests.factories import make_tiny_model
from tests.lora.adapters import make_adapter

pytestmark = [pytest.mark.serve, pytest.mark.own_cluster]

QUESTION = "What is 17 times 3?"
OPTIONS = {"max_tokens": 8, "latent_steps": 2, "temperature": 0}
ENGINE = {"device": "cpu", "dtype": "float32", "kv_cache_bytes": 2**26}
RANKS = {"start": 4, "first": 8, "second": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(folder, "qwen2", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def root(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("adapters")
    for name, rank in RANKS.items():
        make_adapter(folder / name, model, rank=rank, seed=rank)
    return folder


@pytest.fixture(scope="module")
def outside(tmp_path_factory, model, root):
    """A good adapter that a link in the root leads to."""
    folder = make_adapter(tmp_path_factory.mktemp("elsewhere") / "outside", model, seed=9)
    (root / "link").symlink_to(folder)
    return folder


@pytest.fixture(scope="module")
def service(deploy, model, root):
    groups = [
        {"name": "thinkers", "agents": ["planner", "critic"], "num_cpus": 0.5},
        {"name": "deciders", "agents": ["refiner", "judger"], "num_cpus": 0.5},
    ]
    adapters = {
        "load": [{"name": "start", "path": str(root / "start")}],
        "admin": True,
        "roots": [str(root)],
    }
    engine = ENGINE | {"model_name": str(model)}
    return deploy({"engine": engine, "groups": groups, "adapters": adapters})


@pytest.fixture(autouse=True)
def _only_the_first_adapter_is_left(service):
    yield
    for listed in service.get("/v1/adapters").json()["data"]:
        if listed["name"] != "start":
            unload(service, listed["name"]).raise_for_status()
    assert [one["name"] for one in service.get("/v1/adapters").json()["data"]] == ["start"]


def load(service, name, path, **fields):
    body = {"lora_name": name, "lora_path": str(path)} | fields
    return service.post("/v1/load_lora_adapter", **body)


def unload(service, name):
    return service.post("/v1/unload_lora_adapter", lora_name=name)


def ask(service, **fields):
    return service.ask(question=QUESTION, **OPTIONS, **fields)


def test_answer_with_adapters_is_the_answer_in_process(service, model, root):
    for name in ("first", "second"):
        assert load(service, name, root / name).status_code == 200
    chosen = {"planner": "first", "refiner": "start", "judger": {"second": 0.5, "first": 1.0}}
    served = ask(service, adapters=chosen).raise_for_status().json()
    config = EngineConfig(model_name=str(model), **ENGINE)
    with LatentMASSystem(engine_config=config) as system:
        system.add_default_agents()
        for name in RANKS:
            system.load_external_lora(name, root / name)
        local = system.run(QUESTION, **OPTIONS, adapters=chosen).model_dump(mode="json")
    assert served["final_answer"] == local["final_answer"]
    for agent in (*served["agents"], *local["agents"]):
        del agent["latency_ms"], agent["started_at"], agent["phases"]
    assert served["agents"] == local["agents"]
    assert [agent["adapter"] for agent in served["agents"]] == [
        "first",
        "base",
        "start",
        "second*0.5+first",
    ]


def test_adapter_is_on_every_replica_of_every_group(service, root):
    load(service, "first", root / "first", pinned=True).raise_for_status()
    listed = {one["name"]: one for one in service.get("/v1/adapters").json()["data"]}
    assert set(listed["first"]["states"]) == {"thinkers", "deciders"}
    assert (listed["first"]["rank"], listed["first"]["pinned"]) == (8, True)


def test_unknown_adapter_is_never_the_base(service):
    response = ask(service, adapters={"judger": "nobody"})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "adapters"


def test_unloaded_adapter_is_gone_everywhere(service, root):
    load(service, "first", root / "first").raise_for_status()
    ask(service, adapters={"judger": "first"}).raise_for_status()
    unload(service, "first").raise_for_status()
    assert ask(service, adapters={"judger": "first"}).status_code == 404
    assert unload(service, "first").status_code == 404


def test_path_and_link_out_of_the_root_are_refused(service, outside, root):
    for path in (outside, root / "link", f"{root}/../elsewhere", "owner/name"):
        response = load(service, "stolen", path)
        assert response.status_code == 422, path
        assert response.json()["error"]["code"] == "invalid_adapter"


def test_broken_adapter_is_half_loaded_nowhere(service, root):
    broken = root / "broken"
    broken.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        content = (root / "first" / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) - 100 * name.endswith("tensors")])
    assert load(service, "broken", broken).status_code == 422
    assert ask(service).status_code == 200


def test_name_in_use_is_refused_and_keeps_its_adapter(service, root):
    load(service, "first", root / "first").raise_for_status()
    assert load(service, "first", root / "second").status_code == 422
    listed = {one["name"]: one for one in service.get("/v1/adapters").json()["data"]}
    assert listed["first"]["rank"] == 8
    assert set(listed["first"]["states"]) == {"thinkers", "deciders"}


async def test_many_requests_with_different_adapters_share_the_engines(service, root):
    for name in ("first", "second"):
        load(service, name, root / name).raise_for_status()
    names = ["start", "first", "second", "base"]
    alone = {name: ask(service, adapters={"judger": name}).json()["final_answer"] for name in names}
    assert len(set(alone.values())) == len(names)
    async with service.client() as client:
        responses = await asyncio.gather(
            *(
                client.post(
                    "/v1/reason",
                    json={"question": QUESTION, "adapters": {"judger": names[i % 4]}, **OPTIONS},
                )
                for i in range(24)
            )
        )
    answers = [response.raise_for_status().json()["final_answer"] for response in responses]
    assert answers == [alone[names[i % 4]] for i in range(24)]


def test_replica_that_starts_anew_learns_of_the_adapters_it_needs(service, root):
    load(service, "first", root / "first").raise_for_status()
    before = ask(service, adapters={"judger": "first"}).raise_for_status().json()
    service.kill_replica("deciders")
    service.wait_until(lambda: service.get("/readyz").status_code == 200, timeout_s=60.0)
    after = ask(service, adapters={"judger": "first"}).raise_for_status().json()
    assert after["final_answer"] == before["final_answer"]
    load(service, "first", root / "first").raise_for_status()
