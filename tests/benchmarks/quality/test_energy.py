"""Counters of energy as Linux shows them: folders with numbers in microjoules."""

from pathlib import Path

import pytest

from benchmarks.quality.energy import Meter, meters_of, rapl_meters


def make_zone(powercap: Path, name: str, *, energy_uj: str, max_uj: str = "1000000") -> Path:
    zone = powercap / name
    zone.mkdir()
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{max_uj}\n")
    return zone


def test_sockets_are_read_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    zone = make_zone(tmp_path, "intel-rapl:0", energy_uj="500000")
    make_zone(tmp_path, "intel-rapl:0:0", energy_uj="100000")
    make_zone(tmp_path, "intel-rapl:1", energy_uj="700000")
    first, second = rapl_meters(tmp_path)
    assert (first.read_j(), second.read_j()) == (0.5, 0.7)
    (zone / "energy_uj").write_text("900000\n")
    assert first.spent_j(0.5) == pytest.approx(0.4)


def test_a_counter_that_starts_again_at_zero_goes_on(tmp_path: Path) -> None:
    zone = make_zone(tmp_path, "intel-rapl:0", energy_uj="900000")
    (meter,) = rapl_meters(tmp_path)
    (zone / "energy_uj").write_text("200000\n")
    assert meter.spent_j(0.9) == pytest.approx(0.3)


def test_what_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    make_zone(tmp_path, "intel-rapl:0", energy_uj="")
    (tmp_path / "intel-rapl:1").mkdir()
    assert rapl_meters(tmp_path) == []
    assert rapl_meters(tmp_path / "missing") == []


class FakeNvml:
    """A card that has drawn 1.5 J since its driver was loaded."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, tells: bool = True) -> None:
        self._tells = tells

    def nvmlInit(self) -> None:  # noqa: N802 - its real name
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:  # noqa: N802
        assert card == "GPU-12"
        if not self._tells:
            raise self.NVMLError
        return 1500


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_card_is_asked_by_the_identity_that_torch_knows(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", FakeNvml())
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: type("", (), {"uuid": "12"}))
    (meter,) = meters_of(device)
    assert isinstance(meter, Meter)
    assert (meter.source, meter.read_j()) == ("NVML", 1.5)


def test_a_card_that_keeps_silent_has_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", FakeNvml(tells=False))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: type("", (), {"uuid": "12"}))
    assert meters_of("cuda") == []
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    assert meters_of("cuda") == []
