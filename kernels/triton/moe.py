"""A mixture of SwiGLU experts on a GPU: routing, experts and their sum in five kernels, no host synchronisation.

:func:`mixture` computes ``y[t] = sum over k of weight[t, k] · down_e(silu(gate_e x[t]) · up_e x[t])`` with
e = expert[t, k]; :func:`choose` makes expert and weight of router logits. Every size depends on T, K and E alone, so a
CUDA graph can record all of it.

Copies are sorted by expert and every expert's copies padded to whole blocks. ``_expand`` fuses gate, up and activation
and gathers its tokens itself; ``_reduce`` stores each copy's answer in its own row; ``_add`` mixes the K rows of a
token in their order, so results are the same bits each time. A batch of one token has no two copies of one expert: each
copy is a block then, and nothing is sorted.

Two regimes decide the tiles (:func:`plans`). With few copies per expert the layer waits for memory: blocks of 16 copies
(padded rows cost no traffic), long runs along the rows of the weights, many programs. With many it waits for the tensor
cores: blocks of 64 or 128 copies, programs ordered so that neighbours share tokens and weights in the L2 cache.

Counts of a batch are not specialised: a new number of tokens compiles nothing that its tiles do not ask for.

Shape suffixes: T tokens, D model width, F expert width, E experts, K experts per token, S = T·K copies,
P padded copies, B blocks.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tiles(NamedTuple):
    """What one program of a product computes, and with what: columns of the answer, depth of a step, warps, stages."""

    columns: int
    depth: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """Copies in a block, tiles of both products, and blocks whose programs are neighbours."""

    tokens: int
    expand: Tiles
    reduce: Tiles
    group: int = 8


@triton.jit(do_not_specialize=["tokens", "experts"])
def _choose(
    logits, expert_TK, weight_TK, tokens, experts, scale,
    CHOSEN: tl.constexpr, SHARED: tl.constexpr, SIGMOID: tl.constexpr, NORMALISE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The CHOSEN largest logits of each token, the largest first, and their mixing weights; then the shared experts."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number, slot = tl.arange(0, WIDE), tl.arange(0, SLOTS)
    here = (row < tokens)[:, None]
    at = row[:, None].to(tl.int64) * experts + number[None, :]
    wanted = here & (number < experts)[None, :]
    left = tl.load(logits + at, mask=wanted, other=float("-inf")).to(tl.float32)
    left = tl.where(here, left, 0.0)
    if SIGMOID:
        score = tl.sigmoid(left)
    else:
        odds = tl.exp(left - tl.max(left, 1)[:, None])
        score = odds / tl.sum(odds, 1)[:, None]
    weight = tl.zeros((ROWS, SLOTS), tl.float32)
    expert = tl.zeros((ROWS, SLOTS), tl.int32) + (experts - CHOSEN + slot)[None, :]
    for k in tl.static_range(CHOSEN):
        best = tl.argmax(left, 1)
        taken = number[None, :] == best[:, None]
        weight = tl.where(slot[None, :] == k, tl.sum(tl.where(taken, score, 0.0), 1)[:, None], weight)
        expert = tl.where(slot[None, :] == k, best[:, None], expert)
        left = tl.where(taken, float("-inf"), left)
    if NORMALISE:
        weight = weight / tl.sum(weight, 1)[:, None]
    weight = tl.where(slot[None, :] < CHOSEN, weight * scale, 1.0)
    to = row[:, None] * (CHOSEN + SHARED) + slot[None, :]
    inside = here & (slot < CHOSEN + SHARED)[None, :]
    tl.store(expert_TK + to, expert, mask=inside)
    tl.store(weight_TK + to, weight.to(weight_TK.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["copies", "experts", "blocks"])
def _place(
    expert_TK, copy_P, expert_of_block, copies, experts, blocks,
    TOKENS: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One expert's blocks: the numbers of its copies, in their order, and whose they are. One program more than experts
    marks the blocks that are left.

    Every program counts all experts' copies itself, which spares a launch. Negative experts are not computed."""
    mine = tl.program_id(0)
    number, lane = tl.arange(0, BINS), tl.arange(0, CHUNK)
    count = tl.zeros((BINS,), tl.int32)
    for start in range(0, copies, CHUNK):
        expert = tl.load(expert_TK + start + lane, mask=start + lane < copies, other=-1)
        count += tl.histogram(tl.where(expert < 0, BINS - 1, expert), BINS)
    needed = tl.where(number < experts, (count + TOKENS - 1) // TOKENS, 0)
    first = tl.sum(tl.where(number < mine, needed, 0))
    own = tl.sum(tl.where(number == mine, needed, 0))
    place = first * TOKENS
    for start in range(0, copies, CHUNK):
        expert = tl.load(expert_TK + start + lane, mask=start + lane < copies, other=-1)
        is_mine = expert == mine
        rank = tl.cumsum(is_mine.to(tl.int32), 0)
        tl.store(copy_P + place + rank - 1, start + lane, mask=is_mine)
        place += tl.sum(is_mine.to(tl.int32))
    padded = place + tl.arange(0, TOKENS)
    tl.store(copy_P + padded, copies, mask=padded < (first + own) * TOKENS)
    owner = tl.where(mine < experts, mine, -1)
    last = tl.where(mine < experts, first + own, blocks)
    for start in range(first, last, CHUNK):
        tl.store(expert_of_block + start + lane, owner, mask=start + lane < last)


@triton.jit
def _program(blocks, parts, most):
    """Block and column tile of this program: ``most`` blocks take all columns before the next blocks start."""
    number = tl.program_id(0)
    first = number // (most * parts) * most
    within = number % (most * parts)
    size = tl.minimum(blocks - first, most)
    return first + within % size, within // size


@triton.jit
def _copies(block, expert_TK, copy_P, expert_of_block, copies, TOKENS: tl.constexpr, DIRECT: tl.constexpr):
    """A block's expert, the copies in its rows, and which rows are real; DIRECT blocks hold one copy each."""
    row = tl.arange(0, TOKENS)
    if DIRECT:
        expert = tl.load(expert_TK + block)
        copy = tl.where(row == 0, block, copies)
    else:
        expert = tl.load(expert_of_block + block)
        copy = tl.load(copy_P + block * TOKENS + row, mask=row < tl.where(expert < 0, 0, TOKENS), other=0)
    return expert, copy, copy < copies


@triton.jit(do_not_specialize=["copies", "blocks", "group", "chosen"])
def _expand(
    x, gate_up, hidden, expert_TK, copy_P, expert_of_block, copies, blocks, group, chosen, stride, model, width,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DIRECT: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of copies by one tile of hidden columns: gate and up in one pass, then the activation."""
    block, part = _program(blocks, tl.cdiv(width, COLUMNS), group)
    expert, copy, real = _copies(block, expert_TK, copy_P, expert_of_block, copies, TOKENS, DIRECT)
    if expert < 0:
        return
    k = tl.arange(0, DEPTH)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    token = tl.where(real, copy // chosen, 0).to(tl.int64)
    token_at = x + token[:, None] * stride + k[None, :]
    gate_at = gate_up + expert.to(tl.int64) * 2 * width * model
    gate_at += tl.where(inside, column, 0)[:, None] * model + k[None, :]
    up_at = gate_at + width * model
    gate = tl.zeros((TOKENS, COLUMNS), tl.float32)
    up = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in range(0, model, DEPTH):
        if EVEN:
            tokens = tl.load(token_at, mask=real[:, None], other=0.0)
            gate_part, up_part = tl.load(gate_at), tl.load(up_at)
        else:
            deep = (start + k < model)[None, :]
            tokens = tl.load(token_at, mask=real[:, None] & deep, other=0.0)
            gate_part, up_part = tl.load(gate_at, mask=deep, other=0.0), tl.load(up_at, mask=deep, other=0.0)
        gate = tl.dot(tokens, tl.trans(gate_part), gate, input_precision=PRECISION)
        up = tl.dot(tokens, tl.trans(up_part), up, input_precision=PRECISION)
        token_at += DEPTH
        gate_at += DEPTH
        up_at += DEPTH
    answer = gate * tl.sigmoid(gate) * up
    row = block.to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    at = hidden + row[:, None] * width + column[None, :]
    tl.store(at, answer.to(hidden.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["copies", "blocks", "group"])
def _reduce(
    hidden, down, answers, expert_TK, copy_P, expert_of_block, copies, blocks, group, model, width,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, DIRECT: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of copies by one tile of output columns, to each copy's own row."""
    block, part = _program(blocks, tl.cdiv(model, COLUMNS), group)
    expert, copy, real = _copies(block, expert_TK, copy_P, expert_of_block, copies, TOKENS, DIRECT)
    if expert < 0:
        return
    k = tl.arange(0, DEPTH)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < model
    row = block.to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    hidden_at = hidden + row[:, None] * width + k[None, :]
    down_at = down + expert.to(tl.int64) * model * width
    down_at += tl.where(inside, column, 0)[:, None] * width + k[None, :]
    total = tl.zeros((TOKENS, COLUMNS), tl.float32)
    for start in range(0, width, DEPTH):
        if EVEN:
            values = tl.load(hidden_at, mask=real[:, None], other=0.0)
            matrix = tl.load(down_at)
        else:
            deep = (start + k < width)[None, :]
            values = tl.load(hidden_at, mask=real[:, None] & deep, other=0.0)
            matrix = tl.load(down_at, mask=deep, other=0.0)
        total = tl.dot(values, tl.trans(matrix), total, input_precision=PRECISION)
        hidden_at += DEPTH
        down_at += DEPTH
    at = answers + copy[:, None].to(tl.int64) * model + column[None, :]
    tl.store(at, total.to(answers.dtype.element_ty), mask=real[:, None] & inside[None, :])


@triton.jit
def _add(answers, expert_TK, weight_TK, y, model, CHOSEN: tl.constexpr, COLUMNS: tl.constexpr):
    """One token's answers by one tile of columns, each times its mixing weight, in float32 in the order of choices."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < model
    total = tl.zeros((COLUMNS,), tl.float32)
    for k in tl.static_range(CHOSEN):
        copy = token * CHOSEN + k
        computed = tl.load(expert_TK + copy) >= 0
        answer = tl.load(answers + copy * model + column, mask=inside & computed, other=0.0)
        total += answer.to(tl.float32) * tl.load(weight_TK + copy).to(tl.float32)
    tl.store(y + token * model + column, total.to(y.dtype.element_ty), mask=inside)


_FEW = (
    (Tiles(64, 128, 4, 3), Tiles(32, 128, 4, 4), Tiles(64, 64, 4, 5), Tiles(32, 256, 4, 3), Tiles(16, 256, 2, 4)),
    (Tiles(64, 128, 4, 4), Tiles(32, 128, 4, 4), Tiles(128, 64, 4, 4), Tiles(32, 256, 4, 3)),
)
_SOME = (
    (Tiles(64, 64, 4, 4), Tiles(128, 64, 4, 3), Tiles(64, 128, 4, 3)),
    (Tiles(128, 64, 4, 4), Tiles(64, 64, 4, 4), Tiles(128, 128, 4, 3)),
)
_MANY = (
    (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 4), Tiles(64, 64, 4, 4)),
    (Tiles(128, 64, 8, 4), Tiles(256, 64, 8, 3), Tiles(128, 64, 4, 4)),
)
_TILES = {16: _FEW, 32: _SOME, 64: _SOME, 128: _MANY}
"""By copies in a block: tiles of ``_expand``, then of ``_reduce``, for 16-bit values; the first is the default."""
_FLOAT32 = {16: Tiles(32, 64, 4, 3), 32: Tiles(32, 32, 4, 3), 64: Tiles(64, 32, 8, 3)}
"""For float32, which no tensor core multiplies exactly."""


def block_sizes(copies: int, experts: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Copies in a block that are worth trying for S copies over E experts, the default first.

    The smallest block that holds an expert's mean share wastes the least rows; 16 is the least that tensor cores take.
    Above 64 the larger block reads weights less often and the smaller wastes less.
    """
    share = copies / min(copies, experts)
    if dtype is torch.float32:
        return (16,) if share <= 8 else (32,) if share <= 48 else (64,)
    if share <= 8:
        return (16,)
    if share <= 24:
        return (16, 32)
    return (64, 32) if share <= 64 else (64, 128) if share <= 192 else (128, 64)


def plans(copies: int, experts: int, dtype: torch.dtype) -> list[Plan]:
    """Plans worth trying, the default first. Tiles of the two products vary one at a time: they do not depend on each
    other."""
    found = []
    for tokens in block_sizes(copies, experts, dtype):
        if dtype is torch.float32:
            found.append(Plan(tokens, _FLOAT32[tokens], _FLOAT32[tokens]))
            continue
        expands, reduces = _TILES[tokens]
        found += [Plan(tokens, expand, reduces[0]) for expand in expands]
        found += [Plan(tokens, expands[0], reduce) for reduce in reduces[1:]]
    return found


def choose(
    logits_TE: torch.Tensor, chosen: int, gate: str, normalise: bool, scale: float, shared: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers (int32) and mixing weights (``dtype``) of each token's experts, T x (chosen + shared), shared ones last.

    Scores are computed in float32; ``gate`` is ``softmax`` or ``sigmoid``."""
    T, E = logits_TE.shape
    expert_TK = torch.empty((T, chosen + shared), dtype=torch.int32, device=logits_TE.device)
    weight_TK = torch.empty((T, chosen + shared), dtype=dtype, device=logits_TE.device)
    wide, slots = triton.next_power_of_2(E), triton.next_power_of_2(chosen + shared)
    rows = 1 if T <= 256 else 4
    _choose[(triton.cdiv(T, rows),)](
        logits_TE.contiguous(), expert_TK, weight_TK, T, E, scale,
        CHOSEN=chosen, SHARED=shared, SIGMOID=gate == "sigmoid", NORMALISE=normalise,
        ROWS=rows, WIDE=wide, SLOTS=slots, num_warps=1 if wide * rows <= 256 else 4,
    )  # fmt: skip
    return expert_TK, weight_TK


def most_blocks(copies: int, experts: int, tokens: int) -> int:
    """Blocks that S copies can fill at most: none is empty, and each expert leaves at most one unfilled."""
    return min(copies, (copies + experts * (tokens - 1)) // tokens)


def blocks_of(expert_TK: torch.Tensor, experts: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``copy_P``, flat numbers of copies by expert with S in padded places, and the expert of each block (−1: none).

    ``expert_TK`` is int32 and contiguous; negative experts have no place.
    """
    copies = expert_TK.numel()
    blocks = most_blocks(copies, experts, tokens)
    copy_P = torch.empty(blocks * tokens, dtype=torch.int32, device=expert_TK.device)
    owner_B = torch.empty(blocks, dtype=torch.int32, device=expert_TK.device)
    chunk = min(max(128, triton.next_power_of_2(copies)), 2048)
    bins = max(64, triton.next_power_of_2(experts + 1))
    _place[(experts + 1,)](
        expert_TK,
        copy_P,
        owner_B,
        copies,
        experts,
        blocks,
        TOKENS=tokens,
        BINS=bins,
        CHUNK=chunk,
        num_warps=4 if chunk <= 512 else 8,
    )
    return copy_P, owner_B


def mixture(
    x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    plan: Plan | None = None,
) -> torch.Tensor:  # fmt: skip
    """y, T x D. ``gate_up`` is E x 2F x D, ``down`` E x D x F, both contiguous, and with ``x_TD`` of one dtype
    (float32, bfloat16 or float16); rows of ``x_TD`` may be apart. A choice of a negative expert adds nothing.

    Raises ``ValueError`` for weights that are not contiguous: copying them would cost more than the layer.
    """
    if not (gate_up.is_contiguous() and down.is_contiguous()):
        raise ValueError("expert weights must be contiguous")
    x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
    (T, D), (E, _, F), K = x_TD.shape, down.shape, expert_TK.shape[1]
    plan = plan or plans(T * K, E, x_TD.dtype)[0]
    expert_TK = expert_TK.to(torch.int32).contiguous()
    direct = T == 1
    copy_P, owner_B = (expert_TK, expert_TK) if direct else blocks_of(expert_TK, E, plan.tokens)
    blocks = owner_B.numel()
    hidden = x_TD.new_empty((blocks * plan.tokens, F))
    answers = x_TD.new_empty((T * K, D))
    table = expert_TK, copy_P, owner_B, T * K, blocks, plan.group
    common = {"TOKENS": plan.tokens, "DIRECT": direct}
    common["PRECISION"] = "ieee" if x_TD.dtype is torch.float32 else "tf32"
    _expand[(blocks * triton.cdiv(F, plan.expand.columns),)](
        x_TD, gate_up, hidden, *table, K, x_TD.stride(0), D, F, **common, **_options(plan.expand, D)
    )
    _reduce[(blocks * triton.cdiv(D, plan.reduce.columns),)](
        hidden, down, answers, *table, D, F, **common, **_options(plan.reduce, F)
    )
    y_TD = x_TD.new_empty((T, D))
    columns = min(1024, triton.next_power_of_2(D))
    _add[(T, triton.cdiv(D, columns))](
        answers, expert_TK, weight_TK.contiguous(), y_TD, D, CHOSEN=K, COLUMNS=columns, num_warps=4
    )
    return y_TD


def _options(tiles: Tiles, depth: int) -> dict[str, int]:
    return {
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "EVEN": depth % tiles.depth == 0,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
