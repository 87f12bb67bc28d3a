"""What an agent is told, by the situation it is in: templates, and how they are filled.

Knows nothing about chat markup or tokens.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from pydantic import field_validator

from latentmas_core.config import FrozenModel
from latentmas_core.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(question|transcript|role)\}")


class Situation(StrEnum):
    """What an agent finds, and what is expected of it.

    FIRST: nothing was handed over. LATENT: the latent memory of earlier agents, to think on.
    ANSWER: the same memory, but this agent speaks. TEXT: the words of earlier agents, in the
    prompt. SINGLE: nothing, and nobody else takes part.
    """

    FIRST = "first"
    LATENT = "latent"
    ANSWER = "answer"
    TEXT = "text"
    SINGLE = "single"


class Instructions(FrozenModel):
    """One user message per situation, with {question} and, in ``text``, {transcript} left open.

    ``latent`` may leave the question out: the memory that stands before it has seen it.
    """

    first: str
    """Nothing was handed over yet: the agent thinks about the question. With `{question}`."""
    latent: str
    """The agent thinks on behind the memory of earlier ones, which have seen the question."""
    text: str
    """The agent reads what earlier ones wrote. With `{question}` and `{transcript}`."""
    answer: str = "{question}"
    """The agent answers behind the memory of earlier ones. With `{question}`."""
    single: str = "{question}"
    """The agent answers alone. With `{question}`."""

    @field_validator("first", "text", "answer", "single")
    @classmethod
    def _asks_the_question(cls, template: str) -> str:
        return _with_placeholder(template, "{question}")

    @field_validator("text")
    @classmethod
    def _shows_the_transcript(cls, template: str) -> str:
        return _with_placeholder(template, "{transcript}")

    @field_validator("latent")
    @classmethod
    def _says_something(cls, template: str) -> str:
        if not template.strip():
            raise ConfigError("instructions 'latent' is empty; the agent needs a prompt to think.")
        return template

    def template_for(self, situation: Situation) -> str:
        return str(getattr(self, situation.value))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in place in one pass: braces in a template or in a value stay what they are."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def _with_placeholder(template: str, placeholder: str) -> str:
    if placeholder not in template:
        raise ConfigError(
            f"instructions {template!r} lack {placeholder}; the agent would not see it. Add it.",
            param="instructions",
        )
    return template
