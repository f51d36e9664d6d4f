"""One kernel written several ways: every one right, a wrong weight caught, lines counted from the files that run."""

import re

import numpy as np
import pytest

from frugalbench import paths
from frugalbench.specs import kernel_tax as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import kernel_tax as builder
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import code_lines
from workloads.fake_machine import Machine

VARIANTS = [name for name in spec.VARIANTS if name != "torch-compile"]
"""Inductor compiles for twenty seconds; the arm's answer is checked before it is timed, as every arm's."""


@pytest.fixture
def context(tmp_path):
    return Context(5, 2, "cpu", tmp_path, tmp_path)


def make_arm(variant, kernel="swiglu", d_model=64):
    options = {"d_model": d_model, "d_ff": 96, "prefill_tokens": 9, "stream_bytes": 1, "variants": [variant]}
    options["kernels"] = [kernel]
    return spec.expand(Settings("kernel_tax", "cpu", 2, 5, options), Machine()).comparisons[0].arms[0]


def distance(found, wanted):
    return np.abs(found - wanted).max() / np.sqrt((wanted**2).mean())


@pytest.mark.parametrize("kernel,d_model", [("swiglu", 64), ("rms_norm", 77), ("rms_norm", 4099), ("moe", 64)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_gives_the_reference_in_every_position(variant, kernel, d_model, context):
    if variant == "openvino":
        pytest.importorskip("openvino")
    if (variant, kernel) == ("plain-cpp", "moe"):
        pytest.skip("is not written so")
    arm = make_arm(variant, kernel, d_model)
    loaded = builder.load(arm, context)
    for case in arm.cases:
        bound, wanted = loaded.bind(case), builder.reference(case, context)["y"]
        for index in (0, 1, 2):
            assert distance(bound.output(index)["y"], wanted[index % bound.rotation]) < case.tolerance
        assert distance(bound.output(0)["y"], wanted[1]) > 100 * case.tolerance
        assert bound.facts["code_lines"].value > 3 and bound.facts["code_lines"].source


def test_lines_of_the_hand_tuned_kernel_are_those_of_its_files(context):
    arm = make_arm("hand-tuned")
    fact = builder.load(arm, context).bind(arm.cases[0]).facts["code_lines"]
    root = paths.shipped("kernels") / "cpu"
    names = fact.source.split(", ")
    assert {"moe.cpp", "forward.h", "products.h", "vectors.h"} <= set(names)
    files = [path for path in (root / "moe.cpp", *root.glob("moe/*.h"), *root.glob("common/*.h")) if path.name in names]
    lines = [line.strip() for path in files for line in path.read_text().splitlines()]
    assert fact.value == sum(bool(line) and not line.startswith("//") for line in lines)
    included = {match for path in files for match in re.findall(r'#include "(?:.*/)?(\w+\.h)"', path.read_text())}
    assert included <= set(names)


def test_comments_blank_lines_and_docstrings_do_not_count(tmp_path):
    (tmp_path / "a.h").write_text("int x;  // why\n\n/* two\n lines */\n")
    (tmp_path / "b.cpp").write_text('// c\n#include "a.h"\nint y;\n')
    files = code_lines.cpp_files(tmp_path / "b.cpp", tmp_path)
    assert [path.name for path in files] == ["b.cpp", "a.h"] and code_lines.of_cpp(files) == 3
    assert code_lines.of_python([distance]) == 2


def test_bad_options_are_named():
    for options, says in (({"d_model": 0}, "d_model"), ({"variants": []}, "empty"), ({"varints": []}, "variants")):
        with pytest.raises(spec.FrugalbenchError, match=says):
            spec.expand(Settings("kernel_tax", "cpu", 2, 5, options), Machine())
