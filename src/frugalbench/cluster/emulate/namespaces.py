"""Network namespaces of our own: made, entered and furnished, as root or, where the kernel lets users do so, without.

A namespace lives as long as a process is in it or a descriptor of it is open, so nothing here has to be cleaned up.
Namespaces are entered through libc: Python has ``os.setns`` only from 3.12 on.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
_TOOLS = ("ip", "tc")
_SBIN = ("/usr/sbin", "/sbin")
_PROBE_S = 20.0


class NoNetwork(Exception):
    """What the machine does not let us build, in one sentence."""


@cache
def obstacle() -> str:
    """Why no network of our own can be made here; empty when one can. Tried once, in a process that ends again."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if missing := [name for name in _TOOLS if tool(name) is None]:
        return f"'{missing[0]}' is missing: apt-get install iproute2"
    command = [sys.executable, "-P", "-m", "frugalbench.cluster.emulate.namespaces"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"network namespaces could not be tried: {problem}"
    return "" if tried.returncode == 0 else tried.stdout.strip() or "network namespaces are not allowed here"


def tool(name: str) -> str | None:
    """Path of one of iproute2's programs; they lie outside a user's usual path."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(_SBIN))


def isolate() -> None:
    """Move this process into a fresh network namespace, by way of a user namespace where it is not allowed otherwise.

    To be called before any thread starts. Raises :class:`NoNetwork`.
    """
    if _try("unshare", CLONE_NEWNET) == 0:
        return
    user, group = os.getuid(), os.getgid()
    if error := _try("unshare", CLONE_NEWUSER | CLONE_NEWNET):
        raise NoNetwork(f"network namespaces are not allowed here: {os.strerror(error)}; run as root")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def fresh() -> int:
    """Descriptor of a new, empty namespace; this process stays where it is."""
    before = here()
    if error := _try("unshare", CLONE_NEWNET):
        raise NoNetwork(f"no further network namespace: {os.strerror(error)}")
    made = here()
    enter(before)
    os.close(before)
    return made


def here() -> int:
    """Descriptor of the namespace that this process is in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def enter(namespace: int) -> None:
    """Move the calling thread into ``namespace``."""
    if error := _try("setns", namespace, CLONE_NEWNET):
        raise NoNetwork(f"cannot enter a network namespace: {os.strerror(error)}")


@contextmanager
def inside(namespace: int | None) -> Iterator[None]:
    """Be in ``namespace`` for a while; ``None``: stay."""
    if namespace is None:
        yield
        return
    before = here()
    enter(namespace)
    try:
        yield
    finally:
        enter(before)
        os.close(before)


def run(namespace: int | None, *words: object, keep: Sequence[int] = ()) -> None:
    """One command of iproute2 inside ``namespace``. Raises :class:`NoNetwork` with what it said."""
    command = [str(word) for word in words]
    command[0] = tool(command[0]) or command[0]
    with inside(namespace):
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=keep, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NoNetwork(f"{' '.join(map(str, words))}: {said[-1] if said else f'status {done.returncode}'}")


def settle(namespace: int | None, settings: Mapping[str, str]) -> dict[str, str]:
    """Write kernel settings below ``net`` and read them back: what could not be set shows the value it kept."""
    found = {}
    with inside(namespace):
        for name, value in settings.items():
            path = Path("/proc/sys/net").joinpath(*name.split("."))
            with suppress(OSError):
                path.write_text(value)
            found[name] = " ".join(path.read_text().split()) if path.exists() else "not here"
    return found


def _try(call: str, *arguments: int) -> int:
    """0, or the error number of a call to libc."""
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if getattr(libc, call)(*arguments) == 0 else ctypes.get_errno() or 1


def _main() -> int:
    try:
        isolate()
        fresh()
        run(None, "ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")
        shape = ("tbf", "rate", "1mbit", "burst", "4kb", "limit", "64kb")
        run(None, "tc", "qdisc", "add", "dev", "probe0", "root", *shape)
    except (NoNetwork, OSError) as problem:
        print(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
