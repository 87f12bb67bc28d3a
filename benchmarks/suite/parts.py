"""Which programs the suite runs, with what, and for how long they may take. Data only."""

import shlex
from typing import NamedTuple

MINUTE_S = 60.0
QUICK_LIMIT_S = 5 * MINUTE_S


class Part(NamedTuple):
    """One program. ``time_limit_s``: after that it hangs, and is ended."""

    name: str
    arguments: tuple[str, ...] = ()
    time_limit_s: float = 90 * MINUTE_S

    @property
    def module(self) -> str:
        return f"benchmarks.{self.name}"

    @property
    def command(self) -> str:
        """As anyone may repeat it."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


FULL = (
    Part("engine"),
    Part("lora"),
    Part("handoff"),
    Part("serve_load"),
    Part("connections"),
)
# One round of the measurements that take seconds, in fp32 alone, where answers are compared too.
QUICK = (
    Part("engine", ("--quick", "--dtype", "float32", "--only", "one-request")),
    Part("lora", ("--quick", "--only", "load")),
    Part("handoff", ("--quick",)),
    Part("serve_load", ("--quick", "--only", "overhead")),
)
NAMES = tuple(part.name for part in FULL)
