"""What no schema can say of a request: where two fields meet, and what exists on the service.

Requests that are right by the schema are made right by these rules too. docs/http.md and
docs/openai.md tell them; nothing here looks at the service's own code.
"""

import json
from copy import deepcopy
from typing import Any, NamedTuple

from schemathesis import Case, GenerationMode

Body = dict[str, Any]

# A request that allows itself no time is answered with 504, as it should be.
MIN_TIME_S = 60.0
_TIMES = ("max_wait_s", "timeout_s", "stage_timeout_s")
# What plain chat has a meaning for, of what stands under "latentmas".
_PLAIN = (*_TIMES, "top_k", "ignore_eos")
_USER = {"role": "user", "content": "Why?"}


class Served(NamedTuple):
    """Names of models that answer, the first a pipeline and the others plain; a folder with an
    adapter that fits; a conversation that is there as long as nobody deletes it, if there is one.
    """

    models: tuple[str, ...]
    adapter: str
    conversation: str | None = None


def bearing(key: str) -> dict[str, str]:
    """A key in both places that the description names, else there would be a made-up one in the
    other, and every request refused for it."""
    return {"Authorization": f"Bearer {key}", "X-API-Key": key}


def obey(case: Case, served: Served) -> None:
    """Leaves alone what is to be refused."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    case.body = deepcopy(case.body)  # it is used for other cases too
    if "conversation_id" in case.path and case.method != "DELETE" and served.conversation:
        case.path_parameters = case.path_parameters | {"conversation_id": served.conversation}
    if case.path == "/v1/reason":
        obey_reason(case.body)
    elif case.path == "/runsync":
        obey_reason(case.body["input"])
    elif case.path == "/v1/batch":
        obey_batch(case.body)
    elif case.path == "/v1/chat/completions":
        obey_chat(case.body, served.models)
    elif case.path == "/v1/load_lora_adapter":
        case.body["lora_path"] = served.adapter
        case.body.pop("revision", None)


def obey_reason(body: Body) -> None:
    """``POST /v1/reason``, or one of a batch."""
    for name in _TIMES:
        if body.get(name) is not None:
            body[name] = max(body[name], MIN_TIME_S)
    if body.get("conversation_id") is not None:  # what was said is told once
        for name in ("history", "tool_messages"):
            body.pop(name, None)
    if body.get("documents") is not None:  # nobody serves an address that was made up
        body["documents"] = [_inline(document) for document in body["documents"]]
    if body.get("carry") == "latents":
        body["latent_steps"] = max(body.get("latent_steps") or 1, 1)
    for name in ("history", "tool_messages"):
        for message in body.get(name, ()):
            _obey_role(message)
    if [message["role"] for message in body.get("history", ())][:1] == ["tool"]:
        del body["history"]
    roles = [message["role"] for message in body.get("tool_messages", ())]
    if roles and (roles[0], roles[-1], {*roles}) != ("assistant", "tool", {"assistant", "tool"}):
        del body["tool_messages"]


def obey_batch(body: Body) -> None:
    for request in body["requests"]:
        if isinstance(request, dict):
            obey_reason(request)


def obey_chat(body: Body, models: tuple[str, ...]) -> None:
    """``POST /v1/chat/completions``; of ``models`` the first is a pipeline, the others plain."""
    body["model"] = models[len(body["messages"]) % len(models)]
    body["messages"] = _answerable(body["messages"])
    tools = {tool["function"]["name"]: tool for tool in body.get("tools") or ()}
    if tools:
        body["tools"] = list(tools.values())
    else:
        for name in ("tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("max_tokens") is not None:
        body.pop("max_completion_tokens", None)
    options = body.get("latentmas")
    if options:
        obey_reason(options)
        if body["model"] != models[0]:
            body["latentmas"] = {name: options[name] for name in _PLAIN if name in options}


def _inline(document: Any) -> Any:
    has_url = isinstance(document, dict) and "url" in document
    return {"text": document["url"]} if has_url else document


def _obey_role(message: Body) -> None:
    if message["role"] != "assistant":
        message.pop("tool_calls", None)
    if message["role"] != "tool":
        message.pop("tool_call_id", None)


def _answerable(messages: list[Body]) -> list[Body]:
    """A conversation that ends with a question, each tool answering a call."""
    call_ids: list[str] = []
    kept = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            call_ids.append(call["id"])
            call["function"]["arguments"] = json.dumps({"of": call["function"]["arguments"]})
        if message["role"] == "tool":
            if not call_ids:
                continue
            message["tool_call_id"] = call_ids[-1]
        kept.append(message)
    return [*kept, _USER]
