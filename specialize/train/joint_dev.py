"""The dev sets of all speakers of a space, as many at a time as there are slots."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float

from specialize.base import Batch
from specialize.corpus import Faults, Shapes, eval_batches
from specialize.submodel import Submodel
from specialize.train.joint import SpacePlan
from specialize.train.loop import mean_per_token
from specialize.train.step import Cohort, Frozen
from specialize.train.together import fetch_together


class DevSets:
    """Measures the loss of every speaker, a wave of S neighbours in the queue after another.

    Batches of the next wave are made while one is measured. Where there is one wave only, they stay on the devices.

    Args:
        planned: whose dev sets.
        cohort: computes the losses.
        frozen: of the cohort.
        shapes: lengths to pad to.
        faults: takes utterances that cannot be read; the loss of their speakers is NaN.
    """

    def __init__(self, planned: SpacePlan, cohort: Cohort, frozen: Frozen, shapes: Shapes, faults: Faults):
        self._plan, self._jobs, self._cohort = planned.plan, planned.jobs, cohort
        self._frozen, self._shapes, self._faults = frozen, shapes, faults
        self._waves = -(-len(self._jobs) // cohort.slots)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dev")
        self._ahead: Future[list[Batch]] = self._pool.submit(self._wave, 0)

    def losses(self, bank: Callable[[int], Submodel] | None) -> Float[np.ndarray, "N"]:
        """Mean dev loss per token of each speaker, in the order of the queue.

        Args:
            bank: the Submodels [S, …] of the speakers of a wave, laid out on the mesh; None is the base as it serves
                alone.
        """
        found = []
        for wave, batches in enumerate(self._batches()):
            if bank is None:
                parts = [self._cohort.evaluate_alone(self._frozen, batch) for batch in batches]
            else:
                made = bank(wave)
                parts = [self._cohort.evaluate(self._frozen, made, batch) for batch in batches]
            found.append(mean_per_token(parts, self._fetch))
        return np.concatenate(found)[: len(self._jobs)]

    def _fetch(self, tree: Any) -> Any:
        return fetch_together(tree, self._cohort, self._plan.peers)

    def close(self) -> None:
        """Waits for what is being made."""
        self._pool.shutdown(wait=True)

    def _batches(self) -> Iterator[list[Batch]]:
        for wave in range(self._waves):
            batches = self._ahead.result()
            if self._waves > 1:
                self._ahead = self._pool.submit(self._wave, (wave + 1) % self._waves)
            yield batches

    def _wave(self, wave: int) -> list[Batch]:
        slots = self._cohort.slots
        dev = [job.speaker.dev for job in self._jobs[wave * slots : (wave + 1) * slots]]
        dev += [()] * (slots - len(dev))
        own = self._cohort.own
        batches = eval_batches(self._plan.corpus, dev, self._plan.cut.batch, self._shapes, self._faults, own)
        return [self._cohort.place_own(batch) for batch in batches]
