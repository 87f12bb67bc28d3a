"""A fake engine over the tiny models' tokenizer, and the agents that are shipped."""

import pytest
from transformers import AutoTokenizer

from latentmas_core.agents.config import default_agents
from latentmas_core.pipelines.local_runner import LocalAgentRunner
from latentmas_core.pipelines.stage_worker import Roster, StageWorker
from tests.pipelines.fake_engine import FakeEngine


@pytest.fixture(scope="session")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def engine(tokenizer):
    """Fails the test if it leaves a memory or a turn behind."""
    engine = FakeEngine(tokenizer)
    yield engine
    engine.check_idle()


@pytest.fixture
def agents():
    return {agent.name: agent for agent in default_agents()}


@pytest.fixture
def worker(engine, agents):
    return StageWorker(engine, Roster(agents, 7))


@pytest.fixture
def runner(worker, engine):
    return LocalAgentRunner(worker, engine)
