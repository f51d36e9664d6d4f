"""Every verdict of the reference runs, and of a run with every kind of rule, recomputed from the exported csv alone.

The tables are turned back into plain records by their documented columns, and judged by the independent reader of
``test_recompute`` and the rules below. No file of the run directory and no claim file is read.
"""

import base64
import csv
import json
import math
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from factory import make_case, make_fact, make_record, make_replicates, make_run
from frugalbench.cli.main import main
from frugalbench.schema import Cost, Record, Tier

RESULTS = Path(__file__).parents[2] / "results"
REFERENCE_RUNS = [file.parent for file in sorted(RESULTS.glob("*/manifest.json"))]
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
    costs = {name: value(line[name]) for name in ("token", "flop", "op", "traffic_bytes", "parameters")}
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
        self.memory_bytes = value(run["memory_bytes"])
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

    # curves

    def equal_loss(self, claim: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """What both spent, on the claim's axis, until the higher of the two final losses was reached first."""
        rule = claim["rule"]
        mine = [r for r in self.records if r["case"]["workload"] == rule["workload"] and self.counts(r)]
        for candidate in rule["candidates"]:
            for comparison in dict.fromkeys(r["comparison"] for r in mine):
                curves = {
                    (r["case"]["variant"], r["replicate"]): r["details"]["curve"]
                    for r in mine
                    if r["comparison"] == comparison
                }
                logs = []
                for number in sorted({number for _, number in curves}):
                    both = curves[candidate, number], curves[rule["baseline"], number]
                    target = max(curve[-1]["loss"] for curve in both)
                    logs.append(float(np.subtract(*(spent_log(curve, rule["axis"], target) for curve in both))))
                numbers = reader.span(logs, self.spends(comparison), 0.0)
                verdict = reader.answer(claim["direction"], claim["threshold"], numbers)
                yield (claim["id"], claim["regimes"][0], None, candidate, rule["baseline"], verdict, *numbers)

    # answers

    def non_inferiority(self, claim: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The first replicate of each scheme, against the unquantised model on the same items."""
        rule, first = claim["rule"], {}
        for r in self.records:
            case = r["case"]
            if case["workload"] == rule["workload"] and self.counts(r):
                first.setdefault((case["shape"], case["regime"], case["device"], case["variant"]), r)
        mine = {key: r for key, r in first.items() if key[3] in rule["candidates"]}
        for key, r in mine.items():
            base = first[(*key[:3], rule["baseline"])]
            numbers = relative_accuracy(r["details"], base["details"])
            name = f"{key[3]} @ {key[0]}" if len({shape for shape, *_ in mine}) > 1 else key[3]
            verdict = reader.answer(claim["direction"], claim["threshold"], numbers)
            yield (claim["id"], key[1], None, name, rule["baseline"], verdict, *numbers)

    # reach

    def reach(self, claim: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
        """The largest listed model that fits the memory and is fast enough, in one format over the other."""
        rule = claim["rule"]
        mine = [r for r in self.records if r["case"]["workload"] == rule["workload"]]
        listed = [r["details"]["shapes"] for r in mine if r["case"]["variant"] == rule["shapes"]]
        measured = [r for r in mine if r["samples"] and r["case"]["regime"] in claim["regimes"]]
        if not measured or not listed:
            return
        models = [shape for shape in listed[0].values() if not shape["recalled"]]
        ours = self.quickest(measured, rule["candidates"])
        own = self.quickest(measured, rule["baselines"])
        base = own or self.quickest(measured, rule["fallback"])
        if ours is None or base is None:
            return
        assert self.memory_bytes
        mine_at, theirs_at = (
            [self.largest(measured, name, models, rule["least_token_per_s"], bound, per) for bound in range(3)]
            for name, per in ((ours, None), (base, 2.0))
        )
        numbers = tuple(mine_at[a] / theirs_at[b] for a, b in ((0, 0), (1, 2), (2, 1)))
        verdict = reader.answer(claim["direction"], claim["threshold"], numbers)
        yield (claim["id"], "decode", None, ours, base if own else f"bf16 as {base}", verdict, *numbers)

    def quickest(self, records: list[dict[str, Any]], names: list[str]) -> str | None:
        """By the pilot, of the arms with two replicates that count."""
        pilots = {}
        for name in names:
            arm = [r for r in records if r["case"]["variant"] == name]
            if sum(map(self.counts, arm)) > 1:
                pilot = next(r for r in arm if r["replicate"] == 0)
                pilots[name] = median(s["time_s"] for s in pilot["samples"] if s["void"] is None)
        return min(pilots, key=pilots.__getitem__, default=None)

    def largest(
        self, records: list[dict[str, Any]], name: str, models: list[dict[str, Any]], least: float, bound: int,
        bytes_per_weight: float | None,
    ) -> float:  # fmt: skip
        """Parameters, at the middle (0), the low (1) or the high (2) end of the arm's bytes per second."""
        arm = [r for r in records if r["case"]["variant"] == name and self.counts(r)]
        times = [median(s["time_s"] for s in r["samples"] if r["steady_load"] or s["void"] is None) for r in arm]
        centre, low, high = reader.span(list(np.log(times)), 0.05, 0.0)
        assert centre and low and high
        slowest, middle, fastest = 1 / max(high, median(times)), 1 / median(times), 1 / min(low, median(times))
        rate = (middle, slowest / (1 + self.floor), fastest * (1 + self.floor))[bound]
        case = arm[0]["case"]
        per = bytes_per_weight or arm[0]["facts"]["weight_bytes"]["value"] / case["cost"]["parameters"]
        fits = [0.0]
        for model in models:
            cache = model["kv_bytes_per_token"] * case["params"]["context"]
            token_per_s = rate * case["cost"]["traffic_bytes"] / (model["active_parameters"] * per + cache)
            if model["parameters"] * per + cache <= (self.memory_bytes or 0) and token_per_s >= least:
                fits.append(model["parameters"])
        return max(fits)


def spent_log(curve: list[dict[str, float]], axis: str, target: float) -> float:
    """Log of what was spent when the lowest loss so far fell to ``target``, linear between new lows."""
    loss = np.array([point["loss"] for point in curve])
    lowest = np.minimum.accumulate(loss)
    here = int(np.argmax(lowest <= target))
    assert here > 0
    before = int(np.argmax(loss == lowest[here - 1]))
    spent = np.log([curve[before][axis], curve[here][axis]])
    return float(np.interp(-target, -loss[[before, here]], spent))


def relative_accuracy(ours: dict[str, Any], base: dict[str, Any]) -> tuple[float, float, float]:
    """Ratio of the shares right, and where its score test, at a t quantile over the clusters, crosses 5%."""
    items = ours["items"]
    a, b, starts = (
        np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:items].astype(float)
        for text in (ours["correct"], base["correct"], ours["starts"])
    )
    ratio = a.sum() / b.sum()
    sums = np.add.reduceat(a - ratio * b, np.flatnonzero(starts))
    single, clusters = float(((a - ratio * b) ** 2).sum()), len(sums)
    effect = max(1.0, float((sums**2).sum()) / single * clusters / (clusters - 1)) if clusters < items else 1.0
    both, won, lost = (float((x * y).sum()) for x, y in ((a, b), (a, 1 - b), (1 - a, b)))

    def score(log: float) -> float:
        """Normal where the ratio is exp(log): the shares' most likely values under that ratio give the variance."""
        r = math.exp(log)
        low, high = max(0.0, (r - 1) / r), r / (1 + r)

        def slope(q: float) -> float:
            return won / q + lost * r / (r * q + 1 - r) - both * (1 + r) / (r - (1 + r) * q)

        room = 1e-12 * (high - low)
        ends = low + room, high - room
        q = optimize.brentq(slope, *ends, xtol=1e-16) if slope(ends[0]) > 0 else low
        variance = r * (both + won + lost) * (q + r * q + 1 - r) * effect
        return float((both + won - r * (both + lost)) / math.sqrt(variance))

    edge, middle = float(stats.t.ppf(0.975, clusters - 1)), math.log(ratio)
    low = optimize.brentq(lambda log: score(log) - edge, middle - 1, middle, xtol=1e-13)
    high = optimize.brentq(lambda log: score(log) + edge, middle, middle + 1, xtol=1e-13)
    return float(ratio), math.exp(low), math.exp(high)


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
            "modelled": json.loads(line["modelled"] or "null"),
        }
        for line in table(folder, "claims")
    ]


def recomputed(folder: Path) -> Iterator[tuple[Any, ...]]:
    found = CsvReader(folder)
    for claim in claims_of(folder):
        if claim["rule"]["kind"] != "not_tested":
            yield from KINDS[claim["rule"]["kind"]](found, claim)
        if claim["modelled"]:
            yield from found.modelled({**claim, "rule": claim["modelled"]})


KINDS: dict[str, Callable[[Any, dict[str, Any]], Iterator[tuple[Any, ...]]]] = {
    "paired_ratio": CsvReader.paired, "exact_ratio": CsvReader.exact, "coverage": CsvReader.coverage,
    "modelled": CsvReader.modelled, "equal_loss": CsvReader.equal_loss, "reach": CsvReader.reach,
    "non_inferiority": CsvReader.non_inferiority,
}  # fmt: skip
"""A kind of rule without a reader here fails the test."""


def export(run: Path, folder: Path) -> Path:
    assert main(["report", str(run), "--format", "csv", "--output", f"{folder}/"]) == 0
    return folder


def stated_and_found(folder: Path) -> tuple[dict[tuple[Any, ...], dict[str, str]], dict[tuple[Any, ...], Any]]:
    """The exported verdicts but the untested ones, and what follows from the other tables, by the same keys."""
    names = ("claim", "regime", "arm", "candidate", "baseline")
    stated = {
        tuple(line[name] or None for name in names): line
        for line in table(folder, "verdicts")
        if line["verdict"] != "not tested"
    }
    return stated, {row[:5]: row[5:] for row in recomputed(folder)}


def same(folder: Path) -> set[str]:
    """Compares them to a billionth; the claims that have any."""
    stated, found = stated_and_found(folder)
    assert found.keys() == stated.keys()
    for key, (verdict, *numbers) in found.items():
        assert verdict == stated[key]["verdict"], key
        for name, number in zip(("ratio", "low", "high"), numbers, strict=True):
            assert value(stated[key][name]) == (None if number is None else pytest.approx(number, rel=1e-9)), key
    return {key[0] for key in found}


# Runs


def curve(factor: float, rng: np.random.Generator) -> list[dict[str, float]]:
    """Loss that falls with what is spent, not always."""
    bumps = (0.02 * rng.standard_normal(20)).tolist()
    return [
        {"step": n, "flop": 1e9 * n, "time_s": 0.1 * n, "loss": 1.0 + factor / n + bumps[n - 1]} for n in range(1, 21)
    ]


def quality_records() -> list[Record]:
    rng = np.random.default_rng(3)
    return [
        make_record(name, "training", "lm_quality", time_s=None, replicate=n, details={"curve": curve(factor, rng)})
        for n in range(1, 5)
        for name, factor in (("dense", 1.0), ("moe", 0.6))
    ]


def answer_records() -> list[Record]:
    """Two models, one of them answered in clusters of four items."""
    rng, found = np.random.default_rng(4), []
    for shape, size in (("model", 1), ("windows", 4)):
        base = np.repeat(rng.random(2000 // size) < 0.8, size)
        starts = np.arange(len(base)) % size == 0
        for name, changed in (("torch-fp32", 0.0), ("rtn-int8", 0.01), ("rtn-int4", 0.06)):
            correct = base ^ np.repeat(rng.random(2000 // size) < changed, size)
            details = {"items": 2000, "model_digest": "m", "task": {"digest": "t"}}
            details |= {
                n: base64.b64encode(np.packbits(b).tobytes()).decode()
                for n, b in (("correct", correct), ("starts", starts))
            }
            case = make_case(name, "task", "quantized_model", shape=shape)
            found.append(make_record(case=case, time_s=None, details=details))
    return found


def decode_records() -> list[Record]:
    """Arms of one decoded model, and the published shapes to reach for."""
    sizes = {"kv_bytes_per_token": 1e5}
    shapes = {
        f"{n}b": sizes | {"parameters": n * 1e9, "active_parameters": n * 1e9, "recalled": n == 9}
        for n in (1, 2, 3, 4, 6, 8, 9, 11)
    }
    found = [
        make_record(
            "published-shapes", "shapes", "model_decode", time_s=None, comparison="plan", details={"shapes": shapes}
        )
    ]
    for name, bits, rate in (("llama-f16", 16, 3e10), ("native-w4a8", 4.5, 2e10), ("llama-q4_0", 4.5, 2.5e10)):
        size = bits / 8 * 6e8
        cost = Cost(token=1, flop=1e9, weight_bytes=size, traffic_bytes=size, parameters=600_000_000)
        found += make_replicates(
            name, size / rate, 4, workload="model_decode", facts={"weight_bytes": make_fact(size)},
            case_fields={"cost": cost, "params": {"context": 256}}, comparison="model_decode",
        )  # fmt: skip
    return found


def modelled_records() -> list[Record]:
    """Sites that stand in for others, and figures that were computed or published."""
    sites = [("one-site", 0.0100), ("two-sites", 0.0102)]
    emulated = [
        make_replicates(name, time_s, 4, workload="emulated_network", regime="every 4 steps", tier=Tier.EMULATED)
        for name, time_s in sites
    ]
    figures = [("net.decay", Tier.MODELLED, 0.7, {"low": 0.6, "high": 0.8}), ("net.supernode", Tier.PUBLISHED, 1.6, {})]
    return [record for arm in emulated for record in arm] + [
        make_record(
            name, "all", "cluster_model", time_s=None, tier=tier, facts={"ratio": make_fact(ratio, tier=tier, **bounds)}
        )
        for name, tier, ratio, bounds in figures
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of rule, judged at two looks."""
    folder = tmp_path_factory.mktemp("made")
    records = [*reader.messy_records(), *quality_records(), *answer_records(), *decode_records(), *modelled_records()]
    machine = {"fingerprint": "made", "memory_bytes": 16_000_000_000}
    config = {"measure": {"alpha": 0.05, "looks": [4, 8]}}
    return export(make_run(folder / "run", records, config=config, machine_before=machine), folder / "csv")


@pytest.mark.parametrize("run", REFERENCE_RUNS, ids=lambda path: path.name)
def test_every_verdict_of_a_reference_run_from_csv_alone(run: Path, tmp_path: Path) -> None:
    assert same(export(run, tmp_path / "csv"))


def test_every_kind_of_rule_and_tier_from_csv_alone(made: Path) -> None:
    judged = same(made)
    claims = {line["claim"]: rule_of(line["rule"])["kind"] for line in table(made, "claims")}
    assert {claims[name] for name in judged} == set(claims.values()) - {"not_tested"} == set(KINDS)
    lines = [line for line in table(made, "verdicts") if line["claim"] in judged and line["verdict"] != "not tested"]
    assert {line["tier"] for line in lines} == set(Tier)
    assert {line["arm"] for line in lines} == {"as_shipped", "best", ""}


@pytest.mark.parametrize(
    ("name", "column", "wrong"),
    [
        ("samples", "time_s", lambda line: repr(float(line["time_s"]) * (1 + int(line["record"]) % 2 / 100))),
        ("records", "facts", lambda line: line["facts"].replace('"value":1.6', '"value":1.5')),
        ("records", "details", lambda line: line["details"].replace('"loss":1.0', '"loss":1.2')),
        ("records", "details", lambda line: line["details"].replace("8000000000.0", "7500000000.0")),
        ("runs", "floor", lambda _: "0.02"),
    ],
    ids=["times", "figure", "curve", "shapes", "floor"],
)
def test_a_changed_cell_is_noticed(
    made: Path, tmp_path: Path, name: str, column: str, wrong: Callable[[dict[str, str]], str]
) -> None:
    shutil.copytree(made, tmp_path / "csv")
    lines = table(made, name)
    for line in lines:
        line[column] = wrong(line)
    with (tmp_path / "csv" / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    with pytest.raises(AssertionError):
        same(tmp_path / "csv")
