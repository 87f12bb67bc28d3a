"""What schemathesis is told beyond the description: see rules.py. It looks for this file by the
environment variable SCHEMATHESIS_HOOKS.
"""

import os
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

from tests.openapi.rules import obey_batch, obey_chat, obey_reason

# Names of models that answer, the first a pipeline; a folder with an adapter that fits them.
MODELS = tuple(os.environ["FUZZED_MODELS"].split(","))
ADAPTER = os.environ["FUZZED_ADAPTER"]


@schemathesis.hook
def before_call(ctx: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    obey(case.path, case.body)


def obey(path: str, body: Any) -> None:
    if path == "/v1/reason":
        obey_reason(body)
    elif path == "/v1/batch":
        obey_batch(body)
    elif path == "/v1/chat/completions":
        obey_chat(body, MODELS)
    elif path == "/v1/load_lora_adapter":
        body["lora_path"] = ADAPTER
        body.pop("revision", None)
