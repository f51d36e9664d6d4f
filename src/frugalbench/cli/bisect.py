"""``frugalbench bisect``."""

import argparse
import math
from pathlib import Path
from textwrap import fill
from typing import Any

from frugalbench.cli import output

SEARCH = "frugalbench.workloads.onnx_bisect"
LIMIT_S = 3600.0
WIDTH = 80


def main(arguments: argparse.Namespace) -> int:
    """Name the first node that a backend computes wrongly; 0 when there is none, 1 when there is, 3 without backend."""
    from frugalbench.schema import NothingRunsHere

    found = search(arguments)
    if found["verdict"] == "not here":
        raise NothingRunsHere(f"--backend {arguments.backend}: {found['reason']}")
    if arguments.json:
        output.print_json({key: _finite(value) for key, value in found.items()})
    else:
        for line in text_of(found):
            output.say(fill(line, WIDTH, subsequent_indent="  "))
    return 0 if found["verdict"] == "agrees" else 1


def search(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the search in its own process found; :class:`FrugalbenchError` for a request that makes no sense."""
    from frugalbench import apart
    from frugalbench.cli.portability import dims_of
    from frugalbench.machine import Machine
    from frugalbench.paths import cache_dir
    from frugalbench.schema import FrugalbenchError

    _check(arguments)
    request = {
        "path": arguments.model, "backend": arguments.backend, "dims": dims_of(arguments.dim), "feed": arguments.input,
        "tolerance": arguments.tolerance, "against": arguments.against, "device": arguments.device,
        "threads": arguments.threads or Machine.detect().logical_cores, "seed": arguments.seed,
        "cache": str(cache_dir()),
    }  # fmt: skip
    answer = apart.ask(SEARCH, request, LIMIT_S, follow=True)
    if answer.outcome != "done":
        raise FrugalbenchError(answer.reason)
    return answer.value


def _check(arguments: argparse.Namespace) -> None:
    from frugalbench.schema import FrugalbenchError

    if arguments.tolerance is not None and not 0 < arguments.tolerance < math.inf:
        raise FrugalbenchError(f"--tolerance: must be above 0, not {arguments.tolerance}")
    for path in (arguments.input, arguments.against):
        if path and not Path(path).is_file():
            raise FrugalbenchError(f"{path}: no such file")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_of(found: dict[str, Any]) -> list[str]:
    """The finding in a few lines."""
    where = f"{found['model']} on {found['backend']}"
    tail = f"({found['runs']} runs in {found['wall_s']:.0f} s, held against {found['against']})"
    if found["verdict"] == "agrees":
        return [
            f"{where}: agrees; largest error {_number(found['error'])}, allowed {_number(found['tolerance'])}",
            tail,
        ]
    if found["verdict"] == "falls back":
        return [f"{where}: {found['reason']}", tail]
    node = found["node"]
    named = f"{node['operator']} '{node['name'] or node['outputs'][0]}'"
    place = f"node {node['index'] + 1} of {found['nodes']}"
    if found["verdict"] != "diverges":
        return [f"{where}: {found['verdict']} the graph: {found['whole']}",
                f"First node that it does not take: {named}, {place}: {found['reason']}", tail]  # fmt: skip
    lines = [
        f"{where}: output '{found['output']}' is off by {_number(found['error'])}, allowed "
        f"{_number(found['tolerance'])}",
        f"First diverging node: {named}, {place}",
        f"Error before it {_number(found['before'])}, after it {_number(found['after'])}",
    ]
    lines += _verdict_alone(found)
    if found["unknown"]:
        named = ", ".join(item["name"] or item["operator"] for item in found["unknown"])
        lines.append(f"Gave no answer up to these nodes, so the fault may begin there: {named}")
    return [*lines, tail]


def _verdict_alone(found: dict[str, Any]) -> list[str]:
    if found["alone"] is None:
        return ["By itself, on exact inputs, it gave no answer"]
    at_fault = found["alone"] > found["tolerance"]
    why = "its own kernel is at fault" if at_fault else "only together with what stands before it, as after a fusion"
    return [f"By itself, on exact inputs, it is off by {_number(found['alone'])}: {why}"]


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "no finite number, or another shape"
