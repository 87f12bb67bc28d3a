"""Logs: whose work a line is about, and how our lines come into Serve's log files.

Form and level are those of Serve's ``logging_config``; there is no second one. What is asked and
answered is never logged.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

SERVE_LOGGER = "ray.serve"
PACKAGES = ("deployments", "latentmas_core", "cluster")


@dataclass(frozen=True)
class Origin:
    """The request and the run that something is done for; ``trace_id`` where they are traced."""

    request_id: str | None = None
    run_id: str | None = None
    trace_id: str | None = None


NO_ORIGIN = Origin()

_origin: ContextVar[Origin] = ContextVar("origin", default=NO_ORIGIN)
_notes: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)


def current_origin() -> Origin:
    """Of the request or call that runs now."""
    return _origin.get()


def set_origin(origin: Origin) -> None:
    """For the rest of the current task, and for the tasks that it starts."""
    _origin.set(origin)


def begin_request(request_id: str, trace_id: str | None = None) -> dict[str, Any]:
    """Name the request that the current task serves; what ``note`` says of it comes into the
    result."""
    notes: dict[str, Any] = {}
    _notes.set(notes)
    set_origin(Origin(request_id, trace_id=trace_id))
    return notes


def current_notes() -> Mapping[str, Any]:
    """What has been noted of the current request."""
    return _notes.get() or {}


def begin_run(run_id: str) -> Origin:
    """Name the run, where the request is named already."""
    origin = replace(current_origin(), run_id=run_id)
    set_origin(origin)
    return origin


def note(**fields: Any) -> None:
    """Add to the line that ends the current request, if there is one."""
    notes = _notes.get()
    if notes is not None:
        notes.update(fields)


def log_event(
    logger: logging.Logger, event: str, *, level: int = logging.INFO, **fields: Any
) -> None:
    """One line with the fields that are not None: as text, and each by itself for JSON."""
    if not logger.isEnabledFor(level):
        return
    given = {name: value for name, value in fields.items() if value is not None}
    text = " ".join(f"{name}={value}" for name, value in given.items())
    logger.log(level, "%s %s", event, text, extra={"event": event} | given)


class IntoServeLog(logging.Handler):
    """Hands records on to Serve's logger, whose handlers know form, file and level."""

    def emit(self, record: logging.LogRecord) -> None:
        serve = logging.getLogger(SERVE_LOGGER)
        if serve.isEnabledFor(record.levelno):
            serve.handle(with_origin(record))


def with_origin(record: logging.LogRecord) -> logging.LogRecord:
    """The record with the ids of the current task, those that it does not name itself."""
    for name, value in vars(current_origin()).items():
        if value is not None and not hasattr(record, name):
            setattr(record, name, value)
    return record


def log_through_serve() -> None:
    """Once in each process of the service: all of our loggers write where Serve's does."""
    for package in PACKAGES:
        logger = logging.getLogger(package)
        if not any(isinstance(handler, IntoServeLog) for handler in logger.handlers):
            logger.addHandler(IntoServeLog())
        logger.setLevel(logging.DEBUG)  # Serve's own level decides
