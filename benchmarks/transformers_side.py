"""The other sides: plain transformers, and its continuous batching. Each lives in a worker.

Prompts are built before the clock starts. A side that runs one request at a time takes the
questions one after the other.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.baselines.generate import (
    eager_step_ms,
    fitting_pool,
    generate_static,
    run_continuous,
)
from benchmarks.baselines.plain import PlainLatentMAS
from benchmarks.baselines.text import run_text
from benchmarks.prompts import HIERARCHY, latent_prompts, single_prompt, text_prompt
from benchmarks.protocol import Limits, Run, SideSettings
from benchmarks.timing import timed
from latentmas_core.engine.model_loader import (
    LoadedModel,
    load_model,
    resolve_device,
    resolve_dtype,
)


class TransformersSide:
    """The plain LatentMAS loop, text agents, `generate` on one padded batch, the eager step."""

    def __init__(self, settings: SideSettings) -> None:
        loaded = _load(settings)
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._plain = PlainLatentMAS(loaded.model)

    def close(self) -> None:
        """Nothing runs between calls."""

    def device_name(self) -> str | None:
        """The name of the GPU, if there is one in use."""
        is_cuda = self._model.device.type == "cuda"
        return torch.cuda.get_device_name(self._model.device) if is_cuda else None

    def reason_latent(self, *, questions: list[str], limits: Limits) -> Run:
        requests = [latent_prompts(self._tokenizer, question) for question in questions]
        run = timed(
            self._model.device, lambda: [self._run_latent(prompts, limits) for prompts in requests]
        )
        return Run(run.duration_s, run.value)

    def reason_text(self, *, questions: list[str], limits: Limits) -> Run:
        run = timed(
            self._model.device, lambda: [self._run_text(question, limits) for question in questions]
        )
        return Run(run.duration_s, [ids for answers in run.value for ids in answers])

    def answer_alone(self, *, questions: list[str], limits: Limits) -> Run:
        prompts = [single_prompt(self._tokenizer, question) for question in questions]
        run = timed(
            self._model.device,
            lambda: generate_static(self._model, prompts, max_tokens=limits.max_tokens),
        )
        return Run(run.duration_s, run.value)

    def step_ms(self, *, context_len: int, num_steps: int) -> float:
        return eager_step_ms(self._model, context_len=context_len, repeats=num_steps)

    def _run_latent(self, prompts: list[list[int]], limits: Limits) -> list[int]:
        return self._plain.run_latent(
            prompts, latent_steps=limits.latent_steps, max_tokens=limits.max_tokens
        )

    def _run_text(self, question: str, limits: Limits) -> list[list[int]]:
        return run_text(
            self._model,
            self._tokenizer,
            lambda agent_index, texts: text_prompt(
                self._tokenizer, question, agent_index=agent_index, texts=texts
            ),
            num_agents=len(HIERARCHY),
            max_tokens=limits.max_tokens,
        )


class ContinuousSide:
    """`generate_batch`, which computes on a thread that it starts anew in each call."""

    def __init__(self, settings: SideSettings) -> None:
        # Loading leaves an OpenMP team behind with its thread; let that end, so that the thread
        # of `generate_batch` is the only one with a team.
        with ThreadPoolExecutor(max_workers=1) as loader:
            loaded = loader.submit(_load, settings).result()
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer

    def close(self) -> None:
        """Nothing runs between calls."""

    def answer_alone(self, *, questions: list[str], limits: Limits, has_fitted_pool: bool) -> Run:
        """The whole call is timed, start-up included; ``busy_s`` is without it."""
        prompts = [single_prompt(self._tokenizer, question) for question in questions]
        pool = fitting_pool(prompts, max_tokens=limits.max_tokens) if has_fitted_pool else None
        run = timed(
            self._model.device,
            lambda: run_continuous(
                self._model, prompts, max_tokens=limits.max_tokens, batching=pool
            ),
        )
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()  # the other sides need the room of its pool
        return Run(run.duration_s, run.value.answer_ids, busy_s=run.value.busy_s)


def _load(settings: SideSettings) -> LoadedModel:
    torch.set_num_threads(settings.num_threads)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    return load_model(settings.model_name, device=device, dtype=dtype)
