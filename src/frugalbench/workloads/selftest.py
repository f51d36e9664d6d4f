"""Runs the self-test's three kinds of work; every answer tells how many units were really done."""

from collections.abc import Callable
from typing import Any

import numpy as np

from frugalbench.schema import Arm, Case
from frugalbench.specs.base import SIMULATED
from frugalbench.specs.machine_peaks import MIB
from frugalbench.specs.selftest import ELEMENTS
from frugalbench.workloads import device, machine_peaks, selftest_simulated
from frugalbench.workloads.base import Arrays, Bound, Context
from frugalbench.workloads.selftest_simulated import SimulatedArm

FACTORS = 8
"""Distinct right-hand matrices, used in turn."""


class SelfTestArm:
    """One arm: its data, and the call that does its units of work."""

    artefacts = ()

    def __init__(self, arm: Arm, context: Context) -> None:
        case = arm.cases[0]
        kinds = {"compute-bound": _compute, "memory-bound": _memory, "dispatch-bound": _dispatch}
        self._call, self._answer = kinds[case.regime](case, context.device)
        self._device = device.of(context.device)

    def bind(self, _case: Case) -> Bound:
        """The arm's only case."""
        return Bound(
            call=lambda _index: self._call(),
            output=lambda _index: {"answer": self._answer(self._call())},
            rotation=1,
            synchronize=self._device.synchronize if self._device else lambda: None,
            device=self._device,
        )

    def close(self) -> None:
        """Nothing to release."""


def load(arm: Arm, context: Context) -> "SelfTestArm | SimulatedArm":
    """Allocate and fill the arm's data."""
    if context.device == SIMULATED:
        return SimulatedArm(arm.cases[0])
    return SelfTestArm(arm, context)


def reference(case: Case, _context: Context) -> Arrays:
    """The answer in float64 or exact integers, from the parameters alone; leading axis 1."""
    params = case.params
    if case.device == SIMULATED:
        return selftest_simulated.reference(case)
    if case.regime == "compute-bound":
        left, rights = (array.astype(np.float64) for array in _matrices(params))
        counts = np.bincount(np.arange(params["units"]) % FACTORS, minlength=FACTORS)
        return {"answer": (left @ np.tensordot(counts, rights, 1))[None]}
    if case.regime == "memory-bound":
        return {"answer": machine_peaks.read_checksum(params["seed"], params["units"])[None]}
    return {"answer": np.full((1, ELEMENTS), float(params["units"]))}


def reference_key(case: Case) -> str:
    """Kind, units and seed decide the answer."""
    params = case.params
    simulated = ":simulated" if case.device == SIMULATED else ""
    return f"{case.workload}:{case.regime}:{params['units']}:{params['seed']}:{params['matrix']}{simulated}"


def _matrices(params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Left (n, n) and right (FACTORS, n, n), float32, entries of variance 1/n."""
    n = params["matrix"]
    rng = np.random.default_rng([params["seed"], n])
    left, *rights = rng.standard_normal((1 + FACTORS, n, n), dtype=np.float32) / np.float32(n**0.5)
    return left, np.stack(rights)


def _compute(case: Case, place: str) -> tuple[Callable[[], Any], Callable[[Any], np.ndarray]]:
    import torch

    left, rights = (torch.from_numpy(array).to(place) for array in _matrices(case.params))
    total = torch.zeros_like(left)
    turns = [rights[unit % FACTORS] for unit in range(case.params["units"])]

    def call() -> torch.Tensor:
        total.zero_()
        for right in turns:
            total.addmm_(left, right)
        return total

    return call, lambda answer: answer.double().cpu().numpy()


def _memory(case: Case, place: str) -> tuple[Callable[[], Any], Callable[[Any], np.ndarray]]:
    from frugalbench.backends import native

    params = case.params
    words = native.aligned(params["most_units"] * MIB)
    machine_peaks.fill(words, params["seed"])
    part = words[: params["units"] * MIB // 8]
    if place == "cpu":
        peaks, threads = native.peaks(), params["threads"]
        return lambda: peaks.read(threads, part), machine_peaks.checksum_halves
    import torch

    held = torch.from_numpy(words.view(np.int64)).to(place)[: part.size]
    return held.sum, lambda answer: machine_peaks.checksum_halves(int(answer.item()) % 2**64)


def _dispatch(case: Case, place: str) -> tuple[Callable[[], Any], Callable[[Any], np.ndarray]]:
    import torch

    total = torch.zeros(ELEMENTS, dtype=torch.int64, device=place)
    units = case.params["units"]

    def call() -> torch.Tensor:
        total.zero_()
        for _ in range(units):
            total.add_(1)
        return total

    return call, lambda answer: answer.double().cpu().numpy()
