"""Reasons say what happened and what to do."""

import pytest

from frugalbench.run import reasons


def not_found(name):
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__(name)
    return caught.value


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("there_is_none", "pip install there_is_none"),
        ("openvino.there_is_none", r"pip install (-U )?'frugalbench\[openvino\]'"),
        (
            "numpy.there_is_none",
            "module numpy.there_is_none is missing from the installed numpy .*: pip install -U numpy",
        ),
    ],
)
def test_a_missing_package_comes_with_its_command(module, command):
    assert pytest.importorskip("re").search(command + "$", reasons.one_line(not_found(module)))


def test_names_of_modules_become_names_of_packages():
    assert reasons.missing_package("sklearn").endswith("pip install scikit-learn")
    assert reasons.missing_package("pyarrow").endswith("pip install 'frugalbench[report]'")


@pytest.mark.parametrize(
    ("code", "oom_kills", "said"),
    [
        (3, 0, "worker exited with code 3"),
        (-11, 0, "worker killed by SIGSEGV"),
        (-9, 1, "worker killed by SIGKILL, the machine ran out of memory (1 GiB held)"),
        (-9, 0, "worker killed by SIGKILL, by someone else: memory had not run out (1 GiB held)"),
        (-9, None, "worker killed by SIGKILL, probably out of memory (1 GiB held)"),
        (-64, 0, "worker killed by SIGRTMAX"),
        (-50, 0, "worker killed by signal 50"),
    ],
)
def test_an_exit_is_described(code, oom_kills, said):
    assert reasons.describe_exit(code, oom_kills, "1 GiB held") == said


def test_the_last_line_of_a_long_log_is_read_from_its_tail(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as stream:
        stream.truncate(2**33)
        stream.seek(0, 2)
        stream.write("\nthe end: \x1b[2Jü\n\n".encode())
    assert reasons.last_line(log) == "the end: �[2Jü"
    assert reasons.last_line(tmp_path / "none") == ""
    log.write_bytes(b"x" * 9999)
    assert reasons.last_line(log) == "x" * 300


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB", "memory is full"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might", "-c DEFAULT"),
        ("CUDA driver version is insufficient for CUDA runtime version", "too old"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for this GPU"),
        ("CUDA error: GPU is lost", "Xid"),
        ("CUDA error: an illegal memory access was encountered", "context"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "memory is full"),
        ("CUDA error: no CUDA-capable device is detected", "doctor"),
        ("CUDA error: invalid device ordinal", "CUDA_VISIBLE_DEVICES"),
        ("Torch not compiled with CUDA enabled", "wheel"),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted on CUDA",
            "restart",
        ),
        ("CUDA error: uncorrectable ECC error encountered", "ECC"),
    ],
)
def test_what_cuda_says_comes_with_what_to_do(raised, says):
    told = reasons.one_line(RuntimeError(raised))
    assert says in told and "CUDA" in told and "\n" not in told and len(told) < 300


def test_a_missing_driver_is_said():
    raised = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver."
    assert "nvidia-smi" in reasons.one_line(RuntimeError(raised))


def test_other_memory_is_not_the_gpus():
    assert reasons.one_line(RuntimeError("out of memory")) == "RuntimeError: out of memory"
