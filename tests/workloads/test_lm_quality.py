"""The tiny language models: the definition in float64, learning, pairing by seed, the same text for all."""

import numpy as np
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.run import protocol  # noqa: E402
from frugalbench.run.worker import Session  # noqa: E402
from frugalbench.schema import FrugalbenchError  # noqa: E402
from frugalbench.specs import lm_quality as spec  # noqa: E402
from frugalbench.specs.base import Settings  # noqa: E402
from workloads.fake_machine import Machine  # noqa: E402

OPTIONS = {"d_model": 32, "layers": 2, "heads": 2, "seq": 24, "batch": 4, "steps": 24, "d_ff": 64, "experts": 4}


def arms(**options):
    (comparison,) = spec.expand(
        Settings("lm_quality", "cpu", 2, 7, {**OPTIONS, **options}, "c.toml"), Machine()
    ).comparisons
    return {arm.cases[0].variant: arm for arm in comparison.arms}


def session(variant, folder, replicate=1, **options):
    job = protocol.Job(
        arm=arms(**options)[variant], seed=7, replicate=replicate, threads=2, device="cpu", cache_dir=str(folder),
        scratch_dir=str(folder), start_s=0.0,
    )  # fmt: skip
    made = Session(job)
    made.paths = made.answer(protocol.Reference()).paths
    made.reply = made.answer(protocol.Load())
    assert made.reply.problems == {}
    return made


@pytest.mark.parametrize("variant", spec.VARIANTS)
def test_the_model_is_its_definition_and_learns(variant, tmp_path):
    made = session(variant, tmp_path)
    (name,) = made.paths
    checked = made.answer(protocol.Verify(name, made.paths[name], 60.0)).verification
    assert checked.passed and 0 < checked.error < 1e-4
    curve = made.reply.details[name]["curve"]
    assert curve[0]["loss"] > curve[-1]["loss"] + 0.5
    assert curve[0]["loss"] < np.log(256) + 0.7
    assert curve[-1]["flop"] == 24 * arms()[variant].cases[0].cost.flop
    assert made.reply.facts[name]["final_loss"].value == curve[-1]["loss"]


def test_a_replicate_is_repeatable_and_differs_from_the_next(tmp_path):
    losses = [
        [p["loss"] for p in next(iter(session("moe", tmp_path, number).reply.details.values()))["curve"]]
        for number in (1, 1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_both_variants_start_from_the_same_shared_weights_and_see_the_same_batches():
    params = arms()["dense"].cases[0].params
    dense, moe = (spec.weights(7, 3, params, variant) for variant in spec.VARIANTS)
    for name in ("embedding", "position", "head", "0.qkv", "1.merge"):
        assert np.array_equal(dense[name], moe[name])
    assert np.array_equal(spec.batch(7, 3, 5, params), spec.batch(7, 3, 5, params))
    assert not np.array_equal(spec.batch(7, 3, 5, params), spec.batch(7, 4, 5, params))


def test_active_parameters_are_equal_but_for_the_router():
    found = {name: arm.cases[0].cost for name, arm in arms().items()}
    assert found["moe"].active_parameters - found["dense"].active_parameters == 2 * 32 * 4
    assert found["moe"].parameters - found["dense"].parameters == 2 * (2 * 3 * 32 * 32 + 32 * 4)


def test_held_out_text_is_not_trained_on():
    training, held_out = spec.text()
    assert 0.03 < len(held_out) / len(training) < 0.3
    assert held_out[:2000] not in training


def test_flop_formula_against_a_counter(tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    made = session("dense", tmp_path)
    (bound,) = made.bound.values()
    with FlopCounterMode(display=False) as counter:
        bound.call(0)
    scores = 3 * 2 * 2 * 2 * 4 * 24 * 24 * 32  # the counter knows no fused attention on CPUs: 2 layers, 2 products
    assert counter.get_total_flops() == arms()["dense"].cases[0].cost.flop - scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "more than the 4 experts"),
        ({"heads": 3}, "must divide 'd_model'"),
        ({"top_k": 3}, "must divide 'd_ff'"),
        ({"steps": 0}, "'steps' must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"variants": ["sparse"]}, "unknown variant 'sparse'"),
        ({"seq": 10_000_000}, "longer than the text"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused(options, message):
    with pytest.raises(FrugalbenchError, match=message):
        arms(**options)


class Queue:
    """A device whose clock the host must not read while work is under way."""

    waits = 0

    def synchronize(self):
        Queue.waits += 1


def test_training_on_a_device_is_waited_for_warm_and_alone(tmp_path, monkeypatch):
    from frugalbench.backends.base import locked
    from frugalbench.workloads import device, lm_quality
    from frugalbench.workloads.base import Context

    events = []
    monkeypatch.setattr(device, "of", lambda _name: Queue())
    monkeypatch.setattr(Queue, "waits", 0)
    monkeypatch.setattr(lm_quality.time, "perf_counter", lambda: float(events.append(Queue.waits) or len(events)))
    held = []

    def noted(path):
        held.append(path)
        return locked(path)

    monkeypatch.setattr(lm_quality, "locked", noted)
    steps = []
    right = lm_quality.LoadedModel._gradients
    monkeypatch.setattr(lm_quality.LoadedModel, "_gradients", lambda self, batch: steps.append(1) or right(self, batch))
    model = lm_quality.load(arms()["moe"], Context(7, 2, "cpu", tmp_path, tmp_path, replicate=1))
    assert events == list(range(1, 2 * OPTIONS["steps"] + 1)), "a wait before each look at the clock"
    assert len(steps) == OPTIONS["steps"] + 1
    assert held == [tmp_path / "lm_quality.lock"]
    assert isinstance(model.bind(arms()["moe"].cases[0]).device, Queue)


def test_the_share_of_copies_is_that_of_counting():
    from frugalbench.workloads import lm_quality

    torch.manual_seed(0)
    x, router = torch.randn(64, 16), torch.randn(8, 16)
    odds = (x @ router.T).softmax(-1)
    share = torch.bincount(odds.topk(2).indices.flatten(), minlength=8) / 128
    assert torch.allclose(lm_quality._balance(x, router, 2), 8 * (share * odds.mean(0)).sum())
