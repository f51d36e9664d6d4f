"""The linear layer as bitsandbytes offers it: LLM.int8 and NF4, as transformers configures them."""

import copy as copying
import logging
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    bfloat16,
    fingerprint,
    int8_rows,
    nf4_blocks,
    plain,
    token_int8,
)

OUTLIER_THRESHOLD = 6.0
"""``llm_int8_threshold`` of transformers' BitsAndBytesConfig, and the value of the paper (arXiv 2208.07339)."""


class BitsAndBytes:
    """``Linear8bitLt`` or ``Linear4bit`` layers; quantised on the way to the device, one matrix at a time."""

    artefacts: tuple[Artefact, ...] = ()
    lossy = True

    def __init__(self, source: Source, copies: int, scheme: str, device: str, cache: Path | None = None) -> None:
        import bitsandbytes
        import torch

        # Linear8bitLt warns in every single call that float32 inputs become float16 codes.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        self._torch, self._bnb = torch, bitsandbytes
        self._device = device
        self._nf4 = scheme == "nf4"
        self._layers = [self._layer(source, copy, cache) for copy in range(copies)]
        self._stored_bytes = self.stored(0).size_bytes
        if self._fused_nf4:
            self._rearrange()
        self.kernel = self._kernel()

    @property
    def _fused_nf4(self) -> bool:
        """Whether bitsandbytes rearranges NF4 codes for its AVX-512 BF16 kernel."""
        return self._nf4 and self._device == "cpu" and bool(self._layers[0].support_avx512bf16_for_cpu)

    def _rearrange(self) -> None:
        """The first call of a layer rearranges its codes and rounds its scales to bfloat16: part of loading."""
        for copy, layer in enumerate(self._layers):
            self.run(copy, self._torch.zeros(1, layer.in_features))

    def _kernel(self) -> str:
        if self._nf4:
            return "bitsandbytes::gemv_4bit nf4, bfloat16" if self._fused_nf4 else "dequantise nf4, aten::linear"
        avx512 = self._torch.backends.cpu.get_cpu_capability() == "AVX512"
        product = "int8" if self._device != "cpu" or avx512 else "float32"
        return f"bitsandbytes::int8_mixed_scaled_mm, {product} product"

    def _layer(self, source: Source, copy: int, cache: Path | None) -> Any:
        """One quantised layer; NF4 codes, which bitsandbytes is slow to find on a CPU, are kept in ``cache``."""
        if cache is None or not self._nf4 or self._device != "cpu":
            return self._quantise(source(copy))
        file = cache / f"copy{copy}-{self._bnb.__version__}.npz"
        kept = _kept(file)
        cached = kept is not None
        if kept is None:
            started = time.perf_counter()
            layer = self._quantise(source(copy))
            kept = _keep(file, layer.weight, time.perf_counter() - started)
        else:
            layer = self._restored(kept)
        build_s = sum(artefact.build_s for artefact in self.artefacts) + float(kept["build_s"])
        cached &= all(artefact.cached for artefact in self.artefacts)
        self.artefacts = (Artefact(name="NF4 codes", build_s=build_s, cached=cached),)
        return layer

    def _restored(self, kept: dict[str, np.ndarray]) -> Any:
        torch, functional = self._torch, self._bnb.functional
        n, k = (int(size) for size in kept["shape"])
        state = functional.QuantState(
            absmax=torch.from_numpy(kept["absmax"]),
            shape=torch.Size((n, k)),
            code=torch.from_numpy(kept["code"]),
            blocksize=int(kept["blocksize"]),
            quant_type="nf4",
            dtype=torch.float32,
        )
        layer = self._bnb.nn.Linear4bit(k, n, bias=False, compress_statistics=False, quant_type="nf4", device="meta")
        layer.weight = self._bnb.nn.Params4bit.from_prequantized(
            torch.from_numpy(kept["packed"]), state.as_dict(packed=True), device="cpu", module=layer
        )
        return layer.eval()

    def _quantise(self, weights_NK: np.ndarray) -> Any:
        """Quantise one matrix; its float32 weights are let go."""
        weight = self._torch.from_numpy(weights_NK)
        n, k = weights_NK.shape
        return (self._four_bit(weight, n, k) if self._nf4 else self._eight_bit(weight, n, k)).eval()

    def _eight_bit(self, weight: Any, n: int, k: int) -> Any:
        nn = self._bnb.nn
        layer = nn.Linear8bitLt(
            k, n, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
        )  # fmt: skip
        layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer.to(self._device)
        layer.init_8bit_state()
        return layer

    def _four_bit(self, weight: Any, n: int, k: int) -> Any:
        nn = self._bnb.nn
        layer = nn.Linear4bit(k, n, bias=False, compress_statistics=False, quant_type="nf4", device="meta")
        layer.weight = nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=layer
        )
        return layer.to(self._device)

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs as a float32 tensor on the device."""
        return self._torch.from_numpy(x_MK).to(self._device)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with self._torch.inference_mode():
            return self._layers[copy](x)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().cpu().numpy())

    def stored(self, copy: int) -> Stored:
        """Codes and scales of ``copy``."""
        layer = self._layers[copy]
        if not self._nf4:
            return int8_rows(layer.state.CB.cpu().numpy(), layer.state.SCB.cpu().numpy())
        packed, absmax = self._plain_order(layer.weight)
        code = layer.weight.quant_state.code
        return nf4_blocks(packed.cpu().numpy(), absmax.float().cpu().numpy(), code.cpu().numpy(), layer.in_features)

    def _plain_order(self, weight: Any) -> tuple[Any, Any]:
        """Codes and scales row by row, however the kernel wants them."""
        state = weight.quant_state
        if not getattr(state, "packing_format_for_cpu", False):
            return weight.data, state.absmax
        inverse = self._bnb.functional._convert_weight_packed_for_cpu_inverse
        packed, _ = inverse(weight.data.clone(), copying.deepcopy(state))
        return packed, state.absmax.T.contiguous()

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix, as quantised."""
        return self._stored_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        if self._nf4:
            return bfloat16(x_MK) if self._fused_nf4 else plain(x_MK)
        return token_int8(x_MK, OUTLIER_THRESHOLD)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""


def _kept(file: Path) -> dict[str, np.ndarray] | None:
    """What :func:`_keep` wrote, or ``None`` when it is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return found if fingerprint(found["packed"], found["absmax"]) == str(found["fingerprint"]) else None


def _keep(file: Path, weight: Any, build_s: float) -> dict[str, np.ndarray]:
    """Write the codes and scales of a freshly quantised weight; the file appears at once and whole."""
    state = weight.quant_state
    packed, absmax = weight.data.numpy().copy(), state.absmax.numpy().copy()
    arrays = {
        "packed": packed,
        "absmax": absmax,
        "code": state.code.numpy().copy(),
        "shape": np.array(state.shape),
        "blocksize": np.array(state.blocksize),
        "build_s": np.array(build_s),
        "fingerprint": np.array(fingerprint(packed, absmax)),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.npz")
    np.savez(partial, **arrays)
    partial.replace(file)
    return arrays
