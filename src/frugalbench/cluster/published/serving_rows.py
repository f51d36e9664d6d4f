"""Rows about serving DeepSeek-V3 and -R1 with experts over a whole domain, by :mod:`frugalbench.cluster.serving`.

Rates per device of two systems that have a cluster file. The interval goes to the rates with all inputs at one end, the
farther of the two, an end at which no token comes in time left out: no serving stack was fitted.
"""

import math
import re

from frugalbench.cluster import serving
from frugalbench.cluster.published.guess import Guess
from frugalbench.cluster.published.names import place
from frugalbench.cluster.published.points import Point
from frugalbench.cluster.topology import load
from frugalbench.schema import FrugalbenchError

_CLUSTERS = {"ascend-910c": "cloudmatrix384", "gb200": "nvl72"}
"""Device to the file of the domain that it is part of."""
_MODEL = re.compile(r"deepseek-?(r1|v3)")
_LIMIT = re.compile(r"tpot (\d+(?:\.\d+)?) ?ms")
_EACH = re.compile(r"per (npu|gpu|device|chip|accelerator)\b")


def guess(point: Point) -> Guess | str:
    """A prediction, why there is none, or an empty text for rows of another kind."""
    metric = point.metric.lower()
    cluster = _CLUSTERS.get(place(point).device)
    phase = next((name for name in ("decode", "prefill") if metric.startswith(f"{name} throughput")), "")
    if not phase or cluster is None or not _MODEL.search(point.work.lower()):
        return ""
    if not _EACH.search(metric):
        return f"serving is predicted per device ('{phase} throughput per NPU')"
    limit = _LIMIT.search(metric)
    if phase == "decode" and (limit is None or not float(limit[1])):
        return "decoding needs the time between two tokens ('decode throughput per NPU TPOT 50 ms')"
    limit_s = float(limit[1]) / 1e3 if limit else None
    try:
        rate = _token_per_s(cluster, point, limit_s, "value")
    except FrugalbenchError as problem:
        return str(problem)
    return Guess(
        si=rate,
        pool="training elsewhere",
        spread=_width(rate, cluster, point, limit_s) / 1.96,
        basis=f"{phase} of '{cluster}', {serving.CONTEXT} tokens of context",
    )


_COSTS = ("serving.imbalance", "decode.start_share", ".software", ".exchange")
"""Inputs whose upper end is the slower one."""


def _width(rate: float, name: str, point: Point, limit_s: float | None) -> float:
    """Logarithmic distance to the farther of the rates with everything slow and everything fast."""
    found = []
    for end in ("low", "high"):
        try:
            found.append(abs(math.log(_token_per_s(name, point, limit_s, end) / rate)))
        except FrugalbenchError:
            continue
    return max(found)


def _token_per_s(name: str, point: Point, limit_s: float | None, end: str) -> float:
    """Per device, with all inputs at an end; without a limit that of prompts."""
    cluster = load(name)
    turned = {"low": "high", "high": "low", "value": "value"}[end]
    inputs = serving.inputs(cluster, "prefill" if limit_s is None else "decode").items()
    values = {key: getattr(item, turned if key.endswith(_COSTS) else end) for key, item in inputs}
    if "perfect" in f"{point.metric} {point.note}".lower():
        values["serving.imbalance"] = 1.0
    if limit_s is None:
        return serving.prefill_token_per_s(cluster, values) / cluster.last_devices
    return serving.decode_token_per_s(cluster, limit_s, values) / cluster.last_devices
