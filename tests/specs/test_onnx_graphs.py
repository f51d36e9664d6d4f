"""The plan of the graph set, and of files of one's own."""

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import onnx_graphs as spec
from frugalbench.specs import onnx_model
from frugalbench.specs.graph_set import EXPORTS
from onnx_files import chain, save
from specs.graph_plans import Machine, expand


def test_every_graph_meets_every_backend_or_says_why_not(monkeypatch):
    monkeypatch.setattr(onnx_model.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = expand()
    assert {item.id.split("/")[1].split("@")[0] for item in found.comparisons} == set(EXPORTS)
    here = [comparison for comparison in found.comparisons if "@" not in comparison.id]
    for comparison in here:
        assert {arm.id for arm in comparison.arms} == {*spec.DEFAULTS["backends"], "onnxruntime-openvino"}
    assert {"@".join(item.id.split("@")[1:]) for item in found.comparisons} >= {"", "cann", "webgpu"}
    ids = [case.id for item in found.comparisons for arm in item.arms for case in arm.cases]
    assert len(set(ids)) == len(ids)
    assert all("pip install --no-deps" in skip.reason for skip in found.skipped)
    missing = expand(Machine("openvino", "magika", "silero-vad", "rapidocr-onnxruntime"))
    arms = {arm.id for item in missing.comparisons for arm in item.arms}
    assert arms & set(spec.DEFAULTS["backends"]) == set(spec.DEFAULTS["backends"]) - {"openvino"}


def test_dynamic_graphs_see_two_lengths_and_static_ones_their_own():
    found = {item.id.split("/")[1]: item.arms[0].cases for item in expand().comparisons}
    assert {case.params["dims"]["seq"] for case in found["encoder-opset20"]} == {16, 128}
    assert [case.regime for case in found["encoder-opset20-static"]] == ["as-declared"]


def test_tolerance_follows_the_format():
    found = {item.id.split("/")[1]: item.arms[0].cases[0].tolerance for item in expand().comparisons}
    assert (
        found["dense-ffn-opset20"]
        == found["dense-ffn-int4-opset20"]
        < 1e-4
        < 1e-3
        < found["dense-ffn-int8-qdq-opset20"]
    )
    assert found["decoder-opset20"] > found["dense-ffn-opset20"]


@pytest.mark.real
def test_a_file_of_one_s_own(tmp_path):
    path = save(chain(), tmp_path / "mine.onnx")
    comparison, *_ = expand(graphs=[], paths=[str(path)], dims={"batch": 4}).comparisons
    assert {arm.id for arm in comparison.arms}.isdisjoint(spec.NATIVE)
    (case,) = comparison.arms[0].cases
    assert case.params["inputs"][0]["shape"] == [4, 24]
    assert (case.params["file"]["depth"], case.params["file"]["reduction"]) == (3, 64)
    assert case.params["reference"] == "onnx.reference in float64"


@pytest.mark.parametrize(
    "options,said",
    [
        ({"graphs": ["encoder"]}, "did you mean 'encoder-opset"),
        ({"backends": ["tract9"]}, "unknown backend"),
        ({"graphs": [], "paths": []}, "are empty"),
        ({"rotation": 0}, "'rotation' must lie"),
        ({"paths": [3]}, "'paths' holds strings"),
    ],
)
def test_requests_that_make_no_sense(options, said):
    with pytest.raises(FrugalbenchError, match=said):
        expand(**options)


def test_files_of_one_name_are_told_apart():
    assert list(spec._labels(["a/m.onnx", "b/m.onnx", "a/m.onnx"]).values()) == ["m", "m#2"]
