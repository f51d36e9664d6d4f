"""Holds ``frugalbench versus`` against its peers on identical and on known different code. Run by hand, alone:

    python tests/benchmarks/peers.py [--comparisons N | --minutes M] [--seconds S] [--kinds cpu blas memory]
        [--effects 0 3 10] [--tools frugalbench pyperf pytest-benchmark torch] [--load] [--seed 1]
        [--json FILE] [--markdown]

One comparison is two callables that do 100 and 100 + effect units of the same work; effect 0 is identical code. Which
of the two comes first is drawn. Every tool gets the same two and the same wall time for both together, start-up and
verdict included; tools take turns in drawn order, never at once. What a tool takes beside what it is asked for is found
in one short comparison per kind that does not count, and followed afterwards.

Counted is what each tool says by each rule for reading it (see ``peer_tools``): on identical code a difference is a
false alarm; on different code the slower arm called faster is wrong, and no call is undecided. Ctrl-C keeps what there
is. Needs the extra ``peers``. Compiled command-line benchmarkers such as hyperfine are not packages, and left out.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import peer_programs as programs
from benchmarks import peer_tools as tools
from benchmarks.overhead import table
from frugalbench.machine import Machine

DEFAULT_TOOLS = ("frugalbench", "pyperf", "pytest-benchmark", "torch")
PACKAGES = ("frugalbench", "pyperf", "pytest-benchmark", "torch", "numpy")
PILOT_S = 2.5
REMEMBERED = 5
"""A tool's spare time is the median of this many latest comparisons."""


@dataclass(frozen=True)
class Outcome:
    """One tool's part in one comparison."""

    tool: str
    kind: str
    effect: float
    """Extra work of the slower arm, percent."""
    slower: str | None
    repeat: int
    wall_s: float | None = None
    faster: dict[str, str | None] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def grade(slower: str | None, faster: str | None) -> str:
    """What one call is worth: ``alarm`` or ``silent`` on identical code, else ``found``, ``wrong`` or ``undecided``."""
    if slower is None:
        return "silent" if faster is None else "alarm"
    return "undecided" if faster is None else "wrong" if faster == slower else "found"


def gates(effects: Sequence[float]) -> tuple[float, ...]:
    """Half of each effect, for the rules that need a threshold; 1.5% where there is only identical code."""
    return tuple(sorted({effect / 2 for effect in effects if effect})) or (1.5,)


def comparisons_for(minutes: float, cells: int, tool_count: int, seconds: float) -> int:
    """How often everything can be repeated."""
    return max(1, int(60 * minutes / (cells * tool_count * seconds)))


class Bench:
    """Makes the comparisons one after the other."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.dice = random.Random(arguments.seed)
        self.cache_bytes = programs.last_level_cache_bytes()
        self.threads = Machine.detect().logical_cores
        self.call_s: dict[str, float] = {}
        self.spare_s: dict[tuple[str, str], list[float]] = {}
        self.begin_s = time.monotonic()

    def job(self, kind: str, units: tuple[int, int], spare_s: float = 0.0) -> tools.Job:
        """A comparison of ``kind``, with its programs written."""
        made = tools.Job(
            folder=self.folder / kind, kind=kind, units=units, seconds=self.arguments.seconds, spare_s=spare_s,
            call_s=self.call_s.get(kind, 0.01), threads=self.threads, gates=gates(self.arguments.effects),
            seed=self.dice.randrange(2**31),
        )  # fmt: skip
        programs.write_programs(made.folder, kind, units, self.threads, self.cache_bytes)
        return made

    def pilot(self) -> None:
        """Learn the time of a call of each kind, and what each tool takes beside what it is asked for."""
        for kind in self.arguments.kinds:
            self.call_s[kind] = tools.rough_call_s(self.job(kind, (100, 100)))
            for tool in self.arguments.tools:
                try:
                    self.spare_s[tool, kind] = [tools.first_spare_s(tool, self.job(kind, (100, 100)), PILOT_S)]
                except tools.ToolFailed as failed:
                    self.spare_s[tool, kind] = [0.5]
                    self.say(f"{tool}, {kind}: {failed}")
                self.say(f"{tool} on {kind}: {self.spare_s[tool, kind][0]:.2f} s beside measuring")

    def outcomes(self) -> Iterator[Outcome]:
        """Everything, each repeat in an order of its own."""
        cells = [(kind, effect) for kind in self.arguments.kinds for effect in self.arguments.effects]
        total = self.arguments.comparisons * len(cells) * len(self.arguments.tools)
        number = 0
        for repeat in range(self.arguments.comparisons):
            for kind, effect in self.dice.sample(cells, len(cells)):
                slower = self.dice.choice((tools.FIRST, tools.SECOND)) if effect else None
                for tool in self.dice.sample(self.arguments.tools, len(self.arguments.tools)):
                    outcome = self.one(tool, kind, effect, slower, repeat)
                    number += 1
                    self.say(f"{number} of {total}: {told(outcome)}")
                    yield outcome

    def one(self, tool: str, kind: str, effect: float, slower: str | None, repeat: int) -> Outcome:
        """One tool's answer to one comparison."""
        more = round(100 + effect)
        units = (more, 100) if slower == tools.FIRST else (100, more)
        known = self.spare_s[tool, kind]
        outcome = Outcome(tool, kind, effect, slower, repeat)
        try:
            answer = tools.TOOLS[tool](self.job(kind, units, median(known[-REMEMBERED:])))
        except tools.ToolFailed as failed:
            return replace(outcome, problem=str(failed))
        known.append(answer.spare_s)
        return replace(outcome, wall_s=answer.wall_s, faster=answer.faster, raw=answer.raw)

    def say(self, text: str) -> None:
        """Progress."""
        print(f"[{time.monotonic() - self.begin_s:5.0f} s] {text}", file=sys.stderr, flush=True)


def told(outcome: Outcome) -> str:
    """One outcome in a line."""
    what = f"{outcome.tool} on {outcome.kind}, {outcome.effect:g}%"
    if outcome.problem:
        return f"{what}: {outcome.problem}"
    said = ", ".join(f"{rule}: {grade(outcome.slower, faster)}" for rule, faster in outcome.faster.items())
    return f"{what}, {outcome.wall_s:.1f} s: {said}"


def interval(hits: int, total: int) -> tuple[float, float]:
    """Exact (Clopper and Pearson) 95% interval of a share."""
    from scipy.stats import beta

    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, total - hits + 1))
    high = 1.0 if hits == total else float(beta.ppf(0.975, hits + 1, total - hits))
    return low, high


def cell(counts: Counter[str], bounds: bool) -> str:
    """One effect of one rule: ``2 of 9 (3% to 60%)`` false alarms, or ``found / wrong / undecided``."""
    silent, alarms = counts["silent"], counts["alarm"]
    if silent + alarms == 0:
        return " / ".join(str(counts[name]) for name in ("found", "wrong", "undecided")) if counts else "-"
    low, high = interval(alarms, silent + alarms)
    return f"{alarms} of {silent + alarms}" + (f" ({low:.0%} to {high:.0%})" if bounds else "")


def rows(outcomes: Sequence[Outcome], kind: str | None) -> list[list[str]]:
    """The table of one kind of work, or of all together, with its title row."""
    mine = [item for item in outcomes if kind in (None, item.kind)]
    effects = sorted({item.effect for item in mine})
    titles = ["false alarms" if effect == 0 else f"{effect:g}%: found / wrong / undecided" for effect in effects]
    made = [["tool", "rule", *titles, "seconds"]]
    for tool in tools.TOOLS:
        said = [item for item in mine if item.tool == tool and item.faster]
        seconds = median(item.wall_s or 0.0 for item in said) if said else None
        for rule in said[0].faster if said else ():
            cells = [
                cell(Counter(grade(item.slower, item.faster[rule]) for item in said if item.effect == effect), not kind)
                for effect in effects
            ]
            made.append([tool, rule, *cells, f"{seconds:.1f}"])
    return made


def report(outcomes: Sequence[Outcome], setting: dict[str, Any], markdown: bool) -> str:
    """All tables."""
    mark = "### " if markdown else ""
    parts = [described(setting, outcomes), f"{mark}All kinds together", table(rows(outcomes, None), markdown)]
    for kind in sorted({item.kind for item in outcomes}, key=list(programs.ARMS).index):
        parts += [f"{mark}{kind}", table(rows(outcomes, kind), markdown)]
    failed = Counter(f"{item.tool}, {item.kind}: {item.problem}" for item in outcomes if item.problem)
    parts += [f"No answer, not counted above, {count} times: {text}" for text, count in failed.items()]
    odd = sum(item.raw.get("gate_agrees") is False for item in outcomes)
    parts += [f"{odd} times pytest-benchmark's own exit differed from the gate as computed"] if odd else []
    return "\n\n".join(parts)


def described(setting: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """One paragraph on the conditions."""
    versions = ", ".join(f"{name} {number}" for name, number in setting["versions"].items())
    floors = sorted({item.raw["floor"] for item in outcomes if "floor" in item.raw})
    floor = f" Floor of frugalbench's intervals: {', '.join(f'{item:.2%}' for item in floors)}." if floors else ""
    beside = " A process computed all the time on one core." if setting["load"] else ""
    return (
        f"{setting['machine']}; {versions}. {setting['seconds']:g} s for each comparison, {setting['comparisons']} of "
        f"each kind and effect, seed {setting['seed']}.{beside}{floor}"
    )


def versions() -> dict[str, str]:
    """Of everything that takes part and is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def save(file: Path | None, setting: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Write everything that happened so far, whole or not at all."""
    if file is None:
        return
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps({"setting": setting, "outcomes": [asdict(item) for item in outcomes]}, indent=1))
    partial.rename(file)


def load(file: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """What :func:`save` wrote."""
    found = json.loads(file.read_text())
    return found["setting"], [Outcome(**item) for item in found["outcomes"]]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparisons", type=int, metavar="N", help="of each kind and effect (what --minutes allow)")
    parser.add_argument("--minutes", type=float, default=24.0, metavar="M", help="for everything (24)")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="for each tool's comparison (12)")
    parser.add_argument("--kinds", nargs="+", choices=tuple(programs.ARMS), default=list(programs.ARMS))
    parser.add_argument("--effects", nargs="+", type=int, default=[0, 3, 10], metavar="PCT")
    parser.add_argument("--tools", nargs="+", choices=tuple(tools.TOOLS), default=list(DEFAULT_TOOLS))
    parser.add_argument("--load", action="store_true", help="keep one core busy beside everything")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw outcomes, written after each one")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="measure nothing, print the tables of this file")
    parser.add_argument("--markdown", action="store_true", help="tables for a document")
    arguments = parser.parse_args(argv)
    if arguments.comparisons is None:
        cells = len(arguments.kinds) * len(arguments.effects)
        arguments.comparisons = comparisons_for(arguments.minutes, cells, len(arguments.tools), arguments.seconds)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    arguments = parse(argv)
    if arguments.from_json:
        setting, outcomes = load(arguments.from_json)
        print(report(outcomes, setting, arguments.markdown))
        return 0
    names = ("seconds", "comparisons", "seed", "load", "kinds", "effects", "tools")
    setting = {name: getattr(arguments, name) for name in names}
    setting |= {"machine": Machine.detect().describe().get("name"), "versions": versions()}
    made: list[Outcome] = []
    code = 0
    with tempfile.TemporaryDirectory(prefix="peers-") as folder, tools.busy_core(arguments.load):
        try:
            bench = Bench(arguments, Path(folder))
            bench.pilot()
            for outcome in bench.outcomes():
                made.append(outcome)
                save(arguments.json, setting, made)
        except KeyboardInterrupt:
            code = 130
    if made:
        print(report(made, setting, arguments.markdown))
    return code


if __name__ == "__main__":
    sys.exit(main())
