"""Pipelines from YAML."""

from pathlib import Path

import pytest

from latentmas_core.errors import ConfigError, PipelineError
from latentmas_core.latent.memory import MergeRule
from latentmas_core.pipelines.yaml_file import load_pipelines, parse_pipelines

DEBATE = """
pipelines:
  debate:
    description: two planners
    merge: consecutive
    nodes:
      - {name: first, agent: planner}
      - {name: second, agent: planner}
      - {name: judger, after: [first, second]}
  short:
    nodes: [{name: judger}]
"""


def test_pipelines_are_read_by_name():
    debate, short = parse_pipelines(DEBATE).values()
    assert debate.name == "debate"
    assert debate.merge is MergeRule.CONSECUTIVE
    assert debate.speaker.after == ("first", "second")
    assert short.speaker.agent == "judger"


def test_example_file_is_valid():
    root = Path(__file__).resolve().parents[2]
    assert load_pipelines(root / "examples" / "custom_pipeline.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipelines: [", "not valid YAML"),
        ("", "got NoneType"),
        ("- a", "got list"),
        ("pipes: {}", "got the keys pipes"),
        ("pipelines: {}\nagents: {}", "got the keys pipelines, agents"),
        ("pipelines: {p: [a]}", "'p' must be a mapping.*got list"),
        ("pipelines: {p: {name: q, nodes: []}}", "its name is its key"),
        ("pipelines: {p: {nodes: []}}", "'p' has no node"),
        ("pipelines: {p: {nodes: [{name: a, after: [a]}]}}", "'p' has a cycle: a -> a"),
    ],
)
def test_wrong_yaml_is_refused_with_its_place(text, message):
    with pytest.raises(PipelineError, match=message):
        parse_pipelines(text)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml.*No such file"):
        load_pipelines(tmp_path / "gone.yaml")
