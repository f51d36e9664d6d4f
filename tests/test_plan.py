"""A config and a machine make the same plan every time, and each case left out carries its reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from frugalbench import config, schema
from frugalbench.config import load_config
from frugalbench.plan import cases, make_plan
from frugalbench.schema import Comparison, FrugalbenchError, NothingRunsHere, Plan


@dataclass(frozen=True)
class Box:
    """A machine as planning sees it."""

    logical_cores: int = 2
    last_level_cache_bytes: int = 32 * 2**20
    gpu: bool = False
    missing: Sequence[str] = field(default_factory=tuple)

    def installed(self, package: str) -> str | None:
        return None if package in self.missing else "1.0"

    def has_cuda(self) -> bool:
        return self.gpu


def planned(name: str = "smoke", box: Box | None = None, only: str | None = None, device: str | None = None) -> Plan:
    return make_plan(load_config(name), box or Box(), only, device)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", [n for n in config.shipped_names() if n != "gpu"])
def test_shipped_configs_plan(name: str) -> None:
    plan = planned(name)
    assert plan.comparisons or plan.modelled
    assert all(skip.reason for skip in plan.skipped)


def test_smoke_holds_every_family() -> None:
    families = {"machine_peaks", "moe_ffn", "quantized_linear", "onnx_model", "allreduce", "cluster_model"}
    assert {case.workload for case in cases(planned())} == families


def test_the_plan_is_deterministic_and_survives_storage() -> None:
    plan = planned()
    assert plan == planned()
    assert msgspec.json.decode(schema.encode(plan), type=Plan) == plan


def test_case_ids_are_unique_and_stable() -> None:
    ids = [case.id for case in cases(planned())]
    assert len(set(ids)) == len(ids)
    assert all(case.workload in case.id and case.variant in case.id for case in cases(planned()))


def test_every_measured_case_has_its_cost_and_tolerance() -> None:
    for comparison in planned().comparisons:
        for arm in comparison.arms:
            assert arm.cases and comparison.estimate_s >= 0
            for case in arm.cases:
                assert case.cost is not None and case.cost.flop + case.cost.op + case.cost.traffic_bytes > 0, case.id


def arm_count(comparisons: Sequence[Comparison]) -> int:
    return sum(len(item.arms) for item in comparisons)


def test_only_selects_comparisons_and_cases() -> None:
    whole, part = planned(), planned(only="moe_ffn/*decode*")
    assert 0 < arm_count(part.comparisons) < arm_count(whole.comparisons)
    assert {case.regime for case in cases(part)} == {"decode"}
    assert {case.workload for case in cases(planned(only="allreduce"))} == {"allreduce"}


def test_only_that_selects_nothing() -> None:
    with pytest.raises(FrugalbenchError, match="--only zzz: selects no case") as problem:
        planned(only="zzz")
    assert problem.value.exit_code == 2


def test_a_missing_package_is_a_skip_with_its_reason() -> None:
    plan = planned(box=Box(missing=("openvino",)))
    gone = [skip for skip in plan.skipped if skip.case.variant == "openvino"]
    assert gone and all("openvino" in skip.reason for skip in gone)
    assert all(case.variant != "openvino" for case in cases(plan))


def test_unknown_workload(tmp_path: Path) -> None:
    with pytest.raises(FrugalbenchError, match="unknown workload 'moe_fn'; did you mean 'moe_ffn'"):
        planned(write(tmp_path, "[[workload]]\nname = 'moe_fn'\n"))


@pytest.mark.parametrize(
    "name", ["machine_peaks", "moe_ffn", "quantized_linear", "onnx_model", "allreduce", "cluster_model"]
)
def test_unknown_key_of_a_workload_names_the_place(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"[[workload]]\nname = '{name}'\nthread = 2\n")
    with pytest.raises(FrugalbenchError) as problem:
        planned(path)
    message = str(problem.value)
    assert path in message and name in message and "'thread'" in message and "'threads'" in message


def test_devices(tmp_path: Path) -> None:
    with pytest.raises(NothingRunsHere, match="no NVIDIA device") as problem:
        planned(device="cuda")
    assert problem.value.exit_code == 3
    with pytest.raises(FrugalbenchError, match="unknown device 'gpu'"):
        planned(device="gpu")
    with pytest.raises(FrugalbenchError, match="unknown device"):
        planned(write(tmp_path, "[[workload]]\nname = 'moe_ffn'\ndevice = ['cpu']\n"))


@pytest.mark.parametrize("threads", ["-1", "'two'", "1.5"])
def test_bad_threads(tmp_path: Path, threads: str) -> None:
    with pytest.raises(FrugalbenchError, match="'threads' must be a positive integer"):
        planned(write(tmp_path, f"[[workload]]\nname = 'moe_ffn'\nthreads = {threads}\n"))


def test_threads_reach_the_case(tmp_path: Path) -> None:
    plan = planned(write(tmp_path, "[[workload]]\nname = 'moe_ffn'\nthreads = 1\n"))
    assert {case.params["threads"] for case in cases(plan)} == {1}


def test_a_config_without_workloads(tmp_path: Path) -> None:
    with pytest.raises(NothingRunsHere, match="lists no workload"):
        planned(write(tmp_path, "seed = 1\n"))
