"""The kernels of ``kernel_tax`` that take torch tensors, and where each is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from frugalbench.backends import native_moe
from frugalbench.specs.kernel_tax import MOE, RMS_NORM, SWIGLU
from frugalbench.workloads.layers import ffn, native_ffn, plain_ffn, rms_norm

COMPILED = "torch-compile"
_LAYERS: dict[str, dict[str, Callable[..., Any]]] = {
    SWIGLU: {
        "hand-tuned": native_ffn.NativeDense, "plain-cpp": plain_ffn.PlainFfn, "torch-eager": ffn.Dense,
    },
    RMS_NORM: {
        "hand-tuned": rms_norm.NativeNorm, "plain-cpp": rms_norm.PlainNorm, "torch-eager": rms_norm.TorchNorm,
    },
    MOE: {"hand-tuned": native_ffn.NativeMoe, "torch-eager": ffn.SortedMoe},
}  # fmt: skip
Texts = tuple[dict[str, str], list[Callable[..., object]], str]
_TEXTS: dict[str, Texts] = {
    SWIGLU: (
        {"hand-tuned": native_moe.SOURCE, "plain-cpp": plain_ffn.SOURCE},
        [ffn.Dense.__call__, ffn._swiglu],
        "layers/ffn.py: Dense, _swiglu",
    ),
    RMS_NORM: (
        {"hand-tuned": rms_norm.NativeNorm.source, "plain-cpp": rms_norm.PlainNorm.source},
        [rms_norm.TorchNorm.__call__, rms_norm._norm],
        "layers/rms_norm.py: TorchNorm, _norm",
    ),
    MOE: (
        {"hand-tuned": native_moe.SOURCE},
        [ffn.chosen, ffn._Sorted.mix, ffn._Sorted.mix_copies, ffn.SortedMoe.multiply, ffn._swiglu],
        "layers/ffn.py: chosen, SortedMoe",
    ),
}


def layer(kernel: str, variant: str, weights: dict[str, Any], params: dict[str, Any], cache_dir: Path) -> Any:
    """A callable on tokens T x D. Raises ``RuntimeError`` where it has to be compiled and cannot be."""
    made = _compiled(kernel, cache_dir) if variant == COMPILED else _LAYERS[kernel][variant]
    return made(weights, params) if kernel == MOE else made(weights)


def _compiled(kernel: str, cache_dir: Path) -> Callable[..., Any]:
    """Imported late: the compiler is large, and no other arm needs it."""
    from frugalbench.workloads.layers import compiled_dense, compiled_ffn, compiled_norm

    compiled_ffn.set_up(cache_dir)
    classes: dict[str, Callable[..., Any]] = {
        SWIGLU: compiled_dense.CompiledDense, RMS_NORM: compiled_norm.CompiledNorm, MOE: compiled_ffn.CompiledMoe,
    }  # fmt: skip
    return classes[kernel]


def texts(kernel: str) -> Texts:
    """Source by variant of what is written in C++, what is written in Python, and where that is."""
    return _TEXTS[kernel]
