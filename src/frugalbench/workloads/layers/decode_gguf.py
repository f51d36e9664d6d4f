"""Model files for llama.cpp: written with its ``gguf`` package, quantised by its library, read back apart from it."""

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.decode_reference import Quantised
from frugalbench.workloads.layers.decode_weights import Weights
from frugalbench.workloads.layers.quant_stored import Stored, dense_stored

_NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
    "down": "ffn_down", "norm": "attn_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip
_TABLE, _LAST_GAIN = "token_embd.weight", "output_norm.weight"
_FILE_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K_M"}
"""Scheme to llama.cpp's name of the mixture of types; only the last one mixes."""
_FARTHEST = {"f16": 2.0**-11, "q8_0": 0.003, "q4_0": 0.08, "q4_k_m": 0.12}
"""How far a stored weight may lie off, over 8 standard deviations of the weights, in a block with one of 4.6: half a
step of 8-bit codes, a whole one of 4-bit codes, two of those whose scales are fitted (Q4_K)."""
_MOST_CONTEXT = 2**20


class GgufFile:
    """The model of a case as a file in the cache, named after everything that decides its bytes."""

    def __init__(self, case: Case, weights: Weights, context: Context) -> None:
        import gguf
        import llama_cpp

        p = case.params
        self._weights, self._scheme, self._threads = weights, p["scheme"], context.threads
        self._epsilon, self._base = p["epsilon"], p["rotary_base"]
        version = getattr(gguf, "__version__", ""), llama_cpp.__version__
        text = repr((weights.key, self._scheme, self._epsilon, self._base, version))
        name = f"{self._scheme}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.gguf"
        self.path = context.cache_dir / "model_decode" / name
        self._plain = context.scratch_dir / "model_decode" / f"{weights.key}-f32.gguf"
        self.cached = self.path.exists()

    def ready(self) -> None:
        """Write and quantise unless the file is there."""
        if self.path.exists():
            return
        start = time.perf_counter()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._plain.exists():
            self._write()
        partial = self.path.with_suffix(f".{os.getpid()}")
        self._quantise(partial)
        self._seconds.write_text(f"{time.perf_counter() - start:.3f}")
        partial.replace(self.path)

    @property
    def _seconds(self) -> Path:
        return self.path.with_suffix(".seconds")

    @property
    def artefact(self) -> Artefact:
        """The file, and what making it took."""
        build_s = float(self._seconds.read_text())
        name = f"GGUF {_FILE_TYPES[self._scheme]}"
        return Artefact(name=name, build_s=build_s, cached=self.cached, size_bytes=self.path.stat().st_size)

    def _write(self) -> None:
        """All weights in float32, one after the other; the run's scratch folder keeps them for the next format."""
        import gguf

        partial = self._plain.with_suffix(f".{os.getpid()}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(partial, "llama")
        self._describe(writer)
        for name, values in self._tensors():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in self._tensors():
            writer.write_tensor_data(np.ascontiguousarray(values))
        writer.close()
        partial.replace(self._plain)

    def _describe(self, writer: Any) -> None:
        shape = self._weights.shape
        writer.add_context_length(_MOST_CONTEXT)
        writer.add_embedding_length(shape.d_model)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.d_ff)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
        writer.add_layer_norm_rms_eps(self._epsilon)
        writer.add_rope_freq_base(self._base)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_vocab_size(shape.vocabulary)
        writer.add_tokenizer_model("none")

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        yield _TABLE, self._weights.table()
        yield _LAST_GAIN, self._weights.last_gain()
        for layer in range(self._weights.shape.layers):
            for name in self._weights.shape.matrices():
                values = self._weights.matrix(layer, name)
                yield tensor_name(layer, name), values[order(self._weights.shape, name)]
            for name in ("norm", "ffn_norm"):
                yield tensor_name(layer, name), self._weights.gain(layer, name)

    def _quantise(self, target: Path) -> None:
        import llama_cpp

        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{_FILE_TYPES[self._scheme]}")
        settings.nthread = self._threads
        settings.pure = self._scheme != "q4_k_m"
        status = llama_cpp.llama_model_quantize(str(self._plain).encode(), str(target).encode(), ctypes.byref(settings))
        if status:
            raise RuntimeError(f"llama_model_quantize gave status {status} for {_FILE_TYPES[self._scheme]}")


def tensor_name(layer: int, name: str) -> str:
    """What llama.cpp calls a matrix or a gain of a layer."""
    return f"blk.{layer}.{_NAMES[name]}.weight"


def order(shape: DecoderShape, name: str) -> np.ndarray:
    """Rows of a matrix in llama.cpp's order. It turns neighbouring values of a head against each other, the other arms
    the two halves of a head: rows of queries and keys are dealt out in turn, as its converter does."""
    rows = np.arange(shape.matrices()[name][0])
    if name not in ("q", "k"):
        return rows
    return rows.reshape(-1, 2, shape.head_dim // 2).swapaxes(1, 2).reshape(-1)


class GgufHeld(Quantised):
    """The weights in a file, dequantised by ``gguf``'s own numpy code."""

    def __init__(self, weights: Weights, path: Path, scheme: str) -> None:
        import gguf

        super().__init__(weights)
        self._dequantise, self._farthest = gguf.quants.dequantize, _FARTHEST[scheme]
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def types(self) -> dict[str, str]:
        """Tensor to the name of its type."""
        return {name: tensor.tensor_type.name.lower() for name, tensor in self._tensors.items()}

    def gain(self, layer: int, name: str) -> np.ndarray:
        """Float64 (D)."""
        return self._values(tensor_name(layer, name)).astype(np.float64)

    def last_gain(self) -> np.ndarray:
        """Float64 (D)."""
        return self._values(_LAST_GAIN).astype(np.float64)

    def stored(self, layer: int, name: str) -> Stored:
        """The rows of a matrix, in our order again."""
        values = np.empty(self._weights.shape.matrices()[name], np.float32)
        values[order(self._weights.shape, name)] = self._values(tensor_name(layer, name))
        return dense_stored(values, self._farthest)

    def stored_table(self) -> Stored:
        """Some rows at a time: all of them would take as much memory as the model in float32."""
        tensor, spread = self._tensors[_TABLE], np.sqrt(self._weights.shape.d_model)

        def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            part = self._dequantise(tensor.data[start:stop], tensor.tensor_type)
            return dense_stored(part, self._farthest * spread).rows(0, stop - start)

        return Stored(rows, (tensor.data,))

    def _values(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        return np.asarray(self._dequantise(tensor.data, tensor.tensor_type))
