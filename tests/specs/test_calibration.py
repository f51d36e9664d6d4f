"""The calibration text is fixed, and nothing of it is asked."""

from frugalbench.specs import calibration, lm_quality, tasks


def test_it_is_the_same_every_time_and_long_enough():
    first, second = calibration.chosen([]), calibration.chosen([])
    assert first.digest == second.digest and first.left_out == 0
    assert sum(map(len, first.paragraphs)) > 2 * calibration.TOKENS


def test_what_a_task_asks_is_left_out():
    every = calibration.chosen([]).paragraphs
    long = next(part for part in every if len(list(calibration.sentences(part))) > 2)
    asked = list(calibration.sentences(long))[1].upper().replace(" ", "\n  ")
    found = calibration.chosen([f"Something else. {asked} And more of that."])
    assert long not in found.paragraphs
    assert 1 <= found.left_out <= 5
    assert found.digest != calibration.chosen([]).digest


def test_no_sentence_of_the_shipped_language_task_is_in_it():
    asked = [item.text for item in tasks.split_of("python-reference").test]
    found = calibration.chosen(asked)
    wanted = {sentence for text in asked for sentence in calibration.sentences(text)}
    seen = {sentence for part in found.paragraphs for sentence in calibration.sentences(part)}
    assert wanted and seen and not wanted & seen
    assert all(part in lm_quality.text()[0].decode() for part in found.paragraphs)


def test_spread_takes_evenly_or_all():
    assert calibration.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert calibration.spread([1, 2], 5) == [1, 2]
