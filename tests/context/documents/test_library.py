import numpy as np
import pytest

from latentmas_core.context.documents.chunking import ChunkOptions, TokenSpans
from latentmas_core.context.documents.document import Citation, Document
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.context.documents.library import RRF_K, Hit, Library, LibraryOptions
from latentmas_core.context.documents.words import asked_words, words_of
from latentmas_core.context.tools import document_search_tool
from latentmas_core.errors import DocumentError


class MarkedTopics(Embedder):
    """Texts are alike if they hold the same of three marks."""

    def __init__(self) -> None:
        pass

    def embed(self, texts):
        rows = [[float(mark in text) + 1e-3 for mark in "@#%"] for text in texts]
        vectors = np.array(rows, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def library_of(token_spans: TokenSpans, *texts: str, **kwargs) -> Library:
    documents = [Document(name=f"d{number}", text=text) for number, text in enumerate(texts)]
    return Library(documents, token_spans, **kwargs)


def found(hits: list[Hit]) -> list[str]:
    return [hit.chunk.document.name for hit in hits]


def test_without_an_embedder_passages_are_found_by_their_words(token_spans: TokenSpans) -> None:
    library = library_of(token_spans, "red apple", "green pear", "red red cherry and more")
    assert not library.has_dense
    hits = library.search("Red?")
    assert found(hits) == ["d2", "d0"]
    assert [(hit.word_rank, hit.dense_rank) for hit in hits] == [(1, None), (2, None)]
    assert library.search("violet") == []
    assert library.search("?!") == []


def test_with_an_embedder_both_rankings_are_joined_by_their_ranks(token_spans: TokenSpans) -> None:
    library = library_of(
        token_spans, "red apple", "green pear @", "blue plum", embedder=MarkedTopics()
    )
    assert library.has_dense
    first, second, *_ = library.search("red @")
    assert found([first, second]) == ["d0", "d1"]
    assert (first.word_rank, first.dense_rank) == (1, 2)
    assert (second.word_rank, second.dense_rank) == (None, 1)
    assert first.score == pytest.approx(1 / (RRF_K + 1) + 1 / (RRF_K + 2))
    assert second.score == pytest.approx(1 / (RRF_K + 1))


def test_no_more_passages_come_than_are_asked_for(token_spans: TokenSpans) -> None:
    library = library_of(token_spans, *["same words"] * 9)
    assert found(library.search("words", 3)) == ["d0", "d1", "d2"]
    assert found(library.search("words", 100)) == [f"d{number}" for number in range(9)]


def test_the_opening_is_for_questions_that_share_no_word_with_any(token_spans: TokenSpans) -> None:
    library = library_of(token_spans, "one", "two", "three")
    assert found(library.opening(2)) == ["d0", "d1"]
    assert {hit.score for hit in library.opening()} == {0.0}


def test_a_title_leads_to_the_passages_under_it(token_spans: TokenSpans) -> None:
    documents = [Document(name="refunds.md", text="30 days."), Document(name="x.md", text="Else.")]
    assert found(Library(documents, token_spans).search("refund")) == ["refunds.md"]


def test_a_hit_is_cited_with_the_place_it_came_from(token_spans: TokenSpans) -> None:
    text = "\n\n".join(f"Topic{number} is here. " + "Filler word. " * 12 for number in range(8))
    options = LibraryOptions(chunks=ChunkOptions(max_tokens=48, overlap_tokens=8))
    library = library_of(token_spans, text, "other", options=options)
    hit = library.search("topic5", 1)[0]
    citation = hit.citation
    assert "Topic5" in citation.text
    assert citation.text == text[citation.start : citation.end] == hit.chunk.text
    assert (citation.document, citation.chunk) == ("d0", hit.chunk.index)
    assert citation.pages is None
    first, last = citation.lines
    assert citation.text.strip() in "\n".join(text.splitlines()[first - 1 : last])
    assert citation.text.strip() not in "\n".join(text.splitlines()[first:last])
    assert last == 11


def test_pages_are_cited_where_a_document_has_them(token_spans: TokenSpans) -> None:
    document = Document(
        name="d", text="page one\n\npage two", page_starts=(0, 10), url="https://a/"
    )
    citation = Library([document], token_spans).search("two")[0].citation
    assert (citation.pages, citation.lines, citation.url) == ((1, 2), None, "https://a/")


def test_too_many_passages_are_refused_with_their_number(token_spans: TokenSpans) -> None:
    options = LibraryOptions(max_chunks=3)
    assert len(library_of(token_spans, *"abc", options=options).chunks) == 3
    with pytest.raises(DocumentError, match=r"'d3' makes 4 passages .* max_chunks \(3\)"):
        library_of(token_spans, *"abcde", options=options)


def test_a_library_of_nothing_finds_nothing(token_spans: TokenSpans) -> None:
    for embedder in (None, MarkedTopics()):
        library = library_of(token_spans, embedder=embedder)
        assert library.search("anything") == library.opening() == []
        assert library_of(token_spans, " \n ", embedder=embedder).chunks == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tickets cost 2.40", ["ticket", "cost", "2", "40"]),
        ("Batteries, buses and glass", ["battery", "buse", "and", "glass"]),
        ("GROSSE größe", ["grosse", "grösse"]),
        ("ﬁlter ﾃｽﾄ", ["filter", "テ", "ス", "ト"]),
        ("漢字です", ["漢", "字", "で", "す"]),
        ("status gas", ["status", "gas"]),
    ],
)
def test_words_are_compared_without_case_and_plural(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_words_that_every_question_has_are_not_searched_unless_there_are_no_others() -> None:
    assert asked_words("What is the price of a ticket?") == ["price", "ticket"]
    assert asked_words("What is it?") == ["what", "is", "it"]


def test_a_passage_far_down_in_both_rankings_is_no_hit(token_spans: TokenSpans) -> None:
    texts = [*["plum plum plum"] * 4, *["@"] * 4, "plum among many other words here @ # %"]
    library = library_of(token_spans, *texts, embedder=MarkedTopics())
    assert "d8" not in found(library.search("plum @", 2))
    assert "d8" in found(library.search("plum @", 9))


def test_more_passages_than_are_embedded_are_searched_by_words_alone(
    token_spans: TokenSpans,
) -> None:
    for limit, has_dense in ((3, True), (2, False)):
        library = library_of(
            token_spans,
            *["red", "green @", "blue"],
            options=LibraryOptions(max_embedded_chunks=limit),
            embedder=MarkedTopics(),
        )
        assert library.has_dense is has_dense
        assert found(library.search("red @", 1)) == ["d0"]
        assert (library.search("@") == []) is not has_dense


async def test_the_tool_that_searches_documents_takes_a_librarys_citations(
    token_spans: TokenSpans,
) -> None:
    library = library_of(token_spans, "red apple", "green pear\n\npale")

    def search(query: str, max_passages: int) -> list[Citation]:
        return [hit.citation for hit in library.search(query, max_passages)]

    found = await document_search_tool(search).call({"query": "pear"})
    assert found == "d1, lines 1-3:\n> green pear\n>\n> pale"
