"""Cohort batches whose slots train another speaker at each step."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain

from specialize.corpus.batches import Dispatch, dispatch_of
from specialize.corpus.collate import Faults
from specialize.corpus.order import Assignment, Cut
from specialize.corpus.shapes import Shapes
from specialize.corpus.speakers import Corpus, Utterance


class _Draws:
    """A random-access source for grain: item k is the batch of step k."""

    def __init__(
        self,
        corpus: Corpus,
        assigned: Callable[[int], Sequence[Assignment | None]],
        cut: Cut,
        shapes: Shapes,
        faults: Faults | None,
        own: range | None,
    ):
        self._corpus, self._assigned, self._cut = corpus, assigned, cut
        self._shapes, self._faults, self._own = shapes, faults, own

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: Any) -> Dispatch:
        rows: list[list[Utterance]] = []
        for assignment in self._assigned(int(index)):
            if assignment is None:
                rows.append([])
            else:
                order = assignment.order(self._cut)
                rows.append([assignment.train[i] for i in order.rows(assignment.step)])
        return dispatch_of(self._corpus, rows, self._cut, self._shapes, self._faults, self._own)


def drawn_batches(
    corpus: Corpus,
    assigned: Callable[[int], Sequence[Assignment | None]],
    first: int,
    steps: int,
    cut: Cut,
    shapes: Shapes,
    faults: Faults | None = None,
    own: range | None = None,
) -> Iterator[Dispatch]:
    """The training batches of so many steps from `first` on, decoded ahead in threads.

    Args:
        corpus: opened with a base.
        assigned: what the S slots train on at a step; None leaves a slot's rows empty. Called from several threads.
        first: the first step.
        steps: how many batches.
        cut, shapes, faults, own: as of `cohort_batches`.

    Returns:
        An iterator over steps, as `cohort_batches` gives it.
    """
    source = _Draws(corpus, assigned, cut, shapes, faults, own)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(source)[first : first + steps].to_iter_dataset(options))
