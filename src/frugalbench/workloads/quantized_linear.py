"""Builder of ``quantized_linear``: y_MN = x_MK @ w_NK.T in the formats of :mod:`frugalbench.specs.quant_formats`.

Position ``i`` of the rotation uses matrix ``i`` and input ``i % DISTINCT_INPUTS``. Outputs are reduced before they are
compared (:func:`~frugalbench.workloads.layers.quant_values.projection`), so that checking prefill costs little.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.workloads import device
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers.quant_stored import Stored, fingerprint, multiply, require_finite
from frugalbench.workloads.layers.quant_values import (
    DISTINCT_INPUTS,
    digest,
    drawn,
    inputs,
    moved,
    place,
    projection,
    weights,
)

REFERENCE_COPIES = 4
"""The unquantised answer is computed for the first so many positions; each arm checks those that it has."""
LAYERS = {
    "torch": "frugalbench.workloads.layers.quant_torch",
    "onnxruntime": "frugalbench.workloads.layers.quant_ort",
    "openvino": "frugalbench.workloads.layers.quant_openvino",
    "bitsandbytes": "frugalbench.workloads.layers.quant_bnb",
    "torchao": "frugalbench.workloads.layers.quant_torchao",
    "llama.cpp": "frugalbench.workloads.layers.quant_llama",
    "native": "frugalbench.workloads.layers.quant_native",
    "triton": "frugalbench.workloads.layers.quant_cuda",
}
"""Backend to the module whose ``make(case, source, context)`` gives its :class:`Linear`."""
_LARGE_INPUT = 2**22
"""Values; drawing so many takes longer than reading them."""
_KEPT = 4
"""Drawn matrices that lie in the run's scratch folder, for the workers after the first."""


class Linear(Protocol):
    """One format in one library, holding its copies of the weights."""

    artefacts: tuple[Artefact, ...]
    lossy: bool
    kernel: str

    def prepare(self, x_MK: np.ndarray) -> Any: ...
    def run(self, copy: int, x: Any) -> Any: ...
    def to_numpy(self, y: Any) -> np.ndarray: ...
    def stored(self, copy: int) -> Any: ...  # Stored on a CPU, DeviceStored elsewhere
    def stored_bytes(self) -> int: ...
    def activations(self, x_MK: np.ndarray) -> np.ndarray: ...
    def threads(self) -> int: ...
    def synchronize(self) -> None: ...
    def close(self) -> None: ...


def load(arm: Arm, context: Context) -> "QuantizedLinear":
    """Fill, quantise and hold the arm's matrices, one at a time.

    Raises ``RuntimeError`` for an unknown scheme and for weights that are not finite, :class:`NoPath` where the library
    lacks what the scheme needs here.
    """
    case = arm.cases[0]
    source = _source_of(case, context)
    if "torch" in arm.imports:
        import torch

        torch.set_num_threads(context.threads)
    linear: Linear = import_module(LAYERS[case.backend]).make(case, source, context)
    return QuantizedLinear(linear, arm, context)


def _source_of(case: Case, context: Context) -> Callable[[int], Any]:
    """Weights of a copy: numpy arrays on a CPU, tensors that were drawn there on a device."""
    p = case.params
    if context.device == "cpu":
        return partial(_weights, context.scratch_dir, p["seed"], p["n"], p["k"])
    from frugalbench.workloads.layers import quant_device

    return partial(quant_device.finite_weights, p["seed"], p["n"], p["k"], context.device)


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answer with unquantised weights, for the first positions: ``tokens`` (r, c, n), ``signed_sum`` (r, n)."""
    p = case.params
    rows = []
    for position in range(REFERENCE_COPIES):
        x_CK = projection(p["m"]) @ inputs(p["seed"], position, p["m"], p["k"]).astype(np.float64)
        rows.append(digest(_exact(case, context.device, position, x_CK)))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _exact(case: Case, device_name: str, position: int, x_CK: np.ndarray) -> np.ndarray:
    p = case.params
    if device_name == "cpu":
        return np.asarray(x_CK @ _source(p["seed"], p["n"], p["k"], position).astype(np.float64).T)
    from frugalbench.workloads.layers import quant_device

    return quant_device.exact(quant_device.weights(p["seed"], position, p["n"], p["k"], device_name), x_CK)


def reference_key(case: Case) -> str:
    """Shape, tokens and seed: every variant shares the reference."""
    p = case.params
    return f"quantized_linear-{p['n']}x{p['k']}-m{p['m']}-seed{p['seed']}"


@dataclass
class QuantizedLinear:
    """An arm's matrices in memory."""

    linear: Linear
    arm: Arm
    context: Context
    _known: dict[int, dict[str, Arrays]] = field(default_factory=dict)
    _inputs: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """Weight files, for the runtime that loads them."""
        return self.linear.artefacts

    def bind(self, case: Case) -> Bound:
        """Make one regime callable."""
        p = case.params
        rotation = p["copies"]
        run, prepare = self.linear.run, self.linear.prepare
        prepared = [prepare(self._input(case, i)) for i in range(min(rotation, DISTINCT_INPUTS))]

        def each(index: int) -> object:
            copy = index % rotation
            return run(copy, prepared[copy % DISTINCT_INPUTS])

        held = device.of(self.context.device)
        call, launch = self._launched(case, each, held)
        return Bound(
            call=call,
            output=lambda index: digest(projection(p["m"]) @ self._result(call, index)),
            rotation=rotation,
            synchronize=self.linear.synchronize,
            device=held,
            own_definition=(lambda i: self._definition(case, i % rotation)) if self.linear.lossy else None,
            facts=self._facts(case),
            details=self._details(case) | launch,
        )

    @staticmethod
    def _launched(
        case: Case, call: Callable[[int], object], held: device.Device | None
    ) -> tuple[Callable[[int], object], dict[str, str]]:
        """The call as the case wants it launched, and how it is; nothing to say on a CPU."""
        if held is None:
            return call, {}
        if case.params["launch"] != "graph":
            return call, {"launch": "eager"}
        recorded, how = held.captured(call, case.params["copies"])
        return recorded, {"launch": how}

    def close(self) -> None:
        """Release what the library holds."""
        self.linear.close()

    def _input(self, case: Case, position: int) -> np.ndarray:
        """Tokens of a position; large ones are drawn once a run and read by every later worker."""
        p = case.params
        if p["m"] * p["k"] < _LARGE_INPUT:
            return inputs(p["seed"], position, p["m"], p["k"])
        number = position % DISTINCT_INPUTS
        file = self.context.scratch_dir / "inputs" / f"{p['m']}x{p['k']}-seed{p['seed']}-{number}.npy"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            _save(file, inputs(p["seed"], number, p["m"], p["k"]))
        return np.asarray(np.load(file, allow_pickle=False))

    def _result(self, call: Callable[[int], object], index: int) -> np.ndarray:
        return self.linear.to_numpy(call(index)).astype(np.float64)

    def _definition(self, case: Case, copy: int) -> Arrays:
        """Answer of what is stored, for one copy. Computed for all regimes at once and kept for later workers."""
        if copy not in self._known:
            self._known[copy] = self._define(copy)
        return self._known[copy][case.id]

    def _define(self, copy: int) -> dict[str, Arrays]:
        """Read the answer that this run already computed for the very same stored bytes and inputs, or compute it."""
        stored = self.linear.stored(copy)
        x_CK = np.vstack([self._projected(case, copy) for case in self.arm.cases])
        if not isinstance(stored, Stored):
            return self._split(stored.multiply(_source_of(self.arm.cases[0], self.context)(copy), x_CK))
        path = self.context.scratch_dir / f"quantized_linear-{stored.fingerprint()}-{fingerprint(x_CK)}-{copy}.npy"
        if path.exists():
            y_CN = np.load(path, allow_pickle=False)
        else:
            p = self.arm.cases[0].params
            y_CN = multiply(stored, _source(p["seed"], p["n"], p["k"], copy), x_CK)
            _save(path, y_CN)
        return self._split(y_CN)

    def _projected(self, case: Case, copy: int) -> np.ndarray:
        """Rounded inputs of a copy, already summed over tokens as the outputs will be; made once per distinct input."""
        key = (case.id, copy % DISTINCT_INPUTS)
        if key not in self._inputs:
            rounded = self.linear.activations(self._input(case, copy))
            self._inputs[key] = np.asarray(projection(case.params["m"]) @ rounded)
        return self._inputs[key]

    def _split(self, y_CN: np.ndarray) -> dict[str, Arrays]:
        ends = np.cumsum([len(projection(case.params["m"])) for case in self.arm.cases])
        parts = np.split(y_CN, ends[:-1])
        return {case.id: digest(part) for case, part in zip(self.arm.cases, parts, strict=True)}

    def _facts(self, case: Case) -> dict[str, Quantity]:
        p = case.params
        return {
            "weight_bytes": _bytes(self.linear.stored_bytes(), "codes, scales and zero points as stored"),
            "bf16_bytes": _bytes(2 * p["n"] * p["k"], "2 bytes per weight"),
        }

    def _details(self, case: Case) -> dict[str, Any]:
        found = {"kernel": self.linear.kernel, "threads": self.linear.threads()}
        placement = getattr(self.linear, "placement", None)
        if placement is not None:
            found["placement"] = placement(self._input(case, 0))
        return {**found, **getattr(self.linear, "details", {})}


def _source(seed: int, n: int, k: int, copy: int) -> np.ndarray:
    return weights(seed, copy, n, k)


def _weights(scratch: Path, seed: int, n: int, k: int, copy: int) -> np.ndarray:
    """The matrix as :func:`weights` makes it; the first few are drawn once per run and read by every later worker."""
    number, shift = place(copy, n)
    if number >= _KEPT:
        return require_finite(moved(drawn(seed, number, n, k), shift))
    file = scratch / "weights" / f"{n}x{k}-seed{seed}-{number}.npy"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        partial_file = file.with_suffix(f".{os.getpid()}.npy")
        np.save(partial_file, drawn(seed, number, n, k))
        partial_file.replace(file)
    return require_finite(moved(np.load(file, allow_pickle=False), shift))


def _bytes(value: float, source: str) -> Quantity:
    return Quantity(value=float(value), unit="byte", tier=Tier.MEASURED, source=source)


def _save(path: Path, array: np.ndarray) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npy")
    with os.fdopen(handle, "wb") as file:
        np.save(file, array)
    Path(name).replace(path)


def prepare(arm: Arm, context: Context) -> None:
    """Quantise and store what is not cached yet; unquantised arms of other libraries have nothing to prepare."""
    case = arm.cases[0]
    if _stores(case, context):
        load(arm, context).close()
    if _tries(case):
        made = load(arm, context)
        for item in arm.cases:
            made.bind(item)
        made.close()


def nothing_to_prepare(arm: Arm, context: Context) -> bool:
    """Of most arms on a device."""
    case = arm.cases[0]
    return not _stores(case, context) and not _tries(case)


def _stores(case: Case, context: Context) -> bool:
    return context.device == "cpu" and (case.backend == "onnxruntime" or case.params["bits"] < 16)


def _tries(case: Case) -> bool:
    """It compiles and tries out its kernels, which is cached."""
    return case.backend == "triton" or case.variant == "torch-fp8"
