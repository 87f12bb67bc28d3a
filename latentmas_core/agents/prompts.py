"""From an agent and a question to token ids: messages, then the model's own chat template.

Text that comes from outside is never markup: ``<|im_end|>`` in a question is read as characters.
"""

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from latentmas_core.agents.config import AgentConfig
from latentmas_core.agents.instructions import Situation, fill
from latentmas_core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def build_messages(
    agent: AgentConfig,
    question: str,
    *,
    situation: Situation,
    transcript: Sequence[tuple[str, str]] = (),
    system_prompt: str | None = None,
) -> list[Message]:
    """What ``agent`` is told: a system message and a user message.

    ``transcript`` holds (agent, text) of those who spoke before. ``system_prompt`` is the
    requester's own: every agent of a run is given it, in front of what its role says.
    """
    own_system_prompt = fill(agent.system_prompt, {"role": agent.role})
    system = f"{system_prompt or ''}\n\n{own_system_prompt}".strip()
    user = fill(
        agent.instructions.template_for(situation),
        {"question": question, "transcript": _rendered(transcript), "role": agent.role},
    )
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": user.strip()}]


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[int, ...]:
    """Token ids of ``messages`` with the opening of the agent's own turn behind them."""
    marks = _control_tokens(tokenizer)
    if any(mark in message["content"] for message in messages for mark in marks):
        return _encode_with_plain_contents(tokenizer, messages)
    return tuple(_apply_template(tokenizer, messages, tokenize=True))


def _rendered(transcript: Sequence[tuple[str, str]]) -> str:
    return "\n\n".join(f"{agent}: {text.strip()}" for agent, text in transcript if text.strip())


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _encode_with_plain_contents(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[int, ...]:
    """The template around placeholders nobody can guess, the contents encoded apart from it."""
    contents = {secrets.token_hex(16): message["content"] for message in messages}
    hollow = [
        {"role": message["role"], "content": placeholder}
        for message, placeholder in zip(messages, contents, strict=True)
    ]
    rendered = _apply_template(tokenizer, hollow, tokenize=False)
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(contents)})", rendered):
        is_markup = piece not in contents
        text = piece if is_markup else contents[piece]
        ids += _token_ids(tokenizer, text, is_markup=is_markup)
    return tuple(ids)


def _token_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, is_markup: bool) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=not is_markup)
    return list(encoded["input_ids"])


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, tokenize: bool
) -> Any:
    # Agents think in latent space: models that open a written thought (Qwen3) are told not to.
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            tokenize=tokenize,
            add_generation_prompt=True,
            return_dict=False,
            enable_thinking=False,
        )
    except TemplateError as error:
        raise ModelError(
            f"the chat template of this model refuses a system and a user message: {error}. "
            "Use an instruction-tuned model whose template takes both."
        ) from error
