"""An AMD GPU as the kernel describes it: planned with its last-level cache, or refused in a line before any worker.
Nothing here has run on hardware; the folders are made up in the kernel's form."""

from types import SimpleNamespace

import pytest

from frugalbench.machine import Machine
from frugalbench.meters import amd, gpu_ready, gpu_state, kfd, nvml
from frugalbench.meters.gpu_ready import TorchBuild
from frugalbench.workloads import device

MI300X = {"gfx_target_version": 90402, "simd_count": 1216, "simd_per_cu": 4, "max_engine_clk_fcompute": 2100}
MI210 = {"gfx_target_version": 90010, "simd_count": 416, "simd_per_cu": 4, "max_engine_clk_fcompute": 1700}
RX7900 = {"gfx_target_version": 110000, "simd_count": 192, "simd_per_cu": 2, "max_engine_clk_fcompute": 2500}
KIB, GIB = 2**10, 2**30


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Adds a node to a made-up topology: its properties, and caches by level with the sizes of their instances."""
    nodes, dev = tmp_path / "nodes", tmp_path / "kfd"
    (nodes / "0").mkdir(parents=True)
    (nodes / "0/properties").write_text("cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n")
    dev.touch()
    monkeypatch.setattr(kfd, "NODES", nodes)
    monkeypatch.setattr(kfd, "DEVICE", dev)
    monkeypatch.setattr(nvml, "DEVICE_NODES", ())
    monkeypatch.setattr(gpu_ready, "torch_build", lambda _=None: TorchBuild("2.13.0+rocm7.0", None, "hip"))
    for name in kfd.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    gpu_state.boards.cache_clear()

    def add(properties, memory_bytes=64 * GIB, **caches_kib):
        folder = nodes / str(len(list(nodes.iterdir())))
        _write(folder, properties | {"unique_id": len(list(nodes.iterdir()))})
        _write(folder / "mem_banks/0", {"heap_type": 1, "size_in_bytes": memory_bytes})
        entries = [(int(level[1]), size) for level, sizes in caches_kib.items() for size in sizes]
        for number, (level, size) in enumerate(entries):
            _write(folder / f"caches/{number}", {"level": level, "size": size})

    yield add
    gpu_state.boards.cache_clear()


def _write(folder, properties):
    folder.mkdir(parents=True)
    (folder / "properties").write_text("".join(f"{name} {value}\n" for name, value in properties.items()))


def test_a_board_with_its_last_level_cache(node):
    node(MI300X, 192 * GIB, L1=[32] * 304, L2=[4096] * 8, L3=[262144])
    (board,) = gpu_state.boards_now()
    assert (board.name, board.compute_capability, board.multiprocessors) == ("AMD gfx942", "gfx942", 304)
    assert (board.l2_bytes, board.memory_bytes, board.most_clock_hz) == (256 * 2**20, 192 * GIB, 2.1e9)
    machine = Machine.detect()
    assert machine.has_cuda() and machine.gpus == ("AMD gfx942",) and machine.gpu_l2_bytes == 256 * 2**20


@pytest.mark.parametrize(
    ("properties", "caches", "size_bytes"),
    [
        (MI210, {"L1": [16] * 104, "L2": [8192]}, 8192 * KIB),  # has no Infinity Cache
        (RX7900, {"L2": [6144], "L3": [98304]}, 98304 * KIB),
        (RX7900, {"L2": [6144]}, None),  # has one, of which this kernel does not know
        (MI300X, {"L2": [4096] * 8}, None),
        (MI210, {}, None),
    ],
)
def test_no_cache_is_taken_for_the_last_that_may_not_be(node, properties, caches, size_bytes):
    node(properties, **caches)
    assert gpu_state.boards_now()[0].l2_bytes == size_bytes


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ["gfx942", "gfx90a", "gfx1100"]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, ["gfx1100", "gfx942"]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "0"}, ["gfx90a"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["gfx90a"]),
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{2:016x}"}, ["gfx90a"]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
        ({"HIP_VISIBLE_DEVICES": "7"}, []),
    ],
)
def test_variables_choose(node, environ, names):
    for properties in (MI300X, MI210, RX7900):
        node(properties, L3=[1024])
    assert [gpu.isa for gpu in kfd.gpus(environ)] == names
    if "GPU-" not in "".join(environ.values()):  # amdsmi's handles have no such names
        assert amd.visible(["gfx942", "gfx90a", "gfx1100"], environ) == names


def test_what_is_known_is_planned(call, node):
    node(MI300X, 192 * GIB, L2=[4096] * 8, L3=[262144])
    answer = call("plan", "gpu", "--only", "*moe_ffn/qwen3*")
    assert answer.code == 0 and "dense-equal-total" in answer.out and not answer.err
    looked = call("doctor").out
    assert "yes a run on the GPU" in looked and "AMD gfx942, compute capability gfx942, 192 GiB" in looked
    assert "nvidia-smi -i" not in looked


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("situation", "says"),
    [
        ("cache", "does not tell the size of the Infinity Cache of AMD gfx1100"),
        ("rights", "join the groups render and video"),
        ("hidden", "HIP_VISIBLE_DEVICES hides every AMD GPU"),
        ("empty", "the kernel lists no GPU"),
        ("torch", "torch 2.13.0 was not built for ROCm"),
    ],
)
def test_what_cannot_run_is_refused_in_a_line(call, node, monkeypatch, verb, situation, says):
    if situation != "empty":
        node(RX7900, L2=[6144], **({} if situation == "cache" else {"L3": [98304]}))
    if situation == "rights":
        monkeypatch.setattr(kfd.os, "access", lambda *_: False)
    if situation == "hidden":
        monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    if situation == "torch":
        monkeypatch.setattr(gpu_ready, "torch_build", lambda _=None: TorchBuild("2.13.0", "13.0"))
    assert says in call(verb, "gpu").is_problem(3).err


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_an_xpu_is_refused_in_a_line(call, verb):
    assert "torch does not tell how many" in call(verb, "gpu", "--device", "xpu").is_problem(3).err


@pytest.mark.parametrize(("told", "known", "size"), [(4, 256, 256), (8, None, None), (None, 64, 64), (300, 256, 300)])
def test_a_worker_takes_the_larger_of_what_torch_and_the_kernel_tell(monkeypatch, told, known, size):
    cuda = SimpleNamespace(
        current_device=lambda: 0, get_device_properties=lambda _: SimpleNamespace(L2_cache_size=told or 0)
    )
    made = device.Cuda.__new__(device.Cuda)
    made._torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip="7.0"))
    monkeypatch.setattr(device, "boards", lambda: (gpu_state.Board(name="AMD", l2_bytes=known),))
    assert made.cache_bytes() == size
    made._torch.version.hip = None
    assert made.cache_bytes() == told
