"""The report: one file, safe against hostile texts, from one speaker to hundreds."""

import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from specialize.score import Transcript, score, tables, write_report
from specialize.score.pretrained import of_one
from specialize.score.pretrained_report import write_pretrained_report
from specialize.score.terminal import by_rate, interval, percent
from tests.score.test_score import transcripts

HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they close."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link", "col"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(tmp_path, given, **more) -> str:
    write_report(tmp_path / "report.html", score(given, resamples=50), given, **more)
    return (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("speakers", [1, 5, 120])
def test_a_report_is_whole_and_needs_nothing_else(tmp_path, speakers):
    given = transcripts(speakers=speakers)
    curves = {f"s{i}": [(0, None, 2.0), (5, 1.0, 1.5), (10, 0.5, 1.7)] for i in range(speakers)}
    text = report(tmp_path, given, curves=curves, about={"name": "a run", "slots": 8, "padded_share": 0.21})
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or ""), f"{tag} loads {attributes[name]}"
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    assert "21.0%" in text
    for speaker in {t.speaker for t in given}:
        assert speaker in text


def test_hostile_texts_stay_texts(tmp_path):
    given = [
        Transcript(
            t.utterance,
            t.speaker + HOSTILE,
            t.reference + HOSTILE,
            t.base,
            t.submodel + HOSTILE,
            attributes={HOSTILE: t.speaker},
        )
        for t in transcripts()
    ]
    problems = [{"line": 3, "utterance": HOSTILE, "speaker": HOSTILE, "reason": HOSTILE}]
    text = report(
        tmp_path, given, about={"name": HOSTILE, "problems": problems, "quarantined": [HOSTILE], "command": HOSTILE}
    )
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_what_was_left_out_is_told_of_both_corpora(tmp_path):
    given = transcripts()
    results = score(given, resamples=50)
    problems = [{"line": 3, "utterance": "u3", "speaker": "s1", "reason": "It is broken."}]
    other = [{"line": 4, "utterance": "u4", "speaker": "s2", "reason": "It is empty."}]
    texts = []
    for trained, scored in ((problems, problems), (problems, other), ([], other)):
        write_report(tmp_path / "report.html", results | {"problems": scored}, given, about={"problems": trained})
        texts.append((tmp_path / "report.html").read_text())
        Page(texts[-1])
    assert [text.count("<summary>") for text in texts] == [1, 2, 1]
    assert "1 left out of the corpus" in texts[0]
    for text in texts[1:]:
        assert "1 left out of what was scored" in text
        assert "It is empty." in text
    assert "1 left out of what was trained on" in texts[1]


def test_plots_and_tables_can_be_read_aloud(tmp_path):
    page = Page(report(tmp_path, transcripts()))
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert plots
    assert all(a.get("aria-label") or a.get("aria-labelledby") or a.get("aria-hidden") for a in plots)
    assert [tag for tag, _ in page.tags].count("th") > 0
    assert dict(page.tags)["html"].get("lang")


@pytest.mark.parametrize("two", [False, True], ids=["alone", "beside the base it went on from"])
def test_a_report_of_a_pretraining_is_whole_and_says_who_is_heard_worst(tmp_path, two):
    given = [
        dataclasses.replace(t, speaker=t.speaker + HOSTILE, reference=t.reference + HOSTILE) for t in transcripts()
    ]
    results: dict[str, Any] = score(given, resamples=50)
    problems = [{"line": 3, "utterance": HOSTILE, "speaker": HOSTILE, "reason": HOSTILE}]
    results = (results if two else of_one(results)) | {"problems": problems}
    curve = [(10, 2.0, 1.8), (20, 1.5, float("nan")), (30, 1.2, 1.4)]
    about = {"name": HOSTILE, "steps": 30, "problems": problems, "start": None}
    write_pretrained_report(tmp_path / "report.html", results, given, curve, about)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert HOSTILE not in text
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.tags if tag == "svg"]
    assert any("goes from 1.800 to 1.400" in label for label in labels)
    assert any("goes from 2.000 to 1.200" in label for label in labels)
    assert percent(results["pooled"]["wer"]) in text
    assert interval(results["pooled"]["wer_interval"]) in text
    assert ("relative reduction" in text) == two
    assert "personalised" not in text
    worst = [speaker for speaker, _ in by_rate(results["speakers"])]
    named = re.findall(r'<th scope="row" class="text">(s\d+)', text)
    assert named == [speaker.removesuffix(HOSTILE) for speaker in worst]


def test_tables_name_everybody():
    console = Console(width=160, file=io.StringIO())
    for table in tables(score(transcripts(), resamples=50)):
        console.print(table)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(f"s{i}" in text for i in range(6))
    assert "relative reduction" in text
