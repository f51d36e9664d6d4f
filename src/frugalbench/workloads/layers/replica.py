"""One replica of a tiny language model that is trained by several ranks; the same on every rank.

Shape suffixes: B batch of all replicas, S sequence, P all weights in a row.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from frugalbench.cluster.emulate.lockstep import Order, rank_input
from frugalbench.schema import Case, Frozen
from frugalbench.specs import lm_quality as text
from frugalbench.specs import local_steps as spec
from frugalbench.workloads.layers.tiny_lm import schedule
from frugalbench.workloads.lm_quality import Model

TRAIN, EXCHANGE = 1, 2
Mean = Callable[[torch.Tensor], torch.Tensor]


class Told(Frozen, frozen=True, kw_only=True):
    """What every rank needs to know."""

    case: Case
    seed: int
    replicate: int


class Outer:
    """DiLoCo's outer optimizer: Nesterov momentum on the averaged difference (arXiv 2311.08105, algorithm 1).

    With rate 1 and no momentum it is the plain average.
    """

    def __init__(self, start_P: torch.Tensor, params: dict[str, Any], mean: Mean):
        momentum = params["outer_momentum"]
        self.weights_P, self.mean = start_P.clone(), mean
        self.optimizer = torch.optim.SGD(
            [self.weights_P], lr=params["outer_learning_rate"], momentum=momentum, nesterov=momentum > 0
        )

    def merge(self, local_P: torch.Tensor) -> torch.Tensor:
        """Where all ranks go on from, given where each has come to."""
        self.weights_P.grad = self.mean(self.weights_P - local_P)
        self.optimizer.step()
        return self.weights_P


class Replica:
    """This rank's model, its inner optimizer, and what it does in a call."""

    def __init__(self, rank: int, told: Told):
        torch.set_num_threads(1)
        self.rank, self.told, self.params = rank, told, told.case.params
        arrays = text.weights(told.seed, told.replicate, self.params, "dense")
        self.model = Model(arrays, self.params, "dense", "cpu")
        self.tensors = list(self.model.weights.values())
        self.optimizer = _inner(self.tensors, self.params)
        self.dist: Any = None
        self.trained = 0
        self.apart = 0.0
        """Largest difference between the ranks' weights after training."""
        self.curve: list[dict[str, float]] = []

    def meet(self, dist: Any) -> None:
        """Exchange through ``dist`` from now on."""
        self.dist = dist

    def turn_to(self, order: Order) -> Callable[[], Any]:
        """What an order asks for: the training, which is done once, or one exchange after another."""
        return self._train_once if order.work == TRAIN else Exchange(self)

    def mean(self, own_P: torch.Tensor) -> torch.Tensor:
        """In place: the mean over all ranks."""
        self.dist.all_reduce(own_P)
        return own_P.div_(self.params["replicas"])

    def weights(self) -> torch.Tensor:
        """A copy of all weights, P."""
        return torch.cat([tensor.detach().flatten() for tensor in self.tensors])

    def _train_once(self) -> None:
        """A second call only waits for the others."""
        if self.trained:
            self.dist.barrier()
            return
        self._train()
        own_P = self.weights()
        everyone = [torch.empty_like(own_P) for _ in range(self.params["replicas"])]
        self.dist.all_gather(everyone, own_P)
        self.apart = max(float((other - everyone[0]).abs().max()) for other in everyone)

    def _train(self) -> None:
        params, every = self.params, _evaluation_period(self.params)
        outer = None if self.told.case.variant == spec.EVERY_STEP else Outer(self.weights(), params, self.mean)
        held_out, spent_s = torch.from_numpy(text.held_out(params)), 0.0
        for step in range(1, params["steps"] + 1):
            begin_s = time.perf_counter()
            self._step(step, alone=outer is not None)
            if outer is not None and step % params["local_steps"] == 0:
                _put(self.tensors, outer.merge(self.weights()))
            spent_s += time.perf_counter() - begin_s
            self.trained = step
            if self.rank == 0 and (step % every == 0 or step == params["steps"]):
                self._note(step, spent_s, held_out)

    def _step(self, step: int, alone: bool) -> None:
        params = self.params
        for group in self.optimizer.param_groups:
            group["lr"] = schedule(step, params["steps"]) * params["learning_rate"]
        self.optimizer.zero_grad(set_to_none=True)
        self.model.loss(self._windows(step))[0].backward()
        gradients = [tensor.grad for tensor in self.tensors if tensor.grad is not None]
        if not alone:
            _put(gradients, self.mean(torch.cat([gradient.flatten() for gradient in gradients])))
        if params["clip"]:
            torch.nn.utils.clip_grad_norm_(self.tensors, params["clip"])
        self.optimizer.step()

    def _windows(self, step: int) -> torch.Tensor:
        """This rank's rows of the batch."""
        windows = text.batch(self.told.seed, self.told.replicate, step, self.params)
        return torch.from_numpy(windows).chunk(self.params["replicas"])[self.rank]

    def _note(self, step: int, spent_s: float, held_out: torch.Tensor) -> None:
        with torch.no_grad():
            loss = float(self.model.loss(held_out)[0])
        token = step * spec.step_token(self.params)
        flop = step * text.cost(self.params, "dense").flop
        self.curve.append({"step": step, "token": token, "flop": flop, "time_s": spent_s, "loss": loss})


class Exchange:
    """One exchange after another of values that are drawn and not trained, so that it can be checked and timed."""

    def __init__(self, replica: Replica):
        params, ranks = replica.told.case.params, replica.params["replicas"]
        elements, seed = spec.weights(params), replica.told.seed
        self.replica, self.own_P = replica, torch.from_numpy(rank_input(seed, replica.rank, elements))
        self.outer = None
        if replica.told.case.variant != spec.EVERY_STEP:
            self.outer = Outer(torch.from_numpy(rank_input(seed, ranks, elements)), params, replica.mean)

    def __call__(self) -> torch.Tensor:
        """The average, or where the outer optimizer goes."""
        return self.replica.mean(self.own_P.clone()) if self.outer is None else self.outer.merge(self.own_P)


def _inner(tensors: list[torch.Tensor], params: dict[str, Any]) -> torch.optim.Optimizer:
    if params["inner"] == "sgd":
        return torch.optim.SGD(tensors, lr=params["learning_rate"])
    return torch.optim.AdamW(tensors, lr=params["learning_rate"], betas=(0.9, 0.95), weight_decay=0.1)


def _put(tensors: list[torch.Tensor], flat_P: torch.Tensor) -> None:
    """Copy a row of values into tensors; unlike ``vector_to_parameters`` it leaves them their own memory."""
    with torch.no_grad():
        for tensor, part in zip(tensors, flat_P.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _evaluation_period(params: dict[str, Any]) -> int:
    """Steps between two evaluations: whole periods between exchanges."""
    local_steps = params["local_steps"]
    return int(local_steps * max(1, params["steps"] // spec.EVALUATIONS // local_steps))
