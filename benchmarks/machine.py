"""Where and with what a measurement was taken. Knows no torch: it reads what is installed."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# All files but those that benchmarks.suite writes while it measures.
MEASURED = ("--", ".", ":(exclude)benchmarks/results", ":(exclude)docs/benchmarks.md")


def describe_machine() -> dict[str, Any]:
    """The host before anything is measured; which GPU is in use, a side knows."""
    return {
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_bytes("MemTotal") / 2**30, 1),
        "gpu": None,
        "load_average": os.getloadavg()[0],
    }


def describe_versions() -> dict[str, str | None]:
    """None for a package that is not installed."""
    packages = ("torch", "transformers", "latentmas")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def describe_commit() -> dict[str, Any]:
    """The commit that is checked out, and whether files differ from it that are measured."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", *MEASURED)
    return {"commit": commit or None, "is_modified": bool(status)}


def changes_digest() -> str | None:
    """Of what differs from the commit in files that it has; None if nothing does."""
    changes = _git("diff", "HEAD", *MEASURED)
    return hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None


def busy_core_s() -> float:
    """Seconds that cores of this host have worked, for whomever, since it was started."""
    amounts = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
    idle, io_wait = amounts[3:5]
    return (sum(amounts) - idle - io_wait) / os.sysconf("SC_CLK_TCK")


def process_core_s(pid: int) -> float:
    """Seconds that a running process has worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def available_bytes() -> int:
    """Memory of the host that can be had without swapping."""
    return _memory_bytes("MemAvailable")


def total_bytes() -> int:
    """The memory of this machine."""
    return _memory_bytes("MemTotal")


def _memory_bytes(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == field:
            return int(amount.split()[0]) * 1024
    raise LookupError(f"/proc/meminfo has no {field}.")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
