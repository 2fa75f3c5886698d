"""Cohort batches `[S, B, …]`: each slot's utterances in an order of its job's own, lengths aligned across slots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from specialize.base import Batch
from specialize.corpus.shapes import Shapes, Size, largest
from specialize.corpus.speakers import Corpus, Speaker, Utterance

CYCLE = 3
"""Steps over which lengths rise from short to long. Jobs whose steps agree modulo this have their lengths aligned."""
_JITTER = 0.15
_FORESEEN_JOBS = 1024
_FORESEEN_STEPS = 24


@dataclass(frozen=True)
class Order:
    """Which utterances a job trains on at each of its steps: a pure function of the job, whatever its company.

    Utterances are drawn epoch after epoch, each epoch in a random order. The draws of a cycle of `CYCLE` steps are sorted by
    length, with some jitter, and dealt out in that order: step 0 of every cycle has the shortest third of the job's
    draws, the last step the longest. So slots at the same step of their cycles have utterances of similar length.
    """

    lengths: tuple[int, ...]
    """Samples of each utterance."""
    batch: int
    """B."""
    seed: int

    def rows(self, step: int) -> tuple[int, ...]:
        """Positions of the utterances of a step: B of them, or all where there are no more than B."""
        n = len(self.lengths)
        if n <= self.batch:
            return tuple(range(n))
        cycle, phase = divmod(step, CYCLE)
        count = CYCLE * self.batch
        draws = np.array([self._draw(at) for at in range(cycle * count, (cycle + 1) * count)])
        jitter = 1.0 + _JITTER * np.random.default_rng((self.seed, 1, cycle)).random(count)
        ranked = draws[np.argsort(np.array(self.lengths)[draws] * jitter, kind="stable")]
        return tuple(ranked[phase * self.batch : (phase + 1) * self.batch].tolist())

    def _draw(self, at: int) -> int:
        epoch, place = divmod(at, len(self.lengths))
        return int(np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.lengths))[place])


@dataclass(frozen=True)
class Assignment:
    """What a slot trains on next."""

    speaker: Speaker
    seed: int
    """Of the job's order."""
    step: int
    """Steps that the job has made."""


class _Steps:
    """A random-access source for grain: item k is the batch of step k from now."""

    def __init__(self, corpus: Corpus, assignments: Sequence[Assignment | None], steps: int, batch: int, shapes: Shapes):
        self._corpus, self._assignments, self._steps = corpus, assignments, steps
        self._batch, self._shapes = batch, shapes
        self._orders = [
            None if a is None else Order(tuple(u.samples for u in a.speaker.train), batch, a.seed) for a in assignments
        ]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: Any) -> Batch:
        rows: list[list[Utterance]] = []
        for assignment, order in zip(self._assignments, self._orders, strict=True):
            if assignment is None or order is None:
                rows.append([])
            else:
                rows.append([assignment.speaker.train[i] for i in order.rows(assignment.step + int(index))])
        return collate(self._corpus, rows, self._batch, self._shapes)


def cohort_batches(
    corpus: Corpus, assignments: Sequence[Assignment | None], steps: int, batch: int, shapes: Shapes
) -> grain.DatasetIterator[Batch]:
    """The training batches of the next steps of a cohort, decoded ahead in threads.

    Args:
        corpus: opened with a base.
        assignments: one for each of the S slots; None leaves the slot's rows empty.
        steps: how many batches.
        batch: B, utterances of each slot.
        shapes: lengths to pad to.

    Returns:
        An iterator over `Batch`es of numpy arrays [S, B, …]. Its state (`get_state`) is small, and `set_state` goes on
        with the identical batch.
    """
    source = _Steps(corpus, list(assignments), steps, batch, shapes)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    corpus: Corpus, utterances: Sequence[Sequence[Utterance]], batch: int, shapes: Shapes
) -> list[Batch]:
    """Batches [S, B, …] that hold every utterance of every slot once, each slot's in order of length."""
    return [collate(corpus, rows, batch, shapes) for rows in _eval_rows(utterances, batch)]


def _eval_rows(utterances: Sequence[Sequence[Utterance]], batch: int) -> list[list[list[Utterance]]]:
    ranked = [sorted(of_slot, key=lambda u: u.samples) for of_slot in utterances]
    count = max([-(-len(of_slot) // batch) for of_slot in ranked], default=0)
    return [[of_slot[k * batch : (k + 1) * batch] for of_slot in ranked] for k in range(count)]


def train_shapes(assignments: Sequence[Assignment], slots: int, batch: int, steps: int, count: int) -> Shapes:
    """Sizes for the training batches of a queue of jobs, foreseen by dealing it out in waves.

    Args:
        assignments: the queue; only its first 1,024 jobs are looked at, but nothing is too long for the last size.
        slots: S.
        batch: B.
        steps: of a job, at most; two dozen are looked at.
        count: how many sizes there may be.
    """
    foreseen = []
    for at in range(0, min(len(assignments), _FORESEEN_JOBS), slots):
        wave = assignments[at : at + slots]
        orders = [Order(tuple(u.samples for u in a.speaker.train), batch, a.seed) for a in wave]
        for step in range(min(steps, _FORESEEN_STEPS)):
            rows = [a.speaker.train[i] for a, order in zip(wave, orders, strict=True) for i in order.rows(step)]
            foreseen.append(_need(rows))
    return Shapes.choose(foreseen, count, largest(_size(u) for a in assignments for u in a.speaker.train))


def eval_shapes(utterances: Sequence[Sequence[Utterance]], slots: int, batch: int, count: int) -> Shapes:
    """Sizes for `eval_batches` of a queue of jobs, dealt out in waves; `utterances` are those of each job."""
    foreseen = [
        _need(u for of_slot in rows for u in of_slot)
        for at in range(0, min(len(utterances), _FORESEEN_JOBS), slots)
        for rows in _eval_rows(utterances[at : at + slots], batch)
    ]
    return Shapes.choose(foreseen, count, largest(_size(u) for of_job in utterances for u in of_job))


def _size(utterance: Utterance) -> Size:
    return Size(utterance.samples, len(utterance.labels))


def _need(utterances: Iterable[Utterance]) -> Size:
    return largest(_size(u) for u in utterances)


def collate(corpus: Corpus, rows: Sequence[Sequence[Utterance]], batch: int, shapes: Shapes) -> Batch:
    """One batch [S, B, …] of at most B utterances a slot; what is lacking is empty rows."""
    s = len(rows)
    n, width = shapes.fit(_need(u for of_slot in rows for u in of_slot))
    made = Batch(
        audio=np.zeros((s, batch, n), np.float32),
        samples=np.zeros((s, batch), np.int32),
        labels=np.zeros((s, batch, width), np.int32),
        label_lengths=np.zeros((s, batch), np.int32),
    )
    for slot, of_slot in enumerate(rows):
        for row, utterance in enumerate(of_slot):
            made.audio[slot, row, : utterance.samples] = corpus.audio(utterance)
            made.samples[slot, row] = utterance.samples
            made.labels[slot, row, : len(utterance.labels)] = utterance.labels
            made.label_lengths[slot, row] = len(utterance.labels)
    return made


def queue_order(speakers: Iterable[Speaker]) -> list[Speaker]:
    """Speakers by the mean plus the longest of their training utterances: neighbours share steps, so padding stays low."""

    def length(speaker: Speaker) -> float:
        lengths = [u.samples for u in speaker.train]
        return sum(lengths) / len(lengths) + max(lengths)

    return sorted(speakers, key=lambda speaker: (length(speaker), speaker.id))
