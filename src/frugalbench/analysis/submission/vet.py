"""All that is asked of a stranger's file, in one list of refusals with reasons."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.load import Run, decode_run
from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.analysis.submission import noise, physics, turns
from frugalbench.analysis.submission.archive import Index, Unusable, unpack
from frugalbench.analysis.submission.page import page_fault
from frugalbench.analysis.submission.scrub import secrets
from frugalbench.analysis.submission.turns import Finding
from frugalbench.paths import data
from frugalbench.schema import UNREADABLE, Frozen, FrugalbenchError
from frugalbench.untrusted import brief, shown

MOST_PER_CHECK = 3
PRESENT = "present"
_FINISHED = ("complete", "out of time")
Check = Callable[[Run], Iterator[Finding]]


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
    ("dates", turns.dates),
    ("windows", turns.windows),
    ("turns", turns.turns),
    ("calls", turns.calls),
    ("resolution", noise.resolution),
    ("copies", noise.copies),
    ("regular", noise.regular),
    ("twins", noise.twins),
    ("environment", noise.environment),
    ("roofline", physics.roofline),
    ("clocks", physics.clocks),
    ("joules", physics.joules),
    ("outputs", physics.outputs),
)
"""Name and rule; a rule yields where and why."""


def vet(path: Path, identity: Check | None = None) -> tuple[Report, dict[str, bytes]]:
    """The report on a file, and its contents by name (empty where it could not be read).

    ``identity`` is a further rule: whether the machine's fingerprint follows from its description. Raises ``OSError``
    where the file cannot be opened.
    """
    try:
        index, files = unpack(path)
        run = decode_run(path, files["manifest.json"], files["records.jsonl"])
    except Unusable as problem:
        return _refused(path, problem.check, str(problem)), {}
    except FrugalbenchError as problem:
        return _refused(path, "schema", str(problem).split("\n")[0]), {}
    extra = () if identity is None else (("machine", identity),)
    checks: tuple[tuple[str, Check], ...] = (
        *CHECKS,
        *extra,
        ("state", _state),
        ("claims", _claims),
        ("self-test", lambda item: _self_test(item, index, files.get("selftest.json"))),
        ("secrets", lambda _: _secrets(files)),
        ("page", lambda _: _page(files.get("report.html"))),
    )
    found = tuple(refusal for name, rule in checks for refusal in _apply(name, rule, run))
    report = Report(
        file=str(path), accepted=not found, refusals=found, remarks=tuple(_remarks(run, index)),
        contents=contents(run, files),
    )  # fmt: skip
    return report, files


def _refused(path: Path, check: str, reason: str) -> Report:
    return Report(
        file=str(path), accepted=False, refusals=(Refusal(check=check, where=path.name, reason=shown(reason, 400)),)
    )


def _apply(check: str, rule: Check, run: Run) -> Iterator[Refusal]:
    """At most a few refusals of one rule; a document that breaks the rule itself is refused too."""
    try:
        for where, reason in islice(rule(run), MOST_PER_CHECK):
            yield Refusal(check=check, where=shown(where, 200), reason=shown(reason, 400))
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
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
    if run.manifest.state not in _FINISHED:
        yield "manifest.json", f"the run is {brief(run.manifest.state)}; only finished runs are taken"
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


def _plain(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except UNREADABLE:
        return None


def _secrets(files: dict[str, bytes]) -> Iterator[Finding]:
    for name, content in files.items():
        if name.endswith((".json", ".jsonl")):
            for line in content.split(b"\n") if name.endswith(".jsonl") else (content,):
                for kind, text in secrets(_plain(line)) if line.strip() else ():
                    yield name, f"holds what `frugalbench submit` removes: {kind} {brief(text)}"


def _page(content: bytes | None) -> Iterator[Finding]:
    if content is not None and (reason := page_fault(content)):
        yield "report.html", f"holds {reason}; pages of frugalbench only show"


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
