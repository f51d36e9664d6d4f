"""Training by several ranks: averages in float64, the training of one process where it must be, no process left."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench.run.worker import relative_error  # noqa: E402
from frugalbench.schema import FrugalbenchError  # noqa: E402
from frugalbench.specs import lm_quality  # noqa: E402
from frugalbench.specs import local_steps as spec  # noqa: E402
from frugalbench.specs.base import Settings  # noqa: E402
from frugalbench.workloads import local_steps as builder  # noqa: E402
from frugalbench.workloads.base import Context  # noqa: E402
from frugalbench.workloads.lm_quality import Model  # noqa: E402
from workloads.fake_machine import Machine  # noqa: E402

TINY = {"d_model": 16, "layers": 1, "heads": 2, "d_ff": 32, "seq": 16, "batch": 4, "steps": 8, "local_steps": [1, 4]}
PLAIN = {"inner": "sgd", "clip": 0.0, "learning_rate": 0.5}
SEED, REPLICATE = 7, 2


def expand(device="cpu", **options):
    return spec.expand(Settings("local_steps", device, 2, SEED, {**TINY, **options}, "c.toml"), Machine())


def arms(**options):
    (comparison,) = expand(**options).comparisons
    return {arm.cases[0].variant: arm for arm in comparison.arms}


def context(folder):
    return Context(seed=SEED, threads=2, device="cpu", cache_dir=folder, scratch_dir=folder, replicate=REPLICATE)


@contextmanager
def trained(folder, variant, **options) -> Iterator[builder.Replicas]:
    ranks = builder.load(arms(**options)[variant], context(folder))
    try:
        yield ranks
    finally:
        ranks.close()


def alone(**options) -> np.ndarray:
    """Weights after plain gradient descent of one process on whole batches."""
    params = arms(**options)["every-step"].cases[0].params
    model = Model(lm_quality.weights(SEED, REPLICATE, params, "dense"), params, "dense", "cpu")
    for step in range(1, params["steps"] + 1):
        rate = params["learning_rate"] * builder.tiny_lm.schedule(step, params["steps"])
        loss, _ = model.loss(torch.from_numpy(lm_quality.batch(SEED, REPLICATE, step, params)))
        gradients = torch.autograd.grad(loss, list(model.weights.values()))
        with torch.no_grad():
            for weight, gradient in zip(model.weights.values(), gradients, strict=True):
                weight -= rate * gradient
    return np.concatenate([weight.detach().numpy().ravel() for weight in model.weights.values()])


def assert_same_training(found):
    start = lm_quality.weights(SEED, REPLICATE, arms()["every-step"].cases[0].params, "dense")
    begun = np.concatenate([weight.ravel() for weight in start.values()])
    expected = alone(**PLAIN)
    assert np.abs(expected - begun).max() > 1e-2
    assert np.abs(found.numpy() - expected).max() < 1e-5 * np.abs(expected - begun).max() + 4e-7


def assert_checked(ranks, folder):
    """Exchanges are their definition, and not another one."""
    case, bound = ranks.told.case, ranks.bind(ranks.told.case)
    bound.call(0)
    reference = {name: array[0] for name, array in builder.reference(case, context(folder)).items()}
    assert relative_error(bound.output(0), reference) < 1e-5 < case.tolerance
    other = builder.reference(_with(case, outer_momentum=0.1, outer_learning_rate=0.7), context(folder))
    changed = relative_error(bound.output(0), {"exchanged": other["exchanged"][0]}) > case.tolerance
    assert changed == (case.variant != "every-step")
    return bound


def test_gradients_averaged_in_every_step_are_the_training_of_one_process(tmp_path):
    with trained(tmp_path, "every-step", **PLAIN) as ranks:
        assert_same_training(ranks.replica.weights())
        bound = assert_checked(ranks, tmp_path)
    assert [point["step"] for point in bound.details["curve"]] == list(range(1, 9))
    assert bound.details["exchanges"] == 8


def test_averaging_weights_after_every_plain_step_is_the_same_training(tmp_path):
    with trained(tmp_path, "average-h1", **PLAIN) as ranks:
        assert_same_training(ranks.replica.weights())


def test_local_steps_learn_and_what_went_wrong_in_training_fails(tmp_path):
    with trained(tmp_path, "diloco-h4", steps=16) as ranks:
        bound = assert_checked(ranks, tmp_path)
        curve, followers = bound.details["curve"], ranks.pids
        assert [point["step"] for point in curve] == [4, 8, 12, 16]
        assert curve[-1]["token"] == 16 * 4 * 16
        assert curve[-1]["flop"] == 16 * lm_quality.cost(ranks.told.case.params, "dense").flop
        assert bound.facts["final_loss"].value == curve[-1]["loss"] < curve[0]["loss"]
        assert ranks.replica.apart == 0.0
        ranks.replica.apart = 1e-7
        with pytest.raises(RuntimeError, match="1e-07 apart after the last exchange"):
            ranks._check()
        ranks.replica.curve[0]["loss"] = float("nan")
        with pytest.raises(RuntimeError, match="training diverged: the loss is nan after 4 steps"):
            ranks._check()
    assert not any(map(psutil.pid_exists, followers))


def _with(case, **params):
    return msgspec.structs.replace(case, params={**case.params, **params})


def _outer(momentum):
    return {"outer_learning_rate": 0.7, "outer_momentum": momentum}


def test_momentum_looks_ahead_as_written_in_the_paper():
    """By hand: from 0 towards 1, differences -1 and 0.05 with rate 0.7 and momentum 0.5."""
    assert builder._outer64(np.zeros(1), np.ones(1), _outer(0.5)) == pytest.approx(1.05 - 0.7 * (0.05 - 0.5 * 0.45))


def test_bytes_and_arms_by_formula():
    found = arms(replicas=2)
    assert list(found) == ["every-step", "diloco-h1", "diloco-h4", "average-h1", "average-h4"]
    params = {name: arm.cases[0].params for name, arm in found.items()}
    sizes = sum(weight.size for weight in lm_quality.weights(1, 1, params["every-step"], "dense").values())
    assert spec.weights(params["every-step"]) == sizes
    assert spec.exchanged_bytes(params["every-step"]) == 8 * 4 * sizes
    assert spec.exchanged_bytes(params["diloco-h4"]) == 2 * 4 * sizes
    assert "outer_momentum" not in params["every-step"]
    assert (params["average-h4"]["outer_learning_rate"], params["average-h4"]["outer_momentum"]) == (1.0, 0.0)
    four = msgspec.json.decode(msgspec.json.encode({**params["diloco-h4"], "replicas": 4}))
    assert spec.exchanged_bytes(four) == 2 * 1.5 * 4 * sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": [3]}, "multiple of every 'local_steps', and is not of 3"),
        ({"local_steps": []}, "distinct positive"),
        ({"replicas": 1}, "'replicas' must be 2 to 8"),
        ({"batch": 5}, "'replicas' 2 must divide 'batch' 5"),
        ({"outer": ["dilocos"]}, "did you mean 'diloco'"),
        ({"inner": "adam"}, "did you mean 'adamw'"),
        ({"outer_momentum": 1.0}, "outer_momentum"),
        ({"learning_rate": 0.0}, "'learning_rate' lies between 0 and 1"),
        ({"seq": 10_000_000}, "longer than the text"),
    ],
)
def test_what_no_training_can_have_is_refused(options, message):
    with pytest.raises(FrugalbenchError, match=message):
        expand(**options)


def test_cases_left_out_say_why():
    assert "run on the CPU" in expand(device="cuda").skipped[0].reason
    assert "need a core each" in expand(replicas=4).skipped[0].reason
