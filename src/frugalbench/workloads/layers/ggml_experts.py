"""A mixture of experts, or a dense layer, as one GGML graph of the operations that llama.cpp strings together."""

import ctypes
from functools import cache
from typing import Any

import numpy as np

from frugalbench.workloads.base import NoPath
from frugalbench.workloads.layers.ggml import Ggml, functions

_PTR, _SIZE, _I64, _INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
_DESCENDING = 1
_NODES = 512
_TENSORS = 64
_FLOAT = 4
_MORE: dict[str, tuple[Any, ...]] = {
    "ggml_new_tensor_3d": (_PTR, _PTR, _INT, _I64, _I64, _I64),
    "ggml_mul_mat_id": (_PTR, _PTR, _PTR, _PTR, _PTR),
    "ggml_swiglu": (_PTR, _PTR, _PTR),
    "ggml_soft_max": (_PTR, _PTR, _PTR),
    "ggml_sigmoid": (_PTR, _PTR, _PTR),
    "ggml_argsort": (_PTR, _PTR, _PTR, _INT),
    "ggml_get_rows": (_PTR, _PTR, _PTR, _PTR),
    "ggml_sum_rows": (_PTR, _PTR, _PTR),
    "ggml_scale": (_PTR, _PTR, _PTR, ctypes.c_float),
    "ggml_add": (_PTR, _PTR, _PTR, _PTR),
    "ggml_mul": (_PTR, _PTR, _PTR, _PTR),
    "ggml_div": (_PTR, _PTR, _PTR, _PTR),
    "ggml_reshape_2d": (_PTR, _PTR, _PTR, _I64, _I64),
    "ggml_reshape_3d": (_PTR, _PTR, _PTR, _I64, _I64, _I64),
    "ggml_view_2d": (_PTR, _PTR, _PTR, _I64, _I64, _SIZE, _SIZE),
    "ggml_get_data": (_PTR, _PTR),
    "ggml_gallocr_new": (_PTR, _PTR),
    "ggml_gallocr_alloc_graph": (ctypes.c_bool, _PTR, _PTR),
}


@cache
def library(threads: int) -> "GgmlExperts":
    """One for all layers of a process, so that they share its threads and the memory between products."""
    return GgmlExperts(threads)


class GgmlExperts(Ggml):
    """Tensors of experts, and the graphs of layers made of them."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self._call |= functions("ggml-base", _MORE)
        self._allocators: dict[object, Any] = {}
        self._inputs: dict[tuple[int, int], Any] = {}

    def held(self, name: str, values: np.ndarray) -> tuple[Any, str]:
        """A matrix (n, k), or as many as experts (e, n, k), stored as type ``name``, and the buffer that suits it."""
        kind, (*experts, n, k) = self.type(name), values.shape
        context = self.context(_TENSORS)
        tensor, place = self._many(context, kind, experts[0], n, k) if experts else self.matrix(context, kind, n, k)
        self.write(tensor, self.quantise(kind, values.reshape(-1, k)))
        return tensor, place

    def _many(self, context: Any, kind: int, e: int, n: int, k: int) -> tuple[Any, str]:
        for buffer_type in (*self._special, self._plain):
            tensor = self("ggml_new_tensor_3d", context, kind, k, n, e)
            buffer = self._placed(tensor, buffer_type, self("ggml_backend_buft_get_alloc_size", buffer_type, tensor))
            token = self("ggml_new_tensor_3d", context, self.type("f32"), k, 1, 1)
            chosen = self("ggml_new_tensor_2d", context, self.type("i32"), 1, 1)
            product = self("ggml_mul_mat_id", context, tensor, token, chosen)
            if self("ggml_backend_dev_supports_op", self._device, product):
                return tensor, self("ggml_backend_buft_name", buffer_type).decode()
            self._buffers.remove(buffer)
            self("ggml_backend_buffer_free", buffer)
        raise NoPath(f"this GGML ({self.version}) multiplies no such experts on a CPU")

    def tokens(self, m: int, width: int) -> tuple[Any, np.ndarray]:
        """A float32 tensor (m, width) that all graphs of this size read, and its values in place."""
        if (m, width) not in self._inputs:
            tensor = self.values(self.context(2), m, width)
            self._inputs[m, width] = tensor, self.seen(tensor, (m, width))
        found: tuple[Any, np.ndarray] = self._inputs[m, width]
        return found

    def seen(self, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 tensor's memory as an array."""
        size = int(np.prod(shape))
        place = ctypes.cast(self("ggml_get_data", tensor), ctypes.POINTER(ctypes.c_float * size)).contents
        found: np.ndarray = np.ctypeslib.as_array(place).reshape(shape)
        return found

    def graph(self, context: Any, y: Any, like: object) -> Any:
        """The graph that ends in ``y``. Those that are ``like`` one another have the same sizes and take turns in the
        memory between products."""
        graph = self("ggml_new_graph_custom", context, _NODES, False)
        self("ggml_build_forward_expand", graph, y)
        if like not in self._allocators:
            self._allocators[like] = self("ggml_gallocr_new", self._plain)
        if not self("ggml_gallocr_alloc_graph", self._allocators[like], graph):
            raise MemoryError
        return graph

    def room(self) -> Any:
        """A context for one graph."""
        overhead = self("ggml_graph_overhead_custom", _NODES, False)
        return self.context(_TENSORS + _NODES + overhead // self("ggml_tensor_overhead") + 1)

    def swiglu(self, room: Any, x: Any, gate_up: Any, down: Any) -> Any:
        """down(silu(gate x) · up x), of one dense layer."""
        hidden = self("ggml_swiglu", room, self("ggml_mul_mat", room, gate_up, x))
        return self("ggml_mul_mat", room, down, hidden)

    def route(self, room: Any, x: Any, router: Any, sizes: tuple[int, int, int], gate: tuple[str, bool, float]) -> Any:
        """Numbers (T, K) and mixing weights (T, K, 1) of the chosen experts; ``sizes`` are T, E and K."""
        (T, E, K), (kind, normalise, scale) = sizes, gate
        logits = self("ggml_mul_mat", room, router, x)
        scores = self("ggml_soft_max" if kind == "softmax" else "ggml_sigmoid", room, logits)
        chosen = self("ggml_view_2d", room, self("ggml_argsort", room, scores, _DESCENDING), K, T, _FLOAT * E, 0)
        weight = self("ggml_get_rows", room, self("ggml_reshape_3d", room, scores, 1, E, T), chosen)
        if normalise:
            weight = self("ggml_reshape_2d", room, weight, K, T)
            weight = self("ggml_div", room, weight, self("ggml_sum_rows", room, weight))
        if scale != 1.0:
            weight = self("ggml_scale", room, weight, scale)
        return chosen, self("ggml_reshape_3d", room, weight, 1, K, T)

    def mixed(
        self, room: Any, x: Any, routed: tuple[Any, Any], weights: tuple[Any, Any], sizes: tuple[int, int, int]
    ) -> Any:
        """Sum of the chosen experts' answers (T, D); ``sizes`` are T, D and K."""
        (T, D, K), (chosen, weight), (gate_up, down) = sizes, routed, weights
        tokens = self("ggml_reshape_3d", room, x, D, 1, T)
        hidden = self("ggml_swiglu", room, self("ggml_mul_mat_id", room, gate_up, tokens, chosen))
        answers = self("ggml_mul", room, self("ggml_mul_mat_id", room, down, hidden, chosen), weight)
        parts = [self("ggml_view_2d", room, answers, D, T, _FLOAT * D * K, _FLOAT * D * k) for k in range(K)]
        y = parts[0]
        for part in parts[1:]:
            y = self("ggml_add", room, y, part)
        return y
