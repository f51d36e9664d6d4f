"""Serving of a mixture: laws, and clusters without what it needs."""

import pytest

from frugalbench.cluster import serving
from frugalbench.cluster.topology import load
from frugalbench.schema import FrugalbenchError

CLOUD = load("cloudmatrix384")


def values(**changes: float) -> dict[str, float]:
    return {name: item.value for name, item in serving.inputs(CLOUD).items()} | changes


def test_a_longer_wait_lets_more_tokens_through_until_memory_is_full() -> None:
    rates = [serving.decode_token_per_s(CLOUD, limit_s, values()) for limit_s in (0.03, 0.05, 0.1, 10.0, 20.0)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(rates[-2])


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("rank.memory_bytes_per_s", 0.5),
        ("rank.product_flop_per_s", 0.5),
        ("rank.scaleup_unidirectional_bytes_per_s", 0.2),
        ("cloudmatrix384.software", 1.2),
        ("experts.imbalance", 1.2),
        ("serving.accepted", 0.5),
    ],
)
def test_every_input_costs_what_it_should(name: str, factor: float) -> None:
    worse = values() | {name: values()[name] * factor}
    assert serving.decode_token_per_s(CLOUD, 0.05, worse) < serving.decode_token_per_s(CLOUD, 0.05, values())
    assert serving.prefill_token_per_s(CLOUD, worse) <= serving.prefill_token_per_s(CLOUD, values())


def test_the_batch_is_what_fits_beside_the_weights() -> None:
    """One of 256 experts a rank in 58 layers, and 17.1 billion other weights, a byte each, in 64 GB."""
    weights = 671.03e9 - 58 * 256 * 3 * 7168 * 2048 + 58 * 3 * 7168 * 2048
    assert serving.room(CLOUD, values()) == pytest.approx((64e9 - weights) / (4096 * 70272), rel=0.01)


def test_what_cannot_be_served_is_named() -> None:
    with pytest.raises(FrugalbenchError, match=r"uniform: serving needs a \[serving\] section"):
        serving.inputs(load("uniform"))
    with pytest.raises(FrugalbenchError, match="allow more time"):
        serving.decode_token_per_s(CLOUD, 0.001, values())
