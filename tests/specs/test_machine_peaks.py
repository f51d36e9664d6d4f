"""The peaks as a workload: costs by formula, and a check that catches a kernel that does less than it says."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frugalbench.backends import native
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import machine_peaks as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import machine_peaks as workload
from frugalbench.workloads.base import Context

MACHINE = SimpleNamespace(logical_cores=2, last_level_cache_bytes=32 * 2**20)
SMALL = {"fma_per_thread": 384 * 10, "mac_per_thread": 1024 * 10, "buffer_mib": 3}
CONTEXT = Context(seed=1, threads=2, device="cpu", cache_dir=Path(), scratch_dir=Path())


def expand(device="cpu", threads=2, **options):
    return spec.expand(Settings("machine_peaks", device, threads, 1, options), MACHINE)


def arms():
    return expand(**SMALL).comparisons[0].arms


def error_of(arm):
    """As the engine has it: largest absolute error over the reference's root mean square."""
    case = arm.cases[0]
    bound = workload.load(arm, CONTEXT).bind(case)
    expected = workload.reference(case, CONTEXT)
    found = bound.output(0)
    assert found.keys() == expected.keys()
    return max(
        np.abs(found[name] - expected[name][0]).max() / np.sqrt(np.mean(np.square(expected[name][0]))) for name in found
    )


@pytest.fixture(params=[False, True], ids=["floats", "bf16"])
def multiplies(request, monkeypatch):
    monkeypatch.setattr(spec, "multiplies_bf16", lambda _flags: request.param)
    return request.param


def test_one_comparison_of_four_peaks_and_of_bfloat16_where_it_is_multiplied(multiplies):
    (comparison,) = expand().comparisons
    assert [arm.id for arm in comparison.arms] == [
        "fp32_flop_per_s",
        *(["bf16_flop_per_s"] if multiplies else []),
        "int8_op_per_s",
        "read_bytes_per_s",
        "copy_bytes_per_s",
    ]
    assert len({arm.cases[0].id for arm in comparison.arms}) == 4 + multiplies
    for arm in comparison.arms:
        (case,) = arm.cases
        assert arm.imports == () and case.variant == arm.id
        assert (case.regime, case.backend, case.cost.token) == ("peak", "native", 0)


def test_costs_follow_from_the_sizes(multiplies):
    fp32, *bf16, int8, read, copy = (arm.cases[0].cost for arm in expand(threads=3, **SMALL).comparisons[0].arms)
    assert (fp32.flop, fp32.op, fp32.traffic_bytes) == (2 * 3 * 3840, 0, 0)
    assert [(cost.flop, cost.op) for cost in bf16] == [(2 * 3 * 2 * 3840, 0)] * multiplies
    assert (int8.op, int8.flop) == (2 * 3 * 10240, 0)
    assert (read.traffic_bytes, copy.traffic_bytes) == (3 * 2**20, 6 * 2**20)


@pytest.mark.parametrize(("cache_mib", "buffer_mib"), [(1, 64), (32, 128), (33, 132), (1024, 512)])
def test_buffers_exceed_the_cache_up_to_a_cap(cache_mib, buffer_mib):
    assert spec.buffer_mib(cache_mib * 2**20) == buffer_mib


@pytest.mark.parametrize(("options", "problem"), [({"fma_per_thread": 100}, "384"), ({"bufer_mib": 1}, "buffer_mib")])
def test_bad_options(options, problem):
    with pytest.raises(FrugalbenchError, match=problem):
        expand(**options)


def on_cuda(**options):
    machine = SimpleNamespace(
        logical_cores=2,
        last_level_cache_bytes=2**25,
        gpu_l2_bytes=50 * 2**20,
        gpu_memory_bytes=80 * 2**30,
        has_cuda=lambda: True,
        installed=lambda _: "1.0",
    )
    return spec.expand(Settings("machine_peaks", "cuda", 2, 1, options), machine)


def test_without_a_compiler_each_peak_is_skipped_with_the_command(monkeypatch):
    monkeypatch.setattr(spec.native_build, "find_compiler", lambda: None)
    found = expand()
    assert not found.comparisons and len(found.skipped) >= 4
    assert all("apt-get install g++" in skip.reason for skip in found.skipped)


def test_a_device_has_a_peak_for_each_type_of_product_and_for_memory():
    (comparison,) = on_cuda().comparisons
    cases = {arm.cases[0].variant: arm.cases[0] for arm in comparison.arms}
    assert list(cases) == [*spec.CUDA_PRODUCTS, "read_bytes_per_s", "copy_bytes_per_s"]
    assert {case.device for case in cases.values()} == {"cuda"}
    assert len({case.id for case in cases.values()}) == 8
    assert (cases["bf16_flop_per_s"].cost.flop, cases["int8_op_per_s"].cost.op) == (2 * 8192**3, 2 * 8192**3)
    assert cases["int8_op_per_s"].cost.flop == 0
    assert cases["copy_bytes_per_s"].cost.traffic_bytes == 2 * cases["read_bytes_per_s"].cost.traffic_bytes == 2**32


@pytest.mark.parametrize(
    ("l2_mib", "memory_gib", "size_mib"), [(50, 80, 2048), (4, 8, 1024), (0, None, 2048), (96, 2, 384), (2, 1, 256)]
)
def test_a_devices_buffers_exceed_its_cache_and_fit_its_memory(l2_mib, memory_gib, size_mib):
    assert spec.cuda_buffer_mib(l2_mib * 2**20, memory_gib and memory_gib * 2**30) == size_mib


def test_without_a_device_or_torch_each_peak_is_skipped_with_its_reason():
    machine = SimpleNamespace(gpu_l2_bytes=0, gpu_memory_bytes=None, has_cuda=lambda: False, installed=lambda _: None)
    expansion = spec.expand(Settings("machine_peaks", "cuda", 2, 1, {}), machine)
    assert not expansion.comparisons and len(expansion.skipped) == 8
    assert "no NVIDIA device" in expansion.skipped[0].reason
    machine.has_cuda = lambda: True
    assert "pip install torch" in spec.expand(Settings("machine_peaks", "cuda", 2, 1, {}), machine).skipped[0].reason


def device_error_of(arm, spoil=None):
    """As :func:`error_of`, a device's arm on the CPU, where torch multiplies the same types."""
    machine_peaks_cuda = pytest.importorskip("frugalbench.workloads.machine_peaks_cuda")
    case = arm.cases[0]
    peak = machine_peaks_cuda.CudaPeak(arm, CONTEXT)
    if spoil:
        spoil(peak)
    expected, found = machine_peaks_cuda.reference(case, CONTEXT), peak.bind(case).output(0)
    assert found.keys() == expected.keys()
    return max(
        np.abs(found[name] - expected[name][0]).max() / np.sqrt(np.mean(np.square(expected[name][0]))) for name in found
    )


DEVICE_ARMS = [
    pytest.param(arm, id=arm.cases[0].variant) for arm in on_cuda(matrix=128, buffer_mib=3).comparisons[0].arms
]


@pytest.mark.parametrize("arm", DEVICE_ARMS)
def test_a_devices_peak_is_checked_against_its_definition(arm):
    assert device_error_of(arm) <= arm.cases[0].tolerance


@pytest.mark.parametrize("arm", DEVICE_ARMS)
def test_a_devices_peak_that_skips_work_is_caught(arm):
    def spoil(peak):
        import torch

        call, checked = peak._call, peak._output
        if "matrix" in arm.cases[0].params:
            peak._output = lambda: {"rows": 0 * checked()["rows"]}
        elif arm.cases[0].variant == "read_bytes_per_s":
            peak._output = lambda: {"checksum": workload.checksum_halves(int(call.__self__[:-1].sum()) % 2**64)}
        else:
            part = torch.ones_like(call.args[0])
            part[:-1] = call.args[0][:-1]
            peak._output = lambda: workload.copied(part.numpy().view(np.uint64))

    assert device_error_of(arm, spoil) > arm.cases[0].tolerance


@pytest.mark.parametrize("arm", arms(), ids=lambda arm: arm.id)
def test_the_kernel_agrees_with_the_closed_form(arm):
    assert error_of(arm) == 0.0


def test_buffers_hold_no_zeros_and_no_repeated_block():
    words = native.aligned(3 * 2**20)
    workload.fill(words, seed=5)
    assert words.all() and len(np.unique(words)) > 0.99 * words.size


def skip_work(name):
    """A kernel that does all but the last unit of its work."""
    honest = getattr(native.Peaks, name)
    shorter = {
        "fma_fp32": lambda self, threads, n: honest(self, threads, n - 384),
        "mac_bf16": lambda self, threads, n: honest(self, threads, n - 384),
        "mac_int8": lambda self, threads, n: honest(self, threads, n - 1024),
        "read": lambda self, threads, data: honest(self, threads, data[:-8]),
        "copy": lambda self, threads, to, source: honest(self, threads, to[:-8], source[:-8]),
    }
    return shorter[name]


KERNELS = {
    "fp32_flop_per_s": "fma_fp32",
    "bf16_flop_per_s": "mac_bf16",
    "int8_op_per_s": "mac_int8",
    "read_bytes_per_s": "read",
    "copy_bytes_per_s": "copy",
}


@pytest.mark.parametrize(
    ("arm", "name"),
    [(arm, KERNELS[arm.id]) for arm in arms()],
    ids=lambda value: getattr(value, "id", value),
)
def test_a_kernel_that_skips_work_is_caught(arm, name, monkeypatch):
    monkeypatch.setattr(native.Peaks, name, skip_work(name))
    assert error_of(arm) > arm.cases[0].tolerance


def test_a_copy_that_only_says_so_is_caught(monkeypatch):
    monkeypatch.setattr(native.Peaks, "copy", lambda _self, _threads, _to, source: int(source.sum(dtype=np.uint64)))
    assert error_of(arms()[-1]) > spec.TOLERANCE


def test_what_ran_is_recorded():
    arm = arms()[0]
    loaded = workload.load(arm, CONTEXT)
    bound = loaded.bind(arm.cases[0])
    assert bound.details["isa"] in {"portable", "avx2", "avx512", "neon"} and bound.details["threads"] == 2
    assert loaded.artefacts[0].build_s > 0 and loaded.artefacts[0].size_bytes > 0
