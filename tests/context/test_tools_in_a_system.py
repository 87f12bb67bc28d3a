"""Tools around a whole system: its agents run once per round, and the speaker sees the results."""

import pytest

from latentmas_core.context.tools import Tool
from latentmas_core.errors import ConfigError, NotFoundError
from latentmas_core.events import AgentFinished, StageStarted, ToolFinished
from latentmas_core.result import Usage
from latentmas_core.system import LatentMASSystem
from tests.context.scripted_ask import call_of, said_in
from tests.pipelines.fake_engine import FakeEngine
from tests.scripted_model import make_scripted_tokenizer


class SpeakingEngine(FakeEngine):
    """Its speaker says what is written down for it, turn by turn."""

    def __init__(self, *answers: str) -> None:
        super().__init__(make_scripted_tokenizer())
        self._answers = list(answers)

    def _text(self, turn) -> str:
        return self._answers.pop(0)

    def prompts_of(self, agent: str) -> list[str]:
        turns = [turn for turn in self.turns if turn.agent == agent]
        return [self.tokenizer.decode(turn.prompt_ids) for turn in turns]


async def test_speaker_calls_the_calculator_and_answers_with_its_result() -> None:
    engine = SpeakingEngine(call_of("calculator", expression="6 * 7"), "It is 42.")
    with LatentMASSystem.from_engine(engine, latent_steps=3) as system:
        system.add_default_agents()
        asked = system.astream("What is 6 times 7?", enable_tools=["calculator"])
        events = [event async for event in asked]
    engine.check_idle()

    result = events[-1].result
    assert said_in(events) == result.final_answer == "It is 42."
    assert [(one.name, one.text) for one in result.tool_calls] == [("calculator", "42")]
    assert [agent.name for agent in result.agents] == 2 * ["planner", "critic", "refiner", "judger"]
    assert result.usage == Usage.of(result.agents)
    assert result.usage.latent_steps == 2 * 3 * 3

    before, after = engine.prompts_of("judger")
    assert "Computes an arithmetic expression" in before
    assert "<tool_response>\n42\n</tool_response>" in after
    assert "<tool_response>" in engine.prompts_of("planner")[1]
    assert "Computes an arithmetic expression" not in engine.prompts_of("planner")[0]

    (finished,) = [i for i, event in enumerate(events) if isinstance(event, ToolFinished)]
    assert sum(isinstance(event, AgentFinished) for event in events[:finished]) == 4
    assert any(isinstance(event, StageStarted) for event in events[finished:])


def test_tool_of_ones_own_and_documents_reach_every_agent_that_is_asked() -> None:
    def capital(country: str) -> str:
        """Looks the capital of a country up."""
        return {"France": "Paris"}[country]

    engine = SpeakingEngine(call_of("capital", country="France"), "Paris [1].")
    with LatentMASSystem.from_engine(engine, latent_steps=1) as system:
        system.add_default_agents().add_tool(Tool.from_function(capital))
        assert "capital" in system.tools.names
        result = system.run(
            "What is the capital of France?",
            enable_tools=True,
            documents=[{"name": "atlas", "text": "Paris is the capital of France."}],
        )
    assert result.final_answer == "Paris [1]."
    assert result.tool_calls[0].text == "Paris"
    assert [citation.document for citation in result.citations] == ["atlas"]
    for agent in ("planner", "judger"):
        assert "[1] atlas, line 1\n> Paris is the capital" in engine.prompts_of(agent)[0]


def test_wrong_context_raises_before_anything_runs() -> None:
    engine = SpeakingEngine()
    with LatentMASSystem.from_engine(engine) as system:
        system.add_default_agents()
        with pytest.raises(NotFoundError, match="hammer"):
            system.stream("What now?", enable_tools=["hammer"])
        with pytest.raises(ConfigError, match="documents"):
            system.stream("What now?", documents=[""])
    assert engine.turns == []
