"""What only the harness itself can ask of a stranger's run: the order of turns from its seed, its stopping from its
records, its voids from its environments. Its plan from its config is in ``replan``, its modelled rows in ``remodel``.

Both wings meet here. Asked only of runs that this version measured: another one may plan and describe otherwise.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from frugalbench import __version__
from frugalbench.analysis.claims import claims_hash, load_claims
from frugalbench.analysis.load import Run, load_run
from frugalbench.cli import judging, remodel, replan, session
from frugalbench.config import Config, from_stored, load_config, shipped_names
from frugalbench.machine import Machine
from frugalbench.meters.environment import void_reason
from frugalbench.run.engine import Decide
from frugalbench.run.schedule import shuffled
from frugalbench.run.store import came_to_a_worker
from frugalbench.schema import Decision, FrugalbenchError, Record, Sample, Status
from frugalbench.specs import selftest
from frugalbench.specs.base import SIMULATED
from frugalbench.untrusted import shown

Finding = tuple[str, str]

RELEASED = (__version__,)
_VOID = re.compile(
    r"run delay |steal |foreign CPU |memory stall |swapping |CPU throttled$|GPU throttled: |\d+% of the cores busy"
    r"|\d+ kernels were compiled"
)
_SPENT = "its share of the time budget"
"""How the reason begins that an undecided comparison stops for."""
USUAL_ALPHA = 0.05
_JUDGING = ("alpha", "looks")
"""Settings of ``[measure]`` that verdicts follow from."""
_MEASURED_VOID = re.compile(r"(run delay|steal|foreign CPU|memory stall) (\d+\.\d) ms above ")


def checks() -> tuple[tuple[str, Callable[[Run], Iterator[Finding]]], ...]:
    """Name and rule, as :func:`frugalbench.analysis.submission.vet.vet` takes them."""
    return (
        ("schema", released), ("machine", identity), ("plan", planned), ("plan", stopped), ("turns", order),
        ("environment", voids), ("modelled", modelled),
    )  # fmt: skip


def page_of(files: dict[str, bytes]) -> bytes:
    """The report of a run that exists as these files alone, so that it holds nothing that they lack."""
    from frugalbench.report.render import render

    with tempfile.TemporaryDirectory(prefix="frugalbench-") as folder:
        inside = Path(folder, "run")
        inside.mkdir()
        for name, content in files.items():
            (inside / name).write_bytes(content)
        runs = [load_run(inside)]
        made = render(runs, judging.judge(runs), "html", None)
        return (made.encode() if isinstance(made, str) else made).replace(str(inside).encode(), b"the run")


def _is_ours(run: Run) -> bool:
    return run.manifest.versions.get("frugalbench") == __version__


def released(run: Run) -> Iterator[Finding]:
    """Of a version that this one knows: what another one writes cannot be asked after."""
    told = run.manifest.versions.get("frugalbench")
    if told not in RELEASED:
        yield (
            "manifest.json",
            f"measured with frugalbench {told}, which this one ({__version__}) does not know; use that one",
        )


def identity(run: Run) -> Iterator[Finding]:
    """Name and fingerprint follow from the rest of the description, which is therefore all of one piece."""
    if not _is_ours(run):
        return
    names = {item.name for item in fields(Machine)}
    for moment in ("machine_before", "machine_after"):
        told = getattr(run.manifest, moment) or {}
        if not names <= told.keys():
            yield "manifest.json", f"{moment} lacks {', '.join(sorted(names - told.keys())[:4])}"
            continue
        machine = Machine(**replan.arguments(told))
        if told.get("fingerprint") != machine.fingerprint or told.get("name") != machine.name:
            yield "manifest.json", f"fingerprint and name in {moment} are not those of the machine that it describes"


def planned(run: Run) -> Iterator[Finding]:
    """:func:`frugalbench.cli.replan.planned` of a run of this version."""
    if _is_ours(run):
        yield from replan.planned(run)


def modelled(run: Run) -> Iterator[Finding]:
    """:func:`frugalbench.cli.remodel.modelled` of a run of this version."""
    if _is_ours(run):
        yield from remodel.modelled(run)


def order(run: Run) -> Iterator[Finding]:
    """Turns of a round are taken in the order that the seed gives to its cases: none was added, removed or exchanged.

    A replicate in which a worker failed is left out, for a round may have gone on without it.
    """
    if not _is_ours(run):
        return
    failed = {(r.comparison, r.replicate) for r in run.records if r.status is Status.FAILED}
    rounds: dict[tuple[str, int, str, int], list[tuple[int, str]]] = {}
    for record in run.records:
        if not record.interrupted and (record.comparison, record.replicate) not in failed:
            for sample in record.samples:
                key = (record.comparison, record.replicate, record.case.regime, sample.round)
                rounds.setdefault(key, []).append((sample.turn, record.case.id))
    for (comparison, replicate, regime, number), taken in rounds.items():
        names = [name for _, name in sorted(taken)]
        if names != shuffled(run.manifest.plan.seed, names, comparison, replicate, regime, number):
            where = f"{comparison}, replicate {replicate}"
            yield where, f"round {number} of {regime} is not in the order that seed {run.manifest.plan.seed} gives"


def stopped(run: Run) -> Iterator[Finding]:
    """Each comparison stopped at the planned look at which its records, its alpha and the claims say so, no later."""
    manifest = run.manifest
    if not _is_ours(run) or manifest.claims_hash != claims_hash() or not manifest.config.get("workloads"):
        return
    config = from_stored(manifest.config, "manifest.json")
    choose = session.decide_by_claims(config, load_claims(), manifest.floor)
    for comparison in manifest.plan.comparisons:
        decision = manifest.decisions.get(comparison.id)
        if decision is not None and comparison.workload != selftest.WORKLOAD:
            whole = [r for r in run.records if r.comparison == comparison.id and not r.interrupted]
            seen = [r for r in whole if came_to_a_worker(r)]
            if reason := _stop_fault(seen, config.measure.looks, decision, choose):
                yield comparison.id, reason


def _stop_fault(records: Sequence[Record], looks: Sequence[int], decision: Decision, choose: Decide) -> str | None:
    last = max((record.replicate for record in records), default=0)
    for look in (item for item in looks if item <= last):
        settled = choose([record for record in records if record.replicate <= look], look).stop
        if settled and look < last:
            return f"was settled at {look} replicates by the run's own alpha and floor, and went on to {last}"
        if settled and decision.reason.startswith(_SPENT):
            return f"was settled at {look} replicates by the run's own alpha and floor; its decision says otherwise"
        if not settled and decision.reason == f"every claim is settled at {look} replicates":
            return f"was not settled at {look} replicates by the run's own alpha and floor, as its decision says"
    return None


def voids(run: Run) -> Iterator[Finding]:
    """A window is void exactly where its environment spoilt it, and for the reason that is told."""
    if not _is_ours(run):
        return
    cores = int(run.manifest.machine_before.get("logical_cores") or 1)
    for record in run.records:
        threads = _threads(record, cores)
        reason = next(filter(None, (_void_fault(sample, threads, cores) for sample in record.samples)), None)
        if reason:
            yield f"{record.case.id}, replicate {record.replicate}", reason
    yield from _steady(run)


def _threads(record: Record, cores: int) -> int:
    """The most that the worker may have computed with."""
    asked = record.case.params.get("threads")
    known = [asked if isinstance(asked, int) else 0, (record.worker.threads if record.worker else None) or 0]
    return max(*known, 1) if any(known) else cores


def _void_fault(sample: Sample, threads: int, cores: int) -> str | None:
    if sample.environment.wall_s <= 0:
        return None
    spoilt = void_reason(sample.environment, threads, cores)
    if spoilt and sample.void is None:
        return f"round {sample.round} counts although its environment spoilt it: {spoilt}"
    if sample.void and not _VOID.match(sample.void):
        return f"round {sample.round} is void for {sample.void!r}, which is none of the harness's reasons"
    said = _MEASURED_VOID.match(sample.void or "")
    if said:
        value_s = getattr(sample.environment, said[1].replace("CPU", "cpu").replace(" ", "_") + "_s")
        if value_s is None or f"{1e3 * value_s:.1f}" != said[2]:
            return f"round {sample.round} is void for {sample.void!r}, which its environment does not show"
    return None


def _steady(run: Run) -> Iterator[Finding]:
    """Void rounds count under a steady load alone, which many of them must show."""
    spoilt = {(r.comparison, r.replicate, r.case.regime) for r in run.records for s in r.samples if s.void is not None}
    for record in run.records:
        key = (record.comparison, record.replicate, record.case.regime)
        if record.steady_load and record.samples and key not in spoilt and record.case.device != SIMULATED:
            yield f"{record.case.id}, replicate {record.replicate}", "a steady load, and not one void round"


def remarks(run: Run) -> Iterator[str]:
    """What a reader should know of how a run was asked for."""
    if (only := run.manifest.config.get(replan.ONLY)) is not None:
        yield f"a selection of its config: --only {shown(only, 200)}"
    if not _is_ours(run):
        return
    try:
        yield from _changes(from_stored(run.manifest.config, "manifest.json"))
        missing = replan.unplanned(run)
    except FrugalbenchError:
        return  # `plan` says so
    if missing:
        yield f"{missing} cases that its config gives at this revision are not in its plan ({run.manifest.revision})"
    yield from remodel.odd_rows(run)


def _changes(config: Config) -> Iterator[str]:
    """In what a config departs from the shipped one of its name."""
    if config.name in shipped_names():
        if told := [*_settings(config, load_config(config.name)), *_tables(config, load_config(config.name))]:
            yield f"its config is not the shipped {config.name} of this version: {shown('; '.join(told), 300)}"
    elif config.measure.alpha > USUAL_ALPHA:
        yield f"its intervals may miss in {config.measure.alpha:.0%} of cases (alpha); {USUAL_ALPHA:.0%} are usual"


def _settings(config: Config, known: Config) -> Iterator[str]:
    for key in _JUDGING:
        told, usual = getattr(config.measure, key), getattr(known.measure, key)
        if told != usual:
            yield f"{key} is {told}, not {usual}"


def _tables(config: Config, known: Config) -> Iterator[str]:
    for had, lacks, words in ((known, config, "lacks a"), (config, known, "has another")):
        yield from (f"{words} [[workload]] {table['name']}" for table in had.workloads if table not in lacks.workloads)
