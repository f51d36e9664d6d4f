"""What this machine can do at most: multiply-adds per second in registers, bytes per second from memory.

One comparison with one arm per peak. The rate of an arm is its cost (``flop``, ``op`` or ``traffic_bytes``)
over its time; every other workload is shown as a share of these rates. The kernels are the project's own
(``kernels/cpu/peaks.cpp``), because a naive read loop understates memory bandwidth by about a third.
"""

from dataclasses import dataclass

from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, take

WORKLOAD = "machine_peaks"
REGIME = "peak"
BACKEND = "native"

FMA_PER_THREAD = 384_000_000
"""Multiply-adds per call and thread: about 7 ms at 115 GFLOP/s a core; the kernel wants a multiple of 384."""
MAC_PER_THREAD = 1_024_000_000
"""Byte multiply-adds per call and thread: 5 to 10 ms at 210 to 430 GOP/s a core; a multiple of 1024."""
CACHE_MULTIPLE = 4
"""Buffers are this many times the last-level cache, so that nearly every line comes from memory."""
LEAST_MIB, MOST_MIB = 64, 512

TOLERANCE = 1e-12
"""Checksums are exact integers below 2**53; any difference at all is larger than this."""

MIB = 2**20


@dataclass(frozen=True)
class _Sizes:
    threads: int
    fma_per_thread: int
    mac_per_thread: int
    buffer_mib: int


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """One comparison of four single-case arms; skipped with a reason on a device other than the CPU.

    Options: ``buffer_mib`` (0: from the cache size), ``fma_per_thread``, ``mac_per_thread``.
    Raises :class:`FrugalbenchError` for an unknown key or a size that the kernels cannot take.
    """
    options = take(settings, {"buffer_mib": 0, "fma_per_thread": FMA_PER_THREAD, "mac_per_thread": MAC_PER_THREAD})
    _check(settings, options)
    sizes = _Sizes(
        threads=settings.threads or machine.logical_cores,
        fma_per_thread=options["fma_per_thread"],
        mac_per_thread=options["mac_per_thread"],
        buffer_mib=options["buffer_mib"] or buffer_mib(machine.last_level_cache_bytes),
    )
    cases = _cases(sizes, settings.device, settings.seed)
    if settings.device != "cpu":
        reason = f"no peak kernels for device '{settings.device}'"
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in cases))
    return Expansion(comparisons=(_comparison(cases, sizes),))


def buffer_mib(last_level_cache_bytes: int) -> int:
    """Buffer size in MiB: four times the last-level cache, at least 64 and at most 512."""
    wanted = -(-CACHE_MULTIPLE * last_level_cache_bytes // MIB)
    return min(max(wanted, LEAST_MIB), MOST_MIB)


def _check(settings: Settings, options: dict[str, int]) -> None:
    for key, multiple, least in (("fma_per_thread", 384, 384), ("mac_per_thread", 1024, 1024), ("buffer_mib", 1, 0)):
        value = options[key]
        if value < least or value % multiple:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be a multiple of {multiple}, not {value}")


def _comparison(cases: tuple[Case, ...], sizes: _Sizes) -> Comparison:
    held_bytes = {"read_bytes_per_s": 1, "copy_bytes_per_s": 2}
    arms = tuple(
        Arm(
            id=case.variant,
            cases=(case,),
            imports=(),
            memory_bytes=float(held_bytes.get(case.variant, 0) * sizes.buffer_mib * MIB),
        )
        for case in cases
    )
    return Comparison(id=WORKLOAD, workload=WORKLOAD, arms=arms, estimate_s=1.2, competes=False)


def _cases(sizes: _Sizes, device: str, seed: int) -> tuple[Case, ...]:
    fma, mac = sizes.threads * sizes.fma_per_thread, sizes.threads * sizes.mac_per_thread
    buffer_bytes = sizes.buffer_mib * MIB
    registers = {"threads": sizes.threads}
    memory = {"threads": sizes.threads, "buffer_bytes": buffer_bytes, "seed": seed}
    return (
        _case(
            "fp32_flop_per_s", "float32", device, registers | {"fma_per_thread": sizes.fma_per_thread}, flop=2.0 * fma
        ),
        _case("int8_op_per_s", "int8", device, registers | {"mac_per_thread": sizes.mac_per_thread}, op=2.0 * mac),
        _case("read_bytes_per_s", "bytes", device, memory, traffic_bytes=1.0 * buffer_bytes),
        _case("copy_bytes_per_s", "bytes", device, memory, traffic_bytes=2.0 * buffer_bytes),
    )


def _case(
    variant: str,
    dtype: str,
    device: str,
    params: dict[str, int],
    flop: float = 0.0,
    op: float = 0.0,
    traffic_bytes: float = 0.0,
) -> Case:
    shape = f"t{params['threads']}" + (f"-{params['buffer_bytes'] // MIB}mib" if "buffer_bytes" in params else "")
    return Case(
        id=f"{WORKLOAD}/{variant}/{shape}/{REGIME}/{BACKEND}/{device}",
        workload=WORKLOAD,
        variant=variant,
        shape=shape,
        regime=REGIME,
        backend=BACKEND,
        device=device,
        dtype=dtype,
        params=dict(params),
        cost=Cost(token=0.0, flop=flop, weight_bytes=0.0, traffic_bytes=traffic_bytes, op=op),
        tolerance=TOLERANCE,
    )
