"""The newcomer's walk of docs/contributing.md: its blocks do what is said of them."""

from pathlib import Path

import yaml

from deployments.args import AppArgs
from latentmas_core import AgentConfig
from latentmas_core.context.tools.tool import Tool
from tests.docs.blocks import blocks_of

PAGE = Path(__file__).parents[2] / "docs/contributing.md"
BLOCKS = list(blocks_of(PAGE))
ROLE, TOOL = (block.text for block in BLOCKS if block.language == "python")
IN_ROLE, PIPELINE, SAMPLING = (
    AppArgs.model_validate(yaml.safe_load(block.text))
    for block in BLOCKS
    if block.language == "yaml"
)


def test_no_block_is_left_out():
    assert len(BLOCKS) == 5


def test_a_role_is_an_agent_of_the_program_and_of_a_service():
    names: dict[str, object] = {}
    exec(ROLE, names)
    assert names["economist"] == IN_ROLE.known_agents["economist"]
    assert isinstance(names["economist"], AgentConfig)


def test_a_pipeline_is_offered_and_its_speaker_is_the_new_agent():
    assert PIPELINE.offered_pipelines["costs"].speaker.agent == "economist"


def test_a_tool_is_one():
    names: dict[str, object] = {}
    exec(TOOL, names)
    assert isinstance(names["stock"], Tool)
    assert names["stock"].name == "stock_of"


def test_a_default_changes_and_the_others_stay():
    shipped, changed = AgentConfig.preset("judger"), SAMPLING.known_agents["judger"]
    assert (changed.temperature, changed.max_tokens) == (0.0, 256)
    assert changed == shipped.model_copy(update={"temperature": 0.0, "max_tokens": 256})
