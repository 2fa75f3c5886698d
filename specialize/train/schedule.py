"""Which job is in which slot: stopping by the dev set, and who comes next. Plain Python, no arrays."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from specialize.errors import ConfigError
from specialize.train.jobs import Job

HALVED = "stopped by halving"
"""How the reason begins of a job that halving ended: its best parameters count like those of any other."""


@dataclass(frozen=True)
class Stopping:
    """When a job has had enough, by the loss on its own speaker's dev utterances."""

    max_steps: int = 60
    """A job ends after so many steps at the latest; its learning rate falls over them."""
    min_steps: int = 0
    """No job ends earlier, but for trouble or halving."""
    every: int = 6
    """Steps between two looks at the dev set."""
    patience: int = 4
    """Looks in a row without a better dev loss after which a job ends."""
    max_skipped: int = 3
    """A job is quarantined after so many steps that could not be taken, because loss or gradient was not finite."""
    halving: int = 0
    """With a grid: at a few looks, only the best 1 in so many of a speaker's jobs go on (successive halving, Jamieson &
    Talwalkar 2016, arXiv 1502.07943). 0 lets all run."""

    def __post_init__(self):
        for name in ("max_steps", "every", "patience", "max_skipped"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, but it must be at least 1.")
        if not 0 <= self.min_steps <= self.max_steps:
            raise ConfigError(f"min_steps={self.min_steps}, but it must lie between 0 and max_steps={self.max_steps}.")
        if self.halving < 0 or self.halving == 1:
            raise ConfigError(f"halving={self.halving}, but it must be 0 (off) or at least 2.")


@dataclass
class Running:
    """A job in a slot, and what its dev set has said so far."""

    job: Job
    place: int
    """In the queue."""
    step: int = 0
    base_loss: float = math.nan
    """Mean dev loss per token of the base alone."""
    best_loss: float = math.inf
    best_step: int = 0
    looks: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean dev loss per token) of every look, the first at step 0."""
    ended: str | None = None
    """Why the job ended before its time other than by patience; None while it has not."""

    @property
    def since_best(self) -> int:
        """Looks since the best one."""
        return sum(step > self.best_step for step, _ in self.looks)


class Schedule:
    """Feeds a queue of jobs to S slots.

    When a job is looked at and when it ends depends on its own steps alone, so that no company can change what comes of
    it; only halving compares it, with the other jobs of its speaker.

    Args:
        jobs: the queue. Jobs are made as slots fall free, so it may be any length.
        slots: S.
        stopping: when a job ends.
        refill: `continuous` gives a free slot to the next job at once; `waves` when all slots are free.
    """

    def __init__(
        self, jobs: Sequence[Job], slots: int, stopping: Stopping, refill: Literal["continuous", "waves"] = "continuous"
    ):
        self.jobs = jobs
        self.stopping, self._refill = stopping, refill
        self.slots: list[Running | None] = [None] * slots
        self.position = 0
        """Place in the queue of the next job."""
        self._rungs: dict[str, list[list[tuple[float, int]]]] = {}
        """By speaker and rung, (best dev loss, place) of the jobs that have come so far."""

    def fill(self) -> list[int]:
        """Puts the next jobs of the queue into free slots; returns the slots that have a new job."""
        if self._refill == "waves" and self.busy:
            return []
        filled = []
        for index, running in enumerate(self.slots):
            if running is None and self.position < len(self.jobs):
                self.slots[index] = Running(self.jobs[self.position], self.position)
                self.position += 1
                filled.append(index)
        return filled

    @property
    def busy(self) -> bool:
        """Whether any slot has a job."""
        return any(running is not None for running in self.slots)

    def round_steps(self, *, looked: bool = False) -> int:
        """How many steps all slots go before a job is looked at: none goes past its own next look.

        Args:
            looked: as it will be after the looks that are due now, if no job ends; 0 where one has made its last step.
        """
        running = [running for running in self.slots if running is not None]
        if looked and any(one.step >= one.job.max_steps for one in running):
            return 0
        return min(self._next_look(one, past=one.step if looked else 0) - one.step for one in running)

    def standing(self) -> tuple[tuple[int, int] | None, ...]:
        """(place in the queue, step) of the job in each slot."""
        return tuple(None if running is None else (running.place, running.step) for running in self.slots)

    def advance(self, steps: int) -> None:
        """Notes that every job went so many steps."""
        for running in self.slots:
            if running is not None:
                running.step += steps

    def due(self) -> list[int]:
        """Slots whose job is to be looked at now."""
        return [
            index
            for index, running in enumerate(self.slots)
            if running is not None and self._next_look(running) == running.step
        ]

    def look(self, dev_losses: Sequence[float], only: Collection[int]) -> list[int]:
        """Takes the dev losses of the slots `only`, from losses of all; returns those that have never been better.

        A loss that is not finite is never better.
        """
        improved = []
        for index in only:
            running = self.slots[index]
            if running is None:
                continue
            loss = float(dev_losses[index])
            running.looks.append((running.step, loss))
            if loss < running.best_loss:
                running.best_loss, running.best_step = loss, running.step
                improved.append(index)
        return improved

    def quarantine(self, slot: int, reason: str) -> None:
        """Ends the job in a slot for a reason; `finish` takes it out."""
        running = self.slots[slot]
        if running is not None and running.ended is None:
            running.ended = reason

    def finish(self) -> list[tuple[int, Running]]:
        """Takes the jobs that have had enough out of their slots."""
        if self.stopping.halving:
            self._halve()
        ended = []
        for index, running in enumerate(self.slots):
            if running is not None and self._enough(running):
                ended.append((index, running))
                self.slots[index] = None
        return ended

    def to_json(self) -> dict[str, Any]:
        """Where the schedule is, as JSON data."""
        return {
            "position": self.position,
            "slots": [None if running is None else _slot_to_json(running) for running in self.slots],
            "rungs": {
                speaker: [[[_number(loss), place] for loss, place in rung] for rung in rungs]
                for speaker, rungs in self._rungs.items()
            },
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Takes up where `to_json` was."""
        self.position = data["position"]
        self.slots = [
            None
            if slot is None
            else Running(
                self.jobs[slot["place"]],
                slot["place"],
                slot["step"],
                float(slot["base_loss"]),
                float(slot["best_loss"]),
                slot["best_step"],
                [(step, float(loss)) for step, loss in slot["looks"]],
            )
            for slot in data["slots"]
        ]
        self._rungs = {
            speaker: [[(float(loss), place) for loss, place in rung] for rung in rungs]
            for speaker, rungs in data["rungs"].items()
        }

    def _next_look(self, running: Running, past: int = 0) -> int:
        """The step of the look that comes next, which is now where it is not taken yet; always after `past`."""
        every = self.stopping.every
        looked = max(past, running.looks[-1][0] if running.looks else 0)
        return min((looked // every + 1) * every, running.job.max_steps)

    def _enough(self, running: Running) -> bool:
        if running.ended is not None or running.step >= running.job.max_steps:
            return True
        stop = self.stopping
        return running.step >= stop.min_steps and running.since_best >= stop.patience

    def rungs(self, job: Job) -> list[int]:
        """Steps at which the jobs of a speaker are compared: one for each time that they can be divided."""
        eta, every = self.stopping.halving, self.stopping.every
        if not eta or job.points < 2:
            return []
        count = math.ceil(math.log(job.points, eta) - 1e-9)
        at = {max(every, job.max_steps // eta**k // every * every) for k in range(1, count + 1)}
        return sorted(step for step in at if step < job.max_steps)

    def _halve(self) -> None:
        """Ends the worse jobs of each speaker that stand at a rung.

        Jobs of a speaker are neighbours in the queue and mostly reach a rung together. One that comes later is compared
        with all that came before it, as in asynchronous halving (Li et al. 2018, arXiv 1810.05934).
        """
        arrived: list[tuple[Running, int]] = []
        for running in self.slots:
            if running is None or running.ended is not None:
                continue
            rungs = self.rungs(running.job)
            if running.step in rungs:
                rung = rungs.index(running.step)
                heats = self._rungs.setdefault(running.job.speaker.id, [[] for _ in rungs])
                heats[rung].append((running.best_loss, running.place))
                arrived.append((running, rung))
        for running, rung in arrived:
            heat = self._rungs[running.job.speaker.id][rung]
            rank = sorted(heat).index((running.best_loss, running.place))
            if rank >= math.ceil(len(heat) / self.stopping.halving):
                running.ended = f"{HALVED} at step {running.step}: {rank + 1} of {len(heat)} by dev loss"
        self._forget()

    def _forget(self) -> None:
        """Drops the comparisons of speakers that have no job left in a slot or next in the queue."""
        here = {running.job.speaker.id for running in self.slots if running is not None}
        if self.position < len(self.jobs):
            here.add(self.jobs[self.position].speaker.id)
        self._rungs = {speaker: heats for speaker, heats in self._rungs.items() if speaker in here}


def _slot_to_json(running: Running) -> dict[str, Any]:
    return {
        "place": running.place,
        "step": running.step,
        "base_loss": _number(running.base_loss),
        "best_loss": _number(running.best_loss),
        "best_step": running.best_step,
        "looks": [[step, _number(loss)] for step, loss in running.looks],
    }


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
