"""A silent way back to the CPU is caught, whichever way the runtime takes it. ONNX Runtime is faked at its boundary."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from frugalbench.backends import onnxruntime, onnxruntime_device, torch_eager
from frugalbench.backends.base import Options, Placement, content_key, locked, recall, remember
from frugalbench.providers import PROVIDERS
from frugalbench.workloads.base import SilentFallback

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FLOAT, INDEX = [{"float": [1, 2]}], [{"int64": [2]}]


def node(name, provider, tensors, op="MatMul", **more):
    facts = more | {"provider": provider, "op_name": op, "input_type_shape": tensors, "output_type_shape": tensors}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": facts}


class FakeRuntime:
    """Enough of the package ``onnxruntime``: opens sessions, writes the profile of a run."""

    def __init__(self, events, available=(CUDA, CPU), opens=None, refuses_strict=False, cannot_open=False):
        self.events, self.available, self.opens, self.refuses = events, available, opens, refuses_strict
        self.cannot_open = cannot_open
        self.sessions = []
        self.__file__ = "/nowhere/__init__.py"

    def get_available_providers(self):
        return list(self.available)

    def SessionOptions(self):  # noqa: N802
        entries = {}
        return SimpleNamespace(entries=entries, add_session_config_entry=entries.__setitem__, enable_profiling=False)

    def InferenceSession(self, _model, settings, providers, enable_fallback):  # noqa: N802
        assert enable_fallback == 0, "the Python layer would go back to the CPU by itself"
        if self.cannot_open:
            raise ValueError("create ExecutionProvider fail")
        if self.refuses and settings.entries:
            raise ValueError("This session contains graph nodes assigned to the CPU, but fallback has been disabled\nx")
        self.sessions.append(FakeSession(self, settings, providers))
        return self.sessions[-1]


class FakeSession:
    def __init__(self, runtime, settings, providers):
        self.runtime, self.settings = runtime, settings
        self.providers = [item if isinstance(item, str) else item[0] for item in providers]
        self.options = providers[0][1]

    def get_providers(self):
        return self.runtime.opens or self.providers

    def get_session_options(self):
        return self.settings

    def run(self, _names, feed):
        assert set(feed) == {"x"}

    def end_profiling(self):
        path = f"{self.settings.profile_file_prefix}.json"
        with open(path, "w") as out:  # noqa: PTH123
            json.dump([{"cat": "Session", "name": "run"}, *self.runtime.events], out)
        return path


def load(monkeypatch, tmp_path, runtime, device="cuda"):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", runtime)
    monkeypatch.setattr(onnxruntime_device, "stream_address", lambda: "4096")
    options = Options(threads=2, device=device, cache_dir=tmp_path, key="k", inputs=("x",), outputs=("y",))
    return onnxruntime.load(tmp_path / "m.onnx", options, [{"x": np.ones(2, np.float32)}])


def test_cuda_session_forbids_fallback(monkeypatch, tmp_path):
    runtime = FakeRuntime([node("a", CUDA, FLOAT), node("b", CUDA, FLOAT)])
    runnable = load(monkeypatch, tmp_path, runtime)
    final = runtime.sessions[-1]
    assert final.settings.entries == {"session.disable_cpu_ep_fallback": "1"}
    assert final.providers == [CUDA]
    assert not final.settings.enable_profiling
    assert (final.settings.intra_op_num_threads, final.settings.inter_op_num_threads) == (2, 1)
    assert runnable.placement().share_asked == 1.0


def test_provider_that_is_not_there(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="has no CUDAExecutionProvider: pip install onnxruntime-gpu"):
        load(monkeypatch, tmp_path, FakeRuntime([], available=(CPU,)))


def test_provider_listed_but_dropped_on_opening(monkeypatch, tmp_path):
    with pytest.raises(SilentFallback, match="opened CPUExecutionProvider"):
        load(monkeypatch, tmp_path, FakeRuntime([node("a", CPU, FLOAT)], opens=[CPU]))


def test_compute_on_the_cpu_is_a_fallback(monkeypatch, tmp_path):
    runtime = FakeRuntime([node("a", CUDA, FLOAT), node("b", CPU, FLOAT)], refuses_strict=True)
    with pytest.raises(SilentFallback, match="1 of 2 compute nodes did not run there, for one b on CPUExecution"):
        load(monkeypatch, tmp_path, runtime)


def test_shape_arithmetic_on_the_cpu_is_none(monkeypatch, tmp_path):
    runtime = FakeRuntime([node("a", CUDA, FLOAT), node("s", CPU, INDEX, "Shape")], refuses_strict=True)
    runnable = load(monkeypatch, tmp_path, runtime)
    assert runnable.placement().ran_as_asked
    assert runnable.placement().share_asked == 0.5
    assert runnable.details["fallback_disabled"] is False
    assert runnable.placement().histogram() == {CUDA: {"MatMul": 1}, CPU: {"Shape": 1}}


def test_a_graph_of_whole_numbers_alone_is_all_compute(monkeypatch, tmp_path):
    events = [node("a", CUDA, INDEX, "Add"), node("b", CUDA, INDEX, "Mul")]
    assert load(monkeypatch, tmp_path, FakeRuntime(events)).placement().ran_as_asked
    with pytest.raises(SilentFallback, match="1 of 2 compute nodes did not run there, for one c on CPUExecution"):
        load(monkeypatch, tmp_path, FakeRuntime([events[0], node("c", CPU, INDEX, "Add")], refuses_strict=True))


def test_provider_that_runs_no_node(monkeypatch, tmp_path):
    with pytest.raises(SilentFallback, match="every node"):
        load(monkeypatch, tmp_path, FakeRuntime([]))


def test_broken_file_is_no_fallback(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    options = Options(threads=1, device="cpu", cache_dir=tmp_path, key="k", inputs=("x",), outputs=("y",))
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot load the model") as caught:
        onnxruntime.load(tmp_path / "m.onnx", options, [{"x": np.ones(2, np.float32)}])
    assert not isinstance(caught.value, SilentFallback)


def test_torch_without_cuda(monkeypatch, tmp_path):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = Options(threads=1, device="cuda", cache_dir=tmp_path, key="k", inputs=("x",), outputs=("y",))
    with pytest.raises(RuntimeError, match="no CUDA device"):
        torch_eager.load(torch.nn.Identity(), options, [{"x": np.ones(2, np.float32)}])


def test_placement_without_nodes_never_counts_as_asked():
    assert not Placement("cpu", {}).ran_as_asked
    assert Placement("cpu", {}).share_asked == 0.0


def test_memory_of_a_build(tmp_path):
    path = tmp_path / "deep" / "facts.json"
    assert recall(path) is None
    with locked(path.with_suffix(".lock")):
        remember(path, {"build_s": 1.5})
    assert recall(path) == {"build_s": 1.5}
    path.write_text('{"build_s": 1')
    assert recall(path) is None


def test_content_key_ignores_order_and_sees_values():
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})


@pytest.mark.parametrize(
    ("device", "provider", "wanted", "ends"),
    [
        ("cann", "CANNExecutionProvider", "libascendcl.so", "No such file or directory$"),
        ("cuda", CUDA, "libcublas.so.13", r"; this build is for CUDA 13\.0, which a torch for the same CUDA brings$"),
    ],
)
def test_provider_whose_library_does_not_load_is_named(monkeypatch, tmp_path, device, provider, wanted, ends):
    runtime = FakeRuntime([], available=(provider, CPU), cannot_open=True)
    runtime.cuda_version = "13.0"
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / f"libonnxruntime_providers_{device}.so"
    library.write_bytes(b"")
    runtime.__file__ = str(tmp_path / "__init__.py")

    def missing(_path, **_how):
        raise OSError(f"{wanted}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(onnxruntime.ctypes, "CDLL", missing)
    with pytest.raises(SilentFallback, match=f"lists {provider}, but cannot open it .*{wanted}.*{ends}"):
        load(monkeypatch, tmp_path, runtime, device)


@pytest.mark.parametrize(("device", "system"), [("dml", "Windows"), ("coreml", "Darwin")])
def test_provider_of_another_system(monkeypatch, tmp_path, device, system):
    monkeypatch.setattr(onnxruntime.platform, "system", lambda: "Linux")
    with pytest.raises(RuntimeError, match=f"has no .*ExecutionProvider: its build exists for {system} only"):
        load(monkeypatch, tmp_path, FakeRuntime([], available=(CPU,)), device)


@pytest.mark.parametrize("device", [name for name in PROVIDERS if name != "cpu"])
def test_every_provider_is_opened_strictly_with_its_options(monkeypatch, tmp_path, device):
    provider = PROVIDERS[device]
    runtime = FakeRuntime([node("a", provider.provider, FLOAT)], available=(provider.provider, CPU))
    monkeypatch.setattr(onnxruntime.os, "environ", environment := {})
    runnable = load(monkeypatch, tmp_path, runtime, device)
    assert runnable.placement().ran_as_asked
    assert environment == dict(provider.environment)
    for session in runtime.sessions:
        assert session.settings.entries == {"session.disable_cpu_ep_fallback": "1"}
        assert session.providers == [provider.provider]
        assert not any("{" in value for value in session.options.values())
    if device == "openvino":
        assert runtime.sessions[0].options["num_of_threads"] == "2"


def test_copies_casts_and_time_are_counted(monkeypatch, tmp_path):
    events = [
        node("a", CUDA, FLOAT) | {"dur": 900},
        node("Memcpy_1", CUDA, FLOAT, "MemcpyToHost", output_size="4096") | {"dur": 50},
        node("InsertedPrecisionFreeCast_x", CUDA, FLOAT, "Cast") | {"dur": 10},
        node("own_cast", CUDA, FLOAT, "Cast") | {"dur": 10},
        node("s", CPU, INDEX, "Shape") | {"dur": 30},
    ]
    placement = load(monkeypatch, tmp_path, FakeRuntime(events, refuses_strict=True)).placement()
    assert placement.summary(model_nodes=7) == {
        "grain": "node",
        "model": 7,
        "executed": 5,
        "absorbed": 4,
        "inserted": {"MemcpyToHost": 1, "Cast": 1},
        "copied_bytes": 4096,
        "share_time_asked": pytest.approx(0.97),
    }


def test_inputs_in_host_memory_are_copied_to_a_device_and_counted(monkeypatch, tmp_path):
    web = PROVIDERS["webgpu"].provider
    runtime = FakeRuntime([node("a", web, FLOAT)], available=(web, CPU))
    assert load(monkeypatch, tmp_path, runtime, "webgpu").placement().copied_bytes == 2 * 4  # two fp32 values in


def test_nothing_is_said_about_nodes_that_were_split_or_not_told():
    split = Placement("cpu", {"a": "cpu", "b": "cpu"})
    assert split.summary(1)["absorbed"] is None
    assert Placement("cpu", {"all": "cpu"}, grain="graph").summary(9)["absorbed"] is None
    assert split.summary()["share_time_asked"] is None
