"""The same requests in process: a system as its users make it. Lives in a worker."""

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.serving.clients import Answered
from latentmas_core.config import EngineConfig
from latentmas_core.system import LatentMASSystem


class LocalSide:
    """The same questions in one process, without Ray."""

    def __init__(self, engine: EngineConfig, latent_steps: int) -> None:
        self._system = LatentMASSystem(latent_steps=latent_steps, engine_config=engine)
        self._system.add_default_agents()

    def close(self) -> None:
        self._system.close()

    def ask(self, *, fields: Mapping[str, Any]) -> Answered:
        started_s = time.perf_counter()
        result = self._system.run(**fields)
        duration_s = time.perf_counter() - started_s
        return Answered(duration_s, result.model_dump(mode="json", by_alias=True))
