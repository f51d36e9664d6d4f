"""Numbers that no measurement gives are named; those that one gives are let through."""

import msgspec
import pytest

from factory import COST, make_fact, make_manifest, make_reading, make_record, plausible_records
from frugalbench.analysis.plausible import manifest_fault, record_fault
from frugalbench.schema import Harness, Plan, Worker


def test_plausible_records_and_manifests_have_no_fault() -> None:
    assert [record_fault(record) for record in plausible_records() if record_fault(record)] == []
    assert record_fault(make_record(readings=(make_reading(), make_reading(None, error="failed")))) is None
    assert record_fault(make_record(time_s=[0.0, 1e-9, 86_400.0])) is None
    assert manifest_fault(make_manifest()) is None


SAMPLE = make_record().samples[0]
WORKER = Worker(pid=1, start_method="fork", template_id=None, threads=2**70)


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": (msgspec.structs.replace(SAMPLE, time_s=-1e-3),)},
        {"samples": (msgspec.structs.replace(SAMPLE, time_s=1e-320),)},
        {"samples": (msgspec.structs.replace(SAMPLE, time_s=float("inf")),)},
        {"samples": (msgspec.structs.replace(SAMPLE, time_s=float("nan")),)},
        {"samples": (msgspec.structs.replace(SAMPLE, calls=0),)},
        {"samples": (msgspec.structs.replace(SAMPLE, round=-1),)},
        {"samples": (msgspec.structs.replace(SAMPLE, start_s=1e300),)},
        {"readings": (make_reading(calls=0),)},
        {"readings": (make_reading(1e300),)},
        {"readings": (make_reading(calls=10**400),)},
        {"facts": {"a": make_fact(1e-300)}},
        {"facts": {"a": make_fact(1.0, low=-1e300)}},
        {"replicate": -1},
        {"replicate": 10**30},
        {"worker": WORKER},
        {"load_s": 1e300},
        {"case_fields": {"cost": msgspec.structs.replace(COST, flop=-1.0)}},
        {"case_fields": {"cost": msgspec.structs.replace(COST, token=1e300)}},
    ],
)
def test_a_record_that_nothing_measured(fields) -> None:
    reason = record_fault(make_record(**fields))
    assert reason and len(reason) < 200


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"config": {"a": [[[[1e999]]]]}}, "config"),
        ({"machine_before": {"a": 2**70}}, "machine_before"),
        ({"machine_after": {"a": "\x1b"}}, "machine_after"),
        ({"seed": 10**5000}, "seed"),
        ({"plan": Plan(seed=10**30, comparisons=())}, "seed"),
        ({"floor": -1.0}, "floor"),
        ({"harness": Harness(wall_s=1e300, parent_cpu_s=1.0, measuring_s=1.0)}, "harness"),
    ],
)
def test_a_manifest_that_nothing_wrote(fields, says) -> None:
    assert says in (manifest_fault(make_manifest(**fields)) or "")
