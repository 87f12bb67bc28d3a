"""``latentmas chat`` whose input is a file: each line is a question, and no terminal is needed."""

from latentmas_core import EngineError
from tests.cli.conftest import SHORT, run_cli
from tests.deployments.page.scripted import ANSWER


def test_every_line_is_a_question_of_one_conversation(place):
    result = place.ask_well("chat", *SHORT, stdin="One?\n\nTwo?\n")
    assert [request.question for request in place.requests[-2:]] == ["One?", "Two?"]
    assert place.asked().history[0].content == "One?"
    assert "> " not in result.stdout


def test_answers_alone_are_on_standard_output(service):
    result = run_cli("chat", "--endpoint", service.url, stdin="One?\nTwo?\n")
    assert result.stdout == f"{ANSWER}\n{ANSWER}\n"


def test_commands_work_there_too(place):
    place.ask_well("chat", *SHORT, stdin="/mode text\nOne?\n/exit\nNever asked\n")
    assert (place.asked().question, place.asked().mode) == ("One?", "text")


def test_question_that_fails_is_told_and_the_next_is_asked(service):
    service.reasoner.error, service.reasoner.fails_at = EngineError("it is full."), 0
    result = run_cli("chat", "--endpoint", service.url, stdin="One?\nTwo?\n")
    assert result.exit_code == 1
    assert result.stderr.count("it is full.") == 2
    assert [one.question for one in service.reasoner.requests] == ["One?", "Two?"]
    assert service.reasoner.requests[-1].history == ()
