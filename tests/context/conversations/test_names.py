"""Ids and titles: which are taken, and that a refusal says why."""

import pytest

from latentmas_core.context.conversations.names import check_id, check_title, new_id, title_of
from latentmas_core.errors import ConfigError


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "-", "_", ".a", "..a", "a" * 128, "0"])
def test_id_of_plain_characters_is_taken(name):
    assert check_id(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "...",
        "../a",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\x00",
        "é",
        "a:b",
        "%2e%2e",
        "a" * 129,
        "a\ud800",
    ],
)
def test_id_that_could_be_a_path_or_cannot_be_read_is_refused(name):
    with pytest.raises(ConfigError, match="1 to 128 characters") as refused:
        check_id(name)
    assert refused.value.param == "conversation_id"


def test_made_ids_are_valid_and_differ():
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(check_id(one) == one for one in ids)


@pytest.mark.parametrize("title", ["a", "Où? 首都 🦊", "x" * 20, "family 👨\u200d👩\u200d👧"])
def test_title_of_one_line_is_taken_without_blanks_around_it(title):
    assert check_title(f"  {title} ", 20) == title


@pytest.mark.parametrize(
    "title", ["", "  ", "\u3000", "x" * 21, "a\nb", "a\x00", "a\u2028b", "a\ud800"]
)
def test_title_that_is_empty_or_long_or_no_line_is_refused(title):
    with pytest.raises(ConfigError) as refused:
        check_title(title, 20)
    assert refused.value.param == "title"
    assert refused.value.message.encode()


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("Why?", "Why?"),
        ("  Why\n\nnot \x00 now?", "Why not now?"),
        ("x" * 500, "x" * 80),
        ("\u200b\x00", None),
    ],
)
def test_first_question_is_the_title(question, title):
    assert title_of(question, 200) == title


def test_title_of_a_question_keeps_to_the_limit():
    assert title_of("one two three", 8) == "one two"
