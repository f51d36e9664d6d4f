"""The ARM paths of the own kernels, cross-compiled and run in an emulator, against those of this processor."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.real
torch = pytest.importorskip("torch")

from frugalbench import native_build  # noqa: E402
from frugalbench.backends import native_moe, native_quant  # noqa: E402
from frugalbench.paths import shipped  # noqa: E402

COMPILER = next(filter(shutil.which, ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12")), None)
EMULATOR = next(filter(shutil.which, ("qemu-aarch64-static", "qemu-aarch64")), None)
if not (COMPILER and EMULATOR and native_build.find_compiler()):
    pytest.skip("needs an aarch64 cross compiler and qemu's user emulation", allow_module_level=True)

DOT = ("-march=armv8.2-a+dotprod",)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Builds (kernel, flags) once each."""
    folder, made = tmp_path_factory.mktemp("arm"), {}

    def build(kernel: str, *flags: str) -> Path:
        path = folder / "-".join((kernel, *flags)).replace("=", "_")
        if path not in made:
            define = ("-DQUANT",) if kernel == "quant" else ()
            source = str(shipped("kernels") / "cpu" / f"{kernel}.cpp")
            driver = str(Path(__file__).with_name("arm_driver.cpp"))
            common = (COMPILER, "-O2", "-std=c++17", "-static", "-pthread", "-o", str(path))
            made[path] = subprocess.run([*common, *flags, *define, source, driver], check=True, capture_output=True)
        return path

    return build


def emulate(path, sizes, *arrays):
    """(name of the path that ran, bytes of the results)."""
    request = np.array([len(sizes), *sizes], np.int64).tobytes() + b"".join(a.tobytes() for a in arrays)
    done = subprocess.run([EMULATOR, "-cpu", "max", str(path)], input=request, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode(), done.stdout


@pytest.mark.parametrize(("flags", "name"), [(DOT, "neon_dot"), ((), "portable")])
@pytest.mark.parametrize("bits", native_quant.BITS)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 40, 300), (5, 33, 129), (9, 70, 256)])
def test_quantised_products_are_those_of_this_processor(program, flags, name, bits, size):
    M, N, K = size
    random = np.random.default_rng(size)
    x, w = (random.standard_normal(shape).astype(np.float32) for shape in ((M, K), (N, K)))
    here = native_quant.kernel()
    packed = here.pack(torch.from_numpy(w), bits)
    wanted = here.layer(packed)(torch.from_numpy(x)).numpy()
    path, found = emulate(program("quant", *flags), (bits, 1, M, N, K), x, w)
    assert path == name
    stored = packed.data.numel()
    assert found[:stored] == packed.data.numpy().tobytes()
    y = np.frombuffer(found[stored:], np.float32).reshape(M, N)
    assert np.abs(y - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("size", [(1, 16, 8, 2, 1), (7, 33, 20, 5, 2), (40, 64, 48, 3, 3)])
def test_experts_and_their_gradients_are_those_of_this_processor(program, size):
    T, D, F, E, K = size
    random = np.random.default_rng(size)
    expert = np.argsort(random.random((T, E)), axis=1)[:, :K].astype(np.int32)
    shapes = ((T, D), (T, K), (E, 2 * F, D), (E, D, F), (T, D))
    x, weight, gate_up, down, grad = (random.standard_normal(s).astype(np.float32) / D**0.5 for s in shapes)
    path, found = emulate(program("moe"), (1, T, D, F, E, K), x, weight, gate_up, down, grad, expert)
    assert path == "neon"
    kernel = native_moe.kernel()
    tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in (x, expert, weight, gate_up, down)]
    y, saved = kernel.forward(*tensors, keep=True)
    grads = kernel.backward(torch.from_numpy(grad), *tensors, saved)
    values = np.frombuffer(found, np.float32)
    wanted = np.concatenate([tensor.numpy().reshape(-1) for tensor in (y, *grads)])
    assert np.abs(values - wanted).max() <= 2e-5 * max(1.0, np.abs(wanted).max())
