"""Linear layers that exist on a CUDA device only: float8 as torch multiplies it, and the own 4-bit kernel."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.backends.base import content_key, recall, remember
from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context, NoPath
from frugalbench.workloads.layers import quant_device as device
from frugalbench.workloads.layers import triton_file
from frugalbench.workloads.layers.quant_stored import bfloat16, float16

_EXACT = {"bfloat16": bfloat16, "float16": float16}
FLOAT8_LARGEST = 448.0
FLOAT8_SLACK = FLOAT8_LARGEST * (2.0**-4 * 1.02 + 2.0**-8)
"""Scales that a float8 weight may lie off: half a step where steps are widest, and what bfloat16 lost before."""
_TUNING_CALLS, _TUNING_SERIES = 16, 4


def make(case: Case, source: device.Source, context: Context) -> "DeviceLinear":
    """The layer of a case; ``triton`` and ``torch``'s float8."""
    if case.backend == "triton":
        return W4A16(case, source, context.device, context.cache_dir)
    return TorchFloat8(case, source)


class DeviceLinear:
    """What such layers share."""

    artefacts: tuple[Artefact, ...] = ()
    lossy = True
    kernel = ""

    def __init__(self, case: Case, device_name: str) -> None:
        self._values, self._device = case.params["values"], device_name
        self._dtype: torch.dtype = getattr(torch, self._values)

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs on the device and in the type that the layer is fed with."""
        return torch.from_numpy(x_MK).to(self._device, self._dtype)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().cpu().numpy())

    def stored(self, copy: int) -> device.DeviceStored:
        """What the layer holds of ``copy``."""
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        return _EXACT[self._values](x_MK)

    def threads(self) -> int:
        """Threads that the library computes with on the processor."""
        return int(torch.get_num_threads())

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "cpu":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""


class TorchFloat8(DeviceLinear):
    """``torch._scaled_mm``: e4m3 weights with a scale per output, activations rounded in the call with one per token.

    Sums are the quick ones of the matrix units (``use_fast_accum``), as torchao and vLLM ask for.
    """

    def __init__(self, case: Case, source: device.Source) -> None:
        super().__init__(case, "cuda")
        if torch.cuda.get_device_capability() < (8, 9):
            raise NoPath("float8 products need compute capability 8.9 (Ada, Hopper) or later")
        self._round = triton_file.load("fp8").round_rows
        self._held = [float8_rows(source(copy)) for copy in range(case.params["copies"])]
        self.kernel = "own Triton rounding + aten::_scaled_mm e4m3, scales per row, fast accumulation"

    def run(self, copy: int, x: Any) -> Any:
        """Round the tokens, then one product."""
        codes_NK, scale_N1 = self._held[copy]
        codes_MK, scale_M1 = self._round(x)
        return torch._scaled_mm(
            codes_MK, codes_NK.t(), scale_a=scale_M1, scale_b=scale_N1.t(), out_dtype=self._dtype, use_fast_accum=True
        )

    def stored(self, copy: int) -> device.DeviceStored:
        """Codes and scales."""
        codes, scales = self._held[copy]
        return device.scaled_rows(codes, scales, FLOAT8_SLACK, (codes, scales))

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """As the format says: each token's scale, then the nearest float8."""
        codes, scales = float8_rows(torch.from_numpy(x_MK).to(self._dtype).float())
        return np.asarray((codes.double() * scales.double()).numpy())


def float8_rows(values_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (float8_e4m3fn) and scales, M x 1: largest magnitude of a row over 448."""
    largest = values_MK.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / FLOAT8_LARGEST, torch.ones_like(largest))
    return (values_MK / scale).to(torch.float8_e4m3fn), scale


class W4A16(DeviceLinear):
    """The own Triton kernel (``kernels/triton/w4a16.py``). How a call is cut is tried out once, and remembered."""

    def __init__(self, case: Case, source: device.Source, device_name: str, cache_dir: Path) -> None:
        super().__init__(case, device_name)
        self._cache_dir = cache_dir
        self._module = triton_file.load("w4a16")
        p = case.params
        self._held = [self._module.pack(source(c), p["group_size"], self._dtype) for c in range(p["copies"])]
        self._linear = self._module.Linear()
        self._chosen: dict[int, Any] = {}
        self.kernel = f"own Triton W4A16, groups of {p['group_size']} with offsets, {self._values}"
        self.details: dict[str, Any] = {"configs": {}}

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs on the device; for a new number of tokens the quickest cut of the work is chosen too."""
        x = super().prepare(x_MK)
        if len(x) not in self._chosen:
            self._chosen[len(x)] = config = self._quickest(x)
            self.details["configs"][str(len(x))] = str(config)
        return x

    def _quickest(self, x: torch.Tensor) -> Any:
        """The first worker tries; every later one takes what it found, so that replicates run the same kernel."""
        configs = self._module.candidates(len(x))
        if self._device == "cpu":
            return configs[0]
        packed = self._held[0]
        parts = {"tokens": len(x), "shape": [packed.outputs, packed.inputs, packed.group], "values": self._values}
        path = self._cache_dir / "triton" / f"w4a16-{content_key(parts | triton_file.tools('w4a16', x.device))}.json"
        if (known := recall(path)) is None:
            times_s = {str(config): self._time_s(x, config) for config in configs}
            fitting = {name: time_s for name, time_s in times_s.items() if time_s < math.inf}
            if not fitting:
                raise RuntimeError("no cut of the 4-bit Triton kernel fits this device's shared memory")
            known = {"chosen": min(fitting, key=lambda name: fitting[name]), "trials": fitting}
            remember(path, known)
        return next((config for config in configs if str(config) == known["chosen"]), configs[0])

    def _time_s(self, x: torch.Tensor, config: Any) -> float:
        """Time of a call, matrices in turn, the best of a few series: other arms may be loading beside. The first
        series, which compiles, is left out. Endless for a cut that does not fit the device."""
        from triton.runtime.errors import TritonError

        try:
            series = [self._series_s(x, config) for _ in range(_TUNING_SERIES)]
        except TritonError:
            return math.inf
        return min(series[1:])

    def _series_s(self, x: torch.Tensor, config: Any) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for copy in range(_TUNING_CALLS):
            self._linear(self._held[copy % len(self._held)], x, config)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3 / _TUNING_CALLS

    def run(self, copy: int, x: Any) -> Any:
        """One kernel."""
        return self._linear(self._held[copy], x, self._chosen[len(x)])

    def stored(self, copy: int) -> device.DeviceStored:
        """Codes, scales and middle values, read from the packed words by their description."""
        packed = self._held[copy]
        groups = packed.inputs // packed.group
        both_NG = packed.scales_GN[:groups].t()
        scale, middle = ((half & 0xFFFF).to(torch.int16).view(self._dtype) for half in (both_NG, both_NG >> 16))

        def codes(start: int, stop: int) -> torch.Tensor:
            words = packed.words_NW[start:stop].reshape(stop - start, -1, 1, 32)
            places = words >> torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)[:, None]
            return (places & 15).reshape(stop - start, -1)[:, : packed.inputs]

        return device.offset_groups(codes, scale, middle, 0.56, (packed.words_NW, packed.scales_GN))
