"""What a worker does with its arm: verify before timing, compare outputs, warm up, take turns. In this process."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalbench.meters import environment
from frugalbench.run import protocol, worker
from frugalbench.schema import Warmup
from frugalbench.workloads import BUILDERS
from run.helpers import make_arm

CASE = "fake/arm/decode"


@pytest.fixture
def session(tmp_path, monkeypatch):
    monkeypatch.setitem(BUILDERS, "fake", "fake_workload")
    monkeypatch.setattr(environment, "void_reason", environment.void_reason)  # the fake replaces it; put it back

    def make(**params):
        log = {"log": str(tmp_path / "log")} if params.pop("logged", False) else {}
        job = protocol.Job(
            arm=make_arm("arm", **log, **params), seed=1, threads=1, device="cpu", cache_dir=str(tmp_path),
            scratch_dir=str(tmp_path / "scratch"), start_s=time.monotonic(),
        )  # fmt: skip
        made = worker.Session(job)
        assert isinstance(made.answer(protocol.Load()), protocol.Loaded)
        return made

    return make


def verify(session, limit_s=5.0):
    paths = session.answer(protocol.Reference()).paths
    return session.answer(protocol.Verify(CASE, paths[CASE], limit_s))


def test_a_right_answer_passes_at_every_position(session):
    found = verify(session()).verification
    assert (found.error, found.passed) == (0.0, True)
    assert found.what == "3 of 3 positions against the float64 reference"


@pytest.mark.parametrize("off", [1e-6, 1.0, float("nan"), float("inf")])
def test_a_wrong_answer_does_not(session, off):
    found = verify(session(wrong=off)).verification
    assert not found.passed
    assert found.error is None if not np.isfinite(off) else found.error > found.tolerance


def test_however_little_time_is_left_some_positions_are_checked(session):
    found = verify(session(work_s=0.01), limit_s=0.0).verification
    assert found.what.startswith("2 of 3 positions")
    assert not verify(session(wrong=1.0), limit_s=0.0).verification.passed


def test_an_answer_that_never_changes_is_caught(session):
    """A kernel that ignores its input is right at most once in the rotation."""
    made = session()
    bound = made.bound[CASE]
    first = bound.output(0)
    made.bound[CASE] = worker.Bound(call=bound.call, output=lambda _: first, rotation=bound.rotation)
    assert not verify(made).verification.passed


def lossy(session, stored, outputs, format_tolerance):
    """The arm computes ``outputs``; its format stores what gives ``stored``; unquantised it would be the reference."""
    made = session(format_tolerance=format_tolerance)
    bound = made.bound[CASE]
    made.bound[CASE] = worker.Bound(
        call=bound.call,
        output=lambda index: {"y": bound.output(index)["y"] + outputs},
        rotation=bound.rotation,
        own_definition=lambda index: {"y": bound.output(index)["y"] + stored},
    )
    return verify(made)


@pytest.mark.parametrize(
    ("stored", "outputs", "format_tolerance", "passed"),
    [(0.01, 0.01, 0.1, True), (0.01, 0.02, 0.1, False), (1.0, 1.0, 0.1, False), (0.01, 0.0, 0.1, False)],
)
def test_a_lossy_format_is_held_to_its_own_definition_and_to_its_limit(
    session, stored, outputs, format_tolerance, passed
):
    reply = lossy(session, stored, outputs, format_tolerance)
    assert reply.verification.passed == passed
    if outputs:
        rms = max(outputs / np.sqrt(np.mean((np.arange(4.0) + i) ** 2)) for i in range(3))
        assert reply.facts["output_error"].value == pytest.approx(rms)


def test_parity_of_a_lossy_format_beyond_its_limit_is_not_claimed(session):
    """Right by its own definition, too far from the unquantised answer: failed, and the fact ``parity`` must agree."""
    reply = lossy(session, 1.0, 1.0, 0.1)
    assert reply.facts["parity"].value == float(reply.verification.passed)


def test_warm_up_ends_when_steady_and_says_so(session):
    found = session(work_s=0.005).answer(protocol.Calibrate(CASE, 5.0)).warmup
    assert isinstance(found, Warmup)
    assert found.steady
    assert found.calls >= 3
    assert found.call_s >= 0.005
    assert found.time_s < 5.0


def test_warm_up_of_a_long_call_stops_after_the_second(session):
    found = session(work_s=0.2).answer(protocol.Calibrate(CASE, 0.05)).warmup
    assert (found.calls, found.steady) == (2, False)
    assert found.call_s >= 0.2


def test_a_turn_times_exactly_its_calls_after_an_untimed_lead_in(session):
    made = session(work_s=0.002)
    seen = []
    bound = made.bound[CASE]
    made.bound[CASE] = worker.Bound(
        call=lambda index: (seen.append(index), bound.call(index)), output=bound.output, rotation=bound.rotation
    )
    for _ in range(2):
        reply = made.answer(protocol.Turn(CASE, 5, lead_in_s=0.005, quiet_limit_s=0.0, previous_pid=None))
        assert reply.calls == 5
        assert reply.time_s >= 0.002
        assert reply.environment.wall_s >= 5 * reply.time_s
    assert seen == list(range(len(seen)))
    assert len(seen) >= 2 * (5 + 1)


def test_a_problem_is_one_line(session):
    made = session(die_in="output", how="raise")
    assert verify(made) == protocol.Problem("ZeroDivisionError: division by zero")
    assert worker.one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert worker.one_line(ValueError()) == "ValueError"
    assert len(worker.one_line(ValueError("x" * 9999))) <= 500


def test_a_case_that_cannot_be_bound_says_why(session):
    reply = session(unbindable=True).answer(protocol.Load())
    assert reply.problems == {CASE: "RuntimeError: this case cannot be bound"}


ARRAYS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8).map(np.array)


@given(ARRAYS, st.floats(-10, 10).map(lambda offset: round(offset, 9)))
def test_error_is_zero_for_the_same_and_the_offset_over_rms_otherwise(expected, offset):
    rms = np.sqrt(np.mean(expected**2))
    assert worker.relative_error({"y": expected}, {"y": expected}) == 0
    moved = expected.copy()
    moved[0] += offset
    size = np.abs(moved[0] - expected[0])
    assert worker.relative_error({"y": moved}, {"y": expected}) == pytest.approx(size / rms if rms else size)
    assert worker.rms_error({"y": moved}, {"y": expected}) <= worker.relative_error({"y": moved}, {"y": expected}) * (
        1 + 1e-9
    )


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"other": np.ones(3)},
        {"y": np.ones(4)},
        {"y": np.ones((1, 3))},
        {"y": np.float32(1)},
        {"y": np.array([1, np.nan, 1])},
        {"y": np.array([1, np.inf, 1])},
    ],
)
def test_missing_misshapen_and_not_finite_outputs_are_infinitely_wrong(outputs):
    assert worker.relative_error(outputs, {"y": np.ones(3)}) == float("inf")
    assert worker.rms_error(outputs, {"y": np.ones(3)}) == float("inf")


def test_the_worst_output_counts():
    expected = {"a": np.ones(3), "b": np.ones(3)}
    assert worker.relative_error({"a": np.ones(3), "b": np.array([1, 1, 1.5])}, expected) == 0.5


def test_float32_and_extra_outputs_are_fine():
    assert worker.relative_error({"y": np.ones(3, np.float32), "more": np.zeros(1)}, {"y": np.ones(3)}) == 0


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(st.sampled_from("xyz"), ARRAYS, min_size=1))
def test_arrays_survive_the_disk(tmp_path_factory, arrays):
    folder = tmp_path_factory.mktemp("arrays") / "deep" / "key"
    worker.save_arrays(folder, arrays)
    found = worker.load_arrays(folder)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_a_folder_of_arrays_appears_at_once_and_whole(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(worker.np, "save", lambda *_: seen.append((tmp_path / "key").exists()))
    worker.save_arrays(tmp_path / "key", {"x": np.ones(1), "y": np.ones(1)})
    assert seen == [False, False]
    assert (tmp_path / "key").is_dir()


def test_references_with_one_key_are_computed_once(session, tmp_path):
    made = session(logged=True)
    first = made.answer(protocol.Reference()).paths
    assert made.answer(protocol.Reference()).paths == first
    assert (tmp_path / "log").read_text().count('"reference"') == 1


def test_other_arms_are_pointed_to_a_reference_only_where_nothing_is_to_be_built(session, monkeypatch):
    made, others = session(), (make_arm("same"), make_arm("other", key="its own"))

    def told():
        return set(made.answer(protocol.Reference(others)).paths)

    assert told() == {CASE, "fake/same/decode"}
    monkeypatch.setattr(made.builder, "prepare", lambda *_: None, raising=False)
    assert told() == {CASE}
    monkeypatch.setattr(made.builder, "nothing_to_prepare", lambda *_: True, raising=False)
    assert told() == {CASE, "fake/same/decode"}


def test_effective_threads_are_what_was_asked_for(monkeypatch):
    asked = []
    torch = SimpleNamespace(set_num_threads=asked.append, get_num_threads=lambda: asked[-1])
    monkeypatch.setitem(worker.sys.modules, "torch", torch)
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda limits: asked.append(limits))
    worker.limit_threads(3)
    assert asked == [3, 3]
    assert worker.effective_threads() == 3


def test_artefacts_are_built_once_in_each_environment(session, monkeypatch):
    """Compiled graphs of another environment are not found again, though all versions are the same."""
    built = []
    for prefix in ("/one", "/one", "/other"):
        monkeypatch.setattr(worker.sys, "prefix", prefix)
        made = session()
        monkeypatch.setattr(made.builder, "prepare", lambda *_, here=prefix: built.append(here), raising=False)
        made.prepare(protocol.Prepare())
    assert built == ["/one", "/other"]
