"""What tells domains apart: words, their plurals and stems, and the form of a question."""

from collections import Counter

import pytest
import yaml

from latentmas_core.routing.classifier import MAX_CHARS, classify
from latentmas_core.routing.domains import Domain
from latentmas_core.routing.features import FEATURES, feature_votes
from latentmas_core.routing.lexicon import Lexicon, Vote, parse_lexicon, shipped_lexicon

CHOICES = [
    ("Which antibiotic is given for pneumonia?", Domain.MEDICAL),
    ("Find the derivative of x^2 + 3x.", Domain.MATH),
    ("Why does my Python function raise a KeyError?", Domain.CODE),
    ("All cats are mammals. Can we conclude that some mammals are cats?", Domain.REASONING),
    ("Who wrote The Old Man and the Sea?", Domain.GENERAL),
]


def entries(*words):
    return {word: [Vote(Domain.MATH, 1.0, word)] for word in words}


def names(lexicon, text):
    return sorted(vote.name for vote in lexicon.votes(text.split()))


@pytest.mark.parametrize(("question", "domain"), CHOICES)
def test_plain_question_of_each_domain_is_told(question, domain):
    assert classify(question).domains == (domain,)


@pytest.mark.parametrize("question", ["?", "42", "今天天气怎么样", "Приве́т!", "\U0001f98a" * 50])
def test_question_without_a_word_that_is_known_is_general(question):
    found = classify(question)
    assert (found.domains, found.evidence) == ((Domain.GENERAL,), ())
    assert 0.0 < found.confidence <= 1.0


def test_question_that_two_domains_share_names_both_and_the_clearer_first():
    question = "Write Python code that computes the integral of a polynomial by an equation solver."
    assert set(classify(question).domains) == {Domain.CODE, Domain.MATH}


def test_evidence_is_what_decided_and_confidence_is_its_share():
    found = classify("Is insulin a hormone?")
    assert found.evidence == ("insulin", "hormone")
    assert found.confidence == found.scores[Domain.MEDICAL] / sum(found.scores.values())


def test_word_counts_once_however_often_it_is_said():
    assert classify("fever " * 40).scores == classify("fever").scores


def test_of_a_long_text_the_question_at_either_end_is_read():
    filler = "lorem ipsum " * MAX_CHARS
    for text in (f"Which antibiotic? {filler}", f"{filler} Which antibiotic?"):
        assert classify(text).domains == (Domain.MEDICAL,)


def test_plural_and_stem_and_phrase_are_found():
    lexicon = Lexicon(entries("query", "box", "side effect", "diagnos*"))
    assert names(lexicon, "queries boxes diagnosed") == ["boxes", "diagnosed", "queries"]
    assert names(lexicon, "two side effects") == ["side effects"]
    assert names(lexicon, "the side of an effect") == []
    assert names(lexicon, "diagnostic diagnosis") == ["diagnostic"]


def test_every_entry_of_the_lexicon_can_be_found():
    document = yaml.safe_load(shipped_file())
    for entry, votes in parse_lexicon(document).items():
        said = entry.removesuffix("*")
        found = set(shipped_lexicon().votes(said.split()))
        assert {vote._replace(name=said) for vote in votes} <= found, entry


def test_no_domain_has_an_entry_twice_and_stems_are_single_words():
    document = yaml.safe_load(shipped_file())
    assert set(document) == set(Domain)
    for domain, by_weight in document.items():
        counts = Counter(word for words in by_weight.values() for word in words)
        assert [word for word, count in counts.items() if count > 1] == [], domain
        assert [word for word in counts if word.endswith("*") and " " in word] == [], domain
        assert all(isinstance(word, str) and word == word.lower() for word in counts), domain


EXAMPLES = {
    "a code fence": "What is wrong?\n```\nx\n```",
    "a call": "What does os.listdir() do?",
    "a definition": "def f(x): return x",
    "an include or import": "import os\nwhat now?",
    "SQL": "SELECT name FROM users",
    "an identifier": "the value of max_retries",
    "the name of an error": "I get a KeyError",
    "a source file": "in main.py",
    "something to be programmed": "Write me a short program",
    "a language": "in C",
    "an order of growth": "is it O(n log n)?",
    "punctuation of code": "a != b",
    "arithmetic": "12 * 7",
    "an equation": "2x = 8",
    "a power": "x^2",
    "a formula": "∫ t dt",
    "a percentage": "5 % more",
    "money": "it costs $20",
    "a quantity": "30 km",
    "two numbers": "7 and 12",
    "three numbers": "7, 12 and 30",
    "a dose or a finding": "500 mg daily",
    "a complaint": "My left knee is red",
    "how long it has lasted": "it has been so for two weeks",
    "an age": "a 45-year-old man",
    "all, some or no A are B": "some of the bloops are razzies",
    "a story and a question": "A man walks in. How is that possible?",
    "should A or B": "Should we stay or go?",
    "a riddle": "What gets wetter the more it dries?",
    "a comparison of names": "Anna is taller than Ben",
    "A is to B": "hand is to glove as foot is to what",
    "if and then": "If it rains, the street is wet",
    "several names": "Ann, Bob and Carl",
    "who or which of them": "Who has the fish?",
}


def test_every_feature_is_found_in_its_example():
    assert set(EXAMPLES) == {feature.name for feature in FEATURES}
    for name, text in EXAMPLES.items():
        assert name in {vote.name for vote in feature_votes(text)}, name


def test_no_feature_is_found_in_plain_words():
    assert list(feature_votes("Please tell me something nice about the sea")) == []


@pytest.mark.parametrize(
    "piece", ["a", "1", " ", "if ", "a_", "(", "x = ", "Ann, ", "is to ", "((1"]
)
def test_no_text_keeps_the_classifier_busy(piece):
    """Linear patterns alone pass: another would take minutes for one of these."""
    assert classify(piece * MAX_CHARS).domains


def shipped_file():
    from importlib.resources import files

    return files("latentmas_core.routing").joinpath("lexicon.yaml").read_text(encoding="utf-8")
