"""One run from end to end: its corpus, its programs one after another, its store and its summary."""

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jax.sharding import Mesh

from specialize.base import Base, load_base
from specialize.corpus import Corpus, Cut, Shapes, eval_shapes, need, open_corpus, queue_order, train_shapes
from specialize.errors import ConfigError, FingerprintMismatch, StoreError
from specialize.submodel import Kind, Submodel, find_sites, load_submodel, size
from specialize.submodel.bank import check_slots, speaker_mesh
from specialize.train.experiment import Experiment, to_json
from specialize.train.jobs import HyperParameters, Jobs, parse_grid
from specialize.train.loop import CohortTrainer
from specialize.train.progress import Progress
from specialize.train.recorder import Recorder
from specialize.train.run import Run, write_json
from specialize.train.schedule import Schedule
from specialize.train.state import StateFolder
from specialize.train.step import Cohort

_COMPILING_SECONDS = 120.0
"""What a size costs beside its padding, in seconds of audio. Two CPU cores train on 240 s in the time of a compilation
(Whisper tiny.en), which is done once for several runs. An accelerator trains on more: fewer `cohort.shapes` may be
faster there."""
_FORESEEN = 1024
"""Jobs that sizes are chosen by, from the start of the queue."""


@dataclass(frozen=True)
class Program:
    """The jobs of a run that share compiled functions: those of one spec."""

    spec: Kind
    jobs: Jobs
    slots: int


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not yet begun."""

    experiment: Experiment
    base: Base
    corpus: Corpus
    mesh: Mesh
    start: Submodel | None
    points: list[tuple[Kind, HyperParameters]]
    """Of the grid; one without a grid."""
    programs: list[Program]

    @property
    def cut(self) -> Cut:
        """How batches are cut into parts."""
        return Cut(self.experiment.cohort.batch, self.experiment.cohort.rows)

    def cohort(self, program: Program) -> Cohort:
        """The compiled functions of a program; nothing is compiled yet."""
        points = program.jobs.points
        return Cohort(
            self.base.architecture,
            program.spec,
            find_sites(program.spec, self.base.architecture, self.base.params),
            self.mesh,
            program.slots,
            start=self.start,
            random=any(p.dropout > 0 or p.spec_augment > 0 for p in points),
            chunk=self.experiment.cohort.chunk,
        )

    def shapes(self, program: Program) -> tuple[Shapes, Shapes]:
        """Sizes of the training batches and of the dev batches of a program."""
        count, stop, slots = self.experiment.cohort.shapes, self.experiment.stop, program.slots
        compiling = _COMPILING_SECONDS * self.corpus.sample_rate
        looks = 1 + -(-stop.max_steps // stop.every)
        first = program.jobs[:_FORESEEN]
        each = len(program.jobs) / len(first)
        longest = need(u for speaker in program.jobs.speakers for u in speaker.train)
        of_training = train_shapes(
            [job.at(0) for job in first], longest, slots, self.cut, stop.max_steps, count, compiling, each
        )
        longest = need(u for speaker in program.jobs.speakers for u in speaker.dev)
        dev = [job.speaker.dev for job in first]
        of_dev = eval_shapes(dev, longest, slots, self.cut.batch, max(1, count // 2), compiling, each * looks)
        return of_training, of_dev

    def trainer(self, program: Program) -> CohortTrainer:
        """What trains a program."""
        cohort = self.cohort(program)
        schedule = Schedule(program.jobs, program.slots, self.experiment.stop, self.experiment.cohort.refill)
        return CohortTrainer(self.base, self.corpus, cohort, schedule, self.cut, *self.shapes(program))


def plan(experiment: Experiment) -> Plan:
    """Checks an experiment against its base and its corpus.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used.
    """
    base = load_base(experiment.base).with_context(experiment.context)
    points = parse_grid(experiment.grid, experiment.hyper, experiment.submodel)
    if experiment.stop.halving and len(points) < 2:
        raise ConfigError("stop.halving compares the points of a grid. Give a --grid, or leave out --stop.halving.")
    if experiment.stop.halving and experiment.select == "pooled":
        raise ConfigError("stop.halving ends jobs by their own speaker's dev set and cannot go with --select pooled.")
    specs = list(dict.fromkeys(spec for spec, _ in points))
    for spec in specs:
        find_sites(spec, base.architecture, base.params)
    start = None if experiment.start is None else load_start(experiment, specs, base)
    corpus = open_corpus(experiment.corpus, base)
    speakers = queue_order(corpus.speakers)
    if not speakers:
        raise ConfigError(f"No speaker of '{experiment.corpus.manifest}' is left to train. " + _reasons(corpus))
    mesh = speaker_mesh()
    programs, first = [], 0
    for spec, group in groupby(points, key=lambda point: point[0]):
        hypers = [hyper for _, hyper in group]
        jobs = Jobs(speakers, hypers, experiment.stop.max_steps, first)
        programs.append(Program(spec, jobs, _slots(experiment, len(jobs), mesh)))
        first += len(hypers)
    return Plan(experiment, base, corpus, mesh, start, points, programs)


def train(experiment: Experiment, *, overwrite: bool = False, progress: Progress | None = None) -> Run:
    """Trains a Submodel for every speaker of the experiment's corpus and stores each on its own.

    A run of this name that has not ended goes on from its last saved state, to the same bits as if it had not stopped.

    Args:
        experiment: what to train.
        overwrite: replace a run of the same name.
        progress: where to show how it goes; None shows it on stderr.

    Returns:
        The finished run.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used; before any training.
        Preempted: SIGTERM came; the state is saved.
        StoreError: Submodels could not be written; all others are.
    """
    planned = plan(experiment)
    corpus = planned.corpus
    run = Run.begin(experiment, base=planned.base.fingerprint, corpus=corpus.built.folder.name, overwrite=overwrite)
    write_json(run.folder / "problems.json", [vars(problem) for problem in corpus.problems])
    states = StateFolder(run.folder / "state")
    saved = states.latest()
    resume: dict[str, Any] = {} if saved is None else saved.progress
    with progress or Progress() as shown, _stop_signal() as stopped:
        for problem in corpus.problems:
            shown.note(f"left out: {problem}")
        if len(planned.programs) > 1:
            shown.note(f"the grid makes {len(planned.programs)} programs, which run one after another")
        recorder = Recorder(run, planned.base, shown, states, stopped, resume.get("run"))
        try:
            if saved is not None:
                shown.note(f"goes on with '{run.folder}' from its last state: {recorder.ended} jobs have ended")
            first = resume["run"]["program"] if saved is not None else 0
            before = sum(len(program.jobs) for program in planned.programs[:first])
            for number, program in list(enumerate(planned.programs))[first:]:
                recorder.program, recorder.spec = number, program.spec
                title = experiment.name if len(planned.programs) == 1 else f"{experiment.name}, {program.spec}"
                ended = recorder.ended - before if number == first else 0
                shown.start(len(program.jobs), program.slots, title, ended)
                trainer = planned.trainer(program)
                from_state = None
                if saved is not None and number == first:
                    state = states.load(saved, trainer.cohort.empty_state())
                    from_state = (state, resume["trainer"])
                trainer.run(recorder, from_state)
                recorder.totals = recorder.totals + trainer.totals
            recorder.settle()
            chosen = recorder.choose() if not recorder.failures else {}
        finally:
            recorder.close()
            states.close()
    if recorder.failures:
        speaker, reason = next(iter(recorder.failures.items()))
        raise StoreError(
            f"{len(recorder.failures)} of {recorder.ended} Submodels could not be stored; the others are in "
            f"'{run.folder}'. The first is that of '{speaker}': {reason}. When that is mended, the same command makes "
            "what is missing."
        )
    summary = {
        "submodels": sum(chosen.values()),
        "jobs": recorder.ended,
        "parameters_each": size(planned.cohort(planned.programs[0]).anchor()),
        "base_parameters": size(planned.base.params),
        "slots": planned.programs[0].slots,
        "devices": [f"{d.platform}:{d.device_kind}" for d in planned.mesh.devices.flat],
        "seconds": round(recorder.seconds, 1),
        "submodels_per_hour": round(recorder.ended / recorder.seconds * 3600, 1),
        "padded_share": round(recorder.totals.padded_share, 4),
        "slots_busy": round(recorder.totals.busy_share, 4),
        "quarantined": recorder.quarantined,
        "grid": _grid(planned, recorder, chosen),
    }
    write_json(run.folder / "summary.json", summary)
    shutil.rmtree(states.folder, ignore_errors=True)
    return run


def _slots(experiment: Experiment, jobs: int, mesh: Mesh) -> int:
    """S: what was asked for, or fewer where there are fewer jobs."""
    check_slots(experiment.cohort.slots, mesh)
    devices = mesh.devices.size
    return min(experiment.cohort.slots, -(-jobs // devices) * devices)


def _grid(planned: Plan, recorder: Recorder, chosen: dict[int, int]) -> list[dict[str, Any]]:
    """What came of each point of a grid; empty without one."""
    if not planned.experiment.grid:
        return []
    means = recorder.means()
    rows = []
    for point, (spec, hyper) in enumerate(planned.points):
        loss, speakers = means.get(point, (None, 0))
        row = {"point": point, "spec": str(spec), "hyper": to_json(hyper)}
        rows.append(row | {"mean_dev_loss": loss, "speakers": speakers, "chosen_for": chosen.get(point, 0)})
    return rows


def load_start(experiment: Experiment, specs: Sequence[Kind], base: Base) -> Submodel:
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
    for spec in specs:
        if stored.spec != spec:
            raise ConfigError(
                f"The start '{experiment.start}' is {stored.spec}, but the experiment trains {spec}. "
                "Give the experiment the same spec, or start from nothing (`--start None`)."
            )
    return stored.submodel


def _reasons(corpus: Corpus) -> str:
    shown = [str(problem) for problem in corpus.problems[:5]]
    return " ".join(shown) if shown else "The corpus has no speaker with the role, names and limit that were asked for."


@contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a question that the run asks itself after every step."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
