"""``frugalbench versus``."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from frugalbench.cli import output

if TYPE_CHECKING:
    from frugalbench.analysis.load import Run
    from frugalbench.config import Config
    from frugalbench.machine import Machine
    from frugalbench.schema import Plan

ALPHA = 0.05
LOOKS = (6, 10, 16, 24)
ROUNDS, COMMAND_ROUNDS = 15, 3
"""Each call of a command is a fresh process already, so its rounds are few and its replicates cheap."""


def main(arguments: argparse.Namespace) -> int:
    """Measure the arms turn by turn and say which is fastest; 0 whoever wins, 1 when an arm cannot run."""
    from frugalbench.analysis import versus
    from frugalbench.analysis.judge import evidence_of
    from frugalbench.report.versus import versus_terminal
    from frugalbench.specs.versus import REGIME, WORKLOAD

    _check(arguments)
    with tempfile.TemporaryDirectory(prefix="frugalbench-versus-") as scratch:
        run = _measure(arguments, Path(arguments.out) if arguments.out else Path(scratch) / "run")
    output.end_progress()
    arms = [arm.id for arm in run.manifest.plan.comparisons[0].arms]
    found = versus.result(evidence_of(run), WORKLOAD, REGIME, arms)
    if arguments.json:
        output.print_json(
            {"state": run.manifest.state, "machine": run.manifest.machine_before.get("name"), **_plain(found)}
        )
    else:
        print(versus_terminal(found), end="")
        if arguments.out:
            print(f"Run directory: {run.path}")
    if run.manifest.state == "interrupted":
        print("frugalbench: interrupted; this is what was measured so far", file=sys.stderr)
        return 130
    slow = {} if arguments.fail_above is None else versus.slower_by(found.pairs, arms[0])
    worse = {name: percent for name, percent in slow.items() if percent > arguments.fail_above}
    for name, percent in worse.items():
        print(f"frugalbench: {name} is slower than {arms[0]} by more than {percent:.1f}%", file=sys.stderr)
    return 1 if worse or any(item.problem for item in found.arms) else 0


def _check(arguments: argparse.Namespace) -> None:
    from frugalbench.schema import FrugalbenchError

    for name, least in (("time_budget", 1.0), ("replicates", 2), ("threads", 1), ("seed", 0), ("fail_above", 0.0)):
        value = getattr(arguments, name)
        if value is not None and not value >= least:
            raise FrugalbenchError(f"--{name.replace('_', '-')}: must be at least {least:g}, not {value}")


def _measure(arguments: argparse.Namespace, path: Path) -> "Run":
    from frugalbench.machine import Machine
    from frugalbench.specs.versus import Options, plan

    machine = Machine.detect()
    options = Options(
        commands=arguments.command,
        setups=tuple(arguments.setup),
        check=arguments.check,
        ignore_failure=arguments.ignore_failure,
        threads=arguments.threads or machine.logical_cores,
        seed=arguments.seed,
        envs=tuple(arguments.env),
    )
    planned = plan(arguments.arms, options)
    return measured(planned, make_config(arguments, len(planned.comparisons[0].arms)), machine, path, output.progress())


def measured(
    planned: "Plan", config: "Config", machine: "Machine", path: Path, progress: Callable[[str], None]
) -> "Run":
    """Measure a plan of :mod:`frugalbench.specs.versus` into ``path``, stopping when its questions are settled."""
    from frugalbench.analysis import versus
    from frugalbench.cli import session
    from frugalbench.cli.floor import floor_of
    from frugalbench.specs.versus import REGIME, WORKLOAD

    names = [arm.id for arm in planned.comparisons[0].arms]
    floor = floor_of(machine.fingerprint)
    choose = session.decide_by_claims(config, versus.claims(WORKLOAD, REGIME, names), floor)
    return session.measure(config, planned, machine, path, choose, floor, progress)


def make_config(arguments: argparse.Namespace, arms: int) -> "Config":
    """How a plan of ``arms`` arms is measured: looks, alpha, rounds, budget."""
    from frugalbench.analysis.versus import share_alpha
    from frugalbench.config import Config, Energy, Measure

    looks = (*(look for look in LOOKS if look < arguments.replicates), arguments.replicates)
    measure = Measure(
        looks=looks,
        alpha=share_alpha(ALPHA, arms),
        rounds=COMMAND_ROUNDS if arguments.command else ROUNDS,
        lead_in_s=0.0 if arguments.command else Measure().lead_in_s,
        warmup_limit_s=0.1,
        time_budget_s=arguments.time_budget,
    )
    return Config(
        name="versus", description="arms named on the command line", seed=arguments.seed, measure=measure,
        energy=Energy(),
        workloads=(), path="command line",
    )  # fmt: skip


def _plain(found: object) -> dict[str, object]:
    import msgspec

    plain: dict[str, object] = msgspec.to_builtins(found)
    return plain
