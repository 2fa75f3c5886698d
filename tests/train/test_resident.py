"""Audio that lives on the devices is the audio that batches would bring, bit for bit."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import save_base
from specialize.cli import main
from specialize.commands import load_experiment
from specialize.corpus import Corpus, Cut, Faults, Shapes, Size, Utterance, cohort_batches
from specialize.errors import ConfigError, CorpusError
from specialize.train import Run, Stopping, plan, train
from specialize.train.recorder import read_jobs
from specialize.train.resident import ResidentAudio, resident_bytes
from tests.bases import BASES, tiny_whisper
from tests.people import write_people
from tests.train.cohorts import assignments, cohort, one_shape, people, train_jobs
from tests.train.test_step import COLLECTIVE

STOP = Stopping(max_steps=8, every=4, patience=9)
CUTS = {"in parts": Cut(4, 2), "two steps a dispatch": Cut(4, 4, 2)}


def training(corpus: Corpus) -> list[Utterance]:
    return [utterance for speaker in corpus.speakers for utterance in speaker.train]


@pytest.mark.parametrize(("name", "cut"), list(zip(BASES, itertools.cycle(CUTS.values()), strict=False)))
def test_a_run_has_the_same_bits_with_and_without(name, cut):
    how: Any = {"stop": STOP, "cut": cut, "base": name}
    brought = train_jobs(cohort(4, devices=2, base=name), range(6), **how)
    resident = train_jobs(cohort(4, devices=2, base=name), range(6), resident=True, **how)
    assert resident.looks == brought.looks
    assert len(resident.jobs) == 6
    for left, right in zip(resident.jobs, brought.jobs, strict=True):
        assert left.looks == right.looks
        jax.tree.map(np.testing.assert_array_equal, left.submodel, right.submodel)


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_what_is_fetched_is_what_a_batch_would_bring(cut):
    """Up to the last utterance of the array, in a size that reaches past it, and in slots without a job."""
    corpus, trained = people(), cohort(8, devices=8)
    given = [None, *assignments(corpus)[1:]]
    longest = one_shape(corpus).sizes[0]
    shapes = Shapes((longest, Size(longest.samples + 12_345, longest.labels)))
    for sizes in (shapes, Shapes(shapes.sizes[1:])):
        faults = Faults()
        audio = ResidentAudio(corpus, training(corpus), sizes.sizes[-1].samples, trained, faults)
        brought = list(cohort_batches(corpus, given, 4, cut, sizes))
        placed = list(cohort_batches(corpus, given, 4, cut, sizes, faults, audio.position))
        for dispatch, other in zip(placed, brought, strict=True):
            parts = audio.fetch(trained.place(dispatch.parts), dispatch.sizes)
            jax.tree.map(np.testing.assert_array_equal, parts, other.parts)
            for part in parts:
                assert part.audio.sharding.is_equivalent_to(trained.sharding, part.audio.ndim)
        assert not faults.news()


def test_fetching_needs_no_collectives():
    corpus, trained = people(), cohort(8, devices=8)
    audio = ResidentAudio(corpus, training(corpus), 32_000, trained, Faults())
    rows = trained.place(np.zeros((8, 2), np.int32))
    text = audio._cut_out.lower(16_000, audio._audio, rows, rows).compile().as_text()
    assert "num_partitions=8" in text or "sharding" in text
    assert COLLECTIVE.findall(text) == []


def test_no_utterance_is_kept_twice():
    corpus, trained = people(), cohort(8)
    audio = ResidentAudio(corpus, 3 * training(corpus), 7, trained, Faults())
    assert audio._audio.shape == (sum(u.samples for u in training(corpus)) + 7,)


EXPERIMENT = """
from pathlib import Path
from specialize import CohortConfig, CorpusConfig, Experiment, HyperParameters, ResidualAdapter, Stopping

here = Path(__file__).parent
experiment = Experiment(
    name="people",
    base=here / "base",
    corpus=CorpusConfig(manifest=here / "people.jsonl", cache=here / "cache"),
    submodel=ResidualAdapter(bottleneck=2),
    hyper=HyperParameters(learning_rate=0.1),
    stop=Stopping(max_steps=6, every=3, patience=9),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=3, dispatch=3),
    runs=here / "runs",
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resident")
    write_people(folder, 5, 6)
    save_base(tiny_whisper(), folder / "base")
    (folder / "people.py").write_text(EXPERIMENT)
    return folder


def finished(folder: Path, name: str, **cohort: Any) -> Run:
    experiment = load_experiment(folder / "people.py")
    changed = dataclasses.replace(experiment.cohort, **cohort)
    return train(dataclasses.replace(experiment, name=name, cohort=changed))


def test_audio_that_breaks_is_named_and_quarantines_its_speaker_as_ever(folder, monkeypatch, capsys):
    """The corpus was fine when it was built; the disk has failed since."""
    sound = finished(folder, "sound", resident="on")
    read = Corpus.audio

    def broken(corpus: Corpus, utterance: Utterance) -> np.ndarray:
        if utterance.id.startswith("p2/"):
            raise CorpusError("the record is damaged")
        return read(corpus, utterance)

    monkeypatch.setattr(Corpus, "audio", broken)
    capsys.readouterr()
    runs, told = {}, {}
    for resident in ("on", "off"):
        runs[resident] = finished(folder, f"broken {resident}", resident=resident)
        lines = capsys.readouterr().err.splitlines()
        told[resident] = {line.strip() for line in lines if "cannot be read" in line}
    assert told["on"] == told["off"] != set()
    assert read_jobs(runs["on"]) == read_jobs(runs["off"])
    assert "the record is damaged" in runs["on"].read("summary.json")["quarantined"]["p2"]
    assert set(runs["on"].store.speakers()) == {"p0", "p1", "p3", "p4"}
    for name in runs["on"].store.speakers():
        for other in (runs["off"], sound):
            jax.tree.map(
                np.testing.assert_array_equal, runs["on"].store.load(name).submodel, other.store.load(name).submodel
            )


def test_a_broken_recording_that_nothing_trains_on_is_not_told(monkeypatch):
    corpus, trained, faults = people(), cohort(8), Faults()
    read, bad, good = Corpus.audio, *training(corpus)[:2]

    def broken(corpus: Corpus, utterance: Utterance) -> np.ndarray:
        if utterance == bad:
            raise CorpusError("the record is damaged")
        return read(corpus, utterance)

    monkeypatch.setattr(Corpus, "audio", broken)
    audio = ResidentAudio(corpus, training(corpus), 1, trained, faults)
    audio.position(good)
    assert not faults.news()
    audio.position(bad)
    audio.position(bad)
    (reason,) = faults.news().values()
    assert "the record is damaged" in reason
    assert f"utterance '{bad.id}'" in reason


SAMPLES = 10_000_000
NEEDED = 4 * (SAMPLES + 5)


@pytest.mark.parametrize(
    ("resident", "platform", "memory", "expected"),
    [
        ("auto", "gpu", 16 * NEEDED, NEEDED),
        ("auto", "gpu", 16 * NEEDED - 1, 0),
        ("auto", "gpu", None, 0),
        ("auto", "cpu", 10**15, 0),
        ("on", "cpu", None, NEEDED),
        ("on", "gpu", 1, NEEDED),
        ("off", "gpu", 10**15, 0),
    ],
)
def test_auto_keeps_audio_where_it_is_a_small_share_of_a_devices_own_memory(resident, platform, memory, expected):
    assert resident_bytes(resident, SAMPLES, 5, platform, memory) == expected


def test_more_audio_than_32_bits_can_number_is_refused_or_brought():
    assert resident_bytes("auto", 2**31, 0, "gpu", 10**15) == 0
    assert resident_bytes("auto", 15 * 2**27, 0, "gpu", 10**15) == 15 * 2**29
    with pytest.raises(ConfigError, match="resident off"):
        resident_bytes("on", 2**31, 0, "gpu", 10**15)


def test_a_plan_counts_what_lives_on_the_devices_and_the_dry_run_says_so(folder, capsys):
    experiment = load_experiment(folder / "people.py")
    works = {}
    for resident in ("off", "auto", "on"):
        changed = dataclasses.replace(experiment.cohort, resident=resident)
        planned = plan(dataclasses.replace(experiment, cohort=changed))
        (program,) = planned.programs
        works[resident] = planned.work(program, 8)
    longest = works["on"].longest.samples
    assert works["on"].resident == 4 * (sum(u.samples for u in program.utterances) + longest)
    assert works["off"].resident == works["auto"].resident == 0
    assert {work.together for work in works.values()} == {3}
    main(["train", str(folder / "people.py"), "--name", "dry", "--cohort.resident", "on", "--dry-run"])
    said = " ".join(capsys.readouterr().out.split())
    assert "dispatch 3 steps in one call of the devices" in said
    assert "which each device keeps" in said


def test_dispatches_longer_than_the_steps_between_looks_are_refused(folder):
    experiment = load_experiment(folder / "people.py")
    changed = dataclasses.replace(experiment.cohort, dispatch=4)
    with pytest.raises(ConfigError, match=r"after 3 steps comes a look.*--cohort.dispatch 3"):
        plan(dataclasses.replace(experiment, cohort=changed))
