"""Fixtures that every test may use; the models behind them are made once per run."""

import os
import signal

# What a shell starts in the background ignores Ctrl-C, and so would the programs that tests start
# and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing here may depend on a network; the hub's library reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

from latentmas_core.engine.embedded_model import prepare_embedded_model
from tests.factories import make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _own_cores() -> None:
    """Two, shared with the other worker if there is one."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied embeddings: realignment is the identity."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-llama"), "llama", tied=True)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, with biases on q, k and v."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-qwen2"), "qwen2")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, with norms on q and k."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny-qwen3"), "qwen3")


@pytest.fixture(scope="session")
def embedded_model_path() -> Path:
    return prepare_embedded_model()
