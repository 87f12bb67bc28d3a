"""Two groups with real engines over one tiny model, and one process that answers the same."""

import pytest

from deployments.args import AppArgs
from deployments.budget import TransferBudget
from deployments.reasoner import Reasoner
from latentmas_core.engine.engine import Engine
from latentmas_core.pipelines.spec import PipelineSpec
from latentmas_core.system import LatentMASSystem
from tests.deployments.groups.stage_calls import STEPS
from tests.deployments.local_groups import LocalTransport, make_servers
from tests.engine.engines import assert_nothing_left
from tests.factories import make_tiny_model

GROUPS = [
    {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]},
    {"name": "deciders", "agents": ["refiner", "math", "judger"]},
]
PIPELINES = [PipelineSpec.chain("zigzag", ["planner", "refiner", "critic", "judger"])]


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    """Untied, so that realignment does something."""
    folder = tmp_path_factory.mktemp("tiny")
    return make_tiny_model(folder, "qwen2", max_position_embeddings=8192)


@pytest.fixture(scope="package")
def args(model):
    engine = {
        "model_name": str(model),
        "device": "cpu",
        "dtype": "float32",
        "kv_cache_bytes": 2**23,
        "num_threads": 1,
    }
    return AppArgs(engine=engine, groups=GROUPS, latent_steps=STEPS, pipelines=PIPELINES)


@pytest.fixture(scope="package")
def engines(args):
    engines = {group.name: Engine(args.engine_of(group)) for group in args.groups}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
async def servers(args, engines):
    """Fails the test if a request, a memory or a block is left."""
    yield make_servers(args, engines)
    for engine in engines.values():
        await assert_nothing_left(engine)


@pytest.fixture
def transport(monkeypatch):
    transport = LocalTransport()
    monkeypatch.setattr("deployments.runner.stream_stage", transport.stream_stage)
    return transport


@pytest.fixture
def reasoner(args, servers, transport):
    return Reasoner(args, servers, TransferBudget(2**30))


@pytest.fixture(scope="package")
def system(args):
    with LatentMASSystem(
        engine_config=args.engine_of(args.groups[0]), latent_steps=STEPS
    ) as system:
        yield system.add_default_agents().add_pipeline(PIPELINES[0])
