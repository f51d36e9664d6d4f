"""Identical arms are identical but for their name, and extra work is as large as its name says."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.config import load_config
from frugalbench.machine import Machine
from frugalbench.plan import make_plan
from frugalbench.schema import Comparison, FrugalbenchError
from frugalbench.specs import selftest as spec
from frugalbench.specs.base import Settings
from frugalbench.specs.machine_peaks import MIB

MACHINE = SimpleNamespace(logical_cores=2, last_level_cache_bytes=32 * MIB)


def expand(device: str = "cpu", **options: object) -> tuple[Comparison, ...]:
    return spec.expand(Settings("selftest", device, 2, 1, options), MACHINE).comparisons  # type: ignore[arg-type]


def units(comparison: Comparison) -> dict[str, int]:
    return {arm.id: arm.cases[0].params["units"] for arm in comparison.arms}


def test_one_comparison_per_kind_with_twins_and_slowed_arms() -> None:
    found = expand()
    assert [item.arms[0].cases[0].regime for item in found] == list(spec.KINDS)
    for comparison in found:
        assert list(units(comparison)) == ["same", "same-2", "same-3", "same-4", "plus-2", "plus-5", "plus-10"]
        assert len({arm.cases[0].id for arm in comparison.arms}) == 7
        assert not comparison.id.endswith("/") and comparison.estimate_s > 0


def test_identical_arms_differ_in_name_alone() -> None:
    for comparison in expand():
        same = [arm.cases[0] for arm in comparison.arms if arm.id.startswith("same")]
        for case in same:
            fields = {name: getattr(case, name) for name in case.__struct_fields__ if name not in ("id", "variant")}
            assert fields == {name: getattr(same[0], name) for name in fields}


@pytest.mark.parametrize("cache_mib", [1, 16, 32, 105, 500])
@pytest.mark.parametrize("kind", spec.KINDS)
def test_shipped_slowdowns_are_exact(kind: str, cache_mib: int) -> None:
    machine = SimpleNamespace(logical_cores=2, last_level_cache_bytes=cache_mib * MIB)
    whole = spec.units_of(kind, machine)  # type: ignore[arg-type]
    for percent in (2.0, 5.0, 10.0):
        assert spec.with_extra(whole, percent) / whole == pytest.approx(1 + percent / 100, abs=1e-12)


def test_memory_work_is_larger_than_the_cache_that_it_is_meant_to_miss() -> None:
    machine = SimpleNamespace(logical_cores=2, last_level_cache_bytes=100 * MIB)
    assert spec.units_of("memory-bound", machine) * MIB > 3 * machine.last_level_cache_bytes  # type: ignore[arg-type]
    (comparison,) = expand(kinds=["memory-bound"])
    for arm in comparison.arms:
        cost = arm.cases[0].cost
        assert cost is not None and cost.traffic_bytes == arm.cases[0].params["units"] * MIB <= (arm.memory_bytes or 0)


def test_work_is_counted_by_formula() -> None:
    (comparison,) = expand(kinds=["compute-bound"])
    for arm in comparison.arms:
        cost = arm.cases[0].cost
        assert (
            cost is not None
            and cost.flop == 2 * spec.MATRIX["cpu"] ** 3 * arm.cases[0].params["units"]
            and cost.token == 1
        )


@given(st.integers(1, 10**5), st.floats(0.0, 100.0))
def test_extra_work_is_at_least_a_unit_and_close_to_what_was_asked(whole: int, percent: float) -> None:
    found = spec.with_extra(whole, percent)
    if percent == 0:
        assert found == whole
    else:
        assert found > whole and abs(found - whole * (1 + percent / 100)) <= 1


@given(st.integers(1, 8), st.lists(st.sampled_from([1.0, 2.5, 7.0, 20.0]), unique=True, max_size=4))
def test_options_choose_the_arms(identical: int, extra: list[float]) -> None:
    (comparison,) = expand(kinds=["dispatch-bound"], identical=identical, extra=extra)
    found = units(comparison)
    assert len(found) == identical + len(extra)
    assert list(found)[:identical] == spec.names(identical)
    assert sum(value == found["same"] for value in found.values()) == identical
    assert {arm.cases[0].params["most_units"] for arm in comparison.arms} == {max(found.values())}


def test_wrong_options_are_named() -> None:
    with pytest.raises(FrugalbenchError, match="'compute-bound'"):
        expand(kinds=["compute"])
    with pytest.raises(FrugalbenchError, match="'identical'"):
        expand(identicals=3)
    with pytest.raises(FrugalbenchError, match="'identical'"):
        expand(identical=0)
    for extra in ([-1.0], ["x"], [True], [float("nan")]):
        with pytest.raises(FrugalbenchError, match="'extra'"):
            expand(extra=extra)


def test_the_shipped_config_plans_what_the_self_test_measures() -> None:
    config = load_config("selftest")
    plan = make_plan(config, Machine.detect())
    assert [item.arms[0].cases[0].regime for item in plan.comparisons] == list(spec.KINDS) and not plan.skipped
    assert config.measure.looks == (6, 10, 16, 24)


def test_planted_mistakes_stand_beside_an_honest_arm_that_does_as_much() -> None:
    found = expand("sim", kinds=[], mistakes=list(spec.MISTAKES))
    assert [item.id for item in found] == [f"selftest/{name}" for name in spec.MISTAKES]
    for comparison, (mistake, (kind, _)) in zip(found, spec.MISTAKES.items(), strict=True):
        honest, wrong = (arm.cases[0] for arm in comparison.arms)
        assert wrong.params == honest.params | {"mistake": mistake} and wrong.cost == honest.cost
        assert wrong.regime == kind and "mistake" not in honest.params
        assert all(arm.imports == ("numpy",) for arm in comparison.arms)


@pytest.mark.parametrize(
    ("device", "mistake", "says"),
    [("cpu", "late-tuning", "simulated device alone"), ("cuda", "late-tuning", "sim"), ("sim", "late", "late-tuning")],
)
def test_mistakes_are_planted_where_they_cannot_be_taken_for_results(device: str, mistake: str, says: str) -> None:
    with pytest.raises(FrugalbenchError, match=says):
        expand(device, mistakes=[mistake])
