"""The linear layer as torchao offers it on CUDA: int8 and int4 weight-only, int8 and float8 dynamic, all in bfloat16.

int4 is the packing of torch's own kernel (``tile_packed_to_4d``); torchao's other packings need the package ``mslk`` or
another maker's GPU.
"""

from typing import Any

import numpy as np
import torch

from frugalbench.schema import Case
from frugalbench.workloads.base import NoPath
from frugalbench.workloads.layers import quant_device as device
from frugalbench.workloads.layers.quant_cuda import FLOAT8_LARGEST, FLOAT8_SLACK, DeviceLinear

_ABSENT = (NotImplementedError, ImportError, AssertionError, AttributeError, ValueError, RuntimeError)
"""How torchao says that it has no kernel for what it is asked for."""
_INT8_SLACK = 0.51 + 127 * 2.0**-8
_WATCHED_TOKENS = 32


class TorchAoCuda(DeviceLinear):
    """``torch.nn.Linear`` layers whose weights are tensors of torchao's; :class:`NoPath` where it has no kernel."""

    def __init__(self, case: Case, source: device.Source) -> None:
        super().__init__(case, "cuda")
        p = case.params
        self._scheme, self._rounded = p["scheme"], p["activations"] == "token"
        self._shape, self._group = (p["n"], p["k"]), p["group_size"]
        self._layers = [self._quantised(source(copy)) for copy in range(p["copies"])]
        self.kernel = self._watched()

    def _quantised(self, weights_NK: torch.Tensor) -> torch.nn.Linear:
        import torchao
        from torchao.quantization import quantize_

        n, k = self._shape
        linear = torch.nn.Linear(k, n, bias=False, device="meta")
        linear.weight = torch.nn.Parameter(weights_NK.to(self._dtype), requires_grad=False)
        try:
            quantize_(linear, self._config())
        except _ABSENT as problem:
            why = str(problem).strip().split("\n")[0]
            raise NoPath(f"torchao {torchao.__version__} has no kernel for this scheme here: {why}") from problem
        if not hasattr(linear.weight, "qdata"):
            raise NoPath(f"torchao {torchao.__version__} leaves weights of this shape as they are in this scheme")
        return linear.eval()

    def _config(self) -> Any:
        """What a user asks for; nothing that changes settings of the whole process."""
        from torchao import quantization as ao

        if self._scheme == "tiles":
            return ao.Int4WeightOnlyConfig(
                group_size=self._group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        if self._scheme == "float8-rows":
            return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), set_inductor_config=False)
        if self._rounded:
            return ao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        return ao.Int8WeightOnlyConfig(set_inductor_config=False)

    def _watched(self) -> str:
        """Operators of a call. Where integers are multiplied torchao swallows a refusal and multiplies float32 instead,
        so torch is asked itself whether it takes such a product."""
        x = self.prepare(np.ones((_WATCHED_TOKENS, self._shape[1]), np.float32))
        if self._scheme != "int8-rows" or not self._rounded:
            return " + ".join(device.operators(lambda: self.run(0, x)))
        codes = getattr(self._layers[0].weight, "qdata")  # noqa: B009 (torch types do not know torchao's tensors)
        try:
            torch._int_mm(x.to(torch.int8), codes.t().contiguous())
        except RuntimeError as problem:
            raise NoPath(f"torch multiplies no int8 matrices here: {str(problem).splitlines()[0]}") from problem
        return "tokens to int8, weights turned round, aten::_int_mm, scales"

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with torch.inference_mode():
            return self._layers[copy](x)

    def stored(self, copy: int) -> device.DeviceStored:
        """Codes and scales, from the tensors that the layer holds."""
        weight: Any = self._layers[copy].weight
        names, _ = weight.__tensor_flatten__()
        arrays = tuple(getattr(weight, name) for name in names)
        if self._scheme != "tiles":
            slack = FLOAT8_SLACK if self._scheme == "float8-rows" else _INT8_SLACK
            return device.scaled_rows(weight.qdata, weight.scale, slack, arrays)
        k = self._shape[1]
        both = weight.scale_and_zero[: k // self._group].transpose(0, 1)
        return device.offset_groups(
            lambda start, stop: device.tinygemm_codes(weight.qdata, start, stop)[:, :k],
            both[..., 0], both[..., 1], 1.01, arrays,
        )  # fmt: skip

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64. Scales are rounded to bfloat16, as torchao computes them."""
        x = torch.from_numpy(x_MK).to(self._dtype)
        if not self._rounded:
            return np.asarray(x.double().numpy())
        largest = x.abs().amax(1, keepdim=True)
        if self._scheme == "float8-rows":
            scale = (largest / FLOAT8_LARGEST).float()
            codes = (x.float() / scale).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).to(torch.float8_e4m3fn)
            return np.asarray((codes.double() * scale.double()).numpy())
        scale = (largest / 127.5).float()
        codes = torch.round(x.float() * (1 / scale)).clamp(-128, 127)
        return np.asarray((codes.double() * scale.double()).numpy())
