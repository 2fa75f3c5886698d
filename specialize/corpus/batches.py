"""Cohort batches `[S, B, …]`: each slot's utterances in an order of its job's own, lengths aligned across slots.

Little of a batch is padding, for two reasons: slots at the same step have utterances of similar length (`Order`), and
a batch is cut into parts of a few rows, from short to long, each padded to a length of its own.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from specialize.base import Batch
from specialize.corpus.shapes import Shapes, Size, largest
from specialize.corpus.speakers import Corpus, Speaker, Utterance
from specialize.errors import ConfigError, CorpusError

CYCLE = 3
"""Steps over which lengths rise from short to long. Jobs whose steps agree modulo this have their lengths aligned."""
_JITTER = 0.05
_FORESEEN_STEPS = 24


@dataclass(frozen=True)
class Order:
    """Which utterances a job trains on at each of its steps: a pure function of the job, whatever its company.

    Utterances are drawn epoch after epoch, each epoch in a random order. The draws of a cycle of `CYCLE` steps are
    sorted by length, with some jitter, and dealt out in that order: step 0 of every cycle has the shortest third of
    the job's draws, the last step the longest. So slots at the same step of their cycles have utterances of similar
    length.
    """

    lengths: tuple[int, ...]
    """Samples of each utterance."""
    batch: int
    """B."""
    seed: int

    def rows(self, step: int) -> tuple[int, ...]:
        """Positions of the utterances of a step, from short to long: B of them, or all where there are no more."""
        n = len(self.lengths)
        if n <= self.batch:
            return self._ranked(range(n))
        cycle, phase = divmod(step, CYCLE)
        count = CYCLE * self.batch
        draws = np.array([self._draw(at) for at in range(cycle * count, (cycle + 1) * count)])
        jitter = 1.0 + _JITTER * np.random.default_rng((self.seed, 1, cycle)).random(count)
        ranked = draws[np.argsort(np.array(self.lengths)[draws] * jitter, kind="stable")]
        return self._ranked(ranked[phase * self.batch : (phase + 1) * self.batch].tolist())

    def _ranked(self, rows: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(rows, key=lambda row: (self.lengths[row], row)))

    def _draw(self, at: int) -> int:
        epoch, place = divmod(at, len(self.lengths))
        return int(np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.lengths))[place])


@dataclass(frozen=True)
class Assignment:
    """What a slot trains on next."""

    train: tuple[Utterance, ...]
    seed: int
    """Of the job's order."""
    step: int
    """Steps that the job has made."""


class Faults:
    """Utterances whose audio could not be read while batches were made. Several threads may add."""

    def __init__(self):
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}
        self._told = 0

    def add(self, utterance: Utterance, error: Exception) -> None:
        """Notes an utterance, once."""
        with self._lock:
            self._reasons.setdefault(utterance.index, f"line {utterance.line}: utterance '{utterance.id}': {error}")

    def of(self, utterances: Iterable[Utterance]) -> str | None:
        """Why the first of these that could not be read could not."""
        with self._lock:
            return next((self._reasons[u.index] for u in utterances if u.index in self._reasons), None)

    def news(self) -> list[str]:
        """What was added since the last call."""
        with self._lock:
            reasons = list(self._reasons.values())[self._told :]
            self._told = len(self._reasons)
        return reasons


class _Steps:
    """A random-access source for grain: item k is the batch of step k from now, in parts."""

    def __init__(
        self,
        corpus: Corpus,
        assignments: Sequence[Assignment | None],
        steps: int,
        cut: "Cut",
        shapes: Shapes,
        faults: Faults | None,
    ):
        self._corpus, self._assignments, self._steps = corpus, assignments, steps
        self._cut, self._shapes, self._faults = cut, shapes, faults
        self._orders = [None if a is None else _order(a, cut) for a in assignments]

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: Any) -> tuple[Batch, ...]:
        rows: list[list[Utterance]] = []
        for assignment, order in zip(self._assignments, self._orders, strict=True):
            if assignment is None or order is None:
                rows.append([])
            else:
                rows.append([assignment.train[i] for i in order.rows(assignment.step + int(index))])
        parts = self._cut.parts(rows)
        return tuple(collate(self._corpus, part, self._cut.rows, self._shapes, self._faults) for part in parts)


@dataclass(frozen=True)
class Cut:
    """How the B rows of a batch are cut into parts."""

    batch: int
    """B."""
    rows: int
    """Rows of a part; divides B."""

    def __post_init__(self):
        if self.batch % self.rows:
            raise ConfigError(
                f"A batch of {self.batch} rows cannot be cut into parts of {self.rows}: it must divide it."
            )

    def parts(self, rows: Sequence[Sequence[Utterance]]) -> list[list[Sequence[Utterance]]]:
        """The rows of each slot, cut: a list of parts of a list of slots. Every slot has as many parts."""
        return [[of_slot[at : at + self.rows] for of_slot in rows] for at in range(0, self.batch, self.rows)]


def _order(assignment: Assignment, cut: Cut) -> Order:
    return Order(tuple(u.samples for u in assignment.train), cut.batch, assignment.seed)


def cohort_batches(
    corpus: Corpus,
    assignments: Sequence[Assignment | None],
    steps: int,
    cut: Cut,
    shapes: Shapes,
    faults: Faults | None = None,
) -> grain.DatasetIterator[tuple[Batch, ...]]:
    """The training batches of the next steps of a cohort, decoded ahead in threads.

    Args:
        corpus: opened with a base.
        assignments: one for each of the S slots; None leaves the slot's rows empty.
        steps: how many batches.
        cut: utterances of each slot in a batch, and in a part of it.
        shapes: lengths to pad to.
        faults: takes utterances whose audio cannot be read, which then is all NaN, so that its slot cannot take the
            step and the others do not notice; None raises instead.

    Returns:
        An iterator over steps. Each is the parts of a batch, `Batch`es of numpy arrays [S, rows, …], from short to
        long. Its state (`get_state`) is small, and `set_state` goes on with the identical batch.
    """
    source = _Steps(corpus, list(assignments), steps, cut, shapes, faults)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    corpus: Corpus,
    utterances: Sequence[Sequence[Utterance]],
    batch: int,
    shapes: Shapes,
    faults: Faults | None = None,
) -> list[Batch]:
    """Batches [S, B, …] that hold every utterance of every slot once, each slot's in order of length."""
    return [collate(corpus, rows, batch, shapes, faults) for rows in _eval_rows(utterances, batch)]


def _eval_rows(utterances: Sequence[Sequence[Utterance]], batch: int) -> list[list[list[Utterance]]]:
    ranked = [sorted(of_slot, key=lambda u: u.samples) for of_slot in utterances]
    count = max([-(-len(of_slot) // batch) for of_slot in ranked], default=0)
    return [[of_slot[k * batch : (k + 1) * batch] for of_slot in ranked] for k in range(count)]


def train_shapes(
    queue: Sequence[Assignment],
    longest: Size,
    slots: int,
    cut: Cut,
    steps: int,
    count: int,
    program: float = 0.0,
    stands_for: float = 1.0,
) -> Shapes:
    """Sizes for the training batches of a queue of jobs, foreseen by dealing it out in waves.

    Args:
        queue: its first jobs; a thousand show what there is.
        longest: what the longest utterance needs, of all jobs, so that nothing is too long for the last size.
        slots: S.
        cut: of the batches.
        steps: of a job, at most; two dozen are looked at.
        count: how many sizes there may be.
        program: samples of audio that could be computed while the program of a size is compiled; few short jobs get
            few sizes.
        stands_for: jobs of the whole queue for each that is given.
    """
    foreseen = []
    for at in range(0, len(queue), slots):
        wave = [(a, _order(a, cut)) for a in queue[at : at + slots]]
        for step in range(min(steps, _FORESEEN_STEPS)):
            rows = [[a.train[i] for i in order.rows(step)] for a, order in wave]
            foreseen += [need(u for of_slot in part for u in of_slot) for part in cut.parts(rows)]
    # Each batch that was foreseen has several rows, and stands for those that were not.
    stands_for *= slots * cut.rows * max(1.0, steps / _FORESEEN_STEPS)
    return Shapes.choose(foreseen, count, longest, program / stands_for)


def eval_shapes(
    utterances: Sequence[Sequence[Utterance]],
    longest: Size,
    slots: int,
    batch: int,
    count: int,
    program: float = 0.0,
    stands_for: float = 1.0,
) -> Shapes:
    """Sizes for `eval_batches` of a queue of jobs, dealt out in waves.

    Args:
        utterances: of the first jobs of the queue.
        longest, slots, count, program: as in `train_shapes`.
        batch: B.
        stands_for: evaluations in all for each that is given.
    """
    foreseen = [
        need(u for of_slot in rows for u in of_slot)
        for at in range(0, len(utterances), slots)
        for rows in _eval_rows(utterances[at : at + slots], batch)
    ]
    return Shapes.choose(foreseen, count, longest, program / (stands_for * slots * batch))


def computed_samples(
    queue: Sequence[Assignment], shapes: Shapes, slots: int, cut: Cut, steps: int
) -> tuple[float, float]:
    """Samples with padding, and without, of all steps of a queue that is dealt out in waves of S slots."""
    computed = real = 0
    steps_seen = min(steps, _FORESEEN_STEPS)
    for at in range(0, len(queue), slots):
        wave = [(a, _order(a, cut)) for a in queue[at : at + slots]]
        for step in range(steps_seen):
            for part in cut.parts([[a.train[i] for i in order.rows(step)] for a, order in wave]):
                utterances = [u for of_slot in part for u in of_slot]
                computed += slots * cut.rows * shapes.fit(need(utterances)).samples
                real += sum(u.samples for u in utterances)
    return computed * steps / steps_seen, real * steps / steps_seen


def need(utterances: Iterable[Utterance]) -> Size:
    """The least size that holds these utterances."""
    return largest(Size(utterance.samples, len(utterance.labels)) for utterance in utterances)


@runtime_checkable
class Recordings(Protocol):
    """What has the audio of utterances."""

    def audio(self, utterance: Utterance) -> np.ndarray:
        """float32 [N] samples, in [-1, 1]. May be called from several threads.

        Raises:
            CorpusError: it cannot be read.
        """
        ...


def collate(
    corpus: Recordings,
    rows: Sequence[Sequence[Utterance]],
    batch: int,
    shapes: Shapes,
    faults: Faults | None = None,
) -> Batch:
    """One batch [S, B, …] of at most B utterances a slot; what is lacking is empty rows.

    Raises:
        CorpusError: audio cannot be read, and there are no `faults` to take it.
    """
    s = len(rows)
    n, width = shapes.fit(need(u for of_slot in rows for u in of_slot))
    made = Batch(
        audio=np.zeros((s, batch, n), np.float32),
        samples=np.zeros((s, batch), np.int32),
        labels=np.zeros((s, batch, width), np.int32),
        label_lengths=np.zeros((s, batch), np.int32),
    )
    for slot, of_slot in enumerate(rows):
        for row, utterance in enumerate(of_slot):
            try:
                made.audio[slot, row, : utterance.samples] = corpus.audio(utterance)
            except CorpusError as error:
                if faults is None:
                    raise
                faults.add(utterance, error)
                made.audio[slot, row, : utterance.samples] = np.nan
            made.samples[slot, row] = utterance.samples
            made.labels[slot, row, : len(utterance.labels)] = utterance.labels
            made.label_lengths[slot, row] = len(utterance.labels)
    return made


def queue_order(speakers: Iterable[Speaker]) -> list[Speaker]:
    """Speakers by the mean plus the longest of their training utterances: neighbours, who share steps, are alike."""

    def length(speaker: Speaker) -> float:
        lengths = [u.samples for u in speaker.train]
        return sum(lengths) / len(lengths) + max(lengths)

    return sorted(speakers, key=lambda speaker: (length(speaker), speaker.id))
