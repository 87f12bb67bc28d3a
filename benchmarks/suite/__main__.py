"""python -m benchmarks.suite: every benchmark, one after the other, and the tables of the docs.

What a program found is kept in benchmarks/results and written into docs/benchmarks.md as soon as it
ends. A suite that was killed goes on where it was: programs that ended for the same commit and
unmodified files are not run again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.program import say
from benchmarks.suite.page import with_tables
from benchmarks.suite.parts import FULL, NAMES, QUICK, QUICK_LIMIT_S, Part
from benchmarks.suite.results import RESULTS, ResultsFolder, all_folders
from benchmarks.suite.running import BusyError, run_parts

PAGE = ROOT / "docs" / "benchmarks.md"


def main(
    arguments: Sequence[str] | None = None, *, results: Path = RESULTS, page: Path = PAGE
) -> int:
    """0; or 1 if a program failed. A missed bar is no failure."""
    options = _parse(arguments)
    if options.render:
        write_page(page, results)
        return 0
    folder = ResultsFolder(results / (options.name or ("quick" if options.quick else "full")))
    limit_s = QUICK_LIMIT_S if options.quick else float("inf")
    failures: list[str] = []
    try:
        for result in run_parts(
            chosen_parts(options), folder, has_to_run=options.again, limit_s=limit_s
        ):
            write_page(page, results)
            if result.failure is not None:
                failures.append(f"{result.part}: {result.failure}")
    except BusyError as error:
        failures.append(str(error))
    for failure in failures:
        say(f"ERROR: {failure}")
    return 1 if failures else 0


def chosen_parts(options: argparse.Namespace) -> list[Part]:
    """Those that were asked for, in their own order."""
    parts = QUICK if options.quick else FULL
    return [part for part in parts if part.name in (options.only or NAMES)]


def write_page(page: Path, results: Path) -> None:
    """The tables anew, from all that is kept."""
    text = with_tables(page.read_text(encoding="utf-8"), all_folders(results))
    page.write_text(text, encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite", description=(__doc__ or "").partition(":")[2]
    )
    parser.add_argument(
        "--quick", action="store_true", help="what five minutes on two cores are enough for"
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="may be given several times")
    parser.add_argument("--again", action="store_true", help="also what is done for this commit")
    parser.add_argument("--name", help='of what is kept ("quick" or "full"), one per machine')
    parser.add_argument("--render", action="store_true", help="only write the tables")
    options = parser.parse_args(arguments)
    if options.name is not None and not options.name.replace("-", "").isalnum():
        parser.error(f"--name is {options.name!r}; letters, digits and hyphens make a name")
    if options.quick and options.only and "connections" in options.only:
        parser.error("--only connections is part of the full suite alone; leave --quick out")
    return options


if __name__ == "__main__":
    sys.exit(main())
