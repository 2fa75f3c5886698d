"""Batches for pretraining: all utterances in a new order every epoch, as many in a batch as its audio allows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from specialize.base import Batch
from specialize.corpus.collate import Faults, collate, need
from specialize.corpus.shapes import Shapes
from specialize.corpus.speakers import Corpus, Utterance


class JoinedCorpus:
    """The utterances of one split of several corpora, numbered anew."""

    def __init__(self, corpora: Sequence[Corpus], split: str):
        self.utterances: list[Utterance] = []
        """In the order of the corpora and of their speakers."""
        self._found: list[tuple[Corpus, Utterance]] = []
        for corpus in corpora:
            for speaker in corpus.speakers:
                for utterance in speaker.split(split):
                    self.utterances.append(dataclasses.replace(utterance, index=len(self._found)))
                    self._found.append((corpus, utterance))

    def audio(self, utterance: Utterance) -> np.ndarray:
        """float32 [N] samples, in [-1, 1]. May be called from several threads."""
        corpus, original = self._found[utterance.index]
        return corpus.audio(original)


class Epochs:
    """A random-access source of batches: item k is the batch of step k, of any epoch.

    Utterances fall into the sizes of `shapes` by their length. A batch holds utterances of one size, so many that their
    padded audio comes to `samples`; the last of a size in an epoch is filled up with empty rows. Which utterances meet,
    and in which order the batches come, is drawn anew each epoch from the seed alone, so any step can be made at once.

    Args:
        corpus: where audio is.
        utterances: to train on.
        shapes: sizes to pad to.
        samples: padded samples of a batch, at most; a batch has `multiple` rows at least.
        multiple: batches have a multiple of so many rows, one for each device.
        seed: of the orders.
        faults: takes utterances whose audio cannot be read; their rows are NaN.
        own: which rows of a batch of so many are made, as long as those of all; None makes all.
    """

    def __init__(
        self,
        corpus: JoinedCorpus,
        utterances: Sequence[Utterance],
        shapes: Shapes,
        samples: int,
        *,
        multiple: int = 1,
        seed: int = 0,
        faults: Faults | None = None,
        own: Callable[[int], range] | None = None,
    ):
        self._corpus, self._shapes, self._seed, self._faults = corpus, shapes, seed, faults
        self._own = own
        self._groups: list[tuple[int, list[Utterance]]] = []
        by_size: dict[Any, list[Utterance]] = {}
        for utterance in utterances:
            by_size.setdefault(shapes.fit(need([utterance])), []).append(utterance)
        for size in shapes.sizes:
            if size in by_size:
                rows = max(samples // size.samples // multiple, 1) * multiple
                self._groups.append((rows, by_size[size]))
        self.steps = sum(-(-len(group) // rows) for rows, group in self._groups)
        """Batches of an epoch."""
        self._last: tuple[int, list[tuple[int, list[Utterance]]]] = (-1, [])

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: Any) -> Batch:
        epoch, place = divmod(int(index), self.steps)
        rows, utterances = self._epoch(epoch)[place]
        each = [[utterance] for utterance in utterances] + [[]] * (rows - len(utterances))
        own = None if self._own is None else self._own(rows)
        made = collate(self._corpus, each, 1, self._shapes, self._faults, own=own)
        return Batch(*(field[:, 0] for field in made))

    def batches(self, step: int, steps: int) -> Iterator[Batch]:
        """The batches of so many steps from `step` on, decoded ahead in threads."""
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return iter(grain.MapDataset.source(self)[step : step + steps].to_iter_dataset(options))

    def _epoch(self, epoch: int) -> list[tuple[int, list[Utterance]]]:
        kept, batches = self._last
        if kept == epoch:
            return batches
        rng = np.random.default_rng((self._seed, epoch))
        batches = []
        for rows, group in self._groups:
            order = rng.permutation(len(group))
            batches += [(rows, [group[i] for i in order[at : at + rows]]) for at in range(0, len(group), rows)]
        batches = [batches[i] for i in rng.permutation(len(batches))]
        self._last = (epoch, batches)
        return batches
