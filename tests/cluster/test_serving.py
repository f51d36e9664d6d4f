"""Serving of a mixture: laws, layouts, and clusters without what it needs."""

from pathlib import Path

import pytest

from frugalbench import paths
from frugalbench.cluster import serving
from frugalbench.cluster.published.points import published
from frugalbench.cluster.topology import load
from frugalbench.schema import FrugalbenchError

CLOUD = load("cloudmatrix384")
EXPERT = 3 * 7168 * 2048


def values(phase: serving.Phase = "decode", **changes: float) -> dict[str, float]:
    return {name: item.value for name, item in serving.inputs(CLOUD, phase).items()} | changes


def test_a_longer_wait_lets_more_tokens_through_until_memory_is_full() -> None:
    rates = [serving.decode_token_per_s(CLOUD, limit_s, values()) for limit_s in (0.03, 0.05, 0.1, 10.0, 20.0)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(rates[-2])


@pytest.mark.parametrize(
    ("phase", "name", "factor"),
    [
        ("decode", "rank.memory_bytes_per_s", 0.5),
        ("decode", "rank.product_flop_per_s", 0.5),
        ("prefill", "rank.product_flop_per_s", 0.5),
        ("decode", "rank.scaleup_unidirectional_bytes_per_s", 0.2),
        ("prefill", "rank.scaleup_unidirectional_bytes_per_s", 0.2),
        ("decode", "cloudmatrix384.software", 1.2),
        ("decode", "serving.imbalance", 1.2),
        ("prefill", "serving.imbalance", 1.2),
        ("decode", "decode.accepted", 0.5),
        ("decode", "decode.gain", 0.5),
        ("prefill", "prefill.gain", 0.5),
        ("decode", "decode.start_share", 2.0),
    ],
)
def test_every_input_costs_what_it_should(phase: serving.Phase, name: str, factor: float) -> None:
    def rate(given: dict[str, float]) -> float:
        if phase == "prefill":
            return serving.prefill_token_per_s(CLOUD, given)
        return serving.decode_token_per_s(CLOUD, 0.05, given)

    worse = values(phase) | {name: values(phase)[name] * factor}
    assert rate(worse) < rate(values(phase))


def test_every_input_of_both_phases_has_a_source() -> None:
    for phase in ("decode", "prefill"):
        named = {name.removeprefix("cloudmatrix384.") for name in serving.inputs(CLOUD, phase)}
        assert {name for name in named if not name.startswith("rank.")} <= serving.SOURCES.keys()


def test_the_batch_is_what_fits_beside_the_weights() -> None:
    """One expert a rank in 58 layers, the shared one elsewhere, and all other weights, a byte each, in 64 GB."""
    weights = 671.03e9 - 58 * 257 * EXPERT + 58 * EXPERT
    assert serving.room(CLOUD, values()) == pytest.approx((64e9 - weights) / (4096 * 70272), rel=0.01)


def test_a_step_of_few_sequences_waits_for_the_weights() -> None:
    """Without exchange and software a step of next to nothing reads every weight once, the head twice.

    ``58 + 1`` layers of one expert; attention, router and head as the published shape has them, one layer drafted.
    """
    given = values(**{"rank.start_s": 0.0, "rank.doubling_s": 0.0, "cloudmatrix384.software": 1.0, "decode.gain": 0.0})
    step_s = serving.decode_step_s(CLOUD, given)(1e-9)
    attention = 187.1e6 * 62
    met = attention + 3 * 3 * 7168 * 18432 + 2 * 7168 * 129280 + 2 * 7168**2 + 58 * 7168 * 256
    assert step_s == pytest.approx((met + 59 * EXPERT) / (1600e9 * 0.841), rel=0.005)


def test_attention_cut_by_heads_gathers_latents_and_swaps_outputs(tmp_path: Path) -> None:
    """31 ranks' latents of ``1536 + 512 + 64`` values and 31/32 of 128 heads of 128, two bytes each, in 61 layers."""
    text = (paths.shipped("configs") / "clusters" / "cloudmatrix384.toml").read_text()
    whole = tmp_path / "whole.toml"
    whole.write_text(text.replace("prefill_split = 32", "prefill_split = 1"))
    given = values("prefill", **{"prefill.gain": 0.0, "cloudmatrix384.software": 1.0})
    per_token = [384 * 2 / serving.prefill_token_per_s(found, given) for found in (CLOUD, load(whole))]
    swapped = 61 * 2 * 31 * (2112 + 128 * 128 / 32)
    assert per_token[0] - per_token[1] == pytest.approx(swapped / (196e9 * 0.69), rel=1e-6)


def test_perfect_balance_gains_what_was_published() -> None:
    found = {point.id: point.value for point in published()}
    ratio = serving.prefill_token_per_s(CLOUD, values("prefill", **{"serving.imbalance": 1.0}))
    ratio /= serving.prefill_token_per_s(CLOUD, values("prefill"))
    assert ratio == pytest.approx(found["P0431"] / found["P0432"], rel=1e-3)


def test_what_cannot_be_served_is_named() -> None:
    with pytest.raises(FrugalbenchError, match=r"uniform: serving needs a \[serving\] section"):
        serving.inputs(load("uniform"), "decode")
    with pytest.raises(FrugalbenchError, match="allow more time"):
        serving.decode_token_per_s(CLOUD, 0.001, values())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("shared_ranks = 320", "between 0 and 319"),
        ("shared_ranks = -1", "between 0"),
        ("prefill_split = 0", "at least 1"),
    ],
)
def test_layouts_that_cannot_be_are_named(tmp_path: Path, line: str, words: str) -> None:
    text = (paths.shipped("configs") / "clusters" / "cloudmatrix384.toml").read_text()
    name = line.split(" = ")[0]
    path = tmp_path / "other.toml"
    path.write_text("\n".join(line if old.startswith(f"{name} =") else old for old in text.splitlines()))
    with pytest.raises(FrugalbenchError, match=words):
        load(path)
