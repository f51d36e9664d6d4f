"""``run --on`` as a user meets it before anything is started: what is refused, and what is missing."""

import sys

import pytest

from frugalbench.cli import on
from frugalbench.config import load_config


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "kubernetes"), "--on kubernetes: no such place; one of ray, ray://HOST:PORT, slurm"),
        (("--on", "ray", "--resume"), "--resume: not with --on"),
        (("--on", "ray", "--nodes", "0"), "--nodes: must be at least 1"),
        (("--on", "ray", "--wait", "-1"), "--wait: must be seconds"),
        (("--on", "ray", "--partition", "gpu"), "--partition: means something to --on slurm only"),
        (("--on", "ray", "--on-option", "a=b"), "--on-option: means something to --on slurm only"),
        (("--nodes", "2"), "--nodes: only together with --on"),
        (("--on-option", "a=b"), "--on-option: only together with --on"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, tmp_path, words, told) -> None:
    code, errors = call(tmp_path, *words)
    assert code == 2 and told in errors and len(errors.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("place", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_the_command_that_gets_it(call, tmp_path, monkeypatch, place, package) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, errors = call(tmp_path, "--on", place)
    assert code == 2 and f"needs {package}, which is not installed" in errors
    assert f"pip install 'frugalbench[{place}]'" in errors


def test_a_folder_that_holds_something_is_refused(call, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    code, errors = call(tmp_path, "--on", "ray")
    assert code == 2 and "is not an empty folder" in errors


def test_a_config_travels_whole_and_its_files_are_found_from_anywhere(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n[[workload]]\nname = "machine_peaks"\n')
    monkeypatch.chdir(tmp_path)
    assert on._settled(load_config("mine.toml")).path == str(tmp_path / "mine.toml")
    assert on._settled(load_config("smoke")).path == "configs/smoke.toml"
