"""A sweep from end to end: runs one after another, then a table, a page and the best experiment."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from specialize.errors import ConfigError, Preempted, SpecializeError
from specialize.sweep.axes import told
from specialize.sweep.config import Sweep
from specialize.sweep.folder import SweepFolder
from specialize.sweep.listed import Listed
from specialize.sweep.outcomes import Best, Outcome, choose, outcomes
from specialize.sweep.report import write_page, write_table
from specialize.sweep.source import write_experiment
from specialize.sweep.tpe import Suggested
from specialize.sweep.trials import SweepRun
from specialize.train import Experiment, train


@dataclass(frozen=True)
class Swept:
    """What a sweep has come to."""

    folder: Path
    runs: list[SweepRun]
    """All that are known."""
    outcomes: list[Outcome]
    best: Best | None
    """None while nothing has ended."""

    @property
    def left(self) -> list[SweepRun]:
        """Runs that have not ended: other processes are at them."""
        return [run for run in self.runs if not run.ended]


def run_sweep(sweep: Sweep, *, overwrite: bool = False) -> Swept:
    """Trains all trials of a sweep that no other process is at, and writes what came of all.

    A sweep of this name goes on: runs that have ended are not made again, one that was killed goes on from its last
    state, and what comes of it is the same as if nothing had been killed.

    Args:
        sweep: what to try.
        overwrite: replace the sweep of this name.

    Raises:
        SpecializeError: the sweep or one of its runs cannot be made; the message names the values.
        Preempted: SIGTERM came; the same command goes on.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            "A sweep is one process, and its runs may be of many: `specialize sweep … --dry-run` writes the "
            "experiment files of the runs. Launch these, and then sweep again for what came of them."
        )
    source = open_sweep(sweep, overwrite=overwrite)
    while True:
        with source.take() as runs:
            if not runs:
                break
            for run in runs:
                _train(run, sweep)
            source.tell(runs, outcomes(source.runs()))
        write_results(sweep, source.runs())
    return write_results(sweep, source.runs())


def open_sweep(sweep: Sweep, *, overwrite: bool = False) -> Listed | Suggested:
    """Opens the folder of a sweep, or makes it; nothing is trained.

    Raises:
        SpecializeError: the sweep cannot be made, or another has its name.
    """
    assert sweep.parsed  # what is wrong with it is told before anything is written
    folder = SweepFolder(sweep.folder)
    if sweep.method == "tpe":
        folder.begin(sweep, overwrite=overwrite)
        return Suggested(sweep, folder, overwrite=overwrite)
    listed = Listed(sweep, folder)
    folder.begin(sweep, overwrite=overwrite)
    return listed


def experiment_file(run: SweepRun, sweep: Sweep) -> Path:
    """Writes the experiment file of a run, for `specialize train` and launchers; returns its path."""
    path = SweepFolder(sweep.folder).experiments / f"{run.id}.py"
    numbers = ", ".join(str(trial.number) for trial in run.trials)
    write_experiment(path, run.experiment, f"Trials {numbers} of the sweep {sweep.called}.")
    return path


def write_results(sweep: Sweep, runs: Sequence[SweepRun]) -> Swept:
    """Writes `trials.csv`, `sweep.html` and `best.py` of the runs that have ended."""
    found = outcomes(runs)
    best = choose(found, sweep.select)
    swept = Swept(sweep.folder, list(runs), found, best)
    write_table(sweep.folder / "trials.csv", sweep, found, best)
    write_page(sweep.folder / "sweep.html", sweep, found, best, len(swept.left))
    if best is not None:
        numbers = ", ".join(map(str, best.trials))
        about = f"Best of the sweep {sweep.called}, trial {numbers}: mean dev loss {best.mean:.4f}."
        write_experiment(sweep.folder / "best.py", best_experiment(sweep, best), about)
    return swept


def best_experiment(sweep: Sweep, best: Best) -> Experiment:
    """What `best.py` exposes: what was chosen, as a run beside those of the experiment."""
    return dataclasses.replace(best.experiment, name=f"{sweep.called}-best")


def _train(run: SweepRun, sweep: Sweep) -> None:
    if run.ended:
        return
    experiment_file(run, sweep)
    trials = f"{len(run.trials)} trial{'' if len(run.trials) == 1 else 's'}"
    print(f"run {run.id}: {trials} of the sweep {sweep.called}", file=sys.stderr, flush=True)
    try:
        train(run.experiment)
    except Preempted as error:
        raise Preempted(f"{error} So does that of the sweep.") from None
    except SpecializeError as error:
        values = told(run.trials[0].values)
        raise type(error)(f"Run {run.id} of the sweep, which begins with {values}: {error}") from error
