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
from specialize.train.estimate import USABLE, Memory, Workload, gigabytes, lowered, needed_memory
from specialize.train.planning import Program
from specialize.train.resident import resident_bytes

HERE = "here"
"""The devices of this machine, among the names of accelerators."""
_FEW = 8
DOUBT = 2.0
"""An assumed share of the peak may be this much too high or too low."""


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
    utilisation: float = 0.3
    """With a named accelerator, the share of its peak operations that training is taken to reach: an assumption. Half
    and twice of it are told too."""
    measured: Path | None = None
    """A step that was measured on a chip of that kind, `experiments/benchmarks/step.py --json FILE`; it takes the place
    of the assumption."""
    steps: float | None = None
    """Steps of a job on average; None is stop.max_steps, and so the longest that a run can take."""
    like: Path | None = None
    """Folder of a run: jobs end after as many steps as there."""
    writers: int = 1
    """Threads that store Submodels: one for each process that stores its own."""

    def __post_init__(self):
        for name in ("speakers", "slots_per_chip", "writers"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value}, but it must be at least 1.")
        if not 0.0 < self.utilisation <= 1.0:
            raise ConfigError(f"--utilisation {self.utilisation:g}, but it is a share of the peak: above 0, at most 1.")
        if self.steps is not None and self.like is not None:
            raise ConfigError("--steps and --like both say when jobs end. Give one of them.")
        if self.accelerator == HERE and self.measured is not None:
            raise ConfigError("--measured is of another chip; what runs here is measured now. Name the --accelerator.")
        if self.accelerator == HERE and self.slots_per_chip != "auto":
            raise ConfigError("--slots-per-chip is of a named accelerator. Here, --cohort.slots says how many.")


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


def elsewhere(planned: Plan, program: Program, question: Question, there: Accelerator) -> Where:
    """On accelerators that are named."""
    chip, config, cut = there.chip, planned.experiment.cohort, planned.cut
    if question.measured is None:
        share, bandwidth = question.utilisation, chip.bandwidth
    else:
        share, bandwidth = share_of_peak(question.measured, planned, program, there), math.inf
    most = -(-len(program.jobs) // there.chips)
    shapes = planned.shapes(program, min(most, _FEW) * there.chips)
    longest = shapes[0].sizes[-1]
    resident = resident_bytes(config.resident, program.samples, longest.samples, there.kind, chip.hbm_bytes)
    work = Workload(cut.batch, cut.rows, longest, cut.together, resident)
    costs = count_costs(planned, program, shapes, work, there.kind)
    fits = costs.slots_in(USABLE * chip.hbm_bytes)
    if fits < 1:
        raise ConfigError(
            f"Not even one slot fits: a {chip.name} needs {gigabytes(costs.memory_of(1).total)} for it and has "
            f"{gigabytes(chip.hbm_bytes)}. Use a smaller base, --cohort.rows 1, or shorter utterances."
        )
    local = _local(question.slots_per_chip, most, fits, costs, there)
    slots = local * there.chips
    parts = cut.batch // cut.rows

    def pace(of_peak: float) -> Roofline:
        return Roofline(costs, local, parts, of_peak * chip.bf16_flops, bandwidth)

    assumed = question.measured is None
    fast, slow = (pace(min(1.0, share * DOUBT)), pace(share / DOUBT)) if assumed else (pace(share), pace(share))
    cost = pace(share).cost_of_part(longest)
    by_arithmetic = cost.flops / (share * chip.bf16_flops) >= cost.bytes / bandwidth
    bound = ("arithmetic" if by_arithmetic else "memory") if assumed else "measured"

    def compiling(counts: Counts) -> float:
        return costs.compiling * (len(counts.parts) + len(counts.looks) + len(counts.starts))

    chunk = costs.memory[0] if costs.memory[0] > 1 else 0
    return Where(slots, chunk, costs.memory_of(local), fits, pace(share), fast, slow, bound, share, compiling)


def _local(asked: int | Literal["auto"], most: int, fits: int, costs: Costs, there: Accelerator) -> int:
    """Slots of a chip.

    Raises:
        ConfigError: those that were asked for do not fit.
    """
    if asked == "auto":
        # As many waves as there must be, and no wider than they need.
        waves = -(-most // min(most, fits))
        return -(-most // waves)
    if asked > fits:
        needed = gigabytes(costs.memory_of(asked).total)
        raise ConfigError(
            f"{asked} slots need {needed} of a {there.chip.name}, which has {gigabytes(there.chip.hbm_bytes)}. {fits} "
            "fit: give --slots-per-chip that, or auto."
        )
    return min(asked, most)


def share_of_peak(path: Path, planned: Plan, program: Program, there: Accelerator) -> float:
    """Operations a second of a measured step, over the peak of its chip.

    Raises:
        ConfigError: the file is none of a step, or that step is of another base or spec.
    """
    row, about = _read_step(path)
    for name, theirs, ours in (
        ("base", about["fingerprint"], planned.base.fingerprint),
        ("spec", about["spec"], str(program.spec)),
    ):
        if theirs != ours:
            raise ConfigError(
                f"'{path}' measured the {name} {theirs}, but the experiment has {ours}. Measure a step of the same: "
                "experiments/benchmarks/step.py --base … --submodel.…"
            )
    rate = planned.base.architecture.sample_rate
    size = Size(int(about["seconds"] * rate), int(about["labels"]))
    slots = max(1, round(row["slots"] / about["devices"]))
    cost = step_cost(planned, program, row["batch"], row["rows"], size, slots)
    seconds = row["step_seconds_per_submodel"] * row["slots"]
    share = cost.flops / seconds / there.chip.bf16_flops
    if share > 1.0:
        raise ConfigError(
            f"The step in '{path}' ({about['device']}) would be {share:.1f} times the peak of a {there.chip.name}. It "
            "was measured on another chip: name that one, or measure on this."
        )
    return share


def _read_step(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The row with most slots of what `experiments/benchmarks/step.py --json` wrote, and what it says of all rows.

    Raises:
        ConfigError: it is not such a file.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file '{path}'. Make it with experiments/benchmarks/step.py --json {path}.")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        rows: Sequence[Mapping[str, Any]] = about["rows"]
        row = max(rows, key=lambda row: row["slots"])
        lacking = {"fingerprint", "spec", "seconds", "labels", "device", "devices"} - set(about)
        lacking |= {"slots", "batch", "rows", "step_seconds_per_submodel"} - set(row)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is not what experiments/benchmarks/step.py --json writes: {error!r}.") from error
    if lacking:
        raise ConfigError(
            f"'{path}' does not say {', '.join(sorted(lacking))}: it is of an older version. Measure the step again "
            "with experiments/benchmarks/step.py --json."
        )
    return row, about
