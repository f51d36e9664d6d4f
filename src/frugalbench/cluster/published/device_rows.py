"""Rows about one device, a pair of them or a whole system: matrix products, memory, reads and writes, peaks."""

import re
from collections.abc import Mapping

from frugalbench.cluster.hardware import Hardware, hardware, names
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.names import NamedDevice, known, place
from frugalbench.cluster.published.points import Point

_PRODUCT = re.compile(r"gemm|matmul|mamf")
_MEMORY = re.compile(r"\bhbm\b|\btriad\b|memory bandwidth")
_ACCESS = re.compile(r"(npu|gpu)\s*(<-|->)\s*(npu|gpu|cpu)|(inter|intra)-node")
_PRECISIONS = ("fp4", "fp8", "int8", "bf16", "fp16")
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
    """``bf16`` (fp16 counts as such), ``fp8``, ``fp4`` or ``int8``."""
    found = next((name for name in _PRECISIONS if name in point.work.lower()), "bf16")
    return "bf16" if found == "fp16" else found


def peak(point: Point, name: str) -> float | None:
    """Dense peak in FLOP/s of the row's device at a precision; ``None`` when unknown."""
    device = place(point).device
    if other := next((item for item in known().device if not item.hardware and _word(item) == device), None):
        return other.bf16_dense_flop_per_s if name == "bf16" else None
    suffix = "op_per_s" if name == "int8" else "flop_per_s"
    return first(hardware(device), f"{name}_dense_{suffix}") if device else None


def _word(item: NamedDevice) -> str:
    return item.pattern.partition("|")[0]


def first(item: Hardware, name: str) -> float | None:
    """The central figure."""
    found = item.figures(name)
    return found[0].value if found else None


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
    device = place(point).device
    found = first(hardware(device), "memory_bytes_per_s") if device in names() else None
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
