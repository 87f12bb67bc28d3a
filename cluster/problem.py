"""What is wrong with a config: everything at once, each problem with its place in the file."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN_CHARS = 80
_CREDENTIALS = re.compile(r"://\S*@")  # in a URL: user and password


@dataclass(frozen=True)
class Problem:
    """``path``: as ``applications[0].args.groups[1].num_gpus``; empty for the file as a whole."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def below(self, parent: str) -> "Problem":
        """The same problem, seen from the model that ``parent`` leads to."""
        return Problem(join(parent, self.path), self.message)


class ProblemsError(ValueError):
    """Raised by validators that found several problems; ``problems_of`` takes them apart again."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def join(parent: str, child: str | int) -> str:
    """``groups`` and 1 and ``num_gpus`` make ``groups[1].num_gpus``."""
    text = f"[{child}]" if isinstance(child, int) else child
    has_dot = parent and text and not text.startswith("[")
    return f"{parent}.{text}" if has_dot else f"{parent}{text}"


def problems_of(error: ValidationError, document: Any, *, path: str = "") -> list[Problem]:
    """All that pydantic found in ``document``, which lies at ``path`` of the file."""
    found: list[Problem] = []
    for details in error.errors(include_url=False):
        place = join(path, _place(details, document))
        if details["type"] == "too_short" and details["input"]:
            continue  # it has elements, but none that is valid: that is told already
        raised = details.get("ctx", {}).get("error")
        if isinstance(raised, ProblemsError):
            found += [problem.below(place) for problem in raised.problems]
        else:
            found.append(Problem(place, _message(details)))
    return list(dict.fromkeys(found))


def _place(details: ErrorDetails, document: Any) -> str:
    """Pydantic's location without what is no key of the document, such as branches of unions."""
    place, value = "", document
    for part in details["loc"]:
        is_element = isinstance(part, int) and isinstance(value, list | tuple)
        if is_element or (isinstance(value, Mapping) and part in value):
            value = value[part]
        elif details["type"] != "missing" or part != details["loc"][-1]:
            continue
        place = join(place, part)
    return place


def _message(details: ErrorDetails) -> str:
    match details["type"]:
        case "missing":
            return "is missing. Add it"
        case "extra_forbidden":
            return "unknown key. Correct it or take it out"
        case "value_error":
            return str(details.get("ctx", {}).get("error", details["msg"]))
    return f"got {_shown(details['input'])}: {details['msg']}"


def _shown(value: object) -> str:
    text = _CREDENTIALS.sub("://***@", repr(value))
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
