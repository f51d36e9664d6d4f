"""The Triton kernel that rounds tokens to float8, in Triton's interpreter."""

import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="needs the extra 'triton'; its interpreter runs without a GPU")

from frugalbench.workloads.layers import quant_cuda, triton_file  # noqa: E402
from kernels import triton_interpreter  # noqa: E402


@pytest.mark.skipif(triton_interpreter.ON, reason="is the process of its own")
def test_all_of_this_file_in_the_interpreter():
    triton_interpreter.run(__file__, 3)


@pytest.mark.skipif(not triton_interpreter.ON, reason="runs in a process of its own, see the first test")
@pytest.mark.parametrize(("tokens", "inputs"), [(1, 64), (7, 320), (3, 1000)])
def test_each_row_gets_its_scale_and_codes(tokens, inputs):
    """Values that float8 holds: the interpreter's own conversion drops carries, so rounding shows on a GPU only, where
    each run holds the arm against its definition."""
    wanted = (torch.randn(tokens, inputs) * 60).to(torch.float8_e4m3fn)
    wanted[:, 0] = 448.0
    wanted[0] = 0.0
    x = (wanted.float() * 2.0 ** torch.arange(tokens)[:, None]).to(torch.bfloat16)
    codes, scales = triton_file.load("fp8").round_rows(x)
    assert torch.equal(codes.float(), wanted.float())
    assert torch.equal(scales, quant_cuda.float8_rows(x.float())[1])
    assert scales[:, 0].tolist() == [2.0**row for row in range(tokens)]
