"""What ``doctor`` says of NVIDIA boards: how they are set, who else is on them, and what the user could set. AMD's are
named, with what the kernel tells of them.

Nothing here sets anything.
"""

from collections.abc import Iterator, Sequence

from frugalbench.meters.gpu_state import Board, is_amd
from frugalbench.units import byte_size, si

HELD_SHARE = 0.7
"""Of the largest clock: what a board at its power cap about keeps up. An H100 fell from 1980 to between 1140 and
1530 MHz under bf16 products at 700 W (``tests/meters/traces/nvml_h100.csv``)."""
_CLOCK_STEP_HZ = 15e6

Row = tuple[str, bool, str, str]
"""What, whether it is as one would want it, detail, and a command for when it is not."""


def rows(boards: Sequence[Board], numbers: Sequence[int], problem: str | None) -> Iterator[Row]:
    """Lines for each of ``boards``, whose numbers by NVML are ``numbers``; the first one is what a run would use, and
    ``problem`` is why it could not."""
    yield "a run on the GPU", problem is None, problem or "nothing known is against it", ""
    for board, number in zip(boards, numbers, strict=False):
        yield from _of_board(board, f"GPU {number}", f"nvidia-smi -i {number}")


def _of_board(board: Board, what: str, command: str) -> Iterator[Row]:
    yield what, True, _described(board), ""
    if is_amd(board):
        return
    yield _clocks(board, what, command)
    yield _power_cap(board, what, command)
    if board.persistence is not None:
        detail = "on" if board.persistence else "off: the driver starts anew, slowly, whenever nobody uses the board"
        yield f"{what} persistence mode", board.persistence, detail, f"sudo {command} -pm 1"
    if board.mig:
        detail = "on: CUDA gets a slice, and the board's joules are not that slice's"
        yield f"{what} as a whole (MIG)", False, detail, f"sudo {command} -mig 0"
    if board.compute_mode not in (None, "default"):
        shared = ", which the multi-process service (MPS) serves" if board.mps else ""
        detail = f"{board.compute_mode}{shared}: the workers of a comparison hold the board at once"
        yield f"{what} compute mode", bool(board.mps), detail, f"sudo {command} -c DEFAULT"
    elif board.mps:
        yield f"{what} without MPS", False, "clients of the multi-process service share its kernels' time", ""
    if board.foreign_processes is not None:
        yield _others(board.foreign_processes, what, command)


def _others(others: int, what: str, command: str) -> Row:
    detail = f"{others} compute on it now; times and joules would be theirs too" if others else "nobody computes on it"
    who = f"{command} --query-compute-apps=pid,used_memory --format=csv"
    return f"{what} without other processes", not others, detail, who


def _described(board: Board) -> str:
    parts = [
        board.name,
        f"compute capability {board.compute_capability}" if board.compute_capability else "",
        byte_size(board.memory_bytes) if board.memory_bytes else "",
        f"cache {byte_size(board.l2_bytes)}" if board.l2_bytes else "",
        f"driver {board.driver}" if board.driver else "",
        f"CUDA {board.cuda_version}" if board.cuda_version else "",
    ]
    return ", ".join(part for part in parts if part)


def _clocks(board: Board, what: str, command: str) -> Row:
    """Whether they are locked cannot be asked, so it is said what they may do and how they would be held still."""
    if board.most_clock_hz is None:
        return f"{what} clocks", False, "the driver does not tell them", ""
    held = round(HELD_SHARE * board.most_clock_hz / _CLOCK_STEP_HZ) * _CLOCK_STEP_HZ / 1e6
    detail = (
        f"up to {si(board.most_clock_hz, 'Hz')}, moving with load, heat and power. Ratios are paired turn by turn and "
        "survive that, absolute times and joules move along. Locked, these compare from run to run, at a lower peak"
    )
    return f"{what} clocks held still", False, detail, f"sudo {command} -lgc {held:.0f},{held:.0f}  (undo: -rgc)"


def _power_cap(board: Board, what: str, command: str) -> Row:
    cap_w, usual_w = board.power_limit_w, board.default_power_limit_w
    if cap_w is None:
        return f"{what} power cap", False, "the driver does not tell it", ""
    whole = usual_w is None or cap_w >= usual_w
    lowered = "" if whole else f", lowered from {usual_w:.0f} W: results speak for a board so capped"
    return f"{what} power cap", whole, f"{cap_w:.0f} W{lowered}", "" if whole else f"sudo {command} -pl {usual_w:.0f}"
