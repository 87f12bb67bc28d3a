"""Where a written answer commits itself: boxed, behind a marker, or nowhere. Knows no numbers.

A claim is the text in which a reader finds the final answer: ``18 eggs`` of ``the answer is 18
eggs.``, ``18`` of ``\\boxed{18}``.
"""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_MARKER = re.compile(
    r"\b(?:answer|result|solution)(?:\s+(?:to|of|for)\s[^.\n:=]{0,60}?)?\s*"
    r"(?:\bis\b|\bwould be\b|\bshould be\b|\bmust be\b|[:=])(?:\s+therefore)?[\s:=]*",
    re.IGNORECASE,
)
# A full stop ends a claim unless it stands in a number or right behind a single letter ("C. No").
_END = re.compile(r"(?<!\b[A-Za-z])(?<!\b[A-Za-z]\))\.(?!\d)|[!?;](?:\s|$)|\n")
_CORRECTED = re.compile(r"^\s*not\b.*?\b(?:but|it is|it's)\b(?:\s+rather)?", re.IGNORECASE)
_NEGATED = re.compile(r"^\s*not\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:cannot|can't|can not|unable to|don't know|do not know|not enough information|sorry|"
    r"unknown|unclear|undetermined|impossible to (?:say|tell|determine)|insufficient)\b",
    re.IGNORECASE,
)


def without_markup(text: str) -> str:
    """The same words without bold, code marks and the dollars of inline formulas."""
    text = text.replace("**", "").replace("__", "").replace("`", "").replace("\u2019", "'")
    text = re.sub(r"\\[(\[\])]", " ", text)
    return re.sub(r"\$(?=\\)|(?<=\})\$|(?<![\w.])\$(?=[A-Ja-j]\$)|(?<=[A-Ja-j])\$", "", text)


def last_boxed(text: str) -> str | None:
    """What the last box with something in it holds; braces are balanced."""
    for opening in reversed(list(_BOXED.finditer(text))):
        content = _up_to_closing_brace(text[opening.end() :])
        if content.strip():
            return content.strip()
    return None


def last_marked(text: str) -> list[str]:
    """Claims behind ``####`` and behind ``the answer is``, the one that counts first.

    What is denied ("the answer is not 12") is none; "not 12 but 15" claims 15.
    """
    hashes = [match.group(1) for match in _HASHES.finditer(text)]
    behind = [_claim_at(text, marker.end()) for marker in _MARKER.finditer(text)]
    return [*reversed(hashes), *(claim for claim in reversed(behind) if claim)]


def is_refusal(text: str) -> bool:
    """Whether it says that it gives no answer."""
    return _REFUSAL.search(text) is not None


def is_denial(sentence: str) -> bool:
    """Whether it says what the answer is not, and nothing else."""
    markers = list(_MARKER.finditer(sentence))
    return bool(markers) and not any(_claim_at(sentence, one.end()) for one in markers)


def sentences(text: str) -> list[str]:
    """In their order, without those that are empty."""
    return [sentence.strip() for sentence in _END.split(text) if sentence.strip()]


def _claim_at(text: str, start: int) -> str:
    rest = text[start:].lstrip()
    claim = _END.split(rest, maxsplit=1)[0]
    claim = _CORRECTED.sub("", claim)
    return "" if _NEGATED.match(claim) else claim.strip()


def _up_to_closing_brace(text: str) -> str:
    depth = 1
    for index, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:index]
    return text
