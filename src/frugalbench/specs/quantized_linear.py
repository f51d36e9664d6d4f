"""One linear layer, y = x W^T, in full precision and in the low-precision formats that users reach for.

Regime ``decode`` multiplies a few tokens, so the weights stream from memory; ``prefill`` multiplies many, so
arithmetic decides; ``batch`` lies between. All regimes of an arm share its weights: ``copies`` distinct matrices,
cycled through, that together exceed the last-level cache. The default shape is the attention output projection of
Qwen3-8B and of Llama-3.1-8B (hidden size 4096; their published configs). The formats are those of
:mod:`frugalbench.specs.quant_formats`.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from msgspec import structs

from frugalbench import native_build
from frugalbench.schema import Arm, Case, Comparison, Cost, FrugalbenchError, Skipped
from frugalbench.specs import quant_formats as formats
from frugalbench.specs.base import Expansion, MachineView, Settings, choose, take
from frugalbench.specs.quant_formats import FORMATS, NF4_BLOCK, Format
from frugalbench.untrusted import brief

WORKLOAD = "quantized_linear"
REGIMES = ("decode", "batch", "prefill")
LAUNCHES = ("graph", "eager")
USUAL = (
    "torch-fp32", "ort-fp32", "torch-bf16", "torch-int8-dynamic", "bnb-int8", "bnb-nf4", "ort-int8", "ort-int8-acc4",
    "ort-int4", "ort-int4-acc4",
)  # fmt: skip
"""What needs no extra; ``configs/quant.toml`` asks for everything."""
USUAL_CUDA = (
    "torch-fp32", "torch-bf16", "torch-fp16", "bnb-int8", "bnb-nf4", "bnb-fp4", "torchao-int8", "torchao-int8-dynamic",
    "torchao-int4", "torchao-fp8", "torch-fp8", "triton-w4a16",
)  # fmt: skip
"""The default on a device."""
_MIB = 2**20
UNKNOWN_L2_BYTES = 128 * _MIB
"""Taken where the driver does not tell: more than any device has so far."""

DEFAULTS: dict[str, Any] = {
    "shape": "4096x4096",
    "decode_tokens": [1],
    "batch_tokens": [],
    "prefill_tokens": [256],
    "stream_bytes": 0,
    "variants": list(USUAL),
    "group_size": 32,
    "launch": "graph",
}
"""Several numbers of tokens in a regime make as many comparisons: the first of each regime, then the second of each."""


def expand(settings: Settings, machine: MachineView) -> Expansion:
    """A comparison of every variant that can run here for each number of tokens; the others are skipped, with reasons.

    Options: ``shape`` ("NxK": outputs x inputs), ``decode_tokens``, ``batch_tokens`` and ``prefill_tokens`` (a number
    or a list), ``stream_bytes`` (distinct weight bytes per arm; 0: four times the device's last-level cache, 64 to 512
    MiB), ``variants``, ``group_size`` (of the formats whose groups can be chosen), ``launch`` (on a device, of all but
    prefill: ``graph``, recorded and replayed, or ``eager``). Raises :class:`FrugalbenchError` for a
    value that makes no sense.
    """
    options = _options(settings)
    choose(settings, "device", settings.device, ("cpu", "cuda"))
    choose(settings, "launch", options["launch"], LAUNCHES)
    n, k = _shape(settings, options["shape"])
    _check(settings, options)
    cuda_cache_bytes = machine.gpu_l2_bytes or UNKNOWN_L2_BYTES
    cache_bytes = machine.last_level_cache_bytes if settings.device == "cpu" else cuda_cache_bytes
    options["stream_bytes"] = options["stream_bytes"] or automatic_stream_bytes(cache_bytes)
    comparisons: list[Comparison] = []
    skipped: list[Skipped] = []
    for number, tokens in enumerate(_grids(options)):
        arms, left_out = _arms(settings, options, machine, (n, k), tokens, number)
        skipped += left_out
        comparisons += _comparison(_name(n, k, tokens, number), arms)
    return Expansion(comparisons=tuple(comparisons), skipped=tuple(skipped))


def automatic_stream_bytes(last_level_cache_bytes: int) -> int:
    """Distinct bytes to cycle through: four last-level caches, but 64 to 512 MiB."""
    return min(max(4 * last_level_cache_bytes, 64 * _MIB), 512 * _MIB)


def _options(settings: Settings) -> dict[str, Any]:
    """The options, a single number of tokens made a list of one."""
    given = dict(settings.options)
    if settings.device != "cpu":
        given.setdefault("variants", list(USUAL_CUDA))
    for key in _token_keys():
        if type(given.get(key)) is int:
            given[key] = [given[key]]
    return take(
        Settings(settings.workload, settings.device, settings.threads, settings.seed, given, settings.where), DEFAULTS
    )


def _token_keys() -> Iterator[str]:
    return (f"{regime}_tokens" for regime in REGIMES)


def _grids(options: dict[str, Any]) -> Iterator[dict[str, int]]:
    """Regime to tokens, for each comparison."""
    lists = {regime: options[f"{regime}_tokens"] for regime in REGIMES}
    for number in range(max(map(len, lists.values()))):
        yield {regime: tokens[number] for regime, tokens in lists.items() if number < len(tokens)}


def _name(n: int, k: int, tokens: dict[str, int], number: int) -> str:
    name = f"{WORKLOAD}/{n}x{k}"
    return f"{name}/{'-'.join(map(str, tokens.values()))}" if number else name


def _arms(
    settings: Settings, options: dict[str, Any], machine: MachineView, nk: tuple[int, int], tokens: dict[str, int],
    number: int,
) -> tuple[list[Arm], list[Skipped]]:  # fmt: skip
    arms: list[Arm] = []
    skipped: list[Skipped] = []
    for name in dict.fromkeys(options["variants"]):
        choose(settings, "variant", name, FORMATS)
        arm = _arm(settings, options, name, nk, tokens, number)
        fmt = formats.resolve(name, settings.device, formats.cpu_flags(), options["group_size"])
        reason = _why_not(settings, options, fmt, nk[1], machine)
        few = [case for case in arm.cases if case.params["m"] < fmt.least_tokens and not reason]
        skipped += [Skipped(case=case, reason=reason or _too_few(fmt)) for case in (few if not reason else arm.cases)]
        if left := tuple(case for case in arm.cases if case not in few and not reason):
            arms.append(structs.replace(arm, cases=left))
    return arms, skipped


def _too_few(fmt: Format) -> str:
    return (
        f"{fmt.backend} multiplies {fmt.least_tokens} tokens or more in this format; fewer fall back to float32 copies"
    )


def _arm(
    settings: Settings, options: dict[str, Any], variant: str, nk: tuple[int, int], tokens: dict[str, int], number: int
) -> Arm:
    n, k = nk
    group = options["group_size"]
    fmt = formats.resolve(variant, settings.device, formats.cpu_flags(), group)
    copies = formats.count_copies(fmt, n, k, group, options["stream_bytes"])
    label = f"{n}x{k}"
    cases = tuple(
        _case(
            settings,
            variant,
            fmt,
            regime,
            f"{regime}-{m}" if number else regime,
            (m, n, k),
            group,
            copies,
            options["launch"],
        )
        for regime, m in tokens.items()
    )
    work = 4 * n * k + 8 * max(tokens.values()) * (n + k) * 4
    return Arm(
        id="/".join((WORKLOAD, variant, label, *map(str, tokens.values() if number else ()), settings.device)),
        cases=cases,
        imports=fmt.library.imports,
        memory_bytes=float(copies * formats.stored_bytes(fmt.scheme, n, k, fmt.bits, group) + work),
    )


def _case(
    settings: Settings, variant: str, fmt: Format, regime: str, place: str, mnk: tuple[int, int, int], group_size: int,
    copies: int, launch: str,
) -> Case:  # fmt: skip
    """``place`` stands for the regime in the id, with its tokens where a comparison before has the same regime."""
    m, n, k = mnk
    return Case(
        id="/".join((WORKLOAD, variant, f"{n}x{k}", place, fmt.backend, settings.device)),
        workload=WORKLOAD,
        variant=variant,
        shape=f"{n}x{k}",
        regime=regime,
        backend=fmt.backend,
        device=settings.device,
        dtype=fmt.dtype,
        params={
            "n": n, "k": k, "m": m, "copies": copies, "scheme": fmt.scheme, "bits": fmt.bits,
            "group_size": formats.group_of(fmt, k, group_size), "activations": fmt.activations, "values": fmt.values,
            "accuracy_level": fmt.accuracy_level, "seed": settings.seed, "format_tolerance": fmt.format_tolerance,
            "launch": launch if settings.device != "cpu" and regime != "prefill" else "eager",
        },
        cost=_cost(fmt, m, n, k, group_size),
        tolerance=fmt.rounding + fmt.tie / math.sqrt(k),
        peaks=(fmt.peak, "read_bytes_per_s"),
    )  # fmt: skip


def _cost(fmt: Format, m: int, n: int, k: int, group: int) -> Cost:
    weight_bytes = formats.stored_bytes(fmt.scheme, n, k, fmt.bits, group)
    executed = 2.0 * m * n * k
    integer = fmt.peak == "int8_op_per_s"
    return Cost(
        token=m,
        flop=0.0 if integer else executed,
        op=executed if integer else 0.0,
        weight_bytes=weight_bytes,
        traffic_bytes=weight_bytes + fmt.value_bytes * m * (n + k),
        parameters=n * k,
        active_parameters=n * k,
    )


def _why_not(settings: Settings, options: dict[str, Any], fmt: Format, k: int, machine: MachineView) -> str:
    """Why a format cannot run here as far as that is known without its library; empty when it can."""
    if fmt.lacking:
        return fmt.lacking
    if settings.device == "cpu" and not fmt.cpu:
        return f"{fmt.backend} multiplies this format on an NVIDIA GPU only; use --device cuda"
    if settings.device == "cuda" and not fmt.cuda:
        return f"{fmt.backend} has no CUDA kernel for this format in this harness; use --device cpu"
    if settings.device == "cuda" and not machine.has_cuda():
        return "no NVIDIA device here; use --device cpu"
    if fmt.backend == "native" and not native_build.find_compiler():
        return "the own kernels need a C++ compiler: apt-get install g++"
    for package in fmt.library.packages:
        if machine.installed(package) is None:
            wanted = f"'frugalbench[{fmt.library.extra}]'" if fmt.library.extra else package
            return f"{package} is not installed: pip install {wanted}"
    return formats.misfit(fmt, k, options["group_size"])


def _shape(settings: Settings, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9][0-9]{0,7})x([1-9][0-9]{0,7})", text)
    if match is None:
        raise FrugalbenchError(
            f"{settings.where}: 'shape' must be NxK (outputs x inputs, at most 8 digits each) like '4096x4096', "
            f"not {brief(text)}"
        )
    n, k = int(match[1]), int(match[2])
    if n % 32 or k % NF4_BLOCK:
        raise FrugalbenchError(
            f"{settings.where}: 'shape' {text}: N must be a multiple of 32, K of {NF4_BLOCK} (blocks of NF4)"
        )
    return n, k


def _check(settings: Settings, options: dict[str, Any]) -> None:
    for key in _token_keys():
        if wrong := [item for item in options[key] if type(item) is not int or item < 1]:
            raise FrugalbenchError(f"{settings.where}: '{key}' must be numbers of at least 1, not {brief(wrong[0])}")
    if not any(options[key] for key in _token_keys()):
        raise FrugalbenchError(f"{settings.where}: no tokens to multiply; give 'decode_tokens', for example")
    if not options["variants"]:
        raise FrugalbenchError(f"{settings.where}: 'variants' is empty; leave it out for the default")
    if options["stream_bytes"] < 0:
        raise FrugalbenchError(f"{settings.where}: 'stream_bytes' must be at least 0, not {options['stream_bytes']}")
    group = options["group_size"]
    if group not in (16, 32, 64, 128, 256):
        raise FrugalbenchError(f"{settings.where}: 'group_size' must be 16, 32, 64, 128 or 256, not {group}")


def _comparison(name: str, arms: list[Arm]) -> tuple[Comparison, ...]:
    """The estimate is rough: a fixed start per arm, weights filled and quantised at 1 GB/s, and the timed turns."""
    estimate_s = sum(0.8 + arm.memory_bytes / 1e9 + 0.2 * len(arm.cases) for arm in arms)
    return (Comparison(id=name, workload=WORKLOAD, arms=tuple(arms), estimate_s=estimate_s),) if arms else ()
