"""Trouble stays in its slot: neighbours come out bit for bit as without it."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import jax
import numpy as np
import pytest

import specialize.train.loop as loop
from specialize.base import save_base
from specialize.commands import load_experiment
from specialize.corpus import Corpus
from specialize.errors import CorpusError
from specialize.train import Run, Stopping, train
from specialize.train.recorder import read_jobs
from tests.bases import BASES, tiny_whisper
from tests.people import write_people
from tests.train.cohorts import Results, cohort, people, train_jobs

SLOTS, STEPS, EVERY = 32, 6, 3
STOP = Stopping(max_steps=STEPS, every=EVERY, patience=9)


def trained(base: str) -> Results:
    corpus = people(SLOTS, base=base)
    return train_jobs(cohort(SLOTS, devices=8, base=base), range(SLOTS), stop=STOP, corpus=corpus, base=base)


@pytest.fixture(scope="module", params=BASES)
def base(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def sound(base) -> Results:
    return trained(base)


def inject(monkeypatch: pytest.MonkeyPatch, where: dict[int, set[int]]) -> None:
    """NaN into one sample of what {slot: at these steps} trains on."""
    made, step = loop.cohort_batches, 0

    def poisoned(*arguments: Any) -> Iterator[Any]:
        nonlocal step
        for dispatch in made(*arguments):
            first, *others = dispatch.parts
            audio = np.array(first.audio)
            for slot, steps in where.items():
                if step in steps:
                    audio[slot, 0, 100] = np.nan
            step += 1
            yield dispatch._replace(parts=(first._replace(audio=audio), *others))

    monkeypatch.setattr(loop, "cohort_batches", poisoned)


def test_nan_in_3_of_32_slots_leaves_29_as_they_were_and_quarantines_3(base, sound, monkeypatch):
    random = Random(7)
    struck = random.sample(range(SLOTS), 3)
    inject(monkeypatch, {slot: set(random.sample(range(STEPS), STOP.max_skipped)) for slot in struck})
    after, before = trained(base).by_speaker(), sound.by_speaker()
    quarantined = {name for name, finished in after.items() if finished.quarantined}
    assert quarantined == {people(SLOTS).speakers[slot].id for slot in struck}
    for name in quarantined:
        assert after[name].skipped == STOP.max_skipped
        assert f"{STOP.max_skipped} of its" in (after[name].ended or "")
        assert not after[name].helps
    assert len(before) - len(quarantined) == 29
    for name in set(before) - quarantined:
        assert not before[name].quarantined
        assert after[name].looks == before[name].looks
        jax.tree.map(np.testing.assert_array_equal, after[name].submodel, before[name].submodel)


@pytest.mark.parametrize("base", ["whisper"], indirect=True)
def test_a_step_that_cannot_be_taken_is_counted_and_below_the_limit_the_job_goes_on(base, sound, monkeypatch):
    inject(monkeypatch, {5: {0, EVERY + 1}})
    name = people(SLOTS).speakers[5].id
    after, before = trained(base).by_speaker()[name], sound.by_speaker()[name]
    assert (after.skipped, after.steps, after.quarantined) == (2, STEPS, False)
    assert before.skipped == 0
    assert after.looks[0] == before.looks[0]
    assert after.looks[1:] != before.looks[1:]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.submodel))


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
    stop=Stopping(max_steps=6, every=2, patience=9),
    cohort=CohortConfig(slots=8, batch=2, rows=2, shapes=1),
    runs=here / "runs",
)
"""


def test_audio_that_breaks_while_training_is_named_and_quarantines_its_speaker_alone(tmp_path, monkeypatch, capsys):
    """The corpus was fine when it was built; the disk has failed since."""
    write_people(tmp_path, 5, 6)
    save_base(tiny_whisper(), tmp_path / "base")
    (tmp_path / "people.py").write_text(EXPERIMENT)
    experiment = load_experiment(tmp_path / "people.py")
    train(experiment)
    (tmp_path / "runs/people").rename(tmp_path / "sound")
    before = Run(tmp_path / "sound")
    read = Corpus.audio

    def broken(corpus: Any, utterance: Any) -> np.ndarray:
        if utterance.id.startswith("p2/"):
            raise CorpusError("the record is damaged")
        return read(corpus, utterance)

    monkeypatch.setattr(Corpus, "audio", broken)
    capsys.readouterr()
    after = train(experiment)
    told = " ".join(capsys.readouterr().err.split())
    lines = [json.loads(line) for line in (tmp_path / "people.jsonl").read_text().splitlines()]
    number = next(at for at, line in enumerate(lines, start=1) if f"line {at}: utterance '{line['utterance']}'" in told)
    assert lines[number - 1]["speaker"] == "p2"
    assert "the record is damaged" in told
    jobs = {job["speaker"]: job for job in read_jobs(after)}
    assert {name for name, job in jobs.items() if job["quarantined"]} == {"p2"}
    assert "the record is damaged" in jobs["p2"]["quarantined"]
    assert "line" in jobs["p2"]["quarantined"]
    assert after.read("summary.json")["quarantined"] == {"p2": jobs["p2"]["quarantined"]}
    assert set(before.store.speakers()) == {"p0", "p1", "p2", "p3", "p4"}
    assert set(after.store.speakers()) == {"p0", "p1", "p3", "p4"}
    for name in after.store.speakers():
        jax.tree.map(np.testing.assert_array_equal, after.store.load(name).submodel, before.store.load(name).submodel)
