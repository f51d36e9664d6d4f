"""Own native kernels, called through ctypes (which releases the GIL)."""

import ctypes
from enum import IntEnum
from functools import cache

import numpy as np

from frugalbench.native_build import Built, build
from frugalbench.schema import FrugalbenchError

ABI_VERSION = 1
ALIGNMENT_BYTES = 64

_STATUS = {
    -1: "this processor lacks the instruction set",
    -2: "a size or an alignment does not fit",
    -3: "a thread could not be started",
}


class Operation(IntEnum):
    """Numbers of ``fb_which_kernel``'s first argument."""

    FMA = 0
    INT8 = 1
    READ = 2
    COPY = 3
    BF16 = 4


class Isa(IntEnum):
    """Numbers of every kernel's ``path`` argument."""

    AUTO = 0
    PORTABLE = 1
    AVX2 = 2
    AVX512 = 3
    AVX512_VNNI = 4
    NEON = 5
    AVX512_BF16 = 6


class Peaks:
    """The kernels of ``kernels/cpu/peaks.cpp``. Each method returns the checksum described in ``kernels/README.md``.

    All raise ``RuntimeError`` with one sentence when the kernel reports a status other than done.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.fb_which_kernel.restype = ctypes.c_char_p
        if (found := library.fb_abi_version()) != ABI_VERSION:
            raise FrugalbenchError(f"native kernels have ABI {found}, not {ABI_VERSION}; install frugalbench again")

    def which(self, operation: Operation, isa: Isa = Isa.AUTO) -> str | None:
        """Name of the path that would run, ``None`` when this processor has none such."""
        name: bytes | None = self._library.fb_which_kernel(int(operation), int(isa))
        return name.decode() if name else None

    def fma_fp32(self, threads: int, fma_per_thread: int, isa: Isa = Isa.AUTO) -> float:
        """``fma_per_thread`` (a multiple of 384) multiply-adds in registers on each thread; 2 FLOP each."""
        checksum = ctypes.c_double()
        self._call("fb_fma_fp32", isa, threads, ctypes.c_int64(fma_per_thread), ctypes.byref(checksum))
        return checksum.value

    def mac_int8(self, threads: int, mac_per_thread: int, isa: Isa = Isa.AUTO) -> int:
        """``mac_per_thread`` (a multiple of 1024) byte multiply-adds in registers on each thread; 2 op each."""
        checksum = ctypes.c_uint32()
        self._call("fb_mac_int8", isa, threads, ctypes.c_int64(mac_per_thread), ctypes.byref(checksum))
        return checksum.value

    def mac_bf16(self, threads: int, mac_per_thread: int, isa: Isa = Isa.AUTO) -> float:
        """``mac_per_thread`` (a multiple of 384) bfloat16 multiply-adds into float32 on each thread; 2 FLOP each."""
        checksum = ctypes.c_double()
        self._call("fb_mac_bf16", isa, threads, ctypes.c_int64(mac_per_thread), ctypes.byref(checksum))
        return checksum.value

    def read(self, threads: int, data: np.ndarray, isa: Isa = Isa.AUTO) -> int:
        """Sum of the 64-bit words of ``data`` modulo 2**64, every byte read once."""
        checksum = ctypes.c_uint64()
        self._call("fb_read", isa, threads, _pointer(data), ctypes.c_size_t(data.nbytes), ctypes.byref(checksum))
        return checksum.value

    def copy(self, threads: int, to: np.ndarray, source: np.ndarray, isa: Isa = Isa.AUTO) -> int:
        """Copies ``source`` to ``to`` (equal sizes); returns the sum of the words it moved, as :meth:`read` does."""
        if to.nbytes != source.nbytes:
            raise ValueError(f"copy needs equal sizes, not {to.nbytes} and {source.nbytes} bytes")
        checksum, size = ctypes.c_uint64(), ctypes.c_size_t(source.nbytes)
        self._call("fb_copy", isa, threads, _pointer(to), _pointer(source), size, ctypes.byref(checksum))
        return checksum.value

    def _call(self, name: str, isa: Isa, threads: int, *arguments: object) -> None:
        status = getattr(self._library, name)(int(isa), int(threads), *arguments)
        if status != 0:
            raise RuntimeError(f"{name}: {_STATUS.get(status, f'status {status}')}")


@cache
def built() -> Built:
    """The shared object of ``kernels/cpu/peaks.cpp``, built on first use."""
    return build("cpu/peaks.cpp")


@cache
def peaks() -> Peaks:
    """The kernels, built on first use. Raises :class:`FrugalbenchError` when they cannot be."""
    path = built().path
    try:
        return Peaks(ctypes.CDLL(str(path)))
    except OSError as error:
        raise FrugalbenchError(f"cannot load {path} ({error}); delete it and run again") from error


def aligned(size_bytes: int) -> np.ndarray:
    """An uninitialised ``uint64`` array of ``size_bytes`` that starts on a 64-byte boundary."""
    raw = np.empty(size_bytes + ALIGNMENT_BYTES, dtype=np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT_BYTES
    return raw[offset : offset + size_bytes].view(np.uint64)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
