"""What the ONNX harness adds to a call of about 1 ms, against the runtime's Python API in a plain loop. By hand, alone:

    python tests/benchmarks/onnx_overhead.py [--rounds 200] [--seed 1]

One session of ONNX Runtime, called directly and through backend, builder and the worker's timed window, in drawn order
within each round of some 20 ms each. Prints the ratio of the two with its 95% interval; the goal is at most 1.02.
"""

import argparse
import math
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import onnx
from scipy.stats import t

from factory import make_case
from frugalbench.backends import onnxruntime
from frugalbench.backends.base import Options
from frugalbench.run.worker import _one_by_one
from frugalbench.workloads.onnx_model import BLOCK, LoadedModel
from frugalbench.workloads.stopwatch import timed

TOKENS, WIDTH, LAYERS, ROTATION = 128, 512, 3, 4
CALLS = 20


def save_graph(path: Path) -> None:
    """A stack of matrix products and rectifiers, about 1 ms on two cores."""
    random_values = np.random.default_rng(0)
    nodes, weights, name = [], [], "x"
    for layer in range(LAYERS):
        value = random_values.standard_normal((WIDTH, WIDTH)).astype(np.float32) / math.sqrt(WIDTH)
        weights.append(onnx.numpy_helper.from_array(value, f"w{layer}"))
        nodes += [onnx.helper.make_node("MatMul", [name, f"w{layer}"], [f"p{layer}"])]
        name = "y" if layer == LAYERS - 1 else f"r{layer}"
        nodes += [onnx.helper.make_node("Relu", [f"p{layer}"], [name])]
    shape, kind = [TOKENS, WIDTH], onnx.TensorProto.FLOAT
    ends = [[onnx.helper.make_tensor_value_info(end, kind, shape)] for end in "xy"]
    graph = onnx.helper.make_graph(nodes, "stack", *ends, weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), str(path))


def arms(folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """The plain loop and ours, over the same session and inputs."""
    path = folder / "stack.onnx"
    save_graph(path)
    random_values = np.random.default_rng(1)
    feeds = [{"x": random_values.standard_normal((TOKENS, WIDTH), dtype=np.float32)} for _ in range(ROTATION)]
    options = Options(threads=2, device="cpu", cache_dir=folder, key="stack", inputs=("x",), outputs=("y",))
    runnable = onnxruntime.load(path, options, feeds)
    case = make_case(params={"model": BLOCK})
    bound = LoadedModel(runnable, {case.id: feeds}, (), {}).bind(case)
    session: Any = runnable._session

    def direct() -> object:
        kept = None
        for index in range(CALLS):
            kept = session.run(["y"], feeds[index % ROTATION])
        return kept

    return direct, lambda: timed(partial(_one_by_one, bound.call, 0, CALLS), bound)


def measure(rounds: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds per call of the plain loop and of ours, round by round."""
    draw = random.Random(seed)
    times_s: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        both = arms(Path(folder))
        for _ in range(rounds):
            for number in draw.sample((0, 1), 2):
                both[number]()  # lead-in
                begin = time.perf_counter()
                both[number]()
                times_s[number].append((time.perf_counter() - begin) / CALLS)
    return times_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    direct, ours = measure(arguments.rounds, arguments.seed)
    logs = [math.log(b / a) for a, b in zip(direct, ours, strict=True)]
    half = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    low, middle, high = (math.exp(fmean(logs) + shift) for shift in (-half, 0, half))
    print(f"direct {median(direct) * 1e3:.3f} ms, through the harness {median(ours) * 1e3:.3f} ms (medians)")
    print(
        f"ratio {middle:.4f} [{low:.4f}, {high:.4f}], median of rounds {math.exp(median(logs)):.4f}, {len(logs)} rounds"
    )


if __name__ == "__main__":
    main()
