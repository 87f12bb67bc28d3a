"""Text comes out as soon as it is certain: whole characters, and nothing of a stop string."""

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from latentmas_core.engine.detokenizer import Detokenizer

BROKEN = "\ufffd"
TEXTS = [
    "plain words, and a line\nbreak",
    "déjà vu, Ærøskøbing, żółć",
    "日本語の文章と한국어",
    "🙂 and 🧑‍🤝‍🧑 and 🏴󠁧󠁢󠁳󠁣󠁴󠁿 and 👍🏽",
    "  two  spaces   three\t\ttabs ",
    "e\u0301 combined, \u200b unseen",
    "",
]


@pytest.fixture(scope="module", params=["tiny_llama", "embedded_model_path"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """One token per byte, and a real vocabulary."""
    folder: Path = request.getfixturevalue(request.param)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def byte_tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


def create_detokenizer(tokenizer: PreTrainedTokenizerBase, *stop: str) -> Detokenizer:
    return Detokenizer(tokenizer.backend_tokenizer, stop)


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def feed(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    """The pieces, one per token until a stop string ends the answer, then what was held back."""
    pieces = []
    for token_id in token_ids:
        pieces.append(detokenizer.append(token_id))
        if detokenizer.has_stopped:
            break
    return [*pieces, detokenizer.finish()]


# --- characters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_split_no_character_and_join_to_the_text(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    detokenizer = create_detokenizer(tokenizer)
    pieces = feed(detokenizer, ids_of(tokenizer, text))
    assert "".join(pieces) == detokenizer.text == text
    assert not any(BROKEN in piece for piece in pieces)


def test_emoji_of_four_tokens_comes_out_whole_with_the_last(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = ids_of(byte_tokenizer, "a🙂b")
    assert len(ids) == 6
    assert feed(create_detokenizer(byte_tokenizer), ids) == ["a", "", "", "", "🙂", "b", ""]


def test_unfinished_character_is_flushed_at_the_end(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = ids_of(byte_tokenizer, "a🙂")[:-1]
    pieces = feed(create_detokenizer(byte_tokenizer), ids)
    assert pieces[:-1] == ["a", "", "", ""]
    assert pieces[-1] == byte_tokenizer.decode(ids)[1:]
    assert pieces[-1].strip(BROKEN) == ""


def test_bytes_that_are_no_text_do_not_stop_the_answer(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = [0xFF, 0x80, *ids_of(byte_tokenizer, "still here")]
    detokenizer = create_detokenizer(byte_tokenizer)
    feed(detokenizer, ids)
    assert detokenizer.text.endswith("still here")
    assert detokenizer.text == byte_tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(30))
def test_random_tokens_come_out_as_they_are_decoded_at_once(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    choices = random.Random(seed)
    ids = [choices.randrange(len(tokenizer)) for _ in range(40)]
    detokenizer = create_detokenizer(tokenizer)
    pieces = feed(detokenizer, ids)
    assert "".join(pieces) == detokenizer.text
    assert detokenizer.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_special_tokens_are_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = ids_of(tokenizer, "<|im_start|>Hi<|im_end|>")
    detokenizer = create_detokenizer(tokenizer)
    feed(detokenizer, ids)
    assert detokenizer.text == "Hi"


def test_answer_without_tokens_is_empty(tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = create_detokenizer(tokenizer)
    assert detokenizer.finish() == ""
    assert detokenizer.text == ""


# --- stop strings ---------------------------------------------------------------------------------


def test_stop_string_in_one_token_ends_the_answer_and_is_left_out(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "c")
    assert feed(detokenizer, ids_of(byte_tokenizer, "abcdef")) == ["a", "b", "", ""]
    assert detokenizer.has_stopped
    assert detokenizer.text == "ab"


def test_stop_string_across_tokens_is_held_back_from_its_first_character(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "STOP")
    pieces = feed(detokenizer, ids_of(byte_tokenizer, "no STOP more"))
    assert pieces == ["n", "o", " ", "", "", "", "", ""]
    assert detokenizer.text == "no "


def test_text_that_only_began_like_a_stop_string_is_given_out(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "STOP")
    pieces = feed(detokenizer, ids_of(byte_tokenizer, "aSTOa"))
    assert pieces == ["a", "", "", "", "STOa", ""]
    assert not detokenizer.has_stopped


def test_beginning_of_a_stop_string_is_flushed_at_the_end(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "STOP")
    assert feed(detokenizer, ids_of(byte_tokenizer, "aSTO")) == ["a", "", "", "", "STO"]
    assert detokenizer.text == "aSTO"


def test_stop_string_may_begin_inside_of_its_own_beginning(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "aab")
    pieces = feed(detokenizer, ids_of(byte_tokenizer, "aaaab"))
    assert "".join(pieces) == "aa"
    assert detokenizer.has_stopped


def test_first_of_several_stop_strings_counts(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "zzz", "\n\n", "end")
    feed(detokenizer, ids_of(byte_tokenizer, "The end\n\nzzz"))
    assert detokenizer.text == "The "


def test_stop_string_of_several_bytes_per_character(
    byte_tokenizer: PreTrainedTokenizerBase,
) -> None:
    detokenizer = create_detokenizer(byte_tokenizer, "🙂🙃")
    pieces = feed(detokenizer, ids_of(byte_tokenizer, "é🙂🙂🙃!"))
    assert "".join(pieces) == detokenizer.text == "é🙂"
    assert detokenizer.has_stopped


def test_first_of_several_stop_strings_counts_within_one_token(embedded_model_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path)
    ids = ids_of(tokenizer, " world")
    assert len(ids) == 1
    assert feed(create_detokenizer(tokenizer, "ld", "or"), ids) == [" w", ""]


@pytest.mark.parametrize("seed", range(20))
def test_random_text_ends_before_the_first_stop_string(
    tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    choices = random.Random(seed)
    text = "".join(choices.choice("ab \n🙂") for _ in range(60))
    stop = ("".join(choices.choice("ab \n🙂") for _ in range(4)), "🙂🙂b")
    ends = [place for end in stop if (place := text.find(end)) >= 0]
    detokenizer = create_detokenizer(tokenizer, *stop)
    pieces = feed(detokenizer, ids_of(tokenizer, text))
    assert "".join(pieces) == detokenizer.text == text[: min(ends, default=len(text))]
    assert detokenizer.has_stopped is bool(ends)
