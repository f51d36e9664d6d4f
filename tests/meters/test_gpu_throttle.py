"""Which board is asked, and that a driver in trouble is no trouble of ours."""

import pytest

from frugalbench.meters import nvml
from frugalbench.meters.environment import void_reason
from frugalbench.meters.gpu_throttle import gpu_throttle_reasons, watch
from frugalbench.schema import Environment


def test_other_devices_are_not_asked():
    assert gpu_throttle_reasons("cpu") is None


def test_without_a_driver_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(nvml, "has_library", lambda: False)
    assert gpu_throttle_reasons("cuda") is None


@pytest.mark.parametrize(("device", "board"), [("cuda", 3), ("cuda:0", 3), ("cuda:1", 5)])
def test_the_reader_is_bound_to_the_board_behind_the_device(device, board):
    asked = []

    def read(driver, number):
        asked.append((driver, number))
        return ("hw_slowdown",)

    assert watch(device, read, "driver", [3, 5])() == ("hw_slowdown",)
    assert set(asked) == {("driver", board)}


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cuda:-1"])
def test_a_board_that_is_not_known_is_not_asked(device):
    assert watch(device, lambda *_: (), None, [3, 5]) is None


def test_a_driver_that_fails_is_left_alone_or_answers_none():
    answers = iter([(), None])

    def read(_driver, _board):
        answer = next(answers)
        if answer is None:
            raise RuntimeError("GPU is lost")
        return answer

    assert watch("cuda", read, None, [0])() is None
    assert watch("cuda", lambda *_: 1 / 0, None, [0]) is None


def test_every_reason_of_the_reader_is_either_heat_or_the_workloads_own():
    """The rule matches words; a renamed reason must not slip through."""
    spoils = {
        name: void_reason(Environment(wall_s=1.0, cpu_s=1.0, gpu_throttle=(name,)), 1, 1) is not None
        for name in nvml._THROTTLE_BITS.values()
    }
    assert spoils == {
        "sw_power_cap": False,
        "hw_slowdown": True,
        "sync_boost": False,
        "sw_thermal_slowdown": True,
        "hw_thermal_slowdown": True,
        "hw_power_brake_slowdown": True,
    }
