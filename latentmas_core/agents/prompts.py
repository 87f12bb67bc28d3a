"""From an agent and a question to token ids: messages, then the model's own chat template.

Text that comes from outside is never markup: ``<|im_end|>`` in a question, in what was said before,
in what a tool answered or in the description of one is read as characters.
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latentmas_core.agents.chat_template import check_template_takes, render
from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.instructions import Situation, fill
from latentmas_core.chat import Conversation, ToolSpec
from latentmas_core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

NOTHING_SAID = Conversation()
QUESTION = "{question}"


def build_messages(
    agent: AgentConfig,
    question: str,
    *,
    situation: Situation,
    transcript: Sequence[tuple[str, str]] = (),
    system_prompt: str | None = None,
    conversation: Conversation = NOTHING_SAID,
    has_system_role: bool = True,
) -> list[Message]:
    """What ``agent`` is told: a system message, what was said before, and a user message.

    ``transcript`` holds (agent, text) of those who spoke before. ``system_prompt`` is the
    requester's own: every agent of a run is given it, in front of what its role says. An agent that
    is not shown the question thinks behind a memory that has seen it and the conversation.

    Without ``has_system_role`` what a role says stands in front of the user message; ConfigError if
    the requester has system messages too: those are not ours to move.
    """
    if not has_system_role:
        _check_no_system(system_prompt, conversation)
    own_system_prompt = fill(agent.system_prompt, {"role": agent.role})
    system = "\n\n".join(text for text in (system_prompt, own_system_prompt) if text)
    template = agent.instructions.template_for(situation)
    before, since = conversation if QUESTION in template else NOTHING_SAID
    user = fill(
        template, {"question": question, "transcript": _rendered(transcript), "role": agent.role}
    )
    user = user if template == QUESTION else user.strip()
    if system and not has_system_role:
        system, user = "", f"{system}\n\n{user}"
    return [
        *([{"role": "system", "content": system}] if system else []),
        *(message.as_template_input() for message in before),
        {"role": "user", "content": user},
        *(message.as_template_input() for message in since),
    ]


def _check_no_system(system_prompt: str | None, conversation: Conversation) -> None:
    in_history = any(message.role == "system" for message in conversation.before)
    if system_prompt or in_history:
        param = "system_prompt" if system_prompt else "history"
        raise ConfigError(
            f"a system message ({param}) cannot be used: the chat template of this model has no "
            "place for one. Leave it out, or say it in the question.",
            param=param,
        )


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
) -> tuple[int, ...]:
    """Token ids of ``messages`` with the opening of the agent's own turn behind them.

    ConfigError if the model's template has no place for what they hold.
    """
    described = [tool.as_template_input() for tool in tools]
    check_template_takes(tokenizer, messages, described)
    marks = _Marks(tokenizer)
    rendered = render(tokenizer, marks.hide([*messages]), marks.hide(described))
    ids: list[int] = []
    for text, is_markup in marks.pieces_of(rendered):
        ids += _token_ids(tokenizer, text, is_markup=is_markup)
    return tuple(ids)


class _Marks:
    """The model's control tokens in texts from outside: hidden from its template, then spelt out.

    What stands for them in between nobody can guess.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        added = tokenizer.added_tokens_decoder.values()
        marks = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._stand_ins: dict[str, str] = {}

    def hide(self, value: Any) -> Any:
        """``value`` with other words for marks, wherever in it they are."""
        if isinstance(value, str):
            return self._marks.sub(self._stand_in, value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(part) for key, part in value.items()}
        return [self.hide(part) for part in value] if isinstance(value, list) else value

    def pieces_of(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """What was rendered, and whether its marks are the template's own."""
        if not self._stand_ins:
            yield rendered, True
            return
        mark_of = {stand_in: mark for mark, stand_in in self._stand_ins.items()}
        for piece in re.split(f"({'|'.join(mark_of)})", rendered):
            mark = mark_of.get(piece)
            yield (piece, True) if mark is None else (mark, False)

    def _stand_in(self, match: re.Match[str]) -> str:
        return self._stand_ins.setdefault(match[0], secrets.token_hex(16))


def _rendered(transcript: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join(f"{agent}: {text.strip()}" for agent, text in transcript if text.strip())


def _token_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_markup: bool) -> list[int]:
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=not is_markup, verbose=False
    )
    return list(encoded["input_ids"])
