"""The graphs of ``onnx_graphs``: what torch's exporter makes of small models, and real models inside packages."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH, HIDDEN, HEADS, VOCABULARY = 256, 688, 4, 1000
"""Dimensions of the exported modules (``workloads.layers.graph_models``; a test holds them together)."""
PRECISIONS = ("fp32", "int8-dynamic", "int8-qdq", "int4")


@dataclass(frozen=True)
class Module:
    """One exported model: its inputs as a graph declares them, results, longest sum of products, sums in a row."""

    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[str, ...]
    reduction: int
    depth: int


def _input(name: str, dtype: str, *shape: int | str, below: int | None = None) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape), "below": below}


_HIDDEN = _input("x", "float32", "batch", "seq", WIDTH)
_FFN = Module((_HIDDEN,), ("hidden",), HIDDEN, 2)
_TOKENS = (
    _input("input_ids", "int64", "batch", "seq", below=VOCABULARY),
    _input("attention_mask", "int64", "batch", "seq"),
)
_PAST = tuple(_input(n, "float32", "batch", HEADS, "past", WIDTH // HEADS) for n in ("past_key", "past_value"))

MODULES = {
    "dense-ffn": _FFN,
    "moe-ffn-batched": Module((_HIDDEN,), ("hidden",), WIDTH, 3),
    "moe-ffn-eager": Module((_HIDDEN,), ("hidden",), WIDTH, 3),
    "moe-ffn-grouped": Module((_HIDDEN,), ("hidden",), WIDTH, 3),
    "attention-kv": Module((_HIDDEN, *_PAST), ("hidden", "key", "value"), WIDTH, 4),
    "decoder": Module(_TOKENS, ("logits",), HIDDEN, 13),
    "encoder": Module(_TOKENS, ("hidden",), HIDDEN, 12),
}


@dataclass(frozen=True)
class Export:
    """One file of the set."""

    model: str
    opset: int = 20
    precision: str = "fp32"
    static: bool = False


def _named(*items: Export) -> dict[str, Export]:
    def name(item: Export) -> str:
        shapes = "-static" if item.static else ""
        precision = "" if item.precision == "fp32" else f"-{item.precision}"
        return f"{item.model}{precision}-opset{item.opset}{shapes}"

    return {name(item): item for item in items}


EXPORTS = _named(
    *(Export("dense-ffn", opset) for opset in (18, 20, 23)),
    Export("dense-ffn", static=True),
    *(Export("dense-ffn", precision=precision) for precision in PRECISIONS[1:]),
    Export("moe-ffn-batched"),
    Export("moe-ffn-batched", 23),
    Export("moe-ffn-eager"),
    Export("moe-ffn-grouped"),
    Export("attention-kv"),
    Export("attention-kv", 23),
    Export("attention-kv", static=True),
    Export("decoder"),
    Export("decoder", 23),
    Export("decoder", static=True),
    *(Export("decoder", precision=precision) for precision in PRECISIONS[1:]),
    Export("encoder", 18),
    Export("encoder"),
    Export("encoder", static=True),
    *(Export("encoder", precision=precision) for precision in PRECISIONS[1:]),
)


@dataclass(frozen=True)
class Packaged:
    """A real model inside an installed package, and what its declared inputs leave open."""

    distribution: str
    module: str
    file: str
    dims: dict[str, int] = field(default_factory=dict)
    fills: dict[str, Any] = field(default_factory=dict)
    """Input to a number for all of it, or to the bound below which its integers lie (as ``{"below": n}``)."""

    def path(self) -> Path | None:
        """Where the file lies, or ``None``."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        found = Path(spec.origin).parent / self.file
        return found if found.is_file() else None


PACKAGED = {
    "magika": Packaged(
        "magika", "magika", "models/standard_v3_3/model.onnx", fills={"bytes": {"below": 256}},
    ),
    "silero-vad": Packaged(
        "silero-vad", "silero_vad", "data/silero_vad.onnx",
        dims={"input.0": 1, "input.1": 576, "state.1": 1}, fills={"sr": 16000},
    ),
    "silero-vad-16k": Packaged(
        "silero-vad", "silero_vad", "data/silero_vad_16k_op15.onnx",
        dims={"batch": 1, "sequence": 576}, fills={"sr": 16000},
    ),
    "rapidocr-rec": Packaged(
        "rapidocr-onnxruntime", "rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx",
        dims={"p2o.DynamicDimension.0": 1, "?": 48, "p2o.DynamicDimension.1": 320},
    ),
}  # fmt: skip
"""File-type classifier, voice activity detector twice (with and without branches), Chinese text recognition."""
