"""The peaks of a CUDA device: a library's best products, and memory read and copied; every arm is checked.

Products are torch's (cuBLAS) on random matrices, never zeros, whose power would flatter. Buffers are filled as the
CPU's are (:mod:`frugalbench.workloads.machine_peaks`), so the same sums in closed form hold.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Arm, Artefact, Case
from frugalbench.workloads import device, machine_peaks
from frugalbench.workloads.base import Arrays, Bound, Context, NoPath
from frugalbench.workloads.layers import quant_device, triton_file

Call = Callable[[], torch.Tensor]

CHECKED_ROWS = 16
_DTYPES = {
    "bf16_flop_per_s": torch.bfloat16,
    "fp16_flop_per_s": torch.float16,
    "fp32_flop_per_s": torch.float32,
    "tf32_flop_per_s": torch.float32,
    "int8_op_per_s": torch.int8,
    "fp8_flop_per_s": torch.float8_e4m3fn,
}
_INT8_STEPS = 32
"""Codes per standard deviation of the int8 matrices."""
_TRIED_CALLS = 5


class CudaPeak:
    """One peak: its matrices or buffers, and the call."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context) -> None:
        case = arm.cases[0]
        self._device = device.of(context.device)
        self._is_product = "matrix" in case.params
        make = _product if self._is_product else _memory
        self._call, self._output, self._kernel = make(case, context.device)

    def bind(self, case: Case) -> Bound:  # noqa: ARG002 (an arm has one case)
        """The call that loading prepared."""
        return Bound(
            call=lambda _index: self._call(),
            output=lambda _index: self._output(),
            rotation=1,
            synchronize=self._device.synchronize if self._device else lambda: None,
            device=self._device,
            details={"kernel": self._kernel},
        )

    def close(self) -> None:
        """Nothing outlives the process."""


def reference(case: Case, context: Context) -> Arrays:
    """Float64 product of the checked rows, (1, rows, n); sums of buffers in closed form."""
    if "matrix" not in case.params:
        return machine_peaks.closed_form(case)
    a, b = _matrices(case, context.device)
    rows = a[_checked(len(a))].double() @ b.double().T
    return {"rows": rows.cpu().numpy()[np.newaxis]}


# --- products ---------------------------------------------------------------------------------------------------


def _matrices(case: Case, device_name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B, n x n, of the peak's type; multiplied as A B^T. Values have standard deviation 1 (int8: 32)."""
    n, dtype = case.params["matrix"], _DTYPES[case.variant]
    drawn = (quant_device.weights(case.params["seed"], copy, n, n, device_name) * n**0.5 for copy in range(2))
    if dtype is torch.int8:
        drawn = (torch.round(values * _INT8_STEPS).clamp(-127, 127) for values in drawn)
    a, b = (values.to(dtype) for values in drawn)
    return a, b


def _product(case: Case, device_name: str) -> tuple[Call, Callable[[], Arrays], str]:
    a, b = _matrices(case, device_name)
    torch.set_float32_matmul_precision("high" if case.variant == "tf32_flop_per_s" else "highest")
    call, kernel = _multiplied(case.variant, a, b)
    try:
        call()
    except RuntimeError as problem:
        raise NoPath(f"{kernel} does not run here: {str(problem).strip().splitlines()[0]}") from problem

    def output() -> Arrays:
        return {"rows": call()[_checked(len(a))].double().cpu().numpy()}

    return call, output, kernel


def _multiplied(variant: str, a: torch.Tensor, b: torch.Tensor) -> tuple[Call, str]:
    if variant == "int8_op_per_s":
        return partial(torch._int_mm, a, b.t()), "aten::_int_mm"
    if variant == "fp8_flop_per_s":
        one = torch.ones((), device=a.device)
        scaled = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
        return partial(scaled, a, b.t()), "aten::_scaled_mm e4m3, fast accumulation"
    return partial(torch.mm, a, b.t()), f"aten::mm {variant.partition('_')[0]}"


def _checked(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, CHECKED_ROWS).astype(int))


# --- memory -----------------------------------------------------------------------------------------------------


def _memory(case: Case, device_name: str) -> tuple[Call, Callable[[], Arrays], str]:
    source = _filled(case.params, device_name)
    if case.variant == "read_bytes_per_s":
        kernel, call = _quickest_read(source)
        return call, lambda: {"checksum": machine_peaks.checksum_halves(int(call().item()) % 2**64)}, kernel
    target = torch.ones_like(source)

    def output() -> Arrays:
        target.fill_(1)  # what an earlier call left there must not pass for this one's work
        target.copy_(source)
        return machine_peaks.copied(target.cpu().numpy().view(np.uint64))

    return partial(target.copy_, source), output, "aten::copy_"


def _filled(params: dict[str, Any], device_name: str) -> torch.Tensor:
    """The buffer, int64; see :func:`frugalbench.workloads.machine_peaks.fill`."""
    base = torch.from_numpy(machine_peaks.base_words(params["seed"]).view(np.int64)).to(device_name)
    blocks = params["buffer_bytes"] // 8 // machine_peaks.BLOCK
    factors = 2 * torch.arange(blocks, dtype=torch.int64, device=device_name) + 1
    return (factors[:, None] * base).reshape(-1)


def _quickest_read(words: torch.Tensor) -> tuple[str, Call]:
    """torch's sum, or the own kernel where Triton is there and it is quicker: a peak is the best that is known."""
    known: dict[str, Call] = {"aten::sum int64": words.sum}
    if words.is_cuda and importlib.util.find_spec("triton") is not None:
        read = triton_file.load("peaks").read
        for steps, width, warps in ((8, 2048, 8), (4, 2048, 4), (16, 1024, 4), (8, 4096, 8)):
            known[f"own Triton reader, {steps} x {width} words, {warps} warps"] = partial(
                read, words, steps, width, warps
            )
    if len(known) == 1:
        return next(iter(known.items()))
    return min(known.items(), key=lambda item: _time_s(item[1]))


def _time_s(call: Call) -> float:
    """Best of a few calls; the first two, which may compile, are left out."""
    times = []
    for _ in range(_TRIED_CALLS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        times.append(float(first.elapsed_time(last)) * 1e-3)
    return min(times[2:])
