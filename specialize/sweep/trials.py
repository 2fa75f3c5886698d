"""Trials, and the runs that they are put together in: one program for those that differ only in hyper-parameters."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specialize.sweep.axes import Values, changed
from specialize.train import Experiment, HyperParameters
from specialize.train.jobs import joint_axis


@dataclass(frozen=True)
class Trial:
    """One set of values."""

    number: int
    values: Values
    experiment: Experiment
    """With these values, and the name and folder of the one that the sweep began with."""


@dataclass(frozen=True)
class SweepRun:
    """Trials that one run of `specialize train` makes; trial i is point i of its grid."""

    trials: tuple[Trial, ...]
    experiment: Experiment
    """What is trained."""

    @property
    def id(self) -> str:
        """Its name: that of the sweep, and the number of its first trial."""
        return self.experiment.name

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.experiment.folder

    @property
    def ended(self) -> bool:
        """Whether it has been trained to its end."""
        return (self.folder / "summary.json").is_file()


def make_trials(values: Iterable[Values], experiment: Experiment) -> list[Trial]:
    """Trials numbered from 0.

    Raises:
        SpecializeError: values contradict each other.
    """
    return [Trial(number, of, changed(experiment, of)) for number, of in enumerate(values)]


def settings(experiment: Experiment) -> Experiment:
    """What trials of one run have in common: all but what may differ between slots."""
    kept = {
        field.name: getattr(experiment.hyper, field.name)
        for field in dataclasses.fields(HyperParameters)
        if not shared(f"hyper.{field.name}", experiment)
    }
    return dataclasses.replace(experiment, hyper=HyperParameters(**kept))


def shared(name: str, experiment: Experiment) -> bool:
    """Whether trials of one run may differ in a field."""
    if name == "hyper.embedding_steps" and experiment.space is not None:
        # When jobs may end depends on the longest first phase of all, so these would change each other's results.
        return experiment.fitted != "embedding-then-unfreeze"
    return name.startswith("hyper.")


def grouped(
    trials: Sequence[Trial],
    runs: Path,
    sweep: str,
    select: Literal["pooled", "speaker"] = "pooled",
    halving: int = 0,
) -> list[SweepRun]:
    """The runs that make these trials, in the order of their first trials.

    Args:
        trials: to make.
        runs: folder of the runs.
        sweep: its name, which those of the runs begin with: a launcher calls what it starts by them.
        select: which Submodels a run keeps.
        halving: of each speaker's trials in a run; it needs two of them.
    """
    together: dict[Experiment, list[Trial]] = {}
    for trial in trials:
        together.setdefault(settings(trial.experiment), []).append(trial)
    made = []
    for of in together.values():
        first = of[0].experiment
        halves = (halving or first.stop.halving) if len(of) > 1 else 0
        experiment = dataclasses.replace(
            first,
            name=f"{sweep}-{of[0].number:04d}",
            runs=runs,
            grid=(joint_axis([trial.experiment.hyper for trial in of]),) if len(of) > 1 else (),
            select=select,
            stop=dataclasses.replace(first.stop, halving=halves),
        )
        made.append(SweepRun(tuple(of), experiment))
    return made
