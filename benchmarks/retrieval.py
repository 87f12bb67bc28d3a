"""How often the passage that answers a question is among the first that are found: recall@5.

Over data/retrieval, written for this: documents, and questions with the words that answer them. A
passage counts as found when one of the chunks holds these words whole.

    python -m benchmarks.retrieval
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import AutoTokenizer

from benchmarks.program import positive
from latentmas_core.context.documents.chunking import Chunk, ChunkOptions, token_spans_of
from latentmas_core.context.documents.embedding import Embedder
from latentmas_core.context.documents.library import Library, LibraryOptions
from latentmas_core.context.documents.readers import read_folder
from latentmas_core.engine.embedded_model import prepare_embedded_model

FOLDER = Path(__file__).resolve().parent.parent / "data" / "retrieval"
DEFAULT_SIZES = (48, 96, 200)


class Question(NamedTuple):
    """``passage`` are the words of ``document`` that answer it."""

    question: str
    document: str
    passage: str

    def is_answered_by(self, chunk: Chunk) -> bool:
        return chunk.document.name == self.document and self.passage in chunk.text


class Recall(NamedTuple):
    """Of ``num_questions`` so many whose passage is among the first ``k`` chunks."""

    k: int
    num_found: int
    num_questions: int

    def __str__(self) -> str:
        share = self.num_found / self.num_questions
        return f"{share:.3f} ({self.num_found}/{self.num_questions})"


def load_questions(folder: Path = FOLDER) -> list[Question]:
    """Those of ``folder``, in the order of its file."""
    return [Question(**entry) for entry in json.loads((folder / "questions.json").read_text())]


def recall(questions: Sequence[Question], find: Callable[[str], Sequence[Chunk]], k: int) -> Recall:
    """``find`` gives chunks for a question, best first."""
    found = sum(
        any(asked.is_answered_by(chunk) for chunk in find(asked.question)[:k])
        for asked in questions
    )
    return Recall(k, found, len(questions))


def recalls(library: Library, questions: Sequence[Question], k: int) -> dict[str, Recall]:
    """Of each way to search ``library``."""
    chunks = library.chunks
    ways: dict[str, Callable[[str], list[Chunk]]] = {
        "BM25": lambda query: [chunks[index] for index in library.ranked_by_words(query)]
    }
    if library.has_dense:
        ways["dense"] = lambda query: [chunks[i] for i in library.ranked_by_meaning(query)]
        ways["fused"] = lambda query: [hit.chunk for hit in library.search(query, k)]
    return {name: recall(questions, find, k) for name, find in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=positive, default=5, help="of the chunks found (5)")
    parser.add_argument(
        "--max-tokens",
        type=positive,
        nargs="+",
        default=DEFAULT_SIZES,
        help=f"of a chunk {DEFAULT_SIZES}",
    )
    options = parser.parse_args()
    documents, questions = read_folder(FOLDER / "documents").documents, load_questions()
    token_spans = token_spans_of(AutoTokenizer.from_pretrained(prepare_embedded_model()))
    embedder = Embedder.load() if Embedder.is_installed() else None
    print(f"{len(documents)} documents, {len(questions)} questions, recall@{options.k} of chunks")
    for max_tokens in options.max_tokens:
        cut = ChunkOptions(max_tokens=max_tokens, overlap_tokens=max_tokens // 5)
        library = Library(
            documents, token_spans, options=LibraryOptions(chunks=cut), embedder=embedder
        )
        print(f"\nat most {max_tokens} tokens a chunk: {len(library.chunks)} chunks")
        for name, found in recalls(library, questions, options.k).items():
            print(f"  {name:<6} {found}")
    if embedder is None:
        print("\ndense and fused are left out: the extra is not installed (docs/documents.md)")


if __name__ == "__main__":
    main()
