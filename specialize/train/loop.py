"""The loop of one cohort: rounds of steps between looks at the dev sets, until the queue of jobs is empty."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from specialize.base import Base, Batch
from specialize.corpus import Corpus, Cut, Dispatch, Faults, Shapes, Utterance, cohort_batches, eval_batches
from specialize.processes import ALONE, Peers
from specialize.submodel import Submodel, broadcast
from specialize.train.experiment import to_json
from specialize.train.jobs import Job, stack_hyper
from specialize.train.reader import Placed, Reader
from specialize.train.resident import ResidentAudio
from specialize.train.schedule import HALVED, Running, Schedule
from specialize.train.step import Cohort, CohortState, Metrics
from specialize.train.together import faults_of_all, fetch_together
from specialize.train.totals import Means, Totals

IN_FLIGHT = 2
"""Dispatches that may be waiting for the devices: enough to keep them busy, few enough to stop soon."""


@dataclass(frozen=True)
class Finished:
    """What came of one job."""

    job: Job
    submodel: Submodel
    """The parameters at the best look."""
    steps: int
    best_step: int
    base_dev_loss: float
    """Mean dev loss per token of the base as it serves alone: a Whisper with its whole window."""
    dev_loss: float
    """Mean dev loss per token at the best look; not finite if no look ever was."""
    skipped: int
    """Steps that were not taken because loss or gradient was not finite."""
    looks: list[tuple[int, float]]
    ended: str | None = None
    """Why the job ended before its time, other than by patience."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What the trainee says of it. JSON data."""

    @property
    def quarantined(self) -> bool:
        """Whether the job ended in trouble, so that its Submodel is not to be used."""
        return not math.isfinite(self.dev_loss) or (self.ended is not None and not self.ended.startswith(HALVED))

    @property
    def helps(self) -> bool:
        """Whether the Submodel beats the base on its speaker's dev set."""
        return not self.quarantined and self.dev_loss < self.base_dev_loss

    def facts(self) -> dict[str, Any]:
        """For the metadata of the stored Submodel, and for the log of jobs: JSON data."""
        return {
            "utterances": len(self.job.train),
            "steps": self.steps,
            "best_step": self.best_step,
            "base_dev_loss": finite_or_none(self.base_dev_loss),
            "dev_loss": finite_or_none(self.dev_loss),
            "beats_base_on_dev": self.helps,
            "skipped_steps": self.skipped,
            "ended": self.ended,
            "hyper": to_json(self.job.hyper),
            "looks": [[step, finite_or_none(loss)] for step, loss in self.looks],
            **self.beside,
        }


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


@runtime_checkable
class Listener(Protocol):
    """What a trainer tells while it runs, and asks."""

    def looked(self, slot: int, running: Running, train_loss: float, grad_norm: float) -> None:
        """A job was evaluated: `running.looks[-1]`. The means over the steps since its last look; NaN at step 0."""
        ...

    def finished(self, slot: int, finished: Finished) -> None:
        """A job ended."""
        ...

    def fault(self, reason: str) -> None:
        """Audio could not be read while training."""
        ...

    def saves(self) -> bool:
        """Whether `save` is to be called now, which takes time. Asked after every dispatch; the answer is the same in
        all processes."""
        ...

    def save(self, state: CohortState, progress: dict[str, Any]) -> None:
        """Keeps a state that `CohortTrainer.run` can go on from. May raise, which ends the run."""
        ...


@dataclass
class CohortTrainer:
    """Trains a queue of jobs in the slots of one cohort. Touches no files; a listener does."""

    base: Base
    corpus: Corpus
    cohort: Cohort
    schedule: Schedule
    cut: Cut
    train_shapes: Shapes
    dev_shapes: Shapes
    resident: Sequence[Utterance] = ()
    """What every device keeps the audio of: all that the queue trains on, or nothing, and then batches bring it."""
    peers: Peers = ALONE
    """The processes that train together. Each has the whole schedule, and feeds its own slots."""
    totals: Totals = field(default_factory=Totals)

    def __post_init__(self):
        self._faults = Faults()
        self._frozen = self.cohort.place_frozen(self.base.params)
        self._audio: ResidentAudio | None = None
        if self.resident:
            longest = self.train_shapes.sizes[-1].samples
            self._audio = ResidentAudio(self.corpus, self.resident, longest, self.cohort, self._faults)
        self._starts: dict[int, list[tuple[float, float]]] = {}
        self._ahead: Reader | None = None

    def run(self, listener: Listener, resume: tuple[CohortState, dict[str, Any]] | None = None) -> None:
        """Trains until the queue is empty.

        Args:
            listener: hears of everything.
            resume: a state and the progress that was saved with it; what comes is the same, bit for bit, as if the run
                had never stopped.
        """
        cohort, schedule = self.cohort, self.schedule
        anchor = cohort.place_replicated(cohort.anchor())
        means = Means.of(cohort.slots)
        if resume is None:
            state = cohort.empty_state()
        else:
            state, progress = resume
            schedule.restore(progress["schedule"])
            means = Means.from_json(progress["means"])
            self.totals = Totals(**progress["totals"])
        with ThreadPoolExecutor(1, thread_name_prefix="dev") as pool:
            dev: Future[list[Batch]] | None = None
            dev_of: list[int | None] = []
            while True:
                filled = schedule.fill()
                if not schedule.busy:
                    return
                jobs = [running.job if running else None for running in schedule.slots]
                hyper = cohort.place(stack_hyper(jobs))
                active = cohort.place(np.array([job is not None for job in jobs]))
                places = [running.place if running else None for running in schedule.slots]
                if dev_of != places:
                    dev = None  # so that those of new jobs do not lie on the devices beside them
                if filled:
                    state = cohort.reset(state, hyper, cohort.place(np.isin(np.arange(cohort.slots), filled)))
                    self._begin(filled, listener)
                    if listener.saves():
                        listener.save(state, self._progress(means))
                if dev is None:
                    # Of those in the slots and no others, as a run that goes on from here would make them.
                    dev, dev_of = pool.submit(self._dev_batches, jobs), places

                metrics: deque[Metrics] = deque()
                for dispatch, parts in self._round():
                    self._count(jobs, dispatch)
                    if len(metrics) >= IN_FLIGHT:
                        jax.block_until_ready(metrics[-IN_FLIGHT])
                    state, measured = cohort.step(self._frozen, state, hyper, active, anchor, parts)
                    metrics.append(measured)
                    schedule.advance(dispatch.steps)
                    if listener.saves():
                        means.add(self._fetch(list(metrics)), jobs)
                        metrics.clear()
                        listener.save(state, self._progress(means))
                self._read_ahead()
                means.add(self._fetch(list(metrics)), jobs)
                state = self._look(state, dev.result(), means, listener)
                self._finish(state, listener)
                if listener.saves():
                    listener.save(state, self._progress(means))

    def _count(self, jobs: Sequence[Job | None], dispatch: Dispatch) -> None:
        busy = sum(job is not None for job in jobs)
        waiting = self.schedule.position < len(self.schedule.jobs)
        self.totals += Totals(
            real_samples=dispatch.real_samples,
            computed_samples=dispatch.computed_samples,
            busy_slot_steps=dispatch.steps * busy,
            slot_steps=dispatch.steps * (self.cohort.slots if waiting else busy),
        )

    def _progress(self, means: Means) -> dict[str, Any]:
        totals = dataclasses.asdict(self.totals)
        return {"schedule": self.schedule.to_json(), "means": means.to_json(), "totals": totals}

    def _begin(self, filled: Collection[int], listener: Listener) -> None:
        """The look at step 0 of new jobs."""
        losses = np.full(self.cohort.slots, np.nan)
        for slot in filled:
            running = self.schedule.slots[slot]
            assert running is not None
            running.base_loss, losses[slot] = self._at_start(running.place)
        self.schedule.look(losses.tolist(), filled)
        for slot in filled:
            running = self.schedule.slots[slot]
            assert running is not None
            listener.looked(slot, running, math.nan, math.nan)
        self._tell_faults(listener)

    def _at_start(self, place: int) -> tuple[float, float]:
        """Mean dev loss per token of the base and of the start, of the job at a place of the queue.

        Both are the same Submodel for all jobs, so they are computed for as many neighbours in the queue as there are
        slots at once, and a job that comes alone into a free slot does not cost a whole evaluation.
        """
        slots = self.cohort.slots
        block = place // slots
        if block not in self._starts:
            jobs: list[Job | None] = list(self.schedule.jobs[block * slots : (block + 1) * slots])
            batches = self._dev_batches(jobs + [None] * (slots - len(jobs)))
            base = self._mean(self.cohort.evaluate_alone(self._frozen, batch) for batch in batches)
            start = base if self.cohort.starts_as_base else self._losses(batches, self.cohort.anchor())
            needed = {running.place // slots for running in self.schedule.slots if running is not None}
            self._starts = {k: v for k, v in self._starts.items() if k in needed}
            self._starts[block] = list(zip(base.tolist(), start.tolist(), strict=True))
        return self._starts[block][place % slots]

    def _losses(self, batches: Iterable[Batch], trained: Any) -> np.ndarray:
        bank = self.cohort.place(broadcast(trained, self.cohort.slots))
        return self._mean(self.cohort.evaluate(self._frozen, bank, batch) for batch in batches)

    def _mean(self, parts: Iterable[tuple[Any, Any]]) -> np.ndarray:
        return mean_per_token(parts, self._fetch)

    def _fetch(self, tree: Any) -> Any:
        return fetch_together(tree, self.cohort, self.peers)

    def _look(self, state: CohortState, dev: list[Batch], means: Means, listener: Listener) -> CohortState:
        cohort, schedule = self.cohort, self.schedule
        due = schedule.due()
        losses = self._mean(cohort.evaluate(self._frozen, state.trained, batch) for batch in dev)
        improved = schedule.look(losses.tolist(), due)
        state = cohort.keep_best(state, cohort.place(np.isin(np.arange(cohort.slots), improved)))
        skipped = np.asarray(self._fetch(state.skipped))
        self._tell_faults(listener)
        for slot in due:
            running = schedule.slots[slot]
            assert running is not None
            listener.looked(slot, running, *means.take(slot))
            if skipped[slot] >= schedule.stopping.max_skipped:
                reason = f"{skipped[slot]} of its {running.step} steps could not be taken: loss or gradient not finite"
                schedule.quarantine(slot, reason + self._broken(running.job))
        return state

    def _finish(self, state: CohortState, listener: Listener) -> None:
        cohort, ended = self.cohort, self.schedule.finish()
        if not ended:
            return
        skipped = self._fetch(state.skipped)
        for slot, running in ended:
            reason = running.ended
            if reason is None and not math.isfinite(running.best_loss):
                reason = "its dev loss was never finite" + self._broken(running.job)
            submodel, beside = cohort.trainee.export(jax.device_get(cohort.take(state.best, np.int32(slot))))
            finished = Finished(
                job=running.job,
                submodel=submodel,
                steps=running.step,
                best_step=running.best_step,
                base_dev_loss=running.base_loss,
                dev_loss=running.best_loss,
                skipped=int(skipped[slot]),
                looks=running.looks,
                ended=reason,
                beside=beside,
            )
            listener.finished(slot, finished)

    def _tell_faults(self, listener: Listener) -> None:
        for reason in faults_of_all(self._faults, self.peers):
            listener.fault(reason)

    def _broken(self, job: Job) -> str:
        reason = self._faults.of((*job.train, *job.speaker.dev))
        return "" if reason is None else f"; {reason}"

    def _round(self) -> Iterable[Placed]:
        """The dispatches until the next look; none, where a run goes on just before one."""
        steps = self.schedule.round_steps()
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.key == (self.schedule.standing(), steps):
            return ahead
        if ahead is not None:
            ahead.close()
        return self._reader(steps) if steps else ()

    def _read_ahead(self) -> None:
        """Begins to read the round after the look that comes now, as it will be if no job ends there."""
        steps = self.schedule.round_steps(looked=True)
        self._ahead = self._reader(steps) if steps > 0 else None

    def _reader(self, steps: int) -> Reader:
        assignments = [None if running is None else running.job.at(running.step) for running in self.schedule.slots]
        positions = None if self._audio is None else self._audio.position
        settings = (steps, self.cut, self.train_shapes, self._faults, positions)
        return Reader(
            (self.schedule.standing(), steps),
            lambda: cohort_batches(self.corpus, assignments, *settings, self.cohort.own),
            self._place,
        )

    def _place(self, dispatch: Dispatch) -> tuple[Batch, ...]:
        """The parts of a dispatch, on the devices."""
        parts = self.cohort.place_own(dispatch.parts)
        return parts if self._audio is None else self._audio.fetch(parts, dispatch.sizes)

    def _dev_batches(self, jobs: Sequence[Job | None]) -> list[Batch]:
        utterances = [() if job is None else job.speaker.dev for job in jobs]
        own = self.cohort.own
        batches = eval_batches(self.corpus, utterances, self.cut.batch, self.dev_shapes, self._faults, own)
        return [self.cohort.place_own(batch) for batch in batches]


def mean_per_token(parts: Iterable[tuple[Any, Any]], fetch: Callable[[Any], Any] = jax.device_get) -> np.ndarray:
    """Mean loss per token of every slot, float [S]; NaN where there is none.

    Args:
        parts: (loss total [S], token count [S]) of several batches.
        fetch: brings a list of such to the host.
    """
    totals, counts = zip(*fetch(list(parts)), strict=True)
    total, count = np.sum(totals, axis=0, dtype=np.float64), np.sum(counts, axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
