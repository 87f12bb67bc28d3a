"""From a chat body to a request for the reasoner, and what has to be kept for its answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deployments.api.openai.conversation import read_messages
from deployments.api.openai.models import Target
from deployments.api.openai.schema import OPENAI_FIELDS, ChatBody, FunctionTool
from latentmas_core.agents.assistant import ASSISTANT
from latentmas_core.chat import ToolSpec
from latentmas_core.errors import ConfigError, LatentMASError
from latentmas_core.request import Mode, ReasonRequest
from latentmas_core.validation import validated

# What of "latentmas" means something where one agent answers without thinking.
PLAIN_OPTIONS = {"top_k", "ignore_eos", "max_wait_s", "timeout_s", "stage_timeout_s"}

# What the chat calls have in place of a field of the request, where the names differ.
_CHAT_FIELDS = {
    "question": "messages",
    "history": "messages",
    "tool_messages": "messages",
    "tool_calls": "messages",
    "system_prompt": "messages",
    "pipeline": "model",
}


@dataclass(frozen=True)
class Asked:
    """``tools``: names of those whose calls are looked for in the answer."""

    request: ReasonRequest
    model: str
    tools: frozenset[str] = frozenset()
    has_one_call: bool = False
    has_usage: bool = False

    @property
    def has_logprobs(self) -> bool:
        return self.request.logprobs is not None


def read_body(body: ChatBody, target: Target) -> Asked:
    """ConfigError for fields that contradict each other, or that mean nothing here."""
    options = body.latentmas.model_dump(exclude_unset=True) if body.latentmas else {}
    if target.is_plain:
        _check_plain(options, body.model)
        options["mode"] = Mode.SINGLE
    if target.adapter is not None:
        options["adapters"] = {ASSISTANT: target.adapter}
    told = read_messages(body.messages)
    tools = [tool.function for tool in body.tools or ()] if body.tool_choice != "none" else []
    _check_tools(body)
    values = {
        **options,
        **told._asdict(),
        "pipeline": target.pipeline,
        "tools": [_spec(tool) for tool in tools],
        "max_tokens": _max_tokens(body),
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stop": body.stop or (),
        "logprobs": _num_logprobs(body),
    }
    if body.stream_options is not None and not body.stream:
        raise ConfigError(
            "stream_options is given without stream. Set stream, or leave it out.",
            param="stream_options",
        )
    with in_chat_fields():
        request = validated(ReasonRequest, values)
    return Asked(
        request,
        body.model,
        tools=frozenset(tool.name for tool in tools),
        has_one_call=body.parallel_tool_calls is False,
        has_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


@contextmanager
def in_chat_fields() -> Iterator[None]:
    """Errors name the field of the chat body that is wrong."""
    try:
        yield
    except LatentMASError as error:
        param = error.param
        if param in _CHAT_FIELDS:
            error.param = _CHAT_FIELDS[param]
        elif param in ReasonRequest.model_fields and param not in OPENAI_FIELDS:
            error.param = f"latentmas.{param}"
        raise


def _spec(tool: FunctionTool) -> ToolSpec:
    return ToolSpec(name=tool.name, description=tool.description, parameters=tool.parameters)


def _check_plain(options: dict[str, Any], model: str) -> None:
    for name in options:
        if name not in PLAIN_OPTIONS:
            raise ConfigError(
                f"latentmas.{name} means nothing for model {model!r}, which answers without other "
                "agents. Name a pipeline as model, or leave it out.",
                param=f"latentmas.{name}",
            )


def _check_tools(body: ChatBody) -> None:
    if body.tools:
        names = [tool.function.name for tool in body.tools]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ConfigError(
                f"tools has {twice!r} more than once; names of tools are unique. Rename one.",
                param="tools",
            )
        return
    for field in ("tool_choice", "parallel_tool_calls"):
        if getattr(body, field) not in (None, "none"):
            raise ConfigError(
                f"{field} is given without tools. Give tools, or leave it out.", param=field
            )


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ConfigError(
            f"max_completion_tokens is {new} and max_tokens {old}; they mean the same. Leave one "
            "out.",
            param="max_completion_tokens",
        )
    return old if new is None else new


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise ConfigError(
            f"top_logprobs is {body.top_logprobs} without logprobs. Set logprobs, or leave it out.",
            param="top_logprobs",
        )
    return None
