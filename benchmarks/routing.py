"""How often ``pipeline="auto"`` finds the domain that a person gave a question, and in what time.

python -m benchmarks.routing                      # the questions that the router has never seen
python -m benchmarks.routing --questions FILE --wrong
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.quality.significance import wilson
from latentmas_core.routing.classifier import Classification, classify
from latentmas_core.routing.domains import Domain

QUESTIONS = Path(__file__).parent.parent / "tests" / "routing" / "routing_questions.jsonl"


class Labelled(NamedTuple):
    """A question, and the domains that a person gave it."""

    question: str
    domains: tuple[Domain, ...]


class Answer(NamedTuple):
    """Where a question was sent, and in what time."""

    labelled: Labelled
    found: Classification
    seconds: float

    @property
    def is_right(self) -> bool:
        """The clearest domain is the one that was given; of several all of them, and no more."""
        wanted = self.labelled.domains
        if len(wanted) == 1:
            return self.found.domains[0] == wanted[0]
        return set(self.found.domains) == set(wanted)


def read_questions(path: Path) -> list[Labelled]:
    """One JSON object per line: ``question`` and ``domains``."""
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [Labelled(one["question"], tuple(Domain(d) for d in one["domains"])) for one in lines]


def ask_all(questions: Sequence[Labelled]) -> list[Answer]:
    """One after the other, with the lexicon read before."""
    classify(questions[0].question)  # reads the lexicon
    return [_ask(labelled) for labelled in questions]


def _ask(labelled: Labelled) -> Answer:
    began_at = time.perf_counter()
    found = classify(labelled.question)
    return Answer(labelled, found, time.perf_counter() - began_at)


def report_lines(answers: Sequence[Answer]) -> Iterator[str]:
    """What was confused, shares with their intervals, and the time."""
    one = [answer for answer in answers if len(answer.labelled.domains) == 1]
    several = [answer for answer in answers if len(answer.labelled.domains) > 1]
    yield from _confusion_lines(one)
    yield ""
    yield _share_line("one domain: the clearest is the right one", one)
    num_more = sum(len(answer.found.domains) > 1 for answer in one)
    yield f"one domain: another was added to {num_more} of {len(one)}"
    if several:
        yield _share_line("several domains: exactly these", several)
        num_one = sum(answer.found.domains[0] in answer.labelled.domains for answer in several)
        yield f"several domains: the clearest is one of them in {num_one} of {len(several)}"
    times = sorted(1e6 * answer.seconds for answer in answers)
    yield f"time per question: median {statistics.median(times):.0f} µs, most {times[-1]:.0f} µs"


def _share_line(what: str, answers: Sequence[Answer]) -> str:
    num_right = sum(answer.is_right for answer in answers)
    low, high = wilson(num_right, len(answers))
    share = num_right / len(answers)
    return f"{what}: {num_right} of {len(answers)} = {share:.1%} (95 %: {low:.1%} to {high:.1%})"


def _confusion_lines(answers: Sequence[Answer]) -> Iterator[str]:
    """A row per given domain, a column per domain that was found first."""
    counts = Counter((a.labelled.domains[0], a.found.domains[0]) for a in answers)
    yield f"{'given':<10}" + "".join(f"{domain:>11}" for domain in Domain)
    for given in Domain:
        yield f"{given:<10}" + "".join(f"{counts[given, found]:>11}" for found in Domain)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--questions", type=Path, default=QUESTIONS, metavar="FILE")
    parser.add_argument("--wrong", action="store_true", help="also print what was found wrongly")
    options = parser.parse_args()
    answers = ask_all(read_questions(options.questions))
    print("\n".join(report_lines(answers)))
    if options.wrong:
        for answer in answers:
            if not answer.is_right:
                given, found = ", ".join(answer.labelled.domains), ", ".join(answer.found.domains)
                evidence = ", ".join(answer.found.evidence)
                print(f"{given} -> {found} ({evidence}): {answer.labelled.question}")


if __name__ == "__main__":
    main()
