"""Batteries as a tree of files. Made up, not recorded."""

import dataclasses
from pathlib import Path

import pytest

from frugalbench.meters import MeterError, Window, battery


def supply(root: Path, name: str, **files: object) -> Path:
    path = root / name
    path.mkdir(parents=True)
    for file, text in {"type": "Battery", "status": "Discharging", **files}.items():
        (path / file).write_text(f"{text}\n")
    return path


def watts(root: Path) -> float:
    return battery.discharge_w(battery.batteries(root))


def test_power_or_current_times_voltage_whatever_the_sign(tmp_path):
    supply(tmp_path, "AC", type="Mains")
    supply(tmp_path, "BAT0", power_now=12_500_000)
    supply(tmp_path, "BAT1", current_now=-1_000_000, voltage_now=11_000_000)
    supply(tmp_path, "hid-mouse", scope="Device", power_now=1_000_000)
    assert watts(tmp_path) == pytest.approx(12.5 + 11.0)


@pytest.mark.parametrize("status", ["Charging", "Full", "Unknown", "Not charging"])
def test_only_while_discharging(tmp_path, status):
    supply(tmp_path, "BAT0", power_now=12_500_000, status=status)
    with pytest.raises(MeterError, match=status):
        watts(tmp_path)
    answer = battery.probe(tmp_path)
    assert not answer and "unplug" in answer.remedy


def test_a_second_battery_may_rest_but_not_charge(tmp_path):
    supply(tmp_path, "BAT0", power_now=10_000_000)
    second = supply(tmp_path, "BAT1", power_now=4_000_000, status="Not charging")
    assert watts(tmp_path) == pytest.approx(10.0)
    (second / "status").write_text("Charging")
    with pytest.raises(MeterError, match="Charging"):
        watts(tmp_path)


def test_a_charger_that_is_plugged_in_poisons_the_window(tmp_path):
    path = supply(tmp_path, "BAT0", power_now=10_000_000)
    now = [0.0]
    (meter,) = battery.discover(tmp_path)
    meter = dataclasses.replace(meter, clock=lambda: now[0])
    window = Window([meter], meter.clock)
    now[0] = 3.0
    (path / "status").write_text("Charging")
    window.sample()
    (path / "status").write_text("Discharging")
    (reading,) = window.close(1)
    assert reading.joule is None and "Charging" in reading.error
    window = Window([meter], meter.clock)
    now[0] = 5.0
    assert window.close(1)[0].joule == pytest.approx(20.0)


def test_no_battery_no_meter(tmp_path):
    assert battery.discover(tmp_path / "none") == []
    assert battery.probe(tmp_path).detail == "no battery"


def test_a_slow_gauge_by_config(tmp_path):
    supply(tmp_path, "BAT0", power_now=1)
    assert [m.update_period_s for m in battery.discover(tmp_path, 8.0)] == [8.0]
