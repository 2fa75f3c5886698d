"""Whose turn it is: which of its speakers each slot trains at a step, where there are more speakers than slots."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

_STREAM = 3
"""Other draws of the same seed are of other streams."""


class Turns:
    """Draws a speaker for every slot at every step: a pure function of seed, step and slot.

    Slot s owns the speakers at the places s, s + S, s + 2S, … of the queue, and draws among them alone, so that what is
    kept of a speaker never leaves its slot. Among those of a slot, a speaker is drawn with a probability proportional
    to (its utterances)^sampling.

    Args:
        utterances: how many each speaker of the queue has to train on.
        slots: S.
        sampling: 0 draws all alike, 1 in proportion to their utterances.
        seed: of the draws.
        without: places that are not drawn any more.
    """

    def __init__(
        self, utterances: Sequence[int], slots: int, sampling: float, seed: int, without: Collection[int] = ()
    ):
        self.slots, self._seed = slots, seed
        self.rows = max(-(-len(utterances) // slots), 1)
        """Q, speakers of a slot at most."""
        weights = np.zeros(self.rows * slots)
        weights[: len(utterances)] = np.asarray(utterances, np.float64) ** sampling
        weights[list(without)] = 0.0
        by_slot = weights.reshape(self.rows, slots).T
        self._total = by_slot.sum(1)
        self._ends = np.cumsum(by_slot, axis=1)
        self._last = self.rows - 1 - np.argmax(by_slot[:, ::-1] > 0, axis=1)

    def at(self, step: int) -> Int[np.ndarray, "S"]:
        """The row, from 0 to Q - 1, that each slot draws; -1 where none of its speakers is left."""
        drawn = np.random.default_rng((self._seed, _STREAM, step)).random(self.slots) * self._ends[:, -1]
        rows = np.minimum((self._ends <= drawn[:, None]).sum(1), self._last)
        return np.where(self._total > 0, rows, -1).astype(np.int32)

    def place(self, slot: int, row: int) -> int:
        """The place in the queue of the speaker in a row of a slot."""
        return slot + self.slots * row
