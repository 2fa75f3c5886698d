"""Requests of many people on their way through one recogniser: they wait for each other a little, and never long."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from specialize.errors import Forgotten, SpecializeError
from specialize.serve.recognizer import Hypothesis
from specialize.serve.slots import Resident


class Busy(SpecializeError):
    """More is waiting than can be served in time; it is worth trying again."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds."""


class Closed(SpecializeError):
    """The server is ending, and takes nothing more."""


@runtime_checkable
class Decoder(Protocol):
    """What computes batches: a `Recognizer`, of which see these."""

    @property
    def batch(self) -> int: ...

    def padded(self, samples: int, lengths: Sequence[int] = ()) -> int: ...

    def decode(
        self, residents: Sequence[Resident | None], clips: Sequence[np.ndarray], padded: int
    ) -> list[Hypothesis]: ...


@dataclass(eq=False)
class _Row:
    resident: Resident | None
    clip: np.ndarray
    spec: Hashable
    padded: int
    arrived: float
    found: "Future[Hypothesis]" = field(default_factory=Future)


@dataclass(frozen=True)
class Batch:
    """One compiled call, for whoever watches."""

    rows: int
    waited: float
    """Seconds that the first of its rows waited."""
    seconds: float
    """Of the call."""


class Batcher:
    """Puts rows into batches: whoever comes while a batch is computed is in the next one.

    A batch is of one spec, in the order of arrival; rows that are shorter than its first ride along. It waits for more
    rows at most `linger` after its first has come.

    Args:
        recognizer: computes them, in a thread of this batcher.
        lengths: samples that rows are padded to.
        linger: seconds.
        budget: seconds that a row may have to wait for its turn, as far as can be told when it comes; it is refused
            otherwise.
        waiting: rows that wait at most.
        watch: is told of each batch.
    """

    def __init__(
        self,
        recognizer: Decoder,
        lengths: Sequence[int],
        *,
        linger: float = 0.01,
        budget: float = 10.0,
        waiting: int = 256,
        watch: Callable[[Batch], None] = lambda batch: None,
    ):
        self._recognizer, self._lengths = recognizer, tuple(lengths)
        self._linger, self._budget, self._waiting, self._watch = linger, budget, waiting, watch
        self._queue: deque[_Row] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._computing = 0
        self._row_seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, resident: Resident | None, clips: Sequence[np.ndarray]) -> "list[Future[Hypothesis]]":
        """What is to come of the clips of one recording, which is taken as a whole or refused.

        Args:
            resident: from `Recognizer.fetch`.
            clips: from `Recognizer.clip`.

        Raises:
            Busy: the first would wait longer than the budget, or too many wait already.
            Closed: the batcher is ending.
        """
        spec, now = None if resident is None else resident.spec, time.monotonic()
        padded = [self._recognizer.padded(clip.size, self._lengths) for clip in clips]
        rows = [_Row(resident, clip, spec, length, now) for clip, length in zip(clips, padded, strict=True)]
        with self._changed:
            self._admit()
            self._queue.extend(rows)
            self._changed.notify_all()
        return [row.found for row in rows]

    def admit(self) -> None:
        """Raises what `submit` would raise now, so that nothing is spent on a request that will be refused."""
        with self._changed:
            self._admit()

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        with self._changed:
            return len(self._queue)

    def close(self, seconds: float = 30.0) -> None:
        """Takes nothing more, and ends when what waits is served, or after so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            left, self._queue = list(self._queue), deque()
        for row in left:
            if row.found.set_running_or_notify_cancel():
                row.found.set_exception(Closed("The server ended before it came to this."))

    def _admit(self) -> None:
        if self._closing:
            raise Closed("The server is ending. Ask another one.")
        wait = self._wait()
        if wait > self._budget or len(self._queue) >= self._waiting:
            raise Busy(f"{len(self._queue)} utterances are waiting already.", max(1, math.ceil(wait)))

    def _wait(self) -> float:
        """Seconds that a row that comes now would wait, after what rows have cost so far."""
        return (len(self._queue) + self._computing) * self._row_seconds

    def _work(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            began = time.monotonic()
            waited = began - batch[0].arrived
            rows = self._compute(batch)
            seconds = time.monotonic() - began
            with self._changed:
                self._computing = 0
                if rows:
                    each = seconds / rows
                    self._row_seconds = each if not self._row_seconds else 0.8 * self._row_seconds + 0.2 * each
            if rows:
                self._watch(Batch(rows, waited, seconds))
            del batch  # or it would be held until the next one comes

    def _next(self) -> list[_Row] | None:
        """Waits for a batch; None at the end."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            first = self._queue[0]
            until = first.arrived + self._linger
            while len(batch := self._with(first)) < self._recognizer.batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken = set(batch)
            self._queue = deque(row for row in self._queue if row not in taken)
            self._computing = len(batch)
            return batch

    def _with(self, first: _Row) -> list[_Row]:
        fitting = (row for row in self._queue if row.spec == first.spec and row.padded <= first.padded)
        return [row for row, _ in zip(fitting, range(self._recognizer.batch), strict=False)]

    def _compute(self, batch: list[_Row]) -> int:
        """Gives each row what is decoded of it; returns how many there were to compute."""
        live = [row for row in batch if row.found.set_running_or_notify_cancel()]
        for row in [row for row in live if row.resident is not None and row.resident.forgotten]:
            row.found.set_exception(Forgotten("The speaker was deleted."))
            live.remove(row)
        if not live:
            return 0
        padded = max(row.padded for row in live)
        try:
            found = self._recognizer.decode([row.resident for row in live], [row.clip for row in live], padded)
        except Exception as error:
            if len(live) == 1:
                live[0].found.set_exception(error)
                return 1
            for row in live:  # so that one row's trouble is not its neighbours'
                self._alone(row)
            return len(live)
        for row, hypothesis in zip(live, found, strict=True):
            _answer(row, hypothesis)
        return len(live)

    def _alone(self, row: _Row) -> None:
        try:
            _answer(row, self._recognizer.decode([row.resident], [row.clip], row.padded)[0])
        except Exception as error:
            row.found.set_exception(error)


def _answer(row: _Row, hypothesis: Hypothesis) -> None:
    """Gives a row what was decoded of it, unless its speaker was deleted meanwhile."""
    if row.resident is not None and row.resident.forgotten:
        row.found.set_exception(Forgotten("The speaker was deleted."))
    else:
        row.found.set_result(hypothesis)
