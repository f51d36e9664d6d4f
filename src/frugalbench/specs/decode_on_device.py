"""The arms of ``model_decode`` on a CUDA device: transformers in half precision, and with quantised layers.

As transformers leaves them, the table that is looked up and multiplied (input embedding and output head) and the gains
stay in half precision. Stored bytes of a layer's matrix of N x K weights (a gain is 2 bytes):

======== =================================================================================================
bfloat16 2 NK; float16 likewise
llm.int8 NK codes, and a float32 scale per output
nf4      NK/2 codes, and a float32 scale per 64 weights (``bnb_4bit_use_double_quant`` is off by default)
int4     NK/2 codes, and a scale and an offset in bfloat16 per 128 weights (``torch._weight_int4pack_mm``)
======== =================================================================================================
"""

from frugalbench.specs.decode_formats import DecodeFormat
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.quant_formats import Library

_IMPORTS = ("numpy", "torch", "transformers.models.llama.modeling_llama")
TRANSFORMERS = Library("transformers", _IMPORTS, ("torch", "transformers"))
BITSANDBYTES = Library(
    "transformers", (*_IMPORTS, "bitsandbytes"), ("torch", "transformers", "bitsandbytes")
)  # fmt: skip
NF4_BLOCK, INT4_GROUP = 64, 128
"""Weights that share a scale: the defaults of bitsandbytes and of torchao."""
_TILE = 8
"""Outputs that the int4 kernel takes together."""

UNRECORDED = {"llm.int8": "LLM.int8 looks for outliers on the host in each call"}
"""Schemes whose calls cannot be recorded as a CUDA graph."""


def layer_bytes(scheme: str, n: int, k: int) -> int:
    """Of one matrix of a layer, as stored."""
    if scheme == "llm.int8":
        return n * k + 4 * n
    if scheme == "nf4":
        return n * k // 2 + 4 * (n * k // NF4_BLOCK)
    if scheme == "int4":
        return n * k // 2 + 4 * (n * k // INT4_GROUP)
    return 2 * n * k


def stored_bytes(fmt: DecodeFormat, shape: DecoderShape) -> int:
    """Bytes of the whole model as stored; a call reads all of them."""
    layer = sum(layer_bytes(fmt.scheme, *size) for size in shape.matrices().values())
    return shape.layers * layer + 2 * (shape.table_weights + shape.gains)


def misfit(fmt: DecodeFormat, shape: DecoderShape) -> str:
    """Why a model of these sizes cannot be stored so; empty when it can."""
    block = {"nf4": NF4_BLOCK, "int4": INT4_GROUP}.get(fmt.scheme, 1)
    tile = _TILE if fmt.scheme == "int4" else 1
    for n, k in shape.matrices().values():
        if k % block or n % tile:
            return f"{fmt.scheme} takes multiples of {block} inputs and of {tile} outputs, not {k} and {n}"
    return ""


def _format(
    library: Library, dtype: str, scheme: str, bits: int, peaks: tuple[str, ...], errors: tuple[float, ...],
    distances: tuple[float, ...],
) -> DecodeFormat:  # fmt: skip
    return DecodeFormat(library, dtype, scheme, bits, peaks, errors, distances, stored=stored_bytes, unfit=misfit)


# fmt: off
ON_DEVICE: dict[str, DecodeFormat] = {
    "transformers-bf16": _format(
        TRANSFORMERS, "bfloat16", "bfloat16", 16, ("bf16_flop_per_s",),
        (0.057, 0.066, 0.071, 0.089), (0.0087, 0.015, 0.018, 0.024),
    ),
    "transformers-fp16": _format(
        TRANSFORMERS, "float16", "float16", 16, ("fp16_flop_per_s",),
        (0.0055, 0.0089, 0.0091, 0.011), (0.0011, 0.0018, 0.0024, 0.003),
    ),
    "bnb-int8": _format(
        BITSANDBYTES, "int8", "llm.int8", 8, ("int8_op_per_s", "fp16_flop_per_s"),
        (0.083, 0.15, 0.2, 0.21), (0.025, 0.041, 0.058, 0.065),
    ),
    "bnb-nf4": _format(
        BITSANDBYTES, "nf4", "nf4", 4, ("bf16_flop_per_s",),
        (0.049, 0.06, 0.068, 0.12), (0.15, 0.27, 0.37, 0.43),
    ),
    "torch-int4": _format(
        TRANSFORMERS, "int4", "int4", 4, ("bf16_flop_per_s",),
        (0.065, 0.084, 0.093, 0.099), (0.17, 0.28, 0.43, 0.48),
    ),
}
# fmt: on
"""Measured on a CPU, by the same code (2026-11-22, ``qwen3-0.6b`` with a head of 16,384 rows, 64 tokens of context and
a prompt of 48, ten answers of each arm, seed 1); of bfloat16 the larger of that and what the CPU arm has. A GPU rounds
to the same formats and adds up in another order."""
