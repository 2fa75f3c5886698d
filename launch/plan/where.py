"""How a run is laid out on the devices that it is planned for, and how fast these are."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launch.accelerators import Accelerator
from launch.plan.costs import Costs, Pace, Roofline, count_costs, step_cost
from launch.plan.counts import Counts
from launch.plan.measures import measure
from specialize.corpus import Size
from specialize.errors import ConfigError
from specialize.train import Plan
from specialize.train.estimate import USABLE, Layout, Memory, Workload, gigabytes, lowered, needed_memory
from specialize.train.planning import Program
from specialize.train.resident import resident_bytes

HERE = "here"
"""The devices of this machine, among the names of accelerators."""
_FEW = 8
_ASSUMED = 0.3
DOUBT = 2.0
"""An assumed share of the peak may be this much too high or too low, and so may the bytes as they were counted."""
_MEASURE = "python experiments/benchmarks/step.py --experiment {} --json {}"


@dataclass(frozen=True)
class Question:
    """What is asked of an experiment, beside the experiment."""

    speakers: int | None = None
    """How many speakers, `1_000_000`, with the utterances of those of the corpus; None is those of the corpus."""
    accelerator: str = HERE
    """What it would run on: `here`, or a name such as v5e-256, v5p-4x4x4 or h100-8."""
    slots_per_chip: int | Literal["auto"] = "auto"
    """With a named accelerator, slots of each chip; `auto` is as many as fit and jobs need. Here, --cohort.slots
    says."""
    utilisation: float | None = None
    """With a named accelerator and no measured step, the share of its peak operations that training is taken to reach:
    an assumption, and None is 0.3. Half and twice of it are told too."""
    measured: Path | None = None
    """A step that was measured on a chip of that kind, `python experiments/benchmarks/step.py --experiment FILE.py
    --json step.json`; it takes the place of the assumption."""
    steps: float | None = None
    """Steps of a job on average; None is stop.max_steps, and so the longest that a run can take."""
    like: Path | None = None
    """Folder of a run that has ended, of the same base and `stop`: jobs end after as many steps as there."""
    writers: int | None = None
    """Processes that store Submodels, each those of its own slots; None is one for each machine."""

    def __post_init__(self):
        for name in ("speakers", "slots_per_chip", "writers"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}, but it must be at least 1.")
        if self.utilisation is not None and (self.accelerator == HERE or self.measured is not None):
            raise ConfigError(
                f"--utilisation {self.utilisation:g} is an assumption about a named --accelerator without a --measured "
                "step, and nothing here needs it. Leave it out."
            )
        if not 0.0 < self.assumed <= 1.0:
            raise ConfigError(f"--utilisation {self.assumed:g}, but it is a share of the peak: above 0, at most 1.")
        if self.steps is not None and self.like is not None:
            raise ConfigError("--steps and --like both say when jobs end. Give one of them.")
        if self.accelerator == HERE and self.measured is not None:
            raise ConfigError("--measured is of another chip; what runs here is measured now. Name the --accelerator.")
        if self.accelerator == HERE and self.slots_per_chip != "auto":
            raise ConfigError("--slots-per-chip is of a named accelerator. Here, --cohort.slots says how many.")

    @property
    def assumed(self) -> float:
        """Share of the peak, where nothing was measured."""
        return _ASSUMED if self.utilisation is None else self.utilisation


@dataclass(frozen=True)
class Where:
    """How a program is laid out on devices, and how fast they are."""

    slots: int
    chunk: int
    memory: Memory
    fits: int | None
    pace: Pace
    fast: Pace
    slow: Pace
    bound: str
    share: float | None
    compiling: Callable[[Counts], float]


def here(planned: Plan, program: Program) -> Where:
    """On the devices of this machine."""
    layout = planned.layout(program, measure=True)
    devices = planned.mesh.devices.size
    shapes, work = planned.shapes(program, layout.slots), planned.work(program, layout.slots)
    cohort, params = planned.cohort(program, layout), planned.base.params
    memory = needed_memory(cohort, params, work, lowered(cohort, params, work).compile())
    measured = measure(planned, program, layout, shapes)
    fits = None if planned.memory is None else planned.fitting(program, layout.slots // devices)

    def compiling(counts: Counts) -> float:
        taken = measured.compiling
        return (
            len(counts.parts) * taken["part"] + len(counts.looks) * taken["look"] + len(counts.starts) * taken["alone"]
        )

    pace = (measured, measured, measured)
    return Where(layout.slots, layout.chunk, memory, fits, *pace, "measured", None, compiling)


def elsewhere(planned: Plan, program: Program, question: Question, there: Accelerator, file: Path) -> Where:
    """On accelerators that are named.

    Args:
        planned: the run, here.
        program: of it.
        question: what is asked.
        there: what it would run on. Everything is counted for each device, of which a chip may have several.
        file: of the experiment, for what to type.

    Raises:
        ConfigError: it cannot run there as asked.
    """
    chip, config, cut = there.chip, planned.experiment.cohort, planned.cut
    measured, assumed = question.measured, question.measured is None
    share = question.assumed if measured is None else share_of_peak(measured, planned, program, there, file)
    bandwidth = chip.device_bandwidth if assumed else math.inf
    most = -(-len(program.jobs) // there.devices)
    few = min(most, _FEW) * there.devices
    shapes = planned.shapes(program, few)
    longest = shapes[0].sizes[-1]
    resident = resident_bytes(config.resident, program.samples, longest.samples, there.kind, chip.device_bytes)
    work = Workload(cut.batch, cut.rows, longest, cut.together, resident, planned.dev_samples(program, few))
    costs = count_costs(planned, program, shapes, work, there.kind)
    fits = costs.slots_in(USABLE * chip.device_bytes)
    if fits < 1:
        raise ConfigError(
            f"Not even one slot fits: a device of a {chip.name} needs {gigabytes(costs.memory_of(1).total)} for it and "
            f"has {gigabytes(chip.device_bytes)}. Use a smaller base, --cohort.rows 1, or shorter utterances."
        )
    local = _local(question.slots_per_chip, most, fits, costs, there)
    parts = cut.batch // cut.rows

    def pace(doubt: float) -> Roofline:
        reached = min(1.0, share * doubt) * chip.training_flops
        return Roofline(costs, local, parts, reached, bandwidth * doubt)

    doubt = DOUBT if assumed else 1.0
    cost = pace(1.0).cost_of_part(longest)
    by_arithmetic = cost.flops / (share * chip.training_flops) >= cost.bytes / bandwidth
    bound = ("arithmetic" if by_arithmetic else "memory") if assumed else "measured"

    def compiling(counts: Counts) -> float:
        return costs.compiling * (len(counts.parts) + len(counts.looks) + len(counts.starts))

    return Where(
        slots=local * there.devices,
        chunk=costs.memory[0] if costs.memory[0] > 1 else 0,
        memory=costs.memory_of(local),
        fits=fits,
        pace=pace(1.0),
        fast=pace(doubt),
        slow=pace(1.0 / doubt),
        bound=bound,
        share=share,
        compiling=compiling,
    )


def _local(asked: int | Literal["auto"], most: int, fits: int, costs: Costs, there: Accelerator) -> int:
    """Slots of a device.

    Raises:
        ConfigError: those that were asked for do not fit, or leave the devices of a chip with unlike numbers.
    """
    chip = there.chip
    if asked == "auto":
        # As many waves as there must be, and no wider than they need.
        waves = -(-most // min(most, fits))
        return -(-most // waves)
    if asked % chip.devices:
        raise ConfigError(
            f"--slots-per-chip {asked}, but a {chip.name} has {chip.devices} devices with as many slots each. Give a "
            f"multiple of {chip.devices}, or auto."
        )
    local = asked // chip.devices
    if local > fits:
        needed = gigabytes(costs.memory_of(local).total * chip.devices)
        raise ConfigError(
            f"{asked} slots need {needed} of a {chip.name}, which has {gigabytes(chip.hbm_bytes)}. "
            f"{fits * chip.devices} fit: give --slots-per-chip that, or auto."
        )
    return min(local, most)


def share_of_peak(path: Path, planned: Plan, program: Program, there: Accelerator, file: Path) -> float:
    """Operations a second of a measured step, over the peak of its devices.

    Args:
        path: of the step.
        planned: the run that it is to speak for.
        program: of it.
        there: what was measured.
        file: of the experiment, for what to type.

    Raises:
        ConfigError: the file is none of a step, or that step is of another device, base, spec or context.
    """
    remedy = f"Measure a step of the same on such a chip, {there.chip.name}: {_MEASURE.format(file, path)}"
    row, about = _read_step(path, remedy)
    theirs, ours = (about["platform"], about["device_kind"]), [(there.kind, kind) for kind in there.chip.kinds]
    if theirs not in ours:
        of_this = " or ".join(f"{platform} '{kind}'" for platform, kind in ours)
        raise ConfigError(
            f"'{path}' was measured on {theirs[0]} '{theirs[1]}', but {there.name} is of {of_this}. Name the "
            f"--accelerator that was measured, or measure on such a chip: {_MEASURE.format(file, path)}"
        )
    experiment = planned.experiment
    random = planned.cohort(program, Layout(planned.mesh.devices.size, 0)).random
    for name, theirs, ours in (
        ("base", about["fingerprint"], planned.base.fingerprint),
        ("spec", about["spec"], str(program.spec)),
        ("context", about["context"], experiment.context),
        ("dropout or SpecAugment", about["random"], random),
    ):
        if theirs != ours:
            raise ConfigError(f"'{path}' measured the {name} {theirs}, but the experiment has {ours}. {remedy}")
    rate = planned.base.architecture.sample_rate
    size = Size(int(about["seconds"] * rate), int(about["labels"]))
    slots = max(1, round(row["slots"] / about["devices"]))
    cost = step_cost(planned, program, row["batch"], row["rows"], size, slots)
    seconds = row["step_seconds_per_submodel"] * row["slots"]
    share = cost.flops / seconds / there.chip.training_flops
    if share > 1.0:
        raise ConfigError(
            f"The step in '{path}' would be {share:.1f} times the peak of a {there.chip.name}, which cannot be. "
            f"{remedy}"
        )
    return share


def _read_step(path: Path, remedy: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The row with most slots of what `experiments/benchmarks/step.py --json` wrote, and what it says of all rows.

    Raises:
        ConfigError: it is not such a file.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}'. {remedy}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        rows: Sequence[Mapping[str, Any]] = about["rows"]
        row = max(rows, key=lambda row: row["slots"])
        lacking = {"fingerprint", "spec", "context", "random", "seconds", "labels"} - set(about)
        lacking |= {"platform", "device_kind", "devices"} - set(about)
        lacking |= {"slots", "batch", "rows", "step_seconds_per_submodel"} - set(row)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is not what step.py --json writes: {error!r}. {remedy}") from error
    if lacking:
        raise ConfigError(f"'{path}' does not say {', '.join(sorted(lacking))}: it is of an older version. {remedy}")
    return row, about
