"""What becomes of each node of a cluster: fakes stand at the scheduler's boundary, the driver is the real one."""

import signal

import pytest

from frugalbench.fanout.drive import Fanout, Hooks, worst
from frugalbench.fanout.place import LeftOut, Lost, Node, safe_names

MINE = {"version": "0.1.0", "code": "aaaaaaaaaaaa", "python": "3.11.7"}
DONE = {"lines": [], "records": "{}\n", "manifest": "{}", "code": 0}


def hello(boot="boot-1", **other):
    return {"hello": {"host": "h", "boot": boot, **MINE, **other}}


def report(**other):
    return {"report": {**DONE, **other}}


class FakeJob:
    """Says one message after the other; those after the greeting only once it was begun."""

    def __init__(self, script, log, name):
        self.script, self.log, self.name = list(script), log, name
        self.begun = self.released = self.stopped = False

    def heard(self):
        if self.released:
            raise AssertionError("asked after it was given back")
        if not self.script or (self.script[0] != "busy" and "hello" not in self._first() and not self.begun):
            return ()
        message = self.script.pop(0)
        if isinstance(message, Exception):
            raise message
        return () if message == "busy" else (message() if callable(message) else message,)

    def _first(self):
        return self.script[0] if isinstance(self.script[0], dict) else {"hello": 0} if not self.begun else {}

    def begin(self, request):
        self.begun = True
        self.log.append(("begin", self.name, request["host"]))

    def stop(self):
        self.stopped = True
        self.log.append(("stop", self.name))
        self.script = [report(code=130, manifest=None)]

    def release(self):
        if not self.released:
            self.log.append(("release", self.name))
        self.released = True

    def waiting(self):
        return "waiting until all of its 8 CPUs are free"


class FakePlace:
    def __init__(self, scripts):
        self.scripts, self.log = scripts, []
        self.jobs = {}

    def nodes(self):
        return [Node(name, name) for name in self.scripts]

    def occupy(self, node):
        script = self.scripts[node.key]
        if isinstance(script, Exception):
            raise script
        self.jobs[node.name] = FakeJob(script, self.log, node.name)
        return self.jobs[node.name]

    def close(self):
        """Nothing."""


@pytest.fixture
def fan(tmp_path):
    """Runs the driver over scripts of nodes; returns seats by name, what was said, and what the jobs were told."""

    def run(scripts, most=None, wait_s=None):
        place, said = FakePlace(scripts), []
        hooks = Hooks(said.append, said.append)
        fanned = Fanout(place, {"config": {}}, tmp_path, MINE, hooks, wait_s, sleep=lambda _: None)
        seats = {seat.node.name: seat for seat in fanned.run(place.nodes(), most)}
        assert all(job.released for job in place.jobs.values())
        return seats, "\n".join(said), place.log

    return run


def test_every_node_brings_its_own_directory_home(fan, tmp_path) -> None:
    script = [report(code=None, records='{"n": 1}\n', lines=["doubling: replicate 1"]), report(records='{"n": 2}\n')]
    seats, said, log = fan({"a": [hello("b1"), *script], "b": [hello("b2"), *script]})
    for name in ("a", "b"):
        assert (tmp_path / name / "records.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'
        assert (tmp_path / name / "manifest.json").read_text() == "{}"
        assert ("begin", name, name) in log and f"{name}: doubling: replicate 1" in said
    assert [seat.state for seat in seats.values()] == ["measured", "measured"]
    assert worst(seat.code for seat in seats.values()) == 0


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (hello(version="0.2.0"), "frugalbench 0.2.0 (code aaaaaaaaaaaa) on this node, 0.1.0 (code aaaaaaaaaaaa) here"),
        (hello(code="bbbbbbbbbbbb"), "0.1.0 (code bbbbbbbbbbbb) on this node, 0.1.0 (code aaaaaaaaaaaa) here"),
        ({"hello": {"boot": "", "problem": "No module named 'frugalbench'"}}, "install frugalbench 0.1.0 there"),
    ],
)
def test_another_program_is_refused_by_name_and_the_others_go_on(fan, greeting, told) -> None:
    seats, said, log = fan({"a": [greeting, report()], "b": [hello("b2"), report()]})
    assert (seats["a"].state, seats["a"].code) == ("refused", 2) and f"a: refused: {seats['a'].reason}" in said
    assert told in seats["a"].reason and ("begin", "a", "a") not in log
    assert seats["b"].state == "measured" and seats["a"].folder is None


def test_a_node_that_dies_is_one_line_keeps_what_it_sent_and_the_others_go_on(fan, tmp_path) -> None:
    dies = [hello("b1"), report(code=None), Lost("The actor died because its node has died.")]
    seats, said, _ = fan({"a": dies, "b": [hello("b2"), report(code=1)]})
    assert (seats["a"].state, seats["a"].code) == ("lost", 1)
    assert said.count("its node has died") == 1 and f"kept in {tmp_path / 'a'}" in said
    assert (tmp_path / "a" / "records.jsonl").read_text() == "{}\n"
    assert seats["b"].state == "measured" and worst(seat.code for seat in seats.values()) == 1


def test_a_program_that_is_killed_or_refuses_says_why(fan) -> None:
    kills = [hello("b1"), report(code=-9, lines=["Traceback"])]
    refuses = [hello("b2"), report(code=3, lines=["frugalbench: no case can run here", "x"], manifest=None, records="")]
    seats, _, _ = fan({"a": kills, "b": refuses})
    assert (seats["a"].state, seats["a"].code) == ("lost", 1) and "SIGKILL" in seats["a"].reason
    assert (seats["b"].state, seats["b"].code, seats["b"].reason) == ("refused", 3, "no case can run here")


def test_one_machine_never_carries_two_timings(fan) -> None:
    script = [hello("same"), report(code=None), report(code=None), report()]
    seats, said, log = fan({"a": script, "b": list(script), "c": [hello("other"), report()]})
    assert all(seat.state == "measured" for seat in seats.values())
    assert log.index(("release", "a")) < log.index(("begin", "b", "b"))
    assert log.index(("begin", "c", "c")) < log.index(("release", "a"))
    assert "b: is the same machine as a; they take turns" in said and (seats["b"].same_as, seats["c"].same_as) == (
        "a",
        "",
    )


def test_nodes_in_others_hands_are_waited_for_and_not_for_ever(fan) -> None:
    seats, _, _ = fan({"a": ["busy"] * 5 + [hello(), report()]})
    assert seats["a"].state == "measured"
    seats, said, log = fan({"a": [], "b": [hello("b2"), report()]}, wait_s=0.05)
    assert (seats["a"].state, seats["a"].code) == ("not free", 3) and "all of its 8 CPUs" in seats["a"].reason
    assert ("release", "a") in log and "a: not free" in said and seats["b"].state == "measured"


def test_what_the_cluster_does_not_give_is_left_out_and_the_next_taken(fan) -> None:
    scripts = {"a": LeftOut("constraint not met"), "b": [hello("b2"), report()], "c": [hello("b3"), report()]}
    seats, said, _ = fan(scripts, most=1)
    assert list(seats) == ["b"] and "a: left out: constraint not met" in said


def pressed():
    """What a press of Ctrl-C does, without a signal: whatever ran in this process before stays out of it."""
    signal.getsignal(signal.SIGINT)(signal.SIGINT, None)


def interrupt():
    pressed()
    return report(code=None)


def test_ctrl_c_keeps_what_was_measured_and_gives_all_nodes_back(fan, tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    seats, said, log = fan({"a": [hello("b1"), interrupt, report()], "b": []})
    assert {name: seat.state for name, seat in seats.items()} == {"a": "interrupted", "b": "interrupted"}
    assert ("stop", "a") in log and ("stop", "b") not in log
    assert (tmp_path / "a" / "records.jsonl").read_text() == "{}\n{}\n" and "1 machines send what they have" in said
    assert worst(seat.code for seat in seats.values()) == 130 and signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait(fan) -> None:
    def again():
        pressed()
        return report(code=None)

    class Deaf(FakeJob):
        def stop(self):
            self.script = [again, *[report(code=None)] * 1000]

    place_type, FakePlace.occupy = (
        FakePlace.occupy,
        lambda self, node: self.jobs.setdefault(node.name, Deaf(self.scripts[node.key], self.log, node.name)),
    )
    try:
        seats, said, _ = fan({"a": [hello(), interrupt]})
    finally:
        FakePlace.occupy = place_type
    assert seats["a"].state == "interrupted" and "did not end in time" in said


def test_worst_of_all_machines() -> None:
    assert [worst(codes) for codes in ([0, 0], [0, 1], [1, 3], [3, 2, 0], [130, 2], [])] == [0, 1, 3, 2, 130, 3]


def test_names_of_folders_are_safe_and_differ() -> None:
    names = safe_names(["n1", "N1", "../../etc", "a b", "report.html", "...", "gpu-01.example.org", "n1"])
    assert names == ["n1", "N1-2", "etc", "a-b", "report.html-2", "node", "gpu-01.example.org", "n1-3"]
