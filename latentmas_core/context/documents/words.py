"""Which words of a document a question shares, by BM25 (bm25s)."""

import re
import unicodedata
from collections.abc import Sequence

import bm25s  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from bm25s.stopwords import STOPWORDS_EN_PLUS  # type: ignore[import-untyped]

# Scripts without blanks between words: each of their characters counts as a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")

_STOP_WORDS = frozenset(STOPWORDS_EN_PLUS)


def words_of(text: str) -> list[str]:
    """Words without case and accents of presentation; a plural s is dropped (Harman's S stemmer).

    Harman, "How Effective Is Suffixing?", JASIS 42(1), 1991.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [_singular(word) for word in _WORD.findall(folded)]


def asked_words(query: str) -> list[str]:
    """The words of a question that say what it is about: without "what", "is" and the like (NLTK's
    list of English stop words, as bm25s has it), unless it has no others."""
    words = words_of(query)
    return [word for word in words if word not in _STOP_WORDS] or words


class WordIndex:
    """BM25 (Lucene's form, k1 1.5, b 0.75) over some texts. Immutable."""

    def __init__(self, texts: Sequence[str]) -> None:
        """There is at least one text."""
        # numpy's sparse matrices whether scipy is installed or not: the same sums everywhere.
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, csc_backend="numpy")
        self._index.index([words_of(text) for text in texts], show_progress=False)
        self._num_texts = len(texts)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """0 for a text that shares no word with the query  # [num_texts]"""
        word_ids = self._index.get_tokens_ids(asked_words(query))
        if not word_ids:
            return np.zeros(self._num_texts, dtype=np.float32)
        scores: npt.NDArray[np.float32] = self._index.get_scores_from_ids(word_ids)
        return scores


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return f"{word[:-3]}y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word.endswith(("us", "ss", "es")) else word[:-1]
