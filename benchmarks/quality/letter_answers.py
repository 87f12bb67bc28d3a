"""The option that a written answer picks, by its letter alone. Knows no question.

Options are A to J. The words of an option without its letter are no answer: the question asks for
a letter.
"""

import re

from benchmarks.quality.claims import (
    is_refusal,
    last_boxed,
    last_marked,
    sentences,
    without_markup,
)

# "A" and "I" are words too: they are letters only where no further word follows, or one of these.
_GOES_ON = (
    r"(?=\s*(?:$|[.,:;)\]\"\-\u2013\u2014/]|\n)|\s+(?:because|since|as|which|for|due|and|or|is)\b)"
)
_LETTER = rf"(?:[B-HJ](?![\w'])|[AI](?![\w']){_GOES_ON})"
_OPEN, _CLOSE = r"[(\[\"']?", r"[)\]\"']?"
_FILLER = (
    r"(?:(?:the|an?|letter|option|choice|answer|most|likely|clearly|probably|definitely|indeed|both"
    r"|either|correct|one|is|it's|it)\s+)*?"
)
_AT_START = re.compile(
    rf"^\s*{_FILLER}(?i:(?:option|choice|letter)\s+)?{_OPEN}(?P<letter>{_LETTER}){_CLOSE}"
    rf"(?P<rest>.*)$",
    re.DOTALL,
)
_ALONE = re.compile(rf"^\s*(?i:option|choice)?\s*{_OPEN}(?P<letter>[A-Ja-j]){_CLOSE}[.:]?\s*$")
_MENTION = re.compile(rf"\((?P<bracketed>[A-J])\)|\b(?i:option|choice)\s+(?P<named>{_LETTER})")
_LISTED = re.compile(r"^\s*\(?(?P<letter>[A-J])[).:]\s*(?P<words>\S.*)?$", re.MULTILINE)
_IS_RIGHT = re.compile(
    r"(?<![\w'])\(?(?P<letter>[A-J])\)?[.:]?(?:\s[^.\n]{0,80}?)?\s+is\s+(?:the\s+|therefore\s+)*"
    r"(?:most likely\s+|best\s+)?(?:correct|right|answer)\b"
)
_CONCLUSION = re.compile(
    r"\b(?:option|choice|diagnosis)\s*(?:is|:)\s*"
    r"|\b(?:therefore|thus|hence|so)\b[,:]?\s*(?:it is\s+)?"
    r"|\bI(?:'d| would| will)?\s+(?:choose|pick|select|go with)\s+",
    re.IGNORECASE,
)
_SECOND = re.compile(
    rf"^\s*(?:/|,|&|\b(?:or|and)\b)\s*(?:option\s+)?[(\[]?{_LETTER}"
    rf"|\b(?:or|and)\s+(?:option\s+)?[(\[]?[A-J][).:]",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:not|wrong|incorrect|unlikely|false|rule[ds]? out|isn't)\b", re.I)


def letter_of(answer: str) -> str | None:
    """The letter that ``answer`` ends up with; None for a refusal, none, or several at once."""
    text = _plain(answer)
    boxed = last_boxed(text)
    if boxed is not None:
        return _letter_in_claim(boxed)
    marked = [claim for claim in last_marked(text) if _ALONE.match(claim) or _AT_START.match(claim)]
    if marked:
        return _letter_in_claim(marked[0])
    return _unmarked_letter(text)


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return without_markup(text)


def _letter_in_claim(claim: str) -> str | None:
    alone = _ALONE.match(claim)
    if alone:
        return alone["letter"].upper()
    start = _AT_START.match(claim)
    if start is None or _SECOND.search(start["rest"]):
        return None
    return start["letter"]


def _unmarked_letter(text: str) -> str | None:
    """Of an answer that marks nothing: what it is, what it calls right, what it concludes with."""
    if _ALONE.match(text):
        return _letter_in_claim(text)
    if is_refusal(text):
        return None
    right = [match["letter"] for match in _IS_RIGHT.finditer(text)]
    if right:
        return right[0] if len(set(right)) == 1 else None
    behind = (text[match.end() :].split("\n")[0] for match in _CONCLUSION.finditer(text))
    concluded = [claim for claim in behind if _AT_START.match(claim)]
    if concluded:
        return _letter_in_claim(concluded[-1])
    return _only_letter(text)


def _only_letter(text: str) -> str | None:
    """The one option that is listed or mentioned without being ruled out."""
    letters = {match["letter"] for match in _LISTED.finditer(text)}
    for sentence in sentences(text):
        if not _DENIED.search(sentence):
            letters |= {m["bracketed"] or m["named"] for m in _MENTION.finditer(sentence)}
    return letters.pop() if len(letters) == 1 else None
