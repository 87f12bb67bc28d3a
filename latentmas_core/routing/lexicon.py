"""Reads lexicon.yaml: words, and what they weigh for which domain. Finds them in a text's words."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml

from latentmas_core.routing.domains import Domain

ANY_ENDING = "*"

# A plural and what stands in its place in the singular.
_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))
_MIN_STEM_CHARS = 2


class Vote(NamedTuple):
    """``name``, found in a question, weighs so much for a domain."""

    domain: Domain
    weight: float
    name: str


class Lexicon:
    """What a question costs grows with its words, not with the entries."""

    def __init__(self, entries: Mapping[str, Sequence[Vote]]) -> None:
        self._entries = entries
        self._stem_lengths = sorted({len(e) - 1 for e in entries if e.endswith(ANY_ENDING)})
        self._max_words: defaultdict[str, int] = defaultdict(int)
        for entry in entries:
            words = entry.split()
            self._max_words[words[0]] = max(self._max_words[words[0]], len(words))

    def votes(self, words: Sequence[str]) -> Iterator[Vote]:
        """Of every entry that is there, once, however often it is there; called as it stands there
        first."""
        found: dict[str, str] = {}
        for i in range(len(words)):
            for entry, as_said in self._entries_at(words, i):
                found.setdefault(entry, as_said)
        for entry, as_said in found.items():
            yield from (vote._replace(name=as_said) for vote in self._entries[entry])

    def _entries_at(self, words: Sequence[str], i: int) -> Iterator[tuple[str, str]]:
        """Entries, and the words that they stand for here."""
        word = words[i]
        yield from ((form, word) for form in _forms(word) if form in self._entries)
        for length in self._stem_lengths:
            stem = f"{word[:length]}{ANY_ENDING}"
            if length <= len(word) and stem in self._entries:
                yield stem, word
        for num_words in range(2, self._max_words.get(word, 0) + 1):
            *before, last = words[i : i + num_words]
            for form in _forms(last):
                phrase = " ".join((*before, form))
                if phrase in self._entries:
                    yield phrase, " ".join((*before, last))


def _forms(word: str) -> Iterator[str]:
    """The word, and what it may be the plural of."""
    yield word
    for ending, singular in _PLURALS:
        if word.endswith(ending) and len(word) >= len(ending) + _MIN_STEM_CHARS:
            yield f"{word.removesuffix(ending)}{singular}"


@cache
def shipped_lexicon() -> Lexicon:
    """Of lexicon.yaml, read once."""
    text = files("latentmas_core.routing").joinpath("lexicon.yaml").read_text(encoding="utf-8")
    return Lexicon(parse_lexicon(yaml.safe_load(text)))


def parse_lexicon(document: Mapping[str, Mapping[float, Sequence[str]]]) -> dict[str, list[Vote]]:
    """Entries with their votes: one for each domain that an entry stands under."""
    entries: defaultdict[str, list[Vote]] = defaultdict(list)
    for name, words_by_weight in document.items():
        for weight, words in words_by_weight.items():
            for word in words:
                entries[word].append(Vote(Domain(name), float(weight), word))
    return dict(entries)
