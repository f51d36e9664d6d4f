"""Dimensions, gate and name of the expert layer that a config asks for."""

from dataclasses import asdict
from typing import Any

from frugalbench.schema import FrugalbenchError
from frugalbench.specs import moe_block as block
from frugalbench.specs import moe_packed as packed
from frugalbench.specs import moe_sixteen as sixteen
from frugalbench.specs import routing
from frugalbench.specs.base import Settings, choose
from frugalbench.specs.moe_inputs import has_capacity
from frugalbench.specs.shapes import ModelShape, load_shapes

OWN_SHAPE = "own"
OWN_KEYS = ("d_model", "d_expert", "experts", "top_k", "n_shared")


def layer_of(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    """Dimensions, gate and routing of the layer that the options name."""
    shape = None
    if options["shape"] == OWN_SHAPE:
        layer = {key: options[key] for key in OWN_KEYS}
        layer |= {"scale": 1.0, "model": OWN_SHAPE, **asdict(routing.Gate())}
    else:
        shapes = {name: found for name, found in load_shapes().items() if found.n_experts}
        choose(settings, "shape", options["shape"], {**shapes, OWN_SHAPE: None})
        shape = shapes[options["shape"]]
        layer = layer_params(shape, options["scale"])
    _check_layer(settings, options, layer)
    if options["view"] == "block":
        layer |= _attention(settings, options, shape)
        block.check(settings, layer)
    if options["capacity_factor"]:
        layer["capacity_factor"] = float(options["capacity_factor"])
    if options["weights"] != sixteen.FLOAT32:
        packed.check(settings, options)
        layer["weights"] = options["weights"]
    return {**layer, "routing": options["routing"]}


def _check_layer(settings: Settings, options: dict[str, Any], layer: dict[str, Any]) -> None:
    if min(layer["d_model"], layer["d_expert"]) < 1:
        raise FrugalbenchError(f"{settings.where}: 'scale' {options['scale']} leaves a layer of no width")
    if not 1 <= layer["top_k"] <= layer["experts"]:
        raise FrugalbenchError(
            f"{settings.where}: 'top_k' {layer['top_k']} must lie between 1 and the {layer['experts']} experts"
        )
    if layer["n_shared"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'n_shared' must not be negative")


def _attention(settings: Settings, options: dict[str, Any], shape: ModelShape | None) -> dict[str, Any]:
    """Heads of the block, and the cache that it decodes behind."""
    own = {key: options[key] for key in ("heads", "kv_heads", "head_dim")}
    heads = own if shape is None else block.model_attention(settings, shape, options["scale"])
    return {"view": "block", **heads, "context": options["context"]}


def layer_params(shape: ModelShape, scale: float) -> dict[str, Any]:
    """Dimensions of the scaled layer, and its gate."""
    return {
        "d_model": round(shape.d_model * scale),
        "d_expert": round(shape.d_ff_expert * scale),
        "experts": shape.n_experts,
        "top_k": shape.top_k,
        "n_shared": shape.n_shared,
        "scale": scale,
        "model": shape.model,
        **asdict(routing.GATES.get(shape.model, routing.Gate())),
    }


def label_of(layer: dict[str, Any], options: dict[str, Any]) -> str:
    """The shape's name: model and scale or dimensions, then view, weights, capacity and routing if not the usual."""
    name = f"{options['shape']}@{options['scale']:g}"
    if layer["model"] == OWN_SHAPE:
        shared = f"+{layer['n_shared']}" if layer["n_shared"] else ""
        name = f"{layer['d_model']}x{layer['d_expert']}-e{layer['experts']}{shared}-k{layer['top_k']}"
    name += block.suffix(layer, layer["model"] == OWN_SHAPE) if block.is_block(layer) else ""
    name += f"-{layer['weights']}" if "weights" in layer else ""
    name += f"-cap{layer['capacity_factor']:g}" if has_capacity(layer) else ""
    chosen = options["routing"].split(":")[0]
    return name if chosen == routing.ROUTER else f"{name}-{chosen}"
