"""What a trainer adds up while it runs: how well it used its devices, and the means that are told at each look."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specialize.train.jobs import Job
from specialize.train.step import Metrics


@dataclass(frozen=True)
class Totals:
    """How well a run used its devices."""

    real_samples: int = 0
    """Of utterances, in all steps."""
    computed_samples: int = 0
    """With padding; slots without a job are computed too."""
    busy_slot_steps: int = 0
    """Steps of jobs."""
    slot_steps: int = 0
    """Steps that slots could have made: those that idle at the end, when the queue is empty, do not count."""

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def padded_share(self) -> float:
        """Share of the computed audio that was padding."""
        return 1.0 - self.real_samples / max(self.computed_samples, 1)

    @property
    def busy_share(self) -> float:
        """Share of the slots' time, until the queue was empty, that they had a job."""
        return self.busy_slot_steps / max(self.slot_steps, 1)


@dataclass
class Means:
    """Means over the steps since a job's last look, of each slot."""

    loss: list[float]
    norm: list[float]
    steps: list[int]

    @classmethod
    def of(cls, slots: int) -> "Means":
        """Of S slots that have not made a step."""
        return cls([0.0] * slots, [0.0] * slots, [0] * slots)

    def add(self, metrics: Iterable[Metrics], jobs: Sequence[Job | None]) -> None:
        """Takes what dispatches measured, of all slots, on the host."""
        for measured in metrics:
            for slot, job in enumerate(jobs):
                if job is not None:
                    # One step after another, so that the sum does not depend on how they were dispatched.
                    for loss, norm in zip(
                        np.ravel(measured.loss[slot]), np.ravel(measured.grad_norm[slot]), strict=True
                    ):
                        self.loss[slot] += float(loss)
                        self.norm[slot] += float(norm)
                        self.steps[slot] += 1

    def take(self, slot: int) -> tuple[float, float]:
        """Mean loss and norm of a slot, which begins anew; NaN without a step."""
        steps = self.steps[slot]
        means = (self.loss[slot] / steps, self.norm[slot] / steps) if steps else (math.nan, math.nan)
        self.loss[slot] = self.norm[slot] = 0.0
        self.steps[slot] = 0
        return means

    def to_json(self) -> list[list[Any]]:
        """For a saved state."""
        return [[str(x) for x in self.loss], [str(x) for x in self.norm], self.steps]

    @classmethod
    def from_json(cls, data: list[list[Any]]) -> "Means":
        """What `to_json` gave."""
        return cls([float(x) for x in data[0]], [float(x) for x in data[1]], list(data[2]))
