"""Calibrated schemes on whole networks: run the calibration text once, then choose each layer's codes.

All layers are calibrated on what they see in the unquantised network, so that their order does not matter and one pass
is enough. Shape suffixes: B batch, S sequence, K inputs.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalbench.schema import Artefact, Case, Quantity
from frugalbench.specs import calibration as text
from frugalbench.specs.calibration import CalibrationText
from frugalbench.specs.whole_models import ENCODER
from frugalbench.workloads.base import Arrays, Context, NoPath
from frugalbench.workloads.layers import kept, quant_calibrated, running_text
from frugalbench.workloads.layers.answer_record import measured
from frugalbench.workloads.layers.answers import text_batches
from frugalbench.workloads.layers.quant_calibrated import Codes, Moments
from frugalbench.workloads.layers.whole_model import Network

METHODS: dict[str, Callable[[np.ndarray, Moments, int], Codes]] = {
    "gptq-int4": quant_calibrated.gptq,
    "awq-int4": quant_calibrated.awq,
}
_VERSION = 1
"""Changes whenever the same weights and text would give other codes."""
_MOST_MOMENTS_BYTES = 2**31
"""Second moments held at a time; layers beyond it wait for another pass."""
_LEAST_PARAGRAPH_WORDS = 12
_PARTS = ("codes", "scales", "divisors", "deviation")


@dataclass(frozen=True)
class Calibration:
    """Codes of every layer of a network."""

    layers: Mapping[str, Codes]
    artefact: Artefact
    gain: float
    """Geometric mean over layers: output error on the calibration text over that of rounding to nearest."""
    details: Mapping[str, Any]
    """Which text, how many tokens."""

    def facts(self) -> dict[str, Quantity]:
        """What calibrating won on its own text; tasks say what it wins elsewhere."""
        source = "rms output error on the calibration text over that of rtn-int4, geometric mean over layers"
        return {"calibrated_error": measured(self.gain, "1", source)}


def calibrated(
    network: Network, layers: Mapping[str, Any], case: Case, tests: Sequence[str], context: Context
) -> Calibration:
    """Codes of the ``layers`` under the case's scheme, from the cache where the same have been made.

    Raises ``NoPath`` where it would take longer than the case's cap.
    """
    chosen = text.chosen(tests)
    p = case.params
    parts = [_VERSION, network.digest, case.variant, p["group_size"], p["seq"], chosen.digest, torch.__version__]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    file = context.cache_dir / "calibrated" / f"{name}.npz"
    arrays, cached = kept.read(file), True
    if arrays is None:
        begin = time.perf_counter()
        arrays, cached = _arrays(network, layers, case, chosen), False
        arrays["build_s"] = np.array(time.perf_counter() - begin)
        kept.write(file, arrays)
    return _read(arrays, layers, case, chosen, file, cached)


def _read(
    arrays: Arrays, layers: Mapping[str, Any], case: Case, chosen: CalibrationText, file: Path, cached: bool
) -> Calibration:
    made = {
        name: Codes(**{part: arrays[f"{name}/{part}"] for part in _PARTS}, error=float(arrays[f"{name}/error"]))
        for name in layers
    }
    size = file.stat().st_size
    artefact = Artefact(
        name=f"weights as {case.variant}", build_s=float(arrays["build_s"]), cached=cached, size_bytes=size
    )
    told = {
        "source": text.SOURCE, "digest": chosen.digest, "tokens": int(arrays["tokens"]), "left_out": chosen.left_out,
    }  # fmt: skip
    return Calibration(made, artefact, float(arrays["gain"]), {"calibration": told})


def _arrays(network: Network, layers: Mapping[str, Any], case: Case, chosen: CalibrationText) -> Arrays:
    batches, passes = _batches(network, chosen, case), list(_passes(layers))
    watch = _Watch(case.params["cap_s"])
    found: Arrays = {"tokens": np.array(sum(int(mask.sum()) for _, mask in batches))}
    gains = []
    for names in passes:
        moments = _moments(network, {name: layers[name] for name in names}, batches, watch)
        for name in names:
            made, gain = _coded(layers[name], moments.pop(name), case)
            found |= {f"{name}/{part}": np.asarray(getattr(made, part)) for part in (*_PARTS, "error")}
            gains.append(gain)
            watch.check()
    return found | {"gain": np.exp(np.mean(np.log(gains)))}


def _coded(layer: Any, moments: Moments, case: Case) -> tuple[Codes, float]:
    """Codes, and their rms error over that of rounding to nearest; 1 where neither is off."""
    weights_NK = np.ascontiguousarray(layer.weight.detach().float().cpu().numpy())
    group = case.params["group_size"]
    made = METHODS[case.variant](weights_NK, moments, group)
    plain = quant_calibrated.rtn(weights_NK, moments, group).error
    return made, (made.error / plain) ** 0.5 if made.error > 0 and plain > 0 else 1.0


@dataclass
class _Watch:
    """Passes and layers take unlike times, so nothing is projected: what takes longer than allowed is left."""

    limit_s: float
    begin_s: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise ``NoPath`` where the time is spent."""
        if time.monotonic() - self.begin_s > self.limit_s:
            raise NoPath(f"calibrating takes longer than the cap of {self.limit_s:g} s; raise cap_s")


def _passes(layers: Mapping[str, Any]) -> Iterator[list[str]]:
    """Names of layers whose moments fit into memory together."""
    names: list[str] = []
    held = 0
    for name, layer in layers.items():
        size = 12 * layer.in_features**2
        if names and held + size > _MOST_MOMENTS_BYTES:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _batches(network: Network, chosen: CalibrationText, case: Case) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and mask (B, S): windows of a language model, or paragraphs of prose."""
    size = case.params["batch"]
    if network.kind == ENCODER:
        prose = [" ".join(part.split()) for part in chosen.paragraphs if len(part.split()) >= _LEAST_PARAGRAPH_WORDS]
        return [(ids, mask) for _, ids, mask in text_batches(network, text.spread(prose, text.TEXTS), size)]
    seq = case.params["seq"]
    ids = np.array(network.encode(["\n\n".join(chosen.paragraphs)])[0], dtype=np.int64)
    starts = text.spread(range(0, len(ids) - seq, seq), max(1, text.TOKENS // seq))
    windows = np.stack([ids[start : start + seq] for start in starts])
    return [(part, np.ones_like(part)) for part in running_text.batches(network, windows, size)]


def _moments(
    network: Network, layers: Mapping[str, Any], batches: Sequence[tuple[np.ndarray, np.ndarray]], watch: _Watch
) -> dict[str, Moments]:
    """Of what each layer sees of real tokens; padding is left out."""
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    try:
        for ids_BS, mask_BS in batches:
            for item in sums.values():
                item.mask = mask_BS
            network.embed(ids_BS, mask_BS) if network.kind == ENCODER else network.logits(ids_BS)
            watch.check()
    finally:
        for item in sums.values():
            item.handle.remove()
    return {name: item.moments() for name, item in sums.items()}


class _Sums:
    """Of one layer's inputs, while it is watched."""

    def __init__(self, layer: Any) -> None:
        k = layer.in_features
        self.second = torch.zeros((k, k), dtype=torch.float64)
        self.magnitude = torch.zeros(k, dtype=torch.float64)
        self.tokens = 0
        self.mask = np.ones((0, 0))
        self.handle = layer.register_forward_pre_hook(self._see)

    def _see(self, _layer: Any, given: tuple[Any, ...]) -> None:
        x_TK = given[0].detach().flatten(0, -2).float()
        if len(x_TK) == self.mask.size:
            x_TK = x_TK[torch.from_numpy(self.mask.ravel() > 0).to(x_TK.device)]
        self.second += (x_TK.T @ x_TK).double().cpu()
        self.magnitude += x_TK.abs().sum(dim=0).double().cpu()
        self.tokens += len(x_TK)

    def moments(self) -> Moments:
        """Means over tokens; zeros of a layer that saw none."""
        count = max(1, self.tokens)
        return Moments((self.second / count).numpy(), (self.magnitude / count).numpy())
