"""What a run does, counted without doing it: its jobs are dealt to the slots by the scheduler that trains them.

A queue of a thousand jobs is counted whole, and the counts are then those of the run itself: steps, parts of each size,
padded samples, looks, refills. Of a longer one, waves all along it are counted (`Program.foreseen`) and stand for all.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from specialize.corpus import Cut, Shapes, Size, Speaker, Utterance, eval_rows, need
from specialize.errors import ConfigError
from specialize.train import Job, Plan, Run, Schedule, Stopping
from specialize.train.planning import Program
from specialize.train.recorder import read_jobs

_ENDS = "as planned"


class Copies(Sequence[Speaker]):
    """So many speakers as a corpus might have: each of its own several times, or some of them, made when asked for.

    Copies of a speaker are neighbours, so the queue stays in its order. They train on the same utterances in orders of
    their own.

    Args:
        speakers: of the corpus, in the order of the queue.
        count: how many.
    """

    def __init__(self, speakers: Sequence[Speaker], count: int):
        self.originals, self._count = speakers, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Speaker: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Speaker]: ...
    def __getitem__(self, index: int | slice) -> Speaker | Sequence[Speaker]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        original = index * len(self.originals) // len(self)
        speaker = self.originals[original]
        number = index - -(-original * len(self) // len(self.originals))
        return dataclasses.replace(speaker, id=f"{speaker.id} {number + 1}") if number else speaker


@dataclass(frozen=True)
class ScaledProgram(Program):
    """A program whose speakers are `Copies`, so that what all of them have is known from the originals."""

    originals: Sequence[Speaker] = ()

    @property
    def utterances(self) -> list[Utterance]:
        """Those that differ."""
        return [utterance for speaker in self.originals for utterance in speaker.train]

    @property
    def samples(self) -> int:
        """As if each speaker had recorded its own."""
        return super().samples * len(self.jobs.speakers) // len(self.originals)

    @property
    def longest(self) -> tuple[Size, Size]:
        """What the longest utterance needs, to train on and of a dev set."""
        return need(self.utterances), need(u for speaker in self.originals for u in speaker.dev)


@dataclass(frozen=True)
class Counts:
    """What a run does. Of a sampled queue they are estimates, and need not be whole numbers."""

    jobs: int
    sampled: int
    """Jobs that were looked at; all of them, where the counts are exact."""
    slots: int
    """S, on all devices."""
    job_steps: float
    """Steps of jobs, summed."""
    steps: float
    """Steps that the cohort makes."""
    parts: Mapping[Size, float]
    """Parts of all slots [S, rows, …] that are computed, by what they are padded to."""
    looks: Mapping[Size, float]
    """Batches of dev sets [S, B, …] after step 0, likewise."""
    starts: Mapping[Size, float]
    """Batches of dev sets that are heard at step 0, likewise."""
    rounds: float
    """Times that the cohort stops to look at dev sets."""
    refills: float
    """Times that new jobs come into slots."""
    real_samples: float
    """Of the utterances of all steps."""
    computed_samples: float
    """With padding; slots without a job are computed too."""
    read: float
    """Utterances that are read, for steps and for dev sets."""
    busy_share: float
    """Share of the slots' time, until the queue was empty, that they had a job."""

    @property
    def exact(self) -> bool:
        """Whether the whole queue was counted."""
        return self.sampled == self.jobs

    @property
    def padded_share(self) -> float:
        """Share of the computed audio that is padding."""
        return 1.0 - self.real_samples / max(self.computed_samples, 1)


def ends_by_steps(jobs: Sequence[Job], stop: Stopping, steps: float | None) -> list[int]:
    """After how many steps each job ends.

    Args:
        jobs: in the order of the queue.
        stop: when dev sets are looked at.
        steps: of a job on average: jobs end at looks, so those before and after it take turns. None is
            `stop.max_steps` for all.

    Raises:
        ConfigError: fewer than there can be, or more than `stop.max_steps`.
    """
    if steps is None:
        return [job.max_steps for job in jobs]
    if not min(stop.every, stop.max_steps) <= steps <= stop.max_steps:
        raise ConfigError(
            f"--steps {steps:g}, but a job makes at least {min(stop.every, stop.max_steps)} (stop.every) and at most "
            f"{stop.max_steps} (stop.max_steps)."
        )
    before = max(int(steps // stop.every) * stop.every, stop.every)
    after = min(before + stop.every, stop.max_steps)
    ends, owed = [], 0.0
    for _ in jobs:
        owed += steps
        ends.append(after if after > before and owed - before > (after - before) / 2 else before)
        owed -= ends[-1]
    return ends


def run_like(folder: Path, plan: Plan) -> Run:
    """A run whose jobs end as those of another are to.

    Args:
        folder: of the run.
        plan: of the other.

    Raises:
        ConfigError: it is none, has not ended, or its jobs end by other settings or train on another base.
    """
    run = Run(folder)
    remedy = "Name a run of the same, or give --steps."
    if run.read("summary.json") is None:
        raise ConfigError(
            f"--like {folder}: that run has not ended, and jobs that take long are still to come. {remedy}"
        )
    if run.base != plan.base.fingerprint:
        raise ConfigError(f"--like {folder}: that run is of the base {run.base}, not {plan.base.fingerprint}. {remedy}")
    if run.experiment.stop != plan.experiment.stop:
        raise ConfigError(
            f"--like {folder}: jobs of that run end by {run.experiment.stop}, not by {plan.experiment.stop}. {remedy}"
        )
    return run


def ends_like(jobs: Sequence[Job], run: Run, program: Program) -> list[int]:
    """After how many steps each job ends, by those of a run, without the jobs that ended in trouble.

    A speaker and point that the run has trained ends as there; another as one that lies at the same place of the queue.

    Args:
        jobs: that end.
        run: from `run_like`.
        program: whose queue has their order.

    Raises:
        ConfigError: no job of the run has ended well.
    """
    known = {(job["speaker"], job["point"]): job["steps"] for job in read_jobs(run) if not job["quarantined"]}
    if not known:
        raise ConfigError(f"No job of '{run.folder}' has ended well. Name another run, or give --steps.")
    speakers = program.originals if isinstance(program, ScaledProgram) else program.jobs.speakers
    places = {speaker.id: at for at, speaker in enumerate(speakers)}
    # Speakers that are not of this corpus keep the order in which they ended, which is much that of their queue.
    queue = sorted(known, key=lambda job: places.get(job[0], 0))
    steps = [known[job] for job in queue]
    spread = [steps[at * len(steps) // len(jobs)] for at in range(len(jobs))]
    return [max(1, known.get((job.speaker.id, job.point), spread[at])) for at, job in enumerate(jobs)]


def count(
    program: Program,
    sample: tuple[Sequence[Job], int],
    ends: Sequence[int],
    slots: int,
    stop: Stopping,
    cohort: tuple[Cut, str],
    shapes: tuple[Shapes, Shapes],
) -> Counts:
    """Counts what a program does, on a sample of its jobs.

    Args:
        program: whose jobs they are.
        sample: from `Program.foreseen`: jobs, and how many slots a wave of them fills.
        ends: steps of each, from `ends_by_steps` or `ends_like`.
        slots: S, on all devices.
        stop: of the jobs. Patience and trouble are what `ends` says already; halving is played through.
        cohort: how batches are cut, and `refill`.
        shapes: that batches and dev sets are padded to.

    Raises:
        ConfigError: jobs end by halving, and the sample parts those that it compares.
    """
    if stop.halving and len(sample[0]) < len(program.jobs):
        raise ConfigError(
            f"What halving leaves of {len(program.jobs):,} jobs is not counted. Give --steps, the steps of a job on "
            "average, or --like RUN, a run that has them."
        )
    (jobs, wide), (cut, refill), (of_training, of_dev) = sample, cohort, shapes
    patient = dataclasses.replace(stop, patience=max(stop.max_steps, 1) + 1, min_steps=0)
    schedule = Schedule(jobs, wide, patient, "waves" if refill == "waves" else "continuous")
    orders = [job.at(0).order(cut) for job in jobs]
    parts, looks, starts = Counter[Size](), Counter[Size](), Counter[Size]()
    steps = job_steps = rounds = refills = real = read = possible = 0
    blocks: set[int] = set()
    heard: list[int | None] = []

    def dev_sizes(of: Sequence[Job | None]) -> list[Size]:
        rows = eval_rows([() if job is None else job.speaker.dev for job in of], cut.batch)
        return [of_dev.fit(need(u for of_slot in batch for u in of_slot)) for batch in rows]

    while True:
        filled, running = schedule.fill(), schedule.slots
        if not schedule.busy:
            break
        refills += bool(filled)
        # What base and start lose is computed for blocks of neighbours in the queue, each once.
        for block in {one.place // wide for slot in filled if (one := running[slot])} - blocks:
            blocks.add(block)
            of_block = jobs[block * wide : (block + 1) * wide]
            starts.update(dev_sizes(of_block))
            read += sum(len(job.speaker.dev) for job in of_block)
        schedule.look([0.0] * wide, filled)
        places = [one.place if one else None for one in running]
        if places != heard:
            heard = places
            read += sum(len(one.job.speaker.dev) for one in running if one)
        ahead = schedule.round_steps()
        busy = sum(one is not None for one in running)
        for first, together in cut.dispatches(ahead):
            rows = [
                [one.job.train[i] for i in orders[one.place].rows(one.step + first + k)] if one else []
                for one in running
                for k in range(together)
            ]
            for part in cut.parts(rows):
                parts[of_training.fit(need(u for of_slot in part for u in of_slot))] += together
                real += sum(u.samples for of_slot in part for u in of_slot)
                read += sum(map(len, part))
        steps += ahead
        job_steps += ahead * busy
        possible += ahead * (wide if schedule.position < len(jobs) else busy)
        schedule.advance(ahead)
        rounds += 1
        looks.update(dev_sizes([one.job if one else None for one in running]))
        due = schedule.due()
        # Every look is better than the one before, so that no job ends by its patience.
        schedule.look([-one.step if one else 0.0 for one in running], due)
        for slot in due:
            one = running[slot]
            if one is not None and one.step >= ends[one.place]:
                schedule.quarantine(slot, _ENDS)
        schedule.finish()

    of_jobs = len(program.jobs) / len(jobs)
    # A cohort computes all its slots, also where the last wave leaves some of them idle.
    of_waves = 1.0 if of_jobs == 1.0 else -(-len(program.jobs) // slots) / -(-len(jobs) // wide)
    computed = sum(wide * cut.rows * size.samples * n for size, n in parts.items())
    return Counts(
        jobs=len(program.jobs),
        sampled=len(jobs),
        slots=slots,
        job_steps=job_steps * of_jobs,
        steps=steps * of_waves,
        parts={size: n * of_waves for size, n in sorted(parts.items())},
        looks={size: n * of_waves for size, n in sorted(looks.items())},
        starts={size: n * of_waves for size, n in sorted(starts.items())},
        rounds=rounds * of_waves,
        refills=refills * of_waves,
        real_samples=real * of_jobs,
        computed_samples=computed * of_waves * slots / wide,
        read=read * of_jobs,
        busy_share=job_steps / max(possible, 1),
    )
