"""Builder of ``kernel_tax``: one SwiGLU layer, by hand and in every portable way. Shapes: ``specs/kernel_tax.py``.

What is timed is what a caller of each way waits for: torch tensors in and out where torch is the host, numpy arrays
where a portable runtime is.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from frugalbench.backends import backend
from frugalbench.backends.base import Options, Runnable, content_key
from frugalbench.paths import shipped
from frugalbench.schema import Arm, Artefact, Case, Quantity, Tier
from frugalbench.specs.kernel_tax import PORTABLE
from frugalbench.specs.moe_inputs import dense_weights, generator
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.layers import code_lines, swiglu_onnx

_INPUTS = 4
"""Distinct batches of tokens."""


def load(arm: Arm, context: Context) -> "KernelTax":
    """Hold the arm's copies of the layer."""
    variant = arm.cases[0].variant
    return (PortableLayers if variant in PORTABLE else TorchLayers)(arm, context)


def _batch(params: dict[str, Any], seed: int, number: int) -> np.ndarray:
    shape = (params["tokens"], params["d_model"])
    return generator(seed, "kernel_tax", *shape, number).standard_normal(shape, dtype=np.float32)


class KernelTax:
    """What all arms share: inputs, rotation, and how the answer is taken."""

    artefacts: tuple[Artefact, ...] = ()
    call_layer: Callable[[int, Any], Any]

    def __init__(self, arm: Arm, context: Context) -> None:
        self.context, self.variant = context, arm.cases[0].variant
        self.copies = arm.cases[0].params["copies"]

    def put(self, x_TD: np.ndarray) -> Any:
        """Tokens in the form that the arm takes."""
        raise NotImplementedError

    def values(self, found: Any) -> np.ndarray:
        """An answer as numpy."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What ran."""
        return {}

    def written(self) -> tuple[int, str]:
        """Lines of code of the kernel as its author writes it, and where they are."""
        raise NotImplementedError

    def bind(self, case: Case) -> Bound:
        """Make a number of tokens callable; position i uses copy i of the weights."""
        copies, call_layer = self.copies, self.call_layer
        prepared = [self.put(_batch(case.params, self.context.seed, number)) for number in range(_INPUTS)]

        def call(index: int) -> object:
            copy = index % copies
            return call_layer(copy, prepared[copy % _INPUTS])

        lines, where = self.written()
        lines_fact = Quantity(value=float(lines), unit="1", tier=Tier.MEASURED, source=where)
        return Bound(
            call=call,
            output=lambda index: {"y": np.asarray(self.values(call(index)))},
            rotation=copies,
            facts={"code_lines": lines_fact},
            details=self.describe(),
        )

    def close(self) -> None:
        """Nothing outlives the process."""


class TorchLayers(KernelTax):
    """Layers that take torch tensors: torch's own, compiled, by hand, in plain C++."""

    def __init__(self, arm: Arm, context: Context) -> None:
        import torch

        super().__init__(arm, context)
        torch.set_num_threads(context.threads)
        arrays = (dense_weights(context.seed, arm.cases[0].params, copy) for copy in range(self.copies))
        weights = [{name: torch.from_numpy(value) for name, value in item.items()} for item in arrays]
        self.layers = [_layer(self.variant, item, context) for item in weights]

        def call_layer(copy: int, x_TD: Any) -> Any:
            with torch.inference_mode():
                return self.layers[copy](x_TD)

        self.call_layer = call_layer

    def put(self, x_TD: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(x_TD)

    def values(self, found: Any) -> np.ndarray:
        return np.asarray(found.numpy())

    def describe(self) -> dict[str, Any]:
        return {"implementation": self.layers[0].implementation}

    def written(self) -> tuple[int, str]:
        from frugalbench.backends import native_moe
        from frugalbench.workloads.layers import ffn, plain_ffn

        sources = {"hand-tuned": native_moe.SOURCE, "plain-cpp": plain_ffn.SOURCE}
        if source := sources.get(self.variant):
            root = shipped("kernels") / "cpu"
            files = code_lines.cpp_files((root.parent / source).resolve(), root)
            return code_lines.of_cpp(files), ", ".join(sorted(path.name for path in files))
        return code_lines.of_python([ffn.Dense.__call__, ffn._swiglu]), "layers/ffn.py: Dense, _swiglu"


def _layer(variant: str, weights: dict[str, Any], context: Context) -> Any:
    from frugalbench.workloads.layers import ffn, native_ffn, plain_ffn

    if variant == "torch-compile":
        from frugalbench.workloads.layers.compiled_dense import CompiledDense, set_up

        set_up(context.cache_dir)
        return CompiledDense(weights)
    made = {"hand-tuned": native_ffn.NativeDense, "plain-cpp": plain_ffn.PlainFfn, "torch-eager": ffn.Dense}
    return made[variant](weights)


class PortableLayers(KernelTax):
    """One session per copy, each from a file of ONNX operators."""

    def __init__(self, arm: Arm, context: Context) -> None:
        super().__init__(arm, context)
        case = arm.cases[0]
        runtime = backend(case.backend)
        example = {swiglu_onnx.INPUT: _batch(case.params, context.seed, 0)}
        self.runnables: list[Runnable] = []
        for copy in range(self.copies):
            options = self._options(case, copy)
            path = context.scratch_dir / f"{options.key}-{case.variant}-{os.getpid()}.onnx"
            weights = dense_weights(context.seed, case.params, copy)
            swiglu_onnx.write(weights["gate_up"], weights["down"], path)
            self.runnables.append(runtime.load(path, options, [example]))
            path.unlink()
        self.call_layer = lambda copy, feed: self.runnables[copy].run(feed)

    def _options(self, case: Case, copy: int) -> Options:
        key = content_key({"params": case.params, "seed": self.context.seed, "copy": copy})
        ends = (swiglu_onnx.INPUT,), (swiglu_onnx.OUTPUT,)
        return Options(self.context.threads, self.context.device, self.context.cache_dir, key, *ends)

    def put(self, x_TD: np.ndarray) -> Any:
        return self.runnables[0].prepare({swiglu_onnx.INPUT: x_TD})

    def values(self, found: Any) -> np.ndarray:
        return self.runnables[0].fetch(found)[swiglu_onnx.OUTPUT]

    def describe(self) -> dict[str, Any]:
        runnable = self.runnables[0]
        return {"implementation": f"{self.variant}, ONNX operators", "placement": runnable.placement().histogram(),
                "runtime": runnable.details}  # fmt: skip

    def written(self) -> tuple[int, str]:
        return code_lines.of_python([swiglu_onnx.graph]), "layers/swiglu_onnx.py: graph"


def reference(case: Case, context: Context) -> Arrays:
    """Float64 answers by position, in numpy."""
    answers = partial(_answer, case.params, context.seed)
    return {"y": np.stack([answers(copy) for copy in range(case.params["copies"])])}


def _answer(params: dict[str, Any], seed: int, copy: int) -> np.ndarray:
    weights = {name: value.astype(np.float64) for name, value in dense_weights(seed, params, copy).items()}
    both = _batch(params, seed, copy % _INPUTS).astype(np.float64) @ weights["gate_up"].T
    gate, up = np.split(both, 2, axis=-1)
    return np.asarray((gate / (1 + np.exp(-gate)) * up) @ weights["down"].T)


def reference_key(case: Case) -> str:
    """All arms compute the same."""
    return json.dumps([case.workload, case.params], sort_keys=True)


def prepare(arm: Arm, context: Context) -> None:
    """Compile what is not cached yet."""
    loaded = load(arm, context)
    for case in arm.cases:
        loaded.bind(case).call(0)
    loaded.close()
