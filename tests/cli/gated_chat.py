"""A chat in this process in which questions with "takes long" are never answered: it says HELD once
such a one has begun.

python -m tests.cli.gated_chat FOLDER_OF_A_TOKENIZER
"""

import asyncio
import sys
from functools import partial

from transformers import AutoTokenizer

from latentmas_core import LatentMASSystem
from latentmas_core.cli import app, flags
from latentmas_core.cli.local import LocalBackend
from latentmas_core.context.conversations.config import ConversationsConfig
from tests.pipelines.fake_engine import FakeEngine


def main(folder: str) -> None:
    engine = FakeEngine(AutoTokenizer.from_pretrained(folder))

    async def hold() -> None:
        if "takes long" in engine.tokenizer.decode(engine.turns[-1].prompt_ids):
            sys.stderr.write("HELD\n")
            sys.stderr.flush()
            await asyncio.Event().wait()

    def opens(_: str | None, conversations: ConversationsConfig) -> LatentMASSystem:
        system = LatentMASSystem.from_engine(engine, conversations=conversations)
        return system.add_default_agents()

    engine.before_turn["planner"] = hold
    flags.LocalBackend = partial(LocalBackend, opens=opens)
    sys.argv = ["latentmas", "chat"]
    try:
        app.main()
    finally:
        engine.check_idle()


if __name__ == "__main__":
    main(sys.argv[1])
