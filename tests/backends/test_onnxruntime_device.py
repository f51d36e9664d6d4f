"""ONNX Runtime on CUDA up to the package's boundary: what it is asked for, and that calls copy nothing."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from frugalbench.backends import onnxruntime, onnxruntime_device
from frugalbench.backends.base import Options

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ADDRESS = "4096"
NODE = {"cat": "Node", "name": "a", "args": {"provider": CUDA, "op_name": "MatMul", "input_type_shape": [{"float": 1}]}}
FEED = {"x": np.arange(3, dtype=np.float32)}


class FakeRunOptions:
    def __init__(self):
        self.entries = {}
        self.add_run_config_entry = self.entries.__setitem__


class FakeBinding:
    """An OrtValue is the numpy array itself; ``y`` is twice ``x``, written where the binding says."""

    def __init__(self):
        self.inputs, self.outputs = {}, {}
        self.bind_ortvalue_input = self.inputs.__setitem__
        self.bind_ortvalue_output = self.outputs.__setitem__
        self.clear_binding_outputs = self.outputs.clear

    def bind_output(self, name, memory):
        assert memory == "cuda"
        self.outputs[name] = None

    def get_outputs(self):
        return list(self.outputs.values())

    def copy_outputs_to_cpu(self):
        return [value.copy() for value in self.outputs.values()]


class FakeSession:
    def __init__(self, runtime, settings, options):
        self.runtime, self.settings, self.options = runtime, settings, options
        self.runs = []

    def get_providers(self):
        return [CUDA]

    def get_session_options(self):
        return self.settings

    def io_binding(self):
        return FakeBinding()

    def run(self, _names, feed):
        fed = self.settings.enable_profiling or "user_compute_stream" not in self.options
        assert fed, "a timed session is never fed from the host"
        return [2 * feed["x"]]

    def end_profiling(self):
        path = f"{self.settings.profile_file_prefix}.json"
        with open(path, "w") as out:  # noqa: PTH123
            json.dump([NODE], out)
        return path

    def run_with_iobinding(self, binding, settings):
        graph = settings.entries.get("gpu_graph_id")
        if graph not in (None, "-1"):
            assert binding.outputs["y"] is not None, "a recorded call needs a fixed place for its outputs"
            if self.runtime.cannot_record:
                raise ValueError("graph capture failed\nmore")
        self.runs.append(dict(settings.entries))
        if binding.outputs["y"] is None:
            binding.outputs["y"] = np.empty_like(binding.inputs["x"])
        binding.outputs["y"][:] = 2 * binding.inputs["x"]


class FakeRuntime:
    cuda_version = "13.0"
    RunOptions = FakeRunOptions
    OrtValue = SimpleNamespace(ortvalue_from_numpy=lambda value, memory, number: (memory, number) and value.copy())

    def __init__(self, cannot_record=False, refuses_graph=False):
        self.cannot_record, self.refuses_graph = cannot_record, refuses_graph
        self.sessions = []
        self.__file__ = "/nowhere/__init__.py"

    def get_available_providers(self):
        return [CUDA, CPU]

    def SessionOptions(self):  # noqa: N802
        return SimpleNamespace(add_session_config_entry=lambda *_: None, enable_profiling=False)

    def InferenceSession(self, _model, settings, providers, enable_fallback):  # noqa: N802
        assert enable_fallback == 0
        ((_, options),) = providers
        if self.refuses_graph and "enable_cuda_graph" in options:
            raise ValueError("This session cannot use the graph capture feature as requested by the user")
        self.sessions.append(FakeSession(self, settings, options))
        return self.sessions[-1]


@pytest.fixture
def load(monkeypatch, tmp_path):
    monkeypatch.setattr(onnxruntime_device, "stream_address", lambda: ADDRESS)
    monkeypatch.setattr(onnxruntime_device, "preload", lambda: None)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)

    def loaded(runtime, launch):
        monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
        options = Options(2, "cuda", tmp_path, "k", ("x",), ("y",), launch)
        return onnxruntime.load(tmp_path / "m.onnx", options, [FEED])

    return loaded


def test_an_eager_session_computes_on_the_shared_stream_and_does_not_wait(load):
    runnable = load(runtime := FakeRuntime(), "eager")
    final = runtime.sessions[-1]
    assert final.options == {"use_tf32": "0", "user_compute_stream": ADDRESS}
    prepared = runnable.prepare(FEED)
    for _ in range(3):
        outputs = runnable.run(prepared)
    assert final.runs == 3 * [{"disable_synchronize_execution_providers": "1"}]
    assert (runnable.fetch(outputs)["y"] == 2 * FEED["x"]).all()
    assert runnable.details["launch"] == "eager"
    assert runnable.details["inputs_on"] == "cuda"
    assert runnable.first_start.load_s > 0 and "from and to the host" in runnable.first_start.note


def test_every_input_has_a_graph_of_its_own(load):
    runnable = load(runtime := FakeRuntime(), "graph")
    final = runtime.sessions[-1]
    assert final.options["enable_cuda_graph"] == "1"
    assert runnable.details["launch"].startswith("CUDA graph of the provider")
    final.runs.clear()
    first, second = runnable.prepare(FEED), runnable.prepare({"x": FEED["x"] + 1})
    recorded = [run["gpu_graph_id"] for run in final.runs]
    assert recorded[0] == "-1"
    assert len(set(recorded)) == 3
    outputs = [runnable.fetch(runnable.run(prepared))["y"] for prepared in (first, second)]
    assert (outputs[0] == 2 * FEED["x"]).all()
    assert (outputs[1] == 2 * FEED["x"] + 2).all()
    assert len({run["gpu_graph_id"] for run in final.runs[-2:]}) == 2


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        (FakeRuntime(cannot_record=True), "eager: cannot be recorded: graph capture failed"),
        (
            FakeRuntime(refuses_graph=True),
            "eager: cannot be recorded: ONNX Runtime cannot load the model: This session",
        ),
    ],
)
def test_what_cannot_be_recorded_is_launched_one_by_one_and_says_so(load, runtime, reason):
    runnable = load(runtime, "graph")
    assert runnable.details["launch"].startswith(reason)
    assert "enable_cuda_graph" not in runtime.sessions[-1].options
    assert (runnable.fetch(runnable.run(runnable.prepare(FEED)))["y"] == 2 * FEED["x"]).all()


def test_the_profiled_session_neither_records_nor_shares_the_stream(load):
    load(runtime := FakeRuntime(), "graph")
    profiled = [session for session in runtime.sessions if session.settings.enable_profiling]
    assert [session.options for session in profiled] == [{"use_tf32": "0"}]


def test_libraries_beside_torch_are_opened(monkeypatch, tmp_path):
    opened = []
    for name in (
        "cu13/lib/libcublas.so.13",
        "cu13/lib/libcurand.so.10",
        "cudnn/lib/libcudnn.so.9",
        "cu13/lib/libz.so.1",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(onnxruntime_device.importlib.util, "find_spec", lambda name: spec if name == "nvidia" else None)

    def open_one(path, mode):
        assert mode == onnxruntime_device.ctypes.RTLD_GLOBAL
        opened.append(path.rsplit("/", 1)[1])
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(onnxruntime_device.ctypes, "CDLL", open_one)
    onnxruntime_device.preload()
    assert opened == ["libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"]


def test_torch_that_sees_no_device_is_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="install a CUDA build"):
        onnxruntime_device.stream_address()


def test_the_binding_calls_exist_in_the_installed_build(tmp_path):
    """What the stand-in above offers, ONNX Runtime has, and fixed outputs are written in place."""
    ort = pytest.importorskip("onnxruntime")
    model = onnxruntime._small_graph(tmp_path / "small.onnx")
    session = ort.InferenceSession(str(model), providers=[CPU])
    settings = ort.RunOptions()
    settings.add_run_config_entry("gpu_graph_id", "-1")
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(np.eye(4, dtype=np.float32), "cpu", 0))
    binding.bind_output("y", "cpu")
    session.run_with_iobinding(binding, settings)
    (value,) = binding.get_outputs()
    binding.clear_binding_outputs()
    binding.bind_ortvalue_output("y", value)
    session.run_with_iobinding(binding, settings)
    assert binding.get_outputs()[0].data_ptr() == value.data_ptr()
    assert (binding.copy_outputs_to_cpu()[0] == np.eye(4)).all()


def test_conformance_asks_for_fp32_too(monkeypatch):
    from frugalbench.backends import case_runners

    asked, order = [], []
    runtime = SimpleNamespace(
        __version__="1", get_available_providers=lambda: order.append("asked") or [CUDA],
        SessionOptions=lambda: SimpleNamespace(add_session_config_entry=lambda *_: None),
        InferenceSession=lambda _model, _settings, **how: asked.append((how["providers"], how["enable_fallback"])),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(onnxruntime_device, "preload", lambda: order.append("libraries"))
    case_runners.case_runner("onnxruntime", "cuda")._session(b"")
    assert asked == [([(CUDA, {"use_tf32": "0"})], 0)]
    assert order == ["libraries", "asked"]
