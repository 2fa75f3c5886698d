"""The report of a run that trained a space: a plot for each attribute of speakers, and who is near whom."""

import re
from typing import Any

import numpy as np
import pytest

from specialize.score import Transcript, score, write_report
from specialize.score.plots import group_mark, speaker_points
from specialize.score.report import maps
from specialize.score.spaces import view_space
from tests.score.test_report import HOSTILE, Page
from tests.space.spaces import GENERATED, small_space


def transcripts(speakers: int = 6, **more: Any) -> list[Transcript]:
    """Two of each speaker of `small_space`, with a severity each, and a noise that differs between the two."""
    return [
        Transcript(
            f"u{i}/{n}",
            f"ana{i}",
            "one two",
            "one",
            "one two",
            attributes={"severity": ("mild", "severe")[i % 2], "noise": f"n{n}", "lab": "here"} | more,
        )
        for i in range(speakers)
        for n in range(2)
    ]


@pytest.mark.parametrize("name", GENERATED)
def test_there_is_a_plot_for_each_attribute_of_speakers_that_varies(name):
    view = view_space(small_space(name), transcripts())
    assert set(view.labels) == {"severity"}  # noise is of utterances, and all have the same lab
    assert view.labels["severity"]["ana1"] == "severe"
    (of,) = maps(view)
    assert [group for group, _ in of["groups"]] == ["mild", "severe"]
    assert len(re.findall(r"<title>ana\d: (mild|severe)</title>", of["plot"])) == 6
    assert (view.kind, len(view.points), len(view.nearest)) == (name, 6, 6)


def test_without_attributes_there_is_one_plot_and_unscored_speakers_are_in_it():
    (of,) = maps(view_space(small_space(), []))
    assert of["groups"] == []
    assert len(re.findall(r"<title>ana\d</title>", of["plot"])) == 6
    some = view_space(small_space(), transcripts(speakers=4))
    assert len(some.points) == 6
    assert len(re.findall("<title>", maps(some)[0]["plot"])) == 6


def test_only_attributes_that_are_asked_for():
    assert set(view_space(small_space(), transcripts(), ("lab",)).labels) == {"lab"}


def test_near_points_are_drawn_near_and_all_lie_in_the_plot():
    points = {f"s{i}": (float(x), float(y)) for i, (x, y) in enumerate(np.random.default_rng(0).normal(size=(50, 2)))}
    plot = speaker_points(points, {}, (0.7, 0.3))
    found = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="4.5"><title>(s\d+)</title>', plot)
    }
    assert set(found) == set(points)
    drawn, given = (np.array([of[name] for name in points]) for of in (found, points))
    assert drawn.min() >= 14
    assert drawn.max() <= 62 + 360 + 14
    np.testing.assert_allclose(np.corrcoef(drawn[:, 0], given[:, 0])[0, 1], 1.0, atol=1e-4)
    np.testing.assert_allclose(np.corrcoef(drawn[:, 1], -given[:, 1])[0, 1], 1.0, atol=1e-4)
    spread = np.ptp(drawn, axis=0) / np.ptp(given, axis=0)
    np.testing.assert_allclose(spread[0], spread[1], rtol=0.01)


def test_groups_differ_in_colour_and_in_shape():
    marks = [str(group_mark(index, 0, 0)) for index in range(36)]
    assert len(set(marks)) == 36
    first = [re.sub(r"g\d", "", mark) for mark in marks[:6]]
    assert len(set(first)) == 6
    assert {re.search(r"g(\d)", mark).group(1) for mark in marks[:6]} == set("012345")  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("speakers", [1, 2, 6])
def test_the_report_is_whole(tmp_path, speakers):
    given = transcripts(speakers)
    view = view_space(small_space(speakers=speakers), given)
    write_report(tmp_path / "report.html", score(given, resamples=50), given, space=view)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in plots)
    assert "Speakers as points" in text
    assert ("Nearest speakers" in text) == (speakers > 1)


def test_hostile_names_stay_names(tmp_path):
    more: dict[str, Any] = {HOSTILE: HOSTILE, "group": HOSTILE}
    given = transcripts(**more)
    view = view_space(small_space(), given, ("group", HOSTILE))
    write_report(tmp_path / "report.html", score(given, resamples=50), given, space=view)
    text = (tmp_path / "report.html").read_text()
    assert HOSTILE not in text
    Page(text)
