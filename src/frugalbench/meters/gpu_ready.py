"""Whether a run on an NVIDIA GPU can succeed, as far as that is known before any worker starts.

Nothing here loads CUDA or torch, and nothing changes a board.
"""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from frugalbench.meters.gpu_state import Board, ailment, ask_driver, boards_now, is_amd
from frugalbench.schema import NothingRunsHere

WHEELS = ((11, 8, "cu118"), (12, 6, "cu126"), (12, 8, "cu128"), (13, 0, "cu130"))
"""CUDA version to the name of PyTorch's package index for it (download.pytorch.org/whl; recalled, 2026-11)."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_MAKERS = {"hip": "AMD", "xpu": "Intel"}
_INDEX = "https://download.pytorch.org/whl"


@dataclass(frozen=True)
class TorchBuild:
    """What the installed torch was built for, read from its own file."""

    version: str
    cuda: str | None
    other: str | None = None
    """``hip`` or ``xpu``: a build for another maker's devices."""


def torch_build(folder: Path | None = None) -> TorchBuild | None:
    """The installed build, without importing it; ``None`` where there is none, or its file cannot be read."""
    found = importlib.util.find_spec("torch") if folder is None else None
    folder = Path(found.origin).parent if found is not None and found.origin else folder
    try:
        text = (folder / "version.py").read_text() if folder is not None else ""
    except OSError:
        return None
    told = dict(re.findall(r"^(\w+)(?:: [^=]+)? = '([^']*)'$", text, re.MULTILINE))
    if "__version__" not in told:
        return None
    return TorchBuild(told["__version__"], told.get("cuda"), next((n for n in ("hip", "xpu") if n in told), None))


def check(together: int, needs_torch: bool) -> tuple[str, ...]:
    """Notes that a run here has to carry. Raises :class:`NothingRunsHere` when its workers could not compute.

    ``together``: most arms that hold the device at once; ``needs_torch``: whether any of them computes with torch.
    """
    boards = boards_now()
    problem = standing(boards, torch_build() if needs_torch else None, together)
    if problem:
        raise NothingRunsHere(f"--device cuda: {problem}")
    return notes(boards)


def standing(boards: Sequence[Board], build: TorchBuild | None, together: int) -> str | None:
    """:func:`obstacle` on this machine, after what ails its driver."""
    known = boards or ask_driver()  # without NVML, CUDA tells whether it is left a board
    environ = {name: value for name, value in os.environ.items() if boards or not known or name != _VISIBLE}
    return ailment() or obstacle(boards, environ, build, together)


def obstacle(
    boards: Sequence[Board], environ: Mapping[str, str], build: TorchBuild | None, together: int
) -> str | None:
    """Why no case could run, with what to do; ``None`` where nothing is known against it.

    ``boards`` are those that CUDA may use, ``build`` torch's where it is needed.
    """
    visible = environ.get(_VISIBLE)
    if visible is not None and not boards:
        return f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU; unset it, or name one that `nvidia-smi -L` lists"
    board = boards[0] if boards else Board(name="GPU")
    return _mismatch(board, build) or _occupied(board, together)


def _mismatch(board: Board, build: TorchBuild | None) -> str | None:
    """Why torch and the driver do not go together."""
    if build is None:
        return None
    if is_amd(board):
        if build.other == "hip":
            return None
        return f"torch {build.version} was not built for ROCm; install a ROCm build (pytorch.org, Get Started)"
    install = _install(board.cuda_version)
    if build.cuda is None:
        instead = f" (for {_MAKERS.get(build.other, build.other)}'s devices)" if build.other else ""
        return f"torch {build.version} was built without CUDA{instead}; {install}"
    if board.cuda_version is None or _pair(build.cuda)[0] <= _pair(board.cuda_version)[0]:
        return None  # within one major version CUDA runs on older drivers
    driver = f"driver {board.driver} serves CUDA {board.cuda_version}"
    return f"{driver}, too old for torch {build.version} (CUDA {build.cuda}); update the driver, or {install}"


def _install(cuda_version: str | None) -> str:
    """The command that gets a torch which this driver can serve."""
    wheel = wheel_for(cuda_version)
    if wheel is None:
        return f"no current torch serves CUDA {cuda_version}: update the driver first"
    return f"pip install --force-reinstall torch --index-url {_INDEX}/{wheel}"


def wheel_for(cuda_version: str | None) -> str | None:
    """The newest wheel not beyond the driver's CUDA, else one of the same major version; the newest where unknown."""
    if cuda_version is None:
        return WHEELS[-1][2]
    had = _pair(cuda_version)
    same = [name for major, minor, name in WHEELS if major == had[0] and minor <= had[1]]
    newer = [name for major, _, name in WHEELS if major == had[0]]
    older = [name for major, _, name in WHEELS if major < had[0]]
    return next(iter(same[-1:] or newer[:1] or older[-1:]), None)


def _pair(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def _occupied(board: Board, together: int) -> str | None:
    """Why the workers of a comparison could not hold the board at once."""
    if board.compute_mode == "prohibited":
        return f"{board.name} is in compute mode 'prohibited'; allow it with: sudo nvidia-smi -c DEFAULT"
    one = board.compute_mode in ("exclusive process", "exclusive thread") and not board.mps
    if one and together > 1:
        return (
            f"{board.name} is in compute mode '{board.compute_mode}': one worker could use it, and up to {together} "
            "hold it at once to take turns; allow that with: sudo nvidia-smi -c DEFAULT"
        )
    if one and board.foreign_processes:
        return f"{board.name} is in compute mode '{board.compute_mode}' and another process holds it; wait for it"
    return None


def notes(boards: Sequence[Board]) -> tuple[str, ...]:
    """What a run on the first board has to say of its surroundings."""
    board = boards[0] if boards else Board(name="GPU")
    found = []
    if board.foreign_processes:
        many = f"{board.foreign_processes} other process" + ("es" if board.foreign_processes > 1 else "")
        found.append(f"{board.name} was not ours alone: {many} computed on it, in these times and joules too")
    if board.mig:
        found.append(f"{board.name} is in MIG mode: a slice was measured, and its joules are not known")
    return tuple(found)
