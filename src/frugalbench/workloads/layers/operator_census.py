"""Which operators a model calls on a device, and what became of each: seen from torch's dispatcher.

The census stands where an adapter does, below autograd and below what torch spells out for all backends. An operator is
counted by its overload (``aten::add.Tensor``) when an operand or a result lies on the device.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from frugalbench.backends.foreign import KEY, Device

NATIVE, DECOMPOSED, FALLBACK, MISSING = OUTCOMES = ("native", "decomposition", "fallback", "missing")
"""A kernel of the device's own; spelled out by torch from others that are; the host had a part in it; refused."""
_WORST = {outcome: rank for rank, outcome in enumerate(OUTCOMES)}


@dataclass
class Census:
    """Calls by operator, and each operator's worst outcome."""

    calls: Counter[str] = field(default_factory=Counter)
    outcome: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, outcome: str) -> None:
        """One call."""
        self.calls[name] += 1
        if _WORST[outcome] >= _WORST.get(self.outcome.get(name, NATIVE), 0):
            self.outcome[name] = outcome

    def with_outcome(self, *outcomes: str) -> dict[str, int]:
        """Calls of the operators that ended so, the most called first."""
        return {name: calls for name, calls in self.calls.most_common() if self.outcome[name] in outcomes}


class Watch(TorchDispatchMode):  # type: ignore[misc]
    """While open, every operator that touches ``device`` is noted. What the device refuses is computed on the host, so
    that one missing operator does not hide the next."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.census = device, Census()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        before = self.device.fallbacks()
        missing = False
        try:
            found = func(*args, **kwargs)
        except NotImplementedError:
            missing, found = True, self._on_host(func, args, kwargs)
        if any(self._is_there(value) for value in _tensors((args, kwargs, found))):
            self.census.note(func.name(), self._outcome(func, missing, self.device.fallbacks() > before))
        return found

    def _outcome(self, func: Any, missing: bool, host_called: bool) -> str:
        if missing:
            return MISSING
        if host_called:
            return FALLBACK
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), KEY):
            return NATIVE
        return DECOMPOSED if _is_composite(func.name()) else FALLBACK

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = tree_map(_to_host, (args, kwargs))
        try:
            found = func(*args, **kwargs)
        except NotImplementedError:  # nor has the processor a kernel for integers, where models expect a device's
            found = tree_map(_narrow, func(*tree_map(_wide, args), **tree_map(_wide, kwargs)))
        return tree_map(lambda value: value.to(self.device.name) if isinstance(value, torch.Tensor) else value, found)

    def _is_there(self, tensor: torch.Tensor) -> bool:
        return bool(tensor.device.type == self.device.name)


def _is_composite(name: str) -> bool:
    """Whether torch has a way for every backend; without one and without a kernel only a fallback can have answered."""
    keys = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))


def _to_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _wide(value: Any) -> Any:
    is_integer = isinstance(value, torch.Tensor) and not value.is_floating_point()
    return value.double() if is_integer else value


def _narrow(value: Any) -> Any:
    return value.to(torch.int32) if isinstance(value, torch.Tensor) and value.dtype is torch.float64 else value
