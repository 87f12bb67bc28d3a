"""What is refused by name, and what becomes of services that fail: messages and exit codes."""

import httpx
import pytest

from latentmas_core import EngineError
from latentmas_core.cli.backend import ServiceError
from latentmas_core.cli.remote import RemoteBackend
from tests.cli.conftest import run_cli

QUESTION = "Why?"
ELSEWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("ask",), "QUESTION"),
        (("ask", QUESTION, "--prompt", QUESTION), "--prompt"),
        (("ask", ""), "QUESTION"),
        (("ask", "--prompt", "  "), "--prompt"),
        (("ask", QUESTION, "--mode", "loud"), "--mode"),
        (("ask", QUESTION, "--latent-steps", "-1"), "--latent-steps"),
        (("ask", QUESTION, "--latent-steps", "many"), "--latent-steps"),
        (("ask", QUESTION, "--temperature", "3"), "--temperature"),
        (("ask", QUESTION, "--max-tokens", "0"), "--max-tokens"),
        (("ask", QUESTION, "--no-such-flag"), "--no-such-flag"),
        (("ask", QUESTION, "--api-key", "lm-x"), "--api-key"),
        (("ask", QUESTION, "--endpoint", "localhost:8000"), "--endpoint"),
        (("ask", QUESTION, "--endpoint", "http://[::1"), "--endpoint"),
        (("ask", QUESTION, "--endpoint", "http://a\tb"), "--endpoint"),
        (("ask", QUESTION, "--endpoint", "http://127.0.0.1:99999"), "--endpoint"),
        (("ask", QUESTION, "--endpoint", ELSEWHERE, "--api-key", "k\u00e9y"), "--api-key"),
        (
            ("ask", QUESTION, "--endpoint", ELSEWHERE, "--model", "m", "--pipeline", "parallel"),
            "--model",
        ),
        (
            ("ask", QUESTION, "--endpoint", ELSEWHERE, "--lora-adapter", "owner/name"),
            "--lora-adapter",
        ),
        (("chat", "--output-json"), "--output-json"),
        (("models", "--api-key", "lm-x"), "--api-key"),
        (("adapters", "list", "--endpoint", ELSEWHERE, "--model", "m"), "--model"),
        (("adapters", "load", "mine"), "--endpoint"),
        (("adapters", "unload", "mine"), "--endpoint"),
        (("adapters", "merge", "out", "a", "b", "--method", "ties"), "--density"),
        (("adapters", "merge", "out", "a=lots", "b"), "a=lots"),
    ],
)
def test_wrong_usage_is_refused_by_name(arguments, named):
    result = run_cli(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert named in result.stderr


@pytest.mark.parametrize("command", [("ask", "-"), ("chat", "--prompt", "-")])
def test_bytes_that_are_no_text_are_no_question(command):
    result = run_cli(*command, stdin=b"\xff\xfe\x00")
    assert result.exit_code == 2
    assert "UTF-8" in result.stderr


def test_bytes_that_are_no_text_end_a_chat_with_a_sentence(service):
    result = run_cli("chat", "--endpoint", service.url, stdin=b"\xff\xfe\n")
    assert result.exit_code == 1
    assert "error: the input is no text in UTF-8." in result.stderr


def test_service_that_is_not_there_is_a_failure_with_the_remedy():
    result = run_cli("ask", QUESTION, "--endpoint", ELSEWHERE)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "make serve" in result.stderr
    assert "Traceback" not in result.output


def test_error_in_a_stream_is_told_with_its_message(service):
    service.reasoner.error, service.reasoner.fails_at = EngineError("the engine was closed."), 3
    result = run_cli("ask", QUESTION, "--endpoint", service.url)
    assert result.exit_code == 1
    assert "error: the engine was closed." in result.stderr


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(200, text="<html>hello</html>"), "it does not stream"),
        (httpx.Response(302, headers={"location": "http://x"}), "302"),
        (httpx.Response(502, text="bad gateway"), "502 'bad gateway'"),
        (
            httpx.Response(
                503,
                headers={"retry-after": "5"},
                json={"error": {"message": "Full.", "param": None}},
            ),
            "Full. Try again in 5 s.",
        ),
        (
            httpx.Response(200, headers={"content-type": "text/event-stream"}, text=""),
            "before it was complete",
        ),
        (
            httpx.Response(
                200,
                headers={"content-type": "text/event-stream"},
                text="event: answer.delta\ndata: nonsense\n\n",
            ),
            "'answer.delta' cannot be read",
        ),
        (
            httpx.Response(
                200,
                headers={"content-type": "text/event-stream"},
                text='event: answer.done\ndata: {"id": 1}\n\n',
            ),
            "id of its event 'answer.done'",
        ),
    ],
)
def test_answer_that_is_none_of_a_service_is_a_sentence(answer, told):
    backend = RemoteBackend(ELSEWHERE, transport=httpx.MockTransport(lambda _: answer))
    with backend, pytest.raises(ServiceError) as caught:
        list(backend.stream({"question": QUESTION}))
    assert told in caught.value.message


def test_events_of_a_later_version_are_passed_over():
    text = "event: agent.danced\ndata: {}\n\n: a comment\n\n"
    answer = httpx.Response(200, headers={"content-type": "text/event-stream"}, text=text)
    backend = RemoteBackend(ELSEWHERE, transport=httpx.MockTransport(lambda _: answer))
    with backend, pytest.raises(ServiceError, match="before it was complete"):
        list(backend.stream({"question": QUESTION}))


@pytest.mark.parametrize("answer", [{"data": 5}, {"data": [{}]}, [], None])
def test_listing_of_another_shape_is_a_sentence(answer):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    with (
        RemoteBackend(ELSEWHERE, transport=transport) as backend,
        pytest.raises(ServiceError, match="no LatentMAS service of this version"),
    ):
        backend.models()


def test_v1_at_the_end_of_an_endpoint_is_the_service_itself(service):
    result = run_cli("ask", QUESTION, "--endpoint", f"{service.url}/v1/")
    assert result.exit_code == 0, result.stderr
