"""The set that recall is measured on, and that it is not worse than it was."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.retrieval import FOLDER, Question, Recall, load_questions, recall, recalls
from latentmas_core.context.documents.chunking import ChunkOptions, TokenSpans, token_spans_of
from latentmas_core.context.documents.document import Document
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.context.documents.library import Library, LibraryOptions
from latentmas_core.context.documents.prompting import show_sources
from latentmas_core.context.documents.readers import read_folder

SMALL = LibraryOptions(chunks=ChunkOptions(max_tokens=48, overlap_tokens=9))
K = 5


@pytest.fixture(scope="module")
def documents() -> tuple[Document, ...]:
    return read_folder(FOLDER / "documents").documents


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_questions()


@pytest.fixture(scope="module")
def model_spans(embedded_model_path: Path) -> TokenSpans:
    return token_spans_of(AutoTokenizer.from_pretrained(embedded_model_path))


def test_the_set_has_the_size_that_is_reported(
    documents: tuple[Document, ...], questions: list[Question]
) -> None:
    assert (len(documents), len(questions)) == (36, 70)
    assert {asked.document for asked in questions} == {document.name for document in documents}


def test_every_answer_stands_whole_in_a_chunk_of_its_document(
    documents: tuple[Document, ...], questions: list[Question], model_spans: TokenSpans
) -> None:
    chunks = Library(documents, model_spans, options=SMALL).chunks
    lost = [asked for asked in questions if not any(map(asked.is_answered_by, chunks))]
    assert lost == []


def test_recall_counts_the_questions_whose_passage_is_among_the_first(
    documents: tuple[Document, ...], questions: list[Question], model_spans: TokenSpans
) -> None:
    chunks = Library(documents, model_spans, options=SMALL).chunks
    first = questions[0]
    right = next(chunk for chunk in chunks if first.is_answered_by(chunk))
    wrong = [chunk for chunk in chunks if not first.is_answered_by(chunk)]
    assert recall([first], lambda _: [*wrong[:4], right], 5) == Recall(5, 1, 1)
    assert recall([first], lambda _: [*wrong[:5], right], 5) == Recall(5, 0, 1)


def test_words_alone_find_about_half_of_what_is_mostly_paraphrased(
    documents: tuple[Document, ...], questions: list[Question], model_spans: TokenSpans
) -> None:
    found = recalls(Library(documents, model_spans, options=SMALL), questions, K)
    assert set(found) == {"BM25"}
    assert found["BM25"].num_found >= 35


def test_citations_are_the_chunks_that_the_model_was_shown(
    documents: tuple[Document, ...], questions: list[Question], model_spans: TokenSpans
) -> None:
    library = Library(documents, model_spans, options=SMALL)
    text_of = {document.name: document.text for document in documents}
    for asked in questions:
        hits = library.search(asked.question, K)
        shown = show_sources(asked.question, hits, max_tokens=400, token_spans=model_spans)
        blocks = shown.text.split("\n\n")[1:-1]
        assert len(blocks) == len(shown.citations) <= len(hits)
        for number, (block, cited) in enumerate(zip(blocks, shown.citations, strict=True), 1):
            heading, *quoted = block.splitlines()
            lines = text_of[cited.document].splitlines()[cited.lines[0] - 1 : cited.lines[1]]
            assert heading.startswith(f"[{number}] {cited.document}, line")
            assert [line[2:] for line in quoted] == cited.text.strip().splitlines()
            assert cited.text == text_of[cited.document][cited.start : cited.end]
            assert quoted[0][2:] in lines[0]
            assert quoted[-1][2:] in lines[-1]


def test_meaning_and_words_together_find_more_than_words(
    documents: tuple[Document, ...],
    questions: list[Question],
    model_spans: TokenSpans,
    embedder: Embedder,
) -> None:
    few = documents[::6]  # all of them are for benchmarks.retrieval
    names = {document.name for document in few}
    asked = [question for question in questions if question.document in names]
    found = recalls(Library(few, model_spans, options=SMALL, embedder=embedder), asked, 2)
    assert found["fused"].num_found > found["BM25"].num_found
