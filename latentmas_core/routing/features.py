"""What the form of a question says about its domain, beside its words: numbers, operators, code."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from latentmas_core.routing.domains import Domain
from latentmas_core.routing.lexicon import Vote


class Feature(NamedTuple):
    """What a text that ``pattern`` is found in weighs for a domain."""

    name: str
    domain: Domain
    weight: float
    pattern: re.Pattern[str]


# No pattern repeats what may match nothing or in two ways: all take linear time.
_CODE = (
    ("a code fence", 4.0, r"```|~~~"),
    ("a call", 2.0, r"\b[A-Za-z_][\w.]{2,40}\([^()\s]{0,40}\)"),
    ("a definition", 3.0, r"\b(?:def|func|fn|class|struct) \w+ ?[({:]"),
    ("an include or import", 3.0, r"#include\b|(?m:^ *(?:import|from) \w+)"),
    ("SQL", 3.0, r"\bSELECT\b|\bINSERT INTO\b|\bGROUP BY\b|\bWHERE \w+ ?="),
    ("an identifier", 2.0, r"\b[a-z]{2,}(?:_[a-z0-9]+)+\b|\b[a-z]{3,}[A-Z]\w+"),
    ("the name of an error", 3.0, r"\b[A-Z][A-Za-z]+(?:Error|Exception)\b"),
    ("a source file", 3.0, r"\w\.(?:py|js|ts|java|cpp|rs|go|sql|sh|yml|json)\b"),
    ("an order of growth", 2.0, r"\bO\([^)]{1,20}\)"),
    ("punctuation of code", 3.0, r"[{};]\s*\n|=>|!=|==|&&|\|\||::|\+="),
    ("a language", 3.0, r"\b(?:in|with|of) (?:C|R|Go|Lua|Dart|Julia|SQL)\b|\bR code\b"),
    (
        "something to be programmed",
        3.0,
        r"\b(?:[Ww]rite|[Ii]mplement|[Cc]reate|[Bb]uild|[Gg]enerate)\b[^.?!]{0,40}"
        r"\b(?:program|function|script|class|query|code|unit tests?|parser|api)\b",
    ),
)
_MATH = (
    ("arithmetic", 3.0, r"\d\s?[-+*/\xd7\xf7^]\s?[\d(]|\d\)\s?[-+*/\xd7\xf7^]"),
    ("an equation", 3.0, r"[\dxyznab)]\s?(?:=|≤|≥|<=|>=)\s?[-\dxyz(]"),
    ("a power", 3.0, r"\b\w?[\dxyzenk)]\s?(?:\^|\*\*)\s?[\w({-]|[²³]"),
    ("a formula", 3.0, r"\\(?:frac|int|sum|sqrt|lim)|[∫∑∏√∞π∂≡∈]|\bf\(x\)"),
    ("a percentage", 1.5, r"\d\s?%"),
    ("money", 1.0, r"[$€£]\s?\d|\d\s?(?:dollars|euros|cents)\b"),
    ("two numbers", 1.0, r"\d[^\d]+\d"),
    ("three numbers", 1.0, r"\d[^\d]+\d[\d.,]{0,20}[^\d.,]+\d"),
    (
        "a quantity",
        1.0,
        r"\d\s?(?:k?m|cm|mm|kg|g|l|ml|km/h|mph|lit(?:re|er)s?|met(?:re|er)s?|miles?|hours?|minutes?|"
        r"seconds?|days?|degrees|feet|inches)\b",
    ),
)
_MEDICAL = (
    ("a dose or a finding", 3.0, r"\d\s?(?:mg|mcg|mmHg|mmol|bpm|ml/kg)\b"),
    ("an age", 1.5, r"\b\d{1,3}[- ](?:year|month|week)s?[- ]old\b"),
    ("how long it has lasted", 1.0, r"\b(?:for|since) (?:a|two|three|\d+) (?:day|week|month)s?\b"),
    (
        "a complaint",
        2.0,
        r"\b[Mm]y (?:\w+ )?(?:head|neck|back|chest|stomach|belly|leg|arm|foot|feet|hand|knee|eye|"
        r"ear|nose|throat|tongue|skin|heart|shoulder|hip|toe|finger|jaw|tooth|teeth|hair)s?\b",
    ),
)
_REASONING = (
    (
        "all, some or no A are B",
        3.0,
        r"\b(?:[Aa]ll|[Nn]o|[Ss]ome(?: of the)?|[Ee]very(?:one)?)(?: \w+){1,3} "
        r"(?:is|are|was|were|has|have|had|can|cannot|must)\b",
    ),
    ("a comparison of names", 2.0, r"\b[A-Z][a-z]+ is \w+er than\b"),
    ("A is to B", 3.0, r"\bis to \w+ (?:as|what)\b"),
    ("if and then", 1.5, r"\b[Ii]f\b[^.?!]{3,120}(?:\bthen\b|, )"),
    ("several names", 1.5, r"\b[A-Z][a-z]+, [A-Z][a-z]+,? and [A-Z]"),
    ("should A or B", 2.0, r"^(?:Should|Would|Is it)\b[^?]{3,120} or\b"),
    ("a riddle", 2.0, r"^What (?:has|gets|goes|runs|flies|comes once)\b"),
    ("a story and a question", 1.0, r"\w\. [A-Z][^.?!]{2,80}\?$"),
    ("who or which of them", 1.0, r"\b(?:[Ww]ho|[Ww]hich of)\b[^.?!]*\?$"),
)
FEATURES = tuple(
    Feature(name, domain, weight, re.compile(pattern))
    for domain, features in (
        (Domain.CODE, _CODE),
        (Domain.MATH, _MATH),
        (Domain.MEDICAL, _MEDICAL),
        (Domain.REASONING, _REASONING),
    )
    for name, weight, pattern in features
)


def feature_votes(text: str) -> Iterator[Vote]:
    """Of every feature that is there, once."""
    for feature in FEATURES:
        if feature.pattern.search(text):
            yield Vote(feature.domain, feature.weight, feature.name)
