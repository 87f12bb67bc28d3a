"""python -m benchmarks.quality: the same questions by every method, and what came of it.

python -m benchmarks.quality --tasks reasoning-gym:chain_sum,gsm8k --methods single,text,latent
python -m benchmarks.quality --config configs/headline.yaml
python -m benchmarks.quality compare RUN RUN
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.program import say
from benchmarks.quality.command_line import PROGRAM, parsed
from benchmarks.quality.report import compare_tables, markdown
from benchmarks.quality.run_folder import RunFolder
from latentmas_core.errors import LatentMASError


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 2 with a sentence for what cannot be done."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["compare"]:
            return _compare(given[1:])
        from benchmarks.quality.measuring import measure  # compare needs no torch

        measure(parsed(given), given)
        return 0
    except LatentMASError as error:
        say(f"ERROR: {error.message}")
        return 2
    except KeyboardInterrupt:
        say("Stopped. The same command goes on from here.")
        return 130


def _compare(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} compare")
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folder of a run")
    first, second = (RunFolder.read(path) for path in parser.parse_args(arguments).runs)
    print(markdown("Two runs", [], compare_tables(first, second)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
