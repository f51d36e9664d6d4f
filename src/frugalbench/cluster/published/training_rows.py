"""Rows about training throughput: the shape and the layout behind a row, and its metric from the time of a step."""

import re
from functools import cache
from typing import Any

import msgspec

from frugalbench import paths
from frugalbench.cluster import pipelined as p
from frugalbench.cluster import training
from frugalbench.cluster.hardware import Hardware, convert, hardware, names, read_toml
from frugalbench.cluster.published.collective_fit import Fit
from frugalbench.cluster.published.constants import Training
from frugalbench.cluster.published.device_rows import first, memory
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.names import Place, place
from frugalbench.cluster.published.points import Point
from frugalbench.schema import Frozen, FrugalbenchError

USUAL_SHARE = 0.77
"""Achieved over dense peak of large bf16 products where no achieved figure is published (median of those that are)."""
_METRICS = {
    "iteration time": "step", "step time": "step", "time per iteration": "step", "time per step": "step",
    "mfu": "mfu", "model flops utilisation": "mfu", "hfu": "hfu", "achieved": "achieved", "achieved bf16": "achieved",
    "throughput": "tokens", "per-device throughput": "tokens",
}  # fmt: skip
_OTHERS = re.compile(
    r"gemm|matmul|hbm|triad|serving|inference|infer\b|hetero|unexpected|dispatch|time to train|diurnal|peak"
)
_MIXTURE = re.compile(r"\bmoe\b|mixtral|\d+x\d+b|deepseek-?v[23]")
_PARSED = re.compile(r"\b(tp|pp|dp|cp)\s*=?\s*(\d+)\b")
_FIELDS = {"tp": "tensor", "pp": "pipeline", "cp": "context"}


class _Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pattern: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    source: str
    kv_heads: int | None = None
    gated: bool = False


class _Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    work: str
    system: str
    source: str
    provenance: str
    stack: str
    sequence: int = 2048
    part: int | None = None
    """Tokens of a sequence on one rank, where a row does not say how many ranks share it."""
    batch: int | None = None
    local: int | None = None
    """Sequences per data-parallel replica."""
    tensor: int = 1
    pipeline: int = 1
    interleave: int = 1
    recompute: str = "none"
    counts_recompute: bool = False
    sequence_parallel: bool = False
    fused_attention: bool = False
    sharded: bool = False
    overlap: float = 0.5
    precision: str = "bf16"
    by_model: tuple[tuple[Any, ...], ...] = ()
    """Model, batch, microbatch, pipeline, interleave and, where it differs, tensor."""
    per_replica: tuple[tuple[int, int, int, int], ...] = ()
    """First and last number of devices, sequences per replica, microbatch."""


class _Workloads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: tuple[_Model, ...]
    layout: tuple[_Layout, ...]


class Run(Frozen, frozen=True, kw_only=True):
    """What a row measured."""

    model: training.Model
    layout: training.Layout
    stack: str
    """The software whose factor applies; empty for none that was fitted."""
    basis: str
    counts_recompute: bool = False
    precision: str = "bf16"


@cache
def known() -> _Workloads:
    """Shapes and layouts."""
    return convert(read_toml(paths.data("network", "workloads.toml")), _Workloads, "workloads.toml")


def guess(point: Point, constants: Training, fit: Fit) -> Guess | str:
    """A prediction, why there is none, or an empty text for rows of another kind."""
    if point.metric.lower() not in _METRICS or not (point.devices or point.size):
        return ""
    found = run(point)
    if isinstance(found, str):
        return found
    where = place(point)
    made = machine(where, fit, constants.product, "fp8" if found.precision == "fp8" else "bf16")
    if made is None:
        return f"no matrix rate, memory rate or network of '{point.system}' is known"
    if reason := _impossible(found, made):
        return reason
    stacks = constants.stack
    factor = stacks.get(found.stack, stacks["other"])
    step_s = factor * training.step(found.model, found.layout, made, constants.traffic).step_s
    value = metric(point, found, where, step_s)
    pool = "training" if found.stack in stacks else "training elsewhere"
    return Guess(si=value, pool=pool, basis=found.basis)


def _impossible(found: Run, made: training.Machine) -> str:
    """Why a layout that no published run vouches for cannot exist."""
    try:
        if not found.stack:
            training.check(found.model, found.layout, made)
    except FrugalbenchError as problem:
        return str(problem)
    return ""


def run(point: Point) -> Run | str:
    """Shape and layout of a row, why they are not known, or an empty text for rows that are not about training."""
    text = f"{point.work} {point.size}".lower()
    if _OTHERS.search(text):
        return ""
    if _MIXTURE.search(text):
        return "mixtures of experts are not in this closed form; simulate CLUSTER --model has them"
    shape = _model(point)
    if shape is None:
        return f"the shape of '{point.size or point.work}' is not known"
    if point.devices is None:
        return "needs the number of devices"
    entry = next((item for item in known().layout if _matches(item, point)), None)
    made = _layout(point, entry, shape)
    return (
        made
        if isinstance(made, str)
        else Run(
            model=training.Model(**{name: getattr(shape, name) for name in _SHAPE}),
            layout=made,
            stack=entry.stack if entry else "",
            basis=f"{entry.source} ({entry.provenance})" if entry else "layout as the row says, the rest assumed",
            counts_recompute=bool(entry and entry.counts_recompute),
            precision=entry.precision if entry else "fp8" if "fp8" in text else "bf16",
        )
    )


_SHAPE = ("layers", "hidden", "heads", "ffn", "vocab", "kv_heads", "gated")


def machine(where: Place, fit: Fit, product: float, precision: str = "bf16") -> training.Machine | None:
    """What a device achieves; ``product``: share of the published achieved rate that training's products reach."""
    if where.device not in names() or where.scaleup_bytes_per_s is None:
        return None
    item = hardware(where.device)
    own = where.named.bf16_dense_flop_per_s if where.named and precision == "bf16" else None
    peak, bytes_per_s = own or first(item, f"{precision}_dense_flop_per_s"), memory(where, "memory_bytes_per_s")
    if peak is None or bytes_per_s is None:
        return None
    achieved = None if own else first(item, f"achieved_{precision}_dense_flop_per_s")
    rate = achieved or USUAL_SHARE * peak
    core = rate if precision == "bf16" else _bf16_flop_per_s(item)
    fabric = p.Fabric(
        ranks=where.devices,
        node=max(where.node, 8),
        up_bytes_per_s=where.scaleup_bytes_per_s,
        out_bytes_per_s=where.scaleout_bytes_per_s,
    )
    inside, between = (fit.family(name, where.device) for name in ("ring", "net"))
    return training.Machine(
        flop_per_s=product * rate,
        core_flop_per_s=product * (core or rate),
        memory_bytes_per_s=bytes_per_s,
        fabric=fabric,
        inside=inside,
        between=between,
        memory_bytes=memory(where, "memory_bytes"),
    )


def _bf16_flop_per_s(item: Hardware) -> float | None:
    """Achieved by large products; ``None`` where no peak is known."""
    peak = first(item, "bf16_dense_flop_per_s")
    return first(item, "achieved_bf16_dense_flop_per_s") or (USUAL_SHARE * peak if peak else None)


def metric(point: Point, found: Run, where: Place, step_s: float) -> float:
    """The row's metric, in SI units, of a step of that length."""
    kind = _METRICS[point.metric.lower()]
    layout = found.layout
    tokens = layout.batch * layout.sequence
    if kind == "step":
        return step_s
    if kind == "tokens":
        each = point.per_device or "per-device" in point.metric.lower()
        return tokens / step_s / (layout.devices if each else 1)
    flop = found.model.flop_per_token(layout.sequence, layout.fused_attention) * tokens
    if found.counts_recompute or kind == "hfu":
        flop *= 4 / 3 if layout.recompute == "full" else 1.0
    rate = flop / step_s / layout.devices
    if kind == "achieved":
        return rate
    return rate / (first(hardware(where.device), f"{found.precision}_dense_flop_per_s") or rate)


def _model(point: Point) -> _Model | None:
    for text in (point.size.lower(), point.work.lower()):
        for item in known().model:
            if re.search(rf"(?<![\d.x])(?:{item.pattern})", text):
                return item
    return None


def _matches(item: _Layout, point: Point) -> bool:
    return bool(re.search(item.work, point.work.lower()) and re.search(item.system, point.system.lower()))


def _layout(point: Point, entry: _Layout | None, shape: _Model) -> training.Layout | str:
    devices, work = point.devices or 1, point.work.lower()
    stated = {_FIELDS[name]: int(value) for name, value in _PARSED.findall(work) if name in _FIELDS}
    base = _base(entry) if entry else _usual(shape, devices)
    if entry and entry.by_model:
        named = f"{point.size} {point.work}".lower()
        given = next((row for row in entry.by_model if re.search(rf"(?<![\d.]){re.escape(row[0])}", named)), None)
        if given is None:
            return f"the layout of '{point.size}' in {entry.source} is not known"
        base |= {"batch": given[1], "micro": given[2], "pipeline": given[3], "interleave": given[4]}
        base |= {"tensor": given[5]} if len(given) > 5 else {}
    base |= stated
    if found := re.search(r"seq\w*\s*=?\s*(\d+)(k?)", work):
        base["sequence"] = int(found[1]) * (1024 if found[2] else 1)
    if entry and entry.part and "context" not in stated:
        base["context"] = max(base["sequence"] // entry.part, 1)
    if min(base[name] for name in ("sequence", "tensor", "pipeline") if name in base) < 1:
        return "a sequence length or a degree of parallelism of zero"
    replicas = devices // (base.get("tensor", 1) * base.get("pipeline", 1) * max(base.get("context", 1), 1))
    if replicas < 1:
        return f"{devices} devices are fewer than tensor x pipeline x context parallelism needs"
    return training.Layout(devices=devices, **(base | _batch(entry, work, base, devices, replicas)))


def _usual(shape: _Model, devices: int) -> dict[str, Any]:
    """What one would choose where nothing is published: tensor parallel from 20, pipelines from 100 billion weights."""
    weights = training.Model(**{name: getattr(shape, name) for name in _SHAPE}).parameters
    tensor = 8 if weights > 20e9 and devices >= 8 else 1
    pipeline = 8 if weights > 100e9 and devices >= 8 * tensor else 1
    return {
        "sequence": 4096, "tensor": tensor, "pipeline": pipeline, "interleave": 4 if pipeline > 1 else 1,
        "fused_attention": True, "sequence_parallel": True, "sharded": True, "overlap": 0.9,
    }  # fmt: skip


def _base(entry: _Layout) -> dict[str, Any]:
    names = ("sequence", "tensor", "pipeline", "interleave", "recompute", "sequence_parallel", "fused_attention")
    return {name: getattr(entry, name) for name in (*names, "sharded", "overlap")}


def _batch(entry: _Layout | None, work: str, base: dict[str, Any], devices: int, replicas: int) -> dict[str, int]:
    if "batch" in base:
        return {}
    if found := re.search(r"bs/dp\s*(\d+)", work):
        return {"batch": int(found[1]) * replicas}
    if found := re.search(r"(?:global batch|gbs|batch)\s*=?\s*(\d+)", work):
        return {"batch": int(found[1])}
    if entry and entry.batch:
        return {"batch": entry.batch}
    for low, high, each, micro in entry.per_replica if entry else ():
        if low <= devices <= high:
            return {"batch": each * replicas, "micro": micro}
    return {"batch": (entry.local if entry and entry.local else 32) * replicas}
