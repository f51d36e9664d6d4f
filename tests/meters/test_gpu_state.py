"""What a board says of itself, through a driver that answers some questions and refuses others."""

from types import SimpleNamespace

import pytest

from frugalbench.meters import gpu_state
from frugalbench.meters.gpu_state import Board, Pulse, describe, near_cores, pulse


class Driver:
    """Answers like pynvml; ``refused`` functions raise."""

    answers = {
        "nvmlDeviceGetName": "H100",
        "nvmlDeviceGetEnforcedPowerLimit": 650_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
        "nvmlDeviceGetMigMode": [0, 0],
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30),
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetComputeMode": 3,
        "nvmlDeviceGetMPSComputeRunningProcesses": [],
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=7)],
        "nvmlDeviceGetTemperature": 44,
        "nvmlDeviceGetCpuAffinity": [0b1100, 0, 1],
    }

    def __init__(self, *refused):
        self.refused = refused

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.159.04"

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        return number

    def nvmlDeviceGetClockInfo(self, _board, kind):  # noqa: N802
        return {1: 1410, 2: 2619}[kind]

    def nvmlDeviceGetMaxClockInfo(self, _board, kind):  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def __getattr__(self, name):
        if name in self.refused or name not in self.answers:
            raise RuntimeError("Not Supported")
        return lambda *_: self.answers[name]


FACTS = {"cuda_version": 13000, "major": 9, "minor": 0, "multiprocessors": 132, "l2_bytes": 52_428_800}


def test_a_board_tells_what_it_is_and_how_it_is_set():
    assert describe(Driver(), 0, FACTS) == Board(
        name="H100", driver="580.159.04", cuda_version="13.0", compute_capability="9.0", multiprocessors=132,
        memory_bytes=80 * 2**30, l2_bytes=52_428_800, power_limit_w=650.0, default_power_limit_w=700.0,
        most_clock_hz=1.98e9, most_memory_clock_hz=2.619e9, persistence=True, compute_mode="exclusive process",
        mig=False, mps=False, foreign_processes=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("refused", "unknown"),
    [
        ("nvmlDeviceGetMigMode", "mig"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w"),
        ("nvmlDeviceGetMemoryInfo", "memory_bytes"),
        ("nvmlDeviceGetComputeMode", "compute_mode"),
        ("nvmlDeviceGetComputeRunningProcesses", "foreign_processes"),
    ],
)
def test_a_question_that_the_driver_refuses_leaves_one_thing_unknown(refused, unknown):
    whole, found = describe(Driver(), 0, FACTS), describe(Driver(refused), 0, FACTS)
    differing = [name for name in whole.__dataclass_fields__ if getattr(whole, name) != getattr(found, name)]
    assert differing == [unknown] and getattr(found, unknown) is None


def test_without_the_cuda_driver_nvml_still_tells_the_rest():
    found = describe(Driver(), 0, {})
    assert (found.l2_bytes, found.compute_capability, found.cuda_version) == (None, None, None)
    assert found.power_limit_w == 650.0


def test_the_pulse_is_clocks_and_heat():
    assert pulse(Driver(), 0) == Pulse(clock_hz=1.41e9, memory_clock_hz=2.619e9, temperature_c=44.0)
    assert pulse(Driver("nvmlDeviceGetTemperature"), 0).temperature_c is None


@pytest.mark.parametrize(("usable", "near"), [({1, 2, 3, 4}, {2, 3}), ({2, 128, 200}, {2, 128}), ({0, 1}, {0, 1})])
def test_a_worker_stays_on_the_cores_next_to_its_board(monkeypatch, usable, near):
    monkeypatch.setattr(gpu_state.nvml, "_load", Driver)
    monkeypatch.setattr(gpu_state.nvml, "visible_boards", lambda _driver: [0])
    assert near_cores("cuda", frozenset(usable)) == near
    assert near_cores("cpu", frozenset(usable)) == usable


def test_no_board_is_asked_for_where_there_is_no_device_node(monkeypatch):
    monkeypatch.setattr(gpu_state.nvml, "device_node", lambda: None)
    gpu_state.boards.cache_clear()
    assert gpu_state.boards() == ()
    gpu_state.boards.cache_clear()


def test_a_machine_without_the_cuda_driver_answers_nothing():
    assert gpu_state.ask_driver() == [] or "l2_bytes" in gpu_state.ask_driver()[0]
