"""What this machine can do at most: multiply-adds per second in registers, bytes per second from memory.

One comparison with one arm per peak. The rate of an arm is its cost (``flop``, ``op`` or ``traffic_bytes``)
over its time; every other workload is shown as a share of these rates. The kernels are the project's own
(``kernels/cpu/peaks.cpp``), because a naive read loop understates memory bandwidth by about a third.

On a CUDA device the products are torch's on large random matrices: the best that a library reaches here within the
board's power, not the bound of a data sheet, so that a share may exceed 1 by a little.
"""

from dataclasses import dataclass

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs.base import Expansion, MachineView, Settings, take
from frugalbench.specs.quant_formats import cpu_flags, multiplies_bf16

WORKLOAD = "machine_peaks"
REGIME = "peak"
BACKEND = "native"

FMA_PER_THREAD = 384_000_000
"""Multiply-adds per call and thread: about 7 ms at 115 GFLOP/s a core; the kernel wants a multiple of 384."""
MAC_PER_THREAD = 1_024_000_000
"""Byte multiply-adds per call and thread: 5 to 10 ms at 210 to 430 GOP/s a core; a multiple of 1024."""
BF16_PER_FMA = 2
"""Multiply-adds of bfloat16 for one of float32: one instruction makes two."""
CACHE_MULTIPLE = 4
"""Buffers are this many times the last-level cache, so that nearly every line comes from memory."""
LEAST_MIB, MOST_MIB = 64, 512

MATRIX = 8192
"""Outputs, inputs and tokens of the products on a device."""
LEAST_CUDA_MIB, MOST_CUDA_MIB = 256, 2048
CUDA_PRODUCTS = {
    "bf16_flop_per_s": ("bfloat16", 2.5e-2),
    "fp16_flop_per_s": ("float16", 5e-3),
    "fp32_flop_per_s": ("float32", 1e-4),
    "tf32_flop_per_s": ("tf32", 5e-3),
    "int8_op_per_s": ("int8", 1e-12),
    "fp8_flop_per_s": ("float8", 6e-2),
}
"""Type, and largest error over rms: what results (float32: sums) are rounded to, five rms high. tf32 rounds inputs to
11 bits; float8 keeps sums to some 14 bits."""

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
    """One comparison of single-case arms: four on a CPU, five where it multiplies bfloat16; eight on a CUDA device.

    Options: ``buffer_mib`` (0: from the cache size), ``fma_per_thread``, ``mac_per_thread`` (CPU), ``matrix`` (device).
    Raises :class:`FrugalbenchError` for an unknown key or a size that the kernels cannot take.
    """
    defaults = {"buffer_mib": 0, "fma_per_thread": FMA_PER_THREAD, "mac_per_thread": MAC_PER_THREAD, "matrix": MATRIX}
    options = take(settings, defaults)
    _check(settings, options)
    if settings.device != "cpu":
        return _on_cuda(settings, options, machine)
    sizes = _Sizes(
        threads=settings.threads or machine.logical_cores,
        fma_per_thread=options["fma_per_thread"],
        mac_per_thread=options["mac_per_thread"],
        buffer_mib=options["buffer_mib"] or buffer_mib(machine.last_level_cache_bytes),
    )
    cases = _cases(sizes, settings.device, settings.seed)
    if native_build.find_compiler() is None:
        reason = "the own kernels need a C++ compiler: apt-get install g++"
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in cases))
    return Expansion(comparisons=(_comparison(cases, sizes),))


def _on_cuda(settings: Settings, options: dict[str, int], machine: MachineView) -> Expansion:
    size_mib = options["buffer_mib"] or cuda_buffer_mib(machine.gpu_l2_bytes, machine.gpu_memory_bytes)
    cases = _cuda_cases(settings, options["matrix"], size_mib)
    reason = "" if machine.has_cuda() else "no NVIDIA device here; use --device cpu"
    if not reason and machine.installed("torch") is None:
        reason = "torch is not installed: pip install torch"
    if reason:
        return Expansion(skipped=tuple(Skipped(case=case, reason=reason) for case in cases))
    held = {"read_bytes_per_s": size_mib * MIB, "copy_bytes_per_s": 2 * size_mib * MIB}
    arms = tuple(
        Arm(
            id=f"{case.variant}/{settings.device}",
            cases=(case,),
            imports=("numpy", "torch"),
            memory_bytes=float(held.get(case.variant, 16 * options["matrix"] ** 2)),
        )
        for case in cases
    )
    name = f"{WORKLOAD}/{settings.device}"
    made = Comparison(id=name, workload=WORKLOAD, arms=arms, estimate_s=8.0, competes=False, metered=False)
    return Expansion(comparisons=(made,))


def cuda_buffer_mib(l2_bytes: int, memory_bytes: int | None) -> int:
    """Buffer size in MiB: 2 GiB, but no more than an eighth of the memory and no less than four caches or 256 MiB."""
    most = min(MOST_CUDA_MIB, memory_bytes // 8 // MIB) if memory_bytes else MOST_CUDA_MIB
    return max(most, -(-CACHE_MULTIPLE * l2_bytes // MIB), LEAST_CUDA_MIB)


def _product_cost(name: str, matrix: int) -> dict[str, float]:
    return {"op" if name.endswith("_op_per_s") else "flop": 2.0 * matrix**3}


def _cuda_cases(settings: Settings, matrix: int, size_mib: int) -> tuple[Case, ...]:
    seed = settings.seed
    products = tuple(
        _case(name, dtype, settings.device, {"matrix": matrix, "seed": seed}, tolerance, **_product_cost(name, matrix))
        for name, (dtype, tolerance) in CUDA_PRODUCTS.items()
    )
    memory = {"buffer_bytes": size_mib * MIB, "seed": seed}
    moved = {"read_bytes_per_s": 1.0, "copy_bytes_per_s": 2.0}
    return products + tuple(
        _case(name, "bytes", settings.device, memory, traffic_bytes=times * size_mib * MIB)
        for name, times in moved.items()
    )


def buffer_mib(last_level_cache_bytes: int) -> int:
    """Buffer size in MiB: four times the last-level cache, at least 64 and at most 512."""
    wanted = -(-CACHE_MULTIPLE * last_level_cache_bytes // MIB)
    return min(max(wanted, LEAST_MIB), MOST_MIB)


def _check(settings: Settings, options: dict[str, int]) -> None:
    sizes = (("fma_per_thread", 384, 384), ("mac_per_thread", 1024, 1024), ("buffer_mib", 1, 0), ("matrix", 64, 64))
    for key, multiple, least in sizes:
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
    return Comparison(id=WORKLOAD, workload=WORKLOAD, arms=arms, estimate_s=1.2, competes=False, metered=False)


def _cases(sizes: _Sizes, device: str, seed: int) -> tuple[Case, ...]:
    fma, mac = sizes.threads * sizes.fma_per_thread, sizes.threads * sizes.mac_per_thread
    buffer_bytes = sizes.buffer_mib * MIB
    registers = {"threads": sizes.threads}
    memory = {"threads": sizes.threads, "buffer_bytes": buffer_bytes, "seed": seed}
    bf16 = {"mac_per_thread": BF16_PER_FMA * sizes.fma_per_thread}
    product = _case(
        "bf16_flop_per_s", "bfloat16", device, registers | bf16, flop=2.0 * sizes.threads * bf16["mac_per_thread"]
    )
    return (
        _case(
            "fp32_flop_per_s", "float32", device, registers | {"fma_per_thread": sizes.fma_per_thread}, flop=2.0 * fma
        ),
        *((product,) if multiplies_bf16(cpu_flags()) else ()),
        _case("int8_op_per_s", "int8", device, registers | {"mac_per_thread": sizes.mac_per_thread}, op=2.0 * mac),
        _case("read_bytes_per_s", "bytes", device, memory, traffic_bytes=1.0 * buffer_bytes),
        _case("copy_bytes_per_s", "bytes", device, memory, traffic_bytes=2.0 * buffer_bytes),
    )


def _case(
    variant: str,
    dtype: str,
    device: str,
    params: dict[str, int],
    tolerance: float = TOLERANCE,
    flop: float = 0.0,
    op: float = 0.0,
    traffic_bytes: float = 0.0,
) -> Case:
    sizes = (
        f"t{params['threads']}" if "threads" in params else "",
        f"{params['matrix']}x{params['matrix']}" if "matrix" in params else "",
        f"{params['buffer_bytes'] // MIB}mib" if "buffer_bytes" in params else "",
    )
    shape, backend = "-".join(filter(None, sizes)), BACKEND if device == "cpu" else "torch"
    return Case(
        id=f"{WORKLOAD}/{variant}/{shape}/{REGIME}/{backend}/{device}",
        workload=WORKLOAD,
        variant=variant,
        shape=shape,
        regime=REGIME,
        backend=backend,
        device=device,
        dtype=dtype,
        params=dict(params),
        cost=Cost(token=0.0, flop=flop, weight_bytes=0.0, traffic_bytes=traffic_bytes, op=op),
        tolerance=tolerance,
    )
