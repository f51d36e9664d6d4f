"""A scheme is applied to a whole network: each linear layer is replaced by one that holds its weights in low precision.

Layers are those of ``quantized_linear``, so every format there can be had here. What a layer answers is checked apart
from it: on the very inputs that it saw, against the float64 product with what it stores. Shape suffixes: T tokens,
N outputs, K inputs, C checked sums.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Artefact, Case
from frugalbench.specs import quant_formats as formats
from frugalbench.specs.model_schemes import BASELINE, SCHEMES
from frugalbench.workloads.base import Arrays, Context
from frugalbench.workloads.layers.quant_calibrated import Calibrated, Codes
from frugalbench.workloads.layers.quant_rtn import RoundToNearest
from frugalbench.workloads.layers.quant_stored import Stored, bfloat16, multiply, require_finite
from frugalbench.workloads.layers.whole_model import Network
from frugalbench.workloads.quantized_linear import LAYERS, Linear

_TAKE_TENSORS = ("torch", "bitsandbytes")
"""Backends whose layers take torch's tensors as they are; the others are fed arrays."""
LAYERWISE_OWN = {"rtn-int8": 8, "rtn-int4": 4}
"""Schemes of our own, and their bits."""
SUMS = 4
"""Random signed sums over tokens that are checked of each layer's output."""


class Quantised(torch.nn.Module):  # type: ignore[misc]
    """A linear layer that holds its weights as ``linear`` does; the bias stays in float32."""

    def __init__(self, linear: Linear, layer: Any, backend: str) -> None:
        super().__init__()
        self.linear, self.takes_tensors = linear, backend in _TAKE_TENSORS
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def forward(self, x: Any) -> Any:
        """(…, K) to (…, N)."""
        flat = x.reshape(-1, self.in_features)
        if self.takes_tensors:
            y = self.linear.run(0, flat)
        else:
            made = self.linear.to_numpy(self.linear.run(0, self.linear.prepare(flat.cpu().numpy())))
            y = torch.from_numpy(made).to(x.device)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


@dataclass
class Applied:
    """A network under a scheme."""

    network: Network
    variant: str
    layers: dict[str, Any]
    """The layers that hold weights in the scheme's format, by name."""
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    """Inputs of each layer (T, K) in the latest :meth:`watched` call."""

    @property
    def lossy(self) -> bool:
        """Whether anything is rounded beyond float32."""
        return self.variant != BASELINE

    def stored_bytes(self) -> int:
        """Bytes of every weight, bias and look-up table as held, each piece of memory once."""
        held: dict[int, int] = {p.data_ptr(): p.nbytes for p in self.network.module.parameters()}
        return sum(held.values()) + sum(linear.stored_bytes() for linear in self._held())

    def other_bytes(self) -> int:
        """Bytes of what lies outside the scheme's layers: look-up tables, norms, biases."""
        inside = {
            p.data_ptr() for layer in self.layers.values() for name, p in layer.named_parameters() if name != "bias"
        }
        held = {p.data_ptr(): p.nbytes for p in self.network.module.parameters() if p.data_ptr() not in inside}
        return sum(held.values())

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """What quantising all layers took, where it is kept on disk; one line for all of them."""
        made = [item for layer in self._held() for item in layer.artefacts]
        if not made:
            return ()
        build_s, cached = sum(item.build_s for item in made), all(item.cached for item in made)
        return (Artefact(name=f"weights as {self.variant}", build_s=build_s, cached=cached),)

    def _held(self) -> list[Linear]:
        return [layer.linear for layer in self.layers.values() if isinstance(layer, Quantised)]

    def close(self) -> None:
        """Release what the layers' libraries hold."""
        for linear in self._held():
            linear.close()

    def threads(self) -> int:
        """Threads that the layers compute with."""
        held = self._held()
        return held[0].threads() if held else torch.get_num_threads()

    def kernels(self) -> dict[str, int]:
        """What multiplies, and in how many layers; a shape is asked once."""
        kinds: dict[tuple[str, int, int], str] = {}
        counts: dict[str, int] = {}
        for layer in self.layers.values():
            key = (type(layer).__name__, layer.out_features, layer.in_features)
            if key not in kinds:
                kinds[key] = (
                    layer.linear.kernel if isinstance(layer, Quantised) else f"aten::linear {layer.weight.dtype}"
                )
            counts[kinds[key]] = counts.get(kinds[key], 0) + 1
        return counts

    def watched(self, call: Callable[[], object]) -> Arrays:
        """Run ``call()``; signed sums of each layer's output, (C, N) float64. Its inputs are kept in :attr:`seen`."""
        found: Arrays = {}

        def watch(name: str) -> Any:
            def hook(_layer: Any, given: tuple[Any, ...], y: Any) -> None:
                self.seen[name] = x_TK = given[0].detach().flatten(0, -2).float().cpu().numpy()
                found[name] = signs(len(x_TK)) @ y.detach().flatten(0, -2).double().cpu().numpy()

            return hook

        handles = [layer.register_forward_hook(watch(name)) for name, layer in self.layers.items()]
        try:
            call()
        finally:
            for handle in handles:
                handle.remove()
        return found

    def defined(self, original: Network) -> Arrays:
        """What the layers should have answered to the inputs that they saw, by float64 product with what is stored.

        Raises ``RuntimeError`` where a stored weight lies farther from ``original``'s than the format allows.
        """
        modules = dict(original.module.named_modules())
        return {name: _definition(layer, modules[name], self.seen[name]) for name, layer in self.layers.items()}

    def sizes(self, original: Network) -> Arrays:
        """How large a signed sum of each output (N) is by itself: the root of the sum of squares over tokens, in the
        unquantised layer and for the inputs that were seen.

        Outputs of real layers differ by orders of magnitude; undivided, the largest would hide an error in the others.
        """
        modules = dict(original.module.named_modules())
        return {name: _size(modules[name], self.seen[name]) for name in self.layers}


def _definition(layer: Any, original: Any, x_TK: np.ndarray) -> np.ndarray:
    sums_CT = signs(len(x_TK))
    if isinstance(layer, Quantised):
        stored, rounded = layer.linear.stored(0), layer.linear.activations(x_TK)
    else:
        stored, rounded = _bfloat16_rows(layer.weight.detach().float().cpu().numpy()), bfloat16(x_TK)
    y_CN = multiply(stored, _weights(original), sums_CT @ rounded)
    if layer.bias is not None:
        y_CN = y_CN + sums_CT.sum(axis=1, keepdims=True) * layer.bias.detach().double().cpu().numpy()
    return np.asarray(y_CN)


def _bfloat16_rows(weights_NK: np.ndarray) -> Stored:
    """Weights rounded to bfloat16: each at most 2^-8 of the largest in its row off."""

    def rows(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        chunk = weights_NK[start:stop, None].astype(np.float64)
        return chunk, np.abs(chunk).max(axis=-1) * 2.0**-8

    return Stored(rows, (weights_NK,))


def _weights(layer: Any) -> np.ndarray:
    return np.asarray(layer.weight.detach().float().cpu().numpy())


def _size(original: Any, x_TK: np.ndarray) -> np.ndarray:
    y_TN = x_TK @ _weights(original).T
    if original.bias is not None:
        y_TN = y_TN + original.bias.detach().float().cpu().numpy()
    return np.asarray(np.maximum(np.sqrt((y_TN.astype(np.float64) ** 2).sum(axis=0)), 1e-12))


@cache
def signs(tokens: int) -> np.ndarray:
    """C x T of ±1: every token counts in every sum, so an error anywhere shows."""
    return np.random.default_rng(tokens).choice([-1.0, 1.0], (SUMS, tokens))


def apply(network: Network, case: Case, context: Context, codes: Mapping[str, Codes] | None = None) -> Applied:
    """``network`` under the case's scheme, in place; ``codes`` are those of a calibrated one. Raises ``RuntimeError``
    where it has no linear layer."""
    variant = case.variant
    chosen = linears(network)
    if not chosen:
        raise RuntimeError(f"{case.shape} has no linear layer to quantise")
    if variant == "torch-bf16":
        network.module.to(torch.bfloat16)
    if bits := SCHEMES[variant].kv_bits:
        network.module.round_cache(bits)
    if variant not in LAYERWISE_OWN and not SCHEMES[variant].layerwise and codes is None:
        return Applied(network, variant, {} if SCHEMES[variant].kv_bits or variant == BASELINE else chosen)
    layers = {}
    for name, layer in chosen.items():
        held: Linear = (
            _held(layer, case, context) if codes is None else Calibrated(codes[name], layer.in_features, context.device)
        )
        layers[name] = Quantised(held, layer, case.backend)
        parent, _, last = name.rpartition(".")
        setattr(network.module.get_submodule(parent), last, layers[name])
        layer.weight = None
    return Applied(network, variant, layers)


def linears(network: Network) -> dict[str, Any]:
    """The layers that schemes hold in their format, by name."""
    found = network.module.named_modules()
    return {name: layer for name, layer in found if isinstance(layer, torch.nn.Linear) and name not in network.keep}


def _held(layer: Any, case: Case, context: Context) -> Linear:
    """The layer's weights in the scheme's format."""
    weights_NK = require_finite(np.ascontiguousarray(layer.weight.detach().float().cpu().numpy()))
    if bits := LAYERWISE_OWN.get(case.variant):
        return RoundToNearest(lambda _copy: weights_NK, 1, bits, case.params["group_size"], context.device)
    made: Linear = import_module(LAYERS[case.backend]).make(
        _as_case(case, weights_NK), lambda _copy: weights_NK, context
    )
    return made


def _as_case(case: Case, weights_NK: np.ndarray) -> Case:
    """A case of ``quantized_linear`` for one layer. Caches of quantised weights are keyed by its seed: here, a hash of
    the weights."""
    (n, k), group = weights_NK.shape, case.params["group_size"]
    fmt = formats.resolve(case.variant, case.device, formats.cpu_flags(), group)
    if reason := formats.misfit(fmt, k, group):
        raise RuntimeError(reason)
    seed = int(hashlib.sha256(weights_NK.tobytes()).hexdigest()[:12], 16)
    return Case(
        id=f"{case.id}/{n}x{k}", workload="quantized_linear", variant=case.variant, shape=f"{n}x{k}",
        regime=case.regime, backend=fmt.backend, device=case.device, dtype=fmt.dtype,
        params={
            "n": n, "k": k, "m": 1, "copies": 1, "scheme": fmt.scheme, "bits": fmt.bits,
            "group_size": formats.group_of(fmt, k, group), "activations": fmt.activations, "values": fmt.values,
            "accuracy_level": fmt.accuracy_level, "seed": seed, "format_tolerance": fmt.format_tolerance,
        },
    )  # fmt: skip
