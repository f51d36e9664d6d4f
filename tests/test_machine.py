"""The machine, read from a made-up tree and from the real one."""

import dataclasses
import json
from pathlib import Path

import pytest

from frugalbench.machine import UNKNOWN_CACHE_BYTES, Machine, throttle_count
from frugalbench.specs.base import MachineView

CPUINFO = """processor\t: 0
model name\t: Fancy(R) CPU 9999X 16-Core Processor @ 3.00GHz
flags\t\t: fpu avx2 fma hypervisor avx512_vnni

processor\t: 1
model name\t: second
flags\t\t: fpu
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})
    cpu = "sys/devices/system/cpu/cpu"
    files = {"proc/cpuinfo": CPUINFO, "proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB"}
    for core in (0, 1):
        files |= {
            f"{cpu}{core}/topology/physical_package_id": "0",
            f"{cpu}{core}/topology/core_id": "0",
            f"{cpu}{core}/cache/index0/level": "1",
            f"{cpu}{core}/cache/index0/type": "Data",
            f"{cpu}{core}/cache/index0/size": "48K",
            f"{cpu}{core}/cache/index0/shared_cpu_list": "0-1",
            f"{cpu}{core}/cache/index1/level": "1",
            f"{cpu}{core}/cache/index1/type": "Instruction",
            f"{cpu}{core}/cache/index1/size": "32K",
            f"{cpu}{core}/cache/index3/level": "3",
            f"{cpu}{core}/cache/index3/type": "Unified",
            f"{cpu}{core}/cache/index3/size": "8M",
            f"{cpu}{core}/cache/index3/shared_cpu_list": str(core),
            f"{cpu}{core}/thermal_throttle/core_throttle_count": "3",
        }
    files |= {
        "proc/self/cgroup": "0::/jobs/one",
        "sys/fs/cgroup/jobs/memory.max": "4294967296",
        "sys/fs/cgroup/jobs/one/memory.max": "max",
        "sys/fs/cgroup/jobs/one/cpu.max": "150000 100000",
    }
    return write(tmp_path, files)


def test_a_made_up_machine(root):
    machine = Machine.detect(root)
    assert machine.name.startswith("Fancy 9999X, 2 cores, 16 GiB")
    assert (machine.logical_cores, machine.physical_cores) == (2, 1)
    assert machine.flags == ("avx2", "fma", "avx512_vnni")
    assert machine.caches == {"L1d": 48 * 1024, "L3": 16 * 2**20}  # one shared L1, an L3 each
    assert machine.last_level_cache_bytes == 16 * 2**20
    assert machine.hypervisor == "unnamed"
    assert (machine.memory_limit_bytes, machine.cpu_limit_cores) == (2**32, 1.5)
    assert throttle_count(root) == 6


def test_a_machine_that_tells_nothing(tmp_path):
    machine = Machine.detect(tmp_path)
    assert machine.caches == {} and machine.last_level_cache_bytes == UNKNOWN_CACHE_BYTES
    assert machine.memory_bytes is None and machine.physical_cores is None
    assert machine.describe()["last_level_cache_bytes"] is None
    assert throttle_count(tmp_path) is None


def test_fingerprint_follows_what_matters(root):
    machine = Machine.detect(root)
    assert machine.fingerprint == Machine.detect(root).fingerprint

    def after(**changes):
        return dataclasses.replace(machine, **changes).fingerprint

    assert after(memory_bytes=machine.memory_bytes - 4096) == machine.fingerprint
    assert after(python="3.99") == machine.fingerprint  # versions are in the manifest by themselves
    for change in (
        {"cpu_model": "other"},
        {"logical_cores": 4},
        {"flags": ("avx2",)},
        {"memory_bytes": 2**35},
        {"gpus": ("one",)},
        {"cpu_limit_cores": None},
        {"kernel": "1.0.0"},
    ):
        assert after(**change) != machine.fingerprint, change


def test_the_real_machine_serves_planning_and_the_manifest():
    machine: MachineView = Machine.detect()
    assert machine.logical_cores >= 1 and machine.last_level_cache_bytes > 0
    assert machine.installed("msgspec") and machine.installed("no-such-distribution") is None
    described = json.loads(json.dumps(Machine.detect().describe()))
    assert described["fingerprint"] == Machine.detect().fingerprint and described["name"]
