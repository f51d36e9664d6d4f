"""Speed of the peak kernels: `pytest -m goal tests/benchmarks` holds paired ratios against their goals, by hand."""

import statistics
import time

import numpy as np
import pytest

from frugalbench.backends.native import Isa, Operation, aligned, peaks

FMA, MAC = 384 * 40_000, 1024 * 60_000
READ_BYTES = 64 * 2**20


@pytest.fixture(scope="module")
def words():
    words = aligned(READ_BYTES)
    words[:] = np.arange(1, words.size + 1, dtype=np.uint64)
    return words


def paired_ratio(slow, fast, rounds=7):
    """Median over rounds of time(slow) / time(fast), taken turn by turn."""
    return statistics.median(seconds(slow) / seconds(fast) for _ in range(rounds))


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_fma(benchmark):
    assert benchmark.pedantic(peaks().fma_fp32, args=(1, FMA), rounds=5, warmup_rounds=1) == FMA


def test_read(benchmark, words):
    expected = int(words.sum(dtype=np.uint64))
    assert benchmark.pedantic(peaks().read, args=(1, words), rounds=5, warmup_rounds=1) == expected


@pytest.mark.goal
@pytest.mark.skipif(peaks().which(Operation.FMA, Isa.AVX2) is None, reason="no AVX2 to compare with")
def test_vectors_pay():
    native = peaks()
    assert paired_ratio(lambda: native.fma_fp32(1, FMA, Isa.PORTABLE), lambda: native.fma_fp32(1, FMA)) > 1.5
    assert paired_ratio(lambda: native.mac_int8(1, MAC, Isa.PORTABLE), lambda: native.mac_int8(1, MAC)) > 2.0


@pytest.mark.goal
def test_int8_does_more_than_fp32():
    native = peaks()
    per_fma = paired_ratio(lambda: native.fma_fp32(1, FMA), lambda: native.mac_int8(1, FMA // 384 * 1024))
    assert per_fma * 1024 / 384 > 1.3  # multiply-adds per second, int8 over fp32


@pytest.mark.goal
def test_own_read_is_no_slower_than_a_library_sum(words):
    native = peaks()
    assert paired_ratio(lambda: words.sum(dtype=np.uint64), lambda: native.read(1, words)) > 0.85


@pytest.mark.goal
def test_a_call_costs_little():
    native = peaks()
    assert paired_ratio(lambda: native.fma_fp32(1, FMA), lambda: native.fma_fp32(1, 0)) > 20
