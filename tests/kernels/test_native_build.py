"""Building on first use: cached, atomic, and clear when it cannot work."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from frugalbench import native_build
from frugalbench.schema import FrugalbenchError

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir()
    monkeypatch.setattr(native_build, "shipped", lambda folder: tmp_path / folder)
    monkeypatch.setenv("FRUGALBENCH_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "kernels" / "tiny.cpp"
    path.write_text(SOURCE)
    return path


def test_built_once_and_again_when_the_source_changes(kernel):
    first, second = native_build.build("tiny.cpp"), native_build.build("tiny.cpp")
    assert (first.cached, second.cached) == (False, True)
    assert first.path == second.path and first.build_s == second.build_s > 0
    kernel.write_text(SOURCE.replace("42", "43"))
    assert native_build.build("tiny.cpp").path != first.path
    assert not list(first.path.parent.glob("*.tmp"))


@pytest.mark.usefixtures("kernel")
def test_concurrent_builds_compile_once(monkeypatch):
    compiled = []
    compile_really = native_build._compile
    monkeypatch.setattr(native_build, "_compile", lambda *a: (compiled.append(1), compile_really(*a)))
    with ThreadPoolExecutor(4) as pool:
        paths = {built.path for built in pool.map(lambda _: native_build.build("tiny.cpp"), range(4))}
    assert len(paths) == 1 and len(compiled) == 1


def test_a_source_that_does_not_compile(kernel):
    kernel.write_text("this is no C++\n")
    with pytest.raises(FrugalbenchError, match="error"):
        native_build.build("tiny.cpp")
    assert not list((kernel.parents[1] / "cache" / "kernels").glob("*.so"))


@pytest.mark.parametrize("value", ["/no/such/compiler", ""])
def test_no_compiler(kernel, monkeypatch, value):
    monkeypatch.setenv("CXX", value)
    monkeypatch.setenv("PATH", str(kernel.parent))
    with pytest.raises(FrugalbenchError, match=r"no C\+\+ compiler.*CXX"):
        native_build.build("tiny.cpp")


def test_torch_compile_needs_a_compiler_and_headers(monkeypatch, tmp_path):
    """A distribution's Python comes without headers: a plan then skips the arm, with the command that gets them."""
    monkeypatch.setattr(native_build, "find_compiler", lambda: ("c++",))
    monkeypatch.setattr(native_build.sysconfig, "get_path", lambda *_, **__: str(tmp_path))
    assert "apt-get install python3-dev" in native_build.why_no_torch_compile()
    (tmp_path / "Python.h").write_text("")
    assert native_build.why_no_torch_compile() == ""
    monkeypatch.setattr(native_build, "find_compiler", lambda: None)
    assert "apt-get install g++" in native_build.why_no_torch_compile()


def test_an_unwritable_cache(kernel, monkeypatch):
    monkeypatch.setenv("FRUGALBENCH_CACHE_DIR", str(kernel))  # a file
    with pytest.raises(FrugalbenchError, match="FRUGALBENCH_CACHE_DIR"):
        native_build.build("tiny.cpp")


def test_building_needs_no_numpy_nor_torch():
    code = "import sys, frugalbench.native_build; sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
