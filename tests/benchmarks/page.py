"""What the page costs: a run of many records, reported in a process of its own.

python tests/benchmarks/page.py write FOLDER RECORDS   a run directory of about that many records, ten samples each
python tests/benchmarks/page.py time FOLDER            seconds, peak memory and size of its page
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from factory import make_peaks, make_replicates, make_run
from frugalbench.schema import Record

ROUNDS = 10
REPLICATES = 24
MOE = ("dense-equal-total", "dense-equal-active", "moe-transformers", "moe-sorted")
QUANT = ("torch-fp32", "ort-fp32", "torch-bf16", "torch-int8-dynamic", "ort-int8", "ort-int4")
REGIMES = ("decode", "prefill")
CONFIG = {"measure": {"alpha": 0.05, "looks": [6, 10, 16, 24]}}


def block(shape: str) -> list[Record]:
    """Two families at one shape: 20 cases, each with a pilot and :data:`REPLICATES` replicates."""
    fields = {"case_fields": {"shape": shape}, "rounds": ROUNDS, "seed": sum(map(ord, shape))}
    arms = [(name, regime, "moe_ffn", 0.004 + 0.003 * place) for place, name in enumerate(MOE) for regime in REGIMES]
    arms += [
        (name, regime, "quantized_linear", 0.008 - 0.001 * place)
        for place, name in enumerate(QUANT)
        for regime in REGIMES
    ]
    found = [make_replicates(n, t, REPLICATES, regime=r, workload=w, **fields) for n, r, w, t in arms]
    return [record for arm in found for record in arm]


def write(folder: Path, records: int) -> Path:
    """A run directory of ``records`` records, give or take a block."""
    shapes = max(1, round(records / (2 * (len(MOE) + len(QUANT)) * (REPLICATES + 1))))
    return make_run(
        folder, [*make_peaks(), *(r for number in range(shapes) for r in block(f"{1000 + number}x4096"))], config=CONFIG
    )


def cost(folder: Path) -> dict[str, float]:
    """Wall seconds, peak resident bytes and bytes of the page of a stored run."""
    output = folder / "page.html"
    command = [sys.executable, "-m", "frugalbench.cli.main", "report", str(folder), "--format", "html"]
    start_s = time.monotonic()
    subprocess.run([*command, "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
    wall_s = time.monotonic() - start_s
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"wall_s": wall_s, "peak_bytes": peak, "page_bytes": output.stat().st_size}


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1:]
    print(write(Path(folder), int(rest[0])) if verb == "write" else json.dumps(cost(Path(folder))))
