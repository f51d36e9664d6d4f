"""Runs the real engine on the fake workload and reads what it left behind."""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from frugalbench.config import Config, Energy, Measure
from frugalbench.run.engine import Engine, Outcome
from frugalbench.run.store import Store
from frugalbench.schema import Decision, Plan, Record, decode_record

FAKES = Path(__file__).parent / "fakes"
sys.path.append(str(FAKES))

from fake_spec import make_arm, make_case, make_comparison  # noqa: E402

__all__ = [
    "FAKES",
    "Result",
    "log_entries",
    "make_arm",
    "make_case",
    "make_comparison",
    "make_config",
    "run_fake",
    "stop_at",
]

QUICK = {
    "looks": (2,),
    "rounds": 3,
    "pilot_rounds": 1,
    "sample_s": 0.003,
    "lead_in_s": 0.0,
    "warmup_limit_s": 0.02,
    "quiet_limit_s": 0.02,
    "load_limit_s": 30.0,
    "time_budget_s": 60.0,
}


@dataclass
class Result:
    """A finished run."""

    records: list[Record]
    outcome: Outcome
    engine: Engine
    progress: list[str]

    def of(self, arm: str, replicate: int | None = None) -> list[Record]:
        return [r for r in self.records if r.arm == arm and replicate in (None, r.replicate)]

    def one(self, arm: str, replicate: int) -> Record:
        (found,) = self.of(arm, replicate)
        return found

    def by_replicate(self) -> dict[int, list[Record]]:
        found = defaultdict(list)
        for record in self.records:
            found[record.replicate].append(record)
        return dict(found)


def make_config(**measure):
    return Config(
        name="fake",
        description="",
        seed=1,
        measure=Measure(**{**QUICK, **measure}),
        energy=Energy(meter="none"),
        workloads=(),
        path="fake.toml",
    )


def stop_at(last):
    """A stopping rule that stops at ``last`` replicates."""
    return lambda records, number: Decision(stop=number >= last, look=1, reason="fake")  # noqa: ARG005


def run_fake(path, *comparisons, decide=None, before=(), **measure):
    """Run ``comparisons`` with quick settings into ``path``."""
    store, said = Store.create(Path(path)), []
    try:
        config = make_config(**measure)
        plan = Plan(seed=1, comparisons=comparisons)
        engine = Engine(plan, config, store, decide or stop_at(config.measure.looks[-1]), 2, said.append, before)
        outcome = engine.run()
    finally:
        store.close()
    lines = (Path(path) / "records.jsonl").read_bytes().splitlines()
    return Result([decode_record(line) for line in lines], outcome, engine, said)


def log_entries(log, *kinds):
    """Entries of the fake workload's log, of ``kinds`` only when given."""
    entries = [json.loads(line) for line in Path(log).read_text().splitlines()]
    return [entry for entry in entries if not kinds or entry["what"] in kinds]
