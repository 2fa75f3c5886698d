"""The synthetic corpus: its grammar, its distortions, and the part of it that is in the package."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from experiments.synthetic import make_corpus
from experiments.synthetic.distortion import CONSONANTS, SEVERITIES, VOWELS, Distortion, confusions, draw
from experiments.synthetic.grammar import covering, is_held_out, sentence, sentences, vocabulary
from experiments.synthetic.ogg import with_serial
from experiments.synthetic.voices import (
    BASE_VARIANTS,
    PERSONAL_VARIANTS,
    SOURCE_RATE,
    Synthesiser,
    Word,
    base_voice,
    personal_voice,
)
from specialize.corpus import CorpusConfig, open_corpus, read_audio, read_manifest

EMBEDDED = Path(__file__).parents[2] / "specialize/embedded"
WORDS: list[Word] = [("p", ",U", "t"), ("t", "'u:"), ("r", "'E", "d"), ("s", "p", "'u:", "n", "z"), ("h", "'0", "l")]
"""'put two red spoons hall', as espeak-ng writes it."""
without_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng is not installed (espeakng-loader)"
)


def people() -> list[tuple[str, Distortion]]:
    return [(s, draw(f"{number}", s)) for s in SEVERITIES for number in range(30)]


def tone() -> np.ndarray:
    time = np.arange(SOURCE_RATE) / SOURCE_RATE
    harmonics = np.arange(1, 30)[:, None]
    return (0.3 * np.sum(np.sin(2 * np.pi * 140 * harmonics * time) / harmonics, axis=0)).astype(np.float32)


def test_sentences_are_of_the_vocabulary():
    words = set(vocabulary())
    assert 50 <= len(words) <= 120
    rng = random.Random(0)
    for text in (sentence(rng) for _ in range(2000)):
        assert re.fullmatch(r"[a-z']+( [a-z']+){2,6}", text)
        assert set(text.split()) <= words


def test_sentences_depend_on_the_seed_alone():
    first, again, other = (sentences(seed, 50, held_out=False) for seed in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert len(set(first)) == 50


def test_sentences_for_testing_are_no_others():
    assert all(is_held_out(text) for text in sentences("a", 50, held_out=True))
    assert not any(is_held_out(text) for text in sentences("a", 50, held_out=False))


def test_a_covering_order_keeps_all_sentences_and_brings_words_early():
    texts = sentences("a", 100, held_out=False)
    ordered = covering(texts)
    assert sorted(ordered) == sorted(texts)
    early = [len({word for text in order[:20] for word in text.split()}) for order in (texts, ordered)]
    assert early[1] > early[0]


def test_the_base_hears_no_personal_voice():
    base = {base_voice(1, number).variant for number in range(200)}
    personal = {personal_voice(1, number).variant for number in range(200)}
    assert base == set(BASE_VARIANTS)
    assert personal == set(PERSONAL_VARIANTS)
    assert not base & personal


def test_a_distortion_depends_on_the_seed_alone():
    assert draw("a", "severe") == draw("a", "severe")
    assert len({draw(str(number), "severe") for number in range(20)}) == 20


@pytest.mark.parametrize("severity", SEVERITIES)
def test_a_person_says_a_word_the_same_way_wherever_it_stands(severity: Any):
    person = draw("a", severity)
    alone = [person.articulate([word])[0] for word in WORDS]
    said = [word for word in person.articulate([*WORDS, *reversed(WORDS)]) if word != ("_",)]
    assert said == [*alone, *reversed(alone)]


def test_severities_are_graded():
    changed, rates, tremors = (defaultdict(list) for _ in range(3))
    for severity, person in people():
        changed[severity].append(len(person.processes) + len(person.centralised))
        rates[severity].append(person.rate)
        tremors[severity].append(person.tremor)
    mild, moderate, severe = SEVERITIES
    for milder, worse in ((mild, moderate), (moderate, severe)):
        assert max(changed[milder]) < min(changed[worse])
        assert min(rates[milder]) > max(rates[worse])
        assert max(tremors[milder]) < min(tremors[worse])


def test_changed_phonemes_are_among_those_that_are_named():
    for _, person in people():
        assert set(person.consonants()) <= {p for process in CONSONANTS.values() for p in process}
        assert set(person.vowels()) <= {v for steps in VOWELS.values() for step in steps for v in step}
        assert all(word for word in person.articulate(WORDS))


def test_words_said_alike_are_found():
    person = dataclasses.replace(draw("a", "severe"), processes=("liquids become glides",), lost_at_end="none")
    lexicon = {"red": [("r", "E", "d")], "wed": [("w", "E", "d")], "bed": [("b", "E", "d")]}
    assert confusions(person, lexicon) == [("red", "wed")]


def test_a_voice_is_reproducible_and_shifts_formants():
    def centre(samples: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(samples)) ** 2
        return float(np.sum(power * np.arange(power.size)) / np.sum(power))

    plain = dataclasses.replace(draw("a", "mild"), formants=1.0, tremor=0.0)
    shifted = dataclasses.replace(plain, formants=1.1)
    made = [person.sound(tone(), np.random.default_rng(0), 16_000) for person in (plain, plain, shifted)]
    np.testing.assert_array_equal(made[0], made[1])
    assert made[0].dtype == np.float32
    assert np.isfinite(made[2]).all()
    assert made[2].size == pytest.approx(made[0].size / 1.1, abs=2)
    assert personal_voice(1, 0).pitch > shifted.voice(personal_voice(1, 0)).pitch


def test_an_ogg_file_depends_on_its_contents_alone(tmp_path: Path):
    def opus() -> bytes:
        file = io.BytesIO()
        soundfile.write(file, tone()[:8000], 16_000, format="OGG", subtype="OPUS")
        return file.getvalue()

    first, again = opus(), with_serial(opus(), 7)
    (tmp_path / "a.ogg").write_bytes(with_serial(first, 7))
    (tmp_path / "b.ogg").write_bytes(again)
    assert with_serial(first, 7) == again
    np.testing.assert_array_equal(
        read_audio(tmp_path / "a.ogg", 16_000), soundfile.read(io.BytesIO(first), dtype="float32")[0]
    )
    with pytest.raises(ValueError, match="no Ogg page at byte 0"):
        with_serial(b"RIFF", 7)


@without_espeak
def test_voices_speak_what_is_articulated():
    espeak = Synthesiser()
    espeak.use(base_voice(1, 0))
    words = espeak.phonemes("put two red spoons in the hall")
    plain = espeak.say(words)
    severe = draw("a", "severe")
    slow = severe.sound(espeak.say(severe.articulate(words)), np.random.default_rng(0), 16_000)
    assert 1.0 < plain.size / SOURCE_RATE < 4.0
    assert 0.05 < np.abs(plain).max() < 1.0
    assert np.isfinite(slow).all()
    assert np.abs(slow).max() > 0.05


@without_espeak
def test_a_person_who_is_made_anew_is_the_one_in_the_package(tmp_path: Path, monkeypatch):
    """Byte for byte with the libraries that the package was made with; others may round and code a little otherwise."""
    chosen, everybody = "synth-severe-01", make_corpus.speakers
    monkeypatch.setattr(make_corpus, "speakers", lambda config: [s for s in everybody(config) if s.id == chosen])
    lines = make_corpus.make(make_corpus.Corpus(tmp_path, processes=1))
    shipped = [json.loads(line) for line in (EMBEDDED / "manifest.jsonl").read_text().splitlines()]
    assert lines == [line for line in shipped if line["speaker"] == chosen]
    assert [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()] == lines
    people = json.loads((EMBEDDED / "people.json").read_text())
    assert json.loads((tmp_path / "people.json").read_text()) == [p for p in people if p["speaker"] == chosen]
    assert len(list(tmp_path.rglob("*.ogg"))) == len(lines) == 56
    for line in lines:
        made, there = (read_audio(of / line["audio"], 16_000) for of in (tmp_path, EMBEDDED))
        assert np.corrcoef(made, there)[0, 1] > 0.98, line["audio"]


def test_the_embedded_corpus_is_whole_small_and_called_synthetic():
    rows, problems = read_manifest(EMBEDDED / "manifest.jsonl")
    assert problems == []
    assert sum(file.stat().st_size for file in EMBEDDED.rglob("*") if file.is_file()) <= 12e6
    files = [*(EMBEDDED / "audio").rglob("*.ogg"), *EMBEDDED.glob("*.json*")]
    assert sum(file.stat().st_size for file in files) <= 8e6
    assert {row.audio for row in rows} == set((EMBEDDED / "audio").rglob("*.*"))
    assert all(row.role == "personal" and row.attributes["synthetic"] is True for row in rows)
    assert all(row.speaker.startswith(f"synth-{row.attributes['severity']}-") for row in rows)
    described = json.loads((EMBEDDED / "people.json").read_text())
    assert [person["speaker"] for person in described] == list(dict.fromkeys(row.speaker for row in rows))
    assert "synthetic" in (EMBEDDED / "README.md").read_text()


def test_embedded_test_sentences_are_said_by_no_one_in_training():
    rows, _ = read_manifest(EMBEDDED / "manifest.jsonl")
    texts = {split: {row.text for row in rows if row.split == split} for split in ("train", "dev", "test")}
    assert not texts["test"] & (texts["train"] | texts["dev"])
    by_speaker = defaultdict(list)
    for row in rows:
        by_speaker[row.speaker].append(row.text)
        assert set(row.text.split()) <= set(vocabulary())
    assert all(len(said) == len(set(said)) for said in by_speaker.values())


def test_the_embedded_corpus_opens(tmp_path: Path):
    corpus = open_corpus(CorpusConfig(manifest=EMBEDDED / "manifest.jsonl", role="personal", cache=tmp_path))
    assert corpus.problems == ()
    assert len(corpus.speakers) >= 24
    hashes = set()
    for speaker in corpus.speakers:
        assert speaker.attributes["severity"] in SEVERITIES
        assert (len(speaker.train), len(speaker.dev), len(speaker.test)) == (36, 8, 12)
        for utterance in (*speaker.train, *speaker.dev, *speaker.test):
            assert 1.5 <= utterance.samples / corpus.sample_rate <= 3.5
            audio = corpus.audio(utterance)
            assert 0.1 < np.abs(audio).max() < 0.999
            hashes.add(hashlib.sha256(audio.tobytes()).digest())
    assert len(hashes) == 56 * len(corpus.speakers)
