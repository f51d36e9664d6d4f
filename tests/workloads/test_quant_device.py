"""What a device's arms are checked against, on the CPU: the numbers of the numpy definitions, and what those refuse."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from frugalbench.workloads import quantized_linear as builder  # noqa: E402
from frugalbench.workloads.layers import quant_cuda, quant_torchao_cuda  # noqa: E402
from frugalbench.workloads.layers import quant_device as device  # noqa: E402
from frugalbench.workloads.layers import quant_stored as stored  # noqa: E402
from frugalbench.workloads.layers import quant_values as values  # noqa: E402

N, K, SEED = 128, 320, 3


def weights(copy=0):
    return values.weights(SEED, copy, N, K)


def x_of(tokens=5):
    return values.inputs(SEED, 0, tokens, K).astype(np.float64)


@pytest.mark.parametrize("copy", [0, 3, 5])
def test_weights_are_the_same_bits_as_on_the_cpu(copy):
    np.testing.assert_array_equal(device.weights(SEED, copy, N, K, "cpu").numpy(), weights(copy))


def test_a_weight_that_is_not_finite_is_named(monkeypatch):
    broken = torch.from_numpy(weights().copy())
    broken[77, 131] = float("nan")
    monkeypatch.setattr(device, "weights", lambda *_: broken)
    with pytest.raises(RuntimeError, match=r"weight \[77, 131\] is nan: such a matrix is not quantised"):
        device.finite_weights(SEED, N, K, "cpu", 0)


def test_the_unquantised_answer_is_that_of_the_cpu():
    np.testing.assert_allclose(device.exact(torch.from_numpy(weights()), x_of()), x_of() @ weights().T.astype(float))


def tensors(*arrays):
    return tuple(torch.from_numpy(array) for array in arrays)


def both_rows():
    scales = np.abs(weights()).max(1) / np.float32(127)
    codes = np.rint(weights() / scales[:, None]).astype(np.int8)
    codes_t, scales_t = tensors(codes, scales)
    return (
        stored.int8_rows(codes, scales, 0.0, (codes,)),
        device.scaled_rows(codes_t, scales_t, 0.51, (codes_t,)),
        codes,
    )


def both_blocks():
    table = np.sort(np.random.default_rng(1).uniform(-1, 1, 16)).astype(np.float32)
    table[[0, -1]] = -1, 1
    blocks = weights().reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    codes = np.abs(blocks[..., None] / absmax[:, None, None] - table).argmin(-1).astype(np.uint8).reshape(-1)
    packed = codes[::2] << 4 | codes[1::2]
    theirs = device.table_blocks(*tensors(packed, absmax, table), K)
    return stored.nf4_blocks(packed, absmax, table, K), theirs, packed


def both_groups():
    groups = weights().reshape(N, -1, 64)
    low, high = groups.min(-1), groups.max(-1)
    scale = (high - low) / np.float32(15)
    middle = low + 8 * scale
    codes = np.clip(np.rint((groups - middle[..., None]) / scale[..., None]) + 8, 0, 15).astype(np.uint8).reshape(N, K)
    codes_t = torch.from_numpy(codes)
    theirs = device.offset_groups(lambda a, b: codes_t[a:b], *tensors(scale, middle), 1.01, (codes_t,))
    return stored.offset_groups(codes, scale, middle, (codes,)), theirs, codes


@pytest.mark.parametrize("both", [both_rows, both_blocks, both_groups])
def test_a_format_means_the_same_in_torch_and_in_numpy(both):
    ours, theirs, codes = both()
    wanted = stored.multiply(ours, weights(), x_of())
    np.testing.assert_allclose(theirs.multiply(torch.from_numpy(weights()), x_of()), wanted, rtol=1e-12, atol=1e-12)
    codes.reshape(-1)[7] ^= codes.dtype.type(-128 if codes.dtype == np.int8 else 0x80 if both is both_blocks else 8)
    with pytest.raises(RuntimeError, match="stored weight in row 0, group 0 is off"):
        theirs.multiply(torch.from_numpy(weights()), x_of())


def test_the_matrix_units_order_of_four_bit_codes_is_read_back():
    codes = torch.randint(0, 16, (24, 256), dtype=torch.int32)
    packed = torch.zeros(3, 2, 32, 4, dtype=torch.int64)
    for row in range(24):
        for k in range(256):
            step, within = divmod(k, 128)
            word, pair = within // 32, within % 32 // 2
            lane, half_byte = row % 8 * 4 + pair % 4, pair // 4 + (4 if k % 2 else 0)
            packed[row // 8, step, lane, word] |= int(codes[row, k]) << 4 * half_byte
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    assert torch.equal(device.tinygemm_codes(packed, 8, 24), codes[8:])


def test_float8_rows_span_their_type_and_lie_within_what_is_allowed():
    made = torch.from_numpy(weights())
    codes, scales = quant_cuda.float8_rows(made)
    assert (codes.float().abs().amax(1) == quant_cuda.FLOAT8_LARGEST).all()
    held = device.scaled_rows(codes, scales, quant_cuda.FLOAT8_SLACK, (codes, scales))
    found, wanted = held.multiply(made, x_of()), device.exact(made, x_of())
    assert 0.005 < np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()) < 0.05
    assert held.size_bytes == N * K + 4 * N


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["int8-rows", "float8-rows"])
def test_tokens_are_rounded_as_torchao_does(scheme):
    pytest.importorskip("torchao", reason="needs the extra 'torchao'")
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor

    kind = Int8Tensor if scheme == "int8-rows" else Float8Tensor
    theirs = kind.from_hp(torch.from_numpy(x_of()).to(torch.bfloat16), granularity=PerRow())
    layer = object.__new__(quant_torchao_cuda.TorchAoCuda)
    layer._scheme, layer._rounded, layer._dtype = scheme, True, torch.bfloat16
    np.testing.assert_array_equal(
        layer.activations(x_of().astype(np.float32)), theirs.qdata.double() * theirs.scale.double()
    )


def test_a_definition_on_a_device_is_not_kept_in_files(tmp_path):
    """It takes less time there than reading it back."""
    from types import SimpleNamespace

    from frugalbench.workloads.base import Context

    case = SimpleNamespace(id="one", params={"seed": SEED, "n": N, "k": K, "m": 5, "copies": 1})
    linear = SimpleNamespace(
        stored=lambda copy: device.dense(torch.from_numpy(weights(copy)), 0.0), activations=stored.plain
    )
    arm = SimpleNamespace(cases=(case,))
    loaded = builder.QuantizedLinear(linear, arm, Context(SEED, 1, "cpu", tmp_path, tmp_path))
    found = loaded._define(0)["one"]["tokens"]
    np.testing.assert_allclose(found, x_of() @ weights().T.astype(np.float64))
    assert not list(tmp_path.glob("*.npy"))
