"""A tokenizer to which every number, and every fixed part of our agents' prompts, is one token.

So a prompt is as short as its question, and a model can be trained in minutes. What is not of these
words is unknown to it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from benchmarks.models import CHATML_TEMPLATE, SPECIAL_TOKENS
from benchmarks.prompts import HIERARCHY, latent_prompts, single_prompt, text_prompt
from benchmarks.quality.grading import Kind
from benchmarks.quality.tasks import prompt_of
from benchmarks.tiny_sums.task import MAX_SUM, Sum
from latentmas_core.agents.chat_template import render
from latentmas_core.agents.instructions import Situation
from latentmas_core.agents.prompts import build_messages

# Stand where a question, and what the agents before wrote, will stand; no sum gets that far.
QUESTION, *SAID = range(MAX_SUM + 1, MAX_SUM + 1 + len(HIERARCHY))
COMMA, PLUS, EQUALS, BOX, END_OF_BOX = ", ", " + ", " =", "\\boxed{", "}"
UNKNOWN = "<unknown>"

Ids = list[int]


def make_tokenizer() -> PreTrainedTokenizerFast:
    marks = [COMMA, PLUS, EQUALS, BOX, END_OF_BOX]
    numbers = [str(number) for number in range(max(SAID) + 1)]
    bare = _tokenizer([*numbers, *marks])
    return _tokenizer([*numbers, *marks, *_fixed_parts(bare)])


class Prompts:
    """Token ids of prompts and of what is written behind them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.end: int = tokenizer.eos_token_id
        question, said = _asked(QUESTION), [str(number) for number in SAID]
        self._single = single_prompt(tokenizer, question)
        self._latent = latent_prompts(tokenizer, question)
        self._text = [
            text_prompt(tokenizer, question, agent_index=index, texts=said[:index])
            for index in range(len(HIERARCHY))
        ]
        self._unknown = tokenizer.unk_token_id
        assert self._unknown not in (
            *self._single,
            *(i for ids in (*self._latent, *self._text) for i in ids),
        ), "a part of a prompt is no token"

    def single(self, one: Sum) -> Ids:
        return self._filled(self._single, one)

    def latent(self, one: Sum) -> list[Ids]:
        """One per agent."""
        return [self._filled(template, one) for template in self._latent]

    def text(self, one: Sum, agent_index: int) -> Ids:
        """Behind agents that wrote down how they worked it out."""
        return self._filled(self._text[agent_index], one)

    def work(self, one: Sum) -> Ids:
        return self._ids(COMMA.join(map(str, one.work)))

    def answer(self, one: Sum) -> Ids:
        return self._ids(f"{BOX}{one.total}{END_OF_BOX}")

    def _filled(self, template: Ids, one: Sum) -> Ids:
        parts: Mapping[int, Ids] = {self._id(QUESTION): self._ids(one.question)}
        parts |= {self._id(number): self.work(one) for number in SAID}
        return [token for place in template for token in parts.get(place, [place])]

    def _id(self, number: int) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(str(number)))

    def _ids(self, text: str) -> Ids:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def _asked(number: int) -> str:
    return prompt_of(str(number), {}, Kind.NUMBER)


def _tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML_TEMPLATE,
    )


def _fixed_parts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Of all prompts: what stands before, between and behind question and texts."""
    parts = (part for text in _rendered(tokenizer) for part in re.split(r"\d+", text) if part)
    return list(dict.fromkeys(parts))


def _rendered(tokenizer: PreTrainedTokenizerFast) -> Iterable[str]:
    for index, agent in enumerate(HIERARCHY):
        said = [(one.name, str(SAID[at])) for at, one in enumerate(HIERARCHY[:index])]
        for situation in Situation:
            transcript = said if situation is Situation.TEXT else []
            messages = build_messages(
                agent, _asked(QUESTION), situation=situation, transcript=transcript
            )
            yield render(tokenizer, messages)
