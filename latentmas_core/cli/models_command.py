"""``latentmas models``: what ``--model`` may name."""

from contextlib import closing
from typing import Annotated

import typer

from latentmas_core.cli.ask_command import failures_told
from latentmas_core.cli.flags import Endpoint, Key, check_key, open_backend
from latentmas_core.cli.output import Output

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def models(endpoint: Endpoint = None, api_key: Key = None, as_json: AsJson = False) -> None:
    """List what --model may name: of a service, or here without a download."""
    check_key(endpoint, api_key)
    output = Output()
    with closing(open_backend(None, endpoint, api_key)) as backend, failures_told(output):
        found = backend.models()
        if as_json:
            output.json([model._asdict() for model in found])
        else:
            output.table(["model", "kind", ""], found)
