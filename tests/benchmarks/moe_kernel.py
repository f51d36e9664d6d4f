"""The expert kernel against every other way of computing the same layer, in one interleaved run.

``python tests/benchmarks/moe_kernel.py --experts 32 --top-k 1 2 8 --tokens 1 16 256 1024 [--training]`` prints for each
point the median over rounds of other ÷ kernel (above 1: the kernel is quicker), the fastest dense layer of equal active
parameters ÷ kernel, and the share of the roofline of the bytes and FLOP that the batch really needs.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from frugalbench.backends.native import aligned, peaks
from frugalbench.specs import moe_ffn as spec
from frugalbench.workloads import moe_ffn as builder
from frugalbench.workloads.base import Context

SEED = 1
STREAM_BYTES = 256 * 2**20
OTHERS = (
    "moe-transformers",
    "moe-transformers-eager",
    "moe-transformers-batched",
    "moe-grouped",
    "moe-sorted",
    "moe-loop",
)
FMA = 384 * 400_000


def seconds(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def machine(threads: int) -> tuple[float, float]:
    """FLOP/s of fp32 in registers, bytes/s of reading, best of many."""
    words = aligned(STREAM_BYTES)
    words[:] = 1
    native = peaks()
    fma_s = min(seconds(lambda: native.fma_fp32(threads, FMA)) for _ in range(8))
    read_s = min(seconds(lambda: native.read(threads, words)) for _ in range(8))
    return 2 * FMA * threads / fma_s, STREAM_BYTES / read_s


def arm(variant: str, layer: dict, regime: str, tokens: int, context: Context):
    """A function of a position, over as many copies of the weights as exceed the cache."""
    params = spec._held(layer, variant, STREAM_BYTES, context.threads, {regime: tokens}) | {"tokens": tokens}
    if not params["d_ff"]:
        params["experts_hit"] = spec.experts_hit(SEED, params, regime)
    layers = [builder._layer(variant, params, context, copy) for copy in range(params["copies"])]
    batches = torch.from_numpy(spec.token_batches(SEED, params, regime))
    upstream = torch.from_numpy(spec.upstream(SEED, params))

    def forward(index: int) -> None:
        with torch.inference_mode():
            layers[index % len(layers)](batches[index % len(batches)])

    def training(index: int) -> None:
        chosen = layers[index % len(layers)]
        for parameter in chosen.parameters():
            parameter.grad = None
        chosen(batches[index % len(batches)].detach().requires_grad_()).backward(upstream)

    return (training if regime == "training" else forward), spec.cost(params, variant, regime)


def point(experts: int, top_k: int, tokens: int, regime: str, arguments: argparse.Namespace, limits) -> str:
    context = Context(SEED, arguments.threads, "cpu", None, None)
    layer = {
        "d_model": arguments.model, "d_expert": arguments.width, "experts": experts, "top_k": top_k, "n_shared": 0,
        "scale": 1.0, "model": "own", "gate": "softmax", "normalise": True, "routed_scale": 1.0,
        "routing": arguments.routing,
    }  # fmt: skip
    names = ["moe-native", "dense-equal-active", "dense-equal-active-native"]
    names += [] if arguments.alone else [n for n in OTHERS if "batched" not in n or tokens <= 16]
    arms = {name: arm(name, layer, regime, tokens, context) for name in names}
    calls = {name: max(1, int(0.02 / max(seconds(lambda n=name: arms[n][0](1)), 1e-5))) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    order = np.random.default_rng(0)
    for number in range(arguments.rounds):
        for name in order.permutation(names):
            call, many = arms[name][0], calls[name]
            call(number)
            begin = time.perf_counter()
            for i in range(many):
                call(number + i)
            times[name].append((time.perf_counter() - begin) / many)
    cost = arms["moe-native"][1]
    floor_s = max(cost.flop / limits[0], cost.traffic_bytes / limits[1])
    ours = times["moe-native"]
    ratios = {n: statistics.median(b / a for a, b in zip(ours, times[n], strict=True)) for n in names[1:]}
    rivals = {n: r for n, r in ratios.items() if n.startswith("moe")}
    best = min(rivals, key=rivals.get) if rivals else ""
    dense = min(ratios[n] for n in names[1:3])
    median = statistics.median(ours)
    return (
        f"E{experts:3} k{top_k} T{tokens:5} {regime:8} {median * 1e3:8.3f} ms  roofline {floor_s / median:5.2f}  "
        f"best other {rivals.get(best, 0):5.2f} ({best})  "
        f"dense torch {ratios[names[1]]:5.2f} own {ratios[names[2]]:5.2f} fastest {dense:5.2f}"
    )


def regime_of(tokens: int, training: bool) -> str:
    if training:
        return "training"
    return "decode" if tokens <= 4 else "batch" if tokens <= 64 else "prefill"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[32])
    parser.add_argument("--top-k", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256, 1024])
    parser.add_argument("--model", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--routing", default="router")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without the other mixtures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limits = machine(arguments.threads)
    print(f"peaks: {limits[0] / 1e9:.0f} GFLOP/s, {limits[1] / 1e9:.1f} GB/s")
    for experts in arguments.experts:
        for top_k in arguments.top_k:
            for tokens in arguments.tokens:
                regime = regime_of(tokens, arguments.training)
                print(point(experts, top_k, tokens, regime, arguments, limits), flush=True)


if __name__ == "__main__":
    main()
