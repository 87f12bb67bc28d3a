"""``python -m deployments.health``: does the service answer ``/readyz``? For containers.

Exit status 0 if it is ready, 1 with a reason on standard error if not.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

DEFAULT_PORT = 8000  # Serve's own
# Names the config file that the container runs, as docker/start.sh reads it.
CONFIG_VARIABLE = "LATENTMAS_CONFIG"
TIMEOUT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.health", description=__doc__)
    parser.add_argument("--url", help=f"of the service; left out, as ${CONFIG_VARIABLE} has it")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help=f"in s ({TIMEOUT_S:g})")
    options = parser.parse_args(arguments)
    try:
        url = options.url or url_of(os.environ.get(CONFIG_VARIABLE))
    except (OSError, ValueError, yaml.YAMLError) as error:
        sys.stderr.write(f"{CONFIG_VARIABLE}: {error}\n")
        return 1
    reason = why_not_ready(url, timeout_s=options.timeout)
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 1
    return 0


def url_of(config: str | None) -> str:
    """Where a config file of Serve lets its application be asked on this machine.

    OSError, ValueError or YAMLError for a file that does not say.
    """
    if config is None:
        return f"http://127.0.0.1:{DEFAULT_PORT}"
    document: Any = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    try:
        port = document.get("http_options", {}).get("port", DEFAULT_PORT)
        prefix = document["applications"][0].get("route_prefix", "/").rstrip("/")
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError(f"{config} is no config file of Serve with an application in it") from None
    return f"http://127.0.0.1:{port}{prefix}"


def why_not_ready(url: str, *, timeout_s: float) -> str | None:
    """None if it is ready."""
    try:
        # The service is beside it: a proxy that the environment names for the hub is not asked.
        answer = httpx.get(f"{url}/readyz", timeout=timeout_s, trust_env=False)
    except httpx.HTTPError as error:
        return f"{url}/readyz does not answer: {error!r}"
    if answer.status_code != httpx.codes.OK:
        return f"{url}/readyz answers {answer.status_code}"
    return None


if __name__ == "__main__":
    sys.exit(main())
