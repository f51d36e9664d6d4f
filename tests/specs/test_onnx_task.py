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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backends": ["onnxruntim"]}, "did you mean 'onnxruntime'"),
        ({"backends": []}, "'backends' is empty"),
        ({"tasks": ["python-reference"]}, "is of kind lm; an encoder answers classify and similarity"),
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
