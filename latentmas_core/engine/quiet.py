"""Keeps libraries from saying what no user of ours can act on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_bitsandbytes() -> None:
    """Nothing about an optional kernel when it is imported; PEFT imports it where it is there."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no messages below an error inside the block; restored behind it."""
    # Here, since those who load no model, as the ingress, do without: it takes seconds to import.
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    had_progress_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_progress_bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
