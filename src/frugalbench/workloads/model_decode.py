"""Builder of ``model_decode``: one model with random weights, as each arm holds and runs it.

Every arm is checked against the float64 answer of what it stores (:mod:`~.layers.decode_reference`), in both regimes,
before anything is timed; all answers of an arm come from one pass, in the first worker that asks.
"""

import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs.decoder_shape import DecoderShape
from frugalbench.specs.model_decode import WORKLOAD
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers.decode_reference import Unquantised, known_answers
from frugalbench.workloads.layers.decode_weights import NEXT_TOKENS, PROMPTS, Weights, tokens_of
from frugalbench.workloads.layers.launching import EAGER, GRAPH, device_of, wanted

LAYERS = {
    "transformers": "frugalbench.workloads.layers.decode_transformers",
    "native": "frugalbench.workloads.layers.decode_native",
    "llama.cpp": "frugalbench.workloads.layers.decode_llama",
}
"""Backend to the module whose ``make(case, weights, tokens, context)`` gives its :class:`Model`."""
ON_DEVICE = "frugalbench.workloads.layers.decode_on_device"
"""The same for every backend of a CUDA device."""
ROTATION = {"decode": NEXT_TOKENS, "prefill": PROMPTS}
PROBED_TOKENS = 4
MOST_READING_S = 150.0
"""An arm that would take longer to read text and prompt is hopelessly slow; a precision that the processor does not
multiply can be hundreds of times slower than the others."""


class Model(Protocol):
    """One arm's model in memory."""

    artefacts: tuple[Artefact, ...]
    lossy: bool
    kernel: str
    details: dict[str, Any]

    def read(self, count: int) -> None: ...
    def fill(self) -> None: ...
    def decode(self, index: int) -> Any: ...
    def prefill(self, index: int) -> Any: ...
    def logits(self, found: Any) -> np.ndarray: ...
    def held(self) -> Any: ...
    def loaded_bytes(self) -> int: ...
    def threads(self) -> int: ...
    def close(self) -> None: ...


def prepare(arm: Arm, context: Context) -> None:
    """Pack, or write and quantise, what is not cached yet, and find the float64 answer of what is stored."""
    if nothing_to_prepare(arm, context):
        return
    loaded = load(arm, context)
    for case in arm.cases:
        loaded.define(case)
    loaded.close()


def nothing_to_prepare(arm: Arm, context: Context) -> bool:  # noqa: ARG001
    """On a device, where weights and answers take a second and are not kept."""
    return context.device != "cpu"


def load(arm: Arm, context: Context) -> "LoadedModel":
    """Hold the arm's model."""
    case = arm.cases[0]
    if "torch" in arm.imports:
        import torch

        torch.set_num_threads(context.threads)
    module = LAYERS[case.backend] if context.device == "cpu" else ON_DEVICE
    weights = _weights(case.params, context)
    model: Model = import_module(module).make(case, weights, tokens_of(case.params), context)
    return LoadedModel(model, context)


def reference(case: Case, context: Context) -> Arrays:
    """Float64 logits of the model as drawn: ``logits`` (position, V)."""
    return {"logits": _reference(_identity(case), context)[case.regime]}


def reference_key(case: Case) -> str:
    """Model, tokens and seed; every arm shares the reference."""
    return f"{WORKLOAD}-{_identity(case)}-{case.regime}"


def _identity(case: Case) -> tuple[tuple[str, Any], ...]:
    own = ("scheme", "bits", "format_tolerance", "tokens", "position", "launch")
    return tuple(sorted((key, value) for key, value in case.params.items() if key not in own))


@cache
def _reference(identity: tuple[tuple[str, Any], ...], context: Context) -> Arrays:
    """Of both regimes: they share a pass."""
    params = dict(identity)
    weights = _weights(params, context)
    if context.device != "cpu":
        from frugalbench.workloads.layers.decode_exact import Drawn

        return _exact(params, Drawn(weights), context)
    return _exact(params, Unquantised(weights), context)


def _exact(params: dict[str, Any], held: Any, context: Context) -> Arrays:
    """Of both regimes: on the device, where it takes a second, or on the processor and kept."""
    if context.device != "cpu":
        from frugalbench.workloads.layers import decode_exact

        return decode_exact.answers(params, held)
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=context.threads):
        return known_answers(params, held, context.cache_dir / WORKLOAD)


def _weights(params: dict[str, Any], context: Context) -> Any:
    """Drawn where they are used: a processor's are kept in the run's scratch folder."""
    shape = DecoderShape.of_params(params)
    if context.device == "cpu":
        return Weights(shape, params["seed"], context.scratch_dir)
    from frugalbench.workloads.layers.decode_exact import DeviceWeights

    return DeviceWeights(shape, params["seed"], context.device)


class LoadedModel:
    """An arm's model in memory."""

    def __init__(self, model: Model, context: Context) -> None:
        self.model, self._context = model, context
        self._answers: Arrays | None = None
        self._filled = False
        self._capped: str | None = None

    @property
    def artefacts(self) -> tuple[Artefact, ...]:
        """Packed weights or model files."""
        return self.model.artefacts

    def bind(self, case: Case) -> Bound:
        """Make one regime callable."""
        rotation = ROTATION[case.regime]
        step: Callable[[int], Any] = self.model.decode if case.regime == "decode" else self.model.prefill
        capped = self._hopeless(case)
        if case.regime == "decode" and not self._filled and not capped:
            self.model.fill()
            self._filled = True
        call, launch = self._launched(case, lambda index: step(index % rotation), rotation, bool(capped))
        return Bound(
            call=call,
            output=lambda index: {"logits": self.model.logits(call(index))},
            rotation=rotation,
            synchronize=_nothing if (place := device_of(case)) is None else place.synchronize,
            device=place,
            own_definition=(lambda index: self._definition(case, index % rotation)) if self.model.lossy else None,
            facts=self._facts(case),
            details={"kernel": self.model.kernel, "threads": self.model.threads(), **self.model.details, **launch},
            capped=capped,
        )

    def _launched(
        self, case: Case, call: Callable[[int], Any], rotation: int, capped: bool
    ) -> tuple[Callable[[int], Any], dict[str, str]]:
        """The call as it reaches the device, and how; nothing to say of a processor."""
        place, unrecorded = device_of(case), getattr(self.model, "unrecorded", "")
        if place is None:
            return call, {}
        if capped or unrecorded or wanted(case.params) != GRAPH:
            return call, {"launch": f"{EAGER}: {unrecorded}" if unrecorded else EAGER}
        replay, how = place.captured(call, rotation)
        return replay, {"launch": how}

    def _hopeless(self, case: Case) -> str:
        """Why this arm takes no turn: too slow at reading a few tokens, twice; empty when it does."""
        if self._capped is None:
            count = min(PROBED_TOKENS, case.params["context"])
            wanted = case.params["context"] + case.params["prompt_tokens"]
            took_s = min(self._reading_s(count) for _ in range(2))
            slow = took_s * wanted / count > MOST_READING_S
            self._capped = f"reading {count} tokens took {took_s:.1f} s, so {wanted} would take minutes" if slow else ""
        return self._capped

    def _reading_s(self, count: int) -> float:
        start = time.perf_counter()
        self.model.read(count)
        return time.perf_counter() - start

    def close(self) -> None:
        """Release what the library holds."""
        self.model.close()

    def define(self, case: Case) -> None:
        """Find the float64 answers of what is stored, of both regimes, unless they are known."""
        if self._answers is None and self.model.lossy:
            self._answers = _exact(case.params, self.model.held(), self._context)

    def _definition(self, case: Case, position: int) -> Arrays:
        self.define(case)
        assert self._answers is not None
        return {"logits": self._answers[case.regime][position]}

    def _facts(self, case: Case) -> dict[str, Quantity]:
        shape = DecoderShape.of_params(case.params)
        other = getattr(self.model, "unquantised_bytes", int)()
        kept = {"unquantised_bytes": _bytes(other, "look-up table and gains, not in the format")} if other else {}
        return kept | {
            "weight_bytes": _bytes(self.model.loaded_bytes(), "all weights as loaded: codes, scales, tables, gains"),
            "bf16_bytes": _bytes(2 * shape.parameters, "2 bytes per weight"),
        }


def _nothing() -> None:
    pass


def _bytes(value: float, source: str) -> Quantity:
    return Quantity(value=float(value), unit="byte", tier=Tier.MEASURED, source=source)
