"""What schemathesis is told beyond the description: see rules.py. It looks for this file by the
environment variable SCHEMATHESIS_HOOKS.
"""

import os
from typing import Any

import schemathesis
from schemathesis import Case, HookContext

from tests.openapi.rules import Served, obey

SERVED = Served(
    tuple(os.environ["FUZZED_MODELS"].split(",")),
    os.environ["FUZZED_ADAPTER"],
    os.environ["FUZZED_CONVERSATION"],
)


@schemathesis.hook
def before_call(ctx: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    obey(case, SERVED)
