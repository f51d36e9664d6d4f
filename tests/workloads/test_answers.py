"""From embeddings and logits to one bit per item: probes, rankings, windows, clusters, the cap."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from frugalbench.analysis import noninferiority  # noqa: E402
from frugalbench.specs.tasks import Example, Split, Task  # noqa: E402
from frugalbench.workloads.layers import answer_record, answers, running_text  # noqa: E402
from frugalbench.workloads.layers.whole_model import Network  # noqa: E402

TASK = Task(
    name="t", kind="classify", says="s", source="s", licence="l", items="x.jsonl", labels=["a", "b", "c"], candidates=4
)  # fmt: skip


class Letters(torch.nn.Module):
    """Embeds a text by how often it has each of four letters."""

    def forward(self, ids, mask):
        counts = torch.nn.functional.one_hot(ids, 5).float() * mask[..., None]
        return None, torch.nn.functional.normalize(counts.sum(1)[:, 1:] + 1e-3, dim=-1)


def letters(text):
    return [1 + "abcd".index(letter) for letter in text]


def encoder():
    return Network(Letters(), "encoder", lambda texts: [letters(t) for t in texts], 5, "cpu", "digest")


def forever():
    return answers.Allowance(float("inf"))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("abcd", min_size=1, max_size=9), min_size=1, max_size=20), st.integers(1, 7))
def test_embeddings_do_not_depend_on_batches(texts, size):
    together = answers.embeddings(encoder(), texts, size, forever())
    for number, text in enumerate(texts):
        alone = answers.embeddings(encoder(), [text], 1, forever())[0]
        assert together[number] == pytest.approx(alone, abs=1e-6)


def test_one_batch_in_so_many_is_answered_again():
    texts = ["a" * (number + 1) for number in range(16)]
    some = answers.embeddings(encoder(), texts, 2, forever(), every=4)
    assert np.flatnonzero(~np.isnan(some).any(axis=1)).tolist() == [0, 1, 8, 9]


def test_a_text_that_the_tokenizer_makes_nothing_of_is_told():
    with pytest.raises(RuntimeError, match="makes nothing of"):
        answers.embeddings(encoder(), ["a", ""], 2, forever())


def test_answers_that_are_not_numbers_are_refused():
    network = encoder()
    network.module.forward = lambda ids, _mask: (None, torch.full((len(ids), 4), float("nan")))
    with pytest.raises(RuntimeError, match="not finite"):
        answers.embeddings(network, ["a"], 1, forever())


@pytest.mark.parametrize(("spent_s", "asked"), [(30.0, 1), (5.0, 10)])
def test_a_hopeless_scheme_is_stopped_once_an_eighth_of_its_time_is_spent(spent_s, asked):
    calls = []
    network = encoder()
    network.module.forward = lambda ids, _mask: (calls.append(1), torch.ones(len(ids), 4))
    allowance = answers.Allowance(100.0)
    allowance.begin_s -= spent_s
    if asked == 1:
        with pytest.raises(answers.TooSlow, match="about 300 s, more than the cap of 100 s"):
            answers.embeddings(network, ["a"] * 10, 1, allowance)
    else:
        answers.embeddings(network, ["a"] * 10, 1, allowance)
    assert len(calls) == asked


def data(rng, count):
    classes = rng.integers(0, 3, count)
    return np.eye(3)[classes] + 0.3 * rng.standard_normal((count, 3)), classes


def test_the_probe_is_the_optimum_whatever_it_starts_from():
    rng = np.random.default_rng(0)
    x, y = data(rng, 300)
    probe = answers.fit_probe(x, y, 3)
    assert (probe.choose(x) == y).mean() > 0.9
    logits = x @ probe.weights.T + probe.bias
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slope = (chance - np.eye(3)[y]).T @ x / 300 + answers._PROBE_PENALTY / 300 * probe.weights
    assert np.abs(slope).max() < 1e-4


def test_the_probe_is_fitted_once(tmp_path):
    train = tuple(Example(text=text, label=label) for text, label in (("aab", "a"), ("bbc", "b"), ("ccd", "c")) * 5)
    split = Split(train, train)
    asked = []

    def network():
        asked.append(1)
        return encoder()

    first, second = (answers.probe_of(network, ("digest",), TASK, split, 4, tmp_path) for _ in range(2))
    assert len(asked) == 1
    assert np.array_equal(first.weights, second.weights)
    embedding = dict(
        zip(["aab", "bbc", "ccd"], answers.embeddings(encoder(), ["aab", "bbc", "ccd"], 4, forever()), strict=True)
    )
    assert answers.classified(TASK, split, first, embedding).correct.all()
    answers.probe_of(network, ("another",), TASK, split, 4, tmp_path)
    assert len(asked) == 2


def test_a_match_must_be_the_nearest_of_its_block():
    axes = {f"q{n}": np.eye(8)[n] for n in range(8)} | {f"m{n}": np.eye(8)[n] for n in range(8)}
    axes["m2"] = np.eye(8)[3]
    split = Split((), tuple(Example(text=f"q{n}", match=f"m{n}", group=str(n)) for n in range(8)))
    correct = answers.ranked(TASK, split, axes).correct
    assert correct.tolist() == [True, True, False, False, True, True, True, True]


def test_nothing_but_equal_distances_is_no_right_answer():
    same = dict.fromkeys(["q", "m"], np.ones(3))
    split = Split((), tuple(Example(text="q", match="m", group=str(n)) for n in range(4)))
    assert not answers.ranked(TASK, split, same).correct.any()


@given(st.integers(2, 200), st.integers(2, 50))
def test_blocks_are_full_and_hold_every_item(items, size):
    found = list(answers.blocks(items, size))
    assert {n for block in found for n in range(block.start, block.stop)} == set(range(items))
    assert all(block.stop - block.start == min(size, items) for block in found)


def test_groups_are_clusters():
    items = [Example(text="t", group=group) for group in "aabccc"]
    assert answers.group_starts(items).tolist() == [True, False, True, True, False, False]


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_what_is_packed_is_what_the_verdict_reads(correct):
    text = answer_record.packed(np.array(correct))
    assert noninferiority.bits(text, len(correct)) == tuple(map(int, correct))
    assert len(base64.b64decode(text)) == -(-len(correct) // 8)


def test_answers_survive_the_disk():
    found = answers.Answers(np.array([True, False]), np.array([True, True]), np.array([0.5, 1.5]), 0.1, 0.9)
    again = answers.Answers.of(found.arrays())
    assert np.array_equal(found.loss, again.loss) and (again.divergence, again.agreement) == (0.1, 0.9)
    assert answers.Answers.of(answers.Answers(found.correct, found.starts).arrays()).loss is None


# Running text


class Fixed(torch.nn.Module):
    """Logits that depend on the token alone."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def forward(self, ids):
        return self.table[ids]


def model(table):
    return Network(Fixed(table), "lm", lambda texts: [[int(c) for c in text] for text in texts], 4, "cpu", "d")


def story(text):
    return Split((), (Example(text=text),))


def test_windows_follow_each_other_and_share_one_token():
    found = running_text.windows(model(np.eye(4)), story("012301230123"), 5, 0, 0)
    assert found.tolist() == [[0, 1, 2, 3, 0, 1], [1, 2, 3, 0, 1, 2]]
    assert len(running_text.windows(model(np.eye(4)), story("0123" * 10), 3, 9, 0)) == 3
    assert len(running_text.windows(model(np.eye(4)), story("0123" * 10), 3, 0, 2)) == 2
    with pytest.raises(RuntimeError, match="has 7 tokens, fewer than two windows of 4 need"):
        running_text.windows(model(np.eye(4)), story("0123012"), 4, 0, 0)


def test_loss_divergence_and_agreement_against_plain_sums():
    rng = np.random.default_rng(3)
    ours, theirs = rng.standard_normal((2, 4, 4)).astype(np.float32)
    tokens = running_text.windows(model(ours), story("0123321032103210" * 3), 5, 0, 0)
    parts = running_text.batches(model(ours), tokens, 2)
    found = running_text.continued(model(ours), model(theirs), parts, forever())
    ids, wanted = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    log_p, log_q = (
        t - np.log(np.exp(t).sum(axis=1, keepdims=True)) for t in (ours.astype(float), theirs.astype(float))
    )
    assert found.loss == pytest.approx(-log_p[ids, wanted])
    assert found.correct.tolist() == (ours[ids].argmax(axis=1) == wanted).tolist()
    assert found.divergence == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(axis=1)[ids].mean())
    assert found.agreement == pytest.approx((ours[ids].argmax(axis=1) == theirs[ids].argmax(axis=1)).mean())
    assert found.starts.tolist() == [n % 5 == 0 for n in range(len(ids))]


def test_a_model_does_not_diverge_from_itself():
    table = np.random.default_rng(4).standard_normal((4, 4))
    tokens = running_text.windows(model(table), story("0123" * 9), 5, 0, 0)
    found = running_text.continued(model(table), model(table), [tokens], forever())
    assert (found.divergence, found.agreement) == (0.0, 1.0)
