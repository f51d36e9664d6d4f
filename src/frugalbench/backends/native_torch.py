"""What the own kernels on CPU tensors share: building for this processor, checks of tensors, workspace and status."""

import ctypes
import threading
from functools import cache

import torch

from frugalbench.backends.native import ABI_VERSION, Operation, peaks
from frugalbench.native_build import Built, build
from frugalbench.schema import FrugalbenchError

_OPENMP = "-fopenmp"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")
FLAGS = {
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "avx512": _AVX512,
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
}
"""Compiler flags per instruction set; one that is not listed needs none."""
_STATUS = {
    -2: "a size does not fit (all at least 1, no more experts per token than experts, weights of 4, 8 or 32 bits)",
    -4: "a token is routed to an expert that does not exist",
    -5: "the workspace is too small",
    -6: "a weight is not a finite number",
}


@cache
def built(source: str, operation: Operation, isa: str | None = None) -> Built:
    """``source`` for this processor's best instruction set for ``operation``, or for ``isa`` (a key of ``FLAGS``)."""
    flags = FLAGS.get(isa or peaks().which(operation) or "portable", ())
    try:
        return build(source, (*flags, _OPENMP))
    except FrugalbenchError:
        return build(source, flags)  # a compiler without OpenMP: the kernel then says that it runs on one thread


def library(built_as: Built) -> ctypes.CDLL:
    """The shared object, of the right ABI. Raises :class:`FrugalbenchError` when it cannot be used."""
    try:
        loaded = ctypes.CDLL(str(built_as.path))
    except OSError as error:
        raise FrugalbenchError(f"cannot load {built_as.path} ({error}); delete it and run again") from error
    if (found := loaded.fb_abi_version()) != ABI_VERSION:
        raise FrugalbenchError(f"native kernels have ABI {found}, not {ABI_VERSION}; install frugalbench again")
    return loaded


_LOCAL = threading.local()


def space(name: str, values: int) -> torch.Tensor:
    """Memory that is kept between calls, per thread; a fresh one would be paid for page by page each time."""
    found: torch.Tensor | None = getattr(_LOCAL, name, None)
    if found is None or found.numel() < values:
        found = torch.empty(values)
        setattr(_LOCAL, name, found)
    return found


def contiguous(*tensors: torch.Tensor) -> None:
    """Raise ``RuntimeError`` unless all are contiguous float32 tensors on the CPU."""
    for tensor in tensors:
        if tensor.dtype is not torch.float32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise RuntimeError(
                f"the kernel takes contiguous float32 tensors on the CPU, not {tensor.dtype} on {tensor.device}"
            )


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def alike(*tensors: torch.Tensor) -> torch.dtype:
    """The one floating format of all; raises ``RuntimeError`` unless they are contiguous and on the CPU."""
    kind = tensors[0].dtype
    for tensor in tensors:
        if kind not in _FLOATS or tensor.dtype is not kind or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise RuntimeError(
                f"the kernel takes contiguous float32 tensors on the CPU, or all of one format of 16 bits, not "
                f"{tensor.dtype} on {tensor.device}"
            )
    return kind


def known(name: str, found: int) -> int:
    """A size, which is negative where it is a status."""
    check(name, min(found, 0))
    return found


def check(name: str, status: int) -> None:
    """Raise ``RuntimeError`` with one sentence for a status other than done."""
    if status != 0:
        raise RuntimeError(f"{name}: {_STATUS.get(status, f'status {status}')}")
