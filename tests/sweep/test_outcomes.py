"""Which trial is the best, and over whom trials are compared."""

import dataclasses
import re

import pytest

from specialize.sweep.axes import Axis
from specialize.sweep.config import Sweep
from specialize.sweep.outcomes import Outcome, choose, comparable
from specialize.sweep.plots import against_axis
from specialize.sweep.report import headline, ranked, write_page
from specialize.sweep.trials import Trial
from tests.sweep.sweeps import EXPERIMENT


def outcome(number: int, losses: dict[str, float], quarantined: int = 0, **changes) -> Outcome:
    """Of a trial with a learning rate of its own, and a corpus of its own where it is named."""
    hyper = dataclasses.replace(EXPERIMENT.hyper, learning_rate=0.1 * (number + 1))
    experiment = dataclasses.replace(EXPERIMENT, hyper=hyper, **changes)
    trial = Trial(number, {"hyper.learning_rate": hyper.learning_rate}, experiment)
    return Outcome(trial, f"s-{number:04d}", losses, quarantined, 0, {})


def limited(limit: int):
    return dataclasses.replace(EXPERIMENT.corpus, limit=limit)


@pytest.mark.parametrize("select", ["pooled", "speaker"])
def test_a_trial_with_fewer_speakers_in_its_corpus_may_win(select):
    """They are compared on the two that both corpora have, though the larger one's others are easier."""
    two = outcome(0, {"ana": 1.0, "bo": 1.0}, corpus=limited(2))
    four = outcome(1, {"ana": 2.0, "bo": 2.0, "cy": 0.1, "di": 0.1}, corpus=limited(4))
    best = choose([two, four], select)
    assert best is not None
    assert (best.trials, best.mean, best.compared) == ((0,), 1.0, 2)
    best = choose([two, dataclasses.replace(four, losses=four.losses | {"ana": 0.5})], "pooled")
    assert best is not None
    assert (best.trials, best.mean, best.chosen) == ((0,), 1.0, {"ana": 0, "bo": 0})


@pytest.mark.parametrize("select", ["pooled", "speaker"])
def test_where_none_is_whole_the_same_people_are_compared(select):
    """Trial 0 lost the hardest speaker and trial 1 the easiest: by their own means trial 0 would be better."""
    one = outcome(0, {"ana": 1.0, "bo": 2.0}, 1)
    two = outcome(1, {"bo": 1.5, "cy": 9.0}, 1, corpus=limited(3))
    best = choose([one, two], select)
    assert best is not None
    assert (best.trials, best.mean, best.compared) == ((1,), 1.5, 1)
    rows = ranked([one, two], best)
    assert [row["trial"] for row in rows] == [1, 0]
    assert not any(row["complete"] for row in rows)


@pytest.mark.parametrize("select", ["pooled", "speaker"])
def test_where_they_have_nobody_in_common_none_is_chosen(select):
    found = [outcome(0, {"ana": 1.0}, 1), outcome(1, {"bo": 0.5}, 1, corpus=limited(3))]
    assert choose(found, select) is None
    said = headline(Sweep(EXPERIMENT, ("lr=0.1,0.2",)), found, None)
    assert "no speaker in common" in said


def test_whole_trials_come_before_those_that_lost_somebody():
    whole = outcome(0, {"ana": 5.0, "bo": 5.0})
    lost = outcome(1, {"ana": 0.1}, 1)
    assert comparable([lost, whole]) == ([whole], {"ana", "bo"})
    other = outcome(2, {"x": 1.0})
    assert comparable([whole, other]) == ([whole, other], set())
    best = choose([whole, other], "pooled")
    assert best is not None
    assert (best.trials, best.compared) == ((2,), 0)


def test_other_corpora_are_told_apart_from_quarantine(tmp_path):
    sweep = Sweep(EXPERIMENT, ("lr=0.1,0.2,0.3",), name="s")
    found = [
        outcome(0, {"ana": 1.0}, corpus=limited(1)),
        outcome(1, {"ana": 2.0, "bo": 2.0}),
        outcome(2, {"ana": 1.0}, 1),
    ]
    best = choose(found, "pooled")
    rows = {row["trial"]: row for row in ranked(found, best)}
    assert [(rows[n]["complete"], rows[n]["other_corpus"], rows[n]["quarantined"]) for n in range(3)] == [
        (True, True, 0),
        (True, False, 0),
        (False, False, 1),
    ]
    write_page(tmp_path / "p.html", sweep, found, best, [], 0)
    page = (tmp_path / "p.html").read_text()
    assert page.count("a corpus of 1") == 1
    assert page.count("1 quarantined") == 1
    assert page.count('<polygon class="harmed" points') == 2  # the key, and trial 2
    assert "over 1 speaker, those that all it was compared with have" in headline(sweep, found, best)


def test_losses_that_are_mostly_the_least_one_do_not_hide_the_others():
    """The middle loss is the least one, and the scale still reaches to the largest."""
    rows = ranked([outcome(number, {"ana": loss}) for number, loss in enumerate((1.0, 1.0, 1.0, 3.0))], None)
    drawn = str(against_axis(Axis("hyper.learning_rate", (0.1, 0.2, 0.30000000000000004, 0.4)), rows))
    heights = [float(y) for y in re.findall(r'class="submodel" cx="[\d.]+" cy="([\d.]+)"', drawn)]
    assert heights[3] < heights[0] == heights[1] == heights[2]
    assert all(14 <= height <= 254 for height in heights)
