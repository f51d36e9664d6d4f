"""Cases that pass, differ, refuse, fail, crash and hang; each is told apart, and nothing else is lost with it."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from frugalbench.backends import case_runners
from frugalbench.backends.case_runners import Unsupported
from frugalbench.schema import CaseOutcome, FrugalbenchError
from frugalbench.specs import onnx_conformance as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import onnx_cases, onnx_census, onnx_conformance
from frugalbench.workloads.base import Context
from frugalbench.workloads.onnx_cases import Bench, difference, execute
from frugalbench.workloads.onnx_safety import UnsafeModel
from workloads.fake_machine import Machine

HOW = ("passes", "differs", "refuses", "no-load", "no-run", "crashes", "exits", "hangs", "last")
"""Names of the folder's cases, and what the fake runtime does with each."""
OUTCOMES = {
    "passes": CaseOutcome.PASSED, "differs": CaseOutcome.MISMATCH, "refuses": CaseOutcome.UNSUPPORTED,
    "no-load": CaseOutcome.LOAD_ERROR, "no-run": CaseOutcome.RUN_ERROR, "crashes": CaseOutcome.CRASH,
    "exits": CaseOutcome.CRASH, "hangs": CaseOutcome.TIMEOUT, "last": CaseOutcome.PASSED,
}  # fmt: skip


class FakeRuntime:
    """Behaves as the name of a case's folder says."""

    version = "1"

    def __init__(self, _device):
        pass

    def declared(self):
        return 7, 22

    def open_case(self, path):
        how = path.parent.name
        if how == "refuses":
            raise Unsupported("no kernel for Neg")
        if how == "no-load":
            raise ValueError("Load model from /somewhere/model.onnx failed: bad graph\nmore")
        return lambda inputs: self._run(how, inputs["x"])

    @staticmethod
    def _run(how, x):
        if how == "no-run":
            raise BaseException("panicked")
        if how == "crashes":
            os.write(2, b"free(): invalid pointer\n")
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "exits":
            os._exit(3)
        if how == "hangs":
            time.sleep(60)
        return [-x + (1e-2 if how == "differs" else 0)]


def write_case(folder, name, opset=13, operator="Neg", data=None):
    from onnx import TensorProto, helper, numpy_helper

    place = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", place[:1], place[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    values = folder / name / "test_data_set_0"
    values.mkdir(parents=True)
    (folder / name / "model.onnx").write_bytes(data or model.SerializeToString())
    x = np.array([1, 2, -3], np.float32)
    for file, value in (("input_0", x), ("output_0", -x)):
        (values / f"{file}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
    return model


@pytest.fixture
def folder(tmp_path):
    for name in HOW:
        write_case(tmp_path / "cases", name)
    return tmp_path / "cases"


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(case_runners._RUNNERS, "fake", FakeRuntime)


def bench(folder, batch=100, backend="fake", limit_s=0.5):
    return Bench(backend, "cpu", folder, limit_s, batch, folder.parent / "log")


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_each_end_is_told_apart_and_costs_no_other_case(folder, batch):
    entries = onnx_census.own(folder).entries
    started, ended = execute(bench(folder, batch), entries)
    assert started.version == "1" and started.opsets == (7, 22)
    assert [item.name for item in ended] == [entry.name for entry in entries] == sorted(HOW)
    assert {item.name: item.outcome for item in ended} == OUTCOMES
    reasons = {item.name: item.reason for item in ended}
    assert reasons["crashes"] == "SIGSEGV: free(): invalid pointer" and reasons["exits"].startswith("exit code 3")
    assert reasons["no-load"] == "ValueError: bad graph" and reasons["refuses"] == "no kernel for Neg"
    assert "3 of 3 values differ, by up to 0.01" in reasons["differs"] and reasons["hangs"] == "more than 0.5 s"


@pytest.mark.usefixtures("fake")
def test_no_child_outlives_its_batch(folder):
    execute(bench(folder, 3), onnx_census.own(folder).entries)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_runtime_that_cannot_start_is_one_failure_with_its_reason(folder, monkeypatch):
    def broken(_device):
        raise ImportError("libfoo.so is missing")

    monkeypatch.setitem(case_runners._RUNNERS, "fake", broken)
    with pytest.raises(RuntimeError, match=r"fake does not start: ImportError: libfoo\.so is missing"):
        execute(bench(folder), onnx_census.own(folder).entries)


def arm(**options):
    settings = Settings(workload=spec.WORKLOAD, device="cpu", threads=0, seed=1, options=options, where="here")
    return spec.expand(settings, Machine()).comparisons[0].arms[0]


def context(tmp_path):
    return Context(seed=1, threads=1, device="cpu", cache_dir=tmp_path / "cache", scratch_dir=tmp_path)


@pytest.mark.real
def test_the_record_accounts_for_every_case_and_says_it_is_not_judged(folder, tmp_path):
    mine = arm(folder=str(folder), backends=["onnxruntime"])
    write_case(folder, "too-new", opset=999)
    write_case(folder, "not-core", opset=6)
    bound = onnx_conformance.load(mine, context(tmp_path)).bind(mine.cases[0])
    facts = {name: fact.value for name, fact in bound.facts.items()}
    assert bound.settled and facts["cases"] == len(HOW) + 2 == sum(facts[outcome.value] for outcome in CaseOutcome)
    assert facts["unsupported"] == 1 and facts["passed"] == len(HOW) + 1
    assert facts["sampled_core_cases"] == facts["sampled_core_passed"] == len(HOW) and "core_cases" not in facts
    assert bound.details["opsets_declared"] and bound.details["opsets"][0] == 7
    assert "cases of one's own" in bound.details["not_judged"]
    assert json.loads(json.dumps(bound.details)) == bound.details


def test_bad_requests_are_one_line(tmp_path):
    for options, words in (
        ({"backends": ["onxruntime"]}, "did you mean 'onnxruntime'"),
        ({"backends": []}, "'backends' is empty"),
        ({"sample": -1}, "'sample' must be at least 0"),
        ({"batch": 0}, "'batch' must be at least 1"),
        ({"case_limit_s": 0.0}, "'case_limit_s' lies above 0"),
        ({"folder": str(tmp_path)}, "holds no case"),
    ):
        with pytest.raises(FrugalbenchError, match=words):
            arm(**options)


def test_without_onnx_or_a_runtime_cases_are_skipped_with_the_way_to_get_it():
    class Bare(Machine):
        def installed(self, package):
            return "1" if package == "onnxruntime" else None

    settings = Settings(workload=spec.WORKLOAD, device="cpu", threads=0, seed=1)
    assert {item.reason.split(":")[0] for item in spec.expand(settings, Bare()).skipped} == {"onnx is not installed"}
    on_gpu = Settings(workload=spec.WORKLOAD, device="cuda", threads=0, seed=1)
    found = spec.expand(on_gpu, Machine())
    assert [item.arms[0].cases[0].backend for item in found.comparisons] == ["onnxruntime"] and len(found.skipped) == 3


def test_a_model_that_is_none_or_lacks_its_data_is_refused(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    write_case(tmp_path / "bad", "case", data=b"not a model")
    with pytest.raises(UnsafeModel, match="not an ONNX model"):
        onnx_census.own(tmp_path / "bad")
    model = write_case(tmp_path / "far", "case")
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Neg", ["w"], ["z"]))
    (tmp_path / "far" / "case" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModel, match=r"weights\.bin.*where no file is"):
        onnx_census.own(tmp_path / "far")


finite = arrays.arrays(np.float32, st.integers(1, 5), elements=st.floats(-1e3, 1e3, width=32))


@given(finite, st.floats(0.01, 10))
def test_an_array_equals_itself_and_nothing_beyond_tolerance(array, far):
    assert difference([array], [array.copy()], 1e-3, 1e-7) == ""
    moved = array + np.float32(2e-3) * np.abs(array).max() + np.float32(far)
    assert "values differ" in difference([array], [moved], 1e-3, 1e-7)


def test_what_else_makes_outputs_differ():
    ones = np.ones(2, np.float32)
    for expected, found, words in (
        ([ones], [], "in place of a sequence of 1"),
        ([ones], [ones.astype(np.float64)], "float64"),
        ([ones], [ones[:, None]], r"\(2, 1\)"),
        ([[ones, ones]], [[ones]], "output 0: a sequence of 1"),
        ([None], [ones], "in place of nothing"),
        ([np.array(["a", "b"], object)], [np.array(["a", "c"])], "1 of 2 texts differ"),
        ([ones], [np.array([1, np.nan], np.float32)], "1 of 2 values differ"),
    ):
        import re

        assert re.search(words, difference(expected, found, 1e-3, 1e-7)), words
    same = [np.array([np.nan, np.inf], np.float32), np.array(["a"], object), None, [ones]]
    assert difference(same, [same[0], np.array(["a"]), None, [ones]], 1e-3, 1e-7) == ""


def test_reasons_carry_no_path_of_ours():
    text = "[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/x/model.onnx failed:Unsupported model IR version: 14"
    assert "/tmp" not in onnx_cases.reason_of(RuntimeError(text))
    assert onnx_cases.reason_of(RuntimeError("Check 'a' failed at b:\nNo rule\n")) == "RuntimeError: No rule"
    assert len(onnx_cases.reason_of(RuntimeError("x" * 1000))) <= 160


BASELINE = Path(__file__).parents[2] / "results" / "onnx-conformance"


@pytest.mark.real
def test_what_once_passed_still_passes(tmp_path):
    """The gate: a sample of the suite on ONNX Runtime, twice, against the stored census of the same versions."""
    from frugalbench.analysis.conformance import standings
    from frugalbench.analysis.load import load_run

    mine = arm(sample=150, backends=["onnxruntime"])
    loaded = onnx_conformance.load(mine, context(tmp_path))
    found, again = loaded.pairs, onnx_conformance.load(mine, context(tmp_path)).pairs
    assert [(item.name, item.outcome) for _, item in found] == [(item.name, item.outcome) for _, item in again]
    assert len(found) == 150
    base = next(item for item in standings(load_run(BASELINE)) if item.backend == "onnxruntime")
    if (base.detail("version"), base.detail("suite")) != (loaded.started.version, loaded.census.suite):
        pytest.skip("the stored census is of other versions")
    assert [item for _, item in found if item.name in base.passed and item.outcome is not CaseOutcome.PASSED] == []
