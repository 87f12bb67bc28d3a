"""One guarded application for all tests of this package."""

import pytest
from ray import serve

from deployments.app import build_app
from deployments.args import AppArgs
from tests.deployments.guarded.guarded import (
    BODY_TIMEOUT_S,
    MAX_ONGOING,
    MAX_PER_MINUTE,
    MAX_QUEUED,
    Guarded,
    database_of,
)
from tests.deployments.keys import BOB
from tests.deployments.service import Service
from tests.deployments.test_keys import entry, write
from tests.deployments.wrong_calls import MAX_BODY_BYTES
from tests.factories import make_tiny_model


@pytest.fixture(scope="package")
def service(serve_port, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    limits = {"max_requests_per_minute": MAX_PER_MINUTE}
    bob = entry("bob", BOB, limits=limits)
    keys = write(folder / "keys.yaml", entry("alice", tenant="team"), bob)
    args = {
        "engine": {
            "model_name": str(make_tiny_model(folder / "model", "qwen2")),
            "device": "cpu",
            "dtype": "float32",
            "kv_cache_bytes": 2**24,
        },
        "latent_steps": 2,
        "max_ongoing_requests": MAX_ONGOING,
        "max_queued_requests": MAX_QUEUED,
        "groups": [
            {"name": "thinkers", "agents": ["planner", "critic"]},
            {"name": "deciders", "agents": ["refiner", "judger"]},
        ],
        "access": {
            "keys_file": str(keys),
            "require_keys": True,
            "body_timeout_s": BODY_TIMEOUT_S,
            "max_body_bytes": MAX_BODY_BYTES,
        },
        "conversations": {"url": database_of(folder)},
    }
    serve.run(
        build_app(AppArgs.model_validate(args)),
        name=Service.NAME,
        route_prefix="/",
        logging_config={"encoding": "JSON", "logs_dir": str(folder / "logs")},
    )
    with Guarded(serve_port, folder) as service:
        yield service
    serve.delete(Service.NAME)
