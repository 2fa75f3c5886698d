"""Cohort batches `[S, B, …]`: each slot's utterances in an order of its job's own, lengths aligned across slots.

Little of a batch is padding, for two reasons: slots at the same step have utterances of similar length (`Order`), and
a batch is cut into parts of a few rows, from short to long, each padded to a length of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax

from specialize.base import Batch
from specialize.corpus.collate import Faults, Positions, Recordings, collate, need
from specialize.corpus.order import CYCLE, Assignment, Cut
from specialize.corpus.shapes import Shapes, Size
from specialize.corpus.speakers import Corpus, Utterance

_FORESEEN_STEPS = 24


class Dispatch(NamedTuple):
    """What the devices get in one call: the parts of a step, or several steps of one part each."""

    steps: int
    parts: tuple[Batch, ...]
    """[S, rows, …] each, from short to long. With `Cut.together` above 1 it is one, [S, steps, rows, …]."""
    sizes: tuple[Size, ...]
    """What each part is padded to."""
    real_samples: int
    """Of the utterances of all slots."""
    computed_samples: int
    """With padding."""


class _Dispatches:
    """A random-access source for grain: item k is the k-th dispatch from now."""

    def __init__(
        self,
        corpus: Corpus,
        assignments: Sequence[Assignment | None],
        steps: int,
        cut: Cut,
        shapes: Shapes,
        faults: Faults | None,
        positions: Positions | None,
        own: range | None,
    ):
        self._own = range(len(assignments)) if own is None else own
        self._corpus, self._assignments, self._dispatches = corpus, assignments, cut.dispatches(steps)
        self._cut, self._shapes, self._faults, self._positions = cut, shapes, faults, positions
        self._orders = [None if a is None else a.order(cut) for a in assignments]

    def __len__(self) -> int:
        return len(self._dispatches)

    def __getitem__(self, index: Any) -> Dispatch:
        first, steps = self._dispatches[int(index)]
        # The steps of a slot follow one another, as if each were a slot of its own.
        rows = [self._rows(slot, step) for slot in range(len(self._orders)) for step in range(first, first + steps)]
        own = range(self._own.start * steps, self._own.stop * steps)
        made = dispatch_of(self._corpus, rows, self._cut, self._shapes, self._faults, own, self._positions)
        if self._cut.together > 1:
            by_slot = jax.tree.map(lambda leaf: leaf.reshape(-1, steps, *leaf.shape[1:]), made.parts)
            made = made._replace(steps=steps, parts=by_slot)
        return made

    def _rows(self, slot: int, step: int) -> list[Utterance]:
        assignment, order = self._assignments[slot], self._orders[slot]
        if assignment is None or order is None:
            return []
        return [assignment.train[i] for i in order.rows(assignment.step + step)]


def dispatch_of(
    corpus: Recordings,
    rows: Sequence[Sequence[Utterance]],
    cut: Cut,
    shapes: Shapes,
    faults: Faults | None,
    own: range | None,
    positions: Positions | None = None,
) -> Dispatch:
    """A step, of slots that train on `rows`, the utterances of each; several, where they stand for slots of their own.

    Its settings are those of `cohort_batches`.
    """
    parts, sizes, real, computed = [], [], 0, 0
    for part in cut.parts(rows):
        parts.append(collate(corpus, part, cut.rows, shapes, faults, positions, own))
        sizes.append(shapes.fit(need(u for of_slot in part for u in of_slot)))
        real += sum(u.samples for of_slot in part for u in of_slot)
        computed += sizes[-1].samples * cut.rows * len(part)
    return Dispatch(1, tuple(parts), tuple(sizes), real, computed)


def cohort_batches(
    corpus: Corpus,
    assignments: Sequence[Assignment | None],
    steps: int,
    cut: Cut,
    shapes: Shapes,
    faults: Faults | None = None,
    positions: Positions | None = None,
    own: range | None = None,
) -> grain.DatasetIterator[Dispatch]:
    """The training batches of the next steps of a cohort, decoded ahead in threads.

    Args:
        corpus: opened with a base.
        assignments: one for each of the S slots; None leaves the slot's rows empty.
        steps: how many batches.
        cut: utterances of each slot in a batch and in a part of it, and steps of a dispatch.
        shapes: lengths to pad to.
        faults: takes utterances whose audio cannot be read, which then is all NaN, so that its slot cannot take the
            step and the others do not notice; None raises instead.
        positions: leave the audio where it is, as in `collate`.
        own: slots whose rows are made; None makes all. Sizes are those of all slots.

    Returns:
        An iterator over dispatches of numpy arrays. Its state (`get_state`) is small, and `set_state` goes on with the
        identical batch.
    """
    source = _Dispatches(corpus, list(assignments), steps, cut, shapes, faults, positions, own)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def eval_batches(
    corpus: Corpus,
    utterances: Sequence[Sequence[Utterance]],
    batch: int,
    shapes: Shapes,
    faults: Faults | None = None,
    own: range | None = None,
) -> list[Batch]:
    """Batches [S, B, …] that hold every utterance of every slot once, each slot's in order of length; only the rows of
    the slots `own`, where they are named."""
    return [collate(corpus, rows, batch, shapes, faults, own=own) for rows in eval_rows(utterances, batch)]


def eval_rows(utterances: Sequence[Sequence[Utterance]], batch: int) -> list[list[list[Utterance]]]:
    """The rows of each slot in each of `eval_batches`."""
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
    every: int | None = None,
) -> Shapes:
    """Sizes for the training batches of a queue of jobs, foreseen by dealing it out in waves.

    Args:
        queue: its first jobs; a thousand show what there is.
        longest: what the longest utterance needs, of all jobs, so that nothing is too long for the last size.
        slots: S.
        cut: of the batches.
        steps: of a job, at most; two dozen are looked at, in whole cycles.
        count: how many sizes there may be.
        program: samples of audio that could be computed while the program of a size is compiled; few short jobs get
            few sizes.
        stands_for: jobs of the whole queue for each that is given.
        every: steps between looks at dev sets, which no dispatch goes past; None where there are none.
    """
    foreseen = []
    for times, part in _foreseen(queue, slots, cut, steps, every):
        foreseen += [need(part)] * times
    # Each batch that was foreseen has several rows, and stands for those that were not.
    stands_for *= slots * cut.rows * steps / _seen(steps, cut)
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
        for rows in eval_rows(utterances[at : at + slots], batch)
    ]
    return Shapes.choose(foreseen, count, longest, program / (stands_for * slots * batch))


def computed_samples(
    queue: Sequence[Assignment], shapes: Shapes, slots: int, cut: Cut, steps: int, every: int | None = None
) -> tuple[float, float]:
    """Samples with padding, and without, of all steps of a queue that is dealt out in waves of S slots."""
    computed = real = 0
    for times, part in _foreseen(queue, slots, cut, steps, every):
        computed += slots * cut.rows * times * shapes.fit(need(part)).samples
        real += sum(u.samples for u in part)
    share = steps / _seen(steps, cut)
    return computed * share, real * share


def _seen(steps: int, cut: Cut) -> int:
    """How many of a job's steps are looked at ahead: whole cycles, or all."""
    cycle = CYCLE * cut.together
    return min(steps, -(-_FORESEEN_STEPS // cycle) * cycle)


def _foreseen(
    queue: Sequence[Assignment], slots: int, cut: Cut, steps: int, every: int | None
) -> Iterator[tuple[int, list[Utterance]]]:
    """(steps, utterances of all slots) of each part of each dispatch, when a queue is dealt out in waves."""
    seen = _seen(steps, cut)
    rounds = [(at, min(every or seen, seen - at)) for at in range(0, seen, every or seen)]
    dispatches = [(at + first, count) for at, of_round in rounds for first, count in cut.dispatches(of_round)]
    for at in range(0, len(queue), slots):
        wave = [(a, a.order(cut)) for a in queue[at : at + slots]]
        for first, count in dispatches:
            rows = [[a.train[i] for i in order.rows(first + k)] for a, order in wave for k in range(count)]
            for part in cut.parts(rows):
                yield count, [u for of_slot in part for u in of_slot]
