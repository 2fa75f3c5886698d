"""A small base, corpus and cohort for the tests of training."""

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from specialize.corpus import Assignment, Corpus, CorpusConfig, Cut, Shapes, Size, open_corpus
from specialize.submodel import Kind, ResidualAdapter, find_sites
from specialize.submodel.bank import speaker_mesh
from specialize.train import Cohort, Finished, HyperParameters, Job, Schedule, Stopping
from specialize.train.loop import CohortTrainer
from specialize.train.trainee import Plain
from tests.bases import BASES
from tests.people import write_people

SPEC = ResidualAdapter(where=("*/layers_*",), bottleneck=4)
"""Adapters after all layers of an encoder, and of a Transformer decoder where a base has one."""


@functools.cache
def people(speakers: int = 8, utterances: int = 8, base: str = "whisper") -> Corpus:
    """A corpus of made-up people for the base of that name, built once a session."""
    folder = _written(speakers, utterances)
    return open_corpus(CorpusConfig(manifest=folder / "people.jsonl", cache=folder / "cache"), BASES[base]())


@functools.cache
def _written(speakers: int, utterances: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="people"))
    write_people(folder, speakers, utterances)
    return folder


def one_shape(corpus: Corpus) -> Shapes:
    """A single size that holds every batch, so that all cohorts of one S share a program."""
    utterances = [u for s in corpus.speakers for part in (s.train, s.dev) for u in part]
    return Shapes((Size(max(u.samples for u in utterances), max(len(u.labels) for u in utterances)),))


@functools.cache
def cohort(
    slots: int, devices: int = 1, spec: Kind = SPEC, random: bool = True, chunk: int = 0, base: str = "whisper"
) -> Cohort:
    """A cohort over the tiny base of that name, compiled once a session."""
    made = BASES[base]()
    sites = find_sites(spec, made.architecture, made.params)
    mesh = speaker_mesh(jax.devices()[:devices])
    return Cohort(made.architecture, Plain(spec, sites), mesh, slots, random=random, chunk=chunk)


@dataclass
class Results:
    """A listener that keeps what it hears."""

    jobs: list[Finished] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    looks: list[tuple[int, str, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def looked(self, slot: int, running: Any, train_loss: float, grad_norm: float) -> None:
        del grad_norm
        self.looks.append((slot, running.job.speaker.id, train_loss))

    def fault(self, reason: str) -> None:
        self.faults.append(reason)

    def saves(self) -> bool:
        return False

    def save(self, state: Any, progress: Any) -> None:
        raise AssertionError

    def finished(self, slot: int, finished: Finished) -> None:
        self.jobs.append(finished)
        self.slots[finished.job.speaker.id] = slot

    def by_speaker(self) -> dict[str, Finished]:
        return {finished.job.speaker.id: finished for finished in self.jobs}


def trainer(
    trained: Cohort,
    speakers: Sequence[int],
    *,
    stop: Stopping | None = None,
    hyper: HyperParameters | None = None,
    refill: Any = "continuous",
    base: str = "whisper",
    corpus: Corpus | None = None,
    cut: Cut | None = None,
    resident: bool = False,
) -> CohortTrainer:
    """What trains the people at these places of the corpus, in this order of the queue; `base` is the cohort's."""
    corpus = corpus or people(base=base)
    stop = stop or Stopping(max_steps=50, every=25, patience=9)
    hyper = hyper or HyperParameters(learning_rate=3e-3, dropout=0.1, spec_augment=0.5)
    jobs = [Job(corpus.speakers[i], hyper, stop.max_steps) for i in speakers]
    schedule = Schedule(jobs, trained.slots, stop, refill)
    shapes = one_shape(corpus)
    kept = [utterance for job in jobs for utterance in job.train] if resident else []
    return CohortTrainer(BASES[base](), corpus, trained, schedule, cut or Cut(4, 2), shapes, shapes, kept)


def train_jobs(trained: Cohort, speakers: Sequence[int], **how: Any) -> Results:
    """Runs a `trainer` to its end."""
    results = Results()
    trainer(trained, speakers, **how).run(results)
    return results


def assignments(corpus: Corpus) -> list[Assignment]:
    """Everybody's first step."""
    return [Assignment(speaker.train, 0, 0) for speaker in corpus.speakers]
