"""The list of states that the claims' files have had; ``python tests/test_known_claims.py`` adds what git knows."""

import csv
import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from frugalbench.analysis.claims import claims_hash
from frugalbench.analysis.submission.vet import known_claims
from frugalbench.paths import data

ROOT = Path(__file__).parents[1]
FOLDER = "src/frugalbench/data/claims"
LIST = data("known_claims.csv")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


def hash_at(commit: str) -> str:
    """What ``claims_hash`` gave at a commit, from the files that git kept."""
    digest = hashlib.sha256()
    for name in sorted(_git("ls-tree", "--name-only", f"{commit}:{FOLDER}").decode().split()):
        if name.endswith(".toml"):
            digest.update(name.encode() + _git("show", f"{commit}:{FOLDER}/{name}"))
    return digest.hexdigest()[:16]


def known_to_git() -> list[tuple[str, str, str]]:
    """Hash, date and commit of every state, oldest first."""
    lines = _git("log", "--reverse", "--format=%h %cs", "--", FOLDER).decode().split("\n")
    found: dict[str, tuple[str, str, str]] = {}
    for commit, date in (line.split() for line in lines if line):
        state = hash_at(commit)
        found.setdefault(state, (state, date, commit))
    return list(found.values())


def test_the_installed_claims_and_those_of_the_reference_runs_are_known() -> None:
    assert claims_hash() in known_claims()
    for folder in ("cpu-reference", "onnx-conformance"):
        manifest = json.loads((ROOT / "results" / folder / "manifest.json").read_text())
        assert manifest["claims_hash"] in known_claims()
    assert "0" * 16 not in known_claims()


def test_the_list_holds_what_git_holds() -> None:
    try:
        last = _git("log", "-1", "--format=%h", "--", FOLDER).decode().strip()
        state = hash_at(last)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    assert state in known_claims()
    rows = list(csv.DictReader(LIST.open(encoding="utf-8")))
    assert len({row["hash"] for row in rows}) == len(rows) and all(len(row["hash"]) == 16 for row in rows)


if __name__ == "__main__":
    old = {row["hash"]: row for row in csv.DictReader(LIST.open(encoding="utf-8"))} if LIST.exists() else {}
    for state, date, commit in known_to_git():
        old.setdefault(state, {"hash": state, "since": date, "revision": commit})
    with LIST.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("hash", "since", "revision"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(old.values())
