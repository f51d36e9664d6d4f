"""What is refused before a worker starts, each with what to do, and what a run must say of its surroundings."""

import sys
from dataclasses import replace

import pytest

from frugalbench.meters.gpu_ready import TorchBuild, notes, obstacle, torch_build, wheel_for
from frugalbench.meters.gpu_state import Board
from nvml_driver import TRACES, in_child

H100 = Board(name="H100", driver="580.159", cuda_version="13.0", compute_mode="default", mig=False, mps=False)
CUDA_13, CUDA_12, CPU_ONLY = (
    TorchBuild("2.11.0+cu130", "13.0"),
    TorchBuild("2.11.0+cu128", "12.8"),
    TorchBuild("2.13.0+cpu", None),
)
INDEX = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl"


def found(board=H100, build=CUDA_13, together=8, **environ):
    return obstacle([] if board is None else [board], environ, build, together)


@pytest.mark.parametrize(
    ("board", "build"),
    [
        (H100, CUDA_13),
        (H100, CUDA_12),
        (H100, None),
        (replace(H100, cuda_version="12.2", driver="535.1"), CUDA_12),
        (replace(H100, cuda_version=None), CUDA_13),
        (replace(H100, compute_mode="exclusive process", mps=True), CUDA_13),
        (replace(H100, compute_mode=None, mig=None, mps=None), CUDA_13),
        (None, CUDA_13),
    ],
)
def test_nothing_known_against_it(board, build):
    assert found(board, build) is None


@pytest.mark.parametrize("visible", ["", "-1", "GPU-of-another-machine"])
def test_hidden_boards(visible):
    assert f"CUDA_VISIBLE_DEVICES='{visible}' hides every GPU; unset it" in found(None, CUDA_VISIBLE_DEVICES=visible)


def test_a_torch_without_cuda_gets_the_wheel_that_this_driver_serves():
    assert found(build=CPU_ONLY) == f"torch 2.13.0+cpu was built without CUDA; {INDEX}/cu130"
    assert found(replace(H100, cuda_version="12.6"), CPU_ONLY).endswith(f"{INDEX}/cu126")


@pytest.mark.parametrize(("other", "maker"), [("hip", "AMD"), ("xpu", "Intel")])
def test_a_torch_for_another_makers_devices(other, maker):
    told = found(build=TorchBuild("2.11", None, other))
    assert told == f"torch 2.11 was built without CUDA (for {maker}'s devices); {INDEX}/cu130"


def test_a_driver_too_old_for_torch():
    old = replace(H100, driver="550.90", cuda_version="12.4")
    assert found(old) == (
        "driver 550.90 serves CUDA 12.4, too old for torch 2.11.0+cu130 (CUDA 13.0); "
        f"update the driver, or {INDEX}/cu126"
    )
    assert "update the driver first" in found(replace(H100, driver="390.1", cuda_version="9.1"))


@pytest.mark.parametrize(
    ("driver", "wheel"),
    [("13.0", "cu130"), ("13.4", "cu130"), ("12.9", "cu128"), ("12.6", "cu126"), ("12.1", "cu126"), ("11.4", "cu118"),
     ("14.0", "cu130"), ("10.2", None), (None, "cu130")],
)  # fmt: skip
def test_wheels(driver, wheel):
    assert wheel_for(driver) == wheel


@pytest.mark.parametrize("mode", ["exclusive process", "exclusive thread"])
def test_exclusive_boards_hold_one_worker(mode):
    board = replace(H100, compute_mode=mode)
    assert "up to 8 hold it at once" in found(board) and "sudo nvidia-smi -c DEFAULT" in found(board)
    assert found(board, together=1) is None
    assert "another process holds it" in found(replace(board, foreign_processes=1), together=1)


def test_a_prohibited_board():
    assert "prohibited" in found(replace(H100, compute_mode="prohibited"), together=1)


def test_other_processes_and_slices_are_said_and_stay_with_the_run():
    assert notes([H100]) == notes([]) == ()
    busy, slice_ = notes([replace(H100, foreign_processes=2, mig=True)])
    assert busy == "H100 was not ours alone: 2 other processes computed on it, in these times and joules too"
    assert "MIG" in slice_ and "joules are not known" in slice_


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", CUDA_13),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", CPU_ONLY),
        ("__version__ = '2.9'\ncuda = None\nhip = '6.4'\n", TorchBuild("2.9", None, "hip")),
        ("nothing of the kind", None),
    ],
)
def test_the_build_is_read_from_torchs_own_file(tmp_path, text, expected):
    (tmp_path / "version.py").write_text(text)
    assert torch_build(tmp_path) == expected


def test_no_file_no_build_and_nothing_is_imported(tmp_path):
    imported = "torch" in sys.modules
    assert torch_build(tmp_path / "nowhere") is None
    torch_build()
    assert ("torch" in sys.modules) == imported


COMMANDS = """
import contextlib, io
from frugalbench import machine
from frugalbench.cli import main as cli
from frugalbench.meters import gpu_ready, gpu_state
from frugalbench.meters.gpu_ready import TorchBuild
nvml.DEVICE_NODES = ("/dev/null",)
said = []
def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    gpu_state.boards.cache_clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    said.append([code, out.getvalue(), err.getvalue()])
def build(version, cuda):
    gpu_ready.torch_build = lambda folder=None: TorchBuild(version, cuda)
build("2.11.0+cu130", "13.0")
facts = "uuid=GPU-8932f937-;cuda=%s;driver=%s;processes=%s;compute_mode=%s;persistence=0;power_limit_mw=500000"
def set_facts(cuda="13000", driver="580.159", processes="", mode="0"):
    os.environ["FAKE_NVML_FACTS"] = facts % (cuda, driver, processes, mode)
PLAN = ("plan", "selftest", "--device", "cuda")
set_facts(); ask(*PLAN)
build("2.13.0+cpu", None); ask(*PLAN); ask("run", "selftest", "--device", "cuda", "--out", "never")
build("2.11", "13.0")
set_facts(cuda="12040", driver="550.90"); ask(*PLAN)
set_facts(mode="3"); ask(*PLAN)
set_facts(); os.environ["CUDA_VISIBLE_DEVICES"] = ""; ask(*PLAN)
os.environ["CUDA_VISIBLE_DEVICES"] = "GPU-8932"; ask(*PLAN); del os.environ["CUDA_VISIBLE_DEVICES"]
set_facts(processes="7:1000,9:2000"); ask(*PLAN); ask("doctor")
said.append(Path("never").exists())
print(json.dumps(said))"""
SITUATIONS = (
    COMMANDS[: COMMANDS.index("set_facts(); ask(*PLAN)")]
    + """
LOST = NOW.with_name("lost.csv")
LOST.write_text("time_s,energy_mj,power_mw,instant_mw,average_mw,reasons,mig,sm_mhz,memory_mhz,temperature_c\\n"
                "0.0,lost,lost,lost,lost,lost,lost,lost,lost,lost\\n")
SLICE = LOST.with_name("slice.csv")
SLICE.write_text("time_s,energy_mj,power_mw,instant_mw,average_mw,reasons,mig\\n0.0,1000,80000,80000,80000,0,1\\n")
MIG = "MIG-9c1ff1a8-6a9c-5d2b-8a6e-3f6d9b1f7c11"
def situation(name, commands, **environ):
    set_facts()
    before = dict(os.environ)
    facts = environ.pop("facts", "")
    os.environ["FAKE_NVML_FACTS"] += facts and ";" + facts
    os.environ.update(environ)
    for words in commands:
        ask(*words)
        said[-1] = [name, *said[-1]]
    os.environ.clear(); os.environ.update(before)
RUN, LOOK, THINK = ("run", "gpu", "--out", "never"), ("doctor",), ("plan", "gpu", "--only", "machine_peaks*")
situation("driver not loaded", (RUN, LOOK), FAKE_NVML_NOT_LOADED="1", CUDA_VISIBLE_DEVICES="0")
situation("no board", (RUN,), FAKE_NVML_BOARDS="0")
situation("lost", (RUN, LOOK), FAKE_NVML_TRACE=str(LOST))
situation("hidden", (RUN, LOOK), CUDA_VISIBLE_DEVICES="")
situation("out of range", (RUN,), CUDA_VISIBLE_DEVICES="3")
situation("unknown uuid", (RUN,), CUDA_VISIBLE_DEVICES="GPU-00000000-1111")
situation("unknown slice", (RUN,), CUDA_VISIBLE_DEVICES="MIG-00000000-1111")
situation("too old", (RUN, LOOK), facts="cuda=12040;driver=550.90")
situation("exclusive", (RUN, LOOK), facts="compute_mode=3")
situation("prohibited", (RUN,), facts="compute_mode=2")
slices = {"FAKE_NVML_TRACE": str(SLICE), "facts": "mig_uuid=" + MIG}
situation("slice", (THINK, LOOK), CUDA_VISIBLE_DEVICES=MIG, **slices)
situation("old slice", (THINK,), CUDA_VISIBLE_DEVICES="MIG-GPU-8932f937-0/1/0", **slices)
situation("unsupported", (THINK, LOOK), facts="most_sm_mhz=none;power_limit_mw=none;compute_mode=none;persistence=none;"
          "processes=none;memory_bytes=none;most_memory_mhz=denied;default_limit_mw=-")
build("2.13.0+cpu", None); situation("no CUDA", (RUN, LOOK))
gpu_ready.torch_build = lambda folder=None: TorchBuild("2.13.0+rocm7", None, "hip"); situation("other maker", (RUN,))
nvml.DEVICE_NODES = (); situation("no driver", (RUN, LOOK))
print(json.dumps([said, Path("never").exists()]))"""
)
REFUSED = {
    "driver not loaded": "neither NVML (Driver Not Loaded) nor CUDA answers: `nvidia-smi` must work first",
    "no board": "the driver finds no board",
    "lost": "GPU 0 is lost; see `dmesg` for Xid",
    "hidden": "CUDA_VISIBLE_DEVICES='' hides every GPU",
    "out of range": "CUDA_VISIBLE_DEVICES='3' hides every GPU",
    "unknown uuid": "name one that `nvidia-smi -L` lists",
    "unknown slice": "name one that `nvidia-smi -L` lists",
    "too old": "driver 550.90 serves CUDA 12.4, too old for torch",
    "exclusive": "compute mode 'exclusive process'",
    "prohibited": "compute mode 'prohibited'",
    "no CUDA": "built without CUDA; pip install --force-reinstall torch --index-url",
    "other maker": "built without CUDA (for AMD's devices)",
    "no driver": "this machine has no NVIDIA device",
}
"""Situation to what ``frugalbench run gpu`` says of it."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Exit code, output and errors of commands on a machine with the fake driver."""
    folder = tmp_path_factory.mktemp("commands")
    environ = {"FRUGALBENCH_STATE_DIR": str(folder / "state")}
    return in_child(COMMANDS, folder / "now", TRACES / "nvml_h100.csv", **environ)


def test_commands_refuse_in_a_line_before_anything_is_made(commands):
    fine, cpu_build, run, old, exclusive, hidden, by_uuid, busy, _, made = commands
    assert fine[0] == by_uuid[0] == busy[0] == 0 and not fine[2] and not made
    expected = ("built without CUDA", "built without CUDA", "too old for torch", "exclusive process", "hides every GPU")
    for (code, out, err), says in zip((cpu_build, run, old, exclusive, hidden), expected, strict=True):
        assert code == 3 and not out and says in err and err.count("\n") <= 2 and "Traceback" not in err
    assert "2 other processes computed on it" in busy[2]


@pytest.fixture(scope="module")
def situations(tmp_path_factory):
    """What commands did in each situation: name, words of the command in order."""
    folder = tmp_path_factory.mktemp("situations")
    environ = {"FRUGALBENCH_STATE_DIR": str(folder / "state")}
    said, made = in_child(SITUATIONS, folder / "now", TRACES / "nvml_h100.csv", **environ)
    assert not made
    return said


def test_run_gpu_refuses_in_a_line(situations):
    runs = {name: rest for name, *rest in reversed(situations)}  # the first command of each situation
    assert REFUSED.keys() <= runs.keys()
    for name, says in REFUSED.items():
        code, out, err = runs[name]
        assert code == 3 and not out and says in err, (name, code, err)
        assert err.count("\n") <= 2 and "Traceback" not in err, err


def test_doctor_says_the_same_and_goes_on(situations):
    looks = {name: rest for name, *rest in situations if "Self-test" in rest[1] or "self-tested" in rest[1]}
    told = set(REFUSED) & looks.keys()
    assert told == {"driver not loaded", "lost", "hidden", "too old", "exclusive", "no CUDA", "no driver"}
    for name in told - {"no driver"}:
        code, out, err = looks[name]
        assert code == 0 and "no  a run on the GPU:" in out and REFUSED[name] in out and not err, (name, out)
    assert "--device cuda will be refused" in looks["no driver"][1]


def test_slices_and_boards_that_answer_little_are_planned_with_what_is_known(situations):
    plans = {name: rest for name, *rest in reversed(situations)}
    for name in ("slice", "old slice", "unsupported"):
        assert plans[name][0] == 0 and "machine_peaks" in plans[name][1], (name, plans[name])
    assert "a slice was measured, and its joules are not known" in plans["slice"][2]
    _, slice_, _ = next(rest for name, *rest in situations if name == "slice" and "self-tested" in rest[1])
    assert "on: CUDA gets a slice" in slice_ and "the board's energy is not the instance's" in slice_
    _, little, _ = next(rest for name, *rest in situations if name == "unsupported" and "self-tested" in rest[1])
    assert "GPU 0 clocks: the driver does not tell them" in little
    assert "GPU 0 power cap: the driver does not tell it" in little and "compute mode" not in little


def test_doctor_tells_the_board_and_the_commands_that_the_user_may_run(commands):
    code, out, _ = commands[8]
    assert code == 0
    for line in (
        "yes a run on the GPU: nothing known is against it",
        "driver 580.159",
        "GPU 0 clocks held still: up to 1.98 GHz",
        "sudo nvidia-smi -i 0 -lgc 1380,1380  (undo: -rgc)",
        "GPU 0 power cap: 500 W, lowered from 700 W",
        "sudo nvidia-smi -i 0 -pl 700",
        "sudo nvidia-smi -i 0 -pm 1",
        "2 compute on it now",
        "nvidia-smi -i 0 --query-compute-apps=pid,used_memory --format=csv",
    ):
        assert line in out, (line, out)
