"""Tasks of lm-evaluation-harness on real networks, offline: paired bits, the library's judgement, faults in a line."""

import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from frugalbench.run import protocol  # noqa: E402
from frugalbench.workloads.base import NoPath  # noqa: E402
from frugalbench.workloads.layers import lm_eval_requests  # noqa: E402
from frugalbench.workloads.layers.answers import Allowance  # noqa: E402
from workloads.test_quantized_model import arm_of, cache, saved, session, verified  # noqa: E402, F401

pytestmark = pytest.mark.real
DOCUMENTS = 10


@pytest.fixture(scope="module")
def task_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    lines = [{"question": f"the red cat {n}", "choices": ["sat", "mat on"], "gold": n % 2} for n in range(DOCUMENTS)]
    (folder / "cats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "cats.yaml").write_text(
        f"""task: cats
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/cats.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - metric: acc
"""
    )
    return f"lm_eval:{folder}/cats.yaml"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    from datasets import config

    lm_eval_requests.asked.cache_clear()
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)


class Uniform:
    """Two tokens to a character; every token is as likely as any other, but 'a' twice as likely."""

    device, vocabulary = "cpu", 128

    def encode(self, texts):
        return [list(text.encode()) for text in texts]

    def logits(self, ids):
        logits = torch.zeros((*ids.shape, self.vocabulary))
        logits[..., ord("a")] = math.log(2)
        return logits


def test_likelihoods_are_sums_over_the_continuation_only(task_file):
    asked = lm_eval_requests.asked(task_file, 0)
    assert asked.pairs[0] == (("the red cat 0", " sat"), ("the red cat 0", " mat on"))
    pairs = [lm_eval_requests._tokens(Uniform(), *pair, 64) for pair in asked.pairs[0]]
    found = lm_eval_requests._likelihoods(Uniform(), pairs, 1, Allowance(60.0))
    share = math.log(1 / 129)
    assert [total for total, _ in found] == pytest.approx([4 * share + math.log(2), 7 * share + math.log(2)])
    assert not any(greedy for _, greedy in found)
    assert asked.answered(Uniform(), 4, 64, Allowance(60.0)).correct.tolist() == [n % 2 == 0 for n in range(DOCUMENTS)]


def test_a_scheme_answers_a_local_task(task_file, tmp_path, cache):  # noqa: F811
    arm = arm_of("rtn-int8", tasks=[task_file], items=0)
    made = session(arm, tmp_path, cache)
    assert made.reply.problems == {} and made.reply.capped == {}
    (name,) = (case.id for case in arm.cases)
    assert verified(made)[name].verification.passed
    details = made.reply.details[name]
    assert details["items"] == DOCUMENTS and details["task"]["digest"] == lm_eval_requests.asked(task_file, 0).digest
    again = session(arm, tmp_path, cache, replicate=2).reply.details[name]
    assert again["repeated"] == again["same"] == 2


def test_a_model_of_the_users_answers_a_local_task(task_file, tmp_path, cache):  # noqa: F811
    folder = saved(tmp_path / "m", "llama")
    scratch = tmp_path / "s"
    scratch.mkdir()
    made = session(arm_of("gptq-int4", str(folder), tasks=[task_file], items=4), scratch, cache)
    (details,) = made.reply.details.values()
    assert made.reply.problems == {} and details["items"] == 4


def test_a_request_longer_than_the_window_is_told(task_file):
    asked = lm_eval_requests.asked(task_file, 0)
    with pytest.raises(RuntimeError, match="more than 'seq' = 8 allows; raise it"):
        asked.answered(Uniform(), 4, 8, Allowance(60.0))


def test_data_that_cannot_be_had_here_is_skipped_in_one_line(tmp_path, cache, monkeypatch):  # noqa: F811
    made = session(arm_of("rtn-int8", tasks=["lm_eval:arc_easy"]), tmp_path, cache)
    assert isinstance(made.reply, protocol.Problem) and made.reply.no_path
    assert "lm_eval:arc_easy: the task or its data cannot be loaded here" in made.reply.reason
    assert "\n" not in made.reply.reason
    monkeypatch.setattr(lm_eval_requests, "asked", None)
    again = session(arm_of("rtn-int4", tasks=["lm_eval:arc_easy"]), tmp_path, cache).reply
    assert again.no_path and again.reason == made.reply.reason


def test_a_task_that_generates_is_refused(task_file, tmp_path):
    path = tmp_path / "cats.yaml"
    text = (lm_eval_requests.Path(task_file.removeprefix("lm_eval:"))).read_text()
    text = text.replace("multiple_choice", "generate_until").replace('doc_to_choice: "{{choices}}"\n', "")
    path.write_text(text.replace("metric: acc", "metric: exact_match"))
    with pytest.raises(RuntimeError, match="only tasks of multiple choice can be paired") as problem:
        lm_eval_requests.asked(f"lm_eval:{path}", 0)
    assert not isinstance(problem.value, NoPath)
