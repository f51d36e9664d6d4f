"""Every verdict that rests on stored numbers, recomputed by code that shares nothing with the analysis.

The reader below takes ``manifest.json``, ``records.jsonl`` and the claim files as plain JSON and TOML, and knows the
rules from the documentation only. What it finds must be what ``frugalbench verdicts --json`` prints.
"""

import json
import math
import statistics
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from factory import COST, make_fact, make_peaks, make_reading, make_record, make_replicates, make_run
from frugalbench.cli.main import main
from frugalbench.schema import Decision, Record, Status

ROOT = Path(__file__).parents[2]
CLAIM_FILES = sorted((ROOT / "src/frugalbench/data/claims").glob("*.toml"))
REFERENCE_RUNS = sorted(file.parent for file in (ROOT / "results").glob("*/manifest.json"))
Row = tuple[Any, ...]


# The independent reader


def per_unit(record: dict, metric: str) -> dict[int, float]:
    """Round to seconds (or joules) per token."""
    token = ((record["case"].get("cost") or {}).get("token")) or 1.0
    if metric == "time":
        return {s["round"]: s["time_s"] / token for s in record.get("samples", [])}
    windows: dict[int, dict[str, float | None]] = defaultdict(dict)
    for reading in record.get("readings", []):
        if reading["tier"] == "measured" and reading.get("round") is not None:
            joule, scope = reading["joule"], reading["scope"]
            if joule is None:
                windows[reading["round"]]["poison"] = None
            windows[reading["round"]].setdefault(scope, joule and joule / reading["calls"] / token)
    return {n: sum(w.values()) for n, w in windows.items() if None not in w.values() and sum(w.values()) > 0}


class Reader:
    """One run directory."""

    def __init__(self, path: Path):
        manifest = json.loads((path / "manifest.json").read_text())
        measure = manifest["config"].get("measure", {})
        self.alpha, self.looks = measure.get("alpha", 0.05), measure.get("looks", [1])
        self.decisions = manifest.get("decisions", {})
        self.floor = 0.03 if manifest.get("floor") is None else manifest["floor"]
        self.records = [json.loads(line) for line in (path / "records.jsonl").read_text().splitlines()]
        self.peaks = self._peaks()

    def _peaks(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for r in self.records:
            if r["case"]["workload"] == "machine_peaks" and self.counts(r):
                kept = [s["time_s"] for s in r["samples"] if r.get("steady_load") or s.get("void") is None]
                kind = r["case"]["variant"].split("_", 1)[1]
                work = {"flop_per_s": "flop", "op_per_s": "op", "bytes_per_s": "traffic_bytes"}[kind]
                rate = r["case"]["cost"].get(work, 0.0) / statistics.median(kept) if kept else 0.0
                key = (r["case"]["device"], r["case"]["variant"])
                found[key] = max(found.get(key, 0.0), rate)
        return {key: rate for key, rate in found.items() if rate}

    @staticmethod
    def counts(r: dict) -> bool:
        return r["replicate"] > 0 and not r.get("interrupted") and r["status"] in ("ok", "capped")

    def spends(self, comparison: str) -> float:
        """Alpha of a comparison's deciding look: alpha * (n / N)^1.5 may be gone by n of N, less what went before."""

        def gone(n: int) -> float:
            return self.alpha * min(1.0, n / self.looks[-1]) ** 1.5

        last = max(r["replicate"] for r in self.records if r["comparison"] == comparison and self.counts(r))
        before = gone(max((look for look in self.looks if look < last), default=0))
        decision = self.decisions.get(comparison, {"stop": False, "look": 0})
        settled_early = decision["stop"] and decision["look"] and last in self.looks[:-1]
        return (gone(last) if settled_early else self.alpha) - before

    def weight(self, r: dict, scale: str) -> float | None:
        """What one token of the case is worth in the estimand."""
        cost = r["case"].get("cost")
        if scale in ("none", "tax") or cost is None:
            return 1.0
        token = cost["token"] or 1.0
        if scale == "flop":
            return ((cost["flop"] or 0.0) + (cost.get("op") or 0.0)) / token
        names = r["case"].get("peaks") or [""]
        peak = self.peaks.get((r["case"]["device"], names[0]))
        return (cost.get("op") or cost["flop"]) / token / peak if peak else None

    # paired ratios

    def paired(self, claim: dict) -> Iterator[Row]:
        for beside in (None, *claim["rule"].get("beside", ())):
            yield from self._paired(claim, {**claim["rule"], **(beside or {})}, named=beside is not None)

    def _paired(self, claim: dict, rule: dict, named: bool) -> Iterator[Row]:
        mine = [r for r in self.records if r["case"]["workload"] == rule["workload"]]
        mine = [r for r in mine if r["comparison"] != "plan"]
        groups = dict.fromkeys((r["comparison"], r["case"]["regime"]) for r in mine)
        several = named or len({comparison for comparison, _ in groups}) > 1
        members = {key: [r for r in mine if (r["comparison"], r["case"]["regime"]) == key] for key in groups}
        shared = Counter((group[0]["case"]["shape"], regime) for (_, regime), group in members.items())
        for (_, regime), group in members.items():
            if regime in claim["regimes"]:
                case = group[0]["case"]
                tokens = f" x {case['cost']['token']:g}" if shared[case["shape"], regime] > 1 else ""
                yield from self._group(claim, rule, regime, group, f" @ {case['shape']}{tokens}" if several else "")

    def _group(self, claim: dict, rule: dict, regime: str, group: list[dict], label: str) -> Iterator[Row]:
        group = [r for r in group if not r.get("interrupted")]
        arms: dict[str, dict[int, dict]] = defaultdict(dict)
        pilot: dict[str, list[dict]] = defaultdict(list)
        void: dict[int, set[int]] = defaultdict(set)
        for r in group:
            if not r.get("steady_load"):
                void[r["replicate"]] |= {s["round"] for s in r.get("samples", []) if s.get("void") is not None}
            if r["replicate"] == 0 and r.get("samples"):
                pilot[r["case"]["variant"]].append(r)
            elif self.counts(r) and r.get("samples"):
                arms[r["case"]["variant"]][r["replicate"]] = r
        if rule["metric"] == "energy" and not any(
            x["tier"] == "measured" for arm in arms.values() for r in arm.values() for x in r.get("readings", [])
        ):
            return
        scale = rule.get("scale", "none")
        first = {name: next(iter(arm.values())) for name, arm in arms.items()}
        weights = {name: self.weight(r, scale) for name, r in first.items()}

        def trial(name: str, metric: str) -> list[float]:
            """Pilot costs of the rounds that nothing spoilt; of all rounds where each was."""
            rounds = [item for r in pilot.get(name, []) for item in per_unit(r, metric).items()]
            return [c for number, c in rounds if number not in void[0]] or [c for _, c in rounds]

        def best_of(names: list[str]) -> str | None:
            if len(names) == 1 and names[0] in arms:
                return names[0]
            scores = {}
            for name in names:
                costs = trial(name, rule["metric"]) or trial(name, "time")
                if weights.get(name) is not None and costs:
                    scores[name] = weights[name] / statistics.median(costs)
            return max(scores, key=scores.__getitem__, default=None)

        def logs(candidate: str, baseline: str) -> list[float]:
            """One per replicate, already scaled to the estimand."""
            if not weights.get(candidate) or not weights.get(baseline):
                return []
            shift, found = math.log(weights[candidate] / weights[baseline]), []
            for number in sorted(arms[candidate].keys() & arms[baseline].keys()):
                ours = per_unit(arms[candidate][number], rule["metric"])
                theirs = per_unit(arms[baseline][number], rule["metric"])
                spoilt = set() if rule["metric"] == "energy" else void[number]  # energy turns have rounds of their own
                rounds = [k for k in ours.keys() & theirs.keys() if k not in spoilt]
                if rounds:
                    found.append(shift + statistics.median(math.log(theirs[k] / ours[k]) for k in rounds))
            return found

        strongest, champion = best_of(rule["baselines"]), best_of(rule["best"])
        if strongest is None:
            return
        tested = [name for name in rule["as_shipped"] if name in arms]
        whole = self.spends(group[0]["comparison"])
        limit = 1 / (1 - claim["threshold"]) if scale == "tax" else claim["threshold"]
        p_values = {n: tail(logs(n, strongest), limit, self.floor) for n in tested}
        levels = step_down(p_values, whole)
        rows = [("as_shipped", name, levels[name]) for name in tested]
        rows += [("best", champion, whole)] if champion else []
        for kind, name, alpha in rows:
            spans = {
                b: span(logs(name, b), alpha, self.floor) for b in rule["baselines"] if b in arms and logs(name, b)
            }
            if strongest in spans:
                each = {b: answer(claim["direction"], limit, s) for b, s in spans.items()}
                verdict = each[strongest]
                if verdict == "supported" and set(each.values()) != {"supported"}:
                    verdict = "inconclusive"
                ratio, low, high = (taxed(value) if scale == "tax" else value for value in spans[strongest])
                yield (claim["id"], regime, kind, name + label, strongest, verdict, ratio, low, high)

    # exact ratios and coverage

    def exact(self, claim: dict) -> Iterator[Row]:
        """Of layers the first of a format, of whole models each; with its name where a regime has several."""
        rule, seen = claim["rule"], set()
        for group in rule["groups"]:
            mine = [r for r in self.records if r["case"]["workload"] == group.get("workload", rule["workload"])]
            models = "workload" in group
            named = group["regime"] in seen or (models and len({r["case"]["shape"] for r in mine}) > 1)
            seen.add(group["regime"])
            for variant in group["variants"]:
                spoken = set()
                for r in mine:
                    facts, shape = r.get("facts", {}), r["case"]["shape"] if models else ""
                    told = r["status"] != "failed" and {rule["numerator"], rule["denominator"]} <= facts.keys()
                    if r["case"]["variant"] == variant and told and shape not in spoken:
                        spoken.add(shape)
                        ratio = facts[rule["numerator"]]["value"] / facts[rule["denominator"]]["value"]
                        verdict = answer(claim["direction"], group["threshold"], (ratio, ratio, ratio))
                        name = f"{variant} @ {r['case']['shape']}" if named else variant
                        yield (claim["id"], group["regime"], None, name, rule["denominator"], verdict, *[ratio] * 3)

    def coverage(self, claim: dict) -> Iterator[Row]:
        rule, holds, names = claim["rule"], {}, set()
        for r in self.records:
            counted = r["case"]["variant"] not in rule["without"]
            wanted = counted and r["case"]["workload"] in [rule["workload"], *rule["beside"]]
            known = not rule.get("only_known") or rule["fact"] in r.get("facts", {})
            if wanted and known and r["status"] != "skipped" and not r.get("interrupted"):
                names.add(r["case"]["variant"])
                value = r.get("facts", {}).get(rule["fact"], {}).get("value")
                good = r["status"] != "failed" and value == 1
                holds[r["case"]["id"]] = holds.get(r["case"]["id"], True) and good
        if holds:
            share = sum(holds.values()) / len(holds)
            verdict = answer(claim["direction"], claim["threshold"], (share, share, share))
            yield (claim["id"], claim["regimes"][0], None, ", ".join(sorted(names)), None, verdict, *[share] * 3)

    def rows(self) -> Iterator[Row]:
        kinds = {"paired_ratio": self.paired, "exact_ratio": self.exact, "coverage": self.coverage}
        for file in CLAIM_FILES:
            claim = tomllib.loads(file.read_text())
            if claim["rule"]["kind"] in kinds:
                yield from kinds[claim["rule"]["kind"]](claim)


def taxed(ratio: float | None) -> float | None:
    """What the slower of two takes longer, as a share of its own time."""
    return None if ratio is None else 1 - 1 / ratio


def span(logs: list[float], alpha: float, floor: float) -> tuple[float, float | None, float | None]:
    """Ratio and its interval."""
    centre = statistics.fmean(logs)
    if len(logs) == 1:
        return math.exp(centre), None, None
    half = stats.t.ppf(1 - alpha / 2, len(logs) - 1) * statistics.stdev(logs) / len(logs) ** 0.5
    wide = math.exp(half) * (1 + floor)
    return math.exp(centre), math.exp(centre) / wide, math.exp(centre) * wide


def tail(logs: list[float], threshold: float, floor: float) -> float:
    """Two-sided p of the estimand being at the threshold, give or take the floor."""
    if len(logs) < 2:
        return 1.0
    distance = abs(statistics.fmean(logs) - math.log(threshold)) - math.log(1 + floor)
    error = statistics.stdev(logs) / len(logs) ** 0.5
    if distance <= 0 or error == 0:
        return 1.0 if distance <= 0 else 0.0
    return float(2 * stats.t.sf(distance / error, len(logs) - 1))


def step_down(p_values: dict[str, float], alpha: float) -> dict[str, float]:
    """Holm: alpha over the number still standing, frozen at the first that does not pass."""
    levels, standing, level = {}, len(p_values), alpha
    frozen = False
    for name in sorted(p_values, key=p_values.__getitem__):
        level = level if frozen else alpha / standing
        frozen, standing = frozen or p_values[name] > level, standing - 1
        levels[name] = level
    return levels


def answer(direction: str, threshold: float, numbers: tuple[float, float | None, float | None]) -> str:
    _, low, high = numbers
    if low is None or high is None:
        return "inconclusive"
    if direction == "at_least":
        return "supported" if low >= threshold else "refuted" if high < threshold else "inconclusive"
    return "supported" if high <= threshold else "refuted" if low > threshold else "inconclusive"


# The comparison


def printed(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> list[dict]:
    monkeypatch.setenv("FRUGALBENCH_STATE_DIR", str(tmp_path / "no-self-test"))
    assert main(["verdicts", str(run), "--json"]) == 0
    rows: list[dict] = json.loads(capsys.readouterr().out)
    return rows


def compare(run: Path, rows: list[dict]) -> Counter:
    """Every recomputed row is printed, every printed one is recomputed; counts of what was compared."""
    kinds = {tomllib.loads(f.read_text())["id"]: tomllib.loads(f.read_text())["rule"]["kind"] for f in CLAIM_FILES}
    names = ("claim", "regime", "arm", "candidate", "baseline")
    stated = {
        tuple(row[n] for n in names): row
        for row in rows
        if row["verdict"] != "not tested" and row["tier"] != "modelled"
        if kinds[row["claim"]] in ("paired_ratio", "exact_ratio", "coverage")
    }
    found = {row[:5]: row[5:] for row in Reader(run).rows()}
    assert found.keys() == stated.keys()
    for key, (verdict, *numbers) in found.items():
        assert verdict == stated[key]["verdict"], key
        for name, number in zip(("ratio", "low", "high"), numbers, strict=True):
            expected = number if number is None else pytest.approx(number, rel=1e-9)
            assert stated[key][name] == expected, (key, name)
    return Counter(kinds[key[0]] for key in found)


def messy_records() -> list[Record]:
    """All rules at once: void rounds, a capped and a failed arm, interrupted replicates, energy, a missing baseline."""
    records = [*make_peaks({"fp32_flop_per_s": 1e11}, count=1), *make_peaks({"int8_op_per_s": 4e11}, count=3)]
    flop = {"dense-equal-total": 8e9, "dense-equal-active": 1e9, "moe-transformers": 1.1e9, "moe-sorted": 1.1e9}
    times = {"dense-equal-total": 0.08, "dense-equal-active": 0.01, "moe-transformers": 0.0125, "moe-sorted": 0.0085}
    for position, regime in enumerate(("decode", "batch", "prefill", "training")):
        for name, time_s in times.items():
            cost = type(COST)(token=4 * (position + 1), flop=flop[name], weight_bytes=1e6, traffic_bytes=1e6)
            joules = tuple(
                make_reading(None if i == position else 5 * time_s * (1 + 0.1 * i), round=i, start_s=float(i))
                for i in range(3)
            )
            void = {position} if name == "dense-equal-total" else ()
            records += make_replicates(
                name, time_s, 4, 0.02, regime=regime, noise=0.1, void=void, readings=joules,
                case_fields={"cost": cost}, steady_load=regime == "training",
            )  # fmt: skip
    records.append(make_record("moe-transformers", time_s=9.0, replicate=5, interrupted=True))
    peaks = {"torch-int8-dynamic": "int8_op_per_s", "ort-int8": "int8_op_per_s"}
    speeds = {
        "torch-fp32": 1.0,
        "ort-fp32": 1.02,
        "torch-int8-dynamic": 1.1,
        "ort-int8": 2.5,
        "ort-int4": 0.97,
        "bnb-nf4": 0.01,
    }
    for shape in ("small", "large"):
        for regime in ("decode", "prefill"):
            for name, speed in speeds.items():
                fields: dict[str, Any] = {"shape": shape, "peaks": (peaks.get(name, "fp32_flop_per_s"),)}
                if name in peaks:
                    fields["cost"] = type(COST)(token=4, flop=0, op=2e9, weight_bytes=1e6, traffic_bytes=1e6)
                capped = {"status": Status.CAPPED, "rounds": 1} if name == "bnb-nf4" else {}
                facts = {"weight_bytes": make_fact(3e5 + 1e5 * speed), "bf16_bytes": make_fact(1e6)}
                records += make_replicates(
                    name, 0.01 / speed, 4, 0.05, workload="quantized_linear", regime=regime, noise=0.05,
                    seed=len(shape), case_fields=fields, facts=facts, **capped,
                )  # fmt: skip
    records.append(make_record("torch-bf16", workload="quantized_linear", status=Status.FAILED, reason="no bf16"))
    for name, speed in {"torch-eager": 1.0, "torch-compile": 1.3, "onnxruntime": 1.4, "openvino": 1.1}.items():
        for regime in ("batch-1", "batch-8"):
            facts = {"ran_as_asked": make_fact(1.0), "parity": make_fact(float(name != "openvino"))}
            records += make_replicates(name, 0.01 / speed, 4, workload="onnx_model", regime=regime, facts=facts)
    records.append(make_record("openvino", "batch-1", "onnx_model", replicate=5, status=Status.FAILED, reason="died"))
    return records


def messy_run(folder: Path, looks: tuple[int, ...], floor: float | None = None, settled: int = 0) -> Path:
    """The messy records as a run with these looks; every ``settled``-th comparison stopped early, the others late."""
    records = messy_records()
    names = dict.fromkeys(record.comparison for record in records)
    early = Decision(stop=True, look=sum(look <= 4 for look in looks), reason="every claim is settled")
    late = Decision(stop=True, look=0, reason="its share of the time is spent")
    decisions = {name: late if not settled or at % settled else early for at, name in enumerate(names)}
    config = {"measure": {"alpha": 0.05, "looks": list(looks)}}
    return make_run(folder, records, config=config, floor=floor, decisions=decisions)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    return messy_run(tmp_path / "messy", (4, 8))


def test_synthetic_run(
    messy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = printed(messy, monkeypatch, tmp_path, capsys)
    compared = compare(messy, rows)
    assert compared["paired_ratio"] > 40 and compared["exact_ratio"] >= 4 and compared["coverage"] == 2
    assert {row["verdict"] for row in rows} == {"supported", "refuted", "inconclusive", "not tested"}


@pytest.mark.parametrize(
    ("looks", "floor", "settled"),
    [((4, 8), 0.0, 1), ((2, 4, 8), 0.004, 2), ((3, 6), 0.05, 0), ((4,), None, 1), ((2, 3, 4), 0.01, 2)],
)
def test_alpha_and_floor_of_each_run(
    looks: tuple[int, ...],
    floor: float | None,
    settled: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = messy_run(tmp_path / "run", looks, floor, settled)
    assert compare(run, printed(run, monkeypatch, tmp_path, capsys))["paired_ratio"] > 40


def test_a_changed_number_is_noticed(
    messy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = printed(messy, monkeypatch, tmp_path, capsys)
    lines = (messy / "records.jsonl").read_bytes().splitlines()
    slower = []
    for line in lines:
        record = json.loads(line)
        if record["case"]["variant"] == "moe-sorted" and record["replicate"] == 2:
            for sample in record["samples"]:
                sample["time_s"] *= 1.01
        slower.append(json.dumps(record).encode())
    (messy / "records.jsonl").write_bytes(b"\n".join(slower) + b"\n")
    with pytest.raises(AssertionError):
        compare(messy, rows)


@pytest.mark.skipif(not REFERENCE_RUNS, reason="no reference run under results/")
@pytest.mark.parametrize("run", REFERENCE_RUNS, ids=lambda path: path.name)
def test_reference_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(run, printed(run, monkeypatch, tmp_path, capsys))
