"""GGML's C interface, as far as one matrix product needs it, from the shared objects inside ``llama-cpp-python``.

Handles stay opaque: no struct of GGML's is read or written, except the three fields that ``ggml_init`` takes. Types are
found by their names, functions by theirs, so a release that changes either is noticed rather than misread.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.workloads.base import NoPath

_PTR, _SIZE, _I64, _INT, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p
_MOST_TYPES = 200
_ALIGNMENT = 64
_GRAPH_NODES = 8


class _Init(ctypes.Structure):
    _fields_ = (("mem_size", _SIZE), ("mem_buffer", _PTR), ("no_alloc", ctypes.c_bool))


_LOG = ctypes.CFUNCTYPE(None, _INT, _TEXT, _PTR)
_EXTRA = ctypes.CFUNCTYPE(ctypes.POINTER(_PTR), _PTR)
_BASE: dict[str, tuple[Any, ...]] = {
    "ggml_init": (_PTR, _Init),
    "ggml_new_tensor_2d": (_PTR, _PTR, _INT, _I64, _I64),
    "ggml_mul_mat": (_PTR, _PTR, _PTR, _PTR),
    "ggml_new_graph_custom": (_PTR, _PTR, _SIZE, ctypes.c_bool),
    "ggml_build_forward_expand": (None, _PTR, _PTR),
    "ggml_tensor_overhead": (_SIZE,),
    "ggml_graph_overhead_custom": (_SIZE, _SIZE, ctypes.c_bool),
    "ggml_nbytes": (_SIZE, _PTR),
    "ggml_row_size": (_SIZE, _INT, _I64),
    "ggml_type_name": (_TEXT, _INT),
    "ggml_quantize_chunk": (_SIZE, _INT, _PTR, _PTR, _I64, _I64, _I64, _PTR),
    "ggml_log_set": (None, _LOG, _PTR),
    "ggml_version": (_TEXT,),
    "ggml_backend_buft_alloc_buffer": (_PTR, _PTR, _SIZE),
    "ggml_backend_buft_get_alloc_size": (_SIZE, _PTR, _PTR),
    "ggml_backend_buft_name": (_TEXT, _PTR),
    "ggml_backend_buffer_free": (None, _PTR),
    "ggml_backend_buffer_get_base": (_PTR, _PTR),
    "ggml_backend_tensor_alloc": (_INT, _PTR, _PTR, _PTR),
    "ggml_backend_tensor_set": (None, _PTR, _PTR, _SIZE, _SIZE),
    "ggml_backend_tensor_get": (None, _PTR, _PTR, _SIZE, _SIZE),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, _PTR, _PTR),
    "ggml_backend_dev_buffer_type": (_PTR, _PTR),
    "ggml_backend_reg_dev_get": (_PTR, _PTR, _SIZE),
    "ggml_backend_reg_get_proc_address": (_PTR, _PTR, _TEXT),
    "ggml_backend_graph_compute": (_INT, _PTR, _PTR),
}
_CPU: dict[str, tuple[Any, ...]] = {
    "ggml_backend_cpu_init": (_PTR,),
    "ggml_backend_cpu_reg": (_PTR,),
    "ggml_backend_cpu_set_n_threads": (None, _PTR, _INT),
}


class Ggml:
    """The library, its CPU backend with ``threads`` threads, and every buffer that was asked of it."""

    def __init__(self, threads: int) -> None:
        self._call = {**functions("ggml-base", _BASE), **functions("ggml-cpu", _CPU)}
        self.log: list[str] = []
        """What the library said since this object was made: which layout it gave a tensor, say."""
        self._listener = _LOG(lambda _level, text, _data: self.log.append(text.decode(errors="replace").strip()))
        self("ggml_log_set", self._listener, None)
        self._buffers: list[Any] = []
        registry = self("ggml_backend_cpu_reg")
        self._device = self("ggml_backend_reg_dev_get", registry, 0)
        self._backend = self("ggml_backend_cpu_init")
        self("ggml_backend_cpu_set_n_threads", self._backend, threads)
        self._plain = self("ggml_backend_dev_buffer_type", self._device)
        self._special = self._extra_buffer_types(registry)
        self.version = self("ggml_version").decode()

    def __call__(self, name: str, *arguments: Any) -> Any:
        return self._call[name](*arguments)

    def _extra_buffer_types(self, registry: Any) -> list[Any]:
        """Buffer types that lay weights out for a kernel; llama.cpp tries them first."""
        address = self("ggml_backend_reg_get_proc_address", registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        found, kinds = _EXTRA(address)(self._device), list[Any]()
        while found and found[len(kinds)]:
            kinds.append(found[len(kinds)])
        return kinds

    def type(self, name: str) -> int:
        """Number of the type that the library calls ``name``."""
        for number in range(_MOST_TYPES):
            if self("ggml_type_name", number) == name.encode():
                return number
        raise NoPath(f"this GGML ({self.version}) has no type {name}")

    def quantise(self, kind: int, weights_NK: np.ndarray) -> np.ndarray:
        """The rows as the library stores them: uint8 (n, bytes of a row)."""
        n, k = weights_NK.shape
        rows = np.empty((n, self("ggml_row_size", kind, k)), np.uint8)
        source = np.ascontiguousarray(weights_NK, np.float32)
        if self("ggml_quantize_chunk", kind, source.ctypes.data, rows.ctypes.data, 0, n, k, None) != rows.nbytes:
            raise RuntimeError("ggml_quantize_chunk wrote another number of bytes than the rows take")
        return rows

    def context(self, tensors: int) -> Any:
        """Room for the descriptions of so many tensors and their graphs; no data."""
        each = self("ggml_tensor_overhead") + self("ggml_graph_overhead_custom", _GRAPH_NODES, False)
        return self("ggml_init", _Init(tensors * each + 1024, None, True))

    def matrix(self, context: Any, kind: int, n: int, k: int) -> tuple[Any, str]:
        """A tensor of n rows in the first buffer type that multiplies it, and the name of that buffer type."""
        for buffer_type in (*self._special, self._plain):
            tensor = self("ggml_new_tensor_2d", context, kind, k, n)
            buffer = self._placed(tensor, buffer_type, self("ggml_backend_buft_get_alloc_size", buffer_type, tensor))
            token = self("ggml_new_tensor_2d", context, self.type("f32"), k, 1)
            if self("ggml_backend_dev_supports_op", self._device, self("ggml_mul_mat", context, tensor, token)):
                return tensor, self("ggml_backend_buft_name", buffer_type).decode()
            self._buffers.remove(buffer)
            self("ggml_backend_buffer_free", buffer)
        raise NoPath(f"this GGML ({self.version}) multiplies no such matrix on a CPU")

    def values(self, context: Any, m: int, width: int) -> Any:
        """A float32 tensor (m, width) in plain memory."""
        tensor = self("ggml_new_tensor_2d", context, self.type("f32"), width, m)
        self._placed(tensor, self._plain, 4 * m * width)
        return tensor

    def product(self, context: Any, matrix: Any, x: Any, memory: Any) -> tuple[Any, Any]:
        """Graph and result of x @ matrix.T; the result lies where the tensor ``memory`` of its size does."""
        graph = self("ggml_new_graph_custom", context, _GRAPH_NODES, False)
        y = self("ggml_mul_mat", context, matrix, x)
        self._check(self("ggml_backend_tensor_alloc", memory, y, self("ggml_backend_buffer_get_base", memory)))
        self("ggml_build_forward_expand", graph, y)
        return graph, y

    def memory(self, size_bytes: int) -> Any:
        """Plain memory for results."""
        buffer = self("ggml_backend_buft_alloc_buffer", self._plain, size_bytes + _ALIGNMENT)
        if not buffer:
            raise MemoryError
        self._buffers.append(buffer)
        return buffer

    def _placed(self, tensor: Any, buffer_type: Any, size_bytes: int) -> Any:
        buffer = self("ggml_backend_buft_alloc_buffer", buffer_type, size_bytes + _ALIGNMENT)
        if not buffer:
            raise MemoryError
        self._buffers.append(buffer)
        self._check(
            self("ggml_backend_tensor_alloc", buffer, tensor, self("ggml_backend_buffer_get_base", buffer))
        )  # fmt: skip
        return buffer

    def write(self, tensor: Any, data: np.ndarray) -> None:
        """Copy an array into a tensor, laid out as its buffer wants it."""
        whole = np.ascontiguousarray(data)
        self("ggml_backend_tensor_set", tensor, whole.ctypes.data, 0, whole.nbytes)

    def read(self, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 tensor as an array."""
        data = np.empty(shape, np.float32)
        self("ggml_backend_tensor_get", tensor, data.ctypes.data, 0, data.nbytes)
        return data

    def compute(self, graph: Any) -> None:
        """Run a graph to its end."""
        self._check(self("ggml_backend_graph_compute", self._backend, graph))

    def close(self) -> None:
        """Free every buffer."""
        for buffer in self._buffers:
            self("ggml_backend_buffer_free", buffer)
        self._buffers = []

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"GGML gave status {status}: {' '.join(self.log[-3:])}")


def functions(name: str, wanted: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    library = _library(name)
    found = {}
    for function, (result, *arguments) in wanted.items():
        try:
            found[function] = getattr(library, function)
        except AttributeError:
            raise NoPath(f"lib{name} of this llama-cpp-python has no function {function}") from None
        found[function].restype, found[function].argtypes = result, arguments
    return found


def _library(name: str) -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise NoPath("llama-cpp-python is not installed: pip install 'frugalbench[llama]'")
    path = Path(spec.origin).parent / "lib" / f"lib{name}.so"
    try:
        return ctypes.CDLL(str(path))
    except OSError as problem:
        raise NoPath(f"llama-cpp-python's lib{name} cannot be loaded: {problem}") from None
