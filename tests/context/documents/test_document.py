import pytest
from pydantic import TypeAdapter, ValidationError

from latentmas_core.context.documents.document import (
    MAX_DOCUMENT_CHARS,
    MAX_DOCUMENTS,
    Document,
    DocumentInputs,
    InlineDocument,
    LinkedDocument,
)

INPUTS = TypeAdapter(DocumentInputs)


def test_a_request_carries_plain_texts_named_texts_and_addresses() -> None:
    given = [
        "plain text",
        {"name": "notes", "text": "named"},
        {"text": "nameless"},
        {"url": "https://a.example/b"},
    ]
    assert INPUTS.validate_python(given) == (
        "plain text",
        InlineDocument(name="notes", text="named"),
        InlineDocument(text="nameless"),
        LinkedDocument(url="https://a.example/b"),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        " \n ",
        5,
        None,
        {},
        {"text": ""},
        {"text": " "},
        {"text": 5},
        {"text": "x", "name": ""},
        {"text": "x", "name": "n" * 201},
        {"text": "x", "url": "https://a.example/"},
        {"url": ""},
        {"url": "h" * 2049},
        {"text": "half a pair \ud800"},
        {"text": "x", "page": 3},
        "x" * (MAX_DOCUMENT_CHARS + 1),
    ],
    ids=str,
)
def test_what_is_no_document_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        INPUTS.validate_python([wrong])


def test_more_documents_than_the_limit_are_refused() -> None:
    assert len(INPUTS.validate_python(["x"] * MAX_DOCUMENTS)) == MAX_DOCUMENTS
    with pytest.raises(ValidationError, match="at most"):
        INPUTS.validate_python(["x"] * (MAX_DOCUMENTS + 1))


def test_pages_of_a_passage_are_those_its_characters_stand_on() -> None:
    document = Document(name="d", text="aaaa\n\nbbbb\n\ncccc", page_starts=(0, 6, 12))
    assert document.pages_of(0, 4) == (1, 1)
    assert document.pages_of(0, 6) == (1, 1)
    assert document.pages_of(0, 7) == (1, 2)
    assert document.pages_of(6, 10) == (2, 2)
    assert document.pages_of(3, 16) == (1, 3)


def test_a_text_without_pages_has_lines_only() -> None:
    document = Document(name="d", text="one\ntwo\nthree\n")
    assert document.pages_of(0, 3) is None
    assert document.lines_of(0, 3) == (1, 1)
    assert document.lines_of(0, 4) == (1, 1)
    assert document.lines_of(0, 5) == (1, 2)
    assert document.lines_of(8, 14) == (3, 3)


@pytest.mark.parametrize("page_starts", [(1,), (0, 5, 3), (0, 9)])
def test_pages_outside_the_text_or_out_of_order_are_refused(page_starts: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="page_starts"):
        Document(name="d", text="eight ch", page_starts=page_starts)
