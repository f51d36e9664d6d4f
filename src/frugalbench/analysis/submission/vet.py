"""All that is asked of a stranger's file, in one list of refusals with reasons."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.load import Run, decode_run
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.analysis.submission import energy, noise, outputs, pauses, physics, turns, wholeness
from frugalbench.analysis.submission.archive import Index, Unusable, unpack
from frugalbench.analysis.submission.page import page_fault
from frugalbench.analysis.submission.scrub import secrets
from frugalbench.analysis.submission.turns import Finding
from frugalbench.paths import data
from frugalbench.schema import UNREADABLE, Frozen, FrugalbenchError
from frugalbench.untrusted import brief, shown

MOST_PER_CHECK = 3
LEAST_PAIRS = 20
"""Identical pairs that a self-test replays before its floor goes below the default: 1 over alpha."""
PRESENT = "present"
_ENDED = ("complete", "out of time", "interrupted")
"""States of a run that ended by itself: one that was interrupted keeps its whole replicates, and a remark says so."""
BROKEN = (ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError, FrugalbenchError)
"""What rules raise on documents that no run writes."""
Check = Callable[[Run], Iterator[Finding]]
Render = Callable[[dict[str, bytes]], bytes]


class Refusal(Frozen, frozen=True, kw_only=True):
    """Why a submission is not taken."""

    check: str
    where: str
    reason: str


class Report(Frozen, frozen=True, kw_only=True):
    """What ``frugalbench check`` found."""

    file: str
    accepted: bool
    refusals: tuple[Refusal, ...]
    remarks: tuple[str, ...] = ()
    """What a reader should know; refuses nothing."""
    contents: dict[str, Any] = {}


CHECKS: tuple[tuple[str, Check], ...] = (
    ("plan", turns.plan),
    ("plan", wholeness.arms),
    ("plan", wholeness.decisions),
    ("dates", turns.dates),
    ("dates", wholeness.dating),
    ("windows", turns.windows),
    ("turns", turns.turns),
    ("turns", wholeness.gaps),
    ("pauses", pauses.pauses),
    ("calls", turns.calls),
    ("resolution", noise.resolution),
    ("copies", noise.copies),
    ("regular", noise.regular),
    ("twins", noise.twins),
    ("environment", noise.environment),
    ("roofline", physics.roofline),
    ("clocks", physics.clocks),
    ("joules", physics.joules),
    ("joules", energy.energy),
    ("outputs", outputs.outputs),
)
"""Name and rule; a rule yields where and why."""


def vet(
    path: Path,
    further: Sequence[tuple[str, Check]] = (),
    render: Render | None = None,
    notes: Callable[[Run], Iterator[str]] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Report, dict[str, bytes]]:
    """The report on a file, and its contents by name (empty where it could not be read).

    ``further`` are rules that need the measuring wing, as are further remarks (``notes``); ``render`` makes the page of
    a run's files, ``progress`` is told which rule is asked. Raises ``OSError`` where the file cannot be opened.
    """
    try:
        index, files = unpack(path)
        run = decode_run(path, files["manifest.json"], files["records.jsonl"])
    except Unusable as problem:
        return _refused(path, problem.check, str(problem)), {}
    except FrugalbenchError as problem:
        return _refused(path, "schema", str(problem).split("\n")[0]), {}
    checks: tuple[tuple[str, Check], ...] = (
        *CHECKS,
        *further,
        ("state", _state),
        ("claims", _claims),
        ("self-test", lambda item: _self_test(item, index, files.get("selftest.json"))),
        ("secrets", lambda _: _secrets(files)),
        ("page", lambda item: _page(item, files, render)),
    )
    found: list[Refusal] = []
    for number, (name, rule) in enumerate(checks, 1):
        progress(f"{path.name}: rule {number} of {len(checks)}, {name}")
        found += _apply(name, rule, run)
    report = Report(
        file=str(path), accepted=not found, refusals=tuple(found), remarks=(*_remarks(run, index), *_noted(run, notes)),
        contents=contents(run, files),
    )  # fmt: skip
    return report, files


def _noted(run: Run, notes: Callable[[Run], Iterator[str]] | None) -> tuple[str, ...]:
    try:
        return () if notes is None else tuple(notes(run))
    except BROKEN:
        return ()  # the rules refuse such a document


def _refused(path: Path, check: str, reason: str) -> Report:
    return Report(
        file=str(path), accepted=False, refusals=(Refusal(check=check, where=path.name, reason=shown(reason, 400)),)
    )


def _apply(check: str, rule: Check, run: Run) -> Iterator[Refusal]:
    """At most a few refusals of one rule; a document that breaks the rule itself is refused too."""
    try:
        for where, reason in islice(rule(run), MOST_PER_CHECK):
            yield Refusal(check=check, where=shown(where, 200), reason=shown(reason, 400))
    except BROKEN as problem:
        yield Refusal(check=check, where="", reason=f"cannot be computed with: {brief(str(problem))}")


def contents(run: Run, files: dict[str, bytes]) -> dict[str, Any]:
    """What is in a submission, for a person who decides about it."""
    manifest = run.manifest
    return {
        "run_id": manifest.run_id,
        "config": manifest.name,
        "machine": manifest.machine_before.get("name"),
        "fingerprint": manifest.machine_before.get("fingerprint"),
        "started": manifest.started,
        "state": manifest.state,
        "records": len(run.records),
        "samples": sum(len(record.samples) for record in run.records),
        "files": {name: len(content) for name, content in sorted(files.items())},
    }


def _state(run: Run) -> Iterator[Finding]:
    if run.manifest.state not in _ENDED:
        yield (
            "manifest.json",
            f"the run is {brief(run.manifest.state)}: it did not end by itself. `frugalbench run --resume` finishes it",
        )
    yield from (("records.jsonl", text) for text in run.problems if "dropped" in text)


def known_claims() -> dict[str, str]:
    """Hash of each state that the claims' files have had, to the date from which it held."""
    lines = data("known_claims.csv").read_text(encoding="utf-8").splitlines()[1:]
    return dict(line.split(",")[:2] for line in lines) | {claims_hash(): "now"}


def _claims(run: Run) -> Iterator[Finding]:
    if run.manifest.claims_hash not in known_claims():
        yield (
            "manifest.json",
            f"claims_hash {brief(run.manifest.claims_hash)} is of no state that the claims have had: they were changed "
            "before measuring, or by a newer frugalbench",
        )


def _self_test(run: Run, index: Index, content: bytes | None) -> Iterator[Finding]:
    """Either the self-test is in the file, of this machine and with the floor in use, or its absence is said."""
    if (content is not None) != (index.self_test == PRESENT):
        yield "submission.json", "what it says of the self-test is not what the file holds"
    if content is None:
        if not index.self_test.strip():
            yield "submission.json", "does not say why there is no self-test"
        if run.manifest.floor is not None and run.manifest.floor < DEFAULT_FLOOR:
            yield (
                "manifest.json",
                f"intervals are widened by {run.manifest.floor:.2%} only, and no self-test shows that this is enough",
            )
        return
    found = _plain(content)
    if not isinstance(found, dict) or not isinstance(found.get("aa_floor"), int | float):
        yield "selftest.json", "is no result of `frugalbench selftest`"
    elif found.get("fingerprint") != run.manifest.machine_before.get("fingerprint"):
        yield "selftest.json", "is of another machine"
    elif run.manifest.floor is None or abs(found["aa_floor"] - run.manifest.floor) > 1e-9:
        yield "selftest.json", f"found a floor of {found['aa_floor']:.3g}; the run used {run.manifest.floor}"
    elif found["aa_floor"] < DEFAULT_FLOOR and _pairs(found) < LEAST_PAIRS:
        yield (
            "selftest.json",
            f"its floor rests on {_pairs(found)} pairs of identical arms; {LEAST_PAIRS} are the fewest",
        )


def _pairs(found: dict[str, Any]) -> int:
    """Replayed comparisons of identical arms, all banks together."""
    banks = [*found.get("idle", ()), *found.get("loaded", ())]
    return sum(bank.get("comparisons", 0) for bank in banks if isinstance(bank, dict))


def _plain(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except UNREADABLE:
        return None


def _secrets(files: dict[str, bytes]) -> Iterator[Finding]:
    for name, content in files.items():
        if name.endswith((".json", ".jsonl")):
            lines = content.split(b"\n") if name.endswith(".jsonl") else (content,)
            for kind, text in secrets(*(_plain(line) for line in lines if line.strip())):
                yield name, f"holds what `frugalbench submit` removes: {kind} {brief(text)}"


def _page(run: Run, files: dict[str, bytes], render: Render | None) -> Iterator[Finding]:
    """It only shows, and what its records give; claims that have changed since would make another one."""
    content = files.get("report.html")
    if content is None:
        return
    if reason := page_fault(content):
        yield "report.html", f"holds {reason}; pages of frugalbench only show"
    elif render is not None and run.manifest.claims_hash == claims_hash() and content != render(_without(files)):
        yield "report.html", "is not the page that this version makes of its records; leave it out, or pack it again"


def _without(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "report.html"}


def _remarks(run: Run, index: Index) -> Iterator[str]:
    manifest = run.manifest
    if index.self_test != PRESENT:
        yield f"no self-test: {shown(index.self_test, 200)}"
    if manifest.claims_hash != claims_hash():
        yield "measured under an earlier state of the claims; verdicts use the installed ones"
    before, after = manifest.machine_before, manifest.machine_after or {}
    if before.get("fingerprint") != after.get("fingerprint"):
        yield "the machine changed during the run"
    if (manifest.revision or "").endswith("+"):
        yield "measured with a changed checkout"
    if manifest.state != "complete":
        yield f"the run is not complete ({shown(manifest.state)}): comparisons may have fewer replicates than planned"
