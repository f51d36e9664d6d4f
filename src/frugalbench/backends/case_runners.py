"""One conformance case on one runtime: any model, any inputs, sequences, optionals, text and small floats included.

Unlike :mod:`frugalbench.backends.base` nothing here is timed, nothing is cached and one thread computes. ``open_case``
takes the path of a model and gives a function from inputs by name to outputs in the graph's order. What a runtime says
it does not implement is :class:`Unsupported`; any other exception is an error of loading or running. Runtimes are
imported late, in the child that executes a batch.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.backends import onnxruntime_device
from frugalbench.providers import BUILDS, PROVIDERS
from frugalbench.schema import FrugalbenchError

Run = Callable[[dict[str, Any]], list[Any]]
_SMALL = ("bfloat16", "float8", "float6", "float4", "int4", "int2")
"""Starts of the names of ``ml_dtypes``' types (``uint4`` holds ``int4``): numpy itself knows none of them."""
_FAR_OPSET = 999
"""No operator set has this number; a runtime that knows its limit says so."""


class Unsupported(RuntimeError):
    """The runtime declares that it does not implement what the case needs."""


class CaseRunner(Protocol):
    """A runtime that takes any model."""

    version: str

    def declared(self) -> tuple[int, int] | None:
        """First and last operator set of ``ai.onnx`` that the runtime declares; ``None`` where it declares none."""
        ...

    def open_case(self, path: Path) -> Run:
        """Load the model at ``path``; raises :class:`Unsupported` or whatever the runtime raises."""
        ...


def case_runner(backend: str, device: str) -> CaseRunner:
    """The runner of ``backend``, its runtime imported. Raises :class:`FrugalbenchError` for an unknown name."""
    if backend not in _RUNNERS:
        raise FrugalbenchError(f"unknown backend '{backend}'; conformance knows {', '.join(_RUNNERS)}")
    return _RUNNERS[backend](device)


def is_small(dtype: Any) -> bool:
    """Whether numpy needs ``ml_dtypes`` for values of this type."""
    return any(start in str(dtype) for start in _SMALL)


def _refusing(work: Callable[[], Any], refusals: "re.Pattern[str]") -> Any:
    """What ``work`` gives; an exception that says "not implemented" in the runtime's words is :class:`Unsupported`."""
    try:
        return work()
    except Exception as problem:
        name = type(problem).__name__
        if "Implemented" in name or "Implementation" in name or refusals.search(str(problem)):
            raise Unsupported(str(problem)) from None
        raise


class _OnnxRuntime:
    """ONNX Runtime with one execution provider and no way back to the CPU."""

    refusals = re.compile(
        r"NOT_IMPLEMENTED|Unsupported model IR version|is under development and support for this is limited"
        r"|is not a registered function/op|not supported"
    )

    def __init__(self, device: str):
        if PROVIDERS[device].device == "cuda":
            onnxruntime_device.preload()
        import onnxruntime

        self.runtime, self.device, self.provider = onnxruntime, device, PROVIDERS[device].provider
        self.version = onnxruntime.__version__
        if self.provider not in onnxruntime.get_available_providers():
            raise RuntimeError(f"this onnxruntime has no {self.provider}")
        self.flavour = next((name for name in BUILDS if _version(name)), "onnxruntime")

    def declared(self) -> tuple[int, int] | None:
        """From 7 (onnxruntime.ai, reference/compatibility, read 2026-11-22) to what its refusal of a later one says."""
        try:
            self._session(_identity(_FAR_OPSET))
        except Exception as problem:
            found = re.search(r"domain ai\.onnx is till opset (\d+)", str(problem))
            return (7, int(found[1])) if found else None
        return None

    def open_case(self, path: Path) -> Run:
        session = _refusing(lambda: self._session(str(path)), self.refusals)
        if self.provider not in session.get_providers():
            raise RuntimeError(f"asked for {self.provider} and got {', '.join(session.get_providers())}")
        small = any(is_small(info.type) for info in (*session.get_inputs(), *session.get_outputs()))
        run = self._run_values if small else self._run_arrays
        return lambda inputs: _refusing(lambda: run(session, inputs), self.refusals)

    def _session(self, model: Any) -> Any:
        settings = self.runtime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        if self.device != "cpu":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        given = {key: value.format(threads=1) for key, value in PROVIDERS[self.device].options.items()}
        return self.runtime.InferenceSession(model, settings, providers=[(self.provider, given)], enable_fallback=0)

    @staticmethod
    def _run_arrays(session: Any, inputs: dict[str, Any]) -> list[Any]:
        return list(session.run(None, inputs))

    def _run_values(self, session: Any, inputs: dict[str, Any]) -> list[Any]:
        """Small floats go in and come out as the bytes that hold them."""
        feed = {name: self._ort_value(value) for name, value in inputs.items()}
        return [self._array(value) for value in session.run_with_ort_values(None, feed)]

    def _ort_value(self, value: np.ndarray) -> Any:
        make = self.runtime.OrtValue
        if not is_small(value.dtype):
            return make.ortvalue_from_numpy(value)
        kind, packed = _packed(value)
        made = make.ortvalue_from_shape_and_type(list(value.shape), kind)
        ctypes.memmove(made.data_ptr(), packed, len(packed))
        return made

    @staticmethod
    def _array(value: Any) -> np.ndarray:
        from onnx import helper

        kind, shape = value.element_type(), tuple(value.shape())
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        if not is_small(dtype):
            return np.asarray(value.numpy())
        return _unpacked(kind, shape, ctypes.string_at(value.data_ptr(), _packed_bytes(dtype, shape)))


class _Reference:
    """The ONNX project's own evaluator in numpy."""

    refusals = re.compile(r"No implementation for|not implemented|NotImplemented|is not supported", re.IGNORECASE)

    def __init__(self, device: str):
        import onnx
        import onnx.reference

        assert device == "cpu"
        self.onnx, self.version = onnx, onnx.__version__

    def declared(self) -> tuple[int, int] | None:
        """Every operator set that the package defines."""
        return 1, self.onnx.defs.onnx_opset_version()

    def open_case(self, path: Path) -> Run:
        evaluator = _refusing(
            lambda: self.onnx.reference.ReferenceEvaluator(self.onnx.load_model(str(path))), self.refusals
        )
        return lambda inputs: _refusing(lambda: list(evaluator.run(None, inputs)), self.refusals)


class _OpenVino:
    """OpenVINO's CPU plugin in fp32. Its front end takes a model of any operator set, so it declares none."""

    refusals = re.compile(
        r"does not support the following ONNX operations|[Nn]o conversion rule|[Nn]ot (yet )?(supported|implemented)"
        r"|[Uu]nsupported|doesn't support|does not support|OpConversionFailure"
    )

    def __init__(self, device: str):
        assert device == "cpu"
        os.environ["CI"] = "true"  # read when openvino is first imported: no usage data
        import openvino

        self.runtime, self.version = openvino, openvino.__version__
        self.core = openvino.Core()

    def declared(self) -> tuple[int, int] | None:
        return None

    def open_case(self, path: Path) -> Run:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        compiled = _refusing(lambda: self.core.compile_model(str(path), "CPU", settings), self.refusals)
        return lambda inputs: _refusing(lambda: self._run(compiled, inputs), self.refusals)

    def _run(self, compiled: Any, inputs: dict[str, Any]) -> list[Any]:
        request = compiled.create_infer_request()
        known = {name for port in compiled.inputs for name in port.names}
        request.infer({name: self._tensor(value) for name, value in inputs.items() if name in known})
        return [self._array(request.get_output_tensor(number)) for number in range(len(compiled.outputs))]

    def _tensor(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise Unsupported("inputs of OpenVINO are tensors: no sequence, no optional")
        if value.dtype == object:
            return self.runtime.Tensor(value.astype(np.str_))
        if not is_small(value.dtype):
            return self.runtime.Tensor(np.require(value, requirements="C"))
        kind = getattr(self.runtime.Type, _OPENVINO_TYPES.get(value.dtype.name, "none"), None)
        if kind is None:
            raise Unsupported(f"OpenVINO has no tensor of {value.dtype.name}")
        packed = np.frombuffer(_packed(value)[1], dtype=np.uint8)
        return self.runtime.Tensor(packed, self.runtime.Shape(list(value.shape)), kind)

    @staticmethod
    def _array(tensor: Any) -> np.ndarray:
        from onnx import helper

        kind = tensor.get_element_type().get_type_name()
        if kind == "string":
            return np.asarray(tensor.str_data, dtype=object)
        name = next((name for name, found in _OPENVINO_TYPES.items() if found == kind), None)
        if name is None:
            return np.array(tensor.data)
        import ml_dtypes

        number = helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, name)))
        return _unpacked(number, tuple(tensor.shape), tensor.data.tobytes())


_OPENVINO_TYPES = {
    "bfloat16": "bf16", "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2", "float8_e8m0fnu": "f8e8m0",
    "float4_e2m1fn": "f4e2m1", "int4": "i4", "uint4": "u4", "uint2": "u2",
}  # fmt: skip
"""``ml_dtypes``' names to OpenVINO's."""


class _Tract:
    """Sonos' tract through its Python package. It knows tensors only and declares no operator sets."""

    refusals = re.compile(r"[Uu]nimplemented|[Nn]ot implemented|[Uu]nsupported|not supported|No translation|No parser")

    def __init__(self, device: str):
        assert device == "cpu"
        self.runtime: Any = importlib.import_module("tract")
        self.version = _version("tract") or "unknown"

    def declared(self) -> tuple[int, int] | None:
        return None

    def open_case(self, path: Path) -> Run:
        run: Run = _refusing(lambda: self._open(path), self.refusals)
        return run

    def _open(self, path: Path) -> Run:
        model = self.runtime.onnx().load(str(path))
        names = [model.input_name(number) for number in range(model.input_count())]
        runnable = model.into_model().into_runnable()
        return lambda inputs: _refusing(lambda: self._run(runnable, [inputs[name] for name in names]), self.refusals)

    def _run(self, runnable: Any, values: list[Any]) -> list[Any]:
        if any(not isinstance(value, np.ndarray) or value.dtype == object for value in values):
            raise Unsupported("inputs of tract are tensors of numbers: no sequence, no optional, no text")
        answers = runnable.run([np.require(value, requirements="C") for value in values])
        return [answer.to_numpy() for answer in answers]


_RUNNERS: dict[str, Callable[[str], CaseRunner]] = {
    "onnxruntime": _OnnxRuntime,
    "onnx-reference": _Reference,
    "openvino": _OpenVino,
    "tract": _Tract,
}


def _packed(value: np.ndarray) -> tuple[int, bytes]:
    """ONNX's number of the element type, and the values as bytes: two or four to a byte below 8 bits."""
    from onnx import numpy_helper

    tensor = numpy_helper.from_array(value)
    return tensor.data_type, tensor.raw_data


def _unpacked(kind: int, shape: tuple[int, ...], content: bytes) -> np.ndarray:
    from onnx import TensorProto, numpy_helper

    return np.asarray(numpy_helper.to_array(TensorProto(data_type=kind, dims=shape, raw_data=content)))


def _packed_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    narrow = re.search(r"(?:int|float)([24])(?:_|$)", dtype.name)
    bits = int(narrow[1]) if narrow else 8 * dtype.itemsize
    return -(-math.prod(shape) * bits // 8)


def _version(distribution: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def _last_line(problem: BaseException) -> str:
    lines = [line for line in str(problem).splitlines() if line.strip()]
    return lines[-1] if lines else type(problem).__name__


def _identity(opset: int) -> bytes:
    """The smallest model of an operator set."""
    from onnx import TensorProto, helper

    place = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", place[:1], place[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())
