"""Which utterances a job trains on at each of its steps, and how steps are cut for the devices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specialize.corpus.speakers import Speaker, Utterance
from specialize.errors import ConfigError

CYCLE = 3
"""Steps over which lengths rise from short to long. Jobs whose steps agree modulo this have their lengths aligned."""
_JITTER = 0.05


@dataclass(frozen=True)
class Order:
    """Which utterances a job trains on at each of its steps: a pure function of the job, whatever its company.

    Utterances are drawn epoch after epoch, each epoch in a random order. The draws of a cycle of `CYCLE` steps are
    sorted by length, with some jitter, and dealt out in that order: step 0 of every cycle has the shortest third of
    the job's draws, the last step the longest. So slots at the same step of their cycles have utterances of similar
    length.

    With `together`, a cycle has so many times the steps, and each third of it goes to so many steps in a row, dealt out
    as it was drawn: steps of a dispatch are padded alike, and sorted ones would have an utterance twice in a step.
    """

    lengths: tuple[int, ...]
    """Samples of each utterance."""
    batch: int
    """B."""
    seed: int
    together: int = 1
    """Steps in a row whose utterances have similar lengths: those of a dispatch."""

    def rows(self, step: int) -> tuple[int, ...]:
        """Positions of the utterances of a step, from short to long: B of them, or all where there are no more."""
        n = len(self.lengths)
        if n <= self.batch:
            return self._ranked(range(n))
        cycle, phase = divmod(step, CYCLE * self.together)
        third, place = divmod(phase, self.together)
        size = self.together * self.batch
        draws = self._draws(cycle * CYCLE * size, CYCLE * size)
        jitter = 1.0 + _JITTER * np.random.default_rng((self.seed, 1, cycle)).random(len(draws))
        ranked = np.argsort(np.array(self.lengths)[draws] * jitter, kind="stable")
        dealt = np.sort(ranked[third * size : (third + 1) * size])
        return self._ranked(draws[dealt[place * self.batch : (place + 1) * self.batch]].tolist())

    def _ranked(self, rows: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(rows, key=lambda row: (self.lengths[row], row)))

    def _draws(self, first: int, count: int) -> np.ndarray:
        """Positions of the utterances that are drawn from the `first` draw on."""
        n = len(self.lengths)
        epochs = range(first // n, (first + count - 1) // n + 1)
        orders = [np.random.default_rng((self.seed, 0, epoch)).permutation(n) for epoch in epochs]
        return np.concatenate(orders)[first - epochs[0] * n :][:count]


@dataclass(frozen=True)
class Assignment:
    """What a slot trains on next."""

    train: tuple[Utterance, ...]
    seed: int
    """Of the job's order."""
    step: int
    """Steps that the job has made."""

    def order(self, cut: "Cut") -> Order:
        """Of its utterances, for batches that are cut so."""
        return Order(tuple(u.samples for u in self.train), cut.batch, self.seed, cut.together)


@dataclass(frozen=True)
class Cut:
    """How the B rows of a batch are cut into parts, and how many steps are one dispatch: one call of the devices."""

    batch: int
    """B."""
    rows: int
    """Rows of a part; divides B."""
    together: int = 1
    """Steps of a full dispatch. More than one need batches of one part: what is repeated must have one length."""

    def __post_init__(self):
        if self.batch % self.rows:
            raise ConfigError(
                f"A batch of {self.batch} rows cannot be cut into parts of {self.rows}: it must divide it."
            )
        if self.together < 1:
            raise ConfigError(f"A dispatch of {self.together} steps is none: it must have at least 1.")
        if self.together > 1 and self.rows != self.batch:
            raise ConfigError(
                f"{self.together} steps cannot be one dispatch while a batch of {self.batch} rows is cut into parts of "
                f"{self.rows}. Use parts of {self.batch} rows, or dispatches of 1 step."
            )

    def dispatches(self, steps: int) -> list[tuple[int, int]]:
        """(first step, number of steps) of each dispatch of so many steps: as many full ones as fit, then single steps.

        What is left after any of them is cut the same way, so a run that goes on from there makes the same ones.
        """
        full = steps // self.together * self.together
        return [(at, self.together) for at in range(0, full, self.together)] + [(at, 1) for at in range(full, steps)]

    def parts(self, rows: Sequence[Sequence[Utterance]]) -> list[list[Sequence[Utterance]]]:
        """The rows of each slot, cut: a list of parts of a list of slots.

        Every slot has as many parts: as the one with most rows needs, where all have few recordings, and at least one.
        """
        most = max([1, *map(len, rows)])
        return [[of_slot[at : at + self.rows] for of_slot in rows] for at in range(0, most, self.rows)]


def queue_order(speakers: Iterable[Speaker]) -> list[Speaker]:
    """Speakers by the mean plus the longest of their training utterances: neighbours, who share steps, are alike."""

    def length(speaker: Speaker) -> float:
        lengths = [u.samples for u in speaker.train]
        return sum(lengths) / len(lengths) + max(lengths)

    return sorted(speakers, key=lambda speaker: (length(speaker), speaker.id))
