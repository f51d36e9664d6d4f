"""Times the 4-bit Triton kernel on the GPU that is here, cut in many ways, beside torch, bitsandbytes and torchao.

``python tests/benchmarks/gpu_quant.py [--seconds 55] [--shape 8192x8192 ...] [--tokens 1 16 ...]``. Each arm's matrices
are recorded as one CUDA graph that goes through more distinct bytes than the second-level cache holds; graphs are
replayed in turn, and the median over rounds counts. Every result is checked against float64 first. One JSON document on
standard output: time of a call, share of the read bandwidth measured at the start, and ratio to bfloat16; progress on
standard error. Most of the time goes into compiling.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from frugalbench.specs import quant_formats as formats
from frugalbench.workloads.layers import quant_cuda, quant_device, quant_values, triton_file

SHAPES = ("8192x8192", "4096x14336")
TOKENS = (1, 4, 16, 64, 256)
GROUP = 128
STREAM_BYTES = 256 * 2**20
ROUNDS = 9
SEED = 1


@dataclass
class Arm:
    """A recorded graph of ``calls`` calls, and the bytes that one call has to read."""

    name: str
    graph: Any
    calls: int
    read_bytes: float


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def recorded(name: str, run: Callable[[int], torch.Tensor], copies: int, read_bytes: float) -> Arm:
    """All copies in one graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.inference_mode():
        for _ in range(2):
            run(0)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        for copy in range(copies):
            run(copy)
    return Arm(name, graph, copies, read_bytes)


def times_s(arms: list[Arm], rounds: int = ROUNDS) -> dict[str, float]:
    """Median time of a call, arms in turn; a round repeats each graph until it takes a millisecond or so."""
    found: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for number in range(rounds + 1):
        for arm in arms:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            arm.graph.replay()  # lead-in
            first.record()
            for _ in range(4):
                arm.graph.replay()
            last.record()
            last.synchronize()
            if number:
                found[arm.name].append(first.elapsed_time(last) * 1e-3 / 4 / arm.calls)
    return {name: median(values) for name, values in found.items()}


def read_bandwidth() -> dict[str, float]:
    """Bytes per second of the readers over 2 GiB."""
    words = torch.arange(2**28, device="cuda", dtype=torch.int64)
    read = triton_file.load("peaks").read
    sizes = ((8, 2048, 8), (4, 2048, 4), (16, 1024, 4), (8, 4096, 8), (4, 1024, 4))
    readers = {f"triton {size}": (lambda size=size: read(words, *size)) for size in sizes} | {"aten::sum": words.sum}
    expected = int(words.sum())
    for name, reader in readers.items():
        assert int(reader()) == expected, name
    arms = [recorded(name, lambda _, reader=reader: reader(), 1, words.nbytes) for name, reader in readers.items()]
    return {name: words.nbytes / time_s for name, time_s in times_s(arms, 5).items()}


def layers(n: int, k: int) -> Iterator[tuple[str, Any, int]]:
    """``(variant, layer, copies)`` of what is installed; an arm that refuses is said and left out."""
    for variant in ("torch-bf16", "bnb-nf4", "torchao-int4", "torch-fp8", "torchao-fp8", "triton-w4a16"):
        fmt = formats.resolve(variant, "cuda", frozenset(), GROUP)
        copies = formats.count_copies(fmt, n, k, GROUP, STREAM_BYTES)
        params = {"n": n, "k": k, "copies": copies, "scheme": fmt.scheme, "bits": fmt.bits, "seed": SEED,
                  "values": fmt.values, "group_size": GROUP, "activations": fmt.activations}  # fmt: skip
        case = SimpleNamespace(params=params, backend=fmt.backend, variant=variant, id=variant)
        try:
            yield variant, made(case, n, k), copies
        except Exception as problem:
            say(f"{variant}: {type(problem).__name__}: {str(problem)[:300]}")


def made(case: Any, n: int, k: int) -> Any:
    from importlib import import_module
    from pathlib import Path

    from frugalbench.workloads.quantized_linear import LAYERS

    context = SimpleNamespace(device="cuda", cache_dir=Path("/nowhere"), scratch_dir=Path("/nowhere"))
    start = time.perf_counter()
    layer = import_module(LAYERS[case.backend]).make(
        case, lambda copy: quant_device.finite_weights(SEED, n, k, "cuda", copy), context
    )
    torch.cuda.synchronize()
    say(f"{case.variant}: {case.params['copies']} matrices in {time.perf_counter() - start:.2f} s; {layer.kernel}")
    return layer


def wanted_of(layer: Any, x_MK: Any, n: int, k: int) -> Any:
    """Float64 answer of what is stored of copy 1."""
    return layer.stored(1).multiply(quant_device.weights(SEED, 1, n, k, "cuda"), layer.activations(x_MK))


def error_of(found: torch.Tensor, wanted: Any) -> float:
    """Largest error over rms."""
    return float(abs(found.double().cpu().numpy() - wanted).max() / (wanted**2).mean() ** 0.5)


def grid(tokens: int) -> list[Any]:
    """Cuts of the work to try."""
    config = triton_file.load("w4a16").Config
    if tokens <= 4:
        return [
            config(0, *cut) for cut in itertools.product((16, 32, 64), (1, 2, 4, 8), (2, 4, 8)) if cut[0] >= 4 * cut[2]
        ]
    height = min(max(16, 1 << (tokens - 1).bit_length()), 256)
    splits = (1, 2, 4, 8) if tokens <= 64 else (1, 2)
    cuts = [(columns, split, warps, stages) for columns, warps in ((64, 4), (128, 8), (128, 4)) for split in splits
            for stages in ((2, 3, 4) if tokens <= 16 else (2, 3))]  # fmt: skip
    heights = (height,) if height < 128 else (64, 128, height)
    return [config(high, *cut) for high in dict.fromkeys(heights) for cut in cuts]


def own_arms(layer: Any, copies: int, tokens: int, size: tuple[int, int], stop: float) -> Iterator[Arm]:
    """Each cut that compiles and is right, until time is up."""
    x_MK = quant_values.inputs(SEED, 1, tokens, size[1])
    x = quant_cuda.DeviceLinear.prepare(layer, x_MK)
    wanted = wanted_of(layer, x_MK, *size)
    for config in dict.fromkeys((*layer._module.candidates(tokens), *grid(tokens))):
        if time.monotonic() > stop:
            say(f"  time is up before {config}")
            return
        run = partial(one_call, layer, x, config)
        yield from arm_of(str(config), run, copies, layer.stored_bytes(), wanted)


def one_call(layer: Any, x: Any, config: Any, copy: int) -> torch.Tensor:
    return layer._linear(layer._held[copy], x, config)


def arm_of(
    name: str, run: Callable[[int], torch.Tensor], copies: int, read_bytes: float, wanted: Any, limit: float = 7e-2
) -> Iterator[Arm]:
    """The arm, if it runs and is right."""
    try:
        with torch.inference_mode():
            error = error_of(run(1), wanted)
        if not error <= limit:
            say(f"  WRONG by {error:.3g}: {name}")
            return
        if not name.startswith(("vector", "tile")):
            say(f"  {name}: error {error:.3g}")
        yield recorded(name, run, copies, read_bytes)
    except Exception as problem:
        torch.cuda.synchronize()
        say(f"  {name}: {type(problem).__name__}: {str(problem)[:200]}")


def measured(size: tuple[int, int], tokens: list[int], bandwidth: float, seconds: float) -> list[dict[str, Any]]:
    """Rows of a shape; the grids share its ``seconds``."""
    begin, rows = time.monotonic(), []
    held = list(layers(*size))
    for number, m in enumerate(tokens):
        stop = begin + seconds * (number + 1) / len(tokens)
        x_MK, arms = quant_values.inputs(SEED, 1, m, size[1]), []
        for variant, layer, copies in held:
            if variant == "triton-w4a16":
                arms += own_arms(layer, copies, m, size, stop)
            else:
                run = partial(peer_call, layer, layer.prepare(x_MK))
                arms += arm_of(variant, run, copies, layer.stored_bytes(), wanted_of(layer, x_MK, *size))
        found = times_s(arms)
        base_s = found.get("torch-bf16")
        here = [
            {"shape": f"{size[0]}x{size[1]}", "tokens": m, "arm": arm.name, "time_us": found[arm.name] * 1e6,
             "share_of_read": arm.read_bytes / found[arm.name] / bandwidth,
             "over_bf16": base_s / found[arm.name] if base_s else None}
            for arm in arms
        ]  # fmt: skip
        rows += here
        for row in sorted(here, key=lambda row: row["time_us"])[:14]:
            share, over = row["share_of_read"], row["over_bf16"] or 0
            say(f"  {m:4} tokens {row['time_us']:9.2f} us {share:6.1%} {over:6.2f}x {row['arm']}")
    return rows


def peer_call(layer: Any, x: Any, copy: int) -> torch.Tensor:
    return layer.run(copy, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=55.0)
    parser.add_argument("--shape", nargs="*", default=list(SHAPES))
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    options = parser.parse_args()
    begin = time.monotonic()
    readers = read_bandwidth()
    bandwidth = max(readers.values())
    say("\n".join(f"{name}: {value / 1e12:.3f} TB/s" for name, value in readers.items()))
    rows = []
    for number, shape in enumerate(options.shape):
        left = options.seconds - (time.monotonic() - begin)
        n, k = (int(part) for part in shape.split("x"))
        say(f"{shape}: {left / (len(options.shape) - number):.0f} s")
        rows += measured((n, k), options.tokens, bandwidth, left / (len(options.shape) - number))
    properties = torch.cuda.get_device_properties(0)
    json.dump(
        {"device": properties.name, "torch": torch.__version__, "read_bytes_per_s": readers, "rows": rows}, sys.stdout
    )
    print()


if __name__ == "__main__":
    main()
