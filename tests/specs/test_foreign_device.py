"""Cases of the out-of-tree device: scope, parts of a training step, and a reason for what cannot run."""

import pytest

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import foreign_device as spec
from frugalbench.specs.base import Settings
from workloads.fake_machine import Machine


def expand(machine=None, device="cpu", **options):
    return spec.expand(Settings("foreign_device", device, 2, 1, options), machine or Machine())


def test_one_arm_per_adapter_and_a_case_per_model():
    (comparison,) = expand().comparisons
    assert {arm.id.split("/")[1] for arm in comparison.arms} == set(spec.VARIANTS) and not comparison.competes
    assert all({case.shape for case in arm.cases} == set(spec.MODELS) for arm in comparison.arms)
    parts = [case.shape for case in comparison.arms[0].cases if case.regime == "training"]
    assert parts == ["tiny-lm-forward", "tiny-lm-backward", "tiny-lm-optimizer"]


def test_a_stand_in_is_an_analogue_and_a_vendors_adapter_is_not():
    (comparison,) = expand().comparisons
    scopes = {case.variant: case.params["scope"] for arm in comparison.arms for case in arm.cases}
    assert scopes == dict.fromkeys(spec.STAND_INS, "analogue") | dict.fromkeys(spec.ADAPTERS, "literal")


def test_an_absent_adapter_is_skipped_with_what_it_needs():
    class Plain(Machine):
        def installed(self, package):
            return None if package in spec.ADAPTERS.values() else "1"

    found = expand(Plain(), models=["moe-ffn"])
    assert {arm.cases[0].variant for arm in found.comparisons[0].arms} == set(spec.STAND_INS)
    reasons = {item.case.variant: item.reason for item in found.skipped}
    assert "Ascend" in reasons["npu"] and "Moore Threads" in reasons["musa"]


def test_without_a_compiler_no_stand_in(monkeypatch):
    monkeypatch.setattr(spec.native_build, "find_compiler", lambda: None)
    found = expand(variants=["stand-in-core"])
    assert not found.comparisons and {"g++" in item.reason for item in found.skipped} == {True}


@pytest.mark.parametrize(
    ("options", "says"),
    [({"models": ["moe-fnn"]}, "moe-ffn"), ({"variants": []}, "empty"), ({"variant": ["npu"]}, "variants")],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(FrugalbenchError, match=says):
        expand(**options)


def test_it_runs_beside_the_processor_only():
    with pytest.raises(FrugalbenchError, match="cpu"):
        expand(device="cuda")
