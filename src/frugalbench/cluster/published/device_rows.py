"""Rows about one device, a pair of them or a whole system: matrix products, memory, reads and writes, peaks."""

import re
from collections.abc import Mapping

from frugalbench.cluster.hardware import Hardware, hardware, names
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.names import Place, place
from frugalbench.cluster.published.points import Point

_PRODUCT = re.compile(r"gemm|matmul|mamf")
_MEMORY = re.compile(r"\bhbm\b|\btriad\b|memory bandwidth")
_ACCESS = re.compile(r"(npu|gpu)\s*(<-|->)\s*(npu|gpu|cpu)|(inter|intra)-node")
_PRECISIONS = (
    ("fp4", r"fp4|float4"), ("fp8", r"fp8|float8|e4m3|e5m2"), ("int4", r"int4"), ("int8", r"int8"), ("tf32", r"tf32"),
    ("bf16", r"bf16|bfloat16|fp16|float16|half"), ("fp64", r"fp64|float64|double|dgemm"),
    ("fp32", r"fp32|float32|single|sgemm"),
)  # fmt: skip
FEATURES = ("base", "write", "cpu", "inter")
_BATCH = re.compile(r"batch (\d+)")
_TPOT = re.compile(r"tpot ([\d.]+) ?ms")


def guess(point: Point, constants: Mapping[str, float]) -> Guess | str:
    """A prediction, why there is none, or an empty text for rows of another kind."""
    work, metric = point.work.lower(), point.metric.lower()
    if _PRODUCT.search(work) and metric in ("achieved", "throughput", "flops"):
        return _product(point, constants)
    if _MEMORY.search(work):
        return _memory(point, constants)
    if _ACCESS.search(work):
        return _access(point, constants)
    if metric in ("peak", "total bandwidth") and "pod" not in work:
        return _system(point)
    if metric.startswith("decode throughput"):
        return _decode(point)
    return ""


def precision(point: Point) -> str:
    """``bf16`` (fp16 counts as such, and what does not say), ``fp8``, ``fp4``, ``int8``, ``tf32``, ``fp32``, …"""
    return next((name for name, pattern in _PRECISIONS if re.search(pattern, point.work.lower())), "bf16")


def peak(point: Point, name: str) -> float | None:
    """Dense peak in FLOP/s of the row's device at a precision; ``None`` when unknown."""
    where = place(point)
    own = where.named.bf16_dense_flop_per_s if where.named else None
    if where.device not in names() or (own is not None and name == "bf16"):
        return own if name == "bf16" else None
    suffix = "op_per_s" if name.startswith("int") else "flop_per_s"
    return first(hardware(where.device), f"{name}_dense_{suffix}")


def first(item: Hardware, name: str) -> float | None:
    """The central figure."""
    found = item.figures(name)
    return found[0].value if found else None


def memory(where: Place, name: str) -> float | None:
    """``memory_bytes`` or ``memory_bytes_per_s`` of a device: the pattern's own figure before the hardware file's."""
    own: float | None = getattr(where.named, name) if where.named else None
    return own or (first(hardware(where.device), name) if where.device in names() else None)


def features(point: Point) -> tuple[float, float, float, float]:
    """One, write, with a CPU, between nodes: what a read or write of a peer's memory differs in."""
    work = point.work.lower()
    return 1.0, float("->" in work or "write" in work), float("cpu" in work), float("inter-node" in work)


def _product(point: Point, constants: Mapping[str, float]) -> Guess | str:
    name = precision(point)
    found = peak(point, name)
    if found is None:
        return f"no dense {name} peak of '{point.system}' is known"
    share = constants.get(f"{name}_share", constants["bf16_share"])
    return Guess(si=share * found, pool="matrix product", basis=f"{share:.2f} of the dense {name} peak")


def _memory(point: Point, constants: Mapping[str, float]) -> Guess | str:
    found = memory(place(point), "memory_bytes_per_s")
    if found is None:
        return f"no memory bandwidth of '{point.system}' is known"
    return Guess(si=constants["memory_share"] * found, pool="memory", basis="usual share of the memory's rate")


def _access(point: Point, constants: Mapping[str, float]) -> Guess | str:
    up = place(point).scaleup_bytes_per_s
    kind = "latency" if "latency" in point.metric.lower() else "bandwidth"
    if up is None:
        return f"no device that is known in '{point.system}'"
    value = 1.0
    for name, weight in zip(FEATURES, features(point), strict=True):
        value *= constants[f"{kind}_{name}"] ** weight
    return Guess(si=value * (up if kind == "bandwidth" else 1.0), pool="access", basis=f"{kind} of one access")


def _system(point: Point) -> Guess | str:
    where = place(point)
    if point.metric.lower() == "total bandwidth":
        if where.scaleup_bytes_per_s is None:
            return f"no device that is known in '{point.system}'"
        return Guess(si=2 * where.scaleup_bytes_per_s * where.devices, pool="system", basis="devices x both directions")
    found = peak(point, precision(point))
    if found is None:
        return f"no dense peak of '{point.system}' is known"
    return Guess(si=found * where.devices, pool="system", basis="devices x dense peak of one")


def _decode(point: Point) -> Guess | str:
    batch, tpot = _BATCH.search(point.note.lower()), _TPOT.search(point.metric.lower())
    if batch is None or tpot is None or not float(tpot[1]):
        return "the batch at this latency is not published"
    return Guess(si=float(batch[1]) / float(tpot[1]) * 1e3, pool="system", basis="batch over time per output token")
