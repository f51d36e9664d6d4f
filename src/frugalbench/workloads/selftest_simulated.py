"""The self-test's arms on the simulated device: honest ones, and one for each mistake that a harness must catch."""

from collections.abc import Callable

import numpy as np

from frugalbench.schema import Case
from frugalbench.specs.machine_peaks import MIB
from frugalbench.workloads.base import Arrays, Bound
from frugalbench.workloads.simulated import CACHE_BYTES, Kernel, Simulated

SMALL_BYTES = CACHE_BYTES // 2
"""Of the buffer that stays in the cache although the case says that it reads memory."""
CALLS_PER_SHAPE = 3
"""An arm that never stops tuning meets a new shape so often."""


class SimulatedArm:
    """One arm; its answer is the number of units that the device has done."""

    artefacts = ()

    def __init__(self, case: Case) -> None:
        self._device = Simulated()
        self._params = case.params

    def bind(self, case: Case) -> Bound:
        """The arm's only case, with the mistake that its parameters name."""
        mistake = case.params.get("mistake", "")
        work = {
            "compute-bound": self._compute,
            "memory-bound": self._small if mistake == "warm-cache" else self._memory,
            "dispatch-bound": self._dispatch,
        }[case.regime]
        call = self._counting(work)
        return Bound(
            call=call,
            output=lambda index: self._answer(call, index),
            device=self._device,
            synchronize=(lambda: None) if mistake == "no-synchronise" else self._device.synchronize,
            distinct_bytes=float(SMALL_BYTES) if mistake == "small-rotation" else None,
        )

    def close(self) -> None:
        """Nothing to release."""

    def _counting(self, work: Callable[[int, int], None]) -> Callable[[int], object]:
        units = self._params["units"]

        def call(index: int) -> None:
            self._device.zero()
            work(index, units)

        return call

    def _answer(self, call: Callable[[int], object], index: int) -> Arrays:
        call(index)
        return {"answer": np.array([self._device.read()])}

    def _compute(self, index: int, units: int) -> None:
        late = self._params.get("mistake") == "late-tuning"
        shape = f"{index // CALLS_PER_SHAPE}" if late else "fixed"
        self._device.launch(Kernel("multiply", shape, units, flop=2.0 * self._params["matrix"] ** 3 * units))

    def _memory(self, _index: int, units: int) -> None:
        self._device.launch(Kernel("read", "large", units, reads=(("large", units * MIB),)))

    def _small(self, _index: int, units: int) -> None:
        """As many bytes as the others, always the same few."""
        times = units * MIB // SMALL_BYTES
        self._device.launch(Kernel("read", "small", units, reads=(("small", SMALL_BYTES),) * times))

    def _dispatch(self, _index: int, units: int) -> None:
        for _ in range(units):
            self._device.launch(Kernel("add", "eight", 1))


def reference(case: Case) -> Arrays:
    """Units of the case; leading axis 1."""
    return {"answer": np.array([[float(case.params["units"])]])}
