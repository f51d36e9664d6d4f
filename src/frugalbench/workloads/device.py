"""What computes beside the processor: its queue, its own clock, and calls recorded once and replayed.

Work on a device is asynchronous, so a host clock tells the truth only when both ends of a window wait for the queue.
The device's events tell how long the queue itself was at it, which holds the host's figure to account.
"""

from collections.abc import Callable
from typing import Any, Protocol

from frugalbench.meters.gpu_state import boards, memory_byte_per_s
from frugalbench.meters.gpu_throttle import bound_to_board
from frugalbench.specs.base import SIMULATED
from frugalbench.workloads.simulated import Simulated

Call = Callable[[int], object]

_SETTLING_CALLS = 2
"""Eager calls of a position before it is recorded: libraries allocate workspaces and choose kernels in the first."""


class Device(Protocol):
    """One device and the queue that a worker feeds."""

    def synchronize(self) -> None:
        """Wait until the queue is empty."""
        ...

    def event(self) -> Any:
        """A mark at the end of the queue, which gets its time when the device reaches it."""
        ...

    def elapsed_s(self, first: Any, last: Any) -> float:
        """Time between two marks by the device's clock; waits for the later one."""
        ...

    def captured(self, call: Call, rotation: int) -> tuple[Call, str]:
        """``call`` with each of its ``rotation`` positions recorded and replayed in one launch, and how that went.

        Where the device or the call cannot be recorded, ``call`` itself with the reason.
        """
        ...

    def compilations(self) -> int:
        """Kernels that this process has compiled or tuned so far."""
        ...

    def cache_bytes(self) -> int | None:
        """Size of its last-level cache; ``None`` where that is not known."""
        ...

    def memory_byte_per_s(self) -> float | None:
        """Most that its memory can deliver, by clock and width of its bus; ``None`` where that is not known."""
        ...


def of(name: str) -> Device | None:
    """The device of that name; ``None`` for the processor, where a call returns when it is done."""
    if name == "cpu":
        return None
    if name == SIMULATED:
        return Simulated()
    return Xpu() if name.partition(":")[0] == "xpu" else Cuda()


class _OfTorch:
    """The current device of one of torch's modules of devices; its current stream is the queue."""

    def __init__(self, module: str) -> None:
        import torch

        self._torch, self._device = torch, getattr(torch, module)
        _count_triton()

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        self._device.synchronize()

    def event(self) -> Any:
        """A timing event, recorded."""
        event = self._device.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_s(self, first: Any, last: Any) -> float:
        """Seconds; CUDA resolves about half a microsecond (``cudaEventElapsedTime``)."""
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    def compilations(self) -> int:
        """Kernels built by Triton and graphs compiled by torch.compile."""
        return _triton_compilations[0] + _dynamo_graphs()


class Xpu(_OfTorch):
    """The current device of Intel's; torch tells neither its cache nor its memory's rate."""

    def __init__(self) -> None:
        super().__init__("xpu")

    def captured(self, call: Call, rotation: int) -> tuple[Call, str]:  # noqa: ARG002
        """``call`` itself."""
        return call, "eager: recording is not tried on an XPU"

    def cache_bytes(self) -> int | None:
        """Not known."""
        return None

    def memory_byte_per_s(self) -> float | None:
        """Not known."""
        return None


class Cuda(_OfTorch):
    """The current CUDA (or ROCm) device."""

    def __init__(self) -> None:
        super().__init__("cuda")

    def captured(self, call: Call, rotation: int) -> tuple[Call, str]:
        """One CUDA graph per position, in a memory pool of their own; outputs stay where the recording put them."""
        torch = self._torch
        graphs: list[Any] = []
        outputs: list[object] = []
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for index in [position for position in range(rotation) for _ in range(_SETTLING_CALLS)]:
                    call(index)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            for index in range(rotation):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
                    outputs.append(call(index))
                graphs.append(graph)
            torch.cuda.synchronize()
        except RuntimeError as problem:
            torch.cuda.synchronize()
            return call, f"eager: cannot be recorded as a CUDA graph: {str(problem).strip().splitlines()[0]}"

        return Recorded(call, graphs, outputs), f"CUDA graph, one for each of {rotation} positions"

    def cache_bytes(self) -> int | None:
        """L2, which all multiprocessors share; on ROCm the Infinity Cache behind it, which torch does not tell."""
        number = self._torch.cuda.current_device()
        properties = self._torch.cuda.get_device_properties(number)
        told = getattr(properties, "L2_cache_size", None) or None
        if self._torch.version.hip is None:
            return told
        known = boards()[number].l2_bytes if number < len(boards()) else None
        return known if told is None or known is None else max(told, known)

    def memory_byte_per_s(self) -> float | None:
        """By the board's largest memory clock (two transfers a cycle) and the width of its bus, from NVML."""
        look = bound_to_board(f"cuda:{self._torch.cuda.current_device()}", memory_byte_per_s)
        return None if look is None else look()


class Recorded:
    """A call's positions, each as a graph. It holds the call too: a graph reads weights and inputs where they lay when
    it was recorded, and nothing else may keep them from being freed."""

    def __init__(self, call: Call, graphs: list[Any], outputs: list[object]) -> None:
        self.call = call
        self._graphs, self._outputs = graphs, outputs

    def __call__(self, index: int) -> object:
        """Replay position ``index``; what it gives lies where the recording put it, until the next replay."""
        index %= len(self._graphs)
        self._graphs[index].replay()
        return self._outputs[index]


_triton_compilations = [0]
_counting = [False]


def _count_triton() -> None:
    """Have Triton tell of every kernel that it compiles, where it is there and has such a hook (3.4 and later)."""
    import importlib.util

    if _counting[0] or importlib.util.find_spec("triton") is None:
        return
    from triton import knobs

    before = knobs.runtime.jit_post_compile_hook

    def told(*args: Any, **kwargs: Any) -> Any:
        _triton_compilations[0] += 1
        return before(*args, **kwargs) if before is not None else None

    knobs.runtime.jit_post_compile_hook = told
    _counting[0] = True


def _dynamo_graphs() -> int:
    import sys

    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0
