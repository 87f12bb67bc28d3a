"""``latentmas chat`` in which questions with "takes long" are never answered: it says HELD once one
has begun. It fails if anything is left in its engine when it ends.

python -m tests.cli.gated_chat MODEL_FOLDER FLAGS...
"""

import asyncio
import sys
from contextlib import aclosing
from functools import partial

from latentmas_core import EngineConfig, LatentMASSystem
from latentmas_core.cli import app, flags
from latentmas_core.cli.local import LocalBackend
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.engine.engine import Engine


class GatedEngine(Engine):
    async def run(self, turn):
        async with aclosing(super().run(turn)) as events:
            async for event in events:
                yield event
                if "takes long" in self.tokenizer.decode(turn.prompt_ids):
                    sys.stderr.write("HELD\n")
                    sys.stderr.flush()
                    await asyncio.Event().wait()


def main(model_folder: str, *arguments: str) -> None:
    config = EngineConfig(
        model_name=model_folder, device="cpu", kv_cache_bytes=2**24, num_threads=1
    )
    with GatedEngine(config) as engine:

        def opens(_: str | None, conversations: ConversationsConfig) -> LatentMASSystem:
            system = LatentMASSystem.from_engine(engine, conversations=conversations)
            return system.add_default_agents()

        flags.LocalBackend = partial(LocalBackend, opens=opens)
        sys.argv = ["latentmas", "chat", *arguments]
        try:
            app.main()
        finally:
            stats = asyncio.run(engine.stats())
            assert (stats.num_running, stats.num_waiting, stats.num_memories) == (0, 0, 0), stats


if __name__ == "__main__":
    main(*sys.argv[1:])
