"""Rows about expert-parallel dispatch and combine: DeepEP, CANN and their like.

``T = L + s log2(EP) + bytes off the rank / (achieved rate of the link)``. A token's vector is sent to each of its
experts; fp8 and int8 carry scales per 128 values. Bytes per token and expert as the sources count them: 7,168 values.
"""

import math
import re
from collections.abc import Mapping

from frugalbench.cluster.published.collective_fit import Fit
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.names import place
from frugalbench.cluster.published.points import Point

TOKENS, HIDDEN, TOP_K = 128, 7168, 8
"""What the published low-latency tables use, where a row does not say."""
NODE = 8
INSIDE = 160 / 200 / 0.9
"""NVLink achieves 160 of 200 GB/s (DeepEP docs/legacy.md), cards some 0.9: what is fitted is the latter."""
LIBRARIES = ("deepep low-latency", "cann", "deepep february 2025", "other")
_WORK = re.compile(r"dispatch|combine")


def library(point: Point) -> str:
    """Which implementation a row measures; empty when the row is not about an expert exchange."""
    text = point.text()
    if not _WORK.search(point.work.lower()):
        return ""
    if "cann" in text:
        return "cann"
    if "column in cm384" in text:
        return "deepep february 2025"
    return "deepep low-latency" if "low-latency" in text or "low latency" in text else "bulk"


def operation(point: Point) -> str:
    """``dispatch`` or ``combine``."""
    return "dispatch" if "dispatch" in point.work.lower() else "combine"


def guess(point: Point, constants: Mapping[str, Mapping[str, float]], fit: Fit) -> Guess | str:
    """A prediction, why there is none, or an empty text for rows of another kind."""
    kind, metric = library(point), point.metric.lower()
    if not kind:
        return ""
    if not metric.endswith(("bandwidth", "latency", "time", "busbw")):
        return f"no formula for '{point.metric}' of an expert exchange"
    if kind == "bulk":
        return _bulk(point, fit)
    found = constants.get(kind, constants["other"])
    time_s = total_s(point, found)
    rate = payload_bytes(point) / time_s
    return Guess(
        si=time_s if metric in ("latency", "time") else rate,
        pool="exchange rows",
        basis=f"start-up, hops and bytes of {kind}",
    )


def total_s(point: Point, constants: Mapping[str, float]) -> float:
    """Seconds of one exchange."""
    start, slope = constants[f"{operation(point)}_s"], constants["doubling_s"]
    return start + slope * math.log2(ranks(point)) + link_s(point) / constants["achieved"]


def payload_bytes(point: Point) -> float:
    """What a rank sends: tokens x experts per token x bytes of a vector."""
    text = point.text()
    tokens = _number(text, r"(?:batch )?(\d+)\s*(?:tok|/rank)", TOKENS)
    hidden = _number(text, r"(\d+) hidden", HIDDEN)
    copies = _number(text, r"top-(\d+)(?! groups)", TOP_K)
    narrow = operation(point) == "dispatch" and "bf16" not in point.work.lower()
    return tokens * copies * (hidden + hidden / 128 * 4 if narrow else 2 * hidden)


def link_s(point: Point) -> float:
    """Seconds of the bytes at the wire's rate; inside a node at what NVLink achieves relative to the cards."""
    where, count, kind = place(point), ranks(point), library(point)
    up, out = where.scaleup_bytes_per_s or math.nan, where.scaleout_bytes_per_s or math.nan
    size = payload_bytes(point)
    if kind == "cann":
        return size * (count - 1) / count / up
    if kind == "deepep february 2025":
        return size / out
    between = size * max(count - NODE, 0) / count / out
    inside = size * (min(count, NODE) - 1) / count / (up * INSIDE)
    return max(between, inside)


def ranks(point: Point) -> int:
    """Degree of expert parallelism."""
    return max(point.devices or 2, 2)


def _bulk(point: Point, fit: Fit) -> Guess | str:
    """Large exchanges are bound by the link: NVLink inside a node, the cards between nodes."""
    where, count = place(point), ranks(point)
    if where.scaleup_bytes_per_s is None or where.scaleout_bytes_per_s is None:
        return f"no device that is known in '{point.system}'"
    up, out = (fit.family(name, where.device).efficiency for name in ("exchange", "exchange net"))
    if point.metric.lower().endswith(("latency", "time")):
        return "a time of a large exchange needs the tokens of a rank and what runs beside it"
    if count <= NODE or "nvlink" in point.work.lower():
        return Guess(si=up * where.scaleup_bytes_per_s, pool="bulk exchange", basis="all-to-all's share of NVLink")
    rate = out * where.scaleout_bytes_per_s
    if "bottleneck" not in point.metric.lower() and "rdma" not in point.metric.lower():
        rate *= count / (count - NODE)
    return Guess(si=rate, pool="bulk exchange", basis="all-to-all's share of the cards' rate")


def _number(text: str, pattern: str, default: float) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else default
