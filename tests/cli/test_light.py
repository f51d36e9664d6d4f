"""Help and doctor answer at once: counted in modules, because a count is the same on every machine."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "scipy", "transformers", "onnxruntime", "onnx", "openvino", "altair", "pyarrow", "pandas")
SCRIPT = """
import contextlib, io, json, sys
before = set(sys.modules)
from frugalbench.cli.main import main
caught = io.TextIOWrapper(io.BytesIO())
with contextlib.redirect_stdout(caught):
    try:
        main(sys.argv[1:])
    except SystemExit:
        pass
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""


def imported(*arguments: str) -> list[str]:
    """Modules that a command brings in, in a fresh process."""
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True, text=True, timeout=60, check=True, env={**os.environ},
    )  # fmt: skip
    return json.loads(made.stdout)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("run", "--help"), ("report", "--help")])
def test_help_imports_next_to_nothing(arguments) -> None:
    modules = imported(*arguments)
    assert not {name.split(".")[0] for name in modules} & {*HEAVY, "msgspec", "rich", "psutil"}
    assert len(modules) <= 40, modules
    assert {name for name in modules if name.startswith("frugalbench")} <= {
        "frugalbench", "frugalbench.cli", "frugalbench.cli.main"
    }  # fmt: skip


def test_doctor_is_light() -> None:
    modules = imported("doctor", "--json")
    assert not {name.split(".")[0] for name in modules} & set(HEAVY)
    assert len(modules) <= 260, len(modules)


@pytest.mark.parametrize(
    "arguments", [("claims", "--json"), ("plan", "smoke", "--json"), ("simulate", "uniform", "--json")]
)
def test_nothing_but_measuring_imports_a_framework(arguments) -> None:
    assert not {name.split(".")[0] for name in imported(*arguments)} & {
        "torch",
        "transformers",
        "onnxruntime",
        "openvino",
    }


def test_reading_a_run_imports_no_framework(stored) -> None:
    for arguments in (("verdicts", str(stored), "--json"), ("report", str(stored), "--format", "csv")):
        found = {name.split(".")[0] for name in imported(*arguments)}
        assert "frugalbench" in found
        assert not found & {"torch", "transformers", "onnxruntime", "openvino", "onnx"}
