"""One export all the way through both runtimes, and what a failed one leaves behind."""

import numpy as np
import pytest

from frugalbench.specs import graph_set
from frugalbench.workloads import onnx_graphs
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import graph_export
from specs.graph_plans import expand


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    return Context(seed=0, threads=2, device="cpu", cache_dir=folder / "cache", scratch_dir=folder / "scratch")


@pytest.mark.real
def test_a_quantised_export_is_held_against_what_it_stores(context):
    (comparison,) = expand(graphs=["dense-ffn-int4-opset20"], backends=["onnxruntime"]).comparisons
    (arm,) = comparison.arms
    loaded = onnx_graphs.load(arm, context)
    assert loaded.details["export"]["operators"]["MatMulNBits"] == 3
    assert loaded.artefacts[0].build_s > 0
    case = arm.cases[0]
    bound = loaded.bind(case)
    got, stored = bound.output(0)["hidden"], bound.own_definition(0)["hidden"]
    plain = onnx_graphs.reference(case, context)["hidden"][0]
    scale = np.sqrt(np.mean(plain**2))
    assert np.abs(got - stored).max() / scale < case.tolerance
    assert 0.01 < np.sqrt(np.mean((got - plain) ** 2)) / scale < case.params["format_tolerance"]
    assert bound.facts["ran_as_asked"].value == 1.0


def test_a_failed_export_is_remembered_with_its_reason(context, monkeypatch):
    asked = []

    def refuse(module, request, limit_s):
        asked.append((module, request["export"]["model"], limit_s))
        return graph_export.apart.Answer("refused", {}, "no ONNX function for aten::x")

    monkeypatch.setattr(graph_export.apart, "ask", refuse)
    (comparison,) = expand(graphs=["moe-ffn-eager-opset20"], backends=["onnxruntime"]).comparisons
    for _ in range(2):
        with pytest.raises(graph_export.ExportError, match="aten::x"):
            onnx_graphs.load(comparison.arms[0], context)
    assert len(asked) == 1


def test_the_reason_is_the_innermost_one_with_its_operator():
    try:
        try:
            raise ValueError("# header\nNo decomposition for <OpOverload(op='aten.odd', overload='default')>")
        except ValueError as problem:
            raise RuntimeError("Failed to convert the exported program.") from problem
    except RuntimeError as problem:
        said = graph_export.reason_of(problem)
    assert "ValueError: No decomposition for" in said and "aten.odd" in said and "\n" not in said


def test_spec_and_modules_have_one_size():
    from frugalbench.workloads.layers import graph_models as made

    assert (made.WIDTH, made.HIDDEN, made.HEADS, made.VOCABULARY) == (
        graph_set.WIDTH, graph_set.HIDDEN, graph_set.HEADS, graph_set.VOCABULARY,
    )  # fmt: skip
    assert set(made.MODULES) == set(graph_set.MODULES)
