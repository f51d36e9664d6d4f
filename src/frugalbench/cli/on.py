"""``frugalbench run CONFIG --on …``: the same plan on every machine of a cluster, and one report of all."""

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.load import Run, load_run
from frugalbench.cli import judging, output, session
from frugalbench.config import Config, load_config, require_permission
from frugalbench.fanout.drive import Fanout, Hooks, Seat, worst
from frugalbench.fanout.identity import identity
from frugalbench.fanout.place import Place
from frugalbench.report.tables import Cell, Table
from frugalbench.schema import FrugalbenchError, NothingRunsHere, Verdict
from frugalbench.units import DASH

SPARE_MIN = 60
"""Minutes of a batch job beyond the time budget: imports, exports and compilations that are not cached there yet."""
_WHERE = "ray, ray://HOST:PORT, slurm or submitit-local"


def main(arguments: argparse.Namespace) -> int:
    """Measure on all machines at once, gather their run directories, judge and report them together."""
    _check(arguments)
    overrides = session.all_overrides(arguments.overrides, arguments.seed, arguments.time_budget)
    settings = _settled(load_config(arguments.config, overrides))
    require_permission(settings, arguments.allow_code)
    folder = Path(arguments.out) if arguments.out else session.default_out(settings.name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FrugalbenchError(f"{folder}: is not an empty folder; choose another --out")
    place = _place(arguments, settings, folder)
    try:
        fanned = _fan_out(place, request_of(settings, arguments), folder, arguments)
    finally:
        place.close()
    return _conclude(fanned, folder, arguments.json)


def _check(arguments: argparse.Namespace) -> None:
    where = arguments.on
    if where not in ("ray", "slurm", "submitit-local") and not where.startswith("ray://"):
        raise FrugalbenchError(f"--on {where}: no such place; one of {_WHERE}")
    if arguments.resume:
        raise FrugalbenchError("--resume: not with --on; go on with one machine's run on that machine")
    if arguments.nodes is not None and arguments.nodes < 1:
        raise FrugalbenchError(f"--nodes: must be at least 1, not {arguments.nodes}")
    if arguments.wait is not None and not arguments.wait >= 0:
        raise FrugalbenchError(f"--wait: must be seconds, not {arguments.wait}")
    for name in ("partition", "constraint", "on_option"):
        if getattr(arguments, name) and where != "slurm" and (name != "on_option" or where.startswith("ray")):
            raise FrugalbenchError(f"--{name.replace('_', '-')}: means something to --on slurm only")


def _settled(config: Config) -> Config:
    """With a path that does not depend on the current folder: files that the config names lie beside it."""
    path = Path(config.path)
    return msgspec.structs.replace(config, path=str(path.resolve())) if path.is_file() else config


def request_of(config: Config, arguments: argparse.Namespace) -> dict[str, Any]:
    """What every machine is asked: the whole config, so that no file of it need lie there."""
    return {
        "config": msgspec.to_builtins(config),
        "only": arguments.only,
        "device": arguments.device,
        "allow_code": arguments.allow_code,
        "cwd": str(Path.cwd()),
    }


def _place(arguments: argparse.Namespace, config: Config, folder: Path) -> Place:
    if arguments.on.startswith("ray"):
        from frugalbench.fanout.ray_place import RayPlace

        return RayPlace("auto" if arguments.on == "ray" else arguments.on)
    from frugalbench.fanout.submitit_place import SubmititPlace

    options = dict(_option(item) for item in arguments.on_option)
    options |= {name: value for name in ("partition", "constraint") if (value := getattr(arguments, name))}
    limit_min = math.ceil(config.measure.time_budget_s / 60) + SPARE_MIN
    return SubmititPlace("slurm" if arguments.on == "slurm" else "local", folder / "jobs", options, limit_min)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise FrugalbenchError(f"--on-option {text}: write KEY=VALUE, e.g. --on-option account=lab")
    return name, int(value) if value.isdigit() else value


def _fan_out(place: Place, request: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> Fanout:
    nodes = place.nodes()
    if not nodes:
        raise NothingRunsHere(f"--on {arguments.on}: no node there could run anything")
    asked = len(nodes) if arguments.nodes is None else arguments.nodes
    if asked > len(nodes):
        output.warn(f"--nodes {asked}: there are {len(nodes)}")
    _tell(f"asking for {min(asked, len(nodes))} of {len(nodes)} machines: {_some([node.name for node in nodes])}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise FrugalbenchError(f"{folder}: cannot be made: {problem.strerror}; choose another --out") from None
    fanned = Fanout(place, request, folder, identity(), Hooks(output.progress(), _tell), arguments.wait)
    try:
        fanned.run(nodes, asked)
    finally:
        output.end_progress()
        if all(seat.state == "measured" for seat in fanned.seats):
            shutil.rmtree(folder / "jobs", ignore_errors=True)
    if not fanned.seats:
        raise NothingRunsHere(f"--on {arguments.on}: no node was given to us; the lines above say why")
    return fanned


def _some(names: Sequence[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _tell(text: str) -> None:
    output.end_progress()
    output.warn(text)


def _conclude(fanned: Fanout, folder: Path, as_json: bool) -> int:
    runs: dict[str, Run] = {}
    for seat in fanned.seats:
        if seat.folder is not None:
            try:
                runs[seat.node.name] = load_run(seat.folder)
            except FrugalbenchError as problem:
                seat.code, seat.reason = max(seat.code, 1), str(problem).replace("\n", " ")
    verdicts = judging.judge(list(runs.values()))
    report = _report(list(runs.values()), verdicts, folder)
    if as_json:
        told = [_told(seat, runs.get(seat.node.name)) for seat in fanned.seats]
        left_out = [{"node": node.name, "reason": why} for node, why in fanned.left_out]
        output.print_json(
            {"out": str(folder), "nodes": told, "left_out": left_out, "report": report, "verdicts": verdicts}
        )
    else:
        _print(fanned.seats, runs, verdicts)
        output.say(f"Run directories: {folder}/NODE")
        output.say(f"Report:          {report or 'none'}")
    return worst(seat.code for seat in fanned.seats)


def _report(runs: Sequence[Run], verdicts: Sequence[Verdict], folder: Path) -> str | None:
    """The page of all machines together; what keeps it from being written is said and costs nothing else."""
    from frugalbench.report.render import render

    if not runs:
        return None
    target = folder / "report.html"
    try:
        render(runs, verdicts, "html", target)
    except FrugalbenchError as problem:
        output.warn(f"no page: {problem}")
        return None
    return str(target)


def _told(seat: Seat, run: Run | None) -> dict[str, Any]:
    machine = {} if run is None else run.manifest.machine_before
    return {
        "node": seat.node.name,
        "run": None if run is None else str(run.path),
        "state": seat.state,
        "exit_code": seat.code,
        "reason": seat.reason,
        "same_machine_as": seat.same_as or None,
        "machine": machine.get("name"),
        "fingerprint": machine.get("fingerprint"),
        "records": None if run is None else len(run.records),
    }


def _print(seats: Sequence[Seat], runs: dict[str, Run], verdicts: Sequence[Verdict]) -> None:
    from frugalbench.report.machines import machines_table
    from frugalbench.report.terminal import table_terminal, verdicts_terminal

    together = machines_table(verdicts, list(runs.values()))
    if together.rows:
        print(table_terminal(together), end="")
    elif verdicts:
        print(verdicts_terminal(verdicts), end="")
    print("\n" + table_terminal(_nodes_table(seats, runs)), end="")


def _nodes_table(seats: Sequence[Seat], runs: dict[str, Run]) -> Table:
    columns = (("node", False), ("machine", False), ("state", False), ("records", True), ("note", False))
    rows = []
    for seat in seats:
        told = _told(seat, runs.get(seat.node.name))
        records = DASH if told["records"] is None else str(told["records"])
        note = seat.reason or (f"the same machine as {seat.same_as}" if seat.same_as else DASH)
        texts = (seat.node.name, told["machine"] or DASH, seat.state, records, note)
        rows.append(tuple(Cell(text) for text in texts))
    return Table("Machines", columns, tuple(rows))
