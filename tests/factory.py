"""Synthetic runs for tests: plausible records without measuring anything.

``make_case`` / ``make_record`` / ``make_samples`` build the types, ``make_manifest`` and ``make_run`` write a run
directory as ``frugalbench run`` would. All noise is seeded, so a test sees the same numbers every time.
"""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench import schema
from frugalbench.schema import (
    Case,
    Cost,
    Environment,
    Manifest,
    Outcome,
    Plan,
    Quantity,
    Reading,
    Record,
    Sample,
    Status,
    Tier,
    Verdict,
    Verification,
    Warmup,
    Worker,
)

COST = Cost(token=4, flop=2e9, weight_bytes=4e8, traffic_bytes=4e8, parameters=10**8, active_parameters=10**8)
PEAKS = {
    "fp32_flop_per_s": 1e11,
    "int8_op_per_s": 4e11,
    "read_bytes_per_s": 2e10,
    "copy_bytes_per_s": 1e10,
}


def make_case(variant: str = "dense", regime: str = "decode", workload: str = "moe_ffn", **fields: Any) -> Case:
    """A case with a derived id; any field of :class:`Case` can be given."""
    backend = fields.pop("backend", "torch")
    shape = fields.pop("shape", "small")
    defaults: dict[str, Any] = {
        "id": f"{workload}/{variant}/{shape}/{regime}/{backend}/cpu",
        "device": "cpu",
        "dtype": "fp32",
        "cost": COST,
        "tolerance": 1e-4,
        "peaks": ("fp32_flop_per_s", "read_bytes_per_s"),
    }
    return Case(
        workload=workload, variant=variant, regime=regime, backend=backend, shape=shape, **{**defaults, **fields}
    )


def make_samples(
    time_s: float | Sequence[float], rounds: int = 5, noise: float = 0.01, seed: int = 0, void: Iterable[int] = ()
) -> tuple[Sample, ...]:
    """``rounds`` samples around ``time_s`` (lognormal ``noise``), or exactly the listed times."""
    if isinstance(time_s, (int, float)):
        rng = np.random.default_rng(seed)
        times = [float(time_s * np.exp(noise * z)) for z in rng.standard_normal(rounds)]
    else:
        times = [float(t) for t in time_s]
    spoilt = set(void)
    return tuple(
        Sample(
            round=i,
            turn=0,
            calls=10,
            time_s=t,
            start_s=float(i),
            environment=Environment(wall_s=10 * t, cpu_s=10 * t, run_delay_s=0.0, quiet=i not in spoilt),
            void="foreign CPU time" if i in spoilt else None,
        )
        for i, t in enumerate(times)
    )


def make_record(
    variant: str = "dense",
    regime: str = "decode",
    workload: str = "moe_ffn",
    *,
    time_s: float | Sequence[float] | None = 0.01,
    replicate: int = 1,
    rounds: int = 5,
    noise: float = 0.01,
    seed: int = 0,
    void: Iterable[int] = (),
    comparison: str | None = None,
    arm: str | None = None,
    status: Status = Status.OK,
    case: Case | None = None,
    case_fields: dict[str, Any] | None = None,
    **fields: Any,
) -> Record:
    """One record. ``time_s=None`` gives no samples; other :class:`Record` fields pass through."""
    case = case or make_case(variant, regime, workload, **(case_fields or {}))
    own_seed = zlib.crc32(f"{case.id}/{replicate}/{seed}".encode())
    timed = time_s is not None and status in (Status.OK, Status.CAPPED)
    defaults: dict[str, Any] = {
        "worker": Worker(pid=1000 + replicate, start_method="fork", template_id="t0", threads=2),
        "load_s": 0.5,
        "verification": Verification(error=1e-6, tolerance=1e-4, passed=True, what="output against float64"),
        "warmup": Warmup(calls=3, time_s=0.1, steady=True, call_s=0.01),
        "pss_bytes": 3e8,
        "samples": make_samples(time_s, rounds, noise, own_seed, void) if timed and time_s is not None else (),
    }
    if not timed:
        defaults = {}
    return Record(
        schema_version=schema.SCHEMA_VERSION,
        comparison=comparison or f"{case.workload}/{case.shape}/{case.regime}",
        arm=arm or f"{case.variant}@{case.backend}",
        case=case,
        replicate=replicate,
        status=status,
        **{**defaults, **fields},
    )


def make_replicates(variant: str, time_s: float, count: int = 4, between: float = 0.01, **fields: Any) -> list[Record]:
    """Pilot (replicate 0) and ``count`` replicates, whose medians differ by lognormal ``between``."""
    rng = np.random.default_rng(zlib.crc32(f"{variant}/{fields.get('regime')}/{fields.get('seed', 0)}".encode()))
    shifts = np.exp(between * rng.standard_normal(count + 1))
    return [make_record(variant, time_s=float(time_s * s), replicate=i, **fields) for i, s in enumerate(shifts)]


def make_peaks(peaks: dict[str, float] | None = None, count: int = 2) -> list[Record]:
    """Records of the ``machine_peaks`` workload whose best replicate reaches each given rate exactly."""
    records = []
    for name, rate in (PEAKS if peaks is None else peaks).items():
        work = 1e9
        flop, op = (work, 0.0) if "flop" in name else (0.0, work if "op_per_s" in name else 0.0)
        cost = Cost(token=0, flop=flop, op=op, weight_bytes=0, traffic_bytes=work if "bytes" in name else 0)
        case = make_case(name, "peak", "machine_peaks", cost=cost, peaks=(), backend="native")
        for replicate in range(1, count + 1):
            slower = 1.0 + 0.1 * (replicate - 1)
            records.append(make_record(case=case, time_s=[work / rate * slower] * 3, replicate=replicate))
    return records


def make_reading(joule: float | None = 1.0, calls: int = 100, tier: Tier = Tier.MEASURED, **fields: Any) -> Reading:
    """One energy window; ``joule=None`` with ``error=...`` is a poisoned one."""
    defaults: dict[str, Any] = {"scope": "cpu-package", "method": "test", "window_s": 1.0, "start_s": 0.0}
    return Reading(joule=joule, calls=calls, tier=tier, **{**defaults, **fields})


def make_fact(value: float | None, unit: str = "1", tier: Tier = Tier.MEASURED, **fields: Any) -> Quantity:
    """One entry for ``Record.facts``."""
    return Quantity(value=value, unit=unit, tier=tier, **fields)


def make_verdict(claim: str = "moe.overhead", verdict: Outcome = Outcome.SUPPORTED, **fields: Any) -> Verdict:
    """One verdict, by default decided, measured and paired."""
    defaults: dict[str, Any] = {
        "regime": "decode",
        "machine": "0123456789abcdef",
        "scope": "literal",
        "arm": "as_shipped",
        "metric": "time",
        "baseline": "dense",
        "candidate": "moe",
        "ratio": 1.2,
        "low": 1.1,
        "high": 1.3,
        "confidence": 0.95,
        "threshold": 0.9,
        "tier": Tier.MEASURED,
        "replicates": 4,
        "reason": "the interval lies above the threshold",
        "source": "DSET 2.2",
    }
    return Verdict(claim=claim, verdict=verdict, **{**defaults, **fields})


def make_manifest(**fields: Any) -> Manifest:
    """A complete run's manifest; any field can be given."""
    defaults: dict[str, Any] = {
        "schema_version": schema.SCHEMA_VERSION,
        "run_id": "20260101T000000Z-smoke",
        "name": "smoke",
        "config": {},
        "seed": 1,
        "plan": Plan(seed=1, comparisons=()),
        "claims_hash": "0" * 16,
        "machine_before": {"fingerprint": "0123456789abcdef", "cpu_model": "Test CPU", "logical_cores": 2},
        "machine_after": {"fingerprint": "0123456789abcdef"},
        "versions": {"frugalbench": "0.1.0"},
        "revision": "abc1234",
        "started": "2026-01-01T00:00:00Z",
        "ended": "2026-01-01T00:03:00Z",
        "state": "complete",
        "harness": schema.Harness(wall_s=180.0, parent_cpu_s=1.8, measuring_s=150.0, peak_pss_bytes=1e9),
    }
    return Manifest(**{**defaults, **fields})


def make_run(path: Path, records: Sequence[Record], **manifest: Any) -> Path:
    """Write a run directory under ``path`` (created) and return it; load it with ``analysis.load.load_run``."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_bytes(schema.encode(make_manifest(**manifest)))
    (path / "records.jsonl").write_bytes(b"".join(schema.encode(r) + b"\n" for r in records))
    return path


def plausible_records(count: int = 4) -> list[Record]:
    """All families once, with a capped, a failed and a skipped case."""
    records = make_peaks()
    for regime, factor in (("decode", 1.0), ("prefill", 40.0)):
        for variant, time_s in (("dense-total", 0.02), ("dense-active", 0.0025), ("moe-transformers", 0.0034)):
            records += make_replicates(variant, time_s * factor, count, regime=regime)
    for variant, time_s in (("fp32", 0.004), ("int8-dynamic", 0.002)):
        records += make_replicates(variant, time_s, count, workload="quantized_linear")
    records.append(
        make_record("nf4", workload="quantized_linear", status=Status.CAPPED, reason="100 times slower than fp32")
    )
    records += make_replicates("eager", 0.01, count, workload="onnx_model", regime="batch1")
    records.append(
        make_record(
            "openvino", "batch1", "onnx_model", status=Status.FAILED, reason="node <MatMul> ran on another provider"
        )
    )
    records.append(make_record("cuda", "batch1", "onnx_model", status=Status.SKIPPED, reason="no CUDA device"))
    return records + allreduce_records(count)


def allreduce_records(
    count: int = 4, ranks: int = 4, alpha_s: float = 5e-5, beta_s_per_byte: float = 1e-9
) -> list[Record]:
    """Ring all-reduce times that follow the alpha-beta law with a little noise."""
    records = []
    for exponent in range(10, 24, 2):
        size = 2.0**exponent
        time_s = 2 * (ranks - 1) * alpha_s + 2 * (ranks - 1) / ranks * size * beta_s_per_byte
        cost = Cost(token=0, flop=0, weight_bytes=0, traffic_bytes=size)
        params = {"size_bytes": int(size), "ranks": ranks}
        fields = {"cost": cost, "params": params, "shape": f"{int(size)}B-r{ranks}", "peaks": ()}
        records += make_replicates("gloo", time_s, count, workload="allreduce", regime="collective", case_fields=fields)
    return records


def scaled(record: Record, factor: float) -> Record:
    """The same record with every time multiplied by ``factor``."""
    samples = tuple(msgspec.structs.replace(s, time_s=s.time_s * factor) for s in record.samples)
    return msgspec.structs.replace(record, samples=samples)
