"""A process that keeps one core busy, to see how measurements fare beside it."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

_SPIN = """
import ctypes, signal
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
while True:
    pass
"""


@contextlib.contextmanager
def busy_core() -> Iterator[int]:
    """Its process id; it ends with the block, and with the caller."""
    process = subprocess.Popen([sys.executable, "-P", "-c", _SPIN], stdin=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
