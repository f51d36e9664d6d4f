"""Operators on a stand-in device, really registered with torch. torch keeps one such device per process, so the
stand-ins run in processes of their own."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from frugalbench import native_build
from frugalbench.backends.foreign import Device, is_fallback

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(native_build.find_compiler() is None, reason="the stand-in device needs a C++ compiler"),
]
MODELS = ("transformer-block", "moe-ffn", "tiny-lm-backward", "tiny-lm-optimizer")
PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from frugalbench.specs import foreign_device as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import foreign_device as builder
from frugalbench.workloads.base import Context
from workloads.fake_machine import Machine

variant, models, folder, alter = json.loads(sys.argv[1])
options = {"variants": [variant], "models": models}
arm = spec.expand(Settings("foreign_device", "cpu", 2, 5, options), Machine()).comparisons[0].arms[0]
context = Context(5, 2, "cpu", Path(folder), Path(folder))
loaded = builder.load(arm, context)
found = {}
for case in (*arm.cases, None) if alter else arm.cases:
    place = case.shape if case else "altered"
    if case is None:
        case = arm.cases[0]
        library = torch.library.Library("aten", "IMPL")
        library.impl("silu", lambda x: x.sigmoid() * x * 1.01, "PrivateUse1")
    bound = loaded.bind(case)
    right, ours = builder.reference(case, context), bound.output(0)
    error = max(np.abs(ours[n] - right[n][0]).max() / np.sqrt((right[n] ** 2).mean()) for n in right)
    if not bound.capped:
        bound.call(0)
    found[place] = {
        "facts": {name: fact.value for name, fact in bound.facts.items()}, "details": bound.details,
        "capped": bound.capped, "error": float(error), "tolerance": case.tolerance,
    }
x = torch.ones(3, 3).to("standin")
found["apart"] = {"device": x.device.type}
try:
    found["apart"]["mixed"] = str(torch.mm(x, torch.ones(3, 3)))
except RuntimeError as problem:
    found["apart"]["mixed"] = str(problem).splitlines()[0]
print(json.dumps(found))
"""


def measure(folder, variant, models=MODELS, alter=False):
    job = json.dumps([variant, list(models), str(folder), alter])
    tests = str(Path(__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {tests!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program, job], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("core"), "stand-in-core", alter=True)


@pytest.fixture(scope="module")
def minimal(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("minimal"), "stand-in-minimal", MODELS[:1])


def test_answers_are_right_although_the_host_helps(core, minimal):
    for found in (*(core[model] for model in MODELS), minimal[MODELS[0]]):
        assert found["error"] < found["tolerance"]


def test_every_operator_has_one_outcome(core):
    for model in MODELS:
        facts, details = core[model]["facts"], core[model]["details"]
        parts = ("native", "decomposition", "fallback", "missing")
        assert facts["operators_used"] == sum(facts[f"operators_{part}"] for part in parts) > 5
        assert facts["operators_without_fallback"] == facts["operators_native"] + facts["operators_decomposition"]
        names = [name for part in parts for name in details["operators"][part]]
        assert len(names) == len(set(names)) == facts["operators_used"]


def test_products_run_on_the_device_and_what_is_not_core_falls_back(core):
    block = core["transformer-block"]["details"]
    assert {"aten::mm", "aten::bmm"} & set(block["operators"]["native"])
    assert "aten::transpose.int" in block["operators"]["decomposition"]
    assert "aten::silu" in block["operators"]["fallback"]
    copied = block["fallbacks"]["aten::silu.out"]
    assert copied["calls"] == 1 and copied["copied_bytes"] == 3 * 4 * 2 * 32 * 256  # input, and the output both ways


def test_the_required_operators_alone_leave_every_product_to_the_host(core, minimal):
    few, many = (found["transformer-block"]["facts"]["operators_fallback"] for found in (core, minimal))
    assert many > few
    assert "aten::mm.out" in minimal["transformer-block"]["details"]["fallbacks"]


def test_a_fallback_inside_a_composed_operator_is_found(core):
    assert "aten::_foreach_lerp_.Scalar" in core["tiny-lm-optimizer"]["details"]["operators"]["fallback"]
    assert "aten::lerp.Scalar_out" in core["tiny-lm-optimizer"]["details"]["fallbacks"]


def test_backward_is_seen_although_it_runs_on_a_thread_of_its_own(core):
    assert "aten::_softmax_backward_data" in core["tiny-lm-backward"]["details"]["operators"]["fallback"]


def test_what_even_the_fallback_refuses_is_missing_and_stops_the_timing(core):
    mixture = core["moe-ffn"]
    assert mixture["facts"]["operators_missing"] == len(mixture["details"]["operators"]["missing"])
    assert bool(mixture["facts"]["operators_missing"]) == ("lacks" in mixture["capped"])


def test_memory_of_the_processor_is_not_taken_for_the_devices(core):
    assert core["apart"]["device"] == "standin"
    assert "not on the stand-in device" in core["apart"]["mixed"] or "same device" in core["apart"]["mixed"]


def test_an_altered_kernel_shows_in_the_answer_and_a_kernel_more_in_the_census(core):
    found = core["altered"]
    assert found["error"] > found["tolerance"]
    assert "aten::silu" in found["details"]["operators"]["native"]


def test_an_adapters_warning_of_a_fallback_counts_at_once():
    device = Device("npu", "made up")
    with device.listen():
        warnings.warn("aten::x is not currently supported and will fall back to run on the CPU", stacklevel=1)
        warnings.warn("memory is low", stacklevel=1)
        assert device.fallbacks() == 1


def test_an_adapters_warning_of_a_fallback_is_understood():
    assert is_fallback("The operator 'aten::x' is not supported on this backend and will fall back to run on the CPU.")
    assert not is_fallback("Device memory is low")
