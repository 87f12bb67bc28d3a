"""What the command lines of the serving benchmarks have in common."""

import argparse
from collections.abc import Collection
from pathlib import Path

from benchmarks.program import positive


def add_serving_options(
    parser: argparse.ArgumentParser, measurements: Collection[str], *, num_rounds: int
) -> None:
    """``measurements``: the titles that ``--only`` picks from. The device is the CPU."""
    parser.add_argument("--threads", type=positive, default=1, help="of every engine (1)")
    parser.add_argument(
        "--rounds", type=positive, default=num_rounds, help=f"of every measurement ({num_rounds})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less of everything")
    parser.add_argument(
        "--only", choices=list(measurements), action="append", help="may be given several times"
    )
    parser.set_defaults(device="cpu")
