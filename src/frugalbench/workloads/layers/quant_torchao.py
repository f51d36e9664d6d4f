"""The linear layer as torchao offers it on a CPU: int8 weight-only, int8 dynamic, int4 weight-only.

Weights are loaded in bfloat16, as language models are, where torchao has a quicker path for it; the int8 dynamic path
is the quicker one in float32. int4 is torchao's prototype for CPUs, whose kernel comes with torch (``tinygemm``).
"""

from typing import Any

import numpy as np

from frugalbench.schema import Artefact, Case
from frugalbench.workloads.base import Context, NoPath
from frugalbench.workloads.layers.quant_copies import Copies, Parts
from frugalbench.workloads.layers.quant_stored import (
    Source,
    Stored,
    bfloat16,
    int8_rows,
    offset_groups,
    plain,
    token_int8_all,
)

_FREE = frozenset(
    f"aten.{name}"
    for name in ("t", "view", "reshape", "alias", "detach", "as_strided", "transpose", "slice", "squeeze", "unsqueeze",
                 "expand", "flatten", "_unsafe_view", "_local_scalar_dense")
)  # fmt: skip
"""Operators that move no data."""
_ABSENT = (NotImplementedError, ImportError, AssertionError, AttributeError)
"""How torchao says that it has no kernel for what it is asked for."""


def make(case: Case, source: Any, context: Context) -> Any:
    """The layer of a case. Raises :class:`NoPath` where torchao, asked for it, turns out to have none here."""
    if context.device == "cpu":
        return TorchAo(case, source, context)
    from frugalbench.workloads.layers.quant_torchao_cuda import TorchAoCuda

    return TorchAoCuda(case, source)


class TorchAo:
    """``torch.nn.Linear`` layers whose weights are tensors of torchao's."""

    lossy = True

    def __init__(self, case: Case, source: Source, context: Context) -> None:
        import torch
        import torchao

        p = case.params
        self._torch, self._version = torch, torchao.__version__
        self._shape, self._group = (p["n"], p["k"]), p["group_size"]
        self._scheme, self._rounded = p["scheme"], p["activations"] == "token"
        self._dtype = getattr(torch, p["values"])
        self._template = self._quantised(source(0))
        name = f"{case.variant}-g{self._group}-{p['n']}x{p['k']}-seed{p['seed']}-{self._version}"
        made = Copies(source, p["n"], self._parts, context.cache_dir / "quantized_linear" / name)
        self._layers = [self._layer(self._restored(made.parts(copy))) for copy in range(p["copies"])]
        self.artefacts: tuple[Artefact, ...] = made.artefacts("codes for torchao")
        self.kernel = " + ".join(self._operators())

    def _quantised(self, weights_NK: np.ndarray) -> Any:
        """The weight tensor that torchao makes of a matrix."""
        from torchao.quantization import quantize_

        linear = self._layer(self._torch.from_numpy(weights_NK).to(self._dtype))
        try:
            quantize_(linear, self._config())
            with self._torch.inference_mode():
                linear(self.prepare(np.ones((1, self._shape[1]), np.float32)))
        except _ABSENT as problem:
            why = str(problem).strip().split("\n")[0]
            raise NoPath(f"torchao {self._version} has no kernel for this scheme here: {why}") from problem
        if not hasattr(linear.weight, "qdata"):
            raise NoPath(
                f"torchao {self._version} keeps weights in an older form: pip install -U 'frugalbench[torchao]'"
            )
        return linear.weight

    def _config(self) -> Any:
        """What a user asks for; nothing that changes settings of the whole process."""
        from torchao import quantization

        if self._scheme == "tinygemm":
            from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

            return PrototypeInt4WeightOnlyConfig(group_size=self._group, set_inductor_config=False)
        if self._rounded:
            return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
        return quantization.Int8WeightOnlyConfig(set_inductor_config=False)

    def _layer(self, weight: Any) -> Any:
        n, k = self._shape
        linear = self._torch.nn.Linear(k, n, bias=False, device="meta")
        linear.weight = self._torch.nn.Parameter(weight, requires_grad=False)
        return linear.eval()

    def _parts(self, weights_NK: np.ndarray) -> Parts:
        """The tensors within torchao's, as bytes, outputs first."""
        weight = self._quantised(weights_NK)
        names, _ = weight.__tensor_flatten__()
        return tuple(self._outputs_first(getattr(weight, name)) for name in names)

    def _outputs_first(self, tensor: Any) -> np.ndarray:
        n = self._shape[0]
        turned = tensor if len(tensor) == n else tensor.transpose(0, 1)
        return np.asarray(turned.contiguous().view(self._torch.uint8).reshape(n, -1).numpy())

    def _restored(self, parts: Parts) -> Any:
        """torchao's tensor around these parts, like the template in everything else."""
        names, context = self._template.__tensor_flatten__()
        inner = {name: self._like(part, getattr(self._template, name)) for name, part in zip(names, parts, strict=True)}
        made = type(self._template).__tensor_unflatten__
        return made(inner, context, self._template.size(), self._template.stride())

    def _like(self, part: np.ndarray, model: Any) -> Any:
        """A tensor of the model's type and shape, of the bytes in ``part``."""
        n = self._shape[0]
        values = self._torch.from_numpy(part).view(model.dtype)
        if len(model) == n:
            return values.reshape(model.shape)
        return values.reshape(n, len(model), *model.shape[2:]).transpose(0, 1).contiguous()

    def _operators(self) -> list[str]:
        """Operators that do work in a call, in order, as torch's dispatcher sees them."""
        from torch.utils._python_dispatch import TorchDispatchMode

        seen: list[str] = []

        class Watch(TorchDispatchMode):  # type: ignore[misc]
            def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(str(func).rpartition(".")[0])
                return func(*args, **(kwargs or {}))

        x = self.prepare(np.ones((1, self._shape[1]), np.float32))
        with self._torch.inference_mode(), Watch():
            self._layers[0](x)
        return [name for name in dict.fromkeys(seen) if name not in _FREE]

    def prepare(self, x_MK: np.ndarray) -> Any:
        """Inputs in the type that the layer is fed with."""
        return self._torch.from_numpy(x_MK).to(self._dtype)

    def run(self, copy: int, x: Any) -> Any:
        """One layer call."""
        with self._torch.inference_mode():
            return self._layers[copy](x)

    def to_numpy(self, y: Any) -> np.ndarray:
        """Result as float32 (m, n)."""
        return np.asarray(y.float().numpy())

    def stored(self, copy: int) -> Stored:
        """Codes and scales of ``copy``, from the tensors that its layer holds."""
        weight = self._layers[copy].weight
        names, _ = weight.__tensor_flatten__()
        arrays = tuple(self._outputs_first(getattr(weight, name)) for name in names)
        if self._scheme != "tinygemm":
            roundoff = 0.0 if self._dtype is self._torch.float32 else 2.0**-8
            return int8_rows(weight.qdata.numpy(), weight.scale.float().numpy(), roundoff, arrays)
        codes = unpack_tinygemm(weight.qdata.numpy(), self._torch.backends.cpu.get_cpu_capability())
        scales, offsets = weight.scale_and_zero.float().numpy().transpose(2, 1, 0)
        return offset_groups(codes, scales, offsets, arrays)

    def stored_bytes(self) -> int:
        """Bytes of one stored matrix."""
        return self.stored(0).size_bytes

    def activations(self, x_MK: np.ndarray) -> np.ndarray:
        """Inputs as the arm rounds them, float64."""
        if self._rounded:
            return token_int8_all(x_MK)
        return plain(x_MK) if self._dtype is self._torch.float32 else bfloat16(x_MK)

    def threads(self) -> int:
        """Threads that the library computes with."""
        return int(self._torch.get_num_threads())

    def synchronize(self) -> None:
        """A CPU call returns when it is done."""

    def close(self) -> None:
        """Nothing outlives the process."""


def unpack_tinygemm(packed: np.ndarray, capability: str) -> np.ndarray:
    """Codes (n, k) of torch's ``_convert_weight_to_int4pack_for_cpu``, which orders them by the processor's vectors.

    ``packed`` uint8 (n, k/2) lies in blocks of outputs; in each, for every input, a byte holds two outputs: with
    AVX-512 blocks of 64 outputs, the lower half byte those of the first 32; with AVX2 blocks of 32, of the first 16;
    elsewhere blocks of 32, neighbours in one byte (ATen, ``native/cpu/int4mm_kernel.cpp``).
    """
    n, half = packed.shape
    block = 64 if capability == "AVX512" else 32
    lanes = packed.reshape(n // block, 2 * half, block // 2)
    low, high = lanes & 15, lanes >> 4
    if capability in ("AVX512", "AVX2"):
        outputs = np.concatenate([low, high], axis=-1)
    else:
        outputs = np.stack([low, high], axis=-1).reshape(*lanes.shape[:2], block)
    return np.ascontiguousarray(outputs.transpose(0, 2, 1)).reshape(n, 2 * half)
