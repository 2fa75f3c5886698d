"""A run before it begins: everything checked, and each of its programs laid out."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import jax
from jax.sharding import Mesh

from specialize.base import Base, load_base
from specialize.corpus import (
    Corpus,
    Cut,
    Shapes,
    Size,
    Utterance,
    computed_samples,
    eval_rows,
    eval_shapes,
    need,
    open_corpus,
    program_cost,
    queue_order,
    train_shapes,
)
from specialize.errors import ConfigError, FingerprintMismatch
from specialize.processes import ALONE, Peers
from specialize.space import OneHot, Space, load_space
from specialize.submodel import Kind, Submodel, find_sites, load_submodel
from specialize.submodel.bank import check_slots, speaker_mesh
from specialize.train.estimate import (
    FEW_SLOTS,
    Layout,
    Workload,
    choose_layout,
    device_memory,
    even_chunk,
    fits,
    gigabytes,
    seconds_of_part,
    slots_that_fit,
)
from specialize.train.experiment import Experiment
from specialize.train.jobs import HyperParameters, Job, Jobs, parse_grid
from specialize.train.loop import CohortTrainer
from specialize.train.resident import resident_bytes
from specialize.train.schedule import Schedule, Stopping
from specialize.train.step import Cohort
from specialize.train.trainee import Plain, Point, Trainee

_FORESEEN = 1024
"""Jobs that sizes are chosen by."""
_WIDE = 128
"""Slots of a wave that are looked at, of a queue that is longer: more hardly have a longer longest utterance."""


@dataclass(frozen=True)
class Program:
    """The jobs of a run that share compiled functions: those of one spec."""

    spec: Kind
    jobs: Jobs

    @property
    def utterances(self) -> list[Utterance]:
        """All that its jobs may train on."""
        return [utterance for speaker in self.jobs.speakers for utterance in speaker.train]

    @property
    def samples(self) -> int:
        """Of these, each counted once."""
        return sum({utterance.index: utterance.samples for utterance in self.utterances}.values())

    @property
    def longest(self) -> tuple[Size, Size]:
        """What the longest utterance needs, to train on and of a dev set."""
        return need(self.utterances), need(u for speaker in self.jobs.speakers for u in speaker.dev)

    def foreseen(self, slots: int) -> tuple[Sequence[Job], int]:
        """Jobs that stand for all in the order of the queue, and how many slots a wave of them fills.

        A queue is sorted by length, so its start would not do: of a long one they are waves all along it, and of a wide
        wave some all along the wave.
        """
        jobs = self.jobs
        if len(jobs) <= _FORESEEN:
            return jobs[:], slots
        wide = min(slots, _WIDE)
        waves = -(-len(jobs) // slots)
        seen = min(waves, _FORESEEN // wide)
        starts = [wave * waves // seen * slots for wave in range(seen)]
        spans = [(start, min(start + slots, len(jobs)) - start) for start in starts]
        return [jobs[start + i * width // wide] for start, width in spans for i in range(wide)], wide


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not yet begun."""

    experiment: Experiment
    base: Base
    corpus: Corpus
    mesh: Mesh
    start: Submodel | None
    space: Space | None
    points: list[tuple[Kind, HyperParameters]]
    """Of the grid; one without a grid."""
    programs: list[Program]
    peers: Peers = ALONE
    """The processes that the mesh is of."""
    _shapes: dict[tuple[int, int], tuple[Shapes, Shapes]] = field(default_factory=dict, repr=False)
    """What `shapes` has found, by the program's first point and slots."""

    @property
    def cut(self) -> Cut:
        """How batches are cut into parts, and steps into dispatches."""
        cohort = self.experiment.cohort
        return Cut(cohort.batch, cohort.rows, cohort.dispatch)

    def cohort(self, program: Program, layout: Layout) -> Cohort:
        """The compiled functions of a program; nothing is compiled yet."""
        points = program.jobs.points
        return Cohort(
            self.base.architecture,
            self.trainee(program),
            self.mesh,
            layout.slots,
            random=any(p.dropout > 0 or p.spec_augment > 0 for p in points),
            chunk=layout.chunk,
            alone=self.base.alone().architecture,
        )

    def trainee(self, program: Program) -> Trainee:
        """What the slots of a program train."""
        if self.space is not None:
            return Point(self.space, self.experiment.fitted)
        sites = find_sites(program.spec, self.base.architecture, self.base.params)
        return Plain(program.spec, sites, self.start)

    def shapes(self, program: Program, slots: int) -> tuple[Shapes, Shapes]:
        """Sizes of the training batches and of the dev batches of a program."""
        known = (program.jobs.first, slots)
        if known not in self._shapes:
            self._shapes[known] = self._choose_shapes(program, slots)
        return self._shapes[known]

    def _choose_shapes(self, program: Program, slots: int) -> tuple[Shapes, Shapes]:
        count, stop = self.experiment.cohort.shapes, self.experiment.stop
        cost = program_cost(self.mesh.devices.flat[0].platform, self.corpus.sample_rate)
        looks = 1 + -(-stop.max_steps // stop.every)
        seen, wide = program.foreseen(slots)
        each = len(program.jobs) / len(seen)
        longest, longest_of_dev = program.longest
        of_training = train_shapes(
            [job.at(0) for job in seen],
            longest,
            wide,
            self.cut,
            stop.max_steps,
            count,
            cost,
            each,
            stop.every,
        )
        dev = [job.speaker.dev for job in seen]
        of_dev = eval_shapes(dev, longest_of_dev, wide, self.cut.batch, max(1, count // 2), cost, each * looks)
        return of_training, of_dev

    def work(self, program: Program, slots: int) -> Workload:
        """The largest part of a step, or dispatch of steps, and what is kept beside it."""
        largest = self.shapes(program, slots)[0].sizes[-1]
        cut = self.cut
        resident, dev = self.resident(program, largest.samples), self.dev_samples(program, slots)
        return Workload(cut.batch, cut.rows, largest, cut.together, resident, dev)

    def dev_samples(self, program: Program, slots: int) -> int:
        """Samples of the dev batches of a slot, padded; at most, of the jobs that sizes are chosen by."""
        jobs, _ = program.foreseen(slots)
        of_dev, batch = self.shapes(program, slots)[1], self.cut.batch
        rows = eval_rows([job.speaker.dev for job in jobs], batch)
        return batch * sum(of_dev.fit(need(u for of_slot in of_batch for u in of_slot)).samples for of_batch in rows)

    def resident(self, program: Program, longest: int) -> int:
        """Bytes of audio that each device keeps, where a batch is padded to `longest` samples at most; 0 for none."""
        kind, platform = self.experiment.cohort.resident, self.mesh.devices.flat[0].platform
        return resident_bytes(kind, program.samples, longest, platform, self.memory)

    def layout(self, program: Program, *, measure: bool = False) -> Layout:
        """Slots and chunk of a program, measured where they are `auto`.

        Args:
            program: of this plan.
            measure: say what memory it needs, also for so few slots that it is not looked at before a run.

        Raises:
            ConfigError: the slots that were asked for do not fit.
        """
        # Process 0 measures, and all do as it says: another chunk would be another program.
        return Layout(**self.peers.of_first(lambda: dataclasses.asdict(self._layout(program, measure))))

    def _layout(self, program: Program, measure: bool) -> Layout:
        config, devices = self.experiment.cohort, self.mesh.devices.size
        most = -(-len(program.jobs) // devices)
        if config.slots == "auto":
            local = most if self.memory is None else min(most, self.fitting(program, min(most, 8)))
        else:
            local = min(config.slots // devices, most)
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        if local <= FEW_SLOTS and on_cpu and not measure:  # which a machine that runs the base at all can hold
            return Layout(local * devices, 0 if config.chunk == "auto" else even_chunk(local, config.chunk))
        work = self.work(program, local * devices)
        chosen = choose_layout(self._maker(program), self.base.params, work, local, config.chunk)
        chosen = dataclasses.replace(chosen, slots=local * devices)
        if not fits(chosen.needed, self.memory):
            raise ConfigError(
                f"{chosen.slots} slots need {gigabytes(chosen.needed or 0)} of each device, which has "
                f"{gigabytes(self.memory or 0)}. {self.fitting(program, local) * devices} slots fit: give "
                "--cohort.slots that, or auto."
            )
        return chosen

    def fitting(self, program: Program, local: int) -> int:
        """Slots of a device that fit into its memory, laid out as `local` of them would be."""
        assert self.memory is not None
        work, make = self.work(program, local * self.mesh.devices.size), self._maker(program)
        chunk = choose_layout(make, self.base.params, work, local, self.experiment.cohort.chunk).chunk
        return slots_that_fit(make, self.base.params, work, self.memory, chunk)

    def foreseen(self, program: Program, slots: int) -> tuple[float, float]:
        """Samples with padding, and without, of a program whose jobs make all their steps."""
        seen, wide = program.foreseen(slots)
        queue = [job.at(0) for job in seen]
        shapes, steps = self.shapes(program, slots)[0], self.experiment.stop.max_steps
        computed, real = computed_samples(queue, shapes, wide, self.cut, steps, self.experiment.stop.every)
        each = len(program.jobs) / len(seen)
        return computed * each, real * each

    def seconds_of_sample(self, program: Program, layout: Layout) -> float:
        """Seconds of training for each sample of a slot, measured with a part of the middle size."""
        sizes = self.shapes(program, layout.slots)[0].sizes
        size = sizes[len(sizes) // 2]
        work = Workload(self.experiment.cohort.batch, self.experiment.cohort.rows, size)
        seconds = seconds_of_part(self.cohort(program, layout), self.base.params, work)
        return seconds / (layout.slots * work.rows * size.samples)

    @property
    def stopping(self) -> Stopping:
        """When jobs end. Where the embedding has the first steps, patience begins when the Submodel has its turn."""
        stop = self.experiment.stop
        if self.space is None or self.experiment.fitted != "embedding-then-unfreeze":
            return stop
        steps = max(hyper.embedding_steps for _, hyper in self.points) + stop.patience * stop.every
        return dataclasses.replace(stop, min_steps=max(stop.min_steps, min(steps, stop.max_steps)))

    @property
    def memory(self) -> int | None:
        """Bytes of each device; None where it does not say."""
        memory = device_memory(jax.local_devices()[0])
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return memory // self.peers.on_host if memory is not None and on_cpu else memory

    def trainer(self, program: Program, layout: Layout) -> CohortTrainer:
        """What trains a program."""
        cohort = self.cohort(program, layout)
        schedule = Schedule(program.jobs, layout.slots, self.stopping, self.experiment.cohort.refill)
        of_training, of_dev = self.shapes(program, layout.slots)
        lives = self.peers.of_first(lambda: self.resident(program, of_training.sizes[-1].samples)) > 0
        resident = program.utterances if lives else []
        shapes = (of_training, of_dev)
        return CohortTrainer(self.base, self.corpus, cohort, schedule, self.cut, *shapes, resident, peers=self.peers)

    def _maker(self, program: Program) -> Callable[[int, int], Cohort]:
        # What a device does with its slots depends on no other, nor on how many there are.
        one = dataclasses.replace(self, mesh=speaker_mesh(jax.local_devices()[:1]))
        return lambda local, chunk: one.cohort(program, Layout(local, chunk))


def plan(experiment: Experiment, peers: Peers = ALONE) -> Plan:
    """Checks an experiment against its base and its corpus.

    Args:
        experiment: to check.
        peers: the processes that will train it.

    Raises:
        SpecializeError: the base, the corpus, the spec or the settings cannot be used.
    """
    base = load_base(experiment.base).with_context(experiment.context)
    space = None if experiment.space is None else _load_space(experiment, base)
    if space is not None:
        experiment = dataclasses.replace(experiment, submodel=space.spec)
    points = parse_grid(experiment.grid, experiment.hyper, experiment.submodel)
    if space is not None:
        _check_phases(experiment, points)
    if experiment.stop.halving and len(points) == len({spec for spec, _ in points}):
        raise ConfigError(
            "stop.halving compares the points of a grid that share a program. Give a --grid of hyper-parameters: "
            "lr=3e-4,1e-3, or leave out --stop.halving."
        )
    if experiment.stop.halving and experiment.select == "pooled":
        raise ConfigError("stop.halving ends jobs by their own speaker's dev set and cannot go with --select pooled.")
    dispatch, most = experiment.cohort.dispatch, min(experiment.stop.every, experiment.stop.max_steps)
    if dispatch > most:
        raise ConfigError(
            f"cohort.dispatch={dispatch}, but after {most} steps comes a look at the dev set, and none passes it. "
            f"Give --cohort.dispatch {most} or less, or look more seldom (--stop.every, --stop.max-steps)."
        )
    specs = list(dict.fromkeys(spec for spec, _ in points))
    for spec in specs:
        find_sites(spec, base.architecture, base.params)
    start = None if experiment.start is None else load_start(experiment, specs, base)
    corpus = peers.in_turn(lambda: open_corpus(experiment.corpus, base))  # the first to open one builds it
    speakers = queue_order(corpus.speakers)
    if not speakers:
        raise ConfigError(f"No speaker of '{experiment.corpus.manifest}' is left to train. " + _reasons(corpus))
    mesh = speaker_mesh()
    if experiment.cohort.slots != "auto":
        check_slots(experiment.cohort.slots, mesh)
    programs, first = [], 0
    for spec, group in groupby(points, key=lambda point: point[0]):
        hypers = [hyper for _, hyper in group]
        jobs = Jobs(speakers, hypers, experiment.stop.max_steps, first)
        programs.append(Program(spec, jobs))
        first += len(hypers)
    return Plan(experiment, base, corpus, mesh, start, space, points, programs, peers)


def _load_space(experiment: Experiment, base: Base) -> Space:
    """The space that jobs are points of.

    Raises:
        ConfigError: the experiment asks for what does not go with one.
        StoreError: there is no space.
        FingerprintMismatch: it belongs to another base.
    """
    folder = Path(experiment.space or "")
    if experiment.start is not None:
        raise ConfigError(f"Jobs start in the space '{folder}', and so not at '{experiment.start}'. Give --start None.")
    if varied := [axis for axis in experiment.grid if axis.startswith("submodel.")]:
        raise ConfigError(f"--grid {varied[0]}: the Submodels of a space are all of its kind and sizes.")
    try:
        space = load_space(space_folder(folder), base=base.fingerprint)
    except FingerprintMismatch as error:
        raise FingerprintMismatch(f"{error} Give a space of this base (--space).") from None
    if isinstance(space.generator, OneHot) and experiment.fitted != "unfreeze":
        raise ConfigError(
            f"The space in '{folder}' is one-hot, whose embeddings are Submodels: there is nothing smaller to find. "
            "Give --fit unfreeze."
        )
    return space


def _check_phases(experiment: Experiment, points: Sequence[tuple[Kind, HyperParameters]]) -> None:
    """Raises ConfigError where the Submodel itself would have no turn after the embedding."""
    stop = experiment.stop
    if experiment.fitted != "embedding-then-unfreeze":
        return
    if stop.halving:
        raise ConfigError(
            "stop.halving would compare jobs before the Submodel itself has had its turn. Give --stop.halving 0, "
            "or --fit embedding or unfreeze."
        )
    steps = max(hyper.embedding_steps for _, hyper in points)
    if steps >= stop.max_steps:
        raise ConfigError(
            f"hyper.embedding_steps={steps} leaves nothing of stop.max_steps={stop.max_steps} for the Submodel. "
            "Give more steps, or --fit embedding."
        )


def space_folder(folder: Path) -> Path:
    """The space in a folder, which may be that of its run."""
    inner = folder / "space"
    return inner if inner.is_dir() else folder


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
