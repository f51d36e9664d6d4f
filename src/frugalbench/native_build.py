"""Compiles the shipped native kernels on first use, into the user's cache.

The cache key is the source (with all headers beside it), the flags and the compiler's version line; a build is written
beside its place and renamed into it under a file lock, so concurrent workers neither see half a file nor build twice.
"""

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from frugalbench.paths import cache_dir, shipped
from frugalbench.schema import FrugalbenchError

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-pthread")
"""No ``-march=native``: a kernel chooses its instruction set when it runs, or is built once for each that it knows
(``extra`` of :func:`build`), so a shared home directory is safe."""

COMPILERS = ("c++", "g++", "clang++")
BUILD_LIMIT_S = 120.0


@dataclass(frozen=True)
class Built:
    """A shared object, and what making it took."""

    path: Path
    build_s: float
    """Time of the build that made it, also when it came from the cache."""
    cached: bool


def find_compiler() -> tuple[str, ...] | None:
    """The C++ compiler as an argument list: ``$CXX`` (which may hold flags), else the first one on the path."""
    if wanted := shlex.split(os.environ.get("CXX", "")):
        return tuple(wanted) if shutil.which(wanted[0]) else None
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    return (found,) if found else None


def why_no_torch_compile() -> str:
    """What ``torch.compile`` lacks here, with the command that gets it; empty when nothing does.

    The C++ that it writes for a processor, and the launchers that Triton writes for a GPU, include Python's headers,
    which a distribution's own Python does not bring.
    """
    if find_compiler() is None:
        return "torch.compile needs a C++ compiler: apt-get install g++"
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", scheme="posix_prefix")}
    if not any((Path(folder) / "Python.h").is_file() for folder in folders):
        return "torch.compile needs Python's headers: apt-get install python3-dev"
    return ""


@cache
def compiler_version(compiler: tuple[str, ...]) -> str:
    """First line of ``--version``; raises :class:`FrugalbenchError` when the compiler does not start."""
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise FrugalbenchError(f"the C++ compiler '{compiler[0]}' does not start ({error}); set CXX") from error
    return (done.stdout.splitlines() or ["unknown"])[0]


def build(name: str, extra: tuple[str, ...] = ()) -> Built:
    """The shared object of ``kernels/<name>`` with ``extra`` flags, built if the cache lacks it.

    Raises :class:`FrugalbenchError` when there is no source, no compiler, no writable cache, or the build fails.
    """
    source = shipped("kernels") / name
    if not source.is_file():
        raise FrugalbenchError(f"native kernel source {source} is missing; install frugalbench again")
    compiler = _require_compiler()
    target = cache_dir() / "kernels" / f"{_key(source, compiler, extra)}.so"
    cached = target.exists()
    if not cached:
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                _compile((*compiler, *FLAGS, *extra), source, target)
    return Built(target, float(target.with_suffix(".seconds").read_text()), cached)


def _require_compiler() -> tuple[str, ...]:
    if compiler := find_compiler():
        return compiler
    wanted = os.environ.get("CXX")
    missing = f"CXX={wanted} is not on the path" if wanted else "none of c++, g++, clang++ is on the path"
    raise FrugalbenchError(f"no C++ compiler: {missing}; install one (Debian: apt install g++) or set CXX")


def _key(source: Path, compiler: tuple[str, ...], extra: tuple[str, ...]) -> str:
    headers = sorted(source.parent.rglob("*.h"))
    texts = [path.read_bytes() for path in (source, *headers)]
    parts = (*texts, " ".join((*FLAGS, *extra)).encode(), " ".join(compiler).encode())
    digest = hashlib.sha256(b"\0".join(parts) + b"\0" + compiler_version(compiler).encode())
    return f"{source.stem}-{digest.hexdigest()[:20]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an advisory lock on ``path``; the kernel of the operating system drops it if we die."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise FrugalbenchError(f"cannot write {path.parent} ({error.strerror}); set FRUGALBENCH_CACHE_DIR") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(compile_command: tuple[str, ...], source: Path, target: Path) -> None:
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    started_s = time.perf_counter()
    command = [*compile_command, "-o", str(temporary), str(source)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT_S)
        if done.returncode != 0:
            raise FrugalbenchError(f"{shlex.join(command)} failed: {_first_error(done.stderr)}; try another CXX")
        target.with_suffix(".seconds").write_text(f"{time.perf_counter() - started_s:.3f}")
        temporary.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FrugalbenchError(f"cannot build {source.name}: {error}; try another CXX") from error
    finally:
        temporary.unlink(missing_ok=True)


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
