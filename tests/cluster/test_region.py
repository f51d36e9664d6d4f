"""The region of net.cross_region: laws of the exchange, points recomputed by hand, and what the model refuses."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.cluster import region, wan
from frugalbench.schema import FrugalbenchError

SITES = region.Sites(cluster="uniform", model="llama3.1-8b", devices=128)
EXCHANGES = st.builds(
    wan.Exchange,
    parameters=st.floats(1e8, 1e12),
    layers=st.integers(1, 128),
    step_s=st.floats(1e-2, 1e2),
    bits=st.sampled_from([4.0, 8.0, 16.0]),
    every=st.integers(1, 1000),
    overlap_steps=st.integers(0, 3),
    streaming=st.booleans(),
    latency_s=st.floats(0.0, 0.1),
)


def with_(scheme: wan.Exchange, **changes: object) -> wan.Exchange:
    return wan.Exchange(**{name: getattr(scheme, name) for name in scheme.__struct_fields__} | changes)  # type: ignore[arg-type]


@given(EXCHANGES, st.floats(1e6, 1e13))
def test_bandwidth_fewer_exchanges_fewer_bits_and_less_delay_never_cost(scheme: wan.Exchange, rate: float) -> None:
    kept = wan.utilisation(scheme, rate)
    assert 0 < kept <= 1
    for better in (
        wan.utilisation(scheme, 2 * rate),
        wan.utilisation(with_(scheme, every=scheme.every + 1), rate),
        wan.utilisation(with_(scheme, bits=scheme.bits / 2), rate),
        wan.utilisation(with_(scheme, latency_s=0.0), rate),
        wan.utilisation(with_(scheme, overlap_steps=scheme.overlap_steps + 1), rate),
    ):
        assert better >= kept - 1e-12


@given(EXCHANGES, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_the_least_bandwidth_is_where_the_share_is_reached(scheme: wan.Exchange, share: float) -> None:
    least = wan.bit_per_s_for(scheme, share)
    if math.isinf(least):
        assert wan.utilisation(scheme, 1e24) < share
        return
    assert wan.utilisation(scheme, least) >= share
    assert least <= 1.1e3 or wan.utilisation(scheme, least * 0.999) < share


def test_light_takes_fifteen_milliseconds_there_and_back() -> None:
    trip = region.judged(SITES, region.Way(every=1), 1e10)["round_trip_s"]
    assert trip.low == pytest.approx(0.015, rel=1e-3)
    assert trip.value == pytest.approx(2 * 1.2 * 1.5e6 * 1.468 / 299_792_458)


def test_a_point_is_what_its_inputs_give() -> None:
    """Every step, no overlap: what does not hide behind the backward pass, by hand."""
    facts = region.judged(SITES, region.Way(every=1), 1e9)
    step_s, trip_s, bits = facts["step_s"].value, facts["round_trip_s"].value, facts["exchanged_bytes"].value * 8
    exposed = trip_s + bits / 1e9 - 2 / 3 * step_s * 31 / 32
    assert exposed > 0
    assert facts["ratio"].value == pytest.approx(step_s / (step_s + exposed))
    assert facts["ratio"].low < facts["ratio"].value < facts["ratio"].high


def test_the_least_bandwidth_divides_the_points_of_the_grid() -> None:
    grid = region.grid(SITES)
    columns = grid["columns"]
    assert len({len(values) for values in columns.values()}) == 1 and columns.keys() == grid["units"].keys()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    assert {row["kept"] >= grid["threshold"] for row in rows} == {True, False}
    for row in rows:
        way = region.Way(every=row["local_steps"], overlap=row["overlap"], bits=row["bits_per_parameter"])
        least = region.least_bit_per_s(SITES, way)
        assert (row["kept"] >= grid["threshold"]) == (row["wan_bit_per_s"] >= least.value)
        assert (row["kept_low"] >= grid["threshold"]) == (row["wan_bit_per_s"] >= least.high)


def test_ways_outside_the_closed_form_are_refused() -> None:
    quantised = region.Way(every=1, bits=4)
    crowded = region.Way(every=4, overlap="streamed, overlapped")
    for way in (quantised, crowded):
        assert region.kept(SITES, way, 1e10) is None
        with pytest.raises(FrugalbenchError, match="not in the closed form"):
            region.judged(SITES, way, 1e10)
    assert region.covered(SITES, region.Way(every=100, overlap="streamed, overlapped", bits=4))


def test_streaming_and_fewer_bits_need_less_bandwidth() -> None:
    plain, streamed, narrow = (
        region.least_bit_per_s(SITES, region.Way(every=100, overlap=overlap, bits=bits)).value
        for overlap, bits in (("no overlap", 16), ("streamed, overlapped", 16), ("streamed, overlapped", 4))
    )
    assert narrow == pytest.approx(streamed / 4, rel=0.05)
    assert streamed < plain / 2
