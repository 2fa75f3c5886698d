"""Scores: counts that brute force confirms, statistics that behave, groups that hold everybody."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from specialize.errors import ConfigError
from specialize.score import Transcript, align, differences, normalizer, score, write_results
from specialize.score.counts import count_characters, count_words
from specialize.score.groups import BINS, grouped
from specialize.score.scoring import Files, Scoring
from tests.bases import tiny_whisper

WORDS = ("a", "bee", "cat", "dog")


def transcripts(speakers: int = 6, each: int = 4, seed: int = 0, gain: float = 0.5) -> list[Transcript]:
    """Random sentences; the base garbles words twice as often as the Submodel does, at gain 0.5."""
    rng = np.random.default_rng(seed)

    def garbled(words: Sequence[str], rate: float) -> str:
        return " ".join("zzz" if rng.random() < rate else word for word in words)

    made = []
    for speaker in range(speakers):
        rate = 0.2 + 0.5 * rng.random()
        for number in range(each):
            words = rng.choice(WORDS, 6).tolist()
            attributes = {"age": 20 + 5 * speaker, "severity": ("mild", "severe")[speaker % 2]}
            made.append(
                Transcript(
                    utterance=f"{speaker}/{number}",
                    speaker=f"s{speaker}",
                    reference=" ".join(words),
                    base=garbled(words, rate),
                    submodel=garbled(words, rate * gain),
                    attributes=attributes,
                )
            )
    return made


def distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance by its recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, said in enumerate(reference, 1):
        above, row[0] = row[:], i
        for j, heard in enumerate(hypothesis, 1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (said != heard))
    return row[-1]


def test_counts_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        reference = rng.choice(WORDS, rng.integers(1, 8)).tolist()
        hypothesis = rng.choice(WORDS, rng.integers(0, 8)).tolist()
        words = count_words(" ".join(reference), " ".join(hypothesis))
        assert words.errors == distance(reference, hypothesis)
        assert words.length == len(reference)
        letters = count_characters(" ".join(reference), " ".join(hypothesis))
        assert letters.errors == distance(" ".join(reference), " ".join(hypothesis))


def test_pooled_is_the_sum_of_the_speakers():
    given = transcripts()
    results = score(given, resamples=50)
    errors = sum(distance(t.reference.split(), t.base.split()) for t in given)
    words = sum(len(t.reference.split()) for t in given)
    assert results["pooled"]["base_wer"] == errors / words
    speakers = results["speakers"].values()
    assert results["pooled"]["wer"] == sum(s["wer"] * s["words"] for s in speakers) / words
    assert results["pooled"]["relative_reduction"] == pytest.approx(
        1 - results["pooled"]["wer"] / results["pooled"]["base_wer"]
    )


def test_order_does_not_matter():
    given = transcripts()
    shuffled = [given[i] for i in np.random.default_rng(0).permutation(len(given))]
    assert score(given, resamples=200) == score(shuffled, resamples=200)


def test_every_column_of_a_manifest_groups():
    given = [
        dataclasses.replace(t, role=("base", "personal")[i % 2], seconds=1.0 + i / 7, split="test")
        for i, t in enumerate(transcripts(speakers=8))
    ]
    names = ("role", "seconds", "speaker", "split", "text", "utterance", "age")
    groups, left_out = grouped(given, names)
    assert left_out == {}
    assert {name: len(values) for name, values in groups.items()} == {
        "role": 2,
        "seconds": BINS,
        "speaker": 8,
        "split": 1,
        "text": len({t.reference for t in given}),
        "utterance": len(given),
        "age": BINS,
    }
    for values in groups.values():
        assert sorted(t.utterance for part in values.values() for t in part) == sorted(t.utterance for t in given)
    assert set(grouped(given, None)[0]) == {"age", "severity", "role"}
    assert set(grouped(transcripts(), None)[0]) == {"age", "severity"}


def test_ids_that_are_numbers_are_no_numbers():
    given = [dataclasses.replace(t, speaker=f"{int(t.speaker[1:]):04}") for t in transcripts(speakers=9)]
    assert list(grouped(given, ("speaker",))[0]["speaker"]) == [f"{i:04}" for i in range(9)]


def test_what_is_no_group_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"'colour'.*age, role, seconds, severity, speaker, split, text, utterance"):
        grouped(transcripts(), ("colour",))
    with pytest.raises(ConfigError, match=r"'utterance' has 240 values"):
        grouped(transcripts(speakers=60), ("utterance",))


def test_groups_hold_everybody_once():
    results = score(transcripts(), resamples=50)
    assert set(results["groups"]) == {"age", "severity"}
    for values in results["groups"].values():
        assert sum(group["words"] for group in values.values()) == results["pooled"]["words"]
        assert sum(group["speakers"] for group in values.values()) == 6
    assert set(results["groups"]["severity"]) == {"mild", "severe"}
    assert len(results["groups"]["age"]) <= 5


def test_shares_of_speakers_add_up():
    pooled = score(transcripts(), resamples=50)["pooled"]
    assert pooled["helped"] + pooled["harmed"] + pooled["unchanged"] == pytest.approx(1)


def test_a_clear_gain_is_found_and_none_is_not():
    clear = score(transcripts(speakers=30), resamples=2000)["pooled"]
    low, high = clear["relative_reduction_interval"]
    assert 0 < low < clear["relative_reduction"] < high < 1
    assert low < 0.5 < high
    assert clear["p_value"] < 0.01
    none = score(transcripts(speakers=30, gain=1.0, seed=3), resamples=2000)["pooled"]
    low, high = none["relative_reduction_interval"]
    assert low < 0 < high
    assert none["p_value"] > 0.05


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = score(transcripts(speakers=400, each=2, seed=99), resamples=1)["pooled"]["relative_reduction"]
    inside = 0
    for seed in range(30):
        pooled = score(transcripts(speakers=20, each=2, seed=seed), resamples=300)["pooled"]
        low, high = pooled["relative_reduction_interval"]
        inside += low <= truth <= high
    # 90 % rather than 95: percentile intervals of 20 speakers are a little short.
    assert inside >= 30 * 0.9 - 3 * math.sqrt(30 * 0.9 * 0.1)


def test_the_same_texts_change_nothing():
    given = [Transcript(t.utterance, t.speaker, t.reference, t.base, t.base) for t in transcripts()]
    pooled = score(given, resamples=100)["pooled"]
    assert pooled["relative_reduction"] == 0
    assert pooled["relative_reduction_interval"] == [0, 0]
    assert pooled["p_value"] == 1
    assert pooled["unchanged"] == 1


def test_one_speaker_has_no_interval_and_a_reason():
    pooled = score(transcripts(speakers=1), resamples=100)["pooled"]
    assert pooled["relative_reduction_interval"] is None
    assert pooled["reasons"]["relative_reduction_interval"]


def test_a_perfect_base_has_no_reduction_and_a_reason():
    given = [Transcript(t.utterance, t.speaker, t.reference, t.reference, t.base) for t in transcripts()]
    pooled = score(given, resamples=100)["pooled"]
    assert pooled["base_wer"] == 0
    assert pooled["relative_reduction"] is None
    assert "no error" in pooled["reasons"]["relative_reduction"]


def test_empty_references_are_counted_apart():
    given = transcripts()
    silent = Transcript("quiet", "s0", "[noise]", "cat dog bee", "")
    pooled = score([*given, silent], resamples=50)["pooled"]
    assert pooled["base_wer"] == score(given, resamples=50)["pooled"]["base_wer"]
    assert pooled["empty_references"] == {"utterances": 1, "base_insertions": 3, "insertions": 0}


def test_the_base_serves_those_it_is_used_for():
    given = [
        Transcript(
            t.utterance, t.speaker, t.reference, t.base, t.submodel, used="base" if t.speaker == "s1" else "submodel"
        )
        for t in transcripts()
    ]
    results = score(given, resamples=50)
    row = results["speakers"]["s1"]
    assert row["wer"] == row["base_wer"] != row["submodel_wer"]
    assert results["pooled"]["served_by_base"] == 1


def test_normalised_texts_are_compared():
    given = [Transcript("u", "s", "Mr. Brown's colour, twenty-one!", "mister brown's color 21", "x")]
    assert score(given, resamples=10)["pooled"]["base_wer"] == 0
    assert normalizer("de")("Über, ALLES!") == "über alles"
    assert count_words(normalizer("zh")("你好"), normalizer("zh")("你")).length == 2


def test_results_are_json_and_whole(tmp_path):
    results = score(transcripts(), resamples=50)
    write_results(results, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    with pytest.raises(ValueError, match="JSON"):
        write_results({"x": math.nan}, tmp_path / "results.json")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text())["pooled"]


def test_nothing_to_score_is_an_error():
    with pytest.raises(ConfigError, match="no transcript"):
        score([])


def test_differences_are_readable_without_colour():
    assert differences("the cat sat", "the hat sat down").plain == "the [-cat-] {+hat+} sat {+down+}"
    assert differences("same", "same").plain == "same"
    assert differences("\x1b[31mred", "red").plain.count("\x1b") == 0


def test_alignments_give_both_texts_back():
    rng = np.random.default_rng(5)
    for _ in range(50):
        reference, hypothesis = (" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(2))
        parts = align(reference, hypothesis)
        assert " ".join(said for _, said, _ in parts if said) == reference
        assert " ".join(heard for _, _, heard in parts if heard) == hypothesis


@pytest.mark.parametrize(
    ("fields", "roles", "own", "name"),
    [
        ({}, {None}, True, "results.json"),
        ({"text": True, "groups": ("age",), "resamples": 10, "batch": 2}, {"personal"}, True, "results.json"),
        ({"role": "personal", "language": "en"}, {"personal"}, True, "results.json"),
        ({"role": "personal"}, {"base"}, True, "results.personal.json"),
        ({"role": "personal", "split": "dev"}, {"base"}, True, "results.personal.dev.json"),
        ({"manifest": Path("of/dev.csv")}, {None}, False, "results.manifest-dev.json"),
        ({"manifest": Path("tfds:spoken_digit")}, {None}, False, "results.manifest-tfds-spoken_digit.json"),
        ({"gate": "off", "base_context": "full"}, {None}, True, "results.gate-off.base-full.json"),
        ({"beam": 4, "tokens_per_second": 12.5}, {None}, True, "results.beam-4.tokens-12.5.json"),
        ({"language": "de"}, {None}, True, "results.language-de.json"),
        ({"role": "../x"}, {None}, True, "results...-x.json"),
    ],
)
def test_only_the_plain_scoring_has_the_plain_name(tmp_path, fields, roles, own, name):
    differs = Scoring(**fields).differs(tiny_whisper(), roles, own)
    files = Files.of(tmp_path / "run", None, differs)
    assert files.results == tmp_path / "run" / name
    assert len({files.results.stem, files.transcripts.stem, files.report.stem}) == 3
    assert Files.of(tmp_path / "run", tmp_path / "run", differs) == files
    assert Files.of(tmp_path / "run", tmp_path / "out", differs).results == tmp_path / "out/results.json"
    assert (tmp_path / "out").is_dir()


def test_a_scoring_that_cannot_be_is_refused():
    for field, value in (("batch", 0), ("beam", 0), ("resamples", -1), ("tokens_per_second", 0.0)):
        with pytest.raises(ConfigError, match=field):
            dataclasses.replace(Scoring(), **{field: value})
