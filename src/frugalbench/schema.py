"""The project's words as frozen types, and how they are written to and read from disk.

Everything that crosses the seam between measuring and judging is one of these types:
``manifest.json`` holds a :class:`Manifest`, each line of ``records.jsonl`` a :class:`Record`.
A missing number is ``None`` (``null`` on disk), never 0.
"""

from enum import StrEnum
from typing import Any

import msgspec

SCHEMA_VERSION = 1
"""Version of the two files in a run directory. Readers accept this one and every older one."""


class Tier(StrEnum):
    """How a quantity was obtained, most to least direct."""

    MEASURED = "measured"
    EMULATED = "emulated"
    MODELLED = "modelled"
    PUBLISHED = "published"


class Status(StrEnum):
    """What became of one case in one worker."""

    OK = "ok"
    CAPPED = "capped"
    FAILED = "failed"
    SKIPPED = "skipped"


class Role(StrEnum):
    """What an energy reading is for."""

    GROSS = "gross"
    PART = "part"
    IDLE = "idle"


class Outcome(StrEnum):
    """What a verdict says."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"
    NOT_TESTED = "not tested"


class CaseOutcome(StrEnum):
    """How a conformance case ended on a runtime; exactly one of these."""

    PASSED = "passed"
    MISMATCH = "mismatch"
    """It ran, and an output has another value, type or shape than the case allows."""
    LOAD_ERROR = "load_error"
    RUN_ERROR = "run_error"
    UNSUPPORTED = "unsupported"
    """The runtime itself says that it does not implement this."""
    CRASH = "crash"
    """Its process died."""
    TIMEOUT = "timeout"


class Frozen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of every stored type: immutable, keyword-only, tolerant of fields from newer minor writers."""


class Quantity(Frozen, frozen=True, kw_only=True):
    """A number with unit, interval and tier."""

    value: float | None
    unit: str
    tier: Tier
    low: float | None = None
    high: float | None = None
    source: str = ""
    """How it was obtained: a formula, a counter, a document."""


class Cost(Frozen, frozen=True, kw_only=True):
    """What one call of a case computes, by formula from its shape.

    ``flop`` counts executed floating-point operations (a multiply-add is 2); integer work is ``op``.
    ``weight_bytes`` is what is stored for the weights in use, scales and zero points included.
    ``traffic_bytes`` is the least that one call must move between memory and processor.
    ``parameters`` and ``active_parameters`` count the weights held and those multiplied per token.
    """

    token: float
    """Tokens, or other units of work, of one call."""
    flop: float
    weight_bytes: float
    traffic_bytes: float
    op: float = 0.0
    parameters: int = 0
    active_parameters: int = 0


class Case(Frozen, frozen=True, kw_only=True):
    """The unit that is measured: workload x variant x shape x regime x backend x device."""

    id: str
    workload: str
    variant: str
    shape: str
    regime: str
    backend: str
    device: str
    dtype: str
    params: dict[str, Any] = {}
    """The shape spelled out: dimensions, tokens, scale factor, group size, seeds."""
    cost: Cost | None = None
    tolerance: float | None = None
    """Largest allowed relative error against the float64 reference (max abs error / reference rms)."""
    peaks: tuple[str, ...] = ()
    """Names of the measured peaks that bound it, e.g. ``fp32_flop_per_s``, ``read_bytes_per_s``."""


class Arm(Frozen, frozen=True, kw_only=True):
    """Cases that share one loaded object, in one worker."""

    id: str
    cases: tuple[Case, ...]
    imports: tuple[str, ...]
    """Modules its template imports before the worker is forked."""
    memory_bytes: float = 0.0
    """Estimate of what the loaded arm holds, for planning."""


class Comparison(Frozen, frozen=True, kw_only=True):
    """Arms measured against each other, turn by turn."""

    id: str
    workload: str
    arms: tuple[Arm, ...]
    estimate_s: float = 0.0
    """Rough time for one replicate, for planning."""
    competes: bool = True
    """Whether arms compete, so that a pilot has to choose among them."""
    tier: Tier = Tier.MEASURED
    """Of its times: ``emulated`` where part of what is timed stands in for something else."""
    metered: bool = True
    """Whether joules are of interest, so that turns of their own are taken for them."""


class Skipped(Frozen, frozen=True, kw_only=True):
    """A case that will not be measured, and why."""

    case: Case
    reason: str


class Plan(Frozen, frozen=True, kw_only=True):
    """The ordered, seeded list of comparisons that a config expands to."""

    seed: int
    """Of the order."""
    comparisons: tuple[Comparison, ...]
    """In the order in which they are measured."""
    skipped: tuple[Skipped, ...] = ()
    """What the config asks for and this machine cannot do."""
    modelled: tuple[Case, ...] = ()
    """Cases that are computed by a model, not measured."""


class Environment(Frozen, frozen=True, kw_only=True):
    """What the machine did during one timed window."""

    wall_s: float
    cpu_s: float
    """CPU time of the worker itself, of its ranks, and of commands that it started and saw end."""
    run_delay_s: float | None = None
    """Time that the worker's threads stood runnable without a core (schedstat)."""
    steal_s: float | None = None
    """Time stolen by the hypervisor, all cores."""
    foreign_cpu_s: float | None = None
    """CPU time of everyone else, all cores; resolution is one clock tick per core."""
    quiet_wait_s: float = 0.0
    """How long the turn waited for the previous worker's CPU clock to stand still."""
    quiet: bool = True
    clock_hz: float | None = None
    throttled: bool | None = None
    """Whether the processor held its clock back because of heat."""
    memory_stall_s: float | None = None
    """Time in which any task of the machine waited for memory (pressure stall information, ``some``)."""
    swapped_bytes: float | None = None
    """Moved to and from swap, whole machine; 0 where no swap is switched on."""
    major_faults: int | None = None
    """Page faults of the worker that had to read from disk."""
    preemptions: int | None = None
    """Involuntary context switches of the worker."""
    temperature_c: float | None = None
    """Processor temperature at the end of the window."""
    gpu_throttle: tuple[str, ...] | None = None
    """Why the GPU held its clocks back, at either end of the window; ``None`` where it is not read."""
    gpu_clock_hz: float | None = None
    """Clock of the GPU's multiprocessors just after the window."""
    gpu_memory_clock_hz: float | None = None
    gpu_temperature_c: float | None = None


class Sample(Frozen, frozen=True, kw_only=True):
    """One timed value: the mean time of ``calls`` calls in one window of one turn."""

    round: int
    """Samples of one comparison, regime, replicate and round are paired."""
    turn: int
    """Order within the round."""
    calls: int
    """In the window."""
    time_s: float
    """Per call."""
    device_s: float | None = None
    """Per call by the clock of the device that computed: from the first launch to the end of the last kernel, gaps
    between kernels included. ``None`` on a processor."""
    start_s: float
    """On the run's monotonic clock."""
    environment: Environment
    void: str | None = None
    """Why the environment spoilt this sample; ``None`` when it did not."""


class Reading(Frozen, frozen=True, kw_only=True):
    """One energy observation over one window, which is also timed."""

    joule: float | None
    """``None`` where the reading failed."""
    scope: str
    """What the joules cover: ``cpu-package``, ``gpu-board``, ``declared-model`` …"""
    method: str
    """How the energy was read."""
    tier: Tier
    window_s: float
    """Time over which the joules were counted."""
    calls: int
    """In the window."""
    start_s: float
    """On the run's monotonic clock; readings that share it are of one window."""
    round: int | None = None
    """Of the energy turns; ``None`` where the joules decide nothing."""
    low_joule: float | None = None
    """Lower bound of modelled joules."""
    high_joule: float | None = None
    """Upper bound of modelled joules."""
    error: str | None = None
    """Why the window is poisoned; its joules are then ``None``."""
    role: Role = Role.GROSS
    """``gross``: joules of a turn, and those of its scopes add up. ``part``: overlaps a scope that counts, does not
    cover the device, or was spoilt and taken again, so it is shown and never added. ``idle``: all arms were loaded
    and none computed; this power is what gross joules have above net ones."""
    note: str = ""
    """Why the tier was capped, or what spoilt the window."""


class Verification(Frozen, frozen=True, kw_only=True):
    """The output check that precedes every timing."""

    error: float | None
    """Largest error of the output over the reference's root mean square."""
    tolerance: float
    """Largest allowed error."""
    passed: bool
    what: str
    """What was compared with what."""


class Artefact(Frozen, frozen=True, kw_only=True):
    """Something exported or compiled before timing, accounted apart from it."""

    name: str
    build_s: float
    """Time of the build that made it, also when it came from the cache."""
    cached: bool
    size_bytes: float | None = None


class Warmup(Frozen, frozen=True, kw_only=True):
    """How the steady state was found."""

    calls: int
    """Until the steady state."""
    time_s: float
    """Until the steady state."""
    steady: bool
    """Whether it was found."""
    call_s: float | None = None
    """Time per call at the end of it."""
    placed_threads: int = 0
    """Threads that are put on a core each for the length of a turn; 0 where the scheduler places them."""


class FirstStart(Frozen, frozen=True, kw_only=True):
    """What a user waits for before the first answer, in a fresh process that has imported its libraries.

    Steady latency is in the samples. A step that a runtime does not have, or takes inside another, is ``None``.
    """

    load_s: float | None = None
    """From the file to what the runtime can compile or call."""
    compile_s: float | None = None
    """Conversion or compilation without a cache: where one held it (``cached``), of the build that filled it. A runtime
    that compiles in its first calls has them here."""
    first_inference_s: float | None = None
    """First call after that, its inputs prepared, until its result is there."""
    cached: bool = False
    """What ``compile_s`` counts was not done in this start: it came from a cache on disk."""
    cached_compile_s: float | None = None
    """What the step took in this start with that cache, where it still took time of its own."""
    note: str = ""
    """What the steps hold in this runtime."""


class Worker(Frozen, frozen=True, kw_only=True):
    """The process that executed an arm."""

    pid: int
    start_method: str
    """``fork`` (from a template) or ``spawn``."""
    template_id: str | None
    threads: int | None
    """Effective compute threads."""
    libraries: dict[str, str] = {}


class Sweep(Frozen, frozen=True, kw_only=True):
    """A figure over one of its inputs (a curve) or two (a map): the points that a ratio rests on, kept to be drawn.

    All columns are equally long. Sweeps of one figure over the same inputs stand in one chart.
    """

    figure: str
    unit: str
    line: str
    """Which curve or map of the figure this is: a cluster, a way to exchange."""
    tier: Tier
    over: dict[str, tuple[float, ...]]
    """The inputs, one or two; names carry units."""
    value: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    """Empty where there are no bounds, as ``high`` is."""
    high: tuple[float | None, ...] = ()
    least: float | None = None
    """What a claim asks for at least."""
    source: str = ""


class Record(Frozen, frozen=True, kw_only=True):
    """One immutable line per worker and case."""

    schema_version: int
    comparison: str
    arm: str
    case: Case
    replicate: int
    """Number of the fresh start; 0 is the pilot, whose samples choose the best arm and do not count."""
    status: Status
    reason: str = ""
    tier: Tier = Tier.MEASURED
    interrupted: bool = False
    """The replicate was cut short; kept, not counted."""
    steady_load: bool = False
    """Void rounds were not rare, so all were kept."""
    worker: Worker | None = None
    load_s: float | None = None
    artefacts: tuple[Artefact, ...] = ()
    verification: Verification | None = None
    warmup: Warmup | None = None
    samples: tuple[Sample, ...] = ()
    readings: tuple[Reading, ...] = ()
    pss_bytes: float | None = None
    sweeps: tuple[Sweep, ...] = ()
    """Points behind the facts, where they follow from a curve or a map."""
    facts: dict[str, Quantity] = {}
    """Whatever else was found out: stored bytes, placement, histogram summaries, modelled results."""
    details: dict[str, Any] = {}
    """Plain data beside the facts: router histogram, node placement, operator list, notes."""
    first_start: FirstStart | None = None
    """Of the first case of its arm: the others met a process that had already computed."""


class Decision(Frozen, frozen=True, kw_only=True):
    """What ``decide`` says of a comparison after a planned look."""

    stop: bool
    """Whether no further replicate is needed."""
    look: int
    """Number of the planned look, from 1; 0 where it was none."""
    reason: str
    """In words."""


class Harness(Frozen, frozen=True, kw_only=True):
    """What the harness itself cost."""

    wall_s: float
    parent_cpu_s: float
    """Without what modelled cases computed."""
    measuring_s: float
    """Wall time less what exports and compilations took."""
    prepared_s: float = 0.0
    """Exports and compilations that were not cached yet."""
    modelling_cpu_s: float = 0.0
    """CPU time of modelled cases: work that was asked for, in the same process."""
    peak_pss_bytes: float | None = None


class Manifest(Frozen, frozen=True, kw_only=True):
    """The other half of a run directory: what was asked, where, and with what."""

    schema_version: int
    """Of this directory."""
    run_id: str
    """When it began, the config's name, eight hex digits; ids of older runs may lack the digits."""
    name: str
    """Of the config."""
    config: dict[str, Any]
    """As resolved: file, overrides and defaults, with all workload tables."""
    seed: int
    """Of inputs, weights and orders."""
    plan: Plan
    claims_hash: str
    """Of the claim files that the run was planned under: 16 hex digits."""
    machine_before: dict[str, Any]
    """The machine as the run began, as ``frugalbench doctor --json`` tells it: ``fingerprint``, ``name`` and more."""
    versions: dict[str, str]
    """Package to version."""
    revision: str | None
    """Commit of the source checkout that measured, ``+`` where it had been changed; ``None`` outside of one."""
    started: str
    """ISO 8601, UTC."""
    machine_after: dict[str, Any] | None = None
    """The same as the run ended."""
    ended: str | None = None
    """Like ``started``; ``None`` where the run was killed."""
    state: str = "running"
    """``running``, ``complete``, ``interrupted`` or ``out of time``."""
    harness: Harness | None = None
    decisions: dict[str, Decision] = {}
    """Comparison to why it ended."""
    floor: float | None = None
    """A/A floor that widens each interval of this run; ``None`` in runs that took the default."""
    notes: tuple[str, ...] = ()
    """What a reader should know."""


class Source(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a claim is made."""

    document: str
    place: str = ""


class PairedArms(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Arms of a further workload that a paired rule judges too, in that workload's own comparisons."""

    workload: str
    baselines: tuple[str, ...]
    as_shipped: tuple[str, ...]
    best: tuple[str, ...]


class PairedRatio(Frozen, frozen=True, kw_only=True, tag="paired_ratio", tag_field="kind", forbid_unknown_fields=True):
    """Speed or tokens per joule of a candidate over each baseline, from paired rounds.

    ``scale`` turns the ratio into the estimand: ``none`` leaves it; ``flop`` multiplies it by
    candidate FLOP / baseline FLOP (the share of the paper saving that is realised, which is also
    the ratio of the two MFU); ``peak_share`` compares the shares of each arm's own measured peak; ``tax`` is
    what the baseline lacks of the candidate's speed, 1 - 1 / ratio.
    """

    workload: str
    metric: str
    """``time`` or ``energy``."""
    baselines: tuple[str, ...]
    """Variant names; the claim must hold against each of them."""
    as_shipped: tuple[str, ...]
    best: tuple[str, ...]
    scale: str = "none"
    beside: tuple[PairedArms, ...] = ()
    """Judged by themselves; their rows name the shape. Where a run has none of them, no row says so."""


class ExactGroup(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Variants of an exact rule that share a threshold."""

    regime: str
    variants: tuple[str, ...]
    threshold: float
    workload: str = ""
    """Where it is not the rule's own; each shape then has a row of its own."""


class ExactRatio(Frozen, frozen=True, kw_only=True, tag="exact_ratio", tag_field="kind", forbid_unknown_fields=True):
    """Ratio of two exact facts of one record; no interval."""

    workload: str
    numerator: str
    denominator: str
    groups: tuple[ExactGroup, ...]


class Coverage(Frozen, frozen=True, kw_only=True, tag="coverage", tag_field="kind", forbid_unknown_fields=True):
    """Share of cases for which a fact holds (value 1); a failed case does not hold."""

    workload: str
    fact: str
    variants: tuple[str, ...] = ()
    """Empty: all variants."""
    beside: tuple[str, ...] = ()
    """Further workloads whose cases are counted too."""
    without: tuple[str, ...] = ()
    """Variants that are not counted."""
    only_known: bool = False
    """Cases that never got as far as the fact are left out, instead of counting against it."""


class Modelled(Frozen, frozen=True, kw_only=True, tag="modelled", tag_field="kind", forbid_unknown_fields=True):
    """A ratio that a model computed, with its interval, one verdict per regime."""

    workload: str
    variant: str
    fact: str = "ratio"


class EqualLoss(Frozen, frozen=True, kw_only=True, tag="equal_loss", tag_field="kind", forbid_unknown_fields=True):
    """What a candidate spends to reach a loss, over what the baseline spends to reach the same; from curves."""

    workload: str
    baseline: str
    candidates: tuple[str, ...]
    axis: str = "flop"
    """Key of the curve's points that is compared."""


class NonInferiority(
    Frozen, frozen=True, kw_only=True, tag="non_inferiority", tag_field="kind", forbid_unknown_fields=True
):
    """Share of right answers over the baseline's, on the same items; one verdict per model, task and candidate."""

    workload: str
    baseline: str
    candidates: tuple[str, ...]
    strict: float
    """A stricter gate than the claim's, shown beside it."""


class Reach(Frozen, frozen=True, kw_only=True, tag="reach", tag_field="kind", forbid_unknown_fields=True):
    """Parameters of the largest published model that fits this machine and generates fast enough: the candidates'
    format over the baselines'. Modelled from the share of the read bandwidth that the best arm of each reached."""

    workload: str
    shapes: str
    """Variant of the record that lists the published models."""
    baselines: tuple[str, ...]
    """Arms with 2 bytes a weight."""
    fallback: tuple[str, ...]
    """Where none of them was measured: their share of the bandwidth speaks, at 2 bytes a weight."""
    candidates: tuple[str, ...]
    least_token_per_s: float


class NotTested(Frozen, frozen=True, kw_only=True, tag="not_tested", tag_field="kind", forbid_unknown_fields=True):
    """No workload tests the claim yet."""

    reason: str


Rule = PairedRatio | ExactRatio | Coverage | Modelled | EqualLoss | NonInferiority | Reach | NotTested


class Claim(Frozen, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published statement made testable before anything is measured."""

    id: str
    says: str
    sources: tuple[Source, ...]
    estimand: str
    direction: str
    """``at_least`` or ``at_most``."""
    threshold: float
    regimes: tuple[str, ...]
    scope: str
    """``literal`` or ``analogue``."""
    flips: str
    """What would turn the verdict around."""
    rule: Rule
    modelled: Modelled | None = None
    """A second rule, under the same threshold, for what no machine at hand can measure; rows of its own."""
    note: str = ""


class Verdict(Frozen, frozen=True, kw_only=True):
    """The answer to one claim in one regime on one machine."""

    claim: str
    """Id of the claim."""
    regime: str
    """Under which load."""
    machine: str
    """Name of the machine that was measured."""
    scope: str
    """``literal``, or ``analogue``: a stand-in for what the source means."""
    arm: str | None
    """``as_shipped``, ``best``, or ``None`` where arms do not compete."""
    verdict: Outcome
    metric: str
    """What the ratio is of."""
    baseline: str | None
    """Arm that the ratio is over; the strongest in the pilot."""
    candidate: str | None
    """Arm that is judged."""
    ratio: float | None
    """The estimand's value."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end of its interval."""
    confidence: float | None
    """Of the interval, after looks and Holm's procedure."""
    threshold: float
    """What the claim needs."""
    tier: Tier | None
    """How the number was obtained: ``measured``, ``emulated``, ``modelled`` or ``published``."""
    replicates: int
    """Fresh starts that count."""
    reason: str
    """Why."""
    source: str
    """Where the claim is made."""


def encode(value: Any) -> bytes:
    """One line of JSON, without the newline."""
    return msgspec.json.encode(value)


def decode_record(line: bytes) -> Record:
    """Read one line of ``records.jsonl``; raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
    return _RECORD.decode(line)


def decode_manifest(text: bytes) -> Manifest:
    """Read ``manifest.json``; raises like :func:`decode_record`."""
    return _MANIFEST.decode(text)


_RECORD = msgspec.json.Decoder(Record)
_MANIFEST = msgspec.json.Decoder(Manifest)


UNREADABLE = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)
"""What decoding a damaged file raises; brackets in brackets without end exhaust the stack."""


class FrugalbenchError(Exception):
    """A problem to show the user in one or two lines: what is wrong, where, and what to do."""

    exit_code = 2


class NothingRunsHere(FrugalbenchError):
    """Nothing of what was asked can run on this machine."""

    exit_code = 3
