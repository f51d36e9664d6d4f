"""``frugalbench portability``."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalbench.cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from frugalbench.analysis.load import Run
    from frugalbench.analysis.placed import PlacedNode
    from frugalbench.config import Config
    from frugalbench.schema import Plan

ROUNDS = 5
MOST_DIMS = 64
NODES_WIDTH = 100


def main(arguments: argparse.Namespace) -> int:
    """Run one model through every backend here; 1 when one of them fails it, 3 when there is none to try."""
    _check(arguments)
    with tempfile.TemporaryDirectory(prefix="frugalbench-portability-") as scratch:
        run = _measure(arguments, Path(arguments.out) if arguments.out else Path(scratch) / "run")
    output.end_progress()
    return _tell(arguments, run)


def _tell(arguments: argparse.Namespace, run: "Run") -> int:
    from frugalbench.analysis.portability import NOT_RUN, PASS, cells, file_facts, portabilities
    from frugalbench.report.nodes import listed, nodes_tables
    from frugalbench.report.portability import blockers, page
    from frugalbench.report.terminal import table_terminal
    from frugalbench.schema import FrugalbenchError

    found = cells(run)
    if not found:
        raise FrugalbenchError("portability: interrupted before anything was measured; run it again")
    absent = {skip.case.variant: skip.reason for skip in run.manifest.plan.skipped}
    if arguments.json:
        facts = file_facts(run, found[0].graph)
        output.print_json({
            "model": facts, "state": run.manifest.state, "machine": run.manifest.machine_before.get("name"),
            "backends": [_plain(cell) for cell in found], "phi": [_plain(item) for item in portabilities(run)],
            "blockers": blockers(run), "not_tried": absent,
            **(_plain_nodes(listed(run)) if arguments.nodes else {}),
        })  # fmt: skip
    else:
        for line in page(run, absent).splitlines():
            output.say(line)
        for table in nodes_tables(run) if arguments.nodes else []:
            output.say(table_terminal(table, width=NODES_WIDTH).rstrip())
        if arguments.out:
            output.say(f"Run directory: {run.path}")
    if run.manifest.state == "interrupted":
        output.warn("interrupted; this is what was measured so far")
        return 130
    return 0 if all(cell.outcome in (PASS, NOT_RUN) for cell in found if cell.portable) else 1


def _plain_nodes(found: "Mapping[str, Sequence[PlacedNode]]") -> dict[str, Any]:
    """Backend to its nodes, as the records have them, with the share of time."""
    renamed = {"origins": "from"}
    plain = {name: [{renamed.get(key, key): value for key, value in vars(node).items()} for node in nodes]
             for name, nodes in found.items()}  # fmt: skip
    return {"nodes": plain}


def _plain(found: object) -> Any:
    import msgspec

    return msgspec.to_builtins(found)


def _check(arguments: argparse.Namespace) -> None:
    from frugalbench.schema import FrugalbenchError

    for name, least in (("time_budget", 1.0), ("replicates", 1), ("threads", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise FrugalbenchError(f"--{name.replace('_', '-')}: must be at least {least:g}, not {value}")
    if arguments.input and not Path(arguments.input).is_file():
        raise FrugalbenchError(f"{arguments.input}: no such file")


def dims_of(given: list[str]) -> dict[str, int]:
    """``NAME=N`` as numbers; raises :class:`FrugalbenchError` for anything else."""
    from frugalbench.schema import FrugalbenchError

    found: dict[str, int] = {}
    for text in given[:MOST_DIMS]:
        name, equals, size = text.rpartition("=")
        if not equals or not name or not size.lstrip("-").isdecimal() or len(size) > 18:
            raise FrugalbenchError(f"--dim {text}: write NAME=N with a whole number, e.g. --dim batch=8")
        found[name] = int(size)
    return found


def _measure(arguments: argparse.Namespace, path: Path) -> "Run":
    from frugalbench.cli import session
    from frugalbench.cli.floor import floor_of
    from frugalbench.machine import Machine

    machine = Machine.detect()
    show = output.progress()
    show(f"{arguments.model}: reading it, and a float64 answer")
    planned = _plan(arguments, machine)
    config = _config(arguments)
    floor = floor_of(machine.fingerprint)
    choose = session.decide_by_claims(config, (), floor)
    return session.measure(config, planned, machine, path, choose, floor, show)


def _plan(arguments: argparse.Namespace, machine: Any) -> "Plan":
    from frugalbench.schema import NothingRunsHere, Plan
    from frugalbench.specs import onnx_graphs
    from frugalbench.specs.base import Settings

    options: dict[str, Any] = {"graphs": [], "paths": [arguments.model], "dims": dims_of(arguments.dim)}
    options |= {"input": arguments.input or "", "nodes": arguments.nodes}
    if arguments.backends:
        options["backends"] = arguments.backends
    settings = Settings(
        workload=onnx_graphs.WORKLOAD, device=arguments.device, threads=arguments.threads or machine.logical_cores,
        seed=arguments.seed, options=options, where="portability",
    )  # fmt: skip
    found = onnx_graphs.expand(settings, machine)
    if not found.comparisons:
        reasons = sorted({skip.reason for skip in found.skipped}) or ["no backend here takes a file"]
        raise NothingRunsHere(f"{arguments.model}: no backend here can try it: {'; '.join(reasons)}")
    return Plan(seed=arguments.seed, comparisons=found.comparisons, skipped=found.skipped)


def _config(arguments: argparse.Namespace) -> "Config":
    from frugalbench.config import Config, Energy, Measure

    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    measure = Measure(
        looks=(arguments.replicates,), rounds=ROUNDS, time_budget_s=arguments.time_budget,
        memory_limit_bytes=max(Measure().memory_limit_bytes, half),
    )  # fmt: skip
    return Config(
        name="portability", description="one model of the command line", seed=arguments.seed, measure=measure,
        energy=Energy(), workloads=(), path="command line",
    )  # fmt: skip
