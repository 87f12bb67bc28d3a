"""Each flag of ``ask`` and ``chat``, in this process and against a service."""

import json
import subprocess
import sys

import pytest

from latentmas_core import Result
from tests.cli.conftest import SHORT, read_json, run_cli
from tests.deployments.keys import ALICE
from tests.deployments.page.scripted import ANSWER

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [
        ("--system-prompt", "Be brief.", "system_prompt", "Be brief."),
        ("--pipeline", "parallel", "pipeline", "parallel"),
        ("--mode", "text", "mode", "text"),
        ("--latent-steps", "3", "latent_steps", 3),
        ("--temperature", "0.5", "temperature", 0.5),
        ("--max-tokens", "5", "max_tokens", 5),
    ],
)
def test_flag_reaches_the_agents(place, flag, text, field, value):
    place.ask_well("ask", QUESTION, *SHORT, flag, text)
    assert getattr(place.asked(), field) == value
    assert place.asked().question == QUESTION


def test_pipeline_may_be_left_to_the_question(local):
    question = "Solve the equation 3x + 5 = 20 and calculate x squared."
    result = run_cli("ask", question, *SHORT, "--pipeline", "auto", "--output-json")
    assert read_json(result)["pipeline"] == "auto.math"
    assert "for math" in result.stderr


def test_what_no_flag_says_is_left_to_the_agents(service):
    run_cli("ask", QUESTION, "--endpoint", service.url)
    request = service.reasoner.requests[-1]
    assert request.model_fields_set <= {"question"} | set(type(request).model_fields)
    assert request.model_dump(exclude_defaults=True) == {"question": QUESTION}


def test_the_answer_alone_is_on_standard_output(place):
    plain = place.ask_well("ask", QUESTION, *SHORT)
    told = read_json(place.ask_well("ask", QUESTION, *SHORT, "--output-json"))
    assert plain.stdout.rstrip("\n") == told["final_answer"].rstrip("\n")
    assert "judger:" in plain.stderr
    assert "hierarchical, latent" in plain.stderr


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_prompt_asks_once(place, command):
    result = place.ask_well(command, "--prompt", QUESTION, *SHORT, "--output-json")
    assert Result.model_validate(read_json(result)).pipeline == "hierarchical"
    assert place.asked().question == QUESTION


@pytest.mark.parametrize(
    "arguments", [("ask", "-"), ("ask", "--prompt", "-"), ("chat", "--prompt", "-")]
)
def test_a_dash_reads_the_question_from_standard_input(place, arguments):
    place.ask_well(*arguments, *SHORT, stdin=f"{QUESTION}\nIn one word.\n")
    assert place.asked().question == f"{QUESTION}\nIn one word."


def test_output_json_can_be_piped_into_a_parser(service):
    program = [sys.executable, "-m", "latentmas_core.cli", "ask", QUESTION, "--output-json"]
    asked = subprocess.run(
        [*program, "--endpoint", service.url], capture_output=True, text=True, timeout=60
    )
    assert asked.returncode == 0, asked.stderr
    parser = [sys.executable, "-m", "json.tool"]
    parsed = subprocess.run(parser, input=asked.stdout, capture_output=True, text=True, timeout=60)
    assert parsed.returncode == 0, parsed.stderr
    assert json.loads(parsed.stdout)["final_answer"] == ANSWER
    assert "planner:" in asked.stderr


def test_character_that_the_output_lacks_does_not_cost_the_answer(service, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    service.reasoner.answer = "Zo\u00eb is here."
    program = [sys.executable, "-m", "latentmas_core.cli", "ask", QUESTION]
    asked = subprocess.run(
        [*program, "--endpoint", service.url], capture_output=True, text=True, timeout=60
    )
    assert (asked.returncode, asked.stdout) == (0, "Zo? is here.\n")


def test_output_json_of_a_failure_leaves_standard_output_empty(place):
    result = place.ask("ask", QUESTION, "--output-json", "--pipeline", "no_such_pipeline")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no_such_pipeline" in result.stderr


def test_local_model_is_the_one_that_is_opened(local):
    assert run_cli("ask", QUESTION, *SHORT, "--model", "owner/name").exit_code == 0
    assert local.opened == ["owner/name"]


@pytest.mark.parametrize(
    ("model", "pipeline", "adapters"),
    [
        ("latentmas/parallel", "parallel", {}),
        ("latentmas/chat", "chat", {}),
        ("Qwen2.5-3B-Instruct", "chat", {}),
        ("mine", "chat", {"assistant": "mine"}),
    ],
)
def test_model_of_a_service_is_what_answers(service, model, pipeline, adapters):
    result = run_cli("ask", QUESTION, "--endpoint", service.url, "--model", model)
    assert result.exit_code == 0, result.stderr
    request = service.reasoner.requests[-1]
    assert (request.pipeline, request.adapters) == (pipeline, adapters)


def test_model_that_a_service_lacks_is_a_failure_that_names_those_it_has(service):
    result = run_cli("ask", QUESTION, "--endpoint", service.url, "--model", "gpt")
    assert result.exit_code == 1
    assert "'gpt'" in result.stderr
    assert "latentmas/hierarchical" in result.stderr
    assert service.reasoner.requests == []


def test_api_key_is_shown_to_the_service(locked_service):
    flags = ("--endpoint", locked_service.url, "--api-key", ALICE)
    assert run_cli("ask", QUESTION, *flags).stdout == f"{ANSWER}\n"


def test_api_key_may_come_from_the_environment(locked_service, monkeypatch):
    monkeypatch.setenv("LATENTMAS_API_KEY", ALICE)
    assert run_cli("ask", QUESTION, "--endpoint", locked_service.url).stdout == f"{ANSWER}\n"


def test_missing_key_is_a_failure_that_says_where_to_put_it(locked_service, monkeypatch):
    monkeypatch.delenv("LATENTMAS_API_KEY", raising=False)
    result = run_cli("ask", QUESTION, "--endpoint", locked_service.url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "--api-key" in result.stderr
    assert "LATENTMAS_API_KEY" in result.stderr


def test_key_in_the_environment_means_nothing_in_this_process(local, monkeypatch):
    monkeypatch.setenv("LATENTMAS_API_KEY", ALICE)
    assert run_cli("ask", QUESTION, *SHORT).exit_code == 0


def test_adapter_of_a_service_is_used_by_every_agent(service):
    flags = ("--endpoint", service.url, "--lora-adapter", "mine")
    assert run_cli("ask", QUESTION, *flags).exit_code == 0
    agents = ("planner", "critic", "refiner", "judger")
    assert service.reasoner.requests[-1].adapters == dict.fromkeys(agents, "mine")


def test_adapter_that_a_service_has_not_loaded_is_a_failure_with_the_remedy(service):
    result = run_cli("ask", QUESTION, "--endpoint", service.url, "--lora-adapter", "other")
    assert result.exit_code == 1
    assert "latentmas adapters load other" in result.stderr


def test_adapter_in_a_folder_is_loaded_and_used_in_this_process(local, adapter_folder):
    flags = (*SHORT, "--output-json", "--lora-adapter", str(adapter_folder))
    result = read_json(run_cli("ask", QUESTION, *flags))
    assert {agent["adapter"] for agent in result["agents"]} == {"mine"}


def test_adapter_of_the_registry_for_another_base_is_a_failure(local):
    result = run_cli("ask", QUESTION, *SHORT, "--lora-adapter", "medical_reasoner")
    assert result.exit_code == 1
    assert "Qwen2.5-3B" in result.stderr
