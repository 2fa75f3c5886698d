"""What a run keeps of its jobs: metrics, the Submodels that are chosen, and states to go on from."""

import contextlib
import dataclasses
import json
import math
import shutil
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from specialize.base import Base
from specialize.errors import Preempted, SpecializeError, StoreError
from specialize.processes import ALONE, Peers
from specialize.submodel import Kind, StoredSubmodel, SubmodelStore
from specialize.train.loop import Finished
from specialize.train.metrics import JsonLines, MetricsLog, TensorBoardLog, Unwritten, WandbLog
from specialize.train.progress import Progress
from specialize.train.run import CANDIDATES, Run, RunFolder
from specialize.train.schedule import Running
from specialize.train.state import StateFolder, save_or_tell
from specialize.train.step import CohortState
from specialize.train.together import SaveClock, told_by_first
from specialize.train.totals import Totals
from specialize.train.writer import WriterKilled, store_writer, write_submodel, written

JOBS = "jobs.jsonl"


class Recorder:
    """Listens to the trainers of a run. The store is written in the background.

    A state is saved only when every Submodel that was finished before it is in the store, so that a run that goes on
    from it lacks none. Submodels that cannot be written are tried again at each save and at the end.

    Args:
        run: to record.
        base: of its Submodels.
        progress: shows what happens.
        states: where states are saved.
        stopped: whether the run was asked to stop: it is then saved, and Preempted is raised.
        resume: what `save` wrote beside the trainer's progress, to go on from; None begins.
        peers: the processes of the run. Each stores the Submodels of its share of speakers; process 0 writes everything
            else.
    """

    def __init__(
        self,
        run: Run,
        base: Base,
        progress: Progress,
        states: StateFolder,
        stopped: Callable[[], bool],
        resume: dict[str, Any] | None = None,
        peers: Peers = ALONE,
    ):
        self.run, self.base, self.progress, self.states = run, base, progress, states
        self.program = 0
        """Which program of a grid is trained."""
        self.layout: dict[str, int] = {}
        """Its slots and chunk, which a run that goes on keeps."""
        self.spec: Kind = run.experiment.submodel
        """What it trains."""
        self._peers = peers
        self._clock = SaveClock(peers, stopped, run.experiment.save_seconds)
        resume = resume or {}
        self._metrics: MetricsLog | Unwritten = Unwritten()
        self._jobs: JsonLines | Unwritten = Unwritten()
        if peers.first:
            run.store.clear_unfinished()
            self._metrics = MetricsLog(run.folder / "metrics.jsonl", resume.get("metrics", 0))
            self._jobs = JsonLines(run.folder / JOBS, resume.get("jobs", 0))
        self.totals = Totals(**resume.get("totals", {}))
        """Of the programs that have ended."""
        self._before = float(resume.get("seconds", 0.0))
        self._choice = Choice(run.experiment.select == "pooled" and bool(run.experiment.grid))
        self.quarantined: dict[str, str] = {}
        """{job: why}."""
        self.ended = 0
        """Jobs that have ended."""
        for job in read_jobs(run):
            self._note(job["speaker"], job["point"], job["dev_loss"], job["quarantined"])
        self.failures: dict[str, str] = {}
        """Why a finished Submodel is not in the store."""
        self._curves: list[TensorBoardLog | WandbLog] = []
        experiment = run.experiment
        if experiment.tensorboard and peers.first:
            self._curves.append(TensorBoardLog(run.folder / "tensorboard"))
        if experiment.wandb is not None and peers.first:
            self._curves.append(WandbLog(experiment.wandb, experiment.name, run.config, run.folder))
        for folder in (run.folder / CANDIDATES).glob("*") if peers.first else ():
            SubmodelStore(folder).clear_unfinished()
        self._unwritten: set[int] = set()
        self._pool = store_writer(peers)
        self._saves: dict[tuple[str, int], tuple[StoredSubmodel, Future[None]]] = {}
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began, in all its sittings."""
        return self._before + time.monotonic() - self._began

    def looked(self, slot: int, running: Running, train_loss: float, grad_norm: float) -> None:
        """Writes a line of metrics, and shows the slot."""
        speaker, point = running.job.speaker.id, running.job.point
        step, dev_loss = running.looks[-1]
        values = {"train_loss": train_loss, "dev_loss": dev_loss, "grad_norm": grad_norm}
        where = {"seconds": round(self.seconds, 2), "slot": slot, "speaker": speaker, "point": point, "step": step}
        self._metrics.write(where | values)
        self._tell_unwritten(self._metrics)
        name = job_name(speaker, point, bool(self.run.experiment.grid))
        for curves in self._curves:
            for key, value in values.items():
                curves.scalar(f"{key}/{name}", value, step)
        train = None if math.isnan(train_loss) else train_loss
        self.progress.slot(slot, name, step, running.job.max_steps, train, dev_loss, running.best_loss)

    def finished(self, slot: int, finished: Finished) -> None:
        """Chooses between the jobs of a speaker, stores, and shows."""
        speaker, point = finished.job.speaker.id, finished.job.point
        quarantined = (finished.ended or "no reason") if finished.quarantined else None
        kept = self._note(speaker, point, finished.dev_loss, quarantined)
        self._jobs.write(
            {"speaker": speaker, "point": point, "quarantined": quarantined, "spec": str(self.spec)} | finished.facts()
        )
        self._tell_unwritten(self._jobs)
        name = job_name(speaker, point, bool(self.run.experiment.grid))
        if quarantined:
            self.progress.done(name, f"quarantined: {quarantined}", failed=True)
        else:
            change = f"dev loss {finished.base_dev_loss:.3f} -> {finished.dev_loss:.3f} at step {finished.best_step}"
            served = "" if finished.helps else "; the base is no worse, and serves"
            self.progress.done(name, change + served + (f"; {finished.ended}" if finished.ended else ""))
        # One process has all jobs of a speaker, so that they are written in the order of their ends.
        if kept and zlib.crc32(speaker.encode("utf-8", "surrogatepass")) % self._peers.count == self._peers.index:
            stored = StoredSubmodel(finished.submodel, self.spec, speaker, self.base.fingerprint, finished.facts())
            self._store(stored, point)
        self.progress.slot(slot, None, 0, 0, None, None, None)

    def fault(self, reason: str) -> None:
        """Shows it."""
        self.progress.note(f"cannot be read: {reason}")

    def saves(self) -> bool:
        """Whether it is time, by the clock of process 0, or the run is to stop, because any process was asked to."""
        return self._clock.saves()

    def save(self, state: CohortState, progress: dict[str, Any]) -> None:
        """Saves a state; what fails is told, and the run goes on.

        Raises:
            Preempted: the run was asked to stop.
        """
        self._clock.saved()

        def begin() -> None:
            self.settle()
            if self.failures:
                raise StoreError(f"not while {len(self.failures)} Submodels cannot be written")
            logs = told_by_first(self._peers, lambda: {"metrics": self._metrics.size(), "jobs": self._jobs.size()})
            beside = {
                "program": self.program,
                **logs,
                "seconds": self.seconds,
                **self.layout,
                "totals": dataclasses.asdict(self.totals),
            }
            self.states.save(state, {"run": beside, "trainer": progress})

        save_or_tell(self.states, begin, stopped=self._clock.stops, tell=self.progress.note, run=self.run.folder)

    def check_stop(self) -> None:
        """Where there is nothing new to save.

        Raises:
            Preempted: the run was asked to stop.
        """
        if self._clock.stops_now():
            raise Preempted(f"The run '{self.run.folder}' was asked to stop. The same command goes on with it.")

    def settle(self) -> None:
        """Waits for the store, that of all processes, trying once more what it could not write before."""
        for key, (stored, future) in list(self._saves.items()):
            if future.done() and future.exception() is not None:
                self._saves[key] = (stored, self._pool.submit(write_submodel, self._store_of(key), stored))
        self.failures = {}
        for key, (stored, future) in list(self._saves.items()):
            try:
                written(future)
                del self._saves[key]
            except WriterKilled:
                raise
            except SpecializeError as error:
                self.failures[stored.speaker] = str(error)
        everyone = self._peers.exchange(self.failures, patient=True)
        self.failures = {name: reason for of in everyone for name, reason in of.items()}
        for reason in self.failures.values():
            self.progress.note(f"not stored: {reason}")

    def means(self) -> dict[int, tuple[float, int]]:
        """{point of the grid: (mean dev loss, number of speakers)}."""
        return self._choice.means()

    def choose(self) -> dict[int, int]:
        """Leaves in the store what was chosen of a grid; returns {point: number of Submodels chosen of it}.

        What was not chosen stays until `RunFolder.clear`: a run that is killed here chooses again.

        Raises:
            StoreError: the file system refused.
        """
        chosen = self._choice.chosen()
        candidates = self.run.folder / CANDIDATES
        if self._peers.first and candidates.is_dir():
            (point,) = set(chosen.values()) or {0}
            try:
                if (candidates / str(point)).is_dir():
                    shutil.rmtree(self.run.store.folder, ignore_errors=True)
                    shutil.copytree(candidates / str(point), self.run.store.folder)
            except OSError as error:
                raise StoreError(f"The chosen Submodels in '{candidates}' could not be copied: {error}") from error
            if missing := [speaker for speaker in chosen if speaker not in self.run.store]:
                raise StoreError(
                    f"{len(missing)} of the chosen Submodels in '{candidates}' were not there to be copied, that of "
                    f"'{missing[0]}' first: a shared file system may show late what others write. The same command "
                    "copies them again."
                )
        counts: dict[int, int] = {}
        for point in chosen.values():
            counts[point] = counts.get(point, 0) + 1
        return counts

    def close(self) -> None:
        """Closes files.

        Raises:
            StoreError: the last lines of one could not be written.
        """
        self._pool.shutdown(wait=True)
        with contextlib.ExitStack() as closing:
            for file in (self._metrics, self._jobs, *self._curves):
                closing.callback(file.close)

    def _tell_unwritten(self, log: JsonLines | Unwritten) -> None:
        """Says once that a log cannot be written, until it can be again."""
        if log.failure is None:
            self._unwritten.discard(id(log))
        elif id(log) not in self._unwritten:
            self._unwritten.add(id(log))
            self.progress.note(f"not logged: {log.failure}. The lines wait until there is space.")

    def _note(self, speaker: str, point: int, dev_loss: float | None, quarantined: str | None) -> bool:
        self.ended += 1
        if quarantined is not None:
            self.quarantined[job_name(speaker, point, bool(self.run.experiment.grid))] = quarantined
            dev_loss = None
        return self._choice.offer(speaker, point, dev_loss)

    def _store(self, stored: StoredSubmodel, point: int) -> None:
        self._saves = {
            key: save for key, save in self._saves.items() if not save[1].done() or save[1].exception() is not None
        }
        key = (stored.speaker, point if self._choice.pooled else 0)
        self._saves[key] = (stored, self._pool.submit(write_submodel, self._store_of(key), stored))

    def _store_of(self, key: tuple[str, int]) -> str:
        """Folder of the store where the Submodel of a (speaker, point) is kept."""
        return str(self.run.folder / CANDIDATES / str(key[1]) if self._choice.pooled else self.run.store.folder)


class Choice:
    """Which of its jobs a speaker's Submodel comes from.

    Args:
        pooled: one point of the grid for all speakers, that with the least mean dev loss, and not one for each.
    """

    def __init__(self, pooled: bool):
        self.pooled = pooled
        self._best: dict[str, tuple[float, int]] = {}
        self._losses: dict[int, dict[str, float]] = {}

    def offer(self, speaker: str, point: int, dev_loss: float | None) -> bool:
        """Takes the result of a job, None for one in quarantine; returns whether it is to be kept for now."""
        if dev_loss is None:
            return False
        self._losses.setdefault(point, {})[speaker] = dev_loss
        best = self._best.get(speaker)
        if best is None or (dev_loss, point) < best:
            self._best[speaker] = (dev_loss, point)
            return True
        return self.pooled

    def chosen(self) -> dict[str, int]:
        """{speaker: point}."""
        if not self.pooled:
            return {speaker: point for speaker, (_, point) in self._best.items()}
        if not self._losses:
            return {}
        most = max(map(len, self._losses.values()))
        # A point that lost speakers to quarantine cannot win by what it did not finish.
        means = {p: sum(of.values()) / len(of) for p, of in self._losses.items() if len(of) == most}
        point = min(means, key=lambda p: (means[p], p))
        return dict.fromkeys(self._losses[point], point)

    def means(self) -> dict[int, tuple[float, int]]:
        """{point: (mean dev loss, number of speakers)}."""
        return {point: (sum(of.values()) / len(of), len(of)) for point, of in sorted(self._losses.items())}


def job_name(speaker: str, point: int, grid: bool) -> str:
    """How a job is called where people read it."""
    return f"{speaker} #{point}" if grid else speaker


def read_jobs(run: RunFolder) -> list[dict[str, Any]]:
    """What came of each job that has ended, in the order of their ends."""
    path = run.folder / JOBS
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="surrogatepass")
    # Not splitlines: a speaker's id may hold other characters that it takes for the end of a line.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].split("\n") if line]
