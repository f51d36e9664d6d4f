"""Rates, joules and clocks that the run's own machine, or any machine, cannot reach."""

import tomllib
from collections.abc import Iterator
from functools import cache
from statistics import median

from frugalbench.analysis.load import Run
from frugalbench.analysis.metrics import PEAKS_WORKLOAD, Row, measured_peaks, rows
from frugalbench.analysis.submission.turns import Finding, name
from frugalbench.paths import data
from frugalbench.schema import Reading, Record, Role, Sample, Tier
from frugalbench.units import si

OVER_ROOF = 2.0
"""Share of a peak that the same run measured; 1.4 was seen where the peak's kernel lacked the newest instructions."""
CACHE_MULTIPLE = 2
"""Traffic below so many last-level caches may come from them."""
UNKNOWN_CACHE_BYTES = 32 * 2**20
MOST_CLOCK_HZ, LEAST_CLOCK_HZ = 6.5e9, 1e8
"""Of any processor sold: the fastest reach 6.2 GHz."""
MOST_GPU_MEMORY_CLOCK_HZ = 2e10
MOST_GPU_CLOCK_HZ = 4e9
"""Of a board whose own limit the manifest does not tell."""
MOST_AHEAD, MOST_AHEAD_S = 1.02, 20e-6
"""A device computes within the host's window; the worker refuses half of this share."""
FLOP_PER_CYCLE = {"avx512f": 64, "sve": 64, "": 32}
"""Most single-precision operations of a core per cycle: two fused multiply-adds on the widest vectors it has."""
OP_PER_CYCLE = {"amx_int8": 4096, "avx512f": 256, "sve": 256, "avx_vnni": 256, "": 128}
MOST_CARD_CACHE_BYTES = 512 * 2**20
"""Traffic above it does not come from a card's own cache."""
MOST_READ_BYTES_PER_S = 4e12
"""Of a machine's main memory; two sockets with twelve channels each stay below 1.5e12."""
OVER_DATA_SHEET = 1.1
BELOW_IDLE = 0.8
"""Idle power is read in another window, and drifts with temperature."""
OVER_TDP = 1.5
MOST_CORE_W, MOST_PACKAGE_W = 20.0, 1000.0
"""Power of processors: the larger of so much for each usable core and so much in all."""
_AS_TOLD = {
    "h100 80gb hbm3": "h100 sxm", "h200": "h200 sxm", "h800": "h800 sxm", "a100-sxm4-80gb": "a100 80gb sxm",
    "a100-sxm-80gb": "a100 80gb sxm",
}  # fmt: skip
"""What a driver calls a board, to its name in ``data/hardware``."""
MOST_BOARD_W = 2000.0
LEAST_BOARD_C = 5.0
"""Of a chip that computes."""


@cache
def figures() -> dict[str, dict[str, float]]:
    """Lower-case name of each device in ``data/hardware`` to its largest figures, recalled ones included: they bound
    what is believed, and decide no verdict."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(data("hardware").glob("*.toml")):
        known = tomllib.loads(path.read_text(encoding="utf-8"))
        if known["kind"] != "system":
            most: dict[str, float] = {}
            for item in known.get("figure", ()):
                most[item["name"]] = max(most.get(item["name"], 0.0), float(item["value"]))
            found[known["name"].lower()] = most
    return found


def _device(text: str) -> dict[str, float]:
    """Figures of the device that ``text`` names by all words of its name; the longest name wins."""
    for told, known in _AS_TOLD.items():
        if told in text.lower():
            return figures().get(known, {})
    words = set(text.lower().replace("-", " ").replace("(r)", " ").split())
    fitting = [key for key in figures() if set(key.replace("-", " ").split()) <= words]
    return figures()[max(fitting, key=len)] if fitting else {}


class Host:
    """What the manifest says of the machine, with what is known of such machines."""

    def __init__(self, run: Run) -> None:
        machine = run.manifest.machine_before
        found = machine.get("logical_cores")
        self.cores = found if isinstance(found, int) and 0 < found < 2**16 else 1
        flags = machine.get("flags")
        self.flags = [str(item) for item in flags] if isinstance(flags, list) else []
        memory = machine.get("memory_bytes")
        self.memory_bytes = float(memory) if isinstance(memory, int | float) and memory > 0 else None
        cache_bytes = machine.get("last_level_cache_bytes")
        self.cache_bytes = float(cache_bytes) if isinstance(cache_bytes, int | float) else float(UNKNOWN_CACHE_BYTES)
        gpus = machine.get("gpus")
        self.gpus = [str(item) for item in gpus] if isinstance(gpus, list) else []
        boards = machine.get("gpu_boards")
        board = boards[0] if isinstance(boards, list) and boards and isinstance(boards[0], dict) else {}
        cache_bytes = board.get("l2_bytes")
        self.card_cache_bytes = (
            float(cache_bytes) if isinstance(cache_bytes, int | float) and cache_bytes > 0 else MOST_CARD_CACHE_BYTES
        )
        told_hz = board.get("most_clock_hz")
        self.gpu_clock_hz = float(told_hz) if isinstance(told_hz, int | float) and told_hz > 0 else MOST_GPU_CLOCK_HZ
        memory_hz = board.get("most_memory_clock_hz")
        self.gpu_memory_clock_hz = (
            float(memory_hz) if isinstance(memory_hz, int | float) and memory_hz > 0 else MOST_GPU_MEMORY_CLOCK_HZ
        )
        self.processor = _device(str(machine.get("cpu_model", "")))
        self.card = _device(self.gpus[0]) if self.gpus else {}

    @property
    def clock_hz(self) -> float:
        """The highest that its processor, or any, runs at."""
        known = self.processor.get("boost_clock_hz")
        return MOST_CLOCK_HZ if known is None else OVER_DATA_SHEET * known

    def per_cycle(self, table: dict[str, int]) -> int:
        """Operations of a core per cycle, by the instruction sets that the manifest lists."""
        return next(most for flag, most in table.items() if not flag or flag in self.flags)


def roofline(run: Run) -> Iterator[Finding]:
    """No case is faster than the peaks of the same run, and no peak than silicon."""
    host = Host(run)
    for (device, peak), rate in measured_peaks(run).items():
        if (limit := _peak_limit(host, device, peak)) is not None and rate > limit:
            yield (
                f"{PEAKS_WORKLOAD}/{peak}",
                f"{si(rate, '')} on {device}; such a machine reaches at most {si(limit, '')}",
            )
    for row in rows(run):
        yield from ((row.case, reason) for reason in _over(row, host))


def _peak_limit(host: Host, device: str, peak: str) -> float | None:
    if device != "cpu":
        return _card_limit(host, peak)
    if peak == "fp32_flop_per_s":
        return host.cores * host.clock_hz * host.per_cycle(FLOP_PER_CYCLE)
    if peak == "bf16_flop_per_s":
        return 2 * host.cores * host.clock_hz * host.per_cycle(FLOP_PER_CYCLE)  # two products where floats have one
    if peak == "int8_op_per_s":
        return host.cores * host.clock_hz * host.per_cycle(OP_PER_CYCLE)
    return MOST_READ_BYTES_PER_S if peak.endswith("_bytes_per_s") else None


def _card_limit(host: Host, peak: str) -> float | None:
    known = {
        "fp32_flop_per_s": ("tf32_dense_flop_per_s", "fp32_dense_flop_per_s"),
        "bf16_flop_per_s": ("bf16_dense_flop_per_s",),
        "fp16_flop_per_s": ("bf16_dense_flop_per_s",),
        "fp8_flop_per_s": ("fp8_dense_flop_per_s",),
        "tf32_flop_per_s": ("tf32_dense_flop_per_s",),
        "int8_op_per_s": ("int8_dense_op_per_s", "fp8_dense_flop_per_s"),
        "read_bytes_per_s": ("memory_bytes_per_s",),
        "copy_bytes_per_s": ("memory_bytes_per_s",),
    }.get(peak, ())
    figure = max((host.card[item] for item in known if item in host.card), default=None)
    return None if figure is None else OVER_DATA_SHEET * figure * max(1, len(host.gpus))


def _over(row: Row, host: Host) -> Iterator[str]:
    if row.mfu is not None and row.mfu > OVER_ROOF:
        yield f"computes at {row.mfu:.2g} times the peak that this run measured"
    elif row.device == "cpu" and row.flop_per_s is not None:
        limit = host.cores * host.clock_hz * 2 * host.per_cycle(FLOP_PER_CYCLE)
        if row.dtype in ("float32", "fp32") and row.flop_per_s > limit:
            yield f"{si(row.flop_per_s, '')}FLOP/s; {host.cores} such cores reach at most {si(limit, '')}"
    most = _card_limit(host, "read_bytes_per_s") if row.device != "cpu" else None
    if most and (row.bytes_per_s or 0) > most and (row.traffic_bytes or 0) > MOST_CARD_CACHE_BYTES:
        yield f"moves {si(row.bytes_per_s, '')}B/s; the card reaches {si(most, '')}"
    stored = min(row.weight_bytes or 0.0, row.traffic_bytes or 0.0)
    if most and row.time_s and stored > CACHE_MULTIPLE * host.card_cache_bytes and stored / row.time_s > most:
        yield f"reads weights at {si(stored / row.time_s, '')}B/s; the card reaches {si(most, '')}"
    if row.mbu is not None and row.mbu > OVER_ROOF and (row.traffic_bytes or 0) > CACHE_MULTIPLE * host.cache_bytes:
        yield f"moves memory at {row.mbu:.2g} times the rate that this run measured, too much for its cache"


def clocks(run: Run) -> Iterator[Finding]:
    """Clocks and temperatures of the processor and of the GPU, and the two clocks of a window against each other."""
    host = Host(run)
    for record in run.records:
        found = (reason for sample in record.samples if (reason := _gpu_fault(sample, host)))
        yield from ((name(record), reason) for reason in list(found)[:1])
        for sample in record.samples:
            clock_hz, heat_c = sample.environment.clock_hz, sample.environment.temperature_c
            if clock_hz is not None and not LEAST_CLOCK_HZ <= clock_hz <= host.clock_hz:
                yield (
                    name(record),
                    f"a clock of {clock_hz / 1e9:.3g} GHz; such a processor runs up to {host.clock_hz / 1e9:.3g}",
                )
                break
            if heat_c is not None and not -30 <= heat_c <= 125:
                yield name(record), f"a processor at {heat_c:.3g} °C"
                break


def _gpu_fault(sample: Sample, host: Host) -> str | None:
    """What no board does: run faster than its own clock, glow, compute longer than the window lasted."""
    clock_hz, heat_c = sample.environment.gpu_clock_hz, sample.environment.gpu_temperature_c
    if clock_hz is not None and not 0 < clock_hz <= host.gpu_clock_hz:
        return f"a GPU clock of {clock_hz / 1e9:.3g} GHz; that board runs up to {host.gpu_clock_hz / 1e9:.3g}"
    memory_hz = sample.environment.gpu_memory_clock_hz
    if memory_hz is not None and not 0 < memory_hz <= host.gpu_memory_clock_hz:
        return (
            f"a memory clock of {memory_hz / 1e9:.3g} GHz; that board's runs up to {host.gpu_memory_clock_hz / 1e9:.3g}"
        )
    if heat_c is not None and not LEAST_BOARD_C <= heat_c <= 125:
        return f"a GPU at {heat_c:.3g} °C"
    if sample.device_s is not None and not 0 <= sample.device_s <= MOST_AHEAD * sample.time_s + MOST_AHEAD_S:
        return f"{sample.device_s:.3g} s of the device in a call of {sample.time_s:.3g} s"
    return None


def joules(run: Run) -> Iterator[Finding]:
    """Measured energy: above idle, below what the device can draw, and by something that measures."""
    host = Host(run)
    idle_w = _idle_w(run)
    measured: list[tuple[Record, Reading]] = [
        (r, reading) for r in run.records for reading in r.readings if reading.tier is Tier.MEASURED
    ]
    for record, reading in measured:
        usual_w = idle_w.get((record.comparison, reading.scope))
        if reason := _reading_fault(reading, usual_w, host):
            yield name(record), reason
    # a replicate's idle window is read once, and stands in the records of all its arms
    seen = [(r.joule, r.window_s) for _, r in measured if r.joule and r.role is not Role.IDLE]
    if len(seen) - len(set(seen)) > max(2, 0.01 * len(seen)):
        yield "records.jsonl", f"{len(seen) - len(set(seen))} energy windows are copies of others"


def _idle_w(run: Run) -> dict[tuple[str, str], float]:
    """Median power of the idle windows, per comparison and scope."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in run.records:
        for item in record.readings:
            if item.role is Role.IDLE and item.tier is Tier.MEASURED and item.joule and item.window_s > 0:
                found.setdefault((record.comparison, item.scope), []).append(item.joule / item.window_s)
    return {key: median(values) for key, values in found.items()}


def _reading_fault(reading: Reading, idle_w: float | None, host: Host) -> str | None:
    if "declared" in reading.method:
        return "joules of a declared model called measured"
    if reading.joule is None:
        return None
    if reading.window_s <= 0 or reading.joule <= 0:
        return f"{reading.joule:.4g} J in {reading.window_s:.4g} s: nothing runs on that"
    power_w, most_w = reading.joule / reading.window_s, _most_w(reading, host)
    if power_w > most_w:
        return f"{power_w:.4g} W in {reading.scope}, which draws at most {most_w:.4g} W"
    if reading.role is Role.GROSS and idle_w is not None and power_w < BELOW_IDLE * idle_w:
        return f"{power_w:.4g} W while computing, less than the {idle_w:.4g} W of the idle windows ({reading.scope})"
    low, high = reading.low_joule, reading.high_joule
    if (low is not None and low > reading.joule) or (high is not None and high < reading.joule):
        return "joules outside of their own bounds"
    return None


def _most_w(reading: Reading, host: Host) -> float:
    """A package's counter also covers cores that the run could not use, a machine's its boards."""
    known = host.card.get("tdp_w")
    boards_w = (MOST_BOARD_W if known is None else OVER_TDP * known) * max(1, len(host.gpus))
    package_w = max(MOST_PACKAGE_W, MOST_CORE_W * host.cores)
    if "gpu" in reading.scope:
        return boards_w
    return package_w if "package" in reading.scope else package_w + (boards_w if host.gpus else 0.0) + MOST_PACKAGE_W
