"""What the form of a question says about its domain, beside its words: numbers, operators, code."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from latentmas_core.routing.domains import Domain
from latentmas_core.routing.lexicon import Vote


class Feature(NamedTuple):
    """Found where ``pattern`` matches ``min_matches`` times at least."""

    name: str
    domain: Domain
    weight: float
    pattern: re.Pattern[str]
    min_matches: int = 1


def _feature(
    name: str, domain: Domain, weight: float, pattern: str, *, min_matches: int = 1
) -> Feature:
    return Feature(name, domain, weight, re.compile(pattern), min_matches)


# No pattern repeats what may match nothing or in two ways: all take linear time.
FEATURES = (
    _feature("a code fence", Domain.CODE, 4.0, r"```|~~~"),
    _feature("a call", Domain.CODE, 2.0, r"\b[A-Za-z_][\w.]{2,40}\([^()\s]{0,40}\)"),
    _feature("a definition", Domain.CODE, 3.0, r"\b(?:def|func|fn|class|struct) \w+ ?[({:]"),
    _feature("an include or import", Domain.CODE, 3.0, r"#include\b|(?m:^ *(?:import|from) \w+)"),
    _feature("SQL", Domain.CODE, 3.0, r"\bSELECT\b|\bINSERT INTO\b|\bGROUP BY\b|\bWHERE \w+ ?="),
    _feature(
        "an identifier", Domain.CODE, 2.0, r"\b[a-z]{2,}(?:_[a-z0-9]+)+\b|\b[a-z]{3,}[A-Z]\w+"
    ),
    _feature("the name of an error", Domain.CODE, 3.0, r"\b[A-Z][A-Za-z]+(?:Error|Exception)\b"),
    _feature(
        "a source file", Domain.CODE, 3.0, r"\w\.(?:py|js|ts|java|cpp|rs|go|sql|sh|yml|json)\b"
    ),
    _feature("an order of growth", Domain.CODE, 2.0, r"\bO\([^)]{1,20}\)"),
    _feature("punctuation of code", Domain.CODE, 2.0, r"[{};]\s*\n|=>|!=|==|&&|\|\||::|\+="),
    _feature(
        "arithmetic", Domain.MATH, 3.0, r"\d\s?[-+*/\xd7\xf7^]\s?[\d(]|\d\)\s?[-+*/\xd7\xf7^]"
    ),
    _feature("an equation", Domain.MATH, 3.0, r"[\dxyznab)]\s?(?:=|≤|≥|<=|>=)\s?[-\dxyz(]"),
    _feature("a power", Domain.MATH, 3.0, r"\b\w?[\dxyzenk)]\s?(?:\^|\*\*)\s?[\w({-]|[²³]"),
    _feature("a formula", Domain.MATH, 3.0, r"\\(?:frac|int|sum|sqrt|lim)|[∫∑∏√∞π∂≡∈]|\bf\(x\)"),
    _feature("a percentage", Domain.MATH, 1.5, r"\d\s?%"),
    _feature("money", Domain.MATH, 1.0, r"[$€£]\s?\d|\d\s?(?:dollars|euros|cents)\b"),
    _feature("two numbers", Domain.MATH, 1.0, r"\d[\d.,]*", min_matches=2),
    _feature("three numbers", Domain.MATH, 1.0, r"\d[\d.,]*", min_matches=3),
    _feature("a dose or a finding", Domain.MEDICAL, 3.0, r"\d\s?(?:mg|mcg|mmHg|mmol|bpm|ml/kg)\b"),
    _feature("an age", Domain.MEDICAL, 1.5, r"\b\d{1,3}[- ](?:year|month|week)s?[- ]old\b"),
    _feature("all or no A are B", Domain.REASONING, 3.0, r"\b(?:[Aa]ll|[Nn]o|[Ss]ome) \w+ are\b"),
    _feature("a comparison of names", Domain.REASONING, 2.0, r"\b[A-Z][a-z]+ is \w+er than\b"),
    _feature("A is to B", Domain.REASONING, 3.0, r"\bis to \w+ (?:as|what)\b"),
    _feature("if and then", Domain.REASONING, 1.5, r"\b[Ii]f\b[^.?!]{3,120}(?:\bthen\b|, )"),
    _feature("several names", Domain.REASONING, 1.5, r"\b[A-Z][a-z]+, [A-Z][a-z]+,? and [A-Z]"),
    _feature(
        "who or which of them", Domain.REASONING, 1.0, r"\b(?:[Ww]ho|[Ww]hich of)\b[^.?!]*\?$"
    ),
)


def feature_votes(text: str) -> Iterator[Vote]:
    """Of every feature that is there, once."""
    for feature in FEATURES:
        matches = feature.pattern.finditer(text)
        if all(next(matches, None) is not None for _ in range(feature.min_matches)):
            yield Vote(feature.domain, feature.weight, feature.name)
