"""The loop: rounds of steps between looks at the dev sets, until every job has its Submodel in the store."""

import math
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from specialize.base import Base, Batch, load_base
from specialize.corpus import (
    Assignment,
    Corpus,
    Cut,
    Shapes,
    cohort_batches,
    eval_batches,
    eval_shapes,
    open_corpus,
    queue_order,
    train_shapes,
)
from specialize.errors import ConfigError, FingerprintMismatch, SpecializeError, StoreError
from specialize.submodel import StoredSubmodel, Submodel, broadcast, find_sites, load_submodel, size, take
from specialize.submodel.bank import speaker_mesh
from specialize.train.experiment import Experiment, to_json
from specialize.train.jobs import Job, stack_hyper
from specialize.train.metrics import MetricsLog, TensorBoardLog, WandbLog
from specialize.train.progress import Progress
from specialize.train.run import Run, write_json
from specialize.train.schedule import Running, Schedule
from specialize.train.step import Cohort, CohortState, Metrics

_COMPILING_SECONDS = 120.0
"""What a size costs beside its padding, in seconds of audio. Two CPU cores train on 240 s in the time of a compilation
(Whisper tiny.en), which is done once for several runs. An accelerator trains on more: fewer `cohort.shapes` may be
faster there."""


@dataclass(frozen=True)
class Finished:
    """What came of one job."""

    job: Job
    submodel: Submodel
    """The parameters at the best look."""
    steps: int
    best_step: int
    base_dev_loss: float
    """Mean dev loss per token of the base alone."""
    dev_loss: float
    """Mean dev loss per token at the best look; not finite if no look ever was."""
    skipped: int
    """Steps that were not taken because loss or gradient was not finite."""
    looks: list[tuple[int, float]]

    @property
    def helps(self) -> bool:
        """Whether the Submodel beats the base on its speaker's dev set."""
        return self.dev_loss < self.base_dev_loss

    def facts(self) -> dict[str, Any]:
        """For the metadata of the stored Submodel, and for the summary: JSON data."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "base_dev_loss": finite_or_none(self.base_dev_loss),
            "dev_loss": finite_or_none(self.dev_loss),
            "beats_base_on_dev": self.helps,
            "skipped_steps": self.skipped,
            "hyper": to_json(self.job.hyper),
            "looks": [[step, finite_or_none(loss)] for step, loss in self.looks],
        }


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


@dataclass
class Padding:
    """How much of the audio that the steps computed was padding."""

    real: int = 0
    computed: int = 0

    def add(self, parts: Iterable[Batch]) -> None:
        """Counts the parts of a step; slots without a job are computed too, and count as padding."""
        for part in parts:
            self.real += int(np.sum(part.samples))
            self.computed += int(np.prod(part.audio.shape))

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return 1.0 - self.real / max(self.computed, 1)


@runtime_checkable
class Listener(Protocol):
    """What a trainer tells while it runs."""

    def looked(self, slot: int, running: Running, train_loss: float, grad_norm: float) -> None:
        """A job was evaluated: `running.looks[-1]`. The means over the round before are NaN at step 0."""
        ...

    def finished(self, slot: int, finished: Finished) -> None:
        """A job ended."""
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
    padding: Padding = field(default_factory=Padding)
    busy_slot_steps: int = 0
    """Steps of jobs; with `slot_steps` it says how well the slots were used."""
    slot_steps: int = 0

    def run(self, listener: Listener) -> None:
        """Trains until the queue is empty."""
        cohort, schedule = self.cohort, self.schedule
        params = cohort.place_replicated(self.base.params)
        anchor = cohort.place_replicated(cohort.anchor())
        neutral = cohort.place(broadcast(cohort.without_effect(), cohort.slots))
        state = cohort.empty_state()
        base_dev = np.full(cohort.slots, np.nan)
        dev: list[Batch] = []

        while True:
            filled = schedule.fill()
            if not schedule.busy:
                return
            jobs = [running.job if running else None for running in schedule.slots]
            hyper = cohort.place(stack_hyper(jobs))
            active = cohort.place(np.array([job is not None for job in jobs]))
            if filled:
                fresh = np.isin(np.arange(cohort.slots), filled)
                state = cohort.reset(state, hyper, cohort.place(fresh))
                dev = self._dev_batches(jobs)
                state = self._look(state, params, dev, listener, only=filled)
                if cohort.starts_as_base:
                    for slot in filled:
                        base_dev[slot] = schedule.looks(slot)[0][1]
                else:
                    base_dev[fresh] = _mean(cohort.evaluate(params, neutral, b) for b in dev)[fresh]

            steps = schedule.round_steps()
            metrics = []
            for parts in self._train_batches(steps):
                self.padding.add(parts)
                state, measured = cohort.step(params, state, hyper, active, anchor, cohort.place(parts))
                metrics.append(measured)
            schedule.advance(steps)
            self.slot_steps += steps * cohort.slots
            self.busy_slot_steps += steps * sum(job is not None for job in jobs)
            state = self._look(state, params, dev, listener, metrics=metrics)

            ended = schedule.finish()
            if ended:
                best, skipped = jax.device_get((state.best, state.skipped))
                for slot, running in ended:
                    result = _finished(running, take(best, slot), int(skipped[slot]), float(base_dev[slot]))
                    listener.finished(slot, result)

    def _look(
        self,
        state: CohortState,
        params: Any,
        dev: list[Batch],
        listener: Listener,
        *,
        metrics: Sequence[Metrics] = (),
        only: Collection[int] | None = None,
    ) -> CohortState:
        losses = _mean(self.cohort.evaluate(params, state.submodel, b) for b in dev)
        improved = self.schedule.look(losses.tolist(), only)
        state = self.cohort.keep_best(state, self.cohort.place(np.isin(np.arange(self.cohort.slots), improved)))
        fetched = jax.device_get(list(metrics))
        for slot, running in enumerate(self.schedule.slots):
            if running is not None and (only is None or slot in only):
                train = float(np.mean([m.loss[slot] for m in fetched])) if fetched else math.nan
                norm = float(np.mean([m.grad_norm[slot] for m in fetched])) if fetched else math.nan
                listener.looked(slot, running, train, norm)
        return state

    def _train_batches(self, steps: int) -> Iterable[tuple[Batch, ...]]:
        assignments = [
            None if running is None else Assignment(running.job.speaker, running.job.seed, running.step)
            for running in self.schedule.slots
        ]
        return cohort_batches(self.corpus, assignments, steps, self.cut, self.train_shapes)

    def _dev_batches(self, jobs: Sequence[Job | None]) -> list[Batch]:
        utterances = [() if job is None else job.speaker.dev for job in jobs]
        return [self.cohort.place(b) for b in eval_batches(self.corpus, utterances, self.cut.batch, self.dev_shapes)]


def _mean(parts: Iterable[tuple[Any, Any]]) -> np.ndarray:
    """Mean loss per token of every slot, float [S], from (total, count) of several batches; NaN where there is none."""
    totals, counts = zip(*jax.device_get(list(parts)), strict=True)
    total, count = np.sum(totals, axis=0, dtype=np.float64), np.sum(counts, axis=0, dtype=np.float64)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _finished(running: Running, submodel: Submodel, skipped: int, base_dev_loss: float) -> Finished:
    return Finished(
        job=running.job,
        submodel=submodel,
        steps=running.step,
        best_step=running.best_step,
        base_dev_loss=base_dev_loss,
        dev_loss=running.best_loss,
        skipped=skipped,
        looks=running.looks,
    )


class _Recorder:
    """Listens to a trainer for a run: metrics, progress, and the store, which is written in the background."""

    def __init__(self, run: Run, base: Base, progress: Progress):
        self.run, self.base, self.progress = run, base, progress
        self.metrics = MetricsLog(run.folder / "metrics.jsonl")
        self.curves: list[TensorBoardLog | WandbLog] = []
        experiment = run.experiment
        if experiment.tensorboard:
            self.curves.append(TensorBoardLog(run.folder / "tensorboard"))
        if experiment.wandb is not None:
            self.curves.append(WandbLog(experiment.wandb, experiment.name, run.config, run.folder))
        self.jobs: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        """Why a speaker's Submodel is not in the store."""
        self._saves: list[Future] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._began = time.monotonic()

    def looked(self, slot: int, running: Running, train_loss: float, grad_norm: float) -> None:
        speaker = running.job.speaker.id
        step, dev_loss = running.looks[-1]
        line = {
            "speaker": speaker,
            "step": step,
            "train_loss": train_loss,
            "dev_loss": dev_loss,
            "grad_norm": grad_norm,
        }
        self.metrics.write({"seconds": round(time.monotonic() - self._began, 2), "slot": slot} | line)
        for curves in self.curves:
            for name in ("train_loss", "dev_loss", "grad_norm"):
                curves.scalar(f"{name}/{speaker}", line[name], step)
        train = None if math.isnan(train_loss) else train_loss
        self.progress.slot(slot, speaker, step, running.job.max_steps, train, dev_loss, running.best_loss)

    def finished(self, slot: int, finished: Finished) -> None:
        speaker = finished.job.speaker.id
        self.jobs[speaker] = finished.facts()
        stored = StoredSubmodel(
            finished.submodel, self.run.experiment.submodel, speaker, self.base.fingerprint, finished.facts()
        )
        self._saves.append(self._pool.submit(self._save, stored))
        change = f"dev loss {finished.base_dev_loss:.3f} -> {finished.dev_loss:.3f} at step {finished.best_step}"
        self.progress.done(speaker, change, failed=not math.isfinite(finished.dev_loss))
        self.progress.slot(slot, None, 0, 0, None, None, None)

    def _save(self, stored: StoredSubmodel) -> None:
        try:
            self.run.store.save(stored)
        except SpecializeError as error:
            self.failures[stored.speaker] = str(error)
            self.progress.note(f"not stored: {error}")

    def close(self) -> None:
        """Waits for the store."""
        self._pool.shutdown(wait=True)
        for save in self._saves:
            save.result()
        self.metrics.close()
        for curves in self.curves:
            curves.close()


def train(experiment: Experiment, *, overwrite: bool = False, progress: Progress | None = None) -> Run:
    """Trains a Submodel for every speaker of the experiment's corpus and stores each on its own.

    Args:
        experiment: what to train.
        overwrite: replace a run of the same name.
        progress: where to show how it goes; None shows it on stderr.

    Returns:
        The finished run.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used; before any training.
    """
    began = time.monotonic()
    base = load_base(experiment.base).with_context(experiment.context)
    sites = find_sites(experiment.submodel, base.architecture, base.params)
    start = None if experiment.start is None else load_start(experiment, base)
    corpus = open_corpus(experiment.corpus, base)
    mesh = speaker_mesh()
    jobs = [Job(s, experiment.hyper, experiment.stop.max_steps) for s in queue_order(corpus.speakers)]
    if not jobs:
        raise ConfigError(f"No speaker of '{experiment.corpus.manifest}' is left to train. " + _reasons(corpus))
    devices = mesh.devices.size
    slots = min(experiment.cohort.slots, -(-len(jobs) // devices) * devices)
    cohort = Cohort(
        base.architecture,
        experiment.submodel,
        sites,
        mesh,
        slots,
        start=start,
        random=experiment.hyper.dropout > 0 or experiment.hyper.spec_augment > 0,
        chunk=experiment.cohort.chunk,
    )
    schedule = Schedule(jobs, slots, experiment.stop, experiment.cohort.refill)
    cut = Cut(experiment.cohort.batch, experiment.cohort.rows)
    shapes = _shapes(jobs, slots, cut, experiment, corpus.sample_rate)
    trainer = CohortTrainer(base, corpus, cohort, schedule, cut, *shapes)

    run = Run.create(experiment, base=base.fingerprint, overwrite=overwrite)
    write_json(run.folder / "problems.json", [vars(problem) for problem in corpus.problems])
    with progress or Progress() as shown:
        shown.start(len(jobs), slots, experiment.name)
        for problem in corpus.problems:
            shown.note(f"left out: {problem}")
        recorder = _Recorder(run, base, shown)
        try:
            trainer.run(recorder)
        finally:
            recorder.close()
    seconds = time.monotonic() - began
    summary = {
        "submodels": len(recorder.jobs) - len(recorder.failures),
        "parameters_each": size(cohort.anchor()),
        "base_parameters": size(base.params),
        "slots": slots,
        "devices": [f"{d.platform}:{d.device_kind}" for d in mesh.devices.flat],
        "seconds": round(seconds, 1),
        "submodels_per_hour": round(len(recorder.jobs) / seconds * 3600, 1),
        "padded_share": round(trainer.padding.share, 4),
        "slots_busy": round(trainer.busy_slot_steps / max(trainer.slot_steps, 1), 4),
        "not_stored": recorder.failures,
        "jobs": recorder.jobs,
    }
    write_json(run.folder / "summary.json", summary)
    if recorder.failures:
        speaker, reason = next(iter(recorder.failures.items()))
        raise StoreError(
            f"{len(recorder.failures)} of {len(recorder.jobs)} Submodels could not be stored; the others are in "
            f"'{run.folder}'. The first is that of '{speaker}': {reason}"
        )
    return run


def _shapes(jobs: Sequence[Job], slots: int, cut: Cut, experiment: Experiment, rate: int) -> tuple[Shapes, Shapes]:
    """Sizes of the training batches and of the dev batches, for audio of `rate` Hz."""
    count, stop = experiment.cohort.shapes, experiment.stop
    queue = [Assignment(job.speaker, job.seed, 0) for job in jobs]
    compiling = _COMPILING_SECONDS * rate
    looks = 1 + -(-stop.max_steps // stop.every)
    return (
        train_shapes(queue, slots, cut, stop.max_steps, count, compiling),
        eval_shapes([job.speaker.dev for job in jobs], slots, cut.batch, looks, max(1, count // 2), compiling),
    )


def load_start(experiment: Experiment, base: Base) -> Submodel:
    """The Submodel that every job starts from.

    Raises:
        ConfigError: it is of another kind, or goes to other places, than the experiment's.
        FingerprintMismatch: it belongs to another base.
    """
    try:
        stored = load_submodel(experiment.start, base=base.fingerprint)
    except FingerprintMismatch as error:
        raise FingerprintMismatch(
            f"The start does not fit: {error} Begin without one (`--start None`), or give one of this base (`--start`)."
        ) from None
    if stored.spec != experiment.submodel:
        raise ConfigError(
            f"The start '{experiment.start}' is {stored.spec}, but the experiment trains {experiment.submodel}. "
            "Give the experiment the same spec, or start from nothing."
        )
    return stored.submodel


def _reasons(corpus: Corpus) -> str:
    shown = [str(problem) for problem in corpus.problems[:5]]
    return " ".join(shown) if shown else "The corpus has no speaker with the role, names and limit that were asked for."
