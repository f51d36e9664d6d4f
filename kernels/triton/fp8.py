"""Rows of bfloat16 or float16 rounded to float8 (e4m3) in one pass, with a float32 scale each."""

import torch
import triton
import triton.language as tl

LARGEST = 448.0
"""Largest e4m3 value (OCP 8-bit floating point specification, revision 1.0)."""


@triton.jit
def _round(x, codes, scales, inputs, LARGEST: tl.constexpr, WIDTH: tl.constexpr):
    """One row: scale = largest magnitude / 448, code = nearest float8 to value / scale. Divisions round as IEEE's."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    values = tl.load(x + row * inputs + k, mask=k < inputs, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), 0)
    scale = tl.where(largest > 0, tl.div_rn(largest, LARGEST), 1.0)
    tl.store(scales + row, scale)
    tl.store(codes + row * inputs + k, tl.div_rn(values, scale).to(tl.float8e4nv), mask=k < inputs)


def round_rows(x_MK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes M x K (float8_e4m3fn) and scales M x 1 (float32)."""
    M, K = x_MK.shape
    codes = torch.empty((M, K), dtype=torch.float8_e4m3fn, device=x_MK.device)
    scales = torch.empty((M, 1), dtype=torch.float32, device=x_MK.device)
    width = triton.next_power_of_2(K)
    _round[(M,)](x_MK, codes, scales, K, LARGEST=LARGEST, WIDTH=width, num_warps=8 if width >= 4096 else 4)
    return codes, scales
