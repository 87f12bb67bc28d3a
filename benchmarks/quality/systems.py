"""What is measured, made ready: the default agents on one engine, with the adapters of the run."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from benchmarks.quality.apart import AgentsApart
from benchmarks.quality.energy import Meter, meters_of
from benchmarks.quality.methods import EngineChoice
from benchmarks.quality.runner import System
from benchmarks.quality.settings import Settings
from latentmas_core import LatentMASSystem
from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.validation import validated


@contextmanager
def open_system(settings: Settings, choice: EngineChoice) -> Iterator[System]:
    """Closed again at the end; raises AdapterError for an adapter of another base model.

    In 8 bits the agents are apart: within a process nothing is moved, so nothing would be rounded.
    Without a prefix cache, or one method would be spared what another has computed before it.
    """
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    options = {
        "model_name": settings.model,
        "device": settings.device,
        "dtype": settings.dtype,
        "latent_realign": choice.is_realigned,
        "transfer_dtype": choice.transfer_dtype,
        "has_prefix_cache": False,
    }
    with (
        closing(Engine(validated(EngineConfig, options))) as engine,
        LatentMASSystem.from_engine(engine, registries=settings.registries) as system,
    ):
        system.add_default_agents()
        _load(system, settings.adapters)
        yield system if choice.transfer_dtype == "model" else AgentsApart(system, engine)


def adapter_name(place: str) -> str:
    """What an adapter of the registry, of a folder or of the hub is called in a run."""
    return Path(place).name


def meters_for(device: str) -> list[Meter]:
    """Of the device that "auto" stands for, too."""
    return meters_of(_chosen(device))


def gpu_name(device: str) -> str | None:
    """None for a run on the processor."""
    chosen = _chosen(device)
    return None if chosen == "cpu" else torch.cuda.get_device_name(chosen)


def _chosen(device: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _load(system: LatentMASSystem, adapters: Mapping[str, str]) -> None:
    """``adapters``: agents to names of the registry, folders, or ``owner/name`` of the hub."""
    known = {entry.name for entry in system.registry}
    for place in dict.fromkeys(adapters.values()):
        if place in known:
            system.load_from_registry(place)
        else:
            system.load_external_lora(adapter_name(place), place)
