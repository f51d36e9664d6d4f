"""``frugalbench selftest``."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from frugalbench.cli import output


def main(arguments: argparse.Namespace) -> int:
    """Measure the banks and the live comparisons, judge them, keep the result, and print it."""
    from frugalbench.analysis.selftest import document
    from frugalbench.cli.floor import self_test_file
    from frugalbench.cli.selfcheck import SelfCheck
    from frugalbench.machine import Machine
    from frugalbench.paths import state_dir
    from frugalbench.report.selftest import selftest_terminal
    from frugalbench.schema import FrugalbenchError
    from frugalbench.specs.base import SIMULATED

    if arguments.time_budget is not None and not arguments.time_budget >= 1:
        raise FrugalbenchError(f"--time-budget: must be at least 1, not {arguments.time_budget}")
    machine = Machine.detect()
    device = arguments.device or "cpu"
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folder = Path(arguments.out) if arguments.out else state_dir() / f"selftest-{machine.fingerprint}-{stamp}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FrugalbenchError(f"{folder}: is not an empty folder; choose another --out")
    check = SelfCheck(machine, device, arguments.quick, arguments.time_budget, folder, output.progress())
    found = check.run()
    output.end_progress()
    if arguments.json:
        output.print_json(document(found))
    else:
        print(selftest_terminal(found), end="")
        kept = f"Kept in {self_test_file(machine.fingerprint, device)}" if found.enough else "Too little to be kept."
        if device == SIMULATED:
            kept = "Not kept: the simulated device tells of the harness, not of this machine."
        print(f"{kept}\nRecords: {found.runs}")
    missed = any(not item.caught for item in found.planted)
    return 1 if missed or any(kind.problem for kind in (*found.idle, *found.loaded)) else 0
