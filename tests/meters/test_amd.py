"""amdsmi through a stand-in package that a child process imports in its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PRELUDE = """
import json, os
from pathlib import Path
import frugalbench.meters as meters
from frugalbench.meters import amd
FILE = Path(os.environ["FAKE_AMDSMI"])
NOW = [0.0]
def change(**answers): FILE.write_text(json.dumps({**json.loads(FILE.read_text()), **answers}))
def energy(*steps): return [{"energy_accumulator": n, "counter_resolution": 15.3, "timestamp": 1} for n in steps]
def window(found, seconds, **after):
    opened = meters.Window(found, lambda: NOW[0])
    NOW[0] += seconds
    change(**after)
    return [[r.method, r.joule, r.error, str(r.tier)] for r in opened.close(1)]
"""
POWER = {"current_socket_power": 150, "average_socket_power": "N/A"}
BOARD = {
    "amdsmi_init": [None],
    "amdsmi_get_processor_handles": [1],
    "amdsmi_get_energy_count": [{"energy_accumulator": 10**9, "counter_resolution": 15.3, "timestamp": 1}],
    "amdsmi_get_power_info": [POWER],
    "amdsmi_get_gpu_compute_partition": ["SPX"],
}


@pytest.fixture
def child(tmp_path):
    """Runs code in a process that imports the stand-in; gives what it prints as JSON."""

    def run(code, environ=None, **answers):
        file = tmp_path / "answers.json"
        file.write_text(json.dumps(BOARD | answers))
        fakes = {"PYTHONPATH": str(HERE / "amd_stand_in"), "FAKE_AMDSMI": str(file), **(environ or {})}
        command = [sys.executable, "-c", PRELUDE + code]
        done = subprocess.run(command, env=os.environ | fakes, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_counter_and_power_agree(child):
    used_j, steps = 300.0, int(300e6 / 15.3)
    counter, power = child(f"""
found = amd.discover(clock=lambda: NOW[0])
print(json.dumps(window(found, 2.0, amdsmi_get_energy_count=energy(10**9 + {steps}))))""")
    assert counter == ["amdsmi energy accumulator", pytest.approx(used_j, rel=1e-6), None, "measured"]
    assert power == ["amdsmi socket power, integrated", pytest.approx(300.0), None, "measured"]


def test_the_name_of_the_counter_before_rocm_6_1(child):
    old = [{"power": 1000, "counter_resolution": 15.3, "timestamp": 1}]
    joule = child("import amdsmi; print(json.dumps(amd.energy_j(amdsmi, 0, 0)))", amdsmi_get_energy_count=old)
    assert joule == pytest.approx(1000 * 15.3e-6)


def test_a_counter_that_stops_or_goes_back_poisons_its_window(child):
    lost = {"error": "AMDSMI_STATUS_BUSY"}
    back, stopped = child(f"""
counter = amd.discover(clock=lambda: NOW[0])[:1]
back = window(counter, 1.0, amdsmi_get_energy_count=energy(5))
change(amdsmi_get_energy_count=energy(10**9))
print(json.dumps([back, window(counter, 1.0, amdsmi_get_energy_count=[{lost!r}])]))""")
    assert back[0][1] is None and "went back" in back[0][2]
    assert stopped[0][1] is None and "AMDSMI_STATUS_BUSY" in stopped[0][2]


def test_a_board_without_power_has_its_counter_only(child):
    names = child(
        "print(json.dumps([m.name for m in meters.pick(meters.MeterSettings(kind='amdsmi', device='cuda'))]))",
        amdsmi_get_power_info=[{"current_socket_power": "N/A", "average_socket_power": "N/A"}],
    )
    assert names == ["amdsmi energy gpu0"]


@pytest.mark.parametrize(("partition", "ok"), [("SPX", True), ("N/A", True), ("CPX", False), ("DPX", False)])
def test_a_split_board_is_refused_with_the_reason(child, partition, ok):
    answer = child(
        "a = amd.probe(); print(json.dumps([a.ok, a.detail, a.remedy]))", amdsmi_get_gpu_compute_partition=[partition]
    )
    assert answer[0] is ok
    assert ok or (partition in answer[1] and "SPX" in answer[2])


def test_boards_that_cannot_be_split_are_whole(child):
    ok = child("print(json.dumps(amd.probe().ok))", amdsmi_get_gpu_compute_partition=[{"error": "not supported"}])
    assert ok


def test_only_visible_boards_in_their_order(child):
    two = {
        name: [*BOARD[name], *BOARD[name]] for name in BOARD if name.startswith("amdsmi_get_") and "handles" not in name
    }
    code = "print(json.dumps([m.scope for m in amd.discover()]))"
    found = child(code, {"HIP_VISIBLE_DEVICES": "1"}, **two, amdsmi_get_processor_handles=[2])
    assert found == ["gpu-board", "gpu-board"]
    found = child(code, **two, amdsmi_get_processor_handles=[2])
    assert found == ["gpu-board", "gpu-board", "gpu-board-1", "gpu-board-1"]


def test_no_driver_no_meter(child):
    ok, detail, remedy = child(
        "a = amd.probe(); print(json.dumps([a.ok, a.detail, a.remedy]))", amdsmi_init=[{"error": "no driver"}]
    )
    assert not ok and "no driver" in detail and "render" in remedy


def test_without_the_package_the_command_that_installs_it():
    code = "from frugalbench.meters import amd; a = amd.probe(); print(a.ok, a.remedy, amd.discover())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.startswith("True"):
        pytest.skip("amdsmi is installed")
    assert "frugalbench[amd]" in done.stdout and done.stdout.strip().endswith("[]")
