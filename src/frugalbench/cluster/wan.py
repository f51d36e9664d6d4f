"""Training over links between sites: what every-step, local-update and streaming synchronisation cost.

Local updates with an outer step every ``H`` steps: DiLoCo (arXiv 2311.08105); fragments sent at different steps,
overlap by a step and 4-bit exchange: Streaming DiLoCo (arXiv 2501.18512). A layer's exchange may begin when its
backward pass ends and must be there when its next forward pass begins; transfers share the link in the order of their
layers.
"""

import math

from frugalbench.schema import Frozen

FORWARD = 1 / 3
"""Share of a step that the forward pass takes."""
FRAGMENT_LAYERS = 3
"""Layers of one fragment of the streaming variant, strided over the depth (arXiv 2501.18512)."""


class Exchange(Frozen, frozen=True, kw_only=True):
    """One scheme of synchronisation between two or more replicas."""

    parameters: float
    layers: int
    step_s: float
    bits: float = 16.0
    """Per parameter and direction."""
    every: int = 1
    """Steps between exchanges: ``H``."""
    streaming: bool = False
    overlap_steps: int = 0
    """Steps by which the arrival may lag."""
    replicas: int = 2
    latency_s: float = 0.0
    """What an exchange takes besides its bytes: between two sites a round trip, for the sum and for what comes back."""

    @property
    def fragments(self) -> int:
        """Parts of the model that the streaming variant sends at steps of their own."""
        return max(1, round(self.layers / FRAGMENT_LAYERS))

    @property
    def traffic_bit(self) -> float:
        """Bits that a replica sends per exchange: ring all-reduce."""
        return self.parameters * self.bits * 2 * (self.replicas - 1) / self.replicas


def exposed_s(scheme: Exchange, bit_per_s: float) -> float:
    """Seconds of communication per exchange period of ``every`` steps that no computation hides."""
    if not scheme.streaming:
        hidden = (1 - FORWARD) * scheme.step_s * (1 - 1 / scheme.layers) + scheme.overlap_steps * scheme.step_s
        wait = scheme.latency_s + scheme.traffic_bit / bit_per_s - hidden
        last = scheme.latency_s + scheme.traffic_bit / scheme.layers / bit_per_s if not scheme.overlap_steps else 0.0
        return max(wait, last)
    sent_s = scheme.latency_s + scheme.traffic_bit / scheme.fragments / bit_per_s
    lag_s = scheme.overlap_steps * scheme.step_s
    slack_s = [_middle(i, scheme.layers) * scheme.step_s + lag_s for i in range(scheme.fragments)]
    return sum(max(sent_s - slack, 0.0) for slack in slack_s)


def _middle(fragment: int, layers: int) -> float:
    """Mean depth, as a share, of the layers of a strided fragment: every so-many-th layer from its first on."""
    return min((fragment + 0.5) / layers + (FRAGMENT_LAYERS - 1) / (2 * FRAGMENT_LAYERS), 1.0)


def utilisation(scheme: Exchange, bit_per_s: float) -> float:
    """Share of the time that computes."""
    compute = scheme.every * scheme.step_s
    return compute / (compute + exposed_s(scheme, bit_per_s))


def bit_per_s_for(scheme: Exchange, share: float, low: float = 1e3, high: float = 1e24) -> float:
    """Least bandwidth at which ``share`` of the time computes; bisection, since utilisation grows with bandwidth.

    Infinite where the latency alone costs more than that.
    """
    if utilisation(scheme, high) < share:
        return math.inf
    for _ in range(120):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if utilisation(scheme, middle) >= share else (middle, high)
    return high
