"""A worker of RunPod: one engine, loaded once, that answers the jobs of an endpoint.

python -m deployments.runpod_worker                                   # on RunPod
python -m deployments.runpod_worker --rp_serve_api --rp_api_port 8008 # its API, on this machine
"""

import logging
import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, Json

from deployments.api.errors import INTERNAL_MESSAGE
from deployments.runpod_job import Output, outputs_of, read_input
from latentmas_core.chat import JsonObject
from latentmas_core.config import EngineConfig, FrozenModel
from latentmas_core.errors import ConfigError, LatentMASError
from latentmas_core.system import DEFAULT_LATENT_STEPS, LatentMASSystem
from latentmas_core.validation import validated

logger = logging.getLogger(__name__)

PREFIX = "LATENTMAS_"
DEFAULT_MAX_CONCURRENCY = 16


def _listed(text: object) -> object:
    return [name.strip() for name in text.split(",")] if isinstance(text, str) else text


class WorkerSettings(FrozenModel):
    """What a worker is told by environment variables: ``LATENTMAS_MODEL`` and so on.

    ``adapters``: names of the registry, or ``name=owner/repo`` of the hub, or ``name=folder``.
    ``engine``: other engine options, as a JSON object. ``max_concurrency``: jobs at a time, which
    share the engine's batches.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantization: Literal["4bit", "8bit"] | None = None
    latent_steps: int = Field(default=DEFAULT_LATENT_STEPS, ge=0)
    adapters: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    engine: Json[JsonObject] = Field(default_factory=dict)
    max_concurrency: int = Field(default=DEFAULT_MAX_CONCURRENCY, ge=1)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """ConfigError names the variable that is wrong; an empty one is as if it were not set."""
        variables = {name: f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        given = {name: environ.get(variable) for name, variable in variables.items()}
        try:
            return validated(cls, {name: value for name, value in given.items() if value})
        except ConfigError as error:
            name = (error.param or "").partition(".")[0]
            raise ConfigError(f"{variables.get(name, name)}: {error.message}") from None

    def build_system(self) -> LatentMASSystem:
        """The engine with the shipped agents and the adapters. Raises what those raise."""
        system = LatentMASSystem(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            latent_steps=self.latent_steps,
            engine_config=validated(EngineConfig, self.engine),
        ).add_default_agents()
        for adapter in self.adapters:
            name, is_elsewhere, path = adapter.partition("=")
            if is_elsewhere:
                system.load_external_lora(name, path)
            else:
                system.load_from_registry(name)
        return system


class Worker:
    """Answers jobs; those that are under way at the same time share the engine's batches."""

    def __init__(self, system: LatentMASSystem) -> None:
        self._system = system

    async def answer(self, job: Mapping[str, Any]) -> AsyncGenerator[Output, None]:
        """RunPod's handler. An object with ``error`` fails the job; nothing follows it."""
        try:
            async with aclosing(self._outputs(job)) as outputs:
                async for output in outputs:
                    yield output
        except LatentMASError as error:
            yield {"error": error.message}
        except Exception:
            # What is raised here the SDK would send to the client, with its traceback.
            logger.exception("job %s failed", job.get("id"))
            yield {"error": INTERNAL_MESSAGE}

    async def _outputs(self, job: Mapping[str, Any]) -> AsyncGenerator[Output, None]:
        asked = read_input(job.get("input"))
        request = asked.as_request()
        options = request.model_dump(exclude={"question"}, exclude_unset=True)
        async with aclosing(self._system.astream(request.question, **options)) as events:
            async for output in outputs_of(events, asked):
                yield output


def main() -> None:
    """Load the engine, then answer jobs until RunPod ends the worker."""
    import runpod.serverless  # type: ignore[import-untyped]  # takes a second; not for the tests

    try:
        settings = WorkerSettings.from_environment(os.environ)
        system = settings.build_system()
    except LatentMASError as error:
        sys.exit(error.message)
    with system:
        runpod.serverless.start(
            {
                "handler": Worker(system).answer,
                "return_aggregate_stream": True,
                "concurrency_modifier": lambda _: settings.max_concurrency,
            }
        )


if __name__ == "__main__":
    main()
