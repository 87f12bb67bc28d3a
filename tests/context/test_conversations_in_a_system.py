"""Conversations of a whole system: what was said is told again, and only what was answered."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from latentmas_core.context.config import ContextConfig, DocumentsConfig
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.errors import ConfigError
from latentmas_core.events import AnswerDelta
from latentmas_core.system import LatentMASSystem
from tests.context.scripted_ask import call_of
from tests.context.test_tools_in_a_system import SpeakingEngine


@pytest.fixture
def config(tmp_path: Path) -> ConversationsConfig:
    return ConversationsConfig(url=f"sqlite:///{tmp_path / 'kept.sqlite'}")


def open_system(engine: SpeakingEngine, config: ConversationsConfig) -> LatentMASSystem:
    system = LatentMASSystem.from_engine(engine, latent_steps=1, conversations=config)
    return system.add_default_agents()


def test_later_turn_is_told_of_the_earlier_ones_and_survives_a_restart(
    config: ConversationsConfig,
) -> None:
    engine = SpeakingEngine("I am Ada.", "You asked for my name.")
    with open_system(engine, config) as system:
        first = system.run("Who are you?", conversation_id="talk", system_prompt="Be kind.")
    assert first.conversation_id == "talk"
    with open_system(engine, config) as system:
        system.run("What did I ask?", conversation_id="talk")
    before, after = engine.prompts_of("judger")
    assert "I am Ada." not in before
    assert after.index("Who are you?") < after.index("I am Ada.") < after.index("What did I ask?")
    assert "Be kind." in after


def test_calls_of_tools_are_told_again(config: ConversationsConfig) -> None:
    engine = SpeakingEngine(call_of("calculator", expression="6*7"), "42.", "I computed it.")
    with open_system(engine, config) as system:
        system.run("6 times 7?", conversation_id="sum", enable_tools=["calculator"])
        system.run("How do you know?", conversation_id="sum")
    assert "<tool_response>\n42\n</tool_response>" in engine.prompts_of("judger")[-1]


def test_documents_of_a_turn_are_found_by_the_later_ones_of_that_conversation_alone(
    config: ConversationsConfig,
) -> None:
    engine = SpeakingEngine("In September.", "Later.", "Who knows?")
    pears = {"name": "orchard", "text": "Pears are picked in September."}
    with open_system(engine, config) as system:
        system.run("When are pears picked?", conversation_id="talk", documents=[pears])
        later = system.run("And pears of Kent?", conversation_id="talk")
        elsewhere = system.run("When are pears picked?", conversation_id="other")
    assert [citation.document for citation in later.citations] == ["orchard"]
    assert "> Pears are picked" in engine.prompts_of("judger")[1]
    assert elsewhere.citations == ()


async def test_answer_that_is_given_up_leaves_the_conversation_as_it_was(
    config: ConversationsConfig,
) -> None:
    engine = SpeakingEngine("One.", "Two.", "Three.")
    with open_system(engine, config) as system:
        await system.arun("First?", conversation_id="talk")
        async with aclosing(system.astream("Second?", conversation_id="talk")) as events:
            while not isinstance(await anext(events), AnswerDelta):
                pass
        await system.arun("Third?", conversation_id="talk")
    assert "Second?" not in engine.prompts_of("judger")[-1]
    assert "One." in engine.prompts_of("judger")[-1]


def test_documents_of_several_turns_are_all_found_and_a_newer_one_stands_for_its_name(
    config: ConversationsConfig,
) -> None:
    words_alone = ContextConfig(documents=DocumentsConfig(finds_by_meaning=False))
    engine = SpeakingEngine("One.", "Two.", "Three.")
    with LatentMASSystem.from_engine(
        engine, latent_steps=1, context=words_alone, conversations=config
    ) as system:
        system.add_default_agents()
        ripe = {"name": "ripe", "text": "Pears are picked in May."}
        system.run("Pears?", conversation_id="talk", documents=["Pears are green.", ripe])
        system.run("Pears?", conversation_id="talk", documents=["Pears are sweet."])
        ripe = ripe | {"text": "Pears are picked in September."}
        last = system.run("Pears?", conversation_id="talk", documents=[ripe])
    assert {citation.text for citation in last.citations} == {
        "Pears are green.",
        "Pears are sweet.",
        "Pears are picked in September.",
    }


def test_turns_from_several_event_loops_come_one_after_the_other(
    config: ConversationsConfig,
) -> None:
    engine = SpeakingEngine("One.", "Two.")
    with open_system(engine, config) as system:
        events = system.stream("First?", conversation_id="talk")
        next(events)

        async def second() -> str:
            waiting = asyncio.create_task(system.arun("Second?", conversation_id="talk"))
            await asyncio.to_thread(lambda: list(events))
            return (await waiting).final_answer

        assert asyncio.run(second()) == "Two."
    assert "One." in engine.prompts_of("judger")[-1]


def test_conversation_is_refused_where_none_are_kept() -> None:
    with LatentMASSystem.from_engine(SpeakingEngine()) as system:
        system.add_default_agents()
        with pytest.raises(ConfigError, match="configure conversations"):
            system.stream("Hello?", conversation_id="talk")


def test_history_beside_a_conversation_is_refused(config: ConversationsConfig) -> None:
    with open_system(SpeakingEngine(), config) as system:
        history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        with pytest.raises(ConfigError, match="conversation_id"):
            system.stream("Hello?", conversation_id="talk", history=history)
