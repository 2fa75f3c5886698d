"""Do no harm: who is served by the base alone, in the recogniser, in scores and on the command line.

All decode two rows of up to two seconds, so that few programs are compiled.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from specialize import CorpusConfig, Experiment
from specialize.base import save_base
from specialize.cli import main
from specialize.serve import Recognizer
from specialize.submodel import ResidualAdapter, StoredSubmodel, find_sites, init_submodel
from specialize.train import Run
from specialize.train.recorder import JOBS
from tests.bases import random_speech, talking_whisper
from tests.people import write_people

SPEC = ResidualAdapter(bottleneck=2)


def stored(speaker: str = "p0", seed: int = 0, **training: Any) -> StoredSubmodel:
    """A Submodel that changes what the base says, with what its run says of it."""
    base = talking_whisper()
    submodel = init_submodel(SPEC, find_sites(SPEC, base.architecture, base.params), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    submodel = jax.tree.map(lambda leaf: np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), np.float32), submodel)
    return StoredSubmodel(submodel, SPEC, speaker, base.fingerprint, training)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    audio, samples = random_speech(talking_whisper(), rows=2, seconds=2.0)
    return [clip[:length] for clip, length in zip(audio, samples, strict=True)]


@pytest.fixture(scope="module")
def gated() -> Recognizer:
    return Recognizer(talking_whisper(), batch=2)


@pytest.fixture(scope="module")
def ungated() -> Recognizer:
    return Recognizer(talking_whisper(), batch=2, gate=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run of four people, told and not trained.

    p0: a Submodel that did not beat the base, and is worse on test too. p1: one that did. p2: a job in quarantine, of
    which no Submodel came. p3: nothing.
    """
    folder = tmp_path_factory.mktemp("gate")
    write_people(folder, speakers=4, utterances=6)
    base = talking_whisper()
    save_base(base, folder / "base")
    corpus = CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache")
    experiment = Experiment(name="run", base=folder / "base", corpus=corpus, submodel=SPEC, runs=folder / "runs")
    run = Run.begin(experiment, base=base.fingerprint, corpus="none")
    run.store.save(stored("p0", 0, beats_base_on_dev=False))
    run.store.save(stored("p1", 1, beats_base_on_dev=True))
    jobs = [("p0", None), ("p1", None), ("p2", "its audio is broken")]
    lines = [json.dumps({"speaker": name, "point": 0, "quarantined": reason}) for name, reason in jobs]
    (run.folder / JOBS).write_text("\n".join(lines) + "\n")
    return run


def evaluated(run: Run, gate: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Results, and the transcript of each speaker, who has one test utterance."""
    main(["evaluate", str(run.folder), "--gate", gate, "--resamples", "20", "--batch", "2"])
    suffix = "" if gate == "on" else ".gate-off"
    lines = (run.folder / f"transcripts{suffix}.jsonl").read_text(encoding="utf-8").split("\n")
    transcripts = [json.loads(line) for line in lines if line]
    results = run.read(f"results{suffix}.json")
    assert len(transcripts) == len(results["speakers"])
    return results, {transcript["speaker"]: transcript for transcript in transcripts}


# The recogniser


def test_a_submodel_that_does_not_help_is_not_used(clips, gated, ungated):
    plain = gated.transcribe_batch(clips)
    useless, useful = stored(beats_base_on_dev=False), stored(beats_base_on_dev=True)
    assert gated.transcribe_batch(clips, [useless] * 2) == plain
    assert gated.transcribe_batch(clips, [useful] * 2) == ungated.transcribe_batch(clips, [useless] * 2)
    assert ungated.transcribe_batch(clips, [useless] * 2) != plain


def test_the_gate_looks_at_each_row(clips, gated, ungated):
    mixed = [stored(seed=0, beats_base_on_dev=False), stored(seed=1, beats_base_on_dev=True)]
    plain, used = gated.transcribe_batch(clips), ungated.transcribe_batch(clips, mixed)
    assert gated.transcribe_batch(clips, mixed) == [plain[0], used[1]]
    assert used[0] != plain[0]
    assert used[1] != plain[1]


def test_a_submodel_of_which_nothing_is_said_is_used(clips, gated, ungated):
    assert gated.transcribe(clips[0], stored()) == ungated.transcribe(clips[0], stored())
    assert gated.transcribe(clips[0], stored()) != gated.transcribe(clips[0])


def test_the_gate_reads_stored_submodels(clips, gated, ungated, run):
    path = str(run.store.path("p0"))
    assert gated.transcribe(clips[0], path) == gated.transcribe(clips[0])
    assert ungated.transcribe(clips[0], path) != gated.transcribe(clips[0])


def test_rows_without_a_submodel_have_the_whole_window(clips, gated):
    base = talking_whisper()
    assert base != base.alone()
    window = Recognizer(base.alone(), batch=2).transcribe_batch(clips)
    crop = Recognizer(base, batch=2, alone=base.with_context("needed")).transcribe_batch(clips)
    assert gated.transcribe_batch(clips) == window
    assert all(one != other for one, other in zip(window, crop, strict=True))
    mixed = gated.transcribe_batch(clips, [stored(), None])
    assert mixed[1] == window[1]
    assert mixed[0] == gated.transcribe(clips[0], stored())


# Scores


def test_scores_count_the_base_for_those_it_serves(run, capsys):
    results, texts = evaluated(run, "on")
    of = results["speakers"]
    assert {name: row["used"] for name, row in of.items()} == {"p0": "base", "p1": "submodel", "p2": "base"}
    assert results["gate"] == "on"
    assert results["pooled"]["served_by_base"] == 2
    assert results["speakers_without_submodel"] == ["p3"]
    assert of["p0"]["wer"] == of["p0"]["base_wer"] < of["p0"]["submodel_wer"]
    assert of["p2"]["wer"] == of["p2"]["base_wer"] == of["p2"]["submodel_wer"]
    words = sum(row["words"] for row in of.values())
    for name in ("base_wer", "wer", "submodel_wer"):
        assert results["pooled"][name] == pytest.approx(sum(row[name] * row["words"] for row in of.values()) / words)
    assert results["pooled"]["wer"] < results["pooled"]["submodel_wer"]
    assert texts["p0"]["submodel"] != texts["p0"]["base"]
    assert texts["p2"]["submodel"] == texts["p2"]["base"]
    assert "2 served by the base" in " ".join(capsys.readouterr().out.split())


def test_without_the_gate_every_submodel_is_scored(run, capsys):
    results, texts = evaluated(run, "off")
    of = results["speakers"]
    assert {name: row["used"] for name, row in of.items()} == {"p0": "submodel", "p1": "submodel"}
    assert results["gate"] == "off"
    assert results["pooled"]["served_by_base"] == 0
    assert results["speakers_without_submodel"] == ["p2", "p3"]
    assert of["p0"]["wer"] == of["p0"]["submodel_wer"] > of["p0"]["base_wer"]
    assert results["pooled"]["wer"] == results["pooled"]["submodel_wer"]
    assert texts["p0"]["submodel"] != texts["p0"]["base"]
    assert "0 served by the base" in " ".join(capsys.readouterr().out.split())


def test_where_all_jobs_are_in_quarantine_the_base_serves_everybody(run, tmp_path):
    corpus = dataclasses.replace(run.experiment.corpus, speakers=("p2",))
    other = Run.begin(dataclasses.replace(run.experiment, name="trouble", corpus=corpus), base=run.base, corpus="none")
    (other.folder / JOBS).write_text((run.folder / JOBS).read_text().splitlines()[2] + "\n")
    main(["evaluate", str(other.folder), "--resamples", "20", "--batch", "2", "--out", str(tmp_path)])
    pooled = json.loads((tmp_path / "results.json").read_text())["pooled"]
    assert pooled["served_by_base"] == pooled["speakers"] == 1
    assert pooled["wer"] == pooled["base_wer"]
    with pytest.raises(SystemExit):
        main(["evaluate", str(other.folder), "--gate", "off", "--out", str(tmp_path)])


# The command


def test_transcribe_says_that_the_base_serves_and_can_be_told_otherwise(run, capsys):
    base, recordings = run.experiment.base, run.experiment.corpus.manifest.parent
    clips = [str(recordings / name) for name in ("p0_0.wav", "p1_0.wav")]

    def transcribed(*words: object) -> tuple[str, str]:
        capsys.readouterr()
        main(["transcribe", str(base), *clips, *map(str, words)])
        captured = capsys.readouterr()
        return captured.out, captured.err

    plain, quiet = transcribed()
    assert quiet == ""
    useless = ["--submodel", run.store.path("p0")]
    text, told = transcribed(*useless)
    assert text == plain
    assert "'p0' did not beat the base" in told
    assert "--gate off" in told
    text, told = transcribed(*useless, "--gate", "off")
    assert text != plain
    assert told == ""
    _, told = transcribed("--submodel", run.store.path("p1"))
    assert told == ""
