"""The 4-bit Triton kernel in Triton's interpreter, on the CPU: the same text that a GPU would compile."""

from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the extra 'triton'; its interpreter runs without a GPU")

from frugalbench.specs import quant_formats  # noqa: E402
from frugalbench.workloads.layers import quant_cuda, quant_device, triton_file  # noqa: E402
from frugalbench.workloads.layers import quant_values as values  # noqa: E402
from kernels import triton_interpreter  # noqa: E402

inside = pytest.mark.skipif(not triton_interpreter.ON, reason="runs in a process of its own, see the first test")
SHAPES = 208


@pytest.mark.skipif(triton_interpreter.ON, reason="is the process of its own")
def test_all_of_this_file_in_the_interpreter():
    triton_interpreter.run(__file__, 7)


@pytest.fixture(scope="module")
def kernel():
    return triton_file.load("w4a16")


def drawn(kernel, number):
    """A shape and a cut of it at random: odd counts of groups and of 32 outputs, one token, tiles that are not full."""
    rng = torch.Generator().manual_seed(number)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=rng))]

    group = pick(32, 64, 128)
    inputs, outputs = group * pick(1, 1, 2, 3, 5 if group < 128 else 1), 32 * pick(1, 1, 3)
    tokens = pick(1, 1, 1, 2, 3, 4, 5, 17)
    dtype, offsets = pick(torch.bfloat16, torch.float16), pick(True, True, False)
    vector = tokens <= kernel.MOST_VECTOR_TOKENS and pick(True, True, True, False)
    config = kernel.Config(0 if vector else pick(16, 32), pick(32, 64), pick(1, 1, 2), 4)
    weights = torch.randn(outputs, inputs, generator=rng) / inputs**0.5
    x = torch.randn(tokens, inputs, generator=rng).to(dtype)
    return weights, x, group, dtype, offsets, config


def meaning(packed):
    """Float64 weights of a packed matrix by the kernel file's own description, one code at a time."""
    N, K = packed.outputs, packed.inputs
    words, held = packed.words_NW.to(torch.int64), packed.scales_GN.t()
    k = torch.arange(K)
    word, place = k // 256 * 32 + k % 32, k % 256 // 32
    codes = ((words[:, word] >> (4 * place)) & 15).double() - 8
    if not packed.offsets:
        return codes * held.double()[:, k // packed.group]
    dtype = packed.dtype
    scale = (held & 0xFFFF).to(torch.int16).view(dtype).double()
    middle = (held >> 16).to(torch.int16).view(dtype).double()
    assert scale.shape == (N, -(-K // 256) * 256 // packed.group)
    return codes * scale[:, k // packed.group] + middle[:, k // packed.group]


@inside
@pytest.mark.parametrize("quarter", range(4))
def test_it_multiplies_what_is_stored_at_any_shape(kernel, quarter):
    for number in range(quarter, SHAPES, 4):
        weights, x, group, dtype, offsets, config = drawn(kernel, number)
        packed = kernel.pack(weights, group, dtype, offsets)
        found = kernel.Linear()(packed, x, config).double()
        wanted = x.double() @ meaning(packed).t()
        limit = 3.5e-2 if dtype is torch.bfloat16 else 5e-3
        assert float((found - wanted).abs().max() / wanted.pow(2).mean().sqrt()) < limit, (number, config)


@inside
def test_the_arm_answers_what_its_stored_words_say():
    params = {"values": "bfloat16", "group_size": 64, "copies": 2}
    layer = quant_cuda.W4A16(
        SimpleNamespace(params=params), lambda copy: quant_device.weights(3, copy, 32, 320, "cpu"), "cpu", Path()
    )
    x = values.inputs(3, 1, 3, 320)
    found = layer.to_numpy(layer.run(1, layer.prepare(x)))
    wanted = layer.stored(1).multiply(values.weights(3, 1, 32, 320), layer.activations(x))
    assert abs(found - wanted).max() < 3e-2 * (wanted**2).mean() ** 0.5
    assert layer.stored_bytes() == quant_formats.stored_bytes("places", 32, 320, 4, 64)
    assert list(layer.details["configs"]) == ["3"]


@inside
@pytest.mark.parametrize("offsets", [True, False])
def test_codes_are_the_nearest_and_what_is_filled_up_is_zero(kernel, offsets):
    weights = torch.randn(32, 320)
    packed = kernel.pack(weights, 64, torch.bfloat16, offsets)
    step = (packed.scales_GN & 0xFFFF).to(torch.int16).view(torch.bfloat16) if offsets else packed.scales_GN
    assert step.shape == (8, 32)
    assert not packed.scales_GN[5:].any()
    error = (meaning(packed) - weights).abs().reshape(32, 5, 64).amax(-1) / step[:5].t().abs()
    assert float(error.max()) < (0.56 if offsets else 1.04)
    assert packed.size_bytes() == 32 * 512 // 2 + 32 * 8 * (4 if offsets else 2)
