"""The loop of a space: rounds of steps between looks at everybody's dev set, then the space and its Submodels."""

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from specialize.corpus import Assignment, Dispatch, Faults, drawn_batches
from specialize.errors import ConfigError
from specialize.processes import ALONE, Peers
from specialize.train.estimate import Layout, told_of_memory
from specialize.train.jobs import stack_hyper
from specialize.train.joint import SpacePlan, SpaceRun, SpaceTraining, plan_space
from specialize.train.joint_dev import DevSets
from specialize.train.joint_standing import Standing
from specialize.train.joint_step import Best, SpaceState
from specialize.train.joint_store import store_space
from specialize.train.loop import IN_FLIGHT
from specialize.train.metrics import MetricsLog, TensorBoardLog, Unwritten
from specialize.train.progress import Progress
from specialize.train.run import STATE, write_json
from specialize.train.state import Saved, StateFolder, save_or_tell
from specialize.train.together import (
    SaveClock,
    begin_together,
    check_alike,
    check_count,
    faults_of_all,
    fetch_together,
    has_ended,
    progress_of,
    taken,
    told_by_first,
)
from specialize.train.totals import Totals

_SHOWN = 10
"""Steps between two losses that are shown."""


def train_space(
    experiment: SpaceTraining, *, overwrite: bool = False, progress: Progress | None = None, peers: Peers = ALONE
) -> SpaceRun:
    """Trains a space over the speakers of a corpus, and stores it and the Submodel of each speaker.

    A run of this name that has not ended goes on from its last saved state, to the same bits as if it had not stopped.
    One that has ended is told to have, and returned.

    Args:
        experiment: what to train.
        overwrite: replace a run of the same name.
        progress: where to show how it goes; None shows it on stderr.
        peers: the processes that train it together, from `specialize.processes.joined`. The run folder is one that all
            of them reach. The space is that of one process with as many devices, to float tolerance: its gradient is
            summed over the devices in another order.

    Returns:
        The finished run.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used; before any training.
        Preempted: SIGTERM came; the state is saved.
        ConfigError: the losses of all speakers have ceased to be finite.
        StoreError: the space or Submodels could not be written; the same command tries again.
    """
    check_count(peers)
    planned = plan_space(experiment, peers)
    base, corpus = planned.plan.base, planned.plan.corpus
    name = corpus.built.folder.name
    alike, identity = {"corpus": [name, len(corpus.speakers)]}, {"base": base.fingerprint, "corpus": name}
    run = begin_together(SpaceRun, experiment, peers, overwrite=overwrite, alike=alike, **identity)
    shown = progress or progress_of(peers)
    if has_ended(run, shown, peers):
        return run
    with taken(run, shown, peers) as stopped:
        if peers.first:
            write_json(run.folder / "problems.json", [vars(problem) for problem in corpus.problems])
        for problem in corpus.problems:
            shown.note(f"left out: {problem}")
        states = StateFolder(run.folder / STATE, peers)
        try:
            saved = states.latest()
            check_alike(peers, {"last state": saved and saved.number})
            if saved is not None:
                shown.note(f"goes on with '{run.folder}' from step {saved.progress['standing']['step']}")
            sitting = _Sitting(run, planned, states, saved, shown, stopped)
            with told_of_memory(sitting.layout.slots):
                sitting.train()
        finally:
            states.close()
        peers.exchange(None, patient=True)  # all have closed what is removed now
        if peers.first:
            run.clear()
    return run


class _Sitting:
    """A run, from its beginning or its last state to its end or the next signal."""

    def __init__(
        self,
        run: SpaceRun,
        planned: SpacePlan,
        states: StateFolder,
        saved: Saved | None,
        shown: Progress,
        stopped: Callable[[], bool],
    ):
        self.run, self.planned, self.states, self.saved = run, planned, states, saved
        self.shown, self.jobs, self.peers = shown, planned.jobs, planned.plan.peers
        self.clock = SaveClock(self.peers, stopped, run.experiment.save_seconds)
        if saved is None:
            self.layout, self.at = planned.plan.layout(planned.program), Standing()
        else:
            self.layout = Layout(saved.progress["slots"], saved.progress["chunk"])
            self.at = Standing.from_json(saved.progress["standing"])
        self.joint = planned.step(self.layout)
        self.cohort, self.slots = self.joint.cohort, self.layout.slots
        self.turns = planned.turns(self.slots, self.at.left_out)
        self.faults = Faults()
        self.frozen = self.cohort.place_frozen(planned.plan.base.params)
        self.shapes, dev_shapes = planned.plan.shapes(planned.program, self.slots)
        self.dev = DevSets(planned, self.cohort, self.frozen, dev_shapes, self.faults)
        before = saved.progress if saved is not None else {"metrics": 0, "seconds": 0.0}
        first = self.peers.first
        self.metrics = MetricsLog(run.folder / "metrics.jsonl", before["metrics"]) if first else Unwritten()
        self.curves = TensorBoardLog(run.folder / "tensorboard") if run.experiment.tensorboard and first else None
        self.began = time.monotonic() - before["seconds"]

    def train(self) -> None:
        of, at = self.run.experiment, self.at
        self.shown.start(1, 1, of.name)
        try:
            state = self._begin()
            while at.looked < of.stop.max_steps and not self._enough():
                state = self._look(self._round(state))
                if self.clock.saves():
                    self._save(state)
            self._save(state)  # a sitting that is killed while it stores goes on from here
            best, skipped = self._fetch_best(state.best), self._fetch(state.skipped)
            seconds = time.monotonic() - self.began
            store_space(self.run, self.planned, at, best, self._by_place(skipped), self.layout, seconds, self.shown)
        finally:
            self.dev.close()
            self.metrics.close()
            if self.curves is not None:
                self.curves.close()

    def _begin(self) -> SpaceState:
        """The state to go on with, after a look at step 0; and what decay pulls towards."""
        template, key = self.planned.template(), jax.random.key(self.run.experiment.hyper.seed)
        seeds = np.zeros((self.slots, self.turns.rows), np.uint32)
        for place, job in enumerate(self.jobs):
            seeds[place % self.slots, place // self.slots] = job.seed
        state = self.joint.begin(template, seeds, key)
        self.anchor = jax.tree.map(jnp.copy, state.shared)
        if self.saved is not None:
            return self.states.load(self.saved, state)
        at = self.at
        at.base = self.dev.losses(None).tolist()
        at.start = at.base if self.cohort.starts_as_base else self.dev.losses(partial(self._bank, state)).tolist()
        at.best, at.looked = at.start, 0
        self._tell_faults()
        for place, (base, start) in enumerate(zip(at.base, at.start, strict=True)):
            if not math.isfinite(base + start):
                self._leave_out(place, "its dev loss is not finite before any training")
        self.turns = self.planned.turns(self.slots, at.left_out)
        nothing = np.full(len(self.jobs), math.nan)
        self._tell(math.nan, nothing, nothing, np.array(at.start))
        return state

    def _enough(self) -> bool:
        stop = self.run.experiment.stop
        return self.at.step >= stop.min_steps and self.at.since_best >= stop.patience

    def _round(self, state: SpaceState) -> SpaceState:
        """The steps until the next look."""
        at, stop, cohort = self.at, self.run.experiment.stop, self.cohort
        look = min((at.looked // stop.every + 1) * stop.every, stop.max_steps)
        cut = self.planned.plan.cut
        hyper = cohort.place(stack_hyper([self.jobs[0]] * self.slots))
        metrics: deque[Any] = deque(maxlen=IN_FLIGHT + 1)
        first, steps = at.step, look - at.step  # no steps, where a run goes on just before a look
        corpus = self.planned.plan.corpus
        settings = (first, steps, cut, self.shapes, self.faults, cohort.own)
        for batch in drawn_batches(corpus, self._assigned, *settings) if steps else ():
            rows = self.turns.at(at.step)
            if cohort.random:
                hyper = hyper._replace(seed=cohort.place(self._seeds(rows)))
            if len(metrics) > IN_FLIGHT:
                jax.block_until_ready(metrics[0].loss)
            place = cohort.place
            state, measured = self.joint.step(
                self.frozen,
                state,
                place(np.maximum(rows, 0)),
                place(rows >= 0),
                hyper,
                place(np.full(self.slots, at.step, np.int32)),
                self.anchor,
                cohort.place_own(batch.parts),
            )
            metrics.append(measured)
            self._count(rows, batch)
            at.step += 1
            if at.step % _SHOWN == 0:
                losses = self._fetch(metrics[0].loss)
                self._show(float(losses[np.isfinite(losses)].mean()) if np.isfinite(losses).any() else None, None)
            if self.clock.saves():
                self._save(state)
        return state

    def _fetch(self, tree: Any) -> Any:
        return fetch_together(tree, self.cohort, self.peers)

    def _fetch_best(self, best: Best) -> Best:
        """The best space, on the host. Of its embeddings no more than one a slot is on every device at a time."""
        rows = [self._fetch(best.embeddings[:, row]) for row in range(self.turns.rows)]
        return Best(self._fetch(best.shared), np.stack(rows, axis=1))

    def _assigned(self, step: int) -> list[Assignment | None]:
        rows = self.turns.at(step).tolist()
        return [None if row < 0 else self.jobs[self.turns.place(slot, row)].at(step) for slot, row in enumerate(rows)]

    def _seeds(self, rows: Int[np.ndarray, "S"]) -> np.ndarray:
        places = [self.turns.place(slot, max(row, 0)) for slot, row in enumerate(rows.tolist())]
        return np.array([self.jobs[min(place, len(self.jobs) - 1)].seed for place in places], np.uint32)

    def _bank(self, state: SpaceState, wave: int) -> Any:
        rows = self.cohort.place(np.full(self.slots, wave, np.int32))
        return self.joint.generate(state.shared, state.embeddings, rows)

    def _look(self, state: SpaceState) -> SpaceState:
        at = self.at
        dev = self.dev.losses(partial(self._bank, state))
        skipped, sums = self._fetch((state.skipped, state.sums))
        self._tell_faults()
        for place, count in enumerate(self._by_place(skipped)):
            if count >= self.run.experiment.stop.max_skipped:
                self._leave_out(place, f"{count} steps could not be taken: loss or gradient not finite")
            elif not math.isfinite(dev[place]):
                self._leave_out(place, f"its dev loss is not finite at step {at.step}")
        self.turns = self.planned.turns(self.slots, at.left_out)
        at.looked = at.step
        at.since_best += 1
        if at.mean(dev.tolist()) < at.mean(at.best):
            at.best, at.best_step, at.since_best = dev.tolist(), at.step, 0
            state = self.joint.keep_best(state)
        taken = np.maximum(self._by_place(sums.steps), 1e-9)
        train, norm = (np.where(taken >= 1, self._by_place(x) / taken, math.nan) for x in (sums.loss, sums.norm))
        total = float(sums.steps.sum())
        self._tell(float(sums.loss.sum()) / total if total else math.nan, train, norm, dev)
        return self.joint.forget_sums(state)

    def _tell_faults(self) -> None:
        for reason in faults_of_all(self.faults, self.peers):
            self.shown.note(f"cannot be read: {reason}")

    def _by_place(self, table: Any) -> np.ndarray:
        """[S, Q] as [N], in the order of the queue."""
        return np.asarray(table).T.reshape(-1)[: len(self.jobs)]

    def _leave_out(self, place: int, reason: str) -> None:
        """Trains a speaker no more; the others do not notice."""
        if place in self.at.left_out:
            return
        job = self.jobs[place]
        broken = self.faults.of((*job.train, *job.speaker.dev))
        self.at.left_out[place] = reason + ("" if broken is None else f"; {broken}")
        self.shown.note(f"{job.speaker.id} is left out from here on: {self.at.left_out[place]}")
        if len(self.at.left_out) == len(self.jobs):
            raise ConfigError(
                f"Nobody is left to train in '{self.run.folder}'. Of the last one: {reason}. If that came of the "
                "training, use a lower --hyper.learning-rate and --embedding-rate."
            )

    def _tell(self, train: float, by_train: np.ndarray, by_norm: np.ndarray, dev: np.ndarray) -> None:
        """Writes a line of the means and one of each speaker, and shows the means."""
        at = self.at
        where = {"seconds": round(time.monotonic() - self.began, 2), "step": at.step}
        means = {"train_loss": train, "dev_loss": at.mean(dev.tolist())}
        self.metrics.write(where | means | {"speakers": len(self.jobs) - len(at.left_out)})
        for place, job in enumerate(self.jobs):
            values = {"train_loss": by_train[place], "dev_loss": dev[place], "grad_norm": by_norm[place]}
            if place not in at.left_out:
                slot = place % self.slots
                self.metrics.write(where | {"slot": slot, "speaker": job.speaker.id, "point": 0} | values)
        for name, value in means.items():
            if self.curves is not None:
                self.curves.scalar(name, value, at.step)
        self._show(None if math.isnan(train) else train, means["dev_loss"])
        trained = "" if math.isnan(train) else f"train loss {train:.4f}, "
        self.shown.note(f"step {at.step}: {trained}mean dev loss {means['dev_loss']:.4f}")

    def _show(self, train: float | None, dev: float | None) -> None:
        at, most = self.at, self.run.experiment.stop.max_steps
        self.shown.slot(0, "space", at.step, most, train, dev, at.mean(at.best))

    def _count(self, rows: Int[np.ndarray, "S"], batch: Dispatch) -> None:
        self.at.totals += Totals(
            real_samples=batch.real_samples,
            computed_samples=batch.computed_samples,
            busy_slot_steps=int((rows >= 0).sum()),
            slot_steps=self.slots,
        )

    def _save(self, state: SpaceState) -> None:
        self.clock.saved()

        def begin() -> None:
            beside = told_by_first(
                self.peers, lambda: {"metrics": self.metrics.size(), "seconds": time.monotonic() - self.began}
            )
            beside |= {"slots": self.slots, "chunk": self.layout.chunk, "standing": self.at.to_json()}
            self.states.save(state, beside)

        save_or_tell(self.states, begin, stopped=self.clock.stops, tell=self.shown.note, run=self.run.folder)
