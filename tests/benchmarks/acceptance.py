"""Many comparisons of identical and slowed arms under one condition: the figures that this harness is accepted by.

``python tests/benchmarks/acceptance.py --kind memory-bound --loaded --seconds 600 --out DIR`` measures a bank of four
identical pairs and arms with 2, 5 and 10% more work, cuts it into disjoint blocks of four replicates (identical arms)
and of up to 24 (slowed ones, at most 60 s each), replays each through the stopping rule, and prints a line for each
question.
``--pieces 5`` measures five banks of that many seconds, each with a seed of its own, as folders of DIR, and pools them;
those that are there already are read, so that a long measurement can be made in parts.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from frugalbench.analysis.duel import faster
from frugalbench.analysis.load import load_run
from frugalbench.analysis.selftest import Bank, rate, study
from frugalbench.cli.session import measure
from frugalbench.config import load_config
from frugalbench.machine import Machine
from frugalbench.plan import make_plan
from frugalbench.run.load import busy_core
from frugalbench.schema import Decision, Record
from frugalbench.specs.selftest import KINDS

ALPHA = 0.05
PAIRS = 4
ROUNDS = 6
"""Per replicate; the engine takes half to twice as many."""
LONG = (6, 10, 16, 24)
LIMIT_S = 60.0


def pooled(pieces: Sequence[Sequence[Record]]) -> list[Record]:
    """Records of several banks as those of one: replicates are numbered on, pilots stay pilots."""
    found: list[Record] = []
    for piece in pieces:
        last = max((record.replicate for record in found), default=0)
        found += [msgspec.structs.replace(r, replicate=r.replicate + last) if r.replicate else r for r in piece]
    return found


def records(kind: str, device: str, loaded: bool, seconds: float, out: Path, seed: int) -> Sequence[Record]:
    """Measure a bank, or read the one that ``out`` holds already."""
    if not (out / "manifest.json").exists():
        config = load_config("selftest")
        options = {**config.workloads[0], "kinds": [kind], "identical": 2 * PAIRS, "extra": [2.0, 5.0, 10.0]}
        planned = msgspec.structs.replace(
            config.measure, looks=tuple(range(4, 8001, 4)), rounds=ROUNDS, time_budget_s=seconds
        )
        config = msgspec.structs.replace(config, measure=planned, workloads=(options,), seed=seed)
        machine = Machine.detect()
        go_on = lambda _records, _number: Decision(stop=False, look=0, reason="a bank goes on")  # noqa: E731
        with busy_core() if loaded else contextlib.nullcontext():
            plan = make_plan(config, machine, device=device)
            measure(config, plan, machine, out, go_on, 0.0, lambda t: print(t, file=sys.stderr))
    return load_run(out).records


def lines(found: Bank, name: str, floor: float) -> list[str]:
    """One line per question."""
    pairs = [(block, pair) for block in found.blocks(4) for pair in found.pairs()]
    texts = []
    for label, widening in (("no floor", 0.0), (f"floor {floor:.2%}", floor)):
        ends = [found.replay(block, *pair, (4,), widening) for block, pair in pairs]
        false = rate(faster(row) is not None for row in ends)
        held = rate(row.low is not None and row.high is not None and row.low <= 1 <= row.high for row in ends)
        texts.append(f"{name}: identical arms, 4 replicates, {label}: {false.count} false verdicts of {false.of}, "
                     f"undecided {false.of - false.count}; intervals that hold 1: {held.rate:.1%}")  # fmt: skip
    summary = study(found, floor, LONG)
    pair_s = summary.pair_replicate_s or 1.0
    most = min(LONG[-1], int(LIMIT_S / pair_s))
    looks = (*(look for look in LONG if look < most), most)
    for arm in found.slowed:
        ends = [found.ended(block, "same", arm, looks, floor) for block in found.blocks(most)]
        hits, wrong = rate(faster(row) is False for row, _ in ends), sum(faster(row) is True for row, _ in ends)
        time_s = sorted(number * pair_s for _, number in ends)
        median_s = time_s[len(time_s) // 2] if time_s else 0.0
        texts.append(f"{name}: {arm}, at most {most} replicates ({most * pair_s:.0f} s): found {hits.count} of "
                     f"{hits.of}, wrong way {wrong}, median {median_s:.0f} s")  # fmt: skip
    texts.append(f"{name}: {summary.replicates} replicates, spread {summary.spread:.2%}, {summary.components}, "
                 f"void {summary.void_share:.0%}, coverage {summary.coverage}")  # fmt: skip
    return texts


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or sim")
    parser.add_argument("--loaded", action="store_true", help="beside a process that keeps one core busy")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--floor", type=float, default=0.002)
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder of run directories; those that hold a bank already are read")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {seed: (arguments.out or Path(scratch)) / str(seed) for seed in range(1, arguments.pieces + 1)}
        given = (arguments.kind, arguments.device, arguments.loaded, arguments.seconds)
        found = Bank(arguments.kind, pooled([records(*given, out, seed) for seed, out in folders.items()]), ALPHA)
        name = f"{arguments.device}, {arguments.kind} {'loaded' if arguments.loaded else 'idle'}"
        print("\n".join(lines(found, name, arguments.floor)))


if __name__ == "__main__":
    main()
