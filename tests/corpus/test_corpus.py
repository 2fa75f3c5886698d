"""Data sets made from manifests: audio of any kind, kept once, split the same way always."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from specialize.corpus import CorpusConfig, open_corpus, read_audio, split_by_hash
from specialize.errors import CorpusError
from tests.people import write_people


def spectrum_peak(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio * np.hanning(audio.size))).argmax() * rate / audio.size)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_and_rates(tmp_path, suffix, rate):
    time_ = np.arange(rate) / rate
    soundfile.write(tmp_path / f"a.{suffix}", 0.4 * np.sin(2 * np.pi * 440 * time_), rate)
    audio = read_audio(tmp_path / f"a.{suffix}", 16_000)
    assert audio.dtype == np.float32
    assert abs(audio.size - 16_000) < 2_000
    assert abs(spectrum_peak(audio, 16_000) - 440) < 3
    assert 0.3 < np.abs(audio).max() < 0.5


def test_channels_are_averaged(tmp_path):
    left, right = np.full(100, 0.5, np.float32), np.full(100, -0.25, np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 16_000), 0.125)


def test_what_is_no_audio_is_refused(tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    with pytest.raises(CorpusError, match="cannot be read"):
        read_audio(tmp_path / "a.wav", 16_000)
    with pytest.raises(CorpusError, match="cannot be read"):
        read_audio(tmp_path / "none.wav", 16_000)


def test_stored_audio_is_the_file_to_sixteen_bits(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=2, utterances=4)
    corpus = open_corpus(CorpusConfig(manifest=manifest, cache=tmp_path / "cache"))
    for speaker in corpus.speakers:
        for utterance in speaker.train + speaker.dev + speaker.test:
            stored = corpus.audio(utterance)
            direct = read_audio(manifest.parent / corpus.built.rows[utterance.index].audio.name, 16_000)
            assert stored.size == utterance.samples == direct.size
            np.testing.assert_allclose(stored, direct, atol=1 / 32768)


def test_a_corpus_is_built_once_and_again_when_audio_changes(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=1, utterances=4)
    config = CorpusConfig(manifest=manifest, cache=tmp_path / "cache")
    first = open_corpus(config)
    assert open_corpus(config).built.folder == first.built.folder
    soundfile.write(manifest.parent / "p0_0.wav", np.zeros(4_000, np.float32), 16_000)
    again = open_corpus(config)
    assert again.built.folder != first.built.folder
    assert min(u.samples for s in again.speakers for u in s.train + s.dev + s.test) == 4_000


def test_problems_of_the_audio_come_back_from_the_cache(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=1, utterances=5)
    (manifest.parent / "p0_2.wav").write_text("broken")
    config = CorpusConfig(manifest=manifest, cache=tmp_path / "cache")
    first, again = open_corpus(config).problems, open_corpus(config).problems
    assert first == again
    assert [problem.line for problem in again] == [3]


def test_nothing_readable_is_an_error(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=1, utterances=3)
    for path in manifest.parent.glob("*.wav"):
        path.write_text("broken")
    with pytest.raises(CorpusError, match="No audio of the corpus can be read; the first is line 1"):
        open_corpus(CorpusConfig(manifest=manifest, cache=tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_killed_build_leaves_nothing_that_opens(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=8, utterances=40, seconds=1.0)
    script = (
        "import sys; from specialize.corpus import CorpusConfig, open_corpus; print('now', flush=True)\n"
        "open_corpus(CorpusConfig(manifest=sys.argv[1], cache=__import__('pathlib').Path(sys.argv[2])))\n"
    ).replace("manifest=sys.argv[1]", "manifest=__import__('pathlib').Path(sys.argv[1])")
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(manifest), str(tmp_path / "cache")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.3)
    child.kill()
    child.wait()
    child.stdout.close()
    finished = [path for path in (tmp_path / "cache").glob("*") if not path.name.startswith(".")]
    for path in finished:
        assert json.loads((path / "index.json").read_text())
    corpus = open_corpus(CorpusConfig(manifest=manifest, cache=tmp_path / "cache"))
    assert sum(len(s.train + s.dev + s.test) for s in corpus.speakers) == 320


def test_tensorflow_is_not_imported(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=1, utterances=4)
    script = (
        "import sys; from pathlib import Path; from specialize.corpus import CorpusConfig, open_corpus\n"
        "c = open_corpus(CorpusConfig(manifest=Path(sys.argv[1]), cache=Path(sys.argv[2])))\n"
        "c.audio(c.speakers[0].train[0])\n"
        "assert 'tensorflow' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(manifest), str(tmp_path / "cache")], check=True)


def test_a_split_depends_on_nothing_but_the_speaker(tmp_path):
    lines = {f"u{i}": i for i in range(20)}
    split = split_by_hash("ana", lines)
    shuffled = dict(sorted(lines.items(), key=lambda item: hash(item[0])))
    assert split_by_hash("ana", shuffled) == split
    assert split_by_hash("bob", lines) != split
    counts = {part: list(split.values()).count(part) for part in ("train", "dev", "test")}
    assert counts == {"train": 12, "dev": 3, "test": 5}


@pytest.mark.parametrize(("count", "parts"), [(1, ["train"]), (2, ["dev", "train"]), (3, ["dev", "test", "train"])])
def test_few_utterances_go_where_they_are_needed_most(count, parts):
    assert sorted(split_by_hash("ana", {f"u{i}": i for i in range(count)}).values()) == parts


def test_attributes_are_what_all_lines_of_a_speaker_share(tmp_path):
    manifest = write_people(tmp_path / "people", speakers=2, utterances=4)
    corpus = open_corpus(CorpusConfig(manifest=manifest, cache=tmp_path / "cache"))
    assert [speaker.attributes for speaker in corpus.speakers] == [{"severity": "mild"}, {"severity": "severe"}]
