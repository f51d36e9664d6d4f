"""A whole model on a device as transformers runs it: in half precision, or with the weights of its layers quantised.

Launched one by one, the cache is the one that ``generate()`` makes by default, which copies itself to grow by a token.
Where calls are to be recorded, it has room for exactly one token more, which each step writes in place: nothing moves,
as with transformers' static cache and ``torch.compile(mode="reduce-overhead")``, and no masked place is computed.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Artefact, Case
from frugalbench.specs.decode_on_device import INT4_GROUP, NF4_BLOCK, UNRECORDED
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers.decode_exact import DeviceWeights, Drawn
from frugalbench.workloads.layers.decode_transformers import GAIN_NAMES, empty, linear_of
from frugalbench.workloads.layers.decode_weights import Tokens
from frugalbench.workloads.layers.quant_bnb import OUTLIER_THRESHOLD

_DTYPES = {"float16": torch.float16, "llm.int8": torch.float16}
"""Of what is not quantised, and of activations; bfloat16 elsewhere. LLM.int8 rounds its inputs to float16 anyway."""
_FARTHEST = {"bfloat16": (2.0**-8, 0, 0.0), "float16": (2.0**-11, 0, 0.0), "llm.int8": (2.0**-10, 0, 0.51 / 127),
             "nf4": (0.0, NF4_BLOCK, 0.16), "int4": (2.0**-7, INT4_GROUP, 1.1 / 15)}  # fmt: skip
"""How far a stored weight may lie off the drawn one: share of itself, and share of the largest in a block of so many
weights (0: its row). Half a step each: of NF4 half its widest gap, of int4 of a range of at most twice the largest."""
_TINY = 2.0**-24
"""Below this float16 has no further digits."""
_SCALES = 15


def make(case: Case, weights: DeviceWeights, tokens: Tokens, context: Context) -> "DeviceModel":  # noqa: ARG001
    """The model of a case."""
    return DeviceModel(case, weights, tokens)


class DeviceModel:
    """The module, and the cache of the text that is continued."""

    artefacts: tuple[Artefact, ...] = ()
    lossy = True

    def __init__(self, case: Case, weights: DeviceWeights, tokens: Tokens) -> None:
        p = case.params
        self._weights, self._scheme = weights, p["scheme"]
        self.unrecorded = UNRECORDED.get(self._scheme, "")
        self._pinned = p.get("launch") == "graph" and not self.unrecorded
        dtype = _DTYPES.get(self._scheme, torch.bfloat16)
        with torch.inference_mode(False):
            self.module = empty(p, weights.shape)
            _fill(self.module, weights, dtype, self._scheme)
        self._text = self._ids(tokens.context)
        self._following = [self._ids(tokens.following[i : i + 1]) for i in range(len(tokens.following))]
        self._prompts = [self._ids(prompt) for prompt in tokens.prompts]
        self._cache: Any = None
        cache = "a cache with room for one token" if self._pinned else "DynamicCache"
        self.kernel = f"LlamaForCausalLM, {_KERNELS.get(self._scheme, f'aten::linear {self._scheme}')}, sdpa, {cache}"
        self.details: dict[str, object] = {"logits": f"rounded to {dtype}".replace("torch.", "")}

    def _ids(self, tokens: np.ndarray) -> Any:
        return torch.from_numpy(tokens.astype(np.int64))[None].to(self._weights.device)

    def read(self, count: int) -> None:
        """Read the first ``count`` tokens of the text, for nothing."""
        self._step(self._text[:, :count], self._fresh())
        self._synchronize()

    def fill(self) -> None:
        """Read the text that is continued."""
        self._cache = self._fresh()
        self._step(self._text, self._cache)
        if self._pinned:
            self._cache = _with_room(self._cache)

    def _fresh(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.module.config)

    def _step(self, ids: Any, cache: Any) -> Any:
        with torch.inference_mode():
            return self.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def decode(self, index: int) -> Any:
        """Logits after token ``index`` behind the text; the cache is as before, or the next token takes its place."""
        found = self._step(self._following[index], self._cache)
        if not self._pinned:
            self._cache.crop(-1)
        return found

    def prefill(self, index: int) -> Any:
        """Logits after prompt ``index``."""
        return self._step(self._prompts[index], self._fresh())

    def logits(self, found: Any) -> np.ndarray:
        """As float64 (V)."""
        return np.asarray(found.reshape(-1).double().cpu().numpy())

    def held(self) -> "StoredModel":
        """What the module holds."""
        return StoredModel(self._weights, self.module, self._scheme)

    def loaded_bytes(self) -> int:
        """Bytes of every parameter and scale, each piece of memory once."""
        plain = [item for item in self.module.parameters() if not _is_quantised(item)]
        quantised = [item for layer in self.module.modules() for item in _tensors(layer)]
        return sum({item.data_ptr(): int(item.nbytes) for item in (*plain, *quantised)}.values())

    def threads(self) -> int:
        """Threads that torch computes with, where it computes on the host."""
        return int(torch.get_num_threads())

    def _synchronize(self) -> None:
        if self._weights.device != "cpu":
            torch.cuda.synchronize()

    def close(self) -> None:
        """Nothing outlives the process."""


def _with_room(cache: Any) -> Any:
    """The same keys and values with a place for one token at their end, which each step overwrites."""
    from transformers.cache_utils import Cache, DynamicLayer

    class Pinned(DynamicLayer):  # type: ignore[misc]
        def __init__(self, filled: Any) -> None:
            super().__init__()
            self.lazy_initialization(filled.keys, filled.values)
            self.keys, self.values = (
                torch.cat([part, part[..., -1:, :]], dim=-2) for part in (filled.keys, filled.values)
            )

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            self.keys[..., -1:, :] = key_states
            self.values[..., -1:, :] = value_states
            return self.keys, self.values

        def get_seq_length(self, *_: Any) -> int:
            return int(self.keys.shape[-2]) - 1

    with torch.inference_mode():
        return Cache(layers=[Pinned(layer) for layer in cache.layers])


def _fill(module: Any, weights: DeviceWeights, dtype: Any, scheme: str) -> None:
    """Weights layer by layer; where they are quantised, a matrix's float32 weights are gone before the next one's."""
    module.model.rotary_emb.to(weights.device)
    for number, layer in enumerate(module.model.layers):
        for name in weights.shape.matrices():
            old, matrix = linear_of(layer, name), weights.matrix(number, name)
            if scheme in _MAKERS:
                _replace(layer, old, _MAKERS[scheme](matrix).eval())
            else:
                old.weight = _parameter(matrix.to(dtype))
        for name, theirs in GAIN_NAMES.items():
            getattr(layer, theirs).weight = _parameter(weights.gain(number, name).to(dtype))
    module.model.norm.weight = _parameter(weights.last_gain().to(dtype))
    module.model.embed_tokens.weight = _parameter(weights.table().to(dtype))
    module.lm_head.weight = module.model.embed_tokens.weight


def _parameter(values: Any) -> Any:
    return torch.nn.Parameter(values, requires_grad=False)


def _replace(layer: Any, old: Any, new: Any) -> None:
    path = next(path for path, found in layer.named_modules() if found is old)
    home, _, name = path.rpartition(".")
    setattr(layer.get_submodule(home), name, new)


def _nf4(weight_NK: Any) -> Any:
    from bitsandbytes import nn

    n, k = weight_NK.shape
    layer = nn.Linear4bit(
        k, n, bias=False, compute_dtype=torch.bfloat16, compress_statistics=False, quant_type="nf4", device="meta"
    )  # fmt: skip
    layer.weight = nn.Params4bit(
        weight_NK.to(torch.bfloat16), requires_grad=False, compress_statistics=False, quant_type="nf4", module=layer
    )
    return layer.to(weight_NK.device)


def _int8(weight_NK: Any) -> Any:
    from bitsandbytes import functional, nn

    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    n, k = weight_NK.shape
    codes, scales, _ = functional.int8_vectorwise_quant(weight_NK.half())
    layer = nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta")
    layer.weight = nn.Int8Params(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)
    layer.init_8bit_state()
    return layer


class Int4Linear(torch.nn.Module):  # type: ignore[misc]
    """Codes 0 to 15 with a scale and an offset per group: w = (code - 8) · scale + offset, in torch's own int4 kernel.

    Scales as torchao's ``int4_weight_only`` takes them: from the smallest to the largest weight of a group.
    """

    def __init__(self, weight_NK: Any) -> None:
        super().__init__()
        self.in_features = weight_NK.shape[1]
        codes_NK, scales_NG, offsets_NG = int4_codes(weight_NK)
        self.packed = pack_int4(codes_NK)
        self.scales = torch.stack([scales_NG, offsets_NG], dim=2).transpose(0, 1).contiguous()

    def forward(self, x: Any) -> Any:
        """x W^T."""
        y_MN = _int4_mm(x.device.type)(x.reshape(-1, self.in_features), self.packed, INT4_GROUP, self.scales)
        return y_MN.reshape(*x.shape[:-1], -1)


def int4_codes(weight_NK: Any) -> tuple[Any, Any, Any]:
    """Codes (N, K) as int32, scales and offsets (N, K / group) in bfloat16."""
    groups = weight_NK.reshape(len(weight_NK), -1, INT4_GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((high - low) / _SCALES).clamp_min(1e-6).bfloat16()
    offsets = (low + 8 * scales.float()).bfloat16()
    codes = ((groups - offsets.float()[..., None]) / scales.float()[..., None] + 8).round().clamp(0, _SCALES)
    return codes.to(torch.int32).reshape(weight_NK.shape), scales, offsets


def pack_int4(codes_NK: Any) -> Any:
    """As the kernel of the codes' device wants them: on CUDA two to a byte, the first in the upper half."""
    if codes_NK.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_NK, 8)
    pairs = (codes_NK[:, ::2] << 4 | codes_NK[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8)


def _int4_mm(device: str) -> Callable[..., Any]:
    operators = torch.ops.aten
    found: Callable[..., Any] = (
        operators._weight_int4pack_mm_for_cpu if device == "cpu" else operators._weight_int4pack_mm
    )
    return found


_MAKERS: dict[str, Callable[[Any], Any]] = {"nf4": _nf4, "llm.int8": _int8, "int4": Int4Linear}
_KERNELS = {
    "nf4": "bitsandbytes Linear4bit nf4 in bfloat16",
    "llm.int8": "bitsandbytes Linear8bitLt",
    "int4": "aten::_weight_int4pack_mm",
}


def _is_quantised(parameter: Any) -> bool:
    return hasattr(parameter, "quant_state") or hasattr(parameter, "SCB")


def _tensors(layer: Any) -> list[Any]:
    """Codes and scales of a quantised layer; nothing of any other."""
    if isinstance(layer, Int4Linear):
        return [layer.packed, layer.scales]
    if getattr(getattr(layer, "weight", None), "quant_state", None) is not None:
        return [layer.weight, layer.weight.quant_state.absmax]
    state = getattr(layer, "state", None)
    return [] if state is None else [state.CB, state.SCB]


class StoredModel(Drawn):
    """The weights in the module's layers. One that lies farther from the drawn weight than its format allows is a
    ``RuntimeError``: the store is then corrupt, or was quantised wrongly."""

    def __init__(self, weights: DeviceWeights, module: Any, scheme: str) -> None:
        super().__init__(weights)
        self._module, self._scheme = module, scheme

    def gain(self, layer: int, name: str) -> Any:
        """In the module's own precision, as float64."""
        return getattr(self._module.model.layers[layer], GAIN_NAMES[name]).weight.double()

    def last_gain(self) -> Any:
        """In the module's own precision, as float64."""
        return self._module.model.norm.weight.double()

    def table(self) -> Any:
        """In the module's own precision."""
        return self._module.lm_head.weight

    def matrix(self, layer: int, name: str) -> Any:
        """What is stored, as float64 (N, K)."""
        stored = _wide(linear_of(self._module.model.layers[layer], name))
        _check(stored, super().matrix(layer, name), self._scheme, f"{name} of layer {layer}")
        return stored


def _wide(layer: Any) -> Any:
    if isinstance(layer, Int4Linear):
        return _unpacked(layer)
    if getattr(layer.weight, "quant_state", None) is not None:
        state, packed = layer.weight.quant_state, layer.weight.data.reshape(-1)
        codes = torch.stack([packed >> 4, packed & 15], dim=1).long()
        values = state.code.double()[codes].reshape(-1, state.blocksize) * state.absmax.double()[:, None]
        return values.reshape(tuple(state.shape))
    if getattr(layer, "state", None) is not None:
        return layer.state.CB.double() * (layer.state.SCB.double() / 127)[:, None]
    return layer.weight.double()


def _unpacked(layer: Int4Linear) -> Any:
    """Weights as the kernel unpacks them, which it does to bfloat16: its answer to each unit vector."""
    unit_KK = torch.eye(layer.in_features, dtype=torch.bfloat16, device=layer.scales.device)
    return layer(unit_KK).double().T.contiguous()


def _check(stored_NK: Any, drawn_NK: Any, scheme: str, what: str) -> None:
    own, block, share = _FARTHEST[scheme]
    width = block or drawn_NK.shape[1]
    size = drawn_NK.abs()
    largest = size.reshape(len(size), -1, width).amax(dim=-1, keepdim=True).expand(-1, -1, width).reshape(size.shape)
    if ((stored_NK - drawn_NK).abs() > own * size + share * largest + _TINY).any():
        raise RuntimeError(f"the {scheme} weights of {what} lie farther from the drawn ones than that format allows")
