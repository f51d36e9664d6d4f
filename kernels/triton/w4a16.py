"""A linear layer whose weights have 4 bits and whose activations and results are bfloat16 or float16, on a GPU.

Stored, for N outputs and K inputs, K filled up to whole blocks of ``BLOCK`` = 256 inputs with groups that are zero:

``words_NW``   int32, N x K/8. Word ``32 b + w`` of a row holds the codes of inputs ``256 b + 32 s + w`` for s = 0 to 7,
               code s in bits 4s to 4s + 3. So the codes in one place of 32 neighbouring words belong to 32 neighbouring
               inputs: a lane reads 16 bytes of words at a time, and no value changes lane to meet its input.
``scales_GN``  one number per group of 32, 64 or 128 inputs and output, outputs innermost. Plain: the scale, in the type
               of the activations. With offsets: int32, the scale's bits in the lower half, the middle value's above.

A weight is ``(code - 8) · scale + middle``. No integer is converted to a float: a code in bits 16 to 19 under the
exponent of 128 *is* the float32 128 + code, and in bits 12 to 15 under that of 2048 it is 2048 + code; one multiply-add
makes the weight.

Few tokens (:func:`_vector`) are multiplied in float32 on the plain units; more (:func:`_tile`) on the matrix units,
weights rounded to the activations' type, as ``W x^T`` so that outputs fill the tall side. Where the inputs are split
between programs, each leaves its part in memory and the last to arrive adds them up in order: results are the same bits
each time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

BLOCK = 256
"""Inputs of a block."""
LANES = 32
"""Words of a block, and inputs of one place of its words."""
GROUPS = (32, 64, 128)
MOST_VECTOR_TOKENS = 4


@triton.jit
def _codes(words, PLACE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Floats ``base + code`` of one place, base 2048 where the place is even and 128 where it is odd.

    Written out, "and" and "or" take two instructions on a unit of half speed; the compiler does not join them.
    """
    if PLACE < 2:
        moved = words << 12
    elif PLACE < 4:
        moved = words << 4
    elif PLACE < 6:
        moved = words >> 4
    else:
        moved = words >> 12
    if INTERPRETED:
        bits = (moved & 0x0000F000) | 0x45000000 if PLACE % 2 == 0 else (moved & 0x000F0000) | 0x43000000
    elif PLACE % 2 == 0:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0x0000F000, 0x45000000, 0xEA;", "=r,r", [moved], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        bits = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, 0x000F0000, 0x43000000, 0xEA;", "=r,r", [moved], dtype=tl.int32, is_pure=True, pack=1
        )
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _scales(scales, group, outputs, column, inside, TYPE: tl.constexpr, OFFSETS: tl.constexpr):
    """Scale and middle value of a group, float32."""
    packed = tl.load(scales + group * outputs + column, mask=inside, other=0)
    if not OFFSETS:
        scale = packed.to(tl.float32)
        return scale, scale * 0.0
    scale = (packed & 0xFFFF).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
    middle = ((packed >> 16) & 0xFFFF).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
    return scale, middle


@triton.jit
def _weights(words, scale, middle, PLACE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Weights of one place, float32."""
    base = 2056.0 if PLACE % 2 == 0 else 136.0
    return _codes(words, PLACE, INTERPRETED) * scale[:, None] + (middle - base * scale)[:, None]


@triton.jit
def _token(x, token, tokens, k, inputs, WHOLE: tl.constexpr):
    """Values of one token, float32; zeros behind the last token and the last input."""
    if WHOLE:
        values = tl.load(x + token * inputs + k, mask=token < tokens, other=0.0)
    else:
        values = tl.load(x + token * inputs + k, mask=(k < inputs) & (token < tokens), other=0.0)
    return values.to(tl.float32)


@triton.jit
def _vector(
    x, words, scales, y, parts, arrived, tokens, outputs, inputs, blocks,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr, OFFSETS: tl.constexpr,
    WHOLE: tl.constexpr, EACH: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """At most four tokens by ``COLUMNS`` outputs, over every SPLITS-th share of the blocks."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    lane = tl.arange(0, 32)
    first = tl.program_id(1) * EACH
    at = words + column.to(tl.int64)[:, None] * (blocks * 32) + lane[None, :]
    sum0 = tl.zeros((COLUMNS, 32), tl.float32)
    sum1 = tl.zeros((COLUMNS, 32), tl.float32)
    sum2 = tl.zeros((COLUMNS, 32), tl.float32)
    sum3 = tl.zeros((COLUMNS, 32), tl.float32)
    following = tl.load(at + first * 32, mask=inside[:, None] & (first < blocks), other=0)
    for step in range(EACH):
        packed, block = following, first + step
        there = inside if WHOLE else inside & (block < blocks)
        more = (step + 1 < EACH) & (block + 1 < blocks)
        following = tl.load(at + (block + 1) * 32, mask=inside[:, None] & more, other=0)
        for group in tl.static_range(256 // GROUP):
            scale, middle = _scales(
                scales, block * (256 // GROUP) + group, outputs, column, there, x.dtype.element_ty, OFFSETS
            )
            for place in tl.static_range(group * GROUP // 32, (group + 1) * GROUP // 32):
                weights = _weights(packed, scale, middle, place, INTERPRETED)
                k = block * 256 + place * 32 + lane
                sum0 += weights * _token(x, 0, tokens, k, inputs, WHOLE)[None, :]
                if TOKENS > 1:
                    sum1 += weights * _token(x, 1, tokens, k, inputs, WHOLE)[None, :]
                if TOKENS > 2:
                    sum2 += weights * _token(x, 2, tokens, k, inputs, WHOLE)[None, :]
                    sum3 += weights * _token(x, 3, tokens, k, inputs, WHOLE)[None, :]
    _finish(tl.sum(sum0, 1), 0, y, parts, tokens, outputs, column, inside, SPLITS)
    if TOKENS > 1:
        _finish(tl.sum(sum1, 1), 1, y, parts, tokens, outputs, column, inside, SPLITS)
    if TOKENS > 2:
        _finish(tl.sum(sum2, 1), 2, y, parts, tokens, outputs, column, inside, SPLITS)
        _finish(tl.sum(sum3, 1), 3, y, parts, tokens, outputs, column, inside, SPLITS)
    if SPLITS > 1:  # noqa: SIM102 (decided when compiled)
        if _is_last(arrived + tl.program_id(0), SPLITS):
            for token in tl.static_range(TOKENS):
                total = tl.zeros((COLUMNS,), tl.float32)
                for split in tl.static_range(SPLITS):
                    place_of = parts + (split * tokens + token) * outputs + column
                    total += tl.load(place_of, mask=inside & (token < tokens), other=0.0, cache_modifier=".cg")
                tl.store(y + token * outputs + column, total.to(y.dtype.element_ty), mask=inside & (token < tokens))


@triton.jit
def _finish(total, token, y, parts, tokens, outputs, column, inside, SPLITS: tl.constexpr):
    """Store a token's results, or this program's part of them."""
    wanted = inside & (token < tokens)
    if SPLITS == 1:
        tl.store(y + token * outputs + column, total.to(y.dtype.element_ty), mask=wanted)
    else:
        tl.store(parts + (tl.program_id(1) * tokens + token) * outputs + column, total, mask=wanted)


@triton.jit
def _is_last(counter, SPLITS: tl.constexpr):
    """Whether all other programs of these outputs have stored their parts; the counter is 0 again then."""
    tl.debug_barrier()
    before = tl.atomic_add(counter, 1, sem="acq_rel")
    tl.debug_barrier()
    if before == SPLITS - 1:
        tl.store(counter, 0)
    return before == SPLITS - 1


@triton.jit
def _tile(
    x, words, scales, y, parts, arrived, tokens, outputs, inputs, blocks,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, GROUP: tl.constexpr, OFFSETS: tl.constexpr,
    WHOLE: tl.constexpr, EACH: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """``TOKENS`` tokens by ``COLUMNS`` outputs, over every SPLITS-th share of the blocks."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < outputs
    token = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    real = token < tokens
    lane = tl.arange(0, 32)
    first = tl.program_id(1) * EACH
    at = words + column.to(tl.int64)[:, None] * (blocks * 32) + lane[None, :]
    rows = x + token.to(tl.int64)[None, :] * inputs
    total = tl.zeros((COLUMNS, TOKENS), tl.float32)
    for step in range(EACH):
        block = first + step
        there = inside if WHOLE else inside & (block < blocks)
        packed = tl.load(at + block * 32, mask=there[:, None], other=0)
        for group in tl.static_range(256 // GROUP):
            scale, middle = _scales(
                scales, block * (256 // GROUP) + group, outputs, column, there, x.dtype.element_ty, OFFSETS
            )
            for place in tl.static_range(group * GROUP // 32, (group + 1) * GROUP // 32):
                weights = _weights(packed, scale, middle, place, INTERPRETED).to(x.dtype.element_ty)
                k = block * 256 + place * 32 + lane
                wanted = real[None, :] if WHOLE else real[None, :] & (k < inputs)[:, None]
                values = tl.load(rows + k[:, None], mask=wanted, other=0.0)
                if INTERPRETED:
                    total = tl.dot(weights.to(tl.float32), values.to(tl.float32), total, input_precision="ieee")
                else:
                    total = tl.dot(weights, values, total)
    here = token[None, :].to(tl.int64) * outputs + column[:, None]
    wanted = inside[:, None] & real[None, :]
    if SPLITS == 1:
        tl.store(y + here, total.to(y.dtype.element_ty), mask=wanted)
    else:
        tl.store(parts + tl.program_id(1).to(tl.int64) * tokens * outputs + here, total, mask=wanted)
        if _is_last(arrived + tl.program_id(0) * tl.num_programs(2) + tl.program_id(2), SPLITS):
            total = tl.zeros((COLUMNS, TOKENS), tl.float32)
            for split in range(SPLITS):
                part = parts + tl.cast(split, tl.int64) * tokens * outputs + here
                total += tl.load(part, mask=wanted, other=0.0, cache_modifier=".cg")
            tl.store(y + here, total.to(y.dtype.element_ty), mask=wanted)


@dataclass(frozen=True)
class Config:
    """How the work of a call is cut. ``tokens`` 0: the plain units, :func:`_vector`."""

    tokens: int
    columns: int
    splits: int
    warps: int
    stages: int = 2

    def __str__(self) -> str:
        kind = f"tile of {self.tokens} tokens" if self.tokens else "vector"
        return f"{kind}, {self.columns} outputs, {self.splits} splits, {self.warps} warps, {self.stages} stages"


@dataclass(frozen=True)
class Packed:
    """A stored matrix; see the module."""

    words_NW: torch.Tensor  # noqa: N815 (shape suffix)
    scales_GN: torch.Tensor  # noqa: N815
    inputs: int
    group: int
    offsets: bool
    dtype: torch.dtype
    """Of activations, results, scales and middle values."""

    @property
    def outputs(self) -> int:
        """N."""
        return len(self.words_NW)

    def size_bytes(self) -> int:
        """Bytes of codes, scales and middle values, filled-up inputs included."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.words_NW, self.scales_GN))


def pack(weights_NK: torch.Tensor, group: int, dtype: torch.dtype, offsets: bool = True) -> Packed:
    """Round float weights to the nearest code. K must be whole groups; raises ``ValueError`` otherwise.

    Scales span a group's values: from the smallest to the largest with offsets, the largest magnitude over 8 without.
    """
    N, K = weights_NK.shape
    if group not in GROUPS or K % group:
        raise ValueError(f"groups of {group} inputs do not fit {K} inputs; groups have 32, 64 or 128")
    values = weights_NK.float().reshape(N, K // group, group)
    scale, middle = _spans(values, dtype) if offsets else _magnitudes(values, dtype)
    step = torch.where(scale == 0, torch.ones_like(scale, dtype=torch.float32), scale.float())[..., None]
    codes = ((values - middle.float()[..., None]) / step).round_().add_(8).clamp_(0, 15).to(torch.int32)
    missing = -K % BLOCK
    codes_NK = torch.nn.functional.pad(codes.reshape(N, K), (0, missing))
    scale, middle = (torch.nn.functional.pad(part, (0, missing // group)) for part in (scale, middle))
    scales_GN = _joined(scale, middle) if offsets else scale.t().contiguous()
    return Packed(_words(codes_NK), scales_GN, K, group, offsets, dtype)


def _spans(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = values.amin(-1), values.amax(-1)
    scale = ((high - low) / 15).to(dtype)
    return scale, (low + 8 * scale.float()).to(dtype)


def _magnitudes(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The value of largest magnitude gets code 0, so that all sixteen are used; the scale takes its sign, turned."""
    largest = values.gather(-1, values.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (largest / -8).to(dtype)
    return scale, torch.zeros_like(scale)


def _words(codes_NK: torch.Tensor) -> torch.Tensor:
    N, K = codes_NK.shape
    places = codes_NK.view(N, K // BLOCK, 8, LANES)
    words = torch.zeros_like(places[:, :, 0])
    for place in range(8):
        words |= places[:, :, place] << (4 * place)
    return words.reshape(N, K // 8)


def _joined(scale_NG: torch.Tensor, middle_NG: torch.Tensor) -> torch.Tensor:
    """Scale in the lower half, middle value in the upper, G x N."""
    lower, upper = (part.view(torch.int16).to(torch.int32) for part in (scale_NG, middle_NG))
    return ((lower & 0xFFFF) | (upper << 16)).t().contiguous()


class Linear:
    """y = x W^T for packed matrices of one shape. Programs that share outputs leave their parts in memory held here,
    so one object serves one stream."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int, Config], tuple[torch.Tensor, torch.Tensor]] = {}

    def _room(self, M: int, N: int, config: Config, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Parts and counters; kept, because a recorded graph goes on using them."""
        key = (M, N, config)
        if key not in self._held:
            size = config.splits * M * N if config.splits > 1 else 1
            tiles = triton.cdiv(N, config.columns) * triton.cdiv(M, config.tokens or M)
            parts = torch.empty(size, dtype=torch.float32, device=device)
            self._held[key] = parts, torch.zeros(tiles, dtype=torch.int32, device=device)
        return self._held[key]

    def __call__(self, packed: Packed, x_MK: torch.Tensor, config: Config) -> torch.Tensor:
        """Result M x N. ``x_MK`` is contiguous, of the type that the matrix was packed for."""
        M, K = x_MK.shape
        N, blocks = packed.outputs, packed.words_NW.shape[1] // LANES
        y_MN = x_MK.new_empty((M, N))
        parts, arrived = self._room(M, N, config, x_MK.device)
        tokens = config.tokens or (1 if M == 1 else 2 if M == 2 else 4)
        grid = (triton.cdiv(N, config.columns), config.splits, triton.cdiv(M, tokens) if config.tokens else 1)
        kernel = _tile if config.tokens else _vector
        each = triton.cdiv(blocks, config.splits)
        whole = K % BLOCK == 0 and blocks % config.splits == 0
        kernel[grid](
            x_MK, packed.words_NW, packed.scales_GN, y_MN, parts, arrived, M, N, K, blocks,
            TOKENS=tokens, COLUMNS=config.columns, SPLITS=config.splits, GROUP=packed.group, OFFSETS=packed.offsets,
            WHOLE=whole, EACH=each, INTERPRETED=not x_MK.is_cuda, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
        return y_MN


def candidates(tokens: int) -> tuple[Config, ...]:
    """What is worth trying for so many tokens, the best on an H100 first (8192 x 8192 and 4096 x 14336, 2026-11-22)."""
    if tokens <= MOST_VECTOR_TOKENS:
        few = Config(16, 64, 8, 4), Config(16, 64, 4, 4)
        return Config(0, 32, 4, 4), Config(0, 16, 2, 4), Config(0, 32, 8, 4), *few
    if tokens <= 16:
        return Config(16, 64, 4, 4), Config(16, 64, 8, 4), Config(16, 128, 8, 8), Config(16, 64, 2, 4, 3)
    if tokens <= 32:
        return Config(32, 64, 4, 4), Config(32, 128, 8, 8)
    if tokens <= 64:
        return Config(64, 64, 4, 4), Config(64, 64, 2, 4, 3), Config(64, 64, 1, 4, 3)
    return Config(64, 128, 1, 8), Config(128, 128, 1, 8), Config(64, 128, 1, 4), Config(256, 128, 1, 8)
