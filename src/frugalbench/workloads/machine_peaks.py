"""Runs the native peak kernels; every arm is checked against a checksum in closed form.

Buffers hold ``base[i % BLOCK] * (2 * (i // BLOCK) + 1)`` modulo 2**64, with ``base`` random and odd: distinct
blocks, no zero word, filled at memory speed; the sum of each block, and of all, follows from the sum of ``base``.
64-bit checksums are compared as two 32-bit halves, which float64 holds exactly.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from frugalbench.backends import native
from frugalbench.schema import Arm, Artefact, Case
from frugalbench.workloads.base import Arrays, Bound, Context

BLOCK = 2**17
"""Words per block: 1 MiB."""
SAMPLES = 4096
"""Words of a copy that are compared one by one."""
DOT4 = 1 * 5 + 2 * -6 + 3 * 7 + 4 * -8
"""What four byte products of ``mac_int8`` add up to (``kernels/README.md``)."""

Run = Callable[[], int | float]


class PeakArm:
    """One peak: its buffers (if any) and the kernel call."""

    def __init__(self, arm: Arm) -> None:
        self._peaks = native.peaks()
        built = native.built()
        self.artefacts = (
            Artefact(
                name=built.path.name, build_s=built.build_s, cached=built.cached, size_bytes=built.path.stat().st_size
            ),
        )
        self._buffers = _buffers(arm.cases[0])

    def bind(self, case: Case) -> Bound:
        """The kernel of ``case.variant``. Raises ``RuntimeError`` for a variant without one."""
        operation, run = self._kernel(case)
        isa = self._peaks.which(operation)
        return Bound(
            call=lambda _index: run(),
            output=lambda _index: self._output(case, run),
            rotation=1,
            details={"isa": isa, "threads": case.params["threads"]},
        )

    def close(self) -> None:
        """Drops the buffers."""
        self._buffers = ()

    def _kernel(self, case: Case) -> tuple[native.Operation, Run]:
        params, peaks = case.params, self._peaks
        threads = params["threads"]
        match case.variant:
            case "fp32_flop_per_s":
                return native.Operation.FMA, lambda: peaks.fma_fp32(threads, params["fma_per_thread"])
            case "bf16_flop_per_s":
                return native.Operation.BF16, lambda: peaks.mac_bf16(threads, params["mac_per_thread"])
            case "int8_op_per_s":
                return native.Operation.INT8, lambda: peaks.mac_int8(threads, params["mac_per_thread"])
            case "read_bytes_per_s":
                return native.Operation.READ, lambda: peaks.read(threads, self._buffers[0])
            case "copy_bytes_per_s":
                return native.Operation.COPY, lambda: peaks.copy(threads, self._buffers[1], self._buffers[0])
        raise RuntimeError(f"no peak kernel is called '{case.variant}'")

    def _output(self, case: Case, run: Run) -> Arrays:
        if case.variant != "copy_bytes_per_s":
            return {"checksum": _number(run())}
        target = self._buffers[1]
        target[:] = 1  # what an earlier call left there must not pass for this one's work
        moved = run()
        return copied(target) | {"checksum": _number(moved)}


def copied(target: np.ndarray) -> Arrays:
    """Sums and sampled words of a copy (uint64), to be compared with those of what it is a copy of."""
    sums = target.reshape(-1, BLOCK).sum(axis=1, dtype=np.uint64)
    words = target[_sampled(target.size)]
    return {"checksum": _number(int(target.sum(dtype=np.uint64))), "blocks": _halves(sums), "words": _halves(words)}


def load(arm: Arm, context: Context) -> Any:
    """Build or find the kernels, allocate and fill the buffers."""
    if context.device == "cpu":
        return PeakArm(arm)
    from frugalbench.workloads import machine_peaks_cuda

    return machine_peaks_cuda.CudaPeak(arm, context)


def reference(case: Case, context: Context) -> Arrays:
    """Sums in closed form, shape (1, …), and on a device rows of float64 products; without kernels or buffers."""
    if context.device == "cpu":
        return closed_form(case)
    from frugalbench.workloads import machine_peaks_cuda

    return machine_peaks_cuda.reference(case, context)


def closed_form(case: Case) -> Arrays:
    """Checksums, shape (1, …): computed from the parameters."""
    return {name: value[np.newaxis] for name, value in _expected(case).items()}


def reference_key(case: Case) -> str:
    """Variant and parameters decide the answer."""
    return f"{case.workload}:{case.variant}:{sorted(case.params.items())}"


def _expected(case: Case) -> Arrays:
    params = case.params
    if case.variant == "fp32_flop_per_s":  # each pair of multiply-adds adds 2, so each adds 1 on average
        return {"checksum": _number(float(params["threads"] * params["fma_per_thread"]))}
    if case.variant == "bf16_flop_per_s":  # each pair of products adds 1
        return {"checksum": _number(float(params["threads"] * params["mac_per_thread"] // 2))}
    if case.variant == "int8_op_per_s":
        return {"checksum": _number(DOT4 * params["threads"] * params["mac_per_thread"] // 4 % 2**32)}
    base, blocks = base_words(params["seed"]), params["buffer_bytes"] // 8 // BLOCK
    checksum = read_checksum(params["seed"], blocks)
    if case.variant == "read_bytes_per_s":
        return {"checksum": checksum}
    base_sum = sum(int(word) for word in base)
    sums = np.array([base_sum * (2 * block + 1) % 2**64 for block in range(blocks)], dtype=np.uint64)
    at = _sampled(blocks * BLOCK)
    words = base[at % BLOCK] * (2 * (at // BLOCK) + 1).astype(np.uint64)
    return {"checksum": checksum, "blocks": _halves(sums), "words": _halves(words)}


def read_checksum(seed: int, blocks: int) -> np.ndarray:
    """What :func:`fill`'s first ``blocks`` blocks (1 MiB each) add up to, as two halves, shape (1, 2)."""
    base_sum = sum(int(word) for word in base_words(seed))
    return checksum_halves(base_sum * blocks**2 % 2**64)  # 1 + 3 + … + (2n - 1) = n²


def checksum_halves(value: int) -> np.ndarray:
    """A 64-bit checksum as two numbers that float64 holds exactly, shape (1, 2)."""
    return _number(value)


def _buffers(case: Case) -> tuple[np.ndarray, ...]:
    if "buffer_bytes" not in case.params:
        return ()
    source = native.aligned(case.params["buffer_bytes"])
    fill(source, case.params["seed"])
    if case.variant != "copy_bytes_per_s":
        return (source,)
    target = native.aligned(source.nbytes)
    target[:] = 1
    return source, target


def fill(words: np.ndarray, seed: int) -> None:
    """Fill a ``uint64`` array whose length is a multiple of ``BLOCK`` as the module's first lines say."""
    base = base_words(seed)
    for index, block in enumerate(words.reshape(-1, BLOCK)):
        np.multiply(base, np.uint64(2 * index + 1), out=block)


def base_words(seed: int) -> np.ndarray:
    """The words of the first block, uint64, odd."""
    words = np.random.default_rng([seed, BLOCK]).integers(0, 2**64, BLOCK, dtype=np.uint64)
    return words | np.uint64(1)


def _sampled(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, SAMPLES).astype(np.int64)


def _number(value: int | float) -> np.ndarray:
    return np.array([value]) if isinstance(value, float) else _halves(np.array([value], dtype=np.uint64))


def _halves(words: np.ndarray) -> np.ndarray:
    """``uint64`` words as float64 pairs (high, low), shape (…, 2)."""
    return np.stack([words >> np.uint64(32), words & np.uint64(2**32 - 1)], axis=-1).astype(np.float64)


def prepare(_arm: Arm, context: Context) -> None:
    """Build the kernels."""
    if context.device == "cpu":
        native.built()
