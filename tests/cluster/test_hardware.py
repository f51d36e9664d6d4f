"""Facts: sourced, typed, and usable for a verdict only when they were read."""

import pytest

from frugalbench.cluster.hardware import Figure, Hardware, Price, PricePair, Prices, convert, hardware, names, prices
from frugalbench.schema import FrugalbenchError

UNITS = ("_flop_per_s", "_op_per_s", "_bytes_per_s", "_bytes", "_w")


def test_every_figure_has_a_source_a_unit_and_a_positive_value() -> None:
    assert len(names()) == 32
    for item in map(hardware, names()):
        assert item.kind != "system" or item.devices > 1
        for figure in item.figure:
            assert figure.value > 0 and figure.source, (item.id, figure.name)
            assert figure.name.endswith(UNITS), (item.id, figure.name)
            assert "scaleup" not in figure.name or "directional" in figure.name
            assert "flop" not in figure.name or "dense" in figure.name


def test_unknown_stays_unknown() -> None:
    assert hardware("atlas-950-superpod").deciding("system_power_w") is None
    assert hardware("mlu590").figure == ()
    with pytest.raises(FrugalbenchError, match=r"no figure 'system_power_w'.*did you mean"):
        hardware("atlas-950-superpod").require("system_power_w")


def test_conflicting_figures_are_both_kept_and_span_the_range() -> None:
    power = hardware("gb200-nvl72").require("system_power_w")
    assert (power.low, power.value, power.high) == (120e3, 132e3, 145e3)
    assert len(hardware("cloudmatrix-384").figures("bf16_dense_flop_per_s")) == 3


def test_recalled_figures_are_listed_and_refused() -> None:
    assert {f.name for f in hardware("ascend-910b").recalled()} >= {"int8_dense_op_per_s", "memory_bytes_per_s"}
    with pytest.raises(FrugalbenchError, match="recalled"):
        hardware("rtx-4090").deciding("bf16_dense_flop_per_s")


def test_a_recalled_figure_does_not_widen_a_read_one() -> None:
    read = Figure(name="tdp_w", value=100.0, provenance="read", source="page")
    recalled = Figure(name="tdp_w", value=500.0, provenance="recalled", source="memory")
    found = Hardware(id="x", name="x", kind="accelerator", figure=(recalled, read)).require("tdp_w")
    assert (found.low, found.high) == (100.0, 100.0)


def test_unknown_names_and_keys_get_the_nearest() -> None:
    with pytest.raises(FrugalbenchError, match="did you mean 'h100-sxm'"):
        hardware("h100-smx")
    with pytest.raises(FrugalbenchError, match=r"provenence.*did you mean 'provenance'"):
        figure = {"name": "tdp_w", "value": 1.0, "provenence": "read", "source": "s"}
        convert({"id": "x", "name": "x", "kind": "cpu", "figure": [figure]}, Hardware, "x.toml")


def test_price_pairs_resolve_in_one_unit_and_span_their_quotations() -> None:
    assert len({item.id for item in prices().price}) == len(prices().price) == 19
    band = prices().ratio("data centre 2026")
    assert (band.low, band.high) == (pytest.approx(0.03 / 0.15), pytest.approx(0.06 / 0.08))
    assert band.low < band.value < band.high
    assert all(prices().ratio(pair.name).low > 0 for pair in prices().pair)


def test_prices_in_different_currencies_are_not_divided() -> None:
    quoted = [Price(id=u, what="p", value=1.0, unit=u, when="2026", source="s") for u in ("EUR/kWh", "USD/kWh")]
    mixed = Prices(price=tuple(quoted), pair=(PricePair(name="m", theirs=("EUR/kWh",), baseline=("USD/kWh",)),))
    with pytest.raises(FrugalbenchError, match="mixes units"):
        mixed.ratio("m")
    with pytest.raises(FrugalbenchError, match="unknown pair"):
        mixed.ratio("n")
