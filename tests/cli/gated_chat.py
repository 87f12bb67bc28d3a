"""A chat in this process whose first answer never comes: says HELD once its judger waits.

python -m tests.cli.gated_chat FOLDER_OF_A_TOKENIZER
"""

import asyncio
import sys
from functools import partial

from transformers import AutoTokenizer

from latentmas_core import LatentMASSystem
from latentmas_core.cli import app, flags
from latentmas_core.cli.local import LocalBackend
from tests.pipelines.fake_engine import FakeEngine


def main(folder: str) -> None:
    engine = FakeEngine(AutoTokenizer.from_pretrained(folder))

    async def hold() -> None:
        del engine.before_turn["judger"]
        sys.stderr.write("HELD\n")
        sys.stderr.flush()
        await asyncio.Event().wait()

    engine.before_turn["judger"] = hold
    system = LatentMASSystem.from_engine(engine).add_default_agents()
    flags.LocalBackend = partial(LocalBackend, opens=lambda _: system)
    sys.argv = ["latentmas", "chat"]
    try:
        app.main()
    finally:
        engine.check_idle()


if __name__ == "__main__":
    main(sys.argv[1])
