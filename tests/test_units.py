"""Numbers as people read them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench import units

settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "–"), (0, "0"), (1.2345, "1.23"), (123.45, "123"), (0.01234, "0.0123")],
)
def test_significant(value: float | None, text: str) -> None:
    assert units.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5e9, "1.50 GFLOP/s"),
        (2e15, "2.00 PFLOP/s"),
        (999.0, "999 FLOP/s"),
        (0, "0 FLOP/s"),
        (0.0025, "2.50 mFLOP/s"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert units.si(value, "FLOP/s") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 B"), (1, "1.00 B"), (1536, "1.50 KiB"), (2**20, "1.00 MiB"), (5 * 2**30, "5.00 GiB")],
)
def test_byte_size(value: float | None, text: str) -> None:
    assert units.byte_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0125, "12.5 ms"), (3e-7, "300 ns"), (61.0, "61.0 s"), (5400, "5400 s")]
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


def test_share_and_interval() -> None:
    assert units.share(0.257) == "26%"
    assert units.share(None) == "–"
    assert units.interval(None, None) == "–"
    assert units.interval(1.0, None) == "[1.00, –]"
    assert units.interval(0.95, 1.05) == "[0.950, 1.05]"


@given(st.floats(1e-9, 1e15), st.integers(2, 5))
def test_significant_keeps_its_digits(value: float, digits: int) -> None:
    text = units.significant(value, digits)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits) * 1.001, abs=5e-13)


@given(st.floats(1e-9, 1e17))
def test_si_reads_back(value: float) -> None:
    number, unit = units.si(value, "B").split(" ")
    scale = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1, "m": 1e-3, "µ": 1e-6, "n": 1e-9}[unit[:-1]]
    assert float(number) * scale == pytest.approx(value, rel=0.0051)


@given(st.floats(0.001, 1000), st.floats(-1e-3, 1e-3))
def test_a_number_never_looks_like_a_limit_that_it_misses(limit, off):
    value = limit * (1 + off)
    if not math.isclose(value, limit, rel_tol=1e-9):
        assert units.against(value, limit) != units.significant(limit)
    assert units.against(limit, limit) == units.significant(limit)


def test_as_many_digits_as_the_side_of_the_limit_takes():
    assert units.against(0.3203, 0.32) == "0.3203"
    assert units.against(0.5, 0.32) == "0.500"
    assert units.against(None, 0.32) == "–"
