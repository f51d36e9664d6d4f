"""The linear layer as llama.cpp computes it: one ``mul_mat`` over weights in GGUF's f16, Q8_0, Q4_0 or Q4_K.

Weights go to the buffer type that llama.cpp would give them: the one that repacks rows for the processor's vectors
where it has a kernel for the format, plain memory otherwise.
"""

import re
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.ggml import Ggml
from frugalbench.workloads.layers.quant_copies import Copies
from frugalbench.workloads.layers.quant_ggml_blocks import ggml_stored, q8_0_activations, q8_k_activations
from frugalbench.workloads.layers.quant_stored import Source, Stored, float16

_TYPES = {"float16": "f16", "q8_0": "q8_0", "q4_0": "q4_0", "q4_k": "q4_K"}
"""Scheme to GGML's name of its type."""
_ROUNDED = {"f16": float16, "q8_0": q8_0_activations, "q4_0": q8_0_activations, "q4_K": q8_k_activations}


def make(case: Case, source: Source, context: Context) -> "LlamaLinear":
    """The layer of a case. Raises :class:`~frugalbench.workloads.base.NoPath` where the library does not load."""
    return LlamaLinear(case, source, context)


class LlamaLinear:
    """Tensors of one type, and a graph of one product per tensor and input."""

    lossy = True

    def __init__(self, case: Case, source: Source, context: Context) -> None:
        p = case.params
        self._n, self._k, self._copies, self._threads = p["n"], p["k"], p["copies"], context.threads
        self._type = _TYPES[p["scheme"]]
        self._ggml = Ggml(context.threads)
        self._kind = self._ggml.type(self._type)
        name = f"llama-{self._type}-{self._n}x{self._k}-seed{p['seed']}-ggml{self._ggml.version}"
        folder = context.cache_dir / "quantized_linear" / name
        self._codes = Copies(source, self._n, lambda w_NK: (self._ggml.quantise(self._kind, w_NK),), folder)
        self._context = self._ggml.context(8 * self._copies)
        self._matrices = [self._matrix(copy) for copy in range(self._copies)]
        self.artefacts: tuple[Artefact, ...] = self._codes.artefacts(f"{self._type} rows of GGML")
        self._codes.release()
        self.kernel = self._kernel()
        self.details = {"ggml": self._ggml.version}

    def _matrix(self, copy: int) -> Any:
        tensor, self._place = self._ggml.matrix(self._context, self._kind, self._n, self._k)
        self._ggml.write(tensor, self._codes.parts(copy)[0])
        return tensor

    def _kernel(self) -> str:
        """The type, and the layout that the library says it gave the tensors."""
        layouts = [found[1] for line in self._ggml.log if (found := re.search(r"repack tensor .*?with (\S+)", line))]
        layout = f", repacked {layouts[-1]}" if layouts else f", {self._place} buffer"
        return f"ggml mul_mat {self._type}{layout}"

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs in a tensor, and for each matrix the graph that multiplies them."""
        ggml, m = self._ggml, len(x_MK)
        context = ggml.context(2 * self._copies + 2)
        x = ggml.values(context, m, self._k)
        ggml.write(x, x_MK)
        memory = ggml.memory(4 * m * self._n)
        return [(*ggml.product(context, matrix, x, memory), m) for matrix in self._matrices]

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        self._ggml.compute(x[copy][0])
        return x[copy]

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        _, result, m = y
        return self._ggml.read(result, (m, self._n))

    def stored(self, copy: int) -> Stored:
        """The rows that the tensor of ``copy`` was filled with; a repacked one cannot be read back."""
        return ggml_stored(self._type.lower(), self._codes.parts(copy)[0])

    def stored_bytes(self) -> int:
        """Bytes of one tensor, as the library counts them."""
        return int(self._ggml("ggml_nbytes", self._matrices[0]))

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return _ROUNDED[self._type](x_MK)

    def threads(self) -> int:
        """Threads that a graph is computed with."""
        return self._threads

    def synchronize(self) -> None:
        """A graph is computed when the call returns."""

    def close(self) -> None:
        """Free the buffers."""
        self._ggml.close()
