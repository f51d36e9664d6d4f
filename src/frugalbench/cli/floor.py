"""What this machine's self-tests found: where it is kept, and the A/A floor that later runs are widened by."""

import json
from pathlib import Path
from typing import Any

from frugalbench.analysis.statistics import DEFAULT_FLOOR
from frugalbench.paths import state_dir
from frugalbench.plan import DEVICES


def self_test_file(fingerprint: str, device: str) -> Path:
    """Where the self-test of a machine is kept."""
    return state_dir() / f"selftest-{fingerprint}{'' if device == 'cpu' else f'-{device}'}.json"


def self_test_of(fingerprint: str, device: str = "cpu") -> dict[str, Any] | None:
    """What the self-test of the machine with ``fingerprint`` found, or ``None`` where there was none."""
    try:
        found = json.loads(self_test_file(fingerprint, device).read_text())
    except (OSError, ValueError):
        return None
    good = isinstance(found, dict) and isinstance(found.get("aa_floor"), float) and 0 <= found["aa_floor"] < 1
    return found if good else None


def floor_of(fingerprint: str) -> float:
    """A/A floor that this machine's self-tests found (the largest over devices), else the cautious default."""
    return max((item["aa_floor"] for item in _self_tests(fingerprint)), default=DEFAULT_FLOOR)


def floor_note(fingerprint: str) -> str:
    """By what the intervals of a run on this machine are widened, and who says so."""
    found, floor = _self_tests(fingerprint), floor_of(fingerprint)
    if not found:
        return (
            "this machine was never self-tested (`frugalbench selftest`): intervals are widened by a default floor of "
            f"{floor:.0%} on each ratio"
        )
    if all(item.get("quick") for item in found):
        return (
            f"this machine had a quick self-test only, which never goes below the default of {DEFAULT_FLOOR:.0%} "
            f"(`frugalbench selftest` does): intervals are widened by {floor:.2%} on each ratio"
        )
    return f"intervals are widened by the {floor:.2%} that this machine's self-test found"


def _self_tests(fingerprint: str) -> list[dict[str, Any]]:
    return [found for device in DEVICES if (found := self_test_of(fingerprint, device))]
