"""The peak kernels: every path that this processor has, against sums worked out without them."""

import numpy as np
import pytest

from frugalbench.backends.native import Isa, Operation, aligned, peaks
from frugalbench.specs.quant_formats import cpu_flags

PATHS = tuple(Isa)
FMA, MAC = 384 * 5, 1024 * 7
HAS_BF16 = (Isa.AUTO, Isa.AVX512_BF16) if "avx512_bf16" in cpu_flags() and peaks().which(Operation.BF16) else ()


@pytest.fixture(params=PATHS, ids=lambda isa: isa.name.lower())
def isa(request):
    if peaks().which(Operation.FMA, request.param) is None:
        pytest.skip(f"this processor has no {request.param.name}")
    return request.param


def random_words(size_bytes):
    words = aligned(size_bytes)
    words[:] = np.random.default_rng(size_bytes).integers(1, 2**64, words.size, dtype=np.uint64)
    return words


def emulated_fma(pairs, chains):
    """The recurrence in float32, step by step."""
    x = start = np.arange(chains, dtype=np.float32)
    for _ in range(pairs):
        x = x * np.float32(2) + np.float32(2)
        x = x * np.float32(0.5) + np.float32(1)
    return float((x - start).sum(dtype=np.float64))


def emulated_int8(macs):
    left = np.resize(np.array([1, 2, 3, 4], dtype=np.uint8), macs).astype(np.int64)
    right = np.resize(np.array([5, -6, 7, -8], dtype=np.int8), macs).astype(np.int64)
    return int((left * right).sum()) % 2**32


@pytest.mark.parametrize("threads", [1, 3])
def test_fma(isa, threads):
    assert peaks().fma_fp32(threads, FMA, isa) == threads * emulated_fma(FMA // 2 // 96, 96)


def test_fma_across_restarts_stays_exact(isa):
    fma = 2 * 192 * (2**20 + 5)  # the second block of 192 chains is short
    assert peaks().fma_fp32(1, fma, isa) == fma


@pytest.mark.parametrize("threads", [1, 3])
def test_int8(isa, threads):
    assert peaks().mac_int8(threads, MAC, isa) == threads * emulated_int8(MAC) % 2**32


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("steps", [7, 2**20 + 5])
def test_bf16_adds_one_for_each_pair_of_products(isa, threads, steps):
    mac = 384 * steps  # more than 2**20 steps of 12 sums restart, or floats would lose ones
    if isa in HAS_BF16:
        assert peaks().mac_bf16(threads, mac, isa) == threads * mac / 2
        with pytest.raises(RuntimeError, match="size"):
            peaks().mac_bf16(threads, mac + 1, isa)
    else:
        with pytest.raises(RuntimeError, match="instruction set"):
            peaks().mac_bf16(threads, mac, isa)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lines", [1, 3, 4, 7, 64, 1031])
def test_read_sums_every_word_once(isa, threads, lines):
    words = random_words(64 * lines)
    assert peaks().read(threads, words, isa) == int(words.sum(dtype=np.uint64))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("lines", [1, 7, 1031])
def test_copy_moves_every_byte_and_no_more(isa, threads, lines):
    source, room = random_words(64 * lines), aligned(64 * (lines + 2))
    room[:] = 7
    target = room[8:-8]
    assert peaks().copy(threads, target, source, isa) == int(source.sum(dtype=np.uint64))
    assert np.array_equal(target, source)
    assert (room[:8] == 7).all() and (room[-8:] == 7).all()


def test_the_path_that_runs_is_named(isa):
    names = {op: peaks().which(op, isa) for op in Operation if op is not Operation.BF16}
    assert all(names.values())
    assert (peaks().which(Operation.BF16, isa) is not None) == (isa in HAS_BF16)
    if isa not in (Isa.AUTO, Isa.AVX512_VNNI, Isa.AVX512_BF16):
        assert set(names.values()) == {isa.name.lower()}


def test_a_path_of_another_processor_is_refused():
    foreign = [isa for isa in PATHS if peaks().which(Operation.FMA, isa) is None]
    assert foreign  # nothing has both NEON and AVX
    with pytest.raises(RuntimeError, match="instruction set"):
        peaks().fma_fp32(1, FMA, foreign[0])


def test_misfits_are_refused():
    with pytest.raises(RuntimeError, match="size"):
        peaks().fma_fp32(1, FMA + 1)
    with pytest.raises(RuntimeError, match="size"):
        peaks().mac_int8(1, MAC + 1)
    with pytest.raises(RuntimeError, match="size"):
        peaks().read(1, random_words(128)[1:9])
    with pytest.raises(RuntimeError, match="size"):
        peaks().fma_fp32(0, FMA)
    with pytest.raises(ValueError, match="equal sizes"):
        peaks().copy(1, random_words(64), random_words(128))
