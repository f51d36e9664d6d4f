# ruff: noqa: ARG001 (forgers share one signature)
"""Good submissions, and ways to forge or damage them, each with the check that has to name it.

A forger changes the plain data of a submission and packs it again with fitting hashes, as somebody would who knows the
format. ``forged()`` yields the whole set; it is seeded, so that a miss can be looked at again. Nothing is made before
it is asked for: the whole set takes longer than all other tests take to be collected.
"""

import copy
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.submission import archive
from frugalbench.cli import remodel
from frugalbench.cli.replan import installed_revision
from frugalbench.cli.replay import page_of
from frugalbench.run.schedule import shuffled

ROOT = Path(__file__).parents[1]
FIXTURE = ROOT / "tests/fixtures/submission/small-selftest.zip"


@dataclass
class Parts:
    """A submission taken apart."""

    manifest: dict[str, Any]
    records: list[dict[str, Any]]
    others: dict[str, bytes] = field(default_factory=dict)
    self_test: str = "never self-tested"
    tail: bytes = b""

    def copy(self) -> "Parts":
        manifest, records = msgspec.json.decode(msgspec.json.encode((self.manifest, self.records)))
        return Parts(manifest, records, dict(self.others), self.self_test, self.tail)

    def files(self) -> dict[str, bytes]:
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in self.records) + self.tail
        return {"manifest.json": msgspec.json.encode(self.manifest), "records.jsonl": lines, **self.others}

    def packed(self) -> bytes:
        return archive.pack(self.files(), self.manifest["run_id"], "0.1.0", self.self_test, {})

    def timed(self) -> list[dict[str, Any]]:
        return [record for record in self.records if record["samples"]]

    def arms(self) -> list[str]:
        return sorted({record["case"]["id"] for record in self.timed() if len(record["samples"]) >= 3})

    def of(self, case: str) -> list[dict[str, Any]]:
        return [record for record in self.timed() if record["case"]["id"] == case]


def fixture() -> Parts:
    """A small run of the self-test's workload, measured."""
    with zipfile.ZipFile(FIXTURE) as found:
        return _parts(found.read("manifest.json"), found.read("records.jsonl"))


def _parts(manifest: bytes, records: bytes) -> Parts:
    return Parts(msgspec.json.decode(manifest), [msgspec.json.decode(line) for line in records.splitlines()])


def reference(*comparisons: str) -> Parts:
    """Comparisons of the stored reference run as a run of their own; all of it where none is named."""
    folder = ROOT / "results/cpu-reference"
    parts = _parts((folder / "manifest.json").read_bytes(), (folder / "records.jsonl").read_bytes())
    return _only(parts, comparisons) if comparisons else parts


def card() -> Parts:
    """The stored run on a GPU, which was stopped by hand."""
    folder = ROOT / "results/h100-sxm"
    return _parts((folder / "manifest.json").read_bytes(), (folder / "records.jsonl").read_bytes())


def out_of_time() -> Parts:
    """The last comparison of a stored run, whose fifth replicate the time budget cut."""
    folder = ROOT / "results/cpu-moe"
    parts = _parts((folder / "manifest.json").read_bytes(), (folder / "records.jsonl").read_bytes())
    return _only(parts, (PEAKS, "moe_ffn/1024x512-e32-k2-uniform"), {"routing": "uniform"})


def conformance() -> Parts:
    """The stored conformance run."""
    folder = ROOT / "results/onnx-conformance"
    return _parts((folder / "manifest.json").read_bytes(), (folder / "records.jsonl").read_bytes())


def modelled() -> Parts:
    """Modelled rows of the stored reference run; quick ones as the installed model computes them."""
    parts = reference("cluster_model")
    known = {name for name, case in remodel._usual().items() if case.params["estimand"] not in SLOW}
    for number, record in enumerate(parts.records):
        if record["case"]["id"] in known:
            parts.records[number] = msgspec.json.decode(msgspec.json.encode(remodel._modelled(record["case"]["id"])))
    return parts


def _only(parts: Parts, comparisons: tuple[str, ...], options: dict[str, str] | None = None) -> Parts:
    """A run whose config asks for these comparisons alone; ``options`` tell tables that their names do not."""
    manifest, plan = parts.manifest, parts.manifest["plan"]
    plan["comparisons"] = [item for item in plan["comparisons"] if item["id"] in comparisons]
    plan["skipped"] = [item for item in plan["skipped"] if item["case"]["id"].startswith(comparisons)]
    plan["modelled"] = [case for case in plan["modelled"] if case["workload"] in comparisons]
    kept = {item["case"]["id"] for item in plan["skipped"]}
    parts.records = [r for r in parts.records if r["comparison"] in comparisons or r["case"]["id"] in kept]
    manifest["decisions"] = {name: item for name, item in manifest["decisions"].items() if name in comparisons}
    tables = [_table(table, name, options or {}) for table in manifest["config"]["workloads"] for name in comparisons]
    manifest["config"] |= {"name": "own", "workloads": [table for table in tables if table]}
    return parts


def _table(table: dict[str, Any], comparison: str, options: dict[str, str]) -> dict[str, Any] | None:
    """What of a table asks for a comparison."""
    workload, _, rest = comparison.partition("/")
    if table["name"] != workload or table.get("shape", "own") not in (*rest.split("@"), "own"):
        return None
    if workload == "onnx_model":
        return {**table, "models": [rest]}
    return table if workload != "moe_ffn" or options.items() <= table.items() else None


def synthetic(seed: int, arms: int = 3, replicates: int = 6, rounds: int = 7) -> Parts:
    """A run on a card whose clock, turns, noise and joules are simulated; with a self-test of its own."""
    draw = random.Random(seed)
    parts = fixture()
    manifest, model = parts.manifest, parts.records[0]
    cases = []
    for number in range(arms):
        cost = {"token": 4, "flop": 2e6, "weight_bytes": 4e6, "traffic_bytes": 4e6, "op": 0.0, "parameters": 10**6}
        case = {**model["case"], "id": f"layer/arm-{number}/s/decode/torch/cpu", "variant": f"arm-{number}"}
        case["regime"] = "decode"
        cases.append({**case, "workload": "layer", "cost": {**cost, "active_parameters": 10**6}})
    planned = [{"id": f"arm-{n}", "cases": [case], "imports": [], "memory_bytes": 0} for n, case in enumerate(cases)]
    comparison = {**manifest["plan"]["comparisons"][0], "id": "c", "workload": "layer", "arms": planned}
    manifest["plan"]["comparisons"] = [comparison]
    manifest["decisions"] = {
        "c": {"stop": True, "look": 1, "reason": f"every claim is settled at {replicates} replicates"}
    }
    manifest["config"] |= {"workloads": [{"name": "layer"}]}
    manifest["config"]["measure"] |= {"looks": [replicates], "sample_s": 0.02}
    manifest["floor"] = 0.01
    clock_ns, names = 10**9, {case["id"]: n for n, case in enumerate(cases)}
    parts.records = []
    for replicate in range(replicates + 1):
        records = [_record(model, case, n, replicate) for n, case in enumerate(cases)]
        shifts, turn = [draw.gauss(0, 0.02) for _ in cases], 0
        for number in range(rounds):
            for name in shuffled(manifest["seed"], list(names), "c", replicate, "decode", number):
                arm = names[name]
                call_ns = 200_000 * (1 + arm) * 2.718281828 ** (shifts[arm] + abs(draw.gauss(0, 0.03)))
                turn += 1
                sample, clock_ns = _sample(draw, call_ns, clock_ns, number, turn)
                records[arm]["samples"].append(sample)
                if replicate:
                    records[arm]["readings"].append(_reading(draw, sample))
        idle = {**_reading(draw, records[0]["samples"][0], 40.0), "role": "idle", "calls": 0}
        for record in records:  # read once a replicate, while all arms are loaded
            record["readings"].append(idle)
        parts.records += records
    wall_s = clock_ns / 1e9 + 1
    manifest["harness"] |= {"wall_s": wall_s, "measuring_s": wall_s - 0.5, "prepared_s": 0.2}
    manifest |= {"run_id": "made", "started": "2026-11-01T10:00:00Z", "ended": "2026-11-01T10:59:00Z"}
    test = {"aa_floor": 0.01, "fingerprint": manifest["machine_before"]["fingerprint"], "sentence": "few false alarms"}
    test |= {"alpha": 0.05, "idle": [{"kind": "compute-bound", "comparisons": 60}], "loaded": []}
    parts.others["selftest.json"], parts.self_test = msgspec.json.encode(test), "present"
    return parts


def _record(model: dict[str, Any], case: dict[str, Any], arm: int, replicate: int) -> dict[str, Any]:
    found = copy.deepcopy(model | {"case": case}) | {"comparison": "c", "arm": f"arm-{arm}", "replicate": replicate}
    found["warmup"]["call_s"] = 2e-4 * (1 + arm)
    return found | {"samples": [], "readings": [], "facts": {}, "steady_load": False}


def _sample(draw: random.Random, call_ns: float, clock_ns: int, number: int, turn: int) -> tuple[dict[str, Any], int]:
    start_ns, calls = clock_ns + draw.randrange(3_000_000, 4_000_000), max(1, round(2e7 / call_ns))
    timed_ns = round(calls * call_ns)
    look_ns = 200_000 + int(draw.expovariate(1 / 80_000))
    seen = {"wall_s": (timed_ns + look_ns) / 1e9, "cpu_s": (timed_ns - draw.randrange(90_000)) / 1e9}
    seen |= {
        "run_delay_s": 0.0,
        "quiet_wait_s": 1e-3 * draw.uniform(0.5, 1),
        "quiet": True,
        "clock_hz": 3.1e9 + draw.random() * 1e8,
        "temperature_c": 61.0,
    }
    sample = {
        "round": number,
        "turn": turn,
        "calls": calls,
        "time_s": timed_ns / 1e9 / calls,
        "start_s": start_ns / 1e9,
    }
    return sample | {"environment": seen, "void": None}, start_ns + timed_ns + look_ns


def _reading(draw: random.Random, sample: dict[str, Any], power_w: float = 90.0) -> dict[str, Any]:
    window_s = sample["environment"]["wall_s"]
    found = {
        "joule": power_w * window_s * draw.uniform(0.95, 1.05),
        "scope": "cpu-package",
        "method": "powercap energy_uj: 0",
    }
    found |= {"tier": "measured", "window_s": window_s, "calls": sample["calls"], "start_s": sample["start_s"]}
    return found | {"round": sample["round"], "role": "gross"}


SLOW = ("decay", "trillion", "hetero")
"""Estimands of modelled rows that take a second each."""
PEAKS, LINEAR, SECOND = "machine_peaks", "quantized_linear/4096x4096", "quantized_linear/6144x2048"


def good() -> Iterator[tuple[str, Callable[[], Parts]]]:
    """Twenty submissions that are what they say: name and what makes it."""
    yield "small run", fixture
    yield "reference", reference
    yield "conformance", conformance
    yield "card", card
    yield "out of time", out_of_time
    for item in ("moe_ffn/qwen3-30b-a3b@0.25", "moe_ffn/olmoe-1b-7b@0.25", LINEAR, SECOND, "allreduce"):
        yield item, partial(reference, PEAKS, item)
    for item in ("onnx_model/transformer-block", "onnx_model/all-minilm-l6-v2", "cluster_model", PEAKS):
        yield item, partial(reference, item)
    for seed in range(6):
        yield f"synthetic {seed}", partial(synthetic, seed, arms=2 + seed % 3, rounds=5 + seed % 4)


# Forgers: (parts, draw) changed in place


Forger = Callable[[Parts, random.Random], None]


def _each(parts: Parts, draw: random.Random, change: Callable[[dict[str, Any]], None], share: float = 1.0) -> None:
    """Change the samples of one arm."""
    for record in parts.of(draw.choice(parts.arms())):
        for sample in record["samples"]:
            if draw.random() < share:
                change(sample)


def _consistently(sample: dict[str, Any], factor: float, whole: bool = True) -> None:
    """Time, window and CPU time together, on whole nanoseconds."""
    found = sample["environment"]
    gap_s, timed_ns = found["wall_s"] - sample["calls"] * sample["time_s"], sample["calls"] * sample["time_s"] * 1e9
    timed_ns = round(factor * timed_ns) if whole else factor * timed_ns
    sample["time_s"] = timed_ns / 1e9 / sample["calls"]
    found["wall_s"], found["cpu_s"] = timed_ns / 1e9 + gap_s, found["cpu_s"] * factor


def halved(parts: Parts, draw: random.Random) -> None:
    factor = draw.uniform(0.4, 0.7)
    _each(parts, draw, lambda s: s.update(time_s=s["time_s"] * factor))


def shaved(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: _consistently(s, 0.9137, whole=False))


def doubled(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: _consistently(s, draw.uniform(8, 12)))


def beyond_roof(parts: Parts, draw: random.Random) -> None:
    for item in (parts.manifest["plan"]["comparisons"], parts.records):
        for case in _cases(item):
            if case["workload"] != PEAKS and case.get("cost"):
                case["cost"] = {
                    k: v * (60 if k in ("flop", "traffic_bytes", "op") else 1) for k, v in case["cost"].items()
                }


def _cases(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in items:
        yield from ([item["case"]] if "case" in item else [case for arm in item["arms"] for case in arm["cases"]])


def high_peaks(parts: Parts, draw: random.Random) -> None:
    for items in (parts.manifest["plan"]["comparisons"], parts.records):
        for case in _cases(items):
            if case["workload"] == PEAKS:
                case["cost"] = {k: v * 400 for k, v in case["cost"].items()}


def other_cost(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["case"]["cost"]["token"] *= 2


def own_tolerance(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["case"]["tolerance"] = 1.0


def dropped_arm(parts: Parts, draw: random.Random) -> None:
    mine = [r for r in parts.of(draw.choice(parts.arms())) if r["replicate"]]
    parts.records.remove(max(mine, key=lambda record: record["samples"][0]["time_s"]))


def dropped_replicate(parts: Parts, draw: random.Random) -> None:
    parts.records = [record for record in parts.records if record["replicate"] != 1]


def too_few(parts: Parts, draw: random.Random) -> None:
    last = max(record["replicate"] for record in parts.records)
    parts.records = [record for record in parts.records if record["replicate"] < last]


def stranger_case(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["arm"] = "mine"


def own_claims(parts: Parts, draw: random.Random) -> None:
    parts.manifest["claims_hash"] = f"{draw.getrandbits(64):016x}"


def low_floor(parts: Parts, draw: random.Random) -> None:
    parts.manifest["floor"] = 0.0005


def foreign_self_test(parts: Parts, draw: random.Random) -> None:
    found = {"aa_floor": 0.002, "fingerprint": "f" * 16, "sentence": ""}
    parts.others["selftest.json"], parts.self_test = msgspec.json.encode(found), "present"
    parts.manifest["floor"] = 0.002


def typed_self_test(parts: Parts, draw: random.Random) -> None:
    found = {"aa_floor": 0.002, "fingerprint": parts.manifest["machine_before"]["fingerprint"], "sentence": ""}
    parts.others["selftest.json"], parts.self_test = msgspec.json.encode(found), "present"
    parts.manifest["floor"] = 0.002


def pilot_out(parts: Parts, draw: random.Random) -> None:
    parts.records = [r for r in parts.records if r["replicate"] or r["case"]["workload"] == PEAKS]


def cut_short(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        record["interrupted"] = record["replicate"] == 3


def board_for_package(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts, "moe-triton"):
        reading |= {"scope": "cpu-package", "joule": 0.3 * reading["joule"]}


def one_call(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        if "ort-int8" in record["case"]["id"]:
            for sample in record["samples"]:
                sample["time_s"], sample["calls"] = sample["time_s"] * sample["calls"], 1


def slow_arm_failed(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record |= {"status": "failed", "reason": "worker ended", "samples": [], "readings": [], "warmup": None}


def own_void(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s.update(void="thermal event"))


def no_idle(parts: Parts, draw: random.Random) -> None:
    for record in parts.records:
        record["readings"] = [reading for reading in record["readings"] if reading["role"] != "idle"]


def promised_self_test(parts: Parts, draw: random.Random) -> None:
    parts.others.pop("selftest.json", None)
    parts.self_test = "present"


def rounded(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            timed_s = round(sample["calls"] * sample["time_s"], 5)
            sample["environment"]["wall_s"] = timed_s + draw.uniform(2e-4, 4e-4)
            sample["time_s"] = timed_s / sample["calls"]


def typed(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["calls"], sample["time_s"] = 1, float(f"{sample['calls'] * sample['time_s']:.2g}") * 0.99
            sample["environment"]["wall_s"] = sample["time_s"] + draw.uniform(2e-4, 4e-4)


def generated(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            timed_s = sample["calls"] * sample["time_s"] * draw.lognormvariate(0, 0.01)
            sample["time_s"] = 0.98 * timed_s / sample["calls"]
            sample["environment"]["wall_s"] = 0.98 * timed_s + draw.uniform(2e-4, 4e-4)


def copied(parts: Parts, draw: random.Random) -> None:
    mine = [r for r in parts.of(draw.choice(parts.arms())) if r["replicate"]]
    for record in mine[1:]:
        for own, other in zip(record["samples"], mine[0]["samples"], strict=False):
            own |= {k: copy.deepcopy(other[k]) for k in ("time_s", "calls", "environment")}


def scaled_twin(parts: Parts, draw: random.Random) -> None:
    ids = [case for case in parts.arms() if min(len(r["samples"]) for r in parts.of(case) if r["replicate"]) >= 5]
    one, other = draw.sample(ids, 2)
    for mine, theirs in zip(parts.of(one), parts.of(other), strict=False):
        for own, sample in zip(mine["samples"], theirs["samples"], strict=False):
            timed_ns = round(0.8 * sample["calls"] * sample["time_s"] * 1e9)
            own["calls"], own["time_s"] = sample["calls"], timed_ns / 1e9 / sample["calls"]
            own["environment"]["wall_s"] = timed_ns / 1e9 + draw.uniform(2e-4, 4e-4)


def constant(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        for sample in record["samples"]:
            sample |= {k: record["samples"][0][k] for k in ("time_s", "calls")}
            sample["environment"]["wall_s"] = sample["calls"] * sample["time_s"] + draw.uniform(2e-4, 4e-4)


def counting(parts: Parts, draw: random.Random) -> None:
    case = draw.choice([c for c in parts.arms() if max(len(r["samples"]) for r in parts.of(c)) >= 4])
    for record in parts.of(case):
        first = record["samples"][0]
        base_ns = round(first["calls"] * first["time_s"] * 1e9)
        for number, sample in enumerate(record["samples"]):
            timed_ns = base_ns + 123_457 * number
            sample["calls"], sample["time_s"] = first["calls"], timed_ns / 1e9 / first["calls"]
            sample["environment"]["wall_s"] = timed_ns / 1e9 + draw.uniform(2e-4, 4e-4)


def same_overhead(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["environment"]["wall_s"] = sample["calls"] * sample["time_s"] + 0.0003


def one_clock(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["environment"]["cpu_s"] = sample["environment"]["wall_s"]


def fast_clock(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(clock_hz=draw.uniform(7e9, 1e10)))


def slow_clock(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(clock_hz=3.1))


def fast_gpu_clock(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(gpu_clock_hz=draw.uniform(5e9, 9e9)))


def device_ahead_of_the_window(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s.update(device_s=1.2 * s["time_s"] + 1e-3))


def many_cpu_seconds(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(cpu_s=40 * s["environment"]["wall_s"]))


def declared_as_measured(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for reading in record["readings"]:
            reading |= {"tier": "measured", "joule": reading.get("low_joule") or reading["joule"], "method": "declared"}


def below_idle(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        for reading in record["readings"]:
            if reading["role"] == "gross":
                reading["joule"] *= 0.3


def no_joules(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        for reading in record["readings"]:
            reading["joule"] = 0.0


def too_many_joules(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        for reading in record["readings"]:
            reading["joule"] *= 1000.0


def other_machine(parts: Parts, draw: random.Random) -> None:
    for moment in ("machine_before", "machine_after"):
        parts.manifest[moment] |= {"cpu_model": "AMD EPYC 9654 96-Core Processor", "name": "AMD EPYC 9654, 2 cores"}


def with_a_card(parts: Parts, draw: random.Random) -> None:
    for moment in ("machine_before", "machine_after"):
        parts.manifest[moment]["gpus"] = ["NVIDIA B200"]


def with_a_path(parts: Parts, draw: random.Random) -> None:
    parts.manifest["notes"].append("read from /home/zhang/models/llama.gguf")


def with_a_host(parts: Parts, draw: random.Random) -> None:
    parts.timed()[0]["details"]["hostname"] = "lab-7"


def with_an_address(parts: Parts, draw: random.Random) -> None:
    parts.timed()[-1]["reason"] = "rank 1 at 10.24.3.17 answered late"


def with_a_script(parts: Parts, draw: random.Random) -> None:
    parts.others["report.html"] = b"<!doctype html><p>fine</p><img src='data:image/png;base64,' onerror='alert(1)'>"


def with_a_link(parts: Parts, draw: random.Random) -> None:
    parts.others["report.html"] = b"<!doctype html><link rel=stylesheet href='//example.org/a.css'>"


def short_run(parts: Parts, draw: random.Random) -> None:
    parts.manifest["ended"] = parts.manifest["started"]


def no_end(parts: Parts, draw: random.Random) -> None:
    parts.manifest |= {"ended": None, "harness": None}


def long_windows(parts: Parts, draw: random.Random) -> None:
    parts.manifest["harness"] |= {"wall_s": 0.5, "measuring_s": 0.4, "prepared_s": 0.0}


def unverified(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["verification"] = None


def wrong_output(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["verification"] |= {"error": 10 * record["verification"]["tolerance"], "passed": True}


def large_process(parts: Parts, draw: random.Random) -> None:
    parts.timed()[0]["pss_bytes"] = 1e15


def unfinished(parts: Parts, draw: random.Random) -> None:
    parts.manifest["state"] = "running"


def cut_line(parts: Parts, draw: random.Random) -> None:
    parts.tail = b'{"schema_version":1,"comp'


def swapped_turns(parts: Parts, draw: random.Random) -> None:
    record = max(parts.timed(), key=lambda item: len(item["samples"]))
    one, other = record["samples"][0], record["samples"][-1]
    one["turn"], other["turn"] = other["turn"], one["turn"]


def shifted(parts: Parts, draw: random.Random) -> None:
    case = draw.choice(parts.arms())
    for record in parts.of(case):
        mates = [r for r in parts.timed() if r["comparison"] == record["comparison"] and r is not record]
        mate = next(r for r in mates if r["replicate"] == record["replicate"])
        for own, other in zip(record["samples"], mate["samples"], strict=False):
            own["start_s"] = other["start_s"] + 1e-3


def cold_warmup(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["warmup"]["call_s"] *= 1e3


def shortened(parts: Parts, draw: random.Random) -> None:
    """Everything that is said of one arm's windows, by a third."""
    case = draw.choice([c for c in parts.arms() if sum(len(r["samples"]) for r in parts.of(c)) >= 8])
    for record in parts.of(case):
        for sample in record["samples"]:
            _consistently(sample, 0.66)
        record["warmup"] |= {"call_s": 0.66 * record["warmup"]["call_s"], "time_s": 0.66 * record["warmup"]["time_s"]}


def _gross(parts: Parts, words: str = "") -> list[dict[str, Any]]:
    found = [x for r in parts.records if words in r["case"]["id"] for x in r["readings"]]
    return [x for x in found if x["role"] == "gross"]


def cheap_calls(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts, draw.choice(("moe-triton", "moe-grouped", "dense-equal-total"))):
        reading["calls"] = 2 * reading["calls"]


def one_of_two_methods(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts, "moe-triton"):
        if "counter" in reading["method"]:
            reading["joule"] *= 0.7


def copied_joules(parts: Parts, draw: random.Random) -> None:
    ones, others = _gross(parts, "moe-triton"), _gross(parts, "moe-grouped")
    for one, other in zip(ones, others, strict=True):
        one["joule"] = other["joule"]


def idle_for_computing(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        if "dense-equal-active" in record["case"]["id"]:
            gross, idle = ([x for x in record["readings"] if x["role"] == role] for role in ("gross", "idle"))
            for one, other in zip(gross, idle, strict=False):
                one["joule"], other["joule"] = other["joule"], one["joule"]


def little_idle(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for reading in record["readings"]:
            if reading["role"] == "idle" and record["case"]["workload"] == "quantized_linear":
                reading["joule"] *= 0.3


def above_its_limit(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts, "dense-equal-total"):
        reading["joule"] *= 2.2


def never_held(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["environment"]["gpu_throttle"] = []


def invented_joules(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts):
        reading |= {"tier": "measured", "method": "RAPL", "scope": "cpu-package", "low_joule": None, "high_joule": None}
        reading["joule"] = reading["window_s"] * draw.uniform(8, 9)


def memory_clock(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(gpu_memory_clock_hz=3.2e9))


def cold_board(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s["environment"].update(gpu_temperature_c=0.0))


def weights_too_fast(parts: Parts, draw: random.Random) -> None:
    """The unquantised arm's record shows what the 4-bit arm did."""
    for record in parts.timed():
        if "torchao-int4" in record["case"]["id"] and record["case"]["regime"] == "decode":
            mates = parts.of(record["case"]["id"].replace("/torchao/", "/torch/").replace("torchao-int4", "torch-bf16"))
            mate = next(r for r in mates if r["replicate"] == record["replicate"])
            for key in ("samples", "readings", "warmup"):
                record[key], mate[key] = mate[key], record[key]


def slow_rounds_out(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        record["samples"] = [sample for sample in record["samples"] if sample["round"] != 1]


def slow_samples_out(parts: Parts, draw: random.Random) -> None:
    for record in parts.of(draw.choice(parts.arms())):
        record["samples"].remove(max(record["samples"], key=lambda sample: sample["time_s"]))


def arm_out(parts: Parts, draw: random.Random) -> None:
    arm = draw.choice([r["arm"] for r in parts.timed() if r["case"]["workload"] != PEAKS and r["replicate"]])
    parts.records = [record for record in parts.records if record["arm"] != arm]


def arm_out_of_the_plan(parts: Parts, draw: random.Random) -> None:
    arm = draw.choice([r["arm"] for r in parts.timed() if r["case"]["workload"] != PEAKS and r["replicate"]])
    parts.records = [record for record in parts.records if record["arm"] != arm]
    for comparison in parts.manifest["plan"]["comparisons"]:
        comparison["arms"] = [item for item in comparison["arms"] if item["id"] != arm]


def renumbered(parts: Parts, draw: random.Random) -> None:
    parts.records = [record for record in parts.records if record["replicate"] != 2]
    for record in parts.records:
        record["replicate"] -= record["replicate"] > 2


def stopped_early(parts: Parts, draw: random.Random) -> None:
    parts.records = [record for record in parts.records if record["replicate"] <= 2]
    for decision in parts.manifest["decisions"].values():
        decision |= {"stop": True, "look": 1, "reason": "every claim is settled at 2 replicates"}


def pilot_for_counted(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        if record["replicate"] <= 1 and record["case"]["workload"] != PEAKS:
            record["replicate"] = 1 - record["replicate"]


def reordered(parts: Parts, draw: random.Random) -> None:
    draw.shuffle(parts.records)


def all_valid(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["void"] = None


def voided(parts: Parts, draw: random.Random) -> None:
    _each(parts, draw, lambda s: s.update(void="foreign CPU 650.0 ms above 320.0 ms"))


def claimed_load(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        record["steady_load"] = True
        for sample in record["samples"]:
            sample["void"] = None


def no_waits(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        for sample in record["samples"]:
            sample["environment"] |= {"quiet_wait_s": 0.0, "run_delay_s": 0.0, "foreign_cpu_s": 0.0}
            sample["void"] = None


def pasted_machine(parts: Parts, draw: random.Random) -> None:
    other = card().manifest
    parts.manifest |= {moment: other[moment] for moment in ("machine_before", "machine_after")}


def _both(parts: Parts, word: str, change: Callable[[dict[str, Any]], None]) -> None:
    for items in (parts.manifest["plan"]["comparisons"], parts.records):
        for case in _cases(items):
            if word in case["id"] and case.get("cost"):
                change(case)


def own_formula(parts: Parts, draw: random.Random) -> None:
    name = draw.choice(("flop", "token", "weight_bytes", "parameters"))
    _both(parts, "torch-bf16", lambda case: case["cost"].update({name: 2 * case["cost"][name]}))


def own_tolerance_everywhere(parts: Parts, draw: random.Random) -> None:
    _both(parts, "torch-bf16", lambda case: case.update(tolerance=0.5))


def fewer_bytes(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        if "nf4" in record["case"]["id"] and "weight_bytes" in record["facts"]:
            record["facts"]["weight_bytes"]["value"] *= 0.6


def no_errors(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        record["verification"]["error"] = 0.0


def to_come(parts: Parts, draw: random.Random) -> None:
    parts.manifest |= {"run_id": "made", "started": "2090-01-01T00:00:00Z", "ended": "2090-01-01T01:00:00Z"}


def dated_back(parts: Parts, draw: random.Random) -> None:
    parts.manifest |= {"started": "2026-10-01T00:00:00Z", "ended": "2026-10-01T01:00:00Z"}


def version_zero(parts: Parts, draw: random.Random) -> None:
    parts.manifest["schema_version"] = 0


def own_page(parts: Parts, draw: random.Random) -> None:
    page = page_of(parts.files())
    parts.others["report.html"] = page.replace(b"not tested", b"supported")


def comparison_out(parts: Parts, draw: random.Random) -> None:
    """Out of plan, decisions and records; the config still asks for it."""
    gone = draw.choice(sorted({record["comparison"] for record in parts.timed()}))
    plan = parts.manifest["plan"]
    plan["comparisons"] = [item for item in plan["comparisons"] if item["id"] != gone]
    parts.manifest["decisions"].pop(gone, None)
    parts.records = [record for record in parts.records if record["comparison"] != gone]


def arm_out_renumbered(parts: Parts, draw: random.Random) -> None:
    """The same of one arm, and the turns of the others numbered through."""
    arm = draw.choice([r["arm"] for r in parts.timed() if r["case"]["workload"] != PEAKS and r["replicate"]])
    for comparison in parts.manifest["plan"]["comparisons"]:
        comparison["arms"] = [item for item in comparison["arms"] if item["id"] != arm]
    parts.records = [record for record in parts.records if record["arm"] != arm]
    starts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for record in parts.timed():
        starts.setdefault((record["comparison"], record["replicate"]), []).extend(record["samples"])
    for samples in starts.values():
        for turn, sample in enumerate(sorted(samples, key=lambda item: item["turn"]), 1):
            sample["turn"] = turn


def exchanged(parts: Parts, draw: random.Random) -> None:
    """Everything that two arms measured, under each other's names."""
    records = [record for record in parts.timed() if record["case"]["workload"] != PEAKS]
    one = draw.choice(records)
    mates = [r for r in records if r["arm"] != one["arm"] and r["case"]["regime"] == one["case"]["regime"]]
    other = draw.choice(mates)["case"]["id"]
    for mine, theirs in zip(parts.of(one["case"]["id"]), parts.of(other), strict=False):
        for key in ("samples", "readings", "warmup"):
            mine[key], theirs[key] = theirs[key], mine[key]


def too_large_to_measure(parts: Parts, draw: random.Random) -> None:
    plan = parts.manifest["plan"]
    comparison = next(item for item in plan["comparisons"] if item["workload"] != PEAKS)
    arm = draw.choice(comparison["arms"])
    comparison["arms"].remove(arm)
    reason = "would hold 5.2 GiB beside 3 GiB of other arms; measure.memory_limit_bytes allows 4 GiB"
    plan["skipped"] += [{"case": case, "reason": reason} for case in arm["cases"]]
    model = next(record for record in parts.records if record["arm"] == arm["id"])
    parts.records = [record for record in parts.records if record["arm"] != arm["id"]]
    empty = {"comparison": "plan", "replicate": 0, "status": "skipped", "reason": reason, "samples": [], "readings": []}
    parts.records += [model | empty | {"case": case, "worker": None} for case in arm["cases"]]


def alpha_later(parts: Parts, draw: random.Random) -> None:
    parts.manifest["config"]["measure"]["alpha"] = 0.2


def fewer_looks(parts: Parts, draw: random.Random) -> None:
    parts.manifest["config"]["measure"]["looks"] = [4, 10]


def right_once(parts: Parts, draw: random.Random) -> None:
    record = [r for r in parts.timed() if "native-w8a8" in r["case"]["id"] and r["replicate"]][-1]
    record["verification"]["error"] *= 0.01


def nearer_answer(parts: Parts, draw: random.Random) -> None:
    """4 bits a weight as near to the unquantised answer as 8."""
    for record in parts.timed():
        if "w4a" in record["case"]["id"]:
            record["facts"]["output_error"]["value"] *= 0.2


def beyond_its_format(parts: Parts, draw: random.Random) -> None:
    for record in parts.timed():
        if "output_error" in record["facts"]:
            record["facts"]["output_error"]["value"] = 0.9


def parity_otherwise(parts: Parts, draw: random.Random) -> None:
    record = next(record for record in parts.timed() if "parity" in record["facts"])
    record["facts"]["parity"]["value"] = 0.0


def nearly_constant(parts: Parts, draw: random.Random) -> None:
    record = max((r for r in parts.timed() if r["replicate"] == 0), key=lambda item: len(item["samples"]))
    del record["samples"][4:]
    first = record["samples"][0]
    for number, sample in enumerate(record["samples"]):
        timed_ns = round(first["calls"] * first["time_s"] * 1e9) + number % 2
        sample["calls"], sample["time_s"] = first["calls"], timed_ns / 1e9 / first["calls"]


def no_such_meter(parts: Parts, draw: random.Random) -> None:
    for reading in _gross(parts):
        reading |= {"tier": "measured", "method": "wattmeter", "joule": None, "low_joule": None, "high_joule": None}


def ratios(parts: Parts, bound: str) -> list[dict[str, Any]]:
    """Quick modelled rows whose ratio has ``bound``."""
    quick = [r for r in parts.records if r["case"]["params"].get("estimand") not in SLOW]
    return [r for r in quick if r["facts"].get("ratio", {}).get(bound)]


def better_model(parts: Parts, draw: random.Random) -> None:
    record = draw.choice(ratios(parts, "value"))
    for bound in ("value", "low", "high"):
        if record["facts"]["ratio"].get(bound) is not None:
            record["facts"]["ratio"][bound] *= 1.5


def narrower_model(parts: Parts, draw: random.Random) -> None:
    ratio = draw.choice(ratios(parts, "low"))["facts"]["ratio"]
    ratio["low"] = ratio["high"] = ratio["value"]


def model_out(parts: Parts, draw: random.Random) -> None:
    gone = draw.choice(parts.manifest["plan"]["modelled"])
    parts.manifest["plan"]["modelled"].remove(gone)
    parts.records = [record for record in parts.records if record["case"]["id"] != gone["id"]]


def model_unrecorded(parts: Parts, draw: random.Random) -> None:
    parts.records.remove(draw.choice([r for r in parts.records if r["case"]["backend"] == "model"]))


def empty(parts: Parts, draw: random.Random) -> None:
    parts.records = []


def newer(parts: Parts, draw: random.Random) -> None:
    parts.manifest["schema_version"] = 99


def infinite(parts: Parts, draw: random.Random) -> None:
    parts.timed()[0]["samples"][0]["time_s"] = 1e308


def negative(parts: Parts, draw: random.Random) -> None:
    parts.timed()[0]["samples"][0]["time_s"] *= -1


def mistyped(parts: Parts, draw: random.Random) -> None:
    parts.records[0]["replicate"] = "one"


FORGERS: tuple[tuple[Forger, set[str], str], ...] = (
    (halved, {"windows"}, "srt"), (shaved, {"resolution"}, "srt"), (doubled, {"turns", "dates"}, "srt"),
    (beyond_roof, {"roofline"}, "r"), (high_peaks, {"roofline"}, "r"), (other_cost, {"plan"}, "rt"),
    (own_tolerance, {"plan"}, "st"), (dropped_arm, {"plan"}, "srt"), (dropped_replicate, {"plan"}, "st"),
    (too_few, {"plan"}, "st"), (stranger_case, {"plan"}, "st"), (own_claims, {"claims"}, "st"),
    (low_floor, {"self-test"}, "srt"), (foreign_self_test, {"self-test"}, "st"),
    (promised_self_test, {"self-test"}, "s"), (rounded, {"resolution"}, "srt"), (typed, {"resolution"}, "st"),
    (generated, {"resolution"}, "srt"), (copied, {"copies"}, "srt"), (scaled_twin, {"twins"}, "t"),
    (constant, {"regular"}, "st"), (counting, {"regular"}, "st"), (same_overhead, {"environment"}, "st"),
    (one_clock, {"environment"}, "st"), (fast_clock, {"clocks"}, "st"), (slow_clock, {"clocks"}, "st"),
    (fast_gpu_clock, {"clocks"}, "st"), (device_ahead_of_the_window, {"clocks"}, "st"),
    (many_cpu_seconds, {"windows"}, "st"), (declared_as_measured, {"joules"}, "r"), (below_idle, {"joules"}, "t"),
    (no_joules, {"joules"}, "t"), (too_many_joules, {"joules"}, "t"), (other_machine, {"machine"}, "s"),
    (with_a_card, {"machine"}, "sr"), (with_a_path, {"secrets"}, "s"), (with_a_host, {"secrets"}, "s"),
    (with_an_address, {"secrets"}, "s"), (with_a_script, {"page"}, "s"), (with_a_link, {"page"}, "s"),
    (short_run, {"dates"}, "s"), (no_end, {"dates"}, "s"), (long_windows, {"dates"}, "s"),
    (unverified, {"outputs"}, "st"), (wrong_output, {"outputs"}, "st"), (large_process, {"outputs"}, "s"),
    (unfinished, {"state"}, "s"), (cut_line, {"state"}, "s"), (swapped_turns, {"turns"}, "st"),
    (shifted, {"turns"}, "st"), (cold_warmup, {"calls"}, "st"), (empty, {"plan"}, "s"), (newer, {"schema"}, "s"),
    (shortened, {"pauses"}, "rh"), (cheap_calls, {"joules"}, "h"), (one_of_two_methods, {"joules"}, "h"),
    (copied_joules, {"joules"}, "h"), (idle_for_computing, {"joules"}, "h"), (little_idle, {"joules"}, "h"),
    (above_its_limit, {"joules"}, "h"), (never_held, {"joules"}, "h"), (invented_joules, {"joules"}, "r"),
    (memory_clock, {"clocks"}, "h"), (cold_board, {"clocks"}, "h"), (weights_too_fast, {"roofline"}, "h"),
    (slow_rounds_out, {"turns"}, "srth"), (slow_samples_out, {"turns"}, "srt"), (arm_out, {"plan"}, "srth"),
    (arm_out_of_the_plan, {"turns"}, "srth"), (renumbered, {"plan"}, "r"), (stopped_early, {"plan"}, "r"),
    (pilot_for_counted, {"turns"}, "rh"), (reordered, {"turns"}, "rt"), (all_valid, {"environment"}, "r"),
    (voided, {"environment"}, "srth"), (claimed_load, {"environment"}, "r"), (no_waits, {"environment"}, "rt"),
    (pasted_machine, {"plan"}, "r"), (own_formula, {"plan"}, "rh"), (own_tolerance_everywhere, {"plan"}, "rh"),
    (fewer_bytes, {"outputs"}, "rh"), (no_errors, {"outputs"}, "rh"), (to_come, {"dates"}, "s"),
    (dated_back, {"dates"}, "s"), (version_zero, {"dates"}, "s"), (own_page, {"page"}, "s"),
    (typed_self_test, {"self-test"}, "sr"), (pilot_out, {"plan"}, "rt"), (cut_short, {"turns"}, "rt"),
    (board_for_package, {"joules"}, "h"), (one_call, {"joules", "calls"}, "r"),
    (slow_arm_failed, {"turns"}, "srt"), (own_void, {"environment"}, "srth"), (no_idle, {"joules"}, "h"),
    (comparison_out, {"plan"}, "srh"), (arm_out_renumbered, {"plan", "turns"}, "srth"), (exchanged, {"turns"}, "srt"),
    (too_large_to_measure, {"plan"}, "r"), (alpha_later, {"plan"}, "q"), (fewer_looks, {"plan"}, "r"),
    (right_once, {"outputs"}, "r"), (nearer_answer, {"outputs"}, "rh"), (beyond_its_format, {"outputs"}, "rh"),
    (parity_otherwise, {"outputs"}, "srh"), (nearly_constant, {"regular"}, "r"), (no_such_meter, {"joules"}, "r"),
    (better_model, {"modelled"}, "m"), (narrower_model, {"modelled"}, "m"), (model_out, {"plan"}, "m"),
    (model_unrecorded, {"plan"}, "m"), (infinite, {"schema"}, "s"), (negative, {"schema"}, "s"),
    (mistyped, {"schema"}, "s"),
)  # fmt: skip
"""Who forges, which check must say so, and on which good submissions: small run, reference, synthetic, on a card,
modelled, and a comparison that went on after its first look."""


def damages(content: bytes) -> Iterator[tuple[str, bytes, str]]:
    """Files that are no archive of ours any more."""
    yield "cut short", content[: len(content) // 2], "archive"
    yield "empty", b"", "archive"
    middle = len(content) // 2
    yield "a byte flipped", content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :], "archive"
    with zipfile.ZipFile(io.BytesIO(content)) as found:
        whole = {name: found.read(name) for name in found.namelist()}
    for name, extra in (("../../.bashrc", "traversal"), ("/etc/passwd", "absolute"), ("run.py", "stowaway")):
        yield extra, _zip({**whole, name: b"x"}), "archive"
    yield "no records", _zip({k: v for k, v in whole.items() if k != "records.jsonl"}), "archive"
    yield "bomb", _zip({**whole, "report.html": bytes(65 * 2**20)}), "archive"
    yield "link", _zip(whole, link="records.jsonl"), "archive"
    yield "twice", _zip(whole, again="manifest.json"), "archive"
    changed = whole["records.jsonl"].replace(b'"replicate":1', b'"replicate":2', 1)
    yield "changed after packing", _zip({**whole, "records.jsonl": changed}), "hashes"
    yield "unlisted page", _zip({**whole, "report.html": b"<p>"}), "hashes"
    other = whole["submission.json"].replace(b'"format": 1', b'"format": 7')
    yield "other format", _zip({**whole, "submission.json": other}), "archive"


def _zip(files: dict[str, bytes], link: str = "", again: str = "") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in [*files.items(), *([(again, b"{}")] if again else [])]:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o120777 if name == link else 0o100644) << 16
            made.writestr(info, content)
    return sink.getvalue()


def forged() -> Iterator[tuple[str, bytes, set[str]]]:
    """Name, content and the checks of which one must speak."""
    bases = {"s": fixture(), "r": reference(PEAKS, LINEAR), "t": synthetic(100), "h": card()}
    bases |= {"m": modelled(), "q": reference(PEAKS, SECOND)}
    bases["m"].manifest["revision"] = installed_revision() or None
    for parts in bases.values():
        parts.manifest["claims_hash"] = claims_hash()
    for number, (forger, expected, letters) in enumerate(FORGERS):
        for letter in letters:
            parts = bases[letter].copy()
            forger(parts, random.Random(f"{number}{letter}"))
            yield f"{forger.__name__} on {letter}", parts.packed(), expected
    for name, content, check in damages(bases["s"].packed()):
        yield name, content, {check}
