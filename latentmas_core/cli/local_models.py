"""What ``--model`` may name without a download: the embedded model and what the hub's cache has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentmas_core.cli.backend import ModelInfo
from latentmas_core.engine.embedded_model import EMBEDDED_MODEL_NAME

_CONFIG, _ADAPTER_CONFIG, _WEIGHTS = "config.json", "adapter_config.json", ".safetensors"


def local_models() -> Iterator[ModelInfo]:
    """The embedded model, then the base models in the hub's cache."""
    yield ModelInfo(EMBEDDED_MODEL_NAME, "base", "the default; needs no hub")
    for repository in _cached_repositories():
        if repository.repo_type == "model" and _is_base_model(repository):
            size = f"{repository.size_on_disk / 1e9:.1f} GB in the hub's cache"
            yield ModelInfo(repository.repo_id, "base", size)


def _cached_repositories() -> list[Any]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return sorted(
            scan_cache_dir(constants.HF_HUB_CACHE).repos,
            key=lambda repository: str(repository.repo_id),
        )
    except CacheNotFound:
        return []


def _is_base_model(repository: Any) -> bool:
    """Whether one of its revisions has weights, and is no adapter."""
    for revision in repository.revisions:
        names = {Path(file.file_name).name for file in revision.files}
        has_weights = any(name.endswith(_WEIGHTS) for name in names)
        if _CONFIG in names and _ADAPTER_CONFIG not in names and has_weights:
            return True
    return False
