"""The Triton expert kernels on the GPU that is here: their best tiles, and how far they are from limits and peers.

``python tests/benchmarks/gpu_moe.py --tokens 1 16 64 512 4096`` first checks the layer against the float64 reference,
then tries plans until ``--seconds`` are spent (the kernel's own first, then others of its grid), then times the best
plan, torch's grouped product, transformers' and the dense layer of equal active parameters, all as CUDA graphs and
interleaved. Per number of tokens it prints the median time, its share of the measured copy bandwidth and of a measured
bf16 product's rate, other ÷ own time (above 1: own is quicker) and what routing alone takes; the last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.nn import functional

from frugalbench.machine import Machine
from frugalbench.specs import moe_ffn as spec
from frugalbench.specs.base import Settings
from frugalbench.workloads import device as devices
from frugalbench.workloads import moe_ffn as builder
from frugalbench.workloads.base import Context
from frugalbench.workloads.layers import drawn, ffn, triton_ffn
from frugalbench.workloads.layers.transformers_ffn import TransformersMoe

SEED = 1
TURN_S = 0.01
DEVICE = "cuda"
CONTEXT = Context(SEED, 8, DEVICE, Path("/nonexistent"), Path("/nonexistent"))


def peaks() -> tuple[float, float]:
    """Bytes/s of a copy (read and written), FLOP/s of a bf16 product; both sustained for a while."""
    source = torch.ones(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy_s = triton_ffn.replay_s(lambda: [target.copy_(source) for _ in range(20)]) / 20
    product_s = triton_ffn.replay_s(lambda: [square @ square for _ in range(20)]) / 20
    return 2 * len(source) / copy_s, 2 * 8192**3 / product_s


def regime_of(tokens: int) -> str:
    return "decode" if tokens <= 4 else "batch" if tokens <= 64 else "prefill"


def case_of(variant: str, tokens: int, arguments: argparse.Namespace) -> Any:
    regime = regime_of(tokens)
    options = {
        "shape": arguments.shape, "scale": 1.0, "weights": "bfloat16", "variants": [variant], "regimes": [regime],
        f"{regime}_tokens": [tokens], "routing": arguments.routing,
    }  # fmt: skip
    made = spec.expand(Settings("moe_ffn", "cuda", 8, SEED, options, "gpu_moe.py"), Machine.detect())
    return made.comparisons[0].arms[0].cases[0]


def grid(tokens: int, copies: int, experts: int) -> list[Any]:
    """The kernel's own plans, then the rest of the grid in seeded random order."""
    moe = triton_ffn.kernel()
    own = moe.plans(copies, experts, torch.bfloat16)
    others = []
    sizes = sorted({plan.tokens for plan in own} | {16 if tokens <= 64 else 64, 64 if tokens < 1024 else 128})
    for size, columns, depth, warps, stages in product(sizes, (16, 32, 64, 128, 256), (64, 128), (4, 8), (3, 4, 5)):
        step_bytes = 2 * depth * (size + 2 * columns) * stages
        if step_bytes > 220 * 1024 or size * columns * 2 > 256 * 32 * warps:
            continue
        base = next((plan for plan in own if plan.tokens == size), own[0])._replace(tokens=size)
        tiles = moe.Tiles(columns, depth, warps, stages)
        others += [base._replace(expand=tiles), base._replace(reduce=tiles)]
    random.Random(SEED).shuffle(others)
    return own + [plan for plan in others if plan not in own]


def compile_one(name: str, constants: dict[str, Any], widths: tuple[int, int, int], launch: dict[str, int]) -> str:
    """Compile one product into Triton's cache on disk, as a launch at these widths would; what went wrong, if any."""
    moe, value, number = triton_ffn.kernel(), torch.bfloat16, torch.int32
    D, F, K = widths
    after = (K, D, D, F) if name == "_expand" else (D, F)
    try:
        getattr(moe, name).warmup(
            value, value, value, number, number, number, 8, 8, 8, *after, grid=(1,), **constants, **launch
        )
    except Exception as problem:  # the trial of this plan meets it again, and says so
        return f"{name} {constants}: {type(problem).__name__}"
    return ""


def compile_all(plans: list[Any], widths: tuple[int, int, int], direct: bool) -> None:
    """All products of these plans at once, in processes of their own."""
    wanted: dict[str, tuple[Any, ...]] = {}
    for plan in plans:
        for name, tiles, depth in (("_expand", plan.expand, widths[0]), ("_reduce", plan.reduce, widths[1])):
            options = triton_ffn.kernel()._options(tiles, depth)
            launch = {key: options.pop(key) for key in ("num_warps", "num_stages")}
            constants = {"TOKENS": plan.tokens, "DIRECT": direct, "PRECISION": "tf32", **options}
            wanted[f"{name}{constants}{launch}"] = name, constants, widths, launch
    begin = time.perf_counter()
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        problems = [one for one in pool.map(compile_one, *zip(*wanted.values(), strict=True), chunksize=4) if one]
    print(f"  {len(wanted)} kernels compiled in {time.perf_counter() - begin:.0f} s", *problems, sep="\n  ", flush=True)


def best_plan(layer: Any, batches: list[torch.Tensor], plans: list[Any], seconds: float) -> tuple[Any, list[Any]]:
    """Tiles of both products chosen apart for each block size, then the quickest of those pairs; and all trials."""
    from triton.runtime.errors import TritonError

    copies, begin, trials = len(batches[0]) * (layer.top_k + layer.n_shared), time.perf_counter(), []

    def tried(plan: Any) -> None:
        layer.plans[copies] = plan
        try:
            trials.append((plan, triton_ffn.replay_s(lambda: [layer(x_TD) for x_TD in batches]) / len(batches)))
        except TritonError as problem:
            print(f"  {plan}: {str(problem).splitlines()[0]}")

    for number, plan in enumerate(plans):
        if number and time.perf_counter() - begin > seconds:
            print(f"  {number} of {len(plans)} plans tried")
            break
        tried(plan)
    for size in {plan.tokens for plan, _ in trials}:
        of_size = [(plan, trial_s) for plan, trial_s in trials if plan.tokens == size]
        base = of_size[0][0]
        expands = [one for one in of_size if one[0].reduce == base.reduce]
        reduces = [one for one in of_size if one[0].expand == base.expand]
        quickest = [min(some, key=lambda one: one[1], default=of_size[0])[0] for some in (expands, reduces)]
        tried(base._replace(expand=quickest[0].expand, reduce=quickest[1].reduce))
    best = min(trials, key=lambda one: one[1])[0]
    for group in (1, 4, 16, 64):
        tried(best._replace(group=group))
    layer.plans[copies] = min(trials, key=lambda one: one[1])[0]
    return layer.plans[copies], sorted(trials, key=lambda one: one[1])


def interleaved(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median seconds of a call, by arm."""
    device = devices.of(DEVICE)
    assert device is not None

    def turn(call: Callable[[int], object], count: int) -> float:
        device.synchronize()
        first = device.event()
        for index in range(count):
            call(index)
        return device.elapsed_s(first, device.event()) / count

    counts = {name: max(4, int(TURN_S / turn(call, 4))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = np.random.default_rng(SEED)
    for _ in range(rounds):
        for name in order.permutation(list(calls)):
            turn(calls[name], 2)
            times[name].append(turn(calls[name], counts[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def recorded(layer: Any, batches: list[torch.Tensor]) -> tuple[Callable[[int], object], str]:
    def call(index: int) -> torch.Tensor:
        with torch.inference_mode():
            y_TD: torch.Tensor = layer(batches[index % len(batches)])
        return y_TD

    device = devices.of(DEVICE)
    assert device is not None
    return device.captured(call, len(batches))


def error(layer: Any, case: Any, x_TD: torch.Tensor) -> float:
    """Largest distance to the float64 reference at the first position, over its rms."""
    params = {**case.params, "copies": 1}
    wanted = builder.reference(msgspec.structs.replace(case, params=params), CONTEXT)["y"][0]
    with torch.inference_mode():
        found = layer(x_TD).double().cpu().numpy()
    return float(np.abs(found - wanted).max() / np.sqrt((wanted**2).mean()))


def routing_s(layer: Any, batches: list[torch.Tensor], plan: Any) -> dict[str, float]:
    """Seconds of what comes before the products."""
    moe, router = triton_ffn.kernel(), layer.weights["router"]
    gate = layer.top_k, layer.gate, layer.normalise, layer.routed_scale, layer.n_shared, torch.bfloat16
    with torch.inference_mode():
        logits = [functional.linear(x_TD, router) for x_TD in batches]
        choices = [moe.choose(one, *gate)[0] for one in logits]
    experts, count = len(layer.weights["down"]), len(batches)
    return {
        "router": triton_ffn.replay_s(lambda: [functional.linear(x_TD, router) for x_TD in batches]) / count,
        "choose": triton_ffn.replay_s(lambda: [moe.choose(one, *gate) for one in logits]) / count,
        "place": triton_ffn.replay_s(lambda: [moe.blocks_of(one, experts, plan.tokens) for one in choices]) / count,
    }


def point(
    tokens: int, weights: dict[str, torch.Tensor], limits: tuple[float, float], arguments: argparse.Namespace
) -> dict[str, Any]:
    case = case_of("moe-triton", tokens, arguments)
    dense_case = case_of("dense-equal-active", tokens, arguments)
    params, experts = case.params, len(weights["down"])
    drawn_batches = spec.token_batches(SEED, params, case.regime)
    batches = list(torch.from_numpy(drawn_batches).to(DEVICE, torch.bfloat16))
    own = triton_ffn.TritonMoe(dict(weights), params)
    distance = error(own, case, batches[0])
    assert distance < case.tolerance, f"{tokens} tokens: {distance} from the reference"
    plans = grid(tokens, tokens * (params["top_k"] + params["n_shared"]), experts)
    compile_all(plans, (params["d_model"], params["d_expert"], params["top_k"] + params["n_shared"]), tokens == 1)
    plan, trials = best_plan(own, batches, plans, arguments.seconds / len(arguments.tokens))
    dense = ffn.Dense(drawn.weights(SEED, dense_case.params, 0, DEVICE))
    layers = {
        "own": own,
        "torch grouped_mm": ffn.GroupedMoe(dict(weights), params),
        "transformers grouped_mm": TransformersMoe(dict(weights), params, "grouped_mm"),
        "dense equal active": dense,
    }
    calls, launched = {}, {}
    for name, layer in layers.items():
        calls[name], launched[name] = recorded(layer, batches)
    times = interleaved(calls, arguments.rounds)
    shares = case.cost.traffic_bytes / times["own"] / limits[0], case.cost.flop / times["own"] / limits[1]
    ratios = {name: value / times["own"] for name, value in times.items() if name != "own"}
    found = {
        "tokens": tokens, "us": times["own"] * 1e6, "bandwidth_share": shares[0], "compute_share": shares[1],
        "error": distance, "plan": plan, "ratios": ratios, "launched": launched,
        "routing_us": {name: value * 1e6 for name, value in routing_s(own, batches, plan).items()},
        "default_us": trials_of(trials, plans[0]) * 1e6, "quickest": [(p, t * 1e6) for p, t in trials[:6]],
    }  # fmt: skip
    listed = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"T{tokens:5} {times['own'] * 1e6:9.1f} us, bandwidth {shares[0]:.2f}, compute {shares[1]:.2f}; {listed}")
    print(f"  {plan}; default plan {found['default_us']:.1f} us; before the products {found['routing_us']}", flush=True)
    return found


def trials_of(trials: list[Any], plan: Any) -> float:
    return min((trial_s for one, trial_s in trials if one == plan), default=float("nan"))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 64, 512, 4096])
    parser.add_argument("--shape", default="qwen3-30b-a3b")
    parser.add_argument("--routing", default="router")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=40.0, help="spent on trying plans, over all numbers of tokens")
    arguments = parser.parse_args()
    limits = peaks()
    print(f"{torch.cuda.get_device_name()}: copy {limits[0] / 1e12:.2f} TB/s, bf16 {limits[1] / 1e12:.0f} TFLOP/s")
    case = case_of("moe-triton", arguments.tokens[0], arguments)
    weights = drawn.weights(SEED, case.params, 0, DEVICE)
    router = torch.from_numpy(spec.router_weights(SEED, case.params)).to(DEVICE, torch.bfloat16)
    points = [point(tokens, {**weights, "router": router}, limits, arguments) for tokens in arguments.tokens]
    print(json.dumps({"copy_bytes_per_s": limits[0], "bf16_flop_per_s": limits[1], "points": points}))


if __name__ == "__main__":
    main()
