"""A mixture of SwiGLU experts on a GPU: token copies grouped by expert, two kernels, no host synchronisation.

:func:`mixture` computes ``y[t] = sum over k of weight[t, k] · down_e(silu(gate_e x[t]) · up_e x[t])`` with
e = expert[t, k].
Copies are sorted by expert and every expert's copies padded to whole blocks of ``BLOCK_TOKENS``; the first kernel
fuses gate, up and activation and gathers its tokens itself, the second multiplies by the mixing weights and scatters.
Each copy's answer is stored before they are added up, so results are the same bits each time.

Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token, S = T·K copies,
P padded copies.
"""

import torch
import triton
import triton.language as tl

BLOCK_TOKENS = 16
BLOCK_COLUMNS = 64
BLOCK_DEPTH = 32


@triton.jit
def _expand(
    x, gate_up, hidden, copy_P, expert_of_block, copies, chosen, model, width,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of copies by one block of hidden columns: gate and up in one pass, then the activation."""
    block = tl.program_id(0)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    place = block * TOKENS + tl.arange(0, TOKENS)
    copy = tl.load(copy_P + place)
    real = copy < copies
    row = tl.where(real, copy // chosen, 0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    gate_row = gate_up + expert * 2 * width * model + column[None, :].to(tl.int64) * model
    gate = tl.zeros((TOKENS, COLUMNS), tl.float32)
    up = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in range(0, model, DEPTH):
        k = start + tl.arange(0, DEPTH)
        deep = k < model
        tokens = tl.load(x + row[:, None] * model + k[None, :], mask=real[:, None] & deep[None, :], other=0.0)
        wanted = deep[:, None] & inside[None, :]
        gate_part = tl.load(gate_row + k[:, None], mask=wanted, other=0.0)
        up_part = tl.load(gate_row + width * model + k[:, None], mask=wanted, other=0.0)
        gate = tl.dot(tokens, gate_part, gate, input_precision=PRECISION)
        up = tl.dot(tokens, up_part, up, input_precision=PRECISION)
    answer = gate * tl.sigmoid(gate) * up
    at = hidden + place[:, None].to(tl.int64) * width + column[None, :]
    tl.store(at, answer.to(hidden.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _reduce(
    hidden, down, weight, answers, copy_P, expert_of_block, copies, model, width,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of copies by one block of output columns, times the mixing weight, to each copy's own row."""
    block = tl.program_id(0)
    expert = tl.load(expert_of_block + block).to(tl.int64)
    if expert < 0:
        return
    place = block * TOKENS + tl.arange(0, TOKENS)
    copy = tl.load(copy_P + place)
    real = copy < copies
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < model
    down_row = down + expert * model * width + column[None, :].to(tl.int64) * width
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        k = start + tl.arange(0, DEPTH)
        deep = k < width
        at = hidden + place[:, None].to(tl.int64) * width + k[None, :]
        part = tl.load(at, mask=real[:, None] & deep[None, :], other=0.0)
        matrix = tl.load(down_row + k[:, None], mask=deep[:, None] & inside[None, :], other=0.0)
        total = tl.dot(part, matrix, total, input_precision=PRECISION)
    share = tl.load(weight + copy, mask=real, other=0.0)
    at = answers + copy[:, None].to(tl.int64) * model + column[None, :]
    tl.store(at, (total * share[:, None]).to(answers.dtype.element_ty), mask=real[:, None] & inside[None, :])


def blocks_of(expert_TK: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``copy_P``, flat numbers of copies by expert with S in padded places, and the expert of each block (−1: none).

    Sizes depend on T, K and E alone, so that nothing waits for the device.
    """
    flat = expert_TK.flatten().long()
    count = len(flat)
    most_blocks = triton.cdiv(count, BLOCK_TOKENS) + experts
    order = torch.argsort(flat, stable=True)
    sorted_by = flat[order]
    sizes_E = torch.bincount(flat, minlength=experts)
    blocks_E = (sizes_E + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    ends_E = blocks_E.cumsum(0)
    first = (ends_E - blocks_E)[sorted_by] * BLOCK_TOKENS
    rank = torch.arange(count, device=flat.device) - (sizes_E.cumsum(0) - sizes_E)[sorted_by]
    copy_P = torch.full((most_blocks * BLOCK_TOKENS,), count, device=flat.device, dtype=torch.int32)
    copy_P[first + rank] = order.to(torch.int32)
    number = torch.arange(most_blocks, device=flat.device)
    owner = torch.searchsorted(ends_E, number, right=True)
    return copy_P, torch.where(owner < experts, owner, -1).to(torch.int32)


def mixture(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """y, T x D. ``gate_up`` is E x 2F x D, ``down`` E x D x F, all contiguous and of one dtype (float32, bfloat16 or
    float16)."""
    T, D = x_TD.shape
    E, two_F, _ = gate_up.shape
    F, K = two_F // 2, expert_TK.shape[1]
    copy_P, owner = blocks_of(expert_TK, E)
    hidden = x_TD.new_empty((len(copy_P), F))
    answers = x_TD.new_empty((T * K, D))
    precision = "ieee" if x_TD.dtype is torch.float32 else "tf32"
    sizes = {"TOKENS": BLOCK_TOKENS, "COLUMNS": BLOCK_COLUMNS, "DEPTH": BLOCK_DEPTH, "PRECISION": precision}
    weight = weight_TK.contiguous().float()
    _expand[(len(owner), triton.cdiv(F, BLOCK_COLUMNS))](x_TD, gate_up, hidden, copy_P, owner, T * K, K, D, F, **sizes)
    _reduce[(len(owner), triton.cdiv(D, BLOCK_COLUMNS))](
        hidden, down, weight, answers, copy_P, owner, T * K, D, F, **sizes
    )
    return answers.view(T, K, D).sum(1)
