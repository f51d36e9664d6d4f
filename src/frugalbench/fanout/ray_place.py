"""A Ray cluster: one actor per node, bound to it, holding all that Ray hands out of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from frugalbench.fanout import agent
from frugalbench.fanout.place import LeftOut, Lost, Node, safe_names
from frugalbench.schema import FrugalbenchError

POLL_S = 5.0
"""Between two questions to a node that measures; each costs it about a millisecond."""
ANSWER_S = 300.0
"""A node that is ours and leaves a question open for so long is lost."""
_CALL_S = 30.0
_UNRESERVED = ("node:", "object_store_memory")
_DETAILS = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:")
"""Lines of Ray's messages that name nothing a user knows."""


def load() -> Any:
    """The package; raises :class:`FrugalbenchError` where it is missing."""
    try:
        import ray
    except ImportError:
        raise FrugalbenchError(
            "--on ray: needs ray, which is not installed.\nInstall: pip install 'frugalbench[ray]'"
        ) from None
    return ray


class RayPlace:
    """The nodes of a running cluster."""

    def __init__(self, address: str) -> None:
        """``auto``, or ``ray://HOST:PORT``. Raises :class:`FrugalbenchError` when no cluster answers there."""
        self._ray = load()
        self._ray.cloudpickle.register_pickle_by_value(agent)
        try:
            self._ray.init(address=address, namespace="frugalbench", log_to_driver=False, logging_level="error")
        except Exception as problem:  # ConnectionError, RuntimeError, grpc's own
            where = "the cluster of this machine" if address == "auto" else address
            raise FrugalbenchError(
                f"--on ray: cannot join {where} ({_one_line(problem)}).\n"
                "Start one with `ray start --head`, or name one: --on ray://HOST:10001."
            ) from None

    def nodes(self) -> list[Node]:
        """Nodes that are alive and hand out at least one CPU."""
        alive = [item for item in self._ray.nodes() if item.get("Alive", item.get("alive"))]
        able = [item for item in alive if item["Resources"].get("CPU", 0) >= 1]
        able.sort(key=lambda item: (str(item.get("NodeManagerHostname")), str(item["NodeID"])))
        names = safe_names(str(item.get("NodeManagerHostname") or item["NodeManagerAddress"]) for item in able)
        return [
            Node(name, str(item["NodeID"]), tuple(sorted(item["Resources"].items())))
            for name, item in zip(names, able, strict=True)
        ]

    def occupy(self, node: Node) -> "RayJob":
        """An actor that starts when all of the node is free."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        wanted = reservation(dict(node.resources))
        if wanted is None:
            raise LeftOut("hands out no CPU that could be reserved")
        where = NodeAffinitySchedulingStrategy(node_id=node.key, soft=False)
        remote = self._ray.remote(agent.Agent).options(**wanted, scheduling_strategy=where, max_restarts=0)
        return RayJob(self._ray, remote.remote(), f"waiting until all of its {wanted['num_cpus']:g} CPUs are free")

    def close(self) -> None:
        """Disconnect."""
        self._ray.shutdown()
        self._ray.cloudpickle.unregister_pickle_by_value(agent)


def reservation(resources: Mapping[str, float]) -> dict[str, Any] | None:
    """What to ask of a node so that nobody else gets anything of it; ``None`` where it has no whole CPU.

    Everything that it hands out counts, memory and named accelerators too; what placement groups have cut off
    (``CPU_group_…``) is part of the whole and not counted twice.
    """
    whole = {
        name: amount
        for name, amount in resources.items()
        if amount > 0 and "_group_" not in name and not name.startswith(_UNRESERVED)
    }
    cpus, gpus, memory = (whole.pop(name, 0) for name in ("CPU", "GPU", "memory"))
    if cpus < 1:
        return None
    asked: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": whole}
    return asked | ({"memory": int(memory)} if memory >= 1 else {})


class RayJob:
    """One actor. Questions are asked one at a time and never waited for."""

    def __init__(self, ray: Any, actor: Any, waiting: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._ray, self._actor, self._waiting, self._clock = ray, actor, waiting, clock
        self._open: Any = actor.hello.remote()
        self._kind = "hello"
        self._asked_s = clock()

    def heard(self) -> Sequence[dict[str, Any]]:
        """The answer to the open question, if it is there; asks the next one when it is time."""
        if self._open is None:
            if self._clock() - self._asked_s >= POLL_S:
                self._open, self._asked_s = self._safely(self._actor.poll.remote), self._clock()
            return ()
        ready, _ = self._safely(lambda: self._ray.wait([self._open], timeout=0))
        if not ready:
            if self._kind == "report" and self._clock() - self._asked_s > ANSWER_S:
                raise Lost(f"no answer for {ANSWER_S:.0f} s")
            return ()
        kind, answer = self._kind, self._get(self._open)
        self._open, self._kind = None, "report"
        return ({kind: answer},)

    def begin(self, request: dict[str, Any]) -> None:
        """Start measuring."""
        self._get(self._safely(lambda: self._actor.begin.remote(request)))

    def stop(self) -> None:
        """Ctrl-C for the node's program."""
        self._safely(self._actor.stop.remote)

    def release(self) -> None:
        """The actor ends, and with it all that it started."""
        if self._actor is None:
            return
        with suppress(Exception):
            if self._kind == "report":
                self._ray.get(self._actor.close.remote(), timeout=_CALL_S)
        with suppress(Exception):
            self._ray.kill(self._actor)
        self._actor = None

    def waiting(self) -> str:
        """What was asked for and not given yet."""
        return self._waiting

    def _get(self, reference: Any) -> Any:
        return self._safely(lambda: self._ray.get(reference, timeout=_CALL_S))

    def _safely(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as problem:  # an actor, node or connection that is gone, or what the actor raised
            raise Lost(_one_line(problem)) from None


def _one_line(problem: BaseException) -> str:
    """What a message says, without ids and traceback."""
    cause = getattr(problem, "cause", None)
    lines = [line.strip() for line in str(cause or problem).splitlines()]
    told = [line for line in lines if line and not line.startswith(_DETAILS)]
    return " ".join(told)[:400] or type(problem).__name__
