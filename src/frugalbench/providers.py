"""ONNX Runtime's execution providers: names, where each computes, which build brings it. Data, for both wings.

Options are those of ONNX Runtime's documentation of each provider; they ask for fp32 where something else is the
default. Only cpu, openvino and webgpu have been run by us, see docs/backends.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Provider:
    """One execution provider."""

    provider: str
    """What ONNX Runtime calls it."""
    device: str
    """What computes; providers of one device can be compared with each other."""
    distributions: tuple[str, ...]
    """Builds on the package index that have it, the usual one first. One build fits an environment."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Provider options; ``{threads}`` stands for the number of threads."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set before the provider's libraries are loaded."""
    memory: str = "cpu"
    """Where inputs and outputs lie between calls, as ``OrtValue`` names it; on ``cpu`` a call copies them."""
    stream: str = ""
    """Option that takes the address of a stream to compute on."""
    graph: str = ""
    """Option that has it record calls as device graphs."""
    library: str = ""
    """Its shared library inside the package, where it has one of its own."""
    system: str = ""
    """The only operating system that its build exists for, as ``platform.system()`` names it."""


PROVIDERS: dict[str, Provider] = {
    "cpu": Provider(
        "CPUExecutionProvider",
        "cpu",
        (
            "onnxruntime",
            "onnxruntime-gpu",
            "onnxruntime-openvino",
            "onnxruntime-webgpu",
            "onnxruntime-cann",
            "onnxruntime-rocm",
            "onnxruntime-migraphx",
            "onnxruntime-directml",
            "onnxruntime-qnn",
        ),
    ),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "cuda",
        ("onnxruntime-gpu",),
        options={"use_tf32": "0"},
        memory="cuda",
        stream="user_compute_stream",
        graph="enable_cuda_graph",
        library="libonnxruntime_providers_cuda.so",
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "cuda",
        ("onnxruntime-gpu",),
        environment={"NVIDIA_TF32_OVERRIDE": "0"},
        memory="cuda",
        stream="user_compute_stream",
        library="libonnxruntime_providers_tensorrt.so",
    ),
    "openvino": Provider(
        "OpenVINOExecutionProvider",
        "cpu",
        ("onnxruntime-openvino",),
        options={"device_type": "CPU", "precision": "FP32", "num_of_threads": "{threads}"},
        library="libonnxruntime_providers_openvino.so",
    ),
    "webgpu": Provider("WebGpuExecutionProvider", "webgpu", ("onnxruntime-webgpu",)),
    "rocm": Provider(
        "ROCMExecutionProvider", "rocm", ("onnxruntime-rocm",), library="libonnxruntime_providers_rocm.so"
    ),
    "migraphx": Provider(
        "MIGraphXExecutionProvider",
        "rocm",
        ("onnxruntime-migraphx", "onnxruntime-rocm"),
        library="libonnxruntime_providers_migraphx.so",
    ),
    "cann": Provider(
        "CANNExecutionProvider",
        "cann",
        ("onnxruntime-cann",),
        options={"precision_mode": "must_keep_origin_dtype"},
        memory="cann",
        library="libonnxruntime_providers_cann.so",
    ),
    "dml": Provider("DmlExecutionProvider", "dml", ("onnxruntime-directml",), memory="dml", system="Windows"),
    "coreml": Provider(
        "CoreMLExecutionProvider",
        "coreml",
        ("onnxruntime",),
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"},
        system="Darwin",
    ),
    "qnn": Provider(
        "QNNExecutionProvider",
        "qnn",
        ("onnxruntime-qnn",),
        options={"backend_type": "htp", "enable_htp_fp16_precision": "0"},
        library="libonnxruntime_providers_qnn.so",
    ),
}
"""Short name to provider. Backends take the short name as their device."""

BUILDS = PROVIDERS["cpu"].distributions
"""Every distribution that installs the module ``onnxruntime``."""


def brought_by(distribution: str) -> tuple[str, ...]:
    """Short names of the providers that a build has."""
    return tuple(name for name, item in PROVIDERS.items() if distribution in item.distributions)
