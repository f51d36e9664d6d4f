"""A config and a machine make the same plan every time, and each case left out carries its reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from frugalbench import config, schema
from frugalbench.config import load_config
from frugalbench.plan import cases, check_stored, make_plan
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

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

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


def test_arms_that_do_not_fit_into_memory_together_are_skipped_with_both_sizes(tmp_path: Path) -> None:
    text = "name = 'mine'\n[measure]\nmemory_limit_bytes = 700000000\n[[workload]]\nname = 'moe_ffn'\n"
    plan = make_plan(load_config(write(tmp_path, text)), Box())
    (comparison,) = plan.comparisons
    assert 1 <= len(comparison.arms) < 7
    assert sum(arm.memory_bytes for arm in comparison.arms) <= 700000000
    assert "beside" in plan.skipped[0].reason
    assert "measure.memory_limit_bytes allows 668 MiB: raise it" in plan.skipped[0].reason


def test_a_plan_of_which_nothing_fits_says_so(tmp_path: Path) -> None:
    text = "name = 'mine'\n[measure]\nmemory_limit_bytes = 1000000\n[[workload]]\nname = 'moe_ffn'\n"
    with pytest.raises(NothingRunsHere, match="would hold"):
        make_plan(load_config(write(tmp_path, text)), Box())


def test_the_plan_is_deterministic_and_survives_storage() -> None:
    plan = planned()
    assert plan == planned()
    assert msgspec.json.decode(schema.encode(plan), type=Plan) == plan


def test_a_stored_plan_is_gone_on_with_though_its_counts_come_back_as_floats() -> None:
    plan = planned()
    stored = msgspec.json.decode(schema.encode(plan), type=Plan)
    check_stored(stored, plan, "run")
    case = next(iter(cases(plan)))
    edited = schema.encode(plan).replace(case.id.encode(), b"mine")
    with pytest.raises(FrugalbenchError, match="not what its config expands to"):
        check_stored(msgspec.json.decode(edited, type=Plan), plan, "run")


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


def test_the_simulated_device_runs_the_self_test_alone() -> None:
    with pytest.raises(FrugalbenchError, match="selftest --device sim"):
        planned(device="sim")
    assert {case.device for case in cases(planned("selftest", device="sim"))} == {"sim"}


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


# What strangers may have written

PLUGIN = Path(__file__).parent / "fixtures" / "plugin" / "doubling.toml"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("name = 'moe_ffn'\nprefill_tokens = [1000000000000]", "operations a call"),
        ("name = 'moe_ffn'\nshape = 'own'\nexperts = 100000000000", "a call; "),
        ("name = 'moe_ffn'\nshape = 'own'\nd_model = 1\ndecode_tokens = [1000000000000]", "a call; "),
        ("name = 'lm_quality'\nd_model = 1048576\nlayers = 1048576", "operations a call"),
        ("name = 'moe_ffn'\nstream_bytes = 1099511627776", "would hold"),
        ("name = 'moe_ffn'\nstream_bytes = 1000000000000000", "beyond any machine"),
        ("name = 'moe_ffn'\nvariants = ['moe-sorted', 'moe-sorted']", "there twice"),
        ("name = 'quantized_linear'\nshape = '32000000x32000000'", "a call"),
        ("name = 'quantized_linear'\nshape = '1" + "0" * 4000 + "x64'", "characters"),
        ("name = 'quantized_linear'\nshape = '1" + "0" * 400 + "x64'", ""),
        ("name = 'onnx_model'\nseq = 1000000000\nmodels = ['transformer-block']", "operations a call"),
        ("name = 'onnx_model'\nd_model = 1000000000000\nheads = 1\nmodels = ['transformer-block']", ""),
        ("name = 'onnx_model'\nrotation = 1000000000000\nmodels = ['transformer-block']", "'rotation'"),
        (f"name = 'onnx_model'\nbatches = {list(range(1, 200))}", "199 entries"),
        (f"name = 'allreduce'\nsizes_kib = {list(range(1, 200))}", "199 entries"),
        ("name = 'allreduce'\nsizes_kib = [1099511627776]", "call"),
        ("name = 'machine_peaks'\nbuffer_mib = 1099511627776", "a call"),
        ("name = 'machine_peaks'\nthreads = 1000000", "'threads'"),
        ("name = 'machine_peaks'\nthreads = true", "'threads'"),
        ("name = 'selftest'\nidentical = 1000000", "'identical'"),
        ("name = 'cluster_model'\nuniform = '/dev/zero.toml'", "cannot be read"),
        ("name = '\x7f'", ""),
    ],
)
def test_a_plan_beyond_any_machine_is_refused_with_a_reason(tmp_path: Path, table: str, says: str) -> None:
    with pytest.raises(FrugalbenchError) as problem:
        planned(write(tmp_path, f"[[workload]]\n{table}\n"))
    assert says in str(problem.value) and len(str(problem.value)) < 600
    assert problem.value.exit_code == 2


def test_the_same_table_twice_is_refused(tmp_path: Path) -> None:
    table = "[[workload]]\nname = 'quantized_linear'\n"
    with pytest.raises(FrugalbenchError, match="is there twice"):
        planned(write(tmp_path, f"{table}group_size = 32\n{table}group_size = 64\n"))


def test_a_workload_of_ones_own_needs_permission() -> None:
    with pytest.raises(FrugalbenchError, match="--allow-code") as problem:
        planned(str(PLUGIN))
    assert str(PLUGIN.parent / "doubling.py") in str(problem.value) and problem.value.exit_code == 2
    plan = make_plan(load_config(str(PLUGIN)), Box(), allow_code=True)
    assert [case.variant for case in cases(plan)] == ["product", "sum"]
    assert {case.workload for case in cases(plan)} == {"doubling.py:Doubling"}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "no such file"),
        ("", "Kernel"),
        ("1 / 0", "ZeroDivisionError"),
        ("def", "SyntaxError"),
        ("raise SystemExit", "SystemExit"),
        ("class Kernel: pass", "no expand"),
        ("class Kernel:\n def __init__(self, x): pass", "TypeError"),
        ("{whole}def expand(self, settings, machine): return 3", "not an Expansion"),
        ("{whole}def expand(self, settings, machine): return settings.no", "expand failed: AttributeError"),
        ("{whole}def expand(self, settings, machine): raise ValueError('\x1b[2J\\n' * 99)", "ValueError"),
    ],
)
def test_code_that_does_not_work_is_a_short_message(tmp_path: Path, code: str | None, says: str) -> None:
    whole = "class Kernel:\n load = reference = reference_key = print\n "
    if code is not None:
        (tmp_path / "own.py").write_text(code.replace("{whole}", whole))
    path = write(tmp_path, "[[workload]]\nname = 'own.py:Kernel'\n")
    with pytest.raises(FrugalbenchError) as problem:
        make_plan(load_config(path), Box(), allow_code=True)
    message = str(problem.value)
    assert says in message and "own.py" in message and "\x1b" not in message and len(message.splitlines()) <= 2


def test_a_stored_plan_must_be_what_its_config_expands_to() -> None:
    whole, part = planned(), planned(only="moe_ffn/*decode*")
    check_stored(part, whole, "there")
    comparison = part.comparisons[0]
    arm = comparison.arms[0]
    for edited in (
        msgspec.structs.replace(arm, imports=(*arm.imports, "antigravity")),
        msgspec.structs.replace(arm, cases=()),
        msgspec.structs.replace(arm, id="another"),
        msgspec.structs.replace(arm, cases=(msgspec.structs.replace(arm.cases[0], tolerance=1.0),)),
    ):
        changed = msgspec.structs.replace(comparison, arms=(edited,))
        with pytest.raises(FrugalbenchError, match="there: its plan is not what its config expands to"):
            check_stored(msgspec.structs.replace(part, comparisons=(changed,)), whole, "there")
    with pytest.raises(FrugalbenchError, match="its plan"):
        check_stored(msgspec.structs.replace(part, seed=99), whole, "there")
