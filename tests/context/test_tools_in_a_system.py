"""Tools around a whole system: its agents run once per round, and the speaker sees the results."""

from latentmas_core.context.tools import ToolLoop, shipped_tools
from latentmas_core.events import AgentFinished, StageStarted, ToolFinished
from latentmas_core.request import ReasonRequest
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

        def ask(request: ReasonRequest):
            fields = {name: getattr(request, name) for name in type(request).model_fields}
            return system.astream(**fields)

        loop = ToolLoop(shipped_tools())
        request = ReasonRequest(question="What is 6 times 7?")
        events = [event async for event in loop.run(ask, request, ["calculator"])]
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
