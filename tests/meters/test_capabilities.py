"""What doctor says, and that a stuck or crashing probe is a result."""

import os
import subprocess
import sys

import pytest

from frugalbench.machine import Machine
from frugalbench.meters import KINDS
from frugalbench.meters import capabilities as module
from frugalbench.meters.capabilities import DeepProbe, capabilities, deep_probes
from frugalbench.run.transport import check_platform
from frugalbench.schema import FrugalbenchError


def test_every_no_says_what_is_missing():
    for item in capabilities(Machine.detect()):
        assert item.what and item.detail
    by_name = {item.what: item for item in capabilities(Machine.detect())}
    assert by_name["numpy" if "numpy" in by_name else "torch"].can
    assert "C++ compiler" in by_name and "GPU energy (NVML)" in by_name


def test_another_system_is_told_and_reads_stored_runs(monkeypatch):
    """macOS knows neither pidfd nor affinity: `doctor` says so instead of failing."""
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(module, "_networks", lambda: module.Capability("networks", False, "another question"))
    first = capabilities(Machine.detect())[0]
    assert first.what == "measuring" and not first.can and "Linux 5.3" in first.detail and "Linux" in first.remedy
    with pytest.raises(FrugalbenchError, match=r"Linux 5\.3"):
        check_platform()


def test_each_kind_of_meter_has_its_line_and_what_gets_it():
    by_name = {item.what: item for item in capabilities(Machine.detect())}
    for kind in KINDS.values():
        assert by_name[kind.what].can or by_name[kind.what].remedy


def test_looking_imports_no_runtime():
    code = (
        "import sys; from frugalbench.machine import Machine, capabilities; capabilities(Machine.detect());"
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnxruntime', 'numpy', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_package_comes_with_its_command(monkeypatch):
    monkeypatch.setattr(Machine, "installed", lambda _self, _package: None)
    by_name = {item.what: item for item in capabilities(Machine.detect())}
    assert not by_name["torch"].can and by_name["torch"].remedy == "pip install torch"


def test_deep_probes_survive_what_they_start():
    results = deep_probes(
        [
            DeepProbe("good", "print('noise'); print('42 things')"),
            DeepProbe("raises", "raise ValueError('no such thing')"),
            DeepProbe("dies", "import os; os.abort()"),
            DeepProbe("hangs", "import time; time.sleep(60)", limit_s=0.5),
        ]
    )
    good, raises, dies, hangs = results
    assert good.ok and good.detail == "42 things"
    assert not raises.ok and raises.detail == "ValueError: no such thing"
    assert not dies.ok and "signal 6" in dies.detail
    assert not hangs.ok and "timed out" in hangs.detail and hangs.time_s < 5


def test_providers_of_the_installed_build_and_how_to_get_the_others(monkeypatch):
    monkeypatch.setattr(module, "_flavours", lambda: ["onnxruntime-gpu 1.31.1"])
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    found = module._providers()
    assert found.can
    assert found.detail.startswith("cpu, cuda, tensorrt;")
    assert "pip install onnxruntime-cann" in found.remedy
    assert "onnxruntime-directml" not in found.remedy
    assert "pip install onnxruntime-gpu" not in found.remedy


def test_no_build_has_no_providers(monkeypatch):
    monkeypatch.setattr(module, "_flavours", list)
    assert not module._providers().can
