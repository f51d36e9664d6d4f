"""``frugalbench run``."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from frugalbench.cli import output
from frugalbench.schema import Status


def main(arguments: argparse.Namespace) -> int:
    """Measure, then print the verdicts, where the run directory is, and how to open the report."""
    from frugalbench.cli import judging, session
    from frugalbench.schema import FrugalbenchError

    if arguments.on:
        from frugalbench.cli import on

        return on.main(arguments)
    for name in ("nodes", "wait", "partition", "constraint", "on_option"):
        if getattr(arguments, name) not in (None, []):
            raise FrugalbenchError(f"--{name.replace('_', '-')}: only together with --on")
    if arguments.resume and not arguments.out:
        raise FrugalbenchError("--resume: name the run directory to go on with, --out DIR")
    done = session.run(
        arguments.config,
        arguments.out,
        only=arguments.only,
        overrides=arguments.overrides,
        seed=arguments.seed,
        device=arguments.device,
        time_budget_s=arguments.time_budget,
        resume=arguments.resume,
        allow_code=arguments.allow_code,
        progress=output.progress(),
    )
    output.end_progress()
    verdicts = judging.judge([done])
    if arguments.json:
        output.print_json({"run": str(done.path), "state": done.manifest.state, "verdicts": verdicts})
    else:
        from frugalbench.report.terminal import verdicts_terminal

        print(verdicts_terminal(verdicts), end="")
        _closing(done)
    if done.manifest.state == "interrupted":
        print(f"frugalbench: interrupted; go on with --resume --out {done.path}", file=sys.stderr)
        return 130
    return 1 if any(record.status is Status.FAILED for record in done.records) else 0


def _own_name() -> str:
    """How this program can be called again from here: by name, or by its path in a virtual environment."""
    called = Path(sys.argv[0])
    if shutil.which("frugalbench") or called.name != "frugalbench":
        return "frugalbench"
    return os.path.relpath(called)


def _closing(done: "object") -> None:
    from frugalbench.analysis.load import Run

    assert isinstance(done, Run)
    harness, manifest = done.manifest.harness, done.manifest
    if harness is not None:
        share = harness.parent_cpu_s / harness.wall_s if harness.wall_s else 0.0
        memory = (
            "" if harness.peak_pss_bytes is None else f", at most {harness.peak_pss_bytes / 2**30:.1f} GiB of memory"
        )
        if harness.prepared_s >= 1:
            print(
                f"Exported and compiled for {harness.prepared_s:.0f} s before measuring; "
                "that is cached for the next run."
            )
        print(
            f"Measured for {harness.measuring_s:.0f} s ({manifest.state}){memory}; "
            f"the harness itself took {share:.1%} of one core."
        )
    for note in manifest.notes[:1]:
        output.say(f"Note: {note}.")
    output.say(f"Run directory: {done.path}")
    output.say(f"Report:        {_own_name()} report {done.path} --format html --output {done.path}/report.html")
