"""Joules against the time, the other meter, the other arms and the idle windows of the same run.

Scaled alike in both methods and in every arm, joules stay plausible: what is found here is what hangs together.
"""

from collections.abc import Iterator, Sequence
from statistics import median

from frugalbench.analysis.load import Run
from frugalbench.analysis.submission.turns import Finding, name
from frugalbench.schema import Reading, Record, Role, Status, Tier

METHODS = (
    "NVML ", "amdsmi ", "powercap energy_uj: ", "hwmon ", "IPMI ", "battery ", "log ", "command ", "Prometheus ",
    "declared",
)  # fmt: skip
"""How the method of each meter begins."""
DISAGREE = 1.26
"""Two methods over one window; 7% were seen, and from 20% on the harness lets neither count as measured."""
OVER_LIMIT = 1.1
"""Mean power of a window over the board's own limit, which it is held to; 4% were seen on an H100."""
AT_LIMIT, FEW_HELD = 0.98, 2
"""Share of its limit at which a board holds its clock, and cases there without a word of it."""
IDLE_MOVES = 2.0
"""Idle power between the comparisons of one run."""
TIME_OFF = 1.35
"""Time per call in the long window of a meter over that in the short ones, beyond all other arms of its comparison;
0.64 to 1.17 were seen, where heat lowers the clock of some."""
FEW_ARMS = 3
MOST_FAR = 8.0
"""The same for any meter and load; single windows of 0.7 to 3 were seen."""

Pair = tuple[Record, Reading]


def energy(run: Run) -> Iterator[Finding]:
    """Every rule on measured joules that looks at more than one reading."""
    measured = [(r, x) for r in run.records for x in r.readings if x.tier is Tier.MEASURED and x.joule]
    yield from _methods([(r, x) for r in run.records for x in r.readings if x.tier is Tier.MEASURED])
    yield from _boards(run, measured)
    yield from _far(run)
    limit_w = _limit_w(run)
    yield from _limits(measured, limit_w)
    yield from _held(run, measured, limit_w)
    yield from _windows(measured)
    yield from _copies(measured)
    yield from _idle(measured)
    yield from _times(measured)
    yield from _absent(run, measured)


def _methods(measured: Sequence[Pair]) -> Iterator[Finding]:
    for record, reading in measured:
        if not reading.method.startswith(METHODS):
            yield name(record), f"joules by {reading.method!r}, which is none of the meters"
            return


def _boards(run: Run, measured: Sequence[Pair]) -> Iterator[Finding]:
    """NVML reads boards, and only where there is one."""
    for record, reading in measured:
        if reading.method.startswith("NVML "):
            if not run.manifest.machine_before.get("gpus"):
                yield name(record), "joules by NVML on a machine without a GPU"
            elif not reading.scope.startswith("gpu"):
                yield name(record), f"joules by NVML of {reading.scope}, which it does not read"


def _limit_w(run: Run) -> float | None:
    boards = run.manifest.machine_before.get("gpu_boards")
    limits = [board.get("power_limit_w") for board in boards or () if isinstance(board, dict)]
    known = [float(limit) for limit in limits if isinstance(limit, int | float) and limit > 0]
    return sum(known) if known and len(known) == len(limits) else None


def _limits(measured: Sequence[Pair], limit_w: float | None) -> Iterator[Finding]:
    for record, reading in measured:
        power_w = (reading.joule or 0.0) / reading.window_s if reading.window_s > 0 else 0.0
        if limit_w is not None and reading.scope == "gpu-board" and power_w > OVER_LIMIT * limit_w:
            yield name(record), f"{power_w:.4g} W over {reading.window_s:.3g} s on a board held to {limit_w:.4g} W"


def _held(run: Run, measured: Sequence[Pair], limit_w: float | None) -> Iterator[Finding]:
    """A board at its limit holds its clock back, and says so in some window."""
    told = [sample.environment.gpu_throttle for record in run.records for sample in record.samples]
    said = [reasons for reasons in told if reasons is not None]
    if limit_w is None or not said or any(said):
        return
    at_limit = {
        r.case.id for r, x in measured if x.scope == "gpu-board" and (x.joule or 0) > AT_LIMIT * limit_w * x.window_s
    }
    if len(at_limit) >= FEW_HELD:
        yield (
            "records.jsonl",
            f"{len(at_limit)} cases draw the board's {limit_w:.4g} W, and no window says that it held its clock",
        )


def _windows(measured: Sequence[Pair]) -> Iterator[Finding]:
    """One window has one length, and two ways to read one scope agree; one that all arms share is the same for all."""
    found: dict[tuple[object, ...], dict[str, tuple[float, Record, Reading]]] = {}
    for record, reading in measured:
        key = (record.comparison, reading.scope, reading.start_s, reading.role is Role.IDLE or record.case.id)
        joule = reading.joule or 0.0
        known = found.setdefault(key, {}).setdefault(reading.method, (joule, record, reading))
        if known[0] != joule or known[2].window_s != reading.window_s:
            yield (
                name(record),
                f"the window at {reading.start_s:.3f} s gave {joule:.5g} J here and {known[0]:.5g} J there",
            )
    for methods in found.values():
        joules = sorted(joule for joule, _, _ in methods.values())
        if joules[-1] > DISAGREE * joules[0] > 0:
            record = next(iter(methods.values()))[1]
            yield name(record), f"two methods read {joules[0]:.4g} and {joules[-1]:.4g} J of one window"


def _copies(measured: Sequence[Pair]) -> Iterator[Finding]:
    """Equal joules, to the last digit, of windows at different times."""
    starts: dict[tuple[str, float], set[float]] = {}
    for _, reading in measured:
        starts.setdefault((reading.method, reading.joule or 0.0), set()).add(reading.start_s)
    count = sum(len(found) - 1 for found in starts.values())
    if count > max(2, 0.02 * len(starts)):
        yield "records.jsonl", f"{count} energy windows have the very joules of others"


def _idle(measured: Sequence[Pair]) -> Iterator[Finding]:
    powers: dict[str, dict[str, list[float]]] = {}
    for record, reading in measured:
        if reading.role is Role.IDLE and reading.window_s > 0:
            mine = powers.setdefault(reading.scope, {}).setdefault(record.comparison, [])
            mine.append((reading.joule or 0.0) / reading.window_s)
    read = {r.comparison for r, x in measured if x.role is Role.GROSS and x.method.startswith("NVML ")}
    for comparison in read - {item for found in powers.values() for item in found}:
        yield comparison, "joules of a board, and no window of it idle"
    for scope, found in powers.items():
        usual = {comparison: median(values) for comparison, values in found.items()}
        low, high = min(usual, key=usual.__getitem__), max(usual, key=usual.__getitem__)
        if usual[high] > IDLE_MOVES * usual[low]:
            yield low, f"idle at {usual[low]:.4g} W ({scope}), in {high} at {usual[high]:.4g} W"


def _times(measured: Sequence[Pair]) -> Iterator[Finding]:
    """The window that gave the joules also gives a time; an arm whose two times differ as no other's was changed."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for record, reading in measured:
        if reading.role is Role.GROSS and reading.calls and record.samples and reading.scope == "gpu-board":
            usual_s = median(sample.time_s for sample in record.samples)
            if usual_s > 0:
                mine = ratios.setdefault(record.comparison, {}).setdefault(record.case.id, [])
                mine.append(reading.window_s / reading.calls / usual_s)
    for found in ratios.values():
        usual = {case: median(values) for case, values in found.items()}
        for case, ratio in usual.items():
            others = [value for other, value in usual.items() if other != case]
            if len(others) < FEW_ARMS:
                continue
            if ratio > TIME_OFF * max(1.0, median(others)) or ratio < min(1.0, median(others)) / TIME_OFF:
                yield case, f"a call takes {ratio:.3g} times as long where joules were read as where it was timed"


def _far(run: Run) -> Iterator[Finding]:
    """Calls where joules were read, or modelled, against calls where they were timed, whatever the load."""
    ratios: dict[str, list[float]] = {}
    for record in run.records:
        usual_s = median(sample.time_s for sample in record.samples) if record.samples else 0.0
        mine = [
            x.window_s / x.calls / usual_s for x in record.readings if x.role is Role.GROSS and x.calls and usual_s > 0
        ]
        ratios.setdefault(record.case.id, []).extend(mine)
    for case, found in ratios.items():
        if len(found) >= FEW_ARMS and not 1 / MOST_FAR < median(found) < MOST_FAR:
            yield (
                case,
                f"a call takes {median(found):.3g} times as long where energy was looked at as where it was timed",
            )


def _absent(run: Run, measured: Sequence[Pair]) -> Iterator[Finding]:
    """Where joules were read in a replicate, every arm that was timed in that regime has a reading, or says why not."""
    read = {(r.comparison, r.replicate, r.case.regime) for r, x in measured if x.role is Role.GROSS}
    for record in run.records:
        key = (record.comparison, record.replicate, record.case.regime)
        gross = any(reading.role is not Role.IDLE for reading in record.readings)
        if key in read and record.samples and record.status is Status.OK and not (gross or record.interrupted):
            yield name(record), "has no energy reading, where the other arms have"
