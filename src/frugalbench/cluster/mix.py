"""``net.hetero``: what two kinds of device reach in one job, over what each of them reaches by itself."""

from collections.abc import Callable
from functools import lru_cache

import msgspec

from frugalbench.cluster.placement import achieved_flop_per_s, pace, tokens_of
from frugalbench.cluster.ranges import Range, propagate, spanning
from frugalbench.cluster.scene import PEAK, Scene, load_scene
from frugalbench.cluster.scene_run import parts, throughput
from frugalbench.cluster.topology import Values
from frugalbench.schema import FrugalbenchError, Quantity

Facts = dict[str, Quantity]
Model = Callable[[Values], list[float]]

SPEEDS = 400
"""Ratios of speed at which the loss by whole sequences is looked at, since it is a saw-tooth."""
_HELD = (".alpha_s", "scale-up.efficiency")
"""Kept at the centre: together they move a ratio of steps of tens of seconds by less than a thousandth."""


def hetero(name: str, split: str) -> Facts:
    """Throughput of a mix over the sum of its parts: the scene ``name`` with an ``equal`` or ``proportional`` split.

    Each part has the same tokens per device and its own fabric. Bounds: every corner of the inputs' box and, since an
    equal split loses nothing where both kinds are equally fast, every corner with the second kind as fast as
    the first, as far as its range goes. Raises :class:`FrugalbenchError` for a scene without exactly two kinds.
    """
    scene = msgspec.convert(msgspec.to_builtins(load_scene(name)) | {"split": split}, Scene)
    if len(scene.kinds()) != 2:
        raise FrugalbenchError(f"{name}: a mix needs two kinds of device, not {len(scene.kinds())}")
    smooth = msgspec.structs.replace(scene, sequence_token=None)
    found = _bounds(smooth, _inputs(smooth))
    ratio, mix, sum_of_parts = found[:3]
    rounding = _rounding(scene)
    kept = Range(value=1 - rounding.value, low=1 - rounding.high, high=1 - rounding.low)
    kinds = [kind for kind, _ in scene.kinds()]
    source = f"{scene.says}: {split} split, all-reduce over both, over each kind by itself"
    return {
        "ratio": (ratio * kept).quantity("1", source),
        "mix_token_per_s": (mix * kept).quantity("token/s", scene.says),
        "sum_token_per_s": sum_of_parts.quantity("token/s", "each kind by itself, same tokens per device"),
        "rounding_loss": rounding.quantity("1", "throughput lost because devices take whole sequences"),
        **{
            f"part_{number}_flop_per_s": _achieved(scene, kind).quantity("FLOP/s/device", f"{kind}: peak x MFU")
            for number, kind in enumerate(kinds, 1)
        },
    }


def _inputs(scene: Scene) -> dict[str, Range]:
    """The ranges that matter; everything else at its centre."""
    kinds = [kind for kind, _ in scene.kinds()]
    used = (*kinds, "training.", "bridge", *(level.name for level in scene.fabric().level))
    return {
        name: item if name.startswith(used) and not name.endswith(_HELD) and name != "training.mfu" else _centre(item)
        for name, item in scene.inputs().items()
    }


def _centre(item: Range) -> Range:
    return Range(value=item.value, low=item.value, high=item.value)


def _bounds(scene: Scene, inputs: dict[str, Range]) -> list[Range]:
    (first, _), (second, _) = scene.kinds()
    mfu = inputs[f"{second}.mfu"]
    model = _model(scene)

    def alike(values: Values) -> list[float]:
        same = achieved_flop_per_s(first, values) / values[f"{second}.{PEAK}"]
        return model(values | {f"{second}.mfu": min(max(same, mfu.low), mfu.high)})

    found = propagate(model, inputs)
    kinks = propagate(alike, inputs | {f"{second}.mfu": _centre(mfu)})
    return [spanning(item.value, (item.low, item.high, k.low, k.high)) for item, k in zip(found, kinks, strict=True)]


def _model(scene: Scene) -> Model:
    token = {"training.device_token": scene.values()["training.batch_token"] / scene.size()}
    token = token if scene.scaling == "strong" else {}
    rates = [_cached(part) for part in parts(scene)]

    def model(values: Values) -> list[float]:
        mix = throughput(scene, values)
        total = sum(rate(values | token) for rate in rates)
        return [mix / total, mix, total]

    return model


def _cached(part: Scene) -> Callable[[Values], float]:
    """A part by itself, computed once for all corners that differ in the other kind's figures only."""
    own = [name for name in part.inputs() if name != "bridge"]

    @lru_cache(maxsize=4096)
    def rate(values: tuple[float, ...]) -> float:
        return throughput(part, {**dict(zip(own, values, strict=True)), "bridge": 1.0})

    return lambda values: rate(tuple(values[name] for name in own))


def _achieved(scene: Scene, kind: str) -> Range:
    inputs = scene.inputs()
    return inputs[f"{kind}.mfu"] * inputs[f"{kind}.{PEAK}"]


def _rounding(scene: Scene) -> Range:
    """Loss by whole sequences over all ratios of speed that the ranges allow."""
    (first, _), (second, _) = scene.kinds()
    speed = _achieved(scene, second) / _achieved(scene, first)
    step = (speed.high - speed.low) / SPEEDS
    losses = [_loss(scene, speed.low + step * number) for number in range(SPEEDS + 1)]
    return spanning(_loss(scene, speed.value), losses)


def _loss(scene: Scene, speed: float) -> float:
    kinds = dict(scene.kinds())
    (first, second), values = kinds, scene.values()
    rates = {first: 1.0, second: speed}
    strong = scene.scaling == "strong"
    token = values["training.batch_token"] / scene.size() if strong else values["training.device_token"]
    whole, smooth = (
        pace(tokens_of(kinds, token, rates, item), kinds, rates)
        for item in (scene, msgspec.structs.replace(scene, sequence_token=None))
    )
    return max(0.0, 1 - whole / smooth)
