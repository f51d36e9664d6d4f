"""Sizes and values for declared inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.schema import FrugalbenchError
from frugalbench.specs.graph_inputs import MOST_FEED_BYTES, bind, describe_inputs, guessed, make_feed, role_of
from frugalbench.specs.graph_tolerance import FLOOR, stored_format, tolerance

IDS = {"name": "input_ids", "dtype": "int64", "shape": ["batch_size", "sequence_length"], "below": 50}
MASK = {"name": "attention_mask", "dtype": "int64", "shape": ["batch_size", "total_sequence_length"], "below": None}
PAST = {"name": "past_key", "dtype": "float32", "shape": ["batch_size", 2, "past_sequence_length", 8], "below": None}


def test_batches_and_lengths_by_name():
    points = bind([IDS], {}, "m")
    assert [(p.regime, p.sizes["batch_size"], p.sizes["sequence_length"]) for p in points] == [
        ("batch-1-seq-16", 1, 16), ("batch-1-seq-128", 1, 128), ("batch-8-seq-128", 8, 128),
    ]  # fmt: skip


def test_a_mask_over_a_cache_is_as_long_as_both():
    for point in bind([IDS, MASK, PAST], {}, "m"):
        sizes = point.sizes
        assert sizes["total_sequence_length"] == sizes["past_sequence_length"] + sizes["sequence_length"]


def test_given_sizes_hold_and_leave_no_choice():
    (point,) = bind([IDS], {"batch_size": 3, "sequence_length": 5}, "m")
    assert (point.regime, point.sizes) == ("as-declared", {"batch_size": 3, "sequence_length": 5})


def test_a_first_axis_without_a_telling_name_is_the_batch():
    item = {"name": "bytes", "dtype": "int32", "shape": ["unk__214", 2048], "below": None}
    assert role_of("unk__214", [item]) == "batch"
    assert guessed([{**item, "shape": [1, "unk__7"]}], {}) == ["unk__7"]


@pytest.mark.parametrize(
    "shape,dims,said",
    [
        (["n", 0], {}, "has a dimension of 0"),
        (["n", 4], {"n": 0}, "must lie between 1"),
        (["n", 4], {"m": 2}, "no such dimension; free dimensions are: n"),
        ([4], {"m": 2}, "it has no free dimension"),
        (["n", 2**20], {"n": 2**20}, "choose smaller sizes"),
    ],
)
def test_sizes_that_make_no_sense(shape, dims, said):
    with pytest.raises(FrugalbenchError, match=said):
        bind([{"name": "x", "dtype": "float32", "shape": shape, "below": None}], dims, "m.onnx")


def test_text_is_no_tensor_of_numbers():
    with pytest.raises(FrugalbenchError, match="--input"):
        bind([{"name": "x", "dtype": "object", "shape": ["n"], "below": None}], {}, "m.onnx")


@given(st.integers(1, 60), st.integers(0, 5), st.sampled_from(["int32", "int64", "uint8"]))
def test_ids_lie_below_their_table(below, index, dtype):
    inputs = describe_inputs([{**IDS, "below": below, "dtype": dtype}], {"batch_size": 2, "sequence_length": 9})
    feed = make_feed(inputs, 1, index)["input_ids"]
    assert feed.shape == (2, 9)
    assert feed.dtype == dtype
    assert feed.min() >= 0
    assert feed.max() < below


def test_feeds_repeat_and_differ_by_index_and_masks_are_ones():
    inputs = describe_inputs([IDS, MASK, PAST], bind([IDS, MASK, PAST], {}, "m")[0].sizes)
    first, again, other = make_feed(inputs, 1), make_feed(inputs, 1), make_feed(inputs, 1, 1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["past_key"], other["past_key"])
    assert first["attention_mask"].min() == first["attention_mask"].max() == 1
    assert sum(value.nbytes for value in first.values()) < MOST_FEED_BYTES


@given(st.integers(1, 10_000), st.integers(1, 200))
def test_tolerance_grows_with_length_and_depth_and_never_lets_a_percent_pass_in_float32(reduction, depth):
    here = tolerance("float32", reduction, depth)
    assert FLOOR <= here <= tolerance("float32", reduction + 1, depth + 1)
    assert here < 1e-2
    assert tolerance("int8", reduction, depth) > here


def test_format_between_layers():
    stored = {"float": {"values": 10, "bytes": 40}, "float16": {"values": 90, "bytes": 180}}
    assert stored_format(stored, rounds_activations=False) == "float16"
    assert stored_format(stored, rounds_activations=True) == "int8"
    assert stored_format({}, rounds_activations=False) == "float32"
