"""Manifests: what is wrong with a line is named with it, and the rest is used."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from specialize.corpus import CorpusConfig, open_corpus, read_manifest
from specialize.errors import CorpusError
from tests.bases import tiny_whisper

RATE = 16_000


def tone(path: Path, seconds: float = 0.5, rate: int = RATE) -> None:
    time = np.arange(int(rate * seconds)) / rate
    soundfile.write(path, (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), rate)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with recordings of many names."""
    for name in ("a", "b", "c", "d", "e", "f"):
        tone(tmp_path / f"{name}.wav")
    return tmp_path


def good(name: str, **more) -> dict:
    return {"audio": f"{name}.wav", "text": "one two", "speaker": "ana"} | more


def manifest(folder: Path, lines: list, name: str = "m.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def opened(path: Path, **fields):
    return open_corpus(CorpusConfig(manifest=path, cache=path.parent / "cache", **fields), tiny_whisper())


BAD_LINES = [
    ("{not json", "not JSON"),
    ("[1, 2]", "not a JSON object"),
    ({"audio": "a.wav", "text": "x"}, "names no speaker"),
    ({"text": "x", "speaker": "ana"}, "names no audio"),
    (good("a", text="  "), "text is empty"),
    (good("nowhere"), "does not exist"),
    (good("a", utterance="twice"), "stands on line 1 already"),
    (good("a", split="training-ish"), "split 'training-ish' is unknown"),
    (good("broken"), "cannot be read"),
    (good("empty"), "no samples"),
    (good("nan"), "not finite"),
    (good("long"), "at most 5.0 s"),
    (good("a", text="<|endoftext|>"), "markup"),
    (good("a", text="word " * 30), "tokens; this base takes at most 62"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[reason for _, reason in BAD_LINES])
def test_a_bad_line_is_left_out_and_named(folder, line, reason):
    (folder / "broken.wav").write_bytes(b"RIFFnonsense")
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(folder / "nan.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    tone(folder / "long.wav", seconds=5.2)
    path = manifest(folder, [good("b", utterance="twice"), line, *(good(name) for name in "cdef")])
    corpus = opened(path)
    assert [(problem.line, reason in problem.reason) for problem in corpus.problems] == [(2, True)]
    assert "line 2" in str(corpus.problems[0])
    (speaker,) = corpus.speakers
    assert len(speaker.train + speaker.dev + speaker.test) == 5
    with pytest.raises(CorpusError, match="line 2"):
        opened(path, strict=True)


def test_a_speaker_with_nothing_to_train_on_does_not_stop_the_others(folder):
    lines = [good(name, split=split) for name, split in zip("abc", ("train", "dev", "test"), strict=True)]
    lines += [good("d", speaker="bob", split="test"), good("e", speaker="eve", split="train")]
    corpus = opened(manifest(folder, lines))
    assert [speaker.id for speaker in corpus.speakers] == ["ana"]
    assert {problem.speaker: problem.line for problem in corpus.problems} == {"bob": 0, "eve": 0}
    assert "no usable train and no dev" in str(corpus.problems[0])
    assert "no usable dev" in str(corpus.problems[1])


def test_a_line_without_split_among_lines_with_is_named(folder):
    lines = [good("a", split="train"), good("b", split="valid"), good("c")]
    corpus = opened(manifest(folder, lines))
    assert [(p.line, "names no split" in p.reason) for p in corpus.problems] == [(3, True)]
    assert len(corpus.speakers[0].dev) == 1


def test_csv_tsv_and_jsonl_say_the_same(folder):
    rows = [("a", "train", 7, "x"), ("b", "dev", 7, "x"), ("c", "test", 7, "x")]
    head = ("audio", "text", "speaker", "split", "age", "severity")
    records = [(f"{name}.wav", "one, two", "ana", split, age, grade) for name, split, age, grade in rows]
    jsonl = manifest(folder, [dict(zip(head, record, strict=True)) for record in records])
    tables = []
    for name, mark in (("m.csv", ","), ("m.tsv", "\t")):
        text = "\n".join(mark.join(f'"{v}"' if mark in str(v) else str(v) for v in r) for r in (head, *records))
        (folder / name).write_text("\ufeff" + text)
        tables.append(folder / name)
    expected = read_manifest(jsonl)[0]
    for table in tables:
        rows_of = read_manifest(table)[0]
        assert [(r.utterance, r.text, r.split, r.attributes) for r in rows_of] == [
            (r.utterance, r.text, r.split, {"age": 7, "severity": "x"}) for r in expected
        ]


def test_csv_numbers_are_numbers_and_ids_stay_texts(folder):
    (folder / "m.csv").write_text("audio,text,speaker,a,b,c\na.wav,x,007,007,1.5,nan\n")
    (row,), problems = read_manifest(folder / "m.csv")
    assert problems == []
    assert row.speaker == "007"
    assert row.attributes == {"a": "007", "b": 1.5, "c": "nan"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "audio,words\na.wav,x\n", "no column text, speaker. It has: audio, words"),
        ("m.xlsx", "", "neither .jsonl"),
        ("m.jsonl", "", "it has no lines"),
        ("m.jsonl", "{}", "No line of"),
    ],
)
def test_manifests_that_cannot_be_used(folder, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_manifest(folder / name)


def test_missing_and_foreign_files(folder):
    with pytest.raises(CorpusError, match="no manifest"):
        read_manifest(folder / "none.jsonl")
    (folder / "latin.jsonl").write_bytes(b'{"audio": "\xe4"}')
    with pytest.raises(CorpusError, match="not UTF-8"):
        read_manifest(folder / "latin.jsonl")


def test_roles_speakers_and_limits(folder):
    lines = [
        good(name, speaker=speaker, role=role, split=split)
        for speaker, role, names in (("ana", "base", "ab"), ("bob", "personal", "cd"), ("eve", "personal", "ef"))
        for name, split in zip(names, ("train", "dev"), strict=True)
    ]
    path = manifest(folder, lines)
    assert [s.id for s in opened(path).speakers] == ["ana", "bob", "eve"]
    assert [s.id for s in opened(path, role="personal").speakers] == ["bob", "eve"]
    assert [s.id for s in opened(path, role="personal", limit=1).speakers] == ["bob"]
    assert [s.id for s in opened(path, speakers=("eve",)).speakers] == ["eve"]
    (pooled,) = opened(path, role="personal", pool="all").speakers
    assert (pooled.id, len(pooled.train), len(pooled.dev)) == ("all", 2, 2)
    plain = manifest(folder, [{k: v for k, v in line.items() if k != "role"} for line in lines], "plain.jsonl")
    assert [s.id for s in opened(plain, role="personal").speakers] == ["ana", "bob", "eve"]
    with pytest.raises(CorpusError, match="Roles there: base, personal"):
        opened(path, role="none")
    with pytest.raises(CorpusError, match="no usable utterance of zoe"):
        opened(path, speakers=("zoe",))
