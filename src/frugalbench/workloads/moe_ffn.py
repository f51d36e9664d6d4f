"""Builder of the expert layer, its dense twins and the blocks around them. Shapes and inputs: ``specs/moe_ffn.py``."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs import moe_block, moe_packed, moe_sixteen
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs import moe_inputs as inputs
from frugalbench.workloads import device as devices
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import decoder_block, drawn, ffn
from frugalbench.workloads.moe_reference import gradient_probes, reference, reference_key, route, sum_experts

__all__ = ["LoadedFfn", "load", "nothing_to_prepare", "prepare", "reference", "reference_key", "route", "sum_experts"]

_TORCH_MIXTURES = {"moe-loop": ffn.LoopMoe, "moe-sorted": ffn.SortedMoe, "moe-grouped": ffn.GroupedMoe}

Inputs = tuple[Any, ...]
"""What a layer is called with: tokens, and in a block the place where they stand."""


class LoadedFfn:
    """``copies`` layers of one variant, and the caches of their sequences."""

    artefacts: tuple[Artefact, ...] = ()

    def __init__(self, arm: Arm, context: Context):
        case = arm.cases[0]
        self.context = context
        self.layers = [_layer(case.variant, case.params, context, copy) for copy in range(case.params["copies"])]
        self.caches: decoder_block.Caches | None = None
        if moe_block.is_block(case.params) and any(item.regime in moe_block.CACHED for item in arm.cases):
            self.caches = decoder_block.Caches(context.seed, case.params, context.device)

    def bind(self, case: Case) -> Bound:
        """Make a regime callable."""
        device = devices.of(self.context.device)
        tokens = _tokens(case, self.context)
        taken = self._inputs(case, tokens)
        details: dict[str, Any] = {}
        step = self._training(case) if case.regime == "training" else _forward
        layers, rotation = self.layers, len(taken)
        if case.variant == "moe-compiled":
            self.artefacts += (self._compiled(case, taken[0]),)
        if case.variant == "moe-triton" and device is not None:
            details |= self._planned(case, tokens)

        def plain(index: int) -> object:
            index %= rotation
            return step(layers[index % len(layers)], taken[index])

        call: Callable[[int], object] = plain
        if device is not None:
            call, details["launch"] = _launched(device, case, layers[0], plain, rotation)
        return Bound(
            call=call,
            output=lambda index: self._output(case, call, index % rotation, taken),
            rotation=rotation,
            own_definition=self._definition(case, taken) if moe_packed.is_packed(case.params) else None,
            synchronize=device.synchronize if device is not None else _nothing,
            device=device,
            facts={"weight_bytes": self._weight_bytes()} | self._shares(case, taken),
            details=self._details(case, taken) | details,
        )

    def _definition(self, case: Case, taken: Sequence[Inputs]) -> Callable[[int], Arrays]:
        """Answers of what is stored, by position."""
        params, seed = case.params, self.context.seed

        def answer(index: int) -> Arrays:
            copy, x_TD = index % len(self.layers), taken[index % len(taken)][0].numpy()
            one = np.ones((len(x_TD), 1))
            mixing_TE = one if params["d_ff"] else route(params, seed, x_TD.astype(np.float64), copy)
            return {"y": self.layers[copy].definition(x_TD, mixing_TE)}

        return answer

    def _inputs(self, case: Case, tokens: torch.Tensor) -> list[Inputs]:
        """By position of the rotation."""
        positions = range(spec.rotation(case.params, case.regime))
        batches = [tokens[position % len(tokens)] for position in positions]
        if not moe_block.is_block(case.params):
            return [(x_TD,) for x_TD in batches]
        places = decoder_block.places(case.params, case.regime, self.caches, self.context.device)
        return [(batches[position], places[position % len(places)]) for position in positions]

    def _training(self, case: Case) -> Callable[[Any, Inputs], torch.Tensor]:
        upstream_TD = torch.from_numpy(spec.upstream(self.context.seed, case.params)).to(self.context.device)

        def step(layer: Any, taken: Inputs) -> torch.Tensor:
            for parameter in layer.parameters():
                parameter.grad = None
            x_TD = taken[0].detach().requires_grad_()
            y_TD: torch.Tensor = layer(x_TD, *taken[1:])
            y_TD.backward(upstream_TD)
            layer.last = (x_TD, y_TD)
            return y_TD

        return step

    def _compiled(self, case: Case, taken: Inputs) -> Artefact:
        with torch.inference_mode():
            x_TD = _to_route(self.layers[0], taken)
        made: Artefact = _compiled_ffn().build(_ffn(self.layers[0]), x_TD, self.context.cache_dir, case.params)
        return made

    def _planned(self, case: Case, tokens: torch.Tensor) -> dict[str, Any]:
        """Have every copy use the quickest plan of the own GPU kernels; for the record, which."""
        plan, artefact = _planned(_ffn(self.layers[0]), tokens, self.context)
        for layer in self.layers:
            _ffn(layer).plans[case.params["tokens"] * (case.params["top_k"] + case.params["n_shared"])] = plan
        self.artefacts += (artefact,)
        return {"plan": str(plan)}

    def _output(self, case: Case, call: Callable[[int], Any], index: int, taken: Sequence[Inputs]) -> Arrays:
        """What the call gives; of a block also what it adds to its input, which would hide errors of the FFN."""
        y_TD = call(index)
        outputs = {"y": y_TD.detach().float().cpu().numpy()}
        if moe_block.is_block(case.params):
            outputs["added"] = (y_TD.detach() - taken[index][0]).cpu().numpy()
        if case.regime != "training":
            return outputs
        layer = self.layers[index % len(self.layers)]
        outputs["x_grad"] = layer.last[0].grad.cpu().numpy()
        return outputs | gradient_probes(layer.gradients(), self.context.seed)

    def _weight_bytes(self) -> Quantity:
        return Quantity(
            value=float(self.layers[0].stored_bytes()),
            unit="byte",
            tier=Tier.MEASURED,
            source="stored tensors of one layer",
        )

    def _details(self, case: Case, taken: Sequence[Inputs]) -> dict[str, Any]:
        where = drawn.where_drawn(self.context.device)
        details: dict[str, Any] = {"implementation": self.layers[0].implementation, "weights_drawn": where}
        if moe_block.is_block(case.params):
            details["attention"] = decoder_block.kernel(case.params, case.regime, self.context.device)
        if not case.params["d_ff"]:
            details |= self._load(case, taken)
        return details

    def _load(self, case: Case, taken: Sequence[Inputs]) -> dict[str, Any]:
        """Copies per routed expert as the router asks, and by batch what experts take and what is dropped."""
        loads = [_expert_loads(self.layers[0], item) for item in taken[: spec.BATCHES[case.regime]]]
        details: dict[str, Any] = {
            "router_histogram": [sum(column) for column in zip(*(asked for asked, _ in loads), strict=True)],
            "experts_hit": [sum(count > 0 for count in asked) for asked, _ in loads],
            "busiest_expert_tokens": [max(computed) for _, computed in loads],
        }
        if inputs.has_capacity(case.params):
            details["expert_capacity_tokens"] = inputs.capacity(case.params)
            details["dropped_share"] = [1 - sum(computed) / sum(asked) for asked, computed in loads]
        return details

    def _shares(self, case: Case, taken: Sequence[Inputs]) -> dict[str, Quantity]:
        """Of token copies: what is computed for nobody, and what is dropped."""
        if case.params["d_ff"]:
            return {}
        found = {}
        if inputs.has_capacity(case.params):
            dropped = self._load(case, taken)["dropped_share"]
            found["dropped_share"] = _share(sum(dropped) / len(dropped), "routed copies beyond the experts' capacity")
        if case.variant in (*spec.NATIVE, "moe-triton") and not moe_packed.is_packed(case.params):
            padding = _padding_share(self.layers[0], taken[0])
            found["padding_share"] = _share(padding, "lanes computed for no token")
        return found

    def close(self) -> None:
        """Nothing outlives the process."""


def prepare(arm: Arm, context: Context) -> None:
    """Compile the own kernel, or the graph, where the arm needs it and the cache lacks it."""
    case = arm.cases[0]
    if case.variant in spec.NATIVE:
        from frugalbench.backends import native_moe

        native_moe.built()
        if moe_packed.is_packed(case.params):
            from frugalbench.backends import native_quant

            native_quant.built()
    if case.variant == "moe-compiled":
        compiled_ffn = _compiled_ffn()
        compiled_ffn.set_up(context.cache_dir)
        layer = _feed_forward(case.variant, case.params, context, 0)
        for item in arm.cases:
            compiled_ffn.build(layer, _tokens(item, context)[0], context.cache_dir, item.params)
    if case.variant == "moe-triton" and context.device != "cpu":
        layer = _feed_forward(case.variant, case.params, context, 0)
        for item in arm.cases:
            _planned(layer, _tokens(item, context), context)


def nothing_to_prepare(arm: Arm, context: Context) -> bool:
    """Of arms without kernels or graphs of their own."""
    variant = arm.cases[0].variant
    plans = variant == "moe-triton" and context.device != "cpu"
    return variant not in (*spec.NATIVE, "moe-compiled") and not plans


def load(arm: Arm, context: Context) -> LoadedFfn:
    """Allocate and fill the arm's layers."""
    if arm.cases[0].variant == "moe-compiled":
        _compiled_ffn().set_up(context.cache_dir)
    return LoadedFfn(arm, context)


def _planned(layer: Any, tokens: torch.Tensor, context: Context) -> tuple[Any, Artefact]:
    """The plan of the own GPU kernels for a case's batches, tried or remembered."""
    from frugalbench.workloads.layers import triton_ffn

    return triton_ffn.tuned(layer, list(tokens), context.cache_dir)


def _launched(
    device: devices.Device, case: Case, layer: Any, call: Callable[[int], object], rotation: int
) -> tuple[Callable[[int], object], str]:
    """The call as it is launched, and how: recorded once where the case asks for it and the layer never waits."""
    if case.params.get("launch") != "graph":
        return call, "eager"
    if reason := _ffn(layer).host_waits:
        return call, f"eager: {reason}"
    return device.captured(call, rotation)


def _layer(variant: str, params: dict[str, Any], context: Context, copy: int) -> Any:
    found = _feed_forward(variant, params, context, copy)
    if not moe_block.is_block(params):
        return found
    return decoder_block.Block(found, _tensors(moe_block.weights(context.seed, params, copy), context), params)


def _feed_forward(variant: str, params: dict[str, Any], context: Context, copy: int) -> Any:
    if variant in spec.LLAMA:
        return _llama(params, context, copy)
    if params["d_ff"]:
        weights = drawn.weights(context.seed, params, copy, context.device, _held(params))
        if moe_packed.is_packed(params):
            return _packed().PackedDense(weights, params)
        return _native().NativeDense(weights) if variant in spec.NATIVE else ffn.Dense(weights)
    weights = drawn.weights(context.seed, params, copy, context.device, _held(params))
    weights |= _tensors({"router": moe_block.router(context.seed, params, copy)}, context, _held(params))
    if moe_packed.is_packed(params):
        return _packed().PackedMoe(weights, params)
    return _mixture(variant)(weights, params)


def _mixture(variant: str) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]:
    """The class of a mixture; what only it needs is imported only for it."""
    if variant in spec.TRANSFORMERS:
        from frugalbench.workloads.layers.transformers_ffn import TransformersMoe

        return functools.partial(TransformersMoe, wanted=spec.TRANSFORMERS[variant])
    if variant == "moe-triton":
        from frugalbench.workloads.layers.triton_ffn import TritonMoe

        return TritonMoe
    if variant == "moe-vllm":
        from frugalbench.workloads.layers.vllm_ffn import VllmMoe

        return VllmMoe
    if variant == "moe-compiled":
        return functools.partial(_compiled_ffn().CompiledMoe)
    if variant in spec.NATIVE:
        return functools.partial(_native().NativeMoe)
    return _TORCH_MIXTURES[variant]


def _native() -> Any:
    """The own kernel's layers; a compiler is needed only where they run."""
    from frugalbench.workloads.layers import native_ffn

    return native_ffn


def _llama(params: dict[str, Any], context: Context, copy: int) -> Any:
    """Experts or a dense layer in llama.cpp's library."""
    from frugalbench.workloads.layers import llama_ffn

    def source() -> Arrays:
        if params["d_ff"]:
            return spec.dense_weights(context.seed, params, copy)
        router = {"router": moe_block.router(context.seed, params, copy)}
        return spec.expert_weights(context.seed, params, copy) | router

    made = llama_ffn.LlamaDense if params["d_ff"] else llama_ffn.LlamaMoe
    return made(source, params, context.threads)


def _packed() -> Any:
    """The same with quantised weights."""
    from frugalbench.workloads.layers import packed_ffn

    return packed_ffn


def _compiled_ffn() -> Any:
    """The compiled layer; inductor reads its settings when it is imported."""
    from frugalbench.workloads.layers import compiled_ffn

    return compiled_ffn


def _held(params: dict[str, Any]) -> torch.dtype:
    """Format of weights and tokens; their values are rounded to it already."""
    found: torch.dtype = getattr(torch, moe_sixteen.held(params))
    return found


def _tokens(case: Case, context: Context) -> torch.Tensor:
    """Batches x T x D."""
    drawn = spec.token_batches(context.seed, case.params, case.regime)
    kept = torch.float32 if case.variant in spec.LLAMA else _held(case.params)
    return torch.from_numpy(drawn).to(context.device, kept)


def _tensors(arrays: Arrays, context: Context, held: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).to(context.device, held) for name, array in arrays.items()}


def _forward(layer: Any, taken: Inputs) -> torch.Tensor:
    with torch.inference_mode():
        y_TD: torch.Tensor = layer(*taken)
    return y_TD


def _nothing() -> None:
    return None


def _ffn(layer: Any) -> Any:
    return layer.ffn if isinstance(layer, decoder_block.Block) else layer


def _to_route(layer: Any, taken: Inputs) -> torch.Tensor:
    """T x D that the router sees."""
    return layer.ffn_input(*taken) if isinstance(layer, decoder_block.Block) else taken[0]


def _expert_loads(layer: Any, taken: Inputs) -> tuple[list[int], list[int]]:
    """Tokens per routed expert: as the router asks, and as they are computed."""
    mixture = _ffn(layer)
    with torch.inference_mode():
        x_TD = _to_route(layer, taken)
        asked = _counts(mixture.choose(x_TD)[0].flatten(), mixture.experts)
        return asked, _counts(mixture.copies(x_TD)[1], mixture.experts) if mixture.capacity_factor else asked


def _counts(expert_S: torch.Tensor, experts: int) -> list[int]:
    """How often each routed expert is named; shared ones are left out."""
    counts: list[int] = torch.bincount(expert_S, minlength=experts)[:experts].tolist()
    return counts


def _padding_share(layer: Any, taken: Inputs) -> float:
    mixture = _ffn(layer)
    with torch.inference_mode():
        x_TD = _to_route(layer, taken)
        chosen = mixture.copies(x_TD)[1][:, None] if mixture.capacity_factor else mixture.route(x_TD)[0]
        return float(mixture.details(chosen)["padding_share"])


def _share(value: float, source: str) -> Quantity:
    return Quantity(value=value, unit="1", tier=Tier.MEASURED, source=source)
