"""One batch out of utterances: padded audio and labels of every slot, and what to do with audio that cannot be read."""

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from specialize.base import Batch
from specialize.corpus.shapes import Shapes, Size, largest
from specialize.corpus.speakers import Utterance
from specialize.errors import CorpusError


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

    def take(self, others: "Faults", utterance: Utterance) -> None:
        """Notes what others have noted of an utterance, if they have."""
        reason = others._reasons.get(utterance.index)
        if reason is not None:
            with self._lock:
                self._reasons.setdefault(utterance.index, reason)

    def of(self, utterances: Iterable[Utterance]) -> str | None:
        """Why the first of these that could not be read could not."""
        with self._lock:
            return next((self._reasons[u.index] for u in utterances if u.index in self._reasons), None)

    def news(self) -> dict[int, str]:
        """What was added since the last call: {number of the utterance: reason}."""
        with self._lock:
            added = list(self._reasons.items())[self._told :]
            self._told = len(self._reasons)
        return dict(added)

    def put(self, reasons: Mapping[int, str]) -> None:
        """Notes what others give as `news`. It is none of the next `news`."""
        with self._lock:
            unknown = {index: reason for index, reason in reasons.items() if index not in self._reasons}
            added = list(self._reasons.items())
            self._reasons = dict([*added[: self._told], *unknown.items(), *added[self._told :]])
            self._told += len(unknown)


@runtime_checkable
class Recordings(Protocol):
    """What has the audio of utterances."""

    def audio(self, utterance: Utterance) -> np.ndarray:
        """float32 [N] samples, in [-1, 1]. May be called from several threads.

        Raises:
            CorpusError: it cannot be read.
        """
        ...


Positions = Callable[[Utterance], int]
"""Where the audio of an utterance begins in an array that the devices hold."""


def need(utterances: Iterable[Utterance]) -> Size:
    """The least size that holds these utterances."""
    return largest(Size(utterance.samples, len(utterance.labels)) for utterance in utterances)


def collate(
    corpus: Recordings,
    rows: Sequence[Sequence[Utterance]],
    batch: int,
    shapes: Shapes,
    faults: Faults | None = None,
    positions: Positions | None = None,
    own: range | None = None,
) -> Batch:
    """One batch [S, B, …] of at most B utterances a slot; what is lacking is empty rows.

    Args:
        corpus: where audio is.
        rows: the utterances of each slot.
        batch: B.
        shapes: lengths to pad to.
        faults: takes utterances whose audio cannot be read, and which is NaN then.
        positions: leave the audio where it is; `audio` is then int32 [S, B], where that of each row begins.
        own: make only the batch of these slots, as long as that of all; None makes all.

    Raises:
        CorpusError: audio cannot be read, and there are no `faults` to take it.
    """
    n, width = shapes.fit(need(u for of_slot in rows for u in of_slot))
    if own is not None:
        rows = rows[own.start : own.stop]
    s = len(rows)
    made = Batch(
        audio=np.zeros((s, batch, n), np.float32) if positions is None else np.zeros((s, batch), np.int32),
        samples=np.zeros((s, batch), np.int32),
        labels=np.zeros((s, batch, width), np.int32),
        label_lengths=np.zeros((s, batch), np.int32),
    )
    for slot, of_slot in enumerate(rows):
        for row, utterance in enumerate(of_slot):
            if positions is None:
                made.audio[slot, row, : utterance.samples] = audio_or_nan(corpus, utterance, faults)
            else:
                made.audio[slot, row] = positions(utterance)
            made.samples[slot, row] = utterance.samples
            made.labels[slot, row, : len(utterance.labels)] = utterance.labels
            made.label_lengths[slot, row] = len(utterance.labels)
    return made


def audio_or_nan(corpus: Recordings, utterance: Utterance, faults: Faults | None) -> np.ndarray | float:
    """The audio of an utterance, float32 [N]; NaN where it cannot be read and there are `faults` to take it.

    Raises:
        CorpusError: it cannot be read, and there are none.
    """
    try:
        return corpus.audio(utterance)
    except CorpusError as error:
        if faults is None:
            raise
        faults.add(utterance, error)
        return math.nan
