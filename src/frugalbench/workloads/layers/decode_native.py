"""A whole model on the own kernels: one C call per step, weights of 32, 8 or 4 bits."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.backends import native_quant
from frugalbench.backends.native_decoder import MATRICES, Decoder, Dimensions
from frugalbench.backends.native_quant import Packed
from frugalbench.schema import Artefact, Case
from frugalbench.specs.decode_formats import FORMATS, packed_bytes, stored_bytes
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.decode_reference import Quantised
from frugalbench.workloads.layers.decode_weights import Tokens, Weights
from frugalbench.workloads.layers.quant_native import ROWS, decode
from frugalbench.workloads.layers.quant_stored import Stored

_SOURCES = {"projection": ("q", "k", "v"), "merge": ("o",), "gate": ("gate",), "up": ("up",), "down": ("down",)}
"""The kernel's matrices, and those of the model that lie in each, one below the other."""
_LINE = 64


def make(case: Case, weights: Weights, tokens: Tokens, context: Context) -> "NativeModel":
    """The model of a case, from packed weights in the cache where they are there."""
    return NativeModel(case, weights, tokens, context)


class NativeModel:
    """A decoder and two caches: of the text that is continued, and of the prompts."""

    def __init__(self, case: Case, weights: Weights, tokens: Tokens, context: Context) -> None:
        p = case.params
        self.lossy = p["bits"] < 32
        self._weights, self._context_tokens = weights, torch.from_numpy(tokens.context)
        self._following = list(torch.from_numpy(tokens.following)[:, None].contiguous())
        self._prompts = list(torch.from_numpy(tokens.prompts))
        self.decoder = Decoder(_dimensions(p, weights.shape), p["bits"])
        store = Store(case, weights, context)
        store.into(self.decoder)
        self.artefacts: tuple[Artefact, ...] = store.artefacts
        self._other = self.decoder.new_cache()
        kind = "float32" if p["bits"] == 32 else f"W{p['bits']}A8"
        self._parallel = native_quant.kernel().parallel
        threads = "" if self._parallel else ", built without OpenMP: one thread"
        self.kernel = f"own {self.decoder.path} decoder, {kind}, float16 cache{threads}"
        self.details: dict[str, object] = {}

    def read(self, count: int) -> None:
        """Read the first ``count`` tokens of the text, for nothing."""
        self.decoder.step(self._context_tokens[:count], 0, self._other)

    def fill(self) -> None:
        """Read the text that is continued."""
        self.decoder.step(self._context_tokens, 0)

    def decode(self, index: int) -> torch.Tensor:
        """Logits after token ``index`` behind the text; the next call takes its place in the cache."""
        return self.decoder.step(self._following[index], len(self._context_tokens))

    def prefill(self, index: int) -> torch.Tensor:
        """Logits after prompt ``index``."""
        return self.decoder.step(self._prompts[index], 0, self._other)

    def logits(self, found: torch.Tensor) -> np.ndarray:
        """As float64 (V)."""
        return np.asarray(found.double().numpy())

    def held(self) -> "NativeHeld":
        """What the packed bytes say."""
        return NativeHeld(self._weights, self.decoder)

    def loaded_bytes(self) -> int:
        """Bytes of all packed matrices and gains."""
        return self.decoder.stored_bytes()

    def threads(self) -> int:
        """Threads that a step computes with."""
        return torch.get_num_threads() if self._parallel else 1

    def close(self) -> None:
        """Nothing outlives the process."""


def _dimensions(p: dict[str, Any], shape: DecoderShape) -> Dimensions:
    return Dimensions(
        layers=shape.layers, model=shape.d_model, heads=shape.heads, kv_heads=shape.kv_heads, head=shape.head_dim,
        width=shape.d_ff, vocabulary=shape.vocabulary, context=max(p["context"] + 1, p["prompt_tokens"]),
        epsilon=p["epsilon"], base=p["rotary_base"],
    )  # fmt: skip


class Store:
    """Packed matrices of all layers and the head, one after the other in a file of the cache, or packed on the spot.

    At 32 bits packing only moves weights, and nothing is kept.
    """

    def __init__(self, case: Case, weights: Weights, context: Context) -> None:
        self._bits, self._weights = case.params["bits"], weights
        self._kernel = native_quant.kernel()
        made_by = f"{native_quant.built().path.stem}-{weights.key}-{self._bits}"
        folder = context.cache_dir / "model_decode"
        self._file = folder / f"native{self._bits}-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.bin"
        self._size_bytes = stored_bytes(FORMATS[case.variant], weights.shape) - 4 * weights.shape.gains
        self.artefacts: tuple[Artefact, ...] = ()

    def ready(self) -> None:
        """Pack into the file unless it is there and whole."""
        if self._bits == 32 or (self._file.exists() and self._file.stat().st_size == self._size_bytes):
            return
        start = time.perf_counter()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".{os.getpid()}")
        with partial.open("wb") as file:
            for matrix in self._drawn():
                file.write(self._kernel.pack(torch.from_numpy(matrix), self._bits).data.numpy().data)
        self._seconds.write_text(f"{time.perf_counter() - start:.3f}")
        partial.replace(self._file)

    @property
    def _seconds(self) -> Path:
        return self._file.with_suffix(".seconds")

    def into(self, decoder: Decoder) -> None:
        """Give the decoder its weights."""
        cached = self._file.exists()
        self.ready()
        packed = self._fresh() if self._bits == 32 else self._read()
        for layer in range(self._weights.shape.layers):
            gains = {name: torch.from_numpy(self._weights.gain(layer, name)) for name in ("norm", "ffn_norm")}
            decoder.add_layer({**gains, **{name: next(packed) for name in MATRICES}})
        decoder.finish(torch.from_numpy(self._weights.last_gain()), next(packed))
        if self._bits < 32:
            build_s = float(self._seconds.read_text())
            name = f"weights packed at {self._bits} bits"
            self.artefacts = (Artefact(name=name, build_s=build_s, cached=cached, size_bytes=self._size_bytes),)

    def _fresh(self) -> Iterator[Packed]:
        return (self._kernel.pack(torch.from_numpy(matrix), self._bits) for matrix in self._drawn())

    def _read(self) -> Iterator[Packed]:
        """Views of the file's bytes, which are read at once; every matrix begins with a cache line."""
        raw = torch.empty(self._size_bytes + _LINE, dtype=torch.uint8)
        data = raw[-raw.data_ptr() % _LINE :][: self._size_bytes]
        with self._file.open("rb") as file:
            if file.readinto(data.numpy().data) != self._size_bytes:
                raise RuntimeError(f"{self._file} is not whole; delete it and run again")
        begin = 0
        for outputs, inputs in self._sizes():
            size_bytes = packed_bytes(self._bits, outputs, inputs)
            yield Packed(data[begin : begin + size_bytes], self._bits, outputs, inputs)
            begin += size_bytes

    def _drawn(self) -> Iterator[np.ndarray]:
        for layer in range(self._weights.shape.layers):
            for name in MATRICES:
                yield np.vstack([self._weights.matrix(layer, part) for part in _SOURCES[name]])
        yield np.array(self._weights.table())

    def _sizes(self) -> Iterator[tuple[int, int]]:
        shape = self._weights.shape
        sizes = shape.matrices()
        for _ in range(shape.layers):
            for name in MATRICES:
                yield sum(sizes[part][0] for part in _SOURCES[name]), sizes[_SOURCES[name][0]][1]
        yield shape.vocabulary, shape.d_model


class NativeHeld(Quantised):
    """The packed weights, read apart from the kernel."""

    def __init__(self, weights: Weights, decoder: Decoder) -> None:
        super().__init__(weights)
        self._decoder = decoder

    def stored(self, layer: int, name: str) -> Stored:
        """The rows of a matrix in the packed one that it lies in."""
        whole = next(kernel for kernel, parts in _SOURCES.items() if name in parts)
        sizes = self._weights.shape.matrices()
        before = _SOURCES[whole][: _SOURCES[whole].index(name)]
        return _rows(self._decoder.layers[layer][whole], sum(sizes[part][0] for part in before))

    def stored_table(self) -> Stored:
        """The output head."""
        return _rows(self._decoder.end["head"], 0)


def _rows(packed: "Packed | torch.Tensor", first: int) -> Stored:
    """Rows of a packed matrix from ``first`` on, some panels at a time: as floats a whole head would take gigabytes."""
    assert isinstance(packed, Packed)
    data = packed.data.numpy()

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        start, stop = start + first, stop + first
        begin = start // ROWS
        part = _panels(packed, data, begin, -(-stop // ROWS))
        return decode(part).rows(start - begin * ROWS, stop - begin * ROWS)

    return Stored(rows, (data,))


def _panels(packed: Packed, data: np.ndarray, begin: int, end: int) -> Packed:
    """Panels ``begin`` to ``end`` as a matrix of their own, with their row scales."""
    panels = -(-packed.outputs // ROWS)
    scales = 0 if packed.bits == 32 else 4 * ROWS
    each = len(data) // panels - scales
    codes, steps = data[: panels * each], data[panels * each :]
    part = np.concatenate([codes[begin * each : end * each], steps[begin * scales : end * scales]])
    return Packed(torch.from_numpy(part), packed.bits, min(end * ROWS, packed.outputs) - begin * ROWS, packed.inputs)
