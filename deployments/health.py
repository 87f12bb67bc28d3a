"""``python -m deployments.health``: does the service answer ``/readyz``? For containers.

Exit status 0 if it is ready, 1 with a reason on standard error if not.
"""

import argparse
import sys
from collections.abc import Sequence

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.health", description=__doc__)
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the service ({DEFAULT_URL})")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help=f"in s ({TIMEOUT_S:g})")
    options = parser.parse_args(arguments)
    reason = why_not_ready(options.url, timeout_s=options.timeout)
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 1
    return 0


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
