"""Time of one data-parallel training step of a dense transformer, and how its throughput grows with devices.

Compute is ``6 * parameters * tokens`` FLOP (Kaplan et al., arXiv 2001.08361, forward 2 and backward 4; attention scores
left out) at the achieved rate. The gradient all-reduce moves ``bytes per parameter * parameters``; plain data
parallelism and ZeRO stages 1 and 2 move the same (Rajbhandari et al., arXiv 1910.02054). Memory fit, tensor and
pipeline parallelism, stragglers and congestion are not modelled.
"""

import itertools
import math
from typing import Literal

from frugalbench.cluster.collectives import all_reduce_s
from frugalbench.cluster.topology import Cluster, Values
from frugalbench.schema import Frozen

Scaling = Literal["strong", "weak"]
"""Fixed tokens per step over all devices, or fixed tokens per step and device."""

FLOP_PER_PARAMETER_TOKEN = 6
BACKWARD_SHARE = 2 / 3


class Step(Frozen, frozen=True, kw_only=True):
    """One step on a given number of devices."""

    devices: int
    token: float
    compute_s: float
    communication_s: float
    exposed_s: float
    """What of the communication does not hide behind the backward pass."""

    @property
    def token_per_s(self) -> float:
        """Throughput of the whole machine."""
        return self.token / (self.compute_s + self.exposed_s)


def step(cluster: Cluster, devices: int, scaling: Scaling, values: Values) -> Step:
    """One step with one value for each ranged input."""
    parameters = values["training.parameters"]
    device_token = values["training.device_token"]
    token = values["training.batch_token"] if scaling == "strong" else device_token * devices
    rate_flop_per_s = values["training.mfu"] * values["device.bf16_dense_flop_per_s"]
    compute_s = FLOP_PER_PARAMETER_TOKEN * parameters * token / devices / rate_flop_per_s
    size_bytes = parameters * values["training.gradient_bytes_per_parameter"]
    communication_s = all_reduce_s(size_bytes, cluster.levels(devices, values))
    hidden_s = min(values["training.overlap"] * communication_s, BACKWARD_SHARE * compute_s)
    return Step(
        devices=devices,
        token=token,
        compute_s=compute_s,
        communication_s=communication_s,
        exposed_s=communication_s - hidden_s,
    )


def marginal_token_per_s(steps: list[Step]) -> list[float]:
    """Throughput gained per added device between one count and the next; may be negative."""
    return [
        (after.token_per_s - before.token_per_s) / (after.devices - before.devices)
        for before, after in itertools.pairwise(steps)
    ]


def area_token_per_s(steps: list[Step]) -> float:
    """Area under the marginal-throughput curve over the number of devices: what growing from first to last added."""
    marginal = marginal_token_per_s(steps)
    return sum(m * (b.devices - a.devices) for m, a, b in zip(marginal, steps, steps[1:], strict=False))


def area_over_doublings(steps: list[Step]) -> float:
    """The same area over log2 of the number of devices, each doubling counting alike (token/s per device)."""
    marginal = marginal_token_per_s(steps)
    return sum(m * math.log2(b.devices / a.devices) for m, a, b in zip(marginal, steps, steps[1:], strict=False))


def retained(steps: list[Step]) -> float:
    """Area as a share of what it would be if every added device brought what each of the first ones does."""
    first, last = steps[0], steps[-1]
    return area_token_per_s(steps) / (first.token_per_s / first.devices * (last.devices - first.devices))
