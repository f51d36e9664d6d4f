"""How a training step is cut over devices: degrees of parallelism, and where the ranks of each group lie."""

from typing import Literal

from frugalbench.schema import Frozen

Schedule = Literal["1f1b", "zb-h1", "zb-h2"]
"""Of a pipeline: one forward, one backward, or a zero-bubble schedule (arXiv 2401.10241)."""


class Split(Frozen, frozen=True, kw_only=True):
    """How one step is cut over devices."""

    devices: int
    sequence: int
    """Tokens."""
    batch: int
    """Sequences of one step over all devices."""
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    """Ranks with the same other weights that share the experts of a layer between them."""
    context: int = 1
    """Ranks that share a sequence."""
    zero: int = 1
    """Stage: 1 shards the optimizer, 2 the gradients too, 3 the weights too, over all ranks with the same weights."""
    schedule: Schedule = "1f1b"
    micro: int = 1
    interleave: int = 1
    recompute: bool = False
    pipeline_inner: bool = False
    """Stages of one pipeline lie side by side, replicas apart; else replicas lie side by side."""

    @property
    def data(self) -> int:
        """Groups of devices with sequences of their own."""
        return self.devices // (self.tensor * self.pipeline * self.context)

    @property
    def replicas(self) -> int:
        """Ranks with the same weights: those of all sequences and of all parts of one."""
        return self.data * self.context

    @property
    def copies(self) -> int:
        """Ranks with the same experts."""
        return max(self.replicas // self.expert, 1)

    @property
    def token(self) -> float:
        """Tokens of a microbatch on one device."""
        return self.micro * self.sequence / self.context

    @property
    def microbatches(self) -> float:
        """Per pipeline and step."""
        return self.batch / (self.data * self.micro)

    @property
    def stage_stride(self) -> int:
        """Devices between a stage and the next."""
        return self.tensor * (1 if self.pipeline_inner else self.replicas)

    @property
    def replica_stride(self) -> int:
        """Devices between a replica and the next."""
        return self.tensor * (self.pipeline if self.pipeline_inner else 1)
