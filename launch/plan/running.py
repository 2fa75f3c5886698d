"""What a run would take, here or on accelerators that are not here: memory, slots, hours and storage.

What is counted (`counts.py`). The jobs are dealt to the S slots by the scheduler that trains them, so that steps,
parts of each size, looks, starts and refills are those of the run, where jobs make the steps that are said. Of more
than a thousand jobs a sample is counted and stands for all. `--speakers` has the speakers of the corpus several times.

What is measured, on this machine: operations and bytes of each compiled program and the memory that the compiler plans
for it (`costs.py`); the bytes, files and seconds of one Submodel that is written; the seconds of an utterance that
is read; and, for a run here, the seconds of each program (`measures.py`).

The model. A run takes

    T = compiling + max(devices, feeding, storing)
    devices  = steps + looks + starts + refills
    steps    = sum over sizes n of  parts(n) * part(n)
    looks    = sum over sizes n of  looks(n) * look(n)
    starts   = sum over sizes n of  starts(n) * (alone(n) + look(n) where a job does not start as the base)
    refills  = (times that jobs come into slots + looks) * refill      (a masked copy of the state each)
    feeding  = utterances read * seconds of one / machines
    storing  = Submodels written * seconds of one / writers            (a writer in each process)
    compiling = programs * seconds of one, where no cache has them

where parts(n) is how often a part of all slots is computed that is padded to n samples, and part(n) its seconds:

- here: the median of some runs of it, at the smallest and the largest n, with a line between them;
- on another device with a `--measured` step: operations of a part / R, where R is the operations of the measured step
  over its seconds. Everything that a step of that chip pays is in R;
- on another device without one: the roofline max(operations / (u * peak), bytes / bandwidth). The share u of the peak
  is an assumption (`--utilisation`), and bytes are those that the compiler of this machine counts; half and twice of
  both are told too. The peak is that of products of float32 matrices.

A device is what JAX calls one; a chip may have several, which share its peak, bandwidth and memory between them.

Submodels written: of a grid, all jobs where one point is chosen for all, and they lie beside the chosen ones until the
run ends; else those that are better than what their speaker has, of P points 1 + 1/2 + … + 1/P in a random order.

`s` slots of a device need  base + s * (8 + parts of a step) * 4 * trained parameters + batches under way + those of the
dev sets + what the compiler plans for s slots, a line through what it plans for few; nine tenths of a device's memory
may be used.

What is not in it: that compilers of other devices fuse and pad otherwise than that of this machine; the time to start
machines, to load the base, to write states (their size is told) and to copy what is chosen of a grid; and trouble.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from launch.accelerators import Accelerator, find
from launch.plan.costs import Pace
from launch.plan.counts import Copies, Counts, ScaledProgram, count, ends_by_steps, ends_like, run_like
from launch.plan.measures import Stored, measure_store, seconds_of_reading
from launch.plan.where import HERE, Question, elsewhere, here
from specialize.corpus import Size
from specialize.submodel import size as parameters_of
from specialize.train import Experiment, Plan, Run, plan
from specialize.train.estimate import Layout, Memory
from specialize.train.planning import Program


@dataclass(frozen=True)
class Seconds:
    """Of a program of a run; see the module."""

    compiling: float
    steps: float
    looks: float
    starts: float
    refills: float
    feeding: float
    storing: float

    @property
    def devices(self) -> float:
        """That devices compute."""
        return self.steps + self.looks + self.starts + self.refills

    @property
    def total(self) -> float:
        """From begin to end."""
        return self.compiling + max(self.devices, self.feeding, self.storing)

    @property
    def bound(self) -> str:
        """What takes longest: `devices`, `feeding` or `storing`."""
        return max(("devices", "feeding", "storing"), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class ProgramPlan:
    """One program of a run: the jobs of one spec."""

    spec: str
    parameters_each: int
    """Of a Submodel."""
    trained_each: int
    """Of a slot: as many, or those of a point of a space."""
    counts: Counts
    chunk: int
    memory: Memory
    """Bytes of each device."""
    fits: int | None
    """Slots of a device that its memory has room for; None where it does not say its memory."""
    seconds: Seconds
    fast: Seconds
    """With twice the share of the peak, where that was assumed; else the same."""
    slow: Seconds
    """With half of it."""
    bound: str
    """What bounds a part on a device that was modelled: `arithmetic` or `memory`; `measured` where it was measured."""
    share_of_peak: float | None
    """Of the operations of a named chip that steps are taken to reach, assumed or measured."""
    state_bytes: int
    """Of a saved state, of all devices together."""
    stored: Stored
    written: float
    """Submodels that are written, some over others."""


@dataclass(frozen=True)
class RunPlan:
    """All of a run."""

    name: str
    base: str
    base_parameters: int
    speakers: int
    corpus_speakers: int
    accelerator: str
    chip: str
    chips: int
    machines: int
    devices: int
    """What JAX shows of the chips."""
    memory_of_device: int | None
    """Bytes; None where it does not say."""
    pace: Literal["measured here", "measured on such a chip", "modelled"]
    """Where the seconds of steps come from."""
    ends: str
    """What says how many steps jobs make."""
    pooled: bool
    """Whether one point of a grid is chosen for all speakers, so that all are kept until then."""
    programs: tuple[ProgramPlan, ...]
    corpus_hours: float
    """Of audio, to train on and of dev sets, of all speakers."""
    trained_hours: float
    """Of audio that steps hear, without padding."""

    @property
    def seconds(self) -> float:
        """From begin to end; programs follow one another."""
        return sum(program.seconds.total for program in self.programs)

    @property
    def between(self) -> tuple[float, float]:
        """Shortest and longest seconds, by the doubt in what was assumed; the same where nothing was."""
        return (sum(p.fast.total for p in self.programs), sum(p.slow.total for p in self.programs))

    @property
    def jobs_per_hour(self) -> float:
        """Submodels that are trained in an hour, each point of a grid for itself."""
        return sum(program.counts.jobs for program in self.programs) / self.seconds * 3600

    @property
    def chip_hours(self) -> float:
        """Hours of all chips."""
        return self.chips * self.seconds / 3600

    @property
    def stored_bytes(self) -> int:
        """Of one Submodel for each speaker; of those of a grid, the largest."""
        return self.speakers * max(program.stored.bytes for program in self.programs)

    @property
    def stored_files(self) -> int:
        """Of the same."""
        return self.speakers * max(program.stored.files for program in self.programs)

    @property
    def peak_bytes(self) -> int:
        """Of Submodels, at the most while the run lasts."""
        candidates = sum(program.written * program.stored.bytes for program in self.programs) if self.pooled else 0
        return self.stored_bytes + round(candidates)

    @property
    def peak_files(self) -> int:
        """Of the same."""
        candidates = sum(program.written * program.stored.files for program in self.programs) if self.pooled else 0
        return self.stored_files + round(candidates)

    def to_json(self) -> dict[str, Any]:
        """JSON data, with what is derived."""
        data = dataclasses.asdict(self)
        for made, program in zip(data["programs"], self.programs, strict=True):
            for name in ("parts", "looks", "starts"):
                made["counts"][name] = {str(s.samples): n for s, n in getattr(program.counts, name).items()}
            made["counts"]["padded_share"] = program.counts.padded_share
            made["memory"]["total"] = program.memory.total
            made["seconds"]["total"] = program.seconds.total
        derived = ("seconds", "between", "jobs_per_hour", "chip_hours", "stored_bytes", "stored_files")
        derived += ("peak_bytes", "peak_files")
        return data | {name: getattr(self, name) for name in derived}


def plan_run(experiment: Experiment, question: Question, file: Path = Path("FILE.py")) -> RunPlan:
    """Plans a run. Compiles and measures here; trains nothing, and writes nothing that stays.

    Args:
        experiment: to plan.
        question: what is asked of it.
        file: that it is from, for messages.

    Raises:
        SpecializeError: the experiment cannot be run, or the question has no answer; what to change is in the message.
    """
    there = None if question.accelerator == HERE else find(question.accelerator)
    planned = plan(experiment)
    like = None if question.like is None else run_like(question.like, planned)
    speakers = planned.programs[0].jobs.speakers
    count_of = question.speakers or len(speakers)
    planned = _scaled(planned, count_of)
    answers = [_program(planned, program, question, there, like, file) for program in planned.programs]
    seconds = sum(u.samples for s in speakers for u in (*s.train, *s.dev)) / planned.corpus.sample_rate
    heard = sum(answer.counts.real_samples for answer in answers) / planned.corpus.sample_rate
    device = planned.mesh.devices.flat[0]
    pace: Any = "measured here" if there is None else "modelled"
    ends = "stop.max_steps" if question.steps is None else f"--steps {question.steps:g}"
    return RunPlan(
        name=experiment.name,
        base=str(experiment.base),
        base_parameters=parameters_of(planned.base.params),
        speakers=count_of,
        corpus_speakers=len(speakers),
        accelerator=HERE if there is None else there.name,
        chip=device.device_kind if there is None else there.chip.name,
        chips=planned.mesh.devices.size if there is None else there.chips,
        machines=1 if there is None else there.hosts,
        devices=planned.mesh.devices.size if there is None else there.devices,
        memory_of_device=planned.memory if there is None else there.chip.device_bytes,
        pace=pace if question.measured is None else "measured on such a chip",
        ends=ends if like is None else f"those of '{like.folder}'",
        pooled=experiment.select == "pooled" and bool(experiment.grid),
        programs=tuple(answers),
        corpus_hours=seconds / len(speakers) * count_of / 3600,
        trained_hours=heard / 3600,
    )


def _scaled(planned: Plan, speakers: int) -> Plan:
    """The plan with so many speakers."""
    programs: list[Program] = []
    for program in planned.programs:
        originals = program.jobs.speakers
        jobs = type(program.jobs)(
            Copies(originals, speakers), program.jobs.points, planned.experiment.stop.max_steps, program.jobs.first
        )
        programs.append(ScaledProgram(program.spec, jobs, originals))
    return dataclasses.replace(planned, programs=programs, _shapes={})


def _program(
    planned: Plan, program: Program, question: Question, there: Accelerator | None, like: Run | None, file: Path
) -> ProgramPlan:
    """Plans one program."""
    where = here(planned, program) if there is None else elsewhere(planned, program, question, there, file)
    slots, experiment = where.slots, planned.experiment
    shapes = planned.shapes(program, slots)
    sample = program.foreseen(slots)
    stop = planned.stopping
    ends = ends_by_steps(sample[0], stop, question.steps) if like is None else ends_like(sample[0], like, program)
    if like is not None or question.steps is not None:
        stop = dataclasses.replace(stop, halving=0)
    cohort = (planned.cut, experiment.cohort.refill)
    counts = count(program, sample, ends, slots, stop, cohort, shapes)
    one = planned.cohort(program, Layout(planned.mesh.devices.size, 0))
    each, trained = one.parameters_each()
    looks = round(counts.rounds / max(counts.refills, 1))
    stored = measure_store(one, program.spec, planned.base.fingerprint, sample[0][0], looks)
    resident = where.memory.resident > 0
    reading = seconds_of_reading(planned.corpus, sample[0], planned.cut, shapes[0], resident)
    machines = 1 if there is None else there.hosts
    writers = machines if question.writers is None else question.writers
    written = _written(planned, program)

    def seconds(pace: Pace) -> Seconds:
        return Seconds(
            compiling=where.compiling(counts),
            steps=_summed(counts.parts, pace.part),
            looks=_summed(counts.looks, pace.look),
            starts=_summed(counts.starts, pace.alone)
            + (0.0 if one.starts_as_base else _summed(counts.starts, pace.look)),
            refills=(counts.refills + counts.rounds) * pace.refill,
            feeding=counts.read * reading / machines,
            storing=written * stored.seconds / writers,
        )

    state = 4 * parameters_of(jax.eval_shape(one.empty_state)) // one.slots * slots
    return ProgramPlan(
        spec=str(program.spec),
        parameters_each=each,
        trained_each=trained,
        counts=counts,
        chunk=where.chunk,
        memory=where.memory,
        fits=where.fits,
        seconds=seconds(where.pace),
        fast=seconds(where.fast),
        slow=seconds(where.slow),
        bound=where.bound,
        share_of_peak=where.share,
        state_bytes=state,
        stored=stored,
        written=written,
    )


def _written(planned: Plan, program: Program) -> float:
    """Submodels of a program that are written; see the module."""
    if planned.experiment.select == "pooled":
        return len(program.jobs)
    before, points = program.jobs.first, len(program.jobs.points)
    return len(program.jobs.speakers) * sum(1 / (before + at) for at in range(1, points + 1))


def _summed(times: Mapping[Size, float], seconds: Callable[[Size], float]) -> float:
    return sum(n * seconds(size) for size, n in times.items())
