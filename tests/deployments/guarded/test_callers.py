"""Who may ask, for whom, and how much."""

import httpx
import openai
import pytest

from benchmarks.serving.connection_measures import left_over_of
from benchmarks.serving.crowd import run_crowd
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.context.conversations.answers import take_turn
from tests.deployments.guarded.guarded import MAX_PER_MINUTE, QUESTION
from tests.deployments.keys import ALICE, BOB

pytestmark = [pytest.mark.serve, pytest.mark.slow]


def test_only_a_right_key_gets_in(service):
    for headers in ({}, {"authorization": "Bearer wrong"}):
        response = httpx.post(
            f"{service.url}/v1/reason", json={"question": QUESTION}, headers=headers
        )
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{service.url}/healthz").status_code == 200
    assert service.ask(question=QUESTION, max_tokens=2).status_code == 200


async def test_conversations_are_those_of_the_callers_tenant(service):
    """They are kept in a file that this process reaches as well."""
    conversations = Conversations(ConversationsConfig(url=service.database))
    await take_turn(conversations, "bob", "bobs", "Which others?")
    await conversations.close()
    asked = {"question": QUESTION, "conversation_id": "mine", "max_tokens": 2}
    first, second = service.ask(**asked), service.ask(**asked)
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.json()["conversation_id"] == "mine"
    assert second.json()["usage"]["prompt_tokens"] > first.json()["usage"]["prompt_tokens"]
    listed = service._http.get("/v1/conversations").json()["data"]
    assert [(one["id"], one["title"]) for one in listed] == [("mine", QUESTION)]
    assert service._http.get("/v1/conversations/mine").json()["turns"][0]["question"] == QUESTION
    assert service._http.get("/v1/conversations/bobs").status_code == 404


def test_more_than_a_key_may_ask_is_429_and_says_when_to_come_back(service):
    headers = {"authorization": f"Bearer {BOB}"}
    responses = [
        service._http.get("/v1/models", headers=headers) for _ in range(MAX_PER_MINUTE + 1)
    ]
    assert {response.status_code for response in responses[:-1]} == {200}
    assert responses[-1].status_code == 429
    assert responses[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(responses[-1].headers["retry-after"]) <= 60


def test_crowd_beyond_all_limits_is_told_when_to_come_back_and_leaves_nothing(service):
    def crowd(key, num_clients, seconds):
        headers = {"authorization": f"Bearer {key}"}
        return run_crowd(service.url, num_clients=num_clients, seconds=seconds, headers=headers)

    crowds = [crowd(BOB, MAX_PER_MINUTE + 2, 0.5), crowd(ALICE, 40, 2.0)]
    assert [one.problems for one in crowds] == [{}, {}]
    of_bob, of_alice = ({reply.status for reply in one.replies} for one in crowds)
    assert 429 in of_bob, "more than the key may ask"
    assert of_alice == {200, 503}, "more than the ingress takes at a time"
    assert left_over_of(service._http) == {}


def test_openais_client_raises_its_own_classes_for_keys_and_limits(service):
    message = {"role": "user", "content": QUESTION}

    def chat(key):
        url = f"{service.url}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            options = {"model": "latentmas/chat", "max_tokens": 2}
            return client.chat.completions.create(messages=[message], **options)

    assert chat(ALICE).usage.completion_tokens == 2
    with pytest.raises(openai.AuthenticationError) as caught:
        chat("wrong")
    assert caught.value.code == "invalid_api_key"
    bobs = [caught_by(openai.RateLimitError, chat, BOB) for _ in range(MAX_PER_MINUTE + 1)]
    assert bobs[-1].code == "rate_limit_exceeded"


def caught_by(kind, call, *arguments):
    """The error of that kind, if there is one."""
    try:
        call(*arguments)
    except kind as error:
        return error
    return None
