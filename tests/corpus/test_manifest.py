"""Manifests: what is wrong with a line is named with it, and the rest is used."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from specialize.corpus import CorpusConfig, open_corpus, read_manifest
from specialize.errors import ConfigError, CorpusError
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
    (good("a", text="a \ud83d b"), "text has half of a surrogate pair"),
    (good("a", speaker="\ud800"), "speaker has half of a surrogate pair"),
    (good("a", utterance="\udcff"), "utterance has half of a surrogate pair"),
    (good("\udcff"), "audio has half of a surrogate pair"),
    (good("a", text="a\0b"), "text has a NUL character"),
    (good("a", speaker="ana\0"), "speaker has a NUL character"),
    (good("a\0"), "audio has a NUL character"),
    (good("a", text=["one", "two"]), "text is a list"),
    (good("a", speaker={"id": 7}), "speaker is an object"),
    (good("a", audio=["a.wav"]), "audio is a list"),
    (good("a", text=True), "text is true or false"),
    (good("a", text=float("nan")), "text is nan"),
    (good("a", role=[]), "role is a list"),
    (good("x" * 300), "cannot be looked for: File name too long"),
    (good("a", **{"\ud800": 1}) | {"audio": None}, "names no audio"),
    ("[" * 100_000, "JSON"),
    ('{"text": ' + "1" * 5_000 + "}", "JSON"),
    (good("b"), "audio is that of line 1"),
    (good("d/../b"), "audio is that of line 1"),
    (good("link"), "audio is that of line 1"),
    (good("a", speaker=" ana"), "written ' ana' here and 'ana' on line 1"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=[f"{i} {BAD_LINES[i][1]}" for i in range(len(BAD_LINES))])
def test_a_bad_line_is_left_out_and_named(folder, line, reason):
    (folder / "broken.wav").write_bytes(b"RIFFnonsense")
    soundfile.write(folder / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(folder / "nan.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    tone(folder / "long.wav", seconds=5.2)
    (folder / "d").mkdir()
    (folder / "link.wav").symlink_to("b.wav")
    path = manifest(folder, [good("b", utterance="twice"), line, *(good(name) for name in "cdef")])
    corpus = opened(path)
    assert [(problem.line, reason in problem.reason) for problem in corpus.problems] == [(2, True)]
    assert "line 2" in str(corpus.problems[0])
    json.dumps(vars(corpus.problems[0]), ensure_ascii=False).encode()  # as a run writes them
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


def test_only_what_is_needed_must_be_there(folder):
    lines = [good("a", split="train"), good("b", split="dev")]
    lines += [good("c", speaker="bob", split="test"), good("d", speaker="eve", split="train")]
    path = manifest(folder, lines)
    scored = open_corpus(CorpusConfig(manifest=path, cache=folder / "cache"), tiny_whisper(), needs=("test",))
    assert [speaker.id for speaker in scored.speakers] == ["bob"]
    assert [(problem.speaker, "no usable test" in problem.reason) for problem in scored.problems] == [
        ("ana", True),
        ("eve", True),
    ]


def test_problems_are_those_of_the_chosen_in_the_order_of_the_manifest(folder):
    (folder / "f.wav").write_text("broken")
    lines: list = [
        good("nowhere", role="base"),
        good("a", role="personal", split="train"),
        good("f", role="personal", speaker="bob", split="train"),
        good("b", role="personal"),
        good("c", role="personal", split="dev"),
        good("nowhere", role="personal", split="dev"),
        good("nowhere"),
        good("d", role="base", speaker="eve"),
        "{not json",
    ]
    path = manifest(folder, lines)
    assert [p.line for p in opened(path).problems] == [1, 3, 4, 6, 7, 9, 0]
    assert [p.line for p in opened(path, role="personal").problems] == [3, 4, 6, 9]
    assert [p.line for p in opened(path, role="personal", speakers=("ana",)).problems] == [4, 6, 9]
    assert [p.line for p in opened(path, role="personal", limit=1).problems] == [3, 4, 6, 9]
    with pytest.raises(CorpusError, match="line 9"):
        opened(path, role="personal", strict=True)
    good_enough = manifest(folder, [*lines[:2], lines[4]], "m2.jsonl")
    assert [s.id for s in opened(good_enough, role="personal", strict=True).speakers] == ["ana"]
    with pytest.raises(CorpusError, match="line 1"):
        opened(good_enough, strict=True)


def test_an_id_is_of_its_speaker(folder):
    lines = [good(name, utterance="1", speaker=name, split="train") for name in "ab"]
    lines += [good(name, utterance="2", speaker=who, split="dev") for name, who in (("c", "a"), ("d", "b"))]
    corpus = opened(manifest(folder, lines))
    assert corpus.problems == ()
    assert [(s.id, s.train[0].id, s.dev[0].id) for s in corpus.speakers] == [("a", "1", "2"), ("b", "1", "2")]


def test_numbers_and_texts_name_the_same_speaker_and_space_around_is_none(folder):
    rows, problems = read_manifest(manifest(folder, [good("a", speaker=7), good("b", speaker="7")]))
    assert [row.speaker for row in rows] == ["7", "7"]
    rows, problems = read_manifest(manifest(folder, [good("a", speaker=" x"), good("b", speaker=" x")]))
    assert ([row.speaker for row in rows], problems) == (["x", "x"], [])


@pytest.mark.parametrize(
    ("broken", "line", "used"),
    [
        ('b.wav,"one"two,ana', 3, "ac"),
        ('b.wav,"one\nc.wav,"two",ana', 3, "a"),
        ("b.wav," + "x" * 200_000 + ",ana", 3, "ac"),
        ("b.wav,one", 3, "ac"),
        ("b.wav,a\0b,ana", 3, "ac"),
        ('b.wav,"one\ntwo",ana\nnowhere.wav,one,ana', 5, "abc"),
    ],
)
def test_a_broken_line_of_a_table_is_named(folder, broken, line, used):
    end = "" if used == "a" else "c.wav,three,ana\n"
    (folder / "m.csv").write_text(f"audio,text,speaker\na.wav,one,ana\n{broken}\n{end}")
    rows, (problem,) = read_manifest(folder / "m.csv")
    assert problem.line == line
    assert [row.audio.stem for row in rows] == list(used)


def test_a_quote_that_does_not_close_is_named(folder):
    (folder / "m.csv").write_text('audio,text,speaker\na.wav,one,ana\nb.wav,"two,ana\nc.wav,three,ana\n')
    with pytest.raises(CorpusError, match="quote that opens on line 3"):
        read_manifest(folder / "m.csv")
    (folder / "m.csv").write_text('audio,"text"s,speaker\n')
    with pytest.raises(CorpusError, match="header of"):
        read_manifest(folder / "m.csv")


def test_problems_reach_a_terminal_as_one_line_of_text(folder):
    path = manifest(folder, [good("a"), good("b", speaker="\x1b[2Jbob\r\n", split="\x1b[31m\u202e")])
    _, (problem,) = read_manifest(path)
    assert str(problem).isprintable()
    assert "[2Jbob" in f"{problem}{problem.speaker}"


def test_a_corpus_has_at_least_one_speaker(folder):
    config = CorpusConfig(manifest=folder / "m.jsonl")
    for field, value in (("limit", 0), ("limit", -1), ("pool", "")):
        with pytest.raises(ConfigError, match=rf"corpus\.{field}"):
            dataclasses.replace(config, **{field: value})


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
        ("m.jsonl", "", r"it has no lines\.$"),
        ("m.jsonl", "{}\n[]\n", r"No line of '.*' can be used:\n  line 1: .*\.\n  line 2: .* not a JSON object\.$"),
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
