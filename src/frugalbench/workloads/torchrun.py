"""Programs on ranks that torchrun or Slurm started: how they are asked, meet, speak and end.

Only rank 0 speaks, but for a rank that was lost, which tells so itself. Exit status 2: the request is wrong; 1: a wrong
answer, or a rank was lost.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from frugalbench import machine
from frugalbench.schema import FrugalbenchError

BACKENDS = {"cuda": "nccl", "xpu": "xccl"}
"""The library between GPUs, by torch's name for their kind; ROCm's RCCL answers to NCCL's name."""
INTERRUPTED = 130
_SAID = 300
"""Characters of a library's message that are passed on."""


class WrongAnswer(Exception):
    """An output differs from the float64 answer."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise FrugalbenchError(f"{self.prog.split()[-1]}: {message}; --help lists the options")


def parser(where: str, description: str, defaults: Mapping[str, Any]) -> argparse.ArgumentParser:
    """One option for each default, of its type; a list takes several words."""
    found = _Parser(prog=f"torchrun -m {where}", description=description)
    for key, default in defaults.items():
        several = isinstance(default, list)
        kind = type(default[0]) if isinstance(default, list) else type(default)
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        found.add_argument(
            f"--{key.replace('_', '-')}", type=kind, nargs="+" if several else None, default=default,
            help=f"default: {shown or 'automatic'}",
        )  # fmt: skip
    return found


def answer(lines: Callable[[], Iterable[str]]) -> int:
    """Print what ``lines`` gives on rank 0; the exit status."""
    try:
        found = list(lines())
    except (FrugalbenchError, WrongAnswer) as problem:
        progress(str(problem))
        return 1 if isinstance(problem, WrongAnswer) else 2
    except RuntimeError as problem:
        print(f"rank {os.environ.get('RANK', '0')} was lost: {' '.join(str(problem).split())[:_SAID]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    if leads():
        print("\n".join(found), flush=True)
    return 0


def leads() -> bool:
    """Whether this is rank 0."""
    return os.environ.get("RANK", "0") == "0"


def progress(text: str) -> None:
    """A word on standard error, by rank 0."""
    if leads():
        print(text, file=sys.stderr, flush=True)


def ranks(where: str) -> int:
    """All ranks. Raises :class:`FrugalbenchError` where nobody started any."""
    if "WORLD_SIZE" not in os.environ:
        raise FrugalbenchError(f"{where}: started without torchrun; try: torchrun --nproc-per-node 2 -m {where}")
    return int(os.environ["WORLD_SIZE"])


def ranks_here() -> int:
    """Ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_for(asked: str, where: str) -> str:
    """``cpu``, ``cuda`` or ``xpu``: what was asked for, or else what is here; refuses more ranks than it has places."""
    device, here = asked or next((name for name in BACKENDS if _module(name).is_available()), "cpu"), ranks_here()
    if device != "cpu" and not (device in BACKENDS and _module(device).is_available()):
        raise FrugalbenchError(f"{where}: no device '{device}' here; take cpu, {' or '.join(BACKENDS)}")
    cores = len(os.sched_getaffinity(0))
    if device == "cpu" and here > cores:
        raise FrugalbenchError(f"{where}: {here} ranks on a machine need a core each; this one has {cores}")
    if device != "cpu" and here > _module(device).device_count():
        gpus = _module(device).device_count()
        raise FrugalbenchError(
            f"{where}: {here} ranks on a machine need a GPU each; this one has {gpus}; or --device cpu"
        )
    return device


def join(device: str) -> str:
    """This rank's device, with the group met on it by that device's library; gloo between processors."""
    if device != "cpu":
        backend, device = BACKENDS[device], f"{device}:{os.environ.get('LOCAL_RANK', '0')}"
        _module(device).set_device(device)
        dist.init_process_group(backend)
        return device
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    return device


def _module(device: str) -> Any:
    """torch's module for a kind of GPU: ``torch.cuda`` (ROCm's too) or ``torch.xpu``."""
    return getattr(torch, device.partition(":")[0])


def agreed(value: int, device: str, first: bool = False) -> int:
    """The least of all ranks' values, or rank 0's."""
    found = torch.tensor([int(value)], device=device)
    if first:
        dist.broadcast(found, 0)
    else:
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return int(found)


def device_name(device: str) -> str:
    """As the driver calls it, or ``cpu``."""
    return str(_module(device).get_device_name(device)) if device != "cpu" else device


def free_bytes(device: str) -> int:
    """Memory that a rank may take: what its GPU has free, or its part of the machine's."""
    if device != "cpu":
        return int(_module(device).mem_get_info(device)[0])
    return (machine.available_bytes() or 0) // ranks_here()
