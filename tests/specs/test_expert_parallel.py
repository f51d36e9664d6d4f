"""The spec of expert_parallel: who holds what, costs by formula, and what is refused. No torch."""

from types import SimpleNamespace
from typing import Any

import pytest

from frugalbench import native_build
from frugalbench.schema import Case, FrugalbenchError
from frugalbench.specs import expert_parallel as spec
from frugalbench.specs.base import Expansion, Settings

OWN = {"shape": "own", "d_model": 16, "d_expert": 8, "experts": 8, "top_k": 2, "stream_bytes": 1, "sizes_kib": [1, 4]}
D, F, E, K = 16, 8, 8, 2


def expand(cores: int = 4, device: str = "cpu", missing: tuple[str, ...] = (), **options: Any) -> Expansion:
    found = {"torch": None if "torch" in missing else "1"}
    machine: Any = SimpleNamespace(
        logical_cores=cores, last_level_cache_bytes=2**20, installed=found.get, has_cuda=lambda: False
    )
    settings = Settings("expert_parallel", device, cores, 3, {**OWN, **options}, "test.toml [[workload]]")
    return spec.expand(settings, machine)


def cases(**options: Any) -> dict[tuple[str, str], Case]:
    (comparison,) = expand(**options).comparisons
    return {(case.variant, case.regime): case for arm in comparison.arms for case in arm.cases}


def test_one_comparison_of_the_ranks_and_one_rank() -> None:
    (comparison,) = expand().comparisons
    ranks, single = comparison.arms
    assert {case.variant for case in ranks.cases} == {*spec.SPLIT, spec.CALIBRATION}
    assert [(case.variant, case.regime) for case in single.cases] == [("single", name) for name in spec.REGIMES]
    ids = [case.id for arm in comparison.arms for case in arm.cases]
    assert len(set(ids)) == len(ids) == 2 + 3 * 3 + 3
    assert ranks.memory_bytes > single.memory_bytes + spec.RANK_MEMORY_BYTES
    assert not comparison.competes


def test_all_four_process_the_same_tokens_with_as_many_threads() -> None:
    found = cases(cores=4, ranks=2)
    for regime in spec.REGIMES:
        mine = [case for (_, name), case in found.items() if name == regime]
        assert len({case.cost.token for case in mine}) == 1
        assert {(case.params["threads"], case.params["threads_per_rank"]) for case in mine} == {(4, 2)}
        assert len({str(case.params) for case in mine}) == 1, "one reference for all"


def test_costs_by_formula() -> None:
    found, T = cases(ranks=4, n_shared=1, decode_tokens=12), 12
    step, exchange, compute, single = (found[name, "decode"].cost for name in (*spec.SPLIT, "single"))
    router, expert = 2 * T * D * E, 2 * T * 3 * D * F
    assert single.flop == step.flop == router + (K + 1) * expert
    assert compute.flop == (K + 1) * expert
    assert exchange.flop == 0
    assert exchange.traffic_bytes == 2 * 4 * T * K * D + 8 * 4 * E
    held = 4 * 3 * (D * E + 3 * D * F)
    assert step.weight_bytes - single.weight_bytes == held, "router and shared expert on every rank"
    assert single.traffic_bytes - compute.traffic_bytes == 4 * (D * E - 2 * (K - 1) * T * D)
    equal = found["alltoall", "collective"]
    assert equal.cost.traffic_bytes == 3 / 4 * equal.params["size_bytes"]


def test_calibration_blocks_are_equal() -> None:
    found = [case.params["elements"] for case in expand(ranks=3, cores=3, experts=9, decode_tokens=3, batch_tokens=3,
             prefill_tokens=3).comparisons[0].arms[0].cases if case.variant == "alltoall"]  # fmt: skip
    assert found == [255, 1023]


def test_experts_compute_in_torch_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cases()["ep-step", "decode"].backend == "native"
    monkeypatch.setattr(native_build, "find_compiler", lambda: None)
    found = cases()
    assert found["ep-step", "decode"].backend == found["single", "decode"].backend == "torch"
    assert "/torch/" in found["ep-step", "decode"].id


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cores": 1}, "2 ranks need a core each; this machine has 1"),
        ({"device": "cuda"}, "gloo ranks run on the CPU, not on 'cuda'"),
        ({"missing": ("torch",)}, "torch is not installed"),
    ],
)
def test_cases_left_out_say_why(options: dict[str, Any], reason: str) -> None:
    found = expand(**options)
    assert not found.comparisons and len(found.skipped) == 14
    assert all(reason in skip.reason for skip in found.skipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 1}, "'ranks' must be 2 to 8, not 1"),
        ({"ranks": 9}, "'ranks' must be 2 to 8, not 9"),
        ({"ranks": 3}, "8 experts do not divide over 3 ranks"),
        ({"decode_tokens": 15}, "'decode_tokens' 15 does not divide over 2 ranks"),
        ({"prefill_tokens": 0}, "at least 1, not"),
        ({"regimes": ["training"]}, "unknown regime 'training'"),
        ({"regimes": []}, "'regimes' is empty"),
        ({"sizes_kib": [4]}, "two or more distinct"),
        ({"sizes_kib": [4, 4]}, "two or more distinct"),
        ({"sizes_kib": [0, 4]}, "two or more distinct"),
        ({"top_k": 9}, "'top_k' 9 must lie between"),
        ({"routing": "zip"}, "is no routing"),
        ({"rank": 2}, "did you mean 'ranks'"),
        ({"ranks": "two"}, "'ranks' must be an integer"),
    ],
)
def test_impossible_requests_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FrugalbenchError, match=message) as problem:
        expand(**options)
    assert "test.toml" in str(problem.value) and "\n" not in str(problem.value)
