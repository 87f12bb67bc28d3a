"""The newcomer's walk of docs/contributing.md: followed to the letter, step by step."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deployments.args import AppArgs
from deployments.context import tools_of
from latentmas_core import AgentConfig, EngineConfig, LatentMASSystem
from latentmas_core.result import Result
from tests.deployments.validating import ROOMY, validate
from tests.docs.blocks import Block, blocks_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/contributing.md"
SHIPPED = ROOT / "serve_config.yaml"
STEPS = ("role", "pipeline", "tool", "default")


def blocks_of_steps() -> dict[str, list[Block]]:
    """The blocks under each heading of the walk, in its order."""
    text = PAGE.read_text()
    starts = [text.count("\n", 0, found.start()) + 1 for found in re.finditer(r"^### ", text, re.M)]
    assert len(starts) == len(STEPS)
    ends = [*starts[1:], text.count("\n") + 1]
    return {
        step: [block for block in blocks_of(PAGE) if start < block.line < end]
        for step, start, end in zip(STEPS, starts, ends, strict=True)
    }


BLOCKS = blocks_of_steps()


def block(step: str, language: str) -> str:
    (text,) = [block.text for block in BLOCKS[step] if block.language == language]
    return text


def patched(text: str, diff: str) -> str:
    """``text`` with the lines of a diff; what it takes out and what it stands behind is there."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(before) == 1, before
    return text.replace(before, after)


def walk(step: str, folder: Path) -> None:
    """Make the changes of one step in ``folder``, which has the shipped config."""
    path = folder / SHIPPED.name
    text = SHIPPED.read_text()
    for one in BLOCKS[step]:
        if one.language == "diff":
            text = patched(text, one.text)
        elif found := re.match(r"# (\w+\.py)\n", one.text):
            (folder / found[1]).write_text(one.text)
    path.write_text(text)


def args_of(folder: Path) -> AppArgs:
    config = yaml.safe_load((folder / SHIPPED.name).read_text())
    return AppArgs.model_validate(config["applications"][0]["args"])


def tiny(model: Path) -> EngineConfig:
    return EngineConfig(model_name=str(model), kv_cache_bytes=2**24)


def asked(args: AppArgs, model: Path, pipeline: str) -> Result:
    """One question to the agents and pipelines of ``args``, on a tiny model."""
    with LatentMASSystem(engine_config=tiny(model), latent_steps=1) as system:
        hosted = {name for group in args.groups for name in group.agents}
        for name, agent in args.known_agents.items():
            if name in hosted:
                system.add_agent(agent)
        for spec in args.pipelines:
            system.add_pipeline(spec)
        return system.run("Is it worth it?", pipeline=pipeline, max_tokens=4)


def test_every_block_belongs_to_a_step_that_this_file_walks():
    assert sum(map(len, BLOCKS.values())) == len(list(blocks_of(PAGE)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the newcomer is; Python does not look there by itself, and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    sys.modules.pop("stock_tools", None)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_changes_at_most_two_files_and_leaves_a_valid_config(step: str, folder: Path):
    walk(step, folder)
    assert (folder / SHIPPED.name).read_text() != SHIPPED.read_text()
    assert len(list(folder.iterdir())) <= 2
    done = validate(Path(SHIPPED.name), *ROOMY)
    assert done.exit_code == 0, done.output


def test_the_role_takes_its_turn(tiny_llama: Path, tmp_path: Path):
    walk("role", tmp_path)
    assert "--pipeline sequential" in block("role", "bash")
    told = [agent.name for agent in asked(args_of(tmp_path), tiny_llama, "sequential").agents]
    assert "economist" in told


def test_the_role_answers_in_a_program(tiny_llama: Path):
    program = block("role", "python")
    assert "LatentMASSystem()" in program
    names: dict[str, object] = {"tiny": tiny(tiny_llama)}
    exec(program.replace("LatentMASSystem()", "LatentMASSystem(engine_config=tiny)"), names)
    result = names["result"]
    assert isinstance(result, Result)
    assert [agent.name for agent in result.agents] == ["planner", "economist"]


def test_the_pipeline_is_run_and_answers(tiny_llama: Path, tmp_path: Path):
    walk("pipeline", tmp_path)
    assert "--pipeline two_opinions" in block("pipeline", "bash")
    result = asked(args_of(tmp_path), tiny_llama, "two_opinions")
    assert [agent.name for agent in result.agents] == ["physician", "counter", "judger"]


def test_a_tool_that_is_not_there_is_refused_by_name(folder: Path):
    walk("tool", folder)
    (folder / "stock_tools.py").unlink()
    done = validate(Path(SHIPPED.name), *ROOMY)
    assert done.exit_code == 1
    assert "stock_tools:stock" in done.stderr


async def test_the_tool_is_offered_and_can_be_called(folder: Path):
    walk("tool", folder)
    sys.path.insert(0, str(folder))
    tool = tools_of(args_of(folder).context).get("stock_of")
    assert await tool.call({"article": "bolt"}) == "120"


def test_a_default_changes_and_the_others_stay(tmp_path: Path):
    walk("default", tmp_path)
    changed = args_of(tmp_path).known_agents["judger"]
    assert changed == AgentConfig.judger(temperature=0.0, max_tokens=256)
    assert changed != AgentConfig.judger()
