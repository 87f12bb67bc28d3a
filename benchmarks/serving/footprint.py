"""How much memory and how many open files the processes of Serve have."""

from collections.abc import Mapping
from typing import NamedTuple

import psutil

# What Ray calls the processes that requests pass through.
_SERVING = ("ray::ProxyActor", "ray::ServeReplica:")


class Footprint(NamedTuple):
    """``own_bytes``: memory that no other process shares; the object store is shared by all."""

    own_bytes: int
    num_files: int


def serving_processes() -> dict[str, psutil.Process]:
    """Proxies and replicas below this process, by name and process id."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        name = serving_name(_title(process))
        if name is not None:
            found[f"{name} {process.pid}"] = process
    return found


def serving_name(title: str) -> str | None:
    """Of a proxy or a deployment, from the title of its process, which tells what it does, too."""
    if not title.startswith(_SERVING):
        return None
    return title.removeprefix("ray::").partition(".")[0].rpartition(":")[2].strip()


def footprints(processes: Mapping[str, psutil.Process]) -> dict[str, Footprint]:
    """By name, of those that live."""
    found: dict[str, Footprint] = {}
    for name, process in processes.items():
        try:
            found[name] = Footprint(process.memory_full_info().uss, process.num_fds())
        except psutil.Error:  # it has ended
            continue
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()  # Ray pads it
    except psutil.Error:  # it has ended
        return ""
