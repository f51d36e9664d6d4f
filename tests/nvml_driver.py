"""The fake NVIDIA driver library, and processes that find it in place of the real one."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

METERS = Path(__file__).parent / "meters"
TRACES = METERS / "traces"
PRELUDE = """
import json, os, sys
from pathlib import Path
import frugalbench.meters as meters
from frugalbench.meters import nvml
NOW = Path(os.environ["FAKE_NVML_NOW"])
def go(time_s): NOW.write_text(repr(time_s))
def clock(): return float(NOW.read_text())
def window(found, start_s, end_s, looks_s=()):
    go(start_s)
    opened = meters.Window(found, clock)
    for at_s in looks_s:
        go(at_s)
        opened.sample()
    go(end_s)
    return [[r.method, r.joule, r.error, str(r.tier), r.note, r.scope] for r in opened.close(1)]
go(0.0)
"""


@functools.cache
def build(*flags: str) -> Path:
    """The folder that holds the library, built once per process of tests. Skips without a compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler")
    folder = Path(tempfile.mkdtemp(prefix="fake-nvml-"))
    command = [compiler, "-shared", "-fPIC", "-D_DEFAULT_SOURCE", *flags]
    subprocess.run([*command, "-o", folder / "libnvidia-ml.so.1", METERS / "fake_nvml.c"], check=True)
    return folder


def environment(now: Path, trace: Path | str = "nvml_board", old: bool = False, **environ: str) -> dict[str, str]:
    """Variables of a process that finds the driver; ``trace`` is a path, or the name of one that is kept."""
    path = trace if isinstance(trace, Path) else TRACES / f"{trace}.csv"
    folder = build("-DOLD") if old else build()
    fakes = {"LD_LIBRARY_PATH": str(folder), "FAKE_NVML_TRACE": str(path), "FAKE_NVML_NOW": str(now)}
    hidden = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**hidden, **fakes, **environ}


def in_child(code: str, now: Path, trace: Path | str = "nvml_board", old: bool = False, **environ: str):
    """What ``code`` prints as JSON, run after :data:`PRELUDE` in such a process."""
    variables = environment(now, trace, old, **environ)
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
