"""Every arm of the self-test does the units of work that it says, checked by its answer."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from frugalbench.run.worker import relative_error
from frugalbench.schema import Arm
from frugalbench.specs import selftest as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import selftest as workload
from frugalbench.workloads.base import Bound, Context

pytestmark = pytest.mark.real
pytest.importorskip("torch")

CONTEXT = Context(seed=1, threads=2, device="cpu", cache_dir=Path(), scratch_dir=Path())
MACHINE = SimpleNamespace(logical_cores=2, last_level_cache_bytes=2**20)
FEW = {"compute-bound": (10, 11), "memory-bound": (3, 4), "dispatch-bound": (20, 21)}
"""Units of the baseline and of the slowed arm, small enough for a test."""


def arms(kind: str) -> dict[str, Arm]:
    options = {"kinds": [kind], "identical": 2, "extra": [10.0]}
    settings = Settings("selftest", "cpu", 2, 1, options)
    (comparison,) = spec.expand(settings, MACHINE).comparisons  # type: ignore[arg-type]
    base, more = FEW[kind]
    return {item.id: resized(item, more if item.id.startswith("plus") else base, more) for item in comparison.arms}


def resized(item: Arm, units: int, most: int) -> Arm:
    (case,) = item.cases
    params = {**case.params, "units": units, "most_units": most}
    return msgspec.structs.replace(item, cases=(msgspec.structs.replace(case, params=params),))


def bound(item: Arm) -> Bound:
    return workload.load(item, CONTEXT).bind(item.cases[0])


def error(found: dict[str, np.ndarray], item: Arm) -> float:
    expected = workload.reference(item.cases[0], CONTEXT)
    return relative_error(found, {name: array[0] for name, array in expected.items()})


@pytest.mark.parametrize("kind", spec.KINDS)
def test_each_arm_is_right_again_and_again(kind: str) -> None:
    for item in arms(kind).values():
        made = bound(item)
        tolerance = item.cases[0].tolerance
        assert tolerance is not None
        for _ in range(3):
            made.call(0)
            assert error(made.output(0), item) <= tolerance


@pytest.mark.parametrize("kind", spec.KINDS)
def test_a_unit_more_or_less_is_a_wrong_answer(kind: str) -> None:
    """So an arm cannot be slowed, or spared, by other work than its own."""
    found = arms(kind)
    same, plus = found["same"], found["plus-10"]
    assert error(bound(plus).output(0), same) > 100 * (same.cases[0].tolerance or 0)
    assert error(bound(same).output(0), plus) > 100 * (same.cases[0].tolerance or 0)


@pytest.mark.parametrize("kind", spec.KINDS)
def test_references_are_shared_by_units_alone(kind: str) -> None:
    found = {name: workload.reference_key(item.cases[0]) for name, item in arms(kind).items()}
    assert found["same"] == found["same-2"] != found["plus-10"]
    other = arms("compute-bound" if kind != "compute-bound" else "dispatch-bound")["same"]
    assert workload.reference_key(other.cases[0]) not in found.values()


def test_the_seed_decides_the_numbers() -> None:
    item = arms("compute-bound")["same"]
    (case,) = item.cases
    reseeded = msgspec.structs.replace(case, params={**case.params, "seed": 2})
    one, other = (workload.reference(c, replace(CONTEXT, seed=9))["answer"] for c in (case, reseeded))
    assert one.dtype == np.float64 and not np.allclose(one, other)
    assert np.array_equal(one, workload.reference(case, CONTEXT)["answer"])


def test_the_compute_reference_is_the_plain_sum_of_products() -> None:
    params: dict[str, Any] = arms("compute-bound")["same"].cases[0].params
    left, rights = workload._matrices(params)
    total = sum(left.astype(np.float64) @ rights[unit % 8].astype(np.float64) for unit in range(params["units"]))
    found = workload.reference(arms("compute-bound")["same"].cases[0], CONTEXT)["answer"]
    assert found.shape == (1, spec.MATRIX["cpu"], spec.MATRIX["cpu"]) and np.allclose(found[0], total, rtol=1e-12)
