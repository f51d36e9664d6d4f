"""Copies of a matrix: distinct bytes, the same everywhere, quantised once; a damaged file is made again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.workloads.layers import quant_values as values
from frugalbench.workloads.layers.quant_copies import Copies, read_parts, write_parts

N, K = 128, 64


def source(copy):
    return values.weights(5, copy, N, K)


def quantise(weights_NK):
    """Codes, a scale per output, packed blocks of 64 outputs, and one value for all."""
    codes = np.rint(weights_NK * 100).astype(np.int8)
    scales = np.abs(weights_NK).max(axis=1)
    return codes, scales, codes.reshape(2, -1), np.float32([3.0])


@given(copy=st.integers(0, 500), n=st.sampled_from([32, 64, 96, 128, 4096]))
def test_every_copy_has_a_place_of_its_own(copy, n):
    number, shift = values.place(copy, n)
    assert 0 <= shift < n
    assert shift % values.ROW_BLOCK == 0
    assert number % values.DISTINCT_INPUTS == copy % values.DISTINCT_INPUTS
    assert values.place(values.unmoved(number, n), n) == (number, 0)


@given(first=st.integers(0, 200), second=st.integers(0, 200), n=st.sampled_from([32, 64, 96, 128, 192]))
def test_no_two_copies_share_a_place(first, second, n):
    assert (values.place(first, n) == values.place(second, n)) == (first == second)


def test_moved_copies_have_other_bytes_in_every_row():
    assert values.place(4, N) == (0, 64)
    assert not (source(0) == source(4)).all(axis=1).any()
    assert np.array_equal(source(4)[64:], source(0)[:64])
    assert not np.array_equal(source(8), source(0))


@pytest.mark.parametrize("copy", [0, 3, 5, 8, 13])
def test_parts_of_a_copy_are_those_of_its_weights(copy):
    found = Copies(source, N, quantise).parts(copy)
    for part, expected in zip(found, quantise(source(copy)), strict=True):
        assert np.array_equal(part, expected)


def test_each_drawn_matrix_is_quantised_once_and_kept(tmp_path):
    made = []

    def counted(weights_NK):
        made.append(1)
        return quantise(weights_NK)

    first = Copies(source, N, counted, tmp_path / "kept")
    for copy in range(8):
        first.parts(copy)
    assert len(made) == 4
    assert not first.cached
    again = Copies(source, N, counted, tmp_path / "kept")
    assert np.array_equal(again.parts(6)[0], first.parts(6)[0])
    assert len(made) == 4
    assert again.cached
    (artefact,) = again.artefacts("codes")
    assert artefact.cached
    assert 0 < artefact.build_s <= first.build_s
    again.release()
    assert np.array_equal(again.parts(6)[0], first.parts(6)[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(damage, tmp_path):
    Copies(source, N, quantise, tmp_path).parts(0)
    file = tmp_path / "drawn0.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": bytes(content[:100]), "empty": b""}[damage])
    copies = Copies(source, N, quantise, tmp_path)
    assert np.array_equal(copies.parts(0)[0], quantise(source(0))[0])
    assert not copies.cached


def test_a_file_brings_back_what_was_written(tmp_path):
    parts = (np.arange(6, dtype=np.uint8).reshape(2, 3), np.float32([[1.5]]))
    write_parts(tmp_path / "a" / "b.npz", parts, 2.5)
    found, build_s = read_parts(tmp_path / "a" / "b.npz")
    assert build_s == 2.5
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(found, parts, strict=True))
    assert read_parts(tmp_path / "nothing.npz") is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.npz"]
