"""`specialize plan`: what a run would take, on a terminal and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from launch.plan.running import ProgramPlan, RunPlan, plan_run
from launch.plan.where import DOUBT, HERE, Question
from specialize.commands import KindName, experiment_of
from specialize.corpus import CorpusConfig
from specialize.errors import ConfigError
from specialize.printable import printable
from specialize.submodel import KINDS
from specialize.submodel.kinds import kind_name
from specialize.train import Experiment, SpaceTraining
from specialize.train.estimate import gigabytes
from specialize.train.run import write_json
from specialize.words import budgeted, choose_kind, spelt_out


def plan(words: list[str]) -> None:
    """Say what a run would take, here or on accelerators elsewhere: `specialize plan FILE --accelerator v5e-256`."""
    example = Experiment("NAME", Path("BASE"), CorpusConfig(Path("MANIFEST")))
    file, rest, experiment = experiment_of("plan", words, example, SpaceTraining)
    if isinstance(experiment, SpaceTraining):
        raise ConfigError(
            f"'{file}' trains a space, whose speakers share their steps and are not planned one by one. "
            f"`specialize train {file} --dry-run` says what it needs here."
        )
    rest, experiment = choose_kind(rest, experiment, "submodel", KINDS)
    rest = budgeted(spelt_out(rest, "--strict", "--corpus.strict"))
    kind: Any = kind_name(experiment.submodel)

    @dataclass(frozen=True)
    class PlanCommand:
        experiment: Annotated[Experiment, tyro.conf.arg(name="")]
        kind: Annotated[KindName, tyro.conf.arg(name="submodel.kind")]
        """What kind of Submodel. Its own flags, --submodel.…, follow from it: give it, and ask for --help again."""
        question: Annotated[Question, tyro.conf.arg(name="")] = field(default_factory=Question)
        json: Path | None = None
        """Also write all figures here."""

    command = tyro.cli(
        PlanCommand,
        args=rest,
        default=PlanCommand(experiment, kind),
        prog=f"specialize plan {file}",
        description=(
            "Say what a run would take: memory of each chip, slots, Submodels an hour, hours and storage. Compiles and "
            "measures on this machine, and trains nothing. Other flags are those of `specialize train`."
        ),
    )
    planned = plan_run(command.experiment, command.question, Path(file))
    for line in describe(planned, command.question):
        print(printable(line), flush=True)
    if command.json is not None:
        write_json(command.json, planned.to_json())


def describe(planned: RunPlan, question: Question) -> Iterator[str]:
    """Lines that say what was found, and which of it was measured.

    Args:
        planned: from `plan_run`.
        question: that it answers.
    """
    there = planned.accelerator != HERE
    where = "this machine" if not there else f"{planned.accelerator}, on {_count(planned.machines, 'machine')}"
    yield f"{planned.name}: {planned.speakers:,} speakers on {where}; nothing of it run"
    of_device = planned.memory_of_device
    has = "which do not say their memory" if of_device is None else f"{_bytes(of_device)} each"
    devices = "" if planned.devices == planned.chips else f", {planned.devices:,} devices"
    yield f"  chips          {planned.chips:,} x {planned.chip}{devices}, {has}"
    yield f"  base           {planned.base}: {planned.base_parameters:,} parameters"
    if planned.speakers != planned.corpus_speakers:
        of = planned.corpus_speakers
        yield f"  speakers       taken to have what the {of:,} of the corpus have, each in an order of its own"
    yield f"  seconds        {_pace(planned, question)}"
    for program in planned.programs:
        yield f"  {program.spec}"
        yield from _program(planned, program)
    fast, slow = planned.between
    yield "  in all"
    yield f"    Submodels    {planned.jobs_per_hour:,.0f} an hour"
    yield f"    time         {_time(planned.seconds)}{_range(fast, slow)}"
    if there:
        chip_hours = [planned.chips * seconds / 3600 for seconds in (planned.seconds, fast, slow)]
        between = f", {_number(chip_hours[1])} to {_number(chip_hours[2])}" if slow > fast else ""
        yield f"    chip-hours   {_number(chip_hours[0])}{between}"
    each = max((program.stored for program in planned.programs), key=lambda stored: stored.bytes)
    yield (
        f"    storage      {_bytes(planned.stored_bytes)} in some {planned.stored_files:,} files: a Submodel written "
        f"here has {_bytes(each.bytes)} in {each.files}"
    )
    if planned.pooled:
        yield (
            f"    at its peak  {_bytes(planned.peak_bytes)} in some {planned.peak_files:,} files, while the Submodels "
            "of all points lie beside those of the chosen one"
        )
    yield (
        f"    audio        {_number(planned.corpus_hours)} h of the speakers; steps hear "
        f"{_number(planned.trained_hours)} h, some of it again and again"
    )


def _program(planned: RunPlan, program: ProgramPlan) -> Iterator[str]:
    counts, seconds, memory = program.counts, program.seconds, program.memory
    each = f"{program.parameters_each:,} each, {program.parameters_each / planned.base_parameters:.2%} of the base"
    learned = "" if program.trained_each == program.parameters_each else f"; {program.trained_each:,} are trained"
    yield f"    parameters   {each}{learned}"
    local = counts.slots // planned.devices
    room = "" if program.fits is None else f"; {program.fits:,} fit"
    yield (
        f"    slots        {counts.slots:,}, {local:,} on each device{room}: `specialize train … --cohort.slots "
        f"{counts.slots}`"
    )
    modelled = "" if planned.accelerator == HERE else "MODELLED by this machine's compiler, "
    yield (
        f"    memory       {modelled}{_bytes(memory.total)} of each device: base {_bytes(memory.base)}, slots "
        f"{_bytes(memory.slots)}, batches {_bytes(memory.audio + memory.resident)}, dev sets {_bytes(memory.dev)}, "
        f"activations {_bytes(memory.working)}"
    )
    made = "all were counted" if counts.exact else f"{counts.sampled:,} were counted and stand for all"
    yield f"    jobs         {counts.jobs:,}, of which {made}"
    of_job = counts.job_steps / counts.jobs
    yield f"    steps        {of_job:.1f} of a job, by {planned.ends}; {_number(counts.steps)} of all slots"
    yield f"    padding      {counts.padded_share:.1%} of the audio; slots busy {counts.busy_share:.1%}"
    a_step = seconds.steps / max(counts.steps, 1)
    yield f"    a step       {_time(a_step)}{_bound(program)}"
    pays = ", ".join(
        f"{name} {getattr(seconds, name) / max(seconds.devices, 1e-9):.0%}"
        for name in ("steps", "looks", "starts", "refills")
    )
    yield (
        f"    devices      {_time(seconds.devices)}: {pays}; and {_time(seconds.compiling)} of compiling before "
        "(less where a cache has them)"
    )
    yield (
        f"    beside       {_time(seconds.feeding)} of reading on each machine, {_time(seconds.storing)} of writing "
        f"{_number(program.written)} Submodels, both as fast as here, while devices compute"
    )
    if seconds.bound != "devices":
        alone = 3600 * counts.jobs / (seconds.devices + seconds.compiling)
        yield f"    waits        for {_WAITS[seconds.bound]}; devices alone would make {_number(alone)} an hour"
    yield f"    state        {_bytes(program.state_bytes)} each time that it is saved"


_WAITS = {
    "feeding": "reading (--cohort.resident on keeps audio on the chips)",
    "storing": "writing (each process stores its own: more machines have more)",
}


def _pace(planned: RunPlan, question: Question) -> str:
    if planned.pace == "measured here":
        return "measured here, of each program at its smallest and largest size"
    shares = [program.share_of_peak for program in planned.programs if program.share_of_peak is not None]
    if planned.pace == "modelled":
        return (
            f"MODELLED, not measured: {question.assumed:.0%} of the peak is assumed (--utilisation); ranges are of "
            f"{DOUBT:g} times that and the bandwidth to 1/{DOUBT:g}. A step measured on such a chip (--measured) is "
            "better"
        )
    reached = ", ".join(f"{share:.1%}" for share in shares)
    return f"scaled from the step in '{question.measured}', which was measured and reaches {reached} of the peak"


def _bound(program: ProgramPlan) -> str:
    if program.share_of_peak is None:
        return ""
    if program.bound == "measured":
        return ", by the measured one"
    limit = "operations" if program.bound == "arithmetic" else "bytes between memory and chip"
    return f", bound by {limit} (as this machine's compiler counts them)"


def _range(fast: float, slow: float) -> str:
    return f", {_time(fast)} to {_time(slow)}" if slow > fast else ""


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{_number(seconds / 3600)} h"


def _number(value: float) -> str:
    """Three figures of a number; no more is known."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: float) -> str:
    if count >= 1e12:
        return f"{count / 1e12:.3g} TB"
    return gigabytes(count) if count >= 1e6 else f"{count / 1e3:.1f} kB"
