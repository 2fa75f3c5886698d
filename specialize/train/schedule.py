"""Which job is in which slot: stopping by the dev set, and who comes next. Plain Python, no arrays."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from specialize.errors import ConfigError
from specialize.train.jobs import Job


@dataclass(frozen=True)
class Stopping:
    """When a job has had enough, by the loss on its own speaker's dev utterances."""

    max_steps: int = 60
    """A job ends after so many steps at the latest; its learning rate falls over them."""
    min_steps: int = 0
    """No job ends earlier."""
    every: int = 6
    """Steps between two looks at the dev set."""
    patience: int = 4
    """Looks in a row without a better dev loss after which a job ends."""

    def __post_init__(self):
        for name in ("max_steps", "every", "patience"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, but it must be at least 1.")
        if not 0 <= self.min_steps <= self.max_steps:
            raise ConfigError(f"min_steps={self.min_steps}, but it must lie between 0 and max_steps={self.max_steps}.")


@dataclass
class Running:
    """A job in a slot, and what its dev set has said so far."""

    job: Job
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    looks: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean dev loss per token) of every look, the first at step 0."""

    @property
    def since_best(self) -> int:
        """Looks since the best one."""
        return sum(step > self.best_step for step, _ in self.looks)


class Schedule:
    """Feeds a queue of jobs to S slots.

    Args:
        jobs: the queue; consumed as slots fall free, so it may be a generator.
        slots: S.
        stopping: when a job ends.
        refill: `continuous` gives a free slot to the next job at once; `waves` when all slots are free.
    """

    def __init__(
        self, jobs: Iterable[Job], slots: int, stopping: Stopping, refill: Literal["continuous", "waves"] = "continuous"
    ):
        self._queue = iter(jobs)
        self.stopping, self._refill = stopping, refill
        self.slots: list[Running | None] = [None] * slots

    def fill(self) -> list[int]:
        """Puts the next jobs of the queue into free slots; returns the slots that have a new job."""
        if self._refill == "waves" and any(self.slots):
            return []
        filled = []
        for index, running in enumerate(self.slots):
            if running is None and (job := next(self._queue, None)) is not None:
                self.slots[index] = Running(job)
                filled.append(index)
        return filled

    @property
    def busy(self) -> bool:
        """Whether any slot has a job."""
        return any(self.slots)

    def round_steps(self) -> int:
        """How many steps all slots go before the next look: none goes past its `max_steps`."""
        left = [self.stopping.max_steps - running.step for running in self.slots if running is not None]
        return min([self.stopping.every, *left])

    def advance(self, steps: int) -> None:
        """Notes that every job went so many steps."""
        for running in self.slots:
            if running is not None:
                running.step += steps

    def look(self, dev_losses: Sequence[float], only: Collection[int] | None = None) -> list[int]:
        """Takes the dev loss of every slot; returns the slots whose job has never been better.

        A loss that is not finite is never better. Slots without a job, or not in `only`, are passed over.
        """
        improved = []
        for index, running in enumerate(self.slots):
            if running is None or (only is not None and index not in only):
                continue
            loss = float(dev_losses[index])
            running.looks.append((running.step, loss))
            if loss < running.best_loss:
                running.best_loss, running.best_step = loss, running.step
                improved.append(index)
        return improved

    def looks(self, slot: int) -> list[tuple[int, float]]:
        """(step, dev loss) of every look at the job that is in a slot."""
        running = self.slots[slot]
        return [] if running is None else running.looks

    def finish(self) -> list[tuple[int, Running]]:
        """Takes the jobs that have had enough out of their slots."""
        ended = []
        for index, running in enumerate(self.slots):
            if running is not None and self._enough(running):
                ended.append((index, running))
                self.slots[index] = None
        return ended

    def _enough(self, running: Running) -> bool:
        if running.step >= self.stopping.max_steps:
            return True
        return running.step >= self.stopping.min_steps and running.since_best >= self.stopping.patience
