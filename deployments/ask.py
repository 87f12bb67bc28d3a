"""Asks a running service one question and prints what its agents do: ``make ask Q=...``.

Where the service wants a key, it is that of the environment (``LATENTMAS_API_KEY``).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx

KEY_VARIABLE = "LATENTMAS_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"
ANSWER_TIMEOUT_S = 600.0
READY_TIMEOUT_S = 10.0


class AskError(Exception):
    """The service answered, but with an error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--url", default=DEFAULT_URL)
    parser.add_argument("--pipeline", default="hierarchical")
    parser.add_argument("--mode", default="latent", choices=("latent", "text", "single"))
    args = parser.parse_args()
    try:
        ask(args.url, args.question, pipeline=args.pipeline, mode=args.mode)
    except httpx.ConnectError:
        sys.exit(f"nothing answers on {args.url}. Start the service first: make serve")
    except (httpx.HTTPError, AskError) as error:
        sys.exit(f"error: {error}")


def ask(url: str, question: str, **options: str) -> None:
    """Print the question, each agent as it finishes, and the answer as it comes.

    Greedy, so that the same question gets the same answer. Raises AskError and httpx errors.
    """
    print(f"Q: {question}")
    body = {"question": question, "temperature": 0, "stream": True, **options}
    is_answering = False
    for name, payload in _events(f"{url}/v1/reason", body):
        if name == "answer.delta":
            print(payload["text"] if is_answering else f"A: {payload['text']}", end="", flush=True)
            is_answering = True
        elif name == "agent.finished":
            print(_describe(payload["trace"], after_answer=is_answering), flush=True)
        elif name == "answer.done":
            print(_summarise(payload), flush=True)
        elif name == "error":
            raise AskError(payload["error"]["message"])


def wait_until_ready(url: str, *, timeout_s: float) -> bool:
    """Whether the service became ready within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not _is_ready(url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=READY_TIMEOUT_S).status_code == 200
    except httpx.TransportError:  # nobody listens yet
        return False


def _events(url: str, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The server-sent events of one request: name and content."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.stream(
        "POST", url, json=body, headers=headers, timeout=ANSWER_TIMEOUT_S
    ) as response:
        if response.is_error:
            response.read()
            raise AskError(f"{response.status_code}: {_message_of(response)}")
        name = ""
        for line in response.iter_lines():
            field, _, content = line.partition(": ")
            if field == "event":
                name = content
            elif field == "data":
                yield name, json.loads(content)


def _describe(trace: dict[str, Any], *, after_answer: bool) -> str:
    did = [f"{trace['prompt_tokens']} prompt tokens"]
    if trace["latent_steps"]:
        did.append(f"{trace['latent_steps']} latent steps")
    did.append(f"{trace['completion_tokens']} tokens of text")
    line = f"   {trace['name']:<10}{', '.join(did)}, {trace['latency_ms']:.0f} ms"
    return f"\n{line}" if after_answer else line


def _summarise(result: dict[str, Any]) -> str:
    transfer = result["transfer"]
    return (
        f"   {result['pipeline']}, {result['mode']}: {result['latency_ms']:.0f} ms; "
        f"{transfer['bytes'] / 2**20:.1f} MiB of memory handed over, {transfer['hops']} hop(s)"
    )


def _message_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text


if __name__ == "__main__":
    main()
