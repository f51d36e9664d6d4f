"""Claims about clusters: cases, bounds recomputed from the data files, and no recalled figure in a ratio."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from frugalbench import paths
from frugalbench.analysis.claims import evaluate, load_claims
from frugalbench.analysis.judge import Evidence
from frugalbench.cluster import estimands, pool
from frugalbench.cluster.hardware import hardware, prices
from frugalbench.cluster.topology import load
from frugalbench.schema import FrugalbenchError, Outcome, Record, Status, Tier, decode_record, encode
from frugalbench.specs import cluster_model as spec
from frugalbench.specs.base import Settings

MACHINE: Any = SimpleNamespace(logical_cores=2)


@cache
def every() -> dict[tuple[str, str], Record]:
    return records()


def records(**options: Any) -> dict[tuple[str, str], Record]:
    settings = Settings(workload="cluster_model", device="cpu", threads=2, seed=0, options=options)
    found = [spec.model(case) for case in spec.expand(settings, MACHINE).modelled]
    return {(record.case.variant, record.case.regime): record for record in found}


def bounds(record: Record) -> tuple[float, float, float]:
    ratio = record.facts["ratio"]
    assert ratio.low is not None and ratio.value is not None and ratio.high is not None
    return ratio.low, ratio.value, ratio.high


def test_every_case_gives_a_modelled_ratio_with_bounds_and_source() -> None:
    found = every()
    judged = {"net.decay", "net.supernode", "net.supernode_power", "net.cheap_power", "net.trillion", "net.hetero"}
    assert {claim for claim, _ in found} == judged | {"net.memory_pool", "net.cross_region", spec.REGION}
    assert len({record.case.id for record in found.values()}) == len(found)
    for record in found.values():
        assert record.tier is Tier.MODELLED and record.comparison == "cluster_model" and record.replicate == 1
        published = {name for name, fact in record.facts.items() if fact.tier is not Tier.MODELLED}
        assert all(fact.source for fact in record.facts.values())
        assert all(name.startswith("published_") for name in published)
        assert decode_record(encode(record)) == record
        if record.status is Status.OK and record.case.variant != spec.REGION:
            low, value, high = bounds(record)
            assert 0 < low <= value <= high


def test_peak_ratio_from_the_published_figures() -> None:
    low, value, high = bounds(records(claims=["net.supernode"])["net.supernode", "peak bf16"])
    assert value == pytest.approx(384 * 752 / 180000)
    assert (low, high) == (pytest.approx(288.768 / 180), pytest.approx(307.2 / 180))


def test_power_per_flop_takes_opposite_ends_of_both_systems() -> None:
    low, _, high = bounds(records(claims=["net.supernode_power"])["net.supernode_power", "peak bf16"])
    assert low == pytest.approx(500 / 307.2 / (145 / 180))
    assert high == pytest.approx(600 / 288.768 / (120 / 180))


def test_joules_per_token_and_throughput_per_kilowatt_are_inverse() -> None:
    found = every()
    low, value, high = bounds(found["net.supernode", "modelled training per kW"])
    energy = bounds(found["net.supernode_power", "modelled training"])
    assert energy == pytest.approx((1 / high, 1 / value, 1 / low))


def test_electricity_breaks_even_where_cost_is_equal() -> None:
    found = records(claims=["net.cheap_power"])
    assert {regime for _, regime in found} == {pair.name for pair in prices().pair}
    for record in found.values():
        facts = record.facts
        assert bounds(record)[1] == pytest.approx(facts["price_ratio"].value / facts["break_even_price_ratio"].value)


def test_unpublished_power_is_a_skip_with_its_sensitivity() -> None:
    record = records(claims=["net.supernode_power"])["net.supernode_power", "peak bf16, announced"]
    assert record.status is Status.SKIPPED and "not published" in record.reason
    assert record.facts["ratio"].value is None and record.facts["ratio"].low is None
    assert record.facts["power_at_threshold_w"].value == pytest.approx(1.5 * 190e3 / 288e15 * 4481024e12)


def test_every_input_of_a_cluster_names_its_source_in_the_record() -> None:
    record = records(claims=["net.decay"], fragmented=["islands"])["net.decay", "weak scaling 8-8192, islands"]
    for name in ("islands", "uniform"):
        assert record.details["sources"][name].keys() == load(name).inputs().keys()
        assert all(record.details["sources"][name].values())
        assert "fitted" in record.details["sources"][name]["scale-up.efficiency"]


def test_a_mix_waits_for_its_slower_kind_unless_work_follows_speed() -> None:
    found = records(claims=["net.hetero"])
    assert len(found) == 4
    for name in ("mixed", "mixed-h800"):
        equal, proportional = (found["net.hetero", f"{split} split, {name}"] for split in spec.SPLITS)
        fast, slow = (equal.facts[f"part_{part}_flop_per_s"].value for part in (1, 2))
        assert bounds(equal)[1] == pytest.approx(2 * slow / (fast + slow), rel=0.03)
        assert bounds(equal)[1] < 0.95 < bounds(proportional)[1] < 1
        assert proportional.facts["rounding_loss"].high > 0 == equal.facts["rounding_loss"].high
        assert "bridge" in equal.details["assumptions"][name]
        whole = proportional.facts["mix_token_per_s"].value / proportional.facts["sum_token_per_s"].value
        assert whole == pytest.approx(bounds(proportional)[1])


def test_kinds_that_may_be_equally_fast_may_lose_nothing() -> None:
    """A100 and Ascend 910B overlap in speed, so the upper bound of an equal split is not at a corner."""
    found = records(claims=["net.hetero"])
    assert bounds(found["net.hetero", "equal split, mixed"])[2] == pytest.approx(1, abs=0.01)
    assert bounds(found["net.hetero", "equal split, mixed-h800"])[2] < 0.95


def test_a_remote_quarter_costs_what_its_link_says() -> None:
    found = records(claims=["net.memory_pool"])
    pooled = found["net.memory_pool", "decode, UnifiedBus pool"]
    low, value, high = bounds(pooled)
    assert value == pytest.approx(1 / 2692 / (0.25 / 294))
    assert high == pytest.approx(1 / 2692 / (0.25 / 302)) and low == pytest.approx(
        1 / 2692 / (0.75 / 2692 + 0.25 / 294)
    )
    needed = pooled.facts["link_at_threshold_bytes_per_s"].value
    assert pool._kept({"local": 2692e9, "remote": needed, "overlap": 1.0}) == pytest.approx(0.8)
    card = found["net.memory_pool", "decode, CXL card"]
    assert card.status is Status.SKIPPED and "CXL" in card.reason and card.facts["ratio"].value is None
    waits = card.facts["ratio_if_loads_wait"]
    assert (waits.low, waits.high) == (pytest.approx(0.5), pytest.approx(0.8))


def test_fragmentation_is_shown_beside_the_decay_of_the_uniform_cluster() -> None:
    for record in records(claims=["net.decay"]).values():
        uniform, fragmented = (record.facts[f"{role}_retained"].value for role in ("uniform", "fragmented"))
        assert fragmented < uniform < 1
        assert record.details["assumptions"]["uniform"]


@pytest.mark.parametrize(("rate", "holds"), [(0.05e9, True), (25e9, False)])
def test_a_trillion_dense_parameters_swing_with_what_joins_the_nodes(tmp_path: Path, rate: float, holds: bool) -> None:
    text = (paths.shipped("configs") / "clusters" / "fragmented.toml").read_text()
    stated = "value = 3.125e9, low = 1.5625e9, high = 6.25e9"
    assert stated in text
    path = tmp_path / "other.toml"
    path.write_text(text.replace(stated, f"value = {rate}").replace("last_devices = 8192", "last_devices = 1024"))
    whole = tmp_path / "whole.toml"
    uniform = (paths.shipped("configs") / "clusters" / "uniform.toml").read_text()
    whole.write_text(uniform.replace("last_devices = 8192", "last_devices = 1024"))
    (record,) = records(claims=["net.trillion"], fragmented=[str(path)], uniform=str(whole)).values()
    low, _, high = bounds(record)
    assert (high <= 0.5) if holds else (low > 0.5)
    assert set(record.details["cuts"]["uniform"]) == {"dense-1t", "kimi-k2"}


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_inference_holds_the_published_rate_and_names_its_tier(phase: str) -> None:
    found = every()
    record = found["net.supernode", f"modelled MoE {phase}"]
    published = record.facts["published_system_token_per_s_per_device"]
    own = record.facts["system_token_per_s_per_device"]
    assert published.tier is Tier.PUBLISHED and "2506.12708" in published.source
    assert own.low < published.value < own.high
    assert own.value == pytest.approx(published.value, rel=0.5)
    low, value, high = bounds(found["net.supernode", f"modelled MoE {phase} per kW"])
    energy = bounds(found["net.supernode_power", f"modelled MoE {phase}"])
    assert energy == pytest.approx((1 / high, 1 / value, 1 / low))
    assert set(record.details["shares"]) == {"cloudmatrix384", "nvl72"} and record.details["model_sources"]


@pytest.mark.parametrize(("devices", "holds"), [(48, False), (4096, True)])
def test_inference_swings_with_the_number_of_devices(tmp_path: Path, devices: int, holds: bool) -> None:
    text = (paths.shipped("configs") / "clusters" / "cloudmatrix384.toml").read_text()
    path = tmp_path / "other.toml"
    text = text.replace("expert_ranks = 320", "expert_ranks = 64")
    path.write_text(text.replace("last_devices = 384", f"last_devices = {devices}"))
    ratio = estimands.inference((str(path), "nvl72"), spec.SYSTEMS, "system", None)["ratio"]
    assert ratio.low > 1 if holds else ratio.high < 1


def test_every_judged_point_of_two_sites_gets_a_verdict_of_the_claims_second_rule() -> None:
    found = [record for (variant, _), record in every().items() if variant == "net.cross_region"]
    claim = next(item for item in load_claims() if item.id == "net.cross_region")
    rows = {v.regime: v for v in evaluate(Evidence(records=tuple(found), machine="here"), [claim])}
    emulated = {regime: rows.pop(regime) for regime in claim.regimes}
    assert {v.verdict for v in emulated.values()} == {Outcome.NOT_TESTED}
    assert {v.verdict for v in rows.values()} == {Outcome.SUPPORTED, Outcome.REFUTED, Outcome.INCONCLUSIVE}
    assert rows.keys() == {record.case.regime for record in found} and len(rows) == 24
    for record in found:
        low, _, high = bounds(record)
        least = record.facts["least_bit_per_s"]
        rate, settled = record.case.params["bit_per_s"], rows[record.case.regime]
        assert (low >= 0.95, high >= 0.95) == (rate >= least.high, rate >= least.low)
        assert settled.tier is Tier.MODELLED and (settled.verdict is Outcome.SUPPORTED) == (low >= 0.95)


def test_a_region_is_stored_whole_in_columns() -> None:
    found = [record for (variant, _), record in every().items() if variant == spec.REGION]
    assert [record.case.params["model"] for record in found] == [model for model, _ in spec.SITES]
    for record in found:
        grid, frontier = record.details["grid"], record.details["frontier"]
        for plane in (grid, frontier):
            assert plane["columns"].keys() == plane["units"].keys() and plane["value"] in plane["columns"]
            assert len({len(values) for values in plane["columns"].values()}) == 1
        assert len(grid["columns"]["kept"]) == 13 * len(frontier["columns"]["local_steps"])


@pytest.mark.parametrize("figure", [estimands.PEAK, estimands.POWER])
@pytest.mark.parametrize("system", spec.SYSTEMS)
def test_a_recalled_figure_cannot_enter_a_ratio(monkeypatch: pytest.MonkeyPatch, system: str, figure: str) -> None:
    real = hardware

    def doubted(name: str) -> Any:
        item = real(name)
        figures = [
            msgspec.structs.replace(f, provenance="recalled") if f.name == figure and name == system else f
            for f in item.figure
        ]
        return msgspec.structs.replace(item, figure=tuple(figures))

    monkeypatch.setattr(estimands, "hardware", doubted)
    with pytest.raises(FrugalbenchError, match="recalled"):
        estimands.joule_per_flop(*spec.SYSTEMS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unifrom": "uniform"}, "did you mean 'uniform'"),
        ({"claims": ["net.decoy"]}, "did you mean 'net.decay'"),
        ({"fragmented": ["fragmentd"]}, "did you mean 'fragmented'"),
        ({"uniform": 3}, "'uniform' must be a string"),
        ({"wan_gbit": []}, "'wan_gbit' must hold positive numbers"),
        ({"local_steps": [0]}, "'local_steps' must hold positive numbers"),
        ({"mixes": ["mixt"]}, "did you mean 'mixed'"),
        ({"mixes": ["slow-link"], "claims": ["net.hetero"]}, "needs two kinds of device"),
    ],
)
def test_bad_options_name_the_nearest(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FrugalbenchError, match=message):
        records(**options)
