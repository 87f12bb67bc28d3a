"""A model's own chat template: rendering with it, and which messages it has a place for.

A template that knows nothing of tools, or of a system message, may leave them out without a word,
so it is tried first: what it would drop is refused by name.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from latentmas_core.agents.tool_calls import parse_tool_calls
from latentmas_core.chat import ChatMessage, ToolCall, ToolSpec
from latentmas_core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = ToolCall(name="probe_call", arguments={"key": "value"}, call_id="probe0001")
_TOOL = ToolSpec(name="probe_tool", description="probe", parameters={"type": "object"})
_TALK = (
    ChatMessage(role="user", content="probe_user"),
    ChatMessage(role="assistant", tool_calls=(_CALL,)),
    ChatMessage(role="tool", content="probe_result", tool_call_id="probe0001"),
)
_SYSTEM = {"role": "system", "content": "probe_system"}
_USER = {"role": "user", "content": "probe_user"}


# What templates raise: on purpose, or over an input that they did not expect.
_REFUSALS = (TemplateError, TypeError, ValueError, AttributeError, KeyError)


class ToolSupport(NamedTuple):
    """Which of these a template shows to its model."""

    tools: bool
    calls: bool
    results: bool


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt as text. Raises ConfigError for an order of messages that the template refuses,
    ModelError if it refuses even a system and a user message."""
    try:
        return _render(tokenizer, messages, tools)
    except _REFUSALS as error:
        if [message["role"] for message in messages] in (["user"], ["system", "user"]):
            raise ModelError(
                f"the chat template of this model refuses a system and a user message: {error}. "
                "Use an instruction-tuned model whose template takes both."
            ) from error
        raise ConfigError(
            f"the chat template of this model refuses these messages: {error}. Send them in the "
            "order that it allows.",
            param="messages",
        ) from error


def check_template_takes(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> None:
    """Raise ConfigError for tools, calls of tools or their answers that it would not show."""
    has_calls = any("tool_calls" in message for message in messages)
    has_results = any(message["role"] == "tool" for message in messages)
    if not (tools or has_calls or has_results):
        return
    support = tool_support(tokenizer)
    if tools and not support.tools:
        raise _unsupported("tools", "tools, or not with calls as <tool_call> with JSON in it")
    if has_calls and not support.calls:
        raise _unsupported("tool_calls", "calls of tools")
    if has_results and not support.results:
        raise _unsupported("messages", "what tools answer")


def tool_support(tokenizer: "PreTrainedTokenizerBase") -> ToolSupport:
    """What the template does with a small conversation about tools.

    Tools count only if calls are written in a way that is understood when the model does so.
    """
    return _tried_with_tools(_Hashable(tokenizer, str(tokenizer.chat_template)))


def has_system_role(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """False for a template that refuses or drops a system message, but takes a user's alone."""
    return _tried_with_system(_Hashable(tokenizer, str(tokenizer.chat_template)))


class _Hashable:
    """A tokenizer that equals another of the same template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
        self.tokenizer = tokenizer
        self._template = template

    def __hash__(self) -> int:
        return hash(self._template)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and other._template == self._template


@lru_cache(maxsize=8)
def _tried_with_system(key: _Hashable) -> bool:
    try:
        return str(_SYSTEM["content"]) in _render(key.tokenizer, [_SYSTEM, _USER], ())
    except _REFUSALS:
        return not _takes(key.tokenizer, _USER)


def _takes(tokenizer: "PreTrainedTokenizerBase", message: Mapping[str, Any]) -> bool:
    try:
        _render(tokenizer, [message], ())
    except _REFUSALS:
        return False
    return True


@lru_cache(maxsize=8)
def _tried_with_tools(key: _Hashable) -> ToolSupport:
    talk = [message.as_template_input() for message in _TALK]
    try:
        rendered = _render(key.tokenizer, talk, [_TOOL.as_template_input()])
    except _REFUSALS:
        return ToolSupport(tools=False, calls=False, results=False)
    begin = rendered.find(_CALL.name)
    mark = rendered.rfind("<tool_call>", 0, begin)
    end = rendered.find("</tool_call>", begin)
    written = rendered[mark : end + len("</tool_call>")] if min(begin, mark, end) >= 0 else ""
    understood = parse_tool_calls(written, {_CALL.name}).calls
    is_understood = [(call.name, call.arguments) for call in understood] == [
        (_CALL.name, _CALL.arguments)
    ]
    return ToolSupport(
        tools=is_understood and _TOOL.name in rendered,
        calls=begin >= 0,
        results="probe_result" in rendered,
    )


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
) -> str:
    # Agents think in latent space: models that open a written thought (Qwen3) are told not to.
    rendered = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=[dict(tool) for tool in tools] or None,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert isinstance(rendered, str), "one conversation was rendered, and it is no text"
    return rendered


def _unsupported(param: str, what: str) -> ConfigError:
    return ConfigError(
        f"{param} cannot be used: the chat template of this model does not show {what}. "
        "Use a model that was trained with tools, or leave them out.",
        param=param,
    )
