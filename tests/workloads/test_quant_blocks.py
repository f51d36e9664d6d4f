"""Block formats by hand, apart from the libraries that write them; torch's packing of 4 bits against torch itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalbench.workloads.layers.quant_ggml_blocks import ggml_stored, q8_0_activations, q8_k_activations
from frugalbench.workloads.layers.quant_stored import offset_groups
from frugalbench.workloads.layers.quant_torchao import unpack_tinygemm


def half(value):
    return np.float16(value).tobytes()


def rows_of(*blocks):
    return np.frombuffer(b"".join(blocks), np.uint8)[None].copy()


def weights_of(kind, rows):
    found, _ = ggml_stored(kind, rows).rows(0, len(rows))
    return found.reshape(len(rows), -1)[0]


def test_q8_0_is_a_scale_and_32_signed_codes():
    codes = np.arange(-16, 16, dtype=np.int8)
    found = weights_of("q8_0", rows_of(half(0.5), codes.tobytes(), half(-2), codes.tobytes()))
    assert np.array_equal(found, np.concatenate([0.5 * codes, -2.0 * codes]))


def test_q4_0_keeps_the_first_16_weights_in_the_lower_half_bytes():
    codes = np.arange(32) % 16
    packed = (codes[:16] | codes[16:] << 4).astype(np.uint8)
    assert np.array_equal(weights_of("q4_0", rows_of(half(0.25), packed.tobytes())), 0.25 * (codes - 8.0))


def test_f16_is_itself():
    values = np.array([1.5, -0.25, 3.0], np.float16)
    assert np.array_equal(weights_of("f16", values.view(np.uint8)[None]), values)


@given(
    scales=st.lists(st.integers(0, 63), min_size=8, max_size=8),
    minima=st.lists(st.integers(0, 63), min_size=8, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_q4_k_has_eight_scales_and_minima_of_6_bits(scales, minima, seed):
    codes = np.random.default_rng(seed).integers(0, 16, (8, 32))
    packed = bytearray(12)
    for i in range(4):
        packed[i] = scales[i] | (scales[i + 4] >> 4) << 6
        packed[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6
        packed[i + 8] = (scales[i + 4] & 15) | (minima[i + 4] & 15) << 4
    halves = (codes[0::2] | codes[1::2] << 4).astype(np.uint8)
    found = weights_of("q4_k", rows_of(half(0.5), half(0.125), bytes(packed), halves.tobytes()))
    expected = 0.5 * np.array(scales)[:, None] * codes - 0.125 * np.array(minima)[:, None]
    assert np.array_equal(found, expected.reshape(-1))


def test_q8_0_activations_keep_the_scale_in_float16():
    x = np.zeros((1, 64), np.float32)
    x[0, :3] = 100.0, -50.0, 0.3
    x[0, 40] = 1.27
    scale = float(np.float16(np.float32(100) / np.float32(127)))
    found = q8_0_activations(x)
    assert found[0, :3] == pytest.approx([127 * scale, -64 * scale, 0])
    assert found[0, 40] == pytest.approx(1.27, rel=1e-3)
    assert not found[0, 41:].any()


@pytest.mark.parametrize("sign", [1, -1])
def test_q8_k_activations_send_the_extreme_to_minus_127(sign):
    x = np.zeros((2, 256), np.float32)
    x[0, 7], x[0, 8] = sign * 12.7, -sign * 12.7
    found = q8_k_activations(x)
    assert found[0, 7] == pytest.approx(sign * 12.7)
    assert found[0, 8] == pytest.approx(-sign * 12.7)
    assert not found[1].any()


@pytest.mark.parametrize("n", [64, 192])
def test_codes_come_back_from_torchs_packing(n):
    import torch

    codes = np.random.default_rng(n).integers(0, 16, (n, 96)).astype(np.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes), 1).numpy()
    assert np.array_equal(unpack_tinygemm(packed, torch.backends.cpu.get_cpu_capability()), codes)


def test_offset_groups_are_what_torchs_kernel_multiplies():
    import torch

    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (64, 128)).astype(np.int32)
    scale_and_zero = torch.from_numpy(rng.normal(size=(4, 64, 2)).astype(np.float32)).bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(codes), 1)
    x = torch.eye(128, dtype=torch.bfloat16)
    found = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scale_and_zero).double().numpy().T
    scales, offsets = scale_and_zero.float().numpy().transpose(2, 1, 0)
    rows, _ = offset_groups(codes.astype(np.uint8), scales, offsets, ()).rows(0, 64)
    np.testing.assert_allclose(found, rows.reshape(64, 128), rtol=2**-7, atol=2**-5)
