"""Sensors as a tree of files: which are taken for what, and what a bad one does. Made up, not recorded."""

from pathlib import Path

import pytest

from frugalbench.meters import MeterSettings, Window, hwmon, pick
from frugalbench.schema import NothingRunsHere


def chip(root: Path, folder: str, name: str, **files: object) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    for file, text in {"name": name, **files}.items():
        (path / file).write_text(f"{text}\n")
    return path


def found(root: Path) -> list[tuple[str, str, float]]:
    return [(meter.method, meter.scope, meter.update_period_s) for meter in hwmon.discover(root)]


def test_sockets_add_up_and_cores_are_left_out(tmp_path):
    path = chip(
        tmp_path, "hwmon2", "amd_energy",
        energy1_input=7, energy1_label="Ecore000", energy2_input=10_000_000, energy2_label="Esocket0",
        energy3_input=20_000_000, energy3_label="Esocket1",
    )  # fmt: skip
    assert found(tmp_path) == [("hwmon amd_energy hwmon2/energy2_input, hwmon2/energy3_input", "cpu-package", 0.001)]
    window = Window(hwmon.discover(tmp_path))
    (path / "energy2_input").write_text("11500000\n")
    (path / "energy3_input").write_text("20500000\n")
    assert window.close(1)[0].joule == pytest.approx(2.0)


def test_power_is_integrated_and_the_average_is_preferred(tmp_path):
    path = chip(
        tmp_path, "hwmon0", "power_meter",
        power1_input=1, power1_average=200_000_000, power1_average_interval=4000,
    )  # fmt: skip
    assert found(tmp_path) == [("hwmon power_meter hwmon0/power1_average, integrated", "machine", 4.0)]
    (meter,) = hwmon.discover(tmp_path)
    now = [0.0]
    object.__setattr__(meter, "clock", lambda: now[0])
    mark = meter.begin()
    (path / "power1_average").write_text("300000000\n")
    now[0] = 2.0
    assert meter.end(mark).joule == pytest.approx(500.0)


def test_known_drivers_by_their_labels(tmp_path):
    chip(tmp_path, "hwmon0", "amdgpu", power1_average=9_000_000, power1_label="PPT")
    chip(tmp_path, "hwmon1", "xe", energy1_input=1, energy1_label="card", energy2_input=1, energy2_label="pkg")
    chip(
        tmp_path,
        "hwmon2",
        "corsairpsu",
        power1_input=1,
        power1_label="power total",
        power2_input=1,
        power2_label="+12v",
    )
    chip(tmp_path, "hwmon3", "ina226", power1_input=5_000_000)
    chip(tmp_path, "hwmon4", "coretemp", temp1_input=40_000)
    assert [(method.split()[1], scope) for method, scope, _ in found(tmp_path)] == [
        ("xe", "gpu-board"),
        ("amdgpu", "gpu-board"),
        ("corsairpsu", "machine"),
    ]


def test_what_is_there_but_says_nothing_is_named(tmp_path):
    chip(tmp_path, "hwmon3", "ina226", power1_input=5_000_000)
    answer = hwmon.probe(tmp_path)
    assert not answer and "ina226" in answer.detail and "amd_energy" in answer.remedy
    assert not hwmon.probe(tmp_path / "none") and hwmon.discover(tmp_path / "none") == []


def test_an_unreadable_counter_comes_with_the_command_that_helps(tmp_path):
    path = chip(tmp_path, "hwmon0", "amd_energy", energy1_label="Esocket0", energy1_input=1)
    (path / "energy1_input").unlink()
    (path / "energy1_input").mkdir()  # unreadable for root too, unlike a permission bit
    with pytest.raises(NothingRunsHere, match=r"sudo chmod a\+r .*energy1_input"):
        pick(MeterSettings(kind="hwmon", hwmon_root=tmp_path))


@pytest.mark.parametrize(("after", "problem"), [("garbage", "cannot read"), ("5", "went back")])
def test_a_bad_count_poisons_its_window(tmp_path, after, problem):
    path = chip(tmp_path, "hwmon0", "amd_energy", energy1_label="Esocket0", energy1_input=1000)
    window = Window(hwmon.discover(tmp_path))
    (path / "energy1_input").write_text(after)
    (reading,) = window.close(1)
    assert reading.joule is None and problem in reading.error
