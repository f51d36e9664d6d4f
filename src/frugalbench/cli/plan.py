"""``frugalbench plan``."""

import argparse

from frugalbench.cli import output
from frugalbench.schema import Case, Plan
from frugalbench.units import byte_size, si


def main(arguments: argparse.Namespace) -> int:
    """Show what a config expands to here; runs nothing."""
    from frugalbench.cli.session import all_overrides, require_device
    from frugalbench.config import load_config
    from frugalbench.machine import Machine
    from frugalbench.plan import make_plan

    config = load_config(arguments.config, all_overrides(arguments.overrides, arguments.seed, arguments.time_budget))
    plan = make_plan(config, Machine.detect(), arguments.only, arguments.device, arguments.allow_code)
    require_device(plan)
    if arguments.json:
        output.print_json(plan)
        return 0
    replicates = config.measure.looks
    for line in _lines(plan):
        output.say(line)
    budget_s = config.measure.time_budget_s
    starts = f"{replicates[0]}" + (f" to {replicates[-1]}" if len(replicates) > 1 else "")
    print(
        f"{starts} fresh starts of each arm after a pilot, {config.measure.rounds} rounds each; "
        f"time budget {budget_s:.0f} s"
    )
    return 0


def _lines(plan: Plan) -> list[str]:
    lines = []
    for comparison in plan.comparisons:
        memory = byte_size(sum(arm.memory_bytes for arm in comparison.arms) or None)
        lines.append(
            f"{comparison.id}: {len(comparison.arms)} arms, about {memory} and {comparison.estimate_s:.0f} s a start"
        )
        lines += [f"  {_case(case)}" for arm in comparison.arms for case in arm.cases]
    lines += [f"{case.id}: modelled" for case in plan.modelled]
    lines += [f"{skip.case.id}: skipped: {skip.reason}" for skip in plan.skipped]
    return lines


def _case(case: Case) -> str:
    if case.cost is None:
        return case.id
    work = si(case.cost.op, "op") if case.cost.op else si(case.cost.flop, "FLOP")
    return f"{case.id}: {work}, {byte_size(case.cost.traffic_bytes)} moved a call"
