"""The other side: PEFT's mixed batch (``adapter_names``) and PEFT switching from one to the next.

Lives in a worker. Prompts are equally long, so neither pads.
"""

import time
from collections.abc import Sequence
from itertools import groupby

import torch
from peft import PeftModel
from transformers import DynamicCache

from benchmarks.lora_side import prompt_of
from benchmarks.protocol import Run, SideSettings
from benchmarks.timing import timed
from latentmas_core.engine.model_loader import load_model, resolve_device, resolve_dtype

NO_ADAPTER = "__base__"  # PEFT's name for rows without one


class PeftSide:
    """All adapters are loaded and stay; rows that share one stand together."""

    def __init__(self, settings: SideSettings) -> None:
        self._device = resolve_device(settings.device)
        torch.set_num_threads(settings.num_threads)
        dtype = resolve_dtype(settings.dtype, self._device)
        self._base = load_model(settings.model_name, device=self._device, dtype=dtype).model
        self._peft: PeftModel | None = None

    def close(self) -> None:
        """Nothing runs between calls."""

    def load(self, *, folders: Sequence[str]) -> list[float]:
        """Seconds that each took."""
        durations_s = []
        for index, folder in enumerate(folders):
            started_s = time.perf_counter()
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(
                    self._base, folder, adapter_name=str(index)
                ).eval()
            else:
                self._peft.load_adapter(folder, str(index))
            durations_s.append(time.perf_counter() - started_s)
        return durations_s

    @torch.inference_mode()
    def decode(self, *, adapters: Sequence[int | None], context_len: int, num_tokens: int) -> Run:
        """One batch of all rows; the time per token behind the first."""
        prompts = self._prompts(len(adapters), context_len)
        names = [NO_ADAPTER if adapter is None else str(adapter) for adapter in adapters]
        return self._decode([prompts], num_tokens, [names])

    @torch.inference_mode()
    def decode_switching(
        self, *, adapters: Sequence[int], context_len: int, num_tokens: int
    ) -> Run:
        """Each step one adapter after the other, each with its own rows alone."""
        prompts = self._prompts(len(adapters), context_len)
        groups = [(name, len(list(rows))) for name, rows in groupby(adapters)]
        batches = list(prompts.split([size for _, size in groups]))
        return self._decode(batches, num_tokens, [str(name) for name, _ in groups])

    @torch.inference_mode()
    def prefill(self, *, adapters: Sequence[int | None], context_len: int) -> Run:
        """The time until each row has said one token."""
        prompts = self._prompts(len(adapters), context_len)
        names = [NO_ADAPTER if adapter is None else str(adapter) for adapter in adapters]
        cache = DynamicCache(config=self._base.config)
        run = timed(self._device, lambda: self._step(prompts, cache, names))
        return Run(run.duration_s, run.value.tolist())

    def _decode(
        self, batches: list[torch.Tensor], num_tokens: int, names: Sequence[str | list[str]]
    ) -> Run:
        caches = [DynamicCache(config=self._base.config) for _ in batches]
        rows = [self._step(*one) for one in zip(batches, caches, names, strict=True)]
        said = [rows]

        def decode() -> None:
            for _ in range(num_tokens):
                said.append([self._step(*one) for one in zip(said[-1], caches, names, strict=True)])

        duration_s = timed(self._device, decode).duration_s
        steps = [torch.cat(step) for step in said]
        return Run(duration_s / num_tokens, torch.cat(steps, dim=1).tolist())

    def _step(
        self, token_ids: torch.Tensor, cache: DynamicCache, names: str | list[str]
    ) -> torch.Tensor:
        """[num_rows, num_ids] in, [num_rows, 1] out. One name is switched to, a list is mixed."""
        assert self._peft is not None, "adapters are loaded first"
        mixed = {}
        if isinstance(names, str):
            self._peft.set_adapter(names)
        else:
            mixed = {"adapter_names": names}
        output = self._peft(
            input_ids=token_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **mixed,
        )
        chosen: torch.Tensor = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        return chosen

    def _prompts(self, num_rows: int, context_len: int) -> torch.Tensor:
        size = self._base.config.vocab_size
        rows = [prompt_of(index, context_len, size) for index in range(num_rows)]
        return torch.tensor(rows, device=self._device)
