"""``python -m tests.openapi.fuzz``: schemathesis against /openapi.json of a running service.

Starts Ray Serve on a tiny model, with API keys, adapters and every call that there is; runs all
checks of schemathesis; and looks whether the service holds nothing afterwards.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve

from deployments.api.keys import digest_of, new_key
from deployments.app import build_app
from deployments.args import AppArgs
from deployments.proxy import ENVIRONMENT
from latentmas_core.context.conversations.config import ConversationsConfig
from latentmas_core.context.conversations.conversations import Conversations
from tests.context.conversations.answers import take_turn
from tests.deployments.service import Service
from tests.lora.adapters import make_adapter
from tests.openapi.rules import bearing
from tests.ports import free_port
from tests.scripted_model import make_scripted_model

ROOT = Path(__file__).parents[2]
MODEL = "scripted-1b"
MODELS = ("latentmas/hierarchical", MODEL, "latentmas/chat")
# No schema can tell how long a conversation may be for a model: no generated one is too long.
MAX_POSITIONS = 2**16
TENANT, CONVERSATION = "fuzz", "fuzzed"
IDLE_S = 60.0


def args_of(folder: Path, key: str) -> dict[str, Any]:
    """Few tokens and steps, so that an answer takes milliseconds."""
    keys = folder / "keys.yaml"
    entry = {"name": TENANT, "sha256": digest_of(key).hex(), "rights": ["ask", "admin"]}
    keys.write_text(yaml.safe_dump([entry]))
    return {
        "engine": {
            "model_name": str(make_scripted_model(folder / MODEL, max_positions=MAX_POSITIONS)),
            "device": "cpu",
            "dtype": "float32",
            "kv_cache_bytes": 2**26,
            "max_latent_steps": 4,
        },
        "latent_steps": 2,
        "groups": [
            {"name": "thinkers", "agents": ["planner", "critic", "medical", "coder"]},
            {"name": "deciders", "agents": ["refiner", "math", "judger"]},
        ],
        "adapters": {"admin": True, "roots": [str(folder)]},
        "conversations": {"url": f"sqlite:///{folder}/conversations.db"},
        "access": {
            "keys_file": str(keys),
            "require_keys": True,
            "limits": {"max_tokens": 16, "max_latent_steps": 4},
        },
    }


async def begin_conversation(config: dict[str, Any]) -> None:
    """One that the calls about conversations find."""
    conversations = Conversations(ConversationsConfig.model_validate(config))
    await take_turn(conversations, TENANT, CONVERSATION)
    await conversations.close()


@contextmanager
def serving(args: dict[str, Any]) -> Iterator[Service]:
    """The application with ``args`` on a Ray of its own."""
    os.environ.update(ENVIRONMENT)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=2**28,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    port = free_port()
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(AppArgs.model_validate(args)), name=Service.NAME, route_prefix="/")
        with Service(port) as service:
            yield service
        serve.shutdown()
    finally:
        ray.shutdown()


def fuzz(service: Service, key: str, adapter: Path, options: list[str]) -> int:
    """The exit status of schemathesis."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", "--checks", "all"]
    command.append(f"{service.url}/openapi.json")
    for name, value in bearing(key).items():
        command += ["--header", f"{name}: {value}"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.openapi.hooks",
        "FUZZED_MODELS": ",".join(MODELS),
        "FUZZED_ADAPTER": str(adapter),
        "FUZZED_CONVERSATION": CONVERSATION,
    }
    run = subprocess.run(
        [*command, *options], cwd=adapter.parent, env=os.environ | environment, check=False
    )
    return run.returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Other options are handed on to `schemathesis run`."
    )
    _, options = parser.parse_known_args()
    key = new_key()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        args = args_of(folder, key)
        adapter = make_adapter(folder / "adapter", folder / MODEL, std=0.001)
        asyncio.run(begin_conversation(args["conversations"]))
        with serving(args) as service:
            service.present(key)
            status = fuzz(service, key, adapter, options)
            service.wait_until_idle(timeout_s=IDLE_S)
            assert service.ask(question="Why?").status_code == 200
    sys.stdout.write("The service holds nothing and goes on answering.\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
