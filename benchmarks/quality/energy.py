"""Joules that the device has drawn, where it tells: NVIDIA cards by NVML, processors by RAPL.

Counters are those of the whole card or of whole sockets, so what else runs there is in them.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Meter(NamedTuple):
    """``read_j`` counts up from an arbitrary point; ``wraps_at_j``: where it starts at 0 again."""

    source: str
    read_j: Callable[[], float]
    wraps_at_j: float | None = None

    def spent_j(self, since_j: float) -> float:
        """Between an earlier reading and now. A counter that wrapped did so once."""
        spent = self.read_j() - since_j
        return spent + self.wraps_at_j if spent < 0 and self.wraps_at_j is not None else spent


def meters_of(device: str) -> list[Meter]:
    """What tells of this device; none where nothing can be read. Sum up what they say."""
    if device == "cuda" or device.startswith("cuda:"):
        meter = _nvml_meter(int(device.partition(":")[2] or 0))
        return [] if meter is None else [meter]
    return rapl_meters(POWERCAP)


def rapl_meters(powercap: Path) -> list[Meter]:
    """One per socket: the zones ``intel-rapl:N`` whose counter may be read (AMD has them too)."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") > 1:  # a part of a socket, which holds it already
            continue
        try:
            wraps_at_j = _microjoules(zone / "max_energy_range_uj")
            _microjoules(zone / "energy_uj")
        except (OSError, ValueError):  # mostly root's alone to read
            continue
        read_j = partial(_microjoules, zone / "energy_uj")
        found.append(Meter(f"RAPL {zone.name}", read_j, wraps_at_j))
    return found


def _microjoules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def _nvml_meter(index: int) -> Meter | None:
    """The card that torch calls ``index``; None without pynvml, or for a card that tells nothing.

    NVML counts millijoules since the driver was loaded, on Volta and newer.
    """
    import torch

    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        card: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
    except pynvml.NVMLError:
        return None
    return Meter("NVML", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3)
