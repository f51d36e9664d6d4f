"""The programs that peers are compared on, and what each tool needs written around them."""

import contextlib
import math
from pathlib import Path

ARMS = {
    "cpu": """
def work(units):
    total = 0
    for number in range(2000 * units):
        total += number * number % 7
    return total
""",
    "blas": """
import torch

torch.set_num_threads({threads})
torch.manual_seed(1)
A, B, OUT = torch.rand(256, 256), torch.rand(256, 256), torch.empty(256, 256)


def work(units):
    for _ in range(units):
        torch.mm(A, B, out=OUT)
""",
    "memory": """
import numpy as np

CHUNK = {chunk}  # numbers; 100 of them take three times the last-level cache
DATA = np.ones({most} * CHUNK)


def work(units):
    return DATA[: units * CHUNK].sum()
""",
}
CALLS = """

def first():
    return work({first})


def second():
    return work({second})
"""
PYPERF_SCRIPT = """
import pyperf

import arms

pyperf.Runner().bench_func("arm", arms.{arm})
"""
PYTEST_SCRIPT = """
import os

import arms


def test_arm(benchmark):
    benchmark(getattr(arms, os.environ["PEER_ARM"]))
"""
TORCH_SCRIPT = """
import json
import sys
from pathlib import Path

from torch.utils.benchmark import Compare, Timer
from torch.utils.benchmark.utils.common import trim_sigfig

import arms

method, options, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
found = [
    getattr(
        Timer("f()", globals={"f": getattr(arms, name)}, label="peers", sub_label=name, description="time",
              num_threads=threads), method)(**options)
    for name in ("first", "second")
]
figures = min(m.significant_figures for m in found)
raw = {m.sub_label: {"median_s": m.median, "trimmed_s": trim_sigfig(m.median, figures), "iqr_s": m.iqr,
                     "significant_figures": m.significant_figures, "blocks": len(m.times)} for m in found}
Path("torch.json").write_text(json.dumps(raw))
table = Compare(found)
table.trim_significant_figures()
table.colorize()
print(table)
"""


def last_level_cache_bytes(cpu: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Size of the largest cache of the first core; 32 MiB where the kernel does not say."""
    factors = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = []
    for file in cpu.glob("index*/size"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            text = file.read_text().strip()
            found.append(int(text[:-1]) * factors[text[-1]])
    return max(found, default=32 * 2**20)


def write_programs(folder: Path, kind: str, units: tuple[int, int], threads: int, cache_bytes: int) -> None:
    """Put everything that the tools run into ``folder``; ``first`` does ``units[0]`` units of work."""
    folder.mkdir(parents=True, exist_ok=True)
    chunk = math.ceil(3 * cache_bytes / 8 / 100)
    work = ARMS[kind].format(threads=threads, chunk=chunk, most=max(units)).lstrip()
    programs = {
        "arms.py": work + CALLS.format(first=units[0], second=units[1]),
        "bench_first.py": PYPERF_SCRIPT.format(arm="first").lstrip(),
        "bench_second.py": PYPERF_SCRIPT.format(arm="second").lstrip(),
        "test_arm.py": PYTEST_SCRIPT.lstrip(),
        "torch_arms.py": TORCH_SCRIPT.lstrip(),
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
