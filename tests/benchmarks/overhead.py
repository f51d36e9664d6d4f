"""What a call costs in each harness's own timed loop, and what a sample costs outside of it. Run by hand, alone:

    python tests/benchmarks/overhead.py [--repeats 9] [--only NAME ...] [--seed 1] [--markdown]

The function under test does nothing, so the time per call is the loop. Every harness is measured through what it
offers to its users, in a fresh process each time; in each round all take part in drawn order. Shown are median and
quartiles over rounds. What a sample costs outside is the wall time of the part named beside it less the timed windows,
per sample. Rows marked end to end count from the start of the command to its end. Needs the extra ``peers``.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

CALLS = 400_000
"""Per sample, about 10 ms; where a harness chooses by itself, it does."""
SAMPLES = 15
NOOP = "def f():\n    pass\n"
PYPERF = "import pyperf\n\nfrom noop import f\n\npyperf.Runner().{how}\n"
PYTEST = """
import time

from noop import f


def test_noop(benchmark):
    begin = time.perf_counter()
    {how}
    benchmark.extra_info["wall_s"] = time.perf_counter() - begin
"""


@dataclass(frozen=True)
class Cost:
    """One harness in one round."""

    call_s: float
    sample_s: float
    """Outside of the timed window, per sample."""


def our_loop() -> Cost:
    """The worker's timed loop by itself."""
    session, case = _session()
    bound = session.bound[case]

    def sample() -> float:
        return float(session._run(case, bound, CALLS))

    return _timed(sample)


def our_turn() -> Cost:
    """A worker's turn without lead-in: the loop, and a look at the environment before and after."""
    from frugalbench.run import protocol

    session, case = _session()
    request = protocol.Turn(case=case, calls=CALLS, lead_in_s=0.0, quiet_limit_s=0.0, previous_pid=None)

    def sample() -> float:
        turned = session.answer(request)
        return float(turned.calls * turned.time_s)

    return _timed(sample)


def _session() -> tuple[Any, str]:
    """A worker's session in this process, loaded with the function that does nothing and warmed up."""
    from frugalbench.run import protocol
    from frugalbench.run.worker import Session
    from frugalbench.specs.versus import Options, plan

    options = Options(commands=False, setups=(), check=False, ignore_failure=False, threads=1, seed=1)
    arm = plan(["noop.py:f", "noop.py:f"], options).comparisons[0].arms[0]
    here, now = str(Path.cwd()), time.monotonic()
    job = protocol.Job(arm=arm, seed=1, threads=1, device="cpu", cache_dir=here, scratch_dir=here, start_s=now)
    session, case = Session(job), arm.cases[0].id
    for request in (protocol.Load(), protocol.Calibrate(case=case, limit_s=0.1)):
        answer = session.answer(request)
        if isinstance(answer, protocol.Problem):
            raise SystemExit(answer.reason)
    return session, case


def our_versus() -> Cost:
    """``frugalbench versus`` with one planned look at 6 fresh starts of each arm."""
    from frugalbench.analysis.load import load_run

    words = ["-m", "frugalbench.cli.main", "versus", "noop.py:f", "noop.py:f", "--json", "--replicates", "6"]
    wall_s = _python([*words, "--out", "run"])
    samples = [sample for record in load_run(Path("run")).records for sample in record.samples]
    timed_s = sum(sample.calls * sample.time_s for sample in samples)
    return Cost(median(sample.time_s for sample in samples), (wall_s - timed_s) / len(samples))


def timeit_statement() -> Cost:
    """``timeit.Timer("f()", globals=...)``, which is what ``python -m timeit`` does."""
    import timeit

    from noop import f  # type: ignore[import-not-found]

    timer = timeit.Timer("f()", globals={"f": f})
    return _timed(lambda: timer.timeit(CALLS))


def timeit_callable() -> Cost:
    """``timeit.Timer(f)``."""
    import timeit

    from noop import f

    timer = timeit.Timer(f)
    return _timed(lambda: timer.timeit(CALLS))


def pyperf_function() -> Cost:
    """``Runner.bench_func``; outside: what its worker takes per value."""
    return _pyperf("bench_func('noop', f)")


def pyperf_timeit() -> Cost:
    """``Runner.timeit``; outside: what its worker takes per value."""
    return _pyperf("timeit('noop', 'f()', globals={'f': f})")


def _pyperf(how: str) -> Cost:
    Path("bench.py").write_text(PYPERF.format(how=how))
    _, values, _ = _pyperf_run("values.json", ["-p", "1", "-w", "1", "-n", str(SAMPLES), "-l", str(CALLS)])
    more, less = 4000, 400
    few_s, few, _ = _pyperf_run("few.json", ["-p", "1", "-w", "0", "-n", str(less), "-l", "1"])
    many_s, many, _ = _pyperf_run("many.json", ["-p", "1", "-w", "0", "-n", str(more), "-l", "1"])
    return Cost(median(values), (many_s - sum(many) - few_s + sum(few)) / (more - less))


def pyperf_end_to_end() -> Cost:
    """A script with ``Runner.bench_func``, calibration and its default of 3 values a process, in 6 processes."""
    Path("bench.py").write_text(PYPERF.format(how="bench_func('noop', f)"))
    begin_s = time.perf_counter()
    _, values, loops = _pyperf_run("all.json", ["-p", "6"])
    wall_s = time.perf_counter() - begin_s
    return Cost(median(values), (wall_s - loops * sum(values)) / len(values))


def _pyperf_run(name: str, options: Sequence[str]) -> tuple[float, tuple[float, ...], int]:
    """Seconds that the last worker took, all values, and the loops of each."""
    import pyperf

    _python(["bench.py", "-q", "-o", name, *options])
    bench = pyperf.Benchmark.load(name)
    last = bench.get_runs()[-1].get_metadata()
    return float(last["duration"]), tuple(map(float, bench.get_values())), int(bench.get_loops())


def torch_timer() -> Cost:
    """``Timer("f()").blocked_autorange``, finding its block size included."""
    from noop import f
    from torch.utils.benchmark import Timer

    timer = Timer("f()", globals={"f": f})
    begin_s = time.perf_counter()
    found = timer.blocked_autorange(min_run_time=0.2)
    wall_s = time.perf_counter() - begin_s
    return Cost(found.median, (wall_s - sum(found.raw_times)) / len(found.raw_times))


def pytest_calibrated() -> Cost:
    """``benchmark(f)`` with its defaults but 0.3 s at most, calibration included."""
    return _pytest("benchmark(f)")


def pytest_pedantic() -> Cost:
    """``benchmark.pedantic`` with iterations given."""
    return _pytest(f"benchmark.pedantic(f, rounds={SAMPLES}, iterations={CALLS})")


def _pytest(how: str) -> Cost:
    Path("test_noop.py").write_text(PYTEST.format(how=how))
    words = ["-m", "pytest", "-q", "-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider", "test_noop.py"]
    _python([*words, "--benchmark-max-time=0.3", "--benchmark-json=out.json"], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    (found,) = json.loads(Path("out.json").read_text())["benchmarks"]
    stats = found["stats"]
    timed_s = sum(stats["data"]) * stats["iterations"]
    return Cost(stats["median"], (found["extra_info"]["wall_s"] - timed_s) / stats["rounds"])


def _timed(sample: Callable[[], float]) -> Cost:
    """Samples in a row; ``sample`` returns the seconds of its timed window. The first does not count."""
    windows, outside = [], []
    for _ in range(SAMPLES + 1):
        begin_s = time.perf_counter()
        window_s = sample()
        outside.append(time.perf_counter() - begin_s - window_s)
        windows.append(window_s)
    return Cost(median(windows[1:]) / CALLS, median(outside[1:]))


def _python(words: Sequence[str], **more: str) -> float:
    """Run it here; wall seconds. Ends the process with what it said when it fails."""
    begin_s = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env={**os.environ, **more}, capture_output=True, text=True)
    wall_s = time.perf_counter() - begin_s
    if done.returncode:
        raise SystemExit((done.stderr or done.stdout).strip()[-300:])
    return wall_s


@dataclass(frozen=True)
class Harness:
    """A row."""

    measure: Callable[[], Cost]
    outside: str
    """What a sample's cost outside of the window includes."""
    ours: bool = False


OUR_LOOP = "frugalbench, its loop"
HARNESSES = {
    OUR_LOOP: Harness(our_loop, "clock reads, bookkeeping", True),
    "frugalbench, a turn": Harness(our_turn, "and the environment before and after", True),
    "frugalbench versus, end to end": Harness(our_versus, "and start, fresh workers, calibration, lead-in", True),
    "timeit, statement": Harness(timeit_statement, "clock reads, switching the collector"),
    "timeit, callable": Harness(timeit_callable, "clock reads, switching the collector"),
    "pyperf bench_func": Harness(pyperf_function, "clock reads, bookkeeping"),
    "pyperf timeit": Harness(pyperf_timeit, "clock reads, switching the collector"),
    "pyperf, end to end": Harness(pyperf_end_to_end, "and start, fresh workers, calibration, warm-up"),
    "torch Timer": Harness(torch_timer, "and finding the block size, shared by all blocks"),
    "pytest-benchmark": Harness(pytest_calibrated, "and calibration, shared by all rounds"),
    "pytest-benchmark, pedantic": Harness(pytest_pedantic, "clock reads, bookkeeping"),
}


def one(name: str) -> Cost:
    """One harness in a fresh process and an empty folder. Raises ``RuntimeError`` when it cannot."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        (Path(folder) / "noop.py").write_text(NOOP)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--one", name], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no answer").splitlines()[-1])
    return Cost(**json.loads(done.stdout))


def measure(names: Sequence[str], repeats: int, seed: int) -> dict[str, list[Cost]]:
    """All rounds; a harness that cannot run is told on stderr and left out. Ctrl-C keeps what there is."""
    dice, found = random.Random(seed), {name: list[Cost]() for name in names}
    failed: set[str] = set()
    try:
        for number in range(repeats):
            print(f"round {number + 1} of {repeats}", file=sys.stderr, flush=True)
            for name in dice.sample(names, len(names)):
                try:
                    found[name] += [] if name in failed else [one(name)]
                except RuntimeError as problem:
                    failed.add(name)
                    print(f"{name}: {problem}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    return {name: costs for name, costs in found.items() if costs}


def spread(values: Sequence[float], scale: float) -> str:
    """Median and quartiles; the value where there is but one."""
    if len(values) == 1:
        return shown(scale * values[0])
    low, middle, high = (shown(scale * value) for value in quantiles(values, n=4, method="inclusive"))
    return f"{middle} ({low} to {high})"


def shown(value: float) -> str:
    """Three figures, or whole numbers above a hundred."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def rows(found: dict[str, list[Cost]]) -> list[list[str]]:
    """The table, with its title row; ratios are to the best peer's median."""
    best = _best_peer(found)
    best_s = None if best is None else median(cost.call_s for cost in found[best])
    made = [["harness", "ns per call", "over the best peer", "µs per sample outside", "which includes"]]
    for name, costs in found.items():
        calls = [cost.call_s for cost in costs]
        ratio = "-" if best_s is None else f"{median(calls) / best_s:.2f}"
        outside = spread([cost.sample_s for cost in costs], 1e6)
        made.append([name, spread(calls, 1e9), ratio, outside, HARNESSES[name].outside])
    return made


def target(found: dict[str, list[Cost]]) -> str:
    """Our loop against the best peer's, paired round by round; empty where either is missing."""
    ours, name = found.get(OUR_LOOP), _best_peer(found)
    if ours is None or name is None:
        return ""
    ratios = [mine.call_s / theirs.call_s for mine, theirs in zip(ours, found[name], strict=False)]
    return f"Time per call, {OUR_LOOP} over {name}, round by round: {spread(ratios, 1.0)}; the target is 1 or less."


def _best_peer(found: dict[str, list[Cost]]) -> str | None:
    """Whose time per call is least, ours apart."""
    medians = {name: median(x.call_s for x in costs) for name, costs in found.items() if not HARNESSES[name].ours}
    return min(medians, key=lambda name: medians[name], default=None)


def table(cells: Sequence[Sequence[str]], markdown: bool) -> str:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in cells]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="rounds (9)")
    parser.add_argument("--only", nargs="+", choices=tuple(HARNESSES), default=list(HARNESSES), metavar="NAME")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--markdown", action="store_true", help="a table for a document")
    parser.add_argument("--one", choices=tuple(HARNESSES), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        cost = HARNESSES[arguments.one].measure()
        print(json.dumps({"call_s": cost.call_s, "sample_s": cost.sample_s}))
        return 0
    found = measure(arguments.only, arguments.repeats, arguments.seed)
    print(table(rows(found), arguments.markdown))
    if line := target(found):
        print(f"\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
