"""On ``PYTHONPATH``, makes the fake workload known to every Python process: templates, workers, the command line.

With ``FAKE_ACKNOWLEDGED`` set to a file, every ``fsync`` of a ``records.jsonl`` that returned adds a line to it: how
long the records were. It outlives the process that is killed next.
"""

import os
from pathlib import Path

from frugalbench.specs import SPECS
from frugalbench.workloads import BUILDERS

BUILDERS["fake"] = "fake_workload"
SPECS["fake"] = "fake_spec"


def _note_fsync(side, real=os.fsync):
    def fsync(fd):
        size = os.fstat(fd).st_size
        real(fd)
        if str(Path(f"/proc/self/fd/{fd}").readlink()).endswith("/records.jsonl"):
            os.write(side, f"{size}\n".encode())

    os.fsync = fsync


if "FAKE_ACKNOWLEDGED" in os.environ:
    _note_fsync(os.open(os.environ["FAKE_ACKNOWLEDGED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
