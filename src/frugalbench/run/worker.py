"""A worker: a fresh process that executes one arm, one request at a time.

It computes only between a request and its reply; otherwise it blocks on its pipe. The order that the parent
keeps is load, verify, calibrate, then turns: a wrong answer never gets as far as a timing.
"""

import gc
import hashlib
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frugalbench import meters
from frugalbench.meters import environment
from frugalbench.meters.gpu_state import near_cores, pulse_of
from frugalbench.meters.gpu_throttle import gpu_throttle_reasons
from frugalbench.run import family, memory, placement, protocol
from frugalbench.run.agreement import Agreement
from frugalbench.run.reasons import one_line
from frugalbench.run.setting import meter_settings
from frugalbench.schema import FrugalbenchError, Quantity, Role, Tier, Verification, Warmup
from frugalbench.specs import plugin
from frugalbench.workloads import BUILDERS, residence
from frugalbench.workloads.base import Arrays, Bound, Context, NoPath
from frugalbench.workloads.stopwatch import Elapsed, compiled, timed

_STEADY_SHARE = 0.1
"""Warm-up ends when three successive blocks agree within this share."""
_WARMUP_BLOCK_S = 0.004
_HOPELESS_CALL_S = 2.0
"""A first call this long is not repeated; a shorter one may have met a stall of the machine and gets another chance."""
_MOST_LENGTHENING = 4


def serve(channel: Any) -> None:
    """Answer requests until told to finish or the parent is gone."""
    try:
        session = _session(protocol.receive(channel, protocol.Job))
        protocol.send(channel, session.problem or protocol.Finished())
        while True:
            request = protocol.receive(channel, protocol.Request)
            if isinstance(request, protocol.Finish):
                session.close()
                protocol.send(channel, protocol.Finished())
                return
            protocol.send(channel, session.answer(request))
    except EOFError:
        return


def _session(job: protocol.Job) -> "Session | Refusal":
    try:
        return Session(job)
    except FrugalbenchError as problem:
        return Refusal(str(problem))


class Refusal:
    """In place of a session that cannot be had here, because a meter does not answer, say: refuses every request."""

    def __init__(self, reason: str):
        self.problem = protocol.Problem(reason=reason)

    def answer(self, _: Any) -> protocol.Problem:
        return self.problem

    def close(self) -> None:
        pass


class Session:
    """One arm's life."""

    problem: protocol.Problem | None = None

    def __init__(self, job: protocol.Job):
        self.job = job
        memory.limit_own(job.memory_limit_bytes, job.device)
        self.cases = {case.id: case for case in job.arm.cases}
        self.builder = plugin.load(job.plugin) if job.plugin else import_module(BUILDERS[job.arm.cases[0].workload])
        self.context = Context(
            seed=job.seed,
            threads=job.threads,
            device=job.device,
            cache_dir=Path(job.cache_dir),
            scratch_dir=Path(job.scratch_dir),
            replicate=job.replicate,
        )
        self.loaded: Any = None
        self.bound: dict[str, Bound] = {}
        self.position: dict[str, int] = {}
        self.busy: dict[str, tuple[int, ...]] = {}
        self.memory_byte_per_s: float | None = None
        self.usable = near_cores(job.device, frozenset(os.sched_getaffinity(0)))
        os.sched_setaffinity(0, self.usable)
        self.cores = len(self.usable)
        self.meters = meters.pick(meter_settings(job.energy, job.threads, job.device))
        self.probe = environment.EnvironmentProbe()

    def answer(self, request: Any) -> Any:
        """Carry out one request; an exception becomes a :class:`protocol.Problem`."""
        handlers: dict[type, Callable[[Any], Any]] = {
            protocol.Prepare: self.prepare,
            protocol.Reference: self.reference,
            protocol.Load: self.load,
            protocol.Verify: self.verify,
            protocol.Calibrate: self.calibrate,
            protocol.Turn: self.turn,
            protocol.Idle: self.idle,
        }
        try:
            return handlers[type(request)](request)
        except MemoryError:
            traceback.print_exc()
            return protocol.Problem(reason=self._out_of_memory())
        except NoPath as problem:
            return protocol.Problem(reason=" ".join(str(problem).split()), no_path=True)
        except (Exception, SystemExit) as problem:
            traceback.print_exc()
            return protocol.Problem(reason=one_line(problem))

    def _out_of_memory(self) -> str:
        limit_bytes = self.job.memory_limit_bytes
        if limit_bytes is None:
            return "out of memory"
        return f"out of memory: {memory.gib(limit_bytes)} allowed for each worker; {memory.ADVICE}"

    def prepare(self, _: protocol.Prepare) -> protocol.Finished:
        """Build the arm's artefacts unless a marker in the cache says that this arm has been built.

        By this environment: what torch.compile keeps is of no use to another one with libraries of the same versions.
        """
        marker = self._marker(self.job.arm)
        if not self._prepared(self.job.arm):
            limit_threads(self.context.threads)
            self.builder.prepare(self.job.arm, self.context)
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        return protocol.Finished()

    def _marker(self, arm: Any) -> Path:
        text = repr((sys.prefix, sorted(library_versions().items()), self.context.threads, arm))
        return self.context.cache_dir / "prepared" / hashlib.sha256(text.encode()).hexdigest()[:16]

    def _prepared(self, arm: Any) -> bool:
        """Whether nothing is to be built for an arm, or it has been."""
        if not hasattr(self.builder, "prepare"):
            return True
        idle = getattr(self.builder, "nothing_to_prepare", None)
        return bool(idle is not None and idle(arm, self.context)) or self._marker(arm).exists()

    def reference(self, request: protocol.Reference) -> protocol.Referenced:
        """Compute the float64 references of this arm's cases unless another arm has; point others to the same ones."""
        paths = {case.id: self._reference(case) for case in self.cases.values()}
        for arm in request.others:
            folders = {case.id: self._folder(case) for case in arm.cases}
            if self._prepared(arm) and all(folder.exists() for folder in folders.values()):
                paths |= {name: str(folder) for name, folder in folders.items()}
        return protocol.Referenced(paths=paths)

    def _folder(self, case: Any) -> Path:
        key = hashlib.sha256(self.builder.reference_key(case).encode()).hexdigest()[:16]
        return self.context.scratch_dir / "references" / key

    def _reference(self, case: Any) -> str:
        folder = self._folder(case)
        if not folder.exists():
            save_arrays(folder, self.builder.reference(case, self.context))
        return str(folder)

    def load(self, _: protocol.Load) -> protocol.Loaded:
        """Load the arm and bind its cases."""
        started = time.perf_counter()
        limit_threads(self.context.threads)
        self.loaded = self.builder.load(self.job.arm, self.context)
        problems = {}
        for case in self.cases.values():
            try:
                self.bound[case.id] = bound = self.loaded.bind(case)
                self.position[case.id] = 0
                if refused := residence.too_small(bound):
                    problems[case.id] = refused
            except Exception as problem:
                traceback.print_exc()
                problems[case.id] = one_line(problem)
        load_s = time.perf_counter() - started
        self.probe = environment.EnvironmentProbe(
            pids=getattr(self.loaded, "pids", ()),
            gpu_reasons=gpu_throttle_reasons(self.job.device),
            gpu_pulse=pulse_of(self.job.device),
        )
        device = next((bound.device for bound in self.bound.values() if bound.device is not None), None)
        self.memory_byte_per_s = device.memory_byte_per_s() if device is not None else None
        gc.collect()
        gc.freeze()
        return protocol.Loaded(
            pid=os.getpid(),
            load_s=load_s,
            pss_bytes=environment.pss_bytes(os.getpid()),
            threads=effective_threads(),
            libraries=library_versions(),
            artefacts=self.loaded.artefacts,
            facts={name: bound.facts for name, bound in self.bound.items()},
            details={name: bound.details for name, bound in self.bound.items()},
            problems=problems,
            capped={name: bound.capped for name, bound in self.bound.items() if bound.capped},
            settled=tuple(name for name, bound in self.bound.items() if bound.settled),
            update_period_s=self._update_period_s(),
            first_starts={name: bound.first_start for name, bound in self.bound.items() if bound.first_start},
        )

    def _update_period_s(self) -> float | None:
        periods = [meter.update_period_s for meter in self.meters if meter.tier is Tier.MEASURED]
        return max(periods, default=None)

    def verify(self, request: protocol.Verify) -> protocol.Verified:
        """Compare outputs with the stored reference, and with the arm's own definition where the format is lossy."""
        case, bound = self.cases[request.case], self.bound[request.case]
        reference = load_arrays(Path(request.reference))
        own = self._own_definition(case, bound)
        known = min(bound.rotation, *(len(array) for array in reference.values()))
        stop = time.monotonic() + request.limit_s
        worst, distance, checked = 0.0, None, 0
        agreement = Agreement()
        for index in range(bound.rotation):
            if checked >= request.least and time.monotonic() > stop:
                break
            if own is None and index >= known:
                break
            outputs = self._placed(case.id, partial(bound.output, index))
            checked += 1
            if own is not None:
                worst = max(worst, relative_error(outputs, own(index)))
            if index < known:
                expected = {name: array[index] for name, array in reference.items()}
                error = relative_error(outputs, expected) if own is None else rms_error(outputs, expected)
                distance = max(distance or 0.0, error)
                worst = worst if own is not None else max(worst, error)
                if bound.agreement:
                    agreement.add(outputs, expected)
        verified = self._verdict_on(case, bound, worst, distance, own is not None, checked)
        return msgspec.structs.replace(verified, facts={**verified.facts, **agreement.facts()})

    def _own_definition(self, case: Any, bound: Bound) -> Any:
        """The float64 answer of the stored format; computed by the first worker of the run, mapped by the others."""
        if bound.own_definition is None:
            return None
        compute = bound.own_definition
        key = hashlib.sha256(case.id.encode()).hexdigest()[:16]

        def lookup(index: int) -> Arrays:
            folder = self.context.scratch_dir / "definitions" / f"{key}-{index}"
            if not folder.exists():
                save_arrays(folder, compute(index))
            return load_arrays(folder)

        return lookup

    @staticmethod
    def _verdict_on(
        case: Any, bound: Bound, worst: float, distance: float | None, lossy: bool, checked: int
    ) -> protocol.Verified:
        tolerance, limit = case.tolerance, case.params.get("format_tolerance")
        against = "the float64 answer of the stored format" if lossy else bound.against
        what = f"{checked} of {bound.rotation} positions against {against}"
        passed = checked > 0 and worst <= tolerance
        facts = {}
        if lossy and distance is not None:
            source = "relative RMS against the unquantised float64 answer"
            facts["output_error"] = Quantity(value=distance, unit="1", tier=Tier.MEASURED, source=source)
            if limit is not None and distance > limit:
                passed, what = False, f"{what}; {distance:.3g} from the unquantised answer, format allows {limit:.3g}"
        facts["parity"] = Quantity(value=float(passed), unit="1", tier=Tier.MEASURED, source=what)
        finite = worst if np.isfinite(worst) else None
        return protocol.Verified(
            verification=Verification(error=finite, tolerance=tolerance, passed=passed, what=what), facts=facts
        )

    def calibrate(self, request: protocol.Calibrate) -> protocol.Calibrated:
        """Repeat the case in short blocks until three agree, or the limit is reached."""
        bound = self.bound[request.case]
        started = time.perf_counter()
        blocks: list[float] = []
        calls, steady = 0, False
        per_block = 1
        while not steady and (len(blocks) < 2 or time.perf_counter() - started < request.limit_s):
            block_s = self._placed(request.case, partial(self._run, request.case, bound, per_block)).host_s
            calls += per_block
            blocks.append(block_s / per_block)
            if block_s > request.limit_s and (len(blocks) > 1 or block_s > _HOPELESS_CALL_S):
                break
            if block_s < _WARMUP_BLOCK_S:
                per_block = max(per_block + 1, int(per_block * _WARMUP_BLOCK_S / max(block_s, 1e-7)))
            steady = len(blocks) >= 3 and max(blocks[-3:]) <= (1 + _STEADY_SHARE) * min(blocks[-3:])
        warmup = Warmup(
            placed_threads=len(self.busy[request.case]),
            calls=calls,
            time_s=time.perf_counter() - started,
            steady=steady,
            call_s=min(blocks[-3:]),
        )
        return protocol.Calibrated(warmup=warmup)

    def _placed(self, case: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives, with the threads that were found busy for this case so far on a core each."""
        with placement.placed(self.busy.get(case, ()), 0):
            watch, begin_s = placement.Watch(), time.perf_counter()
            answer = work()
            self.busy[case] = watch.busy(time.perf_counter() - begin_s, self.cores)
        return answer

    def turn(self, request: protocol.Turn) -> protocol.Turned:
        """Wait for quiet, run the untimed lead-in, then time."""
        bound = self.bound[request.case]
        with placement.placed(self.busy.get(request.case, ()), request.place):
            return self._turn(request, bound)

    def _turn(self, request: protocol.Turn, bound: Bound) -> protocol.Turned:
        waited_s, quiet = 0.0, True
        if request.previous_pid is not None:
            waited_s, quiet = environment.wait_until_quiet(request.previous_pid, request.quiet_limit_s)
        calls = _enough_calls(request.calls, self._lead_in(request, bound), request.least_s)
        gc.disable()
        start_s = time.monotonic() - self.job.start_s
        watch = placement.Watch()
        window = self._window() if request.energy else None
        built = compiled(bound)
        self.probe.begin()
        calls, elapsed = self._run_filling(request, bound, calls)
        seen = self.probe.end(quiet_wait_s=waited_s, quiet=quiet)
        readings = window.close(calls, origin_s=self.job.start_s) if window is not None else ()
        self.busy[request.case] = watch.busy(elapsed.host_s, self.cores)
        gc.enable()
        spoilt = environment.void_reason(seen, self.context.threads, self.cores, bound.most_cpu_share)
        device_s = None if elapsed.device_s is None else elapsed.device_s / calls
        if refused := residence.too_fast(self.cases[request.case], device_s, self.memory_byte_per_s):
            raise RuntimeError(refused)
        late = compiled(bound) - built
        return protocol.Turned(
            calls=calls,
            time_s=elapsed.host_s / calls,
            device_s=device_s,
            start_s=start_s,
            environment=seen,
            void=_late(late) or spoilt,
            readings=readings,
            compilations=late,
        )

    def _lead_in(self, request: protocol.Turn, bound: Bound) -> float:
        """Untimed calls, at least one; the time of the fastest. None at all where the config asks for no lead-in."""
        if request.lead_in_s <= 0:
            return math.inf
        stop = time.perf_counter() + request.lead_in_s
        call_s = self._run(request.case, bound, 1).host_s
        while time.perf_counter() < stop:
            call_s = min(call_s, self._run(request.case, bound, 1).host_s)
        return call_s

    def _run_filling(self, request: protocol.Turn, bound: Bound, calls: int) -> tuple[int, Elapsed]:
        """``calls`` calls, and more where they end before the window is filled; how many they were, and their time."""
        elapsed = self._run(request.case, bound, calls)
        while elapsed.host_s < request.fill_s:
            missing = (request.fill_s - elapsed.host_s) * calls / max(elapsed.host_s, 1e-9)
            more = min(max(1, math.ceil(missing)), 2 * calls)
            elapsed += self._run(request.case, bound, more)
            calls += more
        return calls, elapsed

    def _window(self) -> meters.Window:
        return meters.window(self.meters, device=self.job.device, watched=True, cores=self.usable)

    def idle(self, request: protocol.Idle) -> protocol.Idled:
        """Read the meters while nobody computes."""
        if request.previous_pid is not None:
            environment.wait_until_quiet(request.previous_pid, request.quiet_limit_s)
        time.sleep(request.settle_s)
        window = self._window()
        time.sleep(request.window_s)
        readings = window.close(0, origin_s=self.job.start_s)
        idle = [msgspec.structs.replace(reading, role=Role.IDLE) for reading in readings if reading.role is Role.GROSS]
        return protocol.Idled(readings=tuple(idle))

    def _run(self, case: str, bound: Bound, calls: int) -> Elapsed:
        """Time ``calls`` successive positions of the rotation, synchronised at both ends."""
        batch, first = bound.batch or partial(_one_by_one, bound.call), self.position[case]
        self.position[case] = first + calls
        return timed(partial(batch, first, calls), bound)

    def close(self) -> None:
        """Release the arm."""
        if self.loaded is not None:
            self.loaded.close()


def _enough_calls(calls: int, call_s: float, least_s: float) -> int:
    """``calls``, or more where the lead-in shows that they got faster since calibration and would not fill a window."""
    if calls * call_s >= least_s:
        return calls
    return min(_MOST_LENGTHENING * calls, math.ceil(least_s / max(call_s, 1e-9)))


def _late(compilations: int) -> str | None:
    """Why a window does not count in which kernels were built: that is no part of any later call."""
    return f"{compilations} kernels were compiled or tuned inside the window" if compilations else None


def _one_by_one(call: Callable[[int], object], first: int, calls: int) -> object:
    kept = None
    for index in range(first, first + calls):
        kept = call(index)
    return kept


def relative_error(outputs: Arrays, expected: Arrays) -> float:
    """Largest absolute difference over the expected values' root mean square, worst of all outputs.

    Missing outputs, wrong shapes and non-finite values give infinity.
    """
    return max(_distance(outputs.get(name), array, worst=True) for name, array in expected.items())


def rms_error(outputs: Arrays, expected: Arrays) -> float:
    """Root mean square of the difference over that of the expected values, worst of all outputs."""
    return max(_distance(outputs.get(name), array, worst=False) for name, array in expected.items())


def _distance(output: Any, expected: Any, worst: bool) -> float:
    if output is None or output.shape != expected.shape:
        return float("inf")
    difference = np.abs(output.astype(np.float64) - expected)
    size = difference.max() if worst else np.sqrt(np.mean(np.square(difference)))
    scale = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
    error = float(size / scale) if scale > 0 else float(size)
    return error if np.isfinite(error) else float("inf")


def save_arrays(folder: Path, arrays: Arrays) -> None:
    """Write each array to ``folder/NAME.npy``; the folder appears at once and whole."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(partial / f"{name}.npy", array)
    partial.rename(folder)


def load_arrays(folder: Path) -> Arrays:
    """Map what :func:`save_arrays` wrote."""
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in folder.glob("*.npy")}


def limit_threads(threads: int) -> None:
    """Give torch and every loaded BLAS and OpenMP pool exactly ``threads`` threads."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
    import threadpoolctl

    threadpoolctl.threadpool_limits(limits=threads)


def effective_threads() -> int | None:
    """Threads that torch will use, or the largest loaded pool."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    import threadpoolctl

    pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    return max(pools, default=None)


def library_versions() -> dict[str, str]:
    """Versions of the runtimes that this worker has loaded."""
    names = (
        "numpy", "torch", "transformers", "bitsandbytes", "torchao", "onnxruntime", "onnx", "openvino", "vllm",
        "triton", "llama_cpp", "tract", "tinygrad", "MNN",
    )  # fmt: skip
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return {name: str(version) for name, version in found.items() if version}


def main(argv: list[str]) -> None:
    """Entry of a spawned worker."""
    import socket

    family.settle_as_worker()
    try:
        serve(socket.socket(fileno=int(argv[0])))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # leaked threads must not hold the exit up


if __name__ == "__main__":
    main(sys.argv[1:])
