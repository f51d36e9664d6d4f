"""The linear layer as bitsandbytes offers it: LLM.int8, NF4 and FP4, as transformers configures them."""

import copy as copying
import logging
from pathlib import Path
from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.quant_copies import Copies, Parts
from frugalbench.workloads.layers.quant_stored import (
    Source,
    bfloat16,
    float16,
    int8_rows,
    nf4_blocks,
    plain,
    token_int8,
)

OUTLIER_THRESHOLD = 6.0
"""``llm_int8_threshold`` of transformers' BitsAndBytesConfig, and the value of the paper (arXiv 2208.07339)."""
_BLOCK = 64
"""Weights that share a scale: bitsandbytes' default for 4 bits."""


def make(case: Case, source: Source, context: Context) -> "BitsAndBytes":
    """The layer of a case."""
    p = case.params
    cache = context.cache_dir / "quantized_linear" / f"{p['scheme']}-{p['n']}x{p['k']}-seed{p['seed']}"
    return BitsAndBytes(source, p["copies"], p["scheme"], context.device, (p["n"], p["k"]), cache, p["values"])


class BitsAndBytes:
    """``Linear8bitLt`` or ``Linear4bit`` layers; quantised on the way to the device, one matrix at a time.

    On a CPU, where bitsandbytes is slow to quantise, codes and scales are kept in ``cache``.
    """

    artefacts: tuple[Artefact, ...] = ()
    lossy = True

    def __init__(
        self, source: Source, copies: int, scheme: str, device: str, shape_NK: tuple[int, int], cache: Path,
        values: str = "float32",
    ) -> None:  # fmt: skip
        import bitsandbytes
        import torch

        # Linear8bitLt warns in every single call that float32 inputs become float16 codes.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        self._torch, self._bnb = torch, bitsandbytes
        self._device, self._shape = device, shape_NK
        self._scheme, self._values = scheme, values
        self._four = scheme in ("nf4", "fp4")
        self._layers = self._made(source, copies, cache)
        self._stored_bytes = self.stored(0).size_bytes
        if self._fused_four:
            self._rearrange()
        self.kernel = self._kernel()

    def _made(self, source: Source, copies: int, cache: Path) -> list[Any]:
        if self._device != "cpu":
            return [self._quantise(source(copy)) for copy in range(copies)]
        folder = cache.with_name(f"{cache.name}-{self._bnb.__version__}")
        made = Copies(source, self._shape[0], self._codes, folder)
        layers = [self._restored(made.parts(copy)) for copy in range(copies)]
        self.artefacts = made.artefacts(f"{self._scheme.upper()} codes" if self._four else "LLM.int8 codes")
        return layers

    @property
    def _fused_four(self) -> bool:
        """Whether bitsandbytes rearranges 4-bit codes for its AVX-512 BF16 kernel."""
        return self._four and self._device == "cpu" and bool(self._layers[0].support_avx512bf16_for_cpu)

    def _rearrange(self) -> None:
        """The first call of a layer rearranges its codes and rounds its scales to bfloat16: part of loading."""
        for copy, layer in enumerate(self._layers):
            self.run(copy, self._torch.zeros(1, layer.in_features))

    def _kernel(self) -> str:
        if self._device != "cpu":
            from frugalbench.workloads.layers.quant_device import operators

            x = self.prepare(np.ones((1, self._shape[1]), np.float32))
            return f"{' + '.join(operators(lambda: self.run(0, x)))}, {self._scheme}, {self._values}"
        if self._four:
            fused = f"bitsandbytes::gemv_4bit {self._scheme}, bfloat16"
            return fused if self._fused_four else f"dequantise {self._scheme}, aten::linear"
        avx512 = self._torch.backends.cpu.get_cpu_capability() == "AVX512"
        product = "int8" if avx512 else "float32"
        return f"bitsandbytes::int8_mixed_scaled_mm, {product} product"

    def _codes(self, weights_NK: np.ndarray) -> Parts:
        """Codes and scales, both (n, ...), as bitsandbytes chooses them."""
        layer = self._quantise(weights_NK)
        if not self._four:
            return layer.state.CB.numpy(), layer.state.SCB.numpy()
        n = len(weights_NK)
        return layer.weight.data.numpy().reshape(n, -1), layer.weight.quant_state.absmax.numpy().reshape(n, -1)

    def _restored(self, parts: Parts) -> Any:
        codes, scales = (self._torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return (self._restored_four(codes, scales) if self._four else self._restored_int8(codes, scales)).eval()

    def _restored_int8(self, codes_NK: Any, absmax_N: Any) -> Any:
        nn, (n, k) = self._bnb.nn, self._shape
        layer = nn.Linear8bitLt(
            k, n, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
        )  # fmt: skip
        layer.weight = nn.Int8Params(
            codes_NK, requires_grad=False, has_fp16_weights=False, CB=codes_NK, SCB=absmax_N
        )  # fmt: skip
        layer.init_8bit_state()
        return layer

    def _restored_four(self, packed: Any, absmax: Any) -> Any:
        torch, functional, (n, k) = self._torch, self._bnb.functional, self._shape
        state = functional.QuantState(
            absmax=absmax.reshape(-1),
            shape=torch.Size((n, k)),
            code=functional.get_4bit_type(self._scheme, device="cpu"),
            blocksize=_BLOCK,
            quant_type=self._scheme,
            dtype=torch.float32,
        )
        layer = self._bnb.nn.Linear4bit(
            k, n, bias=False, compress_statistics=False, quant_type=self._scheme, device="meta"
        )
        layer.weight = self._bnb.nn.Params4bit.from_prequantized(
            packed.reshape(-1, 1), state.as_dict(packed=True), device="cpu", module=layer
        )
        return layer

    def _quantise(self, weights_NK: np.ndarray) -> Any:
        """Quantise one matrix; its float32 weights are let go."""
        weight = self._torch.as_tensor(weights_NK)
        n, k = weights_NK.shape
        return (self._four_bit(weight, n, k) if self._four else self._eight_bit(weight, n, k)).eval()

    def _eight_bit(self, weight: Any, n: int, k: int) -> Any:
        nn = self._bnb.nn
        if weight.device.type != "cpu":  # a layer quantises on its way from the processor only
            codes, absmax, _ = self._bnb.functional.int8_vectorwise_quant(weight.half())
            return self._restored_int8(codes, absmax)
        layer = nn.Linear8bitLt(
            k, n, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
        )  # fmt: skip
        layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        layer.to(self._device)
        layer.init_8bit_state()
        return layer

    def _four_bit(self, weight: Any, n: int, k: int) -> Any:
        nn = self._bnb.nn
        layer = nn.Linear4bit(k, n, bias=False, compress_statistics=False, quant_type=self._scheme, device="meta")
        layer.weight = nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type=self._scheme, module=layer
        )
        return layer.to(self._device)

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs on the device: float32 on a CPU, 16 bits on a GPU."""
        return self._torch.from_numpy(x_MK).to(self._device, getattr(self._torch, self._values))

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with self._torch.inference_mode():
            return self._layers[copy](x)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().cpu().numpy())

    def stored(self, copy: int) -> Any:
        """Codes and scales of ``copy``."""
        layer = self._layers[copy]
        if self._device != "cpu":
            return self._on_device(layer)
        if not self._four:
            codes, absmax = layer.state.CB.cpu().numpy(), layer.state.SCB.cpu().numpy()
            return int8_rows(codes, absmax / np.float64(127), 2.0**-11, (codes, absmax))
        packed, absmax = self._plain_order(layer.weight)
        code = layer.weight.quant_state.code
        return nf4_blocks(packed.cpu().numpy(), absmax.float().cpu().numpy(), code.cpu().numpy(), layer.in_features)

    def _on_device(self, layer: Any) -> Any:
        from frugalbench.workloads.layers import quant_device

        if not self._four:
            codes, absmax = layer.state.CB, layer.state.SCB
            return quant_device.scaled_rows(codes, absmax.double() / 127, 0.51 + 127 * 2.0**-11, (codes, absmax))
        state = layer.weight.quant_state
        return quant_device.table_blocks(layer.weight.data, state.absmax, state.code, layer.in_features)

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
        return int(self._stored_bytes)

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        if self._four:
            return bfloat16(x_MK) if self._fused_four or self._values == "bfloat16" else plain(x_MK)
        exact = float16(x_MK).astype(np.float32) if self._values == "float16" else x_MK
        return token_int8(exact, OUTLIER_THRESHOLD)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            self._torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""
