"""The program that a fanned-out run starts on each machine: ``python -m frugalbench.cli.on_node``.

One JSON request on standard input (see :func:`frugalbench.cli.on.request_of`), progress and complaints on standard
error, the run directory as the answer, and the exit code that ``frugalbench run`` would have.
"""

import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frugalbench.cli import output
from frugalbench.run.family import die_with_parent
from frugalbench.schema import FrugalbenchError, Status
from frugalbench.untrusted import shown


def main() -> int:
    """Measure what standard input asks for. Ends with its parent, and hears Ctrl-C whatever that one ignored."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    request = json.load(sys.stdin)
    if os.getppid() != request["parent"]:
        return 1
    try:
        return _measure(request)
    except FrugalbenchError as problem:
        output.warn(" ".join(str(problem).split("\n")))
        return problem.exit_code
    except KeyboardInterrupt:
        output.warn("interrupted before it began to measure")
        return 130
    except OSError as problem:
        output.warn(f"{problem.filename or 'run directory'}: {problem.strerror}")
        return 1


def _measure(request: dict[str, Any]) -> int:
    from frugalbench.cli import session
    from frugalbench.config import from_stored

    with _machine_alone():
        done = session.run(
            from_stored(request["config"], "the config that was sent"),
            request["out"],
            only=request["only"],
            device=request["device"],
            allow_code=request["allow_code"],
            progress=_say,
            host=request["host"],
        )
    if done.manifest.state == "interrupted":
        return 130
    return 1 if any(record.status is Status.FAILED for record in done.records) else 0


def _say(text: str) -> None:
    print(shown(text, output.MOST_LINE), file=sys.stderr, flush=True)


@contextmanager
def _machine_alone() -> Iterator[None]:
    """Wait for other fanned-out runs of this user on this machine; one file per start of the machine, shared homes
    included. Where it cannot be made, the scheduler's word has to do."""
    from frugalbench.paths import state_dir

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state_dir().mkdir(parents=True, exist_ok=True)
        lock = (state_dir() / f"measuring-{boot}.lock").open("w")
    except OSError:
        yield
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            output.warn("another fanned-out run is measuring on this machine; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


if __name__ == "__main__":
    sys.exit(main())
