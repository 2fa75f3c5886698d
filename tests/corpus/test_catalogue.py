"""Data sets of the TFDS catalogue as corpora, on TFDS's own mock data."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specialize.corpus import CorpusConfig, open_corpus, split_by_hash
from specialize.corpus.catalogue import catalogue_examples, catalogue_name
from specialize.errors import CorpusError
from tests.bases import tiny_conformer_ctc


@pytest.fixture
def catalogue(monkeypatch, tmp_path):
    """TFDS without a network: 40 random examples in each split of the data sets that the tests ask for."""
    pytest.importorskip("tensorflow", reason="needs the extra 'tf'")
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import splits

    names_of = {
        "spoken_digit": ("train",),
        "librispeech": ("train_clean100", "train_other500", "dev_clean", "test_clean"),
        "mnist": ("train", "test"),
        "crema_d": ("train",),
        "vctk": ("train",),
    }
    metadata = tmp_path / "metadata"
    for name, names in names_of.items():
        builder: Any = tfds.builder(name, data_dir=metadata)
        builder.info.set_splits(
            splits.SplitDict(
                [
                    splits.SplitInfo(
                        name=split,
                        shard_lengths=[40],
                        num_bytes=1,
                        filename_template=tfds.core.ShardedFileTemplate(
                            dataset_name=name, data_dir=builder.data_dir, split=split, filetype_suffix="tfrecord"
                        ),
                    )
                    for split in names
                ]
            )
        )
        Path(builder.data_dir).mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)

    def mocked(name: str, sample_rate: int):
        # The mock is of all builders, so ours must run outside of it.
        policy = tfds.testing.MockPolicy.USE_FILES
        made = digits if name == "spoken_digit" else None  # whose file names mean something
        with tfds.testing.mock_data(num_examples=40, policy=policy, data_dir=str(metadata), as_dataset_fn=made):
            return iter(list(catalogue_examples(name, sample_rate)))

    monkeypatch.setattr("specialize.corpus.builder.catalogue_examples", mocked)


def digits(builder: Any, **arguments: Any) -> Any:
    """Four people who say ten digits each, as TFDS would give them; one file has another name."""
    import tensorflow as tf

    assert arguments["split"] == "train"
    names = [f"{n % 10}_{('ann', 'bob', 'cy_d', 'dee')[n // 10]}_{n}.wav" for n in range(40)]
    names[7] = "seven.wav"
    audio = [np.arange(-200, 200 + 10 * n, dtype=np.int64) * 50 for n in range(40)]
    examples = [
        {"audio": clip, "audio/filename": name, "label": n % 10}
        for n, (clip, name) in enumerate(zip(audio, names, strict=True))
    ]
    types = {"audio": tf.int64, "audio/filename": tf.string, "label": tf.int64}
    shapes = {"audio": (None,), "audio/filename": (), "label": ()}
    return tf.data.Dataset.from_generator(lambda: iter(examples), types, shapes)


def config(folder: Path, name: str, **settings) -> CorpusConfig:
    return CorpusConfig(Path(f"tfds:{name}"), cache=folder / "cache", **settings)


def test_only_names_with_the_prefix_are_of_the_catalogue():
    assert catalogue_name(Path("tfds:common_voice/en")) == "common_voice/en"
    assert catalogue_name(Path("people.jsonl")) is None


def test_spoken_digit_has_words_and_speakers_that_are_split_by_themselves(catalogue, tmp_path):
    corpus = open_corpus(config(tmp_path, "spoken_digit"))
    assert [s.id for s in corpus.speakers] == ["ann", "bob", "cy_d", "dee"]
    assert [len(s.train) + len(s.dev) + len(s.test) for s in corpus.speakers] == [9, 10, 10, 10]
    assert all(s.train and s.dev and s.test for s in corpus.speakers)
    assert [(p.utterance, p.reason) for p in corpus.problems] == [("seven.wav", "It has no speaker.")]
    assert [row.text for row in corpus.built.rows[:4]] == ["zero", "one", "two", "three"]
    # From 8 kHz to 16: twice as many samples, of the same slope, and integers of 16 bits as shares of one.
    audio = corpus.built.audio(0)
    assert audio.size == 800
    np.testing.assert_allclose(audio[100:700:2], np.arange(-150, 150) * 50 / 32768, atol=2e-4)


def test_librispeech_has_its_own_splits_and_is_resampled_to_what_a_base_hears(catalogue, tmp_path):
    corpus = open_corpus(config(tmp_path, "librispeech", pool="everybody"))
    splits = [row.split for row in corpus.built.rows]
    assert {split: splits.count(split) for split in set(splits)} == {"train": 80, "dev": 40, "test": 40}
    assert all(row.text and row.speaker and row.utterance for row in corpus.built.rows)
    assert "chapter_id" in corpus.built.rows[0].attributes


def test_speakers_that_are_labels_have_their_names(catalogue, tmp_path):
    corpus = open_corpus(config(tmp_path, "vctk", pool="everybody"))
    assert all(re.fullmatch(r"[ps]\d+", row.speaker) for row in corpus.built.rows)


def test_speakers_of_one_split_are_split_by_a_hash_on_demand(catalogue, tmp_path):
    corpus = open_corpus(config(tmp_path, "librispeech", pool="everybody"))
    assert not corpus.problems
    (given,) = corpus.speakers
    hashed = open_corpus(config(tmp_path, "librispeech", splits="hash"))
    assert [len(given.train), len(given.dev), len(given.test)] == [80, 40, 40]
    assert hashed.speakers, "no mock speaker has three utterances"
    for speaker in hashed.speakers:
        lines = {u.utterance: u.line for u in hashed.built.rows if u.speaker == speaker.id}
        expected = split_by_hash(speaker.id, lines)
        for part in ("train", "dev", "test"):
            assert all(expected[u.line] == part for u in speaker.split(part))


def test_what_was_built_is_opened_without_the_catalogue(catalogue, tmp_path, monkeypatch):
    first = open_corpus(config(tmp_path, "spoken_digit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    again = open_corpus(config(tmp_path, "spoken_digit"))
    assert again.built.rows == first.built.rows
    for i in range(len(first.built.rows)):
        np.testing.assert_array_equal(again.built.audio(i), first.built.audio(i))


def test_texts_are_checked_against_a_base(catalogue, tmp_path):
    corpus = open_corpus(config(tmp_path, "spoken_digit", pool="everybody"), tiny_conformer_ctc())
    reasons = {p.reason for p in corpus.problems if p.utterance and p.utterance != "seven.wav"}
    assert reasons, "the shortest clips have fewer frames than letters"
    assert all("for its text this base needs" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mnist", "no corpus of speech"),
        ("crema_d", "none of text"),  # whose label is an emotion
        ("no_such_thing", "does not give 'no_such_thing'"),
    ],
)
def test_what_is_no_corpus_is_refused(catalogue, tmp_path, name, reason):
    with pytest.raises(CorpusError, match=reason):
        open_corpus(config(tmp_path, name))
    assert not list((tmp_path / "cache").glob("*/index.json"))


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CorpusError, match=r"specialize\[tf\]"):
        open_corpus(config(tmp_path, "spoken_digit"))
