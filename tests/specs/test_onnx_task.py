"""The plan of ``onnx_task``: float64 beside each runtime, and one line for what makes no sense."""

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import onnx_task as spec
from frugalbench.specs.base import Settings
from workloads.fake_machine import Machine


def expand(**options):
    return spec.expand(Settings("onnx_task", "cpu", 2, 7, options, "c.toml"), Machine())


def test_float64_comes_first_and_every_runtime_answers_the_same_items():
    found = expand(backends=["onnxruntime", "tract"])
    assert [item.arms[0].cases[0].variant for item in found.comparisons] == ["torch-float64", "onnxruntime", "tract"]
    assert not any(item.competes or item.metered for item in found.comparisons)
    asked = [[(case.regime, case.params) for case in item.arms[0].cases] for item in found.comparisons]
    assert asked[0] == asked[1] == asked[2]
    ids = [case.id for item in found.comparisons for case in item.arms[0].cases]
    assert len(ids) == len(set(ids)) == 9


def test_models_that_are_a_file_have_arms_of_their_own_beside_the_file_in_float64():
    found = expand(backends=["torch-eager", "onnxruntime"], tasks=["python-sentences", "made-files", "drawn-lines"])
    names = [item.arms[0].id for item in found.comparisons]
    assert names == [
        "onnx_task/torch-float64", "onnx_task/torch-eager", "onnx_task/onnxruntime", "onnx_task/magika/onnx-float64",
        "onnx_task/magika/onnxruntime", "onnx_task/rapidocr-rec/onnx-float64", "onnx_task/rapidocr-rec/onnxruntime",
    ]  # fmt: skip
    assert len({case.id for item in found.comparisons for case in item.arms[0].cases}) == 7


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backends": ["onnxruntim"]}, "did you mean 'onnxruntime'"),
        ({"backends": []}, "'backends' is empty"),
        (
            {"tasks": ["python-reference"]},
            "is of kind lm; answered are classify, similarity, file-type, text-line and speech",
        ),
        ({"tasks": ["python-module"]}, "did you mean 'python-modules'"),
        ({"seq": 4}, "'seq' must be at least 8"),
        ({"seq": 9999}, "longer than the encoder takes"),
        ({"batches": 4}, "unknown key 'batches'"),
    ],
)
def test_what_makes_no_sense_is_one_line(options, said):
    with pytest.raises(FrugalbenchError, match=said) as problem:
        expand(**options)
    assert "\n" not in str(problem.value)
