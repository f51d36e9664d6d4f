"""What the arms store: bytes by formula, and what no format can hold."""

import pytest

from frugalbench.specs.decode_formats import (
    FORMATS,
    LLAMA,
    MARGIN,
    MEASURED_LAYERS,
    gguf_types,
    misfit,
    packed_bytes,
    read_bytes,
    stored_bytes,
)
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.shapes import load_shapes

QWEN = DecoderShape.of_model(load_shapes()["qwen3-0.6b"], 0, 0)


@pytest.mark.parametrize(
    ("variant", "bits"),
    [
        ("transformers-fp32", 32), ("native-fp32", 32), ("transformers-bf16", 16), ("llama-f16", 16),
        ("llama-q8_0", 8.5), ("native-w8a8", 8.03), ("native-w4a8", 4.53), ("llama-q4_0", 4.5), ("llama-q4_k", 5.25),
        ("transformers-int8-dynamic", 16.36),
    ],
)  # fmt: skip
def test_bits_per_weight(variant, bits):
    assert stored_bytes(FORMATS[variant], QWEN) * 8 / QWEN.parameters == pytest.approx(bits, rel=2e-3)


def test_a_float_model_is_its_weights():
    assert stored_bytes(FORMATS["transformers-fp32"], QWEN) == 4 * QWEN.parameters
    assert stored_bytes(FORMATS["transformers-bf16"], QWEN) == 2 * QWEN.parameters
    assert stored_bytes(FORMATS["native-fp32"], QWEN) == 4 * QWEN.parameters


def test_packed_matrices_are_filled_up_to_whole_panels_and_blocks():
    assert packed_bytes(8, 16, 128) == 16 * 128 + 64
    assert packed_bytes(8, 17, 129) == 2 * (2 * 16 * 128 + 64)
    assert packed_bytes(4, 16, 128) * 8 / (16 * 128) == 4.5 + 0.25
    assert packed_bytes(32, 1, 1) == 4 * 16 * 128


def test_a_look_up_table_beside_a_head_is_stored_but_not_read():
    dynamic = FORMATS["transformers-int8-dynamic"]
    assert stored_bytes(dynamic, QWEN) - read_bytes(dynamic, QWEN) == 4 * QWEN.table_weights
    for name, fmt in FORMATS.items():
        if name != "transformers-int8-dynamic":
            assert read_bytes(fmt, QWEN) == stored_bytes(fmt, QWEN)


def test_only_the_mixture_mixes():
    for scheme in ("f16", "q8_0", "q4_0"):
        assert {kind for types in gguf_types(scheme, 9) for kind in types.values()} == {scheme}
    *layers, end = gguf_types("q4_k_m", 28)
    assert [number for number, types in enumerate(layers) if types["v"] == "q6_k"] == [
        0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27,
    ]  # fmt: skip
    assert all(types["v"] == types["down"] and types["q"] == "q4_k" for types in layers)
    assert end == {"table": "q6_k"}


def test_what_no_format_can_hold():
    narrow = DecoderShape(layers=1, d_model=96, heads=3, kv_heads=1, head_dim=24, d_ff=80, vocabulary=64)
    assert "256 inputs, which do not divide 72" in misfit(FORMATS["llama-q4_k"], narrow)
    assert "32 inputs" in misfit(FORMATS["llama-q8_0"], narrow)
    assert "multiple of 16 values, not 24" in misfit(FORMATS["native-w8a8"], narrow)
    assert not misfit(FORMATS["transformers-bf16"], narrow)
    assert not any(misfit(fmt, QWEN) for fmt in FORMATS.values())


@pytest.mark.parametrize("variant", FORMATS)
def test_tolerances_grow_with_depth_and_leave_no_room_for_any_answer(variant):
    fmt = FORMATS[variant]
    assert 0 < fmt.tolerance(2) < fmt.tolerance(28) < 1.2
    assert 0 < fmt.format_tolerance(28) < 1.0
    assert fmt.lossy == (fmt.bits < 32)
    assert (fmt.library is LLAMA) == variant.startswith("llama")


@pytest.mark.parametrize("variant", FORMATS)
def test_tolerances_follow_what_was_measured(variant):
    fmt = FORMATS[variant]
    rooms = [fmt.tolerance(depth) / found for depth, found in zip(MEASURED_LAYERS, fmt.errors, strict=True)]
    assert min(rooms) == pytest.approx(1.12 * fmt.margin)
    assert max(rooms) < 3.2 * min(rooms)
    if fmt.distances:
        found = [fmt.format_tolerance(d) / known for d, known in zip(MEASURED_LAYERS, fmt.distances, strict=True)]
        assert min(found) == pytest.approx(MARGIN)
    assert fmt.tolerance(28) / fmt.tolerance(2) == pytest.approx((30 / 4) ** 0.3)
