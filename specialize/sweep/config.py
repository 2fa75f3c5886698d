"""What a sweep is asked to do."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from specialize.errors import ConfigError
from specialize.files import exposed, run_file
from specialize.sweep.axes import Axis, check, parse_axes
from specialize.sweep.trials import shared
from specialize.train import Experiment
from specialize.train.experiment import to_json


@dataclass(frozen=True)
class Sweep:
    """Trials of an experiment with other values of its fields. The fields are the flags of `specialize sweep`."""

    experiment: Annotated[Path | Experiment, tyro.conf.Suppress]
    """A file that exposes `experiment`, or the Experiment."""
    axes: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """What varies, as `specialize.sweep.parse_axes` reads it: `lr=1e-4,1e-3`, `submodel.rank=4,8`,
    `hyper.weight_decay=0..0.1`."""
    name: str | None = None
    """Name of the sweep; its folder is `<sweeps>/<name>`. None is the experiment's."""
    method: Literal["grid", "random", "tpe"] = "grid"
    """Which values are tried: all combinations; so many at random; or those that a model of the trials before suggests
    (TPE, Bergstra et al. 2011, by Optuna; extra `sweep`)."""
    trials: int | None = None
    """How many are tried, with random and tpe. A sweep with tpe may go on with more."""
    seed: int = 0
    """Seed of what is tried. Seeds of training are a field of the experiment, `hyper.seed`."""
    together: int = 8
    """With tpe, how many trials are suggested at once and trained together: more make better use of a program, fewer
    learn more from those before."""
    select: Literal["pooled", "speaker"] = "pooled"
    """What is best: the values with the least mean dev loss over all speakers; or of one set of programs, for each
    speaker their own best values of `hyper`. What tpe learns from is the mean either way."""
    halving: int = 0
    """At a few looks, only the best 1 in so many of a speaker's trials of one program go on, as `stop.halving` of an
    experiment. Needs --select speaker, for a mean over speakers of which some ended early says little. 0 lets all
    run."""
    storage: str | None = None
    """With tpe, URL of the database of trials, which several processes may share: sqlite, postgresql or mysql, as
    SQLAlchemy writes it. None is `optuna.db` in the folder of the sweep."""
    sweeps: Path = Path("sweeps")
    """Folder of sweeps. Processes that share a sweep share this folder."""

    def __post_init__(self):
        if self.method == "grid" and self.trials is not None:
            raise ConfigError(f"trials={self.trials}, but a grid tries all combinations. Give --method random or tpe.")
        if self.method != "grid" and (self.trials is None or self.trials < 1):
            raise ConfigError(f"trials={self.trials}, but --method {self.method} needs a number: give --trials 32.")
        if self.together < 1:
            raise ConfigError(f"together={self.together}, but it must be at least 1.")
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed}, but it must be at least 0.")
        if self.halving < 0 or self.halving == 1:
            raise ConfigError(f"halving={self.halving}, but it must be 0 (off) or at least 2.")
        if self.storage is not None and self.method != "tpe":
            raise ConfigError(
                f"storage={self.shown_storage} is of --method tpe; a {self.method} needs none. Leave it out."
            )

    @cached_property
    def started(self) -> Experiment:
        """The experiment, with the values that nothing changes.

        Raises:
            ConfigError: the file has none, or it has a grid of its own.
        """
        experiment = self.experiment
        if isinstance(experiment, Path):
            experiment = exposed(experiment, run_file(experiment), "experiment", Experiment)
        if experiment.grid:
            raise ConfigError(
                f"The experiment has a grid, {' '.join(experiment.grid)}, and so has a sweep. Leave out the "
                "experiment's, and give its axes to the sweep."
            )
        return experiment

    @cached_property
    def parsed(self) -> list[Axis]:
        """The axes.

        Raises:
            SpecializeError: one is wrong, or values contradict each other.
        """
        if not self.axes:
            raise ConfigError("A sweep needs at least one axis: lr=1e-4,1e-3, or cohort.batch=2,4.")
        axes = parse_axes(self.axes, self.started)
        check(axes, self.started)
        if _may_halve(self.halving, axes, self.started):
            if self.select == "pooled":
                raise ConfigError(
                    "Halving ends trials by one speaker's dev set, and the mean over speakers is then of trials that "
                    "ended early. Give --select speaker, or no halving."
                )
            if self.method == "tpe":
                self._check_company(axes)
        return axes

    def _check_company(self, axes: list[Axis]) -> None:
        """With halving and tpe, raises ConfigError where a trial may be alone in its program.

        Nothing would end it early, and it would look better to the model than those that had company.
        """
        assert self.trials is not None
        if apart := [axis.name for axis in axes if axis.varies and not shared(axis.name, self.started)]:
            raise ConfigError(
                f"Halving compares trials that share a program, and '{apart[0]}' makes programs of its own: what tpe "
                "suggests alone there would never be ended early, and would pass for better. Give --halving 0 (and "
                "stop.halving=0), --method random, or axes of `hyper` alone."
            )
        if self.together == 1 or self.trials % self.together == 1:
            raise ConfigError(
                f"trials={self.trials} in batches of together={self.together} leaves a trial alone in its batch, and "
                "halving compares trials of one batch. Give --trials or --together such that none is alone."
            )

    @property
    def called(self) -> str:
        """Its name.

        Raises:
            ConfigError: it is none for a folder.
        """
        name = self.name if self.name is not None else self.started.name
        if not re.fullmatch(r"[^\W_][\w .+-]*", name):
            raise ConfigError(f"'{name}' is no name of a sweep. Give a --name of letters, digits and . _ + -.")
        return name

    @property
    def folder(self) -> Path:
        """Where it is written."""
        return self.sweeps / self.called

    @property
    def shown_storage(self) -> str | None:
        """The URL without its password."""
        return None if self.storage is None else re.sub(r"(://[^:/@]*:)[^/]*@", r"\1***@", self.storage)

    def asked(self) -> dict[str, Any]:
        """What decides what comes of it, as JSON data; the same however axes are spelt."""
        return {
            "experiment": to_json(self.started),
            "axes": [axis.written for axis in self.parsed],
            "method": self.method,
            "trials": self.trials,
            "seed": self.seed,
            "together": self.together if self.method == "tpe" else None,
            "select": self.select,
            "halving": self.halving,
            "storage": self.shown_storage,
        }


def _may_halve(halving: int, axes: list[Axis], started: Experiment) -> bool:
    """Whether halving is on in some trial."""
    axis = next((axis for axis in axes if axis.name == "stop.halving"), None)
    if halving or axis is None:
        return bool(halving or started.stop.halving)
    return axis.range is not None or any(axis.values)
