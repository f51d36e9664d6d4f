"""Every verdict of the reference run, recomputed from the exported csv alone.

The tables are turned back into plain records by their documented columns, and judged by the independent reader of
``test_recompute``. No file of the run directory and no claim file is read.
"""

import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from frugalbench.cli.main import main

REFERENCE = Path(__file__).parents[2] / "results" / "cpu-reference"
Table = list[dict[str, str]]


def independent_reader() -> Any:
    spec = spec_from_file_location("independent_reader", Path(__file__).with_name("test_recompute.py"))
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = independent_reader()


def value(text: str) -> float | None:
    return float(text) if text else None


def table(folder: Path, name: str) -> Table:
    csv.field_size_limit(sys.maxsize)
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def case_of(line: dict[str, str]) -> dict[str, Any]:
    names = ("workload", "variant", "shape", "regime", "backend", "device")
    costs = {name: value(line[name]) for name in ("token", "flop", "op", "traffic_bytes")}
    known = {"id": line["case"], "peaks": json.loads(line["peaks"]), "params": json.loads(line["params"])}
    return {name: line[name] for name in names} | known | {"cost": costs if line["flop"] else None}


def record_of(line: dict[str, str], samples: Table, readings: Table) -> dict[str, Any]:
    return {
        "comparison": line["comparison"],
        "arm": line["arm"],
        "replicate": int(line["replicate"]),
        "status": line["status"],
        "interrupted": line["interrupted"] == "True",
        "steady_load": line["steady_load"] == "True",
        "case": case_of(line),
        "facts": json.loads(line["facts"]),
        "details": json.loads(line["details"]),
        "samples": [
            {"round": int(s["round"]), "time_s": float(s["time_s"]), "void": s["void"] or None} for s in samples
        ],
        "readings": [
            {
                "round": int(r["round"]) if r["round"] else None,
                "tier": r["tier"],
                "joule": value(r["joule"]),
                "calls": int(r["calls"]),
                "scope": r["scope"],
            }
            for r in readings
        ],
    }


class CsvReader(reader.Reader):
    """The independent reader, given csv files instead of a run directory."""

    def __init__(self, folder: Path):
        run = table(folder, "runs")[0]
        self.alpha, self.looks = float(run["alpha"]), json.loads(run["looks"])
        self.decisions = json.loads(run["decisions"])
        self.floor = float(run["floor"]) if run["floor"] else 0.03
        by_record: dict[str, dict[str, Table]] = {"samples": defaultdict(list), "readings": defaultdict(list)}
        for name, lines in by_record.items():
            for line in table(folder, name):
                lines[line["record"]].append(line)
        self.records = [
            record_of(line, *(lines[line["record"]] for lines in by_record.values()))
            for line in table(folder, "records")
        ]
        self.peaks = self._peaks()

    def modelled(self, claim: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The fact as it stands, with its own bounds."""
        rule = claim["rule"]
        for r in self.records:
            if (r["case"]["workload"], r["case"]["variant"]) == (rule["workload"], rule["variant"]):
                fact = r["facts"].get(rule.get("fact", "ratio"))
                if fact and fact["value"] is not None:
                    middle = fact["value"]
                    numbers = (middle, *(middle if fact[end] is None else fact[end] for end in ("low", "high")))
                    verdict = reader.answer(claim["direction"], claim["threshold"], numbers)
                    case = r["case"]
                    base = case["params"].get("baseline")
                    yield (claim["id"], case["regime"], None, case["shape"], base, verdict, *numbers)


def rule_of(text: str) -> dict[str, Any]:
    """Groups that name no workload of their own have the rule's."""
    rule = json.loads(text)
    groups = [{k: v for k, v in group.items() if v != ""} for group in rule.get("groups", ())]
    return rule | ({"groups": groups} if groups else {})


def claims_of(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "id": line["claim"],
            "direction": line["direction"],
            "threshold": float(line["threshold"]),
            "regimes": json.loads(line["regimes"]),
            "rule": rule_of(line["rule"]),
        }
        for line in table(folder, "claims")
    ]


def recomputed(folder: Path) -> Iterator[tuple[Any, ...]]:
    found = CsvReader(folder)
    kinds = {
        "paired_ratio": found.paired, "exact_ratio": found.exact, "coverage": found.coverage, "modelled": found.modelled
    }  # fmt: skip
    for claim in claims_of(folder):
        if claim["rule"]["kind"] in kinds:
            yield from kinds[claim["rule"]["kind"]](claim)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("csv")
    assert main(["report", str(REFERENCE), "--format", "csv", "--output", f"{folder}/"]) == 0
    return folder


def test_every_verdict_from_csv_alone(exported: Path) -> None:
    names = ("claim", "regime", "arm", "candidate", "baseline")
    stated = {
        tuple(line[name] or None for name in names): line
        for line in table(exported, "verdicts")
        if line["verdict"] != "not tested"
    }
    found = {row[:5]: row[5:] for row in recomputed(exported)}
    assert found.keys() == stated.keys() and len(found) > 100
    for key, (verdict, *numbers) in found.items():
        assert verdict == stated[key]["verdict"], key
        for name, number in zip(("ratio", "low", "high"), numbers, strict=True):
            assert value(stated[key][name]) == (None if number is None else pytest.approx(number, rel=1e-9)), key


def test_a_changed_sample_is_noticed(exported: Path, tmp_path: Path) -> None:
    for file in exported.glob("*.csv"):
        text = file.read_text("utf-8")
        (tmp_path / file.name).write_text(text, "utf-8")
    lines = table(tmp_path, "samples")
    for line in lines:
        line["time_s"] = repr(float(line["time_s"]) * (1 + int(line["record"]) % 2 / 100))
    with (tmp_path / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    with pytest.raises(AssertionError):
        test_every_verdict_from_csv_alone(tmp_path)
