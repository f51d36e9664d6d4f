"""Names of lm-evaluation-harness's tasks: an arm of their own, permission for templates, one line for what is wrong."""

import json

import pytest

from frugalbench import config
from frugalbench.schema import FrugalbenchError
from frugalbench.specs import lm_eval_tasks, tasks
from specs.test_quantized_model import Machine, cases, expand


def test_a_task_of_the_library_has_an_arm_of_its_own():
    found = expand(models=["tiny-lm"], variants=["rtn-int8"], tasks=["python-reference", "lm_eval:arc_easy"])
    assert [[case.regime for case in item.arms[0].cases] for item in found.comparisons] == [
        ["python-reference"], ["lm_eval-arc_easy"],
    ]  # fmt: skip
    assert len({item.arms[0].id for item in found.comparisons}) == len({item.id for item in found.comparisons}) == 2
    assert cases(found)[1].params["task"] == "lm_eval:arc_easy"


def test_without_the_library_its_tasks_are_skipped_and_the_others_stay():
    machine = Machine()
    machine.absent = ("lm-eval",)
    found = expand(machine, models=["tiny-lm"], variants=["rtn-int8"], tasks=["python-reference", "lm_eval:arc_easy"])
    assert [skip.reason for skip in found.skipped] == ["lm-eval is not installed: pip install 'frugalbench[lmeval]'"]
    assert [case.regime for case in cases(found)] == ["python-reference"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lm_eval:", "write lm_eval:NAME or lm_eval:FILE.yaml"),
        ("lm_eval:../up", "write lm_eval:NAME or lm_eval:FILE.yaml"),
        ("lm_eval:none.yaml", "none.yaml: no such task file"),
    ],
)
def test_what_is_no_name_is_refused_in_one_line(name, why):
    with pytest.raises(FrugalbenchError, match=why) as problem:
        tasks.load(name)
    assert "\n" not in str(problem.value)


def test_a_file_of_ones_own_asks_for_permission(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    chosen = ["lm_eval:arc_easy", f"lm_eval:{tmp_path}/mine.yaml"]
    text = f'name = "c"\n[[workload]]\nname = "quantized_model"\ntasks = {json.dumps(chosen)}\n'
    (tmp_path / "c.toml").write_text(text)
    found = config.load_config(str(tmp_path / "c.toml"))
    assert config.runs_code(found) == [f"templates of {tmp_path}/mine.yaml"]
    with pytest.raises(FrugalbenchError, match="add --allow-code"):
        config.require_permission(found, False)


def test_a_file_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lm_eval_tasks.absolute("lm_eval:mine.yaml") == f"lm_eval:{tmp_path}/mine.yaml"
    assert lm_eval_tasks.absolute("lm_eval:arc_easy") == "lm_eval:arc_easy"
