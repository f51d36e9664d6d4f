"""The arms of ``model_decode``: what runs the model, how it stores weights, how far its answer may lie off. No torch.

Stored bytes of a matrix of N x K weights, as :func:`stored_bytes` adds them up (a gain is 4 bytes, or 2 in bfloat16):

============= ====================================================================================================
float32       4 NK; bfloat16 and GGUF's f16 2 NK
int8-dynamic  NK + 16 per matrix; the head is a matrix of its own then, and the float32 look-up table stays: 4 NK
native        panels of 16 outputs and 128 inputs: 8192, 2048 or 1152 bytes at 32, 8 or 4 bits, and 4 per output below
              32 bits (``kernels/README.md``); queries, keys and values are one matrix
q8_0, q4_0    34 and 18 bytes per 32 weights (GGML, ``ggml-common.h``)
q4_k_m        144 bytes per 256 weights; 210 (Q6_K) in the head, and in the value and down projections of the first and
              last eighth of the layers and every third between (llama.cpp, ``llama-quant.cpp``, ``Q4_K_M``)
============= ====================================================================================================
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.quant_formats import Library

TRANSFORMERS = Library(
    "transformers", ("numpy", "torch", "transformers.models.llama.modeling_llama"), ("torch", "transformers")
)
NATIVE = Library("native", ("numpy", "torch"), ("torch",))
LLAMA = Library("llama.cpp", ("numpy", "gguf", "llama_cpp"), ("llama-cpp-python", "gguf"), "llama")

MEASURED_LAYERS = (2, 6, 14, 28)
"""Depths at which errors were measured (2026-11-22, two cores with AVX-512): ``qwen3-0.6b`` with a head of 16,384 rows,
64 tokens of context and a prompt of 48, ten answers of each arm, seeds 1 and 2 up to 6 layers and 1 beyond."""
GROWTH = 0.3
"""Power of (layers + 2) with which errors grow: measured 0.14 to 0.36 from 6 to 28 layers, and more from 2 to 6, where
tolerances are therefore wider than they need to be."""
MARGIN, FLOAT32_MARGIN = 1.25, 8.0
"""Float32 sums depend on the width and on the library that adds: they get more room, and still show any wrong layer."""
_LARGER_HEAD = 1.12
"""The largest of 151,936 logits lies 4.6 times the rms error off, that of 16,384 lies 4.1 times."""


def _bound(measured: tuple[float, ...], layers: int) -> float:
    """Above all that was measured, and growing with depth as that does."""
    spread = [found / (depth + 2) ** GROWTH for found, depth in zip(measured, MEASURED_LAYERS, strict=True)]
    return float(max(spread) * (layers + 2) ** GROWTH)


@dataclass(frozen=True)
class DecodeFormat:
    """How one arm stores and multiplies.

    ``errors`` are what the tolerance follows: the largest error of a logit over the rms of all, against the float64
    answer of the weights that are stored (arms in float32: of the model itself), at :data:`MEASURED_LAYERS`. They are
    what a call rounds on its way, carried on by the residual stream: float32 sums, a cache in float16, values in
    bfloat16, activations in int8. One wrong layer of 28 exceeds the tolerance: attention left out, or a neighbour's
    matrix of values or of the feed-forward network, moves a logit by 0.6 (in the last layers) to 4 (in
    the first). Not so in dynamic int8, whose own rounding is as large as the second half of the layers; nor does a
    query's or key's matrix of that half show in any arm. Such ones are found before: what is stored is compared with
    what was drawn, matrix by matrix. ``distances`` are the relative rms distances to the unquantised answer; the bound
    that follows from them is a sanity limit, not a claim.
    """

    library: Library
    dtype: str
    scheme: str
    bits: int
    peaks: tuple[str, ...]
    """What bounds the arithmetic. Integer products are counted as operations; attention stays in floating point."""
    errors: tuple[float, ...]
    distances: tuple[float, ...]
    """Empty for arms in float32, which have no answer of their own but the unquantised one."""
    cache_value_bytes: int = 2
    margin: float = MARGIN
    stored: Callable[["DecodeFormat", DecoderShape], int] | None = None
    """Formula of its own for the stored bytes."""
    unfit: Callable[["DecodeFormat", DecoderShape], str] | None = None
    """Rule of its own for the sizes that it takes."""

    def tolerance(self, layers: int) -> float:
        """Of the case: largest error over rms, against what is stored."""
        return self.margin * _LARGER_HEAD * _bound(self.errors, layers)

    def format_tolerance(self, layers: int) -> float:
        """Largest relative rms distance to the unquantised answer."""
        return MARGIN * _bound(self.distances, layers) if self.distances else self.tolerance(layers)

    @property
    def integer(self) -> bool:
        """Whether weights are multiplied as integers."""
        return self.peaks[0].endswith("_op_per_s")

    @property
    def lossy(self) -> bool:
        """Whether weights are rounded when they are stored."""
        return self.bits < 32


_FP32, _BF16, _FP16 = ("fp32_flop_per_s",), ("bf16_flop_per_s",), ("fp16_flop_per_s",)
_INT8 = ("int8_op_per_s", *_FP32)

# fmt: off
FORMATS: dict[str, DecodeFormat] = {
    "transformers-fp32": DecodeFormat(
        TRANSFORMERS, "float32", "float32", 32, _FP32,
        (8e-06, 5.1e-06, 5.7e-06, 5.8e-06), (), 4, FLOAT32_MARGIN,
    ),
    "transformers-bf16": DecodeFormat(
        TRANSFORMERS, "bfloat16", "bfloat16", 16, _BF16,
        (0.057, 0.055, 0.071, 0.089), (0.0087, 0.015, 0.018, 0.022),
    ),
    "transformers-int8-dynamic": DecodeFormat(
        TRANSFORMERS, "int8", "int8-dynamic", 8, _INT8,
        (0.31, 0.46, 0.61, 0.5), (0.081, 0.12, 0.14, 0.14), 4,
    ),
    "native-fp32": DecodeFormat(
        NATIVE, "float32", "native", 32, _FP32,
        (0.0005, 0.001, 0.0014, 0.0018), (),
    ),
    "native-w8a8": DecodeFormat(
        NATIVE, "int8", "native", 8, _INT8,
        (0.079, 0.12, 0.14, 0.15), (0.025, 0.04, 0.049, 0.057),
    ),
    "native-w4a8": DecodeFormat(
        NATIVE, "int4", "native", 4, _INT8,
        (0.073, 0.11, 0.13, 0.15), (0.15, 0.24, 0.3, 0.33),
    ),
    "llama-f16": DecodeFormat(
        LLAMA, "float16", "f16", 16, _FP16,
        (0.0031, 0.0048, 0.0065, 0.0065), (0.00089, 0.0013, 0.0017, 0.0019),
    ),
    "llama-q8_0": DecodeFormat(
        LLAMA, "q8_0", "q8_0", 8, _INT8,
        (0.057, 0.091, 0.11, 0.11), (0.018, 0.028, 0.034, 0.038),
    ),
    "llama-q4_0": DecodeFormat(
        LLAMA, "q4_0", "q4_0", 4, _INT8,
        (0.058, 0.091, 0.1, 0.12), (0.21, 0.3, 0.39, 0.41),
    ),
    "llama-q4_k": DecodeFormat(
        LLAMA, "q4_k", "q4_k_m", 4, _INT8,
        (0.08, 0.14, 0.18, 0.17), (0.11, 0.23, 0.26, 0.29),
    ),
}
# fmt: on
_BLOCK = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32), "q4_k": (144, 256), "q6_k": (210, 256)}
"""Bytes, and the weights that they hold."""
_NATIVE_BLOCK = {32: 8192, 8: 2048, 4: 1152}
_ROWS, _DEPTH = 16, 128


def gguf_types(scheme: str, layers: int) -> Iterator[dict[str, str]]:
    """The GGUF type of each matrix, layer by layer, then that of the table."""
    plain = "q4_k" if scheme == "q4_k_m" else scheme
    better = "q6_k" if scheme == "q4_k_m" else scheme
    for layer in range(layers):
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        chosen = better if more else plain
        yield {**dict.fromkeys(("q", "k", "o", "gate", "up"), plain), "v": chosen, "down": chosen}
    yield {"table": better}


def _dense(fmt: DecodeFormat, shape: DecoderShape) -> int:
    return shape.parameters * fmt.bits // 8


def _dynamic(fmt: DecodeFormat, shape: DecoderShape) -> int:  # noqa: ARG001
    matrices = shape.layers * (shape.layer_weights + 16 * len(shape.matrices())) + shape.table_weights + 16
    return matrices + 4 * (shape.table_weights + shape.gains)


def _native(fmt: DecodeFormat, shape: DecoderShape) -> int:
    d, f = shape.d_model, shape.d_ff
    layer = ((shape.queries + 2 * shape.keys, d), (d, shape.queries), (f, d), (f, d), (d, f))
    return (
        shape.layers * sum(packed_bytes(fmt.bits, *size) for size in layer)
        + packed_bytes(fmt.bits, shape.vocabulary, d)
        + 4 * shape.gains
    )


def packed_bytes(bits: int, n: int, k: int) -> int:
    """Bytes of one matrix in the own kernels' layout."""
    panels = -(-n // _ROWS)
    return panels * (-(-k // _DEPTH) * _NATIVE_BLOCK[bits] + (0 if bits == 32 else 4 * _ROWS))


def _gguf(fmt: DecodeFormat, shape: DecoderShape) -> int:
    *layers, end = gguf_types(fmt.scheme, shape.layers)
    sizes = shape.matrices()
    matrices = sum(_gguf_bytes(kind, *sizes[name]) for types in layers for name, kind in types.items())
    return matrices + _gguf_bytes(end["table"], shape.vocabulary, shape.d_model) + 4 * shape.gains


def _gguf_bytes(kind: str, n: int, k: int) -> int:
    size_bytes, weights = _BLOCK[kind]
    return n * k // weights * size_bytes


_STORED: dict[str, Callable[[DecodeFormat, DecoderShape], int]] = {
    "float32": _dense, "bfloat16": _dense, "int8-dynamic": _dynamic, "native": _native,
    **dict.fromkeys(("f16", "q8_0", "q4_0", "q4_k_m"), _gguf),
}  # fmt: skip


def stored_bytes(fmt: DecodeFormat, shape: DecoderShape) -> int:
    """Bytes of the whole model as stored, scales and gains included (formulas: see the module)."""
    if fmt.stored is not None:
        return fmt.stored(fmt, shape)
    return _STORED[fmt.scheme](fmt, shape)


def read_bytes(fmt: DecodeFormat, shape: DecoderShape) -> int:
    """Weight bytes that one call reads: all but a look-up table that is no head, of which it reads a row a token."""
    table = 4 * shape.table_weights if fmt.scheme == "int8-dynamic" else 0
    return stored_bytes(fmt, shape) - table


def misfit(fmt: DecodeFormat, shape: DecoderShape) -> str:
    """Why a model of these sizes cannot be stored so; empty when it can."""
    if fmt.unfit is not None:
        return fmt.unfit(fmt, shape)
    whole = 256 if fmt.scheme == "q4_k_m" else 32 if fmt.library is LLAMA else 1
    inputs = {k for _, k in shape.matrices().values()}
    if wrong := sorted(k for k in inputs if k % whole):
        return f"{fmt.scheme} has blocks of {whole} inputs, which do not divide {wrong[0]}"
    if fmt.library is NATIVE and shape.head_dim % _ROWS:
        return f"the own kernel takes heads of a multiple of {_ROWS} values, not {shape.head_dim}"
    return ""
