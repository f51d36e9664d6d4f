"""Stands in for the amdsmi package: answers from the JSON file that FAKE_AMDSMI names. Made up, not recorded.

Keys are names of functions; each holds the answer per board, or {"error": text}.
"""

import json
import os
from pathlib import Path


class AmdSmiLibraryException(Exception):
    """What the real package raises for an error code."""


def _answer(name, board=0):
    answers = json.loads(Path(os.environ["FAKE_AMDSMI"]).read_text())
    answer = answers[name][board] if name in answers else {"error": "AMDSMI_STATUS_NOT_SUPPORTED"}
    if isinstance(answer, dict) and "error" in answer:
        raise AmdSmiLibraryException(answer["error"])
    return answer


def amdsmi_init():
    _answer("amdsmi_init")


def amdsmi_get_processor_handles():
    return list(range(_answer("amdsmi_get_processor_handles")))


def amdsmi_get_energy_count(handle):
    return _answer("amdsmi_get_energy_count", handle)


def amdsmi_get_power_info(handle):
    return _answer("amdsmi_get_power_info", handle)


def amdsmi_get_gpu_compute_partition(handle):
    return _answer("amdsmi_get_gpu_compute_partition", handle)
