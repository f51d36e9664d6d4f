"""Two ranks under a real torchrun, for the tests beside this file."""

import subprocess
import sys
from pathlib import Path


def torchrun(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
    program = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "-m", module]
    return subprocess.run([*program, *words], capture_output=True, text=True, check=False, timeout=60)
